//! Engine views, events and log lines → the objects of the wire.
//!
//! Refuses: any thought of its own; this is copying, and stamping of wall time.

use std::collections::BTreeMap;

use crate::alert::dispatch::Route;
use crate::api::types::{AlertDelivery, AlertLine, EventLine, PlannedUnit, Unit, UnitOutcome};
use crate::base::{name::UnitName, time::Monotonic};
use crate::engine::effect::Outcome;
use crate::engine::outbox::{DeliveryState, Quiet, severity};
use crate::engine::plan::{Change, Comes};
use crate::engine::view::{StateWord, UnitView};
use crate::store::alert::AlertRow;
use crate::store::row::EventRow;
use crate::sys::clock::rfc3339;
use crate::unit::keys::Key;

/// Both clocks, read at the same moment: what lies between `Monotonic` and a date.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    pub now: Monotonic,
    /// Wall clock, microseconds since 1970.
    pub wall_us: i64,
}

impl Clocks {
    /// The date of `at`, past or future, as the wall clock has it now.
    pub fn date(&self, at: Monotonic) -> String {
        let us = |ns: u64| i64::try_from(ns / 1_000).unwrap_or(i64::MAX);
        let offset = us(at.as_ns()).saturating_sub(us(self.now.as_ns()));
        rfc3339(self.wall_us.saturating_add(offset))
    }
}

pub fn unit(view: &UnitView, clocks: Clocks) -> Unit {
    let names = |units: &[UnitName]| units.iter().map(UnitName::to_string).collect();
    Unit {
        name: view.name.to_string(),
        description: view.description.clone(),
        state: view.state.as_str().to_string(),
        reason: view.reason.clone(),
        since: clocks.date(view.since),
        pid: view.pid,
        run: view.run.map(|run| run.0),
        restarts: view.restarts,
        failures: view.failures,
        health: match view.healthy {
            None => "none",
            Some(true) => "healthy",
            Some(false) => "unhealthy",
        }
        .to_string(),
        next_retry_at: view.next_retry_at.map(|at| clocks.date(at)),
        waiting_for: names(&view.waiting_for),
        requires: names(&view.requires),
        wants: names(&view.wants),
        after: names(&view.after),
        wanted: view.wanted,
    }
}

/// How many units are in each state; states without units are left out.
pub fn counts(views: &[UnitView]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for view in views {
        *counts.entry(view.state.as_str().to_string()).or_insert(0) += 1;
    }
    counts
}

/// `active` and `degraded` are both ready.
pub fn is_ready(view: &UnitView) -> bool {
    match view.state {
        StateWord::Active | StateWord::Degraded => true,
        StateWord::Inactive
        | StateWord::Waiting
        | StateWord::Activating
        | StateWord::Backoff
        | StateWord::Deactivating
        | StateWord::Failed => false,
    }
}

pub fn outcome(unit: &UnitName, outcome: &Outcome, state: Option<StateWord>) -> UnitOutcome {
    let (word, message) = match outcome {
        Outcome::Done => ("done", None),
        Outcome::Already => ("already", None),
        Outcome::Failed(why) => ("failed", Some(why.clone())),
        Outcome::Superseded => ("superseded", None),
    };
    unit_outcome(unit, word, message, state)
}

/// The order was taken; nobody waits for its end.
pub fn accepted(unit: &UnitName, state: Option<StateWord>) -> UnitOutcome {
    unit_outcome(unit, "accepted", None, state)
}

fn unit_outcome(
    unit: &UnitName,
    word: &str,
    message: Option<String>,
    state: Option<StateWord>,
) -> UnitOutcome {
    UnitOutcome {
        unit: unit.to_string(),
        outcome: word.to_string(),
        message,
        state: state.map_or("inactive", StateWord::as_str).to_string(),
    }
}

/// An alert with each channel that has it or will get it.
pub fn alert(found: &AlertRow, routes: &[Route], quiet: &Quiet) -> AlertLine {
    let AlertRow { row, deliveries } = found;
    let tried = deliveries.iter().map(|(delivery, ts_us)| AlertDelivery {
        channel: delivery.channel.clone(),
        state: delivery.state.as_str().to_string(),
        attempts: delivery.attempts,
        at: Some(rfc3339(*ts_us)),
        error: delivery.error.clone(),
    });
    let is_tried = |route: &&Route| deliveries.iter().any(|(delivery, _)| delivery.channel == route.channel);
    let waits = routes.iter().filter(|route| route.takes(row) && !is_tried(route));
    let untried = waits.map(|route| AlertDelivery {
        channel: route.channel.clone(),
        state: DeliveryState::Pending.as_str().to_string(),
        attempts: 0,
        at: None,
        error: None,
    });
    let alert = &row.alert;
    AlertLine {
        id: alert.key.clone(),
        ts: rfc3339(row.ts_us),
        unit: alert.unit.as_ref().map(UnitName::to_string),
        kind: alert.kind.as_str().to_string(),
        severity: severity(alert.kind).to_string(),
        message: alert.message.clone(),
        failures: alert.failures,
        episode: alert.episode,
        affected: alert.affected.iter().map(UnitName::to_string).collect(),
        acknowledged: quiet.is_acked(alert),
        channels: tried.chain(untried).collect(),
    }
}

pub fn event(row: &EventRow) -> EventLine {
    let event = &row.event;
    EventLine {
        id: row.id,
        ts: rfc3339(event.ts_us),
        level: event.level.as_str().to_string(),
        event: event.event.clone(),
        unit: event.unit.as_ref().map(UnitName::to_string),
        run: event.run.map(|run| run.0),
        cause: event.cause.clone(),
        message: event.message.clone(),
        at_ns: event.at.as_ns(),
        data: event.data.clone(),
    }
}

/// What a reread would do to a unit; none when it is nothing.
pub fn planned(unit: &UnitName, change: &Change) -> Option<PlannedUnit> {
    let (word, keys): (&str, &[&'static Key]) = match change {
        Change::Unchanged => return None,
        Change::Added => ("added", &[]),
        Change::Removed => ("removed", &[]),
        Change::Changed { keys, comes } => (
            match comes {
                Comes::Live => "live",
                Comes::NextStart => "next-start",
                Comes::Restart => "restart",
                Comes::Start => "start",
                Comes::Stop => "stop",
            },
            keys,
        ),
    };
    let keys = keys.iter().map(|key| key.path()).collect();
    Some(PlannedUnit { unit: unit.to_string(), change: word.to_string(), keys })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_from_now_both_ways() {
        let clocks = Clocks { now: Monotonic::from_ns(10_000_000_000), wall_us: 1_700_000_000_000_000 };
        assert_eq!(clocks.date(Monotonic::from_ns(8_000_000_000)), "2023-11-14T22:13:18.000000Z");
        assert_eq!(clocks.date(Monotonic::from_ns(10_500_000_000)), "2023-11-14T22:13:20.500000Z");
    }
}
