//! The real stack of examples/fastapi in a home: PostgreSQL, Redis, a uvicorn backend.
//!
//! Refuses: stand-ins. What is missing here is named, and the test is left out.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Home, http};

pub const UNITS: [&str; 3] = ["postgres", "redis", "backend"];

/// PostgreSQL's recovery and Python's imports on a loaded machine of two cores.
pub const ACTIVE: Duration = Duration::from_secs(60);

pub struct Stack {
    pub home: Home,
    pub ports: Ports,
}

#[derive(Clone, Copy)]
pub struct Ports {
    pub postgres: u16,
    pub redis: u16,
    pub backend: u16,
}

/// What of the stack this machine does not have.
pub fn lacking() -> Option<&'static str> {
    let on_path = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(name).exists())
    };
    if postgres_bin().is_none() {
        return Some("PostgreSQL (postgresql-15)");
    }
    if !on_path("redis-server") {
        return Some("redis-server");
    }
    (!venv().join("bin/uvicorn").exists()).then_some("target/fastapi-venv (tests/run makes it)")
}

fn venv() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fastapi-venv")
}

/// Where PostgreSQL's programs are.
pub fn postgres_bin() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).find(|bin| bin.join("initdb").exists())
}

impl Stack {
    /// Makes the home as a user would, with setup.sh; nothing runs yet.
    pub fn prepare() -> Stack {
        let home = Home::new();
        let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/fastapi/setup.sh");
        let done =
            Command::new(setup).arg("--venv").arg(venv()).arg(home.path()).output().expect("setup.sh runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let text = fs::read_to_string(home.path().join("ports")).expect("ports");
        let ports: Vec<u16> = text.split_whitespace().map(|word| word.parse().expect("a port")).collect();
        let [postgres, redis, backend] = ports[..] else { panic!("three ports: {text}") };
        Stack { home, ports: Ports { postgres, redis, backend } }
    }

    /// Edits a unit file: these sections take the place of those of the same name.
    pub fn amend(&self, unit: &str, sections: &str) -> &Stack {
        let path = self.home.path().join(format!("units/{unit}.toml"));
        let text = fs::read_to_string(&path).expect("setup.sh wrote it");
        let header = |line: &str| {
            line.starts_with('[').then(|| line.split('#').next().unwrap_or("").trim().to_owned())
        };
        let replaced: BTreeSet<String> = sections.lines().filter_map(header).collect();
        let (mut kept, mut keeps) = (String::new(), true);
        for line in text.lines() {
            if let Some(name) = header(line) {
                keeps = !replaced.contains(&name);
            }
            if keeps {
                kept.push_str(line);
                kept.push('\n');
            }
        }
        fs::write(&path, format!("{kept}\n{sections}")).expect("a unit file");
        self
    }

    /// Starts the daemon and waits until all three are active.
    pub fn start(&mut self) -> &mut Stack {
        self.home.upright_exits(&["check"], 0);
        self.home.daemon();
        for unit in UNITS {
            self.home.await_state(unit, "active", ACTIVE);
        }
        self
    }

    /// A question to the backend itself.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let (status, body) =
            http::ask_tcp(self.ports.backend, method, path, body).expect("the backend answers");
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    /// The ids of the sessions that PostgreSQL has, and how many rows that are.
    pub fn stored(&self) -> (BTreeSet<String>, usize) {
        let password = fs::read_to_string(self.home.path().join("secrets/password")).expect("a password");
        let psql = postgres_bin().expect("looked for before").join("psql");
        let port = self.ports.postgres.to_string();
        let output = Command::new(psql)
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "app", "-d", "postgres", "-AtXc"])
            .arg("SELECT id FROM session_log")
            .env("PGPASSWORD", password.trim())
            .env("PGCONNECT_TIMEOUT", "10")
            .current_dir("/")
            .output()
            .expect("psql runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        let count = rows.len();
        (rows.into_iter().collect(), count)
    }

    /// How often the backend itself says that it wrote its journal back.
    pub fn resyncs_acknowledged(&self) -> usize {
        let log = self.home.path().join("log/backend");
        let files = fs::read_dir(log).expect("the backend's log").filter_map(Result::ok);
        let texts = files.filter(|file| file.path().extension().is_some_and(|e| e == "log"));
        let said = |file: fs::DirEntry| {
            let text = fs::read(file.path()).unwrap_or_default();
            String::from_utf8_lossy(&text).matches("state is in step again").count()
        };
        texts.map(said).sum()
    }
}
