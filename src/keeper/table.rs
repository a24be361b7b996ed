//! The table of runs: what lives, what has ended, what of it the engine has not been told.
//!
//! Refuses: growing beyond `RUNS_MAX`. Slots are reserved at the start and touched only when used;
//! the two indexes grow with the most runs there ever were, when a run is taken in and never else
//! (reserved whole, their scattered entries would touch a megabyte).

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::base::exit::{Exit, RunId};
use crate::base::time::Monotonic;
use crate::keeper::codec::RowHead;
use crate::keeper::wire::TAG_LEN_MAX;
use crate::sys::pidfd;

/// Most runs at once, living or not yet released: 10,000 units and their hooks.
pub const RUNS_MAX: usize = 16_384;

/// Most fds held for one run: stdout, stderr, the notify fd, one to spare.
pub const HELD_MAX: usize = 4;

/// Place of a run in the table; given to another run after the release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub u32);

/// News that the engine has not been told, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untold(u8);

impl Untold {
    pub const SPAWNED: Untold = Untold(1);
    pub const EXECUTED: Untold = Untold(2);
    pub const EXITED: Untold = Untold(4);
    pub const MAIN: Untold = Untold(8);

    pub fn has(self, which: Untold) -> bool {
        self.0 & which.0 != 0
    }
}

/// How far a run is.
#[derive(Debug)]
pub enum Phase {
    /// Forked; `outcome` will tell whether execve succeeded.
    Executing {
        outcome: OwnedFd,
    },
    Running,
    /// Its exec or a step before it failed; it is about to end.
    Failing {
        exit: Exit,
    },
    Ended {
        at: Monotonic,
        exit: Exit,
    },
}

#[derive(Debug)]
pub struct Slot {
    pub run: RunId,
    pub pid: i32,
    pub spawned_at: Monotonic,
    pub phase: Phase,
    pub executed: bool,
    pub end_asked: bool,
    pub said_ready: bool,
    /// What tells its process from all others of this boot.
    pub identity: Option<u64>,
    /// Set when another process than the one that we forked is the run.
    pub main: Option<OwnedFd>,
    pub held: [Option<(u8, OwnedFd)>; HELD_MAX],
    pub(super) untold: Untold,
    pub(super) tag: [u8; TAG_LEN_MAX],
    pub(super) tag_len: u8,
}

impl Slot {
    pub fn new(run: RunId, tag: &[u8], pid: i32, spawned_at: Monotonic, phase: Phase) -> Slot {
        let mut place = [0; TAG_LEN_MAX];
        let mut tag_len = 0;
        for (to, from) in place.iter_mut().zip(tag) {
            *to = *from;
            tag_len += 1;
        }
        let held = [const { None }; HELD_MAX];
        let untold = Untold::default();
        Slot {
            run,
            pid,
            spawned_at,
            phase,
            executed: false,
            end_asked: false,
            said_ready: false,
            identity: None,
            main: None,
            held,
            untold,
            tag: place,
            tag_len,
        }
    }

    pub fn is_ended(&self) -> bool {
        match self.phase {
            Phase::Ended { .. } => true,
            Phase::Executing { .. } | Phase::Running | Phase::Failing { .. } => false,
        }
    }

    pub fn untold(&self) -> Untold {
        self.untold
    }

    pub fn head(&self) -> RowHead<'_> {
        let ended = match self.phase {
            Phase::Ended { at, exit } => Some((at, exit)),
            Phase::Executing { .. } | Phase::Running | Phase::Failing { .. } => None,
        };
        RowHead {
            run: self.run,
            tag: self.tag.get(..usize::from(self.tag_len)).unwrap_or(&[]),
            pid: self.pid,
            spawned_at: self.spawned_at,
            executed: self.executed,
            end_asked: self.end_asked,
            said_ready: self.said_ready,
            identity: self.identity,
            ended,
        }
    }

    /// Keeps these until the release, at most `HELD_MAX`.
    pub fn hold(&mut self, fds: impl IntoIterator<Item = (u8, OwnedFd)>) {
        for (place, hold) in self.held.iter_mut().zip(fds) {
            *place = Some(hold);
        }
    }

    pub fn labels(&self) -> impl Iterator<Item = u8> + Clone + '_ {
        self.held.iter().flatten().map(|(label, _)| *label)
    }

    pub fn held_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.held.iter().flatten().map(|(_, fd)| fd.as_fd())
    }
}

#[derive(Default)]
struct Cell {
    slot: Option<Slot>,
    /// Its place is in the queue (at most once, also across a release).
    queued: bool,
}

pub struct Table {
    cells: Vec<Cell>,
    free: Vec<u32>,
    by_run: HashMap<u64, u32>,
    by_pid: HashMap<i32, u32>,
    /// Places with untold news, oldest first.
    queue: VecDeque<u32>,
}

impl Table {
    pub fn new() -> Table {
        Table {
            cells: Vec::with_capacity(RUNS_MAX),
            free: Vec::with_capacity(RUNS_MAX),
            by_run: HashMap::new(),
            by_pid: HashMap::new(),
            queue: VecDeque::with_capacity(RUNS_MAX),
        }
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.cells.len() >= RUNS_MAX
    }

    /// Takes the run in; None (and the run is dropped) when the table is full.
    pub fn insert(&mut self, slot: Slot) -> Option<Place> {
        if self.is_full() {
            return None;
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                let number = u32::try_from(self.cells.len()).ok()?;
                self.cells.push(Cell::default());
                number
            }
        };
        self.by_run.insert(slot.run.0, number);
        if slot.pid > 0 {
            self.by_pid.insert(slot.pid, number);
        }
        self.cell(number)?.slot = Some(slot);
        Some(Place(number))
    }

    pub fn of_run(&self, run: RunId) -> Option<Place> {
        self.by_run.get(&run.0).copied().map(Place)
    }

    /// The run whose process this is; ended runs have none any more.
    pub fn of_pid(&self, pid: i32) -> Option<Place> {
        self.by_pid.get(&pid).copied().map(Place)
    }

    pub fn slot(&self, place: Place) -> Option<&Slot> {
        self.cells.get(usize::try_from(place.0).ok()?)?.slot.as_ref()
    }

    pub fn slot_mut(&mut self, place: Place) -> Option<&mut Slot> {
        self.cell(place.0)?.slot.as_mut()
    }

    /// Another process is the run from now on, also where the one before has ended already.
    pub fn hand_over(&mut self, place: Place, pid: i32, process: OwnedFd) {
        let Some(slot) = self.slot_mut(place) else {
            return;
        };
        let before = std::mem::replace(&mut slot.pid, pid);
        slot.identity = pidfd::identity(&process);
        slot.main = Some(process);
        slot.phase = Phase::Running;
        slot.untold.0 &= !Untold::EXITED.0;
        if self.by_pid.get(&before) == Some(&place.0) {
            self.by_pid.remove(&before);
        }
        self.by_pid.insert(pid, place.0);
    }

    /// The pid is free for other processes from now on.
    pub fn end(&mut self, place: Place, at: Monotonic, exit: Exit) {
        if let Some(slot) = self.slot_mut(place) {
            slot.phase = Phase::Ended { at, exit };
            slot.main = None;
            let pid = slot.pid;
            self.by_pid.remove(&pid);
        }
    }

    /// Forgets an ended run and closes its fds; a living one stays.
    pub fn release(&mut self, run: RunId) {
        let Some(place) = self.of_run(run) else {
            return;
        };
        if !self.slot(place).is_some_and(Slot::is_ended) {
            return;
        }
        if let Some(cell) = self.cell(place.0) {
            cell.slot = None;
            self.by_run.remove(&run.0);
            self.free.push(place.0);
        }
    }

    /// Remembers that the engine must be told.
    pub fn note(&mut self, place: Place, news: Untold) {
        if let Some(cell) = self.cell(place.0)
            && let Some(slot) = &mut cell.slot
        {
            slot.untold.0 |= news.0;
            if !cell.queued {
                cell.queued = true;
                self.queue.push_back(place.0);
            }
        }
    }

    /// The engine has been told this of it.
    pub fn told(&mut self, place: Place, news: Untold) {
        if let Some(slot) = self.slot_mut(place) {
            slot.untold.0 &= !news.0;
        }
    }

    /// A row told everything at once.
    pub fn told_all(&mut self, place: Place) {
        if let Some(slot) = self.slot_mut(place) {
            slot.untold = Untold::default();
        }
    }

    /// The oldest place with untold news; places with none left leave the queue.
    pub fn next_untold(&mut self) -> Option<Place> {
        loop {
            let number = *self.queue.front()?;
            let cell = self.cell(number)?;
            if cell.slot.as_ref().is_some_and(|slot| slot.untold != Untold::default()) {
                return Some(Place(number));
            }
            cell.queued = false;
            self.queue.pop_front();
        }
    }

    /// The first taken place at or after `from`.
    pub fn next_taken(&self, from: u32) -> Option<Place> {
        let start = usize::try_from(from).ok()?;
        let skipped = self.cells.get(start..)?.iter().position(|cell| cell.slot.is_some())?;
        u32::try_from(start.checked_add(skipped)?).ok().map(Place)
    }

    /// Every run that is not released.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> + '_ {
        self.cells.iter().filter_map(|cell| cell.slot.as_ref())
    }

    /// The runs that live.
    pub fn living(&self) -> impl Iterator<Item = &Slot> + '_ {
        self.cells.iter().filter_map(|cell| cell.slot.as_ref()).filter(|slot| !slot.is_ended())
    }

    fn cell(&mut self, number: u32) -> Option<&mut Cell> {
        self.cells.get_mut(usize::try_from(number).ok()?)
    }
}

impl Default for Table {
    fn default() -> Table {
        Table::new()
    }
}
