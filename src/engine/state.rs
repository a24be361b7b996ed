//! What a unit is doing. Data exists only in the state that has it; every deadline is a
//! field of its state, so that leaving the state drops it.
//!
//! Refuses: flags that exclude each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::Adopted;
use crate::engine::durable::{Desired, UnitDurable};
use crate::engine::effect::Role;
use crate::engine::event::Rest;
use crate::engine::view::StateWord;
use crate::unit::spec::{ServiceType, UnitSpec};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// At rest: nothing lives.
    Inactive {
        why: WhyInactive,
    },
    /// Wants to start; something is missing. `not_before` only after a shortage, or in a drill's outage.
    Waiting {
        not_before: Option<Monotonic>,
        blockers: Blockers,
    },
    Activating(Activating),
    Active(Active),
    /// Failed; the next try is due at `retry_at`.
    Backoff {
        retry_at: Monotonic,
    },
    Deactivating {
        step: StopStep,
        then: Then,
    },
    /// Held: nothing starts it but an operator (or the end of what is stuck).
    Failed {
        hold: Hold,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WhyInactive {
    NotWanted,
    Stopped,
    Finished(Option<Exit>),
}

/// What keeps a unit from starting. Empty = about to start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blockers {
    /// Required, but no unit has that name.
    pub unknown: Vec<UnitName>,
    pub requires: Vec<UnitName>,
    pub order: Vec<UnitName>,
    pub conflicts: Vec<UnitName>,
    pub slot: bool,
}

impl Blockers {
    pub fn only_slot(&self) -> bool {
        self.unknown.is_empty()
            && self.requires.is_empty()
            && self.order.is_empty()
            && self.conflicts.is_empty()
    }

    pub fn units(&self) -> Vec<UnitName> {
        let all = self.unknown.iter().chain(&self.requires).chain(&self.order).chain(&self.conflicts);
        all.cloned().collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Activating {
    pub step: StartStep,
    /// When the first process of this attempt was spawned.
    pub begun: Monotonic,
    /// Of the hook that runs, or of the main process's readiness. None = no limit.
    pub deadline: Option<Monotonic>,
    /// What the last readiness probe saw.
    pub last_seen: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StartStep {
    Pre {
        index: u8,
        run: RunId,
    },
    /// The main process was asked for; not executed yet.
    Spawning {
        main: RunId,
    },
    /// Executed; waiting for what makes it ready. For a oneshot: for its end.
    Checking {
        main: RunId,
        probe: Probing,
    },
    Settling {
        main: RunId,
        until: Monotonic,
    },
    Post {
        index: u8,
        run: RunId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probing {
    /// Readiness comes by itself: notify, log, the end of a oneshot.
    Passive,
    /// One is under way (the run, where it is a process of its own).
    InFlight { check: Option<RunId> },
    /// The next begins then.
    Next(Monotonic),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Active {
    /// None: a oneshot that is done.
    pub main: Option<RunId>,
    pub ready_at: Monotonic,
    /// The episode ends then, if nothing breaks.
    pub reset_at: Option<Monotonic>,
    /// Requirements that are down now.
    pub missing: Vec<UnitName>,
    pub reload: Option<Reloading>,
    pub health: Option<Watch>,
    pub resync: Option<Resyncing>,
}

/// The health of one run: a verdict belongs to it and ends with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watch {
    pub step: WatchStep,
    /// Bad checks in a row.
    pub bad: u32,
    /// None until the first check that counts.
    pub healthy: Option<bool>,
    /// What the last of the bad checks in a row saw.
    pub seen: Option<String>,
    /// When it was last known to be well.
    pub good_at: Monotonic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatchStep {
    /// The next check begins then.
    Next(Monotonic),
    /// One is under way (the run, where it is a process); it is hung at `hung_at`.
    InFlight { check: Option<RunId>, begun: Monotonic, hung_at: Monotonic },
    /// The check under way spans a suspend: its answer says nothing, and no other begins before
    /// it is there, or surely lost at `lost_at`.
    Overslept { lost_at: Monotonic },
    /// A hung check process was killed; its end begins the next interval.
    Killed { check: RunId },
    /// `WATCHDOG=1` is due until then.
    Watchdog { due: Monotonic, every: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resyncing {
    /// The `attempt`-th (from 1) begins at `at`.
    Due {
        attempt: u32,
        at: Monotonic,
    },
    Running {
        attempt: u32,
        run: Option<RunId>,
        begun: Monotonic,
        deadline: Monotonic,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reloading {
    pub run: RunId,
    pub since: Monotonic,
    pub deadline: Monotonic,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopStep {
    Command {
        run: RunId,
        deadline: Monotonic,
    },
    /// Asked to end; the wait.
    Terminating {
        kill_at: Monotonic,
        hooks: Hooks,
    },
    /// SIGKILL was sent to everything.
    Killing {
        stuck_at: Monotonic,
        hooks: Hooks,
    },
    /// Everything is gone; a stop_post hook runs.
    Post {
        index: u8,
        run: RunId,
        deadline: Monotonic,
    },
}

/// Whether `stop_post` hooks follow when everything is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hooks {
    Follow,
    /// They had their turn; this takes down what they left.
    Over,
}

/// Where a deactivation leads, unless the unit is not wanted (any more).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Again { not_before: Option<Monotonic> },
    Backoff { retry_at: Monotonic },
    Hold(String),
    Finished(Exit),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The sentence to show.
    GaveUp(String),
    /// Something survived SIGKILL; when it is gone, go on there.
    Stuck { then: Then },
    /// Engines died while they dealt with it: it is left alone until an operator comes.
    Quarantined(Quarantine),
}

/// What is known of a unit that is left alone: enough to take it over later as after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quarantine {
    /// The sentence to show.
    pub why: String,
    /// Its runs, ended ones included: the keeper keeps those until somebody deals with them.
    pub rows: Vec<Adopted>,
    pub rest: Rest,
}

impl Quarantine {
    /// Whether this run lives, as far as we heard.
    pub fn lives(&self, run: RunId) -> bool {
        self.rows.iter().any(|row| row.run == run && row.ended.is_none())
    }
}

/// What a service announced by sd_notify(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Uttered {
    Reloading,
    Stopping,
}

/// A process that lives, as far as we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Living {
    pub role: Role,
    /// None until the keeper has forked it.
    pub pid: Option<i32>,
    /// We asked it to end (the keeper remembers this too): its end is no failure.
    pub asked: Asked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    No,
    ToEnd,
}

#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub spec: Arc<UnitSpec>,
    /// The file has changed: in force at the next start.
    pub next_spec: Option<Arc<UnitSpec>>,
    pub durable: UnitDurable,
    /// What the store was last told.
    pub saved: UnitDurable,
    pub state: State,
    pub since: Monotonic,
    pub living: BTreeMap<RunId, Living>,
    /// Processes that are no runs of ours live in the unit.
    pub strays: bool,
    /// The newest main run.
    pub main: Option<RunId>,
    /// When the newest attempt began.
    pub begun: Monotonic,
    /// A wanted unit needs or wants this one.
    pub pulled: bool,
    /// An operator's restart is under way: stop, then start.
    pub restarting: bool,
    /// Gone from the files.
    pub removed: bool,
    /// A drill holds it down until then. Not durable: an engine that takes over knows of none.
    pub outage_until: Option<Monotonic>,
    /// How the newest main run that ended has ended.
    pub main_exit: Option<(RunId, Exit)>,
    /// How the last failure or end reads.
    pub last: Option<String>,
    /// What its newest run says of itself (`STATUS=`).
    pub status: Option<String>,
    /// What its newest run is about to do by itself.
    pub uttered: Option<Uttered>,
    /// The state that history knows of.
    pub told: StateWord,
    /// Entry of this unit in the engine's deadline index.
    pub armed: Option<Monotonic>,
}

impl Unit {
    pub fn new(spec: Arc<UnitSpec>, durable: UnitDurable, now: Monotonic) -> Unit {
        Unit {
            spec,
            next_spec: None,
            saved: durable.clone(),
            durable,
            state: State::Inactive { why: WhyInactive::NotWanted },
            since: now,
            living: BTreeMap::new(),
            strays: false,
            main: None,
            begun: Monotonic::ZERO,
            pulled: false,
            restarting: false,
            removed: false,
            outage_until: None,
            main_exit: None,
            last: None,
            status: None,
            uttered: None,
            told: StateWord::Inactive,
            armed: None,
        }
    }

    pub fn wanted(&self) -> bool {
        match self.durable.ordered {
            Some(Desired::Up) => !self.removed,
            Some(Desired::Down) => false,
            None => !self.removed && (self.spec_to_start().unit.enabled || self.pulled),
        }
    }

    /// What follows a failure that was counted before: it stands in the durable row.
    pub fn then_by_row(&self, failed_at: Monotonic) -> Then {
        match (&self.durable.held, self.durable.retry_at) {
            (Some(held), _) => Then::Hold(held.clone()),
            (None, Some(retry_at)) => Then::Backoff { retry_at },
            (None, None) => Then::Backoff { retry_at: failed_at },
        }
    }

    /// What the next start goes by.
    pub fn spec_to_start(&self) -> &UnitSpec {
        self.next_spec.as_deref().unwrap_or(&self.spec)
    }

    /// Nothing of this unit lives.
    pub fn is_empty(&self) -> bool {
        self.living.is_empty() && !self.strays
    }

    /// Active; or it was when it was put into quarantine, and its process lives on: nobody is to
    /// lose a requirement because of our trouble with it.
    pub fn is_ready(&self) -> bool {
        match &self.state {
            State::Active(_) => true,
            State::Failed { hold: Hold::Quarantined(left) } => match self.durable.ready {
                Some((run, _)) => left.lives(run),
                None => self.durable.finished && self.spec.service.kind == ServiceType::Oneshot,
            },
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { hold: Hold::GaveUp(_) | Hold::Stuck { .. } } => false,
        }
    }

    pub fn quarantine(&self) -> Option<&Quarantine> {
        match &self.state {
            State::Failed { hold: Hold::Quarantined(left) } => Some(left),
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Active(_)
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { hold: Hold::GaveUp(_) | Hold::Stuck { .. } } => None,
        }
    }

    /// Nothing lives and nothing is under way.
    pub fn at_rest(&self) -> bool {
        match self.state {
            State::Inactive { .. } | State::Waiting { .. } | State::Backoff { .. } => true,
            State::Failed { hold: Hold::GaveUp(_) } => true,
            State::Failed { hold: Hold::Stuck { .. } | Hold::Quarantined(_) } => false,
            State::Activating(_) | State::Active(_) | State::Deactivating { .. } => false,
        }
    }

    pub fn is_stuck(&self) -> bool {
        matches!(self.state, State::Failed { hold: Hold::Stuck { .. } })
    }

    /// Asked to end, and not killed yet.
    pub fn is_terminating(&self) -> bool {
        matches!(self.state, State::Deactivating { step: StopStep::Terminating { .. }, .. })
    }

    /// How the newest main run ended, if it did.
    pub fn exit_of_main(&self) -> Option<Exit> {
        self.main_exit.filter(|(run, _)| Some(*run) == self.main).map(|(_, exit)| exit)
    }

    /// The main process, if it lives.
    pub fn living_main(&self) -> Option<RunId> {
        let left = self.quarantine();
        self.main.filter(|run| left.is_none_or(|left| left.lives(*run)) && self.living.contains_key(run))
    }

    /// When this unit next needs a `Tick`.
    pub fn deadline(&self) -> Option<Monotonic> {
        match &self.state {
            State::Inactive { .. } | State::Failed { .. } => None,
            State::Waiting { not_before, .. } => *not_before,
            State::Backoff { retry_at } => Some(*retry_at),
            State::Activating(activating) => {
                let step = match activating.step {
                    StartStep::Settling { until, .. } => Some(until),
                    StartStep::Checking { probe: Probing::Next(at), .. } => Some(at),
                    StartStep::Checking { .. }
                    | StartStep::Pre { .. }
                    | StartStep::Spawning { .. }
                    | StartStep::Post { .. } => None,
                };
                earlier(step, activating.deadline)
            }
            State::Active(active) => {
                let health = active.health.as_ref().and_then(|watch| match watch.step {
                    WatchStep::Next(at) => Some(at),
                    WatchStep::InFlight { hung_at, .. } => Some(hung_at),
                    WatchStep::Overslept { lost_at } => Some(lost_at),
                    WatchStep::Killed { .. } => None,
                    WatchStep::Watchdog { due, .. } => Some(due),
                });
                let resync = active.resync.map(|resync| match resync {
                    Resyncing::Due { at, .. } => at,
                    Resyncing::Running { deadline, .. } => deadline,
                });
                let reload = active.reload.map(|reload| reload.deadline);
                earlier(earlier(active.reset_at, reload), earlier(health, resync))
            }
            State::Deactivating { step, .. } => match step {
                StopStep::Command { deadline, .. } | StopStep::Post { deadline, .. } => Some(*deadline),
                StopStep::Terminating { kill_at, .. } => Some(*kill_at),
                StopStep::Killing { stuck_at, .. } => Some(*stuck_at),
            },
        }
    }
}

fn earlier(a: Option<Monotonic>, b: Option<Monotonic>) -> Option<Monotonic> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, other) => one.or(other),
    }
}
