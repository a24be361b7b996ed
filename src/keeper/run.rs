//! The keeper's loop: spawn on request, reap, tell, keep the engine alive.
//!
//! Refuses: deciding anything about services. Its only own decision is the last one: told to
//! end while no engine can be started, it ends the services itself.

use std::collections::VecDeque;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::base::exit::{Exit, SpawnStep};
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::keeper::codec::{CodecError, MESSAGE_BYTES_MAX, decode_request};
use crate::keeper::engine::Engine;
use crate::keeper::fdstore_systemd::Manager;
use crate::keeper::mains::{MAIN_TOKEN, Unreaped, signal_run};
use crate::keeper::systemd::Systemd;
use crate::keeper::table::{Phase, Place, Table, Untold};
use crate::keeper::talk::{ENDS_MAX, HOLDS_MAX, Talk, Tidings};
use crate::keeper::upgrade::{Expected, Upgrade};
use crate::keeper::wire::{EngineEnd, Request};
use crate::sys::signals::{Signals, signal_child};
use crate::sys::wait::{Reaped, reap};
use crate::sys::{clock, process, socket};

const SIGNALS_TOKEN: u64 = 0;
const ENGINE_TOKEN: u64 = 1;
/// Token of a run's outcome pipe: this and its place.
pub(super) const OUTCOME_TOKEN: u64 = 2;

/// Requests read in one turn, so that a busy engine does not keep us from reaping.
const REQUESTS_PER_TURN: usize = 64;

/// After `End`: how long the engine may take to end before it is killed.
const ENGINE_END_MAX: Duration = Duration::from_secs(5);

/// Told to end, and so many starts of the engine failed in a row: we end the services.
const SHORT_LIVES_MAX: u32 = 5;

/// Between SIGTERM and SIGKILL then, and between SIGKILL and leaving what is stuck.
const ABANDON_GRACE: Duration = Duration::from_secs(10);

/// When what the kernel had no memory for is tried again: nobody tells when it has.
pub(super) const SHORT_RETRY: Duration = Duration::from_millis(20);

/// Exit code when no engine could be started to end the services in order.
const EXIT_ABANDONED: i32 = 1;

#[derive(Clone, Copy)]
pub(super) enum Ending {
    No,
    /// The engine said `End`.
    Asked {
        code: u8,
        kill_engine_at: Monotonic,
    },
    /// No engine: the services got SIGTERM.
    Terminating {
        kill_at: Monotonic,
    },
    Killing {
        leave_at: Monotonic,
    },
}

/// What a look into the engine's socket found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    One,
    Empty,
    Closed,
}

pub(super) struct Keeper {
    pub(super) epoll: Epoll,
    pub(super) signals: Signals,
    pub(super) tidings: Tidings,
    pub(super) engine: Engine,
    /// When to look at every outcome that is awaited: one of them could not be watched.
    pub(super) look_at: Option<Monotonic>,
    /// Until then nothing is said to the engine, nor heard from it.
    pub(super) talk_at: Option<Monotonic>,
    pub(super) systemd: Systemd,
    pub(super) manager: Manager,
    /// Main processes that have ended, and of which nobody has said how.
    pub(super) unreaped: Vec<Unreaped>,
    /// The engine's socket took nothing more.
    pub(super) blocked: bool,
    pub(super) ending: Ending,
    /// Bit n: signal n (TERM, INT, QUIT) was received. Told again to each new engine: the one
    /// that was told may have died of it.
    pub(super) end_signals: u64,
    pub(super) upgrade: Upgrade,
    /// Open until the end (the lock of the home).
    pub(super) held: Vec<OwnedFd>,
}

/// Runs as the keeper until the end; the exit code. Call it before any thread exists.
/// `held` stays open all along (the lock of the home); `engine_argv` is what the engine is
/// called with, the file is our own.
pub fn run(held: Vec<OwnedFd>, engine_argv: Vec<CString>) -> i32 {
    match Keeper::new(engine_argv) {
        Ok(mut keeper) => {
            // Not again by the image that an upgrade executes: those fds have owners by then.
            keeper.tidings.holds.extend(keeper.manager.inherited());
            Keeper { held, ..keeper }.go()
        }
        Err(error) => {
            say(&format!("cannot start: {error}"));
            EXIT_ABANDONED
        }
    }
}

impl Keeper {
    pub(super) fn new(engine_argv: Vec<CString>) -> io::Result<Keeper> {
        let signals = Signals::take()?;
        process::become_subreaper()?;
        process::raise_nofile();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS_TOKEN))?;
        let holds = Vec::with_capacity(HOLDS_MAX);
        let tidings = Tidings {
            table: Table::new(),
            holds,
            started_at: clock::monotonic(),
            short: None,
            signals: 0,
            orphan_reaped: false,
            upgrade: None,
            upgrade_untold: false,
            ends: VecDeque::with_capacity(ENDS_MAX),
            ping: false,
            told: 0,
        };
        let engine = Engine::new(engine_argv);
        Ok(Keeper {
            epoll,
            signals,
            tidings,
            engine,
            systemd: Systemd::of_process(),
            manager: Manager::of_environment(),
            unreaped: Vec::new(),
            blocked: false,
            ending: Ending::No,
            look_at: None,
            talk_at: None,
            end_signals: 0,
            upgrade: Upgrade::default(),
            held: Vec::new(),
        })
    }

    /// Runs until the end; the exit code.
    pub(super) fn go(mut self) -> i32 {
        loop {
            if let Some(code) = self.turn() {
                return code;
            }
        }
    }

    /// One turn: wait, handle, tell. The exit code when it was the last.
    fn turn(&mut self) -> Option<i32> {
        self.start_engine_if_due();
        let mut events = [EpollEvent::empty(); 64];
        let count = self.epoll.wait(&mut events, self.timeout()).unwrap_or(0);
        for event in events.iter().take(count) {
            match event.data() {
                SIGNALS_TOKEN => self.on_signals(),
                ENGINE_TOKEN => self.on_engine(),
                token if token >= MAIN_TOKEN => self.on_main_ended(token),
                token => self.on_outcome(token),
            }
        }
        self.look_at_outcomes();
        self.give_up_unreaped(clock::monotonic());
        self.manager.flush_if_due(clock::monotonic());
        self.feel_pulse();
        self.tell();
        self.go_on_upgrading();
        self.end_if_done(clock::monotonic())
    }

    fn timeout(&self) -> EpollTimeout {
        let at = match self.ending {
            Ending::No => {
                [self.engine.due(), self.upgrade.due(), self.pulse_due()].into_iter().flatten().min()
            }
            Ending::Asked { kill_engine_at: at, .. }
            | Ending::Terminating { kill_at: at }
            | Ending::Killing { leave_at: at } => Some(at),
        };
        let all = [at, self.talk_at, self.look_at, self.unreaped_due(), self.manager.due()];
        let Some(at) = all.into_iter().flatten().min() else {
            return EpollTimeout::NONE;
        };
        let left = at.since(clock::monotonic());
        // One more, because the kernel counts whole milliseconds: never wake too early.
        let ms = if left.is_zero() { 0 } else { left.as_millis().saturating_add(1) };
        i32::try_from(ms).ok().and_then(|ms| EpollTimeout::try_from(ms).ok()).unwrap_or(EpollTimeout::MAX)
    }

    fn start_engine_if_due(&mut self) {
        let now = clock::monotonic();
        match self.ending {
            Ending::No => {}
            Ending::Asked { .. } | Ending::Terminating { .. } | Ending::Killing { .. } => return,
        }
        if self.engine.due().is_none_or(|at| at > now) {
            return;
        }
        (self.blocked, self.tidings.ping) = (false, false);
        if let Err(errno) = self.engine.start(now) {
            say(&format!("cannot start the engine: {errno}"));
            return;
        }
        self.watch_engine();
    }

    pub(super) fn watch_engine(&mut self) {
        if let Some(link) = self.engine.link() {
            let watched = self.epoll.add(&link.socket, EpollEvent::new(EpollFlags::EPOLLIN, ENGINE_TOKEN));
            if watched.is_err() {
                self.lose_engine();
            }
        }
    }

    fn on_signals(&mut self) {
        while let Some(signal) = self.signals.next_signal() {
            if signal.number() == libc::SIGCHLD {
                continue;
            }
            let bit = 1_u64.checked_shl(signal.number().unsigned_abs()).unwrap_or(0);
            self.tidings.signals |= bit;
            if [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT].contains(&signal.number()) {
                if self.end_signals == 0 {
                    self.systemd.stopping();
                    // Only what fails from here on shows that nobody can end the services.
                    self.engine.forget_short_lives(clock::monotonic());
                }
                self.end_signals |= bit;
            }
        }
        self.reap_all();
    }

    pub(super) fn reap_all(&mut self) -> Reaped {
        loop {
            match reap() {
                Reaped::One { pid, exit } => self.on_reaped(pid, exit),
                rest @ (Reaped::NoneYet | Reaped::NoChildren) => return rest,
            }
        }
    }

    fn on_reaped(&mut self, pid: i32, exit: Exit) {
        let now = clock::monotonic();
        if self.engine.life().is_some_and(|life| life.pid == pid) {
            // Its last requests are still in the socket, `End` may be among them.
            while self.read_request() == Read::One {
                self.tidings.short = None;
            }
            self.unwatch_engine();
            let end = self.engine.ended(now, exit);
            self.tidings.short = None;
            if let Some(end) = end {
                self.on_engine_end(now, end);
            }
            return;
        }
        let Some(place) = self.tidings.table.of_pid(pid) else {
            self.tidings.orphan_reaped = true;
            return;
        };
        // Its outcome is complete now, whether or not epoll has said so yet.
        self.settle(place);
        let exit = match self.tidings.table.slot(place).map(|slot| &slot.phase) {
            Some(Phase::Failing { exit }) => *exit,
            Some(Phase::Executing { .. } | Phase::Running | Phase::Ended { .. }) | None => exit,
        };
        self.end_run(place, now, exit);
    }

    /// What becomes of the next one hangs on this: an engine of an upgrade is no engine that died.
    fn on_engine_end(&mut self, now: Monotonic, end: EngineEnd) {
        let sentence = format!("engine {} {}", end.pid, end.exit);
        let upgrading = self.upgrade.due().is_some();
        if self.on_engine_gone_in_upgrade(now, &sentence) == Expected::Yes
            || !matches!(self.ending, Ending::No)
        {
            return;
        }
        say(&sentence);
        if !upgrading {
            self.tidings.note_end(end);
        }
    }

    pub(super) fn end_run(&mut self, place: Place, at: Monotonic, exit: Exit) {
        self.unwatch_main(place);
        self.tidings.table.end(place, at, exit);
        self.tidings.table.note(place, Untold::EXITED);
    }

    fn on_engine(&mut self) {
        for _ in 0..REQUESTS_PER_TURN {
            // A refusal that the socket did not take yet: read on when it did.
            if self.tidings.short.is_some() {
                self.tell();
                if self.tidings.short.is_some() {
                    return;
                }
            }
            match self.read_request() {
                Read::One => {}
                Read::Empty => return,
                Read::Closed => return self.lose_engine(),
            }
        }
    }

    fn read_request(&mut self) -> Read {
        let Some(link) = self.engine.link() else {
            return Read::Empty;
        };
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let mut fds = Vec::new();
        match socket::recv(&link.socket, &mut bytes, &mut fds) {
            Ok(got) if got.len == 0 => return Read::Closed,
            Ok(got) => {
                self.on_message(bytes.get(..got.len).unwrap_or(&[]), fds);
                self.on_beat();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Empty,
            Err(error) if socket::is_short(&error) => {
                self.rest();
                return Read::Empty;
            }
            Err(_) => return Read::Closed,
        }
        Read::One
    }

    fn on_message(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) {
        match decode_request(bytes, fds) {
            Ok(request) => self.on_request(request),
            // It stays as it was, and the engine is told so.
            Err(CodecError::MainLost(run)) => {
                if let Some(place) = self.tidings.table.of_run(run) {
                    self.tidings.table.note(place, Untold::MAIN);
                }
            }
            Err(CodecError::OrphanLost(run)) => self.refuse_orphan(run, "we are out of file descriptors"),
            Err(CodecError::FdsLost(run)) => self.tidings.short = Some((run, libc::EMFILE)),
            Err(CodecError::Plan { run, errno: errno @ (libc::EMFILE | libc::ENFILE | libc::ENOMEM) }) => {
                self.tidings.short = Some((run, errno));
            }
            Err(CodecError::Plan { run, errno }) => self.refuse(run, b"", SpawnStep::Prepare, errno),
            Err(
                error @ (CodecError::Short
                | CodecError::Foreign
                | CodecError::Version(_)
                | CodecError::Kind(_)
                | CodecError::Value(_)),
            ) => say(&format!("a request of the engine is ignored: {error}")),
        }
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Hello => {
                self.tidings.signals |= self.end_signals;
                let build = self.build_of_engine();
                if let Some(link) = self.engine.link_mut() {
                    link.talk = Talk::Welcome(build);
                }
            }
            Request::Alive { stage } => self.on_stage(stage),
            Request::Spawn { run, tag, plan, fds } => self.spawn(run, &tag, plan, fds),
            Request::Signal { run, signal } => {
                let place = self.tidings.table.of_run(run);
                let slot = place.and_then(|place| self.tidings.table.slot(place));
                if let Some(slot) = slot.filter(|slot| !slot.is_ended()) {
                    signal_run(slot, signal);
                }
            }
            Request::SignalToEnd { run, signal } => {
                let place = self.tidings.table.of_run(run);
                let slot = place.and_then(|place| self.tidings.table.slot_mut(place));
                if let Some(slot) = slot.filter(|slot| !slot.is_ended()) {
                    slot.end_asked = true;
                    signal_run(slot, signal);
                }
            }
            Request::NoteReady { run } => {
                let place = self.tidings.table.of_run(run);
                if let Some(slot) = place.and_then(|place| self.tidings.table.slot_mut(place)) {
                    slot.said_ready = true;
                }
            }
            Request::NoteMain { run, pid, process } => self.note_main(run, pid, process),
            Request::Adopt { orphan, process, held } => self.adopt(&orphan, process, held),
            Request::Release { run } => self.release(run),
            Request::Hold { name, fd } => {
                self.manager.store_hold(&name, fd.as_fd());
                if self.tidings.hold(name, fd).is_err() {
                    say(&format!("more than {HOLDS_MAX} held names: one is not held"));
                }
            }
            Request::LetGo { name } => {
                self.manager.remove_hold(&name);
                self.tidings.let_go(&name);
            }
            Request::End { code } => {
                let kill_engine_at = clock::monotonic() + ENGINE_END_MAX;
                self.ending = Ending::Asked { code, kill_engine_at };
            }
            Request::Swap { note, binary } => self.on_swap(note, binary),
            Request::Healthy => self.on_healthy(),
            Request::Unfit { why } => self.on_unfit(why),
        }
    }

    /// Tells what the socket takes; while it takes nothing, no request is read either.
    pub(super) fn tell(&mut self) {
        let (told, waited) = (self.tidings.told, self.blocked);
        self.tell_engine();
        if self.tidings.told == told {
            return;
        }
        if waited {
            self.on_beat(); // it has read, or there would be no room again
        }
        if let Some(pulse) = self.engine.pulse_mut() {
            pulse.tells(clock::monotonic());
        }
    }

    fn tell_engine(&mut self) {
        let starts = self.engine.starts();
        if self.talk_at.is_some_and(|at| at > clock::monotonic()) {
            return;
        }
        self.talk_at = None;
        let Some(link) = self.engine.link_mut() else {
            return;
        };
        let interest = match self.tidings.tell(link.socket.as_fd(), &mut link.talk, starts) {
            Ok(()) => EpollFlags::EPOLLIN,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => EpollFlags::EPOLLOUT,
            Err(error) if socket::is_short(&error) => return self.rest(),
            Err(_) => return self.lose_engine(),
        };
        self.blocked = interest == EpollFlags::EPOLLOUT;
        let _ = self.epoll.modify(&link.socket, &mut EpollEvent::new(interest, ENGINE_TOKEN)); // it is in the set
    }

    /// The kernel has no memory for the talk: it goes on a moment later, instead of at once and
    /// in vain.
    fn rest(&mut self) {
        self.talk_at = Some(clock::monotonic() + SHORT_RETRY);
        if let Some(link) = self.engine.link() {
            let none = &mut EpollEvent::new(EpollFlags::empty(), ENGINE_TOKEN);
            let _ = self.epoll.modify(&link.socket, none); // it is in the set
        }
    }

    /// It closed its end or broke the talk: without it, it can only be ended. After `End` it
    /// may finish in peace.
    fn lose_engine(&mut self) {
        // What it asked for before it hung up is asked for, `End` among it.
        while self.read_request() == Read::One {
            self.tidings.short = None;
        }
        self.unwatch_engine();
        match self.ending {
            Ending::Asked { .. } => {}
            Ending::No | Ending::Terminating { .. } | Ending::Killing { .. } => self.kill_engine(),
        }
    }

    pub(super) fn kill_engine(&self) {
        if let Some(life) = self.engine.life() {
            let _ = signal_child(life.pid, Signal::KILL); // gone already is what we want
        }
    }

    fn unwatch_engine(&mut self) {
        if let Some(link) = self.engine.cut_link() {
            let _ = self.epoll.delete(&link.socket); // closed with it in any case
        }
    }

    fn end_if_done(&mut self, now: Monotonic) -> Option<i32> {
        match self.ending {
            Ending::No if self.end_signals != 0 && self.engine.short_lives() >= SHORT_LIVES_MAX => {
                if self.tidings.table.living().next().is_none() {
                    return Some(EXIT_ABANDONED);
                }
                say("no engine can be started: ending the services");
                self.signal_living(Signal::TERM);
                self.ending = Ending::Terminating { kill_at: now + ABANDON_GRACE };
            }
            // Whoever started the daemon has to hear of it; nobody depends on this keeper yet.
            Ending::No
                if self.engine.never_got_going(SHORT_LIVES_MAX)
                    && self.tidings.table.next_taken(0).is_none() =>
            {
                say("no engine could be started, and nothing runs yet: giving up");
                return Some(EXIT_ABANDONED);
            }
            Ending::No => {}
            Ending::Asked { code, kill_engine_at } => {
                if self.engine.life().is_none() {
                    self.reap_all();
                    return Some(i32::from(code));
                }
                if now >= kill_engine_at {
                    self.kill_engine();
                    self.ending = Ending::Asked { code, kill_engine_at: now + ENGINE_END_MAX };
                }
            }
            Ending::Terminating { kill_at } => {
                if self.tidings.table.living().next().is_none() {
                    return Some(EXIT_ABANDONED);
                }
                if now >= kill_at {
                    self.signal_living(Signal::KILL);
                    self.ending = Ending::Killing { leave_at: now + ABANDON_GRACE };
                }
            }
            Ending::Killing { leave_at } => {
                if now >= leave_at || self.tidings.table.living().next().is_none() {
                    return Some(EXIT_ABANDONED);
                }
            }
        }
        None
    }

    fn signal_living(&self, signal: Signal) {
        self.tidings.table.living().for_each(|slot| signal_run(slot, signal));
    }
}

/// One line to stderr, on trouble only; a closed stderr is no trouble of ours.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "upright keeper: {text}");
}
