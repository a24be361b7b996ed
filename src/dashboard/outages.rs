//! Failure → recovery: the outages that the records tell of, by the rules of docs/KPI.md.
//!
//! Refuses: another notion of an outage than the ledger's.

use std::collections::BTreeMap;

use crate::api::types::EventLine;
use crate::dashboard::time;

/// How an outage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Recovered,
    /// Wanted no more before it was ready again.
    Dropped,
}

/// A unit that was well failed; until it was ready, or wanted no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    pub unit: String,
    pub from_us: i64,
    /// None: it is not over.
    pub end: Option<(i64, End)>,
    pub failures: u64,
    /// Of its first failure.
    pub cause: String,
    pub drill: Option<String>,
}

/// All of them, by when they began.
pub fn outages(events: &[EventLine]) -> Vec<Outage> {
    let mut open: BTreeMap<&str, Outage> = BTreeMap::new();
    let mut over = Vec::new();
    for event in events {
        let Some(unit) = event.unit.as_deref() else { continue };
        let at_us = time::micros(&event.ts);
        match event.event.as_str() {
            "unit.failed" => failed(&mut open, unit, event, at_us),
            "unit.recovered" => {
                let down_us = number(event, "down_ms").saturating_mul(1_000);
                let begun = || new(unit, event, at_us.saturating_sub_unsigned(down_us));
                let outage = open.remove(unit).unwrap_or_else(begun);
                over.push(Outage { end: Some((at_us, End::Recovered)), ..outage });
            }
            _ => {}
        }
        if matches!(text(event, "state"), Some("active" | "degraded" | "inactive"))
            && let Some(outage) = open.remove(unit)
        {
            over.push(Outage { end: Some((at_us, End::Dropped)), ..outage });
        }
    }
    over.extend(open.into_values());
    over.sort_by(|a, b| (a.from_us, &a.unit).cmp(&(b.from_us, &b.unit)));
    over
}

fn failed<'e>(open: &mut BTreeMap<&'e str, Outage>, unit: &'e str, event: &EventLine, at_us: i64) {
    match open.get_mut(unit) {
        Some(outage) => outage.failures += 1,
        // Of an older run, heard when the next was ready already: no outage.
        None if !event.data.contains_key("detect_us") => {}
        None => _ = open.insert(unit, new(unit, event, at_us)),
    }
}

fn new(unit: &str, event: &EventLine, from_us: i64) -> Outage {
    Outage {
        unit: unit.to_string(),
        from_us,
        end: None,
        failures: number(event, "failures").max(1),
        cause: event.cause.clone().unwrap_or_default(),
        drill: text(event, "drill").map(str::to_string),
    }
}

pub fn text<'e>(event: &'e EventLine, key: &str) -> Option<&'e str> {
    event.data.get(key).and_then(|value| value.as_str()).filter(|text| !text.is_empty())
}

fn number(event: &EventLine, key: &str) -> u64 {
    event.data.get(key).and_then(|value| value.as_u64()).unwrap_or(0)
}
