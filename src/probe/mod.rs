//! Runs one check from outside the process and reports what it saw; reads sd_notify datagrams.
//!
//! Refuses: healthy or not (the engine decides), executing commands (the keeper spawns),
//! logging in with secrets, following redirects, and servers without a bound: whatever the
//! other side does, one probe costs at most its timeout and 64 KiB.

pub mod notify;
mod connect;
mod http;
mod postgres;
mod redis;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::base::check::{Endpoint, NetCheck, ProbeOutcome};
use crate::base::duration::Pretty;

/// Most bytes one probe reads, headers included. An honest answer needs a few hundred.
const READ_BYTES_MAX: u64 = 64 * 1024;

/// Longest outcome text, in characters (`ProbeOutcome::Failed`).
const TEXT_CHARS_MAX: usize = 200;

/// Runs `check` once. The whole attempt, looking the name up included, ends within `timeout`;
/// at most 64 KiB are read. The connection is closed when this returns or is dropped.
///
/// Must run in a tokio runtime with I/O and time enabled. Never fails: what went wrong is the outcome.
pub async fn probe(check: &NetCheck, timeout: Duration) -> ProbeOutcome {
    match tokio::time::timeout(timeout, attempt(check)).await {
        Ok(Ok(())) => ProbeOutcome::Ok,
        Ok(Err(text)) => ProbeOutcome::Failed(one_line(&text)),
        Err(_) => ProbeOutcome::Failed(format!("no answer within {}", Pretty(timeout))),
    }
}

async fn attempt(check: &NetCheck) -> Result<(), String> {
    match check {
        NetCheck::Tcp(at) => connect::tcp(at).await.map(drop),
        NetCheck::Unix(path) => connect::unix(path).await.map(drop),
        NetCheck::Http(target) => match &target.at {
            Endpoint::Tcp(at) => http::ask(bounded(connect::tcp(at).await?), target).await,
            Endpoint::Unix(path) => http::ask(bounded(connect::unix(path).await?), target).await,
        },
        NetCheck::Postgres(Endpoint::Tcp(at)) => postgres::ask(bounded(connect::tcp(at).await?)).await,
        NetCheck::Postgres(Endpoint::Unix(path)) => postgres::ask(bounded(connect::unix(path).await?)).await,
        NetCheck::Redis(Endpoint::Tcp(at)) => redis::ask(bounded(connect::tcp(at).await?)).await,
        NetCheck::Redis(Endpoint::Unix(path)) => redis::ask(bounded(connect::unix(path).await?)).await,
    }
}

/// The stream, ending after `READ_BYTES_MAX` bytes read as if the server had closed it.
fn bounded<S>(stream: S) -> impl AsyncRead + AsyncWrite + Unpin + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (reader, writer) = tokio::io::split(stream);
    tokio::io::join(reader.take(READ_BYTES_MAX), writer)
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
