//! The KPIs of a real daemon under faults, and a recount of its log by a script that shares no code with it:
//! they agree to the last event. What the test did itself is the third witness.
//!
//! `UPRIGHT_KPI_S=3600` makes it an hour of faults.
//!
//! Refuses: sleeping where something can be awaited.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{Home, eventually, skip_tool};

const SOON: Duration = Duration::from_secs(30);

/// How long faults are made, without `UPRIGHT_KPI_S`.
const FAULTS_S: u64 = 40;

/// Time in states is counted by two clocks: a record has both, read one after the other.
const STATE_SLACK_S: f64 = 0.2;

fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok_and(|out| out.status.success())
}

/// What the test did.
#[derive(Debug, Default)]
struct Done {
    crashes: u64,
    hangs: u64,
    outages: u64,
    restarts_of_failing: u64,
    engine_kills: u64,
}

fn units(home: &Home) {
    let sleeper = "[service]\ncommand = [\"sleep\", \"100000\"]\n";
    let (sick, well) = (home.path().join("sick"), home.path().join("well"));
    home.unit("crash", &format!("{sleeper}[restart]\ndelays = [\"100ms\"]\n[alert]\nafter_failures = 2\n"));
    home.unit(
        "hang",
        &format!(
            "{sleeper}[health]\nexec = [\"test\", \"!\", \"-e\", \"{}\"]\ninterval = \"100ms\"\nthreshold = 2\n\
             [restart]\ndelays = [\"100ms\"]\n",
            sick.display()
        ),
    );
    home.unit("db", &format!("{sleeper}[restart]\ndelays = [\"300ms\"]\n"));
    home.unit(
        "web",
        &format!(
            "[unit]\nrequires = [\"db\"]\n{sleeper}[resync]\ncommand = [\"true\"]\ndelays = [\"100ms\"]\n"
        ),
    );
    let until_well = format!("test -e {} && exec sleep 100000; exit 3", well.display());
    home.unit(
        "flappy",
        &format!(
            "[unit]\nenabled = false\n[service]\nshell = true\ncommand = '''{until_well}'''\n\
             [restart]\ndelays = [\"100ms\", \"100ms\", \"100ms\", \"100ms\", \"1h\"]\n"
        ),
    );
    let talk = "while :; do echo 0123456789; sleep 0.05; done";
    home.unit("talker", &format!("[service]\nshell = true\ncommand = '''{talk}'''\n"));
}

fn engine(home: &Home) -> i32 {
    let pid = home.list().and_then(|list| list["daemon"]["engine_pid"].as_i64()).expect("an engine");
    i32::try_from(pid).expect("a pid")
}

/// Kills the unit's process and waits for the next one to be ready.
fn crash(home: &Home, unit: &str) {
    let old = home.pid(unit);
    kill(Pid::from_raw(old), Signal::SIGKILL).expect("it lives");
    let back = |status: &Value| status["state"] == "active" && status["pid"].as_i64() != Some(i64::from(old));
    home.await_unit(unit, "it is back", SOON, back);
}

fn hang(home: &Home) {
    let (old, sick) = (home.pid("hang"), home.path().join("sick"));
    fs::write(&sick, "").expect("written");
    home.await_unit("hang", "it is found unhealthy", SOON, |status| status["state"] != "active");
    fs::remove_file(&sick).expect("removed");
    let back = |status: &Value| status["state"] == "active" && status["pid"].as_i64() != Some(i64::from(old));
    home.await_unit("hang", "it is back", SOON, back);
}

/// The database is gone for a while; its dependent is told when it is back.
fn outage(home: &Home) {
    let before = home.last_event();
    crash(home, "db");
    home.await_event(before, "web has restored its state", SOON, |event| {
        event["event"] == "resync.succeeded" && event["unit"] == "web"
    });
    home.await_state("web", "active", SOON);
}

/// It fails five times and waits for an hour; an operator restarts it when the cause is gone.
fn restart_by_hand(home: &Home) {
    let before = home.last_event();
    home.upright(&["start", "flappy", "--no-wait"]);
    home.await_event(before, "it has failed five times", SOON, |event| {
        event["event"] == "unit.failed" && event["unit"] == "flappy" && event["data"]["failures"] == 5
    });
    home.await_state("flappy", "backoff", SOON);
    fs::write(home.path().join("well"), "").expect("written");
    home.upright_exits(&["restart", "flappy"], 0);
    home.await_state("flappy", "active", SOON);
    home.upright_exits(&["stop", "flappy"], 0);
    home.upright_exits(&["clear", "flappy"], 0);
    fs::remove_file(home.path().join("well")).expect("removed");
}

fn kill_engine(home: &Home) {
    let old = engine(home);
    kill(Pid::from_raw(old), Signal::SIGKILL).expect("it lives");
    eventually("another engine answers", SOON, || {
        (home.list()?["daemon"]["engine_pid"].as_i64()? != i64::from(old)).then_some(())
    });
    home.await_event(0, "it has said so", SOON, |event| event["event"] == "engine.restarted");
}

fn make_faults(home: &Home, done: &mut Done) {
    for _ in 0..3 {
        crash(home, "crash");
        done.crashes += 1;
    }
    hang(home);
    done.hangs += 1;
    outage(home);
    done.outages += 1;
    restart_by_hand(home);
    done.restarts_of_failing += 1;
    // Bytes of the logs are on record when somebody asks; those since then go with the engine.
    home.get("/api/metrics/v0_1/summary");
    kill_engine(home);
    done.engine_kills += 1;
}

fn settle(home: &Home) {
    for unit in ["crash", "hang", "db", "web", "talker"] {
        home.await_state(unit, "active", SOON);
    }
    eventually("every alert has its channel", SOON, || {
        let alerts = home.get("/v1/alerts?limit=10000");
        let pending = |alert: &Value| {
            alert["channels"].as_array().is_some_and(|all| all.iter().any(|c| c["state"] == "pending"))
        };
        (!alerts["alerts"].as_array()?.iter().any(pending)).then_some(())
    });
}

/// The summary, and the recount of the same window.
fn both(home: &Home, since: &str) -> (Value, Value) {
    let summary = home.get(&format!("/api/metrics/v0_1/summary?since={since}"));
    let through = summary["last_event_id"].as_u64().expect("an id");
    let log = home.path().join("log/system_resilience.log");
    eventually("its events stand in the log", SOON, || {
        let text = fs::read_to_string(&log).ok()?;
        let last: Value = serde_json::from_str(text.lines().last()?).ok()?;
        (last["id"].as_u64()? >= through).then_some(())
    });
    (summary.clone(), recount(&log, &summary, through))
}

fn recount(log: &Path, summary: &Value, through: u64) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kpi/recount.py");
    let text = |key: &str| summary[key].as_str().expect("a time").to_string();
    let out = Command::new("python3")
        .args(["-B".as_ref(), script.as_os_str(), log.as_os_str()])
        .args(["--since", &text("from"), "--until", &text("until"), "--through", &through.to_string()])
        .output()
        .expect("python3 runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

/// All that the recount says stands in the summary, to the last event.
fn assert_agree(summary: &Value, recount: &Value, path: &str) {
    match recount {
        Value::Object(fields) => {
            for (key, value) in fields.iter().filter(|(key, _)| *key != "state_s") {
                assert_agree(&summary[key], value, &format!("{path}.{key}"));
            }
        }
        Value::Number(number) => {
            let (said, counted) = (summary.as_f64(), number.as_f64().expect("a number"));
            let near = said.is_some_and(|said| (said - counted).abs() <= counted.abs() * 1e-9);
            assert!(near, "{path}: the summary says {summary}, the recount {recount}");
        }
        _ => assert_eq!(summary, recount, "{path}"),
    }
}

fn assert_states_agree(summary: &Value, recount: &Value) {
    for (unit, states) in recount["state_s"].as_object().expect("units") {
        for (state, seconds) in states.as_object().expect("states") {
            let said = summary["units"][unit]["state_s"][state].as_f64().unwrap_or(0.0);
            let counted = seconds.as_f64().expect("seconds");
            assert!((said - counted).abs() < STATE_SLACK_S, "{unit} {state}: {said} and {counted}");
        }
    }
}

#[test]
fn the_summary_is_what_a_recount_of_the_log_says() {
    if skip_tool((!has_python()).then_some("python3")) {
        return;
    }
    let asked = std::env::var("UPRIGHT_KPI_S").ok().and_then(|text| text.parse().ok());
    let until = Instant::now() + Duration::from_secs(asked.unwrap_or(FAULTS_S));
    let mut home = Home::new();
    // Rotated under way: the recount has to read the older files too.
    let toml = "[store]\nlog_max_size = \"64KiB\"\nlog_max_files = 1000\n";
    fs::write(home.path().join("upright.toml"), toml).expect("upright.toml");
    units(&home);
    home.daemon();
    settle(&home);
    let mut done = Done::default();
    let mut rounds = Vec::new();
    while Instant::now() < until || rounds.len() < 2 {
        // More than five engines in a minute make the next ones careful, which is another test's matter.
        make_faults(&home, &mut done);
        let now = home.events().last().expect("events")["ts"].as_str().expect("ts").to_string();
        rounds.push(now);
    }
    settle(&home);

    let (summary, counted) = both(&home, "24h");
    assert_agree(&summary, &counted, "");
    assert_states_agree(&summary, &counted);
    assert_is_what_was_done(&summary, &done);

    // Windows that begin in the middle, also of an outage.
    let failed = home.events().iter().rfind(|event| event["event"] == "unit.failed").cloned();
    let failed = failed.expect("a failure")["ts"].as_str().expect("ts").to_string();
    for since in rounds.iter().rev().skip(1).take(3).chain([&failed]) {
        let (summary, counted) = both(&home, since);
        assert_agree(&summary, &counted, since);
        assert_states_agree(&summary, &counted);
        assert!(summary["failures"].as_u64() > Some(0));
    }
    println!("{} rounds, {} events, {done:?}", rounds.len(), summary["last_event_id"]);
    assert_is_shown(&home, &summary);

    // The engine is gone, and with it what it had in memory: the books are the same.
    kill_engine(&home);
    settle(&home);
    let (again, counted) = both(&home, "24h");
    assert_agree(&again, &counted, "");
    assert_eq!(again["failures"], summary["failures"]);
}

fn assert_is_what_was_done(summary: &Value, done: &Done) {
    let of = |unit: &str, key: &str| summary["units"][unit][key].as_u64().expect("a number");
    assert_eq!(of("crash", "failures"), done.crashes, "{done:?}");
    assert_eq!(of("hang", "failures"), done.hangs, "{done:?}");
    assert_eq!(of("db", "recoveries"), done.outages, "{done:?}");
    assert_eq!(of("flappy", "failures"), 5 * done.restarts_of_failing, "{done:?}");
    assert_eq!(summary["manual_interventions"], done.restarts_of_failing);
    assert_eq!(summary["helped_outages"], done.restarts_of_failing);
    assert_eq!(summary["engine_deaths"], done.engine_kills);
    assert_eq!((&summary["fatal_stops"], &summary["open_outages"]), (&0.into(), &0.into()));
    assert_eq!((&summary["alerts"]["missed"], &summary["alerts"]["pending"]), (&0.into(), &0.into()));
    assert!(summary["alerts"]["raised"].as_u64() > Some(0) && summary["log"]["bytes"].as_u64() > Some(1_000));
    assert_eq!(summary["resync"]["succeeded"], summary["resync"]["attempted"]);
    assert_eq!(summary["drill"]["failures"], 0);
    // A health check that is bad twice in a row is found in a second and a bit, a crash at once.
    let detect = summary["units"]["hang"]["mttd_s"]["max"].as_f64().expect("a time");
    assert!((0.1..5.0).contains(&detect), "{detect}");
}

/// What a person sees; an operator had a hand in it, so not all pass.
fn assert_is_shown(home: &Home, summary: &Value) {
    let table = home.upright_exits(&["kpi"], 1);
    let line = |kpi: &str| table.lines().find(|line| line.starts_with(kpi)).expect("a row").to_string();
    assert!(line("manual-interventions").ends_with("FAIL"), "{table}");
    assert!(line("missed-alerts").ends_with("PASS") && line("log-loss").ends_with("PASS"), "{table}");
    println!("{table}");
    let json: Value =
        serde_json::from_str(&home.upright_exits(&["kpi", "--since", "24h", "--json"], 1)).expect("JSON");
    assert_eq!(json["failures"], summary["failures"]);
}

#[test]
fn a_home_in_which_nothing_failed_passes() {
    let mut home = Home::new();
    home.unit("web", "[service]\ncommand = [\"sleep\", \"100000\"]\n");
    home.daemon();
    home.await_state("web", "active", SOON);
    let table = home.upright_exits(&["kpi", "--since", "1h"], 0);
    let recovery = table.lines().find(|line| line.starts_with("mean-time-to-recovery")).expect("a row");
    assert!(recovery.ends_with("no data"), "{table}");
    assert!(!table.lines().any(|line| line.ends_with("FAIL")), "{table}");
    for (since, status) in [("90d", 200), ("2026-01-01T00:00:00Z", 200), ("soon", 400), ("", 400)] {
        assert_eq!(
            home.request("GET", &format!("/api/metrics/v0_1/summary?since={since}"), "").0,
            status,
            "{since}"
        );
    }
    let summary = home.get("/api/metrics/v0_1/summary?since=30m");
    assert_eq!(summary["window_s"], 1800.0);
    assert_eq!(summary["auto_recovery_rate"], Value::Null);
    assert!(summary["units"]["web"]["availability"].as_f64() > Some(0.0), "{summary}");
}
