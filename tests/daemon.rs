//! The daemon as a black box: real keeper, engine, services, files and sockets.
//!
//! Refuses: looking inside. What is asserted is what a user sees: the API, the logs, pids.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const UPRIGHT: &str = env!("CARGO_BIN_EXE_upright");
const PATIENCE: Duration = Duration::from_secs(30);
const NOTIFIER: &str = "UPRIGHT_TEST_NOTIFIER";

/// A home with a daemon on it; dropped, the daemon is stopped and everything removed.
struct Home {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Home {
    fn new(units: &[(&str, &str)]) -> Home {
        let home = Home { dir: tempfile::tempdir().expect("dir"), daemon: None };
        fs::create_dir(home.path("units")).expect("dir");
        for (name, text) in units {
            home.write(name, text);
        }
        home
    }

    fn started(units: &[(&str, &str)]) -> Home {
        let mut home = Home::new(units);
        home.start();
        home
    }

    fn start(&mut self) {
        let log = fs::File::create(self.path("daemon.out")).expect("file");
        let daemon = self.command(&["daemon"]).stdout(Stdio::null()).stderr(log).spawn().expect("spawns");
        self.daemon = Some(daemon);
        self.until("the daemon answers", |home| home.get("/livez").is_some());
    }

    fn path(&self, tail: &str) -> PathBuf {
        self.dir.path().join(tail)
    }

    fn write(&self, unit: &str, text: &str) {
        fs::write(self.path("units").join(format!("{unit}.toml")), text).expect("writes");
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(UPRIGHT);
        command.arg("--home").arg(self.dir.path()).args(words);
        command
    }

    /// (exit code, stdout, stderr)
    fn run(&self, words: &[&str]) -> (i32, String, String) {
        let output = self.command(words).output().expect("runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// The body of a GET; none when there is no answer.
    fn get(&self, path: &str) -> Option<String> {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(self.path("run/upright.sock")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_string())
    }

    fn json(&self, path: &str) -> Value {
        self.get(path).and_then(|body| serde_json::from_str(&body).ok()).unwrap_or(Value::Null)
    }

    fn unit(&self, name: &str) -> Value {
        let list = self.json("/v1/units");
        let found = list["units"]
            .as_array()
            .and_then(|units| units.iter().find(|unit| unit["name"] == name).cloned());
        found.unwrap_or(Value::Null)
    }

    fn pid(&self, unit: &str) -> i32 {
        self.unit(unit)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0)
    }

    fn daemon_pid(&self, which: &str) -> i32 {
        let pid = self.json("/v1/units")["daemon"][which].as_i64();
        pid.and_then(|pid| i32::try_from(pid).ok()).expect("a pid")
    }

    fn until(&self, what: &str, holds: impl Fn(&Home) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            if Instant::now() > deadline {
                let said = fs::read_to_string(self.path("daemon.out")).unwrap_or_default();
                panic!("waited in vain until {what}; the daemon said:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn until_state(&self, unit: &str, state: &str) {
        self.until(&format!("{unit} is {state}"), |home| home.unit(unit)["state"] == state);
    }

    /// Kills the engine and waits for the next one.
    fn kill_engine(&self) {
        let old = self.daemon_pid("engine_pid");
        signal(old, Signal::SIGKILL);
        self.until("another engine answers", |home| {
            let new = home.json("/v1/units")["daemon"]["engine_pid"].as_i64();
            new.is_some_and(|new| new != i64::from(old))
        });
    }

    /// Every line of `system_resilience.log`.
    fn history(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("log/system_resilience.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("json")).collect()
    }

    fn stop_daemon(&mut self) -> Option<i32> {
        let mut daemon = self.daemon.take()?;
        signal(i32::try_from(daemon.id()).expect("a pid"), Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = daemon.try_wait().expect("waits") {
                return status.code();
            }
            if Instant::now() > deadline {
                let _ = daemon.kill(); // the test fails below
                let _ = daemon.wait();
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.stop_daemon();
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("signals");
}

fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

const SLEEPER: &str = "[service]\ncommand = [\"sleep\", \"1000\"]\n[restart]\ndelays = [\"50ms\"]\n";

#[test]
fn a_killed_service_comes_back_and_history_says_why() {
    let home = Home::started(&[("web", SLEEPER)]);
    home.until_state("web", "active");
    let first = home.pid("web");
    signal(first, Signal::SIGKILL);
    home.until("web recovered", |home| home.history().iter().any(|line| line["event"] == "unit.recovered"));
    assert_ne!(home.pid("web"), first);
    let lines = home.history();
    let failed = lines.iter().find(|line| line["event"] == "unit.failed").expect("failed");
    let restarted = lines.iter().find(|line| line["event"] == "unit.restarted").expect("restarted");
    assert_eq!((failed["unit"].as_str(), failed["signal"].as_str()), (Some("web"), Some("SIGKILL")));
    let delay_ns = restarted["at_ns"].as_u64().expect("ns") - failed["at_ns"].as_u64().expect("ns");
    assert!(delay_ns >= 49_000_000, "never early: {delay_ns} ns");
}

#[test]
fn services_and_their_lines_outlive_every_killed_engine() {
    let chatty = "[service]\ncommand = [\"/bin/sh\", \"-c\", \"i=0; while :; do i=$((i+1)); echo $i; sleep 0.002; done\"]\n";
    let home = Home::started(&[("chatty", chatty), ("web", SLEEPER)]);
    home.until_state("chatty", "active");
    home.until_state("web", "active");
    let pids = (home.pid("chatty"), home.pid("web"));
    for _ in 0..5 {
        home.kill_engine();
        home.until_state("chatty", "active");
        assert_eq!((home.pid("chatty"), home.pid("web")), pids, "nothing was restarted");
    }
    signal(pids.1, Signal::SIGKILL);
    home.until("web recovered", |home| home.history().iter().any(|line| line["event"] == "unit.recovered"));
    let log = || fs::read_to_string(home.path("log/chatty/current.log")).expect("log");
    home.until("it wrote a hundred lines", |_| log().lines().count() > 101);
    let text = log();
    let numbers: Vec<u64> = text.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(numbers.len() > 100, "{} lines", numbers.len());
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "no line is lost, none is doubled");
    let ids: Vec<u64> = home.history().iter().map(|line| line["id"].as_u64().expect("id")).collect();
    assert!(ids.iter().copied().eq(1..=ids.len() as u64), "event ids are dense: {ids:?}");
}

#[test]
fn a_failure_while_no_engine_lives_is_counted_once() {
    let home = Home::started(&[("web", SLEEPER)]);
    home.until_state("web", "active");
    for round in 1..=5u64 {
        let (engine, web) = (home.daemon_pid("engine_pid"), home.pid("web"));
        signal(engine, Signal::SIGSTOP);
        signal(web, Signal::SIGKILL);
        signal(engine, Signal::SIGKILL);
        home.until("web is back", |home| home.unit("web")["state"] == "active" && home.pid("web") != web);
        assert_eq!(home.unit("web")["failures"], round);
    }
    // No restart waits for the disk: the fifth record may come after the fifth restart.
    let failed = |home: &Home| home.history().iter().filter(|line| line["event"] == "unit.failed").count();
    home.until("five failures are recorded", |home| failed(home) >= 5);
    assert_eq!(failed(&home), 5);
}

#[test]
fn a_stop_reaches_what_hides_and_holds_across_engines_and_daemons() {
    let hiding = "[service]\ncommand = [\"/bin/sh\", \"-c\", \"trap '' TERM; setsid sleep 987 & echo $!; while :; do sleep 0.05; done\"]\n[stop]\ntimeout = \"200ms\"\n";
    let mut home = Home::started(&[("hiding", hiding)]);
    let log = home.path("log/hiding/current.log");
    home.until("it says its child's pid", |_| {
        fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n'))
    });
    let child: i32 = fs::read_to_string(&log).expect("log").trim().parse().expect("a pid");
    home.until_state("hiding", "active");
    let (code, out, err) = home.run(&["stop", "hiding"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(!lives(child), "a double fork in another session is stopped too");
    home.kill_engine();
    home.until_state("hiding", "inactive");
    assert_eq!(home.stop_daemon(), Some(0));
    home.start();
    home.until_state("hiding", "inactive");
    assert_eq!(home.json("/api/system/health")["fatal_stops"], 0);
}

#[test]
fn the_end_leaves_nothing_behind() {
    let mut home = Home::started(&[("web", SLEEPER), ("db", SLEEPER)]);
    home.until_state("web", "active");
    home.until_state("db", "active");
    let pids = [home.pid("web"), home.pid("db"), home.daemon_pid("engine_pid")];
    assert_eq!(home.stop_daemon(), Some(0));
    assert!(pids.into_iter().all(|pid| !lives(pid)));
    let left: Vec<String> = names(&home.path("run"));
    assert_eq!(left, ["lock"]);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("dir");
    entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_second_daemon_is_refused_by_name() {
    let home = Home::started(&[]);
    let (code, _, err) = home.run(&["daemon"]);
    let keeper = home.daemon_pid("keeper_pid");
    assert_eq!(code, 1);
    assert!(err.contains(&format!("process {keeper} runs a daemon on this home")), "{err}");
}

#[test]
fn a_broken_file_is_told_and_its_last_good_version_stays() {
    let home = Home::started(&[("web", SLEEPER)]);
    home.until_state("web", "active");
    let pid = home.pid("web");
    home.write("web", "[service]\ncomand = [\"x\"]\n");
    home.write("new", SLEEPER);
    signal(home.daemon_pid("keeper_pid"), Signal::SIGHUP);
    home.until_state("new", "active");
    assert_eq!((home.pid("web"), home.unit("web")["state"].as_str()), (pid, Some("active")));
    let health = home.json("/api/system/health");
    assert_eq!(health["status"], "red");
    assert_eq!(health["config"]["errors"][0]["code"], "unit.unknown-key");
    assert_eq!(health["config"]["errors"][0]["line"], 2);
    home.write("web", SLEEPER);
    signal(home.daemon_pid("keeper_pid"), Signal::SIGHUP);
    home.until("health is green", |home| home.json("/api/system/health")["status"] == "green");
    assert_eq!(home.pid("web"), pid, "an unchanged unit is left alone");
}

#[test]
fn an_unknown_unit_is_answered_with_what_was_meant() {
    let home = Home::started(&[("backend", SLEEPER)]);
    let (code, _, err) = home.run(&["stop", "bakend"]);
    assert_eq!(code, 4);
    assert!(err.contains("backend") || err.contains("upright status"), "{err}");
}

/// Not a test of its own: the service of the next test.
#[test]
fn notifier() {
    if std::env::var_os(NOTIFIER).is_none() {
        return;
    }
    let socket = UnixDatagram::unbound().expect("socket");
    let to = std::env::var_os("NOTIFY_SOCKET").expect("NOTIFY_SOCKET");
    socket.send_to(b"STATUS=here\nREADY=1\n", to).expect("sends");
    std::thread::sleep(Duration::from_secs(1_000));
}

#[test]
fn readiness_is_heard_on_every_way() {
    let me = std::env::current_exe().expect("a path");
    let notify = format!(
        "[service]\ntype = \"notify\"\ncommand = [\"{}\", \"--exact\", \"notifier\"]\nenvironment = {{ {NOTIFIER} = \"1\" }}\n",
        me.display()
    );
    let sh = |script: &str, readiness: &str| {
        format!(
            "[service]\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n[readiness]\n{readiness}\ntimeout = \"20s\"\n"
        )
    };
    let mark = tempfile::tempdir().expect("dir");
    let flag = mark.path().join("flag").display().to_string();
    let units = [
        ("notify", notify),
        ("fd", sh("sleep 0.1; echo >&3; exec sleep 1000", "notify_fd = 3")),
        ("log", sh("echo booting; sleep 0.1; echo ready to serve; exec sleep 1000", "log = \"ready to \"")),
        (
            "exec",
            sh(
                &format!("sleep 0.1; touch {flag}; exec sleep 1000"),
                &format!("exec = [\"test\", \"-e\", \"{flag}\"]"),
            ),
        ),
        ("never", sh("exec sleep 1000", "notify_fd = 3")),
    ];
    let units: Vec<(&str, &str)> = units.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let home = Home::started(&units);
    for unit in ["notify", "fd", "log", "exec"] {
        home.until_state(unit, "active");
    }
    assert_eq!(home.unit("never")["state"], "activating");
    assert_eq!(home.json("/api/system/health")["status"], "yellow");
}

#[test]
fn the_environment_is_built_from_empty() {
    let unit = "[service]\ncommand = [\"env\"]\ntype = \"oneshot\"\nenvironment = { B = \"unit\" }\nenvironment_files = [\"FILE\", \"-/nowhere\"]\n";
    let mut home = Home::new(&[]);
    let file = home.path("env");
    fs::write(&file, "A='from file'\nB=file\n").expect("writes");
    home.write("show", &unit.replace("FILE", &file.display().to_string()));
    home.start();
    home.until("its words are there", |home| {
        fs::read_to_string(home.path("log/show/current.log")).is_ok_and(|text| text.contains("UPRIGHT_UNIT"))
    });
    let text = fs::read_to_string(home.path("log/show/current.log")).expect("log");
    let mut keys: Vec<&str> =
        text.lines().filter_map(|line| line.split_once('=')).map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys.retain(|key| *key != "LANG");
    let wanted = [
        "A",
        "B",
        "HOME",
        "INVOCATION_ID",
        "LOGNAME",
        "PATH",
        "SHELL",
        "UPRIGHT_RUN",
        "UPRIGHT_UNIT",
        "USER",
    ];
    assert_eq!(keys, wanted);
    assert!(text.contains("A=from file\n") && text.contains("B=unit\n"), "{text}");
}

#[test]
fn what_cannot_be_executed_says_the_step_and_the_cause() {
    let home = Home::started(&[
        ("missing", "[service]\ncommand = [\"no-such-command\"]\n"),
        ("nobody", "[service]\ncommand = [\"true\"]\nuser = \"no-such-user\"\n"),
    ]);
    for (unit, words) in [
        ("missing", "cannot execute the command"),
        ("nobody", "cannot set the user: no account has this name"),
    ] {
        home.until_state(unit, "backoff");
        let reason = home.unit(unit)["reason"].to_string();
        assert!(reason.contains(words), "{reason}");
    }
}

#[test]
fn a_daemon_that_was_cut_down_is_a_fatal_stop() {
    let mut home = Home::started(&[]);
    let daemon = home.daemon.as_mut().expect("runs");
    daemon.kill().expect("kills");
    daemon.wait().expect("reaped");
    home.start();
    assert_eq!(home.json("/api/system/health")["fatal_stops"], 1);
}

#[test]
fn a_store_that_cannot_be_written_stops_nobody() {
    let home = Home::started(&[("web", SLEEPER)]);
    home.until_state("web", "active");
    home.until("the start is on the disk", |home| {
        home.history().iter().any(|line| line["event"] == "unit.active")
    });
    let db = rusqlite::Connection::open(home.path("state/upright.db")).expect("opens");
    db.execute_batch("BEGIN IMMEDIATE").expect("locks");
    for _ in 0..2 {
        let pid = home.pid("web");
        signal(pid, Signal::SIGKILL);
        home.until("web is back", |home| home.unit("web")["state"] == "active" && home.pid("web") != pid);
        home.kill_engine();
        home.until_state("web", "active");
    }
    home.until("health says it", |home| home.json("/api/system/health")["status"] == "yellow");
    assert!(
        !home.history().iter().any(|line| line["event"] == "unit.failed"),
        "nothing is said that is not kept"
    );
    let stop = home.command(&["stop", "web"]).output().expect("runs");
    let said = String::from_utf8_lossy(&stop.stderr).into_owned();
    assert!(stop.status.code() == Some(1) && said.contains("cannot be written down"), "{said}");
    home.until_state("web", "inactive");
    assert_eq!(home.command(&["start", "web"]).output().expect("runs").status.code(), Some(1));
    home.until_state("web", "active");
    db.execute_batch("ROLLBACK").expect("unlocks");
    home.until("history is written again", |home| {
        home.history().iter().any(|line| line["event"] == "store.trouble")
    });
    home.until("health is green", |home| home.json("/api/system/health")["status"] == "green");
    let ids: Vec<u64> = home.history().iter().map(|line| line["id"].as_u64().expect("id")).collect();
    assert!(ids.iter().copied().eq(1..=ids.len() as u64), "event ids are dense: {ids:?}");
}

#[test]
fn a_daemon_whose_store_cannot_be_written_ends_when_told() {
    let mut home = Home::started(&[("web", SLEEPER)]);
    home.until_state("web", "active");
    let web = home.pid("web");
    let db = rusqlite::Connection::open(home.path("state/upright.db")).expect("opens");
    db.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let mut daemon = home.daemon.take().expect("runs");
    signal(i32::try_from(daemon.id()).expect("a pid"), Signal::SIGTERM);
    let deadline = Instant::now() + PATIENCE;
    while daemon.try_wait().expect("our child").is_none() {
        assert!(Instant::now() < deadline, "it waits for the store");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!Path::new(&format!("/proc/{web}")).exists(), "its unit was stopped first");
    db.execute_batch("ROLLBACK").expect("unlocks");
}

#[test]
fn an_older_run_s_words_do_not_make_a_newer_one_ready() {
    let flag = tempfile::tempdir().expect("dir");
    let first = flag.path().join("first").display().to_string();
    let script =
        format!("test -e {first} || {{ touch {first}; echo ready; sleep 0.3; exit 1; }}; exec sleep 1000");
    let unit = format!(
        "[service]\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n[readiness]\nlog = \"ready\"\n[restart]\ndelays = [\"50ms\"]\n"
    );
    let home = Home::started(&[("web", &unit)]);
    home.until("the second run lives", |home| {
        home.history().iter().any(|line| line["event"] == "unit.restarted")
    });
    home.until_state("web", "activating");
    home.kill_engine();
    home.until("it is seen again", |home| home.history().iter().any(|line| line["event"] == "unit.adopted"));
    let active = home.history().iter().filter(|line| line["event"] == "unit.active").count();
    assert_eq!((home.unit("web")["state"].as_str(), active), (Some("activating"), 1));
}
