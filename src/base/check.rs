//! A check as the unit file names it, and what one run of it found.
//!
//! Refuses: running it (`probe`), and judging it (`engine`).

use std::fmt;
use std::path::PathBuf;

/// `host:port`; the host may be a name, an IPv4 or a bracketed IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    Tcp(HostPort),
    Unix(PathBuf),
}

/// One plain-text HTTP/1.1 request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpTarget {
    /// `GET` where the text gives none.
    pub method: String,
    pub at: Endpoint,
    /// What stands in the `Host` header.
    pub host: String,
    /// Path and query, beginning with `/`.
    pub path: String,
}

/// What can be asked from outside the process, without executing anything.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NetCheck {
    /// Something accepts a connection.
    Tcp(HostPort),
    /// The same on a Unix stream socket.
    Unix(PathBuf),
    /// Any 2xx answer.
    Http(HttpTarget),
    /// PostgreSQL's start-up packet is answered with anything but "starting up", "in recovery"
    /// or "shutting down" (57P01-57P03): authentication asked for means that it accepts
    /// clients, "too many clients" (53300) that it serves them.
    Postgres(Endpoint),
    /// `PING` is answered with `+PONG`, or by a server that is up and refuses us (`-NOAUTH`,
    /// `-NOPERM`, `-MISCONF`, too many clients); `-LOADING` is not ready.
    Redis(Endpoint),
}

/// What one probe saw. Good or bad is decided by the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    Ok,
    /// One line, at most 200 characters: "connection refused", "HTTP 503", …
    Failed(String),
    /// We were short of fds or memory and could not ask: nothing is known about the service.
    Short(String),
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(at) => at.fmt(f),
            Endpoint::Unix(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for NetCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetCheck::Tcp(at) => write!(f, "tcp {at}"),
            NetCheck::Unix(path) => write!(f, "unix {}", path.display()),
            NetCheck::Http(target) => write!(f, "{} http://{}{}", target.method, target.host, target.path),
            NetCheck::Postgres(at) => write!(f, "postgres {at}"),
            NetCheck::Redis(at) => write!(f, "redis {at}"),
        }
    }
}
