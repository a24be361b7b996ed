//! The demo's cache: PING, GET, SET and INCR of Redis, in memory, both as arrays of bulk
//! strings and as plain lines (Redis documentation, "RESP protocol").
//!
//! Refuses: keeping anything over a restart; a cache that comes back empty is what the
//! backend has to live with.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::LocalSet;

use crate::demo::puppet::{CONNECTIONS_MAX, accept, say};

/// Longest header or inline line, words in a command, bytes in a word, keys in all.
const LINE_BYTES_MAX: u64 = 16 * 1024;
const WORDS_MAX: usize = 16;
const WORD_BYTES_MAX: usize = 64 * 1024;
const KEYS_MAX: usize = 10_000;

type Keys = Rc<RefCell<BTreeMap<Vec<u8>, Vec<u8>>>>;

/// Serves until a signal arrives.
///
/// # Errors
/// None so far; the signature is that of its neighbours.
pub(super) async fn serve(listener: TcpListener, mut signals: mpsc::Receiver<i32>) -> io::Result<()> {
    let keys = Keys::default();
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepting = async {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let stream = accept(&listener).await;
            let keys = Rc::clone(&keys);
            tokio::task::spawn_local(async move {
                let _ = converse(stream, &keys).await; // the peer left: its own affair
                drop(slot);
            });
        }
    };
    say("INFO ready to accept connections");
    LocalSet::new()
        .run_until(async {
            tokio::select! {
                () = accepting => {}
                _ = signals.recv() => {}
            }
        })
        .await;
    say(&format!("INFO shutting down, {} keys are forgotten", keys.borrow().len()));
    Ok(())
}

async fn converse(stream: TcpStream, keys: &Keys) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read);
    loop {
        match command(&mut reader).await? {
            Asked::Nothing => return Ok(()),
            Asked::Nonsense(why) => return write.write_all(format!("-ERR {why}\r\n").as_bytes()).await,
            Asked::Command(words) if words.is_empty() => {}
            Asked::Command(words) => write.write_all(&answer(&words, keys)).await?,
        }
    }
}

enum Asked {
    /// The peer has closed.
    Nothing,
    Command(Vec<Vec<u8>>),
    /// Answered once, then hung up on: after a broken frame nothing can be trusted.
    Nonsense(&'static str),
}

async fn command(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Asked> {
    let line = line(reader).await?;
    let Some(header) = line.strip_suffix(b"\n") else {
        return Ok(if line.is_empty() { Asked::Nothing } else { Asked::Nonsense("Protocol error: line") });
    };
    let header = header.trim_ascii_end();
    let Some(count) = header.strip_prefix(b"*") else {
        let words = header.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        return Ok(Asked::Command(words.map(<[u8]>::to_vec).collect()));
    };
    let Some(count) = number(count).filter(|count| *count <= WORDS_MAX) else {
        return Ok(Asked::Nonsense("Protocol error: invalid multibulk length"));
    };
    let mut words = Vec::with_capacity(count);
    for _ in 0..count {
        let header = self::line(reader).await?;
        let size = header.trim_ascii_end().strip_prefix(b"$").and_then(number);
        let Some(size) = size.filter(|size| *size <= WORD_BYTES_MAX) else {
            return Ok(Asked::Nonsense("Protocol error: invalid bulk length"));
        };
        let mut word = vec![0; size + 2];
        reader.read_exact(&mut word).await?;
        word.truncate(size);
        words.push(word);
    }
    Ok(Asked::Command(words))
}

async fn line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
    Ok(line)
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn answer(words: &[Vec<u8>], keys: &Keys) -> Vec<u8> {
    let verb = words[0].to_ascii_uppercase();
    let mut keys = keys.borrow_mut();
    match (verb.as_slice(), &words[1..]) {
        (b"PING", []) => b"+PONG\r\n".to_vec(),
        (b"PING", [text]) => bulk(text),
        (b"GET", [key]) => keys.get(key).map_or_else(|| b"$-1\r\n".to_vec(), |value| bulk(value)),
        (b"SET" | b"INCR", [key, ..]) if keys.len() >= KEYS_MAX && !keys.contains_key(key) => {
            b"-OOM this cache of the demo is full\r\n".to_vec()
        }
        (b"SET", [key, value]) => {
            keys.insert(key.clone(), value.clone());
            b"+OK\r\n".to_vec()
        }
        (b"INCR", [key]) => {
            let old =
                keys.get(key).map_or(Some(0), |value| std::str::from_utf8(value).ok()?.parse::<i64>().ok());
            let Some(new) = old.and_then(|old| old.checked_add(1)) else {
                return b"-ERR value is not an integer or out of range\r\n".to_vec();
            };
            keys.insert(key.clone(), new.to_string().into_bytes());
            format!(":{new}\r\n").into_bytes()
        }
        _ => b"-ERR unknown command; this cache of the demo knows PING, GET, SET and INCR\r\n".to_vec(),
    }
}

fn bulk(text: &[u8]) -> Vec<u8> {
    let mut answer = format!("${}\r\n", text.len()).into_bytes();
    answer.extend_from_slice(text);
    answer.extend_from_slice(b"\r\n");
    answer
}
