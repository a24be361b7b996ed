//! The thread that owns the connection: takes every batch that waits into one transaction,
//! commits, tells. In trouble it keeps the batches and comes again with a fresh connection; a database
//! that turns out to be corrupt is begun anew from its second copies, and nobody else notices.
//!
//! Refuses: a retry on a handle whose commit failed (after a failed fsync the pages may be
//! gone although a second one succeeds), and growth without end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;

use crate::base::{exit::RunId, histogram::Histogram, name::UnitName};
use crate::engine::durable::{EngineDurable, UnitDurable};
use crate::engine::effect::Alert;
use crate::engine::outbox::{Delivery, Row};
use crate::store::alert;
use crate::store::base::Base;
use crate::store::books::Window;
use crate::store::chores::Chores;
use crate::store::drill::DrillRow;
use crate::store::lost::{delivery_of, lost_record};
use crate::store::open::{Life, Opened};
use crate::store::row::{EventQuery, EventRow, NewEvent};
use crate::store::run::RunRow;
use crate::store::trouble::{Code, Trouble, copy_trouble};
use crate::store::{StoreError, open, rebuild, row};

/// Between two tries while the disk is full or somebody holds a lock.
const TROUBLE_RETRY: Duration = Duration::from_secs(1);

/// Between two looks whether a database still stands aside.
const ASIDE_LOOK: Duration = Duration::from_secs(2);

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
    /// What a channel is configured to be, as a number: for it, what was refused has been sent again.
    AlertPrint {
        channel: String,
        print: u64,
    },
    /// No run id below this one is given out after a crash.
    ReserveRuns {
        until: RunId,
    },
    /// This run lives; replaces its row.
    Run(RunRow),
    /// Replaces the row of a drill.
    Drill(DrillRow),
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
    /// The newest upgrade whose outcome is on record.
    UpgradeTold(String),
    /// What people asked not to be told of (mutes, acknowledged episodes), as text; it is not read here.
    Quiet(String),
    /// The name of the home: what tells its database from that of another.
    Home {
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

/// Who hears of commits, on the store's thread: must not block for long.
pub trait Audience: Send {
    /// After each commit; and with nothing new after each that failed.
    fn committed(&mut self, committed: Committed);

    /// The newest event that stands outside the database; 0 when nobody keeps them there.
    fn logged(&self) -> u64 {
        0
    }

    /// The newest `limit` events after `id` that stand outside the database, oldest first: what a
    /// database that has to be begun anew gets its history from.
    fn newest(&mut self, _id: u64, _limit: usize) -> Vec<EventRow> {
        Vec::new()
    }
}

impl<F: FnMut(Committed) + Send> Audience for F {
    fn committed(&mut self, committed: Committed) {
        self(committed);
    }
}

/// Asked again when the database turned out to be corrupt and was begun anew: true then.
type Question = Box<dyn FnMut(Result<&Connection, StoreError>, Tries) -> bool + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tries {
    More,
    Last,
}

/// Called once, on the store's thread.
pub(crate) type Told = Box<dyn FnOnce(Result<Window, StoreError>) + Send>;

enum Command {
    Commit(u64, Batch),
    Ask(Question),
    /// The figures from one time until another.
    Summary(i64, i64, Told),
    /// How long history is kept.
    KeepFor(Duration),
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
    status: Arc<Mutex<Status>>,
    /// How long commits took.
    pub(crate) commits: Arc<Histogram>,
}

/// What ails the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Status {
    /// Nothing can be committed.
    trouble: Option<Trouble>,
    /// What is not well, though it can.
    others: Vec<Trouble>,
}

impl Opened {
    /// Starts the thread. `tell` hears of each commit.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(self, tell: impl FnMut(Committed) + Send + 'static) -> std::io::Result<Store> {
        self.start_before(tell)
    }

    /// The same, before somebody who also keeps history.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start_before(self, audience: impl Audience + 'static) -> std::io::Result<Store> {
        let (commands, waiting) = mpsc::channel();
        let status = Status { trouble: self.trouble, others: Vec::new() };
        let status = Arc::new(Mutex::new(status));
        let pending_writes = self.owed.len();
        // Batch 0: nobody waits for it, and it goes before all others.
        let owed = Some((0, Batch { writes: self.owed })).filter(|_| pending_writes > 0);
        let commits = Arc::clone(&self.base.commits);
        let mut writer = Writer {
            base: self.base,
            pending: owed.into_iter().collect(),
            pending_writes,
            lost_events: 0,
            audience: Box::new(audience),
            status: Arc::clone(&status),
            aside: Vec::new(),
            chores: Chores::default(),
        };
        writer.look_aside();
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || writer.run(&waiting))?;
        Ok(Store { reader: Reader { commands, status, commits }, thread: Some(thread), submitted: 0 })
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
    pub fn trouble(&self) -> Option<Trouble> {
        self.reader.status.lock().unwrap_or_else(PoisonError::into_inner).trouble.clone()
    }

    /// All that ails it, the worst first; empty when all is well.
    pub fn troubles(&self) -> Vec<Trouble> {
        let status = self.reader.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.trouble.iter().chain(&status.others).cloned().collect()
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

    /// Asks for the figures of everything from `since_us` until `now_us`, wall time, all of which
    /// has been submitted. `answer` is called on the store's thread.
    pub fn summary(
        &self,
        since_us: i64,
        now_us: i64,
        answer: impl FnOnce(Result<Window, StoreError>) + Send + 'static,
    ) {
        self.send(Command::Summary(since_us, now_us, Box::new(answer)));
    }

    /// Records of history that are older are removed, bit by bit.
    pub fn keep_for(&self, retention: Duration) {
        self.send(Command::KeepFor(retention));
    }

    pub(crate) fn ask<T>(
        &self,
        question: impl Fn(&Connection) -> Result<T, StoreError> + Send + 'static,
        answer: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        let mut answer = Some(answer);
        self.send(Command::Ask(Box::new(move |db, tries| {
            let result = db.and_then(&question);
            let again = tries == Tries::More && result.as_ref().is_err_and(rebuild::is_corrupt);
            if !again && let Some(answer) = answer.take() {
                answer(result);
            }
            again
        })));
    }

    fn send(&self, command: Command) {
        match self.commands.send(command).err().map(|refused| refused.0) {
            None | Some(Command::End | Command::KeepFor(_)) => {}
            Some(Command::Summary(.., told)) => told(Err(StoreError::Closed)),
            Some(Command::Ask(mut question)) => _ = question(Err(StoreError::Closed), Tries::Last),
            // The thread ends only with the store. Should it ever have died, say so in health.
            Some(Command::Commit(..)) => {
                let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
                let ended = StoreError::Value("the store's thread has ended".to_string());
                status.trouble = Some(Trouble::of(&ended));
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
    base: Base,
    pending: VecDeque<(u64, Batch)>,
    pending_writes: usize,
    lost_events: u64,
    audience: Box<dyn Audience>,
    status: Arc<Mutex<Status>>,
    /// What stood aside at the last look.
    aside: Vec<String>,
    chores: Chores,
}

impl Writer {
    fn run(&mut self, waiting: &Receiver<Command>) {
        loop {
            let patience = self.patience();
            let first = match patience {
                None => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(patience) => waiting.recv_timeout(patience),
            };
            let mut end = matches!(first, Err(RecvTimeoutError::Disconnected));
            // A wait of no length is for chores.
            let idle = matches!(first, Err(RecvTimeoutError::Timeout)) && patience != Some(Duration::ZERO);
            let mut questions = Vec::new();
            for command in first.into_iter().chain(waiting.try_iter().take(BATCHES_PER_COMMIT_MAX)) {
                match command {
                    Command::Commit(number, batch) => self.keep(number, batch),
                    Command::Ask(question) => questions.push(question),
                    Command::Summary(since_us, now_us, told) => self.chores.ask(since_us, now_us, told),
                    Command::KeepFor(retention) => self.chores.keep_for(retention),
                    Command::End => end = true,
                }
            }
            self.commit_pending();
            if idle {
                self.mend();
            }
            self.chores.step(&mut self.base);
            if !self.base.is_connected() && self.base.is_distrusted() {
                let _ = self.reconnect(); // with a new database; what fails is said to the next who asks
            }
            questions.into_iter().for_each(|question| self.answer(question));
            if end {
                return self.chores.end();
            }
        }
    }

    /// How long it may wait for the next command; None: nothing else is to be done.
    fn patience(&self) -> Option<Duration> {
        if self.base.is_connected() && self.chores.are_due() {
            return Some(Duration::ZERO);
        }
        let troubled = !self.pending.is_empty() || !self.base.is_connected();
        if troubled || self.base.copy_trouble().is_some() {
            return Some(TROUBLE_RETRY);
        }
        (!self.aside.is_empty()).then_some(ASIDE_LOOK)
    }

    fn mend(&mut self) {
        if !self.base.is_connected() && self.reconnect().is_err() {
            return;
        }
        if let Err(error) = self.base.mend_copies() {
            self.base.on_error(&error);
        }
        self.look_aside();
    }

    fn answer(&mut self, mut question: Question) {
        if question(self.db(), Tries::More) {
            self.base.on_error(&corrupt());
            let _ = self.reconnect(); // said to the one who asks
            question(self.db(), Tries::Last);
        }
    }

    fn db(&self) -> Result<&Connection, StoreError> {
        self.base.db().map_err(|_| StoreError::Value(self.current_trouble()))
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
                | Write::AlertPrint { .. }
                | Write::SaveEngine(_)
                | Write::Drill(_)
                | Write::LastGood { .. } => rest.push_back(write),
                Write::Event(_)
                | Write::ReserveRuns { .. }
                | Write::Life(_)
                | Write::Boot { .. }
                | Write::UpgradeTold(_)
                | Write::Quiet(_)
                | Write::Home { .. } => rest.push_back(write),
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
        let mut result = self.try_commit();
        if result.is_err() && self.base.is_distrusted() {
            result = self.try_commit(); // with a new database
        }
        match result {
            Ok(committed) => {
                self.pending_writes = 0;
                self.pending.clear();
                self.lost_events = 0;
                self.set_trouble(None);
                self.chores.committed(&committed.events);
                self.audience.committed(committed);
            }
            Err(error) => {
                self.set_trouble(Some(Trouble::of(&error)));
                // Nothing new is on the disk; whoever waits for it is to see the trouble.
                self.audience.committed(Committed::default());
            }
        }
    }

    fn try_commit(&mut self) -> Result<Committed, StoreError> {
        if self.base.is_elsewhere() {
            self.base.disconnect();
        }
        if !self.base.is_connected() {
            let through = self.reconnect()?;
            if self.pending.is_empty() {
                return Ok(Committed { through, ..Committed::default() });
            }
        }
        let lost = lost_record(self.lost_events, &self.pending);
        let writes = self.pending.iter().flat_map(|(_, batch)| &batch.writes);
        let writes: Vec<&Write> = lost.iter().chain(writes).collect();
        let through = self.pending.back().map_or(0, |(number, _)| *number);
        self.base.logged = self.audience.logged();
        self.base.commit(through, &writes)
    }

    /// A fresh connection. A commit that answered with an error may still have reached the disk: the
    /// file says how far it came; what it has is told now and not written again.
    fn reconnect(&mut self) -> Result<u64, StoreError> {
        self.chores.forget(); // it may be another database
        let told = (self.base.last_event_id, self.base.last_alert);
        let Writer { base, audience, .. } = self;
        let connected = base.connect(&mut |id, limit| audience.newest(id, limit));
        let told = connected.and_then(|()| self.tell_what_was_committed(told));
        if let Err(error) = &told {
            self.base.on_error(error);
        }
        self.look_aside();
        told
    }

    fn tell_what_was_committed(&mut self, told: (u64, u64)) -> Result<u64, StoreError> {
        let committed = open::read_meta(self.base.db()?, "committed")?.unwrap_or_default();
        let of_us = committed.split_once(':').filter(|(epoch, _)| epoch.parse() == Ok(self.base.epoch));
        let through = of_us.and_then(|(_, through)| through.parse().ok()).unwrap_or(0);
        let mut deliveries = Vec::new();
        while self.pending.front().is_some_and(|(number, _)| *number <= through) {
            if let Some((_, batch)) = self.pending.pop_front() {
                self.pending_writes -= batch.writes.len();
                self.base.was_committed(&batch.writes);
                deliveries.extend(batch.writes.into_iter().filter_map(delivery_of));
            }
            self.lost_events = 0;
        }
        let mut events: Vec<EventRow> = Vec::new();
        loop {
            let after_id = Some(events.last().map_or(told.0, |last| last.id));
            let query = EventQuery { after_id, limit: BATCHES_PER_COMMIT_MAX, ..EventQuery::default() };
            let page = row::select_events(self.base.db()?, &query)?;
            let full = page.len() == BATCHES_PER_COMMIT_MAX;
            events.extend(page);
            if !full {
                break;
            }
        }
        let alerts = alert::select_after(self.base.db()?, told.1)?;
        self.base.last_alert = self.base.last_alert.max(alert::last_id(self.base.db()?)?);
        let alerts = alerts.into_iter().map(Arc::new).collect();
        self.audience.committed(Committed { through, events, alerts, deliveries });
        Ok(through)
    }

    fn current_trouble(&self) -> String {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.trouble.as_ref().map_or("it is closed".to_string(), |trouble| trouble.message.clone())
    }

    fn set_trouble(&self, trouble: Option<Trouble>) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.trouble = trouble;
        status.others.retain(|other| other.code != Code::StoreCopy);
        status.others.extend(self.base.copy_trouble().map(copy_trouble));
    }

    /// Whether a database stands aside: until somebody has taken it away, people are told.
    fn look_aside(&mut self) {
        let files = rebuild::aside_files(self.base.path());
        self.aside = files.iter().map(|path| path.display().to_string()).collect();
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        status.others.retain(|other| other.code == Code::StoreCopy && self.base.copy_trouble().is_some());
        status.others.extend(self.aside.iter().map(|path| Trouble {
            code: Code::StoreAside,
            message: format!("a database that could not be used stands aside as {path}"),
            help: "what it held is in use again (`upright events` tells); move or remove it when you have seen it".to_string(),
        }));
    }
}

/// What a question has met.
fn corrupt() -> StoreError {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    StoreError::Sqlite(rusqlite::Error::SqliteFailure(code, None))
}
