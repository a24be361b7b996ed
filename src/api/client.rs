//! The typed, blocking client of the Unix socket.
//!
//! Refuses: retries. Whether to ask again is for the caller to decide.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::api::types::{ErrorBody, ErrorReply, LogEnd, LogLine};

/// How long a question may take; an order that waits has its own limit.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest line of a stream that is kept; a longer one breaks it.
const STREAM_LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

const JSON: &str = "application/json";
const EVENT_STREAM: &str = "text/event-stream";

/// What a log's event stream says.
#[derive(Clone, Debug, PartialEq)]
pub enum LogNews {
    /// A line, and where to go on behind it.
    Line(Box<LogLine>, Option<String>),
    /// Where to go on, were it to break off now.
    Place(String),
    /// Everything asked for was told, but for what could not be read, and why.
    End(Vec<String>),
    /// Nothing more for now: what was told should be shown.
    Pause,
}

/// One event of a stream (WHATWG HTML, 9.2), as far as ours go.
#[derive(Default)]
struct Event {
    id: Option<String>,
    name: Option<String>,
    data: Option<Vec<u8>>,
}

impl Event {
    /// Adds a line; true when that was the empty one behind the event.
    fn take(&mut self, line: &[u8]) -> bool {
        let text = |value: &[u8]| Some(String::from_utf8_lossy(value).into_owned());
        if let Some(data) = line.strip_prefix(b"data: ") {
            self.data = Some(data.to_vec());
        } else if let Some(id) = line.strip_prefix(b"id: ") {
            self.id = text(id);
        } else if let Some(name) = line.strip_prefix(b"event: ") {
            self.name = text(name);
        }
        line.is_empty()
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers the socket.
    #[error("cannot reach the daemon at {path}: {cause}", path = path.display())]
    Unreachable { path: PathBuf, cause: std::io::Error },
    /// The daemon refused.
    #[error("{}", error.message)]
    Api { status: u16, error: ErrorBody },
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection ended in the middle, or the answer is not what the types say.
    #[error("cannot read the daemon's answer: {0}")]
    Broken(String),
}

/// One socket; a connection a request.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// Does not connect yet.
    ///
    /// # Errors
    /// No epoll fd was to be had.
    pub fn new(socket: &Path) -> std::io::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        Ok(Client { socket: socket.to_path_buf(), runtime })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// GET `path` (with its query), at most `READ_TIMEOUT`.
    ///
    /// # Errors
    /// Every `ClientError`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.within(READ_TIMEOUT, self.ask(Method::GET, path, Bytes::new()))
    }

    /// POST `body` as JSON, at most `timeout` (None: as long as it takes).
    ///
    /// # Errors
    /// Every `ClientError`.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        timeout: Option<Duration>,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|cause| ClientError::Broken(cause.to_string()))?;
        let asked = self.ask(Method::POST, path, body.into());
        match timeout {
            Some(timeout) => self.within(timeout, asked),
            None => self.runtime.block_on(asked),
        }
    }

    /// Reads the events of a log until they end, break off, or `each` breaks (`Ok(Some(_))`).
    ///
    /// # Errors
    /// `Unreachable` and `Api` before the first event, `Broken` after it; never `Timeout`
    /// once the stream runs.
    pub fn log<B>(
        &self,
        path: &str,
        mut each: impl FnMut(LogNews) -> ControlFlow<B>,
    ) -> Result<Option<B>, ClientError> {
        self.events(path, |event| {
            let news = match event {
                Some(Event { name: Some(name), data, .. }) if name == "end" => {
                    let end = data.map_or(Ok(LogEnd::default()), |data| serde_json::from_slice(&data));
                    LogNews::End(end.map_err(broken)?.unreadable)
                }
                Some(Event { data: Some(data), id, .. }) => {
                    LogNews::Line(serde_json::from_slice(&data).map_err(broken)?, id)
                }
                Some(Event { id: Some(id), .. }) => LogNews::Place(id),
                Some(Event { id: None, data: None, .. }) => return Ok(ControlFlow::Continue(())),
                None => LogNews::Pause,
            };
            Ok(each(news))
        })
    }

    /// Follows a stream until it ends (`Ok(None)`) or `each` breaks (`Ok(Some(_))`).
    ///
    /// # Errors
    /// `Unreachable` and `Api` before the first item, `Broken` after it; never `Timeout`
    /// once the stream runs.
    pub fn stream<T: DeserializeOwned, B>(
        &self,
        path: &str,
        mut each: impl FnMut(T) -> ControlFlow<B>,
    ) -> Result<Option<B>, ClientError> {
        self.events(path, |event| match event {
            Some(Event { data: Some(data), .. }) => Ok(each(serde_json::from_slice(&data).map_err(broken)?)),
            Some(Event { data: None, .. }) | None => Ok(ControlFlow::Continue(())),
        })
    }

    /// Each event of a stream; None when there is nothing more for now.
    fn events<B>(
        &self,
        path: &str,
        mut each: impl FnMut(Option<Event>) -> Result<ControlFlow<B>, ClientError>,
    ) -> Result<Option<B>, ClientError> {
        self.runtime.block_on(async {
            let mut response = self.send(Method::GET, path, Bytes::new(), EVENT_STREAM).await?;
            if !response.status().is_success() {
                return Err(refused(response).await);
            }
            let mut pending = BytesMut::new();
            let mut event = Event::default();
            while let Some(frame) = response.body_mut().frame().await {
                let frame = frame.map_err(broken)?;
                let Ok(data) = frame.into_data() else { continue };
                pending.extend_from_slice(&data);
                while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                    let line = pending.split_to(end + 1);
                    if !event.take(line.trim_ascii_end()) {
                        continue;
                    }
                    if let ControlFlow::Break(value) = each(Some(std::mem::take(&mut event)))? {
                        return Ok(Some(value));
                    }
                }
                if pending.len() > STREAM_LINE_BYTES_MAX {
                    return Err(broken("a line of the stream is too long"));
                }
                if let ControlFlow::Break(value) = each(None)? {
                    return Ok(Some(value));
                }
            }
            Ok(None)
        })
    }

    fn within<T>(
        &self,
        timeout: Duration,
        asked: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        self.runtime.block_on(async {
            match tokio::time::timeout(timeout, asked).await {
                Ok(result) => result,
                Err(_) => Err(ClientError::Timeout(timeout)),
            }
        })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let response = self.send(method, path, body, JSON).await?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let bytes = response.into_body().collect().await.map_err(broken)?.to_bytes();
        serde_json::from_slice(&bytes).map_err(broken)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        accept: &str,
    ) -> Result<Response<Incoming>, ClientError> {
        let unreachable = |cause| ClientError::Unreachable { path: self.socket.clone(), cause };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Driven beside the request; ends with it.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "upright")
            .header(CONTENT_TYPE, JSON)
            .header(ACCEPT, accept)
            .body(Full::new(body))
            .map_err(broken)?;
        sender.send_request(request).await.map_err(broken)
    }
}

async fn refused(response: Response<Incoming>) -> ClientError {
    let status = response.status().as_u16();
    let bytes = match response.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(cause) => return broken(cause),
    };
    match serde_json::from_slice::<ErrorReply>(&bytes) {
        Ok(reply) => ClientError::Api { status, error: reply.error },
        Err(_) => broken(format!("HTTP {status} without a reason")),
    }
}

fn broken(cause: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(cause.to_string())
}

/// A value for a query: everything but unreserved characters becomes %-escapes (RFC 3986, 2.3).
pub fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
