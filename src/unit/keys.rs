//! Every key of the unit file and of `upright.toml`: section, type, default, meaning.
//! The reader, the unknown-key check, the JSON Schema and the docs are driven by this table,
//! so they cannot differ.
//!
//! Refuses: code. A row is data.

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Bool,
    /// From the first to the second, both included.
    Integer(i64, i64),
    Duration,
    /// A duration above zero, or `"infinity"`.
    Timeout,
    Durations,
    Size,
    /// A size, or `"unlimited"`.
    SizeLimit,
    /// A count from 0, or `"unlimited"`.
    CountLimit,
    /// `"10%"`, up to this many percent.
    Percent(u32),
    Choice(&'static [&'static str]),
    Words,
    UnitNames,
    /// An array of words, or a string that is split.
    Command,
    /// The same; the empty array is none.
    CommandOrNone,
    Commands,
    Signal,
    /// Octal, `"022"`.
    Umask,
    /// A user or group name, or its number.
    User,
    Users,
    /// Absolute.
    Path,
    Paths,
    /// Absolute, or below the log directory.
    LogPath,
    /// Absolute, or `""` for none.
    PathOrNone,
    /// Absolute, a leading `-` allowed.
    EnvironmentFiles,
    Environment,
    ExitCodes,
    Http,
    Tcp,
    UnixSocket,
    Postgres,
    Redis,
    Regex,
    /// `http://` or `https://`.
    Url,
    /// `ADDRESS:PORT` of this host.
    Listen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InForce {
    Yes,
    /// Read and checked, but without effect in this version.
    NotYet,
}

/// What a changed value asks of what runs. In the order of how much it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Takes {
    /// In force at once, or with the next start, stop or check: the process feels nothing.
    Live,
    /// In force after the process was told to read its own files again. No key of ours is: what a
    /// service rereads (its own files) is not in a unit file.
    Reload,
    /// In force with a new process: a running unit is restarted. For `upright.toml`: with the
    /// next start of the daemon.
    Restart,
}

impl Takes {
    /// As the schema and the docs have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Takes::Live => "live",
            Takes::Reload => "reload",
            Takes::Restart => "restart",
        }
    }
}

/// One key. `section` ends in `.*` where the user names the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub section: &'static str,
    pub name: &'static str,
    pub kind: Kind,
    /// As TOML; none = unset.
    pub default: Option<&'static str>,
    pub in_force: InForce,
    pub takes: Takes,
    pub doc: &'static str,
}

/// One kind of file: its keys and the first word of its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// `unit` or `daemon`: `unit.unknown-key`.
    pub code: &'static str,
    pub keys: &'static [Key],
}

impl Dialect {
    pub fn key(&self, section: &str, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.section == section && key.name == name)
    }

    /// The sections in table order, each once.
    pub fn sections(&self) -> Vec<&'static str> {
        let mut sections: Vec<&'static str> = Vec::new();
        for key in self.keys {
            if sections.last() != Some(&key.section) {
                sections.push(key.section);
            }
        }
        sections
    }

    pub fn section_keys(&self, section: &str) -> impl Iterator<Item = &'static Key> + use<'_> {
        let section = section.to_string();
        self.keys.iter().filter(move |key| key.section == section)
    }

    /// No key of the section has an effect yet.
    pub fn section_waits(&self, section: &str) -> bool {
        self.section_keys(section).all(|key| key.in_force == InForce::NotYet)
    }
}

const fn key(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key { section, name, kind, default: Some(default), in_force: InForce::Yes, takes: Takes::Live, doc }
}

const fn unset(section: &'static str, name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { section, name, kind, default: None, in_force: InForce::Yes, takes: Takes::Live, doc }
}

impl Key {
    const fn later(self) -> Key {
        Key { in_force: InForce::NotYet, ..self }
    }

    /// Needs a new process.
    const fn restarts(self) -> Key {
        Key { takes: Takes::Restart, ..self }
    }

    /// `service.command`, as `plan` and the docs name it.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }
}

const COUNT: Kind = Kind::Integer(0, u32::MAX as i64);
const FROM_ONE: Kind = Kind::Integer(1, u32::MAX as i64);
const WEIGHT: Kind = Kind::Integer(1, 10_000);
const DELAYS: &str = r#"["5s", "10s", "15s"]"#;

pub const UNIT: Dialect = Dialect { code: "unit", keys: UNIT_KEYS };
pub const DAEMON: Dialect = Dialect { code: "daemon", keys: DAEMON_KEYS };

#[rustfmt::skip]
const UNIT_KEYS: &[Key] = &[
    key("unit", "description", Kind::Text, r#""""#, "What it is, in a few words."),
    key("unit", "requires", Kind::UnitNames, "[]", "Units it needs: it starts when they are ready."),
    key("unit", "wants", Kind::UnitNames, "[]", "Units started along with it; it does not depend on their success."),
    key("unit", "after", Kind::UnitNames, "[]", "Order only: when both start, it starts after these are ready."),
    key("unit", "before", Kind::UnitNames, "[]", "Order only: when both start, these start after it is ready."),
    key("unit", "conflicts", Kind::UnitNames, "[]", "Units that must not run beside it."),
    key("unit", "enabled", Kind::Bool, "true", "Start with the daemon."),
    key("unit", "critical", Kind::Bool, "false", "Container mode: its final failure ends the daemon with its exit code.").later(),
    key("unit", "drillable", Kind::Bool, "false", "Drills may hurt it."),

    key("service", "type", Kind::Choice(&["simple", "notify", "oneshot", "forking"]), r#""simple""#, "How it starts: `notify` says itself when it is ready (sd_notify), `oneshot` is done when it has ended, `forking` is ready when it has left one process behind and ended.").restarts(),
    unset("service", "command", Kind::Command, "What to execute: an array of words, or a string split like a shell would.").restarts(),
    key("service", "shell", Kind::Bool, "false", "Give commands written as a string to `/bin/sh -c` instead of splitting them.").restarts(),
    key("service", "start_pre", Kind::Commands, "[]", "Commands to run before it starts; one that fails is a failure of the unit."),
    key("service", "start_post", Kind::Commands, "[]", "Commands to run once it is started."),
    key("service", "stop_post", Kind::Commands, "[]", "Commands to run after it has ended."),
    unset("service", "user", Kind::User, "The user it runs as, by name or number.").restarts(),
    unset("service", "group", Kind::User, "Its group; the user's own where unset.").restarts(),
    key("service", "supplementary_groups", Kind::Users, "[]", "Further groups.").restarts(),
    key("service", "umask", Kind::Umask, r#""022""#, "File mode creation mask, octal.").restarts(),
    unset("service", "nice", Kind::Integer(-20, 19), "Scheduling priority, -20 (first) to 19.").restarts(),
    unset("service", "oom_score_adjust", Kind::Integer(-1000, 1000), "How readily the kernel kills it when memory is short, -1000 (never) to 1000.").restarts(),
    unset("service", "working_directory", Kind::Path, "The directory it starts in.").restarts(),
    key("service", "environment", Kind::Environment, "{}", "Its environment variables, beside PATH, HOME, USER and the like.").restarts(),
    key("service", "environment_files", Kind::EnvironmentFiles, "[]", "Files of NAME=value lines, read at each start; a leading `-` = may be missing.").restarts(),
    key("service", "instances", Kind::Integer(1, crate::base::limits::INSTANCES_MAX as i64), "1", "N > 1 makes the units NAME@1 to NAME@N, with `{instance}` replaced in every string."),

    unset("readiness", "http", Kind::Http, "Ready when this answers 2xx: `http://HOST:PORT/PATH`, a method may stand before it.").restarts(),
    key("readiness", "notify", Kind::Bool, "false", "Ready when it says READY=1 on $NOTIFY_SOCKET.").restarts(),
    unset("readiness", "notify_fd", Kind::Integer(3, 1023), "Ready when it writes a newline to this file descriptor.").restarts(),
    unset("readiness", "tcp", Kind::Tcp, "Ready when HOST:PORT accepts a connection.").restarts(),
    unset("readiness", "unix", Kind::UnixSocket, "Ready when this socket accepts a connection.").restarts(),
    unset("readiness", "exec", Kind::Command, "Ready when this command exits 0.").restarts(),
    unset("readiness", "log", Kind::Regex, "Ready when a line of its output matches this regular expression.").restarts(),
    unset("readiness", "postgres", Kind::Postgres, "Ready when this PostgreSQL accepts clients: HOST:PORT, a socket or the directory of one.").restarts(),
    unset("readiness", "redis", Kind::Redis, "Ready when this Redis answers PING: HOST:PORT or a socket.").restarts(),
    key("readiness", "timeout", Kind::Timeout, r#""60s""#, "Not ready by then is a failure; `oneshot` has no limit where unset. `infinity` = none."),
    key("readiness", "settle", Kind::Duration, r#""0s""#, "How long it must live on before it counts as ready."),

    unset("health", "http", Kind::Http, "Healthy while this answers 2xx."),
    unset("health", "tcp", Kind::Tcp, "Healthy while HOST:PORT accepts a connection."),
    unset("health", "unix", Kind::UnixSocket, "Healthy while this socket accepts a connection."),
    unset("health", "exec", Kind::Command, "Healthy while this command exits 0."),
    unset("health", "postgres", Kind::Postgres, "Healthy while this PostgreSQL accepts clients."),
    unset("health", "redis", Kind::Redis, "Healthy while this Redis answers PING."),
    unset("health", "watchdog", Kind::Duration, "Healthy while it says WATCHDOG=1 at least this often.").restarts(),
    key("health", "interval", Kind::Duration, r#""5s""#, "Between two checks."),
    key("health", "timeout", Kind::Duration, r#""3s""#, "A check without an answer by then is bad."),
    key("health", "threshold", FROM_ONE, "3", "So many bad checks in a row make it unhealthy, which is one failure."),
    key("health", "grace", Kind::Duration, r#""0s""#, "After it is ready, before the first check counts."),

    key("restart", "policy", Kind::Choice(&["always", "on-failure", "never"]), r#""always""#, "When to start it again."),
    key("restart", "delays", Kind::Durations, DELAYS, "After the 1st, 2nd, 3rd failure in a row; the last repeats."),
    key("restart", "jitter", Kind::Percent(100), r#""0%""#, "Random share of each delay."),
    key("restart", "reset_after", Kind::Duration, r#""60s""#, "So long ready without a break clears the count of failures."),
    key("restart", "give_up_after", COUNT, "0", "After so many failures in a row it is failed and held; 0 = never."),
    key("restart", "success_exit_status", Kind::ExitCodes, "[0]", "Exit codes that are no failure."),

    key("stop", "signal", Kind::Signal, r#""SIGTERM""#, "How it is asked to end."),
    key("stop", "timeout", Kind::Duration, r#""10s""#, "After this SIGKILL, to everything it ever forked."),
    key("stop", "command", Kind::CommandOrNone, "[]", "A command to run before the signal."),

    key("reload", "signal", Kind::Signal, r#""SIGHUP""#, "How it is told to read its configuration again."),
    unset("reload", "command", Kind::Command, "A command that makes it read its configuration again, instead of the signal."),

    key("dependency.*", "on_loss", Kind::Choice(&["degrade", "stop", "restart"]), r#""degrade""#, "When this requirement goes down: keep running and show it, stop, or restart."),
    key("dependency.*", "on_return", Kind::Choice(&["resync", "reload", "restart", "none"]), r#""resync""#, "When it is back: resync (where [resync] is set), reload, restart, or nothing."),

    unset("resync", "http", Kind::Http, "The request that restores state after a dependency returned; 2xx acknowledges."),
    unset("resync", "command", Kind::Command, "The command that restores state; exit 0 acknowledges."),
    key("resync", "timeout", Kind::Duration, r#""30s""#, "No answer by then is a failed try."),
    key("resync", "delays", Kind::Durations, DELAYS, "Before each further try; when the last fails an alert says so."),

    key("alert", "after_failures", FROM_ONE, "4", "The alert is raised at this many failures in a row."),
    unset("alert", "channels", Kind::Words, "Channels of `upright.toml`; all of them where unset."),
    key("alert", "repeat_every", COUNT, "4", "Again after so many further failures; 0 = once an episode."),

    key("log", "max_size", Kind::Size, r#""50MiB""#, "A log file is ended at this size, and the next one begun."),
    key("log", "max_files", Kind::Integer(1, 1_000), "5", "How many log files are kept, the one that is written among them."),
    key("log", "max_age", Kind::Duration, r#""0s""#, "Older files go when their last line is older than this; 0s = never."),
    key("log", "compress", Kind::Bool, "false", "Compress older files (zstd); `upright logs` reads them all the same."),
    key("log", "stderr", Kind::Choice(&["merge", "separate"]), r#""merge""#, "Standard error into the same log, or into one of its own.").restarts(),
    key("log", "when_full", Kind::Choice(&["block", "drop"]), r#""block""#, "Disk full: block the writer, or drop and count every byte."),

    unset("resources", "memory_max", Kind::Size, "Hard limit of memory.").later().restarts(),
    unset("resources", "memory_high", Kind::Size, "Above this the kernel throttles and reclaims.").later().restarts(),
    unset("resources", "cpu_quota", Kind::Percent(100_000), "Percent of one core.").later().restarts(),
    unset("resources", "cpu_weight", WEIGHT, "Share of CPU when it is short, 1 to 10000; the kernel's default is 100.").later().restarts(),
    unset("resources", "tasks_max", FROM_ONE, "Most processes and threads.").later().restarts(),
    unset("resources", "io_weight", WEIGHT, "Share of disk time when it is short, 1 to 10000.").later().restarts(),

    unset("limits", "nofile", Kind::CountLimit, "Open files.").restarts(),
    unset("limits", "nproc", Kind::CountLimit, "Processes of its user.").restarts(),
    unset("limits", "core", Kind::SizeLimit, "Size of a core dump.").restarts(),
    unset("limits", "memlock", Kind::SizeLimit, "Locked memory.").restarts(),
    unset("limits", "stack", Kind::SizeLimit, "Stack of the main thread.").restarts(),
    unset("limits", "fsize", Kind::SizeLimit, "Size of a file it writes.").restarts(),
    unset("limits", "as", Kind::SizeLimit, "Address space.").restarts(),

    key("sandbox", "no_new_privileges", Kind::Bool, "false", "No setuid program can raise its rights.").restarts(),
    key("sandbox", "private_tmp", Kind::Bool, "false", "A /tmp of its own.").later().restarts(),
    key("sandbox", "protect_system", Kind::Bool, "false", "The system's directories are read-only to it.").later().restarts(),
    key("sandbox", "read_write_paths", Kind::Paths, "[]", "What stays writable.").later().restarts(),
    unset("sandbox", "capabilities", Kind::Words, "The capabilities it keeps; all where unset.").later().restarts(),
    key("sandbox", "system_call_filter", Kind::Words, "[]", "The system calls it may make.").later().restarts(),
];

#[rustfmt::skip]
const DAEMON_KEYS: &[Key] = &[
    key("daemon", "shutdown_timeout", Kind::Duration, r#""90s""#, "Stopping everything takes at most this long."),
    key("daemon", "watch", Kind::Choice(&["apply", "notify", "off"]), r#""apply""#, "When a unit file changes: apply it, only say so, or do not look."),
    key("daemon", "start_concurrency", Kind::Integer(1, 10_000), "32", "Most units that start at the same time."),

    key("api", "listen", Kind::Listen, "[]", "TCP addresses to serve on, beside the Unix socket."),
    key("api", "token_file", Kind::PathOrNone, r#""""#, "File of the token that TCP clients must show."),
    key("api", "operators", Kind::Words, r#"["root", "@upright"]"#, "Users and @groups that may act."),
    key("api", "viewers", Kind::Words, "[]", "Users and @groups that may read; empty = everybody who can open the socket."),

    unset("alert.*", "kind", Kind::Choice(&["slack", "webhook", "email", "alertmanager", "pagerduty", "ntfy", "discord", "teams", "exec", "file"]), "What kind of channel."),
    unset("alert.*", "url", Kind::Url, "Where to: the webhook's address, of `alertmanager` the server's, of `ntfy` the topic's. A URL with a token in it is better off in `url_file`."),
    unset("alert.*", "url_file", Kind::Path, "File that holds the URL. As root, nobody else may be able to write it."),
    unset("alert.*", "secret_file", Kind::Path, "File of a secret. `webhook`: the key that signs each request (HMAC-SHA256); `pagerduty`: the integration's key; `alertmanager`, `ntfy`: a bearer token."),
    unset("alert.*", "ca_file", Kind::Path, "Certificates to trust, PEM, instead of the system's."),
    unset("alert.*", "path", Kind::LogPath, "kind = \"file\": where to append, a line an alert; a relative path is below the log directory."),
    unset("alert.*", "command", Kind::Command, "kind = \"exec\": what to run, the alert as JSON on its standard input; exit 0 acknowledges, after 10 s it is killed."),
    unset("alert.*", "host", Kind::Tcp, "kind = \"email\": the SMTP server, HOST:PORT."),
    key("alert.*", "tls", Kind::Choice(&["starttls", "tls", "none"]), r#""starttls""#, "kind = \"email\": encrypt after STARTTLS, from the first byte, or, to a server on loopback, not at all."),
    unset("alert.*", "from", Kind::Text, "kind = \"email\": the sender's address."),
    unset("alert.*", "to", Kind::Words, "kind = \"email\": who gets it."),
    unset("alert.*", "user", Kind::Text, "kind = \"email\": whom to log in as."),
    unset("alert.*", "password_file", Kind::Path, "kind = \"email\": file of the password."),

    unset("heartbeat", "url", Kind::Url, "Asked (GET) every `interval` while the daemon works: an outside system notices silence."),
    key("heartbeat", "interval", Kind::Duration, r#""60s""#, "How often."),

    key("store", "retention", Kind::Duration, r#""90d""#, "How long single events are kept in the database; their sums by day stay."),
    key("store", "log_max_size", Kind::Size, r#""64MiB""#, "`system_resilience.log` is rotated at this size: to `.1`, `.2` and so on."),
    key("store", "log_max_files", Kind::Integer(1, 1_000), "8", "How many rotated files of it are kept."),
];
