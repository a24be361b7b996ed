//! The commands that ask no daemon: each is one call into another room.
//!
//! Refuses: doing anything itself.

use std::path::PathBuf;

use crate::cli::args::{DemoArgs, EngineArgs, GlobalArgs, SchemaArgs};
use crate::cli::context::{EXIT_FAILED, Fail, look};
use crate::cli::out::Out;
use crate::cli::render::Paint;
use crate::cli::{check, find, schema};
use crate::daemon::boot;
use crate::daemon::card::Card;
use crate::demo::{self, Afterwards};
use crate::unit::Colour;

pub fn daemon(global: &GlobalArgs) -> u8 {
    exit_code(boot::run_daemon(&find::asked(global)))
}

pub fn engine(global: &GlobalArgs, args: &EngineArgs) -> u8 {
    exit_code(boot::run_engine(&find::asked(global), args.binary.clone()))
}

/// # Errors
/// Stdout cannot be written.
pub fn handshake() -> Result<u8, Fail> {
    print((Card::of_this_build().to_text(), 0))
}

pub fn demo(args: &DemoArgs) -> u8 {
    exit_code(demo::run(if args.keep { Afterwards::Keep } else { Afterwards::Remove }))
}

pub fn puppet(words: &[String]) -> u8 {
    exit_code(demo::puppet::run(words))
}

/// # Errors
/// Stdout cannot be written.
pub fn check(global: &GlobalArgs, paths: &[PathBuf]) -> Result<u8, Fail> {
    let colour = match look(global.color).paint {
        Paint::Plain => Colour::Plain,
        Paint::Colored => Colour::Coloured,
    };
    let format = if global.json { check::Format::Json } else { check::Format::Text(colour) };
    print(check::run(paths, &find::asked(global), format))
}

/// # Errors
/// Stdout cannot be written.
pub fn schema(args: &SchemaArgs) -> Result<u8, Fail> {
    print(schema::run(if args.daemon { schema::Of::Daemon } else { schema::Of::Unit }))
}

/// What a command has to say, and its exit code.
///
/// # Errors
/// Stdout cannot be written; a reader that left is no error.
pub fn print((text, code): (String, u8)) -> Result<u8, Fail> {
    let mut out = Out::stdout();
    let _ = out.write(&text)?; // Break: nothing else is to be written
    let _ = out.flush()?; // the same
    Ok(code)
}

fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(EXIT_FAILED)
}
