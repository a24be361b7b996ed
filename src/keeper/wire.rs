//! The talk between keeper and engine: one datagram a message on a seqpacket socket, fds
//! beside it as SCM_RIGHTS.
//!
//! Refuses: versions it does not know. Keeper and engine may be of different builds, so
//! every message begins with a fixed header, and unknown kinds are answered, not guessed.

use std::os::fd::OwnedFd;

use crate::base::exit::{Exit, RunId};
use crate::base::signal::Signal;
use crate::base::time::Monotonic;

/// Longest tag of a run, in bytes. The engine writes it, the keeper only keeps it.
pub const TAG_LEN_MAX: usize = 96;

/// Longest name of a held fd, in bytes: a unit, a number, and an FDNAME (sd_notify(3)).
pub const HOLD_NAME_LEN_MAX: usize = 384;

/// Most fds beside one message (the kernel's SCM_MAX_FD is 253): those of a run, and as many as
/// a service may have stored.
pub const FDS_MAX: usize = 80;

/// The fd that the engine finds its end of the socket on.
pub const ENGINE_SOCKET_FD: i32 = 3;

/// What becomes of an fd that goes with a spawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdUse {
    /// dup2 to this number in the child.
    Child(i32),
    /// Kept beside the run until it is released; handed to the next engine with this label.
    Hold(u8),
    /// A cgroup's directory: the child is born in it.
    Cgroup,
}

/// The labels of held fds.
pub const HOLD_STDOUT: u8 = 1;
pub const HOLD_STDERR: u8 = 2;
pub const HOLD_NOTIFY_FD: u8 = 3;

/// Everything the child needs besides fds. It travels in a sealed memfd, so its size has
/// no bound but the kernel's for execve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpawnPlan {
    /// Absolute path of the file to execute.
    pub path: Vec<u8>,
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`; the whole environment, built from empty.
    pub env: Vec<Vec<u8>>,
    /// Names of variables that the child sets to its own pid.
    pub pid_env: Vec<Vec<u8>>,
    pub cwd: Option<Vec<u8>>,
    /// None: stay who we are.
    pub ids: Option<Ids>,
    pub umask: u32,
    /// (RLIMIT_ number, soft, hard)
    pub rlimits: Vec<(u32, u64, u64)>,
    pub nice: Option<i32>,
    pub oom_score_adj: Option<i32>,
    pub no_new_privs: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// How far an engine is, in its own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It takes over: it reads its store, or the table. Said again at each step of that.
    Beginning,
    /// Its loop turns.
    Running,
}

/// How an engine of this keeper ended that was not told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineEnd {
    pub pid: i32,
    pub at: Monotonic,
    pub exit: Exit,
    /// The keeper killed it, because it did not answer.
    pub hung: bool,
}

/// One row of the keeper's table, as a new engine gets it.
#[derive(Debug)]
pub struct TableRow {
    pub run: RunId,
    pub tag: Vec<u8>,
    pub pid: i32,
    pub spawned_at: Monotonic,
    /// execve has succeeded (or the run ended before anyone could tell).
    pub executed: bool,
    /// It lived when an engine asked for its end (`Request::SignalToEnd`).
    pub end_asked: bool,
    /// It said that it is ready (`Request::NoteReady`).
    pub said_ready: bool,
    /// What tells its process from all others of this boot (`sys::pidfd::identity`).
    pub identity: Option<u64>,
    /// Set when the run has ended: when, and how.
    pub ended: Option<(Monotonic, Exit)>,
    /// (label, fd)
    pub held: Vec<(u8, OwnedFd)>,
}

/// How far the newest upgrade is, as the keeper tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeStage {
    /// This engine is of the new build, and has to say `Request::Healthy`.
    Trial,
    /// Keeper and engine are of the new build.
    Done,
    /// Keeper and engine are of the old build, for the reason that is told with it.
    Failed,
}

/// An upgrade that the keeper has been asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeNews {
    /// Counts the upgrades that this keeper was asked for.
    pub number: u32,
    pub stage: UpgradeStage,
    /// What the engine that asked for it gave along (`TAG_LEN_MAX` bytes).
    pub note: Vec<u8>,
    /// Why it failed, in the words of the engine that did, or of the keeper.
    pub why: Vec<u8>,
}

/// A run of a keeper that died, as the next one gets it (`Request::Adopt`). Its process lived
/// when the engine looked, and is who it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    pub run: RunId,
    pub tag: Vec<u8>,
    pub pid: i32,
    pub spawned_at: Monotonic,
    pub end_asked: bool,
    pub said_ready: bool,
}

/// From the keeper.
#[derive(Debug)]
pub enum News {
    /// Answer to the engine's hello: what the keeper is, then `Row`s and `Held`s, then `TableEnd`.
    Welcome {
        keeper_pid: i32,
        engine_starts: u32,
        started_at: Monotonic,
    },
    Row(TableRow),
    /// An engine that went before this one, oldest first. Told after `Welcome`, and only to an engine
    /// that said `Alive` before its hello: an older build does not know it.
    EngineEnded(EngineEnd),
    /// Say `Alive`. Told only to an engine that has said it is running.
    Ping,
    /// A named fd that an earlier engine gave to hold (sockets of ours, fds that services stored).
    Held {
        name: Vec<u8>,
        fd: OwnedFd,
    },
    TableEnd,
    Spawned {
        run: RunId,
        pid: i32,
        /// As in `TableRow`.
        identity: Option<u64>,
    },
    /// fork refused: EAGAIN, ENOMEM, or the table is full (ENFILE).
    SpawnShort {
        run: RunId,
        errno: i32,
    },
    Executed {
        run: RunId,
    },
    /// Answer to `Request::NoteMain`: this process is the run now; the old one, if it was refused.
    /// An end that was told before this one is not the run's, if the process is a new one.
    Main {
        run: RunId,
        pid: i32,
        /// As in `TableRow`.
        identity: Option<u64>,
    },
    Exited {
        run: RunId,
        at: Monotonic,
        exit: Exit,
    },
    /// A process that was no run of ours was reaped (an orphan of a service).
    OrphanReaped,
    /// The keeper got this signal (TERM, INT, HUP, …) and passes it on.
    Signalled {
        signal: Signal,
    },
    /// Told to each engine before `TableEnd` once there was an upgrade, and when it has ended.
    Upgrade(UpgradeNews),
}

/// To the keeper.
#[derive(Debug)]
pub enum Request {
    Hello,
    /// Before the hello, at each step of the beginning, and as the answer to `News::Ping`. It comes
    /// from the engine's loop, so that a loop that stands still says nothing.
    Alive {
        stage: Stage,
    },
    Spawn {
        run: RunId,
        tag: Vec<u8>,
        plan: SpawnPlan,
        fds: Vec<(FdUse, OwnedFd)>,
    },
    Signal {
        run: RunId,
        signal: Signal,
    },
    /// Remember that this run said it is ready: the word was read from a socket, so the next
    /// engine would not hear it, should this one die before it is on the disk.
    NoteReady {
        run: RunId,
    },
    /// From now on this process is the run, whosever child it is: its end is the run's end, and
    /// that of the one before is not, even if it was told already. `process` is its pidfd, opened
    /// before anybody looked whether the pid belongs to the unit. Answered by `News::Main`.
    NoteMain {
        run: RunId,
        pid: i32,
        process: OwnedFd,
    },
    /// Take this run in: the keeper that spawned it died. `process` is its pidfd, opened before anybody
    /// looked whether it is the one that was spawned; `held` as in `Spawn`.
    Adopt {
        orphan: Orphan,
        process: OwnedFd,
        held: Vec<(u8, OwnedFd)>,
    },
    /// Like `Signal`, to make it end: noted in its row, so that the next engine knows that the
    /// end was wanted.
    SignalToEnd {
        run: RunId,
        signal: Signal,
    },
    /// Forget an ended run and close what was held for it. A living run is not forgotten.
    Release {
        run: RunId,
    },
    /// Hold this fd under this name for the next engine; the same name replaces.
    Hold {
        name: Vec<u8>,
        fd: OwnedFd,
    },
    /// Close what is held under this name.
    LetGo {
        name: Vec<u8>,
    },
    /// Everything is stopped: end, with this exit code. The keeper reaps what is left.
    End {
        code: u8,
    },
    /// This engine leaves; the next one is to be of this file, and then the keeper too. `note`
    /// is told to the engines that follow.
    Swap {
        note: Vec<u8>,
        binary: OwnedFd,
    },
    /// An engine on trial has taken over: everything is adopted, and its first commit stands.
    Healthy,
    /// This engine cannot take over and is about to end. Cut to `HOLD_NAME_LEN_MAX` bytes.
    Unfit {
        why: Vec<u8>,
    },
}
