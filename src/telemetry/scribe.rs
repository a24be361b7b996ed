//! The thread that writes `system_resilience.log`, so that no commit waits for a log disk that hangs.
//!
//! Who is told that something was done finds it in the log, as long as the log's disk is quick: a
//! commit is told after its lines are written, or after `LINES_AWAITED`. What cannot be written, or comes too
//! fast to be kept here, is read from the store again: memory is bounded and nothing is missed.
//!
//! Refuses: lines out of order, and keeping an event that the store has.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::time::Monotonic;
use crate::store::row::{EventQuery, EventRow, Level};
use crate::store::trouble::{Code, Trouble};
use crate::store::writer::{Audience, Committed, Reader};
use crate::sys::clock;
use crate::telemetry::journal::{self, Journal, Rotation};

/// How long a commit may wait to be told until its lines are written.
const LINES_AWAITED: Duration = Duration::from_millis(50);

/// Commits with more events than this are a flood, in which nobody waits for a line.
const EVENTS_AWAITED_MAX: usize = 256;

/// Most events that wait here (a few MB); more are read from the store when it is their turn.
const EVENTS_WAITING_MAX: usize = 10_000;

/// Events read at once while the log catches up with the store.
const PAGE: usize = 5_000;

/// Between two tries while the file cannot be written.
const RETRY: Duration = Duration::from_secs(1);

/// After this it is told that the log is slow.
const SLOW_AFTER: Duration = Duration::from_secs(2);

/// How long the last lines may take when the daemon ends, or before a database is begun anew.
const LAST_LINES: Duration = Duration::from_secs(2);

enum Told {
    Rows(Vec<EventRow>),
    /// Events up to this one are in the store.
    Until(u64),
    Reader(Reader),
    Rotation(Rotation),
}

#[derive(Debug, Default)]
struct State {
    /// The newest event that is written, or given up.
    written: u64,
    /// Events under way to the thread.
    waiting: usize,
    trouble: Option<String>,
    /// It takes longer than a commit waits for it, since then.
    slow_since: Option<Monotonic>,
    /// It waits for the store: the store must not wait for it.
    asks: bool,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `holds`, or for so long; whether it does.
    fn wait(&self, within: Duration, holds: impl Fn(&State) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), within, |state| !holds(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        holds(&state)
    }
}

/// The store's audience: sees to the log, then tells.
pub struct Scribe<T> {
    path: PathBuf,
    to: Sender<Told>,
    shared: Arc<Shared>,
    /// The newest event handed over.
    told: u64,
    tell: T,
}

/// For those who ask how the log is.
#[derive(Clone)]
pub struct ScribeHandle {
    to: Sender<Told>,
    shared: Arc<Shared>,
}

impl ScribeHandle {
    /// Where to read what the scribe could not keep. Without it nothing is caught up with.
    pub fn read_from(&self, reader: Reader) {
        let _ = self.to.send(Told::Reader(reader)); // it has ended with the store
    }

    pub fn rotate_by(&self, rotation: Rotation) {
        let _ = self.to.send(Told::Rotation(rotation)); // as above
    }

    /// Why the log cannot be written; none when all is well.
    pub fn trouble(&self) -> Option<Trouble> {
        let state = self.shared.lock();
        let slow = state.slow_since.filter(|since| clock::monotonic().since(*since) > SLOW_AFTER);
        let why = state.trouble.clone().or(slow.map(|_| "its disk does not answer".to_string()))?;
        Some(Trouble {
            code: Code::LogUnwritable,
            message: format!("{} cannot be written: {why}", journal::FILE_NAME),
            help: "nothing is lost: its lines are read from the database when it can be".to_string(),
        })
    }
}

/// Starts the thread. `committed` is the newest event of the store: what of it is not in the log is
/// caught up with. `tell` hears of each commit.
///
/// # Errors
/// No thread can be made.
pub fn start<T: FnMut(Committed) + Send>(
    path: &Path,
    journal: Journal,
    committed: u64,
    tell: T,
) -> std::io::Result<(Scribe<T>, ScribeHandle)> {
    let (to, heard) = mpsc::channel();
    let shared = Arc::new(Shared::default());
    shared.lock().written = journal.last_id();
    let hand = Hand { journal, reader: None, goal: committed, shared: Arc::clone(&shared) };
    std::thread::Builder::new().name("log".into()).spawn(move || hand.run(&heard))?;
    let handle = ScribeHandle { to: to.clone(), shared: Arc::clone(&shared) };
    Ok((Scribe { path: path.to_path_buf(), to, shared, told: committed, tell }, handle))
}

impl<T> Scribe<T> {
    fn await_line(&self, id: u64) {
        let is_over = |state: &State| state.written >= id || state.trouble.is_some() || state.asks;
        if !self.shared.wait(LINES_AWAITED, is_over) {
            self.shared.lock().slow_since.get_or_insert(clock::monotonic());
        }
    }
}

impl<T: FnMut(Committed) + Send> Audience for Scribe<T> {
    fn committed(&mut self, committed: Committed) {
        let events = &committed.events;
        if let Some(last) = events.last() {
            self.told = last.id;
            events.iter().filter(|row| row.event.event.starts_with("store.")).for_each(say);
            let mut state = self.shared.lock();
            let rows = if state.waiting + events.len() <= EVENTS_WAITING_MAX {
                state.waiting += events.len();
                Told::Rows(events.clone())
            } else {
                Told::Until(last.id)
            };
            // While it is in trouble, or waits for us, nobody waits for it.
            let well = state.trouble.is_none() && state.slow_since.is_none();
            drop(state);
            let _ = self.to.send(rows); // a panic there was reported by its own hook
            if well && events.len() <= EVENTS_AWAITED_MAX {
                self.await_line(last.id);
            }
        }
        (self.tell)(committed);
    }

    fn logged(&self) -> u64 {
        self.shared.lock().written
    }

    fn newest(&mut self, id: u64, limit: usize) -> Vec<EventRow> {
        // What is on its way there is nowhere else, should the database be lost.
        self.shared.wait(LAST_LINES, |state| state.waiting == 0 || state.asks);
        journal::newest(&self.path, id, limit)
    }
}

impl<T> Drop for Scribe<T> {
    fn drop(&mut self) {
        let told = self.told;
        self.shared.wait(LAST_LINES, |state| state.ended || state.asks || state.written >= told);
    }
}

/// What became of the store is for the daemon's own log too.
fn say(row: &EventRow) {
    match row.event.level {
        Level::Info => tracing::info!("{}", row.event.message),
        Level::Warn => tracing::warn!("{}", row.event.message),
        Level::Error => tracing::error!("{}", row.event.message),
    }
}

/// The thread.
struct Hand {
    journal: Journal,
    reader: Option<Reader>,
    /// The newest event that there is.
    goal: u64,
    shared: Arc<Shared>,
}

impl Hand {
    fn run(mut self, heard: &Receiver<Told>) {
        loop {
            let behind = self.journal.last_id() < self.goal && self.reader.is_some();
            let told = match behind {
                true => heard.recv_timeout(RETRY),
                false => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match told {
                Ok(Told::Rows(rows)) => self.on_rows(&rows),
                Ok(Told::Until(id)) => {
                    self.goal = self.goal.max(id);
                    self.catch_up();
                }
                Ok(Told::Reader(reader)) => {
                    self.reader = Some(reader);
                    self.catch_up();
                }
                Ok(Told::Rotation(rotation)) => self.journal.rotate_by(rotation),
                Err(RecvTimeoutError::Timeout) => self.catch_up(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }

    fn on_rows(&mut self, rows: &[EventRow]) {
        let first = rows.first().map_or(0, |row| row.id);
        self.goal = rows.last().map_or(self.goal, |row| row.id.max(self.goal));
        if self.journal.last_id() + 1 < first {
            self.catch_up(); // these rows too
        }
        if self.journal.last_id() + 1 >= first {
            let written = self.journal.append(rows);
            self.note(written);
        }
        let mut state = self.shared.lock();
        state.waiting = state.waiting.saturating_sub(rows.len());
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Writes what the store has and the log has not.
    fn catch_up(&mut self) {
        let Some(reader) = self.reader.clone() else { return };
        while self.journal.last_id() < self.goal {
            let (tell, told) = mpsc::channel();
            let query =
                EventQuery { after_id: Some(self.journal.last_id()), limit: PAGE, ..EventQuery::default() };
            reader.events(query, move |rows| drop(tell.send(rows)));
            self.set_asks(true);
            let answer = told.recv();
            self.set_asks(false);
            // The store is in trouble, or has ended: it is asked again, by the next one if need be.
            let Ok(Ok(rows)) = answer else { return };
            let written = match rows.is_empty() {
                // It has them no more: the gap in the ids shows it.
                true => {
                    self.journal.pass_over(self.goal);
                    Ok(())
                }
                false => self.journal.append(&rows),
            };
            let failed = written.is_err();
            self.note(written);
            if failed {
                return;
            }
        }
    }

    fn set_asks(&self, asks: bool) {
        self.shared.lock().asks = asks;
        self.shared.changed.notify_all();
    }

    fn note(&mut self, written: std::io::Result<()>) {
        let mut state = self.shared.lock();
        state.written = self.journal.last_id();
        let why = written.err().map(|error| error.to_string());
        match (&state.trouble, &why) {
            (None, Some(why)) => {
                tracing::error!("cannot write {}, its lines wait: {why}", journal::FILE_NAME)
            }
            (Some(_), None) => tracing::info!("{} is written again", journal::FILE_NAME),
            (None, None) | (Some(_), Some(_)) => {}
        }
        (state.trouble, state.slow_since) = (why, None);
        drop(state);
        self.shared.changed.notify_all();
    }
}
