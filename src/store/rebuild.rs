//! Bringing the database up, whatever became of it: opened and looked through; or moved aside and
//! begun anew, from its second copies.
//!
//! Refuses: a database that cannot be believed, and giving up. What may pass (a lock, a full
//! disk, an error of the disk) is told and tried again; supervision goes on meanwhile.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};

use crate::store::alert_journal::{self, AlertJournal};
use crate::store::kept::{self, Kept, Mark, StateJournal};
use crate::store::reconcile::{self, Owed};
use crate::store::row::{EventRow, NewEvent};
use crate::store::{StoreError, open, schema};

/// Most databases that stand aside, so that a disk which corrupts one after the other is not filled by
/// them. The first have the most to tell; above it the newest takes the place of the last.
const ASIDE_MAX: usize = 8;

/// What is looked through before the database is believed: all but history, which is large, and
/// in which an unreadable page shows when it is read.
const LOOKED_THROUGH: [&str; 6] = ["meta", "unit", "alert", "delivery", "last_good", "run"];

/// Asked for the newest events after an id, at most so many, oldest first: what stands in the log.
pub type Newest<'a> = dyn FnMut(u64, usize) -> Vec<EventRow> + 'a;

/// Whether the file may still be good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Look.
    Look,
    /// It was found to be corrupt while it was used.
    Nothing,
}

/// A database that was moved aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aside {
    pub path: PathBuf,
    /// Why, in words.
    pub why: String,
}

/// A database that can be used.
pub(crate) struct Brought {
    pub db: Connection,
    pub state: StateJournal,
    pub alerts: AlertJournal,
    pub aside: Option<Aside>,
    /// What of it came out of the second copies.
    pub mended: Option<String>,
    /// What history does not say of alerts that were put back.
    pub unsaid: Vec<NewEvent>,
}

/// What becomes of a database that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hopeless {
    PutAside,
    /// This one was put aside just now, if there was one.
    IsAside(Option<Aside>),
    /// One was put aside a moment ago: a new one that is corrupt again tells of the disk, not of the
    /// file. It is an error.
    Leave,
}

/// Opens, looks through, mends. `found` is what the second copy of the state says.
///
/// # Errors
/// What may pass.
pub(crate) fn bring_up(
    path: &Path,
    found: Option<&kept::Found>,
    newest: &mut Newest<'_>,
    hopeless: Hopeless,
) -> Result<Brought, StoreError> {
    match hopeless {
        Hopeless::IsAside(aside) => try_up(path, found, newest, aside),
        Hopeless::Leave => try_up(path, found, newest, None),
        Hopeless::PutAside => match try_up(path, found, newest, None) {
            Err(error) if is_hopeless(&error, path) => {
                let aside = put_aside(path, &error.to_string())?;
                try_up(path, found, newest, aside)
            }
            brought => brought,
        },
    }
}

fn try_up(
    path: &Path,
    found: Option<&kept::Found>,
    newest: &mut Newest<'_>,
    aside: Option<Aside>,
) -> Result<Brought, StoreError> {
    let home = found.map_or("", |found| found.kept.home.as_str());
    let looked = look_through(path, home).and_then(|looked| same_history(looked, found))?;
    let (mut db, of_db) = looked;
    let dir = path.parent().unwrap_or(Path::new("."));
    let alerts = alert_journal::read(dir);
    let in_step =
        found.is_some_and(|found| found.damaged == 0 && (&found.kept, &found.mark) == (&of_db.0, &of_db.1));
    let same = found.is_some_and(|found| is_same(found, &of_db.1));
    let (mut kept, mark, mut lacks) = reconcile::state(of_db, found, same)?;
    if aside.is_some() && found.is_none_or(|found| found.damaged > 0) {
        kept = guess_the_rest(kept, &alerts, newest);
        lacks.set_state(kept.clone(), mark.clone());
    }
    let behind = reconcile::alerts(&db, &alerts, same, &mut lacks)?;
    let known = found.map_or(0, |found| found.last_event_id);
    reconcile::events(&db, known, newest, &mut lacks)?;
    let mut owed = Owed::read(&db)?;
    owed.add(&lacks);
    if !lacks.nothing() {
        reconcile::write(&mut db, &lacks, &owed)?;
    }
    let unsaid = reconcile::unsaid(&db, &owed)?;
    let state = StateJournal::resume(dir, kept, mark, in_step);
    let alerts = AlertJournal::resume(dir, !behind);
    Ok(Brought { db, state, alerts, aside, mended: lacks.sentence(), unsaid })
}

/// Both copies of the state have holes: the alerts and the log say what must not come again.
fn guess_the_rest(mut kept: Kept, alerts: &alert_journal::Found, newest: &mut Newest<'_>) -> Kept {
    reconcile::heed_alerts(&mut kept, &alerts.alerts);
    kept.next_run = kept.next_run.max(first_free_run(newest));
    kept
}

/// A run id that nobody has used, where only the log can tell: far beyond those of its end.
pub(crate) fn first_free_run(newest: &mut Newest<'_>) -> u64 {
    let rows = newest(0, reconcile::EVENTS_IMPORTED_MAX);
    let greatest = rows.iter().filter_map(|row| row.event.run).map(|run| run.0).max();
    greatest.map_or(1, |run| run + open::RUNS_PER_RESERVE * 100)
}

type Looked = (Connection, (Kept, Mark));

fn look_through(path: &Path, home: &str) -> Result<Looked, StoreError> {
    open::create_private(path)?;
    let mut db = open::connect(path)?;
    schema::migrate(&mut db, path)?;
    for table in LOOKED_THROUGH {
        let verdict: String =
            db.query_row(&format!("PRAGMA quick_check('{table}')"), [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(StoreError::Value(verdict));
        }
    }
    let of_db = open::read_kept(&db)?;
    let theirs = &of_db.0.home;
    if !theirs.is_empty() && !home.is_empty() && theirs != home {
        return Err(StoreError::Value("it is the database of another home".to_string()));
    }
    Ok((db, of_db))
}

/// Both copies are of one commit, and the second is whole.
fn is_same(found: &kept::Found, mark: &Mark) -> bool {
    found.damaged == 0 && found.mark.seq > 0 && found.mark == *mark
}

/// A history that ends elsewhere than its second copy says of the same commit would count on from there.
fn same_history(looked: Looked, found: Option<&kept::Found>) -> Result<Looked, StoreError> {
    let (db, (_, mark)) = &looked;
    let last = open::last_event_id(db)?;
    match found.filter(|found| is_same(found, mark)) {
        Some(found) if found.last_event_id != last => {
            let said = found.last_event_id;
            Err(StoreError::Value(format!("its history ends with event {last}, not {said}")))
        }
        Some(_) | None => Ok(looked),
    }
}

/// # Errors
/// It cannot be renamed.
pub(crate) fn put_aside(path: &Path, why: &str) -> Result<Option<Aside>, StoreError> {
    let moved = move_aside(path).map_err(|cause| StoreError::File { path: path.to_path_buf(), cause })?;
    Ok(moved.map(|path| Aside { path, why: why.to_string() }))
}

/// Whether waiting cannot help. What is not known to pass does not.
pub(crate) fn is_hopeless(error: &StoreError, path: &Path) -> bool {
    match error {
        StoreError::Sqlite(error) => match error.sqlite_error_code() {
            Some(ErrorCode::CannotOpen) => fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()),
            Some(ErrorCode::PermissionDenied | ErrorCode::OutOfMemory | ErrorCode::OperationInterrupted) => {
                false
            }
            Some(_) | None => !passes(error),
        },
        StoreError::Newer { .. } | StoreError::Value(_) => true,
        StoreError::File { .. } | StoreError::Library { .. } | StoreError::Closed => false,
    }
}

/// Trouble that may end by itself: supervision begins without waiting for it.
pub(crate) fn passes(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull, ReadOnly, SystemIoFailure};
    let code = error.sqlite_error_code();
    matches!(code, Some(DatabaseBusy | DatabaseLocked | DiskFull | ReadOnly | SystemIoFailure))
}

pub(crate) fn is_disk_error(error: &StoreError) -> bool {
    let StoreError::Sqlite(error) = error else { return false };
    error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure)
}

pub(crate) fn is_corrupt(error: &StoreError) -> bool {
    let StoreError::Sqlite(error) = error else { return false };
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Renames the file, its WAL and its index together: a WAL beside another database would
/// be replayed into it (sqlite.org/howtocorrupt.html). The WAL goes first: killed in between, an
/// old database is left, which its second copies make new. None when there was nothing.
fn move_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    let standing = aside_files(path);
    for last in standing.iter().skip(ASIDE_MAX - 1) {
        for part in PARTS {
            let _ = remove(&with(last, part)); // what stays is only more
        }
    }
    let number = standing.last().and_then(|last| number_of(last)).unwrap_or(0) + 1;
    let new = with(path, &format!("{ASIDE}{number}"));
    let mut moved = None;
    for part in PARTS {
        match fs::rename(with(path, part), with(&new, part)) {
            Ok(()) => moved = Some(new.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(moved)
}

/// The database's own name last: it is what makes the others one.
const PARTS: [&str; 3] = ["-wal", "-shm", ""];

/// Between the database's name and the number of one that stands aside.
const ASIDE: &str = ".corrupt-";

pub(crate) fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.rsplit_once(ASIDE)?.1.parse().ok()
}

/// The databases that stand aside, oldest first: until somebody has looked at them and takes
/// them away.
pub(crate) fn aside_files(path: &Path) -> Vec<PathBuf> {
    let Some((dir, name)) = path.parent().zip(path.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let begins = format!("{name}{ASIDE}");
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&begins)))
        .map(|entry| entry.path())
        .filter(|path| number_of(path).is_some())
        .collect();
    found.sort_by_key(|path| number_of(path));
    found
}
