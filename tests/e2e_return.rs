//! PostgreSQL goes and returns, ten times, under the real stack: the backend keeps running and
//! says what it waits for, its state is restored once for each return, and no session is lost.
//!
//! Refuses: a quiet moment. A client writes numbered sessions from the first to the last.
//!
//! `UPRIGHT_OUTAGE_S=30` stops PostgreSQL for so long and keeps the delays of the example
//! (5, 10, 15 s); that takes about ten minutes.

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::client::{Client, compare};
use support::oracle;
use support::stack::{ACTIVE, Stack, lacking};
use support::{UPRIGHT, eventually, of, proc};

/// How PostgreSQL goes away.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// SIGKILL to its main process.
    MainKilled,
    /// SIGKILL to everything of it.
    AllKilled,
    /// SIGSTOP to its main process: it hangs, and its health checks say so.
    Hung,
    /// `upright stop`, and `upright start` after the outage.
    Stopped,
}

const LOSSES: [Loss; 10] = [
    Loss::MainKilled,
    Loss::Hung,
    Loss::AllKilled,
    Loss::MainKilled,
    Loss::Hung,
    Loss::AllKilled,
    Loss::MainKilled,
    Loss::Stopped,
    Loss::Hung,
    Loss::Stopped,
];

/// Until the loss is seen: at once where it dies, else `interval × threshold + timeout`.
const SEEN: Duration = Duration::from_secs(20);

/// The longest delay, 15 s, PostgreSQL's recovery, and the jitter of a resync, 250 ms; the rest
/// is for a loaded machine.
const RESTORED: Duration = Duration::from_secs(60);

/// No second resync may follow: what is asked for twice comes within the jitter.
const QUIET: Duration = Duration::from_millis(400);

/// How long an ordered stop lasts. None: the short run.
fn outage() -> Option<Duration> {
    let text = std::env::var("UPRIGHT_OUTAGE_S").ok()?;
    Some(Duration::from_secs(text.parse().expect("UPRIGHT_OUTAGE_S is a number of seconds")))
}

/// The stack with what a unit file says about a dependency that goes and returns.
fn stack() -> Stack {
    let mut stack = Stack::prepare();
    let ports = stack.ports;
    let delays = match outage() {
        Some(_) => r#""5s", "10s", "15s""#,
        None => r#""500ms", "1s", "1s""#,
    };
    let restart = format!("[restart]\ndelays = [{delays}]\n");
    // A main process that is stopped takes no SIGINT: it is killed after the timeout.
    let stop = "[stop]\nsignal = \"SIGINT\"\ntimeout = \"2s\"\n";
    let hangs = format!(
        "[health]\npostgres = \"127.0.0.1:{}\"\ninterval = \"500ms\"\ntimeout = \"1s\"\nthreshold = 2\n",
        ports.postgres
    );
    stack.amend("postgres", &format!("{restart}{stop}{hangs}"));
    stack.amend("redis", &restart);
    let url = format!("http://127.0.0.1:{}", ports.backend);
    let heals = format!(
        "[health]\nhttp = \"{url}/livez\"\ninterval = \"1s\"\ntimeout = \"5s\"\n\n\
         [dependency.postgres]\non_loss = \"degrade\"\non_return = \"resync\"\n\n\
         [resync]\nhttp = \"POST {url}/api/recovery/state_resync\"\ntimeout = \"10s\"\n"
    );
    stack.amend("backend", &format!("{restart}{heals}"));
    stack.start();
    stack
}

fn sigkill(pid: Pid) {
    kill(pid, Signal::SIGKILL).expect("it lives");
}

/// Takes PostgreSQL away in one of the ways.
fn lose(stack: &Stack, loss: Loss) {
    let main = Pid::from_raw(stack.home.pid("postgres"));
    match loss {
        Loss::MainKilled => sigkill(main),
        Loss::AllKilled => {
            for process in proc::below(main) {
                let _ = kill(process.pid, Signal::SIGKILL); // the main process may have ended it
            }
        }
        Loss::Hung => kill(main, Signal::SIGSTOP).expect("it lives"),
        Loss::Stopped => drop(stack.home.upright_exits(&["stop", "postgres"], 0)),
    }
}

/// The backend in the answer of `upright status --json`, as a user reads it.
fn shown(stack: &Stack) -> Value {
    let output = Command::new(UPRIGHT)
        .args(["status", "--json"])
        .env("UPRIGHT_HOME", stack.home.path())
        .output()
        .expect("the binary runs");
    let list: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    support::unit_of(&list, "backend").cloned().unwrap_or_default()
}

fn await_shown(stack: &Stack, state: &str, reason: Option<&str>) {
    let mut last = Value::Null;
    let deadline = Instant::now() + SEEN;
    loop {
        let seen = shown(stack);
        if seen["state"] == state && reason.is_none_or(|reason| seen["reason"] == reason) {
            return;
        }
        if !seen.is_null() {
            last = seen;
        }
        assert!(Instant::now() < deadline, "the backend is not shown as {state} ({reason:?}): {last}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the backend is restored after the last return, and no more comes of it.
fn await_resync(stack: &Stack, after: u64) {
    let settled = || {
        let events = stack.home.events_after(after);
        let last = |name: &str| of(&events, name, "backend").last().and_then(|event| event["id"].as_u64());
        (last("resync.succeeded") > last("unit.degraded") && last("unit.degraded").is_some()).then_some(())
    };
    eventually("the backend's state is restored", RESTORED, settled);
    // Nothing reports that nothing happens.
    std::thread::sleep(QUIET);
}

/// One loss and one return, and all that must be on record about it.
fn go_and_return(stack: &Stack, loss: Loss) {
    let (last, pid) = (stack.home.last_event(), stack.home.pid("backend"));
    let acknowledged = stack.resyncs_acknowledged();
    let begun = Instant::now();
    lose(stack, loss);
    await_shown(stack, "degraded", Some("waiting: postgres"));
    let seen = begun.elapsed();
    if let Loss::Stopped = loss {
        // The outage itself is what is tested.
        std::thread::sleep(outage().unwrap_or(Duration::from_secs(3)));
        stack.home.upright_exits(&["start", "postgres"], 0);
    }
    await_resync(stack, last);
    await_shown(stack, "active", None);
    println!(
        "{loss:?}: degraded after {} ms, in step after {} ms",
        seen.as_millis(),
        begun.elapsed().as_millis()
    );
    assert_eq!(stack.home.pid("backend"), pid, "{loss:?}: the backend was touched");
    let events = stack.home.events_after(last);
    let of_backend = |name: &str| of(&events, name, "backend");
    let degraded = of_backend("unit.degraded");
    assert_eq!(degraded.len(), 1, "{loss:?}: {events:?}");
    assert_eq!(degraded[0]["data"]["for"], serde_json::json!(["postgres"]));
    for name in ["unit.restored", "resync.started", "resync.succeeded"] {
        assert_eq!(of_backend(name).len(), 1, "{loss:?}: {name}: {events:?}");
    }
    for name in ["resync.failed", "unit.failed", "unit.restarted", "alert.raised"] {
        assert!(of_backend(name).is_empty(), "{loss:?}: {name}: {events:?}");
    }
    assert_eq!(stack.resyncs_acknowledged(), acknowledged + 1, "{loss:?}: what the backend itself says");
}

/// What must hold of the whole history and of every session that was accepted.
fn conclude(stack: &Stack, client: Client) {
    let ledger = client.finish();
    let events = stack.home.events();
    let alerts = oracle::alerts(&stack.home);
    let mut wrong = compare(stack, &ledger);
    wrong.extend(oracle::check_ids(&stack.home, &events));
    wrong.extend(oracle::check_failures(&events));
    wrong.extend(oracle::check_alerts(&events, &alerts));
    wrong.extend(oracle::check_resyncs(&events, "backend"));
    let own = alerts.iter().filter(|row| row.unit.as_deref() == Some("backend"));
    wrong.extend(own.map(|row| format!("an alert of the backend's own: {row:?}")));
    for row in alerts.iter().filter(|row| row.unit.as_deref() == Some("postgres") && row.kind == "failing") {
        if row.affected != "backend" {
            wrong.push(format!("the alert does not name who is affected: {row:?}"));
        }
    }
    println!(
        "{} sessions were accepted, {} of them into the journal; {} attempts were refused; {} alerts: {:?}",
        ledger.accepted.len(),
        ledger.journaled,
        ledger.refused,
        alerts.len(),
        alerts.iter().map(|row| &row.key).collect::<Vec<_>>()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn postgres_returns_ten_times_and_the_backend_is_restored_once_for_each() {
    if support::skip_tool(lacking()) {
        return;
    }
    let stack = stack();
    let client = Client::start(stack.ports.backend);
    for loss in LOSSES {
        go_and_return(&stack, loss);
    }
    conclude(&stack, client);
}

#[test]
fn however_much_postgres_flaps_the_last_return_is_the_one_that_counts() {
    if support::skip_tool(lacking()) {
        return;
    }
    let stack = stack();
    let client = Client::start(stack.ports.backend);
    let (first, pid) = (stack.home.last_event(), stack.home.pid("backend"));
    // It dies again as soon as it is ready, or as soon as the resync has begun: that is due,
    // under way, or just done.
    for (name, unit) in
        [("unit.active", "postgres"), ("resync.started", "backend"), ("unit.active", "postgres")]
    {
        let last = stack.home.last_event();
        sigkill(Pid::from_raw(stack.home.pid("postgres")));
        stack.home.await_event(last, "postgres is back", ACTIVE, |event| {
            event["event"] == name && event["unit"] == unit
        });
    }
    let flapped = stack.home.last_event();
    sigkill(Pid::from_raw(stack.home.pid("postgres")));
    await_resync(&stack, flapped);
    let events = stack.home.events_after(first);
    let count = |name: &str| of(&events, name, "backend").len();
    println!(
        "lost {} times, resync begun {} times, done {} times",
        count("unit.degraded"),
        count("resync.started"),
        count("resync.succeeded")
    );
    let after = stack.home.events_after(flapped);
    assert_eq!(of(&after, "resync.succeeded", "backend").len(), 1, "{after:?}");

    // Both at once: one loss, one return, when both are ready again.
    let last = stack.home.last_event();
    sigkill(Pid::from_raw(stack.home.pid("postgres")));
    sigkill(Pid::from_raw(stack.home.pid("redis")));
    await_shown(&stack, "degraded", None);
    await_resync(&stack, last);
    await_shown(&stack, "active", None);
    let events = stack.home.events_after(last);
    for name in ["unit.restored", "resync.succeeded"] {
        assert_eq!(of(&events, name, "backend").len(), 1, "{name}: {events:?}");
    }
    assert_eq!(stack.home.pid("backend"), pid, "the backend was touched");
    conclude(&stack, client);
}
