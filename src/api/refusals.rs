//! How many refused requests are put on record, so that a flood of them cannot fill the disk.
//!
//! Refuses: a clock; and losing count of what is not put on record.

use std::time::Duration;

use crate::base::time::Monotonic;

/// Records in a row that are always there.
const BURST: u32 = 20;

/// After them one in so long: at most 8,640 in a day.
const EVERY: Duration = Duration::from_secs(10);

/// A bucket of records.
#[derive(Clone, Debug)]
pub struct Refusals {
    left: u32,
    /// Since when the next one comes back.
    since: Monotonic,
    unrecorded: u64,
}

impl Refusals {
    pub fn new(now: Monotonic) -> Refusals {
        Refusals { left: BURST, since: now, unrecorded: 0 }
    }

    /// Counts a refusal. `Some`: put it on record, and that so many before it were not.
    pub fn count(&mut self, now: Monotonic) -> Option<u64> {
        while self.left < BURST && self.since + EVERY <= now {
            self.left += 1;
            self.since = self.since + EVERY;
        }
        if self.left == BURST {
            self.since = now;
        }
        if self.left == 0 {
            self.unrecorded += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.unrecorded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_written_down() {
        let begin = Monotonic::from_ns(1);
        let mut refusals = Refusals::new(begin);
        let recorded = (0..1_000).filter(|_| refusals.count(begin).is_some()).count();
        assert_eq!(recorded, 20);
        assert_eq!(refusals.count(begin + EVERY), Some(980));
        assert_eq!(refusals.count(begin + EVERY), None);
        let later = begin + EVERY * 1_000;
        assert_eq!(refusals.count(later), Some(1));
        assert_eq!((0..50).filter(|_| refusals.count(later).is_some()).count(), 19);
    }
}
