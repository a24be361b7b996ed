//! Where to begin reading: near a position, at a time, behind everything.
//!
//! Refuses: reading a log through. A time is looked up in the indexes by bisection; from a position
//! it is at most a line back to where an item begins.

use std::io;

use crate::logs::index::What;
use crate::logs::line::Cursor;
use crate::logs::scan::{LINE_MAX, RECORD_UNKNOWN, Scan};
use crate::logs::stored::{Span, as_u64};

impl Scan {
    /// Goes to the last place at or in front of `position` where an item begins, by the files of
    /// the last look.
    ///
    /// # Errors
    /// As pread(2).
    pub fn go_near(&mut self, position: u64) -> io::Result<()> {
        let spans = self.stored().spans();
        let Some(here) = spans.iter().find(|span| span.to.is_none_or(|to| to > position)) else {
            let end = self.stored().end()?;
            return self.go_behind(end);
        };
        if here.from >= position {
            let begin = Cursor { position: here.from, sequence: here.sequence, record: 0, lost: 0 };
            self.rewind(begin, false);
            return Ok(());
        }
        let (place, long) = match self.line_begin(position)? {
            Some(begin) => (begin, false),
            // The last cut in front: behind it the line goes on, so that it is one.
            None => ((position - 1) / LINE_MAX * LINE_MAX, true),
        };
        let holds = |span: &&Span| span.from <= place && span.to.is_none_or(|to| to > place);
        let sequence = self.stored().spans().iter().find(holds).map_or(0, |span| span.sequence);
        self.rewind(Cursor { position: place, sequence, record: RECORD_UNKNOWN, lost: 0 }, long);
        Ok(())
    }

    /// Goes to `end`, behind all that the index tells of up to there, by the files of the last look.
    ///
    /// # Errors
    /// As pread(2).
    pub fn go_behind(&mut self, end: u64) -> io::Result<()> {
        let spans = self.stored().spans();
        let holds = |span: &&Span| span.from <= end && span.to.is_none_or(|to| to >= end);
        let mut place = Cursor::at(end);
        if let Some(span) = spans.iter().rev().find(holds)
            && let Some(part) = self.stored().part(span)?
            && let Some(index) = part.index()?
        {
            let offset = end - part.base;
            place.sequence = part.sequence;
            place.record = index.partition(|record| record.offset <= offset)?;
            // A chunk without bytes yet may be replaced.
            if let Some(last) = place.record.checked_sub(1)
                && index
                    .record(last)?
                    .is_some_and(|record| record.what == What::Chunk && record.offset == offset)
            {
                place.record = last;
            }
        }
        let long = end > 0 && end.is_multiple_of(LINE_MAX) && self.line_begin(end)?.is_none();
        self.rewind(place, long);
        Ok(())
    }

    /// Goes in front of everything that was captured at `since_us` (µs since 1970) or later, but not
    /// far: to a place where an item begins. By bisection: some ten reads, whatever the size.
    ///
    /// # Errors
    /// As pread(2).
    pub fn go_since(&mut self, since_us: i64) -> io::Result<()> {
        let late = |span: &&Span| span.to.is_none() || span.last_us >= since_us;
        let Some(span) = self.stored().spans().iter().find(late).cloned() else {
            let end = self.stored().end()?;
            return self.go_behind(end);
        };
        let begin = Cursor { position: span.from, sequence: span.sequence, record: 0, lost: 0 };
        let Some(part) = self.stored().part(&span)? else {
            self.rewind(begin, false);
            return Ok(());
        };
        let Some(index) = part.index()? else {
            self.rewind(begin, false);
            return Ok(());
        };
        let first = index.partition(|record| record.ts_us < since_us)?;
        // Behind the last record its chunk goes on: bytes of the same millisecond.
        let number = first.min(index.count().saturating_sub(1));
        let offset = index.record(number)?.map_or(0, |record| record.offset);
        let position = span.from.saturating_add(offset);
        self.go_near(position)?;
        if self.at().position == position && self.at().sequence != span.sequence {
            // What is told at the very end of that file comes first.
            self.rewind(
                Cursor { position, sequence: span.sequence, record: number, lost: 0 },
                self.is_long(),
            );
        }
        Ok(())
    }

    /// The position behind which every item begins that was captured after `until_us`.
    ///
    /// # Errors
    /// As pread(2).
    pub fn position_after(&self, until_us: i64) -> io::Result<u64> {
        let spans = self.stored().spans();
        let early = |span: &&Span| span.first_us <= until_us;
        let Some(span) = spans.iter().rev().find(early) else {
            return Ok(spans.first().map_or(0, |first| first.from));
        };
        let behind = span.to.unwrap_or(u64::MAX);
        let Some(part) = self.stored().part(span)? else { return Ok(behind) };
        let Some(index) = part.index()? else { return Ok(behind) };
        let number = index.partition(|record| record.ts_us <= until_us)?;
        let record = index.record(number)?;
        Ok(record.map_or(behind, |record| span.from.saturating_add(record.offset)))
    }

    /// Where the line begins that holds the byte in front of `position`, or `position` itself behind
    /// a newline. None: further in front than a line in one piece can.
    pub(super) fn line_begin(&self, position: u64) -> io::Result<Option<u64>> {
        let spans = self.stored().spans();
        // The bytes must be there without a gap.
        let mut first = position;
        for span in spans.iter().rev().filter(|span| span.from < position) {
            if span.to.is_some_and(|to| to < first) {
                break;
            }
            first = span.from;
        }
        let from = position.saturating_sub(LINE_MAX + 1).max(first);
        let mut at = from;
        let mut begin = None;
        self.stored().read_range(from, position, |bytes| {
            if let Some(newline) = bytes.iter().rposition(|byte| *byte == b'\n') {
                begin = Some(at + as_u64(newline) + 1);
            }
            at += as_u64(bytes.len());
        })?;
        Ok(begin.or((from == first).then_some(first)))
    }
}
