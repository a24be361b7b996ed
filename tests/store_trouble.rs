//! The store in every kind of trouble, under the real daemon: units go on being restarted on
//! schedule, people are told what ails it and what to do, it heals by itself, and afterwards the
//! record is whole: no event missing, none twice.
//!
//! Refuses: engine code. What is looked at is the API, the command line and the log.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{Home, eventually, id_of, is_root, of, skip};

const PATIENCE: Duration = Duration::from_secs(60);

/// A restart is due 100 ms after the failure; a loaded machine may be late.
const RESTARTED_WITHIN: Duration = Duration::from_secs(5);

const WEB: &str = "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"100ms\"]\n";

fn home() -> Home {
    let mut home = Home::new();
    home.unit("web", WEB).unit("other", WEB);
    home.daemon();
    ready(&home);
    home
}

/// The same, with a file system of its own over `place` that nobody else sees: 2 MiB large.
fn home_on_a_small_disk(place: &str) -> Home {
    let mut home = Home::new();
    home.unit("web", WEB).unit("other", WEB);
    let at = home.path().join(place);
    fs::create_dir(&at).expect("dir");
    let script =
        format!("mount -t tmpfs -o size=2m,mode=750 none {} && exec \"$@\"", at.to_str().expect("UTF-8"));
    home.daemon_through(&["unshare", "-m", "sh", "-c", &script, "sh"]);
    ready(&home);
    home
}

fn ready(home: &Home) {
    home.await_state("web", "active", PATIENCE);
    home.await_state("other", "active", PATIENCE);
    await_color(home, "green");
}

/// A path as the daemon sees it.
fn inside(home: &Home, place: &str) -> PathBuf {
    let path = home.path().join(place);
    let path = path.strip_prefix("/").expect("it is absolute");
    PathBuf::from(format!("/proc/{}/root", home.child())).join(path)
}

fn await_color(home: &Home, color: &str) -> Value {
    let health = || Some(home.get("/api/system/health")).filter(|health| health["status"] == color);
    eventually(&format!("health is {color}: {}", home.get("/api/system/health")), PATIENCE, health)
}

fn codes(health: &Value) -> Vec<String> {
    let told = health["troubles"].as_array().expect("an array").iter();
    told.map(|trouble| trouble["code"].as_str().expect("a code").to_string()).collect()
}

/// Kills `web` and waits until it is back, by what the daemon says now: nothing may wait for the disk.
fn fail_once(home: &Home) {
    let before = home.pid("web");
    let begun = Instant::now();
    kill(Pid::from_raw(before), Signal::SIGKILL).expect("it lives");
    home.await_unit("web", "web is back", RESTARTED_WITHIN, |web| {
        web["state"] == "active" && support::pid_of(web).is_some_and(|pid| pid != before)
    });
    assert!(begun.elapsed() >= Duration::from_millis(100), "never early");
}

/// What must hold while the store is in trouble that is told as `code`.
fn in_trouble(home: &Home, code: &str) {
    for _ in 0..3 {
        fail_once(home);
    }
    let told = |health: &Value| codes(health).iter().any(|told| told == code);
    let health = eventually(&format!("{code} is told"), PATIENCE, || {
        Some(home.get("/api/system/health")).filter(told)
    });
    assert_eq!(health["status"], "yellow", "{health}");
    let status = home.upright(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains(&format!("note: {code}: ")), "{status}");
}

/// What must hold once it is over: `failures` of `web`, each recorded once, by dense ids, in the
/// store and in the log.
fn healed(home: &Home, failures: usize) {
    await_color(home, "green");
    recorded(home, failures);
}

fn recorded(home: &Home, failures: usize) {
    let events = eventually("every failure is recorded", PATIENCE, || {
        let events = home.events(); // dense, or it panics
        (of(&events, "unit.failed", "web").len() >= failures).then_some(events)
    });
    for (name, wanted) in [("unit.failed", failures), ("unit.restarted", failures)] {
        assert_eq!(of(&events, name, "web").len(), wanted, "{name}");
    }
    let last = id_of(events.last().expect("some"));
    let logged = eventually("the log has them all", PATIENCE, || {
        let text = fs::read_to_string(inside(home, "log/system_resilience.log")).ok()?;
        let ids: Vec<u64> =
            text.lines().map(|line| id_of(&serde_json::from_str(line).expect("a whole line"))).collect();
        (ids.last() >= Some(&last)).then_some(ids)
    });
    assert!(logged.iter().copied().eq(1..=logged.len() as u64), "each once, in order: {logged:?}");
}

fn store_file(home: &Home, suffix: &str) -> PathBuf {
    inside(home, &format!("state/upright.db{suffix}"))
}

#[test]
fn locked_by_somebody_else() {
    let home = home();
    let lock = rusqlite::Connection::open(store_file(&home, "")).expect("opens");
    lock.execute_batch("BEGIN IMMEDIATE").expect("locks");
    in_trouble(&home, "store.locked");
    // An order is carried out, and who gave it is told that it could not be written down.
    let (status, answer) = home.request("POST", "/v1/units/other/stop", "");
    assert_eq!((status, answer["error"]["code"].as_str()), (507, Some("store.trouble")), "{answer}");
    assert_eq!(home.status("other")["state"], "inactive");
    lock.execute_batch("ROLLBACK").expect("unlocks");
    healed(&home, 3);
    let events = home.events();
    assert_eq!(of(&events, "order.taken", "other").len(), 1);
}

#[test]
fn locked_so_that_nobody_gets_in_while_an_engine_begins() {
    let home = home();
    fail_once(&home);
    home.upright_exits(&["stop", "other"], 0);
    let lock = rusqlite::Connection::open(store_file(&home, "")).expect("opens");
    let web = home.pid("web");
    while_no_engine_lives(&home, || {
        lock.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").expect("locks");
    });
    assert_eq!(home.pid("web"), web, "it is adopted");
    assert_eq!(home.status("other")["state"], "inactive", "an operator's stop holds");
    in_trouble(&home, "store.locked");
    assert_eq!(home.status("web")["failures"], 4, "counted on from what was");
    drop(lock);
    healed(&home, 4);
    assert_eq!(home.status("other")["state"], "inactive");
}

#[test]
fn a_full_disk() {
    if skip((!is_root()).then_some("root")) {
        return;
    }
    let home = home_on_a_small_disk("state");
    fill(&inside(&home, "state/filler"));
    in_trouble(&home, "store.full");
    fs::remove_file(inside(&home, "state/filler")).expect("removes");
    healed(&home, 3);
}

#[test]
fn a_full_disk_under_the_log() {
    if skip((!is_root()).then_some("root")) {
        return;
    }
    let home = home_on_a_small_disk("log");
    fill(&inside(&home, "log/filler"));
    in_trouble(&home, "log.unwritable");
    assert!(of(&home.events(), "unit.failed", "web").len() == 3, "the store has them");
    fs::remove_file(inside(&home, "log/filler")).expect("removes");
    healed(&home, 3);
}

/// Writes until there is no room for another byte.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).expect("creates");
    let mut size = 1 << 20;
    while size > 0 {
        let written = std::io::Write::write_all(&mut file, &vec![0; size]);
        if written.is_err() {
            size /= 2;
        }
    }
}

#[test]
fn read_only_while_an_engine_begins() {
    if skip((!is_root()).then_some("root")) {
        return;
    }
    let home = home_on_a_small_disk("state");
    fail_once(&home);
    // The kernel refuses while threads of the killed engine are still on their way out.
    let remount = |how: &str| {
        let at = home.path().join("state");
        eventually(how, PATIENCE, || {
            let done = Command::new("nsenter")
                .args(["-t", &home.child().to_string(), "-m", "mount", "-o", how])
                .arg(&at)
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status();
            done.expect("nsenter runs").success().then_some(())
        });
    };
    let web = home.pid("web");
    while_no_engine_lives(&home, || remount("remount,ro"));
    assert_eq!(home.pid("web"), web, "it is adopted");
    in_trouble(&home, "store.read-only");
    remount("remount,rw");
    healed(&home, 4);
}

#[test]
fn files_and_directory_removed_under_the_living_daemon() {
    let home = home();
    fail_once(&home);
    home.upright_exits(&["stop", "other"], 0);
    for part in ["", "-wal", "-shm"] {
        fs::remove_file(store_file(&home, part)).expect("removes");
    }
    fail_once(&home);
    recorded(&home, 2);
    fs::remove_dir_all(inside(&home, "state")).expect("removes");
    fail_once(&home);
    healed(&home, 3);
    assert!(store_file(&home, "").exists());
    let web = home.pid("web");
    while_no_engine_lives(&home, || fs::remove_dir_all(inside(&home, "state")).expect("removes"));
    assert_eq!(home.pid("web"), web, "it is adopted");
    fail_once(&home);
    healed(&home, 4);
}

#[test]
fn corrupted_under_the_living_daemon() {
    let home = home();
    fail_once(&home);
    home.upright_exits(&["stop", "other"], 0);
    let engine = home.get("/v1/units")["daemon"]["engine_pid"].clone();
    // A checkpoint between two of these writes would mend what the first one broke.
    let engine_pid = Pid::from_raw(engine_pid(&home).expect("an engine"));
    kill(engine_pid, Signal::SIGSTOP).expect("it lives");
    let file = fs::OpenOptions::new().write(true).open(store_file(&home, "")).expect("opens");
    let len = file.metadata().expect("stat").len().max(64 * 1_024);
    file.write_all_at(&vec![0xA5; usize::try_from(len).expect("small")], 0).expect("writes");
    let wal = fs::OpenOptions::new().write(true).open(store_file(&home, "-wal")).expect("opens");
    wal.set_len(0).expect("cuts");
    // The index of the WAL is what SQLite looks at before each transaction.
    let shm = fs::OpenOptions::new().write(true).open(store_file(&home, "-shm")).expect("opens");
    shm.write_all_at(&[0; 32 * 1_024], 0).expect("writes");
    kill(engine_pid, Signal::SIGCONT).expect("it lives");
    for _ in 0..3 {
        fail_once(&home);
    }
    let health = eventually("it stands aside", PATIENCE, || {
        Some(home.get("/api/system/health"))
            .filter(|health| codes(health).contains(&"store.aside".to_string()))
    });
    assert_eq!(health["status"], "yellow", "{health}");
    assert_eq!(home.get("/v1/units")["daemon"]["engine_pid"], engine, "the engine did not notice");
    recorded(&home, 4);
    let events = home.events();
    assert_eq!(events.iter().filter(|event| event["event"] == "store.rebuilt").count(), 1);
    while_no_engine_lives(&home, || ());
    assert_eq!(home.status("other")["state"], "inactive", "an operator's stop holds");
    for part in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(store_file(&home, &format!(".corrupt-1{part}"))); // not all are there
    }
    healed(&home, 4);
}

/// Kills the engine, does something to its files while nobody looks, and lets the keeper start another.
fn while_no_engine_lives(home: &Home, act: impl FnOnce()) {
    let engine = engine_pid(home).expect("an engine");
    let keeper = home.child();
    kill(keeper, Signal::SIGSTOP).expect("the keeper lives");
    kill(Pid::from_raw(engine), Signal::SIGKILL).expect("the engine lives");
    eventually("the engine is dead", PATIENCE, || {
        let stat = fs::read_to_string(format!("/proc/{engine}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    act();
    kill(keeper, Signal::SIGCONT).expect("the keeper lives");
    eventually("another engine answers", PATIENCE, || engine_pid(home).filter(|new| *new != engine));
}

fn engine_pid(home: &Home) -> Option<i32> {
    i32::try_from(home.list()?["daemon"]["engine_pid"].as_i64()?).ok()
}

#[test]
fn a_disk_that_gives_errors() {
    let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if support::skip_tool(strace.is_err().then_some("strace")) {
        return;
    }
    let home = home();
    let engine = engine_pid(&home).expect("an engine");
    // SQLite writes pages with pwrite64(2) and syncs with fdatasync(2); nothing else of ours does both.
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-p", &engine.to_string()])
        .args(["-e", "trace=pwrite64,fdatasync", "-e", "inject=pwrite64,fdatasync:error=EIO"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace runs");
    eventually("the engine is traced", PATIENCE, || {
        let status = fs::read_to_string(format!("/proc/{engine}/status")).ok()?;
        (!status.contains("TracerPid:\t0")).then_some(())
    });
    in_trouble(&home, "store.io");
    let tracer = Pid::from_raw(i32::try_from(strace.id()).expect("a pid"));
    kill(tracer, Signal::SIGINT).expect("strace lives"); // it detaches
    strace.wait().expect("reaped");
    healed(&home, 3);
    assert_eq!(engine_pid(&home), Some(engine), "the engine lives on");
}
