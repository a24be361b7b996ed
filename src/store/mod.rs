//! The store: one SQLite connection on one thread. What the engine wants kept arrives in
//! batches, many batches share one fsync, and each batch is told when it is on the disk.
//!
//! The database is the first copy of everything. Beside it stand second ones, each of a kind that a
//! corrupt database cannot take along: `alerts.jnl` (alerts), `state.jnl` (what is asked of units, and
//! how often they failed), and the log of history.
//!
//! Refuses: deciding anything, blocking whoever submits, a second connection.

pub mod alert;
pub mod alert_journal;
mod base;
pub mod books;
mod chores;
pub mod drill;
mod checked;
pub mod figures;
pub mod kept;
mod lost;
pub mod open;
pub mod rebuild;
pub mod reconcile;
pub mod row;
pub mod schema;
pub mod trouble;
pub mod run;
pub mod writer;

use std::io;
use std::path::PathBuf;

/// Why the store cannot be opened or asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the store {}: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error(
        "cannot use the store {}: it has schema {found}, this build knows {known}; start the newer \
         upright again, or restore a backup", path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("cannot use SQLite {found}: versions before 3.51.3 can corrupt a write-ahead log")]
    Library { found: String },
    #[error("cannot use the store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("cannot use the store: {0}")]
    Value(String),
    #[error("cannot ask the store: it is closed")]
    Closed,
}
