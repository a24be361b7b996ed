//! `Item`: a line as it was written, or what happened between two lines; and `Cursor`, its place.
//!
//! Refuses: text. Bytes stay bytes; who shows them replaces and escapes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::base::exit::{Exit, RunId};

/// Longest line in one piece, in bytes (reliability L2).
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// A place between two items of a stream. Reading on from it brings each of the items behind it
/// once, and none of those in front.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Bytes of the stream in front of it.
    pub position: u64,
    /// Number of the file in whose index the next record is to be looked at; 0: whichever holds
    /// the position.
    pub sequence: u64,
    /// Number of that record.
    pub record: u64,
    /// Bytes told of a loss that may still grow: that of the record in front.
    pub lost: u64,
}

impl Cursor {
    /// The place in front of the byte at this position.
    pub fn at(position: u64) -> Cursor {
        Cursor { position, ..Cursor::default() }
    }
}

/// `4711.3.12`, and `.512` behind it where a loss may still grow.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.position, self.sequence, self.record)?;
        if self.lost > 0 { write!(f, ".{}", self.lost) } else { Ok(()) }
    }
}

/// The text is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCursor;

impl FromStr for Cursor {
    type Err = NoCursor;

    fn from_str(text: &str) -> Result<Cursor, NoCursor> {
        let mut numbers = text.split('.').map(|number| number.parse::<u64>().map_err(|_| NoCursor));
        let mut next = || numbers.next().transpose();
        let (position, sequence, record) = (next()?, next()?, next()?);
        let lost = next()?.unwrap_or(0);
        match (position, sequence, record, numbers.next()) {
            (Some(position), Some(sequence), Some(record), None) => {
                Ok(Cursor { position, sequence, record, lost })
            }
            (_, _, _, _) => Err(NoCursor),
        }
    }
}

/// A line, or what happened between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// When it was captured, µs since 1970: of a line, its first byte.
    pub ts_us: i64,
    /// Whose it is; 0 where nobody knows.
    pub run: RunId,
    /// The place in front of it.
    pub at: Cursor,
    /// The place behind it.
    pub next: Cursor,
    pub said: Said,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// At most `LINE_BYTES_MAX` bytes, without the newline.
    Line {
        bytes: Vec<u8>,
        cut: Cut,
        ended: Ended,
    },
    /// The run was spawned.
    Started,
    Exited(Exit),
    /// So many bytes were dropped before they could be stored (a full disk).
    Lost {
        bytes: u64,
    },
    /// So many bytes were stored and are no more: removed, or damaged.
    Gone {
        bytes: u64,
    },
    /// The reader was too slow: so many bytes were passed over, which had so many newlines, if
    /// somebody counted. They are in the files.
    Missed {
        bytes: u64,
        lines: Option<u64>,
    },
}

/// Which part of a line this is. Lines longer than `LINE_BYTES_MAX` are cut at the positions of
/// the stream that divide by it, so that a cut is the same wherever one begins to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Whole,
    /// The line goes on in the next piece.
    Beginning,
    Middle,
    End,
}

impl Cut {
    /// Whether the piece in front of it is of the same line.
    pub fn is_continued(self) -> bool {
        matches!(self, Cut::Middle | Cut::End)
    }
}

/// What stood behind a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Newline,
    /// Its rest, another run, the end of its run, a loss, or nothing yet.
    Open,
}

impl Item {
    pub fn is_line(&self) -> bool {
        matches!(self.said, Said::Line { .. })
    }
}

/// For people and JSON: broken UTF-8 replaced, `…` where the line was cut. Control characters are
/// kept; who shows them escapes them.
pub fn text(bytes: &[u8], cut: Cut) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    match cut {
        Cut::Whole => text,
        Cut::Beginning => format!("{text}…").into(),
        Cut::Middle => format!("…{text}…").into(),
        Cut::End => format!("…{text}").into(),
    }
}
