//! SIGKILL to the keeper: services live on, and the next keeper goes on where this one stopped.
//!
//! Refuses: systemd, whose part is played in `systemd_fds.rs`; and signals to anybody but the keeper
//! and services of the test.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{Home, eventually, of};

const SOON: Duration = Duration::from_secs(30);
const WRITERS: u32 = 4;

/// Longest random moment between "it answers" and the keeper's death, in milliseconds.
const MOMENT_MS_MAX: u64 = 80;

/// Deaths of the keeper under writers; `KEEPER_KILLS` asks for more.
fn kills() -> u32 {
    std::env::var("KEEPER_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

fn moment() -> Duration {
    Duration::from_millis(RandomState::new().hash_one(Instant::now()) % MOMENT_MS_MAX)
}

/// Numbered lines in bursts, a few of them on stderr, and at the end how many there were.
const WRITER: &str = r#"
i=0; burst=0
trap 'echo "end $i"; exit 0' TERM
while :; do
    burst=0
    while [ $burst -lt 50 ]; do echo "line $i"; i=$((i+1)); burst=$((burst+1)); done
    echo "line $i" >&2; i=$((i+1))
    sleep 0.01
done
"#;

/// Wall time is reckoned anew from the clock of the boot at each answer.
const AS_GOOD_AS_EQUAL: SignedDuration = SignedDuration::from_millis(20);

fn since_of(status: &Value) -> Timestamp {
    status["since"].as_str().expect("since").parse().expect("RFC 3339")
}

fn writers(home: &Home) -> Vec<String> {
    let names: Vec<String> = (0..WRITERS).map(|writer| format!("writer{writer}")).collect();
    for name in &names {
        home.unit(name, &format!("[service]\nshell = true\ncommand = '''{WRITER}'''\n"));
    }
    names
}

/// `line 0`, `line 1`, … `end N`: the whole of what the writer wrote. The number of lines.
fn check_lines(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).expect("the unit's logs").map(|entry| entry.expect("an entry").path());
    let logs = entries.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    let mut files: Vec<String> = logs.map(|path| fs::read_to_string(path).expect("a log")).collect();
    let number = |line: &str| line.rsplit(' ').next().and_then(|word| word.parse::<u64>().ok());
    files.sort_by_key(|text| text.lines().next().and_then(number));
    let text = files.concat();
    let mut expected = 0;
    for line in text.lines() {
        if let Some(end) = line.strip_prefix("end ") {
            assert_eq!(end.parse(), Ok(expected), "the writer counted otherwise");
            return expected;
        }
        assert_eq!(line, format!("line {expected}"), "in {}", dir.display());
        expected += 1;
    }
    panic!("no last line after {expected} in {}", dir.display());
}

#[test]
fn services_outlive_their_keeper_and_not_a_line_is_lost() {
    let mut home = Home::new();
    let names = writers(&home);
    home.unit("patient", "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"4s\"]\n");
    home.daemon();
    let before: BTreeMap<&String, _> = names
        .iter()
        .map(|name| {
            home.await_state(name, "active", SOON);
            let status = home.status(name);
            (name, (status["pid"].clone(), status["run"].clone(), since_of(&status)))
        })
        .collect();
    home.await_state("patient", "active", SOON);
    kill(Pid::from_raw(home.pid("patient")), Signal::SIGKILL).expect("it lives");
    home.await_state("patient", "backoff", SOON);
    let mut slowest = Duration::ZERO;
    for _ in 0..kills() {
        // A random moment is the point of this test; no event could stand for it.
        std::thread::sleep(moment());
        home.kill_keeper();
        let began = Instant::now();
        home.daemon();
        slowest = slowest.max(began.elapsed());
        for (name, (pid, run, since)) in &before {
            let status = home.status(name);
            assert_eq!((&status["pid"], &status["run"]), (pid, run), "{name} was touched: {status}");
            assert_eq!((&status["state"], &status["restarts"]), (&"active".into(), &0.into()), "{status}");
            assert!(since_of(&status).duration_since(*since).abs() < AS_GOOD_AS_EQUAL, "{since} {status}");
        }
    }
    home.await_state("patient", "active", SOON);
    let events = home.events();
    let (scheduled, restarted) = (of(&events, "retry.scheduled", "patient"), of(&events, "unit.restarted", "patient"));
    assert_eq!((scheduled.len(), restarted.len()), (1, 1), "its delay began anew: {scheduled:?} {restarted:?}");
    let health = home.get("/api/system/health");
    assert_eq!(health["fatal_stops"], kills());
    assert!(home.stop().success());
    for name in &names {
        let lines = check_lines(&home.path().join("log").join(name));
        println!("{name}: {lines} lines over {} keepers, none lost, none doubled", kills() + 1);
    }
    println!("slowest: {slowest:?} from the start of a keeper until it answered");
}
