//! What a row is: an event of history, the durable part of a unit, and their SQL.
//!
//! Refuses: JSON where a typed column will do; only what belongs to one kind of event is JSON.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, params};
use serde_json::{Map, Value};

use crate::base::{exit::RunId, limits, name::UnitName, time::Monotonic};
use crate::engine::durable::{Desired, EngineDurable, UnitDurable};
use crate::store::writer::Write;
use crate::store::{StoreError, alert, drill, open, run};

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Info,
    Warn,
    Error,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Info => "INFO",
            Level::Warn => "WARN",
            Level::Error => "ERROR",
        }
    }

    pub fn parse(text: &str) -> Option<Level> {
        [Level::Info, Level::Warn, Level::Error].into_iter().find(|level| level.as_str() == text)
    }
}

/// A line of history that has no number yet: the writer gives it one when it is committed.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// Wall clock, microseconds since 1970.
    pub ts_us: i64,
    pub level: Level,
    /// Stable dotted name: `unit.failed`, …
    pub event: String,
    pub unit: Option<UnitName>,
    pub run: Option<RunId>,
    pub cause: Option<String>,
    pub message: String,
    /// CLOCK_BOOTTIME of the step that made the record.
    pub at: Monotonic,
    pub data: Map<String, Value>,
}

/// A committed line of history. Ids are dense: a gap is a loss.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    pub id: u64,
    pub event: NewEvent,
}

/// Which events to answer with, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// With it: the first `limit` events after this id. Without: the newest `limit`.
    pub after_id: Option<u64>,
    /// Wall clock, microseconds since 1970.
    pub since_us: Option<i64>,
    pub unit: Option<UnitName>,
    /// At most `limits::EVENTS_PER_REPLY_MAX`.
    pub limit: usize,
    pub pick: Pick,
}

/// Which of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pick {
    #[default]
    All,
    /// Of each kind of event about `unit` the newest, whatever came after it: orders by their
    /// verb, alerts by their kind; and the notes that say who gave those orders. Looks at the
    /// newest `CAUSES_LOOKED_AT`; the other conditions do not hold.
    NewestOfEachKind,
}

/// How far back causes are looked for: an hour and more of a unit that fails and is restarted every
/// ten seconds, and three milliseconds of the store's thread. What is older led to nothing that stands
/// today, or has been repeated since.
const CAUSES_LOOKED_AT: i64 = 2_000;

/// How far before an order's line the note of who gave it can stand: an order for so many units.
const ORDER_SPREAD: i64 = 1_024;

const EVENT_COLUMNS: &str = "id, ts_us, level, event, unit, run, cause, message, at_ns, data";

/// SQLite's integers are signed; ours are counters and nanoseconds far below 2^63.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Everything but an event and an alert, which get numbers.
pub(crate) fn write(db: &Connection, write: &Write) -> Result<(), rusqlite::Error> {
    match write {
        Write::Save { unit, durable } => save_unit(db, unit, durable),
        Write::Forget { unit } => forget_unit(db, unit),
        Write::ReserveRuns { until } => open::write_next_run(db, *until),
        Write::Home { id } => open::write_meta(db, "home", id),
        Write::Life(life) => open::write_life(db, *life),
        Write::Boot { id } => open::write_meta(db, "boot_id", id),
        Write::Quiet(text) => open::write_meta(db, open::QUIET, text),
        Write::UpgradeTold(which) => open::write_meta(db, open::UPGRADE_TOLD, which),
        Write::SaveEngine(durable) => save_engine(db, durable),
        Write::Delivery { delivery, ts_us } => alert::save_delivery(db, delivery, *ts_us).map(drop),
        Write::Channels(known) => alert::save_channels(db, known),
        Write::AlertPrint { channel, print } => alert::save_print(db, channel, *print),
        Write::Run(row) => run::save(db, row),
        Write::Drill(row) => drill::save(db, row),
        Write::RunGone { run } => run::forget(db, *run),
        Write::LastGood { file, text } => save_last_good(db, file, text.as_deref()),
        Write::Event(_) | Write::Alert { .. } => Ok(()),
    }
}

/// Inserts `event` as number `id`; false when this failure of this run stands there
/// already (the engine may say it twice after a crash).
pub(crate) fn insert_event(db: &Connection, id: u64, event: &NewEvent) -> Result<bool, rusqlite::Error> {
    let mut statement = db.prepare_cached(
        "INSERT INTO event (id, ts_us, level, event, unit, run, cause, message, at_ns, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT (unit, run) WHERE event = 'unit.failed' DO NOTHING",
    )?;
    let inserted = statement.execute(params![
        signed(id),
        event.ts_us,
        event.level.as_str(),
        event.event,
        event.unit.as_ref().map(UnitName::as_str),
        event.run.map(|run| signed(run.0)),
        event.cause,
        event.message,
        signed(event.at.as_ns()),
        Value::Object(event.data.clone()).to_string(),
    ])?;
    Ok(inserted == 1)
}

/// Puts an event back under the id that it had; one that stands there stays.
pub(crate) fn import_event(db: &Connection, row: &EventRow) -> Result<(), rusqlite::Error> {
    let event = &row.event;
    let mut statement = db.prepare_cached(
        "INSERT OR IGNORE INTO event (id, ts_us, level, event, unit, run, cause, message, at_ns, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    statement.execute(params![
        signed(row.id),
        event.ts_us,
        event.level.as_str(),
        event.event,
        event.unit.as_ref().map(UnitName::as_str),
        event.run.map(|run| signed(run.0)),
        event.cause,
        event.message,
        signed(event.at.as_ns()),
        Value::Object(event.data.clone()).to_string(),
    ])?;
    Ok(())
}

/// The events of `query`, oldest first.
pub(crate) fn select_events(db: &Connection, query: &EventQuery) -> Result<Vec<EventRow>, StoreError> {
    match (query.pick, &query.unit) {
        (Pick::NewestOfEachKind, Some(unit)) => return select_causes(db, unit),
        (Pick::NewestOfEachKind | Pick::All, _) => {}
    }
    let order = match query.after_id {
        Some(_) => "ASC",
        None => "DESC",
    };
    // A unit's history has an index of its own: the condition stands only where it is asked for.
    let of_unit = match query.unit {
        Some(_) => "unit = ?3",
        None => "?3 IS NULL",
    };
    let sql = format!(
        "SELECT {EVENT_COLUMNS} FROM event WHERE id > ?1 AND ts_us >= ?2 AND {of_unit}
         ORDER BY id {order} LIMIT ?4"
    );
    let limit = query.limit.min(limits::EVENTS_PER_REPLY_MAX);
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(params![
        signed(query.after_id.unwrap_or(0)),
        query.since_us.unwrap_or(i64::MIN),
        query.unit.as_ref().map(UnitName::as_str),
        i64::try_from(limit).unwrap_or(i64::MAX),
    ])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(event_of(row)?);
    }
    if query.after_id.is_none() {
        events.reverse();
    }
    Ok(events)
}

/// CROSS JOIN keeps the order of the tables (sqlite.org/optoverview.html): the planner's own scans
/// the whole history for notes.
fn select_causes(db: &Connection, unit: &UnitName) -> Result<Vec<EventRow>, StoreError> {
    let sql = format!(
        "WITH own AS (SELECT id, event, data FROM event WHERE unit = ?1 ORDER BY id DESC LIMIT ?2),
           last AS (SELECT max(id) AS id, event FROM own
             GROUP BY event, CASE event WHEN 'order.taken' THEN json_extract(data, '$.verb')
               WHEN 'alert.raised' THEN json_extract(data, '$.kind') END),
           asked AS (SELECT note.id FROM last CROSS JOIN event AS note
             WHERE last.event = 'order.taken' AND note.id > last.id - ?3 AND note.id < last.id
               AND note.event = 'order.asked'
               AND EXISTS (SELECT 1 FROM json_each(note.data, '$.units') WHERE value = ?1))
         SELECT {EVENT_COLUMNS} FROM event
         WHERE id IN (SELECT id FROM last UNION SELECT id FROM asked) ORDER BY id"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(params![unit.as_str(), CAUSES_LOOKED_AT, ORDER_SPREAD])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(event_of(row)?);
    }
    Ok(events)
}

/// A bit that flipped in a row of history makes that row look odd; it does not hide the others.
fn event_of(row: &Row<'_>) -> Result<EventRow, StoreError> {
    let text = |column: usize| -> Result<Option<String>, rusqlite::Error> {
        let value = row.get_ref(column)?.as_bytes_or_null().unwrap_or_default();
        Ok(value.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
    };
    let integer = |column: usize| row.get_ref(column).map(|value| value.as_i64().unwrap_or(0));
    let data = text(9)?.unwrap_or_default();
    let event = NewEvent {
        ts_us: integer(1)?,
        level: text(2)?.as_deref().and_then(Level::parse).unwrap_or(Level::Error),
        event: text(3)?.unwrap_or_default(),
        unit: text(4)?.and_then(|name| UnitName::parse(&name).ok()),
        run: row.get_ref(5)?.as_i64().ok().map(|run| RunId(unsigned(run))),
        cause: text(6)?,
        message: text(7)?.unwrap_or_default(),
        at: Monotonic::from_ns(unsigned(integer(8)?)),
        data: match serde_json::from_str(&data) {
            Ok(Value::Object(map)) => map,
            Ok(_) | Err(_) => Map::new(),
        },
    };
    Ok(EventRow { id: unsigned(integer(0)?), event })
}

pub(crate) fn name_of(text: &str) -> Result<UnitName, StoreError> {
    UnitName::parse(text).map_err(|error| StoreError::Value(error.to_string()))
}

/// Replaces the whole row of `unit`.
fn save_unit(db: &Connection, unit: &UnitName, row: &UnitDurable) -> Result<(), rusqlite::Error> {
    let ordered = row.ordered.map(|desired| match desired {
        Desired::Up => "up",
        Desired::Down => "down",
    });
    let mut statement = db.prepare_cached(
        "INSERT OR REPLACE INTO unit (name, ordered, failures, episode, restarts, counted_run, retry_at_ns,
           down_since_ns, ready_run, ready_since_ns, held, finished, own_failures, alerted, owed,
           resync_failed)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
    )?;
    statement.execute(params![
        unit.as_str(),
        ordered,
        row.failures,
        signed(row.episode),
        signed(row.restarts),
        row.counted_run.map(|run| signed(run.0)),
        row.retry_at.map(|at| signed(at.as_ns())),
        row.down_since.map(|at| signed(at.as_ns())),
        row.ready.map(|(run, _)| signed(run.0)),
        row.ready.map(|(_, since)| signed(since.as_ns())),
        row.held,
        row.finished,
        row.own_failures,
        row.alerted,
        row.owed.iter().map(UnitName::as_str).collect::<Vec<_>>().join(" "),
        row.resync_failed,
    ])?;
    Ok(())
}

fn save_engine(db: &Connection, row: &EngineDurable) -> Result<(), rusqlite::Error> {
    let time = |at: Option<Monotonic>| at.map(|at| at.as_ns().to_string()).unwrap_or_default();
    let left: Map<String, Value> =
        row.quarantined.iter().map(|(unit, why)| (unit.to_string(), why.clone().into())).collect();
    open::write_meta(db, "config_errors", &Value::from(row.config_errors.clone()).to_string())?;
    open::write_meta(db, "told_death", &time(row.told_death))?;
    open::write_meta(db, "forgiven", &time(row.forgiven))?;
    open::write_meta(db, "quarantined", &Value::from(left).to_string())?;
    open::write_meta(db, "safe_since", &time(row.safe_since))
}

fn save_last_good(db: &Connection, file: &str, text: Option<&str>) -> Result<(), rusqlite::Error> {
    match text {
        Some(text) => db
            .prepare_cached("INSERT OR REPLACE INTO last_good (file, text) VALUES (?1, ?2)")?
            .execute([file, text]),
        None => db.prepare_cached("DELETE FROM last_good WHERE file = ?1")?.execute([file]),
    }?;
    Ok(())
}

/// File → the text of it that was in force last.
pub(crate) fn load_last_good(db: &Connection) -> Result<BTreeMap<String, String>, StoreError> {
    let mut statement = db.prepare("SELECT file, text FROM last_good")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The row of the engine itself; what cannot be read is as in a new home.
pub(crate) fn load_engine(db: &Connection) -> Result<EngineDurable, StoreError> {
    let text = |key: &str| Ok::<_, StoreError>(open::read_meta(db, key)?.unwrap_or_default());
    let time = |word: &str| word.parse().ok().map(Monotonic::from_ns);
    Ok(EngineDurable {
        config_errors: serde_json::from_str(&text("config_errors")?).unwrap_or_default(),
        told_death: time(&text("told_death")?),
        forgiven: time(&text("forgiven")?),
        safe_since: time(&text("safe_since")?),
        quarantined: quarantined(&text("quarantined")?),
    })
}

fn quarantined(text: &str) -> BTreeMap<UnitName, String> {
    let left: BTreeMap<String, String> = serde_json::from_str(text).unwrap_or_default();
    left.into_iter().filter_map(|(unit, why)| Some((UnitName::parse(&unit).ok()?, why))).collect()
}

/// Drops the row of `unit`; its history stays.
fn forget_unit(db: &Connection, unit: &UnitName) -> Result<(), rusqlite::Error> {
    db.prepare_cached("DELETE FROM unit WHERE name = ?1")?.execute([unit.as_str()])?;
    Ok(())
}

/// Every unit's durable part.
pub(crate) fn load_units(db: &Connection) -> Result<BTreeMap<UnitName, UnitDurable>, StoreError> {
    let mut statement = db.prepare(
        "SELECT name, ordered, failures, episode, restarts, counted_run, retry_at_ns, down_since_ns,
           ready_run, ready_since_ns, held, finished, own_failures, alerted, owed, resync_failed FROM unit",
    )?;
    let mut rows = statement.query([])?;
    let mut units = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        units.insert(name_of(&name)?, durable_of(row)?);
    }
    Ok(units)
}

fn durable_of(row: &Row<'_>) -> Result<UnitDurable, StoreError> {
    let run = |column: usize| -> Result<Option<RunId>, rusqlite::Error> {
        Ok(row.get::<_, Option<i64>>(column)?.map(|run| RunId(unsigned(run))))
    };
    let at = |column: usize| -> Result<Option<Monotonic>, rusqlite::Error> {
        Ok(row.get::<_, Option<i64>>(column)?.map(|ns| Monotonic::from_ns(unsigned(ns))))
    };
    let ordered: Option<String> = row.get(1)?;
    let ordered = match ordered.as_deref() {
        None => None,
        Some("up") => Some(Desired::Up),
        Some("down") => Some(Desired::Down),
        Some(other) => {
            return Err(StoreError::Value(format!("`{other}` is nothing a unit can be ordered to")));
        }
    };
    Ok(UnitDurable {
        ordered,
        failures: row.get(2)?,
        episode: unsigned(row.get(3)?),
        restarts: unsigned(row.get(4)?),
        counted_run: run(5)?,
        retry_at: at(6)?,
        down_since: at(7)?,
        ready: run(8)?.zip(at(9)?),
        held: row.get(10)?,
        finished: row.get(11)?,
        own_failures: row.get(12)?,
        alerted: row.get(13)?,
        owed: row.get::<_, String>(14)?.split_whitespace().map(name_of).collect::<Result<_, _>>()?,
        resync_failed: row.get(15)?,
    })
}
