//! What processes use: CPU time, memory, storage, fds, threads; of one process, of a cgroup, of sessions.
//!
//! Refuses: being asked often. Each process costs four looks into /proc (some 20 µs together), so it is for
//! who asks, on a thread of theirs; nothing here is remembered.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};

/// Deepest nesting of cgroups followed inside a unit.
const DEPTH_MAX: usize = 16;

/// The sum over some processes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Of these processes and of children that they have waited for; of a cgroup: of all that were in it.
    pub cpu_s: f64,
    pub resident_bytes: u64,
    /// `memory.current`; None: no cgroup, or no controller.
    pub group_memory_bytes: Option<u64>,
    /// From and to storage.
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub fds: u64,
    pub processes: u64,
    pub tasks: u64,
}

/// Where a unit's processes are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The directory of its cgroup.
    Group(PathBuf),
    /// Sessions that its runs began.
    Sessions(BTreeSet<i32>),
}

/// Who is in which session, read once for many units.
#[derive(Debug, Default)]
pub struct Sessions(HashMap<i32, Vec<i32>>);

impl Sessions {
    /// Looks at every process.
    pub fn read() -> Sessions {
        let mut members: HashMap<i32, Vec<i32>> = HashMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(stat) = Stat::of(pid) {
                members.entry(stat.session).or_default().push(pid);
            }
        }
        Sessions(members)
    }
}

/// What the processes there use; None: there are none.
pub fn of_place(place: &Place, sessions: &Sessions) -> Option<Usage> {
    match place {
        Place::Group(path) => of_group(path),
        Place::Sessions(own) => {
            let pids = own.iter().filter_map(|session| sessions.0.get(session)).flatten();
            of_processes(pids.copied())
        }
    }
}

/// What one process uses.
pub fn of_process(pid: i32) -> Option<Usage> {
    of_processes(std::iter::once(pid))
}

fn of_group(path: &Path) -> Option<Usage> {
    let mut pids = HashSet::new();
    pids_below(path, 0, &mut pids);
    // The kernel's own account knows those that have ended, too.
    let us = number_of(path, "cpu.stat", "usage_usec ");
    let mut usage = of_processes(pids.into_iter()).or(us.map(|_| Usage::default()))?;
    if let Some(us) = us {
        usage.cpu_s = seconds(us, 1_000_000);
    }
    usage.group_memory_bytes = number_of(path, "memory.current", "");
    if let Ok(text) = fs::read_to_string(path.join("io.stat"))
        && !text.is_empty()
    {
        usage.read_bytes = sum_of(&text, "rbytes=");
        usage.written_bytes = sum_of(&text, "wbytes=");
    }
    Some(usage)
}

fn pids_below(path: &Path, depth: usize, found: &mut HashSet<i32>) {
    let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default(); // it is gone
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1));
    // A directory of a cgroup has as many links as cgroups below it, and two more.
    if depth == DEPTH_MAX
        || fs::metadata(path).is_ok_and(|meta| std::os::unix::fs::MetadataExt::nlink(&meta) == 2)
    {
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids_below(&entry.path(), depth + 1, found);
        }
    }
}

/// The number behind `key`, at the beginning of a line.
fn number_of(group: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(group.join(file)).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
}

fn sum_of(text: &str, key: &str) -> u64 {
    text.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

fn of_processes(pids: impl Iterator<Item = i32>) -> Option<Usage> {
    let mut usage = Usage::default();
    let mut ticks = 0;
    for pid in pids {
        let Some(stat) = Stat::of(pid) else { continue };
        ticks += stat.cpu_ticks;
        usage.resident_bytes += resident_pages(pid).unwrap_or(0) * page_bytes();
        usage.tasks += stat.tasks;
        usage.processes += 1;
        usage.fds += fds_of(pid);
        // Of another user's process it is hidden, unless we are root.
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let of = |key: &str| io.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
        usage.read_bytes += of("read_bytes:").unwrap_or(0);
        usage.written_bytes += of("write_bytes:").unwrap_or(0);
    }
    usage.cpu_s = seconds(ticks, ticks_per_second());
    (usage.processes > 0).then_some(usage)
}

/// Of /proc/PID/statm: what /proc/PID/stat says lags behind by some pages a CPU (proc_pid_stat(5)).
fn resident_pages(pid: i32) -> Option<u64> {
    fs::read_to_string(format!("/proc/{pid}/statm")).ok()?.split(' ').nth(1)?.parse().ok()
}

/// Since Linux 6.2 the size of the directory is the number; before, it has to be read.
fn fds_of(pid: i32) -> u64 {
    let path = format!("/proc/{pid}/fd");
    match fs::metadata(&path) {
        Ok(meta) if meta.len() > 0 => meta.len(),
        Ok(_) | Err(_) => {
            let count = fs::read_dir(&path).map_or(0, |entries| entries.flatten().count());
            u64::try_from(count).unwrap_or(u64::MAX)
        }
    }
}

/// Of proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    session: i32,
    cpu_ticks: u64,
    tasks: u64,
}

impl Stat {
    /// None: it has ended, or is a zombie.
    fn of(pid: i32) -> Option<Stat> {
        let mut bytes = [0; 1_024];
        let len = fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut bytes).ok()?;
        Stat::parse(bytes.get(..len)?)
    }

    /// The name in brackets may hold anything: what counts begins after the last `)`.
    fn parse(bytes: &[u8]) -> Option<Stat> {
        let close = bytes.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        if matches!(*fields.first()?, "Z" | "X") {
            return None;
        }
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Stat {
            session: fields.get(3)?.parse().ok()?,
            // utime, stime, and those of children that were waited for.
            cpu_ticks: number(11)? + number(12)? + number(13)? + number(14)?,
            tasks: number(17)?,
        })
    }
}

fn page_bytes() -> u64 {
    of_system(SysconfVar::PAGE_SIZE, 4_096)
}

fn ticks_per_second() -> u64 {
    of_system(SysconfVar::CLK_TCK, 100)
}

fn of_system(what: SysconfVar, usual: u64) -> u64 {
    let told = sysconf(what).ok().flatten();
    told.and_then(|told| u64::try_from(told).ok()).filter(|told| *told > 0).unwrap_or(usual)
}

/// `count` units of which `each` are a second.
#[expect(clippy::cast_precision_loss, reason = "a double counts microseconds exactly for 285 years")]
fn seconds(count: u64, each: u64) -> f64 {
    count as f64 / each as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel_is_read_whatever_the_name_is() {
        let line = b"42 (a) S 1 (b\n) R 7 42 41 0 -1 4194304 1 0 0 0 10 20 3 4 20 0 5 0 12345 999 77 3";
        let found = Stat::parse(line).expect("stat");
        assert_eq!(found, Stat { session: 41, cpu_ticks: 37, tasks: 5 });
        assert_eq!(
            Stat::parse(b"42 (a) Z 7 42 41 0 -1 4 1 0 0 0 1 2 3 4 20 0 5 0 1 9 7 3"),
            None,
            "a zombie"
        );
        assert_eq!(Stat::parse(b"42 (a"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let before = of_process(pid).expect("we live");
        assert!(before.resident_bytes > 100_000 && before.tasks >= 1 && before.processes == 1, "{before:?}");
        let files: Vec<_> = (0..10).map(|_| fs::File::open("/dev/null").expect("a file")).collect();
        let after = of_process(pid).expect("we live");
        assert!(after.fds >= 10 && after.cpu_s >= before.cpu_s, "{before:?} {after:?}");
        drop(files);
        assert_eq!(of_process(i32::MAX), None);
    }

    #[test]
    fn sessions_have_their_members() {
        let sessions = Sessions::read();
        let own = nix::unistd::getsid(None).expect("a session").as_raw();
        let place = Place::Sessions(BTreeSet::from([own]));
        assert!(of_place(&place, &sessions).is_some_and(|usage| usage.processes >= 1));
        assert_eq!(of_place(&Place::Sessions(BTreeSet::new()), &sessions), None);
    }

    #[test]
    fn the_account_of_a_cgroup_is_summed_over_devices() {
        let text = "8:0 rbytes=100 wbytes=7 rios=1 wios=2\n8:16 rbytes=20 wbytes=3 rios=1 wios=2\n";
        assert_eq!((sum_of(text, "rbytes="), sum_of(text, "wbytes=")), (120, 10));
    }
}
