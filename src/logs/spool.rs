//! `Spool`: the file that one stream of one unit is kept in, and the one place that writes it.
//!
//! Refuses: a second writer (the file is locked), links, devices, FIFOs, and an offset of its
//! own: the next byte goes where the file ends, so after a kill -9 the file alone says what is
//! stored. Not O_APPEND: splice(2) answers EINVAL there.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, open, openat, splice};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, mkdirat};
use tokio::sync::watch;

use crate::base::name::UnitName;
use crate::logs::Stream;

const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o750);
const FILE_MODE: Mode = Mode::from_bits_truncate(0o640);

/// An open spool file. Share it by `Arc`: one for each file, also when two runs of a unit
/// overlap in time.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: PathBuf,
    stored: watch::Sender<u64>,
    /// Dropped bytes that the file does not tell of yet.
    unmarked_bytes: AtomicU64,
}

/// Why a spool file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the log {}: {why}", path.display())]
pub struct SpoolError {
    pub path: PathBuf,
    pub why: SpoolRefusal,
}

#[derive(Debug, thiserror::Error)]
pub enum SpoolRefusal {
    #[error("{0}")]
    Os(#[from] Errno),
    #[error("it is not a regular file; move it away")]
    NotRegular,
    #[error("it has {0} names (hard links); remove the others")]
    Linked(u64),
    #[error("it is written by another process; stop the other daemon")]
    InUse,
}

impl Spool {
    /// Opens `<logs>/<unit>/current.log` or `stderr.log`; makes the unit's directory (mode 0750)
    /// and the file (0640) where they are missing. `logs` itself must exist.
    ///
    /// # Errors
    /// See `SpoolRefusal`. A link in place of the directory or the file is refused (ENOTDIR, ELOOP).
    pub fn open(logs: &Path, unit: &UnitName, stream: Stream) -> Result<Spool, SpoolError> {
        let path = logs.join(unit.as_str()).join(stream.file_name());
        let refuse = |why: SpoolRefusal| SpoolError { path: path.clone(), why };
        let directory = open_directory(logs, unit).map_err(|errno| refuse(errno.into()))?;
        let file = open_file(&directory, stream.file_name()).map_err(|errno| refuse(errno.into()))?;
        let stat = fstat(&file).map_err(|errno| refuse(errno.into()))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(refuse(SpoolRefusal::NotRegular));
        }
        if stat.st_nlink != 1 {
            return Err(refuse(SpoolRefusal::Linked(stat.st_nlink)));
        }
        let file = File::from(file);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(refuse(SpoolRefusal::InUse)),
            Err(TryLockError::Error(error)) => return Err(refuse(errno_of(&error).into())),
        }
        Ok(Spool {
            file,
            path: path.clone(),
            stored: watch::Sender::new(size(&stat)),
            unmarked_bytes: AtomicU64::new(0),
        })
    }

    /// The file's path, for messages and tests; it may have been renamed since.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the file after the last store. Take it before a spawn: what the run writes
    /// stands at this offset or behind it.
    pub fn stored_bytes(&self) -> u64 {
        *self.stored.borrow()
    }

    /// Changes whenever bytes were stored; the value is `stored_bytes`.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.stored.subscribe()
    }

    /// Reads stored bytes from `offset` on, like pread(2). 0 at the end.
    ///
    /// # Errors
    /// What pread(2) says.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    /// Moves at most `bytes_max` bytes from the pipe to the end of the file. 0: every writer is
    /// gone and the pipe is empty. Only the capture thread may call this: two callers would
    /// take the same end of the file.
    ///
    /// # Errors
    /// EAGAIN: the pipe is empty. EINVAL: this file system cannot splice, use `append`. Else
    /// the file's trouble (ENOSPC, EIO, …); then nothing has left the pipe.
    pub(super) fn splice_from(&self, pipe: BorrowedFd<'_>, bytes_max: usize) -> Result<usize, Errno> {
        let mut end = self.end()?;
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let moved = splice(pipe, None, &self.file, Some(&mut end), bytes_max, flags)?;
        if moved > 0 {
            self.stored.send_replace(u64::try_from(end).unwrap_or(0));
        }
        Ok(moved)
    }

    /// Writes bytes to the end of the file; says how many were taken.
    ///
    /// # Errors
    /// What pwrite(2) says.
    pub(super) fn append(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let end = self.end()?;
        let written = nix::sys::uio::pwrite(&self.file, bytes, end)?;
        let end = u64::try_from(end).unwrap_or(0);
        self.stored.send_replace(end.saturating_add(u64::try_from(written).unwrap_or(0)));
        Ok(written)
    }

    /// Bytes for this file were dropped: `mark_loss` will say so in it.
    pub(super) fn count_loss(&self, bytes: u64) {
        self.unmarked_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Writes what was dropped since the last mark as a line of its own, if anything was.
    ///
    /// # Errors
    /// What pwrite(2) says; the loss stays unmarked then.
    pub(super) fn mark_loss(&self) -> Result<(), Errno> {
        let bytes = self.unmarked_bytes.swap(0, Ordering::Relaxed);
        if bytes == 0 {
            return Ok(());
        }
        let mut last = [b'\n'];
        let end = u64::try_from(self.end()?).unwrap_or(0);
        if end > 0 {
            let _ = self.read_at(&mut last, end - 1); // unreadable: the mark shares a line
        }
        let begin = if last == *b"\n" { "" } else { "\n" };
        let mark = format!("{begin}[upright: {bytes} bytes dropped here, the disk was full]\n");
        let written = self.append(mark.as_bytes());
        if written.is_err() {
            self.count_loss(bytes);
        }
        written.map(drop)
    }

    /// Asked of the file each time (0.2 µs): somebody may have truncated it, and an offset
    /// kept here would then leave a hole of NULs.
    fn end(&self) -> Result<i64, Errno> {
        Ok(fstat(&self.file)?.st_size)
    }
}

impl AsFd for Spool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open_directory(logs: &Path, unit: &UnitName) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let logs = open(logs, flags, Mode::empty())?;
    let made = match mkdirat(&logs, unit.as_str(), DIRECTORY_MODE) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(errno),
    };
    let directory = openat(&logs, unit.as_str(), flags | OFlag::O_NOFOLLOW, Mode::empty())?;
    if made {
        // The umask may have taken bits away.
        fchmod(&directory, DIRECTORY_MODE)?;
    }
    Ok(directory)
}

/// O_NONBLOCK: a FIFO in place of the file must not hang us; it means nothing for a file.
fn open_file(directory: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    match openat(directory, name, flags | OFlag::O_CREAT | OFlag::O_EXCL, FILE_MODE) {
        Ok(file) => {
            fchmod(&file, FILE_MODE)?;
            Ok(file)
        }
        // What stands there keeps the mode that its owner gave it.
        Err(Errno::EEXIST) => openat(directory, name, flags, Mode::empty()),
        Err(errno) => Err(errno),
    }
}

fn size(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}
