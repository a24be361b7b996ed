//! SIGKILL to the engine at one system call after another, while PostgreSQL dies and returns,
//! one unit crashes in a loop, one is unhealthy and one never gets ready: what must hold of
//! every history holds of this one.
//!
//! Refuses: mercy, and the engine's own word. Starts are counted by the services themselves,
//! ends by the test that causes them, deaths of the engine by the tracer that makes them.
//!
//! `UPRIGHT_KILLS=1200` kills at more than a thousand different points, four homes at a time; it
//! takes about seven minutes. `SEED=…` repeats a choice of points.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::client::{Client, Ledger, compare};
use support::oracle;
use support::stack::{Stack, lacking};
use support::tracer::{self, Edge, Orders, Point, Tracer, boottime_ns};
use support::{Home, eventually, of, proc};

/// Stops until an engine has taken over, about: half of the points lie before, half after it.
const BOOT_STOPS: u64 = 3_000;

/// Stops of the seconds after that, about.
const LATER_STOPS: u64 = 6_000;

/// An engine that has not come to its point by then dies where it is.
const LIFE: Duration = Duration::from_secs(4);

/// How much later than its time a restart may be while an engine lives: it is traced at every
/// call, and the service says it has begun by a shell of its own.
const LATE_NS_MAX: u64 = 1_500_000_000;

/// The services write /proc/uptime, which has hundredths of a second.
const UPTIME_NS: u64 = 20_000_000;

/// Until all is well again after the last death, the longest wait for an engine included.
const CALM: Duration = Duration::from_secs(90);

/// Units that fail when they are told to, by a file.
const WEAK: [&str; 3] = ["crasher", "sick", "late"];

/// Units that have no reason to fail.
const SOUND: [&str; 3] = ["redis", "backend", "steady"];

fn kills() -> usize {
    std::env::var("UPRIGHT_KILLS").ok().map_or(60, |text| text.parse().expect("UPRIGHT_KILLS is a number"))
}

/// SplitMix64; the seed is printed, and taken from SEED.
#[derive(Clone)]
struct Luck(u64);

impl Luck {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A point an engine, dealt out to the homes: each from its own slice of the range, early and
/// late ones in turn, so that no life is short twice in a row (the keeper would wait before the
/// next).
fn targets(points: usize, homes: usize, luck: &mut Luck) -> Vec<Vec<u64>> {
    let mut slices = |count: usize, from: u64, range: u64| {
        let count = count as u64;
        let width = (range / count.max(1)).max(1);
        let mut all: Vec<u64> = (0..count).map(|at| from + at * width + luck.below(width)).collect();
        for at in (1..all.len()).rev() {
            all.swap(at, usize::try_from(luck.below(at as u64 + 1)).expect("small"));
        }
        all
    };
    let early = slices(points / 2, 1, BOOT_STOPS);
    let later = slices(points - points / 2, BOOT_STOPS, LATER_STOPS);
    let mut dealt = vec![Vec::new(); homes];
    for (at, target) in later.iter().enumerate() {
        dealt[at % homes].push(*target);
        dealt[at % homes].extend(early.get(at));
    }
    dealt
}

/// Units whose main process is a sleep, each of its own length, so that it can be told apart.
const SLEEPERS: [(&str, &str); 3] = [("sick", "100001"), ("late", "100002"), ("steady", "100003")];

fn sleep_of(unit: &str) -> String {
    let length = SLEEPERS.iter().find(|(name, _)| *name == unit).map(|(_, length)| *length);
    format!("exec sleep {}", length.expect("a sleeper"))
}

/// A service that says when it begins and that it is alone, then does what `then` says.
fn service(home: &Path, name: &str, then: &str) -> String {
    let home = home.display();
    format!(
        "[service]\ncommand = [\"sh\", \"-c\", '''\n\
         read -r up _ < /proc/uptime\n\
         echo \"$UPRIGHT_RUN $$ $up\" >> {home}/starts.{name}\n\
         exec 9> {home}/lock.{name}; flock -n 9 || echo \"{name} run $UPRIGHT_RUN\" >> {home}/doubles\n\
         {then}\n''', \"main-{name}\"]\n"
    )
}

fn stack() -> Stack {
    let mut stack = Stack::prepare();
    let url = format!("http://127.0.0.1:{}", stack.ports.backend);
    let brisk = "[restart]\ndelays = [\"400ms\", \"700ms\", \"1s\"]\nreset_after = \"3s\"\n";
    let stop = "[stop]\nsignal = \"SIGINT\"\ntimeout = \"2s\"\n";
    stack.amend("postgres", &format!("{brisk}{stop}"));
    stack.amend("redis", brisk);
    let heals = format!(
        "[health]\nhttp = \"{url}/livez\"\ninterval = \"1s\"\ntimeout = \"5s\"\n\n\
         [dependency.postgres]\non_return = \"resync\"\n\n\
         [resync]\nhttp = \"POST {url}/api/recovery/state_resync\"\ntimeout = \"10s\"\n\
         delays = [\"500ms\", \"1s\", \"1s\"]\n"
    );
    stack.amend("backend", &format!("{brisk}{heals}"));
    let home = stack.home.path().to_owned();
    let restart = "[restart]\ndelays = [\"300ms\", \"400ms\", \"500ms\"]\nreset_after = \"2s\"\n";
    let told = |name: &str| format!("[\"test\", \"!\", \"-e\", \"{}/told.{name}\"]", home.display());
    let wait =
        format!("sleep 0.1; while [ ! -e {}/told.crasher ]; do sleep 0.2; done; exit 7", home.display());
    stack.home.unit("crasher", &format!("{}{restart}", service(&home, "crasher", &wait)));
    let sick = service(&home, "sick", &sleep_of("sick"));
    let check =
        format!("[health]\nexec = {}\ninterval = \"300ms\"\ntimeout = \"2s\"\nthreshold = 2\n", told("sick"));
    stack.home.unit("sick", &format!("{sick}{restart}{check}"));
    let late = service(&home, "late", &sleep_of("late"));
    let check = format!("[readiness]\nexec = {}\ntimeout = \"600ms\"\n", told("late"));
    stack.home.unit("late", &format!("{late}{restart}{check}"));
    stack.home.unit("steady", &service(&home, "steady", &sleep_of("steady")));
    stack.start();
    for unit in WEAK.iter().chain(&["steady"]) {
        stack.home.await_state(unit, "active", CALM);
    }
    stack
}

/// What a look from outside sees: the main processes among the keeper's children.
#[derive(Default)]
struct Seen {
    /// Every main process a unit ever had, in the order in which they came.
    mains: BTreeMap<String, Vec<i32>>,
    now: BTreeMap<String, i32>,
    looks: u64,
    wrong: Vec<String>,
}

/// The unit whose main process this is, by its command line.
fn unit_of_main(pid: i32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<String> =
        bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let first = words.first()?;
    if let Some(unit) = words.iter().find_map(|word| word.strip_prefix("main-")) {
        return Some(unit.to_owned());
    }
    if first == "sleep" {
        let sleeper = SLEEPERS.iter().find(|(_, length)| words.get(1).is_some_and(|word| word == length));
        return sleeper.map(|(unit, _)| (*unit).to_owned());
    }
    if first.ends_with("/postgres") && words.get(1).is_some_and(|word| word == "-D") {
        return Some("postgres".to_owned());
    }
    if first.contains("redis-server") {
        return Some("redis".to_owned());
    }
    words.iter().any(|word| word == "uvicorn").then(|| "backend".to_owned())
}

fn look(keeper: &proc::Process, seen: &Mutex<Seen>) {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", keeper.pid));
    let pids: Vec<i32> =
        children.unwrap_or_default().split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let mut now: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for pid in pids {
        // A process that has ended and is not reaped yet has no command line.
        if let Some(unit) = unit_of_main(pid) {
            now.entry(unit).or_default().push(pid);
        }
    }
    let mut seen = seen.lock().expect("nobody panics with it");
    seen.looks += 1;
    if !keeper.is_alive() && seen.wrong.is_empty() {
        seen.wrong.push("the keeper has ended".to_owned());
    }
    seen.now.clear();
    for (unit, pids) in now {
        if pids.len() > 1 {
            seen.wrong.push(format!("{unit} has {} main processes at once: {pids:?}", pids.len()));
        }
        let pid = pids[0];
        let known = seen.mains.entry(unit.clone()).or_default();
        if !known.contains(&pid) {
            known.push(pid);
        }
        seen.now.insert(unit, pid);
    }
}

/// A thread that goes on until it is told to end.
struct Hand<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Hand<T> {
    fn start(
        mut work: impl FnMut() + Send + 'static,
        result: impl FnOnce() -> T + Send + 'static,
    ) -> Hand<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                work();
            }
            result()
        });
        Hand { stop, thread }
    }

    fn finish(self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it did not panic")
    }
}

/// Makes the units fail: PostgreSQL by SIGKILL, the weak ones by their file, each at its own
/// pace. How often PostgreSQL was killed.
fn trouble(home: &Path, seen: &Arc<Mutex<Seen>>, seed: u64) -> Hand<u64> {
    let (home, seen, mut luck) = (home.to_owned(), Arc::clone(seen), Luck(seed));
    let (count, mut victim) = (Arc::new(Mutex::new(0_u64)), 0);
    let total = Arc::clone(&count);
    let mut next = Instant::now();
    let mut turns: Vec<(&str, Instant, bool)> =
        WEAK.iter().map(|unit| (*unit, Instant::now(), false)).collect();
    let work = move || {
        std::thread::sleep(Duration::from_millis(20));
        for (unit, at, told) in &mut turns {
            if *at > Instant::now() {
                continue;
            }
            let file = home.join(format!("told.{unit}"));
            // Long enough for four failures and more; then long enough for the episode to end.
            let (done, ms) =
                if *told { (fs::remove_file(&file), 4_000) } else { (fs::write(&file, ""), 6_000) };
            done.expect("the home can be written");
            *told = !*told;
            *at = Instant::now() + Duration::from_millis(ms + luck.below(6_000));
        }
        let main = seen.lock().expect("nobody panics with it").now.get("postgres").copied();
        if let Some(pid) = main.filter(|pid| *pid != victim && next <= Instant::now()) {
            if unit_of_main(pid).as_deref() == Some("postgres")
                && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
            {
                *count.lock().expect("nobody panics with it") += 1;
                victim = pid;
            }
            next = Instant::now() + Duration::from_millis(1_500 + luck.below(4_000));
        }
    };
    Hand::start(work, move || *total.lock().expect("nobody panics with it"))
}

/// Everything about one home when it is over.
struct Outcome {
    points: Vec<Point>,
    wrong: Vec<String>,
    summary: String,
}

fn one_home(targets: Vec<u64>, seed: u64) -> Outcome {
    let (stack, points) = (stack(), targets.len());
    let keeper = proc::find(stack.home.child()).expect("the keeper lives");
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let watched = Arc::clone(&seen);
    let looker = keeper.clone();
    let watch = Hand::start(
        move || {
            look(&looker, &watched);
            std::thread::sleep(Duration::from_millis(10));
        },
        || (),
    );
    let client = Client::start(stack.ports.backend);
    let trouble = trouble(stack.home.path(), &seen, seed);

    // Each life may last `LIFE`, and the keeper may wait two seconds before the next.
    let within = Duration::from_secs(60 + points as u64 * (LIFE.as_secs() + 3));
    let mut deaths = vec![boottime_ns()];
    let tracer = Tracer::start(&Orders { keeper: keeper.pid, targets, life: LIFE, within });
    let mut met = Vec::new();
    while let Some(point) = tracer.next() {
        deaths.push(point.died_ns);
        met.push(point);
    }
    drop(tracer);

    let killed = trouble.finish();
    for unit in WEAK {
        let _ = fs::remove_file(stack.home.path().join(format!("told.{unit}"))); // it may not be there
    }
    await_calm(&stack.home);
    let ledger = client.finish();
    watch.finish();
    let mut wrong = Vec::new();
    if met.len() != points {
        wrong.push(format!("{} of {points} points were met", met.len()));
    }
    let summary = judge(&stack, &seen, &ledger, killed, &deaths, &mut wrong);
    wrong.extend(std::mem::take(&mut seen.lock().expect("nobody panics with it").wrong));
    if !wrong.is_empty() {
        keep_evidence(&stack.home, &met);
    }
    Outcome { points: met, wrong, summary }
}

/// Every unit is active, its failures are forgotten, and the backend is in step.
fn await_calm(home: &Home) {
    for unit in WEAK.iter().chain(&SOUND).chain(&["postgres"]) {
        home.await_unit(unit, &format!("{unit} is well again"), CALM, |status| {
            status["state"] == "active" && status["failures"] == 0
        });
    }
    eventually("the backend is in step", CALM, || {
        let events = home.events();
        let last = |name: &str| of(&events, name, "backend").last().and_then(|event| event["id"].as_u64());
        (last("resync.succeeded") >= last("unit.degraded")).then_some(())
    });
}

/// The records and the rows, where somebody can look at them.
fn keep_evidence(home: &Home, points: &[Point]) {
    let dir = std::env::temp_dir().join(format!("upright-syscalls-{}-{}", std::process::id(), boottime_ns()));
    fs::create_dir_all(&dir).expect("a directory for the evidence");
    for file in ["log/system_resilience.log", "daemon.out", "starts.crasher", "starts.sick", "starts.late"] {
        let path = home.path().join(file);
        let _ = fs::copy(&path, dir.join(path.file_name().expect("a name"))); // what there is of them
    }
    let lines: Vec<String> = points.iter().map(|p| serde_json::to_string(p).expect("plain data")).collect();
    fs::write(dir.join("points"), lines.join("\n")).expect("the points");
    eprintln!("evidence is kept in {}", dir.display());
}

/// When an engine was there that had taken over: what is late is judged by that.
struct Presence {
    /// Takeovers and deaths, in order; true = takeover.
    turns: Vec<(u64, bool)>,
}

impl Presence {
    fn of(events: &[Value], deaths: &[u64]) -> Presence {
        let taken = events.iter().filter(|event| event["event"] == "engine.restarted");
        let taken = taken.filter_map(|event| Some((event["at_ns"].as_u64()?, true)));
        let mut turns: Vec<(u64, bool)> = taken.chain(deaths.iter().map(|at| (*at, false))).collect();
        turns.sort_unstable();
        Presence { turns }
    }

    /// How long between the two moments no engine was there.
    fn absent_ns(&self, from: u64, to: u64) -> u64 {
        let (mut absent, mut since, mut present) = (0, 0, true);
        for (at, takes_over) in self.turns.iter().copied().chain([(u64::MAX, true)]) {
            if !present {
                absent += at.min(to).saturating_sub(since.max(from));
            }
            (since, present) = (at, takes_over);
        }
        absent
    }
}

/// A start as the service itself wrote it down.
struct Start {
    run: u64,
    pid: i32,
    at_ns: u64,
}

fn starts(home: &Home, unit: &str) -> Vec<Start> {
    let text = fs::read_to_string(home.path().join(format!("starts.{unit}"))).expect("it has begun");
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let (run, pid, up) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?);
        let seconds: f64 = up.parse().ok()?;
        Some(Start { run, pid, at_ns: (seconds * 1e9) as u64 })
    };
    text.lines().map(|line| parse(line).unwrap_or_else(|| panic!("{unit}: {line}"))).collect()
}

fn judge(
    stack: &Stack,
    seen: &Mutex<Seen>,
    ledger: &Ledger,
    killed: u64,
    deaths: &[u64],
    wrong: &mut Vec<String>,
) -> String {
    let home = &stack.home;
    let events = home.events();
    let alerts = oracle::alerts(home);
    wrong.extend(compare(stack, ledger));
    wrong.extend(oracle::check_ids(home, &events));
    wrong.extend(oracle::check_failures(&events));
    wrong.extend(oracle::check_alerts(&events, &alerts));
    wrong.extend(oracle::check_resyncs(&events, "backend"));
    if let Ok(text) = fs::read_to_string(home.path().join("doubles")) {
        wrong.push(format!("two main processes at once: {text}"));
    }
    let presence = Presence::of(&events, deaths);
    let mut late_max = 0;
    for unit in WEAK {
        late_max = late_max.max(judge_weak(home, &events, unit, &presence, wrong));
    }
    let seen = seen.lock().expect("nobody panics with it");
    for unit in SOUND {
        let mains = seen.mains.get(unit).map_or(0, Vec::len);
        let failures = of(&events, "unit.failed", unit).len();
        if mains != 1 || failures > 0 {
            wrong.push(format!("{unit} was touched: {mains} main processes, {failures} failures"));
        }
    }
    let failures = of(&events, "unit.failed", "postgres").len() as u64;
    if failures != killed {
        wrong.push(format!("postgres was killed {killed} times and has {failures} failures on record"));
    }
    let mains = seen.mains.get("postgres").map_or(0, Vec::len) as u64;
    if mains != killed + 1 {
        wrong.push(format!("postgres was killed {killed} times and had {mains} main processes"));
    }
    let count = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    let kind = |kind: &str| alerts.iter().filter(|row| row.kind == kind).count();
    format!(
        "{} takeovers on record, {} failures, {} alerts at a 4th failure or its repeats, {} recoveries, \
         {} losses of postgres, {} resyncs begun, {} done; {} sessions accepted ({} into the journal); \
         restarts at most {} ms late beyond the time without an engine; {} looks from outside",
        count("engine.restarted"),
        count("unit.failed"),
        kind("failing"),
        kind("recovered"),
        killed,
        count("resync.started"),
        count("resync.succeeded"),
        ledger.accepted.len(),
        ledger.journaled,
        late_max / 1_000_000,
        seen.looks,
    )
}

/// Every start of this unit but the last ended in one failure, and was followed by the next
/// one on time. The worst lateness, in ns.
fn judge_weak(
    home: &Home,
    events: &[Value],
    unit: &str,
    presence: &Presence,
    wrong: &mut Vec<String>,
) -> u64 {
    let starts = starts(home, unit);
    let failed = of(events, "unit.failed", unit);
    let runs =
        |list: &[&Value]| list.iter().filter_map(|event| event["run"].as_u64()).collect::<BTreeSet<_>>();
    let ended: BTreeSet<u64> = starts.iter().rev().skip(1).map(|start| start.run).collect();
    if runs(&failed) != ended {
        let lost: Vec<u64> = ended.difference(&runs(&failed)).copied().collect();
        let invented: Vec<u64> = runs(&failed).difference(&ended).copied().collect();
        wrong.push(format!(
            "{unit}: runs whose failure is not on record: {lost:?}; that never were: {invented:?}"
        ));
    }
    let status = home.status(unit);
    if status["restarts"] != starts.len() as u64 - 1 {
        wrong.push(format!("{unit}: {} starts, restarts {}", starts.len(), status["restarts"]));
    }
    if starts.last().map(|start| i64::from(start.pid)) != status["pid"].as_i64() {
        wrong.push(format!("{unit}: the last that began is not the one that is shown: {status}"));
    }
    let scheduled = of(events, "retry.scheduled", unit);
    let mut late_max = 0;
    for pair in starts.windows(2) {
        let due = scheduled.iter().filter(|event| event["run"] == pair[0].run);
        let due: Vec<u64> = due.filter_map(|event| event["data"]["due_ns"].as_u64()).collect();
        let [due] = due[..] else {
            if due.is_empty() && is_history(events, unit, pair[0].run) {
                continue;
            }
            wrong.push(format!("{unit}: run {} was scheduled {} times again", pair[0].run, due.len()));
            continue;
        };
        if pair[1].at_ns + UPTIME_NS < due {
            wrong.push(format!("{unit}: run {} began {} ns early", pair[1].run, due - pair[1].at_ns));
        }
        let late = pair[1].at_ns.saturating_sub(due + presence.absent_ns(due, pair[1].at_ns));
        late_max = late_max.max(late);
        if late > LATE_NS_MAX {
            wrong.push(format!("{unit}: run {} began {} ms late", pair[1].run, late / 1_000_000));
        }
    }
    late_max
}

/// The engine that saw this run fail, and started the next one, died before it could write any
/// of that down: the failure is counted by the engine that found both runs in the keeper's
/// table, in one step, and nothing is scheduled any more.
fn is_history(events: &[Value], unit: &str, run: u64) -> bool {
    let failed = of(events, "unit.failed", unit);
    let Some(own) = failed.iter().find(|event| event["run"] == run) else { return false };
    let of_newer = |event: &&Value| {
        event["unit"] == unit && event["at_ns"] == own["at_ns"] && event["run"].as_u64() > Some(run)
    };
    let known = |event: &&Value| event["event"] == "unit.adopted" || event["event"] == "unit.failed";
    events.iter().filter(of_newer).any(|event| known(&event))
}

/// A process of the other test; without its orders it has nothing to do.
#[test]
fn the_tracer_itself() {
    tracer::serve();
}

#[test]
fn an_engine_killed_at_any_system_call_leaves_everything_true() {
    let unprivileged = (!support::is_root()).then_some("root: the keeper lets nobody else trace it");
    if support::skip_tool(lacking()) || support::skip(unprivileged) {
        return;
    }
    let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
    println!("SEED={seed} cargo test --test e2e_syscalls");
    let (kills, begun) = (kills(), Instant::now());
    let homes: usize = if kills >= 400 { 4 } else { 2 };
    let dealt = targets(kills, homes, &mut Luck(seed));
    let threads: Vec<JoinHandle<Outcome>> = dealt
        .into_iter()
        .zip(seed..)
        .map(|(targets, seed)| std::thread::spawn(move || one_home(targets, seed)))
        .collect();
    let outcomes: Vec<Outcome> =
        threads.into_iter().map(|thread| thread.join().expect("a home is over")).collect();
    let mut wrong = Vec::new();
    for (home, outcome) in outcomes.iter().enumerate() {
        println!("home {home}: {}", outcome.summary);
        wrong.extend(outcome.wrong.iter().map(|text| format!("home {home}: {text}")));
    }
    let distinct = report(&outcomes, begun.elapsed());
    if distinct * 10 < kills * 8 {
        wrong.push(format!("only {distinct} of {kills} points differ"));
    }
    assert!(wrong.is_empty(), "{} violations:\n{}", wrong.len(), wrong.join("\n"));
}

/// Tells how many points there were and in which calls; the number of different ones.
fn report(outcomes: &[Outcome], took: Duration) -> usize {
    let points: Vec<&Point> = outcomes.iter().flat_map(|outcome| &outcome.points).collect();
    let distinct: BTreeSet<(&str, u64)> =
        points.iter().map(|point| (point.call.as_str(), point.nth)).collect();
    let edges: BTreeSet<(&str, u64, Edge)> =
        points.iter().map(|point| (point.call.as_str(), point.nth, point.edge)).collect();
    let mut calls: BTreeMap<&str, usize> = BTreeMap::new();
    for point in &points {
        *calls.entry(point.call.as_str()).or_default() += 1;
    }
    let edge = |edge: Edge| points.iter().filter(|point| point.edge == edge).count();
    println!(
        "{} deaths in {} s at {} different (call, ordinal), {} with the side of the call ({} before, {} after, \
         {} within), in {} different calls: {calls:?}",
        points.len(),
        took.as_secs(),
        distinct.len(),
        edges.len(),
        edge(Edge::Before),
        edge(Edge::After),
        edge(Edge::Within),
        calls.len(),
    );
    distinct.len()
}
