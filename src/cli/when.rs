//! Times that people type, and times shown to them.
//!
//! Refuses: the schedule's clock. These are wall times, for reading only.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::base::duration;
use crate::cli::render;

/// `10m` (before `now`), RFC 3339, or a local date and time.
///
/// # Errors
/// One line that says what is wrong.
pub fn parse_since(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    if let Ok(ago) = duration::parse(text) {
        return now.checked_sub(ago).map_err(|cause| cause.to_string());
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let local = text.parse::<DateTime>().ok().and_then(|at| at.to_zoned(zone.clone()).ok());
    local.map(|at| at.timestamp()).ok_or_else(|| {
        format!("`{text}` is no time; write \"10m\", \"2026-11-21T20:00:00Z\" or \"2026-11-21 20:00\"")
    })
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
    use super::*;

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now: Timestamp = "2026-11-21T20:00:00Z".parse().expect("time");
        let parse = |text| parse_since(text, now, &TimeZone::UTC).map(|at| at.to_string());
        assert_eq!(parse("10m").as_deref(), Ok("2026-11-21T19:50:00Z"));
        assert_eq!(parse("2026-11-21T20:00:00+02:00").as_deref(), Ok("2026-11-21T18:00:00Z"));
        assert_eq!(parse("2026-11-21 19:00").as_deref(), Ok("2026-11-21T19:00:00Z"));
        assert!(parse("yesterday").is_err());
        assert_eq!(ago("2026-11-21T19:56:48Z", now), "3m 12s ago");
        assert_eq!(ago("2026-11-21T21:00:00Z", now), "0s ago");
        assert_eq!(until("2026-11-21T20:00:07Z", now), "in 7s");
        assert_eq!(until("2026-11-21T19:00:07Z", now), "now");
    }
}
