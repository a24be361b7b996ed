//! A unit's command and the role it plays → what the keeper needs to spawn it.
//!
//! Refuses: forking, and guessing: what cannot be prepared says its step and its errno, the
//! same words that the child would have used.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, Gid, Group, Uid, User, access, getgrouplist, geteuid};

use crate::base::exit::{RunId, SpawnStep};
use crate::daemon::environment;
use crate::engine::effect::Role;
use crate::keeper::wire::{Ids, SpawnPlan};
use crate::unit::spec::{Command, HealthCheck, Limits, ReadyWhen, Reload, Service, UnitSpec};

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
    let ids = ids_of(service, user.as_ref())?;
    let environment = environment_of(spec, run, user.as_ref(), around)?;
    let cwd = service.working_directory.clone().unwrap_or_else(|| PathBuf::from("/"));
    let search = environment.get("PATH").map_or(environment::PATH_DEFAULT, String::as_str);
    let path = look_up(&command.argv, search, &cwd)?;
    Ok(SpawnPlan {
        path: path.as_os_str().as_bytes().to_vec(),
        argv: command.argv.iter().map(|word| word.clone().into_bytes()).collect(),
        env: environment.iter().map(|(key, value)| format!("{key}={value}").into_bytes()).collect(),
        cwd: Some(cwd.as_os_str().as_bytes().to_vec()),
        ids,
        umask: service.umask,
        rlimits: rlimits_of(&spec.limits),
        nice: service.nice,
        oom_score_adj: service.oom_score_adjust,
        no_new_privs: spec.sandbox.no_new_privileges,
    })
}

fn refused(step: SpawnStep, errno: Errno, why: String) -> Refused {
    Refused { step, errno: errno as i32, why }
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
    }
}

/// The unit's user; without one the daemon's own. None when that has no name.
fn user_of(service: &Service) -> Result<Option<User>, Refused> {
    let own = || User::from_uid(geteuid());
    let found = match &service.user {
        None => own(),
        Some(text) => match text.parse::<u32>() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) => User::from_name(text),
        },
    };
    match (found, &service.user) {
        (Ok(None), Some(text)) => Err(refused(SpawnStep::Uid, Errno::ENOENT, format!("no user is named `{text}`"))),
        (Ok(user), _) => Ok(user),
        // Without a user database a unit that names no user needs none.
        (Err(_), None) => Ok(None),
        (Err(errno), Some(text)) => {
            Err(refused(SpawnStep::Uid, errno, format!("cannot look up the user `{text}`: {errno}")))
        }
    }
}

/// None: the child stays who the keeper is.
fn ids_of(service: &Service, user: Option<&User>) -> Result<Option<Ids>, Refused> {
    if service.user.is_none() && service.group.is_none() && service.supplementary_groups.is_empty() {
        return Ok(None);
    }
    let gid = match &service.group {
        Some(text) => gid_of(text)?,
        None => user.map_or_else(nix::unistd::getegid, |user| user.gid),
    };
    let uid = user.map_or_else(geteuid, |user| user.uid);
    let mut groups = match user {
        Some(user) => groups_of(user, gid)?,
        None => vec![gid.as_raw()],
    };
    for text in &service.supplementary_groups {
        groups.push(gid_of(text)?.as_raw());
    }
    groups.sort_unstable();
    groups.dedup();
    // Not root and asked to be who we are: nothing to change, and nothing we might.
    let same = !geteuid().is_root() && uid == geteuid() && gid == nix::unistd::getegid();
    if same && service.supplementary_groups.is_empty() {
        return Ok(None);
    }
    Ok(Some(Ids { uid: uid.as_raw(), gid: gid.as_raw(), groups }))
}

fn groups_of(user: &User, gid: Gid) -> Result<Vec<u32>, Refused> {
    let cannot = |errno| {
        let why = format!("cannot look up the groups of `{}`: {errno}", user.name);
        refused(SpawnStep::Groups, errno, why)
    };
    let name = CString::new(user.name.as_str()).map_err(|_| cannot(Errno::EINVAL))?;
    let groups = getgrouplist(&name, gid).map_err(cannot)?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

fn gid_of(text: &str) -> Result<Gid, Refused> {
    if let Ok(gid) = text.parse::<u32>() {
        return Ok(Gid::from_raw(gid));
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(refused(SpawnStep::Gid, Errno::ENOENT, format!("no group is named `{text}`"))),
        Err(errno) => {
            Err(refused(SpawnStep::Gid, errno, format!("cannot look up the group `{text}`: {errno}")))
        }
    }
}

fn environment_of(
    spec: &UnitSpec,
    run: RunId,
    user: Option<&User>,
    around: &Surroundings,
) -> Result<BTreeMap<String, String>, Refused> {
    let mut environment = BTreeMap::new();
    let mut set = |key: &str, value: String| environment.insert(key.to_string(), value);
    set("PATH", environment::PATH_DEFAULT.to_string());
    if let Some(lang) = &around.lang {
        set("LANG", lang.clone());
    }
    if let Some(user) = user {
        set("USER", user.name.clone());
        set("LOGNAME", user.name.clone());
        set("HOME", user.dir.to_string_lossy().into_owned());
        set("SHELL", user.shell.to_string_lossy().into_owned());
    }
    set("INVOCATION_ID", format!("{:016x}{:016x}", around.home_id, run.0));
    set("UPRIGHT_UNIT", spec.name.to_string());
    set("UPRIGHT_RUN", run.to_string());
    if wants_notify_socket(spec) {
        set("NOTIFY_SOCKET", around.notify_socket.to_string_lossy().into_owned());
    }
    environment::read_files(&spec.service.environment_files, &mut environment).map_err(|error| {
        let errno = if error.kind() == io::ErrorKind::NotFound { Errno::ENOENT } else { Errno::EINVAL };
        refused(SpawnStep::Prepare, errno, error.to_string())
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
        if !path.is_file() {
            continue;
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
    let mut all: Vec<(u32, u64, u64)> =
        set.into_iter().filter_map(|(resource, value)| value.map(|value| (resource as u32, value, value))).collect();
    let nofile = match limits.nofile {
        Some(value) => (value, value),
        None => {
            // The hard limit stays: a program that needs more raises its own soft limit.
            let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(NOFILE_SOFT, |(_, hard)| hard);
            (NOFILE_SOFT.min(hard), hard)
        }
    };
    all.push((Resource::RLIMIT_NOFILE as u32, nofile.0, nofile.1));
    all
}
