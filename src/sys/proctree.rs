//! What belongs to a unit where no cgroup tells: its sessions and its mark in the environment,
//! among the descendants of the keeper. What a keeper that died left behind is below nobody; there both must tell.
//!
//! Refuses: promises. A process can take another session and clear its environment; status
//! calls this containment "weak".

use std::collections::HashMap;
use std::fs;
use std::io;

use crate::base::signal::Signal;
use crate::sys::signals::signal_checked;

/// The variable that every run of a unit gets, with the unit's name.
pub const UNIT_VARIABLE: &str = "UPRIGHT_UNIT";

/// Rounds of `kill_all`: each meets what was forked in the one before.
const KILL_ROUNDS_MAX: usize = 16;

/// Longest line of ancestors that is followed for one process.
const ANCESTORS_MAX: usize = 256;

/// How to recognise a unit's processes.
#[derive(Clone, Copy, Debug)]
pub struct Marks<'a> {
    pub unit: &'a str,
    pub keeper_pid: i32,
    /// Pids of the unit's runs, ended or not: each began its own session.
    pub sessions: &'a [i32],
    /// Those of them that a keeper began which died: they live below somebody else now.
    pub orphans: &'a [i32],
}

/// Pids of the unit's processes, zombies left out.
pub fn members(marks: Marks<'_>) -> Vec<i32> {
    let all = snapshot();
    all.iter().filter(|(pid, stat)| belongs(marks, &all, **pid, **stat)).map(|(pid, _)| *pid).collect()
}

/// What a process below the keeper shows of its unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub session: i32,
    /// The unit that its environment names.
    pub mark: Option<String>,
}

/// The parent of this process now.
pub fn parent_of(pid: i32) -> Option<i32> {
    stat_of(pid).filter(|stat| stat.state != b'Z' && stat.state != b'X').map(|stat| stat.parent)
}

/// When this process began, ticks since boot (10 ms each, mostly).
pub fn started(pid: i32) -> Option<u64> {
    stat_of(pid).map(|stat| stat.started)
}

/// The environment of this process names the unit.
pub fn is_marked(pid: i32, unit: &str) -> bool {
    carries_mark(pid, unit)
}

/// What process `pid` shows; none when it does not live below the keeper. Reads only its own
/// line of ancestors: a stranger must not cost a look at every process.
pub fn shown(pid: i32, keeper_pid: i32) -> Option<Shown> {
    let own = stat_of(pid)?;
    let mut parent = own.parent;
    for _ in 0..ANCESTORS_MAX {
        if parent == keeper_pid {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let prefix = format!("{UNIT_VARIABLE}=");
            let mark =
                environ.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(prefix.as_bytes()));
            let mark = mark.map(|unit| String::from_utf8_lossy(unit).into_owned());
            return Some(Shown { session: own.session, mark });
        }
        if parent <= 1 {
            return None;
        }
        parent = stat_of(parent)?.parent;
    }
    None
}

pub fn is_empty(marks: Marks<'_>) -> bool {
    members(marks).is_empty()
}

/// Signals each of them. How many.
///
/// # Errors
/// The first that was refused; the others are signalled all the same.
pub fn signal_all(marks: Marks<'_>, signal: Signal) -> io::Result<usize> {
    let mut refused = None;
    let found = members(marks);
    for pid in &found {
        let before = stat_of(*pid).map(|stat| stat.started);
        let same = |pid| before.is_some() && stat_of(pid).map(|stat| stat.started) == before;
        if let Err(error) = signal_checked(*pid, signal, same) {
            refused.get_or_insert(error);
        }
    }
    refused.map_or(Ok(found.len()), Err)
}

/// SIGKILL until a look finds nobody, at most 16 looks. What is left then is stuck, or
/// forks faster than we look.
///
/// # Errors
/// As `signal_all`.
pub fn kill_all(marks: Marks<'_>) -> io::Result<()> {
    for _ in 0..KILL_ROUNDS_MAX {
        if signal_all(marks, Signal::KILL)? == 0 {
            break;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    state: u8,
    parent: i32,
    session: i32,
    /// Ticks since boot.
    started: u64,
}

fn snapshot() -> HashMap<i32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, stat_of(pid)?))).collect()
}

fn stat_of(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The name in brackets may hold anything, brackets and newlines too: what counts begins after
/// the last `)` (proc_pid_stat(5)).
fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let close = bytes.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        state: fields.first()?.bytes().next()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn belongs(marks: Marks<'_>, all: &HashMap<i32, Stat>, pid: i32, stat: Stat) -> bool {
    let dead = stat.state == b'Z' || stat.state == b'X';
    if dead || pid <= 1 || pid == marks.keeper_pid {
        return false;
    }
    if descends(all, pid, marks.keeper_pid) {
        return marks.sessions.contains(&stat.session) || carries_mark(pid, marks.unit);
    }
    marks.orphans.contains(&stat.session) && carries_mark(pid, marks.unit)
}

/// Bounded by the number of processes: the snapshot is not atomic, so it may hold a circle.
fn descends(all: &HashMap<i32, Stat>, pid: i32, ancestor: i32) -> bool {
    let mut at = pid;
    for _ in 0..all.len() {
        let Some(stat) = all.get(&at) else {
            return false;
        };
        if stat.parent == ancestor {
            return true;
        }
        at = stat.parent;
    }
    false
}

fn carries_mark(pid: i32, unit: &str) -> bool {
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mark = format!("{UNIT_VARIABLE}={unit}");
    environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let line = b"42 (a) S 1 (b\n) R 7 42 41 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 2 3";
        let found = parse_stat(line).expect("stat");
        assert_eq!(found, Stat { state: b'R', parent: 7, session: 41, started: 12_345 });
        assert_eq!(parse_stat(b"42 (a"), None);
    }

    #[test]
    fn a_circle_in_the_snapshot_ends() {
        let stat = |parent| Stat { state: b'R', parent, session: 0, started: 0 };
        let all = HashMap::from([(10, stat(11)), (11, stat(10)), (12, stat(5)), (13, stat(12))]);
        assert!(!descends(&all, 10, 5));
        assert!(descends(&all, 13, 5));
    }
}
