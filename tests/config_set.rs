//! Which set of unit files is in force, whatever is broken: properties of `config::merge` on
//! random histories of files that come, go, break and name each other; and the page of keys.
//!
//! Refuses: the file system (`tests/live_config.rs` has the real daemon).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use upright::base::name::UnitName;
use upright::config::{Found, Merged, merge};
use upright::graph::check::expand;
use upright::graph::{Node, check};
use upright::unit::keys::{self, Key};
use upright::unit::parse;
use upright::unit::spec::UnitSpec;

/// Names of units that files are called by and name.
const NAMES: usize = 5;

/// One file at one time.
#[derive(Clone, Debug)]
enum File {
    Absent,
    /// As it was a moment ago.
    Same,
    Broken,
    Unreadable,
    Text {
        requires: Vec<usize>,
        after: Vec<usize>,
        conflicts: Vec<usize>,
        instances: u8,
        version: u8,
    },
}

fn a_file() -> impl Strategy<Value = File> {
    let few = || prop::collection::vec(0..NAMES + 1, 0..3);
    prop_oneof![
        2 => Just(File::Absent),
        6 => Just(File::Same),
        1 => Just(File::Broken),
        1 => Just(File::Unreadable),
        6 => (few(), prop::collection::vec(0..NAMES, 0..2), prop::collection::vec(0..NAMES, 0..1), 1..3u8, 0..3u8)
            .prop_map(|(requires, after, conflicts, instances, version)| File::Text {
                requires, after, conflicts, instances, version
            }),
    ]
}

/// Two directories, the second with a file of the same name as one of the first.
fn paths() -> Vec<String> {
    let first = (0..NAMES).map(|number| format!("/one/u{number}.toml"));
    first.chain(["/two/u0.toml".to_string(), "/two/u1@1.toml".to_string()]).collect()
}

fn text(file: &File) -> Option<String> {
    let names = |numbers: &[usize]| {
        let words: Vec<String> = numbers.iter().map(|number| format!("\"u{number}\"")).collect();
        words.join(", ")
    };
    match file {
        File::Text { requires, after, conflicts, instances, version } => Some(format!(
            "[unit]\ndescription = \"{version}\"\nrequires = [{}]\nafter = [{}]\nconflicts = [{}]\n\
             [service]\ncommand = [\"x\"]\ninstances = {instances}\n",
            names(requires),
            names(after),
            names(conflicts)
        )),
        File::Broken => Some("[unit\n".to_string()),
        File::Absent | File::Same | File::Unreadable => None,
    }
}

fn specs_of(file: &str, text: &str) -> Vec<UnitSpec> {
    let stem = Path::new(file).file_stem().and_then(|stem| stem.to_str()).expect("a stem");
    parse(file, stem, text).specs
}

fn found_of(file: &str, text: Option<&String>) -> Found {
    let specs = text.map(|text| specs_of(file, text)).unwrap_or_default();
    Found { text: text.cloned(), specs }
}

/// The units of these texts, with every name of a template replaced.
fn units_of(texts: &BTreeMap<String, String>) -> Vec<UnitSpec> {
    let mut specs: Vec<UnitSpec> = texts.iter().flat_map(|(file, text)| specs_of(file, text)).collect();
    expand(&mut specs);
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    specs
}

fn is_sound(specs: &[UnitSpec], silent: &BTreeSet<UnitName>) -> bool {
    let nodes: Vec<Node> = specs.iter().map(Node::of).collect();
    let names: BTreeSet<&UnitName> = specs.iter().map(|spec| &spec.name).collect();
    names.len() == specs.len() && check(&nodes, silent).iter().all(|error| error.is_warning())
}

fn stem_name(file: &str) -> Option<UnitName> {
    UnitName::parse(Path::new(file).file_stem()?.to_str()?).ok()
}

/// Names that units of these texts require and none of them has.
fn lacking(texts: &BTreeMap<String, String>) -> BTreeSet<UnitName> {
    let units = units_of(texts);
    let names: BTreeSet<&UnitName> = units.iter().map(|spec| &spec.name).collect();
    let named = units.iter().flat_map(|spec| &spec.unit.requires);
    named.filter(|name| !names.contains(name)).cloned().collect()
}

/// Everything that holds of one reading.
fn hold(
    found: &BTreeMap<String, Found>,
    before: &BTreeMap<String, String>,
    lost: &BTreeSet<PathBuf>,
    merged: &Merged,
) -> Result<(), TestCaseError> {
    let in_lost = |file: &str| Path::new(file).parent().is_some_and(|dir| lost.contains(dir));
    for (file, text) in &merged.good {
        let newest = found.get(file).and_then(|found| found.text.as_ref()) == Some(text);
        let last_good = before.get(file) == Some(text);
        prop_assert!(newest || last_good, "{file} is neither the newest nor the last good one");
        prop_assert!(!specs_of(file, text).is_empty(), "{file} is in force, and broken");
    }
    let units: Vec<UnitSpec> = merged.units.iter().map(|spec| spec.as_ref().clone()).collect();
    prop_assert_eq!(&units, &units_of(&merged.good), "the units are those of the texts");
    // A unit may wait for a file that has never been good, and waits on when that goes.
    let silent = found.keys().filter(|file| !merged.good.contains_key(*file));
    let silent: BTreeSet<UnitName> =
        silent.filter_map(|file| stem_name(file)).chain(lacking(before)).collect();
    prop_assert!(is_sound(&units, &silent), "the set is not complete: {:?}", merged.good);
    for file in before.keys() {
        let stays = found.contains_key(file) || in_lost(file);
        prop_assert!(!stays || merged.good.contains_key(file), "{} is there, and was dropped", file);
    }
    let needed: BTreeSet<&String> = merged.needed.iter().collect();
    for file in merged.good.keys().filter(|file| !found.contains_key(*file) && !in_lost(file)) {
        prop_assert!(needed.contains(file), "{} is gone and in force", file);
        let without: BTreeMap<String, String> = merged
            .good
            .iter()
            .filter(|(other, _)| *other != file)
            .map(|(f, t)| (f.clone(), t.clone()))
            .collect();
        prop_assert!(
            !is_sound(&units_of(&without), &BTreeSet::new()),
            "{} is gone, and nobody needs it",
            file
        );
    }
    let newest: BTreeMap<String, String> =
        found.iter().filter_map(|(file, found)| Some((file.clone(), found.text.clone()?))).collect();
    let whole = found.values().all(|found| !found.specs.is_empty()) && lost.is_empty();
    if whole && is_sound(&units_of(&newest), &BTreeSet::new()) {
        prop_assert_eq!(&merged.good, &newest, "nothing is wrong, so all of it is in force");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(400), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_in_force_is_always_one_complete_good_set(
        history in prop::collection::vec((prop::collection::vec(a_file(), NAMES + 2), prop::bool::weighted(0.1)), 1..8)
    ) {
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        let mut good = BTreeMap::new();
        for (files, is_lost) in history {
            let mut found = BTreeMap::new();
            let lost: BTreeSet<PathBuf> = is_lost.then(|| PathBuf::from("/one")).into_iter().collect();
            for (path, mut file) in paths().into_iter().zip(files) {
                // A plain unit and a template of one name, in two directories, is another story.
                if let File::Text { instances, .. } = &mut file && path.ends_with("/u0.toml") {
                    *instances = 1;
                }
                match (&file, text(&file)) {
                    (File::Absent, _) => _ = texts.remove(&path),
                    (File::Same | File::Unreadable, _) | (_, None) => {}
                    (File::Broken | File::Text { .. }, Some(text)) => _ = texts.insert(path.clone(), text),
                }
                if (is_lost && path.starts_with("/one")) || !texts.contains_key(&path) {
                    continue;
                }
                let readable = !matches!(file, File::Unreadable);
                found.insert(path.clone(), found_of(&path, texts.get(&path).filter(|_| readable)));
            }
            let merged = merge(&found, &good, &lost);
            hold(&found, &good, &lost, &merged)?;
            prop_assert_eq!(&merge(&found, &merged.good, &lost), &merged, "a second reading changes nothing");
            good = merged.good;
        }
    }
}

/// How many histories are tried; `CASES=100000` asks for the long run.
fn cases(usual: u32) -> u32 {
    std::env::var("CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn ten_thousand_files_are_merged_in_a_moment() {
    let mut found = BTreeMap::new();
    for number in 0..9_990 {
        let before =
            if number == 0 { String::new() } else { format!("[unit]\nrequires = [\"u{}\"]\n", number - 1) };
        let text = format!("{before}[service]\ncommand = [\"x\"]\n");
        let file = format!("/one/u{number}.toml");
        found.insert(file.clone(), found_of(&file, Some(&text)));
    }
    let good = merge(&found, &BTreeMap::new(), &BTreeSet::new()).good;
    // The first needs the last: a circle of all.
    let text = "[unit]\nrequires = [\"u9989\"]\n[service]\ncommand = [\"x\"]\n".to_string();
    found.insert("/one/u0.toml".to_string(), found_of("/one/u0.toml", Some(&text)));
    let begun = Instant::now();
    let merged = merge(&found, &good, &BTreeSet::new());
    let took = begun.elapsed();
    println!("9990 files with a circle: {took:?}");
    assert_eq!(merged.good, good);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// The page `docs/KEYS.md`, made from the key table.
fn page() -> String {
    let mut page = "# Keys\n\nEvery key of a unit file and of `upright.toml`, made from the table that the reader \
         uses (`src/unit/keys.rs`; `BLESS=1` with `tests/config_set.rs` rewrites this page).\n\n\
         **A change takes**: `live` = it is in force at once, or with the next start, stop or check, and the process \
         feels nothing; `restart` = a running unit is restarted, in order, without counting a failure. In `upright.toml` \
         `restart` means the next start of the daemon. No key is of the third kind, `reload`: what a service rereads are \
         its own files, and those are not in a unit file.\n"
        .to_string();
    for (title, dialect) in [("A unit file", keys::UNIT), ("upright.toml", keys::DAEMON)] {
        page.push_str(&format!("\n## {title}\n"));
        for section in dialect.sections() {
            page.push_str(&format!("\n### [{}]\n\n", section.replace('*', "NAME")));
            page.push_str("| key | default | a change takes | |\n| --- | --- | --- | --- |\n");
            dialect.section_keys(section).for_each(|key| page.push_str(&row(key)));
        }
    }
    page
}

fn row(key: &Key) -> String {
    let default = key.default.map(|default| format!("`{default}`")).unwrap_or_default();
    let later = match key.in_force {
        keys::InForce::Yes => "",
        keys::InForce::NotYet => " *Not in force yet.*",
    };
    let doc = key.doc.replace('|', "\\|");
    format!("| `{}` | {default} | {} | {doc}{later} |\n", key.name, key.takes.as_str())
}

#[test]
fn the_page_of_keys_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/KEYS.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, page()).expect("docs/KEYS.md");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page(), "docs/KEYS.md differs from the table; BLESS=1 rewrites it");
}
