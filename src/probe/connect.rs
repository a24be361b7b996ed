//! Opens a connection to a TCP or Unix server.
//!
//! Refuses: more than a handful of name look-ups at a time. The resolver blocks a thread for
//! as long as it likes, also after the probe has given up.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

use crate::base::check::HostPort;
use crate::probe::cause;

/// Most look-ups under way at once; each holds one thread until the resolver lets go
/// (resolv.conf(5): up to 5 s × attempts × servers). Later ones wait inside their own timeout.
static LOOKUPS: Semaphore = Semaphore::const_new(8);

/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Connects to the first address that accepts.
pub(super) async fn tcp(at: &HostPort) -> Result<TcpStream, String> {
    let addresses = match at.host.parse() {
        Ok(ip) => vec![SocketAddr::new(ip, at.port)],
        Err(_) => look_up(at).await?,
    };
    let mut last = format!("{} has no address", at.host);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = cause(&error),
        }
    }
    Err(last)
}

pub(super) async fn unix(path: &Path) -> Result<UnixStream, String> {
    UnixStream::connect(path).await.map_err(|error| cause(&error))
}

async fn look_up(at: &HostPort) -> Result<Vec<SocketAddr>, String> {
    let refuse = |why: String| format!("cannot look up {}: {why}", at.host);
    let permit = LOOKUPS.acquire().await.map_err(|error| refuse(error.to_string()))?;
    let (host, port) = (at.host.clone(), at.port);
    let found = tokio::task::spawn_blocking(move || {
        // The permit goes with the thread, not with the probe: it is the thread that is scarce.
        let _permit = permit;
        (host.as_str(), port).to_socket_addrs().map(|found| found.take(ADDRESSES_MAX).collect())
    });
    match found.await {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(refuse(cause(&error))),
        Err(error) => Err(refuse(error.to_string())),
    }
}
