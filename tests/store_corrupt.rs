//! Corrupted databases, each from a seed: the store opens every time, with every alert, every order and
//! every count that was acknowledged; the daemon begins every time and adopts what lives.
//!
//! `UPRIGHT_CORRUPTIONS=10000` runs it whole; `UPRIGHT_SEED` runs one again.
//!
//! Refuses: spoiling first and second copies at once. Both lost is a lost disk.

mod spoil;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use spoil::{WAYS, Way, spoil};
use support::{Home, eventually};
use upright::base::{exit::RunId, luck::Luck, name::UnitName, time::Monotonic};
use upright::engine::durable::{Desired, UnitDurable};
use upright::engine::effect::{Alert, AlertKind};
use upright::engine::outbox::{Delivery, DeliveryState};
use upright::store::open::{self, Loaded, Opened};
use upright::store::row::{EventQuery, EventRow, Level, NewEvent};
use upright::store::writer::{Batch, Committed, Store, Write};
use upright::telemetry::journal::{self, Journal, Rotation};

/// In CI; one in `DAEMON_SHARE` of them with a daemon besides.
const CORRUPTIONS: u64 = 300;
const DAEMON_SHARE: u64 = 10;
const DAEMONS_MIN: u64 = 8;

/// Daemons at the same time: they mostly wait for each other's disk.
const HOMES: u64 = 4;

const PATIENCE: Duration = Duration::from_secs(60);
const ROTATION: Rotation = Rotation { max_bytes: 64 << 20, max_files: 8 };

fn corruptions() -> u64 {
    std::env::var("UPRIGHT_CORRUPTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(CORRUPTIONS)
}

fn first_seed() -> u64 {
    std::env::var("UPRIGHT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn unit(number: u64) -> UnitName {
    UnitName::parse(&format!("unit-{number}")).expect("a name")
}

fn event(name: &str, number: u64) -> NewEvent {
    NewEvent {
        ts_us: 1_700_000_000_000_000,
        level: Level::Warn,
        event: name.to_string(),
        unit: Some(unit(number % 20)),
        run: Some(RunId(number)),
        cause: None,
        message: format!("the {number}th thing that happened"),
        at: Monotonic::from_ns(number),
        data: serde_json::Map::new(),
    }
}

fn alert_key(number: u64) -> String {
    format!("{}/{number}/failing/4", unit(number % 20))
}

/// The record of an alert (`alert.raised`) or of its delivery, as the daemon writes them beside the row.
fn told(name: &str, number: u64, data: &[(&str, Value)]) -> Write {
    let mut event = event(name, number);
    event.data.insert("key".into(), alert_key(number).into());
    event.data.extend(data.iter().map(|(key, value)| ((*key).to_string(), value.clone())));
    Write::Event(event)
}

fn raised(number: u64) -> [Write; 2] {
    [told("alert.raised", number, &[("kind", "failing".into())]), alert(number)]
}

fn alert(number: u64) -> Write {
    let name = unit(number % 20);
    Write::Alert {
        alert: Alert {
            key: alert_key(number),
            unit: Some(name),
            kind: AlertKind::Failing,
            message: format!("it failed 4 times in a row, the {number}th"),
            failures: 4,
            episode: number,
            affected: vec![unit(19)],
            channels: None,
        },
        ts_us: 1_700_000_000_000_000,
    }
}

/// The delivery of the alert of this number, which stands in this row.
fn settled(number: u64, row: u64) -> [Write; 2] {
    let (state, name) = match row.is_multiple_of(3) {
        true => (DeliveryState::Parked, "alert.parked"),
        false => (DeliveryState::Delivered, "alert.delivered"),
    };
    let delivery = Delivery { row, channel: "ops".into(), state, attempts: 1, error: None };
    let delivery = Write::Delivery { delivery, ts_us: 1_700_000_000_000_000 };
    [told(name, number, &[("channel", "ops".into())]), delivery]
}

fn save(number: u64) -> Write {
    let durable = UnitDurable {
        ordered: Some(if number.is_multiple_of(2) { Desired::Down } else { Desired::Up }),
        failures: u32::try_from(number % 7).expect("small"),
        episode: number,
        restarts: number,
        ..UnitDurable::default()
    };
    Write::Save { unit: unit(number % 20), durable }
}

/// What the store says, to be compared.
#[derive(Debug, PartialEq)]
struct Truth {
    units: BTreeMap<UnitName, UnitDurable>,
    alerts: BTreeMap<u64, (String, Vec<(String, DeliveryState)>)>,
    last_event_id: u64,
}

/// A store with the log beside it, as the daemon has them.
fn open_store(dir: &Path) -> (Opened, Loaded) {
    let log = dir.join("log");
    let mut newest = |id: u64, limit: usize| journal::newest(&log, id, limit);
    open::open_beside(&dir.join("upright.db"), "boot", &mut newest).expect("it opens every time")
}

fn start(dir: &Path, opened: Opened) -> (Store, mpsc::Receiver<Committed>) {
    let (tell, told) = mpsc::channel();
    let mut journal = Journal::open(&dir.join("log"), ROTATION);
    let audience = Both {
        dir: dir.to_path_buf(),
        tell: Box::new(move |committed: Committed| {
            journal.append(&committed.events).expect("writes");
            let _ = tell.send(committed); // nobody waits any more
        }),
    };
    (opened.start_before(audience).expect("thread"), told)
}

struct Both {
    dir: PathBuf,
    tell: Box<dyn FnMut(Committed) + Send>,
}

impl upright::store::writer::Audience for Both {
    fn committed(&mut self, committed: Committed) {
        (self.tell)(committed);
    }

    fn newest(&mut self, id: u64, limit: usize) -> Vec<EventRow> {
        journal::newest(&self.dir.join("log"), id, limit)
    }
}

fn commit(store: &mut Store, told: &mpsc::Receiver<Committed>, writes: Vec<Write>) -> Vec<EventRow> {
    let number = store.submit(Batch { writes });
    let mut events = Vec::new();
    loop {
        let committed = told.recv_timeout(PATIENCE).expect("it commits");
        events.extend(committed.events);
        if committed.through >= number {
            return events;
        }
    }
}

fn truth(store: &Store, loaded: &Loaded) -> Truth {
    let (tell, told) = mpsc::channel();
    store.reader().alerts(10_000, move |alerts| drop(tell.send(alerts)));
    let alerts = told.recv_timeout(PATIENCE).expect("answers").expect("alerts can be read");
    let alerts = alerts.into_iter().map(|alert| {
        let deliveries = alert.deliveries.into_iter().map(|(d, _)| (d.channel, d.state));
        (alert.row.id, (alert.row.alert.key, deliveries.collect()))
    });
    Truth { units: loaded.durable.clone(), alerts: alerts.collect(), last_event_id: loaded.last_event_id }
}

/// A home whose daemon was just killed: pages in the database, newer ones in its WAL.
struct Template {
    dir: tempfile::TempDir,
    truth: Truth,
    next_run: RunId,
}

fn template(base: u64) -> Template {
    let living = tempfile::tempdir().expect("dir");
    let write = |from: u64, to: u64| {
        let (opened, _) = open_store(living.path());
        let (mut store, told) = start(living.path(), opened);
        for number in from..to {
            let mut writes = vec![Write::Event(event("unit.state", number)), save(number)];
            if number % 5 == 0 {
                writes.extend(raised(number));
            }
            if number % 15 == 0 {
                writes.extend(settled(number, (number - base) / 5 + 1));
            }
            commit(&mut store, &told, writes);
        }
        (store, told)
    };
    drop(write(base, base + 400)); // closed: all of it is in the database
    let open = write(base + 400, base + 450);
    let dir = tempfile::tempdir().expect("dir");
    for entry in fs::read_dir(living.path()).expect("dir") {
        let entry = entry.expect("entry");
        fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copies");
    }
    drop(open);
    assert!(fs::metadata(dir.path().join("upright.db-wal")).expect("a WAL").len() > 10_000);
    let copy = tempfile::tempdir().expect("dir");
    refill(copy.path(), dir.path());
    let (opened, loaded) = open_store(copy.path());
    assert_eq!((&loaded.moved_aside, loaded.last_event_id), (&None, 450 + 90 + 30));
    let (store, _told) = start(copy.path(), opened);
    let truth = truth(&store, &loaded);
    assert_eq!((truth.units.len(), truth.alerts.len()), (20, 90));
    Template { dir, truth, next_run: loaded.next_run }
}

/// Empties `dir` and copies `from` into it.
fn refill(dir: &Path, from: &Path) {
    for entry in fs::read_dir(dir).expect("dir").map(|entry| entry.expect("entry").path()) {
        let removed = if entry.is_dir() { fs::remove_dir_all(&entry) } else { fs::remove_file(&entry) };
        removed.expect("removes");
    }
    for entry in fs::read_dir(from).expect("dir") {
        let entry = entry.expect("entry");
        fs::copy(entry.path(), dir.join(entry.file_name())).expect("copies");
    }
}

/// One corrupted database; whether it had to be begun anew.
fn one(seed: u64, dir: &Path, template: &Template, other: &Template) -> (Way, bool) {
    let mut luck = Luck::new(seed);
    let way = WAYS[usize::try_from(seed % WAYS.len() as u64).expect("small")];
    refill(dir, template.dir.path());
    spoil(way, &dir.join("upright.db"), &other.dir.path().join("upright.db"), &mut luck);
    let (opened, loaded) = open_store(dir);
    assert_eq!(loaded.trouble, None, "nothing is owed");
    let (mut store, told) = start(dir, opened);
    assert_eq!(truth(&store, &loaded), template.truth, "what was acknowledged is there");
    assert!(loaded.next_run >= template.next_run, "no run id comes again");
    let new = 9_000 + seed;
    let events = commit(
        &mut store,
        &told,
        [vec![Write::Event(event("unit.state", new)), save(new)], raised(new).into()].concat(),
    );
    // An old failure of a run may stand in the way of nothing: ids go on where they were.
    let ids: Vec<u64> = events.iter().map(|row| row.id).collect();
    let first = template.truth.last_event_id + 1;
    let lost_before = loaded.moved_aside.is_some();
    assert!(ids.iter().copied().eq(first..first + ids.len() as u64), "dense: {ids:?}");
    let begun_anew = lost_before || events.iter().any(|row| row.event.event == "store.rebuilt");
    let (tell, all) = mpsc::channel();
    let query = EventQuery { after_id: Some(0), limit: 10_000, ..EventQuery::default() };
    store.reader().events(query, move |events| drop(tell.send(events)));
    let all = all.recv_timeout(PATIENCE).expect("answers").expect("events can be read");
    let ids: Vec<u64> = all.iter().map(|row| row.id).collect();
    let logged: Vec<u64> = journal::newest(&dir.join("log"), 0, 10_000).iter().map(|row| row.id).collect();
    assert!(logged.iter().copied().eq(1..=logged.len() as u64), "the log has every event once");
    assert!(!begun_anew || ids == logged, "history came back: {} of {}", ids.len(), logged.len());
    drop(store);
    let (opened, loaded) = open_store(dir);
    assert_eq!((loaded.moved_aside.as_ref(), loaded.trouble.as_ref()), (None, None), "it stays well");
    let (store, _told) = start(dir, opened);
    let after = truth(&store, &loaded);
    assert_eq!(after.alerts.len(), template.truth.alerts.len() + 1);
    assert!(template.truth.alerts.iter().all(|(id, alert)| after.alerts.get(id) == Some(alert)));
    assert_eq!(after.units.get(&unit(new % 20)).map(|row| row.episode), Some(new));
    (way, begun_anew)
}

/// A seed, and what became of it: the way it was corrupted and whether it was begun anew.
type Tried = (u64, Result<(Way, bool), String>);

#[test]
fn every_corrupted_database_opens_with_all_that_was_acknowledged() {
    let (template, other) = (template(1), template(1_001));
    let (from, count) = (first_seed(), corruptions());
    let next = AtomicU64::new(from);
    let begun = Instant::now();
    let results: Vec<Vec<Tried>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let dir = tempfile::tempdir().expect("dir");
                    let mut seen = Vec::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= from + count {
                            return seen;
                        }
                        let outcome =
                            catch_unwind(AssertUnwindSafe(|| one(seed, dir.path(), &template, &other)));
                        let outcome = outcome.map_err(|why| {
                            let text = why.downcast_ref::<String>().cloned();
                            text.or(why.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
                        });
                        seen.push((seed, outcome));
                    }
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("joins")).collect()
    });
    let mut ways: BTreeMap<Way, (u64, u64)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (seed, outcome) in results.into_iter().flatten() {
        match outcome {
            Ok((way, anew)) => {
                let (all, begun) = ways.entry(way).or_default();
                (*all, *begun) = (*all + 1, *begun + u64::from(anew));
            }
            Err(why) => wrong
                .push(format!("seed {seed}, {:?}: {why}", WAYS[usize::try_from(seed % 21).expect("small")])),
        }
    }
    println!("{count} corrupted databases in {:?}; (all, begun anew): {ways:?}", begun.elapsed());
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Every alert of the store by its id.
fn alert_ids(home: &Home) -> BTreeSet<String> {
    let alerts = home.get("/v1/alerts?limit=10000");
    let alerts = alerts["alerts"].as_array().expect("an array").iter();
    alerts.map(|alert| alert["id"].as_str().expect("an id").to_string()).collect()
}

fn engine_pid(home: &Home) -> Option<i32> {
    i32::try_from(home.list()?["daemon"]["engine_pid"].as_i64()?).ok()
}

/// Kills the engine, does something to its files while nobody looks, and lets the keeper start another.
fn while_no_engine_lives(home: &Home, act: impl FnOnce()) {
    let engine = engine_pid(home).expect("an engine");
    let keeper = home.child();
    kill(keeper, Signal::SIGSTOP).expect("the keeper lives");
    kill(Pid::from_raw(engine), Signal::SIGKILL).expect("the engine lives");
    eventually("the engine is dead", PATIENCE, || {
        let stat = fs::read_to_string(format!("/proc/{engine}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    act();
    kill(keeper, Signal::SIGCONT).expect("the keeper lives");
    eventually("another engine answers", PATIENCE, || engine_pid(home).filter(|new| *new != engine));
}

/// A daemon whose database is corrupted `rounds` times.
fn daemon_rounds(seeds: &[u64], other: &Template) {
    let mut home = Home::new();
    home.unit("web", "[service]\ncommand = [\"sleep\", \"100000\"]\n")
        .unit("stopped", "[service]\ncommand = [\"sleep\", \"100000\"]\n")
        .unit(
            "failing",
            "[service]\ncommand = [\"false\"]\n[restart]\ndelays = [\"20ms\"]\ngive_up_after = 8\n",
        );
    home.daemon();
    home.await_state("web", "active", PATIENCE);
    home.await_state("stopped", "active", PATIENCE);
    home.await_state("failing", "failed", PATIENCE);
    home.upright_exits(&["stop", "stopped"], 0);
    let web = home.pid("web");
    for seed in seeds {
        let before = alert_ids(&home);
        assert!(before.len() >= 3, "{before:?}");
        let way = WAYS[usize::try_from(seed % WAYS.len() as u64).expect("small")];
        while_no_engine_lives(&home, || {
            let other = other.dir.path().join("upright.db");
            spoil(way, &home.path().join("state/upright.db"), &other, &mut Luck::new(*seed));
        });
        let context = format!("seed {seed}, {way:?}");
        assert_eq!(home.pid("web"), web, "{context}: it is adopted, not started again");
        assert_eq!(home.status("stopped")["state"], "inactive", "{context}: an operator's stop holds");
        assert_eq!(home.status("failing")["state"], "failed", "{context}: what gave up stays so");
        let after = alert_ids(&home);
        assert!(after.is_superset(&before), "{context}: {:?}", before.difference(&after).collect::<Vec<_>>());
        let health = home.get("/api/system/health");
        let aside = standing_aside(home.path());
        let told = health["troubles"].as_array().expect("an array").iter();
        let told = told.filter(|trouble| trouble["code"] == "store.aside").count();
        assert_eq!(told, aside.len(), "{context}: {health}");
        aside.iter().for_each(|path| remove(path));
        eventually("nothing is said to stand aside", PATIENCE, || {
            let troubles = home.get("/api/system/health")["troubles"].clone();
            (troubles == Value::Array(Vec::new())).then_some(())
        });
    }
    let ids: Vec<u64> = home.events().iter().map(support::id_of).collect(); // dense, or it panics
    let lines = fs::read_to_string(home.path().join("log/system_resilience.log")).expect("the log");
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let logged: Vec<u64> = lines.map(|line| support::id_of(&line)).collect();
    assert!(logged.iter().copied().eq(1..=logged.len() as u64), "every event once, in order");
    assert!(logged.len() >= ids.len() - 1, "{} of {}", logged.len(), ids.len());
}

fn standing_aside(home: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.join("state")).expect("dir").map(|entry| entry.expect("entry").path());
    let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
    let mut found: Vec<PathBuf> = entries.filter(|path| name(path).contains(".corrupt-")).collect();
    found.retain(|path| !name(path).ends_with("-wal") && !name(path).ends_with("-shm"));
    found
}

fn remove(path: &Path) {
    for part in ["", "-wal", "-shm"] {
        let path = PathBuf::from(format!("{}{part}", path.display()));
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}

#[test]
fn the_daemon_begins_every_time_and_adopts_what_lives() {
    let other = template(1_001);
    let count = (corruptions() / DAEMON_SHARE).max(DAEMONS_MIN);
    let seeds: Vec<u64> = (first_seed()..first_seed() + count).map(|n| n * 8 + 3).collect();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for home in 0..HOMES {
            let mine: Vec<u64> = seeds.iter().copied().filter(|seed| seed / 8 % HOMES == home).collect();
            let other = &other;
            scope.spawn(move || daemon_rounds(&mine, other));
        }
    });
    println!("{count} corrupted databases under a daemon in {:?}", begun.elapsed());
}

/// The second copy of an alert is on the disk before the commit. An engine that dies in between leaves the alert
/// and no record; the next one decides the same again.
#[test]
fn an_alert_whose_engine_died_before_its_commit_is_on_record_once() {
    let (dir, before) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let keep = |writes: Vec<Write>| {
        let (mut store, told) = start(dir.path(), open_store(dir.path()).0);
        commit(&mut store, &told, writes)
    };
    keep(vec![save(1)]);
    refill(before.path(), dir.path());
    keep(raised(1).into());
    let copy = fs::read(dir.path().join("alerts.jnl")).expect("the second copy");
    refill(dir.path(), before.path());
    fs::write(dir.path().join("alerts.jnl"), copy).expect("writes");
    // Puts it back, and dies before its first commit.
    drop(open_store(dir.path()));
    let mut events = keep(raised(1).into());
    events.extend(keep(raised(1).into()));
    let raised = events.iter().filter(|row| row.event.event == "alert.raised").count();
    assert_eq!(raised, 1, "{events:?}");
}
