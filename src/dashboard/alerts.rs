//! What people were to be told, and whether they were.
//!
//! Refuses: calling an alert delivered that one of its channels does not have.

use crate::api::types::{AlertDelivery, AlertLine, AlertList};
use crate::dashboard::html::Html;
use crate::dashboard::{missing, time};

/// Most alerts shown.
pub const ALERTS_MAX: usize = 20;

pub fn section(html: &mut Html, list: Option<&AlertList>, now_us: i64) {
    html.raw(
        "<section id=\"alerts\" aria-labelledby=\"alerts-title\">\n<h2 id=\"alerts-title\">Alerts</h2>\n",
    );
    match list.map(|list| list.alerts.as_slice()) {
        None => missing(html),
        Some([]) => _ = html.raw("<p class=\"note\">Nobody had to be told anything yet.</p>\n"),
        Some(alerts) => {
            html.raw("<ul class=\"alerts\">\n");
            alerts.iter().take(ALERTS_MAX).for_each(|alert| line(html, alert, now_us));
            html.raw("</ul>\n");
            if alerts.len() > ALERTS_MAX {
                html.raw("<p class=\"note\">The newest only. All: <a href=\"/v1/alerts\">/v1/alerts</a>, ");
                html.raw("<code>upright alert list</code>.</p>\n");
            }
        }
    }
    html.raw("</section>\n");
}

fn line(html: &mut Html, alert: &AlertLine, now_us: i64) {
    let class = match alert.severity.as_str() {
        "critical" => "error",
        "warning" => "warn",
        _ => "info",
    };
    html.raw("<li").attr("class", class).attr("data-alert", &alert.id).raw(">");
    time::at(html, &alert.ts, now_us);
    html.raw(" <span class=\"level\">").text(&alert.severity).raw("</span> <code>").text(&alert.kind);
    html.raw("</code> <span class=\"message\">").text(&alert.message).raw("</span>\n");
    if alert.acknowledged {
        html.raw("<span class=\"tag\">taken by somebody</span>\n");
    } else if alert.unit.is_some() && class != "info" {
        html.raw("<button type=\"button\" class=\"act\" data-ack").attr("data-alert", &alert.id);
        html.raw(">Take it<span class=\"sr\">: ").text(&alert.message).raw("</span></button>\n");
    }
    if !alert.affected.is_empty() {
        html.raw("<p>affects ").text(&alert.affected.join(", ")).raw("</p>\n");
    }
    html.raw("<ul class=\"channels\">");
    if alert.channels.is_empty() {
        html.raw("<li class=\"warn\">no channel takes it: nobody is told</li>");
    }
    alert.channels.iter().for_each(|channel| delivery(html, channel, now_us));
    html.raw("</ul></li>\n");
}

fn delivery(html: &mut Html, delivery: &AlertDelivery, now_us: i64) {
    let (class, mark) = match delivery.state.as_str() {
        "delivered" => ("pass", "✔ "),
        "parked" => ("fail", "✖ "),
        "pending" => ("warn", "… "),
        _ => ("none", ""),
    };
    html.raw("<li").attr("class", class).raw(">").raw(mark).text(&delivery.channel).raw(": ");
    html.text(&delivery.state);
    if let Some(at) = &delivery.at {
        html.raw(" ");
        time::at(html, at, now_us);
    }
    if delivery.attempts > 1 {
        html.raw(", ").show(delivery.attempts).raw(" tries");
    }
    if let Some(error) = &delivery.error {
        html.raw(": ").text(error);
    }
    html.raw("</li>");
}
