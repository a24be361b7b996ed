//! What people asked not to be told of now: mutes, each with an end, and episodes that somebody has taken.
//!
//! Refuses: to forget. What is not told stands in the store as muted, with its reason; and when a mute ends,
//! the newest alert of each unit is told.

use std::collections::BTreeMap;

use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::effect::{Alert, AlertKind};

/// What is said of a row that a mute held back and a newer one has replaced.
pub const MUTED: &str = "muted: a newer alert was told when the mute ended";

/// What is said of a repeated failure whose episode somebody has taken.
pub const ACKNOWLEDGED: &str = "acknowledged: somebody has taken this episode";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quiet {
    /// Until then nothing is sent, of no unit and not of the daemon.
    pub all: Option<Monotonic>,
    pub units: BTreeMap<UnitName, Monotonic>,
    /// By unit: further failures of this episode are not told.
    pub acked: BTreeMap<UnitName, u64>,
}

impl Quiet {
    /// Mutes these units, or everything, until then; or ends that. A mute that is there is replaced.
    pub fn mute(&mut self, units: &[UnitName], until: Option<Monotonic>) {
        match (units, until) {
            ([], Some(until)) => self.all = Some(until),
            ([], None) => {
                self.all = None;
                self.units.clear();
            }
            (units, Some(until)) => self.units.extend(units.iter().map(|unit| (unit.clone(), until))),
            (units, None) => units.iter().for_each(|unit| _ = self.units.remove(unit)),
        }
    }

    /// Somebody has taken this episode. An older one than is known changes nothing.
    pub fn ack(&mut self, unit: &UnitName, episode: u64) {
        let known = self.acked.entry(unit.clone()).or_insert(episode);
        *known = episode.max(*known);
    }

    /// Mutes that are over go.
    pub fn expire(&mut self, now: Monotonic) {
        self.all = self.all.filter(|until| *until > now);
        self.units.retain(|_, until| *until > now);
    }

    pub fn is_muting(&self) -> bool {
        self.all.is_some() || !self.units.is_empty()
    }

    /// Until when this alert is held back; None: it is not. A test is asked for by whoever mutes.
    pub fn holds(&self, alert: &Alert) -> Option<Monotonic> {
        if alert.kind == AlertKind::Test {
            return None;
        }
        self.all.max(alert.unit.as_ref().and_then(|unit| self.units.get(unit)).copied())
    }

    /// Whether it repeats what somebody knows. The end of an episode is always told.
    pub fn is_acked(&self, alert: &Alert) -> bool {
        let episode = alert.unit.as_ref().and_then(|unit| self.acked.get(unit));
        alert.kind == AlertKind::Failing && episode == Some(&alert.episode)
    }

    pub fn next_end(&self) -> Option<Monotonic> {
        self.all.into_iter().chain(self.units.values().copied()).min()
    }
}
