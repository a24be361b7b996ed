//! What happened, as a line of history, a line of `system_resilience.log`, and the
//! daemon's own log on stderr.
//!
//! Refuses: decisions. A record says what was; nothing here changes what will be.

pub mod journal;
pub mod observe;
mod stderr;

use tracing::level_filters::LevelFilter;

use stderr::Lines;
pub use stderr::LogGuard;

/// The variable that sets how much the daemon says of itself: `error`, `warn`, `info`
/// (default), `debug`, `trace`, `off`.
pub const LOG_VARIABLE: &str = "UPRIGHT_LOG";

/// Sends the daemon's own log to stderr, through a thread: a reader that stalls (journald,
/// a full pipe) loses lines, it does not stop supervision. The guard writes what waits when
/// it is dropped. A second call in one process changes nothing.
pub fn log_to_stderr() -> LogGuard {
    let (writer, guard) = Lines::start();
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
