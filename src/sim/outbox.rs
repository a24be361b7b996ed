//! The outbox in a fake world: sinks that refuse, hang, lose their answers and come back, a
//! store that takes its time, engines that die with half of it unwritten.
//!
//! Each sink has its own stream of luck, and so has what the store does for it: with one sink
//! killed, nothing of the others may move (I18, by comparison of two runs).
//!
//! Refuses: anything real, and going on after the first broken promise.

pub mod bug;
mod oracle;
mod setup;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::base::luck::Luck;
use crate::base::time::Monotonic;
use crate::engine::outbox::{
    Delivery, DeliveryState, Effect, Effects, Event, GONE, Mark, Outbox, Outcome, Quiet, Row, Settings,
    Takes, Terms, Which,
};
use crate::sim::outbox::bug::Bug;
use crate::sim::outbox::oracle::Oracle;
pub use crate::sim::outbox::oracle::{Broken, PROMISES};
use crate::sim::outbox::setup::{Change, Setup, Wish};

/// After healing, the time in which everything must be delivered: the longest wait with its
/// jitter (6 min), what a sink may ask for here (2 min), a hung send (12 s), and the rows.
const LIVENESS: Duration = Duration::from_secs(600);

/// More steps than any world needs: beyond it the outbox is running in a circle.
const STEPS_MAX: u64 = 200_000;

/// Whether a sink is killed for the comparison of I18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    AsDrawn,
    /// The sink of this number never answers well.
    Kill(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    Off,
    On,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    pub broken: Option<Broken>,
    pub marks: BTreeSet<Mark>,
    pub steps: u64,
    pub sends: u64,
    /// Virtual time that passed.
    pub simulated: Duration,
    /// Of every effect in order: equal for equal seeds.
    pub hash: u64,
    /// When each sink first took each row.
    pub taken: BTreeMap<String, BTreeMap<u64, Monotonic>>,
    pub trace: Vec<String>,
}

/// Runs the world of this seed, with a planted bug or without.
pub fn run(seed: u64, bug: Option<Bug>, fate: Fate, trace: Trace) -> Report {
    let setup = setup::draw(seed);
    let mut sim = Sim::new(seed, setup, bug, fate, trace);
    let broken = sim.play().err();
    Report {
        broken,
        marks: sim.marks,
        steps: sim.steps,
        sends: sim.sends,
        simulated: sim.now.since(Monotonic::ZERO),
        hash: sim.hash,
        taken: sim.oracle.taken,
        trace: sim.lines,
    }
}

/// Runs the same world twice, the second time with one sink killed: on every other sink each
/// alert must arrive at the very same moment. Broken promises of either run count as well.
pub fn run_compared(seed: u64, bug: Option<Bug>) -> Report {
    let whole = run(seed, bug, Fate::AsDrawn, Trace::Off);
    if whole.broken.is_some() {
        return whole;
    }
    let sinks = setup::draw(seed).sinks;
    let victim = usize::try_from(seed % sinks.len() as u64).unwrap_or(0);
    let mut killed = run(seed, bug, Fate::Kill(victim), Trace::Off);
    let moved = sinks.iter().enumerate().find(|(index, sink)| {
        *index != victim && whole.taken.get(&sink.name) != killed.taken.get(&sink.name)
    });
    if let (None, Some((_, sink))) = (&killed.broken, moved) {
        let detail =
            format!("{} got its alerts at other times with {} killed", sink.name, sinks[victim].name);
        killed.broken = Some(Broken { promise: oracle::I18.to_string(), detail });
    }
    killed
}

/// The promises that a planted bug breaks within the first `seeds` seeds.
pub fn broken_by(bug: Bug, seeds: u64) -> BTreeSet<String> {
    let broken = (0..seeds).filter_map(|seed| run_compared(seed, Some(bug)).broken);
    broken.map(|broken| broken.promise).collect()
}

/// What will happen, to which life of the engine.
#[derive(Clone, Debug)]
enum Happening {
    /// A row reaches the disk.
    Commits(Arc<Row>),
    /// A planted bug: the outbox hears of it too early.
    Leaks(Arc<Row>),
    /// The outbox hears of it.
    Told(u64, Arc<Row>),
    Tick(u64),
    Loads {
        life: u64,
        channel: String,
        after: u64,
        limit: usize,
        which: Which,
    },
    /// The sink has taken the row, whoever is there to hear of it.
    Takes {
        channel: String,
        row: u64,
    },
    Answers {
        life: u64,
        channel: String,
        row: u64,
        attempt: u32,
        outcome: Outcome,
    },
    /// What waits to be written for this channel, up to this number.
    Keeps {
        life: u64,
        channel: String,
    },
    Crash(Duration),
    Starts,
    Changes(Change),
    Wishes(Wish),
    Reprints(String),
    Heal,
}

struct Sim {
    now: Monotonic,
    queue: BTreeMap<(Monotonic, u64), Happening>,
    sequence: u64,
    seed: u64,
    setup: Setup,
    bug: Option<Bug>,
    fate: Fate,
    outbox: Option<Outbox>,
    /// Number of the engine that lives, or will be started next.
    life: u64,
    oracle: Oracle,
    /// Luck of each sink, and of what the store does for it.
    sinks: BTreeMap<String, Luck>,
    stores: BTreeMap<String, Luck>,
    rows: Vec<Arc<Row>>,
    deliveries: BTreeMap<(String, u64), Delivery>,
    known: BTreeMap<String, u64>,
    /// What the channels are configured to be, and for which of it the refused rows were sent.
    prints: BTreeMap<String, u64>,
    kept_prints: BTreeMap<String, u64>,
    /// On the way to the disk, oldest first.
    unwritten: BTreeMap<String, Vec<Delivery>>,
    configured: BTreeSet<String>,
    armed: Option<(u64, Monotonic)>,
    /// Only for a planted bug: sends that wait for another channel's.
    waiting: Vec<Effect>,
    healed: bool,
    marks: BTreeSet<Mark>,
    steps: u64,
    sends: u64,
    hash: u64,
    trace: Trace,
    lines: Vec<String>,
}

impl Sim {
    fn new(seed: u64, setup: Setup, bug: Option<Bug>, fate: Fate, trace: Trace) -> Sim {
        let stream = |salt: u64| {
            let name = |index: usize| setup.sinks[index].name.clone();
            let luck = move |index: usize| Luck::new(Luck::new(seed ^ salt ^ ((index as u64) << 32)).draw());
            (0..setup.sinks.len()).map(|index| (name(index), luck(index))).collect()
        };
        let victim = match fate {
            Fate::AsDrawn => None,
            Fate::Kill(index) => setup.sinks.get(index).map(|sink| sink.name.clone()),
        };
        Sim {
            now: Monotonic::from_ns(1_000_000_000),
            queue: BTreeMap::new(),
            sequence: 0,
            seed,
            bug,
            fate,
            outbox: None,
            life: 0,
            oracle: Oracle::new(victim),
            sinks: stream(0x51),
            stores: stream(0xa7),
            rows: Vec::new(),
            deliveries: BTreeMap::new(),
            known: BTreeMap::new(),
            prints: setup.sinks.iter().map(|sink| (sink.name.clone(), 1)).collect(),
            kept_prints: BTreeMap::new(),
            unwritten: BTreeMap::new(),
            configured: setup.configured.clone(),
            setup,
            armed: None,
            waiting: Vec::new(),
            healed: false,
            marks: BTreeSet::new(),
            steps: 0,
            sends: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            trace,
            lines: Vec::new(),
        }
    }

    fn after(&mut self, wait: Duration, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now + wait, self.sequence), happening);
    }

    fn play(&mut self) -> Result<(), Broken> {
        self.oracle.sees_all = self.setup.window_rows >= 1_000;
        self.after(Duration::ZERO, Happening::Starts);
        for (at, row) in self.setup.rows.clone() {
            if self.bug == Some(Bug::SentUncommitted) {
                self.after(at.saturating_sub(Duration::from_millis(50)), Happening::Leaks(row.clone()));
            }
            self.after(at, Happening::Commits(row));
        }
        for (at, down) in self.setup.crashes.clone() {
            self.after(at, Happening::Crash(down));
        }
        for (at, change) in self.setup.changes.clone() {
            self.after(at, Happening::Changes(change));
        }
        for (at, wish) in self.setup.wishes.clone() {
            self.after(at, Happening::Wishes(wish));
        }
        for (at, name) in self.setup.reprints.clone() {
            self.after(at, Happening::Reprints(name));
        }
        self.after(self.setup.chaos, Happening::Heal);
        let end = self.now + self.setup.chaos + LIVENESS;
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            if at > end {
                break;
            }
            self.now = at;
            self.happen(happening)?;
        }
        self.now = end;
        self.oracle.at_end(&self.configured, &self.known, &self.rows, &self.deliveries, &self.prints)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        self.line(|| format!("  {happening:?}"));
        match happening {
            Happening::Commits(row) => self.commit_row(&row),
            Happening::Told(life, row) if life == self.life => {
                self.oracle.told_last = self.oracle.told_last.max(row.id);
                let row = self.bug.map_or_else(|| row.clone(), |bug| bug.row(&row));
                return self.step(Event::Committed { rows: vec![row] });
            }
            Happening::Leaks(row) => return self.step(Event::Committed { rows: vec![row] }),
            // A timer that was set later again has one tick: each passed over would arm one more.
            Happening::Tick(_) if self.armed.is_some_and(|(_, at)| at > self.now) => {}
            Happening::Tick(life) if life == self.life => {
                self.armed = None;
                return self.step(Event::Tick);
            }
            Happening::Loads { life, channel, after, limit, which } if life == self.life => {
                let event = self.load(channel, after, limit, which);
                return self.step(event);
            }
            Happening::Takes { channel, row } => {
                return self.oracle.takes(self.now, &channel, row, &self.rows, &self.deliveries);
            }
            Happening::Answers { life, channel, row, attempt, outcome } => {
                if life == self.life {
                    self.oracle.answers(self.now, &channel, row, attempt, &outcome);
                    let outcome = self.bug.map_or(outcome.clone(), |bug| bug.outcome(outcome));
                    self.step(Event::Answered { channel, row, attempt, outcome })?;
                    return self.release_waiting();
                }
            }
            Happening::Keeps { life, channel } if life == self.life => return self.write_one(&channel),
            Happening::Crash(down) => self.crash(down),
            Happening::Starts => return self.start(),
            Happening::Changes(change) => return self.change(change),
            Happening::Wishes(wish) => return self.wish(wish),
            Happening::Reprints(name) => {
                *self.prints.entry(name).or_insert(0) += 1;
                return self.tell_prints();
            }
            Happening::Heal => self.healed = true,
            Happening::Told(..) | Happening::Tick(_) | Happening::Loads { .. } | Happening::Keeps { .. } => {}
        }
        Ok(())
    }

    fn commit_row(&mut self, row: &Arc<Row>) {
        self.rows.push(row.clone());
        self.oracle.committed(self.now, row.id);
        // The store tells in order.
        let told = Duration::from_millis(3);
        if self.outbox.is_some() && !self.bug.is_some_and(|bug| bug.hides(row)) {
            self.after(told, Happening::Told(self.life, row.clone()));
        }
    }

    fn start(&mut self) -> Result<(), Broken> {
        let settings = Settings { seed: self.seed ^ self.life, window_rows: self.setup.window_rows };
        let last_row = self.rows.last().map_or(0, |row| row.id);
        self.oracle.told_last = last_row;
        self.outbox = Some(Outbox::new(settings, &self.known, last_row));
        self.tell_quiet()?;
        self.configure()
    }

    fn configure(&mut self) -> Result<(), Broken> {
        let names = match self.bug {
            Some(bug) => bug.configured(&self.configured, &self.known),
            None => self.configured.clone(),
        };
        self.oracle.configured(&self.configured, &self.known);
        let channels = names.into_iter().map(|name| {
            let sink = self.setup.sinks.iter().find(|sink| sink.name == name);
            let terms = Terms {
                takes: Takes::Named,
                gap: sink.map_or(Duration::ZERO, |sink| sink.gap),
                fold: sink.map_or(1, |sink| sink.fold),
            };
            (name, self.bug.map_or(terms, |bug| bug.terms(terms)))
        });
        let channels = channels.collect();
        self.step(Event::Configured { channels })?;
        self.tell_prints()
    }

    fn tell_prints(&mut self) -> Result<(), Broken> {
        if self.bug == Some(Bug::PrintUnheard) || self.outbox.is_none() {
            return Ok(());
        }
        let prints: BTreeMap<String, u64> = self
            .prints
            .iter()
            .filter(|(name, _)| self.configured.contains(*name))
            .map(|(name, print)| (name.clone(), *print))
            .collect();
        self.oracle.printed(&prints, &self.kept_prints);
        self.step(Event::Printed { prints, kept: self.kept_prints.clone() })
    }

    fn change(&mut self, change: Change) -> Result<(), Broken> {
        match change {
            Change::Add(name) => _ = self.configured.insert(name),
            Change::Remove(name) => _ = self.configured.remove(&name),
        }
        if self.outbox.is_some() { self.configure() } else { Ok(()) }
    }

    fn wish(&mut self, wish: Wish) -> Result<(), Broken> {
        self.oracle.wishes(self.now, wish);
        if self.outbox.is_some() { self.tell_quiet() } else { Ok(()) }
    }

    fn tell_quiet(&mut self) -> Result<(), Broken> {
        self.oracle.expire(self.now);
        let quiet = self.oracle.quiet.clone();
        let quiet = if self.bug == Some(Bug::MuteIgnored) { Quiet::default() } else { quiet };
        self.step(Event::Quieted { quiet })
    }

    /// kill -9: of what was not committed, some reached the disk, in order.
    fn crash(&mut self, down: Duration) {
        if self.outbox.take().is_none() || self.healed {
            return;
        }
        self.line(|| "  --- killed".to_string());
        self.life += 1;
        self.armed = None;
        self.waiting.clear();
        for (channel, unwritten) in std::mem::take(&mut self.unwritten) {
            let luck = self.stores.get_mut(&channel);
            let kept = luck.map_or(0, |luck| luck.below(unwritten.len() as u64 + 1));
            for delivery in unwritten.into_iter().take(usize::try_from(kept).unwrap_or(0)) {
                self.write(delivery);
            }
        }
        self.oracle.crash(self.now, &self.deliveries);
        if let Some(bug) = self.bug {
            bug.crashed(&mut self.known);
        }
        self.after(down, Happening::Starts);
    }

    fn load(&mut self, channel: String, after: u64, limit: usize, which: Which) -> Event {
        let fails = !self.healed && self.stores.get_mut(&channel).is_some_and(|luck| luck.chance(150));
        if fails {
            return Event::LoadFailed { channel };
        }
        let mut rows = Vec::new();
        for row in self.rows.iter().filter(|row| row.id > after) {
            let delivery = self.deliveries.get(&(channel.clone(), row.id));
            let is_wanted = |delivery: &Delivery| match delivery.state {
                DeliveryState::Pending => true,
                DeliveryState::Parked => which == Which::Refused && delivery.error.as_deref() != Some(GONE),
                DeliveryState::Delivered | DeliveryState::Muted => false,
            };
            if delivery.is_none_or(is_wanted) {
                let row = self.bug.map_or_else(|| row.clone(), |bug| bug.row(row));
                rows.push((row, delivery.map_or(0, |delivery| delivery.attempts)));
            }
        }
        let full = rows.len() >= limit;
        rows.truncate(limit);
        Event::Loaded { channel, rows, full }
    }

    fn write_one(&mut self, channel: &str) -> Result<(), Broken> {
        let Some(unwritten) = self.unwritten.get_mut(channel).filter(|list| !list.is_empty()) else {
            return Ok(());
        };
        let delivery = unwritten.remove(0);
        let (row, last) = (delivery.row, delivery.state != DeliveryState::Pending);
        self.oracle.writes(&delivery)?;
        if !self.bug.is_some_and(|bug| bug.loses(&delivery)) {
            self.write(delivery);
        }
        if last { self.step(Event::Kept { channel: channel.to_string(), row }) } else { Ok(()) }
    }

    fn write(&mut self, delivery: Delivery) {
        let place = self.deliveries.entry((delivery.channel.clone(), delivery.row));
        let stands = place.or_insert_with(|| delivery.clone());
        let again = matches!(delivery.state, DeliveryState::Delivered | DeliveryState::Muted);
        let revived = stands.state == DeliveryState::Parked && again;
        if stands.state == DeliveryState::Pending || revived {
            *stands = delivery;
        }
    }

    fn step(&mut self, event: Event) -> Result<(), Broken> {
        let now = self.bug.map_or(self.now, |bug| bug.clock(self.now, &event));
        let Some(outbox) = &mut self.outbox else { return Ok(()) };
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(Broken {
                promise: oracle::I45.to_string(),
                detail: "it runs in a circle".to_string(),
            });
        }
        let mut fx = Effects::default();
        outbox.step(now, event, &mut fx);
        let effects: Vec<Effect> = fx.drain().collect();
        self.marks.extend(fx.drain_marks());
        let due = outbox.next_deadline();
        for effect in self.bug.map_or(effects.clone(), |bug| bug.effects(effects)) {
            self.perform(effect)?;
        }
        if let Some(at) = due
            && self.armed != Some((self.life, at))
            && self.bug != Some(Bug::NoTick)
        {
            self.armed = Some((self.life, at));
            self.after(at.since(self.now), Happening::Tick(self.life));
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) -> Result<(), Broken> {
        let text = format!("{effect:?}");
        self.hash = text.bytes().fold(self.hash ^ self.now.as_ns(), |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
        self.line(|| format!("    -> {text}"));
        match effect {
            Effect::Load { channel, after, limit, which } => {
                let wait = self.store_wait(&channel);
                let life = self.life;
                self.after(wait, Happening::Loads { life, channel, after, limit, which });
            }
            Effect::Send { channel, row, others, attempt, .. } if self.is_held_up(&channel) => {
                let before = crate::engine::outbox::Before::Maybe;
                self.waiting.push(Effect::Send { channel, row, others, attempt, before });
            }
            Effect::Send { channel, row, others, attempt, .. } => {
                self.sends += 1;
                let message: Vec<Arc<Row>> = std::iter::once(row).chain(others).collect();
                let sink = self.setup.sinks.iter().find(|sink| sink.name == channel);
                let terms = sink.map_or((Duration::ZERO, 1), |sink| (sink.gap, sink.fold));
                let print = self.prints.get(&channel).copied().unwrap_or(0);
                self.oracle.sends_message(self.now, &channel, &message, (attempt, print), terms)?;
                for row in &message {
                    self.oracle.sends(self.now, &channel, row, attempt, &self.rows, &self.deliveries)?;
                }
                let ids: Vec<u64> = message.iter().map(|row| row.id).collect();
                self.send(channel, &ids, attempt);
            }
            Effect::Abandon { channel, row, .. } => {
                self.oracle.abandons(self.now, &channel, row);
                return self.release_waiting();
            }
            Effect::Keep { delivery, .. } => {
                self.oracle.keeps(&delivery)?;
                let wait = self.store_wait(&delivery.channel);
                let (life, channel) = (self.life, delivery.channel.clone());
                self.unwritten.entry(channel.clone()).or_default().push(delivery);
                self.after(wait, Happening::Keeps { life, channel });
            }
            // Submitted before any later alert, so that no alert can be there without it.
            Effect::SaveChannels(known) => {
                self.known = self.bug.map_or(known.clone(), |bug| bug.known(known))
            }
            Effect::SavePrint { channel, print } => _ = self.kept_prints.insert(channel, print),
            Effect::Overdue { .. } if self.bug == Some(Bug::OverdueUnsaid) => {}
            Effect::Overdue { channel, row } => self.oracle.overdue(self.now, &channel, &row)?,
            Effect::InTime { channel } => self.oracle.in_time(&channel)?,
        }
        Ok(())
    }

    fn store_wait(&mut self, channel: &str) -> Duration {
        let most = if self.healed { 5 } else { self.setup.commit_ms_max };
        Duration::from_millis(self.stores.get_mut(channel).map_or(0, |luck| luck.below(most + 1)))
    }

    fn is_held_up(&self, channel: &str) -> bool {
        self.bug == Some(Bug::OneForAll) && self.oracle.is_busy_beside(channel)
    }

    fn release_waiting(&mut self) -> Result<(), Broken> {
        std::mem::take(&mut self.waiting).into_iter().try_for_each(|effect| self.perform(effect))
    }

    /// What the sink makes of a send: drawn from its own luck, whatever the others do.
    fn send(&mut self, channel: String, rows: &[u64], attempt: u32) {
        let Some(index) = self.setup.sinks.iter().position(|sink| sink.name == channel) else { return };
        let Some(luck) = self.sinks.get_mut(&channel) else { return };
        let sink = &self.setup.sinks[index];
        let mut answer = sink.answer(luck, self.now, rows, self.healed);
        if self.fate == Fate::Kill(index) {
            answer = setup::Answer { takes: None, says: None };
        }
        for row in rows.iter().filter(|_| answer.takes.is_some()) {
            let wait = answer.takes.unwrap_or_default();
            self.after(wait, Happening::Takes { channel: channel.clone(), row: *row });
        }
        self.oracle.will_answer(&channel, rows, &answer);
        if let (Some((wait, outcome)), Some(row)) = (answer.says, rows.first()) {
            self.after(wait, Happening::Answers { life: self.life, channel, row: *row, attempt, outcome });
        }
    }

    fn line(&mut self, text: impl FnOnce() -> String) {
        if self.trace == Trace::On {
            self.lines.push(format!("{:10.3} s {}", self.now.as_ns() as f64 / 1e9, text()));
        }
    }
}
