//! The ledger's books in the store: sums that survive a restart, windows that begin anywhere, retention that
//! takes only from the front, and how long ninety days take.
//!
//! `UPRIGHT_LEDGER_EVENTS=1000000 cargo test --release --test store_books -- --nocapture` prints the figure.
//!
//! Refuses: judging a figure that was measured beside other tests.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use upright::base::luck::Luck;
use upright::base::{name::UnitName, time::Monotonic};
use upright::ledger::Fact;
use upright::ledger::carry::Carry;
use upright::ledger::tally::Both;
use upright::ledger::window::Replay;
use upright::store::books::Window;
use upright::store::open;
use upright::store::row::{EventQuery, EventRow, Level, NewEvent};
use upright::store::writer::{Batch, Committed, Store, Write};

const PATIENCE: Duration = Duration::from_secs(120);
const HOUR_US: i64 = 3_600_000_000;
const DAY_US: i64 = 24 * HOUR_US;

/// A summary of ninety days takes no longer.
const SUMMARY_MAX: Duration = Duration::from_millis(100);

fn now_us() -> i64 {
    upright::sys::clock::wall().as_microsecond()
}

fn start(path: &Path) -> (Store, mpsc::Receiver<Committed>) {
    let (opened, _) = open::open(path, "boot-1").expect("opens");
    let (tell, told) = mpsc::channel();
    let store = opened.start(move |committed| drop(tell.send(committed))).expect("a thread");
    (store, told)
}

fn submit(store: &mut Store, told: &mpsc::Receiver<Committed>, events: Vec<NewEvent>) -> Vec<EventRow> {
    let writes = events.into_iter().map(Write::Event).collect();
    let number = store.submit(Batch { writes });
    let mut rows = Vec::new();
    loop {
        let committed = told.recv_timeout(PATIENCE).expect("a commit");
        rows.extend(committed.events);
        if committed.through >= number {
            return rows;
        }
    }
}

fn ask(store: &Store, since_us: i64, until_us: i64) -> Window {
    let (tell, told) = mpsc::channel();
    store.reader().summary(since_us, until_us, move |window| drop(tell.send(window)));
    told.recv_timeout(PATIENCE).expect("an answer").expect("figures")
}

fn events(store: &Store, after_id: u64) -> Vec<EventRow> {
    let (tell, told) = mpsc::channel();
    let query = EventQuery { after_id: Some(after_id), limit: 10_000, ..EventQuery::default() };
    store.reader().events(query, move |rows| drop(tell.send(rows)));
    told.recv_timeout(PATIENCE).expect("an answer").expect("rows")
}

/// A history of `count` records that ends at `end_us` and took `length_us`.
struct History {
    luck: Luck,
    ts_us: i64,
    step_us: u64,
    down: [bool; 10],
    begun: bool,
    /// One that no channel has yet.
    alert: Option<String>,
}

impl History {
    fn new(seed: u64, end_us: i64, length_us: i64, count: u64) -> History {
        let step_us = u64::try_from(length_us).expect("forward") / count.max(1);
        let (luck, ts_us) = (Luck::new(seed), end_us - length_us);
        History { luck, ts_us, step_us, down: [false; 10], begun: false, alert: None }
    }

    fn next(&mut self) -> NewEvent {
        self.ts_us += i64::try_from(self.step_us / 2 + self.luck.below(self.step_us)).expect("small");
        let at = Monotonic::from_ns(u64::try_from(self.ts_us).expect("after 1970") * 1_000);
        let which = self.luck.below(10);
        let down = &mut self.down[usize::try_from(which).expect("small")];
        let (event, data) = if !std::mem::replace(&mut self.begun, true) {
            ("daemon.started", json!({ "boot": "b" }))
        } else {
            match (self.luck.below(10), *down) {
                (0..5, false) => {
                    *down = true;
                    (
                        "unit.failed",
                        json!({ "detect_us": 900, "blame": [], "failures": 1, "state": "backoff" }),
                    )
                }
                (0..5, true) => {
                    *down = false;
                    (
                        "unit.recovered",
                        json!({ "down_ms": 5_000 + self.luck.below(20_000), "state": "active" }),
                    )
                }
                (5, _) => ("resync.succeeded", json!({ "attempt": 1, "took_ms": 12 })),
                (6, _) if self.alert.is_none() => {
                    let key = format!("unit{which}/{}", self.ts_us);
                    self.alert = Some(key.clone());
                    ("alert.raised", json!({ "key": key }))
                }
                (6, _) => ("alert.delivered", json!({ "key": self.alert.take(), "after_ms": 40 })),
                (7, _) => ("log.counted", json!({ "bytes": 1_000_000, "dropped_bytes": 0 })),
                (8, _) => ("health.bad", json!({})),
                (_, _) => ("unit.started", json!({ "pid": 4711 })),
            }
        };
        let data = match data {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let unit = UnitName::parse(&format!("unit{which}")).expect("a name");
        NewEvent {
            ts_us: self.ts_us,
            level: Level::Info,
            event: event.to_string(),
            unit: Some(unit),
            run: None,
            cause: None,
            message: "it happened".to_string(),
            at,
            data,
        }
    }
}

fn by_hand(rows: &[EventRow], from_us: i64, until_us: i64) -> Both {
    let mut replay = Replay::new(Carry::default(), from_us, i64::MAX);
    for row in rows {
        let event = &row.event;
        replay.feed(&Fact {
            ts_us: event.ts_us,
            at: event.at,
            event: &event.event,
            unit: event.unit.as_ref().map(UnitName::as_str),
            data: &event.data,
        });
    }
    replay.finish(until_us)
}

fn assert_windows(store: &Store, rows: &[EventRow], until_us: i64, luck: &mut Luck) {
    let begin_us = rows[0].event.ts_us;
    let length = u64::try_from(until_us - begin_us).expect("forward");
    let day_us = begin_us.div_euclid(DAY_US) * DAY_US + 3 * DAY_US;
    let mut sinces = vec![begin_us - DAY_US, day_us, day_us + 5 * HOUR_US, until_us - 1, until_us];
    sinces.extend((0..40).map(|_| begin_us + i64::try_from(luck.below(length)).expect("small")));
    for since_us in sinces {
        let window = ask(store, since_us, until_us);
        let want = by_hand(rows, window.from_us, until_us);
        let carry = Carry::default();
        let (got, want) = (&window.split, upright::ledger::summary::split(&want, &carry));
        // What is open now is no sum.
        let mut got = got.clone();
        for figures in [&mut got.all, &mut got.real, &mut got.drill] {
            (figures.open_outages, figures.alerts.pending) = (0, 0);
        }
        assert_eq!(window.from_us, since_us.max(begin_us));
        assert_eq!(got, want, "since {since_us}, {} h ago", (until_us - since_us) / HOUR_US);
    }
}

#[test]
fn a_window_that_begins_anywhere_is_the_sum_of_its_records_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("upright.db");
    let until_us = now_us();
    let mut history = History::new(7, until_us - HOUR_US / 2, 15 * DAY_US, 3_000);
    let (mut store, told) = start(&path);
    let mut rows = Vec::new();
    for _ in 0..30 {
        rows.extend(submit(&mut store, &told, (0..100).map(|_| history.next()).collect()));
    }
    let mut luck = Luck::new(3);
    assert_windows(&store, &rows, until_us, &mut luck);
    drop(store);
    let (store, _told) = start(&path);
    assert_windows(&store, &rows, until_us, &mut luck);
}

#[test]
fn what_is_too_old_goes_from_the_front_is_told_and_stays_in_the_sums() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("upright.db");
    let until_us = now_us();
    let mut history = History::new(9, until_us - HOUR_US, 40 * DAY_US, 8_000);
    let (mut store, told) = start(&path);
    let mut rows = Vec::new();
    for _ in 0..8 {
        rows.extend(submit(&mut store, &told, (0..1_000).map(|_| history.next()).collect()));
    }
    let before = ask(&store, 0, until_us);
    store.reader().keep_for(Duration::from_secs(10 * 86_400));
    let deadline = Instant::now() + PATIENCE;
    // Told with the next commit: there is one every now and then.
    let pruned = loop {
        let mut event = history.next();
        event.event = "unit.started".to_string();
        event.data = Map::new();
        let new = submit(&mut store, &told, vec![event]);
        let pruned = new.iter().find(|row| row.event.event == "store.pruned").cloned();
        rows.extend(new);
        if let Some(pruned) = pruned {
            break pruned;
        }
        assert!(Instant::now() < deadline, "nothing was removed");
    };
    let left = events(&store, 0);
    let through = pruned.event.data["through"].as_u64().expect("an id");
    assert_eq!(left[0].id, through + 1, "what was removed is said");
    assert_eq!(pruned.event.data["removed"], through);
    assert!(left.windows(2).all(|pair| pair[1].id == pair[0].id + 1), "ids stay dense");
    let cutoff_us = until_us - 10 * DAY_US;
    assert!(left[0].event.ts_us >= cutoff_us && left[0].event.ts_us < cutoff_us + DAY_US);
    let (after, all) = (ask(&store, 0, until_us), &before.split.all);
    assert_eq!((after.split.all.failures, after.split.all.mttr_s), (all.failures, all.mttr_s));
    assert_eq!(after.split.all.log, all.log);
    // Where the records of its first day are gone, a window begins with that day.
    let since_us = until_us - 30 * DAY_US;
    let window = ask(&store, since_us, until_us);
    assert_eq!(window.from_us, since_us.div_euclid(DAY_US) * DAY_US);
    drop(store);
    let (store, _told) = start(&path);
    assert_eq!(ask(&store, 0, until_us).split.all.failures, all.failures);
    assert_eq!(events(&store, 0)[0].id, through + 1);
}

#[test]
fn ninety_days_are_summed_up_in_a_blink() {
    let asked = std::env::var("UPRIGHT_LEDGER_EVENTS").ok().and_then(|text| text.parse().ok());
    let count: u64 = asked.unwrap_or(50_000);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("upright.db");
    let until_us = now_us();
    let mut history = History::new(1, until_us, 90 * DAY_US, count);
    let (mut store, told) = start(&path);
    for _ in 0..count.div_ceil(4_000) {
        submit(&mut store, &told, (0..4_000).map(|_| history.next()).collect());
    }
    drop(store);
    let begun = Instant::now();
    let (store, _told) = start(&path);
    let bytes = std::fs::metadata(&path).expect("the database").len();
    println!("{count} events, {} MiB: looked through and open after {:?}", bytes >> 20, begun.elapsed());
    let first = Instant::now();
    ask(&store, until_us - 90 * DAY_US, until_us);
    let first = first.elapsed();
    let mut worst = Duration::ZERO;
    for hours in [90 * 24, 89 * 24 + 7, 45 * 24 + 3, 8 * 24, 24, 1] {
        let begun = Instant::now();
        // No multiple of an hour: the costly way.
        let window = ask(&store, until_us - hours * HOUR_US - 1_234_567, until_us);
        let took = begun.elapsed();
        worst = worst.max(took);
        println!("{hours} h of {count} events in {took:?}: {} failures", window.split.all.failures);
    }
    println!("the first after the start: {first:?}; worst: {worst:?}");
    // A figure of a quiet machine; beside other tests it says nothing.
    assert!(asked.is_none() || worst < SUMMARY_MAX, "{worst:?}");
}
