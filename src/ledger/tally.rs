//! What adds up: counts and lengths of one stretch of history. Two stretches are merged by adding, in
//! any order.
//!
//! Refuses: what is not a sum (what is open now stands in `carry`), and numbers below zero.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ledger::spread::{Extent, Spread};

fn is_zero(count: &u64) -> bool {
    *count == 0
}

macro_rules! sums {
    ($(#[$doc:meta])* $name:ident { $($(#[$count_doc:meta])* $count:ident,)* }
     spreads: $spreads:ident { $($(#[$spread_doc:meta])* $spread:ident,)* } maps { $($(#[$map_doc:meta])* $map:ident: $of:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[$count_doc])* #[serde(skip_serializing_if = "is_zero")] pub $count: u64,)*
            $($(#[$spread_doc])*  pub $spread: $spreads,)*
            $($(#[$map_doc])* #[serde(skip_serializing_if = "BTreeMap::is_empty")] pub $map: BTreeMap<String, $of>,)*
        }

        impl $name {
            /// Adds what `other` has.
            pub fn merge(&mut self, other: &$name) {
                $(self.$count = self.$count.saturating_add(other.$count);)*
                $(self.$spread.merge(&other.$spread);)*
                $(for (key, value) in &other.$map { self.$map.entry(key.clone()).or_default().merge(value); })*
            }
        }
    };
}

sums! {
    /// One stretch of history, of one realm (real or drill).
    Tally {
        /// `unit.failed`: every failure, also one while a requirement was down.
        failures,
        /// Those of them while a requirement was down.
        failures_blamed,
        /// Times a unit that was well failed.
        outages,
        /// `unit.recovered`: ready again after at least one failure.
        recoveries,
        /// Those of them that nobody had a hand in: no operator's action since its first failure, and it
        /// had not been given up.
        auto_recoveries,
        /// Outages that did not end, or will not have ended, by themselves: an operator acted, or the unit was
        /// given up. Each counts once, then.
        helped_outages,
        /// `unit.gave_up`: held until an operator comes.
        gave_up,
        /// Restorations of state that were acknowledged.
        resync_succeeded,
        /// Those whose last retry failed.
        resync_failed,
        /// Alerts that were raised.
        alerts_raised,
        /// Alerts that reached their first channel.
        alerts_delivered,
        /// Alerts that a channel refused for good before any other had them.
        alerts_refused,
        /// Those of them that a channel took after all.
        alerts_found,
        /// Alerts that reached one more channel: the first included.
        deliveries,
        /// Alerts that one more channel refused for good.
        deliveries_refused,
        /// Bytes of services that were stored.
        log_bytes,
        /// Bytes of services that were dropped because a disk was full.
        log_dropped_bytes,
        /// Records of history that could not be kept (`store.lost`).
        lost_events,
        /// Operators' actions on a unit that was failing: one for each such unit of an order.
        manual_interventions,
        /// Times the whole ended without stopping its units.
        fatal_stops,
        /// Times an engine died or hung, and another took over.
        engine_deaths,
    }
    spreads: Spread {
        /// From the last moment at which it was known to be well to the failure's record.
        detect_us,
        /// From the first failure of an outage to being ready again.
        recover_us,
        /// From raising an alert to its first delivery.
        alert_us,
    }
    maps {
        /// By name.
        units: UnitTally,
    }
}

sums! {
    /// The same of one unit.
    UnitTally {
        failures,
        outages,
        recoveries,
        auto_recoveries,
        /// `unit.restarted`.
        restarts,
        resync_succeeded,
        resync_failed,
        manual_interventions,
    }
    spreads: Extent {
        detect_us,
        recover_us,
    }
    maps {
        /// State → microseconds in it, while a daemon looked after the unit.
        state_us: Sum,
    }
}

/// A number in a map that is merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sum(pub u64);

impl Sum {
    fn merge(&mut self, other: &Sum) {
        self.0 = self.0.saturating_add(other.0);
    }
}

/// Real and drill apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Both {
    pub real: Tally,
    pub drill: Tally,
}

impl Both {
    pub fn of(&mut self, drill: bool) -> &mut Tally {
        if drill { &mut self.drill } else { &mut self.real }
    }

    pub fn merge(&mut self, other: &Both) {
        self.real.merge(&other.real);
        self.drill.merge(&other.drill);
    }

    /// Both together.
    pub fn all(&self) -> Tally {
        let mut all = self.real.clone();
        all.merge(&self.drill);
        all
    }
}
