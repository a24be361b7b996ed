//! Planted bugs: what a broken engine or shell would do, done to a sound one from outside.
//! Each must be caught, or the promise that it breaks is not being watched.
//!
//! Refuses: living in shipped code. The engine knows nothing of these.

use std::sync::Arc;
use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::exit::RunId;
use crate::base::time::Monotonic;
use crate::engine::Adopted;
use crate::engine::durable::UnitDurable;
use crate::engine::effect::{Effect, RecordKind, Role};
use crate::engine::event::{Event, Order, Rest};
use crate::unit::spec::UnitSpec;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    DoubleSpawn,
    EarlyTick,
    NoTick,
    DropSave,
    EarlyRelease,
    DropKillAll,
    ImpatientKill,
    DropFailedRecord,
    DoubleFailedRecord,
    MiscountFailure,
    ForgetOrderAtCrash,
    ForgetFailuresAtCrash,
    DropReply,
    DoubleReply,
    ProbeLies,
    IgnoreRequires,
    IgnoreConflicts,
    IgnoreStrays,
    IgnoreOrderOfStop,
    LoseExit,
    IgnoreStop,
    IgnoreCap,
    IgnoreShutdown,
    StaleExitHitsNewRun,
    SignalStranger,
    ReconfigureDisturbs,
    WrongDelay,
    DropRecovery,
    ForgetReadyWord,
}

impl Bug {
    pub const ALL: [Bug; 29] = [
        Bug::DoubleSpawn,
        Bug::EarlyTick,
        Bug::NoTick,
        Bug::DropSave,
        Bug::EarlyRelease,
        Bug::DropKillAll,
        Bug::ImpatientKill,
        Bug::DropFailedRecord,
        Bug::DoubleFailedRecord,
        Bug::MiscountFailure,
        Bug::ForgetOrderAtCrash,
        Bug::ForgetFailuresAtCrash,
        Bug::DropReply,
        Bug::DoubleReply,
        Bug::ProbeLies,
        Bug::IgnoreRequires,
        Bug::IgnoreConflicts,
        Bug::IgnoreStrays,
        Bug::IgnoreOrderOfStop,
        Bug::LoseExit,
        Bug::IgnoreStop,
        Bug::IgnoreCap,
        Bug::IgnoreShutdown,
        Bug::StaleExitHitsNewRun,
        Bug::SignalStranger,
        Bug::ReconfigureDisturbs,
        Bug::WrongDelay,
        Bug::DropRecovery,
        Bug::ForgetReadyWord,
    ];

    /// The unit as a broken engine would understand it.
    pub fn spec(self, spec: &Arc<UnitSpec>) -> Arc<UnitSpec> {
        let mut broken = UnitSpec::clone(spec);
        match self {
            Bug::IgnoreRequires => broken.unit.requires.clear(),
            Bug::IgnoreConflicts => broken.unit.conflicts.clear(),
            Bug::IgnoreOrderOfStop => {
                broken.unit.after.clear();
                broken.unit.before.clear();
            }
            Bug::ImpatientKill => broken.stop.timeout /= 2,
            Bug::WrongDelay => broken.restart.delays.truncate(1),
            _other_bugs_leave_it => return spec.clone(),
        }
        Arc::new(broken)
    }

    /// The unit after a change of files that changed nothing, as a broken reload sees it.
    pub fn reconfigured(self, spec: &Arc<UnitSpec>) -> Arc<UnitSpec> {
        if self != Bug::ReconfigureDisturbs {
            return self.spec(spec);
        }
        let mut broken = UnitSpec::clone(spec);
        broken.unit.enabled = !broken.unit.enabled;
        Arc::new(broken)
    }

    /// What an engine that takes over gets of the keeper's table.
    pub fn adopted(self, mut rows: Vec<Adopted>) -> Vec<Adopted> {
        if self == Bug::ForgetReadyWord {
            rows.iter_mut().for_each(|row| row.said_ready = false);
        }
        rows
    }

    pub fn cap(self, cap: u32) -> u32 {
        if self == Bug::IgnoreCap { 1_000 } else { cap }
    }

    /// What reaches the engine. None: nothing.
    pub fn event(self, event: Event, newest: Option<RunId>) -> Option<Event> {
        match (self, event) {
            (Bug::NoTick, Event::Tick) | (Bug::LoseExit, Event::Exited { .. }) => None,
            (Bug::ProbeLies, Event::Probed { run, outcome: ProbeOutcome::Failed(_) }) => {
                Some(Event::Probed { run, outcome: ProbeOutcome::Ok })
            }
            (Bug::IgnoreStrays, Event::Exited { run, at, exit, .. }) => {
                Some(Event::Exited { run, at, exit, rest: Rest::Empty })
            }
            (Bug::StaleExitHitsNewRun, Event::Exited { run, at, exit, rest }) => {
                Some(Event::Exited { run: newest.unwrap_or(run), at, exit, rest })
            }
            (Bug::IgnoreShutdown, Event::Ordered { order: Order::Shutdown, .. }) => None,
            (Bug::IgnoreStop, Event::Ordered { request, order: Order::Stop(units) }) => {
                Some(Event::Ordered { request, order: Order::Clear(units) })
            }
            (_, event) => Some(event),
        }
    }

    pub fn clock(self, now: Monotonic, event: &Event) -> Monotonic {
        let tick = matches!(event, Event::Tick);
        if self == Bug::EarlyTick && tick { now + Duration::from_secs(2) } else { now }
    }

    /// What the shell performs of a step.
    pub fn effects(self, effects: Vec<Effect>) -> Vec<Effect> {
        let mut out = Vec::new();
        for effect in effects {
            match (self, &effect) {
                (Bug::DoubleSpawn, Effect::Spawn { unit, run, role: Role::Main }) => {
                    let twin = RunId(run.0 + 1_000_000);
                    out.push(Effect::Spawn { unit: unit.clone(), run: twin, role: Role::Main });
                }
                (Bug::DropSave, Effect::Save { .. })
                | (Bug::DropKillAll, Effect::KillAll { .. })
                | (Bug::DropReply, Effect::Reply { .. }) => continue,
                (Bug::DoubleReply, Effect::Reply { .. }) => out.push(effect.clone()),
                (Bug::SignalStranger, Effect::End { run, signal }) => {
                    out.push(Effect::End { run: RunId(run.0 + 1), signal: *signal });
                    continue;
                }
                (Bug::DropRecovery, Effect::Record(record))
                    if matches!(record.kind, RecordKind::Recovered { .. }) =>
                {
                    continue;
                }
                (Bug::DropFailedRecord, Effect::Record(record))
                    if matches!(record.kind, RecordKind::Failed { .. }) =>
                {
                    continue;
                }
                (Bug::DoubleFailedRecord, Effect::Record(record))
                    if matches!(record.kind, RecordKind::Failed { .. }) =>
                {
                    let mut twin = record.clone();
                    twin.run = twin.run.map(|run| RunId(run.0 + 1_000_000));
                    out.push(Effect::Record(twin));
                }
                (Bug::MiscountFailure, Effect::Record(record)) => {
                    let mut wrong = record.clone();
                    if let RecordKind::Failed { failures, .. } = &mut wrong.kind {
                        *failures += 1;
                    }
                    out.push(Effect::Record(wrong));
                    continue;
                }
                _ => {}
            }
            out.push(effect);
        }
        if self == Bug::EarlyRelease {
            out.sort_by_key(|effect| !matches!(effect, Effect::Release { .. }));
        }
        out
    }

    pub fn row(self, mut row: UnitDurable) -> UnitDurable {
        match self {
            Bug::ForgetOrderAtCrash => row.ordered = None,
            Bug::ForgetFailuresAtCrash => row.failures = 0,
            _other_bugs_leave_it => {}
        }
        row
    }
}
