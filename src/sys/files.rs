//! Directories of our own, files that others read, and whether two fds are one file.
//!
//! Refuses: a directory that somebody else owns, following a link to one, and waiting for a
//! FIFO or a device that stands where a file should.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc;
use nix::sys::stat::fstat;
use nix::unistd::{Uid, Whence, lseek};

/// Makes `path` (parents too, 0755) or takes what stands there; in both cases it is a
/// directory of ours with no bit beyond `mode` (0o700 or 0o750). Checked by fd: nobody can
/// swap it between the check and the use.
///
/// # Errors
/// PermissionDenied when another user owns it; as mkdir(2), open(2).
pub fn own_dir(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let dir: File =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)?;
    let found = dir.metadata()?;
    if found.uid() != Uid::effective().as_raw() {
        let message = format!("{} belongs to uid {}, not to us", path.display(), found.uid());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    if found.mode() & 0o7777 != mode {
        dir.set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(dir.into())
}

/// Both fds are the same open file: what is read through one is read for the other too. By
/// kcmp(2); where that is not allowed, by what fstat(2) and the offset say.
pub fn same_open_file(a: impl AsFd, b: impl AsFd) -> bool {
    let own = i64::from(nix::unistd::getpid().as_raw());
    let (fd_a, fd_b) = (i64::from(a.as_fd().as_raw_fd()), i64::from(b.as_fd().as_raw_fd()));
    // SAFETY: kcmp(2) with numbers only: our pid twice, KCMP_FILE = 0, two live fds.
    match unsafe { libc::syscall(libc::SYS_kcmp, own, own, 0_i64, fd_a, fd_b) } {
        0 => return true,
        1.. => return false,
        ..0 => {}
    }
    let (Ok(stat_a), Ok(stat_b)) = (fstat(&a), fstat(&b)) else { return false };
    let offset = |fd: &dyn AsFd| lseek(fd.as_fd(), 0, Whence::SeekCur).ok();
    (stat_a.st_dev, stat_a.st_ino, stat_a.st_rdev) == (stat_b.st_dev, stat_b.st_ino, stat_b.st_rdev)
        && offset(&a) == offset(&b)
}

/// What stands at the path is no regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no regular file")]
pub struct NoFile;

/// Opens a regular file for reading and appending, or makes it with `mode` (less the umask).
/// Never waits: not for the other end of a FIFO, not for a device.
///
/// # Errors
/// An error that holds `NoFile` when something else stands there; as open(2).
pub fn open_to_append(path: &Path, mode: u32) -> io::Result<File> {
    let refuse = || io::Error::new(io::ErrorKind::InvalidInput, NoFile);
    // A device may act on being opened, and a FIFO without a reader says ENXIO: looked at first.
    if path.metadata().is_ok_and(|found| !found.is_file()) {
        return Err(refuse());
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file =
        OpenOptions::new().read(true).append(true).create(true).mode(mode).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refuse()) }
}

/// Whether an error of `open_to_append` will last until somebody changes the path.
pub fn is_no_file(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<NoFile>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_narrowed_and_never_followed() {
        let root = tempfile::tempdir().expect("tempdir");
        let path = root.path().join("a/b");
        own_dir(&path, 0o750).expect("made");
        std::fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("chmod");
        own_dir(&path, 0o700).expect("taken");
        assert_eq!(std::fs::metadata(&path).expect("stat").mode() & 0o7777, 0o700);
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("link");
        assert!(own_dir(&link, 0o700).is_err());
    }
}
