//! Every bound in one place, each with its unit and its reason.
//!
//! Refuses: numbers a user may set (those are in the unit file, with defaults in `unit`).

use std::time::Duration;

/// Longest unit name, in bytes. It becomes a cgroup and a directory name (NAME_MAX is 255).
pub const UNIT_NAME_LEN_MAX: usize = 64;

/// Largest unit or config file, in bytes. `toml` needs 37 times the text in memory for
/// wide files (reliability F12), so the size is checked before parsing.
pub const UNIT_FILE_BYTES_MAX: u64 = 256 * 1024;

/// Most keys in one file, counted before the meaning is looked at.
pub const UNIT_FILE_KEYS_MAX: usize = 2_000;

/// Most units in one home: above it fds run out (one log pipe each at least).
pub const UNITS_MAX: usize = 10_000;

/// Most instances of one template.
pub const INSTANCES_MAX: u32 = 1_000;

/// Between two readiness probes of one unit that is not ready yet. 100 ms is below what
/// a person notices and costs a loopback connect (about 50 µs) ten times a second.
pub const READINESS_INTERVAL: Duration = Duration::from_millis(100);

/// Longest a single readiness probe may take. Long enough for a slow first answer,
/// short enough that a hung socket does not eat the readiness timeout whole.
pub const READINESS_PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Least time between two spawns of one unit. Without it a unit with `delays = ["0s"]` whose
/// command fails at once eats a core; with it such a loop costs 100 spawns a second. A unit
/// that has lived longer than this is restarted at once.
pub const SPAWN_GAP_MIN: Duration = Duration::from_millis(10);

/// After SIGKILL, how long until what still lives is called stuck (D state).
pub const KILL_GRACE: Duration = Duration::from_secs(5);

/// A spawn refused for want of fds, memory or pids is tried again after this; it is no
/// failure of the unit (reliability D1, D3).
pub const SHORTAGE_RETRY: Duration = Duration::from_secs(1);

/// Most events a look back may answer with.
pub const EVENTS_PER_REPLY_MAX: usize = 10_000;
