//! The notify socket: datagrams of sd_notify(3) and who sent them.
//!
//! Refuses: believing a sender: its pid must be in the unit it speaks for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

use crate::probe::notify::{self, Notice};
use crate::sys::socket;
use crate::sys::watched::{Wake, watched};

/// Longest datagram read. systemd takes 4 KiB; what is longer is cut there.
const DATAGRAM_BYTES_MAX: usize = 4 * 1024;

/// Most datagrams taken in one go: a flooding service must not hold up the loop.
const DATAGRAMS_PER_TURN: usize = 64;

/// A notice and the pid that sent it.
pub struct Sent {
    pub pid: i32,
    pub notice: Notice,
}

pub struct NotifySocket(AsyncFd<OwnedFd>);

impl NotifySocket {
    /// `fd`: a non-blocking datagram socket with SO_PASSCRED (`sys::socket::bind_datagram`).
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn new(fd: OwnedFd) -> io::Result<NotifySocket> {
        Ok(NotifySocket(watched(fd, Wake::Data)?))
    }

    /// Waits for datagrams and takes those that are there. Safe to cancel.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn take(&self) -> io::Result<Vec<Sent>> {
        let mut ready = self.0.readable().await?;
        let mut taken = Vec::new();
        let mut bytes = [0; DATAGRAM_BYTES_MAX];
        while taken.len() < DATAGRAMS_PER_TURN {
            match socket::recv_with_credentials(&self.0, &mut bytes) {
                Ok(Some((len, sender))) => {
                    taken.push(Sent { pid: sender.pid, notice: notify::parse(&bytes[..len]) });
                }
                Ok(None) => {
                    ready.clear_ready();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }
}
