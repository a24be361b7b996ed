//! `upright drill run` as a user runs it, its papers, and an independent count of its samples.
//!
//! Refuses: the room `drill`. What a verdict says is read from its file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::Home;

/// Runs a drill to its end: the exit code, what it said, its verdict.
pub fn drill(home: &Home, words: &[&str]) -> (i32, String, Value) {
    let output = home.upright(&[&["drill", "run"], words].concat());
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let verdict = newest(home).map(|dir| read_json(&dir.join("verdict.json"))).unwrap_or(Value::Null);
    (output.status.code().expect("it ended by itself"), said, verdict)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap_or_default()).unwrap_or(Value::Null)
}

/// The directory with the papers of the newest drill.
pub fn newest(home: &Home) -> Option<PathBuf> {
    let entries = fs::read_dir(home.path().join("log/drills")).ok()?.filter_map(Result::ok);
    let dirs = entries.filter(|entry| entry.path().is_dir());
    dirs.max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok()).map(|entry| entry.path())
}

/// The KPIs that failed.
pub fn red(verdict: &Value) -> Vec<String> {
    let rows = verdict["kpis"].as_array().expect("KPIs");
    let failed = rows.iter().filter(|row| row["verdict"] == "fail");
    failed.map(|row| row["kpi"].as_str().expect("a name").to_string()).collect()
}

/// An independent script counts the same from the samples.
pub fn recount(dir: &Path) {
    let samples = dir.with_extension("jsonl");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drill/recount.py");
    let Ok(output) = Command::new("python3").arg(script).arg(samples).arg(dir.join("verdict.json")).output()
    else {
        assert!(super::skip_tool(Some("python3")));
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The value of a KPI; null where there is no such row, or nothing was measured.
pub fn value_of(verdict: &Value, kpi: &str) -> Value {
    let rows = verdict["kpis"].as_array().expect("KPIs");
    rows.iter().find(|row| row["kpi"] == kpi).map_or(Value::Null, |row| row["value"].clone())
}

/// The samples of a drill, of one kind.
pub fn samples(dir: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(dir.with_extension("jsonl")).expect("samples");
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    all.filter(|sample| sample["sample"] == kind).collect()
}
