//! The daemon's own log on its way to stderr, through a thread.
//!
//! Refuses: waiting for a reader that stalls (journald, a full pipe): it loses lines, which are
//! counted, and supervision goes on. And panicking where no thread is to be had.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Most lines that wait for a slow reader; a line has about a hundred bytes.
const LINES_WAITING_MAX: usize = 10_000;

/// How long the last words may take.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

enum Said {
    Line(Vec<u8>),
    End,
}

/// Takes lines, and never waits.
#[derive(Clone)]
pub(super) struct Lines {
    /// None: there was no thread to be had, each line is written where it is said.
    queue: Option<SyncSender<Said>>,
    lost: Arc<AtomicU64>,
}

/// Writes what waits when it is dropped, for at most a second.
pub struct LogGuard {
    queue: Option<SyncSender<Said>>,
    done: Receiver<()>,
}

impl Lines {
    pub(super) fn start() -> (Lines, LogGuard) {
        let (queue, said) = sync_channel(LINES_WAITING_MAX);
        let (end, done) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let thread = std::thread::Builder::new().name("log".into()).spawn(move || {
            write_all(&said, &counted);
            let _ = end.send(()); // the guard waits no more
        });
        let queue = thread.is_ok().then_some(queue);
        (Lines { queue: queue.clone(), lost }, LogGuard { queue, done })
    }
}

fn write_all(said: &Receiver<Said>, lost: &AtomicU64) {
    let mut stderr = io::stderr();
    while let Ok(Said::Line(line)) = said.recv() {
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            let _ = writeln!(stderr, "[{missing} lines of this log are lost: nobody read it in time]"); // as below
        }
        let _ = stderr.write_all(&line); // a closed stderr is no trouble of ours
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.queue {
            Some(queue) => {
                if queue.try_send(Said::Line(line.to_vec())).is_err() {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        self.clone()
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        // Full means that nobody reads: nothing to wait for.
        if let Some(queue) = &self.queue
            && queue.try_send(Said::End).is_ok()
        {
            let _ = self.done.recv_timeout(LAST_WORDS_MAX); // either way we end now
        }
    }
}
