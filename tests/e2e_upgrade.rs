//! `upright upgrade`, between two real builds of different schema: no service is touched, no line
//! is lost, the socket goes on answering; a build that cannot do the work is rolled back.
//!
//! Refuses: one build that plays two. The second is made of this source by cargo.

mod support;
mod upgrade;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{Home, UPRIGHT, eventually, is_root, lines, of, proc, skip, skip_tool};
use upgrade::{Asker, NEXT, SICK, THIS, install, next_build};

const SOON: Duration = Duration::from_secs(30);
const WRITERS: u32 = 4;

/// Longest that a question to the socket may take, whatever happens (issue 4).
const ANSWER_MAX: Duration = Duration::from_millis(200);

/// Longest random moment between "upgrade" and the death of an engine, in milliseconds.
const MOMENT_MS_MAX: u64 = 1_500;

/// Six in CI; `UPRIGHT_UPGRADES=100` is the whole.
fn upgrades() -> u32 {
    std::env::var("UPRIGHT_UPGRADES").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

/// The second build, or the reason why the test is left out.
fn second_build() -> Option<&'static Path> {
    let next = next_build();
    if skip_tool(next.is_none().then_some("cargo and the sources of what we depend on")) {
        None
    } else {
        next
    }
}

/// Stores a memfd at its first start; at any later one it writes what it was given back.
const STORER: &str = r#"
import os, socket, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
if int(os.environ.get("LISTEN_FDS", "0")) > 0:
    os.lseek(3, 0, 0)
    print("given back:", os.environ.get("LISTEN_FDNAMES"), os.read(3, 100).decode(), flush=True)
else:
    fd = os.memfd_create("kept")
    os.write(fd, b"seven")
    socket.send_fds(notify, [b"FDSTORE=1\nFDNAME=state"], [fd])
notify.send(b"READY=1")
time.sleep(100000)
"#;

/// Writers, a unit that ends again and again, one that waits long, one that stores an fd.
fn loaded_home(python: Option<&Path>) -> Home {
    let mut home = Home::new();
    home.use_own_copy();
    for writer in 0..WRITERS {
        home.unit(&format!("writer{writer}"), &lines::unit());
    }
    let mortal =
        "[service]\nshell = true\ncommand = \"sleep 0.3; exit 7\"\n[restart]\ndelays = [\"100ms\"]\n";
    home.unit("mortal", mortal);
    let patient = "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"8s\"]\n";
    home.unit("patient", patient);
    let victim = "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"50ms\"]\n[alert]\nafter_failures = 1000\n";
    home.unit("victim", victim);
    let slow = "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.05; done";
    home.unit("slow", &format!("[service]\nshell = true\ncommand = \"{slow}\"\n"));
    if let Some(python) = python {
        let script = home.path().join("storer.py");
        fs::write(&script, STORER).expect("a script");
        home.unit(
            "storer",
            &format!(
                "[service]\ntype = \"notify\"\ncommand = [{python:?}, {script:?}]\n\
                 [restart]\ndelays = [\"50ms\"]\n"
            ),
        );
    }
    home
}

fn python() -> Option<PathBuf> {
    let python = PathBuf::from("/usr/bin/python3");
    python.exists().then_some(python)
}

/// `upright upgrade`, which must end well.
fn upgrade_to(home: &Home, version: &str) -> String {
    let out = home.upright_exits(&["upgrade"], 0);
    assert!(out.contains(&format!("to {version} in ")), "{out}");
    out
}

/// The command line about this home, not waited for.
fn command(home: &Home, args: &[&str]) -> Child {
    let mut command = Command::new(UPRIGHT);
    command.args(args).env("UPRIGHT_HOME", home.path()).env("NO_COLOR", "1").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs")
}

fn daemon_of(home: &Home) -> Value {
    home.get("/v1/units")["daemon"].clone()
}

fn time(text: &Value) -> jiff::Timestamp {
    text.as_str().expect("a time").parse().expect("RFC 3339")
}

/// Open files of the keeper.
fn open_fds(home: &Home) -> usize {
    fs::read_dir(format!("/proc/{}/fd", home.child())).expect("a process").count()
}

/// The file that a process executes, as device and inode.
fn file_of(pid: &Value) -> (u64, u64) {
    let found = fs::metadata(format!("/proc/{pid}/exe")).expect("a process");
    (found.dev(), found.ino())
}

fn pids(home: &Home, names: &[&str]) -> BTreeMap<String, i32> {
    names.iter().map(|name| ((*name).to_owned(), home.pid(name))).collect()
}

/// One upgrade, during which a unit is killed, and in the second round somebody waits for an order.
/// How long it took.
fn swap(home: &Home, round: u32, version: &str, began: &Value) -> Duration {
    let former = daemon_of(home)["engine_pid"].clone();
    // Whoever waits for an order gets the answer, before the engine that took it leaves.
    let waiting = (round == 1).then(|| command(home, &["stop", "slow"]));
    if waiting.is_some() {
        home.await_state("slow", "deactivating", SOON);
    }
    let begun = Instant::now();
    // Killed in the middle, sometimes before the engine leaves, sometimes while there is none.
    let victim = Pid::from_raw(home.pid("victim"));
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(u64::from(round % 10) * 15)); // a moment of its own each
        kill(victim, Signal::SIGKILL).expect("it lives");
    });
    upgrade_to(home, version);
    let took = begun.elapsed();
    killer.join().expect("it was killed");
    if let Some(child) = waiting {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "an order was not answered: {output:?}");
    }
    let daemon = daemon_of(home);
    assert_eq!(daemon["version"], version);
    assert_eq!(daemon["keeper_pid"], began["keeper_pid"], "the keeper stays the same process");
    // The wall clock is read anew for each answer, and may be set meanwhile by a little.
    let (then, now) = (time(&began["started_at"]), time(&daemon["started_at"]));
    assert!(now.duration_since(then).abs().as_millis() < 500, "the daemon is not the same: {daemon}");
    assert_ne!(daemon["engine_pid"], former, "the engine is another");
    let file = fs::metadata(home.path().join("upright")).expect("the file");
    for pid in [&daemon["keeper_pid"], &daemon["engine_pid"]] {
        assert_eq!(file_of(pid), (file.dev(), file.ino()), "process {pid} is of another file");
    }
    home.await_unit("victim", "victim is back", SOON, |unit| {
        unit["state"] == "active" && unit["restarts"] == round + 1
    });
    took
}

#[test]
fn upgrades_under_load_touch_no_service() {
    let Some(next) = second_build() else { return };
    let python = python();
    let mut home = loaded_home(python.as_deref());
    home.daemon();
    let writers = ["writer0", "writer1", "writer2", "writer3"];
    for name in writers
        .iter()
        .copied()
        .chain(["patient", "victim", "slow"])
        .chain(python.is_some().then_some("storer"))
    {
        home.await_state(name, "active", SOON);
    }
    let before = pids(&home, &writers);
    let began = daemon_of(&home);
    assert_eq!(began["version"], THIS);
    kill(Pid::from_raw(home.pid("patient")), Signal::SIGKILL).expect("it lives");
    home.await_state("patient", "backoff", SOON);

    let askers = [Asker::start(&home, "/readyz"), Asker::start(&home, "/v1/units")];
    let (mut slowest, fds) = (Duration::ZERO, open_fds(&home));
    for round in 0..upgrades() {
        let (build, version) = if round % 2 == 0 { (next, NEXT) } else { (Path::new(UPRIGHT), THIS) };
        install(&home, build);
        slowest = slowest.max(swap(&home, round, version, &began));
    }
    for (asker, what) in askers.into_iter().zip(["/readyz", "/v1/units"]) {
        let waits = asker.finish();
        println!("{what}: {waits:?}");
        assert!(waits.questions > 100, "the asker has hardly asked: {waits:?}");
        assert!(waits.longest <= ANSWER_MAX, "a question to {what} waited too long: {waits:?}");
        assert_eq!(waits.refused, 0, "a question to {what} was refused: {waits:?}");
    }
    println!("{} upgrades, the slowest took {slowest:.1?}", upgrades());
    let after = open_fds(&home);
    assert!(after <= fds + 8, "the keeper had {fds} open files, and has {after}"); // a run more or less

    assert_eq!(pids(&home, &writers), before, "a service was restarted");
    for name in writers {
        assert_eq!(home.status(name)["restarts"], 0, "{name} was restarted");
    }
    home.await_state("patient", "active", SOON);
    if python.is_some() {
        kill(Pid::from_raw(home.pid("storer")), Signal::SIGKILL).expect("it lives");
        home.await_unit("storer", "storer is back", SOON, |unit| {
            unit["restarts"] == 1 && unit["state"] == "active"
        });
        let said = home.upright_exits(&["logs", "storer"], 0);
        assert!(said.contains("given back: state seven"), "what was stored is gone: {said}");
    }
    let events = home.events();
    check_history(&events);
    assert!(home.stop().success());
    for name in writers {
        let count = lines::check(&home.path().join("log").join(name));
        println!("{name}: {count} lines, none lost, none doubled");
    }
}

/// Counts and delays went on, every end is on record once, and so is every upgrade.
fn check_history(events: &[Value]) {
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    let wanted = usize::try_from(upgrades()).expect("a number");
    assert_eq!(count("daemon.upgraded"), wanted);
    assert_eq!(count("daemon.upgrade_failed"), 0);
    assert_eq!(count("engine.restarted"), 0, "an engine died");
    assert_eq!(count("alert.raised"), of(events, "alert.raised", "mortal").len(), "an upgrade is no alarm");
    let scheduled = of(events, "retry.scheduled", "patient");
    let restarted = of(events, "unit.restarted", "patient");
    assert_eq!((scheduled.len(), restarted.len()), (1, 1), "{scheduled:?} {restarted:?}");
    let due = scheduled[0]["data"]["due_ns"].as_i64().expect("due_ns");
    let late_us = (restarted[0]["at_ns"].as_i64().expect("at_ns") - due) / 1_000;
    println!("patient: restarted {late_us} µs after its time");
    assert!((0..1_000_000).contains(&late_us), "restarted {late_us} µs after its time");
    let failed = of(events, "unit.failed", "mortal");
    for (number, event) in (1..).zip(&failed) {
        assert_eq!(event["data"]["exit_code"], 7, "a status was lost: {event}");
        assert_eq!(event["data"]["failures"], number, "the count of failures started over: {event}");
    }
}

/// A home whose daemon reads from the file `sick` how sick the second build is.
fn sick_home() -> Home {
    let mut home = Home::new();
    home.use_own_copy();
    home.unit("writer", &lines::unit());
    home.unit("sleeper", "[service]\ncommand = [\"sleep\", \"100000\"]\n");
    let told = format!("{SICK}={}", home.path().join("sick").display());
    home.daemon_through(&["env", &told]);
    for name in ["writer", "sleeper"] {
        home.await_state(name, "active", SOON);
    }
    home
}

#[test]
fn a_sick_build_is_rolled_back() {
    let Some(next) = second_build() else { return };
    let mut home = sick_home();
    let before = pids(&home, &["writer", "sleeper"]);
    let own = file_of(&daemon_of(&home)["keeper_pid"]);
    install(&home, next);
    let cases = [
        ("refuses", "it does not feel well"),
        ("exits", "exited (code 3)"),
        ("dies-later", "exited (code 4)"),
        ("keeper-panics", "its keeper could not take over"),
        ("hangs", "its engine was not healthy within 10 s"),
    ];
    for (how, why) in cases {
        fs::write(home.path().join("sick"), how).expect("a file");
        let last = home.last_event();
        let output = home.upright(&["upgrade"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{how}: {output:?}");
        assert!(said.contains(&format!("cannot upgrade from {THIS} to {NEXT}")), "{how}: {said}");
        assert!(said.contains(why), "{how}: {said}");
        let daemon = daemon_of(&home);
        assert_eq!(daemon["version"], THIS, "{how}");
        assert_eq!(daemon["mode"], "normal", "{how}: the deaths of a sick build are not ours");
        for pid in [&daemon["keeper_pid"], &daemon["engine_pid"]] {
            assert_eq!(file_of(pid), own, "{how}: process {pid} is of another file");
        }
        assert_eq!(pids(&home, &["writer", "sleeper"]), before, "{how}: a service was touched");
        let events = home.events_after(last);
        let failed: Vec<_> =
            events.iter().filter(|event| event["event"] == "daemon.upgrade_failed").collect();
        assert_eq!(failed.len(), 1, "{how}: {events:?}");
        assert!(failed[0]["message"].as_str().is_some_and(|text| text.contains(why)), "{how}: {failed:?}");
        println!("{how}: {}", said.lines().next().unwrap_or_default());
    }
    // Well, but not to be executed any more when the keeper's turn has come.
    fs::remove_file(home.path().join("sick")).expect("the file");
    let asked = command(&home, &["upgrade"]);
    eventually("the new engine is on trial", SOON, || {
        (home.list()?["daemon"]["version"] == NEXT).then_some(())
    });
    let place = home.path().join("upright");
    fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).expect("its mode");
    let output = asked.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("its keeper cannot be executed"), "{output:?}");
    assert_eq!((daemon_of(&home)["version"].as_str(), output.status.code()), (Some(THIS), Some(1)));
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("its mode");
    // It takes over, with the schema that it has given to the store long since.
    upgrade_to(&home, NEXT);
    assert_eq!(pids(&home, &["writer", "sleeper"]), before);
    // An engine that dies is followed by one of the build in force.
    let daemon = daemon_of(&home);
    let died = daemon["engine_pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(i32::try_from(died).expect("a pid")), Signal::SIGKILL).expect("it lives");
    let daemon = eventually("another engine answers", SOON, || {
        let daemon = home.list()?["daemon"].clone();
        (daemon["engine_pid"] != died).then_some(daemon)
    });
    assert_eq!(daemon["version"], NEXT);
    assert!(home.stop().success());
    lines::check(&home.path().join("log/writer"));
}

/// SplitMix64's finalizer over a seed and a number.
fn luck(seed: u64, number: u64, bound: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % bound
}

#[test]
fn an_engine_killed_in_the_middle_leaves_one_build_in_force() {
    let Some(next) = second_build() else { return };
    let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
    println!("SEED={seed} cargo test --test e2e_upgrade");
    let mut home = sick_home();
    let before = pids(&home, &["writer", "sleeper"]);
    let keeper = home.child();
    let (mut done, mut gone_back) = (0, 0);
    for round in 0..upgrades() {
        let now = daemon_of(&home)["version"].clone();
        let (build, _) = if now == THIS { (next, NEXT) } else { (Path::new(UPRIGHT), THIS) };
        install(&home, build);
        let moment = Duration::from_millis(luck(seed, round.into(), MOMENT_MS_MAX));
        let asked = command(&home, &["upgrade"]);
        // A random moment is the point of this test; no event could stand for it.
        std::thread::sleep(moment);
        for engine in proc::below(keeper).iter().filter(|process| process.name == "upright-engine") {
            let _ = kill(engine.pid, Signal::SIGKILL); // it may have ended just now
        }
        let output = asked.wait_with_output().expect("it ends");
        settle(&home, &output, moment);
        let daemon = daemon_of(&home);
        assert_eq!(daemon["keeper_pid"], i64::from(keeper.as_raw()));
        assert_eq!(file_of(&daemon["keeper_pid"]), file_of(&daemon["engine_pid"]), "two builds at once");
        if daemon["version"] == now {
            gone_back += 1
        } else {
            done += 1
        }
        assert_eq!(pids(&home, &["writer", "sleeper"]), before, "a service was touched");
    }
    println!("{done} upgrades were done all the same, {gone_back} were not");
    assert!(home.stop().success());
    lines::check(&home.path().join("log/writer"));
}

/// Waits until no upgrade is under way. What the command said fits: done, rolled back, or no answer.
fn settle(home: &Home, output: &Output, moment: Duration) {
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 1 | 5)), "killed after {moment:?}: {output:?}");
    eventually("the upgrade has ended", SOON, || {
        let list = home.list()?;
        let (keeper, engine) = (&list["daemon"]["keeper_pid"], &list["daemon"]["engine_pid"]);
        let same = fs::metadata(format!("/proc/{engine}/exe")).ok().map(|file| file.ino())
            == fs::metadata(format!("/proc/{keeper}/exe")).ok().map(|file| file.ino());
        let status = support::http::ask(&home.socket(), "GET", "/v1/upgrade", "").ok()?;
        let status: Value = serde_json::from_slice(&status.1).ok()?;
        (same && status["state"] != "running").then_some(())
    });
}

/// Something else than a build lies on the disk: the answer says what, and nothing happens.
#[test]
fn what_cannot_take_over_is_refused_before_anything_is_touched() {
    let mut home = Home::new();
    home.use_own_copy();
    home.unit("sleeper", "[service]\ncommand = [\"sleep\", \"100000\"]\n");
    home.daemon();
    home.await_state("sleeper", "active", SOON);
    let (pid, engine) = (home.pid("sleeper"), daemon_of(&home)["engine_pid"].clone());
    let out = home.upright_exits(&["upgrade"], 0);
    assert_eq!(out, format!("the binary on disk is the one that runs ({THIS}): nothing to do\n"));

    let place = home.path().join("upright");
    let card = String::from_utf8(home.upright(&["handshake"]).stdout).expect("text");
    let says = |card: &str| format!("#!/bin/sh\ncat <<'END'\n{card}END\n");
    let schema = card.lines().find_map(|line| line.strip_prefix("schema ")).expect("a schema");
    let schema: i64 = schema.parse().expect("a number");
    let open_to = card.lines().find(|line| line.starts_with("schema-compatible-from ")).expect("a line");
    let far = card
        .replace(&format!("\nschema {schema}"), "\nschema 900")
        .replace(open_to, "schema-compatible-from 900");
    let old = card.replace(&format!("\nschema {schema}"), "\nschema 1");
    let talk = card.replace("\nwire ", "\nwire 9");
    let cases: [(&str, String, u32, &str); 8] = [
        ("one that could not be undone", says(&far), 0o755, "could not go back to that"),
        ("one that knows less", says(&old), 0o755, "it knows schema 1 of the store"),
        ("one that talks otherwise", says(&talk), 0o755, "while services run: keeper and engine talk"),
        ("something else", says("hello\n"), 0o755, "does not say what it is"),
        ("one that fails", "#!/bin/sh\nexit 3\n".into(), 0o755, "it exits with 3"),
        ("one that is silent", "#!/bin/sh\nexec sleep 1000\n".into(), 0o755, "it does not answer in time"),
        ("no program", "text".into(), 0o644, "nobody may execute it"),
        ("one that others can write", says(&card), 0o777, "others can write it"),
    ];
    for (what, text, mode, why) in cases {
        if mode == 0o777 && skip((!is_root()).then_some("root: only root's files are judged")) {
            continue;
        }
        let beside = home.path().join("upright.new");
        fs::write(&beside, text).expect("a file");
        fs::set_permissions(&beside, fs::Permissions::from_mode(mode)).expect("its mode");
        fs::rename(&beside, &place).expect("in its place");
        let output = home.upright(&["upgrade"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
        assert!(said.contains(why), "{what}: {said}");
        println!("{what}: {said}");
    }
    fs::remove_file(&place).expect("the file");
    let output = home.upright(&["upgrade"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("No such file or directory"), "{output:?}");
    nix::unistd::mkfifo(&place, nix::sys::stat::Mode::from_bits_truncate(0o755)).expect("a fifo");
    let output = home.upright(&["upgrade"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("a FIFO"), "{output:?}");
    assert_eq!((home.pid("sleeper"), daemon_of(&home)["engine_pid"].clone()), (pid, engine));
    let refused = home.events().iter().filter(|event| event["event"] == "daemon.upgrade_refused").count();
    assert!(refused >= 9, "{refused} refusals are on record");
}
