//! The JSON objects of `contract`, field by field.
//!
//! Refuses: meaning. `daemon` fills them, `cli` and the dashboard show them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::signal::Signal;

/// What a unit's name looks like.
pub const NAME_PATTERN: &str = "^[a-z0-9][a-z0-9_.@-]{0,63}$";

/// The signals that are known, by name and by number.
fn signal_pattern() -> String {
    let names: Vec<String> = Signal::names().collect();
    let bare: Vec<&str> = names.iter().map(|name| name.trim_start_matches("SIG")).collect();
    format!("^((SIG)?({})|[1-9]|[1-5][0-9]|6[0-4])$", bare.join("|"))
}

/// Units, or all of them: not both, not neither.
fn units_or_all() -> serde_json::Value {
    serde_json::json!([
        { "required": ["units"], "properties": { "units": { "minItems": 1 }, "all": { "const": false } } },
        { "required": ["all"], "properties": { "units": { "maxItems": 0 }, "all": { "const": true } } },
    ])
}

/// `GET /dashboard/news`, and each event of its stream.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema, PartialEq, Eq)]
pub struct News {
    /// Id of the newest event; 0: there is none yet.
    pub last_event: u64,
}

/// `GET /v1/units`, `upright status --json`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct UnitList {
    pub schema_version: u32,
    pub daemon: DaemonInfo,
    pub units: Vec<Unit>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct DaemonInfo {
    pub version: String,
    /// `normal` or `safe`.
    pub mode: String,
    pub keeper_pid: i32,
    pub engine_pid: i32,
    /// RFC 3339.
    pub started_at: String,
    /// "cgroup" or "weak": how far a stop reaches. Weak is the session and process-tree walk.
    pub containment: String,
    /// What ails the daemon itself, the worst first; empty when all is well.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
    /// What people are not told of now, and until when.
    #[serde(default)]
    pub mutes: Vec<MuteLine>,
}

/// One thing of the daemon's own that is not as it should be.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Trouble {
    /// Stable: store.locked | store.full | store.io | store.read-only | store.corrupt |
    /// store.unreachable | store.copy | store.aside | log.unwritable | log.blocked |
    /// api.listen | api.token | alert.overdue
    pub code: String,
    pub message: String,
    pub help: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Unit {
    pub name: String,
    pub description: String,
    /// inactive | waiting | activating | active | degraded | backoff | deactivating | failed
    pub state: String,
    pub reason: String,
    /// RFC 3339.
    pub since: String,
    pub pid: Option<i32>,
    pub run: Option<u64>,
    pub restarts: u64,
    pub failures: u32,
    /// none | healthy | unhealthy
    pub health: String,
    pub next_retry_at: Option<String>,
    pub waiting_for: Vec<String>,
    pub requires: Vec<String>,
    pub wants: Vec<String>,
    pub after: Vec<String>,
    /// Wanted up by the operator or the file: `status` exits 3 when such a unit is not active.
    pub wanted: bool,
}

/// `GET /v1/units/{name}`: the unit, its last lines and its last events.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct UnitCard {
    #[serde(flatten)]
    pub unit: Unit,
    pub log_tail: Vec<String>,
    pub history: Vec<EventLine>,
    /// Of each kind of event the newest, oldest first, whatever came after it; and the
    /// `order.asked` lines that say who gave its orders. What `upright why` goes by.
    #[serde(default)]
    pub causes: Vec<EventLine>,
    /// Gone from the files; it is being stopped and will be forgotten.
    #[serde(default)]
    pub removed: bool,
}

/// One line of history: `GET /v1/events`, `upright events`, `system_resilience.log`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct EventLine {
    /// Dense: a gap is visible.
    pub id: u64,
    /// RFC 3339 with microseconds.
    pub ts: String,
    /// INFO | WARN | ERROR
    pub level: String,
    /// Stable dotted name: `unit.failed`, …
    pub event: String,
    pub unit: Option<String>,
    pub run: Option<u64>,
    pub cause: Option<String>,
    pub message: String,
    /// CLOCK_BOOTTIME of the engine step that made the record, in nanoseconds: what the
    /// schedule is measured with.
    pub at_ns: u64,
    /// What belongs to the event: failures, delay_ms, late_us, …
    #[serde(default)]
    pub data: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct EventList {
    pub events: Vec<EventLine>,
}

/// `GET /v1/alerts`, `upright alert list --json`: newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct AlertList {
    pub alerts: Vec<AlertLine>,
    #[serde(default)]
    pub mutes: Vec<MuteLine>,
}

/// A mute that is in force.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct MuteLine {
    /// None: of every unit, and of the daemon.
    pub unit: Option<String>,
    /// RFC 3339.
    pub until: String,
}

/// The mutes that are in force: the answer to `POST /v1/alerts/mute`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct MuteList {
    pub mutes: Vec<MuteLine>,
}

/// Body of `POST /v1/alerts/mute`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct MuteRequest {
    /// None = every unit, and what the daemon has to say of itself.
    #[serde(default)]
    pub units: Vec<String>,
    /// For so many seconds, at most a year; 0 = no longer.
    #[schemars(range(min = 0, max = 31_536_000))]
    pub for_s: u64,
}

/// Body of `POST /v1/alerts/ack`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct AckRequest {
    /// Units, or ids of alerts; none = every unit that people were alerted of.
    #[serde(default)]
    pub alerts: Vec<String>,
}

/// Body of `POST /v1/alerts/test`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct TestRequest {
    /// Names of channels; none = every channel.
    #[serde(default)]
    pub channels: Vec<String>,
}

/// Something that people were to be told, and whether they were.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct AlertLine {
    /// Stable: the same alert has the same id wherever it is sent, however often.
    pub id: String,
    /// When it was raised, RFC 3339 with microseconds.
    pub ts: String,
    /// None: of the daemon itself.
    pub unit: Option<String>,
    /// failing | recovered | gave-up | stuck | resync-failed | engine-restarted | quarantined |
    /// safe-mode | config-error | config-mended | test
    pub kind: String,
    /// critical | warning | info
    pub severity: String,
    pub message: String,
    pub failures: u32,
    pub episode: u64,
    /// Units that need this one.
    pub affected: Vec<String>,
    /// Somebody has taken it: its repeats are not told.
    #[serde(default)]
    pub acknowledged: bool,
    /// Empty: no channel takes it.
    pub channels: Vec<AlertDelivery>,
}

/// How far an alert is with one channel.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct AlertDelivery {
    pub channel: String,
    /// pending | delivered | parked (refused for good, or the channel is gone) | muted
    pub state: String,
    /// Sends so far.
    pub attempts: u32,
    /// Of the last change, RFC 3339; None: not sent yet.
    pub at: Option<String>,
    /// What the last send was told, when it failed.
    pub error: Option<String>,
}

/// One line a service wrote, or what happened between two lines; also the item of a followed log.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct LogLine {
    pub unit: String,
    /// stdout | stderr (stdout when merged)
    pub stream: String,
    /// line | started | exited (of the run, both with `marks` only) | lost (`bytes` were dropped
    /// before they could be stored) | removed (`bytes` are no more) | missed (this reader was too
    /// slow; `bytes` with `lines` are in the files)
    #[serde(default = "kind_line")]
    pub kind: String,
    /// When it was captured, RFC 3339 with microseconds.
    #[serde(default)]
    pub ts: String,
    /// Whose line; none where nobody knows.
    #[serde(default)]
    pub run: Option<u64>,
    /// Without its newline; broken UTF-8 is replaced. Lines longer than 64 KiB come in pieces, with
    /// `…` where they were cut. Of the other kinds a sentence.
    pub line: String,
    /// The bytes exactly, where `line` does not have them. With `raw` those of one or more lines, with
    /// their newlines, and no `line`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// beginning | middle | end, when this is a piece of a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub piece: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
}

/// Of a daemon that knew no other kinds.
fn kind_line() -> String {
    "line".to_string()
}

/// `GET /v1/units/{name}/logs`, `GET /v1/logs?unit=a&unit=b`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct LogLines {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// Where they end: with `after=` the next call goes on from there, without loss and without
    /// telling anything twice.
    #[serde(default)]
    pub next: String,
    /// Of which streams not all could be read, and why: what they said may be missing here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

/// The data of the event `end` of a log's stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogEnd {
    /// As in `LogLines`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
}

/// Body of `POST /v1/units/{name}/signal`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct SignalRequest {
    /// `SIGUSR1`, `USR1` or `10`.
    #[schemars(extend("pattern" = signal_pattern()))]
    pub signal: String,
}

/// Body of `POST /v1/actions/{verb}`: one order for several units, so that a stop of many
/// goes in reverse order. Empty `units` with `all` = every unit.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = units_or_all()))]
pub struct ActionRequest {
    #[serde(default)]
    #[schemars(extend("items" = { "type": "string", "pattern": NAME_PATTERN }))]
    pub units: Vec<String>,
    #[serde(default)]
    pub all: bool,
}

/// Body of `POST /api/recovery/restart`. No unit = every wanted unit that is not active.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RecoveryRequest {
    #[serde(default)]
    #[schemars(extend("pattern" = NAME_PATTERN))]
    pub unit: Option<String>,
}

/// Answer to an order, sent when it is done for every unit.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct ActionReply {
    pub outcomes: Vec<UnitOutcome>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct UnitOutcome {
    pub unit: String,
    /// done | already | failed | superseded; `accepted` when nobody waits for the end
    pub outcome: String,
    /// Why, when it failed.
    pub message: Option<String>,
    /// The unit's state afterwards.
    pub state: String,
}

/// `GET /api/system/health`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct SystemHealth {
    /// green | yellow | red
    pub status: String,
    /// How many units are in each state.
    pub units: std::collections::BTreeMap<String, u64>,
    pub config: ConfigHealth,
    pub fatal_stops: u64,
    pub uptime_s: f64,
    /// What ails the daemon itself, the worst first; any of them makes the status yellow.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
}

/// `GET /api/system/metrics`: the numbers of `/metrics`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct SystemMetrics {
    pub schema_version: u32,
    /// In the order of docs/metrics.md.
    pub metrics: Vec<Metric>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct Metric {
    pub name: String,
    /// gauge | counter | info | stateset | histogram
    #[serde(rename = "type")]
    pub kind: String,
    /// seconds | bytes, or empty
    pub unit: String,
    pub help: String,
    pub samples: Vec<MetricSample>,
}

/// A value, or of a histogram its buckets with count and sum.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct MetricSample {
    pub labels: std::collections::BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<serde_json::Number>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets: Option<Vec<MetricBucket>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<f64>,
}

/// How many observations were not above `le`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct MetricBucket {
    pub le: f64,
    pub count: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct ConfigHealth {
    pub errors: Vec<ConfigError>,
    /// The files say something else than what is in force, and nobody applies it: `watch =
    /// "notify"`, or safe mode. `upright plan` shows what it is.
    #[serde(default)]
    pub unapplied: bool,
}

/// Answer of `POST /v1/config/plan`: what a reread of the files would do.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct ConfigPlan {
    /// Unit by unit; those that feel nothing are left out.
    pub units: Vec<PlannedUnit>,
    /// How many feel nothing.
    pub unchanged: u64,
    /// Of these files the last good version stays in force, or none at all.
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
    /// Keys of `upright.toml` that change, `daemon.watch`.
    pub daemon: Vec<PlannedKey>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct PlannedUnit {
    pub unit: String,
    /// added | removed | live | next-start | restart | start | stop
    pub change: String,
    /// `service.command`, …
    pub keys: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct PlannedKey {
    pub key: String,
    /// live | restart (with the next start of the daemon)
    pub takes: String,
}

/// Answer of `POST /v1/config/apply`, sent when it is done.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct ConfigApplied {
    pub plan: ConfigPlan,
    /// Of the units of which something had to be awaited: they were added, removed, restarted,
    /// started or stopped.
    pub outcomes: Vec<UnitOutcome>,
}

/// `GET /v1/upgrade`, and what `POST /v1/upgrade` begins.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct UpgradeStatus {
    /// Counts the upgrades of this daemon; 0 = there was none.
    pub number: u32,
    /// none | already (the file on disk is the one that runs) | running | done | failed (the old
    /// version goes on)
    pub state: String,
    /// Version before.
    pub from: String,
    /// Version of the binary on disk.
    pub to: String,
    /// Why, when it failed.
    pub message: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct ConfigError {
    pub file: String,
    pub line: Option<u64>,
    pub column: Option<u64>,
    /// Stable: `unit.unknown-key`, …
    pub code: String,
    pub message: String,
    pub help: Option<String>,
}

/// Every error answer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct ErrorReply {
    pub error: ErrorBody,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
pub struct ErrorBody {
    /// Stable: `unit.unknown`, `request.malformed`, `access.denied`, …
    pub code: String,
    pub message: String,
    pub help: Option<String>,
}
