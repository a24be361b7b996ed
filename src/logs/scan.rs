//! `Scan`: one stream forwards, bytes and index side by side → items.
//!
//! Refuses: unbounded memory (a block and a line), and trust in what it finds. Records that are
//! damaged, files that are missing, cut or packed meanwhile cost their lines, never the reading.
//!
//! A line ends at its newline, and wherever the index tells of something: another run, an end, a
//! loss. So a run's last words without a newline are not glued to the first ones of the next.

use std::collections::VecDeque;
use std::io;
use std::path::Path;

use crate::base::exit::RunId;
use crate::logs::Stream;
use crate::logs::index::{Index, Record, What};
use crate::logs::line::{Cursor, Cut, Ended, Item, LINE_BYTES_MAX, Said};
use crate::logs::stored::{Part, Span, Stored, as_u64, is_damage};

pub(super) const LINE_MAX: u64 = LINE_BYTES_MAX as u64;

/// Bytes read at once.
pub const BLOCK_BYTES: usize = 64 * 1024;

/// `Cursor::record` of a place whose record is not known: the first at its position.
pub(super) const RECORD_UNKNOWN: u64 = u64::MAX;

/// What to do with a last line that has no newline yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// It may be all that a crashed service could say.
    Show,
    /// It will be told when it is finished, or too long for one piece.
    Leave,
}

/// What a step brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Item(Item),
    /// Nothing more up to the limit, or nothing yet.
    Nothing,
}

/// One stream of one unit, read forwards.
#[derive(Debug)]
pub struct Scan {
    stored: Stored,
    part: Option<Part>,
    /// In front of the next item.
    at: Cursor,
    /// `bytes[used..]` stand at `at.position`…
    bytes: Vec<u8>,
    used: usize,
    /// …and have no newline in front of this position.
    searched: u64,
    /// Records of the part's index that were not dealt with yet; the first has number `at.record`.
    records: VecDeque<(u64, Record)>,
    /// Number behind the last of those that were read.
    loaded: u64,
    /// How many there were.
    count: u64,
    /// All records for bytes in front of this position were read.
    indexed: u64,
    /// Time and run of the chunk that was dealt with last.
    chunk: (i64, RunId),
    /// The line that begins at `at.position`, once a byte of it is known.
    line: Option<Begun>,
    /// Pieces of this line were told.
    long: bool,
    block_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    ts_us: i64,
    run: RunId,
    at: Cursor,
}

enum Walked {
    Clear,
    Mark(Item),
    /// The line ends in front of this position.
    Cut(u64),
}

enum Entered {
    Yes,
    Gap(Item),
    Nowhere,
}

impl Scan {
    /// From a place that an item named, or from a position where a line begins.
    ///
    /// # Errors
    /// As `Stored::look`.
    pub fn resume(directory: &Path, stream: Stream, at: Cursor) -> io::Result<Scan> {
        let mut scan = Scan::new(directory, stream);
        scan.stored.look()?;
        // A log that was removed and begun anew is told from its beginning.
        let newest = scan.stored.spans().last().map_or(at.sequence, |last| last.sequence);
        if newest < at.sequence {
            let first = scan.stored.spans().first();
            scan.at = first.map_or(at, |first| Cursor {
                position: first.from,
                sequence: first.sequence,
                record: 0,
                lost: 0,
            });
            scan.searched = scan.at.position;
            return Ok(scan);
        }
        scan.at = at;
        // In the middle of a long line the next piece is one, too.
        if at.position > 0 && at.position.is_multiple_of(LINE_MAX) {
            scan.long = scan.line_begin(at.position)?.is_none();
        }
        scan.searched = at.position;
        Ok(scan)
    }

    /// From the oldest byte that is there.
    ///
    /// # Errors
    /// As `Stored::look`.
    pub fn begin(directory: &Path, stream: Stream) -> io::Result<Scan> {
        let mut scan = Scan::new(directory, stream);
        scan.stored.look()?;
        if let Some(first) = scan.stored.spans().first() {
            let begin = Cursor { position: first.from, sequence: first.sequence, record: 0, lost: 0 };
            scan.rewind(begin, false);
        }
        Ok(scan)
    }

    /// From position 0, looking at nothing yet.
    pub fn new(directory: &Path, stream: Stream) -> Scan {
        Scan {
            stored: Stored::new(directory, stream),
            part: None,
            at: Cursor::default(),
            bytes: Vec::new(),
            used: 0,
            searched: 0,
            records: VecDeque::new(),
            loaded: 0,
            count: 0,
            indexed: 0,
            chunk: (0, RunId(0)),
            line: None,
            long: false,
            block_bytes: BLOCK_BYTES,
        }
    }

    /// Reads so many bytes at once from now on.
    pub fn set_block(&mut self, bytes: usize) {
        self.block_bytes = bytes.clamp(4096, BLOCK_BYTES);
    }

    pub fn at(&self) -> Cursor {
        self.at
    }

    /// In front of the item that comes next, also when half of it was read.
    pub fn place(&self) -> Cursor {
        self.line.map_or(self.at, |line| line.at)
    }

    /// Time and run of the chunk that was looked at last.
    pub fn last_chunk(&self) -> (i64, RunId) {
        self.chunk
    }

    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    pub fn stored_mut(&mut self) -> &mut Stored {
        &mut self.stored
    }

    /// Goes back (or forward) to a place, and lets go of files and memory.
    pub fn rewind(&mut self, at: Cursor, long: bool) {
        self.release();
        self.at = at;
        self.searched = at.position;
        self.long = long;
    }

    /// Whether the next item is a later piece of a long line.
    pub(super) fn is_long(&self) -> bool {
        self.long
    }

    /// Lets go of files and memory until the next step.
    pub fn release(&mut self) {
        if let Some(begun) = self.line.take() {
            self.at = begun.at;
        }
        self.part = None;
        self.bytes = Vec::new();
        self.used = 0;
        self.searched = self.at.position;
        self.records = VecDeque::new();
        (self.loaded, self.count, self.indexed) = (0, 0, 0);
    }

    /// Position behind the last byte that was read.
    fn known(&self) -> u64 {
        self.at.position + as_u64(self.bytes.len() - self.used)
    }

    /// The next item in front of `limit`, a position. Marks at the limit are told. A file that can
    /// not be read any more is told as gone.
    ///
    /// # Errors
    /// As `Stored::look`: the directory or a file in it is not ours to read. Asking again tries again.
    pub fn next(&mut self, limit: u64, last: Unfinished) -> io::Result<Step> {
        loop {
            if self.part.is_none() {
                match self.enter()? {
                    Entered::Yes => {}
                    Entered::Gap(item) => return Ok(Step::Item(item)),
                    Entered::Nowhere => return Ok(Step::Nothing),
                }
            }
            let known = self.known().min(limit);
            // A whole line, or a piece: up to where it is one whatever comes behind it.
            let sure = if self.long { next_multiple(self.at.position) } else { self.at.position + LINE_MAX };
            let newline = self.newline(known.min(sure + 1));
            let end = newline.unwrap_or(known.min(sure));
            match self.walk(end)? {
                Walked::Mark(mark) => return Ok(Step::Item(mark)),
                Walked::Cut(place) => return Ok(Step::Item(self.take(place, Ended::Open, None))),
                Walked::Clear => {}
            }
            if let Some(newline) = newline {
                return Ok(Step::Item(self.take(newline, Ended::Newline, None)));
            }
            if known > sure {
                let cut = if self.long { Cut::Middle } else { Cut::Beginning };
                let end = next_multiple(self.at.position);
                return Ok(Step::Item(self.take(end, Ended::Open, Some(cut))));
            }
            if known < limit && self.fill()? {
                continue;
            }
            let written = match &self.part {
                Some(part) => self.stored.is_written(part)?,
                None => false,
            };
            // What came between the two looks is there now.
            if known < limit && self.fill()? {
                continue;
            }
            if written || known >= limit {
                match self.walk(known)? {
                    Walked::Mark(mark) => return Ok(Step::Item(mark)),
                    Walked::Cut(place) => return Ok(Step::Item(self.take(place, Ended::Open, None))),
                    Walked::Clear => {}
                }
                if let Some(grown) = self.grown_loss()? {
                    return Ok(Step::Item(grown));
                }
                if !written && self.next_span()?.is_some_and(|next| next.from <= limit && known >= next.from)
                {
                    self.leave();
                    continue;
                }
                let rest = known > self.at.position && last == Unfinished::Show;
                return Ok(match rest {
                    true => Step::Item(self.take(known, Ended::Open, None)),
                    false => Step::Nothing,
                });
            }
            if let Some(item) = self.finish(known)? {
                return Ok(Step::Item(item));
            }
            if self.part.is_some() {
                return Ok(Step::Nothing);
            }
        }
    }

    /// A file that was ended and read: the last records, then the next file.
    fn finish(&mut self, known: u64) -> io::Result<Option<Item>> {
        match self.walk(u64::MAX)? {
            Walked::Mark(mark) => return Ok(Some(mark)),
            Walked::Cut(place) => return Ok(Some(self.take(place.min(known), Ended::Open, None))),
            Walked::Clear => {}
        }
        let Some(next) = self.next_span()? else { return Ok(None) };
        if next.from > known && known > self.at.position {
            return Ok(Some(self.take(known, Ended::Open, None)));
        }
        self.leave();
        Ok(None)
    }

    /// The file behind the open one.
    fn next_span(&mut self) -> io::Result<Option<Span>> {
        let sequence = self.part.as_ref().map_or(self.at.sequence, |part| part.sequence);
        let base = self.part.as_ref().map_or(0, |part| part.base);
        // One without an index gets its number with the index: the same bytes, under another one.
        let behind = |span: &&Span| {
            span.sequence > sequence && (sequence > 0 || span.from > base || span.to.is_none())
        };
        if let Some(next) = self.stored.spans().iter().find(behind) {
            return Ok(Some(next.clone()));
        }
        self.stored.look()?;
        Ok(self.stored.spans().iter().find(behind).cloned())
    }

    /// Closes the file, to go on with the next one; a line may go on there.
    fn leave(&mut self) {
        if let Some(part) = self.part.take() {
            self.at.sequence = part.sequence + 1;
            self.at.record = 0;
            self.at.lost = 0;
        }
        self.records.clear();
        (self.loaded, self.count) = (0, 0);
    }

    /// Opens the file at `at`: the one with its number, else the first behind it.
    fn enter(&mut self) -> io::Result<Entered> {
        let known = self.known();
        for look in 0..2 {
            if look > 0 || self.stored.spans().is_empty() {
                self.stored.look()?;
            }
            let wanted = |span: &&Span| match self.at.sequence {
                0 => span.to.is_none_or(|to| to > known),
                sequence => span.sequence >= sequence,
            };
            let Some(span) = self.stored.spans().iter().find(wanted).cloned() else { continue };
            // Removed and come again without its older files: nothing there is what we had.
            let behind = span.from > known;
            let opened = match self.stored.part(&span) {
                Ok(Some(part)) => part,
                Ok(None) => continue,
                Err(error) if is_damage(&error) => {
                    let to = span.to.unwrap_or(span.from).max(known);
                    return Ok(Entered::Gap(self.jump(to, span.sequence + 1, span.first_us)));
                }
                Err(error) => return Err(error),
            };
            if behind {
                return Ok(Entered::Gap(self.jump(span.from, span.sequence, span.first_us)));
            }
            self.open(opened, known)?;
            return Ok(Entered::Yes);
        }
        Ok(Entered::Nowhere)
    }

    /// Takes up a file whose byte at `known` is the next one to be read.
    fn open(&mut self, part: Part, known: u64) -> io::Result<()> {
        let offset = known - part.base;
        let same = part.sequence == self.at.sequence && self.at.record != RECORD_UNKNOWN;
        let mut record = if same { self.at.record } else { 0 };
        if let Some(index) = part.index()? {
            if !same && offset > 0 {
                record = index.partition(|record| record.offset < offset)?;
            }
            record = record.min(index.count());
            if record > 0 || self.line.is_none() {
                self.chunk = match index.chunk_before(record)? {
                    Some(chunk) => (chunk.ts_us, chunk.run),
                    None => (index.header.created_us, RunId(0)),
                };
            }
        } else {
            self.chunk = (part.modified_us, RunId(0));
        }
        if !same {
            self.at.lost = 0;
        }
        self.at.sequence = part.sequence;
        self.at.record = record;
        (self.loaded, self.count, self.indexed) = (record, 0, 0);
        self.records.clear();
        self.part = Some(part);
        Ok(())
    }

    /// Goes to where bytes are again, which came at `ts_us`.
    fn jump(&mut self, to: u64, sequence: u64, ts_us: i64) -> Item {
        let known = self.known();
        if known > self.at.position {
            // Half a line, whose rest is gone: told first, then we come here again.
            return self.take(known, Ended::Open, None);
        }
        let at = self.at;
        self.rewind(Cursor { position: to.max(known), sequence, record: 0, lost: 0 }, false);
        let said = Said::Gone { bytes: to.saturating_sub(at.position) };
        Item { ts_us, run: RunId(0), at, next: self.at, said }
    }

    /// Reads on. False: nothing is there (yet).
    fn fill(&mut self) -> io::Result<bool> {
        let known = self.known();
        let Some(part) = &mut self.part else { return Ok(false) };
        self.bytes.drain(..self.used);
        self.used = 0;
        let held = self.bytes.len();
        self.bytes.reserve_exact(self.block_bytes);
        self.bytes.resize(held + self.block_bytes, 0);
        let mut got = part.read_at(known, &mut self.bytes[held..]);
        if got.as_ref().is_err_and(|error| !is_damage(error)) {
            // A shortage passes, a bad sector stays.
            got = part.read_at(known, &mut self.bytes[held..]);
        }
        let got = match got {
            Ok(got) => got,
            // The rest of this file is gone for us; nothing tells so where no file follows.
            Err(error) => {
                self.bytes.truncate(held);
                if !is_damage(&error) && self.next_span()?.is_none() {
                    return Err(error);
                }
                self.leave();
                return Ok(true);
            }
        };
        // Cut from outside and written anew, it has other bytes at our place now.
        let got = if got > 0 && part.is_replaced()? { 0 } else { got };
        self.bytes.truncate(held + got);
        Ok(got > 0)
    }

    /// The first newline in front of position `to`, looked for once.
    fn newline(&mut self, to: u64) -> Option<u64> {
        let begin = self.at.position;
        let from = self.searched.clamp(begin, to.max(begin));
        let slice = |position: u64| self.used + usize::try_from(position - begin).unwrap_or(0);
        let found = self.bytes[slice(from)..slice(to.max(from))].iter().position(|byte| *byte == b'\n');
        let found = found.map(|at| from + as_u64(at));
        self.searched = found.unwrap_or(to.max(from));
        found
    }

    /// Deals with the records up to position `to`.
    fn walk(&mut self, to: u64) -> io::Result<Walked> {
        let known = self.known();
        while let Some((number, record)) = self.record(to)? {
            let base = self.part.as_ref().map_or(0, |part| part.base);
            let place = base.saturating_add(record.offset);
            if place > to {
                break;
            }
            let passed = place <= self.at.position;
            if !passed && self.at.position < known && self.line.is_none() {
                self.begin_line();
            }
            // Whether the loss in front has grown is known now.
            if let Some(grown) = self.grown_loss()? {
                return Ok(Walked::Mark(grown));
            }
            match (record.what, passed) {
                (What::End, _) => self.pop(),
                (What::Chunk, _)
                    if place >= known && to != u64::MAX && !self.is_empty_chunk(number, record)? =>
                {
                    break;
                }
                (What::Chunk, true) => {
                    self.chunk = (record.ts_us, record.run);
                    self.pop();
                }
                (What::Chunk, false) => match self.line {
                    Some(line) if line.run != record.run && place < known => return Ok(Walked::Cut(place)),
                    Some(_) | None => {
                        self.chunk = (record.ts_us, record.run);
                        self.pop();
                    }
                },
                (What::Started | What::Exited(_) | What::Lost { .. }, false) if self.at.position < known => {
                    return Ok(Walked::Cut(place.min(known)));
                }
                (What::Started, _) => return Ok(Walked::Mark(self.mark(record, Said::Started))),
                (What::Exited(exit), _) => return Ok(Walked::Mark(self.mark(record, Said::Exited(exit)))),
                (What::Lost { bytes }, _) => {
                    let mut item = self.mark(record, Said::Lost { bytes });
                    self.at.lost = bytes;
                    item.next = self.at;
                    return Ok(Walked::Mark(item));
                }
            }
        }
        if self.at.position < known && self.line.is_none() {
            self.begin_line();
        }
        Ok(Walked::Clear)
    }

    /// Whether nothing was written as this chunk, and never will be: another record stands at its
    /// place. The last one may still get bytes, or be replaced.
    fn is_empty_chunk(&self, number: u64, chunk: Record) -> io::Result<bool> {
        let next = match (self.records.get(1), &self.part) {
            (Some((_, next)), _) => Some(*next),
            (None, Some(part)) if number + 1 < self.count => match part.index()? {
                Some(index) => index.record(number + 1)?,
                None => None,
            },
            (None, _) => None,
        };
        Ok(next.is_some_and(|next| next.offset <= chunk.offset))
    }

    fn begin_line(&mut self) {
        let (ts_us, run) = self.chunk;
        self.line = Some(Begun { ts_us, run, at: self.at });
    }

    /// The next record, if the index has one for the bytes up to position `to`.
    fn record(&mut self, to: u64) -> io::Result<Option<(u64, Record)>> {
        if self.records.is_empty() && (to >= self.indexed || self.loaded < self.count) {
            let known = self.known();
            let Some(part) = &self.part else { return Ok(None) };
            let Some(index) = part.index()? else {
                self.indexed = known;
                return Ok(None);
            };
            self.count = index.count();
            let page = index.numbered(self.loaded, self.count)?;
            // A page of damaged ones only is passed over.
            self.loaded = match page.last() {
                Some((number, _)) => number + 1,
                None => (self.loaded + Index::PAGE).min(self.count),
            };
            if self.loaded >= self.count {
                self.indexed = known;
            }
            self.records.extend(page);
        }
        Ok(self.records.front().copied())
    }

    fn pop(&mut self) {
        if let Some((number, _)) = self.records.pop_front() {
            self.at.record = number + 1;
            self.at.lost = 0;
        }
    }

    /// A loss that was told and has grown since.
    fn grown_loss(&mut self) -> io::Result<Option<Item>> {
        let (Some(number), Some(part)) = (self.at.record.checked_sub(1), &self.part) else { return Ok(None) };
        if self.at.lost == 0 {
            return Ok(None);
        }
        let Some(index) = part.index()? else { return Ok(None) };
        let Some(record) = index.record(number)? else { return Ok(None) };
        let What::Lost { bytes } = record.what else { return Ok(None) };
        let Some(more) = bytes.checked_sub(self.at.lost).filter(|more| *more > 0) else { return Ok(None) };
        let at = self.at;
        self.at.lost = bytes;
        let said = Said::Lost { bytes: more };
        Ok(Some(Item { ts_us: record.ts_us, run: record.run, at, next: self.at, said }))
    }

    fn mark(&mut self, record: Record, said: Said) -> Item {
        let at = self.at;
        self.pop();
        Item { ts_us: record.ts_us, run: record.run, at, next: self.at, said }
    }

    /// Gives out the line up to `end`.
    fn take(&mut self, end: u64, ended: Ended, cut: Option<Cut>) -> Item {
        if self.line.is_none() {
            self.begin_line();
        }
        let (ts_us, run) = self.chunk;
        let begun = self.line.take().unwrap_or(Begun { ts_us, run, at: self.at });
        let length = usize::try_from(end.saturating_sub(self.at.position)).unwrap_or(0);
        let length = length.min(self.bytes.len() - self.used);
        let bytes = self.bytes[self.used..self.used + length].to_vec();
        let newline = usize::from(ended == Ended::Newline);
        self.used += length + newline;
        self.at.position += as_u64(length + newline);
        self.searched = self.searched.max(self.at.position);
        let cut = cut.unwrap_or(if self.long { Cut::End } else { Cut::Whole });
        self.long = matches!(cut, Cut::Beginning | Cut::Middle);
        Item {
            ts_us: begun.ts_us,
            run: begun.run,
            at: begun.at,
            next: self.at,
            said: Said::Line { bytes, cut, ended },
        }
    }
}

fn next_multiple(position: u64) -> u64 {
    (position / LINE_MAX + 1) * LINE_MAX
}
