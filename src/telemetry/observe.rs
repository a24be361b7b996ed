//! One engine record → one event: level, stable name, one sentence, cause, data.
//!
//! Refuses: a second place that knows these names.

use serde_json::{Map, Value};

use crate::base::{duration::Pretty, exit::Exit, name::UnitName, time::Monotonic};
use crate::engine::effect::{AlertKind, Cause, Record, RecordKind};
use crate::engine::outbox::{Delivery, DeliveryState, Row};
use crate::engine::plan::Comes;
use crate::engine::safe::DeathHow;
use crate::engine::view::StateWord;
use crate::store::row::{Level, NewEvent};

/// When a record was made, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Now of the engine step.
    pub at: Monotonic,
    /// Wall clock, microseconds since 1970.
    pub ts_us: i64,
}

/// What a kind of record says beyond its unit and run.
struct Said {
    level: Level,
    event: &'static str,
    /// Follows the unit's name: "web", " failed (…)".
    text: String,
    cause: Option<String>,
    data: Vec<(&'static str, Value)>,
}

/// The line of history for `record`.
pub fn observe(record: &Record, stamp: Stamp) -> NewEvent {
    let mut said = say(&record.kind);
    if let RecordKind::Failed { well_until: Some(well_until), .. } = &record.kind {
        let detect_us = u64::try_from(stamp.at.since(*well_until).as_micros()).unwrap_or(u64::MAX);
        said.data.push(("detect_us", detect_us.into()));
    }
    if let Some(state) = record.state {
        said.data.push(("state", state.as_str().into()));
    }
    let subject = record.unit.as_ref().map_or("upright", UnitName::as_str);
    NewEvent {
        ts_us: stamp.ts_us,
        level: said.level,
        event: said.event.to_string(),
        unit: record.unit.clone(),
        run: record.run,
        cause: said.cause,
        message: format!("{subject} {}", said.text),
        at: stamp.at,
        data: said.data.into_iter().map(|(key, value)| (key.to_string(), value)).collect(),
    }
}

/// A line of history that no engine record stands behind: the daemon's own doings.
pub fn note(level: Level, event: &str, message: String, stamp: Stamp) -> NewEvent {
    NewEvent {
        ts_us: stamp.ts_us,
        level,
        event: event.to_string(),
        unit: None,
        run: None,
        cause: None,
        message,
        at: stamp.at,
        data: Map::new(),
    }
}

/// The line of history for an alert that is settled with a channel; none while it waits.
pub fn delivery_event(row: &Row, delivery: &Delivery, stamp: Stamp) -> Option<NewEvent> {
    let Delivery { channel, attempts, .. } = delivery;
    let key = &row.alert.key;
    let (level, event, message) = match delivery.state {
        DeliveryState::Pending => return None,
        DeliveryState::Delivered => {
            (Level::Info, "alert.delivered", format!("alert {key} was delivered to {channel}"))
        }
        DeliveryState::Muted => {
            let why = delivery.error.as_deref().unwrap_or("muted");
            (Level::Info, "alert.muted", format!("alert {key} is not told to {channel}: {why}"))
        }
        DeliveryState::Parked => {
            let why = delivery.error.as_deref().unwrap_or("refused");
            (Level::Error, "alert.parked", format!("alert {key} is not delivered to {channel}, ever: {why}"))
        }
    };
    let after_ms = stamp.ts_us.saturating_sub(row.ts_us).max(0) / 1_000;
    let data = [
        ("key", key.clone().into()),
        ("channel", channel.clone().into()),
        ("attempts", (*attempts).into()),
        ("after_ms", after_ms.into()),
    ];
    let mut line = note(level, event, message, stamp);
    line.unit = row.alert.unit.clone();
    line.cause = delivery.error.clone();
    line.data = data.map(|(key, value): (&str, Value)| (key.to_string(), value)).into_iter().collect();
    Some(line)
}

fn say(kind: &RecordKind) -> Said {
    use Level::{Error, Info, Warn};
    match kind {
        RecordKind::Ordered { verb } => {
            said(Info, "order.taken", format!("was ordered to {verb}"), vec![("verb", (*verb).into())])
        }
        RecordKind::Waiting { for_units } => {
            let text = format!("waits for {}", list(for_units));
            said(Info, "unit.waiting", text, vec![("for", names(for_units))])
        }
        RecordKind::Started { pid } => {
            said(Info, "unit.started", format!("started as process {pid}"), vec![("pid", (*pid).into())])
        }
        RecordKind::Active { start_ms } => {
            let text = format!("is ready after {}", pretty(*start_ms));
            said(Info, "unit.active", text, vec![("start_ms", (*start_ms).into())])
        }
        RecordKind::Failed { cause, failures: k, episode, blame, .. } => failed(cause, *k, *episode, blame),
        RecordKind::RestartScheduled { at, delay_ms, failures } => scheduled(*at, *delay_ms, *failures),
        RecordKind::Restarted { failures, late_us } => {
            let data = vec![("failures", (*failures).into()), ("late_us", (*late_us).into())];
            said(Info, "unit.restarted", format!("was restarted after failure {failures}"), data)
        }
        RecordKind::Recovered { failures, down_ms } => {
            let text = format!("recovered after {}; {}", pretty(*down_ms), counted(*failures, "failure"));
            let data = vec![("failures", (*failures).into()), ("down_ms", (*down_ms).into())];
            said(Info, "unit.recovered", text, data)
        }
        RecordKind::EpisodeEnded { failures } => {
            let text = format!("begins anew; {} forgotten", counted(*failures, "failure"));
            said(Info, "episode.ended", text, vec![("failures", (*failures).into())])
        }
        RecordKind::Stopping => plain(Info, "unit.stopping", "is being stopped"),
        RecordKind::Killed => plain(Warn, "unit.killed", "did not stop in time and was killed"),
        RecordKind::Stopped { exit } => stopped(exit.as_ref()),
        RecordKind::Finished { exit } => {
            let data = exit_data(exit);
            Said { cause: Some(exit.to_string()), ..said(Info, "unit.finished", "is done".into(), data) }
        }
        RecordKind::GaveUp { failures } => gave_up(*failures),
        RecordKind::Stuck => plain(Error, "unit.stuck", "survived SIGKILL: it is stuck in the kernel"),
        RecordKind::Unstuck => plain(Info, "unit.unstuck", "is no longer stuck"),
        RecordKind::Reloaded => plain(Info, "unit.reloaded", "was reloaded"),
        RecordKind::HookFailed { hook, cause } => hook_failed(hook, cause),
        RecordKind::Shortage { errno } => shortage(*errno),
        RecordKind::Adopted { pid } => {
            let text = format!("was found running as process {pid}");
            said(Info, "unit.adopted", text, vec![("pid", (*pid).into())])
        }
        RecordKind::Removed => plain(Info, "unit.removed", "was removed from the unit files"),
        RecordKind::Degraded { for_units } => degraded(for_units),
        RecordKind::Restored => plain(Info, "unit.restored", "has everything it requires again"),
        RecordKind::HealthChanged { healthy, seen } => health_changed(*healthy, seen.clone()),
        RecordKind::RetryExhausted { what, attempts } => retry_exhausted(what, *attempts),
        RecordKind::ResyncStarted { attempt, for_units } => resync_started(*attempt, for_units),
        RecordKind::Resynced { attempt, took_ms } => resynced(*attempt, *took_ms),
        RecordKind::ResyncFailed { attempt, why, next_ms } => resync_failed(*attempt, why, *next_ms),
        RecordKind::Changed { from, to, why } => changed(*from, *to, why),
        RecordKind::Reconfigured { keys, comes } => reconfigured(keys, *comes),
        RecordKind::AlertRaised { key, kind, message } => alert_raised(key, *kind, message),
        RecordKind::EngineDied { how, touched } => engine_died(*how, touched.as_ref()),
        RecordKind::SafeModeLeft => plain(Info, "engine.trusted", "left safe mode, as an operator said"),
        RecordKind::Quarantined { deaths } => {
            let text = format!("is in quarantine: engines died {deaths} times while they dealt with it");
            said(Error, "unit.quarantined", text, vec![("deaths", (*deaths).into())])
        }
        RecordKind::QuarantineLeft => plain(Info, "unit.released", "is no longer in quarantine"),
    }
}

fn scheduled(at: Monotonic, delay_ms: u64, failures: u32) -> Said {
    let text = format!("will be restarted {} after failure {failures}", pretty(delay_ms));
    let data =
        vec![("delay_ms", delay_ms.into()), ("failures", failures.into()), ("due_ns", at.as_ns().into())];
    said(Level::Info, "retry.scheduled", text, data)
}

fn said(level: Level, event: &'static str, text: String, data: Vec<(&'static str, Value)>) -> Said {
    Said { level, event, text, cause: None, data }
}

fn plain(level: Level, event: &'static str, text: &str) -> Said {
    said(level, event, text.to_string(), Vec::new())
}

fn failed(cause: &Cause, failures: u32, episode: u64, blame: &[UnitName]) -> Said {
    let mut data = vec![("failures", failures.into()), ("episode", episode.into()), ("blame", names(blame))];
    match cause {
        Cause::Exited(exit) => data.extend(exit_data(exit)),
        Cause::NotReady { timeout_ms, .. } | Cause::HookTimeout { timeout_ms } => {
            data.push(("timeout_ms", (*timeout_ms).into()));
        }
        Cause::Hook { hook, exit } => {
            data.push(("hook", (*hook).into()));
            data.extend(exit_data(exit));
        }
        Cause::Unhealthy { checks, .. } => data.push(("checks", (*checks).into())),
        Cause::Watchdog { silent_ms } => data.push(("silent_ms", (*silent_ms).into())),
        Cause::WatchdogTriggered => {}
    }
    let cause = describe(cause);
    let mut text = format!("failed: {cause}; failure {failures} in a row");
    if !blame.is_empty() {
        text = format!("{text}, while {} was down", list(blame));
    }
    Said { cause: Some(cause), ..said(Level::Warn, "unit.failed", text, data) }
}

fn health_changed(healthy: bool, seen: Option<String>) -> Said {
    if healthy {
        return plain(Level::Info, "health.good", "is healthy again");
    }
    let seen = seen.unwrap_or_else(|| "no reason".to_string());
    let text = format!("had a bad health check: {seen}");
    Said { cause: Some(seen), ..said(Level::Warn, "health.bad", text, Vec::new()) }
}

fn retry_exhausted(what: &'static str, attempts: u32) -> Said {
    let tries = if attempts == 1 { "1 retry".to_string() } else { format!("{attempts} retries") };
    let text = format!("has used up its {what} delays: the last of {tries} failed");
    let data = vec![("what", what.into()), ("attempts", attempts.into())];
    said(Level::Warn, "retry.exhausted", text, data)
}

fn resync_started(attempt: u32, for_units: &[UnitName]) -> Said {
    let data = vec![("attempt", attempt.into()), ("for", names(for_units))];
    said(Level::Info, "resync.started", format!("restores its state, try {attempt}"), data)
}

fn resynced(attempt: u32, took_ms: u64) -> Said {
    let data = vec![("attempt", attempt.into()), ("took_ms", took_ms.into())];
    let text = format!("has restored its state in {}", pretty(took_ms));
    said(Level::Info, "resync.succeeded", text, data)
}

fn resync_failed(attempt: u32, why: &str, next_ms: Option<u64>) -> Said {
    let next = next_ms.map(|ms| format!("; next try in {}", pretty(ms))).unwrap_or_default();
    let text = format!("could not restore its state, try {attempt}: {why}{next}");
    let data = vec![("attempt", attempt.into()), ("next_ms", next_ms.into())];
    Said { cause: Some(why.to_string()), ..said(Level::Warn, "resync.failed", text, data) }
}

fn degraded(for_units: &[UnitName]) -> Said {
    let data = vec![("for", names(for_units))];
    said(Level::Warn, "unit.degraded", format!("goes on without {}", list(for_units)), data)
}

fn changed(from: StateWord, to: StateWord, why: &str) -> Said {
    let data = vec![("from", from.as_str().into()), ("to", to.as_str().into())];
    said(Level::Info, "unit.state", format!("is {}: {why}", to.as_str()), data)
}

fn reconfigured(keys: &[String], comes: Comes) -> Said {
    let (word, then) = match comes {
        Comes::Live => ("live", "in force at once"),
        Comes::NextStart => ("next-start", "in force with its next start"),
        Comes::Restart => ("restart", "it is restarted for that"),
        Comes::Start => ("start", "it is wanted now"),
        Comes::Stop => ("stop", "it is not wanted any more"),
    };
    let data = vec![("keys", keys.to_vec().into()), ("comes", word.into())];
    said(Level::Info, "unit.reconfigured", format!("has a changed file ({}); {then}", keys.join(", ")), data)
}

fn alert_raised(key: &str, kind: AlertKind, message: &str) -> Said {
    let data = vec![("key", key.into()), ("kind", kind.as_str().into())];
    said(Level::Warn, "alert.raised", format!("raised an alert: {message}"), data)
}

fn engine_died(how: DeathHow, touched: Option<&UnitName>) -> Said {
    let (event, mut data, cause) = match how {
        DeathHow::Hung => ("engine.hung", Vec::new(), "it did not answer".to_string()),
        DeathHow::Ended(exit) => ("engine.died", exit_data(&exit), exit.to_string()),
    };
    let mut text = match how {
        DeathHow::Hung => "had an engine that did not answer; it was killed".to_string(),
        DeathHow::Ended(exit) => format!("lost its engine, which {exit}"),
    };
    if let Some(unit) = touched {
        text = format!("{text}, when it dealt with {unit}");
        data.push(("touched", unit.as_str().into()));
    }
    Said { cause: Some(cause), ..said(Level::Error, event, text, data) }
}

fn gave_up(failures: u32) -> Said {
    let text = format!("is held after {}: start it when the cause is gone", counted(failures, "failure"));
    said(Level::Error, "unit.gave_up", text, vec![("failures", failures.into())])
}

fn hook_failed(hook: &'static str, cause: &Cause) -> Said {
    let cause = describe(cause);
    let text = format!("ran its {hook} command in vain: {cause}");
    Said { cause: Some(cause), ..said(Level::Warn, "hook.failed", text, vec![("hook", hook.into())]) }
}

fn stopped(exit: Option<&Exit>) -> Said {
    let data = exit.map(exit_data).unwrap_or_default();
    let cause = exit.map(Exit::to_string);
    Said { cause, ..said(Level::Info, "unit.stopped", "is stopped".into(), data) }
}

fn shortage(errno: i32) -> Said {
    let cause = std::io::Error::from_raw_os_error(errno).to_string();
    let text = format!("cannot be spawned for want of resources: {cause}; it will be tried again");
    let data = vec![("errno", errno.into())];
    Said { cause: Some(cause), ..said(Level::Warn, "spawn.shortage", text, data) }
}

/// Why a unit failed, in words; the same words stand in events, views and alerts.
pub fn describe(cause: &Cause) -> String {
    match cause {
        Cause::Exited(exit) => exit.to_string(),
        Cause::NotReady { timeout_ms, last: None } => format!("not ready within {}", pretty(*timeout_ms)),
        Cause::NotReady { timeout_ms, last: Some(last) } => {
            format!("not ready within {} ({last})", pretty(*timeout_ms))
        }
        Cause::HookTimeout { timeout_ms } => format!("a command did not end within {}", pretty(*timeout_ms)),
        Cause::Hook { hook, exit } => format!("its {hook} command {exit}"),
        Cause::Unhealthy { .. } | Cause::Watchdog { .. } | Cause::WatchdogTriggered => cause.to_string(),
    }
}

fn exit_data(exit: &Exit) -> Vec<(&'static str, Value)> {
    match exit {
        Exit::Code(code) => vec![("exit_code", (*code).into())],
        Exit::Signal { signal, core } => {
            vec![("signal", signal.to_string().into()), ("core", (*core).into())]
        }
        Exit::NotExecuted { step, errno } => {
            vec![("step", step.what().into()), ("errno", (*errno).into())]
        }
        Exit::Unknown => Vec::new(),
    }
}

fn pretty(ms: u64) -> Pretty {
    Pretty(std::time::Duration::from_millis(ms))
}

fn counted(count: u32, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn list(units: &[UnitName]) -> String {
    units.iter().map(UnitName::as_str).collect::<Vec<_>>().join(", ")
}

fn names(units: &[UnitName]) -> Value {
    units.iter().map(UnitName::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::exit::RunId;
    use crate::base::signal::Signal;

    fn seen(kind: RecordKind) -> NewEvent {
        let unit = Some(UnitName::parse("web").expect("a name"));
        let stamp = Stamp { at: Monotonic::from_ns(9), ts_us: 1 };
        observe(&Record { unit, run: Some(RunId(7)), kind, state: None }, stamp)
    }

    #[test]
    fn a_failure_says_who_why_and_how_often() {
        let exit = Exit::Signal { signal: Signal::KILL, core: false };
        let event = seen(RecordKind::Failed {
            cause: Cause::Exited(exit),
            failures: 2,
            episode: 5,
            blame: Vec::new(),
            well_until: Some(Monotonic::from_ns(4)),
        });
        assert_eq!(event.event, "unit.failed");
        assert_eq!(event.level, Level::Warn);
        assert_eq!(event.message, "web failed: was killed (SIGKILL); failure 2 in a row");
        assert_eq!(event.cause.as_deref(), Some("was killed (SIGKILL)"));
        assert_eq!(event.data["failures"], 2);
        assert_eq!(event.data["signal"], "SIGKILL");
        assert_eq!((event.run, event.at.as_ns()), (Some(RunId(7)), 9));
    }

    #[test]
    fn times_and_counts_read_as_people_say_them() {
        let event = seen(RecordKind::Recovered { failures: 1, down_ms: 5_250 });
        assert_eq!(event.message, "web recovered after 5s 250ms; 1 failure");
        let event = seen(RecordKind::RestartScheduled { at: Monotonic::ZERO, delay_ms: 10_000, failures: 2 });
        assert_eq!(event.message, "web will be restarted 10s after failure 2");
    }
}
