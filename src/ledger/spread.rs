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
    #[serde(with = "flat")]
    cells: BTreeMap<u64, u64>,
}

/// Count, sum and greatest alone: what is kept of every single unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub count: u64,
    pub sum: u64,
    pub max: u64,
}

impl Extent {
    pub fn add(&mut self, us: u64) {
        self.count += 1;
        self.sum = self.sum.saturating_add(us);
        self.max = self.max.max(us);
    }

    pub fn merge(&mut self, other: &Extent) {
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// None without a sample.
    pub fn mean(&self) -> Option<f64> {
        mean(self.sum, self.count)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a mean is shown to a microsecond")]
fn mean(sum: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum as f64 / count as f64)
}

/// Cells as one list, length and how many in turn: a third of the time that a JSON object takes to read.
mod flat {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(cells: &BTreeMap<u64, u64>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(cells.iter().flat_map(|(us, count)| [*us, *count]))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<BTreeMap<u64, u64>, D::Error> {
        let list = Vec::<u64>::deserialize(from)?;
        Ok(list.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.get(1)?))).collect())
    }
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
        mean(self.sum, self.count)
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
