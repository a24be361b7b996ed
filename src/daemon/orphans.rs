//! Runs of a keeper that died. While it lives, the store is told who they are; its successor gets those
//! that still live, and of the others an end of which nobody knows how it came.
//!
//! Refuses: a process that cannot be proven to be the one that was started. It is never signalled;
//! its run has ended then, status unknown, and that is said aloud.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::config::paths::Home;
use crate::daemon::containment::Containment;
use crate::daemon::hands::{Hands, Late, ask};
use crate::daemon::pipes::{Name, Pipes};
use crate::daemon::tag::Tag;
use crate::engine::effect::Role;
use crate::keeper::client::Client;
use crate::keeper::fdstore_systemd::pipe_of;
use crate::keeper::wire::{HOLD_NOTIFY_FD, HOLD_STDERR, HOLD_STDOUT, Orphan, Request, TableRow};
use crate::logs::Stream;
use crate::store::run::RunRow;
use crate::store::writer::Write;
use crate::sys::{clock, pidfd, process, proctree};

/// The pipes that a run may have.
const LABELS: [u8; 3] = [HOLD_STDOUT, HOLD_STDERR, HOLD_NOTIFY_FD];

/// What of the remembered runs is not in the keeper's table.
#[derive(Debug, Default)]
pub struct Survey {
    /// Of a keeper that died in this world: rows as its table had them.
    pub rows: Vec<TableRow>,
    /// Those of them that live, and are the keeper's now.
    pub adopted: Vec<(UnitName, i32)>,
    /// Runs of which systemd kept a pipe, and of which nothing is remembered.
    pub kept: BTreeSet<RunId>,
    /// Live processes that cannot be proven to be who they should be, with the reason.
    pub unproven: Vec<(UnitName, i32, String)>,
}

/// Read ends that systemd kept while no keeper lived.
type KeptPipes = BTreeMap<(RunId, u8), OwnedFd>;

/// Takes those out of what the keeper holds.
fn kept_pipes(held: &mut Vec<(Vec<u8>, OwnedFd)>) -> KeptPipes {
    let is_pipe = |(name, _): &mut (Vec<u8>, OwnedFd)| pipe_of(name).is_some();
    held.extract_if(.., is_pipe).filter_map(|(name, fd)| Some((pipe_of(&name)?, fd))).collect()
}

/// Where runs live: what makes their pids, their boundary and their pipes findable.
pub struct Ground {
    /// `sys::process::world`.
    pub world: String,
    pub containment: Containment,
    pub pipes: Pipes,
}

impl Ground {
    /// # Errors
    /// The cgroups cannot be looked at now.
    pub fn open(home: &Home, keeper_pid: i32) -> io::Result<Ground> {
        // The state directory outlives the daemon, and tells its cgroups from those of others.
        let containment = Containment::open(home.db.parent().unwrap_or(&home.run_dir), keeper_pid)?;
        Ok(Ground { world: process::world(), containment, pipes: Pipes::open(&home.run_dir) })
    }
}

/// Looks for every run that is remembered and not in `known`, and has the keeper adopt who lives.
pub fn survey(
    remembered: &[RunRow],
    ground: &Ground,
    known: &[TableRow],
    held: &mut Vec<(Vec<u8>, OwnedFd)>,
    keeper: &mut Client,
) -> Survey {
    let known: BTreeSet<RunId> = known.iter().map(|row| row.run).collect();
    let mut kept = kept_pipes(held);
    let mut survey = Survey::default();
    for row in remembered.iter().filter(|row| row.world == ground.world && !known.contains(&row.run)) {
        let Some(Tag { unit, .. }) = Tag::from_bytes(&row.tag) else { continue };
        let pipe = |label: u8| {
            let named = || ground.pipes.reopen(&Name { unit: unit.clone(), run: row.run, label });
            Some((label, kept.remove(&(row.run, label)).or_else(named)?))
        };
        let held: Vec<(u8, OwnedFd)> = LABELS.into_iter().filter_map(pipe).collect();
        let process = match find(row, &unit, &ground.containment) {
            Ok(process) => Some(process),
            Err(Missing::Ended) => None,
            Err(Missing::Unproven(why)) => {
                survey.unproven.push((unit.clone(), row.pid, why));
                None
            }
        };
        let ended = if process.is_some() { None } else { Some((clock::monotonic(), Exit::Unknown)) };
        if let Some(process) = process {
            survey.adopted.push((unit, row.pid));
            let twins = held.iter().filter_map(|(label, fd)| Some((*label, fd.try_clone().ok()?)));
            ask(keeper, Request::Adopt { orphan: orphan_of(row), process, held: twins.collect() });
        }
        survey.rows.push(TableRow {
            run: row.run,
            tag: row.tag.clone(),
            pid: row.pid,
            spawned_at: row.spawned_at,
            // What failed between fork and exec has ended, and nobody can tell why any more.
            executed: true,
            end_asked: row.end_asked,
            said_ready: row.said_ready,
            identity: row.identity,
            ended,
            held,
        });
    }
    survey.kept = kept.into_keys().map(|(run, _)| run).collect();
    survey
}

fn orphan_of(row: &RunRow) -> Orphan {
    Orphan {
        run: row.run,
        tag: row.tag.clone(),
        pid: row.pid,
        spawned_at: row.spawned_at,
        end_asked: row.end_asked,
        said_ready: row.said_ready,
    }
}

enum Missing {
    Ended,
    Unproven(String),
}

/// The process of a remembered run, held before it is looked at. By its pidfd's inode; where the
/// kernel has none, by the moment it began and the unit that it is a process of.
fn find(row: &RunRow, unit: &UnitName, containment: &Containment) -> Result<OwnedFd, Missing> {
    if row.pid <= 1 {
        return Err(Missing::Ended);
    }
    let process = match pidfd::open(row.pid) {
        Ok(process) => process,
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Err(Missing::Ended),
        Err(error) => return Err(Missing::Unproven(format!("it cannot be held: {error}"))),
    };
    if let (Some(then), Some(now)) = (row.identity, pidfd::identity(&process)) {
        let same = then == now && !pidfd::has_ended(&process);
        return if same { Ok(process) } else { Err(Missing::Ended) };
    }
    let began_then = row.started > 0 && proctree::started(row.pid) == Some(row.started);
    let of_unit = containment.is_of(unit, row.pid, &process);
    match (began_then, of_unit, pidfd::has_ended(&process)) {
        (true, true, false) => Ok(process),
        (false, ..) | (.., true) => Err(Missing::Ended),
        (true, false, false) => Err(Missing::Unproven("it is in no cgroup of the unit".to_string())),
    }
}

/// Whether a keeper that comes later has to find such a run. Checks and commands beside a running
/// service are done again rather than found again.
fn is_remembered(role: Role) -> bool {
    match role {
        Role::Main | Role::StartPre(_) | Role::StartPost(_) | Role::StopPost(_) | Role::StopCommand => true,
        Role::ReloadCommand | Role::ReadyCheck | Role::HealthCheck | Role::Resync => false,
    }
}

/// What the keeper says of a run's process.
pub struct Facts {
    pub pid: i32,
    pub identity: Option<u64>,
    pub spawned_at: Monotonic,
}

impl Hands {
    /// A living run is known to the store from the next step on, as these facts have it.
    pub fn remember_spawned(&mut self, run: RunId, facts: &Facts) {
        let Some(live) = self.runs.get_mut(&run).filter(|live| is_remembered(live.role)) else { return };
        // Needed only where the kernel has nothing better: it costs a look into /proc.
        let started = if facts.identity.is_none() { proctree::started(facts.pid) } else { None };
        let tag = Tag { unit: live.unit.clone(), role: live.role, log_from: live.log_from };
        let row = RunRow {
            run,
            world: self.tools.world.clone(),
            tag: tag.to_bytes(),
            pid: facts.pid,
            identity: facts.identity,
            started: started.unwrap_or(0),
            spawned_at: facts.spawned_at,
            end_asked: live.handover.end_asked,
            said_ready: live.said_ready,
        };
        if live.row.as_ref() != Some(&row) {
            live.row = Some(row.clone());
            self.keep(Write::Run(row));
        }
    }

    /// The same for what becomes known of it later.
    pub fn remember(&mut self, run: RunId, change: impl FnOnce(&mut RunRow)) {
        let Some(live) = self.runs.get_mut(&run) else { return };
        let Some(row) = &mut live.row else { return };
        let before = row.clone();
        change(row);
        if *row != before {
            let row = row.clone();
            self.keep(Write::Run(row));
        }
    }

    /// With the step that says so it is forgotten by the store, and after that by the keeper.
    pub fn forget_run(&mut self, run: RunId) {
        if self.runs.get(&run).is_some_and(|live| live.row.is_some()) {
            self.keep(Write::RunGone { run });
        }
        self.lates.push(Late::Release(run));
    }

    /// Gives what is remembered to the runs that were adopted, and drops the rest.
    pub fn adopt_remembered(&mut self, remembered: Vec<RunRow>, facts: &BTreeMap<RunId, Facts>) {
        for row in remembered {
            match self.runs.get_mut(&row.run) {
                Some(live) => live.row = Some(row),
                None => self.keep(Write::RunGone { run: row.run }),
            }
        }
        let living = self.runs.iter().filter(|(_, live)| !live.ended).map(|(run, _)| *run);
        for run in living.collect::<Vec<_>>() {
            if let Some(facts) = facts.get(&run) {
                self.remember_spawned(run, facts);
            }
        }
    }

    /// Tells whoever has to know who was adopted, and lets go of pipes of runs that nobody knows any more:
    /// if somebody still writes into them, they are read by their names.
    pub fn settle_survey(&mut self, survey: &Survey) {
        for (unit, pid) in &survey.adopted {
            self.tools.containment.on_adopted(unit, *pid);
        }
        for run in survey.kept.iter().filter(|run| !self.runs.contains_key(run)).copied().collect::<Vec<_>>()
        {
            self.ask_keeper(Request::Release { run });
        }
    }

    /// Reads on what processes write whose run is released: they kept its pipe.
    pub fn capture_leftovers(&mut self) {
        for name in self.tools.pipes.all() {
            if self.runs.contains_key(&name.run) {
                continue; // its pipes came with it
            }
            let stream = match name.label {
                HOLD_STDOUT => Some(Stream::Stdout),
                HOLD_STDERR => Some(Stream::Stderr),
                _ => None,
            };
            let pipe = stream.and_then(|stream| Some((stream, self.tools.pipes.reopen(&name)?)));
            match pipe {
                Some((stream, pipe)) => self.capture_or_later(&name.unit, name.run, stream, pipe),
                None => self.tools.pipes.forget(&name),
            }
        }
    }
}
