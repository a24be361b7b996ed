//! Quarantine: a unit that engines die of is left alone. Its processes live on; it is not restarted,
//! checked or reloaded until an operator clears, starts, restarts or stops it.
//!
//! Refuses: losing what happens meanwhile. A unit in quarantine is one that is not taken over yet:
//! what is heard of its runs is written into their rows, and lifting the quarantine takes it over by
//! those, as after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::adopt::Ended;
use crate::engine::effect::{AlertKind, Effects, Mark, RecordKind, Role};
use crate::engine::event::{Event, Rest};
use crate::engine::safe::Death;
use crate::engine::state::{Hold, Living, Quarantine, State, Unit};
use crate::engine::{Adopted, Engine};

/// So many of the last deaths, with the same unit dealt with at each, are no coincidence: what an engine
/// deals with is known only while it does, which is a small part of its time. Fewer than make safe mode,
/// so that mostly the one unit is left alone and not all of them.
const DEATHS_TO_QUARANTINE: u32 = 3;

/// Older deaths count no more. Long enough for a unit that is deadly at each of its health checks or
/// at each restart (the longest usual interval is a minute).
const BLAME_WINDOW: Duration = Duration::from_secs(600);

impl Engine {
    /// The unit that an event is about. Of a tick it is known only on the way.
    pub(crate) fn subject<'a>(&'a self, event: &'a Event) -> Option<&'a UnitName> {
        match event {
            Event::Spawned { run, .. }
            | Event::Executed { run }
            | Event::Exited { run, .. }
            | Event::SpawnShort { run, .. }
            | Event::Probed { run, .. }
            | Event::Checked { run, .. }
            | Event::Pinged { run }
            | Event::WatchdogTriggered { run }
            | Event::Resynced { run, .. }
            | Event::NotifiedReady { run }
            | Event::LogMatched { run }
            | Event::Said { run, .. } => self.runs.get(run),
            Event::Emptied { unit } => Some(unit),
            Event::Tick
            | Event::Configured { .. }
            | Event::Tuned { .. }
            | Event::ConfigJudged { .. }
            | Event::Ordered { .. } => None,
        }
    }

    /// Before units are taken over: which of them are left alone. All deaths are judged and not the
    /// newest only, because the engine that judged the others may have died before that was kept.
    pub(crate) fn judge_deaths(&mut self, now: Monotonic, deaths: &[Death], fx: &mut Effects) {
        let units = &self.units;
        self.durable.quarantined.retain(|name, _| units.contains_key(name));
        let counts = |death: &&Death| {
            death.is_own_doing() && !self.is_forgiven(death) && now.since(death.at) < BLAME_WINDOW
        };
        let mut blamed: BTreeMap<UnitName, u32> = BTreeMap::new();
        for name in deaths.iter().filter(counts).filter_map(|death| death.touched.clone()) {
            *blamed.entry(name).or_default() += 1;
        }
        for (name, count) in blamed {
            let known = self.durable.quarantined.contains_key(&name) || !self.units.contains_key(&name);
            if count >= DEATHS_TO_QUARANTINE && !known {
                self.put_into_quarantine(&name, count, fx);
            }
        }
    }

    fn put_into_quarantine(&mut self, name: &UnitName, deaths: u32, fx: &mut Effects) {
        let why = format!(
            "quarantined: the engine died {deaths} times while it dealt with this unit; `upright clear {name}` \
             when the cause is gone"
        );
        self.durable.quarantined.insert(name.clone(), why);
        fx.mark(Mark::Quarantined);
        fx.record(name, None, RecordKind::Quarantined { deaths });
        let message = format!(
            "{name} is in quarantine: the engine died {deaths} times while it dealt with it. Its processes \
             live on and nothing is done for it until `upright clear {name}`"
        );
        let what = self.durable.told_death.map_or(0, Monotonic::as_ns).to_string();
        self.raise(name, AlertKind::Quarantined, what, message, fx);
    }

    /// Instead of taking it over: notes what there is.
    pub(crate) fn leave_alone(&mut self, now: Monotonic, name: &UnitName, rows: Vec<Adopted>, rest: Rest) {
        let why = self.durable.quarantined.get(name).cloned().unwrap_or_default();
        let Some(unit) = self.units.get_mut(name) else { return };
        let newest = rows.iter().filter(|row| row.role == Role::Main).max_by_key(|row| row.run);
        unit.main = newest.map(|row| row.run);
        unit.begun = newest.map_or(unit.begun, |row| row.spawned_at);
        unit.pulled = unit.durable.ready.is_some() || !rows.is_empty();
        for row in &rows {
            let pid = Some(row.pid).filter(|pid| *pid > 0);
            unit.living.insert(row.run, Living { role: row.role, pid, asked: row.asked });
            self.runs.insert(row.run, name.clone());
        }
        let left = Quarantine { why, rows, rest };
        self.set_state(now, name, State::Failed { hold: Hold::Quarantined(left) });
    }

    /// A run of a unit in quarantine ended: it is remembered. False: it is in no quarantine.
    pub(crate) fn ended_in_quarantine(
        &mut self,
        run: RunId,
        at: Monotonic,
        exit: Exit,
        rest: Rest,
        fx: &mut Effects,
    ) -> bool {
        let Some(name) = self.runs.get(&run).cloned() else { return false };
        let Some(left) = self.quarantine_mut(&name) else { return false };
        left.rest = rest;
        if let Some(row) = left.rows.iter_mut().find(|row| row.run == run) {
            row.ended.get_or_insert((at, exit));
        }
        fx.mark(Mark::EndedInQuarantine);
        self.touched.insert(name.clone());
        self.queue_around(&name);
        true
    }

    /// What else is heard of a run in quarantine: it was executed, or said that it is ready.
    pub(crate) fn note_in_quarantine(&mut self, run: RunId, note: impl FnOnce(&mut Adopted)) {
        let Some(name) = self.runs.get(&run).cloned() else { return };
        let Some(left) = self.quarantine_mut(&name) else { return };
        if let Some(row) = left.rows.iter_mut().find(|row| row.run == run) {
            note(row);
        }
    }

    /// Nothing of the unit lives any more. False: it is in no quarantine.
    pub(crate) fn emptied_in_quarantine(&mut self, name: &UnitName) -> bool {
        let Some(left) = self.quarantine_mut(name) else { return false };
        left.rest = Rest::Empty;
        true
    }

    fn quarantine_mut(&mut self, name: &UnitName) -> Option<&mut Quarantine> {
        match &mut self.units.get_mut(name)?.state {
            State::Failed { hold: Hold::Quarantined(left) } => Some(left),
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Active(_)
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { hold: Hold::GaveUp(_) | Hold::Stuck { .. } } => None,
        }
    }

    /// An operator wants something of it: it is taken over now.
    pub(crate) fn lift_quarantine(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(left) = self.units.get(name).and_then(Unit::quarantine).cloned() else { return };
        fx.mark(Mark::QuarantineLeft);
        self.durable.quarantined.remove(name);
        self.durable.forgiven = Some(now);
        fx.record(name, None, RecordKind::QuarantineLeft);
        let Some(unit) = self.units.get_mut(name) else { return };
        let pulled = unit.pulled;
        for run in std::mem::take(&mut unit.living).into_keys() {
            self.runs.remove(&run);
        }
        let mut ended: Vec<Ended> = Vec::new();
        self.adopt_unit(now, name, &left.rows, left.rest, &mut ended, fx);
        if let Some(unit) = self.units.get_mut(name) {
            unit.pulled |= pulled;
            if let State::Activating(activating) = &mut unit.state {
                // Nobody asked whether it is ready, so its time begins now.
                activating.deadline = unit.spec.readiness.timeout.map(|timeout| now + timeout);
            }
        }
        ended.sort_by_key(|end| end.run);
        for end in ended {
            self.on_exited(now, end.run, end.at, end.exit, end.rest, fx);
        }
        for row in left.rows.iter().filter(|row| row.said_ready && row.ended.is_none()) {
            self.on_said_ready(now, row.run, fx);
        }
        // What fell due meanwhile is done now.
        if self.units.get(name).and_then(Unit::deadline).is_some_and(|at| at <= now) {
            self.on_deadline(now, name, fx);
        }
        self.queue_around(name);
    }

    /// The same for each of them, before an order about them is written down: what happened before it
    /// comes before it.
    pub(crate) fn lift_quarantines(&mut self, now: Monotonic, names: &[UnitName], fx: &mut Effects) {
        names.iter().for_each(|name| self.lift_quarantine(now, name, fx));
    }

    /// What keeps this unit from starting as long as it is in quarantine: a requirement, direct or not,
    /// that is not there, or a unit that must not live beside it.
    pub(crate) fn waits_for_quarantined(&self, name: &UnitName) -> Option<UnitName> {
        let mut seen = BTreeSet::new();
        let mut open = vec![name.clone()];
        let left = |other: &UnitName| self.units.get(other).is_some_and(|unit| unit.quarantine().is_some());
        if let Some(rival) = self.rivals(name).into_iter().find(|rival| left(rival)) {
            return Some(rival);
        }
        while let Some(next) = open.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let Some(unit) = self.units.get(&next) else { continue };
            if unit.quarantine().is_some() && !unit.is_ready() {
                return Some(next);
            }
            open.extend(unit.spec_to_start().unit.requires.iter().cloned());
        }
        None
    }
}
