//! What must hold of every history, whatever happened: judged from the records and from the
//! rows of the store, never from the engine's own words about itself.
//!
//! Refuses: panics. Everything that is wrong is listed, so that one run shows all of it.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::{Home, id_of};

/// Alerts at these failures in a row (the default of `[alert]`): the 4th, and every 4th after it.
pub fn is_due(failures: u64) -> bool {
    failures >= 4 && failures.is_multiple_of(4)
}

/// A row of the store's `alert` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertRow {
    pub key: String,
    pub unit: Option<String>,
    pub kind: String,
    pub affected: String,
}

pub fn alerts(home: &Home) -> Vec<AlertRow> {
    let path = home.path().join("state/upright.db");
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the store");
    db.busy_timeout(std::time::Duration::from_secs(10)).expect("a timeout");
    let mut rows =
        db.prepare("SELECT key, unit, kind, affected FROM alert ORDER BY id").expect("the table is there");
    let rows = rows.query_map([], |row| {
        Ok(AlertRow { key: row.get(0)?, unit: row.get(1)?, kind: row.get(2)?, affected: row.get(3)? })
    });
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

fn name_of(event: &Value) -> &str {
    event["event"].as_str().unwrap_or_default()
}

pub fn units(events: &[Value]) -> BTreeSet<String> {
    events.iter().filter_map(|event| Some(event["unit"].as_str()?.to_owned())).collect()
}

/// Dense ids in the store and in `system_resilience.log`, and the same events in both.
pub fn check_ids(home: &Home, events: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let gap = |ids: &[u64]| ids.iter().zip(1..).find(|(id, due)| **id != *due).map(|(id, _)| *id);
    let ids: Vec<u64> = events.iter().map(id_of).collect();
    if let Some(id) = gap(&ids) {
        wrong.push(format!("a gap in the history before event {id}"));
    }
    let text = std::fs::read_to_string(home.path().join("log/system_resilience.log")).unwrap_or_default();
    let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if lines.len() != text.lines().count() {
        wrong.push("a line of system_resilience.log is no JSON".to_owned());
    }
    let written: Vec<u64> = lines.iter().filter_map(|line| line["id"].as_u64()).collect();
    if let Some(id) = gap(&written) {
        wrong.push(format!("a gap or a line twice in system_resilience.log at {id}"));
    }
    if written.len() < ids.len() {
        wrong.push(format!("{} lines in system_resilience.log, {} events", written.len(), ids.len()));
    }
    wrong
}

/// Each failure of a run once, counted 1, 2, 3 … until the episode ends; each with its restart.
pub fn check_failures(events: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut seen: BTreeSet<(String, u64)> = BTreeSet::new();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events {
        let Some(unit) = event["unit"].as_str() else { continue };
        match name_of(event) {
            "unit.failed" => {
                let run = event["run"].as_u64().unwrap_or(0);
                if !seen.insert((unit.to_owned(), run)) {
                    wrong.push(format!("{unit}: the failure of run {run} is recorded twice"));
                }
                let count = counts.entry(unit).or_default();
                *count += 1;
                if event["data"]["failures"] != *count {
                    wrong.push(format!("{unit}: failure {count} is recorded as {}", event["data"]));
                    *count = event["data"]["failures"].as_u64().unwrap_or(*count);
                }
            }
            "episode.ended" => {
                counts.insert(unit, 0);
            }
            _ => {}
        }
    }
    wrong
}

/// Exactly the alerts that the failures call for: one a due failure that is the unit's own, one
/// recovery an alerted episode; the rows and the records agree, and no key is there twice.
pub fn check_alerts(events: &[Value], rows: &[AlertRow]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expected: BTreeSet<String> = BTreeSet::new();
    // Per unit: own failures, alerted, episode.
    let mut now: BTreeMap<&str, (u64, bool, u64)> = BTreeMap::new();
    for event in events {
        let Some(unit) = event["unit"].as_str() else { continue };
        let (own, alerted, episode) = now.entry(unit).or_default();
        match name_of(event) {
            "unit.failed" => {
                *episode = event["data"]["episode"].as_u64().unwrap_or(0);
                if event["data"]["blame"].as_array().is_none_or(Vec::is_empty) {
                    *own += 1;
                    if is_due(*own) {
                        *alerted = true;
                        expected.insert(format!("{unit}/{episode}/failing/{own}"));
                    }
                }
            }
            "episode.ended" => {
                if *alerted {
                    expected.insert(format!("{unit}/{episode}/recovered/over"));
                }
                (*own, *alerted) = (0, false);
            }
            _ => {}
        }
    }
    let judged = |key: &str| key.contains("/failing/") || key.contains("/recovered/");
    let kept: Vec<&String> = rows.iter().map(|row| &row.key).collect();
    let raised: Vec<&str> = events
        .iter()
        .filter(|event| name_of(event) == "alert.raised")
        .filter_map(|event| event["data"]["key"].as_str())
        .collect();
    for key in &expected {
        if !kept.contains(&key) {
            wrong.push(format!("no alert row {key}"));
        }
    }
    for key in kept.iter().filter(|key| judged(key) && !expected.contains(**key)) {
        wrong.push(format!("an alert row that nothing calls for: {key}"));
    }
    let unique: BTreeSet<&str> = raised.iter().copied().collect();
    if unique.len() != raised.len() {
        wrong.push(format!("an alert was raised twice: {raised:?}"));
    }
    // Killed between the second copy of an alert and its commit, the row is there and its record is not.
    // What is about a unit is judged again by the next engine, under the same key; what is about the
    // engine's own death need not be: five deaths are told as safe mode.
    let kept_keys: BTreeSet<&str> = kept.iter().map(|key| key.as_str()).collect();
    let unrecorded = kept_keys.difference(&unique).any(|key| !key.starts_with("upright/engine-restarted/"));
    if !unique.is_subset(&kept_keys) || unrecorded {
        wrong.push(format!("the records name {unique:?}, the rows {kept:?}"));
    }
    wrong
}

/// A unit whose requirements go and return: nothing is restored while one of them is down,
/// at most one success between two losses, and one after the last return.
pub fn check_resyncs(events: &[Value], unit: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut down, mut done, mut given_up, mut ever) = (false, 0, false, false);
    for event in events.iter().filter(|event| event["unit"] == unit) {
        let id = id_of(event);
        match name_of(event) {
            "unit.degraded" => (down, done, given_up, ever) = (true, 0, false, true),
            "unit.restored" => down = false,
            "resync.started" | "resync.succeeded" if down => {
                wrong.push(format!("event {id}: {unit} is restored while a requirement is down"));
            }
            "resync.succeeded" => {
                done += 1;
                if done > 1 {
                    wrong.push(format!("event {id}: {unit} is restored a second time for one return"));
                }
            }
            "retry.exhausted" if event["data"]["what"] == "resync" => given_up = true,
            _ => {}
        }
    }
    if down {
        wrong.push(format!("{unit} is degraded to the end"));
    } else if ever && done == 0 && !given_up {
        wrong.push(format!("{unit} is not restored after the last return"));
    }
    wrong
}
