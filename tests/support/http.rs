//! HTTP/1.1 over a stream, as little of it as the tests need.
//!
//! Refuses: keeping a connection, and answers without an end in sight: each has a deadline.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest a plain question may take: orders wait until they are done.
const TIMEOUT: Duration = Duration::from_secs(60);

/// One question over a Unix socket: status and body.
pub fn ask(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<(u16, Vec<u8>)> {
    ask_within(socket, method, path, body, TIMEOUT)
}

/// The same, given up when nothing comes for so long.
pub fn ask_within(
    socket: &Path,
    method: &str,
    path: &str,
    body: &str,
    within: Duration,
) -> io::Result<(u16, Vec<u8>)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    converse(stream, method, path, body)
}

/// One question to 127.0.0.1.
pub fn ask_tcp(port: u16, method: &str, path: &str, body: &str) -> io::Result<(u16, Vec<u8>)> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    converse(stream, method, path, body)
}

/// Follows an event stream until `each` finds something, at most until the deadline.
pub fn follow<T>(
    socket: &Path,
    path: &str,
    deadline: Instant,
    mut each: impl FnMut(&str) -> Option<T>,
) -> io::Result<T> {
    let mut stream = UnixStream::connect(socket)?;
    let watch = stream.try_clone()?;
    send(&mut stream, "GET", path, "")?;
    let mut reader = BufReader::new(stream);
    let (status, _) = head(&mut reader)?;
    if status != 200 {
        return Err(io::Error::other(format!("HTTP {status}")));
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        watch.set_read_timeout(Some(left))?;
        // Chunk sizes and blank lines lie between the `data:` lines. A chunk may end within
        // one only if the server cuts it there; ours sends whole lines.
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(json) = line.trim_end().strip_prefix("data: ")
            && let Some(found) = each(json)
        {
            return Ok(found);
        }
    }
}

fn converse(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    body: &str,
) -> io::Result<(u16, Vec<u8>)> {
    send(&mut stream, method, path, body)?;
    let mut reader = BufReader::new(stream);
    let (status, framing) = head(&mut reader)?;
    let mut answer = Vec::new();
    match framing {
        Framing::Length(size) => {
            reader.take(size).read_to_end(&mut answer)?;
            if answer.len() as u64 != size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Framing::Chunks => chunks(&mut reader, &mut answer)?,
        Framing::ToTheEnd => {
            reader.read_to_end(&mut answer)?;
        }
    }
    Ok((status, answer))
}

fn send(stream: &mut impl Write, method: &str, path: &str, body: &str) -> io::Result<()> {
    let size = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n{body}"
    )
}

enum Framing {
    Length(u64),
    Chunks,
    ToTheEnd,
}

fn head(reader: &mut impl BufRead) -> io::Result<(u16, Framing)> {
    let broken = |line: &str| io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP: {line:?}"));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| broken(&line))?;
    let mut framing = Framing::ToTheEnd;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            return Ok((status, framing));
        }
        // A space behind the colon is usual, and chromedriver has none.
        match line.split_once(':').map(|(name, value)| (name, value.trim_start())) {
            Some(("content-length", size)) => {
                framing = Framing::Length(size.parse().map_err(|_| broken(&line))?)
            }
            Some(("transfer-encoding", "chunked")) => framing = Framing::Chunks,
            Some(_) => {}
            None => return Err(broken(&line)),
        }
    }
}

fn chunks(reader: &mut impl BufRead, answer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        reader.by_ref().take(size).read_to_end(answer)?;
        reader.read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
    }
}
