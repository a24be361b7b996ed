//! `Call`: the closed list of what can be asked over the socket, and `Answer`.
//!
//! Refuses: a request that is not on the list (reliability A1: closed enum of routes).

use std::time::Duration;

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
    Metrics,
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
    Logs(LogQuery),
    Events {
        /// Only events with a greater id.
        after_id: Option<u64>,
        /// Only events at or after this wall time, RFC 3339.
        since: Option<String>,
        limit: u32,
        follow: bool,
    },
    ConfigErrors,
    /// The KPIs of a window that ends now.
    Summary {
        since: Since,
    },
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

/// Where a window begins that ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    Last(Duration),
    /// Wall time, µs since 1970.
    At(i64),
}

/// Which lines are wanted, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Empty = every unit.
    pub units: Vec<String>,
    /// Begin so many lines in front of the end; None = with the oldest.
    pub lines: Option<u32>,
    /// Only what was captured at or after this wall time, µs since 1970.
    pub since_us: Option<i64>,
    /// Only what was captured at or before this wall time, µs since 1970.
    pub until_us: Option<i64>,
    /// A regular expression that lines must match.
    pub grep: Option<String>,
    /// Only this stream: stdout or stderr.
    pub stream: Option<String>,
    /// Places to go on from: `next` of an answer, the id of an event.
    pub after: Option<String>,
    /// Tell also where runs began and ended.
    pub marks: bool,
    pub follow: bool,
    pub form: LogForm,
}

/// What an answer with lines is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogForm {
    /// One JSON object.
    #[default]
    Json,
    /// An event stream, an item an event. Always when followed, but for bytes.
    Events,
    /// The bytes as they were written.
    Bytes,
    /// An event stream whose items carry their bytes exactly.
    ByteEvents,
}

/// What the pieces of a body make up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PiecesOf {
    /// `application/json`.
    Json,
    /// `text/event-stream`, each piece whole events.
    Events,
    /// `application/octet-stream`.
    Bytes,
}

/// What the daemon says to a `Call`.
#[derive(Debug)]
pub enum Answer {
    /// 200 with a JSON body.
    Json(Bytes),
    /// A status and one line of text (`/livez`, `/readyz`).
    Plain(u16, &'static str),
    /// 200 with numbers in the OpenMetrics text format.
    Metrics(String),
    /// `text/event-stream`; each item is the JSON of one `data:` line. Ends when the sender
    /// is dropped. The channel is bounded: a slow reader loses its own lines, nobody else's.
    Stream(mpsc::Receiver<Bytes>),
    /// A body that is made while it is sent, piece by piece.
    Pieces(PiecesOf, mpsc::Receiver<Bytes>),
    Error(u16, ErrorBody),
}
