//! `upright.toml` → `DaemonSpec`, with the same diagnostics as unit files.
//!
//! Refuses: the file system; secrets (only the files that hold them are named here).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use crate::base::check::HostPort;
use crate::unit::diag::Diagnostic;
use crate::unit::keys;
use crate::unit::parse::section;
use crate::unit::reader::{Reader, Section};
use crate::unit::spec::Command;

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

/// Longest name of a channel, in bytes: it stands in every row of its deliveries.
const CHANNEL_NAME_LEN_MAX: usize = 64;

/// The kinds of channel that work in this version; the others are read and checked.
pub const KINDS_IN_FORCE: [&str; 1] = ["file"];

/// One `[alert.NAME]`. Which keys a kind needs is checked when parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    pub kind: &'static str,
    pub url: Option<String>,
    pub url_file: Option<PathBuf>,
    pub secret_file: Option<PathBuf>,
    /// Absolute, or below the log directory.
    pub path: Option<PathBuf>,
    pub command: Option<Command>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    pub url: String,
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

    fn channels(&mut self, tree: &DeTable<'_>) -> Option<BTreeMap<String, Channel>> {
        let tables = tree.get("alert").and_then(|value| value.get_ref().as_table());
        let mut channels = BTreeMap::new();
        let mut sound = true;
        for (name, value) in tables.into_iter().flatten() {
            let s = Section { name: "alert.*", table: value.get_ref().as_table() };
            match self.channel(s, name.get_ref(), name.span()) {
                Some(channel) => {
                    channels.insert(name.get_ref().to_string(), channel);
                }
                None => sound = false,
            }
        }
        sound.then_some(channels)
    }

    fn channel(&mut self, s: Section<'_, '_>, name: &str, span: std::ops::Range<usize>) -> Option<Channel> {
        let kind = self.may(s, "kind", Reader::choice);
        let url = self.may(s, "url", Reader::url);
        let url_file = self.may(s, "url_file", Reader::path);
        let secret_file = self.may(s, "secret_file", Reader::path);
        let path = self.may(s, "path", Reader::log_path);
        let command = self.may(s, "command", Reader::command);
        let Some(kind) = kind? else {
            self.error(
                "missing-key",
                span,
                format!("[alert.{name}] has no `kind`"),
                Some("for example kind = \"slack\"".into()),
            );
            return None;
        };
        let channel = Channel {
            kind,
            url: url?,
            url_file: url_file?,
            secret_file: secret_file?,
            path: path?,
            command: command?,
        };
        let needs = match kind {
            "file" if channel.path.is_none() => Some("`path`"),
            "exec" if channel.command.is_none() => Some("`command`"),
            "file" | "exec" => None,
            _ if channel.url.is_none() && channel.url_file.is_none() => Some("`url` or `url_file`"),
            _ => None,
        };
        if let Some(needs) = needs {
            let message = format!("[alert.{name}]: kind = \"{kind}\" needs {needs}");
            self.error("missing-key", span, message, None);
            return None;
        }
        if channel.url.is_some() && channel.url_file.is_some() {
            let message = format!("[alert.{name}] has both `url` and `url_file`");
            self.error("conflict", span, message, Some("keep one of them".into()));
            return None;
        }
        self.channel_makes_sense(s, name, span, kind).then_some(channel)
    }

    /// A name that can stand in a list of names, and only keys that mean something to the kind.
    fn channel_makes_sense(
        &mut self,
        s: Section<'_, '_>,
        name: &str,
        span: std::ops::Range<usize>,
        kind: &str,
    ) -> bool {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.is_empty() || name.len() > CHANNEL_NAME_LEN_MAX || !name.chars().all(fits) {
            let help = Some("a-z, A-Z, 0-9, _ . and -, at most 64 of them".into());
            self.error("bad-name", span, format!("`{name}` is no name of a channel"), help);
            return false;
        }
        let own: &[&str] = match kind {
            "file" => &["kind", "path"],
            "exec" => &["kind", "command"],
            _ => &["kind", "url", "url_file", "secret_file"],
        };
        let mut sound = true;
        for key in s.table.into_iter().flat_map(DeTable::keys) {
            let word = key.get_ref().as_ref();
            let known = self.dialect.key(s.name, word).is_some(); // a stranger is named already
            if known && !own.contains(&word) {
                let message = format!("[alert.{name}]: `{word}` means nothing to kind = \"{kind}\"");
                self.error("conflict", key.span(), message, Some("take it out".into()));
                sound = false;
            }
        }
        if !KINDS_IN_FORCE.contains(&kind) {
            let what = format!("[alert.{name}], kind = \"{kind}\",");
            let message = format!("{what} is not in force yet: it is read and checked, and gets no alert");
            self.warning("not-in-force", span, message, Some("kind = \"file\" works".into()));
        }
        sound
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
