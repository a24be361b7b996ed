//! `RunId` and how a run ended.
//!
//! Refuses: judging whether an end is a failure. `engine::restart` does that.

use std::fmt;

use crate::base::signal::Signal;

/// One attempt at a process, never used twice in the life of a home. Every report
/// names its run, so that news of an older one can be told from news of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The step between fork and exec that failed. The words are systemd's
/// (systemd.exec(5), "Process Exit Codes") where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SpawnStep {
    /// Before any fork: pipes, cgroup, environment files, looking the command up.
    Prepare = 1,
    Fork = 2,
    Signals = 3,
    Session = 4,
    Cgroup = 5,
    Limits = 6,
    Nice = 7,
    OomScore = 8,
    Fds = 9,
    Groups = 10,
    Gid = 11,
    Uid = 12,
    NoNewPrivileges = 13,
    Chdir = 14,
    Exec = 15,
}

impl SpawnStep {
    pub const ALL: [SpawnStep; 15] = [
        SpawnStep::Prepare,
        SpawnStep::Fork,
        SpawnStep::Signals,
        SpawnStep::Session,
        SpawnStep::Cgroup,
        SpawnStep::Limits,
        SpawnStep::Nice,
        SpawnStep::OomScore,
        SpawnStep::Fds,
        SpawnStep::Groups,
        SpawnStep::Gid,
        SpawnStep::Uid,
        SpawnStep::NoNewPrivileges,
        SpawnStep::Chdir,
        SpawnStep::Exec,
    ];

    pub fn from_u8(value: u8) -> Option<SpawnStep> {
        SpawnStep::ALL.into_iter().find(|step| *step as u8 == value)
    }

    /// What could not be done, to follow "cannot".
    pub fn what(self) -> &'static str {
        match self {
            SpawnStep::Prepare => "prepare the process",
            SpawnStep::Fork => "fork",
            SpawnStep::Signals => "reset the signals",
            SpawnStep::Session => "start a session",
            SpawnStep::Cgroup => "enter the cgroup",
            SpawnStep::Limits => "set the resource limits",
            SpawnStep::Nice => "set the nice level",
            SpawnStep::OomScore => "set the OOM score",
            SpawnStep::Fds => "arrange the file descriptors",
            SpawnStep::Groups => "set the supplementary groups",
            SpawnStep::Gid => "set the group",
            SpawnStep::Uid => "set the user",
            SpawnStep::NoNewPrivileges => "set no_new_privs",
            SpawnStep::Chdir => "enter the working directory",
            SpawnStep::Exec => "execute the command",
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exit {
    /// `_exit(code)`, 0 to 255.
    Code(u8),
    /// Ended by a signal.
    Signal { signal: Signal, core: bool },
    /// The command was never executed: this step said this errno.
    NotExecuted { step: SpawnStep, errno: i32 },
    /// It is gone, and nobody can say how (its parent died too).
    Unknown,
}

/// errno(3); of every Linux.
const ENOENT: i32 = 2;

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited (code {code})"),
            Exit::Signal { signal, core: false } => write!(f, "was killed ({signal})"),
            Exit::Signal { signal, core: true } => write!(f, "was killed ({signal}, core dumped)"),
            // No call that sets ids says ENOENT: the name was looked up, and nobody has it.
            Exit::NotExecuted { step: step @ (SpawnStep::Uid | SpawnStep::Gid), errno: ENOENT } => {
                write!(f, "cannot {}: no account has this name", step.what())
            }
            Exit::NotExecuted { step, errno } => {
                let cause = std::io::Error::from_raw_os_error(*errno);
                write!(f, "cannot {}: {cause}", step.what())
            }
            Exit::Unknown => f.write_str("ended, status unknown"),
        }
    }
}
