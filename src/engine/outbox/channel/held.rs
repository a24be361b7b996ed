//! What of a channel's rows people asked not to be told of: held back, given way, or taken by somebody.
//!
//! Refuses: to drop a row silently. Each stands as muted, with its reason.

use std::collections::BTreeSet;

use crate::base::time::Monotonic;
use crate::engine::outbox::channel::Channel;
use crate::engine::outbox::{ACKNOWLEDGED, DeliveryState, Effects, MUTED, Mark, Quiet};

impl Channel {
    /// A repeated failure that somebody knows of is not told; one that is being sent is.
    pub(super) fn drop_acked(&mut self, id: u64, quiet: &Quiet, fx: &mut Effects) {
        if !self.is_under_way(id) && self.is_acked(id, quiet) {
            fx.mark(Mark::Acknowledged);
            self.settle(id, DeliveryState::Muted, Some(ACKNOWLEDGED.to_string()), fx);
        }
    }

    pub(super) fn is_under_way(&self, id: u64) -> bool {
        self.sending.as_ref().is_some_and(|sending| sending.row == id || sending.others.contains(&id))
    }

    pub(super) fn is_acked(&self, id: u64, quiet: &Quiet) -> bool {
        let open = self.rows.get(&id).filter(|entry| !entry.settled);
        open.is_some_and(|entry| quiet.is_acked(&entry.row.alert))
    }

    /// What people want to be told has changed. Of each unit whose mute is over the newest is told, and
    /// the others are not: they say what was so an hour ago.
    pub(in crate::engine::outbox) fn on_quieted(
        &mut self,
        now: Monotonic,
        was: &Quiet,
        is: &Quiet,
        fx: &mut Effects,
    ) {
        for entry in self.rows.values_mut() {
            // It waits from now on: how long it was held back is nobody's lateness.
            if was.holds(&entry.row.alert).is_some() && is.holds(&entry.row.alert).is_none() {
                entry.since = now;
            }
        }
        let held = |id: &u64, by: &Quiet| self.rows.get(id).is_some_and(|e| by.holds(&e.row.alert).is_some());
        let over = |lane: &&BTreeSet<u64>| lane.last().is_some_and(|id| held(id, was) && !held(id, is));
        let lanes = self.lanes.values().filter(over);
        let older: Vec<u64> = lanes.flat_map(|lane| lane.iter().rev().skip(1)).copied().collect();
        let older = older.into_iter().filter(|id| !self.is_under_way(*id));
        for id in older.collect::<Vec<u64>>() {
            fx.mark(Mark::MuteEnded);
            self.settle(id, DeliveryState::Muted, Some(MUTED.to_string()), fx);
            self.giving_way.insert(id);
        }
        let rows: Vec<u64> = self.rows.keys().copied().collect();
        for id in rows {
            self.drop_acked(id, is, fx);
        }
    }

    /// Until when a row is held back; zero when it is not.
    pub(super) fn held_until(&self, id: u64, quiet: &Quiet) -> Monotonic {
        self.rows.get(&id).and_then(|entry| quiet.holds(&entry.row.alert)).unwrap_or(Monotonic::ZERO)
    }

    /// Whether an older row of its unit is still giving way.
    pub(super) fn is_way_barred(&self, id: u64) -> bool {
        let unit = |id: u64| self.rows.get(&id).map(|entry| &entry.row.alert.unit);
        self.giving_way.iter().any(|other| unit(*other) == unit(id))
    }

    pub(super) fn may_go(&self, id: u64, now: Monotonic, quiet: &Quiet) -> bool {
        self.held_until(id, quiet) <= now && !self.is_way_barred(id)
    }

    /// Whether some rows may not go although the channel may.
    pub(super) fn is_holding(&self, quiet: &Quiet) -> bool {
        quiet.is_muting() || !self.giving_way.is_empty()
    }

    /// When the first row may go. Rows that wait for others to give way are not counted: that they
    /// have is told.
    pub(super) fn next_unheld(&self, quiet: &Quiet) -> Option<Monotonic> {
        let ready = self.ready.iter().map(|id| (Monotonic::ZERO, *id));
        let waiting = ready.chain(self.aside.iter().copied()).filter(|(_, id)| !self.is_way_barred(*id));
        waiting.map(|(until, id)| self.held_until(id, quiet).max(until)).min()
    }
}
