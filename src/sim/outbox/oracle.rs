//! What must hold of every delivery, judged against what the sinks really took and said.
//!
//! Refuses: looking into the outbox. It sees what a sink and the disk see.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::base::time::Monotonic;
use crate::engine::outbox::{
    ACKNOWLEDGED, Delivery, DeliveryState, GONE, MUTED, OVERDUE_AFTER, Outcome, Quiet, RETRY_FIRST,
    RETRY_MAX, Row, STEP_ASIDE_AFTER, Takes,
};
use crate::sim::outbox::setup::{Answer, Wish};

macro_rules! promises {
    ($($name:ident = $text:literal,)*) => {
        $(pub(super) const $name: &str = $text;)*

        /// Every promise about deliveries.
        pub const PROMISES: &[&str] = &[$($name),*];
    };
}

promises! {
    I4 = "I4 an alert is sent only when it is committed",
    I15 = "I15 a row is marked delivered only after a positive ack, parked only when refused or its channel is gone",
    I16 = "I16 sends of one row to one sink are at most 1 + nacks + lost acks + crashes, all with one id",
    I17 = "I17 first deliveries of one unit to one sink are in row order",
    I17B = "I17b first deliveries to one sink are in row order, but for rows that stepped aside",
    I18 = "I18 when an alert reaches a sink does not depend on any other sink",
    I45 = "I45 with sinks healed, the outbox is empty in bounded time and nothing is missed",
    I45B = "I45b no send is sooner than its delay, or than the sink asked for",
    I51 = "I51 between two sends to a sink lies at least its gap",
    I52 = "I52 a message tells no more alerts than its sink folds, each of them once",
    I53 = "I53 what a sink refused is sent again when its channel is configured otherwise",
    I54 = "I54 a channel whose oldest alert waits too long is told once, and told when none does any more",
    S3 = "S3 a channel gets no alert that is older than the channel",
    S4 = "S4 a channel that is gone is sent nothing",
    S5 = "S5 a channel gets only alerts of units that name it, or name none",
    S6 = "S6 nothing is sent of what is muted, and no repeat of what somebody has taken",
    S7 = "S7 of what a mute held back the newest alert of each unit is told",
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub promise: String,
    pub detail: String,
}

fn broken<T>(promise: &str, detail: String) -> Result<T, Broken> {
    Err(Broken { promise: promise.to_string(), detail })
}

/// One row with one sink, as it really was.
#[derive(Debug, Default)]
struct Story {
    sends: u64,
    /// Sends more than one that had a reason.
    excuses: u64,
    acked: bool,
    refused: bool,
    muted: bool,
    /// Of the last send: what its channel was configured to be.
    print: u64,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    stories: BTreeMap<(String, u64), Story>,
    /// When each sink first took each row.
    pub taken: BTreeMap<String, BTreeMap<u64, Monotonic>>,
    /// Sends that nobody has answered or given up, of this engine.
    /// Each with its number of the attempt and all the rows of its message, the one that it is about first.
    busy: BTreeMap<String, (u32, Vec<u64>)>,
    /// When each channel was last sent something by this engine.
    last_send: BTreeMap<String, Monotonic>,
    /// What each channel is configured to be, as the outbox was told.
    prints: BTreeMap<String, u64>,
    committed: BTreeMap<u64, Monotonic>,
    /// Channels that were said to be late.
    late: BTreeSet<String>,
    /// When this engine's life began.
    born: Monotonic,
    /// Its window has room for every row: it knows how long each of them waits.
    pub sees_all: bool,
    /// Failures in a row of each channel in this engine's life, and the earliest next send.
    waits: BTreeMap<String, (u32, Monotonic)>,
    /// The last row that is not for the channel.
    since: BTreeMap<String, u64>,
    in_force: BTreeSet<String>,
    /// Channels that were out of force at any time.
    ever_gone: BTreeSet<String>,
    /// The sink that is killed to see whether the others notice: nothing arrives there.
    victim: Option<String>,
    /// What people asked not to be told of.
    pub quiet: Quiet,
    /// When a mute ended last: what it held back waits from then on.
    unmuted: Monotonic,
    /// The newest row that the outbox knows of.
    pub told_last: u64,
}

/// Loads that fail and late ticks: no more than this is added before anybody can know.
const LATENESS: Duration = Duration::from_secs(60);

type Deliveries = BTreeMap<(String, u64), Delivery>;

impl Oracle {
    pub fn new(victim: Option<String>) -> Oracle {
        Oracle { victim, ..Oracle::default() }
    }

    pub fn configured(&mut self, names: &BTreeSet<String>, known: &BTreeMap<String, u64>) {
        for name in names.iter().filter(|name| !known.contains_key(*name)) {
            self.since.insert(name.clone(), self.told_last);
            self.last_send.remove(name);
            self.waits.remove(name);
        }
        for name in names.iter().filter(|name| known.contains_key(*name) && !self.in_force.contains(*name)) {
            // It came back: what its reading of refused rows had come to was forgotten.
            self.stories
                .iter_mut()
                .filter(|((of, _), _)| of == name)
                .for_each(|(_, story)| story.excuses += 1);
        }
        self.ever_gone.extend(known.keys().filter(|name| !names.contains(*name)).cloned());
        self.in_force = names.clone();
    }

    /// What was answered and is not on the disk is unknown to the next engine.
    pub fn crash(&mut self, now: Monotonic, deliveries: &Deliveries) {
        self.busy.clear();
        self.last_send.clear();
        self.late.clear();
        self.prints.clear();
        self.born = now;
        for (place, story) in &mut self.stories {
            match deliveries.get(place).map(|delivery| delivery.state) {
                None | Some(DeliveryState::Pending) => {
                    story.excuses += 1;
                    (story.acked, story.refused, story.muted) = (false, false, false);
                }
                // It may have been acknowledged after all, on its second way.
                Some(DeliveryState::Parked) => (story.acked, story.refused) = (false, true),
                Some(DeliveryState::Delivered | DeliveryState::Muted) => {}
            }
        }
        self.waits.clear();
    }

    pub fn committed(&mut self, now: Monotonic, row: u64) {
        self.committed.insert(row, now);
    }

    /// The outbox is told what the channels are configured to be: what was refused may be sent again.
    pub fn printed(&mut self, prints: &BTreeMap<String, u64>, kept: &BTreeMap<String, u64>) {
        for (channel, print) in prints {
            let before = self.prints.insert(channel.clone(), *print).or(kept.get(channel).copied());
            if before == Some(*print) {
                continue;
            }
            for (_, story) in self.stories.iter_mut().filter(|((of, _), _)| of == channel) {
                story.excuses += 1;
            }
        }
    }

    /// People ask to be told less, or more again.
    pub fn wishes(&mut self, now: Monotonic, wish: Wish) {
        self.expire(now);
        match wish {
            Wish::Mute(units, wait) => {
                self.quiet.mute(&units, wait.map(|wait| now + wait));
                self.unmuted = now;
            }
            Wish::Ack(unit) => self.quiet.ack(&unit, 1),
        }
    }

    pub fn expire(&mut self, now: Monotonic) {
        while let Some(end) = self.quiet.next_end().filter(|end| *end <= now) {
            self.unmuted = self.unmuted.max(end);
            self.quiet.expire(end);
        }
    }

    pub fn overdue(&mut self, now: Monotonic, channel: &str, row: &Row) -> Result<(), Broken> {
        self.expire(now);
        if self.quiet.holds(&row.alert).is_some() {
            return broken(I54, format!("{channel}: row {} is held back by a mute", row.id));
        }
        let waited = self.committed.get(&row.id).map_or(Duration::ZERO, |at| now.since(*at));
        if waited < OVERDUE_AFTER || !self.late.insert(channel.to_string()) {
            return broken(I54, format!("{channel}: row {} after {waited:?}", row.id));
        }
        Ok(())
    }

    pub fn in_time(&mut self, channel: &str) -> Result<(), Broken> {
        if self.late.remove(channel) { Ok(()) } else { broken(I54, format!("{channel} was not late")) }
    }

    /// The message as a whole.
    pub fn sends_message(
        &mut self,
        now: Monotonic,
        channel: &str,
        message: &[Arc<Row>],
        (attempt, print): (u32, u64),
        (gap, fold): (Duration, usize),
    ) -> Result<(), Broken> {
        self.expire(now);
        let ids: Vec<u64> = message.iter().map(|row| row.id).collect();
        let once: BTreeSet<&u64> = ids.iter().collect();
        if ids.len() > fold || once.len() != ids.len() {
            return broken(I52, format!("{ids:?} to {channel}, which folds {fold}"));
        }
        let before = self.last_send.insert(channel.to_string(), now);
        if let Some(at) = before.filter(|at| now.since(*at) < gap) {
            return broken(I51, format!("{channel} after {:?}", now.since(at)));
        }
        // This life, this channel, a window that has room for all: it must have been told.
        let from = self.born.max(self.unmuted);
        let waited = |id: &u64| now.since(self.committed.get(id).copied().unwrap_or(now).max(from));
        // What was refused and is sent again has not waited all the time.
        let refused =
            |id: &u64| self.stories.get(&(channel.to_string(), *id)).is_some_and(|story| story.refused);
        let late = ids.iter().any(|id| !refused(id) && waited(id) > OVERDUE_AFTER + LATENESS);
        if late && self.sees_all && !self.late.contains(channel) && !self.ever_gone.contains(channel) {
            return broken(I54, format!("nobody was told of {ids:?} to {channel}"));
        }
        self.busy.insert(channel.to_string(), (attempt, ids));
        for row in message {
            self.story(channel, row.id).print = print;
        }
        Ok(())
    }

    pub fn is_busy_beside(&self, channel: &str) -> bool {
        self.busy.keys().any(|other| other != channel)
    }

    fn story(&mut self, channel: &str, row: u64) -> &mut Story {
        self.stories.entry((channel.to_string(), row)).or_default()
    }

    pub fn sends(
        &mut self,
        now: Monotonic,
        channel: &str,
        row: &Row,
        attempt: u32,
        rows: &[Arc<Row>],
        deliveries: &Deliveries,
    ) -> Result<(), Broken> {
        let what = format!("row {} to {channel}, send {attempt}", row.id);
        let Some(truth) = rows.iter().find(|known| known.id == row.id) else {
            return broken(I4, what);
        };
        if truth.alert.key != row.alert.key {
            return broken(I16, format!("{what}: the id is {}", row.alert.key));
        }
        if !self.in_force.contains(channel) {
            return broken(S4, what);
        }
        if row.id <= self.since.get(channel).copied().unwrap_or(u64::MAX) {
            return broken(S3, what);
        }
        if !Takes::Named.takes(channel, &truth.alert) {
            return broken(S5, what);
        }
        self.expire(now);
        if self.quiet.holds(&truth.alert).is_some() || self.quiet.is_acked(&truth.alert) {
            return broken(S6, what);
        }
        if let Some((_, earliest)) = self.waits.get(channel).filter(|(_, earliest)| now < *earliest) {
            return broken(I45B, format!("{what}: {:?} too soon", earliest.since(now)));
        }
        let stands = deliveries.get(&(channel.to_string(), row.id));
        // What was refused is counted as every send: only another configuration excuses one more.
        let is_over = |delivery: &Delivery| match delivery.state {
            DeliveryState::Pending => false,
            DeliveryState::Delivered | DeliveryState::Muted => true,
            DeliveryState::Parked => delivery.error.as_deref() == Some(GONE),
        };
        if stands.is_some_and(is_over) {
            return broken(I16, format!("{what}: it stands as {stands:?}"));
        }
        self.is_in_turn(channel, row.id, rows, deliveries)?;
        let story = self.story(channel, row.id);
        story.sends += 1;
        if story.sends > 1 + story.excuses {
            return broken(I16, format!("{what}: {story:?}"));
        }
        Ok(())
    }

    /// A send that cannot be acknowledged in time is an excuse for the next; so is the refusal of a
    /// message of many, which nobody can lay to one of them.
    pub fn will_answer(&mut self, channel: &str, rows: &[u64], answer: &Answer) {
        let excused = match &answer.says {
            None | Some((_, Outcome::Failed { .. })) => true,
            Some((wait, Outcome::Acked)) => *wait >= crate::engine::outbox::SEND_TIMEOUT,
            Some((wait, Outcome::Refused { .. })) => {
                rows.len() > 1 || *wait >= crate::engine::outbox::SEND_TIMEOUT
            }
        };
        for row in rows {
            self.story(channel, *row).excuses += u64::from(excused);
        }
    }

    /// What the outbox is about to hear.
    pub fn answers(&mut self, now: Monotonic, channel: &str, row: u64, attempt: u32, outcome: &Outcome) {
        let message = self.busy.get(channel).filter(|(_, rows)| rows.first() == Some(&row)).cloned();
        let is_late = message.as_ref().is_none_or(|(current, _)| *current != attempt);
        if is_late {
            // Only the acknowledgement of a send that was given up is news.
            if *outcome == Outcome::Acked {
                self.abandons(now, channel, row);
                self.story(channel, row).acked = true;
                self.waits.remove(channel);
            }
            return;
        }
        let told = message.map(|(_, rows)| rows).unwrap_or_default();
        let retry_after = match outcome {
            Outcome::Acked => {
                for row in told {
                    self.story(channel, row).acked = true;
                }
                self.waits.remove(channel);
                None
            }
            Outcome::Refused { .. } => {
                let current = self.prints.get(channel).copied().unwrap_or(0);
                let story = self.story(channel, row);
                if story.print != current {
                    story.excuses += 1; // the outbox may know that it was another configuration
                }
                story.refused |= told.len() == 1;
                self.waits.remove(channel);
                None
            }
            Outcome::Failed { retry_after, .. } => Some(retry_after.unwrap_or_default()),
        };
        self.busy.remove(channel);
        if let Some(asked) = retry_after {
            self.failed(now, channel, asked);
        }
    }

    pub fn abandons(&mut self, now: Monotonic, channel: &str, row: u64) {
        if self.busy.get(channel).is_some_and(|(_, rows)| rows.first() == Some(&row)) {
            // A late acknowledgement of the first settles that one: what else the message told goes again.
            for other in self.busy.remove(channel).unwrap_or_default().1.into_iter().skip(1) {
                self.story(channel, other).excuses += 1;
            }
            self.failed(now, channel, Duration::ZERO);
        }
    }

    fn failed(&mut self, now: Monotonic, channel: &str, asked: Duration) {
        let (failures, _) = self.waits.get(channel).copied().unwrap_or_default();
        let doubled = RETRY_FIRST.saturating_mul(1 << failures.min(16)).min(RETRY_MAX);
        self.waits.insert(channel.to_string(), (failures + 1, now + doubled.max(asked)));
    }

    /// The sink has the row now.
    pub fn takes(
        &mut self,
        now: Monotonic,
        channel: &str,
        row: u64,
        rows: &[Arc<Row>],
        deliveries: &Deliveries,
    ) -> Result<(), Broken> {
        if self.taken.get(channel).is_some_and(|taken| taken.contains_key(&row)) {
            return Ok(());
        }
        let unit = rows.iter().find(|known| known.id == row).and_then(|known| known.alert.unit.clone());
        let is_taken =
            |other: &Row| self.taken.get(channel).is_some_and(|taken| taken.contains_key(&other.id));
        let mut older = self.open_before(channel, row, rows, deliveries).into_iter();
        if let Some(other) = older.find(|other| other.alert.unit == unit && !is_taken(other)) {
            return broken(I17, format!("{channel} takes row {row} before row {}", other.id));
        }
        self.taken.entry(channel.to_string()).or_default().insert(row, now);
        Ok(())
    }

    /// Older rows for this channel that we do not know to be taken; the sink may have them.
    fn open_before<'a>(
        &self,
        channel: &str,
        row: u64,
        rows: &'a [Arc<Row>],
        deliveries: &Deliveries,
    ) -> Vec<&'a Arc<Row>> {
        // Gone channels park their rows, on their way to the disk at any time.
        if self.ever_gone.contains(channel) {
            return Vec::new();
        }
        let since = self.since.get(channel).copied().unwrap_or_default();
        let is_open = |other: &&Arc<Row>| {
            let place = (channel.to_string(), other.id);
            let settled = deliveries.get(&place).is_some_and(|d| d.state != DeliveryState::Pending);
            let story = self.stories.get(&place);
            let told = story.is_some_and(|story| story.acked || story.refused || story.muted);
            let held = self.quiet.holds(&other.alert).is_some();
            let along = self
                .busy
                .get(channel)
                .is_some_and(|(_, message)| message.contains(&row) && message.contains(&other.id));
            !settled && !told && !held && !along && Takes::Named.takes(channel, &other.alert)
        };
        rows.iter().filter(|other| other.id > since && other.id < row).filter(is_open).collect()
    }

    /// Older rows wait only behind one of their unit that was sent often enough to step aside.
    fn is_in_turn(
        &self,
        channel: &str,
        row: u64,
        rows: &[Arc<Row>],
        deliveries: &Deliveries,
    ) -> Result<(), Broken> {
        let older = self.open_before(channel, row, rows, deliveries);
        // What was refused before, too: it is sent again, and steps aside again.
        let often = |other: &Row| {
            let story = self.stories.get(&(channel.to_string(), other.id));
            story.is_some_and(|story| !story.acked && story.sends >= u64::from(STEP_ASIDE_AFTER))
        };
        // Of a unit whose mute is over the newest goes when those that gave way are on the disk.
        let gives_way = |other: &Row| {
            let place = (channel.to_string(), other.id);
            let muted = self.stories.get(&place).is_some_and(|story| story.muted);
            muted && deliveries.get(&place).is_none_or(|d| d.state != DeliveryState::Muted)
        };
        let often = rows.iter().filter(|other| other.id < row && often(other));
        let giving = rows.iter().filter(|other| gives_way(other));
        let aside: BTreeSet<_> = often.chain(giving).map(|other| other.alert.unit.clone()).collect();
        match older.iter().find(|other| !aside.contains(&other.alert.unit)) {
            Some(other) => broken(I17B, format!("{channel} is sent row {row} before row {}", other.id)),
            None => Ok(()),
        }
    }

    /// The outbox wants this kept.
    pub fn keeps(&mut self, delivery: &Delivery) -> Result<(), Broken> {
        let gone = !self.in_force.contains(&delivery.channel);
        if delivery.state == DeliveryState::Parked && delivery.error.as_deref() == Some(GONE) && !gone {
            return broken(I15, format!("{delivery:?}, and its channel is there"));
        }
        if delivery.state == DeliveryState::Muted {
            self.story(&delivery.channel, delivery.row).muted = true;
        }
        Ok(())
    }

    /// This reaches the disk.
    pub fn writes(&self, delivery: &Delivery) -> Result<(), Broken> {
        let story = self.stories.get(&(delivery.channel.clone(), delivery.row));
        let sound = match delivery.state {
            DeliveryState::Pending => true,
            DeliveryState::Delivered => story.is_some_and(|story| story.acked),
            DeliveryState::Parked => {
                delivery.error.as_deref() == Some(GONE) || story.is_some_and(|story| story.refused)
            }
            DeliveryState::Muted => match delivery.error.as_deref() {
                Some(ACKNOWLEDGED) => !self.quiet.acked.is_empty(),
                error => error == Some(MUTED),
            },
        };
        if sound { Ok(()) } else { broken(I15, format!("{delivery:?}: {story:?}")) }
    }

    /// Whether somebody has taken this row's episode, or a newer alert of its unit was told.
    fn gave_way(&self, channel: &str, row: &Row, rows: &[Arc<Row>], deliveries: &Deliveries) -> bool {
        let stands = |id: u64| deliveries.get(&(channel.to_string(), id));
        let acknowledged = |id| stands(id).is_some_and(|d| d.error.as_deref() == Some(ACKNOWLEDGED));
        let told = |id| stands(id).is_some_and(|d| d.state != DeliveryState::Muted) || acknowledged(id);
        let newer = |other: &&Arc<Row>| other.id > row.id && other.alert.unit == row.alert.unit;
        acknowledged(row.id) || rows.iter().filter(newer).any(|other| told(other.id))
    }

    /// Nothing waits, and every alert is with every sink that it was for.
    pub fn at_end(
        &self,
        configured: &BTreeSet<String>,
        known: &BTreeMap<String, u64>,
        rows: &[Arc<Row>],
        deliveries: &Deliveries,
        prints: &BTreeMap<String, u64>,
    ) -> Result<(), Broken> {
        let still = self
            .late
            .iter()
            .find(|channel| self.victim.as_ref() != Some(channel) && configured.contains(*channel));
        if let Some(channel) = still {
            return broken(I54, format!("{channel} is late for ever"));
        }
        if !configured.iter().eq(known.keys()) {
            return broken(I45, format!("channels {configured:?}, and kept are {known:?}"));
        }
        for (channel, since) in known {
            if self.since.get(channel) != Some(since) {
                return broken(S3, format!("{channel} is said to be there since row {since}"));
            }
            let alive = self.victim.as_ref() != Some(channel);
            for row in rows.iter().filter(|row| alive && row.id > *since) {
                let stands = deliveries.get(&(channel.clone(), row.id)).map(|delivery| delivery.state);
                let taken = self.taken.get(channel).is_some_and(|taken| taken.contains_key(&row.id));
                match stands {
                    _ if !Takes::Named.takes(channel, &row.alert) => {}
                    Some(DeliveryState::Delivered) if taken => {}
                    Some(DeliveryState::Muted) if self.gave_way(channel, row, rows, deliveries) => {}
                    Some(DeliveryState::Muted) => {
                        return broken(S7, format!("row {} to {channel}: nothing was told after it", row.id));
                    }
                    Some(DeliveryState::Parked) => {
                        self.was_refused_by(channel, row.id, prints, deliveries)?
                    }
                    Some(DeliveryState::Delivered) => {
                        return broken(I15, format!("{channel} never took row {}", row.id));
                    }
                    None | Some(DeliveryState::Pending) => {
                        return broken(I45, format!("row {} to {channel}: {stands:?}", row.id));
                    }
                }
            }
        }
        let is_open = |delivery: &Delivery| {
            delivery.state == DeliveryState::Pending && self.victim.as_ref() != Some(&delivery.channel)
        };
        let open = deliveries.iter().find(|(_, delivery)| is_open(delivery));
        match open {
            Some(((channel, _), delivery)) => broken(I45, format!("{channel}: {delivery:?}")),
            None => Ok(()),
        }
    }

    /// By what the channel is configured to be at the end, not by what it was before.
    fn was_refused_by(
        &self,
        channel: &str,
        row: u64,
        prints: &BTreeMap<String, u64>,
        deliveries: &Deliveries,
    ) -> Result<(), Broken> {
        let place = (channel.to_string(), row);
        let is_gone = deliveries.get(&place).is_some_and(|stands| stands.error.as_deref() == Some(GONE));
        let print = self.stories.get(&place).map_or(0, |story| story.print);
        // Its parking as gone may have found it refused already, and then left it so.
        let is_gone = is_gone || self.ever_gone.contains(channel);
        if is_gone || prints.get(channel) == Some(&print) {
            return Ok(());
        }
        broken(I53, format!("row {row} to {channel} was last sent to configuration {print} of {prints:?}"))
    }
}
