//! `Stored`: the bytes of a stream by position, whichever file they are in by now.
//!
//! Refuses: holding files back from retention, and waiting. What is removed while it is read is
//! read to its end; what was removed before is told as gone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::fstat;

use crate::logs::Stream;
use crate::logs::files::{Access, Directory, Refusal};
use crate::logs::index::{Index, What};
use crate::logs::pack::Packed;
use crate::logs::segment::{self, Form, Segment, extent, segments};

/// Times that a reader looks again when it met the writer beginning a new file.
const LOOKS_MAX: usize = 100;

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// So many bytes; at least 1.
    Bytes(usize),
    /// The bytes from there up to this position were removed by retention, or from outside.
    Gone { to: u64 },
    /// Nothing stands there yet.
    End,
}

/// A reader of a stream. It holds the file that it read last open.
#[derive(Debug)]
pub struct Stored {
    directory: PathBuf,
    stream: Stream,
    open: Option<Part>,
}

/// A file of the stream, open.
#[derive(Debug)]
pub struct Part {
    /// Position of its first byte.
    pub base: u64,
    /// None for a file of a build that kept no index.
    pub index: Option<File>,
    body: Body,
    age: Age,
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

/// A file of the stream by name: positions of its first byte and behind its last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub from: u64,
    /// None: it is written now.
    pub to: Option<u64>,
    segment: Option<Segment>,
}

impl Stored {
    /// `directory` is `<logs>/<unit>`; it need not be there.
    pub fn new(directory: &Path, stream: Stream) -> Stored {
        Stored { directory: directory.to_path_buf(), stream, open: None }
    }

    /// The files, oldest first. Those without an index are told only when they are the one that is written.
    ///
    /// # Errors
    /// As getdents(2), open(2); a link in place of a file is ELOOP.
    pub fn spans(&self) -> io::Result<Vec<Span>> {
        let Some(directory) = self.directory()? else { return Ok(Vec::new()) };
        let mut spans = Vec::new();
        for segment in segments(&directory, self.stream)? {
            match extent(&directory, &segment) {
                Ok(Some((from, to))) => spans.push(Span { from, to: Some(to), segment: Some(segment) }),
                // Removed meanwhile, or without an index.
                Ok(None) | Err(Refusal::Os(Errno::ENOENT)) => {}
                Err(refusal) => return Err(to_io(refusal)),
            }
        }
        if let Some(part) = self.open_current(&directory)? {
            spans.push(Span { from: part.base, to: None, segment: None });
        }
        Ok(spans)
    }

    /// Opens the file that a span names. None: it was removed meanwhile.
    ///
    /// # Errors
    /// As open(2); InvalidData for a packed file that is damaged.
    pub fn part(&self, span: &Span) -> io::Result<Option<Part>> {
        let Some(directory) = self.directory()? else { return Ok(None) };
        match &span.segment {
            None => self.open_current(&directory),
            Some(segment) => open_segment(&directory, segment, span.from),
        }
    }

    /// Reads bytes from `position` on. May bring fewer than there are: not beyond the end of a file.
    ///
    /// # Errors
    /// As `part`, and pread(2).
    pub fn read_at(&mut self, position: u64, buffer: &mut [u8]) -> io::Result<Got> {
        for _ in 0..LOOKS_MAX {
            if let Some(part) = self.open.as_mut().filter(|part| part.base <= position) {
                let got = part.read_at(position, buffer)?;
                if got > 0 && part.is_sound()? {
                    return Ok(Got::Bytes(got));
                }
                if got == 0 && part.is_written()? {
                    // Nothing came between these two looks, or it is there now.
                    let got = part.read_at(position, buffer)?;
                    return Ok(if got > 0 { Got::Bytes(got) } else { Got::End });
                }
            }
            match self.find(position)? {
                Found::Here => {}
                Found::Gone { to } => return Ok(Got::Gone { to }),
                Found::Nowhere => return Ok(Got::End),
            }
        }
        Ok(Got::End)
    }

    /// Opens the file that holds `position`.
    fn find(&mut self, position: u64) -> io::Result<Found> {
        let spans = self.spans()?;
        let behind = |span: &Span| span.to.is_none_or(|to| to > position);
        let Some(span) = spans.iter().find(|span| behind(span)) else { return Ok(Found::Nowhere) };
        if span.from > position {
            return Ok(Found::Gone { to: span.from });
        }
        self.open = self.part(span)?;
        Ok(Found::Here)
    }

    fn directory(&self) -> io::Result<Option<Directory>> {
        match Directory::open(&self.directory) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The file that is written, with its index. The writer may begin a new one between our two
    /// opens; seen by the index's name, which is then another file's.
    fn open_current(&self, directory: &Directory) -> io::Result<Option<Part>> {
        for _ in 0..LOOKS_MAX {
            let index = missing_is_none(directory.file(self.stream.index_name(), Access::Read))?;
            let log = missing_is_none(directory.file(self.stream.file_name(), Access::Read))?;
            match (index, log) {
                (Some((index, seen)), Some((log, _))) => {
                    let there = directory.stat(self.stream.index_name());
                    let same =
                        there.is_ok_and(|there| (there.st_dev, there.st_ino) == (seen.st_dev, seen.st_ino));
                    let header = Index::of(&index)?.map(|index| index.header);
                    if let (true, Some(header)) = (same, header) {
                        return Ok(Some(Part {
                            base: header.base,
                            index: Some(index),
                            body: Body::Plain(log),
                            age: Age::Current,
                        }));
                    }
                }
                (None, Some((log, _))) if segments(directory, self.stream)?.is_empty() => {
                    return Ok(Some(Part {
                        base: 0,
                        index: None,
                        body: Body::Plain(log),
                        age: Age::Current,
                    }));
                }
                (None, None) => return Ok(None),
                (None | Some(_), _) => {}
            }
            std::thread::yield_now();
        }
        Ok(None)
    }
}

enum Found {
    Here,
    Gone { to: u64 },
    Nowhere,
}

impl Part {
    /// Reads bytes from this position of the stream on. 0: not in this file, or not yet.
    ///
    /// # Errors
    /// As pread(2); InvalidData for a packed frame that is damaged.
    pub fn read_at(&mut self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(offset) = position.checked_sub(self.base) else { return Ok(0) };
        match &mut self.body {
            Body::Plain(file) => file.read_at(buffer, offset),
            Body::Packed(packed) => packed.read_at(buffer, offset),
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

    /// Whether what was just read stands at its position: a file that was cut from outside has got an
    /// index of another base, and ours has no name any more.
    fn is_sound(&self) -> io::Result<bool> {
        match (&self.index, self.age) {
            (Some(index), Age::Current) => Ok(fstat(index)?.st_nlink > 0),
            (Some(_), Age::Older) | (None, _) => Ok(true),
        }
    }

    /// Whether bytes may still come: it was not ended, and has its name.
    fn is_written(&self) -> io::Result<bool> {
        let Body::Plain(file) = &self.body else { return Ok(false) };
        if self.age == Age::Older || !self.is_sound()? || fstat(file)?.st_nlink == 0 {
            return Ok(false);
        }
        let Some(index) = &self.index else { return Ok(true) };
        let Some(index) = Index::of(index)? else { return Ok(false) };
        let last = index.count().checked_sub(1).map(|last| index.record(last)).transpose()?.flatten();
        Ok(last.is_none_or(|last| last.what != What::End))
    }
}

fn open_segment(directory: &Directory, segment: &Segment, base: u64) -> io::Result<Option<Part>> {
    let index = missing_is_none(directory.file(&segment.index_name(), Access::Read))?.map(|(file, _)| file);
    match missing_is_none(segment::open(directory, segment))? {
        Some(log) => {
            let body = match segment.form {
                Form::Plain => Body::Plain(log),
                Form::Packed => Body::Packed(Packed::open(log)?),
            };
            Ok(Some(Part { base, index, body, age: Age::Older }))
        }
        // Packed meanwhile, or removed.
        None if segment.form == Form::Plain => {
            let packed = Segment { form: Form::Packed, ..segment.clone() };
            open_segment(directory, &packed, base)
        }
        None => Ok(None),
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
