//! What the shell must do, in order. Each effect is answered by an event, or needs no answer.
//!
//! Refuses: doing it.

use std::collections::BTreeMap;
use std::fmt;

use crate::base::duration::Pretty;
use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::durable::{EngineDurable, UnitDurable};
use crate::engine::event::RequestId;
use crate::engine::plan::Comes;
use crate::engine::safe::DeathHow;
use crate::engine::view::StateWord;

/// Which of the unit's commands a run executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Main,
    /// Index into `service.start_pre`, and so on.
    StartPre(u8),
    StartPost(u8),
    StopPost(u8),
    StopCommand,
    ReloadCommand,
    /// `readiness.exec`
    ReadyCheck,
    /// `health.exec`
    HealthCheck,
    /// `resync.command`
    Resync,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Fork and execute. Answers: `Spawned` then `Executed`, or `Exited(NotExecuted)`, or `SpawnShort`.
    Spawn { unit: UnitName, run: RunId, role: Role },
    /// Signal the process of this run (not its children). A run that is gone is no error.
    Signal { run: RunId, signal: Signal },
    /// The same, to make it end: the keeper notes that its end was asked for.
    End { run: RunId, signal: Signal },
    /// Signal every process of the unit.
    SignalAll { unit: UnitName, signal: Signal },
    /// SIGKILL to everything the unit ever forked. Answer: `Emptied`, unless something is stuck.
    KillAll { unit: UnitName },
    /// The keeper may forget this run, once all that was saved and recorded until here is
    /// committed.
    Release { run: RunId },
    /// Run the unit's readiness check (`readiness.when` is `Net`) once. Answer: `Probed`.
    Probe { unit: UnitName, run: RunId },
    /// Run the unit's health check (`health.check` is `Net`) once. Answer: `Checked`.
    Check { unit: UnitName, run: RunId },
    /// Send the unit's resync request (`resync.by` is `Net`) once. Answer: `Resynced`.
    Resync { unit: UnitName, run: RunId },
    /// Keep this alert for the dispatcher, in the same transaction as the rest of the step. One
    /// with the same key stands there already after a crash: then nothing is added.
    Alert(Alert),
    /// Look for `readiness.log` in what this run writes. Answer: `LogMatched`, once.
    WatchLog { unit: UnitName, run: RunId },
    /// Keep the unit's durable part: it replaces the row that stood there.
    Save { unit: UnitName, durable: UnitDurable },
    /// Keep what of the engine itself must outlive it.
    SaveEngine(EngineDurable),
    /// The unit is gone from the files and at rest: drop its row.
    Forget { unit: UnitName },
    /// One line of history, numbered and stamped by the shell.
    Record(Record),
    /// The answer to an order, to be told once what was saved until here is committed.
    Reply { request: RequestId, outcomes: Vec<(UnitName, Outcome)> },
    /// After `Order::Shutdown`: everything that could be stopped is.
    Finished,
}

impl Effect {
    /// The unit that it names.
    pub fn unit(&self) -> Option<&UnitName> {
        match self {
            Effect::Spawn { unit, .. }
            | Effect::SignalAll { unit, .. }
            | Effect::KillAll { unit }
            | Effect::Probe { unit, .. }
            | Effect::Check { unit, .. }
            | Effect::Resync { unit, .. }
            | Effect::WatchLog { unit, .. }
            | Effect::Save { unit, .. }
            | Effect::Forget { unit } => Some(unit),
            Effect::Alert(alert) => alert.unit.as_ref(),
            Effect::Record(record) => record.unit.as_ref(),
            Effect::Signal { .. }
            | Effect::End { .. }
            | Effect::Release { .. }
            | Effect::SaveEngine(_)
            | Effect::Reply { .. }
            | Effect::Finished => None,
        }
    }
}

/// How an order ended for one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It was so already.
    Already,
    /// One sentence.
    Failed(String),
    /// Another order took its place before it was done.
    Superseded,
}

/// A fact of history. `kind` gives the stable dotted name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub unit: Option<UnitName>,
    pub run: Option<RunId>,
    pub kind: RecordKind,
    /// The state that the unit is in after this step, if it is another than before: in the last
    /// record of the unit in the step.
    pub state: Option<StateWord>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// An operator's order was taken.
    Ordered {
        verb: &'static str,
    },
    Waiting {
        for_units: Vec<UnitName>,
    },
    Started {
        pid: i32,
    },
    /// Ready.
    Active {
        start_ms: u64,
    },
    /// The k-th failure of this episode (I12: exactly one for each failed run).
    /// `blame`: the requirements that were down then; such a failure does not count towards
    /// the unit's own alert.
    Failed {
        cause: Cause,
        failures: u32,
        episode: u64,
        blame: Vec<UnitName>,
        /// The last moment at which it was known to be well; for an end that of the end itself. None: of an
        /// older run, heard late; the outage is over.
        well_until: Option<Monotonic>,
    },
    /// A restart is due at `at`, `delay_ms` after the failure.
    RestartScheduled {
        at: Monotonic,
        delay_ms: u64,
        failures: u32,
    },
    /// The run that follows a failure was spawned.
    Restarted {
        failures: u32,
        late_us: u64,
    },
    /// Active again after at least one failure; `down_ms` since the first failure of the outage.
    Recovered {
        failures: u32,
        down_ms: u64,
    },
    /// `reset_after` of unbroken readiness, or an operator's word.
    EpisodeEnded {
        failures: u32,
    },
    Stopping,
    Killed,
    Stopped {
        exit: Option<Exit>,
    },
    /// Ended as it should (oneshot done, success exit under `on-failure`).
    Finished {
        exit: Exit,
    },
    /// After `give_up_after` failures, or policy `never`: held until an operator comes.
    GaveUp {
        failures: u32,
    },
    Stuck,
    /// What was stuck is gone.
    Unstuck,
    Reloaded,
    HookFailed {
        hook: &'static str,
        cause: Cause,
    },
    /// Resources were short when spawning.
    Shortage {
        errno: i32,
    },
    Adopted {
        pid: i32,
    },
    Removed,
    Degraded {
        for_units: Vec<UnitName>,
    },
    Restored,
    /// The first bad check after good ones, or the first good one after bad ones.
    HealthChanged {
        healthy: bool,
        seen: Option<String>,
    },
    /// The last retry of a policy failed too (the fixed list of delays is used up).
    RetryExhausted {
        what: &'static str,
        attempts: u32,
    },
    ResyncStarted {
        attempt: u32,
        for_units: Vec<UnitName>,
    },
    Resynced {
        attempt: u32,
        took_ms: u64,
    },
    ResyncFailed {
        attempt: u32,
        why: String,
        next_ms: Option<u64>,
    },
    /// Its file has changed: which keys, and how that comes in force.
    Reconfigured {
        keys: Vec<String>,
        comes: Comes,
    },
    /// Another state, where no other record of the same step tells why.
    Changed {
        from: StateWord,
        to: StateWord,
        why: String,
    },
    AlertRaised {
        key: String,
        kind: AlertKind,
        message: String,
    },
    /// An engine of this keeper died, while it dealt with this unit.
    EngineDied {
        how: DeathHow,
        touched: Option<UnitName>,
    },
    /// An operator ended safe mode.
    SafeModeLeft,
    /// Engines died of it so often that it is left alone.
    Quarantined {
        deaths: u32,
    },
    /// An operator ended that.
    QuarantineLeft,
}

/// Something that a person must be told. What deserves one is decided in `engine::alert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// The same alert has the same key, however often it is raised or sent.
    pub key: String,
    pub unit: Option<UnitName>,
    pub kind: AlertKind,
    /// One sentence.
    pub message: String,
    pub failures: u32,
    pub episode: u64,
    /// Units that need this one, directly or through others.
    pub affected: Vec<UnitName>,
    /// None = every channel.
    pub channels: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlertKind {
    /// The k-th failure, and its repeats.
    Failing,
    /// The episode that was alerted is over.
    Recovered,
    GaveUp,
    Stuck,
    ResyncFailed,
    /// The engine died and another took over.
    EngineRestarted,
    /// Engines died while they dealt with a unit: it is left alone.
    Quarantined,
    /// So many deaths in so short a time that files are not followed by themselves any more.
    SafeMode,
    ConfigError,
    ConfigMended,
    /// An operator wants to see whether alerts arrive.
    Test,
}

impl AlertKind {
    pub const ALL: [AlertKind; 11] = [
        AlertKind::Failing,
        AlertKind::Recovered,
        AlertKind::GaveUp,
        AlertKind::Stuck,
        AlertKind::ResyncFailed,
        AlertKind::EngineRestarted,
        AlertKind::Quarantined,
        AlertKind::SafeMode,
        AlertKind::ConfigError,
        AlertKind::ConfigMended,
        AlertKind::Test,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            AlertKind::Failing => "failing",
            AlertKind::Recovered => "recovered",
            AlertKind::GaveUp => "gave-up",
            AlertKind::Stuck => "stuck",
            AlertKind::ResyncFailed => "resync-failed",
            AlertKind::EngineRestarted => "engine-restarted",
            AlertKind::Quarantined => "quarantined",
            AlertKind::SafeMode => "safe-mode",
            AlertKind::ConfigError => "config-error",
            AlertKind::ConfigMended => "config-mended",
            AlertKind::Test => "test",
        }
    }
}

/// Why a unit failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Exited(Exit),
    /// Not ready in time; the text is what the last probe saw.
    NotReady {
        timeout_ms: u64,
        last: Option<String>,
    },
    /// A hook did not end in time.
    HookTimeout {
        timeout_ms: u64,
    },
    Hook {
        hook: &'static str,
        exit: Exit,
    },
    /// So many bad checks in a row; the last said this.
    Unhealthy {
        checks: u32,
        last: String,
    },
    /// No `WATCHDOG=1` for so long.
    Watchdog {
        silent_ms: u64,
    },
    /// `WATCHDOG=trigger`.
    WatchdogTriggered,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pretty = |ms: &u64| Pretty(std::time::Duration::from_millis(*ms));
        match self {
            Cause::Exited(exit) => exit.fmt(f),
            Cause::NotReady { timeout_ms, last: None } => {
                write!(f, "not ready within {}", pretty(timeout_ms))
            }
            Cause::NotReady { timeout_ms, last: Some(seen) } => {
                write!(f, "not ready within {} ({seen})", pretty(timeout_ms))
            }
            Cause::HookTimeout { timeout_ms } => {
                write!(f, "a hook did not end within {}", pretty(timeout_ms))
            }
            Cause::Hook { hook, exit } => write!(f, "{hook} {exit}"),
            Cause::Unhealthy { checks, last } => {
                write!(f, "unhealthy: {checks} bad checks in a row ({last})")
            }
            Cause::Watchdog { silent_ms } => write!(f, "no WATCHDOG=1 for {}", pretty(silent_ms)),
            Cause::WatchdogTriggered => f.write_str("it triggered its own watchdog"),
        }
    }
}

/// What one step asks for, and which situations it passed through.
#[derive(Debug, Default)]
pub struct Effects {
    list: Vec<Effect>,
    /// Told only after everything of this step is saved: releases, replies, the end.
    late: Vec<Effect>,
    /// Units with a record in this step, and where the last one stands in `list`.
    recorded: BTreeMap<UnitName, usize>,
    marks: Vec<Mark>,
    witness: Option<Witness>,
}

/// Told which unit is dealt with next, before anything is done about it: should we die of it, that is
/// what the next engine wants to know.
pub struct Witness(pub Box<dyn FnMut(&UnitName)>);

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Witness")
    }
}

impl Effects {
    /// Effects whose steps are watched.
    pub fn watched_by(witness: Option<Witness>) -> Effects {
        Effects { witness, ..Effects::default() }
    }

    pub(crate) fn touch(&mut self, unit: &UnitName) {
        if let Some(Witness(told)) = &mut self.witness {
            told(unit);
        }
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    pub(crate) fn push_late(&mut self, effect: Effect) {
        self.late.push(effect);
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.marks.push(mark);
    }

    pub(crate) fn record(&mut self, unit: &UnitName, run: Option<RunId>, kind: RecordKind) {
        self.recorded.insert(unit.clone(), self.list.len());
        self.list.push(Effect::Record(Record { unit: Some(unit.clone()), run, kind, state: None }));
    }

    /// Says which state a unit is in now: in the last line that history has of it from this step, or in
    /// one of its own.
    pub(crate) fn tell_state(
        &mut self,
        unit: &UnitName,
        run: Option<RunId>,
        word: StateWord,
        own: impl FnOnce() -> RecordKind,
    ) {
        if !self.recorded.contains_key(unit) {
            self.record(unit, run, own());
        }
        let last = self.recorded.get(unit).and_then(|at| self.list.get_mut(*at));
        if let Some(Effect::Record(record)) = last {
            record.state = Some(word);
        }
    }

    pub(crate) fn seal(&mut self) {
        self.recorded.clear();
        self.list.append(&mut self.late);
    }

    /// Hands the effects over, in the order in which they must be performed.
    pub fn drain(&mut self) -> impl Iterator<Item = Effect> + '_ {
        self.list.drain(..)
    }

    /// The situations met since the last call: how tests know what a run has reached.
    pub fn drain_marks(&mut self) -> impl Iterator<Item = Mark> + '_ {
        self.marks.drain(..)
    }
}

macro_rules! marks {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A situation worth knowing that a test or a drill has met. The simulator fails
        /// when one of `Mark::ALL` is never reached.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark { $($(#[$doc])* $name,)* }

        impl Mark {
            pub const ALL: &'static [Mark] = &[$(Mark::$name,)*];
        }
    };
}

marks! {
    /// News of a run that is not known (any more) was ignored.
    LateNewsIgnored,
    /// An older run's end was counted although a newer one lives (after an engine crash).
    OlderRunCounted,
    /// An end that was counted before the engine crashed came again.
    CountedTwiceRefused,
    /// A failure whose consequences were met before it was counted (after an engine crash).
    CountedLate,
    SpawnWasShort,
    NotExecuted,
    ReadyTimedOut,
    SettleBroken,
    PreHookFailed,
    PostHookFailed,
    HookTimedOut,
    /// Processes outlived the main process.
    StraysLeft,
    GraceRanOut,
    Stuck,
    Unstuck,
    GaveUp,
    EpisodeEnded,
    StoppedWhileActivating,
    StoppedInBackoff,
    StartedWhileDeactivating,
    StartedInBackoff,
    /// A stop waits for those that are ordered after the unit.
    StopHeldBack,
    /// A start waits for one that is being restarted.
    StartHeldBack,
    WaitedForSlot,
    WaitedForOrder,
    WaitedForConflict,
    ConflictStopped,
    ExitDuringPendingStop,
    JobSuperseded,
    JobFailedByRequirement,
    AdoptedActive,
    AdoptedActivating,
    AdoptedStopping,
    AdoptedUnknownUnit,
    /// Neither the store nor the keeper knows how the run ended.
    VanishedWithKeeper,
    /// The keeper died, and the services lived on.
    OutlivedKeeper,
    Degraded,
    /// A degraded unit lost one more requirement.
    LostAnother,
    Restored,
    RemovedWhileRunning,
    ReadyCheckFailed,
    ReloadFailed,
    Unhealthy,
    HealthCheckHung,
    /// A check was not counted: it spanned a suspend, or we were short of fds.
    CheckDiscarded,
    WatchdogMissed,
    FailureBlamed,
    LossStopped,
    ReturnReloaded,
    ReturnRestarted,
    ResyncDone,
    ResyncRetried,
    ResyncExhausted,
    /// The requirement was lost again while a resync was under way.
    ResyncAborted,
    AlertRaised,
    AlertRepeated,
    RecoveryRaised,
    MainPidChanged,
    TimeoutExtended,
    /// A service announced a reload of its own and was ready again.
    ReloadedByItself,
    ConfigBroken,
    ConfigMended,
    SafeModeEntered,
    SafeModeLeft,
    /// An order was refused in safe mode.
    SafeModeRefused,
    Quarantined,
    /// A run of a unit in quarantine ended.
    EndedInQuarantine,
    QuarantineLeft,
    /// An operator cleared a unit that had given up, but was not down yet.
    ClearedOnTheWay,
}
