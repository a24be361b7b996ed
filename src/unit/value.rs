//! One reader a kind of value: strings, numbers, durations, sizes, names, paths.
//!
//! Refuses: values that only look right. A bare number is no duration, `0day` is no user.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use crate::base::duration;
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::size;
use crate::unit::foreign;
use crate::unit::keys::{Key, Kind};
use crate::unit::reader::{Reader, Value};
use crate::unit::spec::EnvironmentFile;

/// The word that stands for "no limit", as in systemd; `unlimited` is ulimit's.
const INFINITY: [&str; 2] = ["infinity", "unlimited"];

impl Reader<'_> {
    /// A string, `{instance}` replaced.
    pub fn text(&mut self, key: &Key, value: &Value<'_>) -> Option<String> {
        let text = match value.get_ref() {
            DeValue::String(text) => text.as_ref(),
            DeValue::Integer(number) => {
                let help = Some(format!("write \"{number}\""));
                self.wrong_type(key, value, "a string", help);
                return None;
            }
            _ => {
                self.wrong_type(key, value, "a string", None);
                return None;
            }
        };
        if text.contains('\0') {
            self.bad(key, value, "holds a NUL character".into(), None);
            return None;
        }
        Some(match self.instance {
            Some(number) => text.replace("{instance}", &number.to_string()),
            None => text.to_string(),
        })
    }

    pub fn boolean(&mut self, key: &Key, value: &Value<'_>) -> Option<bool> {
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, value, "true or false", None);
        }
        found
    }

    /// An integer within what its key allows.
    pub fn integer(&mut self, key: &Key, value: &Value<'_>) -> Option<i64> {
        let (low, high) = if let Kind::Integer(low, high) = key.kind { (low, high) } else { (0, i64::MAX) };
        let DeValue::Integer(number) = value.get_ref() else {
            let text = value.get_ref().as_str().and_then(|text| text.trim().parse::<i64>().ok());
            self.wrong_type(key, value, "an integer", text.map(|number| format!("write {number}")));
            return None;
        };
        let number = i64::from_str_radix(number.as_str(), number.radix()).ok();
        let fits = number.filter(|n| (low..=high).contains(n));
        if fits.is_none() {
            let why = match high {
                i64::MAX | 0xffff_ffff => format!("must be {low} or more"),
                _ => format!("must be {low} to {high}"),
            };
            self.bad(key, value, why, None);
        }
        fits
    }

    /// An integer of the table's range as `u32`.
    pub fn count(&mut self, key: &Key, value: &Value<'_>) -> Option<u32> {
        self.integer(key, value).and_then(|number| u32::try_from(number).ok())
    }

    pub fn signed(&mut self, key: &Key, value: &Value<'_>) -> Option<i32> {
        self.integer(key, value).and_then(|number| i32::try_from(number).ok())
    }

    /// A count without a fixed bound, for example processes.
    pub fn large(&mut self, key: &Key, value: &Value<'_>) -> Option<u64> {
        self.integer(key, value).and_then(|number| u64::try_from(number).ok())
    }

    pub fn duration(&mut self, key: &Key, value: &Value<'_>) -> Option<Duration> {
        if let DeValue::Integer(number) = value.get_ref() {
            let help = Some(format!("did you mean \"{number}s\"?"));
            self.bad(key, value, format!("{number} of what? a duration is a string with a unit"), help);
            return None;
        }
        if let DeValue::Float(number) = value.get_ref() {
            let help = Some(format!("did you mean \"{}s\"?", number.as_str()));
            self.bad(key, value, "a duration is a string with a unit".into(), help);
            return None;
        }
        let text = self.text(key, value)?;
        match duration::parse(&text) {
            Ok(duration) => Some(duration),
            Err(error) => {
                self.bad(key, value, error.why, error.help);
                None
            }
        }
    }

    /// Above zero: an interval of zero is a busy loop.
    pub fn interval(&mut self, key: &Key, value: &Value<'_>) -> Option<Duration> {
        let duration = self.duration(key, value)?;
        if duration.is_zero() {
            self.bad(key, value, "must be more than zero".into(), None);
            return None;
        }
        Some(duration)
    }

    /// `Some(None)`: `"infinity"`.
    pub fn timeout(&mut self, key: &Key, value: &Value<'_>) -> Option<Option<Duration>> {
        if value.get_ref().as_str().is_some_and(|text| INFINITY.contains(&text)) {
            return Some(None);
        }
        let duration = self.duration(key, value)?;
        if duration.is_zero() {
            self.bad(key, value, "must be more than zero".into(), Some("\"infinity\" means no limit".into()));
            return None;
        }
        Some(Some(duration))
    }

    /// At least one.
    pub fn durations(&mut self, key: &Key, value: &Value<'_>) -> Option<Vec<Duration>> {
        let all = match value.get_ref() {
            DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) => vec![self.duration(key, value)?],
            _ => self.list(key, value, "an array of durations", Reader::duration)?,
        };
        if all.is_empty() {
            self.bad(key, value, "needs at least one duration".into(), Some("for example [\"5s\"]".into()));
            return None;
        }
        Some(all)
    }

    pub fn size(&mut self, key: &Key, value: &Value<'_>) -> Option<u64> {
        if let DeValue::Integer(number) = value.get_ref() {
            if number.as_str() == "0" {
                return Some(0);
            }
            let help = Some(format!("did you mean \"{number}MiB\"?"));
            self.bad(key, value, format!("{number} of what? a size is a string with a unit"), help);
            return None;
        }
        let text = self.text(key, value)?;
        match size::parse(&text) {
            Ok(bytes) => Some(bytes),
            Err(why) => {
                self.bad(key, value, why, None);
                None
            }
        }
    }

    /// A size or `"unlimited"` (RLIM_INFINITY, which is the largest number there is).
    pub fn size_limit(&mut self, key: &Key, value: &Value<'_>) -> Option<u64> {
        if value.get_ref().as_str().is_some_and(|text| INFINITY.contains(&text)) {
            return Some(u64::MAX);
        }
        self.size(key, value)
    }

    pub fn count_limit(&mut self, key: &Key, value: &Value<'_>) -> Option<u64> {
        if value.get_ref().as_str().is_some_and(|text| INFINITY.contains(&text)) {
            return Some(u64::MAX);
        }
        self.large(key, value)
    }

    pub fn percent(&mut self, key: &Key, value: &Value<'_>) -> Option<u32> {
        let most = if let Kind::Percent(most) = key.kind { most } else { 100 };
        if let DeValue::Integer(number) = value.get_ref() {
            self.bad(key, value, "must be a string".into(), Some(format!("write \"{number}%\"")));
            return None;
        }
        let text = self.text(key, value)?;
        let number = text.trim().strip_suffix('%').and_then(|digits| plain_number(digits.trim()));
        let fits = number.and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= most);
        if fits.is_none() {
            let why = format!("`{text}` is no percentage from 0% to {most}%");
            self.bad(key, value, why, Some("write for example \"10%\"".into()));
        }
        fits
    }

    /// The position of the word in the key's list of choices, as the word itself.
    pub fn choice(&mut self, key: &Key, value: &Value<'_>) -> Option<&'static str> {
        let Kind::Choice(choices) = key.kind else { return None };
        let text = self.text(key, value)?;
        if let Some(found) = choices.iter().find(|choice| **choice == text) {
            return Some(found);
        }
        let meant = foreign_choice(&text.to_ascii_lowercase())
            .filter(|meant| choices.contains(meant))
            .or_else(|| foreign::nearest(&text.to_ascii_lowercase(), choices.iter().copied()));
        let help = match meant {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("it is one of {}", choices.join(", ")),
        };
        self.bad(key, value, format!("`{}` is not known", cut(&text)), Some(help));
        None
    }

    /// An array, each item by `read`; every bad item is reported.
    pub fn list<T>(
        &mut self,
        key: &Key,
        value: &Value<'_>,
        wanted: &str,
        read: impl Fn(&mut Self, &Key, &Value<'_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Some(items) = value.get_ref().as_array() else {
            let help = value.get_ref().as_str().map(|text| format!("write [\"{}\"]", cut(text)));
            self.wrong_type(key, value, wanted, help);
            return None;
        };
        let read: Vec<Option<T>> = items.iter().map(|item| read(self, key, item)).collect();
        read.into_iter().collect()
    }

    pub fn words(&mut self, key: &Key, value: &Value<'_>) -> Option<Vec<String>> {
        self.list(key, value, "an array of strings", Reader::text)
    }

    pub fn unit_name(&mut self, key: &Key, value: &Value<'_>) -> Option<UnitName> {
        let text = self.text(key, value)?;
        match UnitName::parse(&text) {
            Ok(name) => Some(name),
            Err(error) => {
                let help = [".service", ".toml"].iter().find_map(|end| text.strip_suffix(end));
                self.bad(key, value, error.to_string(), help.map(|bare| format!("write \"{bare}\"")));
                None
            }
        }
    }

    /// Each name once, in the order written.
    pub fn unit_names(&mut self, key: &Key, value: &Value<'_>) -> Option<Vec<UnitName>> {
        let names = self.list(key, value, "an array of unit names", Reader::unit_name)?;
        let mut seen = BTreeSet::new();
        Some(names.into_iter().filter(|name| seen.insert(name.clone())).collect())
    }

    pub fn signal(&mut self, key: &Key, value: &Value<'_>) -> Option<Signal> {
        let text = self.text(key, value)?;
        let signal = Signal::parse(text.trim());
        if signal.is_none() {
            let upper = text.trim().to_ascii_uppercase();
            let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
            let names: Vec<String> = Signal::names().collect();
            let near = foreign::nearest(&full, names.iter().map(String::as_str));
            let help = near.map(|name| format!("did you mean \"{name}\"?"));
            self.bad(key, value, format!("`{}` is no signal", cut(&text)), help);
        }
        signal
    }

    pub fn umask(&mut self, key: &Key, value: &Value<'_>) -> Option<u32> {
        if value.get_ref().is_integer() {
            self.bad(
                key,
                value,
                "must be a string of octal digits".into(),
                Some("write for example \"027\"".into()),
            );
            return None;
        }
        let text = self.text(key, value)?;
        let octal = !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let mask =
            if octal { u32::from_str_radix(&text, 8).ok().filter(|mask| *mask <= 0o777) } else { None };
        if mask.is_none() {
            let help = Some("write octal digits, for example \"027\"".into());
            self.bad(key, value, format!("`{}` is no umask", cut(&text)), help);
        }
        mask
    }

    /// A user or group: the form only, whether it exists is known at start. Strict, because
    /// a name read as something else runs the service as root (CVE-2017-1000082).
    pub fn user(&mut self, key: &Key, value: &Value<'_>) -> Option<String> {
        let text = self.text(key, value)?;
        if is_user_name(&text) || is_user_number(&text) {
            return Some(text);
        }
        let help = "a name is [a-z_][a-z0-9_-]* up to 32 characters, a number 0 to 4294967294 in decimal";
        self.bad(key, value, format!("`{}` is no user or group name", cut(&text)), Some(help.into()));
        None
    }

    pub fn users(&mut self, key: &Key, value: &Value<'_>) -> Option<Vec<String>> {
        self.list(key, value, "an array of group names", Reader::user)
    }

    pub fn path(&mut self, key: &Key, value: &Value<'_>) -> Option<PathBuf> {
        let text = self.text(key, value)?;
        if !text.starts_with('/') {
            self.bad(key, value, format!("`{}` must be an absolute path", cut(&text)), None);
            return None;
        }
        Some(PathBuf::from(text))
    }

    /// Absolute, or below the log directory: without `..`.
    pub fn log_path(&mut self, key: &Key, value: &Value<'_>) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(key, value)?);
        let leaves = path.components().any(|part| part == Component::ParentDir);
        if leaves || path.file_name().is_none() {
            let help = Some("write an absolute path, or a name below the log directory".into());
            let text = path.to_string_lossy();
            self.bad(key, value, format!("`{}` is no path of a file", cut(&text)), help);
            return None;
        }
        Some(path)
    }

    pub fn paths(&mut self, key: &Key, value: &Value<'_>) -> Option<Vec<PathBuf>> {
        self.list(key, value, "an array of paths", Reader::path)
    }

    pub fn path_or_none(&mut self, key: &Key, value: &Value<'_>) -> Option<Option<PathBuf>> {
        match value.get_ref().as_str() {
            Some("") => Some(None),
            _ => self.path(key, value).map(Some),
        }
    }

    pub fn environment_files(&mut self, key: &Key, value: &Value<'_>) -> Option<Vec<EnvironmentFile>> {
        self.list(key, value, "an array of paths", |reader, key, item| {
            let text = reader.text(key, item)?;
            let (path, optional) = match text.strip_prefix('-') {
                Some(path) => (path, true),
                None => (text.as_str(), false),
            };
            if !path.starts_with('/') {
                reader.bad(key, item, format!("`{}` must be an absolute path", cut(path)), None);
                return None;
            }
            Some(EnvironmentFile { path: PathBuf::from(path), optional })
        })
    }

    pub fn environment(&mut self, key: &Key, value: &Value<'_>) -> Option<BTreeMap<String, String>> {
        let Some(table) = value.get_ref().as_table() else {
            let help = Some("write { NAME = \"value\" }".into());
            self.wrong_type(key, value, "a table", help);
            return None;
        };
        let mut sound = true;
        let mut environment = BTreeMap::new();
        for (name, item) in table {
            let word = name.get_ref().as_ref();
            if !is_variable_name(word) {
                let why = format!("`{}` is no name of an environment variable", cut(word));
                self.error("bad-value", name.span(), why, Some("a name is [A-Za-z_][A-Za-z0-9_]*".into()));
                sound = false;
            }
            match self.text(key, item) {
                Some(text) => {
                    environment.insert(word.to_string(), text);
                }
                None => sound = false,
            }
        }
        sound.then_some(environment)
    }

    pub fn exit_codes(&mut self, key: &Key, value: &Value<'_>) -> Option<Vec<u8>> {
        self.list(key, value, "an array of exit codes", |reader, key, item| {
            let code = reader.integer(key, item)?;
            let fits = u8::try_from(code).ok();
            if fits.is_none() {
                reader.bad(key, item, "must be 0 to 255".into(), None);
            }
            fits
        })
    }
}

/// `[a-z_][a-z0-9_-]*\$?`, up to 32 characters: the form of useradd(8).
fn is_user_name(text: &str) -> bool {
    let body = text.strip_suffix('$').unwrap_or(text);
    let head = body.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    let tail = body.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    head && tail && text.len() <= 32
}

/// Decimal, no sign, no leading zero; 4294967295 means "no change" to setuid(2).
fn is_user_number(text: &str) -> bool {
    let plain = text == "0" || !text.starts_with('0');
    plain && plain_number(text).is_some_and(|number| number < 0xffff_ffff)
}

/// Digits only.
pub(super) fn plain_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

fn is_variable_name(text: &str) -> bool {
    let head = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    head && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Others' words for our choices: systemd's, supervisord's, compose's.
fn foreign_choice(text: &str) -> Option<&'static str> {
    Some(match text {
        "no" | "false" => "never",
        "true" | "yes" | "unless-stopped" => "always",
        "unexpected" | "on-abnormal" | "on-abort" | "on_failure" => "on-failure",
        "exec" => "simple",
        "notify-reload" => "notify",
        _ => return None,
    })
}

/// For messages: never more than a line of what was written.
pub(super) fn cut(text: &str) -> String {
    if text.chars().count() <= 80 {
        return text.to_string();
    }
    let mut head: String = text.chars().take(79).collect();
    head.push('…');
    head
}
