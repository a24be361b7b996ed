//! The thread that moves what services write from their pipes into spools.
//!
//! Refuses: to keep bytes in memory, to be held up by one flooding or broken pipe, to wake
//! when nothing is written, and to end before it is told to. Killed at any instruction it loses and
//! doubles nothing: splice(2) takes out of the pipe exactly what it put into the file.
//!
//! Pipes are of 64 KiB. One that was found full grows to 1 MiB, as long as there are few such:
//! a service that floods then fills it while we are asleep, and ten thousand quiet ones cost nothing.
//!
//! splice(2) holds the pipe's lock while it copies, and so does whoever writes: to take bytes while more
//! are coming makes both spin. So a turn takes once what is there, and `Gather` lets the
//! next one find pipes about half full ([0020](../../docs/decisions/0020-gathering.md)).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::base::exit::RunId;
use crate::logs::capture::{Birth, Counters, End, News, Order, Pipe, Trouble};
use crate::logs::index::What;
use crate::logs::retain::Retention;
use crate::logs::spool::{Change, Now, Spool};
use crate::sys::clock;
use crate::unit::spec::WhenFull;

/// Most bytes one pipe may move before the others have their turn: a full pipe of the grown size,
/// half a millisecond on a warm page cache.
const TURN_BYTES_MAX: usize = 1024 * 1024;

/// Most bytes asked for at once: more than a pipe can hold, so that one splice takes all that is
/// there. Where two runs share a file they then meet between whole writes, not inside a line.
const SPLICE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Longest that bytes are left to gather in their pipes before the next turn: what a follower and the
/// times of the index may lag behind. The first write after silence is moved at once.
const GATHER_US_MAX: u64 = 1_000;

/// Shorter sleeps are not worth their wake-up (about 25 µs on a virtual machine).
const GATHER_US_MIN: u64 = 30;

/// A pipe whose file cannot be written (disk full, I/O error) is tried again after this.
/// Meanwhile the pipe fills and its writer blocks.
const STALL_RETRY: Duration = Duration::from_secs(1);

/// Most pipes looked at in one turn; the kernel hands out ready ones round-robin.
const EVENTS_PER_TURN: usize = 64;

/// What a pipe holds at first (pipe(7), since Linux 2.6.11; less when the user has too many pages in pipes).
const PIPE_BYTES_USUAL: u64 = 64 * 1024;

/// What a flooding pipe grows to (F_SETPIPE_SZ of pipe(7); /proc/sys/fs/pipe-max-size is 1 MiB).
const PIPE_BYTES_GROWN: i32 = 1024 * 1024;

/// Most pipes that are grown at once: 64 MiB of kernel memory at worst.
const PIPES_GROWN_MAX: usize = 64;

/// A pipe that held so much in one turn is worth growing: it was three quarters full.
const GROW_FROM_BYTES: usize = 48 * 1024;

/// Most streams whose files are open; those opened longest ago are closed first.
const SPOOLS_OPEN_MAX: usize = 256;

/// Most bytes in memory for a pipe whose file system cannot splice.
const COPY_BYTES_MAX: usize = 64 * 1024;

const ORDERS: u64 = 0;
const RETRY: u64 = 1;
const FIRST_PIPE: u64 = 2;

/// A pipe under our care.
struct Watched {
    pipe: Pipe,
    /// Bytes taken out of the pipe that could not be written yet; only where splice cannot be used.
    held: Vec<u8>,
    drain: Drain,
    size: Size,
    /// Its stream could not be written the last time.
    trouble: Option<InTrouble>,
}

struct InTrouble {
    dropped_bytes: u64,
}

/// How large a pipe is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Usual,
    Grown,
    /// The kernel did not allow it.
    Refused,
}

impl Size {
    fn bytes(self) -> u64 {
        match self {
            Size::Usual | Size::Refused => PIPE_BYTES_USUAL,
            Size::Grown => u64::from(PIPE_BYTES_GROWN.unsigned_abs()),
        }
    }
}

/// How long the next bytes are left to gather: shorter while pipes come full (their writers would
/// block), longer while they do not.
struct Gather {
    us: u64,
}

impl Gather {
    /// What follows a turn whose fullest pipe was so full.
    fn after(&mut self, fullest_percent: u64) -> Duration {
        self.us = if fullest_percent > 50 { self.us / 2 } else { self.us + self.us / 4 };
        self.us = self.us.clamp(GATHER_US_MIN, GATHER_US_MAX);
        let blocked = self.us == GATHER_US_MIN && fullest_percent > 50;
        Duration::from_micros(if blocked { 0 } else { self.us })
    }
}

/// Whether somebody waits to hear that the pipe is empty.
enum Drain {
    NotAsked,
    /// What was in the pipe when asked is stored once it is seen empty or this many more bytes
    /// were moved: a grandchild that never stops writing must not keep the answer away.
    Asked {
        left_bytes: u64,
    },
}

/// What a turn of a pipe brought.
struct Pumped {
    moved_bytes: u64,
    /// Thrown away because the disk was full.
    lost: Option<(Errno, u64)>,
    end: Turn,
}

/// What a turn of a pipe ended with.
enum Turn {
    Empty,
    /// There may be more; the others first.
    More,
    Closed,
    Stalled(Errno),
}

/// A run that is to be told finished.
struct Finishing {
    /// Its pipes that are not drained yet.
    left: BTreeSet<u64>,
    end: Option<End>,
}

#[derive(PartialEq, Eq)]
enum Flow {
    GoOn,
    End,
}

pub(super) struct Mover {
    epoll: Epoll,
    wake: Arc<EventFd>,
    retry: TimerFd,
    /// Where dropped bytes go.
    null: File,
    inbox: mpsc::Receiver<Order>,
    pipes: BTreeMap<u64, Watched>,
    next_token: u64,
    /// Not watched until the retry timer fires.
    stalled: Vec<u64>,
    finishing: BTreeMap<RunId, Finishing>,
    grown: usize,
    gather: Gather,
    /// Streams whose files are open, in the order of their opening.
    open: VecDeque<Weak<Spool>>,
    counters: Arc<Counters>,
    retention: Arc<Retention>,
    told: Box<dyn Fn(News) + Send>,
}

impl Mover {
    pub(super) fn new(
        wake: Arc<EventFd>,
        inbox: mpsc::Receiver<Order>,
        counters: Arc<Counters>,
        retention: Arc<Retention>,
        told: Box<dyn Fn(News) + Send>,
    ) -> io::Result<Mover> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let retry = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake.as_ref(), EpollEvent::new(EpollFlags::EPOLLIN, ORDERS))?;
        epoll.add(&retry, EpollEvent::new(EpollFlags::EPOLLIN, RETRY))?;
        Ok(Mover {
            epoll,
            wake,
            retry,
            null: OpenOptions::new().write(true).open("/dev/null")?,
            inbox,
            pipes: BTreeMap::new(),
            next_token: FIRST_PIPE,
            stalled: Vec::new(),
            finishing: BTreeMap::new(),
            grown: 0,
            gather: Gather { us: GATHER_US_MAX },
            open: VecDeque::new(),
            counters,
            retention,
            told,
        })
    }

    pub(super) fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS_PER_TURN];
        loop {
            // EINTR is a turn without news; the other errors cannot happen to an fd of ours.
            let ready = self.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            self.counters.turns.fetch_add(1, Ordering::Relaxed);
            let now = now();
            let mut fullest_percent = 0;
            for event in &events[..ready] {
                match event.data() {
                    ORDERS => {
                        if self.take_orders(now) == Flow::End {
                            return;
                        }
                    }
                    RETRY => self.resume_stalled(now),
                    token => fullest_percent = fullest_percent.max(self.turn(token, now)),
                }
            }
            let gather = self.gather.after(fullest_percent);
            if !gather.is_zero() {
                #[expect(clippy::disallowed_methods, reason = "to let small writes gather is the purpose")]
                std::thread::sleep(gather);
            }
        }
    }

    fn take_orders(&mut self, now: Now) -> Flow {
        let _ = self.wake.read(); // EAGAIN: somebody's write was counted before
        loop {
            match self.inbox.try_recv() {
                Ok(Order::Add(pipe)) => self.add(pipe, now),
                Ok(Order::Finish { run, end }) => self.begin_finish(run, end, now),
                Ok(Order::Leave) | Err(mpsc::TryRecvError::Disconnected) => return Flow::End,
                Err(mpsc::TryRecvError::Empty) => return Flow::GoOn,
            }
        }
    }

    fn add(&mut self, pipe: Pipe, now: Now) {
        let token = self.next_token;
        self.next_token += 1;
        if pipe.birth == Birth::New {
            // Without it the first chunk still tells whose bytes these are.
            let _ = pipe.spool.mark(pipe.run, now, What::Started);
        }
        let watched = self.epoll.add(&pipe.fd, EpollEvent::new(EpollFlags::EPOLLIN, token));
        let (held, drain, size, trouble) = (Vec::new(), Drain::NotAsked, Size::Usual, None);
        self.note_open(&pipe.spool);
        self.pipes.insert(token, Watched { pipe, held, drain, size, trouble });
        if let Err(errno) = watched {
            // ENOSPC (max_user_watches) or ENOMEM: shortage passes, the bytes wait in the pipe.
            self.stall(token, errno);
        }
    }

    fn begin_finish(&mut self, run: RunId, end: Option<End>, now: Now) {
        let of_run = self.pipes.iter().filter(|(_, watched)| watched.pipe.run == run);
        let left: BTreeSet<u64> = of_run.map(|(token, _)| *token).collect();
        self.finishing.insert(run, Finishing { left: left.clone(), end });
        for token in left {
            if let Some(watched) = self.pipes.get_mut(&token) {
                let capacity = fcntl(&watched.pipe.fd, FcntlArg::F_GETPIPE_SZ).ok();
                let left_bytes = capacity.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(1 << 20);
                watched.drain = Drain::Asked { left_bytes };
            }
            if !self.stalled.contains(&token) {
                self.turn(token, now);
            }
        }
        self.finish_if_done(run, now);
    }

    fn drained(&mut self, run: RunId, token: u64, now: Now) {
        if let Some(finishing) = self.finishing.get_mut(&run) {
            finishing.left.remove(&token);
            self.finish_if_done(run, now);
        }
    }

    fn finish_if_done(&mut self, run: RunId, now: Now) {
        if self.finishing.get(&run).is_none_or(|finishing| !finishing.left.is_empty()) {
            return;
        }
        let end = self.finishing.remove(&run).and_then(|finishing| finishing.end);
        if let Some(End { spool, exit, ts_us }) = end {
            // Of a full disk: the history has it all the same.
            let _ = spool.mark(run, Now { ts_us, ..now }, What::Exited(exit));
            self.note_open(&spool);
        }
        (self.told)(News::Finished(run));
    }

    /// One pipe's share. Says how full the pipe was, percent.
    fn turn(&mut self, token: u64, now: Now) -> u64 {
        let Some(watched) = self.pipes.get_mut(&token) else {
            return 0; // closed earlier in this turn
        };
        let was_open = watched.pipe.spool.is_open();
        let pumped = watched.pump(now, &self.counters, &self.null);
        self.counters.stored_bytes.fetch_add(pumped.moved_bytes, Ordering::Relaxed);
        if let Some(trouble) = watched.judge(&pumped) {
            let (unit, stream) = (watched.pipe.spool.unit().clone(), watched.pipe.spool.stream());
            let run = watched.pipe.run;
            match trouble {
                Trouble::Over { .. } => self.counters.in_trouble.fetch_sub(1, Ordering::Relaxed),
                Trouble::Blocked(_) | Trouble::Dropping(_) => {
                    self.counters.in_trouble.fetch_add(1, Ordering::Relaxed)
                }
            };
            (self.told)(News::Trouble { unit, stream, run, trouble });
        }
        let Pumped { moved_bytes, end, .. } = pumped;
        let drained = watched.drain.passed(moved_bytes, &end);
        if drained {
            watched.drain = Drain::NotAsked;
        }
        if watched.size == Size::Usual
            && moved_bytes >= as_u64(GROW_FROM_BYTES)
            && self.grown < PIPES_GROWN_MAX
        {
            watched.grow();
            self.grown += usize::from(watched.size == Size::Grown);
        }
        let full_percent = moved_bytes.saturating_mul(100) / watched.size.bytes();
        let (run, spool) = (watched.pipe.run, Arc::clone(&watched.pipe.spool));
        self.rotate(&spool, now);
        if !was_open {
            self.note_open(&spool);
        }
        match end {
            Turn::Closed => self.close(token, now),
            Turn::Stalled(errno) => self.stall(token, errno),
            Turn::Empty | Turn::More if drained => self.drained(run, token, now),
            Turn::Empty | Turn::More => {}
        }
        full_percent
    }

    fn rotate(&mut self, spool: &Arc<Spool>, now: Now) {
        match spool.rotate_if_due(now) {
            Ok(Change::Rotated) => {
                self.counters.rotations.fetch_add(1, Ordering::Relaxed);
                self.retention.look(spool);
            }
            Ok(Change::None) => {}
            // The file grows beyond its size; the next turn tries again.
            Err(errno) => self.note_errno(errno),
        }
    }

    /// Closes the files of those that were opened longest ago, when there are too many.
    fn note_open(&mut self, spool: &Arc<Spool>) {
        if !spool.is_open() {
            return;
        }
        self.open.push_back(Arc::downgrade(spool));
        while self.open.len() > SPOOLS_OPEN_MAX {
            if let Some(oldest) = self.open.pop_front().and_then(|weak| weak.upgrade())
                && !Arc::ptr_eq(&oldest, spool)
            {
                oldest.close_files();
            }
        }
    }

    fn close(&mut self, token: u64, now: Now) {
        let Some(Watched { pipe, size, .. }) = self.pipes.remove(&token) else {
            return;
        };
        self.grown -= usize::from(size == Size::Grown);
        // Closing is not enough: the keeper holds the same open pipe, and epoll would go on
        // reporting its hang-up for ever.
        let _ = self.epoll.delete(&pipe.fd); // ENOENT only
        (self.told)(News::Closed { run: pipe.run, stream: pipe.spool.stream() });
        self.drained(pipe.run, token, now);
    }

    /// Puts a pipe aside. It must leave the epoll set: a hang-up is reported even to those who did
    /// not ask.
    fn stall(&mut self, token: u64, errno: Errno) {
        if self.stalled.contains(&token) {
            return; // a drain and its own event in one wake-up
        }
        if let Some(watched) = self.pipes.get(&token) {
            let _ = self.epoll.delete(&watched.pipe.fd); // ENOENT when it never got in
        }
        self.counters.stalls.fetch_add(1, Ordering::Relaxed);
        self.note_errno(errno);
        if self.stalled.is_empty() {
            let after = Expiration::OneShot(TimeSpec::from_duration(STALL_RETRY));
            let _ = self.retry.set(after, TimerSetTimeFlags::empty()); // fails for invalid times only
        }
        self.stalled.push(token);
    }

    fn note_errno(&self, errno: Errno) {
        self.counters.last_errno.store(u64::try_from(errno as i32).unwrap_or(0), Ordering::Relaxed);
    }

    fn resume_stalled(&mut self, now: Now) {
        let _ = self.retry.wait(); // clears the timer; EAGAIN when it was set anew meanwhile
        for token in std::mem::take(&mut self.stalled) {
            let Some(watched) = self.pipes.get(&token) else {
                continue;
            };
            match self.epoll.add(&watched.pipe.fd, EpollEvent::new(EpollFlags::EPOLLIN, token)) {
                // Bytes in our hands make no pipe readable: try at once.
                Ok(()) => _ = self.turn(token, now),
                Err(errno) => self.stall(token, errno),
            }
        }
    }
}

impl Drain {
    /// Whether, `moved_bytes` later, everything that was in the pipe when asked is stored.
    fn passed(&mut self, moved_bytes: u64, end: &Turn) -> bool {
        match self {
            Drain::NotAsked => false,
            Drain::Asked { left_bytes } => {
                *left_bytes = left_bytes.saturating_sub(moved_bytes);
                *left_bytes == 0 || matches!(end, Turn::Empty)
            }
        }
    }
}

impl Watched {
    /// Moves until the pipe is empty or the share is used up; on a full disk throws away what is
    /// there, if the unit says so.
    fn pump(&mut self, now: Now, counters: &Counters, null: &File) -> Pumped {
        let (moved_bytes, end) = self.store(now, counters);
        match end {
            Turn::Stalled(errno @ (Errno::ENOSPC | Errno::EDQUOT))
                if self.pipe.spool.keep().when_full == WhenFull::Drop =>
            {
                let (lost_bytes, end) = self.discard(now, null, counters);
                Pumped { moved_bytes, lost: (lost_bytes > 0).then_some((errno, lost_bytes)), end }
            }
            end => Pumped { moved_bytes, lost: None, end },
        }
    }

    /// What has to be told of the stream's trouble: when it begins, and when it is over.
    fn judge(&mut self, pumped: &Pumped) -> Option<Trouble> {
        let lost_bytes = pumped.lost.map_or(0, |(_, bytes)| bytes);
        match (&mut self.trouble, &pumped.end) {
            (None, Turn::Stalled(errno)) => {
                self.trouble = Some(InTrouble { dropped_bytes: lost_bytes });
                Some(Trouble::Blocked(*errno))
            }
            (None, Turn::Empty | Turn::More | Turn::Closed) => {
                let (errno, _) = pumped.lost?;
                self.trouble = Some(InTrouble { dropped_bytes: lost_bytes });
                Some(Trouble::Dropping(errno))
            }
            (Some(trouble), end) => {
                trouble.dropped_bytes += lost_bytes;
                let over = match end {
                    Turn::Closed => true,
                    Turn::Stalled(_) => false,
                    Turn::Empty | Turn::More => pumped.moved_bytes > 0 && pumped.lost.is_none(),
                };
                let dropped_bytes = trouble.dropped_bytes;
                over.then(|| {
                    self.trouble = None;
                    Trouble::Over { dropped_bytes }
                })
            }
        }
    }

    fn store(&mut self, now: Now, counters: &Counters) -> (u64, Turn) {
        let mut moved_bytes = 0;
        if let Err(errno) = self.pipe.spool.mark_loss(now) {
            return (0, Turn::Stalled(errno));
        }
        while moved_bytes < TURN_BYTES_MAX {
            if !self.held.is_empty() {
                match self.write_held(now, counters) {
                    Ok(written) => moved_bytes += written,
                    Err(errno) => return (as_u64(moved_bytes), Turn::Stalled(errno)),
                }
                continue;
            }
            let Pipe { run, fd, spool, .. } = &self.pipe;
            match spool.splice_from(*run, now, fd.as_fd(), SPLICE_BYTES_MAX) {
                Ok(0) => return (as_u64(moved_bytes), Turn::Closed),
                Ok(moved) => {
                    moved_bytes += moved;
                    if matches!(self.drain, Drain::NotAsked) {
                        // Going on would chase the writer, one call of ours for each of its own.
                        return (as_u64(moved_bytes), Turn::More);
                    }
                }
                Err(Errno::EAGAIN) => return (as_u64(moved_bytes), Turn::Empty),
                Err(Errno::EINTR) => {}
                Err(Errno::EINVAL) => match self.take_into_hands() {
                    Ok(0) => return (as_u64(moved_bytes), Turn::Closed),
                    Ok(_) => {}
                    Err(Errno::EAGAIN) => return (as_u64(moved_bytes), Turn::Empty),
                    Err(errno) => return (as_u64(moved_bytes), Turn::Stalled(errno)),
                },
                Err(errno) => return (as_u64(moved_bytes), Turn::Stalled(errno)),
            }
        }
        (as_u64(moved_bytes), Turn::More)
    }

    /// Throws away what is in the pipe now. The next turn tries the file again: a service that
    /// writes finds out within one turn that there is space.
    fn discard(&mut self, now: Now, null: &File, counters: &Counters) -> (u64, Turn) {
        let mut lost_bytes = self.held.len();
        self.held.clear();
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let end = match splice(&self.pipe.fd, None, null, None, SPLICE_BYTES_MAX, flags) {
            Ok(0) => Turn::Closed,
            Ok(bytes) => {
                lost_bytes += bytes;
                // One splice takes all that was there.
                Turn::Empty
            }
            Err(Errno::EAGAIN) => Turn::Empty,
            Err(Errno::EINTR) => Turn::More,
            Err(errno) => Turn::Stalled(errno),
        };
        if lost_bytes > 0 {
            counters.dropped_bytes.fetch_add(as_u64(lost_bytes), Ordering::Relaxed);
            self.pipe.spool.count_loss(self.pipe.run, as_u64(lost_bytes));
        }
        // Marked here and now, while the index has room; else with the next bytes that are stored.
        let _ = self.pipe.spool.mark_loss(now);
        (as_u64(lost_bytes), end)
    }

    /// Where splice cannot be used (O_APPEND, odd file systems). These bytes die with us.
    fn take_into_hands(&mut self) -> Result<usize, Errno> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        // The pipe is not O_NONBLOCK (others share its open file), so ask before reading.
        let mut ask = [PollFd::new(self.pipe.fd.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ask, PollTimeout::ZERO)? == 0 {
            return Err(Errno::EAGAIN);
        }
        let mut buffer = vec![0; COPY_BYTES_MAX];
        let taken = nix::unistd::read(&self.pipe.fd, &mut buffer)?;
        buffer.truncate(taken);
        self.held = buffer;
        Ok(taken)
    }

    fn write_held(&mut self, now: Now, counters: &Counters) -> Result<usize, Errno> {
        let written = self.pipe.spool.append(self.pipe.run, now, &self.held)?;
        if written == 0 {
            return Err(Errno::EIO);
        }
        self.held.drain(..written);
        counters.copied_bytes.fetch_add(as_u64(written), Ordering::Relaxed);
        Ok(written)
    }

    /// A refusal is final: it is a limit of the user, not of the moment.
    fn grow(&mut self) {
        let grown = fcntl(&self.pipe.fd, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES_GROWN));
        self.size = if grown.is_ok() { Size::Grown } else { Size::Refused };
    }
}

fn now() -> Now {
    Now { at: clock::monotonic(), ts_us: clock::wall().as_microsecond() }
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
