//! The way from text to typed values: all syntax errors, then all unknown keys, then all
//! bad values of a file in one go.
//!
//! Refuses: knowing what a section means (`parse`, `daemon_file`).

use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::base::limits;
use crate::unit::diag::{DIAGNOSTICS_MAX, Diagnostic, Level, Lines};
use crate::unit::foreign;
use crate::unit::keys::{Dialect, InForce, Key};

pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// One table of the file; without a table all its keys have their defaults.
#[derive(Clone, Copy)]
pub(super) struct Section<'a, 't> {
    pub name: &'static str,
    pub table: Option<&'a DeTable<'t>>,
}

impl<'a, 't> Section<'a, 't> {
    pub fn value(&self, name: &str) -> Option<&'a Value<'t>> {
        self.table.and_then(|table| table.get(name))
    }
}

/// Collects diagnostics while values are read.
pub(super) struct Reader<'t> {
    pub dialect: Dialect,
    file: &'t str,
    lines: Lines<'t>,
    diagnostics: Vec<Diagnostic>,
    dropped: usize,
    /// Lines with a syntax error: what the parser made up there is not judged.
    broken_lines: BTreeSet<u64>,
    /// The first broken `[section` line: where keys below it belong is unknown.
    broken_header: Option<u64>,
    /// The last syntax error: one mistake makes the parser stumble over each line below it.
    last_syntax: Option<(u64, String)>,
    /// A key or section that was meant to be `service.command` is misspelt: it is not missing.
    pub command_misspelt: bool,
    /// Replaces `{instance}` in strings.
    pub instance: Option<u32>,
    /// `service.shell`
    pub shell: bool,
}

impl<'t> Reader<'t> {
    /// Reads the text as TOML. The tree is what could be understood of it.
    pub fn open(dialect: Dialect, file: &'t str, text: &'t str) -> (Reader<'t>, DeTable<'t>) {
        let mut reader = Reader {
            dialect,
            file,
            lines: Lines::of(text),
            diagnostics: Vec::new(),
            dropped: 0,
            broken_lines: BTreeSet::new(),
            broken_header: None,
            last_syntax: None,
            command_misspelt: false,
            instance: None,
            shell: false,
        };
        if !reader.within_limits(text) {
            return (reader, DeTable::new());
        }
        let (tree, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            reader.syntax_error(text, &error);
        }
        let tree = tree.into_inner();
        reader.check_keys(&tree);
        (reader, tree)
    }

    /// Syntax errors were found: what is missing may only be unread.
    pub fn is_broken(&self) -> bool {
        !self.broken_lines.is_empty() || self.diagnostics.iter().any(|d| d.place.is_none())
    }

    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }

    /// All of them in the order of the text.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.diagnostics.sort_by_key(|d| d.place.as_ref().map_or(0, |place| place.span.start));
        if self.dropped > 0 {
            let message = format!("and {} more", self.dropped);
            let code = format!("{}.too-many", self.dialect.code);
            self.diagnostics.push(Diagnostic::of_file(self.file, &code, message, None));
        }
        self.diagnostics
    }

    fn within_limits(&mut self, text: &str) -> bool {
        if text.len() as u64 > limits::UNIT_FILE_BYTES_MAX {
            self.error_of_file(
                "too-large",
                format!("the file is larger than {} KiB", limits::UNIT_FILE_BYTES_MAX / 1024),
            );
            return false;
        }
        let odd = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
        if let Some((at, c)) = text.char_indices().find(|(_, c)| odd(*c)) {
            let message = format!("the file is not text: it holds the control character {:#04x}", c as u32);
            self.error("binary", at..at + c.len_utf8(), message, None);
            self.broken_lines.insert(0);
            return false;
        }
        let keys = count_keys(text);
        if keys > limits::UNIT_FILE_KEYS_MAX {
            let most = limits::UNIT_FILE_KEYS_MAX;
            self.error_of_file(
                "too-many-keys",
                format!("the file has about {keys} keys; at most {most} are read"),
            );
            return false;
        }
        true
    }

    fn syntax_error(&mut self, text: &str, error: &toml::de::Error) {
        let span = error.span().unwrap_or(0..0);
        let word = text.get(span.clone()).unwrap_or_default();
        let line = self.lines.line(span.start);
        let is_header = self.lines.text_of(line).trim_start().starts_with('[');
        if is_header && !error.message().starts_with("duplicate key") {
            self.broken_header = self.broken_header.or(Some(line));
        }
        let follows = self
            .last_syntax
            .as_ref()
            .is_some_and(|(last, said)| *last + 1 >= line && said == error.message());
        self.last_syntax = Some((line, error.message().to_string()));
        if !self.broken_lines.insert(line) || follows {
            return; // the first error explains the others
        }
        if error.message().starts_with("duplicate key") {
            self.error(
                "duplicate-key",
                span,
                format!("`{word}` is set twice"),
                Some("keep one of them".into()),
            );
        } else {
            self.error("syntax", span, format!("this is not TOML: {}", error.message()), None);
        }
    }

    pub fn error(&mut self, code: &str, span: Range<usize>, message: String, help: Option<String>) {
        self.push(Level::Error, code, span, message, help);
    }

    pub fn warning(&mut self, code: &str, span: Range<usize>, message: String, help: Option<String>) {
        self.push(Level::Warning, code, span, message, help);
    }

    fn push(&mut self, level: Level, code: &str, span: Range<usize>, message: String, help: Option<String>) {
        let last_line = self.lines.line(span.end.saturating_sub(1).max(span.start));
        let place = self.lines.place(span);
        let on_broken_line = self.broken_lines.range(place.line..=last_line.max(place.line)).next().is_some();
        let displaced = self.broken_header.is_some_and(|line| line < place.line)
            && matches!(code, "unknown-key" | "unknown-section" | "wrong-section");
        if !matches!(code, "syntax" | "duplicate-key") && (on_broken_line || displaced) {
            return;
        }
        let code = format!("{}.{code}", self.dialect.code);
        let file = self.file.to_string();
        self.keep(Diagnostic { level, code, message, file, place: Some(place), help });
    }

    pub fn error_of_file(&mut self, code: &str, message: String) {
        let code = format!("{}.{code}", self.dialect.code);
        self.keep(Diagnostic::of_file(self.file, &code, message, None));
    }

    /// The instances of a template make the same mistakes: each is kept once.
    fn keep(&mut self, new: Diagnostic) {
        if self.diagnostics.iter().any(|d| d.code == new.code && d.place == new.place && d.level == new.level)
        {
            return;
        }
        if self.diagnostics.len() < DIAGNOSTICS_MAX { self.diagnostics.push(new) } else { self.dropped += 1 }
    }

    /// Names every key that is not in the table, and those without effect yet.
    fn check_keys(&mut self, tree: &DeTable<'_>) {
        for (name, value) in tree {
            let word = name.get_ref().as_ref();
            let wild = format!("{word}.*");
            let section = self.dialect.sections().into_iter().find(|s| *s == word || *s == wild);
            let Some(section) = section else {
                self.unknown_section(word, name.span(), value);
                continue;
            };
            let Some(table) = value.get_ref().as_table() else {
                let help = Some(format!("write [{}]", section.replace('*', "NAME")));
                let found = value.get_ref().type_str();
                self.error(
                    "bad-value",
                    name.span(),
                    format!("`{word}` must be a table, not {}", a(found)),
                    help,
                );
                continue;
            };
            if self.dialect.section_waits(section) {
                self.not_in_force(word, name.span());
            }
            if section != wild {
                self.check_section(section, table);
                continue;
            }
            for (item, value) in table {
                match value.get_ref().as_table() {
                    Some(table) => self.check_section(section, table),
                    None => {
                        let help = Some(format!("write [{word}.{}]", item.get_ref()));
                        self.error(
                            "bad-value",
                            item.span(),
                            format!("`{word}.{}` must be a table", item.get_ref()),
                            help,
                        );
                    }
                }
            }
        }
    }

    fn check_section(&mut self, section: &'static str, table: &DeTable<'_>) {
        let waits = self.dialect.section_waits(section);
        for name in table.keys() {
            let word = name.get_ref().as_ref();
            match self.dialect.key(section, word) {
                Some(key) if key.in_force == InForce::NotYet && !waits => {
                    self.not_in_force(&format!("{section}.{word}"), name.span());
                }
                Some(_) => {}
                None => self.unknown_key(section, word, name.span()),
            }
        }
    }

    fn not_in_force(&mut self, what: &str, span: Range<usize>) {
        let message = format!(
            "`{what}` is not in force yet: it is read and checked, and has no effect in this version"
        );
        self.warning("not-in-force", span, message, None);
    }

    fn unknown_key(&mut self, section: &str, word: &str, span: Range<usize>) {
        let homes: Vec<String> = self
            .dialect
            .keys
            .iter()
            .filter(|key| key.name == word)
            .map(|key| format!("[{}]", key.section.replace('*', "NAME")))
            .collect();
        let meant = foreign::meant_key(&self.dialect, section, word);
        self.note_command(meant);
        let help = match meant {
            Some(meant) if meant.section == section => Some(format!("did you mean `{}`?", meant.name)),
            Some(meant) if meant.name == word => Some(format!("it belongs in {}", homes.join(", "))),
            Some(meant) => {
                Some(format!("did you mean `{}` in [{}]?", meant.name, meant.section.replace('*', "NAME")))
            }
            None => None,
        };
        let section = section.replace('*', "NAME");
        if meant.is_some_and(|meant| meant.name == word) {
            self.error("wrong-section", span, format!("`{word}` does not belong in [{section}]"), help);
        } else {
            self.error("unknown-key", span, format!("unknown key `{}` in [{section}]", short(word)), help);
        }
    }

    fn note_command(&mut self, meant: Option<foreign::Meant>) {
        self.command_misspelt |=
            meant.is_some_and(|meant| (meant.section, meant.name) == ("service", "command"));
    }

    fn unknown_section(&mut self, word: &str, span: Range<usize>, value: &Value<'_>) {
        let word = short(word);
        if value.get_ref().as_table().is_some() {
            let meant = foreign::meant_section(&self.dialect, &word);
            let help = match meant {
                Some(section) => format!("did you mean [{section}]?"),
                None => format!("the sections are {}", self.dialect.sections().join(", ")),
            };
            self.error("unknown-section", span, format!("unknown section [{word}]"), Some(help));
            // Its keys are checked as those of the section that was meant.
            let section = meant.filter(|section| self.dialect.section_keys(section).next().is_some());
            if let (Some(section), Some(table)) = (section, value.get_ref().as_table()) {
                self.command_misspelt |= section == "service";
                self.check_section(section, table);
            }
            return;
        }
        let meant = foreign::meant_key(&self.dialect, "", &word);
        self.note_command(meant);
        let help = match meant {
            Some(meant) => {
                format!("did you mean `{}` in [{}]?", meant.name, meant.section.replace('*', "NAME"))
            }
            None => "every key stands in a section, as `description` in [unit]".to_string(),
        };
        self.error("unknown-key", span, format!("`{word}` stands outside of any section"), Some(help));
    }

    /// The value of a key that has a default. None: it was wrong, and that is reported.
    pub fn need<T>(
        &mut self,
        section: Section<'_, '_>,
        name: &str,
        read: impl Fn(&mut Self, &Key, &Value<'_>) -> Option<T>,
    ) -> Option<T> {
        self.may(section, name, read)?
    }

    /// The value of a key that may be unset: `Some(None)`.
    pub fn may<T>(
        &mut self,
        section: Section<'_, '_>,
        name: &str,
        read: impl Fn(&mut Self, &Key, &Value<'_>) -> Option<T>,
    ) -> Option<Option<T>> {
        let key = self.dialect.key(section.name, name);
        if crate::never!(key.is_none(), "[{}] {name} is not in the key table", section.name) {
            return None;
        }
        let key = key?;
        if let Some(value) = section.value(name) {
            return read(self, key, value).map(Some);
        }
        let Some(default) = key.default else { return Some(None) };
        let value = DeValue::parse(default).ok()?;
        read(self, key, &value).map(Some)
    }

    /// A value of the wrong type, or outside of what its key allows.
    pub fn bad(&mut self, key: &Key, value: &Value<'_>, why: String, help: Option<String>) {
        let section = key.section.replace(".*", "");
        self.error("bad-value", value.span(), format!("`{section}.{}`: {why}", key.name), help);
    }

    pub fn wrong_type(&mut self, key: &Key, value: &Value<'_>, wanted: &str, help: Option<String>) {
        let found = a(value.get_ref().type_str());
        self.bad(key, value, format!("must be {wanted}, not {found}"), help);
    }
}

/// With its article.
fn a(word: &str) -> String {
    if word.starts_with(['a', 'i']) { format!("an {word}") } else { format!("a {word}") }
}

fn short(word: &str) -> String {
    word.chars().take(80).collect()
}

/// About how many keys a text has, at most too many: `=`, `.` and `[` outside of strings and
/// comments. One pass, no memory: the tree costs 37 times the text (reliability F12).
fn count_keys(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut keys = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'=' | b'.' | b'[' => keys += 1,
            b'#' => at = line_end(bytes, at),
            quote @ (b'"' | b'\'') => at = string_end(bytes, at, quote),
            _ => {}
        }
        at += 1;
    }
    keys
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| from + n)
}

/// The offset of the last byte of the string that begins at `from`.
fn string_end(bytes: &[u8], from: usize, quote: u8) -> usize {
    let long = bytes[from..].starts_with(&[quote, quote, quote]);
    let mut at = from + if long { 3 } else { 1 };
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quote == b'"' => at += 1,
            b'\n' if !long => return at,
            b if b == quote && !long => return at,
            b if b == quote && bytes[at..].starts_with(&[quote, quote, quote]) => return at + 2,
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}
