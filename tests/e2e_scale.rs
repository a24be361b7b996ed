//! A thousand units: all active, all killed at once, all back, no zombie. Prints how long.
//!
//! Refuses: pass marks for speed; they belong to the machine. Deadlines only keep it finite.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{Home, eventually, pid_of, proc};

const LONG: Duration = Duration::from_secs(120);

fn units() -> usize {
    std::env::var("SCALE_UNITS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000)
}

/// Name → pid, when every unit is active; none before.
fn all_active(home: &Home, count: usize) -> Option<BTreeMap<String, i32>> {
    let list = home.list()?;
    let units = list["units"].as_array()?;
    let active = |unit: &Value| {
        let name = unit["name"].as_str()?.to_owned();
        (unit["state"] == "active").then_some((name, pid_of(unit)?))
    };
    let pids: Option<BTreeMap<_, _>> = units.iter().map(active).collect();
    pids.filter(|pids| pids.len() == count)
}

#[test]
fn a_thousand_units_killed_at_once_are_all_back() {
    let count = units();
    let mut home = Home::new();
    let text = "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"0s\"]\n";
    for number in 0..count {
        home.unit(&format!("u{number:04}"), text);
    }
    let start = Instant::now();
    home.daemon();
    let answered = start.elapsed();
    let before = eventually("all units are active", LONG, || all_active(&home, count));
    println!("{count} units: daemon answers after {answered:.2?}, all active after {:.2?}", start.elapsed());

    let start = Instant::now();
    for pid in before.values() {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("it lives");
    }
    let after = eventually("all units are back", LONG, || {
        let after = all_active(&home, count)?;
        after.iter().all(|(name, pid)| before[name] != *pid).then_some(after)
    });
    println!("killed at once: all back after {:.2?}", start.elapsed());
    assert_eq!(after.len(), count);

    let keeper = home.child();
    let zombies: Vec<_> = proc::below(keeper).into_iter().filter(|process| process.state == 'Z').collect();
    assert!(zombies.is_empty(), "{zombies:?}");
    let list = home.list().expect("it answers");
    for unit in list["units"].as_array().expect("units") {
        assert_eq!(unit["restarts"], 1, "{unit}");
    }
    for (who, pid) in [("keeper", &list["daemon"]["keeper_pid"]), ("engine", &list["daemon"]["engine_pid"])] {
        println!("{who}: {}", resident(pid.as_i64().expect("a pid")));
    }
    let start = Instant::now();
    assert!(home.stop().success());
    println!("all stopped after {:.2?}", start.elapsed());
}

fn resident(pid: i64) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("VmRSS: unknown").to_owned()
}
