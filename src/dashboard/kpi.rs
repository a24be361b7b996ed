//! The KPIs of the last day against their pass marks, a card each.
//!
//! Refuses: judging. The verdicts are the ledger's, and stand there as words.

use crate::api::summary::Summary;
use crate::dashboard::head::counted;
use crate::dashboard::html::Html;
use crate::dashboard::{missing, time};
use crate::ledger::marks::{self, Verdict};
use crate::ledger::words;

pub fn section(html: &mut Html, summary: Option<&Summary>, now_us: i64) {
    html.raw("<section id=\"kpi\" aria-labelledby=\"kpi-title\">\n<h2 id=\"kpi-title\">KPIs of the last 24 hours</h2>\n");
    let Some(summary) = summary else {
        missing(html);
        html.raw("</section>\n");
        return;
    };
    let (real, drill) = (marks::verdicts(&summary.split.real), marks::verdicts(&summary.split.drill));
    html.raw("<ul class=\"cards\">\n");
    for ((all, real), drill) in summary.kpis.iter().zip(&real).zip(&drill) {
        card(html, all, real, drill);
    }
    html.raw("</ul>\n");
    let all = &summary.split.all;
    html.raw("<p class=\"note\">Since ");
    time::at(html, &summary.from, now_us);
    html.raw(": ").show(counted(all.failures, "failure", "failures")).raw(", ");
    html.show(counted(all.outages, "outage", "outages"));
    if all.open_outages > 0 {
        html.raw(" (").show(all.open_outages).raw(" not over yet)");
    }
    html.raw(", ").show(counted(all.recoveries, "recovery", "recoveries")).raw(", ");
    html.show(all.gave_up).raw(" given up. Alerts: ");
    html.show(all.alerts.raised).raw(" raised, ").show(all.alerts.delivered).raw(" delivered, ");
    html.show(all.alerts.pending).raw(" pending. Engine deaths: ").show(all.engine_deaths);
    html.raw(". Records lost: ").show(all.log.lost_events).raw(".</p>\n</section>\n");
}

fn card(html: &mut Html, all: &Verdict, real: &Verdict, drill: &Verdict) {
    let (class, word) = match all.verdict.as_str() {
        "pass" => ("pass", "✔ PASS"),
        "fail" => ("fail", "✖ FAIL"),
        _ => ("none", "no data"),
    };
    html.raw("<li").attr("class", class).attr("data-kpi", &all.kpi);
    if let Some(value) = all.value {
        html.attr("data-value", value);
    }
    html.raw(">\n<h3>").show(all.kpi.replace('-', " ")).raw("</h3>\n<p class=\"value\">");
    html.show(words::value(all)).raw("</p>\n<p class=\"verdict\">").raw(word).raw(" <span>mark: ");
    html.text(&all.mark).raw("</span></p>\n<p class=\"realms\">real ").show(words::value(real));
    html.raw(", drills ").show(words::value(drill)).raw("</p></li>\n");
}
