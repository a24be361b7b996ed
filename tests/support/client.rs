//! A user of the backend: writes numbered sessions all the while, and remembers which of them
//! were accepted.
//!
//! Refuses: forgetting. A session that nobody acknowledged is sent again under the same id.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http;
use super::stack::Stack;

/// Between two sessions: about twenty in a second, which leaves the machine to what is tested.
const PACE: Duration = Duration::from_millis(50);

/// Longest until a session is accepted at last.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was accepted: 200 = it is in PostgreSQL, 202 = it is in the backend's journal.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub accepted: BTreeSet<String>,
    pub journaled: usize,
    /// Attempts that were answered otherwise, or not at all.
    pub refused: usize,
}

pub struct Client {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Ledger>>,
}

impl Client {
    pub fn start(port: u16) -> Client {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || write_sessions(port, &told));
        Client { stop, thread: Some(thread) }
    }

    /// Ends after the session that is on its way.
    pub fn finish(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("not finished before").join().expect("every session was accepted at last")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write_sessions(port: u16, stop: &AtomicBool) -> Ledger {
    let mut ledger = Ledger::default();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("00000000-0000-4000-8000-{number:012}");
        let body = format!(r#"{{"id":"{id}","user":"client","message":"session {number}"}}"#);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match http::ask_tcp(port, "POST", "/api/chat", &body) {
                Ok((200, _)) => break,
                Ok((202, _)) => {
                    ledger.journaled += 1;
                    break;
                }
                Ok(_) | Err(_) => ledger.refused += 1,
            }
            if stop.load(Ordering::Relaxed) {
                return ledger; // nobody was told that this one is kept
            }
            assert!(Instant::now() < deadline, "session {number} is not accepted");
            std::thread::sleep(PACE);
        }
        ledger.accepted.insert(id);
        std::thread::sleep(PACE);
    }
    ledger
}

/// What is wrong with what PostgreSQL has at the end: sessions that were accepted and are
/// lost, rows that are there twice.
pub fn compare(stack: &Stack, ledger: &Ledger) -> Vec<String> {
    let (stored, rows) = stack.stored();
    let lost: Vec<&String> = ledger.accepted.difference(&stored).collect();
    let mut wrong = Vec::new();
    if !lost.is_empty() {
        wrong.push(format!("{} accepted sessions are lost: {lost:?}", lost.len()));
    }
    if rows != stored.len() {
        wrong.push(format!("{} rows for {} sessions", rows, stored.len()));
    }
    // The last one may have been written without the answer having been read.
    let unknown = stored.difference(&ledger.accepted).count();
    if unknown > 1 {
        wrong.push(format!("{unknown} sessions that nobody was told of"));
    }
    wrong
}
