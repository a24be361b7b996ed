//! `Spool`: the files that one stream of one unit is kept in, and the one place that writes them.
//!
//! Refuses: a second thread that writes, and an offset of its own: the next byte goes where the
//! file ends, so after a kill -9 the file alone says what is stored. Not O_APPEND: splice(2)
//! answers EINVAL there.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::stat::{FileStat, fstat};
use tokio::sync::watch;

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::logs::Stream;
use crate::logs::files::{Access, Directory, Refusal, size};
use crate::logs::index::{Header, IndexWriter, Record, What, errno_of};
use crate::logs::segment::{self, Form, Segment};
use crate::unit::spec::WhenFull;

/// A file that is full is ended at the end of a line, if one comes before so many bytes more.
const LINE_PATIENCE_BYTES: u64 = 1024 * 1024;

/// How often it is looked, while bytes come, whether somebody renamed the file.
const NAME_LOOK_NS: u64 = 1_000_000_000;

/// Times may run backwards by so much, µs, before a new file is begun: within a file they never do.
const BACKWARDS_MAX_US: i64 = 1_000_000;

/// How much of a stream is kept (`[log]` of a unit file).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// A file is ended at this size.
    pub file_bytes_max: u64,
    /// The file that is written, and older ones; at least 1.
    pub files_max: u32,
    /// Older files go when their last byte is older than this, seconds; 0 = never.
    pub age_max_s: u64,
    /// Older files are packed (zstd).
    pub pack: Pack,
    /// On a full disk leave the bytes in the pipe, so that the writer blocks, or drop and count them.
    pub when_full: WhenFull,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    No,
    Yes,
}

/// Now: both clocks, read once a turn.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Monotonic,
    /// Wall time, µs since 1970.
    pub ts_us: i64,
}

/// The files of a stream. Share it by `Arc`: one for each stream, also when two runs of a unit
/// overlap in time. It holds fds only while it is written to.
#[derive(Debug)]
pub struct Spool {
    logs: PathBuf,
    unit: UnitName,
    stream: Stream,
    path: PathBuf,
    /// Position behind the last byte of the stream.
    stored: watch::Sender<u64>,
    /// Only the capture's thread takes this for longer than an instant.
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    keep: Keep,
    files: Option<Files>,
    /// Dropped bytes that the index does not tell of yet, and whose.
    unmarked: Option<(RunId, u64)>,
}

/// The file that is written, and its index.
#[derive(Debug)]
struct Files {
    directory: Directory,
    log: File,
    index: IndexWriter,
    /// How long the file must be, if nobody but us writes it.
    end: u64,
    looked_at: Monotonic,
}

/// Why a log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the log {}: {why}", path.display())]
pub struct SpoolError {
    pub path: PathBuf,
    pub why: Refusal,
}

/// What became of a stream's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    /// A file was ended: retention has to look.
    Rotated,
}

impl Spool {
    /// Opens `<logs>/<unit>/current.log` or `stderr.log` with its index; makes the unit's directory
    /// (mode 0750) and the files (0640) where they are missing; mends what a kill -9 left. `logs`
    /// itself must exist. Then closes them: they are opened again when bytes come.
    ///
    /// # Errors
    /// See `Refusal`. A link in place of the directory or the file is refused (ENOTDIR, ELOOP).
    pub fn open(
        logs: &Path,
        unit: &UnitName,
        stream: Stream,
        keep: Keep,
        now: Now,
    ) -> Result<Spool, SpoolError> {
        let path = logs.join(unit.as_str()).join(stream.file_name());
        let files =
            Files::open(logs, unit, stream, now).map_err(|why| SpoolError { path: path.clone(), why })?;
        let stored = watch::Sender::new(files.position());
        let writer = Mutex::new(Writer { keep, files: None, unmarked: None });
        Ok(Spool { logs: logs.to_path_buf(), unit: unit.clone(), stream, path, stored, writer })
    }

    /// The path of the file that is written, for messages and tests; it may have been renamed since.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn unit(&self) -> &UnitName {
        &self.unit
    }

    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// `<logs>/<unit>`.
    pub fn directory(&self) -> PathBuf {
        self.logs.join(self.unit.as_str())
    }

    /// Position behind the last byte: how much the stream ever had. Take it before a spawn: what
    /// the run writes stands at this position or behind it.
    pub fn stored_bytes(&self) -> u64 {
        *self.stored.borrow()
    }

    /// Changes whenever bytes were stored; the value is `stored_bytes`.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.stored.subscribe()
    }

    pub fn keep(&self) -> Keep {
        self.writer().keep
    }

    /// From now on so much is kept.
    pub fn set_keep(&self, keep: Keep) {
        self.writer().keep = keep;
    }

    /// Moves at most `bytes_max` bytes of `run` from the pipe to the end of the stream. 0: every
    /// writer is gone and the pipe is empty. Only the capture's thread may call this.
    ///
    /// # Errors
    /// EAGAIN: the pipe is empty. EINVAL: this file system cannot splice, use `append`. Else
    /// the files' trouble (ENOSPC, EIO, …); then nothing has left the pipe.
    pub(super) fn splice_from(
        &self,
        run: RunId,
        now: Now,
        pipe: BorrowedFd<'_>,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        self.store(run, now, |files| {
            let mut end = i64::try_from(files.end).map_err(|_| Errno::EFBIG)?;
            let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
            splice(pipe, None, &files.log, Some(&mut end), bytes_max, flags)
        })
    }

    /// Writes bytes of `run` to the end of the stream; says how many were taken.
    ///
    /// # Errors
    /// What pwrite(2) says.
    pub(super) fn append(&self, run: RunId, now: Now, bytes: &[u8]) -> Result<usize, Errno> {
        self.store(run, now, |files| files.log.write_at(bytes, files.end).map_err(|error| errno_of(&error)))
    }

    /// The record of the bytes is written before them: killed in between, it tells of nothing. But
    /// where bytes were dropped just before, it comes after them: on a full disk it would be one
    /// more for each try.
    fn store(
        &self,
        run: RunId,
        now: Now,
        write: impl FnOnce(&Files) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let mut writer = self.writer();
        let files = self.files(&mut writer, now)?;
        files.settle(self, now)?;
        let lost_here = files
            .index
            .last()
            .is_some_and(|last| matches!(last.what, What::Lost { .. }) && last.offset == files.end);
        if !lost_here {
            files.push(now, run, What::Chunk)?;
        }
        let moved = write(files)?;
        if moved > 0 {
            if lost_here {
                let _ = files.push(now, run, What::Chunk); // they count as those of the loss, then
            }
            files.end += u64::try_from(moved).unwrap_or(0);
            self.stored.send_replace(files.position());
        }
        Ok(moved)
    }

    /// Notes in the index what happened to a run at this place.
    ///
    /// # Errors
    /// The index cannot be written.
    pub(super) fn mark(&self, run: RunId, now: Now, what: What) -> Result<(), Errno> {
        let mut writer = self.writer();
        let files = self.files(&mut writer, now)?;
        files.settle(self, now)?;
        files.push(now, run, what)?;
        // Followers show it at once.
        self.stored.send_replace(files.position());
        Ok(())
    }

    /// Bytes of `run` were dropped: `mark_loss` will say so.
    pub(super) fn count_loss(&self, run: RunId, bytes: u64) {
        let mut writer = self.writer();
        let before = writer.unmarked.map_or(0, |(_, bytes)| bytes);
        writer.unmarked = Some((run, before.saturating_add(bytes)));
    }

    /// Notes in the index what was dropped since the last time, if anything was. The index has room
    /// for that on a full disk too.
    ///
    /// # Errors
    /// What pwrite(2) says; the loss stays unmarked then.
    pub(super) fn mark_loss(&self, now: Now) -> Result<(), Errno> {
        let mut writer = self.writer();
        let Some((run, bytes)) = writer.unmarked else { return Ok(()) };
        let files = self.files(&mut writer, now)?;
        files.push(now, run, What::Lost { bytes })?;
        self.stored.send_replace(files.position());
        writer.unmarked = None;
        Ok(())
    }

    /// Ends the file if it is full.
    ///
    /// # Errors
    /// What rename(2), open(2) say; the file is written on then.
    pub(super) fn rotate_if_due(&self, now: Now) -> Result<Change, Errno> {
        let mut writer = self.writer();
        let full = writer.keep.file_bytes_max;
        let Some(files) = writer.files.as_mut() else { return Ok(Change::None) };
        if files.end < full || (files.end < full + LINE_PATIENCE_BYTES && !files.ends_with_newline()) {
            return Ok(Change::None);
        }
        files.rotate(self.stream, now)?;
        Ok(Change::Rotated)
    }

    /// Closes the files until bytes come again.
    pub(super) fn close_files(&self) {
        self.writer().files = None;
    }

    pub(super) fn is_open(&self) -> bool {
        self.writer().files.is_some()
    }

    /// As on a file system that cannot splice: the tests have no other.
    #[cfg(test)]
    pub(super) fn open_in_append_mode(&self) {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let now = crate::logs::tests::now();
        let mut writer = self.writer();
        let files = self.files(&mut writer, now).expect("opens");
        fcntl(&files.log, FcntlArg::F_SETFL(OFlag::O_APPEND)).expect("append mode");
    }

    fn files<'a>(&self, writer: &'a mut Writer, now: Now) -> Result<&'a mut Files, Errno> {
        match &mut writer.files {
            Some(files) => Ok(files),
            closed @ None => {
                let opened = Files::open(&self.logs, &self.unit, self.stream, now);
                let files = opened.map_err(|refusal| refusal.errno())?;
                // Somebody may have cut it while it was closed; a position never goes back.
                Ok(closed.insert(files.at_least(self.stored_bytes(), self.stream, now)?))
            }
        }
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn open(logs: &Path, unit: &UnitName, stream: Stream, now: Now) -> Result<Files, Refusal> {
        let directory = Directory::make(logs, unit)?;
        let (log, stat) = directory.file(stream.file_name(), Access::Make)?;
        let (index, _) = directory.file(stream.index_name(), Access::Make)?;
        let end = size(&stat);
        let looked_at = now.at;
        let index = match IndexWriter::resume(index)? {
            Some(index) if belongs(&directory, &index, stream)? => {
                // The file was cut while nobody looked: what the index says is not true of it.
                if index.last().is_some_and(|last| last.offset > end) {
                    return Files::begin(directory, log, stream, now, cut_at(&index));
                }
                index
            }
            // Ended by a rotation that a kill -9 cut short: the index is that of the older file.
            Some(index) => {
                let Header { sequence, .. } = index.header();
                directory.rename(stream.index_name(), &segment::index_name(stream, sequence))?;
                return Files::begin(directory, log, stream, now, 0);
            }
            None => return Files::begin(directory, log, stream, now, 0),
        };
        Ok(Files { directory, log, index, end, looked_at })
    }

    /// Begins an index for `log` as it is. The stream has at least `base` bytes before it.
    fn begin(directory: Directory, log: File, stream: Stream, now: Now, base: u64) -> Result<Files, Refusal> {
        let older = segment::segments(&directory, stream)?;
        let mut base = base;
        let mut sequence = 1;
        for found in older.iter().rev() {
            sequence = sequence.max(found.sequence + 1);
            if let Some((_, end)) = segment::extent(&directory, found)? {
                base = base.max(end);
                break;
            }
        }
        let stat = fstat(&log)?;
        let end = size(&stat);
        if let Some(index) = IndexWriter::resume(directory.file(stream.index_name(), Access::Make)?.0)? {
            sequence = sequence.max(index.header().sequence + 1);
        }
        // A new file: whoever reads the old one must not find another base in it.
        directory.remove(stream.index_name())?;
        let (file, _) = directory.file(stream.index_name(), Access::Make)?;
        let created_us = if end > 0 { modified_us(&stat) } else { now.ts_us };
        let mut index = IndexWriter::create(file, Header { sequence, base, created_us, stream })?;
        if end > 0 {
            // Of a build without an index, or whose index was removed.
            index.push(Record { offset: 0, ts_us: created_us, run: RunId(0), what: What::Chunk })?;
        }
        Ok(Files { directory, log, index, end, looked_at: now.at })
    }

    fn position(&self) -> u64 {
        self.index.header().base.saturating_add(self.end)
    }

    fn at_least(self, position: u64, stream: Stream, now: Now) -> Result<Files, Errno> {
        if self.position() >= position {
            return Ok(self);
        }
        let Files { directory, log, .. } = self;
        Files::begin(directory, log, stream, now, position).map_err(|refusal| refusal.errno())
    }

    /// Looks whether the file is still ours before it is written: removed, renamed or cut from
    /// outside, a new one is begun; and when the clock was set back.
    fn settle(&mut self, spool: &Spool, now: Now) -> Result<(), Errno> {
        let stat = fstat(&self.log)?;
        let found = size(&stat);
        let back = self.index.last().is_some_and(|last| last.ts_us - now.ts_us > BACKWARDS_MAX_US);
        if back && found == self.end && self.end > 0 && stat.st_nlink > 0 {
            return self.rotate(spool.stream, now);
        }
        let same = stat.st_nlink > 0 && found == self.end && !back && self.is_there(spool, &stat, now);
        if same {
            return Ok(());
        }
        if stat.st_nlink > 0 && found > self.end && !back {
            // Somebody added to it. It is kept; ours goes behind it.
            self.end = found;
            return Ok(());
        }
        let base = self.position();
        let directory = Directory::make(&spool.logs, &spool.unit)?;
        let opened = directory.file(spool.stream.file_name(), Access::Make);
        let (log, _) = opened.map_err(|refusal| refusal.errno())?;
        *self = Files::begin(directory, log, spool.stream, now, base).map_err(|refusal| refusal.errno())?;
        Ok(())
    }

    /// Whether the file still has its name; looked at once a second.
    fn is_there(&mut self, spool: &Spool, ours: &FileStat, now: Now) -> bool {
        if now.at.as_ns().saturating_sub(self.looked_at.as_ns()) < NAME_LOOK_NS {
            return true;
        }
        self.looked_at = now.at;
        let there = self.directory.stat(spool.stream.file_name());
        there.is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino))
    }

    fn push(&mut self, now: Now, run: RunId, what: What) -> Result<(), Errno> {
        let ts_us = self.index.last().map_or(now.ts_us, |last| last.ts_us.max(now.ts_us));
        self.index.push(Record { offset: self.end, ts_us, run, what })
    }

    fn ends_with_newline(&self) -> bool {
        let mut last = [0];
        let at = self.end.saturating_sub(1);
        matches!(self.log.read_at(&mut last, at), Ok(1)) && last == *b"\n"
    }

    /// Ends the file and begins the next one. Killed at any point, `Files::open` finds its way: the
    /// log is renamed first, and an index whose log has gone is that of the older file.
    fn rotate(&mut self, stream: Stream, now: Now) -> Result<(), Errno> {
        let rotated = self.try_rotate(stream, now);
        if rotated.is_err() {
            // Half done, perhaps: the next bytes look at once whether the file has its name.
            self.looked_at = Monotonic::ZERO;
        }
        rotated.map_err(|refusal| refusal.errno())
    }

    fn try_rotate(&mut self, stream: Stream, now: Now) -> Result<(), Refusal> {
        let run = self.index.last().map_or(RunId(0), |last| last.run);
        self.push(now, run, What::End)?;
        let Header { sequence, .. } = self.index.header();
        self.directory.rename(stream.file_name(), &segment::log_name(stream, sequence))?;
        self.directory.rename(stream.index_name(), &segment::index_name(stream, sequence))?;
        let base = self.position();
        let sequence = sequence + 1;
        let (log, _) = self.directory.file(stream.file_name(), Access::Make)?;
        let (index, _) = self.directory.file(stream.index_name(), Access::Make)?;
        let header = Header { sequence, base, created_us: now.ts_us, stream };
        self.index = IndexWriter::create(index, header)?;
        self.log = log;
        self.end = 0;
        self.looked_at = now.at;
        Ok(())
    }
}

/// Whether the index is that of the file that is written: it is not when there is an older file
/// with its number.
fn belongs(directory: &Directory, index: &IndexWriter, stream: Stream) -> Result<bool, Errno> {
    let Header { sequence, .. } = index.header();
    let names = [Form::Plain, Form::Packed].map(|form| Segment { sequence, stream, form }.log_name());
    for name in names {
        if segment::is_file(directory, &name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The position that the stream had reached when its file was cut.
fn cut_at(index: &IndexWriter) -> u64 {
    index.header().base.saturating_add(index.last().map_or(0, |last| last.offset))
}

fn modified_us(stat: &FileStat) -> i64 {
    stat.st_mtime.saturating_mul(1_000_000).saturating_add(stat.st_mtime_nsec / 1_000)
}
