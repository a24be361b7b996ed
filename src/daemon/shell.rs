//! The loop: every source becomes an event, every event is one step, every step is performed.
//!
//! Refuses: blocking. What may take long is a task or a thread and comes back as a source.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde_json::Value;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::api::call::Answer;
use crate::base::signal::Signal;
use crate::base::{limits, time::Monotonic};
use crate::config::paths::Home;
use crate::daemon::beat::Beat;
use crate::daemon::doors::Doors;
use crate::daemon::drills::Drills;
use crate::daemon::handlers::{Asked, refuse};
use crate::daemon::hands::{Hands, Late, Source, stamp};
use crate::daemon::kpi::{LOGS_COUNTED_EVERY, LogsCounted};
use crate::daemon::notify::NotifySocket;
use crate::daemon::orphans::Facts;
use crate::daemon::reload::{Files, Look, Reader};
use crate::daemon::slate::Slate;
use crate::daemon::upgrade::Upgrade;
use crate::daemon::views::Clocks;
use crate::daemon::words::DATAGRAMS_PER_TURN;
use crate::engine::effect::Effect;
use crate::engine::event::{Event, Order, RequestId};
use crate::engine::outbox::Quiet;
use crate::engine::{Effects, Engine};
use crate::keeper::client::Client;
use crate::keeper::wire::{News, Request, Stage};
use crate::store::open::{Life, Phase};
use crate::store::row::Level;
use crate::store::writer::Write;
use crate::sys::clock;
use crate::sys::watched::{Wake, watched};
use crate::telemetry::observe::{Stamp, note};

/// Most news of the keeper taken in one go, so that calls are answered in a storm too.
const NEWS_PER_TURN: usize = 256;

/// When the talk with the keeper goes on that the kernel had no memory for.
const SHORT_RETRY: Duration = Duration::from_millis(20);

/// What the shell is made of.
pub struct Shell {
    pub(crate) engine: Engine,
    pub(crate) effects: Effects,
    pub(crate) slate: Slate,
    pub(crate) hands: Hands,
    pub(crate) notify: NotifySocket,
    pub(crate) home: Home,
    pub(crate) files: Files,
    pub(crate) doors: Doors,
    pub(crate) keeper_pid: i32,
    /// When the keeper started.
    pub(crate) started_at: Monotonic,
    /// When this engine began, and how many this keeper has started with it.
    pub(crate) engine_started: (Monotonic, u32),
    pub(crate) fatal_stops: u64,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) ending: Ending,
    pub(crate) requests: BTreeMap<RequestId, oneshot::Sender<Answer>>,
    pub(crate) next_request: u64,
    pub(crate) upgrade: Upgrade,
    /// What people asked not to be told of.
    pub(crate) quiet: Quiet,
    /// When this engine began.
    pub(crate) begun: Monotonic,
    pub(crate) logs_counted: LogsCounted,
    pub(crate) beat: Beat,
    pub(crate) drills: Drills,
}

/// How far the end of everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    No,
    /// Ordered; what is left at `kill_at` is killed.
    Stopping {
        kill_at: Monotonic,
    },
    /// Killed; what is left at `leave_at` is stuck in the kernel and left to the keeper.
    Killing {
        leave_at: Monotonic,
    },
    Done,
    /// Nothing is stopped: another engine takes over.
    HandedOver,
}

/// Where the loop hears from.
pub struct Ears {
    pub sources: mpsc::UnboundedReceiver<Source>,
    pub calls: mpsc::Receiver<Asked>,
}

/// What made a turn of the loop.
enum Turn {
    Keeper,
    Due,
    Source(Source),
    Call(Asked),
    Words,
}

impl Shell {
    /// Runs until everything is stopped.
    ///
    /// # Errors
    /// The keeper is gone, or the kernel refuses a timer. The keeper starts another engine.
    pub async fn run(&mut self, mut ears: Ears) -> io::Result<()> {
        let keeper = watched(self.hands.tools.keeper.as_fd().try_clone_to_owned()?, Wake::Data)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?;
        let fired = watched(timer.as_fd().try_clone_to_owned()?, Wake::Data)?;
        let mut armed = None;
        self.settle();
        self.hands.ask_keeper(Request::Alive { stage: Stage::Running });
        while !matches!(self.ending, Ending::Done | Ending::HandedOver) {
            let due = self.next_due();
            if due != armed {
                arm(&timer, due)?;
                armed = due;
            }
            let turn = self.turn(&mut ears, &keeper, &fired).await?;
            let woken = clock::monotonic();
            match turn {
                Turn::Keeper => self.on_keeper()?,
                Turn::Due => {
                    armed.iter().for_each(|due| self.hands.observed.lag.observe(woken.since(*due)));
                    // A ping that lies there was in time, however late we are.
                    self.hear_all()?;
                    let _ = timer.wait(); // clears it; EAGAIN when it was armed anew meanwhile
                    armed = None;
                    self.on_due();
                }
                Turn::Source(source) => self.on_source(source)?,
                Turn::Call(asked) => self.on_call(asked),
                Turn::Words => {
                    self.hear(DATAGRAMS_PER_TURN)?;
                    // Services that never fall silent must not keep a client from being heard.
                    if let Ok(asked) = ears.calls.try_recv() {
                        self.on_call(asked);
                    }
                    tokio::task::yield_now().await;
                }
            }
            self.settle();
            self.look_at_drills();
            self.count_logs(LOGS_COUNTED_EVERY);
            self.go_on_leaving();
            self.hands.observed.turn.observe(clock::monotonic().since(woken));
        }
        Ok(())
    }

    async fn turn(
        &self,
        ears: &mut Ears,
        keeper: &AsyncFd<OwnedFd>,
        fired: &AsyncFd<OwnedFd>,
    ) -> io::Result<Turn> {
        let interest = match self.hands.tools.keeper.wants_write() {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        tokio::select! {
            // Ends and deadlines before questions: a crowd of clients delays no restart.
            biased;
            ready = keeper.ready(interest) => {
                // Cleared before it is read: what comes later makes it ready again.
                ready?.clear_ready();
                Ok(Turn::Keeper)
            }
            () = tokio::time::sleep(SHORT_RETRY), if self.hands.tools.keeper.is_short() => Ok(Turn::Keeper),
            ready = fired.readable() => {
                ready?.clear_ready();
                Ok(Turn::Due)
            }
            Some(source) = ears.sources.recv() => Ok(Turn::Source(source)),
            heard = self.notify.readable() => heard.map(|()| Turn::Words),
            Some(asked) = ears.calls.recv() => Ok(Turn::Call(asked)),
        }
    }

    fn next_due(&self) -> Option<Monotonic> {
        let ending = match self.ending {
            Ending::No | Ending::Done | Ending::HandedOver => None,
            Ending::Stopping { kill_at } => Some(kill_at),
            Ending::Killing { leave_at } => Some(leave_at),
        };
        [self.engine.next_deadline(), ending, self.upgrade.due()].into_iter().flatten().min()
    }

    /// One event, one step, its effects; then what the effects answered at once.
    pub(crate) fn handle(&mut self, event: Event) {
        self.hands.answers.push_back(event);
        self.settle();
    }

    /// Works off what is known already, and what has been committed.
    fn settle(&mut self) {
        loop {
            if let Some(event) = self.hands.answers.pop_front() {
                let now = clock::monotonic();
                self.engine.step(now, event, &mut self.effects);
                self.perform(stamp(now));
            } else if let Some(late) = self.hands.next_committed() {
                self.on_late(late);
            } else if let Some((late, trouble)) = self.hands.next_uncommitted() {
                self.on_never(late, &trouble);
            } else {
                return self.slate.clear();
            }
        }
    }

    /// Performs what the last step said.
    pub(crate) fn perform(&mut self, stamp: Stamp) {
        for effect in self.effects.drain() {
            if let Some(unit) = effect.unit() {
                self.slate.touch(unit);
            }
            if let Effect::Spawn { unit, .. } = &effect
                && let Some(spec) = self.engine.spec_of(unit)
            {
                // It may have come in force with this start.
                self.hands.set_spec(spec);
            }
            self.hands.perform(effect, stamp);
        }
        self.effects.drain_marks().for_each(drop);
        self.keep_owed_texts();
        self.hands.end_step();
    }

    fn on_late(&mut self, late: Late) {
        match late {
            Late::Release(run) => self.hands.release(run),
            Late::Reply { request, outcomes } => {
                if self.on_applied(request, Ok(&outcomes)) {
                    return;
                }
                if let Some(reply) = self.requests.remove(&request) {
                    let _ = reply.send(self.action_reply(&outcomes)); // whoever asked has left
                }
            }
            Late::Answer(reply, answer) => _ = reply.send(answer), // whoever asked has left
            Late::Fault { drill, number, wait, reply } => self.do_fault(drill, number, wait, reply),
            Late::Finished => self.ending = Ending::Done,
            Late::Upgrade(milestone) => self.on_milestone(milestone),
        }
    }

    /// The disk takes nothing. "Done" is said only of what is written down, so this is told
    /// instead, rather than never answered; and an end is not put off until there is room.
    fn on_never(&mut self, late: Late, trouble: &str) {
        let reply = match late {
            Late::Release(_) => None,
            Late::Reply { request, .. } => {
                if self.on_applied(request, Err(unwritable(trouble))) {
                    return;
                }
                self.requests.remove(&request)
            }
            Late::Answer(reply, _) => Some(reply),
            Late::Fault { drill, number, reply, .. } => {
                self.drop_fault(&drill, number);
                Some(reply)
            }
            Late::Finished => {
                self.ending = Ending::Done;
                None
            }
            Late::Upgrade(milestone) => {
                self.on_milestone(milestone);
                None
            }
        };
        if let Some(reply) = reply {
            let _ = reply.send(unwritable(trouble)); // whoever asked has left
        }
    }

    fn on_keeper(&mut self) -> io::Result<()> {
        let mut heard = false;
        for _ in 0..NEWS_PER_TURN {
            match self.hands.tools.keeper.recv()? {
                Some(news) => {
                    // What a process said before it ended counts before its end.
                    if matches!(news, News::Exited { .. }) && !std::mem::replace(&mut heard, true) {
                        self.hear_all()?;
                    }
                    self.on_news(news);
                }
                None => return Ok(()),
            }
        }
        // The readiness was cleared, and there is more.
        let _ = self.hands.tools.sources.send(Source::KeeperHasMore); // we hold the other end
        Ok(())
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Spawned { run, pid, identity } => {
                if let Some(live) = self.hands.runs.get_mut(&run) {
                    live.pid = Some(pid);
                    let unit = live.unit.clone();
                    self.hands.tools.containment.on_spawned(&unit, pid);
                    let spawned_at = clock::monotonic();
                    self.hands.remember_spawned(run, &Facts { pid, identity, spawned_at });
                }
                self.handle(Event::Spawned { run, pid });
            }
            News::Executed { run } => {
                if let Some(live) = self.hands.runs.get(&run) {
                    self.hands.observed.on_executed(&live.unit, run, live.role, clock::monotonic());
                }
                self.handle(Event::Executed { run });
            }
            News::SpawnShort { run, errno } => {
                if let Some(live) = self.hands.runs.remove(&run) {
                    self.hands.tools.pipes.forget_run(&live.unit, run);
                }
                self.handle(Event::SpawnShort { run, errno });
            }
            News::Exited { run, at, exit } => self.on_run_exited(run, at, exit),
            News::Main { run, pid, identity } => self.on_main(run, pid, identity),
            News::OrphanReaped => self.hands.on_orphan_reaped(),
            News::Signalled { signal } => self.on_signal(signal),
            News::Upgrade(news) => self.on_upgrade_news(news),
            News::Ping => self.hands.ask_keeper(Request::Alive { stage: Stage::Running }),
            News::Welcome { .. }
            | News::EngineEnded(_)
            | News::Row(_)
            | News::Held { .. }
            | News::TableEnd => {
                tracing::warn!("the keeper told its table twice");
            }
        }
    }

    fn on_signal(&mut self, signal: Signal) {
        match signal {
            Signal::TERM | Signal::INT | Signal::QUIT => self.shut_down(signal),
            Signal::HUP => self.read_files(Reader::Signal),
            other => tracing::info!("{other} means nothing here"),
        }
    }

    /// The first signal stops everything in reverse order; the next one, or `shutdown_timeout`,
    /// kills what is left.
    fn shut_down(&mut self, signal: Signal) {
        let now = clock::monotonic();
        match self.ending {
            Ending::No => {
                let message = format!("got {signal}: stopping every unit in reverse order");
                self.note(Level::Info, "daemon.stopping", message, []);
                self.ending = Ending::Stopping { kill_at: now + self.shutdown_timeout };
                self.order_unasked(Order::Shutdown);
            }
            Ending::Stopping { .. } => self.kill_the_rest(now),
            Ending::Killing { .. } | Ending::Done | Ending::HandedOver => {}
        }
    }

    fn kill_the_rest(&mut self, now: Monotonic) {
        self.ending = Ending::Killing { leave_at: now + limits::KILL_GRACE };
        let message = "not everything has stopped in time: killing what is left".to_string();
        self.note(Level::Warn, "daemon.killing", message, []);
        self.hands.kill_everything();
    }

    fn on_due(&mut self) {
        let now = clock::monotonic();
        match self.ending {
            Ending::Stopping { kill_at } if kill_at <= now => self.kill_the_rest(now),
            Ending::Killing { leave_at } if leave_at <= now => self.ending = Ending::Done,
            Ending::No | Ending::Stopping { .. } | Ending::Killing { .. } => {}
            Ending::Done | Ending::HandedOver => {}
        }
        self.handle(Event::Tick);
    }

    fn on_source(&mut self, source: Source) -> io::Result<()> {
        match source {
            Source::Event(event) => self.handle(event),
            Source::Committed(committed) => self.hands.on_committed(committed),
            Source::Outbox(keep) => self.hands.keep_of_outbox(keep, stamp(clock::monotonic())),
            Source::Captured(news) => self.hands.on_captured(news),
            Source::DrainOverdue(run) => self.hands.on_drain_overdue(run),
            Source::MaybeEmpty(unit) => self.hands.on_maybe_empty(&unit),
            Source::KeeperHasMore => self.on_keeper()?,
            Source::FilesTouched => self.read_files(Reader::Watch(Look::First)),
            Source::FilesDoubted => self.on_files_doubted(),
            Source::Again(what) => self.on_again(what),
            Source::FilesRead { loaded, troubles } => self.on_files_read(*loaded, &troubles),
            Source::Door(heard) => self.on_door(heard),
            Source::Drill(heard) => self.on_drill_heard(heard),
            Source::Upgrade(heard) => self.on_upgrade_heard(heard),
            Source::Heartbeat(pulse) => self.on_pulse(pulse),
        }
        Ok(())
    }

    /// Writes a line of history that is the daemon's own; it is submitted with the next step.
    pub(crate) fn note<'d>(
        &mut self,
        level: Level,
        event: &str,
        message: String,
        data: impl IntoIterator<Item = (&'d str, Value)>,
    ) {
        match level {
            Level::Info => tracing::info!("{message}"),
            Level::Warn => tracing::warn!("{message}"),
            Level::Error => tracing::error!("{message}"),
        }
        let mut line = note(level, event, message, stamp(clock::monotonic()));
        line.data.extend(data.into_iter().map(|(key, value)| (key.to_string(), value)));
        self.hands.note(line);
        self.hands.end_step();
    }

    /// Gives an order whose outcome nobody waits for.
    pub(crate) fn order_unasked(&mut self, order: Order) {
        let request = self.new_request();
        self.handle(Event::Ordered { request, order });
    }

    pub(crate) fn order_and_wait(&mut self, order: Order, reply: oneshot::Sender<Answer>) {
        let request = self.new_request();
        self.requests.insert(request, reply);
        self.handle(Event::Ordered { request, order });
    }

    pub(crate) fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    pub(crate) fn clocks(&self) -> Clocks {
        Clocks { now: clock::monotonic(), wall_us: clock::wall().as_microsecond() }
    }

    /// Everything is stopped: leaves nothing behind and has the keeper end.
    pub fn leave(mut self) {
        let life = Life { phase: Phase::Ended, fatal_stops: self.fatal_stops };
        self.count_logs(Duration::ZERO);
        self.note(Level::Info, "daemon.stopped", "everything is stopped".to_string(), []);
        self.hands.keep(Write::Life(life));
        self.hands.end_step();
        for path in [&self.home.socket, &self.home.notify_socket] {
            let _ = std::fs::remove_file(path); // somebody removed it before us
        }
        self.hands.leave();
    }
}

fn unwritable(trouble: &str) -> Answer {
    let message = format!("the order was carried out, but cannot be written down: {trouble}");
    let help = "make room for the store; `upright status` tells what came of the order".to_string();
    refuse(507, "store.trouble", message, Some(help))
}

fn arm(timer: &TimerFd, due: Option<Monotonic>) -> io::Result<()> {
    match due {
        // Zero would disarm it.
        Some(at) => {
            let at = TimeSpec::from_duration(Duration::from_nanos(at.as_ns().max(1)));
            timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        }
        None => timer.unset()?,
    }
    Ok(())
}

impl Hands {
    fn kill_everything(&mut self) {
        let units: Vec<_> =
            self.runs.values().filter(|live| !live.ended).map(|live| live.unit.clone()).collect();
        for unit in units {
            self.kill_runs(&unit);
            if let Err(error) = self.tools.containment.kill_all(&unit) {
                tracing::warn!("cannot kill everything of {unit}: {error}");
            }
        }
    }

    /// Commits what waits, takes the cgroups away, and has the keeper end.
    fn leave(self) {
        self.tools.containment.remove();
        self.tools.pipes.remove();
        let mut keeper = self.tools.keeper;
        drop(self.tools.store);
        say_last(&mut keeper, Request::End { code: 0 });
    }
}

/// The last word of this engine, and all that it had to say before.
pub(crate) fn say_last(keeper: &mut Client, word: Request) {
    let said = keeper.send(word).and_then(|()| {
        while keeper.wants_write() {
            keeper.wait(clock::monotonic() + Duration::from_secs(5))?;
            keeper.flush()?;
        }
        Ok(())
    });
    if let Err(error) = said {
        tracing::error!("cannot tell the keeper that this engine leaves: {error}");
    }
}
