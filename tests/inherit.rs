//! What a child inherits: exactly what its plan says, whatever our own parent left us.
//! A probe is executed directly and reports from before its runtime starts (reliability F3, B2-B4, B14).
//!
//! Refuses: `sh` as the probe.

mod keeping;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use keeping::{Keeper, Parent, file_text, plan, probe_plan};
use nix::libc;
use upright::base::exit::{Exit, SpawnStep};
use upright::keeper::wire::{FdUse, Ids, SpawnPlan};
use upright::sys::cgroup::Tree;
use upright::sys::pipe;

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root to change ids");
    }
    root
}

/// Runs the probe and gives what it wrote.
fn probed(parent: Parent, plan: SpawnPlan, more: Vec<(FdUse, OwnedFd)>) -> String {
    let mut keeper = Keeper::start(parent);
    let file = tempfile::tempfile().expect("file");
    let mut fds = vec![(FdUse::Child(1), file.as_fd().try_clone_to_owned().expect("dup"))];
    fds.extend(more);
    keeper.spawn(1, plan, fds);
    assert_eq!(keeper.await_exit(1), Exit::Code(0));
    let text = file_text(&file);
    assert_eq!(keeper.end(0), Some(0));
    text
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|found| found == line), "no line `{line}` in\n{text}");
}

#[test]
fn a_child_gets_nothing_that_its_plan_does_not_name() {
    for parent in [Parent::Clean, Parent::Dirty] {
        let text = probed(parent, probe_plan(), Vec::new());
        has(&text, "fds: [0, 1, 2]");
        has(&text, "SigBlk: 0000000000000000");
        has(&text, "SigIgn: 0000000000000000");
        has(&text, "SigCgt: 0000000000000000");
        has(&text, "SigPnd: 0000000000000000");
        has(&text, "Umask: 0022");
        has(&text, "own group: true own session: true nice: 0");
        has(&text, "environ: \"UPRIGHT_TEST_PROBE=1\\0ONLY=this\\0\"");
        has(&text, "cmdline: \"probe\\0arg\\0\"");
        has(&text, "NoNewPrivs: 0");
    }
}

#[test]
fn declared_fds_arrive_on_their_numbers_even_where_sources_and_targets_overlap() {
    let (read, write) = pipe::pair().expect("pipe");
    let twice = write.try_clone().expect("dup");
    let more = vec![
        (FdUse::Child(3), read),
        (FdUse::Child(7), write),
        (FdUse::Child(4), twice),
        (FdUse::Child(30), pipe::null().expect("null")),
    ];
    let text = probed(Parent::Dirty, probe_plan(), more);
    has(&text, "fds: [0, 1, 2, 3, 4, 7, 30]");
}

#[test]
fn limits_mask_and_niceness_are_those_of_the_plan() {
    let mut plan = probe_plan();
    plan.umask = 0o027;
    plan.nice = Some(5);
    plan.oom_score_adj = Some(321);
    plan.no_new_privs = true;
    plan.cwd = Some(b"/usr".to_vec());
    plan.rlimits = vec![(libc::RLIMIT_NOFILE, 64, 128), (libc::RLIMIT_CORE, 0, 0)];
    let text = probed(Parent::Clean, plan, vec![(FdUse::Child(40), pipe::null().expect("null"))]);
    has(&text, "fds: [0, 1, 2, 40]");
    has(&text, "Umask: 0027");
    has(&text, "own group: true own session: true nice: 5");
    has(&text, "oom_score_adj: 321");
    has(&text, "NoNewPrivs: 1");
    has(&text, "cwd: /usr");
    has(&text, "limit Max open files 64 128 files");
    has(&text, "limit Max core file size 0 0 bytes");
}

#[test]
fn a_user_means_his_ids_and_groups_and_nobody_elses() {
    if !is_root() {
        return;
    }
    let mut plan = probe_plan();
    plan.ids = Some(Ids { uid: 65_534, gid: 65_534, groups: vec![65_534, 4242] });
    plan.oom_score_adj = Some(7);
    let text = probed(Parent::Dirty, plan, Vec::new());
    has(&text, "Uid: 65534 65534 65534 65534");
    has(&text, "Gid: 65534 65534 65534 65534");
    has(&text, "Groups: 4242 65534");
    has(&text, "oom_score_adj: 7");
    has(&text, "fds: [0, 1, 2]");
}

#[test]
fn a_child_enters_its_cgroup() {
    let label = format!("inherit-{}", std::process::id());
    let Some(tree) = Tree::create(&label).expect("asked") else {
        eprintln!("skipped: no cgroup2 that we may write to");
        return;
    };
    let unit = tree.unit("probe").expect("unit");
    assert!(unit.is_empty());
    let text = probed(Parent::Clean, probe_plan(), vec![(FdUse::Cgroup, unit.dir_fd().expect("directory"))]);
    assert!(text.contains(&format!("/upright-{label}/unit-probe\n")), "{text}");
    assert!(unit.is_empty());
    assert_eq!(tree.units().expect("listed"), ["probe"]);
    tree.remove().expect("removed");
}

/// What is asked for, the fds with it, and what comes back.
type Case = (SpawnPlan, Vec<(FdUse, OwnedFd)>, SpawnStep, i32);

/// Every step that can be made to fail: step and errno come back, and nothing is executed.
#[test]
fn a_failed_step_means_no_exec_and_is_named() {
    let mut keeper = Keeper::start(Parent::Dirty);
    let dir = tempfile::tempdir().expect("tempdir");
    let marker = dir.path().join("executed");
    let touch = plan("/usr/bin/touch", &["touch", marker.to_str().expect("utf-8")]);
    let text_file = dir.path().join("text");
    fs::write(&text_file, "no program").expect("write");
    let path_of = |mode: u32| {
        fs::set_permissions(&text_file, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("chmod");
        plan(text_file.to_str().expect("utf-8"), &["x"])
    };
    let (_, hard) = upright::sys::process::nofile().expect("limit");
    let with = |change: &dyn Fn(&mut SpawnPlan)| {
        let mut plan = touch.clone();
        change(&mut plan);
        plan
    };
    let null = || pipe::null().expect("null");
    let read_only = || OwnedFd::from(fs::File::open("/proc/self/status").expect("open"));
    use SpawnStep::{Cgroup, Chdir, Exec, Fds, Limits, Prepare};
    let mut cases: Vec<Case> = vec![
        (with(&|plan| plan.cwd = Some(b"/nowhere".to_vec())), vec![], Chdir, libc::ENOENT),
        (with(&|plan| plan.cwd = Some(b"/bin/sh".to_vec())), vec![], Chdir, libc::ENOTDIR),
        (plan("/nowhere/x", &["x"]), vec![], Exec, libc::ENOENT),
        (plan("/etc", &["x"]), vec![], Exec, libc::EACCES),
        (with(&|plan| plan.env = vec![vec![b'x'; 3 << 20]]), vec![], Exec, libc::E2BIG),
        (with(&|plan| plan.rlimits = vec![(999, 1, 1)]), vec![], Limits, libc::EINVAL),
        (touch.clone(), vec![(FdUse::Cgroup, read_only())], Cgroup, libc::ENOTDIR),
        (touch.clone(), vec![(FdUse::Child(-1), null())], Fds, libc::EBADF),
        (touch.clone(), vec![(FdUse::Child(100_000), null())], Fds, libc::EBADF),
        (with(&|plan| plan.path = b"a\0b".to_vec()), vec![], Prepare, libc::EINVAL),
        (with(&|plan| plan.path = Vec::new()), vec![], Prepare, libc::EINVAL),
    ];
    let nofile = libc::RLIMIT_NOFILE;
    let above = with(&|plan| plan.rlimits = vec![(nofile, hard, hard.saturating_add(1))]);
    if fs::read_to_string("/proc/self/status").is_ok_and(|text| may_raise_limits(&text)) {
        eprintln!("skipped one case: CAP_SYS_RESOURCE may raise hard limits");
    } else {
        cases.push((above, vec![], Limits, libc::EPERM));
    }
    for (number, (plan, fds, step, errno)) in (1..).zip(cases) {
        let about = format!("case {number}: {step:?} {errno}");
        keeper.spawn(number, plan, fds);
        assert_eq!(keeper.await_exit(number), Exit::NotExecuted { step, errno }, "{about}");
    }
    for (number, mode, errno) in [(100, 0o644, libc::EACCES), (101, 0o755, libc::ENOEXEC)] {
        keeper.spawn(number, path_of(mode), vec![]);
        assert_eq!(keeper.await_exit(number), Exit::NotExecuted { step: Exec, errno });
    }
    if is_root() {
        let drop = |groups: Vec<u32>, cwd: Option<&str>| {
            with(&|plan| {
                plan.ids = Some(Ids { uid: 65_534, gid: 65_534, groups: groups.clone() });
                plan.cwd = cwd.map(|cwd| cwd.as_bytes().to_vec());
            })
        };
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(dir.path(), closed).expect("chmod");
        let private = dir.path().to_str().expect("utf-8");
        keeper.spawn(200, drop(vec![], Some(private)), vec![]);
        assert_eq!(keeper.await_exit(200), Exit::NotExecuted { step: Chdir, errno: libc::EACCES });
        keeper.spawn(201, drop(vec![1; 70_000], None), vec![]);
        let exit = keeper.await_exit(201);
        assert_eq!(exit, Exit::NotExecuted { step: SpawnStep::Groups, errno: libc::EINVAL });
    }
    assert!(!marker.exists(), "something was executed after a failed step");
    assert_eq!(keeper.end(0), Some(0));
}

fn may_raise_limits(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    bits & (1 << 24) != 0
}
