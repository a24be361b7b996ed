//! Drains the outbox into channels: one task, told of what is committed, that performs what
//! `engine::outbox` decides.
//!
//! Refuses: deciding what deserves an alert, to whom it goes, and when it is sent again.

pub mod dispatch;
mod file;
mod line;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::engine::outbox::Takes;
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
}

/// The channels in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Channels(pub BTreeMap<String, (Way, Takes)>);

impl Channels {
    /// What `upright.toml` asks for; without a channel in force the stand-in.
    pub fn of(daemon: &DaemonSpec, log_dir: &Path) -> Channels {
        let mut channels = BTreeMap::new();
        for (name, channel) in &daemon.channels {
            if let ("file", Some(path)) = (channel.kind, &channel.path) {
                // Joining an absolute path gives that path.
                let way = Way::File { path: log_dir.join(path) };
                channels.insert(name.clone(), (way, Takes::Named));
            }
        }
        if channels.is_empty() {
            return Channels::stand_in(log_dir);
        }
        Channels(channels)
    }

    /// One channel that takes every alert into a file of the log directory.
    pub fn stand_in(log_dir: &Path) -> Channels {
        let way = Way::File { path: log_dir.join(FILE_NAME) };
        Channels(BTreeMap::from([(STAND_IN.to_string(), (way, Takes::Everything))]))
    }
}
