//! The fake world: processes and the keeper's table, the store, and a clock that jumps.
//!
//! Refuses: mercy. Whatever the real parts may do, late, twice or not at all, this does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::adopt::Boot;
use crate::engine::durable::{EngineDurable, UnitDurable};
use crate::engine::effect::{Alert, Effect, Record, Role};
use crate::engine::event::{Event, Rest};
use crate::engine::safe::Death;
use crate::engine::{Adopted, Asked};
use crate::sim::setup::Faults;
use crate::sim::tape::{Domain, Tape};
use crate::unit::spec::{HealthCheck, UnitSpec};

/// What a process will do, decided when it is born.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    pub ready_after: Option<Duration>,
    pub ends: Option<(Duration, Exit)>,
    /// How long it takes to die of TERM; None = it does not.
    pub term: Option<Duration>,
    /// How long it takes to die of KILL: zero, or the D state.
    pub kill: Duration,
    /// Lives on, but answers no check from then.
    pub sick_after: Option<Duration>,
    /// Leaves a child behind that lives on.
    pub stray: bool,
}

#[derive(Clone, Debug)]
pub struct Process {
    pub unit: UnitName,
    pub role: Role,
    pub pid: i32,
    pub nature: Nature,
    pub spawned_at: Monotonic,
    pub executed: bool,
    pub ready: bool,
    pub sick_since: Option<Monotonic>,
    /// Bad answers in a row that the engine was given.
    pub bad_answers: u32,
    /// An engine heard it say so, and had the keeper note it.
    pub said_ready: bool,
    pub ended: Option<(Monotonic, Exit)>,
    /// The engine asked it to end (directly, or with its unit).
    pub asked: bool,
}

impl Process {
    pub fn lives(&self) -> bool {
        self.ended.is_none()
    }
}

/// A child that outlives its parent.
#[derive(Clone, Copy, Debug)]
pub struct Stray {
    pub term: Option<Duration>,
    pub kill: Duration,
}

/// Something that will happen in the world.
#[derive(Clone, Debug)]
pub enum Happening {
    Executes(RunId),
    GetsReady(RunId),
    Ends(RunId, Exit),
    StrayEnds(UnitName),
    CheckAnswers {
        engine: u64,
        run: RunId,
    },
    ResyncAnswers {
        engine: u64,
        run: RunId,
    },
    GetsSick(RunId),
    Pings(RunId),
    /// News arrives at the engine of that incarnation, and only there.
    Arrives {
        engine: u64,
        event: Event,
    },
    ProbeAnswers {
        engine: u64,
        run: RunId,
    },
    Commits {
        engine: u64,
        batch: u64,
    },
    /// A deadline of that engine; it is void when another was armed since.
    Tick {
        engine: u64,
        at: Monotonic,
    },
    EngineStarts {
        boot: Boot,
    },
    Operator,
    Reconfigure,
    /// The store refuses everything for so long.
    StoreFails(Duration),
    Sleeps(Duration),
    Heal,
}

/// What waits for a commit.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub number: u64,
    pub effects: Vec<Effect>,
}

#[derive(Debug)]
pub struct World {
    pub now: Monotonic,
    pub tape: Tape,
    pub faults: Faults,
    pub healed: bool,
    pub specs: BTreeMap<UnitName, UnitSpec>,
    /// The keeper's table, and the truth about every process.
    pub table: BTreeMap<RunId, Process>,
    pub strays: BTreeMap<UnitName, Vec<Stray>>,
    /// Committed rows and events.
    /// What is committed of the engine itself.
    pub engine_row: EngineDurable,
    pub rows: BTreeMap<UnitName, UnitDurable>,
    pub events: Vec<Record>,
    pub failed_runs: BTreeSet<RunId>,
    pub alerts: BTreeMap<String, Alert>,
    /// What the keeper tells each new engine of the ones before it.
    pub deaths: Vec<Death>,
    /// The unit that engines die of.
    pub poison: Option<UnitName>,
    pub pending: Vec<Batch>,
    /// Records that are to be kept, and that were.
    pub records_due: u64,
    pub records_kept: u64,
    /// The store takes nothing until then.
    pub outage_until: Monotonic,
    /// When the machine last woke from a suspend.
    pub woke_at: Monotonic,
    slept: Duration,
    pub engine: u64,
    /// It died, and its services live on.
    pub keeper_died: bool,
    pub run_max: u64,
    queue: BTreeMap<(Monotonic, u64), Happening>,
    sequence: u64,
    /// Keeper news arrive in order: none before this.
    news_after: Monotonic,
}

impl World {
    pub fn new(tape: Tape, faults: Faults) -> World {
        World {
            now: Monotonic::from_ns(1_000_000_000),
            tape,
            faults,
            healed: false,
            specs: BTreeMap::new(),
            table: BTreeMap::new(),
            strays: BTreeMap::new(),
            engine_row: EngineDurable::default(),
            rows: BTreeMap::new(),
            events: Vec::new(),
            failed_runs: BTreeSet::new(),
            alerts: BTreeMap::new(),
            deaths: Vec::new(),
            poison: None,
            pending: Vec::new(),
            records_due: 0,
            records_kept: 0,
            outage_until: Monotonic::ZERO,
            woke_at: Monotonic::ZERO,
            slept: Duration::ZERO,
            engine: 0,
            keeper_died: false,
            run_max: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            news_after: Monotonic::ZERO,
        }
    }

    pub fn after(&mut self, wait: Duration, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now + wait, self.sequence), happening);
    }

    pub fn at(&mut self, at: Monotonic, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((at.max(self.now), self.sequence), happening);
    }

    pub fn next_happening(&mut self) -> Option<Happening> {
        let ((at, _), happening) = self.queue.pop_first()?;
        self.now = self.now.max(at);
        Some(happening)
    }

    pub fn next_at(&self) -> Option<Monotonic> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn rate(&mut self, domain: Domain, per_mille: u64) -> bool {
        !self.healed && self.tape.chance(domain, per_mille)
    }

    pub(crate) fn some_ms(&mut self, domain: Domain, max: u64) -> Duration {
        Duration::from_millis(self.tape.below(domain, max + 1))
    }

    /// News from the keeper: late by a little, in order.
    pub fn tell(&mut self, event: Event) {
        let wait = Duration::from_micros(self.tape.below(Domain::Delay, 3_000));
        let at = (self.now + wait).max(self.news_after);
        self.news_after = at;
        let engine = self.engine;
        if self.rate(Domain::Delay, self.faults.duplicate_per_mille) {
            self.at(at, Happening::Arrives { engine, event: event.clone() });
        }
        self.at(at, Happening::Arrives { engine, event });
    }

    pub fn lives_in(&self, unit: &UnitName) -> impl Iterator<Item = (&RunId, &Process)> {
        self.table.iter().filter(move |(_, process)| process.unit == *unit && process.lives())
    }

    pub fn is_empty(&self, unit: &UnitName) -> bool {
        self.lives_in(unit).next().is_none() && self.strays.get(unit).is_none_or(Vec::is_empty)
    }

    pub fn rest(&self, unit: &UnitName) -> Rest {
        if self.is_empty(unit) { Rest::Empty } else { Rest::Alive }
    }

    pub fn spawn(&mut self, unit: &UnitName, run: RunId, role: Role) {
        self.run_max = self.run_max.max(run.0);
        if self.rate(Domain::Process, self.faults.short_per_mille) {
            return self.tell(Event::SpawnShort { run, errno: 11 });
        }
        let nature = self.nature(unit, role);
        let pid = i32::try_from(run.0).unwrap_or(i32::MAX) + 1_000;
        let process = Process {
            unit: unit.clone(),
            role,
            pid,
            nature,
            spawned_at: self.now,
            executed: false,
            ready: false,
            sick_since: None,
            bad_answers: 0,
            said_ready: false,
            ended: None,
            asked: false,
        };
        self.table.insert(run, process);
        self.tell(Event::Spawned { run, pid });
        let wrong = role == Role::Main && self.rate(Domain::Process, self.faults.start_per_mille / 4);
        if wrong {
            let step = crate::base::exit::SpawnStep::Exec;
            return self.after(
                Duration::from_micros(200),
                Happening::Ends(run, Exit::NotExecuted { step, errno: 2 }),
            );
        }
        self.after(Duration::from_micros(300), Happening::Executes(run));
    }

    fn nature(&mut self, unit: &UnitName, role: Role) -> Nature {
        let faults = self.faults;
        let oneshot = self
            .specs
            .get(unit)
            .is_some_and(|spec| spec.service.kind == crate::unit::spec::ServiceType::Oneshot);
        // A check or a resync in the D state only puts the next one off; nothing to learn from.
        let passing = matches!(role, Role::HealthCheck | Role::Resync);
        let kill = if self.rate(Domain::Process, faults.stuck_per_mille) && !passing {
            self.some_ms(Domain::Process, 30_000)
        } else {
            Duration::ZERO
        };
        let term = if self.rate(Domain::Process, faults.ignore_term_per_mille) {
            None
        } else {
            Some(self.some_ms(Domain::Process, 900))
        };
        let bad_start = self.rate(Domain::Process, faults.start_per_mille);
        let life = self.some_ms(Domain::Process, faults.life_ms_max);
        let exit = match self.tape.below(Domain::Process, 4) {
            0 => Exit::Code(0),
            1 => Exit::Code(1),
            2 => Exit::Code(77),
            _ => Exit::Signal { signal: Signal::KILL, core: false },
        };
        let sick_main = self.lives_in(unit).any(|(_, process)| process.sick_since.is_some());
        if role != Role::Main {
            let rate = match role {
                Role::Resync => faults.resync_per_mille,
                Role::HealthCheck => 0,
                Role::Main
                | Role::StartPre(_)
                | Role::StartPost(_)
                | Role::StopPost(_)
                | Role::StopCommand
                | Role::ReloadCommand
                | Role::ReadyCheck => faults.hook_per_mille,
            };
            let bad = self.rate(Domain::Hook, rate) || (role == Role::HealthCheck && sick_main);
            let hang = bad && self.tape.chance(Domain::Process, 300);
            let exit = if role == Role::HealthCheck { Exit::Code(1) } else { exit };
            let code = if bad || (role == Role::ReadyCheck && bad_start) { exit } else { Exit::Code(0) };
            let ends = (!hang).then(|| (Duration::from_millis(5 + life.as_millis() as u64 % 300), code));
            let stray = self.rate(Domain::Hook, faults.strays_per_mille / 3);
            return Nature { ready_after: None, ends, term, kill, sick_after: None, stray };
        }
        let stray = self.rate(Domain::Process, faults.strays_per_mille);
        if oneshot {
            let code = if bad_start { exit } else { Exit::Code(0) };
            let ends = Some((Duration::from_millis(10 + life.as_millis() as u64 % 2_000), code));
            return Nature { ready_after: None, ends, term, kill, sick_after: None, stray: false };
        }
        let dies = self.rate(Domain::Process, faults.death_per_mille);
        let (ready_after, ends) = match (bad_start, self.tape.below(Domain::Process, 3)) {
            (true, 0) => (None, None),
            (true, _) => (None, Some((life / 20, exit))),
            (false, _) => (Some(self.some_ms(Domain::Process, 2_000)), dies.then_some((life, exit))),
        };
        let sick = self.rate(Domain::Hook, faults.sick_per_mille);
        let sick_after = sick.then(|| self.some_ms(Domain::Hook, 30_000));
        Nature { ready_after, ends, term, kill, sick_after, stray }
    }

    pub fn executes(&mut self, run: RunId) {
        let Some(process) = self.table.get_mut(&run).filter(|process| process.lives()) else { return };
        process.executed = true;
        let nature = process.nature;
        self.tell(Event::Executed { run });
        if nature.ready_after.is_some() {
            self.talks(run);
        }
        if let Some(wait) = nature.ready_after {
            self.after(wait, Happening::GetsReady(run));
        }
        if let Some(wait) = nature.sick_after {
            self.after(wait, Happening::GetsSick(run));
        }
        if let Some((wait, exit)) = nature.ends {
            self.after(wait, Happening::Ends(run, exit));
        }
    }

    pub fn gets_sick(&mut self, run: RunId) {
        let now = self.now;
        if let Some(process) = self.table.get_mut(&run).filter(|process| process.lives()) {
            process.sick_since.get_or_insert(now);
        }
    }

    /// `WATCHDOG=1` as long as it is well.
    pub fn pings(&mut self, run: RunId) {
        let Some(process) = self.table.get(&run).filter(|p| p.lives() && p.sick_since.is_none()) else {
            return;
        };
        let Some(spec) = self.specs.get(&process.unit) else { return };
        if let Some(HealthCheck::Watchdog(every)) = spec.health.as_ref().map(|health| health.check.clone()) {
            self.after(every / 2, Happening::Pings(run));
            self.tell(Event::Pinged { run });
        }
    }

    /// What a check over the network sees of this run, and how often in a row it was bad.
    pub fn check(&mut self, run: RunId) -> ProbeOutcome {
        if self.lacks_fds() {
            return ProbeOutcome::Short("too many open files".to_string());
        }
        let Some(process) = self.table.get_mut(&run) else { return ProbeOutcome::Failed("gone".into()) };
        if process.lives() && process.sick_since.is_none() {
            process.bad_answers = 0;
            return ProbeOutcome::Ok;
        }
        process.bad_answers += 1;
        ProbeOutcome::Failed("no answer".to_string())
    }

    /// Whether a probe of ours cannot even begin.
    pub fn lacks_fds(&mut self) -> bool {
        self.rate(Domain::Hook, self.faults.short_per_mille)
    }

    /// Whether the unit acknowledges a resync.
    pub fn resync(&mut self) -> ProbeOutcome {
        if self.lacks_fds() {
            return ProbeOutcome::Short("too many open files".to_string());
        }
        if self.rate(Domain::Hook, self.faults.resync_per_mille) {
            return ProbeOutcome::Failed("HTTP 503".to_string());
        }
        ProbeOutcome::Ok
    }

    pub fn gets_ready(&mut self, run: RunId) {
        let Some(process) = self.table.get_mut(&run).filter(|process| process.lives()) else { return };
        process.ready = true;
        self.after(Duration::ZERO, Happening::Pings(run));
        self.talks(run);
        let Some(process) = self.table.get_mut(&run) else { return };
        let unit = process.unit.clone();
        let Some(spec) = self.specs.get(&unit) else { return };
        match spec.readiness.when {
            crate::unit::spec::ReadyWhen::Notify | crate::unit::spec::ReadyWhen::NotifyFd(_) => {
                self.tell(Event::NotifiedReady { run })
            }
            crate::unit::spec::ReadyWhen::Log(_) => self.tell(Event::LogMatched { run }),
            crate::unit::spec::ReadyWhen::Executed
            | crate::unit::spec::ReadyWhen::Net(_)
            | crate::unit::spec::ReadyWhen::Exec(_) => {}
        }
    }

    /// The shell has the keeper remember what a process said, before the engine hears it.
    pub fn note_ready(&mut self, run: RunId) {
        if let Some(process) = self.table.get_mut(&run) {
            process.said_ready = true;
        }
    }

    pub fn ends(&mut self, run: RunId, exit: Exit) {
        let now = self.now;
        let Some(process) = self.table.get_mut(&run).filter(|process| process.lives()) else { return };
        process.ended = Some((now, exit));
        let (unit, nature, asked) = (process.unit.clone(), process.nature, process.asked);
        if nature.stray && !asked {
            let stray = Stray { term: nature.term, kill: nature.kill };
            self.strays.entry(unit.clone()).or_default().push(stray);
        }
        let rest = self.rest(&unit);
        self.tell(Event::Exited { run, at: now, exit, rest });
    }

    pub fn stray_ends(&mut self, unit: &UnitName) {
        let Some(strays) = self.strays.get_mut(unit) else { return };
        strays.pop();
        if self.is_empty(unit) {
            self.tell(Event::Emptied { unit: unit.clone() });
        }
    }

    /// Asked for its end by the engine; the keeper's table remembers.
    pub fn ask(&mut self, run: RunId) {
        if let Some(process) = self.table.get_mut(&run).filter(|process| process.lives()) {
            process.asked = true;
        }
    }

    pub fn signal(&mut self, run: RunId, signal: Signal) {
        let Some(process) = self.table.get_mut(&run).filter(|process| process.lives()) else { return };
        let nature = process.nature;
        if signal == Signal::KILL {
            let exit = Exit::Signal { signal, core: false };
            self.after(nature.kill, Happening::Ends(run, exit));
        } else if signal == Signal::TERM
            && let Some(wait) = nature.term
        {
            self.after(wait, Happening::Ends(run, Exit::Code(0)));
        }
    }

    pub fn signal_all(&mut self, unit: &UnitName, signal: Signal) {
        let runs: Vec<RunId> = self.lives_in(unit).map(|(run, _)| *run).collect();
        for run in runs {
            self.signal(run, signal);
        }
        for stray in self.strays.get(unit).cloned().unwrap_or_default() {
            let wait = if signal == Signal::KILL { Some(stray.kill) } else { stray.term };
            if let Some(wait) = wait {
                self.after(wait, Happening::StrayEnds(unit.clone()));
            }
        }
    }

    /// The machine sleeps: CLOCK_BOOTTIME goes on, nothing else does. What is due meanwhile is
    /// late; timers on that clock fire at once when it wakes.
    pub fn sleeps(&mut self, sleep: Duration) {
        let woke_at = self.now + sleep;
        let queue = std::mem::take(&mut self.queue);
        for ((at, sequence), happening) in queue {
            let at = match happening {
                Happening::Tick { .. }
                | Happening::Heal
                | Happening::Operator
                | Happening::Reconfigure
                | Happening::StoreFails(_)
                | Happening::Sleeps(_) => at.max(woke_at),
                Happening::Executes(_)
                | Happening::GetsReady(_)
                | Happening::Ends(..)
                | Happening::StrayEnds(_)
                | Happening::CheckAnswers { .. }
                | Happening::ResyncAnswers { .. }
                | Happening::GetsSick(_)
                | Happening::Pings(_)
                | Happening::Arrives { .. }
                | Happening::ProbeAnswers { .. }
                | Happening::Commits { .. }
                | Happening::EngineStarts { .. } => at + sleep,
            };
            self.queue.insert((at, sequence), happening);
        }
        self.news_after = self.news_after.max(woke_at);
        self.now = woke_at;
        self.woke_at = woke_at;
        self.slept = sleep;
    }

    /// Time since `at` in which the machine did not sleep (the last sleep is known).
    pub fn awake_since(&self, at: Monotonic) -> Duration {
        let asleep = if at < self.woke_at { self.slept } else { Duration::ZERO };
        self.now.since(at).saturating_sub(asleep)
    }

    /// The keeper dies too, and with it every service (as in a power cut without reboot).
    pub fn lose_keeper(&mut self) {
        self.table.clear();
        self.strays.clear();
    }

    /// The keeper dies alone, and the next engine finds by the store who lives. How the others ended nobody
    /// knows; checks and the like are not remembered: those that live are nobody's run any more.
    /// (What no commit kept of them is left to the tests with real processes.)
    pub fn outlive_keeper(&mut self) {
        let now = self.now;
        for process in self.table.values_mut().filter(|process| !process.lives()) {
            process.ended = Some((now, Exit::Unknown));
        }
        let is_forgotten = |_: &RunId, process: &mut Process| match process.role {
            Role::ReloadCommand | Role::ReadyCheck | Role::HealthCheck | Role::Resync => true,
            Role::Main | Role::StartPre(_) | Role::StartPost(_) | Role::StopPost(_) | Role::StopCommand => {
                false
            }
        };
        for (_, Process { unit, nature, .. }) in
            self.table.extract_if(.., is_forgotten).filter(|(_, process)| process.lives())
        {
            self.strays.entry(unit).or_default().push(Stray { term: nature.term, kill: nature.kill });
        }
    }

    pub fn release(&mut self, run: RunId) {
        if self.table.get(&run).is_some_and(|process| !process.lives()) {
            self.table.remove(&run);
        }
    }

    pub fn adopted(&self) -> Vec<Adopted> {
        let row = |(run, process): (&RunId, &Process)| Adopted {
            unit: process.unit.clone(),
            run: *run,
            role: process.role,
            pid: process.pid,
            spawned_at: process.spawned_at,
            executed: process.executed,
            said_ready: process.said_ready,
            asked: if process.asked { Asked::ToEnd } else { Asked::No },
            ended: process.ended,
        };
        self.table.iter().map(row).collect()
    }

    pub fn populated(&self) -> BTreeSet<UnitName> {
        self.specs.keys().filter(|unit| !self.is_empty(unit)).cloned().collect()
    }
}
