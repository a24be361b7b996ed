//! The index beside a log file: which bytes came when and from which run, where a run began and
//! ended, what was lost.
//!
//! Refuses: text, and anything that a kill -9 or a full disk could leave half said: a record is
//! written before the bytes that it tells of, in one write, and what is torn is not valid.
//!
//! A header of 64 bytes, then records of 32, little endian:
//!
//! | bytes | header | bytes | record |
//! | --- | --- | --- | --- |
//! | 0–8 | `UPRTIDX1` | 0–8 | offset in the file |
//! | 8–16 | sequence of the file | 8–16 | microseconds since 1970 |
//! | 16–24 | bytes of the stream before this file | 16–24 | run |
//! | 24–32 | when it was begun, µs since 1970 | 24–25 | kind |
//! | 32–33 | stream (1 stdout, 2 stderr) | 25–26 | check |
//! | 60–64 | check | 26–32 | value |

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::base::exit::{Exit, RunId, SpawnStep};
use crate::base::signal::Signal;
use crate::logs::Stream;

const MAGIC: &[u8; 8] = b"UPRTIDX1";
const HEADER_BYTES: u64 = 64;
const RECORD_BYTES: u64 = 32;

/// Largest value of a record.
const VALUE_MAX: u64 = (1 << 48) - 1;

/// Chunks of one run that follow each other sooner than this share a record, µs. Finer times
/// than a millisecond would cost more index than they tell.
const RESOLUTION_US: i64 = 1_000;

/// Kept allocated behind the last record, so that a loss can be marked while the disk is full.
const RESERVE_BYTES: u64 = 4096;

/// Records read at once.
const PAGE_RECORDS: usize = 2048;

/// What stands at the head of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the file in its stream, from 1 on; never used twice.
    pub sequence: u64,
    /// Bytes that the stream had before this file: the position of its first byte.
    pub base: u64,
    pub created_us: i64,
    pub stream: Stream,
}

/// Something about the bytes from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// In this file. Never less than that of the record before.
    pub offset: u64,
    /// Wall time, microseconds since 1970. Never less than that of the record before.
    pub ts_us: i64,
    /// 0 where nobody knows.
    pub run: RunId,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// From here on the bytes are of this run and time, up to the next chunk.
    Chunk,
    /// The run was spawned.
    Started,
    /// The run ended; all that it had written stands before.
    Exited(Exit),
    /// So many bytes of this run were dropped here.
    Lost { bytes: u64 },
    /// The file was ended at this offset.
    End,
}

const CHUNK: u8 = 1;
const STARTED: u8 = 2;
const EXITED: u8 = 3;
const LOST: u8 = 4;
const END: u8 = 5;

impl Header {
    fn to_bytes(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.created_us.to_le_bytes());
        bytes[32] = match self.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        };
        let check = fnv(&bytes[..60]);
        bytes[60..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; 64]) -> Option<Header> {
        if &bytes[..8] != MAGIC || bytes[60..] != fnv(&bytes[..60]).to_le_bytes() {
            return None;
        }
        let stream = match bytes[32] {
            1 => Stream::Stdout,
            2 => Stream::Stderr,
            _ => return None,
        };
        let word = |at: usize| u64_at(bytes, at);
        Some(Header { sequence: word(8), base: word(16), created_us: word(24).cast_signed(), stream })
    }
}

impl Record {
    fn to_bytes(self) -> [u8; 32] {
        let (kind, value) = match self.what {
            What::Chunk => (CHUNK, 0),
            What::Started => (STARTED, 0),
            What::Exited(exit) => (EXITED, value_of(exit)),
            What::Lost { bytes } => (LOST, bytes.min(VALUE_MAX)),
            What::End => (END, 0),
        };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.ts_us.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.run.0.to_le_bytes());
        bytes[24] = kind;
        bytes[26..].copy_from_slice(&value.to_le_bytes()[..6]);
        bytes[25] = check_of(&bytes);
        bytes
    }

    fn from_bytes(bytes: &[u8; 32]) -> Option<Record> {
        let mut blank = *bytes;
        blank[25] = 0;
        if bytes[25] != check_of(&blank) {
            return None;
        }
        let mut value = [0; 8];
        value[..6].copy_from_slice(&bytes[26..]);
        let value = u64::from_le_bytes(value);
        let what = match bytes[24] {
            CHUNK => What::Chunk,
            STARTED => What::Started,
            EXITED => What::Exited(exit_of(value)),
            LOST => What::Lost { bytes: value },
            END => What::End,
            _ => return None,
        };
        let word = |at: usize| u64_at(bytes, at);
        Some(Record { offset: word(0), ts_us: word(8).cast_signed(), run: RunId(word(16)), what })
    }
}

/// Byte 0 says which, the rest what belongs to it.
fn value_of(exit: Exit) -> u64 {
    let parts: [u8; 6] = match exit {
        Exit::Unknown => [0, 0, 0, 0, 0, 0],
        Exit::Code(code) => [1, code, 0, 0, 0, 0],
        Exit::Signal { signal, core } => {
            [2, u8::try_from(signal.number()).unwrap_or(0), u8::from(core), 0, 0, 0]
        }
        Exit::NotExecuted { step, errno } => {
            let [a, b, c, d] = errno.to_le_bytes();
            [3, step as u8, a, b, c, d]
        }
    };
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&parts);
    u64::from_le_bytes(bytes)
}

fn exit_of(value: u64) -> Exit {
    let [kind, first, a, b, c, d, ..] = value.to_le_bytes();
    let exit = match kind {
        1 => Some(Exit::Code(first)),
        2 => Signal::from_number(i32::from(first)).map(|signal| Exit::Signal { signal, core: a == 1 }),
        3 => {
            let errno = i32::from_le_bytes([a, b, c, d]);
            SpawnStep::from_u8(first).map(|step| Exit::NotExecuted { step, errno })
        }
        _ => None,
    };
    exit.unwrap_or(Exit::Unknown)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// FNV-1a: against torn headers; no guard against malice.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// CRC-8 (polynomial 0x07): sees every flipped bit, and what is torn in 255 of 256 cases; a hole is
/// no record anyway, for it has no kind.
fn check_of(bytes: &[u8; 32]) -> u8 {
    bytes.iter().fold(0xff, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 == 0 { crc << 1 } else { (crc << 1) ^ 0x07 })
    })
}

/// An index that is being written.
#[derive(Debug)]
pub struct IndexWriter {
    file: File,
    header: Header,
    /// Where the next record goes.
    end: u64,
    /// Allocated up to here, as far as we could.
    reserved: u64,
    last: Option<Record>,
}

impl IndexWriter {
    /// Begins an index in `file`, whatever it held.
    ///
    /// # Errors
    /// As pwrite(2).
    pub fn create(file: File, header: Header) -> Result<IndexWriter, Errno> {
        file.set_len(0).map_err(|error| errno_of(&error))?;
        write_at(&file, &header.to_bytes(), 0)?;
        let mut index = IndexWriter { file, header, end: HEADER_BYTES, reserved: 0, last: None };
        index.reserve();
        Ok(index)
    }

    /// Goes on with an index. What is torn or not valid at its end is written over. None: it has
    /// no valid header.
    ///
    /// # Errors
    /// As pread(2).
    pub fn resume(file: File) -> Result<Option<IndexWriter>, Errno> {
        let reader = match Index::of(&file)? {
            Some(reader) => reader,
            None => return Ok(None),
        };
        let (header, count) = (reader.header, reader.count);
        let last = match count.checked_sub(1) {
            Some(last) => reader.record(last)?,
            None => None,
        };
        let end = HEADER_BYTES + count * RECORD_BYTES;
        let mut index = IndexWriter { file, header, end, reserved: end, last };
        index.reserve();
        Ok(Some(index))
    }

    pub fn header(&self) -> Header {
        self.header
    }

    pub fn last(&self) -> Option<Record> {
        self.last
    }

    /// Adds a record. What would say nothing new is left out: a chunk of the run that writes
    /// already, within a millisecond; a chunk that never got bytes is replaced, and losses at one
    /// place are summed up. `ts_us` must not be less than that of the last record.
    ///
    /// # Errors
    /// As pwrite(2): nothing was added then.
    pub fn push(&mut self, record: Record) -> Result<(), Errno> {
        let mut record = record;
        let mut at = self.end;
        if let Some(last) = self.last {
            match (last.what, record.what) {
                (What::Chunk, What::Chunk)
                    if last.run == record.run && record.ts_us - last.ts_us < RESOLUTION_US =>
                {
                    return Ok(());
                }
                (What::Chunk, What::Chunk) if last.offset == record.offset => at -= RECORD_BYTES,
                (What::Lost { bytes: before }, What::Lost { bytes }) if last.offset == record.offset => {
                    record.what = What::Lost { bytes: before.saturating_add(bytes) };
                    at -= RECORD_BYTES;
                }
                _ => {}
            }
        }
        write_at(&self.file, &record.to_bytes(), at)?;
        self.end = at + RECORD_BYTES;
        self.last = Some(record);
        self.reserve();
        Ok(())
    }

    /// Room for the next records, so that a full disk does not keep a loss from being marked.
    fn reserve(&mut self) {
        if self.end + RECORD_BYTES <= self.reserved {
            return;
        }
        let (from, length) = (i64::try_from(self.end), i64::try_from(RESERVE_BYTES));
        if let (Ok(from), Ok(length)) = (from, length) {
            // Refused (ENOSPC, a file system without it): tried again with the next record.
            if fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, length).is_ok() {
                self.reserved = self.end + RESERVE_BYTES;
            }
        }
    }
}

/// An index that is read. It may be written meanwhile: `refresh` sees what was added.
#[derive(Debug)]
pub struct Index<'a> {
    file: &'a File,
    pub header: Header,
    count: u64,
}

impl<'a> Index<'a> {
    /// None: the file has no valid header.
    ///
    /// # Errors
    /// As pread(2).
    pub fn of(file: &'a File) -> Result<Option<Index<'a>>, Errno> {
        let mut bytes = [0; 64];
        let got = read_at(file, &mut bytes, 0)?;
        let Some(header) = (got == bytes.len()).then(|| Header::from_bytes(&bytes)).flatten() else {
            return Ok(None);
        };
        let mut index = Index { file, header, count: 0 };
        index.refresh()?;
        Ok(Some(index))
    }

    /// The index behind this file, whose header was read before.
    ///
    /// # Errors
    /// As fstat(2), pread(2).
    pub fn known(file: &'a File, header: Header) -> Result<Index<'a>, Errno> {
        let mut index = Index { file, header, count: 0 };
        index.refresh()?;
        Ok(index)
    }

    /// Looks how many records there are up to the last valid one. What follows that may be torn or
    /// damaged: it does not count.
    ///
    /// # Errors
    /// As fstat(2), pread(2).
    pub fn refresh(&mut self) -> Result<(), Errno> {
        let size = self.file.metadata().map_err(|error| errno_of(&error))?.len();
        self.count = size.saturating_sub(HEADER_BYTES) / RECORD_BYTES;
        self.count = self.last_valid(self.count)?.map_or(0, |last| last + 1);
        Ok(())
    }

    /// Number of the last valid record in front of number `end`. Damaged ones are passed a page at
    /// a time, so that a long damage costs reads, not a read a record.
    fn last_valid(&self, end: u64) -> Result<Option<u64>, Errno> {
        match end.checked_sub(1) {
            None => return Ok(None),
            Some(last) if self.record(last)?.is_some() => return Ok(Some(last)),
            Some(_) => {}
        }
        let mut end = end;
        while end > 0 {
            let from = end.saturating_sub(Index::PAGE);
            let mut bytes = vec![0; usize::try_from(end - from).unwrap_or(0) * 32];
            let got = read_at(self.file, &mut bytes, HEADER_BYTES + from * RECORD_BYTES)?;
            let (records, _) = bytes[..got].as_chunks::<32>();
            if let Some(at) = records.iter().rposition(|record| Record::from_bytes(record).is_some()) {
                return Ok(Some(from + u64::try_from(at).unwrap_or(0)));
            }
            end = from;
        }
        Ok(None)
    }

    /// The last chunk in front of record number `end`, and its number.
    ///
    /// # Errors
    /// As pread(2).
    pub fn chunk_before(&self, end: u64) -> Result<Option<Record>, Errno> {
        let mut end = end.min(self.count);
        // Most often it is one of the few in front.
        let mut step = 8;
        while end > 0 {
            let from = end.saturating_sub(step);
            step = Index::PAGE;
            let page = self.numbered(from, end)?;
            if let Some((_, chunk)) = page.iter().rev().find(|(_, record)| record.what == What::Chunk) {
                return Ok(Some(*chunk));
            }
            end = from;
        }
        Ok(None)
    }

    /// Records with the numbers from `from` to before `end`, at most a page, each with its number;
    /// damaged ones are left out.
    ///
    /// # Errors
    /// As pread(2).
    pub fn numbered(&self, from: u64, end: u64) -> Result<Vec<(u64, Record)>, Errno> {
        let left = usize::try_from(end.min(self.count).saturating_sub(from)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(PAGE_RECORDS) * 32];
        let got = read_at(self.file, &mut bytes, HEADER_BYTES + from * RECORD_BYTES)?;
        let (records, _) = bytes[..got].as_chunks::<32>();
        let numbered = (from..).zip(records);
        Ok(numbered.filter_map(|(number, bytes)| Some((number, Record::from_bytes(bytes)?))).collect())
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The record with this number, from 0 on. None: damaged, or behind the end.
    ///
    /// # Errors
    /// As pread(2).
    pub fn record(&self, number: u64) -> Result<Option<Record>, Errno> {
        let mut bytes = [0; 32];
        let got = read_at(self.file, &mut bytes, HEADER_BYTES + number * RECORD_BYTES)?;
        Ok((got == bytes.len()).then(|| Record::from_bytes(&bytes)).flatten())
    }

    /// Records from this number on, at most a page of them; damaged ones are left out. Empty at the end.
    ///
    /// # Errors
    /// As pread(2).
    pub fn page(&self, from: u64) -> Result<Vec<Record>, Errno> {
        Ok(self.numbered(from, self.count)?.into_iter().map(|(_, record)| record).collect())
    }

    /// How many records a page may hold: `page(from + PAGE)` is the next one.
    pub const PAGE: u64 = PAGE_RECORDS as u64;

    /// Number of the first record that is not `before`, by bisection: `before` must be true for
    /// none behind one for which it is false. Damaged records count as the one in front of them.
    ///
    /// # Errors
    /// As pread(2).
    pub fn partition(&self, before: impl Fn(&Record) -> bool) -> Result<u64, Errno> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let at = self.last_valid(middle + 1)?.filter(|at| *at >= low);
            let found = at.map(|at| self.record(at)).transpose()?.flatten();
            match (at, found) {
                (Some(at), Some(record)) if !before(&record) => high = at,
                (_, _) => low = middle + 1,
            }
        }
        Ok(low)
    }
}

fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut got = 0;
    while got < bytes.len() {
        match file.read_at(&mut bytes[got..], offset + u64::try_from(got).unwrap_or(0)) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno_of(&error)),
        }
    }
    Ok(got)
}

fn write_at(file: &File, bytes: &[u8], offset: u64) -> Result<(), Errno> {
    file.write_all_at(bytes, offset).map_err(|error| errno_of(&error))
}

pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32))
}
