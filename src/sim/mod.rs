//! The simulator: the real engine in a fake world. Days of virtual time in milliseconds,
//! faults from a seed, promises checked after every step.
//!
//! Refuses: anything real. A run is a function of its tape: the same tape, the same run.

mod audit;
mod books;
pub mod bug;
mod disk;
mod healing;
pub mod oracle;
pub mod outbox;
mod poison;
pub mod promises;
mod rest;
pub mod run;
pub mod setup;
pub mod shrink;
mod standby;
pub mod tape;
mod upset;
pub mod timeline;
mod talk;
mod world;
