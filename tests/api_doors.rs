//! Who may do what, through which door: every route, every role, both transports; and the doors as
//! the configuration opens and closes them.
//!
//! Refuses: a list of routes of its own. The route table says what each cell must be.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::raw::{self, Reply};
use support::{Home, eventually, free_port, is_root, skip};
use upright::api::routes::{Door, Need, ROUTES, Route, Target};
use upright::base::base64;

/// Longest until a changed file is in force.
const SOON: Duration = Duration::from_secs(20);

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const OTHER_TOKEN: &str = "fedcba9876543210fedcba9876543210";

/// Accounts that no system has.
const OPERATOR: u32 = 64_001;
const OPERATORS: u32 = 64_002;
const VIEWER: u32 = 64_003;
const STRANGER: u32 = 64_004;

const WEB: &str =
    "[service]\ncommand = [\"sleep\", \"600\"]\n[restart]\ndelays = [\"10ms\"]\n[stop]\ntimeout = \"5s\"\n";

/// A daemon with one unit, and TCP.
fn home(port: u16, more: &str) -> Home {
    let mut home = Home::new();
    home.unit("web", WEB);
    write_token(&home, TOKEN);
    configure(&home, &[port], more);
    home.daemon();
    await_port(port);
    home
}

fn write_token(home: &Home, token: &str) {
    let (path, new) = (home.path().join("token"), home.path().join("token.new"));
    fs::write(&new, format!("{token}\n")).expect("a token");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("its mode");
    fs::rename(new, path).expect("in its place");
}

fn configure(home: &Home, ports: &[u16], more: &str) {
    let listen: Vec<String> = ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    let token = home.path().join("token");
    let text =
        format!("[api]\nlisten = [{}]\ntoken_file = \"{}\"\n{more}", listen.join(", "), token.display());
    fs::write(home.path().join("upright.toml"), text).expect("upright.toml");
}

fn await_port(port: u16) {
    eventually("the port is open", SOON, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
}

fn path_of(route: &Route) -> String {
    route.pattern.replace("{name}", "web")
}

fn body_of(route: &Route) -> &'static str {
    match route.pattern {
        pattern if pattern.ends_with("/signal") => r#"{"signal":"CONT"}"#,
        pattern if pattern.ends_with("/mute") => r#"{"for_s":60}"#,
        pattern if pattern.starts_with("/v1/actions/") => r#"{"units":["web"]}"#,
        "/v1/drills" => r#"{"drill":"d1","do":"undo"}"#,
        _ => "{}",
    }
}

/// One request as another account, by curl under setpriv.
fn ask_as(home: &Home, account: &[&str], route: &Route) -> Reply {
    let mut command = Command::new("setpriv");
    command.args(account).args(["curl", "-s", "-i", "--max-time", "30", "--unix-socket"]);
    command.arg(home.socket()).args(["-X", route.method.as_str()]);
    if route.need == Need::Act {
        command.args(["-H", "Content-Type: application/json", "-d", body_of(route)]);
    }
    let output = command.arg(format!("http://localhost{}", path_of(route))).stdin(Stdio::null()).output();
    let output = output.expect("setpriv and curl");
    Reply::parse(&output.stdout).unwrap_or_else(|| panic!("{route:?} as {account:?}: {output:?}"))
}

fn ask_tcp(port: u16, route: &Route, lines: &[(&str, &str)]) -> Reply {
    let method = route.method.as_str();
    let body = if route.need == Need::Act { body_of(route) } else { "" };
    let request = raw::request(method, &path_of(route), lines, body);
    raw::exchange(raw::tcp(port), &request).unwrap_or_else(|| panic!("{route:?} {lines:?}: no answer"))
}

fn expect(reply: &Reply, status: u16, code: &str, case: &str) {
    assert_eq!((reply.status, reply.code().as_str()), (status, code), "{case}: {}", reply.body);
}

#[test]
fn every_role_may_do_over_the_unix_socket_what_the_table_says() {
    if skip((!is_root()).then_some("root: it becomes other accounts")) {
        return;
    }
    let roles = format!("operators = [\"{OPERATOR}\", \"@{OPERATORS}\"]\nviewers = [\"{VIEWER}\"]\n");
    let port = free_port();
    let home = home(port, &roles);
    let ids = |uid: u32, gid: u32, groups: Option<u32>| -> Vec<String> {
        let groups = groups.map_or("--clear-groups".to_string(), |group| format!("--groups={group}"));
        vec![format!("--reuid={uid}"), format!("--regid={gid}"), groups]
    };
    // (account, may act, may read)
    let table = [
        (ids(0, 0, None), true, true),
        (ids(OPERATOR, 64_000, None), true, true),
        (ids(64_010, OPERATORS, None), true, true),
        (ids(64_011, 64_000, Some(OPERATORS)), true, true),
        (ids(VIEWER, 64_000, None), false, true),
        (ids(STRANGER, 64_000, Some(64_005)), false, false),
    ];
    let mut cells = 0;
    for route in ROUTES {
        for (account, acts, reads) in &table {
            let account: Vec<&str> = account.iter().map(String::as_str).collect();
            let may = match route.need {
                Need::Act => *acts,
                Need::View => *reads,
            };
            let case = format!("{} {} as {account:?}", route.method, route.pattern);
            let reply = ask_as(&home, &account, route);
            match may {
                // Nobody began it; whoever may not ask is not told.
                true if route.target == Target::Drill => expect(&reply, 404, "drill.unknown", &case),
                true => assert_eq!(reply.status, 200, "{case}: {}", reply.body),
                false => expect(&reply, 403, "access.denied", &case),
            }
            cells += 1;
        }
    }
    println!("{cells} cells");
    let asked: Vec<Value> =
        home.events().into_iter().filter(|event| event["event"] == "order.asked").collect();
    let by = |uid: u32| asked.iter().filter(|event| event["data"]["uid"] == uid).count();
    assert!(by(OPERATOR) > 10, "{asked:?}");
    assert_eq!((by(VIEWER), by(STRANGER)), (0, 0));
    let refused =
        home.events().into_iter().rfind(|event| event["event"] == "order.refused").expect("a record");
    assert_eq!(refused["data"]["code"], "access.denied");
}

#[test]
fn every_door_over_tcp_is_as_the_table_says() {
    let port = free_port();
    let home = home(port, "");
    let own = format!("127.0.0.1:{port}");
    let right = format!("Bearer {TOKEN}");
    let host = ("Host", own.as_str());
    let token = ("Authorization", right.as_str());
    let foreign = ("Origin", "http://evil.example");
    let wrong = [
        format!("Bearer {OTHER_TOKEN}"),
        format!("Bearer {}", &TOKEN[1..]),
        format!("Basic {TOKEN}"),
        TOKEN.to_string(),
        "Bearer".to_string(),
    ];
    let before = home.last_event();
    for route in ROUTES {
        let case = format!("{} {}", route.method, route.pattern);
        let without = |reply: &Reply, what: &str| match route.door {
            Door::Open => assert_eq!(reply.status, 200, "{case} {what}: {}", reply.body),
            Door::Token | Door::Unix => {
                expect(reply, 401, "access.token", &format!("{case} {what}"));
                assert!(reply.head.contains("\r\nwww-authenticate: bearer"), "{}", reply.head);
            }
        };
        without(&ask_tcp(port, route, &[host]), "without a token");
        for shown in &wrong {
            without(&ask_tcp(port, route, &[host, ("Authorization", shown)]), shown);
        }
        for name in ["evil.example".to_string(), format!("evil.example:{port}"), "127.0.0.1".to_string()] {
            let reply = ask_tcp(port, route, &[("Host", &name), token]);
            expect(&reply, 421, "request.foreign-host", &format!("{case} at {name}"));
        }
        if route.need == Need::Act {
            for line in [foreign, ("Origin", "null"), ("Sec-Fetch-Site", "cross-site")] {
                let reply = ask_tcp(port, route, &[host, token, line]);
                expect(&reply, 403, "access.foreign-origin", &format!("{case} {line:?}"));
            }
        }
    }
    let changes =
        |after| home.events_after(after).into_iter().filter(|event| event["event"] == "order.asked").count();
    assert_eq!(changes(before), 0, "somebody without a right changed something");
    let refused = home.events_after(before).iter().filter(|event| event["event"] == "order.refused").count();
    assert!((1..=40).contains(&refused), "{refused} records of refusals");
    for route in ROUTES {
        let reply = ask_tcp(port, route, &[("Host", &format!("localhost:{port}")), token]);
        let case = format!("{} {} with the token", route.method, route.pattern);
        match route.door {
            Door::Open | Door::Token => assert_eq!(reply.status, 200, "{case}: {}", reply.body),
            Door::Unix => expect(&reply, 403, "access.unix-only", &case),
        }
    }
    let events = home.events_after(before);
    let asked = events.iter().rfind(|event| event["event"] == "order.asked").expect("an order");
    assert_eq!(asked["data"]["token"], true, "{asked}");
    let done = events.iter().rfind(|event| event["event"] == "order.answered").expect("an outcome");
    assert_eq!((&done["data"]["token"], &done["data"]["status"]), (&true.into(), &200.into()), "{done}");
    let all = format!("{events:?}{}", home.said());
    assert!(!all.contains(TOKEN) && !all.contains(OTHER_TOKEN), "a token was written down");
}

#[test]
fn a_password_of_a_browser_reads_and_changes_nothing() {
    let port = free_port();
    let home = home(port, "");
    let own = format!("127.0.0.1:{port}");
    let host = ("Host", own.as_str());
    let basic = |pair: String| format!("Basic {}", base64::encode(pair.as_bytes()));
    let right = basic(format!("any name:{TOKEN}"));
    let password = ("Authorization", right.as_str());
    let (cross, link) = (("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"));
    let before = home.last_event();
    for route in ROUTES {
        let case = format!("{} {} with a password", route.method, route.pattern);
        let plain = ask_tcp(port, route, &[host, password]);
        let foreign = ask_tcp(port, route, &[host, password, cross]);
        let linked = ask_tcp(port, route, &[host, password, cross, link]);
        match (route.need, route.door) {
            (Need::Act, _) => {
                // The same page or not, by a link or not.
                expect(&plain, 401, "access.token", &case);
                assert!(!plain.head.contains("basic realm"), "{case}: nobody is asked for what does not do");
                assert!(
                    [401, 403].contains(&foreign.status) && [401, 403].contains(&linked.status),
                    "{case}"
                );
            }
            (Need::View, Door::Unix) => expect(&plain, 403, "access.unix-only", &case),
            (Need::View, Door::Open) => {
                assert_eq!([plain.status, foreign.status, linked.status], [200; 3], "{case}")
            }
            (Need::View, Door::Token) => {
                assert_eq!([plain.status, linked.status], [200; 2], "{case}: {}", plain.body);
                expect(&foreign, 403, "access.foreign-origin", &case);
            }
        }
    }
    let row = |pattern: &str| ROUTES.iter().find(|route| route.pattern == pattern).expect("a route");
    for wrong in [
        basic(format!("any:{OTHER_TOKEN}")),
        basic(TOKEN.to_string()),
        basic(format!("{TOKEN}:")),
        format!("Basic {TOKEN}"),
        "Basic".to_string(),
    ] {
        let reply = ask_tcp(port, row("/sign-in"), &[host, ("Authorization", &wrong)]);
        expect(&reply, 401, "access.token", &wrong);
        assert!(reply.head.contains("www-authenticate: basic realm"), "{}", reply.head);
    }
    // Whoever is not the reader gets the page that needs no token.
    let hides = |lines: &[(&str, &str)]| ask_tcp(port, row("/"), lines).body.contains("id=\"sign-in\"");
    assert!(!hides(&[host, password]) && !hides(&[host, password, cross, link]));
    assert!(hides(&[host]) && hides(&[host, password, cross]));
    let shown = ask_tcp(port, row("/"), &[host, password]);
    for line in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(shown.head.contains(line), "{line}\n{}", shown.head);
    }
    let events = home.events_after(before);
    assert!(!events.iter().any(|event| event["event"] == "order.asked"), "a password changed something");
}

#[test]
fn doors_open_and_close_with_the_file_and_an_address_in_use_is_told() {
    let port = free_port();
    let home = home(port, "");
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let in_use = taken.local_addr().expect("its address").port();
    let units = ROUTES.iter().find(|route| route.pattern == "/v1/units").expect("the route");
    let ask = |port: u16, token: &str| {
        let lines = [("Host", format!("127.0.0.1:{port}")), ("Authorization", format!("Bearer {token}"))];
        let lines: Vec<(&str, &str)> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
        ask_tcp(port, units, &lines).status
    };
    assert_eq!(ask(port, TOKEN), 200);
    let told = |code: &str| {
        let health = home.get("/api/system/health");
        let troubles = health["troubles"].as_array().expect("troubles").clone();
        troubles.into_iter().find(|trouble| trouble["code"] == code)
    };
    configure(&home, &[port, in_use], "");
    let trouble = eventually("the address is told", SOON, || told("api.listen"));
    assert!(trouble["message"].as_str().is_some_and(|text| text.contains(&in_use.to_string())), "{trouble}");
    assert_eq!(ask(port, TOKEN), 200);
    drop(taken);
    eventually("the address is had at last", SOON, || told("api.listen").is_none().then_some(()));
    assert_eq!(ask(in_use, TOKEN), 200);

    let begun = Instant::now();
    write_token(&home, OTHER_TOKEN);
    eventually("the new token is in force", SOON, || (ask(port, OTHER_TOKEN) == 200).then_some(()));
    println!("a new token was in force after {:?}", begun.elapsed());
    assert_eq!(ask(port, TOKEN), 401);
    write_token(&home, "hunter22");
    let trouble = eventually("a bad token is told", SOON, || told("api.token"));
    assert!(!trouble.to_string().contains("hunter22"), "{trouble}");
    assert_eq!((ask(port, OTHER_TOKEN), ask(port, "hunter22")), (401, 401));
    if is_root() {
        fs::write(home.path().join("token"), TOKEN).expect("a token");
        fs::set_permissions(home.path().join("token"), fs::Permissions::from_mode(0o666)).expect("its mode");
        let unsafe_file = || told("api.token").filter(|told| told.to_string().contains("others can write"));
        eventually("a token that others can write is none", SOON, unsafe_file);
        assert_eq!(ask(port, TOKEN), 401);
    }
    configure(&home, &[in_use], "");
    eventually("the first door is closed", SOON, || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err().then_some(())
    });
    assert_eq!(ask(in_use, OTHER_TOKEN), 401);
}

#[test]
fn whatever_is_refused_is_refused_in_one_form() {
    let port = free_port();
    let home = home(port, "");
    let long = "a".repeat(70_000);
    let host = format!("Host: 127.0.0.1:{port}\r\n");
    let close = "Connection: close\r\n\r\n";
    let table = [
        ("garbage\r\n\r\n".to_string(), 400, "request.malformed"),
        (format!("GET /livez HTTP/1.1\r\n{host}bad header\r\n{close}"), 400, "request.malformed"),
        (
            format!("GET /livez HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 2\r\n{close}"),
            400,
            "request.malformed",
        ),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_string(), 400, "request.malformed"),
        (format!("GET /{long} HTTP/1.1\r\n{host}{close}"), 431, "request.head-too-large"),
        (format!("GET /livez HTTP/1.1\r\n{host}X-A: {long}\r\n{close}"), 431, "request.head-too-large"),
        (format!("GET /nothing HTTP/1.1\r\n{host}{close}"), 404, "route.unknown"),
        (format!("PUT /v1/units HTTP/1.1\r\n{host}{close}"), 405, "route.method"),
        (format!("GET /livez HTTP/1.1\r\n{close}"), 400, "request.host"),
    ];
    for (request, status, code) in table {
        let shown = request.chars().take(60).collect::<String>();
        let over_unix = UnixStream::connect(home.socket()).expect("the socket answers");
        let replies =
            [raw::exchange(raw::tcp(port), request.as_bytes()), raw::exchange(over_unix, request.as_bytes())];
        for (reply, is_tcp) in replies.into_iter().zip([true, false]) {
            // A reset, because of what was not read, may overtake the answer to a head that is too large.
            let Some(reply) = reply else {
                assert!(request.len() > 60_000, "{shown}: no answer");
                continue;
            };
            if code == "request.host" && !is_tcp {
                assert_eq!(reply.status, 200, "on the Unix socket no name is asked for");
                continue;
            }
            expect(&reply, status, code, &shown);
            assert!(reply.head.contains("content-type: application/json"), "{}", reply.head);
        }
    }
    let accept = |kind: &str| {
        let request = format!("GET /v1/units HTTP/1.1\r\nHost: x\r\nAccept: {kind}\r\n{close}");
        raw::exchange(UnixStream::connect(home.socket()).expect("the socket"), request.as_bytes())
            .expect("an answer")
    };
    expect(&accept("text/html, application/json;q=0"), 406, "request.not-acceptable", "Accept");
    assert_eq!(accept("text/html, */*;q=0.1").status, 200);
    // Half a head, and then nothing: 5 s later.
    let mut half = raw::tcp(port);
    half.write_all(b"GET /livez HTTP/1.1\r\nHost: x").expect("half a head");
    let reply = raw::exchange(half, b"").expect("an answer");
    expect(&reply, 408, "request.too-slow", "half a head");
}

#[test]
fn a_stream_of_events_goes_on_where_it_broke() {
    let port = free_port();
    let home = home(port, "");
    let last = home.last_event();
    home.request("POST", "/v1/units/web/restart", "{}");
    home.await_event(last, "it is restarted", SOON, |event| event["event"] == "unit.active");
    let read = |after: u64| {
        let mut stream = UnixStream::connect(home.socket()).expect("the socket");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        let head =
            format!("GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\nLast-Event-ID: {after}\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("asked");
        let lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
        let ids = lines.filter_map(|line| line.strip_prefix("id: ").and_then(|id| id.parse::<u64>().ok()));
        ids.take(2).collect::<Vec<_>>()
    };
    assert_eq!(read(last), [last + 1, last + 2]);
    assert_eq!(read(last + 1), [last + 2, last + 3]);
    let bad = raw::request("GET", "/v1/events", &[("Host", "x"), ("Last-Event-ID", "yesterday")], "");
    let reply =
        raw::exchange(UnixStream::connect(home.socket()).expect("the socket"), &bad).expect("an answer");
    expect(&reply, 400, "request.malformed", "a bad id");
}
