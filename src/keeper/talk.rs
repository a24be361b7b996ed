//! What the keeper tells its engine: the table after a hello, then what happens.
//!
//! Refuses: a queue of news. What is untold is a bit in the table, told when the socket takes it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::base::exit::RunId;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::keeper::codec::{encode_held, encode_news, encode_row};
use crate::keeper::table::{HELD_MAX, Phase, Place, Table, Untold};
use crate::keeper::wire::{EngineEnd, News, UpgradeNews};
use crate::sys::socket;

/// How far the talk with this engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Talk {
    /// It has not said hello: it gets nothing.
    Silent,
    Welcome(Build),
    /// The ends of earlier engines from this index on.
    Ends(usize),
    /// Rows from this place on.
    Rows(u32),
    /// Held names from this index on.
    Holds(usize),
    TableEnd,
    /// The table is told; news as it happens.
    News,
}

/// Whether an engine knows what we may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    Older,
    Ours,
}

/// So many ends of engines are remembered.
pub const ENDS_MAX: usize = 8;

/// Most named fds held for the engine: sockets of ours, and what services stored.
pub const HOLDS_MAX: usize = 4_096;

/// `HOLDS_MAX` names are held already.
pub struct NoRoom;

pub struct Hold {
    pub name: Vec<u8>,
    pub fd: OwnedFd,
}

/// All that the engine may have to be told.
pub struct Tidings {
    pub table: Table,
    pub holds: Vec<Hold>,
    pub started_at: Monotonic,
    /// A refused spawn that the socket did not take yet: no request is read until it did.
    pub short: Option<(RunId, i32)>,
    /// Bit n: signal n was received.
    pub signals: u64,
    pub orphan_reaped: bool,
    /// The newest upgrade; told to each engine that comes, and when `upgrade_untold`.
    pub upgrade: Option<UpgradeNews>,
    pub upgrade_untold: bool,
    /// How the last engines ended, oldest first.
    pub ends: VecDeque<EngineEnd>,
    /// The engine is to say that it lives.
    pub ping: bool,
    /// Messages that a socket took, over all engines.
    pub told: u64,
}

impl Tidings {
    /// Sends what the socket takes, in order.
    ///
    /// # Errors
    /// WouldBlock: call again when it is writable. Anything else: the engine is gone.
    pub fn tell(&mut self, socket: BorrowedFd<'_>, talk: &mut Talk, engine_starts: u32) -> io::Result<()> {
        loop {
            *talk = match *talk {
                Talk::Silent => return Ok(()),
                Talk::Welcome(build) => {
                    let keeper_pid = nix::unistd::getpid().as_raw();
                    let started_at = self.started_at;
                    self.send(socket, &News::Welcome { keeper_pid, engine_starts, started_at })?;
                    match build {
                        Build::Ours => Talk::Ends(0),
                        Build::Older => Talk::Rows(0),
                    }
                }
                Talk::Ends(at) => match self.ends.get(at).copied() {
                    Some(end) => {
                        self.send(socket, &News::EngineEnded(end))?;
                        Talk::Ends(at.saturating_add(1))
                    }
                    None => Talk::Rows(0),
                },
                Talk::Rows(from) => match self.table.next_taken(from) {
                    Some(place) => {
                        self.tell_row(socket, place)?;
                        Talk::Rows(place.0.saturating_add(1))
                    }
                    None => Talk::Holds(0),
                },
                Talk::Holds(at) => match self.holds.get(at) {
                    Some(hold) => {
                        socket::send(socket, encode_held(&hold.name).as_slice(), &[hold.fd.as_fd()])?;
                        self.told = self.told.wrapping_add(1);
                        Talk::Holds(at.saturating_add(1))
                    }
                    None => Talk::TableEnd,
                },
                Talk::TableEnd => {
                    // Before its end: an engine has to know that all is to stop before it starts.
                    self.tell_signals(socket)?;
                    self.tell_upgrade(socket)?;
                    self.send(socket, &News::TableEnd)?;
                    Talk::News
                }
                Talk::News => return self.tell_news(socket),
            };
        }
    }

    fn tell_row(&mut self, socket: BorrowedFd<'_>, place: Place) -> io::Result<()> {
        if let Some(slot) = self.table.slot(place) {
            let body = encode_row(&slot.head(), slot.labels());
            let mut fds = [socket; HELD_MAX];
            let mut count = 0;
            for (to, from) in fds.iter_mut().zip(slot.held_fds()) {
                *to = from;
                count += 1;
            }
            socket::send(socket, body.as_slice(), fds.get(..count).unwrap_or(&[]))?;
            self.told = self.told.wrapping_add(1);
        }
        self.table.told_all(place);
        Ok(())
    }

    fn tell_signals(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while self.signals != 0 {
            let number = self.signals.trailing_zeros();
            if let Some(signal) = i32::try_from(number).ok().and_then(Signal::from_number) {
                self.send(socket, &News::Signalled { signal })?;
            }
            self.signals &= self.signals - 1;
        }
        Ok(())
    }

    fn tell_upgrade(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        if let Some(news) = &self.upgrade {
            let news = News::Upgrade(news.clone());
            self.send(socket, &news)?;
        }
        self.upgrade_untold = false;
        Ok(())
    }

    fn tell_news(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        if let Some((run, errno)) = self.short {
            self.send(socket, &News::SpawnShort { run, errno })?;
            self.short = None;
        }
        self.tell_signals(socket)?;
        if self.upgrade_untold {
            self.tell_upgrade(socket)?;
        }
        if self.orphan_reaped {
            self.send(socket, &News::OrphanReaped)?;
            self.orphan_reaped = false;
        }
        while let Some(place) = self.table.next_untold() {
            self.tell_of_run(socket, place)?;
        }
        if self.ping {
            self.send(socket, &News::Ping)?;
            self.ping = false;
        }
        Ok(())
    }

    fn tell_of_run(&mut self, socket: BorrowedFd<'_>, place: Place) -> io::Result<()> {
        let Some(slot) = self.table.slot(place) else {
            return Ok(());
        };
        let (run, pid, identity, untold) = (slot.run, slot.pid, slot.identity, slot.untold());
        let ended = match slot.phase {
            Phase::Ended { at, exit } => Some((at, exit)),
            Phase::Executing { .. } | Phase::Running | Phase::Failing { .. } => None,
        };
        if untold.has(Untold::SPAWNED) {
            self.send(socket, &News::Spawned { run, pid, identity })?;
            self.table.told(place, Untold::SPAWNED);
        }
        if untold.has(Untold::EXECUTED) {
            self.send(socket, &News::Executed { run })?;
            self.table.told(place, Untold::EXECUTED);
        }
        if untold.has(Untold::MAIN) {
            self.send(socket, &News::Main { run, pid, identity })?;
            self.table.told(place, Untold::MAIN);
        }
        if untold.has(Untold::EXITED) {
            if let Some((at, exit)) = ended {
                self.send(socket, &News::Exited { run, at, exit })?;
            }
            self.table.told(place, Untold::EXITED);
        }
        Ok(())
    }

    /// Remembers how an engine ended; the oldest is forgotten.
    pub fn note_end(&mut self, end: EngineEnd) {
        if self.ends.len() >= ENDS_MAX {
            self.ends.pop_front();
        }
        self.ends.push_back(end);
    }

    fn send(&mut self, socket: BorrowedFd<'_>, news: &News) -> io::Result<()> {
        socket::send(socket, encode_news(news).as_slice(), &[])?;
        self.told = self.told.wrapping_add(1);
        Ok(())
    }

    /// Holds `fd` under `name`, in place of an older one.
    ///
    /// # Errors
    /// `NoRoom`: the fd is closed.
    pub fn hold(&mut self, name: Vec<u8>, fd: OwnedFd) -> Result<(), NoRoom> {
        if let Some(hold) = self.holds.iter_mut().find(|hold| hold.name == name) {
            hold.fd = fd;
            return Ok(());
        }
        if self.holds.len() >= HOLDS_MAX {
            return Err(NoRoom);
        }
        self.holds.push(Hold { name, fd });
        Ok(())
    }

    /// Closes what is held under `name`. An engine lets go of nothing while it is told the table.
    pub fn let_go(&mut self, name: &[u8]) {
        self.holds.retain(|hold| hold.name != name);
    }
}
