//! Taking over: what the keeper held, what the store kept, what the files say → a shell whose
//! engine goes on where the last one stopped.
//!
//! Refuses: starting over. A socket or a pipe that the keeper holds is used again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::daemon::fdstore::FdStore;
use crate::daemon::follow;
use crate::daemon::hands::{Hands, Live};
use crate::daemon::orphans::Facts;
use crate::daemon::slate::Slate;
use crate::daemon::tag::Tag;
use crate::daemon::words::Handover;
use crate::engine::durable::UnitDurable;
use crate::engine::event::Rest;
use crate::engine::{Adopted, Asked};
use crate::keeper::wire::{HOLD_NOTIFY_FD, HOLD_STDERR, HOLD_STDOUT, Request, TableRow};
use crate::logs::Stream;
use crate::store::run::RunRow;
use crate::sys::socket;
use crate::unit::spec::ServiceType;

/// Names under which the keeper holds our sockets.
const API_SOCKET: &[u8] = b"api";
const NOTIFY_SOCKET: &[u8] = b"notify";

/// Mode of both sockets: who may do what is decided by SO_PEERCRED, and services of any
/// user must be able to notify.
const SOCKET_MODE: u32 = 0o666;

/// The listening and the notify socket.
pub struct Sockets {
    pub api: OwnedFd,
    pub notify: OwnedFd,
}

/// Takes the sockets that the keeper held, or makes them and has it hold them.
///
/// # Errors
/// A socket cannot be made or duplicated.
pub fn sockets(
    held: Vec<(Vec<u8>, OwnedFd)>,
    api_path: &Path,
    notify_path: &Path,
    mut hold: impl FnMut(Request),
) -> io::Result<Sockets> {
    let (mut api, mut notify) = (None, None);
    for (name, fd) in held {
        match name.as_slice() {
            API_SOCKET => api = Some(fd),
            NOTIFY_SOCKET => notify = Some(fd),
            _ => tracing::warn!("the keeper holds `{}`, which is not known here", name.escape_ascii()),
        }
    }
    // A socket whose file was removed is of no use to anybody: make it anew.
    let api = match api.filter(|_| api_path.exists()) {
        Some(fd) => fd,
        None => {
            let fd = OwnedFd::from(socket::listen(api_path, SOCKET_MODE)?);
            hold(Request::Hold { name: API_SOCKET.to_vec(), fd: fd.try_clone()? });
            fd
        }
    };
    let notify = match notify.filter(|_| notify_path.exists()) {
        Some(fd) => fd,
        None => {
            let fd = socket::bind_datagram(notify_path, SOCKET_MODE)?;
            hold(Request::Hold { name: NOTIFY_SOCKET.to_vec(), fd: fd.try_clone()? });
            fd
        }
    };
    Ok(Sockets { api, notify })
}

/// Enters the keeper's rows into the hands and says them as the engine wants them. Their
/// pipes are read on from where the last engine left off.
pub fn runs(rows: Vec<TableRow>, remembered: Vec<RunRow>, hands: &mut Hands, slate: &Slate) -> Vec<Adopted> {
    let facts = |row: &TableRow| Facts { pid: row.pid, identity: row.identity, spawned_at: row.spawned_at };
    let facts = rows.iter().map(|row| (row.run, facts(row))).collect();
    let mut adopted: Vec<Adopted> = rows.into_iter().filter_map(|row| run(row, hands, slate)).collect();
    hands.adopt_remembered(remembered, &facts);
    hands.capture_leftovers();
    adopted.iter_mut().for_each(|row| hold_end_back(row, hands));
    adopted
}

/// A main process that ended well and left others behind may have handed its run over with its
/// last word, which no engine has heard yet. It is told as living; its end follows, if it is the
/// run's, once the words are heard (`Shell::tell_ends`).
fn hold_end_back(row: &mut Adopted, hands: &mut Hands) {
    let Some(end @ (_, Exit::Code(0))) = row.ended else { return };
    let service = hands.specs.get(&row.unit).is_some_and(|spec| spec.service.kind != ServiceType::Oneshot);
    let newest = hands.mains.get(&row.unit) == Some(&row.run);
    let unasked = row.asked == Asked::No && service && newest;
    if unasked
        && hands.tools.containment.rest(&row.unit, &[]) == Rest::Alive
        && let Some(live) = hands.runs.get_mut(&row.run)
    {
        live.ended = false;
        live.end = None;
        live.handover.end = Some(end);
        row.ended = None;
    }
}

fn run(row: TableRow, hands: &mut Hands, slate: &Slate) -> Option<Adopted> {
    let TableRow { run, tag, pid, spawned_at, executed, end_asked, said_ready, ended, held, .. } = row;
    let Some(Tag { unit, role, log_from }) = Tag::from_bytes(&tag) else {
        tracing::error!("run {run} (process {pid}) has the tag `{}`, which says nothing", tag.escape_ascii());
        return None;
    };
    slate.touch(&unit);
    let asked = if end_asked { Asked::ToEnd } else { Asked::No };
    let live = Live {
        said_ready,
        pid: Some(pid),
        ended: ended.is_some(),
        end: ended,
        handover: Handover { end_asked, ..Handover::default() },
        ..Live::new(unit.clone(), role, log_from)
    };
    hands.insert_run(run, live);
    hands.tools.containment.on_spawned(&unit, pid);
    for (label, fd) in held {
        let stream = match label {
            HOLD_STDOUT => Stream::Stdout,
            HOLD_STDERR => Stream::Stderr,
            HOLD_NOTIFY_FD => {
                follow::watch_notify_fd(run, fd, hands.tools.sources.clone());
                continue;
            }
            _ => continue,
        };
        hands.capture_or_later(&unit, run, stream, fd);
    }
    Some(Adopted { unit, run, role, pid, spawned_at, executed, said_ready, ended, asked })
}

/// Gives the hands what services stored, but for units that are at rest or gone.
pub fn stored(stored: FdStore, rows: &BTreeMap<UnitName, UnitDurable>, hands: &mut Hands) {
    hands.stored = stored;
    for (unit, row) in rows {
        hands.keep_stored_by(unit, row);
    }
    hands.drop_stored_of_unknown();
}

/// Units in which anything lives now, also those of no run and of no file.
///
/// # Errors
/// Nobody can say now.
pub fn populated(hands: &mut Hands, adopted: &[Adopted]) -> io::Result<BTreeSet<UnitName>> {
    let mut units = hands.tools.containment.known_units()?;
    units.extend(adopted.iter().map(|row| row.unit.clone()));
    units.retain(|unit| hands.rest(unit) == Rest::Alive || !hands.pids_of(unit).is_empty());
    Ok(units)
}

/// The first run id that nobody has used: of the store and of the keeper.
pub fn next_run(reserved: RunId, adopted: &[Adopted]) -> RunId {
    let newest = adopted.iter().map(|row| row.run.0 + 1).max().unwrap_or(0);
    RunId(newest.max(reserved.0))
}
