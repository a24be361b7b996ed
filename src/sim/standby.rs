//! The world of `timeline`: nothing goes wrong in it but what was asked for, and everything that
//! is not a wait takes no time.
//!
//! Refuses: faults of its own (`sim::world` has those).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::duration::Pretty;
use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::adopt::{Boot, Inheritance};
use crate::engine::durable::EngineDurable;
use crate::engine::effect::{Alert, Effect, RecordKind, Role};
use crate::engine::event::{Event, Rest};
use crate::engine::view::StateWord;
use crate::engine::{Effects, Engine, Settings};
use crate::sim::timeline::{About, End, How, Plan, Refused, STEPS_MAX, Span, Step, What, failing_exit};
use crate::unit::spec::{HealthCheck, ReadyWhen, ServiceType, UnitSpec};

/// The world begins some time after boot: an engine must not take zero for "never".
const BEGIN: Monotonic = Monotonic::from_ns(1_000_000_000_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Jitter {
    Least,
    Most,
}

/// A fake process.
struct Process {
    unit: UnitName,
    role: Role,
    /// Only SIGKILL ends it.
    stubborn: bool,
}

pub(crate) struct World<'a> {
    plan: &'a Plan<'a>,
    spec: Arc<UnitSpec>,
    engine: Option<Engine>,
    now: Monotonic,
    coming: BTreeMap<Monotonic, VecDeque<Event>>,
    processes: BTreeMap<RunId, Process>,
    failures_left: u32,
    /// The newest run that gets ready, and fails.
    doomed: Option<RunId>,
    /// This run answers no check from then on.
    hung: Option<(RunId, Monotonic)>,
    steps: Vec<Step>,
    restarts: u32,
    alerts: BTreeMap<About, u32>,
}

impl<'a> World<'a> {
    pub(crate) fn new(plan: &'a Plan<'a>, spec: &UnitSpec, jitter: Jitter) -> World<'a> {
        let mut spec = spec.clone();
        spec.unit.enabled = true; // somebody started it
        if jitter == Jitter::Most {
            // What `engine::restart::delay` draws at most.
            let percent = u64::from(spec.restart.jitter_percent);
            for delay in &mut spec.restart.delays {
                let ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
                let spread = u128::from(ns) * u128::from(percent) / 100;
                *delay += Duration::from_nanos(u64::try_from(spread).unwrap_or(u64::MAX));
            }
        }
        spec.restart.jitter_percent = 0;
        if plan.how != How::Hang {
            spec.health = None; // every check would be good, which changes nothing
        }
        World {
            plan,
            spec: Arc::new(spec),
            engine: None,
            now: BEGIN,
            coming: BTreeMap::new(),
            processes: BTreeMap::new(),
            failures_left: plan.failures,
            doomed: None,
            hung: None,
            steps: Vec::new(),
            restarts: 0,
            alerts: BTreeMap::new(),
        }
    }

    /// The unit, what it requires (ready at once), and the others, at rest, so that an alert
    /// names those it would name.
    fn units(&self) -> Vec<Arc<UnitSpec>> {
        let mut units: BTreeMap<UnitName, Arc<UnitSpec>> = BTreeMap::new();
        let needed: BTreeSet<&UnitName> = self.spec.unit.requires.iter().collect();
        let stand_in = |name: &UnitName| UnitSpec::minimal(name.clone(), vec!["stand-in".to_string()]);
        for other in self.plan.units.iter().filter(|other| !needed.contains(&other.name)) {
            let mut quiet = stand_in(&other.name);
            quiet.unit.requires = other.unit.requires.clone();
            quiet.dependency = other.dependency.clone();
            quiet.unit.enabled = false;
            units.insert(other.name.clone(), Arc::new(quiet));
        }
        for name in needed {
            units.insert(name.clone(), Arc::new(stand_in(name)));
        }
        units.insert(self.spec.name.clone(), Arc::clone(&self.spec));
        units.into_values().collect()
    }

    /// # Errors
    /// More steps than `STEPS_MAX`.
    pub(crate) fn play(mut self) -> Result<(Vec<Step>, End), Refused> {
        let inherited = Inheritance {
            boot: Boot::Fresh,
            units: self.units(),
            durable: BTreeMap::new(),
            engine: EngineDurable::default(),
            deaths: Vec::new(),
            adopted: Vec::new(),
            populated: BTreeSet::new(),
            next_run: RunId(1),
        };
        let mut fx = Effects::default();
        let settings = Settings { start_concurrency: 32, seed: 1 };
        self.engine = Some(Engine::new(self.now, settings, inherited, &mut fx));
        self.perform(fx);
        for _ in 0..STEPS_MAX {
            if let Some(end) = self.resting_place() {
                return Ok((self.steps, end));
            }
            let Some(event) = self.next_event() else { break };
            let mut fx = Effects::default();
            if let Some(engine) = &mut self.engine {
                engine.step(self.now, event, &mut fx);
            }
            self.perform(fx);
        }
        Err(Refused::TooLong)
    }

    /// What has to come, or a tick when the engine has a deadline before that.
    fn next_event(&mut self) -> Option<Event> {
        let deadline = self.engine.as_ref().and_then(Engine::next_deadline);
        let coming = self.coming.first_key_value().map(|(at, _)| *at);
        match (coming, deadline) {
            (Some(at), due) if due.is_none_or(|due| at <= due) => {
                self.now = self.now.max(at);
                let mut entry = self.coming.first_entry()?;
                let event = entry.get_mut().pop_front();
                if entry.get().is_empty() {
                    entry.remove();
                }
                if let Some(Event::Exited { run, .. }) = &event {
                    self.processes.remove(run);
                }
                event
            }
            (_, Some(due)) => {
                self.now = self.now.max(due);
                Some(Event::Tick)
            }
            (_, None) => None,
        }
    }

    /// The state that it does not leave by itself any more.
    fn resting_place(&self) -> Option<End> {
        let view = self.engine.as_ref()?.view_of(&self.spec.name)?;
        let due_now = self.coming.first_key_value().is_some_and(|(at, _)| *at <= self.now);
        match view.state {
            StateWord::Failed => Some(End::Failed),
            StateWord::Inactive if view.run.is_some() && !due_now => Some(End::Inactive),
            StateWord::Active if self.failures_left == 0 && view.failures == 0 && !self.is_doomed() => {
                Some(End::Active)
            }
            StateWord::Active
            | StateWord::Inactive
            | StateWord::Waiting
            | StateWord::Activating
            | StateWord::Degraded
            | StateWord::Backoff
            | StateWord::Deactivating => None,
        }
    }

    /// The run that is active is to fail yet.
    fn is_doomed(&self) -> bool {
        self.doomed.is_some_and(|run| self.processes.contains_key(&run))
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.coming.entry(self.now + wait).or_default().push_back(event);
    }

    fn perform(&mut self, mut fx: Effects) {
        let effects: Vec<Effect> = fx.drain().collect();
        for effect in effects {
            match effect {
                Effect::Spawn { unit, run, role } => self.spawn(unit, run, role),
                Effect::Signal { signal: Signal::CONT, .. } => {}
                // Nobody orders signals here: it is the end of a failed run.
                Effect::End { run, signal } | Effect::Signal { run, signal } => self.end(run, signal),
                Effect::KillAll { unit } => {
                    let runs: Vec<RunId> = self
                        .processes
                        .iter()
                        .filter(|(_, process)| process.unit == unit)
                        .map(|(run, _)| *run)
                        .collect();
                    for run in runs {
                        self.end(run, Signal::KILL);
                    }
                }
                Effect::Probe { run, .. } if !self.is_late(run) => {
                    self.after(Duration::ZERO, Event::Probed { run, outcome: ProbeOutcome::Ok });
                }
                Effect::Check { run, .. } => self.answer_check(run),
                Effect::WatchLog { run, .. } if !self.is_late(run) => {
                    self.after(Duration::ZERO, Event::LogMatched { run });
                }
                Effect::Record(record) if record.unit.as_ref() == Some(&self.spec.name) => {
                    self.note(record.run, record.kind);
                }
                Effect::Alert(Alert { unit, kind, message, affected, .. })
                    if unit.as_ref() == Some(&self.spec.name) =>
                {
                    let about = About::of(kind);
                    let nth = self.alerts.entry(about).or_default();
                    *nth += 1;
                    let what = What::Alert { about, nth: *nth, message, affected };
                    self.steps.push(Step { at: Span::of(self.now.since(BEGIN)), what });
                }
                // Nothing is reloaded and nothing lost here; nobody ordered anything.
                Effect::Probe { .. }
                | Effect::WatchLog { .. }
                | Effect::Record(_)
                | Effect::SignalAll { .. }
                | Effect::Release { .. }
                | Effect::Resync { .. }
                | Effect::Alert(_)
                | Effect::Save { .. }
                | Effect::SaveEngine(_)
                | Effect::Forget { .. }
                | Effect::Reply { .. }
                | Effect::Finished => {}
            }
        }
    }

    /// A main run of the unit, to which the question is.
    fn is_asked_about(&self, run: RunId) -> bool {
        self.processes
            .get(&run)
            .is_some_and(|process| process.unit == self.spec.name && process.role == Role::Main)
    }

    /// It is one of those that never get ready.
    fn is_late(&self, run: RunId) -> bool {
        self.plan.how == How::NeverReady && self.failures_left > 0 && self.is_asked_about(run)
    }

    fn spawn(&mut self, unit: UnitName, run: RunId, role: Role) {
        let ours = unit == self.spec.name;
        let stubborn = ours && role == Role::Main && self.plan.how == How::Hang && self.failures_left > 0;
        self.processes.insert(run, Process { unit, role, stubborn });
        // Pids are shown nowhere.
        self.after(Duration::ZERO, Event::Spawned { run, pid: 1_000 });
        self.after(Duration::ZERO, Event::Executed { run });
        if !ours {
            return;
        }
        match role {
            Role::Main => self.execute(run),
            Role::ReadyCheck if self.late_main() => {}
            Role::HealthCheck if self.is_hung() => {}
            Role::ReadyCheck
            | Role::HealthCheck
            | Role::StartPre(_)
            | Role::StartPost(_)
            | Role::StopPost(_)
            | Role::StopCommand
            | Role::ReloadCommand
            | Role::Resync => self.exits(run, Duration::ZERO, Exit::Code(0)),
        }
    }

    fn late_main(&self) -> bool {
        self.processes.keys().any(|run| self.is_late(*run))
    }

    /// How the main process goes on after its execve.
    fn execute(&mut self, run: RunId) {
        if self.is_late(run) {
            return;
        }
        if self.spec.service.kind == ServiceType::Oneshot {
            if self.failures_left > 0 {
                self.failures_left -= 1;
                return self.exits(run, self.plan.lives, failing_exit(&self.spec));
            }
            return self.exits(run, Duration::ZERO, Exit::Code(self.success_code()));
        }
        if matches!(self.spec.readiness.when, ReadyWhen::Notify | ReadyWhen::NotifyFd(_)) {
            self.after(Duration::ZERO, Event::NotifiedReady { run });
        }
    }

    fn success_code(&self) -> u8 {
        self.spec.restart.success_exit_status.first().copied().unwrap_or(0)
    }

    fn exits(&mut self, run: RunId, wait: Duration, exit: Exit) {
        let at = self.now + wait;
        self.after(wait, Event::Exited { run, at, exit, rest: Rest::Empty });
    }

    fn end(&mut self, run: RunId, signal: Signal) {
        let dies = self.processes.get(&run).is_some_and(|p| !p.stubborn || signal == Signal::KILL);
        if dies {
            self.exits(run, Duration::ZERO, Exit::Signal { signal, core: false });
        }
    }

    /// The unit is ready: a run that is to fail begins its last wait.
    fn on_active(&mut self, run: RunId) {
        let doomed = self.failures_left > 0;
        let every = match self.spec.health.as_ref().map(|health| &health.check) {
            Some(HealthCheck::Watchdog(every)) => Some(*every),
            Some(HealthCheck::Net(_) | HealthCheck::Exec(_)) | None => None,
        };
        if doomed {
            self.doomed = Some(run);
            match self.plan.how {
                How::Exit => {
                    self.failures_left -= 1;
                    self.exits(run, self.plan.lives, failing_exit(&self.spec));
                }
                How::Hang => {
                    self.failures_left -= 1;
                    self.hung = Some((run, self.now + self.plan.lives));
                }
                How::NeverReady => {}
            }
        }
        // The service feeds its watchdog twice as often as it must, while it lives.
        if let Some(every) = every {
            let feeds = if doomed { self.plan.lives } else { self.spec.restart.reset_after };
            let mut at = every / 2;
            while !at.is_zero() && at < feeds {
                self.after(at, Event::Pinged { run });
                at += every / 2;
            }
        }
    }

    fn is_hung(&self) -> bool {
        self.hung.is_some_and(|(run, from)| from <= self.now && self.processes.contains_key(&run))
    }

    fn answer_check(&mut self, run: RunId) {
        let timeout = self.spec.health.as_ref().map(|health| health.timeout).unwrap_or_default();
        if self.is_hung() {
            let why = format!("no answer within {}", Pretty(timeout));
            self.after(timeout, Event::Checked { run, outcome: ProbeOutcome::Failed(why) });
        } else {
            self.after(Duration::ZERO, Event::Checked { run, outcome: ProbeOutcome::Ok });
        }
    }

    fn note(&mut self, run: Option<RunId>, kind: RecordKind) {
        if let (RecordKind::Active { .. }, Some(run)) = (&kind, run) {
            self.on_active(run);
        }
        if let RecordKind::RestartScheduled { delay_ms, .. } = kind {
            return self.attach_restart(Span::of(Duration::from_millis(delay_ms)));
        }
        let at = Span::of(self.now.since(BEGIN));
        if let Some(what) = self.what(kind) {
            self.steps.push(Step { at, what });
        }
    }

    /// The restart belongs to the failure that it follows.
    fn attach_restart(&mut self, wait: Span) {
        for step in self.steps.iter_mut().rev() {
            if let What::Failed { restart_in, .. } = &mut step.what {
                *restart_in = Some(wait);
                return;
            }
        }
    }

    fn what(&mut self, kind: RecordKind) -> Option<What> {
        let what = match kind {
            RecordKind::Started { .. } => {
                self.restarts += 1;
                What::Started { restart: self.restarts - 1 }
            }
            RecordKind::Active { .. } => What::Ready,
            RecordKind::HealthChanged { healthy: false, .. } => What::Unhealthy,
            RecordKind::Failed { cause, failures, .. } => {
                if self.plan.how == How::NeverReady {
                    self.failures_left = self.failures_left.saturating_sub(1);
                }
                What::Failed { failures, cause: cause.to_string(), restart_in: None }
            }
            RecordKind::RetryExhausted { attempts, .. } => What::RetryExhausted { attempts },
            RecordKind::Killed => What::Killed,
            RecordKind::Recovered { down_ms, .. } => {
                What::Recovered { down: Span::of(Duration::from_millis(down_ms)) }
            }
            RecordKind::EpisodeEnded { failures } => {
                self.alerts.clear();
                What::EpisodeEnded { failures }
            }
            RecordKind::GaveUp { failures } => What::GaveUp { failures },
            RecordKind::Finished { .. } => What::Finished,
            RecordKind::Ordered { .. }
            | RecordKind::Waiting { .. }
            | RecordKind::AlertRaised { .. }
            | RecordKind::RestartScheduled { .. }
            | RecordKind::Restarted { .. }
            | RecordKind::Stopping
            | RecordKind::Stopped { .. }
            | RecordKind::Stuck
            | RecordKind::Unstuck
            | RecordKind::Reloaded
            | RecordKind::HookFailed { .. }
            | RecordKind::Shortage { .. }
            | RecordKind::Adopted { .. }
            | RecordKind::Removed
            | RecordKind::Degraded { .. }
            | RecordKind::Restored
            | RecordKind::Changed { .. }
            | RecordKind::Reconfigured { .. }
            | RecordKind::HealthChanged { healthy: true, .. }
            | RecordKind::ResyncStarted { .. }
            | RecordKind::Resynced { .. }
            | RecordKind::EngineDied { .. }
            | RecordKind::SafeModeLeft
            | RecordKind::Quarantined { .. }
            | RecordKind::QuarantineLeft
            | RecordKind::ResyncFailed { .. } => return None,
        };
        Some(what)
    }
}
