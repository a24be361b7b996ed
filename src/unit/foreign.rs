//! What other supervisors call our keys, and which of our keys a wrong one was meant to be.
//!
//! Refuses: reading those supervisors' files (`upright import` does that).

use crate::unit::keys::Dialect;

/// (their spelling in lower case, our section, our key). systemd.unit(5), systemd.service(5),
/// systemd.exec(5), systemd.resource-control(5); supervisord's `[program:x]` section; and
/// what people try first.
#[rustfmt::skip]
const SPELLINGS: &[(&str, &str, &str)] = &[
    ("execstart", "service", "command"), ("exec", "service", "command"), ("cmd", "service", "command"),
    ("exec_start", "service", "command"), ("run", "service", "command"), ("args", "service", "command"),
    ("execstartpre", "service", "start_pre"), ("execstartpost", "service", "start_post"),
    ("execstop", "stop", "command"), ("execstoppost", "service", "stop_post"), ("execreload", "reload", "command"),
    ("restart", "restart", "policy"), ("autorestart", "restart", "policy"), ("restart_policy", "restart", "policy"),
    ("restartsec", "restart", "delays"), ("restart_sec", "restart", "delays"), ("backoff", "restart", "delays"),
    ("delay", "restart", "delays"), ("startretries", "restart", "give_up_after"),
    ("startlimitburst", "restart", "give_up_after"), ("max_retries", "restart", "give_up_after"),
    ("startlimitinterval", "restart", "reset_after"), ("startlimitintervalsec", "restart", "reset_after"),
    ("successexitstatus", "restart", "success_exit_status"), ("exitcodes", "restart", "success_exit_status"),
    ("timeoutstartsec", "readiness", "timeout"), ("timeoutstopsec", "stop", "timeout"),
    ("timeoutsec", "stop", "timeout"), ("stopwaitsecs", "stop", "timeout"), ("stop_timeout", "stop", "timeout"),
    ("startsecs", "readiness", "settle"), ("killsignal", "stop", "signal"), ("stopsignal", "stop", "signal"),
    ("stop_signal", "stop", "signal"), ("kill_signal", "stop", "signal"),
    ("autostart", "unit", "enabled"), ("wantedby", "unit", "enabled"), ("numprocs", "service", "instances"),
    ("depends_on", "unit", "requires"), ("depends", "unit", "requires"), ("needs", "unit", "requires"),
    ("bindsto", "unit", "requires"), ("requisite", "unit", "requires"),
    ("directory", "service", "working_directory"), ("workingdirectory", "service", "working_directory"),
    ("cwd", "service", "working_directory"), ("workdir", "service", "working_directory"),
    ("env", "service", "environment"), ("environmentfile", "service", "environment_files"),
    ("environment_file", "service", "environment_files"), ("env_file", "service", "environment_files"),
    ("supplementarygroups", "service", "supplementary_groups"), ("oomscoreadjust", "service", "oom_score_adjust"),
    ("watchdogsec", "health", "watchdog"), ("healthcheck", "health", "http"),
    ("notifyaccess", "readiness", "notify"), ("stdout_logfile_maxbytes", "log", "max_size"),
    ("stdout_logfile_backups", "log", "max_files"), ("redirect_stderr", "log", "stderr"),
    ("memorymax", "resources", "memory_max"), ("memorylimit", "resources", "memory_max"),
    ("memoryhigh", "resources", "memory_high"), ("cpuquota", "resources", "cpu_quota"),
    ("cpuweight", "resources", "cpu_weight"), ("tasksmax", "resources", "tasks_max"),
    ("ioweight", "resources", "io_weight"), ("limitnofile", "limits", "nofile"), ("minfds", "limits", "nofile"),
    ("limitnproc", "limits", "nproc"), ("limitcore", "limits", "core"), ("limitmemlock", "limits", "memlock"),
    ("limitstack", "limits", "stack"), ("limitfsize", "limits", "fsize"), ("limitas", "limits", "as"),
    ("nonewprivileges", "sandbox", "no_new_privileges"), ("privatetmp", "sandbox", "private_tmp"),
    ("protectsystem", "sandbox", "protect_system"), ("readwritepaths", "sandbox", "read_write_paths"),
    ("capabilityboundingset", "sandbox", "capabilities"), ("systemcallfilter", "sandbox", "system_call_filter"),
];

/// Section names of others.
#[rustfmt::skip]
const SECTIONS: &[(&str, &str)] = &[
    ("install", "unit"), ("program", "service"), ("dependencies", "dependency"), ("deps", "dependency"),
    ("logs", "log"), ("logging", "log"), ("alerts", "alert"), ("liveness", "health"), ("healthcheck", "health"),
    ("ready", "readiness"), ("rlimits", "limits"), ("security", "sandbox"),
];

/// Where a misspelt key belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meant {
    pub section: &'static str,
    pub name: &'static str,
}

/// The key that `name` in `section` was meant to be: another supervisor's word, a typing
/// error, or a right key in the wrong section. None when nothing is near.
pub fn meant_key(dialect: &Dialect, section: &str, name: &str) -> Option<Meant> {
    let plain = name.to_ascii_lowercase().replace('-', "_");
    let here = || dialect.section_keys(section).map(|key| key.name);
    let of = |section: &'static str, name: &'static str| Meant { section, name };
    if let Some(key) = dialect.section_keys(section).find(|key| key.name == plain) {
        return Some(of(key.section, key.name));
    }
    if dialect.code == "unit" {
        let found = SPELLINGS.iter().find(|(theirs, _, _)| *theirs == plain);
        if let Some((_, section, name)) = found {
            return Some(of(section, name));
        }
    }
    if let Some(near) = nearest(&plain, here())
        && let Some(key) = dialect.section_keys(section).find(|key| key.name == near)
    {
        return Some(of(key.section, key.name));
    }
    let elsewhere = dialect.keys.iter().find(|key| key.name == plain);
    if let Some(key) = elsewhere {
        return Some(of(key.section, key.name));
    }
    if dialect.code == "unit"
        && let Some(near) = nearest(&plain, SPELLINGS.iter().map(|(theirs, _, _)| *theirs))
        && let Some((_, section, name)) = SPELLINGS.iter().find(|(theirs, _, _)| *theirs == near)
    {
        return Some(of(section, name));
    }
    let near = nearest(&plain, dialect.keys.iter().map(|key| key.name))?;
    dialect.keys.iter().find(|key| key.name == near).map(|key| of(key.section, key.name))
}

/// The section that `name` was meant to be, without its `.*`.
pub fn meant_section(dialect: &Dialect, name: &str) -> Option<&'static str> {
    let plain = name.to_ascii_lowercase().replace('-', "_");
    let bare = |section: &'static str| section.strip_suffix(".*").unwrap_or(section);
    let sections: Vec<&'static str> = dialect.sections().into_iter().map(bare).collect();
    if let Some(same) = sections.iter().find(|section| **section == plain) {
        return Some(same);
    }
    if dialect.code == "unit" {
        let word = plain.split([':', '.']).next().unwrap_or_default();
        if let Some((_, ours)) = SECTIONS.iter().find(|(theirs, _)| *theirs == word) {
            return Some(ours);
        }
    }
    let near = nearest(&plain, sections.iter().copied())?;
    sections.into_iter().find(|section| *section == near)
}

/// The candidate with the fewest typing errors, when they are few for its length.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 80 {
        return None; // nobody mistypes that far, and the distance costs length²
    }
    let allowed = (name.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
