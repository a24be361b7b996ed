//! The notify socket: datagrams of sd_notify(3) and who sent them.
//!
//! Refuses: believing a sender, and losing a word. A datagram stays in the socket, which the
//! keeper holds too, until it has been dealt with: an engine that dies over it loses nothing.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::probe::notify::{self, Notice};
use crate::sys::socket::{self, Completeness, Peeked};
use crate::sys::watched::{Wake, watched};

/// Longest datagram that is read, as in systemd: what is longer is passed over as a whole.
const DATAGRAM_BYTES_MAX: usize = 4 * 1024;

/// A datagram, its sender, and what came along.
pub struct Sent {
    /// 0 = a process that cannot be seen from here.
    pub pid: i32,
    /// The sender itself, where the kernel gives it.
    pub process: Option<OwnedFd>,
    pub notice: Notice,
    /// Closed when this is dropped.
    pub fds: Vec<OwnedFd>,
    /// Whether all fds came that were sent.
    pub complete: Completeness,
}

pub struct NotifySocket {
    fd: AsyncFd<OwnedFd>,
    /// Most datagrams that can wait in it.
    waiting_max: usize,
}

impl NotifySocket {
    /// `fd`: a non-blocking datagram socket with SO_PASSCRED (`sys::socket::bind_datagram`).
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn new(fd: OwnedFd) -> io::Result<NotifySocket> {
        socket::pass_processes(&fd); // one that an older build made may be without
        let waiting_max = socket::datagrams_waiting_max();
        Ok(NotifySocket { fd: watched(fd, Wake::Data)?, waiting_max })
    }

    pub fn waiting_max(&self) -> usize {
        self.waiting_max
    }

    /// Waits until a datagram may be there. Safe to cancel.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn readable(&self) -> io::Result<()> {
        self.fd.readable().await?.retain_ready();
        Ok(())
    }

    /// The oldest datagram. It stays until `done`.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn look(&self) -> io::Result<Option<Sent>> {
        let mut bytes = [0; DATAGRAM_BYTES_MAX];
        let mut peek = |fd: &OwnedFd| {
            socket::peek(fd, &mut bytes)?.ok_or_else(|| io::Error::from(io::ErrorKind::WouldBlock))
        };
        // The runtime may not know yet of what is there, and has to know when nothing is.
        let looked = peek(self.fd.get_ref()).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock => self.fd.try_io(Interest::READABLE, &mut peek),
            _ => Err(error),
        });
        let Peeked { len, sender, process, fds, complete } = match looked {
            Ok(peeked) => peeked,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let notice = match bytes.get(..len) {
            Some(datagram) => notify::parse(datagram),
            None => {
                tracing::debug!("process {} sent {len} bytes at once: passed over", sender.pid);
                Notice::default()
            }
        };
        Ok(Some(Sent { pid: sender.pid, process, notice, fds, complete }))
    }

    /// Takes the oldest datagram out: it has been dealt with.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn done(&self) -> io::Result<()> {
        match socket::skip(self.fd.get_ref()) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
