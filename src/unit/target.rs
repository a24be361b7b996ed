//! Commands and the targets of checks: `["redis-server", "…"]`, `"POST http://…"`,
//! `"127.0.0.1:6379"`.
//!
//! Refuses: connecting, executing, looking anything up.

use std::path::PathBuf;

use toml::de::DeValue;

use crate::base::check::{Endpoint, HostPort, HttpTarget, NetCheck};
use crate::base::hidden::Hidden;
use crate::unit::keys::{Key, Kind};
use crate::unit::reader::{Reader, Value};
use crate::unit::spec::Command;
use crate::unit::value::{cut, plain_number};

/// Largest compiled regular expression, in bytes; more is a mistake or an attack.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// Why a text is no target, and what to write instead.
type Refusal = (String, Option<String>);

impl Reader<'_> {
    /// An array of words, or a string: split, or given to a shell where `shell = true`.
    pub fn command(&mut self, key: &Key, value: &Value<'_>) -> Option<Command> {
        let argv = match value.get_ref() {
            DeValue::String(_) => {
                let text = self.text(key, value)?;
                if self.shell && !text.trim().is_empty() {
                    return Some(Command { argv: vec!["/bin/sh".into(), "-c".into(), text] });
                }
                let words = shlex::split(&text);
                if words.is_none() {
                    let help = Some("close the quote, or write an array of words".into());
                    self.bad(key, value, "the string has an open quote".into(), help);
                }
                let words = words?;
                self.warn_of_shell_words(key, value, &words);
                words
            }
            DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_array()) => {
                self.wrong_type(key, value, "one command", Some("write one array of words".into()));
                return None;
            }
            DeValue::Array(_) => self.words(key, value)?,
            _ => {
                self.wrong_type(key, value, "an array of words or a string", None);
                return None;
            }
        };
        if argv.first().is_none_or(|first| first.is_empty()) {
            self.bad(
                key,
                value,
                "the command is empty".into(),
                Some("write for example [\"redis-server\"]".into()),
            );
            return None;
        }
        Some(Command { argv })
    }

    fn warn_of_shell_words(&mut self, key: &Key, value: &Value<'_>, words: &[String]) {
        const OPERATORS: [&str; 8] = ["|", "||", "&&", "&", ";", ">", ">>", "<"];
        if let Some(word) = words.iter().find(|word| OPERATORS.contains(&word.as_str())) {
            let message = format!(
                "`{}.{}`: `{word}` is passed on as a word: no shell reads this command",
                key.section, key.name
            );
            self.warning("shell-word", value.span(), message, Some("set `shell = true` in [service]".into()));
        }
    }

    pub fn command_or_none(&mut self, key: &Key, value: &Value<'_>) -> Option<Option<Command>> {
        match value.get_ref() {
            DeValue::Array(items) if items.is_empty() => Some(None),
            _ => self.command(key, value).map(Some),
        }
    }

    /// An array of commands; at most 255, so that their number fits a run's role.
    pub fn commands(&mut self, key: &Key, value: &Value<'_>) -> Option<Vec<Command>> {
        // `start_pre = ["./migrate", "--all"]`: one command was meant, two are written.
        let is_option = |item: &Value<'_>| item.get_ref().as_str().is_some_and(|text| text.starts_with('-'));
        if value.get_ref().as_array().is_some_and(|items| items.iter().any(is_option)) {
            let help = Some("it is an array of commands: write [[\"…\", \"…\"]]".into());
            self.bad(key, value, "an option stands where a command should".into(), help);
            return None;
        }
        let commands = self.list(key, value, "an array of commands", Reader::command)?;
        if commands.len() > 255 {
            self.bad(key, value, "has more than 255 commands".into(), None);
            return None;
        }
        Some(commands)
    }

    pub fn regex(&mut self, key: &Key, value: &Value<'_>) -> Option<String> {
        let text = self.text(key, value)?;
        match regex::RegexBuilder::new(&text).size_limit(REGEX_BYTES_MAX).build() {
            Ok(_) => Some(text),
            Err(error) => {
                let report = error.to_string();
                let cause = report.lines().last().unwrap_or("it does not parse").trim();
                let cause = cause.strip_prefix("error: ").unwrap_or(cause).to_string();
                let help = Some("in TOML a regular expression is best written in single quotes".into());
                self.bad(key, value, format!("`{}` is no regular expression: {cause}", cut(&text)), help);
                None
            }
        }
    }

    pub fn http(&mut self, key: &Key, value: &Value<'_>) -> Option<NetCheck> {
        self.target(key, value, |text| http_target(text).map(NetCheck::Http))
    }

    pub fn tcp(&mut self, key: &Key, value: &Value<'_>) -> Option<NetCheck> {
        self.target(key, value, |text| host_port(text).map(NetCheck::Tcp))
    }

    pub fn unix(&mut self, key: &Key, value: &Value<'_>) -> Option<NetCheck> {
        self.target(key, value, |text| socket_path(text).map(NetCheck::Unix))
    }

    pub fn postgres(&mut self, key: &Key, value: &Value<'_>) -> Option<NetCheck> {
        self.target(key, value, |text| {
            let at = endpoint(text)?;
            Ok(NetCheck::Postgres(match at {
                Endpoint::Unix(path) if !is_postgres_socket(&path) => {
                    Endpoint::Unix(path.join(".s.PGSQL.5432"))
                }
                Endpoint::Unix(_) | Endpoint::Tcp(_) => at,
            }))
        })
    }

    pub fn redis(&mut self, key: &Key, value: &Value<'_>) -> Option<NetCheck> {
        self.target(key, value, |text| endpoint(text).map(NetCheck::Redis))
    }

    pub fn listen(&mut self, key: &Key, value: &Value<'_>) -> Option<Vec<HostPort>> {
        self.list(key, value, "an array of ADDRESS:PORT", |reader, key, item| {
            reader.target(key, item, |text| {
                let at = host_port(text)?;
                let help = Some("write for example \"127.0.0.1:9321\"".to_string());
                match at.host.parse::<std::net::IpAddr>() {
                    Ok(_) => Ok(at),
                    Err(_) => Err((format!("`{}` is no address", cut(&at.host)), help)),
                }
            })
        })
    }

    /// There may be a token in it: what is wrong with it is said without it.
    pub fn url(&mut self, key: &Key, value: &Value<'_>) -> Option<Hidden> {
        self.target(key, value, |text| {
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            let sound = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
            if !sound || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(("that is no URL".into(), Some("write https://HOST/PATH".into())));
            }
            Ok(Hidden::new(text))
        })
    }

    fn target<T>(
        &mut self,
        key: &Key,
        value: &Value<'_>,
        read: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Option<T> {
        if let DeValue::Integer(number) = value.get_ref() {
            let scheme = if key.kind == Kind::Http { "http://" } else { "" };
            let help = format!("did you mean \"{scheme}127.0.0.1:{number}\"?");
            self.bad(key, value, "must be a string".into(), Some(help));
            return None;
        }
        let text = self.text(key, value)?;
        match read(&text) {
            Ok(target) => Some(target),
            Err((why, help)) => {
                self.bad(key, value, why, help);
                None
            }
        }
    }
}

fn is_postgres_socket(path: &std::path::Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(".s.PGSQL."))
}

/// `HOST:PORT`; an IPv6 address stands in brackets.
pub(super) fn host_port(text: &str) -> Result<HostPort, Refusal> {
    let example = || Some("write HOST:PORT, for example \"127.0.0.1:6379\"".to_string());
    let refuse = |why: String, help| Err((why, help));
    if plain_number(text).is_some() {
        return refuse(format!("`{text}` has no host"), Some(format!("did you mean \"127.0.0.1:{text}\"?")));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return refuse(format!("`{}` has no port", cut(text)), example());
    };
    let number = plain_number(port).and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let Some(port) = number else {
        return refuse(format!("`{}` is no port", cut(port)), Some("a port is 1 to 65535".into()));
    };
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Some(address) = bracketed {
        return match address.parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(HostPort { host: address.to_string(), port }),
            Err(_) => refuse(format!("`{}` is no IPv6 address", cut(address)), None),
        };
    }
    if host.is_empty() {
        return refuse(format!("`{text}` has no host"), Some(format!("did you mean \"127.0.0.1:{port}\"?")));
    }
    if host.contains(':') {
        return refuse(
            format!("`{}` is no host", cut(host)),
            Some(format!("did you mean \"[{}]:{port}\"?", cut(host))),
        );
    }
    if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
        return refuse(format!("`{}` is no host", cut(host)), example());
    }
    Ok(HostPort { host: host.to_string(), port })
}

fn socket_path(text: &str) -> Result<PathBuf, Refusal> {
    if !text.starts_with('/') {
        return Err((format!("`{}` must be an absolute path", cut(text)), None));
    }
    // sun_path holds 108 bytes with its NUL (unix(7)).
    if text.len() > 107 {
        return Err(("the path of a socket has at most 107 characters".into(), None));
    }
    Ok(PathBuf::from(text))
}

fn endpoint(text: &str) -> Result<Endpoint, Refusal> {
    if text.starts_with('/') {
        socket_path(text).map(Endpoint::Unix)
    } else {
        host_port(text).map(Endpoint::Tcp)
    }
}

/// `[METHOD ]http://HOST[:PORT][/PATH]` or `[METHOD ]http+unix:///SOCKET:/PATH`.
fn http_target(text: &str) -> Result<HttpTarget, Refusal> {
    let example = || Some("write for example \"http://127.0.0.1:8000/health\"".to_string());
    let trimmed = text.trim();
    let (method, url) = match trimmed.split_once(' ') {
        Some((method, url)) if !method.contains("://") => (method, url.trim_start()),
        Some(_) | None => ("GET", trimmed),
    };
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    if !known.contains(&method) {
        let help = format!("the methods are {}", known.join(", "));
        return Err((format!("`{}` is no HTTP method", cut(method)), Some(help)));
    }
    if url.contains(|c: char| c.is_whitespace() || c.is_control() || !c.is_ascii()) {
        return Err((format!("`{}` is no URL: spaces and non-ASCII must be %-encoded", cut(url)), example()));
    }
    if let Some(rest) = url.strip_prefix("http+unix://") {
        let (socket, path) = rest.split_once(":/").unwrap_or((rest, ""));
        let at = Endpoint::Unix(socket_path(socket)?);
        return Ok(HttpTarget {
            method: method.into(),
            at,
            host: "localhost".into(),
            path: format!("/{path}"),
        });
    }
    if url.starts_with("https://") {
        let help = "check plain HTTP on loopback, or use `exec` with a client that speaks TLS";
        return Err((
            "https is not spoken: a check of one's own machine needs no TLS".into(),
            Some(help.into()),
        ));
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return Err((format!("`{}` is no http:// URL", cut(url)), example()));
    };
    let rest = rest.split('#').next().unwrap_or_default();
    let cut_at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(cut_at);
    if authority.contains('@') {
        return Err((
            "a user or password in the URL is not supported".into(),
            Some("use `exec` instead".into()),
        ));
    }
    if authority.is_empty() {
        return Err(("the URL has no host".into(), example()));
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    let at = if has_port { host_port(authority)? } else { host_port(&format!("{authority}:80"))? };
    let path = if tail.starts_with('/') { tail.to_string() } else { format!("/{tail}") };
    Ok(HttpTarget { method: method.into(), at: Endpoint::Tcp(at), host: authority.into(), path })
}
