//! The engine is killed, stopped, and dies of one unit again and again: another one supervises soon,
//! no service notices, the unit is left alone, and whoever started the keeper is told.
//!
//! Refuses: code in the binary that makes it crash. A signal at the right moment does.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use support::{Home, eventually, id_of, of};

const SOON: Duration = Duration::from_secs(30);

/// An engine that has lived so long is replaced without a wait.
const FULL_LIFE: Duration = Duration::from_millis(1_050);

/// The promise: supervising again.
const AGAIN_MAX: Duration = Duration::from_secs(1);

fn kills() -> usize {
    std::env::var("UPRIGHT_ENGINE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

fn boottime() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has it");
    Duration::new(now.tv_sec().unsigned_abs(), u32::try_from(now.tv_nsec()).expect("below a second"))
}

/// The engine that answers, once it is not `former`.
fn engine(home: &Home, former: Option<Pid>) -> Pid {
    eventually("an engine answers", SOON, || {
        let pid = Pid::from_raw(i32::try_from(home.list()?["daemon"]["engine_pid"].as_i64()?).ok()?);
        (Some(pid) != former).then_some(pid)
    })
}

fn sleeper() -> &'static str {
    "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"0s\"]\n"
}

#[test]
fn an_engine_that_is_killed_is_replaced_within_a_second() {
    let mut home = Home::new();
    let units: Vec<String> = (0..10).map(|n| format!("unit{n}")).collect();
    units.iter().for_each(|unit| _ = home.unit(unit, sleeper()));
    home.daemon();
    units.iter().for_each(|unit| _ = home.await_state(unit, "active", SOON));
    let mut took: Vec<Duration> = Vec::new();
    let mut pids: Vec<i32> = units.iter().map(|unit| home.pid(unit)).collect();
    let mut former = None;
    for (kill_nr, n) in (0..kills()).map(|kill_nr| (kill_nr, kill_nr % units.len())) {
        let born = Instant::now();
        let pid = engine(&home, former);
        // A life has a length; nothing reports it.
        std::thread::sleep(FULL_LIFE.saturating_sub(born.elapsed()));
        let before = home.last_event();
        let died = boottime();
        kill(pid, Signal::SIGKILL).expect("the engine lives");
        kill(Pid::from_raw(pids[n]), Signal::SIGKILL).expect("the unit lives");
        engine(&home, Some(pid));
        let restarted = home.await_event(before, "the unit is restarted", SOON, |event| {
            event["event"] == "unit.started" && event["unit"] == units[n].as_str()
        });
        let at = Duration::from_nanos(restarted["at_ns"].as_u64().expect("at_ns"));
        took.push(at.saturating_sub(died));
        pids[n] = home.pid(&units[n]);
        former = Some(pid);
        assert!(took[kill_nr] <= AGAIN_MAX, "supervising again after {:?}", took[kill_nr]);
    }
    let now: Vec<i32> = units.iter().map(|unit| home.pid(unit)).collect();
    assert_eq!(now, pids, "a unit was touched that nobody killed");
    took.sort();
    let at = |part: usize| took[(took.len() - 1) * part / 100];
    println!(
        "{} kills of the engine: a unit that died with it was restarted after p50 {:?}, p99 {:?}, max {:?}",
        took.len(),
        at(50),
        at(99),
        at(100)
    );
    assert!(home.stop().success());
}

#[test]
fn a_hung_engine_is_noticed_and_replaced() {
    let mut home = Home::new();
    home.unit("calm", sleeper()).unit("mortal", sleeper());
    home.daemon();
    let calm = home.await_state("calm", "active", SOON)["pid"].clone();
    home.await_state("mortal", "active", SOON);
    let (mortal, hung) = (home.pid("mortal"), engine(&home, None));
    let before = home.last_event();
    kill(hung, Signal::SIGSTOP).expect("the engine lives");
    let stopped = Instant::now();
    kill(Pid::from_raw(mortal), Signal::SIGKILL).expect("it lives");
    engine(&home, Some(hung));
    let noticed = stopped.elapsed();
    println!("a stopped engine was replaced after {noticed:?}");
    assert!(noticed < Duration::from_secs(15), "after {noticed:?}");
    home.await_unit("mortal", "it is restarted", SOON, |status| {
        status["state"] == "active" && status["pid"] != mortal
    });
    assert_eq!(home.status("calm")["pid"], calm, "a service was touched");
    let events = home.events_after(before);
    let named = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((named("engine.hung"), named("engine.restarted")), (1, 1), "{events:?}");
    assert!(home.said().contains("does not answer"), "{}", home.said());
    assert!(home.stop().success());
}

/// The words of one datagram, or none within `within`.
fn word(socket: &UnixDatagram, within: Duration) -> Option<String> {
    let mut bytes = [0; 512];
    socket.set_read_timeout(Some(within)).expect("a timeout");
    let len = socket.recv(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
}

#[test]
fn systemd_hears_of_readiness_of_life_while_the_engine_lives_and_of_the_end() {
    const WATCHDOG: Duration = Duration::from_secs(2);
    let mut home = Home::new();
    home.unit("calm", sleeper());
    let path = home.path().join("systemd.sock");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    let notify = format!("NOTIFY_SOCKET={}", path.display());
    let usec = format!("WATCHDOG_USEC={}", WATCHDOG.as_micros());
    home.daemon_through(&["env", &notify, &usec]);
    assert_eq!(word(&socket, SOON).as_deref(), Some("WATCHDOG=1"), "it begins");
    eventually("it is ready", SOON, || (word(&socket, SOON)? == "READY=1").then_some(()));
    for _ in 0..3 {
        assert_eq!(word(&socket, WATCHDOG).as_deref(), Some("WATCHDOG=1"), "it is fed in time");
    }
    let calm = home.await_state("calm", "active", SOON)["pid"].as_i64().expect("a pid");
    let first = engine(&home, None);
    for pid in [i64::from(first.as_raw()), calm] {
        let environment = fs::read(format!("/proc/{pid}/environ")).expect("it lives");
        let text = String::from_utf8_lossy(&environment);
        assert!(!text.contains("WATCHDOG_USEC") && !text.contains("systemd.sock"), "{text}");
    }
    kill(first, Signal::SIGSTOP).expect("the engine lives");
    let stopped = Instant::now();
    // What was on its way, then silence, then the next engine.
    let mut silent = Duration::ZERO;
    while silent < Duration::from_secs(3) {
        assert!(stopped.elapsed() < SOON, "it is fed though its engine is stopped");
        let asked = Instant::now();
        assert_eq!(word(&socket, SOON).as_deref(), Some("WATCHDOG=1"));
        silent = asked.elapsed();
    }
    engine(&home, Some(first));
    assert!(home.stop().success());
    eventually("it says that it stops", SOON, || (word(&socket, SOON)? == "STOPPING=1").then_some(()));
}

/// The unit that the engine deals with, as the memory says that the keeper holds.
struct Slate(File);

impl Slate {
    /// Where `src/daemon/slate.rs` has its length and name.
    const NOW: u64 = 64;

    fn of(keeper: Pid) -> Slate {
        let fds = fs::read_dir(format!("/proc/{keeper}/fd")).expect("the keeper lives");
        let is_slate = |path: &std::path::PathBuf| {
            fs::read_link(path).is_ok_and(|link| link.to_string_lossy().contains("upright-slate"))
        };
        let path = fds.map(|entry| entry.expect("an entry").path()).find(is_slate).expect("it is held");
        Slate(File::open(path).expect("it can be read"))
    }

    fn says(&self, unit: &str) -> bool {
        let mut bytes = [0; 65];
        self.0.read_exact_at(&mut bytes, Slate::NOW).expect("it is longer");
        bytes[1..].get(..usize::from(bytes[0])) == Some(unit.as_bytes())
    }
}

/// Stops the engine, and kills it as a bug would if it deals with `unit` now. False: it did not.
fn kill_at(slate: &Slate, engine: Pid, unit: &str) -> bool {
    let deadline = Instant::now() + SOON;
    while !slate.says(unit) {
        assert!(Instant::now() < deadline, "the engine never deals with {unit}");
    }
    kill(engine, Signal::SIGSTOP).expect("the engine lives");
    eventually("it stands still", SOON, || {
        let stat = fs::read_to_string(format!("/proc/{engine}/stat")).expect("it lives");
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')).then_some(())
    });
    let hit = slate.says(unit);
    if hit {
        // As a failed assertion would. SIGSEGV has a handler, which waits for a second one.
        kill(engine, Signal::SIGABRT).expect("the engine lives");
    }
    kill(engine, Signal::SIGCONT).expect("the engine lives");
    hit
}

#[test]
fn a_unit_that_the_engine_dies_of_is_left_alone_until_it_is_cleared() {
    let mut home = Home::new();
    home.unit("calm", sleeper());
    let poison =
        "[service]\nshell = true\ncommand = \"sleep 0.05; exit 1\"\n[restart]\ndelays = [\"10ms\"]\n";
    home.unit("poison", poison);
    home.daemon();
    let calm = home.await_state("calm", "active", SOON)["pid"].clone();
    let slate = Slate::of(home.child());
    // A signal may come when the engine is already at something else: then it blames nobody.
    let (mut former, mut deaths) = (None, 0);
    let quarantined = |home: &Home| home.events().iter().any(|event| event["event"] == "unit.quarantined");
    while !quarantined(&home) {
        assert!(deaths < 30, "{}", home.said());
        let pid = engine(&home, former);
        if kill_at(&slate, pid, "poison") {
            deaths += 1;
            former = Some(pid);
            engine(&home, former);
        }
    }
    let left = |home: &Home| {
        home.await_unit("poison", "it is in quarantine", SOON, |status| {
            status["state"] == "failed"
                && status["reason"].as_str().is_some_and(|why| why.contains("quarantined"))
        })
    };
    left(&home);
    let events = home.events();
    assert_eq!(of(&events, "unit.quarantined", "poison").len(), 1);
    let touched = events.iter().filter(|event| event["data"]["touched"] == "poison").count();
    assert!(touched >= 3, "{events:?}");
    let alerts = home.get("/v1/alerts");
    let raised = alerts["alerts"].as_array().expect("alerts");
    assert!(
        raised.iter().any(|alert| alert["kind"] == "quarantined" && alert["unit"] == "poison"),
        "{alerts}"
    );
    // It holds across the next death, which is nobody's doing.
    let last = events.last().map_or(0, id_of);
    let pid = engine(&home, None);
    kill(pid, Signal::SIGKILL).expect("the engine lives");
    engine(&home, Some(pid));
    left(&home);
    assert_eq!(home.status("calm")["pid"], calm, "a service was touched");
    assert_eq!(of(&home.events_after(last), "unit.started", "poison").len(), 0);
    home.upright_exits(&["clear", "poison"], 0);
    home.await_event(last, "it is tried again", SOON, |event| {
        event["event"] == "unit.started" && event["unit"] == "poison"
    });
    home.upright_exits(&["stop", "poison"], 0);
    assert!(home.stop().success());
}

#[test]
fn five_deaths_in_a_minute_are_safe_mode_and_an_operator_ends_it() {
    let mut home = Home::new();
    home.unit("calm", sleeper());
    home.daemon();
    let calm = home.await_state("calm", "active", SOON)["pid"].clone();
    let mut former = None;
    for _ in 0..5 {
        let pid = engine(&home, former);
        kill(pid, Signal::SIGKILL).expect("the engine lives");
        former = Some(pid);
    }
    engine(&home, former);
    let list = home.get("/v1/units");
    assert_eq!((&list["daemon"]["mode"], &home.status("calm")["pid"]), (&"safe".into(), &calm));
    assert_eq!(home.get("/api/system/health")["status"], "yellow");
    let alerts = home.get("/v1/alerts");
    let kinds: Vec<_> = alerts["alerts"].as_array().expect("alerts").iter().map(|a| &a["kind"]).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "safe-mode").count(), 1, "{kinds:?}");
    home.unit("new", sleeper());
    let refused = home.upright(&["apply"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("safe mode") && said.contains("upright clear --all"), "{said}");
    home.upright_exits(&["reload", "calm"], 1);
    // It supervises, and does what it is told about a unit.
    home.upright_exits(&["restart", "calm"], 0);
    assert!(home.upright_exits(&["status"], 0).contains("safe mode"));
    home.upright_exits(&["clear", "--all"], 0);
    assert_eq!(home.get("/v1/units")["daemon"]["mode"], "normal");
    home.upright_exits(&["apply"], 0);
    home.await_state("new", "active", SOON);
    assert!(home.stop().success());
}
