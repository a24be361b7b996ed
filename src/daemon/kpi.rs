//! What the ledger needs from the daemon, and its figures as an answer.
//!
//! Refuses: counting what a record can say. Only of the bytes in the logs there is none: it is written
//! here, at most once in ten minutes, and before a summary is given.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::api::call::{Answer, Since};
use crate::api::summary::Summary;
use crate::base::time::Monotonic;
use crate::daemon::handlers::{json, refuse};
use crate::daemon::shell::Shell;
use crate::ledger::marks;
use crate::store::StoreError;
use crate::store::books::Window;
use crate::store::row::Level;
use crate::sys::clock::{self, rfc3339};

/// Between two records of what was written to the logs, while something was. An engine that is
/// killed takes the bytes since the last one with it.
pub(crate) const LOGS_COUNTED_EVERY: Duration = Duration::from_secs(600);

/// The same where somebody asks for a summary, over and over.
const LOGS_COUNTED_FOR_SUMMARY: Duration = Duration::from_secs(1);

/// What of the logs is on record.
#[derive(Default)]
pub(crate) struct LogsCounted {
    stored_bytes: u64,
    dropped_bytes: u64,
    at: Option<Monotonic>,
}

impl Shell {
    /// Writes down by how much the logs have grown, if the last such record is so old.
    pub(crate) fn count_logs(&mut self, after: Duration) {
        let now = clock::monotonic();
        let last = self.logs_counted.at.unwrap_or(self.begun);
        if now.since(last) < after {
            return;
        }
        let counts = self.hands.tools.capture.counts();
        let bytes = counts.stored_bytes.saturating_sub(self.logs_counted.stored_bytes);
        let dropped_bytes = counts.dropped_bytes.saturating_sub(self.logs_counted.dropped_bytes);
        let (stored_bytes, dropped_total) = (counts.stored_bytes, counts.dropped_bytes);
        self.logs_counted = LogsCounted { stored_bytes, dropped_bytes: dropped_total, at: Some(now) };
        if bytes == 0 && dropped_bytes == 0 {
            return;
        }
        let lost = if dropped_bytes == 0 { String::new() } else { format!(", {dropped_bytes} were dropped") };
        let message = format!("units wrote {bytes} bytes to their logs{lost}");
        let data = [("bytes", bytes.into()), ("dropped_bytes", dropped_bytes.into())];
        let level = if dropped_bytes == 0 { Level::Info } else { Level::Warn };
        self.note(level, "log.counted", message, data);
        self.hands.end_step();
    }

    pub(crate) fn answer_summary(&mut self, since: Since, reply: oneshot::Sender<Answer>) {
        self.count_logs(LOGS_COUNTED_FOR_SUMMARY);
        let until_us = clock::wall().as_microsecond();
        let since_us = match since {
            Since::Last(length) => {
                until_us.saturating_sub_unsigned(u64::try_from(length.as_micros()).unwrap_or(u64::MAX))
            }
            Since::At(since_us) => since_us.min(until_us),
        };
        self.hands.tools.store.reader().summary(since_us, until_us, move |window| {
            let _ = reply.send(answer(since_us, window)); // whoever asked has left
        });
    }
}

/// The figures of a window that was asked for from `since_us` on.
pub(crate) fn summary(since_us: i64, window: Window) -> Summary {
    let Window { split, from_us, until_us, last_event_id } = window;
    #[expect(clippy::cast_precision_loss, reason = "shown to a microsecond")]
    let window_s = until_us.saturating_sub(since_us) as f64 / 1e6;
    let kpis = marks::verdicts(&split.all);
    Summary { window_s, from: rfc3339(from_us), until: rfc3339(until_us), last_event_id, split, kpis }
}

fn answer(since_us: i64, window: Result<Window, StoreError>) -> Answer {
    match window {
        Ok(window) => json(&summary(since_us, window)),
        Err(error) => {
            let help = Some("supervision goes on; try again".to_string());
            refuse(503, "store.unavailable", error.to_string(), help)
        }
    }
}
