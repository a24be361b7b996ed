//! Opens a connection to a TCP or Unix server.
//!
//! Refuses: more than a handful of name look-ups at a time, and two of one name. The resolver
//! blocks a thread for as long as it likes, also after the probe has given up.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

use crate::base::check::HostPort;
use crate::probe::{Trouble, cause};
use crate::sys::threads::aside;

/// Most look-ups under way at once; each holds one thread until the resolver lets go
/// (resolv.conf(5): up to 5 s × attempts × servers). Later ones wait inside their own timeout.
static LOOKUPS: Semaphore = Semaphore::const_new(16);

/// Names that are looked up now, one place each: a name that the resolver hangs on holds one
/// thread, and names that it knows (`/etc/hosts`) are not held up by it.
static NAMES: Mutex<BTreeMap<String, Arc<Semaphore>>> = Mutex::new(BTreeMap::new());

/// Most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// A Unix server whose queue is full refuses at once, where a TCP one keeps us waiting: it is
/// asked again after this long, within the probe's timeout.
const QUEUE_FULL_RETRY: Duration = Duration::from_millis(10);

/// Connects to the first address that accepts.
pub(super) async fn tcp(at: &HostPort) -> Result<TcpStream, Trouble> {
    let mut last = Trouble::Theirs(format!("{} has no address", at.host));
    for address in addresses(at).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = blamed(&error),
        }
    }
    Err(last)
}

pub(super) async fn unix(path: &Path) -> Result<UnixStream, Trouble> {
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                tokio::time::sleep(QUEUE_FULL_RETRY).await;
            }
            Err(error) => return Err(blamed(&error)),
        }
    }
}

/// Being out of fds or memory says nothing about the server.
fn blamed(error: &std::io::Error) -> Trouble {
    let text = cause(error);
    // ENOSPC: `fs.epoll.max_user_watches` (epoll_ctl(2)).
    let short = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS, Errno::ENOSPC];
    match error.raw_os_error().map(Errno::from_raw) {
        Some(errno) if short.contains(&errno) => Trouble::Ours(text),
        Some(_) | None => Trouble::Theirs(text),
    }
}

pub(super) async fn addresses(at: &HostPort) -> Result<Vec<SocketAddr>, Trouble> {
    if let Ok(ip) = at.host.parse() {
        return Ok(vec![SocketAddr::new(ip, at.port)]);
    }
    if at.host.eq_ignore_ascii_case("localhost") {
        // RFC 6761, 6.3: always loopback. So the commonest name needs no resolver.
        return Ok(vec![(Ipv6Addr::LOCALHOST, at.port).into(), (Ipv4Addr::LOCALHOST, at.port).into()]);
    }
    look_up(at).await
}

async fn look_up(at: &HostPort) -> Result<Vec<SocketAddr>, Trouble> {
    let refuse = |why: String| Trouble::Theirs(format!("cannot look up {}: {why}", at.host));
    let name = place_of(&at.host);
    let of_name = name.acquire_owned().await.map_err(|error| refuse(error.to_string()))?;
    let permit = LOOKUPS.acquire().await.map_err(|error| refuse(error.to_string()))?;
    let (host, port) = (at.host.clone(), at.port);
    let begun = aside("resolver", move || {
        // The permits go with the thread, not with the probe: it is the thread that is scarce.
        let _permits = (of_name, permit);
        (host.as_str(), port).to_socket_addrs().map(|found| found.take(ADDRESSES_MAX).collect())
    });
    let found =
        begun.map_err(|error| Trouble::Ours(format!("no thread for a look-up: {}", cause(&error))))?;
    match found.await {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(match blamed(&error) {
            Trouble::Ours(text) => Trouble::Ours(text),
            Trouble::Theirs(text) => refuse(text),
        }),
        Err(error) => Err(refuse(error.to_string())),
    }
}

/// The place of a name; places that nobody holds are dropped on the way.
fn place_of(host: &str) -> Arc<Semaphore> {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.retain(|_, place| Arc::strong_count(place) > 1);
    Arc::clone(names.entry(host.to_string()).or_insert_with(|| Arc::new(Semaphore::new(1))))
}
