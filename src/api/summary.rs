//! The JSON object of `GET /api/metrics/v0_1/summary`.
//!
//! Refuses: arithmetic; the figures are the ledger's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ledger::marks::Verdict;
use crate::ledger::summary::Split;

/// The KPIs of a window that ends now. The figures at the top are those of both realms together.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Summary {
    /// Length of the window that was asked for.
    pub window_s: f64,
    /// Where it begins, RFC 3339: later than asked where history begins later.
    pub from: String,
    /// Where it ends, RFC 3339.
    pub until: String,
    /// The newest event in it.
    pub last_event_id: u64,
    #[serde(flatten)]
    pub split: Split,
    /// Each KPI held against its pass mark.
    pub kpis: Vec<Verdict>,
}
