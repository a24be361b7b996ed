//! The accept loop on the Unix socket: limits, roles, requests → `Call`, `Answer` → HTTP/1.1.
//!
//! Refuses: slow heads and bodies, large ones, more connections than slots (reliability A9),
//! and spinning when fds run out (D1).

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::api::access::Access;
use crate::api::body::ReplyBody;
use crate::api::call::{Answer, Call, MetricsForm, Peer, PiecesOf};
use crate::api::openapi;
use crate::api::request::{self, Heads, Refusal, metrics_form};
use crate::api::routes::{self, Found, Need};
use crate::api::slots::{Calls, Slots};
use crate::api::stall::Stall;
use crate::api::timing::Timed;
use crate::api::types::{ErrorBody, ErrorReply};

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
    /// How many of them only root may take, so that a crowd cannot lock the operator out.
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

/// Serves until dropped; dropping it ends every connection.
pub async fn serve<F, Fut>(listener: UnixListener, access: Access, handler: F) -> Infallible
where
    F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    serve_with(listener, access, Limits::default(), handler).await
}

/// As `serve`, with other bounds.
pub async fn serve_with<F, Fut>(
    listener: UnixListener,
    access: Access,
    limits: Limits,
    handler: F,
) -> Infallible
where
    F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    serve_until(listener, access, limits, std::future::pending::<Infallible>(), handler).await
}

/// As `serve_with`, until `stop`: then nobody is accepted any more (who connects waits in the
/// listener's queue, for whoever has it next), and the answer comes when those who were are
/// served, or `Limits::farewell` is over.
pub async fn serve_until<F, Fut, T>(
    listener: UnixListener,
    access: Access,
    limits: Limits,
    stop: impl Future<Output = T>,
    handler: F,
) -> T
where
    F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    tokio::pin!(stop);
    let access = Arc::new(access);
    let mut connections = JoinSet::new();
    let mut slots = Slots::new(limits.connections_max, limits.slots_kept_for_root);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Some(peer) = admit(&stream, &mut slots) {
                        let calls = Calls::default();
                        let shared = Shared { peer, access: access.clone(), limits, calls: calls.clone() };
                        let task = connections.spawn(converse(stream, shared, handler.clone()));
                        slots.take(peer.uid, task, calls);
                    }
                }
                // EMFILE, ENFILE, ENOMEM: the queue stays readable, so asking again at
                // once would spin.
                Err(_) => tokio::time::sleep(limits.accept_pause).await,
            },
            // Its slot is free. One that panicked took only itself along.
            Some(_) = connections.join_next() => {}
            told = &mut stop => {
                let served = async {
                    while !slots.are_served() {
                        tokio::time::sleep(FAREWELL_LOOK).await;
                    }
                };
                let _ = tokio::time::timeout(limits.farewell, served).await; // late is as good
                return told;
            }
        }
    }
}

/// Who it is, if there is a slot for them. Those turned away are told so, as far as the
/// socket takes it without waiting.
fn admit(stream: &UnixStream, slots: &mut Slots) -> Option<Peer> {
    let cred = stream.peer_cred().ok()?;
    let peer = Peer { uid: cred.uid(), gid: cred.gid(), pid: cred.pid().unwrap_or(0) };
    if slots.make_room(peer.uid) {
        return Some(peer);
    }
    let refusal = Refusal::new(
        503,
        "server.busy",
        "every connection slot is taken",
        "try again; `follow` requests hold a slot each".to_string(),
    );
    let body = error_json(refusal.error);
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.try_write(&[head.as_bytes(), &body].concat()); // it is leaving anyway
    None
}

/// What every request of a connection shares.
#[derive(Clone)]
struct Shared {
    peer: Peer,
    access: Arc<Access>,
    limits: Limits,
    calls: Calls,
}

/// One connection, from its first byte to its last, for a peer that is already known.
pub async fn serve_connection<F, Fut>(
    stream: UnixStream,
    peer: Peer,
    access: Arc<Access>,
    limits: Limits,
    handler: F,
) where
    F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    converse(stream, Shared { peer, access, limits, calls: Calls::default() }, handler).await;
}

async fn converse<F, Fut>(stream: UnixStream, shared: Shared, handler: F)
where
    F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let limits = shared.limits;
    let service = service_fn(move |request| {
        let (shared, handler) = (shared.clone(), handler.clone());
        async move { Ok::<_, Infallible>(reply(request, shared, handler).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes_max)
        .max_buf_size(limits.header_bytes_max.max(8 * 1024))
        .serve_connection(Stall::new(TokioIo::new(stream), limits.write_timeout), service);
    let _ = connection.await; // a broken connection is the client's affair
}

async fn reply<F, Fut>(request: Request<Incoming>, shared: Shared, handler: F) -> Response<ReplyBody>
where
    F: Fn(Peer, Call) -> Fut,
    Fut: Future<Output = Answer>,
{
    let _timed = Timed::begin(request.method(), request.uri().path());
    match understand(request, &shared).await {
        Ok(Some(call)) => {
            let busy = shared.calls.begin();
            let answer = handler(shared.peer, call).await;
            if matches!(answer, Answer::Stream(_)) {
                shared.calls.follow();
            }
            let response = from_answer(answer, &shared.limits);
            response.map(|body| body.until_sent(busy))
        }
        Ok(None) => json(StatusCode::OK, openapi::text().into()),
        Err(response) => *response,
    }
}

/// Head and body → call, in the order: known, permitted, well-formed. Nobody learns about
/// the form of a request that they may not make.
async fn understand(
    request: Request<Incoming>,
    shared: &Shared,
) -> Result<Option<Call>, Box<Response<ReplyBody>>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let (route, name) = match routes::find(&head.method, path) {
        Found::Row(route, name) => (route, name),
        Found::OtherMethods(methods) => return Err(Box::new(wrong_method(path, &methods))),
        Found::Nothing => return Err(refuse(unknown_route(path))),
    };
    if !shared.access.allows(&shared.peer, route.need) {
        return Err(refuse(denied(shared.peer, route.need)));
    }
    let body = if route.method == Method::POST {
        check_type(head.headers.get(CONTENT_TYPE)).map_err(refuse)?;
        read_body(body, &shared.limits).await.map_err(refuse)?
    } else {
        Bytes::new()
    };
    let header = |name: HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    let heads = Heads {
        wants_events: header(ACCEPT).is_some_and(|accept| accept.contains("text/event-stream")),
        metrics: metrics_form(header(ACCEPT).unwrap_or("")),
        last_event_id: header(HeaderName::from_static("last-event-id")),
    };
    request::parse(route, name, head.uri.query(), heads, &body).map_err(refuse)
}

async fn read_body(body: Incoming, limits: &Limits) -> Result<Bytes, Refusal> {
    let whole = Limited::new(body, limits.body_bytes_max).collect();
    match tokio::time::timeout(limits.body_timeout, whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(cause)) if cause.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the body is larger than {} bytes", limits.body_bytes_max);
            Err(Refusal::new(413, "request.too-large", message, None))
        }
        Ok(Err(cause)) => {
            Err(Refusal::new(400, "request.malformed", format!("cannot read the body: {cause}"), None))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {:?}", limits.body_timeout);
            Err(Refusal::new(408, "request.too-slow", message, None))
        }
    }
}

/// JSON must be named: a web form cannot do that, so it cannot act (reliability A5).
fn check_type(value: Option<&HeaderValue>) -> Result<(), Refusal> {
    let named = value.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = named.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Refusal::new(
        415,
        "request.not-json",
        "a POST must be JSON",
        "send the header `Content-Type: application/json`".to_string(),
    ))
}

fn unknown_route(path: &str) -> Refusal {
    let shown: String = path.chars().take(200).collect();
    let help = match request::nearest_path(path) {
        Some(near) => format!("did you mean {near}?"),
        None => "every route is in /openapi.json".to_string(),
    };
    Refusal::new(404, "route.unknown", format!("there is nothing at {shown}"), help)
}

fn wrong_method(path: &str, methods: &[&Method]) -> Response<ReplyBody> {
    let allow = methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ");
    let message = format!("{path} takes {allow}");
    let mut response = *refuse(Refusal::new(405, "route.method", message, None));
    if let Ok(value) = HeaderValue::from_str(&allow) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

fn denied(peer: Peer, need: Need) -> Refusal {
    let (what, list) = match need {
        Need::Act => ("act", "operators"),
        Need::View => ("read", "viewers"),
    };
    Refusal::new(
        403,
        "access.denied",
        format!("user {} may not {what}", peer.uid),
        format!("ask root, or have `{list}` under [api] in upright.toml name this user or a group of theirs"),
    )
}

fn from_answer(answer: Answer, limits: &Limits) -> Response<ReplyBody> {
    match answer {
        Answer::Json(bytes) => json(StatusCode::OK, bytes),
        Answer::Metrics(form, text) => {
            let kind = match form {
                MetricsForm::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
                MetricsForm::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            };
            with_head(StatusCode::OK, kind, ReplyBody::whole(Bytes::from(text)))
        }
        Answer::Plain(code, text) => {
            with_head(status(code), "text/plain; charset=utf-8", ReplyBody::whole(format!("{text}\n")))
        }
        Answer::Stream(items) => {
            let body = ReplyBody::events(items, limits.heartbeat);
            with_head(StatusCode::OK, "text/event-stream", body)
        }
        Answer::Pieces(PiecesOf::Events, pieces) => {
            let body = ReplyBody::pieces(pieces, Some(limits.heartbeat));
            with_head(StatusCode::OK, "text/event-stream", body)
        }
        Answer::Pieces(PiecesOf::Json, pieces) => {
            with_head(StatusCode::OK, "application/json", ReplyBody::pieces(pieces, None))
        }
        Answer::Pieces(PiecesOf::Bytes, pieces) => {
            with_head(StatusCode::OK, "application/octet-stream", ReplyBody::pieces(pieces, None))
        }
        Answer::Error(code, error) => json(status(code), error_json(error)),
    }
}

fn refuse(refusal: Refusal) -> Box<Response<ReplyBody>> {
    Box::new(json(status(refusal.status), error_json(refusal.error)))
}

fn error_json(error: ErrorBody) -> Bytes {
    // Strings and an option always serialize.
    serde_json::to_vec(&ErrorReply { error }).unwrap_or_default().into()
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn json(status: StatusCode, bytes: Bytes) -> Response<ReplyBody> {
    with_head(status, "application/json", ReplyBody::whole(bytes))
}

fn with_head(status: StatusCode, content_type: &'static str, body: ReplyBody) -> Response<ReplyBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // State is news; yesterday's is wrong.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
