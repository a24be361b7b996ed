//! The only clock of the crate.
//!
//! Refuses: decisions about time; they are made from the numbers it gives.

use std::fs;

use nix::time::{ClockId, clock_gettime};

use crate::base::time::Monotonic;

/// Nanoseconds on CLOCK_BOOTTIME (clock_gettime(2)): never stepped, counts suspend. Where a
/// sandbox lacks that clock, CLOCK_MONOTONIC, which stands still in suspend.
pub fn monotonic() -> Monotonic {
    let read = clock_gettime(ClockId::CLOCK_BOOTTIME).or_else(|_| clock_gettime(ClockId::CLOCK_MONOTONIC));
    let Ok(now) = read else {
        return Monotonic::ZERO;
    };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let below = u64::try_from(now.tv_nsec()).unwrap_or(0);
    Monotonic::from_ns(seconds.saturating_mul(1_000_000_000).saturating_add(below))
}

/// Wall time, for people and files only.
#[expect(clippy::disallowed_methods, reason = "this is the wall clock")]
pub fn wall() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// RFC 3339 in UTC with microseconds, of microseconds since 1970.
pub fn rfc3339(ts_us: i64) -> String {
    let ts = jiff::Timestamp::from_microsecond(ts_us).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    ts.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Microseconds since 1970, of an RFC 3339 time.
pub fn micros_of(rfc3339: &str) -> Option<i64> {
    rfc3339.parse::<jiff::Timestamp>().ok().map(|ts| ts.as_microsecond())
}

/// Microseconds since 1970, of a date as HTTP has it: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub fn micros_of_http_date(text: &str) -> Option<i64> {
    let date = jiff::fmt::rfc2822::DateTimeParser::new();
    date.parse_timestamp(text.trim()).ok().map(|ts| ts.as_microsecond())
}

/// The kernel's name for this boot (random(4)): a `Monotonic` means something only beside it.
/// Where /proc lacks it, the boot time in seconds; both missing gives `unknown`.
pub fn boot_id() -> String {
    if let Ok(id) = fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        return id.trim().to_string();
    }
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    match stat.lines().find_map(|line| line.strip_prefix("btime ")) {
        Some(seconds) => format!("btime-{}", seconds.trim()),
        None => "unknown".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_runs_forward_and_the_boot_has_a_name() {
        let first = monotonic();
        assert!(first > Monotonic::ZERO);
        assert!(monotonic() >= first);
        assert_eq!(boot_id(), boot_id());
        assert_ne!(boot_id(), "");
        assert!(wall().as_second() > 1_600_000_000);
    }
}
