//! What of a unit must outlive the engine: one row, replaced as a whole.
//!
//! Refuses: what can be derived from the keeper's table or the unit file.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;

/// What the operator asked for; it wins over `unit.enabled` and holds across everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Desired {
    Up,
    Down,
}

/// The durable part of a unit. Times are CLOCK_BOOTTIME and mean something only while
/// the boot id is the same; the shell passes rows of another boot through
/// `UnitDurable::after_reboot`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitDurable {
    /// None: no order yet, `unit.enabled` decides.
    pub ordered: Option<Desired>,
    /// Consecutive failures of this episode.
    pub failures: u32,
    pub episode: u64,
    /// Restarts since the home was made.
    pub restarts: u64,
    /// The newest run whose failure is counted: its news may come twice after a crash.
    pub counted_run: Option<RunId>,
    /// Restart not before this (state backoff).
    pub retry_at: Option<Monotonic>,
    /// When the outage began (first failure since it was last active).
    pub down_since: Option<Monotonic>,
    /// The run that is active, and since when: readiness is not asked for again.
    pub ready: Option<(RunId, Monotonic)>,
    /// Held after giving up: the sentence to show.
    pub held: Option<String>,
    /// A oneshot, or a success exit under `on-failure`: done, with this outcome.
    pub finished: bool,
    /// Failures of this episode that are the unit's own: no requirement was down.
    pub own_failures: u32,
    /// An alert was raised in this episode: its end raises the recovery.
    pub alerted: bool,
    /// Requirements that were lost since the run that is active began: what `on_return`
    /// says is owed to the unit once they are ready again.
    pub owed: BTreeSet<UnitName>,
    /// The last resync failed for good.
    pub resync_failed: bool,
}

/// What of the engine itself must outlive it: one row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineDurable {
    /// What was last found wrong in the files; an alert was raised for it.
    pub config_errors: Vec<String>,
    /// The newest death of an engine that was told, CLOCK_BOOTTIME.
    pub told_death: Option<Monotonic>,
    /// Deaths until then count no more: an operator said so.
    pub forgiven: Option<Monotonic>,
    /// In safe mode since then.
    pub safe_since: Option<Monotonic>,
    /// Units that are left alone until an operator comes, with the sentence to show.
    pub quarantined: BTreeMap<UnitName, String>,
}

impl EngineDurable {
    /// The same row after a reboot.
    pub fn after_reboot(self) -> EngineDurable {
        let EngineDurable { config_errors, quarantined, .. } = self;
        EngineDurable { config_errors, quarantined, ..EngineDurable::default() }
    }
}

impl UnitDurable {
    /// The same row after a reboot: no process lives, no deadline means anything, but what
    /// was asked for and the count of failures hold (design: never reset by a reboot).
    pub fn after_reboot(self) -> UnitDurable {
        UnitDurable {
            retry_at: None,
            down_since: None,
            ready: None,
            finished: false,
            owed: BTreeSet::new(),
            resync_failed: false,
            ..self
        }
    }
}
