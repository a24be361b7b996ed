//! Processes as /proc shows them.
//!
//! Refuses: a pid alone. A process is its pid and its start time, so that a reused pid is not
//! mistaken for it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: Pid,
    pub parent: Pid,
    /// One letter of proc_pid_stat(5): R, S, D, Z, …
    pub state: char,
    /// Since boot, in clock ticks.
    pub started: u64,
    pub name: String,
}

impl Process {
    /// Still the same process, and not merely waiting to be reaped.
    pub fn is_alive(&self) -> bool {
        find(self.pid).is_some_and(|now| now.started == self.started && now.state != 'Z')
    }
}

pub fn find(pid: Pid) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold anything, parentheses too.
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let fields: Vec<&str> = text[close + 1..].split_whitespace().collect();
    Some(Process {
        pid,
        name: text[open + 1..close].to_owned(),
        state: fields.first()?.chars().next()?,
        parent: Pid::from_raw(fields.get(1)?.parse().ok()?),
        started: fields.get(19)?.parse().ok()?,
    })
}

pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| find(Pid::from_raw(pid))).collect()
}

/// The process and all its descendants.
pub fn below(top: Pid) -> Vec<Process> {
    let all = all();
    let mut inside = BTreeSet::from([top]);
    loop {
        let before = inside.len();
        inside.extend(
            all.iter().filter(|process| inside.contains(&process.parent)).map(|p| p.pid).collect::<Vec<_>>(),
        );
        if inside.len() == before {
            return all.into_iter().filter(|process| inside.contains(&process.pid)).collect();
        }
    }
}

pub fn children(parent: Pid) -> Vec<Process> {
    all().into_iter().filter(|process| process.parent == parent).collect()
}

/// Other processes whose command line names this path.
pub fn naming(path: &Path) -> Vec<Process> {
    let path = path.to_str().expect("a temporary directory is UTF-8");
    let names = |process: &Process| {
        let words = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(path)
    };
    all().into_iter().filter(|process| process.pid != Pid::this() && names(process)).collect()
}

/// Where the process is in the cgroup v2 tree; none where there is no such tree.
pub fn cgroup_of(process: &Process) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).ok()?;
    let inside = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mounted = mounts.lines().find_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (words.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(words[1]))
    })?;
    Some(mounted.join(inside))
}
