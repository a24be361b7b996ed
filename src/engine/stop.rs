//! Stopping a unit: command, signal, grace, kill, stuck, hooks, and where it leads.
//!
//! Refuses: a second copy while anything of the first may live.

use crate::base::exit::{Exit, RunId};
use crate::base::limits;
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::{AlertKind, Cause, Effect, Effects, Mark, RecordKind, Role};
use crate::engine::state::{Asked, Hold, Hooks, State, StopStep, Then, WhyInactive};
use crate::unit::spec::{RestartPolicy, ServiceType};

impl Engine {
    /// A unit that has to go down (or to restart): now, or once its followers are at rest.
    pub(crate) fn evaluate_stop(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        match &unit.state {
            State::Inactive { .. } | State::Failed { hold: Hold::GaveUp(_) } => {
                if unit.removed {
                    self.forget(name, fx);
                }
            }
            State::Waiting { .. } | State::Backoff { .. } => {
                if matches!(unit.state, State::Backoff { .. }) {
                    fx.mark(Mark::StoppedInBackoff);
                }
                unit.durable.retry_at = None;
                unit.restarting = false;
                self.set_state(now, name, State::Inactive { why: WhyInactive::Stopped });
                fx.record(name, None, RecordKind::Stopped { exit: None });
            }
            State::Activating(_) | State::Active(_) => {
                if self.held_back(name) {
                    fx.mark(Mark::StopHeldBack);
                    return self.evaluate_requirements(now, name, fx);
                }
                self.bring_down(now, name, fx);
            }
            State::Deactivating { .. }
            | State::Failed { hold: Hold::Stuck { .. } | Hold::Quarantined(_) } => {}
        }
    }

    /// A stop goes in reverse order: units ordered after this one, and stopping too, go first.
    fn held_back(&self, name: &UnitName) -> bool {
        let followers = self.followers.get(name).into_iter().flatten();
        followers.filter(|other| *other != name).any(|other| {
            self.units.get(other).is_some_and(|unit| {
                let goes = self.to_stop(other) || unit.restarting;
                goes && !unit.at_rest() && !unit.is_stuck() && unit.quarantine().is_none()
            })
        })
    }

    /// An orderly stop of a living unit: the stop command first, then the signal.
    fn bring_down(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let (activating, spec, main) =
            (matches!(unit.state, State::Activating(_)), unit.spec.clone(), unit.living_main());
        if activating {
            fx.mark(Mark::StoppedWhileActivating);
        }
        unit.durable.ready = None;
        unit.durable.finished = false;
        fx.record(name, unit.main, RecordKind::Stopping);
        let then = Then::Again { not_before: None };
        if spec.stop.command.is_some() && main.is_some() && !activating {
            if let Some(living) = main.and_then(|main| unit.living.get_mut(&main)) {
                living.asked = Asked::ToEnd; // by the command, so the keeper does not know it
            }
            let run = self.spawn(name, Role::StopCommand, fx);
            let step = StopStep::Command { run, deadline: now + spec.stop.timeout };
            self.set_state(now, name, State::Deactivating { step, then });
        } else {
            self.terminate(now, name, None, then, fx);
        }
    }

    /// The attempt is over, or has to be: take down what still lives, then go on to `then`.
    pub(crate) fn end(&mut self, now: Monotonic, name: &UnitName, then: Then, fx: &mut Effects) {
        self.end_of(now, name, None, then, fx);
    }

    /// The same, because of this run's failure.
    pub(crate) fn end_of(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        failed: Option<RunId>,
        then: Then,
        fx: &mut Effects,
    ) {
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.durable.ready = None;
        unit.durable.finished = false;
        self.terminate(now, name, failed, then, fx);
    }

    /// Asks everything that lives to end. Nothing lives: goes on at once.
    ///
    /// The keeper is not told that the end of a failed run is wanted: the signal is sent before
    /// the failure is committed, and an engine that finds an end that was asked for counts no
    /// failure. Unasked, that end is the failure itself, and it is counted once by its run.
    /// Only where a clean exit would be taken for success the note is needed.
    fn terminate(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        failed: Option<RunId>,
        then: Then,
        fx: &mut Effects,
    ) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let kill_at = now + unit.spec.stop.timeout;
        let signal = unit.spec.stop.signal;
        let clean_is_good = unit.spec.service.kind == ServiceType::Oneshot
            || unit.spec.restart.policy == RestartPolicy::OnFailure;
        let is_main = |run: &RunId| unit.living.get(run).is_some_and(|living| living.role == Role::Main);
        let unasked = failed.filter(|run| is_main(run) && !clean_is_good);
        if let Some(run) = unasked
            && let Some(living) = unit.living.get_mut(&run)
        {
            living.asked = Asked::ToEnd;
            fx.push(Effect::Signal { run, signal });
            // One that is stopped (SIGSTOP, a debugger) would hear nothing but SIGKILL.
            fx.push(Effect::Signal { run, signal: Signal::CONT });
        }
        self.ask_to_end(name, |run| Some(run) != unasked, fx);
        let step = StopStep::Terminating { kill_at, hooks: Hooks::Follow };
        self.set_state(now, name, State::Deactivating { step, then });
        self.ask_strays(name, fx);
        self.conclude_if_empty(now, name, fx);
    }

    /// The main process by the unit's own signal, hooks and checks by SIGTERM.
    pub(crate) fn ask_to_end(&mut self, name: &UnitName, which: impl Fn(RunId) -> bool, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        for (run, living) in unit.living.iter_mut().filter(|(run, _)| which(**run)) {
            living.asked = Asked::ToEnd;
            let signal = if living.role == Role::Main { unit.spec.stop.signal } else { Signal::TERM };
            fx.push(Effect::End { run: *run, signal });
        }
    }

    pub(crate) fn on_stop_deadline(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        step: StopStep,
        then: Then,
        fx: &mut Effects,
    ) {
        match step {
            StopStep::Command { run, deadline } if deadline <= now => {
                fx.mark(Mark::HookTimedOut);
                self.hook_timed_out(name, run, "stop.command", fx);
                self.terminate(now, name, None, then, fx);
            }
            StopStep::Terminating { kill_at, hooks } if kill_at <= now => {
                fx.mark(Mark::GraceRanOut);
                fx.push(Effect::KillAll { unit: name.clone() });
                let main = self.units.get(name).and_then(|unit| unit.main);
                fx.record(name, main, RecordKind::Killed);
                let step = StopStep::Killing { stuck_at: now + limits::KILL_GRACE, hooks };
                self.set_state(now, name, State::Deactivating { step, then });
            }
            StopStep::Killing { stuck_at, .. } if stuck_at <= now => {
                fx.mark(Mark::Stuck);
                let main = self.units.get(name).and_then(|unit| unit.main);
                fx.record(name, main, RecordKind::Stuck);
                let run = main.map_or(0, |run| run.0);
                let message = format!("{name} is stuck: a process survived SIGKILL");
                self.raise(name, AlertKind::Stuck, format!("{run}"), message, fx);
                self.set_state(now, name, State::Failed { hold: Hold::Stuck { then } });
            }
            StopStep::Post { run, deadline, .. } if deadline <= now => {
                fx.mark(Mark::HookTimedOut);
                self.hook_timed_out(name, run, "stop_post", fx);
                fx.push(Effect::KillAll { unit: name.clone() });
                let step = StopStep::Killing { stuck_at: now + limits::KILL_GRACE, hooks: Hooks::Over };
                self.set_state(now, name, State::Deactivating { step, then });
            }
            StopStep::Command { .. }
            | StopStep::Terminating { .. }
            | StopStep::Killing { .. }
            | StopStep::Post { .. } => {}
        }
    }

    fn hook_timed_out(&mut self, name: &UnitName, run: RunId, hook: &'static str, fx: &mut Effects) {
        let timeout = self.units.get(name).map(|unit| unit.spec.stop.timeout).unwrap_or_default();
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        fx.record(name, Some(run), RecordKind::HookFailed { hook, cause: Cause::HookTimeout { timeout_ms } });
    }

    pub(crate) fn on_stop_hook_exited(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        run: RunId,
        exit: Exit,
        fx: &mut Effects,
    ) {
        let Some(unit) = self.units.get(name) else { return };
        let State::Deactivating { step, then } = unit.state.clone() else { return };
        let failed = exit != Exit::Code(0);
        match step {
            StopStep::Command { run: command, .. } if command == run => {
                if failed {
                    let hook = "stop.command";
                    fx.record(name, Some(run), RecordKind::HookFailed { hook, cause: Cause::Exited(exit) });
                }
                self.terminate(now, name, None, then, fx);
            }
            StopStep::Post { index, run: hook_run, .. } if hook_run == run => {
                if failed {
                    let hook = "stop_post";
                    fx.record(name, Some(run), RecordKind::HookFailed { hook, cause: Cause::Exited(exit) });
                }
                self.run_stop_post(now, name, index.saturating_add(1), then, fx);
            }
            StopStep::Command { .. }
            | StopStep::Terminating { .. }
            | StopStep::Killing { .. }
            | StopStep::Post { .. } => {}
        }
    }

    /// All that we started in this terminating unit is gone; what it left behind is asked now.
    pub(crate) fn ask_strays(&mut self, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        if unit.strays && unit.living.is_empty() && unit.is_terminating() {
            fx.mark(Mark::StraysLeft);
            fx.push(Effect::SignalAll { unit: name.clone(), signal: unit.spec.stop.signal });
        }
    }

    /// Nothing of a deactivating (or stuck) unit lives any more: hooks, then the next state.
    pub(crate) fn conclude_if_empty(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        if !unit.is_empty() {
            return;
        }
        match unit.state.clone() {
            State::Deactivating { step, then } => match step {
                StopStep::Terminating { hooks, .. } | StopStep::Killing { hooks, .. } => match hooks {
                    Hooks::Follow => self.run_stop_post(now, name, 0, then, fx),
                    Hooks::Over => self.conclude(now, name, then, fx),
                },
                StopStep::Command { .. } | StopStep::Post { .. } => {}
            },
            State::Failed { hold: Hold::Stuck { then } } => {
                fx.mark(Mark::Unstuck);
                fx.record(name, None, RecordKind::Unstuck);
                self.conclude(now, name, then, fx);
            }
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Active(_)
            | State::Backoff { .. }
            | State::Failed { .. } => {}
        }
    }

    fn run_stop_post(&mut self, now: Monotonic, name: &UnitName, index: u8, then: Then, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        let spec = unit.spec.clone();
        if usize::from(index) < spec.service.stop_post.len() {
            let run = self.spawn(name, Role::StopPost(index), fx);
            let step = StopStep::Post { index, run, deadline: now + spec.stop.timeout };
            return self.set_state(now, name, State::Deactivating { step, then });
        }
        if unit.is_empty() {
            return self.conclude(now, name, then, fx);
        }
        // The last hook left processes behind: they are asked, then killed, like the unit.
        let step = StopStep::Terminating { kill_at: now + spec.stop.timeout, hooks: Hooks::Over };
        self.set_state(now, name, State::Deactivating { step, then });
        self.ask_strays(name, fx);
    }

    /// The unit is empty and its hooks have run.
    fn conclude(&mut self, now: Monotonic, name: &UnitName, then: Then, fx: &mut Effects) {
        let to_stop = self.to_stop(name);
        let Some(unit) = self.units.get_mut(name) else { return };
        let (main, restarting) = (unit.main, unit.restarting);
        let orderly = matches!(then, Then::Again { not_before: None });
        if orderly || to_stop {
            fx.record(name, main, RecordKind::Stopped { exit: unit.exit_of_main() });
        }
        if to_stop {
            unit.durable.retry_at = None;
            unit.restarting = false;
            return self.set_state(now, name, State::Inactive { why: WhyInactive::Stopped });
        }
        match then {
            Then::Again { not_before } => {
                unit.restarting = false;
                self.set_state(now, name, State::Waiting { not_before, blockers: Default::default() });
            }
            Then::Backoff { .. } | Then::Hold(_) | Then::Finished(_) if restarting => {
                unit.durable.retry_at = None;
                unit.restarting = false;
                self.set_waiting(now, name);
            }
            Then::Backoff { retry_at } if retry_at <= now => self.set_waiting(now, name),
            Then::Backoff { retry_at } => self.set_state(now, name, State::Backoff { retry_at }),
            Then::Hold(held) => {
                let failures = unit.durable.failures;
                fx.mark(Mark::GaveUp);
                fx.record(name, main, RecordKind::GaveUp { failures });
                self.set_state(now, name, State::Failed { hold: Hold::GaveUp(held) });
            }
            Then::Finished(exit) => {
                unit.durable.finished = true;
                fx.record(name, main, RecordKind::Finished { exit });
                self.set_state(now, name, State::Inactive { why: WhyInactive::Finished(Some(exit)) });
            }
        }
    }
}
