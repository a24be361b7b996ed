//! Redis: an inline `PING` and the first line that answers it (Redis protocol specification).
//!
//! Refuses: passwords. A server that asks for one is up.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::probe::cause;

/// Longest first line, in bytes; Redis cuts its own errors far below.
const LINE_BYTES_MAX: usize = 1024;

const STRANGE: &str = "the answer is not Redis's";

/// Errors of a server that is up and answers: a password is asked for, the nameless user may
/// not ping, all places are taken; and MISCONF, its data set cannot be saved: then a restart is
/// what would lose it.
const ANSWERS: [&str; 4] = ["-NOAUTH", "-NOPERM", "-ERR max number of clients reached", "-MISCONF"];

pub(super) async fn ask<S>(mut stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // A server that refuses at once may have closed before our PING: its words count more.
    let sent = stream.write_all(b"PING\r\n").await;
    let mut line = Vec::new();
    let mut chunk = [0; LINE_BYTES_MAX];
    while !line.contains(&b'\n') {
        if line.len() >= LINE_BYTES_MAX {
            return Err(STRANGE.to_string());
        }
        match stream.read(&mut chunk).await {
            Ok(0) if line.is_empty() => return Err("the connection was closed".to_string()),
            Ok(0) => break,
            Ok(size) => line.extend_from_slice(&chunk[..size]),
            Err(error) => return Err(cause(&sent.err().unwrap_or(error))),
        }
    }
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    judge(String::from_utf8_lossy(line).trim_end())
}

fn judge(line: &str) -> Result<(), String> {
    if line == "+PONG" || ANSWERS.iter().any(|answer| line.starts_with(answer)) {
        return Ok(());
    }
    match line.strip_prefix('-') {
        Some("") | None => Err(STRANGE.to_string()),
        Some(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_passed_on_unless_it_shows_a_live_server() {
        for ready in [
            "+PONG",
            "-NOAUTH Authentication required.",
            "-NOPERM this user has no permissions",
            "-MISCONF Errors writing to the RDB file",
        ] {
            assert_eq!(judge(ready), Ok(()), "{ready}");
        }
        let loading = "-LOADING Redis is loading the dataset in memory";
        assert_eq!(judge(loading), Err(loading[1..].to_string()));
        for bad in ["-MASTERDOWN Link with MASTER is down", "", "+OK", "HTTP/1.1 400 Bad Request"] {
            assert!(judge(bad).is_err(), "{bad}");
        }
    }
}
