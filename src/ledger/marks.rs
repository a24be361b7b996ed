//! The pass marks: what each KPI must reach.
//!
//! Refuses: a mark that stands anywhere else. `upright kpi`, the API and the docs have these.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ledger::summary::Figures;

/// One KPI held against its mark.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Verdict {
    /// Stable: fatal-stops, mean-time-to-recovery, …
    pub kpi: String,
    /// `≥ 95 %`
    pub mark: String,
    /// In the unit of the mark; a share as a fraction. `null`: nothing was measured.
    pub value: Option<f64>,
    /// pass | fail | no data
    pub verdict: String,
}

#[derive(Clone, Copy)]
enum Mark {
    Zero,
    AtMostSeconds(f64),
    AtLeast(f64),
    Below(f64),
}

/// The verdicts on these figures, in the order of the mission.
pub fn verdicts(figures: &Figures) -> Vec<Verdict> {
    #[expect(clippy::cast_precision_loss, reason = "compared with zero")]
    let count = |number: u64| Some(number as f64);
    [
        ("fatal-stops", Mark::Zero, count(figures.fatal_stops)),
        ("mean-time-to-recovery", Mark::AtMostSeconds(30.0), figures.mttr_s.mean),
        ("auto-recovery-rate", Mark::AtLeast(0.95), figures.auto_recovery_rate),
        ("resync-rate", Mark::AtLeast(0.90), figures.resync.rate),
        ("log-loss", Mark::Below(0.01), figures.log.loss_rate),
        ("missed-alerts", Mark::Zero, count(figures.alerts.missed)),
        ("manual-interventions", Mark::Zero, count(figures.manual_interventions)),
    ]
    .into_iter()
    .map(|(kpi, mark, value)| Verdict {
        kpi: kpi.to_string(),
        mark: words(mark),
        value,
        verdict: verdict(mark, value).to_string(),
    })
    .collect()
}

/// Whether none of them failed. What nothing was measured of has not failed.
pub fn all_pass(verdicts: &[Verdict]) -> bool {
    verdicts.iter().all(|verdict| verdict.verdict != "fail")
}

fn words(mark: Mark) -> String {
    match mark {
        Mark::Zero => "0".to_string(),
        Mark::AtMostSeconds(seconds) => format!("≤ {seconds} s"),
        Mark::AtLeast(share) => format!("≥ {:.0} %", share * 100.0),
        Mark::Below(share) => format!("< {:.0} %", share * 100.0),
    }
}

fn verdict(mark: Mark, value: Option<f64>) -> &'static str {
    let Some(value) = value else { return "no data" };
    let passes = match mark {
        Mark::Zero => value == 0.0,
        Mark::AtMostSeconds(most) => value <= most,
        Mark::AtLeast(least) => value >= least,
        Mark::Below(most) => value < most,
    };
    if passes { "pass" } else { "fail" }
}
