//! What ails the daemon, as an operator is told it: a stable name, a sentence, what to do.
//!
//! Refuses: deciding what to do about it.

use std::io;

use rusqlite::ErrorCode;

use crate::store::StoreError;

macro_rules! codes {
    ($($name:ident = $text:literal,)*) => {
        /// The stable names. Each has its heading in docs/operations/runbook.md.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($name,)* }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$name,)*];

            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)* }
            }
        }
    };
}

codes! {
    StoreLocked = "store.locked",
    StoreFull = "store.full",
    StoreIo = "store.io",
    StoreReadOnly = "store.read-only",
    StoreCorrupt = "store.corrupt",
    StoreUnreachable = "store.unreachable",
    StoreCopy = "store.copy",
    StoreAside = "store.aside",
    LogUnwritable = "log.unwritable",
    LogBlocked = "log.blocked",
    ApiListen = "api.listen",
    ApiToken = "api.token",
    AlertOverdue = "alert.overdue",
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub code: Code,
    pub message: String,
    pub help: String,
}

const FULL: (Code, &str) = (Code::StoreFull, "make room on its file system");
const READ_ONLY: (Code, &str) = (Code::StoreReadOnly, "make its file system writable again");

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
                    Code::StoreLocked,
                    "end the program that holds a lock on it (`fuser` on the file tells which)",
                ),
                Some(ErrorCode::DiskFull) => FULL,
                Some(ErrorCode::ReadOnly) => READ_ONLY,
                Some(ErrorCode::SystemIoFailure) => {
                    (Code::StoreIo, "look at the kernel's log: the disk gives errors")
                }
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                    (Code::StoreCorrupt, "it is moved aside and begun anew by itself")
                }
                None => (Code::StoreCorrupt, "it is moved aside and begun anew by itself"),
                Some(_) => (Code::StoreUnreachable, "see that its directory is there and ours"),
            },
            StoreError::Value(_) | StoreError::Newer { .. } => {
                (Code::StoreCorrupt, "it is moved aside and begun anew by itself")
            }
            StoreError::File { cause, .. } if cause.kind() == io::ErrorKind::ReadOnlyFilesystem => READ_ONLY,
            StoreError::File { cause, .. } if cause.kind() == io::ErrorKind::StorageFull => FULL,
            StoreError::File { .. } | StoreError::Library { .. } | StoreError::Closed => {
                (Code::StoreUnreachable, "see that its directory is there and ours")
            }
        };
        let message = format!("{NOTHING_WRITTEN}{error}");
        Trouble { code, message, help: help.to_string() }
    }
}

/// The second copies are behind.
pub(crate) fn copy_trouble(why: &str) -> Trouble {
    Trouble {
        code: Code::StoreCopy,
        message: format!("a second copy of the database (alerts.jnl, state.jnl) cannot be written: {why}"),
        help: "it is tried again every second; make room beside the database".to_string(),
    }
}
