//! What a unit looks like from outside: the state's word, its reason, the numbers.
//!
//! Refuses: wire formats (`api` has twins of these) and wall time.

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;

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
    pub next_retry_at: Option<Monotonic>,
    pub waiting_for: Vec<UnitName>,
    pub requires: Vec<UnitName>,
    pub wants: Vec<UnitName>,
    pub after: Vec<UnitName>,
    /// The operator or the file wants it up.
    pub wanted: bool,
}
