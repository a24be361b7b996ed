//! The ledger's books in the database: a row an hour and a row a day, and what is open in memory.
//!
//! A row is written when its hour is over, so that no commit carries books; after a crash the records after
//! the last row are read again. Rows are sums: one of an hour that the clock was set back to is added to.
//!
//! Refuses: what a record means (`ledger`), and long work: whoever asks for a step gets a short one.

use std::mem;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde_json::{Map, Value, json};

use crate::base::time::Monotonic;
use crate::ledger::Fact;
use crate::ledger::carry::Carry;
use crate::ledger::fold::{self, Closed, Fold, HOUR_US, hour_of};
use crate::ledger::summary::{self, Split};
use crate::ledger::tally::Both;
use crate::ledger::window::Replay;
use crate::store::row::{EventRow, signed, unsigned};
use crate::store::{StoreError, open};

/// Its tables. A build that does not know them leaves them behind the records; the next that does goes
/// on from there.
pub(crate) const MIGRATION: &str = "
    -- What the records of an hour, or of a day, add up to.
    CREATE TABLE rollup (
        span TEXT NOT NULL CHECK (span IN ('hour', 'day')),
        begin_us INTEGER NOT NULL,
        first_id INTEGER NOT NULL,
        last_id INTEGER NOT NULL,
        tally TEXT NOT NULL,
        -- What was open before the first of them.
        before TEXT NOT NULL,
        PRIMARY KEY (span, begin_us)
    ) STRICT;
";

/// Key of what was open after the last row.
const META: &str = "ledger";

const DAY_US: i64 = 24 * HOUR_US;

/// Hours stay so long; of what is older there are the days.
const HOURS_KEPT_US: i64 = 8 * DAY_US;

/// Records read in one step: a few milliseconds.
const STEP: u64 = 1_000;

/// Records removed in one step.
const REMOVED_PER_STEP: i64 = 500;

/// The figures of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    pub split: Split,
    /// Where it begins: later than asked when history begins later.
    pub from_us: i64,
    pub until_us: i64,
    /// The newest record in it.
    pub last_event_id: u64,
}

struct HourRow {
    hour_us: i64,
    first_id: u64,
    last_id: u64,
    tally: Both,
    before: Carry,
}

/// The books, as far as they are.
pub(crate) struct Books {
    fold: Fold,
    /// The newest record that they have.
    fed: u64,
    /// The newest record that there is.
    newest: u64,
    /// Of the first record ever.
    begins_us: Option<i64>,
    /// What was open when the hour of the newest record began, and that hour's first record.
    before: Carry,
    first_id: u64,
    /// Hours that are over and not written yet.
    over: Vec<HourRow>,
}

fn text_of(value: &impl serde::Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Value(error.to_string()))
}

fn value_of<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Value(error.to_string()))
}

fn fact(row: &EventRow) -> Fact<'_> {
    let event = &row.event;
    Fact {
        ts_us: event.ts_us,
        at: event.at,
        event: &event.event,
        unit: event.unit.as_ref().map(|unit| unit.as_str()),
        data: &event.data,
    }
}

impl Books {
    /// As the database has them. Books that cannot be read are begun anew, from the oldest record on.
    pub fn load(db: &Connection, newest: u64) -> Result<Books, StoreError> {
        let found = open::read_meta(db, META)?.and_then(|text| value_of::<Value>(&text).ok());
        let carry = found.as_ref().and_then(|found| {
            let carry = serde_json::from_value::<Carry>(found.get("carry")?.clone()).ok()?;
            let through = found.get("through")?.as_u64().filter(|through| *through <= newest)?;
            Some((carry, through, found.get("begins_us").and_then(Value::as_i64)))
        });
        let (carry, fed, begins_us) = match carry {
            Some(found) => found,
            None => {
                db.execute("DELETE FROM rollup", [])?;
                (Carry::default(), 0, None)
            }
        };
        Ok(Books {
            fold: Fold::from_carry(carry.clone()),
            fed,
            newest,
            begins_us,
            before: carry,
            first_id: fed + 1,
            over: Vec::new(),
        })
    }

    /// Whether a step would do something.
    pub fn is_behind(&self) -> bool {
        self.fed < self.newest || !self.over.is_empty()
    }

    /// What was committed.
    pub fn committed(&mut self, rows: &[EventRow]) {
        for row in rows {
            let follows = self.fed == self.newest && row.id == self.fed + 1;
            self.newest = self.newest.max(row.id);
            if follows {
                self.feed(row.id, &fact(row));
            }
        }
    }

    fn feed(&mut self, id: u64, fact: &Fact<'_>) {
        if id <= self.fed {
            return;
        }
        self.begins_us.get_or_insert(fact.ts_us);
        let mut closed: Vec<Closed> = Vec::new();
        self.fold.feed(fact, &mut |hour| closed.push(hour));
        for Closed { hour_us, tally, after } in closed {
            let before = mem::replace(&mut self.before, after);
            self.over.push(HourRow { hour_us, first_id: self.first_id, last_id: self.fed, tally, before });
            self.first_id = id;
        }
        self.fed = id;
    }

    /// A short piece of what is to be done.
    pub fn step(&mut self, db: &Connection) -> Result<(), StoreError> {
        if self.fed < self.newest {
            // Ids are dense; what is not there any more is passed over.
            let oldest: Option<i64> = db.query_row("SELECT min(id) FROM event", [], |row| row.get(0))?;
            let first = (self.fed + 1).max(oldest.map_or(self.newest, unsigned));
            let last = self.newest.min(first.saturating_add(STEP - 1));
            each_event(db, first, last, &mut |id, fact| self.feed(id, fact))?;
            self.fed = self.fed.max(last);
        }
        if !self.over.is_empty() {
            self.write(db)?;
            self.over.clear();
        }
        Ok(())
    }

    fn write(&self, db: &Connection) -> Result<(), StoreError> {
        let tx = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        for row in &self.over {
            add_to_row(&tx, "hour", row.hour_us, row)?;
            add_to_row(&tx, "day", day_of(row.hour_us), row)?;
        }
        let newest_us = self.over.iter().map(|row| row.hour_us).max().unwrap_or(0);
        tx.execute(
            "DELETE FROM rollup WHERE span = 'hour' AND begin_us < ?1",
            [day_of(newest_us).saturating_sub(HOURS_KEPT_US)],
        )?;
        let through = self.first_id.saturating_sub(1);
        let meta = json!({ "through": through, "begins_us": self.begins_us, "carry": self.before });
        open::write_meta(&tx, META, &text_of(&meta)?)?;
        tx.commit()?;
        Ok(())
    }

    /// The figures of everything from `since_us` until `now_us`. All that is known must have been fed.
    pub fn window(&self, db: &Connection, since_us: i64, now_us: i64) -> Result<Window, StoreError> {
        let begins_us = self.begins_us.unwrap_or(now_us);
        let mut from_us = since_us.max(begins_us).min(now_us);
        let mut sum = Both::default();
        let (hour_us, day_us) = (hour_of(from_us), day_of(from_us));
        let next_day_us = day_us + DAY_US;
        add_spans(db, "day", next_day_us, i64::MAX, &mut sum)?;
        let oldest_hour: Option<i64> =
            db.query_row("SELECT min(begin_us) FROM rollup WHERE span = 'hour'", [], |row| row.get(0))?;
        if since_us <= begins_us || from_us == day_us {
            add_spans(db, "day", day_us, next_day_us, &mut sum)?;
        } else if oldest_hour.is_none_or(|oldest| oldest <= hour_us) {
            add_spans(db, "hour", hour_us + HOUR_US, next_day_us, &mut sum)?;
            let is_over = self.fold.hour_us != Some(hour_us);
            if is_over && !replay(db, "hour", hour_us, (from_us, hour_us + HOUR_US, now_us), &mut sum)? {
                add_spans(db, "hour", hour_us, hour_us + HOUR_US, &mut sum)?;
                from_us = hour_us;
            }
        } else if !replay(db, "day", day_us, (from_us, next_day_us, now_us), &mut sum)? {
            add_spans(db, "day", day_us, next_day_us, &mut sum)?;
            from_us = day_us;
        }
        self.add_current(db, from_us, now_us, &mut sum)?;
        let mut now = self.fold.clone();
        now.pass(now_us.max(now.carry.ts_us), &mut |_| ());
        let split = summary::split(&sum, &now.carry);
        Ok(Window { split, from_us, until_us: now_us, last_event_id: self.fed })
    }

    /// The hour of the newest record, and what has passed since.
    fn add_current(
        &self,
        db: &Connection,
        from_us: i64,
        now_us: i64,
        sum: &mut Both,
    ) -> Result<(), StoreError> {
        let Some(hour_us) = self.fold.hour_us else { return Ok(()) };
        let end_us = now_us.max(self.fold.carry.ts_us);
        if hour_us >= from_us || self.begins_us.is_some_and(|begins| from_us <= begins) {
            let mut fold = self.fold.clone();
            fold.pass(end_us, &mut |closed: Closed| sum.merge(&closed.tally));
            sum.merge(&fold.tally);
            return Ok(());
        }
        let mut replay = Replay::new(self.before.clone(), from_us, i64::MAX);
        each_event(db, self.first_id, self.fed, &mut |_, fact| replay.feed(fact))?;
        sum.merge(&replay.finish(end_us));
        Ok(())
    }

    /// Removes some of the oldest records, where they are older than `before_us` and stand in the books:
    /// through which, and how many.
    pub fn remove(&self, db: &Connection, before_us: i64) -> Result<Option<(u64, u64)>, StoreError> {
        let written = self.first_id.saturating_sub(1);
        let tx = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
        let through: Option<i64> = {
            let mut oldest = tx.prepare_cached("SELECT id, ts_us FROM event ORDER BY id LIMIT ?1")?;
            let mut rows = oldest.query([REMOVED_PER_STEP])?;
            let mut through = None;
            while let Some(row) = rows.next()? {
                let (id, ts_us): (i64, i64) = (row.get(0)?, row.get(1)?);
                if ts_us >= before_us || id > signed(written) {
                    break;
                }
                through = Some(id);
            }
            through
        };
        let Some(through) = through else { return Ok(None) };
        let removed = tx.execute("DELETE FROM event WHERE id <= ?1", [through])?;
        tx.commit()?;
        Ok(Some((unsigned(through), removed as u64)))
    }
}

/// When the oldest record was made that stands in the database.
pub(crate) fn oldest_us(db: &Connection) -> Result<Option<i64>, StoreError> {
    let mut oldest = db.prepare_cached("SELECT ts_us FROM event ORDER BY id LIMIT 1")?;
    Ok(oldest.query_row([], |row| row.get(0)).optional()?)
}

fn day_of(ts_us: i64) -> i64 {
    ts_us.div_euclid(DAY_US).saturating_mul(DAY_US)
}

fn add_to_row(db: &Connection, span: &str, begin_us: i64, row: &HourRow) -> Result<(), StoreError> {
    let mut stands = db.prepare_cached("SELECT tally FROM rollup WHERE span = ?1 AND begin_us = ?2")?;
    let stands: Option<String> =
        stands.query_row(params![span, begin_us], |found| found.get(0)).optional()?;
    let mut tally = row.tally.clone();
    let Some(stands) = stands else {
        db.prepare_cached(
            "INSERT INTO rollup (span, begin_us, first_id, last_id, tally, before)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            span,
            begin_us,
            signed(row.first_id),
            signed(row.last_id),
            text_of(&tally)?,
            text_of(&row.before)?
        ])?;
        return Ok(());
    };
    tally.merge(&value_of(&stands)?);
    db.prepare_cached(
        "UPDATE rollup SET tally = ?3, last_id = max(last_id, ?4) WHERE span = ?1 AND begin_us = ?2",
    )?
    .execute(params![span, begin_us, text_of(&tally)?, signed(row.last_id)])?;
    Ok(())
}

/// Adds the rows of a span that begin in `from_us..until_us`.
fn add_spans(
    db: &Connection,
    span: &str,
    from_us: i64,
    until_us: i64,
    sum: &mut Both,
) -> Result<(), StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT tally FROM rollup WHERE span = ?1 AND begin_us >= ?2 AND begin_us < ?3 ORDER BY begin_us",
    )?;
    let mut rows = statement.query(params![span, from_us, until_us])?;
    while let Some(row) = rows.next()? {
        sum.merge(&value_of(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?);
    }
    Ok(())
}

/// Adds what the records of one row add up to in `(from, until, now)`. False: they are not all there any more.
fn replay(
    db: &Connection,
    span: &str,
    begin_us: i64,
    (from_us, until_us, now_us): (i64, i64, i64),
    sum: &mut Both,
) -> Result<bool, StoreError> {
    let mut found =
        db.prepare_cached("SELECT first_id, last_id, before FROM rollup WHERE span = ?1 AND begin_us = ?2")?;
    let found: Option<(i64, i64, String)> = found
        .query_row(params![span, begin_us], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let Some((first_id, last_id, before)) = found else { return Ok(true) };
    let oldest: Option<i64> = db.query_row("SELECT min(id) FROM event", [], |row| row.get(0))?;
    if oldest.is_none_or(|oldest| oldest > first_id) {
        return Ok(false);
    }
    let mut replay = Replay::new(value_of(&before)?, from_us, until_us);
    // The one after the last says how long the last hour was.
    each_event(db, unsigned(first_id), unsigned(last_id) + 1, &mut |_, fact| replay.feed(fact))?;
    sum.merge(&replay.finish(now_us));
    Ok(true)
}

/// Tells of the records from one id to another, without what the ledger does not look at.
fn each_event(
    db: &Connection,
    first_id: u64,
    last_id: u64,
    tell: &mut impl FnMut(u64, &Fact<'_>),
) -> Result<(), StoreError> {
    let mut statement = db.prepare_cached(
        "SELECT id, ts_us, at_ns, event, unit, data FROM event WHERE id BETWEEN ?1 AND ?2 ORDER BY id",
    )?;
    let mut rows = statement.query([signed(first_id), signed(last_id)])?;
    while let Some(row) = rows.next()? {
        // A bit that flipped makes one record look odd; the others count.
        let integer = |column: usize| row.get_ref(column).map(|value| value.as_i64().unwrap_or(0));
        let text = |column: usize| row.get_ref(column).map(|value| value.as_str_or_null().ok().flatten());
        let (event, unit, data) = (text(3)?.unwrap_or(""), text(4)?, text(5)?.unwrap_or(""));
        let parsed = match fold::reads_data_of(event) || data.contains("\"state\":") {
            true => serde_json::from_str(data).unwrap_or_default(),
            false => Map::new(),
        };
        let at = Monotonic::from_ns(unsigned(integer(2)?));
        tell(unsigned(integer(0)?), &Fact { ts_us: integer(1)?, at, event, unit, data: &parsed });
    }
    Ok(())
}
