//! SIGKILL to the engine at an exact system call: a process of its own that traces the keeper,
//! lets it and its services run at full speed, and counts every stop of each engine it starts.
//!
//! Refuses: random moments. A point is the n-th entry into, or return from, a system call since
//! execve(2), over all threads; the process is dead before its next instruction.
//!
//! The tracer is a process, not a thread: a stop of a traced process may be reported to any
//! thread that waits, and the harness waits for the keeper, too.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Names the test that is the tracer when it is asked to be it.
const ENTRANCE: &str = "the_tracer_itself";
const ENV_KEEPER: &str = "UPRIGHT_TRACE_KEEPER";
const ENV_TARGETS: &str = "UPRIGHT_TRACE_TARGETS";
const ENV_LIFE_MS: &str = "UPRIGHT_TRACE_LIFE_MS";
const ENV_WITHIN_S: &str = "UPRIGHT_TRACE_WITHIN_S";

/// Before each line of ours: the test harness writes on the same stdout.
const MARK: &str = "@point ";

/// CLOCK_BOOTTIME, which the records count in.
pub fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has it");
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// Where in a system call the engine died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Edge {
    /// Before it was carried out.
    Before,
    /// While it waited (the life was over before the count was reached).
    Within,
    /// After it was carried out, before the engine knew.
    After,
}

/// One death.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    pub engine: i32,
    pub call: String,
    /// The how-manieth of this call in the engine's life, from 1.
    pub nth: u64,
    pub edge: Edge,
    /// Stops since execve(2), two a call.
    pub stops: u64,
    pub target: u64,
    pub began_ns: u64,
    pub died_ns: u64,
}

/// What the engines of one keeper are killed at.
#[derive(Clone, Debug)]
pub struct Orders {
    pub keeper: Pid,
    /// The stop at which the first, second, … engine dies.
    pub targets: Vec<u64>,
    /// An engine that has not come to its stop by then dies where it is.
    pub life: Duration,
    /// The tracer ends by then, done or not.
    pub within: Duration,
}

/// The running tracer.
pub struct Tracer {
    child: Child,
    points: mpsc::Receiver<Point>,
}

impl Tracer {
    pub fn start(orders: &Orders) -> Tracer {
        let targets: Vec<String> = orders.targets.iter().map(u64::to_string).collect();
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args([ENTRANCE, "--exact", "--nocapture", "--test-threads=1"])
            .env(ENV_KEEPER, orders.keeper.to_string())
            .env(ENV_TARGETS, targets.join(" "))
            .env(ENV_LIFE_MS, orders.life.as_millis().to_string())
            .env(ENV_WITHIN_S, orders.within.as_secs().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test runs again");
        let out = child.stdout.take().expect("a pipe");
        let (sender, points) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // The harness may have begun a line of its own before ours.
                let Some((_, json)) = line.split_once(MARK) else { continue };
                let point = serde_json::from_str(json).expect("the tracer speaks JSON");
                let _ = sender.send(point); // the test has failed
            }
        });
        Tracer { child, points }
    }

    /// The next death; none when there are no more.
    pub fn next(&self) -> Option<Point> {
        self.points.recv().ok()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended; what it traced runs on
        let _ = self.child.wait();
    }
}

/// The other side: called by the test named `ENTRANCE`. Without orders it does nothing.
pub fn serve() {
    let word = |name: &str| std::env::var(name).ok();
    let (Some(keeper), Some(targets)) = (word(ENV_KEEPER), word(ENV_TARGETS)) else { return };
    let number = |name: &str| word(name).and_then(|text| text.parse().ok()).expect("a number");
    let targets = targets.split_whitespace().map(|text| text.parse().expect("a stop")).collect();
    let orders = Orders {
        keeper: Pid::from_raw(keeper.parse().expect("a pid")),
        targets,
        life: Duration::from_millis(number(ENV_LIFE_MS)),
        within: Duration::from_secs(number(ENV_WITHIN_S)),
    };
    let within = orders.within;
    std::thread::spawn(move || {
        // A tracer that ends lets go of everything it traces.
        std::thread::sleep(within);
        std::process::exit(3);
    });
    Trace::of(orders).run();
}

/// A traced engine, from execve to its end.
struct Life {
    pid: Pid,
    target: u64,
    began_ns: u64,
    stops: u64,
    /// How often each call was entered.
    entered: BTreeMap<i64, u64>,
    /// The call that each thread is in.
    inside: BTreeMap<Pid, i64>,
    killed: Option<Point>,
}

/// The engine to be killed when its life is over, whoever notices it.
type Overdue = Arc<Mutex<Option<(Pid, Instant)>>>;

struct Trace {
    orders: Orders,
    next: usize,
    life: Option<Life>,
    overdue: Overdue,
}

impl Trace {
    fn of(orders: Orders) -> Trace {
        let overdue: Overdue = Arc::default();
        let watched = Arc::clone(&overdue);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(20));
                let mut slot = watched.lock().expect("nobody panics with it");
                if let Some((pid, _)) = slot.take_if(|(_, at)| *at <= Instant::now()) {
                    let _ = kill(pid, Signal::SIGKILL); // it is not reaped while we trace it
                }
            }
        });
        Trace { orders, next: 0, life: None, overdue }
    }

    fn run(mut self) {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC;
        ptrace::seize(self.orders.keeper, options).expect("the keeper can be traced");
        // The engine that lives already is not traced; the next one is, from its first call.
        kill(self.engine_of_keeper(), Signal::SIGKILL).expect("it lives");
        while self.next < self.orders.targets.len() || self.life.is_some() {
            match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(status) => self.on(status),
                Err(Errno::EINTR) => {}
                Err(_) => return, // nothing is traced any more
            }
        }
    }

    fn engine_of_keeper(&self) -> Pid {
        let children = super::proc::children(self.orders.keeper);
        let engine = children.iter().find(|process| is_engine(process.pid));
        engine.expect("the keeper has an engine").pid
    }

    fn on(&mut self, status: WaitStatus) {
        let Some(pid) = status.pid() else { return };
        let in_life =
            self.life.as_ref().is_some_and(|life| pid == life.pid || life.inside.contains_key(&pid));
        match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => self.on_end(pid),
            WaitStatus::PtraceSyscall(_) => self.on_syscall(pid),
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => self.on_exec(pid),
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_CLONE) if in_life => {
                if let (Ok(thread), Some(life)) = (ptrace::getevent(pid), &mut self.life) {
                    let thread = Pid::from_raw(i32::try_from(thread).unwrap_or(0));
                    life.inside.entry(thread).or_insert(NOWHERE);
                }
                let _ = ptrace::syscall(pid, None); // it may have been killed just now
            }
            WaitStatus::PtraceEvent(..) => self.go_on(pid, None),
            WaitStatus::Stopped(_, signal) => self.go_on(pid, Some(signal)),
            WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
        }
    }

    /// Threads of an engine stop at every call; everything else runs until it executes.
    fn go_on(&mut self, pid: Pid, signal: Option<Signal>) {
        let of_engine = tgid(pid).zip(self.life.as_ref()).is_some_and(|(tgid, life)| tgid == life.pid);
        if of_engine && let Some(life) = &mut self.life {
            life.inside.entry(pid).or_insert(NOWHERE);
        }
        let _ = if of_engine { ptrace::syscall(pid, signal) } else { ptrace::cont(pid, signal) };
    }

    fn on_exec(&mut self, pid: Pid) {
        if !is_engine(pid) {
            let _ = ptrace::detach(pid, None); // a service: not ours
            return;
        }
        let Some(target) = self.orders.targets.get(self.next).copied() else {
            let _ = ptrace::detach(pid, None);
            return;
        };
        self.next += 1;
        // It returns from execve(2) next.
        let inside = BTreeMap::from([(pid, libc::SYS_execve)]);
        let entered = BTreeMap::from([(libc::SYS_execve, 1)]);
        let began_ns = boottime_ns();
        self.life = Some(Life { pid, target, began_ns, stops: 0, entered, inside, killed: None });
        *self.overdue.lock().expect("nobody panics with it") = Some((pid, Instant::now() + self.orders.life));
        let _ = ptrace::syscall(pid, None); // it may have been killed just now
    }

    fn on_syscall(&mut self, pid: Pid) {
        let Some(life) = &mut self.life else { return };
        let was = life.inside.get(&pid).copied().unwrap_or(NOWHERE);
        let (call, edge) = if was == NOWHERE {
            let call = call_of(pid).unwrap_or(NOWHERE);
            *life.entered.entry(call).or_default() += 1;
            life.inside.insert(pid, call);
            (call, Edge::Before)
        } else {
            life.inside.insert(pid, NOWHERE);
            (was, Edge::After)
        };
        life.stops += 1;
        if life.stops >= life.target && life.killed.is_none() {
            let _ = kill(life.pid, Signal::SIGKILL); // stopped, so it lives, unless it was overdue just now
            life.killed = Some(life.point(call, edge));
            return;
        }
        let _ = ptrace::syscall(pid, None); // it may have been killed just now
    }

    fn on_end(&mut self, pid: Pid) {
        let Some(life) = &self.life else { return };
        if pid != life.pid {
            return;
        }
        *self.overdue.lock().expect("nobody panics with it") = None;
        let Some(mut life) = self.life.take() else { return };
        let waits = life.inside.get(&pid).copied().unwrap_or(NOWHERE);
        let mut point = life.killed.take().unwrap_or_else(|| life.point(waits, Edge::Within));
        point.died_ns = boottime_ns();
        let line = serde_json::to_string(&point).expect("plain data");
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{MARK}{line}").and_then(|()| out.flush()); // the test has ended
    }
}

impl Life {
    fn point(&self, call: i64, edge: Edge) -> Point {
        Point {
            engine: self.pid.as_raw(),
            call: name_of(call),
            nth: self.entered.get(&call).copied().unwrap_or(0),
            edge,
            stops: self.stops,
            target: self.target,
            began_ns: self.began_ns,
            died_ns: boottime_ns(),
        }
    }
}

/// Not in a system call.
const NOWHERE: i64 = -1;

/// The number of the call that a stopped thread is in.
fn call_of(thread: Pid) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/{thread}/syscall")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

pub fn tgid(thread: Pid) -> Option<Pid> {
    let text = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    Some(Pid::from_raw(number.trim().parse().ok()?))
}

/// `upright engine …`, which the keeper executes.
pub fn is_engine(pid: Pid) -> bool {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).nth(1) == Some(b"engine")
}

/// The name of a call, where we know it.
pub fn name_of(call: i64) -> String {
    macro_rules! names {
        ($($name:ident $number:ident,)*) => { &[$((libc::$number, stringify!($name)),)*] };
    }
    if call == NOWHERE {
        return "no call".to_owned();
    }
    let known: &[(i64, &str)] = names! {
        accept4 SYS_accept4, bind SYS_bind, brk SYS_brk, clock_gettime SYS_clock_gettime,
        clock_nanosleep SYS_clock_nanosleep,
        clone SYS_clone, clone3 SYS_clone3, close SYS_close, connect SYS_connect, dup SYS_dup,
        dup3 SYS_dup3, epoll_create1 SYS_epoll_create1, epoll_ctl SYS_epoll_ctl,
        epoll_pwait SYS_epoll_pwait, epoll_pwait2 SYS_epoll_pwait2, eventfd2 SYS_eventfd2, execve SYS_execve, exit SYS_exit,
        exit_group SYS_exit_group, faccessat SYS_faccessat, fallocate SYS_fallocate,
        fchdir SYS_fchdir, fchmod SYS_fchmod, fchown SYS_fchown, fcntl SYS_fcntl,
        fdatasync SYS_fdatasync, flock SYS_flock, fstat SYS_fstat, fsync SYS_fsync,
        ftruncate SYS_ftruncate, futex SYS_futex, getcwd SYS_getcwd, getdents64 SYS_getdents64,
        getegid SYS_getegid, geteuid SYS_geteuid, getgid SYS_getgid, getpid SYS_getpid, getrandom SYS_getrandom,
        getsockname SYS_getsockname, getsockopt SYS_getsockopt, gettid SYS_gettid,
        getuid SYS_getuid, inotify_add_watch SYS_inotify_add_watch,
        inotify_init1 SYS_inotify_init1, ioctl SYS_ioctl, kill SYS_kill, listen SYS_listen,
        lseek SYS_lseek, madvise SYS_madvise, memfd_create SYS_memfd_create,
        mkdirat SYS_mkdirat, mmap SYS_mmap, mprotect SYS_mprotect, mremap SYS_mremap,
        munmap SYS_munmap, newfstatat SYS_newfstatat, openat SYS_openat,
        pidfd_open SYS_pidfd_open,
        pidfd_send_signal SYS_pidfd_send_signal, pipe2 SYS_pipe2, ppoll SYS_ppoll, prctl SYS_prctl,
        pread64 SYS_pread64, prlimit64 SYS_prlimit64, pwrite64 SYS_pwrite64, read SYS_read,
        readlinkat SYS_readlinkat, readv SYS_readv, recvfrom SYS_recvfrom, recvmsg SYS_recvmsg,
        renameat2 SYS_renameat2, rseq SYS_rseq, rt_sigaction SYS_rt_sigaction,
        rt_sigprocmask SYS_rt_sigprocmask, rt_sigreturn SYS_rt_sigreturn,
        sched_getaffinity SYS_sched_getaffinity, sched_yield SYS_sched_yield,
        sendmsg SYS_sendmsg, sendto SYS_sendto, set_robust_list SYS_set_robust_list,
        set_tid_address SYS_set_tid_address, setsockopt SYS_setsockopt, shutdown SYS_shutdown,
        sigaltstack SYS_sigaltstack, socket SYS_socket, socketpair SYS_socketpair,
        splice SYS_splice, statx SYS_statx, tee SYS_tee, timerfd_create SYS_timerfd_create,
        timerfd_settime SYS_timerfd_settime, tgkill SYS_tgkill, umask SYS_umask,
        uname SYS_uname, unlinkat SYS_unlinkat, waitid SYS_waitid, write SYS_write,
        writev SYS_writev,
    };
    // Calls that newer architectures do not have any more.
    #[cfg(target_arch = "x86_64")]
    let elder: &[(i64, &str)] = names! {
        access SYS_access, arch_prctl SYS_arch_prctl, chmod SYS_chmod, epoll_wait SYS_epoll_wait,
        dup2 SYS_dup2, fork SYS_fork, getrlimit SYS_getrlimit, link SYS_link, lstat SYS_lstat, mkdir SYS_mkdir,
        open SYS_open, pipe SYS_pipe, poll SYS_poll, readlink SYS_readlink, rename SYS_rename,
        rmdir SYS_rmdir, stat SYS_stat, unlink SYS_unlink, vfork SYS_vfork,
    };
    #[cfg(not(target_arch = "x86_64"))]
    let elder: &[(i64, &str)] = &[];
    let name = known.iter().chain(elder).find(|(number, _)| *number == call);
    name.map_or_else(|| format!("call {call}"), |(_, name)| (*name).to_owned())
}
