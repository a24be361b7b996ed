//! Signals to ourselves, as an fd; signals to others.
//!
//! Refuses: handlers. Nothing of ours runs in a signal handler.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal as Sig, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::base::signal::Signal;

const TAKEN: [Sig; 7] =
    [Sig::SIGCHLD, Sig::SIGTERM, Sig::SIGINT, Sig::SIGHUP, Sig::SIGQUIT, Sig::SIGUSR1, Sig::SIGUSR2];

/// Reports of the kernel about ourselves; blocked, they would end us all the same, or hide a bug.
/// Stopping and going on (TSTP, TTIN, TTOU, CONT) belong to the shell that we were started from.
const UNTOUCHED: [Sig; 11] = [
    Sig::SIGSEGV,
    Sig::SIGBUS,
    Sig::SIGFPE,
    Sig::SIGILL,
    Sig::SIGTRAP,
    Sig::SIGABRT,
    Sig::SIGSYS,
    Sig::SIGTSTP,
    Sig::SIGTTIN,
    Sig::SIGTTOU,
    Sig::SIGCONT,
];

/// CHLD, TERM, INT, HUP, QUIT, USR1 and USR2, blocked and readable as an fd.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks them in this thread (call it before any other thread exists) and opens the fd.
    /// Every other signal that would end us by its default is blocked too: a stray SIGALRM from
    /// a service must not cost all the others their keeper.
    /// A SIGCHLD that our parent ignored is set back: else the kernel would reap in our place.
    ///
    /// # Errors
    /// EMFILE and its kin.
    pub fn take() -> io::Result<Signals> {
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: sets the default disposition; no handler of ours is installed or replaced.
        unsafe { sigaction(Sig::SIGCHLD, &default) }?;
        let mut mask = SigSet::empty();
        for signal in TAKEN {
            mask.add(signal);
        }
        let mut blocked = SigSet::all();
        for signal in UNTOUCHED {
            blocked.remove(signal);
        }
        blocked.thread_block()?;
        Ok(Signals(SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next one; None when there is none.
    pub fn next_signal(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::from_number(i32::try_from(info.ssi_signo).ok()?)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Signals a child of ours that we have not reaped: its pid cannot have passed to another
/// process. Never a group, never everybody (reliability B16); gone already is success.
///
/// # Errors
/// EPERM; EINVAL for a pid of 1 or below.
pub fn signal_child(pid: i32, signal: Signal) -> io::Result<()> {
    if pid <= 1 {
        return Err(Errno::EINVAL.into());
    }
    // SAFETY: kill(2) with numbers only.
    let done = unsafe { libc::kill(pid, signal.number()) };
    gone_is_fine(i64::from(done))
}

/// Signals a process that may be a stranger's by the time we act: `still_ours` is asked after
/// its pidfd is open, so the answer is about the process that gets the signal.
///
/// # Errors
/// EPERM; gone already, or not ours any more, is success.
pub fn signal_checked(pid: i32, signal: Signal, still_ours: impl Fn(i32) -> bool) -> io::Result<()> {
    if pid <= 1 {
        return Err(Errno::EINVAL.into());
    }
    // SAFETY: pidfd_open(2) with numbers only.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, i64::from(pid), 0_i64) };
    if opened < 0 {
        return match Errno::last() {
            // Before Linux 5.3: the check right before the signal is the best there is.
            Errno::ENOSYS if still_ours(pid) => signal_child(pid, signal),
            Errno::ENOSYS | Errno::ESRCH => Ok(()),
            other => Err(other.into()),
        };
    }
    let Ok(raw) = i32::try_from(opened) else {
        return Err(Errno::EBADF.into());
    };
    // SAFETY: the kernel has just given this fd to us, and nobody else knows its number.
    let pidfd = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) };
    if !still_ours(pid) {
        return Ok(());
    }
    let no_info = std::ptr::null::<libc::siginfo_t>();
    let target = i64::from(std::os::fd::AsRawFd::as_raw_fd(&pidfd));
    // SAFETY: a live pidfd, a number, no siginfo, no flags.
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, target, i64::from(signal.number()), no_info, 0_i64)
    };
    gone_is_fine(done)
}

fn gone_is_fine(done: i64) -> io::Result<()> {
    if done == 0 || Errno::last() == Errno::ESRCH { Ok(()) } else { Err(io::Error::last_os_error()) }
}
