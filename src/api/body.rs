//! The body of an answer: whole, or a stream of events with a heartbeat.
//!
//! Refuses: buffering a stream. The channel's bound is the sender's business.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::api::call::Item;
use crate::api::slots::{Busy, Open};

/// What hyper sends.
#[derive(Debug)]
pub struct ReplyBody {
    content: Content,
    /// The connection's slot is in use for as long as this lives.
    _busy: Option<Busy>,
    _open: Option<Open>,
}

#[derive(Debug)]
enum Content {
    Whole(Option<Bytes>),
    /// Server-sent events (WHATWG HTML, 9.2): `id: 7`, `data: {json}`, an empty line. A comment line
    /// now and then, so that a dead client is noticed by the write.
    Events {
        items: mpsc::Receiver<Item>,
        heartbeat: Interval,
    },
    /// As it comes. An event stream has a heartbeat.
    Pieces {
        pieces: mpsc::Receiver<Bytes>,
        heartbeat: Option<Interval>,
    },
}

impl ReplyBody {
    pub fn whole(bytes: impl Into<Bytes>) -> ReplyBody {
        ReplyBody { content: Content::Whole(Some(bytes.into())), _busy: None, _open: None }
    }

    /// A stream; the first heartbeat at once, so that the client sees the head of the answer.
    pub fn events(items: mpsc::Receiver<Item>, every: Duration) -> ReplyBody {
        ReplyBody { content: Content::Events { items, heartbeat: beating(every) }, _busy: None, _open: None }
    }

    /// A body made elsewhere, piece by piece; `every`: it is an event stream, with a heartbeat.
    pub fn pieces(pieces: mpsc::Receiver<Bytes>, every: Option<Duration>) -> ReplyBody {
        ReplyBody {
            content: Content::Pieces { pieces, heartbeat: every.map(beating) },
            _busy: None,
            _open: None,
        }
    }

    /// Holds `busy` until the body is sent or given up.
    pub fn until_sent(self, busy: Busy) -> ReplyBody {
        ReplyBody { _busy: Some(busy), ..self }
    }

    /// Holds `open` until the body is made or given up.
    pub fn until_made(self, open: Open) -> ReplyBody {
        ReplyBody { _open: Some(open), ..self }
    }
}

fn beating(every: Duration) -> Interval {
    let mut heartbeat = interval_at(Instant::now(), every);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    heartbeat
}

fn poll_beat(
    heartbeat: &mut Interval,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
    heartbeat.poll_tick(cx).map(|_| Some(Ok(Frame::data(Bytes::from_static(b": alive\n\n")))))
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.get_mut().content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Events { items, heartbeat } => match items.poll_recv(cx) {
                Poll::Ready(Some(item)) => Poll::Ready(Some(Ok(Frame::data(event(&item))))),
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => poll_beat(heartbeat, cx),
            },
            Content::Pieces { pieces, heartbeat } => match (pieces.poll_recv(cx), heartbeat) {
                (Poll::Ready(piece), _) => Poll::Ready(piece.map(|piece| Ok(Frame::data(piece)))),
                (Poll::Pending, Some(heartbeat)) => poll_beat(heartbeat, cx),
                (Poll::Pending, None) => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Content::Events { .. } | Content::Pieces { .. } => SizeHint::default(),
        }
    }
}

/// JSON has no raw newline, so one line holds it. A newline all the same would end the line
/// early and forge a field: it becomes a space (which JSON allows wherever a newline is).
fn event(item: &Item) -> Bytes {
    let mut out = BytesMut::with_capacity(item.json.len() + 32);
    out.put_slice(format!("id: {}\ndata: ", item.id).as_bytes());
    out.extend(item.json.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }));
    out.put_slice(b"\n\n");
    out.freeze()
}
