//! Durations counted in fixed buckets: an observation is three additions to atomics.
//!
//! Refuses: a lock, memory of its own making, a clock. Whoever observes has the duration already.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Most bounds of one histogram.
const BOUNDS_MAX: usize = 16;

const fn us(us: u64) -> u64 {
    us * 1_000
}

const fn ms(ms: u64) -> u64 {
    us(ms * 1_000)
}

/// Bounds, in nanoseconds, of what a machine does: a commit, a turn of a loop, an answer.
pub const QUICK: &[u64] = &[
    us(100),
    us(250),
    us(500),
    ms(1),
    us(2_500),
    ms(5),
    ms(10),
    ms(25),
    ms(50),
    ms(100),
    ms(250),
    ms(500),
    ms(1_000),
    ms(2_500),
    ms(10_000),
];

/// Bounds of what services do: starting, stopping, being down. 5, 10 and 15 s are the default
/// delays of restarts, so what is late by a second falls into the bucket behind.
pub const SLOW: &[u64] = &[
    ms(5),
    ms(10),
    ms(25),
    ms(100),
    ms(250),
    ms(500),
    ms(1_000),
    ms(2_500),
    ms(5_000),
    ms(6_000),
    ms(11_000),
    ms(16_000),
    ms(30_000),
    ms(60_000),
    ms(300_000),
    ms(1_800_000),
];

/// Counts since the process began.
#[derive(Debug)]
pub struct Histogram {
    bounds_ns: &'static [u64],
    /// One a bound, and one for what is beyond the last.
    counts: [AtomicU64; BOUNDS_MAX + 1],
    sum_ns: AtomicU64,
}

/// What a histogram has counted, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// Upper bound in seconds, and how many observations were not above it.
    pub buckets: Vec<(f64, u64)>,
    pub count: u64,
    pub sum_s: f64,
}

impl Histogram {
    /// `bounds_ns` ascending, at most 16: what lies beyond is not a bucket of its own.
    pub const fn new(bounds_ns: &'static [u64]) -> Histogram {
        Histogram {
            bounds_ns,
            counts: [const { AtomicU64::new(0) }; BOUNDS_MAX + 1],
            sum_ns: AtomicU64::new(0),
        }
    }

    pub fn observe(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bounds = self.bounds_ns.iter().take(BOUNDS_MAX);
        let place = bounds.clone().position(|bound| ns <= *bound).unwrap_or(bounds.len());
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The buckets add up to the count, whoever observes meanwhile.
    pub fn read(&self) -> Counted {
        let mut count = 0;
        let mut buckets = Vec::with_capacity(self.bounds_ns.len());
        for (place, cell) in self.counts.iter().enumerate() {
            count += cell.load(Ordering::Relaxed);
            if let Some(bound) = self.bounds_ns.get(place).filter(|_| place < BOUNDS_MAX) {
                buckets.push((seconds(*bound), count));
            }
        }
        Counted { buckets, count, sum_s: seconds(self.sum_ns.load(Ordering::Relaxed)) }
    }
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(QUICK);
        for us in [0, 100, 101, 1_000_000, 60_000_000] {
            histogram.observe(Duration::from_micros(us));
        }
        let counted = histogram.read();
        assert_eq!(counted.buckets.first(), Some(&(0.0001, 2)));
        assert_eq!(counted.buckets.get(1), Some(&(0.000_25, 3)));
        assert_eq!(counted.buckets.last(), Some(&(10.0, 4)), "what is beyond the last bound is in none");
        assert_eq!(counted.count, 5);
        assert!((counted.sum_s - 61.000_201).abs() < 1e-9, "{}", counted.sum_s);
    }

    #[test]
    fn bounds_ascend_and_have_room() {
        for bounds in [QUICK, SLOW] {
            assert!(bounds.len() <= BOUNDS_MAX);
            assert!(bounds.is_sorted_by(|a, b| a < b));
        }
    }
}
