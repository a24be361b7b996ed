//! The files that a stream consists of: the one that is written, and the older ones in order.
//!
//! Refuses: the sizes of files as a measure: what was packed is known by its index.

use std::fs::File;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, SFlag};

use crate::logs::Stream;
use crate::logs::files::{Access, Directory, Refusal, size};
use crate::logs::index::{Index, What};

/// How a file is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    Plain,
    /// Frames of zstd (RFC 8878), see `pack`.
    Packed,
}

/// An older file of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub sequence: u64,
    pub stream: Stream,
    pub form: Form,
}

impl Segment {
    pub fn log_name(&self) -> String {
        match self.form {
            Form::Plain => log_name(self.stream, self.sequence),
            Form::Packed => packed_name(self.stream, self.sequence),
        }
    }

    pub fn index_name(&self) -> String {
        index_name(self.stream, self.sequence)
    }
}

/// `stdout-00000001.log`.
pub fn log_name(stream: Stream, sequence: u64) -> String {
    format!("{}-{sequence:08}.log", stream.as_str())
}

/// `stdout-00000001.log.zst`.
pub fn packed_name(stream: Stream, sequence: u64) -> String {
    format!("{}.zst", log_name(stream, sequence))
}

/// `stdout-00000001.idx`.
pub fn index_name(stream: Stream, sequence: u64) -> String {
    format!("{}-{sequence:08}.idx", stream.as_str())
}

fn parse(name: &str, stream: Stream) -> Option<Segment> {
    let rest = name.strip_prefix(stream.as_str())?.strip_prefix('-')?;
    let (digits, form) = match rest.strip_suffix(".log.zst") {
        Some(digits) => (digits, Form::Packed),
        None => (rest.strip_suffix(".log")?, Form::Plain),
    };
    let well_formed = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    Some(Segment { sequence: digits.parse().ok().filter(|_| well_formed)?, stream, form })
}

/// The older files of a stream, oldest first. Of a file that is there twice, because packing
/// was cut short, the plain one counts. What has such a name and is no file does not.
///
/// # Errors
/// As getdents(2), stat(2).
pub fn segments(directory: &Directory, stream: Stream) -> Result<Vec<Segment>, Errno> {
    let names = directory.names()?;
    let mut found: Vec<Segment> = names.iter().filter_map(|name| parse(name, stream)).collect();
    let mut failed = Ok(());
    found.retain(|segment| {
        is_file(directory, &segment.log_name()).unwrap_or_else(|errno| {
            failed = Err(errno);
            false
        })
    });
    failed?;
    found.sort_by_key(|segment| (segment.sequence, segment.form));
    found.dedup_by_key(|segment| segment.sequence);
    Ok(found)
}

/// Whether a regular file has this name.
///
/// # Errors
/// As stat(2) but for ENOENT: a shortage must not look like a file that was removed.
pub fn is_file(directory: &Directory, name: &str) -> Result<bool, Errno> {
    let kind = |stat: FileStat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    match directory.stat(name) {
        Ok(stat) => Ok(kind(stat) == SFlag::S_IFREG),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Where an older file stands in its stream: positions of its first byte and behind its last.
/// None: it has no usable index.
///
/// # Errors
/// See `Refusal`.
pub fn extent(directory: &Directory, segment: &Segment) -> Result<Option<(u64, u64)>, Refusal> {
    let index = match directory.file(&segment.index_name(), Access::Read) {
        Ok((file, _)) => file,
        Err(Refusal::Os(Errno::ENOENT)) => return Ok(None),
        Err(refusal) => return Err(refusal),
    };
    let Some(index) = Index::of(&index)? else { return Ok(None) };
    let base = index.header.base;
    let length = match (segment.form, ended_at(&index)?) {
        (_, Some(offset)) => offset,
        (Form::Plain, None) => size(&directory.file(&segment.log_name(), Access::Read)?.1),
        (Form::Packed, None) => return Ok(None),
    };
    Ok(Some((base, base.saturating_add(length))))
}

/// The offset of the `End`, which is the last record of a file that was ended in order.
fn ended_at(index: &Index<'_>) -> Result<Option<u64>, Errno> {
    let last = index.count().checked_sub(1).map(|last| index.record(last)).transpose()?.flatten();
    Ok(last.filter(|last| last.what == What::End).map(|last| last.offset))
}

/// Opens an older file.
///
/// # Errors
/// See `Refusal`; ENOENT when retention was faster.
pub fn open(directory: &Directory, segment: &Segment) -> Result<File, Refusal> {
    directory.file(&segment.log_name(), Access::Read).map(|(file, _)| file)
}
