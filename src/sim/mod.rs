//! The simulator: the real engine in a fake world. Days of virtual time in milliseconds,
//! faults from a seed, promises checked after every step.
//!
//! Refuses: anything real. A run is a function of its tape: the same tape, the same run.

mod books;
pub mod bug;
pub mod oracle;
pub mod outbox;
pub mod promises;
pub mod run;
pub mod setup;
pub mod shrink;
pub mod tape;
pub mod world;
