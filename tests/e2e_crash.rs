//! SIGKILL to the engine, a hundred times at random moments: no service notices, no line and
//! no exit status is lost, and no delay starts over.
//!
//! Refuses: mercy. The engine is killed as soon as it answers again, sometimes before.

mod support;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{Home, eventually, lines, of};

const SOON: Duration = Duration::from_secs(30);
const WRITERS: u32 = 4;

/// Longest random moment between "the engine answers" and its death, in milliseconds.
const MOMENT_MS_MAX: u64 = 60;

fn kills() -> u32 {
    std::env::var("CRASH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// SplitMix64; the seed is printed, and taken from SEED.
struct Luck(u64);

impl Luck {
    fn new() -> Luck {
        let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
        println!("SEED={seed} cargo test --test e2e_crash");
        Luck(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn home() -> Home {
    let home = Home::new();
    for writer in 0..WRITERS {
        home.unit(&format!("writer{writer}"), &lines::unit());
    }
    // Ends by itself with a status to be remembered, over and over.
    let mortal =
        "[service]\nshell = true\ncommand = \"sleep 0.3; exit 7\"\n[restart]\ndelays = [\"100ms\"]\n";
    home.unit("mortal", mortal);
    // Fails when it is told to, then waits long: its delay spans many engine lives.
    let patient = "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"5s\"]\n";
    home.unit("patient", patient);
    home
}

/// Pid of the engine, once one answers that is not `former`.
fn engine(home: &Home, former: Option<i64>) -> i64 {
    eventually("an engine answers", SOON, || {
        let pid = home.list()?["daemon"]["engine_pid"].as_i64()?;
        (Some(pid) != former).then_some(pid)
    })
}

#[test]
fn a_hundred_deaths_of_the_engine_change_nothing_for_the_services() {
    let mut luck = Luck::new();
    let mut home = home();
    home.daemon();
    let writers: Vec<String> = (0..WRITERS).map(|writer| format!("writer{writer}")).collect();
    let pids: BTreeMap<&String, i32> = writers
        .iter()
        .map(|name| {
            home.await_state(name, "active", SOON);
            (name, home.pid(name))
        })
        .collect();
    home.await_state("patient", "active", SOON);
    kill(Pid::from_raw(home.pid("patient")), Signal::SIGKILL).expect("it lives");
    home.await_state("patient", "backoff", SOON);

    let mut former = None;
    for _ in 0..kills() {
        let pid = engine(&home, former);
        // A random moment is the point of this test; no event could stand for it.
        std::thread::sleep(Duration::from_millis(luck.below(MOMENT_MS_MAX)));
        kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), Signal::SIGKILL).expect("the engine lives");
        former = Some(pid);
    }
    engine(&home, former);

    for (name, pid) in &pids {
        let status = home.status(name);
        assert_eq!((&status["pid"], &status["restarts"]), (&(*pid).into(), &0.into()), "{name} was touched");
    }
    home.await_state("patient", "active", SOON);
    let events = home.events();
    check_patient(&events);
    check_mortal(&events);
    let crashes = events.iter().filter(|event| event["event"] == "engine.restarted").count();
    println!("{crashes} engine deaths are on record, {} events", events.len());
    assert!(home.stop().success());
    for name in &writers {
        let lines = lines::check(&home.path().join("log").join(name));
        println!("{name}: {lines} lines, none lost, none doubled");
    }
}

/// Its delay went on while engines died: one restart, not early.
fn check_patient(events: &[Value]) {
    let scheduled = of(events, "retry.scheduled", "patient");
    let restarted = of(events, "unit.restarted", "patient");
    assert_eq!((scheduled.len(), restarted.len()), (1, 1), "{scheduled:?} {restarted:?}");
    let due = scheduled[0]["data"]["due_ns"].as_i64().expect("due_ns");
    let late_us = (restarted[0]["at_ns"].as_i64().expect("at_ns") - due) / 1_000;
    println!("patient: restarted {late_us} µs after its time");
    // An engine may be dead at that very moment; it must not begin the five seconds again.
    assert!((0..2_000_000).contains(&late_us), "restarted {late_us} µs after its time");
}

/// Every end is on record once, with the status it had.
fn check_mortal(events: &[Value]) {
    let failed = of(events, "unit.failed", "mortal");
    let mut runs: Vec<u64> = failed.iter().map(|event| event["run"].as_u64().expect("run")).collect();
    let ends = runs.len();
    runs.sort_unstable();
    runs.dedup();
    assert_eq!(runs.len(), ends, "an end was recorded twice");
    for event in &failed {
        assert_eq!(event["data"]["exit_code"], 7, "a status was lost: {event}");
    }
    assert!(ends > 3, "only {ends} ends: the test proves nothing");
    let last = failed.last().expect("more than three");
    assert_eq!(last["data"]["failures"], ends, "the count of failures started over");
}
