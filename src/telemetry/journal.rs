//! `system_resilience.log`: one JSON object a line, the committed history as a file that
//! `grep`, `jq` and a log shipper can read.
//!
//! Refuses: lines that are not committed, a line twice, and stopping anybody when the disk is
//! full: what could not be written waits, and what could not wait is read from the store at
//! the next start.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::store::row::EventRow;
use crate::sys::clock::rfc3339;

/// The file's name in the log directory.
pub const FILE_NAME: &str = "system_resilience.log";

/// Most lines that wait in memory while the file cannot be written; then the oldest go, and
/// the gap in the ids shows it.
const LINES_WAITING_MAX: usize = 10_000;

/// How much of the end is read for the last id. A line is far shorter than this.
const TAIL_BYTES: u64 = 256 * 1024;

/// The one writer of the file.
pub struct Journal {
    path: PathBuf,
    file: File,
    last_id: u64,
    waiting: VecDeque<EventRow>,
}

impl Journal {
    /// Opens or makes `path`; a line torn by a crash is cut off. `store_last_id` is the
    /// newest event of the store: a file that is ahead of it belongs to a store that is
    /// gone, and goes on from where the new one is.
    ///
    /// # Errors
    /// The file cannot be opened, read or cut.
    pub fn open(path: &Path, store_last_id: u64) -> io::Result<Journal> {
        let mut file = open_append(path)?;
        let last_id = last_id_of(&mut file)?;
        let last_id = last_id.min(store_last_id);
        Ok(Journal { path: path.to_path_buf(), file, last_id, waiting: VecDeque::new() })
    }

    /// The newest event that stands in the file.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// Appends committed events, oldest first; those that stand there already are skipped.
    ///
    /// # Errors
    /// The file cannot be written now; the lines wait for the next call.
    pub fn append(&mut self, rows: &[EventRow]) -> io::Result<()> {
        let newest = self.waiting.back().map_or(self.last_id, |row| row.id);
        self.waiting.extend(rows.iter().filter(|row| row.id > newest).cloned());
        while self.waiting.len() > LINES_WAITING_MAX {
            self.waiting.pop_front();
        }
        let Some(last) = self.waiting.back() else { return Ok(()) };
        let last_id = last.id;
        self.follow_rename()?;
        let mut text = Vec::new();
        for row in &self.waiting {
            text.extend_from_slice(line(row).as_bytes());
            text.push(b'\n');
        }
        let good_len = self.file.metadata()?.len();
        if let Err(error) = self.file.write_all(&text) {
            // Half a line would spoil the next one. If even this fails, the next open cuts it.
            let _ = self.file.set_len(good_len);
            return Err(error);
        }
        self.last_id = last_id;
        self.waiting.clear();
        Ok(())
    }

    /// Somebody (logrotate) renamed or removed the file: go on in a new one.
    fn follow_rename(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(there) if there.ino() == ours.ino() && there.dev() == ours.dev() => Ok(()),
            Ok(_) | Err(_) => {
                self.file = open_append(&self.path)?;
                Ok(())
            }
        }
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)
}

/// The id of the last whole line; 0 when there is none. Cuts a torn line off.
fn last_id_of(file: &mut File) -> io::Result<u64> {
    let len = file.metadata()?.len();
    let start = len.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() && (whole > 0 || start == 0) {
        file.set_len(start + whole as u64)?;
    }
    let newest = tail[..whole].split(|b| *b == b'\n').rev().find_map(id_of);
    match newest {
        Some(id) => Ok(id),
        None if start == 0 => Ok(0),
        None => greatest_id(file),
    }
}

/// Foreign text at the end: look at the whole file once.
fn greatest_id(file: &mut File) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut greatest = 0;
    for text in BufReader::new(file).split(b'\n') {
        greatest = greatest.max(id_of(&text?).unwrap_or(0));
    }
    Ok(greatest)
}

fn id_of(text: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(text).ok()?.get("id")?.as_u64()
}

/// One line, without its newline. The fixed keys come first, in this order; an event's own
/// data cannot replace them.
fn line(row: &EventRow) -> String {
    let event = &row.event;
    let fixed: [(&str, Value); 9] = [
        ("id", row.id.into()),
        ("ts", rfc3339(event.ts_us).into()),
        ("level", event.level.as_str().into()),
        ("event", event.event.clone().into()),
        ("unit", event.unit.as_ref().map(|unit| unit.as_str()).into()),
        ("run", event.run.map(|run| run.0).into()),
        ("cause", event.cause.clone().into()),
        ("message", event.message.clone().into()),
        ("at_ns", event.at.as_ns().into()),
    ];
    let own = event.data.iter().filter(|(key, _)| fixed.iter().all(|(name, _)| name != key));
    let mut text = String::from("{");
    for (key, value) in
        fixed.iter().map(|(key, value)| (*key, value)).chain(own.map(|(k, v)| (k.as_str(), v)))
    {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&Value::from(key).to_string());
        text.push(':');
        text.push_str(&value.to_string());
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::base::time::Monotonic;
    use crate::store::row::{Level, NewEvent};

    fn row(id: u64) -> EventRow {
        let event = NewEvent {
            ts_us: 1_700_000_000_123_456,
            level: Level::Info,
            event: "unit.active".into(),
            unit: None,
            run: None,
            cause: None,
            message: "line\nbreak".into(),
            at: Monotonic::from_ns(5),
            data: Map::from_iter([("start_ms".into(), 3.into()), ("id".into(), 99.into())]),
        };
        EventRow { id, event }
    }

    fn ids(path: &Path) -> Vec<u64> {
        let text = std::fs::read(path).expect("reads");
        text.split(|b| *b == b'\n').filter_map(id_of).collect()
    }

    #[test]
    fn nothing_is_written_twice_or_never_across_restarts_and_torn_lines() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(FILE_NAME);
        let mut journal = Journal::open(&path, 0).expect("opens");
        journal.append(&[row(1), row(2)]).expect("writes");
        let mut torn = std::fs::read(&path).expect("reads");
        torn.extend_from_slice(b"{\"id\":3,\"ts");
        std::fs::write(&path, torn).expect("writes");
        let mut journal = Journal::open(&path, 4).expect("opens");
        assert_eq!(journal.last_id(), 2);
        journal.append(&[row(2), row(3), row(4)]).expect("writes");
        assert_eq!(ids(&path), [1, 2, 3, 4]);
    }

    #[test]
    fn a_file_ahead_of_its_store_goes_on_with_the_store() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(FILE_NAME);
        Journal::open(&path, 0).expect("opens").append(&[row(500)]).expect("writes");
        let mut journal = Journal::open(&path, 0).expect("opens");
        journal.append(&[row(1)]).expect("writes");
        assert_eq!(ids(&path), [500, 1]);
    }

    #[test]
    fn a_renamed_file_is_followed_by_a_new_one() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(FILE_NAME);
        let mut journal = Journal::open(&path, 0).expect("opens");
        journal.append(&[row(1)]).expect("writes");
        std::fs::rename(&path, dir.path().join("old")).expect("renames");
        journal.append(&[row(2)]).expect("writes");
        assert_eq!(ids(&path), [2]);
    }

    #[test]
    fn fixed_keys_come_first_and_cannot_be_replaced() {
        let text = line(&row(7));
        let object: Value = serde_json::from_str(&text).expect("json");
        assert_eq!(object["id"], 7);
        assert_eq!(object["ts"], "2023-11-14T22:13:20.123456Z");
        assert_eq!(object["start_ms"], 3);
        assert_eq!(object["unit"], Value::Null);
        assert!(!text.contains('\n'));
        assert!(text.starts_with("{\"id\":7,\"ts\":"), "{text}");
    }
}
