//! A connection that gives at most `READ_BYTES_MAX` bytes, and says what it is when it is not
//! what was asked for.
//!
//! Refuses: an end that looks like the server's. Where we stop reading, the reader hears why.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

use crate::probe::READ_BYTES_MAX;

/// First bytes of a TLS record from a server: alert or handshake, and the major version
/// (RFC 8446, 5.1). None of the protocols asked here begins so.
const TLS: [[u8; 2]; 2] = [[0x15, 0x03], [0x16, 0x03]];

pub(super) struct Bounded<S> {
    stream: Take<S>,
    first: First,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Awaited,
    /// Who reads byte by byte sees them one by one.
    One(u8),
    Seen,
}

impl<S: AsyncRead> Bounded<S> {
    pub(super) fn new(stream: S) -> Bounded<S> {
        Bounded { stream: stream.take(READ_BYTES_MAX), first: First::Awaited }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let came = &buffer.filled()[before..];
        if came.is_empty() && buffer.remaining() > 0 && self.stream.limit() == 0 {
            let kib = READ_BYTES_MAX / 1024;
            return Poll::Ready(Err(io::Error::other(format!("more than {kib} KiB, and no answer in them"))));
        }
        self.first = match (self.first, came) {
            (first, []) => first,
            (First::Awaited, [one]) => First::One(*one),
            (First::Awaited, [one, two, ..]) if TLS.contains(&[*one, *two]) => return is_tls(),
            (First::One(one), [two, ..]) if TLS.contains(&[one, *two]) => return is_tls(),
            (First::Awaited | First::One(_) | First::Seen, _) => First::Seen,
        };
        Poll::Ready(Ok(()))
    }
}

fn is_tls() -> Poll<io::Result<()>> {
    Poll::Ready(Err(io::Error::other("the answer is TLS, and checks speak plain text")))
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(context)
    }
}
