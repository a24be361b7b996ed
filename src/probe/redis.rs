//! Redis: an inline `PING` and the first line that answers it (Redis protocol specification).
//!
//! Refuses: passwords. A server that asks for one is up.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::probe::cause;

/// Longest first line, in bytes; Redis cuts its own errors far below.
const LINE_BYTES_MAX: usize = 1024;

/// Errors of a server that is up and answers: a password is asked for, the nameless user may
/// not ping, all places are taken.
const ANSWERS: [&str; 3] = ["-NOAUTH", "-NOPERM", "-ERR max number of clients reached"];

pub(super) async fn ask<S>(mut stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A server that refuses at once may have closed before our PING: its words count more.
    let sent = stream.write_all(b"PING\r\n").await;
    let mut line = Vec::with_capacity(64);
    while !line.ends_with(b"\n") {
        if line.len() >= LINE_BYTES_MAX {
            return Err("the answer is not Redis's".to_string());
        }
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if line.is_empty() => return Err(cause(&sent.err().unwrap_or(error))),
            Err(_) => break,
        }
    }
    judge(String::from_utf8_lossy(&line).trim_end())
}

fn judge(line: &str) -> Result<(), String> {
    if line == "+PONG" || ANSWERS.iter().any(|answer| line.starts_with(answer)) {
        return Ok(());
    }
    match line.strip_prefix('-') {
        Some(error) => Err(error.to_string()),
        None => Err("the answer is not Redis's".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_passed_on_unless_it_shows_a_live_server() {
        for ready in ["+PONG", "-NOAUTH Authentication required.", "-NOPERM this user has no permissions"] {
            assert_eq!(judge(ready), Ok(()), "{ready}");
        }
        let loading = "-LOADING Redis is loading the dataset in memory";
        assert_eq!(judge(loading), Err(loading[1..].to_string()));
        for bad in ["-MASTERDOWN Link with MASTER is down", "", "+OK", "HTTP/1.1 400 Bad Request"] {
            assert!(judge(bad).is_err(), "{bad}");
        }
    }
}
