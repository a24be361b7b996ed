//! The simulator's runs: every seed must keep every promise, every mark must be met, every
//! planted bug must be caught. `SIM_SEEDS=100000` asks for more, `SIM_SEED=n` for one, told.
//!
//! Refuses: real time and real processes.

use std::collections::BTreeSet;
use std::time::Duration;

use upright::engine::effect::Mark;
use upright::sim::bug::Bug;
use upright::sim::run::{Report, Trace, run};
use upright::sim::shrink::shrink;
use upright::sim::tape::Tape;

/// Seeds of a plain test run: one half each for two cores.
const SEEDS: u64 = 2_400;

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A failure as a person wants it: the promise, the shortest trace, one line to run it again.
fn tell(seed: u64, failing: &Report) -> String {
    let short = shrink(failing, None);
    let report = if short.broken.is_some() { &short } else { failing };
    let broken = report.broken.as_ref().expect("a failing report");
    let from = report.trace.len().saturating_sub(60);
    format!(
        "\n{}\n\nunit {:?}: {} ({})\nSIM_SEED={seed} cargo test --test sim one_seed -- --nocapture\n",
        report.trace[from..].join("\n"),
        broken.unit.as_ref().map(|unit| unit.to_string()),
        broken.promise,
        broken.detail,
    )
}

/// What a range of seeds came to.
#[derive(Default)]
struct Survey {
    marks: BTreeSet<Mark>,
    steps: u64,
    unit_hours: f64,
    /// Every failing seed, with the promise it breaks.
    failing: Vec<(u64, String)>,
}

fn survey(seeds: impl Iterator<Item = u64>) -> Survey {
    let mut survey = Survey::default();
    for seed in seeds {
        let attempt = std::panic::catch_unwind(|| run(Tape::from_seed(seed), None, Trace::Off));
        let Ok(report) = attempt else {
            survey.failing.push((seed, "a `never!` of the engine".to_string()));
            continue;
        };
        if let Some(broken) = report.broken {
            survey.failing.push((seed, broken.promise));
        }
        survey.marks.extend(report.marks);
        survey.steps += report.steps;
        survey.unit_hours += report.simulated.as_secs_f64() / 3_600.0 * report.units as f64;
    }
    survey
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
    println!(
        "{seeds} seeds, {} steps, {:.0} simulated unit-hours, {:.1} s",
        even.steps + odd.steps,
        even.unit_hours + odd.unit_hours,
        begun.elapsed().as_secs_f64()
    );
    let mut failing: Vec<&(u64, String)> = even.failing.iter().chain(&odd.failing).collect();
    failing.sort();
    if let Some((seed, _)) = failing.first() {
        let report = run(Tape::from_seed(*seed), None, Trace::Off);
        panic!("failing seeds: {failing:#?}\n{}", tell(*seed, &report));
    }
    let missed: Vec<&Mark> =
        Mark::ALL.iter().filter(|mark| !even.marks.contains(mark) && !odd.marks.contains(mark)).collect();
    assert!(missed.is_empty() || seeds < SEEDS, "never met: {missed:?}");
}

#[test]
fn one_seed() {
    let Some(seed) = asked("SIM_SEED") else { return };
    let report = run(Tape::from_seed(seed), None, Trace::On);
    println!("{}", report.trace.join("\n"));
    println!("{} steps, {:?} simulated", report.steps, report.simulated);
    assert!(report.broken.is_none(), "{}", tell(seed, &report));
}

#[test]
fn every_planted_bug_is_caught_and_the_promise_is_named() {
    let mut survivors = Vec::new();
    for bug in Bug::ALL {
        let caught = (0..1_500).find_map(|seed| {
            let attempt = std::panic::catch_unwind(|| run(Tape::from_seed(seed), Some(bug), Trace::Off));
            match attempt {
                Ok(report) => report.broken.map(|broken| (seed, broken.promise)),
                Err(_) => Some((seed, "a `never!` of the engine".to_string())),
            }
        });
        match caught {
            Some((seed, promise)) => println!("{bug:?}: seed {seed}: {promise}"),
            None => survivors.push(bug),
        }
    }
    assert!(survivors.is_empty(), "not caught: {survivors:?}");
}

#[test]
fn the_same_tape_gives_the_same_run() {
    for seed in 0..40 {
        let first = run(Tape::from_seed(seed), None, Trace::Off);
        let again = run(Tape::from_seed(seed), None, Trace::Off);
        let replayed = run(Tape::from_choices(first.tape.choices()), None, Trace::Off);
        assert_eq!(first.hash, again.hash, "seed {seed}");
        assert_eq!(first.hash, replayed.hash, "seed {seed}, from its recorded choices");
    }
}

#[test]
fn a_failing_tape_is_made_short() {
    let bug = Some(Bug::DoubleSpawn);
    let failing = (0..100)
        .map(|seed| run(Tape::from_seed(seed), bug, Trace::Off))
        .find(|report| report.broken.is_some())
        .expect("the bug is caught");
    let short = shrink(&failing, bug);
    let weight =
        |report: &Report| report.tape.choices().iter().flatten().filter(|choice| **choice != 0).count();
    assert_eq!(
        short.broken.as_ref().map(|broken| &broken.promise),
        failing.broken.as_ref().map(|broken| &broken.promise)
    );
    assert!(weight(&short) < weight(&failing), "{} < {}", weight(&short), weight(&failing));
    assert!(short.simulated <= failing.simulated + Duration::from_secs(3_600));
}
