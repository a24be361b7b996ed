//! Unit files: TOML text → `UnitSpec` + diagnostics with spans. Defaults in one place.
//!
//! Refuses: the file system (`config` reads files) and run state.

pub mod channels;
pub mod daemon_file;
pub mod diag;
pub mod diff;
pub mod foreign;
pub mod keys;
pub mod parse;
mod reader;
pub mod render;
pub mod schema;
mod sections;
pub mod spec;
mod target;
mod value;

pub use parse::{Parsed, parse};
pub use render::{Colour, render};
pub use schema::schema;
