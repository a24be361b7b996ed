//! `system_resilience.log`: one JSON object a line, the committed history as a file that
//! `grep`, `jq` and a log shipper can read; rotated to `.1`, `.2`, … as logrotate does.
//!
//! Which event stands last is known from the lines themselves, of the file or of the one that was
//! rotated before it: so neither a kill between two renames nor another's logrotate (by rename or by
//! `copytruncate`) makes a line come twice, or never.
//!
//! Refuses: lines that are not committed, a line twice, and stopping anybody when the disk is
//! full: what could not be written is read from the store again (`scribe`).

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::base::{exit::RunId, name::UnitName, time::Monotonic};
use crate::store::row::{EventRow, Level, NewEvent};
use crate::sys::clock::{micros_of, rfc3339};

/// The file's name in the log directory.
pub const FILE_NAME: &str = "system_resilience.log";

/// How much of the end is read for the last id. A line is far shorter than this.
const TAIL_BYTES: u64 = 256 * 1024;

/// How much of a file's end is read to get its newest events back: ten thousand of them and more.
const NEWEST_BYTES: u64 = 16 << 20;

/// What is written in one go, at most and a line.
const WRITE_BYTES: usize = 1 << 20;

/// What other programs leave beside the log, and nobody can read lines from.
const PACKED: [&str; 4] = ["gz", "xz", "zst", "bz2"];

/// When the file is rotated, and how many of the old ones stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// A file that has reached it is rotated before the next line.
    pub max_bytes: u64,
    /// Rotated files; at least 1.
    pub max_files: u32,
}

/// The one writer of the file.
pub struct Journal {
    path: PathBuf,
    /// None: it could not be opened, or what stands at its end is not known.
    file: Option<File>,
    last_id: u64,
    rotation: Rotation,
}

impl Journal {
    /// Opens or makes `path`; a line torn by a crash is cut off. What cannot be opened now is tried
    /// again with each append.
    pub fn open(path: &Path, rotation: Rotation) -> Journal {
        let mut journal = Journal { path: path.to_path_buf(), file: None, last_id: 0, rotation };
        let _ = journal.reopen(); // said by the first append
        journal
    }

    /// The newest event that stands in the file or in those before it; 0 when nobody knows.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// Events up to this one are not to be written (any more).
    pub fn pass_over(&mut self, id: u64) {
        self.last_id = self.last_id.max(id);
    }

    pub fn rotate_by(&mut self, rotation: Rotation) {
        self.rotation = rotation;
    }

    /// Appends committed events, oldest first; those that stand there already are skipped.
    ///
    /// # Errors
    /// The file cannot be written now. What of it stands there says `last_id`.
    pub fn append(&mut self, rows: &[EventRow]) -> io::Result<()> {
        if rows.last().is_none_or(|row| row.id <= self.last_id) {
            return Ok(());
        }
        self.follow()?;
        let before = self.last_id;
        let rows = rows.iter().filter(|row| row.id > before);
        let mut len = self.len()?;
        let (mut text, mut last) = (Vec::new(), self.last_id);
        let mut first = Vec::new();
        for row in rows {
            first.clear();
            line_into(row, &mut first);
            let full = len + text.len() as u64 + first.len() as u64 > self.rotation.max_bytes;
            if full && len + text.len() as u64 > 0 {
                self.write(&mut text, last)?;
                self.rotate()?;
                len = 0;
            }
            text.extend_from_slice(&first);
            last = row.id;
            if text.len() >= WRITE_BYTES {
                len += text.len() as u64;
                self.write(&mut text, last)?;
            }
        }
        self.write(&mut text, last)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.as_ref().ok_or(io::ErrorKind::NotFound)?.metadata()?.len())
    }

    /// Writes whole lines, of which the last is that of `last`.
    fn write(&mut self, text: &mut Vec<u8>, last: u64) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let good_len = self.len()?;
        let Some(file) = self.file.as_mut() else { return Err(io::ErrorKind::NotFound.into()) };
        if let Err(error) = file.write_all(text) {
            // Half a line would spoil the next one. If even this fails, it is opened again, and cut.
            if file.set_len(good_len).is_err() {
                self.file = None;
            }
            return Err(error);
        }
        text.clear();
        self.last_id = last;
        Ok(())
    }

    /// `.1` → `.2` and so on up to the first free number, then the file → `.1`, then a new file.
    /// Killed in between, the next open finds the same lines, and the next rotation fills the hole.
    fn rotate(&mut self) -> io::Result<()> {
        let keep = self.rotation.max_files.max(1);
        let of = |number: u32| numbered(&self.path, number);
        let free = (1..=keep).find(|number| !of(*number).exists()).unwrap_or(keep);
        for number in (1..free).rev() {
            fs::rename(of(number), of(number + 1))?;
        }
        fs::rename(&self.path, of(1))?;
        self.file = None;
        self.file = Some(open_append(&self.path)?);
        for number in (keep + 1..).take_while(|number| of(*number).exists()) {
            let _ = fs::remove_file(of(number)); // fewer are kept than before
        }
        Ok(())
    }

    /// Somebody (logrotate) renamed or removed the file: go on in a new one.
    fn follow(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return self.reopen() };
        let ours = file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) if (there.ino(), there.dev()) == (ours.ino(), ours.dev()) => Ok(()),
            Ok(_) | Err(_) => {
                self.file = None;
                self.file = Some(open_append(&self.path)?);
                Ok(())
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut file = open_append(&self.path)?;
        let own = last_id_of(&mut file)?;
        let older = |path: &PathBuf| last_id_of(&mut File::open(path).ok()?).ok().filter(|id| *id > 0);
        let last = match own {
            0 => before(&self.path).iter().find_map(older).unwrap_or(0),
            id => id,
        };
        self.last_id = self.last_id.max(last);
        self.file = Some(file);
        Ok(())
    }
}

/// The newest `limit` events after `id` that stand in the file and those before it, oldest first. What
/// cannot be read has none.
pub fn newest(path: &Path, id: u64, limit: usize) -> Vec<EventRow> {
    let mut found: BTreeMap<u64, EventRow> = BTreeMap::new();
    for path in [path.to_path_buf()].into_iter().chain(before(path)) {
        let tail = File::open(path).and_then(|mut file| tail_of(&mut file, NEWEST_BYTES));
        let (tail, _) = tail.unwrap_or_default();
        let rows = tail.split(|byte| *byte == b'\n').rev().filter_map(event_of);
        let mut older = false;
        for row in rows {
            older |= row.id <= id;
            if row.id > id && found.len() < limit {
                found.entry(row.id).or_insert(row);
            }
        }
        if older || found.len() >= limit {
            break;
        }
    }
    found.into_values().collect()
}

pub(super) fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// What was rotated away, by us or by somebody else, the newest first.
fn before(path: &Path) -> Vec<PathBuf> {
    let Some((dir, name)) = path.parent().zip(path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let is_older = |entry: &fs::DirEntry| {
        let is_named =
            entry.file_name().to_str().is_some_and(|other| other != name && other.starts_with(name));
        let packed = entry.path().extension().is_some_and(|end| PACKED.iter().any(|packed| *packed == end));
        is_named && !packed
    };
    let stamped = |entry: fs::DirEntry| {
        let found = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(((found.mtime(), found.mtime_nsec()), entry.path()))
    };
    let mut files: Vec<_> = entries.filter(is_older).filter_map(stamped).collect();
    files.sort_by(|a, b| b.cmp(a));
    files.into_iter().map(|(_, path)| path).collect()
}

fn open_append(path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
            }
            open()
        }
        opened => opened,
    }
}

/// At most the last `bytes`, and where they begin.
fn tail_of(file: &mut File, bytes: u64) -> io::Result<(Vec<u8>, u64)> {
    let start = file.metadata()?.len().saturating_sub(bytes);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok((tail, start))
}

/// The id of the last whole line; 0 when there is none. Cuts a torn line off, where it may.
fn last_id_of(file: &mut File) -> io::Result<u64> {
    let (tail, start) = tail_of(file, TAIL_BYTES)?;
    let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() && (whole > 0 || start == 0) {
        let _ = file.set_len(start + whole as u64); // one that is only read has its own end
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

pub(super) fn id_of(text: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(text).ok()?.get("id")?.as_u64()
}

/// The keys that every line has, in this order (`line_into`); an event's own data cannot replace them.
const FIXED: [&str; 9] = ["id", "ts", "level", "event", "unit", "run", "cause", "message", "at_ns"];

/// Appends `,"key":value`. Into memory, where nothing fails.
macro_rules! put {
    ($text:ident, $key:literal, $value:expr) => {
        $text.extend_from_slice(concat!(",\"", $key, "\":").as_bytes());
        let _ = serde_json::to_writer(&mut *$text, $value);
    };
}

/// One line, with its newline.
pub(super) fn line_into(row: &EventRow, text: &mut Vec<u8>) {
    let event = &row.event;
    text.extend_from_slice(format!("{{\"id\":{}", row.id).as_bytes());
    put!(text, "ts", &rfc3339(event.ts_us));
    put!(text, "level", event.level.as_str());
    put!(text, "event", &event.event);
    put!(text, "unit", &event.unit.as_ref().map(|unit| unit.as_str()));
    put!(text, "run", &event.run.map(|run| run.0));
    put!(text, "cause", &event.cause);
    put!(text, "message", &event.message);
    put!(text, "at_ns", &event.at.as_ns());
    for (key, value) in event.data.iter().filter(|(key, _)| !FIXED.contains(&key.as_str())) {
        text.push(b',');
        let _ = serde_json::to_writer(&mut *text, key); // as above
        text.push(b':');
        let _ = serde_json::to_writer(&mut *text, value);
    }
    text.extend_from_slice(b"}\n");
}

/// The event of a line, as it was.
fn event_of(text: &[u8]) -> Option<EventRow> {
    let Ok(Value::Object(mut line)) = serde_json::from_slice::<Value>(text) else { return None };
    let mut words = |key: &str| match line.remove(key) {
        Some(Value::String(text)) => Some(text),
        Some(_) | None => None,
    };
    let (ts, level, event) = (words("ts")?, words("level")?, words("event")?);
    let (unit, cause, message) = (words("unit"), words("cause"), words("message")?);
    let mut number = |key: &str| line.remove(key).and_then(|value| value.as_u64());
    let (id, run, at_ns) = (number("id")?, number("run"), number("at_ns")?);
    let data: Map<String, Value> = line;
    let event = NewEvent {
        ts_us: micros_of(&ts)?,
        level: Level::parse(&level)?,
        event,
        unit: unit.and_then(|name| UnitName::parse(&name).ok()),
        run: run.map(RunId),
        cause,
        message,
        at: Monotonic::from_ns(at_ns),
        data,
    };
    Some(EventRow { id, event })
}
