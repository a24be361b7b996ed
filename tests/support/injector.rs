//! Shortage at an exact system call: a process of its own that traces the keeper, its engines and
//! what it forks, and has chosen calls fail with a chosen errno instead of being carried out.
//!
//! Refuses: luck. A fault is the n-th call of its kind since it was asked for, over all threads,
//! and what was refused and what was let through is counted. Needs no seccomp and no kernel
//! option. On x86_64 only: elsewhere the number of a call is changed in another way.
//!
//! The tracer is a process, not a thread, as in `tracer`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::tracer::{is_engine, name_of, tgid};

/// Names the test that is the injector when it is asked to be it.
const ENTRANCE: &str = "the_injector_itself";
const ENV_KEEPER: &str = "UPRIGHT_INJECT_KEEPER";
const ENV_HOME: &str = "UPRIGHT_INJECT_HOME";

/// Before each line of ours: the test harness writes on the same stdout.
const MARK: &str = "@inject ";

/// Longest wait for an answer of the injector itself.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// The injector ends by then, done or not, and lets go of everything.
const WITHIN: Duration = Duration::from_secs(3 * 60 * 60);

/// Only where the number of a call can be changed.
pub const AVAILABLE: bool = cfg!(target_arch = "x86_64");

/// Who makes the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Whose {
    Keeper,
    /// Any thread of any engine.
    Engine,
    /// What the keeper forked, until it executes.
    Child,
}

/// What is to fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub whose: Whose,
    /// One call, or a class of them that is short together.
    pub calls: Vec<String>,
    pub errno: i32,
    /// The n-th that fits, from 1.
    pub nth: u64,
    /// So many that fit from there on.
    pub times: u64,
    /// Counted from the next engine's first call, not from now.
    pub from_exec: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Calls that fitted.
    pub seen: u64,
    /// Of those, the ones that failed by our hand.
    pub failed: u64,
}

/// How often each call was made: by whom, its name, and the errnos that it could have given.
pub type Counts = Vec<(Whose, String, u64)>;

#[derive(Serialize, Deserialize)]
enum Order {
    Arm(Fault),
    Disarm,
    /// The counts since the last time.
    Count,
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Ready,
    Armed,
    Disarmed(Tally),
    Counted(Counts),
}

/// The running injector.
pub struct Injector {
    child: Child,
    orders: ChildStdin,
    replies: mpsc::Receiver<Reply>,
}

impl Injector {
    /// Traces the keeper and its living engine from now on.
    pub fn start(keeper: Pid, home: &Path) -> Injector {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args([ENTRANCE, "--exact", "--nocapture", "--test-threads=1"])
            .env(ENV_KEEPER, keeper.to_string())
            .env(ENV_HOME, home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test runs again");
        let (out, orders) = (child.stdout.take().expect("a pipe"), child.stdin.take().expect("a pipe"));
        let (sender, replies) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                // The harness may have begun a line of its own before ours.
                let Some((_, json)) = line.split_once(MARK) else { continue };
                let _ = sender.send(serde_json::from_str(json).expect("JSON")); // the test has failed
            }
        });
        let injector = Injector { child, orders, replies };
        assert!(matches!(injector.reply(), Reply::Ready));
        injector
    }

    fn reply(&self) -> Reply {
        self.replies.recv_timeout(ANSWER_MAX).expect("the injector answers")
    }

    fn ask(&mut self, order: &Order) -> Reply {
        let line = serde_json::to_string(order).expect("plain data");
        writeln!(self.orders, "{line}").expect("the injector listens");
        self.reply()
    }

    pub fn arm(&mut self, fault: &Fault) {
        assert!(matches!(self.ask(&Order::Arm(fault.clone())), Reply::Armed));
    }

    /// Nothing fails any more.
    pub fn disarm(&mut self) -> Tally {
        match self.ask(&Order::Disarm) {
            Reply::Disarmed(tally) => tally,
            Reply::Ready | Reply::Armed | Reply::Counted(_) => panic!("another answer"),
        }
    }

    pub fn counts(&mut self) -> Counts {
        match self.ask(&Order::Count) {
            Reply::Counted(counts) => counts,
            Reply::Ready | Reply::Armed | Reply::Disarmed(_) => panic!("another answer"),
        }
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended; what it traced runs on
        let _ = self.child.wait();
    }
}

/// The other side: called by the test named `ENTRANCE`. Without orders it does nothing.
pub fn serve() {
    let (Ok(keeper), Some(home)) = (std::env::var(ENV_KEEPER), std::env::var_os(ENV_HOME)) else { return };
    std::thread::spawn(|| {
        // A tracer that ends lets go of everything it traces.
        std::thread::sleep(WITHIN);
        std::process::exit(3);
    });
    let keeper = Pid::from_raw(keeper.parse().expect("a pid"));
    let armed: Arc<Mutex<Armed>> = Arc::default();
    let mut trace = Trace { keeper, home: home.into(), threads: BTreeMap::new(), armed: Arc::clone(&armed) };
    trace.seize_all();
    say(&Reply::Ready);
    std::thread::spawn(move || take_orders(&armed));
    trace.run();
}

fn take_orders(armed: &Mutex<Armed>) {
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let order = serde_json::from_str(&line).expect("the test speaks JSON");
        let mut armed = armed.lock().expect("nobody panics with it");
        let reply = match order {
            Order::Arm(fault) => {
                armed.counting = !fault.from_exec;
                (armed.fault, armed.tally) = (Some(fault), Tally::default());
                Reply::Armed
            }
            Order::Disarm => {
                armed.fault = None;
                Reply::Disarmed(std::mem::take(&mut armed.tally))
            }
            Order::Count => {
                let counts = std::mem::take(&mut armed.counts);
                Reply::Counted(counts.into_iter().map(|((whose, call), n)| (whose, call, n)).collect())
            }
        };
        drop(armed);
        say(&reply);
    }
    std::process::exit(0); // the test has ended
}

fn say(reply: &Reply) {
    let line = serde_json::to_string(reply).expect("plain data");
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{MARK}{line}").and_then(|()| out.flush()); // the test has ended
}

#[derive(Default)]
struct Armed {
    fault: Option<Fault>,
    counting: bool,
    tally: Tally,
    counts: BTreeMap<(Whose, String), u64>,
}

struct Thread {
    whose: Whose,
    tgid: Pid,
    /// What the call that it is in answers, if it is not carried out.
    refused: Option<i32>,
}

struct Trace {
    keeper: Pid,
    home: PathBuf,
    threads: BTreeMap<Pid, Thread>,
    armed: Arc<Mutex<Armed>>,
}

impl Trace {
    fn seize_all(&mut self) {
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEEXEC;
        let engines = super::proc::children(self.keeper).into_iter().map(|process| process.pid);
        let engine = engines.into_iter().find(|pid| is_engine(*pid)).expect("the keeper has an engine");
        for (process, whose) in [(self.keeper, Whose::Keeper), (engine, Whose::Engine)] {
            let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("its threads");
            for task in tasks.flatten() {
                let thread = task.file_name().to_str().and_then(|name| name.parse().ok()).expect("a number");
                let thread = Pid::from_raw(thread);
                match ptrace::seize(thread, options) {
                    Err(Errno::ESRCH) => continue, // it has ended since we listed it
                    seized => seized.expect("it can be traced"),
                }
                self.threads.insert(thread, Thread { whose, tgid: process, refused: None });
                ptrace::interrupt(thread).expect("it lives");
            }
        }
    }

    fn run(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::__WALL)) {
            let Some(pid) = status.pid() else { continue };
            match status {
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => _ = self.threads.remove(&pid),
                WaitStatus::PtraceSyscall(_) => self.on_syscall(pid),
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => self.on_exec(pid),
                WaitStatus::PtraceEvent(..) => self.go_on(pid, None),
                WaitStatus::Stopped(_, signal) => self.go_on(pid, Some(signal)),
                WaitStatus::Continued(_) | WaitStatus::StillAlive => {}
            }
        }
    }

    fn go_on(&mut self, pid: Pid, signal: Option<Signal>) {
        self.know(pid);
        let _ = ptrace::syscall(pid, signal); // it may have been killed just now
    }

    /// A thread that is new here: of a process that is known, or a child of the keeper's.
    fn know(&mut self, pid: Pid) {
        if !self.threads.contains_key(&pid)
            && let Some(tgid) = tgid(pid)
        {
            let known = self.threads.values().find(|thread| thread.tgid == tgid);
            let whose = known.map_or(Whose::Child, |thread| thread.whose);
            self.threads.insert(pid, Thread { whose, tgid, refused: None });
        }
    }

    fn on_exec(&mut self, pid: Pid) {
        if !is_engine(pid) {
            self.threads.remove(&pid);
            let _ = ptrace::detach(pid, None); // a service: not ours
            return;
        }
        self.threads.insert(pid, Thread { whose: Whose::Engine, tgid: pid, refused: None });
        self.armed.lock().expect("nobody panics with it").counting = true;
        let _ = ptrace::syscall(pid, None); // it may have been killed just now
    }

    fn on_syscall(&mut self, pid: Pid) {
        self.know(pid);
        let refused = match ptrace::syscall_info(pid).map(|info| info.op) {
            Ok(libc::PTRACE_SYSCALL_INFO_ENTRY) => {
                call_of(pid).and_then(|(number, args)| self.on_entry(pid, number, &args))
            }
            Ok(_) => {
                if let Some(errno) = self.threads.get_mut(&pid).and_then(|thread| thread.refused.take()) {
                    answer(pid, errno);
                }
                None
            }
            Err(_) => None, // it may have been killed just now
        };
        if let Some(thread) = self.threads.get_mut(&pid) {
            thread.refused = refused;
        }
        let _ = ptrace::syscall(pid, None); // it may have been killed just now
    }

    /// Whether this call fails, and how.
    fn on_entry(&mut self, pid: Pid, nr: i64, args: &[u64; 6]) -> Option<i32> {
        let thread = self.threads.get(&pid)?;
        let call = name_of(nr);
        let mut armed = self.armed.lock().expect("nobody panics with it");
        if can_fail(&call, None, thread.tgid, args, &self.home) {
            *armed.counts.entry((thread.whose, call.clone())).or_default() += 1;
        }
        let Armed { fault: Some(fault), counting: true, tally, .. } = &mut *armed else { return None };
        if fault.whose != thread.whose || !fault.calls.contains(&call) {
            return None;
        }
        if !can_fail(&call, Some(fault.errno), thread.tgid, args, &self.home) {
            return None;
        }
        tally.seen += 1;
        if tally.seen < fault.nth || tally.seen - fault.nth >= fault.times {
            return None;
        }
        tally.failed += 1;
        refuse(pid, &call);
        (call != "brk").then_some(fault.errno)
    }
}

/// Whether the kernel could answer this call so: the limits of what a shortage can be.
fn can_fail(call: &str, errno: Option<i32>, process: Pid, args: &[u64; 6], home: &Path) -> bool {
    let fd = args[0];
    let is_file = || link_of(process, fd).is_some_and(|path| path.starts_with(home) && !is_socket(&path));
    match call {
        // A disk that is full matters to whoever makes a file.
        "openat" | "open" => {
            let flags = if call == "open" { args[1] } else { args[2] };
            errno != Some(libc::ENOSPC) || flags & u64::from(libc::O_CREAT.unsigned_abs()) != 0
        }
        "fcntl" => {
            let command = i32::try_from(args[1]).unwrap_or(0);
            match errno {
                Some(libc::ENOLCK) => [libc::F_SETLK, libc::F_OFD_SETLK].contains(&command),
                _ => [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC].contains(&command),
            }
        }
        // Only what could be answered so: a disk's errors are those of files of the home.
        "statx" | "newfstatat" | "fstat" if errno == Some(libc::EIO) => {
            let flags = match call {
                "statx" => args[2],
                "newfstatat" => args[3],
                _ => u64::from(libc::AT_EMPTY_PATH.unsigned_abs()),
            };
            flags & u64::from(libc::AT_EMPTY_PATH.unsigned_abs()) == 0 || is_file()
        }
        "epoll_ctl" => i32::try_from(args[1]) == Ok(libc::EPOLL_CTL_ADD),
        // The offset argument of a splice to a file: its fd is the third.
        "splice" => link_of(process, args[2]).is_some_and(|path| path.starts_with(home)),
        "read" | "pread64" | "readv" | "write" | "pwrite64" | "writev" | "fsync" | "fdatasync"
        | "ftruncate" | "fallocate" | "getdents64" | "flock" => is_file(),
        _ => true,
    }
}

fn link_of(process: Pid, fd: u64) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/fd/{fd}")).ok()
}

fn is_socket(path: &Path) -> bool {
    path.extension().is_some_and(|word| word == "sock")
}

/// The number and the arguments of the call that a stopped thread is about to make.
#[cfg(target_arch = "x86_64")]
fn call_of(pid: Pid) -> Option<(i64, [u64; 6])> {
    let regs = ptrace::getregs(pid).ok()?;
    Some((regs.orig_rax.cast_signed(), [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]))
}

#[cfg(target_arch = "x86_64")]
fn refuse(pid: Pid, call: &str) {
    let Ok(mut regs) = ptrace::getregs(pid) else { return };
    if call == "brk" {
        regs.rdi = 0; // how brk(2) refuses: it answers with the break as it is
    } else {
        regs.orig_rax = u64::MAX; // no such call: nothing is done
    }
    let _ = ptrace::setregs(pid, regs); // it may have been killed just now
}

#[cfg(target_arch = "x86_64")]
fn answer(pid: Pid, errno: i32) {
    let Ok(mut regs) = ptrace::getregs(pid) else { return };
    regs.rax = i64::from(-errno).cast_unsigned();
    let _ = ptrace::setregs(pid, regs); // as above
}

#[cfg(not(target_arch = "x86_64"))]
fn call_of(_: Pid) -> Option<(i64, [u64; 6])> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn refuse(_: Pid, _: &str) {}

#[cfg(not(target_arch = "x86_64"))]
fn answer(_: Pid, _: i32) {}
