//! A keeper as a process of its own. This test binary is also its file: executed with the
//! right mark it is the keeper, the engine, or a probe, before any test harness starts.
//!
//! Refuses: `sh` where a probe is meant. `dash` hides a leaked mask by clearing it.

#![allow(dead_code, reason = "shared by two test binaries, each uses a part")]

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use upright::base::exit::{Exit, RunId};
use upright::base::signal::Signal;
use upright::base::time::Monotonic;
use upright::keeper::client::{Attached, Client};
use upright::keeper::run;
use upright::keeper::wire::{ENGINE_SOCKET_FD, FdUse, News, Request, SpawnPlan};
use upright::sys::{clock, socket};

const ENGINE_ARG: &str = "upright-test-engine";
const KEEPER_MARK: &str = "UPRIGHT_TEST_KEEPER";
const SOCKET_MARK: &str = "UPRIGHT_TEST_SOCKET";
const CRASH_MARK: &str = "UPRIGHT_TEST_CRASH";
pub const PROBE_MARK: &str = "UPRIGHT_TEST_PROBE";
pub const TREE_MARK: &str = "UPRIGHT_TEST_TREE";

/// Longest any wait in these tests may take; far above what a loaded machine needs.
pub const DEADLINE: Duration = Duration::from_secs(30);

// Runs before main, so before Rust's runtime ignores SIGPIPE and installs its handlers.
// SAFETY: the loader calls what stands in .init_array with the C convention, once.
#[used]
#[unsafe(link_section = ".init_array")]
static EARLY: extern "C" fn() = early;

extern "C" fn early() {
    if std::env::var_os(PROBE_MARK).is_some() {
        leave(probe());
    }
    if let Some(file) = std::env::var_os(TREE_MARK) {
        grow_tree(&PathBuf::from(file));
    }
    let called = std::env::args_os().next();
    if called.is_some_and(|name| name == ENGINE_ARG) {
        leave(engine());
    }
    if std::env::var_os(KEEPER_MARK).is_some() {
        let argv = vec![CString::new(ENGINE_ARG).expect("no NUL")];
        leave(run::run(Vec::new(), argv));
    }
}

fn leave(code: i32) -> ! {
    // SAFETY: ends this process at once; nothing after it is wanted.
    unsafe { libc::_exit(code) }
}

/// Writes what a child inherited to fd 1.
fn probe() -> i32 {
    let mut out = String::new();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines() {
        let name = line.split(':').next().unwrap_or("");
        let wanted = ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "Uid", "Gid", "Groups", "NoNewPrivs", "Umask"];
        if wanted.contains(&name) {
            let words: Vec<&str> = line.split_whitespace().collect();
            out += &format!("{}\n", words.join(" "));
        }
    }
    let mut fds: Vec<i32> = Vec::new();
    for fd in 0..1024 {
        // SAFETY: asks about a number only.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0 {
            fds.push(fd);
        }
    }
    out += &format!("fds: {fds:?}\n");
    for line in fs::read_to_string("/proc/self/limits").unwrap_or_default().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        out += &format!("limit {}\n", words.join(" "));
    }
    let environ = fs::read("/proc/self/environ").unwrap_or_default();
    out += &format!("environ: {:?}\n", String::from_utf8_lossy(&environ));
    out += &format!(
        "cmdline: {:?}\n",
        String::from_utf8_lossy(&fs::read("/proc/self/cmdline").unwrap_or_default())
    );
    out += &format!("oom_score_adj: {}", fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default());
    out += &format!("cwd: {}\n", std::env::current_dir().unwrap_or_default().display());
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let mine = std::process::id().to_string();
    let own = |at: usize| after.get(at).is_some_and(|value| *value == mine);
    out +=
        &format!("own group: {} own session: {} nice: {}\n", own(2), own(3), after.get(16).unwrap_or(&"?"));
    out += &format!("cgroup: {}", fs::read_to_string("/proc/self/cgroup").unwrap_or_default());
    i32::from(io::stdout().write_all(out.as_bytes()).and_then(|()| io::stdout().flush()).is_err())
}

/// A service that is hard to end: a child that double-forked into a session of its own, all
/// deaf to SIGTERM. Writes both pids, then sleeps.
fn grow_tree(file: &PathBuf) -> ! {
    // SAFETY: this process is single-threaded (nothing has started a thread before main), and
    // each branch ends in pause.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        if libc::fork() == 0 {
            libc::setsid();
            if libc::fork() != 0 {
                libc::_exit(0);
            }
        }
        let text = format!("{} ", libc::getpid());
        let open = fs::OpenOptions::new().append(true).create(true).open(file);
        let _ = open.and_then(|mut file| file.write_all(text.as_bytes()));
        loop {
            libc::pause();
        }
    }
}

/// Hands its end of the keeper's socket to the test, and lives until the test lets go of it.
fn engine() -> i32 {
    if std::env::var_os(CRASH_MARK).is_some() {
        return 9;
    }
    let Some(path) = std::env::var_os(SOCKET_MARK) else {
        return 90;
    };
    if PathBuf::from(&path).with_extension("broken").exists() {
        return 9;
    }
    let Ok(mut test) = UnixStream::connect(path) else {
        return 91;
    };
    // SAFETY: the keeper left the socket there; borrowed for one call.
    let inherited = unsafe { std::os::fd::BorrowedFd::borrow_raw(ENGINE_SOCKET_FD) };
    loop {
        match socket::send(&test, b"engine", &[inherited]) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _ = poll(&mut [], PollTimeout::from(2_u8));
            }
            Err(_) => return 92,
        }
    }
    let _ = test.read(&mut [0; 1]);
    0
}

/// What the keeper's own parent leaves it to inherit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    Clean,
    /// Leaks fds 7 and 9, blocks TERM, HUP, USR1 and 40, ignores INT, PIPE and 33.
    Dirty,
    /// Allows 48 open fds and no more.
    Poor,
}

pub struct Keeper {
    child: Child,
    listener: UnixListener,
    pub dir: tempfile::TempDir,
    pub client: Client,
    pub attached: Attached,
    pub engine_pid: i32,
    engine: UnixStream,
    spawned: Vec<RunId>,
}

pub fn keeper_command(parent: Parent) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.env(KEEPER_MARK, "1").stdin(Stdio::null()).stdout(Stdio::null());
    if parent == Parent::Dirty {
        // SAFETY: only system calls on local memory between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::dup2(0, 7);
                libc::dup2(0, 9);
                let mut mask = std::mem::zeroed();
                libc::sigemptyset(&mut mask);
                for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, 40] {
                    libc::sigaddset(&mut mask, signal);
                }
                libc::sigprocmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut());
                libc::signal(libc::SIGINT, libc::SIG_IGN);
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                let ignore = [libc::SIG_IGN as u64, 0, 0, 0];
                let none = std::ptr::null_mut::<u64>();
                libc::syscall(libc::SYS_rt_sigaction, 33_i64, ignore.as_ptr(), none, 8_usize);
                Ok(())
            });
        }
    }
    if parent == Parent::Poor {
        // SAFETY: one system call on local memory.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: 48, rlim_max: 48 };
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
                Ok(())
            });
        }
    }
    command
}

impl Keeper {
    pub fn start(parent: Parent) -> Keeper {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("test.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let stderr = fs::File::create(dir.path().join("stderr")).expect("stderr");
        let child = keeper_command(parent).env(SOCKET_MARK, &path).stderr(stderr).spawn().expect("keeper");
        let (client, attached, engine_pid, engine) = accept_engine(&listener);
        Keeper { child, listener, dir, client, attached, engine_pid, engine, spawned: Vec::new() }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pid")
    }

    /// SIGKILL to the engine, and the next one attached.
    pub fn replace_engine(&mut self) {
        self.kill_engine();
        self.await_engine();
    }

    pub fn kill_engine(&mut self) {
        kill(self.engine_pid, libc::SIGKILL);
        // The duplicate that the test holds is an engine's socket too.
        let (mine, _other) = socket::seqpacket_pair().expect("pair");
        self.client = Client::over(mine).expect("client");
    }

    /// Every engine from now on dies at its start.
    pub fn break_engines(&self) {
        fs::write(self.dir.path().join("test.broken"), "").expect("write");
    }

    pub fn await_engine(&mut self) {
        let (client, attached, engine_pid, engine) = accept_engine(&self.listener);
        (self.client, self.attached, self.engine_pid, self.engine) = (client, attached, engine_pid, engine);
    }

    pub fn spawn(&mut self, run: u64, plan: SpawnPlan, fds: Vec<(FdUse, OwnedFd)>) {
        self.spawned.push(RunId(run));
        let tag = format!("tag-{run}").into_bytes();
        self.client.send(Request::Spawn { run: RunId(run), tag, plan, fds }).expect("spawn");
    }

    pub fn next(&mut self) -> News {
        self.next_before(clock::monotonic() + DEADLINE).expect("news in time")
    }

    pub fn next_before(&mut self, deadline: Monotonic) -> Option<News> {
        loop {
            if let Some(news) = self.client.recv().expect("keeper") {
                return Some(news);
            }
            match self.client.wait(deadline) {
                Ok(()) => {}
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                    return None;
                }
            }
        }
    }

    /// The pid of this run, when its exec succeeded.
    pub fn await_executed(&mut self, run: u64) -> i32 {
        let mut known = 0;
        loop {
            match self.next() {
                News::Spawned { run: RunId(found), pid, .. } if found == run => known = pid,
                News::Executed { run: RunId(found) } if found == run => return known,
                News::Exited { run: RunId(found), exit, .. } if found == run => panic!("run {run} {exit}"),
                _ => {}
            }
        }
    }

    pub fn await_exit(&mut self, run: u64) -> Exit {
        loop {
            if let News::Exited { run: RunId(found), exit, .. } = self.next()
                && found == run
            {
                return exit;
            }
        }
    }

    /// `End`, and the keeper's exit code.
    pub fn end(mut self, code: u8) -> Option<i32> {
        self.client.send(Request::End { code }).expect("end");
        let _ = self.engine.shutdown(std::net::Shutdown::Both);
        wait_child(&mut self.child)
    }

    pub fn signal(&self, signal: i32) {
        kill(self.pid(), signal);
    }

    pub fn wait(&mut self) -> Option<i32> {
        wait_child(&mut self.child)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        for run in &self.spawned {
            let _ = self.client.send(Request::Signal { run: *run, signal: Signal::KILL });
        }
        let _ = self.client.send(Request::End { code: 0 });
        let _ = self.engine.shutdown(std::net::Shutdown::Both);
        if std::thread::panicking() {
            let text = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
            let _ = writeln!(io::stderr(), "keeper's stderr: {text}");
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

fn accept_engine(listener: &UnixListener) -> (Client, Attached, i32, UnixStream) {
    await_readable(listener);
    let (stream, _) = listener.accept().expect("accept");
    let engine_pid = socket::peer_credentials(&stream).expect("peer").pid;
    await_readable(&stream);
    let mut fds = Vec::new();
    socket::recv(&stream, &mut [0; 16], &mut fds).expect("engine's socket");
    let mut client = Client::over(fds.pop().expect("one fd")).expect("client");
    let attached = client.attach().expect("attach");
    (client, attached, engine_pid, stream)
}

pub fn await_readable(fd: impl AsFd) {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(DEADLINE).expect("timeout");
    assert_eq!(poll(&mut fds, timeout), Ok(1), "nothing came in time");
}

/// The exit code, None for a signal. Awaits the pidfd, bounded.
pub fn wait_child(child: &mut Child) -> Option<i32> {
    let pid = i64::from(child.id());
    // SAFETY: pidfd_open(2) of our own unreaped child.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0_i64) };
    let raw = i32::try_from(raw).expect("pidfd");
    // SAFETY: just made for us.
    let pidfd: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(raw) };
    await_readable(&pidfd);
    child.wait().expect("wait").code()
}

pub fn kill(pid: i32, signal: i32) {
    assert!(pid > 1);
    // SAFETY: a process that this test started.
    unsafe { libc::kill(pid, signal) };
}

/// Looks again until `done`, bounded; for facts in /proc that no fd tells.
pub fn await_that(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = clock::monotonic() + DEADLINE;
    while !done() {
        assert!(clock::monotonic() < deadline, "not in time: {what}");
        let _ = poll(&mut [], PollTimeout::from(2_u8));
    }
}

pub fn plan(path: &str, argv: &[&str]) -> SpawnPlan {
    SpawnPlan {
        path: path.into(),
        argv: argv.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/usr/bin:/bin".to_vec()],
        umask: 0o022,
        ..SpawnPlan::default()
    }
}

/// `sh -c script`, for everything that is not about inheritance.
pub fn shell(script: &str) -> SpawnPlan {
    plan("/bin/sh", &["sh", "-c", script])
}

/// This binary as a probe. By the magic link, so that a user who cannot reach our directory
/// can execute it all the same.
pub fn probe_plan() -> SpawnPlan {
    let mut plan = plan("/proc/self/exe", &["probe", "arg"]);
    plan.env = vec![format!("{PROBE_MARK}=1").into_bytes(), b"ONLY=this".to_vec()];
    plan
}

pub fn file_text(file: &fs::File) -> String {
    let len = usize::try_from(file.metadata().expect("stat").len()).expect("len");
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).expect("read");
    String::from_utf8(bytes).expect("utf-8")
}
