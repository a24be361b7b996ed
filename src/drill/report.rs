//! A verdict as text: for the terminal, as Markdown, as JUnit for CI.
//!
//! Refuses: another judgement than the verdict's.

use crate::drill::plain;
use crate::drill::verdict::{Story, Verdict};
use crate::ledger::marks::Verdict as Row;

/// The table of the terminal.
pub fn text(verdict: &Verdict) -> String {
    let head = ["KPI", "MARK", "MEASURED", "VERDICT"].map(str::to_string);
    let rows = verdict
        .kpis
        .iter()
        .map(|row| [row.kpi.clone(), row.mark.clone(), measured(row), row.verdict.to_uppercase()]);
    let mut text = columns(std::iter::once(head).chain(rows).collect());
    if !verdict.latencies.is_empty() {
        text.push('\n');
        let head = ["LATENCY", "COUNT", "P50", "MAX"].map(str::to_string);
        let rows = verdict.latencies.iter().map(|latency| {
            [latency.what.clone(), latency.count.to_string(), seconds(latency.p50_s), seconds(latency.max_s)]
        });
        text.push_str(&columns(std::iter::once(head).chain(rows).collect()));
    }
    if !verdict.notes.is_empty() {
        text.push_str(&format!("\n{}\n", verdict.notes.join("\n")));
    }
    text.push_str(&format!("\ndrill {} {}\n", verdict.drill, verdict.status));
    text
}

/// Rows under each other, as wide as what is in them.
pub(super) fn columns<const N: usize>(rows: Vec<[String; N]>) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A value in the unit of its mark.
pub fn measured(row: &Row) -> String {
    match (row.value, row.mark.chars().last()) {
        (None, _) => "-".to_string(),
        (Some(value), Some('%')) => format!("{} %", (value * 10_000.0).floor() / 100.0),
        (Some(value), Some('s')) => seconds(value),
        (Some(value), _) => format!("{value:.0}"),
    }
}

/// A length, with as many digits as mean something.
pub fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{:.1} ms", value * 1e3) } else { format!("{value:.2} s") }
}

/// `report.md`.
pub fn markdown(verdict: &Verdict) -> String {
    let mut text = format!(
        "# Drill {}\n\nScenario `{}`, from {} to {}: **{}**.\n\n\
         | KPI | pass mark | measured | verdict |\n| --- | --- | --- | --- |\n",
        verdict.drill, verdict.scenario, verdict.begun, verdict.ended, verdict.status
    );
    for row in &verdict.kpis {
        text.push_str(&format!("| {} | {} | {} | {} |\n", row.kpi, row.mark, measured(row), row.verdict));
    }
    if !verdict.latencies.is_empty() {
        text.push_str("\n| latency | count | mean | p50 | max |\n| --- | --- | --- | --- | --- |\n");
        for latency in &verdict.latencies {
            text.push_str(&format!(
                "| {} | {} | {} | {} | {} |\n",
                latency.what,
                latency.count,
                seconds(latency.mean_s),
                seconds(latency.p50_s),
                seconds(latency.max_s)
            ));
        }
    }
    if !verdict.notes.is_empty() {
        text.push_str(&format!("\n{}\n", verdict.notes.join("\n\n")));
    }
    text.push_str("\n| round | fault | unit | noticed | ready again | outcome |\n| --- | --- | --- | --- | --- | --- |\n");
    for story in &verdict.stories {
        let Story { iteration, kind, unit, detect_s, recover_s, outcome, .. } = story;
        let length = |value: &Option<f64>| value.map_or("-".to_string(), seconds);
        let unit = unit.as_deref().unwrap_or("-");
        text.push_str(&format!(
            "| {iteration} | {kind} | {unit} | {} | {} | {outcome} |\n",
            length(detect_s),
            length(recover_s)
        ));
    }
    text.push_str(
        "\nWhat each KPI means stands in `docs/KPI.md`. `no data` means that there was nothing to measure. \
         Everything here is made of the samples beside this file.\n",
    );
    plain_lines(&text)
}

/// `junit.xml`: a case a KPI.
pub fn junit(verdict: &Verdict) -> String {
    let failed = verdict.kpis.iter().filter(|row| row.verdict == "fail").count();
    let skipped = verdict.kpis.iter().filter(|row| row.verdict == "no data").count();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" \
         skipped=\"{skipped}\">\n",
        escaped(&verdict.drill),
        verdict.kpis.len()
    );
    for row in &verdict.kpis {
        let body = match row.verdict.as_str() {
            "fail" => {
                format!("<failure message=\"{} is not {}\"/>", escaped(&measured(row)), escaped(&row.mark))
            }
            "no data" => "<skipped message=\"nothing was measured\"/>".to_string(),
            _ => String::new(),
        };
        let (class, name) = (escaped(&verdict.scenario), escaped(&row.kpi));
        text.push_str(&format!(
            "  <testcase classname=\"upright.drill.{class}\" name=\"{name}\">{body}</testcase>\n"
        ));
    }
    text.push_str("</testsuite>\n");
    text
}

/// Text inside of XML and HTML.
pub fn escaped(text: &str) -> String {
    plain(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn plain_lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", plain(line))).collect()
}
