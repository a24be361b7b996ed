//! Samples → verdict: every KPI held against its mark, and the latencies behind them. Pure, so that anybody
//! can recount it from the file of samples (`tests/drill/recount.py` does).
//!
//! Refuses: looking anything up.

mod beside;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::api::drills::Latency;
use crate::api::types::{AlertLine, EventLine};
use crate::drill::sample::{Sample, States};
use crate::ledger::marks::{self, Verdict as Row};
use crate::ledger::summary::{Alerts, Figures, LogBytes, Resyncs, Times};

/// What became of one fault.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Story {
    pub iteration: u32,
    pub kind: String,
    pub unit: Option<String>,
    pub at_ns: u64,
    /// From the fault to the record of the failure.
    pub detect_s: Option<f64>,
    /// From the failure to the next start: the configured delay is in it.
    pub restart_s: Option<f64>,
    /// How much later than its delay the next start was.
    pub late_s: Option<f64>,
    /// From the failure to ready.
    pub recover_s: Option<f64>,
    /// recovered | not recovered | given up | stood
    pub outcome: String,
}

/// The whole of it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Verdict {
    pub drill: String,
    pub scenario: String,
    pub begun: String,
    pub ended: String,
    /// passed | failed | aborted
    pub status: String,
    pub kpis: Vec<Row>,
    pub latencies: Vec<Latency>,
    pub stories: Vec<Story>,
    /// Sentences about the load beside the faults, and about what is not judged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Orders that are an intervention.
const ACTS: [&str; 7] = ["start", "stop", "restart", "reload", "clear", "resync", "signal"];

/// The begin of a drill.
#[derive(Default)]
struct Ground<'s> {
    drill: &'s str,
    scenario: &'s str,
    begun: &'s str,
    fatal_stops: u64,
    units: Option<&'s States>,
}

/// Judges a drill.
pub fn of(samples: &[Sample]) -> Verdict {
    let mut ground = Ground::default();
    for sample in samples {
        if let Sample::Begin { ts, drill, scenario, fatal_stops, units, .. } = sample {
            ground = Ground { drill, scenario, begun: ts, fatal_stops: *fatal_stops, units: Some(units) };
        }
    }
    let events: Vec<&EventLine> = samples.iter().filter_map(event_of).collect();
    let stories = stories(samples, &events);
    let hurt: BTreeSet<&str> = stories.iter().filter_map(|story| story.unit.as_deref()).collect();
    let mut kpis = marks::verdicts(&figures(samples, &ground, &events, &stories, &hurt));
    kpis.extend(own_rows(samples, &ground, &stories));
    let (load_rows, notes) = beside::judged(samples);
    kpis.extend(load_rows);
    let ended = samples.iter().find_map(|sample| match sample {
        Sample::End { ts, .. } => Some(ts.clone()),
        _ => None,
    });
    let status = match &ended {
        None => "aborted",
        Some(_) if marks::all_pass(&kpis) => "passed",
        Some(_) => "failed",
    };
    Verdict {
        drill: ground.drill.to_string(),
        scenario: ground.scenario.to_string(),
        begun: ground.begun.to_string(),
        ended: ended.unwrap_or_default(),
        status: status.to_string(),
        latencies: latencies(samples, &stories, &events),
        kpis,
        stories,
        notes,
    }
}

fn event_of(sample: &Sample) -> Option<&EventLine> {
    match sample {
        Sample::Event { event } => Some(event),
        Sample::Begin { .. }
        | Sample::Fault { .. }
        | Sample::State { .. }
        | Sample::Requests { .. }
        | Sample::Load { .. }
        | Sample::Found { .. }
        | Sample::End { .. } => None,
    }
}

/// Each fault, with what came of it until the next one to the same unit.
fn stories(samples: &[Sample], events: &[&EventLine]) -> Vec<Story> {
    let faults: Vec<(u32, &str, Option<&str>, u64)> = samples
        .iter()
        .filter_map(|sample| match sample {
            Sample::Fault { iteration, kind, unit, at_ns, .. } => {
                Some((*iteration, kind.as_str(), unit.as_deref(), *at_ns))
            }
            _ => None,
        })
        .collect();
    let told = faults.iter().enumerate().map(|(index, (iteration, kind, unit, at_ns))| {
        let later = faults.get(index + 1..).unwrap_or_default().iter();
        let until = later.filter(|(_, _, of, _)| of == unit).map(|(.., at)| *at).next().unwrap_or(u64::MAX);
        let mine = |name: &str| {
            events.iter().find(|event| {
                event.event == name
                    && (event.unit.as_deref() == *unit || unit.is_none() || *kind == "config-corrupt")
                    && event.at_ns >= *at_ns
                    && event.at_ns < until
            })
        };
        let (iteration, kind, at_ns) = (*iteration, (*kind).to_string(), *at_ns);
        let unit = unit.map(str::to_string);
        let blank = Story {
            iteration,
            kind,
            unit,
            at_ns,
            detect_s: None,
            restart_s: None,
            late_s: None,
            recover_s: None,
            outcome: "stood".to_string(),
        };
        match blank.kind.as_str() {
            "kill" | "hang" | "outage" => of_failure(blank, mine),
            "engine-kill" => of_engine(blank, mine),
            "config-corrupt" => of_config(blank, mine),
            _ => blank,
        }
    });
    told.collect()
}

fn of_failure<'e>(story: Story, mine: impl Fn(&str) -> Option<&'e &'e EventLine>) -> Story {
    let failed = mine("unit.failed");
    let recovered = mine("unit.recovered");
    let restarted = mine("unit.restarted");
    let since_failure = |event: Option<&&EventLine>| Some(seconds_between(failed?.at_ns, event?.at_ns));
    let outcome = match (recovered.is_some(), mine("unit.gave_up").is_some()) {
        (true, _) => "recovered",
        (false, true) => "given up",
        (false, false) => "not recovered",
    };
    Story {
        detect_s: failed.map(|failed| seconds_between(story.at_ns, failed.at_ns)),
        restart_s: since_failure(restarted),
        // What is held down is late on purpose.
        late_s: restarted
            .filter(|_| story.kind != "outage")
            .and_then(|event| number(event, "late_us"))
            .map(|us| us / 1e6),
        recover_s: since_failure(recovered),
        outcome: outcome.to_string(),
        ..story
    }
}

/// A killed engine is well again when another has taken over.
fn of_engine<'e>(story: Story, mine: impl Fn(&str) -> Option<&'e &'e EventLine>) -> Story {
    let back = mine("engine.restarted").map(|event| seconds_between(story.at_ns, event.at_ns));
    let outcome = if back.is_some() { "recovered" } else { "not recovered" };
    Story { recover_s: back, outcome: outcome.to_string(), ..story }
}

/// A broken file is told of, and is well when it is mended; its unit is not touched meanwhile.
fn of_config<'e>(story: Story, mine: impl Fn(&str) -> Option<&'e &'e EventLine>) -> Story {
    // These records are about a file; the unit is that of the drill.
    let told = mine("config.error");
    let mended = mine("config.mended");
    let outcome = if told.is_some() && mended.is_some() { "recovered" } else { "not recovered" };
    Story {
        detect_s: told.map(|event| seconds_between(story.at_ns, event.at_ns)),
        outcome: outcome.to_string(),
        ..story
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds of a drill")]
fn seconds_between(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}

fn number(event: &EventLine, key: &str) -> Option<f64> {
    event.data.get(key).and_then(Value::as_f64)
}

/// What the mission's marks are held against.
fn figures(
    samples: &[Sample],
    ground: &Ground<'_>,
    events: &[&EventLine],
    stories: &[Story],
    hurt: &BTreeSet<&str>,
) -> Figures {
    let expected: Vec<&Story> = stories.iter().filter(|story| story.outcome != "stood").collect();
    let recovered = expected.iter().filter(|story| story.outcome == "recovered").count() as u64;
    let recoveries: Vec<f64> = stories.iter().filter_map(|story| story.recover_s).collect();
    let tried = |event: &&&EventLine| match event.event.as_str() {
        "resync.succeeded" => true,
        "resync.failed" => event.data.get("next_ms").is_none_or(Value::is_null),
        _ => false,
    };
    let attempted = events.iter().filter(tried).count() as u64;
    let succeeded = events.iter().filter(|event| event.event == "resync.succeeded").count() as u64;
    let mut figures = Figures {
        auto_recovery_rate: share(recovered, expected.len() as u64),
        mttr_s: Times { mean: mean(&recoveries), ..Times::default() },
        resync: Resyncs { attempted, succeeded, rate: share(succeeded, attempted) },
        manual_interventions: events.iter().filter(|event| intervenes(event, hurt)).count() as u64,
        ..Figures::default()
    };
    for sample in samples {
        if let Sample::End { fatal_stops, log_bytes, log_dropped_bytes, alerts, .. } = sample {
            figures.fatal_stops = fatal_stops.saturating_sub(ground.fatal_stops);
            let whole = log_bytes.saturating_add(*log_dropped_bytes);
            figures.log = LogBytes { loss_rate: share(*log_dropped_bytes, whole), ..LogBytes::default() };
            let missed = alerts.iter().filter(|alert| is_missed(alert)).count() as u64;
            figures.alerts = Alerts { raised: alerts.len() as u64, missed, ..Alerts::default() };
        }
    }
    figures
}

/// No channel has it, though people were to be told.
fn is_missed(alert: &AlertLine) -> bool {
    !alert.channels.iter().any(|channel| channel.state == "delivered" || channel.state == "muted")
}

fn intervenes(event: &EventLine, hurt: &BTreeSet<&str>) -> bool {
    let verb = event.data.get("verb").and_then(Value::as_str).unwrap_or_default();
    let units = event.data.get("units").and_then(Value::as_array);
    event.event == "order.asked"
        && event.data.get("drill").is_none()
        && ACTS.contains(&verb)
        && units.into_iter().flatten().filter_map(Value::as_str).any(|unit| hurt.contains(unit))
}

/// What only a drill can tell: whether anybody else was hurt, and whether all is as before.
fn own_rows(samples: &[Sample], ground: &Ground<'_>, stories: &[Story]) -> Vec<Row> {
    let Some(before) = ground.units else { return Vec::new() };
    let hurt: BTreeSet<&str> = stories.iter().filter_map(|story| story.unit.as_deref()).collect();
    let lost = not_recovered(stories);
    let mut rows = Vec::new();
    for sample in samples {
        if let Sample::End { units, .. } = sample {
            let others = before.iter().filter(|(name, _)| !hurt.contains(name.as_str()));
            let restarts = others.map(|(name, was)| {
                let now = units.get(name).map_or(was.restarts, |now| now.restarts);
                let new_run = units.get(name).is_some_and(|now| now.run != was.run);
                now.saturating_sub(was.restarts).max(u64::from(new_run))
            });
            rows.push(zero("collateral-restarts", restarts.sum()));
            let changed = before.iter().filter(|(name, was)| {
                !lost.contains(name.as_str()) && units.get(*name).is_none_or(|now| now.state != was.state)
            });
            rows.push(zero("units-not-as-before", changed.count() as u64));
        }
    }
    rows.extend(alerts_raised(samples));
    let requests: Vec<(u64, u64)> = samples
        .iter()
        .filter_map(|sample| match sample {
            Sample::Requests { server_errors, silent, .. } => Some((*server_errors, *silent)),
            _ => None,
        })
        .collect();
    if !requests.is_empty() {
        rows.push(zero("server-errors", requests.iter().map(|(errors, _)| errors).sum()));
        rows.push(zero("unanswered-requests", requests.iter().map(|(_, silent)| silent).sum()));
    }
    rows
}

/// Where the channels were cut, something has to have been raised since, or nothing was tried.
#[expect(clippy::cast_precision_loss, reason = "compared with one")]
fn alerts_raised(samples: &[Sample]) -> Option<Row> {
    let cut_ns = samples.iter().find_map(|sample| match sample {
        Sample::Fault { kind, at_ns, .. } if kind == "channels" => Some(*at_ns),
        _ => None,
    })?;
    let events = samples.iter().filter_map(event_of);
    let raised = events.filter(|event| event.event == "alert.raised" && event.at_ns >= cut_ns).count();
    Some(Row {
        kpi: "alerts-raised".to_string(),
        mark: "≥ 1".to_string(),
        value: Some(raised as f64),
        verdict: if raised > 0 { "pass" } else { "fail" }.to_string(),
    })
}

/// Units whose last failure was not recovered from: `auto-recovery-rate` has counted that already.
fn not_recovered(stories: &[Story]) -> BTreeSet<&str> {
    let mut last = BTreeMap::new();
    for story in stories.iter().filter(|story| story.outcome != "stood") {
        if let Some(unit) = story.unit.as_deref() {
            last.insert(unit, story.outcome.as_str());
        }
    }
    last.into_iter().filter(|(_, outcome)| *outcome != "recovered").map(|(unit, _)| unit).collect()
}

#[expect(clippy::cast_precision_loss, reason = "compared with zero")]
fn zero(kpi: &str, count: u64) -> Row {
    let verdict = if count == 0 { "pass" } else { "fail" };
    Row {
        kpi: kpi.to_string(),
        mark: "0".to_string(),
        value: Some(count as f64),
        verdict: verdict.to_string(),
    }
}

fn latencies(samples: &[Sample], stories: &[Story], events: &[&EventLine]) -> Vec<Latency> {
    let all = |of: fn(&Story) -> Option<f64>| stories.iter().filter_map(of).collect::<Vec<f64>>();
    let took = |name: &str, key: &str| -> Vec<f64> {
        let named = events.iter().filter(|event| event.event == name);
        named.filter_map(|event| number(event, key)).map(|ms| ms / 1e3).collect()
    };
    [
        ("fault to noticed", all(|story| story.detect_s)),
        ("failure to restart (with its delay)", all(|story| story.restart_s)),
        ("restart after its delay", all(|story| story.late_s)),
        ("failure to ready", all(|story| story.recover_s)),
        ("resync", took("resync.succeeded", "took_ms")),
        ("alert to its first channel", took("alert.delivered", "after_ms")),
        ("request beside the faults", beside::answers(samples)),
    ]
    .into_iter()
    .filter_map(|(what, lengths)| latency(what, lengths))
    .collect()
}

fn latency(what: &str, mut lengths: Vec<f64>) -> Option<Latency> {
    lengths.sort_by(f64::total_cmp);
    let mean_s = mean(&lengths)?;
    let p50_s = lengths.get((lengths.len() - 1) / 2).copied()?;
    let max_s = lengths.last().copied()?;
    Some(Latency { what: what.to_string(), count: lengths.len(), mean_s, p50_s, max_s })
}

#[expect(clippy::cast_precision_loss, reason = "as many as a drill has faults")]
fn mean(lengths: &[f64]) -> Option<f64> {
    (!lengths.is_empty()).then(|| lengths.iter().sum::<f64>() / lengths.len() as f64)
}

#[expect(clippy::cast_precision_loss, reason = "a share is shown to a few digits")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
