//! Starting a unit: what it waits for, its hooks, what makes it ready.
//!
//! Refuses: stopping (`stop`) and the count of failures (`mod`).

use std::collections::BTreeSet;

use crate::base::check::ProbeOutcome;
use crate::base::exit::{Exit, RunId};
use crate::base::limits;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::effect::{Cause, Effect, Effects, Mark, RecordKind, Role};
use crate::engine::health;
use crate::engine::state::{
    Activating, Active, Blockers, Probing, StartStep, State, StopStep, Then, Unit, WhyInactive,
};
use crate::engine::{Asked, Ended, Engine};
use crate::unit::spec::{OnLoss, ReadyWhen, ServiceType};

impl Engine {
    /// A waiting unit: begin if nothing is missing, else remember what is.
    pub(crate) fn evaluate_start(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let blockers = self.blockers(name);
        // Ready now, but about to restart.
        let restarts =
            |other: &&UnitName| self.units.get(*other).is_some_and(|u| u.is_ready() && u.restarting);
        let held_back: Vec<UnitName> = blockers.requires.iter().filter(restarts).cloned().collect();
        let Some(unit) = self.units.get_mut(name) else { return };
        self.slot_waiters.remove(&(unit.since, name.clone()));
        let held_down = unit.outage_until.filter(|until| now < *until);
        let State::Waiting { not_before, blockers: known } = &mut unit.state else { return };
        *not_before = held_down.max(*not_before);
        unit.outage_until = held_down;
        let early = not_before.is_some_and(|at| now < at);
        if blockers == Blockers::default() && !early && unit.living.is_empty() && !unit.strays {
            return self.begin(now, name, fx);
        }
        if blockers.slot && blockers.only_slot() {
            fx.mark(Mark::WaitedForSlot);
            self.slot_waiters.insert((unit.since, name.clone()));
        }
        if blockers.requires.iter().any(|other| held_back.contains(other)) {
            fx.mark(Mark::StartHeldBack);
        }
        if !blockers.order.is_empty() {
            fx.mark(Mark::WaitedForOrder);
            self.order_waiters.insert(name.clone());
        } else {
            self.order_waiters.remove(name);
        }
        if !blockers.conflicts.is_empty() {
            fx.mark(Mark::WaitedForConflict);
        }
        let was_blocked = !known.only_slot();
        let is_blocked = !blockers.only_slot();
        let for_units = blockers.units();
        *known = blockers;
        self.touched.insert(name.clone());
        if is_blocked && !was_blocked {
            fx.record(name, None, RecordKind::Waiting { for_units });
        }
    }

    fn blockers(&self, name: &UnitName) -> Blockers {
        let Some(unit) = self.units.get(name) else { return Blockers::default() };
        let section = &unit.spec_to_start().unit;
        let restarting = |other: &UnitName| self.units.get(other).is_some_and(|unit| unit.restarting);
        let ready = |other: &UnitName| self.units.get(other).is_some_and(Unit::is_ready);
        let (known, unknown): (Vec<UnitName>, Vec<UnitName>) =
            section.requires.iter().cloned().partition(|other| self.units.contains_key(other));
        let requires = known.into_iter().filter(|other| !ready(other) || restarting(other)).collect();
        let order = self.predecessors(name).filter(|other| self.is_coming(other)).collect();
        let conflicts = self
            .rivals(name)
            .into_iter()
            .filter(|other| self.units.get(other).is_some_and(|unit| !unit.at_rest()))
            .collect();
        Blockers { unknown, requires, order, conflicts, slot: !self.slot_is_free() }
    }

    /// Units that this one is only ordered after (not those that it requires).
    fn predecessors(&self, name: &UnitName) -> impl Iterator<Item = UnitName> {
        let own = self.units.get(name).map(|unit| &unit.spec_to_start().unit);
        let required = own.map(|section| section.requires.clone()).unwrap_or_default();
        let mut found: BTreeSet<UnitName> =
            own.map(|section| section.after.iter().cloned().collect()).unwrap_or_default();
        let around = self.neighbours.get(name).into_iter().flatten();
        found.extend(around.filter(|other| self.is_before(other, name)).cloned());
        found.into_iter().filter(move |other| !required.contains(other))
    }

    fn is_before(&self, other: &UnitName, name: &UnitName) -> bool {
        self.units.get(other).is_some_and(|unit| unit.spec.unit.before.contains(name))
    }

    /// Units that must not live beside this one: conflicts, in both directions.
    pub(crate) fn rivals(&self, name: &UnitName) -> Vec<UnitName> {
        let around = self.neighbours.get(name).into_iter().flatten();
        let names = |a: &UnitName, b: &UnitName| {
            self.units.get(a).is_some_and(|unit| {
                let sections = [&unit.spec.unit, &unit.spec_to_start().unit];
                sections.iter().any(|section| section.conflicts.contains(b))
            })
        };
        around.filter(|other| names(name, other) || names(other, name)).cloned().collect()
    }

    /// Whether an ordering has to wait for this unit: it is on its way, or about to be.
    /// One that failed, or that needs something which failed or is not wanted, is not
    /// waited for: order is no need.
    fn is_coming(&self, name: &UnitName) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![name.clone()];
        while let Some(next) = open.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let Some(unit) = self.units.get(&next) else { return false };
            if unit.is_ready() && !unit.restarting {
                if next == *name {
                    return false;
                }
                continue;
            }
            let on_its_way = match unit.state {
                State::Activating(_) | State::Waiting { .. } => unit.durable.failures == 0,
                // A restart is under way: it will start again.
                State::Active(_) | State::Deactivating { .. } => unit.restarting,
                // Wanted, and only not looked at yet.
                State::Inactive { why: WhyInactive::NotWanted | WhyInactive::Stopped } => true,
                State::Inactive { why: WhyInactive::Finished(_) }
                | State::Backoff { .. }
                | State::Failed { .. } => false,
            };
            let rival_stays = self.rivals(&next).iter().any(|rival| {
                self.units.get(rival).is_some_and(|unit| !unit.at_rest()) && !self.to_stop(rival)
            });
            if !on_its_way || rival_stays || self.to_stop(&next) {
                return false;
            }
            open.extend(unit.spec.unit.requires.iter().cloned());
        }
        true
    }

    /// Everything is there: run the first hook, or the command.
    fn begin(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        if let Some(spec) = unit.next_spec.take() {
            unit.spec = spec;
            self.rebuild_edges();
        }
        let Some(unit) = self.units.get_mut(name) else { return };
        let due = unit.durable.retry_at.take();
        unit.begun = now;
        unit.durable.held = None;
        unit.durable.finished = false;
        // A new process begins with the state as it is now: nothing is owed to it.
        unit.durable.owed.clear();
        unit.durable.resync_failed = false;
        unit.restarting = false;
        unit.status = None;
        unit.uttered = None;
        if let Some(due) = due {
            // A try after a shortage comes here without a due time: one restart counts once.
            unit.durable.restarts += 1;
            let late_us = u64::try_from(now.since(due).as_micros()).unwrap_or(u64::MAX);
            let failures = unit.durable.failures;
            let run = RunId(self.next_run);
            fx.record(name, Some(run), RecordKind::Restarted { failures, late_us });
        }
        self.run_pre_hook(now, now, name, 0, fx);
    }

    /// The `index`-th `start_pre`, or the command when there is none left.
    fn run_pre_hook(
        &mut self,
        now: Monotonic,
        begun: Monotonic,
        name: &UnitName,
        index: u8,
        fx: &mut Effects,
    ) {
        if self.stop_is_pending(name) {
            // A hook of a start that is not wanted any more has ended: nothing comes after it.
            return self.end(now, name, Then::Again { not_before: None }, fx);
        }
        let Some(unit) = self.units.get(name) else { return };
        let deadline = unit.spec.readiness.timeout.map(|timeout| now + timeout);
        let step = if usize::from(index) < unit.spec.service.start_pre.len() {
            let run = self.spawn(name, Role::StartPre(index), fx);
            StartStep::Pre { index, run }
        } else {
            let main = self.spawn(name, Role::Main, fx);
            StartStep::Spawning { main }
        };
        self.set_state(now, name, State::Activating(Activating { step, begun, deadline, last_seen: None }));
        if let (Some(StartStep::Spawning { main }), Some(unit)) = (self.starting(name), self.units.get(name))
            && matches!(unit.spec.readiness.when, ReadyWhen::Log(_))
            && unit.spec.service.kind != ServiceType::Oneshot
        {
            fx.push(Effect::WatchLog { unit: name.clone(), run: *main });
        }
    }

    pub(crate) fn on_executed(&mut self, now: Monotonic, run: RunId, fx: &mut Effects) {
        self.note_in_quarantine(run, |row| row.executed = true);
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        if self.starting(&name) == Some(&StartStep::Spawning { main: run }) {
            self.touched.insert(name.clone());
            self.check_readiness(now, &name, run, fx);
        }
    }

    /// The command was executed: what has to come true before it is ready?
    fn check_readiness(&mut self, now: Monotonic, name: &UnitName, main: RunId, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        let spec = unit.spec.clone();
        if spec.service.kind == ServiceType::Oneshot {
            return self.set_start_step(now, name, StartStep::Checking { main, probe: Probing::Passive });
        }
        let probe = match &spec.readiness.when {
            ReadyWhen::Executed => return self.on_ready(now, name, fx),
            ReadyWhen::Notify | ReadyWhen::NotifyFd(_) | ReadyWhen::Log(_) => Probing::Passive,
            ReadyWhen::Net(_) => {
                fx.push(Effect::Probe { unit: name.clone(), run: main });
                Probing::InFlight { check: None }
            }
            ReadyWhen::Exec(_) => Probing::InFlight { check: Some(self.spawn(name, Role::ReadyCheck, fx)) },
        };
        self.set_start_step(now, name, StartStep::Checking { main, probe });
    }

    fn set_start_step(&mut self, now: Monotonic, name: &UnitName, step: StartStep) {
        let Some(unit) = self.units.get(name) else { return };
        if let State::Activating(activating) = &unit.state {
            let next = Activating { step, ..activating.clone() };
            self.set_state(now, name, State::Activating(next));
        }
    }

    pub(crate) fn on_probed(&mut self, now: Monotonic, run: RunId, outcome: ProbeOutcome, fx: &mut Effects) {
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        let asked = StartStep::Checking { main: run, probe: Probing::InFlight { check: None } };
        if self.starting(&name) != Some(&asked) {
            return fx.mark(Mark::LateNewsIgnored);
        }
        self.touched.insert(name.clone());
        match outcome {
            ProbeOutcome::Ok => self.on_ready(now, &name, fx),
            ProbeOutcome::Failed(seen) => self.probe_again(now, &name, run, seen, limits::READINESS_INTERVAL),
            ProbeOutcome::Short(seen) => self.probe_again(now, &name, run, seen, limits::SHORTAGE_RETRY),
        }
    }

    fn probe_again(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        main: RunId,
        seen: String,
        pause: std::time::Duration,
    ) {
        self.set_start_step(now, name, StartStep::Checking { main, probe: Probing::Next(now + pause) });
        if let Some(unit) = self.units.get_mut(name)
            && let State::Activating(activating) = &mut unit.state
        {
            activating.last_seen = Some(seen);
        }
    }

    /// The process itself says that it is ready, in whatever way.
    pub(crate) fn on_said_ready(&mut self, now: Monotonic, run: RunId, fx: &mut Effects) {
        self.note_in_quarantine(run, |row| row.said_ready = true);
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        let Some(unit) = self.units.get(&name) else { return };
        let by_itself = matches!(
            unit.spec.readiness.when,
            ReadyWhen::Notify | ReadyWhen::NotifyFd(_) | ReadyWhen::Log(_)
        );
        // The word may overtake the keeper's "executed": they come by different ways.
        let expected =
            [StartStep::Spawning { main: run }, StartStep::Checking { main: run, probe: Probing::Passive }];
        let waiting = self.starting(&name).is_some_and(|step| expected.contains(step));
        if by_itself && waiting && unit.spec.service.kind != ServiceType::Oneshot {
            self.touched.insert(name.clone());
            self.on_ready(now, &name, fx);
        } else {
            fx.mark(Mark::LateNewsIgnored);
            self.end_own_reload(&name, run, fx);
        }
    }

    /// What makes the unit ready has come true: settle, then the hooks, then active.
    pub(crate) fn on_ready(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let settle = unit.spec.readiness.settle;
        let (State::Activating(activating), Some(main)) = (&mut unit.state, unit.main) else { return };
        if matches!(activating.step, StartStep::Post { .. }) {
            return; // it was ready before a crash of ours: its hooks are not run twice
        }
        if !settle.is_zero() && unit.living.contains_key(&main) {
            activating.deadline = None;
            return self.set_start_step(now, name, StartStep::Settling { main, until: now + settle });
        }
        self.run_post_hook(now, name, 0, fx);
    }

    fn run_post_hook(&mut self, now: Monotonic, name: &UnitName, index: u8, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        if usize::from(index) >= unit.spec.service.start_post.len() {
            return self.activate(now, name, fx);
        }
        let timeout = unit.spec.readiness.timeout;
        let run = self.spawn(name, Role::StartPost(index), fx);
        self.set_start_step(now, name, StartStep::Post { index, run });
        if let Some(unit) = self.units.get_mut(name)
            && let State::Activating(activating) = &mut unit.state
        {
            activating.deadline = timeout.map(|timeout| now + timeout);
        }
    }

    fn activate(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let State::Activating(activating) = &unit.state else { return };
        let begun = activating.begun;
        let main = unit.living_main();
        let failures = unit.durable.failures;
        let reset_at = (failures > 0).then(|| now + unit.spec.restart.reset_after);
        unit.durable.ready = main.map(|main| (main, now));
        unit.durable.finished = main.is_none();
        let down_since = unit.durable.down_since.take();
        let run = unit.main;
        let health = main.and_then(|_| health::begin(now, &unit.spec));
        let active =
            Active { main, ready_at: now, reset_at, missing: Vec::new(), reload: None, health, resync: None };
        self.set_state(now, name, State::Active(active));
        fx.record(name, run, RecordKind::Active { start_ms: ms(now, begun) });
        if let Some(since) = down_since {
            fx.record(name, run, RecordKind::Recovered { failures, down_ms: ms(now, since) });
        }
    }

    pub(crate) fn on_activating_deadline(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        let State::Activating(activating) = unit.state.clone() else { return };
        let timeout_ms =
            unit.spec.readiness.timeout.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
        let out_of_time = activating.deadline.is_some_and(|at| at <= now);
        match activating.step {
            StartStep::Pre { run, .. } | StartStep::Post { run, .. } => {
                if out_of_time {
                    fx.mark(Mark::HookTimedOut);
                    self.fail(now, name, run, now, Cause::HookTimeout { timeout_ms }, fx);
                }
            }
            StartStep::Settling { until, .. } => {
                if until <= now {
                    self.run_post_hook(now, name, 0, fx);
                }
            }
            StartStep::Spawning { main } | StartStep::Checking { main, .. } if out_of_time => {
                fx.mark(Mark::ReadyTimedOut);
                let cause = Cause::NotReady { timeout_ms, last: activating.last_seen };
                self.fail(now, name, main, now, cause, fx);
            }
            StartStep::Checking { main, probe: Probing::Next(at) } if at <= now => {
                self.check_readiness(now, name, main, fx)
            }
            StartStep::Spawning { .. } | StartStep::Checking { .. } => {}
        }
    }

    pub(crate) fn on_start_hook_exited(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        ended: Ended,
        fx: &mut Effects,
    ) {
        let Ended { run, at, exit, .. } = ended;
        let Some(unit) = self.units.get(name) else { return };
        let good = exit == Exit::Code(0);
        let activating = match unit.state.clone() {
            State::Activating(activating) => activating,
            State::Deactivating { step, .. } if !good => {
                return self.count_hook_late(now, name, ended, step, fx);
            }
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Active(_)
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { .. } => return,
        };
        match activating.step {
            StartStep::Pre { index, run: hook } if hook == run => {
                if good {
                    self.run_pre_hook(now, activating.begun, name, index.saturating_add(1), fx);
                } else {
                    fx.mark(Mark::PreHookFailed);
                    self.fail(now, name, run, at, Cause::Hook { hook: "start_pre", exit }, fx);
                }
            }
            StartStep::Post { index, run: hook } if hook == run => {
                if good {
                    self.run_post_hook(now, name, index.saturating_add(1), fx);
                } else {
                    fx.mark(Mark::PostHookFailed);
                    self.fail(now, name, run, at, Cause::Hook { hook: "start_post", exit }, fx);
                }
            }
            StartStep::Checking { main, probe: Probing::InFlight { check: Some(check) } } if check == run => {
                if good {
                    self.on_ready(now, name, fx);
                } else {
                    fx.mark(Mark::ReadyCheckFailed);
                    self.probe_again(now, name, main, format!("check {exit}"), limits::READINESS_INTERVAL);
                }
            }
            StartStep::Pre { .. }
            | StartStep::Spawning { .. }
            | StartStep::Checking { .. }
            | StartStep::Settling { .. }
            | StartStep::Post { .. } => {}
        }
    }

    /// Only after a crash of ours: a hook failed, what followed from it was found under way,
    /// but the failure was not committed.
    fn count_hook_late(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        ended: Ended,
        step: StopStep,
        fx: &mut Effects,
    ) {
        let hook = match ended.role {
            Role::StartPre(_) => "start_pre",
            Role::StartPost(_) => "start_post",
            Role::Main
            | Role::StopPost(_)
            | Role::StopCommand
            | Role::ReloadCommand
            | Role::ReadyCheck
            | Role::HealthCheck
            | Role::Resync => {
                return;
            }
        };
        let counted = self.units.get(name).is_some_and(|u| u.durable.counted_run >= Some(ended.run));
        if ended.asked == Asked::ToEnd || counted || self.to_stop(name) {
            return;
        }
        fx.mark(Mark::CountedLate);
        let cause = Cause::Hook { hook, exit: ended.exit };
        let then = self.decide(name, ended.run, ended.at, cause, fx);
        self.set_state(now, name, State::Deactivating { step, then });
    }

    /// Fds, memory or pids were short: try again soon; the unit is not to blame.
    pub(crate) fn on_spawn_short(&mut self, now: Monotonic, run: RunId, errno: i32, fx: &mut Effects) {
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        let forked = |unit: &Unit| unit.living.get(&run).is_some_and(|living| living.pid.is_some());
        if self.units.get(&name).is_some_and(forked) {
            return fx.mark(Mark::LateNewsIgnored); // it lives; only its end can end it
        }
        self.runs.remove(&run);
        let Some(unit) = self.units.get_mut(&name) else { return };
        let Some(living) = unit.living.remove(&run) else { return };
        self.on_short(now, &name, (run, living.role), errno, fx);
    }

    /// A run that never was, or that came to nothing between fork and exec, for want of something.
    pub(crate) fn on_short(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        (run, role): (RunId, Role),
        errno: i32,
        fx: &mut Effects,
    ) {
        fx.mark(Mark::SpawnWasShort);
        self.touched.insert(name.clone());
        fx.record(name, Some(run), RecordKind::Shortage { errno });
        let Some(unit) = self.units.get(name) else { return };
        let activating = matches!(unit.state, State::Activating(_));
        let was_terminating = unit.is_terminating();
        let again = Then::Again { not_before: Some(now + limits::SHORTAGE_RETRY) };
        match role {
            Role::Main | Role::StartPre(_) | Role::StartPost(_) if activating => {
                self.end(now, name, again, fx)
            }
            Role::ReadyCheck => {
                if let Some(StartStep::Checking { main, .. }) = self.starting(name) {
                    let (main, seen) = (*main, "short of resources".to_string());
                    self.probe_again(now, name, main, seen, limits::SHORTAGE_RETRY);
                }
            }
            Role::StopCommand | Role::StopPost(_) => {
                self.on_stop_hook_exited(now, name, run, Exit::Unknown, fx)
            }
            Role::ReloadCommand => self.on_reload_exited(name, run, Exit::Unknown, fx),
            Role::HealthCheck => self.on_check_short(now, name),
            Role::Resync => self.on_resync_exited(now, name, run, Exit::Unknown, fx),
            Role::Main | Role::StartPre(_) | Role::StartPost(_) => {}
        }
        if was_terminating {
            self.ask_strays(name, fx);
        }
        self.conclude_if_empty(now, name, fx);
    }

    /// An active unit: which of its requirements are down now? What is lost is owed; when the
    /// last one is ready again, what is owed is done.
    pub(crate) fn evaluate_requirements(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        let down = |other: &&UnitName| !self.units.get(*other).is_some_and(Unit::is_ready);
        let missing: Vec<UnitName> = unit.spec.unit.requires.iter().filter(down).cloned().collect();
        let to_stop = self.to_stop(name);
        let Some(unit) = self.units.get_mut(name) else { return };
        let (run, spec) = (unit.main, unit.spec.clone());
        let State::Active(active) = &mut unit.state else { return };
        if active.missing == missing {
            return;
        }
        let lost: Vec<UnitName> =
            missing.iter().filter(|other| !active.missing.contains(other)).cloned().collect();
        let was_whole = active.missing.is_empty();
        active.missing = missing.clone();
        if was_whole != missing.is_empty() {
            unit.since = now; // `active` and `degraded` are two words
        }
        unit.durable.owed.extend(lost.iter().cloned());
        self.touched.insert(name.clone());
        if missing.is_empty() {
            fx.mark(Mark::Restored);
            fx.record(name, run, RecordKind::Restored);
            if !to_stop {
                self.on_all_returned(now, name, fx);
            }
            return;
        }
        if !lost.is_empty() {
            fx.mark(if was_whole { Mark::Degraded } else { Mark::LostAnother });
            fx.record(name, run, RecordKind::Degraded { for_units: missing });
        }
        self.abort_resync(name, fx);
        let goes_down =
            |other: &UnitName| spec.dependency.get(other).is_some_and(|edge| edge.on_loss != OnLoss::Degrade);
        if lost.iter().any(goes_down)
            && !to_stop
            && let Some(unit) = self.units.get_mut(name)
        {
            // `stop` and `restart` alike: down now, and up again when it can be.
            fx.mark(Mark::LossStopped);
            unit.restarting = true;
            self.queue.insert(name.clone());
        }
    }

    pub(crate) fn on_active_deadline(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let reset_after = unit.spec.restart.reset_after;
        let State::Active(active) = &mut unit.state else { return };
        let reload_over = active.reload.filter(|reload| reload.deadline <= now);
        let episode_over = active.reset_at.is_some_and(|at| at <= now);
        // A bad check before its threshold: it may be hanging, so what it survives does not count.
        let ails = active.health.as_ref().is_some_and(|watch| watch.bad > 0);
        let episode_over = episode_over && !ails;
        if active.reset_at.is_some_and(|at| at <= now) {
            active.reset_at = ails.then(|| now + reset_after);
        }
        if let Some(reload) = reload_over {
            active.reload = None;
            fx.push(Effect::End { run: reload.run, signal: crate::base::signal::Signal::KILL });
            let timeout_ms = ms(reload.deadline, reload.since);
            self.reload_failed(name, reload.run, Cause::HookTimeout { timeout_ms }, fx);
        }
        if episode_over {
            self.end_episode(name, fx);
        }
        self.on_resync_deadline(now, name, fx);
        self.on_health_deadline(now, name, fx);
    }
}

fn ms(now: Monotonic, since: Monotonic) -> u64 {
    u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX)
}
