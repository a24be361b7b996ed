//! One daemon a home: flock(2) on a file.
//!
//! Refuses: pid files. A lock goes with its last fd, a pid file stays and lies.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Held until the last duplicate of its fd is closed.
#[derive(Debug)]
pub struct Lock(File);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it; the pid is what it wrote there, for people only.
    #[error("another daemon (pid {}) has this home", .pid.map_or("unknown".to_string(), |pid| pid.to_string()))]
    Held { pid: Option<i32> },
    #[error("cannot open the lock file: {0}")]
    Io(#[from] io::Error),
}

impl Lock {
    /// Takes the lock without waiting and writes our pid into the file.
    ///
    /// # Errors
    /// `Held` when another open file description has it.
    pub fn take(path: &Path) -> Result<Lock, LockError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text); // the pid is a courtesy
                return Err(LockError::Held { pid: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Lock(file))
    }

    /// Takes the lock of a directory without waiting.
    ///
    /// # Errors
    /// `Held` when another open file description has it.
    pub fn take_directory(path: &Path) -> Result<Lock, LockError> {
        let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
        let directory = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        match directory.try_lock() {
            Ok(()) => Ok(Lock(directory)),
            Err(TryLockError::WouldBlock) => Err(LockError::Held { pid: None }),
            Err(TryLockError::Error(error)) => Err(LockError::Io(error)),
        }
    }

    /// The lock that came with an fd through execve(2).
    ///
    /// # Errors
    /// `Held` when the file is locked, but not by this fd.
    pub fn inherited(fd: OwnedFd) -> Result<Lock, LockError> {
        let file = File::from(fd);
        // Locking again what one has locked already is granted by flock(2).
        match file.try_lock() {
            Ok(()) => Ok(Lock(file)),
            Err(TryLockError::WouldBlock) => Err(LockError::Held { pid: None }),
            Err(TryLockError::Error(error)) => Err(LockError::Io(error)),
        }
    }

    /// The fd that carries the lock, to be held by the keeper.
    pub fn into_fd(self) -> OwnedFd {
        self.0.into()
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_is_told_who_has_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("lock");
        let first = Lock::take(&path).expect("first");
        let me = i32::try_from(std::process::id()).ok();
        assert!(matches!(Lock::take(&path), Err(LockError::Held { pid }) if pid == me));
        let kept = first.as_fd().try_clone_to_owned().expect("dup");
        drop(first);
        assert!(Lock::take(&path).is_err(), "a duplicate still carries it");
        let kept = Lock::inherited(kept).expect("the duplicate carries it on");
        let other = File::open(&path).expect("another description of the same file");
        assert!(matches!(Lock::inherited(other.into()), Err(LockError::Held { pid: None })));
        drop(kept);
        assert!(Lock::take(&path).is_ok());
        let first = Lock::take_directory(dir.path()).expect("the directory is another lock");
        assert!(matches!(Lock::take_directory(dir.path()), Err(LockError::Held { pid: None })));
        drop(first);
        assert!(Lock::take_directory(dir.path()).is_ok());
    }
}
