//! What is found out about an alert when it is sent: how the unit ended, when it is tried again, what
//! it wrote last.
//!
//! Refuses: holding a send up. What is not there within `GATHER_MAX` is left out, and so is what
//! came to light after the alert was raised: a message of yesterday's failure tells of yesterday.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use crate::alert::story::Facts;
use crate::base::name::UnitName;
use crate::engine::outbox::Row;
use crate::logs::Stream;
use crate::logs::line::{Said, text};
use crate::logs::query::{Asked, Input, Marks, Reader as LogReader};
use crate::store::row::{EventQuery, EventRow, Pick};
use crate::store::writer::Reader;
use crate::sys::clock::{self, rfc3339};
use crate::sys::process::host_name;
use crate::sys::threads::aside;

/// Longest wait for store and logs, each. They answer within milliseconds, or something is wrong
/// that must not keep the alert.
const GATHER_MAX: Duration = Duration::from_millis(500);

/// Lines of the log in an alert.
const LOG_LINES: u64 = 20;

/// Events of the unit that are looked at. Of a unit that fails over and over a failure is a handful.
const EVENTS: usize = 100;

/// How long before the alert its causes may stand.
const BEFORE_US: i64 = 60_000_000;

/// Last words are captured in the moment in which the end is judged.
const LAST_WORDS_US: i64 = 250_000;

/// Whom to ask.
#[derive(Clone)]
pub struct Gatherer {
    pub reader: Reader,
    pub logs: PathBuf,
    pub dashboard: Option<String>,
}

impl Gatherer {
    pub async fn facts(&self, row: &Row) -> Facts {
        let mut facts = Facts {
            host: host_name(),
            now_us: clock::wall().as_microsecond(),
            dashboard: self.dashboard.clone(),
            ..Facts::default()
        };
        let Some(unit) = &row.alert.unit else { return facts };
        let (events, lines) = tokio::join!(self.events(unit, row.ts_us), self.log_tail(unit, row.ts_us));
        facts.log_tail = lines;
        facts.learn(&events, row.ts_us);
        facts
    }

    async fn events(&self, unit: &UnitName, at_us: i64) -> Vec<EventRow> {
        let (tell, answer) = oneshot::channel();
        let since_us = Some(at_us.saturating_sub(BEFORE_US));
        let unit = Some(unit.clone());
        let query = EventQuery { after_id: None, since_us, unit, limit: EVENTS, pick: Pick::All };
        self.reader.events(query, move |rows| drop(tell.send(rows))); // nobody waits any more
        match tokio::time::timeout(GATHER_MAX, answer).await {
            Ok(Ok(Ok(rows))) => rows,
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => Vec::new(),
        }
    }

    async fn log_tail(&self, unit: &UnitName, at_us: i64) -> Vec<String> {
        let directory = self.logs.join(unit.as_str());
        let (tell, answer) = oneshot::channel();
        let begun = aside("alert-log", move || {
            let _ = tell.send(last_lines(directory, at_us)); // nobody waits any more
        });
        match begun {
            Ok(_) => tokio::time::timeout(GATHER_MAX, answer)
                .await
                .map_or_else(|_| Vec::new(), Result::unwrap_or_default),
            Err(_) => Vec::new(),
        }
    }
}

fn last_lines(directory: PathBuf, at_us: i64) -> Vec<String> {
    let input = |stream| Input { directory: directory.clone(), stream, spool: None, after: None };
    let until_us = Some(at_us.saturating_add(LAST_WORDS_US));
    let asked = Asked { lines: Some(LOG_LINES), until_us, marks: Marks::None, ..Asked::default() };
    let mut lines = Vec::new();
    let Ok(mut reader) = LogReader::begin(Stream::ALL.map(input).into(), asked, &|| false) else {
        return lines;
    };
    while let Ok(Some((_, item))) = reader.next(&|| false) {
        if let Said::Line { bytes, cut, .. } = item.said {
            lines.push(text(&bytes, cut).into_owned());
        }
    }
    lines
}

impl Facts {
    /// Of events that are oldest first.
    fn learn(&mut self, events: &[EventRow], at_us: i64) {
        let known = events.iter().map(|row| &row.event).filter(|event| event.ts_us <= at_us);
        for event in known {
            match event.event.as_str() {
                "unit.failed" => {
                    self.cause.clone_from(&event.cause);
                    self.exit_code = event.data.get("exit_code").and_then(Value::as_i64);
                    self.signal = event.data.get("signal").and_then(Value::as_str).map(String::from);
                    self.next_retry_at = None;
                }
                "retry.scheduled" => {
                    let delay_us = event.data.get("delay_ms").and_then(Value::as_i64).map(|ms| ms * 1_000);
                    self.next_retry_at = delay_us.map(|delay_us| rfc3339(event.ts_us + delay_us));
                }
                "unit.recovered" => {
                    (self.cause, self.exit_code, self.signal) = (None, None, None);
                    self.next_retry_at = None;
                }
                _ => {}
            }
        }
    }
}
