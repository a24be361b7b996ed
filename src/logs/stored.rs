//! `Stored`: the files of a stream by position, whichever they are by now.
//!
//! Refuses: holding files back from retention, and waiting. What is removed while it is read is
//! read to its end; what was removed before is told as gone by `scan`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};

use crate::logs::Stream;
use crate::logs::files::{Access, Directory, Refusal, size};
use crate::logs::index::{Header, Index, What};
use crate::logs::pack::Packed;
use crate::logs::segment::{self, Form, Segment, segments};

/// Times that a reader looks again when it met the writer beginning a new file.
const LOOKS_MAX: usize = 100;

/// The names of a stream's files, as they were when somebody looked last.
#[derive(Debug)]
pub struct Stored {
    directory: PathBuf,
    stream: Stream,
    spans: Vec<Span>,
}

/// A file of the stream, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub sequence: u64,
    /// Position of its first byte.
    pub from: u64,
    /// Position behind its last byte; None: it is written now.
    pub to: Option<u64>,
    /// When its first and its last record were written, µs since 1970.
    pub first_us: i64,
    pub last_us: i64,
    segment: Option<Segment>,
}

/// A file of the stream, open.
#[derive(Debug)]
pub struct Part {
    pub sequence: u64,
    /// Position of its first byte.
    pub base: u64,
    /// None: a build that kept no index wrote it, or somebody removed or damaged it.
    index: Option<(File, Header)>,
    body: Body,
    age: Age,
    /// When it was changed last, µs since 1970: the time of a file without an index.
    pub modified_us: i64,
}

/// What a file was when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// Ended: nothing comes any more.
    Older,
    /// The one that is written.
    Current,
}

#[derive(Debug)]
enum Body {
    Plain(File),
    Packed(Packed),
}

impl Stored {
    /// `directory` is `<logs>/<unit>`; it need not be there.
    pub fn new(directory: &Path, stream: Stream) -> Stored {
        Stored { directory: directory.to_path_buf(), stream, spans: Vec::new() }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The files as `look` found them last, oldest first.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Looks which files there are.
    ///
    /// # Errors
    /// As getdents(2), open(2); a link in place of a file is ELOOP.
    pub fn look(&mut self) -> io::Result<()> {
        self.spans.clear();
        let Some(directory) = self.open_directory()? else { return Ok(()) };
        for _ in 0..LOOKS_MAX {
            let older = segments(&directory, self.stream)?;
            let mut spans: Vec<Span> = Vec::with_capacity(older.len() + 1);
            for segment in &older {
                let expected = spans.last().and_then(|span| span.to).unwrap_or(0);
                spans.extend(span_of(&directory, segment, expected)?);
            }
            if let Some(part) = self.open_current(&directory, &spans)? {
                spans.push(part.as_current()?);
            }
            // A file that was ended between the two looks would be missing.
            let newest = |segments: &[Segment]| segments.last().map(|segment| segment.sequence);
            if newest(&older) == newest(&segments(&directory, self.stream)?) {
                self.spans = spans;
                break;
            }
        }
        Ok(())
    }

    /// Opens the file that a span names. None: it was removed meanwhile, or is another one now.
    ///
    /// # Errors
    /// As open(2); InvalidData for a packed file that is damaged.
    pub fn part(&self, span: &Span) -> io::Result<Option<Part>> {
        let Some(directory) = self.open_directory()? else { return Ok(None) };
        match &span.segment {
            None => {
                let older = self.spans.partition_point(|span| span.segment.is_some());
                let part = self.open_current(&directory, &self.spans[..older])?;
                Ok(part.filter(|part| (part.sequence, part.base) == (span.sequence, span.from)))
            }
            Some(segment) => open_segment(&directory, segment, span.from),
        }
    }

    /// Position behind the last byte that is stored now, by the spans of the last look.
    ///
    /// # Errors
    /// As `part`.
    pub fn end(&self) -> io::Result<u64> {
        let Some(last) = self.spans.last() else { return Ok(0) };
        match (last.to, self.part(last)?) {
            (Some(to), _) => Ok(to),
            (None, Some(part)) => Ok(part.base + part.len()?),
            (None, None) => Ok(last.from),
        }
    }

    /// The bytes between two positions that are there, by the spans of the last look; it ends early
    /// where some are not.
    ///
    /// # Errors
    /// As `part`, and pread(2).
    pub fn read_range(&self, from: u64, to: u64, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0).min(64 * 1024)];
        let mut at = from;
        for span in &self.spans {
            if at >= to || span.from > at {
                break;
            }
            if span.to.is_some_and(|end| end <= at) {
                continue;
            }
            let Some(mut part) = self.part(span)? else { break };
            while at < to {
                let want = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
                let got = part.read_at(at, &mut buffer[..want])?;
                if got == 0 {
                    break;
                }
                each(&buffer[..got]);
                at += as_u64(got);
            }
        }
        Ok(())
    }

    /// Whether bytes may still come in this file: it was not ended, and has its name.
    ///
    /// # Errors
    /// As fstat(2), pread(2).
    pub fn is_written(&self, part: &Part) -> io::Result<bool> {
        let Body::Plain(file) = &part.body else { return Ok(false) };
        if part.age == Age::Older || fstat(file)?.st_nlink == 0 {
            return Ok(false);
        }
        let Some((index, header)) = &part.index else {
            // As long as nobody began an index for it.
            let Some(directory) = self.open_directory()? else { return Ok(false) };
            return Ok(stat_of(&directory, self.stream.index_name())?.is_none());
        };
        if fstat(index)?.st_nlink == 0 {
            return Ok(false); // the file was cut, and has an index of another base now
        }
        let index = Index::known(index, *header)?;
        let last = index.count().checked_sub(1).map(|last| index.record(last)).transpose()?.flatten();
        Ok(last.is_none_or(|last| last.what != What::End))
    }

    fn open_directory(&self) -> io::Result<Option<Directory>> {
        match Directory::open(&self.directory) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The file that is written, with its index. The writer may begin a new one between our two
    /// opens; seen by the index's name, which is then another file's.
    fn open_current(&self, directory: &Directory, older: &[Span]) -> io::Result<Option<Part>> {
        for look in 0..LOOKS_MAX {
            let index = missing_is_none(directory.file(self.stream.index_name(), Access::Read))?;
            let log = missing_is_none(directory.file(self.stream.file_name(), Access::Read))?;
            let Some((log, stat)) = log else {
                match index {
                    None => return Ok(None),
                    // Being ended just now.
                    Some(_) => {
                        std::thread::yield_now();
                        continue;
                    }
                }
            };
            if let Some((index, seen)) = index {
                let there = stat_of(directory, self.stream.index_name())?;
                let same =
                    there.is_some_and(|there| (there.st_dev, there.st_ino) == (seen.st_dev, seen.st_ino));
                if let (true, Some(index_now)) = (same, Index::of(&index)?) {
                    let header = index_now.header;
                    return Ok(Some(Part {
                        sequence: header.sequence,
                        base: header.base,
                        index: Some((index, header)),
                        body: Body::Plain(log),
                        age: Age::Current,
                        modified_us: modified_us(&stat),
                    }));
                }
            }
            // Without an index that can be read, for longer than it takes to begin one: its bytes
            // stand behind those of the last older file, as the writer will have it.
            if look + 1 == LOOKS_MAX || older.is_empty() {
                let last = older.last();
                return Ok(Some(Part {
                    sequence: last.map_or(0, |last| last.sequence + 1),
                    base: last.and_then(|last| last.to).unwrap_or(0),
                    index: None,
                    body: Body::Plain(log),
                    age: Age::Current,
                    modified_us: modified_us(&stat),
                }));
            }
            std::thread::yield_now();
        }
        Ok(None)
    }
}

impl Part {
    /// Reads bytes from this position of the stream on. 0: not in this file, or not yet.
    ///
    /// # Errors
    /// As pread(2); InvalidData for a packed frame that is damaged.
    pub fn read_at(&mut self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(offset) = position.checked_sub(self.base) else { return Ok(0) };
        loop {
            let got = match &mut self.body {
                Body::Plain(file) => file.read_at(buffer, offset),
                Body::Packed(packed) => packed.read_at(buffer, offset),
            };
            match got {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Bytes in it now.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn len(&self) -> io::Result<u64> {
        match &self.body {
            Body::Plain(file) => Ok(file.metadata()?.len()),
            Body::Packed(packed) => Ok(packed.len()),
        }
    }

    /// # Errors
    /// As `len`.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Whether another index was begun for the file, because it was cut from outside: its bytes
    /// have other positions now.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn is_replaced(&self) -> io::Result<bool> {
        let (Body::Plain(file), Some((index, _))) = (&self.body, &self.index) else { return Ok(false) };
        Ok(fstat(index)?.st_nlink == 0 && fstat(file)?.st_nlink > 0)
    }

    /// Its index as it is now.
    ///
    /// # Errors
    /// As pread(2).
    pub fn index(&self) -> io::Result<Option<Index<'_>>> {
        match &self.index {
            Some((file, header)) => Ok(Some(Index::known(file, *header)?)),
            None => Ok(None),
        }
    }

    fn as_current(&self) -> io::Result<Span> {
        let (first_us, last_us) = match self.index()? {
            Some(index) => times(&index)?,
            None => (self.modified_us, self.modified_us),
        };
        Ok(Span { sequence: self.sequence, from: self.base, to: None, first_us, last_us, segment: None })
    }
}

/// Where an older file stands. `expected`: where the one in front ends, for one without an index.
fn span_of(directory: &Directory, segment: &Segment, expected: u64) -> io::Result<Option<Span>> {
    let index = missing_is_none(directory.file(&segment.index_name(), Access::Read))?;
    let index = match &index {
        Some((file, _)) => Index::of(file)?,
        None => None,
    };
    let (from, ended, times) = match &index {
        Some(index) => (index.header.base, ended_at(index)?, Some(times(index)?)),
        None => (expected, None, None),
    };
    let length = match (segment.form, ended) {
        (_, Some(offset)) => Some(offset),
        (Form::Plain, None) => {
            missing_is_none(directory.file(&segment.log_name(), Access::Read))?.map(|(_, stat)| size(&stat))
        }
        (Form::Packed, None) => match missing_is_none(segment::open(directory, segment))? {
            Some(file) => match Packed::open(file) {
                Ok(packed) => Some(packed.len()),
                Err(error) if is_damage(&error) => None,
                Err(error) => return Err(error),
            },
            None => None,
        },
    };
    let Some(length) = length else { return Ok(None) };
    let (first_us, last_us) = match times {
        Some(times) => times,
        None => {
            let stat = stat_of(directory, &segment.log_name())?;
            stat.map(|stat| modified_us(&stat)).map_or((0, 0), |us| (us, us))
        }
    };
    let to = Some(from.saturating_add(length));
    Ok(Some(Span { sequence: segment.sequence, from, to, first_us, last_us, segment: Some(segment.clone()) }))
}

/// The offset of the `End`, which is the last record of a file that was ended in order.
fn ended_at(index: &Index<'_>) -> Result<Option<u64>, Errno> {
    let last = index.count().checked_sub(1).map(|last| index.record(last)).transpose()?.flatten();
    Ok(last.filter(|last| last.what == What::End).map(|last| last.offset))
}

/// Of the first record and of the last one.
fn times(index: &Index<'_>) -> Result<(i64, i64), Errno> {
    let created_us = index.header.created_us;
    let first = index.record(0)?.map_or(created_us, |first| first.ts_us);
    let last = index.count().checked_sub(1).map(|last| index.record(last)).transpose()?.flatten();
    Ok((first, last.map_or(created_us, |last| last.ts_us)))
}

fn open_segment(directory: &Directory, segment: &Segment, base: u64) -> io::Result<Option<Part>> {
    let index = missing_is_none(directory.file(&segment.index_name(), Access::Read))?;
    let index = match index {
        Some((file, _)) => Index::of(&file)?.map(|index| index.header).map(|header| (file, header)),
        None => None,
    };
    match missing_is_none(directory.file(&segment.log_name(), Access::Read))? {
        Some((log, stat)) => {
            let modified_us = modified_us(&stat);
            let body = match segment.form {
                Form::Plain => Body::Plain(log),
                Form::Packed => Body::Packed(Packed::open(log)?),
            };
            Ok(Some(Part { sequence: segment.sequence, base, index, body, age: Age::Older, modified_us }))
        }
        // Packed meanwhile, or removed.
        None if segment.form == Form::Plain => {
            let packed = Segment { form: Form::Packed, ..segment.clone() };
            open_segment(directory, &packed, base)
        }
        None => Ok(None),
    }
}

/// What the file's content says about itself, not what the kernel says about the moment.
pub(super) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn modified_us(stat: &FileStat) -> i64 {
    stat.st_mtime.saturating_mul(1_000_000).saturating_add(stat.st_mtime_nsec / 1_000)
}

/// What stands under this name. None: nothing; any other errno is an error, never an absence.
fn stat_of(directory: &Directory, name: &str) -> Result<Option<FileStat>, Errno> {
    match directory.stat(name) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn missing_is_none<T>(opened: Result<T, Refusal>) -> io::Result<Option<T>> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(Refusal::Os(Errno::ENOENT)) => Ok(None),
        Err(refusal) => Err(to_io(refusal)),
    }
}

fn to_io(refusal: Refusal) -> io::Error {
    match refusal {
        Refusal::Os(errno) => errno.into(),
        Refusal::NotRegular | Refusal::Linked(_) => {
            io::Error::new(io::ErrorKind::InvalidInput, refusal.to_string())
        }
    }
}

pub(super) fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
