//! Events and alerts as answers: what is there, and then what comes.
//!
//! Refuses: holding anybody up. The loop and the store never wait for a reader.

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::alert::dispatch::Route;
use crate::api::call::{Answer, Item};
use crate::api::types::{AlertList, EventList, MuteLine};
use crate::daemon::handlers::{json, refuse};
use crate::daemon::views;
use crate::engine::outbox::Quiet;
use crate::store::StoreError;
use crate::store::row::{EventQuery, EventRow};
use crate::store::writer::Reader;

/// Items on their way to one reader. A full channel holds up only the task that fills it.
const STREAM_ITEMS_MAX: usize = 256;

/// Events asked for at once while a follower catches up.
const EVENTS_PER_PAGE: usize = 1_000;

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

/// The reader has left.
struct Left;

async fn send(items: &mpsc::Sender<Item>, row: &EventRow) -> Result<(), Left> {
    let Ok(text) = serde_json::to_vec(&views::event(row)) else { return Ok(()) };
    items.send(Item { id: row.id, json: Bytes::from(text) }).await.map_err(|_| Left)
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
pub fn answer_alerts(
    reader: &Reader,
    routes: Vec<Route>,
    (mutes, quiet): (Vec<MuteLine>, Quiet),
    limit: u32,
    reply: oneshot::Sender<Answer>,
) {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    reader.alerts(limit, move |rows| {
        let answer = match rows {
            Ok(rows) => {
                let alerts = rows.iter().map(|row| views::alert(row, &routes, &quiet)).collect();
                json(&AlertList { alerts, mutes })
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
    items: mpsc::Sender<Item>,
    after_id: u64,
) -> Result<(), Left> {
    let mut last_id = after_id;
    for row in &rows {
        send(&items, row).await?;
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
                send(&items, &row).await?;
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

async fn catch_up(history: &History, items: &mpsc::Sender<Item>, mut last_id: u64) -> Result<u64, Left> {
    loop {
        let after_id = Some(last_id);
        let query = EventQuery { after_id, limit: EVENTS_PER_PAGE, ..EventQuery::default() };
        let rows = history.ask(query).await.unwrap_or_default();
        for row in &rows {
            send(items, row).await?;
            last_id = row.id;
        }
        if rows.len() < EVENTS_PER_PAGE {
            return Ok(last_id);
        }
    }
}
