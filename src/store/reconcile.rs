//! Two copies of one truth: what to change in the database, so that it says what both together know.
//!
//! The database is the first copy. The second ones (`state.jnl`, `alerts.jnl`, the log of history)
//! win where they are newer, which shows that the database lost its WAL or is an old one. Where both
//! claim to be of one commit and differ, the database is not believed at all: their lines carry
//! checksums, its pages do not.
//!
//! Refuses: files. What is read and written here is the open database.

use std::collections::BTreeMap;

use rusqlite::{Connection, TransactionBehavior};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::limits::EVENTS_PER_REPLY_MAX;
use crate::engine::effect::{Alert, AlertKind};
use crate::engine::outbox::{Delivery, DeliveryState, Row};
use crate::store::alert::AlertRow;
use crate::store::alert_journal::{self, ALERTS_KEPT, Settled};
use crate::store::kept::{self, Kept, Mark};
use crate::store::row::{EventQuery, EventRow, Level, NewEvent};
use crate::store::{StoreError, alert, open, row};
use crate::sys::clock;

/// So much of history comes back from the log into a database that has lost it. More than
/// `upright why` looks back on, and a tenth of a second.
pub const EVENTS_IMPORTED_MAX: usize = 10_000;

/// More alerts than one commit has when an engine dies.
const UNSAID_MAX: usize = 100;

/// The key of `meta` with the records that are owed.
const OWED: &str = "unsaid";

/// What the database lacks.
#[derive(Debug, Default)]
pub(crate) struct Lacks {
    /// All but alerts and events is to be replaced with this.
    state: Option<(Kept, Mark)>,
    alerts: Vec<Row>,
    settled: Vec<Settled>,
    events: Vec<EventRow>,
    /// No event may have this id or a smaller one.
    last_event_id: u64,
}

impl Lacks {
    pub fn set_state(&mut self, kept: Kept, mark: Mark) {
        self.state = Some((kept, mark));
    }

    pub fn nothing(&self) -> bool {
        self.state.is_none()
            && self.alerts.is_empty()
            && self.settled.is_empty()
            && self.events.is_empty()
            && self.last_event_id == 0
    }

    /// What is mended, for people; none when nothing is.
    pub fn sentence(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.state.is_some() {
            parts.push("the units' state".to_string());
        }
        let counts =
            [(self.alerts.len(), "alert"), (self.settled.len(), "delivery"), (self.events.len(), "event")];
        for (count, what) in counts {
            match (count, what) {
                (0, _) => {}
                (1, what) => parts.push(format!("1 {what}")),
                (count, "delivery") => parts.push(format!("{count} deliveries")),
                (count, what) => parts.push(format!("{count} {what}s")),
            }
        }
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// Bits have flipped: what is in a database that has such rows is not believed, nor written to.
fn rotten(what: &str) -> StoreError {
    StoreError::Value(format!("its {what} differ from their second copy"))
}

/// Which of both says what holds, and whether the database must be told. `same`: both are of one commit.
///
/// # Errors
/// They cannot differ, and do.
pub(crate) fn state(
    of_db: (Kept, Mark),
    found: Option<&kept::Found>,
    same: bool,
) -> Result<(Kept, Mark, Lacks), StoreError> {
    let (mut db, mark) = of_db;
    let Some(found) = found else { return Ok((db, mark, Lacks::default())) };
    // Runs are reserved while nothing can be committed, too, and an id is never given back.
    let unreserved = same && found.kept.next_run < db.next_run;
    db.next_run = found.kept.next_run.max(db.next_run);
    if unreserved || (same && found.kept != db) {
        return Err(rotten("units or their files"));
    }
    if found.mark.seq <= mark.seq && mark != Mark::default() {
        return Ok((db, mark, Lacks::default()));
    }
    let mut kept = found.kept.clone();
    if found.damaged > 0 {
        kept.fill_from(db);
    }
    let lacks = Lacks { state: Some((kept.clone(), found.mark.clone())), ..Lacks::default() };
    Ok((kept, found.mark.clone(), lacks))
}

/// Adds what of the alerts is missing; whether `alerts.jnl` is the one that lacks something. An alert
/// never changes, and the end of a delivery only from parked to delivered. `same`: both copies are of one
/// commit.
///
/// # Errors
/// They cannot differ, and do; what SQLite says.
pub(crate) fn alerts(
    db: &Connection,
    found: &alert_journal::Found,
    same: bool,
    lacks: &mut Lacks,
) -> Result<bool, StoreError> {
    let last = alert::last_id(db)?;
    let oldest = found.alerts.keys().next().map_or(0, |id| id.saturating_sub(1));
    let in_both = last.saturating_sub(ALERTS_KEPT);
    let rows = alert::select_after(db, oldest.min(in_both))?;
    let rows: BTreeMap<u64, Row> = rows.into_iter().map(|row| (row.id, row)).collect();
    let settled = alert::select_settled_after(db, oldest.min(in_both))?;
    let settled: BTreeMap<(u64, String), Settled> =
        settled.into_iter().map(|item| ((item.0.row, item.0.channel.clone()), item)).collect();
    for (id, row) in &found.alerts {
        match rows.get(id) {
            Some(stands) if stands == row => {}
            None if !same || *id > last => lacks.alerts.push(row.clone()),
            Some(_) | None => return Err(rotten("alerts")),
        }
    }
    let mut behind = false;
    for (key, item) in &found.settled {
        match settled.get(key) {
            Some((stands, _)) if stands.state == item.0.state => {}
            // Refused, and taken when it was sent again: the file was written, the commit was not.
            Some((stands, _)) if stands.state == DeliveryState::Parked => lacks.settled.push(item.clone()),
            // The other way round: the file could not be written.
            Some(_) if !same => behind = true,
            Some(_) => return Err(rotten("deliveries")),
            None if found.alerts.contains_key(&key.0) || rows.contains_key(&key.0) => {
                lacks.settled.push(item.clone());
            }
            None => {}
        }
    }
    let unknown_alert = rows.keys().any(|id| *id > in_both && !found.alerts.contains_key(id));
    let unknown_end = settled.keys().any(|key| key.0 > in_both && !found.settled.contains_key(key));
    if same && found.whole && (unknown_alert || unknown_end) {
        return Err(rotten("alerts"));
    }
    Ok(!found.whole || unknown_alert || unknown_end || behind)
}

/// Adds the newest events of the log that the database does not have. `known`: the newest event
/// that anybody was told of.
///
/// # Errors
/// What SQLite says.
pub(crate) fn events(
    db: &Connection,
    known: u64,
    newest: &mut dyn FnMut(u64, usize) -> Vec<EventRow>,
    lacks: &mut Lacks,
) -> Result<(), StoreError> {
    let last = open::last_event_id(db)?;
    let rows = newest(last, EVENTS_IMPORTED_MAX);
    let seen = rows.last().map_or(0, |row| row.id).max(known);
    lacks.last_event_id = if seen > last { seen } else { 0 };
    lacks.events = rows;
    Ok(())
}

/// Rows of units that may be older than the alerts about them: their next alert must not have
/// a key that was used.
pub(crate) fn heed_alerts(kept: &mut Kept, alerts: &BTreeMap<u64, Row>) {
    for alert in alerts.values().map(|row| &row.alert) {
        let Some(unit) = &alert.unit else { continue };
        let row = kept.units.entry(unit.clone()).or_default();
        let counted = alert.kind == AlertKind::Failing && alert.failures > row.own_failures;
        if alert.episode > row.episode || (alert.episode == row.episode && counted) {
            row.episode = alert.episode + 1;
        }
    }
}

/// Records that history owes: of alerts and ends that were put back, because an engine died between their
/// second copy and the commit. They stand in the database, in one commit with what was put back, until a
/// commit has the records: engines may die over and over in between.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Owed {
    /// Ids of alerts.
    raised: Vec<u64>,
    /// The same, with a channel.
    ended: Vec<(u64, String)>,
}

impl Owed {
    /// # Errors
    /// What SQLite says.
    pub fn read(db: &Connection) -> Result<Owed, StoreError> {
        let text = open::read_meta(db, OWED)?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// What is put back now. Only where a few are: a database that was begun anew has its history from the log.
    pub fn add(&mut self, lacks: &Lacks) {
        if lacks.alerts.len() + lacks.settled.len() <= UNSAID_MAX {
            self.raised.extend(lacks.alerts.iter().map(|row| row.id));
            let ends = lacks.settled.iter().map(|(delivery, _)| (delivery.row, delivery.channel.clone()));
            self.ended.extend(ends);
        }
    }

    fn is_none(&self) -> bool {
        self.raised.is_empty() && self.ended.is_empty()
    }
}

/// The records are in the commit of `tx`.
///
/// # Errors
/// What SQLite says.
pub(crate) fn settle(tx: &Connection) -> Result<(), rusqlite::Error> {
    tx.prepare_cached("DELETE FROM meta WHERE key = ?1")?.execute([OWED]).map(drop)
}

/// The records that are owed, and that history does not have.
///
/// # Errors
/// What SQLite says.
pub(crate) fn unsaid(db: &Connection, owed: &Owed) -> Result<Vec<NewEvent>, StoreError> {
    if owed.is_none() {
        return Ok(Vec::new());
    }
    let history = newest_history(db)?;
    let mut events: Vec<NewEvent> = Vec::new();
    for id in &owed.raised {
        events.extend(alert::select_one(db, *id)?.map(|found| raised_event(&found.row)));
    }
    for (id, channel) in &owed.ended {
        let Some(AlertRow { row, deliveries }) = alert::select_one(db, *id)? else { continue };
        let end = deliveries.into_iter().find(|(delivery, _)| delivery.channel == *channel);
        events.extend(end.and_then(|(delivery, ts_us)| ended_event(&row, &delivery, ts_us)));
    }
    events.retain(|event| !says(&history, event));
    Ok(events)
}

/// Whether this record, that an alert is raised, is one too many: the engine that raised it died before the
/// commit, the alert was put back from its second copy with a record, and the next engine raises it again.
///
/// # Errors
/// What SQLite says.
pub(crate) fn is_said(db: &Connection, event: &NewEvent) -> Result<bool, StoreError> {
    let key = event.data.get("key").and_then(Value::as_str).filter(|_| event.event == "alert.raised");
    match key {
        Some(key) if alert::is_kept(db, key)? => Ok(says(&newest_history(db)?, event)),
        Some(_) | None => Ok(false),
    }
}

fn newest_history(db: &Connection) -> Result<Vec<EventRow>, StoreError> {
    let query = EventQuery { limit: EVENTS_PER_REPLY_MAX, ..EventQuery::default() };
    row::select_events(db, &query)
}

fn says(history: &[EventRow], event: &NewEvent) -> bool {
    let same = |key: &str, said: &EventRow| said.event.data.get(key) == event.data.get(key);
    let is = |said: &EventRow| said.event.event == event.event && same("key", said) && same("channel", said);
    history.iter().any(is)
}

fn raised_event(row: &Row) -> NewEvent {
    let Alert { key, kind, message, .. } = &row.alert;
    let data = [("key", key.clone().into()), ("kind", kind.as_str().into())];
    event(row, Level::Warn, "alert.raised", format!("raised an alert: {message}"), data.into())
}

/// None: it waits.
fn ended_event(row: &Row, delivery: &Delivery, ts_us: i64) -> Option<NewEvent> {
    let (key, channel) = (&row.alert.key, &delivery.channel);
    let (level, name, what) = match delivery.state {
        DeliveryState::Pending => return None,
        DeliveryState::Delivered => (Level::Info, "alert.delivered", "was delivered to"),
        DeliveryState::Parked => (Level::Error, "alert.parked", "is not delivered, ever, to"),
        DeliveryState::Muted => (Level::Info, "alert.muted", "is not told to"),
    };
    let data = vec![
        ("key", key.clone().into()),
        ("channel", channel.clone().into()),
        ("attempts", delivery.attempts.into()),
        ("after_ms", (ts_us.saturating_sub(row.ts_us).max(0) / 1_000).into()),
    ];
    let mut event = event(row, level, name, format!("alert {key} {what} {channel}"), data);
    event.cause.clone_from(&delivery.error);
    Some(event)
}

fn event(row: &Row, level: Level, name: &str, message: String, data: Vec<(&str, Value)>) -> NewEvent {
    NewEvent {
        ts_us: clock::wall().as_microsecond(),
        level,
        event: name.to_string(),
        unit: row.alert.unit.clone(),
        run: None,
        cause: None,
        message,
        at: clock::monotonic(),
        data: data.into_iter().map(|(key, value)| (key.to_string(), value)).collect(),
    }
}

/// Tells the database what it lacks, all of it or nothing.
///
/// # Errors
/// What SQLite says.
pub(crate) fn write(db: &mut Connection, lacks: &Lacks, owed: &Owed) -> Result<(), StoreError> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if !owed.is_none() {
        let text = serde_json::to_string(owed).map_err(|error| StoreError::Value(error.to_string()))?;
        open::write_meta(&tx, OWED, &text)?;
    }
    if let Some((kept, mark)) = &lacks.state {
        tx.execute_batch(
            "DELETE FROM unit; DELETE FROM last_good; DELETE FROM meta WHERE key = 'next_run';",
        )?;
        for write in kept.writes() {
            row::write(&tx, &write)?;
        }
        open::write_mark(&tx, mark)?;
    }
    for row in &lacks.alerts {
        alert::put(&tx, row)?;
    }
    for (delivery, ts_us) in &lacks.settled {
        debug_assert!(delivery.state != DeliveryState::Pending, "only what is over is kept there");
        alert::settle(&tx, delivery, *ts_us)?;
    }
    for row in &lacks.events {
        row::import_event(&tx, row)?;
    }
    if lacks.last_event_id > 0 {
        open::raise_last_event_id(&tx, lacks.last_event_id)?;
    }
    Ok(tx.commit()?)
}
