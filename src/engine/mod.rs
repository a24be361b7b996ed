//! The pure core: one event in, effects out. Every decision of Upright is made here.
//!
//! Refuses: a clock, the operating system, the store, HTTP, logging, randomness of its own.
//! So the same code runs in service, in the simulator and in `upright simulate`.
//!
//! Change spreads in two phases (dinit's rule): an event changes the units it names and
//! queues every unit whose situation may have changed; then the queue is worked off until
//! nothing moves. Never by recursion.

pub mod adopt;
pub mod alert;
pub mod check;
pub mod durable;
pub mod effect;
pub mod event;
mod health;
mod order;
mod outage;
pub mod outbox;
pub mod plan;
mod quarantine;
mod restart;
mod resync;
pub mod safe;
mod said;
mod start;
mod state;
mod stop;
pub mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::base::exit::{Exit, RunId};
use crate::base::limits;
use crate::base::luck::Luck;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::durable::{EngineDurable, UnitDurable};
pub use crate::engine::effect::Effects;
use crate::engine::effect::{AlertKind, Cause, Effect, Mark, RecordKind, Role};
use crate::engine::event::{Event, RequestId, Rest};
use crate::engine::order::Job;
pub use crate::engine::state::Asked;
use crate::engine::state::{Hold, Living, StartStep, State, Then, Unit, WhyInactive};
use crate::unit::spec::UnitSpec;

/// What is the same for all units.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Most units in `activating` at once; at least 1.
    pub start_concurrency: u32,
    /// Of the jitter's luck.
    pub seed: u64,
}

/// A run in the keeper's table when the engine started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    pub unit: UnitName,
    pub run: RunId,
    pub role: Role,
    pub pid: i32,
    pub spawned_at: Monotonic,
    pub executed: bool,
    /// It said that it is ready, and an engine heard it.
    pub said_ready: bool,
    /// An engine asked it to end.
    pub asked: Asked,
    pub ended: Option<(Monotonic, Exit)>,
}

/// A run has ended: the news, with what we knew of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    run: RunId,
    role: Role,
    at: Monotonic,
    exit: Exit,
    asked: Asked,
}

#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    units: BTreeMap<UnitName, Unit>,
    /// The unit of each living run.
    runs: BTreeMap<RunId, UnitName>,
    next_run: u64,
    luck: Luck,
    /// Units that a unit's situation can change the answer for: every edge, both ways.
    neighbours: BTreeMap<UnitName, BTreeSet<UnitName>>,
    /// (unit, the units that are ordered after it)
    followers: BTreeMap<UnitName, BTreeSet<UnitName>>,
    deadlines: BTreeSet<(Monotonic, UnitName)>,
    activating: BTreeSet<UnitName>,
    slot_waiters: BTreeSet<(Monotonic, UnitName)>,
    order_waiters: BTreeSet<UnitName>,
    /// To look at before this step ends.
    queue: BTreeSet<UnitName>,
    /// Changed in this step: save, re-arm, tell the jobs.
    touched: BTreeSet<UnitName>,
    jobs: BTreeMap<RequestId, Job>,
    shutting_down: bool,
    finished: bool,
    /// What of the engine itself must outlive it.
    durable: EngineDurable,
    /// What the store was last told.
    saved: EngineDurable,
}

impl Engine {
    /// Takes one event; says in order what the shell must do. Never blocks, never fails.
    pub fn step(&mut self, now: Monotonic, event: Event, fx: &mut Effects) {
        if let Some(unit) = self.subject(&event) {
            fx.touch(unit);
        }
        match event {
            Event::Tick => self.on_tick(now, fx),
            Event::Configured { units } => self.on_configured(now, units, fx),
            Event::Tuned { start_concurrency } => self.on_tuned(start_concurrency),
            Event::Spawned { run, pid } => self.on_spawned(run, pid, fx),
            Event::Executed { run } => self.on_executed(now, run, fx),
            Event::Exited { run, at, exit, rest } => self.on_exited(now, run, at, exit, rest, fx),
            Event::SpawnShort { run, errno } => self.on_spawn_short(now, run, errno, fx),
            Event::Emptied { unit } => self.on_emptied(now, &unit, fx),
            Event::Probed { run, outcome } => self.on_probed(now, run, outcome, fx),
            Event::Checked { run, outcome } => self.on_checked(now, run, outcome, fx),
            Event::Pinged { run } => self.on_pinged(now, run, fx),
            Event::WatchdogTriggered { run } => self.on_watchdog_triggered(now, run, fx),
            Event::Resynced { run, outcome } => self.on_resynced(now, run, outcome, fx),
            Event::NotifiedReady { run } | Event::LogMatched { run } => self.on_said_ready(now, run, fx),
            Event::Said { run, said } => self.on_said(now, run, said, fx),
            Event::ConfigJudged { errors } => self.on_config_judged(now, errors, fx),
            Event::Ordered { request, order } => self.on_ordered(now, request, order, fx),
        }
        self.finish_step(now, fx);
    }

    /// When `Event::Tick` is next due. Ticking early is harmless.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    fn finish_step(&mut self, now: Monotonic, fx: &mut Effects) {
        while let Some(name) = self.queue.pop_first() {
            fx.touch(&name);
            self.evaluate(now, &name, fx);
            if self.slot_is_free()
                && let Some((_, waiter)) = self.slot_waiters.first()
            {
                self.queue.insert(waiter.clone());
            }
        }
        for name in std::mem::take(&mut self.touched) {
            self.rearm(&name);
            self.tell_state(&name, fx);
            self.tell_jobs(&name, fx);
            let Some(unit) = self.units.get_mut(&name) else { continue };
            if unit.durable != unit.saved {
                unit.saved = unit.durable.clone();
                fx.push(Effect::Save { unit: name.clone(), durable: unit.durable.clone() });
            }
        }
        if self.durable != self.saved {
            self.saved = self.durable.clone();
            fx.push(Effect::SaveEngine(self.durable.clone()));
        }
        self.answer_jobs(fx);
        if self.shutting_down && !self.finished && self.units.values().all(|u| u.at_rest() || u.is_stuck()) {
            self.finished = true;
            fx.push_late(Effect::Finished);
        }
        fx.seal();
    }

    /// Every change of state has its cause in history, from the same step.
    fn tell_state(&mut self, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let (from, to) = (unit.told, view::word(&unit.state));
        if from == to {
            return;
        }
        unit.told = to;
        fx.tell_state(name, unit.main, to, || RecordKind::Changed { from, to, why: view::reason(unit) });
    }

    fn rearm(&mut self, name: &UnitName) {
        let new = self.units.get(name).and_then(Unit::deadline);
        let Some(unit) = self.units.get_mut(name) else { return };
        if unit.armed == new {
            return;
        }
        if let Some(old) = unit.armed {
            self.deadlines.remove(&(old, name.clone()));
        }
        unit.armed = new;
        if let Some(at) = new {
            self.deadlines.insert((at, name.clone()));
        }
    }

    fn on_tick(&mut self, now: Monotonic, fx: &mut Effects) {
        let due: Vec<UnitName> =
            self.deadlines.iter().take_while(|(at, _)| *at <= now).map(|(_, name)| name.clone()).collect();
        for name in due {
            fx.touch(&name);
            self.touched.insert(name.clone());
            self.on_deadline(now, &name, fx);
        }
    }

    fn on_deadline(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        match &unit.state {
            State::Inactive { .. } | State::Failed { .. } => {}
            State::Waiting { blockers, .. } => {
                let blockers = blockers.clone();
                self.set_state(now, name, State::Waiting { not_before: None, blockers });
            }
            State::Backoff { .. } => self.set_waiting(now, name),
            State::Activating(_) => self.on_activating_deadline(now, name, fx),
            State::Active(_) => self.on_active_deadline(now, name, fx),
            State::Deactivating { step, then } => {
                let (step, then) = (step.clone(), then.clone());
                self.on_stop_deadline(now, name, step, then, fx);
            }
        }
    }

    /// Starts a process of the unit; its end will come as `Exited` or `SpawnShort`.
    fn spawn(&mut self, name: &UnitName, role: Role, fx: &mut Effects) -> RunId {
        let run = RunId(self.next_run);
        self.next_run += 1;
        self.runs.insert(run, name.clone());
        if let Some(unit) = self.units.get_mut(name) {
            unit.living.insert(run, Living { role, pid: None, asked: Asked::No });
            if role == Role::Main {
                unit.main = Some(run);
            }
        }
        fx.push(Effect::Spawn { unit: name.clone(), run, role });
        run
    }

    /// The one way into a state: keeps every index in step and queues who may care.
    fn set_state(&mut self, now: Monotonic, name: &UnitName, state: State) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let was_same_word = std::mem::discriminant(&unit.state) == std::mem::discriminant(&state);
        self.slot_waiters.remove(&(unit.since, name.clone()));
        if !was_same_word {
            unit.since = now;
        }
        let activating = matches!(state, State::Activating(_));
        unit.state = state;
        if activating {
            self.activating.insert(name.clone());
        } else {
            self.activating.remove(name);
        }
        self.order_waiters.remove(name);
        self.touched.insert(name.clone());
        self.queue_around(name);
    }

    fn queue_around(&mut self, name: &UnitName) {
        self.queue.insert(name.clone());
        if let Some(neighbours) = self.neighbours.get(name) {
            self.queue.extend(neighbours.iter().cloned());
        }
        self.queue.extend(self.order_waiters.iter().cloned());
    }

    pub(crate) fn slot_is_free(&self) -> bool {
        let cap = usize::try_from(self.settings.start_concurrency.max(1)).unwrap_or(usize::MAX);
        self.activating.len() < cap
    }

    fn set_waiting(&mut self, now: Monotonic, name: &UnitName) {
        self.set_state(now, name, State::Waiting { not_before: None, blockers: Default::default() });
    }

    /// Whether the unit has to go (or stay) down.
    fn to_stop(&self, name: &UnitName) -> bool {
        self.shutting_down || self.units.get(name).is_some_and(|unit| !unit.wanted())
    }

    /// Whether a stop or an operator's restart is due, and waits only for its turn.
    pub(crate) fn stop_is_pending(&self, name: &UnitName) -> bool {
        self.to_stop(name) || self.units.get(name).is_some_and(|unit| unit.restarting)
    }

    /// Looks at a unit whose situation may have changed, and moves it on.
    fn evaluate(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get(name) else { return };
        if self.to_stop(name) {
            return self.evaluate_stop(now, name, fx);
        }
        let restarting = unit.restarting;
        match &unit.state {
            State::Inactive { why: WhyInactive::NotWanted | WhyInactive::Stopped } => {
                self.set_waiting(now, name)
            }
            State::Inactive { why: WhyInactive::Finished(_) }
            | State::Backoff { .. }
            | State::Failed { hold: Hold::GaveUp(_) }
                if restarting =>
            {
                self.set_waiting(now, name)
            }
            State::Inactive { why: WhyInactive::Finished(_) } | State::Backoff { .. } => {}
            State::Waiting { .. } => self.evaluate_start(now, name, fx),
            State::Activating(_) | State::Active(_) if restarting => self.evaluate_stop(now, name, fx),
            State::Activating(_) | State::Deactivating { .. } | State::Failed { .. } => {}
            State::Active(_) => self.evaluate_requirements(now, name, fx),
        }
    }

    fn on_spawned(&mut self, run: RunId, pid: i32, fx: &mut Effects) {
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        self.touched.insert(name.clone());
        let Some(living) = self.units.get_mut(&name).and_then(|unit| unit.living.get_mut(&run)) else {
            return;
        };
        living.pid = Some(pid);
        if living.role == Role::Main {
            fx.record(&name, Some(run), RecordKind::Started { pid });
        }
    }

    fn on_exited(
        &mut self,
        now: Monotonic,
        run: RunId,
        at: Monotonic,
        exit: Exit,
        rest: Rest,
        fx: &mut Effects,
    ) {
        if self.ended_in_quarantine(run, at, exit, rest, fx) {
            return;
        }
        fx.push_late(Effect::Release { run });
        let Some(name) = self.runs.remove(&run) else { return fx.mark(Mark::LateNewsIgnored) };
        self.touched.insert(name.clone());
        let Some(unit) = self.units.get_mut(&name) else { return };
        let Some(living) = unit.living.remove(&run) else { return };
        unit.strays = rest == Rest::Alive;
        let was_terminating = unit.is_terminating();
        if let Exit::NotExecuted { step, errno } = exit {
            fx.mark(Mark::NotExecuted);
            if restart::is_shortage(&unit.spec.limits, step, errno) {
                return self.on_short(now, &name, (run, living.role), errno, fx);
            }
        }
        let ended = Ended { run, role: living.role, at, exit, asked: living.asked };
        match living.role {
            Role::Main => self.on_main_exited(now, &name, ended, fx),
            Role::StartPre(_) | Role::StartPost(_) | Role::ReadyCheck => {
                self.on_start_hook_exited(now, &name, ended, fx)
            }
            Role::StopCommand | Role::StopPost(_) => self.on_stop_hook_exited(now, &name, run, exit, fx),
            Role::ReloadCommand => self.on_reload_exited(&name, run, exit, fx),
            Role::HealthCheck => self.on_check_exited(now, &name, run, exit, fx),
            Role::Resync => self.on_resync_exited(now, &name, run, exit, fx),
        }
        if was_terminating {
            self.ask_strays(&name, fx);
        }
        self.conclude_if_empty(now, &name, fx);
    }

    fn on_emptied(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        if self.emptied_in_quarantine(name) {
            return;
        }
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.strays = false;
        self.touched.insert(name.clone());
        self.conclude_if_empty(now, name, fx);
    }

    fn on_main_exited(&mut self, now: Monotonic, name: &UnitName, ended: Ended, fx: &mut Effects) {
        let Ended { run, at, exit, .. } = ended;
        let asked = ended.asked == Asked::ToEnd;
        let Some(unit) = self.units.get_mut(name) else { return };
        let spec = unit.spec.clone();
        if unit.main != Some(run) {
            if !asked && restart::judge(spec.service.kind, &spec.restart, exit) == restart::Ending::Failure {
                fx.mark(Mark::OlderRunCounted);
                let counted = self.count(name, run, at, Cause::Exited(exit), fx);
                // What followed it was its restart, and that was not committed either.
                if let (Some(_), Some(unit)) = (counted, self.units.get_mut(name)) {
                    unit.durable.restarts += 1;
                }
            }
            return;
        }
        unit.main_exit = Some((run, exit));
        match &unit.state {
            State::Activating(activating) => {
                if matches!(activating.step, StartStep::Settling { .. }) {
                    fx.mark(Mark::SettleBroken);
                }
            }
            State::Active(_) => {}
            State::Deactivating { step, .. } => {
                let step = step.clone();
                let counted = unit.durable.counted_run >= Some(run);
                let failed =
                    restart::judge(spec.service.kind, &spec.restart, exit) == restart::Ending::Failure;
                if failed && !asked && !counted && !self.to_stop(name) {
                    // Only after a crash of ours: its end led to what was found under way
                    // (a stop_post hook, strays), but its failure was not committed.
                    fx.mark(Mark::CountedLate);
                    let then = self.decide(name, run, at, Cause::Exited(exit), fx);
                    self.set_state(now, name, State::Deactivating { step, then });
                }
                return;
            }
            State::Failed { .. } => return,
            State::Inactive { .. } | State::Waiting { .. } | State::Backoff { .. } => {
                let _ = crate::never!(true, "a main process ended in a unit at rest: {name}");
                return;
            }
        }
        if asked || self.stop_is_pending(name) {
            fx.mark(Mark::ExitDuringPendingStop);
            return self.end(now, name, Then::Again { not_before: None }, fx);
        }
        match restart::judge(spec.service.kind, &spec.restart, exit) {
            restart::Ending::Failure => self.fail(now, name, run, at, Cause::Exited(exit), fx),
            restart::Ending::Done => self.on_ready(now, name, fx),
            restart::Ending::Finished => self.end(now, name, Then::Finished(exit), fx),
        }
    }

    /// Counts a failure, once for each run, and records it. Returns the new count.
    fn count(
        &mut self,
        name: &UnitName,
        run: RunId,
        at: Monotonic,
        cause: Cause,
        fx: &mut Effects,
    ) -> Option<u32> {
        let unit = self.units.get_mut(name)?;
        if unit.durable.counted_run >= Some(run) {
            fx.mark(Mark::CountedTwiceRefused);
            return None;
        }
        unit.durable.counted_run = Some(run);
        unit.durable.failures = unit.durable.failures.saturating_add(1);
        let well_until = restart::well_until(&unit.state, run, &cause, at);
        match &mut unit.state {
            // An older run's failure, heard late: the outage is over, the episode is not.
            State::Active(active) if active.main.is_some_and(|main| main > run) => {
                active.reset_at = Some(active.ready_at + unit.spec.restart.reset_after);
            }
            State::Active(_)
            | State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { .. } => {
                unit.durable.down_since.get_or_insert(at);
            }
        }
        let (failures, episode) = (unit.durable.failures, unit.durable.episode);
        let requires = unit.spec.unit.requires.clone();
        let down = |other: &UnitName| !self.units.get(other).is_some_and(Unit::is_ready);
        let blame: Vec<UnitName> = requires.into_iter().filter(down).collect();
        let sentence = cause.to_string();
        let failed = RecordKind::Failed { cause, failures, episode, blame: blame.clone(), well_until };
        fx.record(name, Some(run), failed);
        self.alert_failure(name, run, &sentence, &blame, fx);
        Some(failures)
    }

    /// The unit failed at `at`: counts it, decides what follows, takes down what still lives.
    fn fail(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        run: RunId,
        at: Monotonic,
        cause: Cause,
        fx: &mut Effects,
    ) {
        if self.stop_is_pending(name) {
            // It was to go down anyway: no failure, and no delay for a restart.
            fx.mark(Mark::ExitDuringPendingStop);
            return self.end(now, name, Then::Again { not_before: None }, fx);
        }
        let then = self.decide(name, run, at, cause, fx);
        self.end_of(now, name, Some(run), then, fx);
    }

    /// Counts a failure and says what follows from it.
    fn decide(&mut self, name: &UnitName, run: RunId, at: Monotonic, cause: Cause, fx: &mut Effects) -> Then {
        let sentence = cause.to_string();
        let failures = self.count(name, run, at, cause, fx);
        let Some(unit) = self.units.get_mut(name) else { return Then::Backoff { retry_at: at } };
        let Some(failures) = failures else {
            return unit.then_by_row(at); // counted before a crash of ours
        };
        unit.last = Some(sentence.clone());
        let spec = unit.spec.clone();
        if restart::gives_up(&spec.restart, failures) {
            let held = format!("gave up after {failures} failure{}: {sentence}", plural(failures));
            unit.durable.held = Some(held.clone());
            unit.durable.retry_at = None;
            self.raise(name, AlertKind::GaveUp, format!("{failures}"), format!("{name} {held}"), fx);
            self.fail_jobs(name, &held, fx);
            return Then::Hold(held);
        }
        let wait = restart::delay(&spec.restart, failures, &mut self.luck);
        let retry_at = (at + wait).max(unit.begun + limits::SPAWN_GAP_MIN);
        unit.durable.retry_at = Some(retry_at);
        let delay_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        fx.record(name, Some(run), RecordKind::RestartScheduled { at: retry_at, delay_ms, failures });
        let next = crate::base::duration::Pretty(wait);
        self.fail_jobs(name, &format!("{sentence}; next try in {next}"), fx);
        Then::Backoff { retry_at }
    }

    fn end_episode(&mut self, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        if unit.durable.failures == 0 {
            return;
        }
        let failures = std::mem::take(&mut unit.durable.failures);
        self.touched.insert(name.clone());
        fx.mark(Mark::EpisodeEnded);
        fx.record(name, None, RecordKind::EpisodeEnded { failures });
        self.alert_recovery(name, failures, fx);
        if let Some(unit) = self.units.get_mut(name) {
            unit.durable.episode += 1;
        }
    }

    /// The unit that this living run belongs to.
    pub fn unit_of(&self, run: RunId) -> Option<&UnitName> {
        self.runs.get(&run)
    }

    /// What of the unit would outlive the engine now.
    pub fn durable_of(&self, unit: &UnitName) -> Option<&UnitDurable> {
        self.units.get(unit).map(|unit| &unit.durable)
    }

    /// The unit whose living main process this is, with the step of its start, if it is starting.
    fn starting(&self, name: &UnitName) -> Option<&StartStep> {
        match &self.units.get(name)?.state {
            State::Activating(activating) => Some(&activating.step),
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Active(_)
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { .. } => None,
        }
    }

    /// An engine with these units and nothing running; `adopt` fills the rest in.
    fn empty(settings: Settings, next_run: RunId) -> Engine {
        Engine {
            settings,
            units: BTreeMap::new(),
            runs: BTreeMap::new(),
            next_run: next_run.0,
            luck: Luck::new(settings.seed),
            neighbours: BTreeMap::new(),
            followers: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            activating: BTreeSet::new(),
            slot_waiters: BTreeSet::new(),
            order_waiters: BTreeSet::new(),
            queue: BTreeSet::new(),
            touched: BTreeSet::new(),
            jobs: BTreeMap::new(),
            shutting_down: false,
            finished: false,
            durable: EngineDurable::default(),
            saved: EngineDurable::default(),
        }
    }

    fn insert_unit(&mut self, spec: Arc<UnitSpec>, durable: UnitDurable, now: Monotonic) {
        let name = spec.name.clone();
        self.units.insert(name.clone(), Unit::new(spec, durable, now));
        self.touched.insert(name.clone());
        self.queue.insert(name);
    }
}

pub(crate) fn plural(count: u32) -> &'static str {
    if count == 1 { "" } else { "s" }
}
