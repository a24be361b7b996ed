//! Making a failing tape short: fewer choices, smaller choices, the same broken promise.
//!
//! Refuses: keeping a candidate that breaks something else.

use crate::sim::bug::Bug;
use crate::sim::run::{Report, Trace, run};
use crate::sim::tape::{DOMAINS, Tape};

/// Most candidates tried.
const TRIES_MAX: u32 = 2_000;

/// The shortest tape found that breaks the same promise as `failing` (delta debugging over
/// the recorded choices: blocks set to 0, then single values halved).
pub fn shrink(failing: &Report, bug: Option<Bug>) -> Report {
    let promise = failing.broken.as_ref().map(|broken| broken.promise.clone());
    let mut best = failing.tape.choices();
    let mut tries = 0;
    let fails = |choices: &[Vec<u64>; DOMAINS], tries: &mut u32| {
        *tries += 1;
        let report = run(Tape::from_choices(choices.clone()), bug, Trace::Off);
        report.broken.map(|broken| broken.promise) == promise
    };
    for stream in 0..best.len() {
        let mut block = best[stream].len().max(1);
        while block >= 1 && tries < TRIES_MAX {
            let mut from = 0;
            while from < best[stream].len() && tries < TRIES_MAX {
                let to = (from + block).min(best[stream].len());
                if best[stream][from..to].iter().any(|choice| *choice != 0) {
                    let mut candidate = best.clone();
                    candidate[stream][from..to].fill(0);
                    if fails(&candidate, &mut tries) {
                        best = candidate;
                    }
                }
                from = to;
            }
            block /= 2;
        }
    }
    run(Tape::from_choices(best), bug, Trace::On)
}
