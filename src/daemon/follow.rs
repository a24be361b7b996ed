//! The tasks that wait for something outside and tell the loop: probes, log lines, the
//! notification fd, a unit that becomes empty.
//!
//! Refuses: meaning. Each tells what it saw, for the run it was asked about.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;

use crate::base::check::NetCheck;
use crate::base::{exit::RunId, histogram::Histogram, limits, name::UnitName};
use crate::daemon::again::Again;
use crate::daemon::containment::Watch;
use crate::daemon::hands::{Hands, Source};
use crate::engine::event::Event;
use crate::logs::Stream;
use crate::logs::read::LineMatcher;
use crate::logs::spool::Spool;
use crate::probe::probe;
use crate::sys::clock;
use crate::sys::watched::{Wake, watched_or_back};
use crate::unit::spec::{HealthCheck, ReadyWhen, ResyncBy};

/// Where the kernel gives no sign that a unit became empty, it is looked at this often, and
/// only while somebody waits for it.
const EMPTINESS_LOOK: Duration = Duration::from_millis(50);

/// Runs one readiness check and tells what it saw.
pub fn run_probe(run: RunId, check: NetCheck, timeout: Duration, sources: UnboundedSender<Source>) {
    tokio::spawn(async move {
        let outcome = probe(&check, timeout).await;
        let _ = sources.send(Source::Event(Event::Probed { run, outcome })); // the loop has ended
    });
}

/// Runs one health check of a run and tells what it saw.
pub fn run_check(
    run: RunId,
    check: NetCheck,
    timeout: Duration,
    durations: Arc<Histogram>,
    sources: UnboundedSender<Source>,
) {
    tokio::spawn(async move {
        let began = clock::monotonic();
        let outcome = probe(&check, timeout).await;
        durations.observe(clock::monotonic().since(began));
        let _ = sources.send(Source::Event(Event::Checked { run, outcome })); // the loop has ended
    });
}

/// Sends one resync request for a run and tells how it was answered, unless the task is aborted
/// before: then the connection is closed and nothing is told.
pub fn run_resync(
    run: RunId,
    request: NetCheck,
    timeout: Duration,
    sources: UnboundedSender<Source>,
) -> AbortHandle {
    let asking = tokio::spawn(async move {
        let outcome = probe(&request, timeout).await;
        let _ = sources.send(Source::Event(Event::Resynced { run, outcome })); // the loop has ended
    });
    asking.abort_handle()
}

/// Tells once when a line of the run matches. The pattern was checked when the file was parsed.
pub fn watch_log(run: RunId, spool: Arc<Spool>, from: u64, pattern: &str, sources: UnboundedSender<Source>) {
    let mut matcher = match LineMatcher::new(spool, Stream::Stdout, from, pattern) {
        Ok(matcher) => matcher,
        Err(error) => return tracing::error!("cannot look for `{pattern}`: {error}"),
    };
    tokio::spawn(async move {
        loop {
            let found = tokio::select! {
                found = matcher.matched() => found,
                () = sources.closed() => return,
            };
            match found {
                Ok(_) => return drop(sources.send(Source::Event(Event::LogMatched { run }))), // as above
                Err(error) => {
                    tracing::warn!("cannot read the log for run {run} now: {error}");
                    tokio::time::sleep(limits::SHORTAGE_RETRY).await;
                }
            }
        }
    });
}

/// Tells when something was written to the notification fd. It is not read: the next engine
/// must see it too, should this one die before readiness is on the disk.
pub fn watch_notify_fd(run: RunId, mut pipe: OwnedFd, sources: UnboundedSender<Source>) {
    tokio::spawn(async move {
        let pipe = loop {
            match watched_or_back(pipe, Wake::Data) {
                Ok(pipe) => break pipe,
                // Unseen, its word would count as never said.
                Err((back, error)) => {
                    tracing::warn!("cannot watch the notification fd of run {run} yet: {error}");
                    pipe = back;
                    tokio::time::sleep(limits::SHORTAGE_RETRY).await;
                }
            }
        };
        while pipe.readable().await.is_ok() {
            match holds_bytes(pipe.get_ref()) {
                Ok(true) => _ = sources.send(Source::Event(Event::NotifiedReady { run })), // the loop has ended
                Ok(false) => {}
                Err(_) => {
                    tokio::time::sleep(limits::SHORTAGE_RETRY).await;
                    continue;
                }
            }
            return;
        }
    });
}

/// A closed pipe is readable too; only bytes are a word.
fn holds_bytes(pipe: &OwnedFd) -> nix::Result<bool> {
    let mut ask = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut ask, PollTimeout::ZERO) {
            Err(Errno::EINTR) => {}
            asked => {
                asked?;
                return Ok(ask[0].revents().is_some_and(|found| found.contains(PollFlags::POLLIN)));
            }
        }
    }
}

/// Has the loop look at `unit` whenever it may have become empty, until the task is aborted.
pub fn watch_emptiness(unit: UnitName, mut watch: Watch, sources: UnboundedSender<Source>) -> AbortHandle {
    let looking = tokio::spawn(async move {
        while sources.send(Source::MaybeEmpty(unit.clone())).is_ok() {
            // Time running out is a reason to look, too.
            let _ = tokio::time::timeout(EMPTINESS_LOOK, watch.changed()).await;
        }
    });
    looking.abort_handle()
}

impl Hands {
    pub(crate) fn probe(&self, unit: &UnitName, run: RunId) {
        let Some(spec) = self.specs.get(unit) else { return };
        if let ReadyWhen::Net(check) = &spec.readiness.when {
            let within = spec.readiness.timeout.unwrap_or(limits::READINESS_PROBE_TIMEOUT);
            let timeout = within.min(limits::READINESS_PROBE_TIMEOUT);
            run_probe(run, check.clone(), timeout, self.tools.sources.clone());
        }
    }

    pub(crate) fn check(&self, unit: &UnitName, run: RunId) {
        let Some(health) = self.specs.get(unit).and_then(|spec| spec.health.clone()) else { return };
        if let HealthCheck::Net(check) = health.check {
            let durations = Arc::clone(&self.observed.health);
            run_check(run, check, health.timeout, durations, self.tools.sources.clone());
        }
    }

    pub(crate) fn resync(&mut self, unit: &UnitName, run: RunId) {
        let Some(resync) = self.specs.get(unit).and_then(|spec| spec.resync.clone()) else { return };
        if let ResyncBy::Net(request) = resync.by {
            let sources = self.tools.sources.clone();
            let asking = run_resync(run, request, resync.timeout, sources);
            // An older one that the engine waits for no more (its requirement was lost again)
            // must not be taken for the answer to this one.
            if let Some(older) = self.resyncs.insert(unit.clone(), asking) {
                older.abort();
            }
        }
    }

    pub(crate) fn watch_log(&mut self, unit: &UnitName, run: RunId) {
        let Some(spec) = self.specs.get(unit).cloned() else { return };
        let Some(from) = self.runs.get(&run).map(|live| live.log_from) else { return };
        let ReadyWhen::Log(pattern) = &spec.readiness.when else { return };
        match self.spool(unit, Stream::Stdout) {
            Ok(spool) => watch_log(run, spool, from, pattern, self.tools.sources.clone()),
            Err(_) => self.again(limits::SHORTAGE_RETRY, Again::WatchLog { unit: unit.clone(), run }),
        }
    }
}
