//! Every diagnostic as the user sees it: `tests/diag/<case>/` holds unit files and, in
//! `expected.txt`, what `upright check` says of them. `BLESS=1` rewrites the answers.
//! What cannot be stored (FIFOs, devices, huge files, modes) is made here at run time.
//!
//! Refuses: judging texts by eye only once; a changed word shows in review.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use upright::cli::check::{Format, run};
use upright::config::{Asked, Home, load};
use upright::unit::Colour;

const PLAIN: Format = Format::Text(Colour::Plain);

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diag");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root).expect("tests/diag").map(|e| e.expect("entry").path()).collect();
    cases.sort();
    cases
}

/// Copies the unit files to a place with known owner and modes; the names shown are then
/// relative to it.
fn checked(case: &Path) -> (String, u8) {
    let temp = tempfile::tempdir().expect("tempdir");
    let dir = temp.path().join("units");
    fs::create_dir(&dir).expect("units");
    for entry in fs::read_dir(case).expect("case") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|end| end == "toml") {
            let to = dir.join(path.file_name().expect("name"));
            fs::write(&to, fs::read(&path).expect("unit file")).expect("copy");
            fs::set_permissions(&to, Permissions::from_mode(0o644)).expect("mode");
        }
    }
    let mut paths = vec![dir.clone()];
    if dir.join("upright.toml").exists() {
        paths.insert(0, dir.join("upright.toml"));
    }
    let (text, code) = run(&paths, &Asked::default(), PLAIN);
    (text.replace(&format!("{}/", temp.path().display()), ""), code)
}

#[test]
fn every_case_says_what_is_expected() {
    let mut wrong = Vec::new();
    let cases = cases();
    assert!(cases.len() >= 25, "only {} cases", cases.len());
    for case in &cases {
        let (text, code) = checked(case);
        let found = format!("{text}exit {code}\n");
        let file = case.join("expected.txt");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&file, &found).expect("bless");
        } else if fs::read_to_string(&file).unwrap_or_default() != found {
            wrong.push(format!("{}: found\n{found}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "run with BLESS=1 when this is meant:\n{}", wrong.join("\n"));
}

#[test]
fn checking_twice_says_the_same() {
    for case in cases() {
        assert_eq!(checked(&case), checked(&case), "{}", case.display());
    }
}

/// A home whose units directory holds one good unit, `good.toml`.
fn home() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().expect("tempdir");
    let units = temp.path().join("units");
    fs::create_dir(&units).expect("units");
    fs::set_permissions(&units, Permissions::from_mode(0o755)).expect("mode");
    write(&units.join("good.toml"), b"[service]\ncommand = [\"true\"]\n", 0o644);
    (temp, units)
}

fn write(path: &Path, bytes: &[u8], mode: u32) {
    fs::write(path, bytes).expect("write");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("mode");
}

/// Loads the home: the good unit must be there, and exactly one error with this code and
/// these words, about this file.
fn expect_one(temp: &TempDir, file: &str, code: &str, words: &str) {
    let loaded = load(&Home::under(temp.path()));
    let names: Vec<&str> = loaded.units.iter().map(|unit| unit.name.as_str()).collect();
    assert_eq!(names, ["good"], "{:?}", loaded.diagnostics);
    let [found] = loaded.diagnostics.as_slice() else { panic!("{:?}", loaded.diagnostics) };
    assert_eq!(found.code, code);
    assert!(found.file.ends_with(file), "{found:?}");
    assert!(found.message.contains(words), "{found:?}");
}

#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let (temp, units) = home();
    nix::unistd::mkfifo(&units.join("fifo.toml"), nix::sys::stat::Mode::from_bits_truncate(0o644))
        .expect("mkfifo");
    expect_one(&temp, "fifo.toml", "unit.not-a-file", "a FIFO");
}

#[test]
fn a_device_behind_a_link_is_refused() {
    let (temp, units) = home();
    symlink("/dev/zero", units.join("zero.toml")).expect("symlink");
    expect_one(&temp, "zero.toml", "unit.not-a-file", "a device");
}

#[test]
fn a_directory_is_refused() {
    let (temp, units) = home();
    fs::create_dir(units.join("dir.toml")).expect("dir");
    expect_one(&temp, "dir.toml", "unit.not-a-file", "a directory");
}

#[test]
fn a_socket_is_refused() {
    let (temp, units) = home();
    let _listener = std::os::unix::net::UnixListener::bind(units.join("s.toml")).expect("bind");
    expect_one(&temp, "s.toml", "unit.not-a-file", "a socket");
}

#[test]
fn a_sparse_gigabyte_is_refused_without_reading() {
    let (temp, units) = home();
    let path = units.join("big.toml");
    File::create(&path).and_then(|file| file.set_len(1 << 30)).expect("sparse");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("mode");
    let before = std::time::Instant::now();
    expect_one(&temp, "big.toml", "unit.too-large", "larger than 256 KiB");
    assert!(before.elapsed().as_secs() < 2, "it was read");
}

#[test]
fn binary_junk_is_one_clear_error() {
    let (temp, units) = home();
    write(&units.join("junk.toml"), b"\x7fELF\x02\x01\x01\x00\x00\x00", 0o644);
    expect_one(&temp, "junk.toml", "unit.binary", "not text");
    write(&units.join("junk.toml"), b"[service]\ncommand = [\"\xff\xfe\"]\n", 0o644);
    expect_one(&temp, "junk.toml", "unit.not-utf8", "byte 22");
}

#[test]
fn a_link_that_leads_nowhere_is_told() {
    let (temp, units) = home();
    symlink("/nonexistent/unit", units.join("lost.toml")).expect("symlink");
    expect_one(&temp, "lost.toml", "unit.unreadable", "cannot read: No such file");
}

#[test]
fn a_link_to_a_good_file_is_followed() {
    let (temp, units) = home();
    symlink(units.join("good.toml"), units.join("second.toml")).expect("symlink");
    let loaded = load(&Home::under(temp.path()));
    assert_eq!((loaded.units.len(), loaded.errors()), (2, 0), "{:?}", loaded.diagnostics);
}

#[test]
fn leftovers_of_editors_are_skipped() {
    let (temp, units) = home();
    for name in [".good.toml", ".good.toml.swp", "good.toml~", "#good.toml#", "good.toml.bak", "README"] {
        write(&units.join(name), b"junk", 0o644);
    }
    let loaded = load(&Home::under(temp.path()));
    assert_eq!((loaded.units.len(), loaded.diagnostics.len()), (1, 0), "{:?}", loaded.diagnostics);
}

/// True when the process is root; otherwise says that the test is skipped.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root, who alone must not trust files that others can write");
    }
    root
}

#[test]
fn as_root_a_file_that_others_can_write_is_refused() {
    if !is_root() {
        return;
    }
    for mode in [0o666, 0o646, 0o664, 0o777] {
        let (temp, units) = home();
        write(&units.join("open.toml"), b"[service]\ncommand = [\"true\"]\n", mode);
        expect_one(&temp, "open.toml", "unit.unsafe-file", &format!("mode {mode:04o}"));
    }
}

#[test]
fn as_root_a_file_of_somebody_else_is_refused() {
    if !is_root() {
        return;
    }
    let (temp, units) = home();
    write(&units.join("theirs.toml"), b"[service]\ncommand = [\"true\"]\n", 0o644);
    std::os::unix::fs::chown(units.join("theirs.toml"), Some(1000), None).expect("chown");
    expect_one(&temp, "theirs.toml", "unit.unsafe-file", "belongs to user 1000");
}

#[test]
fn as_root_a_directory_that_others_can_write_gives_no_units() {
    if !is_root() {
        return;
    }
    let (temp, units) = home();
    fs::set_permissions(&units, Permissions::from_mode(0o777)).expect("mode");
    let loaded = load(&Home::under(temp.path()));
    assert!(loaded.units.is_empty());
    assert_eq!(loaded.diagnostics[0].code, "unit.unsafe-directory");
}

#[test]
fn the_same_stem_in_two_directories_is_an_error_on_the_second() {
    let (temp, units) = home();
    let second = temp.path().join("more");
    fs::create_dir(&second).expect("dir");
    fs::set_permissions(&second, Permissions::from_mode(0o755)).expect("mode");
    write(&second.join("good.toml"), b"[service]\ncommand = [\"false\"]\n", 0o644);
    let mut home = Home::under(temp.path());
    home.unit_dirs = vec![units, second];
    let loaded = load(&home);
    assert_eq!(loaded.units[0].service.command.argv, ["true"]);
    assert_eq!(loaded.diagnostics[0].code, "unit.duplicate");
    assert!(loaded.diagnostics[0].file.ends_with("more/good.toml"));
}

#[test]
fn one_file_is_checked_among_its_neighbours() {
    let (temp, units) = home();
    write(
        &units.join("web.toml"),
        b"[unit]\nrequires = [\"good\"]\n[service]\ncommand = [\"true\"]\n",
        0o644,
    );
    let (text, code) = run(&[units.join("web.toml")], &Asked::default(), PLAIN);
    assert_eq!((text.as_str(), code), ("1 unit, 0 errors, 0 warnings\n", 0));
    drop(temp);
}

#[test]
fn a_path_that_does_not_exist_is_an_error() {
    let (temp, _) = home();
    let (text, code) = run(&[temp.path().join("nowhere")], &Asked::default(), PLAIN);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("No such file"), "{text}");
}

#[test]
fn the_shipped_units_have_no_errors_and_only_what_is_not_in_force_is_warned_of() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("units");
    let mut stems = Vec::new();
    for entry in fs::read_dir(dir).expect("units") {
        let path = entry.expect("entry").path();
        if path.extension().is_none_or(|end| end != "toml") {
            continue;
        }
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("stem").to_string();
        let text = fs::read_to_string(&path).expect("text");
        let parsed = upright::unit::parse(&path.display().to_string(), &stem, &text);
        assert_eq!(parsed.specs.len(), 1, "{:?}", parsed.diagnostics);
        for diagnostic in &parsed.diagnostics {
            assert_eq!(diagnostic.code, "unit.not-in-force", "{diagnostic:?}");
        }
        stems.push(stem);
    }
    stems.sort();
    assert_eq!(stems, ["backend", "postgres", "redis"]);
}

#[test]
fn the_answer_in_json_has_place_code_and_help() {
    let (temp, units) = home();
    write(&units.join("bad.toml"), b"[service]\ncomand = [\"true\"]\n", 0o644);
    let (text, code) = run(std::slice::from_ref(&units), &Asked::default(), Format::Json);
    assert_eq!(code, 2);
    let value: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!(value["units"], serde_json::json!(["good"]));
    let first =
        value["diagnostics"].as_array().expect("array").iter().find(|d| d["line"] == 2).expect("line 2");
    assert_eq!(first["code"], "unit.unknown-key");
    assert_eq!(first["column"], 1);
    assert_eq!(first["help"], "did you mean `command`?");
    drop(temp);
}
