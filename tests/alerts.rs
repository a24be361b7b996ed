//! Alerts on the real daemon: what is raised arrives, once, in order, whatever dies meanwhile.
//!
//! Refuses: engine code. A test reads the file as a person's tool would.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{Home, eventually, of};

const SOON: Duration = Duration::from_secs(30);

/// Times that the engine is killed.
const KILLS: u64 = 20;

/// Longest random moment between "the engine answers" and its death, in milliseconds.
const MOMENT_MS_MAX: u64 = 120;

/// Fails until the file is there.
fn until(well: &Path) -> String {
    let test = format!("test -e {} && exec sleep 100000; exit 3", well.display());
    format!(
        "[service]\nshell = true\ncommand = '''{test}'''\n[restart]\ndelays = [\"50ms\"]\nreset_after = \"500ms\"\n"
    )
}

/// The lines of a file of alerts; torn ones are left out.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn of_kind<'a>(lines: &'a [Value], unit: &str, kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["unit"] == unit && line["kind"] == kind).collect()
}

/// Every alert of the store, oldest first.
fn alerts(home: &Home) -> Vec<Value> {
    let mut alerts = home.get("/v1/alerts?limit=10000")["alerts"].as_array().expect("an array").clone();
    alerts.reverse();
    alerts
}

/// Waits until no channel owes an alert; the alerts, oldest first.
fn settled(home: &Home) -> Vec<Value> {
    let pending = |alert: &Value| {
        let channels = alert["channels"].as_array().expect("channels");
        channels.iter().any(|channel| channel["state"] == "pending")
    };
    eventually("every alert is settled", SOON, || {
        home.list()?;
        let alerts = alerts(home);
        (!alerts.iter().any(pending)).then_some(alerts)
    })
}

#[test]
fn one_line_at_the_fourth_failure_one_at_the_eighth_and_one_recovery() {
    let mut home = Home::new();
    let count = home.path().join("count");
    // Eight failures, then it stays.
    let script = format!(
        "n=$(cat {0} 2>/dev/null || echo 0); echo $((n+1)) > {0}; [ $n -ge 8 ] && exec sleep 100000; exit 3",
        count.display()
    );
    let unit = format!(
        "[service]\nshell = true\ncommand = '''{script}'''\n[restart]\ndelays = [\"50ms\"]\nreset_after = \"1s\"\n"
    );
    home.unit("web", &unit)
        .unit("shop", "[unit]\nrequires = [\"web\"]\n[service]\ncommand = [\"sleep\", \"100000\"]\n");
    home.daemon();
    home.await_event(0, "the recovery is delivered", SOON, |event| {
        event["event"] == "alert.delivered"
            && event["data"]["key"].as_str().is_some_and(|key| key.contains("recovered"))
    });
    // Nobody configured a channel: the stand-in has them.
    let lines = lines(&home.path().join("log/alerts.jsonl"));
    let web: Vec<_> = lines.iter().filter(|line| line["unit"] == "web").collect();
    let told: Vec<_> = web
        .iter()
        .map(|line| (line["kind"].as_str(), line["severity"].as_str(), line["failures"].as_u64()))
        .collect();
    assert_eq!(
        (told[0], told[1], told[2].0, told[2].1, told.len()),
        (
            (Some("failing"), Some("critical"), Some(4)),
            (Some("failing"), Some("critical"), Some(8)),
            Some("recovered"),
            Some("info"),
            3
        ),
        "{lines:#?}"
    );
    assert_eq!(web[0]["affected"][0], "shop");
    assert_eq!(web[0]["runbook"], "docs/operations/runbook.md#failing");
    let ids: BTreeSet<_> = lines.iter().map(|line| line["id"].to_string()).collect();
    assert_eq!(ids.len(), lines.len(), "an id stands for one alert");

    let events = home.events();
    let delivered = of(&events, "alert.delivered", "web");
    assert_eq!((delivered.len(), of(&events, "alert.raised", "web").len()), (3, 3));
    let time =
        |event: &Value| -> jiff::Timestamp { event["ts"].as_str().expect("ts").parse().expect("a time") };
    let fourth = of(&events, "unit.failed", "web")[3].clone();
    println!("4th failure to its line on the disk: {:?}", time(delivered[0]).duration_since(time(&fourth)));
    for (event, line) in delivered.iter().zip(&web) {
        assert_eq!((&event["data"]["key"], &event["data"]["channel"]), (&line["id"], &"file".into()));
    }
    let table = home.upright_exits(&["alert", "list"], 0);
    let first = table.lines().find(|line| line.starts_with("web/")).expect("a row");
    assert!(first.contains("recovered") && first.contains("file delivered"), "{table}");
    let json: Value =
        serde_json::from_str(&home.upright_exits(&["alert", "list", "--json", "-n", "1"], 0)).expect("JSON");
    assert_eq!(json["alerts"].as_array().map(Vec::len), Some(1));
    assert_eq!(json["alerts"][0]["channels"][0]["state"], "delivered");
}

/// Its file is removed and put back, as one does to begin anew: what it raises then is no repeat of what it raised before.
#[test]
fn a_unit_that_is_added_again_is_alerted_again() {
    let mut home = Home::new();
    let unit = until(&home.path().join("never"));
    home.unit("web", &unit);
    home.daemon();
    let told = |home: &Home| of_kind(&lines(&home.path().join("log/alerts.jsonl")), "web", "failing").len();
    eventually("the 4th failure is told", SOON, || (told(&home) >= 1).then_some(()));
    fs::remove_file(home.path().join("units/web.toml")).expect("removed");
    home.await_event(0, "it is gone", SOON, |event| event["event"] == "unit.removed");
    let before = told(&home);
    let failures = of(&home.events(), "unit.failed", "web").len();
    home.unit("web", &unit);
    eventually("it fails four times more", SOON, || {
        (of(&home.events(), "unit.failed", "web").len() >= failures + 4).then_some(())
    });
    eventually("the 4th failure is told again", SOON, || (told(&home) > before).then_some(()));
    assert_eq!(settled(&home).len(), of(&home.events(), "alert.raised", "web").len(), "each is kept");
}

#[test]
fn no_alert_is_lost_and_none_told_as_another_when_the_engine_is_killed_over_and_over() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
    println!("SEED={seed} cargo test --test alerts");
    let mut home = Home::new();
    let well = home.path().join("well");
    home.unit("web", &until(&well));
    home.daemon();
    let mut former = None;
    let mut luck = seed;
    for _ in 0..KILLS {
        let pid = eventually("an engine answers", SOON, || {
            let pid = home.list()?["daemon"]["engine_pid"].as_i64()?;
            (Some(pid) != former).then_some(pid)
        });
        luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A random moment is the point of this test; no event could stand for it.
        std::thread::sleep(Duration::from_millis((luck >> 33) % MOMENT_MS_MAX));
        kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), Signal::SIGKILL).expect("the engine lives");
        former = Some(pid);
    }
    eventually("an engine answers", SOON, || home.list());
    fs::write(&well, "").expect("written");
    let path = home.path().join("log/alerts.jsonl");
    eventually("the recovery is in the file", SOON, || {
        (!of_kind(&lines(&path), "web", "recovered").is_empty()).then_some(())
    });
    let rows = settled(&home);
    let lines = lines(&path);

    // The same id is the same line: a duplicate can be told.
    let mut by_id: BTreeMap<String, &Value> = BTreeMap::new();
    for line in &lines {
        let first = by_id.entry(line["id"].as_str().expect("an id").to_string()).or_insert(line);
        assert_eq!(*first, line, "two alerts with one id");
    }
    println!("{} alerts, {} lines, {KILLS} kills", by_id.len(), lines.len());
    // What was raised is in the file, and nothing else.
    let raised: BTreeSet<_> = rows.iter().map(|row| row["id"].as_str().expect("an id").to_string()).collect();
    assert_eq!(raised, by_id.keys().cloned().collect(), "rows and lines");
    // Each alert is there for the failures that are due one, and no other.
    let events = home.events();
    let failed = of(&events, "unit.failed", "web");
    let due: Vec<u64> = (1..=failed.len() as u64).filter(|k| k % 4 == 0).collect();
    let mut told: Vec<u64> = by_id
        .values()
        .filter(|line| line["unit"] == "web" && line["kind"] == "failing")
        .map(|line| line["failures"].as_u64().expect("a number"))
        .collect();
    told.sort_unstable();
    assert_eq!(told, due, "{} failures", failed.len());
    assert!(!due.is_empty(), "it failed often enough to be told");
    assert_eq!(by_id.values().filter(|line| line["kind"] == "recovered").count(), 1);
    // First lines are in row order.
    let order: Vec<&Value> = rows.iter().map(|row| &row["id"]).collect();
    let mut seen = BTreeSet::new();
    let firsts: Vec<&Value> =
        lines.iter().map(|line| &line["id"]).filter(|id| seen.insert(id.to_string())).collect();
    assert_eq!(firsts, order);
    // Each delivery has one record.
    let delivered: Vec<_> = events.iter().filter(|event| event["event"] == "alert.delivered").collect();
    let keys: BTreeSet<_> = delivered.iter().map(|event| event["data"]["key"].to_string()).collect();
    assert_eq!((delivered.len(), keys.len()), (rows.len(), rows.len()), "rows and records");
}

/// A home with one channel, whose directory is missing, and a unit that alerts at once.
fn home_with_late_channel() -> Home {
    let mut home = Home::new();
    let late = home.path().join("later/alerts.jsonl");
    let toml = format!("[alert.late]\nkind = \"file\"\npath = \"{}\"\n", late.display());
    fs::write(home.path().join("upright.toml"), toml).expect("upright.toml");
    let unit =
        "[service]\ncommand = [\"false\"]\n[restart]\ndelays = [\"1h\"]\n[alert]\nafter_failures = 1\n";
    home.unit("web", unit);
    home.unit("mute", &format!("{unit}channels = [\"nobody\"]\n"));
    home.daemon();
    home
}

fn of_unit(alerts: Vec<Value>, unit: &str) -> Option<Value> {
    alerts.into_iter().find(|alert| alert["unit"] == unit)
}

#[test]
fn what_cannot_be_written_waits_until_it_can() {
    let home = home_with_late_channel();
    let pending = eventually("a failed try is told", SOON, || {
        let alert = of_unit(alerts(&home), "web")?;
        (alert["channels"][0]["attempts"].as_u64()? > 0).then_some(alert)
    });
    let channel = &pending["channels"][0];
    assert_eq!((&channel["channel"], &channel["state"]), (&"late".into(), &"pending".into()));
    assert!(channel["error"].as_str().expect("why").contains("No such file"), "{channel}");
    let mute = eventually("the other alert is there", SOON, || of_unit(alerts(&home), "mute"));
    assert_eq!(mute["channels"].as_array().map(Vec::len), Some(0), "nobody takes it");
    let table = home.upright_exits(&["alert", "list"], 0);
    assert!(table.contains("late pending (") && table.contains("no channel"), "{table}");
    assert!(!home.path().join("log/alerts.jsonl").exists(), "a channel is configured: no stand-in");

    fs::create_dir(home.path().join("later")).expect("made");
    let event = home.await_event(0, "it is delivered", SOON, |event| event["event"] == "alert.delivered");
    assert!(event["data"]["attempts"].as_u64().is_some_and(|attempts| attempts > 1), "{event}");
    let lines = lines(&home.path().join("later/alerts.jsonl"));
    assert_eq!(of_kind(&lines, "web", "failing").len(), 1, "{lines:?}");
    let alert = of_unit(settled(&home), "web").expect("it is there");
    assert_eq!(
        (&alert["channels"][0]["state"], &alert["channels"][0]["error"]),
        (&"delivered".into(), &Value::Null)
    );
}

#[test]
fn what_waits_for_a_channel_that_is_taken_out_is_parked_and_said_so() {
    let home = home_with_late_channel();
    eventually("a failed try is told", SOON, || {
        let alert = of_unit(alerts(&home), "web")?;
        (alert["channels"][0]["attempts"].as_u64()? > 0).then_some(())
    });
    // A file that is broken changes nothing.
    let toml = home.path().join("upright.toml");
    let before = home.last_event();
    fs::write(&toml, "[alert.late\n").expect("upright.toml");
    kill(home.child(), Signal::SIGHUP).expect("the daemon lives");
    home.await_event(before, "the files are read", SOON, |event| event["event"] == "config.loaded");
    assert_eq!(of_unit(alerts(&home), "web").expect("there")["channels"][0]["state"], "pending");

    let before = home.last_event();
    fs::write(&toml, "[alert.other]\nkind = \"file\"\npath = \"other.jsonl\"\n").expect("upright.toml");
    kill(home.child(), Signal::SIGHUP).expect("the daemon lives");
    let event = home.await_event(before, "it is parked", SOON, |event| event["event"] == "alert.parked");
    assert_eq!((&event["data"]["channel"], &event["unit"]), (&"late".into(), &"web".into()));
    let alert = of_unit(settled(&home), "web").expect("there");
    let channels = alert["channels"].as_array().expect("channels");
    assert_eq!(channels.len(), 1, "a channel gets nothing that is older than it: {alert}");
    assert_eq!((&channels[0]["state"], &channels[0]["error"]), (&"parked".into(), &"channel is gone".into()));
    // What comes now goes to the new one.
    home.upright_exits(&["restart", "web", "--no-wait"], 0);
    let path = home.path().join("log/other.jsonl");
    eventually("a line in the new file", SOON, || (!lines(&path).is_empty()).then_some(()));
}
