//! Times that people type, and times shown to them.
//!
//! Refuses: the schedule's clock. These are wall times, for reading only.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;

use crate::api::types::EventList;
use crate::base::duration;
use crate::cli::EXIT_USAGE;
use crate::cli::context::{self, Context, EXIT_FAILED, Fail};
use crate::cli::render;

/// A time that somebody typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    At(Timestamp),
    /// When the event with this id happened.
    Event(u64),
}

/// `10m`, `10 min ago` (before `now`), `now`, `today`, `yesterday 14:00`, `14:00` (of today), RFC 3339,
/// a local date with or without a time, `#4711` (the time of an event).
///
/// # Errors
/// One line that says what is wrong.
pub fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<When, String> {
    let text = text.trim();
    if let Some(id) = text.strip_prefix('#').or_else(|| text.strip_prefix("event:")) {
        return id.trim().parse().map(When::Event).map_err(|_| format!("`{id}` is no id of an event"));
    }
    let length = text.strip_suffix("ago").unwrap_or(text).replace(' ', "");
    if let Ok(ago) = duration::parse(&length) {
        return now.checked_sub(ago).map(When::At).map_err(|cause| cause.to_string());
    }
    let absolute = text.parse::<Timestamp>().ok();
    absolute.or_else(|| local_time(text, now, zone)).map(When::At).ok_or_else(|| {
        format!(
            "`{text}` is no time; write \"10m\", \"10 min ago\", \"14:00\", \"yesterday\", \"2026-11-21 20:00\", \"2026-11-21T20:00:00Z\" or \"#4711\" (an event)"
        )
    })
}

fn local_time(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let today = now.to_zoned(zone.clone()).date();
    let (day, time) = text.split_once(' ').unwrap_or((text, ""));
    let date = match day {
        "now" if time.is_empty() => return Some(now),
        "today" => Some(today),
        "yesterday" => today.yesterday().ok(),
        _ => None,
    };
    let at = match (date, time) {
        (Some(date), "") => date.to_datetime(Time::midnight()),
        (Some(date), time) => date.to_datetime(clock_time(time)?),
        (None, "") if clock_time(text).is_some() => today.to_datetime(clock_time(text)?),
        (None, _) => text.parse::<DateTime>().ok()?,
    };
    at.to_zoned(zone.clone()).ok().map(|at| at.timestamp())
}

/// `14:00`, `14:00:30`; not `2026`, which jiff takes for twenty past eight.
fn clock_time(text: &str) -> Option<Time> {
    text.parse::<Time>().ok().filter(|_| text.contains(':') && !text.contains('-'))
}

/// The time that an option names, asked of the daemon where it is that of an event.
///
/// # Errors
/// It is no time (exit 2), there is no such event, or the daemon cannot be asked.
pub fn asked(context: &Context, option: &str, text: &str) -> Result<Timestamp, Fail> {
    let unread = |why: String| Fail::new(EXIT_USAGE, format!("cannot read {option}: {why}"), None);
    match parse(text, context::now(), &context.look.zone).map_err(unread)? {
        When::At(at) => Ok(at),
        When::Event(id) => {
            let path = format!("/v1/events?limit=1&after_id={}", id.saturating_sub(1));
            let list: EventList = context.client.get(&path).map_err(|error| context.fail(error))?;
            let found = list.events.first().filter(|event| event.id == id);
            found.and_then(|event| event.ts.parse().ok()).ok_or_else(|| {
                let help = "`upright events --json` has their ids".to_string();
                Fail::new(EXIT_FAILED, format!("there is no event #{id}"), help)
            })
        }
    }
}

/// Time since an RFC 3339 text; None when it is none. Zero when it is in the future (the
/// clock was set back).
pub fn passed(since: &str, now: Timestamp) -> Option<Duration> {
    let at: Timestamp = since.parse().ok()?;
    Some(Duration::try_from(now.duration_since(at)).unwrap_or(Duration::ZERO))
}

/// `3m 12s ago`.
pub fn ago(since: &str, now: Timestamp) -> String {
    passed(since, now).map_or_else(|| "-".to_string(), |passed| format!("{} ago", render::rough(passed)))
}

/// `in 7s`, `now` when it is over.
pub fn until(at: &str, now: Timestamp) -> String {
    let Ok(at) = at.parse::<Timestamp>() else { return "-".to_string() };
    match Duration::try_from(at.duration_since(now)) {
        // Rounded up: "in 0s" would be over already.
        Ok(left) if left > Duration::ZERO => {
            let whole = Duration::from_secs(left.as_secs() + u64::from(left.subsec_nanos() > 0));
            format!("in {}", render::rough(whole))
        }
        Ok(_) | Err(_) => "now".to_string(),
    }
}

/// `2026-11-21 20:00:00.123` in the zone; the text itself, escaped, when it is no time.
pub fn local(at: &str, zone: &TimeZone) -> String {
    match at.parse::<Timestamp>() {
        Ok(at) => at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        Err(_) => render::escape_line(at),
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    #[test]
    fn people_type_times_in_many_ways() {
        let now: Timestamp = "2026-11-21T20:00:00Z".parse().expect("time");
        for (text, want) in [
            ("10m", "2026-11-21T19:50:00Z"),
            ("10 min ago", "2026-11-21T19:50:00Z"),
            ("1h 30m ago", "2026-11-21T18:30:00Z"),
            ("2 days ago", "2026-11-19T20:00:00Z"),
            ("now", "2026-11-21T20:00:00Z"),
            ("today", "2026-11-21T00:00:00Z"),
            ("today 14:00", "2026-11-21T14:00:00Z"),
            ("yesterday", "2026-11-20T00:00:00Z"),
            ("yesterday 23:59:30", "2026-11-20T23:59:30Z"),
            ("14:05", "2026-11-21T14:05:00Z"),
            ("2026-11-21T20:00:00+02:00", "2026-11-21T18:00:00Z"),
            ("2026-11-21 19:00", "2026-11-21T19:00:00Z"),
            ("2026-11-20", "2026-11-20T00:00:00Z"),
        ] {
            let at = Timestamp::from_str(want).expect("time");
            assert_eq!(parse(text, now, &TimeZone::UTC), Ok(When::At(at)), "{text}");
        }
        assert_eq!(parse("#4711", now, &TimeZone::UTC), Ok(When::Event(4711)));
        assert_eq!(parse("event:7", now, &TimeZone::UTC), Ok(When::Event(7)));
        for text in ["", "someday", "10", "2026", "today x", "#x", "25:00", "ago"] {
            assert!(parse(text, now, &TimeZone::UTC).is_err(), "{text}");
        }
        assert_eq!(ago("2026-11-21T19:56:48Z", now), "3m 12s ago");
        assert_eq!(ago("2026-11-21T21:00:00Z", now), "0s ago");
        assert_eq!(until("2026-11-21T20:00:07Z", now), "in 7s");
        assert_eq!(until("2026-11-21T19:00:07Z", now), "now");
    }
}
