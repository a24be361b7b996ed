//! Who upsets the world: operators, editors of files, strangers, the disk, the machine's lid;
//! and the moment in which all of it ends.
//!
//! Refuses: judging (`oracle`), except where something must not move at all.

use std::sync::Arc;
use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::engine::effect::{Effect, RecordKind, Role};
use crate::engine::event::{Event, Order, RequestId, Rest, Said};
use crate::engine::view::{StateWord, UnitView};
use crate::engine::{Effects, Engine};
use crate::sim::bug::{Bug, GHOST};
use crate::sim::oracle::Broken;
use crate::sim::promises;
use crate::sim::run::Sim;
use crate::sim::setup;
use crate::sim::tape::Domain;
use crate::sim::world::Happening;
use crate::unit::spec::{Command, ServiceType, UnitSpec};

impl Sim {
    /// The store's outages and the machine's sleeps, some time within the chaos.
    pub(super) fn plan_troubles(&mut self) {
        let within = self.setup.chaos.as_millis() as u64;
        for _ in 0..self.setup.faults.outages {
            let wait = Duration::from_millis(self.world.tape.below(Domain::Store, within));
            let length = Duration::from_millis(self.world.tape.below(Domain::Store, 30_000));
            self.world.after(wait, Happening::StoreFails(length));
        }
        for _ in 0..self.setup.faults.sleeps {
            let wait = Duration::from_millis(self.world.tape.below(Domain::Store, within));
            let length = Duration::from_secs(*self.world.tape.pick(Domain::Store, &[1, 20, 3_600]));
            self.world.after(wait, Happening::Sleeps(length));
        }
    }

    /// I23: now and then, news of a run that nobody knows. The engine must not move.
    pub(super) fn disturb(&mut self) -> Result<(), Broken> {
        if self.world.healed || !self.steps.is_multiple_of(64) {
            return Ok(());
        }
        let Some(engine) = &mut self.engine else { return Ok(()) };
        let run = RunId(u64::MAX - 1);
        let before = format!("{engine:?}");
        let (at, exit) = (self.world.now, Exit::Code(1));
        let news = [
            Event::Exited { run, at, exit, rest: Rest::Alive },
            Event::Executed { run },
            Event::Spawned { run, pid: 1 },
            Event::Probed { run, outcome: ProbeOutcome::Ok },
            Event::Checked { run, outcome: ProbeOutcome::Failed(String::new()) },
            Event::Resynced { run, outcome: ProbeOutcome::Ok },
            Event::Pinged { run },
            Event::WatchdogTriggered { run },
            Event::Said { run, said: Said::Stopping },
            Event::NotifiedReady { run },
            Event::SpawnShort { run, errno: 11 },
        ];
        for event in news {
            let newest = self.world.table.keys().next_back().copied();
            let event = match self.bug {
                Some(bug @ Bug::BelieveStrangers) => bug.event(event, newest, &mut self.memory),
                Some(_) | None => Some(event),
            };
            let Some(event) = event else { continue };
            let mut fx = Effects::default();
            engine.step(self.world.now, event, &mut fx);
            self.marks.extend(fx.drain_marks());
            let moved = fx.drain().any(|effect| effect != Effect::Release { run });
            if moved || format!("{engine:?}") != before {
                return self.fail(promises::I23, "the state changed");
            }
        }
        Ok(())
    }

    pub(super) fn operate(&mut self) -> Result<(), Broken> {
        if self.engine.is_none() {
            return Ok(());
        }
        let tape = &mut self.world.tape;
        let known: Vec<UnitName> = self.files.iter().map(|spec| spec.name.clone()).collect();
        let mut units: Vec<UnitName> = vec![tape.pick(Domain::Operator, &known).clone()];
        if tape.chance(Domain::Operator, 300) {
            units = known;
        }
        let one = units[0].clone();
        let order = match tape.below(Domain::Operator, 11) {
            10 => return self.refuse(),
            0 | 1 => Order::Start(units),
            2 | 3 => Order::Stop(units),
            4 | 5 => Order::Restart(units),
            6 => Order::Reload(units),
            7 => Order::Clear(units),
            9 => Order::Resync(units),
            _ => Order::Signal(one, Signal::HUP),
        };
        self.request += 1;
        let request = RequestId(self.request);
        self.oracle.on_order(request, &order);
        self.oracle.lift_quarantine(self.world.now, &order);
        self.step(Event::Ordered { request, order })
    }

    /// I28: an order that names no unit of ours is refused and moves nothing.
    pub(super) fn refuse(&mut self) -> Result<(), Broken> {
        let ghost = UnitName::parse(GHOST).unwrap_or_else(|_| setup::name(0));
        self.request += 1;
        let (request, order) = (RequestId(self.request), Order::Start(vec![ghost]));
        let event = Event::Ordered { request, order };
        let event = match self.bug {
            Some(bug) => bug.event(event, None, &mut self.memory),
            None => Some(event),
        };
        let (Some(engine), Some(event)) = (&mut self.engine, event) else { return Ok(()) };
        let before = format!("{engine:?}");
        let mut fx = Effects::default();
        engine.step(self.world.now, event, &mut fx);
        let told = |effect: &Effect| matches!(effect, Effect::Reply { request: answered, .. } if *answered == request);
        let moved = fx.drain().any(|effect| !told(&effect));
        if moved || format!("{engine:?}") != before {
            return self.fail(promises::I28, "it moved something");
        }
        Ok(())
    }

    /// The unit after somebody has edited its file: some sections are new.
    fn changed(&mut self, old: UnitSpec, index: u64) -> UnitSpec {
        let mut new = setup::unit(&mut self.world.tape, index);
        if self.setup.chaos >= setup::LONG {
            setup::slow_down(&mut new);
        }
        // The edges stay: an edge that comes in force under a living unit is not judged here.
        (new.unit, new.dependency) = (old.unit, old.dependency);
        (new.service, new.readiness) = (old.service, old.readiness);
        let mut keeps = || self.world.tape.chance(Domain::Operator, 500);
        if keeps() || new.service.kind == ServiceType::Oneshot {
            (new.health, new.resync) = (old.health, old.resync);
        }
        if !keeps() {
            new.service.command = Command { argv: vec![format!("/bin/{}-again", new.name)] };
        }
        if keeps() {
            (new.restart, new.stop) = (old.restart, old.stop);
        }
        if keeps() {
            new.alert = old.alert;
        }
        new
    }

    /// A change of the files: the same again, or units less, or units changed.
    pub(super) fn reconfigure(&mut self) -> Result<(), Broken> {
        if self.engine.as_ref().and_then(Engine::next_deadline).is_some_and(|at| at <= self.world.now) {
            self.step(Event::Tick)?; // what is due anyway is not the reread's doing
        }
        let errors = (0..self.world.tape.below(Domain::Operator, 3)).map(|n| format!("error {n}")).collect();
        self.step(Event::ConfigJudged { errors })?;
        let Some(engine) = &mut self.engine else { return Ok(()) };
        let same: Vec<Arc<UnitSpec>> =
            self.files.iter().map(|s| self.bug.map_or(s.clone(), |bug| bug.reconfigured(s))).collect();
        let before = engine.view();
        let mut fx = Effects::default();
        engine.step(self.world.now, Event::Configured { units: same }, &mut fx);
        // A look that any other event might have caused may say what a unit waits for, too.
        let told = |effect: &Effect| matches!(effect, Effect::Record(record) if matches!(record.kind, RecordKind::Waiting { .. }));
        let did: Vec<Effect> = fx.drain().filter(|effect| !told(effect)).collect();
        let after = engine.view();
        let changed = before.iter().zip(&after).find(|(before, after)| !is_same(before, after));
        if !did.is_empty() || changed.is_some() || before.len() != after.len() {
            return self.fail(promises::I29, &format!("{did:?} {changed:?}"));
        }
        match self.world.tape.below(Domain::Operator, 3) {
            0 => return Ok(()),
            1 if self.files.len() > 1 => {
                self.files.pop();
            }
            _ => {
                let index = self.world.tape.below(Domain::Operator, self.files.len() as u64);
                let old = UnitSpec::clone(&self.files[index as usize]);
                let changed = self.changed(old, index);
                self.files[index as usize] = Arc::new(changed);
            }
        }
        self.oracle.reconfigure(self.world.now, &self.files);
        for spec in &self.files {
            self.world.specs.insert(spec.name.clone(), UnitSpec::clone(spec));
        }
        let units = self.files.iter().map(|s| self.bug.map_or(s.clone(), |bug| bug.spec(s))).collect();
        self.step(Event::Configured { units })
    }

    /// The faults are gone: processes that are already broken die, then everything is sound.
    pub(super) fn heal(&mut self) -> Result<(), Broken> {
        self.say(|| "HEALED".to_string());
        self.world.healed = true;
        let exit = Exit::Signal { signal: Signal::KILL, core: false };
        let living: Vec<RunId> =
            self.world.table.iter().filter(|(_, p)| p.lives()).map(|(run, _)| *run).collect();
        let is_main = |run: &RunId| self.world.table.get(run).is_some_and(|p| p.role == Role::Main);
        self.victims = living.iter().copied().filter(is_main).collect();
        for run in living {
            self.world.after(Duration::from_millis(1), Happening::Ends(run, exit));
        }
        let strays: Vec<(UnitName, usize)> =
            self.world.strays.iter().map(|(unit, strays)| (unit.clone(), strays.len())).collect();
        for (unit, count) in strays {
            for _ in 0..count {
                self.world.after(Duration::from_millis(2), Happening::StrayEnds(unit.clone()));
            }
        }
        self.clear_quarantined()
    }
}

/// Whether nothing happened to a unit. What a waiting one waits for, besides what it requires,
/// is as it was when it was last looked at; a look may find one more name in an ordering.
fn is_same(before: &UnitView, after: &UnitView) -> bool {
    let waits = before.state == StateWord::Waiting && after.state == StateWord::Waiting;
    let known =
        UnitView { waiting_for: after.waiting_for.clone(), reason: after.reason.clone(), ..before.clone() };
    before == after || (waits && known == *after)
}
