//! Whatever stands in a unit file: reading it never panics, ends soon, says why when it
//! gives nothing, and points into the text.
//!
//! Refuses: judging the words (`tests/diag.rs` does).

use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use upright::base::limits;
use upright::unit::diag::{DIAGNOSTICS_MAX, Diagnostic};
use upright::unit::{Colour, daemon_file, parse, render};

/// How many texts a property is tried on; `CASES=100000` asks for the long run.
fn cases(usual: u32) -> u32 {
    std::env::var("CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// The valid files to start from.
fn seeds() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = [
        "units/backend.toml",
        "units/postgres.toml",
        "units/redis.toml",
        "tests/diag/everything/a.toml",
        "tests/diag/template/worker.toml",
        "tests/diag/daemon-file-good/upright.toml",
    ];
    files.iter().map(|file| std::fs::read_to_string(root.join(file)).expect(file)).collect()
}

/// One edit of a text; the numbers are taken modulo its length.
#[derive(Clone, Debug)]
enum Edit {
    Cut(usize),
    Remove(usize, usize),
    Insert(usize, String),
    Repeat(usize, usize, usize),
    Swap(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let words = prop::sample::select(vec![
        "[",
        "]",
        "\"",
        "'",
        "\"\"\"",
        "=",
        ".",
        "#",
        "{",
        "}",
        ",",
        "\n",
        "\\",
        "\\u0000",
        "\0",
        "é",
        "→",
        "-1",
        "1e999",
        "[service]\n",
        "[[x]]\n",
        "instances = 1000\n",
        "{instance}",
        "nan",
        "0x",
        "1979-05-27",
        "true",
        "a.b.c = 1\n",
    ]);
    let inserted = prop_oneof![words.prop_map(String::from), "\\PC{0,8}", "[a-z_]{1,12} = \"?[0-9]{1,4}"];
    prop_oneof![
        any::<usize>().prop_map(Edit::Cut),
        (any::<usize>(), 1..200_usize).prop_map(|(at, len)| Edit::Remove(at, len)),
        (any::<usize>(), inserted).prop_map(|(at, text)| Edit::Insert(at, text)),
        (any::<usize>(), 1..60_usize, 1..20_usize).prop_map(|(at, len, times)| Edit::Repeat(at, len, times)),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Edit::Swap(a, b)),
    ]
}

fn edited(text: &str, edit: &Edit) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let count = chars.len().max(1);
    match edit {
        Edit::Cut(at) => chars.truncate(at % count),
        Edit::Remove(at, len) => {
            let from = (at % count).min(chars.len());
            let to = (from + len).min(chars.len());
            chars.drain(from..to);
        }
        Edit::Insert(at, text) => {
            let at = (at % count).min(chars.len());
            chars.splice(at..at, text.chars());
        }
        Edit::Repeat(at, len, times) => {
            let from = (at % count).min(chars.len());
            let to = (from + len).min(chars.len());
            let piece: Vec<char> = chars[from..to].repeat(*times);
            chars.splice(to..to, piece);
        }
        Edit::Swap(a, b) if !chars.is_empty() => {
            let (a, b) = (a % chars.len(), b % chars.len());
            chars.swap(a, b);
        }
        Edit::Swap(..) => {}
    }
    chars.into_iter().collect()
}

/// What holds for every answer.
fn check_diagnostics(text: &str, diagnostics: &[Diagnostic]) {
    assert!(diagnostics.len() <= DIAGNOSTICS_MAX + 1);
    for diagnostic in diagnostics {
        assert!(!diagnostic.message.is_empty());
        assert!(diagnostic.code.contains('.'), "{diagnostic:?}");
        if let Some(place) = &diagnostic.place {
            assert!(text.get(place.span.clone()).is_some(), "{place:?} is not in the text");
            let lines_before = text[..place.span.start].matches('\n').count() as u64;
            assert_eq!(place.line, lines_before + 1);
        }
    }
    let _ = render(diagnostics, text, Colour::Coloured); // it must not panic
}

fn check_text(text: &str) {
    let parsed = parse("units/fuzz.toml", "fuzz", text);
    let wrong = parsed.diagnostics.iter().any(Diagnostic::is_error);
    assert_eq!(parsed.specs.is_empty(), wrong, "{:?}", parsed.diagnostics);
    check_diagnostics(text, &parsed.diagnostics);
    let parsed = daemon_file::parse("upright.toml", text);
    let wrong = parsed.diagnostics.iter().any(Diagnostic::is_error);
    assert_eq!(parsed.spec.is_none(), wrong, "{:?}", parsed.diagnostics);
    check_diagnostics(text, &parsed.diagnostics);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(1_000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_file_is_answered(seed in 0..6_usize, edits in prop::collection::vec(edit(), 1..8)) {
        let mut text = seeds()[seed].clone();
        for edit in &edits {
            text = edited(&text, edit);
        }
        check_text(&text);
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}|[\\[\\]\"'=.#{},\n\\\\a-z0-9 ]{0,300}") {
        check_text(&text);
    }

    #[test]
    fn any_value_of_any_key_is_answered(row in any::<prop::sample::Index>(), value in value()) {
        let keys = upright::unit::keys::UNIT.keys;
        let key = row.get(keys);
        let section = key.section.replace('*', "b");
        let head = "[unit]\nrequires = [\"b\"]\n[service]\ncommand = [\"x\"]\n";
        let text = match section.as_str() {
            "service" if key.name == "command" => format!("[service]\ncommand = {value}\n"),
            "service" => format!("{head}{} = {value}\n", key.name),
            "unit" => format!("[service]\ncommand = [\"x\"]\n[unit]\n{} = {value}\n", key.name),
            other => format!("{head}[{other}]\n{} = {value}\n", key.name),
        };
        check_text(&text);
    }
}

fn value() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:e}")),
        Just("true".to_string()),
        Just("1979-05-27T07:32:00Z".to_string()),
        "\\PC{0,12}".prop_map(|text| format!("{text:?}")),
        "[0-9]{1,5}(s|ms|%|MiB|:[0-9]{1,5})?".prop_map(|text| format!("{text:?}")),
        "(GET |POST )?https?(\\+unix)?://[a-z0-9:@\\[\\]/.]{0,20}".prop_map(|text| format!("{text:?}")),
        "/[a-z/:.]{0,20}".prop_map(|text| format!("{text:?}")),
    ];
    scalar.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            inner.prop_map(|item| format!("{{ a = {item} }}")),
        ]
    })
}

/// Every prefix of a valid file: what an editor that writes slowly leaves for a moment.
#[test]
fn every_cut_of_a_valid_file_is_answered() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("units/backend.toml"))
        .expect("text");
    for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
        check_text(&text[..at]);
    }
}

/// Files made to cost: each is refused or read within seconds, in a debug build on a busy machine.
#[test]
fn files_made_to_cost_are_bounded() {
    let most = usize::try_from(limits::UNIT_FILE_BYTES_MAX).expect("fits");
    let filled = |piece: &str| piece.repeat(most / piece.len());
    let head = "[service]\ncommand = [\"x\"]\n";
    let room = most - 200;
    let bombs = [
        filled("["),
        filled("a={"),
        filled("a.b.c.d."),
        filled("[[a]]\n"),
        filled("x = = 1\n"),
        filled("\"\n"),
        filled("'''"),
        filled("a\n"),
        filled("é"),
        format!("{head}x = [{}]", "1,".repeat(room / 2)),
        format!("{head}start_pre = [{}]", "[\"a\"],".repeat(room / 6)),
        format!("{head}[readiness]\nlog = '{}'", "(a{9}){9}".repeat(room / 9)),
        format!("{head}instances = 1000\nenvironment = {{ A = \"{}\" }}", "x".repeat(room)),
        format!("{head}{} = 1", "k".repeat(room)),
        format!("command = \"{}\"", "k ".repeat(room / 2)),
        format!(
            "[unit]\nrequires = [{}]\n{head}",
            (0..room / 9).map(|n| format!("\"{n:05}\",")).collect::<String>()
        ),
        format!("{head}environment = {{ {} }}", (0..1_900).map(|n| format!("A{n} = 1,")).collect::<String>()),
        "x".repeat(most + 1),
    ];
    for (number, bomb) in bombs.iter().enumerate() {
        let begun = Instant::now();
        check_text(bomb);
        assert!(begun.elapsed() < Duration::from_secs(20), "bomb {number} took {:?}", begun.elapsed());
    }
}
