//! Main processes that the keeper did not fork: a service may hand its run over to another
//! process (`MAINPID=` of sd_notify(3), or a daemon that forks itself into the background), and
//! what a keeper that died left behind is adopted by the next one.
//!
//! Refuses: a bare number. Such a process is held by a pidfd: it may be somebody else's child,
//! whose pid passes to a stranger without our knowing.

use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::base::exit::{Exit, RunId};
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::keeper::run::{Keeper, say};
use crate::keeper::table::{Phase, Place, Slot, Untold};
use crate::keeper::wire::Orphan;
use crate::sys::pidfd::End;
use crate::sys::signals::signal_child;
use crate::sys::{clock, pidfd};

/// Token of such a process: this and its place, which has 32 bits.
pub(super) const MAIN_TOKEN: u64 = 1 << 33;

/// How long its parent (init, mostly) may take to reap a main process that is not our child: only
/// then does the kernel tell how it ended. One that never reaps must not hold a restart up: this is
/// less than the first delay of a unit (5 s), which counts from the end itself.
const REAP_MAX: Duration = Duration::from_secs(3);

/// A main process that was seen to have ended at `seen_at`.
pub(super) struct Unreaped {
    place: Place,
    run: RunId,
    seen_at: Monotonic,
}

impl Keeper {
    /// Takes in a run that another keeper spawned. Its end is seen like that of a main process that
    /// was handed over; what is held for it is used by the next engine.
    pub(super) fn adopt(&mut self, orphan: &Orphan, process: OwnedFd, held: Vec<(u8, OwnedFd)>) {
        let run = orphan.run;
        if self.tidings.table.of_run(run).is_some() {
            return say(&format!("run {run} exists already; it is not adopted again"));
        }
        if self.tidings.table.of_pid(orphan.pid).is_some() {
            return self.refuse_orphan(run, "its process is another run");
        }
        let mut slot = Slot::new(run, &orphan.tag, orphan.pid, orphan.spawned_at, Phase::Running);
        slot.executed = true;
        slot.end_asked = orphan.end_asked;
        slot.said_ready = orphan.said_ready;
        slot.identity = pidfd::identity(&process);
        let inherited = self.take_inherited(run);
        let stored: Vec<u8> = inherited.iter().map(|(label, _)| *label).collect();
        let given: Vec<u8> = held.iter().map(|(label, _)| *label).collect();
        // The same pipes by another way; of systemd's what the engine could not open.
        slot.hold(held.into_iter().chain(inherited.into_iter().filter(|(label, _)| !given.contains(label))));
        for (label, fd) in slot.labels().zip(slot.held_fds()).filter(|(label, _)| !stored.contains(label)) {
            self.manager.store_pipe(run, label, fd);
        }
        let Some(place) = self.tidings.table.insert(slot) else {
            return say(&format!("run {run} is not adopted: there is no place for it"));
        };
        let token = MAIN_TOKEN.saturating_add(u64::from(place.0));
        if let Err(errno) = self.epoll.add(&process, EpollEvent::new(EpollFlags::EPOLLIN, token)) {
            say(&format!("process {} of run {run} cannot be watched: {errno}", orphan.pid));
            return self.end_run(place, clock::monotonic(), Exit::Unknown);
        }
        if let Some(slot) = self.tidings.table.slot_mut(place) {
            slot.main = Some(process);
        }
    }

    /// What cannot be held by a pidfd cannot be signalled safely: to us it has ended.
    pub(super) fn refuse_orphan(&mut self, run: RunId, why: &str) {
        say(&format!("run {run} is not adopted: {why}"));
        let now = clock::monotonic();
        let phase = Phase::Ended { at: now, exit: Exit::Unknown };
        if self.tidings.table.of_run(run).is_none()
            && let Some(place) = self.tidings.table.insert(Slot::new(run, b"", 0, now, phase))
        {
            self.tidings.table.note(place, Untold::EXITED);
        }
    }

    /// Makes another process the run. Refused: while we cannot tell yet what became of the exec,
    /// for a process that is another run, and when we could not see its end.
    pub(super) fn note_main(&mut self, run: RunId, pid: i32, process: OwnedFd) {
        let Some(place) = self.tidings.table.of_run(run) else {
            return;
        };
        self.settle(place);
        let ready = match self.tidings.table.slot(place).map(|slot| &slot.phase) {
            Some(Phase::Running | Phase::Ended { exit: Exit::Code(_) | Exit::Signal { .. }, .. }) => true,
            Some(Phase::Executing { .. } | Phase::Failing { .. }) => false,
            Some(Phase::Ended { exit: Exit::NotExecuted { .. } | Exit::Unknown, .. }) | None => false,
        };
        let taken = self.tidings.table.of_pid(pid).is_some();
        let token = MAIN_TOKEN.saturating_add(u64::from(place.0));
        if ready
            && !taken
            && pid > 1
            && self.epoll.add(&process, EpollEvent::new(EpollFlags::EPOLLIN, token)).is_ok()
        {
            self.unwatch_main(place);
            self.tidings.table.hand_over(place, pid, process);
        }
        self.tidings.table.note(place, Untold::MAIN);
    }

    /// Listens to a run that an image before this one knew.
    pub(super) fn watch_run(&mut self, place: Place) {
        self.watch_outcome(place);
        if let Some(process) = self.tidings.table.slot(place).and_then(|slot| slot.main.as_ref()) {
            let token = MAIN_TOKEN.saturating_add(u64::from(place.0));
            // Unwatched (ENOSPC, ENOMEM) its end is seen when it is reaped, if it is our child.
            let _ = self.epoll.add(process, EpollEvent::new(EpollFlags::EPOLLIN, token));
        }
    }

    pub(super) fn unwatch_main(&self, place: Place) {
        if let Some(process) = self.tidings.table.slot(place).and_then(|slot| slot.main.as_ref()) {
            let _ = self.epoll.delete(process); // as with the outcome: closing is not enough
        }
    }

    /// A main process that we did not fork has ended. Mostly it has become our child, and says
    /// how; where another one is its parent, the kernel may tell once that one has reaped it.
    pub(super) fn on_main_ended(&mut self, token: u64) {
        self.reap_all();
        let number = token.checked_sub(MAIN_TOKEN).and_then(|number| u32::try_from(number).ok());
        let Some(place) = number.map(Place) else {
            return;
        };
        let slot = self.tidings.table.slot(place);
        let Some((slot, main)) = slot.and_then(|slot| Some((slot, slot.main.as_ref()?))) else {
            return;
        };
        if !pidfd::has_ended(main) {
            return;
        }
        let (run, end_asked) = (slot.run, slot.end_asked);
        let seen = self.unreaped.iter().position(|known| known.run == run);
        match pidfd::end_of(main) {
            End::Known(exit) => self.end_unreaped(place, seen, exit),
            End::Untold => self.end_unreaped(place, seen, Exit::Unknown),
            // Nobody asks how it ended what was asked to.
            End::NotReaped if end_asked => self.end_unreaped(place, seen, Exit::Unknown),
            End::NotReaped => {
                // From now on only its hang-up is news.
                let _ = self.epoll.modify(main, &mut EpollEvent::new(EpollFlags::empty(), token)); // it is in the set
                if seen.is_none() {
                    self.unreaped.push(Unreaped { place, run, seen_at: clock::monotonic() });
                }
            }
        }
    }

    fn end_unreaped(&mut self, place: Place, seen: Option<usize>, exit: Exit) {
        let seen_at = seen.map_or_else(clock::monotonic, |at| self.unreaped.swap_remove(at).seen_at);
        self.end_run(place, seen_at, exit);
    }

    /// When to stop waiting for somebody who reaps.
    pub(super) fn unreaped_due(&self) -> Option<Monotonic> {
        self.unreaped.iter().map(|known| known.seen_at + REAP_MAX).min()
    }

    pub(super) fn give_up_unreaped(&mut self, now: Monotonic) {
        while let Some(at) = self.unreaped.iter().position(|known| known.seen_at + REAP_MAX <= now) {
            let Unreaped { place, run, seen_at } = self.unreaped.swap_remove(at);
            // It may have been reaped by us, or handed its run over, in between.
            let ended = self
                .tidings
                .table
                .slot(place)
                .is_some_and(|slot| slot.run == run && slot.main.as_ref().is_some_and(pidfd::has_ended));
            if ended {
                self.end_run(place, seen_at, Exit::Unknown);
            }
        }
    }
}

/// What cannot be signalled (EPERM after a setuid exec) is left to the deadline of whoever asked.
pub(super) fn signal_run(slot: &Slot, signal: Signal) {
    let _ = match &slot.main {
        Some(process) => pidfd::signal(process, signal),
        None => signal_child(slot.pid, signal),
    };
}
