//! A drill's outage: a unit is killed and held down for a time, as if it could not come back.
//!
//! Refuses: outliving its engine, or the word of an operator. It is a deadline in memory and nothing else,
//! so whatever dies, it is over.

use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::{Effect, Effects, Outcome};
use crate::engine::state::{State, Unit};

impl Engine {
    /// The end of its process is a failure like any other; only the start after it waits.
    pub(crate) fn order_outage(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        until: Option<Monotonic>,
        fx: &mut Effects,
    ) -> Option<Outcome> {
        let Some(until) = until else {
            self.end_outage(now, name);
            return Some(Outcome::Done);
        };
        let unit = self.units.get_mut(name)?;
        let Some(run) = unit.living_main() else {
            return Some(Outcome::Failed("it has no process to kill".to_string()));
        };
        unit.outage_until = Some(until);
        fx.push(Effect::Signal { run, signal: Signal::KILL });
        Some(Outcome::Done)
    }

    /// It may start again, now.
    pub(crate) fn end_outage(&mut self, now: Monotonic, name: &UnitName) {
        let Some(unit) = self.units.get_mut(name) else { return };
        if unit.outage_until.take().is_some() && is_waiting(unit) {
            self.set_waiting(now, name);
        }
    }
}

fn is_waiting(unit: &Unit) -> bool {
    matches!(unit.state, State::Waiting { .. })
}
