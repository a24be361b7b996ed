//! `upright alert test`, `ack` and `mute` on the real daemon.
//!
//! Refuses: engine code. A test reads the file as a person's tool would.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{Home, eventually, of};

const SOON: Duration = Duration::from_secs(30);

/// Alerts at each failure from the second on; fails until the file is there.
fn until(well: &Path) -> String {
    format!(
        "[service]\nshell = true\ncommand = '''test -e {} && exec sleep 100000; exit 3'''\n\
         [restart]\ndelays = [\"50ms\"]\nreset_after = \"300ms\"\n\
         [alert]\nafter_failures = 2\nrepeat_every = 1\n",
        well.display()
    )
}

/// Ids of the alerts that stand in the file of the stand-in channel.
fn told(home: &Home) -> Vec<String> {
    let text = fs::read_to_string(home.path().join("log/alerts.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.map(|line| line["id"].as_str().expect("id").to_string()).collect()
}

fn kill_engine(home: &Home) {
    let pid = home.list().expect("an answer")["daemon"]["engine_pid"].as_i64().expect("pid");
    kill(Pid::from_raw(i32::try_from(pid).expect("pid")), Signal::SIGKILL).expect("it lives");
    eventually("the next engine answers", SOON, || {
        (home.list()?["daemon"]["engine_pid"].as_i64() != Some(pid)).then_some(())
    });
}

fn failures(home: &Home, unit: &str) -> u64 {
    home.status(unit)["failures"].as_u64().expect("failures")
}

fn await_failures(home: &Home, unit: &str, least: u64) {
    home.await_unit(unit, "more failures", SOON, |status| {
        status["failures"].as_u64().is_some_and(|failures| failures >= least)
    });
}

#[test]
fn a_test_says_where_it_arrived() {
    let mut home = Home::new();
    let bad = home.path().join("a-directory");
    fs::create_dir(&bad).expect("a directory");
    let config = format!(
        "[alert.good]\nkind = \"file\"\npath = \"good.jsonl\"\n[alert.bad]\nkind = \"file\"\npath = \"{}\"\n",
        bad.display()
    );
    fs::write(home.path().join("upright.toml"), config).expect("upright.toml");
    home.daemon();
    assert_eq!(home.upright_exits(&["alert", "test", "good"], 0), "good: delivered\n");
    let all = home.upright_exits(&["alert", "test"], 1);
    let lines: Vec<&str> = all.lines().collect();
    assert!(lines[0].starts_with("bad: parked: "), "{all}");
    assert_eq!(lines[1], "good: delivered");
    let unknown = home.upright(&["alert", "test", "god"]);
    assert_eq!(unknown.status.code(), Some(1));
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("no channel of upright.toml is named `god`"), "{said}");
    assert!(said.contains("there are: bad, good"), "{said}");
    let raised = home.events();
    assert_eq!(of(&raised, "alert.delivered", "").len(), 0, "it is of no unit");
    assert!(home.stop().success());
}

#[test]
fn who_has_taken_it_hears_of_the_end_only() {
    let mut home = Home::new();
    let well = home.path().join("well");
    home.unit("web", &until(&well)).unit("calm", "[service]\ncommand = [\"sleep\", \"100000\"]\n");
    home.daemon();
    await_failures(&home, "web", 3);
    let refused = home.upright_exits(&["alert", "ack", "calm"], 1);
    assert_eq!(refused, "calm: cannot be taken: nobody was alerted of it, or that is over\n");
    let taken = home.upright_exits(&["alert", "ack", "web"], 0);
    assert_eq!(taken, "web: taken; you will be told when it is over\n");
    // What was on its way when it was taken may still arrive; from here on nothing does.
    let before = failures(&home, "web") + 1;
    await_failures(&home, "web", before + 5);
    kill_engine(&home);
    await_failures(&home, "web", before + 10);
    fs::write(&well, "").expect("well");
    home.await_event(0, "the end is told", SOON, |event| {
        let key = event["data"]["key"].as_str().unwrap_or_default();
        event["event"] == "alert.delivered" && key.starts_with("web/") && key.contains("/recovered/")
    });
    let later: Vec<String> = told(&home)
        .into_iter()
        .filter(|id| {
            let number = id.strip_prefix("web/").and_then(|rest| rest.split_once("/failing/"));
            number.and_then(|(_, n)| n.parse::<u64>().ok()).is_some_and(|n| n > before)
        })
        .collect();
    assert_eq!(later, Vec::<String>::new(), "repeats of what somebody has taken");
    let muted = home.get("/v1/alerts?limit=1000")["alerts"].as_array().expect("alerts").clone();
    let muted = muted.iter().filter(|alert| alert["channels"][0]["state"] == "muted").count();
    assert!(muted >= 10, "{muted} are kept as muted");
    assert_eq!(of(&home.events(), "alert.acknowledged", "").len(), 0, "it is the daemon's own record");
    assert!(home.stop().success());
}

#[test]
fn a_mute_holds_back_and_tells_the_newest_when_it_ends() {
    let mut home = Home::new();
    let (web, shop) = (home.path().join("web-well"), home.path().join("shop-well"));
    home.unit("web", &until(&web)).unit("shop", &until(&shop));
    home.daemon();
    let set = home.upright_exits(&["alert", "mute", "web", "--for", "1h"], 0);
    assert!(set.starts_with("alerts of web are muted until "), "{set}");
    let already = told(&home).iter().filter(|id| id.starts_with("web/")).count();
    assert!(home.upright_exits(&["status"], 3).contains("alerts of web are muted until "));
    await_failures(&home, "web", 5);
    kill_engine(&home);
    let now = failures(&home, "web");
    await_failures(&home, "web", now + 5);
    await_failures(&home, "shop", 5);
    fs::write(&web, "").expect("well");
    home.await_event(0, "it has recovered", SOON, |event| {
        let key = event["data"]["key"].as_str().unwrap_or_default();
        event["event"] == "alert.raised" && key.starts_with("web/") && key.contains("/recovered/")
    });
    let held = told(&home).into_iter().filter(|id| id.starts_with("web/")).count();
    // One may have been on its way when the mute came.
    assert!(held <= already + 1, "{held} of web are told, {already} were before the mute");
    assert!(told(&home).iter().any(|id| id.starts_with("shop/")), "another unit is not muted");
    assert_eq!(home.upright_exits(&["alert", "mute", "--off"], 0), "nothing is muted\n");
    eventually("the newest of web is told", SOON, || {
        told(&home).iter().any(|id| id.starts_with("web/") && id.contains("/recovered/")).then_some(())
    });
    let after = told(&home).into_iter().filter(|id| id.starts_with("web/")).count();
    assert_eq!(after, held + 1, "only the newest");
    assert!(home.stop().success());
}

#[test]
fn a_mute_ends_by_itself() {
    let mut home = Home::new();
    let well = home.path().join("well");
    home.unit("web", &until(&well));
    home.daemon();
    home.upright_exits(&["alert", "mute", "--for", "2s"], 0);
    let before = told(&home).len();
    eventually("something is told", SOON, || (told(&home).len() > before + 1).then_some(()));
    assert_eq!(home.get("/v1/alerts")["mutes"], serde_json::json!([]));
    assert!(home.stop().success());
}
