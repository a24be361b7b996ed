//! The files as the engine is to know them: what is right, and of what is not the last version
//! that was.
//!
//! Refuses: comparing with what runs; the engine is given the whole set.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::types::ConfigError;
use crate::base::name::UnitName;
use crate::config::load::{ConfigFound, Loaded};
use crate::config::merge::merge;
use crate::config::paths::Home;
use crate::unit::daemon_file::{self, DaemonSpec};
use crate::unit::diag::Diagnostic;
use crate::unit::spec::UnitSpec;

/// One reading of the files: a complete set.
#[derive(Clone, Debug)]
pub struct Reading {
    pub daemon: DaemonSpec,
    pub units: Vec<Arc<UnitSpec>>,
    /// Unit → its file.
    pub origin: BTreeMap<UnitName, String>,
    /// File → the text of it that is in force with this set.
    pub good: BTreeMap<String, String>,
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigError>,
}

/// What the files came to, given what was in force (`good`: file → text).
pub fn judge(loaded: Loaded, good: &BTreeMap<String, String>) -> Reading {
    let Loaded { found, lost, config, diagnostics, .. } = loaded;
    let (configs, units): (BTreeMap<_, _>, BTreeMap<_, _>) =
        good.clone().into_iter().partition(|(file, _)| file.starts_with(CONFIG_MARK));
    let merged = merge(&found, &units, &lost);
    let mut errors: Vec<ConfigError> = Vec::new();
    let mut warnings: Vec<ConfigError> = Vec::new();
    for diagnostic in &diagnostics {
        if diagnostic.is_error() {
            errors.push(to_error(diagnostic))
        } else {
            warnings.push(to_error(diagnostic))
        }
    }
    errors.extend(merged.needed.iter().map(|file| still_needed(file)));
    errors
        .extend(lost.iter().filter_map(|dir| lost_directory(dir, &merged.good, &errors)).collect::<Vec<_>>());
    let mut in_force = merged.good;
    let daemon = daemon_in_force(config, &configs, &mut in_force);
    Reading { daemon, units: merged.units, origin: merged.origin, good: in_force, errors, warnings }
}

/// What was in force when an engine died, whatever the files say now.
pub fn in_force(home: &Home, good: &BTreeMap<String, String>) -> Reading {
    let nothing = Loaded {
        daemon: DaemonSpec::default(),
        units: Vec::new(),
        broken: BTreeSet::new(),
        diagnostics: Vec::new(),
        texts: BTreeMap::new(),
        found: BTreeMap::new(),
        lost: good.keys().filter_map(|file| Path::new(file).parent()).map(PathBuf::from).collect(),
        config: Some(ConfigFound { file: home.config_file.display().to_string(), text: None, spec: None }),
    };
    let reading = judge(nothing, good);
    Reading { errors: Vec::new(), warnings: Vec::new(), ..reading }
}

/// What tells the config file from unit files among the last good texts: `--config` may name it as
/// it likes, also like a unit.
const CONFIG_MARK: &str = "config:";

/// The config file's meaning: now, or the last time that it had one. No file is no mistake.
fn daemon_in_force(
    config: Option<ConfigFound>,
    configs: &BTreeMap<String, String>,
    good: &mut BTreeMap<String, String>,
) -> DaemonSpec {
    let Some(ConfigFound { file, text, spec }) = config else { return DaemonSpec::default() };
    let key = format!("{CONFIG_MARK}{file}");
    if let (Some(text), Some(spec)) = (text, spec) {
        good.insert(key, text);
        return spec;
    }
    let Some(text) = configs.get(&key) else { return DaemonSpec::default() };
    let Some(spec) = daemon_file::parse(&file, text).spec else { return DaemonSpec::default() };
    good.insert(key, text.clone());
    spec
}

fn still_needed(file: &str) -> ConfigError {
    ConfigError {
        file: file.to_string(),
        line: None,
        column: None,
        code: "unit.still-needed".to_string(),
        message: "the file is gone, but another unit names this one: its last good version stays in force"
            .to_string(),
        help: Some(
            "put it back, or drop its name from the others; `upright check` says from which".to_string(),
        ),
    }
}

/// A directory that is not there any more although units of it are in force.
fn lost_directory(
    dir: &Path,
    good: &BTreeMap<String, String>,
    errors: &[ConfigError],
) -> Option<ConfigError> {
    let file = dir.display().to_string();
    let is_told = errors.iter().any(|error| error.file == file);
    let had_units = good.keys().any(|file| Path::new(file).parent() == Some(dir));
    (had_units && !is_told).then(|| ConfigError {
        file,
        line: None,
        column: None,
        code: "unit.directory-gone".to_string(),
        message: "the unit directory is gone: what was in force of it stays in force".to_string(),
        help: Some("put it back; an empty directory means that there are no units".to_string()),
    })
}

fn to_error(found: &Diagnostic) -> ConfigError {
    ConfigError {
        file: found.file.clone(),
        line: found.place.as_ref().map(|place| place.line),
        column: found.place.as_ref().map(|place| place.column),
        code: found.code.clone(),
        message: found.message.clone(),
        help: found.help.clone(),
    }
}

/// `units/web.toml:3:1: unknown key …`
pub fn sentence(error: &ConfigError) -> String {
    match (error.line, error.column) {
        (Some(line), Some(column)) => format!("{}:{line}:{column}: {}", error.file, error.message),
        (Some(_) | None, _) => format!("{}: {}", error.file, error.message),
    }
}
