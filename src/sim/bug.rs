//! Planted bugs: what a broken engine or shell would do, done to a sound one from outside.
//! Each must be caught, or the promise that it breaks is not being watched.
//!
//! Refuses: living in shipped code. The engine knows nothing of these.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::exit::RunId;
use crate::base::time::Monotonic;
use crate::engine::Adopted;
use crate::engine::durable::{EngineDurable, UnitDurable};
use crate::engine::effect::{AlertKind, Effect, Record, RecordKind, Role};
use crate::engine::event::{Event, Order, Rest};
use crate::engine::safe::Death;
use crate::unit::spec::{OnLoss, UnitSpec};

/// A unit that is in no file.
pub const GHOST: &str = "ghost";

const DAY_NS: u64 = 86_400 * 1_000_000_000;

macro_rules! bugs {
    ($($name:ident,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($name,)* }

        impl Bug {
            pub const ALL: &'static [Bug] = &[$(Bug::$name,)*];
        }
    };
}

bugs! {
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
    LoseRow,
    IgnoreLoss,
    ClockOfTheDay,
    LateAlert,
    HelperIsMain,
    ObeyStranger,
    Unsteady,
    SilentChange,
    ForgetHold,
    DropHoldAlert,
    LoseSimultaneous,
    LoseBatch,
    BelieveStrangers,
    EffectStorm,
    HideDelay,
    Restless,
    SkipAlert,
    ExtraAlert,
    DropRecoveryAlert,
    DoubleCheck,
    HastyVerdict,
    CheckLies,
    StaleOwed,
    ResyncWhileDown,
    ResyncTwice,
    DropStuckAlert,
    DropResyncAlert,
    IgnoreQuarantine,
}

/// What a planted bug remembers of this run.
#[derive(Debug, Default)]
pub struct Memory {
    held: Vec<Effect>,
    last_exit: Option<Monotonic>,
}

/// Differs from run to run, as a clock or an address would.
static UNSTEADY: AtomicU64 = AtomicU64::new(0);

impl Bug {
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
            Bug::HideDelay => broken.restart.delays = vec![Duration::ZERO],
            Bug::IgnoreLoss => {
                broken.dependency.values_mut().for_each(|edge| edge.on_loss = OnLoss::Degrade);
            }
            Bug::ExtraAlert => broken.alert.after_failures += 1,
            Bug::HastyVerdict => {
                if let Some(health) = &mut broken.health {
                    health.threshold = 1;
                }
            }
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
        if self == Bug::LoseRow {
            let lives = rows.iter().rposition(|row| row.role == Role::Main && row.ended.is_none());
            lives.map(|at| rows.remove(at));
        }
        if self == Bug::HelperIsMain {
            let helpers = rows.iter_mut().filter(|row| row.role == Role::HealthCheck);
            helpers.for_each(|row| row.role = Role::Main);
        }
        rows
    }

    pub fn cap(self, cap: u32) -> u32 {
        if self == Bug::IgnoreCap { 1_000 } else { cap }
    }

    /// What reaches the engine. None: nothing.
    pub fn event(self, event: Event, newest: Option<RunId>, memory: &mut Memory) -> Option<Event> {
        if let (Bug::LoseSimultaneous, Event::Exited { at, .. }) = (self, &event)
            && memory.last_exit.replace(*at) == Some(*at)
        {
            return None;
        }
        match (self, event) {
            (Bug::CheckLies, Event::Checked { run, .. }) => {
                Some(Event::Checked { run, outcome: ProbeOutcome::Ok })
            }
            (Bug::BelieveStrangers, Event::Exited { run, at, exit, rest }) if run.0 > u64::from(u32::MAX) => {
                Some(Event::Exited { run: newest.unwrap_or(run), at, exit, rest })
            }
            (Bug::ObeyStranger, Event::Ordered { request, order: Order::Start(units) })
                if units.iter().any(|unit| unit.as_str() == GHOST) =>
            {
                Some(Event::Ordered { request, order: Order::Shutdown })
            }
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
        let odd_day = (now.as_ns() / DAY_NS) % 2 == 1;
        match self {
            Bug::EarlyTick if tick => now + Duration::from_secs(2),
            Bug::ClockOfTheDay if odd_day => now + Duration::from_millis(1),
            Bug::Unsteady => now + Duration::from_millis(UNSTEADY.fetch_add(1, Ordering::Relaxed) % 2),
            _other_bugs_leave_it => now,
        }
    }

    /// Whether the store loses this batch of a step's writes.
    pub fn loses(self, batch: &[Effect]) -> bool {
        let harmless = |effect: &Effect| match effect {
            Effect::Record(record) => matches!(
                record.kind,
                RecordKind::Degraded { .. } | RecordKind::HealthChanged { .. } | RecordKind::Waiting { .. }
            ),
            Effect::Save { .. } => true,
            _something_else => false,
        };
        self == Bug::LoseBatch && batch.iter().all(harmless)
    }

    /// What the shell performs of a step.
    pub fn effects(self, effects: Vec<Effect>, memory: &mut Memory) -> Vec<Effect> {
        let mut out = std::mem::take(&mut memory.held);
        for effect in effects {
            if self.alters(&effect, &mut out, memory) {
                continue;
            }
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
                _other_bugs_leave_it => {}
            }
            out.push(effect);
        }
        if self == Bug::EarlyRelease {
            out.sort_by_key(|effect| !matches!(effect, Effect::Release { .. }));
        }
        out
    }

    /// The bugs of health, resync and alerts. True: the effect itself is not performed.
    fn alters(self, effect: &Effect, out: &mut Vec<Effect>, memory: &mut Memory) -> bool {
        let kind_is = |kind: AlertKind| matches!(effect, Effect::Alert(alert) if alert.kind == kind);
        let record = match effect {
            Effect::Record(record) => Some(record),
            _no_record => None,
        };
        match (self, effect) {
            (Bug::LateAlert, Effect::Alert(_)) => memory.held.push(effect.clone()),
            (Bug::SkipAlert, _) if kind_is(AlertKind::Failing) => {}
            (Bug::DropRecoveryAlert, _) if kind_is(AlertKind::Recovered) => {}
            (Bug::DropStuckAlert, _) if kind_is(AlertKind::Stuck) => {}
            (Bug::DropResyncAlert, _) if kind_is(AlertKind::ResyncFailed) => {}
            (Bug::DropHoldAlert, _) if kind_is(AlertKind::GaveUp) => {}
            (Bug::SilentChange, _)
                if record.is_some_and(|record| matches!(record.kind, RecordKind::Changed { .. })) => {}
            (Bug::HideDelay, _)
                if record.is_some_and(|r| matches!(r.kind, RecordKind::RestartScheduled { .. })) => {}
            (Bug::EffectStorm, Effect::Save { .. }) => {
                out.extend(std::iter::repeat_n(effect.clone(), 250));
                return false;
            }
            (Bug::DoubleCheck, Effect::Check { .. }) => {
                out.push(effect.clone());
                return false;
            }
            (Bug::Restless, Effect::Check { unit, run }) => {
                out.push(Effect::Probe { unit: unit.clone(), run: *run });
                return false;
            }
            (Bug::StaleOwed, Effect::Save { unit, durable }) => {
                let mut durable = durable.clone();
                durable.owed.insert(unit.clone());
                out.push(Effect::Save { unit: unit.clone(), durable });
            }
            (Bug::ResyncWhileDown, Effect::Record(Record { unit: Some(unit), run: Some(run), kind, .. })) => {
                if matches!(kind, RecordKind::Degraded { .. }) {
                    out.push(Effect::Resync { unit: unit.clone(), run: *run });
                }
                return false;
            }
            (Bug::ResyncTwice, Effect::Record(Record { unit: Some(unit), run: Some(run), kind, .. })) => {
                out.push(effect.clone());
                if matches!(kind, RecordKind::Resynced { .. }) {
                    out.push(Effect::Resync { unit: unit.clone(), run: *run });
                }
            }
            _other_bugs_leave_it => return false,
        }
        true
    }

    /// How engines died, as a broken engine would remember it.
    pub fn deaths(self, deaths: &[Death]) -> Vec<Death> {
        if self == Bug::IgnoreQuarantine { Vec::new() } else { deaths.to_vec() }
    }

    pub fn engine(self, row: &EngineDurable) -> EngineDurable {
        let mut row = row.clone();
        if self == Bug::IgnoreQuarantine {
            row.quarantined.clear();
        }
        row
    }

    pub fn row(self, mut row: UnitDurable) -> UnitDurable {
        match self {
            Bug::ForgetOrderAtCrash => row.ordered = None,
            Bug::ForgetFailuresAtCrash => row.failures = 0,
            Bug::ForgetHold => row.held = None,
            _other_bugs_leave_it => {}
        }
        row
    }
}
