//! sd_notify(3) as services speak it: who is heard, what it moves, what outlives whom.
//!
//! Refuses: a fake service manager. The daemon is real, and so is whoever speaks to it.

mod support;

#[path = "notify/clients.rs"]
mod clients;
#[path = "notify/mains.rs"]
mod mains;
#[path = "notify/puppet.rs"]
mod puppet;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use puppet::{PYTHON, SOON, push, say, tell, unit};
use support::{Home, eventually, of, proc, skip_tool};

const NOBODY: u32 = 65_534;

fn lacking() -> Option<&'static str> {
    (!Path::new(PYTHON).exists()).then_some("python3")
}

fn engine(home: &Home) -> Pid {
    let pid = home.list().expect("the daemon answers")["daemon"]["engine_pid"].as_i64().expect("a pid");
    Pid::from_raw(i32::try_from(pid).expect("a pid"))
}

/// SIGKILL to the engine; returns when the next one answers.
fn kill_engine(home: &Home) {
    let former = engine(home);
    kill(former, Signal::SIGKILL).expect("it lives");
    eventually("another engine answers", SOON, || {
        let pid = home.list()?["daemon"]["engine_pid"].as_i64()?;
        (pid != i64::from(former.as_raw())).then_some(())
    });
}

fn reason(home: &Home, unit: &str) -> String {
    home.status(unit)["reason"].as_str().expect("a reason").to_owned()
}

fn failures(home: &Home, unit: &str) -> Vec<Value> {
    of(&home.events(), "unit.failed", unit).into_iter().cloned().collect()
}

#[test]
fn each_word_moves_what_it_is_about() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "", "");
    home.daemon();
    home.await_state("web", "activating", SOON);
    say(&home, "web", "STATUS=3 of 7 tables loaded");
    let loading = home.status("web");
    assert_eq!(loading["state"], "activating");
    assert!(
        loading["reason"].as_str().is_some_and(|text| text.ends_with("3 of 7 tables loaded")),
        "{loading}"
    );
    say(&home, "web", "READY=1\nSTATUS=ready");
    assert_eq!(home.status("web")["state"], "active");
    let last = home.last_event();
    say(&home, "web", "RELOADING=1\nMONOTONIC_USEC=1");
    assert!(reason(&home, "web").contains("reloads"), "{}", reason(&home, "web"));
    say(&home, "web", "READY=1");
    assert!(!reason(&home, "web").contains("reloads"), "{}", reason(&home, "web"));
    assert_eq!(of(&home.events_after(last), "unit.reloaded", "web").len(), 1);
    // The last one of a datagram counts.
    say(&home, "web", "RELOADING=1\nREADY=1\nX_UNKNOWN=1\nno assignment");
    assert!(!reason(&home, "web").contains("reloads"), "{}", reason(&home, "web"));
    say(&home, "web", "STOPPING=1\nSTATUS=");
    assert!(reason(&home, "web").contains("stops"), "{}", reason(&home, "web"));
    assert!(!reason(&home, "web").contains("says: "), "{}", reason(&home, "web"));
    assert!(failures(&home, "web").is_empty());
}

#[test]
fn strangers_and_other_units_move_nothing() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "", "");
    unit(&home, "other", "say('READY=1')", "");
    home.daemon();
    home.await_state("other", "active", SOON);
    home.await_state("web", "activating", SOON);
    let pid = home.pid("web");
    // Nobody's process, though root's: this one.
    let stranger = UnixDatagram::unbound().expect("a socket");
    for text in ["READY=1", "", "STATUS=x\nSTOPPING=1", &format!("MAINPID={}", std::process::id())] {
        stranger.send_to(text.as_bytes(), home.path().join("run/notify.sock")).expect("sent");
    }
    stranger.send_to(&[b'x'; 100_000], home.path().join("run/notify.sock")).expect("sent");
    say(&home, "other", &format!("READY=1\nSTATUS=mine\nMAINPID={pid}"));
    let (web, other) = (home.status("web"), home.status("other"));
    assert_eq!((&web["state"], &web["pid"]), (&"activating".into(), &pid.into()));
    assert!(other["reason"].as_str().is_some_and(|text| text.ends_with("mine")), "{other}");
    assert_ne!(other["pid"], pid);
    said(&home, &format!("other names {pid} as its main process, which is no process of the unit"));
    // What it says itself still counts.
    say(&home, "web", "READY=1");
    assert_eq!(home.status("web")["state"], "active");
}

/// pidfds of senders that are reaped already came with Linux 6.17.
fn tells_of_the_dead() -> bool {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel");
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 17)
}

#[test]
fn a_sender_that_is_gone_already_is_heard() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "", "");
    home.daemon();
    home.await_state("web", "activating", SOON);
    let weak = home.get("/v1/units/web")["containment"] == "weak";
    if weak || !tells_of_the_dead() {
        eprintln!("SKIPPED: this kernel does not tell which cgroup a dead process was in");
        return;
    }
    let engine = engine(&home);
    kill(engine, Signal::SIGSTOP).expect("it lives");
    tell(&home, "web", "blurt('READY=1')");
    kill(engine, Signal::SIGCONT).expect("it lives");
    home.await_state("web", "active", SOON);
}

#[test]
fn what_was_said_while_no_engine_lived_is_heard() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "", "");
    home.daemon();
    home.await_state("web", "activating", SOON);
    let former = engine(&home);
    kill(former, Signal::SIGSTOP).expect("it lives");
    tell(&home, "web", "say('READY=1\\nSTATUS=said to nobody')");
    kill(former, Signal::SIGKILL).expect("it lives");
    home.await_unit("web", "the next engine heard it", SOON, |status| {
        status["state"] == "active"
            && status["reason"].as_str().is_some_and(|text| text.ends_with("said to nobody"))
    });
}

/// The process on which a unit's run goes, as the daemon sees it.
fn await_pid(home: &Home, unit: &str, pid: i32) {
    home.await_unit(unit, &format!("{unit} is process {pid}"), SOON, |status| status["pid"] == pid);
}

fn pid_in(answer: &str) -> i32 {
    answer.parse().unwrap_or_else(|_| panic!("no pid: {answer}"))
}

/// Waits until the daemon's own log has it: that is written by a thread of its own.
fn said(home: &Home, text: &str) {
    eventually(&format!("the log says {text:?}"), SOON, || home.said().contains(text).then_some(()));
}

const QUICK: &str = "[restart]\ndelays = [\"100ms\"]";

#[test]
fn stored_fds_outlive_the_service_and_the_engine() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "say('READY=1')", QUICK);
    home.daemon();
    home.await_state("web", "active", SOON);
    assert_eq!(tell(&home, "web", "stored()"), "None");
    tell(&home, "web", "say('FDSTORE=1\\nFDNAME=state', [memfd('seven')])");
    tell(&home, "web", "say('FDSTORE=1', [memfd('a'), memfd('b')]), barrier()");
    let restart = |home: &Home| {
        let pid = home.pid("web");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
        home.await_unit("web", "it runs again", SOON, |status| {
            status["state"] == "active" && status["pid"] != pid
        });
    };
    kill_engine(&home);
    restart(&home);
    let all = "[('state', 'seven'), ('stored', 'a'), ('stored', 'b')]";
    assert_eq!(tell(&home, "web", "stored()"), all);
    // The same file again is known; others go by their name.
    tell(&home, "web", "say('FDSTORE=1\\nFDNAME=again', [3, 4])");
    say(&home, "web", "FDSTOREREMOVE=1\nFDNAME=stored");
    restart(&home);
    assert_eq!(tell(&home, "web", "stored()"), "[('state', 'seven')]");
    // Restarting is no stop, stopping is.
    home.upright_exits(&["restart", "web"], 0);
    assert_eq!(tell(&home, "web", "stored()"), "[('state', 'seven')]");
    kill_engine(&home);
    home.upright_exits(&["stop", "web"], 0);
    home.upright_exits(&["start", "web"], 0);
    assert_eq!(tell(&home, "web", "stored()"), "None");
}

/// Open fds of a process that came from a puppet.
fn fds_of(pid: Pid) -> usize {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").flatten();
    let of_puppet = |path: std::path::PathBuf| path.to_string_lossy().contains("memfd:stored");
    fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(of_puppet)).count()
}

#[test]
fn the_store_is_bounded_and_no_fd_leaks() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "say('READY=1')", QUICK);
    home.daemon();
    home.await_state("web", "active", SOON);
    let (keeper, engine) = (home.child(), engine(&home));
    // Fds that nobody asked for, as many as a datagram takes.
    tell(&home, "web", "[say('STATUS=x', [memfd('x')] * 253) for _ in range(20)], barrier()");
    tell(&home, "web", "[say('FDSTOREREMOVE=1', [memfd('y')] * 100) for _ in range(20)], barrier()");
    assert_eq!((fds_of(keeper), fds_of(engine)), (0, 0));
    tell(&home, "web", "kept = [memfd(str(n)) for n in range(80)]");
    tell(&home, "web", "say('FDSTORE=1\\nFDNAME=many', kept), barrier()");
    said(&home, "has stored as many fds as it may");
    let pid = home.pid("web");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
    home.await_unit("web", "it runs again", SOON, |status| {
        status["state"] == "active" && status["pid"] != pid
    });
    let last = tell(&home, "web", "len(stored()), stored()[63]");
    assert_eq!(last, "(64, ('many', '63'))");
    assert_eq!((fds_of(keeper), fds_of(engine)), (64, 64));
    fs::remove_file(home.path().join("units/web.toml")).expect("it is there");
    kill(home.child(), Signal::SIGHUP).expect("the daemon lives");
    eventually("nothing is kept of a unit that is gone", SOON, || {
        ((fds_of(keeper), fds_of(engine)) == (0, 0)).then_some(())
    });
}

#[test]
fn a_slow_start_that_asks_for_time_gets_it() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    let short = "[readiness]\ntimeout = \"2s\"\n[restart]\ndelays = [\"60s\"]";
    unit(&home, "patient", "say('EXTEND_TIMEOUT_USEC=30000000')", short);
    unit(&home, "hasty", "", short);
    home.daemon();
    home.await_state("hasty", "backoff", SOON);
    say(&home, "patient", "READY=1");
    assert_eq!(home.status("patient")["state"], "active");
    assert!(failures(&home, "patient").is_empty());
}

#[test]
fn a_service_that_is_beyond_help_is_restarted() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "say('READY=1')", "[health]\nwatchdog = \"20s\"\n[restart]\ndelays = [\"100ms\"]");
    home.daemon();
    let first = home.await_state("web", "active", SOON)["pid"].clone();
    let last = home.last_event();
    push(&home, "web", "say('WATCHDOG=trigger')"); // it may be gone before it could answer
    home.await_event(last, "web failed", SOON, |event| {
        event["event"] == "unit.failed" && event["unit"] == "web"
    });
    home.await_unit("web", "it runs again", SOON, |status| {
        status["state"] == "active" && status["pid"] != first
    });
}

#[test]
fn silence_is_noticed_in_time_and_a_late_engine_is_no_silence() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    let health = "[health]\nwatchdog = \"2s\"\n[restart]\ndelays = [\"60s\"]";
    unit(&home, "steady", "say('READY=1'); ping(0.3)", health);
    unit(&home, "silent", "say('READY=1')", health);
    home.daemon();
    home.await_state("steady", "active", SOON);
    let failed = home.await_event(0, "silent failed", SOON, |event| {
        event["event"] == "unit.failed" && event["unit"] == "silent"
    });
    let events = home.events();
    let at = |event: &Value| event["at_ns"].as_i64().expect("at_ns");
    let ready = of(&events, "unit.active", "silent");
    let silent_ms = (at(&failed) - at(ready[0])) / 1_000_000;
    println!("silence of 2,000 ms was noticed after {silent_ms} ms");
    assert!((2_000..3_000).contains(&silent_ms), "noticed after {silent_ms} ms");
    // Pings lie in the socket while the engine stands still for longer than the period.
    let engine = engine(&home);
    kill(engine, Signal::SIGSTOP).expect("it lives");
    std::thread::sleep(Duration::from_millis(2_500)); // the point of it: nothing happens meanwhile
    kill(engine, Signal::SIGCONT).expect("it lives");
    say(&home, "steady", "WATCHDOG=1");
    assert_eq!(home.status("steady")["state"], "active");
    assert!(failures(&home, "steady").is_empty());
    // The period that it names itself counts.
    push(&home, "steady", "say('WATCHDOG_USEC=100000')");
    home.await_unit("steady", "its own period is too short for its pings", SOON, |status| {
        status["state"] == "backoff"
    });
}

#[test]
fn a_service_that_says_it_stops_is_not_checked() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    let file = home.path().join("well");
    fs::write(&file, "").expect("a file");
    let health = format!(
        "[health]\nexec = [\"test\", \"-e\", {file:?}]\ninterval = \"200ms\"\nthreshold = 2\n\
         [stop]\ntimeout = \"60s\"\n[restart]\ndelays = [\"60s\"]"
    );
    unit(&home, "leaving", "say('READY=1')", &health);
    unit(&home, "staying", "say('READY=1')", &health);
    home.daemon();
    home.await_state("leaving", "active", SOON);
    home.await_state("staying", "active", SOON);
    say(&home, "leaving", "STOPPING=1");
    fs::remove_file(&file).expect("it is there");
    let seen = |status: &Value| status["state"] == "backoff" || status["state"] == "deactivating";
    home.await_unit("staying", "its check has its say", SOON, seen);
    let leaving = home.status("leaving");
    assert_eq!(leaving["state"], "active", "{leaving}");
    assert!(failures(&home, "leaving").is_empty());
}

/// Behind a shell that waits for it: not the main process, and of the unit all the same.
#[test]
fn a_service_behind_a_shell_is_heard() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    let file = puppet::script(&home);
    let words = [PYTHON, &file, home.path().to_str().expect("UTF-8"), "web"];
    let script = format!("{} & wait", words.join(" "));
    home.unit("web", &format!("[service]\ntype = \"notify\"\nshell = true\ncommand = {script:?}\n"));
    home.daemon();
    home.await_state("web", "activating", SOON);
    let inner = pid_in(&tell(&home, "web", "os.getpid()"));
    assert_ne!(home.pid("web"), inner);
    say(&home, "web", "READY=1");
    assert_eq!(home.status("web")["state"], "active");
}

/// A daemon of an ordinary user has no cgroups to tell units apart by: sessions and marks do.
#[test]
fn without_cgroups_ancestry_tells_who_speaks() {
    if skip_tool(lacking()) || support::skip((!support::is_root()).then_some("root (to be another user)")) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "", QUICK);
    unit(&home, "other", "say('READY=1')", "");
    home.use_own_copy();
    chown(home.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
    let id = NOBODY.to_string();
    home.daemon_through(&["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
    home.await_state("other", "active", SOON);
    home.await_state("web", "activating", SOON);
    let pid = home.pid("web");
    let stranger = UnixDatagram::unbound().expect("a socket");
    stranger.send_to(b"READY=1", home.path().join("run/notify.sock")).expect("sent");
    say(&home, "other", &format!("READY=1\nMAINPID={pid}"));
    say(&home, "web", &format!("MAINPID={}\nSTATUS=not yet", home.pid("other")));
    let web = home.status("web");
    assert_eq!((&web["state"], &web["pid"]), (&"activating".into(), &pid.into()), "{web}");
    // In a session of its own, where only its mark tells.
    let second = pid_in(&tell(&home, "web", "fork('second')"));
    tell(&home, "second", "os.setsid()");
    say(&home, "second", "READY=1\nMAINPID=1");
    assert_eq!(home.status("web")["state"], "active");
    say(&home, "second", &format!("MAINPID={second}"));
    await_pid(&home, "web", second);
    push(&home, "web", "os._exit(0)");
    eventually("the first process is gone", SOON, || proc::find(Pid::from_raw(pid)).is_none().then_some(()));
    say(&home, "second", "READY=1");
    assert_eq!((&home.status("web")["state"], failures(&home, "web").len()), (&"active".into(), 0));
    kill(Pid::from_raw(second), Signal::SIGKILL).expect("it lives");
    home.await_unit("web", "its end is seen", SOON, |status| status["failures"] == 1);
}

/// One service and a stranger that never fall silent: others are heard and clients answered.
#[test]
fn a_flood_delays_nobody() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "hostile", "say('READY=1'); [flood('STATUS=' + 'x' * 2000) for _ in range(4)]", "");
    unit(&home, "web", "", "[health]\nwatchdog = \"3s\"");
    home.daemon();
    home.await_state("hostile", "active", SOON);
    let socket = home.path().join("run/notify.sock");
    std::thread::scope(|scope| {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let stranger = UnixDatagram::unbound().expect("a socket");
            stranger.set_nonblocking(true).expect("a mode");
            while ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                if stranger.send_to(b"READY=1\nMAINPID=1", &socket).is_err() {
                    std::thread::yield_now(); // the queue is full
                }
            }
        });
        say(&home, "web", "READY=1");
        assert_eq!(home.status("web")["state"], "active");
        tell(&home, "web", "ping(0.5)");
        let mut worst = Duration::ZERO;
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            let asked = Instant::now();
            assert_eq!(home.status("web")["state"], "active");
            worst = worst.max(asked.elapsed());
        }
        println!("the slowest of the answers took {worst:?} in the flood");
        assert!(worst < Duration::from_secs(2), "an answer took {worst:?}");
        drop(end);
    });
    assert!(failures(&home, "web").is_empty());
    assert!(home.stop().success());
}
