//! The units as a table, the worst first, each with its reason; and the last lines of those that are not
//! well.
//!
//! Refuses: a state without its reason, and a table without an end.

use std::cmp::Reverse;

use crate::api::types::Unit;
use crate::dashboard::html::Html;
use crate::dashboard::time::{self, HOUR_US};
use crate::dashboard::{PageData, states};

/// Most units shown; those that are left out are the best ones.
const UNITS_MAX: usize = 300;

pub fn section(html: &mut Html, data: &PageData, now_us: i64) {
    html.raw("<section id=\"units\" aria-labelledby=\"units-title\">\n<h2 id=\"units-title\">Units</h2>\n");
    let mut units: Vec<&Unit> = data.list.units.iter().collect();
    units.sort_by_key(|unit| Reverse(badness(unit)));
    if units.is_empty() {
        html.raw("<p class=\"note\">No unit file was found.</p>\n");
    } else {
        html.raw("<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-labelledby=\"units-title\"><table class=\"units\">\n");
        html.raw("<thead><tr><th scope=\"col\">Unit</th><th scope=\"col\">State</th><th scope=\"col\">Last hour</th>");
        html.raw("<th scope=\"col\" class=\"wide num\">Failures</th><th scope=\"col\" class=\"wide num\">Restarts</th>");
        html.raw("<th scope=\"col\" class=\"wide\">Health</th><th scope=\"col\" class=\"wide num\">Process</th></tr></thead>\n<tbody>\n");
        let changes = states::changes(data.events.as_deref().unwrap_or_default());
        let begin_us = now_us.saturating_sub(HOUR_US);
        for unit in units.iter().take(UNITS_MAX) {
            let changes = changes.get(unit.name.as_str());
            let stretches = states::stretches(changes, unit, begin_us, now_us);
            html.raw("<tr").attr("data-unit", &unit.name).attr("data-state", &unit.state).raw(">");
            named(html, unit);
            state(html, unit, now_us);
            html.raw("<td class=\"hour\">");
            states::strip(html, &stretches, begin_us, now_us);
            html.raw("</td>");
            numbers(html, unit);
            html.raw("</tr>\n");
        }
        html.raw("</tbody></table></div>\n");
    }
    if let Some(more) = units.len().checked_sub(UNITS_MAX).filter(|more| *more > 0) {
        html.raw("<p class=\"note\">And ")
            .show(more)
            .raw(" more, none of them worse than the last one shown: ");
        html.raw("<code>upright status</code>.</p>\n");
    }
    tails(html, data);
    html.raw("</section>\n");
}

/// The worst first.
fn badness(unit: &Unit) -> u8 {
    match unit.state.as_str() {
        "failed" => 7,
        "backoff" => 6,
        "degraded" => 5,
        "waiting" => 4,
        "activating" | "deactivating" => 3,
        _ if unit.health == "unhealthy" => 2,
        "active" => 1,
        _ => 0,
    }
}

fn named(html: &mut Html, unit: &Unit) {
    html.raw("<th scope=\"row\"><a href=\"/v1/units/")
        .text(&unit.name)
        .raw("\">")
        .text(&unit.name)
        .raw("</a>");
    if !unit.description.is_empty() {
        html.raw("<span class=\"about\">").text(&unit.description).raw("</span>");
    }
    html.raw("<span class=\"acts\">");
    for (verb, word) in [("restart", "Restart"), ("stop", "Stop"), ("start", "Start")] {
        html.raw("<button type=\"button\" class=\"act\"")
            .attr("data-verb", verb)
            .attr("data-unit", &unit.name);
        html.raw(">").raw(word).raw("<span class=\"sr\"> ").text(&unit.name).raw("</span></button>");
    }
    html.raw("</span></th>");
}

/// Mark and class of a state; the word always stands beside them.
fn mark(state: &str) -> (&'static str, &'static str) {
    match state {
        "active" => ("●", "pass"),
        "degraded" => ("◐", "warn"),
        "activating" | "deactivating" => ("◐", "way"),
        "waiting" => ("○", "warn"),
        "backoff" => ("✖", "warn"),
        "failed" => ("✖", "fail"),
        _ => ("○", "none"),
    }
}

fn state(html: &mut Html, unit: &Unit, now_us: i64) {
    let (mark, class) = mark(&unit.state);
    html.raw("<td class=\"state\"><strong")
        .attr("class", class)
        .raw("><span aria-hidden=\"true\">")
        .raw(mark);
    html.raw("</span> ").text(&unit.state).raw("</strong> <span class=\"for\">for ");
    time::since(html, &unit.since, now_us);
    html.raw("</span><span class=\"reason\">").text(&unit.reason);
    if let Some(at) = &unit.next_retry_at {
        html.raw("; next try ");
        time::until(html, at, now_us);
    }
    if !unit.waiting_for.is_empty() {
        html.raw("; waits for ").text(&unit.waiting_for.join(", "));
    }
    html.raw("</span></td>");
}

fn numbers(html: &mut Html, unit: &Unit) {
    html.raw("<td class=\"wide num\">")
        .show(unit.failures)
        .raw("</td><td class=\"wide num\">")
        .show(unit.restarts);
    html.raw("</td><td class=\"wide\">");
    match unit.health.as_str() {
        "healthy" => html.raw("<span class=\"pass\">healthy</span>"),
        "unhealthy" => html.raw("<strong class=\"fail\">unhealthy</strong>"),
        _ => html.raw("<span class=\"none\">no check</span>"),
    };
    html.raw("</td><td class=\"wide num\">");
    match unit.pid {
        Some(pid) => html.show(pid),
        None => html.raw("<span class=\"none\">none</span>"),
    };
    html.raw("</td>");
}

/// What units that are not well wrote last.
fn tails(html: &mut Html, data: &PageData) {
    let is_unwell = |unit: &Unit| matches!(unit.state.as_str(), "failed" | "backoff");
    if data.hides_logs && data.list.units.iter().any(is_unwell) {
        html.raw("<p class=\"note\">What they wrote last is for readers with the token: <a href=\"/sign-in\">sign in</a>.</p>\n");
    }
    for (unit, lines) in data.tails.iter().filter(|(_, lines)| !lines.is_empty()) {
        html.raw("<div class=\"tail\"><h3>What ").text(unit).raw(" wrote last</h3>\n");
        html.raw("<pre tabindex=\"0\"").attr("aria-label", format!("last lines of {unit}")).raw(">");
        for line in lines {
            html.text(line).raw("\n");
        }
        html.raw("</pre></div>\n");
    }
}
