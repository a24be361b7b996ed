//! One file from disk, bounded and never waited for.
//!
//! Refuses: FIFOs, devices, directories, files above 256 KiB (by fstat, before a byte is
//! read), files that others could have written when we are root, and what is not UTF-8.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, stat};

use crate::base::limits;

/// How far the owner and mode of a file matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The daemon will act on it: as root nobody else may be able to write it.
    Deployed,
    /// It is only checked, maybe in a working copy: as root the world must not be able to
    /// write it; its owner and group may be anybody.
    Linted,
}

/// Why a file is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError {
    /// Last part of the diagnostic's code: `unreadable`, `not-a-file`, `too-large`, `unsafe-file`, `not-utf8`.
    pub code: &'static str,
    /// To follow the file's name.
    pub why: String,
    pub help: Option<String>,
}

/// The text of a unit or config file.
///
/// # Errors
/// Whatever `Refuses` of this file names, each with what to do about it.
pub fn read(path: &Path, trust: Trust) -> Result<String, ReadError> {
    let unreadable =
        |cause: String| ReadError { code: "unreadable", why: format!("cannot read: {cause}"), help: None };
    // Without O_NONBLOCK an open of a FIFO waits for a writer, for ever.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    // Opening a device may act (rewind a tape): look before, and again after, at what was opened.
    let before = stat(path).map_err(|errno| unreadable(errno.desc().to_string()))?;
    refuse_odd_kind(&before)?;
    let fd = open(path, flags, Mode::empty()).map_err(|errno| unreadable(errno.desc().to_string()))?;
    let found = fstat(fd.as_fd()).map_err(|errno| unreadable(errno.desc().to_string()))?;
    refuse_odd_kind(&found)?;
    let most = limits::UNIT_FILE_BYTES_MAX;
    let too_large = || ReadError {
        code: "too-large",
        why: format!("larger than {} KiB", most / 1024),
        help: Some("a unit file is a page of text; is this the right file?".into()),
    };
    if u64::try_from(found.st_size).unwrap_or(u64::MAX) > most {
        return Err(too_large());
    }
    refuse_foreign_hands(path, &found, trust)?;
    let mut bytes = Vec::new();
    File::from(fd).take(most + 1).read_to_end(&mut bytes).map_err(|cause| unreadable(cause.to_string()))?;
    if bytes.len() as u64 > most {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ReadError {
            code: "not-utf8",
            why: format!("not UTF-8 text: byte {at} does not belong"),
            help: Some("TOML is UTF-8; is this a text file?".into()),
        }
    })
}

/// Whether `found`, opened at `path`, is a program that we may execute as ourselves.
///
/// # Errors
/// No regular file; nobody may execute it; as root: others could have written it.
pub fn check_program(path: &Path, found: &FileStat) -> Result<(), ReadError> {
    refuse_odd_kind(found)?;
    if found.st_mode & 0o111 == 0 {
        let help = Some(format!("chmod +x {}", path.display()));
        return Err(ReadError { code: "not-executable", why: "nobody may execute it".into(), help });
    }
    refuse_foreign_hands(path, found, Trust::Deployed)
}

fn kind_of(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

fn refuse_odd_kind(found: &FileStat) -> Result<(), ReadError> {
    let kind = kind_of(found);
    if kind == SFlag::S_IFREG {
        return Ok(());
    }
    let names = [
        (SFlag::S_IFDIR, "a directory"),
        (SFlag::S_IFIFO, "a FIFO"),
        (SFlag::S_IFCHR, "a device"),
        (SFlag::S_IFBLK, "a device"),
        (SFlag::S_IFSOCK, "a socket"),
    ];
    let name = names.iter().find(|(flag, _)| *flag == kind).map_or("no regular file", |(_, name)| name);
    Err(ReadError { code: "not-a-file", why: format!("{name}, not a regular file"), help: None })
}

/// As root, refuses what somebody else could have written (reliability C5).
fn refuse_foreign_hands(path: &Path, found: &FileStat, trust: Trust) -> Result<(), ReadError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let mode = found.st_mode & 0o7777;
    let (writable, foreign) = match trust {
        Trust::Deployed => (mode & 0o022 != 0, found.st_uid != 0),
        Trust::Linted => (mode & 0o002 != 0, false),
    };
    let path = path.display();
    if writable {
        return Err(ReadError {
            code: "unsafe-file",
            why: format!(
                "others can write it (owner {}, mode {mode:04o}), and root acts on it",
                found.st_uid
            ),
            help: Some(format!("chmod go-w {path}")),
        });
    }
    if foreign {
        return Err(ReadError {
            code: "unsafe-file",
            why: format!("it belongs to user {} (mode {mode:04o}), and root acts on it", found.st_uid),
            help: Some(format!("chown root {path}")),
        });
    }
    Ok(())
}

/// As root, a directory that others can write is as good as files that they can write.
///
/// # Errors
/// Names the mode and the command that mends it.
pub fn check_dir(path: &Path) -> Result<(), ReadError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let found = stat(path).map_err(|errno| ReadError {
        code: "unreadable",
        why: format!("cannot read: {}", errno.desc()),
        help: None,
    })?;
    let mode = found.st_mode & 0o7777;
    if mode & 0o022 != 0 || found.st_uid != 0 {
        return Err(ReadError {
            code: "unsafe-directory",
            why: format!(
                "others can write into it (owner {}, mode {mode:04o}), and root acts on its files",
                found.st_uid
            ),
            help: Some(format!("chown root {path}; chmod go-w {path}", path = path.display())),
        });
    }
    Ok(())
}
