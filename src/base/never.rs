//! `never!`: a broken promise is loud in tests and contained in service.
//!
//! Refuses: ending the process in a release build.

/// `if never!(condition, "what should hold") { recover }`: true when the promise is broken.
/// Panics in debug builds (tests, simulation, drills); in release it only answers.
/// The form is rust-analyzer's `never!`.
#[macro_export]
macro_rules! never {
    ($condition:expr, $($message:tt)+) => {{
        let broken = $condition;
        if cfg!(debug_assertions) && broken {
            panic!($($message)+);
        }
        broken
    }};
}
