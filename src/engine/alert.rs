//! What a person must be told: the k-th failure and its repeats, the recovery, and what no
//! restart can mend.
//!
//! Refuses: sending. A row is kept with the failure that caused it, in the same transaction.

use std::collections::BTreeSet;

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::engine::effect::{Alert, AlertKind, Effect, Effects, Mark, Record, RecordKind};
use crate::engine::{Engine, plural};
use crate::unit::spec;

/// Whether the k-th failure of an episode raises an alert: exactly at `after_failures`, and
/// then every `repeat_every` (0 = never again).
pub(crate) fn is_due(alert: &spec::Alert, failures: u32) -> bool {
    let after = alert.after_failures.max(1);
    failures == after
        || (failures > after
            && alert.repeat_every > 0
            && (failures - after).is_multiple_of(alert.repeat_every))
}

impl Engine {
    /// After a failure was counted. One that happened while a requirement was down is blamed
    /// on that: the requirement's own alert names this unit.
    pub(crate) fn alert_failure(
        &mut self,
        name: &UnitName,
        run: RunId,
        sentence: &str,
        blame: &[UnitName],
        fx: &mut Effects,
    ) {
        let Some(unit) = self.units.get_mut(name) else { return };
        if !blame.is_empty() {
            return fx.mark(Mark::FailureBlamed);
        }
        unit.durable.own_failures = unit.durable.own_failures.saturating_add(1);
        let (own, spec) = (unit.durable.own_failures, unit.spec.clone());
        let retries = u32::try_from(spec.restart.delays.len()).unwrap_or(u32::MAX);
        if own == retries.saturating_add(1) {
            fx.record(name, Some(run), RecordKind::RetryExhausted { what: "restart", attempts: retries });
        }
        if !is_due(&spec.alert, own) {
            return;
        }
        fx.mark(if unit.durable.alerted { Mark::AlertRepeated } else { Mark::AlertRaised });
        unit.durable.alerted = true;
        let affected = self.dependents_of(name);
        let mut message = format!("{name} failed {own} time{} in a row: {sentence}", plural(own));
        if !affected.is_empty() {
            let names: Vec<&str> = affected.iter().map(UnitName::as_str).collect();
            message = format!("{message}; affected: {}", names.join(", "));
        }
        self.raise(name, AlertKind::Failing, format!("{own}"), message, fx);
    }

    /// The episode is over: exactly one recovery, if anybody was told of the trouble.
    pub(crate) fn alert_recovery(&mut self, name: &UnitName, failures: u32, fx: &mut Effects) {
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.durable.own_failures = 0;
        if !std::mem::take(&mut unit.durable.alerted) {
            return;
        }
        fx.mark(Mark::RecoveryRaised);
        let message = format!("{name} has recovered after {failures} failure{}", plural(failures));
        self.raise(name, AlertKind::Recovered, "over".to_string(), message, fx);
    }

    /// Keeps one alert of this unit; `what` tells it from others of the same kind and episode.
    pub(crate) fn raise(
        &mut self,
        name: &UnitName,
        kind: AlertKind,
        what: String,
        message: String,
        fx: &mut Effects,
    ) {
        let affected = self.dependents_of(name);
        let Some(unit) = self.units.get(name) else { return };
        let (episode, failures) = (unit.durable.episode, unit.durable.own_failures);
        let key = format!("{name}/{episode}/{}/{what}", kind.as_str());
        let record = RecordKind::AlertRaised { key: key.clone(), kind, message: message.clone() };
        fx.record(name, None, record);
        let channels = unit.spec.alert.channels.clone();
        let unit = Some(name.clone());
        fx.push(Effect::Alert(Alert { key, unit, kind, message, failures, episode, affected, channels }));
    }

    /// An alert about the daemon itself.
    pub(crate) fn raise_of_engine(kind: AlertKind, what: String, message: String, fx: &mut Effects) {
        let key = format!("upright/{}/{what}", kind.as_str());
        let raised = RecordKind::AlertRaised { key: key.clone(), kind, message: message.clone() };
        fx.push(Effect::Record(Record { unit: None, run: None, kind: raised, state: None }));
        fx.push(Effect::Alert(Alert {
            key,
            unit: None,
            kind,
            message,
            failures: 0,
            episode: 0,
            affected: Vec::new(),
            channels: None,
        }));
    }

    /// Every unit that requires this one, directly or through others.
    pub(crate) fn dependents_of(&self, name: &UnitName) -> Vec<UnitName> {
        let mut found = BTreeSet::new();
        let mut open = vec![name.clone()];
        while let Some(next) = open.pop() {
            for other in self.neighbours.get(&next).into_iter().flatten() {
                let needs = self.units.get(other).is_some_and(|unit| unit.spec.unit.requires.contains(&next));
                if needs && found.insert(other.clone()) {
                    open.push(other.clone());
                }
            }
        }
        found.into_iter().filter(|other| other != name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fourth_failure_and_every_fourth_after_it() {
        let alert = spec::Alert { after_failures: 4, channels: None, repeat_every: 4 };
        let due: Vec<u32> = (1..=17).filter(|k| is_due(&alert, *k)).collect();
        assert_eq!(due, [4, 8, 12, 16]);
        let once = spec::Alert { repeat_every: 0, ..alert.clone() };
        assert_eq!((1..=17).filter(|k| is_due(&once, *k)).collect::<Vec<_>>(), [4]);
        let first = spec::Alert { after_failures: 1, repeat_every: 3, ..alert };
        assert_eq!((1..=8).filter(|k| is_due(&first, *k)).collect::<Vec<_>>(), [1, 4, 7]);
    }
}
