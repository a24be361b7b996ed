//! The books: records of history in, KPIs out. A fold that is fed one record at a time, sums that can be
//! merged, and what they mean when somebody asks.
//!
//! Refuses: a clock, and knowing where records are kept. Whoever feeds it does.
//!
//! **Time.** A record has two: wall time (`ts_us`) says to which window it belongs, CLOCK_BOOTTIME (`at`) how
//! long something lasted. Within one boot no step of the wall clock makes anything longer or shorter; where
//! a stretch of time crosses the end of an hour, the wall time between its two records says where. Between
//! boots CLOCK_BOOTTIME means nothing, and nothing is measured across one.
//!
//! **Windows.** A window holds the records whose wall time is at or after its begin, up to now. Each number
//! belongs to the window in which its record was made: an outage that began before the window and ended in
//! it counts as a recovery, with its whole length; one that is still open counts as open, and has no length yet.
//!
//! **Drills.** A record whose data has a `drill` (its id, a text that is not empty) counts as drill, all others as
//! real. What follows from a record belongs with it: a recovery to the failure that began its outage, a
//! delivery to its alert, and the time of an outage to its unit's drill.

pub mod carry;
pub mod fold;
pub mod marks;
pub mod spread;
pub mod summary;
pub mod tally;
pub mod window;
pub mod words;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use crate::base::time::Monotonic;

/// One record of history, as far as the books care.
#[derive(Clone, Copy, Debug)]
pub struct Fact<'a> {
    /// Wall clock, microseconds since 1970.
    pub ts_us: i64,
    /// CLOCK_BOOTTIME.
    pub at: Monotonic,
    /// The stable dotted name.
    pub event: &'a str,
    pub unit: Option<&'a str>,
    pub data: &'a Map<String, Value>,
}

impl<'a> Fact<'a> {
    pub(crate) fn number(&self, key: &str) -> u64 {
        self.data.get(key).and_then(Value::as_u64).unwrap_or(0)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.data.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// Whether a drill made it happen.
    pub fn is_drill(&self) -> bool {
        self.text("drill").is_some()
    }
}
