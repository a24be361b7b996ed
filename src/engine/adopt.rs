//! Taking over: an engine starts with what the store and the keeper know, and derives the rest.
//!
//! Refuses: trusting only one of them. The row says what was asked for and counted, the
//! table says what lives and how the rest ended; ends are fed in as news, so that a crash of
//! the engine has no code path of its own for failures.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::durable::{Desired, EngineDurable, UnitDurable};
use crate::engine::effect::{Effect, Effects, Mark, RecordKind, Role};
use crate::engine::event::Rest;
use crate::engine::health;
use crate::engine::order::RELOAD_TIMEOUT;
use crate::engine::safe::Death;
use crate::engine::state::{
    Activating, Active, Asked, Hold, Hooks, Living, Probing, Reloading, Resyncing, StartStep, State,
    StopStep, Then, Unit, WatchStep, WhyInactive,
};
use crate::engine::{Adopted, Engine, Settings};
use crate::unit::spec::{OnLoss, ReadyWhen, ServiceType, UnitSpec};

/// Whether services may be alive from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The first engine of this daemon: units start as the files and the orders say.
    Fresh,
    /// An engine went before this one and died: nothing starts over.
    Resumed,
    /// An engine went before this one and left, for this one to take its place: as `Resumed`,
    /// but nothing went wrong.
    Relieved,
    /// The keeper before this one died, and services may have lived on: nothing starts over, and no
    /// engine is to blame.
    KeeperDied,
}

/// What an engine starts with: the files, the store's rows, the keeper's table, the cgroups.
#[derive(Clone, Debug)]
pub struct Inheritance {
    pub boot: Boot,
    pub units: Vec<Arc<UnitSpec>>,
    pub durable: BTreeMap<UnitName, UnitDurable>,
    /// The row of the engine itself.
    pub engine: EngineDurable,
    /// How the engines before this one died, oldest first.
    pub deaths: Vec<Death>,
    pub adopted: Vec<Adopted>,
    /// Units in whose cgroup anything lives now.
    pub populated: BTreeSet<UnitName>,
    /// Greater than every run that the store or the keeper has seen.
    pub next_run: RunId,
}

impl Engine {
    /// An engine that goes on where another stopped. The effects that follow go to `fx`.
    pub fn new(now: Monotonic, settings: Settings, inherited: Inheritance, fx: &mut Effects) -> Engine {
        Engine::empty(settings, inherited.next_run).take_over(now, inherited, fx)
    }

    /// The same for a daemon that was told to end while no engine lived: nothing is started,
    /// what lives is stopped. `Order::Shutdown` after `new` would come too late, when what
    /// was stopped already has been started again.
    pub fn new_to_end(
        now: Monotonic,
        settings: Settings,
        inherited: Inheritance,
        fx: &mut Effects,
    ) -> Engine {
        let mut engine = Engine::empty(settings, inherited.next_run);
        engine.shutting_down = true;
        engine.take_over(now, inherited, fx)
    }

    fn take_over(self, now: Monotonic, inherited: Inheritance, fx: &mut Effects) -> Engine {
        let Inheritance { boot, units, mut durable, engine: row, deaths, adopted, populated, .. } = inherited;
        let mut engine = self;
        engine.durable = row.clone();
        engine.saved = row;
        engine.next_run = adopted.iter().map(|row| row.run.0 + 1).max().unwrap_or(0).max(engine.next_run);
        for spec in units {
            let mut row = durable.remove(&spec.name).unwrap_or_else(|| engine.first_row());
            if boot == Boot::Fresh {
                row.finished = false;
            }
            engine.insert_unit(spec, row, now);
        }
        let living: BTreeSet<&UnitName> = adopted.iter().map(|row| &row.unit).chain(&populated).collect();
        for name in living {
            if !engine.units.contains_key(name) {
                fx.mark(Mark::AdoptedUnknownUnit);
                let spec = UnitSpec::minimal(name.clone(), vec!["/gone-from-the-files".to_string()]);
                engine.insert_unit(Arc::new(spec), durable.remove(name).unwrap_or_default(), now);
                if let Some(unit) = engine.units.get_mut(name) {
                    unit.removed = true;
                }
            }
        }
        // Rows of units that are in no file any more and have nothing running.
        for unit in durable.into_keys() {
            fx.push(Effect::Forget { unit });
        }
        engine.rebuild_edges();
        engine.on_deaths(now, &deaths, fx);
        if !engine.shutting_down {
            engine.judge_deaths(now, &deaths, fx);
        }
        let names: BTreeSet<UnitName> = engine.units.keys().cloned().collect();
        let mut rows: BTreeMap<UnitName, Vec<Adopted>> = BTreeMap::new();
        for row in adopted {
            rows.entry(row.unit.clone()).or_default().push(row);
        }
        let mut ended: Vec<Ended> = Vec::new();
        let heard = |row: &&Adopted| row.said_ready && row.ended.is_none();
        let said_ready: Vec<RunId> = rows.values().flatten().filter(heard).map(|row| row.run).collect();
        for name in &names {
            let own = rows.remove(name).unwrap_or_default();
            let rest = if populated.contains(name) { Rest::Alive } else { Rest::Empty };
            // What is to end has to be dealt with, whatever comes of it.
            if engine.durable.quarantined.contains_key(name) && !engine.shutting_down {
                engine.leave_alone(now, name, own, rest);
                continue;
            }
            fx.touch(name);
            engine.adopt_unit(now, name, &own, rest, &mut ended, fx);
        }
        engine.pull();
        if boot == Boot::KeeperDied {
            fx.mark(Mark::OutlivedKeeper);
        }
        ended.sort_by_key(|end| end.run);
        for end in ended {
            engine.on_exited(now, end.run, end.at, end.exit, end.rest, fx);
        }
        for run in said_ready {
            engine.on_said_ready(now, run, fx);
        }
        engine.queue.extend(names);
        engine.finish_step(now, fx);
        // What fell due while no engine lived is done now, not at the next tick.
        engine.on_tick(now, fx);
        engine.finish_step(now, fx);
        engine
    }

    pub(crate) fn adopt_unit(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        rows: &[Adopted],
        rest: Rest,
        ended: &mut Vec<Ended>,
        fx: &mut Effects,
    ) {
        let Some(unit) = self.units.get_mut(name) else { return };
        // An end that is counted, with newer runs after it, is history: only to be released.
        let counted = unit.durable.counted_run;
        let newer = rows.iter().any(|row| Some(row.run) > counted);
        let (history, rows): (Vec<&Adopted>, Vec<&Adopted>) =
            rows.iter().partition(|row| newer && row.ended.is_some() && Some(row.run) <= counted);
        for row in history {
            fx.push_late(Effect::Release { run: row.run });
        }
        // The newest attempt decides the state; ends of older ones are only counted.
        let begins = |row: &&&Adopted| matches!(row.role, Role::Main | Role::StartPre(_));
        let newest = rows.iter().filter(begins).max_by_key(|row| row.run);
        let (attempt, role) = newest.map_or((RunId(0), None), |row| (row.run, Some(row.role)));
        unit.main = (role == Some(Role::Main)).then_some(attempt);
        unit.begun = newest.map_or(unit.begun, |row| row.spawned_at);
        let current: Vec<&Adopted> = rows.iter().filter(|row| row.run >= attempt).copied().collect();
        let commanded = current.iter().any(|row| row.role == Role::StopCommand);
        for row in &rows {
            let asked = if commanded { Asked::ToEnd } else { row.asked };
            let pid = Some(row.pid).filter(|pid| *pid > 0);
            unit.living.insert(row.run, Living { role: row.role, pid, asked });
            self.runs.insert(row.run, name.clone());
            match row.ended {
                Some((at, exit)) => ended.push(Ended { run: row.run, at, exit, rest }),
                None => {
                    fx.record(name, Some(row.run), RecordKind::Adopted { pid: row.pid });
                }
            }
        }
        // It ran, or was about to, so something wanted it: an engine's crash does not stop it.
        let row = &unit.durable;
        let was_up = current.iter().any(|row| row.asked == Asked::No)
            || row.ready.is_some()
            || row.retry_at.is_some()
            || row.held.is_some();
        unit.pulled = was_up && row.ordered != Some(Desired::Down);
        catch_up(unit, &rows, fx);
        if let Some(run) = vanished(unit).filter(|_| rows.is_empty()) {
            fx.mark(Mark::VanishedWithKeeper);
            unit.main = Some(run);
            unit.living.insert(run, Living { role: Role::Main, pid: None, asked: Asked::No });
            self.runs.insert(run, name.clone());
            ended.push(Ended { run, at: now, exit: Exit::Unknown, rest });
        }
        unit.strays = unit.living.is_empty() && rest == Rest::Alive;
        let state =
            if unit.is_empty() { resting_state(unit, now) } else { living_state(unit, &current, now, fx) };
        if matches!(state, State::Deactivating { step: StopStep::Terminating { .. }, .. }) {
            fx.mark(Mark::AdoptedStopping);
            let over: Vec<RunId> = ended.iter().map(|end| end.run).collect();
            self.ask_to_end(name, |run| !over.contains(&run), fx);
        }
        if !matches!(state, State::Active(_)) {
            self.end_leftovers(name, fx);
        }
        self.set_state(now, name, state);
        self.keep_since(name);
        self.go_on_falling(name, fx);
        self.ask_strays(name, fx);
    }

    /// Our death is nothing that happened to a unit that is active.
    fn keep_since(&mut self, name: &UnitName) {
        if let Some(unit) = self.units.get_mut(name)
            && let State::Active(Active { main: Some(_), ready_at, .. }) = &unit.state
        {
            unit.since = *ready_at;
        }
    }

    /// A loss that takes the unit down was met, but it had not gone yet.
    fn go_on_falling(&mut self, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let falls = |other: &UnitName| {
            unit.spec.dependency.get(other).is_some_and(|edge| edge.on_loss != OnLoss::Degrade)
        };
        if matches!(unit.state, State::Active(_)) && unit.durable.owed.iter().any(falls) {
            fx.mark(Mark::LossStopped);
            unit.restarting = true;
        }
    }

    /// Checks and the like of a unit that was active, which no commit kept: nobody waits for them.
    fn end_leftovers(&mut self, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        for (run, living) in &mut unit.living {
            if matches!(living.role, Role::HealthCheck | Role::Resync | Role::ReloadCommand) {
                living.asked = Asked::ToEnd;
                fx.push(Effect::End { run: *run, signal: Signal::KILL });
            }
        }
    }
}

/// The run that the row calls active, and whose end nobody has counted.
fn vanished(unit: &Unit) -> Option<RunId> {
    let (run, _) = unit.durable.ready?;
    (unit.durable.counted_run < Some(run)).then_some(run)
}

/// A start whose row was not committed: what the row says of the start before it is over.
fn catch_up(unit: &mut Unit, rows: &[&Adopted], fx: &mut Effects) {
    let start = rows.iter().rev().find(|row| {
        matches!(row.role, Role::Main | Role::StartPre(0)) && unit.durable.counted_run < Some(row.run)
    });
    let Some(start) = start else { return };
    if unit.durable.ready.is_none_or(|(ready, _)| ready != start.run) {
        unit.durable.held = None;
        unit.durable.owed.clear();
        unit.durable.resync_failed = false;
    }
    if let Some(due) = unit.durable.retry_at.take() {
        unit.durable.restarts += 1;
        let late_us = u64::try_from(start.spawned_at.since(due).as_micros()).unwrap_or(u64::MAX);
        let failures = unit.durable.failures;
        fx.record(&unit.spec.name, Some(start.run), RecordKind::Restarted { failures, late_us });
    }
}

/// An end that happened unseen, to be fed in as news.
pub(crate) struct Ended {
    pub run: RunId,
    pub at: Monotonic,
    pub exit: Exit,
    pub rest: Rest,
}

/// Nothing of the unit is known to live: what its row says.
fn resting_state(unit: &Unit, now: Monotonic) -> State {
    let row = &unit.durable;
    if let Some(held) = &row.held {
        return State::Failed { hold: Hold::GaveUp(held.clone()) };
    }
    if row.finished && unit.spec.service.kind == ServiceType::Oneshot {
        return State::Active(Active {
            main: None,
            ready_at: now,
            reset_at: None,
            missing: Vec::new(),
            reload: None,
            health: None,
            resync: None,
        });
    }
    if row.finished {
        return State::Inactive { why: WhyInactive::Finished(None) };
    }
    match row.retry_at {
        Some(retry_at) => State::Backoff { retry_at },
        None if row.ordered == Some(Desired::Down) => State::Inactive { why: WhyInactive::Stopped },
        None => State::Inactive { why: WhyInactive::NotWanted },
    }
}

/// Something lives, or ended unseen: the state it must have been in.
fn living_state(unit: &Unit, rows: &[&Adopted], now: Monotonic, fx: &mut Effects) -> State {
    let spec = &unit.spec;
    let row = &unit.durable;
    let hook = |wanted: fn(Role) -> Option<u8>| {
        rows.iter().rev().find_map(|row| wanted(row.role).map(|index| (row.run, index, row.spawned_at)))
    };
    let then = || match (&row.held, row.retry_at) {
        (None, None) => Then::Again { not_before: None },
        (Some(_), _) | (None, Some(_)) => unit.then_by_row(now),
    };
    if let Some((run, index, _)) = hook(|role| if let Role::StopPost(i) = role { Some(i) } else { None }) {
        let step = StopStep::Post { index, run, deadline: now + spec.stop.timeout };
        return State::Deactivating { step, then: then() };
    }
    if let Some((run, ..)) = hook(|role| (role == Role::StopCommand).then_some(0)) {
        let step = StopStep::Command { run, deadline: now + spec.stop.timeout };
        return State::Deactivating { step, then: then() };
    }
    let newest = unit.living.keys().next_back().copied();
    let asked = unit.main.and_then(|main| unit.living.get(&main)).is_some_and(|l| l.asked == Asked::ToEnd);
    // A check beside the main process is newer, and says nothing of it.
    let counted = row.counted_run >= unit.main.or(newest) && row.counted_run.is_some();
    let begun = rows.iter().map(|row| row.spawned_at).min().unwrap_or(now);
    let deadline_of = |at: Monotonic| spec.readiness.timeout.map(|timeout| at + timeout);
    let activating = |step, since| {
        State::Activating(Activating { step, begun, deadline: deadline_of(since), last_seen: None })
    };
    let pre = hook(|role| if let Role::StartPre(i) = role { Some(i) } else { None });
    let post = hook(|role| if let Role::StartPost(i) = role { Some(i) } else { None });
    // A oneshot's process is gone and forgotten when its start_post runs; in any other
    // unit a start_post without a process is what a failure left behind.
    let oneshot_post = post.filter(|_| spec.service.kind == ServiceType::Oneshot);
    match (unit.main, pre.or(oneshot_post)) {
        _ if asked || counted => {
            let step = StopStep::Terminating { kill_at: now + spec.stop.timeout, hooks: Hooks::Follow };
            State::Deactivating { step, then: then() }
        }
        (Some(main), _) => {
            if let Some((_, ready_at)) = row.ready.filter(|(run, _)| *run == main) {
                fx.mark(Mark::AdoptedActive);
                return active_state(unit, rows, main, ready_at, now);
            }
            fx.mark(Mark::AdoptedActivating);
            if let Some((run, index, at)) = post {
                return activating(StartStep::Post { index, run }, at);
            }
            let main_row = rows.iter().find(|row| row.run == main);
            let spawned_at = main_row.map_or(now, |row| row.spawned_at);
            if matches!(spec.readiness.when, ReadyWhen::Log(_)) && spec.service.kind != ServiceType::Oneshot {
                fx.push(Effect::WatchLog { unit: spec.name.clone(), run: main });
            }
            if main_row.is_some_and(|row| !row.executed && row.ended.is_none()) {
                return activating(StartStep::Spawning { main }, spawned_at);
            }
            let check = rows.iter().rev().find(|row| row.role == Role::ReadyCheck).map(|row| row.run);
            let probe = probing(spec, check, now);
            activating(StartStep::Checking { main, probe }, spawned_at)
        }
        (None, Some((run, index, at))) => {
            fx.mark(Mark::AdoptedActivating);
            let is_post = oneshot_post.is_some_and(|(post_run, ..)| post_run == run);
            let step = if is_post { StartStep::Post { index, run } } else { StartStep::Pre { index, run } };
            activating(step, at)
        }
        (None, None) => {
            let step = StopStep::Terminating { kill_at: now + spec.stop.timeout, hooks: Hooks::Follow };
            State::Deactivating { step, then: then() }
        }
    }
}

/// It was active, and what goes on beside its main process goes on.
fn active_state(unit: &Unit, rows: &[&Adopted], main: RunId, ready_at: Monotonic, now: Monotonic) -> State {
    let (spec, row) = (&unit.spec, &unit.durable);
    let of = |role: Role| rows.iter().rev().find(|row| row.role == role).map(|row| (row.run, row.spawned_at));
    let reload = of(Role::ReloadCommand).map(|(run, since)| Reloading {
        run,
        since,
        deadline: since + spec.readiness.timeout.unwrap_or(RELOAD_TIMEOUT),
    });
    let resync = of(Role::Resync).map(|(run, begun)| {
        let timeout = spec.resync.as_ref().map_or(Duration::ZERO, |resync| resync.timeout);
        Resyncing::Running { attempt: 1, run: Some(run), begun, deadline: begun + timeout }
    });
    // What was lost before is missing until it is seen: its return is news then.
    let owed = row.owed.iter().filter(|other| spec.unit.requires.contains(other));
    let missing = if resync.is_some() { Vec::new() } else { owed.cloned().collect() };
    let mut health = health::begin(now, spec);
    if let (Some(watch), Some((check, begun))) = (&mut health, of(Role::HealthCheck)) {
        let hung_at = begun + spec.health.as_ref().map_or(Duration::ZERO, |health| health.timeout);
        watch.step = WatchStep::InFlight { check: Some(check), begun, hung_at };
    }
    let reset_at = (row.failures > 0).then(|| ready_at + spec.restart.reset_after);
    State::Active(Active { main: Some(main), ready_at, reset_at, missing, reload, health, resync })
}

/// Where the question whether it is ready stands.
fn probing(spec: &UnitSpec, check: Option<RunId>, now: Monotonic) -> Probing {
    match (&spec.readiness.when, check) {
        _ if spec.service.kind == ServiceType::Oneshot => Probing::Passive,
        (ReadyWhen::Notify | ReadyWhen::NotifyFd(_) | ReadyWhen::Log(_), _) => Probing::Passive,
        (ReadyWhen::Exec(_), Some(run)) => Probing::InFlight { check: Some(run) },
        (ReadyWhen::Executed | ReadyWhen::Net(_) | ReadyWhen::Exec(_), _) => Probing::Next(now),
    }
}
