//! A unit file that a drill has broken, and the good one beside it.
//!
//! The good file is never written: it gets a second name, a broken one takes its place by rename(2), and
//! putting it back is one more rename, for which a full disk has room. What is left behind says by its name
//! what it is, so that it is found without any journal.
//!
//! Refuses: deciding which file is broken, and when it is put back (`drills`).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Behind the good text: no TOML, and whoever looks sees what it is.
const BROKEN: &str = "\n[[[ broken by a drill; it is put back when that is over\n";

/// The good file is called so meanwhile: no unit file by its ending, and hidden.
const GOOD: &str = ".before-drill";

/// It is being written.
const NEW: &str = ".broken-by-drill";

fn beside(path: &Path, ending: &str) -> io::Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "its name is no text"))?;
    Ok(path.with_file_name(format!(".{name}{ending}")))
}

/// Puts a broken file in the place of `path`, whose text is `good`.
///
/// # Errors
/// As the file system says; nothing has changed then.
pub(super) fn spoil(path: &Path, good: &str) -> io::Result<()> {
    let (kept, new) = (beside(path, GOOD)?, beside(path, NEW)?);
    for leftover in [&kept, &new] {
        match fs::remove_file(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let swap = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
        file.write_all(format!("{good}{BROKEN}").as_bytes())?;
        file.set_permissions(fs::metadata(path)?.permissions())?;
        fs::hard_link(path, &kept)?;
        fs::rename(&new, path)
    };
    let swapped = swap();
    if swapped.is_err() {
        for half in [&kept, &new] {
            let _ = fs::remove_file(half); // not all of it may be there
        }
    }
    swapped
}

/// Puts the good file back. Somebody who has written `path` meanwhile wants it so, and it stays.
///
/// # Errors
/// As the file system says; it can be tried again.
pub(super) fn restore(path: &Path, good: &str) -> io::Result<()> {
    let (kept, new) = (beside(path, GOOD)?, beside(path, NEW)?);
    let is_ours = match fs::read(path) {
        Ok(found) => found == format!("{good}{BROKEN}").as_bytes(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if !is_ours {
        let _ = fs::remove_file(&kept); // it need not be there
        return Ok(());
    }
    match fs::rename(&kept, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Somebody has tidied up: the journal has the text all the same.
            fs::write(&new, good)?;
            fs::set_permissions(&new, fs::metadata(path)?.permissions())?;
            fs::rename(&new, path)
        }
        done => done,
    }
}

/// Puts back what stands broken in `dir` and of which no journal tells. The good files, as they are called again.
pub(super) fn restore_all(dir: &Path) -> Vec<PathBuf> {
    let mut restored = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix('.')?.strip_suffix(GOOD));
        let Some(path) = name.map(|name| dir.join(name)) else { continue };
        let good = fs::read_to_string(entry.path());
        let was_broken = good.is_ok_and(|good| {
            let broken = fs::read_to_string(&path).is_ok_and(|found| found == format!("{good}{BROKEN}"));
            restore(&path, &good).is_ok() && broken
        });
        restored.extend(was_broken.then_some(path));
    }
    restored
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const TEXT: &str = "[service]\ncommand = [\"sleep\", \"1\"]\n";

    fn dir_with_a_file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("web.toml");
        fs::write(&path, TEXT).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("a mode");
        (dir, path)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("dir").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = entries.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_very_file_comes_back() {
        let (dir, path) = dir_with_a_file();
        let before = fs::metadata(&path).expect("stat");
        spoil(&path, TEXT).expect("spoils");
        assert!(fs::read_to_string(&path).expect("reads").contains("broken by a drill"));
        assert_eq!(fs::metadata(&path).expect("stat").mode(), before.mode());
        restore(&path, TEXT).expect("restores");
        let after = fs::metadata(&path).expect("stat");
        assert_eq!(
            (after.ino(), after.mode(), after.mtime_nsec()),
            (before.ino(), before.mode(), before.mtime_nsec())
        );
        assert_eq!(names(dir.path()), ["web.toml"]);
        restore(&path, TEXT).expect("twice is harmless");
    }

    #[test]
    fn a_link_stays_a_link() {
        let (dir, path) = dir_with_a_file();
        let link = dir.path().join("linked.toml");
        std::os::unix::fs::symlink("web.toml", &link).expect("links");
        spoil(&link, TEXT).expect("spoils");
        assert_eq!(fs::read_to_string(&path).expect("reads"), TEXT, "what it names is not touched");
        restore(&link, TEXT).expect("restores");
        assert_eq!(fs::read_link(&link).expect("a link"), Path::new("web.toml"));
    }

    #[test]
    fn what_somebody_has_written_meanwhile_stays() {
        let (dir, path) = dir_with_a_file();
        spoil(&path, TEXT).expect("spoils");
        fs::write(&path, "mine").expect("writes");
        restore(&path, TEXT).expect("leaves it");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "mine");
        assert_eq!(names(dir.path()), ["web.toml"]);
        spoil(&path, "mine").expect("spoils");
        fs::remove_file(&path).expect("removes");
        restore(&path, "mine").expect("leaves it");
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn without_its_second_name_it_is_written_from_the_journal() {
        let (dir, path) = dir_with_a_file();
        spoil(&path, TEXT).expect("spoils");
        fs::remove_file(dir.path().join(".web.toml.before-drill")).expect("removes");
        restore(&path, TEXT).expect("restores");
        assert_eq!(fs::read_to_string(&path).expect("reads"), TEXT);
        assert_eq!(names(dir.path()), ["web.toml"]);
    }

    #[test]
    fn without_a_journal_it_is_found_by_its_name() {
        let (dir, path) = dir_with_a_file();
        assert!(restore_all(dir.path()).is_empty());
        spoil(&path, TEXT).expect("spoils");
        assert_eq!(restore_all(dir.path()), std::slice::from_ref(&path));
        assert_eq!(fs::read_to_string(&path).expect("reads"), TEXT);
        // We died between the second name and the broken file.
        fs::hard_link(&path, dir.path().join(".web.toml.before-drill")).expect("links");
        assert!(restore_all(dir.path()).is_empty(), "it was not broken");
        assert_eq!(names(dir.path()), ["web.toml"]);
    }
}
