//! All files of a home → what may run, and everything that is wrong. A broken file never
//! takes another unit with it.
//!
//! Refuses: comparing with what runs now (the engine is given the whole set).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::limits;
use crate::base::name::UnitName;
use crate::config::merge::Found;
use crate::config::paths::Home;
use crate::config::read::{ReadError, Trust, check_dir, read};
use crate::graph::check::{check, expand};
use crate::graph::{GraphError, Link, Node};
use crate::unit::daemon_file::{self, DaemonSpec};
use crate::unit::diag::{Diagnostic, Level};
use crate::unit::parse::{Parsed, Reference, parse};
use crate::unit::spec::UnitSpec;

/// One look at the files.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The defaults where `upright.toml` is missing or wrong.
    pub daemon: DaemonSpec,
    /// The units that may run, by name.
    pub units: Vec<Arc<UnitSpec>>,
    /// Units whose files exist, but may not be used (a template by its stem).
    pub broken: BTreeSet<UnitName>,
    /// File by file.
    pub diagnostics: Vec<Diagnostic>,
    /// File → its text, for `unit::render`.
    pub texts: BTreeMap<String, String>,
    /// Every unit file that is there.
    pub found: BTreeMap<String, Found>,
    /// Unit directories that are not there, or cannot be read.
    pub lost: BTreeSet<PathBuf>,
    /// `upright.toml` where there is one: its text, and its meaning unless it is wrong.
    pub config: Option<ConfigFound>,
}

/// The config file as it was found.
#[derive(Clone, Debug)]
pub struct ConfigFound {
    pub file: String,
    /// None: it cannot be read.
    pub text: Option<String>,
    /// None: it has a mistake.
    pub spec: Option<DaemonSpec>,
}

impl Loaded {
    pub fn errors(&self) -> usize {
        self.diagnostics.iter().filter(|d| d.is_error()).count()
    }

    pub fn warnings(&self) -> usize {
        self.diagnostics.len() - self.errors()
    }
}

/// Reads the config file and all unit directories of a home. Never fails: what is wrong is
/// in the diagnostics, what is right is in the units.
pub fn load(home: &Home) -> Loaded {
    let mut set = Set::new(Trust::Deployed);
    let config_exists = home.config_file.symlink_metadata().is_ok();
    if config_exists || home.config_named {
        set.add_config(&home.config_file);
    }
    for dir in &home.unit_dirs {
        if home.units_named || dir.symlink_metadata().is_ok() {
            set.add_dir(dir);
        } else {
            set.lost.insert(dir.clone());
        }
    }
    set.finish()
}

/// Reads these files and directories for `upright check PATH…`: a file called
/// `upright.toml` as the config, every other one as a unit.
pub fn load_paths(paths: &[PathBuf]) -> Loaded {
    let mut set = Set::new(Trust::Linted);
    for path in paths {
        if path.is_dir() {
            let inner = path.join("units");
            let config = path.join("upright.toml");
            // In a directory called `units` it is the file of a unit with that name.
            let is_home = path.file_name().is_none_or(|name| name != "units");
            if is_home && config.symlink_metadata().is_ok() {
                set.add_config(&config);
            }
            set.add_dir(if inner.is_dir() { &inner } else { path });
        } else if path.file_name().is_some_and(|name| name == "upright.toml") {
            set.add_config(path);
        } else {
            set.add_unit(path);
            set.add_neighbours(path);
        }
    }
    set.finish()
}

/// A unit file that was read.
struct UnitFile {
    display: String,
    references: Vec<Reference>,
}

impl UnitFile {
    /// What it says of other units, as far as that could be read.
    fn as_node(&self, stem: &UnitName) -> Node {
        let named = |link: Link| {
            let of_link = self.references.iter().filter(move |r| r.key == link.as_str());
            of_link.map(|r| r.name.clone()).collect()
        };
        Node {
            name: stem.clone(),
            requires: named(Link::Requires),
            wants: named(Link::Wants),
            after: named(Link::After),
            before: named(Link::Before),
            conflicts: named(Link::Conflicts),
        }
    }
}

/// The set while it is put together.
struct Set {
    trust: Trust,
    daemon: Option<DaemonSpec>,
    specs: Vec<UnitSpec>,
    /// By stem.
    files: BTreeMap<UnitName, UnitFile>,
    /// Which stem a unit came from: itself, or its template.
    stem_of: BTreeMap<UnitName, UnitName>,
    broken: BTreeSet<UnitName>,
    /// Every path that was added: the same one twice is no second unit.
    seen: BTreeSet<PathBuf>,
    /// Units that exist beside the files to check: their names are known.
    neighbours: BTreeSet<UnitName>,
    diagnostics: Vec<Diagnostic>,
    /// (stem, message) of what was found between units: the instances of a template say the same.
    reported: BTreeSet<(UnitName, String)>,
    texts: BTreeMap<String, String>,
    found: BTreeMap<String, Found>,
    lost: BTreeSet<PathBuf>,
    config: Option<ConfigFound>,
}

impl Set {
    fn new(trust: Trust) -> Set {
        Set {
            trust,
            daemon: None,
            specs: Vec::new(),
            files: BTreeMap::new(),
            stem_of: BTreeMap::new(),
            broken: BTreeSet::new(),
            seen: BTreeSet::new(),
            neighbours: BTreeSet::new(),
            diagnostics: Vec::new(),
            reported: BTreeSet::new(),
            texts: BTreeMap::new(),
            found: BTreeMap::new(),
            lost: BTreeSet::new(),
            config: None,
        }
    }

    fn refuse(&mut self, file: &Path, prefix: &str, error: ReadError) {
        let code = format!("{prefix}.{}", error.code);
        self.diagnostics.push(Diagnostic::of_file(&file.display().to_string(), &code, error.why, error.help));
    }

    fn add_config(&mut self, path: &Path) {
        if !self.seen.insert(path.to_path_buf()) {
            return;
        }
        let display = path.display().to_string();
        let text = match read(path, self.trust) {
            Ok(text) => text,
            Err(error) => {
                self.config = Some(ConfigFound { file: display, text: None, spec: None });
                return self.refuse(path, "daemon", error);
            }
        };
        let parsed = daemon_file::parse(&display, &text);
        self.daemon = parsed.spec.clone();
        self.diagnostics.extend(parsed.diagnostics);
        let file = display.clone();
        self.config = Some(ConfigFound { file, text: Some(text.clone()), spec: parsed.spec });
        self.texts.insert(display, text);
    }

    fn add_dir(&mut self, dir: &Path) {
        if self.trust == Trust::Deployed
            && let Err(error) = check_dir(dir)
        {
            self.lost.insert(dir.to_path_buf());
            return self.refuse(dir, "unit", error);
        }
        // Half a listing would make the other half of the units look removed.
        let listed = std::fs::read_dir(dir).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<PathBuf>, _>>()
        });
        let mut names = match listed {
            Ok(names) => names,
            Err(cause) => {
                self.lost.insert(dir.to_path_buf());
                let why = format!("cannot read the directory: {cause}");
                return self.refuse(dir, "unit", ReadError { code: "unreadable", why, help: None });
            }
        };
        names.retain(|path| is_unit_file_name(path));
        names.sort();
        for path in &names {
            if self.files.len() >= limits::UNITS_MAX {
                let why = format!(
                    "more than {} unit files; this one and those behind it are left out",
                    limits::UNITS_MAX
                );
                return self.refuse(path, "unit", ReadError { code: "too-many-units", why, help: None });
            }
            self.add_unit(path);
        }
    }

    /// The names of the units beside this one; their files are not read.
    fn add_neighbours(&mut self, path: &Path) {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            Some(_) | None => Path::new("."),
        };
        let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
        let files =
            entries.map(|entry| entry.path()).filter(|path| is_unit_file_name(path)).take(limits::UNITS_MAX);
        let stems = files.filter_map(|path| UnitName::parse(path.file_stem()?.to_str()?).ok());
        self.neighbours.extend(stems);
    }

    fn add_unit(&mut self, path: &Path) {
        if !self.seen.insert(path.to_path_buf()) {
            return;
        }
        let display = path.display().to_string();
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name = UnitName::parse(&stem);
        if let Ok(name) = &name
            && let Some(first) = self.files.get(name)
        {
            let why = format!("a second file for the unit `{name}`; the first is {}", first.display);
            let text = read(path, self.trust).ok();
            let specs = text.as_ref().map(|text| parse(&display, &stem, text).specs).unwrap_or_default();
            self.found.insert(display, Found { text, specs });
            let help = Some("rename or delete one of them".to_string());
            return self.refuse(path, "unit", ReadError { code: "duplicate", why, help });
        }
        let parsed = match read(path, self.trust) {
            Ok(text) => {
                let parsed = parse(&display, &stem, &text);
                self.texts.insert(display.clone(), text);
                parsed
            }
            Err(error) => {
                self.refuse(path, "unit", error);
                Parsed { specs: Vec::new(), diagnostics: Vec::new(), references: Vec::new() }
            }
        };
        self.diagnostics.extend(parsed.diagnostics);
        let text = self.texts.get(&display).cloned();
        self.found.insert(display.clone(), Found { text, specs: parsed.specs.clone() });
        let Ok(name) = name else { return };
        if parsed.specs.is_empty() {
            self.broken.insert(name.clone());
        }
        self.files.insert(name.clone(), UnitFile { display, references: parsed.references });
        for spec in parsed.specs {
            self.add_spec(path, &name, spec);
        }
    }

    fn add_spec(&mut self, path: &Path, stem: &UnitName, spec: UnitSpec) {
        if let Some(first) = self.stem_of.get(&spec.name) {
            let why = format!("makes a second unit `{}`; the first comes from `{first}`", spec.name);
            return self.refuse(path, "unit", ReadError { code: "duplicate", why, help: None });
        }
        if self.specs.len() >= limits::UNITS_MAX {
            let why = format!("more than {} units; `{}` is left out", limits::UNITS_MAX, spec.name);
            return self.refuse(path, "unit", ReadError { code: "too-many-units", why, help: None });
        }
        self.stem_of.insert(spec.name.clone(), stem.clone());
        self.specs.push(spec);
    }

    fn finish(mut self) -> Loaded {
        expand(&mut self.specs);
        self.check_graph();
        self.warn_of_broken_requirements();
        let daemon = self.daemon.take();
        let mut units: Vec<Arc<UnitSpec>> = self.specs.into_iter().map(Arc::new).collect();
        units.sort_by(|a, b| a.name.cmp(&b.name));
        let place = |d: &Diagnostic| d.place.as_ref().map_or(0, |place| place.span.start);
        self.diagnostics.sort_by_cached_key(|d| (d.file.clone(), place(d)));
        Loaded {
            daemon: daemon.unwrap_or_default(),
            units,
            broken: self.broken,
            diagnostics: self.diagnostics,
            texts: self.texts,
            found: self.found,
            lost: self.lost,
            config: self.config,
        }
    }

    /// Reports what is wrong between units and leaves out those that cannot be used.
    fn check_graph(&mut self) {
        let nodes: Vec<Node> = self.specs.iter().map(Node::of).collect();
        let mut out: BTreeSet<UnitName> = BTreeSet::new();
        let known = self.broken.union(&self.neighbours).cloned().collect();
        for error in check(&nodes, &known) {
            let level = if error.is_warning() { Level::Warning } else { Level::Error };
            let stems: BTreeSet<UnitName> =
                blamed(&error).iter().filter_map(|unit| self.stem_of.get(unit).cloned()).collect();
            for stem in stems {
                self.report(level, &stem, &error);
                if level == Level::Error {
                    out.insert(stem);
                }
            }
        }
        self.check_names_in_broken_files();
        self.specs.retain(|spec| self.stem_of.get(&spec.name).is_none_or(|stem| !out.contains(stem)));
        self.broken.extend(out);
    }

    /// A file with other mistakes is told of unknown names, too: all errors come at once.
    fn check_names_in_broken_files(&mut self) {
        let made = self.specs.iter().map(|spec| spec.name.clone());
        let known: BTreeSet<UnitName> =
            self.files.keys().cloned().chain(made).chain(self.neighbours.iter().cloned()).collect();
        let nodes: Vec<Node> = self
            .broken
            .iter()
            .filter_map(|stem| self.files.get(stem).map(|file| file.as_node(stem)))
            .collect();
        for error in check(&nodes, &known) {
            let level = if error.is_warning() { Level::Warning } else { Level::Error };
            match &error {
                GraphError::Unknown { unit, .. } | GraphError::Itself { unit, .. } => {
                    self.report(level, &unit.clone(), &error)
                }
                // Between broken files these may go with the first mend.
                GraphError::Contradiction { .. } | GraphError::Cycle { .. } => {}
            }
        }
    }

    fn report(&mut self, level: Level, stem: &UnitName, error: &GraphError) {
        let Some(file) = self.files.get(stem) else { return };
        if !self.reported.insert((stem.clone(), error.to_string())) {
            return;
        }
        let place =
            file.references.iter().find(|reference| names(error, stem, reference)).map(|r| r.place.clone());
        let code = match error {
            GraphError::Unknown { .. } => "unit.unknown-dependency",
            GraphError::Itself { .. } => "unit.self-dependency",
            GraphError::Contradiction { .. } => "unit.conflict",
            GraphError::Cycle { .. } => "unit.cycle",
        };
        self.diagnostics.push(Diagnostic {
            level,
            code: code.into(),
            message: error.to_string(),
            file: file.display.clone(),
            place,
            help: error.help(),
        });
    }

    /// A unit that requires a broken one is loaded and waits: mending the other file is enough.
    fn warn_of_broken_requirements(&mut self) {
        let loaded: BTreeSet<&UnitName> =
            self.specs.iter().filter_map(|spec| self.stem_of.get(&spec.name)).collect();
        let mut warnings = Vec::new();
        for stem in loaded {
            let Some(file) = self.files.get(stem) else { continue };
            let needs = file.references.iter().filter(|r| r.key == Link::Requires.as_str());
            for reference in needs.filter(|r| self.broken.contains(&r.name)) {
                warnings.push(Diagnostic {
                    level: Level::Warning,
                    code: "unit.broken-dependency".into(),
                    message: format!(
                        "requires `{}`, whose file has errors: this unit will wait",
                        reference.name
                    ),
                    file: file.display.clone(),
                    place: Some(reference.place.clone()),
                    help: None,
                });
            }
        }
        self.diagnostics.extend(warnings);
    }
}

/// The units whose files an error belongs to.
fn blamed(error: &GraphError) -> Vec<UnitName> {
    match error {
        GraphError::Unknown { unit, .. }
        | GraphError::Itself { unit, .. }
        | GraphError::Contradiction { unit, .. } => {
            vec![unit.clone()]
        }
        GraphError::Cycle { members, .. } => members.clone(),
    }
}

/// Whether this mention is the one that the error is about. A template's name stands for
/// its instances.
fn names(error: &GraphError, stem: &UnitName, reference: &Reference) -> bool {
    let same = |name: &UnitName| {
        let template = name.as_str().rsplit_once('@').map(|(stem, _)| stem);
        *name == reference.name || template == Some(reference.name.as_str())
    };
    match error {
        GraphError::Unknown { link, name, .. } => reference.key == link.as_str() && same(name),
        GraphError::Itself { link, unit } => reference.key == link.as_str() && same(unit),
        GraphError::Contradiction { name, .. } => reference.key == Link::Conflicts.as_str() && same(name),
        GraphError::Cycle { path, members } => {
            let follows = path.windows(2).find(|pair| pair[0] == *stem).map(|pair| &pair[1]);
            match follows {
                Some(next) => reference.key != Link::Conflicts.as_str() && same(next),
                None => members.iter().any(same),
            }
        }
    }
}

/// `*.toml`, but no hidden file and no editor's leftover. A name that is not UTF-8 counts:
/// it is told as a bad name, not skipped.
fn is_unit_file_name(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default();
    name.ends_with(b".toml") && !name.starts_with(b".") && !name.starts_with(b"#")
}
