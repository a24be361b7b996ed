//! It heals, on the real daemon and real programs: uvicorn backends with one fault each, and
//! the stack of examples/fastapi whose parts hang, die and come back.
//!
//! Refuses: stand-ins for the programs, and the shipped delays: these policies are short, and
//! the bounds are computed from them.

mod support;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use support::{Home, eventually, free_port, http, id_of, of};

/// Longest for anything here that is not measured: Python's imports on a loaded machine.
const SOON: Duration = Duration::from_secs(60);

/// `[health]` of the faulty units: interval and timeout. One check at a time is under way, so
/// the promise below needs a timeout that is not longer than the interval.
const INTERVAL_MS: i64 = 300;
const TIMEOUT_MS: i64 = INTERVAL_MS;
const THRESHOLD: i64 = 3;

/// `interval × threshold + timeout`, the promise, and 10 ms of scheduling (design).
const FOUND_MS_MAX: i64 = INTERVAL_MS * THRESHOLD + TIMEOUT_MS + 10;

/// The same of the stack, which must not be called sick for a loaded machine.
const STACK_INTERVAL_MS: i64 = 500;
const STACK_FOUND_MS_MAX: i64 = STACK_INTERVAL_MS * THRESHOLD + STACK_INTERVAL_MS + 10;

/// What a machine of two cores may add while a dozen programs start on it: their own delays,
/// not the daemon's, but nobody outside can tell them apart.
const LOAD_MS: i64 = 700;

/// `restart.delays`, in ms; the last repeats.
const DELAYS_MS: [i64; 3] = [300, 600, 900];

/// `resync.delays`, in ms, and its timeout.
const RESYNC_DELAYS_MS: [i64; 3] = [200, 400, 600];
const RESYNC_TIMEOUT_MS: i64 = 3_000;

/// What `late` in stack.py takes until it answers.
const LATE_MS: i64 = 2_000;

/// Of `never-ready`, and the grace of every unit.
const READY_TIMEOUT_MS: i64 = 1_000;
const GRACE_MS: i64 = 1_000;

const FAULTS: [&str; 6] = ["hangs", "answers-500", "closes", "never-ready", "ignores-term", "crash-loops"];

fn lacking() -> Option<&'static str> {
    let on_path = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(name).exists())
    };
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    if !versions.map(|entry| entry.path().join("bin/initdb")).any(|initdb| initdb.exists()) {
        return Some("PostgreSQL (postgresql-15)");
    }
    if !on_path("redis-server") {
        return Some("redis-server");
    }
    (!venv().join("bin/uvicorn").exists()).then_some("target/fastapi-venv (tests/run makes it)")
}

fn venv() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fastapi-venv")
}

/// The clock that the records count in.
fn boottime_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has it");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

fn at_ns(event: &Value) -> i64 {
    event["at_ns"].as_i64().expect("at_ns")
}

/// The stamps that a program wrote, in ns.
fn stamps(path: &Path) -> Vec<i64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| line.parse().expect("a stamp")).collect()
}

fn policy(interval_ms: i64) -> String {
    let delays = DELAYS_MS.map(|ms| format!("\"{ms}ms\"")).join(", ");
    format!(
        "[health]\ninterval = \"{interval_ms}ms\"\ntimeout = \"{interval_ms}ms\"\nthreshold = {THRESHOLD}\n\
         [restart]\ndelays = [{delays}]\nreset_after = \"8s\"\n[stop]\ntimeout = \"{GRACE_MS}ms\"\n"
    )
}

/// A uvicorn backend that has the fault it is named after, in a home of its own part.
fn faulty_unit(home: &Home, fault: &str) {
    let port = free_port();
    let dir = home.path().join("app");
    let file = |what: &str| home.path().join(format!("{fault}.{what}"));
    fs::write(file("fault"), fault).expect("a fault");
    let ready_timeout = if fault == "never-ready" { READY_TIMEOUT_MS } else { 20_000 };
    let policy = policy(INTERVAL_MS)
        .replace("[health]\n", &format!("[health]\nhttp = \"http://127.0.0.1:{port}/livez\"\n"));
    let text = format!(
        "[service]\ncommand = [{python:?}, \"-m\", \"uvicorn\", \"--app-dir\", {dir:?}, \"fault:app\", \
         \"--port\", \"{port}\", \"--no-access-log\"]\n\
         environment = {{ FAULT = {fault_file:?}, STAMPS = {stamps:?}, PYTHONDONTWRITEBYTECODE = \"1\" }}\n\
         [readiness]\nhttp = \"http://127.0.0.1:{port}/ready\"\ntimeout = \"{ready_timeout}ms\"\n{policy}",
        python = venv().join("bin/python"),
        fault_file = file("fault"),
        stamps = file("stamps"),
    );
    home.unit(fault, &text);
}

fn is_failure(event: &Value, unit: &str, count: u64) -> bool {
    event["event"] == "unit.failed" && event["unit"] == unit && event["data"]["failures"] == count
}

/// Rows of the table, as the dispatcher will find them.
fn alert_rows(home: &Home, unit: &str) -> Vec<String> {
    let path = home.path().join("state/upright.db");
    let store = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the store");
    let mut asked =
        store.prepare("SELECT kind FROM alert WHERE unit = ?1 ORDER BY id").expect("a table of alerts");
    let rows = asked.query_map([unit], |row| row.get(0)).expect("rows");
    rows.map(|kind| kind.expect("text")).collect()
}

#[test]
fn six_faults_are_found_in_time_and_alerted_at_the_fourth_and_eighth_failure() {
    if support::skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    fs::create_dir(home.path().join("app")).expect("app/");
    fs::write(home.path().join("app/fault.py"), include_str!("e2e_heal/fault.py")).expect("fault.py");
    FAULTS.iter().for_each(|fault| faulty_unit(&home, fault));
    home.upright_exits(&["check"], 0);
    home.daemon();
    // The verdict is seen while it is not yet three.
    let sick = home.await_unit("answers-500", "it is shown as unhealthy", SOON, |unit| {
        unit["health"] == "unhealthy" && unit["state"] == "active"
    });
    let reason = sick["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("ready, but ") && reason.ends_with(" in a row (HTTP 500)"), "{reason}");
    let failed =
        home.await_event(0, "a failure for its health", SOON, |event| is_failure(event, "answers-500", 1));
    assert_eq!(failed["cause"], "unhealthy: 3 bad checks in a row (HTTP 500)");
    let recovered = RefCell::new(BTreeSet::new());
    home.await_event(0, "all six have failed eight times and recovered", 3 * SOON, |event| {
        let Some(fault) = FAULTS.iter().find(|fault| event["unit"] == **fault) else { return false };
        if is_failure(event, fault, 8) {
            fs::remove_file(home.path().join(format!("{fault}.fault"))).expect("the fault");
        }
        if event["event"] == "alert.raised" && event["data"]["kind"] == "recovered" {
            recovered.borrow_mut().insert(*fault);
        }
        recovered.borrow().len() == FAULTS.len()
    });
    let events = home.events();
    for fault in FAULTS {
        check_failures(&home, &events, fault);
        check_alerts(&home, &events, fault);
        let status = home.status(fault);
        assert_eq!((&status["state"], &status["failures"]), (&"active".into(), &0.into()), "{status}");
        home.await_unit(fault, "it is healthy", SOON, |unit| unit["health"] == "healthy");
    }
    home.upright_exits(&["status"], 0);
}

/// Each fault is found in time and answered on schedule.
fn check_failures(home: &Home, events: &[Value], fault: &str) {
    let failed = of(events, "unit.failed", fault);
    let counts: Vec<_> = failed.iter().map(|event| event["data"]["failures"].as_i64()).collect();
    assert_eq!(counts, (1..=8).map(Some).collect::<Vec<_>>(), "{fault}");
    let begun = stamps(&home.path().join(format!("{fault}.stamps")));
    assert_eq!(begun.len(), 8, "{fault}");
    let found_ms_max = match fault {
        "never-ready" => READY_TIMEOUT_MS + 10,
        "crash-loops" => 10,
        _ => FOUND_MS_MAX,
    } + LOAD_MS;
    let found: Vec<i64> =
        begun.iter().zip(&failed).map(|(at, event)| (at_ns(event) - at) / 1_000_000).collect();
    let restarted = of(events, "unit.restarted", fault);
    assert_eq!(restarted.len(), 8, "{fault}");
    let mut late = Vec::new();
    for (at, event) in failed.iter().enumerate() {
        let delay_ms = DELAYS_MS[at.min(DELAYS_MS.len() - 1)];
        let scheduled = of(events, "retry.scheduled", fault)[at];
        assert_eq!(scheduled["data"]["delay_ms"], delay_ms, "{scheduled}");
        let due = scheduled["data"]["due_ns"].as_i64().expect("due_ns");
        // Not before the last of it is gone: who ignores SIGTERM has the grace.
        let gone = of(events, "unit.killed", fault).into_iter().find(|killed| killed["run"] == event["run"]);
        let earliest = gone.map_or(due, |killed| due.max(at_ns(killed)));
        late.push((at_ns(restarted[at]) - earliest) / 1_000_000);
        assert!(at_ns(restarted[at]) >= due, "{fault} restarted before its time");
    }
    println!("{fault}: found after {found:?} ms (at most {found_ms_max}), restarted {late:?} ms late");
    assert!(found.iter().all(|ms| (0..=found_ms_max).contains(ms)), "{fault}: {found:?}");
    assert!(late.iter().all(|ms| *ms <= GRACE_MS + LOAD_MS), "{fault}: {late:?}");
    if fault == "ignores-term" {
        assert_eq!(of(events, "unit.killed", fault).len(), 8);
    }
}

/// One alert right after the 4th, one right after the 8th failure, one for the recovery.
fn check_alerts(home: &Home, events: &[Value], fault: &str) {
    let alerts = of(events, "alert.raised", fault);
    let kinds: Vec<_> = alerts.iter().map(|alert| alert["data"]["kind"].as_str().expect("kind")).collect();
    assert_eq!(kinds, ["failing", "failing", "recovered"], "{fault}: {alerts:?}");
    assert_eq!(alert_rows(home, fault), kinds, "{fault}: the rows are what the events say");
    let failed = of(events, "unit.failed", fault);
    for (alert, failure) in [(alerts[0], failed[3]), (alerts[1], failed[7])] {
        assert_eq!(alert["at_ns"], failure["at_ns"], "{alert} {failure}");
    }
    let ready = of(events, "unit.active", fault);
    let healthy_ms = (at_ns(alerts[2]) - at_ns(ready.last().expect("active"))) / 1_000_000;
    assert!((8_000..8_010 + LOAD_MS).contains(&healthy_ms), "{fault}: recovered after {healthy_ms} ms");
    let exhausted = of(events, "retry.exhausted", fault);
    assert_eq!(exhausted.len(), 1, "{fault}: {exhausted:?}");
    assert_eq!((&exhausted[0]["level"], &exhausted[0]["data"]["what"]), (&"WARN".into(), &"restart".into()));
}

/// The stack of examples/fastapi with short policies; its resync can be made to fail.
struct Stack {
    home: Home,
    redis: u16,
    backend: u16,
}

impl Stack {
    fn start() -> Stack {
        let mut home = Home::new();
        let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fastapi/setup.sh");
        let done =
            Command::new(setup).arg("--venv").arg(venv()).arg(home.path()).output().expect("setup.sh runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::write(home.path().join("app/stack.py"), include_str!("e2e_heal/stack.py")).expect("stack.py");
        let ports = fs::read_to_string(home.path().join("ports")).expect("ports");
        let ports: Vec<u16> = ports.split_whitespace().map(|port| port.parse().expect("a port")).collect();
        ["postgres", "redis", "backend"].iter().for_each(|unit| shorten(&home, unit));
        home.upright_exits(&["check"], 0);
        home.daemon();
        for unit in ["postgres", "redis", "backend"] {
            home.await_state(unit, "active", SOON);
        }
        Stack { home, redis: ports[1], backend: ports[2] }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) = http::ask_tcp(self.backend, method, path, body).expect("the backend answers");
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    fn chat(&self, number: u32) -> u16 {
        let id = format!("00000000-0000-4000-8000-{number:012}");
        self.ask("POST", "/api/chat", &format!(r#"{{"id":"{id}","user":"u","message":"m"}}"#)).0
    }

    fn resync_fault(&self, words: &str) {
        let path = self.home.path().join("data/backend/resync");
        fs::write(&path, words).expect("a fault");
        // The backend counts down in it, as another account.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("its mode");
    }

    /// How often the backend was asked for a resync.
    fn resync_calls(&self) -> usize {
        stamps(&self.home.path().join("data/backend/calls")).len()
    }

    fn signal(&self, unit: &str, signal: Signal) {
        kill(Pid::from_raw(self.home.pid(unit)), signal).expect("it lives");
    }

    fn await_of(&self, after: u64, name: &str, unit: &str) -> Value {
        self.home.await_event(after, &format!("{name} of {unit}"), SOON, |event| {
            event["event"] == name && event["unit"] == unit
        })
    }

    fn await_whole(&self) {
        self.home.await_unit("backend", "it is whole again", SOON, |unit| {
            unit["state"] == "active" && unit["reason"] == "ready"
        });
    }
}

/// The unit file as setup.sh wrote it, with this test's times in it.
fn shorten(home: &Home, unit: &str) {
    let path = home.path().join(format!("units/{unit}.toml"));
    let mut table: toml::Table = fs::read_to_string(&path).expect("a unit file").parse().expect("TOML");
    assert!(table.contains_key("health"), "{unit}: {table}");
    let short: toml::Table = policy(STACK_INTERVAL_MS).parse().expect("TOML");
    for (section, keys) in short {
        let into = table.entry(section).or_insert_with(|| toml::Table::new().into());
        into.as_table_mut().expect("a section").extend(keys.as_table().expect("a section").clone());
    }
    if unit == "backend" {
        let data = home.path().join("data/backend");
        let service = table["service"].as_table_mut().expect("[service]");
        let command = service["command"].as_array_mut().expect("an array");
        let app = command.iter_mut().find(|word| word.as_str() == Some("app:app")).expect("the application");
        *app = "stack:app".into();
        let environment = service["environment"].as_table_mut().expect("environment");
        for (key, file) in [("RESYNC", "resync"), ("CALLS", "calls")] {
            environment.insert(key.to_string(), data.join(file).to_str().expect("UTF-8").into());
        }
        let resync = table["resync"].as_table_mut().expect("[resync]");
        resync.insert("timeout".to_string(), format!("{RESYNC_TIMEOUT_MS}ms").into());
        let delays: Vec<toml::Value> = RESYNC_DELAYS_MS.iter().map(|ms| format!("{ms}ms").into()).collect();
        resync.insert("delays".to_string(), delays.into());
    }
    fs::write(&path, table.to_string()).expect("written");
}

fn ms_between(from: &Value, to: &Value) -> i64 {
    (at_ns(to) - at_ns(from)) / 1_000_000
}

#[test]
fn a_database_that_hangs_is_found_restarted_and_nothing_is_lost() {
    if support::skip_tool(lacking()) {
        return;
    }
    let stack = Stack::start();
    let backend = stack.home.pid("backend");
    assert_eq!(stack.chat(0), 200);
    let mut accepted = 1;
    for unit in ["postgres", "redis"] {
        let (last, before) = (stack.home.last_event(), stack.home.pid(unit));
        let hung = boottime_ns();
        stack.signal(unit, Signal::SIGSTOP);
        let failed = stack.await_of(last, "unit.failed", unit);
        let found_ms = (at_ns(&failed) - hung) / 1_000_000;
        println!(
            "{unit}: found hanging after {found_ms} ms (at most {STACK_FOUND_MS_MAX} and {LOAD_MS} of load)"
        );
        assert!((0..=STACK_FOUND_MS_MAX + LOAD_MS).contains(&found_ms), "{found_ms} ms");
        assert_eq!(failed["cause"], "unhealthy: 3 bad checks in a row (no answer within 500ms)");
        stack.home.await_unit("backend", "it is degraded", SOON, |status| {
            status["state"] == "degraded" && status["reason"] == format!("waiting: {unit}")
        });
        while stack.home.status("backend")["state"] == "degraded" {
            let status = stack.chat(accepted);
            assert!(status == 200 || status == 202, "{status}");
            accepted += 1;
        }
        stack.await_of(last, "resync.succeeded", "backend");
        stack.await_whole();
        assert_ne!(stack.home.pid(unit), before);
        let events = stack.home.events_after(last);
        for name in ["unit.degraded", "unit.restored", "resync.started", "resync.succeeded"] {
            assert_eq!(of(&events, name, "backend").len(), 1, "{name}: {events:?}");
        }
        assert!(of(&events, "unit.failed", "backend").is_empty(), "{events:?}");
        assert_eq!(of(&events, "unit.failed", unit).len(), 1, "{events:?}");
    }
    assert_eq!(stack.home.pid("backend"), backend, "the backend went on");
    let (_, sessions) = stack.ask("GET", "/api/sessions", "");
    println!("{accepted} sessions were accepted");
    assert_eq!((&sessions["count"], &sessions["journal"]), (&accepted.into(), &0.into()), "{sessions}");
    assert_eq!(alert_rows(&stack.home, "backend"), [""; 0]);
}

#[test]
fn redis_that_sleeps_too_long_is_restarted() {
    if support::skip_tool(lacking()) {
        return;
    }
    let stack = Stack::start();
    let last = stack.home.last_event();
    let begun = boottime_ns();
    // A script that never ends: the same as DEBUG SLEEP, which Redis 7 does not allow by itself.
    let port = stack.redis;
    let asking = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut redis = std::net::TcpStream::connect(("127.0.0.1", port)).expect("redis listens");
        redis.write_all(b"EVAL \"while true do end\" 0\r\n").expect("it takes the script");
        let mut answer = Vec::new();
        let _ = redis.read_to_end(&mut answer); // it ends with the process
    });
    let failed = stack.await_of(last, "unit.failed", "redis");
    let found_ms = (at_ns(&failed) - begun) / 1_000_000;
    println!("redis: found busy after {found_ms} ms: {}", failed["cause"]);
    assert!((0..=STACK_FOUND_MS_MAX + LOAD_MS).contains(&found_ms), "{found_ms} ms");
    stack.await_of(last, "resync.succeeded", "backend");
    stack.await_whole();
    asking.join().expect("the script is over");
}

#[test]
fn a_resync_is_tried_again_on_schedule_and_given_up_with_one_alert() {
    if support::skip_tool(lacking()) {
        return;
    }
    let stack = Stack::start();
    let backend = stack.home.pid("backend");
    fails_twice_then_succeeds(&stack);
    fails_for_good(&stack);
    is_forced(&stack);
    two_return_at_once(&stack);
    answers_too_late(&stack);
    is_lost_again_meanwhile(&stack);
    assert_eq!(stack.home.pid("backend"), backend, "no resync cost the backend its process");
    // One for the return after which it could not, one for the order that could not.
    assert_eq!(alert_rows(&stack.home, "backend"), ["resync-failed", "resync-failed"]);
}

fn fails_twice_then_succeeds(stack: &Stack) {
    let (last, calls) = (stack.home.last_event(), stack.resync_calls());
    stack.resync_fault("fail 2");
    stack.signal("redis", Signal::SIGKILL);
    let done = stack.await_of(last, "resync.succeeded", "backend");
    assert_eq!(done["data"]["attempt"], 3);
    let events = stack.home.events_after(last);
    check_tries(&events, 2);
    assert_eq!(stack.resync_calls() - calls, 3);
    assert!(of(&events, "alert.raised", "backend").is_empty());
    stack.await_whole();
}

/// Each failed try says why and when the next is; the next is not earlier and hardly later.
fn check_tries(events: &[Value], failures: usize) {
    let (started, failed) = (of(events, "resync.started", "backend"), of(events, "resync.failed", "backend"));
    assert_eq!(failed.len(), failures, "{events:?}");
    for (at, failure) in failed.iter().enumerate() {
        assert_eq!(failure["data"]["attempt"], at + 1, "{failure}");
        let Some(delay_ms) = RESYNC_DELAYS_MS.get(at) else { continue };
        assert_eq!(failure["data"]["next_ms"], *delay_ms, "{failure}");
        let waited = ms_between(failure, started[at + 1]);
        assert!((*delay_ms..=delay_ms + LOAD_MS).contains(&waited), "try {} came {waited} ms after", at + 2);
    }
}

fn fails_for_good(stack: &Stack) {
    let (last, calls) = (stack.home.last_event(), stack.resync_calls());
    stack.resync_fault("fail 99");
    stack.signal("redis", Signal::SIGKILL);
    let exhausted = stack.await_of(last, "retry.exhausted", "backend");
    assert_eq!((&exhausted["level"], &exhausted["data"]["what"]), (&"WARN".into(), &"resync".into()));
    let alert = stack.await_of(last, "alert.raised", "backend");
    assert_eq!(alert["data"]["kind"], "resync-failed", "{alert}");
    assert!(alert["message"].as_str().is_some_and(|text| text.contains("HTTP 503")), "{alert}");
    let events = stack.home.events_after(last);
    check_tries(&events, 4);
    assert_eq!(stack.resync_calls() - calls, 4);
    assert_eq!(of(&events, "retry.exhausted", "backend").len(), 1);
    let status = stack.home.status("backend");
    assert_eq!(status["reason"], "ready, but its state could not be restored", "{status}");
    let log = fs::read_to_string(stack.home.path().join("log/system_resilience.log")).expect("the log");
    let lines = log.lines().filter(|line| line.contains("\"retry.exhausted\"") && line.contains("\"WARN\""));
    assert_eq!(lines.count(), 1, "{log}");
}

fn is_forced(stack: &Stack) {
    let home = &stack.home;
    let last = home.last_event();
    // It still fails: told as that, after all its tries.
    let refused = home.upright(&["resync", "backend"]);
    let said = [refused.stdout, refused.stderr].concat();
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&said));
    assert!(String::from_utf8_lossy(&said).contains("HTTP 503"), "{}", String::from_utf8_lossy(&said));
    assert_eq!(of(&home.events_after(last), "alert.raised", "backend").len(), 1);
    stack.resync_fault("");
    home.upright_exits(&["resync", "backend"], 0);
    stack.await_whole();
    let calls = stack.resync_calls();
    for body in ["{}", r#"{"unit":"backend"}"#] {
        let (status, answer) = home.request("POST", "/api/recovery/state_resync", body);
        assert_eq!(status, 200, "{answer}");
        let outcomes = answer["outcomes"].as_array().expect("outcomes");
        assert_eq!(outcomes.len(), 1, "{answer}");
        assert_eq!((&outcomes[0]["unit"], &outcomes[0]["outcome"]), (&"backend".into(), &"done".into()));
    }
    assert_eq!(stack.resync_calls() - calls, 2);
    let (status, answer) = home.request("POST", "/api/recovery/state_resync", r#"{"unit":"bakcend"}"#);
    assert_eq!((status, &answer["error"]["code"]), (404, &"unit.unknown".into()), "{answer}");
    assert_eq!(answer["error"]["help"], "did you mean `backend`?");
    let (status, answer) = home.request("POST", "/api/recovery/state_resync", r#"{"unit":"redis"}"#);
    let outcome = &answer["outcomes"][0];
    assert_eq!((status, &outcome["outcome"]), (200, &"failed".into()), "{answer}");
    assert_eq!(outcome["message"], "it has no [resync]");
}

fn two_return_at_once(stack: &Stack) {
    let (last, calls) = (stack.home.last_event(), stack.resync_calls());
    for unit in ["postgres", "redis"] {
        stack.signal(unit, Signal::SIGKILL);
    }
    let done = stack.await_of(last, "resync.succeeded", "backend");
    let events = stack.home.events_after(last);
    let started = of(&events, "resync.started", "backend");
    assert_eq!(started.len(), 1, "{events:?}");
    assert_eq!(started[0]["data"]["for"], serde_json::json!(["postgres", "redis"]));
    for unit in ["postgres", "redis"] {
        let ready = of(&events, "unit.active", unit);
        assert!(id_of(ready[0]) < id_of(started[0]), "{unit} was not ready yet");
    }
    assert_eq!(of(&stack.home.events_after(id_of(&done)), "resync.started", "backend").len(), 0);
    assert_eq!(stack.resync_calls() - calls, 1);
    stack.await_whole();
}

fn answers_too_late(stack: &Stack) {
    let (last, calls) = (stack.home.last_event(), stack.resync_calls());
    stack.resync_fault("slow 1");
    stack.signal("redis", Signal::SIGKILL);
    let failed = stack.await_of(last, "resync.failed", "backend");
    let started = stack.await_of(last, "resync.started", "backend");
    let waited = ms_between(&started, &failed);
    assert!((RESYNC_TIMEOUT_MS..=RESYNC_TIMEOUT_MS + LOAD_MS).contains(&waited), "{waited} ms");
    let why = failed["cause"].as_str().expect("a cause");
    assert!(why == "no answer within 3s" || why == "no acknowledgement in time", "{why}");
    let done = stack.await_of(last, "resync.succeeded", "backend");
    assert_eq!(done["data"]["attempt"], 2);
    assert_eq!(stack.resync_calls() - calls, 2);
    stack.await_whole();
}

/// The answer to a request of before the second loss is not taken for that of the one after it.
fn is_lost_again_meanwhile(stack: &Stack) {
    let (last, calls) = (stack.home.last_event(), stack.resync_calls());
    stack.resync_fault("late 2");
    stack.signal("redis", Signal::SIGKILL);
    let first = stack.await_of(last, "resync.started", "backend");
    eventually("the backend is asked", SOON, || (stack.resync_calls() > calls).then_some(()));
    stack.signal("redis", Signal::SIGKILL);
    let second = stack.await_of(id_of(&first), "resync.started", "backend");
    let apart = ms_between(&first, &second);
    assert!(apart < LATE_MS, "the machine is too slow to show it: {apart} ms");
    let done = stack.await_of(last, "resync.succeeded", "backend");
    assert!(id_of(&done) > id_of(&second), "{done}");
    let took = ms_between(&second, &done);
    assert!((LATE_MS..LATE_MS + LOAD_MS).contains(&took), "acknowledged {took} ms after it was asked");
    assert_eq!(stack.resync_calls() - calls, 2);
    stack.await_whole();
}

/// A session that was acknowledged survives SIGKILL of the backend while PostgreSQL is away.
#[test]
fn a_journal_entry_survives_the_death_of_the_backend() {
    if support::skip_tool(lacking()) {
        return;
    }
    let stack = Stack::start();
    stack.home.upright_exits(&["stop", "postgres"], 0);
    let status = eventually("the session is accepted", SOON, || {
        let status = stack.chat(7);
        (status == 202).then_some(status)
    });
    assert_eq!(status, 202);
    let last = stack.home.last_event();
    stack.signal("backend", Signal::SIGKILL);
    stack.await_of(last, "unit.failed", "backend");
    let journal =
        fs::read_to_string(stack.home.path().join("data/backend/journal.jsonl")).expect("a journal");
    assert!(journal.contains("00000000-0000-4000-8000-000000000007"), "{journal}");
    stack.home.upright_exits(&["start", "postgres"], 0);
    stack.home.await_state("backend", "active", SOON);
    // A new process owes nothing to a return that it did not see: it writes its journal back itself.
    let (_, sessions) = stack.ask("GET", "/api/sessions", "");
    assert_eq!((&sessions["count"], &sessions["journal"]), (&1.into(), &0.into()), "{sessions}");
    assert_eq!(stack.resync_calls(), 0);
}
