//! The JSON objects of `/v1/drills`, and what a step of a drill may ask for.
//!
//! Refuses: commands, paths and signals. A fault is a word of a closed list, for a unit that is looked up.

use std::time::Duration;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::types::NAME_PATTERN;
use crate::ledger::marks;

/// What the id of a drill and the name of a scenario look like.
pub const ID_PATTERN: &str = "^[a-z0-9][a-z0-9.-]{0,63}$";

/// The longest fault: what has to last longer is no drill.
pub const FAULT_MAX: Duration = Duration::from_secs(600);

/// Most bytes of a verdict.
pub const VERDICT_BYTES_MAX: usize = 65_536;

/// Most rows of it that are shown.
const ROWS_MAX: usize = 30;

/// One bad thing that a daemon does to itself or a unit, in a drill.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// SIGKILL to the main process.
    Kill,
    /// SIGSTOP to the main process until it is undone.
    Hang,
    /// SIGKILL, and no start until it is undone.
    Outage,
    /// SIGSTOP and SIGCONT by turns.
    Slow,
    /// The unit's file is broken, and put back.
    ConfigCorrupt,
    /// The drill is about to kill the engine.
    EngineKill,
    /// No alert reaches a channel until it is undone.
    Channels,
    /// There is no room where the logs are until it is undone.
    DiskFull,
}

impl FaultKind {
    /// As it is written in scenarios and records.
    pub fn as_str(self) -> &'static str {
        match self {
            FaultKind::Kill => "kill",
            FaultKind::Hang => "hang",
            FaultKind::Outage => "outage",
            FaultKind::Slow => "slow",
            FaultKind::ConfigCorrupt => "config-corrupt",
            FaultKind::EngineKill => "engine-kill",
            FaultKind::Channels => "channels",
            FaultKind::DiskFull => "disk-full",
        }
    }

    /// It is about a unit.
    pub fn needs_unit(self) -> bool {
        !matches!(self, FaultKind::EngineKill | FaultKind::Channels | FaultKind::DiskFull)
    }
}

/// What a drill wants.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    Begin,
    Fault,
    Undo,
    Progress,
    End,
}

/// How a drill ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    Passed,
    Failed,
    Aborted,
}

impl Ended {
    /// As it stands in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Ended::Passed => "passed",
            Ended::Failed => "failed",
            Ended::Aborted => "aborted",
        }
    }
}

/// Body of `POST /v1/drills`. Which fields belong to a step stands at each.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DrillRequest {
    /// Chosen by the drill.
    #[schemars(extend("pattern" = ID_PATTERN))]
    pub drill: String,
    #[serde(rename = "do")]
    pub step: Step,
    /// `begin`: the name of the scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = ID_PATTERN))]
    pub scenario: Option<String>,
    /// `fault`: which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<FaultKind>,
    /// `fault`: to whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("pattern" = NAME_PATTERN))]
    pub unit: Option<String>,
    /// `fault`: it is undone after this, 1 ms to 10 min, whatever becomes of the drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 600_000))]
    pub for_ms: Option<u64>,
    /// `undo`: of the fault; none = every fault of the drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// `progress`: 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub progress: Option<u8>,
    /// `end`: how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Ended>,
    /// `end`: the verdict, at most 64 KiB; it is kept and shown, not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<serde_json::Map<String, serde_json::Value>>,
}

impl DrillRequest {
    /// A step with nothing but its name.
    pub fn new(drill: &str, step: Step) -> DrillRequest {
        DrillRequest {
            drill: drill.to_string(),
            step,
            scenario: None,
            kind: None,
            unit: None,
            for_ms: None,
            number: None,
            progress: None,
            status: None,
            verdict: None,
        }
    }

    /// The drill, and its step with what belongs to it.
    ///
    /// # Errors
    /// A sentence that says what is missing or does not fit.
    pub fn parsed(self) -> Result<(String, DrillStep), String> {
        let needs = |field: &str| format!("this step of a drill needs `{field}`");
        let step = match self.step {
            Step::Begin => {
                DrillStep::Begin { scenario: checked_id(self.scenario.ok_or_else(|| needs("scenario"))?)? }
            }
            Step::Fault => {
                let kind = self.kind.ok_or_else(|| needs("kind"))?;
                if kind.needs_unit() && self.unit.is_none() {
                    return Err(needs("unit"));
                }
                let wait = Duration::from_millis(self.for_ms.ok_or_else(|| needs("for_ms"))?);
                if wait.is_zero() || wait > FAULT_MAX {
                    return Err("`for_ms` must be a whole number from 1 to 600000".to_string());
                }
                DrillStep::Fault { kind, unit: self.unit, wait }
            }
            Step::Undo => DrillStep::Undo { number: self.number },
            Step::Progress => {
                let progress = self.progress.ok_or_else(|| needs("progress"))?;
                if progress > 100 {
                    return Err("`progress` must be a whole number from 0 to 100".to_string());
                }
                DrillStep::Progress { progress }
            }
            Step::End => {
                let verdict = self.verdict.map(|verdict| serde_json::Value::Object(verdict).to_string());
                if verdict.as_ref().is_some_and(|text| text.len() > VERDICT_BYTES_MAX) {
                    return Err("a verdict has at most 64 KiB".to_string());
                }
                DrillStep::End { status: self.status.ok_or_else(|| needs("status"))?, verdict }
            }
        };
        Ok((checked_id(self.drill)?, step))
    }
}

/// As `ID_PATTERN` has it.
fn checked_id(text: String) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let fits = text.len() <= 64
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|b| plain(b) || b == b'.' || b == b'-');
    if fits {
        Ok(text)
    } else {
        Err("the name of a drill or a scenario has a-z, 0-9, `.` and `-`".to_string())
    }
}

/// The same, with what belongs to each step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrillStep {
    Begin { scenario: String },
    Fault { kind: FaultKind, unit: Option<String>, wait: Duration },
    Undo { number: Option<u64> },
    Progress { progress: u8 },
    End { status: Ended, verdict: Option<String> },
}

/// `GET /v1/drills`: newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct DrillList {
    pub drills: Vec<DrillLine>,
    /// Units that drills may hurt (`drillable = true`).
    pub drillable: Vec<String>,
    /// Those of them that have a `[health]`: a hang of another one is found by nobody.
    #[serde(default)]
    pub checked: Vec<String>,
}

/// One drill.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct DrillLine {
    pub id: String,
    pub scenario: String,
    /// running | passed | failed | aborted
    pub status: String,
    /// 0 to 100.
    pub progress: u8,
    /// RFC 3339.
    pub begun: String,
    /// RFC 3339; none while it runs.
    pub ended: Option<String>,
    /// Its faults that are not over, or whose units have not recovered yet.
    #[serde(default)]
    pub faults: Vec<FaultLine>,
    /// As the drill gave it.
    #[serde(default)]
    pub verdict: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Some lengths, told in a verdict.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Latency {
    pub what: String,
    pub count: usize,
    pub mean_s: f64,
    pub p50_s: f64,
    pub max_s: f64,
}

impl DrillLine {
    /// The KPIs of its verdict. What is none of ours is left out: it is text that somebody sent.
    pub fn kpis(&self) -> Vec<marks::Verdict> {
        self.rows("kpis")
    }

    /// The latencies of its verdict, likewise.
    pub fn latencies(&self) -> Vec<Latency> {
        self.rows("latencies")
    }

    fn rows<T: DeserializeOwned>(&self, key: &str) -> Vec<T> {
        let all = self.verdict.as_ref().and_then(|verdict| verdict.get(key)?.as_array());
        let rows = all.into_iter().flatten().take(ROWS_MAX);
        rows.filter_map(|row| serde_json::from_value(row.clone()).ok()).collect()
    }
}

/// A fault that is done.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct FaultLine {
    /// Counts the faults of a daemon.
    pub number: u64,
    pub kind: FaultKind,
    pub unit: Option<String>,
    /// It is undone, and its unit recovers.
    #[serde(default)]
    pub over: bool,
}

/// Answer to `POST /v1/drills`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct DrillReply {
    pub drill: DrillLine,
    /// The number of the fault that was done.
    #[serde(default)]
    pub fault: Option<u64>,
    /// CLOCK_BOOTTIME when it was done, in nanoseconds: what latencies are measured from.
    #[serde(default)]
    pub at_ns: Option<u64>,
}
