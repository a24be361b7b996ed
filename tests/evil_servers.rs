//! Probes against servers that mean ill: each costs bounded time, memory and fds, and ends in
//! a sentence that says what was seen.
//!
//! Refuses: a probe whose cost depends on what the server does.

mod evil;

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use upright::base::check::{Endpoint, HostPort, HttpTarget, NetCheck, ProbeOutcome};
use upright::probe::probe;

use evil::{Evil, Servers, Stream, runtime, says};

/// What every probe here is given.
const TIMEOUT: Duration = Duration::from_millis(300);

/// How much later than its timeout a probe may be back, on a loaded machine.
const SLACK: Duration = Duration::from_secs(1);

/// Most memory that forty probes of endless servers at a time may take, in KiB: 64 KiB and
/// hyper's buffers each, the servers' part of the work included.
const MEMORY_KIB_MAX: u64 = 12 * 1024;

/// fds and memory belong to the whole process: whoever counts them is alone.
static PROCESS: RwLock<()> = RwLock::new(());

fn http(at: &Endpoint) -> NetCheck {
    let (method, host, path) = ("GET".to_string(), "backend".to_string(), "/livez".to_string());
    NetCheck::Http(HttpTarget { method, at: at.clone(), host, path })
}

fn postgres(at: &Endpoint) -> NetCheck {
    NetCheck::Postgres(at.clone())
}

fn redis(at: &Endpoint) -> NetCheck {
    NetCheck::Redis(at.clone())
}

/// Good is the empty sentence.
fn sentence(outcome: ProbeOutcome) -> String {
    match outcome {
        ProbeOutcome::Ok => String::new(),
        ProbeOutcome::Failed(text) => {
            let sound = !text.is_empty() && text.chars().count() <= 200;
            assert!(sound && !text.chars().any(char::is_control), "{text:?}");
            text
        }
        ProbeOutcome::Short(text) => panic!("short of {text}"),
    }
}

/// Each server is probed at once with the others; what each probe says, and how long it took.
fn probed(servers: &Servers, check: fn(&Endpoint) -> NetCheck) -> Vec<(String, Duration)> {
    let told = runtime().block_on(async {
        let probes = servers.at.iter().map(|at| {
            let check = check(at);
            tokio::spawn(async move {
                let begun = Instant::now();
                let outcome = probe(&check, TIMEOUT).await;
                (sentence(outcome), begun.elapsed())
            })
        });
        let mut told = Vec::new();
        for probe in probes.collect::<Vec<_>>() {
            told.push(probe.await.expect("a probe does not panic"));
        }
        told
    });
    for (text, took) in &told {
        assert!(*took < TIMEOUT + SLACK, "{took:?}: {text}");
    }
    told
}

/// A table of servers and what a probe says about each; empty = good.
fn check_table(check: fn(&Endpoint) -> NetCheck, table: Vec<(Evil, &str)>) {
    let _shared = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
    let (kinds, expected): (Vec<Evil>, Vec<&str>) = table.into_iter().unzip();
    for servers in [Servers::tcp(kinds.clone()), Servers::unix(kinds.clone())] {
        let told = probed(&servers, check);
        for ((kind, wanted), (text, took)) in kinds.iter().zip(&expected).zip(&told) {
            let shown: String = format!("{kind:?}").chars().take(100).collect();
            // The kernel's way of saying "closed" depends on who was quicker.
            let closed = wanted.contains("was closed") && RESET.contains(&text.as_str());
            assert!(closed || text == wanted, "{shown}: {text:?}, not {wanted:?}");
            // Whatever is decided by what was said does not wait for the timeout.
            let waited = text.starts_with("no answer");
            assert!(waited || *took < TIMEOUT, "{shown}: {took:?}");
        }
        servers.await_closed();
    }
}

/// What a connection is that the server closed without having read what was asked.
const RESET: [&str; 2] = ["connection reset by peer", "broken pipe"];

const SILENCE: &str = "no answer within 300ms";
const NO_HTTP: &str = "the answer is not HTTP";
const TOO_LARGE: &str = "the answer's head is too large";
const TLS: &str = "the answer is TLS, and checks speak plain text";
const MUCH: &str = "more than 64 KiB, and no answer in them";

/// A fatal alert (unexpected message), as TLS servers answer plain text.
const TLS_ALERT: &[u8] = &[0x15, 0x03, 0x03, 0, 2, 2, 10];

/// Every byte there is, many times.
fn junk() -> Vec<u8> {
    (0..=255).rev().cycle().take(100_000).collect()
}

#[test]
fn http_servers() {
    let headers: String = (0..10_000).map(|at| format!("x-{at}: y\r\n")).collect();
    let ok = |rest: &str| says(&format!("HTTP/1.1 200 OK\r\n{rest}\r\n"));
    let closed = "the connection was closed before an answer";
    check_table(
        http,
        vec![
            (Evil::Silent, SILENCE),
            (Evil::Closes, closed),
            (Evil::SaysAndCloses(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()), closed),
            (Evil::Dribbles("HTTP/1.1 2", "00 OK\r\n"), SILENCE),
            (Evil::Dribbles("HTTP/1.1 200 OK\r\nx: ", "y"), SILENCE),
            // The head decides; the body is not read, however long or slow it is.
            (Evil::Dribbles("HTTP/1.1 200 OK\r\nContent-Length: 3600\r\n\r\n", "z"), ""),
            (Evil::Endless("HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", "z"), ""),
            (Evil::Endless("HTTP/1.1 500 Oh\r\nContent-Length: 10000000000\r\n\r\n", "z"), "HTTP 500"),
            (Evil::Endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nz\r\n"), ""),
            (Evil::SaysAndCloses(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n".to_vec()), ""),
            (ok(&headers), TOO_LARGE),
            (Evil::Endless("HTTP/1.1 200 OK\r\nx: ", "y"), TOO_LARGE),
            (Evil::Endless("HTTP/1.1 200 OK\r\n", "x: y\r\n"), TOO_LARGE),
            (Evil::Endless("HTTP/1.1 200 ", "O"), TOO_LARGE),
            (Evil::Endless("", "HTTP/1.1 100 Continue\r\n\r\n"), MUCH),
            (Evil::Endless("", "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"), MUCH),
            (says("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"), "HTTP 101"),
            (
                says("HTTP/1.1 302 Found\r\nLocation: https://x.example/login\r\n\r\n"),
                "HTTP 302: no redirect is followed, here to https://x.example/login",
            ),
            (
                says("HTTP/1.1 301 Moved\r\nLocation: a\tb\r\n\r\n"),
                "HTTP 301: no redirect is followed, here to a b",
            ),
            (says("HTTP/1.1 307 Moved\r\n\r\n"), "HTTP 307"),
            (Evil::Says(junk()), NO_HTTP),
            (Evil::Says(vec![0; 100_000]), NO_HTTP),
            (says("<html>HTTP/0.9 was like this</html>\r\n"), NO_HTTP),
            (Evil::Greets("SSH-2.0-OpenSSH_9.2\r\n"), NO_HTTP),
            (says("HTTP/1.1 twohundred OK\r\n\r\n"), NO_HTTP),
            (says("+PONG\r\n"), NO_HTTP),
            (Evil::Says([&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], b"h2 settings\r\n\r\n"].concat()), NO_HTTP),
            (ok("Content-Length: -5\r\n"), NO_HTTP),
            (ok("Content-Length: 99999999999999999999999\r\n"), NO_HTTP),
            (ok("Content-Length: 3\r\nContent-Length: 5\r\n"), NO_HTTP),
            (Evil::Says(TLS_ALERT.to_vec()), TLS),
            (Evil::SaysAndCloses([&[0x16, 3, 1, 2, 0, 1, 0, 1][..], &junk()].concat()), TLS),
        ],
    );
}

fn postgres_error(code: &str, message: &str) -> Evil {
    let body = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0Fpostmaster.c\0L1\0\0");
    let length = u32::try_from(body.len() + 4).expect("short");
    Evil::SaysAndCloses([b"E", &length.to_be_bytes()[..], body.as_bytes()].concat())
}

#[test]
fn postgresql_servers() {
    let strange = "the answer is not PostgreSQL's";
    let closed = "the connection was closed";
    let fork = "could not fork new process for connection: Resource temporarily unavailable";
    check_table(
        postgres,
        vec![
            (Evil::Silent, SILENCE),
            (Evil::Closes, closed),
            (Evil::Dribbles("E\0\0\0\x50SFATAL\0", "x"), SILENCE),
            (Evil::Dribbles("R\0\0", "\0"), SILENCE),
            (Evil::Endless("", "N\0\0\0\x0aSNOTE\0"), strange),
            (Evil::Endless("R\x7f\x7f\x7f\x7f", "x"), strange),
            (Evil::Endless("E\0\x10\0\0", "x"), strange),
            (Evil::Endless("E\0\0\x20\0", "x"), strange),
            (Evil::Endless("Ecould", "x"), strange),
            (Evil::SaysAndCloses(b"R\0\0\0\x04".to_vec()), strange),
            (Evil::Greets("SSH-2.0-OpenSSH_9.2\r\n"), strange),
            (Evil::SaysAndCloses(b"R\0\0\0\x0c\0\0".to_vec()), closed),
            (Evil::Says(junk()), strange),
            (says("HTTP/1.1 400 Bad Request\r\n\r\n"), strange),
            (Evil::Says(TLS_ALERT.to_vec()), TLS),
            (
                postgres_error("57P03", "the database system is starting up"),
                "the database system is starting up",
            ),
            (
                postgres_error("57P03", "the database system is in recovery mode"),
                "the database system is in recovery mode",
            ),
            (
                postgres_error("57P03", "the database system is shutting down"),
                "the database system is shutting down",
            ),
            (postgres_error("57P03", ""), "the database system is not accepting clients"),
            (postgres_error("57P01", "terminating\x1b[2J\nconnection"), "terminating [2J connection"),
            (Evil::SaysAndCloses(format!("E{fork}\n\0").into_bytes()), fork),
            // It serves as many clients as it can: alive.
            (postgres_error("53300", "sorry, too many clients already"), ""),
            (postgres_error("28000", "role \"upright\" does not exist"), ""),
            (says("R\0\0\0\x08\0\0\0\x03"), ""),
        ],
    );
}

#[test]
fn redis_servers() {
    let strange = "the answer is not Redis's";
    let line = |text: &str| says(&format!("{text}\r\n"));
    check_table(
        redis,
        vec![
            (Evil::Silent, SILENCE),
            (Evil::Closes, "the connection was closed"),
            (Evil::Dribbles("+PO", "NG"), SILENCE),
            (Evil::Endless("$10000000000\r\n", "x"), strange),
            (Evil::Endless("+", "x"), strange),
            (Evil::Endless("-", "x"), strange),
            (Evil::Endless("*1000000\r\n", "$1\r\nx\r\n"), strange),
            (Evil::Says(junk()), strange),
            (says("HTTP/1.1 400 Bad Request\r\n\r\n"), strange),
            (Evil::Says(TLS_ALERT.to_vec()), TLS),
            (
                line("-LOADING Redis is loading the dataset in memory"),
                "LOADING Redis is loading the dataset in memory",
            ),
            (
                line("-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
            ),
            (line("-BUSY Redis is busy running a script."), "BUSY Redis is busy running a script."),
            (line("-"), strange),
            (Evil::Greets("SSH-2.0-OpenSSH_9.2\r\n"), strange),
            (line("-ERR unknown command 'PING'"), "ERR unknown command 'PING'"),
            // Up, and refuses us: alive.
            (line("-NOAUTH Authentication required."), ""),
            (line("-MISCONF Redis is configured to save RDB snapshots, but it cannot"), ""),
            (Evil::SaysAndCloses(b"-ERR max number of clients reached\r\n".to_vec()), ""),
            (line("+PONG"), ""),
        ],
    );
}

#[test]
fn a_server_whose_queue_is_full_costs_the_timeout() {
    let _shared = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind("127.0.0.1:0".parse().expect("address")).expect("bind");
        let full = socket.listen(1).expect("listen");
        let port = full.local_addr().expect("address").port();
        let tcp = Endpoint::Tcp(HostPort { host: "127.0.0.1".to_string(), port });
        let path = dir.path().join("full.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).expect("backlog"))
            .expect("listen");
        // Nobody accepts: connections wait in the queue until there is no place in it.
        let mut held = Vec::new();
        for at in [tcp, Endpoint::Unix(path)] {
            let begun = Instant::now();
            loop {
                assert!(begun.elapsed() < Duration::from_secs(10), "the queue of {at} takes everything");
                let taken = match &at {
                    Endpoint::Tcp(at) => {
                        let connect = tokio::net::TcpStream::connect((at.host.as_str(), at.port));
                        let connected = tokio::time::timeout(Duration::from_millis(200), connect).await;
                        connected
                            .ok()
                            .map(|stream| held.push(Box::new(stream.expect("taken")) as Box<dyn Stream>))
                    }
                    Endpoint::Unix(path) => {
                        let connected = tokio::net::UnixStream::connect(path).await;
                        connected.ok().map(|stream| held.push(Box::new(stream)))
                    }
                };
                if taken.is_none() {
                    break;
                }
            }
            for check in [http(&at), postgres(&at), redis(&at)] {
                let begun = Instant::now();
                assert_eq!(sentence(probe(&check, TIMEOUT).await), "no connection within 300ms", "{check}");
                assert!(begun.elapsed() < TIMEOUT + SLACK);
            }
        }
    });
}

/// Every evil server of one protocol that never ends by itself.
fn endless() -> Vec<Evil> {
    vec![
        Evil::Endless("HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", "z"),
        Evil::Endless("HTTP/1.1 200 OK\r\nx: ", "y"),
        Evil::Endless("HTTP/1.1 200 OK\r\n", "x: y\r\n"),
        Evil::Endless("", "HTTP/1.1 100 Continue\r\n\r\n"),
        Evil::Endless("R\x7f\x7f\x7f\x7f", "x"),
        Evil::Endless("E\0\0\x3f\0", "x"),
        Evil::Endless("", "N\0\0\0\x0aSNOTE\0"),
        Evil::Endless("$10000000000\r\n", "x"),
        Evil::Endless("+", "x"),
        Evil::Endless("", "\0"),
        Evil::Silent,
        Evil::Closes,
        Evil::Dribbles("HTTP/1.1 200 OK\r\nx: ", "y"),
    ]
}

/// A line of /proc/self/status, in KiB.
fn memory_kib(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("the line");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count()
}

/// Three probes of each server at the same time.
async fn storm(servers: &Servers) {
    let mut probes = JoinSet::new();
    for at in &servers.at {
        for check in [http(at), postgres(at), redis(at)] {
            probes.spawn(async move {
                let begun = Instant::now();
                let _ = sentence(probe(&check, TIMEOUT).await); // either is right here
                assert!(begun.elapsed() < TIMEOUT + SLACK, "{check}: {:?}", begun.elapsed());
            });
        }
    }
    while let Some(done) = probes.join_next().await {
        done.expect("a probe does not panic");
    }
}

#[test]
fn endless_answers_cost_bounded_memory() {
    let _alone = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    let servers = Servers::tcp(endless());
    let runtime = runtime();
    runtime.block_on(storm(&servers)); // what is allocated once is allocated now
    // proc_pid_clear_refs(5): 5 makes the peak begin anew.
    fs::write("/proc/self/clear_refs", "5").expect("clear_refs");
    let before = memory_kib("VmRSS");
    for _ in 0..5 {
        runtime.block_on(storm(&servers));
    }
    let peak = memory_kib("VmHWM");
    let grown = peak.saturating_sub(before);
    println!("{} probes: {before} KiB before, {peak} KiB at most", 5 * 3 * servers.at.len());
    assert!(grown < MEMORY_KIB_MAX, "{grown} KiB");
    servers.await_closed();
}

#[test]
fn no_probe_leaves_an_fd_behind() {
    let _alone = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    let runtime = runtime();
    let before = open_fds();
    for servers in [Servers::tcp(endless()), Servers::unix(endless())] {
        runtime.block_on(async {
            storm(&servers).await;
            for at in &servers.at {
                let connecting = match at.clone() {
                    Endpoint::Tcp(at) => NetCheck::Tcp(at),
                    Endpoint::Unix(path) => NetCheck::Unix(path),
                };
                assert_eq!(probe(&connecting, TIMEOUT).await, ProbeOutcome::Ok);
                // Given up in the middle, as when the daemon ends.
                for check in [http(at), postgres(at), redis(at)] {
                    let given_up =
                        tokio::time::timeout(Duration::from_millis(5), probe(&check, TIMEOUT)).await;
                    drop(given_up); // whether it was quicker does not matter
                }
            }
            let refused = NetCheck::Unix("/nonexistent/upright.sock".into());
            assert_eq!(sentence(probe(&refused, TIMEOUT).await), "no such file or directory");
        });
        servers.await_closed();
    }
    assert_eq!(open_fds(), before, "{:?}", fs::read_dir("/proc/self/fd").expect("fds").collect::<Vec<_>>());
}

#[test]
fn a_shortage_of_ours_is_no_verdict_about_them() {
    let _alone = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    let servers = Servers::tcp(vec![says("HTTP/1.1 200 OK\r\n\r\n")]);
    let local = Servers::unix(vec![says("HTTP/1.1 200 OK\r\n\r\n")]);
    let checks = [http(&servers.at[0]), http(&local.at[0])];
    let runtime = runtime();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("a low limit");
    let short: Vec<_> = checks.iter().map(|check| runtime.block_on(probe(check, TIMEOUT))).collect();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("the limit as it was");
    for outcome in short {
        assert_eq!(outcome, ProbeOutcome::Short("too many open files".to_string()));
    }
    for check in &checks {
        assert_eq!(runtime.block_on(probe(check, TIMEOUT)), ProbeOutcome::Ok);
    }
}

#[test]
fn two_hundred_probes_at_once_do_not_delay_each_other() {
    let _shared = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
    let good = Servers::tcp(vec![says("HTTP/1.1 200 OK\r\n\r\n")]);
    let bad = Servers::tcp(vec![Evil::Silent]);
    let Endpoint::Tcp(at) = good.at[0].clone() else { panic!("tcp") };
    let by_name = Endpoint::Tcp(HostPort { host: "localhost".to_string(), port: at.port });
    let patience = Duration::from_secs(3);
    let runtime = runtime();
    runtime.block_on(async {
        let mut probes = JoinSet::new();
        for at in 0..200 {
            // Names that the resolver has to go and ask for, or may hang on.
            let unknown = HostPort { host: format!("upright-{at}.invalid"), port: 1 };
            let (check, is_good) = match at % 4 {
                0 => (http(&good.at[0]), true),
                1 => (http(&by_name), true),
                2 => (http(&bad.at[0]), false),
                _ => (http(&Endpoint::Tcp(unknown)), false),
            };
            probes.spawn(async move {
                let begun = Instant::now();
                let outcome = probe(&check, patience).await;
                (is_good, outcome, begun.elapsed())
            });
        }
        let mut slowest = Duration::ZERO;
        while let Some(done) = probes.join_next().await {
            let (is_good, outcome, took) = done.expect("a probe does not panic");
            assert_eq!(outcome == ProbeOutcome::Ok, is_good, "{outcome:?}");
            assert!(took < patience + SLACK, "{took:?}");
            if is_good {
                slowest = slowest.max(took);
            }
        }
        println!("100 good probes among 100 that hang: the slowest took {slowest:?}");
        assert!(slowest < SLACK, "{slowest:?}");
    });
    runtime.shutdown_background(); // a resolver may take its time
}
