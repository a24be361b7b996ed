//! Comparing a text with the file that holds it; `BLESS=1` writes the file anew.
//!
//! Refuses: judging what is in it.

/// `path` is relative to the crate.
pub fn golden(path: &str, text: &str) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("the directory");
        return std::fs::write(&file, text).expect("the golden file is written");
    }
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    if let Some((line, (old, new))) =
        known.lines().chain([""]).zip(text.lines().chain([""])).enumerate().find(|(_, (old, new))| old != new)
    {
        panic!(
            "{path}:{}: is not what the code says\n  file: {old}\n  code: {new}\nBLESS=1 rewrites it",
            line + 1
        );
    }
    assert_eq!(known, text, "{path}: BLESS=1 rewrites it");
}
