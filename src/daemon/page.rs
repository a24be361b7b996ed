//! The dashboard as an answer: what the loop knows is copied there, the rest is asked of the store, and a
//! thread writes the page.
//!
//! Refuses: waiting for the store. What it does not tell in time is missing on the page, which says so. And
//! what services wrote, to whoever shows no token over TCP.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::alert::dispatch::Route;
use crate::api::call::{Answer, Item, Peer, Proof, WebKind};
use crate::api::types::{AlertList, News};
use crate::base::name::UnitName;
use crate::daemon::handlers::{json, refuse};
use crate::daemon::shell::Shell;
use crate::daemon::streams::History;
use crate::daemon::{drills, kpi, lines, views};
use crate::dashboard::{self, PageData};
use crate::engine::outbox::Quiet;
use crate::store::StoreError;
use crate::store::row::{EventQuery, EventRow};
use crate::sys::clock;
use crate::sys::threads::aside;

/// How long the store and the logs may take, all together.
const ASK_MAX: Duration = Duration::from_secs(2);

/// The newest so many records are looked at, for the timeline: eight milliseconds of the store's thread.
const EVENTS: usize = 4_000;

/// One more than is shown, so that the page knows whether there are more.
const ALERTS: usize = dashboard::alerts::ALERTS_MAX + 1;

const DRILLS: usize = dashboard::drills::DRILLS_MAX;

/// Of so many units that are not well, so many last lines.
const TAILS: usize = 3;
const TAIL_LINES: u64 = 8;

/// Of the figures, µs.
const WINDOW_US: i64 = 24 * 3_600 * 1_000_000;

/// So many pages at once; others wait. Strangers wait for each other, and for nobody else.
static PAGES: Semaphore = Semaphore::const_new(2);
static PAGES_FOR_STRANGERS: Semaphore = Semaphore::const_new(1);

/// Of the 128 connections over TCP so many may be streams of news to strangers.
static NEWS_FOR_STRANGERS: Semaphore = Semaphore::const_new(48);

/// On their way to one reader. Who is behind needs only the newest.
const NEWS_MAX: usize = 4;

/// Over TCP, without the token.
fn is_stranger(peer: &Peer) -> bool {
    match peer {
        Peer::Local(_) => false,
        Peer::Remote { proof, .. } => matches!(proof, Proof::Nothing | Proof::Wrong),
    }
}

impl Shell {
    /// The page, or what is the same for everybody.
    pub(crate) fn answer_page(&self, peer: &Peer, kind: WebKind, reply: oneshot::Sender<Answer>) {
        let text = match kind {
            WebKind::Html => return self.write_page(is_stranger(peer), reply),
            WebKind::Script => dashboard::SCRIPT,
            WebKind::Style => dashboard::STYLE,
        };
        let _ = reply.send(Answer::Web(kind, Bytes::from_static(text.as_bytes()))); // whoever asked has left
    }

    /// The id of the newest event; followed, again with each one that comes.
    pub(crate) fn answer_news(&self, peer: &Peer, follow: bool, reply: oneshot::Sender<Answer>) {
        let history = self.hands.history();
        let newest = self.hands.observed.last_event;
        if !follow {
            return drop(reply.send(json(&News { last_event: newest }))); // whoever asked has left
        }
        let seat = match is_stranger(peer).then(|| NEWS_FOR_STRANGERS.try_acquire()) {
            Some(Err(_)) => {
                let help = Some("show the token, or ask without `follow`".to_string());
                let message = "too many follow the news without a token".to_string();
                return drop(reply.send(refuse(503, "page.busy", message, help))); // whoever asked has left
            }
            Some(Ok(seat)) => Some(seat),
            None => None,
        };
        let (items, stream) = mpsc::channel(NEWS_MAX);
        let fresh = history.fresh.subscribe();
        if reply.send(Answer::Stream(stream)).is_ok() {
            tokio::spawn(async move {
                follow_news(fresh, items, newest).await;
                drop(seat);
            });
        }
    }

    fn write_page(&self, is_stranger: bool, reply: oneshot::Sender<Answer>) {
        let mut data = PageData {
            now: clock::rfc3339(clock::wall().as_microsecond()),
            list: self.unit_list(),
            health: self.health(),
            summary: None,
            events: None,
            alerts: None,
            drills: None,
            hides_logs: is_stranger,
            tails: BTreeMap::new(),
        };
        let unwell =
            data.list.units.iter().filter(|unit| matches!(unit.state.as_str(), "failed" | "backoff"));
        let tails = if is_stranger { 0 } else { TAILS };
        let unwell: Vec<UnitName> =
            unwell.filter_map(|unit| UnitName::parse(&unit.name).ok()).take(tails).collect();
        let sources: Vec<_> = unwell
            .iter()
            .map(|unit| (unit.to_string(), self.hands.log_sources(std::slice::from_ref(unit))))
            .collect();
        let (history, routes) = (self.hands.history(), self.hands.tools.outbox.routes());
        let quiet = self.quiet.clone();
        tokio::spawn(async move {
            let turn = if is_stranger { &PAGES_FOR_STRANGERS } else { &PAGES }.acquire().await;
            let until = Instant::now() + ASK_MAX;
            ask_store(&mut data, &history, routes, quiet, until).await;
            for (unit, sources) in sources {
                let lines = timeout_at(until, lines::last_lines(sources, TAIL_LINES)).await;
                data.tails.insert(unit, lines.unwrap_or_default());
            }
            let written = aside("page", move || dashboard::page(&data));
            let page = match written {
                Ok(written) => written.await.ok(),
                Err(_) => None,
            };
            drop(turn);
            let none = || {
                let help =
                    Some("load it again; `upright status` tells what the host is short of".to_string());
                refuse(503, "page.busy", "cannot write the page: no thread is to be had".into(), help)
            };
            let answer = page.map(|page| Answer::Web(WebKind::Html, Bytes::from(page)));
            let _ = reply.send(answer.unwrap_or_else(none)); // whoever asked has left
        });
    }
}

/// Until the reader has left.
async fn follow_news(mut fresh: broadcast::Receiver<EventRow>, items: mpsc::Sender<Item>, mut newest: u64) {
    loop {
        let Ok(text) = serde_json::to_vec(&News { last_event: newest }) else { return };
        if items.send(Item { id: newest, json: Bytes::from(text) }).await.is_err() {
            return;
        }
        let next = tokio::select! {
            next = fresh.recv() => next,
            () = items.closed() => return,
        };
        newest = match next {
            Ok(row) => newest.max(row.id),
            Err(broadcast::error::RecvError::Lagged(_)) => newest, // what follows is newer
            Err(broadcast::error::RecvError::Closed) => return,
        };
    }
}

/// Everything is asked at once: the store answers one after the other.
async fn ask_store(data: &mut PageData, history: &History, routes: Vec<Route>, quiet: Quiet, until: Instant) {
    let now_us = clock::micros_of(&data.now).unwrap_or(0);
    let since_us = now_us.saturating_sub(WINDOW_US);
    let (told, window) = oneshot::channel();
    history.reader.summary(since_us, now_us, move |window| drop(told.send(window))); // nobody waits any more
    let (told, alerts) = oneshot::channel();
    history.reader.alerts(ALERTS, move |rows| drop(told.send(rows))); // the same
    let (told, run) = oneshot::channel();
    history.reader.drills(DRILLS, move |rows| drop(told.send(rows))); // the same
    let events = history.ask(EventQuery { limit: EVENTS, ..EventQuery::default() });
    if let Some(rows) = timeout_at(until, events).await.ok().and_then(Result::ok) {
        data.events = Some(rows.iter().map(views::event).collect());
    }
    data.summary = had(timeout_at(until, window).await).map(|window| kpi::summary(since_us, window));
    data.drills = had(timeout_at(until, run).await).map(|rows| rows.iter().map(drills::line).collect());
    data.alerts = had(timeout_at(until, alerts).await).map(|rows| AlertList {
        alerts: rows.iter().map(|row| views::alert(row, &routes, &quiet)).collect(),
        mutes: data.list.daemon.mutes.clone(),
    });
}

/// In time, by a store that lives and could tell.
fn had<T, L, C>(answer: Result<Result<Result<T, StoreError>, C>, L>) -> Option<T> {
    answer.ok()?.ok()?.ok()
}
