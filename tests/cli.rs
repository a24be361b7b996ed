//! The command line as people see it: help texts, tables, messages, exit codes.
//!
//! Refuses: the daemon. A server of canned answers stands in, so each text has one cause.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use upright::api::access::Access;
use upright::api::call::{Answer, Call, LogForm, LogQuery, Peer, PiecesOf, Verb};
use upright::api::server;
use upright::api::types::{
    ActionReply, AlertDelivery, AlertLine, AlertList, DaemonInfo, ErrorBody, EventLine, EventList, LogLine,
    LogLines, Unit, UnitCard, UnitList, UnitOutcome,
};
use upright::cli::logs::Stamps;
use upright::cli::render::{Look, Paint};
use upright::cli::{act, alert, events, graph, logs, status};

const NOW: &str = "2026-11-21T20:00:00Z";

// ---- golden texts ----

fn check(case: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(case);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(&path, text).expect("write");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{case} reads otherwise now; BLESS=1 rewrites it. It reads:\n{text}");
}

fn now() -> Timestamp {
    NOW.parse().expect("time")
}

fn look(width: Option<usize>, paint: Paint) -> Look {
    Look { paint, width, zone: TimeZone::UTC }
}

fn unit(name: &str, state: &str, reason: &str) -> Unit {
    Unit {
        name: name.into(),
        description: String::new(),
        state: state.into(),
        reason: reason.into(),
        since: "2026-11-21T19:56:48Z".into(),
        pid: None,
        run: None,
        restarts: 0,
        failures: 0,
        health: "none".into(),
        next_retry_at: None,
        waiting_for: vec![],
        requires: vec![],
        wants: vec![],
        after: vec![],
        wanted: true,
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn list(units: Vec<Unit>) -> UnitList {
    let daemon = DaemonInfo {
        version: "0.1.0".into(),
        mode: "normal".into(),
        keeper_pid: 10,
        engine_pid: 11,
        started_at: "2026-11-21T19:00:00Z".into(),
        containment: "cgroup".into(),
        troubles: Vec::new(),
    };
    UnitList { schema_version: 1, daemon, units }
}

/// One unit in each state, one of them hostile.
fn zoo() -> UnitList {
    let active = Unit {
        pid: Some(4242),
        run: Some(17),
        health: "healthy".into(),
        ..unit("postgres", "active", "ready: it accepts clients")
    };
    let degraded = Unit {
        pid: Some(4300),
        restarts: 12,
        requires: names(&["postgres", "redis"]),
        wants: names(&["mailer"]),
        after: names(&["postgres", "redis", "mailer"]),
        ..unit(
            "backend",
            "degraded",
            "redis is down; it keeps running and will be resynced when redis is back",
        )
    };
    let backoff = Unit {
        failures: 2,
        restarts: 2,
        next_retry_at: Some("2026-11-21T20:00:07Z".into()),
        ..unit("redis", "backoff", "was killed (SIGKILL)")
    };
    let hostile = unit("mailer", "failed", "said \u{1b}[2J\r\u{202e}evil\nand more");
    let waiting = Unit {
        waiting_for: names(&["redis"]),
        requires: names(&["redis"]),
        ..unit("worker", "waiting", "waits for redis")
    };
    let off = Unit { wanted: false, ..unit("cron", "inactive", "stopped by an operator") };
    list(vec![degraded, off, hostile, active, backoff, waiting])
}

fn event(id: u64, level: &str, event: &str, unit: Option<&str>, message: &str) -> EventLine {
    EventLine {
        id,
        ts: format!("2026-11-21T19:59:0{id}.123456Z"),
        level: level.into(),
        event: event.into(),
        unit: unit.map(String::from),
        run: None,
        cause: None,
        message: message.into(),
        at_ns: 0,
        data: serde_json::Map::new(),
    }
}

fn story() -> Vec<EventLine> {
    vec![
        event(1, "INFO", "engine.started", None, "the engine has taken over 6 units"),
        event(2, "WARN", "unit.failed", Some("redis"), "was killed (SIGKILL)"),
        event(3, "INFO", "unit.waiting", Some("worker"), "worker waits for redis"),
        event(4, "ERROR", "retry.exhausted", Some("mailer"), "gave up after 3 failures\n2026 FORGED\u{7}"),
    ]
}

fn lines() -> Vec<LogLine> {
    let line = |unit: &str, line: &str| LogLine {
        unit: unit.into(),
        stream: "stdout".into(),
        kind: "line".into(),
        ts: "2026-11-21T19:59:01.000250Z".into(),
        line: line.into(),
        ..LogLine::default()
    };
    let mark = |kind: &str, text: &str| LogLine { kind: kind.into(), ..line("backend", text) };
    vec![
        line("backend", "listening"),
        line("redis", "\u{1b}]52;c;ZXZpbA==\u{7}hi"),
        line("backend", "a\tb"),
        mark("exited", "run 17 exited (code 1)"),
        mark("lost", "4096 bytes were dropped here: they could not be stored"),
        // Broken UTF-8 is shown byte by byte, pieces of long lines with their cuts.
        LogLine { base64: Some("Y2Fm6Q==".into()), piece: Some("end".into()), ..line("redis", "?") },
    ]
}

#[test]
fn tables_read_as_they_should() {
    check("status/plain", &status::render_table(&zoo(), now(), &look(None, Paint::Plain)));
    check("status/narrow", &status::render_table(&zoo(), now(), &look(Some(80), Paint::Plain)));
    check("status/colored", &status::render_table(&zoo(), now(), &look(Some(80), Paint::Colored)));
    let mut empty = list(vec![]);
    empty.daemon.mode = "safe".into();
    empty.daemon.containment = "weak".into();
    check("status/empty", &status::render_table(&empty, now(), &look(None, Paint::Plain)));
    let card = UnitCard {
        unit: zoo().units.swap_remove(0),
        log_tail: names(&["listening", "\u{1b}[31mred"]),
        history: story(),
        causes: vec![],
        removed: false,
    };
    check("status/card", &status::render_card(&card, now(), &look(None, Paint::Plain)));
}

#[test]
fn no_row_is_wider_than_the_terminal() {
    for width in [60, 80, 100, 200] {
        let text = status::render_table(&zoo(), now(), &look(Some(width), Paint::Plain));
        for line in text.lines() {
            let columns = unicode_width::UnicodeWidthStr::width(line);
            assert!(columns <= width.max(76), "{columns} > {width}: {line}");
        }
    }
}

#[test]
fn lines_graphs_and_outcomes_read_as_they_should() {
    let plain = look(None, Paint::Plain);
    let prefixes = logs::Prefixes::of(names(&["redis", "backend"]));
    let text = |prefixes: Option<&logs::Prefixes>, stamps, look: &Look| -> String {
        lines().iter().map(|line| logs::render_line(line, prefixes, stamps, look) + "\n").collect()
    };
    check("logs/several", &text(Some(&prefixes), Stamps::Hidden, &plain));
    check("logs/colored", &text(Some(&prefixes), Stamps::Hidden, &look(None, Paint::Colored)));
    check("logs/one", &text(None, Stamps::Hidden, &plain));
    check("logs/stamped", &text(Some(&prefixes), Stamps::Shown, &plain));
    let told: String = story().iter().map(|event| events::render_line(event, &plain) + "\n").collect();
    check("events/plain", &told);
    check("graph/tree", &graph::render_tree(&zoo(), &plain));
    check("graph/dot", &graph::render_dot(&zoo()));
    let circle = list(vec![
        Unit { requires: names(&["b"]), ..unit("a", "waiting", "") },
        Unit { requires: names(&["a", "gone"]), ..unit("b", "waiting", "") },
    ]);
    check("graph/circle", &graph::render_tree(&circle, &plain));
    let outcome = |unit: &str, outcome: &str, message: Option<&str>, state: &str| UnitOutcome {
        unit: unit.into(),
        outcome: outcome.into(),
        message: message.map(String::from),
        state: state.into(),
    };
    let reply = ActionReply {
        outcomes: vec![
            outcome("backend", "done", None, "active"),
            outcome("cron", "already", None, "active"),
            outcome("mailer", "failed", Some("not ready within 60s"), "backoff"),
            outcome("redis", "superseded", None, "inactive"),
        ],
    };
    let since = BTreeMap::from([("backend".to_string(), "2026-11-21T20:00:01.234Z".to_string())]);
    check("act/start", &act::render_outcomes(Verb::Start, &reply, now(), &since));
    // Up for a moment is not started.
    let brief = ActionReply { outcomes: vec![outcome("brief", "done", None, "backoff")] };
    let said = act::render_outcomes(Verb::Start, &brief, now(), &BTreeMap::new());
    assert_eq!(said, "brief: started, and failed again (backoff)\n");
    assert_eq!(act::order_exit_code(Verb::Start, &brief), 1);
    assert_eq!(act::order_exit_code(Verb::Clear, &brief), 0);
}

// ---- the binary ----

fn upright(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_upright"));
    command.args(words).env_clear().env("TZ", "UTC").stdin(Stdio::null());
    command
}

fn ran(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("run");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("a code"), text(stdout), text(stderr))
}

#[test]
fn every_help_text_is_the_one_in_the_repository() {
    let (code, text, _) = ran(&mut upright(&["--help"]));
    assert_eq!(code, 0);
    check("help/upright", &text);
    for (_, verbs) in upright::cli::args::GROUPS {
        for verb in verbs {
            let (code, text, _) = ran(&mut upright(&[verb, "--help"]));
            assert_eq!(code, 0, "{verb}");
            assert!(text.contains("Example"), "{verb} has no example");
            check(&format!("help/{verb}"), &text);
        }
    }
    let (code, text, _) = ran(&mut upright(&["alert", "list", "--help"]));
    assert_eq!(code, 0);
    check("help/alert-list", &text);
}

#[test]
fn alerts_say_where_they_went_or_why_not() {
    let channel = |channel: &str, state: &str, attempts: u32, error: Option<&str>| AlertDelivery {
        channel: channel.into(),
        state: state.into(),
        attempts,
        at: None,
        error: error.map(String::from),
    };
    let alert = |unit: Option<&str>, kind: &str, message: &str, channels: Vec<AlertDelivery>| AlertLine {
        id: format!("{}/3/{kind}/4", unit.unwrap_or("upright")),
        ts: "2026-11-21T19:56:48Z".into(),
        unit: unit.map(String::from),
        kind: kind.into(),
        severity: "critical".into(),
        message: message.into(),
        failures: 4,
        episode: 3,
        affected: vec![],
        channels,
    };
    let full = Some("cannot append to /mnt/alerts.jsonl: No space left on device (os error 28)");
    let list = AlertList {
        alerts: vec![
            alert(
                Some("web"),
                "recovered",
                "web has recovered after 5 failures",
                vec![channel("file", "pending", 0, None)],
            ),
            alert(
                Some("web"),
                "failing",
                "web failed 4 times in a row: said \u{1b}[2J\nand more; affected: shop",
                vec![channel("file", "delivered", 2, None), channel("mount", "pending", 7, full)],
            ),
            alert(
                Some("mail"),
                "stuck",
                "mail is stuck",
                vec![channel("ops", "parked", 1, Some("channel is gone"))],
            ),
            alert(None, "config-error", "web.toml is broken", vec![]),
        ],
    };
    check("alert/plain", &alert::render_table(&list, now(), &look(None, Paint::Plain)));
    check("alert/colored", &alert::render_table(&list, now(), &look(Some(110), Paint::Colored)));
    let none = AlertList { alerts: vec![] };
    check("alert/empty", &alert::render_table(&none, now(), &look(None, Paint::Plain)));
}

#[test]
fn a_missing_daemon_is_told_with_the_next_step() {
    let home = tempfile::tempdir().expect("tempdir");
    let dir = home.path().to_str().expect("text");
    let commands: [&[&str]; 7] = [
        &["status"],
        &["status", "web"],
        &["logs", "-f"],
        &["events", "-f"],
        &["graph"],
        &["start", "web"],
        &["signal", "HUP", "web"],
    ];
    for words in commands {
        let (code, out, err) = ran(upright(words).env("UPRIGHT_HOME", dir));
        let want = format!(
            "error: cannot reach the daemon at {dir}/run/upright.sock: no such file; is it running? start it with `upright daemon --home {dir}`\n"
        );
        assert_eq!((code, out.as_str(), err), (5, "", want), "{words:?}");
    }
}

#[test]
fn wrong_words_exit_2() {
    for words in [
        &["frobnicate"][..],
        &["start"],
        &["start", "a", "--all"],
        &["start", "a", "--timeout", "5"],
        &["logs", "-n", "x"],
        &["logs", "web", "-f", "--until", "now"],
        &["logs", "web", "--raw", "--json"],
        &["logs", "web", "--since", "someday"],
        &[],
    ] {
        let (code, out, err) = ran(&mut upright(words));
        assert_eq!((code, out.as_str()), (2, ""), "{words:?}");
        assert!(!err.is_empty(), "{words:?}");
    }
    let (code, _, err) = ran(&mut upright(&["signal", "SIGTREM", "web"]));
    assert_eq!((code, err.as_str()), (2, "error: `SIGTREM` is no signal\nhelp: did you mean SIGTERM?\n"));
    let (code, _, err) = ran(&mut upright(&["events", "--since", "someday"]));
    assert_eq!(code, 2, "{err}");
}

/// A home with a socket that gives canned answers.
struct Canned {
    home: tempfile::TempDir,
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Canned {
    fn start(list: UnitList) -> Canned {
        let home = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(home.path().join("run")).expect("run");
        let socket: PathBuf = home.path().join("run/upright.sock");
        let listener = std::os::unix::net::UnixListener::bind(socket).expect("bind");
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let record = calls.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(async {
                let listener = server::listener_from(listener.into()).expect("listener");
                let own_uid = nix::unistd::geteuid().as_raw();
                let access = Access { own_uid, ..Access::default() };
                let handler = move |_: Peer, call: Call| {
                    record.lock().expect("calls").push(call.clone());
                    canned(call, list.clone())
                };
                tokio::select! {
                    _ = server::serve(listener, access, handler) => {}
                    _ = stopped => {}
                }
            });
        });
        Canned { home, calls, stop: Some(stop), thread: Some(thread) }
    }

    fn upright(&self, words: &[&str]) -> Command {
        let mut command = upright(words);
        command.arg("--home").arg(self.home.path());
        command
    }

    fn last_call(&self) -> Call {
        self.calls.lock().expect("calls").last().cloned().expect("a call")
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic has been printed
        }
    }
}

fn json(value: &impl Serialize) -> Answer {
    Answer::Json(serde_json::to_vec(value).expect("json").into())
}

async fn canned(call: Call, list: UnitList) -> Answer {
    let known = |name: &str| list.units.iter().find(|unit| unit.name == name).cloned();
    match call {
        Call::Units => json(&list),
        Call::Unit { name } => match known(&name) {
            Some(unit) => {
                json(&UnitCard { unit, log_tail: vec![], history: vec![], causes: vec![], removed: false })
            }
            None => unknown(&name),
        },
        Call::Act { units, .. } if units == ["hang"] => std::future::pending().await,
        Call::Act { units, .. } => match units.iter().find(|name| known(name).is_none()) {
            Some(stranger) => unknown(stranger),
            None => json(&ActionReply { outcomes: units.iter().map(|unit| outcome(unit)).collect() }),
        },
        Call::Signal { name, .. } => json(&ActionReply { outcomes: vec![outcome(&name)] }),
        Call::Logs(LogQuery { follow: true, .. }) => stream(&lines()),
        Call::Logs(LogQuery { follow: false, .. }) => {
            let event = |line| format!("data: {}\n\n", serde_json::to_string(&line).expect("json"));
            let items: String = lines().into_iter().map(event).collect();
            let (sender, pieces) = tokio::sync::mpsc::channel(1);
            sender.try_send(Bytes::from(items + "event: end\ndata: {}\n\n")).expect("room");
            Answer::Pieces(PiecesOf::Events, pieces)
        }
        Call::Events { follow: false, .. } => json(&EventList { events: story() }),
        Call::Events { follow: true, .. } => stream(&story()),
        Call::Alerts { .. } => json(&AlertList { alerts: vec![] }),
        Call::Livez
        | Call::Readyz
        | Call::Metrics
        | Call::Health
        | Call::ConfigErrors
        | Call::ConfigPlan
        | Call::ConfigApply { .. }
        | Call::RestartInactive { .. }
        | Call::Upgrade
        | Call::Summary { .. }
        | Call::BeginUpgrade => Answer::Plain(200, "ok"),
    }
}

fn unknown(name: &str) -> Answer {
    let message = format!("there is no unit `{name}`");
    Answer::Error(404, ErrorBody { code: "unit.unknown".into(), message, help: None })
}

fn outcome(unit: &str) -> UnitOutcome {
    let (outcome, message) = match unit {
        "mailer" => ("failed", Some("exited (code 1)".to_string())),
        _ => ("done", None),
    };
    UnitOutcome { unit: unit.into(), outcome: outcome.into(), message, state: "active".into() }
}

/// Sends the items, then stays open for as long as somebody reads.
fn stream<T: Serialize>(items: &[T]) -> Answer {
    let (sender, receiver) = tokio::sync::mpsc::channel(8);
    for item in items {
        sender.try_send(Bytes::from(serde_json::to_vec(item).expect("json"))).expect("room");
    }
    tokio::spawn(async move { sender.closed().await });
    Answer::Stream(receiver)
}

#[test]
fn status_exits_as_the_units_are() {
    let daemon = Canned::start(zoo());
    let (code, out, err) = ran(&mut daemon.upright(&["status"]));
    assert_eq!((code, err.as_str(), out.lines().count()), (3, "", 7));
    assert_eq!(ran(&mut daemon.upright(&["status", "postgres"])).0, 0);
    assert_eq!(ran(&mut daemon.upright(&["status", "postgres", "cron"])).0, 3);
    assert_eq!(ran(&mut daemon.upright(&["status", "cron"])).0, 3);
    assert_eq!(ran(&mut daemon.upright(&["status", "backend"])).0, 3);
    for words in [&["status", "postgre"][..], &["status", "cron", "postgre"], &["start", "postgre"]] {
        let (code, out, err) = ran(&mut daemon.upright(words));
        let want = "error: there is no unit `postgre`\nhelp: did you mean `postgres`?\n";
        assert_eq!((code, out.as_str(), err.as_str()), (4, "", want), "{words:?}");
    }
    let off = |name| Unit { wanted: false, ..unit(name, "inactive", "stopped by an operator") };
    for (units, want) in [
        (vec![], 0),
        (vec![off("a"), unit("b", "active", "ready")], 0),
        (vec![off("a"), off("b")], 3),
        (vec![unit("a", "degraded", "redis is down")], 3),
    ] {
        let daemon = Canned::start(list(units.clone()));
        assert_eq!(ran(&mut daemon.upright(&["status"])).0, want, "{units:?}");
    }
    let (_, out, _) = ran(&mut daemon.upright(&["status", "--json"]));
    assert_eq!(serde_json::from_str::<UnitList>(&out).expect("json"), zoo());
    let (_, out, _) = ran(&mut daemon.upright(&["status", "--json", "postgres"]));
    assert_eq!(serde_json::from_str::<UnitCard>(&out).expect("json").unit.name, "postgres");
}

#[test]
fn orders_tell_their_outcome() {
    let daemon = Canned::start(zoo());
    let (code, out, _) = ran(&mut daemon.upright(&["stop", "postgres"]));
    assert_eq!((code, out.as_str()), (0, "postgres: stopped (active)\n"));
    let (code, out, err) = ran(&mut daemon.upright(&["start", "mailer", "postgres"]));
    assert_eq!(code, 1);
    assert_eq!(out, "mailer: cannot start: exited (code 1) (active)\npostgres: started (active)\n");
    assert_eq!(err, "help: look at `upright why mailer` and `upright logs mailer`\n");
    let (code, out, _) = ran(&mut daemon.upright(&["restart", "redis", "--no-wait"]));
    assert_eq!((code, out.as_str()), (0, "redis: restart ordered\n"));
    let want = Call::Act { verb: Verb::Restart, units: names(&["redis"]), all: false, wait: false };
    assert_eq!(daemon.last_call(), want);
    let (code, out, _) = ran(&mut daemon.upright(&["signal", "usr1", "redis"]));
    assert_eq!((code, out.as_str()), (0, "redis: SIGUSR1 sent\n"));
    let (code, out, err) = ran(&mut daemon.upright(&["start", "hang", "--timeout", "50ms"]));
    assert_eq!((code, out.as_str()), (7, ""), "{err}");
    assert!(err.contains("timed out after 50ms"), "{err}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let units = (0..3_000).map(|n| unit(&format!("unit-{n}"), "active", "ready")).collect();
    let daemon = Canned::start(list(units));
    let mut child =
        daemon.upright(&["status"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    let mut first = String::new();
    // The reader is dropped with the line: the pipe closes while 200 KB are still to come.
    BufReader::with_capacity(16, child.stdout.take().expect("stdout")).read_line(&mut first).expect("line");
    let mut err = String::new();
    child.stderr.take().expect("stderr").read_to_string(&mut err).expect("stderr");
    assert_eq!((child.wait().expect("wait").code(), err.as_str()), (Some(0), ""));
    assert!(first.starts_with("UNIT"), "{first}");
}

#[test]
fn streams_are_shown_as_they_come_and_end_with_their_reader() {
    let daemon = Canned::start(zoo());
    for (words, count) in [(&["events", "-f"][..], 4), (&["logs", "-f", "--json"], 6)] {
        let mut child = daemon.upright(words).stdout(Stdio::piped()).spawn().expect("spawn");
        let mut out = BufReader::new(child.stdout.take().expect("stdout")).lines();
        for _ in 0..count {
            let line = out.next().expect("a line").expect("text");
            assert!(line.bytes().all(|b| b >= b' '), "{line:?}");
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
    let (code, out, _) = ran(&mut daemon.upright(&["logs", "backend", "redis", "-n", "3"]));
    assert_eq!((code, out.lines().count()), (0, lines().len()));
    let units = names(&["backend", "redis"]);
    let want = LogQuery { units, lines: Some(3), form: LogForm::Events, ..LogQuery::default() };
    assert_eq!(daemon.last_call(), Call::Logs(want));
    let (code, out, _) = ran(&mut daemon.upright(&["logs", "backend", "--json"]));
    let list: LogLines = serde_json::from_str(&out).expect("json");
    assert_eq!((code, list.lines), (0, lines()));
    let (code, _, _) = ran(&mut daemon.upright(&["events", "--since", "10m"]));
    assert_eq!(code, 0);
    assert!(matches!(daemon.last_call(), Call::Events { since: Some(_), limit: 1_000, follow: false, .. }));
}

#[test]
fn a_thousand_units_are_shown_at_once() {
    let units = (0..1_000).map(|n| unit(&format!("unit-{n}"), "active", "ready")).collect();
    let daemon = Canned::start(list(units));
    let begun = std::time::Instant::now();
    let (code, out, _) = ran(&mut daemon.upright(&["status"]));
    let took = begun.elapsed();
    assert_eq!((code, out.lines().count()), (0, 1_001));
    // A bound for a debug build on a busy machine; a release build is far below 20 ms.
    assert!(took < Duration::from_secs(5), "{took:?}");
    if std::env::var_os("MEASURE").is_some() {
        panic!("took {took:?}");
    }
}
