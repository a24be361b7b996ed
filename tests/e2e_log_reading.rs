//! Reading logs of the real daemon: byte-exact, over rotations and kills of the engine, beside a
//! reader that never reads, and of a line that has no end.
//!
//! Refuses: a service of ours as a writer; what is read is what `cat`, `seq` and `head` wrote.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::{Home, UPRIGHT, eventually};

const SOON: Duration = Duration::from_secs(60);

fn oneshot(home: &Home, name: &str, script: &str, log: &str) {
    let script = script.replace('"', "\\\"");
    home.unit(
        name,
        &format!("[service]\ntype = \"oneshot\"\ncommand = [\"sh\", \"-c\", \"{script}\"]\n[log]\n{log}\n"),
    );
}

/// Nothing but printable characters and newlines: no byte of it drives a terminal.
fn is_harmless(text: &str) -> bool {
    text.chars().all(|c| {
        c == '\n'
            || (!c.is_control()
                && !('\u{202a}'..='\u{202e}').contains(&c)
                && !('\u{2066}'..='\u{2069}').contains(&c))
    })
}

#[test]
fn raw_is_exact_and_nothing_else_drives_a_terminal() {
    let mut home = Home::new();
    let mut payload: Vec<u8> = (0..=255).collect();
    payload.extend_from_slice(b"\n\0\0nul\0\n\xff\xfe\xc3\x28 caf\xc3\xa9\n\r\rprogress\r\n");
    for n in 0..200_u32 {
        let sequence = match n % 8 {
            0 => format!("\x1b[{n}m red \x1b[0m\n"),
            1 => format!("\x1b]0;title {n}\x07\n"),
            2 => format!("\x1b]52;c;ZXZpbA==\x1b\\ {n}\n"),
            3 => format!("\u{9b}{n};1H\n"),
            4 => format!("\x1bP+q{n}\x1b\\\n"),
            5 => format!("\u{202e}{n}\u{2066}\n"),
            6 => format!("\x1b[?1049h\x1b[2J{n}\x08\x08\n"),
            _ => format!("\x0e\x0f\x7f\x1bc{n}\x05\n"),
        };
        payload.extend_from_slice(sequence.as_bytes());
    }
    payload.extend_from_slice(b"last words");
    fs::write(home.path().join("payload"), &payload).expect("payload");
    let script = format!("cat {}", home.path().join("payload").display());
    oneshot(&home, "bytes", &script, "");
    home.daemon();
    let raw = eventually("all of it is stored", SOON, || {
        let output = home.upright(&["logs", "bytes", "--raw"]);
        (output.stdout.len() >= payload.len()).then_some(output)
    });
    assert_eq!(raw.status.code(), Some(0));
    assert!(raw.stdout == payload, "{}", raw.stdout.escape_ascii());
    let (status, body) =
        support::http::ask(&home.socket(), "GET", "/v1/units/bytes/logs?raw=true", "").expect("answer");
    assert!(status == 200 && body == payload);
    for color in ["never", "always"] {
        let shown = home.upright_exits(&["logs", "bytes", "-n", "all", "--color", color, "-t"], 0);
        let plain = shown.replace("\u{1b}[2m", "").replace("\u{1b}[0m", "");
        assert!(is_harmless(&plain), "{plain:?}");
        assert!(shown.lines().count() >= 206 && shown.ends_with("last words\n"), "{shown}");
    }
    // Each line's bytes are in the JSON, exactly.
    let list = home.get("/v1/units/bytes/logs?lines=all");
    let lines = list["lines"].as_array().expect("lines");
    assert!(lines.iter().any(|line| line["base64"].is_string()), "{list}");
    // From where the answer ended nothing is left, and what is written then comes.
    let next = list["next"].as_str().expect("a place");
    assert_eq!(home.get(&format!("/v1/units/bytes/logs?after={next}"))["lines"], Value::Array(vec![]));
    let card = home.get("/v1/units/bytes");
    assert_eq!(card["log_tail"].as_array().map(Vec::len), Some(10), "{card}");
    let (status, error) = home.request("GET", "/v1/units/bytes/logs?grep=a(", "");
    assert_eq!((status, error["error"]["code"].as_str()), (400, Some("log.bad-pattern")), "{error}");
    assert_eq!(home.upright(&["logs", "bytes", "-g", "a("]).status.code(), Some(2));
}

#[test]
fn lines_are_found_by_time_event_and_pattern() {
    let mut home = Home::new();
    oneshot(&home, "one", "seq 1 1000", "");
    oneshot(&home, "two", "echo zwei; sleep 0.2; echo drei >&2", "stderr = \"separate\"");
    home.daemon();
    await_stored(&home, "one", "1000");
    await_stored(&home, "two", "drei");
    assert_eq!(home.upright_exits(&["logs", "one", "-n", "2"], 0), "999\n1000\n");
    assert_eq!(home.upright_exits(&["logs", "one", "-g", "^99\\d$", "-n", "1"], 0), "999\n");
    assert_eq!(home.upright_exits(&["logs", "one", "-g", "^99\\d$"], 0).lines().count(), 10);
    assert_eq!(home.upright_exits(&["logs", "one", "--since", "1h ago"], 0).lines().count(), 1000);
    assert_eq!(home.upright_exits(&["logs", "one", "--until", "1h ago"], 0), "");
    assert_eq!(home.upright_exits(&["logs", "one", "--since", "#1"], 0).lines().count(), 1000);
    assert_eq!(home.upright(&["logs", "one", "--since", "#999999"]).status.code(), Some(1));
    assert_eq!(home.upright_exits(&["logs", "two"], 0), "zwei\ndrei\n");
    assert_eq!(home.upright_exits(&["logs", "two", "--stream", "stderr"], 0), "drei\n");
    let both = home.upright_exits(&["logs", "one", "two", "-n", "all"], 0);
    assert!(
        both.lines().count() == 1002 && both.contains("two │ zwei\n") && both.contains("one │ 1\n"),
        "{both}"
    );
    let marked = eventually("its end is marked", SOON, || {
        let marked = home.upright_exits(&["logs", "two", "--marks", "-n", "all"], 0);
        marked.contains(" exited (code 0) ──").then_some(marked)
    });
    assert!(marked.contains("── two run ") && marked.contains(" started ──"), "{marked}");
    let stranger = home.upright(&["logs", "twoo"]);
    assert_eq!(stranger.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&stranger.stderr).contains("did you mean `two`?"), "{stranger:?}");
    let several = home.upright(&["logs", "one", "two", "--raw"]);
    assert_eq!(several.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&several.stderr).contains("--raw takes one unit"), "{several:?}");
    let json: Value = serde_json::from_str(&home.upright_exits(&["logs", "two", "--json"], 0)).expect("JSON");
    assert_eq!(json["lines"][1]["stream"], "stderr");
    assert_eq!(json["lines"][1]["kind"], "line");
    assert!(
        json["lines"][1]["run"].is_u64()
            && json["lines"][1]["ts"].as_str().is_some_and(|ts| ts.ends_with('Z'))
    );
}

fn await_stored(home: &Home, unit: &str, line: &str) {
    eventually(&format!("{unit} has written {line}"), SOON, || {
        let output = home.upright(&["logs", unit, "-n", "1"]);
        String::from_utf8_lossy(&output.stdout).trim_end().ends_with(line).then_some(())
    });
}

/// `upright logs -f`, read by a thread-less test: killed when dropped.
struct Follower(Child);

impl Follower {
    fn start(home: &Home, args: &[&str]) -> Follower {
        let child = Command::new(UPRIGHT)
            .arg("logs")
            .args(args)
            .env("UPRIGHT_HOME", home.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Follower(child.expect("the binary runs"))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

/// Followed by people (`upright logs -f`) while its files are ended ten times a second and the engine
/// is killed: each line once, in order. `UPRIGHT_FOLLOW_KILLS=100` for more.
#[test]
fn a_followed_log_loses_and_doubles_nothing_over_rotations_and_kills() {
    let kills =
        std::env::var("UPRIGHT_FOLLOW_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(5_u32);
    let mut home = Home::new();
    let go_on = home.path().join("go-on");
    fs::write(&go_on, "").expect("go-on");
    let script = format!(
        "i=0; while [ -e {} ]; do seq $((i*100)) $((i*100+99)); i=$((i+1)); sleep 0.002; done; echo end; exec sleep 1000",
        go_on.display()
    );
    home.unit(
        "counter",
        &format!(
            "[service]\ncommand = [\"sh\", \"-c\", \"{}\"]\n[log]\nmax_size = \"64KiB\"\nmax_files = 1000\n",
            script.replace('"', "\\\"")
        ),
    );
    home.daemon();
    home.await_state("counter", "active", SOON);
    let mut follower = Follower::start(&home, &["counter", "-f", "-n", "all"]);
    let mut lines = BufReader::new(follower.0.stdout.take().expect("stdout")).lines();
    let mut expected = 0_u64;
    let mut read_to = |until: u64| -> bool {
        for line in lines.by_ref() {
            let line = line.expect("text");
            if line == "end" {
                return true;
            }
            assert_eq!(line, expected.to_string(), "a line was lost or doubled");
            expected += 1;
            if expected > until {
                return false;
            }
        }
        panic!("the follower ended");
    };
    for kill_number in 1..=kills {
        read_to(u64::from(kill_number) * 20_000);
        let engine = home.list().and_then(|list| list["daemon"]["engine_pid"].as_i64());
        if let Some(engine) = engine {
            let engine = i32::try_from(engine).expect("a pid");
            kill(Pid::from_raw(engine), Signal::SIGKILL).expect("the engine lives");
            eventually("another engine answers", SOON, || {
                home.list().filter(|list| list["daemon"]["engine_pid"] != engine)
            });
        }
    }
    fs::remove_file(&go_on).expect("remove");
    assert!(read_to(u64::MAX));
    let files = fs::read_dir(home.path().join("log/counter")).expect("logs").count();
    println!("{kills} kills, {expected} lines, {files} files");
    assert!(files > 10, "{files}");
}

/// A client that asks and never reads, beside a flood: the flood is not delayed, and when it reads at
/// last, what it gets and what it is told to have missed is everything.
#[test]
fn a_reader_that_does_not_read_loses_its_own_lines_and_is_told_how_many() {
    const LINES: u64 = 3_000_000;
    let mut home = Home::new();
    let go = home.path().join("go");
    let script =
        format!("while [ ! -e {} ]; do sleep 0.01; done; seq 1 {LINES}; exec sleep 1000", go.display());
    home.unit(
        "flood",
        &format!("[service]\ncommand = [\"sh\", \"-c\", \"{script}\"]\n[log]\nmax_size = \"8MiB\"\nmax_files = 100\n"),
    );
    home.daemon();
    home.await_state("flood", "active", SOON);
    let mut stream = UnixStream::connect(home.socket()).expect("connect");
    stream
        .write_all(b"GET /v1/units/flood/logs?follow=true&lines=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("request");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("id: ") {
        line.clear();
        assert!(reader.read_line(&mut line).expect("head") > 0);
    }
    let engine = i32::try_from(home.list().expect("list")["daemon"]["engine_pid"].as_i64().expect("pid"))
        .expect("pid");
    let before = anon_kib(engine);
    fs::write(&go, "").expect("go");
    let begun = Instant::now();
    eventually("everything is stored", SOON, || {
        let output = home.upright(&["logs", "flood", "-n", "1"]);
        (output.stdout == format!("{LINES}\n").into_bytes()).then_some(())
    });
    let took = begun.elapsed();
    println!("{LINES} lines stored in {took:?}; engine +{} KiB", anon_kib(engine).saturating_sub(before));
    let (mut seen, mut missed, mut last) = (0, 0, 0);
    while last < LINES {
        line.clear();
        assert!(reader.read_line(&mut line).expect("stream") > 0, "it ended at {last}");
        let Some(json) = line.strip_prefix("data: ") else { continue };
        let item: Value = serde_json::from_str(json).expect("JSON");
        match item["kind"].as_str() {
            Some("line") => {
                last = item["line"].as_str().and_then(|text| text.parse().ok()).expect("a number");
                seen += 1;
                assert_eq!(seen + missed, last, "{item}");
            }
            Some("missed") => missed += item["lines"].as_u64().expect("counted"),
            _ => panic!("{item}"),
        }
    }
    println!("{seen} seen, {missed} missed");
    assert!(missed > 0);
}

/// Anonymous memory of a process, KiB.
fn anon_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// `UPRIGHT_LONG_LINE_MIB=1024` for the whole.
#[test]
fn a_line_without_end_is_read_with_little_memory() {
    let mib = std::env::var("UPRIGHT_LONG_LINE_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(64_u64);
    let bytes = mib << 20;
    let mut home = Home::new();
    let script = format!("head -c {bytes} /dev/zero | tr '\\\\0' x; exec sleep 1000");
    home.unit(
        "long",
        &format!("[service]\ncommand = [\"sh\", \"-c\", \"{script}\"]\n[log]\nmax_size = \"100MiB\"\nmax_files = 100\n"),
    );
    home.daemon();
    home.await_state("long", "active", SOON);
    let engine = i32::try_from(home.list().expect("list")["daemon"]["engine_pid"].as_i64().expect("pid"))
        .expect("pid");
    let stored = || -> u64 {
        let entries =
            fs::read_dir(home.path().join("log/long")).map(|entries| entries.flatten().collect::<Vec<_>>());
        let logs = entries
            .unwrap_or_default()
            .into_iter()
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "log"));
        logs.map(|entry| entry.metadata().map_or(0, |data| data.len())).sum()
    };
    eventually("all of it is stored", Duration::from_secs(300), || (stored() >= bytes).then_some(()));
    assert_eq!(stored(), bytes);
    home.upright_exits(&["logs", "long", "-n", "1"], 0);
    let before = anon_kib(engine);
    let (mut most, mut most_cli) = (0, 0);
    for args in
        [&["logs", "long", "--raw"][..], &["logs", "long", "-n", "all"], &["logs", "long", "-n", "10"]]
    {
        let mut child = Command::new(UPRIGHT)
            .args(args)
            .env("UPRIGHT_HOME", home.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut out = child.stdout.take().expect("stdout");
        let (mut count, mut reads) = (0, 0_u32);
        let mut buffer = vec![0; 1 << 16];
        loop {
            let got = out.read(&mut buffer).expect("read");
            if got == 0 {
                break;
            }
            count += buffer[..got].iter().filter(|byte| **byte == b'x').count() as u64;
            reads += 1;
            if reads.is_multiple_of(64) {
                most = most.max(anon_kib(engine));
                most_cli = most_cli.max(anon_kib(child.id().cast_signed()));
            }
        }
        assert!(child.wait().expect("wait").success());
        let whole = !args.contains(&"10");
        assert_eq!(count, if whole { bytes } else { 10 << 16 }, "{args:?}");
        most = most.max(anon_kib(engine));
    }
    println!(
        "a line of {mib} MiB: engine {before} KiB, at most {most} KiB while it is read; CLI at most {most_cli} KiB"
    );
    assert!(most.saturating_sub(before) <= 1024, "{before} → {most} KiB");
}
