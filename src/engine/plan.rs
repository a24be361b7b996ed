//! The set of units as the files have it: added, changed, removed; the edges between them.
//! `plan` says what a set would do, and `on_configured` does what `plan` says.
//!
//! Refuses: files and their mistakes. A set arrives complete and checked, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::durable::{Desired, UnitDurable};
use crate::engine::effect::{Effect, Effects, Mark, Outcome, RecordKind};
use crate::engine::event::RequestId;
use crate::engine::health;
use crate::engine::order::{Goal, Job};
use crate::engine::state::{Active, Hold, Resyncing, StartStep, State, Then, Unit, WatchStep, WhyInactive};
use crate::unit::diff::{changed_keys, takes};
use crate::unit::keys::{Key, Takes};
use crate::unit::spec::UnitSpec;

/// What a set of files does to one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It feels nothing at all.
    Unchanged,
    /// New; starts if it is wanted.
    Added,
    /// Stopped, then forgotten.
    Removed,
    Changed {
        keys: Vec<&'static Key>,
        comes: Comes,
    },
}

/// How a changed file comes in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comes {
    /// At once; the process feels nothing.
    Live,
    /// It is not running, or on its way down: what is started next goes by it.
    NextStart,
    /// The process is replaced, in order, and that is no failure.
    Restart,
    /// It is wanted now, and was not.
    Start,
    /// It is not wanted any more.
    Stop,
}

impl Engine {
    /// What `Event::Configured` with these units would do now: every unit of the set and every
    /// one that is not in it any more, by name.
    pub fn plan(&self, units: &[Arc<UnitSpec>]) -> Vec<(UnitName, Change)> {
        let set: BTreeMap<&UnitName, &UnitSpec> =
            units.iter().map(|spec| (&spec.name, spec.as_ref())).collect();
        let pulled = self.pulled_by(&set);
        let gone = self.units.iter().filter(|(name, unit)| !unit.removed && !set.contains_key(name));
        let mut plan: BTreeMap<UnitName, Change> =
            gone.map(|(name, _)| (name.clone(), Change::Removed)).collect();
        for (name, spec) in &set {
            let change = match self.units.get(*name) {
                Some(unit) if !unit.removed => {
                    change_of(unit, spec, wants(unit, spec, pulled.contains(*name)))
                }
                Some(_) | None => Change::Added,
            };
            plan.insert((*name).clone(), change);
        }
        plan.into_iter().collect()
    }

    /// Units of a set that are wanted because a wanted one needs or wants them. One that was
    /// pulled stays so while any unit names it: whoever pulled it may only be stopped.
    fn pulled_by(&self, set: &BTreeMap<&UnitName, &UnitSpec>) -> BTreeSet<UnitName> {
        let links = |spec: &UnitSpec| -> Vec<UnitName> {
            spec.unit.requires.iter().chain(&spec.unit.wants).cloned().collect()
        };
        let named: BTreeSet<UnitName> = set.values().flat_map(|spec| links(spec)).collect();
        let known = |name: &UnitName| self.units.get(name).filter(|unit| !unit.removed);
        let ordered = |name: &UnitName| known(name).and_then(|unit| unit.durable.ordered);
        let was = named.iter().filter(|name| known(name).is_some_and(|unit| unit.pulled));
        let mut pulled: BTreeSet<UnitName> = was.cloned().collect();
        let is_root = |name: &UnitName, spec: &UnitSpec| match ordered(name) {
            Some(Desired::Up) => true,
            Some(Desired::Down) => false,
            None => spec.unit.enabled || pulled.contains(name),
        };
        let mut open: Vec<UnitName> =
            set.iter().filter(|(name, spec)| is_root(name, spec)).map(|(name, _)| (*name).clone()).collect();
        let mut seen = BTreeSet::new();
        while let Some(next) = open.pop() {
            if !seen.insert(next.clone()) || ordered(&next) == Some(Desired::Down) {
                continue;
            }
            let Some(spec) = set.get(&next) else { continue };
            let further = links(spec);
            pulled.extend(further.iter().cloned());
            open.extend(further);
        }
        pulled
    }

    /// The spec that a unit goes by now.
    pub fn spec_of(&self, name: &UnitName) -> Option<&Arc<UnitSpec>> {
        self.units.get(name).map(|unit| &unit.spec)
    }

    /// Every spec in force.
    pub fn specs(&self) -> impl Iterator<Item = &Arc<UnitSpec>> {
        self.units.values().map(|unit| &unit.spec)
    }

    /// Units that are the same feel nothing; what may change under a living process does, and
    /// only what must have a new one gets it.
    pub(crate) fn on_configured(&mut self, now: Monotonic, units: Vec<Arc<UnitSpec>>, fx: &mut Effects) {
        let plan = self.plan(&units);
        let mut specs: BTreeMap<UnitName, Arc<UnitSpec>> =
            units.into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        let mut moved = false;
        for (name, change) in plan {
            match (change, specs.remove(&name)) {
                (Change::Unchanged, _) => continue,
                (Change::Removed, _) => self.remove_unit(&name, fx),
                (Change::Added, Some(spec)) => self.add_unit(now, spec, fx),
                (Change::Changed { keys, comes }, Some(spec)) => {
                    self.change_unit(now, &name, spec, &keys, comes, fx)
                }
                (Change::Added | Change::Changed { .. }, None) => continue,
            }
            moved = true;
        }
        if !moved {
            return;
        }
        // An edge that came or went can change the answer for anybody.
        self.rebuild_edges();
        self.pull();
        let names: Vec<UnitName> = self.units.keys().cloned().collect();
        self.queue.extend(names);
    }

    /// More units may start at once, or fewer: those that start now go on.
    pub(crate) fn on_tuned(&mut self, start_concurrency: u32) {
        self.settings.start_concurrency = start_concurrency;
        self.queue.extend(self.slot_waiters.iter().map(|(_, name)| name.clone()));
    }

    fn remove_unit(&mut self, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        if !unit.at_rest() {
            fx.mark(Mark::RemovedWhileRunning);
        }
        unit.removed = true;
        self.touched.insert(name.clone());
    }

    /// The row of a unit that has none. Its episodes are numbered from the runs so far: the same unit, removed
    /// and added again, then never raises an alert under the key of one that it raised before. An episode with an
    /// alert has a run of its own, so no former one has this number.
    pub(crate) fn first_row(&self) -> UnitDurable {
        UnitDurable { episode: self.next_run.saturating_sub(1), ..UnitDurable::default() }
    }

    fn add_unit(&mut self, now: Monotonic, spec: Arc<UnitSpec>, fx: &mut Effects) {
        let name = spec.name.clone();
        let Some(unit) = self.units.get_mut(&name) else {
            let row = self.first_row();
            return self.insert_unit(spec, row, now);
        };
        // It was removed, and has not come to rest yet.
        unit.removed = false;
        self.touched.insert(name.clone());
        let wanted = unit.wanted();
        match change_of(unit, &spec, wanted) {
            Change::Changed { keys, comes } => self.change_unit(now, &name, spec, &keys, comes, fx),
            Change::Unchanged | Change::Added | Change::Removed => {}
        }
    }

    fn change_unit(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        spec: Arc<UnitSpec>,
        keys: &[&'static Key],
        comes: Comes,
        fx: &mut Effects,
    ) {
        let Some(unit) = self.units.get_mut(name) else { return };
        self.touched.insert(name.clone());
        let new_process = takes(keys) == Some(Takes::Restart);
        let paths = keys.iter().map(|key| key.path()).collect();
        fx.record(name, unit.main, RecordKind::Reconfigured { keys: paths, comes });
        if comes == Comes::Restart {
            unit.next_spec = Some(spec).filter(|spec| *spec != unit.spec);
            unit.restarting = true;
            return self.end_episode(name, fx);
        }
        if !unit.at_rest() && (new_process || !takes_live(unit, keys)) {
            unit.next_spec = Some(spec).filter(|spec| *spec != unit.spec);
        } else {
            let old = std::mem::replace(&mut unit.spec, spec);
            unit.next_spec = None;
            self.rearm_live(now, name, &old, fx);
        }
        if new_process {
            self.begin_anew(now, name, fx);
        }
    }

    /// What is executed has changed while nothing ran: the failures were those of another
    /// command, and what waits for its next try, or gave up, is tried now.
    fn begin_anew(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        self.end_episode(name, fx);
        let Some(unit) = self.units.get_mut(name) else { return };
        match &mut unit.state {
            State::Backoff { .. } | State::Failed { hold: Hold::GaveUp(_) } => self.set_waiting(now, name),
            State::Deactivating { then, .. } | State::Failed { hold: Hold::Stuck { then } } => match then {
                Then::Backoff { .. } | Then::Hold(_) => *then = Then::Again { not_before: None },
                Then::Again { .. } | Then::Finished(_) => {}
            },
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Active(_)
            | State::Failed { hold: Hold::Quarantined(_) } => {
                return;
            }
        }
        if let Some(unit) = self.units.get_mut(name) {
            unit.durable.held = None;
            unit.durable.retry_at = None;
        }
    }

    /// The new file is in force under a living process: deadlines that came of the old one are
    /// made anew.
    fn rearm_live(&mut self, now: Monotonic, name: &UnitName, old: &UnitSpec, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let spec = Arc::clone(&unit.spec);
        match &mut unit.state {
            State::Activating(activating) if !matches!(activating.step, StartStep::Settling { .. }) => {
                let was = old.readiness.timeout;
                activating.deadline = match (activating.deadline, was, spec.readiness.timeout) {
                    (deadline, was, is) if was == is => deadline,
                    // It began when the old limit began.
                    (Some(deadline), Some(was), Some(is)) => {
                        let was = u64::try_from(was.as_nanos()).unwrap_or(u64::MAX);
                        Some(Monotonic::from_ns(deadline.as_ns().saturating_sub(was)) + is)
                    }
                    (_, _, is) => is.map(|is| now + is),
                };
            }
            State::Active(active) => {
                active.reset_at = active.reset_at.map(|_| active.ready_at + spec.restart.reset_after);
                if old.health != spec.health {
                    watch_anew(now, active, &spec, fx);
                }
                if old.resync != spec.resync {
                    self.resync_anew(now, name, fx);
                }
            }
            // A settling unit has no limit, whatever the file says.
            State::Activating(_)
            | State::Inactive { .. }
            | State::Waiting { .. }
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { .. } => {}
        }
    }

    /// `[resync]` has changed: one that is under way is of the old file, and what is owed is
    /// asked for by the new one, if there is one.
    fn resync_anew(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let under_way = self
            .units
            .get(name)
            .is_some_and(|unit| matches!(&unit.state, State::Active(active) if active.resync.is_some()));
        self.abort_resync(name, fx);
        let Some(unit) = self.units.get_mut(name) else { return };
        if unit.spec.resync.is_none() {
            unit.durable.owed.clear();
            unit.durable.resync_failed = false;
            let gone = |_: &UnitName| Outcome::Failed("its [resync] is gone from the file".to_string());
            return self.resolve(name, Goal::Resynced, gone);
        }
        if let (true, State::Active(active)) = (under_way, &mut unit.state) {
            active.resync = Some(Resyncing::Due { attempt: 1, at: now });
        }
    }

    /// Answers when each of `up` is up and each of `down` is down or gone; changes nothing.
    pub(crate) fn await_units(&mut self, request: RequestId, goal: Goal, units: Vec<UnitName>) {
        let mut job = Job::new(goal);
        for name in units {
            match self.outcome_now(goal, &name) {
                Some(outcome) => job.answer(name, outcome),
                None => job.wait_for(name),
            }
        }
        self.jobs.insert(request, job);
    }

    /// The outcome for a unit of which nothing more is to be expected.
    fn outcome_now(&self, goal: Goal, name: &UnitName) -> Option<Outcome> {
        let Some(unit) = self.units.get(name) else { return Some(Outcome::Done) };
        let stuck = || Some(Outcome::Failed("a process survived SIGKILL".to_string()));
        let up = goal != Goal::Down;
        match &unit.state {
            _ if self.shutting_down => Some(Outcome::Failed("the daemon is stopping".to_string())),
            State::Failed { hold: Hold::Stuck { .. } } => stuck(),
            State::Failed { hold: Hold::Quarantined(left) } => Some(Outcome::Failed(left.why.clone())),
            State::Failed { hold: Hold::GaveUp(why) } if up => Some(Outcome::Failed(why.clone())),
            State::Failed { hold: Hold::GaveUp(_) } => Some(Outcome::Done),
            State::Inactive { why: WhyInactive::Finished(_) } => Some(Outcome::Done),
            // Not wanted: that it stays down is how it should be.
            State::Inactive { .. } => Some(Outcome::Done),
            State::Active(_) if up && !unit.restarting => Some(Outcome::Done),
            State::Waiting { blockers, .. } if up => {
                let never = |other: &&UnitName| {
                    self.units.get(*other).is_none_or(|unit| !unit.wanted() || unit.durable.failures > 0)
                };
                let other = blockers.requires.iter().chain(&blockers.unknown).find(never)?;
                Some(Outcome::Failed(format!("it waits for {other}, which is not there")))
            }
            State::Backoff { .. } if up => {
                let why = unit.last.clone().unwrap_or_else(|| "it failed".to_string());
                Some(Outcome::Failed(why))
            }
            State::Active(_)
            | State::Waiting { .. }
            | State::Backoff { .. }
            | State::Activating(_)
            | State::Deactivating { .. } => None,
        }
    }

    /// What a wanted unit needs or wants is wanted too, unless an operator said no.
    pub(crate) fn pull(&mut self) {
        let set: BTreeMap<&UnitName, &UnitSpec> = self
            .units
            .iter()
            .filter(|(_, unit)| !unit.removed)
            .map(|(n, unit)| (n, unit.spec_to_start()))
            .collect();
        let pulled = self.pulled_by(&set);
        for (name, unit) in &mut self.units {
            unit.pulled = pulled.contains(name);
        }
    }

    pub(crate) fn rebuild_edges(&mut self) {
        let mut neighbours: BTreeMap<UnitName, BTreeSet<UnitName>> = BTreeMap::new();
        let mut followers: BTreeMap<UnitName, BTreeSet<UnitName>> = BTreeMap::new();
        for (name, unit) in &self.units {
            for section in [&unit.spec.unit, &unit.spec_to_start().unit] {
                let mentioned = section
                    .requires
                    .iter()
                    .chain(&section.wants)
                    .chain(&section.after)
                    .chain(&section.before)
                    .chain(&section.conflicts);
                for other in mentioned.filter(|other| *other != name) {
                    neighbours.entry(name.clone()).or_default().insert(other.clone());
                    neighbours.entry(other.clone()).or_default().insert(name.clone());
                }
                for other in section.requires.iter().chain(&section.after) {
                    followers.entry(other.clone()).or_default().insert(name.clone());
                }
                for other in &section.before {
                    followers.entry(name.clone()).or_default().insert(other.clone());
                }
            }
        }
        self.neighbours = neighbours;
        self.followers = followers;
    }

    /// Gone from the files and at rest: nothing of it stays.
    pub(crate) fn forget(&mut self, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.remove(name) else { return };
        if let Some(at) = unit.armed {
            self.deadlines.remove(&(at, name.clone()));
        }
        self.slot_waiters.remove(&(unit.since, name.clone()));
        self.order_waiters.remove(name);
        fx.record(name, None, RecordKind::Removed);
        fx.push(Effect::Forget { unit: name.clone() });
        self.touched.insert(name.clone());
        if let Some(neighbours) = self.neighbours.get(name) {
            self.queue.extend(neighbours.iter().cloned());
        }
    }
}

/// Whether a unit is wanted with this file.
fn wants(unit: &Unit, spec: &UnitSpec, pulled: bool) -> bool {
    match unit.durable.ordered {
        Some(Desired::Up) => true,
        Some(Desired::Down) => false,
        None => spec.unit.enabled || pulled,
    }
}

/// What becomes of a unit in whose place the files now have `spec`.
fn change_of(unit: &Unit, spec: &UnitSpec, wanted_then: bool) -> Change {
    let newest = unit.spec_to_start();
    if newest == spec && unit.wanted() == wanted_then {
        return Change::Unchanged;
    }
    let keys = changed_keys(newest, spec);
    let new_process = takes(&keys) == Some(Takes::Restart);
    let comes = match (unit.at_rest(), unit.wanted(), wanted_then) {
        (true, false, true) => Comes::Start,
        (false, true, false) => Comes::Stop,
        (true, _, _) if new_process => Comes::NextStart,
        (true, _, _) => Comes::Live,
        (false, _, true) if new_process && runs(unit) => Comes::Restart,
        (false, _, _) if new_process || !takes_live(unit, &keys) => Comes::NextStart,
        (false, _, _) => Comes::Live,
    };
    Change::Changed { keys, comes }
}

/// Its process is there, or on its way.
fn runs(unit: &Unit) -> bool {
    match &unit.state {
        State::Activating(_) => true,
        State::Active(active) => active.main.is_some(),
        State::Inactive { .. }
        | State::Waiting { .. }
        | State::Backoff { .. }
        | State::Deactivating { .. }
        | State::Failed { .. } => false,
    }
}

/// Whether these keys, none of which needs a new process, can change under what is going on: not
/// the steps of a start or stop that is half-way, and not what waits for another file already.
fn takes_live(unit: &Unit, keys: &[&'static Key]) -> bool {
    let hook = |key: &&Key| key.section == "service" && key.name.starts_with("start_");
    match &unit.state {
        _ if unit.next_spec.is_some() => false,
        State::Activating(_) => !keys.iter().any(hook),
        State::Active(_) => true,
        State::Inactive { .. }
        | State::Waiting { .. }
        | State::Backoff { .. }
        | State::Deactivating { .. }
        | State::Failed { .. } => false,
    }
}

/// `[health]` has changed: a new watch begins. A check that is under way is of the old file: a
/// process is ended, and the answer of a request is waited out, so that there are never two.
fn watch_anew(now: Monotonic, active: &mut Active, spec: &UnitSpec, fx: &mut Effects) {
    let old = active.health.take().map(|watch| watch.step);
    active.health = active.main.and_then(|_| health::begin(now, spec));
    let step = active.health.as_mut().map(|watch| &mut watch.step);
    match (old, step) {
        (Some(WatchStep::InFlight { check: Some(check), .. }), step) => {
            fx.push(Effect::End { run: check, signal: Signal::KILL });
            if let Some(step @ WatchStep::Next(_)) = step {
                *step = WatchStep::Killed { check };
            }
        }
        (Some(WatchStep::Killed { check }), Some(step @ WatchStep::Next(_))) => {
            *step = WatchStep::Killed { check };
        }
        (Some(WatchStep::InFlight { check: None, hung_at, .. }), Some(WatchStep::Next(at))) => {
            *at = (*at).max(hung_at);
        }
        (Some(_) | None, Some(_) | None) => {}
    }
}
