//! The alert outbox: which alert goes to which channel, when, and when again. A state machine
//! of its own beside the engine: an event in, effects out, deadlines in the state.
//!
//! Each channel is on its own: what one does never moves another. One send at a time a channel,
//! in row order; after a failure the channel waits, and the same row is the next. A row that
//! failed `STEP_ASIDE_AFTER` times steps aside, so that one which a sink can never digest holds
//! up its own unit only. Nothing is told as delivered before the sink has acknowledged it *and*
//! that is on the disk; killed in between, the same row is sent again with the same id.
//!
//! A channel may be paced (so long between two sends), and may fold: what waited meanwhile goes as one
//! message that names every id. A message of many that is refused, or that failed `FOLD_TRIES` times,
//! is taken apart, so that one row which a sink cannot digest does not take others along.
//!
//! What was refused is sent again when the channel's configuration is another one (`Event::Printed`).
//!
//! Refuses: sending, the time of day, and what a message says.

mod channel;
mod quiet;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::base::time::Monotonic;
use crate::engine::effect::{Alert, AlertKind};
use crate::engine::outbox::channel::{Channel, Presence, Reading};
pub use crate::engine::outbox::quiet::{ACKNOWLEDGED, MUTED, Quiet};

/// A send without an answer is given up after this: an attempt of `alert::send` has 10 s, and
/// what it says about the alert is gathered before that. Sinks answer within a second; a TCP
/// connection to a host that is gone takes minutes to say so.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(12);

/// The wait after the first failed send; it doubles with each further one.
pub const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The longest wait between two sends (reliability G1: 1 s to 5 min, for ever).
pub const RETRY_MAX: Duration = Duration::from_secs(300);

/// At most so much is added to each wait by luck, in percent: many daemons that lost the same
/// sink do not come back in the same second.
pub const JITTER_PERCENT: u64 = 20;

/// `Retry-After` is honoured up to this: a sink that says "next year" is asked before.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

/// After so many failed sends (about four minutes) rows of other units may pass a row.
pub const STEP_ASIDE_AFTER: u32 = 8;

/// After so many failed sends (two minutes) a row goes alone: it may be what the sink cannot digest. Fewer
/// would take messages apart after any short outage, and a sink that bears one a second is then slow for long.
pub const FOLD_TRIES: u32 = 7;

/// A row that waits longer than this is worth a word: somebody believes that alerts arrive.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(15 * 60);

/// Between two tries to read waiting rows from a store that cannot be asked.
pub const LOAD_RETRY: Duration = Duration::from_secs(1);

/// Most rows of one channel in memory (a few MB); the rest waits in the store.
pub const WINDOW_ROWS: usize = 10_000;

/// What is said of a row whose channel was taken out of `upright.toml`.
pub const GONE: &str = "channel is gone";

/// An alert as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Grows; deliveries follow this order.
    pub id: u64,
    /// Wall time of the step that raised it, microseconds since 1970.
    pub ts_us: i64,
    pub alert: Alert,
}

/// Which alerts a channel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Those of units that name it in `[alert] channels`, and of units that name none.
    Named,
    /// All but those of units with `channels = []`: the channel that stands in where
    /// `upright.toml` has none, which nobody can have named.
    Everything,
}

impl Takes {
    pub fn takes(self, channel: &str, alert: &Alert) -> bool {
        match (&alert.channels, self) {
            (None, Takes::Named | Takes::Everything) => true,
            (Some(names), Takes::Named) => names.iter().any(|name| name == channel),
            (Some(names), Takes::Everything) => !names.is_empty(),
        }
    }
}

/// What holds for a channel, whatever is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub takes: Takes,
    /// Least time between two sends: what the sink bears.
    pub gap: Duration,
    /// Most rows in one message; at least 1.
    pub fold: usize,
}

impl Terms {
    /// Each row by itself, as fast as the sink answers.
    pub fn plain(takes: Takes) -> Terms {
        Terms { takes, gap: Duration::ZERO, fold: 1 }
    }
}

/// How far an alert is with a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeliveryState {
    Pending,
    /// Acknowledged.
    Delivered,
    /// Refused for good, or its channel is gone: not tried again.
    Parked,
    /// People asked not to be told.
    Muted,
}

impl DeliveryState {
    pub const ALL: [DeliveryState; 4] =
        [DeliveryState::Pending, DeliveryState::Delivered, DeliveryState::Parked, DeliveryState::Muted];

    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryState::Pending => "pending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Parked => "parked",
            DeliveryState::Muted => "muted",
        }
    }
}

/// One alert with one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// `Row::id`
    pub row: u64,
    pub channel: String,
    pub state: DeliveryState,
    /// Sends so far.
    pub attempts: u32,
    /// What the last send was told, when it failed; why it is parked.
    pub error: Option<String>,
}

/// How a send ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Acked,
    /// It may work later. `retry_after`: what the sink asked for.
    Failed {
        why: String,
        retry_after: Option<Duration>,
    },
    /// It will never work (HTTP 4xx, a path that is no file).
    Refused {
        why: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A deadline may have passed. Ticking early is harmless.
    Tick,
    /// The channels that are in force from now on.
    Configured { channels: BTreeMap<String, Terms> },
    /// Fingerprints of what the channels are configured to be, files included, and those that
    /// `Effect::SavePrint` kept. Where they differ, what was refused is sent again.
    Printed { prints: BTreeMap<String, u64>, kept: BTreeMap<String, u64> },
    /// These alerts are on the disk; in row order.
    Committed { rows: Vec<Arc<Row>> },
    /// The answer to `Effect::Load`: rows that are neither delivered nor parked, in row order,
    /// each with its sends so far. `full`: as many as were asked for, there may be more.
    Loaded { channel: String, rows: Vec<(Arc<Row>, u32)>, full: bool },
    /// The store cannot be asked now.
    LoadFailed { channel: String },
    /// The answer to `Effect::Send`.
    Answered { channel: String, row: u64, attempt: u32, outcome: Outcome },
    /// What is not to be told now; replaces what was said before.
    Quieted { quiet: Quiet },
    /// A final `Effect::Keep` is on the disk.
    Kept { channel: String, row: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read at most `limit` unsettled rows of this channel above `after`.
    /// Answer: `Loaded` or `LoadFailed`.
    Load { channel: String, after: u64, limit: usize, which: Which },
    /// One message about `row`, which tells `others` too. Answer: `Answered`, within `SEND_TIMEOUT`.
    Send { channel: String, row: Arc<Row>, others: Vec<Arc<Row>>, attempt: u32, before: Before },
    /// Nobody waits for the answer to this send any more. One that comes all the same and is an
    /// acknowledgement still counts.
    Abandon { channel: String, row: u64, attempt: u32 },
    /// Keep this; it replaces what stood there. Answer when it is final: `Kept`.
    Keep { row: Arc<Row>, delivery: Delivery },
    /// Keep which channels there are, each with the last row that is not for it.
    SaveChannels(BTreeMap<String, u64>),
    /// Everything that was refused before has been sent again: keep the fingerprint that it was for.
    SavePrint { channel: String, print: u64 },
    /// This row has waited for `OVERDUE_AFTER`, and is the first of its channel.
    Overdue { channel: String, row: Arc<Row> },
    /// Nothing waits that long any more.
    InTime { channel: String },
}

/// Which rows `Effect::Load` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Neither delivered nor parked.
    Open,
    /// Those, and what the sink refused; not what was parked because its channel was gone.
    Refused,
}

/// Whether the sink may have this row already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    Never,
    /// An earlier send was not answered, or an engine died that may have sent it.
    Maybe,
}

/// What one step asks for, and which situations it met.
#[derive(Debug, Default)]
pub struct Effects {
    list: Vec<Effect>,
    marks: Vec<Mark>,
}

impl Effects {
    fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    fn mark(&mut self, mark: Mark) {
        self.marks.push(mark);
    }

    /// In the order in which they must be performed.
    pub fn drain(&mut self) -> impl Iterator<Item = Effect> + '_ {
        self.list.drain(..)
    }

    pub fn drain_marks(&mut self) -> impl Iterator<Item = Mark> + '_ {
        self.marks.drain(..)
    }
}

macro_rules! marks {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A situation worth knowing that a test has met.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mark { $($(#[$doc])* $name,)* }

        impl Mark {
            pub const ALL: &'static [Mark] = &[$(Mark::$name,)*];
        }
    };
}

marks! {
    Delivered,
    Failed,
    Refused,
    TimedOut,
    RetryAfter,
    SteppedAside,
    /// An acknowledgement of a send that was given up, or of a channel that is leaving.
    LateAck,
    LateAnswerIgnored,
    ChannelAdded,
    ChannelGone,
    /// It came back before everything of it was parked.
    ChannelBack,
    /// No channel takes this alert.
    NoChannel,
    /// More rows wait than the window takes.
    WindowFull,
    LoadFailed,
    /// A row that an earlier engine left.
    TakenUp,
    /// A mute ended, and older rows of a unit gave way to its newest.
    MuteEnded,
    /// A repeated failure of an episode that somebody has taken.
    Acknowledged,
    /// It was not yet time for the next send.
    Paced,
    Folded,
    /// A message of many was refused: each of them goes alone.
    TakenApart,
    /// What was refused is sent again.
    Revived,
    /// It was refused by a configuration that is no more.
    RefusedByFormer,
    Overdue,
    InTime,
}

/// What is the same for all channels.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Of the jitter's luck.
    pub seed: u64,
    /// Most rows of a channel in memory; at least 1. In service `WINDOW_ROWS`.
    pub window_rows: usize,
}

/// All channels, each with what waits for it.
#[derive(Debug)]
pub struct Outbox {
    settings: Settings,
    channels: BTreeMap<String, Channel>,
    /// The newest row there is.
    last_row: u64,
    quiet: Quiet,
}

impl Outbox {
    /// `known`: what `Effect::SaveChannels` last kept. `last_row`: the newest alert of the store,
    /// 0 when there is none. Nothing happens before the first event.
    pub fn new(settings: Settings, known: &BTreeMap<String, u64>, last_row: u64) -> Outbox {
        let channel = |(name, since): (&String, &u64)| {
            let reading = Reading::Behind { after: *since, at: Monotonic::ZERO };
            (name.clone(), Channel::new(name, Terms::plain(Takes::Named), *since, reading, settings.seed))
        };
        Outbox { settings, channels: known.iter().map(channel).collect(), last_row, quiet: Quiet::default() }
    }

    /// Takes one event; says in order what must be done. Never blocks, never fails.
    pub fn step(&mut self, now: Monotonic, event: Event, fx: &mut Effects) {
        let was = self.quiet.clone();
        match event {
            Event::Tick => {}
            Event::Quieted { quiet } => self.quiet = quiet,
            Event::Configured { channels } => self.on_configured(&channels, fx),
            Event::Printed { prints, kept } => {
                for (name, print) in prints {
                    if let Some(channel) = self.channels.get_mut(&name) {
                        channel.on_printed(print, kept.get(&name).copied(), fx);
                    }
                }
            }
            Event::Committed { rows } => rows.iter().for_each(|row| self.on_committed(now, row, fx)),
            Event::Loaded { channel, rows, full } => {
                if let Some(channel) = self.channels.get_mut(&channel) {
                    channel.on_loaded(now, rows, full, &self.quiet, fx);
                }
            }
            Event::LoadFailed { channel } => {
                if let Some(channel) = self.channels.get_mut(&channel) {
                    channel.on_load_failed(now, fx);
                }
            }
            Event::Answered { channel, row, attempt, outcome } => match self.channels.get_mut(&channel) {
                Some(channel) => channel.on_answered(now, row, attempt, outcome, fx),
                None => fx.mark(Mark::LateAnswerIgnored),
            },
            Event::Kept { channel, row } => {
                if let Some(channel) = self.channels.get_mut(&channel) {
                    channel.on_kept(row);
                }
            }
        }
        self.quiet.expire(now);
        for channel in self.channels.values_mut() {
            if self.quiet != was {
                channel.on_quieted(now, &was, &self.quiet, fx);
            }
            channel.advance(now, self.settings.window_rows.max(1), &self.quiet, fx);
        }
        let before = self.channels.len();
        self.channels.retain(|_, channel| !channel.has_left());
        if self.channels.len() != before {
            self.save_channels(fx);
        }
    }

    /// When to tick at the latest.
    pub fn next_deadline(&self) -> Option<Monotonic> {
        let window = self.settings.window_rows.max(1);
        let channels =
            self.channels.values().filter_map(|channel| channel.next_deadline(window, &self.quiet));
        channels.chain(self.quiet.next_end()).min()
    }

    /// Each channel with the last row that is not for it, and what it takes: what an alert
    /// without a delivery is to be shown as.
    pub fn channels(&self) -> impl Iterator<Item = (&str, u64, Takes)> {
        self.channels.iter().filter_map(|(name, channel)| match channel.presence {
            Presence::Here => Some((name.as_str(), channel.since, channel.terms.takes)),
            Presence::Leaving { .. } => None,
        })
    }

    fn save_channels(&self, fx: &mut Effects) {
        let known = self.channels.iter().map(|(name, channel)| (name.clone(), channel.since));
        fx.push(Effect::SaveChannels(known.collect()));
    }

    /// A new channel gets what is raised from now on; one that is gone has its rows parked.
    fn on_configured(&mut self, channels: &BTreeMap<String, Terms>, fx: &mut Effects) {
        let last_row = self.last_row;
        let before = self.channels.len();
        for (name, terms) in channels {
            if let Some(known) = self.channels.get_mut(name) {
                known.terms = *terms;
                if known.presence != Presence::Here {
                    known.come_back(fx);
                }
                continue;
            }
            fx.mark(Mark::ChannelAdded);
            let reading = Reading::Current { after: last_row };
            let channel = Channel::new(name, *terms, last_row, reading, self.settings.seed);
            self.channels.insert(name.clone(), channel);
        }
        for (name, channel) in &mut self.channels {
            if !channels.contains_key(name) && channel.presence == Presence::Here {
                fx.mark(Mark::ChannelGone);
                channel.leave(last_row);
            }
        }
        if self.channels.len() != before {
            self.save_channels(fx);
        }
    }

    fn on_committed(&mut self, now: Monotonic, row: &Arc<Row>, fx: &mut Effects) {
        self.last_row = self.last_row.max(row.id);
        let window = self.settings.window_rows.max(1);
        let mut taken = false;
        for channel in self.channels.values_mut().filter(|channel| channel.presence == Presence::Here) {
            taken |= channel.on_committed(now, row, window, &self.quiet, fx);
        }
        if !taken {
            fx.mark(Mark::NoChannel);
        }
    }
}

/// The page that has a heading for each kind of alert (`tests/house.rs` compares).
pub const RUNBOOK: &str = "docs/operations/runbook.md";

/// Where a person reads what to do about it, from the root of the documentation.
pub fn runbook(kind: AlertKind) -> String {
    format!("{RUNBOOK}#{}", kind.as_str())
}

/// How much an alert matters, in the words that receivers sort by.
pub fn severity(kind: AlertKind) -> &'static str {
    match kind {
        AlertKind::Failing
        | AlertKind::GaveUp
        | AlertKind::Stuck
        | AlertKind::ResyncFailed
        | AlertKind::Quarantined
        | AlertKind::SafeMode => "critical",
        AlertKind::EngineRestarted | AlertKind::ConfigError => "warning",
        AlertKind::Recovered | AlertKind::ConfigMended | AlertKind::Test => "info",
    }
}
