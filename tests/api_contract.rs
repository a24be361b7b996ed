//! The OpenAPI document against the daemon, by schemathesis; and the examples of docs/api.md.
//!
//! Refuses: streams that are followed. They have no end, so nothing could be compared; `tests/api_doors.rs`
//! reads them.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Home, eventually, free_port, skip_tool};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

const WEB: &str = "[service]\ncommand = [\"sh\", \"-c\", \"trap '' CONT; echo here; exec sleep 600\"]\n[restart]\ndelays = [\"10ms\"]\n[stop]\ntimeout = \"5s\"\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn schemathesis() -> PathBuf {
    root().join("target/schemathesis-venv/bin/schemathesis")
}

#[test]
fn the_daemon_keeps_what_its_document_says() {
    let lacking = (!schemathesis().exists()).then_some("target/schemathesis-venv (tests/run makes it)");
    if skip_tool(lacking) {
        return;
    }
    let port = free_port();
    let mut home = Home::new();
    home.unit("web", WEB);
    let token = home.path().join("token");
    fs::write(&token, TOKEN).expect("a token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("its mode");
    let text = format!("[api]\nlisten = [\"127.0.0.1:{port}\"]\ntoken_file = \"{}\"\n", token.display());
    fs::write(home.path().join("upright.toml"), text).expect("upright.toml");
    home.daemon();
    let open = || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
    eventually("the port is open", Duration::from_secs(20), open);
    let engine = home.get("/v1/units")["daemon"]["engine_pid"].clone();
    let examples = std::env::var("UPRIGHT_SCHEMATHESIS_EXAMPLES").unwrap_or_else(|_| "3".into());
    let seed = std::env::var("SEED").unwrap_or_else(|_| "7".into());
    let output = Command::new(schemathesis())
        .arg("--config-file")
        .arg(root().join("tests/api/schemathesis.toml"))
        .arg("run")
        .arg(format!("http://127.0.0.1:{port}/openapi.json"))
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", &examples, "--seed", &seed])
        .args(["--request-timeout", "20", "--continue-on-failure", "--no-color"])
        .args(["--generation-database", "none"])
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        .env("PYTHONPATH", root().join("tests/api"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("NO_PROXY", "127.0.0.1")
        .current_dir(home.path())
        .stdin(Stdio::null())
        .output()
        .expect("schemathesis runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "SEED={seed} cargo test --test api_contract\n{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let generated = text.lines().find(|line| line.contains(" generated")).unwrap_or_default();
    println!("schemathesis: {}", generated.trim());
    assert!(
        generated.split_whitespace().next().and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > 500),
        "{text}"
    );
    assert_eq!(home.get("/v1/units")["daemon"]["engine_pid"], engine, "{}", home.said());
    assert!(!home.said().contains("panicked"), "{}", home.said());
}

#[test]
fn every_example_of_the_page_works() {
    let mut home = Home::new();
    home.unit("web", WEB);
    home.daemon();
    home.await_state("web", "active", Duration::from_secs(20));
    let page = fs::read_to_string(root().join("docs/api.md")).expect("docs/api.md");
    let blocks: Vec<&str> =
        page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 8, "{} examples", blocks.len());
    for block in &blocks {
        let output = Command::new("bash")
            .args(["-eu", "-c", block])
            .env("SOCKET", home.socket())
            .env("UNIT", "web")
            .stdin(Stdio::null())
            .output()
            .expect("bash");
        let (said, wrong) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && !said.is_empty(), "{block}\n{said}{wrong}");
        assert!(!said.contains("\"failed\""), "{block}\n{said}");
    }
}
