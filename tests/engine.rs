//! The engine as a table: script in, effects out. `BLESS=1` writes the effects anew.
//!
//! Refuses: units with more than one thing to show.

#[path = "engine/golden.rs"]
mod golden;
#[path = "engine/script.rs"]
mod script;

use upright::base::duration::parse;
use upright::base::time::Monotonic;

fn check(case: &str) {
    let path = format!("tests/engine/{case}.txt");
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(&path);
    let text = std::fs::read_to_string(file).expect("the script");
    golden::golden(&path, &rewrite(&text));
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

/// A whole script, with its effects written beneath each line.
fn rewrite(script: &str) -> String {
    let mut out = String::new();
    let mut units = Vec::new();
    let mut play: Option<script::Play> = None;
    for line in script.lines().filter(|line| !line.starts_with("  ")) {
        out.push_str(line);
        out.push('\n');
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            [first, ..] if first.starts_with('#') => {}
            ["unit", ..] => units.push(script::unit(line)),
            ["begin"] => play = Some(script::Play::begin(std::mem::take(&mut units))),
            ["at", time, rest @ ..] => {
                let play = play.as_mut().expect("`begin` comes first");
                play.pass(Monotonic::ZERO + parse(time).expect("a duration"));
                if !rest.is_empty() {
                    play.perform(rest);
                }
            }
            other => panic!("unknown line {other:?}"),
        }
        if let Some(play) = &mut play {
            for effect in play.lines.drain(..) {
                out.push_str(&format!("  {effect}\n"));
            }
        }
    }
    out
}
