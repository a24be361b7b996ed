//! Planted bugs: what a broken outbox or dispatcher would do, done to a sound one from outside.
//!
//! Refuses: living in shipped code. The outbox knows nothing of these.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::outbox::{Delivery, DeliveryState, Effect, Event, MUTED, Outcome, Row, Terms};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Told as delivered when it is sent.
    MarkedEarly,
    /// The row of a delivery never reaches the disk.
    NotKept,
    AckIgnored,
    SentTwice,
    /// The id has the number of the send in it.
    IdOfEachSend,
    /// Units share no order: every row may pass every other.
    LanesLost,
    /// A send waits for those of other channels.
    OneForAll,
    NoTick,
    EarlyTick,
    RetryAfterIgnored,
    RefusalRetried,
    FailureParked,
    /// The sink is asked before the row is on the disk.
    SentUncommitted,
    OldRowsToNewChannels,
    GoneForgotten,
    FilterIgnored,
    /// Some commits are never told.
    NewsLost,
    /// Which channels there were is forgotten with the engine.
    ChannelsForgotten,
    MuteIgnored,
    /// What a mute held back is never told.
    MutedForEver,
    GapIgnored,
    /// More in a message than the sink takes.
    FoldsTooMuch,
    /// Nobody tells that a channel is configured otherwise.
    PrintUnheard,
    OverdueUnsaid,
}

impl Bug {
    pub const ALL: [Bug; 24] = [
        Bug::MarkedEarly,
        Bug::NotKept,
        Bug::AckIgnored,
        Bug::SentTwice,
        Bug::IdOfEachSend,
        Bug::LanesLost,
        Bug::OneForAll,
        Bug::NoTick,
        Bug::EarlyTick,
        Bug::RetryAfterIgnored,
        Bug::RefusalRetried,
        Bug::FailureParked,
        Bug::SentUncommitted,
        Bug::OldRowsToNewChannels,
        Bug::GoneForgotten,
        Bug::FilterIgnored,
        Bug::NewsLost,
        Bug::ChannelsForgotten,
        Bug::MuteIgnored,
        Bug::MutedForEver,
        Bug::GapIgnored,
        Bug::FoldsTooMuch,
        Bug::PrintUnheard,
        Bug::OverdueUnsaid,
    ];

    /// The row as a broken outbox would see it.
    pub(super) fn row(self, row: &Arc<Row>) -> Arc<Row> {
        let mut broken = Row::clone(row);
        match self {
            Bug::LanesLost => broken.alert.unit = UnitName::parse(&format!("r{}", row.id)).ok(),
            Bug::FilterIgnored => broken.alert.channels = None,
            _other_bugs_leave_it => return row.clone(),
        }
        Arc::new(broken)
    }

    pub(super) fn terms(self, terms: Terms) -> Terms {
        match self {
            Bug::GapIgnored => Terms { gap: Duration::ZERO, ..terms },
            Bug::FoldsTooMuch => Terms { fold: terms.fold + 1, ..terms },
            _other_bugs_leave_it => terms,
        }
    }

    pub(super) fn hides(self, row: &Row) -> bool {
        self == Bug::NewsLost && row.id.is_multiple_of(5)
    }

    pub(super) fn outcome(self, outcome: Outcome) -> Outcome {
        let failed = |why: &str| Outcome::Failed { why: why.to_string(), retry_after: None };
        match (self, outcome) {
            (Bug::AckIgnored, Outcome::Acked) => failed("ack ignored"),
            (Bug::RetryAfterIgnored, Outcome::Failed { why, .. }) => failed(&why),
            (Bug::RefusalRetried, Outcome::Refused { why }) => failed(&why),
            (Bug::FailureParked, Outcome::Failed { why, .. }) => Outcome::Refused { why },
            (_, outcome) => outcome,
        }
    }

    pub(super) fn clock(self, now: Monotonic, event: &Event) -> Monotonic {
        let tick = matches!(event, Event::Tick);
        if self == Bug::EarlyTick && tick { now + Duration::from_secs(2) } else { now }
    }

    pub(super) fn loses(self, delivery: &Delivery) -> bool {
        self == Bug::NotKept && delivery.state == DeliveryState::Delivered
    }

    pub(super) fn configured(
        self,
        names: &BTreeSet<String>,
        known: &BTreeMap<String, u64>,
    ) -> BTreeSet<String> {
        let gone = known.keys().filter(|_| self == Bug::GoneForgotten);
        names.iter().chain(gone).cloned().collect()
    }

    pub(super) fn known(self, mut known: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        if self == Bug::OldRowsToNewChannels {
            known.values_mut().for_each(|since| *since = 0);
        }
        known
    }

    pub(super) fn crashed(self, known: &mut BTreeMap<String, u64>) {
        if self == Bug::ChannelsForgotten {
            known.clear();
        }
    }

    /// What the dispatcher performs of a step.
    pub(super) fn effects(self, effects: Vec<Effect>) -> Vec<Effect> {
        let mut out = Vec::new();
        let mute_ended = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Keep { delivery, .. } if is_muted(delivery)));
        for mut effect in effects {
            if let Effect::Send { channel, row, attempt, .. } = &mut effect {
                match self {
                    Bug::MarkedEarly => out.push(Effect::Keep {
                        row: row.clone(),
                        delivery: Delivery {
                            row: row.id,
                            channel: channel.clone(),
                            state: DeliveryState::Delivered,
                            attempts: *attempt,
                            error: None,
                        },
                    }),
                    Bug::SentTwice => out.push(effect.clone()),
                    Bug::MutedForEver if mute_ended => {
                        effect = muted(row, channel, *attempt);
                    }
                    Bug::IdOfEachSend => {
                        let mut broken = Row::clone(row);
                        broken.alert.key = format!("{}#{attempt}", row.alert.key);
                        *row = Arc::new(broken);
                    }
                    _other_bugs_leave_it => {}
                }
            }
            out.push(effect);
        }
        out
    }
}

fn is_muted(delivery: &Delivery) -> bool {
    delivery.error.as_deref() == Some(MUTED)
}

/// In place of the send of a row: it is kept as muted.
fn muted(row: &Arc<Row>, channel: &str, attempts: u32) -> Effect {
    let (channel, error) = (channel.to_string(), Some(MUTED.to_string()));
    let delivery = Delivery { row: row.id, channel, state: DeliveryState::Muted, attempts, error };
    Effect::Keep { row: row.clone(), delivery }
}
