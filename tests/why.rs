//! `upright why`: what it says of a unit in each state, and down a chain, on paper and live.
//!
//! Refuses: the schedule. That a retry comes when it is announced is tested elsewhere.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use upright::api::client::ClientError;
use upright::api::types::{ConfigError, ErrorBody, EventLine, Unit, UnitCard};
use upright::cli::render::{Look, Paint};
use upright::cli::told::{Clock, Dates};
use upright::cli::why::{Gather, Why, render};

use support::Home;

const SOON: Duration = Duration::from_secs(20);

fn check(case: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(case);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(&path, text).expect("write");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{case} reads otherwise now; BLESS=1 rewrites it. It reads:\n{text}");
}

// ---- canned units ----

fn card(name: &str, state: &str, reason: &str) -> UnitCard {
    let unit = Unit {
        name: name.into(),
        description: String::new(),
        state: state.into(),
        reason: reason.into(),
        since: "2026-11-21T12:00:03.250000Z".into(),
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
    };
    UnitCard { unit, log_tail: vec![], history: vec![], causes: vec![], removed: false }
}

/// An event of `unit`, `second` seconds after 12:00.
fn event(id: u64, second: u32, unit: &str, event: &str, message: &str, data: Value) -> EventLine {
    let Value::Object(data) = data else { panic!("{data} is no object") };
    EventLine {
        id,
        ts: format!("2026-11-21T12:00:{second:02}.250000Z"),
        level: "INFO".into(),
        event: event.into(),
        unit: Some(unit.into()),
        run: Some(7),
        cause: data.get("cause").and_then(Value::as_str).map(str::to_string),
        message: format!("{unit} {message}"),
        at_ns: 0,
        data,
    }
}

/// The two lines that an operator's order leaves.
fn order(id: u64, second: u32, unit: &str, verb: &str) -> [EventLine; 2] {
    let data = json!({ "verb": verb, "units": [unit], "uid": 1000, "pid": 77 });
    let asked =
        event(id, second, unit, "order.asked", &format!("user 1000 (process 77) asked to {verb}"), data);
    let taken = event(
        id + 1,
        second,
        unit,
        "order.taken",
        &format!("was ordered to {verb}"),
        json!({ "verb": verb }),
    );
    [EventLine { unit: None, ..asked }, taken]
}

fn killed(id: u64, second: u32, unit: &str, failures: u32) -> EventLine {
    let data =
        json!({ "cause": "was killed (SIGKILL)", "signal": "SIGKILL", "failures": failures, "blame": [] });
    let text = format!("failed: was killed (SIGKILL); failure {failures} in a row");
    event(id, second, unit, "unit.failed", &text, data)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn in_backoff(name: &str) -> UnitCard {
    let mut card = card(name, "backoff", "was killed (SIGKILL); failure 2 in a row");
    card.unit.failures = 2;
    card.unit.next_retry_at = Some("2026-11-21T12:00:13.250000Z".into());
    card.log_tail = names(&["one", "two", "LOG:  received \u{1b}[31mfast\u{7} shutdown", "\u{202e}last"]);
    card.causes = vec![killed(20, 3, name, 2)];
    card
}

fn degraded() -> UnitCard {
    let mut card = card("backend", "degraded", "waiting: postgres");
    card.unit.waiting_for = names(&["postgres"]);
    card.unit.requires = names(&["postgres", "redis"]);
    card.history = vec![
        event(3, 1, "backend", "unit.active", "is ready after 120ms", json!({})),
        event(21, 3, "backend", "unit.degraded", "goes on without postgres", json!({ "for": ["postgres"] })),
    ];
    card
}

struct Paper {
    cards: BTreeMap<String, UnitCard>,
    broken: Vec<ConfigError>,
}

impl Paper {
    fn of(cards: impl IntoIterator<Item = UnitCard>) -> Paper {
        let cards = cards.into_iter().map(|card| (card.unit.name.clone(), card)).collect();
        Paper { cards, broken: Vec::new() }
    }

    fn clock(dates: Dates) -> Clock {
        let now: Timestamp = "2026-11-21T12:00:06.250Z".parse().expect("time");
        Clock { now, zone: TimeZone::UTC, dates }
    }

    fn why(&self, name: &str, dates: Dates) -> Why {
        let ask = |name: &str| {
            self.cards.get(name).cloned().ok_or_else(|| ClientError::Api {
                status: 404,
                error: ErrorBody { code: "unit.unknown".into(), message: String::new(), help: None },
            })
        };
        let user = |uid: u32| (uid == 1000).then(|| "kim".to_string());
        let seen = Default::default();
        let mut gather =
            Gather { ask: &ask, user: &user, broken: &self.broken, clock: Paper::clock(dates), seen };
        gather.top(name).expect("the unit is there")
    }

    fn text(&self, name: &str, width: Option<usize>) -> String {
        let look = Look { paint: Paint::Plain, width, zone: TimeZone::UTC };
        render(&self.why(name, Dates::Short), &Paper::clock(Dates::Short), &look)
    }
}

/// A unit in every state, by the name of its golden file.
fn states() -> Vec<(&'static str, UnitCard)> {
    let never = UnitCard {
        unit: Unit { wanted: false, ..card("off", "inactive", "not wanted: enabled = false").unit },
        ..card("off", "", "")
    };
    let mut stopped = card("web", "inactive", "stopped");
    stopped.causes = order(30, 2, "web", "stop").to_vec();
    stopped.causes.push(event(33, 3, "web", "unit.stopped", "is stopped", json!({})));
    let mut finished = card("job", "inactive", "finished: exited (code 0)");
    finished.causes = vec![event(9, 3, "job", "unit.finished", "is done", json!({}))];
    let mut activating = card("web", "activating", "not ready yet (connection refused)");
    activating.log_tail = names(&["binding to port 8000"]);
    let mut again = activating.clone();
    again.unit.failures = 2;
    again.causes = vec![killed(20, 2, "web", 2)];
    let mut active = card("web", "active", "ready");
    active.history = vec![
        event(1, 3, "web", "unit.started", "started as process 7", json!({})),
        event(2, 3, "web", "unit.active", "is ready after 20ms", json!({})),
    ];
    let mut recovered = active.clone();
    recovered.unit.failures = 2;
    recovered.history.insert(0, killed(0, 1, "web", 2));
    recovered.history.push(event(3, 3, "web", "unit.recovered", "recovered after 2s; 2 failures", json!({})));
    vec![
        ("inactive-never", never),
        ("inactive-stopped", stopped),
        ("inactive-finished", finished),
        ("activating", activating),
        ("activating-again", again),
        ("active", active),
        ("active-recovered", recovered),
    ]
    .into_iter()
    .chain(unwell())
    .collect()
}

fn unwell() -> Vec<(&'static str, UnitCard)> {
    let active = card("web", "active", "ready");
    let mut sick = active.clone();
    sick.unit.health = "unhealthy".into();
    sick.causes =
        vec![event(4, 5, "web", "health.bad", "had a bad health check: 500", json!({ "cause": "500" }))];
    let mut stale = card("web", "active", "ready, but its state could not be restored");
    stale.causes = vec![event(
        5,
        5,
        "web",
        "resync.failed",
        "could not restore its state",
        json!({ "cause": "HTTP 503" }),
    )];
    let mut stopping = card("web", "deactivating", "asked to end (SIGTERM)");
    stopping.causes = order(30, 3, "web", "stop").to_vec();
    stopping.causes.push(event(33, 3, "web", "unit.stopping", "is being stopped", json!({})));
    let mut dying = card("web", "deactivating", "the grace is over: SIGKILL was sent");
    dying.unit.failures = 1;
    let unhealthy = json!({ "cause": "unhealthy: 3 bad checks in a row (no answer within 3s)", "checks": 3, "blame": [] });
    dying.causes = vec![event(40, 3, "web", "unit.failed", "failed: unhealthy", unhealthy)];
    let gone = UnitCard { removed: true, ..card("web", "deactivating", "asked to end (SIGTERM)") };
    let mut gave_up = card("web", "failed", "gave up after 3 failures: exited (code 1)");
    gave_up.unit.failures = 3;
    gave_up.causes = vec![
        killed(20, 3, "web", 3),
        event(22, 3, "web", "alert.raised", "raised an alert", json!({ "kind": "gave-up" })),
    ];
    gave_up.log_tail = names(&["cannot open /srv/web: permission denied"]);
    let stuck = card("web", "failed", "stuck: a process survived SIGKILL; nothing is started beside it");
    let slot = card("web", "waiting", "waiting for a start slot");
    let short = card("web", "waiting", "short of resources; trying again soon");
    vec![
        ("active-unhealthy", sick),
        ("active-not-restored", stale),
        ("backoff", in_backoff("web")),
        ("deactivating-stop", stopping),
        ("deactivating-failed", dying),
        ("deactivating-removed", gone),
        ("failed-gave-up", gave_up),
        ("failed-stuck", stuck),
        ("waiting-slot", slot),
        ("waiting-shortage", short),
    ]
}

#[test]
fn each_state_reads_as_it_should() {
    for (case, card) in states() {
        let name = card.unit.name.clone();
        check(&format!("why/{case}"), &Paper::of([card]).text(&name, None));
    }
}

#[test]
fn a_chain_is_told_down_to_its_first_cause() {
    let mut deep = in_backoff("postgres");
    // It failed while its disk was away, which is back.
    deep.causes[0].data.insert("blame".into(), json!(["disk"]));
    let mut worker = card("worker", "waiting", "waiting: backend");
    worker.unit.waiting_for = names(&["backend"]);
    worker.unit.requires = names(&["backend"]);
    let mut front = card("front", "waiting", "waiting: worker");
    front.unit.waiting_for = names(&["worker"]);
    front.unit.requires = names(&["worker"]);
    let disk = card("disk", "active", "ready");
    let paper = Paper::of([degraded(), deep, worker, front, disk]);
    check("why/chain", &paper.text("front", None));
    check("why/chain-narrow", &paper.text("backend", Some(40)));
    let why = paper.why("front", Dates::Full);
    check("why/chain-json", &format!("{:#}\n", serde_json::to_value(&why).expect("JSON")));
}

#[test]
fn the_answer_in_the_readme_is_the_real_one() {
    let mut postgres = in_backoff("postgres");
    postgres.causes.push(event(
        19,
        1,
        "postgres",
        "unit.restarted",
        "was restarted after failure 1",
        json!({}),
    ));
    postgres.log_tail =
        names(&["FATAL:  could not write lock file \"postmaster.pid\": No space left on device"]);
    let shown = format!("$ upright why backend\n{}", Paper::of([degraded(), postgres]).text("backend", None));
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let page = std::fs::read_to_string(page).expect("the README");
    assert!(page.contains(&format!("```text\n{shown}```")), "README.md should show:\n{shown}");
}

#[test]
fn records_know_better_than_an_engine_that_took_over() {
    let mut old = degraded();
    old.unit.since = "2026-11-21T12:00:05.000000Z".into();
    let paper = Paper::of([old, in_backoff("postgres")]);
    assert_eq!(paper.why("backend", Dates::Full).since.as_deref(), Some("2026-11-21T12:00:03.250000Z"));
    // A record of an earlier time in the same state says nothing of this one.
    let mut again = degraded();
    again.unit.since = "2026-11-21T12:00:05.000000Z".into();
    again.history.push(event(
        22,
        4,
        "backend",
        "unit.restored",
        "has everything it requires again",
        json!({}),
    ));
    let paper = Paper::of([again, in_backoff("postgres")]);
    assert_eq!(paper.why("backend", Dates::Full).since.as_deref(), Some("2026-11-21T12:00:05.000000Z"));
}

#[test]
fn an_alert_of_an_earlier_episode_is_not_told_again() {
    let alert =
        |id, kind: &str| event(id, 1, "web", "alert.raised", "raised an alert", json!({ "kind": kind }));
    let mut card = in_backoff("web");
    let over = event(5, 1, "web", "episode.ended", "begins anew", json!({}));
    card.causes = vec![alert(1, "failing"), over, alert(6, "recovered"), killed(20, 3, "web", 1)];
    assert_eq!(Paper::of([card.clone()]).why("web", Dates::Full).notes, [""; 0]);
    card.causes.push(alert(21, "failing"));
    assert_eq!(Paper::of([card]).why("web", Dates::Full).notes.len(), 1);
}

#[test]
fn order_conflict_and_unknown_names_read_as_they_should() {
    let waiting = |reason: &str, on: &str| {
        let mut card = card("web", "waiting", reason);
        card.unit.waiting_for = names(&[on]);
        card
    };
    let starting = card("db", "activating", "not ready yet");
    let order = Paper::of([waiting("waiting its turn, after db", "db"), starting]);
    check("why/waiting-order", &order.text("web", None));
    let old = Paper::of([waiting("waiting for the end of old", "old"), card("old", "active", "ready")]);
    check("why/waiting-conflict", &old.text("web", None));
    let mut unknown = waiting("waiting for databse: there is no such unit", "databse");
    unknown.unit.requires = names(&["databse"]);
    let mut unknown = Paper::of([unknown]);
    check("why/waiting-unknown", &unknown.text("web", None));
    // The same name, and a file of it that is broken.
    unknown.broken = vec![broken("units/databse.toml"), broken("units/web.toml")];
    check("why/waiting-broken", &unknown.text("web", None));
}

fn broken(file: &str) -> ConfigError {
    ConfigError {
        file: file.into(),
        line: Some(7),
        column: Some(10),
        code: "unit.unknown-key".into(),
        message: "unknown key `comand` in [service]".into(),
        help: None,
    }
}

#[test]
fn a_circle_ends_and_a_long_chain_is_cut() {
    let link = |name: String, next: String| {
        let mut card = card(&name, "waiting", &format!("waiting: {next}"));
        card.unit.waiting_for = vec![next.clone()];
        card.unit.requires = vec![next];
        card
    };
    let circle = Paper::of([link("a".into(), "b".into()), link("b".into(), "a".into())]);
    check("why/circle", &circle.text("a", None));
    let long = Paper::of((0..1_000).map(|n| link(format!("u{n}"), format!("u{}", n + 1))));
    let text = long.text("u0", None);
    assert!(text.contains("help: `upright why u13` goes on from there"), "{text}");
    assert!(text.lines().count() < 100, "{text}");
    let mut wide = card("wide", "degraded", "waiting: many");
    wide.unit.waiting_for = (0..500).map(|n| format!("d{n}")).collect();
    let wide = Paper::of((0..500).map(|n| card(&format!("d{n}"), "backoff", "")).chain([wide]));
    assert!(wide.why("wide", Dates::Short).because.iter().filter(|why| !why.told_above).count() < 40);
}

#[test]
fn nothing_a_service_says_drives_the_terminal_and_no_line_is_too_wide() {
    let hostile = "\u{1b}[2J\u{1b}]0;x\u{7}\r\u{202e}evil\u{9b}1m";
    for (_, mut card) in states().into_iter().chain([("chain", degraded())]) {
        card.unit.reason.push_str(hostile);
        card.log_tail.push(hostile.to_string());
        for event in card.history.iter_mut().chain(&mut card.causes) {
            event.message.push_str(hostile);
            event.cause = Some(hostile.to_string());
        }
        let name = card.unit.name.clone();
        let paper = Paper::of([card]);
        let text = paper.text(&name, Some(40));
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    }
    for (_, card) in states() {
        let name = card.unit.name.clone();
        for line in Paper::of([card]).text(&name, Some(60)).lines() {
            assert!(unicode_width::UnicodeWidthStr::width(line) <= 60, "{line}");
        }
    }
}

// ---- a real daemon ----

fn sleeper(requires: &str) -> String {
    format!("[unit]\nrequires = [{requires}]\n[service]\ncommand = [\"sleep\", \"100000\"]\n")
}

fn why(home: &Home, unit: &str) -> Value {
    serde_json::from_str(&home.upright_exits(&["why", unit, "--json"], 0)).expect("JSON")
}

#[test]
fn without_a_daemon_it_is_told_how_to_start_one() {
    let home = Home::new();
    let output = home.upright(&["why", "web"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(5), 0), "{said}");
    assert!(said.contains("is it running? start it with `upright daemon --home "), "{said}");
}

#[test]
fn a_killed_requirement_is_the_cause_that_is_told() {
    let mut home = Home::new();
    home.unit("postgres", "[service]\nshell = true\ncommand = \"echo last words; exec sleep 100000\"\n[restart]\ndelays = [\"1m\"]\n");
    home.unit("backend", &sleeper("\"postgres\""));
    home.daemon();
    home.await_state("backend", "active", SOON);
    let healthy = why(&home, "backend");
    assert_eq!((&healthy["state"], healthy["because"].as_array().map(Vec::len)), (&json!("active"), Some(0)));
    let before = home.last_event();
    kill(Pid::from_raw(home.pid("postgres")), Signal::SIGKILL).expect("it lives");
    home.await_state("backend", "degraded", SOON);
    home.await_event(before, "the failure is recorded", SOON, |event| event["event"] == "unit.degraded");
    let told = why(&home, "backend");
    let root = &told["because"][0];
    let failed =
        home.events().into_iter().rev().find(|event| event["event"] == "unit.failed").expect("it failed");
    let at = failed["ts"].as_str().expect("a time");
    let sentence = told["sentence"].as_str().expect("a sentence");
    let want =
        format!("backend is degraded, because postgres was killed (SIGKILL) at {at}; retry 1 follows in ");
    assert!(sentence.starts_with(&want), "{sentence}");
    assert_eq!((&root["unit"], &root["state"]), (&json!("postgres"), &json!("backoff")));
    assert!(root["next_retry_at"].is_string(), "{root}");
    assert_eq!(root["log_tail"], json!(["last words"]));
    assert_eq!(root["causes"][1]["event"], "unit.failed");
    let text = home.upright_exits(&["why", "backend"], 0);
    assert!(text.starts_with("◐ backend is degraded, because postgres was killed (SIGKILL) at "), "{text}");
    assert!(text.contains("\n  ✖ postgres is in backoff, because it was killed (SIGKILL)"), "{text}");
    assert!(text.contains("│ last words\n"), "{text}");
    let card = home.upright(&["status", "backend"]);
    assert!(String::from_utf8_lossy(&card.stdout).contains("`upright why backend`"), "the card points here");
}

#[test]
fn an_operators_stop_is_told_with_its_hand_however_long_ago() {
    let mut home = Home::new();
    home.unit("web", &sleeper(""));
    home.daemon();
    home.await_state("web", "active", SOON);
    home.upright_exits(&["stop", "web"], 0);
    // More lines than a card's history has.
    for _ in 0..15 {
        home.upright_exits(&["clear", "web"], 0);
        home.upright_exits(&["clear", "web"], 0);
    }
    let card = home.get("/v1/units/web");
    let has_stop =
        |key: &str| card[key].as_array().expect("events").iter().any(|event| event["data"]["verb"] == "stop");
    assert!(!has_stop("history") && has_stop("causes"), "{card}");
    let told = why(&home, "web");
    let sentence = told["sentence"].as_str().expect("a sentence");
    assert!(
        sentence.starts_with("web is inactive: it was stopped by an operator's `stop` (")
            && sentence.contains(") at "),
        "{sentence}"
    );
    let causes = told["causes"].as_array().expect("causes");
    let stop = causes.iter().find(|cause| cause["message"] == "web was ordered to stop").expect("the order");
    assert!(stop["by"].as_str().is_some_and(|by| by.contains(", process ")), "{stop}");
    assert_eq!(told["help"], json!(["`upright start web` starts it"]));
}

#[test]
fn held_units_and_broken_files_are_told_with_what_to_type() {
    let mut home = Home::new();
    home.unit("web", "[service]\ncommand = [\"/nonexistent/web\"]\n[restart]\npolicy = \"never\"\n");
    home.unit("good", &sleeper(""));
    home.unit("off", "[unit]\nenabled = false\n[service]\ncommand = [\"sleep\", \"100000\"]\n");
    home.daemon();
    home.await_state("web", "failed", SOON);
    home.await_state("good", "active", SOON);
    let held = why(&home, "web");
    let sentence = held["sentence"].as_str().expect("a sentence");
    assert!(sentence.starts_with("web has failed: it gave up after 1 failure: cannot "), "{sentence}");
    let help = held["help"].to_string();
    assert!(help.contains("`upright clear web` starts it again"), "{help}");
    assert_eq!(
        why(&home, "off")["sentence"],
        "off is inactive: it is not wanted: enabled = false, and nobody ordered a start"
    );
    // A broken file leaves the last good version in force, and a new broken one makes no unit.
    let before = home.last_event();
    home.unit("good", "[service]\ncomand = [\"x\"]\n").unit("fresh", "[service]\ncomand = [\"x\"]\n");
    let keeper = home.get("/v1/units")["daemon"]["keeper_pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(i32::try_from(keeper).expect("a pid")), Signal::SIGHUP).expect("it lives");
    home.await_event(before, "the files were read", SOON, |event| event["event"] == "config.error");
    let told = why(&home, "good");
    let note = told["notes"][0].as_str().expect("a note");
    assert!(note.starts_with("its file is broken, the last good version is in force: "), "{note}");
    assert!(note.contains("units/good.toml:2:1: "), "{note}");
    let output = home.upright(&["why", "fresh"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("units/fresh.toml:2:1: unknown key"), "{said}");
    let output = home.upright(&["why", "gud"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.contains("did you mean `good`?")), (Some(4), true), "{said}");
}
