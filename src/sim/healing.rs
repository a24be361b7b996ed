//! The promises on health and resync, judged against the truth of the fake world.
//!
//! Refuses: what the engine believes of a process's health.

use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::Cause;
use crate::engine::view::{StateWord, UnitView};
use crate::sim::oracle::{Oracle, Verdict, broken};
use crate::sim::promises;
use crate::sim::world::World;
use crate::unit::spec::HealthCheck;

impl Oracle {
    pub(crate) fn on_resync(&mut self, world: &World, engine: &Engine, unit: &UnitName) -> Verdict {
        let Some(spec) = self.specs.get(unit) else { return Ok(()) };
        for other in &spec.unit.requires {
            let ready = engine.view_of(other).is_some_and(|view| view.ready);
            if !ready || self.truly_down(world, other) {
                return broken(promises::I26B, unit, format!("{other} is down"));
            }
        }
        if self.resynced.contains(unit) {
            return broken(promises::I26C, unit, "");
        }
        Ok(())
    }

    /// The world answered a check over the network.
    pub fn on_check_answered(&mut self, world: &World, run: RunId, outcome: &ProbeOutcome) {
        let unit = self.checks.remove(&run);
        if let (Some(unit), ProbeOutcome::Short(_)) = (unit, outcome) {
            self.short_at.insert(unit, world.now); // no verdict: the next check is the first one
        }
    }

    /// I25b: so many bad answers in a row were really given.
    pub(crate) fn on_verdict(&self, world: &World, unit: &UnitName, run: RunId, cause: &Cause) -> Verdict {
        let Cause::Unhealthy { checks, .. } = cause else { return Ok(()) };
        let Some(health) = self.specs.get(unit).and_then(|spec| spec.health.as_ref()) else { return Ok(()) };
        let seen = world.table.get(&run).map_or(0, |process| process.bad_answers);
        let over_net = matches!(health.check, HealthCheck::Net(_));
        if *checks < health.threshold || (over_net && seen < health.threshold) {
            return broken(promises::I25B, unit, format!("{seen} of {} seen", health.threshold));
        }
        Ok(())
    }

    /// I25c. An engine that took over begins anew; a late tick or two is allowed for.
    pub(crate) fn found_in_time(&self, world: &World, view: &UnitView) -> Verdict {
        let Some(spec) = self.specs.get(&view.name) else { return Ok(()) };
        let Some(health) = &spec.health else { return Ok(()) };
        let process = view.run.and_then(|run| world.table.get(&run));
        let active = matches!(view.state, StateWord::Active | StateWord::Degraded);
        let Some((process, sick)) = process.and_then(|p| p.sick_since.map(|at| (p, at))) else {
            return Ok(());
        };
        let watchdog = match health.check {
            HealthCheck::Watchdog(every) => every * 3 / 2,
            HealthCheck::Net(_) | HealthCheck::Exec(_) => Duration::ZERO,
        };
        let short = self.short_at.get(&view.name).copied().unwrap_or(Monotonic::ZERO);
        let woke = world.woke_at.max(self.quarantine.taken_over_at(&view.name));
        let begun = sick.max(self.took_over_at).max(view.since).max(short).max(woke) + health.grace;
        // Each hung check of a shorter interval than its timeout puts the next one off.
        let each = health.interval.max(health.timeout);
        // One that says STOPPING=1 is left alone for as long as a stop may take.
        let pause = if world.faults.talk_per_mille > 0 { spec.stop.timeout } else { Duration::ZERO };
        let bound = begun + pause + each * health.threshold + health.interval + health.timeout + watchdog;
        if active && process.lives() && !self.shutting_down && world.now > bound + Duration::from_secs(2) {
            let late = world.now.since(bound);
            return broken(promises::I25C, &view.name, format!("{late:?} over the bound"));
        }
        Ok(())
    }
}
