//! What services say of themselves (sd_notify(3)): from a datagram to events, in systemd's order.
//!
//! Refuses: strangers. A word counts for the unit whose process said it, and moves nothing else;
//! root may speak for another process (SCM_CREDENTIALS), because it may do everything.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::daemon::fdstore::{NAME_DEFAULT, Outcome};
use crate::daemon::hands::{Hands, Live, ask};
use crate::daemon::notify::Sent;
use crate::daemon::orphans::Facts;
use crate::daemon::shell::Shell;
use crate::engine::effect::Role;
use crate::engine::event::{Event, Said};
use crate::engine::safe::Mode;
use crate::keeper::wire::Request;
use crate::probe::notify::{Notice, Stage, Watchdog};
use crate::sys::socket::{Completeness, close_at_once};
use crate::sys::{clock, pidfd};
use crate::unit::spec::{ReadyWhen, ServiceType};

/// Datagrams taken before everything else has its turn: a flood delays nobody else.
pub const DATAGRAMS_PER_TURN: usize = 64;

/// `WATCHDOG_USEC=0`: no ping is expected any more. So long that it never falls due.
const NO_WATCHDOG: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A guess may be wrong for a moment: a daemon forks twice, and the one in between is met. What
/// ends later than this after a guess has ended for good.
const GUESS_AGAIN_MAX: Duration = Duration::from_secs(5);

/// A main process that is being replaced by another of its unit (`MAINPID=`).
#[derive(Debug, Default)]
pub struct Handover {
    /// Requests to the keeper that it has not answered.
    pub asked: u32,
    /// An end that was told meanwhile: of the old process, if the keeper agrees.
    pub end: Option<(Monotonic, Exit)>,
    /// A refusal was logged: once for a run is enough.
    pub refused: bool,
    /// It was asked to end: what it leaves behind is not the run.
    pub end_asked: bool,
    /// When the main process of a `forking` unit was last guessed.
    pub guessed_at: Option<Monotonic>,
}

impl Shell {
    /// Takes at most `most` datagrams.
    ///
    /// # Errors
    /// The socket is broken.
    pub(crate) fn hear(&mut self, most: usize) -> io::Result<()> {
        for _ in 0..most {
            let Some(sent) = self.notify.look()? else { return Ok(()) };
            // Heard first and taken out then, so that our death loses no word; unless a word may
            // be what we die of again and again.
            let careful = self.engine.mode(clock::monotonic()) == Mode::Safe;
            if careful {
                self.notify.done()?;
            }
            self.on_sent(sent);
            if !careful {
                self.notify.done()?;
            }
        }
        Ok(())
    }

    /// Takes all that was said before now: an end is judged, and time runs out, only after that.
    ///
    /// # Errors
    /// The socket is broken.
    pub(crate) fn hear_all(&mut self) -> io::Result<()> {
        self.hear(self.notify.waiting_max())
    }

    fn on_sent(&mut self, sent: Sent) {
        let Sent { pid, process, notice, fds, complete } = sent;
        let Some((unit, run)) = self.hands.speaker(pid, process.as_ref()) else {
            fds.into_iter().for_each(close_at_once);
            return tracing::debug!("process {pid} speaks for no unit that runs");
        };
        if let Some(pid) = notice.main_pid {
            self.hands.on_main_pid(&unit, run, pid);
        }
        self.on_stage(run, notice.stage);
        let said = [
            notice.status.clone().map(Said::Status),
            notice.extend_timeout.map(Said::ExtendTimeout),
            notice
                .watchdog_period
                .map(|every| Said::WatchdogEvery(if every.is_zero() { NO_WATCHDOG } else { every })),
        ];
        for said in said.into_iter().flatten() {
            self.handle(Event::Said { run, said });
        }
        match notice.watchdog {
            Some(Watchdog::Ping) => self.handle(Event::Pinged { run }),
            Some(Watchdog::Trigger) => self.handle(Event::WatchdogTriggered { run }),
            None => {}
        }
        self.hands.on_fds(&unit, &notice, fds, complete);
        // A barrier's fd is closed with the others, and everything before it is dealt with.
    }

    fn on_stage(&mut self, run: RunId, stage: Option<Stage>) {
        match stage {
            Some(Stage::Ready) => {
                self.hands.note_ready(run);
                self.handle(Event::NotifiedReady { run });
            }
            Some(Stage::Reloading) => self.handle(Event::Said { run, said: Said::Reloading }),
            Some(Stage::Stopping) => self.handle(Event::Said { run, said: Said::Stopping }),
            None => {}
        }
    }

    /// The keeper says which process the run is.
    pub(crate) fn on_main(&mut self, run: RunId, pid: i32, identity: Option<u64>) {
        let Some(live) = self.hands.runs.get_mut(&run) else { return };
        live.handover.asked = live.handover.asked.saturating_sub(1);
        let unit = live.unit.clone();
        if live.pid != Some(pid) {
            live.handover.end = None;
            live.pid = Some(pid);
            self.hands.tools.containment.on_spawned(&unit, pid);
            let guessed = live.handover.guessed_at.is_some();
            let spawned_at = live.row.as_ref().map_or_else(clock::monotonic, |row| row.spawned_at);
            self.hands.remember_spawned(run, &Facts { pid, identity, spawned_at });
            tracing::info!("process {pid} is the main process of {unit} now");
            self.handle(Event::Said { run, said: Said::MainPid(pid) });
            if guessed {
                self.on_stage(run, Some(Stage::Ready));
            }
        }
        self.tell_end(run);
    }

    /// An end of a run, unless it may be that of a process which is not the run any more.
    pub(crate) fn on_run_exited(&mut self, run: RunId, at: Monotonic, exit: Exit) {
        if let Some(live) = self.hands.runs.get_mut(&run) {
            live.handover.end = Some((at, exit));
        }
        self.tell_end(run);
    }

    /// Hears what was said before this engine lived, then tells the ends that wait for it.
    ///
    /// # Errors
    /// The socket is broken.
    pub(crate) fn tell_ends(&mut self) -> io::Result<()> {
        let waits = |(_, live): &(&RunId, &Live)| live.handover.end.is_some();
        let waiting: Vec<RunId> = self.hands.runs.iter().filter(waits).map(|(run, _)| *run).collect();
        if !waiting.is_empty() {
            self.hear_all()?;
        }
        waiting.into_iter().for_each(|run| self.tell_end(run));
        Ok(())
    }

    /// Tells an end that was held back, if nothing is left that could make it another one's.
    fn tell_end(&mut self, run: RunId) {
        let Some(live) = self.hands.runs.get(&run) else { return };
        let Some((at, exit)) = live.handover.end.filter(|_| live.handover.asked == 0) else { return };
        let unit = live.unit.clone();
        if exit == Exit::Code(0) && self.hands.guess_main(&unit, run, at) {
            return;
        }
        let Some(live) = self.hands.runs.get_mut(&run) else { return };
        live.handover.end = None;
        live.ended = true;
        live.end = Some((at, exit));
        self.hands.observed.on_ended(run, at);
        let rest = self.hands.rest(&unit);
        self.handle(Event::Exited { run, at, exit, rest });
    }
}

impl Hands {
    /// The unit that this process belongs to, and its living main run.
    fn speaker(&self, pid: i32, process: Option<&OwnedFd>) -> Option<(UnitName, RunId)> {
        let living = |run: RunId| self.runs.get(&run).filter(|live| !live.ended).map(|_| run);
        let main_of = |unit: UnitName| {
            let run = self.mains.get(&unit).copied().and_then(living)?;
            Some((unit, run))
        };
        if let Some(unit) = self.tools.containment.owner(pid, process) {
            return main_of(unit);
        }
        // It left its cgroup, or it is gone and the kernel does not tell where it was.
        let own = self.runs.values().find(|live| live.pid == Some(pid) && !live.ended);
        own.filter(|_| pid > 1).and_then(|live| main_of(live.unit.clone()))
    }

    fn note_ready(&mut self, run: RunId) {
        if let Some(live) = self.runs.get_mut(&run)
            && !live.said_ready
        {
            live.said_ready = true;
            self.remember(run, |row| row.said_ready = true);
            self.ask_keeper(Request::NoteReady { run });
        }
    }

    /// `MAINPID=`: only a process of the same unit that is no run of its own.
    fn on_main_pid(&mut self, unit: &UnitName, run: RunId, pid: i32) {
        if self.runs.get(&run).is_none_or(|live| live.pid == Some(pid) && live.handover.asked == 0) {
            return;
        }
        match self.process_of(unit, run, pid) {
            Ok(process) => {
                if let Some(live) = self.runs.get_mut(&run) {
                    live.handover.asked += 1;
                    self.ask_keeper(Request::NoteMain { run, pid, process });
                }
            }
            Err(why) => {
                let Some(live) = self.runs.get_mut(&run) else { return };
                match std::mem::replace(&mut live.handover.refused, true) {
                    false => tracing::warn!("{unit} names {pid} as its main process, which {why}: ignored"),
                    true => tracing::debug!("{unit} names {pid} as its main process, which {why}: ignored"),
                }
            }
        }
    }

    /// The process behind `pid`, held before it is looked at, so that what is seen is about it.
    fn process_of(&self, unit: &UnitName, run: RunId, pid: i32) -> Result<OwnedFd, String> {
        let process = pidfd::open(pid).map_err(|error| format!("cannot be held: {error}"))?;
        let is_run = |(other, live): (&RunId, &Live)| *other != run && !live.ended && live.pid == Some(pid);
        if self.tools.containment.owner(pid, Some(&process)).as_ref() != Some(unit) {
            return Err("is no process of the unit".to_string());
        }
        if self.runs.iter().any(is_run) {
            return Err("is another command of the unit".to_string());
        }
        if pidfd::has_ended(&process) {
            return Err("has ended".to_string());
        }
        Ok(process)
    }

    /// The command of a `forking` unit has ended well: what it left behind is the run, if it is
    /// one process (systemd.service(5), GuessMainPID=). Whether the keeper is asked.
    fn guess_main(&mut self, unit: &UnitName, run: RunId, at: Monotonic) -> bool {
        let forking = self.specs.get(unit).is_some_and(|spec| spec.service.kind == ServiceType::Forking);
        let guesses = |live: &&mut Live| {
            let again = live.handover.guessed_at.is_none_or(|last| at.since(last) < GUESS_AGAIN_MAX);
            live.role == Role::Main && again && !live.handover.end_asked
        };
        let Some(pid) = self.tools.containment.only_child(unit).filter(|_| forking) else { return false };
        let Some(live) = self.runs.get_mut(&run).filter(guesses) else { return false };
        live.handover.guessed_at = Some(at);
        let before = live.handover.asked;
        self.on_main_pid(unit, run, pid);
        self.runs.get(&run).is_some_and(|live| live.handover.asked > before)
    }

    fn on_fds(&mut self, unit: &UnitName, notice: &Notice, fds: Vec<OwnedFd>, complete: Completeness) {
        let name = notice.fd_name.as_deref().unwrap_or(NAME_DEFAULT);
        let Hands { stored, tools, specs, .. } = self;
        let mut ask = |request| ask(&mut tools.keeper, request);
        if notice.fd_store_remove {
            stored.remove(unit, name, &mut ask);
        }
        if !notice.fd_store {
            return fds.into_iter().for_each(close_at_once);
        }
        if complete == Completeness::Truncated {
            fds.into_iter().for_each(close_at_once);
            return tracing::warn!("{unit} stores more fds than could be taken over: none of them is kept");
        }
        let spec = specs.get(unit);
        if spec.is_some_and(|spec| matches!(spec.readiness.when, ReadyWhen::NotifyFd(_))) {
            fds.into_iter().for_each(close_at_once);
            return tracing::warn!("{unit} stores fds, but has `readiness.notify_fd`: they are not kept");
        }
        let mut said = false;
        for fd in fds {
            match stored.store(unit, name, fd, &mut ask) {
                Ok(Outcome::Stored | Outcome::Known) => {}
                Ok(Outcome::Full) if std::mem::replace(&mut said, true) => {}
                Ok(Outcome::Full) => {
                    tracing::warn!("{unit} has stored as many fds as it may: `{name}` is closed");
                }
                Ok(Outcome::Closed) => {
                    tracing::debug!("{unit} is to go down: its fd `{name}` is not kept");
                }
                Err(error) => tracing::warn!("cannot keep the fd `{name}` of {unit}: {error}"),
            }
        }
    }
}
