//! The drills as they are kept: how far each is, how it ended, and its verdict, KPI by KPI.
//!
//! Refuses: judging. A verdict is shown as the drill gave it; one that is none of ours is left out.

use crate::api::drills::DrillLine;
use crate::dashboard::html::Html;
use crate::dashboard::{PageData, missing, time};
use crate::ledger::words;

/// Most drills shown, the newest first.
pub const DRILLS_MAX: usize = 10;

pub fn section(html: &mut Html, data: &PageData, now_us: i64) {
    html.raw(
        "<section id=\"drills\" aria-labelledby=\"drills-title\">\n<h2 id=\"drills-title\">Drills</h2>\n",
    );
    match data.drills.as_deref() {
        None => missing(html),
        Some([]) => {
            html.raw(
                "<p class=\"note\">No drill was run yet: <code>upright drill run single-module</code>.</p>\n",
            );
        }
        Some(drills) => {
            html.raw("<ul class=\"drills\">\n");
            drills.iter().take(DRILLS_MAX).for_each(|drill| item(html, drill, now_us));
            html.raw("</ul>\n");
        }
    }
    html.raw("</section>\n");
}

fn item(html: &mut Html, drill: &DrillLine, now_us: i64) {
    let (class, word) = match drill.status.as_str() {
        "passed" => ("pass", "✔ passed"),
        "failed" => ("fail", "✖ failed"),
        "running" => ("way", "◐ running"),
        _ => ("warn", "▲ aborted"),
    };
    html.raw("<li").attr("data-drill", &drill.id).attr("data-status", &drill.status).raw("><strong");
    html.attr("class", class).raw(">").raw(word).raw("</strong> ").text(&drill.scenario).raw(", ");
    time::at(html, &drill.begun, now_us);
    match &drill.ended {
        Some(ended) => {
            html.raw(" to ");
            time::at(html, ended, now_us);
        }
        None => {
            html.raw(": ").show(drill.progress).raw(" % done ");
            html.raw("<progress max=\"100\"").attr("value", drill.progress);
            html.raw(" aria-label=\"how far the drill is\"></progress>");
        }
    }
    for fault in drill.faults.iter().filter(|fault| !fault.over) {
        html.raw(", <span class=\"warn\">").text(fault.kind.as_str()).raw(" of ");
        html.text(fault.unit.as_deref().unwrap_or("the daemon")).raw(" is in force</span>");
    }
    verdict(html, drill);
    html.raw("</li>\n");
}

/// What a drill that came to its end measured.
fn verdict(html: &mut Html, drill: &DrillLine) {
    let kpis = drill.kpis();
    if kpis.is_empty() {
        return;
    }
    let failed = kpis.iter().filter(|row| row.verdict == "fail").count();
    html.raw("\n<details").attr("data-keep", &drill.id).raw("><summary>Report: ");
    match failed {
        0 => html.raw("no KPI misses its mark"),
        1 => html.raw("1 KPI misses its mark"),
        more => html.show(more).raw(" KPIs miss their marks"),
    };
    html.raw(" <code>").text(&drill.id).raw("</code></summary>\n");
    html.raw("<div class=\"scroll\" tabindex=\"0\" role=\"group\"").attr("aria-label", &drill.id);
    html.raw("><table>\n<thead><tr><th scope=\"col\">KPI</th><th scope=\"col\">Mark</th>");
    html.raw(
        "<th scope=\"col\" class=\"num\">Measured</th><th scope=\"col\">Verdict</th></tr></thead>\n<tbody>\n",
    );
    for row in &kpis {
        let (class, word) = match row.verdict.as_str() {
            "pass" => ("pass", "✔ PASS"),
            "fail" => ("fail", "✖ FAIL"),
            _ => ("none", "no data"),
        };
        html.raw("<tr><th scope=\"row\">").text(&row.kpi).raw("</th><td>").text(&row.mark);
        html.raw("</td><td class=\"num\">").show(words::value(row)).raw("</td><td><span");
        html.attr("class", class).raw(">").raw(word).raw("</span></td></tr>\n");
    }
    html.raw("</tbody></table></div>\n");
    latencies(html, drill);
    html.raw("<p class=\"note\">The samples and the whole report: <code>upright drill report ");
    html.text(&drill.id).raw("</code></p>\n</details>");
}

fn latencies(html: &mut Html, drill: &DrillLine) {
    let latencies = drill.latencies();
    if latencies.is_empty() {
        return;
    }
    html.raw("<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"latencies\"><table>\n");
    html.raw("<thead><tr><th scope=\"col\">Latency</th><th scope=\"col\" class=\"num\">Count</th>");
    html.raw("<th scope=\"col\" class=\"num\">Median</th><th scope=\"col\" class=\"num\">Longest</th></tr></thead>\n<tbody>\n");
    for row in &latencies {
        html.raw("<tr><th scope=\"row\">").text(&row.what).raw("</th><td class=\"num\">").show(row.count);
        html.raw("</td><td class=\"num\">").show(words::seconds(row.p50_s));
        html.raw("</td><td class=\"num\">").show(words::seconds(row.max_s)).raw("</td></tr>\n");
    }
    html.raw("</tbody></table></div>\n");
}
