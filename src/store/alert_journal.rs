//! `alerts.jnl`: the second copy of every alert and of how it ended with each channel.
//!
//! An alert is on the disk here, fsynced, before the transaction that keeps it is committed. So this
//! file may be ahead of the database, by what a commit did not live to keep; and behind, where it could
//! not be written. `reconcile` reads both and mends both: an alert has one id and one key in both.
//!
//! Refuses: deliveries that are not over. What is still pending is what nobody has settled.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::base::name::UnitName;
use crate::engine::effect::{Alert, AlertKind};
use crate::engine::outbox::{Delivery, DeliveryState, Row};
use crate::store::checked::{self, Appender, Sync};
use crate::store::{StoreError, alert};

/// Beside the database.
pub const FILE_NAME: &str = "alerts.jnl";

/// So many alerts have a second copy, the newest; about 5 MB with their deliveries.
pub const ALERTS_KEPT: u64 = 10_000;

/// The file is written anew when it is this large and twice what it has to say.
const REWRITE_BYTES: u64 = 8 << 20;

/// How an alert ended with a channel, and when: microseconds since 1970.
pub(crate) type Settled = (Delivery, i64);

/// What `alerts.jnl` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub alerts: BTreeMap<u64, Row>,
    /// By alert and channel.
    pub settled: BTreeMap<(u64, String), Settled>,
    /// The file is there, and every piece of it could be read.
    pub whole: bool,
}

/// Reads the file below `dir`; a file that cannot be read says nothing.
pub(crate) fn read(dir: &Path) -> Found {
    let Ok(Some(lines)) = checked::read(&dir.join(FILE_NAME)) else { return Found::default() };
    let mut found = Found { whole: lines.damaged == 0, ..Found::default() };
    for record in &lines.records {
        // What a later build added is not known here, and stays there until the file is written anew.
        if let Some(row) = alert_of(record) {
            found.alerts.insert(row.id, row);
        } else if let Some((delivery, ts_us)) = delivery_of(record) {
            found.settled.insert((delivery.row, delivery.channel.clone()), (delivery, ts_us));
        }
    }
    found
}

pub(crate) fn alert_record(row: &Row) -> Value {
    let Alert { key, unit, kind, message, failures, episode, affected, channels } = &row.alert;
    json!({
        "alert": row.id,
        "key": key,
        "ts_us": row.ts_us,
        "unit": unit.as_ref().map(UnitName::as_str),
        "kind": kind.as_str(),
        "message": message,
        "failures": failures,
        "episode": episode,
        "affected": affected.iter().map(UnitName::as_str).collect::<Vec<_>>(),
        "channels": channels,
    })
}

/// None while it is pending.
pub(crate) fn delivery_record(delivery: &Delivery, ts_us: i64) -> Option<Value> {
    let Delivery { row, channel, state, attempts, error } = delivery;
    match state {
        DeliveryState::Pending => None,
        DeliveryState::Delivered | DeliveryState::Parked | DeliveryState::Muted => Some(json!({
            "of": row,
            "channel": channel,
            "state": state.as_str(),
            "attempts": attempts,
            "ts_us": ts_us,
            "error": error,
        })),
    }
}

fn alert_of(record: &Value) -> Option<Row> {
    let text = |key: &str| Some(record.get(key)?.as_str()?.to_string());
    let names = |key: &str| {
        let list = record.get(key)?.as_array()?;
        list.iter().map(|name| Some(name.as_str()?.to_string())).collect::<Option<Vec<String>>>()
    };
    let kind = text("kind")?;
    let affected = names("affected")?.iter().filter_map(|name| UnitName::parse(name).ok()).collect();
    let alert = Alert {
        key: text("key")?,
        unit: text("unit").and_then(|name| UnitName::parse(&name).ok()),
        kind: AlertKind::ALL.into_iter().find(|known| known.as_str() == kind)?,
        message: text("message")?,
        failures: u32::try_from(record.get("failures")?.as_u64()?).ok()?,
        episode: record.get("episode")?.as_u64()?,
        affected,
        channels: names("channels"),
    };
    Some(Row { id: record.get("alert")?.as_u64()?, ts_us: record.get("ts_us")?.as_i64()?, alert })
}

fn delivery_of(record: &Value) -> Option<Settled> {
    let text = |key: &str| Some(record.get(key)?.as_str()?.to_string());
    let state = text("state")?;
    let delivery = Delivery {
        row: record.get("of")?.as_u64()?,
        channel: text("channel")?,
        state: DeliveryState::ALL.into_iter().find(|known| known.as_str() == state)?,
        attempts: u32::try_from(record.get("attempts")?.as_u64()?).ok()?,
        error: text("error"),
    };
    Some((delivery, record.get("ts_us")?.as_i64()?))
}

/// The one writer of `alerts.jnl`.
#[derive(Debug)]
pub(crate) struct AlertJournal {
    file: Appender,
    /// Written for a transaction that was not committed: it will come again.
    ahead: Vec<Value>,
    /// Of the file after it was last written anew.
    live_len: u64,
}

impl AlertJournal {
    /// Goes on after what `read` has read; unless something is missing there: then it is
    /// written anew.
    pub fn resume(dir: &Path, whole: bool) -> AlertJournal {
        let mut file = Appender::new(dir.join(FILE_NAME));
        if whole {
            let _ = file.resume(); // not there: written anew
        }
        AlertJournal { file, ahead: Vec::new(), live_len: 0 }
    }

    /// Before the commit that keeps them.
    ///
    /// # Errors
    /// The second copy lacks them; it is to be written anew.
    pub fn append(&mut self, mut records: Vec<Value>) -> io::Result<()> {
        records.retain(|record| !self.ahead.contains(record));
        if records.is_empty() {
            return Ok(());
        }
        self.file.append(&records, Sync::Disk)?;
        self.ahead.extend(records);
        Ok(())
    }

    pub fn committed(&mut self) {
        self.ahead.clear();
    }

    pub fn is_lost(&self) -> bool {
        self.file.is_lost()
    }

    /// Whether the database must be asked for all of it (`rewrite`).
    pub fn wants_rewrite(&self) -> bool {
        self.file.is_lost() || self.file.len() > REWRITE_BYTES.max(self.live_len * 2)
    }

    /// The newest alerts of the database, in a file of their own.
    ///
    /// # Errors
    /// The database cannot be read, or the file not written: the old one stands.
    pub fn rewrite(&mut self, db: &Connection) -> Result<(), StoreError> {
        let after = alert::last_id(db)?.saturating_sub(ALERTS_KEPT);
        let rows = alert::select_after(db, after)?;
        let ids: BTreeSet<u64> = rows.iter().map(|row| row.id).collect();
        let settled = alert::select_settled_after(db, after)?;
        let settled = settled.iter().filter(|(delivery, _)| ids.contains(&delivery.row));
        let records: Vec<Value> = rows
            .iter()
            .map(alert_record)
            .chain(settled.filter_map(|(delivery, ts_us)| delivery_record(delivery, *ts_us)))
            .collect();
        self.file.replace(&records).map_err(|error| StoreError::Value(error.to_string()))?;
        self.ahead.clear();
        self.live_len = self.file.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_and_its_end_come_back_as_they_were() {
        let alert = Alert {
            key: "web/3/failing/4".into(),
            unit: UnitName::parse("web").ok(),
            kind: AlertKind::Failing,
            message: "web failed 4 times\nin a row".into(),
            failures: 4,
            episode: 3,
            affected: vec![UnitName::parse("shop").expect("a name")],
            channels: Some(vec!["ops".into()]),
        };
        let row = Row { id: 9, ts_us: 77, alert };
        assert_eq!(alert_of(&alert_record(&row)), Some(row.clone()));
        let every = Row { alert: Alert { channels: None, unit: None, ..row.alert.clone() }, ..row };
        assert_eq!(alert_of(&alert_record(&every)), Some(every));
        let delivery =
            |state| Delivery { row: 9, channel: "ops".into(), state, attempts: 2, error: Some("404".into()) };
        let parked = delivery(DeliveryState::Parked);
        let record = delivery_record(&parked, 78).expect("it is over");
        assert_eq!(delivery_of(&record), Some((parked, 78)));
        assert_eq!(delivery_record(&delivery(DeliveryState::Pending), 78), None);
    }
}
