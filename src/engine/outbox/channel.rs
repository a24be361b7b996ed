//! One channel of the outbox: its window of rows, what is being sent, when to send again.
//!
//! Refuses: knowledge of other channels. What one does never moves another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::base::duration::Pretty;
use crate::base::luck::Luck;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::outbox::{
    ACKNOWLEDGED, Before, Delivery, DeliveryState, Effect, Effects, GONE, JITTER_PERCENT, LOAD_RETRY, MUTED,
    Mark, Outcome, Quiet, RETRY_AFTER_MAX, RETRY_FIRST, RETRY_MAX, Row, SEND_TIMEOUT, STEP_ASIDE_AFTER,
    Takes,
};

#[derive(Debug)]
pub(super) struct Channel {
    name: String,
    pub takes: Takes,
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
    /// Nothing is sent before this.
    hold: Monotonic,
    luck: Luck,
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
}

#[derive(Clone, Copy, Debug)]
struct Sending {
    row: u64,
    attempt: u32,
    deadline: Monotonic,
}

impl Channel {
    pub fn new(name: &str, takes: Takes, since: u64, reading: Reading, seed: u64) -> Channel {
        Channel {
            name: name.to_string(),
            takes,
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

    /// Whether it takes the row.
    pub fn on_committed(&mut self, row: &Arc<Row>, window: usize, quiet: &Quiet, fx: &mut Effects) -> bool {
        let takes = self.takes.takes(&self.name, &row.alert);
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
                    self.insert(row.clone(), 0, Before::Never);
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
            let known = self.rows.contains_key(&row.id) || row.id <= self.since;
            if !known && self.takes.takes(&self.name, &row.alert) {
                fx.mark(Mark::TakenUp);
                let id = row.id;
                self.insert(row, attempts, Before::Maybe);
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
        let current = self.sending.is_some_and(|sending| sending.row == row && sending.attempt == attempt);
        match outcome {
            Outcome::Acked if self.rows.get(&row).is_some_and(|entry| !entry.settled) => {
                fx.mark(if current { Mark::Delivered } else { Mark::LateAck });
                if let Some(other) = self.sending.filter(|sending| !current && sending.row == row) {
                    self.abandon(other, fx);
                }
                self.has_answered();
                self.settle(row, DeliveryState::Delivered, None, fx);
            }
            Outcome::Failed { why, retry_after } if current => {
                fx.mark(if retry_after.is_some() { Mark::RetryAfter } else { Mark::Failed });
                self.fail(now, row, why, retry_after, fx);
            }
            Outcome::Refused { why } if current => {
                fx.mark(Mark::Refused);
                self.has_answered();
                self.settle(row, DeliveryState::Parked, Some(why), fx);
            }
            Outcome::Acked | Outcome::Failed { .. } | Outcome::Refused { .. } => {
                fx.mark(Mark::LateAnswerIgnored);
            }
        }
    }

    pub fn on_kept(&mut self, row: u64) {
        if self.rows.get(&row).is_some_and(|entry| entry.settled) {
            self.rows.remove(&row);
            self.giving_way.remove(&row);
        }
    }

    fn abandon(&self, sending: Sending, fx: &mut Effects) {
        let Sending { row, attempt, .. } = sending;
        fx.push(Effect::Abandon { channel: self.name.clone(), row, attempt });
    }

    /// The sink is there: nothing has to wait for it.
    fn has_answered(&mut self) {
        self.failures = 0;
        self.hold = Monotonic::ZERO;
    }

    fn insert(&mut self, row: Arc<Row>, attempts: u32, before: Before) {
        let id = row.id;
        let lane = self.lanes.entry(row.alert.unit.clone()).or_default();
        if let Some(first) = lane.first().filter(|first| **first > id) {
            self.ready.remove(first); // rows come in order; this keeps the rule if they do not
        }
        lane.insert(id);
        if lane.first() == Some(&id) {
            self.ready.insert(id);
        }
        self.rows.insert(id, Entry { row, attempts, before, settled: false });
    }

    /// The row leaves its lane; it is forgotten when that is on the disk.
    fn settle(&mut self, id: u64, state: DeliveryState, error: Option<String>, fx: &mut Effects) {
        let Some(entry) = self.rows.get_mut(&id) else { return };
        entry.settled = true;
        let (row, attempts) = (entry.row.clone(), entry.attempts);
        self.ready.remove(&id);
        self.aside.retain(|(_, other)| *other != id);
        if self.sending.is_some_and(|sending| sending.row == id) {
            self.sending = None;
        }
        let unit = &row.alert.unit;
        if let Some(lane) = self.lanes.get_mut(unit) {
            lane.remove(&id);
            match lane.first() {
                Some(next) => _ = self.ready.insert(*next),
                None => _ = self.lanes.remove(unit),
            }
        }
        let delivery = Delivery { row: id, channel: self.name.clone(), state, attempts, error };
        fx.push(Effect::Keep { row, delivery });
    }

    /// The send failed, for now: the channel waits, and a row that failed often steps aside.
    fn fail(
        &mut self,
        now: Monotonic,
        id: u64,
        why: String,
        retry_after: Option<Duration>,
        fx: &mut Effects,
    ) {
        self.sending = None;
        let Some(entry) = self.rows.get(&id) else { return };
        let (row, attempts) = (entry.row.clone(), entry.attempts);
        self.failures = self.failures.saturating_add(1);
        let asked = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        self.hold = now + delay(self.failures, &mut self.luck).max(asked);
        if attempts >= STEP_ASIDE_AFTER {
            fx.mark(Mark::SteppedAside);
            self.ready.remove(&id);
            self.aside.insert((now + delay(attempts, &mut self.luck), id));
        }
        let state = DeliveryState::Pending;
        let delivery = Delivery { row: id, channel: self.name.clone(), state, attempts, error: Some(why) };
        fx.push(Effect::Keep { row, delivery });
    }

    /// A repeated failure that somebody knows of is not told; one that is being sent is.
    fn drop_acked(&mut self, id: u64, quiet: &Quiet, fx: &mut Effects) {
        let busy = self.sending.is_some_and(|sending| sending.row == id);
        if !busy && self.is_acked(id, quiet) {
            fx.mark(Mark::Acknowledged);
            self.settle(id, DeliveryState::Muted, Some(ACKNOWLEDGED.to_string()), fx);
        }
    }

    fn is_acked(&self, id: u64, quiet: &Quiet) -> bool {
        let open = self.rows.get(&id).filter(|entry| !entry.settled);
        open.is_some_and(|entry| quiet.is_acked(&entry.row.alert))
    }

    /// What people want to be told has changed. Of each unit whose mute is over the newest is told, and
    /// the others are not: they say what was so an hour ago.
    pub fn on_quieted(&mut self, was: &Quiet, is: &Quiet, fx: &mut Effects) {
        let busy = self.sending.map(|sending| sending.row);
        let held = |id: &u64, by: &Quiet| self.rows.get(id).is_some_and(|e| by.holds(&e.row.alert).is_some());
        let over = |lane: &&BTreeSet<u64>| lane.last().is_some_and(|id| held(id, was) && !held(id, is));
        let lanes = self.lanes.values().filter(over);
        let older: Vec<u64> = lanes.flat_map(|lane| lane.iter().rev().skip(1)).copied().collect();
        for id in older.into_iter().filter(|id| Some(*id) != busy) {
            fx.mark(Mark::MuteEnded);
            self.settle(id, DeliveryState::Muted, Some(MUTED.to_string()), fx);
            self.giving_way.insert(id);
        }
        let rows: Vec<u64> = self.rows.keys().copied().collect();
        for id in rows {
            self.drop_acked(id, is, fx);
        }
    }

    /// Whatever is due and possible now.
    pub fn advance(&mut self, now: Monotonic, window: usize, quiet: &Quiet, fx: &mut Effects) {
        if let Some(late) = self.sending.filter(|sending| sending.deadline <= now) {
            fx.mark(Mark::TimedOut);
            self.abandon(late, fx);
            self.fail(now, late.row, format!("no answer within {}", Pretty(SEND_TIMEOUT)), None, fx);
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
            fx.push(Effect::Load { channel: self.name.clone(), after, limit });
        }
        while let Some((until, id)) = self.aside.first().copied().filter(|(until, _)| *until <= now) {
            self.aside.remove(&(until, id));
            self.ready.insert(id);
        }
        if self.sending.is_none() && self.hold <= now {
            // Of those that were being sent when somebody took them.
            while let Some(id) = self.ready.iter().find(|id| self.is_acked(**id, quiet)).copied() {
                self.drop_acked(id, quiet, fx);
            }
            self.pick(now, quiet, fx);
        }
    }

    /// Until when a row is held back; zero when it is not.
    fn held_until(&self, id: u64, quiet: &Quiet) -> Monotonic {
        self.rows.get(&id).and_then(|entry| quiet.holds(&entry.row.alert)).unwrap_or(Monotonic::ZERO)
    }

    /// Whether an older row of its unit is still giving way.
    fn is_way_barred(&self, id: u64) -> bool {
        let unit = |id: u64| self.rows.get(&id).map(|entry| &entry.row.alert.unit);
        self.giving_way.iter().any(|other| unit(*other) == unit(id))
    }

    /// The lowest row that may go.
    fn pick(&mut self, now: Monotonic, quiet: &Quiet, fx: &mut Effects) {
        let may_go = |id: &&u64| self.held_until(**id, quiet) <= now && !self.is_way_barred(**id);
        let Some(id) = self.ready.iter().find(may_go).copied() else { return };
        let Some(entry) = self.rows.get_mut(&id) else { return };
        let before = entry.before;
        entry.attempts = entry.attempts.saturating_add(1);
        entry.before = Before::Maybe;
        let (row, attempt) = (entry.row.clone(), entry.attempts);
        self.sending = Some(Sending { row: id, attempt, deadline: now + SEND_TIMEOUT });
        fx.push(Effect::Send { channel: self.name.clone(), row, attempt, before });
    }

    /// All but what is being sent: that may still be acknowledged.
    fn park_all(&mut self, fx: &mut Effects) {
        let busy = self.sending.map(|sending| sending.row);
        let open = self.rows.iter().filter(|(id, entry)| !entry.settled && Some(**id) != busy);
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
        let send = match self.sending {
            Some(sending) => Some(sending.deadline),
            None if quiet.is_muting() => {
                let ready = self.ready.iter().map(|id| self.held_until(*id, quiet));
                let aside = self.aside.iter().map(|(until, id)| self.held_until(*id, quiet).max(*until));
                ready.chain(aside).min().map(|at| at.max(self.hold))
            }
            None if !self.ready.is_empty() => Some(self.hold),
            None => self.aside.first().map(|(until, _)| (*until).max(self.hold)),
        };
        [read, send].into_iter().flatten().min()
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
