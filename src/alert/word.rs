//! What of the channels themselves is worth a line of history.
//!
//! Refuses: writing it (the loop does), and numbering it.

use serde_json::Value;
use std::sync::Arc;

use crate::base::duration::Pretty;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::outbox::{OVERDUE_AFTER, Row};
use crate::store::row::{Level, NewEvent};

/// A line of history about a channel.
#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// The first of its alerts waits too long.
    Overdue { channel: String, row: Arc<Row> },
    /// None waits that long any more.
    InTime { channel: String },
}

impl Word {
    /// As the line that is kept.
    pub fn event(self, ts_us: i64, at: Monotonic) -> NewEvent {
        let long = Pretty(OVERDUE_AFTER);
        let (level, event, message) = match &self {
            Word::Overdue { channel, row } => {
                let key = &row.alert.key;
                (
                    Level::Error,
                    "alert.overdue",
                    format!("alert {key} has waited for {channel} longer than {long}"),
                )
            }
            Word::InTime { channel } => (
                Level::Info,
                "alert.intime",
                format!("no alert waits for {channel} longer than {long} any more"),
            ),
        };
        let (unit, data): (Option<UnitName>, Vec<(&str, Value)>) = match self {
            Word::Overdue { channel, row } => (
                row.alert.unit.clone(),
                vec![("channel", channel.into()), ("key", row.alert.key.clone().into())],
            ),
            Word::InTime { channel } => (None, vec![("channel", channel.into())]),
        };
        NewEvent {
            ts_us,
            level,
            event: event.to_string(),
            unit,
            run: None,
            cause: None,
            message,
            at,
            data: data.into_iter().map(|(key, value)| (key.to_string(), value)).collect(),
        }
    }
}
