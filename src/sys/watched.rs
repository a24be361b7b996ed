//! An fd that the engine's runtime watches.
//!
//! Refuses: fds that somebody else may close.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What to be woken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Bytes to read, room to write.
    Data,
    /// POLLPRI: a kernel file such as `cgroup.events` has changed.
    Change,
}

/// Registers `fd` with the runtime that this is called in; it is closed on drop.
///
/// # Errors
/// ENOSPC, ENOMEM; EPERM for a file that cannot be polled.
pub fn watched(fd: OwnedFd, wake: Wake) -> io::Result<AsyncFd<OwnedFd>> {
    watched_or_back(fd, wake).map_err(|(_, error)| error)
}

/// The same; an fd that cannot be registered now is given back, to be tried again.
///
/// # Errors
/// As `watched`.
pub fn watched_or_back(fd: OwnedFd, wake: Wake) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    let interest = match wake {
        Wake::Data => Interest::READABLE | Interest::WRITABLE,
        Wake::Change => Interest::PRIORITY,
    };
    // SAFETY: an `OwnedFd` names the same open fd until it is dropped, and `AsyncFd` takes it
    // out of epoll before it drops it.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|refused| refused.into_parts())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pipe;

    #[tokio::test]
    async fn bytes_wake() {
        let (read, write) = pipe::pair().expect("pipe");
        let read = watched(read, Wake::Data).expect("watched");
        nix::unistd::write(&write, b"x").expect("writes");
        read.readable().await.expect("readable").clear_ready();
    }
}
