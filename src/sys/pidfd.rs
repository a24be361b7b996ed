//! Processes held by an fd: the pid behind it cannot pass to another process unseen.
//!
//! Refuses: guessing from the kernel's version. What the kernel cannot say is none.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};

use crate::base::exit::Exit;
use crate::base::signal::Signal;

/// `PIDFD_GET_INFO` (linux/pidfd.h, 6.13): `_IOWR(0xFF, 11, struct pidfd_info)` with the 64
/// bytes of its first version.
const GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xff << 8) | 11;
const INFO_CGROUP: u64 = 1 << 2;
/// Asked for, a process that is reaped already is no error (6.15).
const INFO_EXIT: u64 = 1 << 3;

/// `PID_FS_MAGIC` (linux/magic.h): before 6.9 all pidfds share one inode, of another file system.
const PIDFS: FsType = FsType(0x5049_4446);

/// struct pidfd_info, first version.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid, and eight ids.
    ids: [u32; 11],
    /// As wait(2) gives it.
    exit_status: i32,
}

/// What the kernel says of the end of a process that may be nobody's child of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Known(Exit),
    /// Its parent has not reaped it: to be asked again after the hang-up of the pidfd.
    NotReaped,
    /// This kernel does not tell (before 6.15), or it was reaped before anybody held it.
    Untold,
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
    info(process).filter(|info| info.mask & INFO_CGROUP != 0).map(|info| info.cgroup)
}

/// A number that no other process of this boot has or had: the inode of its pidfd (6.9). None
/// where pidfds have no inodes of their own; the kernel is asked, not its version.
pub fn identity(process: impl AsFd) -> Option<u64> {
    let own_inodes = fstatfs(process.as_fd()).is_ok_and(|found| found.filesystem_type() == PIDFS);
    own_inodes.then(|| fstat(&process).ok().map(|found| found.st_ino)).flatten()
}

/// How a process ended, whosever child it was. Ask after `has_ended`.
pub fn end_of(process: impl AsFd) -> End {
    let gone = is_reaped(&process);
    match info(process) {
        Some(info) if info.mask & INFO_EXIT != 0 => End::Known(exit_of(info.exit_status)),
        Some(_) if !gone => End::NotReaped,
        Some(_) | None => End::Untold,
    }
}

fn info(process: impl AsFd) -> Option<Info> {
    let mut info = Info { mask: INFO_CGROUP | INFO_EXIT, ..Info::default() };
    const { assert!(mem::size_of::<Info>() == 64) };
    // SAFETY: `info` has the size that the request's number says, and lives through the call.
    let done = unsafe { libc::ioctl(process.as_fd().as_raw_fd(), GET_INFO as _, &raw mut info) };
    (done == 0).then_some(info)
}

/// The pidfd has hung up.
fn is_reaped(process: impl AsFd) -> bool {
    let mut asked = [PollFd::new(process.as_fd(), PollFlags::empty())];
    let looked = poll(&mut asked, PollTimeout::ZERO);
    looked.is_ok() && asked[0].revents().is_some_and(|found| found.contains(PollFlags::POLLHUP))
}

/// What the status of wait(2) says.
fn exit_of(status: i32) -> Exit {
    if libc::WIFEXITED(status) {
        return u8::try_from(libc::WEXITSTATUS(status)).map_or(Exit::Unknown, Exit::Code);
    }
    let signal = Signal::from_number(libc::WTERMSIG(status)).filter(|_| libc::WIFSIGNALED(status));
    signal.map_or(Exit::Unknown, |signal| Exit::Signal { signal, core: libc::WCOREDUMP(status) })
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
    fn a_process_has_an_identity_and_an_end_that_the_kernel_may_tell() {
        let end = |words: &str| {
            let mut command = std::process::Command::new("sh");
            let mut child = command.args(["-c", words]).spawn().expect("a child of this test");
            let process = open(i32::try_from(child.id()).expect("pid")).expect("pidfd");
            let identity = identity(&process);
            let mut asked = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            poll(&mut asked, PollTimeout::NONE).expect("it ends");
            assert!(matches!(end_of(&process), End::NotReaped | End::Untold));
            child.wait().expect("reaped");
            (identity, end_of(&process))
        };
        let (first, how) = end("exit 37");
        assert!(matches!(how, End::Known(Exit::Code(37)) | End::Untold), "{how:?}");
        let (second, how) = end("kill -9 $$");
        let killed = Exit::Signal { signal: Signal::KILL, core: false };
        assert!(how == End::Known(killed) || how == End::Untold, "{how:?}");
        assert!(first.is_none() == second.is_none() && (first != second || first.is_none()));
    }

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
