//! Another build of this source: all the same, but for texts that are given. Daemons of two
//! builds meet only where somebody makes the second one.
//!
//! Refuses: patches that do not fit. A text that is not there exactly once fails the test.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::UPRIGHT;

/// Name and version, as they stand in the manifest and in the lock file.
const PACKAGE: &str = concat!("name = \"upright\"\nversion = \"", env!("CARGO_PKG_VERSION"), "\"");

/// In this file of the source, this text becomes that one.
pub struct Patch {
    pub file: &'static str,
    pub text: &'static str,
    pub with: String,
}

/// Builds it with the profile of the binary under test, beside it, under another name: what it
/// depends on is compiled already. None where cargo cannot do that (it is not there, or wants to
/// download something); it has said why.
pub fn build(name: &str, version: &str, patches: &[Patch]) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let profile_dir = Path::new(UPRIGHT).parent().expect("a directory");
    let target = profile_dir.parent().expect("the target directory");
    let copy = target.join("builds").join(name);
    let mut files = BTreeMap::new();
    for file in ["Cargo.toml", "Cargo.lock"] {
        files.insert(PathBuf::from(file), fs::read(source.join(file)).expect("a file of the source"));
    }
    read_below(source, Path::new("src"), &mut files);
    // Named in the manifest, and built into the binary, so they have to be there.
    for dir in ["benches", "examples/drills"] {
        read_below(source, Path::new(dir), &mut files);
    }
    let package = format!("name = \"upright\"\nversion = \"{version}\"");
    let own = [
        Patch { file: "Cargo.toml", text: PACKAGE, with: package.clone() },
        Patch { file: "Cargo.lock", text: PACKAGE, with: package },
        Patch { file: "Cargo.toml", text: "default-run = \"upright\"\n", with: String::new() },
        Patch {
            file: "Cargo.toml",
            text: "[[bin]]\nname = \"upright\"",
            with: format!("[[bin]]\nname = \"upright-{name}\""),
        },
    ];
    own.iter().chain(patches).for_each(|patch| apply(patch, &mut files));
    write_changed(&copy, &files);
    let profile = match profile_dir.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "test",
        Some(other) => other,
    };
    let output = Command::new(env!("CARGO"))
        .current_dir(&copy)
        .args(["build", "--offline", "--locked", "--quiet", "--bin", &format!("upright-{name}")])
        .args(["--profile", profile, "--target-dir"])
        .arg(target)
        .output();
    match output {
        Ok(output) if output.status.success() => Some(profile_dir.join(format!("upright-{name}"))),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("offline") || said.contains("network"), "the patched source: {said}");
            eprintln!("{said}");
            None
        }
        Err(cause) => {
            eprintln!("{}: {cause}", env!("CARGO"));
            None
        }
    }
}

fn read_below(source: &Path, dir: &Path, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(source.join(dir)).expect("a directory of the source") {
        let entry = entry.expect("an entry");
        let path = dir.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            read_below(source, &path, files);
        } else {
            files.insert(path, fs::read(entry.path()).expect("a file of the source"));
        }
    }
}

fn apply(patch: &Patch, files: &mut BTreeMap<PathBuf, Vec<u8>>) {
    let bytes = files.get_mut(Path::new(patch.file)).unwrap_or_else(|| panic!("no {}", patch.file));
    let text = std::str::from_utf8(bytes).expect("source is text");
    assert_eq!(text.matches(patch.text).count(), 1, "{}: {:?} is not there once", patch.file, patch.text);
    *bytes = text.replace(patch.text, &patch.with).into_bytes();
}

/// What is as it was keeps its time: cargo would compile it again.
fn write_changed(copy: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    let mut there = BTreeMap::new();
    if copy.join("src").exists() {
        read_below(copy, Path::new("src"), &mut there);
    }
    for gone in there.keys().filter(|path| !files.contains_key(*path)) {
        fs::remove_file(copy.join(gone)).expect("a file of ours");
    }
    for (path, bytes) in files {
        let to = copy.join(path);
        if fs::read(&to).ok().as_ref() != Some(bytes) {
            fs::create_dir_all(to.parent().expect("a parent")).expect("a directory");
            fs::write(to, bytes).expect("a file");
        }
    }
}
