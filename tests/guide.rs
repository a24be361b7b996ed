//! The commands of docs/operations/guide.md, as they stand there, one after the other, in one shell.
//!
//! Refuses: what needs root or a service manager. Those blocks are `console`, and nobody runs them here.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{UPRIGHT, skip_tool};

/// What a person would do that leaves the guide in the middle.
const LEAVE: &str = "trap 'kill -TERM %1 && wait %1' EXIT";

#[test]
fn every_command_of_the_guide_works_as_typed() {
    let bash = Command::new("bash").arg("--version").output();
    if skip_tool(bash.is_err().then_some("bash")) {
        return;
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations/guide.md");
    let page = fs::read_to_string(page).expect("the guide");
    let blocks: Vec<&str> =
        page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 8, "{} blocks", blocks.len());
    let script = format!("{LEAVE}\n{}\ntrap - EXIT\n", blocks.concat());
    // Short: the path of a socket has an end.
    let dir = tempfile::Builder::new().prefix("upright-guide-").tempdir_in("/tmp").expect("a directory");
    let bin = Path::new(UPRIGHT).parent().expect("a directory").display();
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("timeout")
        .args(["--signal=TERM", "--kill-after=30", "120", "bash", "-eux", "-c", &script])
        .env("PATH", format!("{bin}:{path}"))
        .env("TMPDIR", dir.path())
        .env_remove("UPRIGHT_HOME")
        .stdin(Stdio::null())
        .output()
        .expect("bash");
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said}{wrong}", output.status);
    for word in ["web: restarted", "live: readiness.timeout", "ops: delivered", "passed", "nothing to do"] {
        assert!(said.contains(word), "the guide no longer shows `{word}`: {said}{wrong}");
    }
}
