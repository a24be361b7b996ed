//! The promises on what was committed, in the order in which it was.
//!
//! Refuses: looking at the engine. What no commit kept did not happen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::engine::effect::{Alert, AlertKind, Record, RecordKind};
use crate::sim::oracle::{Verdict, broken};
use crate::sim::promises;
use crate::sim::world::World;
use crate::unit::spec::UnitSpec;

/// What the committed records of a unit add up to.
#[derive(Debug, Default)]
struct Account {
    /// Failures of this episode.
    failures: u32,
    /// It failed, and was not active since.
    outage: bool,
    /// The newest run that was active.
    active_run: Option<RunId>,
    /// Failures of this episode without blame, and whether one of them was due an alert.
    own: u32,
    alerted: bool,
    /// Recoveries that were due so far.
    recoveries: usize,
}

#[derive(Debug, Default)]
pub struct Books {
    accounts: BTreeMap<UnitName, Account>,
    /// Units whose `[alert]` has changed: which failure is due an alert depends on when it was
    /// made, and that is not when it is committed.
    undecided: BTreeSet<UnitName>,
    events_seen: usize,
}

impl Books {
    pub(crate) fn forget_due(&mut self, unit: &UnitName) {
        self.undecided.insert(unit.clone());
    }

    /// Everything that was committed since the last look.
    ///
    /// # Errors
    /// The first promise found broken.
    pub fn read(&mut self, world: &World, specs: &BTreeMap<UnitName, Arc<UnitSpec>>) -> Verdict {
        while let Some(record) = world.events.get(self.events_seen) {
            self.events_seen += 1;
            if let Some(unit) = &record.unit {
                let account = self.accounts.entry(unit.clone()).or_default();
                let spec = specs.get(unit).filter(|_| !self.undecided.contains(unit));
                account.alerts(world, unit, record, spec)?;
                account.read(unit, record, &world.events[self.events_seen..])?;
            }
        }
        Ok(())
    }
}

impl Account {
    /// I13, I14, I19: an alert stands in the same transaction as the failure that is due one,
    /// and the end of an alerted episode has its recovery.
    fn alerts(
        &mut self,
        world: &World,
        unit: &UnitName,
        record: &Record,
        spec: Option<&Arc<UnitSpec>>,
    ) -> Verdict {
        match (&record.kind, spec) {
            (RecordKind::Failed { blame, episode, .. }, Some(spec)) if blame.is_empty() => {
                self.own += 1;
                let (own, after, every) = (self.own, spec.alert.after_failures, spec.alert.repeat_every);
                let due = own == after || (own > after && every > 0 && (own - after).is_multiple_of(every));
                let stands = world.alerts.contains_key(&format!("{unit}/{episode}/failing/{own}"));
                self.alerted |= due;
                if stands != due {
                    let detail = format!("failure {own}: due {due}, stands {stands}");
                    return broken(promises::I13, unit, detail);
                }
            }
            (RecordKind::EpisodeEnded { .. }, None) => self.own = 0,
            (RecordKind::EpisodeEnded { .. }, Some(_)) => {
                self.own = 0;
                self.recoveries += usize::from(std::mem::take(&mut self.alerted));
                let of_unit =
                    |alert: &&Alert| alert.kind == AlertKind::Recovered && alert.unit.as_ref() == Some(unit);
                let told = world.alerts.values().filter(of_unit).count();
                if told < self.recoveries {
                    let detail = format!("{told} recoveries where {} were due", self.recoveries);
                    return broken(promises::I19, unit, detail);
                }
            }
            (RecordKind::Stuck, _) => {
                let ending = format!("/stuck/{}", record.run.unwrap_or(RunId(0)).0);
                if !self.told(world, unit, AlertKind::Stuck, |key| key.ends_with(&ending)) {
                    return broken(promises::I21C, unit, ending);
                }
            }
            (RecordKind::GaveUp { failures }, _) => {
                let ending = format!("/gave-up/{failures}");
                if !self.told(world, unit, AlertKind::GaveUp, |key| key.ends_with(&ending)) {
                    return broken(promises::I40, unit, ending);
                }
            }
            (RecordKind::RetryExhausted { what: "resync", .. }, _) => {
                let run = format!("/resync-failed/{}-", record.run.unwrap_or(RunId(0)).0);
                if !self.told(world, unit, AlertKind::ResyncFailed, |key| key.contains(&run)) {
                    return broken(promises::I26D, unit, run);
                }
            }
            _raises_nothing => {}
        }
        Ok(())
    }

    fn told(&self, world: &World, unit: &UnitName, kind: AlertKind, is_it: impl Fn(&str) -> bool) -> bool {
        let mut alerts = world.alerts.values();
        alerts.any(|alert| alert.kind == kind && alert.unit.as_ref() == Some(unit) && is_it(&alert.key))
    }

    /// `after`: what was committed later, of the same transaction among others.
    fn read(&mut self, unit: &UnitName, record: &Record, after: &[Record]) -> Verdict {
        match &record.kind {
            RecordKind::Failed { failures, .. } => {
                self.failures += 1;
                // An older run's failure, told late, is no outage of the run that is active.
                self.outage |= record.run >= self.active_run;
                if self.failures != *failures {
                    let detail = format!("failure {failures} where {} was due", self.failures);
                    return broken(promises::I11, unit, detail);
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
                    return broken(promises::I48, unit, format!("run {:?}: {told} recoveries", record.run));
                }
            }
            _adds_nothing_up => {}
        }
        Ok(())
    }
}
