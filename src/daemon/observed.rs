//! What is counted as it happens, for metrics: from the records of the engine, and from what the keeper tells.
//!
//! Refuses: a look of its own, and a thought about what should happen: it sees what was said, and adds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::base::histogram::{Counted, Histogram, QUICK, SLOW};
use crate::base::{exit::RunId, name::UnitName, time::Monotonic};
use crate::engine::effect::{Effect, Record, RecordKind, Role};
use crate::engine::outbox::{Delivery, DeliveryState};
use crate::store::writer::Committed;
use crate::telemetry::metrics::Id;

/// Since this engine began.
pub struct Observed {
    restart: Histogram,
    restart_late: Histogram,
    ready: Histogram,
    downtime: Histogram,
    stop: Histogram,
    /// Checks over the network end in tasks of their own.
    pub health: Arc<Histogram>,
    resync: Histogram,
    pub lag: Histogram,
    pub turn: Histogram,
    failures: BTreeMap<UnitName, u64>,
    /// Failed then, and not executed since.
    failed: BTreeMap<UnitName, Monotonic>,
    /// Being stopped since then.
    stopping: BTreeMap<UnitName, Monotonic>,
    /// Health checks that are processes.
    checks: BTreeMap<RunId, Monotonic>,
    sends: BTreeMap<String, Sends>,
    /// The newest that was committed.
    pub last_event: u64,
}

/// How sends to a channel ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sends {
    pub delivered: u64,
    pub failed: u64,
    pub parked: u64,
}

impl Default for Observed {
    fn default() -> Observed {
        Observed {
            restart: Histogram::new(SLOW),
            restart_late: Histogram::new(QUICK),
            ready: Histogram::new(SLOW),
            downtime: Histogram::new(SLOW),
            stop: Histogram::new(SLOW),
            health: Arc::new(Histogram::new(QUICK)),
            resync: Histogram::new(SLOW),
            lag: Histogram::new(QUICK),
            turn: Histogram::new(QUICK),
            failures: BTreeMap::new(),
            failed: BTreeMap::new(),
            stopping: BTreeMap::new(),
            checks: BTreeMap::new(),
            sends: BTreeMap::new(),
            last_event: 0,
        }
    }
}

impl Observed {
    pub fn histograms(&self) -> Vec<(Id, Counted)> {
        let all = [
            (Id::Restart, &self.restart),
            (Id::RestartLate, &self.restart_late),
            (Id::Ready, &self.ready),
            (Id::Downtime, &self.downtime),
            (Id::Stop, &self.stop),
            (Id::Health, self.health.as_ref()),
            (Id::Resync, &self.resync),
            (Id::LoopLag, &self.lag),
            (Id::Turn, &self.turn),
        ];
        all.into_iter().map(|(id, histogram)| (id, histogram.read())).collect()
    }

    pub fn failures(&self, unit: &UnitName) -> u64 {
        self.failures.get(unit).copied().unwrap_or(0)
    }

    pub fn sends(&self, channel: &str) -> Sends {
        self.sends.get(channel).copied().unwrap_or_default()
    }

    /// A line of history.
    pub fn on_record(&mut self, record: &Record, at: Monotonic) {
        let Some(unit) = &record.unit else { return };
        match &record.kind {
            RecordKind::Failed { .. } => *self.failures.entry(unit.clone()).or_default() += 1,
            RecordKind::RestartScheduled { at: due, delay_ms, .. } => {
                let delay_ns = delay_ms.saturating_mul(1_000_000);
                let failed_at = Monotonic::from_ns(due.as_ns().saturating_sub(delay_ns));
                self.failed.insert(unit.clone(), failed_at);
            }
            RecordKind::Restarted { late_us, .. } => {
                self.restart_late.observe(Duration::from_micros(*late_us));
            }
            RecordKind::Active { start_ms } => self.ready.observe(Duration::from_millis(*start_ms)),
            RecordKind::Recovered { down_ms, .. } => self.downtime.observe(Duration::from_millis(*down_ms)),
            RecordKind::Resynced { took_ms, .. } => self.resync.observe(Duration::from_millis(*took_ms)),
            RecordKind::Stopping => _ = self.stopping.insert(unit.clone(), at),
            RecordKind::Stopped { .. } => {
                // It is not restarted any more.
                self.failed.remove(unit);
                if let Some(since) = self.stopping.remove(unit) {
                    self.stop.observe(at.since(since));
                }
            }
            RecordKind::GaveUp { .. } | RecordKind::Removed => {
                self.failed.remove(unit);
                self.stopping.remove(unit);
            }
            RecordKind::Ordered { .. }
            | RecordKind::Waiting { .. }
            | RecordKind::Started { .. }
            | RecordKind::EpisodeEnded { .. }
            | RecordKind::Killed
            | RecordKind::Finished { .. }
            | RecordKind::Stuck
            | RecordKind::Unstuck
            | RecordKind::Reloaded
            | RecordKind::HookFailed { .. }
            | RecordKind::Shortage { .. }
            | RecordKind::Adopted { .. }
            | RecordKind::Degraded { .. }
            | RecordKind::Restored
            | RecordKind::HealthChanged { .. }
            | RecordKind::RetryExhausted { .. }
            | RecordKind::ResyncStarted { .. }
            | RecordKind::ResyncFailed { .. }
            | RecordKind::Reconfigured { .. }
            | RecordKind::Changed { .. }
            | RecordKind::AlertRaised { .. }
            | RecordKind::EngineDied { .. }
            | RecordKind::SafeModeLeft
            | RecordKind::Quarantined { .. }
            | RecordKind::QuarantineLeft => {}
        }
    }

    /// A run was executed.
    pub fn on_executed(&mut self, unit: &UnitName, run: RunId, role: Role, now: Monotonic) {
        match role {
            Role::Main => {
                if let Some(failed_at) = self.failed.remove(unit) {
                    self.restart.observe(now.since(failed_at));
                }
            }
            Role::HealthCheck => _ = self.checks.insert(run, now),
            Role::StartPre(_)
            | Role::StartPost(_)
            | Role::StopPost(_)
            | Role::StopCommand
            | Role::ReloadCommand
            | Role::ReadyCheck
            | Role::Resync => {}
        }
    }

    /// A run has ended.
    pub fn on_ended(&mut self, run: RunId, at: Monotonic) {
        if let Some(began) = self.checks.remove(&run) {
            self.health.observe(at.since(began));
        }
    }

    /// An alert was sent, and this came of it.
    pub fn on_delivery(&mut self, delivery: &Delivery) {
        let sends = self.sends.entry(delivery.channel.clone()).or_default();
        match delivery.state {
            DeliveryState::Pending => sends.failed += 1,
            DeliveryState::Delivered => sends.delivered += 1,
            DeliveryState::Parked => sends.parked += 1,
            DeliveryState::Muted => {} // it was not sent
        }
    }

    pub fn on_committed(&mut self, committed: &Committed) {
        let newest = committed.events.last().map_or(0, |row| row.id);
        self.last_event = self.last_event.max(newest);
    }

    /// The unit is no more.
    pub fn on_effect(&mut self, effect: &Effect) {
        if let Effect::Forget { unit } = effect {
            self.failures.remove(unit);
            self.failed.remove(unit);
            self.stopping.remove(unit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::exit::Exit;
    use crate::engine::effect::Cause;

    fn count(observed: &Observed, id: Id) -> u64 {
        observed.histograms().into_iter().find(|(of, _)| *of == id).map_or(0, |(_, counted)| counted.count)
    }

    #[test]
    fn a_restart_is_measured_from_the_failure_to_the_exec() {
        let unit = UnitName::parse("web").expect("a name");
        let mut observed = Observed::default();
        let at = |ms: u64| Monotonic::from_ns(ms * 1_000_000);
        let record = |observed: &mut Observed, kind, now| {
            observed
                .on_record(&Record { unit: Some(unit.clone()), run: Some(RunId(1)), kind, state: None }, now);
        };
        let exit = Exit::Code(1);
        let cause = Cause::Exited(exit);
        record(
            &mut observed,
            RecordKind::Failed { cause, failures: 1, episode: 1, blame: Vec::new(), well_until: None },
            at(9),
        );
        let scheduled = RecordKind::RestartScheduled { at: at(1_008), delay_ms: 1_000, failures: 1 };
        record(&mut observed, scheduled, at(9));
        observed.on_executed(&unit, RunId(2), Role::Main, at(1_018));
        let restart = observed.restart.read();
        assert_eq!((restart.count, observed.failures(&unit)), (1, 1));
        assert!((restart.sum_s - 1.01).abs() < 1e-9, "{}", restart.sum_s);
        observed.on_executed(&unit, RunId(3), Role::Main, at(5_000));
        assert_eq!(count(&observed, Id::Restart), 1, "an exec without a failure is none");

        record(&mut observed, RecordKind::Stopping, at(6_000));
        record(&mut observed, RecordKind::Stopped { exit: Some(exit) }, at(6_250));
        assert!((observed.stop.read().sum_s - 0.25).abs() < 1e-9);
        observed.on_effect(&Effect::Forget { unit: unit.clone() });
        assert_eq!(observed.failures(&unit), 0);
    }

    #[test]
    fn a_check_that_is_a_process_is_measured_until_its_end() {
        let unit = UnitName::parse("web").expect("a name");
        let mut observed = Observed::default();
        observed.on_executed(&unit, RunId(4), Role::HealthCheck, Monotonic::from_ns(0));
        observed.on_ended(RunId(4), Monotonic::from_ns(7_000_000));
        observed.on_ended(RunId(4), Monotonic::from_ns(9_000_000));
        assert_eq!(count(&observed, Id::Health), 1);
    }
}
