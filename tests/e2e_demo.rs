//! The embedded demo: its three services alone, and the whole of it until nothing is left.
//!
//! Refuses: the daemon's insides, as every test beside it.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{UPRIGHT, eventually, free_port, http, proc, raw};
use upright::base::base64;

const SOON: Duration = Duration::from_secs(20);

/// One `upright puppet`, killed when the test ends before it does.
struct Puppet(Child);

impl Puppet {
    fn start(args: &[&str]) -> Puppet {
        let child = Command::new(UPRIGHT).arg("puppet").args(args).stdout(Stdio::null()).spawn();
        Puppet(child.expect("the binary runs"))
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("it lives");
        ended(&mut self.0)
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait(); // the same
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    eventually("it ends", SOON, || child.try_wait().expect("our child"))
}

fn ask(port: u16, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    let (status, body) = http::ask_tcp(port, method, path, body).ok()?;
    Some((status, serde_json::from_slice(&body).expect("JSON")))
}

struct Stack {
    data: tempfile::TempDir,
    db_port: String,
    port: u16,
    db: Puppet,
    cache: Puppet,
    api: Puppet,
}

impl Stack {
    fn start() -> Stack {
        let data = tempfile::tempdir().expect("a temporary directory");
        let ports = [free_port(), free_port(), free_port()].map(|port| port.to_string());
        let [db_port, cache_port, port] = &ports;
        let path = data.path().to_str().expect("UTF-8").to_owned();
        let db = database(&path, db_port);
        let cache = Puppet::start(&["cache", "--port", cache_port]);
        let words =
            ["api", "--port", port, "--db-port", db_port, "--cache-port", cache_port, "--data", &path];
        let api = Puppet::start(&words);
        let stack =
            Stack { data, db_port: db_port.clone(), port: port.parse().expect("a port"), db, cache, api };
        stack.await_health(200);
        stack
    }

    fn await_health(&self, wanted: u16) -> Value {
        eventually("its health is as expected", SOON, || {
            let (status, value) = ask(self.port, "GET", "/api/system/health", "")?;
            (status == wanted).then_some(value)
        })
    }

    fn post(&self, path: &str, body: &str) -> (u16, Value) {
        ask(self.port, "POST", path, body).expect("the backend answers")
    }
}

fn database(data: &str, port: &str) -> Puppet {
    Puppet::start(&["db", "--port", port, "--data", data, "--boot-ms", "200"])
}

#[test]
fn a_session_accepted_while_the_database_is_away_is_written_back_once() {
    let mut stack = Stack::start();
    assert_eq!(stack.post("/api/chat", r#"{"id":"a","message":"m"}"#).0, 200);
    stack.db.end(Signal::SIGKILL);
    let health = stack.await_health(503);
    assert!(health["database"].as_str().is_some_and(|word| word.starts_with("down")), "{health}");
    assert_eq!(health["cache"], "up");
    for id in ["b", "c", "d"] {
        assert_eq!(stack.post("/api/chat", &format!(r#"{{"id":"{id}","message":"m"}}"#)).0, 202);
    }
    assert_eq!(stack.post("/api/recovery/state_resync", "").0, 503, "nowhere to write it");
    // The backend dies too: what it accepted is in its journal.
    stack.api.end(Signal::SIGKILL);
    let path = stack.data.path().to_str().expect("UTF-8");
    let journal = fs::read_to_string(Path::new(path).join("journal.jsonl")).expect("a journal");
    assert_eq!(journal.lines().count(), 3);
    stack.db = database(path, &stack.db_port);
    let cache_port = free_port().to_string();
    stack.cache.end(Signal::SIGTERM);
    stack.cache = Puppet::start(&["cache", "--port", &cache_port]);
    let port = stack.port.to_string();
    let words =
        ["api", "--port", &port, "--db-port", &stack.db_port, "--cache-port", &cache_port, "--data", path];
    stack.api = Puppet::start(&words);
    stack.await_health(200);
    assert_eq!(stack.post("/api/chat", r#"{"id":"d","message":"m"}"#).0, 200, "sent again");
    let (status, counts) = stack.post("/api/recovery/state_resync", "");
    // Nothing is left to write when the database was ready as the backend started: it did it then.
    let done = counts["written"].as_u64().zip(counts["known"].as_u64());
    assert!(status == 200 && (done == Some((2, 1)) || done == Some((0, 0))), "{counts}");
    let (_, sessions) = ask(stack.port, "GET", "/api/sessions", "").expect("an answer");
    assert_eq!((&sessions["count"], &sessions["journal"]), (&4.into(), &0.into()));
    for puppet in [&mut stack.api, &mut stack.cache, &mut stack.db] {
        assert_eq!(puppet.end(Signal::SIGTERM).code(), Some(0));
    }
}

#[test]
fn every_fault_can_be_asked_for_and_ends() {
    let mut stack = Stack::start();
    assert_eq!(stack.post("/puppet/fault", r#"{"kind":"error-500"}"#).0, 202);
    stack.await_health(500);
    assert_eq!(stack.post("/puppet/fault", r#"{"kind":"none"}"#).0, 202);
    stack.await_health(200);
    assert_eq!(stack.post("/puppet/fault", r#"{"kind":"hang","seconds":1}"#).0, 202);
    stack.await_health(200);
    assert_eq!(stack.post("/puppet/fault", r#"{"kind":"earthquake"}"#).0, 400);
    assert_eq!(stack.post("/puppet/fault", r#"{"kind":"leak","seconds":9999}"#).0, 400);
    assert_eq!(stack.post("/puppet/fault", r#"{"kind":"ignore-term"}"#).0, 202);
    kill(Pid::from_raw(stack.api.0.id().cast_signed()), Signal::SIGTERM).expect("it lives");
    stack.await_health(200);
    assert_eq!(stack.post("/puppet/fault", r#"{"kind":"exit","code":7}"#).0, 202);
    assert_eq!(ended(&mut stack.api.0).code(), Some(7));
}

/// `upright demo` in a directory of its own, once it has shown what to try.
fn demo(temporary: &Path) -> (Child, String) {
    let mut demo = Command::new(UPRIGHT)
        .arg("demo")
        .env("TMPDIR", temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut shown = String::new();
    // Ends by itself when the demo does: its own limit is 30 s.
    let mut lines = BufReader::new(demo.stdout.take().expect("a pipe"));
    while !shown.contains("kill -STOP ") {
        let before = shown.len();
        lines.read_line(&mut shown).expect("UTF-8");
        if shown.len() == before {
            let mut said = String::new();
            let _ = demo.stderr.take().expect("a pipe").read_to_string(&mut said); // for the message only
            panic!("the demo ended early:\n{shown}\n{said}");
        }
    }
    (demo, shown)
}

/// Ctrl-C; nothing of it may be left.
fn end_demo(mut demo: Child, temporary: &Path) {
    kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGINT).expect("it lives");
    let status = eventually("the demo ends", Duration::from_secs(40), || demo.try_wait().expect("our child"));
    assert_eq!(status.code(), Some(0));
    let left: Vec<_> = fs::read_dir(temporary).expect("readable").collect();
    assert!(left.is_empty(), "{left:?}");
    let alive = proc::naming(temporary);
    assert!(alive.is_empty(), "{alive:?}");
}

#[test]
fn the_demo_heals_when_its_database_is_killed() {
    let temporary = tempfile::Builder::new().prefix("upright-demo-test-").tempdir().expect("a directory");
    let (demo, shown) = demo(temporary.path());
    let home = shown.lines().find_map(|line| line.strip_prefix("home:")).expect("its home").trim();
    let socket = Path::new(home).join("run/upright.sock");
    let unit = |name: &str| -> Value {
        let (_, body) = http::ask(&socket, "GET", "/v1/units", "").expect("the daemon answers");
        let list: Value = serde_json::from_slice(&body).expect("JSON");
        support::unit_of(&list, name).expect("the unit").clone()
    };
    let text = fs::read_to_string(Path::new(home).join("units/backend.toml")).expect("backend.toml");
    let file: toml::Table = text.parse().expect("TOML");
    let words = file["service"]["command"].as_array().expect("an array");
    let port = words.iter().skip_while(|word| word.as_str() != Some("--port")).nth(1).expect("a port");
    let port: u16 = port.as_str().expect("text").parse().expect("a number");
    let chat = |id: &str| ask(port, "POST", "/api/chat", &format!(r#"{{"id":"{id}","message":"m"}}"#));
    assert_eq!(chat("a").expect("an answer").0, 200);
    let backend = unit("backend")["pid"].clone();
    let database = support::pid_of(&unit("database")).expect("it runs");
    kill(Pid::from_raw(database), Signal::SIGKILL).expect("it lives");
    eventually("the backend is degraded", SOON, || {
        let status = unit("backend");
        (status["state"] == "degraded" && status["reason"] == "waiting: database").then_some(())
    });
    assert_eq!(chat("b").expect("an answer").0, 202);
    eventually("its state is restored", SOON, || {
        let status = unit("backend");
        (status["state"] == "active" && status["reason"] == "ready").then_some(())
    });
    let (_, sessions) = ask(port, "GET", "/api/sessions", "").expect("an answer");
    assert_eq!((&sessions["count"], &sessions["journal"]), (&2.into(), &0.into()), "{sessions}");
    assert_eq!((&unit("backend")["pid"], &unit("backend")["health"]), (&backend, &"healthy".into()));
    end_demo(demo, temporary.path());
}

#[test]
fn the_demo_shows_its_stack_and_leaves_nothing_behind() {
    let temporary = tempfile::Builder::new().prefix("upright-demo-test-").tempdir().expect("a directory");
    let (demo, shown) = demo(temporary.path());
    for unit in ["database", "cache", "backend"] {
        assert!(shown.contains(unit), "{shown}");
    }
    // The line that says what to try next works where the reader stands: no `upright` is on PATH.
    let next = shown.split("then:").nth(1).and_then(|rest| rest.split("   (").next()).expect("a next step");
    let tried = Command::new("sh").args(["-c", next]).output().expect("sh runs");
    assert_eq!(tried.status.code(), Some(0), "{next}: {}", String::from_utf8_lossy(&tried.stderr));
    assert!(!proc::naming(temporary.path()).is_empty(), "the stack runs in there");
    let page =
        shown.lines().find_map(|line| line.strip_prefix("page:  http://")).expect("the page's address");
    let (pair, host) = page.trim_end_matches("/sign-in").split_once('@').expect("a password");
    let password = format!("Basic {}", base64::encode(pair.as_bytes()));
    let request = raw::request("GET", "/sign-in", &[("Host", host), ("Authorization", &password)], "");
    let port = host.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let reply = raw::exchange(raw::tcp(port), &request).expect("an answer");
    assert!(reply.status == 200 && reply.body.contains("data-unit=\"database\""), "{}", reply.head);
    end_demo(demo, temporary.path());
}
