//! One run: chaos, then healing, then the bounds of liveness, then (for some) a shutdown.
//!
//! Refuses: going on after the first broken promise.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::adopt::{Boot, Inheritance};
use crate::engine::durable::UnitDurable;
use crate::engine::effect::{Effect, Mark, Role};
use crate::engine::event::{Event, Order, RequestId};
use crate::engine::{Effects, Engine, Settings};
use crate::sim::bug::{Bug, Memory};
use crate::sim::oracle::{Broken, Oracle};
use crate::sim::promises;
use crate::sim::setup::{self, Ending, Setup};
use crate::sim::tape::{Domain, Tape};
use crate::sim::world::{Happening, World};
use crate::unit::spec::UnitSpec;

/// After healing, the time in which everything has to stand: the longest delay (15 s),
/// the longest stop (10 s grace + 5 s + a stuck process of 30 s) and start (20 s), along
/// a chain of seven units.
const LIVENESS: Duration = Duration::from_secs(600);

/// More steps than any world needs: beyond it the engine is running in a circle.
const STEPS_MAX: u64 = 2_000_000;

/// FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    pub broken: Option<Broken>,
    pub marks: BTreeSet<Mark>,
    pub steps: u64,
    /// Virtual time that passed.
    pub simulated: Duration,
    pub units: usize,
    /// Of every effect in order: equal for equal tapes.
    pub hash: u64,
    /// Of every effect in order without its times: equal for worlds that differ in when they begin.
    pub shape: u64,
    pub tape: Tape,
    /// The last lines, for a reader.
    pub trace: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    Off,
    On,
}

/// Runs the world of this tape, with a planted bug or without.
pub fn run(tape: Tape, bug: Option<Bug>, trace: Trace) -> Report {
    run_from(tape, bug, trace, Duration::ZERO)
}

/// The same, in a world whose clock is ahead by `shift`.
pub fn run_from(mut tape: Tape, bug: Option<Bug>, trace: Trace, shift: Duration) -> Report {
    let setup = setup::draw(&mut tape);
    let mut sim = Sim::new(tape, setup, bug, trace);
    sim.world.now = sim.world.now + shift;
    sim.begun = sim.world.now;
    let broken = sim.play().err();
    Report {
        broken,
        marks: sim.marks,
        steps: sim.steps,
        simulated: sim.world.now.since(sim.begun),
        units: sim.setup.units.len(),
        hash: sim.hash,
        shape: sim.shape,
        tape: sim.world.tape,
        trace: sim.trace_lines,
    }
}

pub(super) struct Sim {
    pub(super) world: World,
    pub(super) setup: Setup,
    pub(super) engine: Option<Engine>,
    pub(super) oracle: Oracle,
    pub(super) bug: Option<Bug>,
    pub(super) marks: BTreeSet<Mark>,
    pub(super) steps: u64,
    pub(super) hash: u64,
    pub(super) shape: u64,
    pub(super) begun: Monotonic,
    pub(super) memory: Memory,
    /// Main processes that died in one moment.
    pub(super) victims: Vec<RunId>,
    pub(super) orders_left: u64,
    pub(super) reconfigurations_left: u64,
    pub(super) request: u64,
    /// The tick that is on its way, and for which engine.
    pub(super) armed: Option<(u64, Monotonic)>,
    /// Effects that are more than a periodic check.
    pub(super) restless: u64,
    pub(super) files: Vec<Arc<UnitSpec>>,
    pub(super) trace: Trace,
    pub(super) trace_lines: Vec<String>,
}

impl Sim {
    fn new(tape: Tape, setup: Setup, bug: Option<Bug>, trace: Trace) -> Sim {
        let mut world = World::new(tape, setup.faults);
        for spec in &setup.units {
            world.specs.insert(spec.name.clone(), UnitSpec::clone(spec));
        }
        Sim {
            oracle: Oracle::new(&setup.units, setup.start_concurrency),
            files: setup.units.clone(),
            orders_left: setup.faults.orders,
            reconfigurations_left: setup.faults.reconfigurations,
            world,
            setup,
            engine: None,
            bug,
            marks: BTreeSet::new(),
            steps: 0,
            hash: FNV_OFFSET,
            shape: FNV_OFFSET,
            begun: Monotonic::ZERO,
            memory: Memory::default(),
            victims: Vec::new(),
            request: 0,
            armed: None,
            restless: 0,
            trace,
            trace_lines: Vec::new(),
        }
    }

    fn play(&mut self) -> Result<(), Broken> {
        let heal_at = self.world.now + self.setup.chaos;
        self.world.at(self.world.now, Happening::EngineStarts { boot: Boot::Fresh });
        self.world.at(heal_at, Happening::Heal);
        for _ in 0..self.orders_left {
            let within = self.setup.chaos.as_millis() as u64;
            let wait = Duration::from_millis(self.world.tape.below(Domain::Operator, within));
            self.world.after(wait, Happening::Operator);
        }
        for _ in 0..self.reconfigurations_left {
            let within = self.setup.chaos.as_millis() as u64;
            let wait = Duration::from_millis(self.world.tape.below(Domain::Operator, within));
            self.world.after(wait, Happening::Reconfigure);
        }
        self.plan_troubles();
        self.plan_poison();
        if let Ending::ShutdownInChaos(after) = self.setup.ending {
            self.until(self.world.now + after)?;
            return self.shut_down();
        }
        self.until(heal_at)?;
        // A sleep may have put it off.
        while !self.world.healed
            && let Some(at) = self.world.next_at()
        {
            self.until(at)?;
        }
        self.until(self.world.now + LIVENESS)?;
        let Some(engine) = &self.engine else { return self.fail(promises::I44, "no engine") };
        self.oracle.audit_storm(&self.world, &self.victims)?;
        if self.world.records_due != self.world.records_kept {
            let (due, kept) = (self.world.records_due, self.world.records_kept);
            return self.fail(promises::I43, &format!("{due} records were said, {kept} are kept"));
        }
        self.oracle.at_rest(&self.world, engine)?;
        self.quiet()?;
        if self.setup.ending == Ending::Shutdown { self.shut_down() } else { Ok(()) }
    }

    fn until(&mut self, end: Monotonic) -> Result<(), Broken> {
        while self.world.next_at().is_some_and(|at| at <= end) {
            let Some(happening) = self.world.next_happening() else { break };
            self.happen(happening)?;
            if self.steps > STEPS_MAX {
                return self.fail(promises::I46, "the engine runs in a circle");
            }
        }
        self.world.now = self.world.now.max(end);
        Ok(())
    }

    /// I46: everything stands, so nothing may happen any more but checks and ends of episodes.
    fn quiet(&mut self) -> Result<(), Broken> {
        let before = self.restless;
        self.until(self.world.now + Duration::from_secs(300))?;
        let restless = self.restless - before;
        if restless > 6 * self.setup.units.len() as u64 {
            return self.fail(promises::I46, &format!("{restless} effects in quiet minutes"));
        }
        Ok(())
    }

    fn shut_down(&mut self) -> Result<(), Broken> {
        self.request += 1;
        let request = RequestId(self.request);
        self.oracle.on_order(request, &Order::Shutdown);
        self.step(Event::Ordered { request, order: Order::Shutdown })?;
        for _ in 0..self.setup.faults.orders.min(3) {
            let wait = Duration::from_millis(self.world.tape.below(Domain::Operator, 12_000));
            self.world.after(wait, Happening::Operator);
        }
        let grace = Duration::from_secs(15 * 4 + 60) * u32::try_from(self.setup.units.len()).unwrap_or(1);
        self.until(self.world.now + grace)?;
        if !self.oracle.finished {
            return self.fail(promises::I35, "it did not end");
        }
        Ok(())
    }

    pub(super) fn fail<T>(&self, promise: &str, detail: &str) -> Result<T, Broken> {
        Err(Broken { promise: promise.to_string(), unit: None, detail: detail.to_string() })
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Executes(run) => self.world.executes(run),
            Happening::GetsReady(run) => self.world.gets_ready(run),
            Happening::Ends(run, exit) => {
                let lived = self.world.table.get(&run).is_some_and(|process| process.lives());
                self.world.ends(run, exit);
                if lived {
                    self.say(|| format!("        run {run} {exit}"));
                    self.oracle.on_death(&self.world, run);
                }
            }
            Happening::GetsSick(run) => self.world.gets_sick(run),
            Happening::Pings(run) => self.world.pings(run),
            Happening::CheckAnswers { engine, run } if engine == self.world.engine => {
                let outcome = self.world.check(run);
                self.oracle.on_check_answered(&self.world, run, &outcome);
                return self.step(Event::Checked { run, outcome });
            }
            Happening::ResyncAnswers { engine, run } if engine == self.world.engine => {
                let outcome = self.world.resync();
                return self.step(Event::Resynced { run, outcome });
            }
            Happening::StrayEnds(unit) => self.world.stray_ends(&unit),
            Happening::Arrives { engine, event } if engine == self.world.engine => {
                if let (Event::NotifiedReady { run }, true) = (&event, self.engine.is_some()) {
                    self.world.note_ready(*run);
                }
                return self.step(event);
            }
            Happening::ProbeAnswers { engine, run } if engine == self.world.engine => {
                return self.answer_probe(run);
            }
            Happening::Commits { engine, batch } if engine == self.world.engine => return self.commit(batch),
            Happening::Tick { engine, at } if self.armed == Some((engine, at)) => {
                self.armed = None;
                return self.step(Event::Tick);
            }
            // These were on their way to an engine that is gone.
            Happening::Arrives { .. }
            | Happening::ProbeAnswers { .. }
            | Happening::CheckAnswers { .. }
            | Happening::ResyncAnswers { .. }
            | Happening::Commits { .. }
            | Happening::Tick { .. } => {}
            Happening::EngineStarts { boot } => return self.start_engine(boot),
            Happening::Operator => return self.operate(),
            Happening::Reconfigure => return self.reconfigure(),
            Happening::StoreFails(length) => self.world.outage_until = self.world.now + length,
            Happening::Sleeps(length) if !self.oracle.shutting_down && !self.world.healed => {
                self.say(|| format!("        the machine sleeps for {length:?}"));
                self.world.sleeps(length);
            }
            Happening::Sleeps(_) => {}
            Happening::Heal => return self.heal(),
        }
        Ok(())
    }

    fn start_engine(&mut self, boot: Boot) -> Result<(), Broken> {
        let bug = self.bug;
        let boot = if std::mem::take(&mut self.world.keeper_died) {
            self.world.outlive_keeper();
            Boot::KeeperDied
        } else {
            boot
        };
        let row = |(name, row): (&UnitName, &UnitDurable)| {
            (name.clone(), bug.map_or(row.clone(), |bug| bug.row(row.clone())))
        };
        let cap = bug.map_or(self.setup.start_concurrency, |bug| bug.cap(self.setup.start_concurrency));
        let inherited = Inheritance {
            engine: bug.map_or(self.world.engine_row.clone(), |bug| bug.engine(&self.world.engine_row)),
            deaths: bug.map_or(self.world.deaths.clone(), |bug| bug.deaths(&self.world.deaths)),
            boot,
            units: self.files.iter().map(|s| bug.map_or(s.clone(), |bug| bug.spec(s))).collect(),
            durable: self.world.rows.iter().map(row).collect(),
            adopted: bug.map_or(self.world.adopted(), |bug| bug.adopted(self.world.adopted())),
            populated: self.world.populated(),
            next_run: RunId(self.world.run_max + 1),
        };
        let mut fx = Effects::default();
        let settings = Settings { start_concurrency: cap, seed: self.world.engine };
        let now = self.world.now;
        // The keeper tells each new engine again that the daemon is to end.
        let engine = if self.oracle.shutting_down && bug != Some(Bug::IgnoreShutdown) {
            Engine::new_to_end(now, settings, inherited, &mut fx)
        } else {
            Engine::new(now, settings, inherited, &mut fx)
        };
        self.engine = Some(engine);
        self.oracle.on_engine_start(now);
        self.oracle.on_deaths(now, &self.world.deaths);
        self.say(|| "ENGINE STARTS".to_string());
        self.marks.extend(fx.drain_marks());
        let effects: Vec<Effect> = fx.drain().collect();
        if let Some(engine) = &self.engine {
            self.oracle.audit_takeover(&self.world, engine, &effects)?;
        }
        self.perform(effects)?;
        if self.world.healed { self.clear_quarantined() } else { Ok(()) }
    }

    /// One event into the engine, its effects out into the world.
    pub(super) fn step(&mut self, event: Event) -> Result<(), Broken> {
        let newest = self.world.table.iter().filter(|(_, p)| p.lives()).map(|(run, _)| *run).next_back();
        let now = self.bug.map_or(self.world.now, |bug| bug.clock(self.world.now, &event));
        self.say(|| format!("{event:?}"));
        let event = match self.bug {
            Some(bug) => match bug.event(event, newest, &mut self.memory) {
                Some(event) => event,
                None => return Ok(()),
            },
            None => event,
        };
        let Some(engine) = &mut self.engine else { return Ok(()) };
        self.steps += 1;
        let mut fx = Effects::default();
        engine.step(now, event, &mut fx);
        self.marks.extend(fx.drain_marks());
        self.perform(fx.drain().collect())
    }

    fn perform(&mut self, mut effects: Vec<Effect>) -> Result<(), Broken> {
        if let Some(bug) = self.bug {
            effects = bug.effects(effects, &mut self.memory);
        }
        if let Some(engine) = &self.engine {
            self.oracle.sync(engine);
        }
        self.oracle.on_effects(&effects)?;
        let count = effects.len();
        let mut durable = Vec::new();
        for effect in effects {
            self.mix(&effect);
            let checking = matches!(effect, Effect::Check { .. } | Effect::Release { .. })
                || matches!(effect, Effect::Spawn { role: Role::HealthCheck, .. });
            self.restless += u64::from(!checking);
            self.say(|| format!("    {effect:?}"));
            let Some(engine) = &self.engine else { return Ok(()) };
            self.oracle.before(&self.world, engine, &effect)?;
            match effect {
                Effect::Spawn { unit, run, role } => self.world.spawn(&unit, run, role),
                Effect::Signal { run, signal } => self.world.signal(run, signal),
                Effect::End { run, signal } => {
                    self.world.ask(run);
                    self.world.signal(run, signal);
                }
                Effect::SignalAll { unit, signal } => self.world.signal_all(&unit, signal),
                Effect::KillAll { unit } => self.world.signal_all(&unit, Signal::KILL),
                Effect::Probe { run, .. } => {
                    let engine = self.world.engine;
                    self.world.after(Duration::from_millis(2), Happening::ProbeAnswers { engine, run });
                }
                Effect::Check { run, .. } => {
                    let engine = self.world.engine;
                    let sick = self.world.table.get(&run).is_some_and(|p| p.sick_since.is_some());
                    // Nobody answers: the prober gives up after the check's timeout.
                    let wait = if sick { Duration::from_secs(3) } else { Duration::from_millis(2) };
                    self.world.after(wait, Happening::CheckAnswers { engine, run });
                }
                Effect::Resync { run, .. } => {
                    let engine = self.world.engine;
                    self.world.after(Duration::from_millis(5), Happening::ResyncAnswers { engine, run });
                }
                Effect::WatchLog { .. } => {}
                Effect::Release { run } if self.bug == Some(Bug::EarlyRelease) => self.release(run)?,
                Effect::Save { .. }
                | Effect::SaveEngine(_)
                | Effect::Forget { .. }
                | Effect::Record(_)
                | Effect::Alert(_)
                | Effect::Release { .. }
                | Effect::Reply { .. }
                | Effect::Finished => durable.push(effect),
            }
            let mortal = !self.world.healed && !self.oracle.finished;
            if mortal && self.world.tape.chance(Domain::Crash, self.world.faults.crash_per_mille) {
                // What a step saves and records is one transaction: this one never began.
                return self.crash();
            }
        }
        if self.bug.is_some_and(|bug| bug.loses(&durable)) {
            self.world.lose(&durable);
        } else {
            self.world.submit(durable);
        }
        let Some(engine) = &self.engine else { return Ok(()) };
        self.oracle.after_step(&self.world, engine, count)?;
        self.arm();
        self.disturb()
    }

    fn answer_probe(&mut self, run: RunId) -> Result<(), Broken> {
        let ready = self.world.table.get(&run).is_some_and(|process| process.lives() && process.ready);
        let refused = || ProbeOutcome::Failed("connection refused".to_string());
        let outcome = match (ready, self.world.lacks_fds()) {
            (_, true) => ProbeOutcome::Short("too many open files".to_string()),
            (true, false) => ProbeOutcome::Ok,
            (false, false) => refused(),
        };
        self.step(Event::Probed { run, outcome })
    }

    fn commit(&mut self, batch: u64) -> Result<(), Broken> {
        let done = self.world.commit(batch);
        self.oracle.on_commit(&self.world)?;
        for effect in done {
            match effect {
                Effect::Release { run } => self.release(run)?,
                Effect::Reply { request, outcomes } => {
                    self.say(|| format!("        {request:?} answered: {outcomes:?}"));
                    self.oracle.on_reply(&self.world, request, &outcomes)?;
                }
                Effect::Finished => self.oracle.on_finished(&self.world)?,
                _nothing_else_waits_for_a_commit => {}
            }
        }
        Ok(())
    }

    fn release(&mut self, run: RunId) -> Result<(), Broken> {
        self.oracle.on_release(&self.world, run)?;
        self.world.release(run);
        Ok(())
    }

    fn crash(&mut self) -> Result<(), Broken> {
        self.say(|| "ENGINE KILLED".to_string());
        self.engine = None;
        self.note_death();
        self.world.crash();
        self.oracle.on_crash(&self.world);
        if self.world.faults.keeper_loss && self.world.tape.chance(Domain::Crash, 100) {
            // In both cases what it knew of deaths is gone.
            self.world.deaths.clear();
            self.oracle.quarantine.only(&self.world.engine_row);
            if self.world.tape.chance(Domain::Crash, 500) {
                self.say(|| "KEEPER KILLED".to_string());
                self.world.keeper_died = true;
            } else {
                self.say(|| "KEEPER LOST".to_string());
                self.world.lose_keeper();
                self.oracle.on_keeper_loss();
            }
        }
        self.oracle.on_commit(&self.world)
    }

    fn mix(&mut self, effect: &Effect) {
        let fold = |hash: u64, text: &str| {
            text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
        };
        self.hash = fold(self.hash, &format!("{} {effect:?}", self.world.now.as_ns()));
        let since = self.world.now.since(self.begun).as_nanos();
        let what = match effect {
            Effect::Spawn { unit, run, role } => format!("{since} {unit} {run} {role:?}"),
            Effect::Record(record) => {
                let kind = std::mem::discriminant(&record.kind);
                format!("{since} {:?} {:?} {kind:?}", record.unit, record.run)
            }
            other => format!("{since} {:?}", std::mem::discriminant(other)),
        };
        self.shape = fold(self.shape, &what);
    }

    /// A tick for the engine's next deadline.
    fn arm(&mut self) {
        let Some(engine) = &self.engine else { return };
        if let Some(at) = engine.next_deadline()
            && self.armed != Some((self.world.engine, at))
        {
            self.armed = Some((self.world.engine, at));
            let incarnation = self.world.engine;
            let late = !self.world.healed
                && self.world.tape.chance(Domain::Delay, self.world.faults.late_tick_per_mille);
            let wait = if late {
                Duration::from_millis(self.world.tape.below(Domain::Delay, 200))
            } else {
                Duration::ZERO
            };
            self.world.at(at + wait, Happening::Tick { engine: incarnation, at });
        }
    }

    pub(super) fn say(&mut self, line: impl FnOnce() -> String) {
        if self.trace == Trace::On {
            let now = self.world.now.as_ns();
            let (s, ms) = (now / 1_000_000_000, now / 1_000_000 % 1_000);
            self.trace_lines.push(format!("{s:>6}.{ms:03} {}", line()));
        }
    }
}
