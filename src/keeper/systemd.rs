//! What the keeper tells whoever started it, as sd_notify(3) has it: READY=1, WATCHDOG=1 only while
//! the engine answers, STOPPING=1.
//!
//! Refuses: waiting, and failing. A manager that does not listen is no trouble of the services.

use std::env;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use nix::sys::socket::UnixAddr;

use crate::base::time::Monotonic;
use crate::sys::socket;

/// Variables that are meant for us alone: neither the engine nor a service may take itself for the
/// process that the manager watches.
pub const OWN_VARIABLES: [&str; 6] =
    [NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG_USEC: &str = "WATCHDOG_USEC";
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// The manager, if there is one.
pub struct Systemd {
    line: Option<Line>,
    /// How often it wants to hear WATCHDOG=1 at least.
    watchdog: Option<Duration>,
    fed: Monotonic,
    said_ready: bool,
}

struct Line {
    address: UnixAddr,
    /// None: it could not be connected; each word tries again.
    socket: Option<OwnedFd>,
}

impl Systemd {
    /// The manager that our environment names: a path, or `@name` in the abstract namespace.
    pub fn of_process() -> Systemd {
        let address = env::var_os(NOTIFY_SOCKET).and_then(|name| address(name.into_vec()));
        let line = address.map(|address| Line { address, socket: socket::connect_datagram(&address).ok() });
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        // Inherited from somebody else's service, it is not about us.
        let ours = env::var_os(WATCHDOG_PID).is_none()
            || number(WATCHDOG_PID) == Some(u64::from(std::process::id()));
        let watchdog = number(WATCHDOG_USEC).filter(|usec| ours && *usec > 0).map(Duration::from_micros);
        let watchdog = watchdog.filter(|_| line.is_some());
        Systemd { line, watchdog, fed: Monotonic::ZERO, said_ready: false }
    }

    /// How often the engine has to say that it lives, so that we may say it in time: half of what
    /// is wanted, as sd_watchdog_enabled(3) recommends.
    pub fn feeding(&self) -> Option<Duration> {
        self.watchdog.map(|every| every / 2)
    }

    /// The first engine runs.
    pub fn ready(&mut self) {
        if !self.said_ready {
            self.said_ready = true;
            self.send(b"READY=1", &[]);
        }
    }

    /// The engine has just shown that it lives.
    pub fn feed(&mut self, now: Monotonic) {
        let Some(every) = self.watchdog else { return };
        // Also when much is asked: a few words each period are enough.
        if now >= self.fed + every / 8 {
            self.fed = now;
            self.send(b"WATCHDOG=1", &[]);
        }
    }

    pub fn stopping(&mut self) {
        self.send(b"STOPPING=1", &[]);
    }

    /// One datagram of assignments, with fds beside it. False: it did not arrive.
    pub fn send(&mut self, words: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let Some(line) = &mut self.line else { return false };
        if line.socket.as_ref().is_some_and(|socket| socket::send(socket, words, fds).is_ok()) {
            return true;
        }
        // It was made anew, or was not there yet.
        line.socket = socket::connect_datagram(&line.address).ok();
        line.socket.as_ref().is_some_and(|socket| socket::send(socket, words, fds).is_ok())
    }
}

fn address(name: Vec<u8>) -> Option<UnixAddr> {
    match name.split_first() {
        Some((b'@', rest)) => UnixAddr::new_abstract(rest).ok(),
        Some((b'/', _)) => UnixAddr::new(std::ffi::OsStr::from_bytes(&name)).ok(),
        Some(_) | None => None, // vsock and the like
    }
}
