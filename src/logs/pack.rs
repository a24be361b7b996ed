//! Older files, packed: zstd frames of a mebibyte each and a table of them, so that a reader can
//! begin in the middle. `zstd -d` unpacks such a file like any other.
//!
//! Refuses: formats of our own. It is the "seekable format" of the zstd project's contrib
//! directory: frames, then a skippable frame with the sizes of each.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

/// Bytes of the log in a frame: what a reader has to unpack at most to find one line.
const FRAME_BYTES: usize = 1024 * 1024;

/// zstd's own default: a third of the time of level 9 for nearly the size.
const LEVEL: i32 = 3;

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;

/// Number of frames (4), descriptor (1), magic (4).
const FOOTER_BYTES: u64 = 9;

/// Packed size (4), unpacked size (4).
const ENTRY_BYTES: u64 = 8;

/// Most frames that a table may tell of: 64 GiB of log.
const FRAMES_MAX: u64 = 65_536;

/// Packs all of `plain` into `packed`, which is empty. Says how many bytes went in.
///
/// # Errors
/// As read(2), write(2).
pub fn pack(plain: &mut File, packed: &mut File) -> io::Result<u64> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_checksum(true)?;
    let mut table = Vec::new();
    let mut buffer = vec![0; FRAME_BYTES];
    let mut total = 0;
    loop {
        let got = read_full(plain, &mut buffer)?;
        if got == 0 {
            break;
        }
        let frame = compressor.compress(&buffer[..got])?;
        packed.write_all(&frame)?;
        table.extend_from_slice(&size_of_frame(frame.len())?);
        table.extend_from_slice(&size_of_frame(got)?);
        total += u64::try_from(got).unwrap_or(0);
    }
    let frames = u32::try_from(table.len() / 8).map_err(|_| too_large())?;
    let length = u32::try_from(table.len() + 9).map_err(|_| too_large())?;
    packed.write_all(&SKIPPABLE_MAGIC.to_le_bytes())?;
    packed.write_all(&length.to_le_bytes())?;
    packed.write_all(&table)?;
    packed.write_all(&frames.to_le_bytes())?;
    packed.write_all(&[0])?;
    packed.write_all(&SEEKABLE_MAGIC.to_le_bytes())?;
    Ok(total)
}

fn size_of_frame(bytes: usize) -> io::Result<[u8; 4]> {
    u32::try_from(bytes).map(u32::to_le_bytes).map_err(|_| too_large())
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "a frame has more than 4 GiB")
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// A packed file that is read.
#[derive(Debug)]
pub struct Packed {
    file: File,
    frames: Vec<Frame>,
    /// The frame that was unpacked last, and its bytes.
    held: Option<(usize, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    /// In the log.
    offset: u64,
    bytes: usize,
    packed_at: u64,
    packed_bytes: usize,
}

impl Packed {
    /// Reads the table of frames.
    ///
    /// # Errors
    /// InvalidData when the file has no table that makes sense.
    pub fn open(file: File) -> io::Result<Packed> {
        let size = file.metadata()?.len();
        let mut footer = [0; 9];
        file.read_exact_at(&mut footer, size.checked_sub(FOOTER_BYTES).ok_or_else(no_table)?)?;
        let [a, b, c, d, descriptor, magic @ ..] = footer;
        let count = u64::from(u32::from_le_bytes([a, b, c, d]));
        if magic != SEEKABLE_MAGIC.to_le_bytes() || descriptor != 0 || count > FRAMES_MAX {
            return Err(no_table());
        }
        let table_bytes = count * ENTRY_BYTES;
        let table_at = size.checked_sub(FOOTER_BYTES + table_bytes).ok_or_else(no_table)?;
        let mut table = vec![0; usize::try_from(table_bytes).map_err(|_| no_table())?];
        file.read_exact_at(&mut table, table_at)?;
        let (mut offset, mut packed_at) = (0, 0);
        let mut frames = Vec::new();
        for entry in table.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *entry;
            let packed = u32::from_le_bytes([a, b, c, d]);
            let bytes = u32::from_le_bytes([e, f, g, h]);
            // Larger ones are not ours, and would be memory that nobody asked for.
            let usual = usize::try_from(bytes).ok().filter(|bytes| *bytes <= FRAME_BYTES);
            let packed_bytes = usize::try_from(packed).ok().filter(|packed| *packed <= 2 * FRAME_BYTES);
            let (Some(bytes), Some(packed_bytes)) = (usual, packed_bytes) else { return Err(no_table()) };
            frames.push(Frame { offset, bytes, packed_at, packed_bytes });
            offset += u64::try_from(bytes).unwrap_or(0);
            packed_at += u64::from(packed);
        }
        if packed_at > table_at {
            return Err(no_table());
        }
        Ok(Packed { file, frames, held: None })
    }

    /// Bytes of the log in it.
    pub fn len(&self) -> u64 {
        self.frames.last().map_or(0, |last| last.offset + u64::try_from(last.bytes).unwrap_or(0))
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads bytes of the log from `offset` on, like pread(2); at most to the end of a frame. 0 at the end.
    ///
    /// # Errors
    /// InvalidData for a frame that is damaged.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let number = self.frames.partition_point(|frame| frame.offset <= offset);
        let Some(number) = number.checked_sub(1) else { return Ok(0) };
        let Some(frame) = self.frames.get(number).copied() else { return Ok(0) };
        let within = usize::try_from(offset - frame.offset).unwrap_or(usize::MAX);
        if within >= frame.bytes {
            return Ok(0);
        }
        if self.held.as_ref().is_none_or(|(held, _)| *held != number) {
            let mut packed = vec![0; frame.packed_bytes];
            self.file.read_exact_at(&mut packed, frame.packed_at)?;
            let bytes = zstd::bulk::decompress(&packed, frame.bytes)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            self.held = Some((number, bytes));
        }
        let Some((_, bytes)) = &self.held else { return Ok(0) };
        let rest = bytes.get(within..).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

fn no_table() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the packed log has no table of frames")
}
