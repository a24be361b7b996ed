//! `upright kpi`: how well the system recovers, held against the pass marks.
//!
//! Refuses: colour as the only mark; the verdict is a word.

use anstyle::AnsiColor;
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use crate::api::summary::Summary;
use crate::cli::args::KpiArgs;
use crate::cli::context::{Context, EXIT_FAILED, Fail, Form};
use crate::cli::render::{Look, color, escape_line};
use crate::cli::when;
use crate::ledger::marks;
use crate::ledger::summary::Figures;
use crate::ledger::words::{percent, seconds, value};

/// # Errors
/// The daemon cannot be asked; `--since` is no time.
pub fn run(context: &mut Context, args: &KpiArgs) -> Result<u8, Fail> {
    let since = when::asked(context, "--since", &args.since)?;
    let path = format!("/api/metrics/v0_1/summary?since={since}");
    let summary: Summary = context.client.get(&path).map_err(|error| context.fail(error))?;
    match context.form {
        Form::Json => context.print_json(&summary)?,
        Form::Text => {
            let text = render(&summary, &context.look);
            context.print(&text)?;
        }
    }
    Ok(if marks::all_pass(&summary.kpis) { 0 } else { EXIT_FAILED })
}

/// The table, what stands behind it, and the units.
pub fn render(summary: &Summary, look: &Look) -> String {
    let (real, drill) = (marks::verdicts(&summary.split.real), marks::verdicts(&summary.split.drill));
    let mut rows = vec![["KPI", "MARK", "VALUE", "REAL", "DRILL", "VERDICT"].map(str::to_string)];
    for ((all, real), drill) in summary.kpis.iter().zip(&real).zip(&drill) {
        let word = all.verdict.to_uppercase();
        let word = if all.verdict == "no data" { "no data".to_string() } else { word };
        rows.push([
            escape_line(&all.kpi),
            escape_line(&all.mark),
            value(all),
            value(real),
            value(drill),
            escape_line(&word),
        ]);
    }
    let mut text = format!(
        "{} to {}\n\n",
        when::local(&summary.from, &look.zone),
        when::local(&summary.until, &look.zone)
    );
    text.push_str(&table(&rows, look));
    text.push('\n');
    text.push_str(&behind(&summary.split.all));
    if !summary.split.all.units.is_empty() {
        text.push('\n');
        text.push_str(&table(&units(&summary.split.all), look));
    }
    text
}

fn or_dash(value: Option<f64>, show: fn(f64) -> String) -> String {
    value.map_or_else(|| "-".to_string(), show)
}

fn behind(all: &Figures) -> String {
    let open = match all.open_outages {
        0 => String::new(),
        open => format!(", {open} not over yet"),
    };
    let times = |name: &str, times: &crate::ledger::summary::Times, last: Option<f64>, quantile: &str| {
        let shown = [times.mean, times.p50, last, times.max].map(|value| or_dash(value, seconds));
        let [mean, p50, last, max] = shown;
        format!("{name}  mean {mean}, p50 {p50}, {quantile} {last}, max {max}\n")
    };
    let mut text = format!(
        "failures    {}, outages {}{open}, recoveries {}, given up {}\n",
        all.failures, all.outages, all.recoveries, all.gave_up
    );
    text.push_str(&times("to detect ", &all.mttd_s, all.mttd_s.p95, "p95"));
    text.push_str(&times("to recover", &all.mttr_s, all.mttr_s.p95, "p95"));
    text.push_str(&format!("resync      {} of {}\n", all.resync.succeeded, all.resync.attempted));
    let alerts = &all.alerts;
    text.push_str(&format!(
        "alerts      raised {}, delivered {}, pending {}, missed {}\n",
        alerts.raised, alerts.delivered, alerts.pending, alerts.missed
    ));
    text.push_str(&times("to deliver", &alerts.latency_s, alerts.latency_s.p99, "p99"));
    text.push_str(&format!(
        "logs        {} bytes stored, {} dropped; events lost {}\n",
        all.log.bytes, all.log.dropped_bytes, all.log.lost_events
    ));
    text
}

fn units(all: &Figures) -> Vec<[String; 6]> {
    let head = ["UNIT", "FAILURES", "RECOVERIES", "MTTR", "AVAILABLE", "INTERVENTIONS"].map(str::to_string);
    let rows = all.units.iter().map(|(name, unit)| {
        [
            escape_line(name),
            unit.failures.to_string(),
            unit.recoveries.to_string(),
            or_dash(unit.mttr_s.mean, seconds),
            or_dash(unit.availability, percent),
            unit.manual_interventions.to_string(),
        ]
    });
    [head].into_iter().chain(rows).collect()
}

fn table(rows: &[[String; 6]], look: &Look) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    for row in rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index < 5 { 2 } else { 0 }));
        column.set_cell_alignment(CellAlignment::Left);
    }
    let mut text = String::new();
    for (index, line) in table.to_string().lines().enumerate() {
        let line = line.trim_end();
        let paint = |word: &str, of: AnsiColor| line.replace(word, &look.paint.with(color(of), word));
        match line {
            line if index == 0 => text.push_str(&look.paint.bold(line)),
            line if line.ends_with("PASS") => text.push_str(&paint("PASS", AnsiColor::Green)),
            line if line.ends_with("FAIL") => text.push_str(&paint("FAIL", AnsiColor::Red)),
            line => text.push_str(line),
        }
        text.push('\n');
    }
    text
}
