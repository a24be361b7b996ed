//! Figures as people read them: `98.5 %`, `1.2 s`.
//!
//! Refuses: rounding up. What is not all of it is never "100 %".

use crate::ledger::marks::Verdict;

/// The value of a KPI in the unit of its mark; `-` where nothing was measured.
pub fn value(verdict: &Verdict) -> String {
    let Some(value) = verdict.value else { return "-".to_string() };
    match verdict.mark.chars().last() {
        Some('%') => percent(value),
        Some('s') => seconds(value),
        _ => format!("{value:.0}"),
    }
}

/// Cut, not rounded.
pub fn percent(share: f64) -> String {
    format!("{} %", (share * 10_000.0).floor() / 100.0)
}

pub fn seconds(seconds: f64) -> String {
    match seconds {
        small if small < 1.0 => format!("{:.0} ms", small * 1_000.0),
        long if long >= 100.0 => format!("{long:.0} s"),
        other => format!("{other:.1} s"),
    }
}
