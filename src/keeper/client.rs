//! The engine's end of the talk with the keeper.
//!
//! Refuses: waiting, but for the one attach at the start; and dropping a request in silence.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::keeper::codec::{CodecError, Encoded, MESSAGE_BYTES_MAX, decode_news, encode_request};
use crate::keeper::wire::{ENGINE_SOCKET_FD, EngineEnd, News, Request, Stage, TableRow, UpgradeNews};
use crate::sys::{clock, pipe, process, socket};

/// Most requests that wait for the socket: every run of a full table signalled and released.
const WAITING_MAX: usize = 65_536;

/// How long the keeper may take to tell its table; it takes milliseconds.
const ATTACH_MAX: Duration = Duration::from_secs(10);

/// The talk with the keeper. Register `as_fd` for reading always, for writing while
/// `wants_write`.
pub struct Client {
    socket: OwnedFd,
    waiting: VecDeque<Encoded>,
    /// Told before the table was asked for; given out first.
    early: VecDeque<News>,
    /// The kernel had no memory for a message, or too many fds are in flight: no readiness will
    /// tell when it has.
    short: bool,
}

/// What the keeper knew when this engine came.
#[derive(Debug)]
pub struct Attached {
    pub keeper_pid: i32,
    /// 1 = the first engine of this keeper.
    pub engine_starts: u32,
    /// When the keeper started.
    pub started_at: Monotonic,
    /// How the last engines ended, oldest first; none from a keeper of an older build.
    pub ends: Vec<EngineEnd>,
    pub rows: Vec<TableRow>,
    /// (name, fd) of `Request::Hold`.
    pub held: Vec<(Vec<u8>, OwnedFd)>,
    /// The keeper was told to end before this engine came. The signal follows as news, too.
    pub to_end: bool,
    /// The newest upgrade, if there was one.
    pub upgrade: Option<UpgradeNews>,
}

impl Client {
    /// Takes the socket that the keeper left on fd 3. Once per process: the fd is owned here.
    ///
    /// # Errors
    /// NotConnected when fd 3 is no socket to a keeper.
    pub fn connect_inherited() -> io::Result<Client> {
        let socket = process::inherited_socket(ENGINE_SOCKET_FD)?;
        Client::over(socket)
    }

    /// Talks over this end of a seqpacket pair.
    ///
    /// # Errors
    /// As fcntl(2).
    pub fn over(socket: OwnedFd) -> io::Result<Client> {
        pipe::set_nonblocking(&socket)?;
        Ok(Client { socket, waiting: VecDeque::new(), early: VecDeque::new(), short: false })
    }

    /// Says hello and takes the table over. Waits at most 10 s; the only call that waits.
    ///
    /// # Errors
    /// TimedOut; UnexpectedEof when the keeper is gone; InvalidData when it speaks otherwise.
    pub fn attach(&mut self) -> io::Result<Attached> {
        // First of all: a keeper that knows the word tells such an engine more.
        self.send(Request::Alive { stage: Stage::Beginning })?;
        self.send(Request::Hello)?;
        let deadline = clock::monotonic() + ATTACH_MAX;
        let mut attached = None;
        loop {
            let Some(news) = self.recv_told()? else {
                self.wait(deadline)?;
                continue;
            };
            match (news, &mut attached) {
                (News::Welcome { keeper_pid, engine_starts, started_at }, attached) => {
                    *attached = Some(Attached {
                        keeper_pid,
                        engine_starts,
                        started_at,
                        ends: Vec::new(),
                        rows: Vec::new(),
                        held: Vec::new(),
                        to_end: false,
                        upgrade: None,
                    });
                }
                (News::EngineEnded(end), Some(attached)) => attached.ends.push(end),
                (News::Row(row), Some(attached)) => attached.rows.push(row),
                (News::Held { name, fd }, Some(attached)) => attached.held.push((name, fd)),
                (News::Upgrade(news), Some(attached)) => attached.upgrade = Some(news),
                (News::TableEnd, Some(_)) => break,
                (early @ News::Signalled { signal }, Some(attached)) => {
                    attached.to_end |= [Signal::TERM, Signal::INT, Signal::QUIT].contains(&signal);
                    self.early.push_back(early);
                }
                // On a socket that an earlier image of this engine used before exec.
                (
                    News::Spawned { .. }
                    | News::Executed { .. }
                    | News::Main { .. }
                    | News::Exited { .. }
                    | News::Ping,
                    None,
                ) => {}
                (early @ (News::SpawnShort { .. } | News::OrphanReaped | News::Signalled { .. }), None) => {
                    self.early.push_back(early);
                }
                (
                    News::Row(_)
                    | News::Held { .. }
                    | News::TableEnd
                    | News::Spawned { .. }
                    | News::SpawnShort { .. }
                    | News::Executed { .. }
                    | News::Main { .. }
                    | News::Exited { .. }
                    | News::EngineEnded(_)
                    | News::Ping
                    | News::OrphanReaped
                    | News::Upgrade(_),
                    _,
                ) => return Err(invalid("the keeper told something else than its table")),
            }
        }
        attached.ok_or_else(|| invalid("the keeper did not say what it is"))
    }

    /// Sends the request, or keeps it until `flush` when the socket is full; order is kept.
    ///
    /// # Errors
    /// InvalidInput for an oversized tag or fd list; BrokenPipe when the keeper is gone;
    /// QuotaExceeded when 65,536 requests wait: nothing was sent or kept then.
    pub fn send(&mut self, request: Request) -> io::Result<()> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "the keeper does not take its requests",
            ));
        }
        self.waiting.push_back(encode_request(request)?);
        self.flush()
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// BrokenPipe when the keeper is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        self.short = false;
        while let Some(next) = self.waiting.front() {
            let fds: Vec<BorrowedFd<'_>> = next.fds.iter().map(AsFd::as_fd).collect();
            match socket::send(&self.socket, next.body.as_slice(), &fds) {
                Ok(()) => {
                    drop(fds);
                    self.waiting.pop_front();
                }
                // Kept in order, as behind a full socket: refused and sent later would be two answers.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || socket::is_short(&error) => {
                    self.short = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Call `recv` again soon, whatever the socket says.
    pub fn is_short(&self) -> bool {
        self.short
    }

    /// Something waits for the socket to become writable.
    pub fn wants_write(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next news; None when there is none now. Sends what waits on the way.
    ///
    /// # Errors
    /// UnexpectedEof when the keeper is gone; InvalidData for what cannot be understood.
    pub fn recv(&mut self) -> io::Result<Option<News>> {
        match self.early.pop_front() {
            Some(news) => Ok(Some(news)),
            None => self.recv_told(),
        }
    }

    fn recv_told(&mut self) -> io::Result<Option<News>> {
        self.flush()?;
        loop {
            match self.recv_one() {
                // A word of a newer keeper that it does not wait to see obeyed.
                Err(Unheard::Unknown) => {}
                Err(Unheard::Broken(error)) => return Err(error),
                Ok(news) => return Ok(news),
            }
        }
    }

    fn recv_one(&mut self) -> Result<Option<News>, Unheard> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut fds = Vec::new();
        let received = match socket::recv(&self.socket, &mut bytes, &mut fds) {
            Ok(got) if got.len == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => match decode_news(bytes.get(..got.len).unwrap_or(&[]), fds) {
                Ok(news) => Ok(Some(news)),
                Err(CodecError::Kind(_)) => return Err(Unheard::Unknown),
                Err(error) => Err(invalid(&error.to_string())),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if socket::is_short(&error) => {
                self.short = true;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Err(error) => Err(error),
        };
        received.map_err(Unheard::Broken)
    }

    /// Waits for the keeper until `deadline`, which also threads and tests may use.
    ///
    /// # Errors
    /// TimedOut.
    pub fn wait(&self, deadline: Monotonic) -> io::Result<()> {
        let left = deadline.since(clock::monotonic());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the keeper does not answer"));
        }
        let wanted =
            if self.wants_write() { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN };
        let mut fds = [PollFd::new(self.socket.as_fd(), wanted)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Why a message was not heard.
enum Unheard {
    Unknown,
    Broken(io::Error),
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_string())
}
