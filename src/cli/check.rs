//! `upright check [PATH…]`: every error and warning of the files, offline.
//!
//! Refuses: talking to a daemon, and writing to the terminal (the caller does).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::config::{Asked, Home, Loaded, Surroundings, load, load_paths};
use crate::unit::diag::{Diagnostic, Level};
use crate::unit::{Colour, render};

/// 0: usable, warnings allowed. 2: a file is invalid (contract, exit codes).
const EXIT_OK: u8 = 0;
const EXIT_INVALID: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text(Colour),
    Json,
}

/// Checks the files and directories of `paths`; without any the home that `asked` names.
/// The answer is the text for standard output, ending in a newline, and the exit code.
pub fn run(paths: &[PathBuf], asked: &Asked, format: Format) -> (String, u8) {
    let mut looked_in = paths.to_vec();
    let loaded = if paths.is_empty() {
        match Home::resolve(asked, &Surroundings::of_process()) {
            Ok(home) => {
                looked_in.clone_from(&home.unit_dirs);
                load(&home)
            }
            Err(error) => return (format!("{error}\n"), EXIT_INVALID),
        }
    } else {
        load_paths(paths)
    };
    let code = if loaded.errors() > 0 { EXIT_INVALID } else { EXIT_OK };
    let text = match format {
        Format::Text(colour) => as_text(&loaded, &looked_in, colour),
        Format::Json => format!("{:#}\n", as_json(&loaded)),
    };
    (text, code)
}

/// The same of one unit's file only; `stem` is its name without `.toml`.
pub fn of_file(loaded: &Loaded, stem: &str, format: Format) -> String {
    let mut only = Loaded { units: Vec::new(), ..loaded.clone() };
    only.diagnostics.retain(|diagnostic| is_file_of(&diagnostic.file, stem));
    match format {
        Format::Text(colour) => as_text(&only, &[], colour),
        Format::Json => format!("{:#}\n", as_json(&only)),
    }
}

/// Whether this is the file of the unit or template `stem`.
pub fn is_file_of(file: &str, stem: &str) -> bool {
    Path::new(file).file_stem().is_some_and(|found| found == stem)
}

fn as_text(loaded: &Loaded, looked_in: &[PathBuf], colour: Colour) -> String {
    let mut by_file: BTreeMap<&str, Vec<Diagnostic>> = BTreeMap::new();
    for diagnostic in &loaded.diagnostics {
        by_file.entry(&diagnostic.file).or_default().push(diagnostic.clone());
    }
    let mut out = String::new();
    for (file, diagnostics) in by_file {
        let text = loaded.texts.get(file).map_or("", String::as_str);
        out.push_str(&render(&diagnostics, text, colour));
    }
    if loaded.units.is_empty() && loaded.diagnostics.is_empty() {
        let places: Vec<String> = looked_in.iter().map(|path| path.display().to_string()).collect();
        out.push_str(&format!("no unit files in {}\n", places.join(", ")));
    }
    out.push_str(&summary(loaded));
    out.push('\n');
    out
}

/// `3 units, 0 errors, 2 warnings`
fn summary(loaded: &Loaded) -> String {
    let counted = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let units = counted(loaded.units.len(), "unit");
    format!("{units}, {}, {}", counted(loaded.errors(), "error"), counted(loaded.warnings(), "warning"))
}

fn as_json(loaded: &Loaded) -> Value {
    let units: Vec<&str> = loaded.units.iter().map(|unit| unit.name.as_str()).collect();
    let diagnostics: Vec<Value> = loaded.diagnostics.iter().map(one_as_json).collect();
    json!({
        "schema_version": 1,
        "units": units,
        "errors": loaded.errors(),
        "warnings": loaded.warnings(),
        "diagnostics": diagnostics,
    })
}

fn one_as_json(diagnostic: &Diagnostic) -> Value {
    let level = match diagnostic.level {
        Level::Error => "error",
        Level::Warning => "warning",
    };
    let place = diagnostic.place.as_ref();
    json!({
        "level": level,
        "code": diagnostic.code,
        "message": diagnostic.message,
        "file": diagnostic.file,
        "line": place.map(|place| place.line),
        "column": place.map(|place| place.column),
        "start": place.map(|place| place.span.start),
        "end": place.map(|place| place.span.end),
        "help": diagnostic.help,
    })
}
