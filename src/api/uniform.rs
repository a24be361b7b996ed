//! What hyper itself answers to a broken head gets the form of every other error.
//!
//! Refuses: touching an answer of ours. Only what is written while no request is being answered,
//! and is one whole head of an error without a body, is replaced.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};

use crate::api::exchange::error_json;
use crate::api::request::Refusal;
use crate::api::slots::Calls;

/// Longest head that hyper writes of its own accord.
const OWN_HEAD_MAX: usize = 512;

/// Wraps hyper's IO.
pub struct Uniform<I> {
    inner: I,
    calls: Calls,
    /// Something was written and not flushed yet.
    amid: bool,
    /// What goes out in the place of what was to be written.
    instead: Option<Instead>,
    refused: bool,
}

struct Instead {
    bytes: Vec<u8>,
    sent: usize,
    /// How much was to be written.
    of: usize,
}

impl<I> Uniform<I> {
    pub fn new(inner: I, calls: Calls) -> Uniform<I> {
        Uniform { inner, calls, amid: false, instead: None, refused: false }
    }

    /// Nothing is half said, and no refusal was.
    pub fn is_between_answers(&self) -> bool {
        !self.amid && !self.refused && self.calls.is_between_requests()
    }
}

impl<I: Write + Unpin> Uniform<I> {
    /// Says a refusal that hyper had none for.
    pub async fn say(&mut self, refusal: &Refusal) {
        let bytes = whole(refusal);
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match poll_fn(|cx| Pin::new(&mut self.inner).poll_write(cx, rest)).await {
                Ok(0) | Err(_) => return, // the client has left
                Ok(count) => sent += count,
            }
        }
    }

    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(instead) = &mut self.instead else { return Poll::Ready(Ok(0)) };
        while let Some(rest) = instead.bytes.get(instead.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => instead.sent += count,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let of = instead.of;
        self.instead = None;
        Poll::Ready(Ok(of))
    }

    /// Whether these bytes are to be replaced; begins it.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        if self.instead.is_some() {
            return true;
        }
        let Some(status) = self.is_between_answers().then(|| status_of_own(bytes)).flatten() else {
            return false;
        };
        self.refused = true;
        self.instead = Some(Instead { bytes: whole(&refusal_of(status)), sent: 0, of: bytes.len() });
        true
    }
}

/// The status, when this is the head of an error without a body and nothing else.
fn status_of_own(bytes: &[u8]) -> Option<u16> {
    if bytes.len() > OWN_HEAD_MAX {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?;
    let head = text.strip_suffix("\r\n\r\n").filter(|head| !head.contains("\r\n\r\n"))?;
    let (first, lines) = head.split_once("\r\n")?;
    let status: u16 = first.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let empty = lines.split("\r\n").any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    (empty && (400..600).contains(&status)).then_some(status)
}

fn refusal_of(status: u16) -> Refusal {
    match status {
        431 => Refusal::new(431, "request.head-too-large", "the request's head is too large", None),
        status => {
            let help = "send HTTP/1.1 (RFC 9112)".to_string();
            Refusal::new(status, "request.malformed", "the head of the request cannot be read", help)
        }
    }
}

/// What hyper only hangs up for.
pub fn left_unsaid(error: &hyper::Error, begun: bool) -> Option<Refusal> {
    if error.is_timeout() && begun {
        return Some(Refusal::new(
            408,
            "request.too-slow",
            "the head of the request did not arrive in time",
            None,
        ));
    }
    error.is_parse().then(|| refusal_of(400))
}

/// A refusal as a whole answer, after which the connection is closed.
pub fn whole(refusal: &Refusal) -> Vec<u8> {
    let body = error_json(refusal.error.clone());
    let reason = hyper::StatusCode::from_u16(refusal.status).ok();
    let reason = reason.and_then(|status| status.canonical_reason()).unwrap_or("Error");
    let retry = if refusal.status == 503 { "retry-after: 1\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: application/json\r\ncache-control: no-store\r\n{retry}\
         content-length: {}\r\nconnection: close\r\n\r\n",
        refusal.status,
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

impl<I: Read + Unpin> Read for Uniform<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<I: Write + Unpin> Write for Uniform<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.replaces(bytes) {
            return self.poll_instead(cx);
        }
        self.amid = true;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Asked when everything was written.
        let flushed = ready!(Pin::new(&mut self.inner).poll_flush(cx));
        self.amid = false;
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let filled: Vec<&io::IoSlice<'_>> = parts.iter().filter(|part| !part.is_empty()).collect();
        if let [only] = filled.as_slice()
            && self.replaces(only)
        {
            return self.poll_instead(cx);
        }
        self.amid = true;
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_head_of_an_error_is_hypers_own() {
        let own = "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        assert_eq!(status_of_own(own.as_bytes()), Some(431));
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nx\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "",
        ] {
            assert_eq!(status_of_own(other.as_bytes()), None, "{other}");
        }
    }
}
