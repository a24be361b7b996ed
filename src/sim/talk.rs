//! What services of the fake world say of themselves (sd_notify(3)).
//!
//! Refuses: readiness, which belongs to their nature.

use std::time::Duration;

use crate::base::exit::RunId;
use crate::engine::event::{Event, Said};
use crate::sim::tape::Domain;
use crate::sim::world::World;
use crate::unit::spec::{HealthCheck, ReadyWhen};

impl World {
    /// It says something of itself, besides that it is ready.
    pub(crate) fn talks(&mut self, run: RunId) {
        if !self.rate(Domain::Hook, self.faults.talk_per_mille) {
            return;
        }
        let Some(process) = self.table.get(&run).cloned() else { return };
        let Some(spec) = self.specs.get(&process.unit).cloned() else { return };
        let said = match (self.tape.below(Domain::Hook, 7), spec.health.map(|health| health.check)) {
            (0, _) => Said::Status("serving".to_string()),
            (1, _) if process.ready && spec.readiness.when == ReadyWhen::Notify => {
                self.tell(Event::NotifiedReady { run });
                self.tell(Event::Said { run, said: Said::Reloading });
                return self.tell(Event::NotifiedReady { run });
            }
            (2, _) => Said::Stopping,
            (6, _) => return self.tell(Event::WatchdogTriggered { run }),
            (3, _) => Said::ExtendTimeout(Duration::from_secs(30)),
            (4, Some(HealthCheck::Watchdog(every))) => Said::WatchdogEvery(every * 3 / 2),
            _ => Said::MainPid(process.pid.saturating_add(100_000)),
        };
        self.tell(Event::Said { run, said });
    }
}
