//! The accept loop on the Unix socket, and what every connection is: slots, limits, HTTP/1.1.
//!
//! Refuses: slow heads and bodies, large ones, more connections than slots (reliability A9),
//! and spinning when fds run out (D1).

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Write;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::api::call::{Answer, Call, Local, Peer};
use crate::api::exchange::{Shared, reply};
use crate::api::request::Refusal;
use crate::api::rules::Rules;
use crate::api::slots::{Calls, Slots};
use crate::api::stall::Stall;
use crate::api::uniform::{self, Uniform};
use crate::sys::{accounts, socket};

/// Between two looks whether everybody is served.
const FAREWELL_LOOK: Duration = Duration::from_millis(1);

/// The bounds of the server. `Default` is what the daemon uses.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first byte awaited to the end of the head; also the longest idle time.
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body.
    pub body_timeout: Duration,
    /// How long a client may leave what is written to it unread.
    pub write_timeout: Duration,
    pub header_bytes_max: usize,
    pub body_bytes_max: usize,
    pub connections_max: usize,
    /// The same over TCP, all addresses together: a crowd there takes nothing from the Unix socket.
    pub tcp_connections_max: usize,
    /// How many on the Unix socket only root may take, so that a crowd cannot lock the operator out.
    pub slots_kept_for_root: usize,
    /// Between two comment lines of a quiet stream.
    pub heartbeat: Duration,
    /// How long accepting rests after an error (out of fds).
    pub accept_pause: Duration,
    /// Told to stop: how long those who are connected have to ask and to be answered.
    pub farewell: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            header_bytes_max: 16 * 1024,
            body_bytes_max: 64 * 1024,
            connections_max: 256,
            tcp_connections_max: 128,
            slots_kept_for_root: 8,
            heartbeat: Duration::from_secs(15),
            accept_pause: Duration::from_millis(100),
            farewell: Duration::from_millis(50),
        }
    }
}

/// A listening socket that came as an fd (the keeper holds it across engine crashes).
///
/// # Errors
/// It is no Unix stream socket, or cannot be made non-blocking. Call it inside a runtime.
pub fn listener_from(fd: OwnedFd) -> std::io::Result<UnixListener> {
    let listener = StdListener::from(fd);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Serves the Unix socket until `stop`: then nobody is accepted any more (who connects waits in the
/// listener's queue, for whoever has it next), and the answer comes when those who were are
/// served, or `Limits::farewell` is over.
pub async fn serve_until<F, Fut, T>(
    listener: UnixListener,
    rules: Arc<Rules>,
    limits: Limits,
    stop: impl Future<Output = T>,
    handler: F,
) -> T
where
    F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    tokio::pin!(stop);
    let mut crowd = Crowd::new(limits, limits.connections_max, limits.slots_kept_for_root);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Some(peer) = peer_of(&stream) {
                        let uid = peer.uid;
                        let shared = crowd.shared(Peer::Local(peer), None, &rules);
                        crowd.admit(uid, Line::Unix(stream), shared, handler.clone());
                    }
                }
                // EMFILE, ENFILE, ENOMEM: the queue stays readable, so asking again at
                // once would spin.
                Err(_) => tokio::time::sleep(limits.accept_pause).await,
            },
            () = crowd.let_go() => {}
            told = &mut stop => {
                crowd.take_leave().await;
                return told;
            }
        }
    }
}

fn peer_of(stream: &UnixStream) -> Option<Local> {
    let cred = stream.peer_cred().ok()?;
    let groups = match socket::peer_groups(stream) {
        Ok(groups) => groups,
        // An old kernel: what the group database says of the user is the next best.
        Err(_) => accounts::user_name(cred.uid())
            .and_then(|name| accounts::initial_groups(&name, cred.gid()).ok())
            .unwrap_or_default(),
    };
    Some(Local { uid: cred.uid(), gid: cred.gid(), groups, pid: cred.pid().unwrap_or(0) })
}

/// A connection.
pub enum Line {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Line {
    /// Says something as far as the socket takes it without waiting.
    fn say_last(&self, bytes: &[u8]) {
        let _ = match self {
            Line::Unix(stream) => stream.try_write(bytes),
            Line::Tcp(stream) => stream.try_write(bytes),
        }; // they are leaving anyway
    }
}

/// The connections that share one budget of slots.
pub struct Crowd {
    limits: Limits,
    slots: Slots,
    tasks: JoinSet<()>,
}

impl Crowd {
    pub fn new(limits: Limits, most: usize, kept_for_root: usize) -> Crowd {
        Crowd { limits, slots: Slots::new(most, kept_for_root), tasks: JoinSet::new() }
    }

    /// What a new connection goes by.
    pub fn shared(&self, peer: Peer, own: Option<SocketAddr>, rules: &Arc<Rules>) -> Shared {
        Shared { peer, own, rules: rules.clone(), limits: self.limits, calls: Calls::default() }
    }

    /// Serves a connection if there is a slot for it. Those turned away are told so.
    pub fn admit<F, Fut>(&mut self, uid: u32, line: Line, shared: Shared, handler: F)
    where
        F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        if !self.slots.make_room(uid) {
            return line.say_last(&uniform::whole(&busy()));
        }
        let calls = shared.calls.clone();
        let task = match line {
            Line::Unix(stream) => self.tasks.spawn(converse(stream, shared, handler)),
            Line::Tcp(stream) => self.tasks.spawn(converse(stream, shared, handler)),
        };
        self.slots.take(uid, task, calls);
    }

    /// Waits for the end of a connection, so that its slot is free. One that panicked took only
    /// itself along.
    pub async fn let_go(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    /// Hangs up on everybody.
    pub fn end_all(&mut self) {
        self.tasks.abort_all();
    }

    /// Waits until everybody is served, or `Limits::farewell` is over.
    pub async fn take_leave(&self) {
        let served = async {
            while !self.slots.are_served() {
                tokio::time::sleep(FAREWELL_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(self.limits.farewell, served).await; // late is as good
    }
}

fn busy() -> Refusal {
    let help = "try again; `follow` requests hold a slot each".to_string();
    Refusal::new(503, "server.busy", "every connection slot is taken", help)
}

/// One connection, from its first byte to its last, for a peer that is already known.
pub async fn serve_connection<F, Fut>(
    stream: UnixStream,
    peer: Peer,
    rules: Arc<Rules>,
    limits: Limits,
    handler: F,
) where
    F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    converse(stream, Shared { peer, own: None, rules, limits, calls: Calls::default() }, handler).await;
}

async fn converse<I, F, Fut>(stream: I, shared: Shared, handler: F)
where
    I: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let limits = shared.limits;
    let io = Uniform::new(Stall::new(TokioIo::new(stream), limits.write_timeout), shared.calls.clone());
    let handler = Box::new(handler); // what hyper polls must not be pinned
    let service = service_fn(move |request| {
        let (shared, handler) = (shared.clone(), handler.clone());
        let handle = move |peer, call| handler(peer, call);
        Box::pin(async move { Ok::<_, Infallible>(reply(request, shared, handle).await) })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes_max)
        .max_buf_size(limits.header_bytes_max.max(8 * 1024))
        .serve_connection(io, service);
    let ended = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let parts = connection.into_parts();
    let begun = !parts.read_buf.is_empty();
    let mut io = parts.io;
    if let Err(error) = ended
        && let Some(refusal) = uniform::left_unsaid(&error, begun)
        && io.is_between_answers()
    {
        io.say(&refusal).await;
    }
    let _ = poll_fn(|cx| Pin::new(&mut io).poll_shutdown(cx)).await; // a broken connection is the client's affair
}
