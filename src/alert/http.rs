//! One HTTP/1.1 request over TCP or TLS, and what its answer means for an alert.
//!
//! Refuses: redirects (a receiver that moved is for a person to follow), proxies, the body of the
//! answer (the head says all that matters, and a body may repeat our secrets), and naming the URL
//! in what goes wrong.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::alert::request::Request;
use crate::base::base64;
use crate::base::check::HostPort;
use crate::engine::outbox::Outcome;
use crate::probe::connect;
use crate::sys::clock;

/// Most headers in an answer, and the largest head, in bytes.
const HEADERS_MAX: usize = 100;
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Sends, and judges the answer. `tls` is asked for only when the URL is `https`.
/// The whole of it must be bounded by the caller's deadline; dropped, the connection is closed.
pub async fn send(request: &Request, tls: Option<Arc<ClientConfig>>) -> Outcome {
    match attempt(request, tls).await {
        Ok(answer) => judge(&answer),
        Err(Trouble::Wrong(why)) => Outcome::Refused { why },
        Err(Trouble::Later(why)) => Outcome::Failed { why, retry_after: None },
    }
}

enum Trouble {
    /// It will never work.
    Wrong(String),
    Later(String),
}

/// Whether this URL needs TLS.
pub fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

async fn attempt(request: &Request, tls: Option<Arc<ClientConfig>>) -> Result<Response<Incoming>, Trouble> {
    let wrong = |why: &str| Trouble::Wrong(why.to_string());
    let uri: Uri = request.url.expose().parse().map_err(|_| wrong("the URL cannot be read"))?;
    let secure = is_https(request.url.expose());
    if !secure && uri.scheme_str() != Some("http") {
        return Err(wrong("the URL is neither http:// nor https://"));
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("the URL has no host"))?;
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_string();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let message = message(request, &uri, host)?;
    let stream = connect(&HostPort { host: bare.clone(), port }).await.map_err(Trouble::Later)?;
    let _ = stream.set_nodelay(true); // only slower without
    if !secure {
        return ask(stream, message).await.map_err(Trouble::Later);
    }
    let name = ServerName::try_from(bare).map_err(|_| wrong("the URL's host is no name"))?;
    let tls = tls.ok_or_else(|| wrong("there is nothing to verify it with"))?;
    let stream = TlsConnector::from(tls).connect(name, stream).await;
    let stream = stream.map_err(|error| Trouble::Later(format!("TLS: {error}")))?;
    ask(stream, message).await.map_err(Trouble::Later)
}

fn message(request: &Request, uri: &Uri, host: &str) -> Result<hyper::Request<Full<Bytes>>, Trouble> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.port_u16().map_or(host.to_string(), |port| format!("{host}:{port}"));
    let mut message = hyper::Request::builder()
        .method(request.method)
        .uri(path)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("upright/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close");
    for (name, value) in &request.headers {
        message = message.header(*name, value);
    }
    for (name, value) in &request.secret_headers {
        message = message.header(*name, value.expose());
    }
    if let Some((user, _)) = uri.authority().and_then(|authority| authority.as_str().rsplit_once('@')) {
        message = message.header(AUTHORIZATION, format!("Basic {}", base64::encode(user.as_bytes())));
    }
    let body = Full::new(Bytes::from(request.body.clone()));
    message.body(body).map_err(|_| Trouble::Wrong("a secret does not fit into a header".to_string()))
}

async fn ask<S>(stream: S, message: hyper::Request<Full<Bytes>>) -> Result<Response<Incoming>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut builder = http1::Builder::new();
    builder.max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|e| told(&e))?;
    let mut connection = pin!(connection);
    let mut answer = pin!(sender.send_request(message));
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
    answer.map_err(|error| told(&error))
}

fn judge(answer: &Response<Incoming>) -> Outcome {
    let asked = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    verdict(answer.status().as_u16(), asked, clock::wall().as_microsecond())
}

/// 2xx has it; what asks for patience is tried again; the rest will not get better by itself.
fn verdict(status: u16, retry_after: Option<&str>, now_us: i64) -> Outcome {
    let why = format!("HTTP {status}");
    match status {
        200..=299 => Outcome::Acked,
        408 | 425 | 429 | 500..=599 => {
            let retry_after = retry_after.and_then(|text| wait(text, now_us));
            Outcome::Failed { why, retry_after }
        }
        300..=399 => Outcome::Refused { why: format!("{why}: no redirect is followed") },
        _ => Outcome::Refused { why },
    }
}

/// `Retry-After`: seconds, or a date.
fn wait(text: &str, now_us: i64) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at_us = clock::micros_of_http_date(text)?;
    Some(Duration::from_micros(u64::try_from(at_us.saturating_sub(now_us)).unwrap_or(0)))
}

/// In words, and without a URL: hyper's own texts have none.
fn told(error: &hyper::Error) -> String {
    let source = std::error::Error::source(error);
    if let Some(inner) = source.and_then(|cause| cause.downcast_ref::<hyper::Error>()) {
        return told(inner); // a request that was cancelled, because of this
    }
    if let Some(cause) = source.and_then(|cause| cause.downcast_ref::<std::io::Error>()) {
        return cause.to_string().to_lowercase();
    }
    if error.is_parse_too_large() {
        return "the answer's head is too large".to_string();
    }
    if error.is_incomplete_message() || error.is_canceled() {
        return "the connection was closed before an answer".to_string();
    }
    if error.is_user() { error.to_string() } else { "the answer is not HTTP".to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_verdict() {
        let failed = |why: &str, seconds: Option<u64>| Outcome::Failed {
            why: why.into(),
            retry_after: seconds.map(Duration::from_secs),
        };
        assert_eq!(verdict(204, None, 0), Outcome::Acked);
        assert_eq!(verdict(503, Some("120"), 0), failed("HTTP 503", Some(120)));
        assert_eq!(verdict(408, Some("soon"), 0), failed("HTTP 408", None));
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let at_us = 784_111_777_000_000;
        assert_eq!(verdict(429, Some(date), at_us - 5_000_000), failed("HTTP 429", Some(5)));
        assert_eq!(verdict(429, Some(date), at_us + 5_000_000), failed("HTTP 429", Some(0)));
        for status in [301, 400, 401, 403, 404, 410, 413] {
            assert!(matches!(verdict(status, None, 0), Outcome::Refused { .. }), "{status}");
        }
        for status in [408, 425, 429, 500, 502, 599] {
            assert!(matches!(verdict(status, None, 0), Outcome::Failed { .. }), "{status}");
        }
    }
}
