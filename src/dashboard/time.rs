//! Times of the page: dates as the API has them, and how long ago that is.
//!
//! Refuses: a clock. `now` is part of what the page is made of.

use std::time::Duration;

use crate::base::duration::Pretty;
use crate::dashboard::html::Html;
use crate::sys::clock;

pub const SECOND_US: i64 = 1_000_000;
pub const HOUR_US: i64 = 3_600 * SECOND_US;

/// Microseconds since 1970; what is no date is the epoch.
pub fn micros(date: &str) -> i64 {
    clock::micros_of(date).unwrap_or(0)
}

/// `3m 12s`: the two largest units; nothing below a second.
pub fn rough(us: i64) -> String {
    let seconds = u64::try_from(us / SECOND_US).unwrap_or(0);
    let step = match seconds {
        0..3_600 => 1,
        3_600..86_400 => 60,
        _ => 3_600,
    };
    Pretty(Duration::from_secs(seconds - seconds % step)).to_string()
}

/// `20:00:04`, or with its date when it was another day; in UTC, and the script shows the reader's own.
pub fn at(html: &mut Html, date: &str, now_us: i64) {
    let (full, today) = (clock::rfc3339(micros(date)), clock::rfc3339(now_us));
    let same_day = full.get(..10) == today.get(..10);
    let day = if same_day { "" } else { full.get(5..10).unwrap_or_default() };
    html.raw("<time data-at").attr("datetime", date).attr("title", &full).raw(">");
    if !day.is_empty() {
        html.text(day).raw(" ");
    }
    html.text(full.get(11..19).unwrap_or_default()).raw("</time>");
}

/// `3m 12s`, counted on by the script.
pub fn since(html: &mut Html, date: &str, now_us: i64) {
    html.raw("<time data-since").attr("datetime", date).raw(">");
    html.show(rough(now_us.saturating_sub(micros(date)))).raw("</time>");
}

/// `in 4s`, counted down by the script.
pub fn until(html: &mut Html, date: &str, now_us: i64) {
    html.raw("<time data-until").attr("datetime", date).raw(">");
    match micros(date).saturating_sub(now_us) {
        left if left >= SECOND_US => html.raw("in ").show(rough(left)),
        _ => html.raw("now"),
    };
    html.raw("</time>");
}
