//! Random histories: cut anywhere, merged in any order, counted from any moment, the sums are the same.
//!
//! Refuses: a store. How it keeps the sums is looked at in `tests/store_books.rs`.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::carry::Carry;
use super::fold::{Closed, Fold, HOUR_US, hour_of};
use super::marks;
use super::spread::{Spread, rounded};
use super::summary;
use super::tally::Both;
use super::window::Replay;
use super::*;

const BEGIN_US: i64 = 1_700_000_000_000_000;

#[derive(Clone, Debug)]
struct Record {
    ts_us: i64,
    at_ns: u64,
    event: &'static str,
    unit: Option<&'static str>,
    data: Map<String, Value>,
}

impl Record {
    fn fact(&self) -> Fact<'_> {
        Fact {
            ts_us: self.ts_us,
            at: Monotonic::from_ns(self.at_ns),
            event: self.event,
            unit: self.unit,
            data: &self.data,
        }
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// One thing that happens, as (event, unit, data).
fn happening() -> impl Strategy<Value = (&'static str, Option<&'static str>, Map<String, Value>)> {
    let unit = prop::sample::select(vec!["db", "web", "job"]);
    let state =
        prop::sample::select(vec!["inactive", "waiting", "activating", "active", "degraded", "backoff"]);
    let drill = prop::sample::select(vec!["", "", "", "d1"]);
    (unit, state, drill, 0_u8..22, 0_u64..5_000_000, 0_u32..6).prop_map(
        |(unit, state, drill, kind, us, key)| {
            let key = format!("{unit}/{key}");
            let (event, unit, mut data) = match kind {
                0..=3 => {
                    ("unit.failed", Some(unit), json!({ "detect_us": us, "blame": [], "state": "backoff" }))
                }
                4 => ("unit.failed", Some(unit), json!({ "blame": ["db"] })),
                5..=7 => ("unit.recovered", Some(unit), json!({ "down_ms": us / 1000, "state": "active" })),
                8 => ("unit.gave_up", Some(unit), json!({ "state": "failed" })),
                9 => ("order.asked", None, json!({ "verb": "restart", "units": [unit] })),
                10 => ("resync.succeeded", Some(unit), json!({})),
                11 => (
                    "resync.failed",
                    Some(unit),
                    json!({ "next_ms": if us % 2 == 0 { json!(5) } else { Value::Null } }),
                ),
                12 => ("alert.raised", Some(unit), json!({ "key": key })),
                13 => ("alert.delivered", Some(unit), json!({ "key": key, "after_ms": us / 1000 })),
                14 => ("alert.parked", Some(unit), json!({ "key": key })),
                15 => ("log.counted", None, json!({ "bytes": us, "dropped_bytes": us / 100 })),
                16 => ("daemon.started", None, json!({ "boot": format!("boot-{}", us % 2) })),
                17 => ("engine.restarted", None, json!({ "boot": format!("boot-{}", us % 2) })),
                18 => ("daemon.stopped", None, json!({})),
                19 => ("unit.removed", Some(unit), json!({})),
                _ => ("unit.state", Some(unit), json!({ "state": state })),
            };
            if !drill.is_empty() {
                data["drill"] = drill.into();
            }
            (event, unit, object(data))
        },
    )
}

/// A history in which the wall clock only runs forward; `steps` adds jumps of it.
fn history(steps: bool) -> impl Strategy<Value = Vec<Record>> {
    let jump = if steps { -4 * HOUR_US..4 * HOUR_US } else { 0..1 };
    prop::collection::vec((happening(), 1_i64..3 * HOUR_US, jump, 0_u8..10), 1..60).prop_map(|steps| {
        let (mut ts_us, mut at_ns) = (BEGIN_US, 1_000_000_000_u64);
        let mut records = vec![Record {
            ts_us,
            at_ns,
            event: "daemon.started",
            unit: None,
            data: object(json!({ "boot": "boot-0" })),
        }];
        for ((event, unit, data), pause, jump, luck) in steps {
            let pause_us = if luck < 7 { pause / 1_000 } else { pause };
            ts_us += pause_us + if luck == 9 { jump } else { 0 };
            at_ns += pause_us.unsigned_abs() * 1_000;
            records.push(Record { ts_us, at_ns, event, unit, data });
        }
        records
    })
}

/// Hours with what was open before each, as the store keeps them; and the fold at the end.
fn fold(records: &[Record]) -> (Vec<(Closed, Carry, usize)>, Fold) {
    let (mut fold, mut hours) = (Fold::default(), Vec::new());
    let (mut before, mut first) = (Carry::default(), 0);
    for (index, record) in records.iter().enumerate() {
        fold.feed(&record.fact(), &mut |closed| {
            let after = closed.after.clone();
            hours.push((closed, std::mem::replace(&mut before, after), first));
            first = index;
        });
    }
    (hours, fold)
}

fn sum<'a>(parts: impl Iterator<Item = &'a Both>) -> Both {
    let mut sum = Both::default();
    parts.for_each(|part| sum.merge(part));
    sum
}

fn numbers_are_sane(value: &Value, path: &str) -> Result<(), TestCaseError> {
    match value {
        Value::Number(number) => {
            let number = number.as_f64().expect("a number");
            prop_assert!(number.is_finite() && number >= 0.0, "{path}: {number}");
            let share = path.ends_with("rate") || path.ends_with("availability");
            prop_assert!(!share || number <= 1.0, "{path}: {number}");
        }
        Value::Array(items) => items.iter().try_for_each(|item| numbers_are_sane(item, path))?,
        Value::Object(map) => {
            map.iter().try_for_each(|(key, value)| numbers_are_sane(value, &format!("{path}.{key}")))?;
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
    Ok(())
}

proptest! {
    #[test]
    fn roll_ups_add_up_to_the_fold_over_all_in_any_order(records in history(true), seed in any::<u64>()) {
        let (hours, end) = fold(&records);
        let mut forward: Vec<Both> = hours.iter().map(|(closed, ..)| closed.tally.clone()).collect();
        forward.push(end.tally.clone());
        let once = sum(forward.iter());
        let mut luck = seed;
        for index in (1..forward.len()).rev() {
            luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            forward.swap(index, usize::try_from(luck >> 33).expect("small") % (index + 1));
        }
        prop_assert_eq!(&once, &sum(forward.iter()));
        // Each failure, alert and order counts once, however the hours were cut.
        let count = |event| records.iter().filter(|record| record.event == event).count() as u64;
        let total = once.all();
        prop_assert_eq!(total.failures, count("unit.failed"));
        prop_assert_eq!(total.recoveries, count("unit.recovered"));
        prop_assert_eq!(total.alerts_raised, count("alert.raised"));
        prop_assert_eq!(total.resync_succeeded, count("resync.succeeded"));
        prop_assert!(total.auto_recoveries <= total.recoveries);
    }

    #[test]
    fn books_that_are_taken_up_again_go_on_as_if_nothing_had_been(records in history(true), cut in 0_usize..60) {
        let (hours, end) = fold(&records);
        let (done, _) = fold(&records[..cut.min(records.len())]);
        // The last hour that was written before the crash; what came after it is fed again.
        let (carry, mut first) = match hours.get(done.len()) {
            Some((_, before, first)) => (before.clone(), *first),
            None => hours.last().map_or((Carry::default(), 0), |_| (end.carry.clone(), records.len())),
        };
        let mut again = Fold::from_carry(carry);
        let mut sums: Vec<Both> = hours.iter().take(done.len()).map(|(closed, ..)| closed.tally.clone()).collect();
        if hours.get(done.len()).is_none() {
            return Ok(());
        }
        // An hour that nothing happened in begins where the next record stands.
        first = first.min(records.len());
        for record in &records[first..] {
            again.feed(&record.fact(), &mut |closed| sums.push(closed.tally));
        }
        sums.push(again.tally.clone());
        let whole: Vec<&Both> = hours.iter().map(|(closed, ..)| &closed.tally).chain([&end.tally]).collect();
        prop_assert_eq!(again.carry, end.carry);
        let (again, whole) = (sum(sums.iter()), sum(whole.into_iter()));
        prop_assert_eq!(again, whole);
    }

    #[test]
    fn a_window_is_the_sum_of_its_hours_and_a_part_of_its_first(records in history(false), at in 0.0_f64..1.0) {
        let (hours, end) = fold(&records);
        let last_us = records.last().map_or(BEGIN_US, |record| record.ts_us);
        let now_us = last_us + HOUR_US / 3;
        let from_us = BEGIN_US + ((now_us - BEGIN_US) as f64 * at) as i64;
        let mut whole = Replay::new(Carry::default(), from_us, i64::MAX);
        records.iter().for_each(|record| whole.feed(&record.fact()));
        let whole = whole.finish(now_us);
        // As the store does it.
        let mut parts = Both::default();
        let hour_us = hour_of(from_us);
        for (closed, before, first) in &hours {
            if closed.hour_us > hour_us {
                parts.merge(&closed.tally);
            } else if closed.hour_us == hour_us {
                let mut replay = Replay::new(before.clone(), from_us, hour_us + HOUR_US);
                records[*first..].iter().for_each(|record| replay.feed(&record.fact()));
                parts.merge(&replay.finish(now_us));
            }
        }
        let current = end.hour_us.expect("a record");
        if current > hour_us {
            let mut fold = end.clone();
            fold.pass(now_us, &mut |closed: Closed| parts.merge(&closed.tally));
            parts.merge(&fold.tally);
        } else {
            let before = hours.last().map(|(closed, ..)| closed.after.clone()).unwrap_or_default();
            let first = records.iter().position(|record| hour_of(record.ts_us) >= current).expect("a record");
            let mut replay = Replay::new(before, from_us, i64::MAX);
            records[first..].iter().for_each(|record| replay.feed(&record.fact()));
            parts.merge(&replay.finish(now_us));
        }
        prop_assert_eq!(parts, whole);
    }

    #[test]
    fn no_figure_is_below_zero_or_no_number(records in history(true), from in 0_usize..60) {
        let from_us = records[from.min(records.len() - 1)].ts_us;
        let mut replay = Replay::new(Carry::default(), from_us, i64::MAX);
        records.iter().for_each(|record| replay.feed(&record.fact()));
        let (_, end) = fold(&records);
        let now_us = end.carry.ts_us + 1;
        let split = summary::split(&replay.finish(now_us), &end.carry);
        let value = serde_json::to_value(&split).expect("JSON");
        numbers_are_sane(&value, "")?;
        for verdict in marks::verdicts(&split.all) {
            prop_assert!(["pass", "fail", "no data"].contains(&verdict.verdict.as_str()));
        }
        let back: summary::Split = serde_json::from_value(value).expect("reads");
        prop_assert_eq!(back, split);
    }

    #[test]
    fn a_quantile_is_that_of_the_single_samples(samples in prop::collection::vec(0_u64..100_000_000_000, 1..200), q in 1_u64..1000) {
        let mut spread = Spread::default();
        samples.iter().for_each(|us| spread.add(*us));
        let mut sorted = samples;
        sorted.sort_unstable();
        let rank = (sorted.len() as u64 * q).div_ceil(1_000).max(1);
        let exact = sorted[usize::try_from(rank).expect("small") - 1];
        let max = *sorted.last().expect("one");
        prop_assert_eq!(spread.quantile(q), Some(rounded(exact).min(max)));
        prop_assert!(rounded(exact).abs_diff(exact) * 200 <= exact, "{} for {exact}", rounded(exact));
    }

    #[test]
    fn what_is_written_is_read_again(records in history(true)) {
        let (hours, _) = fold(&records);
        for (closed, before, _) in hours {
            let text = serde_json::to_string(&(&closed.tally, &before)).expect("JSON");
            let (tally, carry): (Both, Carry) = serde_json::from_str(&text).expect("reads");
            prop_assert_eq!((tally, carry), (closed.tally, before));
        }
    }
}

fn record(after_s: i64, event: &'static str, unit: Option<&'static str>, data: Value) -> Record {
    let at_ns = u64::try_from(after_s).expect("forward") * 1_000_000_000;
    Record { ts_us: BEGIN_US + after_s * 1_000_000, at_ns, event, unit, data: object(data) }
}

fn all_of(records: &[Record], now_s: i64) -> summary::Split {
    let mut replay = Replay::new(Carry::default(), BEGIN_US, i64::MAX);
    records.iter().for_each(|record| replay.feed(&record.fact()));
    let (_, end) = fold(records);
    summary::split(&replay.finish(BEGIN_US + now_s * 1_000_000), &end.carry)
}

/// A crash that heals by itself, one in which an operator has a hand, one of a drill that still lasts.
#[test]
fn a_story_in_figures() {
    let story = [
        record(0, "daemon.started", None, json!({ "boot": "b" })),
        record(0, "unit.active", Some("web"), json!({ "state": "active" })),
        record(
            100,
            "unit.failed",
            Some("web"),
            json!({ "detect_us": 2_000_000, "blame": [], "state": "backoff" }),
        ),
        record(105, "unit.recovered", Some("web"), json!({ "down_ms": 5_000, "state": "active" })),
        record(
            200,
            "unit.failed",
            Some("web"),
            json!({ "detect_us": 1_000, "blame": [], "state": "backoff" }),
        ),
        record(201, "alert.raised", Some("web"), json!({ "key": "web/1" })),
        record(203, "alert.delivered", Some("web"), json!({ "key": "web/1", "after_ms": 2_000 })),
        record(203, "alert.delivered", Some("web"), json!({ "key": "web/1", "after_ms": 2_500 })),
        record(210, "order.asked", None, json!({ "verb": "restart", "units": ["web", "idle"] })),
        record(215, "unit.recovered", Some("web"), json!({ "down_ms": 15_000, "state": "active" })),
        record(300, "order.asked", None, json!({ "verb": "signal", "units": ["web"], "drill": "d7" })),
        record(
            300,
            "unit.failed",
            Some("web"),
            json!({ "detect_us": 0, "blame": [], "drill": "d7", "state": "backoff" }),
        ),
    ];
    let split = all_of(&story, 310);
    let (all, real, drill) = (&split.all, &split.real, &split.drill);
    assert_eq!((all.failures, real.failures, drill.failures), (3, 2, 1));
    assert_eq!((all.recoveries, all.auto_recoveries, all.helped_outages, all.open_outages), (2, 1, 1, 1));
    assert_eq!((real.auto_recovery_rate, drill.auto_recovery_rate), (Some(0.5), None));
    assert_eq!((real.mttr_s.mean, real.mttr_s.p50, real.mttr_s.max), (Some(10.0), Some(5.0), Some(15.0)));
    assert_eq!((real.mttd_s.p95, real.mttd_s.count), (Some(2.0), 2));
    assert_eq!((all.manual_interventions, drill.manual_interventions), (1, 0));
    let alerts = &all.alerts;
    assert_eq!(
        (alerts.raised, alerts.delivered, alerts.deliveries, alerts.pending, alerts.missed),
        (1, 1, 2, 0, 0)
    );
    assert_eq!(alerts.latency_s.max, Some(2.0));
    let (web, of_drill) = (&real.units["web"], &drill.units["web"]);
    assert_eq!((web.state_s["active"], web.state_s["backoff"]), (280.0, 20.0));
    assert_eq!(of_drill.state_s["backoff"], 10.0);
    assert_eq!(web.availability, Some(280.0 / 300.0));
}

/// The whole was cut down at some time after 50 s; the next daemon began at 1000 s, after a reboot.
#[test]
fn time_without_a_daemon_is_nobodys() {
    let mut story = vec![
        record(0, "daemon.started", None, json!({ "boot": "b" })),
        record(0, "unit.active", Some("web"), json!({ "state": "active" })),
        record(50, "log.counted", None, json!({ "bytes": 1 })),
    ];
    let mut later = record(1_000, "daemon.started", None, json!({ "boot": "c" }));
    later.at_ns = 7;
    story.push(later);
    let mut up = record(1_010, "unit.active", Some("web"), json!({ "state": "active" }));
    up.at_ns = 10_000_000_007;
    story.push(up);
    let split = all_of(&story, 1_020);
    let web = &split.all.units["web"];
    assert_eq!((web.state_s["active"], web.state_s["inactive"]), (60.0, 10.0));
}

/// The wall clock is set back by two hours between two records ten seconds apart.
#[test]
fn a_clock_that_is_set_makes_nothing_longer() {
    let mut story = vec![
        record(0, "daemon.started", None, json!({ "boot": "b" })),
        record(0, "unit.active", Some("web"), json!({ "state": "active" })),
        record(10, "unit.state", Some("web"), json!({ "state": "degraded" })),
        record(20, "unit.state", Some("web"), json!({ "state": "active" })),
    ];
    for late in &mut story[2..] {
        late.ts_us += 7 * HOUR_US;
    }
    let split = all_of(&story, 20 + 7 * 3_600);
    let web = &split.all.units["web"];
    assert_eq!((web.state_s["active"], web.state_s["degraded"]), (10.0, 10.0));
}
