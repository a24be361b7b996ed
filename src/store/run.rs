//! The runs that live, for a keeper that has to find them: its predecessor died, and its table with it.
//!
//! Refuses: being the truth while a keeper lives. The keeper's table is.

use rusqlite::{Connection, params};

use crate::base::{exit::RunId, time::Monotonic};
use crate::store::StoreError;
use crate::store::row::{signed, unsigned};

/// The table. Self-contained: nothing else refers to it.
pub(crate) const MIGRATION: &str = "
    -- Runs that live as far as we know; without meaning in another `world`.
    CREATE TABLE run (
        run INTEGER PRIMARY KEY,
        world TEXT NOT NULL,
        tag BLOB NOT NULL,
        pid INTEGER NOT NULL,
        -- Inode of its pidfd; NULL where the kernel has none.
        identity INTEGER,
        -- Ticks since boot.
        started INTEGER NOT NULL,
        spawned_at_ns INTEGER NOT NULL,
        end_asked INTEGER NOT NULL CHECK (end_asked IN (0, 1)),
        said_ready INTEGER NOT NULL CHECK (said_ready IN (0, 1))
    ) STRICT;
";

/// A run, and what tells its process from every other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    pub run: RunId,
    /// Where its pid means something (`sys::process::world`).
    pub world: String,
    pub tag: Vec<u8>,
    pub pid: i32,
    /// `sys::pidfd::identity`.
    pub identity: Option<u64>,
    /// When it began, ticks since boot (proc_pid_stat(5)); 0 = it was gone already.
    pub started: u64,
    pub spawned_at: Monotonic,
    pub end_asked: bool,
    pub said_ready: bool,
}

pub(crate) fn save(db: &Connection, row: &RunRow) -> Result<(), rusqlite::Error> {
    let mut statement = db.prepare_cached(
        "INSERT OR REPLACE INTO run (run, world, tag, pid, identity, started, spawned_at_ns, end_asked,
           said_ready) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    statement.execute(params![
        signed(row.run.0),
        row.world,
        row.tag,
        row.pid,
        row.identity.map(u64::cast_signed),
        signed(row.started),
        signed(row.spawned_at.as_ns()),
        row.end_asked,
        row.said_ready,
    ])?;
    Ok(())
}

pub(crate) fn forget(db: &Connection, run: RunId) -> Result<(), rusqlite::Error> {
    db.prepare_cached("DELETE FROM run WHERE run = ?1")?.execute([signed(run.0)])?;
    Ok(())
}

/// All of them, oldest first.
pub(crate) fn load(db: &Connection) -> Result<Vec<RunRow>, StoreError> {
    let mut statement = db.prepare(
        "SELECT run, world, tag, pid, identity, started, spawned_at_ns, end_asked, said_ready FROM run
         ORDER BY run",
    )?;
    let rows = statement.query_map([], |row| {
        Ok(RunRow {
            run: RunId(unsigned(row.get(0)?)),
            world: row.get(1)?,
            tag: row.get(2)?,
            pid: row.get(3)?,
            identity: row.get::<_, Option<i64>>(4)?.map(i64::cast_unsigned),
            started: unsigned(row.get(5)?),
            spawned_at: Monotonic::from_ns(unsigned(row.get(6)?)),
            end_asked: row.get(7)?,
            said_ready: row.get(8)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
