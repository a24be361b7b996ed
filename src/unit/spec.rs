//! `UnitSpec`: what a valid unit file means. Parse once; from here on nothing is a string
//! that could still be wrong.
//!
//! Refuses: raw TOML.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::check::NetCheck;
use crate::base::name::UnitName;
use crate::base::signal::Signal;

/// One unit, all values filled in, `{instance}` replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSpec {
    pub name: UnitName,
    pub unit: UnitSection,
    pub service: Service,
    pub readiness: Readiness,
    pub health: Option<Health>,
    pub restart: Restart,
    pub stop: Stop,
    pub reload: Reload,
    /// One entry for each of `unit.requires`, defaults included.
    pub dependency: BTreeMap<UnitName, Edge>,
    pub resync: Option<Resync>,
    pub alert: Alert,
    pub log: Log,
    pub resources: Resources,
    pub limits: Limits,
    pub sandbox: Sandbox,
}

impl UnitSpec {
    /// The least a unit can be: every default, and this command.
    pub fn minimal(name: UnitName, argv: Vec<String>) -> UnitSpec {
        UnitSpec {
            name,
            unit: UnitSection::default(),
            service: Service {
                kind: ServiceType::Simple,
                command: Command { argv },
                start_pre: Vec::new(),
                start_post: Vec::new(),
                stop_post: Vec::new(),
                user: None,
                group: None,
                supplementary_groups: Vec::new(),
                umask: 0o022,
                nice: None,
                oom_score_adjust: None,
                working_directory: None,
                environment: BTreeMap::new(),
                environment_files: Vec::new(),
                instance: None,
            },
            readiness: Readiness {
                when: ReadyWhen::Executed,
                timeout: Some(Duration::from_secs(60)),
                settle: Duration::ZERO,
            },
            health: None,
            restart: Restart {
                policy: RestartPolicy::Always,
                delays: vec![Duration::from_secs(5), Duration::from_secs(10), Duration::from_secs(15)],
                jitter_percent: 0,
                reset_after: Duration::from_secs(60),
                give_up_after: 0,
                success_exit_status: vec![0],
            },
            stop: Stop { signal: Signal::TERM, timeout: Duration::from_secs(10), command: None },
            reload: Reload::Signal(Signal::HUP),
            dependency: BTreeMap::new(),
            resync: None,
            alert: Alert { after_failures: 4, channels: None, repeat_every: 4 },
            log: Log::default(),
            resources: Resources::default(),
            limits: Limits::default(),
            sandbox: Sandbox::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSection {
    pub description: String,
    pub requires: Vec<UnitName>,
    pub wants: Vec<UnitName>,
    pub after: Vec<UnitName>,
    pub before: Vec<UnitName>,
    pub conflicts: Vec<UnitName>,
    pub enabled: bool,
    pub critical: bool,
    pub drillable: bool,
}

impl Default for UnitSection {
    fn default() -> UnitSection {
        UnitSection {
            description: String::new(),
            requires: Vec::new(),
            wants: Vec::new(),
            after: Vec::new(),
            before: Vec::new(),
            conflicts: Vec::new(),
            enabled: true,
            critical: false,
            drillable: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    Simple,
    Notify,
    Oneshot,
    Forking,
}

/// A command: never empty, never run through a shell unless `shell = true`, which makes it
/// `["/bin/sh", "-c", text]` when parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// At least one word. The first is looked up in the unit's own PATH when it has no `/`.
    pub argv: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentFile {
    pub path: PathBuf,
    /// The text began with `-`: it may be missing.
    pub optional: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub kind: ServiceType,
    pub command: Command,
    pub start_pre: Vec<Command>,
    pub start_post: Vec<Command>,
    pub stop_post: Vec<Command>,
    pub user: Option<String>,
    pub group: Option<String>,
    pub supplementary_groups: Vec<String>,
    /// Octal in the file ("022"); 0 to 0o777.
    pub umask: u32,
    /// -20 to 19.
    pub nice: Option<i32>,
    /// -1000 to 1000.
    pub oom_score_adjust: Option<i32>,
    pub working_directory: Option<PathBuf>,
    pub environment: BTreeMap<String, String>,
    pub environment_files: Vec<EnvironmentFile>,
    /// 1-based number of this instance of a template; none for a plain unit.
    pub instance: Option<u32>,
}

/// What makes a started unit ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadyWhen {
    /// The command was executed (and then lived for `settle`).
    Executed,
    /// `READY=1` on `$NOTIFY_SOCKET` (sd_notify(3)).
    Notify,
    /// A newline on this fd of the child (s6's notification-fd). 3 or more.
    NotifyFd(i32),
    Net(NetCheck),
    /// This command exits 0.
    Exec(Command),
    /// A line of its output matches this regular expression (checked when parsed).
    Log(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    pub when: ReadyWhen,
    /// None = wait for ever (the default of `oneshot`, as in systemd).
    pub timeout: Option<Duration>,
    /// After `when` came true, live this long before `active`.
    pub settle: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    Net(NetCheck),
    Exec(Command),
    /// `WATCHDOG=1` at least this often.
    Watchdog(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub check: HealthCheck,
    pub interval: Duration,
    pub timeout: Duration,
    /// 1 or more.
    pub threshold: u32,
    pub grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    pub policy: RestartPolicy,
    /// At least one; after the k-th failure in a row `delays[min(k, len) - 1]`.
    pub delays: Vec<Duration>,
    /// 0 to 100: the delay is drawn from `delay ± jitter %`, never earlier than `delay`
    /// at 0 %.
    pub jitter_percent: u32,
    pub reset_after: Duration,
    /// 0 = never give up.
    pub give_up_after: u32,
    pub success_exit_status: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    pub signal: Signal,
    pub timeout: Duration,
    /// Runs before the signal is sent.
    pub command: Option<Command>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reload {
    Signal(Signal),
    Command(Command),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLoss {
    Degrade,
    Stop,
    Restart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnReturn {
    Resync,
    Reload,
    Restart,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    pub on_loss: OnLoss,
    pub on_return: OnReturn,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResyncBy {
    Net(NetCheck),
    Command(Command),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resync {
    pub by: ResyncBy,
    pub timeout: Duration,
    pub delays: Vec<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    pub after_failures: u32,
    /// None = every channel of `upright.toml`.
    pub channels: Option<Vec<String>>,
    /// 0 = once an episode.
    pub repeat_every: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StderrTo {
    Merge,
    Separate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    Block,
    Drop,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub max_size_bytes: u64,
    pub max_files: u32,
    /// Zero: never too old.
    pub max_age: Duration,
    pub compress: bool,
    pub stderr: StderrTo,
    pub when_full: WhenFull,
}

impl Default for Log {
    fn default() -> Log {
        Log {
            max_size_bytes: 50 * 1024 * 1024,
            max_files: 5,
            max_age: Duration::ZERO,
            compress: false,
            stderr: StderrTo::Merge,
            when_full: WhenFull::Block,
        }
    }
}

/// cgroup v2 controls (cgroup-v2.rst); none = the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub memory_max_bytes: Option<u64>,
    pub memory_high_bytes: Option<u64>,
    /// Percent of one core: "150%" is 150.
    pub cpu_quota_percent: Option<u32>,
    /// 1 to 10,000.
    pub cpu_weight: Option<u32>,
    pub tasks_max: Option<u64>,
    /// 1 to 10,000.
    pub io_weight: Option<u32>,
}

/// rlimits, soft = hard (setrlimit(2)); none = inherited, except that `nofile` is then
/// 1,024 soft as distributions have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub nofile: Option<u64>,
    pub nproc: Option<u64>,
    pub core_bytes: Option<u64>,
    pub memlock_bytes: Option<u64>,
    pub stack_bytes: Option<u64>,
    pub fsize_bytes: Option<u64>,
    /// Address space.
    pub as_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    pub no_new_privileges: bool,
    pub private_tmp: bool,
    pub protect_system: bool,
    pub read_write_paths: Vec<PathBuf>,
    /// None = keep all.
    pub capabilities: Option<Vec<String>>,
    pub system_call_filter: Vec<String>,
}
