//! `LineMatcher`: waits for the line that makes a unit ready (`readiness.log`).
//!
//! Refuses: older runs' words, and missing a line because the file was ended meanwhile.

use std::io;
use std::sync::Arc;

use regex::bytes::Regex;
use tokio::sync::watch;

use crate::logs::Stream;
use crate::logs::line::{Cursor, Said};
use crate::logs::scan::{Scan, Step, Unfinished};
use crate::logs::spool::Spool;

/// Items that it looks at before others on its thread have their turn.
const ITEMS_PER_TURN: u32 = 1024;

/// Waits for a line that matches.
pub struct LineMatcher {
    /// Held, so that `stored` goes on telling.
    _spool: Arc<Spool>,
    stored: watch::Receiver<u64>,
    scan: Scan,
    pattern: Regex,
}

impl LineMatcher {
    /// `from`: `Spool::stored_bytes` before the run was spawned, so that an older run's words
    /// are not taken for this one's.
    ///
    /// # Errors
    /// The pattern is no regular expression, or too large a one. (Matching is linear in the
    /// line, whatever the pattern: the `regex` crate has no backtracking.)
    pub fn new(
        spool: Arc<Spool>,
        stream: Stream,
        from: u64,
        pattern: &str,
    ) -> Result<LineMatcher, regex::Error> {
        let pattern = Regex::new(pattern)?;
        let stored = spool.watch();
        let mut scan = Scan::new(&spool.directory(), stream);
        scan.rewind(Cursor::at(from), false);
        Ok(LineMatcher { _spool: spool, stored, scan, pattern })
    }

    /// The bytes of the next line that matches, without its newline. Lines longer than
    /// `LINE_BYTES_MAX` are looked at piece by piece. Safe to cancel: nothing is passed over.
    ///
    /// # Errors
    /// What pread(2) says. Asking again tries again.
    pub async fn matched(&mut self) -> io::Result<Vec<u8>> {
        loop {
            self.stored.mark_unchanged();
            let mut left = ITEMS_PER_TURN;
            while let Step::Item(item) = self.scan.next(u64::MAX, Unfinished::Leave)? {
                if let Said::Line { bytes, .. } = item.said
                    && self.pattern.is_match(&bytes)
                {
                    return Ok(bytes);
                }
                left -= 1;
                if left == 0 {
                    left = ITEMS_PER_TURN;
                    // A flood must not keep the others on this thread from running.
                    tokio::task::yield_now().await;
                }
            }
            if self.stored.changed().await.is_err() {
                std::future::pending::<()>().await; // cannot be: we hold the spool
            }
        }
    }
}
