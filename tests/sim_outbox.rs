//! The outbox in its simulated world: every seed keeps every promise, every mark is met, every
//! planted bug is caught. `SIM_SEEDS=100000` asks for more, `SIM_SEED=n` for one, told.
//!
//! Refuses: real time and real sinks.

use std::collections::BTreeSet;

use upright::engine::outbox::Mark;
use upright::sim::outbox::bug::Bug;
use upright::sim::outbox::{Fate, PROMISES, Report, Trace, broken_by, run, run_compared};

/// Seeds of a plain test run: one half each for two cores. Each is run twice.
const SEEDS: u64 = 1_600;

/// Seeds within which each planted bug must be caught.
const BUG_SEEDS: u64 = 120;

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn tell(seed: u64) -> String {
    let report = run(seed, None, Fate::AsDrawn, Trace::On);
    let from = report.trace.len().saturating_sub(60);
    format!(
        "\n{}\n{:?}\nSIM_SEED={seed} cargo test --test sim_outbox one_seed -- --nocapture\n",
        report.trace[from..].join("\n"),
        report.broken
    )
}

fn survey(seeds: impl Iterator<Item = u64>) -> Vec<(u64, Report)> {
    seeds.map(|seed| (seed, run_compared(seed, None))).collect()
}

#[test]
fn every_seed_keeps_every_promise_and_every_mark_is_met() {
    let seeds = asked("SIM_SEEDS").unwrap_or(SEEDS);
    let begun = std::time::Instant::now();
    let (even, odd) = std::thread::scope(|scope| {
        let even = scope.spawn(|| survey((0..seeds).step_by(2)));
        let odd = scope.spawn(|| survey((1..seeds).step_by(2)));
        (even.join().expect("the even seeds"), odd.join().expect("the odd seeds"))
    });
    let all: Vec<(u64, Report)> = even.into_iter().chain(odd).collect();
    println!(
        "{seeds} seeds, each twice: {} steps, {} sends, {:.0} simulated hours, {:.1} s",
        all.iter().map(|(_, report)| 2 * report.steps).sum::<u64>(),
        all.iter().map(|(_, report)| 2 * report.sends).sum::<u64>(),
        all.iter().map(|(_, report)| 2.0 * report.simulated.as_secs_f64()).sum::<f64>() / 3_600.0,
        begun.elapsed().as_secs_f64()
    );
    let failing = all.iter().filter_map(|(seed, report)| Some((seed, report.broken.as_ref()?)));
    let failing: Vec<_> = failing.collect();
    if let Some((seed, _)) = failing.first() {
        panic!("{} failing seeds: {:#?}\n{}", failing.len(), &failing[..failing.len().min(5)], tell(**seed));
    }
    let met: BTreeSet<Mark> = all.iter().flat_map(|(_, report)| report.marks.iter().copied()).collect();
    let missed: Vec<&Mark> = Mark::ALL.iter().filter(|mark| !met.contains(mark)).collect();
    assert!(missed.is_empty() || seeds < SEEDS, "never met: {missed:?}");
}

#[test]
fn one_seed() {
    let Some(seed) = asked("SIM_SEED") else { return };
    let report = run(seed, None, Fate::AsDrawn, Trace::On);
    println!("{}", report.trace.join("\n"));
    println!("{} steps, {:?} simulated", report.steps, report.simulated);
    assert_eq!(run_compared(seed, None).broken, None);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..40 {
        let first = run(seed, None, Fate::AsDrawn, Trace::Off);
        let again = run(seed, None, Fate::AsDrawn, Trace::Off);
        assert_eq!(first.hash, again.hash, "seed {seed}");
    }
}

#[test]
fn every_planted_bug_is_caught_and_every_promise_by_one() {
    let mut proven = BTreeSet::new();
    let mut survivors = Vec::new();
    for bug in Bug::ALL {
        let caught = broken_by(bug, BUG_SEEDS);
        println!("{bug:?}: {caught:?}");
        if caught.is_empty() {
            survivors.push(bug);
        }
        proven.extend(caught);
    }
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
    let unproven: Vec<&&str> = PROMISES.iter().filter(|promise| !proven.contains(**promise)).collect();
    assert!(unproven.is_empty(), "no planted bug breaks {unproven:?}");
}
