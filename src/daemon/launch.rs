//! The fds of one run: pipes for what it writes, its notification fd, its cgroup.
//!
//! Refuses: any other fd. A child gets 0, 1, 2 and what is declared, nothing else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::base::exit::RunId;
use crate::daemon::pipes::{Name, Pipes};
use crate::engine::effect::Role;
use crate::keeper::wire::{FdUse, HOLD_NOTIFY_FD, HOLD_STDERR, HOLD_STDOUT, Ids, SpawnPlan};
use crate::logs::Stream;
use crate::logs::spool::Spool;
use crate::sys::pipe;
use crate::unit::spec::{ReadyWhen, UnitSpec};

/// SD_LISTEN_FDS_START of sd_listen_fds(3).
const LISTEN_FDS_START: i32 = 3;

/// Whose pipes are made, and where.
pub struct Maker<'a> {
    pub pipes: &'a Pipes,
    pub spec: &'a UnitSpec,
    pub run: RunId,
    /// The account of the child, if it is another one than ours.
    pub ids: Option<&'a Ids>,
}

/// What goes to the keeper and what stays here.
#[derive(Default)]
pub struct Prepared {
    pub fds: Vec<(FdUse, OwnedFd)>,
    /// Read ends, for the capture.
    pub captured: Vec<(OwnedFd, Arc<Spool>)>,
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
    maker: &Maker<'_>,
    role: Role,
    out: Option<Arc<Spool>>,
    err: Option<Arc<Spool>>,
    cgroup: Option<OwnedFd>,
) -> io::Result<Prepared> {
    let mut prepared = Prepared { fds: vec![(FdUse::Child(0), pipe::null()?)], ..Prepared::default() };
    let stdout = prepared.writer(maker, Stream::Stdout, out)?;
    let stderr = match err {
        Some(spool) => prepared.writer(maker, Stream::Stderr, Some(spool))?,
        None => stdout.try_clone()?,
    };
    prepared.fds.push((FdUse::Child(1), stdout));
    prepared.fds.push((FdUse::Child(2), stderr));
    if let (ReadyWhen::NotifyFd(number), Role::Main) = (&maker.spec.readiness.when, role) {
        let (read, write) = maker.pipe(HOLD_NOTIFY_FD)?;
        prepared.fds.push((FdUse::Child(*number), write));
        prepared.fds.push((FdUse::Hold(HOLD_NOTIFY_FD), read.try_clone()?));
        prepared.notify_fd = Some(read);
    }
    if let Some(procs) = cgroup {
        prepared.fds.push((FdUse::Cgroup, procs));
    }
    Ok(prepared)
}

/// Adds what the unit stored, from fd 3 on, and the variables that say so (sd_listen_fds(3)).
/// They win over what the unit sets itself: wrong ones would name fds that are not there.
pub fn give_back(
    spec: &UnitSpec,
    stored: Vec<(String, OwnedFd)>,
    plan: &mut SpawnPlan,
    prepared: &mut Prepared,
) {
    if stored.is_empty() || matches!(spec.readiness.when, ReadyWhen::NotifyFd(_)) {
        return;
    }
    let own = [&b"LISTEN_PID="[..], b"LISTEN_FDS=", b"LISTEN_FDNAMES="];
    plan.env.retain(|text| !own.iter().any(|name| text.starts_with(name)));
    let names: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
    plan.env.push(format!("LISTEN_FDS={}", names.len()).into_bytes());
    plan.env.push(format!("LISTEN_FDNAMES={}", names.join(":")).into_bytes());
    plan.pid_env.push(b"LISTEN_PID".to_vec());
    let numbered = (LISTEN_FDS_START..).zip(stored);
    prepared.fds.extend(numbered.map(|(number, (_, fd))| (FdUse::Child(number), fd)));
}

impl Maker<'_> {
    fn pipe(&self, label: u8) -> io::Result<(OwnedFd, OwnedFd)> {
        let name = Name { unit: self.spec.name.clone(), run: self.run, label };
        self.pipes.make(&name, self.ids)
    }
}

impl Prepared {
    /// The end that the child writes into.
    fn writer(
        &mut self,
        maker: &Maker<'_>,
        stream: Stream,
        spool: Option<Arc<Spool>>,
    ) -> io::Result<OwnedFd> {
        let Some(spool) = spool else { return pipe::null() };
        let (read, write) = maker.pipe(label(stream))?;
        self.fds.push((FdUse::Hold(label(stream)), read.as_fd().try_clone_to_owned()?));
        self.captured.push((read, spool));
        Ok(write)
    }
}
