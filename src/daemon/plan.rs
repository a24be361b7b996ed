//! A unit's command and the role it plays → what the keeper needs to spawn it.
//!
//! Refuses: forking, and guessing: what cannot be prepared says its step and its errno, the
//! same words that the child would have used.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::unistd::{AccessFlags, access};

use crate::base::exit::{RunId, SpawnStep};
use crate::daemon::environment;
use crate::daemon::hands::is_shortage;
use crate::engine::effect::Role;
use crate::keeper::wire::{Ids, SpawnPlan};
use crate::sys::accounts::{self, Account, AccountError};
use crate::sys::process;
use crate::unit::spec::{Command, HealthCheck, Limits, ReadyWhen, Reload, ResyncBy, Service, UnitSpec};

/// Soft limit of open files of a unit that sets none. Programs that use select(2) break
/// above it (systemd NEWS 240).
const NOFILE_SOFT: u64 = 1_024;

/// Why a run cannot be spawned at all.
#[derive(Debug)]
pub struct Refused {
    pub step: SpawnStep,
    pub errno: i32,
    /// For the daemon's own log.
    pub why: String,
}

/// What is the same for every run of this engine.
pub struct Surroundings {
    pub notify_socket: PathBuf,
    /// Makes `INVOCATION_ID` unlike that of any other home.
    pub home_id: u64,
    /// The daemon's own `LANG`.
    pub lang: Option<String>,
    /// For units that set none; None = as the daemon.
    pub oom_score_adjust: Option<i32>,
}

/// The plan for one run of `spec` in `role`.
///
/// # Errors
/// The step that cannot be done: an unknown user, a command that is nowhere, an environment
/// file that cannot be read.
pub fn plan(spec: &UnitSpec, role: Role, run: RunId, around: &Surroundings) -> Result<SpawnPlan, Refused> {
    let Some(command) = command_of(spec, role) else {
        return Err(refused(SpawnStep::Prepare, Errno::EINVAL, format!("{} has no such command", spec.name)));
    };
    let service = &spec.service;
    let user = user_of(service)?;
    let ids = ids_of(service, &user)?;
    let environment = environment_of(spec, run, &user, around)?;
    let cwd = service.working_directory.clone().unwrap_or_else(|| PathBuf::from("/"));
    let search = environment.get("PATH").map_or(environment::PATH_DEFAULT, String::as_str);
    let path = look_up(&command.argv, search, &cwd)?;
    Ok(SpawnPlan {
        path: path.as_os_str().as_bytes().to_vec(),
        argv: command.argv.iter().map(|word| word.clone().into_bytes()).collect(),
        env: environment.iter().map(|(key, value)| format!("{key}={value}").into_bytes()).collect(),
        pid_env: Vec::new(),
        cwd: Some(cwd.as_os_str().as_bytes().to_vec()),
        ids,
        umask: service.umask,
        rlimits: rlimits_of(&spec.limits),
        nice: service.nice,
        oom_score_adj: service.oom_score_adjust.or(around.oom_score_adjust),
        no_new_privs: spec.sandbox.no_new_privileges,
    })
}

fn refused(step: SpawnStep, errno: Errno, why: String) -> Refused {
    Refused { step, errno: errno as i32, why }
}

/// No such account, or none that could be looked up.
fn nobody(step: SpawnStep, error: &AccountError) -> Refused {
    Refused { step, errno: error.errno(), why: error.to_string() }
}

fn command_of(spec: &UnitSpec, role: Role) -> Option<&Command> {
    let service = &spec.service;
    match role {
        Role::Main => Some(&service.command),
        Role::StartPre(index) => service.start_pre.get(usize::from(index)),
        Role::StartPost(index) => service.start_post.get(usize::from(index)),
        Role::StopPost(index) => service.stop_post.get(usize::from(index)),
        Role::StopCommand => spec.stop.command.as_ref(),
        Role::ReloadCommand => match &spec.reload {
            Reload::Command(command) => Some(command),
            Reload::Signal(_) => None,
        },
        Role::ReadyCheck => match &spec.readiness.when {
            ReadyWhen::Exec(command) => Some(command),
            ReadyWhen::Executed
            | ReadyWhen::Notify
            | ReadyWhen::NotifyFd(_)
            | ReadyWhen::Net(_)
            | ReadyWhen::Log(_) => None,
        },
        Role::HealthCheck => match spec.health.as_ref().map(|health| &health.check) {
            Some(HealthCheck::Exec(command)) => Some(command),
            Some(HealthCheck::Net(_) | HealthCheck::Watchdog(_)) | None => None,
        },
        Role::Resync => match spec.resync.as_ref().map(|resync| &resync.by) {
            Some(ResyncBy::Command(command)) => Some(command),
            Some(ResyncBy::Net(_)) | None => None,
        },
    }
}

/// The unit's user; without one the daemon's own.
fn user_of(service: &Service) -> Result<Account, Refused> {
    let own = || process::ids().0.to_string();
    let text = service.user.clone().unwrap_or_else(own);
    accounts::user(&text).map_err(|error| nobody(SpawnStep::Uid, &error))
}

/// None: the child stays who the keeper is.
fn ids_of(service: &Service, user: &Account) -> Result<Option<Ids>, Refused> {
    if service.user.is_none() && service.group.is_none() && service.supplementary_groups.is_empty() {
        return Ok(None);
    }
    let (own_uid, own_gid) = process::ids();
    let gid = match &service.group {
        Some(text) => gid_of(text)?,
        // A number without an entry has no primary group: its own number, as useradd gives it.
        None => user.gid.unwrap_or(user.uid),
    };
    // Not root and asked to be who we are: nothing to change, and nothing we might.
    let same = own_uid != 0 && user.uid == own_uid && gid == own_gid;
    if same && service.supplementary_groups.is_empty() {
        return Ok(None);
    }
    let mut groups = match &user.name {
        Some(name) => {
            accounts::initial_groups(name, gid).map_err(|error| nobody(SpawnStep::Groups, &error))?
        }
        None => vec![gid],
    };
    for text in &service.supplementary_groups {
        groups.push(gid_of(text)?);
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Some(Ids { uid: user.uid, gid, groups }))
}

fn gid_of(text: &str) -> Result<u32, Refused> {
    accounts::group(text).map_err(|error| nobody(SpawnStep::Gid, &error))
}

fn environment_of(
    spec: &UnitSpec,
    run: RunId,
    user: &Account,
    around: &Surroundings,
) -> Result<BTreeMap<String, String>, Refused> {
    let mut environment = BTreeMap::new();
    let mut set = |key: &str, value: String| environment.insert(key.to_string(), value);
    set("PATH", environment::PATH_DEFAULT.to_string());
    if let Some(lang) = &around.lang {
        set("LANG", lang.clone());
    }
    if let Some(name) = &user.name {
        set("USER", name.clone());
        set("LOGNAME", name.clone());
    }
    for (key, path) in [("HOME", &user.home), ("SHELL", &user.shell)] {
        if let Some(path) = path {
            set(key, path.to_string_lossy().into_owned());
        }
    }
    set("INVOCATION_ID", format!("{:016x}{:016x}", around.home_id, run.0));
    set("UPRIGHT_UNIT", spec.name.to_string());
    set("UPRIGHT_RUN", run.to_string());
    if wants_notify_socket(spec) {
        set("NOTIFY_SOCKET", around.notify_socket.to_string_lossy().into_owned());
    }
    if let Some(HealthCheck::Watchdog(every)) = spec.health.as_ref().map(|health| &health.check) {
        set("WATCHDOG_USEC", every.as_micros().to_string()); // sd_watchdog_enabled(3)
    }
    environment::read_files(&spec.service.environment_files, &mut environment).map_err(|error| {
        let errno = error.errno.unwrap_or(Errno::EINVAL as i32);
        Refused { step: SpawnStep::Prepare, errno, why: error.why }
    })?;
    environment.extend(spec.service.environment.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(environment)
}

/// The unit speaks sd_notify(3).
fn wants_notify_socket(spec: &UnitSpec) -> bool {
    let ready = matches!(spec.readiness.when, ReadyWhen::Notify);
    let alive = matches!(spec.health.as_ref().map(|health| &health.check), Some(HealthCheck::Watchdog(_)));
    ready || alive
}

/// The file behind `argv[0]`: with a `/` it is taken from `cwd`, without one it is searched
/// along the unit's PATH, as execvp(3) does it.
fn look_up(argv: &[String], search: &str, cwd: &Path) -> Result<PathBuf, Refused> {
    let Some(word) = argv.first() else {
        return Err(refused(SpawnStep::Exec, Errno::ENOENT, "the command is empty".to_string()));
    };
    if word.contains('/') {
        return Ok(cwd.join(word));
    }
    let mut errno = Errno::ENOENT;
    for dir in search.split(':').filter(|dir| !dir.is_empty()) {
        let path = cwd.join(dir).join(word);
        match path.metadata() {
            Ok(found) if found.is_file() => {}
            Ok(_) => continue,
            Err(error) => {
                // It may well be there.
                if let Some(errno) = error.raw_os_error().filter(|errno| is_shortage(*errno)) {
                    let why = format!("cannot look for `{word}`: {error}");
                    return Err(Refused { step: SpawnStep::Prepare, errno, why });
                }
                continue;
            }
        }
        match access(&path, AccessFlags::X_OK) {
            Ok(()) => return Ok(path),
            Err(_) => errno = Errno::EACCES,
        }
    }
    Err(refused(SpawnStep::Exec, errno, format!("`{word}` is not to be found along {search}")))
}

fn rlimits_of(limits: &Limits) -> Vec<(u32, u64, u64)> {
    let set = [
        (Resource::RLIMIT_NPROC, limits.nproc),
        (Resource::RLIMIT_CORE, limits.core_bytes),
        (Resource::RLIMIT_MEMLOCK, limits.memlock_bytes),
        (Resource::RLIMIT_STACK, limits.stack_bytes),
        (Resource::RLIMIT_FSIZE, limits.fsize_bytes),
        (Resource::RLIMIT_AS, limits.as_bytes),
    ];
    let mut all: Vec<(u32, u64, u64)> = set
        .into_iter()
        .filter_map(|(resource, value)| value.map(|value| (resource as u32, value, value)))
        .collect();
    let nofile = match limits.nofile {
        Some(value) => (value, value),
        None => {
            // The hard limit stays: a program that needs more raises its own soft limit.
            let hard = process::nofile().map_or(NOFILE_SOFT, |(_, hard)| hard);
            (NOFILE_SOFT.min(hard), hard)
        }
    };
    all.push((Resource::RLIMIT_NOFILE as u32, nofile.0, nofile.1));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::name::UnitName;

    #[test]
    fn a_unit_has_its_own_place_in_the_oom_order_or_that_of_the_surroundings() {
        let mut spec = UnitSpec::minimal(UnitName::parse("a").expect("name"), vec!["/bin/true".into()]);
        let mut around =
            Surroundings { notify_socket: PathBuf::new(), home_id: 1, lang: None, oom_score_adjust: None };
        let mut planned = |own: Option<i32>, default: Option<i32>| {
            spec.service.oom_score_adjust = own;
            around.oom_score_adjust = default;
            let plan = plan(&spec, Role::Main, RunId(1), &around);
            plan.map(|plan| plan.oom_score_adj).map_err(|refused| refused.why)
        };
        assert_eq!(planned(None, None), Ok(None));
        assert_eq!(planned(None, Some(0)), Ok(Some(0)));
        assert_eq!(planned(Some(-5), Some(0)), Ok(Some(-5)));
    }
}
