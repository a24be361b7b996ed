//! The top of the page, which must be enough at 3 a.m.: the status as a word, and why; and its end.
//!
//! Refuses: a colour without its word.

use std::fmt::Display;

use crate::api::types::{SystemHealth, Unit};
use crate::dashboard::html::Html;
use crate::dashboard::{PageData, SECTIONS, time};

/// The status in one line, without its colour: the worst comes first.
pub fn why(health: &SystemHealth, units: &[Unit], mode: &str) -> String {
    let mut said = Vec::new();
    let files = health.config.errors.len();
    if files > 0 {
        said.push(counted(files, "mistake", "mistakes") + " in the configuration");
    }
    let named = |state: &str| -> Vec<&str> {
        units.iter().filter(|unit| unit.state == state).map(|unit| unit.name.as_str()).collect()
    };
    for state in ["failed", "backoff", "degraded", "waiting", "activating", "deactivating"] {
        match named(state).as_slice() {
            [] => {}
            [only] => said.push(format!("{only} is {state}")),
            [first, second] => said.push(format!("{first} and {second} are {state}")),
            [first, rest @ ..] => said.push(format!("{first} and {} more are {state}", rest.len())),
        }
    }
    if mode != "normal" {
        said.push(format!("the engine is in {mode} mode"));
    }
    match health.troubles.as_slice() {
        [] => {}
        [only] => said.push(only.message.clone()),
        more => said.push(format!("{} troubles of the daemon itself", more.len())),
    }
    if said.is_empty() {
        let active = named("active").len();
        return match active {
            0 => "nothing is wrong, and no unit runs".to_string(),
            1 => "1 unit is active, nothing is wrong".to_string(),
            active => format!("{active} units are active, nothing is wrong"),
        };
    }
    said.join(", ")
}

/// `1 failure`, `2 failures`.
pub fn counted<N: Display + PartialEq + From<u8>>(number: N, one: &str, many: &str) -> String {
    if number == N::from(1) { format!("1 {one}") } else { format!("{number} {many}") }
}

pub fn begin(html: &mut Html, data: &PageData) {
    let PageData { list, health, .. } = data;
    let (color, word) = (&health.status, health.status.to_uppercase());
    let why = why(health, &list.units, &list.daemon.mode);
    let last = data.events.as_ref().and_then(|events| events.last()).map_or(0, |event| event.id);
    html.raw("<!doctype html>\n<html lang=\"en\"").attr("data-status", color).attr("data-last-event", last);
    html.attr("data-version", &list.daemon.version).attr("data-sections", SECTIONS).raw(">\n<head>\n");
    html.raw("<meta charset=\"utf-8\">\n<title>").text(&word).raw(": ").text(&why);
    html.raw(" · Upright</title>\n");
    html.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    html.raw("<meta name=\"color-scheme\" content=\"light dark\">\n");
    html.raw("<link id=\"icon\" rel=\"icon\"").attr("href", icon(color)).raw(">\n");
    html.raw("<link rel=\"stylesheet\" href=\"/dashboard.css\">\n");
    html.raw("<script defer src=\"/dashboard.js\"></script>\n</head>\n<body>\n");
    html.raw("<a class=\"skip\" href=\"#main\">Skip to what is wrong</a>\n");
    html.raw(
        "<header>\n<p id=\"stale\" role=\"alert\" hidden></p>\n<p id=\"said\" class=\"sr\" role=\"status\"></p>\n",
    );
    html.raw("<div id=\"head\"").attr("class", color).raw(">\n<div class=\"in\">\n<h1><strong>");
    html.raw(mark(color)).text(&word).raw("</strong> <span>").text(&why).raw("</span></h1>\n<p>");
    counts(html, health);
    html.raw(" · up ").show(time::rough(uptime_us(health.uptime_s)));
    html.raw(" · as of ");
    time::at(html, &data.now, time::micros(&data.now));
    html.raw("<span class=\"zone\"> UTC</span> · <span id=\"live\">not live: load it again for news</span>");
    if data.hides_logs {
        html.raw(" · <a id=\"sign-in\" href=\"/sign-in\">sign in to read logs</a>");
    }
    html.raw("</p>\n");
    html.raw("</div>\n</div>\n");
    act(html);
}

#[expect(clippy::cast_possible_truncation, reason = "a float saturates; nothing is up for a million years")]
fn uptime_us(uptime_s: f64) -> i64 {
    (uptime_s * 1e6) as i64
}

fn counts(html: &mut Html, health: &SystemHealth) {
    for (place, (state, count)) in health.units.iter().enumerate() {
        html.raw(if place == 0 { "" } else { ", " });
        html.show(count).raw(" ").text(state);
    }
    if health.units.is_empty() {
        html.raw("no units");
    }
}

/// Beside the word, for those who cannot tell the colours apart.
fn mark(color: &str) -> &'static str {
    match color {
        "green" => "<span aria-hidden=\"true\">✔</span> ",
        "yellow" => "<span aria-hidden=\"true\">▲</span> ",
        _ => "<span aria-hidden=\"true\">✖</span> ",
    }
}

/// A form in the tab's strip: a disc, a triangle or a cross in its colour.
fn icon(color: &str) -> &'static str {
    match color {
        "green" => {
            "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' r='7' fill='%231a7f37'/%3E%3C/svg%3E"
        }
        "yellow" => {
            "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M8 1l7 14H1z' fill='%23d4a72c'/%3E%3C/svg%3E"
        }
        _ => {
            "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M2 2l12 12M14 2L2 14' stroke='%23cf222e' stroke-width='4'/%3E%3C/svg%3E"
        }
    }
}

/// Where the operator types the token. It needs the script, which shows it.
fn act(html: &mut Html) {
    html.raw(
        "<details id=\"act\" class=\"in\" hidden>\n<summary>Reading only. Type the token to act</summary>\n\
         <p class=\"row\"><label for=\"token\">Token</label>\n\
         <input id=\"token\" type=\"password\" autocomplete=\"off\" spellcheck=\"false\" aria-describedby=\"token-help\">\n\
         <button id=\"use\" type=\"button\">Use it</button>\n\
         <button id=\"forget\" type=\"button\" hidden>Forget it</button></p>\n\
         <p id=\"token-help\" class=\"note\">It is in the file that <code>token_file</code> under <code>[api]</code> names. \
         It stays in this page's memory, and is gone when the page is.</p>\n</details>\n\
         <p id=\"outcome\" class=\"in\" role=\"status\"></p>\n</header>\n",
    );
}

pub fn end(html: &mut Html, data: &PageData, now_us: i64) {
    let daemon = &data.list.daemon;
    html.raw("<footer id=\"foot\"><p class=\"in\">Upright ")
        .text(&daemon.version)
        .raw(", ")
        .text(&daemon.mode);
    html.raw(" mode, processes found by ").text(&daemon.containment).raw(". Keeper ").show(daemon.keeper_pid);
    html.raw(", engine ").show(daemon.engine_pid).raw(", started ");
    time::at(html, &daemon.started_at, now_us);
    html.raw(
        ". The same as JSON: <a href=\"/v1/units\">units</a>, <a href=\"/api/system/health\">health</a>, ",
    );
    html.raw("<a href=\"/api/metrics/v0_1/summary\">KPIs</a>, <a href=\"/v1/events?limit=100\">events</a>, ");
    html.raw("<a href=\"/v1/alerts\">alerts</a>, <a href=\"/openapi.json\">every route</a>.</p></footer>\n");
    html.raw("</body>\n</html>\n");
}
