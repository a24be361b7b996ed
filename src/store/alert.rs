//! The outbox on the disk: alerts, how far each is with each channel, and which channels there are.
//!
//! Refuses: choosing channels. What a channel takes is decided in `engine::outbox`.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};
use serde_json::Value;

use crate::base::{limits, name::UnitName};
use crate::engine::effect::{Alert, AlertKind};
use crate::engine::outbox::{Delivery, DeliveryState, GONE, Row, Which};
use crate::store::row::{name_of, signed, unsigned};
use crate::store::writer::Reader;
use crate::store::{StoreError, open};

/// The key of `meta` with the channels: `{"ops":17}`, each with the last alert that is not for it.
const CHANNELS: &str = "alert_channels";

/// The key of `meta` with a number for what each channel was configured to be: `{"ops":17}`.
const PRINTS: &str = "alert_prints";

const ALERT_COLUMNS: &str =
    "a.id, a.key, a.ts_us, a.unit, a.kind, a.message, a.failures, a.episode, a.affected, a.channels";

/// An alert with its deliveries, for somebody who looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertRow {
    pub row: Row,
    /// By channel; each with the wall time of its last change, microseconds since 1970.
    pub deliveries: Vec<(Delivery, i64)>,
}

impl Reader {
    /// Asks for what this channel has not got yet: at most `limit` alerts after `after`, oldest
    /// first, each with its sends so far. `answer` is called on the store's thread.
    pub fn unsettled(
        &self,
        channel: String,
        after: u64,
        limit: usize,
        which: Which,
        answer: impl FnOnce(Result<Vec<(Row, u32)>, StoreError>) + Send + 'static,
    ) {
        self.ask(move |db| select_unsettled(db, &channel, after, limit, which), answer);
    }

    /// Asks for what `Write::AlertPrint` kept. `answer` is called on the store's thread.
    pub fn alert_prints(
        &self,
        answer: impl FnOnce(Result<BTreeMap<String, u64>, StoreError>) + Send + 'static,
    ) {
        self.ask(load_prints, answer);
    }

    /// Asks for the newest alerts, newest first. `answer` is called on the store's thread.
    pub fn alerts(
        &self,
        limit: usize,
        answer: impl FnOnce(Result<Vec<AlertRow>, StoreError>) + Send + 'static,
    ) {
        self.ask(move |db| select_newest(db, limit), answer);
    }
}

/// Whether an alert of this key stands there.
pub(crate) fn is_kept(db: &Connection, key: &str) -> Result<bool, rusqlite::Error> {
    db.prepare_cached("SELECT EXISTS (SELECT 1 FROM alert WHERE key = ?1)")?
        .query_row([key], |row| row.get(0))
}

/// Keeps an alert under this id; its row. None: the same key stands there already, because the engine
/// raised it, died, and raised it again: then the first one holds.
pub(crate) fn insert(
    db: &Connection,
    id: u64,
    alert: &Alert,
    ts_us: i64,
) -> Result<Option<Row>, rusqlite::Error> {
    let row = Row { id, ts_us, alert: alert.clone() };
    let inserted = execute(db, "ON CONFLICT (key) DO NOTHING", &row)?;
    Ok((inserted == 1).then_some(row))
}

/// Puts an alert back as its second copy has it, whatever stands there under its id or its key.
pub(crate) fn put(db: &Connection, row: &Row) -> Result<(), rusqlite::Error> {
    db.prepare_cached("DELETE FROM alert WHERE key = ?1 AND id <> ?2")?
        .execute(params![row.alert.key, signed(row.id)])?;
    let all =
        "ON CONFLICT (id) DO UPDATE SET key = excluded.key, ts_us = excluded.ts_us, unit = excluded.unit,
        kind = excluded.kind, message = excluded.message, failures = excluded.failures,
        episode = excluded.episode, affected = excluded.affected, channels = excluded.channels";
    execute(db, all, row)?;
    Ok(())
}

fn execute(db: &Connection, on_conflict: &str, row: &Row) -> Result<usize, rusqlite::Error> {
    let Row { id, ts_us, alert } = row;
    let mut statement = db.prepare_cached(&format!(
        "INSERT INTO alert (id, key, ts_us, unit, kind, message, failures, episode, affected, channels)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) {on_conflict}"
    ))?;
    statement.execute(params![
        signed(*id),
        alert.key,
        ts_us,
        alert.unit.as_ref().map(UnitName::as_str),
        alert.kind.as_str(),
        alert.message,
        alert.failures,
        signed(alert.episode),
        alert.affected.iter().map(UnitName::as_str).collect::<Vec<_>>().join(" "),
        alert.channels.as_ref().map(|channels| channels.join(" ")),
    ])
}

/// Keeps how far an alert is: whether anything changed. What is delivered stays so, and what is parked,
/// unless it was sent again after all and taken.
pub(crate) fn save_delivery(
    db: &Connection,
    delivery: &Delivery,
    ts_us: i64,
) -> Result<bool, rusqlite::Error> {
    let may = "WHERE delivery.state = 'pending' OR (delivery.state = 'parked' AND excluded.state IN ('delivered', 'muted'))";
    Ok(deliver(db, may, delivery, ts_us)? > 0)
}

/// Puts the end of a delivery back as its second copy has it.
pub(crate) fn settle(db: &Connection, delivery: &Delivery, ts_us: i64) -> Result<(), rusqlite::Error> {
    deliver(db, "", delivery, ts_us).map(drop)
}

/// Of an alert that is not there nothing is kept.
fn deliver(
    db: &Connection,
    condition: &str,
    delivery: &Delivery,
    ts_us: i64,
) -> Result<usize, rusqlite::Error> {
    let mut statement = db.prepare_cached(&format!(
        "INSERT INTO delivery (alert, channel, state, attempts, ts_us, error)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6 WHERE EXISTS (SELECT 1 FROM alert WHERE id = ?1)
         ON CONFLICT (alert, channel) DO UPDATE SET state = excluded.state, attempts = excluded.attempts,
           ts_us = excluded.ts_us, error = excluded.error {condition}"
    ))?;
    statement.execute(params![
        signed(delivery.row),
        delivery.channel,
        delivery.state.as_str(),
        delivery.attempts,
        ts_us,
        delivery.error,
    ])
}

pub(crate) fn save_channels(db: &Connection, known: &BTreeMap<String, u64>) -> Result<(), rusqlite::Error> {
    let text: Value = known.iter().map(|(name, since)| (name.clone(), Value::from(*since))).collect();
    open::write_meta(db, CHANNELS, &text.to_string())
}

/// What cannot be read is as in a new home.
pub(crate) fn load_channels(db: &Connection) -> Result<BTreeMap<String, u64>, StoreError> {
    let text = open::read_meta(db, CHANNELS)?.unwrap_or_default();
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

pub(crate) fn save_print(db: &Connection, channel: &str, print: u64) -> Result<(), rusqlite::Error> {
    let mut prints = prints_of(open::read_meta_raw(db, PRINTS)?);
    prints.insert(channel.to_string(), print);
    let text: Value = prints.into_iter().map(|(name, print)| (name, Value::from(print))).collect();
    open::write_meta(db, PRINTS, &text.to_string())
}

/// What cannot be read was never kept.
pub(crate) fn load_prints(db: &Connection) -> Result<BTreeMap<String, u64>, StoreError> {
    Ok(prints_of(open::read_meta(db, PRINTS)?))
}

fn prints_of(text: Option<String>) -> BTreeMap<String, u64> {
    serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default()
}

/// The greatest id ever given; 0 before the first.
pub(crate) fn last_id(db: &Connection) -> Result<u64, StoreError> {
    let seq: Option<i64> = db
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'alert'", [], |row| row.get(0))
        .optional()?;
    Ok(seq.map_or(0, unsigned))
}

/// Alerts after `id`, oldest first.
pub(crate) fn select_after(db: &Connection, id: u64) -> Result<Vec<Row>, StoreError> {
    let sql = format!("SELECT {ALERT_COLUMNS} FROM alert a WHERE a.id > ?1 ORDER BY a.id");
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query([signed(id)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(known(row_of(row))?);
    }
    Ok(found)
}

/// A later build may have raised alerts of a kind that this one does not know, or a bit has flipped:
/// the others are there all the same.
fn known<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(row) => Ok(Some(row)),
        Err(StoreError::Value(_)) => Ok(None),
        // Text that is none, a number where text should be.
        Err(StoreError::Sqlite(error)) if error.sqlite_error_code().is_none() => Ok(None),
        Err(error) => Err(error),
    }
}

/// How alerts after `id` ended with each channel, and when.
pub(crate) fn select_settled_after(db: &Connection, id: u64) -> Result<Vec<(Delivery, i64)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT channel, state, attempts, error, ts_us, alert FROM delivery
         WHERE alert > ?1 AND state <> 'pending' ORDER BY alert, channel",
    )?;
    let mut rows = statement.query([signed(id)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(known(delivery_of(row, unsigned(row.get(5)?)))?);
    }
    Ok(found)
}

/// At most `limit` alerts after `id` that are neither delivered to this channel nor parked, or only
/// refused by it, oldest first, each with its sends so far.
pub(crate) fn select_unsettled(
    db: &Connection,
    channel: &str,
    id: u64,
    limit: usize,
    which: Which,
) -> Result<Vec<(Row, u32)>, StoreError> {
    let refused = match which {
        Which::Open => "",
        Which::Refused => "OR (d.state = 'parked' AND d.error IS NOT ?4)",
    };
    let sql = format!(
        "SELECT {ALERT_COLUMNS}, COALESCE(d.attempts, 0)
         FROM alert a LEFT JOIN delivery d ON d.alert = a.id AND d.channel = ?1
         WHERE a.id > ?2 AND (d.state IS NULL OR d.state = 'pending' {refused}) ORDER BY a.id LIMIT ?3"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = match which {
        Which::Open => statement.query(params![channel, signed(id), limit])?,
        Which::Refused => statement.query(params![channel, signed(id), limit, GONE])?,
    };
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        if let Some(alert) = known(row_of(row))? {
            found.push((alert, row.get(10)?));
        }
    }
    Ok(found)
}

/// The newest `limit` alerts, newest first.
pub(crate) fn select_newest(db: &Connection, limit: usize) -> Result<Vec<AlertRow>, StoreError> {
    let limit = limit.min(limits::EVENTS_PER_REPLY_MAX);
    let sql = format!("SELECT {ALERT_COLUMNS} FROM alert a ORDER BY a.id DESC LIMIT ?1");
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query([i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let Some(row) = known(row_of(row))? else { continue };
        let deliveries = select_deliveries(db, row.id)?;
        found.push(AlertRow { row, deliveries });
    }
    Ok(found)
}

/// One alert, with its deliveries.
pub(crate) fn select_one(db: &Connection, id: u64) -> Result<Option<AlertRow>, StoreError> {
    let sql = format!("SELECT {ALERT_COLUMNS} FROM alert a WHERE a.id = ?1");
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query([signed(id)])?;
    let row = match rows.next()? {
        Some(row) => known(row_of(row))?,
        None => None,
    };
    let Some(row) = row else { return Ok(None) };
    Ok(Some(AlertRow { row, deliveries: select_deliveries(db, id)? }))
}

fn select_deliveries(db: &Connection, id: u64) -> Result<Vec<(Delivery, i64)>, StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT channel, state, attempts, error, ts_us FROM delivery WHERE alert = ?1 ORDER BY channel",
    )?;
    let mut rows = statement.query([signed(id)])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(known(delivery_of(row, id))?);
    }
    Ok(found)
}

fn delivery_of(row: &SqlRow<'_>, id: u64) -> Result<(Delivery, i64), StoreError> {
    let state: String = row.get(1)?;
    let known = DeliveryState::ALL.into_iter().find(|known| known.as_str() == state);
    let state = known.ok_or_else(|| StoreError::Value(format!("`{state}` is no state of a delivery")))?;
    let delivery =
        Delivery { row: id, channel: row.get(0)?, state, attempts: row.get(2)?, error: row.get(3)? };
    Ok((delivery, row.get(4)?))
}

fn row_of(row: &SqlRow<'_>) -> Result<Row, StoreError> {
    let unit: Option<String> = row.get(3)?;
    let kind: String = row.get(4)?;
    let known = AlertKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let channels: Option<String> = row.get(9)?;
    let alert = Alert {
        key: row.get(1)?,
        unit: unit.as_deref().map(name_of).transpose()?,
        kind: known.ok_or_else(|| StoreError::Value(format!("`{kind}` is no kind of alert")))?,
        message: row.get(5)?,
        failures: row.get(6)?,
        episode: unsigned(row.get(7)?),
        affected: row.get::<_, String>(8)?.split_whitespace().map(name_of).collect::<Result<_, _>>()?,
        channels: channels.map(|names| names.split_whitespace().map(str::to_string).collect()),
    };
    Ok(Row { id: unsigned(row.get(0)?), ts_us: row.get(2)?, alert })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::store::writer::{Batch, Write};

    fn delivery(row: u64, channel: &str, state: DeliveryState, error: Option<&str>) -> Write {
        let error = error.map(String::from);
        Write::Delivery {
            delivery: Delivery { row, channel: channel.into(), state, attempts: 1, error },
            ts_us: 2,
        }
    }

    fn alert(key: &str) -> Write {
        let alert = Alert {
            key: key.into(),
            unit: None,
            kind: AlertKind::Failing,
            message: "it failed".into(),
            failures: 4,
            episode: 1,
            affected: Vec::new(),
            channels: None,
        };
        Write::Alert { alert, ts_us: 1 }
    }

    fn asked<T: Send + 'static>(ask: impl FnOnce(mpsc::Sender<Result<T, StoreError>>)) -> T {
        let (tell, told) = mpsc::channel();
        ask(tell);
        told.recv().expect("an answer").expect("the store answers")
    }

    #[test]
    fn what_was_refused_can_be_read_again_and_be_delivered_after_all() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("upright.db");
        let (opened, _) = open::open(&path, "boot").expect("opens");
        let mut store = opened.start(|_| ()).expect("a thread");
        let parked = DeliveryState::Parked;
        let writes = vec![
            alert("web/1/failing/4"),
            alert("web/1/failing/8"),
            delivery(1, "ops", parked, Some("HTTP 404")),
            delivery(2, "ops", parked, Some(GONE)),
            Write::AlertPrint { channel: "ops".into(), print: 7 },
        ];
        store.submit(Batch { writes });
        let reader = store.reader().clone();
        let read = |which| {
            let ops = "ops".to_string();
            let rows = asked(|tell| reader.unsettled(ops, 0, 10, which, move |rows| drop(tell.send(rows))));
            rows.into_iter().map(|(row, attempts)| (row.id, attempts)).collect::<Vec<_>>()
        };
        assert_eq!((read(Which::Open), read(Which::Refused)), (vec![], vec![(1, 1)]));
        let prints = asked(|tell| reader.alert_prints(move |prints| drop(tell.send(prints))));
        assert_eq!(prints, BTreeMap::from([("ops".to_string(), 7)]));
        // What is parked is not parked again for another reason; delivered is the end of it.
        let writes = vec![
            delivery(1, "ops", parked, Some(GONE)),
            delivery(1, "ops", DeliveryState::Delivered, None),
            delivery(1, "ops", parked, Some("late")),
        ];
        store.submit(Batch { writes });
        assert_eq!(read(Which::Refused), vec![]);
        drop(store);
        // Both copies say the same: it is believed.
        let (opened, loaded) = open::open(&path, "boot").expect("opens");
        assert_eq!((loaded.moved_aside, loaded.last_alert), (None, 2));
        let store = opened.start(|_| ()).expect("a thread");
        let rows = asked(|tell| store.reader().alerts(10, move |rows| drop(tell.send(rows))));
        let states: Vec<_> = rows.iter().map(|row| row.deliveries[0].0.state).collect();
        assert_eq!(states, [parked, DeliveryState::Delivered]);
    }
}
