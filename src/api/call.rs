//! `Call`: the closed list of what can be asked over the socket, and `Answer`.
//!
//! Refuses: a request that is not on the list (reliability A1: closed enum of routes).

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::api::types::ErrorBody;

/// Who asks, by SO_PEERCRED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    pub gid: u32,
    pub pid: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Start,
    Stop,
    Restart,
    Reload,
    Clear,
    Resync,
}

impl Verb {
    pub const ALL: [Verb; 6] =
        [Verb::Start, Verb::Stop, Verb::Restart, Verb::Reload, Verb::Clear, Verb::Resync];

    /// As it stands in a path and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Restart => "restart",
            Verb::Reload => "reload",
            Verb::Clear => "clear",
            Verb::Resync => "resync",
        }
    }
}

/// A request that has passed the route table, the access rule and the size limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Livez,
    Readyz,
    Health,
    Units,
    Unit {
        name: String,
    },
    /// One order for several units; answered when it is done.
    Act {
        verb: Verb,
        units: Vec<String>,
        all: bool,
        /// false: answered as soon as the order is taken.
        wait: bool,
    },
    /// Restart every unit that is not active (`POST /api/recovery/restart` without a unit).
    RestartInactive {
        /// false: answered as soon as the order is taken.
        wait: bool,
    },
    Signal {
        name: String,
        signal: String,
    },
    Logs {
        /// Empty = every unit.
        units: Vec<String>,
        /// Last lines to begin with.
        lines: u32,
        follow: bool,
    },
    Events {
        /// Only events with a greater id.
        after_id: Option<u64>,
        /// Only events at or after this wall time, RFC 3339.
        since: Option<String>,
        limit: u32,
        follow: bool,
    },
    ConfigErrors,
    Alerts {
        limit: u32,
    },
    /// What a reread of the files would do.
    ConfigPlan,
    /// Reread the files and do it.
    ConfigApply {
        /// false: answered as soon as the set is in force.
        wait: bool,
    },
    /// How far the newest upgrade is.
    Upgrade,
    /// Swap the daemon for the binary on disk; answered when the new one is about to take over.
    BeginUpgrade,
}

/// What the daemon says to a `Call`.
#[derive(Debug)]
pub enum Answer {
    /// 200 with a JSON body.
    Json(Bytes),
    /// A status and one line of text (`/livez`, `/readyz`).
    Plain(u16, &'static str),
    /// `text/event-stream`; each item is the JSON of one `data:` line. Ends when the sender
    /// is dropped. The channel is bounded: a slow reader loses its own lines, nobody else's.
    Stream(mpsc::Receiver<Bytes>),
    Error(u16, ErrorBody),
}
