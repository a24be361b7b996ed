//! The fds of one run: pipes for what it writes, its notification fd, its cgroup.
//!
//! Refuses: any other fd. A child gets 0, 1, 2 and what is declared, nothing else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::engine::effect::Role;
use crate::keeper::wire::{FdUse, HOLD_NOTIFY_FD, HOLD_STDERR, HOLD_STDOUT};
use crate::logs::Stream;
use crate::logs::spool::Spool;
use crate::sys::pipe;
use crate::unit::spec::{ReadyWhen, UnitSpec};

/// What goes to the keeper and what stays here.
pub struct Prepared {
    pub fds: Vec<(FdUse, OwnedFd)>,
    /// Read ends, for the capture.
    pub captured: Vec<(Stream, OwnedFd, Arc<Spool>)>,
    /// Read end of the notification pipe.
    pub notify_fd: Option<OwnedFd>,
}

/// The label under which the keeper holds a stream's pipe.
pub fn label(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => HOLD_STDOUT,
        Stream::Stderr => HOLD_STDERR,
    }
}

/// Makes the pipes. `err` is none when stderr goes where stdout goes; a stream without a
/// spool goes to /dev/null, because nobody would empty its pipe.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn fds(
    spec: &UnitSpec,
    role: Role,
    out: Option<Arc<Spool>>,
    err: Option<Arc<Spool>>,
    cgroup: Option<OwnedFd>,
) -> io::Result<Prepared> {
    let mut prepared =
        Prepared { fds: vec![(FdUse::Child(0), pipe::null()?)], captured: Vec::new(), notify_fd: None };
    let stdout = prepared.writer(Stream::Stdout, out)?;
    let stderr = match err {
        Some(spool) => prepared.writer(Stream::Stderr, Some(spool))?,
        None => stdout.try_clone()?,
    };
    prepared.fds.push((FdUse::Child(1), stdout));
    prepared.fds.push((FdUse::Child(2), stderr));
    if let (ReadyWhen::NotifyFd(number), Role::Main) = (&spec.readiness.when, role) {
        let (read, write) = pipe::pair()?;
        prepared.fds.push((FdUse::Child(*number), write));
        prepared.fds.push((FdUse::Hold(HOLD_NOTIFY_FD), read.try_clone()?));
        prepared.notify_fd = Some(read);
    }
    if let Some(procs) = cgroup {
        prepared.fds.push((FdUse::Cgroup, procs));
    }
    Ok(prepared)
}

impl Prepared {
    /// The end that the child writes into.
    fn writer(&mut self, stream: Stream, spool: Option<Arc<Spool>>) -> io::Result<OwnedFd> {
        let Some(spool) = spool else { return pipe::null() };
        let (read, write) = pipe::pair()?;
        self.fds.push((FdUse::Hold(label(stream)), read.as_fd().try_clone_to_owned()?));
        self.captured.push((stream, read, spool));
        Ok(write)
    }
}
