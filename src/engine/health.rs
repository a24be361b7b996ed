//! Liveness of an active unit: checks at intervals, one at a time, a verdict after so many
//! bad ones in a row; or the watchdog that the service feeds itself.
//!
//! Refuses: carrying a verdict from one run to the next, and running a check (`probe` does).
//!
//! A process that hangs is found within `interval × threshold + timeout`: the next check begins
//! within an interval, the following ones an interval apart, and the last may take its timeout.
//! Where the timeout is the longer of the two, a hang takes `interval + timeout × threshold`, as
//! one check at a time is under way.

use std::time::Duration;

use crate::base::check::ProbeOutcome;
use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::effect::{Cause, Effect, Effects, Mark, RecordKind, Role};
use crate::engine::state::{Active, State, Watch, WatchStep};
use crate::unit::spec::{Health, HealthCheck, UnitSpec};

/// A check whose answer comes this much later than its timeout spanned a suspend (CLOCK_BOOTTIME
/// counts sleep, the prober's timeout does not): it says nothing about the service (E2).
const SUSPEND_SLACK: Duration = Duration::from_secs(5);

/// The first check of a run that is ready now.
pub(crate) fn begin(now: Monotonic, spec: &UnitSpec) -> Option<Watch> {
    let health = spec.health.as_ref()?;
    let step = match &health.check {
        HealthCheck::Watchdog(every) => {
            WatchStep::Watchdog { due: now + health.grace.max(*every), every: *every }
        }
        HealthCheck::Net(_) | HealthCheck::Exec(_) => WatchStep::Next(now + health.interval),
    };
    Some(Watch { step, bad: 0, healthy: None, seen: None, good_at: now })
}

impl Engine {
    fn watched(&mut self, name: &UnitName) -> Option<(&mut Active, Health)> {
        let unit = self.units.get_mut(name)?;
        let health = unit.spec.health.clone()?;
        match &mut unit.state {
            State::Active(active) => Some((active, health)),
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Activating(_)
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { .. } => None,
        }
    }

    pub(crate) fn on_health_deadline(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some((active, health)) = self.watched(name) else { return };
        let (Some(main), Some(watch)) = (active.main, &active.health) else { return };
        match watch.step {
            WatchStep::Next(at) if at <= now => self.begin_check(now, name, main, &health, fx),
            WatchStep::InFlight { check: Some(check), hung_at, .. } if hung_at <= now => {
                fx.mark(Mark::HealthCheckHung);
                fx.push(Effect::End { run: check, signal: Signal::KILL });
                self.set_watch_step(name, WatchStep::Killed { check });
                let why = format!("no answer within {}", crate::base::duration::Pretty(health.timeout));
                self.on_bad_check(now, name, main, why, fx);
            }
            WatchStep::InFlight { check: None, hung_at, .. } if hung_at <= now => {
                // The prober keeps its own time; it is late only after a suspend.
                fx.mark(Mark::CheckDiscarded);
                let lost_at = now + health.timeout + SUSPEND_SLACK;
                self.set_watch_step(name, WatchStep::Overslept { lost_at });
            }
            WatchStep::Overslept { lost_at } if lost_at <= now => {
                self.set_watch_step(name, WatchStep::Next(now + health.interval));
            }
            WatchStep::Watchdog { due, every } if due <= now => {
                if now.since(due) > SUSPEND_SLACK {
                    fx.mark(Mark::CheckDiscarded);
                    return self.set_watch_step(name, WatchStep::Watchdog { due: now + every, every });
                }
                fx.mark(Mark::WatchdogMissed);
                let silent_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
                self.fail(now, name, main, now, Cause::Watchdog { silent_ms }, fx);
            }
            WatchStep::Next(_)
            | WatchStep::InFlight { .. }
            | WatchStep::Overslept { .. }
            | WatchStep::Killed { .. }
            | WatchStep::Watchdog { .. } => {}
        }
    }

    fn begin_check(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        main: RunId,
        health: &Health,
        fx: &mut Effects,
    ) {
        let check = match health.check {
            HealthCheck::Exec(_) => Some(self.spawn(name, Role::HealthCheck, fx)),
            HealthCheck::Net(_) | HealthCheck::Watchdog(_) => {
                fx.push(Effect::Check { unit: name.clone(), run: main });
                None
            }
        };
        let slack = if check.is_some() { Duration::ZERO } else { SUSPEND_SLACK };
        let hung_at = now + health.timeout + slack;
        self.set_watch_step(name, WatchStep::InFlight { check, begun: now, hung_at });
    }

    fn set_watch_step(&mut self, name: &UnitName, step: WatchStep) {
        if let Some((active, _)) = self.watched(name)
            && let Some(watch) = &mut active.health
        {
            watch.step = step;
        }
    }

    /// The answer of a check over the network.
    pub(crate) fn on_checked(&mut self, now: Monotonic, run: RunId, outcome: ProbeOutcome, fx: &mut Effects) {
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        let Some((active, health)) = self.watched(&name) else { return fx.mark(Mark::LateNewsIgnored) };
        let step = active.health.as_ref().filter(|_| active.main == Some(run)).map(|watch| watch.step);
        let overslept = match step {
            Some(WatchStep::Overslept { .. }) => true,
            Some(WatchStep::InFlight { check: None, hung_at, .. }) => hung_at <= now,
            Some(
                WatchStep::Next(_)
                | WatchStep::InFlight { .. }
                | WatchStep::Killed { .. }
                | WatchStep::Watchdog { .. },
            )
            | None => false,
        };
        if overslept {
            fx.mark(Mark::CheckDiscarded);
            self.touched.insert(name.clone());
            return self.next_check(now, &name, &health);
        }
        let awaited = active.main == Some(run)
            && active
                .health
                .as_ref()
                .is_some_and(|watch| matches!(watch.step, WatchStep::InFlight { check: None, .. }));
        if !awaited {
            return fx.mark(Mark::LateNewsIgnored);
        }
        self.touched.insert(name.clone());
        self.next_check(now, &name, &health);
        match outcome {
            ProbeOutcome::Ok => self.on_good_check(now, &name, fx),
            ProbeOutcome::Failed(why) => self.on_bad_check(now, &name, run, why, fx),
            ProbeOutcome::Short(_) => fx.mark(Mark::CheckDiscarded),
        }
    }

    /// A check that is a process has ended.
    pub(crate) fn on_check_exited(
        &mut self,
        now: Monotonic,
        name: &UnitName,
        check: RunId,
        exit: Exit,
        fx: &mut Effects,
    ) {
        let Some((active, health)) = self.watched(name) else { return };
        let (Some(main), Some(watch)) = (active.main, &active.health) else { return };
        match watch.step {
            WatchStep::InFlight { check: Some(awaited), .. } if awaited == check => {
                self.next_check(now, name, &health);
                match exit {
                    Exit::Code(0) => self.on_good_check(now, name, fx),
                    Exit::Code(_) | Exit::Signal { .. } | Exit::NotExecuted { .. } | Exit::Unknown => {
                        self.on_bad_check(now, name, main, format!("the check {exit}"), fx)
                    }
                }
            }
            WatchStep::Killed { check: awaited } if awaited == check => self.next_check(now, name, &health),
            WatchStep::Next(_)
            | WatchStep::InFlight { .. }
            | WatchStep::Overslept { .. }
            | WatchStep::Killed { .. }
            | WatchStep::Watchdog { .. } => {}
        }
    }

    /// A check could not be started for want of resources: no verdict, and the next in time.
    pub(crate) fn on_check_short(&mut self, now: Monotonic, name: &UnitName) {
        if let Some((_, health)) = self.watched(name) {
            self.next_check(now, name, &health);
        }
    }

    /// An interval after the last one began; at once if it took longer than that.
    fn next_check(&mut self, now: Monotonic, name: &UnitName, health: &Health) {
        let Some((active, _)) = self.watched(name) else { return };
        let Some(watch) = &mut active.health else { return };
        let begun = match watch.step {
            WatchStep::InFlight { begun, .. } => begun,
            WatchStep::Next(_)
            | WatchStep::Overslept { .. }
            | WatchStep::Killed { .. }
            | WatchStep::Watchdog { .. } => now,
        };
        watch.step = WatchStep::Next((begun + health.interval).max(now));
    }

    fn on_good_check(&mut self, now: Monotonic, name: &UnitName, fx: &mut Effects) {
        let Some((active, _)) = self.watched(name) else { return };
        let (main, Some(watch)) = (active.main, &mut active.health) else { return };
        watch.bad = 0;
        watch.seen = None;
        watch.good_at = now;
        if watch.healthy.replace(true) == Some(false) {
            fx.record(name, main, RecordKind::HealthChanged { healthy: true, seen: None });
        }
    }

    fn on_bad_check(&mut self, now: Monotonic, name: &UnitName, main: RunId, why: String, fx: &mut Effects) {
        let Some((active, health)) = self.watched(name) else { return };
        if now < active.ready_at + health.grace {
            return; // it may still be warming up
        }
        let Some(watch) = &mut active.health else { return };
        watch.bad += 1;
        watch.seen = Some(why.clone());
        let bad = watch.bad;
        if watch.healthy.replace(false) != Some(false) {
            let seen = Some(why.clone());
            fx.record(name, Some(main), RecordKind::HealthChanged { healthy: false, seen });
        }
        if bad >= health.threshold {
            fx.mark(Mark::Unhealthy);
            self.fail(now, name, main, now, Cause::Unhealthy { checks: bad, last: why }, fx);
        }
    }

    /// `WATCHDOG=1`: the service lives.
    pub(crate) fn on_pinged(&mut self, now: Monotonic, run: RunId, fx: &mut Effects) {
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        let Some((active, _)) = self.watched(&name) else { return };
        let Some(Watch { step: WatchStep::Watchdog { due, every }, .. }) = &mut active.health else { return };
        *due = now + *every;
        self.touched.insert(name.clone());
        self.on_good_check(now, &name, fx);
    }

    /// `WATCHDOG=trigger`: as if it had missed a watchdog, whether it has one or not
    /// (sd_notify(3)).
    pub(crate) fn on_watchdog_triggered(&mut self, now: Monotonic, run: RunId, fx: &mut Effects) {
        let Some(name) = self.runs.get(&run).cloned() else { return fx.mark(Mark::LateNewsIgnored) };
        let Some(unit) = self.units.get(&name) else { return };
        let runs_now = match &unit.state {
            State::Active(active) => active.main == Some(run),
            State::Activating(_) => unit.main == Some(run),
            State::Inactive { .. }
            | State::Waiting { .. }
            | State::Backoff { .. }
            | State::Deactivating { .. }
            | State::Failed { .. } => false,
        };
        if !runs_now {
            return fx.mark(Mark::LateNewsIgnored);
        }
        self.touched.insert(name.clone());
        self.fail(now, &name, run, now, Cause::WatchdogTriggered, fx);
    }
}
