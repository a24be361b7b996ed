//! `[alert.NAME]` → `Channel`: what each kind needs, and what means nothing to it.
//!
//! Refuses: the file system. The files that hold secrets are named here and read by `alert`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;

use toml::de::DeTable;

use crate::base::check::{HostPort, NetCheck};
use crate::base::hidden::Hidden;
use crate::unit::keys::Key;
use crate::unit::reader::{Reader, Section, Value};
use crate::unit::spec::Command;

/// Longest name of a channel, in bytes: it stands in every row of its deliveries.
const CHANNEL_NAME_LEN_MAX: usize = 64;

/// Most addresses that one mail goes to.
const RECIPIENTS_MAX: usize = 50;

/// One `[alert.NAME]`. Which keys a kind needs is checked when parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    pub kind: &'static str,
    pub url: Option<Hidden>,
    pub url_file: Option<PathBuf>,
    pub secret_file: Option<PathBuf>,
    /// Certificates to trust instead of the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Absolute, or below the log directory.
    pub path: Option<PathBuf>,
    pub command: Option<Command>,
    pub mail: Mail,
}

/// What only `kind = "email"` has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    pub host: Option<HostPort>,
    pub tls: MailTls,
    pub from: Option<String>,
    pub to: Vec<String>,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailTls {
    StartTls,
    /// From the first byte.
    Tls,
    /// Only to this host.
    None,
}

impl Reader<'_> {
    pub(super) fn channels(&mut self, tree: &DeTable<'_>) -> Option<BTreeMap<String, Channel>> {
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

    fn channel(&mut self, s: Section<'_, '_>, name: &str, span: Range<usize>) -> Option<Channel> {
        let kind = self.may(s, "kind", Reader::choice);
        let url = self.may(s, "url", Reader::url);
        let url_file = self.may(s, "url_file", Reader::path);
        let secret_file = self.may(s, "secret_file", Reader::path);
        let ca_file = self.may(s, "ca_file", Reader::path);
        let path = self.may(s, "path", Reader::log_path);
        let command = self.may(s, "command", Reader::command);
        let mail = self.mail(s);
        let Some(kind) = kind? else {
            let help = Some("for example kind = \"slack\"".into());
            self.error("missing-key", span, format!("[alert.{name}] has no `kind`"), help);
            return None;
        };
        let channel = Channel {
            kind,
            url: url?,
            url_file: url_file?,
            secret_file: secret_file?,
            ca_file: ca_file?,
            path: path?,
            command: command?,
            mail: mail?,
        };
        if let Some(lacks) = channel.lacks() {
            let message = format!("[alert.{name}]: kind = \"{kind}\" needs {lacks}");
            self.error("missing-key", span, message, None);
            return None;
        }
        if let Some((message, help)) = channel.contradicts_itself() {
            self.error("conflict", span, format!("[alert.{name}] {message}"), Some(help.into()));
            return None;
        }
        self.channel_makes_sense(s, name, span, kind).then_some(channel)
    }

    fn mail(&mut self, s: Section<'_, '_>) -> Option<Mail> {
        let host = self.may(s, "host", Reader::tcp);
        let tls = self.need(s, "tls", Reader::choice);
        let from = self.may(s, "from", Reader::mail_address);
        let to = self.may(s, "to", |reader, key, value| {
            reader.list(key, value, "an array of addresses", Reader::mail_address)
        });
        let user = self.may(s, "user", Reader::text);
        let password_file = self.may(s, "password_file", Reader::path);
        Some(Mail {
            host: host?.and_then(|check| if let NetCheck::Tcp(at) = check { Some(at) } else { None }),
            tls: match tls? {
                "tls" => MailTls::Tls,
                "none" => MailTls::None,
                _ => MailTls::StartTls,
            },
            from: from?,
            to: to?.unwrap_or_default(),
            user: user?,
            password_file: password_file?,
        })
    }

    /// `NAME@HOST`, in ASCII and without a display name: what stands in an envelope.
    fn mail_address(&mut self, key: &Key, value: &Value<'_>) -> Option<String> {
        let text = self.text(key, value)?;
        let fits = |part: &str| {
            !part.is_empty()
                && part.len() <= 128
                && part.chars().all(|c| c.is_ascii_graphic() && !"<>()[]\\,;:\"@".contains(c))
        };
        if text.split_once('@').is_some_and(|(name, host)| fits(name) && fits(host)) {
            return Some(text);
        }
        let help = Some("write NAME@HOST".into());
        self.bad(key, value, "that is no address".into(), help);
        None
    }

    /// A name that can stand in a list of names, and only keys that mean something to the kind.
    fn channel_makes_sense(
        &mut self,
        s: Section<'_, '_>,
        name: &str,
        span: Range<usize>,
        kind: &str,
    ) -> bool {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.is_empty() || name.len() > CHANNEL_NAME_LEN_MAX || !name.chars().all(fits) {
            let help = Some("a-z, A-Z, 0-9, _ . and -, at most 64 of them".into());
            self.error("bad-name", span, format!("`{name}` is no name of a channel"), help);
            return false;
        }
        let own = keys_of(kind);
        let mut sound = true;
        for key in s.table.into_iter().flat_map(DeTable::keys) {
            let word = key.get_ref().as_ref();
            let known = self.dialect.key(s.name, word).is_some(); // a stranger is named already
            if known && word != "kind" && !own.contains(&word) {
                let message = format!("[alert.{name}]: `{word}` means nothing to kind = \"{kind}\"");
                self.error("conflict", key.span(), message, Some("take it out".into()));
                sound = false;
            }
        }
        sound
    }
}

/// What a kind understands, beside `kind`.
fn keys_of(kind: &str) -> &'static [&'static str] {
    match kind {
        "file" => &["path"],
        "exec" => &["command"],
        "email" => &["host", "tls", "from", "to", "user", "password_file", "ca_file"],
        "slack" | "discord" | "teams" => &["url", "url_file", "ca_file"],
        _ => &["url", "url_file", "secret_file", "ca_file"],
    }
}

impl Channel {
    fn lacks(&self) -> Option<&'static str> {
        match self.kind {
            "file" => self.path.is_none().then_some("`path`"),
            "exec" => self.command.is_none().then_some("`command`"),
            "email" if self.mail.host.is_none() => Some("`host`"),
            "email" if self.mail.from.is_none() => Some("`from`"),
            "email" => self.mail.to.is_empty().then_some("`to`"),
            "pagerduty" => self.secret_file.is_none().then_some("`secret_file`, the integration's key"),
            _ => (self.url.is_none() && self.url_file.is_none()).then_some("`url` or `url_file`"),
        }
    }

    /// Why, and what to do.
    fn contradicts_itself(&self) -> Option<(&'static str, &'static str)> {
        let Mail { host, tls, to, user, password_file, .. } = &self.mail;
        if self.url.is_some() && self.url_file.is_some() {
            return Some(("has both `url` and `url_file`", "keep one of them"));
        }
        if user.is_some() != password_file.is_some() {
            return Some(("has only one of `user` and `password_file`", "they belong together"));
        }
        if to.len() > RECIPIENTS_MAX {
            return Some(("has more than 50 addresses in `to`", "write to a list"));
        }
        let is_far = host.as_ref().is_some_and(|at| !is_loopback(&at.host));
        (*tls == MailTls::None && is_far).then_some((
            "would send mail in plain text to another host",
            "tls = \"starttls\" or \"tls\"; \"none\" is for a server on loopback",
        ))
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}
