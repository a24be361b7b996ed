//! Orders of an operator, and the jobs that answer them when they are done.
//!
//! Refuses: deciding how a unit starts or stops. It changes what is wanted; `evaluate` acts.

use std::collections::BTreeSet;

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::durable::Desired;
use crate::engine::effect::{Cause, Effect, Effects, Mark, Outcome, RecordKind, Role};
use crate::engine::event::{Order, RequestId};
use crate::engine::state::{Hold, Reloading, State, Then, Unit, WhyInactive};
use crate::unit::spec::Reload;

/// A reload command without an end is given up after this when the unit waits for ever to
/// get ready: as long as the default of `readiness.timeout`.
pub(crate) const RELOAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    Up,
    Down,
    Reloaded,
    Resynced,
}

/// An order that is not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    goal: Goal,
    waiting: BTreeSet<UnitName>,
    outcomes: Vec<(UnitName, Outcome)>,
}

impl Job {
    pub(crate) fn new(goal: Goal) -> Job {
        Job { goal, waiting: BTreeSet::new(), outcomes: Vec::new() }
    }

    pub(crate) fn wait_for(&mut self, unit: UnitName) {
        self.waiting.insert(unit);
    }

    pub(crate) fn answer(&mut self, unit: UnitName, outcome: Outcome) {
        self.outcomes.push((unit, outcome));
    }
}

impl Engine {
    pub(crate) fn on_ordered(&mut self, now: Monotonic, request: RequestId, order: Order, fx: &mut Effects) {
        if let Some(why) = self.refuses(now, &order) {
            fx.mark(Mark::SafeModeRefused);
            return self.refuse_each(request, order, &why);
        }
        match &order {
            Order::Start(units) | Order::Stop(units) | Order::Restart(units) | Order::Clear(units) => {
                self.lift_quarantines(now, units, fx)
            }
            Order::Reload(_)
            | Order::Signal(..)
            | Order::Outage(..)
            | Order::Resync(_)
            | Order::AwaitUp(_)
            | Order::AwaitDown(_)
            | Order::Shutdown => {}
        }
        match order {
            Order::Start(units) => {
                self.order_each(request, "start", Goal::Up, units, fx, |this, name, fx| {
                    this.order_start(now, name, fx)
                })
            }
            Order::Stop(units) => {
                self.order_each(request, "stop", Goal::Down, units, fx, |this, name, fx| {
                    this.order_stop(now, name, fx)
                })
            }
            Order::Restart(units) => {
                self.order_each(request, "restart", Goal::Up, units, fx, |this, name, fx| {
                    this.order_restart(now, name, fx)
                })
            }
            Order::Reload(units) => {
                self.order_each(request, "reload", Goal::Reloaded, units, fx, |this, name, fx| {
                    this.order_reload(now, name, fx)
                })
            }
            Order::Clear(units) => {
                let named: BTreeSet<&UnitName> = units.iter().collect();
                if self.units.keys().all(|name| named.contains(name)) {
                    self.trust_again(now, fx);
                }
                self.order_each(request, "clear", Goal::Up, units, fx, |this, name, fx| {
                    this.order_clear(now, name, fx)
                })
            }
            Order::Signal(unit, signal) => {
                self.order_each(request, "signal", Goal::Up, vec![unit], fx, |this, name, fx| {
                    Some(this.order_signal(name, signal, fx))
                })
            }
            Order::Outage(unit, until) => {
                self.order_each(request, "outage", Goal::Down, vec![unit], fx, |this, name, fx| {
                    this.order_outage(now, name, until, fx)
                })
            }
            Order::Resync(units) => {
                self.order_each(request, "resync", Goal::Resynced, units, fx, |this, name, _| {
                    this.order_resync(now, name)
                })
            }
            Order::AwaitUp(units) => self.await_units(request, Goal::Up, units),
            Order::AwaitDown(units) => self.await_units(request, Goal::Down, units),
            Order::Shutdown => self.order_shutdown(now, fx),
        }
    }

    fn order_signal(&self, name: &UnitName, signal: Signal, fx: &mut Effects) -> Outcome {
        let main = self.units.get(name).and_then(Unit::living_main);
        let Some(run) = main else {
            return Outcome::Failed("it has no process to signal".to_string());
        };
        fx.push(Effect::Signal { run, signal });
        Outcome::Done
    }

    /// Answers an order that moves nothing now.
    fn refuse_each(&mut self, request: RequestId, order: Order, why: &str) {
        let (goal, units) = match order {
            Order::Reload(units) => (Goal::Reloaded, units),
            Order::Resync(units) => (Goal::Resynced, units),
            Order::Start(units) | Order::Restart(units) | Order::Clear(units) | Order::AwaitUp(units) => {
                (Goal::Up, units)
            }
            Order::Stop(units) | Order::AwaitDown(units) => (Goal::Down, units),
            Order::Signal(unit, _) | Order::Outage(unit, _) => (Goal::Up, vec![unit]),
            Order::Shutdown => return,
        };
        let mut job = Job::new(goal);
        units.into_iter().for_each(|unit| job.answer(unit, Outcome::Failed(why.to_string())));
        self.jobs.insert(request, job);
    }

    /// Gives the order to each unit. `give` answers at once, or None when a job has to wait.
    fn order_each(
        &mut self,
        request: RequestId,
        verb: &'static str,
        goal: Goal,
        units: Vec<UnitName>,
        fx: &mut Effects,
        give: impl Fn(&mut Engine, &UnitName, &mut Effects) -> Option<Outcome>,
    ) {
        let mut job = Job { goal, waiting: BTreeSet::new(), outcomes: Vec::new() };
        for name in units {
            if !self.units.contains_key(&name) {
                job.outcomes.push((name, Outcome::Failed("there is no such unit".to_string())));
                continue;
            }
            self.touched.insert(name.clone());
            self.queue_around(&name);
            fx.touch(&name);
            fx.record(&name, None, RecordKind::Ordered { verb });
            if self.shutting_down {
                job.outcomes.push((name, Outcome::Failed("the daemon is stopping".to_string())));
                continue;
            }
            match give(self, &name, fx) {
                Some(outcome) => job.outcomes.push((name, outcome)),
                None => {
                    job.waiting.insert(name);
                }
            }
        }
        self.jobs.insert(request, job);
    }

    fn order_start(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) -> Option<Outcome> {
        let outcome = self.begin_start(now, name, fx);
        let never = || {
            let other = self.waits_for_quarantined(name)?;
            let text =
                format!("it waits for {other}, which is in quarantine; `upright clear {other}` ends that");
            Some(Outcome::Failed(text))
        };
        outcome.or_else(never)
    }

    fn begin_start(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) -> Option<Outcome> {
        self.want_with_requirements(now, name, fx);
        self.make_way(name, fx);
        self.end_episode(name, fx);
        self.end_outage(now, name);
        let unit = self.units.get_mut(name)?;
        unit.durable.held = None;
        match unit.state.clone() {
            State::Active(_) if unit.restarting => None,
            State::Active(_) => Some(Outcome::Already),
            State::Backoff { .. } => {
                fx.mark(Mark::StartedInBackoff);
                unit.durable.retry_at = None;
                self.set_waiting(now, name);
                None
            }
            State::Inactive { .. } | State::Failed { hold: Hold::GaveUp(_) } => {
                self.set_waiting(now, name);
                None
            }
            State::Deactivating { step, .. } => {
                fx.mark(Mark::StartedWhileDeactivating);
                unit.durable.retry_at = None;
                let then = Then::Again { not_before: None };
                self.set_state(now, name, State::Deactivating { step, then });
                None
            }
            State::Failed { hold: Hold::Stuck { then } } => {
                if matches!(then, Then::Hold(_)) {
                    let then = Then::Again { not_before: None };
                    self.set_state(now, name, State::Failed { hold: Hold::Stuck { then } });
                }
                Some(Outcome::Failed("it is stuck: a process survived SIGKILL".to_string()))
            }
            // Not any more: it was lifted.
            State::Failed { hold: Hold::Quarantined(_) } | State::Waiting { .. } | State::Activating(_) => {
                None
            }
        }
    }

    /// The unit, and all that it needs or wants, shall be up; held requirements are tried again.
    fn want_with_requirements(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let mut seen = BTreeSet::new();
        let mut open = vec![name.clone()];
        while let Some(next) = open.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let Some(unit) = self.units.get_mut(&next) else { continue };
            open.extend(unit.spec.unit.requires.iter().chain(&unit.spec.unit.wants).cloned());
            let held = matches!(unit.state, State::Failed { hold: Hold::GaveUp(_) });
            if next == *name || !unit.wanted() {
                unit.durable.ordered = Some(Desired::Up);
            }
            if held {
                unit.durable.held = None;
                self.end_episode(&next, fx);
                self.set_waiting(now, &next);
            }
            self.supersede(&next, Goal::Up, fx);
            self.touched.insert(next.clone());
            self.queue_around(&next);
        }
    }

    /// What conflicts with a unit that an operator starts is stopped, as systemd does it.
    fn make_way(&mut self, name: &UnitName, fx: &mut Effects) {
        for rival in self.rivals(name) {
            let Some(unit) = self.units.get_mut(&rival) else { continue };
            if !unit.wanted() {
                continue;
            }
            fx.mark(Mark::ConflictStopped);
            unit.durable.ordered = Some(Desired::Down);
            self.touched.insert(rival.clone());
            self.queue_around(&rival);
            self.supersede(&rival, Goal::Down, fx);
        }
    }

    fn order_stop(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) -> Option<Outcome> {
        self.supersede(name, Goal::Down, fx);
        let unit = self.units.get_mut(name)?;
        unit.outage_until = None;
        unit.durable.ordered = Some(Desired::Down);
        unit.durable.held = None;
        unit.durable.down_since = None;
        unit.restarting = false;
        match unit.state {
            State::Inactive { .. } => Some(Outcome::Already),
            State::Failed { hold: Hold::GaveUp(_) } => {
                self.set_state(now, name, State::Inactive { why: WhyInactive::Stopped });
                Some(Outcome::Done)
            }
            State::Failed { hold: Hold::Stuck { .. } } => {
                Some(Outcome::Failed("it is stuck: a process survived SIGKILL".to_string()))
            }
            State::Waiting { .. }
            | State::Activating(_)
            | State::Active(_)
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { hold: Hold::Quarantined(_) } => None,
        }
    }

    fn order_restart(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) -> Option<Outcome> {
        let lives = self.units.get(name).is_some_and(|unit| !unit.at_rest() && !unit.is_stuck());
        let outcome = self.order_start(now, name, fx);
        if let (true, Some(unit)) = (lives, self.units.get_mut(name)) {
            unit.restarting = true;
            return None;
        }
        outcome
    }

    pub(crate) fn order_reload(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        fx: &mut Effects,
    ) -> Option<Outcome> {
        let unit = self.units.get_mut(name)?;
        let spec = unit.spec.clone();
        let main = unit.living_main();
        let (State::Active(active), Some(run)) = (&unit.state, main) else {
            return Some(Outcome::Failed("it is not active, so there is nothing to reload".to_string()));
        };
        if active.reload.is_some() {
            return None; // one is under way: its end answers both
        }
        match &spec.reload {
            Reload::Signal(signal) => {
                fx.push(Effect::Signal { run, signal: *signal });
                fx.record(name, Some(run), RecordKind::Reloaded);
                Some(Outcome::Done)
            }
            Reload::Command(_) => {
                let deadline = now + spec.readiness.timeout.unwrap_or(RELOAD_TIMEOUT);
                let run = self.spawn(name, Role::ReloadCommand, fx);
                let unit = self.units.get_mut(name)?;
                if let State::Active(active) = &mut unit.state {
                    active.reload = Some(Reloading { run, since: now, deadline });
                }
                None
            }
        }
    }

    pub(crate) fn on_reload_exited(&mut self, name: &UnitName, run: RunId, exit: Exit, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let State::Active(active) = &mut unit.state else { return };
        if active.reload.is_none_or(|reload| reload.run != run) {
            return;
        }
        active.reload = None;
        if exit == Exit::Code(0) {
            fx.record(name, Some(run), RecordKind::Reloaded);
            self.resolve(name, Goal::Reloaded, |_| Outcome::Done);
        } else {
            self.reload_failed(name, run, Cause::Hook { hook: "reload.command", exit }, fx);
        }
    }

    pub(crate) fn reload_failed(&mut self, name: &UnitName, run: RunId, cause: Cause, fx: &mut Effects) {
        fx.mark(Mark::ReloadFailed);
        let why = cause.to_string();
        fx.record(name, Some(run), RecordKind::HookFailed { hook: "reload.command", cause });
        self.resolve(name, Goal::Reloaded, |_| Outcome::Failed(why.clone()));
    }

    fn order_clear(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) -> Option<Outcome> {
        self.end_episode(name, fx);
        let unit = self.units.get_mut(name)?;
        unit.durable.held = None;
        match &mut unit.state {
            State::Active(active) => active.reset_at = None,
            State::Failed { hold: Hold::GaveUp(_) } => self.set_waiting(now, name),
            State::Deactivating { then: then @ Then::Hold(_), .. }
            | State::Failed { hold: Hold::Stuck { then: then @ Then::Hold(_) } } => {
                fx.mark(Mark::ClearedOnTheWay);
                *then = Then::Again { not_before: None };
            }
            State::Failed { hold: Hold::Stuck { .. } | Hold::Quarantined(_) }
            | State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Backoff { .. }
            | State::Deactivating { .. } => {}
        }
        Some(Outcome::Done)
    }

    fn order_shutdown(&mut self, now: Monotonic, fx: &mut Effects) {
        self.shutting_down = true;
        let names: Vec<UnitName> = self.units.keys().cloned().collect();
        for name in names {
            self.lift_quarantine(now, &name, fx);
            self.supersede(&name, Goal::Down, fx);
            self.touched.insert(name.clone());
            self.queue.insert(name);
        }
    }

    /// Jobs on this unit with another goal will not be done any more.
    fn supersede(&mut self, name: &UnitName, goal: Goal, fx: &mut Effects) {
        for job in self.jobs.values_mut().filter(|job| job.goal != goal) {
            if job.waiting.remove(name) {
                fx.mark(Mark::JobSuperseded);
                job.outcomes.push((name.clone(), Outcome::Superseded));
            }
        }
    }

    pub(crate) fn resolve(&mut self, name: &UnitName, goal: Goal, outcome: impl Fn(&UnitName) -> Outcome) {
        for job in self.jobs.values_mut().filter(|job| job.goal == goal) {
            if job.waiting.remove(name) {
                job.outcomes.push((name.clone(), outcome(name)));
            }
        }
    }

    /// The unit changed: is any job on it done?
    pub(crate) fn tell_jobs(&mut self, name: &UnitName, fx: &mut Effects) {
        if self.jobs.is_empty() {
            return;
        }
        let Some(unit) = self.units.get(name) else {
            self.supersede(name, Goal::Down, fx);
            return self.resolve(name, Goal::Down, |_| Outcome::Done);
        };
        let restarting = unit.restarting;
        match unit.state.clone() {
            State::Active(_) if !restarting => self.resolve(name, Goal::Up, |_| Outcome::Done),
            State::Active(_) | State::Activating(_) | State::Deactivating { .. } => {}
            State::Inactive { why: WhyInactive::Finished(_) } => {
                self.resolve(name, Goal::Up, |_| Outcome::Done);
                self.resolve(name, Goal::Down, |_| Outcome::Done);
            }
            State::Inactive { .. } => {
                self.resolve(name, Goal::Down, |_| Outcome::Done);
                if self.to_stop(name) {
                    self.supersede(name, Goal::Down, fx);
                }
            }
            State::Waiting { .. } | State::Backoff { .. } => {}
            State::Failed { hold: Hold::GaveUp(why) } => {
                self.resolve(name, Goal::Down, |_| Outcome::Done);
                self.resolve(name, Goal::Up, |_| Outcome::Failed(why.clone()));
            }
            State::Failed { hold: Hold::Quarantined(left) } => {
                self.resolve(name, Goal::Up, |_| Outcome::Failed(left.why.clone()));
                self.resolve(name, Goal::Down, |_| Outcome::Failed(left.why.clone()));
            }
            State::Failed { hold: Hold::Stuck { .. } } => {
                let stuck = |_: &UnitName| Outcome::Failed("a process survived SIGKILL".to_string());
                self.resolve(name, Goal::Up, stuck);
                self.resolve(name, Goal::Down, stuck);
            }
        }
        let reloadable = self.units.get(name).is_some_and(Unit::is_ready);
        if !reloadable {
            let gone = |_: &UnitName| Outcome::Failed("it is no longer active".to_string());
            self.resolve(name, Goal::Reloaded, gone);
            self.resolve(name, Goal::Resynced, gone);
        }
    }

    /// The unit failed: an operator who waits for it, or for one that needs it, is told now.
    pub(crate) fn fail_jobs(&mut self, name: &UnitName, why: &str, fx: &mut Effects) {
        self.resolve(name, Goal::Up, |_| Outcome::Failed(why.to_string()));
        let waiting: BTreeSet<UnitName> = self
            .jobs
            .values()
            .filter(|job| job.goal == Goal::Up)
            .flat_map(|job| job.waiting.iter().cloned())
            .filter(|unit| self.needs(unit, name))
            .collect();
        for unit in waiting {
            fx.mark(Mark::JobFailedByRequirement);
            let text = format!("it waits for {name}, which {why}; it starts when {name} is ready");
            self.resolve(&unit, Goal::Up, |_| Outcome::Failed(text.clone()));
        }
    }

    /// Whether `unit` waits, and requires `other`, directly or through others.
    fn needs(&self, unit: &UnitName, other: &UnitName) -> bool {
        let waits = |name: &UnitName| {
            self.units.get(name).is_some_and(|unit| matches!(unit.state, State::Waiting { .. }))
        };
        let mut seen = BTreeSet::new();
        let mut open = vec![unit.clone()];
        while let Some(next) = open.pop() {
            if !seen.insert(next.clone()) || !waits(&next) {
                continue;
            }
            let Some(unit) = self.units.get(&next) else { continue };
            if unit.spec.unit.requires.contains(other) {
                return true;
            }
            open.extend(unit.spec.unit.requires.iter().cloned());
        }
        false
    }

    pub(crate) fn answer_jobs(&mut self, fx: &mut Effects) {
        let done: Vec<RequestId> =
            self.jobs.iter().filter(|(_, job)| job.waiting.is_empty()).map(|(id, _)| *id).collect();
        for request in done {
            if let Some(job) = self.jobs.remove(&request) {
                fx.push_late(Effect::Reply { request, outcomes: job.outcomes });
            }
        }
    }

    pub(crate) fn job_units(&self) -> impl Iterator<Item = &UnitName> {
        self.jobs.values().flat_map(|job| job.waiting.iter())
    }
}
