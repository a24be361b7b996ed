//! `upright.toml` → `DaemonSpec`, with the same diagnostics as unit files.
//!
//! Refuses: the file system; secrets (only the files that hold them are named here).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use crate::base::check::HostPort;
use crate::base::hidden::Hidden;
use crate::unit::channels::Channel;
use crate::unit::diag::Diagnostic;
use crate::unit::keys;
use crate::unit::parse::section;
use crate::unit::reader::{Reader, Section};

/// What becomes of a changed unit file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Apply,
    /// Say that it changed; `upright apply` does it.
    Notify,
    Off,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// TCP addresses; empty = the Unix socket only.
    pub listen: Vec<HostPort>,
    pub token_file: Option<PathBuf>,
    /// Users and `@groups`.
    pub operators: Vec<String>,
    /// Empty = everybody who can open the socket.
    pub viewers: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub url: Hidden,
    pub interval: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSpec {
    pub shutdown_timeout: Duration,
    pub watch: Watch,
    /// 1 or more.
    pub start_concurrency: u32,
    pub api: Api,
    pub channels: BTreeMap<String, Channel>,
    pub heartbeat: Option<Heartbeat>,
    pub retention: Duration,
    /// Bytes of `system_resilience.log` after which it is rotated.
    pub log_max_size: u64,
    /// 1 or more.
    pub log_max_files: u32,
}

/// What the file gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedDaemon {
    /// None when a diagnostic is an error.
    pub spec: Option<DaemonSpec>,
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads `upright.toml`; an empty text gives the defaults.
pub fn parse(file: &str, text: &str) -> ParsedDaemon {
    let (mut reader, tree) = Reader::open(keys::DAEMON, file, text);
    let spec = reader.daemon(&tree).filter(|_| !reader.has_errors());
    ParsedDaemon { spec, diagnostics: reader.finish() }
}

impl Reader<'_> {
    fn daemon(&mut self, tree: &DeTable<'_>) -> Option<DaemonSpec> {
        let s = section(tree, "daemon");
        let shutdown_timeout = self.need(s, "shutdown_timeout", Reader::duration);
        let watch = self.need(s, "watch", Reader::choice);
        let start_concurrency = self.need(s, "start_concurrency", Reader::count);
        let api = self.api(section(tree, "api"));
        let channels = self.channels(tree);
        let heartbeat = self.heartbeat(section(tree, "heartbeat"));
        let store = section(tree, "store");
        let retention = self.need(store, "retention", Reader::interval);
        let log_max_size = self.need(store, "log_max_size", Reader::size);
        let log_max_files = self.need(store, "log_max_files", Reader::count);
        Some(DaemonSpec {
            shutdown_timeout: shutdown_timeout?,
            watch: match watch? {
                "notify" => Watch::Notify,
                "off" => Watch::Off,
                _ => Watch::Apply,
            },
            start_concurrency: start_concurrency?,
            api: api?,
            channels: channels?,
            heartbeat: heartbeat?,
            retention: retention?,
            log_max_size: log_max_size?,
            log_max_files: log_max_files?,
        })
    }

    fn api(&mut self, s: Section<'_, '_>) -> Option<Api> {
        let listen = self.need(s, "listen", Reader::listen);
        let token_file = self.need(s, "token_file", Reader::path_or_none);
        let operators = self.need(s, "operators", Reader::peers);
        let viewers = self.need(s, "viewers", Reader::peers);
        Some(Api { listen: listen?, token_file: token_file?, operators: operators?, viewers: viewers? })
    }

    /// Users and `@groups`.
    fn peers(&mut self, key: &keys::Key, value: &crate::unit::reader::Value<'_>) -> Option<Vec<String>> {
        self.list(key, value, "an array of users and @groups", |reader, key, item| {
            let text = reader.text(key, item)?;
            if text.strip_prefix('@').unwrap_or(&text).is_empty() || text.contains(char::is_whitespace) {
                let help = Some("write a user name, or @ and a group name".into());
                reader.bad(key, item, format!("`{text}` names nobody"), help);
                return None;
            }
            Some(text)
        })
    }

    fn heartbeat(&mut self, s: Section<'_, '_>) -> Option<Option<Heartbeat>> {
        let url = self.may(s, "url", Reader::url);
        let interval = self.need(s, "interval", Reader::interval);
        let Some(table) = s.table else { return Some(None) };
        let Some(url) = url? else {
            let at = table.keys().map(|key| key.span()).min_by_key(|span| span.start).unwrap_or(0..0);
            self.error("missing-key", at, "[heartbeat] has no `url`".into(), None);
            return None;
        };
        Some(Some(Heartbeat { url, interval: interval? }))
    }
}

impl Default for DaemonSpec {
    /// What an empty file means. The numbers are those of the key table; a test compares.
    fn default() -> DaemonSpec {
        DaemonSpec {
            shutdown_timeout: Duration::from_secs(90),
            watch: Watch::Apply,
            start_concurrency: 32,
            api: Api {
                listen: Vec::new(),
                token_file: None,
                operators: vec!["root".into(), "@upright".into()],
                viewers: Vec::new(),
            },
            channels: BTreeMap::new(),
            heartbeat: None,
            retention: Duration::from_secs(90 * 86_400),
            log_max_size: 64 << 20,
            log_max_files: 8,
        }
    }
}
