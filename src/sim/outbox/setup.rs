//! The world of a seed: which sinks with which faults, which alerts when, crashes, and changes
//! of what is configured.
//!
//! Refuses: anything that is drawn while the world runs, but for each sink's own answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::base::luck::Luck;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::effect::{Alert, AlertKind};
use crate::engine::outbox::{Outcome, Row, SEND_TIMEOUT};

#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub sinks: Vec<Sink>,
    /// In force at the start.
    pub configured: BTreeSet<String>,
    pub changes: Vec<(Duration, Change)>,
    /// What people ask not to be told of.
    pub wishes: Vec<(Duration, Wish)>,
    /// When which channel is configured otherwise.
    pub reprints: Vec<(Duration, String)>,
    pub rows: Vec<(Duration, Arc<Row>)>,
    /// When the engine is killed, and how long until the next one starts.
    pub crashes: Vec<(Duration, Duration)>,
    pub window_rows: usize,
    pub commit_ms_max: u64,
    pub chaos: Duration,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Add(String),
    Remove(String),
}

/// What somebody asks for who is told too much.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    /// No unit = all; None = no longer.
    Mute(Vec<UnitName>, Option<Duration>),
    Ack(UnitName),
}

/// A sink and its faults, per mille of its answers.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    pub name: String,
    pub gap: Duration,
    pub fold: usize,
    seed: u64,
    nack: u64,
    retry_after: u64,
    refuse: u64,
    hang: u64,
    /// It takes the row and its answer is lost: a broken connection, or nothing at all.
    lose_ack: u64,
    /// It takes the row and answers after the send was given up.
    late: u64,
    /// Rows that it cannot digest until it is healed.
    poison: u64,
    slow_ms_max: u64,
    /// Answers nothing well in these times.
    down: Vec<(Monotonic, Monotonic)>,
}

/// What a sink does with one send.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// When it has the row.
    pub takes: Option<Duration>,
    pub says: Option<(Duration, Outcome)>,
}

impl Sink {
    pub fn answer(&self, luck: &mut Luck, now: Monotonic, rows: &[u64], healed: bool) -> Answer {
        // Always as many draws, so that one answer does not shift the next.
        let (dice, ms, other) = (luck.below(1_000), luck.draw(), luck.draw());
        if healed {
            let wait = Duration::from_millis(ms % 50);
            return Answer { takes: Some(wait), says: Some((wait, Outcome::Acked)) };
        }
        let wait = Duration::from_millis(ms % (self.slow_ms_max + 1));
        let failed = |retry_after| Outcome::Failed { why: "503".into(), retry_after };
        let is_poison =
            |row: &u64| Luck::new(self.seed ^ row.wrapping_mul(0x9e37_79b9)).below(1_000) < self.poison;
        if rows.iter().any(is_poison) || self.down.iter().any(|(from, to)| (*from..*to).contains(&now)) {
            let says = (other % 3 > 0).then(|| (wait, failed(None)));
            return Answer { takes: None, says };
        }
        let asked = Duration::from_secs(other % 120 + 1);
        let mut bound = 0;
        let mut falls = |per_mille: u64| {
            bound += per_mille;
            dice < bound
        };
        if falls(self.nack) {
            Answer { takes: None, says: Some((wait, failed(None))) }
        } else if falls(self.retry_after) {
            Answer { takes: None, says: Some((wait, failed(Some(asked)))) }
        } else if falls(self.refuse) {
            // Slowly at times, so that some refusals speak of a configuration that was changed meanwhile.
            let wait =
                if other.is_multiple_of(3) { wait + Duration::from_millis(other % 9_000) } else { wait };
            Answer { takes: None, says: Some((wait, Outcome::Refused { why: "400".into() })) }
        } else if falls(self.hang) {
            Answer { takes: None, says: None }
        } else if falls(self.lose_ack) {
            let says = (other % 2 > 0).then(|| (wait, failed(None)));
            Answer { takes: Some(wait), says }
        } else if falls(self.late) {
            let wait = SEND_TIMEOUT + Duration::from_millis(1 + other % 20_000);
            Answer { takes: Some(wait), says: Some((wait, Outcome::Acked)) }
        } else {
            Answer { takes: Some(wait), says: Some((wait, Outcome::Acked)) }
        }
    }
}

pub(super) fn draw(seed: u64) -> Setup {
    let mut luck = Luck::new(seed ^ 0x00a1_e27b_0c5d_93f1);
    let chaos = Duration::from_secs(pick(&mut luck, &[120, 600, 1_800]));
    let within = |luck: &mut Luck| Duration::from_millis(luck.below(chaos.as_millis() as u64));
    let count = 2 + luck.below(3);
    let sinks: Vec<Sink> = (0..count).map(|index| sink(&mut luck, index, chaos)).collect();
    let mut configured: BTreeSet<String> = sinks.iter().map(|sink| sink.name.clone()).collect();
    let mut changes = Vec::new();
    for _ in 0..pick(&mut luck, &[0, 0, 2, 6]) {
        let name = sinks[luck.below(count) as usize].name.clone();
        let at = within(&mut luck);
        // Gone for a moment or for long; now and then it never comes back.
        let back = at + Duration::from_millis(pick(&mut luck, &[20, 500, 20_000, 300_000]));
        changes.push((at, Change::Remove(name.clone())));
        if back < chaos && luck.chance(800) {
            changes.push((back, Change::Add(name)));
        }
    }
    if luck.chance(400)
        && let Some(last) = sinks.last()
    {
        configured.remove(&last.name);
        changes.push((within(&mut luck), Change::Add(last.name.clone())));
    }
    changes.sort_by_key(|(at, _)| *at);
    let mut times: Vec<Duration> =
        (0..pick(&mut luck, &[5, 20, 60, 120])).map(|_| within(&mut luck)).collect();
    times.sort();
    let rows = times.into_iter().zip(1..).map(|(at, id)| (at, row(&mut luck, id, &sinks))).collect();
    let mut crashes: Vec<(Duration, Duration)> = Vec::new();
    for _ in 0..pick(&mut luck, &[0, 0, 2, 8]) {
        let at = within(&mut luck);
        crashes.push((at, Duration::from_millis(pick(&mut luck, &[10, 100, 5_000]))));
    }
    crashes.sort();
    let window_rows = pick(&mut luck, &[2, 5, 1_000]) as usize;
    let commit_ms_max = pick(&mut luck, &[1, 50, 3_000]);
    let wishes = wishes(seed, chaos);
    let mut setup = Setup {
        sinks,
        configured,
        changes,
        wishes,
        reprints: Vec::new(),
        rows,
        crashes,
        window_rows,
        commit_ms_max,
        chaos,
    };
    draw_terms(&mut setup, &mut Luck::new(seed ^ 0x7e12_5a0c_93b4_11d7));
    setup
}

/// Of a luck of its own: what was drawn before there were terms stays as it was.
fn draw_terms(setup: &mut Setup, luck: &mut Luck) {
    for sink in &mut setup.sinks {
        sink.gap = Duration::from_millis(pick(luck, &[0, 0, 1_000, 2_000]));
        sink.fold = pick(luck, &[1, 1, 4, 16]) as usize;
    }
    for _ in 0..pick(luck, &[0, 0, 1, 4]) {
        let at = Duration::from_millis(luck.below(setup.chaos.as_millis() as u64));
        let name = setup.sinks[luck.below(setup.sinks.len() as u64) as usize].name.clone();
        setup.reprints.push((at, name));
    }
    setup.reprints.sort();
}

/// Every mute ends within the chaos. Luck of its own: worlds without a wish are as they were.
fn wishes(seed: u64, chaos: Duration) -> Vec<(Duration, Wish)> {
    let mut luck = Luck::new(seed ^ 0x6d75_7465);
    let mut wishes = Vec::new();
    for _ in 0..pick(&mut luck, &[0, 0, 1, 4]) {
        let at = Duration::from_millis(luck.below(chaos.as_millis() as u64));
        let unit = unit_named(luck.below(3));
        let units = if luck.chance(300) { Vec::new() } else { unit.clone().into_iter().collect() };
        let most_ms = chaos.saturating_sub(at).as_millis() as u64;
        let wish = match (luck.below(10), unit) {
            (0, Some(unit)) => Wish::Ack(unit),
            (1, _) => Wish::Mute(units, None),
            _ => Wish::Mute(units, Some(Duration::from_millis(luck.below(most_ms + 1)))),
        };
        wishes.push((at, wish));
    }
    wishes.sort_by_key(|(at, _)| *at);
    wishes
}

fn unit_named(number: u64) -> Option<UnitName> {
    UnitName::parse(&format!("u{number}")).ok()
}

fn pick(luck: &mut Luck, options: &[u64]) -> u64 {
    options[luck.below(options.len() as u64) as usize]
}

fn sink(luck: &mut Luck, index: u64, chaos: Duration) -> Sink {
    let mut down = Vec::new();
    for _ in 0..pick(luck, &[0, 0, 1, 4]) {
        let from = Monotonic::ZERO + Duration::from_millis(luck.below(chaos.as_millis() as u64));
        down.push((from, from + Duration::from_secs(pick(luck, &[5, 60, 900]))));
    }
    let mut rate = |options: &[u64]| pick(luck, options);
    Sink {
        name: format!("s{index}"),
        nack: rate(&[0, 0, 100, 500]),
        retry_after: rate(&[0, 0, 50, 200]),
        refuse: rate(&[0, 0, 50]),
        hang: rate(&[0, 0, 50]),
        lose_ack: rate(&[0, 0, 50, 200]),
        late: rate(&[0, 0, 50]),
        poison: rate(&[0, 0, 30, 100]),
        slow_ms_max: rate(&[0, 20, 2_000, 10_000]),
        gap: Duration::ZERO,
        fold: 1,
        seed: luck.draw(),
        down,
    }
}

fn row(luck: &mut Luck, id: u64, sinks: &[Sink]) -> Arc<Row> {
    let unit = luck.below(4).checked_sub(1).and_then(unit_named);
    let channels = match luck.below(10) {
        0 => Some(Vec::new()),
        1 | 2 => Some(vec![sinks[luck.below(sinks.len() as u64) as usize].name.clone()]),
        _ => None,
    };
    let who = unit.as_ref().map_or("upright", UnitName::as_str);
    let alert = Alert {
        key: format!("{who}/1/failing/{id}"),
        unit: unit.clone(),
        kind: AlertKind::Failing,
        message: "it failed".into(),
        failures: 4,
        episode: 1,
        affected: Vec::new(),
        channels,
    };
    Arc::new(Row { id, ts_us: 0, alert })
}
