//! Lines of logs as answers: what is there, and then what comes.
//!
//! Refuses: holding anybody up. Each reader is read for on a thread of its own, an answer's pieces
//! are few, and one that is too slow is told what it missed: the files are the buffer.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::api::call::{Answer, LogForm, LogQuery, PiecesOf};
use crate::api::types::LogLine;
use crate::base::base64;
use crate::base::name::UnitName;
use crate::daemon::handlers::refuse;
use crate::logs::Stream;
use crate::logs::line::{Cursor, Cut, Ended, Item, Said, text};
use crate::logs::query::{Asked, Input, Left, Marks, PATTERN_BYTES_MAX, Pattern, Reader, Until};
use crate::logs::spool::Spool;
use crate::sys::clock::rfc3339;
use crate::sys::threads::aside;

/// A piece of an answer is sent when it has so many bytes, or when there is nothing more for now.
const PIECE_BYTES: usize = 32 * 1024;

/// Pieces on their way to one reader. More would only be memory: the file has the rest.
const PIECES_MAX: usize = 1;

/// An event's id names the place in every stream, so that a browser can go on from it, if they are
/// no more than this; else only that in its own.
const PLACES_IN_ID_MAX: usize = 8;

/// Places in one of the ids that a followed log of many streams begins with.
const PLACES_PER_EVENT: usize = 64;

/// When there was no thread to read with, it is tried again after this.
const THREAD_RETRY: Duration = Duration::from_millis(20);

/// One stream of one unit, and its open spool when somebody may write to it.
pub struct LogSource {
    pub unit: UnitName,
    pub stream: Stream,
    pub directory: PathBuf,
    pub spool: Option<Arc<Spool>>,
}

/// The texts of the last `lines` lines of all sources together. A log that cannot be read has none;
/// the daemon's own log says why.
pub async fn last_lines(sources: Vec<LogSource>, lines: u64) -> Vec<String> {
    let read = aside("logs", move || {
        let asked = Asked { lines: Some(lines), marks: Marks::None, ..Asked::default() };
        let (inputs, names) = inputs_of(sources, None);
        let mut texts = Vec::new();
        let Ok(mut reader) = Reader::begin(inputs, asked, &|| false) else { return texts };
        while let Ok(Some((_, item))) = reader.next(&|| false) {
            if let Said::Line { bytes, cut, .. } = item.said {
                texts.push(text(&bytes, cut).into_owned());
            }
        }
        complaints(&mut reader, &names);
        texts
    });
    match read {
        Ok(read) => read.await.unwrap_or_default(),
        Err(error) => {
            tracing::warn!("no thread to read logs with: {error}");
            Vec::new() // a card without them is better than none
        }
    }
}

/// Says which logs cannot be read.
fn complaints(reader: &mut Reader, names: &[Name]) -> Vec<String> {
    let told = reader.troubles().into_iter().filter_map(|(number, error)| {
        let Name { unit, stream } = names.get(number)?;
        let why = format!("cannot read {} of {unit}: {error}", stream.as_str());
        tracing::warn!("{why}");
        Some(why)
    });
    told.collect()
}

/// Answers with lines, or with a stream that begins with them.
pub fn answer_logs(sources: Vec<LogSource>, query: LogQuery, reply: oneshot::Sender<Answer>) {
    let asked = match asked_of(&query) {
        Ok(asked) => asked,
        Err(answer) => return drop(reply.send(*answer)), // whoever asked has left
    };
    let places = match query.after.as_deref().map(parse_places).transpose() {
        Ok(places) => places,
        Err(why) => {
            let help = "take it from `next` of an answer, or from the id of an event".to_string();
            let answer = refuse(400, "request.malformed", format!("cannot read `after`: {why}"), Some(help));
            return drop(reply.send(answer)); // whoever asked has left
        }
    };
    let wanted = query.stream.as_deref();
    let sources: Vec<LogSource> = sources
        .into_iter()
        .filter(|source| wanted.is_none_or(|wanted| wanted == source.stream.as_str()))
        .collect();
    let of = match query.form {
        LogForm::Json => PiecesOf::Json,
        LogForm::Events | LogForm::ByteEvents => PiecesOf::Events,
        LogForm::Bytes => PiecesOf::Bytes,
    };
    let (pieces, body) = mpsc::channel(PIECES_MAX);
    // Subscribed before anything is read: what comes in between is seen, not missed.
    let news = query.follow.then(|| News::of(&sources));
    tokio::spawn(async move {
        match begin_answer(sources, places, asked, query.form, pieces).await {
            Ok(writer) => {
                if reply.send(Answer::Pieces(of, body)).is_ok() {
                    write_answer(writer, news).await;
                }
            }
            Err(why) => {
                tracing::warn!("{why}");
                let help = Some("supervision goes on; try again".to_string());
                let _ = reply.send(refuse(503, "logs.unreadable", why, help)); // whoever asked has left
            }
        }
    });
}

/// Finds where to begin. No lines would say that nothing was written: what cannot be read for want
/// of fds or memory, or for a disk that errs, is told instead.
async fn begin_answer(
    sources: Vec<LogSource>,
    places: Option<Places>,
    asked: Asked,
    form: LogForm,
    pieces: mpsc::Sender<Bytes>,
) -> Result<Writer, String> {
    let begun = aside("logs", move || {
        let (inputs, names) = inputs_of(sources, places.as_ref());
        let left = {
            let pieces = pieces.clone();
            move || pieces.is_closed()
        };
        let mut reader =
            Reader::begin(inputs, asked, &left).map_err(|_: Left| "the reader has left".to_string())?;
        let mut unreadable = Vec::new();
        for (number, error) in reader.troubles() {
            let what = names
                .get(number)
                .map_or("a log".to_string(), |name| format!("{} of {}", name.stream.as_str(), name.unit));
            let why = format!("cannot read {what}: {error}");
            if passes(&error) {
                return Err(why);
            }
            tracing::warn!("{why}");
            unreadable.push(why);
        }
        let mut writer = Writer {
            reader,
            names,
            form,
            pieces,
            piece: Vec::new(),
            items: 0,
            ids: Vec::new(),
            unreadable,
            bytes: None,
        };
        writer.begin();
        Ok(writer)
    });
    let begun = begun.map_err(|error| format!("no thread to read logs with: {error}"))?;
    begun.await.map_err(|_| "the reader of the log has ended".to_string())?
}

fn passes(error: &io::Error) -> bool {
    use nix::libc::{EAGAIN, EIO, EMFILE, ENFILE, ENOMEM};
    error.raw_os_error().is_some_and(|errno| [EAGAIN, EIO, EMFILE, ENFILE, ENOMEM].contains(&errno))
}

fn asked_of(query: &LogQuery) -> Result<Asked, Box<Answer>> {
    let bytes = matches!(query.form, LogForm::Bytes | LogForm::ByteEvents);
    let pattern = match query.grep.as_deref().map(Pattern::new).transpose() {
        Ok(pattern) => pattern,
        Err(why) => {
            let help = format!(
                "it is a regular expression of at most {PATTERN_BYTES_MAX} bytes; to search for a text with signs, put a \\ before each"
            );
            let message = format!("cannot search for this pattern: {why}");
            return Err(Box::new(refuse(400, "log.bad-pattern", message, Some(help))));
        }
    };
    Ok(Asked {
        lines: query.lines.map(u64::from),
        since_us: query.since_us,
        until_us: query.until_us,
        marks: match (query.form, query.marks) {
            (LogForm::Bytes, _) => Marks::None,
            (LogForm::Json | LogForm::Events | LogForm::ByteEvents, true) => Marks::All,
            (LogForm::Json | LogForm::Events | LogForm::ByteEvents, false) => Marks::Losses,
        },
        until: match (query.follow, bytes && pattern.is_none()) {
            (false, _) => Until::Now,
            (true, false) => Until::Follow,
            (true, true) => Until::FollowBytes,
        },
        pattern,
    })
}

/// Which streams have something new.
struct News {
    fresh: Arc<Fresh>,
    /// Ends with this.
    _watching: JoinSet<()>,
}

#[derive(Default)]
struct Fresh {
    streams: Mutex<BTreeSet<usize>>,
    wake: Notify,
}

impl News {
    fn of(sources: &[LogSource]) -> News {
        let fresh = Arc::new(Fresh::default());
        let mut watching = JoinSet::new();
        for (number, source) in sources.iter().enumerate() {
            if let Some(spool) = &source.spool {
                watching.spawn(watch_stream(spool.watch(), number, Arc::clone(&fresh)));
            }
        }
        News { fresh, _watching: watching }
    }
}

async fn watch_stream(mut stored: watch::Receiver<u64>, number: usize, fresh: Arc<Fresh>) {
    while stored.changed().await.is_ok() {
        fresh.streams.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
        fresh.wake.notify_one();
    }
}

impl Fresh {
    fn take(&self) -> BTreeSet<usize> {
        std::mem::take(&mut *self.streams.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads, and hands over pieces, until everything is told or the reader has left.
async fn write_answer(writer: Writer, news: Option<News>) {
    let fresh = news.as_ref().map(|news| Arc::clone(&news.fresh));
    let follows = fresh.clone();
    let leaving = writer.pieces.clone();
    let slot = Arc::new(Mutex::new(Some(writer)));
    loop {
        let (fresh, taken) = (fresh.clone(), Arc::clone(&slot));
        let written = aside("logs", move || {
            let mut writer = taken.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(Left)?;
            writer.write(fresh.as_deref())?;
            Ok::<Writer, Left>(writer)
        });
        let Ok(written) = written else {
            // No thread to be had now. An answer that was begun is not broken off for that.
            tokio::time::sleep(THREAD_RETRY).await;
            continue;
        };
        let Ok(Ok(mut writer)) = written.await else { return };
        let Some(follows) = &follows else {
            let _ = writer.end(); // it has left
            return;
        };
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        tokio::select! {
            () = follows.wake.notified() => {}
            () = leaving.closed() => return,
        }
    }
}

/// Where each stream is to be taken up, by `unit/stream`.
type Places = std::collections::BTreeMap<String, Cursor>;

fn parse_places(text: &str) -> Result<Places, String> {
    let mut places = Places::new();
    for place in text.split(',').filter(|place| !place.is_empty()) {
        let parsed =
            place.split_once('=').and_then(|(name, at)| Some((name.trim(), at.trim().parse().ok()?)));
        let Some((name, at)) = parsed else {
            let shown: String = place.chars().take(60).collect();
            return Err(format!("`{shown}` is no place in a log"));
        };
        places.insert(name.to_string(), at);
    }
    Ok(places)
}

/// Whose lines they are.
struct Name {
    unit: UnitName,
    stream: Stream,
}

impl Name {
    fn place(&self, at: Cursor) -> String {
        format!("{}/{}={at}", self.unit, self.stream.as_str())
    }
}

fn inputs_of(sources: Vec<LogSource>, places: Option<&Places>) -> (Vec<Input>, Vec<Name>) {
    let both = sources.into_iter().map(|source| {
        let LogSource { unit, stream, directory, spool } = source;
        let key = format!("{unit}/{}", stream.as_str());
        let after = places.and_then(|places| places.get(&key)).copied();
        (Input { directory, stream, spool, after }, Name { unit, stream })
    });
    both.unzip()
}

/// Items → pieces of one answer.
struct Writer {
    reader: Reader,
    names: Vec<Name>,
    form: LogForm,
    pieces: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
    /// How many were told.
    items: u64,
    /// The place in each stream, when ids name all of them.
    ids: Vec<String>,
    /// What is told at the end: what could not be read.
    unreadable: Vec<String>,
    /// Lines that are sent as one event: nobody who asked for bytes wants them told apart.
    bytes: Option<Gathered>,
}

/// Bytes of lines that follow each other.
struct Gathered {
    number: usize,
    line: LogLine,
    bytes: Vec<u8>,
    next: Cursor,
}

impl Writer {
    fn begin(&mut self) {
        let places: Vec<String> =
            self.names.iter().zip(self.reader.places()).map(|(name, at)| name.place(at)).collect();
        match self.form {
            LogForm::Json => self.piece.extend_from_slice(b"{\"lines\":["),
            LogForm::Events | LogForm::ByteEvents => {
                // An event without data only sets the id: whoever breaks off now goes on from here.
                for some in places.chunks(PLACES_PER_EVENT) {
                    self.piece.extend_from_slice(format!("id: {}\n\n", some.join(",")).as_bytes());
                }
            }
            LogForm::Bytes => {}
        }
        if places.len() <= PLACES_IN_ID_MAX {
            self.ids = places;
        }
    }

    /// Everything that there is now.
    fn write(&mut self, fresh: Option<&Fresh>) -> Result<(), Left> {
        let pieces = self.pieces.clone();
        let left = move || pieces.is_closed();
        loop {
            for number in fresh.map(Fresh::take).unwrap_or_default() {
                self.reader.wake(number);
            }
            while let Some((number, item)) = self.reader.next(&left)? {
                self.put(number, &item);
                if self.piece.len() >= PIECE_BYTES {
                    break;
                }
            }
            self.put_gathered();
            if self.piece.is_empty() {
                self.unreadable.extend(complaints(&mut self.reader, &self.names));
                return Ok(());
            }
            let piece = std::mem::take(&mut self.piece);
            self.pieces.blocking_send(Bytes::from(piece)).map_err(|_| Left)?;
        }
    }

    fn put(&mut self, number: usize, item: &Item) {
        self.items += 1;
        match self.form {
            LogForm::Json => {
                if self.items > 1 {
                    self.piece.push(b',');
                }
                // JSON of strings and numbers always serializes, and has no raw newline.
                let _ = serde_json::to_writer(&mut self.piece, &to_line(&self.names[number], item));
            }
            LogForm::Events => self.put_event(number, item.next, &to_line(&self.names[number], item)),
            LogForm::ByteEvents => match &item.said {
                Said::Line { bytes, ended, .. } => self.gather(number, item, bytes, *ended),
                Said::Started
                | Said::Exited(_)
                | Said::Lost { .. }
                | Said::Gone { .. }
                | Said::Missed { .. } => {
                    self.put_gathered();
                    self.put_event(number, item.next, &to_line(&self.names[number], item));
                }
            },
            LogForm::Bytes => {
                if let Said::Line { bytes, ended, .. } = &item.said {
                    self.piece.extend_from_slice(bytes);
                    self.piece.extend_from_slice(newline(*ended));
                }
            }
        }
    }

    fn put_event(&mut self, number: usize, next: Cursor, line: &LogLine) {
        let place = self.names[number].place(next);
        let id = match self.ids.get_mut(number) {
            Some(own) => {
                *own = place;
                self.ids.join(",")
            }
            None => place,
        };
        self.piece.extend_from_slice(format!("id: {id}\ndata: ").as_bytes());
        let _ = serde_json::to_writer(&mut self.piece, line); // as above
        self.piece.extend_from_slice(b"\n\n");
    }

    fn gather(&mut self, number: usize, item: &Item, bytes: &[u8], ended: Ended) {
        if self.bytes.as_ref().is_some_and(|gathered| gathered.number != number) {
            self.put_gathered();
        }
        let name = &self.names[number];
        let gathered = self.bytes.get_or_insert_with(|| {
            let line = LogLine { line: String::new(), base64: None, piece: None, ..to_line(name, item) };
            Gathered { number, line, bytes: Vec::new(), next: item.next }
        });
        gathered.bytes.extend_from_slice(bytes);
        gathered.bytes.extend_from_slice(newline(ended));
        gathered.next = item.next;
        if gathered.bytes.len() >= PIECE_BYTES / 2 {
            self.put_gathered();
        }
    }

    fn put_gathered(&mut self) {
        if let Some(Gathered { number, mut line, bytes, next }) = self.bytes.take() {
            line.base64 = Some(base64::encode(&bytes));
            self.put_event(number, next, &line);
        }
    }

    fn end(&mut self) -> Result<(), Left> {
        let unreadable = match self.unreadable.as_slice() {
            [] => String::new(),
            whys => format!("\"unreadable\":{}", serde_json::json!(whys)),
        };
        let tail = match self.form {
            LogForm::Json => {
                let places = self.names.iter().zip(self.reader.places());
                let next: Vec<String> = places.map(|(name, at)| name.place(at)).collect();
                let comma = if unreadable.is_empty() { "" } else { "," };
                format!("],\"next\":\"{}\"{comma}{unreadable}}}", next.join(","))
            }
            LogForm::Events | LogForm::ByteEvents => format!("event: end\ndata: {{{unreadable}}}\n\n"),
            LogForm::Bytes => return Ok(()),
        };
        self.pieces.try_send(Bytes::from(tail)).or_else(|unsent| match unsent {
            mpsc::error::TrySendError::Full(tail) => {
                let pieces = self.pieces.clone();
                tokio::spawn(async move { pieces.send(tail).await });
                Ok(())
            }
            mpsc::error::TrySendError::Closed(_) => Err(Left),
        })
    }
}

fn newline(ended: Ended) -> &'static [u8] {
    match ended {
        Ended::Newline => b"\n",
        Ended::Open => b"",
    }
}

fn to_line(name: &Name, item: &Item) -> LogLine {
    let mut line = LogLine {
        unit: name.unit.to_string(),
        stream: name.stream.as_str().to_string(),
        ts: rfc3339(item.ts_us),
        run: Some(item.run.0).filter(|run| *run > 0),
        ..LogLine::default()
    };
    let run = item.run;
    let (kind, said) = match &item.said {
        Said::Line { bytes, cut, .. } => {
            line.line = text(bytes, *cut).into_owned();
            line.base64 = std::str::from_utf8(bytes).is_err().then(|| base64::encode(bytes));
            line.piece = match cut {
                Cut::Whole => None,
                Cut::Beginning => Some("beginning".to_string()),
                Cut::Middle => Some("middle".to_string()),
                Cut::End => Some("end".to_string()),
            };
            line.kind = "line".to_string();
            return line;
        }
        Said::Started => ("started", format!("run {run} started")),
        Said::Exited(exit) => ("exited", format!("run {run} {exit}")),
        Said::Lost { bytes } => {
            line.bytes = Some(*bytes);
            ("lost", format!("{bytes} bytes were dropped here: they could not be stored"))
        }
        Said::Gone { bytes } => {
            line.bytes = Some(*bytes);
            ("removed", format!("{bytes} bytes were removed here"))
        }
        Said::Missed { bytes, lines } => {
            (line.bytes, line.lines) = (Some(*bytes), *lines);
            let what = match lines {
                Some(1) => format!("1 line ({bytes} bytes)"),
                Some(lines) => format!("{lines} lines ({bytes} bytes)"),
                None => format!("{bytes} bytes"),
            };
            ("missed", format!("{what} passed over: this reader was too slow; they are in the log"))
        }
    };
    line.kind = kind.to_string();
    line.line = said;
    line
}
