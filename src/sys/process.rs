//! Our own process: who we are, how large, what we inherit and let nobody see.
//!
//! Refuses: other processes (`signals`, `cgroup`, `proctree`), but for process 1, whose life is part
//! of where we are.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{SFlag, fstat};

use crate::sys::{clock, pidfd, proctree};

/// Makes orphans of our descendants our children (PR_SET_CHILD_SUBREAPER, prctl(2)).
///
/// # Errors
/// EINVAL before Linux 3.4.
pub fn become_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// This machine's name; `localhost` where it has none (gethostname(2)).
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".to_string())
}

/// The file we execute, for showing. To execute it again use `SELF_EXE`, which works even
/// after the file was replaced.
///
/// # Errors
/// Where /proc is missing.
pub fn exe_path() -> io::Result<PathBuf> {
    fs::read_link("/proc/self/exe")
}

/// Most fds taken from systemd: what a full table of runs and all holds amount to.
const LISTEN_FDS_MAX: i32 = 65_536;

pub const SELF_EXE: &std::ffi::CStr = c"/proc/self/exe";

/// Executes our own file again, in this process: pid, children and whatever is not CLOEXEC
/// stay, the memory goes. `kept` is open in what follows, under its number.
///
/// # Errors
/// As execve(2); where /proc is missing, ENOENT. We are as before then.
pub fn execute_self(argv: &[CString], kept: BorrowedFd<'_>) -> io::Result<Infallible> {
    fcntl(kept, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let refused = nix::unistd::execv(SELF_EXE, argv);
    let _ = fcntl(kept, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)); // it was open a moment ago
    Ok(refused?)
}

/// Has the kernel wake us with SIGCONT when our parent ends (PR_SET_PDEATHSIG): one that is stopped
/// would not see it otherwise. Nothing happens to one that runs.
pub fn wake_with_parent() {
    let _ = prctl::set_pdeathsig(nix::sys::signal::Signal::SIGCONT); // of every Linux
}

/// Where and for how long a pid is the name of one process: this boot of the kernel, and in it this
/// life of process 1. A container that is started again has another one in the same boot.
pub fn world() -> String {
    let first = pidfd::open(1).ok().and_then(pidfd::identity).map(|inode| format!("pidfd-{inode}"));
    let by_time = || {
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        format!("{}-{}", namespace.display(), proctree::started(1).unwrap_or(0))
    };
    format!("{} {}", clock::boot_id(), first.unwrap_or_else(by_time))
}

/// What `ps` shows: the first 15 bytes count (PR_SET_NAME).
pub fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        let _ = prctl::set_name(&name); // cosmetic
    }
}

/// No core files and no ptrace by others of our user (PR_SET_DUMPABLE): environments and
/// secrets of services pass through our memory. Not inherited through execve.
pub fn hide_memory() {
    let _ = prctl::set_dumpable(false); // an extra fence, not the only one
}

/// Core files of at most 0 bytes for us and whatever inherits it from us: not for the keeper.
pub fn no_core_files() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_CORE) {
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, hard); // lowering cannot be refused
    }
}

/// Resident bytes of ours (VmRSS of /proc/self/status); 0 where /proc is missing.
pub fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number =
        kib.and_then(|text| text.split_whitespace().next()).and_then(|text| text.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

/// How readily the kernel kills us when memory is short, -1000 to 1000 (proc(5)); 0 where
/// /proc is missing.
pub fn oom_score_adjust() -> i32 {
    let text = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// (soft, hard) RLIMIT_NOFILE.
///
/// # Errors
/// None on a working kernel.
pub fn nofile() -> io::Result<(u64, u64)> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?)
}

/// Raises the soft limit of open files to the hard one, and says what it is now. Children
/// get the limit of their plan.
pub fn raise_nofile() -> u64 {
    let Ok((soft, hard)) = nofile() else {
        return 1024;
    };
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Open fds of ours.
pub fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}

/// Effective (uid, gid).
pub fn ids() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// The regular file that whoever executed us left on this number, CLOEXEC from now on. Call
/// it once for a number above 2: the result owns it.
///
/// # Errors
/// EBADF when nothing, or no regular file, is there.
pub fn inherited_file(number: RawFd) -> io::Result<OwnedFd> {
    let none = || io::Error::from(Errno::EBADF);
    if number <= 2 {
        return Err(none());
    }
    // SAFETY: only borrowed while it is looked at; a closed number makes the calls fail.
    let found = unsafe { BorrowedFd::borrow_raw(number) };
    let kind = SFlag::from_bits_truncate(fstat(found)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG {
        return Err(none());
    }
    fcntl(found, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open (checked above), and by the contract nobody else in this process has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The fds that systemd passed, from 3 on (sd_listen_fds(3)), CLOEXEC from now on. Call it once, with
/// `LISTEN_FDS` if `LISTEN_PID` is ours: the result owns them. Closed numbers are left out, and no more
/// than `LISTEN_FDS_MAX` are taken.
pub fn listen_fds(count: i32) -> Vec<OwnedFd> {
    let numbers = (0..count.clamp(0, LISTEN_FDS_MAX)).map(|n| 3 + n);
    let taken = numbers.filter_map(|number: RawFd| {
        // SAFETY: only borrowed while it is looked at; a closed number makes the call fail.
        let found = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl(found, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
        // SAFETY: it is open (just seen), and by the contract nobody else in this process has it.
        Some(unsafe { OwnedFd::from_raw_fd(number) })
    });
    taken.collect()
}

/// The socket that whoever executed us left on this number, CLOEXEC from now on. Call it
/// once for a number: the result owns it.
///
/// # Errors
/// NotConnected when nothing, or no connected Unix socket, is there.
pub fn inherited_socket(number: RawFd) -> io::Result<OwnedFd> {
    let none = || {
        let message =
            format!("fd {number} is no socket to the keeper; was this started by `upright daemon`?");
        io::Error::new(io::ErrorKind::NotConnected, message)
    };
    // SAFETY: only borrowed while it is looked at; a closed number makes the calls fail.
    let found = unsafe { BorrowedFd::borrow_raw(number) };
    crate::sys::socket::peer_credentials(found).map_err(|_| none())?;
    fcntl(found, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|_| none())?;
    // SAFETY: it is open (checked above), and by the contract nobody else in this process has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
