//! What the papers say, compared with what is: the README's examples, links, decisions, and
//! the licences of what we are made of.
//!
//! Refuses: a daemon. What needs one is in the `e2e_*` tests.

mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;
use upright::api::types::{DaemonInfo, Unit, UnitList};
use upright::cli::render::{Look, Paint};
use upright::cli::{args, status};
use upright::config;
use upright::engine::effect::AlertKind;
use upright::engine::outbox::{RUNBOOK, runbook};
use upright::store::trouble::Code;

use sources::root;

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The fenced blocks of a page in this language, without their fences.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}");
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line == fence {
            found.push(
                lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect(),
            );
        }
    }
    found
}

#[test]
fn the_unit_files_of_the_readme_are_without_a_mistake() {
    let home = tempfile::tempdir().expect("a directory");
    fs::create_dir(home.path().join("units")).expect("units/");
    let files = blocks(&text("README.md"), "toml");
    assert!(files.len() >= 2, "{files:?}");
    for file in &files {
        let name = file.lines().next().and_then(|line| line.strip_prefix("# ")).expect("the file's name");
        fs::write(home.path().join(name), file).expect("write");
    }
    let loaded = config::load_paths(&[home.path().to_path_buf()]);
    assert_eq!(loaded.diagnostics, []);
    let units = files.iter().filter(|file| file.starts_with("# units/")).count();
    assert_eq!(loaded.units.len(), units);
}

fn unit(name: &str, state: &str, reason: &str, since: &str) -> Unit {
    Unit {
        name: name.into(),
        description: String::new(),
        state: state.into(),
        reason: reason.into(),
        since: since.into(),
        pid: None,
        run: None,
        restarts: 0,
        failures: 0,
        health: "none".into(),
        next_retry_at: None,
        waiting_for: vec![],
        requires: vec![],
        wants: vec![],
        after: vec![],
        wanted: true,
    }
}

/// The demo, a second after its backend was killed.
fn demo() -> UnitList {
    let daemon = DaemonInfo {
        version: "0.1.0".into(),
        mode: "normal".into(),
        keeper_pid: 10,
        engine_pid: 11,
        started_at: "2026-11-21T19:59:50Z".into(),
        containment: "cgroup".into(),
        troubles: Vec::new(),
        mutes: vec![],
    };
    let reason = "was killed (SIGKILL); failure 1 in a row";
    let backend = Unit {
        failures: 1,
        next_retry_at: Some("2026-11-21T20:00:04Z".into()),
        ..unit("backend", "backoff", reason, "2026-11-21T19:59:59Z")
    };
    let ready = |name, pid| Unit { pid: Some(pid), ..unit(name, "active", "ready", "2026-11-21T19:59:51Z") };
    UnitList {
        schema_version: 1,
        daemon,
        units: vec![backend, ready("cache", 24531), ready("database", 24539)],
    }
}

#[test]
fn the_status_and_the_help_of_the_readme_are_the_real_ones() {
    let now: Timestamp = "2026-11-21T20:00:00Z".parse().expect("time");
    let look = Look { paint: Paint::Plain, width: None, zone: TimeZone::UTC };
    let shown = blocks(&text("README.md"), "text");
    let table = format!("$ upright status\n{}", status::render_table(&demo(), now, &look));
    assert!(shown.contains(&table), "README.md should show:\n{table}");
    // tests/cli.rs compares that file with what the binary says.
    let help = format!("$ upright --help\n{}", text("tests/cli/help/upright"));
    assert!(shown.contains(&help), "README.md should show:\n{help}");
}

/// Command lines of `upright` in the papers that a newcomer will type.
#[test]
fn every_command_in_the_papers_is_one() {
    let mut pages = vec!["README.md".to_string(), "examples/fastapi/README.md".to_string()];
    sources::files_below(Path::new("docs/operations"), &mut pages);
    pages.retain(|path| path.ends_with(".md"));
    for path in &pages {
        let page = text(path);
        let typed = |line: &str| line.trim_start_matches("$ ").trim_start_matches("sudo ").to_string();
        let mut lines: Vec<String> = blocks(&page, "sh").concat().lines().map(str::to_string).collect();
        lines.extend(blocks(&page, "console").concat().lines().map(typed));
        // `upright status [UNIT…]` in a table is a form; its verb must be one all the same.
        lines.extend(page.split('`').filter_map(form_without_arguments));
        let commands = lines.iter().filter(|line| line.starts_with("upright "));
        for line in commands {
            let shell = |word: &&str| !matches!(*word, "#" | ">" | "|" | "&" | "&&" | "||");
            let words = line.split(" #").next().unwrap_or_default().split_whitespace().take_while(shell);
            let parsed = args::command().try_get_matches_from(words);
            let wrong = parsed.err().filter(|error| {
                // A form leaves its units out.
                error.exit_code() != 0 && error.kind() != clap::error::ErrorKind::MissingRequiredArgument
            });
            assert!(wrong.is_none(), "{path}: `{line}`: {wrong:?}");
        }
    }
}

/// The verb alone. None: no command of ours, or the keeper and the engine, which nobody types.
fn form_without_arguments(form: &str) -> Option<String> {
    let words: Vec<&str> = form.strip_prefix("upright ").map(|_| form.split_whitespace().collect())?;
    let nested = matches!(words.get(1), Some(&("alert" | "drill")));
    let line = words.into_iter().take(if nested { 3 } else { 2 }).collect::<Vec<_>>().join(" ");
    (!matches!(line.as_str(), "upright keeper" | "upright engine")).then_some(line)
}

/// The headings of a page: depth, text.
fn headings(page: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let plain = page.lines().filter(|line| {
        fenced ^= line.starts_with("```");
        !fenced
    });
    let heading = |line| {
        let text = str::trim_start_matches(line, '#');
        Some((line.len() - text.len(), text.strip_prefix(' ')?)).filter(|(depth, _)| *depth > 0)
    };
    plain.filter_map(heading).collect()
}

/// As on the pages of every forge: letters, digits, `-`, `_`; spaces become `-`.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The headings of depth 2 below the chapters of the runbook whose names begin so.
fn chapters(page: &str, begins: &str) -> Vec<String> {
    let mut inside = false;
    let mut found = Vec::new();
    for (depth, text) in headings(page) {
        match depth {
            1 => inside = text.starts_with(begins),
            2 if inside => found.push(text.to_string()),
            _ => {}
        }
    }
    found
}

#[test]
fn the_runbook_has_every_alert_and_every_trouble_and_no_other() {
    let page = text(RUNBOOK);
    let sorted = |mut list: Vec<String>| {
        list.sort();
        list
    };
    let kinds = AlertKind::ALL.map(|kind| kind.as_str().to_string());
    assert_eq!(sorted(chapters(&page, "Alerts about ")), sorted(kinds.to_vec()), "kinds of alerts");
    for kind in AlertKind::ALL {
        let link = runbook(kind);
        let (file, wanted) = link.split_once('#').expect("a heading");
        assert!(file == RUNBOOK && headings(&page).iter().any(|(_, text)| anchor(text) == wanted), "{link}");
    }
    let codes = Code::ALL.iter().map(|code| code.as_str().to_string()).collect();
    assert_eq!(sorted(chapters(&page, "Troubles of ")), sorted(codes), "codes of troubles");
}

/// Whatever is told as a trouble has its code from the one list.
#[test]
fn no_trouble_has_a_code_of_its_own() {
    let mut wrong = Vec::new();
    let mut told = 0;
    for source in sources::all() {
        let mut from = 0;
        while let Some(at) = sources::find_word(&source.shipped, "code: Code::", from) {
            (told, from) = (told + 1, at + 1);
        }
        let mut from = 0;
        while let Some(at) = sources::find_word(&source.shipped, "Trouble {", from) {
            from = at + 1;
            let end = sources::closing_brace(&source.shipped, at).unwrap_or(at);
            if source.text[at..end].contains("code: \"") {
                wrong.push(format!("{}:{}", source.path, sources::line_of(&source.text, at)));
            }
        }
    }
    assert!(told >= 6, "troubles are made in {told} places only: does this test still see them?");
    assert!(wrong.is_empty(), "a trouble with a code as text: {wrong:?}; add it to store::trouble::Code");
}

/// The codes of mistakes in the runbook: all that users are shown in `tests/diag/`, and none that no source makes.
#[test]
fn the_runbook_has_the_codes_of_mistakes() {
    let page = text(RUNBOOK);
    let (_, part) = page.split_once("\n# Files with a mistake\n").expect("the chapter");
    let is_code = |word: &&str| word.len() > 5 && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let listed: BTreeSet<&str> = part
        .lines()
        .filter(|line| line.starts_with('`'))
        .flat_map(|line| line.split('`'))
        .filter(is_code)
        .collect();
    let mut shown = Vec::new();
    sources::files_below(Path::new("tests/diag"), &mut shown);
    let mut lacking = BTreeSet::new();
    for path in &shown {
        let told = text(path);
        for piece in told.split("[unit.").skip(1).chain(told.split("[daemon.").skip(1)) {
            let code = piece.split(']').next().unwrap_or_default();
            if is_code(&code) && !listed.contains(code) {
                lacking.insert(code.to_string());
            }
        }
    }
    assert!(lacking.is_empty(), "{RUNBOOK} lacks the codes {lacking:?}");
    let made: String = sources::all()
        .iter()
        .filter(|source| matches!(source.room(), Some("unit" | "config")))
        .map(|source| source.text.clone())
        .collect();
    let stale =
        |code: &&&str| !made.contains(&format!("\"{code}\"")) && !made.contains(&format!(".{code}\""));
    let stale: Vec<&&str> = listed.iter().filter(stale).collect();
    assert!(stale.is_empty() && listed.len() > 15, "codes that nothing makes: {stale:?} of {listed:?}");
}

/// What the specification names as a proof exists.
#[test]
fn the_specification_names_tests_and_invariants_that_there_are() {
    let page = text("docs/SPECIFICATION.md");
    let invariants = text("docs/INVARIANTS.md");
    let (mut named, mut lost) = (0, Vec::new());
    for word in page.split(|c: char| c.is_whitespace() || "`,()".contains(c)) {
        let found = if let Some((file, name)) = word.split_once(".rs::") {
            let path = root().join(format!("{file}.rs"));
            fs::read_to_string(path).is_ok_and(|source| source.contains(&format!("fn {name}(")))
        } else if let Some(script) = word.strip_suffix(".txt") {
            root().join(format!("tests/engine/{script}.txt")).exists()
        } else if is_promise(word) {
            invariants.contains(&format!("| {word} "))
        } else {
            continue;
        };
        named += 1;
        lost.extend((!found).then_some(word));
    }
    assert!(
        lost.is_empty() && named > 80,
        "docs/SPECIFICATION.md names {named} proofs, of which not: {lost:?}"
    );
}

/// `I13`, `I21b`, `E5`, `S1`
fn is_promise(word: &str) -> bool {
    let Some(rest) = word.strip_prefix(['I', 'E', 'S']) else { return false };
    let digits = rest.trim_end_matches(|c: char| c.is_ascii_lowercase());
    !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()) && rest.len() - digits.len() <= 1
}

#[test]
fn every_link_of_the_papers_leads_somewhere() {
    let mut pages = vec!["README.md".to_string(), "examples/fastapi/README.md".to_string()];
    sources::files_below(Path::new("docs"), &mut pages);
    pages.retain(|page| page.ends_with(".md")); // samples of drills are beside them
    let mut lost = Vec::new();
    for page in pages {
        let dir = Path::new(&page).parent().map(PathBuf::from).unwrap_or_default();
        for piece in text(&page).split("](").skip(1) {
            let target = piece.split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if !target.contains("://") && !root().join(&dir).join(file).exists() {
                lost.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(lost.is_empty(), "links to nowhere: {lost:#?}");
}

#[test]
fn files_that_the_map_names_exist() {
    let page = text("docs/ARCHITECTURE.md");
    let mut lost = Vec::new();
    for word in page.split('`').skip(1).step_by(2) {
        let is_file = word.contains('/') && (word.ends_with(".rs") || word.ends_with(".toml"));
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        if is_file && plain && !root().join("src").join(word).exists() && !root().join(word).exists() {
            lost.push(word);
        }
    }
    assert!(lost.is_empty(), "docs/ARCHITECTURE.md names files that are not there: {lost:?}");
}

#[test]
fn decisions_are_numbered_and_tell_what_they_cost() {
    let mut paths = Vec::new();
    sources::files_below(Path::new("docs/decisions"), &mut paths);
    for (index, path) in paths.iter().enumerate() {
        let number = format!("docs/decisions/{:04}-", index + 1);
        assert!(path.starts_with(&number), "{path} should begin with {number}");
        let page = text(path);
        for part in ["## Context\n", "## Choice\n", "## Why\n", "## Price\n"] {
            assert!(page.contains(part), "{path} has no `{}`", part.trim());
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest: toml::Table = text("Cargo.toml").parse().expect("TOML");
    let page = text("docs/decisions/0009-dependencies.md");
    let reasons: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| *name != "crate")
        .collect();
    let mut wanted = BTreeSet::new();
    for section in ["dependencies", "dev-dependencies"] {
        wanted.extend(manifest[section].as_table().expect("a table").keys().map(String::as_str));
    }
    assert_eq!(reasons, wanted, "docs/decisions/0009-dependencies.md and Cargo.toml");
}

// ---- licences ----

/// Whether an SPDX expression (or the old `A/B`) is satisfied by what is allowed.
fn allows(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(&words, &mut at, allowed) && at == words.len()
}

fn either(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut holds = both(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        holds |= both(words, at, allowed);
    }
    holds
}

fn both(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut holds = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        holds &= one(words, at, allowed);
    }
    holds
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let holds = either(words, at, allowed);
        *at += 1;
        return holds;
    }
    if words.get(*at) == Some(&"WITH") {
        *at += 2;
        return allowed.contains(&format!("{word} WITH {}", words.get(*at - 1).unwrap_or(&"")));
    }
    allowed.contains(*word)
}

#[test]
fn licence_expressions_are_understood() {
    let allowed: BTreeSet<String> = ["MIT", "Zlib"].map(String::from).into();
    for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND Zlib", "X WITH Y OR MIT"] {
        assert!(allows(good, &allowed), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "MIT WITH Y", "(MIT OR Zlib) AND GPL-3.0", "MIT MIT"] {
        assert!(!allows(bad, &allowed), "{bad}");
    }
}

#[test]
fn what_we_are_made_of_may_be_used() {
    let deny: toml::Table = text("deny.toml").parse().expect("TOML");
    let words = |table: &str, key: &str| -> BTreeSet<String> {
        let list = deny[table][key].as_array().expect("a list");
        list.iter().map(|word| word.as_str().expect("a word").to_string()).collect()
    };
    let allowed = words("licenses", "allow");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let asked = Command::new(cargo)
        .args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", &target])
        .current_dir(root())
        .output();
    let Ok(answer) = asked.map_err(|error| eprintln!("SKIPPED: cannot ask cargo: {error}")) else { return };
    if !answer.status.success() {
        eprintln!("SKIPPED: cannot list the packages: {}", String::from_utf8_lossy(&answer.stderr));
        return;
    }
    let metadata: Value = serde_json::from_slice(&answer.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("a list");
    assert!(packages.len() > 50, "only {} packages", packages.len());
    let mut wrong = Vec::new();
    let mut used = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or_default();
        if !allows(licence, &allowed) {
            wrong.push(format!("{name}: {licence}"));
        }
        for word in &allowed {
            if licence.contains(word.as_str()) {
                *used.entry(word.as_str()).or_insert(0) += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "deny.toml does not allow: {wrong:#?}");
    let idle: Vec<&String> = allowed.iter().filter(|word| !used.contains_key(word.as_str())).collect();
    assert!(idle.is_empty(), "deny.toml allows what nothing needs: {idle:?}");
    let denied = deny["bans"]["deny"].as_array().expect("a list");
    for ban in denied {
        let name = ban["name"].as_str().expect("a name");
        assert!(packages.iter().all(|package| package["name"] != name), "{name} is banned in deny.toml");
    }
}
