//! What differs between two versions of one unit, key by key, as the key table names them.
//!
//! Refuses: what becomes of a difference (`engine::plan`). Every field of the spec is taken
//! apart by name, so that a new one does not compile until it is compared here.

use std::collections::BTreeSet;

use crate::base::check::NetCheck;
use crate::unit::channels::{Channel, Mail};
use crate::unit::daemon_file::{Api, DaemonSpec, Heartbeat};
use crate::unit::keys::{self, Key, Takes};
use crate::unit::spec::{
    Alert, Health, HealthCheck, Limits, Log, Readiness, ReadyWhen, Reload, Resources, Restart, Resync,
    ResyncBy, Sandbox, Service, Stop, UnitSection, UnitSpec,
};

/// The keys whose values differ, in the order of the key table; empty when the two are the
/// same. `shell` never appears: it is part of what `command` became.
pub fn changed_keys(old: &UnitSpec, new: &UnitSpec) -> Vec<&'static Key> {
    let mut changed = Changed::default();
    let UnitSpec {
        name: _,
        unit,
        service,
        readiness,
        health,
        restart,
        stop,
        reload,
        dependency,
        resync,
        alert,
        log,
        resources,
        limits,
        sandbox,
    } = old;
    changed.unit(unit, &new.unit);
    changed.service(service, &new.service);
    changed.readiness(readiness, &new.readiness);
    changed.health(health.as_ref(), new.health.as_ref());
    changed.restart(restart, &new.restart);
    changed.stop(stop, &new.stop);
    if *reload != new.reload {
        changed.both("reload", reload_key(reload), reload_key(&new.reload));
    }
    // An edge that is new or gone comes and goes with its name in `requires`.
    for (name, edge) in dependency {
        if let Some(other) = new.dependency.get(name) {
            changed.when(edge.on_loss != other.on_loss, "dependency.*", "on_loss");
            changed.when(edge.on_return != other.on_return, "dependency.*", "on_return");
        }
    }
    changed.resync(resync.as_ref(), new.resync.as_ref());
    changed.alert(alert, &new.alert);
    changed.log(log, &new.log);
    changed.resources(resources, &new.resources);
    changed.limits(limits, &new.limits);
    changed.sandbox(sandbox, &new.sandbox);
    keys::UNIT.keys.iter().filter(|key| changed.0.contains(&(key.section, key.name))).collect()
}

/// The same for `upright.toml`. A channel that comes or goes is named by its `kind`.
pub fn changed_daemon_keys(old: &DaemonSpec, new: &DaemonSpec) -> Vec<&'static Key> {
    let mut changed = Changed::default();
    let DaemonSpec { shutdown_timeout, watch, start_concurrency, api, channels, heartbeat, .. } = old;
    let DaemonSpec { retention, log_max_size, log_max_files, .. } = old;
    changed.when(*shutdown_timeout != new.shutdown_timeout, "daemon", "shutdown_timeout");
    changed.when(*watch != new.watch, "daemon", "watch");
    changed.when(*start_concurrency != new.start_concurrency, "daemon", "start_concurrency");
    changed.api(api, &new.api);
    for name in channels.keys().chain(new.channels.keys()) {
        match (channels.get(name), new.channels.get(name)) {
            (Some(one), Some(other)) => changed.channel(one, other),
            (Some(_), None) | (None, Some(_)) => changed.when(true, "alert.*", "kind"),
            (None, None) => {}
        }
    }
    let (url, interval) = (|h: &Heartbeat| h.url.clone(), |h: &Heartbeat| h.interval);
    let (was, is) = (heartbeat.as_ref(), new.heartbeat.as_ref());
    changed.when(was.map(url) != is.map(url), "heartbeat", "url");
    changed.when(was.map(interval) != is.map(interval), "heartbeat", "interval");
    changed.when(*retention != new.retention, "store", "retention");
    changed.when(*log_max_size != new.log_max_size, "store", "log_max_size");
    changed.when(*log_max_files != new.log_max_files, "store", "log_max_files");
    keys::DAEMON.keys.iter().filter(|key| changed.0.contains(&(key.section, key.name))).collect()
}

/// What the most demanding of these keys asks for; none of none.
pub fn takes(keys: &[&'static Key]) -> Option<Takes> {
    keys.iter().map(|key| key.takes).max()
}

/// Compares the fields of one section: `field: "key"`, all of them.
macro_rules! compare {
    ($changed:expr, $section:literal, $old:expr, $new:expr, $kind:ident { $($field:ident: $key:literal),* $(,)? }) => {
        let $kind { $($field),* } = $old;
        $($changed.when(*$field != $new.$field, $section, $key);)*
    };
}

/// (section, key)
#[derive(Default)]
struct Changed(BTreeSet<(&'static str, &'static str)>);

impl Changed {
    fn when(&mut self, differs: bool, section: &'static str, key: &'static str) {
        if differs {
            self.0.insert((section, key));
        }
    }

    /// Of keys that exclude each other: the one that was written, and the one that is.
    fn both(&mut self, section: &'static str, old: Option<&'static str>, new: Option<&'static str>) {
        self.0.extend([old, new].into_iter().flatten().map(|key| (section, key)));
    }

    fn unit(&mut self, old: &UnitSection, new: &UnitSection) {
        compare!(
            self,
            "unit",
            old,
            new,
            UnitSection {
                description: "description",
                requires: "requires",
                wants: "wants",
                after: "after",
                before: "before",
                conflicts: "conflicts",
                enabled: "enabled",
                critical: "critical",
                drillable: "drillable",
            }
        );
    }

    fn service(&mut self, old: &Service, new: &Service) {
        compare!(
            self,
            "service",
            old,
            new,
            Service {
                kind: "type",
                command: "command",
                start_pre: "start_pre",
                start_post: "start_post",
                stop_post: "stop_post",
                user: "user",
                group: "group",
                supplementary_groups: "supplementary_groups",
                umask: "umask",
                nice: "nice",
                oom_score_adjust: "oom_score_adjust",
                working_directory: "working_directory",
                environment: "environment",
                environment_files: "environment_files",
                instance: "instances",
            }
        );
    }

    fn readiness(&mut self, old: &Readiness, new: &Readiness) {
        let Readiness { when, timeout, settle } = old;
        if *when != new.when {
            self.both("readiness", ready_key(when), ready_key(&new.when));
        }
        self.when(*timeout != new.timeout, "readiness", "timeout");
        self.when(*settle != new.settle, "readiness", "settle");
    }

    fn health(&mut self, old: Option<&Health>, new: Option<&Health>) {
        let (old, new) = match (old, new) {
            (Some(old), Some(new)) => (old, new),
            (one, other) => {
                let key = |health: Option<&Health>| health.map(|health| health_key(&health.check));
                return self.both("health", key(one), key(other));
            }
        };
        let Health { check, interval, timeout, threshold, grace } = old;
        if *check != new.check {
            self.both("health", Some(health_key(check)), Some(health_key(&new.check)));
        }
        self.when(*interval != new.interval, "health", "interval");
        self.when(*timeout != new.timeout, "health", "timeout");
        self.when(*threshold != new.threshold, "health", "threshold");
        self.when(*grace != new.grace, "health", "grace");
    }

    fn restart(&mut self, old: &Restart, new: &Restart) {
        compare!(
            self,
            "restart",
            old,
            new,
            Restart {
                policy: "policy",
                delays: "delays",
                jitter_percent: "jitter",
                reset_after: "reset_after",
                give_up_after: "give_up_after",
                success_exit_status: "success_exit_status",
            }
        );
    }

    fn stop(&mut self, old: &Stop, new: &Stop) {
        compare!(self, "stop", old, new, Stop { signal: "signal", timeout: "timeout", command: "command" });
    }

    fn resync(&mut self, old: Option<&Resync>, new: Option<&Resync>) {
        let (old, new) = match (old, new) {
            (Some(old), Some(new)) => (old, new),
            (one, other) => {
                let key = |resync: Option<&Resync>| resync.map(|resync| resync_key(&resync.by));
                return self.both("resync", key(one), key(other));
            }
        };
        let Resync { by, timeout, delays } = old;
        if *by != new.by {
            self.both("resync", Some(resync_key(by)), Some(resync_key(&new.by)));
        }
        self.when(*timeout != new.timeout, "resync", "timeout");
        self.when(*delays != new.delays, "resync", "delays");
    }

    fn alert(&mut self, old: &Alert, new: &Alert) {
        compare!(
            self,
            "alert",
            old,
            new,
            Alert { after_failures: "after_failures", channels: "channels", repeat_every: "repeat_every" }
        );
    }

    fn log(&mut self, old: &Log, new: &Log) {
        compare!(
            self,
            "log",
            old,
            new,
            Log {
                max_size_bytes: "max_size",
                max_files: "max_files",
                max_age: "max_age",
                compress: "compress",
                stderr: "stderr",
                when_full: "when_full",
            }
        );
    }

    fn resources(&mut self, old: &Resources, new: &Resources) {
        compare!(
            self,
            "resources",
            old,
            new,
            Resources {
                memory_max_bytes: "memory_max",
                memory_high_bytes: "memory_high",
                cpu_quota_percent: "cpu_quota",
                cpu_weight: "cpu_weight",
                tasks_max: "tasks_max",
                io_weight: "io_weight",
            }
        );
    }

    fn limits(&mut self, old: &Limits, new: &Limits) {
        compare!(
            self,
            "limits",
            old,
            new,
            Limits {
                nofile: "nofile",
                nproc: "nproc",
                core_bytes: "core",
                memlock_bytes: "memlock",
                stack_bytes: "stack",
                fsize_bytes: "fsize",
                as_bytes: "as",
            }
        );
    }

    fn api(&mut self, old: &Api, new: &Api) {
        compare!(
            self,
            "api",
            old,
            new,
            Api { listen: "listen", token_file: "token_file", operators: "operators", viewers: "viewers" }
        );
    }

    fn channel(&mut self, old: &Channel, new: &Channel) {
        let Channel { kind, url, url_file, secret_file, ca_file, path, command, mail } = old;
        self.when(*kind != new.kind, "alert.*", "kind");
        self.when(*url != new.url, "alert.*", "url");
        self.when(*url_file != new.url_file, "alert.*", "url_file");
        self.when(*secret_file != new.secret_file, "alert.*", "secret_file");
        self.when(*ca_file != new.ca_file, "alert.*", "ca_file");
        self.when(*path != new.path, "alert.*", "path");
        self.when(*command != new.command, "alert.*", "command");
        self.mail(mail, &new.mail);
    }

    fn mail(&mut self, old: &Mail, new: &Mail) {
        compare!(
            self,
            "alert.*",
            old,
            new,
            Mail {
                host: "host",
                tls: "tls",
                from: "from",
                to: "to",
                user: "user",
                password_file: "password_file",
            }
        );
    }

    fn sandbox(&mut self, old: &Sandbox, new: &Sandbox) {
        compare!(
            self,
            "sandbox",
            old,
            new,
            Sandbox {
                no_new_privileges: "no_new_privileges",
                private_tmp: "private_tmp",
                protect_system: "protect_system",
                read_write_paths: "read_write_paths",
                capabilities: "capabilities",
                system_call_filter: "system_call_filter",
            }
        );
    }
}

fn net_key(check: &NetCheck) -> &'static str {
    match check {
        NetCheck::Tcp(_) => "tcp",
        NetCheck::Unix(_) => "unix",
        NetCheck::Http(_) => "http",
        NetCheck::Postgres(_) => "postgres",
        NetCheck::Redis(_) => "redis",
    }
}

/// None: nothing was written.
fn ready_key(when: &ReadyWhen) -> Option<&'static str> {
    match when {
        ReadyWhen::Executed => None,
        ReadyWhen::Notify => Some("notify"),
        ReadyWhen::NotifyFd(_) => Some("notify_fd"),
        ReadyWhen::Net(check) => Some(net_key(check)),
        ReadyWhen::Exec(_) => Some("exec"),
        ReadyWhen::Log(_) => Some("log"),
    }
}

fn health_key(check: &HealthCheck) -> &'static str {
    match check {
        HealthCheck::Net(check) => net_key(check),
        HealthCheck::Exec(_) => "exec",
        HealthCheck::Watchdog(_) => "watchdog",
    }
}

fn reload_key(reload: &Reload) -> Option<&'static str> {
    Some(match reload {
        Reload::Signal(_) => "signal",
        Reload::Command(_) => "command",
    })
}

fn resync_key(by: &ResyncBy) -> &'static str {
    match by {
        ResyncBy::Net(_) => "http",
        ResyncBy::Command(_) => "command",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::parse::parse;

    fn spec(text: &str) -> UnitSpec {
        let mut parsed = parse("web.toml", "web", text);
        parsed.specs.pop().unwrap_or_else(|| panic!("{text}: {:?}", parsed.diagnostics))
    }

    fn paths(old: &str, new: &str) -> Vec<String> {
        let command = "[service]\ncommand = [\"x\"]\n";
        let full = |text: &str| {
            if text.contains("command = [") { text.to_string() } else { format!("{command}{text}") }
        };
        changed_keys(&spec(&full(old)), &spec(&full(new))).iter().map(|key| key.path()).collect()
    }

    #[test]
    fn each_key_is_named_by_what_changed() {
        let none: [&str; 0] = [];
        assert_eq!(paths("", ""), none);
        assert_eq!(
            paths("[service]\ncommand = [\"a\"]", "[service]\ncommand = [\"b\"]"),
            ["service.command"]
        );
        assert_eq!(
            paths("", "[restart]\ndelays = [\"1s\"]\njitter = \"5%\""),
            ["restart.delays", "restart.jitter"]
        );
        assert_eq!(paths("", "[health]\ntcp = \"127.0.0.1:1\""), ["health.tcp"]);
        assert_eq!(
            paths("[health]\ntcp = \"127.0.0.1:1\"", "[health]\nunix = \"/a\"\ninterval = \"1s\""),
            ["health.tcp", "health.unix", "health.interval"]
        );
        assert_eq!(
            paths("[readiness]\nlog = 'x'", "[readiness]\nnotify = true"),
            ["readiness.notify", "readiness.log"]
        );
        assert_eq!(
            paths(
                "[unit]\nrequires = [\"a\"]",
                "[unit]\nrequires = [\"a\"]\n[dependency.a]\non_loss = \"stop\""
            ),
            ["dependency.*.on_loss"]
        );
        assert_eq!(paths("", "[unit]\nrequires = [\"a\"]"), ["unit.requires"]);
        assert_eq!(paths("", "[reload]\ncommand = \"x\""), ["reload.signal", "reload.command"]);
    }

    #[test]
    fn the_most_demanding_key_decides() {
        let key = |section, name| keys::UNIT.key(section, name).expect("a key");
        let (live, restart) = (key("restart", "delays"), key("service", "command"));
        assert_eq!(takes(&[]), None);
        assert_eq!(takes(&[live]), Some(Takes::Live));
        assert_eq!(takes(&[live, restart]), Some(Takes::Restart));
    }

    #[test]
    fn a_watchdog_needs_a_process_that_was_told_of_it() {
        let watched = spec("[service]\ncommand = [\"x\"]\n[health]\nwatchdog = \"5s\"");
        let plain = spec("[service]\ncommand = [\"x\"]");
        assert_eq!(takes(&changed_keys(&plain, &watched)), Some(Takes::Restart));
    }
}
