//! The channel kind `file`: an alert is a line at the end of a file.
//!
//! The file is opened for each alert, so that one that was rotated, removed or whose directory
//! came later is met as it is now. The line is written by one write and is on the disk before
//! it is acknowledged. A line that a crash left half is followed by a newline; one that stands
//! there already, because an engine died between writing and noting it, is not written again.
//!
//! Refuses: what is no regular file, for good; making directories (a mount may be missing).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::alert::line::line;
use crate::engine::outbox::{Before, Outcome, Row};
use crate::sys::files;

/// Read and write for the daemon, read for its group: alerts name units and what they said.
const MODE: u32 = 0o640;

/// How much of the end is looked at for a line that may stand there: more than an engine can
/// have written and not noted.
const TAIL_BYTES: u64 = 1024 * 1024;

/// A file, and which lines at its end are known.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    /// Lines that were written and may not be noted; read from the file once, when it matters.
    written: Option<BTreeSet<String>>,
}

impl FileSink {
    pub fn new(path: PathBuf) -> FileSink {
        FileSink { path, written: None }
    }

    /// Appends the alert. May wait for the disk.
    pub fn send(&mut self, row: &Row, before: Before) -> Outcome {
        match self.append(row, before) {
            Ok(()) => Outcome::Acked,
            Err(error) if files::is_no_file(&error) => {
                Outcome::Refused { why: format!("cannot append to {}: {error}", self.path.display()) }
            }
            Err(error) => Outcome::Failed {
                why: format!("cannot append to {}: {error}", self.path.display()),
                retry_after: None,
            },
        }
    }

    fn append(&mut self, row: &Row, before: Before) -> io::Result<()> {
        let text = line(row);
        let is_new = !self.path.exists();
        let mut file = files::open_to_append(&self.path, MODE)?;
        if before == Before::Maybe && self.stands_there(&mut file, &text)? {
            file.sync_all()?;
            return self.forget(&text);
        }
        let len = file.metadata()?.len();
        let torn = len > 0 && last_byte(&mut file, len)? != b'\n';
        let bytes = format!("{}{text}\n", if torn { "\n" } else { "" });
        write_once(&mut file, bytes.as_bytes(), len)?;
        // From here on it may stand there, whatever else goes wrong.
        self.written.get_or_insert_default().insert(text.clone());
        file.sync_all()?;
        if is_new {
            sync_directory(&self.path)?;
        }
        self.forget(&text)
    }

    /// It will not be asked for again: acknowledged.
    fn forget(&mut self, text: &str) -> io::Result<()> {
        if let Some(written) = &mut self.written {
            written.remove(text);
        }
        Ok(())
    }

    fn stands_there(&mut self, file: &mut File, text: &str) -> io::Result<bool> {
        if self.written.is_none() {
            self.written = Some(tail_lines(file)?);
        }
        Ok(self.written.as_ref().is_some_and(|lines| lines.contains(text)))
    }
}

/// The whole lines at the end of the file.
fn tail_lines(file: &mut File) -> io::Result<BTreeSet<String>> {
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines = tail[..whole].split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| String::from_utf8(line.to_vec()).ok()).collect())
}

fn last_byte(file: &mut File, len: u64) -> io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::Start(len.saturating_sub(1)))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// One write. Of half a line (a full disk) nothing stays, unless somebody else wrote after it.
fn write_once(file: &mut File, bytes: &[u8], len: u64) -> io::Result<()> {
    let written = loop {
        match file.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if written == bytes.len() {
        return Ok(());
    }
    if file.metadata()?.len() == len + written as u64 {
        let _ = file.set_len(len); // else the next line begins with a newline
    }
    Err(io::Error::new(io::ErrorKind::StorageFull, "the disk took only a part of the line"))
}

/// A new file is there after a power cut only when its directory is on the disk as well.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::alert::line::tests::row;

    fn lines(path: &Path) -> Vec<String> {
        std::fs::read_to_string(path).expect("reads").lines().map(String::from).collect()
    }

    #[test]
    fn a_missing_directory_is_waited_for_and_the_file_is_ours() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("later/alerts.jsonl");
        let mut sink = FileSink::new(path.clone());
        assert!(matches!(sink.send(&row(1), Before::Never), Outcome::Failed { .. }));
        std::fs::create_dir(dir.path().join("later")).expect("made");
        assert_eq!(sink.send(&row(1), Before::Maybe), Outcome::Acked);
        assert_eq!(sink.send(&row(2), Before::Never), Outcome::Acked);
        assert_eq!(lines(&path), [line(&row(1)), line(&row(2))]);
        let mode = path.metadata().expect("stat").permissions().mode();
        assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");
    }

    #[test]
    fn what_stands_there_is_not_written_again_and_a_torn_line_is_left_behind() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("alerts.jsonl");
        std::fs::write(&path, format!("{}\n{}", line(&row(1)), &line(&row(2))[..20])).expect("writes");
        let mut sink = FileSink::new(path.clone());
        assert_eq!(sink.send(&row(1), Before::Maybe), Outcome::Acked);
        assert_eq!(sink.send(&row(2), Before::Maybe), Outcome::Acked);
        assert_eq!(lines(&path), [line(&row(1)), line(&row(2))[..20].to_string(), line(&row(2))]);
        // The same id at another time is another alert: a store that was lost counts anew.
        let later = Row { ts_us: 1_800_000_000_000_000, ..row(1) };
        assert_eq!(FileSink::new(path.clone()).send(&later, Before::Maybe), Outcome::Acked);
        assert_eq!(lines(&path).len(), 4);
    }

    #[test]
    fn what_is_no_file_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("dir");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        for path in [fifo, dir.path().to_path_buf(), PathBuf::from("/dev/null")] {
            let outcome = FileSink::new(path.clone()).send(&row(1), Before::Never);
            assert!(matches!(outcome, Outcome::Refused { .. }), "{}: {outcome:?}", path.display());
        }
    }

    #[test]
    fn a_full_disk_is_tried_again() {
        let Ok(file) = File::options().append(true).open("/dev/full") else { return };
        let mut file = file;
        assert!(write_once(&mut file, b"line\n", 0).is_err());
    }
}
