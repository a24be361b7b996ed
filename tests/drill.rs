//! Drills against real daemons: each fault is done, told, recovered from and undone; what is sabotaged turns
//! the right KPI red; what is killed leaves nothing behind.
//!
//! Refuses: the room `drill`. A test runs the command, as a user does.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use support::drills::{drill, newest, recount, red, value_of};
use support::{Home, UPRIGHT, eventually, is_root, of, pid_of, skip};

const SOON: Duration = Duration::from_secs(30);

/// A unit that lives, and is back a tenth of a second after each failure.
fn unit(more: &str) -> String {
    format!(
        "[unit]\ndrillable = true\n{more}\n[service]\ncommand = [\"sleep\", \"100000\"]\n\
         [restart]\ndelays = [\"100ms\"]\n"
    )
}

/// Two requirements, and a front that needs both; one unit that no drill may hurt.
fn stack() -> Home {
    let mut home = Home::new();
    home.unit("base", &unit("")).unit("store", &unit(""));
    home.unit("front", &unit("requires = [\"base\", \"store\"]"));
    home.unit("other", "[service]\ncommand = [\"sleep\", \"100000\"]\n");
    home.daemon();
    for name in ["base", "store", "front", "other"] {
        home.await_state(name, "active", SOON);
    }
    home
}

fn step(home: &Home, body: &Value) -> (u16, Value) {
    home.request("POST", "/v1/drills", &body.to_string())
}

#[test]
fn a_killed_unit_comes_back_and_the_verdict_says_so() {
    let home = stack();
    let begun = home.last_event();
    let (code, said, verdict) = drill(&home, &["single-module", "--iterations", "2", "--pause", "0"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(verdict["status"], "passed", "{verdict:#}");
    assert!(said.contains("kill front"), "{said}");
    let stories = verdict["stories"].as_array().expect("stories");
    assert!(stories.len() == 2 && stories.iter().all(|story| story["outcome"] == "recovered"), "{verdict:#}");
    // Restarted after its delay, not before.
    assert!(
        stories.iter().all(|story| story["restart_s"].as_f64().is_some_and(|s| (0.09..5.0).contains(&s)))
    );
    let dir = newest(&home).expect("papers");
    for paper in ["report.md", "report.html", "junit.xml"] {
        assert!(fs::read_to_string(dir.join(paper)).expect(paper).contains("auto-recovery-rate"), "{paper}");
    }
    recount(&dir);
    let kept = home.get("/v1/drills")["drills"][0].clone();
    assert_eq!((&kept["status"], &kept["progress"]), (&json!("passed"), &json!(100)), "{kept}");
    // What came of the drill says so, and counts apart from what is real.
    let events = home.events_after(begun);
    let failed = of(&events, "unit.failed", "front");
    assert!(
        failed.len() == 2 && failed.iter().all(|event| event["data"]["drill"] == kept["id"]),
        "{failed:?}"
    );
    let summary = home.get("/api/metrics/v0_1/summary");
    assert_eq!((&summary["real"]["failures"], &summary["drill"]["failures"]), (&json!(0), &json!(2)));
    assert_eq!(summary["manual_interventions"], 0);
    // The next real failure is the first again.
    assert_eq!(home.status("front")["failures"], 0);
    assert_eq!(home.upright(&["drill", "report"]).status.code(), Some(0));
}

#[test]
fn what_others_require_is_held_down_and_they_go_on() {
    let home = stack();
    let scenario = home.path().join("outage.toml");
    let text = "description = \"d\"\npause = \"0s\"\n[[fault]]\nkind = \"outage\"\non = \"requirements\"\nfor = \"700ms\"\n";
    fs::write(&scenario, text).expect("a scenario");
    let begun = home.last_event();
    let front = home.pid("front");
    let (code, said, verdict) = drill(&home, &[scenario.to_str().expect("UTF-8")]);
    assert_eq!(code, 0, "{said}");
    for story in verdict["stories"].as_array().expect("stories") {
        assert!(
            story["recover_s"].as_f64().is_some_and(|s| s > 0.5),
            "not before its outage is over: {story}"
        );
    }
    assert_eq!(home.pid("front"), front, "it was not touched");
    let events = home.events_after(begun);
    assert_eq!(of(&events, "unit.degraded", "front").len(), 2);
    recount(&newest(&home).expect("papers"));
}

#[test]
fn an_operators_stop_in_an_outage_stands() {
    let home = stack();
    let begin = json!({ "drill": "d1", "do": "begin", "scenario": "x" });
    assert_eq!(step(&home, &begin).0, 200);
    assert_eq!(step(&home, &begin).0, 409, "one at a time");
    let fault = |unit: &str| json!({ "drill": "d1", "do": "fault", "kind": "outage", "unit": unit, "for_ms": 60_000 });
    let refused = step(&home, &fault("other"));
    assert_eq!((refused.0, &refused.1["error"]["code"]), (403, &json!("drill.not_drillable")));
    assert_eq!(step(&home, &fault("nobody")).0, 404);
    assert_eq!(step(&home, &fault("front")).0, 200);
    home.await_unit("front", "it is held down", SOON, |unit| {
        unit["state"] == "waiting" && unit["reason"] == "held down by a drill"
    });
    home.upright_exits(&["stop", "front"], 0);
    assert_eq!(step(&home, &json!({ "drill": "d1", "do": "end", "status": "passed" })).0, 200);
    assert_eq!(home.status("front")["state"], "inactive");
    assert_eq!(step(&home, &fault("front")).0, 404, "it is over");
    home.upright_exits(&["start", "front"], 0);
    home.await_state("front", "active", SOON);
}

#[test]
fn an_operators_start_ends_an_outage() {
    let home = stack();
    assert_eq!(step(&home, &json!({ "drill": "d1", "do": "begin", "scenario": "x" })).0, 200);
    let fault = json!({ "drill": "d1", "do": "fault", "kind": "outage", "unit": "front", "for_ms": 60_000 });
    assert_eq!(step(&home, &fault).0, 200);
    home.await_state("front", "waiting", SOON);
    home.upright_exits(&["start", "front"], 0);
    assert_eq!(home.status("front")["state"], "active");
}

#[test]
fn a_limit_undoes_what_nobody_undoes() {
    let home = stack();
    assert_eq!(step(&home, &json!({ "drill": "d1", "do": "begin", "scenario": "x" })).0, 200);
    let long = json!({ "drill": "d1", "do": "fault", "kind": "hang", "unit": "front", "for_ms": 600_001 });
    assert_eq!(step(&home, &long).0, 400);
    let fault = json!({ "drill": "d1", "do": "fault", "kind": "hang", "unit": "front", "for_ms": 3_000 });
    assert_eq!(step(&home, &fault).0, 200);
    let pid = home.pid("front");
    eventually("it is stopped", SOON, || is_stopped(pid).then_some(()));
    eventually("it goes on", SOON, || (!is_stopped(pid)).then_some(()));
}

#[test]
fn units_that_are_not_restarted_turn_the_right_kpi_red() {
    let home = stack();
    let never = "[unit]\ndrillable = true\nrequires = [\"base\", \"store\"]\n[service]\n\
                 command = [\"sleep\", \"100000\"]\n[restart]\npolicy = \"never\"\n";
    home.unit("front", never);
    home.upright_exits(&["apply"], 0);
    let (code, said, verdict) = drill(&home, &["single-module", "--iterations", "1", "--pause", "0"]);
    assert_eq!(code, 1, "{said}");
    assert_eq!(red(&verdict), ["auto-recovery-rate"], "{said}");
    recount(&newest(&home).expect("papers"));
    // It is not left dead.
    home.await_state("front", "active", SOON);
}

#[test]
fn an_alert_channel_that_is_cut_turns_missed_alerts_red() {
    let mut home = Home::new();
    let at = home.path().join("no/such/directory/alerts.jsonl");
    let text = format!("[alert.ops]\nkind = \"file\"\npath = {:?}\n", at.to_str().expect("UTF-8"));
    fs::write(home.path().join("upright.toml"), text).expect("upright.toml");
    home.unit("front", &format!("{}[alert]\nafter_failures = 1\n", unit("")));
    home.daemon();
    home.await_state("front", "active", SOON);
    let (code, said, verdict) = drill(&home, &["single-module", "--iterations", "1", "--pause", "0"]);
    assert_eq!(code, 1, "{said}");
    assert_eq!(red(&verdict), ["missed-alerts"], "{said}");
}

/// One unit whose every failure is told to a file; the fourth, where `alert` does not say another.
fn told(alert: &str) -> Home {
    let mut home = Home::new();
    let at = home.path().join("log/alerts.jsonl");
    let text = format!("[alert.ops]\nkind = \"file\"\npath = {:?}\n", at.to_str().expect("UTF-8"));
    fs::write(home.path().join("upright.toml"), text).expect("upright.toml");
    home.unit("front", &format!("{}{alert}", unit("")));
    home.daemon();
    home.await_state("front", "active", SOON);
    home
}

/// How the newest alert about a failure is on its channel.
fn delivery(home: &Home) -> Value {
    let list = home.get("/v1/alerts");
    let alerts = list["alerts"].as_array().expect("alerts");
    let failing = alerts.iter().find(|alert| alert["kind"] == "failing");
    failing.map_or(Value::Null, |alert| alert["channels"][0].clone())
}

#[test]
fn an_alert_that_is_raised_while_the_channels_are_cut_arrives_afterwards() {
    let home = told("");
    let (code, said, verdict) = drill(&home, &["alert-outage", "--pause", "0"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        (value_of(&verdict, "alerts-raised"), value_of(&verdict, "missed-alerts")),
        (1.0.into(), 0.0.into())
    );
    let kills =
        verdict["stories"].as_array().expect("stories").iter().filter(|story| story["kind"] == "kill");
    assert_eq!(kills.count(), 4, "as many as it takes");
    let delivery = delivery(&home);
    assert_eq!(delivery["state"], "delivered", "{delivery}");
    assert!(delivery["attempts"].as_u64() > Some(1), "the first try was cut: {delivery}");
    recount(&newest(&home).expect("papers"));
}

#[test]
fn cut_channels_are_whole_again_at_their_limit_and_when_the_drill_ends() {
    let home = told("[alert]\nafter_failures = 1\nrepeat_every = 1\n");
    for (drill, for_ms) in [("d1", 2_500), ("d2", 60_000)] {
        assert_eq!(step(&home, &json!({ "drill": drill, "do": "begin", "scenario": "x" })).0, 200);
        let fault = json!({ "drill": drill, "do": "fault", "kind": "channels", "for_ms": for_ms });
        assert_eq!(step(&home, &fault).0, 200);
        let last = home.last_event();
        kill(Pid::from_raw(home.pid("front")), Signal::SIGKILL).expect("it lives");
        home.await_event(last, "it is raised", SOON, |event| event["event"] == "alert.raised");
        eventually("its try is cut", SOON, || (delivery(&home)["error"] == "cut by a drill").then_some(()));
        if drill == "d2" {
            assert_eq!(delivery(&home)["state"], "pending");
            assert_eq!(step(&home, &json!({ "drill": drill, "do": "end", "status": "passed" })).0, 200);
        }
        eventually("it arrives", SOON, || (delivery(&home)["state"] == "delivered").then_some(()));
        if drill == "d1" {
            assert_eq!(step(&home, &json!({ "drill": drill, "do": "end", "status": "passed" })).0, 200);
        }
    }
}

#[test]
fn cut_channels_are_whole_again_when_the_drill_or_the_engine_is_killed() {
    let home = told(
        "[health]\nexec = [\"true\"]\ninterval = \"60s\"\nthreshold = 10\n[alert]\nafter_failures = 1\nrepeat_every = 1\n",
    );
    let scenario = home.path().join("long.toml");
    let text = "description = \"d\"\n[[fault]]\nkind = \"channels\"\nfor = \"60s\"\n\
                [[fault]]\nkind = \"hang\"\nfor = \"60s\"\n";
    fs::write(&scenario, text).expect("a scenario");
    for killed in ["drill", "engine"] {
        let pid = home.pid("front");
        let drilling = Drilling::start(&home, &scenario);
        eventually("it is done", SOON, || is_stopped(pid).then_some(()));
        let last = home.last_event();
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
        home.await_event(last, "it is raised", SOON, |event| event["event"] == "alert.raised");
        eventually("its try is cut", SOON, || (delivery(&home)["error"] == "cut by a drill").then_some(()));
        if killed == "engine" {
            let engine = home.get("/v1/units")["daemon"]["engine_pid"].as_i64().expect("a pid");
            kill(Pid::from_raw(i32::try_from(engine).expect("a pid")), Signal::SIGKILL).expect("it lives");
            eventually("another engine answers", SOON, || {
                home.list().filter(|list| list["daemon"]["engine_pid"] != engine)
            });
            eventually("it arrives", SOON, || (delivery(&home)["state"] == "delivered").then_some(()));
        }
        drilling.kill();
        eventually("it arrives", SOON, || (delivery(&home)["state"] == "delivered").then_some(()));
        home.await_state("front", "active", SOON);
        eventually("no drill runs", SOON, || {
            let drills = home.get("/v1/drills");
            drills["drills"]
                .as_array()
                .expect("drills")
                .iter()
                .all(|drill| drill["status"] != "running")
                .then_some(())
        });
    }
}

#[test]
fn two_drills_stand_beside_each_other() {
    let home = stack();
    let ids = ["a", "b"].map(|_| {
        let (code, said, verdict) = drill(&home, &["single-module", "--iterations", "1", "--pause", "0"]);
        assert_eq!(code, 0, "{said}");
        verdict["drill"].as_str().expect("an id").to_string()
    });
    let text = home.upright_exits(&["drill", "report", &ids[1], "--against", &ids[0]], 0);
    assert!(
        text.contains("auto-recovery-rate") && text.contains("100 % pass") && text.contains("DIFFERENCE"),
        "{text}"
    );
    let json = home.upright_exits(&["drill", "report", &ids[1], "--against", &ids[0], "--json"], 0);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["drill"], &json["against"]), (&json!(ids[1]), &json!(ids[0])), "{json}");
    let rate = json["kpis"].as_array().expect("KPIs").iter().find(|row| row["kpi"] == "auto-recovery-rate");
    assert_eq!(rate.map(|row| &row["difference"]), Some(&json!(0.0)), "{json}");
    assert_eq!(home.upright(&["drill", "report", "--against", "nobody"]).status.code(), Some(1));
}

#[test]
fn a_broken_file_is_told_and_put_back() {
    let home = stack();
    let path = home.path().join("units/front.toml");
    let before = fs::read_to_string(&path).expect("its file");
    let scenario = home.path().join("config.toml");
    let text = "description = \"d\"\npause = \"0s\"\n[[fault]]\nkind = \"config-corrupt\"\nfor = \"5s\"\n";
    fs::write(&scenario, text).expect("a scenario");
    let pid = home.pid("front");
    let (code, said, _) = drill(&home, &[scenario.to_str().expect("UTF-8")]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::read_to_string(&path).expect("its file"), before);
    assert_eq!(home.pid("front"), pid);
    recount(&newest(&home).expect("papers"));
}

#[test]
fn broken_requests_change_nothing() {
    let home = stack();
    let (code, said, verdict) = drill(&home, &["abnormal-requests", "--iterations", "1", "--pause", "0"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        verdict["kpis"].as_array().is_some_and(|rows| rows.iter().any(|row| row["kpi"] == "server-errors"))
    );
}

#[test]
fn a_killed_engine_is_replaced_and_the_drill_goes_on() {
    let home = stack();
    let pids = ["base", "store", "front", "other"].map(|unit| home.pid(unit));
    let (code, said, verdict) = drill(&home, &["supervisor-kill", "--iterations", "2", "--pause", "0"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(verdict["stories"].as_array().map(Vec::len), Some(2), "{verdict:#}");
    assert_eq!(["base", "store", "front", "other"].map(|unit| home.pid(unit)), pids);
}

/// A drill in the background that is killed.
struct Drilling(Child);

impl Drilling {
    fn start(home: &Home, scenario: &Path) -> Drilling {
        let child = Command::new(UPRIGHT)
            .args(["drill", "run"])
            .arg(scenario)
            .env("UPRIGHT_HOME", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Drilling(child.expect("the binary runs"))
    }

    fn kill(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL).expect("it lives");
        self.0.wait().expect("our child");
    }
}

fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

/// Faults that last a minute, one of each kind that has to be undone.
fn long_fault(home: &Home, kind: &str) -> PathBuf {
    let path = home.path().join("long.toml");
    let text = format!("description = \"d\"\n[[fault]]\nkind = \"{kind}\"\nfor = \"60s\"\n");
    let text = text.replace("kind = \"hang\"\n", "kind = \"hang\"\non = \"front\"\n");
    fs::write(&path, text).expect("a scenario");
    path
}

/// Waits until the fault is done.
fn await_fault(home: &Home, kind: &str, pid: i32) {
    let broken = home.path().join("units/front.toml");
    eventually("the fault is done", SOON, || {
        let done = match kind {
            "outage" => home.list().is_some_and(|list| {
                support::unit_of(&list, "front").is_some_and(|unit| unit["state"] == "waiting")
            }),
            "config-corrupt" => {
                fs::read_to_string(&broken).is_ok_and(|text| text.contains("broken by a drill"))
            }
            _ => is_stopped(pid),
        };
        done.then_some(())
    });
}

fn nothing_is_left(home: &Home, before: &str) {
    home.await_state("front", "active", SOON);
    let pid = home.pid("front");
    eventually("its process runs", SOON, || (!is_stopped(pid)).then_some(()));
    let path = home.path().join("units/front.toml");
    eventually("its file is as before", SOON, || {
        fs::read_to_string(&path).is_ok_and(|text| text == before).then_some(())
    });
    let drills = eventually("no fault is left", SOON, || {
        let list = home.get("/v1/drills");
        let drills = list["drills"].as_array().expect("drills").clone();
        drills.iter().all(|drill| drill["faults"] == json!([])).then_some(drills)
    });
    assert!(drills.iter().all(|drill| drill["status"] == "aborted"), "{drills:?}");
}

/// A front with a health check that would need minutes: what undoes the hang is the daemon.
fn patient() -> (Home, String) {
    let home = stack();
    let text = format!(
        "{}[health]\nexec = [\"true\"]\ninterval = \"60s\"\nthreshold = 10\n",
        unit("requires = [\"base\", \"store\"]")
    );
    home.unit("front", &text);
    home.upright_exits(&["apply"], 0);
    home.await_state("front", "active", SOON);
    (home, text)
}

#[test]
fn a_killed_drill_leaves_no_fault() {
    let (home, text) = patient();
    for kind in ["hang", "outage", "slow", "config-corrupt"] {
        let pid = home.pid("front");
        let drilling = Drilling::start(&home, &long_fault(&home, kind));
        await_fault(&home, kind, pid);
        drilling.kill();
        nothing_is_left(&home, &text);
    }
}

#[test]
fn a_killed_engine_and_drill_leave_no_fault() {
    let (home, text) = patient();
    for kind in ["hang", "outage", "config-corrupt"] {
        let pid = home.pid("front");
        let drilling = Drilling::start(&home, &long_fault(&home, kind));
        await_fault(&home, kind, pid);
        let engine = home.get("/v1/units")["daemon"]["engine_pid"].as_i64().expect("a pid");
        kill(Pid::from_raw(i32::try_from(engine).expect("a pid")), Signal::SIGKILL).expect("it lives");
        drilling.kill();
        eventually("another engine answers", SOON, || {
            home.list().filter(|list| list["daemon"]["engine_pid"] != engine)
        });
        nothing_is_left(&home, &text);
        assert!(pid_of(&home.status("front")).is_some());
    }
}

/// Its journal went with a corrupt store, say.
#[test]
fn a_broken_file_is_put_back_without_a_journal() {
    let mut home = Home::new();
    let good = unit("");
    home.unit("front", &format!("{good}\n[[[ broken by a drill; it is put back when that is over\n"));
    fs::write(home.path().join("units/.front.toml.before-drill"), &good).expect("the good one");
    home.daemon();
    home.await_state("front", "active", SOON);
    assert_eq!(fs::read_to_string(home.path().join("units/front.toml")).expect("its file"), good);
    assert!(!home.path().join("units/.front.toml.before-drill").exists());
    assert!(home.events().iter().any(|event| event["event"] == "drill.undone"));
}

#[test]
fn a_broken_file_is_put_back_on_a_full_disk() {
    if skip((!is_root()).then_some("root")) {
        return;
    }
    let mut home = Home::new();
    let text = unit("");
    let at = home.path().join("units");
    fs::create_dir_all(&at).expect("dir");
    let file = format!("printf %s \"$UNIT\" > {}/front.toml", at.display());
    let script =
        format!("mount -t tmpfs -o size=64k,mode=755 none {} && {file} && exec \"$@\"", at.display());
    home.daemon_through(&["env", &format!("UNIT={text}"), "unshare", "-m", "sh", "-c", &script, "sh"]);
    home.await_state("front", "active", SOON);
    let inside = PathBuf::from(format!("/proc/{}/root{}", home.child(), at.display()));
    let drilling = Drilling::start(&home, &long_fault(&home, "config-corrupt"));
    let path = inside.join("front.toml");
    eventually("it is broken", SOON, || {
        fs::read_to_string(&path).is_ok_and(|text| text.contains("broken by a drill")).then_some(())
    });
    let full = fs::write(inside.join("filler"), vec![0; 65_536]);
    assert_eq!(full.expect_err("no room").kind(), std::io::ErrorKind::StorageFull);
    drilling.kill();
    eventually("it is as before", SOON, || {
        fs::read_to_string(&path).is_ok_and(|found| found == text).then_some(())
    });
}

/// The logs are on a small disk of their own, and a unit counts into one.
fn home_that_counts() -> Home {
    let mut home = Home::new();
    let script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.01; done";
    home.unit("count", &format!("[service]\nshell = true\ncommand = '{script}'\n"));
    let at = home.path().join("log");
    fs::create_dir(&at).expect("dir");
    let script = format!("mount -t tmpfs -o size=4m,mode=750 none {} && exec \"$@\"", at.display());
    home.daemon_through(&["unshare", "-m", "sh", "-c", &script, "sh"]);
    home.await_state("count", "active", SOON);
    home
}

#[test]
fn a_full_disk_of_logs_is_free_again_and_no_line_is_lost() {
    if skip((!is_root()).then_some("root")) {
        return;
    }
    let home = home_that_counts();
    let scenario = home.path().join("full.toml");
    let text = "description = \"d\"\npause = \"0s\"\n[[fault]]\nkind = \"disk-full\"\nfor = \"4s\"\n";
    fs::write(&scenario, text).expect("a scenario");
    let inside = PathBuf::from(format!("/proc/{}/root{}/log", home.child(), home.path().display()));
    let filler = inside.join(".filled-by-drill");
    let begin = || {
        let mut command = Command::new("nsenter");
        command.args(["-t", &home.child().to_string(), "-m", UPRIGHT, "drill", "run"]).arg(&scenario);
        command.env("UPRIGHT_HOME", home.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().expect("nsenter runs")
    };
    let drilling = begin();
    eventually("the disk is full", SOON, || filler.exists().then_some(()));
    eventually("the daemon tells", SOON, || {
        home.get("/api/system/health")["troubles"]
            .as_array()
            .is_some_and(|told| !told.is_empty())
            .then_some(())
    });
    let output = drilling.wait_with_output().expect("our child");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!filler.exists());
    // Killed in the middle, it leaves nothing either.
    let mut drilling = begin();
    eventually("the disk is full", SOON, || filler.exists().then_some(()));
    drilling.kill().expect("it lives");
    drilling.wait().expect("our child");
    eventually("it is free again", SOON, || (!filler.exists()).then_some(()));
    eventually("nothing ails it", SOON, || {
        (home.get("/api/system/health")["status"] == "green").then_some(())
    });
    let log = home.upright_exits(&["logs", "count", "--raw", "-n", "all"], 0);
    let numbers: Vec<u64> = log.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.len() > 200, "{}", numbers.len());
    assert!(numbers.iter().zip(1..).all(|(found, count)| *found == count), "a line is missing");
}

#[test]
fn a_disk_that_others_use_is_not_filled() {
    let home = stack();
    assert_eq!(step(&home, &json!({ "drill": "d1", "do": "begin", "scenario": "mine" })).0, 200);
    let fault = json!({ "drill": "d1", "do": "fault", "kind": "disk-full", "for_ms": 1_000 });
    let (status, answer) = step(&home, &fault);
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("drill.disk")), "{answer}");
}

/// What a newcomer does: the demo in one terminal, a drill in another.
#[test]
fn the_demo_is_drilled_out_of_the_box() {
    let mut demo = Command::new(UPRIGHT)
        .arg("demo")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(demo.stdout.take().expect("its stdout")).lines().map_while(Result::ok);
    let dir =
        lines.find_map(|line| line.strip_prefix("home:").map(|dir| dir.trim().to_string())).expect("a home");
    assert!(lines.any(|line| line.starts_with("prove:")), "it says how");
    let output = Command::new(UPRIGHT)
        .args(["drill", "run", "single-module", "--iterations", "1", "--pause", "0", "--home", &dir])
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let failed = String::from_utf8_lossy(&output.stderr).into_owned();
    kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGTERM).expect("it lives");
    demo.wait().expect("our child");
    assert_eq!(output.status.code(), Some(0), "{said}{failed}");
    assert!(said.contains("kill backend") && said.contains("passed"), "{said}");
}
