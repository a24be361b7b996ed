//! Asks the demo's daemon for its units, over the Unix socket.
//!
//! Refuses: everything else. Whoever wants more uses the client of `api`.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::api::types::UnitList;

/// Longest one question may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Largest answer, in bytes: three units.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// `GET /v1/units`.
///
/// # Errors
/// Nobody listens, no answer in time, or an answer that is no unit list.
pub(super) fn units(socket: &Path) -> io::Result<UnitList> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async { tokio::time::timeout(TIMEOUT, fetch(socket)).await };
    match runtime.block_on(asked) {
        Ok(body) => serde_json::from_slice(&body?).map_err(io::Error::other),
        Err(_elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon does not answer")),
    }
}

async fn fetch(socket: &Path) -> io::Result<Bytes> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection); // its errors come back through the sender
    let request = Request::get("/v1/units")
        .header(HOST, "upright")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body =
        Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.map_err(io::Error::other)?;
    if !status.is_success() {
        return Err(io::Error::other(format!("the daemon answers HTTP {status}")));
    }
    Ok(body.to_bytes())
}
