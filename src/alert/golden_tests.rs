//! Golden requests: what a receiver gets, as text in `tests/alert/`, renewed by `BLESS=1`.
//!
//! Refuses: being part of the daemon.

use std::path::Path;

use serde_json::Value;

/// Compares with `tests/alert/NAME.json`.
pub fn check(name: &str, value: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/alert/{name}.json"));
    let text = serde_json::to_string_pretty(value).expect("JSON") + "\n";
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        std::fs::write(&path, &text).expect("written");
    }
    let stands = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(stands, text, "tests/alert/{name}.json; BLESS=1 renews it");
}
