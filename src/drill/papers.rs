//! The papers of a drill, beside its samples: `report.md`, `report.html`, `verdict.json`, `junit.xml`.
//!
//! Refuses: half a paper: each is written aside and put in its place.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::drill::verdict::Verdict;
use crate::drill::{html, report};

/// Writes all of them into `dir`.
///
/// # Errors
/// As the file system says, with the path.
pub fn write(dir: &Path, verdict: &Verdict) -> io::Result<()> {
    let named = |path: PathBuf| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    fs::create_dir_all(dir).map_err(named(dir.to_path_buf()))?;
    let json = serde_json::to_string_pretty(verdict)?;
    let papers = [
        ("report.md", report::markdown(verdict)),
        ("report.html", html::page(verdict)),
        ("verdict.json", json + "\n"),
        ("junit.xml", report::junit(verdict)),
    ];
    for (name, text) in papers {
        let path = dir.join(name);
        let aside = dir.join(format!("{name}.new"));
        fs::write(&aside, text).and_then(|()| fs::rename(&aside, &path)).map_err(named(path))?;
    }
    Ok(())
}
