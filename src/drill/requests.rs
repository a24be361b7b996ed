//! Requests that no client should send, to the daemon's socket and to a backend: broken HTTP, huge heads,
//! wrong methods, bad JSON.
//!
//! Refuses: anything that a server could take for an order.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Most bytes of an answer that are read: its first line says what it is.
const ANSWER_BYTES: usize = 512;

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Socket(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl Target {
    /// Of `http://host:port/…`.
    pub fn of_url(url: &str) -> Option<Target> {
        let rest = url.strip_prefix("http://")?;
        let host = rest.split('/').next().filter(|host| !host.is_empty())?;
        Some(Target::Tcp(if host.contains(':') { host.to_string() } else { format!("{host}:80") }))
    }

    pub fn shown(&self) -> String {
        match self {
            Target::Socket(path) => path.display().to_string(),
            Target::Tcp(host) => host.clone(),
        }
    }

    /// The code of the first line of its answer; None: it closed without one, or took longer than `within`.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn ask(&self, request: &[u8], within: Duration) -> io::Result<Option<u16>> {
        match self {
            Target::Socket(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(within))?;
                stream.set_write_timeout(Some(within))?;
                Ok(exchange(stream, request))
            }
            Target::Tcp(host) => {
                let no_address = || io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
                let address = host.to_socket_addrs()?.next().ok_or_else(no_address)?;
                let stream = TcpStream::connect_timeout(&address, within)?;
                stream.set_read_timeout(Some(within))?;
                stream.set_write_timeout(Some(within))?;
                Ok(exchange(stream, request))
            }
        }
    }
}

/// What came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub sent: u64,
    pub refused: u64,
    pub server_errors: u64,
    pub silent: u64,
}

/// Sends each of them once, and a good request after each.
pub(super) fn bother(target: &Target) -> Counts {
    let good = match target {
        Target::Socket(_) => get("/livez"),
        Target::Tcp(_) => get("/"),
    };
    let mut counts = Counts::default();
    for request in broken() {
        counts.sent += 1;
        match target.ask(&request, ANSWER_TIMEOUT) {
            Ok(Some(500..=599)) => counts.server_errors += 1,
            Ok(Some(_) | None) => counts.refused += 1,
            Err(_) => counts.silent += 1,
        }
        if !matches!(target.ask(&good, ANSWER_TIMEOUT), Ok(Some(_))) {
            counts.silent += 1;
        }
    }
    counts
}

pub(super) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes()
}

pub(super) fn post(path: &str, kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

fn broken() -> Vec<Vec<u8>> {
    let json = "application/json";
    let deep = "[".repeat(20_000);
    let mut all = vec![
        b"\r\n\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n".to_vec(),
        b"\x00\x01\x02\xff\xfe not HTTP at all\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nxx"
            .to_vec(),
        get(&format!("/{}", "a".repeat(70_000))),
        get("/%00%ff%zz/../../etc/passwd"),
        get("/v1/units/%F0%9F%92%A9"),
        b"BREW /v1/units HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
        b"DELETE /v1/units HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
        post("/v1/actions/stop", json, "{\"units\":"),
        post("/v1/actions/stop", json, "{\"units\":[\"no-such-unit-anywhere\"]}"),
        post("/v1/actions/stop", "text/plain", "{\"units\":[]}"),
        post("/v1/actions/stop", json, &deep),
        post("/v1/alerts/mute", json, "{\"for_s\":-1}"),
    ];
    let mut large = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n".to_vec();
    for number in 0..2_000 {
        large.extend_from_slice(format!("X-Drill-{number}: {}\r\n", "y".repeat(64)).as_bytes());
    }
    large.extend_from_slice(b"\r\n");
    all.push(large);
    all
}

/// A server may answer and close before it has read everything; that is its right.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Option<u16> {
    let _ = stream.write_all(request); // as said
    let _ = stream.flush(); // the same
    let mut answer = Vec::new();
    let mut piece = [0_u8; ANSWER_BYTES];
    while answer.len() < ANSWER_BYTES && !answer.contains(&b'\n') {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(count) => answer.extend_from_slice(piece.get(..count).unwrap_or_default()),
        }
    }
    let line = String::from_utf8_lossy(&answer);
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

/// Those that a drill may bother: the daemon, and the backend that was named.
pub(super) fn targets(socket: &Path, base_url: Option<&str>) -> Vec<Target> {
    let backend = base_url.and_then(Target::of_url);
    std::iter::once(Target::Socket(socket.to_path_buf())).chain(backend).collect()
}
