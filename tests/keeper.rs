//! The keeper as a real process with a real engine beside it: what it spawns, reaps, holds and
//! tells, also across the engine's death.
//!
//! Refuses: looking inside. The test speaks as the engine does, through `Client`.

mod keeping;

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use keeping::{
    DEADLINE, Keeper, Parent, TREE_MARK, await_that, keeper_command, kill, plan, shell, wait_child,
};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use upright::base::exit::{Exit, RunId};
use upright::base::signal::Signal;
use upright::keeper::wire::{FdUse, HOLD_STDOUT, News, Request};
use upright::sys::cgroup::Tree;
use upright::sys::proctree::{self, Marks};
use upright::sys::{clock, pipe};

#[test]
fn exits_and_signals_are_told_as_they_were() {
    let mut keeper = Keeper::start(Parent::Dirty);
    assert_eq!(keeper.attached.keeper_pid, keeper.pid());
    assert_eq!(keeper.attached.engine_starts, 1);
    assert!(keeper.attached.rows.is_empty());
    let of = |number| Exit::Signal { signal: Signal::from_number(number).expect("signal"), core: false };
    let cases = [("exit 0", Exit::Code(0)), ("exit 3", Exit::Code(3)), ("exit 255", Exit::Code(255))];
    for (run, (script, exit)) in (1..).zip(cases) {
        keeper.spawn(run, shell(script), vec![]);
        assert_eq!(keeper.await_exit(run), exit, "{script}");
    }
    for (run, number) in (10..).zip([libc::SIGKILL, libc::SIGTERM, libc::SIGPIPE, 33, 64]) {
        keeper.spawn(run, plan("/bin/sleep", &["sleep", "1000"]), vec![]);
        keeper.await_executed(run);
        let signal = Signal::from_number(number).expect("signal");
        keeper.client.send(Request::Signal { run: RunId(run), signal }).expect("signal");
        assert_eq!(keeper.await_exit(run), of(number));
        // To an ended run, and to one that never was: no error, nobody hit.
        keeper.client.send(Request::Signal { run: RunId(run), signal }).expect("signal");
        keeper.client.send(Request::Signal { run: RunId(999), signal }).expect("signal");
    }
    assert_eq!(keeper.end(7), Some(7));
}

#[test]
fn nothing_is_lost_when_the_engine_is_killed() {
    let mut keeper = Keeper::start(Parent::Clean);
    let (read, write) = pipe::pair().expect("pipe");
    let held = write.try_clone().expect("dup");
    let hold_read = (FdUse::Hold(HOLD_STDOUT), read);
    let mut plan = shell("echo last words; read x; exit 5");
    plan.env.push(b"A=b".to_vec());
    let (stdin, feed) = pipe::pair().expect("pipe");
    let fds = vec![(FdUse::Child(0), stdin), (FdUse::Child(1), write), hold_read];
    keeper.spawn(1, plan, fds);
    drop(held);
    let pid = keeper.await_executed(1);
    keeper.spawn(2, shell("exec sleep 1000"), vec![]);
    let living = keeper.await_executed(2);
    let (listener, _other) = pipe::pair().expect("pipe");
    keeper.client.send(Request::Hold { name: b"listener".to_vec(), fd: listener }).expect("hold");
    keeper.kill_engine();
    drop(feed); // run 1 ends while no engine lives, or before the next attaches
    keeper.await_engine();
    assert_eq!(keeper.attached.engine_starts, 2);
    let rows = std::mem::take(&mut keeper.attached.rows);
    let mut rows: HashMap<u64, _> = rows.into_iter().map(|row| (row.run.0, row)).collect();
    let mut ended = rows.remove(&1).expect("row of run 1");
    assert_eq!((ended.pid, ended.tag.as_slice(), ended.executed), (pid, b"tag-1".as_slice(), true));
    let exit = match ended.ended {
        Some((_, exit)) => exit,
        None => keeper.await_exit(1),
    };
    assert_eq!(exit, Exit::Code(5));
    let (label, held) = ended.held.pop().expect("held fd");
    let mut words = String::new();
    fs::File::from(held).read_to_string(&mut words).expect("read");
    assert_eq!((label, words.as_str()), (HOLD_STDOUT, "last words\n"));
    let other = rows.remove(&2).expect("row of run 2");
    assert_eq!((other.pid, other.ended), (living, None));
    let names: Vec<_> = keeper.attached.held.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, [b"listener".to_vec()]);
    // Released runs are forgotten; living ones are not, whatever is asked.
    keeper.client.send(Request::Release { run: RunId(1) }).expect("release");
    keeper.client.send(Request::Release { run: RunId(2) }).expect("release");
    keeper.spawn(3, shell("exit 0"), vec![]);
    assert_eq!(keeper.await_exit(3), Exit::Code(0));
    keeper.replace_engine();
    let mut left: Vec<u64> = keeper.attached.rows.iter().map(|row| row.run.0).collect();
    left.sort_unstable();
    assert_eq!(left, [2, 3]);
    assert_eq!(keeper.end(0), Some(0));
    kill(living, libc::SIGKILL);
}

/// More rows than the socket's buffer takes at once, and exits while the engine is stopped.
#[test]
fn two_thousand_exits_at_once_are_each_told_once() {
    const RUNS: u64 = 2_000;
    let mut keeper = Keeper::start(Parent::Clean);
    let (gate, hold) = pipe::pair().expect("pipe");
    for run in 1..=RUNS {
        // `read` ends when the last writer of the gate is gone: all at once.
        let stdin = gate.as_fd().try_clone_to_owned().expect("dup");
        keeper.spawn(run, shell("read x; exit 4"), vec![(FdUse::Child(0), stdin)]);
    }
    drop(gate);
    let mut executed = 0;
    while executed < RUNS {
        if let News::Executed { .. } = keeper.next() {
            executed += 1;
        }
    }
    // All exits fall while the keeper stands still: SIGCHLD coalesces to one.
    keeper.signal(libc::SIGSTOP);
    drop(hold);
    keeper.signal(libc::SIGCONT);
    let mut told: HashMap<u64, u32> = HashMap::new();
    while told.len() < usize::try_from(RUNS).expect("small") {
        if let News::Exited { run, exit, .. } = keeper.next() {
            assert_eq!(exit, Exit::Code(4));
            *told.entry(run.0).or_default() += 1;
        }
    }
    assert!(told.values().all(|count| *count == 1));
    assert_eq!(zombies_of(keeper.pid()), 0);
    // The same as rows, for the next engine.
    keeper.replace_engine();
    let rows = &keeper.attached.rows;
    assert_eq!(rows.len(), told.len());
    assert!(rows.iter().all(|row| row.ended.is_some_and(|(_, exit)| exit == Exit::Code(4))));
    assert_eq!(keeper.end(0), Some(0));
}

#[test]
fn orphans_are_reaped() {
    let mut keeper = Keeper::start(Parent::Clean);
    keeper.spawn(1, shell("for i in 1 2 3 4 5 6 7 8; do (sh -c 'exit 1' & ) & done; wait; exit 0"), vec![]);
    let mut orphan = false;
    let mut exited = false;
    while !(orphan && exited) {
        match keeper.next() {
            News::OrphanReaped => orphan = true,
            News::Exited { exit, .. } => {
                assert_eq!(exit, Exit::Code(0));
                exited = true;
            }
            _ => {}
        }
    }
    let keeper_pid = keeper.pid();
    await_that("no zombies", || zombies_of(keeper_pid) == 0);
    assert_eq!(keeper.end(0), Some(0));
}

#[test]
fn a_stop_reaches_everything_that_was_ever_forked() {
    let label = format!("keeper-{}", std::process::id());
    let Some(tree) = Tree::create(&label).expect("it can be told") else {
        eprintln!("skipped: no cgroup2 that we may write to");
        return;
    };
    let mut group = tree.unit("deaf").expect("unit");
    let mut keeper = Keeper::start(Parent::Clean);
    let (main, escaped) = grow(&mut keeper, vec![(FdUse::Cgroup, group.dir_fd().expect("directory"))]);
    assert!(group.contains(main) && group.contains(escaped) && !group.is_empty());
    assert!(!group.contains(keeper.pid()));
    assert_eq!(group.signal_all(Signal::TERM).expect("term"), 2);
    // A second engine of the same label finds the same group.
    let mut again = Tree::create(&label).expect("it can be told").expect("tree").unit("deaf").expect("unit");
    assert!(!again.is_empty());
    again.kill().expect("kill");
    assert_eq!(keeper.await_exit(1), Exit::Signal { signal: Signal::KILL, core: false });
    // As the engine waits for it: by event, asking again after each.
    while !group.is_empty() {
        let mut fds = [PollFd::new(group.events_fd(), PollFlags::POLLPRI)];
        assert_eq!(poll(&mut fds, PollTimeout::try_from(DEADLINE).expect("timeout")), Ok(1));
    }
    await_that("both are gone", || !exists(main) && !exists(escaped));
    assert_eq!(keeper.end(0), Some(0));
    group.kill().expect("killing nobody is no error");
    tree.remove().expect("removed");
    assert!(group.is_empty() && group.kill().is_ok() && group.remove().is_ok(), "gone is no error");
}

#[test]
fn without_cgroups_the_walk_finds_them_too() {
    let mut keeper = Keeper::start(Parent::Clean);
    let (main, escaped) = grow(&mut keeper, vec![]);
    let marks = Marks { unit: "deaf", keeper_pid: keeper.pid(), sessions: &[main], orphans: &[] };
    let mut found = proctree::members(marks);
    found.sort_unstable();
    let mut both = [main, escaped];
    both.sort_unstable();
    assert_eq!(found, both);
    // By the session alone, and not below another keeper.
    assert_eq!(proctree::members(Marks { unit: "other", ..marks }), [main]);
    let elsewhere = Marks { keeper_pid: keeper.engine_pid, ..marks };
    assert!(proctree::is_empty(elsewhere));
    // What an earlier keeper left is below nobody: its session and its mark together tell.
    assert_eq!(proctree::members(Marks { orphans: &[main], ..elsewhere }), [main]);
    assert!(proctree::is_empty(Marks { unit: "other", orphans: &[main], ..elsewhere }));
    proctree::kill_all(marks).expect("kill");
    assert_eq!(keeper.await_exit(1), Exit::Signal { signal: Signal::KILL, core: false });
    await_that("both are gone", || !exists(main) && !exists(escaped));
    assert!(proctree::is_empty(marks));
    assert_eq!(keeper.end(0), Some(0));
}

#[test]
fn signals_to_the_keeper_reach_the_engine_also_a_later_one() {
    let mut keeper = Keeper::start(Parent::Dirty);
    keeper.signal(libc::SIGHUP);
    assert!(matches!(keeper.next(), News::Signalled { signal } if signal == Signal::HUP));
    keeper.signal(libc::SIGSTOP);
    keeper.kill_engine();
    keeper.signal(libc::SIGTERM);
    keeper.signal(libc::SIGCONT);
    keeper.await_engine();
    assert!(matches!(keeper.next(), News::Signalled { signal } if signal == Signal::TERM));
    assert_eq!(keeper.end(3), Some(3));
}

/// The engine dies at once, each time: the keeper keeps trying, and told to end it ends.
#[test]
fn a_keeper_without_engine_can_be_ended() {
    let dir = tempfile::tempdir().expect("tempdir");
    let stderr = dir.path().join("stderr");
    let mut command = keeper_command(Parent::Clean);
    let file = fs::File::create(&stderr).expect("stderr");
    let mut child = command.env("UPRIGHT_TEST_CRASH", "1").stderr(file).spawn().expect("keeper");
    let lines = || fs::read_to_string(&stderr).unwrap_or_default();
    await_that("four engines have died", || lines().lines().count() >= 4);
    kill(i32::try_from(child.id()).expect("pid"), libc::SIGTERM);
    assert_eq!(wait_child(&mut child), Some(1));
    assert!(lines().lines().all(|line| line.starts_with("upright keeper: ")), "{}", lines());
    assert!(lines().contains("exited (code 9)"), "{}", lines());
}

/// The same with a service: it gets its SIGTERM from the keeper, and nothing stays behind.
#[test]
fn a_keeper_whose_engines_die_ends_the_services_itself() {
    let mut keeper = Keeper::start(Parent::Clean);
    keeper.spawn(1, plan("/bin/sleep", &["sleep", "1000"]), vec![]);
    let pid = keeper.await_executed(1);
    keeper.break_engines();
    keeper.kill_engine();
    keeper.signal(libc::SIGTERM);
    assert_eq!(keeper.wait(), Some(1));
    assert!(!exists(pid));
}

/// Out of fds: the spawn is refused with its run named, nothing else breaks, and a new engine
/// still comes up.
#[test]
fn a_keeper_without_fds_says_so_and_still_gets_its_engine() {
    let mut keeper = Keeper::start(Parent::Poor);
    let mut run = 0;
    let refused = loop {
        run += 1;
        let holds = (1..=4).map(|label| (FdUse::Hold(label), pipe::null().expect("null")));
        keeper.spawn(run, shell("exit 0"), holds.collect());
        match keeper.next() {
            News::Spawned { .. } => assert_eq!(keeper.await_exit(run), Exit::Code(0)),
            News::SpawnShort { run, errno } => {
                assert_eq!(errno, libc::EMFILE);
                break run.0;
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused, run);
    keeper.kill_engine();
    keeper.await_engine();
    for done in 1..run {
        keeper.client.send(Request::Release { run: RunId(done) }).expect("release");
    }
    keeper.spawn(1_000, shell("exit 6"), vec![]);
    assert_eq!(keeper.await_exit(1_000), Exit::Code(6));
    assert_eq!(keeper.end(0), Some(0));
}

/// A keeper with many open fds gives a child with a low limit the right ones all the same.
#[test]
fn a_low_limit_of_the_child_does_not_disturb_many_fds_of_the_keeper() {
    let mut keeper = Keeper::start(Parent::Clean);
    for run in 1..=40 {
        let holds = (1..=4).map(|label| (FdUse::Hold(label), pipe::null().expect("null")));
        keeper.spawn(run, shell("exec sleep 1000"), holds.collect());
    }
    let (read, write) = pipe::pair().expect("pipe");
    let mut plan = shell("echo fine");
    plan.rlimits = vec![(libc::RLIMIT_NOFILE, 16, 16)];
    keeper.spawn(100, plan, vec![(FdUse::Child(1), write)]);
    assert_eq!(keeper.await_exit(100), Exit::Code(0));
    let mut words = String::new();
    fs::File::from(read).read_to_string(&mut words).expect("read");
    assert_eq!(words, "fine\n");
}

#[test]
fn the_keeper_stays_small() {
    let mut keeper = Keeper::start(Parent::Clean);
    for run in 1..=200 {
        keeper.spawn(run, plan("/bin/true", &["true"]), vec![]);
        keeper.await_exit(run);
        keeper.client.send(Request::Release { run: RunId(run) }).expect("release");
    }
    let before = status_kib(keeper.pid(), "RssAnon:");
    for run in 201..=400 {
        keeper.spawn(run, plan("/bin/true", &["true"]), vec![]);
        keeper.await_exit(run);
        keeper.client.send(Request::Release { run: RunId(run) }).expect("release");
    }
    let after = status_kib(keeper.pid(), "RssAnon:");
    assert!(after <= before + 16, "grew from {before} to {after} KiB over 200 runs");
    // File pages of the binary are shared with the engine; what is ours alone is this.
    assert!(after <= 2_048, "{after} KiB of anonymous memory");
    let all = status_kib(keeper.pid(), "VmRSS:");
    eprintln!("keeper: {after} KiB anonymous, {all} KiB resident with the pages of this binary");
    assert_eq!(keeper.end(0), Some(0));
}

/// The deaf tree: (main, the one that left the session).
fn grow(keeper: &mut Keeper, mut fds: Vec<(FdUse, OwnedFd)>) -> (i32, i32) {
    let file = keeper.dir.path().join("pids");
    let mut plan = plan("/proc/self/exe", &["tree"]);
    let path = file.to_str().expect("utf-8");
    plan.env = vec![format!("{TREE_MARK}={path}").into_bytes(), b"UPRIGHT_UNIT=deaf".to_vec()];
    fds.push((FdUse::Child(0), pipe::null().expect("null")));
    keeper.spawn(1, plan, fds);
    let main = keeper.await_executed(1);
    let mut pids = Vec::new();
    await_that("both have written their pids", || {
        let text = fs::read_to_string(&file).unwrap_or_default();
        pids = text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()).collect();
        pids.len() == 2
    });
    let escaped = pids.iter().copied().find(|pid| *pid != main).expect("escaped");
    assert!(pids.contains(&main));
    (main, escaped)
}

fn exists(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Zombie children of this process.
fn zombies_of(parent: i32) -> usize {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let mark = format!("Z {parent} ");
    stats.filter(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(&mark))).count()
}

fn status_kib(pid: i32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("line");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("number")
}

#[test]
fn a_run_reaches_exec_within_milliseconds() {
    let mut keeper = Keeper::start(Parent::Clean);
    let mut best = u128::MAX;
    for run in 1..=50 {
        let begin = clock::monotonic();
        keeper.spawn(run, plan("/bin/true", &["true"]), vec![]);
        keeper.await_executed(run);
        best = best.min(clock::monotonic().since(begin).as_micros());
        keeper.await_exit(run);
    }
    eprintln!("request to exec told, best of 50: {best} us");
    assert!(best < DEADLINE.as_micros() / 100);
    assert_eq!(keeper.end(0), Some(0));
}
