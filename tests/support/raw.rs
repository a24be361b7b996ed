//! Requests as bytes, right or wrong, and whatever comes back.
//!
//! Refuses: knowing what HTTP allows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    /// In small letters.
    pub head: String,
    pub body: String,
}

impl Reply {
    /// What is in these bytes, if it is an answer.
    pub fn parse(bytes: &[u8]) -> Option<Reply> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        Some(Reply { status, head: head.to_ascii_lowercase(), body: body.to_string() })
    }

    /// The stable code of an error.
    pub fn code(&self) -> String {
        let reply: Value = serde_json::from_str(&self.body).unwrap_or(Value::Null);
        reply["error"]["code"].as_str().unwrap_or("").to_string()
    }
}

/// A whole request; `lines` are added to its head.
pub fn request(method: &str, path: &str, lines: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
    for (name, value) in lines {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    format!("{head}\r\n{body}").into_bytes()
}

/// Sends bytes and reads to the end of what comes.
pub fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> Option<Reply> {
    let _ = stream.write_all(bytes); // it may have hung up already, with an answer
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // a reset after the answer is no loss
    Reply::parse(&answer)
}

pub fn tcp(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the port answers");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}
