//! What is in force when some files are wrong: of each file its newest version, or the last one
//! that was good, so that all of them together are one complete set. Pure.
//!
//! Refuses: telling what is wrong (`load` does), and half a set: a circle, or a unit that
//! requires one which nobody has ever seen good, does not come in force beside what is sound.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::limits;
use crate::base::name::UnitName;
use crate::graph::check::{check, expand};
use crate::graph::{GraphError, Node};
use crate::unit::parse::parse;
use crate::unit::spec::UnitSpec;

/// A unit file that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// None: it cannot be read.
    pub text: Option<String>,
    /// What it gives by itself, names of templates not replaced; none when it has a mistake.
    pub specs: Vec<UnitSpec>,
}

/// One complete set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// By name, names of templates replaced by their instances.
    pub units: Vec<Arc<UnitSpec>>,
    /// File → the text that is in force.
    pub good: BTreeMap<String, String>,
    /// Unit → its file.
    pub origin: BTreeMap<UnitName, String>,
    /// Files that are gone and stay in force, because one that is in force names their unit.
    pub needed: Vec<String>,
    /// Not everything that is good by itself went together.
    pub refused: bool,
}

/// A version of a file that may come in force.
#[derive(Clone, Debug)]
struct Version {
    text: String,
    specs: Vec<UnitSpec>,
    age: Age,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Newest,
    LastGood,
}

/// The set in force: `found` are the files that are there, `good` what was in force until now,
/// `lost` the directories that cannot be read (what was in force of them stays).
pub fn merge(
    found: &BTreeMap<String, Found>,
    good: &BTreeMap<String, String>,
    lost: &BTreeSet<PathBuf>,
) -> Merged {
    let mut merged = merge_once(found, good, lost);
    // What was refused for the sake of something that was refused as well may come in now. What
    // came in stays in, so each turn brings in one file at least, or is the last.
    while merged.refused {
        let next = merge_once(found, &merged.good, lost);
        if next == merged {
            break;
        }
        merged = next;
    }
    merged
}

fn merge_once(
    found: &BTreeMap<String, Found>,
    good: &BTreeMap<String, String>,
    lost: &BTreeSet<PathBuf>,
) -> Merged {
    let mut choice = Choice::new(found, good, lost);
    let mut refused = false;
    while choice.settle_once() {
        refused = true;
    }
    Merged { refused, ..choice.finish(lost) }
}

struct Choice<'a> {
    found: &'a BTreeMap<String, Found>,
    good: &'a BTreeMap<String, String>,
    chosen: BTreeMap<&'a str, Version>,
    /// The last good versions that are not chosen now, and were not given up.
    spare: BTreeMap<&'a str, Version>,
}

/// A file's stem is its unit's name, or that of its template.
fn stem(file: &str) -> &str {
    Path::new(file).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
}

impl<'a> Choice<'a> {
    fn new(
        found: &'a BTreeMap<String, Found>,
        good: &'a BTreeMap<String, String>,
        lost: &BTreeSet<PathBuf>,
    ) -> Choice<'a> {
        let mut choice = Choice { found, good, chosen: BTreeMap::new(), spare: BTreeMap::new() };
        for (file, found) in found {
            if let (Some(text), false) = (&found.text, found.specs.is_empty()) {
                let version = Version { text: text.clone(), specs: found.specs.clone(), age: Age::Newest };
                choice.chosen.insert(file, version);
            }
        }
        for (file, text) in good {
            if choice.chosen.get(file.as_str()).is_some_and(|newest| newest.text == *text) {
                continue;
            }
            let specs = parse(file, stem(file), text).specs;
            if specs.is_empty() {
                continue; // an older build took it for good
            }
            let version = Version { text: text.clone(), specs, age: Age::LastGood };
            let is_there =
                found.contains_key(file) || Path::new(file).parent().is_some_and(|dir| lost.contains(dir));
            if is_there && !choice.chosen.contains_key(file.as_str()) {
                choice.chosen.insert(file, version);
            } else {
                choice.spare.insert(file, version);
            }
        }
        choice
    }

    /// Finds what does not go together and takes versions back; false when all is well. Each
    /// turn gives up a version for good or takes up a last good one that then can only be given
    /// up: it ends after at most two turns a file.
    fn settle_once(&mut self) -> bool {
        let doubled = self.doubled();
        if !doubled.is_empty() {
            doubled.into_iter().for_each(|file| self.take_back(file));
            return true;
        }
        let origin = self.origin();
        let mut specs: Vec<UnitSpec> =
            self.chosen.values().flat_map(|version| version.specs.iter().cloned()).collect();
        expand(&mut specs);
        let nodes: Vec<Node> = specs.iter().map(Node::of).collect();
        // Files without any good version: whoever needs them waits for them to be mended.
        let silent = self.found.keys().filter(|file| !self.chosen.contains_key(file.as_str()));
        let silent: BTreeSet<UnitName> = silent.filter_map(|file| UnitName::parse(stem(file)).ok()).collect();
        let mut back: BTreeSet<&'a str> = BTreeSet::new();
        let mut up: BTreeSet<&'a str> = BTreeSet::new();
        for error in check(&nodes, &silent).into_iter().filter(|error| !error.is_warning()) {
            match error {
                GraphError::Unknown { unit, name, .. } => match self.giver(&name) {
                    Some(file) => _ = up.insert(file),
                    // What was in force before is not given up for a partner that nobody knows.
                    None => back.extend(origin.get(&unit).filter(|file| self.is_changed(file))),
                },
                GraphError::Itself { unit, .. } | GraphError::Contradiction { unit, .. } => {
                    back.extend(origin.get(&unit));
                }
                GraphError::Cycle { members, .. } => {
                    let files: BTreeSet<&str> =
                        members.iter().filter_map(|unit| origin.get(unit).copied()).collect();
                    let changed: Vec<&str> =
                        files.iter().copied().filter(|file| self.is_changed(file)).collect();
                    // Those that were in force before did not make the circle.
                    back.extend(if changed.is_empty() { files.into_iter().collect() } else { changed });
                }
            }
        }
        back.extend(self.hasty(&nodes, &origin, &silent));
        back.retain(|file| !up.contains(file));
        let settled = back.is_empty() && up.is_empty();
        up.into_iter().for_each(|file| self.take_up(file));
        back.into_iter().for_each(|file| self.take_back(file));
        !settled
    }

    /// Files that give a unit which another one gives; of two the one that was in force stays.
    fn doubled(&self) -> Vec<&'a str> {
        let (new, old): (Vec<_>, Vec<_>) = self.chosen.iter().partition(|(file, _)| self.is_changed(file));
        let mut taken: BTreeSet<&UnitName> = BTreeSet::new();
        let mut doubled = Vec::new();
        for (file, version) in old.into_iter().chain(new) {
            let names: Vec<&UnitName> = version.specs.iter().map(|spec| &spec.name).collect();
            let full = taken.len() + names.len() > limits::UNITS_MAX;
            if full || names.iter().any(|name| taken.contains(name)) {
                doubled.push(*file);
            } else {
                taken.extend(names);
            }
        }
        doubled
    }

    /// Unit → the file that gives it.
    fn origin(&self) -> BTreeMap<UnitName, &'a str> {
        let all = self.chosen.iter();
        all.flat_map(|(file, version)| version.specs.iter().map(|spec| (spec.name.clone(), *file))).collect()
    }

    /// The file whose last good version gives a unit that the chosen ones lack.
    fn giver(&self, name: &UnitName) -> Option<&'a str> {
        let gives = |version: &Version| version.specs.iter().any(|spec| spec.name == *name);
        let of_template = |file: &&&'a str| stem(file) == name.as_str();
        self.spare
            .iter()
            .find(|(_, version)| gives(version))
            .map(|(file, _)| *file)
            .or_else(|| self.spare.keys().find(of_template).copied())
    }

    /// Changed files that now require what has never been good, although their last good version
    /// stands without it.
    fn hasty(
        &self,
        nodes: &[Node],
        origin: &BTreeMap<UnitName, &'a str>,
        silent: &BTreeSet<UnitName>,
    ) -> Vec<&'a str> {
        if silent.is_empty() {
            return Vec::new();
        }
        let lacks = |node: &&Node| node.requires.iter().any(|name| !origin.contains_key(name));
        let files = nodes.iter().filter(lacks).filter_map(|node| origin.get(&node.name).copied());
        files.filter(|file| self.is_changed(file) && self.spare.contains_key(file)).collect()
    }

    /// Its newest version is chosen, and was not in force before.
    fn is_changed(&self, file: &str) -> bool {
        self.chosen.get(file).is_some_and(|version| {
            version.age == Age::Newest && self.good.get(file).is_none_or(|good| *good != version.text)
        })
    }

    /// The last good version instead of the newest; nothing instead of the last good one.
    fn take_back(&mut self, file: &'a str) {
        self.chosen.remove(file);
        self.take_up(file);
    }

    fn take_up(&mut self, file: &'a str) {
        if let Some(version) = self.spare.remove(file) {
            self.chosen.insert(file, version);
        }
    }

    /// Files that are gone, and that none in force needs (any more): whoever did may have been
    /// taken back.
    fn drop_idle(&mut self, lost: &BTreeSet<PathBuf>) {
        let is_gone = |file: &str| {
            let in_lost = Path::new(file).parent().is_some_and(|dir| lost.contains(dir));
            !self.found.contains_key(file) && !in_lost
        };
        if !self.chosen.keys().any(|file| is_gone(file)) {
            return;
        }
        let origin = self.origin();
        let mut specs: Vec<UnitSpec> =
            self.chosen.values().flat_map(|version| version.specs.iter().cloned()).collect();
        expand(&mut specs);
        let links: BTreeMap<&UnitName, &UnitSpec> = specs.iter().map(|spec| (&spec.name, spec)).collect();
        let file_of = |name: &UnitName| origin.get(name).copied();
        let mut used: BTreeSet<&str> = BTreeSet::new();
        let mut open: Vec<&str> = self.chosen.keys().copied().filter(|file| !is_gone(file)).collect();
        while let Some(file) = open.pop() {
            if !used.insert(file) {
                continue;
            }
            let own = self.chosen.get(file).into_iter().flat_map(|version| &version.specs);
            let named = own
                .filter_map(|spec| links.get(&spec.name))
                .flat_map(|spec| spec.unit.requires.iter().chain(&spec.unit.wants).filter_map(file_of));
            open.extend(named);
        }
        let used: BTreeSet<String> = used.into_iter().map(str::to_string).collect();
        self.chosen.retain(|file, _| used.contains(*file));
    }

    fn finish(mut self, lost: &BTreeSet<PathBuf>) -> Merged {
        self.drop_idle(lost);
        let origin = self.origin().into_iter().map(|(unit, file)| (unit, file.to_string())).collect();
        let mut merged = Merged { origin, ..Merged::default() };
        let mut specs = Vec::new();
        for (file, version) in self.chosen {
            let in_lost = Path::new(file).parent().is_some_and(|dir| lost.contains(dir));
            if !self.found.contains_key(file) && !in_lost {
                merged.needed.push(file.to_string());
            }
            merged.good.insert(file.to_string(), version.text);
            specs.extend(version.specs);
        }
        expand(&mut specs);
        merged.units = specs.into_iter().map(Arc::new).collect();
        merged.units.sort_by(|a, b| a.name.cmp(&b.name));
        merged
    }
}
