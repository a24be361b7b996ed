//! The commands that need no daemon to ask: each is one call into another room.
//!
//! Refuses: doing anything itself.

use std::io::Write;
use std::path::PathBuf;

use crate::cli::args::{DemoArgs, GlobalArgs};
use crate::cli::context::EXIT_FAILED;

pub fn daemon(_global: &GlobalArgs) -> u8 {
    absent("daemon")
}

pub fn engine(_global: &GlobalArgs) -> u8 {
    absent("engine")
}

pub fn demo(_args: &DemoArgs) -> u8 {
    absent("demo")
}

pub fn puppet(_words: &[String]) -> u8 {
    absent("puppet")
}

pub fn check(_global: &GlobalArgs, _paths: &[PathBuf]) -> u8 {
    absent("check")
}

pub fn schema() -> u8 {
    absent("schema")
}

/// Until the room is merged.
fn absent(room: &str) -> u8 {
    let _ = writeln!(std::io::stderr().lock(), "error: this build has no `{room}`"); // nobody to tell
    EXIT_FAILED
}
