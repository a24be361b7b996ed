//! The verdict on the load beside the faults: answered requests without a line, acknowledged sessions that are not
//! stored, and what stands beside the table in words.
//!
//! Refuses: counting what the samples say is not judged.

use std::collections::BTreeSet;

use crate::drill::sample::Sample;
use crate::drill::verdict::{Row, zero};

/// The rows, and the sentences.
pub(super) fn judged(samples: &[Sample]) -> (Vec<Row>, Vec<String>) {
    let (mut sent, mut at_once, mut later) = (0_u64, 0_u64, 0_u64);
    let (mut answered, mut sessions) = (BTreeSet::new(), BTreeSet::new());
    for sample in samples {
        let Sample::Load { number, id, status, .. } = sample else { continue };
        sent += 1;
        answered.extend(status.map(|_| *number));
        if id.is_some() && matches!(status, Some(200 | 202)) {
            sessions.insert(*number);
            at_once += u64::from(*status == Some(200));
            later += u64::from(*status == Some(202));
        }
    }
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    if sent > 0 {
        let kept = sessions.len();
        notes.push(format!(
            "Load: {sent} requests, {} answered; {kept} sessions acknowledged, {at_once} with 200 and {later} with 202.",
            answered.len()
        ));
    }
    for sample in samples {
        let Sample::Found { lines, stored, uncounted, notes: more, .. } = sample else { continue };
        if let Some(lines) = lines {
            rows.push(zero("log-lines-lost", missing(&answered, lines)));
        }
        match (stored, uncounted) {
            (Some(stored), _) => rows.push(zero("sessions-lost", missing(&sessions, stored))),
            // Somebody asked to have them counted: what is not known is not proved.
            (None, Some(why)) => {
                notes.push(format!("Sessions could not be counted: {why}."));
                rows.push(Row { value: None, verdict: "fail".to_string(), ..zero("sessions-lost", 1) });
            }
            (None, None) => {}
        }
        notes.extend(more.iter().cloned());
    }
    (rows, notes)
}

fn missing(wanted: &BTreeSet<u64>, found: &[u64]) -> u64 {
    let found: BTreeSet<u64> = found.iter().copied().collect();
    wanted.difference(&found).count() as u64
}

/// How long each answer took, in seconds.
#[expect(clippy::cast_precision_loss, reason = "microseconds of one answer")]
pub(super) fn answers(samples: &[Sample]) -> Vec<f64> {
    let took = |sample: &Sample| match sample {
        Sample::Load { status: Some(_), took_us, .. } => Some(*took_us as f64 / 1e6),
        _ => None,
    };
    samples.iter().filter_map(took).collect()
}
