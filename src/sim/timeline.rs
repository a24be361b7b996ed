//! What would happen if a unit failed so many times: the real engine, given a world in which
//! nothing else ever goes wrong.
//!
//! Refuses: luck. With jitter it runs twice, once with the least and once with the most of it,
//! and every step has an earliest and a latest moment.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::base::exit::Exit;
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::engine::effect::AlertKind;
use crate::engine::view::StateWord;
use crate::sim::standby::{Jitter, World};
use crate::unit::spec::{HealthCheck, ReadyWhen, ServiceType, UnitSpec};

/// More than any timeline that a person reads needs: nine hangs of a unit that is checked every
/// five seconds for a day before each are 160,000. Beyond it the question was a mistake.
pub(crate) const STEPS_MAX: u64 = 1_000_000;

/// In what way the unit fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Its main process ends with a status that is no success.
    Exit,
    /// It answers no health check, and no signal but SIGKILL.
    Hang,
    /// It is executed and never gets ready.
    NeverReady,
}

/// The question.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Every unit that there is; the others stand by and never fail.
    pub units: &'a [Arc<UnitSpec>],
    pub unit: &'a UnitName,
    /// How many runs fail before one stays up.
    pub failures: u32,
    pub how: How,
    /// How long a run is ready before it fails.
    pub lives: Duration,
}

/// Why there is no timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is not among the units.
    NoSuchUnit,
    /// Nothing would notice that it hangs.
    NoHealth,
    /// A oneshot is not watched once it is done.
    HealthOfOneshot,
    /// It is ready as soon as it is executed, so it cannot be late.
    ReadyAtOnce,
    /// It may take for ever to get ready.
    NoReadyTimeout,
    /// The runs live so long that the answer would take too long.
    TooLong,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refused::NoSuchUnit => "there is no such unit",
            Refused::NoHealth => "nothing would notice that it hangs: it has no [health]",
            Refused::HealthOfOneshot => "a oneshot is done when it is active: it cannot hang",
            Refused::ReadyAtOnce => "it is ready as soon as it is executed, so it cannot be late",
            Refused::NoReadyTimeout => "it may take for ever to get ready: it has no readiness.timeout",
            Refused::TooLong => "this timeline has more steps than anybody can read",
        })
    }
}

impl Refused {
    /// What to do.
    pub fn help(self) -> &'static str {
        match self {
            Refused::NoSuchUnit => "`upright check` lists what is there",
            Refused::NoHealth => "add for example [health] with tcp = \"127.0.0.1:8000\"",
            Refused::HealthOfOneshot => "try --how exit or --how never-ready",
            Refused::ReadyAtOnce => "add a [readiness] with http, tcp, exec, log or notify = true",
            Refused::NoReadyTimeout => "set readiness.timeout, for example \"60s\"",
            Refused::TooLong => "ask for fewer failures, or for a shorter --every",
        }
    }
}

/// A moment or a wait that jitter can move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub least: Duration,
    pub most: Duration,
}

impl Span {
    pub(crate) fn of(wait: Duration) -> Span {
        Span { least: wait, most: wait }
    }

    fn to(self, later: Span) -> Span {
        Span { least: self.least, most: later.most }
    }

    fn since(self, earlier: Span) -> Span {
        Span { least: self.least.saturating_sub(earlier.least), most: self.most.saturating_sub(earlier.most) }
    }
}

/// What an alert is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    Failing,
    GaveUp,
    Recovered,
    /// Another kind, by its name.
    Else(&'static str),
}

impl About {
    pub(crate) fn of(kind: AlertKind) -> About {
        match kind {
            AlertKind::Failing => About::Failing,
            AlertKind::GaveUp => About::GaveUp,
            AlertKind::Recovered => About::Recovered,
            AlertKind::Stuck
            | AlertKind::ResyncFailed
            | AlertKind::EngineRestarted
            | AlertKind::Quarantined
            | AlertKind::SafeMode
            | AlertKind::ConfigError
            | AlertKind::ConfigMended
            | AlertKind::Test => About::Else(kind.as_str()),
        }
    }

    /// As the alert's own `kind`.
    pub fn as_str(self) -> &'static str {
        match self {
            About::Failing => AlertKind::Failing.as_str(),
            About::GaveUp => AlertKind::GaveUp.as_str(),
            About::Recovered => AlertKind::Recovered.as_str(),
            About::Else(word) => word,
        }
    }
}

/// What happens to the unit; each has the name of its line in `upright events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// `restart` 0 is the first start.
    Started {
        restart: u32,
    },
    Ready,
    /// The first bad check of a run.
    Unhealthy,
    /// None: no restart follows by itself.
    Failed {
        failures: u32,
        cause: String,
        restart_in: Option<Span>,
    },
    RetryExhausted {
        attempts: u32,
    },
    /// `nth`: of the alerts about the same in this episode, from 1.
    Alert {
        about: About,
        nth: u32,
        message: String,
        affected: Vec<UnitName>,
    },
    /// It did not end in time and got SIGKILL.
    Killed,
    Recovered {
        down: Span,
    },
    EpisodeEnded {
        failures: u32,
    },
    GaveUp {
        failures: u32,
    },
    /// It ended as it may, and rests.
    Finished,
}

impl What {
    /// The stable name; `telemetry` gives records the same.
    pub fn event(&self) -> &'static str {
        match self {
            What::Started { .. } => "unit.started",
            What::Ready => "unit.active",
            What::Unhealthy => "health.bad",
            What::Failed { .. } => "unit.failed",
            What::RetryExhausted { .. } => "retry.exhausted",
            What::Alert { .. } => "alert.raised",
            What::Killed => "unit.killed",
            What::Recovered { .. } => "unit.recovered",
            What::EpisodeEnded { .. } => "episode.ended",
            What::GaveUp { .. } => "unit.gave_up",
            What::Finished => "unit.finished",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Since the first start.
    pub at: Span,
    pub what: What,
}

/// The state in which it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Active,
    Inactive,
    Failed,
}

impl End {
    /// The state's word.
    pub fn as_str(self) -> &'static str {
        match self {
            End::Active => StateWord::Active.as_str(),
            End::Inactive => StateWord::Inactive.as_str(),
            End::Failed => StateWord::Failed.as_str(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    pub steps: Vec<Step>,
    /// From the first failure to the first alert; none when nobody is told.
    pub first_alert_after: Option<Span>,
    /// Most restarts within any 60 seconds, when every delay is as short as it can be.
    pub restarts_in_worst_minute: u32,
    pub ends: End,
    /// Its requirements: taken as ready all the time.
    pub stand_ins: Vec<UnitName>,
    /// The code of each failing exit.
    pub exit: Exit,
}

/// Runs the engine through the plan.
///
/// # Errors
/// A question without an answer.
pub fn timeline(plan: &Plan<'_>) -> Result<Timeline, Refused> {
    let spec = plan.units.iter().find(|spec| spec.name == *plan.unit).ok_or(Refused::NoSuchUnit)?;
    refuse(plan, spec)?;
    let least = World::new(plan, spec, Jitter::Least).play()?;
    let exit = failing_exit(spec);
    let stand_ins = spec.unit.requires.clone();
    let ends = least.1;
    let steps = if spec.restart.jitter_percent == 0 {
        least.0
    } else {
        let most = World::new(plan, spec, Jitter::Most).play()?;
        least.0.into_iter().zip(most.0).map(|(least, most)| merge(least, &most)).collect()
    };
    let first = |is: fn(&What) -> bool| steps.iter().find(|step| is(&step.what)).map(|step| step.at);
    let alert = first(|what| matches!(what, What::Alert { .. }));
    let failure = first(|what| matches!(what, What::Failed { .. }));
    Ok(Timeline {
        first_alert_after: alert.zip(failure).map(|(alert, failure)| alert.since(failure)),
        restarts_in_worst_minute: worst_minute(&steps),
        ends,
        stand_ins,
        exit,
        steps,
    })
}

fn refuse(plan: &Plan<'_>, spec: &UnitSpec) -> Result<(), Refused> {
    let oneshot = spec.service.kind == ServiceType::Oneshot;
    if let Some(HealthCheck::Watchdog(every)) = spec.health.as_ref().map(|health| &health.check) {
        let pings = plan.lives.max(spec.restart.reset_after).as_nanos() / (every.as_nanos() / 2).max(1);
        if plan.how == How::Hang && pings.saturating_mul(u128::from(plan.failures)) > u128::from(STEPS_MAX) {
            return Err(Refused::TooLong);
        }
    }
    match plan.how {
        How::Exit => Ok(()),
        How::Hang if oneshot => Err(Refused::HealthOfOneshot),
        How::Hang if spec.health.is_none() => Err(Refused::NoHealth),
        How::NeverReady if !oneshot && spec.readiness.when == ReadyWhen::Executed => {
            Err(Refused::ReadyAtOnce)
        }
        How::NeverReady if spec.readiness.timeout.is_none() => Err(Refused::NoReadyTimeout),
        How::Hang | How::NeverReady => Ok(()),
    }
}

/// The lowest code that is no success; SIGKILL where a file calls every code one.
pub(crate) fn failing_exit(spec: &UnitSpec) -> Exit {
    let failing = (1..=u8::MAX).find(|code| !spec.restart.success_exit_status.contains(code));
    failing.map_or(Exit::Signal { signal: Signal::KILL, core: false }, Exit::Code)
}

/// Both runs say the same; only their times differ.
fn merge(least: Step, most: &Step) -> Step {
    let what = match (least.what, &most.what) {
        (
            What::Failed { failures, cause, restart_in: Some(soonest) },
            What::Failed { restart_in: Some(latest), .. },
        ) => What::Failed { failures, cause, restart_in: Some(soonest.to(*latest)) },
        (What::Recovered { down }, What::Recovered { down: longest }) => {
            What::Recovered { down: down.to(*longest) }
        }
        (what, _) => what,
    };
    Step { at: least.at.to(most.at), what }
}

fn worst_minute(steps: &[Step]) -> u32 {
    let restarts: Vec<Duration> = steps
        .iter()
        .filter(|step| matches!(step.what, What::Started { restart } if restart > 0))
        .map(|step| step.at.least)
        .collect();
    let from = |(index, at): (usize, &Duration)| {
        let minute = *at + Duration::from_secs(60);
        restarts.iter().skip(index).take_while(|other| **other < minute).count()
    };
    u32::try_from(restarts.iter().enumerate().map(from).max().unwrap_or(0)).unwrap_or(u32::MAX)
}
