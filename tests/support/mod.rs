//! The harness of the black-box tests: a home in a temporary directory, the daemon in it, its
//! command line and its socket, and at the end the proof that nothing is left.
//!
//! Refuses: engine code. A test sees what a user sees: the binary, the socket, the files, /proc.
#![allow(dead_code, reason = "each test binary uses its part of this module")]

pub mod browser;
pub mod builds;
pub mod client;
pub mod drills;
pub mod http;
pub mod lines;
pub mod injector;
pub mod oracle;
pub mod proc;
pub mod raw;
pub mod receivers;
pub mod stack;
pub mod tracer;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::Value;
use tempfile::TempDir;

use proc::Process;

/// Longest until a started daemon answers its socket.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest that a daemon may take to stop everything after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks, where one has to look again and again.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The binary under test.
pub const UPRIGHT: &str = env!("CARGO_BIN_EXE_upright");

/// A port of 127.0.0.1 that nobody listens on at the moment.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// True when the test has to be left out, because this account may not do what it does; the
/// reason goes to stderr.
pub fn skip(lacking: Option<&str>) -> bool {
    let Some(lacking) = lacking else { return false };
    eprintln!("SKIPPED: cannot run without {lacking}");
    true
}

/// The same for a tool. Under `tests/run`, which has found everything, its lack is a failure.
pub fn skip_tool(lacking: Option<&str>) -> bool {
    let complete = std::env::var_os("UPRIGHT_TESTS_COMPLETE").is_some();
    assert!(lacking.is_none() || !complete, "cannot run without {lacking:?}");
    skip(lacking)
}

/// Looks until `look` answers; panics with `what` at the deadline.
///
/// Asking again is for things that nobody reports: a file, /proc, a socket that is not there
/// yet, and states. A state may have been entered before one could subscribe, so the question
/// is "is it so now", and an event stream answers another one. Everything else is awaited as
/// an event (`Home::await_event`).
pub fn eventually<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The daemon's process, waited for by a thread, so that its end is an event.
struct Daemon {
    pid: Pid,
    ended: mpsc::Receiver<ExitStatus>,
}

impl Daemon {
    fn watch(mut child: Child) -> Daemon {
        let pid = Pid::from_raw(child.id().cast_signed());
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let status = child.wait().expect("the daemon is our child");
            let _ = sender.send(status); // the test may have ended
        });
        Daemon { pid, ended }
    }
}

/// A home, and the daemon in it while there is one. Dropped, it stops the daemon and asserts
/// that no process, socket or cgroup is left.
pub struct Home {
    dir: TempDir,
    exe: PathBuf,
    daemon: Option<Daemon>,
    cgroups: Vec<PathBuf>,
}

impl Home {
    pub fn new() -> Home {
        let dir = tempfile::Builder::new().prefix("upright-test-").tempdir().expect("a temporary directory");
        // Services of other accounts live in here too.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
        fs::create_dir(dir.path().join("units")).expect("units/");
        Home { dir, exe: UPRIGHT.into(), daemon: None, cgroups: Vec::new() }
    }

    /// Runs a copy of the binary from inside the home: other accounts may not be able to enter
    /// the directory that it was built in.
    pub fn use_own_copy(&mut self) -> &mut Home {
        self.exe = self.path().join("upright");
        fs::copy(UPRIGHT, &self.exe).expect("a copy of the binary");
        self
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.path().join("run/upright.sock")
    }

    /// Writes `units/NAME.toml`.
    pub fn unit(&self, name: &str, text: &str) -> &Home {
        fs::write(self.path().join(format!("units/{name}.toml")), text).expect("a unit file");
        self
    }

    /// Starts the daemon and waits until it answers.
    pub fn daemon(&mut self) -> &mut Home {
        self.daemon_through(&[])
    }

    /// The same, through a program that executes its arguments: `["setpriv", …]`.
    pub fn daemon_through(&mut self, prefix: &[&str]) -> &mut Home {
        self.daemon_as(prefix, |_| ())
    }

    /// The same, with the command changed before it runs.
    pub fn daemon_as(&mut self, prefix: &[&str], change: impl FnOnce(&mut Command)) -> &mut Home {
        let mut command = self.command(prefix);
        change(&mut command);
        let child = command.spawn().expect("the binary runs");
        self.daemon = Some(Daemon::watch(child));
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            if let Ok((200, _)) = http::ask(&self.socket(), "GET", "/readyz", "") {
                break;
            }
            if let Ok(status) = self.daemon.as_ref().expect("just set").ended.try_recv() {
                self.daemon = None;
                panic!("the daemon ended at once ({status}):\n{}", self.said());
            }
            assert!(Instant::now() < deadline, "the daemon does not answer:\n{}", self.said());
            std::thread::sleep(LOOK_INTERVAL);
        }
        self
    }

    /// Starts a daemon that is expected to refuse; its exit code and what it said.
    pub fn daemon_refused(&self) -> Output {
        Command::new(UPRIGHT)
            .args(["daemon", "--home"])
            .arg(self.path())
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs")
    }

    fn command(&self, prefix: &[&str]) -> Command {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path().join("daemon.out"));
        let log = log.expect("daemon.out");
        let mut words = prefix.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        words.push(self.exe.to_str().expect("UTF-8").to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["daemon", "--home"]).arg(self.path());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        command
    }

    /// What the daemon wrote on its own stdout and stderr.
    pub fn said(&self) -> String {
        fs::read_to_string(self.path().join("daemon.out")).unwrap_or_default()
    }

    /// The process that the test started: the keeper, or the program it was started through.
    pub fn child(&self) -> Pid {
        self.daemon.as_ref().expect("a daemon runs").pid
    }

    /// `upright ARGS`, about this home.
    pub fn upright(&self, args: &[&str]) -> Output {
        Command::new(UPRIGHT)
            .args(args)
            .env("UPRIGHT_HOME", self.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs")
    }

    /// The same, with its exit code checked and its stdout returned.
    pub fn upright_exits(&self, args: &[&str], code: i32) -> String {
        let output = self.upright(args);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "upright {args:?}\nstdout: {out}\nstderr: {err}");
        out
    }

    /// `GET path`, which must be answered with 200.
    pub fn get(&self, path: &str) -> Value {
        match self.request("GET", path, "") {
            (200, value) => value,
            (status, value) => panic!("GET {path}: {status} {value}"),
        }
    }

    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = http::ask(&self.socket(), method, path, body)
            .unwrap_or_else(|cause| panic!("{method} {path}: {cause}\n{}", self.said()));
        let value = serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into());
        (status, value)
    }

    /// `daemon` and `units` of `GET /v1/units`; none while nobody answers.
    pub fn list(&self) -> Option<Value> {
        match http::ask(&self.socket(), "GET", "/v1/units", "") {
            Ok((200, body)) => serde_json::from_slice(&body).ok(),
            Ok(_) | Err(_) => None,
        }
    }

    /// A unit as the list has it.
    pub fn status(&self, unit: &str) -> Value {
        let list = self.get("/v1/units");
        unit_of(&list, unit).unwrap_or_else(|| panic!("no unit {unit}: {list}")).clone()
    }

    pub fn pid(&self, unit: &str) -> i32 {
        let status =
            self.await_unit(unit, "it has a process", ANSWER_TIMEOUT, |status| pid_of(status).is_some());
        pid_of(&status).unwrap_or_else(|| panic!("{unit} has no process: {status}"))
    }

    /// Waits until a unit is in a state; the unit as it is then.
    pub fn await_state(&self, unit: &str, state: &str, within: Duration) -> Value {
        self.await_unit(unit, &format!("{unit} is {state}"), within, |status| status["state"] == state)
    }

    /// Waits until something holds of a unit. While nobody answers, nothing holds.
    pub fn await_unit(
        &self,
        unit: &str,
        what: &str,
        within: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.list().as_ref().and_then(|list| unit_of(list, unit)) {
                if holds(status) {
                    return status.clone();
                }
                last = status.clone();
            }
            assert!(Instant::now() < deadline, "not within {within:?}: {what}; now: {last}\n{}", self.said());
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Everything that happened so far, oldest first.
    pub fn events(&self) -> Vec<Value> {
        self.events_after(0)
    }

    /// What happened after event `id`. Checks on the way that ids are dense.
    pub fn events_after(&self, id: u64) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        loop {
            let last = events.last().map_or(id, id_of);
            let answer = self.get(&format!("/v1/events?after_id={last}&limit=10000"));
            let more = answer["events"].as_array().expect("an array of events");
            if more.is_empty() {
                return events;
            }
            for event in more {
                let before = events.last().map(id_of);
                assert!(before.is_none_or(|before| id_of(event) == before + 1), "a gap before {event}");
                events.push(event.clone());
            }
        }
    }

    /// The id of the newest event, to wait for what comes after it.
    pub fn last_event(&self) -> u64 {
        self.events().last().map_or(0, id_of)
    }

    /// Follows the events after `id` until one fits.
    pub fn await_event(&self, id: u64, what: &str, within: Duration, fits: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/v1/events?after_id={id}&follow=true");
        let found = http::follow(&self.socket(), &path, Instant::now() + within, |line| {
            let event: Value = serde_json::from_str(line).expect("an event is JSON");
            fits(&event).then_some(event)
        });
        found.unwrap_or_else(|cause| panic!("not within {within:?}: {what}: {cause}\n{}", self.said()))
    }

    /// SIGKILL to the keeper, and to nothing else; waits until it and its engine are gone.
    pub fn kill_keeper(&mut self) {
        let daemon = self.daemon.take().expect("a daemon runs");
        let engines = proc::children(daemon.pid);
        let engines: Vec<_> = engines.into_iter().filter(|child| child.name == "upright-engine").collect();
        kill(daemon.pid, Signal::SIGKILL).expect("the keeper lives");
        daemon.ended.recv_timeout(STOP_TIMEOUT).expect("SIGKILL ends it");
        eventually("the engine ends with its keeper", STOP_TIMEOUT, || {
            engines.iter().all(|engine| !engine.is_alive()).then_some(())
        });
    }

    /// SIGTERM to the daemon, or to what it was started through; waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.stop_by(self.child())
    }

    /// SIGTERM to `pid`, where that is not the process the test started.
    pub fn stop_by(&mut self, pid: Pid) -> ExitStatus {
        let left = self.before_stop();
        let daemon = self.daemon.take().expect("a daemon runs");
        kill(pid, Signal::SIGTERM).expect("the daemon is alive");
        match daemon.ended.recv_timeout(STOP_TIMEOUT) {
            Ok(status) => {
                if let Some(trouble) = self.left_behind(&left) {
                    end(&left);
                    panic!("{trouble}\n{}", self.said());
                }
                status
            }
            Err(_) => {
                let _ = kill(pid, Signal::SIGKILL); // it may have ended just now
                let _ = kill(daemon.pid, Signal::SIGKILL); // the same
                end(&left);
                panic!("the daemon did not end within {STOP_TIMEOUT:?} of SIGTERM:\n{}", self.said());
            }
        }
    }

    /// Every process below the one we started, and the cgroups they are in.
    fn before_stop(&mut self) -> Vec<Process> {
        let mut below = proc::below(self.child());
        below.retain(|process| process.pid != self.child());
        self.cgroups.extend(below.iter().filter_map(proc::cgroup_of));
        self.cgroups.sort();
        self.cgroups.dedup();
        let own = proc::find(Pid::this()).as_ref().and_then(proc::cgroup_of);
        self.cgroups.retain(|path| Some(path) != own.as_ref());
        below
    }

    fn left_behind(&self, before: &[Process]) -> Option<String> {
        let alive: Vec<_> = before.iter().filter(|process| process.is_alive()).collect();
        let named = proc::naming(self.path());
        let cgroups: Vec<_> = self.cgroups.iter().filter(|path| path.exists()).collect();
        if !alive.is_empty() || !named.is_empty() {
            return Some(format!("processes are left behind: {alive:?} {named:?}"));
        }
        if !cgroups.is_empty() {
            return Some(format!("cgroups are left behind: {cgroups:?}"));
        }
        self.socket().exists().then(|| "the socket is left behind".to_owned())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.daemon.is_none() {
            return;
        }
        if !std::thread::panicking() {
            self.stop();
            return;
        }
        // The test has failed already: clean up without a second panic, and keep the evidence.
        let left = self.before_stop();
        if let Some(daemon) = self.daemon.take() {
            let _ = kill(daemon.pid, Signal::SIGTERM); // it may have ended
            if daemon.ended.recv_timeout(STOP_TIMEOUT).is_err() {
                let _ = kill(daemon.pid, Signal::SIGKILL); // the same
            }
        }
        end(&left);
        self.dir.disable_cleanup(true);
        eprintln!("the home of the failed test is kept: {}", self.path().display());
    }
}

/// SIGKILL to those that still are who they were.
fn end(processes: &[Process]) {
    for process in processes.iter().filter(|process| process.is_alive()) {
        let _ = kill(process.pid, Signal::SIGKILL); // it may have ended just now
    }
}

pub fn unit_of<'a>(list: &'a Value, unit: &str) -> Option<&'a Value> {
    list["units"].as_array()?.iter().find(|candidate| candidate["name"] == unit)
}

pub fn pid_of(status: &Value) -> Option<i32> {
    i32::try_from(status["pid"].as_i64()?).ok()
}

pub fn id_of(event: &Value) -> u64 {
    event["id"].as_u64().unwrap_or_else(|| panic!("an event without id: {event}"))
}

/// The events of one name about one unit.
pub fn of<'a>(events: &'a [Value], name: &str, unit: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name && event["unit"] == unit).collect()
}
