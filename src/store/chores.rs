//! What the store's thread does beside commits: the ledger's books, and removing what is older than
//! history is kept. One short piece at a time; whoever submits goes before the next.
//!
//! Refuses: standing in the way. What fails here is tried again later, and no commit hears of it.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use crate::base::time::Monotonic;
use crate::store::base::Base;
use crate::store::books::{self, Books};
use crate::store::row::EventRow;
use crate::store::writer::Told;
use crate::store::{StoreError, rebuild};
use crate::sys::clock;

/// Between two tries after one that failed.
const RETRY: Duration = Duration::from_secs(10);

/// Between two looks at how old the oldest record is.
const LOOK: Duration = Duration::from_secs(60);

/// What is too old stays until it is so much of the retention, so that it goes in one pass a day.
const SLACK_PARTS: u32 = 10;
const SLACK_MAX: Duration = Duration::from_secs(86_400);

#[derive(Default)]
pub(crate) struct Chores {
    books: Option<Books>,
    /// Not before; after something failed.
    retry_at: Option<Monotonic>,
    /// None until somebody said: nothing is removed.
    retention: Option<Duration>,
    look_at: Option<Monotonic>,
    /// Removing, and so much is gone: through which, how many.
    removing: Option<(u64, u64)>,
    asked: VecDeque<(i64, i64, Told)>,
    /// Nothing was said that would make it worth loading the books.
    awake: bool,
}

impl Chores {
    /// Answers when the books are complete.
    pub fn ask(&mut self, since_us: i64, now_us: i64, told: Told) {
        self.asked.push_back((since_us, now_us, told));
        (self.awake, self.retry_at) = (true, None);
    }

    pub fn keep_for(&mut self, retention: Duration) {
        self.retention = Some(retention);
        (self.awake, self.look_at) = (true, None);
    }

    /// What was committed.
    pub fn committed(&mut self, rows: &[EventRow]) {
        self.awake = true;
        if let Some(books) = &mut self.books {
            books.committed(rows);
        }
    }

    /// The books are of a database that is gone.
    pub fn forget(&mut self) {
        (self.books, self.removing) = (None, None);
    }

    /// Nobody is answered any more.
    pub fn end(&mut self) {
        self.asked.drain(..).for_each(|(.., told)| told(Err(StoreError::Closed)));
    }

    /// Whether there is something to do at once.
    pub fn are_due(&self) -> bool {
        let now = clock::monotonic();
        if self.retry_at.is_some_and(|at| now < at) || !self.awake {
            return false;
        }
        let behind = self.books.as_ref().is_none_or(Books::is_behind);
        behind || !self.asked.is_empty() || self.removing.is_some()
    }

    /// Does a short piece.
    pub fn step(&mut self, base: &mut Base) {
        let now = clock::monotonic();
        if self.retry_at.is_some_and(|at| now < at) || !self.awake {
            return;
        }
        if let Err(error) = self.try_step(base, now) {
            (self.books, self.removing) = (None, None);
            self.retry_at = Some(now + RETRY);
            if rebuild::is_corrupt(&error) {
                base.on_error(&error);
            }
            let why = error.to_string();
            mem::take(&mut self.asked)
                .into_iter()
                .for_each(|(.., told)| told(Err(StoreError::Value(why.clone()))));
        }
    }

    fn try_step(&mut self, base: &mut Base, now: Monotonic) -> Result<(), StoreError> {
        let newest = base.last_event_id;
        let db = base.db()?;
        let books = match &mut self.books {
            Some(books) => books,
            slot @ None => slot.insert(Books::load(db, newest)?),
        };
        books.step(db)?;
        if books.is_behind() {
            return Ok(());
        }
        while let Some((since_us, now_us, told)) = self.asked.pop_front() {
            told(books.window(db, since_us, now_us));
        }
        let Some(retention) = self.retention else { return Ok(()) };
        let wall_us = clock::wall().as_microsecond();
        let before_us =
            |age: Duration| wall_us.saturating_sub_unsigned(age.as_micros().try_into().unwrap_or(u64::MAX));
        if self.removing.is_none() && self.look_at.is_none_or(|at| at <= now) {
            self.look_at = Some(now + LOOK);
            let slack = (retention / SLACK_PARTS).min(SLACK_MAX);
            let due = books::oldest_us(db)?.is_some_and(|oldest| oldest < before_us(retention + slack));
            self.removing = due.then_some((0, 0));
        }
        if let Some((through, removed)) = self.removing {
            match books.remove(db, before_us(retention))? {
                Some((id, more)) => self.removing = Some((id, removed + more)),
                None => {
                    self.removing = None;
                    if removed > 0 {
                        base.tell_removed(through, removed);
                    }
                }
            }
        }
        Ok(())
    }
}
