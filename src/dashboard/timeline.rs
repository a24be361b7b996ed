//! Failure → recovery of the last day, drawn and as a table, drills marked.
//!
//! Refuses: a picture without its words: whatever is drawn stands in the table below it.

use std::collections::BTreeMap;

use crate::dashboard::html::Html;
use crate::dashboard::outages::{End, Outage, outages};
use crate::dashboard::time::{self, HOUR_US, SECOND_US};
use crate::dashboard::{PageData, missing};
use crate::sys::clock;

/// How far back it reaches, if the records do.
const WINDOW_US: i64 = 24 * HOUR_US;

/// Most rows of the table, most units in the picture, and most bars of one unit.
const ROWS_MAX: usize = 20;
const UNITS_MAX: usize = 20;
const BARS_MAX: usize = 200;

pub fn section(html: &mut Html, data: &PageData, now_us: i64) {
    html.raw("<section id=\"timeline\" aria-labelledby=\"timeline-title\">\n");
    html.raw("<h2 id=\"timeline-title\">Failure and recovery, last 24 hours</h2>\n");
    let Some(events) = &data.events else {
        missing(html);
        html.raw("</section>\n");
        return;
    };
    let begin_us = now_us.saturating_sub(WINDOW_US);
    let mut found = outages(events);
    found.retain(|outage| outage.end.is_none_or(|(at_us, _)| at_us > begin_us));
    if found.is_empty() {
        html.raw("<p class=\"note\">No unit failed in the records that are looked at.</p>\n");
    } else {
        picture(html, &found, begin_us, now_us);
        table(html, &found, now_us);
    }
    if let Some(first) = events.first().filter(|first| first.id > 1 && time::micros(&first.ts) > begin_us) {
        html.raw("<p class=\"note\">Only the newest ")
            .show(events.len())
            .raw(" records are looked at; they begin ");
        time::at(html, &first.ts, now_us);
        html.raw(".</p>\n");
    }
    html.raw("</section>\n");
}

fn picture(html: &mut Html, found: &[Outage], begin_us: i64, now_us: i64) {
    let mut of_units: BTreeMap<&str, Vec<&Outage>> = BTreeMap::new();
    for outage in found {
        of_units.entry(&outage.unit).or_default().push(outage);
    }
    html.raw("<div class=\"picture\" aria-hidden=\"true\">\n");
    for (unit, outages) in of_units.iter().take(UNITS_MAX) {
        html.raw("<div class=\"lane\"><span>").text(unit).raw("</span>");
        html.raw("<svg preserveAspectRatio=\"none\" viewBox=\"0 0 86400 10\">");
        outages.iter().rev().take(BARS_MAX).for_each(|outage| bar(html, outage, begin_us, now_us));
        html.raw("</svg></div>\n");
    }
    html.raw("<div class=\"lane axis\"><span></span><div>");
    for hours_ago in [24, 18, 12, 6, 0] {
        let at = clock::rfc3339(now_us - hours_ago * HOUR_US);
        html.raw("<time data-hour").attr("datetime", &at).raw(">").text(at.get(11..16).unwrap_or_default());
        html.raw("</time>");
    }
    html.raw("</div></div>\n<p class=\"legend\"><span class=\"bar real\"></span> outage ");
    html.raw("<span class=\"bar drill\"></span> outage in a drill <span class=\"bar open\"></span> not over yet</p>\n");
    html.raw("</div>\n");
    if let Some(more) = of_units.len().checked_sub(UNITS_MAX).filter(|more| *more > 0) {
        html.raw("<p class=\"note\">").show(more).raw(" more units failed; they are not drawn.</p>\n");
    }
}

fn bar(html: &mut Html, outage: &Outage, begin_us: i64, now_us: i64) {
    let class = match outage {
        Outage { drill: Some(_), .. } => "drill",
        Outage { end: None, .. } => "open",
        Outage { .. } => "real",
    };
    let second = |at_us: i64| at_us.saturating_sub(begin_us).max(0) / SECOND_US;
    let (from, until) = (second(outage.from_us), second(outage.end.map_or(now_us, |(at_us, _)| at_us)));
    // Two minutes at least: below that it would be thinner than a pixel.
    html.raw("<rect").attr("class", class).attr("x", from).attr("y", 0);
    html.attr("width", (until - from).max(120)).attr("height", 10).raw("/>");
}

fn table(html: &mut Html, found: &[Outage], now_us: i64) {
    html.raw("<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-labelledby=\"timeline-title\"><table>\n<thead><tr>");
    html.raw("<th scope=\"col\">Unit</th><th scope=\"col\">Failed</th><th scope=\"col\">Until well</th>");
    html.raw("<th scope=\"col\">Failures</th><th scope=\"col\">Cause</th></tr></thead>\n<tbody>\n");
    for outage in found.iter().rev().take(ROWS_MAX) {
        row(html, outage, now_us);
    }
    html.raw("</tbody></table></div>\n");
    if let Some(more) = found.len().checked_sub(ROWS_MAX).filter(|more| *more > 0) {
        html.raw("<p class=\"note\">And ").show(more).raw(" older outages.</p>\n");
    }
}

fn row(html: &mut Html, outage: &Outage, now_us: i64) {
    html.raw("<tr><th scope=\"row\">").text(&outage.unit).raw("</th><td>");
    let from = clock::rfc3339(outage.from_us);
    time::at(html, &from, now_us);
    if let Some(drill) = &outage.drill {
        html.raw(" <span class=\"tag\">drill ").text(drill).raw("</span>");
    }
    html.raw("</td><td>");
    match outage.end {
        Some((at_us, End::Recovered)) => {
            html.raw("<span class=\"pass\">✔ recovered</span> after ").show(lasted(at_us - outage.from_us));
        }
        Some((at_us, End::Dropped)) => {
            html.raw("wanted no more after ").show(lasted(at_us - outage.from_us));
        }
        None => {
            html.raw("<span class=\"fail\">✖ not yet</span>, for ");
            time::since(html, &from, now_us);
        }
    }
    html.raw("</td><td>").show(outage.failures).raw("</td><td>").text(&outage.cause).raw("</td></tr>\n");
}

/// `350ms`, `1.2s`, `3m 12s`.
fn lasted(us: i64) -> String {
    match us / 1_000 {
        ms @ 0..1_000 => format!("{ms}ms"),
        ms @ 1_000..10_000 => format!("{}.{}s", ms / 1_000, ms % 1_000 / 100),
        _ => time::rough(us),
    }
}
