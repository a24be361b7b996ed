//! What is open: what a later record can only be understood with.
//!
//! Refuses: sums, and growing without end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most alerts that wait here. Above it the oldest keys are let go: they count as neither pending nor
/// delivered any more, and the outbox's own table has them.
const WAITING_MAX: usize = 10_000;

/// Where history stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Carry {
    /// The boot that `at_ns` belongs to.
    pub boot: String,
    /// A daemon runs, so that time counts.
    pub running: bool,
    /// Of the newest record.
    pub ts_us: i64,
    /// The greatest of this boot.
    pub at_ns: u64,
    pub units: BTreeMap<String, Standing>,
    /// Alerts by key that no channel has yet.
    pub waiting: BTreeMap<String, Waiting>,
}

/// One unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    pub state: String,
    /// Its time until here is counted.
    pub mark_ns: u64,
    /// It failed, and is not ready again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outage: Option<Outage>,
    /// It is not in the files any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    pub drill: bool,
    /// It counts among `helped_outages` already.
    pub helped: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub drill: bool,
    /// A channel refused it for good.
    pub refused: bool,
    /// People asked not to be told of it: nobody waits for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub muted: bool,
    pub raised_us: i64,
}

impl Carry {
    pub(crate) fn wait(&mut self, key: &str, waiting: Waiting) {
        self.waiting.insert(key.to_string(), waiting);
        while self.waiting.len() > WAITING_MAX {
            let oldest = self.waiting.iter().min_by_key(|(_, waiting)| waiting.raised_us);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            self.waiting.remove(&oldest);
        }
    }

    /// Units that failed, are wanted and not ready again, of this realm.
    pub fn open_outages(&self, drill: bool) -> u64 {
        let open = self.units.values().filter(|unit| unit.state != "inactive");
        let open = open.filter_map(|unit| unit.outage);
        open.filter(|outage| outage.drill == drill).count() as u64
    }

    /// Alerts that wait for their first channel, of this realm.
    pub fn pending(&self, drill: bool) -> u64 {
        let open = self.waiting.values();
        open.filter(|waiting| waiting.drill == drill && !waiting.refused && !waiting.muted).count() as u64
    }
}
