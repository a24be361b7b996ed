//! The command line: one file a command, all of them over the socket's API.
//!
//! Refuses: the store, the engine, and any decision about a unit.

pub mod args;
pub mod render;
pub mod out;
pub mod context;
pub mod find;
pub mod when;
pub mod status;
pub mod told;
pub mod why;
pub mod act;
pub mod signal;
pub mod logs;
pub mod events;
pub mod alert;
pub mod kpi;
pub mod drill;
pub mod graph;
pub mod doors;
pub mod check;
pub mod simulate;
pub mod schema;
pub mod plan;
pub mod quiet;
pub mod apply;
pub mod upgrade;

use std::ffi::OsString;
use std::io::Write;

use clap::FromArgMatches;

use crate::cli::args::{AlertCommand, Args, Command};
use crate::cli::context::{Context, Fail};

/// The wrong words were given, or a file is invalid (the contract's exit codes).
pub const EXIT_USAGE: u8 = 2;

/// Runs one command; `words` begins with argv[0]. The exit code is the contract's.
pub fn run(words: impl IntoIterator<Item = OsString>) -> u8 {
    let words = args::with_called_name(words.into_iter().collect());
    if words.len() <= 1 {
        // clap's own way would count UPRIGHT_HOME as a word, and name the hidden commands.
        let _ = write!(std::io::stderr().lock(), "{}", args::command().render_help()); // nobody is left to tell
        return EXIT_USAGE;
    }
    let parsed =
        args::command().try_get_matches_from(words).and_then(|matches| Args::from_arg_matches(&matches));
    let args = match parsed {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print(); // a reader that left needs no help text
            return u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE);
        }
    };
    match dispatch(&args) {
        Ok(code) => code,
        Err(fail) => {
            let mut out = std::io::stderr().lock();
            let _ = write!(out, "{fail}"); // nobody is left to tell
            fail.code
        }
    }
}

fn dispatch(args: &Args) -> Result<u8, Fail> {
    let global = &args.global;
    let context = || Context::new(global);
    match &args.command {
        Command::Daemon => Ok(doors::daemon(global)),
        Command::Engine(engine) => Ok(doors::engine(global, engine)),
        Command::Handshake => doors::handshake(),
        Command::Demo(demo) => Ok(doors::demo(demo)),
        Command::Puppet(puppet) => Ok(doors::puppet(&puppet.words)),
        Command::Check(check) => doors::check(global, &check.paths),
        Command::Simulate(asked) => simulate::run(global, asked),
        Command::Schema(schema) => doors::schema(schema),
        Command::Status(status) => status::run(&mut context()?, &status.units),
        Command::Why(asked) => why::run(&mut context()?, &asked.unit),
        Command::Act(act) => act::run(&mut context()?, act.verb(), act.order()),
        Command::Signal(signal) => signal::run(&mut context()?, signal),
        Command::Plan => plan::run(&mut context()?),
        Command::Apply(args) => apply::run(&mut context()?, args),
        Command::Upgrade(args) => upgrade::run(&mut context()?, args),
        Command::Logs(logs) => logs::run(&mut context()?, logs),
        Command::Alert(AlertCommand::List(list)) => alert::list(&mut context()?, list),
        Command::Alert(AlertCommand::Test(test)) => quiet::test(&mut context()?, test),
        Command::Alert(AlertCommand::Ack(ack)) => quiet::ack(&mut context()?, ack),
        Command::Alert(AlertCommand::Mute(mute)) => quiet::mute(&mut context()?, mute),
        Command::Events(events) => events::run(&mut context()?, events),
        Command::Drill(command) => drill::run(global, command),
        Command::Kpi(kpi) => kpi::run(&mut context()?, kpi),
        Command::Graph(graph) => graph::run(&mut context()?, graph.form()),
    }
}
