//! The heartbeat: while this engine works, an address of somebody else is asked every so often. Silence
//! is what that somebody tells.
//!
//! Refuses: beating for a loop that hangs. A beat is made by the loop, as a turn of it; the task only
//! says that it is time.

use tokio::task::AbortHandle;

use crate::alert;
use crate::daemon::hands::Source;
use crate::daemon::shell::{Ending, Shell};
use crate::engine::outbox::Outcome;
use crate::store::row::Level;
use crate::unit::daemon_file::Heartbeat;

/// What the loop hears of it.
#[derive(Debug)]
pub enum Pulse {
    /// It is time.
    Due,
    Answered(Outcome),
}

/// The heartbeat in force.
#[derive(Debug, Default)]
pub struct Beat {
    of: Option<Heartbeat>,
    timer: Option<AbortHandle>,
    under_way: bool,
    /// Why the last one was not taken.
    failing: Option<String>,
}

impl Shell {
    /// Begins, changes or ends it.
    pub(crate) fn beat_as(&mut self, wanted: Option<Heartbeat>) {
        if self.beat.of == wanted {
            return;
        }
        if let Some(timer) = self.beat.timer.take() {
            timer.abort();
        }
        self.beat.timer = wanted.as_ref().map(|heartbeat| {
            let (interval, sources) = (heartbeat.interval, self.hands.tools.sources.clone());
            let timer = tokio::spawn(async move {
                // Ends with the loop.
                while sources.send(Source::Heartbeat(Pulse::Due)).is_ok() {
                    tokio::time::sleep(interval).await;
                }
            });
            timer.abort_handle()
        });
        self.beat.of = wanted;
    }

    pub(crate) fn on_pulse(&mut self, pulse: Pulse) {
        match pulse {
            Pulse::Due => self.make_beat(),
            Pulse::Answered(outcome) => {
                self.beat.under_way = false;
                self.note_beat(outcome);
            }
        }
    }

    /// Not while everything is being stopped: that is what somebody may want to hear of.
    fn make_beat(&mut self) {
        let Some(heartbeat) = &self.beat.of else { return };
        if self.ending != Ending::No || self.beat.under_way {
            return;
        }
        let (url, sources) = (heartbeat.url.clone(), self.hands.tools.sources.clone());
        self.beat.under_way = true;
        tokio::spawn(async move {
            let outcome = alert::beat(url).await;
            let _ = sources.send(Source::Heartbeat(Pulse::Answered(outcome))); // the loop has ended
        });
    }

    /// One line when it is not taken any more, and one when it is again.
    fn note_beat(&mut self, outcome: Outcome) {
        let why = match outcome {
            Outcome::Acked => None,
            Outcome::Failed { why, .. } | Outcome::Refused { why } => Some(why),
        };
        let before = std::mem::replace(&mut self.beat.failing, why.clone());
        match (before, why) {
            (None, Some(why)) => {
                let message = format!("the heartbeat is not taken: {why}");
                self.note(Level::Warn, "heartbeat.failed", message, [("why", why.into())]);
            }
            (Some(_), None) => {
                self.note(Level::Info, "heartbeat.taken", "the heartbeat is taken again".to_string(), []);
            }
            (Some(_), Some(_)) | (None, None) => return,
        }
        self.hands.end_step();
    }
}
