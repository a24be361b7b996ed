//! The load beside the faults: what was answered has its line in a log, what was acknowledged is stored; where that
//! is not so, or cannot be known, the drill says it, and nothing else turns red.
//!
//! Refuses: the room `drill`. A test runs the command, as a user does.

mod support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use support::drills::{drill, newest, recount, red, samples, value_of};
use support::{Home, free_port, is_root, skip, skip_tool};

const SOON: Duration = Duration::from_secs(30);

/// A daemon with one drillable backend.
struct Loaded {
    home: Home,
    url: String,
    scenario: String,
}

/// The unit file of `tests/drill/backend.py`.
fn backend(home: &Home, port: u16, flags: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drill/backend.py");
    let (script, ids) = (script.display(), home.path().join("ids"));
    format!(
        "[unit]\ndrillable = true\n[service]\ncommand = \"python3 {script} {port} {} {flags}\"\n\
         [readiness]\nhttp = \"http://127.0.0.1:{port}/livez\"\n\
         [restart]\ndelays = [\"300ms\"]\n[log]\nwhen_full = \"drop\"\n",
        ids.display()
    )
}

fn loaded(flags: &str, start: impl FnOnce(&mut Home)) -> Loaded {
    let mut home = Home::new();
    let port = free_port();
    let text = backend(&home, port, flags);
    home.unit("front", &text);
    let scenario = home.path().join("loaded.toml");
    let text = "description = \"d\"\npause = \"400ms\"\niterations = 2\n[load]\nevery = \"20ms\"\n\
                [[fault]]\nkind = \"kill\"\n";
    fs::write(&scenario, text).expect("a scenario");
    fs::write(home.path().join("ids"), "").expect("no session yet");
    start(&mut home);
    home.await_state("front", "active", SOON);
    Loaded { home, url: format!("http://127.0.0.1:{port}"), scenario: scenario.display().to_string() }
}

impl Loaded {
    fn drill(&self, more: &[&str]) -> (i32, String, Value) {
        drill(&self.home, &[&[self.scenario.as_str(), "--base-url", &self.url], more].concat())
    }

    fn counted(&self) -> String {
        format!("cat '{}'", self.home.path().join("ids").display())
    }
}

fn plain(flags: &str) -> Loaded {
    loaded(flags, |home| _ = home.daemon())
}

#[test]
fn what_was_answered_is_in_the_log_and_what_was_acknowledged_is_stored() {
    if skip_tool(python()) {
        return;
    }
    let loaded = plain("");
    let (code, said, verdict) = loaded.drill(&["--stored-ids", &loaded.counted()]);
    assert_eq!(code, 0, "{said}");
    for kpi in ["log-lines-lost", "sessions-lost"] {
        assert_eq!(value_of(&verdict, kpi), json!(0.0), "{said}");
    }
    let dir = newest(&loaded.home).expect("papers");
    let sent = samples(&dir, "load");
    let answered = sent.iter().filter(|sample| sample["status"] == 200).count();
    assert!(answered > 20, "it went on beside the faults: {answered}\n{said}");
    assert!(sent.iter().any(|sample| sample["status"].is_null()), "some met a killed backend");
    // Counted without anything of ours: the files are what the service wrote.
    let text: String = fs::read_dir(loaded.home.path().join("log/front"))
        .expect("its log")
        .filter_map(|file| {
            Some(file.ok()?.path()).filter(|path| path.extension().is_some_and(|e| e == "log"))
        })
        .map(|path| fs::read_to_string(path).expect("UTF-8"))
        .collect();
    let id = dir.file_name().and_then(|name| name.to_str()).expect("an id");
    for sample in sent.iter().filter(|sample| sample["status"] == 200) {
        let line = format!("/api/chat?drill={id}-{} HTTP", sample["number"]);
        assert!(text.contains(&line), "{line}");
    }
    let ids = fs::read_to_string(loaded.home.path().join("ids")).expect("ids");
    assert!(ids.lines().count() >= answered, "each is stored");
    recount(&dir);
}

#[test]
fn sessions_that_are_acknowledged_and_not_kept_turn_their_kpi_red() {
    if skip_tool(python()) {
        return;
    }
    let loaded = plain("--lose 7");
    let (code, said, verdict) = loaded.drill(&["--stored-ids", &loaded.counted()]);
    assert_eq!((code, red(&verdict)), (1, vec!["sessions-lost".to_string()]), "{said}");
    recount(&newest(&loaded.home).expect("papers"));
}

#[test]
fn a_count_that_fails_proves_nothing() {
    if skip_tool(python()) {
        return;
    }
    let loaded = plain("");
    let (code, said, verdict) = loaded.drill(&["--stored-ids", "false"]);
    assert_eq!((code, red(&verdict)), (1, vec!["sessions-lost".to_string()]), "{said}");
    assert!(said.contains("Sessions could not be counted: `false` ended with exit status: 1."), "{said}");
    recount(&newest(&loaded.home).expect("papers"));
}

#[test]
fn what_cannot_be_judged_is_said_and_has_no_row() {
    if skip_tool(python()) {
        return;
    }
    let loaded = plain("--no-sessions --silent");
    let (code, said, verdict) = loaded.drill(&[]);
    assert_eq!(code, 0, "{said}");
    for word in
        ["Sessions are not counted: ", "answers 404 to POST /api/chat", "Numbered lines are not judged"]
    {
        assert!(said.contains(word), "{word}: {said}");
    }
    for kpi in ["log-lines-lost", "sessions-lost"] {
        assert_eq!(value_of(&verdict, kpi), Value::Null);
    }
    // Asked for what there is not, it does not begin.
    let (code, said, _) = loaded.drill(&["--stored-ids", "true"]);
    assert!(code == 2 && said.contains("no sessions can be counted"), "{code}: {said}");
    let pid = loaded.home.pid("front");
    let (code, said, _) = drill(&loaded.home, &[&loaded.scenario, "--base-url", "http://127.0.0.1:1"]);
    assert!(code == 2 && said.contains("cannot send load to 127.0.0.1:1"), "{code}: {said}");
    let (code, said, _) = drill(&loaded.home, &[&loaded.scenario, "--base-url", "https://127.0.0.1"]);
    assert!(code == 2 && said.contains("a drill speaks plain http"), "{code}: {said}");
    assert_eq!(loaded.home.pid("front"), pid, "nothing was hurt");
}

/// The log of the backend is on a file system of its own that fills up, and what does not fit is dropped.
#[test]
fn a_log_that_loses_lines_turns_the_kpis_of_the_log_red() {
    if skip((!is_root()).then_some("root")) || skip_tool(python()) {
        return;
    }
    let loaded = loaded("--flood 20000", |home| {
        let at = home.path().join("log/front");
        fs::create_dir_all(&at).expect("dir");
        let at = at.display();
        let script = format!("mount -t tmpfs -o size=256k,mode=755 none {at} && exec \"$@\"");
        home.daemon_through(&["unshare", "-m", "sh", "-c", &script, "sh"]);
    });
    let (code, said, verdict) = loaded.drill(&["--stored-ids", &loaded.counted()]);
    assert_eq!(
        (code, red(&verdict)),
        (1, vec!["log-loss".to_string(), "log-lines-lost".to_string()]),
        "{said}"
    );
    recount(&newest(&loaded.home).expect("papers"));
}

fn python() -> Option<&'static str> {
    let runs = std::process::Command::new("python3").arg("--version").output();
    (!runs.is_ok_and(|output| output.status.success())).then_some("python3")
}
