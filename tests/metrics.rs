//! Metrics as their readers see them: a strict parser, promtool, a real Prometheus with the shipped rules and
//! dashboard; and whether the numbers are those of what happened.
//!
//! Refuses: fixed ports, and asking before something can be there.

mod support;

#[path = "metrics/peer.rs"]
mod peer;
#[path = "metrics/strict.rs"]
mod strict;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regex::Regex;
use serde_json::Value;

use peer::{Forwarder, Prometheus, packaging};
use strict::Family;
use support::{Home, eventually, is_root, skip};
use upright::telemetry::metrics::{Id, Kind, SUFFIXES};

const LONG: Duration = Duration::from_secs(30);

/// What Prometheus 2.42 sends.
const ACCEPT: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// Type and text of `/metrics`.
fn ask(home: &Home, accept: &str) -> (String, String) {
    let mut stream = UnixStream::connect(home.socket()).expect("the socket");
    stream.set_read_timeout(Some(LONG)).expect("a timeout");
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    )
    .expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer in UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).expect("a type");
    (kind.to_string(), body.to_string())
}

fn families(home: &Home) -> BTreeMap<String, Family> {
    let (_, text) = ask(home, ACCEPT);
    strict::read(&text).unwrap_or_else(|wrong| panic!("{wrong}\n{text}"))
}

/// The value of one series: `name` as it stands in the text, and some of its labels.
fn value(families: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |sample: &&strict::Sample| {
        sample.name == name
            && labels.iter().all(|(key, value)| sample.labels.get(*key).map(String::as_str) == Some(value))
    };
    let found: Vec<f64> =
        families.values().flat_map(|family| &family.samples).filter(fits).map(|s| s.value).collect();
    assert!(found.len() <= 1, "{name} {labels:?} is not one series");
    found.first().copied()
}

fn of_unit(home: &Home, name: &str, unit: &str) -> f64 {
    value(&families(home), name, &[("unit", unit)]).unwrap_or_else(|| panic!("no {name} of {unit}"))
}

fn promtool(args: &[&str], dir: &Path, input: &str) -> Output {
    let mut child = Command::new("promtool")
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    child.stdin.take().expect("its stdin").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("promtool ends")
}

fn assert_clean(output: &Output) {
    let said = [output.stdout.as_slice(), &output.stderr].map(String::from_utf8_lossy).join("\n");
    assert!(output.status.success() && !said.contains("lint"), "{said}");
}

const CRASHES: &str = "[service]\ncommand = [\"sh\", \"-c\", \"exit 3\"]\n\
                       [restart]\ndelays = [\"100ms\", \"200ms\"]\n";

/// Its log is on a disk of 512 KiB, so it loses most of what it writes.
const NOISY: &str = "[service]\ncommand = [\"sh\", \"-c\", \"head -c 3000000 /dev/zero; exec sleep 1000\"]\n\
                     [log]\nwhen_full = \"drop\"\n";

/// A daemon with failures, alerts, and as root a log that has lost something.
fn troubled() -> Home {
    let mut home = Home::new();
    home.unit("crash", CRASHES).unit("calm", "[service]\ncommand = [\"sleep\", \"1000\"]\n");
    home.unit("needy", "[unit]\nrequires = [\"crash\"]\n[service]\ncommand = [\"sleep\", \"1000\"]\n");
    if skip((!is_root()).then_some("root, who may mount a small disk: no log is lost")) {
        home.daemon();
    } else {
        home.unit("noisy", NOISY);
        let log = home.path().join("log/noisy");
        let small = format!(
            "mkdir -p {0} && mount -t tmpfs -o size=512k tmpfs {0} && exec \"$@\"",
            log.to_str().expect("UTF-8")
        );
        home.daemon_through(&["unshare", "-m", "sh", "-c", &small, "sh"]);
        eventually("bytes were dropped", LONG, || {
            value(&families(&home), "upright_log_dropped_bytes_total", &[]).filter(|bytes| *bytes > 1e6)
        });
    }
    eventually("an alert was delivered", LONG, || {
        let labels = [("channel", "file"), ("outcome", "delivered")];
        value(&families(&home), "upright_alert_deliveries_total", &labels).filter(|count| *count >= 1.0)
    });
    home
}

#[test]
fn both_formats_are_what_they_say_and_the_json_has_the_same() {
    let home = troubled();
    let (kind, text) = ask(&home, ACCEPT);
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let families = strict::read(&text).unwrap_or_else(|wrong| panic!("{wrong}\n{text}"));
    let rows: BTreeSet<&str> = Id::ALL.iter().map(|id| id.family().name).collect();
    assert_eq!(families.keys().map(String::as_str).collect::<BTreeSet<_>>(), rows, "the table and the text");
    // Where nothing can be expected here: no controllers, no trouble, no health check.
    let may_be_empty = ["upright_unit_cgroup_memory_bytes", "upright_trouble", "upright_unit_healthy"];
    for (name, family) in &families {
        assert!(!family.samples.is_empty() || may_be_empty.contains(&name.as_str()), "{name} says nothing");
    }
    let states = |unit: &str| {
        let of = |sample: &&strict::Sample| sample.labels["unit"] == unit && sample.value == 1.0;
        families["upright_unit_state"].samples.iter().filter(of).count()
    };
    assert_eq!((states("crash"), states("calm")), (1, 1), "a unit is in one state");

    let (kind, classic) = ask(&home, "*/*");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    if !peer::lacking() {
        assert_clean(&promtool(&["check", "metrics"], home.path(), &classic));
    }

    let json = home.get("/api/system/metrics");
    assert_eq!(json["schema_version"], 1);
    let metrics = json["metrics"].as_array().expect("an array");
    assert_eq!(metrics.len(), families.len());
    for (metric, id) in metrics.iter().zip(Id::ALL) {
        let family = id.family();
        assert_eq!(metric["name"], family.sample_name().as_str());
        assert_eq!(metric["type"], family.kind.as_str());
        let samples = metric["samples"].as_array().expect("samples").len();
        if family.kind != Kind::Histogram && family.name != "upright_trouble" {
            assert_eq!(samples, families[family.name].samples.len(), "{}", family.name);
        }
    }
}

/// (user and system ticks, resident pages) of a process, as proc_pid_stat(5) and proc_pid_statm(5) say.
fn of_proc(pid: i32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).expect("it lives");
    (ticks, statm.split(' ').nth(1).expect("resident").parse().expect("pages"))
}

fn children_of(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it lives");
    text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

#[test]
fn numbers_of_processes_are_those_of_the_kernel() {
    let mut home = Home::new();
    home.unit("calm", "[service]\ncommand = [\"sh\", \"-c\", \"exec sleep 1000 5</dev/null 6</dev/null\"]\n");
    home.unit("busy", "[service]\ncommand = [\"sh\", \"-c\", \"while :; do :; done & wait\"]\n");
    home.daemon();
    let (calm, busy) = (home.pid("calm"), home.pid("busy"));
    let child = eventually("busy has its child", LONG, || children_of(busy).first().copied());
    eventually("calm is sleep", LONG, || {
        let name = fs::read_to_string(format!("/proc/{calm}/comm")).expect("it lives");
        (name == "sleep\n").then_some(())
    });
    eventually("the child has used half a second", LONG, || (of_proc(child).0 > 50).then_some(()));

    let cpu_s = |ticks: u64| Duration::from_millis(ticks * 10).as_secs_f64();
    let before = cpu_s(of_proc(busy).0 + of_proc(child).0);
    let seen = families(&home);
    let after = cpu_s(of_proc(busy).0 + of_proc(child).0);
    let unit = |name: &str, unit: &str| value(&seen, name, &[("unit", unit)]).expect(name);
    let cpu = unit("upright_unit_cpu_seconds_total", "busy");
    assert!(before - 0.05 <= cpu && cpu <= after + 0.3, "{before} ≤ {cpu} ≤ {after}");
    assert_eq!(unit("upright_unit_processes", "busy"), 2.0);
    assert_eq!(unit("upright_unit_tasks", "busy"), 2.0);

    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).expect("a size").expect("a page");
    let resident = unit("upright_unit_resident_memory_bytes", "calm");
    let expected = of_proc(calm).1 * page.unsigned_abs();
    assert!((resident - expected as f64).abs() <= 65_536.0, "{resident}, and the kernel says {expected}");
    let fds = fs::read_dir(format!("/proc/{calm}/fd")).expect("its fds").count();
    assert_eq!(unit("upright_unit_open_fds", "calm"), fds as f64);
    assert!(fds >= 5, "0 to 2, and two that it opened");

    let keeper = value(&seen, "upright_process_resident_memory_bytes", &[("process", "keeper")]);
    let expected = of_proc(home.child().as_raw()).1 * page.unsigned_abs();
    assert!((keeper.expect("the keeper") - expected as f64).abs() <= 4e6, "{keeper:?}, {expected}");
}

#[test]
fn counts_are_those_of_what_happened_and_outlive_the_engine_where_they_say_so() {
    let mut home = Home::new();
    home.unit("crash", &format!("{CRASHES}give_up_after = 3\n"));
    let checked = "[service]\ncommand = [\"sleep\", \"1000\"]\n\
                   [health]\nexec = [\"true\"]\ninterval = \"100ms\"\ntimeout = \"2s\"\n";
    home.unit("calm", checked);
    home.daemon();
    home.await_state("crash", "failed", LONG);
    eventually("three checks were good", LONG, || {
        value(&families(&home), "upright_health_check_seconds_count", &[]).filter(|count| *count >= 3.0)
    });
    home.upright_exits(&["stop", "calm"], 0);

    let seen = families(&home);
    let number = |name: &str| value(&seen, name, &[]).expect(name);
    let failures = home.events().iter().filter(|event| event["event"] == "unit.failed").count() as f64;
    assert_eq!(failures, 3.0);
    assert_eq!(value(&seen, "upright_unit_failures_total", &[("unit", "crash")]), Some(failures));
    assert_eq!(value(&seen, "upright_unit_restarts_total", &[("unit", "crash")]), Some(2.0));
    assert_eq!(value(&seen, "upright_unit_episode_failures", &[("unit", "crash")]), Some(3.0));
    let failed = [("unit", "crash"), ("upright_unit_state", "failed")];
    assert_eq!(value(&seen, "upright_unit_state", &failed), Some(1.0));
    assert_eq!(number("upright_restart_latency_seconds_count"), 2.0);
    let latency = number("upright_restart_latency_seconds_sum");
    assert!((0.3..2.0).contains(&latency), "delays of 100 and 200 ms: {latency}");
    assert_eq!(number("upright_stop_seconds_count"), 1.0);
    assert!(number("upright_engine_turn_seconds_count") > 10.0);
    assert!(number("upright_store_commit_seconds_count") > 3.0);
    let asked = [("method", "GET"), ("route", "/metrics")];
    assert!(value(&seen, "upright_api_request_seconds_count", &asked).expect("this route") >= 1.0);
    let raised = number("upright_alerts_raised_total");
    assert_eq!(raised, home.get("/v1/alerts")["alerts"].as_array().expect("alerts").len() as f64);

    let engine = home.get("/v1/units")["daemon"]["engine_pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(i32::try_from(engine).expect("a pid")), Signal::SIGKILL).expect("the engine lives");
    eventually("another engine answers", LONG, || {
        let list = home.list()?;
        (list["daemon"]["engine_pid"] != engine).then_some(())
    });
    let then = families(&home);
    assert_eq!(value(&then, "upright_engine_starts_total", &[]), Some(2.0));
    assert_eq!(value(&then, "upright_unit_restarts_total", &[("unit", "crash")]), Some(2.0));
    assert_eq!(value(&then, "upright_unit_episode_failures", &[("unit", "crash")]), Some(3.0));
    assert_eq!(value(&then, "upright_unit_failures_total", &[("unit", "crash")]), Some(0.0));
    assert!(value(&then, "upright_alerts_raised_total", &[]).expect("alerts") >= raised + 1.0, "its death");
    eventually("its records are counted on top of those before", LONG, || {
        (value(&families(&home), "upright_events_total", &[]) > value(&seen, "upright_events_total", &[]))
            .then_some(())
    });
}

/// `UPRIGHT_METRICS_UNITS=1000 cargo test --release --test metrics many -- --nocapture` prints what it costs.
#[test]
fn a_scrape_of_many_units_holds_nobody_up() {
    let units = std::env::var("UPRIGHT_METRICS_UNITS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let mut home = Home::new();
    for unit in 0..units {
        home.unit(&format!("u{unit}"), "[service]\ncommand = [\"sleep\", \"1000\"]\n");
    }
    home.daemon();
    eventually("every unit is active", Duration::from_secs(120), || {
        let active = value(&families(&home), "upright_units", &[("state", "active")]);
        (active == Some(f64::from(units))).then_some(())
    });
    let slow_turns = |seen: &BTreeMap<String, Family>| {
        let all = value(seen, "upright_engine_turn_seconds_count", &[]).expect("turns");
        all - value(seen, "upright_engine_turn_seconds_bucket", &[("le", "0.05")]).expect("a bucket")
    };
    let (before, mut took, mut bytes) = (families(&home), Vec::new(), 0);
    for _ in 0..20 {
        let began = Instant::now();
        bytes = ask(&home, ACCEPT).1.len();
        took.push(began.elapsed());
    }
    let after = families(&home);
    took.sort_unstable();
    eprintln!(
        "{units} units: a scrape takes {:?} (p50), {:?} (worst of 20), {bytes} bytes",
        took[10], took[19]
    );
    let turns = |seen: &BTreeMap<String, Family>, what: &str| {
        value(seen, &format!("upright_engine_turn_seconds_{what}"), &[]).expect("turns")
    };
    let (n, s) =
        (turns(&after, "count") - turns(&before, "count"), turns(&after, "sum") - turns(&before, "sum"));
    eprintln!("the loop was busy for {:.3} ms a turn meanwhile, {n} turns", s / n * 1e3);
    assert_eq!(value(&after, "upright_units_unseen", &[]), Some(0.0));
    assert!(slow_turns(&after) - slow_turns(&before) <= 1.0, "scrapes held up the loop for 50 ms and more");
}

#[test]
fn the_rules_pass_promtool_and_each_is_tested_both_ways() {
    let dir = packaging("prometheus");
    let rules = fs::read_to_string(dir.join("alerts.yml")).expect("the rules");
    let tests = fs::read_to_string(dir.join("alerts_test.yml")).expect("their tests");
    let names: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 15, "{names:?}");
    for name in &names {
        for how in ["fires", "is quiet"] {
            assert!(tests.contains(&format!("name: '{name} {how}'")), "no test that {name} {how}");
        }
    }
    let told = rules.matches("summary: ").count() + rules.matches("description: ").count();
    assert_eq!(told, 2 * names.len(), "each says what is wrong and what to do");
    if !peer::lacking() {
        assert_clean(&promtool(&["check", "rules", "alerts.yml"], &dir, ""));
        assert_clean(&promtool(&["test", "rules", "alerts_test.yml"], &dir, ""));
        assert_clean(&promtool(&["check", "config", "prometheus.yml"], &dir, ""));
    }
}

/// The expressions of every panel, and of the variables their metrics.
fn dashboard() -> Vec<String> {
    let text = fs::read_to_string(packaging("grafana/upright.json")).expect("the dashboard");
    let board: Value = serde_json::from_str(&text).expect("JSON");
    let panels = board["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let found: Vec<String> =
        targets.map(|target| target["expr"].as_str().expect("an expression").to_string()).collect();
    assert!(found.len() > 30, "{found:?}");
    found
}

#[test]
fn what_is_shipped_names_only_metrics_that_there_are() {
    let mut known = BTreeSet::new();
    for id in Id::ALL {
        let family = id.family();
        known.extend([family.name.to_string(), family.sample_name()]);
        if family.kind == Kind::Histogram {
            known.extend(SUFFIXES.map(|suffix| format!("{}{suffix}", family.name)));
        }
    }
    let name = Regex::new("upright_[a-z0-9_]+").expect("an expression");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut used = BTreeSet::new();
    for file in [
        "docs/metrics.md",
        "packaging/prometheus/alerts.yml",
        "packaging/prometheus/alerts_test.yml",
        "packaging/prometheus/prometheus.yml",
        "packaging/grafana/upright.json",
    ] {
        let text = fs::read_to_string(root.join(file)).expect(file);
        for found in name.find_iter(&text) {
            assert!(known.contains(found.as_str()), "{file}: there is no {}", found.as_str());
            used.insert(found.as_str().to_string());
        }
    }
    // What no person looks at is not worth its bytes.
    let board = dashboard().join("\n");
    for id in Id::ALL {
        let family = id.family();
        let elsewhere = ["upright_uptime_seconds", "upright_keeper_start_time_seconds"];
        let seen = board.contains(family.name) || used.contains(&family.sample_name());
        assert!(seen || elsewhere.contains(&family.name), "{} is used nowhere", family.name);
    }
}

#[test]
fn the_page_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = fs::read_to_string(&path).expect("docs/metrics.md");
    let (begin, end) = ("<!-- the table -->\n", "<!-- end of the table -->\n");
    let (before, rest) = page.split_once(begin).expect("where the table begins");
    let (_, after) = rest.split_once(end).expect("where it ends");
    let mut table = String::from("| metric | type | labels | what it says |\n| --- | --- | --- | --- |\n");
    for id in Id::ALL {
        let family = id.family();
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (family.sample_name(), family.kind.as_str());
        table.push_str(&format!("| `{name}` | {kind} | {} | {} |\n", labels.join(", "), family.help));
    }
    let wanted = format!("{before}{begin}{table}{end}{after}");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &wanted).expect("written");
    }
    let page = fs::read_to_string(&path).expect("docs/metrics.md");
    assert_eq!(page, wanted, "docs/metrics.md has another table; BLESS=1 writes it");
}

#[test]
fn prometheus_scrapes_it_and_its_rules_fire_and_resolve() {
    if peer::lacking() {
        return;
    }
    let mut home = Home::new();
    let good = home.path().join("good");
    let flaky = format!(
        "[service]\ncommand = [\"sh\", \"-c\", \"test -e {} || exit 1; exec sleep 1000\"]\n\
         [restart]\ndelays = [\"100ms\"]\nreset_after = \"1s\"\n",
        good.display()
    );
    home.unit("flaky", &flaky).unit("calm", "[service]\ncommand = [\"sleep\", \"1000\"]\n");
    home.daemon();
    let forwarder = Forwarder::start(home.socket());
    let prometheus = Prometheus::start(forwarder.port);
    let failing =
        eventually("the rule about failures fires", LONG, || prometheus.firing("UprightUnitFailing").pop());
    assert_eq!(failing["labels"]["unit"], "flaky");
    let summary = failing["annotations"]["summary"].as_str().expect("a summary");
    assert!(summary.starts_with("flaky on 127.0.0.1:") && summary.contains("times in a row"), "{summary}");
    eventually("no scrape is late", LONG, || prometheus.firing("UprightDown").is_empty().then_some(()));
    // In their own file, units with mistakes are red here, too.
    home.unit("broken", "[service]\ncommand = 7\n");
    eventually("the rule about files fires", LONG, || prometheus.firing("UprightConfigErrors").pop());

    for expression in dashboard() {
        let filled = expression
            .replace("$__rate_interval", "1m")
            .replace("$__range", "1h")
            .replace("$instance", ".*")
            .replace("$unit", ".*");
        assert!(!filled.contains('$'), "{expression}");
        if let Err(wrong) = prometheus.query(&filled) {
            panic!("the dashboard has an expression that Prometheus refuses: {wrong}");
        }
    }
    let build = prometheus.query("upright_build_info").expect("a query");
    assert_eq!(build[0]["metric"]["version"], env!("CARGO_PKG_VERSION"));
    let restarts = prometheus.query("upright_unit_restarts_total{unit=\"flaky\"}").expect("a query");
    assert!(restarts[0]["value"][1].as_str().expect("a value").parse::<f64>().expect("a number") >= 3.0);

    fs::write(&good, "").expect("written");
    fs::remove_file(home.path().join("units/broken.toml")).expect("it is there");
    for rule in ["UprightUnitFailing", "UprightConfigErrors"] {
        eventually(&format!("{rule} is over"), LONG, || prometheus.firing(rule).is_empty().then_some(()));
    }
    assert_eq!(of_unit(&home, "upright_unit_episode_failures", "flaky"), 0.0);
    home.stop();
    eventually("the rule about silence fires", LONG, || prometheus.firing("UprightDown").pop());
}
