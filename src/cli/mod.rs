//! The command line: a command a file.
//!
//! Refuses: the store and the daemon's insides.

pub mod check;
pub mod schema;
