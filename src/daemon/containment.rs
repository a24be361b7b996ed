//! What belongs to a unit: everything in its cgroup; without cgroup rights its sessions and
//! what carries its mark below the keeper ("weak").
//!
//! Refuses: signalling by process group or by name; only processes known to be the unit's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::engine::event::Rest;
use crate::sys::cgroup::{Tree, UnitGroup};
use crate::sys::pidfd;
use crate::sys::proctree::{self, Marks};
use crate::sys::usage::Place;
use crate::sys::watched::{Wake, watched};
use crate::unit::spec::Resources;

/// `cpu.max` in microseconds: a quota is a share of this much time (cgroup-v2.rst).
const CPU_PERIOD_US: u64 = 100_000;

/// Where the boundary of a unit runs.
pub struct Containment {
    keeper_pid: i32,
    kind: Kind,
    /// Units of which not everything could be killed for want of something.
    unkilled: BTreeSet<UnitName>,
}

enum Kind {
    Groups {
        tree: Tree,
        units: BTreeMap<UnitName, UnitGroup>,
    },
    /// Pids of the unit's runs since it was last seen empty: each began a session.
    Weak {
        sessions: BTreeMap<UnitName, Sessions>,
    },
}

/// Sessions of one unit.
#[derive(Default)]
struct Sessions {
    all: BTreeSet<i32>,
    /// Those that an earlier keeper began.
    orphans: BTreeSet<i32>,
}

/// Wakes up when a unit may have become empty.
pub struct Watch(Option<AsyncFd<OwnedFd>>);

impl Watch {
    /// Returns when the kernel says that something changed; never where it cannot say.
    pub async fn changed(&mut self) {
        let Some(events) = &self.0 else { return std::future::pending().await };
        if let Ok(mut ready) = events.ready(Interest::PRIORITY).await {
            ready.clear_ready();
        }
    }
}

impl Containment {
    /// Cgroups where we may make them. `state`, a directory that outlives the daemon, tells
    /// those of several daemons apart: by device and inode, which mean the same directory in
    /// every mount namespace and every build (a path, or a hash of one, does not).
    ///
    /// # Errors
    /// A shortage. Going on without the cgroups that units are in would lose sight of what is in them.
    pub fn open(state: &Path, keeper_pid: i32) -> io::Result<Containment> {
        let meta = std::fs::metadata(state)?;
        let kind = match Tree::create(&format!("{:x}-{:x}", meta.dev(), meta.ino()))? {
            Some(tree) => Kind::Groups { tree, units: BTreeMap::new() },
            None => Kind::Weak { sessions: BTreeMap::new() },
        };
        Ok(Containment { keeper_pid, kind, unkilled: BTreeSet::new() })
    }

    /// How far a stop reaches, as the API says it.
    pub fn word(&self) -> &'static str {
        match self.kind {
            Kind::Groups { .. } => "cgroup",
            Kind::Weak { .. } => "weak",
        }
    }

    /// The unit's cgroup, for a child that is to be born in it, with its limits set.
    ///
    /// # Errors
    /// As mkdir(2) and open(2).
    pub fn enter(&mut self, unit: &UnitName, resources: &Resources) -> io::Result<Option<OwnedFd>> {
        let Kind::Groups { tree, units } = &mut self.kind else { return Ok(None) };
        let group = group_of(tree, units, unit)?;
        if group.is_spent() && group.is_empty() {
            group.remove()?;
            units.remove(unit);
        }
        let group = group_of(tree, units, unit)?;
        let procs = match group.dir_fd() {
            Ok(procs) => procs,
            // Somebody removed the empty cgroup behind our back.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                units.remove(unit);
                group_of(tree, units, unit)?.dir_fd()?
            }
            Err(error) => return Err(error),
        };
        if let Some(group) = units.get(unit) {
            limit(unit, group, resources);
        }
        Ok(Some(procs))
    }

    /// Units that have a cgroup here, empty or not, whoever made it.
    ///
    /// # Errors
    /// They cannot be listed now.
    pub fn known_units(&self) -> io::Result<BTreeSet<UnitName>> {
        Ok(match &self.kind {
            Kind::Groups { tree, .. } => {
                tree.units()?.iter().filter_map(|name| UnitName::parse(name).ok()).collect()
            }
            Kind::Weak { sessions } => sessions.keys().cloned().collect(),
        })
    }

    /// A run of the unit began its session.
    pub fn on_spawned(&mut self, unit: &UnitName, pid: i32) {
        if let Kind::Weak { sessions } = &mut self.kind {
            sessions.entry(unit.clone()).or_default().all.insert(pid);
        }
    }

    /// The keeper adopted a run of the unit, which began its session under another one.
    pub fn on_adopted(&mut self, unit: &UnitName, pid: i32) {
        self.on_spawned(unit, pid);
        if let Kind::Weak { sessions } = &mut self.kind {
            sessions.entry(unit.clone()).or_default().orphans.insert(pid);
        }
    }

    /// Whether the unit has processes besides those in `runs`.
    pub fn rest(&mut self, unit: &UnitName, runs: &[i32]) -> Rest {
        let alive = match &mut self.kind {
            Kind::Groups { tree, units } => match group_of(tree, units, unit) {
                Ok(group) if group.is_empty() => false,
                // Cannot be seen: not empty, and asked again.
                Ok(group) if !runs.is_empty() => {
                    group.pids().map_or(true, |pids| pids.iter().any(|pid| !runs.contains(pid)))
                }
                Ok(_) | Err(_) => true,
            },
            Kind::Weak { sessions } => {
                let known = known_sessions(sessions, unit);
                let members = proctree::members(marks(unit, self.keeper_pid, &known));
                if members.is_empty() {
                    sessions.remove(unit);
                }
                members.iter().any(|pid| !runs.contains(pid))
            }
        };
        if !alive && runs.is_empty() {
            self.unkilled.remove(unit);
        }
        if alive { Rest::Alive } else { Rest::Empty }
    }

    /// Signals every process of the unit.
    ///
    /// # Errors
    /// The first that was refused; the others are signalled all the same.
    pub fn signal_all(&mut self, unit: &UnitName, signal: Signal) -> io::Result<()> {
        match &mut self.kind {
            Kind::Groups { tree, units } => group_of(tree, units, unit)?.signal_all(signal).map(drop),
            Kind::Weak { sessions } => {
                let known = known_sessions(sessions, unit);
                proctree::signal_all(marks(unit, self.keeper_pid, &known), signal).map(drop)
            }
        }
    }

    /// SIGKILL to everything that the unit ever forked and that can be found.
    ///
    /// # Errors
    /// As `signal_all`.
    pub fn kill_all(&mut self, unit: &UnitName) -> io::Result<()> {
        let killed = match &mut self.kind {
            Kind::Groups { tree, units } => group_of(tree, units, unit).and_then(UnitGroup::kill),
            Kind::Weak { sessions } => {
                let known = known_sessions(sessions, unit);
                proctree::kill_all(marks(unit, self.keeper_pid, &known))
            }
        };
        match killed {
            Ok(()) => _ = self.unkilled.remove(unit),
            Err(_) => _ = self.unkilled.insert(unit.clone()),
        }
        killed
    }

    /// The unit is not empty yet: kills what an earlier `kill_all` could not reach.
    pub fn kill_again(&mut self, unit: &UnitName) {
        if self.unkilled.contains(unit) {
            let _ = self.kill_all(unit); // told the first time; this is asked again
        }
    }

    /// The unit that process `pid` belongs to; `process` is its pidfd, where there is one. With
    /// it the answer is about this process even when it has ended (Linux 6.17 on), and never about
    /// another one that got its pid.
    pub fn owner(&self, pid: i32, process: Option<&OwnedFd>) -> Option<UnitName> {
        let alive = |process: &OwnedFd| !pidfd::has_ended(process);
        match &self.kind {
            Kind::Groups { tree, units } => {
                if let Some(unit) = tree.unit_of(pid).filter(|_| process.is_none_or(alive)) {
                    return UnitName::parse(&unit).ok();
                }
                let id = pidfd::cgroup_id(process?)?;
                units.iter().find(|(_, group)| group.id() == id).map(|(unit, _)| unit.clone())
            }
            Kind::Weak { sessions } => {
                let shown = proctree::shown(pid, self.keeper_pid).filter(|_| process.is_none_or(alive))?;
                let mut by_session = sessions.iter().filter(|(_, known)| known.all.contains(&shown.session));
                let marked = || UnitName::parse(shown.mark.as_deref()?).ok();
                by_session.next().map(|(unit, _)| unit.clone()).or_else(marked)
            }
        }
    }

    /// Whether this process belongs to the unit, also one that an earlier keeper spawned.
    pub fn is_of(&self, unit: &UnitName, pid: i32, process: &OwnedFd) -> bool {
        let marked = || match self.kind {
            Kind::Groups { .. } => false,
            Kind::Weak { .. } => proctree::is_marked(pid, unit.as_str()) && !pidfd::has_ended(process),
        };
        self.owner(pid, Some(process)).as_ref() == Some(unit) || marked()
    }

    /// The one process of the unit whose parent is the keeper: what a daemon that went to the
    /// background has become. None when there are several, or none.
    pub fn only_child(&self, unit: &UnitName) -> Option<i32> {
        let pids = match &self.kind {
            Kind::Groups { units, .. } => units.get(unit)?.pids().ok()?,
            Kind::Weak { sessions } => {
                let known = known_sessions(sessions, unit);
                proctree::members(marks(unit, self.keeper_pid, &known))
            }
        };
        let mut own = pids.into_iter().filter(|pid| proctree::parent_of(*pid) == Some(self.keeper_pid));
        let only = own.next()?;
        own.next().is_none().then_some(only)
    }

    /// Where the processes of each unit are that may have some.
    pub fn places(&self) -> BTreeMap<UnitName, Place> {
        let own = |known: &Sessions| Place::Sessions(known.all.clone());
        match &self.kind {
            Kind::Groups { units, .. } => {
                let place = |group: &UnitGroup| Place::Group(group.path().to_path_buf());
                units.iter().map(|(unit, group)| (unit.clone(), place(group))).collect()
            }
            Kind::Weak { sessions } => {
                sessions.iter().map(|(unit, known)| (unit.clone(), own(known))).collect()
            }
        }
    }

    /// Something to wait on while the unit is not empty.
    pub fn watch(&mut self, unit: &UnitName) -> Watch {
        let Kind::Groups { tree, units } = &mut self.kind else { return Watch(None) };
        let events = group_of(tree, units, unit).and_then(|group| group.events_fd().try_clone_to_owned());
        Watch(events.and_then(|fd| watched(fd, Wake::Change)).ok())
    }

    /// The unit is gone from the files and at rest.
    pub fn forget(&mut self, unit: &UnitName) {
        match &mut self.kind {
            Kind::Groups { units, .. } => {
                if let Some(group) = units.remove(unit) {
                    let _ = group.remove(); // not empty after all: the tree goes at the end
                }
            }
            Kind::Weak { sessions } => _ = sessions.remove(unit),
        }
    }

    /// Takes the cgroups away at the very end.
    pub fn remove(&self) {
        if let Kind::Groups { tree, .. } = &self.kind
            && let Err(error) = tree.remove()
        {
            tracing::warn!("cannot remove the cgroups: {error}");
        }
    }
}

fn group_of<'g>(
    tree: &Tree,
    units: &'g mut BTreeMap<UnitName, UnitGroup>,
    unit: &UnitName,
) -> io::Result<&'g mut UnitGroup> {
    if !units.contains_key(unit) {
        units.insert(unit.clone(), tree.unit(unit.as_str())?);
    }
    units.get_mut(unit).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// (all, orphans)
fn known_sessions(sessions: &BTreeMap<UnitName, Sessions>, unit: &UnitName) -> (Vec<i32>, Vec<i32>) {
    let known = sessions.get(unit);
    let list = |set: &BTreeSet<i32>| set.iter().copied().collect();
    known.map_or_else(Default::default, |known| (list(&known.all), list(&known.orphans)))
}

fn marks<'a>(unit: &'a UnitName, keeper_pid: i32, (all, orphans): &'a (Vec<i32>, Vec<i32>)) -> Marks<'a> {
    Marks { unit: unit.as_str(), keeper_pid, sessions: all, orphans }
}

/// A control that the kernel does not have here (its controller is not enabled) is said and
/// done without: a service without its limit is better than no service.
fn limit(unit: &UnitName, group: &UnitGroup, resources: &Resources) {
    let text = |value: Option<u64>| value.map(|value| value.to_string());
    let cpu_max = resources
        .cpu_quota_percent
        .map(|percent| format!("{} {CPU_PERIOD_US}", u64::from(percent) * CPU_PERIOD_US / 100));
    let controls = [
        ("memory.max", text(resources.memory_max_bytes)),
        ("memory.high", text(resources.memory_high_bytes)),
        ("cpu.max", cpu_max),
        ("cpu.weight", text(resources.cpu_weight.map(u64::from))),
        ("pids.max", text(resources.tasks_max)),
        ("io.weight", text(resources.io_weight.map(u64::from))),
    ];
    for (control, value) in controls {
        if let Some(value) = value
            && let Err(error) = group.set(control, &value)
        {
            tracing::warn!("cannot set {control} of {unit} to {value}: {error}");
        }
    }
}
