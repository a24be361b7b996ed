//! The store: what was acknowledged is there after any kill, ids are dense, trouble ends.
//!
//! Refuses: claiming anything about power cuts, which kill -9 does not show.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use upright::base::{exit::RunId, luck::Luck, name::UnitName, time::Monotonic};
use upright::engine::durable::{Desired, UnitDurable};
use upright::store::open::{self, Life, Loaded, Opened, Phase, RUNS_PER_RESERVE};
use upright::store::row::{EventQuery, EventRow, Level, NewEvent, Pick};
use upright::store::schema;
use upright::store::writer::{Batch, Committed, Write};

const WRITER_PATH: &str = "UPRIGHT_TEST_STORE_PATH";
const PATIENCE: Duration = Duration::from_secs(30);

fn unit(text: &str) -> UnitName {
    UnitName::parse(text).expect("a name")
}

fn event(name: &str, run: u64) -> NewEvent {
    NewEvent {
        ts_us: 1_700_000_000_000_000 + i64::try_from(run).expect("small"),
        level: Level::Warn,
        event: name.to_string(),
        unit: Some(unit("web")),
        run: Some(RunId(run)),
        cause: Some("exited (code 1)".into()),
        message: format!("web failed in run {run}"),
        at: Monotonic::from_ns(run),
        data: serde_json::Map::from_iter([("failures".to_string(), run.into())]),
    }
}

fn one(name: &str, run: u64) -> Batch {
    Batch { writes: vec![Write::Event(event(name, run))] }
}

fn reopen(path: &Path) -> (Opened, Loaded) {
    open::open(path, "boot-1").expect("opens")
}

fn all_events(opened: &Opened) -> Vec<EventRow> {
    let mut events: Vec<EventRow> = Vec::new();
    loop {
        let after_id = Some(events.last().map_or(0, |last| last.id));
        let query = EventQuery { after_id, limit: 5_000, ..EventQuery::default() };
        let page = opened.events(&query).expect("reads");
        if page.is_empty() {
            return events;
        }
        events.extend(page);
    }
}

fn assert_dense(events: &[EventRow]) {
    for (row, expected) in events.iter().zip(1u64..) {
        assert_eq!(row.id, expected, "ids have no gap");
    }
}

fn full_row() -> UnitDurable {
    UnitDurable {
        ordered: Some(Desired::Down),
        failures: 3,
        episode: 7,
        restarts: 12,
        counted_run: Some(RunId(41)),
        retry_at: Some(Monotonic::from_ns(5)),
        down_since: Some(Monotonic::from_ns(4)),
        ready: Some((RunId(40), Monotonic::from_ns(3))),
        held: Some("gave up".into()),
        finished: true,
        own_failures: 2,
        alerted: true,
        owed: [UnitName::parse("redis").expect("name")].into(),
        resync_failed: true,
    }
}

#[test]
fn rows_come_back_as_they_were_saved_and_a_reboot_keeps_what_still_means_something() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let (opened, loaded) = reopen(&path);
    assert_eq!((loaded.next_run, loaded.last_event_id, loaded.boot_id), (RunId(1), 0, None));
    assert_eq!(loaded.life, Life::default());
    let life = Life { phase: Phase::Running, fatal_stops: 3 };
    let mut store = opened.start(|_| {}).expect("thread");
    store.submit(Batch {
        writes: vec![
            Write::Save { unit: unit("web"), durable: full_row() },
            Write::Save { unit: unit("gone"), durable: UnitDurable::default() },
            Write::Forget { unit: unit("gone") },
            Write::LastGood { file: "/units/web.toml".into(), text: Some("old".into()) },
            Write::LastGood { file: "/units/web.toml".into(), text: Some("new".into()) },
            Write::LastGood { file: "/units/gone.toml".into(), text: Some("x".into()) },
            Write::LastGood { file: "/units/gone.toml".into(), text: None },
            Write::ReserveRuns { until: RunId(9_000) },
            Write::Life(life),
        ],
    });
    drop(store);
    let (opened, loaded) = reopen(&path);
    assert_eq!(loaded.life, life);
    let good = [("/units/web.toml".to_string(), "new".to_string())];
    assert_eq!(loaded.last_good.into_iter().collect::<Vec<_>>(), good);
    assert_eq!(loaded.durable.into_iter().collect::<Vec<_>>(), [(unit("web"), full_row())]);
    assert_eq!((loaded.next_run, loaded.life), (RunId(9_000), life));
    drop(opened);
    for _ in 0..2 {
        let (opened, loaded) = open::open(&path, "boot-2").expect("opens");
        assert_eq!(loaded.durable.get(&unit("web")), Some(&full_row().after_reboot()));
        assert!(loaded.next_run >= RunId(9_000 + RUNS_PER_RESERVE));
        drop(opened);
    }
}

#[test]
fn a_failure_said_twice_is_one_row_and_takes_no_number() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let (tell, told) = mpsc::channel();
    let mut store = reopen(&path).0.start(move |c| drop(tell.send(c))).expect("thread");
    for (name, run) in [("unit.failed", 1), ("unit.failed", 1), ("unit.started", 1), ("unit.failed", 2)] {
        store.submit(one(name, run));
    }
    let mut rows = Vec::new();
    loop {
        let Committed { through, events, .. } = told.recv_timeout(PATIENCE).expect("commits");
        rows.extend(events);
        if through == store.submitted() {
            break;
        }
    }
    let names: Vec<(u64, &str)> = rows.iter().map(|row| (row.id, row.event.event.as_str())).collect();
    assert_eq!(names, [(1, "unit.failed"), (2, "unit.started"), (3, "unit.failed")]);
    let (tell, told) = mpsc::channel();
    let query = EventQuery { unit: Some(unit("web")), limit: 2, ..EventQuery::default() };
    store.reader().events(query, move |answer| drop(tell.send(answer)));
    let newest = told.recv_timeout(PATIENCE).expect("answers").expect("reads");
    assert_eq!(newest, rows[1..], "the newest two, oldest first");
}

#[test]
fn causes_are_the_newest_of_each_kind_and_who_gave_the_orders() {
    let dir = tempfile::tempdir().expect("dir");
    let mut store = reopen(&dir.path().join("upright.db")).0.start(|_| {}).expect("thread");
    let line = |name: &str, unit_name: Option<&str>, run: u64, data: serde_json::Value| {
        let data = data.as_object().expect("an object").clone();
        NewEvent { unit: unit_name.map(unit), run: Some(RunId(run)), data, ..event(name, run) }
    };
    let none = serde_json::json!({});
    let verb = |verb: &str| serde_json::json!({ "verb": verb, "units": ["web", "db"] });
    let mut lines = vec![
        line("order.asked", None, 1, serde_json::json!({ "verb": "stop", "units": ["db"] })),
        line("order.asked", None, 1, verb("stop")),
        line("order.taken", Some("web"), 1, verb("stop")),
        line("order.taken", Some("db"), 1, verb("stop")),
        line("order.taken", Some("web"), 1, verb("clear")),
    ];
    for run in 1..=40 {
        lines.extend(["unit.started", "unit.failed"].map(|name| line(name, Some("web"), run, none.clone())));
    }
    store.submit(Batch { writes: lines.into_iter().map(Write::Event).collect() });
    let (tell, told) = mpsc::channel();
    let query = EventQuery { unit: Some(unit("web")), pick: Pick::NewestOfEachKind, ..EventQuery::default() };
    store.reader().events(query, move |answer| drop(tell.send(answer)));
    let rows = told.recv_timeout(PATIENCE).expect("answers").expect("reads");
    let found: Vec<(u64, &str)> = rows.iter().map(|row| (row.id, row.event.event.as_str())).collect();
    let want = [
        (2, "order.asked"),
        (3, "order.taken"),
        (5, "order.taken"),
        (84, "unit.started"),
        (85, "unit.failed"),
    ];
    assert_eq!(found, want);
}

/// An upgrade that was rolled back has left its schema behind.
#[test]
fn a_newer_schema_that_is_open_to_this_build_is_used_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let (opened, loaded) = reopen(&path);
    let ours = schema::of_this_build();
    assert_eq!(loaded.schema, ours);
    drop(opened);
    let db = rusqlite::Connection::open(&path).expect("opens");
    db.execute_batch("ALTER TABLE unit ADD COLUMN later TEXT NOT NULL DEFAULT 'default'").expect("writes");
    db.pragma_update(None, "user_version", ours.version + 1).expect("writes");
    let (opened, loaded) = reopen(&path);
    assert_eq!(
        (loaded.schema.version, loaded.schema.compatible_from),
        (ours.version + 1, ours.compatible_from)
    );
    let (committed, heard) = mpsc::channel();
    let mut store = opened.start(move |done| drop(committed.send(done))).expect("starts");
    let durable = UnitDurable { failures: 3, ..UnitDurable::default() };
    store.submit(Batch { writes: vec![Write::Save { unit: unit("web"), durable }] });
    while heard.recv_timeout(PATIENCE).expect("committed").through == 0 {}
    drop(store);
    let row = "SELECT failures, later FROM unit WHERE name = 'web'";
    let row: (i64, String) = db.query_row(row, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("a row");
    assert_eq!(row, (3, "default".to_string()));
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).expect("reads");
    assert_eq!(version, ours.version + 1);
}

/// Commits `writes` and ends the store.
fn keep(path: &Path, writes: Vec<Write>) {
    let mut store = reopen(path).0.start(|_| {}).expect("thread");
    store.submit(Batch { writes });
    drop(store);
}

fn set_meta(path: &Path, sql: &str) {
    let db = rusqlite::Connection::open(path).expect("opens");
    db.execute_batch(sql).expect("writes");
}

#[test]
fn a_schema_that_cannot_be_used_stands_aside_and_what_was_asked_for_holds() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    keep(&path, vec![Write::Save { unit: unit("web"), durable: full_row() }]);
    let before = reopen(&path).1;
    set_meta(&path, "PRAGMA user_version = 999; UPDATE meta SET value = '999' WHERE key = 'compatible_from'");
    let (opened, loaded) = reopen(&path);
    let aside = loaded.moved_aside.clone().expect("moved");
    assert!(aside.why.contains("schema 999"), "{aside:?}");
    let version = rusqlite::Connection::open(&aside.path).expect("opens");
    let version: i64 = version.pragma_query_value(None, "user_version", |row| row.get(0)).expect("reads");
    assert_eq!(version, 999, "it is left as it was");
    assert_eq!((&loaded.durable, &loaded.boot_id), (&before.durable, &before.boot_id));
    assert!(loaded.next_run.0 >= before.next_run.0 + RUNS_PER_RESERVE, "no run is used twice");
    let mut store = opened.start(|_| {}).expect("thread");
    store.submit(one("unit.failed", 1));
    let code = |store: &upright::store::writer::Store| {
        store.troubles().first().map_or("", |trouble| trouble.code.as_str())
    };
    until("it is said", || code(&store) == "store.aside");
    for part in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{part}", aside.path.display())); // not all are there
    }
    until("nobody has to look any more", || store.troubles().is_empty());
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_corrupt_file_is_moved_aside_and_begun_anew_from_its_second_copies() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    std::fs::write(&path, [b'x'; 8_192]).expect("writes");
    let (_opened, loaded) = reopen(&path);
    let aside = loaded.moved_aside.expect("moved");
    assert_eq!(std::fs::read(aside.path).expect("still there"), [b'x'; 8_192]);
    assert_eq!(loaded.last_event_id, 0);
}

#[test]
fn a_database_that_is_older_than_its_second_copy_is_made_new_again() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    keep(&path, vec![Write::Save { unit: unit("web"), durable: UnitDurable::default() }]);
    let old = std::fs::read(&path).expect("reads");
    keep(
        &path,
        vec![Write::Save { unit: unit("web"), durable: full_row() }, Write::Event(event("unit.failed", 1))],
    );
    std::fs::write(&path, old).expect("writes"); // as if the WAL had been lost
    let log = |after: u64, _| {
        let row = EventRow { id: 1, event: event("unit.failed", 1) };
        Some(row).filter(|row| row.id > after).into_iter().collect()
    };
    let (opened, loaded) = open::open_beside(&path, "boot-1", &mut { log }).expect("opens");
    assert_eq!(loaded.durable.get(&unit("web")), Some(&full_row()));
    assert_eq!((loaded.moved_aside, loaded.last_event_id), (None, 1));
    assert_dense(&all_events(&opened));
}

#[test]
fn a_database_that_says_otherwise_in_the_same_commit_is_not_believed() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    keep(&path, vec![Write::Save { unit: unit("web"), durable: full_row() }]);
    set_meta(&path, "UPDATE unit SET name = 'wec'; UPDATE meta SET value = '3' WHERE key = 'next_run'");
    let (_opened, loaded) = reopen(&path);
    assert_eq!(loaded.durable.into_iter().collect::<Vec<_>>(), [(unit("web"), full_row())]);
    assert!(loaded.next_run.0 > RUNS_PER_RESERVE, "{:?}", loaded.next_run);
}

#[test]
fn a_file_removed_or_spoilt_under_a_living_store_is_begun_anew_without_a_gap() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let (tell, told) = mpsc::channel();
    let mut store = reopen(&path).0.start(move |c| drop(tell.send(c))).expect("thread");
    let mut rows = Vec::new();
    let mut commit = |store: &mut upright::store::writer::Store, run: u64| {
        let writes = vec![
            Write::Event(event("unit.failed", run)),
            Write::Save { unit: unit("web"), durable: full_row() },
        ];
        let number = store.submit(Batch { writes });
        loop {
            let committed: Committed = told.recv_timeout(PATIENCE).expect("commits");
            rows.extend(committed.events);
            if committed.through >= number {
                return;
            }
        }
    };
    commit(&mut store, 1);
    for part in ["", "-wal", "-shm"] {
        std::fs::remove_file(dir.path().join(format!("upright.db{part}"))).expect("removes");
    }
    commit(&mut store, 2);
    assert!(path.exists());
    // Every page but the first is overwritten: the next write meets them.
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opens");
    let len = file.metadata().expect("stat").len();
    file.write_all_at(&vec![0xA5; usize::try_from(len.max(8_192)).expect("small") - 4_096], 4_096)
        .expect("writes");
    std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("upright.db-wal"))
        .expect("opens")
        .set_len(0)
        .expect("cuts");
    for run in 3..30 {
        commit(&mut store, run);
    }
    drop(store);
    assert_dense(&rows);
    let (_opened, loaded) = reopen(&path);
    assert_eq!(loaded.durable.get(&unit("web")), Some(&full_row()));
    assert_eq!(loaded.last_event_id, rows.last().expect("some").id);
}

#[test]
fn second_copies_that_somebody_removes_come_back() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let (tell, told) = mpsc::channel();
    let mut store = reopen(&path).0.start(move |c| drop(tell.send(c))).expect("thread");
    let alert = |number: u64| Write::Alert {
        alert: upright::engine::effect::Alert {
            key: format!("web/{number}/failing/4"),
            unit: Some(unit("web")),
            kind: upright::engine::effect::AlertKind::Failing,
            message: "web failed 4 times in a row".into(),
            failures: 4,
            episode: number,
            affected: Vec::new(),
            channels: None,
        },
        ts_us: 1,
    };
    let save = Write::Save { unit: unit("web"), durable: full_row() };
    let commit = |store: &mut upright::store::writer::Store, writes: Vec<Write>| {
        let number = store.submit(Batch { writes });
        while told.recv_timeout(PATIENCE).expect("commits").through < number {}
    };
    commit(&mut store, vec![alert(1), save]);
    for name in ["alerts.jnl", "state.jnl"] {
        std::fs::remove_file(dir.path().join(name)).expect("is there");
    }
    commit(&mut store, vec![alert(2)]);
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    until("both are there again", || {
        text("alerts.jnl").lines().count() == 2 && text("state.jnl").contains("web")
    });
    drop(store);
    std::fs::write(&path, b"no database").expect("writes");
    let (opened, loaded) = reopen(&path);
    assert!(loaded.moved_aside.is_some());
    assert_eq!((loaded.durable.get(&unit("web")), loaded.last_alert), (Some(&full_row()), 2));
    drop(opened);
}

#[test]
fn a_lock_that_lets_nobody_in_does_not_keep_a_daemon_from_beginning() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    keep(&path, vec![Write::Save { unit: unit("web"), durable: full_row() }]);
    let before = reopen(&path).1;
    let db = rusqlite::Connection::open(&path).expect("opens");
    db.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").expect("locks");
    let begun = Instant::now();
    let (opened, loaded) = reopen(&path);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(loaded.trouble.as_ref().map(|trouble| trouble.code.as_str()), Some("store.locked"));
    assert_eq!(loaded.durable, before.durable, "as its second copy says");
    assert!(loaded.next_run > before.next_run);
    let (tell, told) = mpsc::channel();
    let mut store = opened.start(move |c| drop(tell.send(c))).expect("thread");
    let number = store.submit(one("unit.failed", 1));
    drop(db);
    while told.recv_timeout(PATIENCE).expect("commits").through < number {}
    drop(store);
    let (_opened, again) = reopen(&path);
    assert_eq!((again.durable, again.last_event_id), (before.durable, 1));
    assert!(again.next_run >= RunId(loaded.next_run.0 + RUNS_PER_RESERVE));
}

#[test]
fn files_are_not_for_everybody() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let (_opened, _) = reopen(&path);
    for name in ["upright.db", "upright.db-wal"] {
        let mode = std::fs::metadata(dir.path().join(name)).expect("exists").permissions().mode();
        assert_eq!(mode & 0o777, 0o640, "{name}");
    }
}

#[test]
fn a_lock_held_by_somebody_else_is_trouble_that_ends() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let (tell, told) = mpsc::channel();
    let mut store = reopen(&path).0.start(move |c| drop(tell.send(c))).expect("thread");
    let db = rusqlite::Connection::open(&path).expect("opens");
    db.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let number = store.submit(one("unit.failed", 1));
    let deadline = Instant::now() + PATIENCE;
    while store.trouble().is_none() {
        assert!(Instant::now() < deadline, "trouble is said");
        if let Ok(committed) = told.recv_timeout(Duration::from_millis(20)) {
            assert!(committed.through == 0 && committed.events.is_empty(), "nothing was committed");
        }
    }
    store.submit(one("unit.failed", 2));
    db.execute_batch("ROLLBACK").expect("unlocks");
    let mut rows = Vec::new();
    loop {
        let committed = told.recv_timeout(PATIENCE).expect("commits");
        rows.extend(committed.events);
        if committed.through > number {
            break;
        }
    }
    assert_eq!(rows.len(), 2);
    assert_dense(&rows);
    assert_eq!(store.trouble(), None);
}

#[test]
fn a_store_that_cannot_be_written_at_the_start_is_read_and_written_later() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let mut store = reopen(&path).0.start(|_| {}).expect("thread");
    store.submit(Batch { writes: vec![Write::Save { unit: unit("web"), durable: full_row() }] });
    drop(store);
    let db = rusqlite::Connection::open(&path).expect("opens");
    db.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let (opened, loaded) = open::open(&path, "boot-2").expect("opens");
    assert!(loaded.trouble.is_some());
    assert_eq!(loaded.durable.get(&unit("web")), Some(&full_row().after_reboot()));
    let (tell, told) = mpsc::channel();
    let mut store = opened.start(move |c| drop(tell.send(c))).expect("thread");
    assert!(store.trouble().is_some());
    let number = store.submit(one("unit.failed", 1));
    db.execute_batch("ROLLBACK").expect("unlocks");
    while told.recv_timeout(PATIENCE).expect("commits").through < number {}
    assert_eq!(store.trouble(), None);
    drop(store);
    let (_opened, again) = open::open(&path, "boot-2").expect("opens");
    assert_eq!(again.boot_id.as_deref(), Some("boot-2"));
    assert_eq!(again.next_run, RunId(loaded.next_run.0 + RUNS_PER_RESERVE));
    assert_eq!((again.durable, again.last_event_id), (loaded.durable, 1));
}

#[test]
fn ten_thousand_events_share_their_commits() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let (tell, told) = mpsc::channel();
    let mut store = reopen(&path).0.start(move |c| drop(tell.send(c))).expect("thread");
    let begun = Instant::now();
    for run in 1..=10_000 {
        store.submit(one("unit.failed", run));
    }
    let mut commits = 0;
    while told.recv_timeout(PATIENCE).expect("commits").through < 10_000 {
        commits += 1;
    }
    let took = begun.elapsed();
    println!(
        "10000 batches of one event: {} commits, {:.0} per second",
        commits + 1,
        1e4 / took.as_secs_f64()
    );
    assert!(commits < 5_000, "commits are shared");
    drop(store);
    assert_dense(&all_events(&reopen(&path).0));
}

/// Not a test of its own: the process that the next test kills. It writes without end and
/// says which batches it was told of.
#[test]
fn writer_to_be_killed() {
    let Some(path) = std::env::var_os(WRITER_PATH) else { return };
    let (opened, loaded) = reopen(Path::new(&path));
    let first_run = loaded.next_run.0;
    let say = move |committed: Committed| {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "acked {}", first_run + committed.through - 1);
        let _ = out.flush();
    };
    let mut store = opened.start(say).expect("thread");
    for run in first_run.. {
        let durable = UnitDurable { restarts: run, counted_run: Some(RunId(run)), ..UnitDurable::default() };
        let save = Write::Save { unit: unit("web"), durable };
        let until = Write::ReserveRuns { until: RunId(run + RUNS_PER_RESERVE) };
        store.submit(Batch { writes: vec![Write::Event(event("unit.failed", run)), save, until] });
        // Few at a time, so that the kill meets open, write, commit and checkpoint alike.
        if run % 8 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn spawn_writer(path: &Path) -> Child {
    Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "writer_to_be_killed", "--nocapture"])
        .env(WRITER_PATH, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("spawns")
}

#[test]
fn killed_at_any_instruction_no_acknowledged_row_is_lost_and_no_id_is_used_twice() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("upright.db");
    let seed = u64::from(std::process::id());
    let mut luck = Luck::new(seed);
    let mut next_run = 0;
    for round in 0..50 {
        let mut child = spawn_writer(&path);
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut acked = 0u64;
        let mut line = String::new();
        let acks_wanted = 1 + luck.below(12);
        let mut acks = 0;
        while out.read_line(&mut line).expect("reads") > 0 {
            if let Some(run) = line.trim_end().strip_prefix("acked ") {
                acked = run.parse().unwrap_or(acked);
                acks += 1;
                if acks == acks_wanted {
                    std::thread::sleep(Duration::from_micros(luck.below(2_000)));
                    child.kill().expect("kills");
                }
            }
            line.clear();
        }
        child.wait().expect("reaped");
        let (opened, loaded) = reopen(&path);
        let saved = loaded.durable.get(&unit("web")).map_or(0, |row| row.restarts);
        assert!(acks >= acks_wanted, "seed {seed} round {round}: the writer ended by itself");
        assert!(saved >= acked, "seed {seed} round {round}: row {saved}, acknowledged {acked}");
        assert!(loaded.next_run.0 > saved.max(next_run), "seed {seed} round {round}: run ids repeat");
        next_run = loaded.next_run.0;
        let newest = opened.events(&EventQuery { limit: 1, ..EventQuery::default() }).expect("reads");
        assert_eq!(newest[0].event.run, Some(RunId(saved)), "row and event are of one batch");
        drop(opened);
    }
    let (opened, loaded) = reopen(&path);
    let events = all_events(&opened);
    assert_dense(&events);
    assert_eq!(loaded.last_event_id, events.last().map_or(0, |last| last.id));
    println!("50 kills, {} rows, ids dense", events.len());
}
