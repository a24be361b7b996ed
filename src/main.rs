//! argv[0] and the first word → keeper, engine or command line.
//!
//! Refuses: anything else. What it runs is in the library, where tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(upright::cli::run(std::env::args_os()))
}
