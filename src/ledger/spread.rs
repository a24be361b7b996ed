//! How lengths of time are spread: count, sum, greatest, and quantiles to three digits.
//!
//! Refuses: growing with the number of samples. A length is kept to three significant digits, so that
//! there are at most 900 cells a power of ten. Rounding keeps the order: a quantile of what was rounded is
//! the rounded quantile, so that a recount of single samples gives the same figure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Lengths, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    pub count: u64,
    pub sum: u64,
    pub max: u64,
    /// Rounded length → how many.
    cells: BTreeMap<u64, u64>,
}

impl Spread {
    pub fn add(&mut self, us: u64) {
        self.count += 1;
        self.sum = self.sum.saturating_add(us);
        self.max = self.max.max(us);
        *self.cells.entry(rounded(us)).or_default() += 1;
    }

    pub fn merge(&mut self, other: &Spread) {
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
        for (us, count) in &other.cells {
            *self.cells.entry(*us).or_default() += count;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The nearest-rank quantile: the smallest length that at least so many of a thousand do not
    /// exceed, to three digits, and never above `max`. None without a sample.
    pub fn quantile(&self, per_mille: u64) -> Option<u64> {
        let rank = self.count.saturating_mul(per_mille).div_ceil(1_000).max(1);
        let mut seen = 0;
        for (us, count) in &self.cells {
            seen += count;
            if seen >= rank {
                return Some((*us).min(self.max));
            }
        }
        None
    }

    /// None without a sample.
    pub fn mean(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a mean is shown to a microsecond")]
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }
}

/// To three significant digits, half up.
pub fn rounded(us: u64) -> u64 {
    let digits = us.checked_ilog10().unwrap_or(0) + 1;
    let step = 10_u64.pow(digits.saturating_sub(3));
    match us.checked_add(step / 2) {
        Some(sum) => sum / step * step,
        None => u64::MAX,
    }
}
