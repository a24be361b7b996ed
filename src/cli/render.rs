//! Text for a terminal: escapes, widths, colours, relative times.
//!
//! Refuses: control characters from services and files (reliability A13), and colour as the
//! only mark of anything.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::base::duration::Pretty;
use crate::base::visible;

/// How a text may look: decided once, from the terminal and the flags.
#[derive(Clone, Debug)]
pub struct Look {
    pub paint: Paint,
    /// Columns of the terminal; None = not one, nothing is cut.
    pub width: Option<usize>,
    /// Times are shown in this zone.
    pub zone: jiff::tz::TimeZone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Plain,
    Colored,
}

impl Paint {
    /// `text` in `style`, or as it is.
    pub fn with(self, style: Style, text: &str) -> String {
        match self {
            Paint::Plain => text.to_string(),
            Paint::Colored => format!("{style}{text}{style:#}"),
        }
    }

    pub fn bold(self, text: &str) -> String {
        self.with(Style::new().bold(), text)
    }

    pub fn dim(self, text: &str) -> String {
        self.with(Style::new().dimmed(), text)
    }
}

pub fn color(color: AnsiColor) -> Style {
    color.on_default()
}

/// Symbol and colour of a state; the word always stands beside them.
pub fn mark(state: &str) -> (&'static str, Style) {
    match state {
        "active" => ("●", color(AnsiColor::Green)),
        "degraded" => ("◐", color(AnsiColor::Yellow)),
        "activating" | "deactivating" => ("◐", color(AnsiColor::Cyan)),
        "waiting" => ("○", color(AnsiColor::Yellow)),
        "backoff" => ("✖", color(AnsiColor::Yellow)),
        "failed" => ("✖", color(AnsiColor::Red)),
        _ => ("○", Style::new().dimmed()),
    }
}

/// Everything that is not printable becomes an escape: C0, C1, DEL, bidirectional controls,
/// line separators, invisible and private characters. A tab becomes four spaces.
/// The result is one line.
pub fn escape_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        visible::push(&mut out, c);
    }
    out
}

/// As `escape_line`, but newlines stay.
pub fn escape_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' {
            out.push(c);
        } else {
            visible::push(&mut out, c);
        }
    }
    out
}

/// As `escape_text`; bytes that are no UTF-8 become `\xNN`.
pub fn escape_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(&escape_text(chunk.valid()));
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// At most `columns` wide; what is cut shows as `…`.
pub fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_string();
    }
    let mut out = String::new();
    let mut used = 1; // the mark
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > columns {
            break;
        }
        out.push(c);
    }
    out.push('…');
    out
}

/// Fewest columns that text is wrapped to: below this a line is a word and the reader lost.
const WRAP_COLUMNS_MIN: usize = 16;

/// `text` in lines of at most `columns`, broken between words; None = one line. A word that
/// is longer than a line is left whole: it may be a path that somebody wants to copy.
pub fn wrap(text: &str, columns: Option<usize>) -> Vec<String> {
    let Some(columns) = columns else { return vec![text.to_string()] };
    let columns = columns.max(WRAP_COLUMNS_MIN);
    let mut lines = vec![String::new()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let Some(line) = lines.last_mut() else { continue };
        if line.is_empty() {
            line.push_str(word);
        } else if line.width() + 1 + word.width() <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_string());
        }
    }
    lines
}

/// `3m 12s`: the two largest units, enough for a person.
pub fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let step = match seconds {
        0..60 => 1,
        60..3_600 => 1,
        3_600..86_400 => 60,
        _ => 3_600,
    };
    Pretty(Duration::from_secs(seconds - seconds % step)).to_string()
}

/// `1.2s`, `350ms`, `2m 3s`: how long something took.
pub fn took(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ 0..1_000 => format!("{ms}ms"),
        ms @ 1_000..10_000 => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        _ => rough(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_256_bytes_only_printable_ones_and_newline_come_out() {
        let all: Vec<u8> = (0..=255).collect();
        let out = escape_bytes(&all);
        assert!(out.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)), "{out}");
        for byte in all {
            let alone = escape_bytes(&[byte]);
            assert!(!alone.is_empty() && alone.bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)));
        }
    }

    #[test]
    fn sequences_that_drive_a_terminal_become_text() {
        let table = [
            ("\x1b[31mred", "\\x1b[31mred"),
            ("\x1b]52;c;ZXZpbA==\x07", "\\x1b]52;c;ZXZpbA==\\x07"),
            ("ok\rbad", "ok\\rbad"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("a\u{2066}b\u{200f}", "a\\u{2066}b\\u{200f}"),
            ("\u{9b}2J", "\\x9b2J"),
            ("two\nlines", "two\\nlines"),
            ("a\tb", "a    b"),
            ("grüße 日本 ●", "grüße 日本 ●"),
        ];
        for (text, want) in table {
            assert_eq!(escape_line(text), want);
        }
        for c in ('\0'..=char::MAX).filter(|c| c.is_control()) {
            assert!(!escape_line(&c.to_string()).contains(c), "{c:?}");
        }
    }

    #[test]
    fn cutting_counts_columns_not_bytes() {
        assert_eq!(cut("hello", 5), "hello");
        assert_eq!(cut("hello!", 5), "hell…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("x", 0), "…");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("one two", None), ["one two"]);
        let text = "restart 4 follows in 15 seconds /a/very/long/path/to/something and more";
        let lines = wrap(text, Some(20));
        assert_eq!(
            lines,
            ["restart 4 follows in", "15 seconds", "/a/very/long/path/to/something", "and more"]
        );
        assert_eq!(lines.join(" "), text);
    }

    #[test]
    fn times_are_rough_for_people() {
        let table =
            [(0, "0s"), (12, "12s"), (192, "3m 12s"), (7_261, "2h 1m"), (7_200, "2h"), (200_000, "2d 7h")];
        for (seconds, want) in table {
            assert_eq!(rough(Duration::from_secs(seconds)), want);
        }
        assert_eq!(took(Duration::from_millis(350)), "350ms");
        assert_eq!(took(Duration::from_millis(1_290)), "1.2s");
        assert_eq!(took(Duration::from_millis(61_000)), "1m 1s");
    }
}
