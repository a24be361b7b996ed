//! The socket as a stranger meets it: every route and role, limits, broken bytes, streams.
//!
//! Refuses: the daemon. The handler is in this file, so that what is tested is the server.

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use upright::api::access::{Access, Ids};
use upright::api::call::{Answer, Call, Item, Local, LogQuery, Peer, Verb};
use upright::api::client::{Client, ClientError};
use upright::api::openapi;
use upright::api::routes::{Need, ROUTES};
use upright::api::rules::Rules;
use upright::api::server::{self, Limits};
use upright::api::types::{ActionReply, ActionRequest, ErrorBody, ErrorReply, SystemHealth};
use upright::base::luck::Luck;

/// No single wait of this file is longer.
const PATIENCE: Duration = Duration::from_secs(20);

type Calls = Arc<Mutex<Vec<(Peer, Call)>>>;

struct Server {
    socket: PathBuf,
    calls: Calls,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(access: Access, limits: Limits) -> Server {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
        let calls = Calls::default();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let record = calls.clone();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let listener = server::listener_from(listener.into()).expect("listener");
                let _ = server::serve_until(listener, rules(access), limits, stopped, handler(record)).await; // dropped
            });
        });
        Server { socket, calls, stop: Some(stop), thread: Some(thread), _dir: dir }
    }

    fn connect(&self) -> UnixStream {
        patient(UnixStream::connect(&self.socket).expect("connect"))
    }

    fn client(&self) -> Client {
        Client::new(&self.socket).expect("client")
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("calls").iter().map(|(_, call)| call.clone()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic has been printed
        }
    }
}

fn rules(access: Access) -> Arc<Rules> {
    let rules = Rules::new(drop);
    rules.set_access(access);
    Arc::new(rules)
}

fn local(uid: u32, gid: u32) -> Peer {
    Peer::Local(Local { uid, gid, groups: Vec::new(), pid: 1 })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

fn patient(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    stream
}

/// Remembers what it was asked; knows `web`, counts to three in streams.
fn handler(calls: Calls) -> impl Fn(Peer, Call) -> std::future::Ready<Answer> + Clone + Send + 'static {
    move |peer, call| {
        calls.lock().expect("calls").push((peer, call.clone()));
        std::future::ready(answer(call))
    }
}

fn answer(call: Call) -> Answer {
    match call {
        Call::Metrics(form) => Answer::Metrics(form, "# EOF\n".into()),
        Call::Livez | Call::Readyz => Answer::Plain(200, "ok"),
        // Says nothing, and does not end.
        Call::Logs(LogQuery { units, follow: true, .. }) if units == ["quiet"] => {
            let (sender, items) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move { sender.closed().await });
            Answer::Stream(items)
        }
        Call::Events { follow: true, .. } | Call::Logs(LogQuery { follow: true, .. }) => {
            let (sender, items) = tokio::sync::mpsc::channel(8);
            for n in 1..=3 {
                let json = Bytes::from(format!("{{\"n\":\n{n}}}"));
                sender.try_send(Item { id: n, json }).expect("room");
            }
            Answer::Stream(items)
        }
        Call::Unit { name } if name != "web" => Answer::Error(
            404,
            ErrorBody { code: "unit.unknown".into(), message: format!("no unit `{name}`"), help: None },
        ),
        Call::Health => Answer::Json(Bytes::from_static(
            br#"{"status":"green","units":{"active":1},"config":{"errors":[]},"fatal_stops":0,"uptime_s":1.5}"#,
        )),
        Call::Units
        | Call::Unit { .. }
        | Call::Act { .. }
        | Call::RestartInactive { .. }
        | Call::Signal { .. }
        | Call::Logs(_)
        | Call::Events { .. }
        | Call::ConfigErrors
        | Call::SystemMetrics
        | Call::Summary { .. }
        | Call::Page(_)
        | Call::News { .. }
        | Call::Alerts(_)
        | Call::ConfigPlan
        | Call::ConfigApply { .. }
        | Call::Upgrade
        | Call::Drills { .. }
        | Call::Drill { .. }
        | Call::BeginUpgrade => Answer::Json(Bytes::from_static(br#"{"outcomes":[]}"#)),
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn code(&self) -> String {
        let reply: ErrorReply =
            serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body));
        reply.error.code
    }
}

/// Sends bytes, reads until the server closes.
fn exchange(mut stream: UnixStream, request: &[u8]) -> Option<Reply> {
    let _ = stream.write_all(request); // it may have hung up already, with an answer
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes); // a reset after the answer is no loss
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Reply { status, head: head.to_ascii_lowercase(), body: body.to_string() })
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes()
}

fn post(path: &str, body: &str) -> Vec<u8> {
    let head = "host: x\r\nconnection: close\r\ncontent-type: application/json; charset=utf-8";
    format!("POST {path} HTTP/1.1\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// One request as a peer that the kernel did not name: over a socket pair.
fn ask_as(peer: Peer, access: &Access, request: &[u8]) -> (Reply, Vec<Call>) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    theirs.set_nonblocking(true).expect("nonblocking");
    let calls = Calls::default();
    let (record, rules) = (calls.clone(), rules(access.clone()));
    let thread = std::thread::spawn(move || {
        runtime().block_on(async {
            let stream = tokio::net::UnixStream::from_std(theirs).expect("stream");
            server::serve_connection(stream, peer, rules, Limits::default(), handler(record)).await;
        });
    });
    let reply = exchange(patient(ours), request).expect("an answer");
    thread.join().expect("server");
    let calls = calls.lock().expect("calls").iter().map(|(_, call)| call.clone()).collect();
    (reply, calls)
}

fn valid_body(pattern: &str) -> &'static str {
    if pattern.ends_with("/signal") {
        r#"{"signal":"HUP"}"#
    } else if pattern.ends_with("/mute") {
        r#"{"for_s":60}"#
    } else if pattern.starts_with("/v1/actions/") {
        r#"{"units":["web"]}"#
    } else if pattern == "/v1/drills" {
        r#"{"drill":"d1","do":"undo"}"#
    } else {
        "{}"
    }
}

#[test]
fn every_route_answers_every_role_as_the_table_says() {
    let viewers = Ids { uids: vec![2000], gids: vec![60] };
    let operators = Ids { uids: vec![1000], gids: vec![50] };
    let access = Access { own_uid: 999, operators, viewers };
    // (uid, gid, may act, may read)
    let roles = [
        (0, 0, true, true),
        (999, 1, true, true),
        (1000, 1, true, true),
        (3000, 50, true, true),
        (2000, 1, false, true),
        (3000, 60, false, true),
        (3000, 1, false, false),
    ];
    for route in ROUTES {
        let path = route.pattern.replace("{name}", "web");
        let request = match route.need {
            Need::View => get(&path),
            Need::Act => post(&path, valid_body(route.pattern)),
        };
        for (uid, gid, acts, reads) in roles {
            let (reply, calls) = ask_as(local(uid, gid), &access, &request);
            let allowed = match route.need {
                Need::View => reads,
                Need::Act => acts,
            };
            let case = format!("{} {path} as {uid}:{gid}", route.method);
            assert_eq!(reply.status, if allowed { 200 } else { 403 }, "{case}: {}", reply.body);
            if !allowed {
                assert_eq!(reply.code(), "access.denied", "{case}");
                assert_eq!(calls, [], "{case}");
            } else if path != "/openapi.json" {
                assert_eq!(calls.len(), 1, "{case}");
            }
        }
    }
}

#[test]
fn requests_become_calls() {
    let act = |verb, units: &[&str], all, wait| Call::Act {
        verb,
        units: units.iter().map(|unit| unit.to_string()).collect(),
        all,
        wait,
    };
    let events = |after_id, since: Option<&str>, limit, follow| Call::Events {
        after_id,
        since: since.map(String::from),
        limit,
        follow,
    };
    let since = "2026-11-21T20:00:00+02:00";
    let table = [
        (get("/v1/units/web"), Call::Unit { name: "web".into() }),
        (get("/v1/units/web%401"), Call::Unit { name: "web@1".into() }),
        (get("/v1/logs"), Call::Logs(LogQuery { lines: Some(10), ..LogQuery::default() })),
        (
            get("/v1/units/a/logs?lines=0"),
            Call::Logs(LogQuery { units: vec!["a".into()], lines: Some(0), ..LogQuery::default() }),
        ),
        (get("/v1/events"), events(None, None, 1000, false)),
        (
            get(&format!("/v1/events?after_id=7&since={since}&limit=5&follow=1")),
            events(Some(7), Some(since), 5, true),
        ),
        (post("/v1/units/web/start", ""), act(Verb::Start, &["web"], false, true)),
        (post("/v1/units/web/stop?wait=false", "{}"), act(Verb::Stop, &["web"], false, false)),
        (post("/v1/actions/restart", r#"{"units":["b","a"]}"#), act(Verb::Restart, &["b", "a"], false, true)),
        (post("/v1/actions/clear?wait=0", r#"{"all":true}"#), act(Verb::Clear, &[], true, false)),
        (
            post("/v1/units/web/signal", r#"{"signal":"USR1"}"#),
            Call::Signal { name: "web".into(), signal: "USR1".into() },
        ),
        (post("/api/recovery/restart", r#"{"unit":"web"}"#), act(Verb::Restart, &["web"], false, true)),
        (post("/api/recovery/restart", "{}"), Call::RestartInactive { wait: true }),
    ];
    let access = Access::default();
    for (request, call) in table {
        let (_, calls) = ask_as(local(0, 0), &access, &request);
        assert_eq!(calls, [call], "{}", String::from_utf8_lossy(&request));
    }
}

#[test]
fn what_does_not_fit_is_refused_with_a_code() {
    let no_type = b"POST /v1/units/web/start HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec();
    let form = b"POST /v1/units/web/start HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 2\r\n\r\n{}".to_vec();
    let plain = b"POST /v1/actions/stop HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: 12\r\n\r\n{\"all\":true}".to_vec();
    let large = post("/v1/actions/stop", &format!("{{\"units\":[\"{}\"]}}", "a".repeat(70_000)));
    let table: [(Vec<u8>, u16, &str); 20] = [
        (get("/v2"), 404, "route.unknown"),
        (get("/v1/unit"), 404, "route.unknown"),
        (get("/v1/units/a/b/c"), 404, "route.unknown"),
        (get("/v1/units/web/start"), 405, "route.method"),
        (post("/v1/units", "{}"), 405, "route.method"),
        (no_type, 415, "request.not-json"),
        (form, 415, "request.not-json"),
        (plain, 415, "request.not-json"),
        (large, 413, "request.too-large"),
        (post("/v1/actions/stop", "{"), 400, "request.malformed"),
        (post("/v1/actions/stop", "{}"), 400, "request.malformed"),
        (post("/v1/actions/stop", r#"{"units":["a"],"all":true}"#), 400, "request.malformed"),
        (post("/v1/units/web/stop", r#"{"force":true}"#), 400, "request.malformed"),
        (post("/v1/units/web/signal", r#"{"signal":"NOPE"}"#), 400, "request.malformed"),
        (get("/v1/logs?lines=-1"), 400, "request.malformed"),
        (get("/v1/logs?tail=3"), 400, "request.malformed"),
        (get("/v1/events?since=yesterday"), 400, "request.malformed"),
        (get("/v1/events?limit=0&limit=1"), 400, "request.malformed"),
        (get("/v1/units/..%2f..%2fetc"), 404, "unit.unknown"),
        (post("/v1/actions/stop", r#"{"units":["../x"]}"#), 404, "unit.unknown"),
    ];
    let access = Access::default();
    for (request, status, code) in table {
        let (reply, calls) = ask_as(local(0, 0), &access, &request);
        let case = String::from_utf8_lossy(&request[..request.len().min(120)]).into_owned();
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{case}");
        assert_eq!(calls, [], "{case}");
        assert_eq!(reply.head.contains("\r\nallow: "), status == 405, "{}", reply.head);
    }
}

#[test]
fn the_kernel_says_who_asks() {
    let server = Server::start(Access { own_uid: own_uid(), ..Access::default() }, Limits::default());
    let health: SystemHealth = server.client().get("/api/system/health").expect("health");
    assert_eq!(health.status, "green");
    let (peer, _) = server.calls.lock().expect("calls")[0].clone();
    let Peer::Local(peer) = peer else { panic!("{peer:?}") };
    assert_eq!(peer.uid, own_uid());
    assert_eq!(peer.pid, i32::try_from(std::process::id()).expect("pid"));
}

fn own_uid() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").expect("proc"))
}

#[test]
fn a_head_or_body_that_never_ends_is_hung_up_on() {
    let quick = Duration::from_millis(200);
    let limits = Limits { header_timeout: quick, body_timeout: quick, ..Limits::default() };
    let server = Server::start(Access { own_uid: own_uid(), ..Access::default() }, limits);
    let begun = Instant::now();
    // An idle one, and one that drips: each byte must not buy more time.
    let idle = server.connect();
    let mut drip = server.connect();
    let feeder = std::thread::spawn(move || {
        drip.write_all(b"GET /livez HTTP/1.1\r\n").expect("head");
        let until = Instant::now() + PATIENCE;
        while drip.write_all(b"a: b\r\n").is_ok() && Instant::now() < until {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    });
    assert!(exchange(idle, b"").is_none_or(|reply| reply.status == 408));
    feeder.join().expect("feeder");
    let slow_body = "POST /v1/actions/stop HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{";
    let reply = exchange(server.connect(), slow_body.as_bytes()).expect("an answer");
    assert_eq!((reply.status, reply.code().as_str()), (408, "request.too-slow"));
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    assert_eq!(server.calls(), []);
}

#[test]
fn a_huge_head_is_refused() {
    let server = Server::start(Access { own_uid: own_uid(), ..Access::default() }, Limits::default());
    let many: String = (0..400).map(|n| format!("x-{n}: {}\r\n", "a".repeat(100))).collect();
    let requests = [
        format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-a: {}\r\n\r\n", "a".repeat(20_000)),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(20_000)),
        format!("GET /livez HTTP/1.1\r\nhost: x\r\n{many}\r\n"),
    ];
    for request in requests {
        // The rest of the request may still be in flight when the server closes, and a reset
        // can then swallow the answer.
        if let Some(reply) = exchange(server.connect(), request.as_bytes()) {
            assert!(matches!(reply.status, 414 | 431), "{}", reply.head);
        }
    }
    assert_eq!(server.calls(), []);
    assert_eq!(exchange(server.connect(), &get("/livez")).expect("an answer").status, 200);
}

/// Slots that this process can fill.
fn room() -> usize {
    if own_uid() == 0 { 256 } else { 248 }
}

#[test]
fn a_crowd_of_followers_is_told_that_it_is_full_and_slots_come_back() {
    let server = Server::start(Access { own_uid: own_uid(), ..Access::default() }, Limits::default());
    let follow = "GET /v1/units/quiet/logs?follow=true HTTP/1.1\r\nhost: x\r\n\r\n";
    let crowd: Vec<UnixStream> = (0..room())
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(follow.as_bytes()).expect("request");
            // The head of the answer: from here on the slot is in use.
            assert!(stream.read(&mut [0; 512]).expect("head") > 0);
            stream
        })
        .collect();
    for _ in room()..300 {
        let reply = exchange(server.connect(), b"").expect("an answer");
        assert_eq!((reply.status, reply.code().as_str()), (503, "server.busy"));
    }
    drop(crowd);
    let until = Instant::now() + PATIENCE;
    while exchange(server.connect(), &get("/livez")).is_none_or(|reply| reply.status != 200) {
        assert!(Instant::now() < until, "no slot came back");
        std::thread::yield_now();
    }
}

#[test]
fn idle_and_slow_ones_make_room_for_whoever_asks() {
    let limits = Limits { header_timeout: PATIENCE, ..Limits::default() };
    let server = Server::start(Access { own_uid: own_uid(), ..Access::default() }, limits);
    let mut crowd = Vec::new();
    for _ in 0..600 {
        let mut stream = server.connect();
        stream.write_all(b"GET /livez HTTP/1.1\r\n").expect("half a head");
        crowd.push(stream);
    }
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(exchange(server.connect(), &get("/livez")).map(|reply| reply.status), Some(200));
    }
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    // The first of the crowd were hung up on, and the last are still there.
    assert_eq!(crowd[0].read(&mut [0; 8]).unwrap_or(0), 0);
    let last = crowd.pop().expect("a crowd");
    let rest = b"host: x\r\nconnection: close\r\n\r\n";
    assert_eq!(exchange(last, rest).map(|reply| reply.status), Some(200));
}

#[test]
fn garbage_never_takes_the_server_down_and_never_acts() {
    let limits = Limits { header_timeout: Duration::from_millis(100), ..Limits::default() };
    let server = Server::start(Access { own_uid: own_uid(), ..Access::default() }, limits);
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let mut luck = Luck::new(seed);
    let seeds =
        [get("/v1/units/web"), post("/v1/actions/stop", r#"{"units":["web"]}"#), get("/v1/logs?lines=3")];
    for round in 0..300 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..=luck.draw() % 8 {
            let at = usize::try_from(luck.draw()).unwrap_or(0) % bytes.len();
            match luck.draw() % 3 {
                0 => bytes[at] = luck.draw().to_le_bytes()[0],
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, luck.draw().to_le_bytes()[0]),
            }
        }
        let stream = server.connect();
        let _ = (&stream).write_all(&bytes); // it may hang up first
        let _ = stream.shutdown(std::net::Shutdown::Write);
        exchange(stream, b"");
    }
    let alive = exchange(server.connect(), &get("/livez")).map(|reply| reply.status);
    assert_eq!(alive, Some(200), "SEED={seed} cargo test --test api");
    for call in server.calls() {
        if let Call::Act { verb, all, .. } = call {
            assert_eq!((verb, all), (Verb::Stop, false), "SEED={seed} cargo test --test api");
        }
    }
}

#[test]
fn a_stream_is_delivered_and_ends() {
    let server = Server::start(Access { own_uid: own_uid(), ..Access::default() }, Limits::default());
    let mut seen = Vec::new();
    let ended = server
        .client()
        .stream("/v1/events?follow=true", |item: serde_json::Value| {
            seen.push(item["n"].clone());
            ControlFlow::<()>::Continue(())
        })
        .expect("stream");
    assert_eq!((ended, seen), (None, vec![1.into(), 2.into(), 3.into()]));
    let first = server
        .client()
        .stream("/v1/events?follow=true", |item: serde_json::Value| ControlFlow::Break(item["n"].as_u64()));
    assert_eq!(first.expect("stream"), Some(Some(1)));
    let reply = exchange(server.connect(), &get("/v1/logs?follow=true")).expect("an answer");
    assert!(reply.head.contains("content-type: text/event-stream"), "{}", reply.head);
    assert!(reply.body.contains("id: 1\ndata: {\"n\": 1}\n\n"), "{}", reply.body);
}

#[test]
fn a_quiet_stream_has_a_heartbeat() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    theirs.set_nonblocking(true).expect("nonblocking");
    let limits = Limits { heartbeat: Duration::from_millis(20), ..Limits::default() };
    let thread = std::thread::spawn(move || {
        let (sender, items) = tokio::sync::mpsc::channel(1);
        let items = Arc::new(Mutex::new(Some(items)));
        runtime().block_on(async {
            let stream = tokio::net::UnixStream::from_std(theirs).expect("stream");
            let peer = local(0, 0);
            let handler = move |_, _| {
                let items = items.lock().expect("items").take().expect("asked once");
                std::future::ready(Answer::Stream(items))
            };
            server::serve_connection(stream, peer, rules(Access::default()), limits, handler).await;
        });
        drop(sender);
    });
    let mut ours = patient(ours);
    ours.write_all(&get("/v1/events?follow=true")).expect("request");
    let mut text = String::new();
    let mut buffer = [0; 512];
    while text.matches(": alive\n").count() < 3 {
        let n = ours.read(&mut buffer).expect("heartbeats");
        assert!(n > 0, "ended early: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    // A client that is gone is noticed by the next heartbeat: the server's side ends.
    drop(ours);
    thread.join().expect("server");
}

#[test]
fn a_client_that_never_reads_loses_its_slot() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    theirs.set_nonblocking(true).expect("nonblocking");
    let limits = Limits { write_timeout: Duration::from_millis(50), ..Limits::default() };
    let begun = Instant::now();
    let thread = std::thread::spawn(move || {
        runtime().block_on(async {
            let stream = tokio::net::UnixStream::from_std(theirs).expect("stream");
            let peer = local(0, 0);
            // More than any socket buffer holds.
            let handler = |_, _| std::future::ready(Answer::Json(vec![b' '; 8_000_000].into()));
            server::serve_connection(stream, peer, rules(Access::default()), limits, handler).await;
        });
    });
    let mut ours = patient(ours);
    ours.write_all(&get("/v1/units")).expect("request");
    thread.join().expect("server");
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[test]
fn the_client_tells_the_three_misfortunes_apart() {
    let server = Server::start(Access { own_uid: own_uid(), ..Access::default() }, Limits::default());
    let gone = Client::new(&server.socket.with_extension("gone")).expect("client");
    match gone.get::<SystemHealth>("/api/system/health") {
        Err(ClientError::Unreachable { cause, .. }) => assert_eq!(cause.kind(), std::io::ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
    match server.client().get::<SystemHealth>("/v1/units/nobody") {
        Err(ClientError::Api { status: 404, error }) => assert_eq!(error.code, "unit.unknown"),
        other => panic!("{other:?}"),
    }
    let order = ActionRequest { units: vec!["web".into()], all: false };
    let reply = server.client().post::<ActionReply>("/v1/actions/stop", &order, None).expect("reply");
    assert_eq!(reply.outcomes, []);
    // A listener that nobody serves: connected, never answered.
    let dir = tempfile::tempdir().expect("tempdir");
    let silent = dir.path().join("s");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).expect("bind");
    let client = Client::new(&silent).expect("client");
    match client.post::<ActionReply>("/v1/actions/stop", &order, Some(Duration::from_millis(50))) {
        Err(ClientError::Timeout(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_document_is_the_one_in_the_repository() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/openapi.json");
    let text = openapi::text();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &text).expect("write");
    }
    let golden = std::fs::read_to_string(path).unwrap_or_default();
    assert!(golden == text, "the API changed: look at it with `BLESS=1 cargo test --test api` and git diff");
    let document = openapi::document();
    for route in ROUTES {
        let operation = &document["paths"][route.pattern][route.method.as_str().to_ascii_lowercase()];
        assert_eq!(operation["summary"], route.what, "{}", route.pattern);
    }
}
