//! Deaths of the engine itself: each is told; too many in too short a time are safe mode, and a unit
//! that engines die of is put into quarantine (`quarantine`).
//!
//! Refuses: stopping to supervise. Safe mode restarts, checks and stops as ever, and takes orders that
//! name units: start, stop, restart, clear, signal. What it refuses is what changes what is in force,
//! because the last change is the likeliest reason of the deaths: files that change are not followed,
//! `apply`, `reload` and `resync` are not taken.

use std::time::Duration;

use crate::base::exit::Exit;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::{AlertKind, Effect, Effects, Mark, Record, RecordKind};
use crate::engine::event::Order;

/// Deaths within `DEATHS_WINDOW` that make safe mode (design: five within a minute).
pub(crate) const DEATHS_TO_SAFE_MODE: usize = 5;

const DEATHS_WINDOW: Duration = Duration::from_secs(60);

/// Safe mode ends after so long without another death.
const SAFE_CALM: Duration = Duration::from_secs(600);

/// How an engine that went before this one ended, and what it dealt with then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// When the keeper reaped it; no two have the same.
    pub at: Monotonic,
    pub how: DeathHow,
    pub touched: Option<UnitName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeathHow {
    Ended(Exit),
    /// It did not answer, and the keeper killed it.
    Hung,
}

impl Death {
    /// Whether it may have died of what it did. SIGKILL, SIGTERM and the like come from outside: from
    /// the kernel that is short of memory, or from somebody who tests us.
    pub(crate) fn is_own_doing(&self) -> bool {
        match self.how {
            DeathHow::Hung => true,
            DeathHow::Ended(Exit::Code(code)) => code != 0,
            DeathHow::Ended(Exit::Signal { signal, .. }) => {
                // ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS: signal(7), "Core", those of the program itself.
                matches!(signal.number(), 4 | 5 | 6 | 7 | 8 | 11 | 31)
            }
            DeathHow::Ended(Exit::NotExecuted { .. } | Exit::Unknown) => false,
        }
    }
}

/// Whether what is in force may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Normal,
    Safe,
}

impl Engine {
    /// Engines went before this one and did not end as they should, oldest first. Each is told once.
    pub(crate) fn on_deaths(&mut self, now: Monotonic, deaths: &[Death], fx: &mut Effects) {
        self.leave_safe_mode(now);
        let told = self.durable.told_death;
        let untold = deaths.iter().filter(|death| told.is_none_or(|told| death.at > told));
        let untold: Vec<&Death> = untold.collect();
        let Some(newest) = untold.last() else { return };
        self.durable.told_death = Some(newest.at);
        for death in &untold {
            let kind = RecordKind::EngineDied { how: death.how, touched: death.touched.clone() };
            fx.push(Effect::Record(Record { unit: None, run: None, kind, state: None }));
        }
        if self.durable.safe_since.is_some() {
            self.durable.safe_since = Some(now); // its calm begins anew; it was told once
            return;
        }
        let counts = |death: &&Death| !self.is_forgiven(death) && now.since(death.at) < DEATHS_WINDOW;
        let count = deaths.iter().filter(counts).count();
        let what = format!("{}", newest.at.as_ns());
        if count >= DEATHS_TO_SAFE_MODE {
            self.durable.safe_since = Some(now);
            fx.mark(Mark::SafeModeEntered);
            let message = format!(
                "the engine died {count} times within a minute: safe mode. Services run on and are restarted; \
                 units can be started, stopped and cleared. Files that change are shown and not applied, and \
                 `apply`, `reload` and `resync` are refused, until 10 minutes have passed without another \
                 death, or `upright clear --all`"
            );
            return Engine::raise_of_engine(AlertKind::SafeMode, what, message, fx);
        }
        let message = match newest.how {
            DeathHow::Hung => {
                "the engine did not answer and was replaced; no service was touched".to_string()
            }
            DeathHow::Ended(exit) => {
                format!("the engine died ({exit}) and another took over; no service was touched")
            }
        };
        Engine::raise_of_engine(AlertKind::EngineRestarted, what, message, fx);
    }

    /// Whether an operator has said since that it shall count no more.
    pub(crate) fn is_forgiven(&self, death: &Death) -> bool {
        self.durable.forgiven.is_some_and(|until| death.at <= until)
    }

    /// Whether the engine trusts itself.
    pub fn mode(&self, now: Monotonic) -> Mode {
        match self.durable.safe_since {
            Some(since) if now.since(since) < SAFE_CALM => Mode::Safe,
            Some(_) | None => Mode::Normal,
        }
    }

    /// Why the files as they stand cannot be applied now (`WAY_OUT` says what to do). None: they can.
    pub fn refuses_files(&self, now: Monotonic) -> Option<String> {
        (self.mode(now) == Mode::Safe).then(|| refusal("apply the files"))
    }

    /// The same for an order.
    pub(crate) fn refuses(&self, now: Monotonic, order: &Order) -> Option<String> {
        if self.mode(now) == Mode::Normal {
            return None;
        }
        match order {
            Order::Reload(_) => Some(format!("{}; {WAY_OUT}", refusal("reload"))),
            Order::Resync(_) => Some(format!("{}; {WAY_OUT}", refusal("resync"))),
            Order::Start(_)
            | Order::Stop(_)
            | Order::Restart(_)
            | Order::Clear(_)
            | Order::Signal(..)
            | Order::Outage(..)
            | Order::AwaitUp(_)
            | Order::AwaitDown(_)
            | Order::Shutdown => None,
        }
    }

    /// Safe mode that is over is forgotten with the next death's reckoning.
    pub(crate) fn leave_safe_mode(&mut self, now: Monotonic) {
        if self.durable.safe_since.is_some() && self.mode(now) == Mode::Normal {
            self.durable.safe_since = None;
        }
    }

    /// An operator cleared every unit: the deaths are forgotten, too.
    pub(crate) fn trust_again(&mut self, now: Monotonic, fx: &mut Effects) {
        if self.mode(now) == Mode::Safe {
            fx.mark(Mark::SafeModeLeft);
            fx.push(Effect::Record(Record {
                unit: None,
                run: None,
                kind: RecordKind::SafeModeLeft,
                state: None,
            }));
        }
        self.durable.safe_since = None;
        if self.durable.told_death > self.durable.forgiven {
            self.durable.forgiven = Some(now);
        }
    }
}

/// What ends safe mode.
pub const WAY_OUT: &str = "safe mode ends 10 minutes after the last death, or with `upright clear --all`; \
     `upright events` tells what happened";

fn refusal(what: &str) -> String {
    format!(
        "cannot {what} in safe mode: the engine died {DEATHS_TO_SAFE_MODE} times within a minute, and may die \
         of what changes"
    )
}
