//! The database with its second copies: one commit writes all of them, in the order that leaves
//! none behind what anybody was told.
//!
//! `alerts.jnl` (fsynced), then the transaction, then `state.jnl`, then whoever waits is told.
//!
//! Refuses: a commit into a file that nobody can find again (removed, or another one in its place).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};
use serde_json::{Map, Value};

use crate::base::histogram::{Histogram, QUICK};
use crate::base::time::Monotonic;
use crate::store::alert_journal::{self, AlertJournal};
use crate::store::kept::{Found, Kept, Mark, StateJournal};
use crate::store::rebuild::{self, Aside, Hopeless, Newest, Trust};
use crate::store::row::{EventRow, Level, NewEvent};
use crate::store::schema::{self, Schema};
use crate::store::writer::{Committed, Write};
use crate::store::{StoreError, alert, open, reconcile, row};
use crate::sys::clock;

/// A failed commit whose cause is not known to pass is tried so often with a new connection; then
/// the database is not believed any more.
const HOPELESS_MAX: u32 = 3;

/// After so long of nothing but errors of the disk another file may lie on better sectors.
const DISK_ERRORS_MAX: Duration = Duration::from_secs(10);

/// Between two databases that are put aside: what is corrupt again at once is not the file's fault.
const ASIDE_GAP: Duration = Duration::from_secs(30);

/// The file that a connection has open, and its WAL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Inodes {
    db: Option<(u64, u64)>,
    /// None until it is made, with the first write.
    wal: Option<(u64, u64)>,
}

pub(crate) struct Base {
    path: PathBuf,
    /// None: in trouble, to be opened again.
    db: Option<Connection>,
    inodes: Inodes,
    state: StateJournal,
    alerts: AlertJournal,
    /// Somebody knows a state: a second copy was found, or a database was read.
    knows_state: bool,
    damaged: usize,
    trust: Trust,
    hopeless: u32,
    /// The disk has given errors since then.
    disk_errors_since: Option<Monotonic>,
    pub last_event_id: u64,
    pub last_alert: u64,
    /// Of the database; of this build while there is none.
    pub schema: Schema,
    /// Unlike that of any other life of this home.
    pub epoch: u64,
    /// The newest event of the log, as far as it is known.
    pub logged: u64,
    /// The database that this life has moved aside last.
    pub aside: Option<Aside>,
    aside_at: Option<Monotonic>,
    /// What became of the store, to be told in history with the next commit.
    news: Vec<NewEvent>,
    copy_trouble: Option<String>,
    began: bool,
    /// How long commits took, whatever came of them.
    pub commits: Arc<Histogram>,
}

impl Base {
    /// Nothing is opened. `found` is what `state.jnl` says.
    pub fn new(path: &Path, found: Option<Found>) -> Base {
        let dir = path.parent().unwrap_or(Path::new("."));
        let knows_state = found.is_some();
        let Found { kept, mark, last_event_id, damaged } = found.unwrap_or_default();
        Base {
            path: path.to_path_buf(),
            db: None,
            inodes: Inodes::default(),
            state: StateJournal::resume(dir, kept, mark, false),
            alerts: AlertJournal::resume(dir, false),
            knows_state,
            damaged,
            trust: Trust::Look,
            hopeless: 0,
            disk_errors_since: None,
            last_event_id,
            last_alert: alert_journal::read(dir).alerts.keys().next_back().copied().unwrap_or(0),
            schema: schema::of_this_build(),
            epoch: u64::try_from(clock::wall().as_microsecond()).unwrap_or(0),
            logged: 0,
            aside: None,
            aside_at: None,
            news: Vec::new(),
            copy_trouble: None,
            began: false,
            commits: Arc::new(Histogram::new(QUICK)),
        }
    }

    /// # Errors
    /// There is none at the moment.
    pub fn db(&self) -> Result<&Connection, StoreError> {
        self.db.as_ref().ok_or(StoreError::Closed)
    }

    pub fn is_connected(&self) -> bool {
        self.db.is_some()
    }

    pub fn kept(&self) -> &Kept {
        &self.state.kept
    }

    /// What a connection to a file that is not there any more can still write goes nowhere.
    pub fn disconnect(&mut self) {
        self.db = None;
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why a second copy is behind.
    pub fn copy_trouble(&self) -> Option<&str> {
        self.copy_trouble.as_deref()
    }

    pub fn avoid_runs_below(&mut self, run: u64) {
        self.state.kept.next_run = self.state.kept.next_run.max(run);
    }

    /// From now on somebody else's lock is waited for.
    pub fn wait_for_locks(&self) {
        if let Some(db) = &self.db {
            let _ = db.busy_timeout(open::BUSY_TIMEOUT); // it fails for no number that we have
        }
    }

    /// Opens the database, or begins it anew.
    ///
    /// # Errors
    /// What may pass; it is to be tried again.
    pub fn connect(&mut self, newest: &mut Newest<'_>) -> Result<(), StoreError> {
        self.db = None; // closed first: it may write what it has
        let now = clock::monotonic();
        let again = self.aside_at.is_some_and(|at| now.since(at) < ASIDE_GAP);
        let hopeless = match self.trust {
            Trust::Look | Trust::Nothing if again => Hopeless::Leave,
            Trust::Look => Hopeless::PutAside,
            Trust::Nothing => {
                Hopeless::IsAside(rebuild::put_aside(&self.path, "it was found to be corrupt")?)
            }
        };
        if self.trust == Trust::Nothing && !again {
            (self.trust, self.aside_at) = (Trust::Look, Some(now));
        }
        let found = self.knows_state.then(|| Found {
            kept: self.state.kept.clone(),
            mark: self.state.mark.clone(),
            last_event_id: self.last_event_id,
            damaged: self.damaged,
        });
        let brought = rebuild::bring_up(&self.path, found.as_ref(), newest, hopeless)?;
        self.last_event_id = self.last_event_id.max(open::last_event_id(&brought.db)?);
        if !self.began {
            self.last_alert = self.last_alert.max(alert::last_id(&brought.db)?);
        }
        if brought.aside.is_some() {
            self.aside_at = Some(now);
        }
        self.news.extend(brought.unsaid);
        self.tell(brought.aside.as_ref(), brought.mended);
        self.aside = brought.aside.or(self.aside.take());
        (self.state, self.alerts) = (brought.state, brought.alerts);
        if self.began {
            self.state.doubt(); // what memory says need not be what the file says
            brought.db.busy_timeout(open::BUSY_TIMEOUT)?;
        }
        self.inodes = inodes(&self.path);
        let logged = open::read_meta(&brought.db, "logged")?.and_then(|text| text.parse().ok());
        self.logged = self.logged.max(logged.unwrap_or(0));
        self.schema = schema::of_file(&brought.db)?;
        self.db = Some(brought.db);
        (self.knows_state, self.damaged, self.began) = (true, 0, true);
        Ok(())
    }

    fn tell(&mut self, aside: Option<&Aside>, mended: Option<String>) {
        let from = mended.as_deref().unwrap_or("nothing");
        match aside {
            Some(Aside { path, why }) => {
                let name = path.display();
                let message = format!(
                    "the database could not be used ({why}) and stands aside as {name}; out of its second copies came {from}"
                );
                let data = [("aside", name.to_string().into()), ("why", why.clone().into())];
                self.news.push(news(Level::Error, "store.rebuilt", message, data.into()));
            }
            None => {
                if let Some(what) = mended {
                    let message = format!("the database lacked what its second copies have: {what}");
                    self.news.push(news(Level::Error, "store.mended", message, Vec::new()));
                }
            }
        }
    }

    /// Records up to this one are removed; told in history with the next commit.
    pub fn tell_removed(&mut self, through: u64, removed: u64) {
        let message =
            format!("{removed} events up to #{through} were removed: they are older than [store] retention");
        let data = vec![("through", through.into()), ("removed", removed.into())];
        self.news.push(news(Level::Info, "store.pruned", message, data));
    }

    /// Commits what an open owes, as no batch.
    pub fn commit_owed(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        let news = std::mem::take(&mut self.news); // told with the first commit that somebody hears of
        let committed = self.commit(0, &writes.iter().collect::<Vec<_>>()).map(drop);
        self.news = news;
        committed
    }

    /// Commits `writes`, of batches up to `through`, and says what came of them.
    ///
    /// # Errors
    /// Nothing of it is kept, or nobody knows (`read_meta("committed")` does). The connection is closed.
    pub fn commit(&mut self, through: u64, writes: &[&Write]) -> Result<Committed, StoreError> {
        let began = clock::monotonic();
        let committed = self.try_commit(through, writes);
        self.commits.observe(clock::monotonic().since(began));
        match &committed {
            Ok(_) => (self.hopeless, self.disk_errors_since) = (0, None),
            Err(error) => self.on_error(error),
        }
        committed
    }

    /// An answer that cannot be had: the connection is not used again.
    pub fn on_error(&mut self, error: &StoreError) {
        self.db = None;
        if rebuild::is_corrupt(error) {
            self.trust = Trust::Nothing;
        } else if rebuild::is_hopeless(error, &self.path) {
            self.hopeless += 1;
        } else if rebuild::is_disk_error(error) {
            self.disk_errors_since.get_or_insert(clock::monotonic());
        }
        let since = self.disk_errors_since;
        let lasting = since.is_some_and(|since| clock::monotonic().since(since) >= DISK_ERRORS_MAX);
        if self.hopeless >= HOPELESS_MAX || lasting {
            self.trust = Trust::Nothing;
            (self.hopeless, self.disk_errors_since) = (0, None);
        }
    }

    /// Whether the next `connect` begins anew: worth doing at once.
    pub fn is_distrusted(&self) -> bool {
        self.trust == Trust::Nothing
    }

    fn try_commit(&mut self, through: u64, writes: &[&Write]) -> Result<Committed, StoreError> {
        self.mend_alert_copy()?;
        let Some(db) = self.db.as_mut() else { return Err(StoreError::Closed) };
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut done = Committed { through, ..Committed::default() };
        let mut records: Vec<Value> = Vec::new();
        let (mut last_event, mut last_alert) = (self.last_event_id, self.last_alert);
        let mut keep_event = |event: &NewEvent, done: &mut Committed| -> Result<(), StoreError> {
            if !reconcile::is_said(&tx, event)? && row::insert_event(&tx, last_event + 1, event)? {
                last_event += 1;
                done.events.push(EventRow { id: last_event, event: event.clone() });
            }
            Ok(())
        };
        for event in &self.news {
            keep_event(event, &mut done)?;
        }
        if !self.news.is_empty() {
            reconcile::settle(&tx)?;
        }
        for write in writes {
            match write {
                Write::Event(event) => keep_event(event, &mut done)?,
                Write::Alert { alert, ts_us } => {
                    if let Some(row) = alert::insert(&tx, last_alert + 1, alert, *ts_us)? {
                        last_alert = row.id;
                        records.push(alert_journal::alert_record(&row));
                        done.alerts.push(Arc::new(row));
                    }
                }
                Write::Delivery { delivery, ts_us } => {
                    if alert::save_delivery(&tx, delivery, *ts_us)? {
                        records.extend(alert_journal::delivery_record(delivery, *ts_us));
                    }
                    done.deliveries.push(delivery.clone());
                }
                other => row::write(&tx, other)?,
            }
        }
        let mark = Mark { seq: self.state.mark.seq + 1, committed: format!("{}:{through}", self.epoch) };
        open::write_mark(&tx, &mark)?;
        if self.logged > 0 {
            open::write_meta(&tx, "logged", &self.logged.to_string())?;
        }
        let alert_copy = self.alerts.append(records);
        tx.commit()?;
        self.alerts.committed();
        self.news.clear();
        (self.last_event_id, self.last_alert) = (last_event, last_alert);
        let writes = writes.iter().copied();
        // Of one commit means both: an alert that stands in neither would seem never to have been.
        let copies = match alert_copy {
            Ok(()) => self.state.committed(writes, mark, last_event),
            Err(error) => {
                self.state.committed_alone(writes, mark);
                Err(error)
            }
        };
        self.note_copies(copies);
        if self.inodes.wal.is_none() {
            self.inodes = inodes(&self.path);
        }
        Ok(done)
    }

    fn note_copies(&mut self, written: std::io::Result<()>) {
        let behind = self.state.is_lost() || self.alerts.is_lost();
        self.copy_trouble = match written {
            Err(error) => Some(error.to_string()),
            Ok(()) if behind => self.copy_trouble.take(),
            Ok(()) => None,
        };
    }

    /// The commit of another life of this connection was on the disk after all.
    pub fn was_committed(&mut self, writes: &[Write]) {
        writes.iter().for_each(|write| self.state.kept.apply(write));
        self.state.doubt();
    }

    /// Where a second copy is behind, tries again to bring it up to the first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn mend_copies(&mut self) -> Result<(), StoreError> {
        if self.db.is_none() {
            return Ok(());
        }
        self.mend_alert_copy()?;
        if self.state.is_lost() && !self.alerts.is_lost() {
            let written = self.state.rewrite(self.last_event_id);
            self.note_copies(written);
        }
        Ok(())
    }

    fn mend_alert_copy(&mut self) -> Result<(), StoreError> {
        let Some(db) = self.db.as_ref().filter(|_| self.alerts.wants_rewrite()) else { return Ok(()) };
        match self.alerts.rewrite(db) {
            Ok(()) => self.note_copies(Ok(())),
            Err(StoreError::Value(why)) => self.copy_trouble = Some(why),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Somebody removed the file under us, or put another in its place: what is written is lost.
    pub fn is_elsewhere(&self) -> bool {
        let now = inodes(&self.path);
        self.db.is_some()
            && (now.db != self.inodes.db || (self.inodes.wal.is_some() && now.wal != self.inodes.wal))
    }
}

fn inodes(path: &Path) -> Inodes {
    let of = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    Inodes { db: of(path), wal: of(&rebuild::with(path, "-wal")) }
}

fn news(level: Level, event: &str, message: String, data: Vec<(&str, Value)>) -> NewEvent {
    NewEvent {
        ts_us: clock::wall().as_microsecond(),
        level,
        event: event.to_string(),
        unit: None,
        run: None,
        cause: None,
        message,
        at: clock::monotonic(),
        data: data.into_iter().map(|(key, value)| (key.to_string(), value)).collect::<Map<_, _>>(),
    }
}
