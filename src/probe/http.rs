//! One HTTP/1.1 request: 2xx or not.
//!
//! Refuses: redirects (they would let a service choose what is probed), TLS, and the body:
//! nothing is read beyond the head of the answer.

use std::pin::pin;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::base::check::HttpTarget;

/// Most headers in an answer (hyper's own default, written down because we rely on it).
const HEADERS_MAX: usize = 100;

/// Largest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 32 * 1024;

pub(super) async fn ask<S>(stream: S, target: &HttpTarget) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let request = Request::builder()
        .method(target.method.as_str())
        .uri(target.path.as_str())
        .header(HOST, target.host.as_str())
        .header(USER_AGENT, "upright")
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("cannot make the request: {error}"))?;
    let mut builder = http1::Builder::new();
    builder.max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|e| told(&e))?;
    let mut connection = pin!(connection);
    let mut answer = pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => match (answer.await, ended) {
            // The answer alone would only say that it was cancelled.
            (Err(_), Err(error)) => Err(error),
            // The connection may end before the answer is picked up; it is there all the same.
            (answer, _) => answer,
        },
    };
    let status = answer.map_err(|error| told(&error))?.status();
    if status.is_success() { Ok(()) } else { Err(format!("HTTP {}", status.as_u16())) }
}

fn told(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        return "the answer's head is too large".to_string();
    }
    if error.is_parse() {
        return "the answer is not HTTP".to_string();
    }
    if error.is_incomplete_message() {
        return "the connection was closed before an answer".to_string();
    }
    let source = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    match source {
        Some(cause) => crate::probe::cause(cause),
        None => error.to_string(),
    }
}
