//! Installing: what `packaging/install.sh` puts where, and whether systemd understands it.
//!
//! Refuses: this machine's systemd and its directories. Everything goes into a temporary one.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use support::{Home, UPRIGHT, skip};

fn install(binary: &str, variables: &[(&str, &Path)]) -> Output {
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/install.sh"));
    for name in ["DESTDIR", "PREFIX", "SYSCONFDIR", "UNITDIR"] {
        script.env_remove(name);
    }
    script.arg(binary).envs(variables.iter().copied()).output().expect("install.sh")
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).expect("a directory") {
            let path = entry.expect("entry").path();
            if path.is_dir() && !path.is_symlink() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(dir).expect("below").to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn says(binary: &Path, words: &[&str]) -> String {
    let output = Command::new(binary).args(words).output().expect("the installed binary");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_package_has_one_binary_its_names_and_its_service() {
    let dest = tempfile::tempdir().expect("a directory");
    let before = install(UPRIGHT, &[("DESTDIR", dest.path())]);
    assert!(before.status.success(), "{before:?}");
    let unit = dest.path().join("etc/upright/units/web.toml");
    fs::write(&unit, "mine").expect("a unit file");
    let again = install(UPRIGHT, &[("DESTDIR", dest.path())]);
    assert!(again.status.success(), "{again:?}");
    assert_eq!(
        files_below(dest.path()),
        [
            "etc/systemd/system/upright.service",
            "etc/upright/units/web.toml",
            "usr/local/bin/upright",
            "usr/local/bin/uprightctl",
            "usr/local/bin/uprightd",
        ]
    );
    assert_eq!(fs::read_to_string(&unit).expect("still there"), "mine");
    for dir in ["etc/upright", "etc/upright/units"] {
        let mode = fs::metadata(dest.path().join(dir)).expect("made").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "{dir}");
    }
    let bin = dest.path().join("usr/local/bin");
    assert!(says(&bin.join("upright"), &["--version"]).starts_with("upright "));
    assert!(says(&bin.join("uprightctl"), &["--help"]).contains("Usage: upright"));
    assert!(says(&bin.join("uprightd"), &["--help"]).contains("daemon"));
}

#[test]
fn what_cannot_be_installed_says_so() {
    let dest = tempfile::tempdir().expect("a directory");
    let output = install("no-such-binary", &[("DESTDIR", dest.path())]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cargo build --release"), "{said}");
    assert_eq!(files_below(dest.path()), Vec::<String>::new());
}

#[test]
fn systemd_understands_the_service() {
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    if skip(analyze.is_err().then_some("systemd-analyze")) {
        return;
    }
    // `verify` looks for the binary, so the prefix is a real one.
    let dir = tempfile::tempdir().expect("a directory");
    let (prefix, etc): (PathBuf, PathBuf) = (dir.path().join("usr"), dir.path().join("etc"));
    let installed = install(UPRIGHT, &[("PREFIX", &prefix), ("SYSCONFDIR", &etc)]);
    assert!(installed.status.success(), "{installed:?}");
    let service = etc.join("systemd/system/upright.service");
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&service)
        .env("XDG_RUNTIME_DIR", dir.path())
        .output()
        .expect("systemd-analyze");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("upright.service"), "{said}");
}

/// The service file keeps the daemon from being killed for want of memory. Units must not
/// inherit that: with everything protected, nothing is.
#[test]
fn units_do_not_inherit_the_daemon_s_place_in_the_oom_order() {
    let lowers = "{ echo -900 > /proc/self/oom_score_adj; } 2>/dev/null";
    let may = Command::new("sh").args(["-c", lowers]).status().expect("sh").success();
    if skip((!may).then_some("the right to lower oom_score_adj (CAP_SYS_RESOURCE)")) {
        return;
    }
    let mut home = Home::new();
    let command = r#"command = ["sleep", "1000"]"#;
    home.unit("plain", &format!("[service]\n{command}\n"));
    home.unit("chosen", &format!("[service]\n{command}\noom_score_adjust = -5\n"));
    let lowered = format!("{lowers} && exec \"$@\"");
    home.daemon_through(&["sh", "-c", &lowered, "sh"]);
    let score = |pid: i32| {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("its score").trim().to_string()
    };
    for (unit, wanted) in [("plain", "0"), ("chosen", "-5")] {
        home.await_state(unit, "active", Duration::from_secs(10));
        assert_eq!(score(home.pid(unit)), wanted, "{unit}");
    }
    assert_eq!(score(home.child().as_raw()), "-900", "the daemon itself");
    home.stop();
}
