//! The demo's backend: HTTP on loopback. A chat becomes a session row in the database and a
//! count in the cache; while the database is away the session waits in the journal.
//!
//! Refuses: an answer that promises more than is durable: 200 = in the database, 202 = in
//! the journal, 503 = nowhere.

use std::convert::Infallible;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::demo::{
    fault::{Fault, Faults},
    journal::{Journal, Session},
    puppet::{CONNECTIONS_MAX, accept, say},
};

/// Largest request body, in bytes.
const BODY_BYTES_MAX: usize = 32 * 1024;

/// Longest an answer of the database or the cache is waited for. Below the 3 s that a
/// health check waits by default, so that "database down" is told instead of a silence.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest that requests under way are waited for after SIGTERM.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// A client that sends its header slower than this is hung up on.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

struct Backend {
    database: SocketAddr,
    cache: SocketAddr,
    journal: Mutex<Journal>,
    faults: Arc<Faults>,
}

/// Serves until a signal arrives, then finishes what is under way.
///
/// # Errors
/// When the journal's directory cannot be used.
pub(super) async fn serve(
    listener: TcpListener,
    database: SocketAddr,
    cache: SocketAddr,
    data: &Path,
    mut signals: mpsc::Receiver<i32>,
) -> io::Result<()> {
    let journal = Journal::open(data)?;
    journal.sessions()?; // one that cannot be read is no place for further promises
    let faults = Faults::new();
    let backend = Arc::new(Backend { database, cache, journal: Mutex::new(journal), faults });
    // Of a run that died before its resync: nobody else knows of it.
    let _ = backend.resync().await; // it says how it went, and what is left waits
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (ending, _) = watch::channel(());
    let mut connections = JoinSet::new();
    say("INFO application startup complete");
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        tokio::select! {
            stream = accept(&listener) => {
                let serving = converse(stream, Arc::clone(&backend), ending.subscribe());
                connections.spawn(async move {
                    serving.await;
                    drop(slot);
                });
            }
            _ = signals.recv() => {
                if !backend.faults.ignores_term() {
                    break;
                }
                say("WARN signal ignored, as the fault demands");
            }
            Some(_done) = connections.join_next() => {}
        }
    }
    say("INFO shutting down");
    drop(listener);
    let _ = ending.send(()); // no receiver = no connection to end
    let drained =
        tokio::time::timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        say(&format!("WARN {} requests are cut off", connections.len()));
    }
    Ok(())
}

async fn converse(stream: TcpStream, backend: Arc<Backend>, mut ending: watch::Receiver<()>) {
    let service = service_fn(move |request| {
        let backend = Arc::clone(&backend);
        async move { Ok::<_, Infallible>(backend.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return, // a broken connection is the client's affair
        _ = ending.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await; // the same
}

/// What a client may send to `/api/chat`. Sent again with the same id, it is stored once.
#[derive(Debug, Deserialize)]
struct Chat {
    id: Option<String>,
    #[serde(default)]
    user: String,
    message: String,
}

impl Backend {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        if path != "/puppet/fault" {
            self.faults.hang().await;
            if self.faults.answers_500() {
                return reply(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": "as the fault demands"}));
            }
        }
        let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
            return reply(
                StatusCode::PAYLOAD_TOO_LARGE,
                &json!({"error": "the body is broken or too large"}),
            );
        };
        let body = body.to_bytes();
        let (status, value) = match (&parts.method, path.as_str()) {
            (&Method::GET, "/livez") => (StatusCode::OK, json!({"status": "alive"})),
            (&Method::GET, "/api/system/health") => self.health().await,
            (&Method::GET, "/api/sessions") => self.sessions().await,
            (&Method::POST, "/api/chat") => self.chat(&body).await,
            (&Method::POST, "/api/recovery/state_resync") => self.resync().await,
            (&Method::POST, "/puppet/fault") => self.fault(&body),
            _ => (StatusCode::NOT_FOUND, json!({"error": "no such route"})),
        };
        // As an access log has it, and before the answer, so that what was answered has its line. Only what a
        // drill has numbered: health checks would bury the story.
        if let Some(query) = parts.uri.query().filter(|query| query.starts_with("drill=")) {
            say(&format!("INFO {} {path}?{query} {}", parts.method, status.as_u16()));
        }
        reply(status, &value)
    }

    async fn health(&self) -> (StatusCode, Value) {
        let (database, cache) = tokio::join!(ask(self.database, "PING\n"), ask(self.cache, "PING\r\n"));
        let word = |answer: &io::Result<String>, good: &str| match answer {
            Ok(answer) if answer == good => "up".to_owned(),
            Ok(answer) => format!("down: {answer}"),
            Err(cause) => format!("down: {cause}"),
        };
        let (database, cache) = (word(&database, "OK"), word(&cache, "+PONG"));
        let fine = database == "up" && cache == "up";
        let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let word = if fine { "ok" } else { "degraded" };
        (status, json!({"status": word, "database": database, "cache": cache}))
    }

    async fn sessions(&self) -> (StatusCode, Value) {
        let waiting = self.journal.lock().await.sessions().map_or(Value::Null, |all| all.len().into());
        match ask(self.database, "COUNT\n").await.and_then(accepted) {
            Ok(count) => (StatusCode::OK, json!({"count": count.parse::<u64>().ok(), "journal": waiting})),
            Err(cause) => unavailable(&format!("cannot count the sessions: {cause}")),
        }
    }

    async fn chat(&self, body: &[u8]) -> (StatusCode, Value) {
        let chat: Chat = match serde_json::from_slice(body) {
            Ok(chat) => chat,
            Err(cause) => return (StatusCode::BAD_REQUEST, json!({"error": cause.to_string()})),
        };
        let id = match chat.id.map_or_else(fresh_id, Ok) {
            Ok(id)
                if (1..=64).contains(&id.len())
                    && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
            {
                id
            }
            Ok(_) => return (StatusCode::BAD_REQUEST, json!({"error": "`id` is 1 to 64 of a-z A-Z 0-9 -"})),
            Err(cause) => return unavailable(&format!("cannot make an id: {cause}")),
        };
        let session = Session { id, user: chat.user, message: chat.message };
        // The count is a convenience: the session is accepted with or without it.
        let _ = ask(self.cache, "INCR chats\r\n").await;
        match self.store(&session).await {
            Ok(_) => (StatusCode::OK, json!({"id": session.id, "stored": "database"})),
            Err(cause) => match self.journal.lock().await.append(&session) {
                Ok(()) => {
                    say(&format!("WARN session {} goes to the journal: {cause}", session.id));
                    (StatusCode::ACCEPTED, json!({"id": session.id, "stored": "journal"}))
                }
                Err(worse) => unavailable(&format!("cannot store the session: {cause}; {worse}")),
            },
        }
    }

    /// `new`, or `known` when it was there already.
    async fn store(&self, session: &Session) -> io::Result<String> {
        let text = json!({"user": session.user, "message": session.message});
        ask(self.database, &format!("PUT {} {text}\n", session.id)).await.and_then(accepted)
    }

    /// Writes the journal back. The lock keeps new sessions out of it meanwhile, so that
    /// clearing it forgets nothing.
    async fn resync(&self) -> (StatusCode, Value) {
        let mut journal = self.journal.lock().await;
        let sessions = match journal.sessions() {
            Ok(sessions) => sessions,
            Err(cause) => return unavailable(&cause.to_string()),
        };
        let (mut written, mut known) = (0, 0);
        for session in &sessions {
            match self.store(session).await.as_deref() {
                Ok("new") => written += 1,
                Ok(_) => known += 1,
                Err(cause) => {
                    let left = sessions.len() - written - known;
                    let error = format!("cannot write the journal back: {cause}");
                    say(&format!("ERROR {error}, {left} sessions left"));
                    let counts = json!({"error": error, "written": written, "known": known, "left": left});
                    return (StatusCode::SERVICE_UNAVAILABLE, counts);
                }
            }
        }
        if !sessions.is_empty()
            && let Err(cause) = journal.clear()
        {
            return unavailable(&format!("cannot clear the journal: {cause}"));
        }
        say(&format!("INFO state is in step again: {written} sessions written back, {known} known"));
        (StatusCode::OK, json!({"written": written, "known": known, "left": 0}))
    }

    fn fault(&self, body: &[u8]) -> (StatusCode, Value) {
        let done = serde_json::from_slice::<Fault>(body)
            .map_err(|cause| cause.to_string())
            .and_then(|fault| self.faults.inject(fault));
        match done {
            Ok(()) => (StatusCode::ACCEPTED, json!({"status": "in force"})),
            Err(error) => (StatusCode::BAD_REQUEST, json!({"error": error})),
        }
    }
}

/// One line to a server, one line back.
async fn ask(at: SocketAddr, line: &str) -> io::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(at).await?;
        stream.write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).await?;
        if answer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "connection closed"));
        }
        Ok(answer.trim_end().to_owned())
    };
    match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 1 s")),
    }
}

/// What follows `OK `; `ERR …` is an error.
fn accepted(answer: String) -> io::Result<String> {
    match answer.strip_prefix("OK ") {
        Some(rest) => Ok(rest.to_owned()),
        None => Err(io::Error::other(answer)),
    }
}

/// 64 random bits: enough that two sessions of one journal never meet.
fn fresh_id() -> io::Result<String> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

fn unavailable(error: &str) -> (StatusCode, Value) {
    say(&format!("ERROR {error}"));
    (StatusCode::SERVICE_UNAVAILABLE, json!({"error": error}))
}

fn reply(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}
