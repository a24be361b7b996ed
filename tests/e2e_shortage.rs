//! Shortage at one system call after another: fds, memory, pids, room on the disk, and a disk
//! that answers with errors. No hang, no panic, no lost row, no lost line, no leaked fd; and no
//! unit fails because its supervisor was short of something (reliability D1 to D5, T20).
//!
//! Refuses: mercy for the keeper. It is made short like the engine, and must never end of it. An
//! engine may end of it with a message; then the next one has taken over within the bound.
//!
//! `UPRIGHT_SHORTAGES=3000` runs that many points instead of some dozens; `SEED=…` repeats a choice,
//! `UPRIGHT_SHORTAGE='Engine openat 24 3 1'` (who, call, errno, n-th, times; a sixth word `boot`
//! counts from the next engine's first call) repeats one point.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::injector::{self, Counts, Fault, Injector, Tally, Whose};
use support::tracer::is_engine;
use support::{Home, eventually, http, id_of, is_root, of, oracle, pid_of, proc, skip};

/// Everything is as it should be again so long after the last refused call, or it never will be.
const CALM: Duration = Duration::from_secs(20);

/// Longest wait for one answer; after that the question is asked again, and the hang is told.
const ANSWER: Duration = Duration::from_secs(12);

/// A shortage that lasts: so long from the moment it was made.
const LASTING: Duration = Duration::from_millis(400);

/// Homes at a time.
const HOMES: usize = 2;

/// Points without `UPRIGHT_SHORTAGES`: about 40 s.
const POINTS: usize = 60;

/// The unit that the test kills.
const VICTIM: &str = "victim";

/// Its main process, told apart from others by its length.
const VICTIM_SLEEP: &str = "100201";

/// Every unit, and the state it is in when all is well.
const UNITS: [(&str, &str); 6] = [
    ("talker", "active"),
    (VICTIM, "active"),
    ("checked", "active"),
    ("asked", "active"),
    ("once", "active"),
    ("forker", "active"),
];

/// What `forker` leaves behind: it hears nothing but SIGKILL.
const STRAY_SLEEP: &str = "100204";

/// Calls, and what a shortage makes them say (their man pages).
const ROWS: &[(&[&str], &[i32])] = &[
    (&["openat", "open"], &[libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOSPC, libc::EIO]),
    (
        &[
            "socket",
            "accept4",
            "pipe2",
            "eventfd2",
            "timerfd_create",
            "epoll_create1",
            "inotify_init1",
            "memfd_create",
            "socketpair",
            "pidfd_open",
            "signalfd4",
        ],
        &[libc::EMFILE, libc::ENFILE, libc::ENOMEM],
    ),
    (&["fcntl"], &[libc::EMFILE, libc::ENOLCK]),
    (&["dup", "dup2", "dup3"], &[libc::EMFILE]),
    (&["epoll_ctl", "inotify_add_watch"], &[libc::ENOMEM, libc::ENOSPC]),
    (&["clone", "clone3", "fork", "vfork"], &[libc::EAGAIN, libc::ENOMEM]),
    (&["mmap", "mremap", "brk", "mprotect"], &[libc::ENOMEM]),
    (&["read", "pread64", "readv", "getdents64"], &[libc::EIO]),
    (&["write", "pwrite64", "writev", "splice"], &[libc::ENOSPC, libc::EIO, libc::EDQUOT]),
    (&["fsync", "fdatasync", "ftruncate", "fallocate"], &[libc::EIO, libc::ENOSPC]),
    (&["rename", "renameat2", "mkdir", "mkdirat"], &[libc::ENOSPC, libc::EIO]),
    (&["unlink", "unlinkat"], &[libc::EIO]),
    (&["sendmsg", "sendto"], &[libc::ENOBUFS, libc::ENOMEM]),
    (&["recvmsg", "recvfrom"], &[libc::ENOMEM, libc::EINTR]),
    (&["statx", "newfstatat", "fstat", "stat"], &[libc::ENOMEM, libc::EIO]),
    (&["readlink", "readlinkat"], &[libc::ENOMEM, libc::EIO]),
    (&["epoll_wait", "epoll_pwait", "ppoll", "poll", "waitid"], &[libc::EINTR]),
    (&["flock"], &[libc::ENOLCK]),
    (&["execve"], &[libc::ENOMEM, libc::EAGAIN, libc::EMFILE, libc::ENFILE]),
];

/// Calls that are short together, from the first on.
const TOGETHER: &[(&[&str], &[i32])] = &[
    (
        &[
            "openat",
            "open",
            "socket",
            "accept4",
            "pipe2",
            "eventfd2",
            "timerfd_create",
            "epoll_create1",
            "inotify_init1",
            "memfd_create",
            "socketpair",
            "pidfd_open",
            "signalfd4",
            "fcntl",
            "dup",
            "dup3",
        ],
        &[libc::EMFILE],
    ),
    (&["clone", "clone3", "fork", "vfork"], &[libc::EAGAIN]),
    (
        &["write", "pwrite64", "writev", "splice", "fsync", "fdatasync", "fallocate"],
        &[libc::ENOSPC, libc::EIO],
    ),
    (&["epoll_ctl", "inotify_add_watch"], &[libc::ENOSPC]),
    (&["sendmsg", "recvmsg"], &[libc::ENOMEM]),
];

/// Points that found something once: each stays mended.
const FOUND: &[&str] = &[];

#[test]
fn the_injector_itself() {
    injector::serve();
}

fn unavailable() -> bool {
    let lacking = if !is_root() {
        Some("root")
    } else if !injector::AVAILABLE {
        Some("x86_64, where a system call can be refused by a tracer")
    } else {
        None
    };
    skip(lacking)
}

/// SplitMix64; the seed is printed, and taken from SEED.
struct Luck(u64);

impl Luck {
    fn new() -> Luck {
        let given = std::env::var("SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().hash_one(0_u8));
        println!("SEED={seed} cargo test --test e2e_shortage");
        Luck(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for at in (1..all.len()).rev() {
            all.swap(at, usize::try_from(self.below(at as u64 + 1)).expect("small"));
        }
    }
}

/// A fault as a line: `Engine openat 24 3 1 boot`.
fn line_of(fault: &Fault) -> String {
    let times = if fault.times == u64::MAX { "lasting".to_owned() } else { fault.times.to_string() };
    let boot = if fault.from_exec { " boot" } else { "" };
    format!("{:?} {} {} {} {times}{boot}", fault.whose, fault.calls.join(","), fault.errno, fault.nth)
}

fn fault_of(line: &str) -> Fault {
    let words: Vec<&str> = line.split_whitespace().collect();
    let whose = match words[0] {
        "Keeper" => Whose::Keeper,
        "Engine" => Whose::Engine,
        "Child" => Whose::Child,
        other => panic!("nobody is called {other}"),
    };
    Fault {
        whose,
        calls: words[1].split(',').map(str::to_owned).collect(),
        errno: words[2].parse().expect("an errno"),
        nth: words[3].parse().expect("a number"),
        times: if words[4] == "lasting" { u64::MAX } else { words[4].parse().expect("a number") },
        from_exec: words.get(5) == Some(&"boot"),
    }
}

/// A home with its daemon, traced, and what is known of it.
struct Rig {
    home: Home,
    keeper: proc::Process,
    injector: Injector,
    /// Accepts what `asked` is asked by; never accepted from, the queue is enough.
    _listener: TcpListener,
    /// The newest event that was judged.
    judged: u64,
    /// Open fds of the keeper and of the engine when all was quiet.
    fds: (usize, usize),
    /// In the last round an engine ended that nobody had killed.
    replaced: bool,
    /// Where in the talker's log the judged lines end, and the last of them.
    talked: (usize, u64),
}

impl Rig {
    fn new() -> Rig {
        let mut home = Home::new();
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("its address").port();
        drain(listener.try_clone().expect("a second handle"));
        let at = home.path().display().to_string();
        let talk = format!(
            "i=0; while :; do i=$((i+1)); echo \"line $i\"; echo $i > {at}/talked.new; \
             mv {at}/talked.new {at}/talked; sleep 0.1; done"
        );
        home.unit(
            "talker",
            &format!("[service]\nshell = true\ncommand = '''{talk}'''\n[stop]\ntimeout = \"2s\"\n"),
        );
        let restart =
            "[restart]\ndelays = [\"50ms\"]\nreset_after = \"1h\"\n[alert]\nafter_failures = 1000000\n";
        home.unit(
            VICTIM,
            &format!(
                "[service]\nshell = true\ncommand = \"echo >&3; exec sleep {VICTIM_SLEEP}\"\n\
                 [readiness]\nnotify_fd = 3\ntimeout = \"8s\"\n{restart}"
            ),
        );
        let health = "interval = \"150ms\"\ntimeout = \"5s\"\nthreshold = 1\n";
        home.unit(
            "checked",
            &format!("[service]\ncommand = [\"sleep\", \"100202\"]\n[health]\nexec = [\"true\"]\n{health}"),
        );
        home.unit(
            "asked",
            &format!(
                "[service]\ncommand = [\"sleep\", \"100203\"]\n[health]\ntcp = \"127.0.0.1:{port}\"\n{health}"
            ),
        );
        home.unit(
            "forker",
            &format!(
                "[service]\nshell = true\ncommand = \"(trap '' TERM; exec sleep {STRAY_SLEEP}) & exec sleep 100205\"\n\
                 [stop]\ntimeout = \"300ms\"\n"
            ),
        );
        home.unit("once", "[service]\ntype = \"oneshot\"\nshell = true\ncommand = \"echo did\"\n");
        home.daemon();
        for (unit, state) in UNITS {
            home.await_state(unit, state, CALM);
        }
        let keeper = proc::find(home.child()).expect("the keeper lives");
        let injector = Injector::start(keeper.pid, home.path());
        let mut rig = Rig {
            home,
            keeper,
            injector,
            _listener: listener,
            judged: 0,
            fds: (0, 0),
            replaced: false,
            talked: (0, 0),
        };
        rig.judged = rig.home.last_event();
        // A round without a fault: threads and files that come with the first use are there then.
        rig.round(None).expect("all is well without a fault");
        rig.fds = rig.least_fds();
        rig
    }

    fn engine(&self) -> Option<Pid> {
        let children = proc::children(self.keeper.pid);
        children.into_iter().map(|process| process.pid).find(|pid| is_engine(*pid))
    }

    fn count_fds(&self) -> Option<(usize, usize)> {
        let count = |pid: Pid| Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count());
        Some((count(self.keeper.pid)?, count(self.engine()?)?))
    }

    /// The least that is open within the time that the pipes of ended runs may take to go.
    fn least_fds(&self) -> (usize, usize) {
        let looks = (0..30).map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            self.count_fds().expect("an engine lives")
        });
        looks.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1))).expect("thirty looks")
    }

    /// What the fds are, for the words about a leak.
    fn fds_of(pid: Pid) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let link = fs::read_link(entry.path()).map(|path| path.display().to_string()).unwrap_or_default();
            let kind = if link.starts_with("anon_inode") {
                &link
            } else {
                link.split(':').next().unwrap_or_default()
            };
            *all.entry(kind.to_owned()).or_default() += 1;
        }
        all
    }

    /// Sleeps of this length below the keeper, by looking: nobody is asked.
    fn sleepers(&self, length: &str) -> Vec<Pid> {
        let is_it = |process: &proc::Process| {
            let words = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            words.starts_with(b"sleep\0") && words.windows(length.len()).any(|word| word == length.as_bytes())
        };
        proc::below(self.keeper.pid).into_iter().filter(is_it).map(|process| process.pid).collect()
    }

    fn victim(&self) -> Option<Pid> {
        self.sleepers(VICTIM_SLEEP).pop()
    }

    /// Asks until it is answered; what was said instead, and how long it took.
    fn ask(&self, method: &str, path: &str) -> Result<Value, String> {
        let (deadline, mut last) = (Instant::now() + CALM, String::new());
        while Instant::now() < deadline {
            match http::ask_within(&self.home.socket(), method, path, "", ANSWER) {
                Ok((200, body)) => return Ok(serde_json::from_slice(&body).unwrap_or(Value::Null)),
                Ok((status, body)) => last = format!("{status} {}", String::from_utf8_lossy(&body)),
                // Nobody may be kept waiting: refused or cut off is an answer, silence is none.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err(format!("{method} {path} is met with silence for {ANSWER:?}"));
                }
                Err(error) => last = error.to_string(),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("{method} {path} is not answered within {CALM:?}: {last}"))
    }

    /// One shortage: a unit dies in it, questions are asked in it, an order is given in it.
    fn round(&mut self, fault: Option<&Fault>) -> Result<Tally, Vec<String>> {
        let boot = fault.is_some_and(|fault| fault.from_exec);
        let before = self.engine();
        let victim = self.victim().ok_or_else(|| vec!["no victim before the round".to_owned()])?;
        if let Some(fault) = fault {
            self.injector.arm(fault);
        }
        if boot && let Some(engine) = before {
            kill(engine, Signal::SIGKILL).expect("it lives");
        }
        kill(victim, Signal::SIGKILL).expect("it lives");
        let mut wrong = Vec::new();
        let mut tally = Tally::default();
        if fault.is_some_and(|fault| fault.times == u64::MAX) {
            std::thread::sleep(LASTING); // how long the shortage lasts
            tally = self.injector.disarm();
        }
        let questions = [
            ("GET", "/v1/units"),
            ("GET", "/v1/units/talker/logs?lines=5"),
            ("POST", "/v1/units/forker/restart?wait=false"),
            ("POST", "/v1/units/once/restart"),
            ("GET", "/v1/events?limit=5"),
        ];
        for (method, path) in questions {
            match self.ask(method, path) {
                Ok(answer)
                    if path.contains("logs") && answer["lines"].as_array().is_none_or(Vec::is_empty) =>
                {
                    wrong.push(format!("{path} has no lines: {answer}"));
                }
                Ok(_) => {}
                Err(why) => wrong.push(why),
            }
        }
        let again = wait_for(|| self.victim().filter(|pid| *pid != victim));
        if again.is_none() {
            wrong.push(format!("the victim is not started again within {CALM:?}"));
        }
        if fault.is_some_and(|fault| fault.times != u64::MAX) {
            tally = self.injector.disarm();
        }
        self.judge(before, boot, &mut wrong);
        if wrong.is_empty() { Ok(tally) } else { Err(wrong) }
    }

    fn judge(&mut self, before: Option<Pid>, boot: bool, wrong: &mut Vec<String>) {
        if !self.keeper.is_alive() {
            wrong.push("the keeper has ended".to_owned());
            return;
        }
        for (unit, state) in UNITS {
            let mut last = Value::Null;
            let well = wait_for(|| {
                let list = self.home.list()?;
                last = support::unit_of(&list, unit)?.clone();
                (last["state"] == state && (state != "active" || unit == "once" || pid_of(&last).is_some()))
                    .then_some(())
            });
            if well.is_none() {
                wrong.push(format!("{unit} is not {state}: {last}"));
            }
        }
        if !wrong.is_empty() {
            return;
        }
        if wait_for(|| (self.sleepers(STRAY_SLEEP).len() == 1).then_some(())).is_none() {
            wrong.push(format!("what forker left behind: {:?}", self.sleepers(STRAY_SLEEP)));
        }
        let events = self.home.events_after(self.judged);
        let failures = of(&events, "unit.failed", VICTIM).len();
        if failures != 1 {
            wrong.push(format!("the victim was killed once, and {failures} failures are recorded"));
        }
        for event in events.iter().filter(|event| event["event"] == "unit.failed") {
            if event["unit"] != VICTIM || !event["message"].as_str().unwrap_or_default().contains("SIGKILL") {
                wrong.push(format!("a failure that the test did not cause: {}", event["message"]));
            }
        }
        let known = ["store.lost", "store.corrupt", "daemon.fatal_stop"];
        for event in events.iter().filter(|event| known.iter().any(|name| event["event"] == *name)) {
            wrong.push(format!("{}", event["message"]));
        }
        self.judged = events.last().map_or(self.judged, id_of);
        // Lines that could not be written follow with the next event, should none have come since.
        let _ = self.ask("POST", "/v1/units/once/restart"); // that it is answered was seen before
        if wait_for(|| oracle::check_ids(&self.home, &self.home.events()).is_empty().then_some(())).is_none()
        {
            wrong.extend(oracle::check_ids(&self.home, &self.home.events()));
        }
        self.judge_lines(wrong);
        let said = self.home.said();
        for word in ["panicked at", "never!", "RUST_BACKTRACE"] {
            if said.contains(word) {
                wrong.push(format!("stderr says `{word}`"));
            }
        }
        let after = self.engine();
        let quiet = |(keeper, engine): (usize, usize)| keeper <= self.fds.0 && engine <= self.fds.1;
        if self.fds != (0, 0) && wait_for(|| quiet(self.count_fds()?).then_some(())).is_none() {
            let kinds = (Rig::fds_of(self.keeper.pid), after.map(Rig::fds_of));
            wrong.push(format!("fds: {:?} at first, now {:?}: {kinds:#?}", self.fds, self.count_fds()));
        }
        let watches = || Rig::fds_of(self.engine()?).contains_key("anon_inode:inotify").then_some(());
        if wait_for(watches).is_none() {
            wrong.push("the files are not watched".to_owned());
        }
        if wait_for(|| (self.home.get("/v1/config/errors")["errors"] == Value::Array(vec![])).then_some(()))
            .is_none()
        {
            wrong.push(format!("the files have mistakes: {}", self.home.get("/v1/config/errors")));
        }
        self.replaced = !boot && before != after;
    }

    /// Every line, once, in order, up to what the talker says that it has written.
    fn judge_lines(&mut self, wrong: &mut Vec<String>) {
        let spoken = |home: &Home| -> Option<u64> {
            fs::read_to_string(home.path().join("talked")).ok()?.trim().parse().ok()
        };
        let Some(due) = wait_for(|| spoken(&self.home)) else {
            return wrong.push("the talker has not talked".to_owned());
        };
        let path = self.home.path().join("log/talker/current.log");
        let there = wait_for(|| {
            let text = fs::read_to_string(&path).ok()?;
            let whole = text.rfind('\n')? + 1;
            let last: u64 = text[..whole].lines().last()?.strip_prefix("line ")?.parse().ok()?;
            (last >= due).then(|| text[..whole].to_owned())
        });
        let Some(text) = there else {
            return wrong.push(format!("line {due} of the talker is not in its log within {CALM:?}"));
        };
        let (from, mut last) = self.talked;
        for line in text.get(from..).unwrap_or_default().lines() {
            if line != format!("line {}", last + 1) {
                wrong.push(format!("the talker's log has `{line}` after line {last}"));
                break;
            }
            last += 1;
        }
        self.talked = (text.len(), last);
    }

    /// The end of it all, within its bound and with nothing left behind (`Home::stop` looks).
    fn stop(mut self) -> Result<(), String> {
        let status = self.home.stop();
        if status.success() { Ok(()) } else { Err(format!("the daemon ended with {status}")) }
    }
}

/// Looks until it is there; none when it is not there in time.
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + CALM;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Takes connections and drops them, so that the queue is never full.
fn drain(listener: TcpListener) {
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            drop(connection);
        }
    });
}

/// What a round without faults calls: in the first round of a living engine, and in the first
/// of a new one.
fn record() -> (Counts, Counts) {
    let mut rig = Rig::new();
    rig.injector.counts();
    rig.round(None).expect("all is well");
    let alive = rig.injector.counts();
    let engine = rig.engine().expect("it lives");
    kill(engine, Signal::SIGKILL).expect("it lives");
    rig.round(None).expect("all is well");
    let boot = rig.injector.counts();
    rig.stop().expect("it stops");
    (alive, boot)
}

/// Every point there is, in the order of the table.
fn all_points(alive: &Counts, boot: &Counts) -> Vec<Fault> {
    let mut all = Vec::new();
    for (counts, from_exec) in [(alive, false), (boot, true)] {
        for (whose, call, count) in counts {
            if from_exec
                && *whose != Whose::Engine
                && alive.iter().any(|(w, c, n)| w == whose && c == call && n >= count)
            {
                continue;
            }
            let rows = ROWS.iter().filter(|(calls, _)| calls.contains(&call.as_str()));
            for errno in rows.flat_map(|(_, errnos)| *errnos) {
                let fault = |nth, times| Fault {
                    whose: *whose,
                    calls: vec![call.clone()],
                    errno: *errno,
                    nth,
                    times,
                    from_exec,
                };
                // Far into a life the calls repeat.
                let nths = (1..=*count).take(if from_exec { 60 } else { 25 });
                all.extend(nths.map(|nth| fault(nth, 1)));
                // An engine that cannot begin twenty times in a row is waited for, longer each time.
                all.extend([fault(1, 5), fault(1, if from_exec { 7 } else { 20 })]);
            }
        }
    }
    for whose in [Whose::Engine, Whose::Keeper, Whose::Child] {
        for (calls, errnos) in TOGETHER {
            let calls: Vec<String> = calls.iter().map(|call| (*call).to_owned()).collect();
            for errno in *errnos {
                let fault = |nth, from_exec| Fault {
                    whose,
                    calls: calls.clone(),
                    errno: *errno,
                    nth,
                    times: u64::MAX,
                    from_exec,
                };
                all.extend([fault(1, false), fault(7, false), fault(1, true), fault(15, true)]);
            }
        }
    }
    all
}

/// One from each (who, call, errno) in turn, until there are enough.
fn choose(all: Vec<Fault>, count: usize, luck: &mut Luck) -> Vec<Fault> {
    let mut classes: BTreeMap<(Whose, Vec<String>, i32, bool), Vec<Fault>> = BTreeMap::new();
    for fault in all {
        classes
            .entry((fault.whose, fault.calls.clone(), fault.errno, fault.from_exec))
            .or_default()
            .push(fault);
    }
    let mut classes: Vec<Vec<Fault>> = classes.into_values().collect();
    classes.iter_mut().for_each(|class| luck.shuffle(class));
    let mut chosen = Vec::new();
    while chosen.len() < count && classes.iter().any(|class| !class.is_empty()) {
        luck.shuffle(&mut classes);
        for class in &mut classes {
            chosen.extend(class.pop());
        }
    }
    chosen.truncate(count);
    chosen
}

/// Runs the points, in one home as long as all is well; what was wrong.
fn run(points: &[Fault]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut points = points.iter().peekable();
    while points.peek().is_some() {
        let lived = catch_unwind(AssertUnwindSafe(|| {
            let mut rig = Rig::new();
            for fault in points.by_ref() {
                let begun = Instant::now();
                match catch_unwind(AssertUnwindSafe(|| rig.round(Some(fault)))) {
                    Ok(Ok(tally)) => {
                        let Tally { seen, failed } = tally;
                        let replaced = if rig.replaced { ", the engine was replaced" } else { "" };
                        println!("ok {} {failed}/{seen} {:?}{replaced}", line_of(fault), begun.elapsed());
                    }
                    Ok(Err(found)) => return Some((rig, fault, found)),
                    Err(panic) => return Some((rig, fault, vec![word_of(&*panic)])),
                }
            }
            rig.stop().expect("it stops");
            None
        }));
        match lived {
            Ok(None) => {}
            Ok(Some((rig, fault, found))) => {
                let what = format!("{}: {found:#?}", line_of(fault));
                println!("WRONG {what}\n{}", last_words(&rig.home));
                wrong.push(what);
                // Its daemon is stopped and its home kept.
                let _ = catch_unwind(AssertUnwindSafe(move || {
                    let _rig = rig;
                    panic!("a home to look into");
                }));
            }
            Err(panic) => wrong.push(word_of(&*panic)),
        }
    }
    wrong
}

fn word_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn last_words(home: &Home) -> String {
    let said = home.said();
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn run_in_homes(points: &[Fault]) {
    let homes = std::env::var("UPRIGHT_HOMES").ok().map_or(HOMES, |text| text.parse().expect("a number"));
    let share = points.len().div_ceil(homes).max(1);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = points.chunks(share).map(|part| scope.spawn(|| run(part))).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("it caught its panics")).collect()
    });
    assert!(wrong.is_empty(), "{} of {} points: {wrong:#?}", wrong.len(), points.len());
}

#[test]
fn no_shortage_at_any_call_is_more_than_a_delay() {
    if unavailable() {
        return;
    }
    if let Ok(line) = std::env::var("UPRIGHT_SHORTAGE") {
        let points: Vec<Fault> = line.split(';').map(fault_of).collect();
        return run_in_homes(&points);
    }
    let count = std::env::var("UPRIGHT_SHORTAGES").ok();
    let count = count.map_or(POINTS, |text| text.parse().expect("UPRIGHT_SHORTAGES is a number"));
    let mut luck = Luck::new();
    let (alive, boot) = record();
    let all = all_points(&alive, &boot);
    println!("{} points; while it lives: {alive:?}; from its first call: {boot:?}", all.len());
    run_in_homes(&choose(all, count, &mut luck));
}

#[test]
fn what_was_found_once_stays_mended() {
    if unavailable() {
        return;
    }
    let points: Vec<Fault> = FOUND.iter().map(|line| fault_of(line)).collect();
    run_in_homes(&points);
    eventually("the list is read", CALM, || Some(()));
}
