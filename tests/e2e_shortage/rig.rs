//! One home under one shortage after another: a unit dies in it, questions are asked in it, an order
//! is given in it; then everything is as it was, or it is told what is not.
//!
//! Refuses: choosing the shortage.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::support;
use support::injector::{Fault, Injector, Tally};
use support::tracer::is_engine;
use support::{Home, eventually, http, id_of, of, oracle, pid_of, proc};

/// Everything is as it should be again so long after the last refused call, or it never will be.
const CALM: Duration = Duration::from_secs(20);

/// Longest wait for one answer; after that the question is asked again, and the hang is told.
const ANSWER: Duration = Duration::from_secs(12);

/// A shortage that lasts: so long from the moment it was made.
const LASTING: Duration = Duration::from_millis(400);

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

/// A home with its daemon, traced, and what is known of it.
pub struct Rig {
    pub home: Home,
    keeper: proc::Process,
    pub injector: Injector,
    /// Accepts what `asked` is asked by; never accepted from, the queue is enough.
    _listener: TcpListener,
    /// The newest event that was judged.
    judged: u64,
    /// Open fds of the keeper and of the engine when all was quiet.
    fds: (usize, usize),
    /// In the last round an engine ended that nobody had killed.
    pub replaced: bool,
    /// Where in the talker's log the judged lines end, and the last of them.
    talked: (usize, u64),
}

impl Rig {
    pub fn new() -> Rig {
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

    pub fn engine(&self) -> Option<Pid> {
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
    pub fn round(&mut self, fault: Option<&Fault>) -> Result<Tally, Vec<String>> {
        let boot = fault.is_some_and(|fault| fault.from_exec);
        if boot && let Some(engine) = self.engine() {
            self.let_live(engine);
        }
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
                    if path.contains("logs")
                        && answer["lines"].as_array().is_none_or(Vec::is_empty)
                        && answer["unreadable"].as_array().is_none_or(Vec::is_empty) =>
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

    /// Until its death is no short life, after which the keeper would wait.
    fn let_live(&self, engine: Pid) {
        let began = proc::find(engine).map_or(0, |process| process.started);
        eventually("the engine has lived a second", CALM, || {
            let up = fs::read_to_string("/proc/uptime").ok()?;
            let (seconds, hundredths) = up.split(' ').next()?.split_once('.')?;
            // A tick of proc_pid_stat(5) is a hundredth of a second.
            let now = seconds.parse::<u64>().ok()? * 100 + hundredths.parse::<u64>().ok()?;
            (now > began + 120).then_some(())
        });
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
        // std itself panics when a new thread has no memory for its signal stack: the engine ends.
        let excused = |line: &&str| !line.contains("std/src/sys/pal/unix/stack_overflow.rs");
        let panics = said.lines().filter(|line| line.contains("panicked at") || line.contains("never!"));
        wrong.extend(panics.filter(excused).map(|line| format!("stderr says `{line}`")));
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
    pub fn stop(mut self) -> Result<(), String> {
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
