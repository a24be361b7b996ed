//! The backend's promise while the database is away: an accepted session is a line in an
//! append-only file, on the disk before the client is told.
//!
//! Refuses: deciding what is new. Writing back is idempotent by the session's id.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Largest journal, in bytes. Beyond it a session is refused (503) instead of accepted:
/// a full disk would take the database's files with it.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One accepted session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub id: String,
    pub user: String,
    pub message: String,
}

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens or makes `DIR/journal.jsonl`. A last line without its newline was being written
    /// when the process died, so nobody was told that it is kept: it is cut off.
    ///
    /// # Errors
    /// As the file system gives them.
    pub fn open(dir: &Path) -> io::Result<Journal> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("journal.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let text = std::fs::read(&path)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < text.len() {
            file.set_len(whole as u64)?;
        }
        file.sync_all()?;
        File::open(dir)?.sync_all()?; // so that the name survives a power cut too
        Ok(Journal { path, file })
    }

    /// On the disk when this returns.
    ///
    /// # Errors
    /// When the session could not be made durable; then it must not be acknowledged.
    pub fn append(&mut self, session: &Session) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let mut line = serde_json::to_vec(session)?;
        line.push(b'\n');
        if before + line.len() as u64 > JOURNAL_BYTES_MAX {
            return Err(io::Error::other("the journal is full"));
        }
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if written.is_err() {
            let _ = self.file.set_len(before); // half a line would spoil the next one
        }
        written
    }

    /// Every session that waits to be written back, oldest first. A line that is no session
    /// is an error: skipping it would lose what was promised.
    ///
    /// # Errors
    /// As above, and as the file system gives them.
    pub fn sessions(&self) -> io::Result<Vec<Session>> {
        let text = std::fs::read_to_string(&self.path)?;
        text.lines()
            .enumerate()
            .map(|(at, line)| {
                serde_json::from_str(line).map_err(|cause| {
                    let place = format!("{}:{}", self.path.display(), at + 1);
                    io::Error::new(io::ErrorKind::InvalidData, format!("cannot read {place}: {cause}"))
                })
            })
            .collect()
    }

    /// Forgets everything: only after every session is in the database.
    ///
    /// # Errors
    /// As the file system gives them; the sessions then stay and are written back again,
    /// which changes nothing.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str) -> Session {
        Session { id: id.into(), user: "u".into(), message: "m\nn".into() }
    }

    #[test]
    fn what_was_appended_is_there_after_a_crash_and_half_a_line_is_not() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut journal = Journal::open(dir.path()).expect("open");
        for id in ["a", "b"] {
            journal.append(&session(id)).expect("append");
        }
        journal.file.write_all(b"{\"id\":\"torn").expect("tear");
        drop(journal);
        let mut journal = Journal::open(dir.path()).expect("open again");
        assert_eq!(journal.sessions().expect("read"), [session("a"), session("b")]);
        journal.append(&session("c")).expect("append");
        assert_eq!(journal.sessions().expect("read").len(), 3);
        journal.clear().expect("clear");
        assert_eq!(journal.sessions().expect("read"), []);
    }
}
