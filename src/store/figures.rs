//! Numbers for metrics: how long commits take, what of the outbox waits.
//!
//! Refuses: a look at the whole history. What is counted is counted among the newest alerts.

use rusqlite::{Connection, params};

use crate::base::histogram::Histogram;
use crate::engine::outbox::{DeliveryState, Takes, Which};
use crate::store::row::{signed, unsigned};
use crate::store::writer::Reader;
use crate::store::{StoreError, alert};

/// Of how many alerts the newest are looked at: bounds how long a commit waits for the answer (about
/// 20 ms for each channel when all of them are there).
pub const ALERTS_LOOKED_AT_MAX: u64 = 20_000;

/// A channel as the dispatcher has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedChannel {
    pub name: String,
    /// Alerts up to this one are older than the channel.
    pub since: u64,
    pub takes: Takes,
}

/// What of the outbox is with a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelFigures {
    pub name: String,
    /// Neither delivered nor parked.
    pub pending: u64,
    /// When the oldest of them was raised, microseconds since 1970.
    pub oldest_us: Option<i64>,
    /// Refused for good.
    pub parked: u64,
}

/// What of the outbox is where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutboxFigures {
    /// Alerts since the home was made.
    pub raised: u64,
    pub channels: Vec<ChannelFigures>,
}

impl Reader {
    /// How long commits took since this process began.
    pub fn commits(&self) -> &Histogram {
        &self.commits
    }

    /// Asks what waits for each of these channels. `answer` is called on the store's thread.
    pub fn outbox_figures(
        &self,
        channels: Vec<AskedChannel>,
        answer: impl FnOnce(Result<OutboxFigures, StoreError>) + Send + 'static,
    ) {
        self.ask(move |db| figures(db, &channels), answer);
    }
}

fn figures(db: &Connection, channels: &[AskedChannel]) -> Result<OutboxFigures, StoreError> {
    let raised = alert::last_id(db)?;
    let from = raised.saturating_sub(ALERTS_LOOKED_AT_MAX);
    let of = |channel: &AskedChannel| channel_figures(db, channel, from.max(channel.since));
    Ok(OutboxFigures { raised, channels: channels.iter().map(of).collect::<Result<_, _>>()? })
}

fn channel_figures(db: &Connection, asked: &AskedChannel, after: u64) -> Result<ChannelFigures, StoreError> {
    let limit = usize::try_from(ALERTS_LOOKED_AT_MAX).unwrap_or(usize::MAX);
    let mut found = ChannelFigures { name: asked.name.clone(), ..ChannelFigures::default() };
    for (row, _) in alert::select_unsettled(db, &asked.name, after, limit, Which::Open)? {
        if asked.takes.takes(&asked.name, &row.alert) {
            found.pending += 1;
            found.oldest_us.get_or_insert(row.ts_us); // they come oldest first
        }
    }
    let mut parked =
        db.prepare_cached("SELECT count(*) FROM delivery WHERE alert > ?1 AND channel = ?2 AND state = ?3")?;
    let state = DeliveryState::Parked.as_str();
    let count = parked.query_row(params![signed(after), asked.name, state], |row| row.get(0))?;
    found.parked = unsigned(count);
    Ok(found)
}
