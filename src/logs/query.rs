//! `Reader`: several streams merged by time, from a place or a time on, the last lines, what matches,
//! and what comes.
//!
//! Refuses: answers in memory. It looks for the places where the answer begins, then reads forwards
//! from them an item at a time; the files are the buffer, however slow whoever reads is.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use crate::logs::Stream;
use crate::logs::line::{Cursor, Item, Said};
use crate::logs::scan::{Scan, Step, Unfinished};
use crate::logs::spool::Spool;

/// A follower further behind than this is moved forward and told how much it missed.
pub const LAG_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How much of what it missed a moved follower still gets.
const LAG_KEPT_BYTES: u64 = 1024 * 1024;

/// In a gap that is not larger somebody counts the lines: 30 ms of memory bandwidth.
const COUNT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The writer may begin a new file while they are counted; a flood does so some times a second.
const COUNT_TRIES: usize = 3;

/// Longest pattern, bytes.
pub const PATTERN_BYTES_MAX: usize = 256;

/// Most memory that a compiled pattern, and its cache, may take.
const PATTERN_MEMORY_MAX: usize = 1024 * 1024;

/// With more streams than this, none keeps its file and its block between two items.
const OPEN_MAX: usize = 32;

/// All blocks together.
const BLOCKS_BYTES: usize = 512 * 1024;

/// First and largest window of a look backwards, bytes.
const WINDOW_MIN: u64 = 64 * 1024;
const WINDOW_MAX: u64 = 1024 * 1024;

/// Between two looks whether the reader has left, in items that it does not get.
const PATIENCE_ITEMS: u32 = 4096;

/// A regular expression that lines are searched for. Linear in the line, whatever the pattern: the
/// `regex` crate has no backtracking.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// # Errors
    /// What is wrong with it, for whoever wrote it.
    pub fn new(text: &str) -> Result<Pattern, String> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(format!("it is longer than {PATTERN_BYTES_MAX} bytes"));
        }
        let mut builder = RegexBuilder::new(text);
        builder.size_limit(PATTERN_MEMORY_MAX).dfa_size_limit(PATTERN_MEMORY_MAX);
        match builder.build() {
            Ok(pattern) => Ok(Pattern(pattern)),
            // The last line of a syntax error is what is wrong; the others draw an arrow to it.
            Err(error) => Err(error.to_string().lines().last().unwrap_or("it cannot be read").to_string()),
        }
    }

    pub fn matches(&self, line: &[u8]) -> bool {
        self.0.is_match(line)
    }
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Begin so many lines that fit in front of the end; None: with the oldest.
    pub lines: Option<u64>,
    /// Only what was captured at or after this time, µs since 1970.
    pub since_us: Option<i64>,
    /// Only what was captured at or before this time.
    pub until_us: Option<i64>,
    /// Only lines that match, and losses.
    pub pattern: Option<Pattern>,
    pub marks: Marks,
    pub until: Until,
}

/// Which marks are told. Losses always are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Marks {
    #[default]
    All,
    /// Only what was lost, removed or missed.
    Losses,
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// What is there now; a last line without its newline, too.
    #[default]
    Now,
    /// And then what comes, line by line.
    Follow,
    /// And then what comes, byte by byte.
    FollowBytes,
}

impl Until {
    fn unfinished(self) -> Unfinished {
        match self {
            Until::Now | Until::FollowBytes => Unfinished::Show,
            Until::Follow => Unfinished::Leave,
        }
    }
}

/// A stream to read.
pub struct Input {
    pub directory: PathBuf,
    pub stream: Stream,
    /// Who writes it, when somebody may: to be followed it must be there.
    pub spool: Option<Arc<Spool>>,
    /// Go on from here, whatever is asked for.
    pub after: Option<Cursor>,
}

struct Source {
    scan: Scan,
    spool: Option<Arc<Spool>>,
    /// No byte at or behind this position is told.
    limit: u64,
    /// Nothing that begins at or behind this position is told.
    stop: u64,
    /// Nothing that was captured before is told, unless it goes on from a place.
    since_us: Option<i64>,
    /// It is the head of the merge.
    head: Head,
    /// It has been at the end of what is there: from then on it may be too slow.
    live: bool,
    /// The place behind what was told.
    told: Cursor,
    /// Why it cannot be read; it has nothing to say, then.
    broken: Option<io::Error>,
}

enum Head {
    None,
    Item(Item),
    /// It has to be read once more: there are too many streams to keep an item of each.
    Again,
}

/// Whoever reads has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left;

/// Items of several streams, oldest first.
pub struct Reader {
    sources: Vec<Source>,
    asked: Asked,
    heads: BinaryHeap<Reverse<(i64, usize)>>,
    /// Streams without a head that may have news.
    ready: BTreeSet<usize>,
}

impl Reader {
    /// Looks for the places to begin. `left` is asked now and then whether anybody still waits.
    ///
    /// # Errors
    /// The reader has left.
    pub fn begin(inputs: Vec<Input>, asked: Asked, left: &dyn Fn() -> bool) -> Result<Reader, Left> {
        let block_bytes = BLOCKS_BYTES / inputs.len().max(1);
        let mut sources = Vec::with_capacity(inputs.len());
        let mut resumed = Vec::with_capacity(inputs.len());
        for input in inputs {
            resumed.push(input.after.is_some());
            let mut source = Source::open(&input, &asked).unwrap_or_else(|error| Source {
                broken: Some(error),
                ..Source::of(Scan::new(&input.directory, input.stream))
            });
            source.scan.set_block(block_bytes);
            source.spool = input.spool;
            sources.push(source);
        }
        let ready = (0..sources.len()).collect();
        let mut reader = Reader { sources, asked, heads: BinaryHeap::new(), ready };
        reader.place(&resumed, left)?;
        for source in &mut reader.sources {
            source.told = source.scan.at();
            source.scan.release();
        }
        Ok(reader)
    }

    /// Puts every scan where its first item is.
    fn place(&mut self, resumed: &[bool], left: &dyn Fn() -> bool) -> Result<(), Left> {
        if let Some(since_us) = self.asked.since_us {
            for (source, _) in self.sources.iter_mut().zip(resumed).filter(|(_, resumed)| !**resumed) {
                source.attempt(|source| source.scan.go_since(since_us));
            }
        }
        let Some(lines) = self.asked.lines else { return Ok(()) };
        let lines = usize::try_from(lines).unwrap_or(usize::MAX);
        // The newest lines of all, the oldest of them on top.
        let mut newest: BinaryHeap<Reverse<Found>> = BinaryHeap::new();
        let mut ends = vec![None; self.sources.len()];
        for (number, source) in self.sources.iter_mut().enumerate().filter(|(number, _)| !resumed[*number]) {
            let (asked, newest) = (&self.asked, &mut newest);
            ends[number] = source.attempt(|source| {
                let end = source.stop.min(source.scan.stored().end()?);
                look_back(source, number, end, asked, lines, newest, left)?;
                Ok(end)
            });
            if left() {
                return Err(Left);
            }
        }
        let mut firsts: Vec<Option<(Cursor, bool)>> = vec![None; self.sources.len()];
        for Reverse(found) in newest.into_vec() {
            let first = &mut firsts[found.source];
            if first.is_none_or(|(at, _)| found.at < at) {
                *first = Some((found.at, found.long));
            }
        }
        for ((source, first), end) in self.sources.iter_mut().zip(firsts).zip(ends) {
            match (first, end) {
                (Some((at, long)), _) => source.scan.rewind(at, long),
                (None, Some(end)) => _ = source.attempt(|source| source.scan.go_behind(end)),
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// What could not be read, by the number of its stream; each trouble is told once.
    pub fn troubles(&mut self) -> Vec<(usize, io::Error)> {
        let told = self.sources.iter_mut().enumerate().filter_map(|(number, source)| {
            let told = io::Error::from(io::ErrorKind::Other);
            let trouble = source.broken.as_mut().map(|error| std::mem::replace(error, told))?;
            Some((number, trouble)).filter(|(_, trouble)| trouble.kind() != io::ErrorKind::Other)
        });
        told.collect()
    }

    /// The place behind the last item of each stream that was told.
    pub fn places(&self) -> impl Iterator<Item = Cursor> + '_ {
        self.sources.iter().map(|source| source.told)
    }

    /// A stream has news.
    pub fn wake(&mut self, number: usize) {
        if matches!(self.sources[number].head, Head::None) {
            self.ready.insert(number);
        }
    }

    /// The next item, and the number of its stream. None: nothing more, or nothing yet.
    ///
    /// # Errors
    /// The reader has left.
    pub fn next(&mut self, left: &dyn Fn() -> bool) -> Result<Option<(usize, Item)>, Left> {
        while let Some(number) = self.ready.pop_first() {
            if self.sources[number].broken.is_some() {
                continue;
            }
            if let Some(missed) = self.sources[number].attempt(Source::catch_up).flatten() {
                self.ready.insert(number);
                return Ok(Some((number, missed)));
            }
            self.take_head(number, left)?;
        }
        let Some(Reverse((_, number))) = self.heads.pop() else { return Ok(None) };
        let source = &mut self.sources[number];
        let item = match std::mem::replace(&mut source.head, Head::None) {
            Head::Item(item) => Some(item),
            Head::Again => self.find(number, left)?,
            Head::None => None,
        };
        self.ready.insert(number);
        match item {
            Some(item) => {
                self.sources[number].told = item.next;
                Ok(Some((number, item)))
            }
            // It was there before: removed meanwhile.
            None => self.next(left),
        }
    }

    fn take_head(&mut self, number: usize, left: &dyn Fn() -> bool) -> Result<(), Left> {
        let many = self.sources.len() > OPEN_MAX;
        let found = self.find(number, left)?;
        let source = &mut self.sources[number];
        match found {
            Some(item) => {
                self.heads.push(Reverse((item.ts_us, number)));
                source.head = match many {
                    true => {
                        let long = matches!(&item.said, Said::Line { cut, .. } if cut.is_continued());
                        source.scan.rewind(item.at, long);
                        Head::Again
                    }
                    false => Head::Item(item),
                };
            }
            None => {
                source.live = true;
                if many {
                    source.scan.release();
                }
            }
        }
        Ok(())
    }

    /// The next item of a stream that fits.
    fn find(&mut self, number: usize, left: &dyn Fn() -> bool) -> Result<Option<Item>, Left> {
        let source = &mut self.sources[number];
        let unfinished = self.asked.until.unfinished();
        let mut passed = 0;
        loop {
            // A shortage passes; asking again tries again.
            let step = source.attempt(|source| {
                source
                    .scan
                    .next(source.limit, unfinished)
                    .or_else(|_| source.scan.next(source.limit, unfinished))
            });
            let Some(step) = step else { return Ok(None) };
            match step {
                Step::Nothing => return Ok(None),
                Step::Item(item) if begins_behind(&item, source.stop) => return Ok(None),
                Step::Item(item) if self.asked.fits(&item, source.since_us) => return Ok(Some(item)),
                Step::Item(_) => {}
            }
            passed += 1;
            if passed % PATIENCE_ITEMS == 0 && left() {
                return Err(Left);
            }
        }
    }
}

impl Source {
    fn of(scan: Scan) -> Source {
        let (told, head) = (scan.at(), Head::None);
        let (limit, stop) = (u64::MAX, u64::MAX);
        Source { scan, spool: None, limit, stop, since_us: None, head, live: false, told, broken: None }
    }

    fn open(input: &Input, asked: &Asked) -> io::Result<Source> {
        let scan = match input.after {
            Some(at) => Scan::resume(&input.directory, input.stream, at)?,
            None => Scan::begin(&input.directory, input.stream)?,
        };
        let limit = match asked.until {
            Until::Now => scan.stored().end()?,
            Until::Follow | Until::FollowBytes => u64::MAX,
        };
        let stop = match asked.until_us {
            Some(until_us) => scan.position_after(until_us)?,
            None => u64::MAX,
        };
        let since_us = asked.since_us.filter(|_| input.after.is_none());
        Ok(Source { limit, stop, since_us, ..Source::of(scan) })
    }

    /// One stream that cannot be read does not keep the others from being read.
    fn attempt<T>(&mut self, what: impl FnOnce(&mut Source) -> io::Result<T>) -> Option<T> {
        match what(self) {
            Ok(value) => Some(value),
            Err(error) => {
                self.broken = Some(error);
                None
            }
        }
    }

    /// Lines between two positions. None: not all of it can be read any more.
    fn count(&mut self, from: u64, to: u64) -> io::Result<Option<u64>> {
        for _ in 0..COUNT_TRIES {
            let (mut read, mut newlines) = (0, 0);
            self.scan.stored().read_range(from, to, |block| {
                read += block.len();
                newlines += block.iter().filter(|byte| **byte == b'\n').count();
            })?;
            if u64::try_from(read).is_ok_and(|read| read == to - from) {
                return Ok(u64::try_from(newlines).ok());
            }
            // A file has got another name meanwhile.
            self.scan.stored_mut().look()?;
        }
        Ok(None)
    }

    /// Moves a follower forward that is too far behind.
    fn catch_up(&mut self) -> io::Result<Option<Item>> {
        let Some(spool) = self.spool.as_ref().filter(|_| self.live && self.limit == u64::MAX) else {
            return Ok(None);
        };
        let at = self.scan.place();
        let stored = spool.stored_bytes();
        if stored.saturating_sub(at.position) <= LAG_BYTES_MAX {
            return Ok(None);
        }
        let (ts_us, run) = self.scan.last_chunk();
        self.scan.release();
        self.scan.stored_mut().look()?;
        self.scan.go_near(stored - LAG_KEPT_BYTES)?;
        let next = self.scan.at();
        let Some(bytes) = next.position.checked_sub(at.position).filter(|bytes| *bytes > 0) else {
            return Ok(None);
        };
        let lines = if bytes <= COUNT_BYTES_MAX { self.count(at.position, next.position)? } else { None };
        self.told = next;
        Ok(Some(Item { ts_us, run, at, next, said: Said::Missed { bytes, lines } }))
    }
}

impl Asked {
    fn fits(&self, item: &Item, since_us: Option<i64>) -> bool {
        let in_time = since_us.is_none_or(|since_us| item.ts_us >= since_us)
            && self.until_us.is_none_or(|until_us| item.ts_us <= until_us);
        let wanted = match &item.said {
            Said::Line { bytes, .. } => self.pattern.as_ref().is_none_or(|pattern| pattern.matches(bytes)),
            Said::Started | Said::Exited(_) => self.marks == Marks::All && self.pattern.is_none(),
            Said::Lost { .. } | Said::Gone { .. } | Said::Missed { .. } => self.marks != Marks::None,
        };
        in_time && wanted
    }
}

/// Marks at a position stand in front of the line there.
fn begins_behind(item: &Item, position: u64) -> bool {
    item.at.position > position || (item.at.position == position && item.is_line())
}

/// A line that may be the first one shown.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    /// Its time, or that of an earlier one behind it in its stream (the clock was set back).
    ts_us: i64,
    source: usize,
    at: Cursor,
    long: bool,
}

/// Finds lines from the end of a stream towards its beginning, window by window, until there are
/// `lines` newer ones.
fn look_back(
    source: &mut Source,
    number: usize,
    end: u64,
    asked: &Asked,
    lines: usize,
    newest: &mut BinaryHeap<Reverse<Found>>,
    left: &dyn Fn() -> bool,
) -> io::Result<()> {
    let floor = source.scan.at().position;
    let (mut high, mut window) = (end, WINDOW_MIN);
    let mut ts_us = i64::MAX;
    while high > floor && lines > 0 {
        let low = high.saturating_sub(window).max(floor);
        window = (window * 4).min(WINDOW_MAX);
        source.scan.go_near(low)?;
        let mut found = VecDeque::new();
        let mut passed = 0;
        // What begins in this window.
        while let Step::Item(item) = source.scan.next(source.limit, asked.until.unfinished())? {
            if begins_behind(&item, high) {
                break;
            }
            if item.is_line() && item.at.position >= low && asked.fits(&item, source.since_us) {
                let long = matches!(&item.said, Said::Line { cut, .. } if cut.is_continued());
                found.push_back((item.ts_us, item.at, long));
                if found.len() > lines {
                    found.pop_front();
                }
            }
            passed += 1;
            if passed % PATIENCE_ITEMS == 0 && left() {
                return Ok(()); // as the caller will find, too
            }
        }
        for (at_us, at, long) in found.into_iter().rev() {
            ts_us = ts_us.min(at_us);
            let line = Found { ts_us, source: number, at, long };
            if newest.len() < lines {
                newest.push(Reverse(line));
            } else if newest.peek().is_some_and(|Reverse(oldest)| *oldest < line) {
                newest.pop();
                newest.push(Reverse(line));
            } else {
                return Ok(());
            }
        }
        high = low;
        if left() {
            return Ok(()); // as the caller will find, too
        }
    }
    Ok(())
}
