//! The world of a seed: which units, with which edges, under which faults.
//!
//! Refuses: worlds that could not stand even without faults (cycles, unknown names).

use std::sync::Arc;
use std::time::Duration;

use crate::base::check::{HostPort, NetCheck};
use crate::base::name::UnitName;
use crate::sim::tape::{Domain, Tape};
use crate::unit::spec::{
    Command, Edge, Health, HealthCheck, OnLoss, OnReturn, ReadyWhen, Reload, RestartPolicy, Resync, ResyncBy,
    ServiceType, UnitSpec,
};

/// A long world: half a day in which processes live for hours.
const LONG_S: u64 = 43_200;
pub const LONG: Duration = Duration::from_secs(LONG_S);

/// Which kinds of trouble this seed has, and how much (swarm testing: a random subset
/// each, so that rare combinations are met).
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Per mille of the starts that go wrong, in whatever way.
    pub start_per_mille: u64,
    /// Per mille of the main processes that end by themselves.
    pub death_per_mille: u64,
    pub ignore_term_per_mille: u64,
    pub stuck_per_mille: u64,
    pub strays_per_mille: u64,
    pub short_per_mille: u64,
    pub hook_per_mille: u64,
    /// Per mille of the effects at which the engine is killed.
    pub crash_per_mille: u64,
    /// Longest time a commit takes.
    pub commit_ms_max: u64,
    /// Per mille of the ticks that come late.
    pub late_tick_per_mille: u64,
    pub duplicate_per_mille: u64,
    /// Orders in the chaos phase.
    pub orders: u64,
    pub reconfigurations: u64,
    pub keeper_loss: bool,
    /// Per mille of the main processes that live on but answer no check.
    pub sick_per_mille: u64,
    /// Times that the store refuses everything for a while, and that the machine sleeps.
    pub outages: u64,
    pub sleeps: u64,
    /// Per mille of the main processes that say more of themselves than that they are ready.
    pub talk_per_mille: u64,
    /// Longest life of a process that dies by itself.
    pub life_ms_max: u64,
    /// Per mille of the resyncs that are not acknowledged.
    pub resync_per_mille: u64,
}

#[derive(Clone, Debug)]
pub struct Setup {
    pub units: Vec<Arc<UnitSpec>>,
    pub faults: Faults,
    pub start_concurrency: u32,
    pub chaos: Duration,
    pub ending: Ending,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything stands.
    Standing,
    /// An ordered shutdown, after everything stood.
    Shutdown,
    /// An ordered shutdown this long after the begin, amid the faults.
    ShutdownInChaos(Duration),
}

pub fn draw(tape: &mut Tape) -> Setup {
    let count = 1 + tape.below(Domain::Setup, 7);
    let mut units: Vec<UnitSpec> = (0..count).map(|index| unit(tape, index)).collect();
    let mut rate = |choices: &[u64]| *tape.pick(Domain::Setup, choices);
    let mut faults = Faults {
        start_per_mille: rate(&[0, 100, 300, 700]),
        death_per_mille: rate(&[0, 300, 700, 1000]),
        ignore_term_per_mille: rate(&[0, 0, 200, 600]),
        stuck_per_mille: rate(&[0, 0, 0, 300]),
        strays_per_mille: rate(&[0, 0, 300, 600]),
        short_per_mille: rate(&[0, 0, 50, 200]),
        hook_per_mille: rate(&[0, 100, 300]),
        crash_per_mille: rate(&[0, 0, 5, 30]),
        commit_ms_max: rate(&[1, 10, 500, 20_000]),
        late_tick_per_mille: rate(&[0, 100]),
        duplicate_per_mille: rate(&[0, 0, 100]),
        orders: rate(&[0, 3, 20, 60]),
        reconfigurations: rate(&[0, 0, 2, 6]),
        keeper_loss: rate(&[0, 0, 0, 0, 1]) == 1,
        sick_per_mille: rate(&[0, 0, 300, 700]),
        resync_per_mille: rate(&[0, 0, 300, 900]),
        outages: rate(&[0, 0, 0, 2]),
        sleeps: rate(&[0, 0, 0, 2]),
        talk_per_mille: rate(&[0, 300]),
        life_ms_max: 40_000,
    };
    let start_concurrency = *tape.pick(Domain::Setup, &[32, 1, 2]);
    let chaos = Duration::from_secs(*tape.pick(Domain::Setup, &[60, 300, 1_200, LONG_S]));
    if chaos == Duration::from_secs(LONG_S) {
        faults.life_ms_max = 7_200_000;
        units.iter_mut().for_each(slow_down);
    }
    let units = units.into_iter().map(Arc::new).collect();
    let ending = match (tape.chance(Domain::Setup, 400), tape.below(Domain::Hook, 2)) {
        (false, _) => Ending::Standing,
        (true, 0) => Ending::Shutdown,
        (true, _) => {
            let at_ms = tape.below(Domain::Hook, u64::try_from(chaos.as_millis()).unwrap_or(u64::MAX));
            Ending::ShutdownInChaos(Duration::from_millis(at_ms))
        }
    };
    Setup { units, faults, start_concurrency, chaos, ending }
}

/// Checks of a long world are far apart: they are most of its steps, and teach nothing new.
pub fn slow_down(spec: &mut UnitSpec) {
    if let Some(health) = &mut spec.health {
        health.interval *= 60;
        if let HealthCheck::Watchdog(every) = &mut health.check {
            *every *= 60;
        }
    }
}

pub fn name(index: u64) -> UnitName {
    UnitName::parse(&format!("u{index}")).unwrap_or_else(|_| unreachable!("u<number> is a name"))
}

/// Edges point only to smaller numbers (need, order) or larger (before): never a cycle.
pub fn unit(tape: &mut Tape, index: u64) -> UnitSpec {
    let mut spec = UnitSpec::minimal(name(index), vec![format!("/bin/u{index}")]);
    let hook = || Command { argv: vec!["/bin/hook".to_string()] };
    for other in 0..index {
        match tape.below(Domain::Setup, 9) {
            5 | 6 => spec.unit.requires.push(name(other)),
            7 => spec.unit.after.push(name(other)),
            8 if tape.chance(Domain::Setup, 300) => spec.unit.conflicts.push(name(other)),
            4 if tape.chance(Domain::Setup, 300) => spec.unit.wants.push(name(other)),
            _ => {}
        }
    }
    let here = |percent: u64, tape: &mut Tape| tape.chance(Domain::Setup, percent * 10);
    if here(10, tape) {
        spec.unit.before.push(name(index + 1));
    }
    spec.unit.enabled = !here(20, tape);
    spec.service.kind = *tape.pick(
        Domain::Setup,
        &[
            ServiceType::Simple,
            ServiceType::Simple,
            ServiceType::Simple,
            ServiceType::Notify,
            ServiceType::Oneshot,
        ],
    );
    spec.readiness.when = match (spec.service.kind, tape.below(Domain::Setup, 5)) {
        (ServiceType::Notify, _) => ReadyWhen::Notify,
        (_, 1) => ReadyWhen::Net(NetCheck::Tcp(HostPort { host: "127.0.0.1".into(), port: 1 })),
        (_, 2) => ReadyWhen::Exec(hook()),
        (_, 3) => ReadyWhen::Log("ready".into()),
        (_, 4) => ReadyWhen::NotifyFd(3),
        (_, _) => ReadyWhen::Executed,
    };
    spec.readiness.timeout = match (spec.service.kind, tape.below(Domain::Setup, 3)) {
        (ServiceType::Oneshot, 0) => None,
        (_, 1) => Some(Duration::from_secs(3)),
        (_, _) => Some(Duration::from_secs(20)),
    };
    if here(30, tape) {
        spec.readiness.settle = Duration::from_millis(700);
    }
    spec.restart.policy = *tape.pick(
        Domain::Setup,
        &[RestartPolicy::Always, RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never],
    );
    if here(15, tape) {
        spec.restart.delays = vec![Duration::ZERO];
    }
    if here(15, tape) {
        spec.restart.jitter_percent = 20;
    }
    spec.restart.give_up_after = *tape.pick(Domain::Setup, &[0, 0, 0, 2, 5]);
    spec.restart.reset_after = *tape.pick(Domain::Setup, &[Duration::from_secs(60), Duration::from_secs(5)]);
    spec.stop.timeout = *tape.pick(Domain::Setup, &[Duration::from_secs(10), Duration::from_secs(1)]);
    if here(15, tape) {
        spec.stop.command = Some(hook());
    }
    for hooks in [&mut spec.service.start_pre, &mut spec.service.start_post, &mut spec.service.stop_post] {
        if here(15, tape) {
            hooks.extend((0..1 + tape.below(Domain::Setup, 2)).map(|_| hook()));
        }
    }
    if here(30, tape) {
        spec.reload = Reload::Command(hook());
    }
    heal(tape, &mut spec);
    spec
}

/// Health, what follows from lost and returned requirements, alerts.
fn heal(tape: &mut Tape, spec: &mut UnitSpec) {
    let net = || NetCheck::Tcp(HostPort { host: "127.0.0.1".into(), port: 2 });
    let hook = || Command { argv: vec!["/bin/hook".to_string()] };
    let seconds = Duration::from_secs;
    let check = match tape.below(Domain::Setup, 6) {
        3 => Some(HealthCheck::Net(net())),
        4 => Some(HealthCheck::Exec(hook())),
        5 => Some(HealthCheck::Watchdog(seconds(4))),
        _ => None,
    };
    if spec.service.kind != ServiceType::Oneshot {
        spec.health = check.map(|check| Health {
            check,
            interval: *tape.pick(Domain::Setup, &[seconds(5), seconds(1)]),
            timeout: seconds(3),
            threshold: *tape.pick(Domain::Setup, &[3, 1]),
            grace: *tape.pick(Domain::Setup, &[Duration::ZERO, seconds(4)]),
        });
    }
    for other in spec.unit.requires.clone() {
        let on_loss =
            *tape.pick(Domain::Setup, &[OnLoss::Degrade, OnLoss::Degrade, OnLoss::Stop, OnLoss::Restart]);
        let on_return = *tape.pick(
            Domain::Setup,
            &[OnReturn::Resync, OnReturn::Resync, OnReturn::Reload, OnReturn::Restart, OnReturn::None],
        );
        spec.dependency.insert(other, Edge { on_loss, on_return });
    }
    if tape.chance(Domain::Setup, 600) {
        let by =
            if tape.chance(Domain::Setup, 500) { ResyncBy::Net(net()) } else { ResyncBy::Command(hook()) };
        let delays = vec![seconds(5), seconds(10), seconds(15)];
        spec.resync = Some(Resync { by, timeout: seconds(2), delays });
    }
    spec.alert.after_failures = *tape.pick(Domain::Setup, &[4, 1, 2]);
    spec.alert.repeat_every = *tape.pick(Domain::Setup, &[4, 0, 1]);
}
