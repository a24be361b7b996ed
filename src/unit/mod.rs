//! Unit files: TOML text → `UnitSpec` + diagnostics with spans. Defaults in one place.
//!
//! Refuses: the file system (`config` reads files) and run state.

pub mod spec;
