//! Durations as people write them: `"500ms"`, `"1m 30s"`.
//!
//! Refuses: bare numbers. `5` of what?

use std::fmt;
use std::time::Duration;

const UNITS: [(&str, u64); 6] = [
    ("ms", 1_000_000),
    ("us", 1_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Longest duration accepted: beyond it a typing error is likelier than a wish.
const DURATION_MAX: Duration = Duration::from_secs(366 * 86_400);

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct DurationError {
    pub why: String,
    pub help: Option<String>,
}

/// `"500ms"`, `"5s"`, `"1m 30s"`, `"1h30m"`, `"1.5s"`, `"2d"`; `"0s"` and `"0"` are zero.
/// Units: us, ms, s, m (min), h, d; systemd.time(7) has the same words.
///
/// # Errors
/// Says what is wrong and, for a bare number, what was probably meant.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let refuse = |why: String, help: Option<String>| Err(DurationError { why, help });
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return refuse("a duration is empty".into(), Some("write for example \"5s\"".into()));
    }
    if trimmed == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = trimmed;
    let mut total_ns: u128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (word, tail) = tail.split_at(letters);
        if number.is_empty() {
            return refuse(format!("`{text}` is no duration"), Some("write for example \"1m 30s\"".into()));
        }
        if word.is_empty() {
            let help = format!("did you mean \"{number}s\"?");
            return refuse(format!("`{text}` has no unit"), Some(help));
        }
        let Some(unit_ns) = unit_ns(word) else {
            let help = Some("use ms, s, m, h or d".to_string());
            return refuse(format!("`{word}` is no unit of time"), help);
        };
        let Some(part_ns) = scaled(number, unit_ns) else {
            return refuse(format!("`{number}` is no number"), None);
        };
        total_ns = total_ns.saturating_add(part_ns);
        rest = tail.trim_start();
    }
    match u64::try_from(total_ns).map(Duration::from_nanos) {
        Ok(duration) if duration <= DURATION_MAX => Ok(duration),
        Ok(_) | Err(_) => refuse(format!("`{text}` is longer than a year"), None),
    }
}

fn unit_ns(word: &str) -> Option<u64> {
    let word = match word {
        "min" | "minute" | "minutes" => "m",
        "sec" | "second" | "seconds" => "s",
        "hour" | "hours" | "hr" => "h",
        "day" | "days" => "d",
        "msec" => "ms",
        "usec" => "us",
        other => other,
    };
    UNITS.iter().find(|(name, _)| *name == word).map(|(_, ns)| *ns)
}

/// Decimal `number` times `unit_ns`, exact, without floats.
fn scaled(number: &str, unit_ns: u64) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 || number.len() > 24 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some(digits.checked_mul(u128::from(unit_ns))? / scale)
}

/// Prints a duration as `parse` reads it, largest unit first, nothing smaller than a
/// thousandth of what is shown: `1m 30s`, `5s`, `250ms`.
pub struct Pretty(pub Duration);

impl fmt::Display for Pretty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_nanos();
        if left == 0 {
            return f.write_str("0s");
        }
        let order = [("d", 86_400_000_000_000), ("h", 3_600_000_000_000), ("m", 60_000_000_000)];
        let mut parts: Vec<String> = Vec::new();
        for (word, ns) in order {
            if left >= ns {
                parts.push(format!("{}{word}", left / ns));
                left %= ns;
            }
        }
        let seconds = left / 1_000_000_000;
        let below = left % 1_000_000_000;
        if seconds > 0 {
            parts.push(format!("{seconds}s"));
        }
        if parts.is_empty() || (seconds < 10 && below >= 1_000_000 && parts.len() < 2) {
            if below >= 1_000_000 {
                parts.push(format!("{}ms", below / 1_000_000));
            } else if below > 0 && parts.is_empty() {
                parts.push(format!("{}us", below / 1_000));
            }
        }
        f.write_str(&parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let table: [(&str, u64); 9] = [
            ("500ms", 500),
            ("5s", 5_000),
            ("1m 30s", 90_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            ("2d", 172_800_000),
            ("0", 0),
            ("0s", 0),
            ("1min", 60_000),
        ];
        for (text, ms) in table {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn a_bare_number_is_answered_with_what_was_meant() {
        let error = parse("5").expect_err("no unit");
        assert_eq!(error.help.as_deref(), Some("did you mean \"5s\"?"));
        for bad in ["", "s", "5 s x", "1.2.3s", "-5s", "5parsecs", "99999999d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pretty_can_be_read_back() {
        for text in ["500ms", "5s", "1m 30s", "1h 30m", "2d", "0s", "1s 500ms"] {
            let duration = parse(text).expect(text);
            assert_eq!(Pretty(duration).to_string(), text);
        }
    }
}
