//! Drills: what was tried, how it went, and the journal of faults that are to be undone.
//!
//! Refuses: meaning. Faults and verdicts are texts that others write and read.

use rusqlite::{Connection, params};

use crate::store::StoreError;
use crate::store::row::{signed, unsigned};
use crate::store::writer::Reader;

/// The table. Self-contained: nothing else refers to it.
pub(crate) const MIGRATION: &str = "
    CREATE TABLE drill (
        id TEXT PRIMARY KEY,
        scenario TEXT NOT NULL,
        -- running | passed | failed | aborted
        status TEXT NOT NULL,
        progress INTEGER NOT NULL,
        begun_us INTEGER NOT NULL,
        ended_us INTEGER,
        -- JSON, as the drill gave it.
        verdict TEXT,
        -- JSON: faults that are done, or about to be, and not over. Empty = none.
        faults TEXT NOT NULL DEFAULT '',
        -- The drill's process: pid, and when it began in ticks since boot.
        owner_pid INTEGER NOT NULL,
        owner_started INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX drill_by_begin ON drill (begun_us);
";

/// Most drills that are kept: the oldest go.
const DRILLS_MAX: i64 = 1_000;

/// A drill, as it is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrillRow {
    pub id: String,
    pub scenario: String,
    pub status: String,
    pub progress: u8,
    pub begun_us: i64,
    pub ended_us: Option<i64>,
    pub verdict: Option<String>,
    pub faults: String,
    pub owner_pid: i32,
    pub owner_started: u64,
}

pub(crate) fn save(db: &Connection, row: &DrillRow) -> Result<(), rusqlite::Error> {
    let mut statement = db.prepare_cached(
        "INSERT OR REPLACE INTO drill (id, scenario, status, progress, begun_us, ended_us, verdict, faults,
           owner_pid, owner_started) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    statement.execute(params![
        row.id,
        row.scenario,
        row.status,
        row.progress,
        row.begun_us,
        row.ended_us,
        row.verdict,
        row.faults,
        row.owner_pid,
        signed(row.owner_started),
    ])?;
    let mut prune = db.prepare_cached(
        "DELETE FROM drill WHERE faults = '' AND begun_us <
           (SELECT begun_us FROM drill ORDER BY begun_us DESC LIMIT 1 OFFSET ?1)",
    )?;
    prune.execute([DRILLS_MAX - 1])?;
    Ok(())
}

/// The newest, newest first.
pub(crate) fn newest(db: &Connection, limit: usize) -> Result<Vec<DrillRow>, StoreError> {
    let mut statement = db.prepare_cached(&select("ORDER BY begun_us DESC, id LIMIT ?1"))?;
    rows(&mut statement, i64::try_from(limit).unwrap_or(i64::MAX))
}

/// Those that run, or have left faults: what a new engine has to see to.
pub(crate) fn open_ones(db: &Connection) -> Result<Vec<DrillRow>, StoreError> {
    let mut statement =
        db.prepare(&select("WHERE status = 'running' OR faults <> '' ORDER BY begun_us LIMIT ?1"))?;
    rows(&mut statement, DRILLS_MAX)
}

fn select(which: &str) -> String {
    format!(
        "SELECT id, scenario, status, progress, begun_us, ended_us, verdict, faults, owner_pid, owner_started
         FROM drill {which}"
    )
}

fn rows(statement: &mut rusqlite::Statement<'_>, limit: i64) -> Result<Vec<DrillRow>, StoreError> {
    let rows = statement.query_map([limit], |row| {
        Ok(DrillRow {
            id: row.get(0)?,
            scenario: row.get(1)?,
            status: row.get(2)?,
            progress: row.get(3)?,
            begun_us: row.get(4)?,
            ended_us: row.get(5)?,
            verdict: row.get(6)?,
            faults: row.get(7)?,
            owner_pid: row.get(8)?,
            owner_started: unsigned(row.get(9)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Reader {
    /// Asks for the newest drills; `answer` is called on the store's thread.
    pub fn drills(
        &self,
        limit: usize,
        answer: impl FnOnce(Result<Vec<DrillRow>, StoreError>) + Send + 'static,
    ) {
        self.ask(move |db| newest(db, limit), answer);
    }
}
