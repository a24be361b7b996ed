//! Probes against servers that misbehave, and against real ones where they are installed.
//!
//! Refuses: fixed ports, and waiting longer than a probe may take.

use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::base::check::{Endpoint, HostPort, HttpTarget, NetCheck, ProbeOutcome};
use crate::probe::probe;

/// Long enough for an honest server on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the probes of servers that never answer may take.
const SHORT: Duration = Duration::from_millis(200);

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let done = runtime.block_on(test);
    // Not held up by a resolver that takes its time.
    runtime.shutdown_background();
    done
}

fn failed(text: &str) -> ProbeOutcome {
    ProbeOutcome::Failed(text.to_string())
}

/// A loopback server that does `act` with each connection, for as long as the runtime lives.
async fn server<F, A>(act: F) -> Endpoint
where
    F: Fn(TcpStream) -> A + 'static + Send,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(act(stream));
        }
    });
    Endpoint::Tcp(HostPort { host: "127.0.0.1".to_string(), port })
}

/// A server that reads what is asked and says `answer`.
async fn says(answer: impl Into<Vec<u8>>) -> Endpoint {
    let answer: Arc<Vec<u8>> = Arc::new(answer.into());
    server(move |mut stream| {
        let answer = Arc::clone(&answer);
        async move {
            let mut asked = [0; 1024];
            if stream.read(&mut asked).await.is_ok() {
                let _ = stream.write_all(&answer).await; // the probe may have gone
            }
        }
    })
    .await
}

fn http(at: &Endpoint) -> NetCheck {
    let (method, host, path) = ("GET".to_string(), "backend".to_string(), "/health?deep=1".to_string());
    NetCheck::Http(HttpTarget { method, at: at.clone(), host, path })
}

/// Every kind that expects an answer.
fn asking(at: &Endpoint) -> [NetCheck; 3] {
    [http(at), NetCheck::Postgres(at.clone()), NetCheck::Redis(at.clone())]
}

/// The probe fails, and is back soon after its timeout.
async fn fails_in_time(check: &NetCheck, timeout: Duration) -> String {
    let begun = Instant::now();
    let outcome = probe(check, timeout).await;
    assert!(begun.elapsed() < timeout + Duration::from_secs(2), "{check}: {:?}", begun.elapsed());
    match outcome {
        ProbeOutcome::Ok => panic!("{check} is ok"),
        ProbeOutcome::Short(text) => panic!("{check}: {text}"),
        ProbeOutcome::Failed(text) => {
            assert!(!text.is_empty() && text.chars().count() <= 200, "{check}: {text:?}");
            assert!(!text.chars().any(char::is_control), "{check}: {text:?}");
            text
        }
    }
}

#[test]
fn a_server_that_never_answers_costs_the_timeout() {
    run(async {
        let silent = server(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        for check in asking(&silent) {
            assert_eq!(fails_in_time(&check, SHORT).await, "no answer within 200ms", "{check}");
        }
        let Endpoint::Tcp(at) = silent else { panic!("tcp") };
        assert_eq!(probe(&NetCheck::Tcp(at), PATIENCE).await, ProbeOutcome::Ok);
    });
}

#[test]
fn a_dribble_costs_the_timeout() {
    run(async {
        for begin in ["HTTP/1.1 200 OK\r\nx: ", "E\0\0\x10\0SFATAL", "+PON"] {
            let dribble = server(move |mut stream| async move {
                let mut tick = tokio::time::interval(Duration::from_millis(10));
                let mut sent = stream.write_all(begin.as_bytes()).await;
                while sent.is_ok() {
                    tick.tick().await;
                    sent = stream.write_all(b"x").await;
                }
            })
            .await;
            for check in asking(&dribble) {
                fails_in_time(&check, SHORT).await;
            }
        }
    });
}

#[test]
fn a_server_that_hangs_up_or_talks_junk_has_failed() {
    run(async {
        let hangs_up = server(|stream| async move { drop(stream) }).await;
        let junk: Vec<u8> = (0..=255).rev().cycle().take(100_000).collect();
        for at in [hangs_up, says("").await, says(junk).await, says("\0\0\0\0\0\0").await] {
            for check in asking(&at) {
                fails_in_time(&check, PATIENCE).await;
            }
        }
        let free = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let at = HostPort { host: "127.0.0.1".into(), port: free.local_addr().expect("address").port() };
        drop(free);
        for check in asking(&Endpoint::Tcp(at.clone())).iter().chain([&NetCheck::Tcp(at)]) {
            assert_eq!(fails_in_time(check, PATIENCE).await, "connection refused", "{check}");
        }
        let nowhere = NetCheck::Unix("/nonexistent/upright.sock".into());
        assert_eq!(fails_in_time(&nowhere, PATIENCE).await, "no such file or directory");
    });
}

/// A server that first says `begin`, then `more` until nobody takes it; counts what was taken.
async fn endless(begin: &'static str, more: &'static str, taken: Arc<AtomicU64>) -> Endpoint {
    server(move |mut stream| {
        let taken = Arc::clone(&taken);
        async move {
            let mut asked = [0; 1024];
            let _ = stream.read(&mut asked).await; // what is asked does not matter
            let mut sent = stream.write_all(begin.as_bytes()).await;
            let block = more.repeat(64 * 1024 / more.len());
            while sent.is_ok() {
                sent = stream.write_all(block.as_bytes()).await;
                taken.fetch_add(64 * 1024, Ordering::Relaxed);
            }
        }
    })
    .await
}

#[test]
fn endless_answers_cost_no_more_than_the_socket_buffers() {
    run(async {
        let taken = Arc::new(AtomicU64::new(0));
        let begun = Instant::now();
        let body = "HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n";
        let at = endless(body, "body", Arc::clone(&taken)).await;
        assert_eq!(probe(&http(&at), PATIENCE).await, ProbeOutcome::Ok);
        let at = endless("HTTP/1.1 200 OK\r\n", "a: b\r\n", Arc::clone(&taken)).await;
        assert_eq!(fails_in_time(&http(&at), PATIENCE).await, "the answer's head is too large");
        let at = endless("HTTP/1.1 200 OK\r\na: ", "b", Arc::clone(&taken)).await;
        fails_in_time(&http(&at), PATIENCE).await;
        let at =
            endless("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n", Arc::clone(&taken))
                .await;
        fails_in_time(&http(&at), PATIENCE).await;
        for begin in ["+", "-", "E\x7f\0\0\0", "R\x7f\0\0\0", "x"] {
            let at = endless(begin, "x", Arc::clone(&taken)).await;
            for check in asking(&at) {
                fails_in_time(&check, PATIENCE).await;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "an endless answer was read until the timeout");
        // 19 connections; loopback buffers hold a few MiB each at most.
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken < 19 * (8 << 20), "{taken} bytes were taken");
    });
}

#[test]
fn http_is_ok_at_2xx_and_nowhere_else() {
    run(async {
        for (line, wanted) in [
            ("200 OK", ProbeOutcome::Ok),
            ("204 No Content", ProbeOutcome::Ok),
            ("503 Service Unavailable", failed("HTTP 503")),
            ("404 Not Found", failed("HTTP 404")),
            ("302 Found\r\nLocation: /ok", failed("HTTP 302: no redirect is followed, here to /ok")),
            ("304 Not Modified", failed("HTTP 304")),
        ] {
            let at = says(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n")).await;
            assert_eq!(probe(&http(&at), PATIENCE).await, wanted, "{line}");
        }
        let at = says("HTTP/1.0 200 OK\r\n\r\nhello").await;
        assert_eq!(probe(&http(&at), PATIENCE).await, ProbeOutcome::Ok);
        let NetCheck::Http(target) = http(&at) else { panic!("http") };
        for bad in ["GET /", "\r\n", ""] {
            let check = NetCheck::Http(HttpTarget { method: bad.to_string(), ..target.clone() });
            fails_in_time(&check, PATIENCE).await;
        }
    });
}

#[test]
fn a_post_says_that_it_has_no_body() {
    run(async {
        let at = server(|mut stream| async move {
            let mut asked = [0; 1024];
            let size = stream.read(&mut asked).await.expect("a request");
            let asked = String::from_utf8_lossy(&asked[..size]).to_ascii_lowercase();
            let sound = asked.starts_with("post /health?deep=1 http/1.1\r\n")
                && asked.contains("\r\ncontent-length: 0\r\n");
            let status = if sound { "204 No Content" } else { "411 Length Required" };
            let answer = format!("HTTP/1.1 {status}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("the probe listens");
        })
        .await;
        let NetCheck::Http(target) = http(&at) else { panic!("http") };
        let check = NetCheck::Http(HttpTarget { method: "POST".to_string(), ..target });
        assert_eq!(probe(&check, PATIENCE).await, ProbeOutcome::Ok);
    });
}

#[test]
fn names_and_unix_sockets_are_reached() {
    run(async {
        let Endpoint::Tcp(at) = says("+PONG\r\n").await else { panic!("tcp") };
        let by_name = Endpoint::Tcp(HostPort { host: "localhost".into(), ..at });
        assert_eq!(probe(&NetCheck::Redis(by_name), PATIENCE).await, ProbeOutcome::Ok);
        let unknown = HostPort { host: "no-such-host.invalid".into(), port: 1 };
        assert!(fails_in_time(&NetCheck::Tcp(unknown), SHORT).await.len() > 3);

        let home = tempfile::tempdir().expect("home");
        let path = home.path().join("s.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut asked = [0; 1024];
                if matches!(stream.read(&mut asked).await, Ok(bytes) if bytes > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await; // the probe may have gone
                }
            }
        });
        assert_eq!(probe(&NetCheck::Unix(path.clone()), PATIENCE).await, ProbeOutcome::Ok);
        assert_eq!(probe(&http(&Endpoint::Unix(path)), PATIENCE).await, ProbeOutcome::Ok);
    });
}

#[test]
fn postgres_and_redis_are_told_apart_from_not_yet() {
    run(async {
        let error = |code: &str| {
            let body = format!("SFATAL\0C{code}\0Mthe database system is starting up\0\0");
            let length = u32::try_from(body.len() + 4).expect("length");
            [b"E", &length.to_be_bytes()[..], body.as_bytes()].concat()
        };
        let postgres = |at| async move { probe(&NetCheck::Postgres(at), PATIENCE).await };
        assert_eq!(postgres(says(error("28000")).await).await, ProbeOutcome::Ok);
        assert_eq!(postgres(says(error("57P03")).await).await, failed("the database system is starting up"));
        assert_eq!(postgres(says("R\0\0\0\x08\0\0\0\0").await).await, ProbeOutcome::Ok);
        assert_eq!(postgres(says("R\0\0\0\x0c\0\0\0\x05salt").await).await, ProbeOutcome::Ok);
        let redis = |at| async move { probe(&NetCheck::Redis(at), PATIENCE).await };
        assert_eq!(redis(says("-NOAUTH Authentication required.\r\n").await).await, ProbeOutcome::Ok);
        assert_eq!(redis(says("-LOADING\x1b[2J Redis\r\n").await).await, failed("LOADING [2J Redis"));
    });
}

/// A real server of this test's own; ended when dropped.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Server {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Server(quiet.spawn().expect("server"))
    }

    fn end(&mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("pid"));
        if matches!(self.0.try_wait(), Ok(None)) {
            kill(pid, signal).expect("kill");
        }
        self.0.wait().expect("wait");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end(Signal::SIGINT);
    }
}

/// Probes until it is ok; the outcomes on the way.
async fn until_ok(check: &NetCheck) -> Vec<String> {
    let begun = Instant::now();
    let mut before = Vec::new();
    loop {
        match probe(check, PATIENCE).await {
            ProbeOutcome::Ok => return before,
            ProbeOutcome::Failed(text) | ProbeOutcome::Short(text) => before.push(text),
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "{check}: {:?}", before.last());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn skip(why: &str) {
    writeln!(std::io::stdout(), "skipped: {why}").unwrap_or(());
}

#[test]
fn a_real_redis_is_ready_when_it_answers() {
    let home = tempfile::tempdir().expect("home");
    if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip("redis-server is not installed");
    }
    for password in ["", "secret"] {
        let socket = home.path().join(format!("redis{password}.sock"));
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--requirepass", password, "--unixsocket"]).arg(&socket);
        let mut redis = Server::start(command.current_dir(home.path()));
        run(async {
            let check = NetCheck::Redis(Endpoint::Unix(socket));
            until_ok(&check).await;
            redis.end(Signal::SIGTERM);
            fails_in_time(&check, PATIENCE).await;
        });
    }
}

fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.filter_map(|found| Some(found.ok()?.path().join("bin"))).find(|bin| bin.join("initdb").exists())
}

/// PostgreSQL refuses to run as root.
fn as_nobody(command: &mut Command, directory: &Path) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let user = User::from_name("nobody").ok().flatten().expect("nobody");
    chown(directory, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
    command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
}

#[test]
fn a_real_postgres_is_ready_when_it_takes_clients() {
    let Some(programs) = postgres_programs() else {
        return skip("PostgreSQL is not installed");
    };
    let home = tempfile::tempdir().expect("home");
    fs::write(home.path().join("password"), "secret\n").expect("password");
    let data = home.path().join("data");
    for auth in ["trust", "scram-sha-256"] {
        let mut initdb = Command::new(programs.join("initdb"));
        initdb
            .args(["--no-sync", "--username=upright", "--pwfile=password", "--auth", auth, "-D"])
            .arg(&data);
        as_nobody(&mut initdb, home.path());
        let initdb = initdb.current_dir(home.path()).stdin(Stdio::null()).stdout(Stdio::null());
        assert!(initdb.status().expect("initdb").success());
        let mut command = Command::new(programs.join("postgres"));
        command
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"])
            .arg(home.path())
            .arg("-D")
            .arg(&data);
        as_nobody(&mut command, home.path());
        let mut postgres = Server::start(command.current_dir(home.path()));
        run(async {
            let check = NetCheck::Postgres(Endpoint::Unix(home.path().join(".s.PGSQL.5432")));
            let before = until_ok(&check).await;
            let known =
                ["no such file or directory", "connection refused", "the database system is starting up"];
            assert!(before.iter().all(|text| known.contains(&text.as_str())), "{before:?}");
            postgres.end(Signal::SIGINT);
            fails_in_time(&check, PATIENCE).await;
        });
        fs::remove_dir_all(&data).expect("remove");
    }
}
