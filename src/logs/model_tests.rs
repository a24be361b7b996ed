//! The plain model of a log: what was written, told apart byte by byte, and what a question about it
//! is answered with.
//!
//! Refuses: the readers' code, and being fast.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::logs::Stream;
use crate::logs::files::Directory;
use crate::logs::index::What;
use crate::logs::line::{Cut, Ended, Item, LINE_BYTES_MAX, Said};
use crate::logs::query::{Asked, Marks};
use crate::logs::retain::tidy;
use crate::logs::segment::segments;
use crate::logs::spool::{Change, Keep, Now, Pack, Spool};
use crate::unit::spec::WhenFull;

/// 2026-11-21, µs since 1970.
pub const EPOCH_US: i64 = 1_795_000_000_000_000;

pub fn keep(file_bytes_max: u64, files_max: u32, pack: Pack) -> Keep {
    Keep { file_bytes_max, files_max, age_max_s: 0, pack, when_full: WhenFull::Block }
}

pub fn moment(ts_us: i64) -> Now {
    Now { at: Monotonic::from_ns(1), ts_us }
}

pub fn open(logs: &Path, stream: Stream, keep: Keep) -> Arc<Spool> {
    let unit = UnitName::parse("web").expect("name");
    Arc::new(Spool::open(logs, &unit, stream, keep, moment(EPOCH_US)).expect("spool"))
}

/// What stands in a stream, in order.
#[derive(Clone, Debug)]
pub enum Written {
    Bytes(Vec<u8>),
    Mark(Said),
}

pub struct Entry {
    file: u64,
    ts_us: i64,
    run: RunId,
    written: Written,
}

/// A stream that is written, and the plain model of it.
pub struct Stage {
    pub spool: Arc<Spool>,
    stream: Stream,
    entries: Vec<Entry>,
    /// Files ended so far, and one.
    file: u64,
}

/// An item without its places, but with that of its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plain {
    pub position: u64,
    pub ts_us: i64,
    pub run: RunId,
    pub said: Said,
}

pub fn plain(item: &Item) -> Plain {
    Plain { position: item.at.position, ts_us: item.ts_us, run: item.run, said: item.said.clone() }
}

impl Stage {
    pub fn new(logs: &Path, stream: Stream, keep: Keep) -> Stage {
        Stage { spool: open(logs, stream, keep), stream, entries: Vec::new(), file: 1 }
    }

    pub fn write(&mut self, run: u64, ts_us: i64, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            let taken = self.spool.append(RunId(run), moment(ts_us), left).expect("append");
            left = &left[taken..];
        }
        let written = Written::Bytes(bytes.to_vec());
        self.entries.push(Entry { file: self.file, ts_us, run: RunId(run), written });
        self.rotate(ts_us);
    }

    fn rotate(&mut self, ts_us: i64) {
        if self.spool.rotate_if_due(moment(ts_us)).expect("rotate") == Change::Rotated {
            self.file += 1;
        }
    }

    pub fn mark(&mut self, run: u64, ts_us: i64, what: What) {
        let said = match what {
            What::Started => Said::Started,
            What::Exited(exit) => Said::Exited(exit),
            What::Lost { bytes } => Said::Lost { bytes },
            What::Chunk | What::End => panic!("no mark"),
        };
        match (what, self.entries.last_mut()) {
            (What::Lost { bytes }, last) => {
                self.spool.count_loss(RunId(run), bytes);
                self.spool.mark_loss(moment(ts_us)).expect("mark");
                // At one place losses are summed up, with the time of the last.
                if let Some(Entry {
                    file,
                    ts_us: at,
                    run: whose,
                    written: Written::Mark(Said::Lost { bytes: sum }),
                }) = last
                    && *file == self.file
                {
                    (*at, *whose, *sum) = (ts_us, RunId(run), *sum + bytes);
                    return;
                }
            }
            (_, _) => self.spool.mark(RunId(run), moment(ts_us), what).expect("mark"),
        }
        self.entries.push(Entry { file: self.file, ts_us, run: RunId(run), written: Written::Mark(said) });
    }

    /// As after a kill -9.
    pub fn reopen(&mut self, logs: &Path, keep: Keep) {
        self.spool = open(logs, self.stream, keep);
    }

    pub fn retain(&mut self, logs: &Path, keep: Keep) {
        let directory = Directory::open(&logs.join("web")).expect("directory");
        tidy(&directory, self.stream, keep, EPOCH_US / 1_000_000).expect("tidy");
    }

    /// Every item, from the files that are left.
    pub fn model(&self, logs: &Path) -> Vec<Plain> {
        let directory = Directory::open(&logs.join("web")).expect("directory");
        let oldest =
            segments(&directory, self.stream).expect("segments").first().map_or(self.file, |s| s.sequence);
        let mut model = Model::default();
        for entry in &self.entries {
            let gone = entry.file < oldest;
            match &entry.written {
                Written::Bytes(bytes) if gone => model.skip(bytes.len()),
                Written::Bytes(bytes) => model.bytes(entry, bytes),
                Written::Mark(_) if gone => {}
                Written::Mark(said) => model.mark(entry, said),
            }
        }
        model.end_segment(Ended::Open);
        model.items
    }
}

/// With its time and run.
type Byte = (u8, i64, RunId);

#[derive(Default)]
struct Model {
    items: Vec<Plain>,
    position: u64,
    /// The segment that has no end yet.
    open: Vec<Byte>,
}

impl Model {
    fn skip(&mut self, bytes: usize) {
        self.position += bytes as u64;
    }

    fn bytes(&mut self, entry: &Entry, bytes: &[u8]) {
        if self.open.last().is_some_and(|(_, _, run)| *run != entry.run) {
            self.end_segment(Ended::Open);
        }
        for byte in bytes {
            if *byte == b'\n' {
                if self.open.is_empty() {
                    let said = Said::Line { bytes: Vec::new(), cut: Cut::Whole, ended: Ended::Newline };
                    self.items.push(Plain {
                        position: self.position,
                        ts_us: entry.ts_us,
                        run: entry.run,
                        said,
                    });
                } else {
                    self.end_segment(Ended::Newline);
                }
            } else {
                self.open.push((*byte, entry.ts_us, entry.run));
            }
            self.position += 1;
        }
    }

    fn mark(&mut self, entry: &Entry, said: &Said) {
        self.end_segment(Ended::Open);
        let said = said.clone();
        self.items.push(Plain { position: self.position, ts_us: entry.ts_us, run: entry.run, said });
    }

    fn end_segment(&mut self, ended: Ended) {
        let open = std::mem::take(&mut self.open);
        let start = self.position - open.len() as u64;
        let long = open.len() > LINE_BYTES_MAX;
        let mut pieces: Vec<(u64, Vec<Byte>)> = Vec::new();
        for (at, byte) in open.into_iter().enumerate() {
            let position = start + at as u64;
            if pieces.is_empty() || (long && position.is_multiple_of(LINE_BYTES_MAX as u64)) {
                pieces.push((position, Vec::new()));
            }
            pieces.last_mut().expect("a piece").1.push(byte);
        }
        let count = pieces.len();
        for (number, (position, piece)) in pieces.into_iter().enumerate() {
            let (_, ts_us, run) = piece[0];
            let cut = match (count, number) {
                (1, _) => Cut::Whole,
                (_, 0) => Cut::Beginning,
                (_, _) if number + 1 == count => Cut::End,
                (_, _) => Cut::Middle,
            };
            let ended = if number + 1 == count { ended } else { Ended::Open };
            let bytes = piece.iter().map(|(byte, _, _)| *byte).collect();
            self.items.push(Plain { position, ts_us, run, said: Said::Line { bytes, cut, ended } });
        }
    }
}

/// The streams merged as they should be: by time, each in its order.
pub fn merged(streams: Vec<Vec<Plain>>) -> Vec<(usize, Plain)> {
    let mut queues: Vec<VecDeque<Plain>> = streams.into_iter().map(Into::into).collect();
    let mut all = Vec::new();
    loop {
        let heads =
            queues.iter().enumerate().filter_map(|(number, queue)| Some((queue.front()?.ts_us, number)));
        let Some((_, number)) = heads.min() else { return all };
        all.extend(queues[number].pop_front().map(|item| (number, item)));
    }
}

pub fn is_line(plain: &Plain) -> bool {
    matches!(plain.said, Said::Line { .. })
}

/// What the model answers.
pub fn answer(streams: &[Vec<Plain>], asked: &Asked) -> Vec<(usize, Plain)> {
    let fits = |item: &&Plain| {
        let in_time = asked.since_us.is_none_or(|since| item.ts_us >= since)
            && asked.until_us.is_none_or(|until| item.ts_us <= until);
        in_time
            && match &item.said {
                Said::Line { bytes, .. } => {
                    asked.pattern.as_ref().is_none_or(|pattern| pattern.matches(bytes))
                }
                Said::Started | Said::Exited(_) => asked.marks == Marks::All && asked.pattern.is_none(),
                Said::Lost { .. } | Said::Gone { .. } | Said::Missed { .. } => asked.marks != Marks::None,
            }
    };
    let fitting: Vec<Vec<Plain>> =
        streams.iter().map(|items| items.iter().filter(fits).cloned().collect()).collect();
    let all = merged(fitting.clone());
    let Some(lines) = asked.lines else { return all };
    let lines = usize::try_from(lines).expect("small");
    let numbered: Vec<&(usize, Plain)> = all.iter().filter(|(_, item)| is_line(item)).collect();
    let last = &numbered[numbered.len().saturating_sub(lines)..];
    let suffixes = fitting.iter().enumerate().map(|(number, items)| {
        let first = last.iter().find(|(whose, _)| *whose == number);
        let from = first.and_then(|(_, first)| items.iter().position(|item| item == first));
        from.map_or_else(Vec::new, |from| items[from..].to_vec())
    });
    merged(suffixes.collect())
}
