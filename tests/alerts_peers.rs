//! Alerts to servers that are not ours: Debian's Alertmanager, aiosmtpd, Python's TLS. And what must
//! hold of every channel: secrets go nowhere else, what was refused is sent again when it is mended.
//!
//! Refuses: engine code, and a peer outside of loopback.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use support::receivers::{Faults, Receiver};
use support::{Home, eventually, free_port, http, proc, skip_tool};

const SOON: Duration = Duration::from_secs(30);

/// Fails once, with an alert, and stays down.
const FAILS: &str =
    "[service]\ncommand = [\"false\"]\n[restart]\ndelays = [\"1h\"]\n[alert]\nafter_failures = 1\n";

fn configure(home: &Home, text: &str) {
    fs::write(home.path().join("upright.toml"), text).expect("upright.toml");
}

fn secret(home: &Home, name: &str, text: &str) -> String {
    let path = home.path().join(name);
    fs::write(&path, format!("{text}\n")).expect("a file");
    path.to_str().expect("UTF-8").to_string()
}

/// A process of the test, ended with it; its lines of JSON.
struct Peer {
    child: Child,
    lines: mpsc::Receiver<Value>,
}

impl Peer {
    fn python(what: &str, port: u16) -> Peer {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
        let mut command = Command::new(python());
        command.arg(here.join("peers.py")).arg(what).arg(&here).arg(port.to_string());
        let peer = Peer::start(&mut command);
        assert_eq!(peer.next(SOON).expect("it is ready")["ready"], true);
        peer
    }

    fn start(command: &mut Command) -> Peer {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = tell.send(serde_json::from_str(&line).unwrap_or(Value::Null)); // the test has ended
            }
        });
        Peer { child, lines }
    }

    fn next(&self, within: Duration) -> Option<Value> {
        self.lines.recv_timeout(within).ok()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait(); // the same
    }
}

fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/alerts-venv/bin/python")
}

fn no_python() -> Option<&'static str> {
    (!python().exists()).then_some("target/alerts-venv (tests/run makes it)")
}

fn ca() -> String {
    format!("{}/tests/peers/server.pem", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_mail_server_gets_a_mail_that_parses_after_starttls_and_a_login() {
    if skip_tool(no_python()) {
        return;
    }
    let port = free_port();
    let peer = Peer::python("smtp", port);
    let mut home = Home::new();
    let password = secret(&home, "password", "canary-mail");
    let ca = secret(&home, "ca.pem", &fs::read_to_string(ca()).expect("a certificate"));
    configure(
        &home,
        &format!(
            "[alert.mail]\nkind = \"email\"\nhost = \"localhost:{port}\"\nfrom = \"upright@example.net\"\n\
             to = [\"ops@example.net\", \"boss@example.net\"]\nuser = \"upright\"\n\
             password_file = \"{password}\"\nca_file = \"{ca}\"\n"
        ),
    );
    home.unit("web", &FAILS.replace("[\"false\"]", "[\"sh\", \"-c\", \"echo Straße 🔥; exit 4\"]"));
    home.daemon();
    let mail = peer.next(SOON).unwrap_or_else(|| panic!("a mail: {}", home.get("/v1/alerts")));
    assert_eq!(mail["defects"], Value::Array(Vec::new()), "{mail}");
    assert_eq!((&mail["tls"], &mail["user"]), (&true.into(), &"upright:canary-mail".into()));
    assert_eq!(mail["to"], serde_json::json!(["ops@example.net", "boss@example.net"]));
    assert_eq!(mail["subject"], "[upright] web: failing (critical)");
    let text = mail["text"].as_str().expect("a text");
    assert!(text.contains("Straße 🔥") && text.contains("Id: web/"), "{text}");
    assert!(text.contains("Runbook: docs/operations/runbook.md#failing"), "{text}");
    home.await_event(0, "it is delivered", SOON, |event| event["event"] == "alert.delivered");
}

#[test]
fn a_receiver_that_nobody_vouches_for_is_refused_unless_it_is_trusted() {
    if skip_tool(no_python()) {
        return;
    }
    let port = free_port();
    let peer = Peer::python("https", port);
    let mut home = Home::new();
    let hook = format!("[alert.hook]\nkind = \"webhook\"\nurl = \"https://localhost:{port}/hook\"\n");
    configure(&home, &hook);
    home.unit("web", FAILS);
    home.daemon();
    let error = eventually("it is refused", SOON, || {
        let alerts = home.get("/v1/alerts");
        let channel = alerts["alerts"][0]["channels"][0].clone();
        channel["error"].as_str().map(String::from)
    });
    assert!(error.starts_with("TLS: ") && error.contains("certificate"), "{error}");
    assert!(peer.next(Duration::ZERO).is_none(), "nothing was told");
    let ca = secret(&home, "ca.pem", &fs::read_to_string(ca()).expect("a certificate"));
    configure(&home, &format!("{hook}ca_file = \"{ca}\"\n"));
    kill(home.child(), Signal::SIGHUP).expect("the daemon lives");
    let told = peer.next(SOON).expect("a request");
    assert_eq!(told["path"], "/hook");
    home.await_event(0, "it is delivered", SOON, |event| event["event"] == "alert.delivered");
}

#[test]
fn what_was_refused_is_parked_and_sent_again_when_the_url_is_another() {
    let receiver = Receiver::http(7, Faults::default());
    receiver.answer(404);
    let mut home = Home::new();
    let url = secret(&home, "url", &receiver.url("/wrong"));
    configure(&home, &format!("[alert.hook]\nkind = \"webhook\"\nurl_file = \"{url}\"\n"));
    home.unit("web", FAILS);
    home.daemon();
    let event = home.await_event(0, "it is parked", SOON, |event| event["event"] == "alert.parked");
    assert_eq!(event["cause"], "HTTP 404", "{event}");
    // Nothing has changed: nothing is sent.
    let before = home.last_event();
    kill(home.child(), Signal::SIGHUP).expect("the daemon lives");
    home.await_event(before, "the files are read", SOON, |event| event["event"] == "config.loaded");
    receiver.answer(0);
    let refused = receiver.refused();
    secret(&home, "url", &receiver.url("/right-one"));
    kill(home.child(), Signal::SIGHUP).expect("the daemon lives");
    home.await_event(before, "it is delivered", SOON, |event| event["event"] == "alert.delivered");
    let taken = receiver.taken();
    assert_eq!((taken.len(), taken[0].head.as_str(), receiver.refused()), (1, "POST /right-one", refused));
    let alerts = home.get("/v1/alerts");
    assert_eq!(alerts["alerts"][0]["channels"][0]["state"], "delivered", "{alerts}");
}

#[test]
fn a_command_gets_the_alert_and_a_redirect_is_not_followed() {
    let receiver = Receiver::http(8, Faults::default());
    receiver.answer(302);
    let mut home = Home::new();
    let out = home.path().join("told.json");
    configure(
        &home,
        &format!(
            "[alert.tell]\nkind = \"exec\"\ncommand = [\"sh\", \"-c\", \"cat > {}\"]\n\
             [alert.hook]\nkind = \"discord\"\nurl = \"{}\"\n",
            out.display(),
            receiver.url("/a/b")
        ),
    );
    home.unit("web", FAILS);
    home.daemon();
    let event = home.await_event(0, "it is parked", SOON, |event| event["event"] == "alert.parked");
    assert_eq!(event["cause"], "HTTP 302: no redirect is followed");
    let delivered = home.await_event(0, "it is told", SOON, |event| event["event"] == "alert.delivered");
    assert_eq!(delivered["data"]["channel"], "tell");
    let told: Value = serde_json::from_str(&fs::read_to_string(&out).expect("written")).expect("JSON");
    assert_eq!(
        (&told["unit"], &told["exit_code"], &told["status"]),
        (&"web".into(), &1.into(), &"firing".into())
    );
}

#[test]
fn the_heart_beats_while_the_daemon_works_and_a_change_is_told_once() {
    let receiver = Receiver::http(9, Faults::default());
    let mut home = Home::new();
    configure(&home, &format!("[heartbeat]\nurl = \"{}\"\ninterval = \"100ms\"\n", receiver.url("/ping/1")));
    home.daemon();
    eventually("three beats", SOON, || (receiver.taken().len() >= 3).then_some(()));
    assert_eq!(receiver.taken()[0].head, "GET /ping/1");
    receiver.answer(500);
    let event = home.await_event(0, "it fails", SOON, |event| event["event"] == "heartbeat.failed");
    assert_eq!(event["data"]["why"], "HTTP 500");
    let refused = receiver.refused();
    eventually("three more", SOON, || (receiver.refused() >= refused + 3).then_some(()));
    receiver.answer(0);
    home.await_event(0, "it is taken", SOON, |event| event["event"] == "heartbeat.taken");
    let count = |word: &str| home.events().iter().filter(|event| event["event"] == word).count();
    assert_eq!((count("heartbeat.failed"), count("heartbeat.taken")), (1, 1));
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).exists())
}

#[test]
fn alertmanager_receives_groups_and_resolves() {
    let lacking = (!on_path("prometheus-alertmanager")).then_some("prometheus-alertmanager");
    if skip_tool(lacking) {
        return;
    }
    let receiver = Receiver::http(10, Faults::default());
    let mut home = Home::new();
    let port = free_port();
    let file = home.path().join("alertmanager.yml");
    let text = format!(
        "route:\n  receiver: test\n  group_by: [alertname]\n  group_wait: 1s\n  group_interval: 1s\n\
         receivers:\n  - name: test\n    webhook_configs:\n      - url: {}\n        send_resolved: true\n",
        receiver.url("/am")
    );
    fs::write(&file, text).expect("a file");
    let _peer = Peer::start(Command::new("prometheus-alertmanager").args([
        format!("--config.file={}", file.display()),
        format!("--storage.path={}", home.path().join("am").display()),
        format!("--web.listen-address=127.0.0.1:{port}"),
        "--cluster.listen-address=".to_string(),
    ]));
    eventually("Alertmanager is ready", SOON, || {
        http::ask_tcp(port, "GET", "/-/ready", "").is_ok_and(|(status, _)| status == 200).then_some(())
    });
    configure(&home, &format!("[alert.am]\nkind = \"alertmanager\"\nurl = \"http://127.0.0.1:{port}\"\n"));
    let well = home.path().join("well");
    for unit in ["cart", "web"] {
        let test = format!("test -e {} && exec sleep 100000; exit 3", well.display());
        let text = format!(
            "[service]\nshell = true\ncommand = '''{test}'''\n[restart]\ndelays = [\"200ms\"]\n\
             reset_after = \"500ms\"\n"
        );
        home.unit(unit, &text);
    }
    home.daemon();
    let of = |status: &str| {
        let taken = receiver.taken();
        let groups = taken.iter().map(|taken| taken.json()["alerts"].clone());
        let units = |group: &Value| -> Vec<String> {
            let alerts = group.as_array().expect("alerts").iter().filter(|alert| alert["status"] == status);
            let name = |alert: &Value| alert["labels"]["unit"].as_str().unwrap_or("").to_string();
            alerts.filter(|alert| alert["labels"]["alertname"] == "UprightFailing").map(name).collect()
        };
        groups.map(|group| units(&group)).find(|units| units.len() == 2)
    };
    let mut firing = eventually("both in one group", SOON, || of("firing"));
    firing.sort();
    assert_eq!(firing, ["cart", "web"]);
    let (_, body) = http::ask_tcp(port, "GET", "/api/v2/alerts", "").expect("an answer");
    let alerts: Value = serde_json::from_slice(&body).expect("JSON");
    let failing = alerts
        .as_array()
        .expect("alerts")
        .iter()
        .filter(|alert| alert["labels"]["alertname"] == "UprightFailing");
    assert_eq!(failing.count(), 2, "one each, however often it is told: {alerts}");
    fs::write(&well, "").expect("written");
    eventually("both are resolved", SOON, || of("resolved"));
    eventually("Alertmanager has none left", SOON, || {
        let (_, body) = http::ask_tcp(port, "GET", "/api/v2/alerts?active=true", "").ok()?;
        let alerts: Value = serde_json::from_slice(&body).ok()?;
        let left = alerts.as_array()?.iter().any(|alert| alert["labels"]["alertname"] == "UprightFailing");
        (!left).then_some(())
    });
}

/// Every file below, but for these.
fn files_below(dir: &Path, but: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a kind");
        if kind.is_dir() {
            files_below(&path, but, found);
        } else if kind.is_file() && !but.contains(&entry.file_name().to_str().expect("UTF-8")) {
            found.push(path);
        }
    }
}

#[test]
fn secrets_are_found_nowhere_but_at_their_target() {
    let taking = Receiver::http(11, Faults::default());
    let refusing = Receiver::http(12, Faults::default());
    refusing.answer(403);
    let mut home = Home::new();
    let token = secret(&home, "url", &taking.url("/hook/canary-url-1"));
    let refused = secret(&home, "refused", &refusing.url("/hook/canary-url-2"));
    let nowhere = secret(&home, "nowhere", "https://127.0.0.1:1/canary-url-3");
    let key = secret(&home, "key", "canary-hmac");
    let password = secret(&home, "password", "canary-smtp");
    let environment = secret(&home, "environment", "TOKEN=canary-env");
    configure(
        &home,
        &format!(
            "[alert.taking]\nkind = \"webhook\"\nurl_file = \"{token}\"\nsecret_file = \"{key}\"\n\
             [alert.refusing]\nkind = \"slack\"\nurl_file = \"{refused}\"\n\
             [alert.nowhere]\nkind = \"teams\"\nurl_file = \"{nowhere}\"\n\
             [alert.mail]\nkind = \"email\"\nhost = \"127.0.0.1:1\"\ntls = \"none\"\nfrom = \"a@example.net\"\n\
             to = [\"b@example.net\"]\nuser = \"upright\"\npassword_file = \"{password}\"\n"
        ),
    );
    home.unit(
        "web",
        &FAILS.replace("[restart]", &format!("environment_files = [\"{environment}\"]\n[restart]")),
    );
    home.daemon();
    home.await_event(0, "one is delivered", SOON, |event| event["event"] == "alert.delivered");
    home.await_event(0, "one is parked", SOON, |event| event["event"] == "alert.parked");
    eventually("the others have failed", SOON, || {
        let alerts = home.get("/v1/alerts").to_string();
        (alerts.matches("refused").count() >= 2).then_some(())
    });
    let taken = taking.taken();
    assert_eq!(taken[0].head, "POST /hook/canary-url-1");
    assert!(!format!("{taken:?}").contains("canary-hmac"), "the key is not sent");
    assert!(taken[0].header("upright-signature").is_some_and(|text| text.contains(",v1=")));

    for path in [
        "/v1/alerts",
        "/v1/units",
        "/v1/units/web",
        "/v1/events?limit=10000",
        "/api/system/health",
        "/v1/config/errors",
    ] {
        let answer = home.get(path).to_string();
        assert!(!answer.contains("canary"), "{path}: {answer}");
    }
    for args in [&["status"][..], &["alert", "list"], &["events"], &["why", "web"], &["logs", "web"]] {
        let output = home.upright(args);
        let said = [output.stdout, output.stderr].concat();
        assert!(!String::from_utf8_lossy(&said).contains("canary"), "{args:?}");
    }
    for process in proc::below(home.child()) {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains("canary"), "{process:?}");
    }
    home.stop();
    let mut files = Vec::new();
    files_below(home.path(), &["url", "refused", "nowhere", "key", "password", "environment"], &mut files);
    assert!(files.iter().any(|path| path.ends_with("state/upright.db")), "{files:?}");
    for path in files {
        let bytes = fs::read(&path).unwrap_or_default();
        assert!(!bytes.windows(6).any(|window| window == b"canary"), "{}", path.display());
    }
}
