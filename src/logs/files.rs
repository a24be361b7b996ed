//! The directory of one unit's logs, and files in it, opened so that nobody can point them elsewhere.
//!
//! Refuses: links in place of the directory or a file, devices, FIFOs, files with a second
//! name, and paths: everything below is named relative to an open directory.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::base::name::UnitName;

const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o750);
const FILE_MODE: Mode = Mode::from_bits_truncate(0o640);

/// Why a file of a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    Os(#[from] Errno),
    #[error("it is not a regular file; move it away")]
    NotRegular,
    #[error("it has {0} names (hard links); remove the others")]
    Linked(u64),
}

impl Refusal {
    /// The nearest errno, for those who count and retry.
    pub fn errno(&self) -> Errno {
        match self {
            Refusal::Os(errno) => *errno,
            Refusal::NotRegular => Errno::EINVAL,
            Refusal::Linked(_) => Errno::EMLINK,
        }
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// For reading and writing; ENOENT when it is not there.
    Write,
    /// As `Write`, and made (mode 0640) when it is not there.
    Make,
}

/// `<logs>/<unit>`, open.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the unit's directory, which is made (mode 0750) when it is missing. `logs` must exist.
    ///
    /// # Errors
    /// A link in its place is ENOTDIR; else as mkdir(2), open(2).
    pub fn make(logs: &Path, unit: &UnitName) -> Result<Directory, Errno> {
        let parent = open(logs, directory_flags(), Mode::empty())?;
        let made = match mkdirat(&parent, unit.as_str(), DIRECTORY_MODE) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(errno) => return Err(errno),
        };
        let fd = openat(&parent, unit.as_str(), directory_flags() | OFlag::O_NOFOLLOW, Mode::empty())?;
        if made {
            // The umask may have taken bits away.
            fchmod(&fd, DIRECTORY_MODE)?;
        }
        Ok(Directory { fd, path: logs.join(unit.as_str()) })
    }

    /// Opens the unit's directory at this path.
    ///
    /// # Errors
    /// ENOENT when there is none; as `make`.
    pub fn open(path: &Path) -> Result<Directory, Errno> {
        let fd = open(path, directory_flags() | OFlag::O_NOFOLLOW, Mode::empty())?;
        Ok(Directory { fd, path: path.to_path_buf() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a regular file with one name. Never waits for the other end of a FIFO.
    ///
    /// # Errors
    /// See `Refusal`; a link in its place is ELOOP.
    pub fn file(&self, name: &str, access: Access) -> Result<(File, FileStat), Refusal> {
        let how = match access {
            Access::Read => OFlag::O_RDONLY,
            Access::Write | Access::Make => OFlag::O_RDWR,
        };
        let flags = how | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) if access == Access::Make => {
                match openat(&self.fd, name, flags | OFlag::O_CREAT | OFlag::O_EXCL, FILE_MODE) {
                    Ok(fd) => {
                        fchmod(&fd, FILE_MODE)?;
                        fd
                    }
                    // Somebody was faster: what stands there is looked at like any other.
                    Err(Errno::EEXIST) => openat(&self.fd, name, flags, Mode::empty())?,
                    Err(errno) => return Err(errno.into()),
                }
            }
            other => other?,
        };
        let stat = fstat(&fd)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(Refusal::NotRegular);
        }
        // 0: removed between the two calls; whoever writes notices by itself.
        if stat.st_nlink > 1 {
            return Err(Refusal::Linked(stat.st_nlink));
        }
        Ok((File::from(fd), stat))
    }

    /// What stands under this name now, not followed.
    ///
    /// # Errors
    /// ENOENT; as stat(2).
    pub fn stat(&self, name: &str) -> Result<FileStat, Errno> {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// # Errors
    /// As rename(2).
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Errno> {
        renameat(&self.fd, from, &self.fd, to)
    }

    /// Removes a name; one that is gone already is fine.
    ///
    /// # Errors
    /// As unlink(2).
    pub fn remove(&self, name: &str) -> Result<(), Errno> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Every name in it but `.` and `..`, in no order. Names that are no UTF-8 are not ours.
    ///
    /// # Errors
    /// As getdents(2).
    pub fn names(&self) -> Result<Vec<String>, Errno> {
        let mut dir = Dir::openat(&self.fd, c".", directory_flags(), Mode::empty())?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let name: CString = entry?.file_name().to_owned();
            match name.into_string() {
                Ok(name) if name != "." && name != ".." => names.push(name),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(names)
    }
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC
}

/// The size that a stat tells.
pub fn size(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}
