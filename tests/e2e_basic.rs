//! What anybody may expect of a supervisor, seen from outside: one daemon a home, ordinary
//! users, PID 1, order, broken files, exit codes.
//!
//! Refuses: timing beyond "soon"; `e2e_stack` measures.

mod support;

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::{Home, UPRIGHT, eventually, is_root, proc};

const SOON: Duration = Duration::from_secs(20);

/// The account without rights that every Linux has.
const NOBODY: u32 = 65_534;

fn sleeper() -> &'static str {
    "[service]\ncommand = [\"sleep\", \"100000\"]\n"
}

#[test]
fn a_second_daemon_on_the_same_home_refuses() {
    let mut home = Home::new();
    home.unit("a", sleeper()).unit("b", sleeper());
    home.daemon();
    let pid = home.await_state("a", "active", SOON)["pid"].clone();
    let refused = home.daemon_refused();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains(&home.path().display().to_string()), "it names the home: {said}");
    assert_eq!(home.status("a")["pid"], pid, "the first one is not disturbed");
}

#[test]
fn a_home_too_deep_for_its_socket_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let deep = dir.path().join("x".repeat(120));
    let refused = Command::new(UPRIGHT).args(["daemon", "--home"]).arg(&deep).output().expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("107") && said.contains("choose a --home with a shorter path"), "{said}");
    assert!(!deep.exists(), "nothing was made there");
}

#[test]
fn a_store_of_a_newer_version_stands_aside_and_units_are_supervised() {
    let mut home = Home::new();
    home.unit("a", sleeper());
    fs::create_dir_all(home.path().join("state")).expect("made");
    let db = rusqlite::Connection::open(home.path().join("state/upright.db")).expect("opens");
    db.pragma_update(None, "user_version", 9_999).expect("written");
    drop(db);
    home.daemon();
    home.await_state("a", "active", SOON);
    let health = home.get("/api/system/health");
    assert_eq!(
        (&health["status"], &health["troubles"][0]["code"]),
        (&"yellow".into(), &"store.aside".into())
    );
    assert!(home.said().contains("schema 9999"), "{}", home.said());
}

#[test]
fn an_ordinary_user_can_run_it() {
    if support::skip((!is_root()).then_some("root (this is the ordinary case already)")) {
        return;
    }
    let mut home = Home::new();
    home.unit("a", sleeper());
    home.use_own_copy();
    chown(home.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
    let id = NOBODY.to_string();
    home.daemon_through(&["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
    let pid = home.await_state("a", "active", SOON)["pid"].clone();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    assert!(status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}")), "{status}");
    kill(Pid::from_raw(home.pid("a")), Signal::SIGKILL).expect("it lives");
    home.await_unit("a", "its end is seen", SOON, |unit| unit["failures"] == 1);
}

#[test]
fn as_pid_1_it_reaps_orphans_and_stops_on_sigterm() {
    if support::skip((!is_root()).then_some("root (for a PID namespace)")) {
        return;
    }
    let mut home = Home::new();
    let done = home.path().join("done");
    let script = format!(
        "i=0; while [ $i -lt 50 ]; do (sleep 0.05 &) ; i=$((i+1)); done; echo all > '{}'; exec sleep 100000",
        done.display()
    );
    home.unit("orphans", &format!("[service]\nshell = true\ncommand = {script:?}\n"));
    home.daemon_through(&["unshare", "--pid", "--fork", "--mount-proc", "--"]);
    home.await_state("orphans", "active", SOON);
    assert_eq!(home.get("/v1/units")["daemon"]["keeper_pid"], 1);
    eventually("fifty orphans were made", SOON, || done.exists().then_some(()));
    let first = proc::children(home.child()).pop().expect("unshare forked");
    eventually("every orphan has ended and is reaped", SOON, || {
        let below = proc::below(first.pid);
        let orphans = below.iter().filter(|process| process.parent == first.pid && process.name == "sleep");
        // One sleep is the unit itself.
        let quiet = orphans.count() == 1 && below.iter().all(|process| process.state != 'Z');
        quiet.then_some(())
    });
    assert!(home.stop_by(first.pid).success());
}

#[test]
fn a_stop_of_everything_goes_in_reverse_order() {
    let mut home = Home::new();
    let order = home.path().join("order");
    for (name, requires) in [("a", "[]"), ("b", "[\"a\"]"), ("c", "[\"b\"]")] {
        let script = format!(
            "trap 'echo {name} >> {}; exit 0' TERM; echo ready; while :; do sleep 0.05; done",
            order.display()
        );
        home.unit(
            name,
            &format!(
                "[unit]\nrequires = {requires}\n[service]\nshell = true\ncommand = {script:?}\n[readiness]\nlog = \"ready\"\n"
            ),
        );
    }
    home.daemon();
    for name in ["a", "b", "c"] {
        home.await_state(name, "active", SOON);
    }
    home.upright_exits(&["stop", "--all"], 0);
    assert_eq!(fs::read_to_string(&order).expect("they wrote"), "c\nb\na\n");
    home.upright_exits(&["start", "c"], 0);
    for name in ["a", "b", "c"] {
        assert_eq!(home.status(name)["state"], "active", "{name} is required");
    }
    assert!(home.stop().success());
    assert_eq!(
        fs::read_to_string(&order).expect("they wrote"),
        "c\nb\na\nc\nb\na\n",
        "SIGTERM does the same"
    );
}

#[test]
fn malformed_unit_files_leave_services_untouched() {
    let mut home = Home::new();
    home.unit("good", sleeper()).unit("broken", "[service\ncommand = 1");
    home.daemon();
    let pid = home.await_state("good", "active", SOON)["pid"].clone();
    let errors = home.get("/v1/config/errors").to_string();
    assert!(errors.contains("broken.toml"), "{errors}");
    let health = home.get("/api/system/health");
    assert_eq!(health["status"], "red", "{health}");
    home.unit("good", "[service]\ncommmand = [\"sleep\", \"1\"]\n");
    kill(home.child(), Signal::SIGHUP).expect("the daemon lives");
    eventually("the second error is seen", SOON, || {
        home.get("/v1/config/errors").to_string().contains("good.toml").then_some(())
    });
    let good = home.status("good");
    assert_eq!((&good["pid"], &good["state"], &good["restarts"]), (&pid, &"active".into(), &0.into()));
}

#[test]
fn a_unit_that_had_to_be_killed_starts_again() {
    let mut home = Home::new();
    // The child outlives its main process unless everything of the unit is killed.
    let deaf = "trap '' TERM; sh -c \"trap '' TERM; sleep 100000\" & echo deaf; while :; do sleep 0.05; done";
    home.unit(
        "deaf",
        &format!(
            "[service]\nshell = true\ncommand = {deaf:?}\n[readiness]\nlog = \"deaf\"\n[stop]\ntimeout = \"200ms\"\n"
        ),
    );
    home.daemon();
    let is_well = |home: &Home| {
        let status = home.await_state("deaf", "active", SOON);
        assert_eq!(status["failures"], 0, "{status}");
    };
    is_well(&home);
    home.upright_exits(&["stop", "deaf"], 0);
    home.upright_exits(&["start", "deaf"], 0);
    is_well(&home);
    // What an earlier engine did to the unit's cgroup is not known to the next one.
    home.upright_exits(&["stop", "deaf"], 0);
    let engine = |home: &Home| home.list().and_then(|list| list["daemon"]["engine_pid"].as_i64());
    let before = engine(&home).expect("an engine");
    kill(Pid::from_raw(i32::try_from(before).expect("a pid")), Signal::SIGKILL).expect("it lives");
    eventually("another engine answers", SOON, || engine(&home).filter(|now| *now != before));
    home.upright_exits(&["start", "deaf"], 0);
    is_well(&home);
    home.upright_exits(&["restart", "deaf"], 0);
    is_well(&home);
    let events = home.events();
    assert!(support::of(&events, "unit.failed", "deaf").is_empty(), "{events:?}");
}

#[test]
fn a_service_that_left_its_cgroup_is_killed_all_the_same() {
    if support::skip((!is_root()).then_some("root (for a cgroup to leave)")) {
        return;
    }
    let name = format!("escaper-{}", std::process::id());
    let script = format!(
        "d=$(find /sys/fs/cgroup -type d -name unit-{name}); [ -z \"$d\" ] || echo $$ > \"$d/../../cgroup.procs\"; \
         trap '' TERM; echo away; exec sleep 100000"
    );
    let mut home = Home::new();
    home.unit(
        &name,
        &format!(
            "[service]\nshell = true\ncommand = {script:?}\n[readiness]\nlog = \"away\"\n[stop]\ntimeout = \"200ms\"\n"
        ),
    );
    home.daemon();
    home.await_state(&name, "active", SOON);
    let pid = home.pid(&name);
    home.upright_exits(&["stop", &name], 0);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it lives on");
}

#[test]
fn a_stray_signal_does_not_end_the_keeper() {
    let mut home = Home::new();
    home.unit("a", sleeper());
    home.daemon();
    let pid = home.await_state("a", "active", SOON)["pid"].clone();
    let strays = [
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGPIPE,
        Signal::SIGXCPU,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGSTKFLT,
        Signal::SIGURG,
        Signal::SIGWINCH,
    ];
    for signal in strays {
        kill(home.child(), signal).expect("it lives");
    }
    // A kill that it has to see, after all of those: they were delivered before.
    kill(Pid::from_raw(home.pid("a")), Signal::SIGKILL).expect("it lives");
    let again = home.await_unit("a", "its end is seen", SOON, |unit| unit["failures"] == 1);
    assert_ne!(again["pid"], pid);
}

#[test]
fn the_exit_codes_are_those_of_the_contract() {
    let mut home = Home::new();
    home.upright_exits(&["status"], 5);
    home.unit("fine", sleeper());
    home.unit("off", &format!("[unit]\nenabled = false\n{}", sleeper()));
    home.unit("absent", "[unit]\nenabled = false\n[service]\ncommand = [\"/does/not/exist\"]\n");
    let slow = "[unit]\nenabled = false\n[service]\ncommand = [\"sleep\", \"100000\"]\n[readiness]\nexec = [\"false\"]\n";
    home.unit("slow", slow);
    home.daemon();
    home.await_state("fine", "active", SOON);
    home.upright_exits(&["status"], 0);
    home.upright_exits(&["status", "--json"], 0);
    home.upright_exits(&["status", "off"], 3);
    home.upright_exits(&["status", "stranger"], 4);
    home.upright_exits(&["stop", "stranger"], 4);
    home.upright_exits(&["start", "absent"], 1);
    let bare = home.upright(&[]);
    let help = String::from_utf8_lossy(&bare.stderr);
    assert!(bare.status.code() == Some(2) && help.contains("Begin here"), "{help}");
    assert!(!help.contains("puppet"), "hidden words are hidden: {help}");
    home.upright_exits(&["start", "slow", "--timeout", "300ms"], 7);
    home.upright_exits(&["frobnicate"], 2);
    home.upright_exits(&["check"], 0);
    home.unit("broken", "[service]\ncomand = [\"x\"]\n");
    home.upright_exits(&["check"], 2);
    home.upright_exits(&["stop", "--all"], 0);
    home.upright_exits(&["status"], 3);
    home.upright_exits(&["start", "fine"], 0);
}

#[test]
fn an_operators_stop_holds_across_a_restart_of_the_daemon() {
    let mut home = Home::new();
    home.unit("a", sleeper()).unit("b", sleeper());
    home.daemon();
    home.await_state("a", "active", SOON);
    home.await_state("b", "active", SOON);
    home.upright_exits(&["stop", "a"], 0);
    assert!(home.stop().success());
    home.daemon();
    home.await_state("b", "active", SOON);
    assert_eq!(home.status("a")["state"], "inactive");
}

#[test]
fn a_closed_stdout_is_no_panic() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(UPRIGHT).arg("--help").stdout(writer).stderr(Stdio::piped()).output();
    let output = output.expect("the binary runs");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
