//! A file of checksummed lines: `1a2b3c4d {"…":…}`, eight hex digits of the CRC-32 of what follows the space.
//! The second copies of the store are such files.
//!
//! Refuses: changing a line that stands there. A file is appended to, or replaced as a whole by a
//! rename; a torn end or a flipped bit costs the lines that it hit, and no other.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Who may read it: as the database.
const MODE: u32 = 0o640;

/// Bytes before a line's JSON: the checksum and a space.
const HEAD: usize = 9;

/// Whether an append is on the disk before it returns, or only safe from our own death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    Disk,
    Kernel,
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Lines {
    /// Those whose checksum is right, in their order.
    pub records: Vec<Value>,
    /// Pieces that are no line.
    pub damaged: usize,
}

/// Reads the file; none when there is no such file.
///
/// # Errors
/// As read(2).
pub(crate) fn read(path: &Path) -> io::Result<Option<Lines>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut lines = Lines::default();
    for piece in bytes.split(|byte| *byte == b'\n').filter(|piece| !piece.is_empty()) {
        read_piece(piece, &mut lines);
    }
    Ok(Some(lines))
}

/// A line; or, where a newline was flipped away, two that stand together.
fn read_piece(piece: &[u8], lines: &mut Lines) {
    if let Some(record) = record_of(piece) {
        return lines.records.push(record);
    }
    let begins = (HEAD..piece.len().saturating_sub(HEAD))
        .filter(|at| piece[at + HEAD - 1] == b' ' && piece[at + HEAD] == b'{');
    let second = begins.filter_map(|at| Some((at, record_of(&piece[at..])?))).next();
    let Some((at, second)) = second else { return lines.damaged += 1 };
    match record_of(&piece[..at - 1]) {
        Some(first) => lines.records.push(first),
        None => lines.damaged += 1,
    }
    lines.records.push(second);
}

fn record_of(line: &[u8]) -> Option<Value> {
    let (head, json) = line.split_at_checked(HEAD)?;
    let sum = std::str::from_utf8(&head[..HEAD - 1]).ok()?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    (head[HEAD - 1] == b' ' && sum == crc32(json)).then(|| serde_json::from_slice(json).ok()).flatten()
}

fn text_of(records: &[Value]) -> Vec<u8> {
    let mut text = Vec::new();
    for record in records {
        let json = record.to_string();
        text.extend_from_slice(format!("{:08x} {json}\n", crc32(json.as_bytes())).as_bytes());
    }
    text
}

/// The one writer of the file.
#[derive(Debug)]
pub(crate) struct Appender {
    path: PathBuf,
    /// None: nobody knows what stands there; `replace` it.
    file: Option<File>,
    len: u64,
}

impl Appender {
    /// Nothing is opened yet: the first word must be `replace` or `resume`.
    pub fn new(path: PathBuf) -> Appender {
        Appender { path, file: None, len: 0 }
    }

    /// Goes on after what stands there. A torn end is closed with a newline, so that it costs
    /// no line after it.
    ///
    /// # Errors
    /// It is not there, or as open(2).
    pub fn resume(&mut self) -> io::Result<()> {
        self.file = None;
        let mut file = OpenOptions::new().read(true).append(true).open(&self.path)?;
        self.len = file.metadata()?.len();
        if self.len > 0 && !ends_a_line(&file, self.len)? {
            file.write_all(b"\n")?;
            self.len += 1;
        }
        self.file = Some(file);
        Ok(())
    }

    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Nobody knows what stands there.
    pub fn forget(&mut self) {
        self.file = None;
    }

    /// Whether the next word must be `replace`.
    pub fn is_lost(&self) -> bool {
        self.file.is_none()
    }

    /// # Errors
    /// Nothing of it stands there then, or nobody knows: it must be replaced. Also when somebody
    /// removed the file.
    pub fn append(&mut self, records: &[Value], sync: Sync) -> io::Result<()> {
        let Some(mut file) = self.file.take() else { return Err(io::ErrorKind::NotFound.into()) };
        let ours = file.metadata()?;
        let there = fs::metadata(&self.path)?;
        if (ours.ino(), ours.dev()) != (there.ino(), there.dev()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let text = text_of(records);
        if let Err(error) = file.write_all(&text) {
            let _ = file.set_len(self.len); // half a line costs itself
            return Err(error);
        }
        if sync == Sync::Disk {
            // After an error the handle is not used again: a second fsync may lie.
            file.sync_data()?;
        }
        self.len += text.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    /// Writes a new file beside it and takes its place: killed in between, the old one stands.
    ///
    /// # Errors
    /// The old file stands. It must be replaced again before it is appended to.
    pub fn replace(&mut self, records: &[Value]) -> io::Result<()> {
        self.file = None;
        let text = text_of(records);
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let new = PathBuf::from(new);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(MODE).open(&new)?;
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        self.resume()
    }
}

fn ends_a_line(file: &File, len: u64) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    file.read_exact_at(&mut last, len - 1)?;
    Ok(last == [b'\n'])
}

/// CRC-32 as in Ethernet, gzip and PNG (ISO 3309): reflected, polynomial 0xEDB88320.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| (sum >> 8) ^ CRC_OF_BYTE[usize::from(sum.to_le_bytes()[0] ^ byte)])
}

const CRC_OF_BYTE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xEDB8_8320 } else { sum >> 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn records(count: u64) -> Vec<Value> {
        (1..=count).map(|n| serde_json::json!({ "n": n, "text": "x\ny" })).collect()
    }

    #[test]
    fn the_checksum_is_that_of_everybody_else() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn a_flipped_bit_and_a_torn_end_cost_the_lines_they_hit() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("x.jnl");
        assert_eq!(read(&path).expect("reads"), None);
        let mut file = Appender::new(path.clone());
        assert!(file.append(&records(1), Sync::Kernel).is_err(), "nobody knows what stands there");
        file.replace(&records(3)).expect("writes");
        file.append(&records(2), Sync::Disk).expect("writes");
        let whole = fs::read(&path).expect("reads");
        assert_eq!(file.len(), whole.len() as u64);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut hurt = whole.clone();
                hurt[at] ^= 1 << bit;
                fs::write(&path, &hurt).expect("writes");
                let lines = read(&path).expect("reads").expect("is there");
                assert!(lines.records.len() >= 4, "byte {at}, bit {bit}: {lines:?}");
            }
        }
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).expect("writes");
            let before = read(&path).expect("reads").expect("is there").records.len();
            file.resume().expect("opens");
            file.append(&records(1), Sync::Kernel).expect("writes");
            let lines = read(&path).expect("reads").expect("is there");
            assert_eq!(lines.records.len(), before + 1, "cut to {len}");
        }
    }

    #[test]
    fn a_file_that_somebody_removed_is_not_written_into_the_void() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("x.jnl");
        let mut file = Appender::new(path.clone());
        file.replace(&records(1)).expect("writes");
        fs::remove_file(&path).expect("removes");
        assert!(file.append(&records(1), Sync::Kernel).is_err());
        assert!(file.is_lost());
        file.replace(&records(2)).expect("writes");
        assert_eq!(read(&path).expect("reads").expect("is there").records, records(2));
    }
}
