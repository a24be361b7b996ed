//! The TCP addresses: opened and closed as the configuration says, while everything runs.
//!
//! Refuses: ending because an address cannot be had. That is told, and tried again.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::api::call::{Answer, Call, Peer, Proof};
use crate::api::rules::Rules;
use crate::api::server::{Crowd, Limits, Line};

/// How long an address that cannot be had is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;

/// Whose slot it is: nobody's in particular.
const NOBODY: u32 = u32::MAX;

/// Where to listen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub listen: Vec<SocketAddr>,
    /// Counts the tokens: with another one, those that came with the old one are hung up on.
    pub token_number: u64,
}

/// Listens where `settings` says until `stop`; then takes leave as the Unix socket does. `on_trouble` is told of the addresses that cannot be had, whenever that changes.
pub async fn serve<F, Fut>(
    mut settings: watch::Receiver<Settings>,
    rules: Arc<Rules>,
    limits: Limits,
    stop: impl Future<Output = ()>,
    on_trouble: impl Fn(BTreeMap<SocketAddr, String>),
    handler: F,
) where
    F: Fn(Peer, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    tokio::pin!(stop);
    let mut crowd = Crowd::new(limits, limits.tcp_connections_max, 0);
    let mut ears = Ears::default();
    let mut token_number = settings.borrow().token_number;
    loop {
        let wanted = settings.borrow_and_update().clone();
        if std::mem::replace(&mut token_number, wanted.token_number) != wanted.token_number {
            crowd.end_all();
        }
        if ears.open(&wanted.listen) {
            on_trouble(ears.troubles.clone());
        }
        tokio::select! {
            () = &mut stop => {
                drop(ears);
                return crowd.take_leave().await;
            }
            Ok(()) = settings.changed() => {}
            () = tokio::time::sleep(RETRY), if !ears.troubles.is_empty() => {}
            accepted = ears.accept() => match accepted {
                Ok((stream, from)) => {
                    let _ = stream.set_nodelay(true); // slower, that is all
                    if let Ok(own) = stream.local_addr() {
                        let peer = Peer::Remote { from, proof: Proof::Nothing };
                        let shared = crowd.shared(peer, Some(own), &rules);
                        crowd.admit(NOBODY, Line::Tcp(stream), shared, handler.clone());
                    }
                }
                // As on the Unix socket.
                Err(_) => tokio::time::sleep(limits.accept_pause).await,
            },
            () = crowd.let_go() => {}
        }
    }
}

/// The listeners.
#[derive(Default)]
struct Ears {
    open: BTreeMap<SocketAddr, TcpListener>,
    troubles: BTreeMap<SocketAddr, String>,
    /// Who is asked first next time, so that a busy address starves none.
    first: usize,
}

impl Ears {
    /// Opens and closes what differs; whether the troubles are others now.
    fn open(&mut self, wanted: &[SocketAddr]) -> bool {
        self.open.retain(|at, _| wanted.contains(at));
        let mut troubles = BTreeMap::new();
        for at in wanted {
            if self.open.contains_key(at) {
                continue;
            }
            match listen(*at) {
                Ok(listener) => _ = self.open.insert(*at, listener),
                Err(error) => _ = troubles.insert(*at, error.to_string()),
            }
        }
        let changed = troubles != self.troubles;
        self.troubles = troubles;
        changed
    }

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.first = self.first.wrapping_add(1);
        let (open, first) = (&self.open, self.first);
        poll_fn(|cx| {
            let count = open.len().max(1);
            for listener in open.values().cycle().skip(first % count).take(open.len()) {
                if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
    }
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A connection of the engine before us that is still closing does not keep us out.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}
