//! Sums and what is open → the figures that people are told.
//!
//! Refuses: a number where there is none. A share of nothing, or the mean of no outage, is `null`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ledger::carry::Carry;
use crate::ledger::spread::{Extent, Spread};
use crate::ledger::tally::{Both, Tally, UnitTally};

/// The KPIs of one window and one realm.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Figures {
    /// Records of a failure; also those while a requirement was down.
    pub failures: u64,
    /// Those of them while a requirement was down.
    #[serde(default)]
    pub failures_blamed: u64,
    /// Times a unit that was well failed.
    #[serde(default)]
    pub outages: u64,
    /// Units that have failed and are not ready again now.
    #[serde(default)]
    pub open_outages: u64,
    /// Outages that ended in the window with the unit ready, wherever they began.
    pub recoveries: u64,
    /// Those of them in which nobody had a hand.
    #[serde(default)]
    pub auto_recoveries: u64,
    /// Outages in which an operator acted, or that were given up.
    #[serde(default)]
    pub helped_outages: u64,
    #[serde(default)]
    pub gave_up: u64,
    /// auto_recoveries / (auto_recoveries + helped_outages).
    pub auto_recovery_rate: Option<f64>,
    /// From the last moment a unit was known to be well to the record of its failure.
    #[serde(default)]
    pub mttd_s: Times,
    /// From the first failure of an outage to ready, of outages that ended.
    pub mttr_s: Times,
    pub resync: Resyncs,
    pub alerts: Alerts,
    pub log: LogBytes,
    /// Operators' actions on a unit that was failing.
    pub manual_interventions: u64,
    /// Times the whole ended without stopping its units.
    pub fatal_stops: u64,
    /// Times an engine died or hung; the next took over.
    #[serde(default)]
    pub engine_deaths: u64,
    /// The same by unit.
    #[serde(default)]
    pub units: BTreeMap<String, UnitFigures>,
}

/// Seconds; quantiles by nearest rank, to three digits. `null` where nothing was measured.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Times {
    #[serde(default)]
    pub count: u64,
    pub mean: Option<f64>,
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    #[serde(default)]
    pub p99: Option<f64>,
    pub max: Option<f64>,
}

/// The same without quantiles.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Extents {
    pub count: u64,
    pub mean: Option<f64>,
    pub max: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Resyncs {
    /// Restorations that ended in the window, acknowledged or with their last retry.
    pub attempted: u64,
    pub succeeded: u64,
    pub rate: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Alerts {
    pub raised: u64,
    /// Alerts that reached their first channel in the window.
    pub delivered: u64,
    /// Alerts that no channel has now, and that are still tried (or that no channel takes).
    pub pending: u64,
    /// Alerts that were refused for good in the window before any channel had them, less those that one took
    /// after all.
    pub missed: u64,
    /// Deliveries: an alert for two channels has two.
    #[serde(default)]
    pub deliveries: u64,
    /// From raising to the first delivery.
    #[serde(default)]
    pub latency_s: Times,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct LogBytes {
    /// Of services, stored.
    pub bytes: u64,
    pub dropped_bytes: u64,
    /// dropped_bytes / (bytes + dropped_bytes).
    pub loss_rate: Option<f64>,
    /// Records of history that could not be kept.
    #[serde(default)]
    pub lost_events: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct UnitFigures {
    pub failures: u64,
    pub outages: u64,
    pub recoveries: u64,
    pub auto_recoveries: u64,
    pub restarts: u64,
    pub manual_interventions: u64,
    pub resync: Resyncs,
    pub mttd_s: Extents,
    pub mttr_s: Extents,
    /// Share of the time in which it was wanted (in any state but inactive) in which it was active or
    /// degraded.
    pub availability: Option<f64>,
    /// Seconds in each state, while a daemon looked after it.
    pub state_s: BTreeMap<String, f64>,
}

/// What was wanted and what was found, of both realms together and of each.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Split {
    #[serde(flatten)]
    pub all: Figures,
    pub real: Figures,
    pub drill: Figures,
}

/// The figures of a window that adds up to `tally`, and at whose end this is open.
pub fn split(tally: &Both, now: &Carry) -> Split {
    let open = |drill| (now.open_outages(drill), now.pending(drill));
    let (real, drill) = (open(false), open(true));
    Split {
        all: figures(&tally.all(), real.0 + drill.0, real.1 + drill.1),
        real: figures(&tally.real, real.0, real.1),
        drill: figures(&tally.drill, drill.0, drill.1),
    }
}

fn figures(tally: &Tally, open_outages: u64, pending: u64) -> Figures {
    Figures {
        failures: tally.failures,
        failures_blamed: tally.failures_blamed,
        outages: tally.outages,
        open_outages,
        recoveries: tally.recoveries,
        auto_recoveries: tally.auto_recoveries,
        helped_outages: tally.helped_outages,
        gave_up: tally.gave_up,
        auto_recovery_rate: share(
            tally.auto_recoveries,
            tally.auto_recoveries.saturating_add(tally.helped_outages),
        ),
        mttd_s: times(&tally.detect_us),
        mttr_s: times(&tally.recover_us),
        resync: resyncs(tally.resync_succeeded, tally.resync_failed),
        alerts: Alerts {
            raised: tally.alerts_raised,
            delivered: tally.alerts_delivered,
            pending,
            missed: tally.alerts_refused.saturating_sub(tally.alerts_found),
            deliveries: tally.deliveries,
            latency_s: times(&tally.alert_us),
        },
        log: LogBytes {
            bytes: tally.log_bytes,
            dropped_bytes: tally.log_dropped_bytes,
            loss_rate: share(
                tally.log_dropped_bytes,
                tally.log_bytes.saturating_add(tally.log_dropped_bytes),
            ),
            lost_events: tally.lost_events,
        },
        manual_interventions: tally.manual_interventions,
        fatal_stops: tally.fatal_stops,
        engine_deaths: tally.engine_deaths,
        units: tally.units.iter().map(|(name, unit)| (name.clone(), of_unit(unit))).collect(),
    }
}

fn of_unit(unit: &UnitTally) -> UnitFigures {
    let sum = |of: &[&str]| {
        let of = unit.state_us.iter().filter(|(state, _)| of.contains(&state.as_str()));
        of.map(|(_, us)| us.0).sum::<u64>()
    };
    let all: u64 = unit.state_us.values().map(|us| us.0).sum();
    UnitFigures {
        failures: unit.failures,
        outages: unit.outages,
        recoveries: unit.recoveries,
        auto_recoveries: unit.auto_recoveries,
        restarts: unit.restarts,
        manual_interventions: unit.manual_interventions,
        resync: resyncs(unit.resync_succeeded, unit.resync_failed),
        mttd_s: extents(unit.detect_us),
        mttr_s: extents(unit.recover_us),
        availability: share(sum(&["active", "degraded"]), all - sum(&["inactive"])),
        state_s: unit.state_us.iter().map(|(state, us)| (state.clone(), seconds(us.0))).collect(),
    }
}

fn resyncs(succeeded: u64, failed: u64) -> Resyncs {
    let attempted = succeeded.saturating_add(failed);
    Resyncs { attempted, succeeded, rate: share(succeeded, attempted) }
}

fn times(spread: &Spread) -> Times {
    let at = |per_mille| spread.quantile(per_mille).map(seconds);
    Times {
        count: spread.count,
        mean: spread.mean().map(|us| us / 1e6),
        p50: at(500),
        p95: at(950),
        p99: at(990),
        max: (spread.count > 0).then(|| seconds(spread.max)),
    }
}

fn extents(extent: Extent) -> Extents {
    let max = (!extent.is_empty()).then(|| seconds(extent.max));
    Extents { count: extent.count, mean: extent.mean().map(|us| us / 1e6), max }
}

#[expect(clippy::cast_precision_loss, reason = "shown to a microsecond, of at most a century")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "a share is shown to a few digits")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
