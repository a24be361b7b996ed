//! Real shortages of a running daemon: fds of the engine and of the keeper, address space, and a
//! disk that is full. What waits goes on by itself when there is enough again.
//!
//! Refuses: injection (`e2e_shortage`). The kernel itself says no here.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::tracer::is_engine;
use support::{Home, eventually, http, is_root, of, proc, skip, skip_tool};

const SOON: Duration = Duration::from_secs(20);

/// How long a shortage lasts here, and is measured.
const LASTING: Duration = Duration::from_secs(2);

/// Most CPU that an engine or a keeper may use within `LASTING` while it is short.
const CPU_MAX: Duration = Duration::from_millis(200);

fn engine(home: &Home) -> Pid {
    let children = proc::children(home.child());
    children.into_iter().find(|process| is_engine(process.pid)).expect("an engine lives").pid
}

/// User and system time of a process.
fn cpu(pid: Pid) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<&str> = text[text.rfind(')').expect("its name") + 1..].split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    Duration::from_millis((ticks(11) + ticks(12)) * 10) // a tick is a hundredth of a second (proc(5))
}

fn limit(pid: Pid, what: &str, soft: &str) {
    let done =
        Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--{what}={soft}:")]).status();
    assert!(done.expect("prlimit runs").success(), "prlimit {what} {soft}");
}

fn soft_nofile(pid: Pid) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it lives");
    let line = text.lines().find(|line| line.starts_with("Max open files")).expect("the line");
    line.split_whitespace().nth(3).expect("the soft limit").to_owned()
}

fn open_fds(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").count()
}

fn lacking() -> bool {
    skip_tool((!Path::new("/usr/bin/prlimit").exists()).then_some("prlimit"))
}

fn home() -> Home {
    let mut home = Home::new();
    let brisk = "[restart]\ndelays = [\"50ms\"]\n";
    home.unit("victim", &format!("[service]\ncommand = [\"sleep\", \"100301\"]\n{brisk}"));
    home.unit(
        "checked",
        "[service]\ncommand = [\"sleep\", \"100302\"]\n\
         [health]\nexec = [\"true\"]\ninterval = \"200ms\"\nthreshold = 1\n",
    );
    home.daemon();
    home.await_state("victim", "active", SOON);
    home.await_state("checked", "active", SOON);
    home
}

/// A unit dies while `pid` can open nothing; then it can again.
fn short_of_fds(home: &Home, pid: Pid) {
    let former = home.pid("victim");
    let enough = soft_nofile(pid);
    limit(pid, "nofile", &open_fds(pid).min(3).to_string());
    kill(Pid::from_raw(former), Signal::SIGKILL).expect("it lives");
    let before = cpu(pid);
    // Clients that nobody can accept wait in the queue, and cost nothing.
    let queue: Vec<_> =
        (0..4).map(|_| std::os::unix::net::UnixStream::connect(home.socket()).expect("a queue")).collect();
    std::thread::sleep(LASTING); // how long the shortage lasts
    let spent = cpu(pid).saturating_sub(before);
    assert!(spent <= CPU_MAX, "{spent:?} of CPU within {LASTING:?} of a shortage");
    drop(queue);
    limit(pid, "nofile", &enough);
    home.await_unit("victim", "the victim runs again", SOON, |status| {
        status["state"] == "active" && support::pid_of(status).is_some_and(|pid| pid != former)
    });
    let events = home.events();
    assert_eq!(of(&events, "unit.failed", "victim").len(), 1, "only its death is a failure");
    assert_eq!(of(&events, "unit.failed", "checked").len(), 0, "a check that cannot be made says nothing");
}

#[test]
fn an_engine_without_fds_waits_without_spinning_and_goes_on() {
    if lacking() {
        return;
    }
    let mut home = home();
    let engine_then = engine(&home);
    short_of_fds(&home, engine_then);
    assert_eq!(engine(&home), engine_then, "the engine lived through it");
    assert!(home.stop().success());
}

#[test]
fn a_keeper_without_fds_delays_spawns_and_nothing_else() {
    if lacking() {
        return;
    }
    let mut home = home();
    let keeper = home.child();
    short_of_fds(&home, keeper);
    assert!(!of(&home.events(), "spawn.shortage", "victim").is_empty(), "the shortage is told");
    assert!(home.stop().success());
}

#[test]
fn an_engine_without_memory_does_its_work_or_is_replaced() {
    if lacking() {
        return;
    }
    let mut home = home();
    let (victim, former) = (home.pid("victim"), engine(&home));
    limit(former, "as", "1");
    // Questions need memory and threads: they are answered, refused, or end this engine.
    for _ in 0..20 {
        let _ = http::ask(&home.socket(), "GET", "/v1/units/victim/logs?lines=10", ""); // see above
    }
    kill(Pid::from_raw(victim), Signal::SIGKILL).expect("it lives");
    home.await_unit("victim", "the victim runs again", SOON, |status| {
        status["state"] == "active" && support::pid_of(status).is_some_and(|pid| pid != victim)
    });
    let events = home.events();
    assert_eq!(of(&events, "unit.failed", "victim").len(), 1, "only its death is a failure");
    assert_eq!(of(&events, "unit.failed", "checked").len(), 0, "a check that cannot be made says nothing");
    assert!(home.stop().success());
}

/// A tmpfs of one MiB at `place`, in a mount namespace of the daemon's own.
fn on_a_small_disk(place: &Path) -> Vec<String> {
    let place = place.display();
    let script = format!("mount -t tmpfs -o size=1m,mode=0755 none \"{place}\" && exec \"$@\"");
    ["unshare", "-m", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
}

#[test]
fn a_full_log_disk_blocks_the_writer_and_no_line_is_lost() {
    if skip((!is_root()).then_some("root")) {
        return;
    }
    let mut home = Home::new();
    let log = home.path().join("log");
    fs::create_dir(&log).expect("log/");
    let talk = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo \"line $i of a hundred bytes or so, so that a disk of a MiB is full of them soon: 0123456789\"; done; exec sleep 100303";
    home.unit("talker", &format!("[service]\nshell = true\ncommand = '''{talk}'''\n"));
    let prefix = on_a_small_disk(&log);
    let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
    home.daemon_through(&prefix);
    let engine = engine(&home);
    let inside = format!("/proc/{engine}/root{}/talker/current.log", log.display());
    let size = |path: &str| fs::metadata(path).map_or(0, |found| found.len());
    eventually("the disk is full", SOON, || (size(&inside) > 900 * 1024).then_some(()));
    let mut last = 0;
    eventually("the writer is blocked", SOON, || {
        std::thread::sleep(Duration::from_millis(300)); // longer than a turn of the capture
        (std::mem::replace(&mut last, size(&inside)) == size(&inside)).then_some(())
    });
    assert_eq!(home.status("talker")["state"], "active", "it is blocked, and no failure");
    // Room: the mount grows where the daemon sees it.
    let grown = Command::new("nsenter")
        .args(["-t", &engine.to_string(), "-m", "mount", "-o", "remount,size=16m"])
        .arg(&log)
        .status();
    assert!(grown.expect("nsenter runs").success());
    let whole = eventually("every line is there", SOON, || {
        let text = fs::read_to_string(&inside).ok()?;
        text.contains("line 20000 of").then_some(text)
    });
    let numbers = whole.lines().map(|line| line.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok()));
    assert!(numbers.eq((1..=20_000).map(Some)), "each once and in order");
    assert!(of(&home.events(), "unit.failed", "talker").is_empty());
    assert!(home.stop().success());
}
