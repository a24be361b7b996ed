//! The three services of the demo, from this binary: `upright puppet db | cache | api`.
//! Arguments, signals and log lines are here; what each service says is in its own file.
//!
//! Refuses: any address but loopback, and any knowledge of a supervisor. They are ordinary
//! services: a port, a data directory, lines on stdout, SIGTERM to end.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::demo::{backend, cache, database};

/// Most connections a puppet serves at once; the next one waits in the listen queue.
pub(super) const CONNECTIONS_MAX: usize = 256;

/// What to be, and where.
#[derive(Debug, Parser)]
#[command(name = "upright puppet", about = "A small service to practise on")]
enum Role {
    /// Speaks PostgreSQL's start-up and a line protocol; keeps rows in SQLite
    Db {
        #[arg(long)]
        port: u16,
        /// Where sessions.db lives
        #[arg(long)]
        data: PathBuf,
        /// How long it says "starting up" first, in milliseconds
        #[arg(long, default_value_t = 1_000)]
        boot_ms: u64,
    },
    /// Speaks PING, GET, SET and INCR of Redis; keeps them in memory
    Cache {
        #[arg(long)]
        port: u16,
    },
    /// The HTTP backend: needs both
    Api {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        db_port: u16,
        #[arg(long)]
        cache_port: u16,
        /// Where the journal of accepted, not yet stored sessions lives
        #[arg(long)]
        data: PathBuf,
    },
}

/// Runs one puppet until SIGTERM or SIGINT. `args` follow the word `puppet`.
/// The exit code: 0 after a signal, 1 when it could not serve, 2 for wrong arguments.
pub fn run(args: &[String]) -> i32 {
    let words = std::iter::once("upright puppet").chain(args.iter().map(String::as_str));
    let role = match Role::try_parse_from(words) {
        Ok(role) => role,
        Err(error) => {
            let _ = error.print(); // nobody is left to tell when stderr is closed
            return error.exit_code();
        }
    };
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(serve(role)));
    match ended {
        Ok(()) => 0,
        Err(error) => {
            say(&format!("ERROR {error}"));
            1
        }
    }
}

async fn serve(role: Role) -> io::Result<()> {
    let signals = signals()?;
    match role {
        Role::Db { port, data, boot_ms } => {
            let boot = Duration::from_millis(boot_ms);
            database::serve(listen(port).await?, &data, boot, signals).await
        }
        Role::Cache { port } => cache::serve(listen(port).await?, signals).await,
        Role::Api { port, db_port, cache_port, data } => {
            backend::serve(listen(port).await?, loopback(db_port), loopback(cache_port), &data, signals).await
        }
    }
}

async fn listen(port: u16) -> io::Result<TcpListener> {
    let at = loopback(port);
    let listener = TcpListener::bind(at)
        .await
        .map_err(|cause| io::Error::new(cause.kind(), format!("cannot listen on {at}: {cause}")))?;
    say(&format!("INFO listening on {}", listener.local_addr()?));
    Ok(listener)
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The next connection. Running out of fds must not end a server, nor make it spin.
pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => return stream,
            Err(cause) => {
                say(&format!("WARN cannot accept a connection: {cause}"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Numbers of the ending signals as they arrive. A thread waits for them, because tokio is
/// built here without its signal feature.
fn signals() -> io::Result<mpsc::Receiver<i32>> {
    let (sender, receiver) = mpsc::channel(8);
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if sender.blocking_send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

/// One line of log. A closed stdout is ignored: a service does not die of its log.
pub(super) fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}"); // see above
    let _ = out.flush(); // the same
}
