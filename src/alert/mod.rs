//! Drains the outbox into channels: one task, told of what is committed, that performs what
//! `engine::outbox` decides.
//!
//! Refuses: deciding what deserves an alert, to whom it goes, and when it is sent again.

pub mod dispatch;
mod alertmanager;
mod discord;
mod file;
mod gather;
#[cfg(test)]
mod golden_tests;
mod http;
mod line;
mod mail;
mod ntfy;
mod pagerduty;
mod print;
mod request;
mod secret;
mod send;
mod slack;
mod story;
mod teams;
mod tls;
mod webhook;
pub mod word;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::base::hidden::Hidden;
use crate::engine::outbox::{Outcome, Takes, Terms};
use crate::unit::channels::Channel;
use crate::unit::daemon_file::DaemonSpec;

/// The channel that stands in where `upright.toml` has none in force, so that no alert goes nowhere.
pub const STAND_IN: &str = "file";

/// Its file, in the log directory.
pub const FILE_NAME: &str = "alerts.jsonl";

/// Where the alerts of a channel go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A line an alert is appended to this file.
    File { path: PathBuf },
    /// To somebody else: a server or a program.
    Away(Arc<Channel>),
}

/// One heartbeat: 2xx takes it.
pub async fn beat(url: Hidden) -> Outcome {
    send::get(url).await
}

/// Rows in one message, where a person reads it.
const FOLD: usize = 16;

impl Way {
    /// What the sink bears: of those whose messages people read, one a second (Slack's own limit; Discord's
    /// is lower), with what gathered meanwhile in it. Programs get each alert by itself.
    fn terms(&self, takes: Takes) -> Terms {
        let kind = match self {
            Way::File { .. } => "file",
            Way::Away(channel) => channel.kind,
        };
        match kind {
            "slack" | "teams" | "ntfy" => Terms { takes, gap: Duration::from_secs(1), fold: FOLD },
            "email" => Terms { takes, gap: Duration::from_millis(500), fold: FOLD },
            "discord" => Terms { takes, gap: Duration::from_secs(2), fold: FOLD },
            _ => Terms::plain(takes),
        }
    }
}

/// The channels in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channels {
    pub ways: BTreeMap<String, (Way, Takes)>,
    /// Where a person who gets an alert can look.
    pub dashboard: Option<String>,
}

impl Channels {
    /// What `upright.toml` asks for; without a channel the stand-in.
    pub fn of(daemon: &DaemonSpec, log_dir: &Path) -> Channels {
        let way = |channel: &Channel| match (channel.kind, &channel.path) {
            // Joining an absolute path gives that path.
            ("file", Some(path)) => Way::File { path: log_dir.join(path) },
            (_, _) => Way::Away(Arc::new(channel.clone())),
        };
        let named =
            daemon.channels.iter().map(|(name, channel)| (name.clone(), (way(channel), Takes::Named)));
        let ways: BTreeMap<_, _> = named.collect();
        if ways.is_empty() {
            return Channels::stand_in(log_dir);
        }
        let at = daemon.api.listen.first();
        let host = |host: &str| if host.contains(':') { format!("[{host}]") } else { host.to_string() };
        Channels { ways, dashboard: at.map(|at| format!("http://{}:{}/", host(&at.host), at.port)) }
    }

    /// One channel that takes every alert into a file of the log directory.
    pub fn stand_in(log_dir: &Path) -> Channels {
        let way = Way::File { path: log_dir.join(FILE_NAME) };
        let ways = BTreeMap::from([(STAND_IN.to_string(), (way, Takes::Everything))]);
        Channels { ways, dashboard: None }
    }
}
