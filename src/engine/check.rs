//! The promises that hold between any two steps. Run after every step in tests and drills.
//!
//! Refuses: mending. A broken promise is told with the unit and the promise's number.

use std::collections::BTreeSet;

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::Role;
use crate::engine::state::{Probing, StartStep, State, Unit, Watch, WatchStep, WhyInactive};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Number in the list of invariants, as `sim` and the docs have it.
    pub invariant: &'static str,
    pub unit: Option<UnitName>,
    pub detail: String,
}

impl Engine {
    /// # Errors
    /// The first promise found broken.
    pub fn check(&self) -> Result<(), Violation> {
        for (name, unit) in &self.units {
            check_unit(unit).map_err(|(invariant, detail)| Violation {
                invariant,
                unit: Some(name.clone()),
                detail,
            })?;
            self.check_wishes(name, unit).map_err(|(invariant, detail)| Violation {
                invariant,
                unit: Some(name.clone()),
                detail,
            })?;
        }
        self.check_indexes().map_err(|(invariant, detail)| Violation { invariant, unit: None, detail })
    }

    fn check_wishes(&self, name: &UnitName, unit: &Unit) -> Result<(), (&'static str, String)> {
        let resting = matches!(unit.state, State::Waiting { .. } | State::Backoff { .. });
        hold("E11 a unit that is not wanted does not wait to start", !(self.to_stop(name) && resting))?;
        let idle = matches!(
            unit.state,
            State::Inactive { why: WhyInactive::NotWanted } | State::Inactive { why: WhyInactive::Stopped }
        );
        hold("E12 a wanted unit is not left inactive", self.to_stop(name) || !idle)?;
        hold("E13 a removed unit at rest is forgotten", !(unit.removed && unit.at_rest()))?;
        if let State::Waiting { not_before, blockers } = &unit.state {
            let free = blockers.only_slot() && self.slot_is_free() && not_before.is_none();
            hold("E14 no unit waits for a slot while one is free", !free)?;
        }
        if self.finished {
            hold("E15 the end is told when all is at rest", unit.at_rest() || unit.is_stuck())?;
        }
        Ok(())
    }

    fn check_indexes(&self) -> Result<(), (&'static str, String)> {
        let deadlines: BTreeSet<(Monotonic, UnitName)> =
            self.units.iter().filter_map(|(n, u)| u.deadline().map(|at| (at, n.clone()))).collect();
        hold("E6 the deadline index is what the states say", deadlines == self.deadlines)?;
        let runs: BTreeSet<RunId> =
            self.units.values().flat_map(|unit| unit.living.keys().copied()).collect();
        hold("E7 the run index is what the units say", runs == self.runs.keys().copied().collect())?;
        let activating =
            self.units.iter().filter(|(_, u)| matches!(u.state, State::Activating(_))).map(|(n, _)| n);
        hold("E8 the slots are what the states say", activating.eq(self.activating.iter()))?;
        let known = self.job_units().all(|name| self.units.contains_key(name));
        hold("E9 every job names units that exist", known)?;
        hold("E16 nothing is left to look at", self.queue.is_empty() && self.touched.is_empty())
    }
}

fn hold(promise: &'static str, kept: bool) -> Result<(), (&'static str, String)> {
    if kept { Ok(()) } else { Err((promise, String::new())) }
}

fn check_unit(unit: &Unit) -> Result<(), (&'static str, String)> {
    let lives = |run: &RunId| unit.quarantine().is_none_or(|left| left.lives(*run));
    let mains = unit.living.iter().filter(|(run, living)| living.role == Role::Main && lives(run)).count();
    hold("E1 at most one main process", mains <= 1)?;
    hold("E2 nothing lives in a unit at rest", !unit.at_rest() || unit.is_empty())?;
    hold("E3 what is starting or active has its process", has_process(unit))?;
    hold("E4 whatever is under way has a wake-up", has_wake_up(unit))?;
    let reset = match &unit.state {
        State::Active(active) => {
            unit.durable.failures == 0 || active.reset_at.is_some() || active.main.is_none()
        }
        State::Inactive { .. }
        | State::Waiting { .. }
        | State::Activating(_)
        | State::Backoff { .. }
        | State::Deactivating { .. }
        | State::Failed { .. } => true,
    };
    hold("E5 an active unit with failures has its episode's end armed", reset)?;
    let saved = unit.durable == unit.saved;
    hold("E17 what must outlive the engine was handed to the store", saved)
}

fn has_process(unit: &Unit) -> bool {
    let lives = |run: &RunId| unit.living.contains_key(run);
    match &unit.state {
        State::Activating(activating) => match &activating.step {
            StartStep::Pre { run, .. } | StartStep::Post { run, .. } => lives(run),
            StartStep::Spawning { main }
            | StartStep::Checking { main, .. }
            | StartStep::Settling { main, .. } => lives(main),
        },
        State::Active(active) => active.main.as_ref().is_none_or(lives),
        State::Inactive { .. }
        | State::Waiting { .. }
        | State::Backoff { .. }
        | State::Deactivating { .. }
        | State::Failed { .. } => true,
    }
}

/// I24: no lost wake-ups. A deadline, or a process or probe whose end will be news.
fn has_wake_up(unit: &Unit) -> bool {
    match &unit.state {
        State::Inactive { .. } | State::Failed { .. } => true,
        // A check that is a process and was killed will end; everything else has a deadline.
        State::Active(active) => match &active.health {
            Some(Watch { step: WatchStep::Killed { check }, .. }) => unit.living.contains_key(check),
            Some(_) => unit.deadline().is_some(),
            None => active.resync.is_none() || unit.deadline().is_some(),
        },
        State::Waiting { not_before, blockers } => not_before.is_some() || *blockers != Default::default(),
        State::Activating(activating) => match activating.step {
            StartStep::Checking { probe: Probing::Next(_), .. } | StartStep::Settling { .. } => {
                unit.deadline().is_some()
            }
            StartStep::Pre { .. }
            | StartStep::Spawning { .. }
            | StartStep::Checking { .. }
            | StartStep::Post { .. } => !unit.living.is_empty(),
        },
        State::Backoff { .. } | State::Deactivating { .. } => unit.deadline().is_some(),
    }
}
