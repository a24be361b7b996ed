//! The acceptance of the whole: drills on the real stack of examples/fastapi, with load beside the faults. Every KPI
//! passes, no acknowledged session and no line is lost, and what counts that is not ours.
//!
//! `UPRIGHT_DRILLS=all` runs the long form: the delays of the example (5, 10, 15 s) and every command line of the
//! mission, a quarter of an hour. The papers and raw samples of each drill are left in `target/tmp/drills`.
//!
//! Refuses: the room `drill`, and stand-ins for the three.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use support::drills::{drill, newest, recount, samples};
use support::skip_tool;
use support::stack::{ACTIVE, Stack, UNITS, lacking, postgres_bin};

fn is_long() -> bool {
    std::env::var("UPRIGHT_DRILLS").is_ok_and(|word| word == "all")
}

/// The stack as setup.sh makes it; but for the long form everything is back a little sooner.
fn start() -> Stack {
    let mut stack = Stack::prepare();
    if !is_long() {
        for unit in UNITS {
            let sooner =
                "[restart]\npolicy = \"always\"\ndelays = [\"1s\", \"2s\", \"3s\"]\nreset_after = \"60s\"\n";
            stack.amend(unit, sooner);
        }
    }
    stack.start();
    stack
}

/// What an operator would give as `--stored-ids`.
fn stored_ids(stack: &Stack) -> String {
    let password = fs::read_to_string(stack.home.path().join("secrets/password")).expect("a password");
    let psql = postgres_bin().expect("looked for before").join("psql");
    format!(
        "env PGPASSWORD={} PGCONNECT_TIMEOUT=10 {} -h 127.0.0.1 -p {} -U app -d postgres -AtXc 'select id from session_log'",
        password.trim(),
        psql.display(),
        stack.ports.postgres
    )
}

/// Runs a drill with load, and asserts that it has passed, by its own verdict and by what others count.
fn passes(stack: &Stack, words: &[&str]) {
    let url = format!("http://127.0.0.1:{}", stack.ports.backend);
    let (code, said, verdict) =
        drill(&stack.home, &[words, &["--base-url", &url, "--stored-ids", &stored_ids(stack)]].concat());
    let dir = newest(&stack.home).expect("papers");
    let kept = keep(&dir);
    println!("{said}\nkept in {}", kept.display());
    assert_eq!(code, 0, "{said}");
    let rows = verdict["kpis"].as_array().expect("KPIs");
    let wanted =
        ["log-lines-lost", "sessions-lost", "auto-recovery-rate", "mean-time-to-recovery", "log-loss"];
    for kpi in wanted {
        assert!(rows.iter().any(|row| row["kpi"] == kpi && row["verdict"] == "pass"), "{kpi}: {said}");
    }
    recount(&dir);
    nothing_is_lost(stack, &dir);
    for unit in UNITS {
        stack.home.await_state(unit, "active", ACTIVE);
    }
}

/// By the rows of PostgreSQL and the bytes of the log files.
fn nothing_is_lost(stack: &Stack, dir: &Path) {
    let id = dir.file_name().and_then(|name| name.to_str()).expect("an id");
    let sent = samples(dir, "load");
    let answered: BTreeSet<u64> = sent
        .iter()
        .filter(|sample| !sample["status"].is_null())
        .filter_map(|s| s["number"].as_u64())
        .collect();
    let text: String = fs::read_dir(stack.home.path().join("log/backend"))
        .expect("its log")
        .filter_map(|file| {
            Some(file.ok()?.path()).filter(|path| path.extension().is_some_and(|e| e == "log"))
        })
        .map(|path| String::from_utf8_lossy(&fs::read(path).expect("a log")).into_owned())
        .collect();
    let lost: Vec<&u64> =
        answered.iter().filter(|number| !text.contains(&format!("?drill={id}-{number} HTTP"))).collect();
    assert!(lost.is_empty(), "no line of {lost:?}");
    let accepted = |sample: &&Value| matches!(sample["status"].as_u64(), Some(200 | 202));
    let accepted: BTreeSet<String> = sent
        .iter()
        .filter(accepted)
        .map(|sample| sample["id"].as_str().expect("an id").to_string())
        .collect();
    let (stored, rows) = stack.stored();
    assert_eq!(stored.len(), rows, "each once");
    let lost: Vec<&String> = accepted.difference(&stored).collect();
    assert!(lost.is_empty(), "not stored: {lost:?}");
    println!(
        "{} requests, {} answered, {} sessions accepted, all there",
        sent.len(),
        answered.len(),
        accepted.len()
    );
    assert!(accepted.len() > 10, "it went on beside the faults");
}

/// Copies samples and papers to where they outlive the test.
fn keep(dir: &Path) -> PathBuf {
    let name = dir.file_name().expect("an id");
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("drills").join(name);
    fs::create_dir_all(&to).expect("a directory");
    for paper in ["report.md", "report.html", "verdict.json", "junit.xml"] {
        fs::copy(dir.join(paper), to.join(paper)).expect("a paper");
    }
    fs::copy(dir.with_extension("jsonl"), to.join("samples.jsonl")).expect("samples");
    to
}

#[test]
fn the_real_stack_passes_its_acceptance() {
    if skip_tool(lacking()) {
        return;
    }
    let stack = start();
    passes(&stack, &["acceptance"]);
}

#[test]
fn the_command_lines_of_the_mission_pass() {
    if skip_tool(lacking())
        || support::skip((!is_long()).then_some("UPRIGHT_DRILLS=all, a quarter of an hour"))
    {
        return;
    }
    let stack = start();
    passes(&stack, &["single-module", "--iterations", "3", "--pause", "2"]);
    passes(&stack, &["db-redis-down", "--iterations", "2", "--pause", "3"]);
    passes(&stack, &["cascade", "--duration", "120", "--interval", "5"]);
    passes(&stack, &["hang"]);
    passes(&stack, &["stress"]);
    passes(&stack, &["alert-outage"]);
}
