//! Unix sockets: messages with fds, and who is at the other end.
//!
//! Refuses: losing an fd. Whatever arrives is owned, CLOEXEC, and closed when nobody wants it.

use std::fs;
use std::io;
use std::mem::{self, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, socketpair, sockopt,
};

/// Most fds beside one message (the kernel's SCM_MAX_FD).
pub const MESSAGE_FDS_MAX: usize = 253;

/// Control bytes: 253 fds, one set of credentials and one pidfd, with headers and alignment.
const CONTROL_BYTES: usize = 1_152;

/// Each datagram brings a pidfd of its sender (linux/socket.h, 6.5).
const SO_PASSPIDFD: libc::c_int = 76;
const SCM_PIDFD: libc::c_int = 0x04;

/// The peer's groups (asm-generic/socket.h, 4.13).
const SO_PEERGROUPS: libc::c_int = 59;

/// Groups for which there is room at first; few accounts have more.
const PEER_GROUPS_FIRST: usize = 64;

/// What systemd sets `net.unix.max_dgram_qlen` to, for a system that does not say; and what we
/// take at once at most, whatever it is.
const DATAGRAMS_WAITING: usize = 512;
const DATAGRAMS_WAITING_MAX: usize = 4_096;

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Who is at the other end: SO_PEERCRED, or SCM_CREDENTIALS of one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// 0 when the process is in a pid namespace that we cannot see into.
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// One received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes; 0 on a seqpacket socket means that the other end is closed.
    pub len: usize,
    pub fds: Completeness,
    /// Set on sockets with SO_PASSCRED.
    pub sender: Option<Credentials>,
}

/// One datagram as it lies in the queue.
#[derive(Debug)]
pub struct Peeked {
    /// Bytes; more than were asked for means that the datagram is cut.
    pub len: usize,
    pub sender: Credentials,
    /// The sender itself, also when it has ended meanwhile (6.17 on; before, only while it lives).
    pub process: Option<OwnedFd>,
    /// Duplicates of what came along.
    pub fds: Vec<OwnedFd>,
    pub complete: Completeness,
}

/// Whether every fd of a message arrived (MSG_CTRUNC: we are out of fds, or there were too many).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    Complete,
    Truncated,
}

/// A connected pair of seqpacket sockets, CLOEXEC and non-blocking.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one message; never SIGPIPE, never waits on a non-blocking socket.
///
/// # Errors
/// WouldBlock, also for too many fds in flight; BrokenPipe or ConnectionReset when the other end is gone; InvalidInput for
/// more than `MESSAGE_FDS_MAX` fds.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    if fds.len() > MESSAGE_FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let fd_bytes = u32::try_from(mem::size_of_val(fds)).unwrap_or(0);
    // SAFETY: msghdr is plain old data. The control buffer is aligned for cmsghdr and large
    // enough for MESSAGE_FDS_MAX fds; CMSG_DATA points into it, and BorrowedFd is a c_int in
    // memory (repr(transparent)). `part` and `bytes` outlive the call, which only reads them.
    let sent = unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if !fds.is_empty() {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(fd_bytes) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(fd_bytes) as _;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(first), fd_bytes as usize);
        }
        retry(|| libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL))
    };
    match sent {
        Ok(_) => Ok(()),
        // An unprivileged user has as many fds in flight as RLIMIT_NOFILE allows (unix(7)): it
        // passes when the receivers have read, like a full buffer.
        Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
            Err(io::ErrorKind::WouldBlock.into())
        }
        Err(error) => Err(error),
    }
}

/// The kernel has no memory for a message now. It passes, and no readiness tells when.
pub fn is_short(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS))
}

/// Receives one message; its fds are appended to `fds`.
///
/// # Errors
/// WouldBlock; ConnectionReset.
pub fn recv(socket: impl AsFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<Received> {
    let (received, _) = recv_with(socket, bytes, fds, 0)?;
    Ok(received)
}

fn recv_with(
    socket: impl AsFd,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: libc::c_int,
) -> io::Result<(Received, Option<OwnedFd>)> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: as in `send`; the kernel writes at most the given lengths, and sets
    // msg_controllen to what it wrote, which is what the CMSG_ walk goes by.
    unsafe {
        let mut header: libc::msghdr = mem::zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES as _;
        let socket = socket.as_fd().as_raw_fd();
        let len = retry(|| libc::recvmsg(socket, &raw mut header, libc::MSG_CMSG_CLOEXEC | flags))?;
        let (sender, process) = take_control(&header, fds);
        let cut = header.msg_flags & libc::MSG_CTRUNC != 0;
        let complete = if cut { Completeness::Truncated } else { Completeness::Complete };
        Ok((Received { len, fds: complete, sender }, process))
    }
}

/// # Safety
/// `header` must be one that recvmsg(2) has just filled, its control buffer alive.
unsafe fn take_control(
    header: &libc::msghdr,
    fds: &mut Vec<OwnedFd>,
) -> (Option<Credentials>, Option<OwnedFd>) {
    let (mut sender, mut process) = (None, None);
    // SAFETY: the walk stays within msg_controllen; data is read unaligned; each fd number was
    // made for us by the kernel in this very call, so we are its only owner.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(header);
        while !at.is_null() {
            let data = libc::CMSG_DATA(at);
            let len = ((*at).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == libc::SCM_RIGHTS {
                for n in 0..len / mem::size_of::<RawFd>() {
                    let fd = data.cast::<RawFd>().add(n).read_unaligned();
                    fds.push(OwnedFd::from_raw_fd(fd));
                }
            }
            if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == libc::SCM_CREDENTIALS {
                let found = data.cast::<libc::ucred>().read_unaligned();
                sender = Some(Credentials { pid: found.pid, uid: found.uid, gid: found.gid });
            }
            if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == SCM_PIDFD {
                // Below 0 is an errno: the sender is gone, or we are out of fds.
                let fd = data.cast::<RawFd>().read_unaligned();
                process = (fd >= 0).then(|| OwnedFd::from_raw_fd(fd));
            }
            at = libc::CMSG_NXTHDR(header, at);
        }
    }
    (sender, process)
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(len) => return Ok(len),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Who connected (SO_PEERCRED): as it was at connect(2), which cannot be forged.
///
/// # Errors
/// ENOTCONN.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Credentials> {
    let found = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(Credentials { pid: found.pid(), uid: found.uid(), gid: found.gid() })
}

/// The supplementary groups that the peer had when it connected (SO_PEERGROUPS).
///
/// # Errors
/// ENOPROTOOPT before Linux 4.13.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; PEER_GROUPS_FIRST];
    loop {
        let bytes = groups.len() * size_of::<libc::gid_t>();
        let mut len = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: a live fd, a buffer of gids and its length in bytes; the kernel writes no more, and
        // tells the length that it has or needs.
        let done = unsafe {
            libc::getsockopt(fd, libc::SOL_SOCKET, SO_PEERGROUPS, groups.as_mut_ptr().cast(), &raw mut len)
        };
        let count = usize::try_from(len).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        let short = done != 0 && Errno::last() == Errno::ERANGE && count > groups.len();
        match (done, short) {
            (0, _) => {
                groups.truncate(count);
                return Ok(groups);
            }
            (_, true) => groups.resize(count, 0),
            (_, false) => return Err(io::Error::last_os_error()),
        }
    }
}

/// Waits until the other end of a connected socket is closed.
pub fn await_hang_up(socket: impl AsFd) {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    while poll(&mut asked, PollTimeout::NONE) != Ok(1) {} // EINTR only
}

/// A non-blocking datagram socket at `path`, mode `mode`, that learns each sender's
/// credentials; for sd_notify(3). What stood at `path` is replaced.
///
/// # Errors
/// As bind(2); a path above 107 bytes.
pub fn bind_datagram(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let socket = at_temporary_name(path, mode, |temporary| UnixDatagram::bind(temporary))?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    pass_processes(&socket);
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// A non-blocking datagram socket, connected to `address`.
///
/// # Errors
/// As connect(2).
pub fn connect_datagram(address: &UnixAddr) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    connect(socket.as_raw_fd(), address)?;
    Ok(socket)
}

/// Has each datagram bring its sender's pidfd, where the kernel can; else it brings none.
pub fn pass_processes(socket: impl AsFd) {
    let yes: libc::c_int = 1;
    let size = libc::socklen_t::try_from(mem::size_of_val(&yes)).unwrap_or(4);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: a live fd, and a pointer to an int with its size. Refused before 6.5: see above.
    let _ = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, SO_PASSPIDFD, (&raw const yes).cast(), size) };
}

/// The datagram at the head of the queue, which stays there (`skip` takes it out). None:
/// nothing there.
///
/// # Errors
/// As recvmsg(2).
pub fn peek(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Option<Peeked>> {
    let mut fds = Vec::new();
    match recv_with(socket, bytes, &mut fds, libc::MSG_PEEK | libc::MSG_TRUNC) {
        Ok((got, process)) => {
            // Without credentials it is nobody's.
            let sender = got.sender.unwrap_or(Credentials { pid: 0, uid: u32::MAX, gid: u32::MAX });
            Ok(Some(Peeked { len: got.len, sender, process, fds, complete: got.fds }))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Closes an fd that somebody else made, without waiting for his peer: closing the last fd of a
/// TCP socket with SO_LINGER would wait as long as he likes (socket(7)).
pub fn close_at_once(fd: OwnedFd) {
    let never = libc::linger { l_onoff: 0, l_linger: 0 };
    let _ = setsockopt(&fd, sockopt::Linger, &never); // no socket: nothing lingers
}

/// Most datagrams that wait in one socket (`net.unix.max_dgram_qlen`, unix(7)): whoever takes
/// this many has taken all that were there before.
pub fn datagrams_waiting_max() -> usize {
    let text = fs::read_to_string("/proc/sys/net/unix/max_dgram_qlen").unwrap_or_default();
    text.trim().parse::<usize>().unwrap_or(DATAGRAMS_WAITING).clamp(1, DATAGRAMS_WAITING_MAX) + 1
}

/// Takes the datagram at the head of the queue out; fds beside it are closed by the kernel.
///
/// # Errors
/// As recv(2); WouldBlock when nothing is there.
pub fn skip(socket: impl AsFd) -> io::Result<()> {
    let mut none = [0_u8; 1];
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: a live fd and a buffer of the length given. Without room for control messages
    // the kernel drops the fds of the datagram.
    retry(|| unsafe { libc::recv(fd, none.as_mut_ptr().cast(), none.len(), libc::MSG_DONTWAIT) }).map(drop)
}

/// A non-blocking stream listener at `path` with mode `mode` (0o660, 0o666). It appears under
/// its name only with its mode set, and replaces what stood there in one step.
///
/// # Errors
/// As bind(2); a path above 107 bytes.
pub fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let listener = at_temporary_name(path, mode, |temporary| UnixListener::bind(temporary))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn at_temporary_name<S>(path: &Path, mode: u32, bind: impl Fn(&Path) -> io::Result<S>) -> io::Result<S> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let _ = fs::remove_file(&temporary); // of an earlier process with our pid
    let socket = bind(&temporary).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot bind {}: {error}", temporary.display()))
    })?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
    fs::rename(&temporary, path)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fds_travel_and_arrive_cloexec() {
        let (a, b) = seqpacket_pair().expect("pair");
        let (read, write) = crate::sys::pipe::pair().expect("pipe");
        send(&a, b"two", &[write.as_fd(), write.as_fd()]).expect("send");
        drop(write);
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        let got = recv(&b, &mut bytes, &mut fds).expect("recv");
        assert_eq!((got.len, got.fds, fds.len()), (3, Completeness::Complete, 2));
        for fd in &fds {
            let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).expect("flags");
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        }
        nix::unistd::write(&fds[0], b"x").expect("write");
        drop(fds);
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut fs::File::from(read), &mut rest).expect("read");
        assert_eq!(rest, b"x");
        let none = recv(&b, &mut bytes, &mut Vec::new()).expect_err("empty");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(recv(&b, &mut bytes, &mut Vec::new()).expect("eof").len, 0);
    }

    #[test]
    fn a_notify_socket_knows_its_senders_and_keeps_no_fd() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("notify.sock");
        let socket = bind_datagram(&path, 0o666).expect("bind");
        let client = UnixDatagram::unbound().expect("client");
        client.send_to(b"READY=1", &path).expect("send");
        let (read, write) = crate::sys::pipe::pair().expect("pipe");
        let mut bytes = [0; 64];
        let peeked = peek(&socket, &mut bytes).expect("recv").expect("one");
        assert_eq!(&bytes[..peeked.len], b"READY=1");
        assert_eq!(u32::try_from(peeked.sender.pid), Ok(std::process::id()));
        if let Some(process) = peeked.process {
            assert!(!crate::sys::pidfd::has_ended(&process));
        }
        skip(&socket).expect("taken");
        client.connect(&path).expect("connected");
        send(&client, &[b'x'; 100], &[write.as_fd(), write.as_fd()]).expect("sent");
        drop(write);
        for _ in 0..2 {
            let again = peek(&socket, &mut bytes).expect("recv").expect("it stays");
            assert_eq!((again.len, again.fds.len(), again.complete), (100, 2, Completeness::Complete));
        }
        skip(&socket).expect("taken");
        assert!(peek(&socket, &mut bytes).expect("empty").is_none());
        assert_eq!(skip(&socket).expect_err("empty").kind(), io::ErrorKind::WouldBlock);
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut fs::File::from(read), &mut rest).expect("every writer is closed");
        let again = listen(&path, 0o660).expect("replaced");
        assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o777, 0o660);
        assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 1);
        let peer = std::os::unix::net::UnixStream::connect(&path).expect("connect");
        assert_eq!(peer_credentials(&peer).expect("peer").uid, ids().0);
        drop(again);
    }

    fn ids() -> (u32, u32) {
        crate::sys::process::ids()
    }
}
