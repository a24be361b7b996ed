//! Our binary and paths as somebody can type them into the shell that started us.
//!
//! Refuses: `upright` where the shell would find nothing under that name, or another file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// The shortest word that starts `exe` from here: its name where PATH leads to this very file,
/// else the path from the working directory, else the whole path.
pub fn program(exe: &Path) -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let here = std::env::current_dir().ok().and_then(|dir| dir.canonicalize().ok());
    word(&shortest(exe, &path, here.as_deref()))
}

fn shortest(exe: &Path, path: &OsStr, here: Option<&Path>) -> PathBuf {
    let name = exe.file_name().unwrap_or_default();
    let mut found = std::env::split_paths(path).map(|dir| dir.join(name)).filter(|file| file.is_file());
    if found.next().and_then(|first| first.canonicalize().ok()).is_some_and(|first| first == exe) {
        return name.into();
    }
    let below = here.and_then(|here| exe.strip_prefix(here).ok());
    match below {
        // A bare name would be looked for in PATH only.
        Some(file) if file.components().count() == 1 => Path::new(".").join(file),
        Some(file) => file.to_path_buf(),
        None => exe.to_path_buf(),
    }
}

/// A path as one word of a shell.
pub fn word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@%:,=".contains(c);
    if text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_starts_the_same_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path().canonicalize().expect("its real path");
        let [clone, installed] = ["clone", "bin"].map(|name| dir.join(name));
        let exe = clone.join("target/upright");
        fs::create_dir_all(clone.join("target")).expect("a directory");
        fs::create_dir_all(&installed).expect("a directory");
        for file in [&exe, &installed.join("upright")] {
            fs::write(file, "").expect("a file");
        }
        let nowhere = OsStr::new("");
        let path = installed.as_os_str();
        assert_eq!(shortest(&exe, nowhere, Some(&clone)), Path::new("target/upright"));
        assert_eq!(shortest(&exe, path, Some(&clone)), Path::new("target/upright"), "another file");
        assert_eq!(shortest(&exe, path, Some(&clone.join("target"))), Path::new("./upright"));
        assert_eq!(shortest(&exe, path, Some(&installed)), exe);
        assert_eq!(shortest(&exe, nowhere, None), exe);
        assert_eq!(shortest(&installed.join("upright"), path, Some(&clone)), Path::new("upright"));
    }

    #[test]
    fn a_word_is_one_word() {
        assert_eq!(word(Path::new("/tmp/upright-demo-x1")), "/tmp/upright-demo-x1");
        assert_eq!(word(Path::new("/my home/it's")), r"'/my home/it'\''s'");
    }
}
