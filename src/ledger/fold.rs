//! The fold: one record after the other, in the order of their ids.
//!
//! Refuses: a second look at a record. What it needs later stands in `carry`.
//!
//! A beginning (`daemon.started`, `engine.restarted`, `engine.replaced`, `keeper.restarted`) tells the
//! states anew: units are taken for inactive until the engine's first step has told where they are. Until
//! it the time runs on in the state that was known, where services lived on; where nothing did, it ended
//! with the last record.

use std::mem;

use serde_json::Value;

use crate::ledger::Fact;
use crate::ledger::carry::{Carry, Outage, Standing, Waiting};
use crate::ledger::tally::Both;

pub const HOUR_US: i64 = 3_600_000_000;

/// A gap that is longer than this is no idle machine but a clock that was set: the time in it is not
/// spread over its hours.
const GAP_US_MAX: i64 = 400 * 24 * HOUR_US;

/// The begin of the hour that a time lies in.
pub fn hour_of(ts_us: i64) -> i64 {
    ts_us.div_euclid(HOUR_US).saturating_mul(HOUR_US)
}

/// An hour of history that the fold has left. It may come back to it, should the clock be set back.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    pub hour_us: i64,
    pub tally: Both,
    /// What was open when the hour was left.
    pub after: Carry,
}

/// A fold on its way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    pub carry: Carry,
    /// The hour of the newest record; none before the first.
    pub hour_us: Option<i64>,
    /// What that hour adds up to so far.
    pub tally: Both,
}

impl Fold {
    /// A fold that goes on from there.
    pub fn from_carry(carry: Carry) -> Fold {
        Fold { carry, ..Fold::default() }
    }

    /// Takes one record. `closed` hears of each hour that is left, oldest first.
    pub fn feed(&mut self, fact: &Fact<'_>, closed: &mut impl FnMut(Closed)) {
        let at_ns = fact.at.as_ns();
        match fact.event {
            "daemon.started" => self.begin(fact, true, closed),
            "engine.restarted" | "engine.replaced" | "keeper.restarted" => self.begin(fact, false, closed),
            _ => self.advance(fact.ts_us, at_ns, closed),
        }
        self.count(fact);
        if let Some((unit, state)) = fact.unit.zip(fact.text("state")) {
            self.change(unit, state, at_ns);
        }
        match (fact.event, fact.unit) {
            ("unit.removed", Some(unit)) => self.remove(unit),
            ("daemon.stopped", _) => {
                self.flush_all(at_ns);
                self.carry.running = false;
            }
            _ => {}
        }
    }

    /// Time passes until `ts_us` without a record: as long as the wall clock says.
    pub fn pass(&mut self, ts_us: i64, closed: &mut impl FnMut(Closed)) {
        let passed_us = u64::try_from(ts_us.saturating_sub(self.carry.ts_us)).unwrap_or(0);
        let at_ns = self.carry.at_ns.saturating_add(passed_us.saturating_mul(1_000));
        self.advance(ts_us, at_ns, closed);
        self.flush_all(at_ns);
    }

    /// What was counted so far is forgotten, and what is open counts from `ts_us` on. `next` is the record
    /// that comes after that moment.
    pub fn count_from(&mut self, ts_us: i64, next: Option<&Fact<'_>>, closed: &mut impl FnMut(Closed)) {
        if next.is_some_and(|next| next.ts_us < self.carry.ts_us) || ts_us < self.carry.ts_us {
            self.tally = Both::default();
            return;
        }
        let passed_us = u64::try_from(ts_us.saturating_sub(self.carry.ts_us)).unwrap_or(0);
        let mut at_ns = self.carry.at_ns.saturating_add(passed_us.saturating_mul(1_000));
        if let Some(next) = next.filter(|next| next.at.as_ns() >= self.carry.at_ns) {
            at_ns = at_ns.min(next.at.as_ns());
        }
        self.advance(ts_us, at_ns, closed);
        self.flush_all(at_ns);
        self.tally = Both::default();
    }

    fn begin(&mut self, fact: &Fact<'_>, fresh: bool, closed: &mut impl FnMut(Closed)) {
        let boot = fact.text("boot").unwrap_or(&self.carry.boot).to_string();
        let lived_on = !fresh && boot == self.carry.boot;
        if !lived_on {
            // Nobody looked after them: their time ended with the last sign of life.
            self.flush_all(self.carry.at_ns);
            self.carry.running = false;
            self.carry.at_ns = fact.at.as_ns();
        }
        self.advance(fact.ts_us, fact.at.as_ns(), closed);
        self.flush_all(fact.at.as_ns());
        self.carry.units.retain(|_, unit| !unit.gone);
        for unit in self.carry.units.values_mut() {
            unit.state = "inactive".to_string();
            unit.mark_ns = fact.at.as_ns();
        }
        (self.carry.boot, self.carry.running) = (boot, true);
    }

    /// Leaves the hours that are over, each with its share of the time.
    fn advance(&mut self, ts_us: i64, at_ns: u64, closed: &mut impl FnMut(Closed)) {
        let hour_us = hour_of(ts_us);
        let Some(mut now_us) = self.hour_us else {
            return self.arrive(hour_us, ts_us, at_ns);
        };
        let spread = self.carry.running && ts_us.saturating_sub(self.carry.ts_us) <= GAP_US_MAX;
        while now_us < hour_us && spread {
            let end_us = now_us.saturating_add(HOUR_US);
            let passed_us = u64::try_from(end_us.saturating_sub(self.carry.ts_us)).unwrap_or(0);
            let end_ns = self.carry.at_ns.saturating_add(passed_us.saturating_mul(1_000));
            self.flush_all(end_ns.min(at_ns.max(self.carry.at_ns)));
            self.close(now_us, closed);
            now_us = end_us;
        }
        if now_us != hour_us {
            // Nothing runs that would take time, or the clock was set.
            self.flush_all(at_ns);
            self.close(now_us, closed);
        }
        self.arrive(hour_us, ts_us, at_ns);
    }

    fn arrive(&mut self, hour_us: i64, ts_us: i64, at_ns: u64) {
        self.hour_us = Some(hour_us);
        self.carry.ts_us = ts_us;
        self.carry.at_ns = self.carry.at_ns.max(at_ns);
    }

    fn close(&mut self, hour_us: i64, closed: &mut impl FnMut(Closed)) {
        closed(Closed { hour_us, tally: mem::take(&mut self.tally), after: self.carry.clone() });
    }

    fn flush_all(&mut self, at_ns: u64) {
        let Carry { units, running, .. } = &mut self.carry;
        for (name, unit) in units {
            flush(&mut self.tally, name, unit, *running, at_ns);
        }
    }

    fn change(&mut self, name: &str, state: &str, at_ns: u64) {
        let new = || Standing { state: "inactive".to_string(), mark_ns: at_ns, ..Standing::default() };
        let unit = self.carry.units.entry(name.to_string()).or_insert_with(new);
        flush(&mut self.tally, name, unit, self.carry.running, at_ns);
        unit.state = state.to_string();
        // Ready again, or wanted no more: the outage is over, whatever else is told of it.
        if matches!(state, "active" | "degraded" | "inactive") {
            unit.outage = None;
        }
        if unit.gone && state == "inactive" {
            self.carry.units.remove(name);
        }
    }

    fn remove(&mut self, name: &str) {
        let Some(unit) = self.carry.units.get_mut(name) else { return };
        unit.gone = true;
        if unit.state == "inactive" {
            self.carry.units.remove(name);
        }
    }

    /// The counts of one record.
    fn count(&mut self, fact: &Fact<'_>) {
        let drill = fact.is_drill();
        match fact.event {
            "unit.failed" => self.failed(fact),
            "unit.recovered" => self.recovered(fact),
            "unit.gave_up" => {
                let drill = self.realm(fact);
                self.tally.of(drill).gave_up += 1;
                self.help(fact.unit);
            }
            "unit.restarted" => {
                let (drill, name) = (self.realm(fact), fact.unit.unwrap_or(""));
                self.tally.of(drill).units.entry(name.to_string()).or_default().restarts += 1;
            }
            "resync.succeeded" => self.resynced(fact, true),
            // One that is tried again has not ended.
            "resync.failed" if fact.data.get("next_ms").is_none_or(Value::is_null) => {
                self.resynced(fact, false);
            }
            "alert.raised" | "alert.delivered" | "alert.parked" | "alert.muted" => self.alert(fact),
            "order.asked" => self.asked(fact),
            "log.counted" => {
                let tally = self.tally.of(drill);
                tally.log_bytes = tally.log_bytes.saturating_add(fact.number("bytes"));
                tally.log_dropped_bytes =
                    tally.log_dropped_bytes.saturating_add(fact.number("dropped_bytes"));
            }
            "store.lost" => {
                let tally = self.tally.of(drill);
                tally.lost_events = tally.lost_events.saturating_add(fact.number("events"));
            }
            "daemon.fatal_stop" => self.tally.of(drill).fatal_stops += 1,
            "engine.died" | "engine.hung" => self.tally.of(drill).engine_deaths += 1,
            _ => {}
        }
    }

    /// Of an open outage that of its first failure.
    fn realm(&self, fact: &Fact<'_>) -> bool {
        let standing = fact.unit.and_then(|unit| self.carry.units.get(unit));
        standing.and_then(|unit| unit.outage).map_or(fact.is_drill(), |outage| outage.drill)
    }

    fn failed(&mut self, fact: &Fact<'_>) {
        let (name, drill) = (fact.unit.unwrap_or(""), fact.is_drill());
        let blamed = fact.data.get("blame").and_then(Value::as_array).is_some_and(|blame| !blame.is_empty());
        let new =
            || Standing { state: "inactive".to_string(), mark_ns: fact.at.as_ns(), ..Standing::default() };
        let detect_us = fact.data.get("detect_us").and_then(Value::as_u64);
        let unit = self.carry.units.entry(name.to_string()).or_insert_with(new);
        // Of an older run, heard when the next was ready already: no outage.
        let begins = detect_us.is_some() && unit.outage.is_none();
        if begins {
            // Until here it was well, which is nobody's drill.
            flush(&mut self.tally, name, unit, self.carry.running, fact.at.as_ns());
            unit.outage = Some(Outage { drill, helped: false });
        }
        let tally = self.tally.of(drill);
        tally.failures += 1;
        tally.failures_blamed += u64::from(blamed);
        tally.outages += u64::from(begins);
        let unit = tally.units.entry(name.to_string()).or_default();
        unit.failures += 1;
        unit.outages += u64::from(begins);
        if let Some(us) = detect_us {
            unit.detect_us.add(us);
            tally.detect_us.add(us);
        }
    }

    fn recovered(&mut self, fact: &Fact<'_>) {
        let name = fact.unit.unwrap_or("");
        let drill = self.realm(fact);
        let mut alone = true;
        if let Some(unit) = self.carry.units.get_mut(name) {
            flush(&mut self.tally, name, unit, self.carry.running, fact.at.as_ns());
            alone = unit.outage.take().is_none_or(|outage| !outage.helped);
        }
        let down_us = fact.number("down_ms").saturating_mul(1_000);
        let tally = self.tally.of(drill);
        tally.recoveries += 1;
        tally.auto_recoveries += u64::from(alone);
        tally.recover_us.add(down_us);
        let unit = tally.units.entry(name.to_string()).or_default();
        unit.recoveries += 1;
        unit.auto_recoveries += u64::from(alone);
        unit.recover_us.add(down_us);
    }

    /// Whatever becomes of the outage, it does not end by itself. Whether there is one.
    fn help(&mut self, name: Option<&str>) -> bool {
        let unit = name.and_then(|name| self.carry.units.get_mut(name));
        let Some(outage) = unit.and_then(|unit| unit.outage.as_mut()) else { return false };
        if !mem::replace(&mut outage.helped, true) {
            self.tally.of(outage.drill).helped_outages += 1;
        }
        true
    }

    /// An order that a drill gives is its fault, nobody's help.
    fn asked(&mut self, fact: &Fact<'_>) {
        let acts = matches!(
            fact.text("verb"),
            Some("start" | "stop" | "restart" | "reload" | "clear" | "resync" | "signal")
        );
        if !acts || fact.is_drill() {
            return;
        }
        let units = fact.data.get("units").and_then(Value::as_array);
        for name in units.into_iter().flatten().filter_map(Value::as_str) {
            let outage = self.carry.units.get(name).and_then(|unit| unit.outage);
            let Some(Outage { drill, .. }) = outage else { continue };
            self.help(Some(name));
            let tally = self.tally.of(drill);
            tally.manual_interventions += 1;
            tally.units.entry(name.to_string()).or_default().manual_interventions += 1;
        }
    }

    fn resynced(&mut self, fact: &Fact<'_>, well: bool) {
        let tally = self.tally.of(fact.is_drill());
        let unit = tally.units.entry(fact.unit.unwrap_or("").to_string()).or_default();
        let (of_unit, of_all) = match well {
            true => (&mut unit.resync_succeeded, &mut tally.resync_succeeded),
            false => (&mut unit.resync_failed, &mut tally.resync_failed),
        };
        *of_unit += 1;
        *of_all += 1;
    }

    fn alert(&mut self, fact: &Fact<'_>) {
        let key = fact.text("key").unwrap_or("");
        if fact.event == "alert.raised" {
            let drill = self.realm(fact);
            self.tally.of(drill).alerts_raised += 1;
            return self.carry.wait(key, Waiting { drill, raised_us: fact.ts_us, ..Waiting::default() });
        }
        let known = self.carry.waiting.get_mut(key);
        if fact.event == "alert.muted" {
            return known.map_or((), |waiting| waiting.muted = true);
        }
        let drill = known.as_ref().map_or(fact.is_drill(), |waiting| waiting.drill);
        let tally = self.tally.of(drill);
        match (fact.event == "alert.delivered", known) {
            (true, Some(waiting)) => {
                tally.deliveries += 1;
                tally.alerts_delivered += 1;
                tally.alerts_found += u64::from(waiting.refused);
                tally.alert_us.add(fact.number("after_ms").saturating_mul(1_000));
                self.carry.waiting.remove(key);
            }
            (true, None) => tally.deliveries += 1,
            (false, Some(waiting)) => {
                tally.deliveries_refused += 1;
                tally.alerts_refused += u64::from(!mem::replace(&mut waiting.refused, true));
            }
            (false, None) => tally.deliveries_refused += 1,
        }
    }
}

/// Whether the fold looks into the data of such a record, wherever it leaves a unit. One that it does not look
/// into still tells that time has passed.
pub fn reads_data_of(event: &str) -> bool {
    let (room, _) = event.split_once('.').unwrap_or((event, ""));
    matches!(room, "daemon" | "engine" | "keeper" | "resync" | "alert" | "order" | "log" | "store")
        || matches!(event, "unit.failed" | "unit.recovered" | "unit.restarted" | "unit.gave_up")
}

/// Counts the time of a unit until `at_ns`, as whole microseconds.
fn flush(tally: &mut Both, name: &str, unit: &mut Standing, running: bool, at_ns: u64) {
    let passed_us = at_ns.saturating_sub(unit.mark_ns) / 1_000;
    if passed_us == 0 {
        return;
    }
    unit.mark_ns += passed_us * 1_000;
    if !running {
        return;
    }
    let drill = unit.outage.is_some_and(|outage| outage.drill);
    let of_unit = tally.of(drill).units.entry(name.to_string()).or_default();
    of_unit.state_us.entry(unit.state.clone()).or_default().0 += passed_us;
}
