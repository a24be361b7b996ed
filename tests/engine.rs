//! The engine as a table: script in, effects out. `BLESS=1` writes the effects anew.
//!
//! Refuses: units with more than one thing to show.

#[path = "engine/golden.rs"]
mod golden;
#[path = "engine/script.rs"]
mod script;

fn check(case: &str) {
    let path = format!("tests/engine/{case}.txt");
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(&path);
    let text = std::fs::read_to_string(file).expect("the script");
    golden::golden(&path, &script::rewrite(&text));
}

#[test]
fn every_script_gives_the_effects_that_stand_beneath_its_lines() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine");
    let mut cases: Vec<String> = std::fs::read_dir(folder)
        .expect("the scripts")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".txt").map(str::to_string))
        .collect();
    cases.sort();
    assert!(cases.len() >= 15, "{cases:?}");
    for case in cases {
        check(&case);
    }
}
