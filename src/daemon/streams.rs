//! Logs and events as answers: what is there, and then what comes.
//!
//! Refuses: holding anybody up. A slow reader misses its own lines; the loop, the store and
//! the capture never wait for one.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::alert::dispatch::Route;
use crate::api::call::Answer;
use crate::api::types::{AlertList, EventList, LogLine, LogLines};
use crate::base::limits;
use crate::base::name::UnitName;
use crate::daemon::handlers::{json, refuse};
use crate::daemon::views;
use crate::logs::Stream;
use crate::logs::read::{Follow, Followed, Lag, LogLineRaw, Tail, Unfinished, tail};
use crate::logs::spool::Spool;
use crate::store::StoreError;
use crate::store::row::{EventQuery, EventRow};
use crate::store::writer::Reader;
use crate::sys::threads::aside;

/// Items on their way to one reader. A full channel holds up only the task that fills it.
const STREAM_ITEMS_MAX: usize = 256;

/// Events asked for at once while a follower catches up.
const EVENTS_PER_PAGE: usize = 1_000;

/// One stream of one unit, and its open spool when somebody may write to it.
pub struct LogSource {
    pub unit: UnitName,
    pub stream: Stream,
    pub directory: PathBuf,
    pub spool: Option<Arc<Spool>>,
}

/// Past events from the store, fresh ones from the loop.
#[derive(Clone)]
pub struct History {
    pub reader: Reader,
    pub fresh: broadcast::Sender<EventRow>,
}

/// A call for events, as it came.
pub struct EventsAsked {
    pub after_id: Option<u64>,
    pub since: Option<String>,
    pub limit: u32,
    pub follow: bool,
}

impl History {
    /// # Errors
    /// The store cannot be asked now.
    pub async fn ask(&self, query: EventQuery) -> Result<Vec<EventRow>, StoreError> {
        let (told, answer) = oneshot::channel();
        self.reader.events(query, move |rows| drop(told.send(rows)));
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

/// The last `lines` lines of all sources together; read on a thread that may wait for a disk.
///
/// # Errors
/// A sentence: a log cannot be read now. No lines would say that nothing was written.
pub async fn last_lines(sources: Vec<LogSource>, lines: usize) -> Result<Vec<LogLine>, String> {
    let read = aside("logs", move || {
        let mut all = Vec::new();
        for source in &sources {
            let tail = tail_of(source, lines, Unfinished::Show)?;
            all.extend(tail.lines.iter().map(|line| to_line(source, line)));
        }
        Ok(all)
    });
    let read = read.map_err(|error| format!("no thread to read logs with: {error}"))?;
    read.await.map_err(|_| "the reader of the log has ended".to_string())?
}

fn tail_of(source: &LogSource, lines: usize, last: Unfinished) -> Result<Tail, String> {
    tail(&source.directory, source.stream, lines, last).map_err(|error| {
        format!("cannot read the log of {} in {}: {error}", source.unit, source.directory.display())
    })
}

fn to_line(source: &LogSource, line: &LogLineRaw) -> LogLine {
    LogLine { unit: source.unit.to_string(), stream: line.stream.as_str().to_string(), line: line.text() }
}

/// Answers with lines, or with a stream that begins with them.
pub fn answer_logs(sources: Vec<LogSource>, lines: u32, follow: bool, reply: oneshot::Sender<Answer>) {
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    if !follow {
        tokio::spawn(async move {
            let answer = match last_lines(sources, lines).await {
                Ok(lines) => json(&LogLines { lines }),
                Err(why) => {
                    tracing::warn!("{why}");
                    refuse(503, "logs.unreadable", why, Some("supervision goes on; try again".to_string()))
                }
            };
            let _ = reply.send(answer); // whoever asked has left
        });
        return;
    }
    let (items, stream) = mpsc::channel(STREAM_ITEMS_MAX);
    if reply.send(Answer::Stream(stream)).is_err() {
        return; // whoever asked has left
    }
    tokio::spawn(async move {
        let mut followers = JoinSet::new();
        for source in sources {
            followers.spawn(follow_log(source, lines, items.clone()));
        }
        // Ends, and with it every follower, when the reader is gone.
        items.closed().await;
    });
}

/// The lines to begin with, as soon as they can be read.
async fn first_lines(source: LogSource, lines: usize) -> Option<(LogSource, Tail)> {
    let source = Arc::new(source);
    let tail = loop {
        let reading = Arc::clone(&source);
        let read = match aside("logs", move || tail_of(&reading, lines, Unfinished::Leave)) {
            Ok(read) => read.await.ok()?,
            Err(error) => Err(format!("no thread to read logs with: {error}")),
        };
        match read {
            Ok(tail) => break tail,
            Err(why) => tracing::warn!("{why}"),
        }
        tokio::time::sleep(limits::SHORTAGE_RETRY).await;
    };
    Arc::into_inner(source).map(|source| (source, tail))
}

async fn follow_log(source: LogSource, lines: usize, items: mpsc::Sender<Bytes>) {
    let Some((source, tail)) = first_lines(source, lines).await else { return };
    for line in &tail.lines {
        if send(&items, &to_line(&source, line)).await.is_err() {
            return;
        }
    }
    let Some(spool) = source.spool.clone() else { return };
    let mut follow = Follow::new(spool, source.stream, tail.end, Lag::Skip);
    loop {
        let line = match follow.next().await {
            Ok(Followed::Line(line)) => to_line(&source, &line),
            Ok(Followed::Missed { bytes }) => LogLine {
                unit: source.unit.to_string(),
                stream: source.stream.as_str().to_string(),
                line: format!("[{bytes} bytes skipped: this reader was too slow; they are in the file]"),
            },
            Err(error) => {
                tracing::warn!("cannot follow the log of {}: {error}", source.unit);
                return;
            }
        };
        if send(&items, &line).await.is_err() {
            return;
        }
    }
}

/// The reader has left.
struct Left;

async fn send(items: &mpsc::Sender<Bytes>, item: &impl Serialize) -> Result<(), Left> {
    let Ok(text) = serde_json::to_vec(item) else { return Ok(()) };
    items.send(Bytes::from(text)).await.map_err(|_| Left)
}

/// Answers with events, or with a stream that begins with them.
pub fn answer_events(history: &History, asked: EventsAsked, reply: oneshot::Sender<Answer>) {
    let since = match asked.since.as_deref().map(str::parse::<jiff::Timestamp>).transpose() {
        Ok(since) => since,
        Err(error) => {
            let help = Some("write for example 2026-01-31T12:00:00Z".to_string());
            let answer = refuse(400, "request.malformed", format!("`since` is no date: {error}"), help);
            return drop(reply.send(answer)); // whoever asked has left
        }
    };
    let query = EventQuery {
        after_id: asked.after_id,
        since_us: since.map(|since| since.as_microsecond()),
        unit: None,
        limit: usize::try_from(asked.limit).unwrap_or(usize::MAX),
        ..EventQuery::default()
    };
    let history = history.clone();
    // Subscribed before the store is asked: what comes in between is seen, not missed.
    let fresh = history.fresh.subscribe();
    tokio::spawn(async move {
        let rows = match history.ask(query).await {
            Ok(rows) => rows,
            Err(error) => {
                let help = Some("supervision goes on; try again".to_string());
                let answer = refuse(503, "store.unavailable", error.to_string(), help);
                return drop(reply.send(answer)); // whoever asked has left
            }
        };
        if !asked.follow {
            let events = rows.iter().map(views::event).collect();
            return drop(reply.send(json(&EventList { events }))); // whoever asked has left
        }
        let (items, stream) = mpsc::channel(STREAM_ITEMS_MAX);
        if reply.send(Answer::Stream(stream)).is_ok() {
            let _ = follow_events(history, rows, fresh, items, asked.after_id.unwrap_or(0)).await; // it has left
        }
    });
}

/// Answers with the newest alerts, each with how far it is with its channels.
pub fn answer_alerts(reader: &Reader, routes: Vec<Route>, limit: u32, reply: oneshot::Sender<Answer>) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    reader.alerts(limit, move |rows| {
        let answer = match rows {
            Ok(rows) => {
                let alerts = rows.iter().map(|row| views::alert(row, &routes)).collect();
                json(&AlertList { alerts })
            }
            Err(error) => {
                let help = Some("supervision goes on; try again".to_string());
                refuse(503, "store.unavailable", error.to_string(), help)
            }
        };
        let _ = reply.send(answer); // whoever asked has left
    });
}

async fn follow_events(
    history: History,
    rows: Vec<EventRow>,
    mut fresh: broadcast::Receiver<EventRow>,
    items: mpsc::Sender<Bytes>,
    after_id: u64,
) -> Result<(), Left> {
    let mut last_id = after_id;
    for row in &rows {
        send(&items, &views::event(row)).await?;
        last_id = row.id;
    }
    loop {
        let next = tokio::select! {
            next = fresh.recv() => next,
            () = items.closed() => return Err(Left),
        };
        match next {
            Ok(row) if row.id <= last_id => {}
            Ok(row) if row.id == last_id + 1 || last_id == 0 => {
                send(&items, &views::event(&row)).await?;
                last_id = row.id;
            }
            // Behind, or between two pages: the store has all of them.
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {
                last_id = catch_up(&history, &items, last_id).await?;
            }
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

async fn catch_up(history: &History, items: &mpsc::Sender<Bytes>, mut last_id: u64) -> Result<u64, Left> {
    loop {
        let after_id = Some(last_id);
        let query = EventQuery { after_id, limit: EVENTS_PER_PAGE, ..EventQuery::default() };
        let rows = history.ask(query).await.unwrap_or_default();
        for row in &rows {
            send(items, &views::event(row)).await?;
            last_id = row.id;
        }
        if rows.len() < EVENTS_PER_PAGE {
            return Ok(last_id);
        }
    }
}
