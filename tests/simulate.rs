//! `upright simulate`: what it says, and that a real daemon does the same.
//!
//! Refuses: asking the engine what is right. The rules are written down here once more.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::Value;
use upright::base::name::UnitName;
use upright::cli::render::{Look, Paint};
use upright::cli::simulate::{Asked, as_json, as_text};
use upright::sim::timeline::{End, How, Plan, Refused, Timeline, What, timeline};
use upright::unit::spec::UnitSpec;

use support::{Home, UPRIGHT, of};

/// What a busy machine may add between a deadline and a first instruction.
const MARGIN: Duration = Duration::from_millis(1_500);

/// The daemon stamps a start when the keeper has answered, and a failure when it has heard of it;
/// it counts from when it asked, and from when it happened.
const STAMP_LAG: Duration = Duration::from_millis(100);

const SOON: Duration = Duration::from_secs(30);

fn check(case: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(case);
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        fs::write(&path, text).expect("write");
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{case} reads otherwise now; BLESS=1 rewrites it. It reads:\n{text}");
}

/// The units of these files.
fn units(files: &[(&str, &str)]) -> Vec<Arc<UnitSpec>> {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        fs::write(dir.path().join(format!("{name}.toml")), text).expect("a unit file");
    }
    let loaded = upright::config::load_paths(&[dir.path().to_path_buf()]);
    assert_eq!(loaded.errors(), 0, "{:?}", loaded.diagnostics);
    loaded.units
}

struct Question {
    units: Vec<Arc<UnitSpec>>,
    unit: UnitName,
    failures: u32,
    how: How,
    every: Duration,
}

impl Question {
    fn of(unit: &str, files: &[(&str, &str)]) -> Question {
        let unit = UnitName::parse(unit).expect("a name");
        Question { units: units(files), unit, failures: 9, how: How::Exit, every: Duration::ZERO }
    }

    fn line(&self) -> Result<Timeline, Refused> {
        timeline(&Plan {
            units: &self.units,
            unit: &self.unit,
            failures: self.failures,
            how: self.how,
            lives: self.every,
        })
    }

    fn text(&self, width: Option<usize>) -> String {
        let spec = self.units.iter().find(|spec| spec.name == self.unit).expect("the unit");
        let asked = Asked { spec, failures: self.failures, how: self.how, every: self.every };
        let line = self.line().expect("a timeline");
        as_text(&asked, &line, &Look { paint: Paint::Plain, width, zone: TimeZone::UTC })
    }

    fn json(&self) -> Value {
        let spec = self.units.iter().find(|spec| spec.name == self.unit).expect("the unit");
        let asked = Asked { spec, failures: self.failures, how: self.how, every: self.every };
        as_json(&asked, &self.line().expect("a timeline"))
    }
}

const SIMPLE: &str = "[service]\ncommand = [\"sleep\", \"1\"]\n";

const SHOP: [(&str, &str); 3] = [
    (
        "backend",
        "[unit]\nrequires = [\"postgres\"]\n[service]\ncommand = [\"x\"]\nstart_pre = [[\"y\"]]\n\
         [readiness]\nhttp = \"http://127.0.0.1:8000/\"\ntimeout = \"20s\"\nsettle = \"500ms\"\n\
         [health]\nhttp = \"http://127.0.0.1:8000/\"\ninterval = \"5s\"\ntimeout = \"3s\"\n",
    ),
    ("postgres", SIMPLE),
    ("worker", "[unit]\nrequires = [\"backend\"]\n[service]\ncommand = [\"x\"]\n"),
];

// ---- what it says ----

#[test]
fn timelines_read_as_they_should() {
    check("simulate/defaults", &Question::of("web", &[("web", SIMPLE)]).text(None));
    let shop = Question { failures: 5, ..Question::of("backend", &SHOP) };
    check("simulate/affected", &shop.text(None));
    check("simulate/narrow", &shop.text(Some(40)));
    let hang = Question { failures: 2, how: How::Hang, ..Question::of("backend", &SHOP) };
    check("simulate/hang", &hang.text(None));
    let slow = "[service]\ncommand = [\"x\"]\n[health]\ntcp = \"127.0.0.1:1\"\ninterval = \"30s\"\n";
    let slow = Question { failures: 5, how: How::Hang, ..Question::of("web", &[("web", slow)]) };
    check("simulate/hang-slow", &slow.text(None));
    let late = Question { failures: 2, how: How::NeverReady, ..Question::of("backend", &SHOP) };
    check("simulate/never-ready", &late.text(None));
    let jitter = format!("{SIMPLE}[restart]\njitter = \"20%\"\ngive_up_after = 3\n");
    check("simulate/jitter-gives-up", &Question::of("web", &[("web", &jitter)]).text(None));
    let oneshot = "[service]\ntype = \"oneshot\"\ncommand = [\"x\"]\n[restart]\npolicy = \"on-failure\"\n";
    let oneshot = Question { failures: 2, ..Question::of("job", &[("job", oneshot)]) };
    check("simulate/oneshot", &oneshot.text(None));
    let never = format!("{SIMPLE}[restart]\npolicy = \"never\"\n");
    check("simulate/never", &Question::of("web", &[("web", &never)]).text(None));
    let rare =
        Question { every: Duration::from_secs(120), failures: 3, ..Question::of("web", &[("web", SIMPLE)]) };
    check("simulate/rare", &rare.text(None));
    let json = format!("{:#}\n", Question { failures: 4, ..shop }.json());
    check("simulate/json", &json);
}

#[test]
fn no_line_is_wider_than_a_narrow_terminal() {
    for how in [How::Exit, How::Hang, How::NeverReady] {
        let text = Question { how, ..Question::of("backend", &SHOP) }.text(Some(40));
        for line in text.lines() {
            assert!(unicode_width::UnicodeWidthStr::width(line) <= 40, "{line}");
        }
    }
}

#[test]
fn the_schedule_is_the_list_of_delays_and_the_alerts_are_the_fourth_and_every_fourth() {
    // (delays in s, after_failures, repeat_every, failures)
    let table: [(&[u64], u32, u32, u32); 4] =
        [(&[5, 10, 15], 4, 4, 13), (&[1], 1, 0, 5), (&[2, 3], 2, 3, 9), (&[0], 3, 1, 6)];
    for (delays, after, repeat, failures) in table {
        let list: Vec<String> = delays.iter().map(|delay| format!("\"{delay}s\"")).collect();
        let file = format!(
            "{SIMPLE}[restart]\ndelays = [{}]\n[alert]\nafter_failures = {after}\nrepeat_every = {repeat}\n",
            list.join(", ")
        );
        let line =
            Question { failures, ..Question::of("web", &[("web", &file)]) }.line().expect("a timeline");
        let mut at = Duration::ZERO;
        let mut told = Vec::new();
        for step in &line.steps {
            if let What::Failed { failures: k, restart_in, .. } = &step.what {
                // A restart without a delay still keeps the least time between two spawns.
                assert!(
                    step.at.least >= at && step.at.least <= at + Duration::from_millis(10) * *k,
                    "{step:?}"
                );
                let index = (*k as usize).min(delays.len()) - 1;
                let delay = Duration::from_secs(delays[index]);
                assert_eq!(restart_in.expect("a restart").least, delay, "failure {k}");
                at += delay;
            }
            if let What::Alert { about: upright::sim::timeline::About::Failing, message, .. } = &step.what {
                let count = message.split(' ').nth(2).and_then(|word| word.parse::<u32>().ok());
                told.push(count.expect("the count"));
            }
        }
        let due = |k: &u32| *k == after || (*k > after && repeat > 0 && (k - after).is_multiple_of(repeat));
        assert_eq!(told, (1..=failures).filter(due).collect::<Vec<_>>());
        assert_eq!(line.ends, End::Active);
    }
}

#[test]
fn jitter_gives_a_range_whose_ends_are_exact() {
    let file = format!("{SIMPLE}[restart]\ndelays = [\"5s\", \"10s\"]\njitter = \"20%\"\n");
    let line = Question { failures: 3, ..Question::of("web", &[("web", &file)]) }.line().expect("a timeline");
    let restarts: Vec<(u128, u128)> = line
        .steps
        .iter()
        .filter(|step| matches!(step.what, What::Started { .. }))
        .map(|step| (step.at.least.as_millis(), step.at.most.as_millis()))
        .collect();
    assert_eq!(restarts, [(0, 0), (5_000, 6_000), (15_000, 18_000), (25_000, 30_000)]);
}

#[test]
fn every_way_to_be_ready_and_every_type_comes_to_an_end() {
    let readiness = [
        "",
        "[readiness]\nnotify = true\n",
        "[readiness]\nnotify_fd = 3\n",
        "[readiness]\nlog = \"ready\"\n",
        "[readiness]\nexec = [\"x\"]\n",
        "[readiness]\ntcp = \"127.0.0.1:1\"\nsettle = \"3s\"\n",
    ];
    for readiness in readiness {
        for how in [How::Exit, How::Hang, How::NeverReady] {
            for health in [
                "",
                "[health]\ntcp = \"127.0.0.1:1\"\n",
                "[health]\nexec = [\"x\"]\n",
                "[health]\nwatchdog = \"2s\"\n",
            ] {
                let file = format!("{SIMPLE}{readiness}{health}[restart]\ngive_up_after = 20\n");
                let question = Question { how, failures: 5, ..Question::of("web", &[("web", &file)]) };
                match question.line() {
                    Ok(line) => {
                        let failed =
                            line.steps.iter().filter(|step| matches!(step.what, What::Failed { .. }));
                        assert_eq!((failed.count(), line.ends), (5, End::Active), "{file} {how:?}");
                    }
                    Err(Refused::NoHealth) => assert!(how == How::Hang && health.is_empty(), "{file}"),
                    Err(Refused::ReadyAtOnce) => {
                        assert!(how == How::NeverReady && readiness.is_empty(), "{file}")
                    }
                    Err(other) => panic!("{other} {file} {how:?}"),
                }
            }
        }
    }
}

// ---- the binary ----

fn upright(home: &Path, words: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(UPRIGHT)
        .args(words)
        .env_clear()
        .env("UPRIGHT_HOME", home)
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("a code"), text(stdout), text(stderr))
}

fn home_of(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("units")).expect("units/");
    for (name, text) in files {
        fs::write(dir.path().join(format!("units/{name}.toml")), text).expect("a unit file");
    }
    let path = dir.path().to_path_buf();
    (dir, path)
}

#[test]
fn names_files_and_templates_are_found_without_a_daemon() {
    let template = "[service]\ncommand = [\"x\", \"{instance}\"]\ninstances = 2\n";
    let (_dir, home) = home_of(&[("web", SIMPLE), ("many", template)]);
    let first_line = |words: &[&str]| {
        let (code, out, err) = upright(&home, words);
        assert_eq!((code, err.as_str()), (0, ""), "{words:?}");
        out.lines().next().unwrap_or_default().to_string()
    };
    assert!(first_line(&["simulate", "web"]).starts_with("web: each of 9 runs exits with code 1 "));
    assert!(first_line(&["simulate", "many", "--failures", "1"]).starts_with("many@1: one run exits "));
    assert!(first_line(&["simulate", "many@2"]).starts_with("many@2: "));
    let file = home.join("units/web.toml");
    assert!(first_line(&["simulate", file.to_str().expect("text")]).starts_with("web: "));
    let units = home.join("units");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let words = ["simulate", "web", "--units", units.to_str().expect("text"), "--json"];
    let (code, out, _) = upright(elsewhere.path(), &words);
    let value: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, value["timeline"][0]["event"].as_str()), (0, Some("unit.started")));
}

#[test]
fn what_cannot_be_simulated_is_told_with_its_reason() {
    let (_dir, home) = home_of(&[("web", SIMPLE), ("bad", "[service]\ncomand = [\"x\"]\n")]);
    let (code, out, err) = upright(&home, &["simulate", "wep"]);
    assert_eq!((code, out.as_str()), (4, ""));
    assert_eq!(err, "error: there is no unit `wep`\nhelp: did you mean `web`?\n");
    let (code, out, err) = upright(&home, &["simulate", "bad"]);
    assert_eq!((code, err.as_str()), (2, ""));
    assert!(out.contains("did you mean `command`?") && out.contains("bad.toml:2:1"), "{out}");
    let (_, checked, _) = upright(&home, &["check", home.join("units/bad.toml").to_str().expect("text")]);
    assert_eq!(out, checked, "the errors read as `check` prints them");
    let (code, _, err) = upright(&home, &["simulate", "web", "--how", "hang"]);
    assert_eq!(code, 2);
    assert!(err.contains("nothing would notice that it hangs"), "{err}");
    for words in [["--failures", "0"], ["--failures", "x"], ["--every", "5"], ["--how", "die"]] {
        let (code, _, err) = upright(&home, &[&["simulate", "web"][..], &words].concat());
        assert!(code == 2 && !err.is_empty(), "{words:?}");
    }
}

// ---- a real daemon does the same ----

const POLICY: &str = "[restart]\ndelays = [\"200ms\", \"400ms\", \"600ms\"]\nreset_after = \"3s\"\n\
                      [alert]\nafter_failures = 2\nrepeat_every = 2\n";

/// Counts its runs in a file; the first `times` run `bad`, the next ones stay up.
fn failing(home: &Path, times: u32, bad: &str) -> String {
    let count = home.join("count");
    let script = format!(
        "n=$(($(cat '{0}' 2>/dev/null || echo 0) + 1)); echo $n > '{0}.new'; mv '{0}.new' '{0}'; \
         if [ $n -le {times} ]; then {bad}; fi; exec sleep 100000",
        count.display()
    );
    format!("[service]\nshell = true\ncommand = {script:?}\n{POLICY}")
}

/// A check that is good from run `times + 1` on, and else does `bad`.
fn good_later(home: &Path, times: u32, bad: &str) -> String {
    let count = home.join("count");
    let script = format!("[ \"$(cat '{}')\" -gt {times} ] || {bad}", count.display());
    format!("[\"sh\", \"-c\", {script:?}]")
}

/// What of an event and of a simulated step says the same under the same name.
const SAID: [&str; 4] = ["failures", "kind", "attempts", "cause"];

/// Runs the unit file for real until its recovery is told, and holds that against the simulation.
fn compare(file: impl Fn(&Path) -> String, times: u32, how: &str) {
    let mut home = Home::new();
    let file = file(home.path());
    home.unit("web", &file);
    let times_word = times.to_string();
    let words = ["simulate", "web", "--failures", &times_word, "--how", how, "--json"];
    let simulated: Value = serde_json::from_str(&home.upright_exits(&words, 0)).expect("JSON");
    let steps = simulated["timeline"].as_array().expect("steps");
    let last = steps.last().expect("a step");
    home.daemon();
    let ended = home.await_event(0, "the last step", SOON, |event| {
        event["event"] == last["event"] && (last["kind"].is_null() || event["data"]["kind"] == last["kind"])
    });
    let known: Vec<&str> = steps.iter().filter_map(|step| step["event"].as_str()).collect();
    let mut events = home.events();
    events.retain(|event| event["unit"] == "web" && event["id"].as_u64() <= ended["id"].as_u64());
    let is_known = |event: &&Value| event["event"].as_str().is_some_and(|name| known.contains(&name));
    let real: Vec<&Value> = events.iter().filter(is_known).collect();
    let names: Vec<&str> = real.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(names, known, "the same things happen in the same order");
    let at_ms = |event: &Value| event["at_ns"].as_u64().expect("a time") / 1_000_000;
    let offset_ms = |step: &Value| step["offset_ms"].as_u64().expect("an offset");
    for (index, (event, step)) in real.iter().zip(steps).enumerate() {
        for key in SAID {
            let said = event["data"].get(key).or_else(|| event.get(key)).filter(|value| !value.is_null());
            // Why it was not ready yet is up to the check.
            let free = key == "cause" && how == "never-ready";
            if let (Some(said), Some(simulated), false) = (said, step.get(key), free) {
                assert_eq!(said, simulated, "{key} of {event}");
            }
        }
        // No wait is shorter, and none longer than by the margin.
        let before = index.saturating_sub(1);
        let wait = at_ms(event) - at_ms(real[before]);
        let simulated = offset_ms(step) - offset_ms(&steps[before]);
        let most = simulated + MARGIN.as_millis() as u64;
        let least = simulated.saturating_sub(STAMP_LAG.as_millis() as u64);
        assert!(wait >= least && wait <= most, "{wait} ms instead of {simulated} before {event}");
    }
    // What the daemon said that it would wait is what was simulated, to the millisecond.
    let scheduled = of(&events, "retry.scheduled", "web");
    let said: Vec<&Value> = scheduled.iter().map(|event| &event["data"]["delay_ms"]).collect();
    let failed = steps.iter().filter(|step| step["event"] == "unit.failed");
    assert_eq!(said, failed.map(|step| &step["restart_in_ms"]).collect::<Vec<_>>());
    assert_eq!(said.len(), times as usize);
}

#[test]
fn a_real_daemon_keeps_to_the_timeline_of_exits() {
    compare(|home| failing(home, 7, "exit 1"), 7, "exit");
}

#[test]
fn a_real_daemon_keeps_to_the_timeline_of_hangs() {
    let file = |home: &Path| {
        let check = good_later(home, 2, "exec sleep 100");
        let hung = "trap '' TERM; while :; do sleep 0.05; done";
        format!(
            "{}[stop]\ntimeout = \"300ms\"\n[health]\nexec = {check}\ninterval = \"100ms\"\n\
             timeout = \"800ms\"\nthreshold = 2\n",
            failing(home, 2, hung)
        )
    };
    compare(file, 2, "hang");
}

#[test]
fn a_real_daemon_keeps_to_the_timeline_of_runs_that_never_get_ready() {
    let file = |home: &Path| {
        let check = good_later(home, 2, "exit 1");
        format!("{}[readiness]\nexec = {check}\ntimeout = \"1500ms\"\n", failing(home, 2, "exec sleep 100"))
    };
    compare(file, 2, "never-ready");
}
