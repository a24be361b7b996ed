//! argv[0] and the first word → keeper, engine or command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(upright::cli::run(std::env::args_os()))
}
