//! Unit files that are edited while the real daemon runs: what must take effect does, what need
//! not feel it does not, and half a file is never in force.
//!
//! Refuses: waiting by the clock. It awaits what the daemon tells, each within a bound.

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{Home, eventually, id_of, unit_of};

/// Far above what is promised (a second), for a machine that does much besides.
const SOON: Duration = Duration::from_secs(15);

fn sleeper(seconds: u32) -> String {
    format!("[service]\ncommand = [\"sleep\", \"{seconds}\"]\n")
}

fn file(home: &Home, unit: &str) -> PathBuf {
    home.path().join(format!("units/{unit}.toml"))
}

fn engine_pid(home: &Home) -> Pid {
    let list = home.get("/v1/units");
    Pid::from_raw(i32::try_from(list["daemon"]["engine_pid"].as_i64().expect("a pid")).expect("a pid"))
}

/// The engine dies, and another one answers.
fn kill_engine(home: &Home) {
    let old = engine_pid(home);
    kill(old, Signal::SIGKILL).expect("the engine lives");
    eventually("another engine answers", SOON, || {
        let list = home.list()?;
        (list["daemon"]["engine_pid"].as_i64()? != i64::from(old.as_raw())).then_some(())
    });
}

fn errors(home: &Home) -> Vec<Value> {
    home.get("/v1/config/errors")["errors"].as_array().expect("an array").clone()
}

fn await_errors(home: &Home, what: &str, holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    eventually(what, SOON, || Some(errors(home)).filter(|errors| holds(errors)))
}

fn await_loaded(home: &Home, after: u64, what: &str) -> Value {
    home.await_event(after, what, SOON, |event| event["event"] == "config.loaded")
}

/// The command line that a process was started with.
fn command_of(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_string()
}

fn await_command(home: &Home, unit: &str, command: &str) -> i32 {
    let found = home.await_unit(unit, &format!("{unit} runs `{command}`"), SOON, |status| {
        status["state"] == "active" && support::pid_of(status).is_some_and(|pid| command_of(pid) == command)
    });
    support::pid_of(&found).expect("a process")
}

#[test]
fn what_is_edited_added_and_removed_takes_effect_by_itself() {
    let mut home = Home::new();
    home.unit("a", &sleeper(1_000)).unit("b", &sleeper(1_001)).unit("c", &sleeper(1_002));
    home.daemon();
    let [a, b, c] = ["a", "b", "c"].map(|unit| {
        home.await_state(unit, "active", SOON);
        home.pid(unit)
    });

    home.unit("a", &sleeper(2_000));
    let new = await_command(&home, "a", "sleep 2000");
    assert_ne!(new, a);
    assert_eq!((home.pid("b"), home.pid("c")), (b, c), "only what must restart does");
    let status = home.status("a");
    assert_eq!((&status["failures"], &status["restarts"]), (&0.into(), &0.into()), "an edit is no failure");

    home.unit("d", &sleeper(1_003));
    home.await_state("d", "active", SOON);
    let d = home.pid("d");

    let before = home.last_event();
    fs::remove_file(file(&home, "b")).expect("b.toml");
    home.await_event(before, "b is forgotten", SOON, |event| {
        event["event"] == "unit.removed" && event["unit"] == "b"
    });
    eventually("b is gone", SOON, || unit_of(&home.get("/v1/units"), "b").is_none().then_some(()));
    assert_eq!((home.pid("a"), home.pid("c"), home.pid("d")), (new, c, d));
    assert!(errors(&home).is_empty());
}

#[test]
fn a_live_change_keeps_the_process() {
    let mut home = Home::new();
    home.unit("a", &sleeper(1_000));
    home.daemon();
    home.await_state("a", "active", SOON);
    let pid = home.pid("a");

    let before = home.last_event();
    home.unit("a", &format!("[unit]\ndescription = \"new\"\n{}[stop]\ntimeout = \"3s\"\n", sleeper(1_000)));
    home.await_unit("a", "its description is new", SOON, |status| status["description"] == "new");
    let loaded = await_loaded(&home, before, "the files were read");
    assert_eq!(loaded["data"]["changed"], serde_json::json!(["a (live)"]));
    assert_eq!(home.pid("a"), pid);

    // A check that says no: the running process is watched from now on, and fails by it.
    let before = home.last_event();
    let check = "[health]\nexec = [\"false\"]\ninterval = \"100ms\"\nthreshold = 2\n[restart]\ndelays = [\"100ms\"]\n";
    home.unit("a", &format!("{}{check}", sleeper(1_000)));
    let failed =
        home.await_event(before, "the new check is made", SOON, |event| event["event"] == "unit.failed");
    assert!(failed["message"].as_str().expect("a message").contains("unhealthy"), "{failed}");
    // And without it the next one stays.
    home.unit("a", &sleeper(1_000));
    home.await_unit("a", "it is active without a check", SOON, |status| {
        status["state"] == "active" && status["health"] == "none"
    });
}

#[test]
fn a_unit_that_is_not_enabled_any_more_stops_and_comes_back() {
    let mut home = Home::new();
    home.unit("a", &sleeper(1_000));
    home.daemon();
    home.await_state("a", "active", SOON);
    home.unit("a", &format!("[unit]\nenabled = false\n{}", sleeper(1_000)));
    home.await_state("a", "inactive", SOON);
    home.unit("a", &sleeper(1_000));
    home.await_state("a", "active", SOON);
}

#[test]
fn a_new_command_is_tried_at_once_after_failures() {
    let mut home = Home::new();
    let broken = "[service]\ncommand = [\"false\"]\n[restart]\ndelays = [\"10m\"]\n";
    home.unit("a", broken).unit("b", "[service]\ncommand = [\"false\"]\n[restart]\npolicy = \"never\"\n");
    home.daemon();
    home.await_state("a", "backoff", SOON);
    home.await_state("b", "failed", SOON);
    home.unit("a", &sleeper(1_000)).unit("b", &sleeper(1_001));
    for unit in ["a", "b"] {
        let status = home.await_state(unit, "active", SOON);
        assert_eq!(status["failures"], 0, "the count was of another command: {status}");
    }
}

#[test]
fn a_broken_file_keeps_its_last_good_version_through_everything() {
    let mut home = Home::new();
    home.unit("a", &sleeper(1_000)).unit("b", &sleeper(1_001));
    home.daemon();
    home.await_state("a", "active", SOON);
    home.unit("a", &sleeper(2_000));
    let a = await_command(&home, "a", "sleep 2000");
    let b = home.pid("b");

    let before = home.last_event();
    home.unit("a", "[service]\ncommand = [\"sleep\", \"2000\"");
    let told = await_errors(&home, "the error is told", |errors| errors.len() == 1);
    assert!(told[0]["file"].as_str().expect("a file").ends_with("units/a.toml"), "{told:?}");
    assert_eq!(told[0]["line"], 2, "{told:?}");
    assert_eq!(home.get("/api/system/health")["status"], "red");
    assert_eq!(home.get("/api/system/health")["config"]["errors"].as_array().map(Vec::len), Some(1));
    let status = home.upright_exits(&["status"], 0);
    assert!(status.contains("units/a.toml:2:"), "{status}");
    let told = home.await_event(before, "config.error", SOON, |event| event["event"] == "config.error");
    assert_eq!(told["level"], "WARN");

    kill_engine(&home);
    assert_eq!((home.pid("a"), home.pid("b")), (a, b), "the last good version is in force");
    assert_eq!(errors(&home).len(), 1, "an engine that takes over knows of it");

    // The process dies while the file is broken: the last good version is what starts.
    kill(Pid::from_raw(b), Signal::SIGKILL).expect("b lives");
    kill(Pid::from_raw(a), Signal::SIGKILL).expect("a lives");
    let report = home.upright_exits(&["start", "a", "b"], 0);
    assert_eq!(command_of(home.pid("a")), "sleep 2000", "{report}");

    // And through a whole stop and start, as after a reboot.
    home.stop();
    home.daemon();
    await_command(&home, "a", "sleep 2000");
    assert_eq!(errors(&home).len(), 1);

    let before = home.last_event();
    home.unit("a", &sleeper(2_000));
    await_errors(&home, "it clears by itself", <[Value]>::is_empty);
    home.await_event(before, "config.mended", SOON, |event| event["event"] == "config.mended");
    let noted = |event: &&Value| event["event"] == "config.error";
    let count = home.events().iter().filter(noted).count();
    assert_eq!(count, 2, "once for the daemon that saw it come, once for the one that found it");
}

#[test]
fn a_circle_and_a_lost_partner_are_refused_as_a_whole() {
    let mut home = Home::new();
    let needs = |unit: &str, seconds| format!("[unit]\nrequires = [\"{unit}\"]\n{}", sleeper(seconds));
    home.unit("a", &sleeper(1_000)).unit("b", &needs("a", 1_001)).unit("c", &needs("b", 1_002));
    home.daemon();
    let pids = ["a", "b", "c"].map(|unit| {
        home.await_state(unit, "active", SOON);
        home.pid(unit)
    });
    let unmoved = |home: &Home| assert_eq!(["a", "b", "c"].map(|unit| home.pid(unit)), pids);

    home.unit("a", &needs("c", 1_000));
    await_errors(&home, "the circle is told", |errors| {
        errors.len() == 3 && errors.iter().all(|error| error["code"] == "unit.cycle")
    });
    unmoved(&home);
    assert_eq!(home.status("a")["requires"], serde_json::json!([]));
    home.unit("a", &sleeper(1_000));
    await_errors(&home, "the circle is mended", <[Value]>::is_empty);

    fs::remove_file(file(&home, "a")).expect("a.toml");
    await_errors(&home, "that it is still needed is told", |errors| {
        errors.iter().any(|error| error["code"] == "unit.still-needed")
    });
    unmoved(&home);
    home.unit("b", &sleeper(1_001));
    await_errors(&home, "nobody needs it any more", <[Value]>::is_empty);
    eventually("a is gone", SOON, || unit_of(&home.get("/v1/units"), "a").is_none().then_some(()));
    assert_eq!((home.pid("b"), home.pid("c")), (pids[1], pids[2]));

    home.unit("d", "[unit]\nrequires = [\"nobody\"]\n[service]\ncommand = [\"true\"]\n");
    await_errors(&home, "the unknown name is told", |errors| errors.len() == 1);
    assert!(unit_of(&home.get("/v1/units"), "d").is_none(), "a broken new file adds nothing");
}

#[test]
fn editors_that_rename_never_raise_a_false_alarm() {
    let mut home = Home::new();
    home.unit("a", &sleeper(1_000));
    home.daemon();
    home.await_state("a", "active", SOON);
    let before = home.last_event();
    for turn in 0..5 {
        let target = file(&home, "a");
        // vim: the old file becomes a backup, the new one is written in pieces, the backup goes.
        let backup = target.with_extension("toml~");
        fs::rename(&target, &backup).expect("a backup");
        fs::write(&target, "[serv").expect("half a file");
        fs::write(&target, sleeper(2_000 + turn)).expect("the file");
        fs::remove_file(&backup).expect("the backup");
        await_command(&home, "a", &format!("sleep {}", 2_000 + turn));
        // mv: a whole file takes the place of the old one.
        let whole = home.path().join("whole");
        fs::write(&whole, sleeper(3_000 + turn)).expect("a file");
        fs::rename(&whole, &target).expect("its place");
        await_command(&home, "a", &format!("sleep {}", 3_000 + turn));
    }
    let alarms: Vec<Value> = home
        .events_after(before)
        .into_iter()
        .filter(|event| event["event"] == "config.error" || event["event"] == "unit.removed")
        .collect();
    assert!(alarms.is_empty(), "{alarms:?}");
}

#[test]
fn links_and_directories_that_are_replaced_are_followed() {
    let mut home = Home::new();
    let real = home.path().join("releases");
    for (release, seconds) in [("1", 1_000), ("2", 2_000)] {
        fs::create_dir_all(real.join(release)).expect("a release");
        fs::write(real.join(release).join("a.toml"), sleeper(seconds)).expect("its file");
    }
    let units = home.path().join("units");
    fs::remove_dir(&units).expect("an empty directory");
    std::os::unix::fs::symlink("releases/1", &units).expect("a link");
    home.daemon();
    await_command(&home, "a", "sleep 1000");

    // As a deployment does it: another link takes the place of the first.
    let next = home.path().join("next");
    std::os::unix::fs::symlink("releases/2", &next).expect("a link");
    fs::rename(&next, &units).expect("its place");
    await_command(&home, "a", "sleep 2000");
    // In place, behind the link; and a file that is a link itself.
    fs::write(real.join("2/a.toml"), sleeper(2_001)).expect("the file");
    await_command(&home, "a", "sleep 2001");
    let elsewhere = home.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    fs::write(elsewhere.join("b"), sleeper(4_000)).expect("a file");
    std::os::unix::fs::symlink(elsewhere.join("b"), real.join("2/b.toml")).expect("a link");
    await_command(&home, "b", "sleep 4000");
    fs::write(elsewhere.join("b"), sleeper(4_001)).expect("the file");
    await_command(&home, "b", "sleep 4001");

    // The directory goes: what was in force stays. It comes back, and is watched again.
    let [a, b] = ["a", "b"].map(|unit| home.pid(unit));
    fs::rename(real.join("2"), real.join("gone")).expect("another name");
    await_errors(&home, "the directory is missed", |errors| {
        errors
            .iter()
            .any(|error| error["code"] == "unit.directory-gone" || error["code"] == "unit.unreadable")
    });
    assert_eq!(["a", "b"].map(|unit| home.pid(unit)), [a, b]);
    fs::rename(real.join("gone"), real.join("2")).expect("its name");
    await_errors(&home, "it is back", <[Value]>::is_empty);
    fs::write(real.join("2/a.toml"), sleeper(2_002)).expect("the file");
    await_command(&home, "a", "sleep 2002");
}

#[test]
fn a_directory_that_is_made_later_is_found() {
    let mut home = Home::new();
    let units = home.path().join("units");
    fs::remove_dir(&units).expect("an empty directory");
    home.daemon();
    fs::create_dir(&units).expect("the directory");
    home.unit("a", &sleeper(1_000));
    await_command(&home, "a", "sleep 1000");
}

#[test]
fn signs_that_the_kernel_drops_cost_nothing() {
    let mut home = Home::new();
    home.unit("a", &sleeper(1_000));
    home.daemon();
    await_command(&home, "a", "sleep 1000");
    let max = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("a limit");
    let max: usize = max.trim().parse().expect("a number");
    let engine = engine_pid(&home);
    kill(engine, Signal::SIGSTOP).expect("the engine lives");
    // Each makes at least three signs: made, closed, removed.
    for turn in 0..max / 2 {
        let noise = home.path().join(format!("units/.noise{}", turn % 100));
        fs::write(&noise, "").expect("a file");
        fs::remove_file(&noise).expect("the file");
    }
    home.unit("a", &sleeper(2_000));
    kill(engine, Signal::SIGCONT).expect("the engine lives");
    await_command(&home, "a", "sleep 2000");
    home.unit("a", &sleeper(3_000));
    await_command(&home, "a", "sleep 3000");
}

#[test]
fn notify_says_that_files_changed_and_apply_does_it() {
    let mut home = Home::new();
    let config = home.path().join("upright.toml");
    fs::write(&config, "[daemon]\nwatch = \"notify\"\n").expect("upright.toml");
    home.unit("a", &sleeper(1_000)).unit("b", &sleeper(1_001));
    home.daemon();
    home.await_state("a", "active", SOON);
    let a = home.pid("a");

    let before = home.last_event();
    home.unit("a", &sleeper(2_000)).unit("c", &format!("[unit]\nenabled = false\n{}", sleeper(1_003)));
    let changed = home.await_event(before, "it is noticed", SOON, |event| {
        event["event"] == "config.changed" && event["data"]["changed"].as_array().map(Vec::len) == Some(2)
    });
    assert!(id_of(&changed) > before);
    assert!(home.upright_exits(&["status"], 0).contains("not applied"));
    assert_eq!(home.pid("a"), a);
    kill_engine(&home);
    home.await_state("a", "active", SOON);
    assert_eq!(home.pid("a"), a, "an engine that takes over applies nothing by itself");

    let plan = home.upright_exits(&["plan"], 0);
    assert!(plan.contains("restart: service.command") && plan.contains("added"), "{plan}");
    let plan: Value = serde_json::from_str(&home.upright_exits(&["reread", "--json"], 0)).expect("JSON");
    assert_eq!(plan["units"][0]["change"], "restart");
    assert_eq!(plan["unchanged"], 1);
    let said = home.upright_exits(&["apply"], 0);
    assert!(said.contains("a: done (active)"), "{said}");
    assert_eq!(command_of(home.pid("a")), "sleep 2000", "{said}");
    assert!(home.upright_exits(&["plan"], 0).starts_with("nothing to do"), "what was done is done");
    let asked = home.events().into_iter().rfind(|event| event["event"] == "order.asked").expect("an audit");
    assert_eq!(asked["data"]["verb"], "apply");
    assert!(!home.upright_exits(&["status"], 0).contains("not applied"));

    // The daemon's own file is followed as soon as it is applied.
    fs::write(&config, "[daemon]\nwatch = \"apply\"\n").expect("upright.toml");
    home.upright_exits(&["update"], 0);
    home.unit("a", &sleeper(3_000));
    await_command(&home, "a", "sleep 3000");
    fs::write(&config, "[daemon]\nwatch = \"off\"\n").expect("upright.toml");
    let before = home.last_event();
    home.unit("b", "nonsense");
    let plan = home.upright_exits(&["plan"], 2);
    assert!(plan.contains("units/b.toml:1:"), "{plan}");
    home.upright_exits(&["apply"], 2);
    await_loaded(&home, before, "it was applied by hand");
}

#[test]
fn apply_tells_which_unit_did_not_get_there() {
    let mut home = Home::new();
    home.unit("a", &sleeper(1_000));
    home.daemon();
    home.await_state("a", "active", SOON);
    fs::write(home.path().join("upright.toml"), "[daemon]\nwatch = \"off\"\n").expect("upright.toml");
    home.upright_exits(&["apply"], 0);
    home.unit("a", "[service]\ncommand = [\"false\"]\n");
    let said = home.upright_exits(&["apply", "--timeout", "15s"], 1);
    assert!(said.contains("failed") || said.contains("not as it should be"), "{said}");
}

/// A change is announced at most so long after the save: `latency` prints what it takes.
#[test]
fn a_save_is_in_force_within_a_second() {
    let mut home = Home::new();
    home.unit("a", &sleeper(1_000));
    home.daemon();
    home.await_state("a", "active", SOON);
    let mut taken: Vec<Duration> = Vec::new();
    for turn in 0..10 {
        let text = format!("[unit]\ndescription = \"{turn}\"\n{}", sleeper(1_000));
        let before = home.last_event();
        let saved = Instant::now();
        fs::write(file(&home, "a"), text).expect("the file");
        await_loaded(&home, before, "the save is in force");
        taken.push(saved.elapsed());
    }
    taken.sort();
    println!("save to in force: median {:?}, slowest {:?}", taken[5], taken[9]);
    assert!(taken[5] < Duration::from_secs(3), "{taken:?}");
}
