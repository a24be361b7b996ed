//! Fork, everything that must happen before exec, exec.
//!
//! Refuses: executing after a failed step, and std's `Command`, which leaks the blocked
//! signal mask and an ignored SIGPIPE into the child (reliability F3).

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{self, c_char, c_int, c_long};

use crate::base::exit::SpawnStep;
use crate::sys::pipe;

/// Highest fd number a child may be given; far below every default RLIMIT_NOFILE.
pub const TARGET_FD_MAX: i32 = 511;

/// Everything the child is made of besides its fds.
#[derive(Debug, Default)]
pub struct ChildPlan {
    pub path: CString,
    pub argv: Vec<CString>,
    /// The whole environment, but for `pid_env`.
    pub env: Vec<CString>,
    /// Names of variables that hold the child's own pid (`LISTEN_PID`, sd_listen_fds(3)).
    pub pid_env: Vec<CString>,
    pub cwd: Option<CString>,
    pub ids: Option<ChildIds>,
    pub umask: Option<u32>,
    /// (RLIMIT_ number, soft, hard)
    pub rlimits: Vec<(u32, u64, u64)>,
    pub nice: Option<i32>,
    pub oom_score_adj: Option<i32>,
    pub no_new_privs: bool,
}

#[derive(Debug, Default)]
pub struct ChildIds {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A forked child. `outcome` ends without a byte when execve succeeded; otherwise
/// `read_outcome` finds the step and errno there.
#[derive(Debug)]
pub struct Born {
    pub pid: i32,
    pub outcome: OwnedFd,
}

/// What `Born::outcome` says so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Pending,
    Executed,
    Failed { step: SpawnStep, errno: i32 },
}

/// Forks and executes. In the child: `fds` (target number, source; a source may be given
/// twice), nothing else; 0, 1 and 2 are /dev/null unless given; own session; no signal blocked,
/// none ignored. `cgroup` is a cgroup's directory: the child is born in it, or enters it before
/// anything else where the kernel cannot do that.
///
/// # Errors
/// EMFILE, ENFILE, EAGAIN, ENOMEM: nothing was forked. EBADF: a target above `TARGET_FD_MAX`.
pub fn spawn(
    plan: &ChildPlan,
    fds: &[(i32, BorrowedFd<'_>)],
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Born, Errno> {
    if fds.iter().any(|(target, _)| !(0..=TARGET_FD_MAX).contains(target)) {
        return Err(Errno::EBADF);
    }
    let (outcome, report) =
        pipe::pair().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
    fcntl(&outcome, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut birth = Birth::new(plan, fds, cgroup, report.as_raw_fd());
    match birth.fork()? {
        0 => {
            let Err((step, errno)) = birth.be_born();
            birth.fail(step, errno)
        }
        pid => Ok(Born { pid, outcome }),
    }
}

/// Reads `Born::outcome` without blocking. After the child is reaped it is never `Pending`.
pub fn read_outcome(outcome: &OwnedFd) -> Outcome {
    let mut bytes = [0_u8; 5];
    match nix::unistd::read(outcome, &mut bytes) {
        Ok(0) => Outcome::Executed,
        Ok(_) => {
            let [step, e0, e1, e2, e3] = bytes;
            let step = SpawnStep::from_u8(step).unwrap_or(SpawnStep::Prepare);
            Outcome::Failed { step, errno: i32::from_le_bytes([e0, e1, e2, e3]) }
        }
        Err(_) => Outcome::Pending,
    }
}

/// The plan as the child can use it: pointers and numbers only, all memory made before fork.
struct Birth<'a> {
    plan: &'a ChildPlan,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// `NAME=` and room for a pid, each; `env` points here too. The child writes its own in.
    pid_env: Vec<(Vec<u8>, usize)>,
    /// (source, target); the child moves sources out of the targets' way in place.
    fds: Vec<(RawFd, RawFd)>,
    /// Targets above 2, sorted: what survives exec besides 0, 1, 2.
    kept: Vec<RawFd>,
    /// Sources, sorted: all that the child needs of what the parent has open.
    needed: Vec<RawFd>,
    /// The first number above every target.
    high: RawFd,
    cgroup: Option<RawFd>,
    oom_score_adj: Option<String>,
    report: RawFd,
    /// Loop bound of the fallback for kernels without close_range(2).
    fds_end: RawFd,
}

type Step = Result<(), (SpawnStep, i32)>;

impl<'a> Birth<'a> {
    fn new(
        plan: &'a ChildPlan,
        fds: &[(i32, BorrowedFd<'_>)],
        cgroup: Option<BorrowedFd<'_>>,
        report: RawFd,
    ) -> Birth<'a> {
        let mut kept: Vec<RawFd> =
            fds.iter().map(|(target, _)| *target).filter(|target| *target > 2).collect();
        kept.sort_unstable();
        kept.dedup();
        let sources = fds.iter().map(|(_, source)| source.as_raw_fd());
        let mut needed: Vec<RawFd> = sources.chain(cgroup.map(|fd| fd.as_raw_fd())).chain([report]).collect();
        needed.sort_unstable();
        needed.dedup();
        let (_, hard) = crate::sys::process::nofile().unwrap_or((1024, 1024));
        let pid_env: Vec<(Vec<u8>, usize)> = plan.pid_env.iter().map(room_for_pid).collect();
        let texts = plan.env.iter().map(|text| text.as_ptr());
        let rooms = pid_env.iter().map(|(text, _)| text.as_ptr().cast());
        let env = texts.chain(rooms).chain([ptr::null()]).collect();
        Birth {
            plan,
            argv: pointers(&plan.argv),
            env,
            pid_env,
            fds: fds.iter().map(|(target, source)| (source.as_raw_fd(), *target)).collect(),
            high: kept.last().copied().unwrap_or(2) + 1,
            kept,
            needed,
            cgroup: cgroup.map(|fd| fd.as_raw_fd()),
            oom_score_adj: plan.oom_score_adj.map(|score| format!("{score}\n")),
            report,
            fds_end: RawFd::try_from(hard.min(1 << 20)).unwrap_or(1 << 20),
        }
    }

    /// Forks, into the cgroup where there is one: entering it afterwards would wait for an RCU
    /// grace period (measured: 15 ms), being born in it costs nothing.
    fn fork(&mut self) -> Result<libc::pid_t, Errno> {
        if let Some(directory) = self.cgroup {
            let args = CloneArgs {
                flags: CLONE_INTO_CGROUP,
                exit_signal: libc::SIGCHLD as u64,
                cgroup: directory as u64,
                ..CloneArgs::default()
            };
            // SAFETY: without CLONE_VM and a stack this is fork(2), and `args` has the size it
            // says. The child runs only `be_born` and `fail`, which make system calls on memory
            // prepared before: no allocation, no lock, no destructor, no unwinding; then it
            // executes or _exits.
            let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
            if pid >= 0 {
                self.cgroup = None;
                return Ok(libc::pid_t::try_from(pid).unwrap_or(libc::pid_t::MAX));
            }
            match Errno::last() {
                short @ (Errno::EAGAIN | Errno::ENOMEM) => return Err(short),
                // No such call (a seccomp filter, a kernel before 5.7), or not into this cgroup:
                // the child tries for itself, and says which step failed.
                _refused => {}
            }
        }
        // SAFETY: as above.
        match unsafe { libc::fork() } {
            -1 => Err(Errno::last()),
            pid => Ok(pid),
        }
    }

    /// The child's way to exec. Returns only with the step that failed.
    fn be_born(&mut self) -> Result<Infallible, (SpawnStep, i32)> {
        self.reset_signals()?;
        self.close_others();
        // SAFETY: setsid(2) and umask(2) take no memory.
        checked(SpawnStep::Session, i64::from(unsafe { libc::setsid() }))?;
        if let Some(directory) = self.cgroup {
            let name = c"cgroup.procs".as_ptr();
            // SAFETY: openat(2) with a number and a literal.
            let procs = unsafe { libc::openat(directory, name, libc::O_WRONLY | libc::O_CLOEXEC) };
            checked(SpawnStep::Cgroup, i64::from(procs))?;
            write_whole(SpawnStep::Cgroup, procs, b"0\n")?;
        }
        if let Some(mask) = self.plan.umask {
            // SAFETY: as above.
            unsafe { libc::umask(mask & 0o777) };
        }
        self.limit(Nofile::Without)?;
        self.set_nice_and_oom()?;
        self.arrange_fds()?;
        // After the fds: with more of them open than the new limit, nothing could be duplicated.
        self.limit(Nofile::Only)?;
        self.change_ids()?;
        if self.plan.no_new_privs {
            // SAFETY: prctl(2) with numbers only.
            let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64) };
            checked(SpawnStep::NoNewPrivileges, i64::from(done))?;
        }
        if let Some(cwd) = &self.plan.cwd {
            // SAFETY: `cwd` is NUL-terminated and lives in the plan.
            checked(SpawnStep::Chdir, i64::from(unsafe { libc::chdir(cwd.as_ptr()) }))?;
        }
        self.mark_the_rest_cloexec()?;
        self.write_pid();
        self.unblock_and_execute()
    }

    /// Into memory that was made before the fork; `env` points to it.
    fn write_pid(&mut self) {
        // SAFETY: getpid(2) takes nothing. By raw call: no cache of the parent's answer.
        let pid = unsafe { libc::syscall(libc::SYS_getpid) };
        for (text, from) in &mut self.pid_env {
            let mut left = u64::try_from(pid).unwrap_or(0);
            let mut digits = [0_u8; PID_DIGITS_MAX];
            let mut len = 0;
            for digit in &mut digits {
                *digit = b'0' + u8::try_from(left % 10).unwrap_or(0);
                left /= 10;
                len += 1;
                if left == 0 {
                    break;
                }
            }
            let places = text.iter_mut().skip(*from);
            for (place, digit) in places.zip(digits.iter().take(len).rev()) {
                *place = *digit;
            }
        }
    }

    /// All 64 to default. By raw call, because glibc refuses 32 and 33, which a parent may have
    /// left ignored. KILL and STOP say EINVAL and need nothing.
    fn reset_signals(&self) -> Step {
        // sa_handler, sa_flags, sa_restorer, sa_mask: SIG_DFL is 0, and so is everything else.
        let default = [0_u64; 4];
        for signal in 1..=64_i64 {
            if signal == i64::from(libc::SIGKILL) || signal == i64::from(libc::SIGSTOP) {
                continue;
            }
            let no_old = ptr::null_mut::<u64>();
            // SAFETY: `default` has the size of the kernel's struct sigaction with its 8-byte mask.
            let done =
                unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), no_old, 8_usize) };
            checked(SpawnStep::Signals, done)?;
        }
        Ok(())
    }

    fn limit(&self, which: Nofile) -> Step {
        for (resource, soft, hard) in &self.plan.rlimits {
            let is_nofile = i64::from(*resource) == i64::from(libc::RLIMIT_NOFILE);
            if is_nofile != (which == Nofile::Only) {
                continue;
            }
            let limit = libc::rlimit64 { rlim_cur: *soft, rlim_max: *hard };
            let no_old = ptr::null_mut::<libc::rlimit64>();
            // SAFETY: `limit` lives here; the kernel reads it and writes nothing.
            let done = unsafe {
                libc::syscall(libc::SYS_prlimit64, 0_i64, i64::from(*resource), &raw const limit, no_old)
            };
            checked(SpawnStep::Limits, done)?;
        }
        Ok(())
    }

    fn set_nice_and_oom(&self) -> Step {
        if let Some(nice) = self.plan.nice {
            // SAFETY: setpriority(2) with numbers only.
            let done = unsafe {
                libc::syscall(libc::SYS_setpriority, i64::from(libc::PRIO_PROCESS), 0_i64, i64::from(nice))
            };
            checked(SpawnStep::Nice, done)?;
        }
        let Some(score) = &self.oom_score_adj else {
            return Ok(());
        };
        // SAFETY: numbers and a NUL-terminated literal. An undumpable process does not own its
        // files in /proc, so the flag is set back first (exec would do the same a moment later).
        let fd = unsafe {
            libc::prctl(libc::PR_SET_DUMPABLE, 1_u64, 0_u64, 0_u64, 0_u64);
            libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC)
        };
        checked(SpawnStep::OomScore, i64::from(fd))?;
        write_whole(SpawnStep::OomScore, fd, score.as_bytes())
    }

    /// Moves every source above every target first, so that no dup2 hits a source still needed.
    fn arrange_fds(&mut self) -> Step {
        // SAFETY (all calls here): fcntl, dup2 and open work on fd numbers and a literal.
        self.report = self.raised(self.report)?;
        for at in 0..self.fds.len() {
            if let Some((source, _)) = self.fds.get(at).copied() {
                let moved = self.raised(source)?;
                if let Some(entry) = self.fds.get_mut(at) {
                    entry.0 = moved;
                }
            }
        }
        for number in 0..=2 {
            if self.fds.iter().any(|(_, target)| *target == number) {
                continue;
            }
            let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
            checked(SpawnStep::Fds, i64::from(null))?;
            let null = self.raised(null)?;
            checked(SpawnStep::Fds, i64::from(unsafe { libc::dup2(null, number) }))?;
        }
        for (source, target) in &self.fds {
            checked(SpawnStep::Fds, i64::from(unsafe { libc::dup2(*source, *target) }))?;
        }
        Ok(())
    }

    fn raised(&self, fd: RawFd) -> Result<RawFd, (SpawnStep, i32)> {
        if fd >= self.high {
            return Ok(fd);
        }
        // SAFETY: fcntl(2) with numbers only.
        let moved = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, self.high) };
        checked(SpawnStep::Fds, i64::from(moved))?;
        Ok(moved)
    }

    /// By raw calls: glibc's wrappers signal other threads, of which a forked child has none.
    fn change_ids(&self) -> Step {
        let Some(ids) = &self.plan.ids else {
            return Ok(());
        };
        let (gid, uid) = (i64::from(ids.gid), i64::from(ids.uid));
        // SAFETY: the list lives in the plan and `len` is its length; the rest are numbers.
        unsafe {
            let groups = libc::syscall(libc::SYS_setgroups, ids.groups.len(), ids.groups.as_ptr());
            checked(SpawnStep::Groups, groups)?;
            checked(SpawnStep::Gid, libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            checked(SpawnStep::Uid, libc::syscall(libc::SYS_setresuid, uid, uid, uid))
        }
    }

    /// A parent near its limit of fds leaves the child no room to move its own. Nothing hangs
    /// on success: `mark_the_rest_cloexec` has the last word.
    fn close_others(&self) {
        let mut from = 3;
        for end in self.needed.iter().copied().chain([RawFd::MAX]).filter(|fd| *fd > 2) {
            if from < end {
                // SAFETY: close_range(2) with numbers only; after fork these fds are the child's.
                unsafe { libc::syscall(libc::SYS_close_range, i64::from(from), i64::from(end - 1), 0_i64) };
            }
            from = end.saturating_add(1);
        }
    }

    /// Everything from 3 up but the declared targets closes at exec; the report pipe must live
    /// until then, so it is marked and not closed.
    fn mark_the_rest_cloexec(&self) -> Step {
        let mut from = 3;
        for kept in &self.kept {
            self.mark_range(from, kept - 1)?;
            from = kept + 1;
        }
        self.mark_range(from, RawFd::MAX)
    }

    fn mark_range(&self, first: RawFd, last: RawFd) -> Step {
        if first > last {
            return Ok(());
        }
        let flags = i64::from(libc::CLOSE_RANGE_CLOEXEC);
        // SAFETY: close_range(2) and fcntl(2) with numbers only.
        let done = unsafe { libc::syscall(libc::SYS_close_range, i64::from(first), i64::from(last), flags) };
        if done == 0 {
            return Ok(());
        }
        // ENOSYS before Linux 5.9, EINVAL (flag unknown) before 5.11, EPERM under old seccomp
        // filters: one by one then. EBADF means that there is nothing to mark.
        for fd in first..=last.min(self.fds_end) {
            // SAFETY: as above.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        Ok(())
    }

    fn unblock_and_execute(&self) -> Result<Infallible, (SpawnStep, i32)> {
        let empty = 0_u64;
        let no_old = ptr::null_mut::<u64>();
        let how = i64::from(libc::SIG_SETMASK);
        // SAFETY: `empty` is the kernel's 8-byte mask; the pointer arrays end with null and
        // point into the plan, which outlives this call.
        unsafe {
            let done = libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const empty, no_old, 8_usize);
            checked(SpawnStep::Signals, done)?;
            libc::execve(self.plan.path.as_ptr(), self.argv.as_ptr(), self.env.as_ptr());
        }
        Err((SpawnStep::Exec, Errno::last_raw()))
    }

    /// Tells the parent and ends; 127 is what a shell says for "not executed".
    fn fail(&self, step: SpawnStep, errno: c_int) -> ! {
        let [e0, e1, e2, e3] = errno.to_le_bytes();
        let bytes = [step as u8, e0, e1, e2, e3];
        // SAFETY: five bytes from the stack to a pipe that takes 4,096 at once; _exit runs nothing.
        unsafe {
            libc::write(self.report, bytes.as_ptr().cast(), bytes.len());
            libc::_exit(127)
        }
    }
}

/// clone(2): the child begins in the cgroup whose directory `CloneArgs::cgroup` is.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// struct clone_args of linux/sched.h, with `cgroup` as its last field (5.7).
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nofile {
    Only,
    Without,
}

fn checked(step: SpawnStep, done: c_long) -> Step {
    if done < 0 { Err((step, Errno::last_raw())) } else { Ok(()) }
}

fn write_whole(step: SpawnStep, fd: RawFd, bytes: &[u8]) -> Step {
    // SAFETY: the pointer and length are those of a live slice.
    let done = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    checked(step, i64::try_from(done).unwrap_or(-1))
}

/// Digits of the largest pid.
const PID_DIGITS_MAX: usize = 10;

/// `NAME=` with as many zero bytes as a pid and its end need, and where the pid begins.
fn room_for_pid(name: &CString) -> (Vec<u8>, usize) {
    let mut text = name.as_bytes().to_vec();
    text.push(b'=');
    let from = text.len();
    text.resize(from + PID_DIGITS_MAX + 1, 0);
    (text, from)
}

/// Null-terminated array for execve(2).
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}
