//! What the engine is told. Reports name their run; orders name their request.
//!
//! Refuses: anything that has not happened yet.

use std::sync::Arc;
use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::unit::spec::UnitSpec;

/// Number of an operator's request, given by the shell; the answer names it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A deadline may have passed. Ticking early is harmless.
    Tick,
    /// The files as they stand now: one complete, checked set.
    Configured { units: Vec<Arc<UnitSpec>> },
    /// `daemon.start_concurrency` is this now.
    Tuned { start_concurrency: u32 },
    /// The keeper forked this run.
    Spawned { run: RunId, pid: i32 },
    /// Its execve succeeded.
    Executed { run: RunId },
    /// The run has ended. `at` is when the keeper reaped it, which is when it failed:
    /// delays count from there, however late the news is.
    Exited { run: RunId, at: Monotonic, exit: Exit, rest: Rest },
    /// No fds, memory or pids to spawn this run with. Not the unit's fault.
    SpawnShort { run: RunId, errno: i32 },
    /// The last process of the unit is gone.
    Emptied { unit: UnitName },
    /// What a readiness probe asked for by `Effect::Probe` saw.
    Probed { run: RunId, outcome: ProbeOutcome },
    /// What a health check asked for by `Effect::Check` saw.
    Checked { run: RunId, outcome: ProbeOutcome },
    /// `WATCHDOG=1` from a process of this run's unit.
    Pinged { run: RunId },
    /// `WATCHDOG=trigger`: the service itself says that it is beyond help.
    WatchdogTriggered { run: RunId },
    /// How the HTTP resync asked for by `Effect::Resync` was answered: 2xx is the acknowledgement.
    Resynced { run: RunId, outcome: ProbeOutcome },
    /// `READY=1`, or a newline on the notification fd, from a process of this run's unit.
    NotifiedReady { run: RunId },
    /// A line of this run's output matches the unit's `readiness.log`.
    LogMatched { run: RunId },
    /// Another word of sd_notify(3) from a process of this run's unit.
    Said { run: RunId, said: Said },
    /// What was found wrong in the files, a sentence each, file by file; empty = all is well.
    ConfigJudged { errors: Vec<String> },
    /// An operator's order.
    Ordered { request: RequestId, order: Order },
}

/// What a service may say of itself, besides `READY=1` and `WATCHDOG=…` (sd_notify(3)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// `RELOADING=1`; `READY=1` follows when it is done.
    Reloading,
    /// `STOPPING=1`
    Stopping,
    /// `STATUS=`, cleaned. Empty = nothing to say any more.
    Status(String),
    /// `EXTEND_TIMEOUT_USEC=`, counted from now.
    ExtendTimeout(Duration),
    /// `WATCHDOG_USEC=`: the watchdog's period from now on.
    WatchdogEvery(Duration),
    /// `MAINPID=`, checked to be a process of the unit and known to the keeper as this run.
    MainPid(i32),
}

/// Whether processes of the unit outlived its main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// None: the unit's cgroup is empty.
    Empty,
    /// Some; `Event::Emptied` follows when the last one is gone.
    Alive,
}

/// What an operator may ask for. Unit names are known to exist (the API looks them up).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    Start(Vec<UnitName>),
    Stop(Vec<UnitName>),
    Restart(Vec<UnitName>),
    Reload(Vec<UnitName>),
    /// Forget the failures: the episode ends; a held (failed) unit that is wanted starts again.
    Clear(Vec<UnitName>),
    Signal(UnitName, Signal),
    /// A drill's outage: its main process is killed, and none is started before then; None = it is over.
    /// It is kept nowhere, so that no engine begins with one. An operator's start or stop ends it.
    Outage(UnitName, Option<Monotonic>),
    /// Restore the state of these units now, whatever their requirements did.
    Resync(Vec<UnitName>),
    /// Nothing is changed: answered when each of these is up, or will not come.
    AwaitUp(Vec<UnitName>),
    /// The same for those that go down, or out of the files.
    AwaitDown(Vec<UnitName>),
    /// Stop everything in reverse order and end; what was asked for stays as it is.
    Shutdown,
}
