//! The schema: its steps, and which builds may use the result of each.
//!
//! Refuses: a file whose newest step this build can neither undo nor live with.
//!
//! A roll-back brings an older build to a file that a newer one has migrated. So each step says
//! what is the oldest schema whose builds still read and write its result; the greatest of these
//! stands in the file, where builds read it that do not know the step. A step that adds tables,
//! or columns with a default, names the schema before it or an older one; one that takes away,
//! renames, or gives old columns another meaning names itself. All statements name their columns.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::store::open::{read_meta, write_meta};
use crate::store::{StoreError, books, drill, run};

/// Step k brings a file from schema k to k + 1.
struct Step {
    /// The oldest schema whose builds can use the result: they do not miss what it took away,
    /// and what they leave out has a default that is right.
    compatible_from: i64,
    sql: &'static str,
}

/// Never edit one that was released.
const STEPS: &[Step] = &[
    Step {
        compatible_from: 1,
        sql: "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE unit (
        name TEXT PRIMARY KEY,
        ordered TEXT CHECK (ordered IN ('up', 'down')),
        failures INTEGER NOT NULL,
        episode INTEGER NOT NULL,
        restarts INTEGER NOT NULL,
        counted_run INTEGER,
        retry_at_ns INTEGER,
        down_since_ns INTEGER,
        ready_run INTEGER,
        ready_since_ns INTEGER,
        held TEXT,
        finished INTEGER NOT NULL CHECK (finished IN (0, 1))
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE event (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        ts_us INTEGER NOT NULL,
        level TEXT NOT NULL,
        event TEXT NOT NULL,
        unit TEXT,
        run INTEGER,
        cause TEXT,
        message TEXT NOT NULL,
        at_ns INTEGER NOT NULL,
        data TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX event_failed_once ON event (unit, run) WHERE event = 'unit.failed';
    CREATE INDEX event_of_unit ON event (unit, id);
",
    },
    Step {
        compatible_from: 2,
        sql: "
    ALTER TABLE unit ADD COLUMN own_failures INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE unit ADD COLUMN alerted INTEGER NOT NULL DEFAULT 0 CHECK (alerted IN (0, 1));
    -- Names of units, separated by spaces; a name has none.
    ALTER TABLE unit ADD COLUMN owed TEXT NOT NULL DEFAULT '';
    ALTER TABLE unit ADD COLUMN resync_failed INTEGER NOT NULL DEFAULT 0 CHECK (resync_failed IN (0, 1));
    CREATE TABLE alert (
        -- Rows are delivered in this order.
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        ts_us INTEGER NOT NULL,
        unit TEXT,
        kind TEXT NOT NULL,
        message TEXT NOT NULL,
        failures INTEGER NOT NULL,
        episode INTEGER NOT NULL,
        -- Names of units, separated by spaces.
        affected TEXT NOT NULL,
        -- Names of channels, separated by spaces; NULL = every channel.
        channels TEXT
    ) STRICT;
    -- How far an alert is with a channel; no row = not tried yet.
    CREATE TABLE delivery (
        alert INTEGER NOT NULL REFERENCES alert (id) ON DELETE CASCADE,
        channel TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'parked')),
        attempts INTEGER NOT NULL,
        -- Of the last change, wall clock.
        ts_us INTEGER NOT NULL,
        -- What the last attempt was told, when it failed.
        error TEXT,
        PRIMARY KEY (alert, channel)
    ) STRICT, WITHOUT ROWID;
    -- The last version of each unit file that was without error: in force while the file is broken.
    CREATE TABLE last_good (
        file TEXT PRIMARY KEY,
        text TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
",
    },
    Step { compatible_from: 2, sql: run::MIGRATION },
    // A delivery may be muted: the check that named the states goes.
    Step {
        compatible_from: 2,
        sql: "
    CREATE TABLE delivery_4 (
        alert INTEGER NOT NULL REFERENCES alert (id) ON DELETE CASCADE,
        channel TEXT NOT NULL,
        -- pending | delivered | parked | muted; older builds pass over what they do not know.
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        ts_us INTEGER NOT NULL,
        error TEXT,
        PRIMARY KEY (alert, channel)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO delivery_4 (alert, channel, state, attempts, ts_us, error)
        SELECT alert, channel, state, attempts, ts_us, error FROM delivery;
    DROP TABLE delivery;
    ALTER TABLE delivery_4 RENAME TO delivery;
",
    },
    Step { compatible_from: 2, sql: books::MIGRATION },
    Step { compatible_from: 2, sql: drill::MIGRATION },
];

/// Key of `Schema::compatible_from`.
const COMPATIBLE_FROM: &str = "compatible_from";

/// The schema of a file, or of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schema {
    pub version: i64,
    /// Builds of an older schema than this one cannot use it.
    pub compatible_from: i64,
}

impl Schema {
    /// Whether a build that knows schemas up to `known` can use it.
    pub fn is_open_to(self, known: i64) -> bool {
        known >= self.version.min(self.compatible_from)
    }
}

/// The schema that this build gives to a file.
pub fn of_this_build() -> Schema {
    Schema {
        version: i64::try_from(STEPS.len()).unwrap_or(i64::MAX),
        compatible_from: STEPS.iter().map(|step| step.compatible_from).max().unwrap_or(0),
    }
}

/// The schema of a file that this build can use.
///
/// # Errors
/// What SQLite says.
pub(crate) fn of_file(db: &Connection) -> Result<Schema, StoreError> {
    let version = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let word = read_meta(db, COMPATIBLE_FROM)?;
    Ok(Schema { version, compatible_from: word.and_then(|word| word.parse().ok()).unwrap_or(version) })
}

/// Brings the file to the schema of this build, or leaves a newer one as it is where this build
/// can use it. The schema that it has then.
pub(crate) fn migrate(db: &mut Connection, path: &Path) -> Result<Schema, StoreError> {
    let ours = of_this_build();
    let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get(0));
    if version(db)? == ours.version {
        return Ok(ours); // nothing to write, which may be impossible now
    }
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = version(&tx)?;
    if found > ours.version || found < 0 {
        // Whatever it is, it may not have this row.
        let word = read_meta(&tx, COMPATIBLE_FROM).ok().flatten();
        let compatible_from = word.and_then(|word| word.parse().ok()).unwrap_or(found);
        let theirs = Schema { version: found, compatible_from };
        if found < 0 || !theirs.is_open_to(ours.version) {
            return Err(StoreError::Newer { path: path.to_path_buf(), found, known: ours.version });
        }
        return Ok(theirs);
    }
    for step in STEPS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        tx.execute_batch(step.sql)?;
    }
    tx.pragma_update(None, "user_version", ours.version)?;
    write_meta(&tx, COMPATIBLE_FROM, &ours.compatible_from.to_string())?;
    tx.commit()?;
    Ok(ours)
}
