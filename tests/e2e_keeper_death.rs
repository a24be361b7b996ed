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

use support::client::Client;
use support::stack::{self, Stack};
use support::{Home, eventually, of, proc};

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
            // The signal may have come between a line and its count.
            let end: u64 = end.parse().expect("a number");
            assert!(end == expected || end + 1 == expected, "the writer counted {end}, {expected} are there");
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
    let (scheduled, restarted) =
        (of(&events, "retry.scheduled", "patient"), of(&events, "unit.restarted", "patient"));
    assert_eq!(
        (scheduled.len(), restarted.len()),
        (1, 1),
        "its delay began anew: {scheduled:?} {restarted:?}"
    );
    let health = home.get("/api/system/health");
    assert_eq!(health["fatal_stops"], kills());
    assert!(home.stop().success());
    for name in &names {
        let lines = check_lines(&home.path().join("log").join(name));
        println!("{name}: {lines} lines over {} keepers, none lost, none doubled", kills() + 1);
    }
    println!("slowest: {slowest:?} from the start of a keeper until it answered");
}

/// Of the failures of a unit, which must be this many, the last.
fn last_failure(home: &Home, unit: &str, failures: usize) -> Value {
    let events = home.events();
    let failed = of(&events, "unit.failed", unit);
    assert_eq!(failed.len(), failures, "{failed:?}");
    Value::clone(failed.last().expect("at least one"))
}

#[test]
fn an_end_is_known_where_the_kernel_tells_and_counted_once_where_nobody_saw_it() {
    let mut home = Home::new();
    let until_told = "until [ -e go ]; do sleep 0.02; done; exit 7";
    let unit = |dir: &Path| {
        let dir = dir.display();
        format!(
            "[service]\nshell = true\nworking_directory = \"{dir}\"\ncommand = \"{until_told}\"\n\
             [restart]\ndelays = [\"50ms\"]\n"
        )
    };
    home.unit("told", &unit(home.path()));
    home.unit("unseen", "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"50ms\"]\n");
    home.daemon();
    home.await_state("told", "active", SOON);
    home.await_state("unseen", "active", SOON);
    let unseen = home.pid("unseen");
    home.kill_keeper();
    kill(Pid::from_raw(unseen), Signal::SIGKILL).expect("it lives");
    home.daemon();
    home.await_unit("unseen", "unseen was started again", SOON, |now| {
        now["restarts"] == 1 && now["state"] == "active"
    });
    let failed = last_failure(&home, "unseen", 1);
    let message = failed["message"].as_str().expect("a message");
    assert!(message.contains("status unknown"), "{failed}");
    // Adopted, and another process's child: the kernel tells (6.15), or nobody can.
    fs::write(home.path().join("go"), "").expect("go");
    home.await_event(0, "its end is on record", SOON, |event| {
        event["event"] == "unit.failed" && event["unit"] == "told"
    });
    fs::remove_file(home.path().join("go")).expect("told");
    let events = home.events();
    let failed = *of(&events, "unit.failed", "told").first().expect("just seen");
    let code = failed["data"]["exit_code"].as_i64();
    println!("the end of an adopted process: {}", failed["message"]);
    assert!(
        code == Some(7) || failed["message"].as_str().is_some_and(|m| m.contains("status unknown")),
        "{failed}"
    );
    assert_eq!(home.get("/api/system/health")["fatal_stops"], 1);
}

#[test]
fn an_engine_that_is_stopped_ends_with_its_keeper() {
    let mut home = Home::new();
    home.unit("web", "[service]\ncommand = [\"sleep\", \"100000\"]\n");
    home.daemon();
    let web = home.await_state("web", "active", SOON)["pid"].clone();
    let engine = home.list().expect("it answers")["daemon"]["engine_pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(i32::try_from(engine).expect("a pid")), Signal::SIGSTOP).expect("it lives");
    home.kill_keeper();
    home.daemon();
    assert_eq!(home.status("web")["pid"], web);
}

#[test]
fn an_order_that_was_under_way_is_carried_out_by_the_next_keeper() {
    let mut home = Home::new();
    let slow = "trap 'sleep 1; exit 3' TERM; while :; do sleep 0.05; done";
    for unit in ["restarted", "stopped"] {
        home.unit(unit, &format!("[service]\nshell = true\ncommand = \"{slow}\"\n"));
    }
    home.daemon();
    for unit in ["restarted", "stopped"] {
        home.await_state(unit, "active", SOON);
    }
    let before = home.pid("restarted");
    home.upright_exits(&["restart", "--no-wait", "restarted"], 0);
    home.upright_exits(&["stop", "--no-wait", "stopped"], 0);
    home.kill_keeper();
    home.daemon();
    home.await_unit("restarted", "it is restarted", SOON, |now| {
        now["state"] == "active" && now["pid"] != before
    });
    home.await_state("stopped", "inactive", SOON);
    let events = home.events();
    for unit in ["restarted", "stopped"] {
        let failed = of(&events, "unit.failed", unit);
        assert!(failed.is_empty(), "what was asked for is no failure: {failed:?}");
    }
}

#[test]
fn what_a_grandchild_writes_is_kept_although_its_parent_died_with_the_keeper() {
    let mut home = Home::new();
    let family = "sh -c 'i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done' & exec sleep 100000";
    home.unit("family", &format!("[service]\nshell = true\ncommand = \"{family}\"\n"));
    home.daemon();
    home.await_state("family", "active", SOON);
    let log = home.path().join("log/family/current.log");
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    eventually("it writes", SOON, || (lines() > 10).then_some(()));
    let parent = home.pid("family");
    home.kill_keeper();
    kill(Pid::from_raw(parent), Signal::SIGKILL).expect("it lives");
    let seen = lines();
    // Meanwhile the grandchild writes on, into a pipe that nobody else holds.
    std::thread::sleep(Duration::from_millis(300));
    home.daemon();
    home.await_unit("family", "it is started again", SOON, |now| {
        now["restarts"] == 1 && now["state"] == "active"
    });
    let text = fs::read_to_string(&log).expect("the log");
    let second = text.match_indices("line 0\n").nth(1).map_or(text.len(), |(at, _)| at);
    let of_first = text[..second].lines().count();
    assert!(of_first > seen + 10, "{of_first} lines, {seen} before the keeper died");
    for (number, line) in text[..second].lines().enumerate() {
        assert_eq!(line, format!("line {number}"));
    }
}

#[test]
fn a_service_of_another_account_may_open_its_stdout_again() {
    if support::skip((!support::is_root()).then_some("root")) {
        return;
    }
    let mut home = Home::new();
    let words = "echo one >/dev/stdout; echo two >/dev/stderr; echo three; exec sleep 100000";
    home.unit("reopens", &format!("[service]\nshell = true\nuser = \"nobody\"\ncommand = \"{words}\"\n"));
    home.daemon();
    home.await_state("reopens", "active", SOON);
    let log = home.path().join("log/reopens/current.log");
    let text = eventually("all three are there", SOON, || {
        fs::read_to_string(&log).ok().filter(|text| text.contains("three"))
    });
    assert_eq!(text, "one\ntwo\nthree\n");
    home.kill_keeper();
    home.daemon();
    assert_eq!(home.status("reopens")["restarts"], 0);
    let pipes = fs::read_dir(home.path().join("run/pipes")).expect("pipes").count();
    assert_eq!(pipes, 1, "stderr goes where stdout goes");
    assert!(home.stop().success());
    assert!(!home.path().join("run/pipes").exists(), "pipes are left behind");
}

/// Without cgroups a keeper finds its own by their descent, which ends with the one that died.
#[test]
fn an_ordinary_user_s_services_are_adopted_with_their_children() {
    if support::skip((!support::is_root()).then_some("root, to become somebody else")) {
        return;
    }
    const NOBODY: u32 = 65_534;
    let mut home = Home::new();
    let family = "sleep 100000 & exec sleep 100000";
    home.unit("family", &format!("[service]\nshell = true\ncommand = \"{family}\"\n"));
    home.use_own_copy();
    std::os::unix::fs::chown(home.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
    let id = NOBODY.to_string();
    let prefix = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"];
    home.daemon_through(&prefix);
    home.await_state("family", "active", SOON);
    let parent = home.pid("family");
    let both = eventually("parent and child", SOON, || {
        let all = proc::below(Pid::from_raw(parent));
        (all.len() == 2 && all.iter().all(|process| process.name == "sleep")).then_some(all)
    });
    home.kill_keeper();
    home.daemon_through(&prefix);
    assert_eq!(home.pid("family"), parent);
    home.upright_exits(&["stop", "family"], 0);
    assert!(!both.iter().any(proc::Process::is_alive), "somebody is left: {both:?}");
}

/// What is changed in the store while no keeper lives.
fn amend_store(home: &Home, sql: &str) {
    let db = rusqlite::Connection::open(home.path().join("state/upright.db")).expect("the store");
    db.execute_batch(sql).expect("the change");
}

#[test]
fn after_a_reboot_nobody_is_adopted_and_nobody_signalled() {
    let mut home = Home::new();
    home.unit("web", "[service]\ncommand = [\"sleep\", \"100000\"]\n");
    home.daemon();
    home.await_state("web", "active", SOON);
    home.kill_keeper();
    // As after a reboot: its process is gone, and a stranger has the pid.
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
    let old = eventually("its row", SOON, || {
        let db = rusqlite::Connection::open(home.path().join("state/upright.db")).ok()?;
        db.query_row("SELECT pid FROM run", [], |row| row.get::<_, i32>(0)).ok()
    });
    kill(Pid::from_raw(old), Signal::SIGKILL).expect("it lives");
    let pid = stranger.id();
    amend_store(
        &home,
        &format!(
            "UPDATE run SET world = 'another', pid = {pid}, identity = NULL; \
             UPDATE meta SET value = 'another' WHERE key = 'boot_id'"
        ),
    );
    home.daemon();
    home.await_state("web", "active", SOON);
    let events = home.events();
    assert!(events.iter().all(|event| event["event"] != "keeper.restarted"), "nothing was taken over");
    home.upright_exits(&["stop", "web"], 0);
    assert!(stranger.try_wait().expect("our child").is_none(), "a stranger was signalled");
    stranger.kill().expect("it lives");
    stranger.wait().expect("our child");
}

/// Process 1 of a PID namespace: starts the daemon, kills it and its service, gives the service's pid to
/// a canary, starts the daemon again. Words in files tell when.
const RECYCLER: &str = r#"
for dir; do :; done
await() { until [ -e "$dir/$1" ]; do sleep 0.02; done; }
"$@" & keeper=$!
await first
pid=$(cat "$dir/first")
kill -9 $keeper; wait $keeper
kill -9 $pid
while [ -d /proc/$pid ]; do sleep 0.01; done
echo $((pid - 1)) >/proc/sys/kernel/ns_last_pid; sleep 98765 & canary=$!
echo $canary >"$dir/canary.part"; mv "$dir/canary.part" "$dir/canary"
await second
"$@" & keeper=$!
await third
kill -0 $canary && echo lives >"$dir/verdict"
wait $keeper
kill -9 $canary; wait $canary
exit 0
"#;

#[test]
fn a_stranger_with_the_pid_of_a_dead_service_is_never_signalled() {
    if support::skip((!support::is_root()).then_some("root")) {
        return;
    }
    // What the store has: all of it; only the pid and a wrong moment; only the pid and the canary's.
    for known in ["inode", "pid", "moment"] {
        let mut home = Home::new();
        let web = "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"50ms\"]\n";
        home.unit("web", web);
        let script = ["unshare", "--pid", "--fork", "--mount-proc", "--", "sh", "-c", RECYCLER, "sh"];
        home.daemon_through(&script);
        home.await_state("web", "active", SOON);
        let pid = home.pid("web");
        eventually("its row", SOON, || {
            let db = rusqlite::Connection::open(home.path().join("state/upright.db")).ok()?;
            db.query_row("SELECT pid FROM run", [], |row| row.get::<_, i32>(0)).ok()
        });
        fs::write(home.path().join("first.part"), pid.to_string()).expect("a word");
        fs::rename(home.path().join("first.part"), home.path().join("first")).expect("a word");
        let given = eventually("a canary", SOON, || fs::read_to_string(home.path().join("canary")).ok());
        assert_eq!(given.trim(), pid.to_string(), "the pid was not given again");
        let canary = proc::below(home.child()).into_iter().find(|process| process.name == "sleep");
        let canary = canary.expect("the canary, and nobody else, sleeps");
        match known {
            "pid" => amend_store(&home, "UPDATE run SET identity = NULL, started = 12345"),
            "moment" => {
                let started = canary.started;
                amend_store(&home, &format!("UPDATE run SET identity = NULL, started = {started}"));
            }
            _inode => {}
        }
        fs::write(home.path().join("second"), "").expect("a word");
        home.await_unit("web", "it is started again", SOON, |now| {
            now["restarts"] == 1 && now["state"] == "active"
        });
        assert_ne!(home.pid("web"), pid);
        home.upright_exits(&["stop", "web"], 0);
        let failed = last_failure(&home, "web", 1);
        assert!(failed["message"].as_str().is_some_and(|text| text.contains("status unknown")), "{failed}");
        let unproven = home.events().iter().filter(|event| event["event"] == "keeper.unproven").count();
        assert_eq!(unproven, usize::from(known == "moment"), "{known}");
        fs::write(home.path().join("third"), "").expect("a word");
        let verdict = eventually("a verdict", SOON, || fs::read_to_string(home.path().join("verdict")).ok());
        assert!(verdict.contains("lives") && canary.is_alive(), "{known}: the canary was killed");
        let keeper = proc::below(home.child()).into_iter().find(|process| process.name == "upright-keeper");
        home.stop_by(keeper.expect("a keeper").pid);
    }
}

#[test]
fn two_hundred_services_are_adopted_at_once() {
    for units in [10, 200] {
        let mut home = Home::new();
        for unit in 0..units {
            home.unit(&format!("u{unit}"), "[service]\ncommand = [\"sleep\", \"100000\"]\n");
        }
        home.daemon();
        let all_active = |home: &Home| {
            let list = home.list()?;
            let units = list["units"].as_array()?;
            units.iter().all(|unit| unit["state"] == "active").then(|| list.clone())
        };
        let pids = |list: &Value| -> Vec<Value> {
            list["units"].as_array().expect("units").iter().map(|unit| unit["pid"].clone()).collect()
        };
        let before = pids(&eventually("all are active", SOON * 2, || all_active(&home)));
        for _ in 0..3 {
            home.kill_keeper();
            let began = Instant::now();
            home.daemon();
            let list = eventually("all are adopted", SOON, || all_active(&home));
            let took = began.elapsed();
            assert_eq!(pids(&list), before, "somebody was restarted");
            let events = home.events();
            let told = events.iter().rfind(|event| event["event"] == "keeper.restarted").expect("a record");
            println!(
                "{units} units: adopted in {} µs of the engine, all active {took:?} after exec",
                told["data"]["took_us"]
            );
            assert_eq!(told["data"]["runs"], units);
        }
    }
}

#[test]
fn the_real_stack_serves_on_while_its_keepers_die() {
    if support::skip_tool(stack::lacking()) {
        return;
    }
    let mut stack = Stack::prepare();
    stack.start();
    let pids = |stack: &Stack| stack::UNITS.map(|unit| stack.home.pid(unit));
    let before = pids(&stack);
    let client = Client::start(stack.ports.backend);
    for _ in 0..5 {
        std::thread::sleep(moment());
        stack.home.kill_keeper();
        // Nobody supervises: PostgreSQL, Redis and the backend must not even notice.
        let (status, health) = stack.ask("GET", "/api/system/health", "");
        assert_eq!(status, 200, "{health}");
        stack.home.daemon();
        for unit in stack::UNITS {
            stack.home.await_state(unit, "active", SOON);
        }
    }
    assert_eq!(pids(&stack), before, "somebody was restarted");
    let ledger = client.finish();
    assert_eq!((ledger.refused, ledger.journaled), (0, 0), "{} accepted", ledger.accepted.len());
    let (stored, _) = stack.stored();
    assert!(ledger.accepted.is_subset(&stored), "sessions are lost");
    println!("{} sessions over six keepers, none refused", ledger.accepted.len());
    // Killed afterwards, it is restarted like any other.
    kill(Pid::from_raw(stack.home.pid("redis")), Signal::SIGKILL).expect("it lives");
    stack
        .home
        .await_unit("redis", "it is restarted", SOON, |now| now["restarts"] == 1 && now["state"] == "active");
    assert!(stack.home.stop().success());
}
