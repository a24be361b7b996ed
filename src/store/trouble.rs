//! What ails the store, as an operator is told it: a stable name, a sentence, what to do.
//!
//! Refuses: deciding what to do about it.

use std::io;

use rusqlite::ErrorCode;

use crate::store::StoreError;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Stable: `store.locked`, `store.full`, `store.io`, `store.read-only`, `store.corrupt`,
    /// `store.unreachable`, `store.copy`, `store.aside`, `log.unwritable`.
    pub code: &'static str,
    pub message: String,
    pub help: String,
}

const FULL: (&str, &str) = ("store.full", "make room on its file system");
const READ_ONLY: (&str, &str) = ("store.read-only", "make its file system writable again");

/// How a sentence begins when nothing can be committed.
const NOTHING_WRITTEN: &str = "nothing can be written down, supervision goes on: ";

impl Trouble {
    /// The cause alone, for a sentence of one's own.
    pub fn cause(&self) -> &str {
        self.message.strip_prefix(NOTHING_WRITTEN).unwrap_or(&self.message)
    }

    /// Why nothing can be committed.
    pub fn of(error: &StoreError) -> Trouble {
        let (code, help) = match error {
            StoreError::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
                    "store.locked",
                    "end the program that holds a lock on it (`fuser` on the file tells which)",
                ),
                Some(ErrorCode::DiskFull) => FULL,
                Some(ErrorCode::ReadOnly) => READ_ONLY,
                Some(ErrorCode::SystemIoFailure) => {
                    ("store.io", "look at the kernel's log: the disk gives errors")
                }
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                    ("store.corrupt", "it is moved aside and begun anew by itself")
                }
                None => ("store.corrupt", "it is moved aside and begun anew by itself"),
                Some(_) => ("store.unreachable", "see that its directory is there and ours"),
            },
            StoreError::Value(_) | StoreError::Newer { .. } => {
                ("store.corrupt", "it is moved aside and begun anew by itself")
            }
            StoreError::File { cause, .. } if cause.kind() == io::ErrorKind::ReadOnlyFilesystem => READ_ONLY,
            StoreError::File { cause, .. } if cause.kind() == io::ErrorKind::StorageFull => FULL,
            StoreError::File { .. } | StoreError::Library { .. } | StoreError::Closed => {
                ("store.unreachable", "see that its directory is there and ours")
            }
        };
        let message = format!("{NOTHING_WRITTEN}{error}");
        Trouble { code, message, help: help.to_string() }
    }
}

pub(crate) const COPY: &str = "store.copy";

/// The second copies are behind.
pub(crate) fn copy_trouble(why: &str) -> Trouble {
    Trouble {
        code: COPY,
        message: format!("a second copy of the database (alerts.jnl, state.jnl) cannot be written: {why}"),
        help: "it is tried again every second; make room beside the database".to_string(),
    }
}
