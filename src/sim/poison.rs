//! A unit that engines die of: what the keeper tells of their deaths, and whether the unit is left
//! alone from then on.
//!
//! Refuses: the engine's own count. The oracle counts by the same rule, from the same deaths.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::base::exit::Exit;
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::durable::EngineDurable;
use crate::engine::effect::Effect;
use crate::engine::event::{Event, Order, RequestId};
use crate::engine::safe::{Death, DeathHow};
use crate::sim::oracle::{Broken, Oracle, Verdict, broken};
use crate::sim::promises;
use crate::sim::run::Sim;
use crate::sim::tape::Domain;

/// The keeper tells of so many deaths.
const DEATHS_TOLD: usize = 8;

/// The rule: so many of them within this time, at the same unit, by the engine's own doing.
const DEATHS: usize = 3;
const WITHIN: Duration = Duration::from_secs(600);

/// What the oracle knows of quarantine.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    units: BTreeSet<UnitName>,
    /// Taken over in this step, because an operator has come.
    pub(crate) lifted: BTreeSet<UnitName>,
    /// When each was taken over last: for it that is as if the engine had begun then.
    taken_over: BTreeMap<UnitName, Monotonic>,
    forgiven: Monotonic,
}

impl Quarantine {
    pub(crate) fn taken_over_at(&self, unit: &UnitName) -> Monotonic {
        self.taken_over.get(unit).copied().unwrap_or(Monotonic::ZERO)
    }

    /// The keeper is gone, and with it what it knew of deaths: what was committed holds.
    pub(crate) fn only(&mut self, row: &EngineDurable) {
        self.units.retain(|unit| row.quarantined.contains_key(unit));
    }
}

impl Sim {
    /// In some worlds one unit is deadly.
    pub(super) fn plan_poison(&mut self) {
        if self.world.tape.chance(Domain::Blame, 300) {
            let units: Vec<UnitName> = self.files.iter().map(|spec| spec.name.clone()).collect();
            self.world.poison = Some(self.world.tape.pick(Domain::Blame, &units).clone());
        }
    }

    /// The engine dies now: of the deadly unit, or by a SIGKILL at any other.
    pub(super) fn note_death(&mut self) {
        let poison = self.world.poison.clone().filter(|_| self.world.tape.chance(Domain::Blame, 700));
        let signal = |signal| DeathHow::Ended(Exit::Signal { signal, core: false });
        let (how, touched) = match poison {
            Some(unit) if self.world.tape.chance(Domain::Blame, 500) => (DeathHow::Hung, Some(unit)),
            Some(unit) => (Signal::from_number(11).map_or(DeathHow::Hung, signal), Some(unit)),
            None => (signal(Signal::KILL), self.files.first().map(|spec| spec.name.clone())),
        };
        self.say(|| format!("        it died so: {how:?}, at {touched:?}"));
        let last = self.world.deaths.last().map_or(Monotonic::ZERO, |death| death.at);
        let at = self.world.now.max(last + Duration::from_nanos(1));
        self.world.deaths.push(Death { at, how, touched });
        if self.world.deaths.len() > DEATHS_TOLD {
            self.world.deaths.remove(0);
        }
    }

    /// An operator has seen the alerts, and mended what was wrong.
    pub(super) fn clear_quarantined(&mut self) -> Result<(), Broken> {
        let views = self.engine.as_ref().map(Engine::view).unwrap_or_default();
        let units: Vec<UnitName> =
            views.into_iter().filter(|view| view.quarantined).map(|view| view.name).collect();
        if units.is_empty() {
            return Ok(());
        }
        self.request += 1;
        let (request, order) = (RequestId(self.request), Order::Clear(units));
        self.oracle.on_order(request, &order);
        self.oracle.lift_quarantine(self.world.now, &order);
        self.step(Event::Ordered { request, order })
    }
}

impl Oracle {
    /// An engine begins, and was told this.
    pub(crate) fn on_deaths(&mut self, now: Monotonic, deaths: &[Death]) {
        if self.shutting_down {
            return;
        }
        let own = |death: &&Death| match death.how {
            DeathHow::Hung => true,
            DeathHow::Ended(exit) => exit != Exit::Signal { signal: Signal::KILL, core: false },
        };
        let late = |death: &&Death| death.at > self.quarantine.forgiven && now.since(death.at) < WITHIN;
        let counted: Vec<&Death> = deaths.iter().filter(own).filter(late).collect();
        for unit in counted.iter().filter_map(|death| death.touched.as_ref()) {
            let count = counted.iter().filter(|death| death.touched.as_ref() == Some(unit)).count();
            if count >= DEATHS {
                self.quarantine.units.insert(unit.clone());
            }
        }
    }

    /// An operator names units.
    pub(crate) fn lift_quarantine(&mut self, now: Monotonic, order: &Order) {
        let units = match order {
            Order::Clear(units) | Order::Start(units) | Order::Stop(units) | Order::Restart(units) => units,
            Order::Reload(_)
            | Order::Signal(..)
            | Order::Outage(..)
            | Order::Resync(_)
            | Order::AwaitUp(_)
            | Order::AwaitDown(_)
            | Order::Shutdown => return,
        };
        if matches!(order, Order::Clear(_)) && self.files.iter().all(|unit| units.contains(unit)) {
            self.quarantine.forgiven = now; // the engine's own deaths are forgotten with the rest
        }
        for unit in units {
            self.quarantine.units.remove(unit);
        }
    }

    /// The engine took a unit over again: what was before counts no more.
    pub(crate) fn on_quarantine_left(&mut self, now: Monotonic, unit: &UnitName) -> Verdict {
        self.quarantine.forgiven = now;
        self.quarantine.lifted.insert(unit.clone());
        self.quarantine.taken_over.insert(unit.clone(), now);
        Ok(())
    }

    /// I50: nothing is done for it.
    pub(crate) fn audit_quarantine(&self, effect: &Effect) -> Verdict {
        let (unit, what) = match effect {
            Effect::Spawn { unit, .. } => (unit, "spawned"),
            Effect::Probe { unit, .. } => (unit, "probed"),
            Effect::Check { unit, .. } => (unit, "checked"),
            Effect::Resync { unit, .. } => (unit, "resynced"),
            Effect::KillAll { unit } => (unit, "killed"),
            _touches_no_unit => return Ok(()),
        };
        match self.quarantine.units.contains(unit) && !self.shutting_down {
            true => broken(promises::I50, unit, what),
            false => Ok(()),
        }
    }
}
