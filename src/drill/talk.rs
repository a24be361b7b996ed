//! The drill's line to the daemon: steps of the drill, and every event as it comes, also over the death of an
//! engine.
//!
//! Refuses: waiting without a deadline.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::api::client::{Client, ClientError, LogNews};
use crate::api::drills::{DrillReply, DrillRequest};
use crate::api::types::{EventLine, EventList};
use crate::base::time::Monotonic;
use crate::sys::clock;

/// How long a step of a drill may take: it waits for a commit.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two tries to reach a daemon whose engine is being replaced, and how long that may last.
const AGAIN: Duration = Duration::from_millis(20);
const AGAIN_MAX: Duration = Duration::from_secs(20);

pub(super) struct Talk {
    client: Client,
    events: Receiver<EventLine>,
}

impl Talk {
    /// Follows what happens from now on.
    pub fn open(socket: &Path) -> Result<Talk, ClientError> {
        let client = Client::new(socket).map_err(|error| ClientError::Broken(error.to_string()))?;
        let newest: EventList = client.get("/v1/events?limit=1")?;
        let after = newest.events.last().map_or(0, |event| event.id);
        let (told, events) = mpsc::channel();
        let path = socket.to_path_buf();
        let followed =
            std::thread::Builder::new().name("events".into()).spawn(move || follow(&path, after, &told));
        followed.map_err(|error| ClientError::Broken(format!("no thread can be made: {error}")))?;
        Ok(Talk { client, events })
    }

    /// A question. An engine that is being replaced is asked again.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        again(|| self.client.get(path))
    }

    /// Each line of units' logs that fits `query`; of which streams not all could be read, and why.
    pub fn log(&self, query: &str, mut each: impl FnMut(&str)) -> Result<Vec<String>, ClientError> {
        let path = format!("/v1/logs?{query}");
        let told = again(|| {
            self.client.log(&path, |news| match news {
                LogNews::Line(line, _) => {
                    each(&line.line);
                    ControlFlow::Continue(())
                }
                LogNews::End(unreadable) => ControlFlow::Break(unreadable),
                LogNews::Place(_) | LogNews::Pause => ControlFlow::Continue(()),
            })
        })?;
        told.ok_or_else(|| ClientError::Broken("the log ended in the middle".to_string()))
    }

    /// One step. It is not said twice: who does not know whether it was done says so.
    pub fn step(&self, request: &DrillRequest) -> Result<DrillReply, ClientError> {
        self.client.post("/v1/drills", request, Some(STEP_TIMEOUT))
    }

    /// The next event, or none until `deadline`.
    pub fn event_until(&self, deadline: Monotonic) -> Option<EventLine> {
        let wait = deadline.since(clock::monotonic());
        self.events.recv_timeout(wait).ok() // none came in time
    }
}

/// Asks until it is answered, or refused by somebody who is well.
fn again<T>(mut ask: impl FnMut() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let deadline = clock::monotonic() + AGAIN_MAX;
    loop {
        match ask() {
            Err(ClientError::Broken(_) | ClientError::Unreachable { .. } | ClientError::Timeout(_))
                if clock::monotonic() < deadline =>
            {
                pause();
            }
            answer => return answer,
        }
    }
}

fn follow(socket: &Path, mut after: u64, told: &Sender<EventLine>) {
    loop {
        let Ok(client) = Client::new(socket) else { return };
        let path = format!("/v1/events?follow=true&after_id={after}");
        let left = client.stream(&path, |event: EventLine| {
            after = event.id;
            if told.send(event).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if let Ok(Some(())) = left {
            return; // nobody listens any more
        }
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "nobody tells when a socket answers again")]
fn pause() {
    std::thread::sleep(AGAIN);
}
