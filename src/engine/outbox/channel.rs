//! One channel of the outbox: its window of rows, what is being sent, when to send again.
//!
//! Refuses: knowledge of other channels. What one does never moves another.

mod held;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::base::duration::Pretty;
use crate::base::luck::Luck;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::outbox::{
    Before, Delivery, DeliveryState, Effect, Effects, FOLD_TRIES, GONE, JITTER_PERCENT, LOAD_RETRY, Mark,
    OVERDUE_AFTER, Outcome, Quiet, RETRY_AFTER_MAX, RETRY_FIRST, RETRY_MAX, Row, SEND_TIMEOUT,
    STEP_ASIDE_AFTER, Terms, Which,
};

#[derive(Debug)]
pub(super) struct Channel {
    name: String,
    pub terms: Terms,
    /// Rows up to this one are older than the channel.
    pub since: u64,
    pub presence: Presence,
    reading: Reading,
    rows: BTreeMap<u64, Entry>,
    /// By unit; none = of the daemon itself. In a lane only the first row is ever sent.
    lanes: BTreeMap<Option<UnitName>, BTreeSet<u64>>,
    /// Firsts of lanes that may be sent as soon as the channel may.
    ready: BTreeSet<u64>,
    /// Firsts of lanes that stepped aside, with the time until which they do.
    aside: BTreeSet<(Monotonic, u64)>,
    /// Rows that gave way to a newer one of their unit, which waits until that is on the disk: or an
    /// engine that died now would be followed by one that tells the older one later.
    giving_way: BTreeSet<u64>,
    sending: Option<Sending>,
    /// Failed sends since the last that was answered.
    failures: u32,
    /// Nothing is sent before this: the sink failed.
    hold: Monotonic,
    /// Nothing is sent before this: the sink bears no more.
    paced: Monotonic,
    /// What of its configuration the refused rows have been sent to.
    print: Option<u64>,
    reviving: Option<Reviving>,
    /// `Effect::Overdue` was said, and `InTime` not yet.
    overdue: bool,
    luck: Luck,
}

/// What was refused is read and sent again; it is over when all of it is settled.
#[derive(Debug)]
struct Reviving {
    print: u64,
    open: BTreeSet<u64>,
    /// By this configuration: reading meets them as it meets those that a former one refused.
    refused: BTreeSet<u64>,
    /// Everything is to be read once more: nothing was yet, or a row was on its way to the disk
    /// when it was asked for.
    again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    Here,
    /// Not configured any more; rows up to `until` are parked, then it is forgotten.
    Leaving {
        until: u64,
    },
}

/// What of the store is in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Rows above `after` are unread; they are read from `at` on, when there is room.
    Behind { after: u64, at: Monotonic },
    /// `news`: a row was committed since; the answer may not have it.
    Asked { after: u64, news: bool },
    /// Every row is or was in the window.
    Current { after: u64 },
}

#[derive(Debug)]
struct Entry {
    row: Arc<Row>,
    attempts: u32,
    before: Before,
    /// Acknowledged or parked; on its way to the disk.
    settled: bool,
    /// Since when we know of it.
    since: Monotonic,
    /// Never again in a message with others.
    alone: bool,
    /// Times that it stepped aside. The wait grows with these, not with the attempts: most of those may
    /// have been of engines that died, or of a time when the sink was down for everybody.
    asides: u32,
}

#[derive(Clone, Debug)]
struct Sending {
    row: u64,
    /// What the message tells beside it.
    others: Vec<u64>,
    attempt: u32,
    deadline: Monotonic,
    /// The configuration that it went to.
    print: Option<u64>,
}

impl Channel {
    pub fn new(name: &str, terms: Terms, since: u64, reading: Reading, seed: u64) -> Channel {
        Channel {
            name: name.to_string(),
            terms,
            since,
            presence: Presence::Here,
            reading,
            rows: BTreeMap::new(),
            lanes: BTreeMap::new(),
            ready: BTreeSet::new(),
            aside: BTreeSet::new(),
            giving_way: BTreeSet::new(),
            sending: None,
            failures: 0,
            hold: Monotonic::ZERO,
            paced: Monotonic::ZERO,
            print: None,
            reviving: None,
            overdue: false,
            // Its own luck: what other channels draw must not move this one.
            luck: Luck::new(seed ^ fnv1a(name)),
        }
    }

    /// As if it had never been gone: what is not parked yet is sent, and what came meanwhile too.
    pub fn come_back(&mut self, fx: &mut Effects) {
        fx.mark(Mark::ChannelBack);
        self.presence = Presence::Here;
        self.reading = match self.reading {
            Reading::Behind { .. } => self.reading,
            Reading::Asked { after, .. } => Reading::Asked { after, news: true },
            Reading::Current { after } => Reading::Behind { after, at: Monotonic::ZERO },
        };
    }

    /// Another configuration than the one that refused rows: they are sent again.
    pub fn on_printed(&mut self, print: u64, kept: Option<u64>, fx: &mut Effects) {
        self.print = self.print.or(kept);
        if self.presence != Presence::Here || self.wanted_print() == Some(print) {
            return;
        }
        fx.mark(Mark::Revived);
        // Read from the beginning when what is asked for now has come: one question at a time.
        // Those that are being sent again for a former one are owed as well.
        let open = self.reviving.take().map(|former| former.open).unwrap_or_default();
        self.reviving = Some(Reviving { print, open, refused: BTreeSet::new(), again: true });
    }

    fn wanted_print(&self) -> Option<u64> {
        self.reviving.as_ref().map(|reviving| reviving.print).or(self.print)
    }

    /// It is not configured any more: rows up to `until` are parked.
    pub fn leave(&mut self, until: u64) {
        self.presence = Presence::Leaving { until };
        self.reviving = None;
    }

    /// Whether it takes the row.
    pub fn on_committed(
        &mut self,
        now: Monotonic,
        row: &Arc<Row>,
        window: usize,
        quiet: &Quiet,
        fx: &mut Effects,
    ) -> bool {
        let takes = self.terms.takes.takes(&self.name, &row.alert);
        match &mut self.reading {
            Reading::Behind { .. } => {}
            Reading::Asked { news, .. } => *news = true,
            Reading::Current { after } if row.id <= *after => {}
            Reading::Current { after } if takes && self.rows.len() >= window => {
                fx.mark(Mark::WindowFull);
                self.reading = Reading::Behind { after: *after, at: Monotonic::ZERO };
            }
            Reading::Current { after } => {
                *after = row.id;
                if takes {
                    self.insert(now, row.clone(), 0, Before::Never);
                    self.drop_acked(row.id, quiet, fx);
                }
            }
        }
        takes
    }

    pub fn on_loaded(
        &mut self,
        now: Monotonic,
        rows: Vec<(Arc<Row>, u32)>,
        full: bool,
        quiet: &Quiet,
        fx: &mut Effects,
    ) {
        let Reading::Asked { mut after, news } = self.reading else { return };
        for (row, attempts) in rows {
            after = after.max(row.id);
            if self.reviving.as_ref().is_some_and(|reviving| reviving.refused.contains(&row.id)) {
                continue;
            }
            let known = self.rows.contains_key(&row.id) || row.id <= self.since;
            if self.rows.get(&row.id).is_some_and(|entry| entry.settled)
                && let Some(reviving) = &mut self.reviving
            {
                reviving.again = true;
            }
            if !known && self.terms.takes.takes(&self.name, &row.alert) {
                fx.mark(Mark::TakenUp);
                if let Some(reviving) = &mut self.reviving {
                    reviving.open.insert(row.id);
                }
                let id = row.id;
                self.insert(now, row, attempts, Before::Maybe);
                self.drop_acked(id, quiet, fx);
            }
        }
        if full {
            fx.mark(Mark::WindowFull);
        }
        self.reading =
            if full || news { Reading::Behind { after, at: now } } else { Reading::Current { after } };
    }

    pub fn on_load_failed(&mut self, now: Monotonic, fx: &mut Effects) {
        if let Reading::Asked { after, .. } = self.reading {
            fx.mark(Mark::LoadFailed);
            self.reading = Reading::Behind { after, at: now + LOAD_RETRY };
        }
    }

    pub fn on_answered(
        &mut self,
        now: Monotonic,
        row: u64,
        attempt: u32,
        outcome: Outcome,
        fx: &mut Effects,
    ) {
        let is_it = |sending: &Sending| sending.row == row && sending.attempt == attempt;
        let current = self.sending.as_ref().is_some_and(is_it);
        match outcome {
            Outcome::Acked if current => {
                fx.mark(Mark::Delivered);
                self.has_answered();
                let others = self.sending.take().map(|sending| sending.others).unwrap_or_default();
                for id in std::iter::once(row).chain(others) {
                    self.settle(id, DeliveryState::Delivered, None, fx);
                }
            }
            // Of a send that was given up: what else it told is not known any more, and goes again.
            Outcome::Acked if self.rows.get(&row).is_some_and(|entry| !entry.settled) => {
                fx.mark(Mark::LateAck);
                if let Some(other) = self.sending.take_if(|sending| sending.row == row) {
                    self.abandon(&other, fx);
                }
                self.has_answered();
                self.settle(row, DeliveryState::Delivered, None, fx);
            }
            Outcome::Failed { why, retry_after } if current => {
                fx.mark(if retry_after.is_some() { Mark::RetryAfter } else { Mark::Failed });
                self.fail(now, why, retry_after, fx);
            }
            Outcome::Refused { why } if current => {
                self.has_answered();
                let Some(Sending { others, print, .. }) = self.sending.take() else { return };
                if print != self.wanted_print() {
                    fx.mark(Mark::RefusedByFormer);
                } else if others.is_empty() {
                    fx.mark(Mark::Refused);
                    self.settle(row, DeliveryState::Parked, Some(why), fx);
                } else {
                    fx.mark(Mark::TakenApart);
                    self.take_apart(row, &others);
                }
            }
            Outcome::Acked | Outcome::Failed { .. } | Outcome::Refused { .. } => {
                fx.mark(Mark::LateAnswerIgnored);
            }
        }
    }

    /// Nobody knows which of them was refused.
    fn take_apart(&mut self, row: u64, others: &[u64]) {
        for id in std::iter::once(&row).chain(others) {
            if let Some(entry) = self.rows.get_mut(id) {
                entry.alone = true;
            }
        }
    }

    pub fn on_kept(&mut self, row: u64) {
        if self.rows.get(&row).is_some_and(|entry| entry.settled) {
            self.rows.remove(&row);
            self.giving_way.remove(&row);
        }
    }

    fn abandon(&self, sending: &Sending, fx: &mut Effects) {
        let (row, attempt) = (sending.row, sending.attempt);
        fx.push(Effect::Abandon { channel: self.name.clone(), row, attempt });
    }

    /// The sink is there: nothing has to wait for it.
    fn has_answered(&mut self) {
        self.failures = 0;
        self.hold = Monotonic::ZERO;
    }

    fn insert(&mut self, now: Monotonic, row: Arc<Row>, attempts: u32, before: Before) {
        let id = row.id;
        let lane = self.lanes.entry(row.alert.unit.clone()).or_default();
        if let Some(first) = lane.first().filter(|first| **first > id) {
            self.ready.remove(first); // rows come in order; this keeps the rule if they do not
        }
        lane.insert(id);
        if lane.first() == Some(&id) {
            self.ready.insert(id);
        }
        let entry = Entry { row, attempts, before, settled: false, since: now, alone: false, asides: 0 };
        self.rows.insert(id, entry);
    }

    /// The row leaves its lane; it is forgotten when that is on the disk.
    fn settle(&mut self, id: u64, state: DeliveryState, error: Option<String>, fx: &mut Effects) {
        let Some(entry) = self.rows.get_mut(&id).filter(|entry| !entry.settled) else { return };
        entry.settled = true;
        let (row, attempts) = (entry.row.clone(), entry.attempts);
        self.ready.remove(&id);
        self.aside.retain(|(_, other)| *other != id);
        if let Some(reviving) = &mut self.reviving {
            reviving.open.remove(&id);
            if state == DeliveryState::Parked {
                reviving.refused.insert(id);
            }
        }
        let unit = &row.alert.unit;
        if let Some(lane) = self.lanes.get_mut(unit) {
            lane.remove(&id);
            match lane.first() {
                Some(next) if self.aside.iter().any(|(_, aside)| aside == next) => {}
                Some(next) => _ = self.ready.insert(*next),
                None => _ = self.lanes.remove(unit),
            }
        }
        let delivery = Delivery { row: id, channel: self.name.clone(), state, attempts, error };
        fx.push(Effect::Keep { row, delivery });
    }

    /// The send failed, for now: the channel waits, and a row that failed often steps aside.
    fn fail(&mut self, now: Monotonic, why: String, retry_after: Option<Duration>, fx: &mut Effects) {
        let Some(Sending { row: id, others, .. }) = self.sending.take() else { return };
        self.failures = self.failures.saturating_add(1);
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        self.hold = now + delay(self.failures, &mut self.luck).max(asked);
        let attempts = self.rows.get(&id).map_or(0, |entry| entry.attempts);
        if attempts >= STEP_ASIDE_AFTER {
            fx.mark(Mark::SteppedAside);
            self.ready.remove(&id);
            let asides = self.rows.get_mut(&id).map_or(1, |entry| {
                entry.asides = entry.asides.saturating_add(1);
                entry.asides
            });
            self.aside.insert((now + delay(asides, &mut self.luck), id));
        }
        for id in std::iter::once(id).chain(others) {
            let Some(entry) = self.rows.get(&id).filter(|entry| !entry.settled) else { continue };
            let (row, attempts) = (entry.row.clone(), entry.attempts);
            let (channel, error) = (self.name.clone(), Some(why.clone()));
            let delivery = Delivery { row: id, channel, state: DeliveryState::Pending, attempts, error };
            fx.push(Effect::Keep { row, delivery });
        }
    }

    /// Whatever is due and possible now.
    pub fn advance(&mut self, now: Monotonic, window: usize, quiet: &Quiet, fx: &mut Effects) {
        if let Some(late) = self.sending.as_ref().filter(|sending| sending.deadline <= now) {
            fx.mark(Mark::TimedOut);
            self.abandon(late, fx);
            self.fail(now, format!("no answer within {}", Pretty(SEND_TIMEOUT)), None, fx);
        }
        if let Presence::Leaving { .. } = self.presence {
            self.park_all(fx);
        }
        if let Reading::Behind { after, at } = self.reading
            && at <= now
            && self.has_room(window)
        {
            let limit = window.saturating_sub(self.rows.len()).max(1);
            self.reading = Reading::Asked { after, news: false };
            let which = if self.reviving.is_some() { Which::Refused } else { Which::Open };
            fx.push(Effect::Load { channel: self.name.clone(), after, limit, which });
        }
        while let Some((until, id)) = self.aside.first().copied().filter(|(until, _)| *until <= now) {
            self.aside.remove(&(until, id));
            self.ready.insert(id);
        }
        self.note_revived(now, fx);
        self.note_overdue(now, quiet, fx);
        // Of those that were being sent when somebody took them.
        let may_drop = |channel: &Channel, id: u64| channel.is_acked(id, quiet) && !channel.is_under_way(id);
        while let Some(id) = self.ready.iter().find(|id| may_drop(self, **id)).copied() {
            self.drop_acked(id, quiet, fx);
        }
        if self.sending.is_some() || self.hold > now || self.ready.is_empty() {
            return;
        }
        if self.paced > now { fx.mark(Mark::Paced) } else { self.pick(now, quiet, fx) }
    }

    /// All that was refused has been read, sent again and settled.
    fn note_revived(&mut self, now: Monotonic, fx: &mut Effects) {
        let Reading::Current { .. } = self.reading else { return };
        let Some(reviving) = self.reviving.as_mut().filter(|reviving| reviving.open.is_empty()) else {
            return;
        };
        let print = reviving.print;
        if std::mem::take(&mut reviving.again) {
            self.reading = Reading::Behind { after: self.since, at: now };
            return;
        }
        // What is on its way to the disk may be a refusal by the former configuration.
        if self.rows.values().any(|entry| entry.settled) {
            return;
        }
        self.reviving = None;
        self.print = Some(print);
        fx.push(Effect::SavePrint { channel: self.name.clone(), print });
    }

    fn note_overdue(&mut self, now: Monotonic, quiet: &Quiet, fx: &mut Effects) {
        let late = self.oldest(quiet).filter(|entry| entry.since + OVERDUE_AFTER <= now);
        let (channel, row) = (self.name.clone(), late.map(|entry| entry.row.clone()));
        match (row, self.overdue) {
            (Some(row), false) => {
                fx.mark(Mark::Overdue);
                fx.push(Effect::Overdue { channel, row });
            }
            (None, true) => {
                fx.mark(Mark::InTime);
                fx.push(Effect::InTime { channel });
            }
            (Some(_), true) | (None, false) => return,
        }
        self.overdue = !self.overdue;
    }

    /// What has waited longest. A row that a mute holds back waits for nobody.
    fn oldest(&self, quiet: &Quiet) -> Option<&Entry> {
        let waits = |entry: &&Entry| !entry.settled && quiet.holds(&entry.row.alert).is_none();
        self.rows.values().filter(waits).min_by_key(|entry| entry.since)
    }

    /// The lowest row that may go, and what may go with it.
    fn pick(&mut self, now: Monotonic, quiet: &Quiet, fx: &mut Effects) {
        let Some(id) = self.ready.iter().find(|id| self.may_go(**id, now, quiet)).copied() else { return };
        let others = self.company_of(id, now, quiet);
        let mut rows = Vec::new();
        let Some(before) = self.rows.get(&id).map(|entry| entry.before) else { return };
        for id in std::iter::once(&id).chain(&others) {
            let Some(entry) = self.rows.get_mut(id) else { continue };
            entry.attempts = entry.attempts.saturating_add(1);
            entry.before = Before::Maybe;
            rows.push(entry.row.clone());
        }
        if !others.is_empty() {
            fx.mark(Mark::Folded);
        }
        let attempt = self.rows.get(&id).map_or(0, |entry| entry.attempts);
        self.paced = now + self.terms.gap;
        let (deadline, print) = (now + SEND_TIMEOUT, self.wanted_print());
        self.sending = Some(Sending { row: id, others, attempt, deadline, print });
        let row = rows.remove(0);
        fx.push(Effect::Send { channel: self.name.clone(), row, others: rows, attempt, before });
    }

    /// Further rows for the same message, oldest first: of each unit the next ones, none of them
    /// over the head of an older one.
    fn company_of(&self, id: u64, now: Monotonic, quiet: &Quiet) -> Vec<u64> {
        let folds = |entry: &Entry| !entry.alone && entry.attempts < FOLD_TRIES;
        if self.terms.fold <= 1 || !self.rows.get(&id).is_some_and(folds) {
            return Vec::new();
        }
        let mut blocked: BTreeSet<&Option<UnitName>> = BTreeSet::new();
        let mut others = Vec::new();
        for (other, entry) in &self.rows {
            if *other == id || entry.settled {
                continue;
            }
            let unit = &entry.row.alert.unit;
            if *other < id || blocked.contains(unit) || !self.may_go(*other, now, quiet) {
                blocked.insert(unit); // its first stepped aside, or is held back
                continue;
            }
            if !folds(entry) {
                break;
            }
            others.push(*other);
            if others.len() + 1 >= self.terms.fold {
                break;
            }
        }
        others
    }

    /// All but what is being sent: that may still be acknowledged.
    fn park_all(&mut self, fx: &mut Effects) {
        let is_sent = |id: &u64| {
            self.sending.as_ref().is_some_and(|sending| sending.row == *id || sending.others.contains(id))
        };
        let open = self.rows.iter().filter(|(id, entry)| !entry.settled && !is_sent(id));
        let open: Vec<u64> = open.map(|(id, _)| *id).collect();
        for id in open {
            self.settle(id, DeliveryState::Parked, Some(GONE.to_string()), fx);
        }
    }

    /// Half of it free, so that the store is not asked for each row.
    fn has_room(&self, window: usize) -> bool {
        let wanted = match self.presence {
            Presence::Here => true,
            Presence::Leaving { .. } => !self.is_read_to_its_end(),
        };
        wanted && self.rows.len() <= window / 2
    }

    fn is_read_to_its_end(&self) -> bool {
        match (self.reading, self.presence) {
            (Reading::Current { .. }, _) => true,
            (Reading::Behind { after, .. }, Presence::Leaving { until }) => after >= until,
            (Reading::Behind { .. } | Reading::Asked { .. }, Presence::Here | Presence::Leaving { .. }) => {
                false
            }
        }
    }

    /// Not configured, and nothing waits for it.
    pub fn has_left(&self) -> bool {
        self.presence != Presence::Here && self.rows.is_empty() && self.is_read_to_its_end()
    }

    pub fn next_deadline(&self, window: usize, quiet: &Quiet) -> Option<Monotonic> {
        let read = match self.reading {
            Reading::Behind { at, .. } if self.has_room(window) => Some(at),
            Reading::Behind { .. } | Reading::Asked { .. } | Reading::Current { .. } => None,
        };
        let send = match &self.sending {
            Some(sending) => Some(sending.deadline),
            None if self.is_holding(quiet) => {
                self.next_unheld(quiet).map(|at| at.max(self.hold).max(self.paced))
            }
            None if !self.ready.is_empty() => Some(self.hold.max(self.paced)),
            None => self.aside.first().map(|(until, _)| (*until).max(self.hold)),
        };
        let oldest = self.oldest(quiet).filter(|_| !self.overdue);
        let overdue = oldest.map(|entry| entry.since + OVERDUE_AFTER);
        [read, send, overdue].into_iter().flatten().min()
    }
}

/// The wait after the k-th failure, k ≥ 1: 1 s, 2 s, 4 s, … 5 min, and up to a fifth more.
fn delay(failures: u32, luck: &mut Luck) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let base = RETRY_FIRST.saturating_mul(1 << doublings).min(RETRY_MAX);
    let spread_ms = u64::try_from(base.as_millis()).unwrap_or(u64::MAX) / 100 * JITTER_PERCENT;
    base + Duration::from_millis(luck.below(spread_ms.saturating_add(1)))
}

/// A channel's name as a number (Fowler, Noll, Vo).
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
