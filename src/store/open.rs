//! Opening the file: the library's age, migrations, what survived, a reboot in between.
//!
//! Refuses: a schema newer than this build, and SQLite older than 3.51.3.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior};

use crate::base::{exit::RunId, name::UnitName};
use crate::engine::durable::{EngineDurable, UnitDurable};
use crate::store::row::{EventQuery, EventRow};
use crate::store::run::{self, RunRow};
use crate::store::writer::Write;
use crate::store::{StoreError, alert, row};

/// SQLite 3.7.0 to 3.51.2 can corrupt a WAL that is reset while it is written
/// (sqlite.org/wal.html, "the WAL-reset bug").
const LIBVERSION_MIN: i32 = 3_051_003;

/// Run ids are handed out from blocks of this size, each reserved before it is used: an id
/// is never used twice, even if the last commits before a crash are lost.
pub const RUNS_PER_RESERVE: u64 = 1_000;

/// How long SQLite itself waits for somebody else's lock before we call it trouble.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// Step k brings a file from schema k to k + 1. Never edit one that was released.
const MIGRATIONS: [&str; 3] = [
    "
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
    "
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
    run::MIGRATION,
];

/// Whether the daemon (keeper and engine) runs or has ended as it should, and how often it
/// ended otherwise. Only a life that was never ended shows that the whole was cut down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Life {
    pub phase: Phase,
    /// Times the whole ended without having stopped its units, since the home was made.
    pub fatal_stops: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    Running,
    /// Also: never begun.
    #[default]
    Ended,
}

/// What an earlier life left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub durable: BTreeMap<UnitName, UnitDurable>,
    /// The row of the engine itself.
    pub engine: EngineDurable,
    /// File → the text of it that was in force last.
    pub last_good: BTreeMap<String, String>,
    /// The runs that lived when this was last written, of any boot.
    pub runs: Vec<RunRow>,
    /// Of the boot before this open; none in a new home.
    pub boot_id: Option<String>,
    /// No run of this home had this id or a greater one; `RUNS_PER_RESERVE` ids from here
    /// on are reserved.
    pub next_run: RunId,
    pub last_event_id: u64,
    /// The newest alert; 0 when there is none.
    pub last_alert: u64,
    /// The channels of the outbox, each with the last alert that is not for it.
    pub channels: BTreeMap<String, u64>,
    pub life: Life,
    /// Why nothing can be written now; run ids are not reserved then. It is tried again.
    pub trouble: Option<String>,
    /// The file was corrupt and stands aside under this name; history begins anew.
    pub moved_aside: Option<PathBuf>,
}

/// An open store whose thread does not run yet: what must be read first is read here.
pub struct Opened {
    pub(crate) db: Connection,
    /// What could not be written when it was opened.
    pub(crate) owed: Vec<Write>,
    pub(crate) trouble: Option<String>,
    pub(crate) path: PathBuf,
    pub(crate) last_event_id: u64,
    pub(crate) last_alert: u64,
    /// Unlike any other open of this home (it is the first reserved run id).
    pub(crate) epoch: u64,
}

impl Opened {
    /// # Errors
    /// What SQLite says.
    pub fn events(&self, query: &EventQuery) -> Result<Vec<EventRow>, StoreError> {
        row::select_events(&self.db, query)
    }
}

/// Opens `path` (made with mode 0640 if missing), brings its schema up to date, reserves
/// run ids, and forgets what a reboot made meaningless when `boot_id` is another one.
///
/// A corrupt file is moved aside together with its WAL, and a new one is begun: supervision
/// goes on without history rather than not at all.
///
/// # Errors
/// A newer schema, an old SQLite, a file that cannot be opened or written.
pub fn open(path: &Path, boot_id: &str) -> Result<(Opened, Loaded), StoreError> {
    match open_once(path, boot_id) {
        Err(StoreError::Sqlite(error)) if is_corrupt(&error) => {
            let aside = move_aside(path).map_err(|cause| file_error(path, cause))?;
            let (opened, loaded) = open_once(path, boot_id)?;
            Ok((opened, Loaded { moved_aside: Some(aside), ..loaded }))
        }
        other => other,
    }
}

fn open_once(path: &Path, boot_id: &str) -> Result<(Opened, Loaded), StoreError> {
    if rusqlite::version_number() < LIBVERSION_MIN {
        return Err(StoreError::Library { found: rusqlite::version().to_string() });
    }
    create_private(path).map_err(|cause| file_error(path, cause))?;
    let mut db = connect(path)?;
    migrate(&mut db, path)?;
    let (mut loaded, owed) = look(&db, boot_id)?;
    let mut opened = Opened {
        db,
        owed: Vec::new(),
        trouble: None,
        path: path.to_path_buf(),
        last_event_id: loaded.last_event_id,
        last_alert: loaded.last_alert,
        epoch: loaded.next_run.0,
    };
    match write_all(&mut opened.db, &owed) {
        Ok(()) => {}
        Err(error) if passes(&error) => {
            opened.owed = owed;
            opened.trouble = Some(error.to_string());
            loaded.trouble = opened.trouble.clone();
        }
        Err(error) => return Err(error.into()),
    }
    Ok((opened, loaded))
}

/// Trouble that may end by itself: supervision begins without waiting for it.
fn passes(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull, ReadOnly, SystemIoFailure};
    let code = error.sqlite_error_code();
    matches!(code, Some(DatabaseBusy | DatabaseLocked | DiskFull | ReadOnly | SystemIoFailure))
}

fn write_all(db: &mut Connection, writes: &[Write]) -> Result<(), rusqlite::Error> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for write in writes {
        row::write(&tx, write)?;
    }
    tx.commit()
}

/// A connection set up as every connection of ours is. The schema is not looked at.
pub(crate) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "trusted_schema", "OFF")?;
    Ok(db)
}

/// SQLite gives the WAL the mode of the main file, so that is made first, by us. It is
/// closed again before SQLite opens it: a later close would drop SQLite's locks.
fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
        Ok(file) => file.set_permissions(fs::Permissions::from_mode(0o640)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn migrate(db: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get(0));
    if version(db)? == known {
        return Ok(()); // nothing to write, which may be impossible now
    }
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = version(&tx)?;
    if found > known || found < 0 {
        return Err(StoreError::Newer { path: path.to_path_buf(), found, known });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for step in MIGRATIONS.iter().skip(done) {
        tx.execute_batch(step)?;
    }
    if found < known {
        tx.pragma_update(None, "user_version", known)?;
    }
    tx.commit()?;
    Ok(())
}

/// Reads what is there; and says what has to be written for this life to begin.
fn look(db: &Connection, boot_id: &str) -> Result<(Loaded, Vec<Write>), StoreError> {
    let mut owed = Vec::new();
    let mut durable = row::load_units(db)?;
    let mut engine = row::load_engine(db)?;
    let old_boot = read_meta(db, "boot_id")?;
    if old_boot.as_deref().is_some_and(|old| old != boot_id) {
        durable = durable.into_iter().map(|(name, row)| (name, row.after_reboot())).collect();
        let saves = durable.iter().map(|(unit, row)| (unit.clone(), row.clone()));
        owed.extend(saves.map(|(unit, durable)| Write::Save { unit, durable }));
        engine = engine.after_reboot();
        owed.push(Write::SaveEngine(engine.clone()));
    }
    let reserved = read_meta(db, "next_run")?;
    let next_run: u64 = reserved.as_deref().and_then(|text| text.parse().ok()).unwrap_or(1);
    owed.push(Write::ReserveRuns { until: RunId(next_run.saturating_add(RUNS_PER_RESERVE)) });
    owed.push(Write::Boot { id: boot_id.to_string() });
    let loaded = Loaded {
        durable,
        engine,
        last_good: row::load_last_good(db)?,
        runs: run::load(db)?,
        boot_id: old_boot,
        next_run: RunId(next_run),
        last_event_id: last_event_id(db)?,
        last_alert: alert::last_id(db)?,
        channels: alert::load_channels(db)?,
        life: read_life(db)?,
        trouble: None,
        moved_aside: None,
    };
    Ok((loaded, owed))
}

fn read_life(db: &Connection) -> Result<Life, StoreError> {
    let phase = match read_meta(db, "life")?.as_deref() {
        Some("running") => Phase::Running,
        Some(_) | None => Phase::Ended,
    };
    let fatal_stops = read_meta(db, "fatal_stops")?.and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(Life { phase, fatal_stops })
}

pub(crate) fn write_life(db: &Connection, life: Life) -> Result<(), rusqlite::Error> {
    let phase = match life.phase {
        Phase::Running => "running",
        Phase::Ended => "ended",
    };
    write_meta(db, "life", phase)?;
    write_meta(db, "fatal_stops", &life.fatal_stops.to_string())
}

/// The greatest id ever given, also when its row was pruned since.
pub(crate) fn last_event_id(db: &Connection) -> Result<u64, StoreError> {
    let seq: Option<i64> = db
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'event'", [], |row| row.get(0))
        .optional()?;
    Ok(seq.and_then(|id| u64::try_from(id).ok()).unwrap_or(0))
}

pub(crate) fn read_meta(db: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    let mut statement = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?)
}

pub(crate) fn write_meta(db: &Connection, key: &str, value: &str) -> Result<(), rusqlite::Error> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?.execute([key, value])?;
    Ok(())
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Renames the file, its WAL and its index together: a WAL beside another database would
/// be replayed into it (sqlite.org/howtocorrupt.html).
fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let with = |suffix: &str| {
        let mut name = path.as_os_str().to_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let free = (1u32..).map(|n| format!(".corrupt-{n}")).find(|suffix| !with(suffix).exists());
    let suffix = free.unwrap_or_else(|| ".corrupt".to_string());
    for part in ["-wal", "-shm", ""] {
        match fs::rename(with(part), with(&format!("{suffix}{part}"))) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(with(&suffix))
}

fn file_error(path: &Path, cause: io::Error) -> StoreError {
    StoreError::File { path: path.to_path_buf(), cause }
}
