//! The promises on one step, and on the takeover after a crash: what the engine shows, what it
//! said in this step and what the world knows are held side by side.
//!
//! Refuses: memory of its own beyond the last step; what adds up over a run is `oracle` and `books`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::{AlertKind, Effect, RecordKind, Role};
use crate::engine::view::{StateWord, UnitView};
use crate::sim::oracle::{Broken, Oracle, Verdict, broken};
use crate::sim::promises;
use crate::sim::world::World;
use crate::unit::spec::OnLoss;

/// A deadline that is this late was lost: ticks come late by 200 ms at most.
const WAKE_UP_LATE_MAX: Duration = Duration::from_millis(500);

/// What the last step said and left behind.
#[derive(Debug, Default)]
pub(crate) struct LastStep {
    recorded: BTreeSet<UnitName>,
    stopping: BTreeSet<UnitName>,
    words: BTreeMap<UnitName, StateWord>,
    /// The engine's next deadline, and when it was first that.
    due: Option<(Monotonic, Monotonic)>,
}

impl Oracle {
    /// All effects of a step, before the first is performed.
    pub(crate) fn on_effects(&mut self, effects: &[Effect]) -> Verdict {
        self.last.recorded.clear();
        self.last.stopping.clear();
        self.quarantine.lifted.clear();
        let mut failed = BTreeSet::new();
        for effect in effects {
            let Effect::Record(record) = effect else { continue };
            let Some(unit) = &record.unit else { continue };
            self.last.recorded.insert(unit.clone());
            match &record.kind {
                RecordKind::Failed { .. } => _ = failed.insert(unit),
                RecordKind::Stopping => _ = self.last.stopping.insert(unit.clone()),
                _tells_nothing_here => {}
            }
        }
        for effect in effects {
            let Effect::Alert(alert) = effect else { continue };
            let Some(unit) = &alert.unit else { continue };
            if alert.kind == AlertKind::Failing && !failed.contains(unit) {
                return broken(promises::I14, unit, alert.key.clone());
            }
        }
        Ok(())
    }

    pub(crate) fn audit(&mut self, world: &World, engine: &Engine, views: &[UnitView]) -> Verdict {
        for (run, process) in world.table.iter().filter(|(_, process)| process.lives()) {
            if engine.unit_of(*run) != Some(&process.unit) {
                let detail = format!("run {run}, pid {}", process.pid);
                return broken(promises::I3, &process.unit, detail);
            }
        }
        for view in views {
            self.audit_words(view)?;
            self.audit_helpers(world, view)?;
            self.audit_loss(view, views)?;
        }
        self.last.words = views.iter().map(|view| (view.name.clone(), view.state)).collect();
        self.audit_wake_up(world, engine)
    }

    /// I24: what is due is done. A deadline may be in the past when it is made.
    fn audit_wake_up(&mut self, world: &World, engine: &Engine) -> Verdict {
        let known = self.last.due.filter(|(due, _)| Some(*due) == engine.next_deadline());
        self.last.due = known.or_else(|| engine.next_deadline().map(|due| (due, world.now)));
        let Some((due, since)) = self.last.due else { return Ok(()) };
        let late = world.now.since(due.max(since).max(world.woke_at));
        if late > WAKE_UP_LATE_MAX {
            let detail = format!("nobody woke it for {late:?}");
            return Err(Broken { promise: promises::I24.to_string(), unit: None, detail });
        }
        Ok(())
    }

    /// I39: the state's word changes only in a step that tells why.
    fn audit_words(&self, view: &UnitView) -> Verdict {
        let before = self.last.words.get(&view.name);
        let silent = before.is_some_and(|word| word.as_str() != view.state.as_str())
            && !self.last.recorded.contains(&view.name);
        match silent {
            true => broken(promises::I39, &view.name, format!("{before:?} → {:?}", view.state)),
            false => Ok(()),
        }
    }

    /// I27: what is shown as the main process is one, and a unit at rest has no process at all.
    fn audit_helpers(&self, world: &World, view: &UnitView) -> Verdict {
        let shown = view.run.and_then(|run| world.table.get(&run));
        if let Some(process) = shown.filter(|process| process.role != Role::Main) {
            return broken(promises::I27, &view.name, format!("{:?} is shown as main", process.role));
        }
        let rests = matches!(view.state, StateWord::Inactive | StateWord::Waiting | StateWord::Backoff);
        match world.lives_in(&view.name).next() {
            Some((run, process)) if rests => {
                broken(promises::I27, &view.name, format!("run {run} ({:?}) lives on", process.role))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// I6: a unit that falls with what it lost is on its way down in the same step, unless one
    /// that goes before it is not down yet.
    fn audit_loss(&self, view: &UnitView, views: &[UnitView]) -> Verdict {
        let falls = view.state == StateWord::Degraded
            && view.waiting_for.iter().any(|other| self.falls_with(&view.name, other))
            && !self.last.stopping.contains(&view.name);
        let up = |other: &UnitView| {
            !matches!(
                other.state,
                StateWord::Inactive | StateWord::Waiting | StateWord::Backoff | StateWord::Failed
            )
        };
        let held = || views.iter().any(|other| up(other) && self.follows(&other.name, &view.name));
        if falls && !self.shutting_down && view.wanted && !held() {
            return broken(promises::I6, &view.name, format!("{:?} is down", view.waiting_for));
        }
        Ok(())
    }

    /// I31: what an engine goes on with is what was committed, and what it said since.
    pub(crate) fn audit_takeover(&self, world: &World, engine: &Engine, said: &[Effect]) -> Verdict {
        for (name, row) in &world.rows {
            let Some(taken) = engine.durable_of(name) else { continue };
            let (mut failures, mut episode) = (row.failures, row.episode);
            for effect in said {
                let Effect::Record(record) = effect else { continue };
                if record.unit.as_ref() != Some(name) {
                    continue;
                }
                match &record.kind {
                    RecordKind::Failed { .. } => failures += 1,
                    RecordKind::EpisodeEnded { .. } => (failures, episode) = (0, episode + 1),
                    _counts_nothing => {}
                }
            }
            let same = taken.ordered == row.ordered && (taken.failures, taken.episode) == (failures, episode);
            if !same {
                return broken(promises::I31, name, format!("committed {row:?}, taken over {taken:?}"));
            }
        }
        Ok(())
    }

    /// I42: every process that died in one moment has a failure of its own in the books.
    pub(crate) fn audit_storm(&self, world: &World, victims: &[RunId]) -> Verdict {
        for run in victims {
            if self.owed.contains_key(run) && !world.failed_runs.contains(run) && !self.pardoned(world, *run)
            {
                return broken(promises::I42, &self.owed[run], format!("run {run} of {}", victims.len()));
            }
        }
        Ok(())
    }

    /// Whether `other` is ordered after `unit`, in whatever way.
    pub(crate) fn follows(&self, other: &UnitName, unit: &UnitName) -> bool {
        let section = |name: &UnitName| self.specs.get(name).map(|spec| &spec.unit);
        other != unit
            && (section(other).is_some_and(|o| o.requires.contains(unit) || o.after.contains(unit))
                || section(unit).is_some_and(|own| own.before.contains(other)))
    }

    /// Whether the loss of `other` takes `unit` down.
    pub(crate) fn falls_with(&self, unit: &UnitName, other: &UnitName) -> bool {
        let edge = self.specs.get(unit).and_then(|spec| spec.dependency.get(other));
        edge.is_some_and(|edge| edge.on_loss != OnLoss::Degrade)
    }

    /// Whether restarts are rare by policy: its own, and of all that it goes down with.
    pub(crate) fn is_slow(&self, unit: &UnitName) -> bool {
        let Some(spec) = self.specs.get(unit) else { return true };
        spec.restart.delays.iter().all(|delay| *delay >= Duration::from_secs(5))
            && spec.restart.reset_after >= Duration::from_secs(60)
            && spec.unit.requires.iter().all(|other| !self.falls_with(unit, other) || self.is_slow(other))
    }
}
