//! `perform`: the one match over `Effect`, and all that it needs to act.
//!
//! Refuses: choosing what to do. What cannot be done is an event, fed back to the engine.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::alert::dispatch::{Dispatcher, Keep};
use crate::api::call::Answer;
use crate::base::exit::{Exit, RunId, SpawnStep};
use crate::base::signal::Signal;
use crate::base::{name::UnitName, time::Monotonic};
use crate::config::load::Loaded;
use crate::daemon::again::Again;
use crate::daemon::beat::Pulse;
use crate::daemon::containment::Containment;
use crate::daemon::fdstore::FdStore;
use crate::daemon::launch::Maker;
use crate::daemon::observed::Observed;
use crate::daemon::output::Output;
use crate::daemon::pipes::Pipes;
use crate::daemon::plan::{self, Refused, Surroundings};
use crate::daemon::streams::History;
use crate::daemon::tag::Tag;
use crate::daemon::upgrade::{Heard, Milestone};
use crate::daemon::words::Handover;
use crate::daemon::{doors, drills};
use crate::daemon::{follow, launch};
use crate::engine::durable::UnitDurable;
use crate::engine::effect::{Effect, Outcome, Record, Role};
use crate::engine::event::{Event, RequestId, Rest};
use crate::keeper::client::Client;
use crate::keeper::wire::Request;
use crate::logs::Stream;
use crate::logs::capture::{Birth, Capture, News, Pipe};
use crate::store::open::RUNS_PER_RESERVE;
use crate::store::row::{EventRow, Level, NewEvent};
use crate::store::run::RunRow;
use crate::store::writer::{Batch, Committed, Store, Write};
use crate::sys::clock;
use crate::telemetry::observe::{Stamp, delivery_event, observe};
use crate::telemetry::scribe::ScribeHandle;
use crate::unit::spec::{StderrTo, UnitSpec};

/// What the daemon's own threads and tasks tell the loop. As many as there are runs and
/// commits under way: the channel has no bound of its own because its senders must not wait.
pub enum Source {
    Event(Event),
    Committed(Committed),
    /// What the capture of logs tells.
    Captured(News),
    /// How far an alert is with a channel.
    Outbox(Keep),
    DrainOverdue(RunId),
    /// Somebody saw the unit empty; look again.
    MaybeEmpty(UnitName),
    /// More news than one turn takes.
    KeeperHasMore,
    /// Files of the configuration may have changed.
    FilesTouched,
    /// A mistake was seen that may be half a file; look again.
    FilesDoubted,
    /// What could not be done before.
    Again(Again),
    /// The files, as they were read, and the directories that cannot be watched.
    FilesRead {
        loaded: Box<Loaded>,
        troubles: Vec<String>,
    },
    Door(doors::Heard),
    Drill(drills::Heard),
    Upgrade(Heard),
    Heartbeat(Pulse),
}

/// What waits for a commit.
pub enum Late {
    Release(RunId),
    Reply {
        request: RequestId,
        outcomes: Vec<(UnitName, Outcome)>,
    },
    Answer(oneshot::Sender<Answer>, Answer),
    /// A fault of a drill stands in the journal.
    Fault {
        drill: String,
        number: u64,
        wait: Duration,
        reply: oneshot::Sender<Answer>,
    },
    Finished,
    Upgrade(Milestone),
}

/// A run that the keeper has in its table.
pub struct Live {
    pub unit: UnitName,
    pub role: Role,
    pub pid: Option<i32>,
    /// Where in the spool its words begin.
    pub log_from: u64,
    pub ended: bool,
    /// When and how, once that was told.
    pub end: Option<(Monotonic, Exit)>,
    /// The keeper knows that it said READY=1.
    pub said_ready: bool,
    pub handover: Handover,
    /// What the store has of it, for a keeper that has to find it.
    pub row: Option<RunRow>,
}

impl Live {
    pub fn new(unit: UnitName, role: Role, log_from: u64) -> Live {
        let handover = Handover::default();
        Live {
            unit,
            role,
            pid: None,
            log_from,
            ended: false,
            end: None,
            said_ready: false,
            handover,
            row: None,
        }
    }
}

/// What the hands are made of when an engine begins.
pub struct Tools {
    pub keeper: Client,
    pub store: Store,
    /// Of `system_resilience.log`.
    pub log: ScribeHandle,
    pub outbox: Dispatcher,
    pub capture: Capture,
    pub containment: Containment,
    pub pipes: Pipes,
    pub logs: PathBuf,
    pub around: Surroundings,
    pub sources: mpsc::UnboundedSender<Source>,
    pub fresh: broadcast::Sender<EventRow>,
    /// Run ids below this one are reserved in the store.
    pub reserved_until: RunId,
    /// Where pids mean something (`sys::process::world`).
    pub world: String,
}

pub struct Hands {
    pub(crate) tools: Tools,
    pub(crate) specs: BTreeMap<UnitName, Arc<UnitSpec>>,
    pub(crate) runs: BTreeMap<RunId, Live>,
    /// The newest main run of each unit.
    pub(crate) mains: BTreeMap<UnitName, RunId>,
    pub(crate) stored: FdStore,
    /// Answers known at once, to be told before anything else.
    pub(crate) answers: VecDeque<Event>,
    pub(crate) output: Output,
    /// Units of which somebody waits to hear that they are empty.
    watched: BTreeMap<UnitName, AbortHandle>,
    /// The newest resync request of a unit.
    pub(crate) resyncs: BTreeMap<UnitName, AbortHandle>,
    /// Units whose records come of a drill, and which.
    pub(crate) drilled: BTreeMap<UnitName, String>,
    /// The same for records that are about no unit.
    pub(crate) drilled_whole: Option<String>,
    writes: Vec<Write>,
    pub(crate) lates: Vec<Late>,
    pub(crate) waiting: VecDeque<(u64, Late)>,
    committed: u64,
    /// For metrics.
    pub(crate) observed: Observed,
}

impl Hands {
    pub fn new(tools: Tools) -> Hands {
        Hands {
            tools,
            specs: BTreeMap::new(),
            runs: BTreeMap::new(),
            mains: BTreeMap::new(),
            stored: FdStore::default(),
            answers: VecDeque::new(),
            output: Output::default(),
            watched: BTreeMap::new(),
            resyncs: BTreeMap::new(),
            drilled: BTreeMap::new(),
            drilled_whole: None,
            writes: Vec::new(),
            lates: Vec::new(),
            waiting: VecDeque::new(),
            committed: 0,
            observed: Observed::default(),
        }
    }

    /// Does what the engine says. `stamp` is that of the step that said it.
    pub fn perform(&mut self, effect: Effect, stamp: Stamp) {
        self.observed.on_effect(&effect);
        match effect {
            Effect::Spawn { unit, run, role } => self.spawn(unit, run, role, stamp.at),
            Effect::Signal { run, signal } => self.ask_keeper(Request::Signal { run, signal }),
            Effect::End { run, signal } => {
                if let Some(live) = self.runs.get_mut(&run) {
                    live.handover.end_asked = true;
                }
                self.remember(run, |row| row.end_asked = true);
                self.ask_keeper(Request::SignalToEnd { run, signal });
                if signal != Signal::KILL {
                    // One that is stopped (SIGSTOP, a debugger) would hear nothing but SIGKILL.
                    self.ask_keeper(Request::Signal { run, signal: Signal::CONT });
                }
            }
            Effect::SignalAll { unit, signal } => {
                for signal in [signal, Signal::CONT] {
                    if let Err(error) = self.tools.containment.signal_all(&unit, signal) {
                        tracing::warn!("cannot send {signal} to everything of {unit}: {error}");
                    }
                }
            }
            Effect::KillAll { unit } => {
                self.kill_runs(&unit);
                if let Err(error) = self.tools.containment.kill_all(&unit) {
                    tracing::warn!("cannot kill everything of {unit}: {error}");
                }
                self.watch_emptiness(unit);
            }
            Effect::Release { run } => self.forget_run(run),
            Effect::Probe { unit, run } => self.probe(&unit, run),
            Effect::Check { unit, run } => self.check(&unit, run),
            Effect::Resync { unit, run } => self.resync(&unit, run),
            Effect::Alert(alert) => self.writes.push(Write::Alert { alert, ts_us: stamp.ts_us }),
            Effect::WatchLog { unit, run } => self.watch_log(&unit, run),
            Effect::SaveEngine(row) => self.writes.push(Write::SaveEngine(row)),
            Effect::Save { unit, durable } => {
                self.keep_stored_by(&unit, &durable);
                self.writes.push(Write::Save { unit, durable });
            }
            Effect::Forget { unit } => {
                self.specs.remove(&unit);
                self.resyncs.remove(&unit);
                self.mains.remove(&unit);
                self.drop_stored_of_unknown();
                self.tools.containment.forget(&unit);
                self.writes.push(Write::Forget { unit });
            }
            Effect::Record(record) => self.record(&record, stamp),
            Effect::Reply { request, outcomes } => self.lates.push(Late::Reply { request, outcomes }),
            Effect::Finished => self.lates.push(Late::Finished),
        }
    }

    /// Ends a step: what it said is kept together, and what must wait for that waits.
    pub fn end_step(&mut self) {
        if !self.writes.is_empty() {
            let writes = std::mem::take(&mut self.writes);
            self.tools.store.submit(Batch { writes });
        }
        let after = self.tools.store.submitted();
        self.waiting.extend(self.lates.drain(..).map(|late| (after, late)));
    }

    /// SIGKILL to the processes that we started ourselves: one that moved to another cgroup is
    /// not met there.
    pub fn kill_runs(&mut self, unit: &UnitName) {
        let runs = self.runs.iter().filter(|(_, live)| live.unit == *unit && !live.ended);
        let runs: Vec<RunId> = runs.map(|(run, _)| *run).collect();
        for run in runs {
            self.ask_keeper(Request::Signal { run, signal: Signal::KILL });
        }
    }

    /// The next thing whose commit has come.
    pub fn next_committed(&mut self) -> Option<Late> {
        let (after, _) = self.waiting.front()?;
        if *after <= self.committed { self.waiting.pop_front().map(|(_, late)| late) } else { None }
    }

    /// Somebody who waits for a commit while none can be made, with the reason. What the keeper
    /// still has to remember waits on.
    pub fn next_uncommitted(&mut self) -> Option<(Late, String)> {
        let is_waited_for = |late: &Late| match late {
            Late::Release(_) | Late::Upgrade(Milestone::Healthy) => false,
            Late::Reply { .. }
            | Late::Answer(..)
            | Late::Fault { .. }
            | Late::Finished
            | Late::Upgrade(_) => true,
        };
        let place = self.waiting.iter().position(|(_, late)| is_waited_for(late))?;
        let trouble = self.store_trouble()?;
        self.waiting.remove(place).map(|(_, late)| (late, trouble))
    }

    /// Batches that are not on the disk yet.
    pub fn uncommitted(&self) -> u64 {
        self.tools.store.submitted().saturating_sub(self.committed)
    }

    pub fn on_committed(&mut self, committed: Committed) {
        self.committed = self.committed.max(committed.through);
        self.observed.on_committed(&committed);
        self.tools.outbox.committed(committed.alerts);
        self.tools.outbox.kept(committed.deliveries);
        for row in committed.events {
            let _ = self.tools.fresh.send(row); // nobody follows
        }
    }

    /// A delivery and its record are kept together; the dispatcher hears when they are.
    pub fn keep_of_outbox(&mut self, keep: Keep, stamp: Stamp) {
        match keep {
            Keep::Channels(known) => self.keep(Write::Channels(known)),
            Keep::Print { channel, print } => self.keep(Write::AlertPrint { channel, print }),
            Keep::Note(word) => self.note(word.event(stamp.ts_us, stamp.at)),
            Keep::Delivery { row, delivery } => {
                self.observed.on_delivery(&delivery);
                if let Some(event) = delivery_event(&row, &delivery, stamp) {
                    self.note(event);
                }
                self.keep(Write::Delivery { delivery, ts_us: stamp.ts_us });
            }
        }
        self.end_step();
    }

    pub fn keep(&mut self, write: Write) {
        self.writes.push(write);
    }

    pub fn answer_when_committed(&mut self, reply: oneshot::Sender<Answer>, answer: Answer) {
        self.waiting.push_back((self.tools.store.submitted(), Late::Answer(reply, answer)));
    }

    pub fn note(&mut self, event: NewEvent) {
        self.writes.push(Write::Event(event));
    }

    fn record(&mut self, record: &Record, stamp: Stamp) {
        self.observed.on_record(record, stamp.at);
        let mut event = observe(record, stamp);
        let drill = match &record.unit {
            Some(unit) => self.drilled.get(unit),
            None => self.drilled_whole.as_ref(),
        };
        event.data.extend(drill.map(|id| ("drill".to_string(), id.as_str().into())));
        match event.level {
            Level::Info => tracing::info!("{}", event.message),
            Level::Warn => tracing::warn!("{}", event.message),
            Level::Error => tracing::error!("{}", event.message),
        }
        self.writes.push(Write::Event(event));
    }

    /// The talk is kept in order and never waited for. A keeper that is gone ends the loop,
    /// which reads the same socket.
    pub fn ask_keeper(&mut self, request: Request) {
        ask(&mut self.tools.keeper, request);
    }

    fn spawn(&mut self, unit: UnitName, run: RunId, role: Role, now: Monotonic) {
        self.reserve_runs(run);
        let spawned = self.try_spawn(&unit, run, role);
        if spawned.is_err() {
            self.tools.pipes.forget_run(&unit, run);
        }
        match spawned {
            Ok(()) => {}
            Err(refused) if is_shortage(refused.errno) => {
                self.answers.push_back(Event::SpawnShort { run, errno: refused.errno });
            }
            Err(refused) => {
                tracing::warn!("cannot spawn {unit}: {}", refused.why);
                let exit = Exit::NotExecuted { step: refused.step, errno: refused.errno };
                let rest = self.rest(&unit);
                self.answers.push_back(Event::Exited { run, at: now, exit, rest });
            }
        }
    }

    fn try_spawn(&mut self, unit: &UnitName, run: RunId, role: Role) -> Result<(), Refused> {
        let Some(spec) = self.specs.get(unit).cloned() else {
            let why = "its file is gone".to_string();
            return Err(Refused { step: SpawnStep::Prepare, errno: Errno::ENOENT as i32, why });
        };
        let mut plan = plan::plan(&spec, role, run, &self.tools.around)?;
        let cgroup =
            self.tools.containment.enter(unit, &spec.resources).map_err(refused_at(SpawnStep::Cgroup))?;
        let out = self.spool_for_run(unit, Stream::Stdout)?;
        let err = match spec.log.stderr {
            StderrTo::Merge => None,
            StderrTo::Separate => self.spool_for_run(unit, Stream::Stderr)?,
        };
        let log_from = out.as_ref().map_or(0, |spool| spool.stored_bytes());
        let maker = Maker { pipes: &self.tools.pipes, spec: &spec, run, ids: plan.ids.as_ref() };
        let mut prepared =
            launch::fds(&maker, role, out, err, cgroup).map_err(refused_at(SpawnStep::Prepare))?;
        if role == Role::Main {
            let stored = self.stored.duplicates(unit).map_err(refused_at(SpawnStep::Prepare))?;
            launch::give_back(&spec, stored, &mut plan, &mut prepared);
        }
        let tag = Tag { unit: unit.clone(), role, log_from }.to_bytes();
        let request = Request::Spawn { run, tag, plan, fds: prepared.fds };
        self.tools.keeper.send(request).map_err(refused_at(SpawnStep::Prepare))?;
        for (fd, spool) in prepared.captured {
            self.capture(Pipe { run, fd, spool, birth: Birth::New });
        }
        if let Some(pipe) = prepared.notify_fd {
            follow::watch_notify_fd(run, pipe, self.tools.sources.clone());
        }
        self.insert_run(run, Live::new(unit.clone(), role, log_from));
        Ok(())
    }

    /// A run that the keeper has in its table, or soon will.
    pub fn insert_run(&mut self, run: RunId, live: Live) {
        if live.role == Role::Main {
            let newest = self.mains.entry(live.unit.clone()).or_insert(run);
            *newest = run.max(*newest);
        }
        self.runs.insert(run, live);
    }

    /// What the unit stored is kept as its row has it.
    pub fn keep_stored_by(&mut self, unit: &UnitName, row: &UnitDurable) {
        let Hands { stored, tools, .. } = self;
        stored.on_saved(unit, row, |request| ask(&mut tools.keeper, request));
    }

    /// Lets go of what units stored whose files are gone.
    pub fn drop_stored_of_unknown(&mut self) {
        let Hands { stored, tools, specs, .. } = self;
        stored.retain(|unit| specs.contains_key(unit), |request| ask(&mut tools.keeper, request));
    }

    /// Far enough ahead that the reserve is on the disk before an id of it is used.
    fn reserve_runs(&mut self, run: RunId) {
        if run.0 + RUNS_PER_RESERVE / 2 > self.tools.reserved_until.0 {
            let until = RunId(run.0 + RUNS_PER_RESERVE);
            self.tools.reserved_until = until;
            self.writes.push(Write::ReserveRuns { until });
        }
    }

    /// Whether processes of the unit are there besides the run that just ended.
    pub fn rest(&mut self, unit: &UnitName) -> Rest {
        let rest = self.tools.containment.rest(unit, &self.pids_of(unit));
        if rest == Rest::Alive {
            self.watch_emptiness(unit.clone());
        }
        rest
    }

    /// Pids of the unit's living runs.
    pub fn pids_of(&self, unit: &UnitName) -> Vec<i32> {
        let live = self.runs.values().filter(|live| live.unit == *unit && !live.ended);
        live.filter_map(|live| live.pid).collect()
    }

    fn watch_emptiness(&mut self, unit: UnitName) {
        if !self.watched.contains_key(&unit) {
            let watch = self.tools.containment.watch(&unit);
            let task = follow::watch_emptiness(unit.clone(), watch, self.tools.sources.clone());
            self.watched.insert(unit, task);
        }
    }

    /// Looks at a unit that may have become empty; `Emptied` is told once.
    pub fn on_maybe_empty(&mut self, unit: &UnitName) {
        let living = self.runs.values().any(|live| live.unit == *unit && !live.ended);
        if !living && self.tools.containment.rest(unit, &[]) == Rest::Alive {
            return self.tools.containment.kill_again(unit);
        }
        let Some(task) = self.watched.remove(unit) else { return };
        task.abort();
        // While a run lives, its end will ask again.
        if !living {
            self.answers.push_back(Event::Emptied { unit: unit.clone() });
        }
    }

    /// Looks at every unit that somebody waits for: an orphan of one of them was reaped.
    pub fn on_orphan_reaped(&mut self) {
        let watched: Vec<UnitName> = self.watched.keys().cloned().collect();
        for unit in watched {
            self.on_maybe_empty(&unit);
        }
    }

    pub fn history(&self) -> History {
        History { reader: self.tools.store.reader().clone(), fresh: self.tools.fresh.clone() }
    }

    pub fn store_trouble(&self) -> Option<String> {
        self.tools.store.trouble().map(|trouble| trouble.cause().to_string())
    }

    pub fn containment_word(&self) -> &'static str {
        self.tools.containment.word()
    }
}

pub fn ask(keeper: &mut Client, request: Request) {
    if let Err(error) = keeper.send(request) {
        tracing::error!("cannot ask the keeper: {error}");
    }
}

/// Now and wall time together, for records.
pub fn stamp(at: Monotonic) -> Stamp {
    Stamp { at, ts_us: clock::wall().as_microsecond() }
}

/// Want of fds, memory, pids or room, or a disk's trouble, met while we prepared a run: it passes
/// and is not the unit's fault.
pub(crate) fn is_shortage(errno: i32) -> bool {
    use Errno::{EAGAIN, EDQUOT, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC};
    [EMFILE, ENFILE, ENOMEM, EAGAIN, ENOBUFS, ENOSPC, EDQUOT, EIO].map(|short| short as i32).contains(&errno)
}

fn refused_at(step: SpawnStep) -> impl Fn(io::Error) -> Refused {
    move |error| Refused {
        step,
        errno: error.raw_os_error().unwrap_or(Errno::EIO as i32),
        why: format!("cannot {}: {error}", step.what()),
    }
}
