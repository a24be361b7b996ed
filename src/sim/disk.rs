//! The store of the fake world: it takes batches, commits them late and in order, and loses a
//! tail of them with the engine.
//!
//! Refuses: losing what it said was committed.

use std::time::Duration;

use crate::engine::adopt::Boot;
use crate::engine::effect::{Effect, Record, RecordKind};
use crate::sim::tape::Domain;
use crate::sim::world::{Batch, Happening, World};

impl World {
    /// The store takes what a step gave it; it commits later, in order.
    pub fn submit(&mut self, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        self.records_due += records_in(&effects);
        let number = self.pending.last().map_or(0, |batch| batch.number) + 1;
        self.pending.push(Batch { number, effects });
        let max = if self.healed { 5 } else { self.faults.commit_ms_max };
        let wait = self.some_ms(Domain::Store, max);
        let at = (self.now + wait).max(self.outage_until);
        let engine = self.engine;
        self.at(at, Happening::Commits { engine, batch: number });
    }

    /// A planted bug: these were said, and are not kept.
    pub fn lose(&mut self, effects: &[Effect]) {
        self.records_due += records_in(effects);
    }

    /// Everything up to `number` becomes durable; what waited for it is handed back.
    pub fn commit(&mut self, number: u64) -> Vec<Effect> {
        let mut done = Vec::new();
        while self.pending.first().is_some_and(|batch| batch.number <= number) {
            let batch = self.pending.remove(0);
            self.records_kept += records_in(&batch.effects);
            for effect in batch.effects {
                match effect {
                    Effect::SaveEngine(row) => self.engine_row = row,
                    Effect::Save { unit, durable } => {
                        self.rows.insert(unit, durable);
                    }
                    Effect::Forget { unit } => {
                        self.rows.remove(&unit);
                    }
                    Effect::Record(record) => self.record(record),
                    Effect::Alert(alert) => {
                        self.alerts.entry(alert.key.clone()).or_insert(alert);
                    }
                    Effect::Release { .. } | Effect::Reply { .. } | Effect::Finished => done.push(effect),
                    Effect::Spawn { .. }
                    | Effect::Signal { .. }
                    | Effect::End { .. }
                    | Effect::SignalAll { .. }
                    | Effect::KillAll { .. }
                    | Effect::Probe { .. }
                    | Effect::Check { .. }
                    | Effect::Resync { .. }
                    | Effect::WatchLog { .. } => {}
                }
            }
        }
        done
    }

    /// `unit.failed` is unique on its run: the store refuses the second.
    fn record(&mut self, record: Record) {
        if let (RecordKind::Failed { .. }, Some(run)) = (&record.kind, record.run)
            && !self.failed_runs.insert(run)
        {
            return;
        }
        self.events.push(record);
    }

    /// kill -9 of the engine: what was not committed may or may not have reached the disk. One that
    /// had something to commit, all of which did, may as well have left in order.
    pub fn crash(&mut self) {
        let last = self.pending.last().map_or(0, |batch| batch.number);
        let first = self.pending.first().map_or(0, |batch| batch.number);
        let kept = self.tape.below(Domain::Crash, last.saturating_sub(first) + 2);
        let left = last > 0 && first + kept > last;
        if kept > 0 {
            let _ = self.commit(first + kept - 1); // nobody is there to be told
        }
        let lost = self.pending.drain(..).map(|batch| records_in(&batch.effects)).sum::<u64>();
        self.records_due -= lost;
        self.engine += 1;
        let wait = self.some_ms(Domain::Crash, 1_000) + Duration::from_millis(20);
        self.after(wait, Happening::EngineStarts { boot: if left { Boot::Relieved } else { Boot::Resumed } });
    }
}

fn records_in(effects: &[Effect]) -> u64 {
    effects.iter().map(|effect| u64::from(matches!(effect, Effect::Record(_)))).sum()
}
