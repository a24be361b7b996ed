//! `upright schema`: the JSON Schema of the files, for editors and linters.
//!
//! Refuses: a schema of its own; it prints the one that the key table makes.

use crate::unit::schema;

/// Which file's schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Unit,
    /// `upright.toml`
    Daemon,
}

/// The text for standard output and the exit code.
pub fn run(of: Of) -> (String, u8) {
    let schema = match of {
        Of::Unit => schema::schema(),
        Of::Daemon => schema::daemon_schema(),
    };
    (format!("{schema:#}\n"), 0)
}
