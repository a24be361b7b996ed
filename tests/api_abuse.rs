//! Those who mean harm: connections that never finish, and requests that are nearly right.
//!
//! Refuses: a server of its own. It is the daemon that must stay quick, keep its schedule and change
//! nothing.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::raw::{self, Reply};
use support::{Home, eventually, free_port, is_root, of, skip};
use upright::api::routes::{Need, ROUTES};
use upright::base::luck::Luck;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Longest answer of the control socket, 99 of 100.
const CONTROL_P99: Duration = Duration::from_millis(100);

/// How late a restart may be on a machine that others load too, in ns.
const LATE_NS_MAX: i64 = 100_000_000;

const WEB: &str = "[service]\ncommand = [\"sleep\", \"100000\"]\n[restart]\ndelays = [\"500ms\"]\n[stop]\ntimeout = \"5s\"\n";

fn home(port: u16) -> Home {
    let mut home = Home::new();
    home.unit("web", WEB);
    let token = home.path().join("token");
    fs::write(&token, TOKEN).expect("a token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("its mode");
    let text = format!("[api]\nlisten = [\"127.0.0.1:{port}\"]\ntoken_file = \"{}\"\n", token.display());
    fs::write(home.path().join("upright.toml"), text).expect("upright.toml");
    home.daemon();
    eventually("the port is open", Duration::from_secs(20), || TcpStream::connect(("127.0.0.1", port)).ok());
    home
}

/// A connection that sends a byte of its head now and then.
enum Slow {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Slow {
    fn drip(&mut self) -> bool {
        match self {
            Slow::Tcp(stream) => stream.write_all(b"a").is_ok(),
            Slow::Unix(stream) => stream.write_all(b"a").is_ok(),
        }
    }
}

/// Keeps so many slow connections up, and begins those anew that are hung up on.
fn hold(open: impl Fn() -> Option<Slow>, count: usize, stop: &AtomicBool, begun: &AtomicU64) {
    let mut crowd: Vec<Option<Slow>> = (0..count).map(|_| None).collect();
    while !stop.load(Ordering::Relaxed) {
        for slow in &mut crowd {
            if !slow.as_mut().is_some_and(Slow::drip) {
                *slow = open();
                begun.fetch_add(1, Ordering::Relaxed);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn percentile(times: &mut [Duration], part: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * part / 100).min(times.len() - 1)]
}

#[test]
fn a_thousand_slow_connections_hold_nobody_up() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    if skip((most < 4_096).then_some("4096 fds")) {
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, most.min(16_384), most).expect("more fds");
    let port = free_port();
    let home = home(port);
    let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let crowds: Vec<_> = (0..4)
        .map(|nth| {
            let (stop, begun, socket) = (stop.clone(), begun.clone(), home.socket());
            std::thread::spawn(move || {
                let open = || match nth {
                    0 => {
                        let mut stream = UnixStream::connect(&socket).ok()?;
                        stream.write_all(b"POST /v1/units/web/stop HTTP/1.1\r\nX-A: ").ok()?;
                        Some(Slow::Unix(stream))
                    }
                    _ => {
                        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
                        stream.write_all(b"GET /metrics HTTP/1.1\r\nX-A: ").ok()?;
                        Some(Slow::Tcp(stream))
                    }
                };
                hold(open, 250, &stop, &begun);
            })
        })
        .collect();
    eventually("a thousand came", Duration::from_secs(30), || {
        (begun.load(Ordering::Relaxed) >= 1_000).then_some(())
    });
    let (mut control, mut over_tcp) = (Vec::new(), Vec::new());
    let last = home.last_event();
    for round in 0..300 {
        let asked = Instant::now();
        home.get("/v1/units");
        control.push(asked.elapsed());
        if round % 10 == 0 {
            let (own, token) = (format!("127.0.0.1:{port}"), format!("Bearer {TOKEN}"));
            let lines = [("Host", own.as_str()), ("Authorization", token.as_str())];
            let asked = Instant::now();
            let reply = raw::exchange(raw::tcp(port), &raw::request("GET", "/v1/units", &lines, ""));
            assert_eq!(reply.map(|reply| reply.status), Some(200));
            over_tcp.push(asked.elapsed());
        }
        if round == 100 {
            kill(Pid::from_raw(home.pid("web")), Signal::SIGKILL).expect("it lives");
        }
    }
    home.await_event(last, "web is restarted", Duration::from_secs(20), |event| {
        event["event"] == "unit.restarted"
    });
    stop.store(true, Ordering::Relaxed);
    crowds.into_iter().for_each(|crowd| crowd.join().expect("a crowd"));
    let events = home.events_after(last);
    let due = of(&events, "retry.scheduled", "web")[0]["data"]["due_ns"].as_i64().expect("due_ns");
    let late = of(&events, "unit.restarted", "web")[0]["at_ns"].as_i64().expect("at_ns") - due;
    println!(
        "{} slow connections begun; control p50 {:?}, p99 {:?}; over TCP p50 {:?}, p99 {:?}; restart {} µs late",
        begun.load(Ordering::Relaxed),
        percentile(&mut control, 50),
        percentile(&mut control, 99),
        percentile(&mut over_tcp, 50),
        percentile(&mut over_tcp, 99),
        late / 1_000
    );
    assert!(percentile(&mut control, 99) < CONTROL_P99);
    assert!((0..=LATE_NS_MAX).contains(&late), "{late} ns late");
}

/// Requests that would be right, did they come from somebody who may.
fn patterns(lines: &[(&str, &str)]) -> Vec<Vec<u8>> {
    let body = |pattern: &str| match pattern {
        pattern if pattern.ends_with("/signal") => r#"{"signal":"KILL"}"#,
        pattern if pattern.starts_with("/v1/actions/") => r#"{"all":true}"#,
        _ => "{}",
    };
    let one = |route: &upright::api::routes::Route| {
        let path = route.pattern.replace("{name}", "web");
        raw::request(
            route.method.as_str(),
            &path,
            lines,
            if route.need == Need::Act { body(route.pattern) } else { "" },
        )
    };
    ROUTES.iter().map(one).collect()
}

/// One to eight changes: bytes, lines, pieces of other requests.
fn mutate(luck: &mut Luck, patterns: &[Vec<u8>]) -> Vec<u8> {
    let pick = |luck: &mut Luck, most: usize| usize::try_from(luck.draw() % most.max(1) as u64).unwrap_or(0);
    let mut bytes = patterns[pick(luck, patterns.len())].clone();
    for _ in 0..=pick(luck, 8) {
        let at = pick(luck, bytes.len());
        match luck.draw() % 8 {
            0 => bytes[at] = luck.draw().to_le_bytes()[0],
            1 => bytes[at] ^= 1 << (luck.draw() % 8),
            2 => bytes.insert(at, luck.draw().to_le_bytes()[0]),
            3 => drop(bytes.remove(at)),
            4 => bytes.truncate(at.max(1)),
            5 => {
                let other = &patterns[pick(luck, patterns.len())];
                let from = pick(luck, other.len());
                let piece = other[from..(from + 40).min(other.len())].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            6 => {
                let lines = [
                    "Content-Length: 0\r\n",
                    "Transfer-Encoding: chunked\r\n",
                    "Host: localhost\r\n",
                    "Origin: null\r\n",
                    "Authorization: Bearer \r\n",
                    "X-HTTP-Method-Override: POST\r\n",
                    "X-Forwarded-For: 127.0.0.1\r\n",
                    "Expect: 100-continue\r\n",
                    "Upgrade: websocket\r\nConnection: upgrade\r\n",
                ];
                let after = bytes.windows(2).position(|pair| pair == b"\r\n").map_or(at, |end| end + 2);
                drop(bytes.splice(after..after, lines[pick(luck, lines.len())].bytes()));
            }
            _ => {
                let again = bytes[at..(at + 30).min(bytes.len())].to_vec();
                bytes.extend(again);
            }
        }
        if bytes.is_empty() {
            bytes.push(b'G');
        }
    }
    bytes
}

/// Sends it; what came back. One that is not complete gets no answer until its end is clear.
fn send(
    mut stream: impl Read + Write,
    hang_up: impl Fn(),
    patience: impl Fn(Duration),
    bytes: &[u8],
) -> Vec<u8> {
    let _ = stream.write_all(bytes); // it may have hung up
    patience(Duration::from_millis(10));
    let (mut answer, mut piece) = (Vec::new(), [0; 4_096]);
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return answer,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && answer.is_empty() => {
                hang_up();
                patience(Duration::from_secs(5));
                match stream.read(&mut piece) {
                    Ok(count) => answer.extend_from_slice(&piece[..count]),
                    Err(_) => return answer,
                }
                if answer.is_empty() {
                    return answer;
                }
            }
            Err(_) => return answer,
        }
    }
}

/// How many mutated requests each of the three ways in gets.
fn count() -> u64 {
    let count = std::env::var("UPRIGHT_MUTATIONS").ok().and_then(|count| count.parse().ok());
    count.unwrap_or(10_000_u64).div_ceil(3)
}

fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5)
}

fn check(answer: &[u8], bytes: &[u8], told: &mut [u64; 6]) {
    let Some(reply) = Reply::parse(answer) else {
        told[0] += 1;
        return;
    };
    told[usize::from(reply.status / 100).min(5)] += 1;
    assert!(
        reply.status < 500,
        "SEED={} cargo test --test api_abuse: {} {} to {:?}",
        seed(),
        reply.status,
        reply.body,
        String::from_utf8_lossy(bytes)
    );
}

fn hammer_tcp(port: u16, lines: &[(&str, &str)], salt: u64) -> [u64; 6] {
    let (mut luck, patterns, mut told) = (Luck::new(seed() ^ salt), patterns(lines), [0; 6]);
    for _ in 0..count() {
        let bytes = mutate(&mut luck, &patterns);
        let stream = raw::tcp(port);
        let other = stream.try_clone().expect("a second handle");
        let hang_up = || drop(other.shutdown(Shutdown::Write));
        let patience = |wait| drop(other.set_read_timeout(Some(wait)));
        check(&send(&stream, hang_up, patience, &bytes), &bytes, &mut told);
    }
    told
}

/// Not a test of its own: `nearly_right_requests_change_nothing` runs it as another account.
#[test]
fn hammer_the_unix_socket() {
    let Some(socket) = std::env::var_os("UPRIGHT_HAMMER") else { return };
    let (mut luck, patterns, mut told) = (Luck::new(seed() ^ 3), patterns(&[("Host", "x")]), [0; 6]);
    for _ in 0..count() {
        let bytes = mutate(&mut luck, &patterns);
        let stream = UnixStream::connect(&socket).expect("the socket answers");
        let hang_up = || drop(stream.shutdown(Shutdown::Write));
        let patience = |wait| drop(stream.set_read_timeout(Some(wait)));
        check(&send(&stream, hang_up, patience, &bytes), &bytes, &mut told);
    }
    println!("as a stranger: {told:?} (no answer, 1xx … 5xx)");
}

#[test]
fn nearly_right_requests_change_nothing() {
    let port = free_port();
    let home = home(port);
    home.await_unit("web", "it has a process", Duration::from_secs(30), |status| !status["pid"].is_null());
    let (before, last) = (home.status("web"), home.last_event());
    let engine = home.list().expect("a list")["daemon"]["engine_pid"].clone();
    let own = format!("127.0.0.1:{port}");
    let near = format!("Bearer {}0", &TOKEN[..TOKEN.len() - 1]);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let nothing = scope.spawn(|| hammer_tcp(port, &[("Host", &own)], 1));
        let nearly = scope.spawn(|| hammer_tcp(port, &[("Host", &own), ("Authorization", &near)], 2));
        if !skip((!is_root()).then_some("root: it becomes another account")) {
            let copy = home.path().join("hammer");
            fs::copy(std::env::current_exe().expect("our own file"), &copy).expect("a copy");
            let output = Command::new("setpriv")
                .args(["--reuid=64004", "--regid=64000", "--clear-groups"])
                .arg(&copy)
                .args(["--exact", "hammer_the_unix_socket", "--nocapture"])
                .env("UPRIGHT_HAMMER", home.socket())
                .output()
                .expect("setpriv");
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
            text.lines().filter(|line| line.contains("stranger")).for_each(|line| println!("{line}"));
        }
        println!("over TCP without a token: {:?} (no answer, 1xx … 5xx)", nothing.join().expect("no 5xx"));
        println!("over TCP with a wrong one: {:?}", nearly.join().expect("no 5xx"));
    });
    println!("{} mutated requests in {:?}", 3 * count(), begun.elapsed());
    let after = home.status("web");
    assert_eq!((&after["pid"], &after["run"]), (&before["pid"], &before["run"]), "SEED={}", seed());
    assert_eq!(home.list().expect("a list")["daemon"]["engine_pid"], engine, "{}", home.said());
    let events: Vec<Value> = home.events_after(last);
    let asked = events.iter().filter(|event| event["event"] == "order.asked").count();
    assert_eq!(asked, 0, "SEED={}: an unauthorised change: {events:?}", seed());
    let refused = events.iter().filter(|event| event["event"] == "order.refused").count();
    assert!(refused >= 1 && refused as u64 <= 22 + begun.elapsed().as_secs() / 10, "{refused} records");
    assert!(!home.said().contains("panicked"), "{}", home.said());
}
