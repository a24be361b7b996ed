//! systemd's fd store (sd_notify(3), FDSTORE=1; sd_listen_fds(3)): whatever the keeper holds is held by
//! systemd, too, and comes back to the next keeper. With it not even bytes that wait in a pipe are lost
//! when keeper, engine and service die together.
//!
//! Refuses: waiting for systemd. What it does not take now waits in a bounded queue; what does not fit
//! there is not stored, which is said once. Readiness and watchdog: they are no fds.

use std::collections::VecDeque;
use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::base::exit::RunId;
use crate::base::time::Monotonic;
use crate::keeper::run::{Keeper, say};
use crate::keeper::talk::Hold;
use crate::sys::{clock, process, socket};

/// Longest FDNAME (sd_pid_notify_with_fds(3)).
const NAME_LEN_MAX: usize = 255;

/// Most messages that wait for systemd: three fds for each of a thousand runs, and their removal.
const WAITING_MAX: usize = 6_000;

/// A full queue of systemd's is tried again after this.
const RETRY: Duration = Duration::from_millis(20);

/// Pipes of runs are stored as `run/<run>/<label>`, what the engine has us hold as `hold/<name>`.
const RUN: &str = "run";
const HOLD: &str = "hold/";

struct Message {
    text: String,
    fd: Option<OwnedFd>,
}

/// The way to systemd; nothing at all where there is none.
#[derive(Default)]
pub(super) struct Manager {
    socket: Option<UnixDatagram>,
    waiting: VecDeque<Message>,
    retry_at: Option<Monotonic>,
    /// Something was not stored, and that was said.
    complained: bool,
}

/// The name of a run's pipe, for systemd and for our engine.
pub fn pipe_name(run: RunId, label: u8) -> Vec<u8> {
    format!("{RUN}/{run}/{label}").into_bytes()
}

/// What `pipe_name` made.
pub fn pipe_of(name: &[u8]) -> Option<(RunId, u8)> {
    let mut parts = std::str::from_utf8(name).ok()?.split('/');
    if parts.next()? != RUN {
        return None;
    }
    let (run, label) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some((RunId(run), label))
}

impl Manager {
    /// The systemd that started us, by `NOTIFY_SOCKET`. It takes fds only with `FileDescriptorStoreMax=`
    /// in our unit, and otherwise drops them.
    pub(super) fn of_environment() -> Manager {
        let path = env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty());
        let Some(path) = path else { return Manager::default() };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&path),
        };
        let connect = || -> io::Result<UnixDatagram> {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address?)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        match connect() {
            Ok(socket) => Manager { socket: Some(socket), ..Manager::default() },
            Err(error) => {
                say(&format!("nothing is stored with systemd: {}: {error}", path.display()));
                Manager::default()
            }
        }
    }

    /// What it kept for us since an earlier keeper stored it.
    pub(super) fn inherited(&mut self) -> Vec<Hold> {
        let number = |name: &str| env::var(name).ok()?.parse::<i32>().ok();
        if number("LISTEN_PID") != Some(nix::unistd::getpid().as_raw()) {
            return Vec::new();
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut holds = Vec::new();
        let fds = process::listen_fds(number("LISTEN_FDS").unwrap_or(0));
        for (name, fd) in names.split(':').chain(std::iter::repeat("")).zip(fds) {
            let ours = name.strip_prefix(HOLD).map(|name| name.as_bytes().to_vec());
            let ours = ours.or_else(|| pipe_of(name.as_bytes()).map(|(run, label)| pipe_name(run, label)));
            match ours {
                Some(name) => holds.push(Hold { name, fd }),
                None => say(&format!("systemd gave us `{}`, which is not ours", name.escape_default())),
            }
        }
        holds
    }

    pub(super) fn store_pipe(&mut self, run: RunId, label: u8, fd: BorrowedFd<'_>) {
        if self.socket.is_some() {
            self.store(&format!("{RUN}/{run}/{label}"), fd);
        }
    }

    pub(super) fn remove_pipe(&mut self, run: RunId, label: u8) {
        if self.socket.is_some() {
            self.send(Message { text: removal(&format!("{RUN}/{run}/{label}")), fd: None });
        }
    }

    /// In place of an older one of this name.
    pub(super) fn store_hold(&mut self, name: &[u8], fd: BorrowedFd<'_>) {
        let Some(name) = hold_name(name).filter(|_| self.socket.is_some()) else {
            return self.complain("its name is none that systemd takes");
        };
        self.send(Message { text: removal(&name), fd: None });
        self.store(&name, fd);
    }

    pub(super) fn remove_hold(&mut self, name: &[u8]) {
        let text = match pipe_of(name) {
            Some((run, label)) => Some(format!("{RUN}/{run}/{label}")),
            None => hold_name(name),
        };
        if let Some(name) = text {
            self.send(Message { text: removal(&name), fd: None });
        }
    }

    fn store(&mut self, name: &str, fd: BorrowedFd<'_>) {
        if self.socket.is_none() {
            return;
        }
        // FDPOLL=0: a pipe whose writer is gone has hung up, and may hold his last words.
        let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        match fd.try_clone_to_owned() {
            Ok(fd) => self.send(Message { text, fd: Some(fd) }),
            Err(_) => self.complain("we are out of file descriptors"),
        }
    }

    fn send(&mut self, message: Message) {
        if self.socket.is_none() {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            return self.complain("systemd does not take what waits for it");
        }
        self.waiting.push_back(message);
        if self.waiting.len() == 1 {
            self.flush();
        }
    }

    /// Sends what it takes.
    fn flush(&mut self) {
        self.retry_at = None;
        while let (Some(socket), Some(next)) = (&self.socket, self.waiting.front()) {
            let fds: Vec<BorrowedFd<'_>> = next.fd.iter().map(AsFd::as_fd).collect();
            match socket::send(socket, next.text.as_bytes(), &fds) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.retry_at = Some(clock::monotonic() + RETRY);
                    return;
                }
                Err(error) => {
                    self.complain(&error.to_string());
                    self.waiting.clear();
                    self.socket = None;
                }
            }
        }
    }

    pub(super) fn flush_if_due(&mut self, now: Monotonic) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.flush();
        }
    }

    pub(super) fn due(&self) -> Option<Monotonic> {
        self.retry_at
    }

    fn complain(&mut self, why: &str) {
        if self.socket.is_some() && !std::mem::replace(&mut self.complained, true) {
            say(&format!("not everything that we hold is stored with systemd: {why}"));
        }
    }
}

impl Keeper {
    /// Has systemd hold the pipes of a run.
    pub(super) fn store_pipes(&mut self, run: RunId) {
        let place = self.tidings.table.of_run(run);
        if let Some(slot) = place.and_then(|place| self.tidings.table.slot(place)) {
            for (label, fd) in slot.labels().zip(slot.held_fds()) {
                self.manager.store_pipe(run, label, fd);
            }
        }
    }

    /// The run is to be forgotten, if it has ended. One that is not in the table may have left pipes.
    pub(super) fn release(&mut self, run: RunId) {
        let place = self.tidings.table.of_run(run);
        let slot = place.and_then(|place| self.tidings.table.slot(place));
        if place.is_some() && self.manager.socket.is_none() {
            return self.tidings.table.release(run);
        }
        let mut labels: Vec<u8> =
            slot.filter(|slot| slot.is_ended()).into_iter().flat_map(|s| s.labels()).collect();
        self.tidings.table.release(run);
        if place.is_none() {
            labels.extend(self.take_inherited(run).into_iter().map(|(label, _)| label));
        }
        labels.into_iter().for_each(|label| self.manager.remove_pipe(run, label));
    }

    /// What systemd kept of a run's pipes.
    pub(super) fn take_inherited(&mut self, run: RunId) -> Vec<(u8, OwnedFd)> {
        let is_of_run = |hold: &mut Hold| pipe_of(&hold.name).is_some_and(|(of, _)| of == run);
        let taken = self.tidings.holds.extract_if(.., is_of_run);
        taken.filter_map(|hold| Some((pipe_of(&hold.name)?.1, hold.fd))).collect()
    }
}

fn removal(name: &str) -> String {
    format!("FDSTOREREMOVE=1\nFDNAME={name}")
}

/// None for what is no FDNAME: control characters, colons, more than 255 bytes.
fn hold_name(name: &[u8]) -> Option<String> {
    let text = format!("{HOLD}{}", std::str::from_utf8(name).ok()?);
    let fits =
        text.len() <= NAME_LEN_MAX && text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b':');
    fits.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_systemd_takes_and_come_back_as_they_were() {
        assert_eq!(pipe_of(&pipe_name(RunId(17), 2)), Some((RunId(17), 2)));
        for foreign in [&b"run/17"[..], b"run/17/2/3", b"run/x/1", b"api", b"run/1/999"] {
            assert_eq!(pipe_of(foreign), None, "{}", foreign.escape_ascii());
        }
        assert_eq!(hold_name(b"fdstore/web/1/a b").as_deref(), Some("hold/fdstore/web/1/a b"));
        let long = [b'a'; NAME_LEN_MAX];
        for bad in [&b"a:b"[..], b"a\nb", b"\xff", &long] {
            assert_eq!(hold_name(bad), None, "{}", bad.escape_ascii());
        }
    }
}
