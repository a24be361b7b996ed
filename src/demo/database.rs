//! The demo's database: PostgreSQL's start-up on the wire, a line protocol for the rows,
//! SQLite below. The first byte of a connection tells the two apart: a start-up packet
//! begins with the high byte of its length, which is 0; a line begins with a letter.
//!
//! Refuses: SQL. Whoever gets past the start-up is told so.
//!
//! Lines: `PING` → `OK`; `PUT <id> <text>` → `OK new` or `OK known`; `COUNT` → `OK <n>`;
//! anything else, and everything while it boots → `ERR <why>`.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::LocalSet;

use crate::demo::puppet::{CONNECTIONS_MAX, accept, say};

/// Longest line, in bytes: an id and one chat message.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// Longest start-up packet PostgreSQL itself accepts (`MAX_STARTUP_PACKET_LENGTH`).
const STARTUP_BYTES_MAX: usize = 10_000;

/// `SSLRequest` and `GSSENCRequest`, in the place of the protocol version
/// (PostgreSQL documentation, "Message Formats").
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Booting,
    Open,
}

struct Database {
    rows: Connection,
    phase: Cell<Phase>,
}

/// Serves until a signal arrives, then closes the file.
///
/// # Errors
/// When the data directory cannot be used.
pub(super) async fn serve(
    listener: TcpListener,
    data: &Path,
    boot: Duration,
    mut signals: mpsc::Receiver<i32>,
) -> io::Result<()> {
    let rows = open(data)?;
    let database = Rc::new(Database { rows, phase: Cell::new(Phase::Booting) });
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = LocalSet::new();
    let booting = Rc::clone(&database);
    connections.spawn_local(async move {
        tokio::time::sleep(boot).await;
        booting.phase.set(Phase::Open);
        say("INFO database system is ready to accept connections");
    });
    let accepting = async {
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let stream = accept(&listener).await;
            let database = Rc::clone(&database);
            tokio::task::spawn_local(async move {
                let _ = database.converse(stream).await; // the peer left: its own affair
                drop(slot);
            });
        }
    };
    connections
        .run_until(async {
            tokio::select! {
                () = accepting => {}
                _ = signals.recv() => {}
            }
        })
        .await;
    say("INFO received a request to shut down, closing the data file");
    Ok(())
}

fn open(data: &Path) -> io::Result<Connection> {
    std::fs::create_dir_all(data)?;
    let file = data.join("sessions.db");
    let connection = Connection::open(&file).and_then(|connection| {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute(
            "CREATE TABLE IF NOT EXISTS session (
                 id TEXT PRIMARY KEY, body TEXT NOT NULL,
                 at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))) STRICT",
            [],
        )?;
        Ok(connection)
    });
    connection.map_err(|cause| io::Error::other(format!("cannot open {}: {cause}", file.display())))
}

impl Database {
    async fn converse(&self, stream: TcpStream) -> io::Result<()> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Ok(());
        }
        if first[0] == 0 { self.start_up(stream).await } else { self.lines(stream).await }
    }

    /// PostgreSQL's start-up, as far as a client without a password gets.
    async fn start_up(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let size = stream.read_u32().await? as usize;
            if !(8..=STARTUP_BYTES_MAX).contains(&size) {
                return Ok(());
            }
            let mut packet = vec![0; size - 4];
            stream.read_exact(&mut packet).await?;
            let version = u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]);
            if version != SSL_REQUEST && version != GSS_REQUEST {
                break;
            }
            stream.write_all(b"N").await?;
        }
        if self.phase.get() == Phase::Booting {
            return stream
                .write_all(&error_packet("FATAL", "57P03", "the database system is starting up"))
                .await;
        }
        // AuthenticationOk, then ReadyForQuery (idle).
        stream.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await?;
        loop {
            let kind = stream.read_u8().await?;
            let size = stream.read_u32().await? as usize;
            if kind == b'X' || !(4..=LINE_BYTES_MAX as usize).contains(&size) {
                return Ok(());
            }
            let mut packet = vec![0; size - 4];
            stream.read_exact(&mut packet).await?;
            let why = "this database of the demo speaks no SQL; its line protocol is on the same port";
            stream.write_all(&error_packet("ERROR", "0A000", why)).await?;
            stream.write_all(b"Z\0\0\0\x05I").await?;
        }
    }

    async fn lines(&self, stream: TcpStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut reader = BufReader::new(read);
        loop {
            let mut line = String::new();
            let size = (&mut reader).take(LINE_BYTES_MAX).read_line(&mut line).await?;
            if size == 0 {
                return Ok(());
            }
            if !line.ends_with('\n') {
                return write.write_all(b"ERR the line is cut short or too long\n").await;
            }
            let answer = self.answer(line.trim_end());
            write.write_all(format!("{answer}\n").as_bytes()).await?;
        }
    }

    /// One commit is one fsync, on the only thread: what a database this small can afford.
    fn answer(&self, line: &str) -> String {
        if self.phase.get() == Phase::Booting {
            return "ERR the database system is starting up".into();
        }
        let mut words = line.splitn(3, ' ');
        let answer = match (words.next(), words.next(), words.next()) {
            (Some("PING"), None, None) => return "OK".into(),
            (Some("COUNT"), None, None) => self
                .rows
                .query_row("SELECT count(*) FROM session", [], |row| row.get::<_, i64>(0))
                .map(|count| format!("OK {count}")),
            (Some("PUT"), Some(id), Some(body)) => self
                .rows
                .execute("INSERT OR IGNORE INTO session (id, body) VALUES (?1, ?2)", [id, body])
                .map(|rows| if rows == 1 { "OK new".into() } else { "OK known".into() }),
            _ => return "ERR say PING, COUNT or PUT <id> <text>".into(),
        };
        answer.unwrap_or_else(|cause| {
            say(&format!("ERROR cannot execute a statement: {cause}"));
            format!("ERR {cause}")
        })
    }
}

/// `ErrorResponse`: severity twice (localized and not), SQLSTATE, message.
fn error_packet(severity: &str, sqlstate: &str, message: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, value) in [(b'S', severity), (b'V', severity), (b'C', sqlstate), (b'M', message)] {
        body.push(field);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    let size = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let mut packet = vec![b'E'];
    packet.extend_from_slice(&size.to_be_bytes());
    packet.extend_from_slice(&body);
    packet
}
