//! Pipes, and the null device.
//!
//! Refuses: inheritance. Every fd is CLOEXEC; the spawn gives away what a child should have.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

/// A pipe: (read end, write end).
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// A pipe that tries to hold `size_bytes` (F_SETPIPE_SZ, pipe(7)). An unprivileged user has
/// at most /proc/sys/fs/pipe-max-size and a quota; refused, the pipe keeps the kernel's 64 KiB.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pair_sized(size_bytes: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pair()?;
    let size = i32::try_from(size_bytes).unwrap_or(i32::MAX);
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(size)); // best effort, see above
    Ok((read, write))
}

/// Sets O_NONBLOCK on the open file description (which duplicates share).
///
/// # Errors
/// None that a live fd can give.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// /dev/null for reading and writing.
///
/// # Errors
/// As open(2).
pub fn null() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}
