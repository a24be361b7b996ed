//! The promises on ends: of a run that is forgotten, of the daemon, and of the trouble.
//!
//! Refuses: judging what is under way.

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::engine::Engine;
use crate::engine::durable::Desired;
use crate::engine::effect::{Record, RecordKind};
use crate::engine::event::Order;
use crate::engine::plan::Comes;
use crate::engine::view::StateWord;
use crate::sim::oracle::{Oracle, Verdict, broken, never_named};
use crate::sim::promises;
use crate::sim::world::World;
use crate::unit::spec::RestartPolicy;

impl Oracle {
    pub(super) fn on_gave_up(&mut self, unit: &UnitName) -> Verdict {
        self.not_before.remove(unit); // held: the next start is an operator's
        if !self.quarantine.lifted.contains(unit) {
            self.parked.insert(unit.clone());
        }
        Ok(())
    }

    /// The engine says that the daemon may end.
    pub fn on_finished(&mut self, world: &World) -> Verdict {
        self.finished = true;
        let living = world.table.values().filter(|process| process.lives()).map(|process| &process.unit);
        let strays = world.strays.iter().filter(|(_, strays)| !strays.is_empty()).map(|(unit, _)| unit);
        match living.chain(strays).find(|unit| !self.killed.contains(*unit)) {
            Some(unit) => broken(promises::I35, unit, "told the end, but it lives and was not killed"),
            None => Ok(()),
        }
    }

    pub fn on_release(&mut self, world: &World, run: RunId) -> Verdict {
        let Some(process) = world.table.get(&run) else { return Ok(()) };
        let unit = process.unit.clone();
        if process.lives() {
            return broken(promises::I12C, &unit, format!("run {run} lives"));
        }
        let settled = world.failed_runs.contains(&run) || self.pardoned(world, run);
        if self.owed.remove(&run).is_some() && !settled {
            return broken(promises::I12, &unit, format!("run {run} was forgotten unrecorded"));
        }
        Ok(())
    }

    /// An end without a failure record is right when an operator's stop or restart was
    /// pending, or when the run's failure was already counted (not ready, a hook failed).
    pub(crate) fn pardoned(&self, world: &World, run: RunId) -> bool {
        let Some(unit) = self.owed.get(&run) else { return true };
        let down = world.rows.get(unit).is_some_and(|row| row.ordered == Some(Desired::Down));
        // Gone from the files, it has to stop, even if it still waits for its followers.
        let known = self.files.contains(unit) && world.rows.contains_key(unit);
        let since_start =
            world.events.iter().rev().filter(|record| record.unit.as_ref() == Some(unit)).take_while(
                |record| !(matches!(record.kind, RecordKind::Started { .. }) && record.run == Some(run)),
            );
        let asked = since_start.into_iter().any(|record| match &record.kind {
            RecordKind::Ordered { verb } => matches!(*verb, "stop" | "restart"),
            RecordKind::Stopping | RecordKind::Stopped { .. } | RecordKind::Removed => true,
            RecordKind::Failed { .. } => record.run >= Some(run),
            RecordKind::Reconfigured { comes, .. } => *comes != Comes::Live,
            // It goes down with what it lost, as soon as those that need it are down.
            RecordKind::Degraded { for_units } => for_units.iter().any(|other| self.falls_with(unit, other)),
            _no_reason_to_end => false,
        });
        // The order that started it was lost with the engine, and nothing else wants it.
        let started =
            |record: &Record| matches!(record.kind, RecordKind::Started { .. }) && record.run == Some(run);
        let wanted = world.rows.get(unit).is_some_and(|row| row.ordered == Some(Desired::Up))
            || self.specs.get(unit).is_some_and(|spec| spec.unit.enabled);
        let unordered = !wanted && !world.events.iter().any(started);
        self.shutting_down
            || unordered
            || down
            || !known
            || asked
            || self.ordered.contains(&run)
            || self.commanded.contains(&run)
    }

    /// Long after the faults are gone.
    pub fn at_rest(&self, world: &World, engine: &Engine) -> Verdict {
        let unknown = UnitName::parse("request").map_err(|_| never_named())?;
        let views = engine.view();
        let stands = |name: &UnitName| {
            views.iter().any(|view| {
                view.name == *name && matches!(view.state, StateWord::Active | StateWord::Degraded)
            })
        };
        for view in &views {
            let Some(spec) = self.specs.get(&view.name) else { continue };
            let mut rivals = spec.unit.conflicts.clone();
            rivals.extend(
                self.specs
                    .values()
                    .filter(|other| other.unit.conflicts.contains(&view.name))
                    .map(|other| other.name.clone()),
            );
            let excused = !view.wanted
                || view.state == StateWord::Failed
                || view.requires.iter().chain(&view.waiting_for).any(|name| !stands(name))
                || rivals.iter().any(stands)
                || (view.state == StateWord::Inactive && spec.restart.policy != RestartPolicy::Always)
                // Done under another policy: a changed one does not start it again.
                || (self.reconfigured && view.reason.starts_with("finished"))
                || matches!(view.state, StateWord::Active | StateWord::Degraded);
            if !excused {
                return broken(promises::I44, &view.name, format!("{:?}: {}", view.state, view.reason));
            }
        }
        for view in &views {
            let row = world.rows.get(&view.name);
            if view.state == StateWord::Active && row.is_some_and(|row| !row.owed.is_empty()) {
                return broken(promises::I26, &view.name, format!("{:?}", row.map(|row| &row.owed)));
            }
        }
        if let Some((request, order)) = self.open_requests.iter().next() {
            let waits = |unit: &UnitName| {
                views.iter().any(|view| {
                    view.name == *unit
                        && (view.state == StateWord::Waiting || view.state == StateWord::Failed)
                })
            };
            let excused = match order {
                Order::Start(units) | Order::Restart(units) | Order::AwaitUp(units) => {
                    units.iter().any(waits)
                }
                Order::Stop(_)
                | Order::AwaitDown(_)
                | Order::Reload(_)
                | Order::Resync(_)
                | Order::Clear(_)
                | Order::Signal(..)
                | Order::Outage(..)
                | Order::Shutdown => false,
            };
            if !excused {
                return broken(promises::I4, &unknown, format!("{request:?} {order:?} was never answered"));
            }
        }
        for run in self.owed.keys() {
            if !world.failed_runs.contains(run) && !self.pardoned(world, *run) {
                return broken(promises::I12, &self.owed[run], format!("run {run} never recorded"));
            }
        }
        Ok(())
    }
}
