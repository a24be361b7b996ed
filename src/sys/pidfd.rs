//! Processes held by an fd: the pid behind it cannot pass to another process unseen.
//!
//! Refuses: guessing from the kernel's version. What the kernel cannot say is none.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::base::signal::Signal;

/// `PIDFD_GET_INFO` (linux/pidfd.h, 6.13): `_IOWR(0xFF, 11, struct pidfd_info)` with the 64
/// bytes of its first version.
const GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xff << 8) | 11;
const INFO_CGROUP: u64 = 1 << 2;
/// Asked for, a process that is reaped already is no error (6.15).
const INFO_EXIT: u64 = 1 << 3;

/// struct pidfd_info, first version.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid, ids, exit code.
    rest: [u32; 12],
}

/// The process with this pid now.
///
/// # Errors
/// ESRCH; EMFILE; ENOSYS before Linux 5.3.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) with numbers only.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, i64::from(pid), 0_i64) };
    let fd = i32::try_from(opened).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just given this fd to us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// It has ended, reaped or not.
pub fn has_ended(process: impl AsFd) -> bool {
    let mut asked = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The id of its cgroup, which is the inode of the cgroup's directory; of a process that is
/// gone the one that it was in. None where the kernel does not tell (before 6.13; of one that
/// is reaped before 6.15).
pub fn cgroup_id(process: impl AsFd) -> Option<u64> {
    let mut info = Info { mask: INFO_CGROUP | INFO_EXIT, ..Info::default() };
    const { assert!(mem::size_of::<Info>() == 64) };
    // SAFETY: `info` has the size that the request's number says, and lives through the call.
    let done = unsafe { libc::ioctl(process.as_fd().as_raw_fd(), GET_INFO as _, &raw mut info) };
    (done == 0 && info.mask & INFO_CGROUP != 0).then_some(info.cgroup)
}

/// Signals it; gone already is success.
///
/// # Errors
/// EPERM.
pub fn signal(process: impl AsFd, signal: Signal) -> io::Result<()> {
    let target = i64::from(process.as_fd().as_raw_fd());
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a live pidfd, a number, no siginfo, no flags.
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, target, i64::from(signal.number()), no_info, 0_i64)
    };
    if done == 0 || Errno::last() == Errno::ESRCH { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_held_beyond_its_end() {
        let mut child =
            std::process::Command::new("sleep").arg("1000").spawn().expect("a child of this test");
        let pid = i32::try_from(child.id()).expect("pid");
        let process = open(pid).expect("pidfd");
        assert!(!has_ended(&process));
        signal(&process, Signal::KILL).expect("ours");
        child.wait().expect("reaped");
        assert!(has_ended(&process));
        signal(&process, Signal::KILL).expect("gone is fine");
        assert!(open(pid).is_err());
        let own = open(i32::try_from(std::process::id()).expect("pid")).expect("pidfd");
        if let Some(id) = cgroup_id(&own) {
            // The same cgroup: a child begins where its parent is.
            assert!(cgroup_id(&process).is_none_or(|of_child| of_child == id));
        }
    }
}
