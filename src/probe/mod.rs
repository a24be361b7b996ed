//! Runs one check from outside the process and reports what it saw; reads sd_notify datagrams.
//!
//! Refuses: healthy or not (the engine decides), executing commands (the keeper spawns),
//! logging in with secrets, following redirects, and servers without a bound: whatever the
//! other side does, one probe costs at most its timeout and 64 KiB.

pub mod notify;
mod bounded;
mod connect;
mod http;
mod postgres;
mod redis;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;

use crate::base::check::{Endpoint, HostPort, NetCheck, ProbeOutcome};
use crate::base::duration::Pretty;
use crate::probe::bounded::Bounded;

/// Most bytes one probe reads, headers included. An honest answer needs a few hundred.
const READ_BYTES_MAX: u64 = 64 * 1024;

/// Longest outcome text, in characters (`ProbeOutcome::Failed`).
const TEXT_CHARS_MAX: usize = 200;

/// Why an attempt came to nothing.
enum Trouble {
    /// The server, or the way to it.
    Theirs(String),
    /// This process was short of something: nothing is known about the server.
    Ours(String),
}

impl From<String> for Trouble {
    fn from(text: String) -> Trouble {
        Trouble::Theirs(text)
    }
}

/// Runs `check` once. The whole attempt, looking the name up included, ends within `timeout`;
/// at most 64 KiB are read. The connection is closed when this returns or is dropped.
///
/// Must run in a tokio runtime with I/O and time enabled. Never fails: what went wrong is the outcome.
pub async fn probe(check: &NetCheck, timeout: Duration) -> ProbeOutcome {
    let connected = AtomicBool::new(false);
    match tokio::time::timeout(timeout, attempt(check, &connected)).await {
        Ok(Ok(())) => ProbeOutcome::Ok,
        Ok(Err(Trouble::Theirs(text))) => ProbeOutcome::Failed(one_line(&text)),
        Ok(Err(Trouble::Ours(text))) => ProbeOutcome::Short(one_line(&text)),
        Err(_) => {
            let awaited = if connected.load(Ordering::Relaxed) { "answer" } else { "connection" };
            ProbeOutcome::Failed(format!("no {awaited} within {}", Pretty(timeout)))
        }
    }
}

/// Connects, looking the name up where it is one; for other rooms that speak to servers.
///
/// # Errors
/// What went wrong, in words.
pub async fn connect(at: &HostPort) -> Result<TcpStream, String> {
    connect::tcp(at).await.map_err(|trouble| match trouble {
        Trouble::Theirs(text) | Trouble::Ours(text) => one_line(&text),
    })
}

/// The addresses of a server, for what connects by itself.
///
/// # Errors
/// What went wrong, in words.
pub async fn addresses(at: &HostPort) -> Result<Vec<SocketAddr>, String> {
    connect::addresses(at).await.map_err(|trouble| match trouble {
        Trouble::Theirs(text) | Trouble::Ours(text) => one_line(&text),
    })
}

async fn attempt(check: &NetCheck, connected: &AtomicBool) -> Result<(), Trouble> {
    match check {
        NetCheck::Tcp(at) => connect::tcp(at).await.map(drop),
        NetCheck::Unix(path) => connect::unix(path).await.map(drop),
        NetCheck::Http(target) => match &target.at {
            Endpoint::Tcp(at) => Ok(http::ask(told(connect::tcp(at).await?, connected), target).await?),
            Endpoint::Unix(path) => Ok(http::ask(told(connect::unix(path).await?, connected), target).await?),
        },
        NetCheck::Postgres(Endpoint::Tcp(at)) => {
            Ok(postgres::ask(told(connect::tcp(at).await?, connected)).await?)
        }
        NetCheck::Postgres(Endpoint::Unix(path)) => {
            Ok(postgres::ask(told(connect::unix(path).await?, connected)).await?)
        }
        NetCheck::Redis(Endpoint::Tcp(at)) => Ok(redis::ask(told(connect::tcp(at).await?, connected)).await?),
        NetCheck::Redis(Endpoint::Unix(path)) => {
            Ok(redis::ask(told(connect::unix(path).await?, connected)).await?)
        }
    }
}

/// The connection, bounded, and noted: from here on it is an answer that is waited for.
fn told<S: tokio::io::AsyncRead>(stream: S, connected: &AtomicBool) -> Bounded<S> {
    connected.store(true, Ordering::Relaxed);
    Bounded::new(stream)
}

/// An I/O error as the outcome tells it: `connection refused`.
fn cause(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => lower_first(nix::errno::Errno::from_raw(errno).desc()),
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => "the connection was closed".to_string(),
        None => lower_first(&error.to_string()),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// A server's words may hold anything: one line, no control characters, bounded.
fn one_line(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(TEXT_CHARS_MAX).collect::<String>().trim().to_string()
}
