//! `Monotonic`: the only time the decisions know.
//!
//! Refuses: reading a clock. `sys::clock` does that, and stamps wall time for people.

use std::ops::Add;
use std::time::Duration;

/// Nanoseconds on CLOCK_BOOTTIME: since boot, sleep included, never stepped
/// (clock_gettime(2)). Our own integer, so that it can be stored, printed and simulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(u64);

impl Monotonic {
    pub const ZERO: Monotonic = Monotonic(0);

    pub const fn from_ns(ns: u64) -> Monotonic {
        Monotonic(ns)
    }

    pub const fn as_ns(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero when `earlier` is in the future.
    pub fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Monotonic {
    type Output = Monotonic;

    /// Saturates: a deadline beyond 584 years is "never", not an overflow.
    fn add(self, rhs: Duration) -> Monotonic {
        let ns = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Monotonic(self.0.saturating_add(ns))
    }
}
