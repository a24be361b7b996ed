//! Shortage at one system call after another: fds, memory, pids, room on the disk, and a disk
//! that answers with errors. No hang, no panic, no lost row, no lost line, no leaked fd; and no
//! unit fails because its supervisor was short of something (reliability D1 to D5, T20).
//!
//! Refuses: mercy for the keeper. It is made short like the engine, and must never end of it. An
//! engine may end of it with a message; then the next one has taken over within the bound.
//!
//! `UPRIGHT_SHORTAGES=3000` runs that many points instead of some dozens; `SEED=…` repeats a choice,
//! `UPRIGHT_SHORTAGE='Engine openat 24 3 1'` (who, call, errno, n-th, times; a sixth word `boot`
//! counts from the next engine's first call) repeats one point.

#[path = "e2e_shortage/rig.rs"]
mod rig;
mod support;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use nix::libc;
use nix::sys::signal::{Signal, kill};

use rig::Rig;
use support::injector::{self, Counts, Fault, Tally, Whose};
use support::{Home, is_root, skip};

/// Homes at a time.
const HOMES: usize = 2;

/// Points without `UPRIGHT_SHORTAGES`: about 20 s.
const POINTS: usize = 30;

/// Calls, and what a shortage makes them say (their man pages).
const ROWS: &[(&[&str], &[i32])] = &[
    (&["openat", "open"], &[libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOSPC, libc::EIO]),
    (
        &[
            "socket",
            "accept4",
            "pipe2",
            "eventfd2",
            "timerfd_create",
            "epoll_create1",
            "inotify_init1",
            "memfd_create",
            "socketpair",
            "pidfd_open",
            "signalfd4",
        ],
        &[libc::EMFILE, libc::ENFILE, libc::ENOMEM],
    ),
    (&["fcntl"], &[libc::EMFILE, libc::ENOLCK]),
    (&["dup", "dup2", "dup3"], &[libc::EMFILE]),
    (&["epoll_ctl", "inotify_add_watch"], &[libc::ENOMEM, libc::ENOSPC]),
    (&["clone", "clone3", "fork", "vfork"], &[libc::EAGAIN, libc::ENOMEM]),
    (&["mmap", "mremap", "brk", "mprotect"], &[libc::ENOMEM]),
    (&["read", "pread64", "readv", "getdents64"], &[libc::EIO]),
    (&["write", "pwrite64", "writev", "splice"], &[libc::ENOSPC, libc::EIO, libc::EDQUOT]),
    (&["fsync", "fdatasync", "ftruncate", "fallocate"], &[libc::EIO, libc::ENOSPC]),
    (&["rename", "renameat2", "mkdir", "mkdirat"], &[libc::ENOSPC, libc::EIO]),
    (&["unlink", "unlinkat"], &[libc::EIO]),
    (&["sendmsg", "sendto"], &[libc::ENOBUFS, libc::ENOMEM]),
    (&["recvmsg", "recvfrom"], &[libc::ENOMEM, libc::EINTR]),
    (&["statx", "newfstatat", "fstat", "stat"], &[libc::ENOMEM, libc::EIO]),
    (&["readlink", "readlinkat"], &[libc::ENOMEM, libc::EIO]),
    (&["epoll_wait", "epoll_pwait", "ppoll", "poll", "waitid"], &[libc::EINTR]),
    (&["flock"], &[libc::ENOLCK]),
    (&["execve"], &[libc::ENOMEM, libc::EAGAIN, libc::EMFILE, libc::ENFILE]),
];

/// Calls that are short together, from the first on.
const TOGETHER: &[(&[&str], &[i32])] = &[
    (
        &[
            "openat",
            "open",
            "socket",
            "accept4",
            "pipe2",
            "eventfd2",
            "timerfd_create",
            "epoll_create1",
            "inotify_init1",
            "memfd_create",
            "socketpair",
            "pidfd_open",
            "signalfd4",
            "fcntl",
            "dup",
            "dup3",
        ],
        &[libc::EMFILE],
    ),
    (&["clone", "clone3", "fork", "vfork"], &[libc::EAGAIN]),
    (
        &["write", "pwrite64", "writev", "splice", "fsync", "fdatasync", "fallocate"],
        &[libc::ENOSPC, libc::EIO],
    ),
    (&["epoll_ctl", "inotify_add_watch"], &[libc::ENOSPC]),
    (&["sendmsg", "recvmsg"], &[libc::ENOMEM]),
];

/// Points that found something once: each stays mended.
const FOUND: &[&str] = &[
    // Between fork and exec: a failure of the unit, of its health check, of an order.
    "Child dup2 24 1 5",
    "Child execve 23 1 1",
    "Child execve 12 1 5",
    // A request that was refused, and sent later all the same.
    "Engine sendmsg 105 3 1",
    // The engine was killed by the keeper that had no memory for the talk.
    "Keeper sendmsg 12 1 20",
    "Keeper recvmsg 12 1 20",
    // Runs whose exec nobody saw, so that they never were ready.
    "Keeper epoll_ctl 28 3 1",
    // A word on the notification fd that was not seen, or not believed.
    "Engine poll 4 1 5",
    "Engine epoll_ctl 12 1 5",
    // Files that were not watched any more, or looked broken until somebody touched them.
    "Engine epoll_create1 23 3 1 boot",
    "Engine openat 12 26 1 boot",
    // Pipes that nobody captured after a takeover.
    "Engine mkdirat 28 1 5 boot",
    // "No lines" where the log could not be read.
    "Engine openat 5 1 20",
    "Engine openat 23 6 1",
    // Panics where no thread was to be had.
    "Engine clone3 11 4 1 boot",
    "Engine clone,clone3,fork,vfork 11 1 lasting boot",
    // A check that could not be made, or not be prepared, against the unit.
    "Engine epoll_ctl,inotify_add_watch 28 1 lasting",
    "Engine mkdir 28 8 1 boot",
    "Engine statx 5 1 20",
];

#[test]
fn the_injector_itself() {
    injector::serve();
}

fn unavailable() -> bool {
    let lacking = if !is_root() {
        Some("root")
    } else if !injector::AVAILABLE {
        Some("x86_64, where a system call can be refused by a tracer")
    } else {
        None
    };
    skip(lacking)
}

/// SplitMix64; the seed is printed, and taken from SEED.
struct Luck(u64);

impl Luck {
    fn new() -> Luck {
        let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
        println!("SEED={seed} cargo test --test e2e_shortage");
        Luck(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, usize::try_from(self.below(at as u64 + 1)).expect("small"));
        }
    }
}

/// A fault as a line: `Engine openat 24 3 1 boot`.
fn line_of(fault: &Fault) -> String {
    let times = if fault.times == u64::MAX { "lasting".to_owned() } else { fault.times.to_string() };
    let boot = if fault.from_exec { " boot" } else { "" };
    format!("{:?} {} {} {} {times}{boot}", fault.whose, fault.calls.join(","), fault.errno, fault.nth)
}

fn fault_of(line: &str) -> Fault {
    let words: Vec<&str> = line.split_whitespace().collect();
    let whose = match words[0] {
        "Keeper" => Whose::Keeper,
        "Engine" => Whose::Engine,
        "Child" => Whose::Child,
        other => panic!("nobody is called {other}"),
    };
    Fault {
        whose,
        calls: words[1].split(',').map(str::to_owned).collect(),
        errno: words[2].parse().expect("an errno"),
        nth: words[3].parse().expect("a number"),
        times: if words[4] == "lasting" { u64::MAX } else { words[4].parse().expect("a number") },
        from_exec: words.get(5) == Some(&"boot"),
    }
}

/// What a round without faults calls: in the first round of a living engine, and in the first
/// of a new one.
fn record() -> (Counts, Counts) {
    let mut rig = Rig::new();
    rig.injector.counts();
    rig.round(None).expect("all is well");
    let alive = rig.injector.counts();
    let engine = rig.engine().expect("it lives");
    kill(engine, Signal::SIGKILL).expect("it lives");
    rig.round(None).expect("all is well");
    let boot = rig.injector.counts();
    rig.stop().expect("it stops");
    (alive, boot)
}

/// Every point there is, in the order of the table.
fn all_points(alive: &Counts, boot: &Counts) -> Vec<Fault> {
    let mut all = Vec::new();
    for (counts, from_exec) in [(alive, false), (boot, true)] {
        for (whose, call, count) in counts {
            if from_exec
                && *whose != Whose::Engine
                && alive.iter().any(|(w, c, n)| w == whose && c == call && n >= count)
            {
                continue;
            }
            let rows = ROWS.iter().filter(|(calls, _)| calls.contains(&call.as_str()));
            for errno in rows.flat_map(|(_, errnos)| *errnos) {
                let fault = |nth, times| Fault {
                    whose: *whose,
                    calls: vec![call.clone()],
                    errno: *errno,
                    nth,
                    times,
                    from_exec,
                };
                // Far into a life the calls repeat.
                let nths = (1..=*count).take(if from_exec { 60 } else { 25 });
                all.extend(nths.map(|nth| fault(nth, 1)));
                // An engine that cannot begin twenty times in a row is waited for, longer each time.
                all.extend([fault(1, 5), fault(1, if from_exec { 7 } else { 20 })]);
            }
        }
    }
    for whose in [Whose::Engine, Whose::Keeper, Whose::Child] {
        for (calls, errnos) in TOGETHER {
            let calls: Vec<String> = calls.iter().map(|call| (*call).to_owned()).collect();
            for errno in *errnos {
                let fault = |nth, from_exec| Fault {
                    whose,
                    calls: calls.clone(),
                    errno: *errno,
                    nth,
                    times: u64::MAX,
                    from_exec,
                };
                all.extend([fault(1, false), fault(7, false), fault(1, true), fault(15, true)]);
            }
        }
    }
    all
}

/// One from each (who, call, errno) in turn, until there are enough.
fn choose(all: Vec<Fault>, count: usize, luck: &mut Luck) -> Vec<Fault> {
    let mut classes: BTreeMap<(Whose, Vec<String>, i32, bool), Vec<Fault>> = BTreeMap::new();
    for fault in all {
        classes
            .entry((fault.whose, fault.calls.clone(), fault.errno, fault.from_exec))
            .or_default()
            .push(fault);
    }
    let mut classes: Vec<Vec<Fault>> = classes.into_values().collect();
    classes.iter_mut().for_each(|class| luck.shuffle(class));
    let mut chosen = Vec::new();
    while chosen.len() < count && classes.iter().any(|class| !class.is_empty()) {
        luck.shuffle(&mut classes);
        for class in &mut classes {
            chosen.extend(class.pop());
        }
    }
    chosen.truncate(count);
    chosen
}

/// Runs the points, in one home as long as all is well; what was wrong.
fn run(points: &[Fault]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut points = points.iter().peekable();
    while points.peek().is_some() {
        let lived = catch_unwind(AssertUnwindSafe(|| {
            let mut rig = Rig::new();
            for fault in points.by_ref() {
                let begun = Instant::now();
                match catch_unwind(AssertUnwindSafe(|| rig.round(Some(fault)))) {
                    Ok(Ok(tally)) => {
                        let Tally { seen, failed } = tally;
                        let replaced = if rig.replaced { ", the engine was replaced" } else { "" };
                        println!("ok {} {failed}/{seen} {:?}{replaced}", line_of(fault), begun.elapsed());
                    }
                    Ok(Err(found)) => return Some((rig, fault, found)),
                    Err(panic) => return Some((rig, fault, vec![word_of(&*panic)])),
                }
            }
            rig.stop().expect("it stops");
            None
        }));
        match lived {
            Ok(None) => {}
            Ok(Some((rig, fault, found))) => {
                let what = format!("{}: {found:#?}", line_of(fault));
                println!("WRONG {what}\n{}", last_words(&rig.home));
                wrong.push(what);
                // Its daemon is stopped and its home kept.
                let _ = catch_unwind(AssertUnwindSafe(move || {
                    let _rig = rig;
                    panic!("a home to look into");
                }));
            }
            Err(panic) => wrong.push(word_of(&*panic)),
        }
    }
    wrong
}

fn word_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn last_words(home: &Home) -> String {
    let said = home.said();
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn run_in_homes(points: &[Fault]) {
    let homes = std::env::var("UPRIGHT_HOMES").ok().map_or(HOMES, |text| text.parse().expect("a number"));
    let share = points.len().div_ceil(homes).max(1);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = points.chunks(share).map(|part| scope.spawn(|| run(part))).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("it caught its panics")).collect()
    });
    assert!(wrong.is_empty(), "{} of {} points: {wrong:#?}", wrong.len(), points.len());
}

#[test]
fn no_shortage_at_any_call_is_more_than_a_delay() {
    if unavailable() {
        return;
    }
    if let Ok(line) = std::env::var("UPRIGHT_SHORTAGE") {
        let points: Vec<Fault> = line.split(';').map(fault_of).collect();
        return run_in_homes(&points);
    }
    let count = std::env::var("UPRIGHT_SHORTAGES").ok();
    let count = count.map_or(POINTS, |text| text.parse().expect("UPRIGHT_SHORTAGES is a number"));
    let mut luck = Luck::new();
    let (alive, boot) = record();
    let all = all_points(&alive, &boot);
    println!("{} points; while it lives: {alive:?}; from its first call: {boot:?}", all.len());
    run_in_homes(&choose(all, count, &mut luck));
}

#[test]
fn what_was_found_once_stays_mended() {
    if unavailable() {
        return;
    }
    let points: Vec<Fault> = FOUND.iter().map(|line| fault_of(line)).collect();
    run_in_homes(&points);
}
