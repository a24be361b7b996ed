//! One HTTP/1.1 request: 2xx or not.
//!
//! Refuses: redirects (they would let a service choose what is probed), TLS, and the body:
//! nothing is read beyond the head of the answer. So an endless one costs nothing, and a
//! wrong length of it is not noticed.

use std::pin::pin;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_LENGTH, HOST, LOCATION, USER_AGENT};
use hyper::{Method, Request, Response};
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
    let request = request(target).map_err(|error| format!("cannot make the request: {error}"))?;
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
    judge(&answer.map_err(|error| told(&error))?)
}

fn request(target: &HttpTarget) -> hyper::http::Result<Request<Empty<Bytes>>> {
    let mut request = Request::builder()
        .method(target.method.as_str())
        .uri(target.path.as_str())
        .header(HOST, target.host.as_str())
        .header(USER_AGENT, "upright")
        .header(ACCEPT, "*/*")
        .header(CONNECTION, "close")
        .body(Empty::new())?;
    // RFC 9110, 8.6: where a body could be, its absence is said; some servers answer 411.
    if [Method::POST, Method::PUT, Method::PATCH].contains(request.method()) {
        request.headers_mut().insert(CONTENT_LENGTH, 0.into());
    }
    Ok(request)
}

fn judge(answer: &Response<Incoming>) -> Result<(), String> {
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let place = answer.headers().get(LOCATION).filter(|_| status.is_redirection());
    match place {
        Some(place) => {
            let place = String::from_utf8_lossy(place.as_bytes()).into_owned();
            Err(format!("HTTP {}: no redirect is followed, here to {place}", status.as_u16()))
        }
        None => Err(format!("HTTP {}", status.as_u16())),
    }
}

fn told(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error);
    if let Some(inner) = source.and_then(|cause| cause.downcast_ref::<hyper::Error>()) {
        return told(inner); // a request that was cancelled, because of this
    }
    if let Some(cause) = source.and_then(|cause| cause.downcast_ref::<std::io::Error>()) {
        return crate::probe::cause(cause);
    }
    if error.is_parse_too_large() {
        return "the answer's head is too large".to_string();
    }
    if error.is_incomplete_message() || error.is_canceled() {
        return "the connection was closed before an answer".to_string();
    }
    // Others: a word that it spoke before it was asked, as mail and SSH servers do.
    if error.is_user() { error.to_string() } else { "the answer is not HTTP".to_string() }
}
