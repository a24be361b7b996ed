//! A flood of events through the store and into `system_resilience.log`, its writer killed again and
//! again: every event that was acknowledged is in both, once, under dense ids, across rotations.
//!
//! `UPRIGHT_FLOOD_S=10 cargo test --release --test store_flood -- --nocapture` measures, and kills 100 times.
//!
//! Refuses: a promise of speed. What passes depends on the machine; it is printed.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use upright::base::{exit::RunId, luck::Luck, name::UnitName, time::Monotonic};
use upright::store::open;
use upright::store::row::{EventQuery, Level, NewEvent};
use upright::store::writer::{Batch, Committed, Store, Write};
use upright::telemetry::journal::{self, FILE_NAME, Journal, Rotation};
use upright::telemetry::scribe;

const WRITER_DIR: &str = "UPRIGHT_TEST_FLOOD_DIR";
const MESSAGE_LEN: &str = "UPRIGHT_TEST_FLOOD_LEN";
const KILLS: u64 = 12;

/// Events in a step of the engine at most; and steps that wait for the disk.
const EVENTS_A_BATCH: u64 = 16;
const BATCHES_UNDER_WAY: u64 = 512;

/// Small, so that kills meet rotations.
const ROTATION: Rotation = Rotation { max_bytes: 4 << 20, max_files: 100_000 };

fn event(run: u64, len: usize) -> NewEvent {
    NewEvent {
        ts_us: 1_700_000_000_000_000,
        level: Level::Warn,
        event: "unit.state".into(),
        unit: UnitName::parse(&format!("unit-{}", run % 100)).ok(),
        run: Some(RunId(run)),
        cause: Some("exited with code 1".into()),
        message: "x".repeat(len),
        at: Monotonic::from_ns(run),
        data: serde_json::Map::from_iter([("failures".to_string(), run.into())]),
    }
}

/// The store and the log as the daemon has them.
fn start(dir: &Path, mut tell: impl FnMut(&Committed) + Send + 'static) -> Store {
    let path = dir.join(FILE_NAME);
    let log = Journal::open(&path, ROTATION);
    let mut newest = |id: u64, limit: usize| journal::newest(&path, id, limit);
    let (opened, loaded) = open::open_beside(&dir.join("upright.db"), "boot", &mut newest).expect("opens");
    assert_eq!(loaded.moved_aside, None);
    let tell = move |committed: Committed| tell(&committed);
    let (scribe, handle) = scribe::start(&path, log, loaded.last_event_id, tell).expect("thread");
    let store = opened.start_before(scribe).expect("thread");
    handle.read_from(store.reader().clone());
    store
}

/// Writes without end, and says up to which event it was told that all is kept.
#[test]
fn the_flood_itself() {
    let Some(dir) = std::env::var_os(WRITER_DIR) else { return };
    let len = std::env::var(MESSAGE_LEN).ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let through = Arc::new((Mutex::new(0), Condvar::new()));
    let told = Arc::clone(&through);
    let mut store = start(Path::new(&dir), move |committed| {
        if let Some(last) = committed.events.last() {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "acked {}", last.id).and_then(|()| out.flush()); // the test is over
        }
        *told.0.lock().expect("whole") = committed.through;
        told.1.notify_all();
    });
    for run in 0.. {
        let events = (0..EVENTS_A_BATCH).map(|n| Write::Event(event(run * EVENTS_A_BATCH + n, len)));
        let number = store.submit(Batch { writes: events.collect() });
        let room = |through: &mut u64| *through + BATCHES_UNDER_WAY < number;
        drop(through.1.wait_while(through.0.lock().expect("whole"), room).expect("whole"));
    }
}

fn spawn(dir: &Path, len: usize) -> Child {
    Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "the_flood_itself", "--nocapture"])
        .env(WRITER_DIR, dir)
        .env(MESSAGE_LEN, len.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("spawns")
}

/// Kills the flood some time after its first word; the last event that it was told is kept.
fn flood(dir: &Path, len: usize, life: Duration) -> u64 {
    let mut child = spawn(dir, len);
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let (mut acked, mut kill_at) = (0, None);
    let mut line = String::new();
    while out.read_line(&mut line).expect("reads") > 0 {
        // The harness may have begun a line of its own before ours; a torn last one says less.
        if let Some((_, id)) = line.split_once("acked ").filter(|_| line.ends_with('\n')) {
            acked = id.trim_end().parse().unwrap_or(acked);
            let at = *kill_at.get_or_insert_with(|| Instant::now() + life);
            if Instant::now() >= at {
                child.kill().expect("kills");
            }
        }
        line.clear();
    }
    child.wait().expect("reaped");
    acked
}

/// The log's files, the oldest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let number = |path: &PathBuf| -> u64 {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        name.strip_prefix(FILE_NAME).and_then(|end| end.strip_prefix('.')?.parse().ok()).unwrap_or(0)
    };
    let entries = fs::read_dir(dir).expect("dir").map(|entry| entry.expect("entry").path());
    let mut found: Vec<PathBuf> = entries
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(FILE_NAME)))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(number(path)));
    found
}

/// Every id of the log is one more than that before; how many.
fn count_log(dir: &Path) -> (u64, u64) {
    let (mut last, mut bytes) = (0, 0);
    for path in files(dir) {
        let text = fs::read(&path).expect("reads");
        bytes += text.len() as u64;
        assert!(text.is_empty() || text.ends_with(b"\n"), "{} has a torn line", path.display());
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line = std::str::from_utf8(line).expect("UTF-8");
            let id = line.strip_prefix("{\"id\":").and_then(|rest| rest.split_once(',')).expect("an id").0;
            let id: u64 = id.parse().expect("a number");
            assert_eq!(id, last + 1, "in {}", path.display());
            last = id;
        }
    }
    (last, bytes)
}

/// After a kill: opens as the next engine does, lets the log catch up, and compares.
fn settle(dir: &Path, acked: u64) -> u64 {
    let store = start(dir, |_| {});
    let (tell, told) = std::sync::mpsc::channel();
    let query = EventQuery { limit: 1, ..EventQuery::default() };
    store.reader().events(query, move |rows| drop(tell.send(rows)));
    let newest = told.recv().expect("answers").expect("reads").pop().map_or(0, |row| row.id);
    let deadline = Instant::now() + Duration::from_secs(60);
    while journal::newest(&dir.join(FILE_NAME), 0, 1).pop().map_or(0, |row| row.id) < newest {
        assert!(Instant::now() < deadline, "the log catches up");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(store);
    assert!(newest >= acked, "{acked} was acknowledged, {newest} is there");
    assert_eq!(count_log(dir).0, newest, "the log has every event of the store, once");
    let db = rusqlite::Connection::open(dir.join("upright.db")).expect("opens");
    let sql = "SELECT count(*), max(id) FROM event";
    let (rows, last): (i64, i64) =
        db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("reads");
    assert_eq!((rows.cast_unsigned(), last.cast_unsigned()), (newest, newest), "ids are dense");
    newest
}

#[test]
fn no_event_is_recorded_twice_or_never_however_often_its_writer_is_killed() {
    let seconds: u64 = std::env::var("UPRIGHT_FLOOD_S").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let dir = tempfile::tempdir().expect("dir");
    let mut luck = Luck::new(u64::from(std::process::id()));
    let kills = if seconds > 0 { 100 } else { KILLS };
    let mut newest = 0;
    for _ in 0..kills {
        let acked = flood(dir.path(), 100, Duration::from_millis(luck.below(200)));
        newest = settle(dir.path(), acked);
    }
    println!("{kills} kills, {newest} events, {} files of the log: each once", files(dir.path()).len());
    for len in [100, 1_000, 4_000] {
        if seconds == 0 {
            break;
        }
        let dir = tempfile::tempdir().expect("dir");
        let begun = Instant::now();
        let acked = flood(dir.path(), len, Duration::from_secs(seconds));
        let took = begun.elapsed().as_secs_f64();
        settle(dir.path(), acked);
        let (lines, bytes) = count_log(dir.path());
        let opens = Instant::now();
        let store = start(dir.path(), |_| {});
        println!("with {lines} events it opens in {:?}", opens.elapsed());
        drop(store);
        let a_line = bytes / lines.max(1);
        println!(
            "lines of {a_line} bytes: {:.0} events/s acknowledged, {:.1} MB/s of lines",
            acked as f64 / took,
            acked as f64 / took * a_line as f64 / 1e6
        );
    }
}
