//! A window that begins in the middle of an hour: the hour is gone through again, with what was open at
//! its begin.
//!
//! Refuses: reading records. Whoever keeps them feeds them.

use crate::ledger::Fact;
use crate::ledger::carry::Carry;
use crate::ledger::fold::{Closed, Fold, hour_of};
use crate::ledger::tally::Both;

/// The records of some hours, gone through again from where `before` was true.
#[derive(Debug)]
pub struct Replay {
    fold: Fold,
    from_us: i64,
    /// Hours from here on are left out.
    until_us: i64,
    counting: bool,
    sum: Both,
}

impl Replay {
    /// Counts from `from_us` on, in hours that begin before `until_us`.
    pub fn new(before: Carry, from_us: i64, until_us: i64) -> Replay {
        let (fold, sum) = (Fold::from_carry(before), Both::default());
        Replay { fold, from_us, until_us, counting: false, sum }
    }

    /// The next record. Those after the last of the hours do no harm: the first of them says how long the
    /// last hour was.
    pub fn feed(&mut self, fact: &Fact<'_>) {
        if !self.counting && fact.ts_us >= self.from_us {
            self.fold.count_from(self.from_us, Some(fact), &mut |_| ());
            self.counting = true;
        }
        let Replay { fold, sum, counting, .. } = self;
        let hours = hour_of(self.from_us)..self.until_us;
        fold.feed(fact, &mut |closed: Closed| {
            if *counting && hours.contains(&closed.hour_us) {
                sum.merge(&closed.tally);
            }
        });
        if !self.counting {
            self.fold.tally = Both::default();
        }
    }

    /// What they add up to; there is no record until `now_us` any more.
    pub fn finish(mut self, now_us: i64) -> Both {
        let hours = hour_of(self.from_us)..self.until_us;
        if !self.counting {
            self.fold.count_from(self.from_us.min(now_us), None, &mut |_| ());
        }
        let mut sum = self.sum;
        self.fold.pass(now_us, &mut |closed: Closed| {
            if hours.contains(&closed.hour_us) {
                sum.merge(&closed.tally);
            }
        });
        if self.fold.hour_us.is_some_and(|hour| hours.contains(&hour)) {
            sum.merge(&self.fold.tally);
        }
        sum
    }
}
