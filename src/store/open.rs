//! Opening the file: the library's age, what survived, a reboot in between.
//!
//! Refuses: not to open. Only an SQLite older than 3.51.3 is an error: a database that cannot be
//! used is moved aside (`rebuild`), one that cannot be reached is tried again, and what its second
//! copy says holds until then.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use crate::base::{exit::RunId, name::UnitName};
use crate::engine::durable::{EngineDurable, UnitDurable};
use crate::store::base::Base;
use crate::store::drill::{self, DrillRow};
use crate::store::kept::{self, Kept, Mark};
use crate::store::rebuild::{self, Aside, Newest};
use crate::store::row::{EventQuery, EventRow};
use crate::store::run::{self, RunRow};
use crate::store::schema::{self, Schema};
use crate::store::trouble::Trouble;
use crate::store::writer::Write;
use crate::store::{StoreError, alert, row};
use crate::sys::clock;

/// SQLite 3.7.0 to 3.51.2 can corrupt a WAL that is reset while it is written
/// (sqlite.org/wal.html, "the WAL-reset bug").
const LIBVERSION_MIN: i32 = 3_051_003;

/// Run ids are handed out from blocks of this size, each reserved before it is used: an id
/// is never used twice, even if the last commits before a crash are lost.
pub const RUNS_PER_RESERVE: u64 = 1_000;

/// How long SQLite itself waits for somebody else's lock before we call it trouble. While a
/// daemon begins nobody is supervised yet: it waits less then.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
const BUSY_TIMEOUT_AT_OPEN: Duration = Duration::from_millis(100);

/// Key of `Loaded::quiet`.
pub(crate) const QUIET: &str = "alert_quiet";

/// Key of `Loaded::upgrade_told`.
pub(crate) const UPGRADE_TOLD: &str = "upgrade_told";

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
    /// Drills that run, or have left faults behind.
    pub drills: Vec<DrillRow>,
    /// Of the boot before this open; none in a new home.
    pub boot_id: Option<String>,
    /// No run of this home had this id or a greater one; `RUNS_PER_RESERVE` ids from here
    /// on are reserved.
    pub next_run: RunId,
    pub last_event_id: u64,
    /// The newest event that stood in the log when the last commit was made; 0 when nobody knows.
    pub logged: u64,
    /// The newest alert; 0 when there is none.
    pub last_alert: u64,
    /// The channels of the outbox, each with the last alert that is not for it.
    pub channels: BTreeMap<String, u64>,
    pub life: Life,
    pub schema: Schema,
    /// The newest upgrade whose outcome is on record.
    pub upgrade_told: Option<String>,
    /// What people asked not to be told of, as last kept (`Write::Quiet`); empty = nothing.
    pub quiet: String,
    /// Why nothing can be written now; run ids are not reserved then. It is tried again.
    pub trouble: Option<Trouble>,
    /// The file could not be used: what stands here is of its second copies.
    pub moved_aside: Option<Aside>,
}

/// An open store whose thread does not run yet: what must be read first is read here.
pub struct Opened {
    pub(crate) base: Base,
    /// What could not be written when it was opened.
    pub(crate) owed: Vec<Write>,
    pub(crate) trouble: Option<Trouble>,
}

impl Opened {
    /// # Errors
    /// What SQLite says; the trouble, while there is no database.
    pub fn events(&self, query: &EventQuery) -> Result<Vec<EventRow>, StoreError> {
        row::select_events(self.base.db()?, query)
    }
}

/// As `open_beside`, where history has no log beside the database.
///
/// # Errors
/// As there.
pub fn open(path: &Path, boot_id: &str) -> Result<(Opened, Loaded), StoreError> {
    open_beside(path, boot_id, &mut |_, _| Vec::new())
}

/// Opens `path` (made with mode 0640 if missing), brings its schema up to date, reserves
/// run ids, and forgets what a reboot made meaningless when `boot_id` is another one.
///
/// A file that cannot be used (corrupt, truncated, of a newer schema) is moved aside together with
/// its WAL, and a new one is begun from its second copies and from `newest`, the log of
/// history. One that cannot be reached now (locked, unreadable) is tried again later: until then
/// the second copies alone say what was.
///
/// # Errors
/// An old SQLite.
pub fn open_beside(
    path: &Path,
    boot_id: &str,
    newest: &mut Newest<'_>,
) -> Result<(Opened, Loaded), StoreError> {
    if rusqlite::version_number() < LIBVERSION_MIN {
        return Err(StoreError::Library { found: rusqlite::version().to_string() });
    }
    let found = kept::read(path.parent().unwrap_or(Path::new(".")));
    let mut base = Base::new(path, found);
    let mut trouble = base.connect(newest).err().map(|error| Trouble::of(&error));
    if base.kept().next_run == 0 && (trouble.is_some() || base.aside.is_some()) {
        base.avoid_runs_below(rebuild::first_free_run(newest));
    }
    let (mut loaded, owed) = look(base.kept(), boot_id);
    loaded.last_event_id = base.last_event_id;
    loaded.logged = base.logged;
    loaded.runs = base.db().and_then(run::load).unwrap_or_default();
    loaded.drills = base.db().and_then(drill::open_ones).unwrap_or_default();
    loaded.schema = base.schema;
    loaded.last_alert = base.last_alert;
    loaded.moved_aside = base.aside.clone();
    let mut opened = Opened { base, owed: Vec::new(), trouble: None };
    if trouble.is_none() {
        // It may be corrupt where nobody has looked: then the thread begins it anew.
        trouble = opened.base.commit_owed(&owed).err().map(|error| Trouble::of(&error));
    }
    if trouble.is_some() {
        opened.owed = owed;
        opened.trouble = trouble.clone();
        loaded.trouble = trouble;
    }
    opened.base.wait_for_locks();
    Ok((opened, loaded))
}

/// A connection set up as every connection of ours is. The schema is not looked at.
///
/// # Errors
/// What the system says of the file, where SQLite only says that it cannot open it.
pub(crate) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let connected = try_connect(path);
    match &connected {
        Err(StoreError::Sqlite(error)) if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) => {
            // Nobody of us has it open: closing it drops no lock.
            match OpenOptions::new().write(true).open(path) {
                Err(cause) if path.is_file() => Err(StoreError::File { path: path.to_path_buf(), cause }),
                Ok(_) | Err(_) => connected,
            }
        }
        Ok(_) | Err(_) => connected,
    }
}

fn try_connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT_AT_OPEN)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "trusted_schema", "OFF")?;
    Ok(db)
}

/// SQLite gives the WAL the mode of the main file, so that is made first, by us. It is
/// closed again before SQLite opens it: a later close would drop SQLite's locks.
pub(crate) fn create_private(path: &Path) -> Result<(), StoreError> {
    let made = || match OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
        Ok(file) => file.set_permissions(fs::Permissions::from_mode(0o640)),
        // Of a file system that is read-only SQLite says no more than that it cannot open. What else
        // stands there is judged by whoever opens it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match OpenOptions::new().write(true).open(path) {
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Err(error),
                Ok(_) | Err(_) => Ok(()),
            }
        }
        Err(error) => Err(error),
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        let _ = fs::DirBuilder::new().recursive(true).mode(0o750).create(dir); // said by the open
    }
    made().map_err(|cause| StoreError::File { path: path.to_path_buf(), cause })
}

/// What is there, for the engine; and what has to be written for this life to begin.
fn look(kept: &Kept, boot_id: &str) -> (Loaded, Vec<Write>) {
    let mut owed = Vec::new();
    let mut durable = kept.units.clone();
    let mut engine = kept.engine.clone();
    if kept.home.is_empty() {
        owed.push(Write::Home { id: new_home_id() });
    }
    if kept.boot_id.as_deref().is_some_and(|old| old != boot_id) {
        durable = durable.into_iter().map(|(name, row)| (name, row.after_reboot())).collect();
        let saves = durable.iter().map(|(unit, row)| (unit.clone(), row.clone()));
        owed.extend(saves.map(|(unit, durable)| Write::Save { unit, durable }));
        engine = engine.after_reboot();
        owed.push(Write::SaveEngine(engine.clone()));
    }
    let next_run = kept.next_run.max(1);
    owed.push(Write::ReserveRuns { until: RunId(next_run.saturating_add(RUNS_PER_RESERVE)) });
    owed.push(Write::Boot { id: boot_id.to_string() });
    let loaded = Loaded {
        durable,
        engine,
        last_good: kept.last_good.clone(),
        runs: Vec::new(),
        drills: Vec::new(),
        boot_id: kept.boot_id.clone(),
        next_run: RunId(next_run),
        last_event_id: 0,
        logged: 0,
        last_alert: 0,
        channels: kept.channels.clone(),
        life: kept.life,
        schema: schema::of_this_build(),
        upgrade_told: kept.upgrade_told.clone(),
        quiet: kept.quiet.clone(),
        trouble: None,
        moved_aside: None,
    };
    (loaded, owed)
}

/// Unlike that of any other home.
fn new_home_id() -> String {
    let wall = clock::wall().as_microsecond();
    format!("{wall:x}-{:x}-{:x}", clock::monotonic().as_ns(), std::process::id())
}

/// All that `state.jnl` says too, and of which commit.
pub(crate) fn read_kept(db: &Connection) -> Result<(Kept, Mark), StoreError> {
    let number = |text: Option<String>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
    let kept = Kept {
        home: read_meta(db, "home")?.unwrap_or_default(),
        units: row::load_units(db)?,
        engine: row::load_engine(db)?,
        last_good: row::load_last_good(db)?,
        channels: alert::load_channels(db)?,
        next_run: number(read_meta(db, "next_run")?),
        life: read_life(db)?,
        boot_id: read_meta(db, "boot_id")?,
        upgrade_told: read_meta(db, UPGRADE_TOLD)?,
        quiet: read_meta(db, QUIET)?.unwrap_or_default(),
    };
    let committed = read_meta(db, "committed")?.unwrap_or_default();
    Ok((kept, Mark { seq: number(read_meta(db, "seq")?), committed }))
}

pub(crate) fn write_mark(db: &Connection, mark: &Mark) -> Result<(), rusqlite::Error> {
    write_meta(db, "committed", &mark.committed)?;
    write_meta(db, "seq", &mark.seq.to_string())
}

/// Ids are never given back: a smaller one changes nothing.
pub(crate) fn write_next_run(db: &Connection, until: RunId) -> Result<(), rusqlite::Error> {
    let known = read_meta_raw(db, "next_run")?.and_then(|text| text.parse().ok()).unwrap_or(0);
    write_meta(db, "next_run", &until.0.max(known).to_string())
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
    let row: Option<i64> = db.query_row("SELECT max(id) FROM event", [], |row| row.get(0))?;
    Ok(seq.max(row).and_then(|id| u64::try_from(id).ok()).unwrap_or(0))
}

/// No event gets this id or a smaller one from now on.
pub(crate) fn raise_last_event_id(db: &Connection, id: u64) -> Result<(), rusqlite::Error> {
    let id = row::signed(id);
    let known = db.execute("UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'event'", [id])?;
    if known == 0 {
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('event', ?1)", [id])?;
    }
    Ok(())
}

pub(crate) fn read_meta(db: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    Ok(read_meta_raw(db, key)?)
}

pub(crate) fn read_meta_raw(db: &Connection, key: &str) -> Result<Option<String>, rusqlite::Error> {
    let mut statement = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    statement.query_row([key], |row| row.get(0)).optional()
}

pub(crate) fn write_meta(db: &Connection, key: &str, value: &str) -> Result<(), rusqlite::Error> {
    db.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?.execute([key, value])?;
    Ok(())
}
