//! The table of metrics: each with its name, type, unit, labels and what it says. `/metrics`, its JSON and
//! `docs/metrics.md` are made from it.
//!
//! Refuses: a metric that is not a row, and a label whose values nobody bounds. Labels are names of units, of
//! channels, of routes, and words of closed lists.

pub mod facts;
pub mod text;

use crate::base::histogram::Counted;

/// Types of OpenMetrics 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Gauge,
    Counter,
    Info,
    StateSet,
    Histogram,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Info => "info",
            Kind::StateSet => "stateset",
            Kind::Histogram => "histogram",
        }
    }
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Without `_total` and `_info`, which its samples have.
    pub name: &'static str,
    pub kind: Kind,
    /// `seconds`, `bytes`, or none.
    pub unit: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

impl Family {
    /// The name of its samples (of a histogram: without `_bucket`, `_sum`, `_count`).
    pub fn sample_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Info => format!("{}_info", self.name),
            Kind::Gauge | Kind::StateSet | Kind::Histogram => self.name.to_string(),
        }
    }
}

/// What a sample says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'v> {
    Count(u64),
    Number(f64),
    Histogram(&'v Counted),
}

/// Hears every family, in the order of the table, each followed by its samples.
pub trait Listener {
    fn family(&mut self, family: &'static Family);

    /// `labels`: values, in the order of `Family::labels`.
    fn sample(&mut self, family: &'static Family, labels: &[&str], value: Value<'_>);
}

macro_rules! families {
    ($($id:ident = $kind:ident $name:literal $unit:literal [$($label:literal),*] $help:literal;)*) => {
        /// A row of the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Id { $($id,)* }

        impl Id {
            pub const ALL: &'static [Id] = &[$(Id::$id,)*];

            pub fn family(self) -> &'static Family {
                match self {
                    $(Id::$id => &Family {
                        name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], help: $help,
                    },)*
                }
            }
        }
    };
}

families! {
    Build = Info "upright_build" "" ["version"] "The version of the daemon.";
    Mode = StateSet "upright_mode" "" ["upright_mode"] "normal, or safe: engines died too often, and files are not followed by themselves.";
    Uptime = Gauge "upright_uptime_seconds" "seconds" [] "Since the keeper began.";
    KeeperStart = Gauge "upright_keeper_start_time_seconds" "seconds" [] "When the keeper began, since 1970.";
    EngineStart = Gauge "upright_engine_start_time_seconds" "seconds" [] "When this engine began, since 1970.";
    EngineStarts = Counter "upright_engine_starts" "" [] "Engines that this keeper has started, upgrades included; 1 = none has ended. Begins anew with the keeper.";
    FatalStops = Counter "upright_fatal_stops" "" [] "Times the whole ended without having stopped its units. Kept in the store.";
    Trouble = Gauge "upright_trouble" "" ["code"] "What ails the daemon itself now, by its code; no sample when all is well.";
    ConfigErrors = Gauge "upright_config_errors" "" [] "Mistakes in the files: what they spoil is in force as it last was without.";
    ConfigUnapplied = Gauge "upright_config_unapplied" "" [] "1 = the files say something else than what is in force, and nobody applies it.";
    Events = Counter "upright_events" "" [] "Lines of history. Kept in the store.";
    Units = Gauge "upright_units" "" ["state"] "Units by state.";

    UnitState = StateSet "upright_unit_state" "" ["unit", "upright_unit_state"] "The state of a unit.";
    UnitStateStart = Gauge "upright_unit_state_start_time_seconds" "seconds" ["unit"] "When the unit entered its state, since 1970.";
    UnitWanted = Gauge "upright_unit_wanted" "" ["unit"] "1 = its file or an operator wants it up.";
    UnitReady = Gauge "upright_unit_ready" "" ["unit"] "1 = what needs it may start. `upright_unit_state_start_time_seconds` tells since when.";
    UnitHealthy = Gauge "upright_unit_healthy" "" ["unit"] "1 = its last health check was good; no sample where none has answered.";
    UnitRestarts = Counter "upright_unit_restarts" "" ["unit"] "Restarts since the home was made. Kept in the store.";
    UnitFailures = Counter "upright_unit_failures" "" ["unit"] "Failures since this engine began. Begins anew with each engine.";
    UnitEpisodeFailures = Gauge "upright_unit_episode_failures" "" ["unit"] "Failures in a row, of this episode. Kept in the store.";
    UnitLogStored = Counter "upright_unit_log_stored_bytes" "bytes" ["unit"] "What the unit wrote and was stored, ever. Kept beside the log; no sample before it wrote to this engine.";
    UnitCpu = Counter "upright_unit_cpu_seconds" "seconds" ["unit"] "CPU time of the unit's processes. Begins anew with its cgroup; where there is none, with its processes.";
    UnitMemory = Gauge "upright_unit_resident_memory_bytes" "bytes" ["unit"] "Sum of the resident memory of its processes; what they share counts for each.";
    UnitGroupMemory = Gauge "upright_unit_cgroup_memory_bytes" "bytes" ["unit"] "memory.current of its cgroup, page cache included; no sample without the memory controller.";
    UnitRead = Counter "upright_unit_read_bytes" "bytes" ["unit"] "Read from storage by its processes. Begins anew as upright_unit_cpu_seconds.";
    UnitWritten = Counter "upright_unit_written_bytes" "bytes" ["unit"] "Written to storage by its processes. Begins anew as upright_unit_cpu_seconds.";
    UnitFds = Gauge "upright_unit_open_fds" "" ["unit"] "Open file descriptors of its processes.";
    UnitProcesses = Gauge "upright_unit_processes" "" ["unit"] "Its processes.";
    UnitTasks = Gauge "upright_unit_tasks" "" ["unit"] "Threads of its processes.";
    UnitsUnseen = Gauge "upright_units_unseen" "" [] "Units whose processes were not looked at, because the time for this answer ran out.";

    ProcessCpu = Counter "upright_process_cpu_seconds" "seconds" ["process"] "CPU time of the keeper and of the engine.";
    ProcessMemory = Gauge "upright_process_resident_memory_bytes" "bytes" ["process"] "Resident memory of the keeper and of the engine.";
    ProcessRead = Counter "upright_process_read_bytes" "bytes" ["process"] "Read from storage by the keeper and by the engine.";
    ProcessWritten = Counter "upright_process_written_bytes" "bytes" ["process"] "Written to storage by the keeper and by the engine.";
    ProcessFds = Gauge "upright_process_open_fds" "" ["process"] "Open file descriptors of the keeper and of the engine.";
    ProcessTasks = Gauge "upright_process_tasks" "" ["process"] "Threads of the keeper and of the engine.";

    Restart = Histogram "upright_restart_latency_seconds" "seconds" [] "From a failure to the exec of the run that follows it, the delay of the policy included. Begins anew with each engine.";
    RestartLate = Histogram "upright_restart_lateness_seconds" "seconds" [] "How much later than the policy says runs were spawned. Begins anew with each engine.";
    Ready = Histogram "upright_ready_seconds" "seconds" [] "From the start of a unit until it was ready. Begins anew with each engine.";
    Downtime = Histogram "upright_downtime_seconds" "seconds" [] "From the first failure until the unit was ready again. Begins anew with each engine.";
    Stop = Histogram "upright_stop_seconds" "seconds" [] "From the order to stop until nothing of the unit was left. Begins anew with each engine.";
    Health = Histogram "upright_health_check_seconds" "seconds" [] "Health checks, whatever they said. Begins anew with each engine.";
    Resync = Histogram "upright_resync_seconds" "seconds" [] "Resyncs that succeeded. Begins anew with each engine.";

    LoopLag = Histogram "upright_engine_loop_lag_seconds" "seconds" [] "How late the engine was for its deadlines. Begins anew with each engine.";
    Turn = Histogram "upright_engine_turn_seconds" "seconds" [] "How long one turn of the engine's loop took: everybody else waits so long. Begins anew with each engine.";
    Commit = Histogram "upright_store_commit_seconds" "seconds" [] "Commits of the store, failed ones too. Begins anew with each engine.";
    StorePending = Gauge "upright_store_pending_batches" "" [] "Batches that are not on the disk yet.";
    StoreSize = Gauge "upright_store_size_bytes" "bytes" ["file"] "Size of the store's files.";
    Request = Histogram "upright_api_request_seconds" "seconds" ["method", "route"] "From the head of a request to the head of its answer; orders are answered when they are done. No sample for a route that nobody asked. Begins anew with each engine.";

    LogStored = Counter "upright_log_stored_bytes" "bytes" [] "What services wrote and was stored. Begins anew with each engine.";
    LogDropped = Counter "upright_log_dropped_bytes" "bytes" [] "What services wrote and was lost, because the disk was full. Begins anew with each engine.";
    LogRotations = Counter "upright_log_rotations" "" [] "Log files that were ended. Begins anew with each engine.";
    LogBlocked = Gauge "upright_log_blocked_streams" "" [] "Streams of services that cannot be written now.";

    AlertsRaised = Counter "upright_alerts_raised" "" [] "Alerts since the home was made. Kept in the store.";
    AlertsPending = Gauge "upright_alerts_pending" "" ["channel"] "Alerts that a channel still has to deliver, among the newest 20000.";
    AlertsOldest = Gauge "upright_alerts_oldest_pending_seconds" "seconds" ["channel"] "Age of the oldest of them; 0 = none waits.";
    AlertsParked = Gauge "upright_alerts_parked" "" ["channel"] "Alerts that a channel refused for good, among the newest 20000.";
    Deliveries = Counter "upright_alert_deliveries" "" ["channel", "outcome"] "Sends of alerts: delivered, failed (it is tried again), parked (refused for good). Begins anew with each engine.";
}

/// What `/metrics` may have besides the names of its table, when it is read by Prometheus.
pub const SUFFIXES: [&str; 3] = ["_bucket", "_sum", "_count"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_units_are_those_of_open_metrics() {
        let mut names: Vec<&str> = Id::ALL.iter().map(|id| id.family().name).collect();
        for id in Id::ALL {
            let Family { name, kind, unit, labels, help } = id.family();
            assert!(name.starts_with("upright_"), "{name}");
            assert!(
                !name.ends_with("_total") && !name.ends_with("_info"),
                "{name}: the suffix is its type's"
            );
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            let last = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")));
            assert_eq!(last.unwrap_or(""), *unit, "{name}: the unit stands last");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '"']), "{name}");
            if *kind == Kind::StateSet {
                assert_eq!(labels.last(), Some(name), "{name}: its state is in a label of its name");
            }
            if *kind == Kind::Histogram {
                assert!(!labels.contains(&"le"));
            }
        }
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "two rows have one name");
    }
}
