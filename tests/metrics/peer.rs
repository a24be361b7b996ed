//! The real Prometheus beside a daemon: a way from TCP to the Unix socket, and the server with its rules.
//!
//! Refuses: a fixed port, and anything that outlives its test.

use std::fs;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::support::{self, eventually, free_port, http};

/// Prometheus cannot scrape a Unix socket: this takes it there.
pub struct Forwarder {
    pub port: u16,
    ended: Arc<AtomicBool>,
}

impl Forwarder {
    pub fn start(socket: PathBuf) -> Forwarder {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if told.load(Ordering::Relaxed) {
                    return;
                }
                // Nobody answers: Prometheus sees a closed connection.
                if let Ok(daemon) = UnixStream::connect(&socket) {
                    join(client, daemon);
                }
            }
        });
        Forwarder { port, ended }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes it
    }
}

/// Both ways, until both ends are closed.
fn join(client: TcpStream, daemon: UnixStream) {
    let (mut from_client, mut to_daemon) =
        (client.try_clone().expect("a handle"), daemon.try_clone().expect("a handle"));
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_daemon); // it hung up
        let _ = to_daemon.shutdown(Shutdown::Write); // the same
    });
    let (mut from_daemon, mut to_client) = (daemon, client);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_daemon, &mut to_client); // it hung up
        let _ = to_client.shutdown(Shutdown::Both); // the same
    });
}

/// A running server.
pub struct Prometheus {
    child: Child,
    pub port: u16,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// Scrapes `target` every two seconds, which a loaded machine keeps up with, with the shipped rules, which wait for nothing.
    pub fn start(target: u16) -> Prometheus {
        let dir = tempfile::Builder::new().prefix("upright-prometheus-").tempdir().expect("a directory");
        let rules = fs::read_to_string(packaging("prometheus/alerts.yml")).expect("the rules");
        let hurried: Vec<&str> = rules.lines().filter(|line| !line.trim().starts_with("for: ")).collect();
        assert!(hurried.len() < rules.lines().count(), "no rule waits: nothing is shortened");
        fs::write(dir.path().join("alerts.yml"), hurried.join("\n")).expect("the rules");
        let shipped = fs::read_to_string(packaging("prometheus/prometheus.yml")).expect("the example");
        let config =
            shipped.replace("127.0.0.1:9321\"]", &format!("127.0.0.1:{target}\"]")).replace("15s", "2s");
        assert!(config.contains(&format!("targets: [\"127.0.0.1:{target}\"]")), "{config}");
        fs::write(dir.path().join("prometheus.yml"), config).expect("the configuration");
        let port = free_port();
        let log = fs::File::create(dir.path().join("out")).expect("a log");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a handle"))
            .stderr(log)
            .spawn()
            .expect("prometheus");
        let prometheus = Prometheus { child, port, _dir: dir };
        eventually("prometheus is ready", Duration::from_secs(30), || {
            http::ask_tcp(port, "GET", "/-/ready", "").ok().filter(|(status, _)| *status == 200)
        });
        prometheus
    }

    /// The samples of an instant query; the error of one that it does not understand.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("/api/v1/query?query={encoded}");
        let (_, body) = http::ask_tcp(self.port, "GET", &path, "").map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        if answer["status"] != "success" {
            return Err(format!("{expression}: {}", answer["error"]));
        }
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    /// The firing alerts of this name.
    pub fn firing(&self, name: &str) -> Vec<Value> {
        let Ok((_, body)) = http::ask_tcp(self.port, "GET", "/api/v1/alerts", "") else { return Vec::new() };
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        let alerts = answer["data"]["alerts"].as_array().cloned().unwrap_or_default();
        let fires = |alert: &Value| alert["labels"]["alertname"] == name && alert["state"] == "firing";
        alerts.into_iter().filter(fires).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait(); // the same
    }
}

pub fn packaging(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(path)
}

/// Whether the test has to be left out for want of Debian's package.
pub fn lacking() -> bool {
    let there = |tool: &str| {
        let asked = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    };
    let missing = (!there("prometheus") || !there("promtool")).then_some("prometheus and promtool");
    support::skip_tool(missing)
}
