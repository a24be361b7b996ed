//! What happened, as a line of history, a line of `system_resilience.log`, and the
//! daemon's own log on stderr.
//!
//! Refuses: decisions. A record says what was; nothing here changes what will be.

pub mod journal;
#[cfg(test)]
mod journal_tests;
pub mod metrics;
pub mod observe;
pub mod scribe;

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, WorkerGuard};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// The variable that sets how much the daemon says of itself: `error`, `warn`, `info`
/// (default), `debug`, `trace`, `off`.
pub const LOG_VARIABLE: &str = "UPRIGHT_LOG";

/// Sends the daemon's own log to stderr, through a thread: a reader that stalls (journald,
/// a full pipe) loses lines, it does not stop supervision. The guard writes what waits when
/// it is dropped. Where no thread is to be had, each line is written where it is said. A second
/// call in one process changes nothing. Call it before any other thread exists.
pub fn log_to_stderr() -> Option<WorkerGuard> {
    let (writer, guard) = match behind_a_thread() {
        Some((writer, guard)) => (BoxMakeWriter::new(writer), Some(guard)),
        None => (BoxMakeWriter::new(io::stderr), None),
    };
    let level = std::env::var(LOG_VARIABLE).ok().and_then(|text| text.parse::<LevelFilter>().ok());
    let subscriber = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_max_level(level.unwrap_or(LevelFilter::INFO))
        .with_target(false)
        // Its complaint about a broken stderr is an `eprintln!`, which panics on a broken stderr.
        .log_internal_errors(false)
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber); // already set: see above
    guard
}

/// The appender panics when it gets no thread, which at that moment is a shortage like any other.
fn behind_a_thread() -> Option<(NonBlocking, WorkerGuard)> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let made = std::panic::catch_unwind(|| tracing_appender::non_blocking(io::stderr()));
    std::panic::set_hook(hook);
    made.ok()
}
