//! The connection slots: how many there are, who gets one, who has to go.
//!
//! Refuses: letting idle or slow connections keep others out. When the house is full, the
//! oldest one that no call is being answered on makes room (reliability A9).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::AbortHandle;

/// Calls being answered on one connection. Cloned into each answer, dropped with its body.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    busy: AtomicUsize,
    /// Requests whose answers are not made yet.
    open: AtomicUsize,
    begun: AtomicBool,
    follows: AtomicBool,
}

/// One call being answered.
#[derive(Debug)]
pub struct Busy(Arc<Counts>);

/// One request whose answer is being made, from its first look to the last byte of the body.
#[derive(Debug)]
pub struct Open(Arc<Counts>);

impl Calls {
    pub fn open(&self) -> Open {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        Open(self.0.clone())
    }

    /// No answer is being made.
    pub fn is_between_requests(&self) -> bool {
        self.0.open.load(Ordering::Relaxed) == 0
    }

    pub fn begin(&self) -> Busy {
        self.0.busy.fetch_add(1, Ordering::Relaxed);
        self.0.begun.store(true, Ordering::Relaxed);
        Busy(self.0.clone())
    }

    /// What is answered now has no end of its own.
    pub fn follow(&self) {
        self.0.follows.store(true, Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.0.busy.load(Ordering::Relaxed) == 0
    }

    /// Whoever leaves now owes this connection nothing: what it asked is answered. One on which
    /// nothing was asked yet is about to ask.
    fn is_served(&self) -> bool {
        let counts = &self.0;
        counts.follows.load(Ordering::Relaxed) || counts.begun.load(Ordering::Relaxed) && self.is_idle()
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One connection.
struct Slot {
    uid: u32,
    task: AbortHandle,
    calls: Calls,
}

/// All connections, oldest first.
pub struct Slots {
    slots: VecDeque<Slot>,
    max: usize,
    kept_for_root: usize,
}

impl Slots {
    pub fn new(max: usize, kept_for_root: usize) -> Slots {
        Slots { slots: VecDeque::new(), max, kept_for_root }
    }

    /// Is there room for this user now? Ends an idle connection where that makes room; only
    /// root may end root's.
    pub fn make_room(&mut self, uid: u32) -> bool {
        self.slots.retain(|slot| !slot.task.is_finished());
        let kept = if uid == 0 { 0 } else { self.kept_for_root };
        if self.slots.len() < self.max.saturating_sub(kept) {
            return true;
        }
        let may_end = |slot: &Slot| slot.calls.is_idle() && (uid == 0 || slot.uid != 0);
        let Some(oldest) = self.slots.iter().position(may_end) else { return false };
        if let Some(slot) = self.slots.remove(oldest) {
            slot.task.abort();
        }
        true
    }

    /// Every connection has got what it asked for, or is gone.
    pub fn are_served(&self) -> bool {
        self.slots.iter().all(|slot| slot.task.is_finished() || slot.calls.is_served())
    }

    pub fn take(&mut self, uid: u32, task: AbortHandle, calls: Calls) {
        self.slots.push_back(Slot { uid, task, calls });
    }
}
