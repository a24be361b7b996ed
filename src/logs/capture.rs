//! `Capture`: the handle of the one thread that moves what services write into spools.
//!
//! Refuses: waiting for it. What is asked of it is an order, what it has to say is news.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::logs::Stream;
use crate::logs::mover::Mover;
use crate::logs::retain::Retention;
use crate::logs::spool::Spool;

/// What the thread tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Every writer has closed this pipe, and all that it held is stored. Told once for each pipe.
    Closed { run: RunId, stream: Stream },
    /// All that the run had written is stored, and its end is marked: the answer to `finish`.
    Finished(RunId),
    /// A stream cannot be written, or can be written again.
    Trouble { unit: UnitName, stream: Stream, run: RunId, trouble: Trouble },
}

/// What is wrong with a stream. `Over` follows each of the others once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The bytes wait in the pipe, and the writer with them.
    Blocked(Errno),
    /// The bytes are thrown away and counted.
    Dropping(Errno),
    /// It is written again; so many bytes were thrown away meanwhile.
    Over { dropped_bytes: u64 },
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
    /// Streams that cannot be written now.
    pub in_trouble: u64,
    /// Files that were ended because they were full.
    pub rotations: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub stored_bytes: AtomicU64,
    pub copied_bytes: AtomicU64,
    pub dropped_bytes: AtomicU64,
    pub turns: AtomicU64,
    pub stalls: AtomicU64,
    pub last_errno: AtomicU64,
    pub in_trouble: AtomicU64,
    pub rotations: AtomicU64,
}

pub(super) enum Order {
    Add(Pipe),
    Finish { run: RunId, end: Option<End> },
    Leave,
}

/// A pipe to be captured.
pub struct Pipe {
    pub run: RunId,
    /// The read end.
    pub fd: OwnedFd,
    pub spool: Arc<Spool>,
    pub birth: Birth,
}

/// Whether a run begins with its pipe, or was there before us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    New,
    Adopted,
}

/// How a run ended, for the index.
#[derive(Debug)]
pub struct End {
    /// Where to mark it: the stream of its standard output.
    pub spool: Arc<Spool>,
    pub exit: Exit,
    /// Wall time, µs since 1970.
    pub ts_us: i64,
}

/// The handle of the thread. Dropping it ends the thread after its turn; what is in the pipes
/// stays there for the next one.
pub struct Capture {
    orders: mpsc::Sender<Order>,
    wake: Arc<EventFd>,
    counters: Arc<Counters>,
    retention: Arc<Retention>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts the thread, and that of the retention. `told` is called on it and must not block.
    ///
    /// # Errors
    /// No fds or no thread to be had.
    pub fn start(told: impl Fn(News) + Send + 'static) -> io::Result<Capture> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (orders, inbox) = mpsc::channel();
        let counters = Arc::new(Counters::default());
        let retention = Arc::new(Retention::start()?);
        let mover = Mover::new(
            Arc::clone(&wake),
            inbox,
            Arc::clone(&counters),
            Arc::clone(&retention),
            Box::new(told),
        )?;
        let thread = std::thread::Builder::new().name("log-capture".into()).spawn(|| mover.run())?;
        Ok(Capture { orders, wake, counters, retention, thread: Some(thread) })
    }

    /// From now on what arrives in the pipe goes to the end of its spool. Answered by
    /// `News::Closed` when the last writer has closed it.
    pub fn add(&self, pipe: Pipe) {
        self.order(Order::Add(pipe));
    }

    /// Asks to be told `News::Finished` once everything that is in the run's open pipes now is
    /// stored and its end is marked. While the disk is full there is no answer; the caller
    /// bounds its wait.
    pub fn finish(&self, run: RunId, end: Option<End>) {
        self.order(Order::Finish { run, end });
    }

    /// Has the older files of a stream looked at: too many, too old, to be packed.
    pub fn tidy(&self, spool: &Arc<Spool>) {
        self.retention.look(spool);
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
            in_trouble: load(&self.counters.in_trouble),
            rotations: load(&self.counters.rotations),
        }
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order); // fails only when the thread has ended, and then nothing can be done
        let _ = self.wake.write(1); // fails only when the counter is full, and then the thread is awake
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.order(Order::Leave);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic in it was told by the panic hook
        }
    }
}
