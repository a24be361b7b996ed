//! `Call`: the closed list of what can be asked over the socket, and `Answer`.
//!
//! Refuses: a request that is not on the list (reliability A1: closed enum of routes).

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::api::drills::DrillStep;
use crate::api::types::ErrorBody;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over the Unix socket: who it was when it connected, by SO_PEERCRED and SO_PEERGROUPS.
    Local(Local),
    /// Over TCP.
    Remote { from: SocketAddr, proof: Proof },
}

/// A process of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// The others.
    pub groups: Vec<u32>,
    pub pid: i32,
}

/// What a request over TCP has to show for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Nothing,
    /// Something that is not the token.
    Wrong,
    /// The token as the password that a browser keeps and sends of its own accord: it reads, and no more.
    Password,
    Token,
}

impl fmt::Display for Peer {
    /// `user 1000 (process 77)`, `the token's holder at 127.0.0.1:50000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Local(Local { uid, pid, .. }) => write!(f, "user {uid} (process {pid})"),
            Peer::Remote { from, proof: Proof::Token } => write!(f, "the token's holder at {from}"),
            Peer::Remote { from, proof: Proof::Password } => write!(f, "a browser at {from}"),
            Peer::Remote { from, proof: Proof::Nothing | Proof::Wrong } => write!(f, "somebody at {from}"),
        }
    }
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
    Metrics(MetricsForm),
    /// The same numbers as JSON.
    SystemMetrics,
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
    /// The dashboard, or what belongs to it.
    Page(WebKind),
    /// The id of the newest event, and of each that comes.
    News {
        follow: bool,
    },
    /// The KPIs of a window that ends now.
    Summary {
        since: Since,
    },
    Alerts(AlertCall),
    /// What a reread of the files would do.
    ConfigPlan,
    /// Reread the files and do it.
    ConfigApply {
        /// false: answered as soon as the set is in force.
        wait: bool,
    },
    /// The newest drills.
    Drills {
        limit: u32,
    },
    /// A step of a drill.
    Drill {
        drill: String,
        step: DrillStep,
    },
    /// How far the newest upgrade is.
    Upgrade,
    /// Swap the daemon for the binary on disk; answered when the new one is about to take over.
    BeginUpgrade,
}

/// What can be asked about alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlertCall {
    /// The newest.
    List { limit: u32 },
    /// Raise an alert to see whether it arrives; none = every channel.
    Test {
        channels: Vec<String>,
        /// false: answered when it is raised; else when it arrived everywhere, or 30 s later.
        wait: bool,
    },
    /// Units or ids of alerts that somebody has taken.
    Ack { names: Vec<String> },
    /// Tell nothing of these units (none = all) for so long; None = no longer.
    Mute { units: Vec<String>, wait: Option<Duration> },
}

impl Call {
    /// What it changes, as a word for the audit; None: it only reads.
    pub fn changes(&self) -> Option<&'static str> {
        match self {
            Call::Act { verb, .. } => Some(verb.as_str()),
            Call::RestartInactive { .. } => Some("restart"),
            Call::Signal { .. } => Some("signal"),
            Call::ConfigApply { .. } => Some("apply"),
            Call::BeginUpgrade => Some("upgrade"),
            Call::Alerts(AlertCall::Test { .. }) => Some("alert test"),
            Call::Alerts(AlertCall::Ack { .. }) => Some("alert ack"),
            Call::Alerts(AlertCall::Mute { .. }) => Some("alert mute"),
            Call::Drill { step, .. } => Some(match step {
                DrillStep::Begin { .. } => "drill begin",
                DrillStep::Fault { .. } => "drill fault",
                DrillStep::Undo { .. } => "drill undo",
                DrillStep::Progress { .. } => "drill progress",
                DrillStep::End { .. } => "drill end",
            }),
            Call::Livez
            | Call::Readyz
            | Call::Metrics(_)
            | Call::SystemMetrics
            | Call::Summary { .. }
            | Call::Page(_)
            | Call::News { .. }
            | Call::Health
            | Call::Units
            | Call::Unit { .. }
            | Call::Logs(_)
            | Call::Events { .. }
            | Call::ConfigErrors
            | Call::Alerts(AlertCall::List { .. })
            | Call::ConfigPlan
            | Call::Drills { .. }
            | Call::Upgrade => None,
        }
    }
}

/// Which text format of metrics the client reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetricsForm {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The older one of Prometheus, for whoever names none.
    #[default]
    Prometheus,
}

/// What the dashboard is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebKind {
    Html,
    Script,
    Style,
}

impl WebKind {
    /// Its media type, without the character set.
    pub fn as_str(self) -> &'static str {
        match self {
            WebKind::Html => "text/html",
            WebKind::Script => "text/javascript",
            WebKind::Style => "text/css",
        }
    }
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

/// One event of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What a client that breaks off says in `Last-Event-ID`.
    pub id: u64,
    /// The JSON of its `data:` line.
    pub json: Bytes,
}

/// What the daemon says to a `Call`.
#[derive(Debug)]
pub enum Answer {
    /// 200 with a JSON body.
    Json(Bytes),
    /// A status and one line of text (`/livez`, `/readyz`).
    Plain(u16, &'static str),
    /// 200 with something for a browser.
    Web(WebKind, Bytes),
    /// 200 with numbers in this text format.
    Metrics(MetricsForm, String),
    /// `text/event-stream`. Ends when the sender is dropped. The channel is bounded: a slow
    /// reader loses its own lines, nobody else's.
    Stream(mpsc::Receiver<Item>),
    /// A body that is made while it is sent, piece by piece.
    Pieces(PiecesOf, mpsc::Receiver<Bytes>),
    Error(u16, ErrorBody),
}
