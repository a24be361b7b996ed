//! `Diagnostic`: one mistake in one file, with its place and its cure.
//!
//! Refuses: how it looks (`unit::render`) and reading files.

use std::fmt;
use std::ops::Range;

/// Most diagnostics kept for one file; beyond it a last one says how many more there were.
pub const DIAGNOSTICS_MAX: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// The file is not used.
    Error,
    /// The file is used; something in it does not do what it seems to.
    Warning,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Error => "error",
            Level::Warning => "warning",
        })
    }
}

/// A place in a text. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Byte offsets.
    pub span: Range<usize>,
    pub line: u64,
    pub column: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub level: Level,
    /// Stable: `unit.unknown-key`, `daemon.bad-value`, `graph.cycle`, …
    pub code: String,
    pub message: String,
    /// The file as the user knows it.
    pub file: String,
    /// None: the file as a whole.
    pub place: Option<Place>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error about a file as a whole.
    pub fn of_file(file: &str, code: &str, message: String, help: Option<String>) -> Diagnostic {
        Diagnostic { level: Level::Error, code: code.into(), message, file: file.into(), place: None, help }
    }

    pub fn is_error(&self) -> bool {
        match self.level {
            Level::Error => true,
            Level::Warning => false,
        }
    }
}

/// Where the lines of a text begin: byte offset → line and column without a walk each time.
pub struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub fn of(text: &'t str) -> Lines<'t> {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, starts }
    }

    /// The place of a span; offsets beyond the text or inside a character are moved back.
    pub fn place(&self, span: Range<usize>) -> Place {
        let start = self.boundary(span.start);
        let end = self.boundary(span.end).max(start);
        let line = self.starts.partition_point(|at| *at <= start).max(1);
        let line_start = self.starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text[line_start..start].chars().count() + 1;
        Place { span: start..end, line: line as u64, column: column as u64 }
    }

    /// The number of the line that holds this offset, from 1.
    pub fn line(&self, offset: usize) -> u64 {
        self.starts.partition_point(|at| *at <= offset).max(1) as u64
    }

    /// The text of a line, from 1, with its newline.
    pub fn text_of(&self, line: u64) -> &'t str {
        let index = usize::try_from(line).unwrap_or(usize::MAX).saturating_sub(1);
        let Some(start) = self.starts.get(index).copied() else { return "" };
        let end = self.starts.get(index + 1).copied().unwrap_or(self.text.len());
        &self.text[start..end]
    }

    fn boundary(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}
