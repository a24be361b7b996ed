//! Restoring state after a requirement returned: what `on_return` owes, asked for with
//! acknowledgement, timeout and retries, once for each return however much it flaps.
//!
//! Refuses: running while a requirement is down, and two at once for one unit.

use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::{AlertKind, Effect, Effects, Mark, Outcome, RecordKind, Role};
use crate::engine::order::Goal;
use crate::engine::state::{Resyncing, State};
use crate::unit::spec::{OnReturn, ResyncBy};

/// Dependents of one requirement ask for their state within this time after its return, each
/// at a moment of its own, so that a database that just came back is not run over.
const STAMPEDE_SPREAD: Duration = Duration::from_millis(250);

impl Engine {
    /// Everything the unit requires is ready again: do what is owed for those that were lost.
    pub(crate) fn on_all_returned(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let spec = unit.spec.clone();
        let edges = unit.durable.owed.iter().filter_map(|other| spec.dependency.get(other));
        // The strongest of what the edges ask for: a restart restores state, too.
        let action = edges.map(|edge| edge.on_return).max_by_key(|action| match action {
            OnReturn::None => 0,
            OnReturn::Resync => 1,
            OnReturn::Reload => 2,
            OnReturn::Restart => 3,
        });
        match action {
            None | Some(OnReturn::None) => unit.durable.owed.clear(),
            Some(_) if unit.living_main().is_none() => unit.durable.owed.clear(),
            Some(OnReturn::Resync) if spec.resync.is_none() => unit.durable.owed.clear(),
            Some(OnReturn::Resync) => {
                let spread = u64::try_from(STAMPEDE_SPREAD.as_nanos()).unwrap_or(0);
                let wait = Duration::from_nanos(self.luck.below(spread));
                self.set_resync(name, Some(Resyncing::Due { attempt: 1, at: now + wait }));
            }
            Some(OnReturn::Reload) => {
                fx.mark(Mark::ReturnReloaded);
                unit.durable.owed.clear();
                let _ = self.order_reload(now, name, fx); // its outcome is recorded
            }
            Some(OnReturn::Restart) => {
                fx.mark(Mark::ReturnRestarted);
                unit.durable.owed.clear();
                unit.restarting = true;
                self.queue.insert(name.clone());
            }
        }
        self.touched.insert(name.clone());
    }

    /// A requirement was lost again: whatever was under way says nothing any more.
    pub(crate) fn abort_resync(&mut self, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        let State::Active(active) = &unit.state else { return };
        let Some(resync) = active.resync else { return };
        fx.mark(Mark::ResyncAborted);
        if let Resyncing::Running { run: Some(run), .. } = resync {
            fx.push(Effect::End { run, signal: Signal::KILL });
        }
        self.set_resync(name, None);
    }

    fn set_resync(&mut self, name: &UnitName, resync: Option<Resyncing>) {
        self.touched.insert(name.clone());
        if let Some(unit) = self.units.get_mut(name)
            && let State::Active(active) = &mut unit.state
        {
            active.resync = resync;
        }
    }

    pub(crate) fn on_resync_deadline(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        let State::Active(active) = &unit.state else { return };
        match active.resync {
            Some(Resyncing::Due { attempt, at }) if at <= now => self.begin_resync(now, name, attempt, fx),
            Some(Resyncing::Running { run, deadline, .. }) if deadline <= now => {
                if let Some(run) = run {
                    fx.push(Effect::End { run, signal: Signal::KILL });
                }
                self.on_resync_failed(now, name, "no acknowledgement in time".to_string(), fx);
            }
            Some(Resyncing::Due { .. } | Resyncing::Running { .. }) | None => {}
        }
    }

    fn begin_resync(&mut self, now: Monotonic, name: &UnitName, attempt: u32, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        let (Some(main), Some(resync)) = (unit.living_main(), unit.spec.resync.clone()) else { return };
        let for_units = unit.durable.owed.iter().cloned().collect();
        fx.record(name, Some(main), RecordKind::ResyncStarted { attempt, for_units });
        let run = match resync.by {
            ResyncBy::Net(_) => {
                fx.push(Effect::Resync { unit: name.clone(), run: main });
                None
            }
            ResyncBy::Command(_) => Some(self.spawn(name, Role::Resync, fx)),
        };
        let deadline = now + resync.timeout;
        self.set_resync(name, Some(Resyncing::Running { attempt, run, begun: now, deadline }));
    }

    /// The answer of an HTTP resync of this run.
    pub(crate) fn on_resynced(
        &mut self,
        now: Monotonic,
        run: RunId,
        outcome: ProbeOutcome,
        fx: &mut Effects,
    ) {
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        let awaited = self.units.get(&name).is_some_and(|unit| match &unit.state {
            State::Active(active) => {
                active.main == Some(run)
                    && matches!(active.resync, Some(Resyncing::Running { run: None, .. }))
            }
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { .. } => false,
        });
        if !awaited {
            return fx.mark(Mark::LateNewsIgnored);
        }
        match outcome {
            ProbeOutcome::Ok => self.on_resync_done(now, &name, fx),
            ProbeOutcome::Failed(why) | ProbeOutcome::Short(why) => {
                self.on_resync_failed(now, &name, why, fx)
            }
        }
    }

    /// The end of a resync command, or of one that could not be started.
    pub(crate) fn on_resync_exited(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        run: RunId,
        exit: Exit,
        fx: &mut Effects,
    ) {
        let Some(unit) = self.units.get(name) else { return };
        let State::Active(active) = &unit.state else { return };
        if !matches!(active.resync, Some(Resyncing::Running { run: Some(awaited), .. }) if awaited == run) {
            return;
        }
        match exit {
            Exit::Code(0) => self.on_resync_done(now, name, fx),
            Exit::Code(_) | Exit::Signal { .. } | Exit::NotExecuted { .. } | Exit::Unknown => {
                self.on_resync_failed(now, name, format!("the command {exit}"), fx)
            }
        }
    }

    fn on_resync_done(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let State::Active(active) = &unit.state else { return };
        let (main, Some(Resyncing::Running { attempt, begun, .. })) = (active.main, active.resync) else {
            return;
        };
        unit.durable.owed.clear();
        unit.durable.resync_failed = false;
        fx.mark(Mark::ResyncDone);
        let took_ms = u64::try_from(now.since(begun).as_millis()).unwrap_or(u64::MAX);
        fx.record(name, main, RecordKind::Resynced { attempt, took_ms });
        self.set_resync(name, None);
        self.resolve(name, Goal::Resynced, |_| Outcome::Done);
    }

    fn on_resync_failed(&mut self, now: Monotonic, name: &UnitName, why: String, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let State::Active(active) = &unit.state else { return };
        let (main, Some(Resyncing::Running { attempt, .. })) = (active.main, active.resync) else { return };
        let Some(spec) = unit.spec.resync.clone() else { return };
        let index = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
        if let Some(wait) = spec.delays.get(index) {
            fx.mark(Mark::ResyncRetried);
            let next_ms = u64::try_from(wait.as_millis()).ok();
            fx.record(name, main, RecordKind::ResyncFailed { attempt, why, next_ms });
            return self.set_resync(name, Some(Resyncing::Due { attempt: attempt + 1, at: now + *wait }));
        }
        fx.mark(Mark::ResyncExhausted);
        unit.durable.owed.clear();
        unit.durable.resync_failed = true;
        fx.record(name, main, RecordKind::ResyncFailed { attempt, why: why.clone(), next_ms: None });
        let attempts = attempt.saturating_sub(1); // retries: the first try is none
        fx.record(name, main, RecordKind::RetryExhausted { what: "resync", attempts });
        self.set_resync(name, None);
        let run = main.map_or(0, |run| run.0);
        let message = format!("the state of {name} could not be restored after {attempt} tries: {why}");
        self.raise(name, AlertKind::ResyncFailed, format!("{run}-{}", now.as_ns()), message, fx);
        self.resolve(name, Goal::Resynced, |_| Outcome::Failed(why.clone()));
    }

    /// An operator wants it now.
    pub(crate) fn order_resync(&mut self, now: Monotonic, name: &UnitName) -> Option<Outcome> {
        let unit = self.units.get(name)?;
        if unit.spec.resync.is_none() {
            return Some(Outcome::Failed("it has no [resync]".to_string()));
        }
        let State::Active(active) = &unit.state else {
            return Some(Outcome::Failed("it is not active, so it has no state to restore".to_string()));
        };
        if active.main.is_none() {
            return Some(Outcome::Failed("it has no process to restore".to_string()));
        }
        if !active.missing.is_empty() {
            let names: Vec<&str> = active.missing.iter().map(UnitName::as_str).collect();
            return Some(Outcome::Failed(format!("{} is down", names.join(", "))));
        }
        if active.resync.is_none() || matches!(active.resync, Some(Resyncing::Due { .. })) {
            self.set_resync(name, Some(Resyncing::Due { attempt: 1, at: now }));
        }
        None
    }
}
