//! The promises on what was committed, in the order in which it was.
//!
//! Refuses: looking at the engine. What no commit kept did not happen.

use std::collections::BTreeMap;

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::engine::effect::{Record, RecordKind};
use crate::sim::oracle::{Verdict, broken};
use crate::sim::promises::PROMISES;
use crate::sim::world::World;

/// What the committed records of a unit add up to.
#[derive(Debug, Default)]
struct Account {
    /// Failures of this episode.
    failures: u32,
    /// It failed, and was not active since.
    outage: bool,
    /// The newest run that was active.
    active_run: Option<RunId>,
}

#[derive(Debug, Default)]
pub struct Books {
    accounts: BTreeMap<UnitName, Account>,
    events_seen: usize,
}

impl Books {
    /// Everything that was committed since the last look.
    ///
    /// # Errors
    /// The first promise found broken.
    pub fn read(&mut self, world: &World) -> Verdict {
        while let Some(record) = world.events.get(self.events_seen) {
            self.events_seen += 1;
            if let Some(unit) = &record.unit {
                let account = self.accounts.entry(unit.clone()).or_default();
                account.read(unit, record, &world.events[self.events_seen..])?;
            }
        }
        Ok(())
    }
}

impl Account {
    /// `after`: what was committed later, of the same transaction among others.
    fn read(&mut self, unit: &UnitName, record: &Record, after: &[Record]) -> Verdict {
        match &record.kind {
            RecordKind::Failed { failures, .. } => {
                self.failures += 1;
                // An older run's failure, told late, is no outage of the run that is active.
                self.outage |= record.run >= self.active_run;
                if self.failures != *failures {
                    let detail = format!("failure {failures} where {} was due", self.failures);
                    return broken(PROMISES[7], unit, detail);
                }
            }
            RecordKind::EpisodeEnded { .. } => self.failures = 0,
            RecordKind::Removed => *self = Account::default(),
            // An operator took the unit down: whatever comes next is a start, not a recovery.
            RecordKind::Ordered { verb: "stop" } => self.outage = false,
            RecordKind::Active { .. } => {
                self.active_run = record.run.max(self.active_run);
                let is_recovery = |other: &&Record| {
                    other.unit.as_ref() == Some(unit)
                        && matches!(other.kind, RecordKind::Recovered { .. })
                        && other.run == record.run
                };
                let told = after.iter().filter(is_recovery).count();
                if std::mem::take(&mut self.outage) && told != 1 {
                    return broken(PROMISES[26], unit, format!("run {:?}: {told} recoveries", record.run));
                }
            }
            _adds_nothing_up => {}
        }
        Ok(())
    }
}
