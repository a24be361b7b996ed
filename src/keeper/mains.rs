//! Main processes that the keeper did not fork: a service may hand its run over to another
//! process (`MAINPID=` of sd_notify(3), or a daemon that forks itself into the background).
//!
//! Refuses: a bare number. Such a process is held by a pidfd: it may be somebody else's child,
//! whose pid passes to a stranger without our knowing.

use nix::sys::epoll::{EpollEvent, EpollFlags};
use std::os::fd::OwnedFd;

use crate::base::exit::{Exit, RunId};
use crate::base::signal::Signal;
use crate::keeper::run::Keeper;
use crate::keeper::table::{Phase, Place, Slot, Untold};
use crate::sys::signals::signal_child;
use crate::sys::{clock, pidfd};

/// Token of such a process: this and its place, which has 32 bits.
pub(super) const MAIN_TOKEN: u64 = 1 << 33;

impl Keeper {
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
    /// how; if its parent lives, only that one will ever know.
    pub(super) fn on_main_ended(&mut self, token: u64) {
        self.reap_all();
        let number = token.checked_sub(MAIN_TOKEN).and_then(|number| u32::try_from(number).ok());
        let Some(place) = number.map(Place) else {
            return;
        };
        let main = self.tidings.table.slot(place).and_then(|slot| slot.main.as_ref());
        if main.is_some_and(pidfd::has_ended) {
            self.end_run(place, clock::monotonic(), Exit::Unknown);
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
