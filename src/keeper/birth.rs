//! How a run begins: fork, what became of the exec, and a refusal that is told like an end.
//!
//! Refuses: waiting for a child, and forgetting one whose outcome could not be watched.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::base::exit::{Exit, RunId, SpawnStep};
use crate::keeper::run::{Keeper, OUTCOME_TOKEN, SHORT_RETRY, say};
use crate::keeper::table::{Phase, Place, Slot, Untold};
use crate::keeper::wire::{FdUse, SpawnPlan};
use crate::sys::spawn::{ChildIds, ChildPlan, Outcome, read_outcome, spawn};
use crate::sys::{clock, pidfd};

impl Keeper {
    pub(super) fn spawn(&mut self, run: RunId, tag: &[u8], plan: SpawnPlan, fds: Vec<(FdUse, OwnedFd)>) {
        if self.tidings.table.of_run(run).is_some() {
            return say(&format!("run {run} exists already; the second spawn is ignored"));
        }
        if self.tidings.table.is_full() {
            self.tidings.short = Some((run, libc::ENFILE));
            return;
        }
        let Some(plan) = child_plan(plan) else {
            return self.refuse(run, tag, SpawnStep::Prepare, libc::EINVAL);
        };
        let mut targets = Vec::with_capacity(fds.len());
        let mut cgroup = None;
        for (use_of, fd) in &fds {
            match use_of {
                FdUse::Child(target) => targets.push((*target, fd.as_fd())),
                FdUse::Cgroup => cgroup = Some(fd.as_fd()),
                FdUse::Hold(_) => {}
            }
        }
        let born = match spawn(&plan, &targets, cgroup) {
            Ok(born) => born,
            Err(Errno::EBADF) => return self.refuse(run, tag, SpawnStep::Fds, libc::EBADF),
            Err(errno) => {
                self.tidings.short = Some((run, errno as i32));
                return;
            }
        };
        let now = clock::monotonic();
        let mut slot = Slot::new(run, tag, born.pid, now, Phase::Executing { outcome: born.outcome });
        // Not reaped before we do: the pid is that of our child.
        slot.identity = pidfd::open(born.pid).ok().and_then(pidfd::identity);
        let holds = fds.into_iter().filter_map(|(use_of, fd)| match use_of {
            FdUse::Hold(label) => Some((label, fd)),
            FdUse::Child(_) | FdUse::Cgroup => None,
        });
        slot.hold(holds);
        let Some(place) = self.tidings.table.insert(slot) else {
            return;
        };
        self.store_pipes(run);
        self.tidings.table.note(place, Untold::SPAWNED);
        self.watch_outcome(place);
    }

    /// Watches the outcome of a run, if it is awaited.
    pub(super) fn watch_outcome(&mut self, place: Place) {
        let Some(Phase::Executing { outcome }) = self.tidings.table.slot(place).map(|slot| &slot.phase)
        else {
            return;
        };
        let token = OUTCOME_TOKEN.saturating_add(u64::from(place.0));
        if self.epoll.add(outcome, EpollEvent::new(EpollFlags::EPOLLIN, token)).is_err() {
            self.look_at = Some(clock::monotonic()); // ENOSPC, ENOMEM
        }
    }

    /// The run ended before it began; the engine hears it like any other end.
    pub(super) fn refuse(&mut self, run: RunId, tag: &[u8], step: SpawnStep, errno: i32) {
        let now = clock::monotonic();
        let phase = Phase::Ended { at: now, exit: Exit::NotExecuted { step, errno } };
        match self.tidings.table.insert(Slot::new(run, tag, 0, now, phase)) {
            Some(place) => self.tidings.table.note(place, Untold::EXITED),
            None => self.tidings.short = Some((run, libc::ENFILE)),
        }
    }

    pub(super) fn look_at_outcomes(&mut self) {
        let now = clock::monotonic();
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        self.look_at = None;
        let mut at = 0;
        while let Some(place) = self.tidings.table.next_taken(at) {
            at = place.0.saturating_add(1);
            self.settle(place);
            if matches!(self.tidings.table.slot(place).map(|slot| &slot.phase), Some(Phase::Executing { .. }))
            {
                self.look_at = Some(now + SHORT_RETRY);
            }
        }
    }

    pub(super) fn on_outcome(&mut self, token: u64) {
        let number = token.checked_sub(OUTCOME_TOKEN).and_then(|number| u32::try_from(number).ok());
        if let Some(number) = number {
            self.settle(Place(number));
        }
    }

    /// Reads a run's outcome pipe, if it still has one and it says something.
    pub(super) fn settle(&mut self, place: Place) {
        let Some(slot) = self.tidings.table.slot_mut(place) else {
            return;
        };
        let Phase::Executing { outcome } = &slot.phase else {
            return;
        };
        let found = read_outcome(outcome);
        if found == Outcome::Pending {
            return;
        }
        // Not by closing alone: a child forked meanwhile holds a duplicate until its own exec.
        let _ = self.epoll.delete(outcome); // fails only if it was never added
        match found {
            Outcome::Pending => {}
            Outcome::Executed => {
                slot.phase = Phase::Running;
                slot.executed = true;
                self.tidings.table.note(place, Untold::EXECUTED);
            }
            Outcome::Failed { step, errno } => {
                slot.phase = Phase::Failing { exit: Exit::NotExecuted { step, errno } };
            }
        }
    }
}

/// None when a string holds a NUL, or there is nothing to execute.
fn child_plan(plan: SpawnPlan) -> Option<ChildPlan> {
    let strings =
        |list: Vec<Vec<u8>>| list.into_iter().map(|s| CString::new(s).ok()).collect::<Option<Vec<_>>>();
    let cwd = match plan.cwd {
        Some(cwd) => Some(CString::new(cwd).ok()?),
        None => None,
    };
    Some(ChildPlan {
        path: CString::new(plan.path).ok().filter(|path| !path.is_empty())?,
        argv: strings(plan.argv)?,
        env: strings(plan.env)?,
        pid_env: strings(plan.pid_env)?,
        cwd,
        ids: plan.ids.map(|ids| ChildIds { uid: ids.uid, gid: ids.gid, groups: ids.groups }),
        umask: Some(plan.umask),
        rlimits: plan.rlimits,
        nice: plan.nice,
        oom_score_adj: plan.oom_score_adj,
        no_new_privs: plan.no_new_privs,
    })
}
