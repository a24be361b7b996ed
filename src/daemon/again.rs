//! What could not be done for want of fds, memory or threads, and must not stay undone: it is tried
//! again until it works.
//!
//! Refuses: giving up, and counting it against a unit.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{exit::RunId, exit::SpawnStep, limits, name::UnitName};
use crate::daemon::hands::{Hands, Source, is_shortage};
use crate::daemon::plan::Refused;
use crate::daemon::shell::Shell;
use crate::logs::Stream;
use crate::logs::capture::{Birth, Pipe};
use crate::logs::files::Refusal;
use crate::logs::spool::{Spool, SpoolError};

/// How long files that could not be read, or not be watched, are left alone.
pub const FILES_RETRY: Duration = Duration::from_secs(5);

/// One thing to do.
pub enum Again {
    /// Move what a run writes into its spool. Meanwhile its pipe fills.
    Capture { unit: UnitName, run: RunId, stream: Stream, pipe: OwnedFd },
    /// Look for the line by which a run is ready.
    WatchLog { unit: UnitName, run: RunId },
    /// Read the files, and watch them.
    Files,
}

impl Hands {
    /// Has the loop do it after `wait`.
    pub(crate) fn again(&self, wait: Duration, what: Again) {
        let sources = self.tools.sources.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = sources.send(Source::Again(what)); // the loop has ended
        });
    }

    /// Captures a pipe, now or when its spool can be opened.
    pub(crate) fn capture_or_later(&mut self, unit: &UnitName, run: RunId, stream: Stream, pipe: OwnedFd) {
        match self.spool(unit, stream) {
            Ok(spool) => self.capture(Pipe { run, fd: pipe, spool, birth: Birth::Adopted }),
            Err(error) => {
                tracing::error!("what {unit} writes stays in its pipe: {error}");
                let unit = unit.clone();
                self.again(limits::SHORTAGE_RETRY, Again::Capture { unit, run, stream, pipe });
            }
        }
    }

    /// The spool of a run that is to start. A service runs without a log rather than not at all;
    /// but it waits for a second rather than run its whole life without one.
    ///
    /// # Errors
    /// A shortage, to be told as one.
    pub(crate) fn spool_for_run(
        &mut self,
        unit: &UnitName,
        stream: Stream,
    ) -> Result<Option<Arc<Spool>>, Refused> {
        match self.spool(unit, stream) {
            Ok(spool) => Ok(Some(spool)),
            Err(error) => match shortage_of(&error) {
                Some(errno) => Err(Refused { step: SpawnStep::Prepare, errno, why: error.to_string() }),
                None => {
                    tracing::error!("what {unit} writes is not kept: {error}");
                    Ok(None)
                }
            },
        }
    }
}

fn shortage_of(error: &SpoolError) -> Option<i32> {
    match error.why {
        Refusal::Os(errno) if is_shortage(errno as i32) => Some(errno as i32),
        Refusal::Os(_) | Refusal::NotRegular | Refusal::Linked(_) => None,
    }
}

impl Shell {
    pub(crate) fn on_again(&mut self, what: Again) {
        match what {
            Again::Capture { unit, run, stream, pipe } => {
                self.hands.capture_or_later(&unit, run, stream, pipe);
            }
            Again::WatchLog { unit, run } => self.hands.watch_log(&unit, run),
            Again::Files => self.on_files_again(),
        }
    }
}
