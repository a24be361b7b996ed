//! The house rules, checked on the text of the source: who may use whom, banned words, sizes.
//! The rooms and their order are read from `docs/ARCHITECTURE.md`.
//!
//! Refuses: what the compiler or clippy can say better.

mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use sources::{Source, find_word, line_of, root};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// Outside of a function, how far above an `unsafe` its reason may stand; within one it
/// stands anywhere before, for one reason may serve for all of its calls.
const SAFETY_LINES_MAX: usize = 12;

/// A row need not follow every line that goes.
const RATCHET_SLACK: usize = 5;

/// Functions that are longer today: (file, function, lines). A row may shrink or go, never grow;
/// a new one needs a better reason than haste.
const LONGER_TODAY: &[(&str, &str, usize)] = &[];

/// What a room must not name, beyond rooms and crates: (room, words). Words are matched whole.
const BANNED: &[(&str, &[&str])] = &[
    ("base", &["Instant", "SystemTime", "HashMap", "HashSet", "async", "std::fs", "std::net", "std::thread"]),
    ("unit", &["Instant", "SystemTime", "async", "std::fs", "TcpStream", "std::thread", "std::env"]),
    ("graph", &["Instant", "SystemTime", "async", "std::fs", "std::net", "std::thread", "std::time"]),
    ("engine", PURE),
    ("engine", &["clock"]),
    ("ledger", PURE),
    ("ledger", &["clock"]),
    ("sim", PURE),
    ("keeper", &["async", "await", "std::fs", "std::net", "std::thread", "Mutex"]),
    ("store", &["async", "await"]),
];

/// The engine answers the same everywhere: no time, no luck, no system, no order by address.
const PURE: &[&str] = &[
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
    "async",
    "await",
    "std::fs",
    "std::io",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::os",
    "static mut",
    "thread_local",
];

/// Panics and prints that no shipped code contains.
const NEVER_SHIPPED: &[&str] = &[
    ".unwrap()",
    ".expect(",
    "println!",
    "eprintln!",
    "print!",
    "eprint!",
    "dbg!",
    "todo!",
    "unimplemented!",
    "unreachable!()",
];

/// Said once, in the commit that should not have been made.
const NEVER_WRITTEN: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore", "#[should_panic"];

/// (room or file, crates by name or rooms) of a table in `docs/ARCHITECTURE.md`: the rows after
/// the header `head`, cells without backquotes.
fn table(head: &str) -> Vec<Vec<String>> {
    let page = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).expect("the map");
    let mut lines = page.lines().skip_while(|line| !line.starts_with(head));
    assert!(lines.next().is_some() && lines.next().is_some(), "no table `{head}` in docs/ARCHITECTURE.md");
    let rows = lines.take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        row.trim_matches('|').split(" | ").map(|cell| cell.replace('`', "").trim().to_string()).collect()
    })
    .collect()
}

fn rooms() -> Vec<String> {
    table("| room | lives there |").into_iter().map(|mut row| row.swap_remove(0)).collect()
}

fn fail_if_any(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// `path:line` of each `word` in `code`.
fn places<'a>(source: &'a Source, code: &'a str, word: &'a str) -> impl Iterator<Item = String> + 'a {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = find_word(code, word, from)?;
        from = at + word.len();
        Some(format!("{}:{}: {word}", source.path, line_of(code, at)))
    })
}

#[test]
fn the_map_has_every_room_in_the_order_of_the_library() {
    let library = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let mut declared: Vec<String> = library
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';').map(str::to_string))
        .collect();
    declared.push("main.rs".to_string());
    assert_eq!(rooms(), declared, "the room table of docs/ARCHITECTURE.md and src/lib.rs differ");
}

/// The names that follow `crate::` in `code`, with where.
fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for start in ["crate::", "upright::"] {
        let mut from = 0;
        while let Some(at) = find_word(code, start, from) {
            from = at + start.len();
            let name: String =
                code[from..].chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '{').collect();
            let is_macro = code[from + name.len()..].starts_with('!');
            if !is_macro {
                found.push((line_of(code, at), name));
            }
        }
    }
    found
}

#[test]
fn a_room_uses_only_rooms_above_it() {
    let rooms = rooms();
    let place = |room: &str| rooms.iter().position(|known| known == room);
    let mut wrong = Vec::new();
    for source in sources::all() {
        let Some(room) = source.room().filter(|room| *room != "lib.rs") else { continue };
        let Some(own) = place(room) else {
            wrong.push(format!("{}: the room `{room}` is not on the map", source.path));
            continue;
        };
        for (line, used) in crate_paths(&source.code) {
            match place(&used) {
                _ if used.starts_with('{') => {
                    wrong.push(format!("{}:{line}: `use crate::{{` hides which room it is", source.path));
                }
                Some(other) if other <= own => {}
                Some(_) => wrong.push(format!("{}:{line}: `{room}` uses `{used}` below it", source.path)),
                None => wrong.push(format!("{}:{line}: `crate::{used}` is no room", source.path)),
            }
        }
        wrong.extend(places(&source, &source.code, "super::super"));
    }
    fail_if_any("imports against the map", &wrong);
}

#[test]
fn a_crate_is_named_only_where_the_map_says() {
    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml").parse().expect("TOML");
    let wanted = manifest["dependencies"].as_table().expect("a table");
    let declared: BTreeSet<String> = wanted.keys().map(|name| name.replace('-', "_")).collect();
    let mapped: BTreeMap<String, BTreeSet<String>> = table("| crate | rooms |")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].split_whitespace().map(str::to_string).collect()))
        .collect();
    assert_eq!(declared, mapped.keys().cloned().collect(), "Cargo.toml and the map name other crates");
    let mut used: BTreeMap<String, BTreeSet<String>> =
        declared.iter().map(|name| (name.clone(), BTreeSet::new())).collect();
    for source in sources::all() {
        let Some(room) = source.room() else { continue };
        for (name, rooms) in &mut used {
            if find_word(&source.shipped, &format!("{name}::"), 0).is_some() {
                rooms.insert(room.to_string());
            }
        }
    }
    for (name, rooms) in used {
        assert!(!rooms.is_empty(), "`{name}` is in Cargo.toml and nothing shipped names it");
        assert_eq!(rooms, mapped[&name], "where `{name}` is named, and where the map says");
    }
}

#[test]
fn a_room_does_not_know_what_it_must_not() {
    let mut wrong = Vec::new();
    for source in sources::all() {
        for (room, words) in BANNED {
            if source.room() == Some(room) {
                wrong.extend(words.iter().flat_map(|word| places(&source, &source.shipped, word)));
            }
        }
    }
    fail_if_any("words that a room must not know", &wrong);
}

/// The last line of the function before this line; 0 when there is none.
fn previous_end(functions: &[(String, usize, usize)], line: usize) -> usize {
    functions.iter().map(|(_, first, count)| first + count - 1).filter(|end| *end < line).max().unwrap_or(0)
}

#[test]
fn unsafe_is_only_in_sys_and_says_why() {
    // This harness stands between a keeper and its children: it must be what they are.
    let allowed = |source: &Source| source.room() == Some("sys") || source.path == "tests/keeping/mod.rs";
    let mut wrong = Vec::new();
    for source in sources::all() {
        let lines: Vec<&str> = source.text.lines().collect();
        let functions = sources::functions(&source.code);
        let mut from = 0;
        while let Some(at) = find_word(&source.code, "unsafe", from) {
            from = at + 6;
            let line = line_of(&source.code, at);
            let around = functions.iter().filter(|(_, first, count)| (*first..first + count).contains(&line));
            let first = around.map(|(_, first, _)| *first).max().unwrap_or(line);
            let above =
                &lines[first.saturating_sub(SAFETY_LINES_MAX).max(previous_end(&functions, first))..line];
            if !allowed(&source) {
                wrong.push(format!("{}:{line}: unsafe outside sys", source.path));
            } else if !above.iter().any(|text| text.contains("SAFETY") || text.contains("# Safety")) {
                wrong.push(format!("{}:{line}: unsafe without a SAFETY comment", source.path));
            }
        }
    }
    fail_if_any("unsafe", &wrong);
}

#[test]
fn shipped_code_neither_panics_by_hand_nor_prints() {
    let mut wrong = Vec::new();
    for source in sources::all() {
        wrong.extend(NEVER_SHIPPED.iter().flat_map(|word| places(&source, &source.shipped, word)));
        wrong.extend(NEVER_WRITTEN.iter().flat_map(|word| places(&source, &source.code, word)));
        for mark in ["FIXME", "XXX", "TODO"] {
            let own = source.path == "tests/tidy.rs";
            wrong.extend(places(&source, &source.text, mark).filter(|_| !own));
        }
        for (at, _) in source.code.match_indices("[allow(") {
            let attribute = source.code[at..].split(']').next().unwrap_or_default();
            if !attribute.contains("reason") {
                wrong.push(format!("{}:{}: allow without a reason", source.path, line_of(&source.code, at)));
            }
        }
    }
    fail_if_any("panics, prints, and what should not have been committed", &wrong);
}

#[test]
fn every_file_says_what_it_is_for_and_what_it_refuses() {
    let mut wrong = Vec::new();
    for source in sources::all() {
        let head: Vec<&str> = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        if head.is_empty() {
            wrong.push(format!("{}: does not begin with `//!`", source.path));
        } else if !head.iter().any(|line| line.starts_with("//! Refuses: ")) {
            wrong.push(format!("{}: no `//! Refuses: …`", source.path));
        }
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            wrong.push(format!("{}: {lines} lines, {FILE_LINES_MAX} are a screenful too many", source.path));
        }
    }
    fail_if_any("files", &wrong);
}

#[test]
fn functions_fit_a_screen_and_the_exceptions_only_shrink() {
    let mut met = BTreeSet::new();
    let mut wrong = Vec::new();
    for source in sources::all() {
        for (name, line, lines) in sources::functions(&source.code) {
            if lines <= FUNCTION_LINES_MAX {
                continue;
            }
            match LONGER_TODAY.iter().position(|row| row.0 == source.path && row.1 == name) {
                Some(row) if (LONGER_TODAY[row].2 - RATCHET_SLACK..=LONGER_TODAY[row].2).contains(&lines) => {
                    met.insert(row);
                }
                Some(row) => {
                    let most = LONGER_TODAY[row].2;
                    wrong.push(format!(
                        "{}:{line}: {name} has {lines} lines, its row says {most}",
                        source.path
                    ));
                }
                None => wrong.push(format!("{}:{line}: {name} has {lines} lines", source.path)),
            }
        }
    }
    for (row, (path, name, _)) in LONGER_TODAY.iter().enumerate() {
        if !met.contains(&row) {
            wrong.push(format!("{path}: {name} is not as its row says; lower it or take it out"));
        }
    }
    fail_if_any(&format!("functions over {FUNCTION_LINES_MAX} lines"), &wrong);
}

#[test]
fn every_file_is_compiled() {
    let sources = sources::all();
    let known: BTreeSet<&str> = sources.iter().map(|source| source.path.as_str()).collect();
    let is_root = |path: &str| {
        ["src/lib.rs", "src/main.rs"].contains(&path)
            || path
                .strip_prefix("tests/")
                .or(path.strip_prefix("benches/"))
                .is_some_and(|rest| !rest.contains('/'))
    };
    let mut open: Vec<String> =
        known.iter().filter(|path| is_root(path)).map(|path| path.to_string()).collect();
    let mut reached = BTreeSet::new();
    while let Some(path) = open.pop() {
        let Some(source) = sources.iter().find(|source| source.path == path) else { continue };
        if !reached.insert(path.clone()) {
            continue;
        }
        let (dir, file) = path.rsplit_once('/').expect("a directory");
        let own = file == "mod.rs" || is_root(&path);
        let base = if own { dir.to_string() } else { path.trim_end_matches(".rs").to_string() };
        // A file that several test binaries share is named by its path from tests/.
        for line in source.text.lines() {
            if let Some(named) = line.trim().strip_prefix("#[path = \"").and_then(|l| l.strip_suffix("\"]")) {
                open.push(format!("{dir}/{named}"));
            }
        }
        for line in source.code.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some(at) = words.iter().position(|word| *word == "mod") else { continue };
            if let Some(name) = words.get(at + 1).and_then(|word| word.strip_suffix(';')) {
                open.extend([format!("{base}/{name}.rs"), format!("{base}/{name}/mod.rs")]);
            }
        }
    }
    let lost: Vec<String> =
        known.iter().filter(|path| !reached.contains(**path)).map(|p| p.to_string()).collect();
    fail_if_any("no `mod` leads to these files", &lost);
}

/// What would be committed: tracked files, and new ones that are not ignored.
fn committed() -> Option<Vec<String>> {
    let words = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").args(words).current_dir(root()).output().ok()?;
    let text = String::from_utf8(listed.stdout).ok().filter(|_| listed.status.success())?;
    Some(text.split_terminator('\0').map(str::to_string).collect())
}

#[test]
fn no_file_names_a_machine_or_a_registry() {
    // Written in two halves, so that this file is clean itself.
    let banned = [
        ["/wo", "rk/"].concat(),
        ["/ro", "ot/"].concat(),
        ["crates", "-proxy"].concat(),
        ["CARGO_REGIS", "TRIES_"].concat(),
        ["[source.", "crates-io]"].concat(),
        ["index-", "url"].concat(),
        ["extra-", "index"].concat(),
    ];
    let Some(files) = committed() else {
        eprintln!("SKIPPED: cannot list the committed files without git");
        return;
    };
    let mut wrong = Vec::new();
    for path in files {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(word) = banned.iter().find(|word| line.contains(word.as_str())) {
                wrong.push(format!("{path}:{}: {word}", number + 1));
            }
        }
        if path == "Cargo.lock" {
            let from = "registry+https://github.com/rust-lang/crates.io-index";
            let other = |line: &&str| line.starts_with("source = ") && !line.contains(from);
            wrong.extend(text.lines().filter(other).map(|line| format!("{path}: {line}")));
        }
    }
    fail_if_any("paths of one machine, or where it gets its packages", &wrong);
}

#[test]
fn scripts_are_executable_and_begin_with_their_shell() {
    use std::os::unix::fs::PermissionsExt;
    let mut wrong = Vec::new();
    for path in committed().unwrap_or_default() {
        let full = root().join(&path);
        let (Ok(bytes), Ok(meta)) = (fs::read(&full), fs::metadata(&full)) else { continue };
        let script = bytes.starts_with(b"#!") && !bytes.starts_with(b"#![");
        if script != (meta.permissions().mode() & 0o111 != 0) {
            wrong.push(path);
        }
    }
    fail_if_any("executable without `#!`, or the other way round", &wrong);
}
