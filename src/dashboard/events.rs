//! What happened last, newest first.
//!
//! Refuses: the whole history. It is at `/v1/events`.

use crate::api::types::EventLine;
use crate::dashboard::html::Html;
use crate::dashboard::{missing, time};

/// Most records shown.
const EVENTS_MAX: usize = 40;

pub fn section(html: &mut Html, events: Option<&[EventLine]>, now_us: i64) {
    html.raw("<section id=\"events\" aria-labelledby=\"events-title\">\n<h2 id=\"events-title\">Recent events</h2>\n");
    match events {
        None => missing(html),
        Some([]) => _ = html.raw("<p class=\"note\">Nothing has happened yet.</p>\n"),
        Some(events) => {
            html.raw("<ol class=\"events\" reversed>\n");
            events.iter().rev().take(EVENTS_MAX).for_each(|event| line(html, event, now_us));
            html.raw(
                "</ol>\n<p class=\"note\">The newest only. All: <a href=\"/v1/events\">/v1/events</a>, ",
            );
            html.raw("<code>upright events</code>.</p>\n");
        }
    }
    html.raw("</section>\n");
}

fn line(html: &mut Html, event: &EventLine, now_us: i64) {
    let class = match event.level.as_str() {
        "ERROR" => "error",
        "WARN" => "warn",
        _ => "info",
    };
    html.raw("<li").attr("class", class).attr("data-event", event.id).raw(">");
    time::at(html, &event.ts, now_us);
    html.raw(" <span class=\"level\">").text(&event.level).raw("</span> <code>").text(&event.event);
    html.raw("</code> <span class=\"message\">").text(&event.message).raw("</span>");
    if let Some(drill) = event.data.get("drill").and_then(|drill| drill.as_str()) {
        html.raw(" <span class=\"tag\">drill ").text(drill).raw("</span>");
    }
    html.raw("</li>\n");
}
