//! The words everybody shares: names, runs, exits, signals, durations, sizes, limits.
//!
//! Refuses: a clock, a file, a socket. Everything here is a value.

pub mod base64;
pub mod check;
pub mod duration;
pub mod exit;
pub mod hidden;
pub mod histogram;
pub mod limits;
pub mod luck;
pub mod name;
pub mod never;
pub mod signal;
pub mod size;
pub mod time;
pub mod visible;
