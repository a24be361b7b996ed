//! `Capture`: one thread that moves what services write from their pipes into spool files.
//!
//! Refuses: to keep bytes in memory, to be held up by one flooding or broken pipe, to wake
//! when nothing is written, and to end before it is told to. Killed at any instruction it loses and
//! doubles nothing: splice(2) takes out of the pipe exactly what it put into the file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::base::exit::RunId;
use crate::logs::Stream;
use crate::logs::spool::Spool;
use crate::unit::spec::WhenFull;

/// Most bytes one pipe may move before the others have their turn: four full pipes, below a
/// millisecond on a warm page cache.
const TURN_BYTES_MAX: usize = 256 * 1024;

/// Most bytes asked for at once: more than a pipe can hold, so that one splice takes all that is
/// there. Where two runs share a file they then meet between whole writes, not inside a line.
const SPLICE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// After a turn that moved less than this, small writes are left to gather for `GATHER`.
const GATHER_BELOW_BYTES: usize = 32 * 1024;

/// How long. The first write after silence is moved at once; a stream of small ones costs
/// 2,000 turns a second instead of one for each write.
const GATHER: Duration = Duration::from_micros(500);

/// A pipe whose file cannot be written (disk full, I/O error) is tried again after this.
/// Meanwhile the pipe fills and its writer blocks.
const STALL_RETRY: Duration = Duration::from_secs(1);

/// Most pipes looked at in one turn; the kernel hands out ready ones round-robin.
const EVENTS_PER_TURN: usize = 64;

/// Most bytes in memory for a pipe whose file system cannot splice.
const COPY_BYTES_MAX: usize = 64 * 1024;

const ORDERS: u64 = 0;
const RETRY: u64 = 1;
const FIRST_PIPE: u64 = 2;

/// All that the pipe held is in the spool file (or, on a full disk, dropped, counted and marked).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    pub run: RunId,
    pub stream: Stream,
    pub writers: Writers,
}

/// Who can still write into the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// Nobody: the pipe is closed and forgotten. Told exactly once for each pipe.
    Gone,
    /// Somebody, for example a grandchild: the answer to `drain`; capture goes on.
    Alive,
}

/// What the capture did since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CaptureCounts {
    /// Bytes moved into spool files.
    pub stored_bytes: u64,
    /// Of those, bytes that went through our memory because the file system cannot splice.
    pub copied_bytes: u64,
    /// Bytes thrown away because the disk was full and the unit says `when_full = "drop"`.
    pub dropped_bytes: u64,
    /// Wake-ups of the thread. Stands still while nobody writes.
    pub turns: u64,
    /// Times a pipe was put aside because its file could not be written.
    pub stalls: u64,
    /// errno of the last stall; 0 = none yet.
    pub last_errno: i32,
}

#[derive(Default)]
struct Counters {
    stored_bytes: AtomicU64,
    copied_bytes: AtomicU64,
    dropped_bytes: AtomicU64,
    turns: AtomicU64,
    stalls: AtomicU64,
    last_errno: AtomicU64,
}

enum Order {
    Add(Pipe),
    Drain(RunId),
    End,
}

struct Pipe {
    run: RunId,
    stream: Stream,
    fd: OwnedFd,
    spool: Arc<Spool>,
    when_full: WhenFull,
    /// Bytes taken out of the pipe that could not be written yet; only where splice cannot be used.
    held: Vec<u8>,
    drain: Drain,
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

/// What a turn of a pipe ended with.
enum Turn {
    Empty,
    /// There may be more; the others first.
    More,
    Closed,
    Stalled(Errno),
}

/// The handle of the thread. Dropping it ends the thread after its turn; what is in the pipes
/// stays there for the next one.
pub struct Capture {
    orders: mpsc::Sender<Order>,
    wake: Arc<EventFd>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts the thread. `told` is called on that thread and must not block: at most once
    /// for each pipe, and once more for each `drain`.
    ///
    /// # Errors
    /// No fds or no thread to be had.
    pub fn start(told: impl Fn(Drained) + Send + 'static) -> io::Result<Capture> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let retry =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake.as_ref(), EpollEvent::new(EpollFlags::EPOLLIN, ORDERS))?;
        epoll.add(&retry, EpollEvent::new(EpollFlags::EPOLLIN, RETRY))?;
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        let (orders, inbox) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let mover = Mover {
            epoll,
            wake: Arc::clone(&wake),
            retry,
            null,
            inbox,
            pipes: BTreeMap::new(),
            next_token: FIRST_PIPE,
            stalled: Vec::new(),
            counters: Arc::clone(&counters),
            told: Box::new(told),
        };
        let thread = std::thread::Builder::new().name("log-capture".into()).spawn(|| mover.run())?;
        Ok(Capture { orders, wake, counters, thread: Some(thread) })
    }

    /// From now on what arrives in `pipe` (the read end) goes to the end of `spool`. Answered by
    /// `Drained` with `Writers::Gone` when the last writer has closed it. `when_full`: on a full
    /// disk leave the bytes in the pipe, so that the writer blocks, or drop and count them.
    pub fn add(&self, run: RunId, stream: Stream, pipe: OwnedFd, spool: Arc<Spool>, when_full: WhenFull) {
        let drain = Drain::NotAsked;
        self.order(Order::Add(Pipe { run, stream, fd: pipe, spool, when_full, held: Vec::new(), drain }));
    }

    /// Asks to be told `Drained` for each open pipe of `run` once everything that is in it now
    /// is stored. A run without open pipes is not answered: it was told `Writers::Gone` before.
    /// While the disk is full there is no answer; the caller bounds its wait.
    pub fn drain(&self, run: RunId) {
        self.order(Order::Drain(run));
    }

    /// Totals since the start; each is exact, but they are not of one instant.
    pub fn counts(&self) -> CaptureCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CaptureCounts {
            stored_bytes: load(&self.counters.stored_bytes),
            copied_bytes: load(&self.counters.copied_bytes),
            dropped_bytes: load(&self.counters.dropped_bytes),
            turns: load(&self.counters.turns),
            stalls: load(&self.counters.stalls),
            last_errno: i32::try_from(load(&self.counters.last_errno)).unwrap_or(0),
        }
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order); // fails only when the thread has ended, and then nothing can be done
        let _ = self.wake.write(1); // fails only when the counter is full, and then the thread is awake
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic in it was told by the panic hook
        }
    }
}

/// The thread's own side.
struct Mover {
    epoll: Epoll,
    wake: Arc<EventFd>,
    retry: TimerFd,
    /// Where dropped bytes go.
    null: File,
    inbox: mpsc::Receiver<Order>,
    pipes: BTreeMap<u64, Pipe>,
    next_token: u64,
    /// Not watched until the retry timer fires.
    stalled: Vec<u64>,
    counters: Arc<Counters>,
    told: Box<dyn Fn(Drained) + Send>,
}

#[derive(PartialEq, Eq)]
enum Flow {
    GoOn,
    End,
}

impl Mover {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS_PER_TURN];
        loop {
            // EINTR is a turn without news; the other errors cannot happen to an fd of ours.
            let ready = self.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            self.counters.turns.fetch_add(1, Ordering::Relaxed);
            let mut moved_bytes = 0;
            for event in &events[..ready] {
                match event.data() {
                    ORDERS => {
                        if self.take_orders() == Flow::End {
                            return;
                        }
                    }
                    RETRY => self.resume_stalled(),
                    token => moved_bytes += self.turn(token),
                }
            }
            if moved_bytes < as_u64(GATHER_BELOW_BYTES) {
                #[expect(clippy::disallowed_methods, reason = "to let small writes gather is the purpose")]
                std::thread::sleep(GATHER);
            }
        }
    }

    fn take_orders(&mut self) -> Flow {
        let _ = self.wake.read(); // EAGAIN: somebody's write was counted before
        loop {
            match self.inbox.try_recv() {
                Ok(Order::Add(pipe)) => self.add(pipe),
                Ok(Order::Drain(run)) => self.ask_drain(run),
                Ok(Order::End) | Err(mpsc::TryRecvError::Disconnected) => return Flow::End,
                Err(mpsc::TryRecvError::Empty) => return Flow::GoOn,
            }
        }
    }

    fn add(&mut self, pipe: Pipe) {
        let token = self.next_token;
        self.next_token += 1;
        let watched = self.epoll.add(&pipe.fd, EpollEvent::new(EpollFlags::EPOLLIN, token));
        self.pipes.insert(token, pipe);
        if let Err(errno) = watched {
            // ENOSPC (max_user_watches) or ENOMEM: shortage passes, the bytes wait in the pipe.
            self.stall(token, errno);
        }
    }

    fn ask_drain(&mut self, run: RunId) {
        let tokens: Vec<u64> =
            self.pipes.iter().filter(|(_, pipe)| pipe.run == run).map(|(token, _)| *token).collect();
        for token in tokens {
            if let Some(pipe) = self.pipes.get_mut(&token) {
                let capacity = fcntl(&pipe.fd, FcntlArg::F_GETPIPE_SZ).ok();
                let left_bytes = capacity.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(1 << 20);
                pipe.drain = Drain::Asked { left_bytes };
            }
            if !self.stalled.contains(&token) {
                self.turn(token);
            }
        }
    }

    /// One pipe's share. Says how many bytes were moved.
    fn turn(&mut self, token: u64) -> u64 {
        let Some(pipe) = self.pipes.get_mut(&token) else {
            return 0; // closed earlier in this turn
        };
        let (moved_bytes, end) = match pipe.pump(&self.counters) {
            (moved_bytes, Turn::Stalled(Errno::ENOSPC | Errno::EDQUOT))
                if pipe.when_full == WhenFull::Drop =>
            {
                (moved_bytes, pipe.discard(&self.null, &self.counters))
            }
            pumped => pumped,
        };
        self.counters.stored_bytes.fetch_add(moved_bytes, Ordering::Relaxed);
        let drained = pipe.drain.passed(moved_bytes, &end);
        match end {
            Turn::Closed => self.close(token),
            Turn::Stalled(errno) => self.stall(token, errno),
            Turn::Empty | Turn::More if drained => {
                pipe.drain = Drain::NotAsked;
                (self.told)(Drained { run: pipe.run, stream: pipe.stream, writers: Writers::Alive });
            }
            Turn::Empty | Turn::More => {}
        }
        moved_bytes
    }

    fn close(&mut self, token: u64) {
        let Some(pipe) = self.pipes.remove(&token) else {
            return;
        };
        // Closing is not enough: the keeper holds the same open pipe, and epoll would go on
        // reporting its hang-up for ever.
        let _ = self.epoll.delete(&pipe.fd); // ENOENT only
        let Pipe { run, stream, .. } = pipe;
        (self.told)(Drained { run, stream, writers: Writers::Gone });
    }

    /// Puts a pipe aside. It must leave the epoll set: a hang-up is reported even to those who did
    /// not ask.
    fn stall(&mut self, token: u64, errno: Errno) {
        if self.stalled.contains(&token) {
            return; // a drain and its own event in one wake-up
        }
        if let Some(pipe) = self.pipes.get(&token) {
            let _ = self.epoll.delete(&pipe.fd); // ENOENT when it never got in
        }
        self.counters.stalls.fetch_add(1, Ordering::Relaxed);
        self.counters.last_errno.store(u64::try_from(errno as i32).unwrap_or(0), Ordering::Relaxed);
        if self.stalled.is_empty() {
            let after = Expiration::OneShot(TimeSpec::from_duration(STALL_RETRY));
            let _ = self.retry.set(after, TimerSetTimeFlags::empty()); // fails for invalid times only
        }
        self.stalled.push(token);
    }

    fn resume_stalled(&mut self) {
        let _ = self.retry.wait(); // clears the timer; EAGAIN when it was set anew meanwhile
        for token in std::mem::take(&mut self.stalled) {
            let Some(pipe) = self.pipes.get(&token) else {
                continue;
            };
            match self.epoll.add(&pipe.fd, EpollEvent::new(EpollFlags::EPOLLIN, token)) {
                // Bytes in our hands make no pipe readable: try at once.
                Ok(()) => _ = self.turn(token),
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

impl Pipe {
    /// Moves until the pipe is empty or the share is used up.
    fn pump(&mut self, counters: &Counters) -> (u64, Turn) {
        let mut moved_bytes = 0;
        if let Err(errno) = self.spool.mark_loss() {
            return (0, Turn::Stalled(errno));
        }
        while moved_bytes < TURN_BYTES_MAX {
            if !self.held.is_empty() {
                match self.write_held(counters) {
                    Ok(written) => moved_bytes += written,
                    Err(errno) => return (as_u64(moved_bytes), Turn::Stalled(errno)),
                }
                continue;
            }
            match self.spool.splice_from(self.fd.as_fd(), SPLICE_BYTES_MAX) {
                Ok(0) => return (as_u64(moved_bytes), Turn::Closed),
                Ok(moved) => {
                    moved_bytes += moved;
                    if moved < GATHER_BELOW_BYTES && matches!(self.drain, Drain::NotAsked) {
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
    fn discard(&mut self, null: &File, counters: &Counters) -> Turn {
        let mut lost_bytes = self.held.len();
        self.held.clear();
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let end = match splice(&self.fd, None, null, None, SPLICE_BYTES_MAX, flags) {
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
        self.spool.count_loss(as_u64(lost_bytes));
        counters.dropped_bytes.fetch_add(as_u64(lost_bytes), Ordering::Relaxed);
        end
    }

    /// Where splice cannot be used (O_APPEND, odd file systems). These bytes die with us.
    fn take_into_hands(&mut self) -> Result<usize, Errno> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        // The pipe is not O_NONBLOCK (others share its open file), so ask before reading.
        let mut ask = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ask, PollTimeout::ZERO)? == 0 {
            return Err(Errno::EAGAIN);
        }
        let mut buffer = vec![0; COPY_BYTES_MAX];
        let taken = nix::unistd::read(&self.fd, &mut buffer)?;
        buffer.truncate(taken);
        self.held = buffer;
        Ok(taken)
    }

    fn write_held(&mut self, counters: &Counters) -> Result<usize, Errno> {
        let written = self.spool.append(&self.held)?;
        if written == 0 {
            return Err(Errno::EIO);
        }
        self.held.drain(..written);
        counters.copied_bytes.fetch_add(as_u64(written), Ordering::Relaxed);
        Ok(written)
    }
}

fn as_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
