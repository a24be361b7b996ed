//! Programs that speak sd_notify(3) in the wild: systemd-notify, libsystemd, PostgreSQL, Redis,
//! gunicorn.
//!
//! Refuses: other programs in their place. Where one is missing, its test says so and is left out.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::puppet::{PYTHON, SOON, tell, unit};
use crate::support::{Home, free_port, is_root, of, skip_tool};

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).exists())
}

fn reason_has(text: &'static str) -> impl Fn(&Value) -> bool {
    move |status| status["reason"].as_str().is_some_and(|reason| reason.contains(text))
}

/// Two short-lived processes of a shell: its barrier keeps each alive until it is heard.
#[test]
fn systemd_notify_is_heard() {
    if skip_tool((!on_path("systemd-notify")).then_some("systemd-notify (systemd)")) {
        return;
    }
    let mut home = Home::new();
    let script = "systemd-notify --status 'warming up'; read line < gate; systemd-notify --ready \
                  --status 'serving'; read line < gate; systemd-notify RELOADING=1; read line < gate; \
                  systemd-notify READY=1; exec sleep 100000";
    let dir = home.path().to_str().expect("UTF-8").to_owned();
    let section = format!("shell = true\nworking_directory = {dir:?}\ncommand = {script:?}\n");
    home.unit("web", &format!("[service]\ntype = \"notify\"\n{section}"));
    nix::unistd::mkfifo(&home.path().join("gate"), nix::sys::stat::Mode::from_bits_truncate(0o600))
        .expect("a FIFO");
    home.daemon();
    home.await_unit("web", "it said its status", SOON, reason_has("it says: warming up"));
    assert_eq!(home.status("web")["state"], "activating");
    let gate = home.path().join("gate");
    let go_on = || fs::write(&gate, "on\n").expect("it reads");
    go_on();
    home.await_unit("web", "it is ready", SOON, |status| {
        status["state"] == "active" && reason_has("it says: serving")(status)
    });
    go_on();
    home.await_unit("web", "it reloads", SOON, reason_has("reloads"));
    let last = home.last_event();
    go_on();
    home.await_event(last, "it has reloaded", SOON, |event| event["event"] == "unit.reloaded");
    assert!(home.stop().success());
}

#[test]
fn libsystemd_is_heard() {
    let look = ["-c", "import ctypes; ctypes.CDLL('libsystemd.so.0')"];
    let looked = Command::new(PYTHON).args(look).stderr(Stdio::null()).status();
    let there = looked.is_ok_and(|status| status.success());
    if skip_tool((!there).then_some("python3 and libsystemd.so.0")) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "", "[health]\nwatchdog = \"7s\"\n[restart]\ndelays = [\"100ms\"]");
    home.daemon();
    home.await_state("web", "activating", SOON);
    let load = "lib = ctypes.CDLL('libsystemd.so.0')";
    tell(&home, "web", load);
    assert_eq!(tell(&home, "web", "lib.sd_notify(0, b'READY=1\\nSTATUS=by libsystemd')"), "1");
    assert_eq!(tell(&home, "web", "lib.sd_notify_barrier(0, ctypes.c_uint64(10_000_000))"), "1");
    let status = home.status("web");
    assert_eq!(status["state"], "active");
    assert!(reason_has("it says: by libsystemd")(&status), "{status}");
    tell(&home, "web", "usec = ctypes.c_uint64()");
    assert_eq!(
        tell(&home, "web", "lib.sd_watchdog_enabled(0, ctypes.byref(usec)), usec.value"),
        "(1, 7000000)"
    );
    tell(&home, "web", "fds = (ctypes.c_int * 1)(memfd('kept by libsystemd'))");
    let store = "lib.sd_pid_notify_with_fds(0, 0, b'FDSTORE=1\\nFDNAME=mem', fds, 1)";
    assert_eq!(tell(&home, "web", store), "1");
    assert_eq!(tell(&home, "web", "lib.sd_notify_barrier(0, ctypes.c_uint64(10_000_000))"), "1");
    let pid = home.pid("web");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
    home.await_unit("web", "it starts again", SOON, |status| status["pid"].is_i64() && status["pid"] != pid);
    tell(&home, "web", load);
    tell(&home, "web", "names = ctypes.POINTER(ctypes.c_char_p)()");
    assert_eq!(
        tell(&home, "web", "lib.sd_listen_fds_with_names(0, ctypes.byref(names)), names[0]"),
        "(1, b'mem')"
    );
    assert_eq!(tell(&home, "web", "os.pread(3, 100, 0)"), "b'kept by libsystemd'");
    assert!(home.stop().success());
}

fn postgres_bin() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).find(|bin| bin.join("initdb").exists())
}

/// PostgreSQL refuses to run as root.
fn as_nobody(command: &Path) -> Command {
    if !is_root() {
        return Command::new(command);
    }
    let mut through = Command::new("setpriv");
    through.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--"]).arg(command);
    through
}

/// Its readiness and its smart shutdown, which lasts as long as a client stays.
#[test]
fn postgres_is_heard() {
    if skip_tool(postgres_bin().is_none().then_some("PostgreSQL (postgresql-15)")) {
        return;
    }
    let bin = postgres_bin().expect("it is there");
    let mut home = Home::new();
    let data = home.path().join("data");
    fs::create_dir(&data).expect("a directory");
    if is_root() {
        let done = Command::new("chown").arg("nobody:nogroup").arg(&data).status().expect("chown runs");
        assert!(done.success());
    }
    let made = as_nobody(&bin.join("initdb"))
        .arg("-D")
        .arg(&data)
        .args(["-U", "app", "-E", "UTF8", "--no-locale", "--auth=trust", "--no-sync"])
        .current_dir("/")
        .output()
        .expect("initdb runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = free_port().to_string();
    let server = bin.join("postgres");
    let set = format!("port={port}");
    let words: [&str; 9] = [
        server.to_str().expect("UTF-8"),
        "-D",
        data.to_str().expect("UTF-8"),
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        &set,
        "-c",
        "unix_socket_directories=",
    ];
    let user = if is_root() { "user = \"nobody\"\n" } else { "" };
    let stop = "[stop]\nsignal = \"SIGINT\"\ntimeout = \"30s\"\n[restart]\ndelays = [\"100ms\"]\n";
    home.unit("postgres", &format!("[service]\ntype = \"notify\"\ncommand = {words:?}\n{user}{stop}"));
    home.daemon();
    let first = home.await_state("postgres", "active", SOON)["pid"].clone();
    let mut client = Command::new(bin.join("psql"))
        .args(["-h", "127.0.0.1", "-p", &port, "-U", "app", "-d", "postgres", "-X"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("psql runs");
    let mut orders = client.stdin.take().expect("a pipe");
    writeln!(orders, "select 'here';").expect("it reads");
    let mut line = [0; 1];
    let output = client.stdout.as_mut().expect("a pipe");
    output.read_exact(&mut line).expect("it is connected");
    let pid = i32::try_from(first.as_i64().expect("a pid")).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it lives");
    let status = home.await_unit("postgres", "it said STOPPING=1", SOON, reason_has("says that it stops"));
    assert_eq!((&status["state"], &status["pid"]), (&"active".into(), &first));
    drop(orders); // it leaves
    client.wait().expect("reaped");
    home.await_unit("postgres", "it is back", SOON, |status| {
        status["state"] == "active" && status["pid"] != first
    });
    assert_eq!(of(&home.events(), "unit.failed", "postgres").len(), 1);
    assert!(home.stop().success());
}

#[test]
fn redis_is_heard() {
    if skip_tool((!on_path("redis-server")).then_some("redis-server")) {
        return;
    }
    let mut home = Home::new();
    let port = free_port().to_string();
    let dir = home.path().to_str().expect("UTF-8").to_owned();
    let words = [
        "redis-server",
        "--supervised",
        "systemd",
        "--bind",
        "127.0.0.1",
        "--port",
        &port,
        "--save",
        "",
        "--dir",
        &dir,
    ];
    home.unit("redis", &format!("[service]\ntype = \"notify\"\ncommand = {words:?}\n"));
    home.daemon();
    let status = home.await_state("redis", "active", SOON);
    assert!(reason_has("it says: Ready to accept connections")(&status), "{status}");
    assert!(of(&home.events(), "unit.failed", "redis").is_empty());
    assert!(home.stop().success());
}

/// 27.0 says that it is ready, and nothing of a reload: its HUP leaves the unit as it is.
#[test]
fn gunicorn_is_heard() {
    let gunicorn = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/notify-venv/bin/gunicorn");
    if skip_tool((!gunicorn.exists()).then_some("target/notify-venv (tests/run makes it)")) {
        return;
    }
    let mut home = Home::new();
    let app = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'here']\n";
    fs::write(home.path().join("app.py"), app).expect("an app");
    let address = format!("127.0.0.1:{}", free_port());
    let words = [gunicorn.to_str().expect("UTF-8"), "--bind", &address, "--workers", "2", "app:app"];
    let dir = home.path().to_str().expect("UTF-8").to_owned();
    home.unit(
        "gunicorn",
        &format!("[service]\ntype = \"notify\"\ncommand = {words:?}\nworking_directory = {dir:?}\n"),
    );
    home.daemon();
    let status = home.await_state("gunicorn", "active", SOON);
    assert!(reason_has("it says: Gunicorn arbiter booted")(&status), "{status}");
    home.upright_exits(&["reload", "gunicorn"], 0);
    let after = home.status("gunicorn");
    assert_eq!((&after["state"], &after["pid"]), (&"active".into(), &status["pid"]));
    assert!(home.stop().success());
}
