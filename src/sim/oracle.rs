//! The promises on the whole trace, judged against the truth of the fake world. The numbers
//! are those of the list of invariants that the tests print.
//!
//! Refuses: asking the engine what it thinks, where the world knows better.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::{Cause, Effect, Outcome, Record, RecordKind, Role};
use crate::engine::event::{Order, RequestId};
use crate::engine::view::StateWord;
use crate::sim::audit::LastStep;
use crate::sim::books::Books;
use crate::sim::poison::Quarantine;
use crate::sim::promises;
use crate::sim::world::World;
use crate::unit::spec::{RestartPolicy, ServiceType, UnitSpec};

/// What went wrong, when, and which promise it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub promise: String,
    pub unit: Option<UnitName>,
    pub detail: String,
}

pub(crate) type Verdict = Result<(), Broken>;

pub(crate) fn broken(promise: &str, unit: &UnitName, detail: impl Into<String>) -> Verdict {
    Err(Broken { promise: promise.to_string(), unit: Some(unit.clone()), detail: detail.into() })
}

#[derive(Debug, Default)]
pub struct Oracle {
    pub(crate) specs: BTreeMap<UnitName, Arc<UnitSpec>>,
    /// Units that have a file now.
    pub(crate) files: BTreeSet<UnitName>,
    pub(crate) cap: u32,
    /// Earliest next spawn: failure plus delay. Lifted by an operator.
    pub(super) not_before: BTreeMap<UnitName, (Monotonic, RunId)>,
    /// When the unit was first asked to end, since it last came to rest.
    /// With the grace that was in force then.
    asked_at: BTreeMap<UnitName, (Monotonic, Duration)>,
    pub(crate) killed: BTreeSet<UnitName>,
    /// Stops whose answer was given.
    down: BTreeSet<UnitName>,
    /// The newest order that starts the unit.
    lifted: BTreeMap<UnitName, RequestId>,
    pub(crate) open_requests: BTreeMap<RequestId, Order>,
    pub(crate) books: Books,
    starts: BTreeMap<UnitName, VecDeque<Monotonic>>,
    /// Main runs that ended though nobody had asked them to: a failure is owed.
    pub(crate) owed: BTreeMap<RunId, UnitName>,
    /// The newest main run of each unit that this engine has spawned.
    newest: BTreeMap<UnitName, RunId>,
    /// Runs that an operator's stop or restart is about; it may wait long for its turn. An
    /// engine's death ends that wait: a restart is no row.
    pub(crate) ordered: BTreeSet<RunId>,
    /// Runs that a stop command was started for: asked to end, by a way that the keeper
    /// does not see as such. The next engine sees the command in the table.
    pub(crate) commanded: BTreeSet<RunId>,
    /// Units that were starting after the last step of this engine.
    starting: Option<usize>,
    /// Net checks under way.
    pub(crate) checks: BTreeMap<RunId, UnitName>,
    /// Acknowledged, and no requirement lost since.
    pub(crate) resynced: BTreeSet<UnitName>,
    /// When a process of the unit last could not be forked.
    pub(crate) short_at: BTreeMap<UnitName, Monotonic>,
    /// When the engine that lives now took over.
    pub(crate) took_over_at: Monotonic,
    pub(crate) last: LastStep,
    /// Gave up, and no operator came since.
    pub(super) parked: BTreeSet<UnitName>,
    pub(crate) quarantine: Quarantine,
    /// The files have changed once: what is in force is what the engine goes by.
    pub(crate) reconfigured: bool,
    pub shutting_down: bool,
    pub finished: bool,
}

impl Oracle {
    pub fn new(specs: &[Arc<UnitSpec>], cap: u32) -> Oracle {
        let mut oracle = Oracle { cap, ..Oracle::default() };
        oracle.reconfigure(Monotonic::ZERO, specs);
        oracle.reconfigured = false;
        oracle
    }

    pub fn reconfigure(&mut self, now: Monotonic, specs: &[Arc<UnitSpec>]) {
        // A running unit goes by its old file: the longer delay, the older edges stay in force.
        self.files = specs.iter().map(|spec| spec.name.clone()).collect();
        for spec in specs {
            let known = self.specs.insert(spec.name.clone(), spec.clone());
            // A changed command is another program: what held of the old one is over.
            if known.as_ref().is_some_and(|known| known.alert != spec.alert) {
                self.books.forget_due(&spec.name);
            }
            if known.is_some_and(|known| known != *spec) {
                self.not_before.remove(&spec.name);
                self.parked.remove(&spec.name);
                self.forgive_starts(&spec.name);
                self.short_at.insert(spec.name.clone(), now); // its checks begin anew
            }
        }
        self.reconfigured = true;
    }

    /// What is in force: a step may have brought a changed file in.
    pub(crate) fn sync(&mut self, engine: &Engine) {
        if self.reconfigured {
            self.specs.extend(engine.specs().map(|spec| (spec.name.clone(), spec.clone())));
        }
    }

    /// Before an effect is performed.
    pub fn before(&mut self, world: &World, engine: &Engine, effect: &Effect) -> Verdict {
        self.audit_quarantine(effect)?;
        match effect {
            Effect::Spawn { unit, run, role } => self.on_spawn(world, engine, unit, *run, *role),
            Effect::Signal { run, .. } | Effect::End { run, .. } => {
                let Some(process) = world.table.get(run) else {
                    // It may not even have been forked; that news is on its way.
                    if let Some(unit) = engine.unit_of(*run) {
                        self.asks(world.now, unit);
                    }
                    let known = run.0 <= world.run_max;
                    let unit = UnitName::parse("unknown").map_err(|_| never_named())?;
                    return if known { Ok(()) } else { broken(promises::I22, &unit, format!("run {run}")) };
                };
                // A failed run is signalled without the keeper being told that its end is wanted.
                let going = engine.view_of(&process.unit).map(|view| view.state);
                if matches!(effect, Effect::End { .. }) || going == Some(StateWord::Deactivating) {
                    self.asks(world.now, &process.unit);
                }
                Ok(())
            }
            Effect::SignalAll { unit, .. } => {
                self.asks(world.now, unit);
                Ok(())
            }
            Effect::KillAll { unit } => self.on_kill(world, unit),
            Effect::Record(record) => self.on_record(world, record),
            Effect::Check { unit, run } => {
                if let Some(other) = self.checks.insert(*run, unit.clone()) {
                    return broken(promises::I25, &other, format!("run {run}"));
                }
                Ok(())
            }
            Effect::Resync { unit, .. } => self.on_resync(world, engine, unit),
            Effect::Release { .. }
            | Effect::Alert(_)
            | Effect::Probe { .. }
            | Effect::WatchLog { .. }
            | Effect::Save { .. }
            | Effect::SaveEngine(_)
            | Effect::Forget { .. }
            | Effect::Reply { .. }
            | Effect::Finished => Ok(()),
        }
    }

    fn on_spawn(
        &mut self,
        world: &World,
        engine: &Engine,
        unit: &UnitName,
        run: RunId,
        role: Role,
    ) -> Verdict {
        if role == Role::Resync {
            self.on_resync(world, engine, unit)?;
        }
        if role == Role::HealthCheck
            && world.lives_in(unit).any(|(_, p)| p.role == Role::HealthCheck && !p.asked)
        {
            return broken(promises::I25, unit, format!("run {run}"));
        }
        let first = matches!(role, Role::Main | Role::StartPre(0));
        if matches!(role, Role::StopPost(_)) {
            self.asks(world.now, unit);
        }
        if role == Role::StopCommand {
            let mains = world.lives_in(unit).filter(|(_, process)| process.role == Role::Main);
            self.commanded.extend(mains.map(|(run, _)| *run));
        }
        if role == Role::Main {
            self.newest.insert(unit.clone(), run);
            if let Some((other, _)) = world.lives_in(unit).find(|(_, process)| process.role == Role::Main) {
                return broken(promises::I1, unit, format!("run {run} beside run {other}"));
            }
            if self.shutting_down && self.finished {
                return broken(promises::I35, unit, "spawned after the end");
            }
        }
        if !first {
            return Ok(());
        }
        let Some(spec) = self.specs.get(unit).cloned() else { return Ok(()) };
        let continues = role == Role::Main && !spec.service.start_pre.is_empty();
        if continues {
            return Ok(());
        }
        if !world.is_empty(unit) {
            return broken(promises::I2, unit, format!("run {run}"));
        }
        if self.shutting_down {
            return broken(promises::I35, unit, "spawned during a shutdown");
        }
        self.asked_at.remove(unit);
        self.killed.remove(unit);
        self.on_attempt(world, engine, unit, &spec)
    }

    /// A first process of a new attempt: may it be?
    fn on_attempt(&mut self, world: &World, engine: &Engine, unit: &UnitName, spec: &UnitSpec) -> Verdict {
        for other in &spec.unit.requires {
            let ready = engine.view_of(other).is_some_and(|view| view.ready);
            if !ready || self.truly_down(world, other) {
                return broken(promises::I5, unit, format!("{other} is not ready"));
            }
        }
        for other in &spec.unit.conflicts {
            if !world.is_empty(other) {
                return broken(promises::I5B, unit, other.to_string());
            }
        }
        if let Some((at, _)) = self.not_before.remove(unit)
            && world.now < at
        {
            let early = at.since(world.now);
            return broken(promises::I9, unit, format!("{early:?} early"));
        }
        if self.parked.contains(unit) {
            return broken(promises::I40, unit, "started after it gave up");
        }
        if self.down.contains(unit) {
            return broken(promises::I20, unit, "spawned after an answered stop");
        }
        self.on_start_rate(world.now, unit)
    }

    /// Nothing of the unit lives and it is no finished oneshot.
    pub(crate) fn truly_down(&self, world: &World, unit: &UnitName) -> bool {
        let oneshot = self.specs.get(unit).is_some_and(|spec| spec.service.kind == ServiceType::Oneshot);
        // News travels up to some milliseconds: a death just now is not known yet.
        let recent = world
            .table
            .values()
            .filter(|process| process.unit == *unit)
            .filter_map(|process| process.ended)
            .any(|(at, _)| world.awake_since(at) < Duration::from_millis(1_200));
        !oneshot && world.lives_in(unit).next().is_none() && !recent
    }

    fn on_start_rate(&mut self, now: Monotonic, unit: &UnitName) -> Verdict {
        let slow = self.is_slow(unit);
        let starts = self.starts.entry(unit.clone()).or_default();
        starts.push_back(now);
        while starts.front().is_some_and(|at| now.since(*at) > Duration::from_secs(60)) {
            starts.pop_front();
        }
        if slow && starts.len() > 6 {
            return broken(promises::I33, unit, format!("{} in 60 s", starts.len()));
        }
        Ok(())
    }

    /// Asked to end for the first time since it last came to rest.
    fn asks(&mut self, now: Monotonic, unit: &UnitName) {
        let grace = self.specs.get(unit).map_or(Duration::ZERO, |spec| spec.stop.timeout);
        self.asked_at.entry(unit.clone()).or_insert((now, grace));
    }

    fn on_kill(&mut self, world: &World, unit: &UnitName) -> Verdict {
        self.killed.insert(unit.clone());
        // An engine that takes over goes by the file as it is then.
        let newest = self.specs.get(unit).map_or(Duration::MAX, |spec| spec.stop.timeout);
        match self.asked_at.get(unit) {
            Some((asked, grace)) if world.now >= *asked + newest.min(*grace) => Ok(()),
            Some((asked, _)) => broken(promises::I21, unit, format!("after {:?}", world.now.since(*asked))),
            None => broken(promises::I21, unit, "never asked"),
        }
    }

    fn on_record(&mut self, world: &World, record: &Record) -> Verdict {
        let Some(unit) = &record.unit else { return Ok(()) };
        match &record.kind {
            RecordKind::Failed { cause, .. } => {
                self.on_failed(world, unit, record.run.unwrap_or(RunId(0)), cause)
            }
            RecordKind::RestartScheduled { failures, .. } => {
                self.on_scheduled(world, unit, record.run.unwrap_or(RunId(0)), *failures);
                Ok(())
            }
            RecordKind::GaveUp { .. } => self.on_gave_up(unit),
            RecordKind::Shortage { .. } => {
                self.short_at.insert(unit.clone(), world.now);
                if let Some(starts) = self.starts.get_mut(unit) {
                    starts.pop_back(); // it never ran
                }
                Ok(())
            }
            RecordKind::Ordered { verb: "stop" | "restart" } => {
                self.ordered.extend(self.newest.get(unit));
                Ok(())
            }
            RecordKind::Stuck if !self.killed.contains(unit) => broken(promises::I21B, unit, ""),
            RecordKind::Stopping if self.shutting_down => self.on_stopping(world, unit),
            RecordKind::Active { .. } => self.on_active(world, unit, record.run),
            RecordKind::Resynced { .. } => {
                self.resynced.insert(unit.clone());
                Ok(())
            }
            RecordKind::QuarantineLeft => self.on_quarantine_left(world.now, unit),
            RecordKind::Degraded { .. } | RecordKind::Started { .. } => {
                self.resynced.remove(unit);
                Ok(())
            }
            RecordKind::HealthChanged { .. }
            | RecordKind::RetryExhausted { .. }
            | RecordKind::ResyncStarted { .. }
            | RecordKind::ResyncFailed { .. }
            | RecordKind::AlertRaised { .. }
            | RecordKind::Changed { .. }
            | RecordKind::EngineDied { .. }
            | RecordKind::SafeModeLeft
            | RecordKind::Quarantined { .. }
            | RecordKind::Reconfigured { .. }
            | RecordKind::Recovered { .. }
            | RecordKind::Stuck
            | RecordKind::Stopping
            | RecordKind::Ordered { .. }
            | RecordKind::Waiting { .. }
            | RecordKind::Restarted { .. }
            | RecordKind::EpisodeEnded { .. }
            | RecordKind::Killed
            | RecordKind::Stopped { .. }
            | RecordKind::Finished { .. }
            | RecordKind::Unstuck
            | RecordKind::Reloaded
            | RecordKind::HookFailed { .. }
            | RecordKind::Adopted { .. }
            | RecordKind::Restored => Ok(()),
            RecordKind::Removed => {
                self.parked.remove(unit);
                Ok(())
            }
        }
    }

    fn on_failed(&self, world: &World, unit: &UnitName, run: RunId, cause: &Cause) -> Verdict {
        self.on_verdict(world, unit, run, cause)?;
        let process = world.table.get(&run);
        if process.is_some_and(|p| p.said_ready) && matches!(cause, Cause::NotReady { .. }) {
            return broken(promises::I49, unit, format!("run {run}"));
        }
        if process.is_some_and(|p| p.lives()) && matches!(cause, Cause::Exited(_)) {
            return broken(promises::I12B, unit, format!("run {run}: {cause}"));
        }
        Ok(())
    }

    fn on_scheduled(&mut self, world: &World, unit: &UnitName, run: RunId, failures: u32) {
        let Some(spec) = self.specs.get(unit) else { return };
        let last = spec.restart.delays.len() - 1;
        let index = usize::try_from(failures.saturating_sub(1)).unwrap_or(last).min(last);
        let ended = world.table.get(&run).and_then(|process| process.ended);
        let failed_at = ended.map_or(world.now, |(at, _)| at);
        if self.quarantine.lifted.contains(unit) {
            return; // the operator's order is older than this record, and may ask for a start
        }
        self.not_before.insert(unit.clone(), (failed_at + spec.restart.delays[index], run));
    }

    /// I7: in a shutdown a unit is asked only when none that follows it lives.
    fn on_stopping(&self, world: &World, unit: &UnitName) -> Verdict {
        let follows = |other: &Arc<UnitSpec>| self.follows(&other.name, unit);
        let alive = |other: &&Arc<UnitSpec>| {
            world.lives_in(&other.name).any(|(_, p)| !p.asked || p.nature.kill.is_zero())
                && !world.is_empty(&other.name)
        };
        match self.specs.values().filter(|other| follows(other)).find(alive) {
            Some(other) if !self.killed.contains(&other.name) => {
                broken(promises::I7, unit, format!("{} still lives", other.name))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn on_active(&self, world: &World, unit: &UnitName, run: Option<RunId>) -> Verdict {
        let Some(process) = run.and_then(|run| world.table.get(&run)) else { return Ok(()) };
        let Some(spec) = self.specs.get(unit) else { return Ok(()) };
        let truth = match (&spec.service.kind, &spec.readiness.when) {
            (ServiceType::Oneshot, _) => matches!(process.ended, Some((_, Exit::Code(0)))),
            (_, crate::unit::spec::ReadyWhen::Executed) => process.executed,
            (_, crate::unit::spec::ReadyWhen::Exec(_)) => process.executed,
            (_, _) => process.ready,
        };
        if truth { Ok(()) } else { broken(promises::S1, unit, "active, but not ready") }
    }

    /// The engine was given an order.
    pub fn on_order(&mut self, request: RequestId, order: &Order) {
        match order {
            Order::Start(units) | Order::Restart(units) => self.lift(request, units),
            Order::Clear(units) => {
                for unit in units {
                    self.starts.remove(unit);
                    self.parked.remove(unit);
                }
            }
            Order::Shutdown => self.shutting_down = true,
            Order::Resync(units) => {
                for unit in units {
                    self.resynced.remove(unit);
                }
            }
            Order::Stop(_)
            | Order::Reload(_)
            | Order::Signal(..)
            | Order::Outage(..)
            | Order::AwaitUp(_)
            | Order::AwaitDown(_) => {}
        }
        if !matches!(order, Order::Shutdown) {
            self.open_requests.insert(request, order.clone());
        }
    }

    /// An operator's start ends every wait and every stop, of the units and of all they need.
    fn lift(&mut self, request: RequestId, units: &[UnitName]) {
        let mut open = units.to_vec();
        let mut seen = BTreeSet::new();
        while let Some(unit) = open.pop() {
            if !seen.insert(unit.clone()) {
                continue;
            }
            self.not_before.remove(&unit);
            self.down.remove(&unit);
            self.parked.remove(&unit);
            self.lifted.insert(unit.clone(), request);
            self.forgive_starts(&unit);
            if let Some(spec) = self.specs.get(&unit) {
                open.extend(spec.unit.requires.iter().chain(&spec.unit.wants).cloned());
            }
        }
    }

    /// The operator's doing may start it, and those that follow it down and up, any number of times.
    fn forgive_starts(&mut self, unit: &UnitName) {
        let mut open = vec![unit.clone()];
        while let Some(next) = open.pop() {
            self.starts.remove(&next);
            let followers = self.specs.values().filter(|spec| spec.unit.requires.contains(&next));
            open.extend(followers.map(|spec| spec.name.clone()));
        }
    }

    /// A committed answer.
    pub fn on_reply(
        &mut self,
        world: &World,
        request: RequestId,
        outcomes: &[(UnitName, Outcome)],
    ) -> Verdict {
        let unknown = UnitName::parse("request").map_err(|_| never_named())?;
        let Some(order) = self.open_requests.remove(&request) else {
            return broken(promises::I4, &unknown, format!("{request:?} answered twice"));
        };
        if let Order::Stop(_) = order {
            for (unit, outcome) in outcomes {
                let overtaken = self.lifted.get(unit).is_some_and(|start| *start > request);
                if matches!(outcome, Outcome::Done | Outcome::Already) && !overtaken {
                    if !world.is_empty(unit) {
                        return broken(promises::I20, unit, "told stopped, but it lives");
                    }
                    self.down.insert(unit.clone());
                }
            }
        }
        Ok(())
    }

    /// The engine was killed: those who waited for an answer were told that it is gone.
    /// A verdict of its own (not ready, out of time) that was not committed never happened;
    /// the end of a process did, and the keeper still knows of it.
    pub fn on_crash(&mut self, world: &World) {
        self.not_before.retain(|_, (_, run)| {
            let process = world.table.get(run);
            world.failed_runs.contains(run) || process.is_some_and(|p| !p.lives() && !p.asked)
        });
        self.open_requests.clear();
        self.checks.clear();
        self.resynced.clear();
        self.parked.retain(|unit| world.rows.get(unit).is_some_and(|row| row.held.is_some()));
        self.last = LastStep::default();
        // What runs on without a file is a stranger to the next engine: its place in the
        // order went with its file.
        self.specs.retain(|name, _| self.files.contains(name));
        // Verdicts that no commit kept are judged anew, so a minute may see more starts.
        self.starts.clear();
        self.starting = None;
        self.newest.clear();
        self.ordered.clear();
    }

    pub fn on_engine_start(&mut self, now: Monotonic) {
        self.took_over_at = now;
    }

    /// The keeper and all services are gone: nothing is owed, everything begins anew.
    pub fn on_keeper_loss(&mut self) {
        self.owed.clear();
        self.asked_at.clear();
        self.not_before.clear();
    }

    /// The truth: this process just ended.
    pub fn on_death(&mut self, world: &World, run: RunId) {
        let Some(process) = world.table.get(&run) else { return };
        let Some(spec) = self.specs.get(&process.unit) else { return };
        let Some((_, exit)) = process.ended else { return };
        let success = exit == Exit::Code(0);
        let expected = success
            && (spec.service.kind == ServiceType::Oneshot || spec.restart.policy != RestartPolicy::Always);
        if process.role == Role::Main && !process.asked && !expected {
            self.owed.insert(run, process.unit.clone());
        }
    }

    /// What was committed since the last look.
    pub fn on_commit(&mut self, world: &World) -> Verdict {
        self.books.read(world, &self.specs)
    }

    /// After every step.
    pub fn after_step(&mut self, world: &World, engine: &Engine, effects: usize) -> Verdict {
        engine.check().map_err(|violation| Broken {
            promise: violation.invariant.to_string(),
            unit: violation.unit,
            detail: violation.detail,
        })?;
        let views = engine.view();
        let any = UnitName::parse("all").map_err(|_| never_named())?;
        if effects > 32 + 24 * views.len() {
            return broken(promises::I32, &any, format!("{effects} effects, {} units", views.len()));
        }
        let starting = views.iter().filter(|view| view.state == StateWord::Activating).count();
        // An engine may inherit more than the cap (a start whose end was not committed is
        // taken up again), or take such a one over from quarantine; but it must not add to them.
        let before = self.starting.replace(starting).unwrap_or(usize::MAX);
        let before = before.saturating_add(self.quarantine.lifted.len());
        if starting > usize::try_from(self.cap).unwrap_or(usize::MAX) && starting > before {
            return broken(promises::I34, &any, format!("{starting} starting, cap {}", self.cap));
        }
        self.audit(world, engine, &views)?;
        for view in &views {
            let ready = |name: &&UnitName| views.iter().any(|other| other.name == **name && other.ready);
            let whole = view.requires.iter().all(|name| ready(&name));
            let says = match view.state {
                StateWord::Active => Some(true),
                StateWord::Degraded => Some(false),
                StateWord::Inactive
                | StateWord::Waiting
                | StateWord::Activating
                | StateWord::Backoff
                | StateWord::Deactivating
                | StateWord::Failed => None,
            };
            if says.is_some_and(|says| says != whole) && !self.shutting_down {
                return broken(promises::S1, &view.name, format!("{:?}", view.state));
            }
            self.found_in_time(world, view)?;
            if view.reason.is_empty() {
                return broken(promises::S2, &view.name, format!("{:?}", view.state));
            }
            if let Some(due) = view.next_retry_at.map(|due| due.max(world.woke_at))
                && world.now.since(due) > Duration::from_millis(300)
            {
                return broken(promises::I9B, &view.name, format!("due for {:?}", world.now.since(due)));
            }
        }
        Ok(())
    }
}

pub(crate) fn never_named() -> Broken {
    Broken { promise: "a fixed name is a name".to_string(), unit: None, detail: String::new() }
}
