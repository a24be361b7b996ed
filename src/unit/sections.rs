//! Section by section: values → the parts of `UnitSpec`, and the rules between keys.
//!
//! Refuses: defaults (they stand in the key table).

use std::collections::BTreeMap;

use toml::de::DeTable;

use crate::base::check::NetCheck;
use crate::base::name::UnitName;
use crate::unit::keys::Key;
use crate::unit::parse::section;
use crate::unit::reader::{Reader, Section, Value};
use crate::unit::spec::{
    Alert, Edge, Health, HealthCheck, Limits, Log, OnLoss, OnReturn, Readiness, ReadyWhen, Reload, Resources,
    Restart, RestartPolicy, Resync, ResyncBy, Sandbox, Service, ServiceType, StderrTo, Stop, UnitSection,
    UnitSpec, WhenFull,
};

/// What was written for one of several keys that exclude each other.
struct Written<T> {
    name: &'static str,
    span: std::ops::Range<usize>,
    /// None: wrong, and reported.
    value: Option<T>,
}

impl Reader<'_> {
    /// Reads every section, whatever the others hold, so that all mistakes are told at once.
    pub fn spec(&mut self, tree: &DeTable<'_>, name: UnitName) -> Option<UnitSpec> {
        let service = section(tree, "service");
        self.shell = service.value("shell").and_then(|value| value.get_ref().as_bool()).unwrap_or(false);
        let unit = self.unit_section(section(tree, "unit"));
        let kind = self.service_type(service);
        let service_read = self.service_section(tree, service, kind);
        let readiness = self.readiness_section(section(tree, "readiness"), service, kind);
        let health = self.health_section(section(tree, "health"));
        let restart = self.restart_section(section(tree, "restart"));
        let stop = self.stop_section(section(tree, "stop"));
        let reload = self.reload_section(section(tree, "reload"));
        let dependency = self.dependency_section(tree, unit.as_ref());
        let resync = self.resync_section(section(tree, "resync"));
        let alert = self.alert_section(section(tree, "alert"));
        let log = self.log_section(section(tree, "log"));
        let resources = self.resources_section(section(tree, "resources"));
        let limits = self.limits_section(section(tree, "limits"));
        let sandbox = self.sandbox_section(section(tree, "sandbox"));
        Some(UnitSpec {
            name,
            unit: unit?,
            service: service_read?,
            readiness: readiness?,
            health: health?,
            restart: restart?,
            stop: stop?,
            reload: reload?,
            dependency: dependency?,
            resync: resync?,
            alert: alert?,
            log: log?,
            resources: resources?,
            limits: limits?,
            sandbox: sandbox?,
        })
    }

    fn unit_section(&mut self, s: Section<'_, '_>) -> Option<UnitSection> {
        let description = self.need(s, "description", Reader::text);
        let requires = self.need(s, "requires", Reader::unit_names);
        let wants = self.need(s, "wants", Reader::unit_names);
        let after = self.need(s, "after", Reader::unit_names);
        let before = self.need(s, "before", Reader::unit_names);
        let conflicts = self.need(s, "conflicts", Reader::unit_names);
        let enabled = self.need(s, "enabled", Reader::boolean);
        let critical = self.need(s, "critical", Reader::boolean);
        let drillable = self.need(s, "drillable", Reader::boolean);
        Some(UnitSection {
            description: description?,
            requires: requires?,
            wants: wants?,
            after: after?,
            before: before?,
            conflicts: conflicts?,
            enabled: enabled?,
            critical: critical?,
            drillable: drillable?,
        })
    }

    fn service_type(&mut self, s: Section<'_, '_>) -> Option<ServiceType> {
        Some(match self.need(s, "type", Reader::choice)? {
            "notify" => ServiceType::Notify,
            "oneshot" => ServiceType::Oneshot,
            "forking" => ServiceType::Forking,
            _ => ServiceType::Simple,
        })
    }

    fn service_section(
        &mut self,
        tree: &DeTable<'_>,
        s: Section<'_, '_>,
        kind: Option<ServiceType>,
    ) -> Option<Service> {
        let command = self.may(s, "command", Reader::command);
        let named = self.command_misspelt || (s.table.is_none() && tree.contains_key("service"));
        if command == Some(None) && !self.is_broken() && !named {
            let span = tree.get_key_value("service").map(|(key, _)| key.span());
            let help = "write for example command = [\"redis-server\"] in [service]".to_string();
            let message = "the unit has no `command`".to_string();
            self.error("missing-key", span.unwrap_or(0..0), message, Some(help));
        }
        let _ = self.need(s, "shell", Reader::boolean); // used before; here its type is judged
        let start_pre = self.need(s, "start_pre", Reader::commands);
        let start_post = self.need(s, "start_post", Reader::commands);
        let stop_post = self.need(s, "stop_post", Reader::commands);
        let user = self.may(s, "user", Reader::user);
        let group = self.may(s, "group", Reader::user);
        let supplementary_groups = self.need(s, "supplementary_groups", Reader::users);
        let umask = self.need(s, "umask", Reader::umask);
        let nice = self.may(s, "nice", Reader::signed);
        let oom_score_adjust = self.may(s, "oom_score_adjust", Reader::signed);
        let working_directory = self.may(s, "working_directory", Reader::path);
        let environment = self.need(s, "environment", Reader::environment);
        let environment_files = self.need(s, "environment_files", Reader::environment_files);
        Some(Service {
            kind: kind?,
            command: command??,
            start_pre: start_pre?,
            start_post: start_post?,
            stop_post: stop_post?,
            user: user?,
            group: group?,
            supplementary_groups: supplementary_groups?,
            umask: umask?,
            nice: nice?,
            oom_score_adjust: oom_score_adjust?,
            working_directory: working_directory?,
            environment: environment?,
            environment_files: environment_files?,
            instance: self.instance,
        })
    }

    /// The one key of `names` that was written; a second one is a conflict.
    fn only<T>(
        &mut self,
        s: Section<'_, '_>,
        written: Vec<Option<Written<T>>>,
    ) -> Option<Option<Written<T>>> {
        let mut all: Vec<Written<T>> = written.into_iter().flatten().collect();
        all.sort_by_key(|one| one.span.start);
        let mut sound = true;
        for other in all.iter().skip(1) {
            let first = all[0].name;
            let message = format!("[{}] has both `{first}` and `{}`", s.name, other.name);
            self.error("conflict", other.span.clone(), message, Some("keep one of them".into()));
            sound = false;
        }
        sound.then(|| all.into_iter().next())
    }

    /// Reads a key that excludes others, when it is there.
    fn alternative<T>(
        &mut self,
        s: Section<'_, '_>,
        name: &'static str,
        read: impl Fn(&mut Self, &Key, &Value<'_>) -> Option<T>,
    ) -> Option<Written<T>> {
        let span = s.value(name)?.span();
        let value = self.may(s, name, read).flatten();
        Some(Written { name, span, value })
    }

    /// The checks over the network that [readiness] and [health] share.
    fn net_alternatives<T>(
        &mut self,
        s: Section<'_, '_>,
        wrap: fn(NetCheck) -> T,
    ) -> Vec<Option<Written<T>>> {
        let mut found = Vec::new();
        type Read<'r> = fn(&mut Reader<'r>, &Key, &Value<'_>) -> Option<NetCheck>;
        let kinds: [(&'static str, Read<'_>); 5] = [
            ("http", Reader::http),
            ("tcp", Reader::tcp),
            ("unix", Reader::unix),
            ("postgres", Reader::postgres),
            ("redis", Reader::redis),
        ];
        for (name, read) in kinds {
            found.push(self.alternative(s, name, |reader, key, value| read(reader, key, value).map(wrap)));
        }
        found
    }

    fn readiness_section(
        &mut self,
        s: Section<'_, '_>,
        service: Section<'_, '_>,
        kind: Option<ServiceType>,
    ) -> Option<Readiness> {
        let mut ways = self.net_alternatives(s, ReadyWhen::Net);
        ways.push(self.alternative(s, "exec", |r, k, v| r.command(k, v).map(ReadyWhen::Exec)));
        ways.push(self.alternative(s, "log", |r, k, v| r.regex(k, v).map(ReadyWhen::Log)));
        ways.push(self.alternative(s, "notify_fd", |r, k, v| r.signed(k, v).map(ReadyWhen::NotifyFd)));
        let notify = self.need(s, "notify", Reader::boolean);
        if notify == Some(true) {
            ways.push(s.value("notify").map(|value| Written {
                name: "notify",
                span: value.span(),
                value: Some(ReadyWhen::Notify),
            }));
        }
        let is_notify = kind == Some(ServiceType::Notify);
        if is_notify && notify == Some(false) && s.value("notify").is_some() {
            self.notify_conflict(s, service, "notify");
        }
        let way = self.only(s, ways);
        let timeout = self.need(s, "timeout", Reader::timeout);
        let settle = self.need(s, "settle", Reader::duration);
        let when = match way? {
            Some(way) if is_notify && way.name != "notify" => {
                self.notify_conflict(s, service, way.name);
                return None;
            }
            Some(way) => way.value?,
            // The shell says so when the command has left its daemon behind.
            None if is_notify || kind == Some(ServiceType::Forking) => ReadyWhen::Notify,
            None => ReadyWhen::Executed,
        };
        let timeout = match kind? {
            ServiceType::Oneshot if s.value("timeout").is_none() => None,
            ServiceType::Oneshot | ServiceType::Simple | ServiceType::Notify | ServiceType::Forking => {
                timeout?
            }
        };
        Some(Readiness { when, timeout, settle: settle? })
    }

    fn notify_conflict(&mut self, s: Section<'_, '_>, service: Section<'_, '_>, name: &str) {
        let at = s.value(name).or_else(|| service.value("type")).map_or(0..0, |value| value.span());
        let message =
            format!("`type = \"notify\"` says how it becomes ready; `{name}` in [readiness] says otherwise");
        let help = format!("drop `{name}`, or set type = \"simple\"");
        self.error("conflict", at, message, Some(help));
    }

    /// A section that is there without any of the keys that say how.
    fn says_nothing(&mut self, s: Section<'_, '_>, keys: &str) {
        if let Some(table) = s.table.filter(|_| !self.is_broken()) {
            let at = table.keys().map(|key| key.span()).min_by_key(|span| span.start).unwrap_or(0..0);
            self.error(
                "missing-key",
                at,
                format!("[{}] does not say how", s.name),
                Some(format!("add {keys}")),
            );
        }
    }

    fn health_section(&mut self, s: Section<'_, '_>) -> Option<Option<Health>> {
        let mut ways = self.net_alternatives(s, HealthCheck::Net);
        ways.push(self.alternative(s, "exec", |r, k, v| r.command(k, v).map(HealthCheck::Exec)));
        ways.push(self.alternative(s, "watchdog", |r, k, v| r.interval(k, v).map(HealthCheck::Watchdog)));
        let way = self.only(s, ways);
        let interval = self.need(s, "interval", Reader::interval);
        let timeout = self.need(s, "timeout", Reader::interval);
        let threshold = self.need(s, "threshold", Reader::count);
        let grace = self.need(s, "grace", Reader::duration);
        if s.table.is_none() {
            return Some(None);
        }
        let Some(way) = way? else {
            self.says_nothing(s, "`http`, `tcp`, `unix`, `exec`, `postgres`, `redis` or `watchdog`");
            return None;
        };
        Some(Some(Health {
            check: way.value?,
            interval: interval?,
            timeout: timeout?,
            threshold: threshold?,
            grace: grace?,
        }))
    }

    fn restart_section(&mut self, s: Section<'_, '_>) -> Option<Restart> {
        let policy = self.need(s, "policy", Reader::choice);
        let delays = self.need(s, "delays", Reader::durations);
        let jitter_percent = self.need(s, "jitter", Reader::percent);
        let reset_after = self.need(s, "reset_after", Reader::duration);
        let give_up_after = self.need(s, "give_up_after", Reader::count);
        let success_exit_status = self.need(s, "success_exit_status", Reader::exit_codes);
        Some(Restart {
            policy: match policy? {
                "on-failure" => RestartPolicy::OnFailure,
                "never" => RestartPolicy::Never,
                _ => RestartPolicy::Always,
            },
            delays: delays?,
            jitter_percent: jitter_percent?,
            reset_after: reset_after?,
            give_up_after: give_up_after?,
            success_exit_status: success_exit_status?,
        })
    }

    fn stop_section(&mut self, s: Section<'_, '_>) -> Option<Stop> {
        let signal = self.need(s, "signal", Reader::signal);
        let timeout = self.need(s, "timeout", Reader::duration);
        let command = self.need(s, "command", Reader::command_or_none);
        Some(Stop { signal: signal?, timeout: timeout?, command: command? })
    }

    fn reload_section(&mut self, s: Section<'_, '_>) -> Option<Reload> {
        let ways = vec![
            self.alternative(s, "signal", |r, k, v| r.signal(k, v).map(Reload::Signal)),
            self.alternative(s, "command", |r, k, v| r.command(k, v).map(Reload::Command)),
        ];
        match self.only(s, ways)? {
            Some(way) => way.value,
            None => self.need(s, "signal", Reader::signal).map(Reload::Signal),
        }
    }

    fn dependency_section(
        &mut self,
        tree: &DeTable<'_>,
        unit: Option<&UnitSection>,
    ) -> Option<BTreeMap<UnitName, Edge>> {
        let tables = tree.get("dependency").and_then(|value| value.get_ref().as_table());
        let mut edges = BTreeMap::new();
        let mut sound = true;
        for (name, value) in tables.into_iter().flatten() {
            let s = Section { name: "dependency.*", table: value.get_ref().as_table() };
            let edge = self.edge(s);
            let word = name.get_ref().as_ref();
            let required =
                unit.and_then(|unit| unit.requires.iter().find(|required| required.as_str() == word));
            match (required, edge) {
                (Some(required), Some(edge)) => {
                    edges.insert(required.clone(), edge);
                }
                (None, _) if unit.is_some() => {
                    let help = format!("add \"{word}\" to `requires` in [unit], or drop this section");
                    let message = format!("[dependency.{word}]: `{word}` is not in `requires`");
                    self.error("unknown-dependency", name.span(), message, Some(help));
                    sound = false;
                }
                (Some(_) | None, _) => sound = false,
            }
        }
        let plain = self.edge(Section { name: "dependency.*", table: None });
        for required in unit.into_iter().flat_map(|unit| &unit.requires) {
            edges.entry(required.clone()).or_insert(plain?);
        }
        sound.then_some(edges)
    }

    fn edge(&mut self, s: Section<'_, '_>) -> Option<Edge> {
        let on_loss = self.need(s, "on_loss", Reader::choice);
        let on_return = self.need(s, "on_return", Reader::choice);
        Some(Edge {
            on_loss: match on_loss? {
                "stop" => OnLoss::Stop,
                "restart" => OnLoss::Restart,
                _ => OnLoss::Degrade,
            },
            on_return: match on_return? {
                "reload" => OnReturn::Reload,
                "restart" => OnReturn::Restart,
                "none" => OnReturn::None,
                _ => OnReturn::Resync,
            },
        })
    }

    fn resync_section(&mut self, s: Section<'_, '_>) -> Option<Option<Resync>> {
        let ways = vec![
            self.alternative(s, "http", |r, k, v| r.http(k, v).map(ResyncBy::Net)),
            self.alternative(s, "command", |r, k, v| r.command(k, v).map(ResyncBy::Command)),
        ];
        let way = self.only(s, ways);
        let timeout = self.need(s, "timeout", Reader::interval);
        let delays = self.need(s, "delays", Reader::durations);
        if s.table.is_none() {
            return Some(None);
        }
        let Some(way) = way? else {
            self.says_nothing(s, "`http` or `command`");
            return None;
        };
        Some(Some(Resync { by: way.value?, timeout: timeout?, delays: delays? }))
    }

    fn alert_section(&mut self, s: Section<'_, '_>) -> Option<Alert> {
        let after_failures = self.need(s, "after_failures", Reader::count);
        let channels = self.may(s, "channels", Reader::words);
        let repeat_every = self.need(s, "repeat_every", Reader::count);
        Some(Alert { after_failures: after_failures?, channels: channels?, repeat_every: repeat_every? })
    }

    fn log_section(&mut self, s: Section<'_, '_>) -> Option<Log> {
        let max_size_bytes = self.need(s, "max_size", Reader::size);
        let max_files = self.need(s, "max_files", Reader::count);
        let max_age = self.need(s, "max_age", Reader::duration);
        let compress = self.need(s, "compress", Reader::boolean);
        let stderr = self.need(s, "stderr", Reader::choice);
        let when_full = self.need(s, "when_full", Reader::choice);
        Some(Log {
            max_size_bytes: max_size_bytes?,
            max_files: max_files?,
            max_age: max_age?,
            compress: compress?,
            stderr: if stderr? == "separate" { StderrTo::Separate } else { StderrTo::Merge },
            when_full: if when_full? == "drop" { WhenFull::Drop } else { WhenFull::Block },
        })
    }

    fn resources_section(&mut self, s: Section<'_, '_>) -> Option<Resources> {
        let memory_max_bytes = self.may(s, "memory_max", Reader::size);
        let memory_high_bytes = self.may(s, "memory_high", Reader::size);
        let cpu_quota_percent = self.may(s, "cpu_quota", Reader::percent);
        let cpu_weight = self.may(s, "cpu_weight", Reader::count);
        let tasks_max = self.may(s, "tasks_max", Reader::large);
        let io_weight = self.may(s, "io_weight", Reader::count);
        Some(Resources {
            memory_max_bytes: memory_max_bytes?,
            memory_high_bytes: memory_high_bytes?,
            cpu_quota_percent: cpu_quota_percent?,
            cpu_weight: cpu_weight?,
            tasks_max: tasks_max?,
            io_weight: io_weight?,
        })
    }

    fn limits_section(&mut self, s: Section<'_, '_>) -> Option<Limits> {
        let nofile = self.may(s, "nofile", Reader::count_limit);
        let nproc = self.may(s, "nproc", Reader::count_limit);
        let core_bytes = self.may(s, "core", Reader::size_limit);
        let memlock_bytes = self.may(s, "memlock", Reader::size_limit);
        let stack_bytes = self.may(s, "stack", Reader::size_limit);
        let fsize_bytes = self.may(s, "fsize", Reader::size_limit);
        let as_bytes = self.may(s, "as", Reader::size_limit);
        Some(Limits {
            nofile: nofile?,
            nproc: nproc?,
            core_bytes: core_bytes?,
            memlock_bytes: memlock_bytes?,
            stack_bytes: stack_bytes?,
            fsize_bytes: fsize_bytes?,
            as_bytes: as_bytes?,
        })
    }

    fn sandbox_section(&mut self, s: Section<'_, '_>) -> Option<Sandbox> {
        let no_new_privileges = self.need(s, "no_new_privileges", Reader::boolean);
        let private_tmp = self.need(s, "private_tmp", Reader::boolean);
        let protect_system = self.need(s, "protect_system", Reader::boolean);
        let read_write_paths = self.need(s, "read_write_paths", Reader::paths);
        let capabilities = self.may(s, "capabilities", Reader::words);
        let system_call_filter = self.need(s, "system_call_filter", Reader::words);
        Some(Sandbox {
            no_new_privileges: no_new_privileges?,
            private_tmp: private_tmp?,
            protect_system: protect_system?,
            read_write_paths: read_write_paths?,
            capabilities: capabilities?,
            system_call_filter: system_call_filter?,
        })
    }
}
