//! What a service says of itself (sd_notify(3)) beyond readiness and the watchdog's ping: it
//! moves deadlines and words, never the state.
//!
//! Refuses: checking who said it. The shell asks whether the sender belongs to the unit.

use std::time::Duration;

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::{AlertKind, Effects, Mark, RecordKind};
use crate::engine::event::Said;
use crate::engine::state::{State, StopStep, Uttered, Watch, WatchStep};

/// Longest single extension of a timeout. A service may extend again; a typing mistake of three
/// zeros must not hold a start for a month.
const EXTENSION_MAX: Duration = Duration::from_secs(3_600);

impl Engine {
    /// A process of the unit of this main run said something.
    pub(crate) fn on_said(&mut self, now: Monotonic, run: RunId, said: Said, fx: &mut Effects) {
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        let Some(unit) = self.units.get_mut(&name) else { return };
        if unit.main != Some(run) {
            return fx.mark(Mark::LateNewsIgnored);
        }
        self.touched.insert(name.clone());
        match said {
            Said::Status(text) => unit.status = Some(text).filter(|text| !text.is_empty()),
            Said::Reloading => unit.uttered = Some(Uttered::Reloading),
            Said::Stopping => {
                unit.uttered = Some(Uttered::Stopping);
                self.pause_checks(now, &name);
            }
            Said::MainPid(pid) => {
                if let Some(living) = unit.living.get_mut(&run) {
                    fx.mark(Mark::MainPidChanged);
                    living.pid = Some(pid);
                }
            }
            Said::WatchdogEvery(every) => {
                if let State::Active(active) = &mut unit.state
                    && let Some(Watch { step: WatchStep::Watchdog { due, every: known }, .. }) =
                        &mut active.health
                {
                    *known = every;
                    *due = now + every;
                }
            }
            Said::ExtendTimeout(by) => self.extend(now, &name, by.min(EXTENSION_MAX), fx),
        }
    }

    /// A start or a stop that is under way gets at least this much longer, as systemd gives it.
    fn extend(&mut self, now: Monotonic, name: &UnitName, by: Duration, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let deadline = match &mut unit.state {
            State::Activating(activating) => activating.deadline.as_mut(),
            State::Deactivating { step, .. } => match step {
                StopStep::Command { deadline, .. } => Some(deadline),
                StopStep::Terminating { kill_at, .. } => Some(kill_at),
                StopStep::Killing { .. } | StopStep::Post { .. } => None,
            },
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Active(_)
            | State::Backoff { .. }
            | State::Failed { .. } => None,
        };
        if let Some(deadline) = deadline.filter(|deadline| **deadline < now + by) {
            fx.mark(Mark::TimeoutExtended);
            *deadline = now + by;
        }
    }

    /// It is on its way out by itself: a check would call that unhealthy. One that does not get
    /// there within the time a stop has is looked at again.
    fn pause_checks(&mut self, now: Monotonic, name: &UnitName) {
        let Some(unit) = self.units.get_mut(name) else { return };
        let grace = unit.spec.stop.timeout;
        let State::Active(active) = &mut unit.state else { return };
        let Some(watch) = &mut active.health else { return };
        match &mut watch.step {
            WatchStep::Next(at) => *at = (*at).max(now + grace),
            WatchStep::Watchdog { due, .. } => *due = (*due).max(now + grace),
            WatchStep::InFlight { .. } | WatchStep::Overslept { .. } | WatchStep::Killed { .. } => {}
        }
    }

    /// `READY=1` of a unit that is ready already ends a reload that it announced.
    pub(crate) fn end_own_reload(&mut self, name: &UnitName, run: RunId, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        if unit.main == Some(run) && unit.uttered == Some(Uttered::Reloading) {
            unit.uttered = None;
            self.touched.insert(name.clone());
            fx.mark(Mark::ReloadedByItself);
            fx.record(name, Some(run), RecordKind::Reloaded);
        }
    }

    /// What the files came to: a person is told when they are broken, and when they are mended.
    pub(crate) fn on_config_judged(&mut self, now: Monotonic, errors: Vec<String>, fx: &mut Effects) {
        if self.durable.config_errors == errors {
            return;
        }
        let known = std::mem::replace(&mut self.durable.config_errors, errors.clone());
        let what = format!("{}", now.as_ns());
        let new = errors.iter().find(|error| !known.contains(error));
        match (new, errors.is_empty()) {
            (_, true) => {
                fx.mark(Mark::ConfigMended);
                let text = "the configuration is whole again".to_string();
                Engine::raise_of_engine(AlertKind::ConfigMended, what, text, fx);
            }
            (Some(first), false) => {
                fx.mark(Mark::ConfigBroken);
                let more = match errors.len() {
                    1 => String::new(),
                    count => format!(" (and {} more)", count - 1),
                };
                let text =
                    format!("a configuration error: {first}{more}; what was in force before stays in force");
                Engine::raise_of_engine(AlertKind::ConfigError, what, text, fx);
            }
            (None, false) => {}
        }
    }
}
