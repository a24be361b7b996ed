//! The real stack of examples/fastapi under the daemon: PostgreSQL, Redis, a uvicorn backend.
//!
//! Refuses: stand-ins. Where one of the three is missing, the test says so and is left out.

mod support;

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use support::stack::{ACTIVE, Stack, UNITS, lacking, postgres_bin};
use support::{Home, eventually, of, pid_of};

/// How late a scheduled restart may be, in ns (design: "never earlier, ≤ 10 ms later").
const LATE_NS_MAX: i64 = 10_000_000;

/// The delays of the units, in ns: after the 1st, 2nd, 3rd failure in a row; the last repeats.
const DELAYS_NS: [i64; 4] = [5_000_000_000, 10_000_000_000, 15_000_000_000, 15_000_000_000];

/// How long a SIGKILL may take until it is reaped, in ns.
const REAPED_NS_MAX: i64 = 100_000_000;

/// What this test asks of the stack.
trait Asked {
    fn pids(&self) -> Vec<Option<i32>>;
    fn kill_and_await(&self, unit: &str, delay_ns: i64);
}

fn start() -> Stack {
    let mut stack = Stack::prepare();
    stack.start();
    stack
}

impl Asked for Stack {
    fn pids(&self) -> Vec<Option<i32>> {
        UNITS.iter().map(|unit| pid_of(&self.home.status(unit))).collect()
    }

    /// SIGKILL to the main process; waits until the unit is active as another process, and
    /// checks the schedule on the record: `delay_ns` after its end, never earlier, ≤ 10 ms later.
    fn kill_and_await(&self, unit: &str, delay_ns: i64) {
        let last = self.home.last_event();
        let pid = self.home.pid(unit);
        let killed = boottime_ns();
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
        self.home.await_unit(unit, &format!("{unit} is active again"), ACTIVE, |status| {
            status["state"] == "active" && pid_of(status).is_some_and(|now| now != pid)
        });
        let back = boottime_ns();
        let events = self.home.events_after(last);
        let only = |name: &str| {
            let found = of(&events, name, unit);
            assert_eq!(found.len(), 1, "{name}: {events:?}");
            found[0].clone()
        };
        assert_eq!(only("unit.failed")["data"]["signal"], "SIGKILL");
        let due = only("retry.scheduled")["data"]["due_ns"].as_i64().expect("due_ns");
        let restarted = only("unit.restarted")["at_ns"].as_i64().expect("at_ns");
        let (reaped, late) = (due - delay_ns - killed, restarted - due);
        println!(
            "{unit}: end seen {} µs after the kill, restarted {} µs after its time, active again after {} ms",
            reaped / 1_000,
            late / 1_000,
            (back - killed) / 1_000_000
        );
        assert!((0..REAPED_NS_MAX).contains(&reaped), "the delay counts from {reaped} ns after the kill");
        assert!((0..=LATE_NS_MAX).contains(&late), "{unit} restarted {late} ns after its time");
        for other in UNITS.iter().filter(|other| **other != unit) {
            assert!(of(&events, "unit.restarted", other).is_empty(), "{other} was restarted too: {events:?}");
        }
    }
}

/// The clock that the records count in.
fn boottime_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has it");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

#[test]
fn the_stack_starts_in_order_and_each_part_comes_back_alone_after_five_seconds() {
    if support::skip_tool(lacking()) {
        return;
    }
    let stack = start();
    let since = |unit: &str| stack.home.status(unit)["since"].as_str().expect("since").to_owned();
    assert!(
        since("postgres") < since("backend") && since("redis") < since("backend"),
        "RFC 3339 sorts as text"
    );
    for (at, unit) in UNITS.iter().enumerate() {
        let before = stack.pids();
        stack.kill_and_await(unit, DELAYS_NS[0]);
        let after = stack.pids();
        for (other, name) in UNITS.iter().enumerate().filter(|(other, _)| *other != at) {
            assert_eq!(before[other], after[other], "{name} was touched when {unit} was killed");
        }
    }
}

#[test]
fn repeated_kills_are_answered_after_5_10_15_and_15_seconds() {
    if support::skip_tool(lacking()) {
        return;
    }
    let stack = start();
    let before = stack.pids();
    for delay_ns in DELAYS_NS {
        stack.kill_and_await("redis", delay_ns);
    }
    let after = stack.pids();
    let redis = UNITS.iter().position(|unit| *unit == "redis");
    for (at, unit) in UNITS.iter().enumerate().filter(|(at, _)| Some(*at) != redis) {
        assert_eq!(before[at], after[at], "{unit} was touched");
    }
    assert_eq!(stack.home.status("redis")["restarts"], 4);
}

#[test]
fn sessions_accepted_while_postgres_is_away_are_all_there_once() {
    if support::skip_tool(lacking()) {
        return;
    }
    let stack = start();
    let chat = |number: u32| {
        let id = format!("00000000-0000-4000-8000-{number:012}");
        stack.ask("POST", "/api/chat", &format!(r#"{{"id":"{id}","user":"u","message":"m"}}"#)).0
    };
    assert_eq!(chat(0), 200);
    let pid = stack.home.pid("postgres");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
    stack.home.await_unit("postgres", "its end is seen", ACTIVE, |status| status["state"] == "backoff");
    let accepted: Vec<u16> = (0..20).map(chat).collect();
    assert!(accepted.iter().all(|status| *status == 202), "{accepted:?}");
    stack.home.await_state("postgres", "active", ACTIVE);
    assert_eq!(chat(19), 200, "sent again, now to the database");
    stack.home.await_unit("backend", "its state is restored", ACTIVE, |status| {
        status["state"] == "active" && status["reason"] == "ready"
    });
    let (status, counts) = stack.ask("POST", "/api/recovery/state_resync", "");
    assert_eq!((status, &counts["written"], &counts["known"]), (200, &0.into(), &0.into()), "{counts}");
    let (_, sessions) = stack.ask("GET", "/api/sessions", "");
    assert_eq!((&sessions["count"], &sessions["journal"]), (&20.into(), &0.into()), "{sessions}");
}

#[test]
fn stop_all_stops_in_reverse_order_and_postgres_shuts_down_cleanly() {
    if support::skip_tool(lacking()) {
        return;
    }
    let mut stack = start();
    let last = stack.home.last_event();
    stack.home.upright_exits(&["stop", "--all"], 0);
    for unit in UNITS {
        assert_eq!(stack.home.status(unit)["state"], "inactive");
    }
    let events = stack.home.events_after(last);
    let stopped = |unit: &str| of(&events, "unit.stopped", unit).first().map(|event| event["id"].as_u64());
    assert!(stopped("backend") < stopped("postgres") && stopped("backend") < stopped("redis"), "{events:?}");
    assert_eq!(cluster_state(&stack.home), "shut down");
    stack.home.upright_exits(&["start", "--all"], 0);
    assert_eq!(cluster_state(&stack.home), "in production");
    assert!(stack.home.stop().success());
    assert_eq!(cluster_state(&stack.home), "shut down", "SIGTERM to the daemon stops as cleanly");
}

/// What PostgreSQL itself wrote into its control file.
fn cluster_state(home: &Home) -> String {
    let bin = postgres_bin().expect("checked before");
    eventually("pg_controldata answers", Duration::from_secs(5), || {
        let output = Command::new(bin.join("pg_controldata"))
            .arg(home.path().join("data/postgres"))
            .env("LC_ALL", "C")
            .output()
            .expect("pg_controldata runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("Database cluster state:"))?;
        Some(line.trim().to_owned())
    })
}
