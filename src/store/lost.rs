//! What becomes of writes that could not be kept.
//!
//! Refuses: silence. A loss is a line of history itself.

use std::collections::VecDeque;

use crate::engine::outbox::Delivery;
use crate::store::row::{Level, NewEvent};
use crate::store::writer::{Batch, Write};

pub(crate) fn delivery_of(write: Write) -> Option<Delivery> {
    if let Write::Delivery { delivery, .. } = write { Some(delivery) } else { None }
}

/// The record of a loss, stamped like the oldest event that was kept.
pub(crate) fn lost_record(lost: u64, pending: &VecDeque<(u64, Batch)>) -> Option<Write> {
    if lost == 0 {
        return None;
    }
    let oldest = pending.iter().flat_map(|(_, batch)| &batch.writes).find_map(|write| match write {
        Write::Event(event) => Some(event),
        Write::Save { .. }
        | Write::Forget { .. }
        | Write::Alert { .. }
        | Write::Delivery { .. }
        | Write::Channels(_)
        | Write::SaveEngine(_)
        | Write::LastGood { .. }
        | Write::Drill(_)
        | Write::Run(_)
        | Write::RunGone { .. }
        | Write::ReserveRuns { .. }
        | Write::Life(_)
        | Write::Boot { .. }
        | Write::UpgradeTold(_)
        | Write::Quiet(_)
        | Write::AlertPrint { .. }
        | Write::Home { .. } => None,
    })?;
    let mut data = serde_json::Map::new();
    data.insert("events".into(), lost.into());
    Some(Write::Event(NewEvent {
        ts_us: oldest.ts_us,
        level: Level::Error,
        event: "store.lost".into(),
        unit: None,
        run: None,
        cause: None,
        message: format!("{lost} events were lost before this one: the store could not be written"),
        at: oldest.at,
        data,
    }))
}
