//! Spool files → lines: the last ones, those that come, and the one that a pattern waits for.
//!
//! Refuses: unbounded memory. A line longer than 64 KiB comes in marked pieces, a tail has at
//! most 8 MiB, and a reader that falls far behind is moved forward and told how much it missed.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

use regex::bytes::Regex;
use tokio::sync::watch;

use crate::logs::Stream;
use crate::logs::spool::Spool;
use crate::logs::stored::{Got, Stored};

/// Longest line in one piece, in bytes (reliability L2).
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Most bytes of lines that one `tail` answers with; older lines are left out and
/// `Tail::shortened` says so.
pub const TAIL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A follower further behind than this is moved forward (`Lag::Skip`).
pub const LAG_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How much of what it missed a moved follower still gets.
const LAG_KEPT_BYTES: u64 = 1024 * 1024;

const BLOCK_BYTES: usize = 64 * 1024;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// One line as it was written, without its newline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLineRaw {
    pub stream: Stream,
    /// At most `LINE_BYTES_MAX` bytes.
    pub bytes: Vec<u8>,
    pub cut: Cut,
}

/// Which part of a line this is. Cuts fall every `LINE_BYTES_MAX` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Whole,
    /// The line goes on in the next piece.
    Beginning,
    Middle,
    End,
}

impl LogLineRaw {
    /// For people and JSON: broken UTF-8 replaced, `…` where the line was cut. Control
    /// characters are kept; who shows them escapes them.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        match self.cut {
            Cut::Whole => text.into_owned(),
            Cut::Beginning => format!("{text}…"),
            Cut::Middle => format!("…{text}…"),
            Cut::End => format!("…{text}"),
        }
    }
}

/// What to do with a last line that has no newline yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// It may be all that a crashed service could say.
    Show,
    /// A `Follow` from `Tail::end` will bring it when it is finished. (Longer than
    /// `LINE_BYTES_MAX` it is shown all the same.)
    Leave,
}

/// The last lines of one spool file, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    pub lines: Vec<LogLineRaw>,
    /// Offset behind the last line shown: follow from here and nothing is lost or seen twice.
    pub end: u64,
    /// Fewer than asked for, because of `TAIL_BYTES_MAX`.
    pub shortened: bool,
}

/// The last `lines` lines of a unit's stream; `directory` is `<logs>/<unit>`. Reads backwards
/// and only as far as needed, across its files. A log that is not there has no lines. Blocks on a
/// cold disk.
///
/// # Errors
/// What open(2) and pread(2) say; a link in place of a file is ELOOP.
pub fn tail(directory: &Path, stream: Stream, lines: usize, last: Unfinished) -> io::Result<Tail> {
    let mut stored = Stored::new(directory, stream);
    let spans = stored.spans()?;
    let (Some(first), Some(newest)) = (spans.first(), spans.last()) else {
        return Ok(Tail { lines: Vec::new(), end: 0, shortened: false });
    };
    let begin = first.from;
    let size = match stored.part(newest)? {
        Some(part) => part.base + part.len()?,
        None => newest.to.unwrap_or(newest.from),
    };
    let end = match last {
        Unfinished::Show => size,
        Unfinished::Leave => finished_end(&mut stored, begin, size)?,
    };
    let mut back = Backwards::new(stream, lines);
    let mut at = end;
    while at > begin && back.wants_more() {
        let start = at.saturating_sub(BLOCK).max(begin);
        let bytes = read_range(&mut stored, start, at)?;
        let Some(bytes) = bytes else { break };
        back.take_block(bytes);
        at = start;
    }
    if at <= begin {
        back.take_first_line();
    }
    let shortened = back.left_bytes == 0 && back.left_lines > 0;
    Ok(Tail { lines: back.found.into(), end, shortened })
}

/// Offset behind the last newline, if that is within `LINE_BYTES_MAX` of the end.
fn finished_end(stored: &mut Stored, begin: u64, size: u64) -> io::Result<u64> {
    let start = size.saturating_sub(BLOCK).max(begin);
    let bytes = read_range(stored, start, size)?.unwrap_or_default();
    Ok(match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => start + u64::try_from(at).unwrap_or(0) + 1,
        None if start == begin => begin,
        None => size,
    })
}

/// All bytes between two positions, which may lie in different files. None: some were removed meanwhile.
fn read_range(stored: &mut Stored, from: u64, to: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
    let mut filled = 0;
    while filled < bytes.len() {
        match stored.read_at(from + u64::try_from(filled).unwrap_or(0), &mut bytes[filled..])? {
            Got::Bytes(count) => filled += count,
            Got::Gone { .. } | Got::End => return Ok(None),
        }
    }
    Ok(Some(bytes))
}

/// Lines collected from the end of a file towards its beginning.
struct Backwards {
    stream: Stream,
    left_lines: usize,
    left_bytes: usize,
    found: VecDeque<LogLineRaw>,
    /// Bytes whose line begins further in front. At most a block and a line.
    rest: Vec<u8>,
    /// The newline of `rest` (or the file's end) was seen; otherwise a piece of it was cut off.
    rest_ends: bool,
    /// Nothing was looked at yet: a newline now is the last line's own.
    at_end: bool,
}

impl Backwards {
    fn new(stream: Stream, lines: usize) -> Backwards {
        Backwards {
            stream,
            left_lines: lines,
            left_bytes: TAIL_BYTES_MAX,
            found: VecDeque::new(),
            rest: Vec::new(),
            rest_ends: true,
            at_end: true,
        }
    }

    fn wants_more(&self) -> bool {
        self.left_lines > 0 && self.left_bytes > 0
    }

    /// `block` stands directly in front of everything taken so far.
    fn take_block(&mut self, mut block: Vec<u8>) {
        if self.at_end && block.last() == Some(&b'\n') {
            block.pop();
        }
        self.at_end = false;
        block.append(&mut self.rest);
        self.rest = block;
        while self.wants_more() {
            match self.rest.iter().rposition(|byte| *byte == b'\n') {
                Some(newline) => {
                    let line = self.rest.split_off(newline + 1);
                    self.rest.pop();
                    self.take_line(line);
                    self.rest_ends = true;
                }
                None => break,
            }
        }
        while self.rest.len() > LINE_BYTES_MAX && self.wants_more() {
            let piece = self.rest.split_off(self.rest.len() - LINE_BYTES_MAX);
            let cut = if self.rest_ends { Cut::End } else { Cut::Middle };
            self.rest_ends = false;
            self.push(piece, cut);
        }
    }

    /// A complete line (or what is left of it in front of the pieces cut off).
    fn take_line(&mut self, mut line: Vec<u8>) {
        while line.len() > LINE_BYTES_MAX && self.wants_more() {
            let piece = line.split_off(line.len() - LINE_BYTES_MAX);
            let cut = if self.rest_ends { Cut::End } else { Cut::Middle };
            self.rest_ends = false;
            self.push(piece, cut);
        }
        let cut = if self.rest_ends { Cut::Whole } else { Cut::Beginning };
        self.push(line, cut);
    }

    fn take_first_line(&mut self) {
        if !self.at_end && self.wants_more() {
            let line = std::mem::take(&mut self.rest);
            self.take_line(line);
        }
    }

    fn push(&mut self, bytes: Vec<u8>, cut: Cut) {
        if !self.wants_more() {
            return;
        }
        // A line costs more memory than its bytes.
        self.left_bytes = self.left_bytes.saturating_sub(bytes.len() + size_of::<LogLineRaw>());
        self.left_lines -= 1;
        self.found.push_front(LogLineRaw { stream: self.stream, bytes, cut });
    }
}

/// What becomes of a follower that is slower than the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// More than `LAG_BYTES_MAX` behind it is moved forward and told. For people.
    Skip,
    /// It reads every byte, however late.
    Keep,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    Line(LogLineRaw),
    /// This follower was too slow and missed so many bytes. They are in the file.
    Missed {
        bytes: u64,
    },
}

/// Complete lines of a spool file from an offset on, as they come. The file is the buffer:
/// however slow the reader, this holds at most two blocks in memory and delays no writer.
pub struct Follow {
    /// Held, so that `stored` goes on telling.
    _spool: Arc<Spool>,
    stored: watch::Receiver<u64>,
    files: Stored,
    stream: Stream,
    lag: Lag,
    /// Position in the stream behind the last byte of `bytes`.
    at: u64,
    bytes: Vec<u8>,
    /// `bytes` is used up to here…
    used: usize,
    /// …and holds no newline up to here.
    searched: usize,
    /// A piece of the current line was given out already.
    inside: bool,
}

impl Follow {
    /// `from`: an offset where a line begins, such as `Tail::end` or `Spool::stored_bytes`.
    pub fn new(spool: Arc<Spool>, stream: Stream, from: u64, lag: Lag) -> Follow {
        let stored = spool.watch();
        let files = Stored::new(&spool.directory(), stream);
        Follow {
            _spool: spool,
            stored,
            files,
            stream,
            lag,
            at: from,
            bytes: Vec::new(),
            used: 0,
            searched: 0,
            inside: false,
        }
    }

    /// Waits for the next complete line (or piece of a long one). Safe to cancel: nothing is lost.
    ///
    /// # Errors
    /// What pread(2) says. Asking again tries again.
    pub async fn next(&mut self) -> io::Result<Followed> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Followed::Line(line));
            }
            let stored = *self.stored.borrow_and_update();
            if self.lag == Lag::Skip && stored.saturating_sub(self.at) > LAG_BYTES_MAX {
                return self.skip(stored);
            }
            if self.at < stored {
                match self.read_block()? {
                    Got::Bytes(_) => {
                        // A flood must not keep the others on this thread from running.
                        tokio::task::yield_now().await;
                        continue;
                    }
                    Got::Gone { to } => {
                        let bytes = to - self.at + u64::try_from(self.bytes.len() - self.used).unwrap_or(0);
                        self.jump(to, true);
                        return Ok(Followed::Missed { bytes });
                    }
                    Got::End => {}
                }
            }
            if self.stored.changed().await.is_err() {
                std::future::pending::<()>().await; // cannot be: we hold the spool
            }
        }
    }

    fn take_line(&mut self) -> Option<LogLineRaw> {
        let newline = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n');
        let end = newline.map_or(self.bytes.len(), |at| self.searched + at);
        let (length, ends) = match newline {
            Some(_) if end - self.used <= LINE_BYTES_MAX => (end - self.used, true),
            Some(_) | None if end - self.used > LINE_BYTES_MAX => (LINE_BYTES_MAX, false),
            Some(_) | None => {
                self.searched = end;
                return None;
            }
        };
        let bytes = self.bytes[self.used..self.used + length].to_vec();
        self.used += length + usize::from(ends);
        self.searched = self.used;
        let cut = match (self.inside, ends) {
            (false, true) => Cut::Whole,
            (false, false) => Cut::Beginning,
            (true, false) => Cut::Middle,
            (true, true) => Cut::End,
        };
        self.inside = !ends;
        Some(LogLineRaw { stream: self.stream, bytes, cut })
    }

    fn read_block(&mut self) -> io::Result<Got> {
        self.bytes.drain(..self.used);
        self.searched -= self.used;
        self.used = 0;
        let held = self.bytes.len();
        self.bytes.resize(held + BLOCK_BYTES, 0);
        let got = self.files.read_at(self.at, &mut self.bytes[held..]);
        let read = if let Ok(Got::Bytes(count)) = got { count } else { 0 };
        self.bytes.truncate(held + read);
        self.at += u64::try_from(read).unwrap_or(0);
        got
    }

    /// Moves forward to the first line that begins in the last `LAG_KEPT_BYTES`.
    fn skip(&mut self, stored: u64) -> io::Result<Followed> {
        let unread = u64::try_from(self.bytes.len() - self.used).unwrap_or(0);
        let from = self.at - unread;
        let target = stored - LAG_KEPT_BYTES;
        let mut block = vec![0; BLOCK_BYTES];
        let read = match self.files.read_at(target, &mut block)? {
            Got::Bytes(count) => count,
            Got::Gone { .. } | Got::End => 0,
        };
        match block[..read].iter().position(|byte| *byte == b'\n') {
            Some(newline) => self.jump(target + u64::try_from(newline).unwrap_or(0) + 1, false),
            None => self.jump(target, true),
        }
        Ok(Followed::Missed { bytes: self.at - from })
    }

    fn jump(&mut self, to: u64, inside: bool) {
        self.at = to;
        self.bytes.clear();
        self.used = 0;
        self.searched = 0;
        self.inside = inside;
    }
}

/// Waits for the line that makes a unit ready (`readiness.log`).
pub struct LineMatcher {
    follow: Follow,
    pattern: Regex,
}

impl LineMatcher {
    /// `from`: `Spool::stored_bytes` before the run was spawned, so that an older run's words
    /// are not taken for this one's.
    ///
    /// # Errors
    /// The pattern is no regular expression, or too large a one. (Matching is linear in the
    /// line, whatever the pattern: the `regex` crate has no backtracking.)
    pub fn new(
        spool: Arc<Spool>,
        stream: Stream,
        from: u64,
        pattern: &str,
    ) -> Result<LineMatcher, regex::Error> {
        let pattern = Regex::new(pattern)?;
        Ok(LineMatcher { follow: Follow::new(spool, stream, from, Lag::Keep), pattern })
    }

    /// The next line that matches. Lines longer than `LINE_BYTES_MAX` are looked at piece by piece.
    ///
    /// # Errors
    /// As `Follow::next`.
    pub async fn matched(&mut self) -> io::Result<LogLineRaw> {
        loop {
            match self.follow.next().await? {
                Followed::Line(line) if self.pattern.is_match(&line.bytes) => return Ok(line),
                Followed::Line(_) | Followed::Missed { .. } => {}
            }
        }
    }
}
