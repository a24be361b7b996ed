//! Logs under fire: numbered lines from four streams while the engine is killed again and again,
//! also together with the service; floods beside a quiet unit.
//!
//! Refuses: reading logs through the daemon. What counts is what stands in the files.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use support::{Home, eventually, http, skip_tool};

const SOON: Duration = Duration::from_secs(30);

/// Longest random moment between "the engine answers" and its death, in milliseconds.
const MOMENT_MS_MAX: u64 = 60;

const WRITER: &str = include_str!("logs/writer.py");

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn has_python() -> bool {
    std::process::Command::new("python3").arg("--version").output().is_ok_and(|out| out.status.success())
}

/// SplitMix64; the seed is printed, and taken from SEED.
struct Luck(u64);

impl Luck {
    fn new() -> Luck {
        let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
        println!("SEED={seed} cargo test --test e2e_logs");
        Luck(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn writer_unit(home: &Home, name: &str, lines: u64, batch: u64, log: &str) {
    let (script, notes) = (home.path().join("writer.py"), home.path().join("notes"));
    fs::write(&script, WRITER).expect("the writer");
    fs::create_dir_all(&notes).expect("notes/");
    let text = format!(
        "[service]\ncommand = [\"python3\", \"-S\", \"{}\", \"{}\", \"{lines}\", \"{batch}\"]\n\
         [restart]\ndelays = [\"0s\"]\n[log]\nstderr = \"separate\"\n{log}\n",
        script.display(),
        notes.display()
    );
    home.unit(name, &text);
}

/// Everything that a stream's files hold, in order: older ones by their number, then the current one.
fn stream_of(home: &Home, unit: &str, stream: &str) -> Vec<u8> {
    let directory = home.path().join("log").join(unit);
    let (prefix, current) = match stream {
        "1" => ("stdout-", "current.log"),
        _ => ("stderr-", "stderr.log"),
    };
    let mut older: Vec<PathBuf> = fs::read_dir(&directory)
        .expect("the unit's logs")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            name.starts_with(prefix) && (name.ends_with(".log") || name.ends_with(".log.zst"))
        })
        .collect();
    older.sort();
    let mut bytes = Vec::new();
    for path in older {
        let file = fs::read(&path).expect("an older file");
        if path.extension().is_some_and(|extension| extension == "zst") {
            bytes.extend(zstd::stream::decode_all(file.as_slice()).expect("a zstd file"));
        } else {
            bytes.extend(file);
        }
    }
    bytes.extend(fs::read(directory.join(current)).expect("the current file"));
    bytes
}

/// The name that the writer with this pid gives itself; it lives.
fn writer_name(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(format!("{pid}-{}", fields.split_whitespace().nth(19)?))
}

/// How many lines each writer has in this stream. Panics at the first that is lost, doubled
/// or out of order.
fn count_lines(bytes: &[u8], what: &str) -> BTreeMap<String, u64> {
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "{what} ends in the middle of a line");
    let mut next: BTreeMap<String, u64> = BTreeMap::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let text =
            std::str::from_utf8(line).unwrap_or_else(|_| panic!("{what}: torn: {}", line.escape_ascii()));
        let mut words = text.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("{what}: torn: {text}"));
        let (name, _, n, dots) = (word(), word(), word(), word());
        let n: u64 = n.parse().unwrap_or_else(|_| panic!("{what}: torn: {text}"));
        let expected = next.entry(name.to_string()).or_default();
        assert_eq!(n, *expected, "{what}: writer {name}: line {n} where {expected} should be");
        assert_eq!(u64::try_from(dots.len()).expect("length"), n % 41, "{what}: torn: {text}");
        *expected += 1;
    }
    next
}

/// What this writer noted that it had written.
fn noted(home: &Home, name: &str, stream: &str) -> u64 {
    let text = fs::read_to_string(home.path().join(format!("notes/{name}.{stream}"))).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn engine(home: &Home, former: Option<i32>) -> i32 {
    eventually("an engine answers", SOON, || {
        let pid = i32::try_from(home.list()?["daemon"]["engine_pid"].as_i64()?).ok()?;
        (Some(pid) != former).then_some(pid)
    })
}

fn sigkill(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
}

/// UPRIGHT_LOG_LINES lines in all (10^6), UPRIGHT_LOG_KILLS kills (100); files are ended every 256 KiB and packed.
#[test]
fn no_line_is_lost_or_doubled_however_often_the_engine_dies() {
    if skip_tool((!has_python()).then_some("python3")) {
        return;
    }
    let (lines, kills) = (number("UPRIGHT_LOG_LINES", 1_000_000), number("UPRIGHT_LOG_KILLS", 100));
    let mut luck = Luck::new();
    let mut home = Home::new();
    let each = lines / 4;
    // Renamed into place: a writer never reads half a number.
    let allow = |home: &Home, lines: u64| {
        let (new, name) = (home.path().join("notes/allowing"), home.path().join("notes/allowed"));
        fs::write(&new, lines.to_string()).and_then(|()| fs::rename(&new, &name)).expect("notes/allowed");
    };
    let log = "max_size = \"256KiB\"\nmax_files = 1000";
    writer_unit(&home, "one", each, 60, &format!("{log}\ncompress = true"));
    writer_unit(&home, "two", each, 60, log);
    allow(&home, 0);
    let started = Instant::now();
    home.daemon();
    let pids = ["one", "two"].map(|unit| {
        home.await_state(unit, "active", SOON);
        home.pid(unit)
    });
    let mut former = None;
    for killed in 1..=kills {
        let pid = engine(&home, former);
        // It dies amid its share of the lines, not after them.
        allow(&home, each * killed / kills);
        // A random moment is the point of this test; no event could stand for it.
        std::thread::sleep(Duration::from_millis(luck.below(MOMENT_MS_MAX)));
        sigkill(pid);
        former = Some(pid);
    }
    engine(&home, former);
    let names = pids.map(|pid| writer_name(pid).expect("it lives"));
    for name in &names {
        eventually("it has written all its lines", Duration::from_secs(600), || {
            home.path().join(format!("notes/{name}.done")).exists().then_some(())
        });
    }
    assert_eq!(["one", "two"].map(|unit| home.pid(unit)), pids, "a service was touched");
    assert!(home.stop().success());
    let mut total = 0;
    for (unit, name) in ["one", "two"].into_iter().zip(names) {
        for stream in ["1", "2"] {
            let counted = count_lines(&stream_of(&home, unit, stream), &format!("{unit} {stream}"));
            assert_eq!(counted, BTreeMap::from([(name.clone(), each)]), "{unit} {stream}");
            total += each;
        }
    }
    println!("{total} lines from 4 streams, {kills} kills, {:.0?}: 0 lost, 0 doubled", started.elapsed());
}

/// UPRIGHT_LOG_DEATHS times (25) engine and service are killed at once: what the service's last
/// write(2) returned for is there.
#[test]
fn last_words_are_kept_when_engine_and_service_die_together() {
    if skip_tool((!has_python()).then_some("python3")) {
        return;
    }
    let deaths = number("UPRIGHT_LOG_DEATHS", 25);
    let mut luck = Luck::new();
    let mut home = Home::new();
    writer_unit(&home, "mortal", u64::MAX >> 1, 20, "max_size = \"256KiB\"\nmax_files = 1000");
    home.daemon();
    let mut dead: Vec<String> = Vec::new();
    let mut former = None;
    for _ in 0..deaths {
        let engine_pid = engine(&home, former);
        let last = dead.last().cloned();
        let status = home.await_unit("mortal", "mortal runs anew", SOON, |status| {
            let pid = status["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            let name = pid.and_then(writer_name);
            name.is_some_and(|name| Some(&name) != last.as_ref() && noted(&home, &name, "2") > 0)
        });
        let pid = i32::try_from(status["pid"].as_i64().expect("pid")).expect("pid");
        let name = writer_name(pid).expect("it lives");
        std::thread::sleep(Duration::from_millis(luck.below(MOMENT_MS_MAX)));
        // In either order.
        let order = if luck.below(2) == 0 { [engine_pid, pid] } else { [pid, engine_pid] };
        order.into_iter().for_each(sigkill);
        dead.push(name);
        former = Some(engine_pid);
    }
    engine(&home, former);
    home.await_state("mortal", "active", SOON);
    assert!(home.stop().success());
    let mut total = 0;
    for stream in ["1", "2"] {
        let counted = count_lines(&stream_of(&home, "mortal", stream), stream);
        for name in &dead {
            let (found, noted) = (counted.get(name).copied().unwrap_or(0), noted(&home, name, stream));
            // The last write may have returned without being noted.
            assert!(
                (noted..=noted + 20).contains(&found),
                "writer {name}, {stream}: {found} lines, noted {noted}"
            );
            total += found;
        }
    }
    println!("{deaths} deaths of engine and service at once, {total} lines: 0 lost, 0 doubled");
}

/// A chunk, a mark or the end of a file: (offset, µs since 1970, kind).
fn records(index: &Path) -> Vec<(u64, i64, u8)> {
    let bytes = fs::read(index).expect("an index");
    let word = |record: &[u8], at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("8 bytes"));
    let (records, _) = bytes[64..].as_chunks::<32>();
    let whole = records.iter().filter(|record| record[24] != 0);
    whole.map(|record| (word(record, 0), word(record, 8).cast_signed(), record[24])).collect()
}

fn resident_kib(pid: i64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("KiB")
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// Eight floods for UPRIGHT_FLOOD_S seconds (5) beside a unit that writes the time ten times a second.
#[test]
fn floods_delay_neither_a_quiet_unit_nor_an_answer() {
    if skip_tool((!has_python()).then_some("python3")) {
        return;
    }
    let seconds = number("UPRIGHT_FLOOD_S", 5);
    let mut home = Home::new();
    let marker =
        "import sys, time\nwhile True:\n    print(time.time_ns() // 1000, flush=True)\n    time.sleep(0.1)\n";
    fs::write(home.path().join("marker.py"), marker).expect("the marker");
    home.unit(
        "marker",
        &format!(
            "[service]\ncommand = [\"python3\", \"-S\", \"{}\"]\n",
            home.path().join("marker.py").display()
        ),
    );
    home.daemon();
    home.await_state("marker", "active", SOON);
    let daemon = home.get("/v1/units")["daemon"].clone();
    let own = ["keeper_pid", "engine_pid"].map(|key| daemon[key].as_i64().expect("a pid"));
    let before: u64 = own.into_iter().map(resident_kib).sum();
    for number in 0..8 {
        let text = "[service]\ncommand = [\"yes\", \"a line of a flood, of some length, as such lines are\"]\n\
                    [log]\nmax_size = \"8MiB\"\nmax_files = 2\n";
        home.unit(&format!("flood{number}"), text);
    }
    home.upright_exits(&["apply"], 0);
    let started = Instant::now();
    let mut answers = Vec::new();
    let mut peak = 0;
    while started.elapsed() < Duration::from_secs(seconds) {
        let asked = Instant::now();
        let (status, _) = http::ask(&home.socket(), "GET", "/v1/units", "").expect("an answer");
        assert_eq!(status, 200);
        answers.push(asked.elapsed());
        peak = peak.max(own.into_iter().map(resident_kib).sum());
        // One question each 20 ms, as a person at a shell could not ask more often.
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = fs::read(home.path().join("log/marker/current.log")).expect("the marker's log");
    let records = records(&home.path().join("log/marker/current.idx"));
    let mut lags = lags(&log, &records);
    assert!(home.stop().success());
    lags.sort();
    answers.sort();
    let (lag, answer) = (percentile(&lags, 99), percentile(&answers, 99));
    println!(
        "8 floods, {seconds} s: {} markers, lag p50 {:.1?} p99 {lag:.1?}; {} answers, p50 {:.1?} p99 {answer:.1?}; resident {before} KiB, at most {peak} KiB",
        lags.len(),
        percentile(&lags, 50),
        answers.len(),
        percentile(&answers, 50),
    );
    assert!(lags.len() > 20 && lag < Duration::from_secs(1), "marker lag {lag:?}");
    assert!(peak <= before + 8 * 1024, "{before} KiB grew to {peak} KiB");
}

/// How long after it was written each marker got its place in the index.
fn lags(log: &[u8], records: &[(u64, i64, u8)]) -> Vec<Duration> {
    let mut at = 0;
    let mut lags = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let written: i64 = std::str::from_utf8(line).expect("digits").trim().parse().expect("a time");
        let chunk = records.iter().rev().find(|(offset, _, kind)| *kind == 1 && *offset <= at);
        let (_, stored, _) = chunk.expect("a chunk for every line");
        // Cut to the same microsecond, a record of the same turn may be a moment older.
        lags.push(Duration::from_micros(u64::try_from((stored - written).max(0)).expect("not negative")));
        at += u64::try_from(line.len()).expect("length");
    }
    lags
}
