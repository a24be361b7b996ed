//! Two verdicts beside each other: every KPI and latency with both values and how they differ.
//!
//! Refuses: saying which is better. What of it is too much stands in the marks.

use serde::Serialize;

use crate::drill::plain;
use crate::drill::report::{columns, measured, seconds};
use crate::drill::verdict::{Latency, Verdict};
use crate::ledger::marks::Verdict as Row;

/// What is compared.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Comparison {
    pub drill: String,
    pub against: String,
    pub kpis: Vec<KpiPair>,
    pub latencies: Vec<LatencyPair>,
}

/// One KPI. A value is none where nothing was measured, or where only the other drill has the KPI.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct KpiPair {
    pub kpi: String,
    pub mark: String,
    pub value: Option<f64>,
    pub against: Option<f64>,
    /// `value` less `against`.
    pub difference: Option<f64>,
    /// pass | fail | no data; none: that drill does not have it.
    pub verdict: Option<String>,
    pub against_verdict: Option<String>,
}

/// The median and the longest of one latency, in seconds.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct LatencyPair {
    pub what: String,
    pub p50_s: Option<f64>,
    pub against_p50_s: Option<f64>,
    pub difference_p50_s: Option<f64>,
    pub max_s: Option<f64>,
    pub against_max_s: Option<f64>,
    pub difference_max_s: Option<f64>,
}

/// Compares two drills. What only one of them has comes last.
pub fn of(drill: &Verdict, against: &Verdict) -> Comparison {
    let other = |row: &Row| against.kpis.iter().find(|other| other.kpi == row.kpi);
    let mut kpis: Vec<KpiPair> = drill.kpis.iter().map(|row| kpi(Some(row), other(row))).collect();
    let lacks = |row: &&Row| !drill.kpis.iter().any(|own| own.kpi == row.kpi);
    kpis.extend(against.kpis.iter().filter(lacks).map(|row| kpi(None, Some(row))));
    let other = |one: &Latency| against.latencies.iter().find(|other| other.what == one.what);
    let mut latencies: Vec<LatencyPair> =
        drill.latencies.iter().map(|one| latency(Some(one), other(one))).collect();
    let lacks = |one: &&Latency| !drill.latencies.iter().any(|own| own.what == one.what);
    latencies.extend(against.latencies.iter().filter(lacks).map(|one| latency(None, Some(one))));
    Comparison { drill: drill.drill.clone(), against: against.drill.clone(), kpis, latencies }
}

fn less(value: Option<f64>, against: Option<f64>) -> Option<f64> {
    Some(value? - against?)
}

fn kpi(row: Option<&Row>, against: Option<&Row>) -> KpiPair {
    let either = row.or(against);
    let value_of = |row: Option<&Row>| row.and_then(|row| row.value);
    KpiPair {
        kpi: either.map(|row| row.kpi.clone()).unwrap_or_default(),
        mark: either.map(|row| row.mark.clone()).unwrap_or_default(),
        value: value_of(row),
        against: value_of(against),
        difference: less(value_of(row), value_of(against)),
        verdict: row.map(|row| row.verdict.clone()),
        against_verdict: against.map(|row| row.verdict.clone()),
    }
}

fn latency(one: Option<&Latency>, against: Option<&Latency>) -> LatencyPair {
    let p50 = |of: Option<&Latency>| of.map(|of| of.p50_s);
    let max = |of: Option<&Latency>| of.map(|of| of.max_s);
    LatencyPair {
        what: one.or(against).map(|one| one.what.clone()).unwrap_or_default(),
        p50_s: p50(one),
        against_p50_s: p50(against),
        difference_p50_s: less(p50(one), p50(against)),
        max_s: max(one),
        against_max_s: max(against),
        difference_max_s: less(max(one), max(against)),
    }
}

/// The tables of the terminal.
pub fn text(comparison: &Comparison) -> String {
    let head = ["KPI", "MARK", "MEASURED", "AGAINST", "DIFFERENCE"].map(str::to_string);
    let rows = comparison.kpis.iter().map(|pair| {
        let said = |value: Option<f64>, verdict: &Option<String>| match verdict {
            None => "-".to_string(),
            Some(verdict) => format!("{} {verdict}", in_unit(&pair.mark, value)),
        };
        [
            pair.kpi.clone(),
            pair.mark.clone(),
            said(pair.value, &pair.verdict),
            said(pair.against, &pair.against_verdict),
            pair.difference.map_or("-".to_string(), |value| signed(value, |v| in_unit(&pair.mark, Some(v)))),
        ]
    });
    let mut text = format!("{} against {}\n\n", plain(&comparison.drill), plain(&comparison.against));
    text.push_str(&columns(std::iter::once(head).chain(rows).collect()));
    let head =
        ["LATENCY", "P50", "AGAINST", "DIFFERENCE", "MAX", "AGAINST", "DIFFERENCE"].map(str::to_string);
    let length = |value: Option<f64>| value.map_or("-".to_string(), seconds);
    let change = |value: Option<f64>| value.map_or("-".to_string(), |value| signed(value, seconds));
    let rows = comparison.latencies.iter().map(|pair| {
        [
            pair.what.clone(),
            length(pair.p50_s),
            length(pair.against_p50_s),
            change(pair.difference_p50_s),
            length(pair.max_s),
            length(pair.against_max_s),
            change(pair.difference_max_s),
        ]
    });
    text.push('\n');
    text.push_str(&columns(std::iter::once(head).chain(rows).collect()));
    text
}

fn in_unit(mark: &str, value: Option<f64>) -> String {
    measured(&Row { kpi: String::new(), mark: mark.to_string(), value, verdict: String::new() })
}

/// With its sign; nothing is `=`.
fn signed(value: f64, shown: impl Fn(f64) -> String) -> String {
    match value {
        value if value > 0.0 => format!("+{}", shown(value)),
        value if value < 0.0 => format!("-{}", shown(-value)),
        _ => "=".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(drill: &str, kpis: &[(&str, &str, Option<f64>)], p50_s: f64) -> Verdict {
        let row = |(kpi, mark, value): &(&str, &str, Option<f64>)| Row {
            kpi: (*kpi).to_string(),
            mark: (*mark).to_string(),
            value: *value,
            verdict: "pass".to_string(),
        };
        let latency = Latency { what: "resync".to_string(), count: 1, mean_s: p50_s, p50_s, max_s: p50_s };
        Verdict {
            drill: drill.to_string(),
            scenario: String::new(),
            begun: String::new(),
            ended: String::new(),
            status: "passed".to_string(),
            kpis: kpis.iter().map(row).collect(),
            latencies: vec![latency],
            stories: Vec::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn each_value_stands_beside_the_other_and_what_one_lacks_is_a_dash() {
        let new = verdict("b", &[("mttr", "≤ 30 s", Some(4.5)), ("rate", "≥ 90 %", None)], 0.25);
        let old = verdict("a", &[("mttr", "≤ 30 s", Some(6.0)), ("missed", "0", Some(0.0))], 0.125);
        let shown = text(&of(&new, &old));
        let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        for words in [
            &["b", "against", "a"][..],
            &["mttr", "≤", "30", "s", "4.50", "s", "pass", "6.00", "s", "pass", "-1.50", "s"],
            &["rate", "≥", "90", "%", "-", "pass", "-", "-"],
            &["missed", "0", "-", "0", "pass", "-"],
            &[
                "resync", "250.0", "ms", "125.0", "ms", "+125.0", "ms", "250.0", "ms", "125.0", "ms",
                "+125.0", "ms",
            ],
        ] {
            assert!(lines.iter().any(|line| line == words), "{words:?}\n{shown}");
        }
    }
}
