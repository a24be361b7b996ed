//! What is known when metrics are asked for, and which row of the table says which of it.
//!
//! Refuses: looking. It is filled by whoever knows.

use crate::base::histogram::Counted;
use crate::engine::view::StateWord;
use crate::sys::usage::Usage;
use crate::telemetry::metrics::{Family, Id, Listener, Value};

/// The words of `upright_mode`.
const MODES: [&str; 2] = ["normal", "safe"];

/// The daemon's own processes.
const PROCESSES: [&str; 2] = ["keeper", "engine"];

/// All of it, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub version: &'static str,
    pub mode: &'static str,
    pub uptime_s: f64,
    /// Since 1970.
    pub keeper_start_s: f64,
    pub engine_start_s: f64,
    pub engine_starts: u64,
    pub fatal_stops: u64,
    /// Codes of what ails the daemon, each once for each trouble.
    pub troubles: Vec<String>,
    pub config_errors: u64,
    pub config_unapplied: bool,
    /// None: nothing was committed yet.
    pub events: Option<u64>,
    pub units: Vec<UnitFacts>,
    pub units_unseen: u64,
    /// Of the keeper and of the engine.
    pub processes: [Option<Usage>; 2],
    pub histograms: Vec<(Id, Counted)>,
    /// (method, pattern, durations)
    pub requests: Vec<(String, String, Counted)>,
    pub store_pending: u64,
    /// (name, bytes)
    pub store_files: Vec<(&'static str, u64)>,
    pub log_stored_bytes: u64,
    pub log_dropped_bytes: u64,
    pub log_rotations: u64,
    pub log_blocked: u64,
    /// None: the store did not answer in time.
    pub alerts_raised: Option<u64>,
    pub channels: Vec<Channel>,
}

/// One unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitFacts {
    pub name: String,
    pub state: &'static str,
    /// Since 1970.
    pub state_start_s: f64,
    pub wanted: bool,
    pub ready: bool,
    pub healthy: Option<bool>,
    pub restarts: u64,
    pub failures: u64,
    pub episode_failures: u64,
    /// None: it has written nothing since this engine began.
    pub log_stored_bytes: Option<u64>,
    /// None: nothing of it lives, or it was not looked at.
    pub usage: Option<Usage>,
}

/// One channel of alerts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Channel {
    pub name: String,
    /// None: the store did not answer in time.
    pub waiting: Option<Waiting>,
    pub delivered: u64,
    pub failed: u64,
    pub parked: u64,
}

/// What the store says of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waiting {
    pub pending: u64,
    pub oldest_s: f64,
    pub parked: u64,
}

/// Tells every row, in the order of the table.
pub fn tell(facts: &Facts, to: &mut dyn Listener) {
    for id in Id::ALL {
        let family = id.family();
        to.family(family);
        tell_row(*id, facts, &mut Row { family, to });
    }
}

/// Where the samples of one row go.
struct Row<'t> {
    family: &'static Family,
    to: &'t mut dyn Listener,
}

impl Row<'_> {
    fn say(&mut self, labels: &[&str], value: Value<'_>) {
        self.to.sample(self.family, labels, value);
    }

    fn count(&mut self, count: u64) {
        self.say(&[], Value::Count(count));
    }

    /// A counter that is not known now has no sample: 0 would read as if it had begun anew.
    fn maybe(&mut self, count: Option<u64>) {
        count.into_iter().for_each(|count| self.count(count));
    }

    fn number(&mut self, number: f64) {
        self.say(&[], Value::Number(number));
    }

    /// 1 for the word that it is, 0 for the others.
    fn states(&mut self, before: &[&str], now: &str, words: impl Iterator<Item = &'static str>) {
        for word in words {
            let labels: Vec<&str> = before.iter().copied().chain([word]).collect();
            self.say(&labels, Value::Count(u64::from(word == now)));
        }
    }

    fn units<'f, V: Into<Option<Value<'f>>>>(&mut self, facts: &'f Facts, of: impl Fn(&'f UnitFacts) -> V) {
        for unit in &facts.units {
            if let Some(value) = of(unit).into() {
                self.say(&[&unit.name], value);
            }
        }
    }

    fn usages<'f>(&mut self, facts: &'f Facts, of: impl Fn(&'f Usage) -> Option<Value<'f>>) {
        self.units(facts, |unit| unit.usage.as_ref().and_then(&of));
    }

    fn processes<'f>(&mut self, facts: &'f Facts, of: impl Fn(&'f Usage) -> Value<'f>) {
        for (name, usage) in PROCESSES.iter().zip(&facts.processes) {
            if let Some(usage) = usage {
                self.say(&[name], of(usage));
            }
        }
    }

    fn waiting(&mut self, facts: &Facts, of: impl Fn(&Waiting) -> Value<'static>) {
        for channel in &facts.channels {
            if let Some(waiting) = &channel.waiting {
                self.say(&[&channel.name], of(waiting));
            }
        }
    }
}

fn tell_row(id: Id, facts: &Facts, row: &mut Row<'_>) {
    use Value::Count;
    match id {
        Id::Build => row.say(&[facts.version], Count(1)),
        Id::Mode => row.states(&[], facts.mode, MODES.into_iter()),
        Id::Uptime => row.number(facts.uptime_s),
        Id::KeeperStart => row.number(facts.keeper_start_s),
        Id::EngineStart => row.number(facts.engine_start_s),
        Id::EngineStarts => row.count(facts.engine_starts),
        Id::FatalStops => row.count(facts.fatal_stops),
        Id::Trouble => tell_troubles(facts, row),
        Id::ConfigErrors => row.count(facts.config_errors),
        Id::ConfigUnapplied => row.count(u64::from(facts.config_unapplied)),
        Id::Events => row.maybe(facts.events),
        Id::Units => tell_units_by_state(facts, row),
        Id::UnitsUnseen => row.count(facts.units_unseen),
        Id::StorePending => row.count(facts.store_pending),
        Id::StoreSize => facts.store_files.iter().for_each(|(file, bytes)| row.say(&[file], Count(*bytes))),
        Id::Request => {
            for (method, route, counted) in &facts.requests {
                row.say(&[method, route], Value::Histogram(counted));
            }
        }
        Id::LogStored => row.count(facts.log_stored_bytes),
        Id::LogDropped => row.count(facts.log_dropped_bytes),
        Id::LogRotations => row.count(facts.log_rotations),
        Id::LogBlocked => row.count(facts.log_blocked),
        Id::AlertsRaised => row.maybe(facts.alerts_raised),
        Id::AlertsPending => row.waiting(facts, |waiting| Count(waiting.pending)),
        Id::AlertsOldest => row.waiting(facts, |waiting| Value::Number(waiting.oldest_s)),
        Id::AlertsParked => row.waiting(facts, |waiting| Count(waiting.parked)),
        Id::Deliveries => tell_deliveries(facts, row),
        Id::Restart
        | Id::RestartLate
        | Id::Ready
        | Id::Downtime
        | Id::Stop
        | Id::Health
        | Id::Resync
        | Id::LoopLag
        | Id::Turn
        | Id::Commit => tell_histogram(id, facts, row),
        Id::ProcessCpu => row.processes(facts, |usage| Value::Number(usage.cpu_s)),
        Id::ProcessMemory => row.processes(facts, |usage| Count(usage.resident_bytes)),
        Id::ProcessRead => row.processes(facts, |usage| Count(usage.read_bytes)),
        Id::ProcessWritten => row.processes(facts, |usage| Count(usage.written_bytes)),
        Id::ProcessFds => row.processes(facts, |usage| Count(usage.fds)),
        Id::ProcessTasks => row.processes(facts, |usage| Count(usage.tasks)),
        Id::UnitState
        | Id::UnitStateStart
        | Id::UnitWanted
        | Id::UnitReady
        | Id::UnitHealthy
        | Id::UnitRestarts
        | Id::UnitFailures
        | Id::UnitEpisodeFailures
        | Id::UnitLogStored
        | Id::UnitCpu
        | Id::UnitMemory
        | Id::UnitGroupMemory
        | Id::UnitRead
        | Id::UnitWritten
        | Id::UnitFds
        | Id::UnitProcesses
        | Id::UnitTasks => tell_units(id, facts, row),
    }
}

fn tell_units(id: Id, facts: &Facts, row: &mut Row<'_>) {
    use Value::{Count, Number};
    let flag = |is: bool| Count(u64::from(is));
    match id {
        Id::UnitState => {
            for unit in &facts.units {
                row.states(&[&unit.name], unit.state, StateWord::ALL.into_iter().map(StateWord::as_str));
            }
        }
        Id::UnitStateStart => row.units(facts, |unit| Number(unit.state_start_s)),
        Id::UnitWanted => row.units(facts, |unit| flag(unit.wanted)),
        Id::UnitReady => row.units(facts, |unit| flag(unit.ready)),
        Id::UnitHealthy => row.units(facts, |unit| unit.healthy.map(flag)),
        Id::UnitRestarts => row.units(facts, |unit| Count(unit.restarts)),
        Id::UnitFailures => row.units(facts, |unit| Count(unit.failures)),
        Id::UnitEpisodeFailures => row.units(facts, |unit| Count(unit.episode_failures)),
        Id::UnitLogStored => row.units(facts, |unit| unit.log_stored_bytes.map(Count)),
        Id::UnitCpu => row.usages(facts, |usage| Some(Number(usage.cpu_s))),
        Id::UnitMemory => row.usages(facts, |usage| Some(Count(usage.resident_bytes))),
        Id::UnitGroupMemory => row.usages(facts, |usage| usage.group_memory_bytes.map(Count)),
        Id::UnitRead => row.usages(facts, |usage| Some(Count(usage.read_bytes))),
        Id::UnitWritten => row.usages(facts, |usage| Some(Count(usage.written_bytes))),
        Id::UnitFds => row.usages(facts, |usage| Some(Count(usage.fds))),
        Id::UnitProcesses => row.usages(facts, |usage| Some(Count(usage.processes))),
        Id::UnitTasks => row.usages(facts, |usage| Some(Count(usage.tasks))),
        _ => {} // `tell_row` sends no other
    }
}

fn tell_units_by_state(facts: &Facts, row: &mut Row<'_>) {
    for word in StateWord::ALL.map(StateWord::as_str) {
        let there = facts.units.iter().filter(|unit| unit.state == word).count();
        row.say(&[word], Value::Count(u64::try_from(there).unwrap_or(u64::MAX)));
    }
}

fn tell_troubles(facts: &Facts, row: &mut Row<'_>) {
    let mut codes: Vec<&str> = facts.troubles.iter().map(String::as_str).collect();
    codes.sort_unstable();
    for same in codes.chunk_by(|a, b| a == b) {
        if let Some(code) = same.first() {
            row.say(&[code], Value::Count(u64::try_from(same.len()).unwrap_or(u64::MAX)));
        }
    }
}

fn tell_histogram(id: Id, facts: &Facts, row: &mut Row<'_>) {
    if let Some((_, counted)) = facts.histograms.iter().find(|(of, _)| *of == id) {
        row.say(&[], Value::Histogram(counted));
    }
}

fn tell_deliveries(facts: &Facts, row: &mut Row<'_>) {
    for channel in &facts.channels {
        let counts =
            [("delivered", channel.delivered), ("failed", channel.failed), ("parked", channel.parked)];
        for (outcome, count) in counts {
            row.say(&[&channel.name, outcome], Value::Count(count));
        }
    }
}
