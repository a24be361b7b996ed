//! The thread that owns the connection: takes every batch that waits into one transaction,
//! commits, tells. In trouble it keeps the batches and comes again with a fresh connection.
//!
//! Refuses: a retry on a handle whose commit failed (after a failed fsync the pages may be
//! gone although a second one succeeds), and growth without end.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use crate::base::{exit::RunId, name::UnitName};
use crate::engine::durable::{EngineDurable, UnitDurable};
use crate::engine::effect::Alert;
use crate::engine::outbox::{Delivery, Row};
use crate::store::alert::{self, AlertRow};
use crate::store::open::{Life, Opened};
use crate::store::row::{EventQuery, EventRow, Level, NewEvent};
use crate::store::run::RunRow;
use crate::store::{StoreError, open, row};

/// Between two tries while the disk is full or somebody holds a lock.
const TROUBLE_RETRY: Duration = Duration::from_secs(1);

/// Most batches in one transaction: bounds how long the first of them waits.
const BATCHES_PER_COMMIT_MAX: usize = 4_096;

/// Most writes kept in memory while nothing can be committed (about 60 MB). Above it only
/// the newest row of each unit and the newest half of the events stay; the loss is recorded.
const WRITES_PENDING_MAX: usize = 100_000;

/// One thing to keep.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// Replaces the unit's row.
    Save {
        unit: UnitName,
        durable: UnitDurable,
    },
    Forget {
        unit: UnitName,
    },
    /// Replaces the row of the engine itself.
    SaveEngine(EngineDurable),
    Event(NewEvent),
    /// Kept until every channel has it; the same key is kept once.
    Alert {
        alert: Alert,
        ts_us: i64,
    },
    /// How far an alert is with a channel; what is delivered or parked stays so.
    Delivery {
        delivery: Delivery,
        ts_us: i64,
    },
    /// Which channels the outbox has, each with the last alert that is not for it.
    Channels(BTreeMap<String, u64>),
    /// No run id below this one is given out after a crash.
    ReserveRuns {
        until: RunId,
    },
    /// This run lives; replaces its row.
    Run(RunRow),
    /// It is released: no keeper has to find it.
    RunGone {
        run: RunId,
    },
    /// The text of a file that is in force; None = none of it is any more.
    LastGood {
        file: String,
        text: Option<String>,
    },
    Life(Life),
    /// The boot that the times in the rows belong to.
    Boot {
        id: String,
    },
}

/// Writes that are kept together or not at all: the effects of one step of the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// In the order they were said.
    pub writes: Vec<Write>,
}

/// Told after each commit, and with nothing new after each that failed, on the store's thread: it must not block.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// Every batch up to and including this number is on the disk.
    pub through: u64,
    /// The events that were written, numbered.
    pub events: Vec<EventRow>,
    /// The alerts that were written, numbered.
    pub alerts: Vec<Arc<Row>>,
    /// The deliveries that were written.
    pub deliveries: Vec<Delivery>,
}

type Tell = Box<dyn FnMut(Committed) + Send>;
type Question = Box<dyn FnOnce(Result<&Connection, StoreError>) + Send>;

enum Command {
    Commit(u64, Batch),
    Ask(Question),
    End,
}

/// The way to the store's thread. Dropping it commits what waits and ends the thread.
pub struct Store {
    reader: Reader,
    thread: Option<JoinHandle<()>>,
    submitted: u64,
}

/// For those who only ask. Cheap to clone; it outlives the store and then says so.
#[derive(Clone)]
pub struct Reader {
    commands: Sender<Command>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Opened {
    /// Starts the thread. `tell` hears of each commit.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(self, tell: impl FnMut(Committed) + Send + 'static) -> std::io::Result<Store> {
        let (commands, waiting) = mpsc::channel();
        let trouble = Arc::new(Mutex::new(self.trouble));
        let pending_writes = self.owed.len();
        // Batch 0: nobody waits for it, and it goes before all others.
        let owed = Some((0, Batch { writes: self.owed })).filter(|_| pending_writes > 0);
        let writer = Writer {
            path: self.path,
            db: Some(self.db),
            epoch: self.epoch,
            last_event_id: self.last_event_id,
            last_alert: self.last_alert,
            pending: owed.into_iter().collect(),
            pending_writes,
            lost_events: 0,
            tell: Box::new(tell),
            trouble: Arc::clone(&trouble),
        };
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || writer.run(&waiting))?;
        Ok(Store { reader: Reader { commands, trouble }, thread: Some(thread), submitted: 0 })
    }
}

impl Store {
    /// Hands `batch` over and answers with its number, the one `Committed::through` reaches
    /// when it is on the disk. Never blocks.
    pub fn submit(&mut self, batch: Batch) -> u64 {
        self.submitted += 1;
        self.reader.send(Command::Commit(self.submitted, batch));
        self.submitted
    }

    /// The newest batch submitted; 0 before the first.
    pub fn submitted(&self) -> u64 {
        self.submitted
    }

    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Why nothing can be committed at the moment; none when all is well.
    pub fn trouble(&self) -> Option<String> {
        self.reader.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Reader {
    /// Asks for events; `answer` is called on the store's thread.
    pub fn events(
        &self,
        query: EventQuery,
        answer: impl FnOnce(Result<Vec<EventRow>, StoreError>) + Send + 'static,
    ) {
        self.ask(move |db| row::select_events(db, &query), answer);
    }

    /// Asks for what this channel has not got yet: at most `limit` alerts after `after`, oldest
    /// first, each with its sends so far. `answer` is called on the store's thread.
    pub fn unsettled(
        &self,
        channel: String,
        after: u64,
        limit: usize,
        answer: impl FnOnce(Result<Vec<(Row, u32)>, StoreError>) + Send + 'static,
    ) {
        self.ask(move |db| alert::select_unsettled(db, &channel, after, limit), answer);
    }

    /// Asks for the newest alerts, newest first. `answer` is called on the store's thread.
    pub fn alerts(
        &self,
        limit: usize,
        answer: impl FnOnce(Result<Vec<AlertRow>, StoreError>) + Send + 'static,
    ) {
        self.ask(move |db| alert::select_newest(db, limit), answer);
    }

    fn ask<T>(
        &self,
        question: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        answer: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        self.send(Command::Ask(Box::new(move |db| answer(db.and_then(question)))));
    }

    fn send(&self, command: Command) {
        match self.commands.send(command).err().map(|refused| refused.0) {
            None | Some(Command::End) => {}
            Some(Command::Ask(question)) => question(Err(StoreError::Closed)),
            // The thread ends only with the store. Should it ever have died, say so in health.
            Some(Command::Commit(..)) => {
                let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                *trouble = Some("the store's thread has ended".to_string());
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.reader.send(Command::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there was reported by its own hook
        }
    }
}

struct Writer {
    path: PathBuf,
    /// None: in trouble, to be opened again.
    db: Option<Connection>,
    epoch: u64,
    last_event_id: u64,
    last_alert: u64,
    pending: VecDeque<(u64, Batch)>,
    pending_writes: usize,
    lost_events: u64,
    tell: Tell,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Command>) {
        loop {
            let first = if self.pending.is_empty() {
                waiting.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                waiting.recv_timeout(TROUBLE_RETRY)
            };
            let mut end = matches!(first, Err(RecvTimeoutError::Disconnected));
            let mut questions = Vec::new();
            for command in first.into_iter().chain(waiting.try_iter().take(BATCHES_PER_COMMIT_MAX)) {
                match command {
                    Command::Commit(number, batch) => self.keep(number, batch),
                    Command::Ask(question) => questions.push(question),
                    Command::End => end = true,
                }
            }
            self.commit_pending();
            for question in questions {
                question(self.db.as_ref().ok_or_else(|| StoreError::Value(self.current_trouble())));
            }
            if end {
                return;
            }
        }
    }

    fn keep(&mut self, number: u64, batch: Batch) {
        self.pending_writes += batch.writes.len();
        self.pending.push_back((number, batch));
        if self.pending_writes > WRITES_PENDING_MAX {
            self.thin_out();
        }
    }

    /// Keeps the newest row of each unit and the newest events; counts what is dropped.
    fn thin_out(&mut self) {
        let Some(&(number, _)) = self.pending.back() else { return };
        let mut units: BTreeMap<UnitName, Write> = BTreeMap::new();
        let mut runs: BTreeMap<RunId, Write> = BTreeMap::new();
        let mut rest: VecDeque<Write> = VecDeque::new();
        for write in self.pending.drain(..).flat_map(|(_, batch)| batch.writes) {
            match &write {
                Write::Save { unit, .. } | Write::Forget { unit } => {
                    units.insert(unit.clone(), write);
                }
                Write::Run(row) => _ = runs.insert(row.run, write),
                // A row that stays behind is that of a process which is gone: that is seen.
                Write::RunGone { run } => {
                    if runs.remove(run).is_none() {
                        rest.push_back(write);
                    }
                }
                Write::Alert { .. }
                | Write::Delivery { .. }
                | Write::Channels(_)
                | Write::SaveEngine(_)
                | Write::LastGood { .. } => rest.push_back(write),
                Write::Event(_) | Write::ReserveRuns { .. } | Write::Life(_) | Write::Boot { .. } => {
                    rest.push_back(write);
                }
            }
        }
        let mut kept = Vec::new();
        while rest.len() > WRITES_PENDING_MAX / 2 {
            match rest.pop_front() {
                Some(Write::Event(_)) => self.lost_events += 1,
                // Few, and each replaces the one before it.
                Some(other) => kept.push(other),
                None => break,
            }
        }
        let writes: Vec<Write> =
            kept.into_iter().chain(units.into_values()).chain(runs.into_values()).chain(rest).collect();
        self.pending_writes = writes.len();
        self.pending.push_back((number, Batch { writes }));
    }

    fn commit_pending(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        match self.try_commit() {
            Ok(committed) => {
                self.pending_writes = 0;
                self.pending.clear();
                self.lost_events = 0;
                self.set_trouble(None);
                (self.tell)(committed);
            }
            Err(error) => {
                self.db = None;
                self.set_trouble(Some(error.to_string()));
                // Nothing new is on the disk; whoever waits for it is to see the trouble.
                (self.tell)(Committed::default());
            }
        }
    }

    fn try_commit(&mut self) -> Result<Committed, StoreError> {
        if self.db.is_none() {
            let db = open::connect(&self.path)?;
            let through = self.drop_what_was_committed(&db)?;
            self.last_event_id = open::last_event_id(&db)?;
            self.db = Some(db);
            if self.pending.is_empty() {
                return Ok(Committed { through, ..Committed::default() });
            }
        }
        let Some(db) = self.db.as_mut() else { return Err(StoreError::Closed) };
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut next_id = self.last_event_id + 1;
        let mut done = Committed::default();
        let lost = lost_record(self.lost_events, &self.pending);
        let writes = self.pending.iter().flat_map(|(_, batch)| &batch.writes);
        for write in lost.iter().chain(writes) {
            match write {
                Write::Event(event) => {
                    if row::insert_event(&tx, next_id, event)? {
                        done.events.push(EventRow { id: next_id, event: event.clone() });
                        next_id += 1;
                    }
                }
                Write::Alert { alert, ts_us } => {
                    done.alerts.extend(alert::insert(&tx, alert, *ts_us)?.map(Arc::new));
                }
                Write::Delivery { delivery, .. } => {
                    row::write(&tx, write)?;
                    done.deliveries.push(delivery.clone());
                }
                other => row::write(&tx, other)?,
            }
        }
        done.through = self.pending.back().map_or(0, |(number, _)| *number);
        open::write_meta(&tx, "committed", &format!("{}:{}", self.epoch, done.through))?;
        tx.commit()?;
        self.last_event_id = next_id - 1;
        self.last_alert = done.alerts.last().map_or(self.last_alert, |row| row.id);
        Ok(done)
    }

    /// A commit that answered with an error may still have reached the disk. The file says
    /// how far it came; what it has is told now and not written again.
    fn drop_what_was_committed(&mut self, db: &Connection) -> Result<u64, StoreError> {
        let Some(text) = open::read_meta(db, "committed")? else { return Ok(0) };
        let Some((epoch, through)) = text.split_once(':') else { return Ok(0) };
        if epoch.parse() != Ok(self.epoch) {
            return Ok(0);
        }
        let through: u64 = through.parse().unwrap_or(0);
        let mut deliveries = Vec::new();
        while self.pending.front().is_some_and(|(number, _)| *number <= through) {
            if let Some((_, batch)) = self.pending.pop_front() {
                self.pending_writes -= batch.writes.len();
                deliveries.extend(batch.writes.into_iter().filter_map(delivery_of));
            }
            self.lost_events = 0;
        }
        let after_id = Some(self.last_event_id);
        let mut events = Vec::new();
        loop {
            let after_id = events.last().map(|last: &EventRow| last.id).or(after_id);
            let query = EventQuery { after_id, limit: BATCHES_PER_COMMIT_MAX, ..EventQuery::default() };
            let page = row::select_events(db, &query)?;
            let full = page.len() == BATCHES_PER_COMMIT_MAX;
            events.extend(page);
            if !full {
                break;
            }
        }
        let alerts: Vec<_> = alert::select_after(db, self.last_alert)?.into_iter().map(Arc::new).collect();
        self.last_alert = alerts.last().map_or(self.last_alert, |row| row.id);
        (self.tell)(Committed { through, events, alerts, deliveries });
        Ok(through)
    }

    fn current_trouble(&self) -> String {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.clone().unwrap_or_else(|| "it is closed".to_string())
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

fn delivery_of(write: Write) -> Option<Delivery> {
    if let Write::Delivery { delivery, .. } = write { Some(delivery) } else { None }
}

/// The record of a loss, stamped like the oldest event that was kept.
fn lost_record(lost: u64, pending: &VecDeque<(u64, Batch)>) -> Option<Write> {
    if lost == 0 {
        return None;
    }
    let oldest = pending.iter().flat_map(|(_, batch)| &batch.writes).find_map(|write| match write {
        Write::Event(event) => Some(event),
        Write::Save { .. }
        | Write::Forget { .. }
        | Write::Alert { .. }
        | Write::Delivery { .. }
        | Write::Channels(_)
        | Write::SaveEngine(_)
        | Write::LastGood { .. }
        | Write::Run(_)
        | Write::RunGone { .. }
        | Write::ReserveRuns { .. }
        | Write::Life(_)
        | Write::Boot { .. } => None,
    })?;
    let mut data = serde_json::Map::new();
    data.insert("events".into(), lost.into());
    Some(Write::Event(NewEvent {
        ts_us: oldest.ts_us,
        level: Level::Error,
        event: "store.lost".into(),
        unit: None,
        run: None,
        cause: None,
        message: format!("{lost} events were lost before this one: the store could not be written"),
        at: oldest.at,
        data,
    }))
}
