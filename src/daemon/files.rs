//! The unit files as the engine is to know them: what is right, and of what is broken the
//! last version that was right.
//!
//! Refuses: comparing with what runs; the engine is given the whole set.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::alert::Channels;
use crate::api::types::ConfigError;
use crate::base::name::UnitName;
use crate::config::load::{Loaded, load};
use crate::config::paths::Home;
use crate::unit::daemon_file::DaemonSpec;
use crate::unit::diag::Diagnostic;
use crate::unit::spec::UnitSpec;

/// One reading of the files.
pub struct Reading {
    pub daemon: DaemonSpec,
    pub units: Vec<Arc<UnitSpec>>,
    pub errors: Vec<ConfigError>,
    /// The channels of alerts; none when `upright.toml` is broken: then they stay as they were.
    pub channels: Option<Channels>,
}

/// Reads all files of `home`. A unit whose file is broken keeps the spec it has in `good`.
pub fn read(home: &Home, good: &BTreeMap<UnitName, Arc<UnitSpec>>) -> Reading {
    let Loaded { daemon, mut units, broken, diagnostics, .. } = load(home);
    for (name, spec) in good {
        let template = name.as_str().rsplit_once('@').map(|(stem, _)| stem);
        let is_broken = broken.iter().any(|stem| stem == name || template == Some(stem.as_str()));
        if is_broken && units.iter().all(|unit| unit.name != *name) {
            units.push(Arc::clone(spec));
        }
    }
    units.sort_by(|a, b| a.name.cmp(&b.name));
    let config = home.config_file.display().to_string();
    let is_broken = diagnostics.iter().any(|found| found.is_error() && found.file == config);
    let channels = (!is_broken).then(|| Channels::of(&daemon, &home.log_dir));
    let errors = diagnostics.iter().filter(|found| found.is_error()).map(to_error).collect();
    Reading { daemon, units, errors, channels }
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
