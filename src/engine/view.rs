//! What a unit looks like from outside: the state's word, its reason, the numbers.
//!
//! Refuses: wire formats (`api` has twins of these) and wall time.

use std::collections::BTreeSet;

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::state::{
    Activating, Active, Blockers, Hold, Probing, Resyncing, StartStep, State, StopStep, Unit, Uttered, Watch,
    WhyInactive,
};
use crate::engine::{Engine, plural};

/// The words of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateWord {
    Inactive,
    Waiting,
    Activating,
    Active,
    Degraded,
    Backoff,
    Deactivating,
    Failed,
}

impl StateWord {
    pub const ALL: [StateWord; 8] = [
        StateWord::Inactive,
        StateWord::Waiting,
        StateWord::Activating,
        StateWord::Active,
        StateWord::Degraded,
        StateWord::Backoff,
        StateWord::Deactivating,
        StateWord::Failed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            StateWord::Inactive => "inactive",
            StateWord::Waiting => "waiting",
            StateWord::Activating => "activating",
            StateWord::Active => "active",
            StateWord::Degraded => "degraded",
            StateWord::Backoff => "backoff",
            StateWord::Deactivating => "deactivating",
            StateWord::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitView {
    pub name: UnitName,
    pub description: String,
    pub state: StateWord,
    /// One sentence; every state has one.
    pub reason: String,
    /// When the state was entered.
    pub since: Monotonic,
    pub pid: Option<i32>,
    /// The newest run, living or not.
    pub run: Option<RunId>,
    pub restarts: u64,
    pub failures: u32,
    /// The episode that people were alerted of, while it lasts.
    pub alerted_episode: Option<u64>,
    /// None: no `[health]`, not active, or not checked yet.
    pub healthy: Option<bool>,
    pub next_retry_at: Option<Monotonic>,
    pub waiting_for: Vec<UnitName>,
    pub requires: Vec<UnitName>,
    pub wants: Vec<UnitName>,
    pub after: Vec<UnitName>,
    /// The operator or the file wants it up.
    pub wanted: bool,
    /// What needs it may start: it is active, or was when it was put into quarantine.
    pub ready: bool,
    /// Left alone, because engines died of it.
    pub quarantined: bool,
    /// Gone from the files; it is forgotten when nothing of it lives any more.
    pub removed: bool,
}

/// The numbers of a unit: a `UnitView` without its sentences, for who asks about all of them often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitNumbers {
    pub name: UnitName,
    pub state: StateWord,
    /// When the state was entered.
    pub since: Monotonic,
    pub restarts: u64,
    pub failures: u32,
    pub healthy: Option<bool>,
    pub wanted: bool,
    pub ready: bool,
}

impl Engine {
    /// The numbers of every unit, by name.
    pub fn numbers(&self) -> Vec<UnitNumbers> {
        let numbers = |unit: &Unit| UnitNumbers {
            name: unit.spec.name.clone(),
            state: word(&unit.state),
            since: unit.since,
            restarts: unit.durable.restarts,
            failures: unit.durable.failures,
            healthy: healthy(unit),
            wanted: unit.wanted(),
            ready: unit.is_ready(),
        };
        self.units.values().map(numbers).collect()
    }

    /// Every unit, by name.
    pub fn view(&self) -> Vec<UnitView> {
        self.units.values().map(view).collect()
    }

    /// Nothing of the unit is on its way: it is ready with all that it requires and its state is restored,
    /// or nothing is going to change by itself.
    pub fn is_settled(&self, name: &UnitName) -> bool {
        let Some(unit) = self.units.get(name) else { return true };
        let settled = match &unit.state {
            State::Active(active) => {
                active.missing.is_empty() && active.resync.is_none() && unit.durable.owed.is_empty()
            }
            State::Inactive { .. } | State::Failed { .. } => true,
            State::Waiting { .. }
            | State::Activating(_)
            | State::Backoff { .. }
            | State::Deactivating { .. } => false,
        };
        settled && unit.outage_until.is_none()
    }

    /// The unit, and all that need it, directly or through others.
    pub fn reach_of(&self, name: &UnitName) -> BTreeSet<UnitName> {
        let mut reached = BTreeSet::from([name.clone()]);
        loop {
            let needs = |unit: &&Unit| unit.spec.unit.requires.iter().any(|other| reached.contains(other));
            let next = self.units.values().filter(needs).map(|unit| unit.spec.name.clone());
            let next: BTreeSet<UnitName> = next.filter(|name| !reached.contains(name)).collect();
            if next.is_empty() {
                return reached;
            }
            reached.extend(next);
        }
    }

    pub fn view_of(&self, name: &UnitName) -> Option<UnitView> {
        self.units.get(name).map(view)
    }
}

fn view(unit: &Unit) -> UnitView {
    let section = &unit.spec.unit;
    let pid = unit.living_main().and_then(|run| unit.living.get(&run)).and_then(|living| living.pid);
    UnitView {
        name: unit.spec.name.clone(),
        description: section.description.clone(),
        state: word(&unit.state),
        reason: reason(unit),
        since: unit.since,
        pid,
        run: unit.main,
        restarts: unit.durable.restarts,
        failures: unit.durable.failures,
        alerted_episode: unit.durable.alerted.then_some(unit.durable.episode),
        healthy: healthy(unit),
        next_retry_at: match unit.state {
            State::Backoff { retry_at } => Some(retry_at),
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Active(_)
            | State::Deactivating { .. }
            | State::Failed { .. } => None,
        },
        waiting_for: waiting_for(&unit.state),
        requires: section.requires.clone(),
        wants: section.wants.clone(),
        after: section.after.clone(),
        wanted: unit.wanted(),
        ready: unit.is_ready(),
        quarantined: unit.quarantine().is_some(),
        removed: unit.removed,
    }
}

fn healthy(unit: &Unit) -> Option<bool> {
    match &unit.state {
        State::Active(active) => active.health.as_ref().and_then(|watch| watch.healthy),
        State::Inactive { .. }
        | State::Waiting { .. }
        | State::Activating(_)
        | State::Backoff { .. }
        | State::Deactivating { .. }
        | State::Failed { .. } => None,
    }
}

pub(crate) fn word(state: &State) -> StateWord {
    match state {
        State::Inactive { .. } => StateWord::Inactive,
        State::Waiting { .. } => StateWord::Waiting,
        State::Activating(_) => StateWord::Activating,
        State::Active(Active { missing, .. }) if missing.is_empty() => StateWord::Active,
        State::Active(_) => StateWord::Degraded,
        State::Backoff { .. } => StateWord::Backoff,
        State::Deactivating { .. } => StateWord::Deactivating,
        State::Failed { .. } => StateWord::Failed,
    }
}

fn waiting_for(state: &State) -> Vec<UnitName> {
    match state {
        State::Waiting { blockers, .. } => blockers.units(),
        State::Active(active) => active.missing.clone(),
        State::Inactive { .. }
        | State::Activating(_)
        | State::Backoff { .. }
        | State::Deactivating { .. }
        | State::Failed { .. } => Vec::new(),
    }
}

/// Why it is so, in one sentence, with what the service says of itself.
pub(crate) fn reason(unit: &Unit) -> String {
    let reason = own_reason(unit);
    let uttered = match (&unit.state, unit.uttered) {
        (State::Active(_), Some(Uttered::Reloading)) => format!("{reason}; reloads by itself"),
        (State::Active(_) | State::Activating(_), Some(Uttered::Stopping)) => {
            format!("{reason}; says that it stops")
        }
        (_, Some(_) | None) => reason,
    };
    match (&unit.state, &unit.status) {
        (State::Active(_) | State::Activating(_) | State::Deactivating { .. }, Some(status)) => {
            format!("{uttered}; it says: {status}")
        }
        (_, Some(_) | None) => uttered,
    }
}

fn own_reason(unit: &Unit) -> String {
    let last = || unit.last.clone().unwrap_or_else(|| "it failed".to_string());
    match &unit.state {
        State::Inactive { why: WhyInactive::NotWanted } => "not wanted: enabled = false".to_string(),
        State::Inactive { why: WhyInactive::Stopped } => "stopped".to_string(),
        State::Inactive { why: WhyInactive::Finished(Some(exit)) } => format!("finished: {exit}"),
        State::Inactive { why: WhyInactive::Finished(None) } => "finished".to_string(),
        State::Waiting { not_before: Some(_), .. } if unit.outage_until.is_some() => {
            "held down by a drill".to_string()
        }
        State::Waiting { not_before: Some(_), .. } => "short of resources; trying again soon".to_string(),
        State::Waiting { not_before: None, blockers } => waiting_reason(blockers),
        State::Activating(activating) => activating_reason(activating),
        State::Active(active) => active_reason(active, unit.durable.resync_failed),
        State::Backoff { .. } => format!("{}; failure {} in a row", last(), unit.durable.failures),
        State::Deactivating { step, .. } => match step {
            StopStep::Command { .. } => "the stop command runs".to_string(),
            StopStep::Terminating { .. } => format!("asked to end ({})", unit.spec.stop.signal),
            StopStep::Killing { .. } => "the grace is over: SIGKILL was sent".to_string(),
            StopStep::Post { index, .. } => format!("stop_post {} runs", index.saturating_add(1)),
        },
        State::Failed { hold: Hold::GaveUp(why) } => why.clone(),
        State::Failed { hold: Hold::Quarantined(left) } => left.why.clone(),
        State::Failed { hold: Hold::Stuck { .. } } => {
            "stuck: a process survived SIGKILL; nothing is started beside it".to_string()
        }
    }
}

fn waiting_reason(blockers: &Blockers) -> String {
    let join = |names: &[UnitName]| names.iter().map(UnitName::as_str).collect::<Vec<_>>().join(", ");
    if !blockers.unknown.is_empty() {
        return format!("waiting for {}: there is no such unit", join(&blockers.unknown));
    }
    if !blockers.requires.is_empty() {
        return format!("waiting: {}", join(&blockers.requires));
    }
    if !blockers.conflicts.is_empty() {
        return format!("waiting for the end of {}", join(&blockers.conflicts));
    }
    if !blockers.order.is_empty() {
        return format!("waiting its turn, after {}", join(&blockers.order));
    }
    "waiting for a start slot".to_string()
}

fn activating_reason(activating: &Activating) -> String {
    let seen = || activating.last_seen.as_ref().map(|seen| format!(" ({seen})")).unwrap_or_default();
    match &activating.step {
        StartStep::Pre { index, .. } => format!("start_pre {} runs", index.saturating_add(1)),
        StartStep::Spawning { .. } => "starting".to_string(),
        StartStep::Checking { probe: Probing::Passive, .. } => "not ready yet".to_string(),
        StartStep::Checking { .. } => format!("not ready yet{}", seen()),
        StartStep::Settling { .. } => "settling".to_string(),
        StartStep::Post { index, .. } => format!("start_post {} runs", index.saturating_add(1)),
    }
}

fn active_reason(active: &Active, resync_failed: bool) -> String {
    if !active.missing.is_empty() {
        let names: Vec<&str> = active.missing.iter().map(UnitName::as_str).collect();
        return format!("waiting: {}", names.join(", "));
    }
    match (active.main, active.resync) {
        (Some(_), Some(Resyncing::Due { attempt: 1, .. } | Resyncing::Running { .. })) => {
            "restoring its state".to_string()
        }
        (Some(_), Some(Resyncing::Due { attempt, .. })) => {
            format!("its state is not restored yet; try {attempt} follows")
        }
        (Some(_), None) if resync_failed => "ready, but its state could not be restored".to_string(),
        (Some(_), None) => match &active.health {
            Some(Watch { bad, seen: Some(seen), .. }) => {
                format!("ready, but {bad} bad check{} in a row ({seen})", plural(*bad))
            }
            Some(_) | None => "ready".to_string(),
        },
        (None, _) => "done".to_string(),
    }
}
