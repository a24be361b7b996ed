//! Deaths of the engine itself: each is told; too many in too short a time are safe mode.
//!
//! Refuses: stopping to supervise. Safe mode supervises on, obeys operators, and only leaves
//! alone what nobody asked for: files that change are not followed by themselves, because the
//! last change is the likeliest reason of the deaths.

use std::time::Duration;

use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::{AlertKind, Effects, Mark};

/// Deaths within `DEATHS_WINDOW` that make safe mode (design: five within a minute).
pub(crate) const DEATHS_TO_SAFE_MODE: usize = 5;

const DEATHS_WINDOW: Duration = Duration::from_secs(60);

/// Safe mode ends after so long without another death.
const SAFE_CALM: Duration = Duration::from_secs(600);

/// Whether files are followed by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Normal,
    Safe,
}

impl Engine {
    /// An engine went before this one and did not end as it should.
    pub(crate) fn on_engine_death(&mut self, now: Monotonic, fx: &mut Effects) {
        self.leave_safe_mode(now);
        let row = &mut self.durable;
        row.deaths.retain(|at| now.since(*at) < DEATHS_WINDOW);
        row.deaths.push(now);
        let deaths = row.deaths.len();
        if row.safe_since.is_some() {
            row.deaths.truncate(DEATHS_TO_SAFE_MODE);
            row.safe_since = Some(now); // its calm begins anew; it was told once
            return;
        }
        let what = format!("{}", now.as_ns());
        if deaths >= DEATHS_TO_SAFE_MODE {
            row.safe_since = Some(now);
            fx.mark(Mark::SafeModeEntered);
            let message = format!(
                "the engine died {deaths} times within a minute: safe mode. Services run on and orders are \
                 taken; for 10 minutes files that change are shown and not applied, but by `upright apply`"
            );
            return Engine::raise_of_engine(AlertKind::SafeMode, what, message, fx);
        }
        let message = "the engine died and another took over; no service was touched".to_string();
        Engine::raise_of_engine(AlertKind::EngineRestarted, what, message, fx);
    }

    /// Whether the engine trusts itself.
    pub fn mode(&self, now: Monotonic) -> Mode {
        match self.durable.safe_since {
            Some(since) if now.since(since) < SAFE_CALM => Mode::Safe,
            Some(_) | None => Mode::Normal,
        }
    }

    /// Safe mode that is over is forgotten with the next death's reckoning.
    pub(crate) fn leave_safe_mode(&mut self, now: Monotonic) {
        if self.durable.safe_since.is_some() && self.mode(now) == Mode::Normal {
            self.durable.safe_since = None;
            self.durable.deaths.clear();
        }
    }
}
