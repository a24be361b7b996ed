//! The set of units as the files have it: added, changed, removed; the edges between them.
//!
//! Refuses: files and their mistakes. A set arrives complete and checked, or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::Engine;
use crate::engine::durable::{Desired, UnitDurable};
use crate::engine::effect::{Effect, Effects, Mark, RecordKind};
use crate::unit::spec::UnitSpec;

impl Engine {
    /// Units that are the same feel nothing; a changed one goes by its new file at its next start.
    pub(crate) fn on_configured(&mut self, now: Monotonic, units: Vec<Arc<UnitSpec>>, fx: &mut Effects) {
        let names: BTreeSet<UnitName> = units.iter().map(|spec| spec.name.clone()).collect();
        let gone: Vec<UnitName> = self.units.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            let Some(unit) = self.units.get_mut(&name) else { continue };
            if !unit.at_rest() {
                fx.mark(Mark::RemovedWhileRunning);
            }
            unit.removed = true;
            self.touched.insert(name.clone());
            self.queue_around(&name);
        }
        for spec in units {
            let name = spec.name.clone();
            let Some(unit) = self.units.get_mut(&name) else {
                self.insert_unit(spec, UnitDurable::default(), now);
                continue;
            };
            if unit.removed {
                unit.removed = false;
                self.queue.insert(name.clone());
            }
            let Some(unit) = self.units.get_mut(&name) else { continue };
            if unit.spec == spec {
                unit.next_spec = None;
            } else if unit.at_rest() {
                unit.spec = spec;
                self.touched.insert(name.clone());
            } else {
                unit.next_spec = Some(spec);
            }
        }
        self.rebuild_edges();
        self.pull();
        for name in names {
            self.queue_around(&name);
        }
    }

    /// What a wanted unit needs or wants is wanted too, unless an operator said no.
    pub(crate) fn pull(&mut self) {
        let mut open: Vec<UnitName> =
            self.units.iter().filter(|(_, unit)| unit.wanted()).map(|(name, _)| name.clone()).collect();
        let mut seen = BTreeSet::new();
        while let Some(next) = open.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let Some(unit) = self.units.get_mut(&next) else { continue };
            if unit.durable.ordered == Some(Desired::Down) {
                continue;
            }
            unit.pulled = true;
            let section = &unit.spec_to_start().unit;
            open.extend(section.requires.iter().chain(&section.wants).cloned());
        }
    }

    pub(crate) fn rebuild_edges(&mut self) {
        let mut neighbours: BTreeMap<UnitName, BTreeSet<UnitName>> = BTreeMap::new();
        let mut followers: BTreeMap<UnitName, BTreeSet<UnitName>> = BTreeMap::new();
        for (name, unit) in &self.units {
            for section in [&unit.spec.unit, &unit.spec_to_start().unit] {
                let mentioned = section
                    .requires
                    .iter()
                    .chain(&section.wants)
                    .chain(&section.after)
                    .chain(&section.before)
                    .chain(&section.conflicts);
                for other in mentioned.filter(|other| *other != name) {
                    neighbours.entry(name.clone()).or_default().insert(other.clone());
                    neighbours.entry(other.clone()).or_default().insert(name.clone());
                }
                for other in section.requires.iter().chain(&section.after) {
                    followers.entry(other.clone()).or_default().insert(name.clone());
                }
                for other in &section.before {
                    followers.entry(name.clone()).or_default().insert(other.clone());
                }
            }
        }
        self.neighbours = neighbours;
        self.followers = followers;
    }

    /// Gone from the files and at rest: nothing of it stays.
    pub(crate) fn forget(&mut self, name: &UnitName, fx: &mut Effects) {
        let Some(unit) = self.units.remove(name) else { return };
        if let Some(at) = unit.armed {
            self.deadlines.remove(&(at, name.clone()));
        }
        self.slot_waiters.remove(&(unit.since, name.clone()));
        self.order_waiters.remove(name);
        fx.record(name, None, RecordKind::Removed);
        fx.push(Effect::Forget { unit: name.clone() });
        self.touched.insert(name.clone());
        if let Some(neighbours) = self.neighbours.get(name) {
            self.queue.extend(neighbours.iter().cloned());
        }
    }
}
