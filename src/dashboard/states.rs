//! In which state each unit was, as the records tell it, and the strip that is drawn of it.
//!
//! Refuses: guessing. Where the records do not reach, the strip is empty.

use std::collections::BTreeMap;

use crate::api::types::{EventLine, Unit};
use crate::dashboard::html::Html;
use crate::dashboard::time::{self, SECOND_US};

/// Most stretches drawn in one strip; a unit that flaps has its newest.
const STRETCHES_MAX: usize = 120;

/// Changes of one unit, oldest first: when, and into which state.
type Changes<'e> = Vec<(i64, &'e str)>;

/// A time in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch<'e> {
    pub from_us: i64,
    pub until_us: i64,
    pub state: &'e str,
}

/// The changes of all units.
pub fn changes(events: &[EventLine]) -> BTreeMap<&str, Changes<'_>> {
    let mut all: BTreeMap<&str, Changes<'_>> = BTreeMap::new();
    for event in events {
        let state = event.data.get("state").and_then(|state| state.as_str());
        if let Some((unit, state)) = event.unit.as_deref().zip(state) {
            all.entry(unit).or_default().push((time::micros(&event.ts), state));
        }
    }
    all
}

/// What is known of a unit between two moments; it ends in the state in which it is now.
pub fn stretches<'e>(
    changes: Option<&Changes<'e>>,
    unit: &'e Unit,
    begin_us: i64,
    now_us: i64,
) -> Vec<Stretch<'e>> {
    let mut points: Changes<'e> = changes.cloned().unwrap_or_default();
    let since_us = time::micros(&unit.since).min(now_us);
    // The list is as new as the records or newer; what it says of now is right.
    if points.last().is_none_or(|(_, state)| *state != unit.state) {
        points.retain(|(at_us, _)| *at_us < since_us);
        points.push((since_us, &unit.state));
    }
    let ends = points.iter().skip(1).map(|(at_us, _)| *at_us).chain([now_us]);
    let mut found: Vec<Stretch<'e>> = Vec::new();
    for ((from_us, state), until_us) in points.iter().zip(ends) {
        let (from_us, until_us) = ((*from_us).max(begin_us), until_us.min(now_us));
        let state = *state;
        match found.last_mut() {
            _ if until_us <= from_us => {}
            Some(last) if last.state == state => last.until_us = until_us,
            Some(_) | None => found.push(Stretch { from_us, until_us, state }),
        }
    }
    found.drain(..found.len().saturating_sub(STRETCHES_MAX));
    found
}

/// The strip of a unit: the higher the better, so that it can be read without colour.
pub fn strip(html: &mut Html, stretches: &[Stretch<'_>], begin_us: i64, now_us: i64) {
    let length_s = now_us.saturating_sub(begin_us) / SECOND_US;
    html.raw("<svg class=\"strip\" role=\"img\" preserveAspectRatio=\"none\"");
    html.attr("viewBox", format!("0 0 {length_s} 10")).attr("aria-label", label(stretches)).raw(">");
    for stretch in stretches {
        let (class, height) = drawn(stretch.state);
        let begin_s = stretch.from_us.saturating_sub(begin_us) / SECOND_US;
        // A second at least: a crash must not vanish between two pixels.
        let wide_s = (stretch.until_us.saturating_sub(stretch.from_us) / SECOND_US).max(1);
        html.raw("<rect").attr("class", class).attr("x", begin_s).attr("width", wide_s);
        html.attr("y", 10 - height).attr("height", height).raw("/>");
    }
    html.raw("</svg>");
}

fn drawn(state: &str) -> (&'static str, i32) {
    match state {
        "active" => ("good", 10),
        "degraded" => ("fair", 8),
        "activating" | "waiting" | "deactivating" => ("way", 6),
        "backoff" | "failed" => ("bad", 4),
        _ => ("off", 1),
    }
}

/// For who does not see it: `in the last hour: active 58m, backoff 12s`.
fn label(stretches: &[Stretch<'_>]) -> String {
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    for stretch in stretches {
        *sums.entry(stretch.state).or_default() += stretch.until_us - stretch.from_us;
    }
    let mut sums: Vec<(&str, i64)> = sums.into_iter().collect();
    sums.sort_by_key(|(_, us)| -*us);
    let words: Vec<String> = sums.iter().map(|(state, us)| format!("{state} {}", time::rough(*us))).collect();
    format!("in the last hour: {}", if words.is_empty() { "nothing known".into() } else { words.join(", ") })
}
