//! argv[0] and the first word → keeper, engine or command line.
//!
//! Refuses: anything else. What it runs is in the library, where tests reach it.

use std::process::ExitCode;

use upright::cli;
use upright::daemon::boot;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    // Before the command line is even looked at: every page that the parser touches would stay
    // resident for as long as the keeper lives, and be the price of each of its forks.
    if words.get(1).is_some_and(|word| word == boot::KEEPER_WORD) {
        return ExitCode::from(boot::run_keeper(words.get(2..).unwrap_or_default()));
    }
    ExitCode::from(cli::run(words))
}
