//! A disk of logs that a drill fills: one file that takes all the room there is, and goes away again.
//!
//! Refuses: a file system on which something else than logs stands. Who fills that hurts the store, the units'
//! own data, or the whole host.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};

/// The file, in the directory of logs. It is hidden, and says by its name what it is.
const FILLER: &str = ".filled-by-drill";

/// First it is asked for this much at once, then for half of it, down to a byte.
const PIECE_BYTES: i64 = 1 << 40;

fn filler(logs: &Path) -> PathBuf {
    logs.join(FILLER)
}

/// Whether `logs` is on a file system on which none of `others` is.
///
/// # Errors
/// A sentence that says what else would be hurt.
pub(super) fn is_apart(logs: &Path, others: &[&Path]) -> Result<(), String> {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    let cannot_look = |path: &Path, error: &io::Error| format!("cannot look at {}: {error}", path.display());
    let own = device(logs).map_err(|error| cannot_look(logs, &error))?;
    for other in others {
        if device(other).map_err(|error| cannot_look(other, &error))? == own {
            return Err(format!("the logs share their file system with {}", other.display()));
        }
    }
    Ok(())
}

/// Takes all the room, without writing: space is only set aside (fallocate(2)).
///
/// # Errors
/// As the file system says; nothing is left then.
pub(super) fn fill(logs: &Path) -> io::Result<()> {
    let path = filler(logs);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    let (mut piece, mut end) = (PIECE_BYTES, 0);
    while piece > 0 {
        match fallocate(&file, FallocateFlags::empty(), end, piece) {
            Ok(()) => end += piece,
            Err(nix::Error::ENOSPC | nix::Error::EFBIG | nix::Error::EDQUOT) => piece /= 2,
            Err(nix::Error::EINTR) => {}
            Err(error) => {
                let _ = fs::remove_file(&path); // it is empty
                return Err(error.into());
            }
        }
    }
    Ok(())
}

/// Gives it back. True: there was a filler.
///
/// # Errors
/// As the file system says; it can be tried again.
pub(super) fn empty(logs: &Path) -> io::Result<bool> {
    match fs::remove_file(filler(logs)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_others_use_is_not_filled() {
        let (logs, other) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        let why = is_apart(logs.path(), &[other.path()]).expect_err("the same file system");
        assert!(why.contains("share their file system"), "{why}");
        assert_eq!(is_apart(logs.path(), &[Path::new("/proc")]), Ok(()));
        assert!(!empty(logs.path()).expect("nothing to do"));
    }
}
