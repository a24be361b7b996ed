//! Alerts to receivers that are down, refuse, hang and lose their answers, from an engine that is
//! killed over and over: none is missed, and what came twice can be told.
//!
//! Refuses: engine code. The receivers are real servers on loopback.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use support::receivers::{Faults, Receiver, Taken};
use support::{Home, eventually};

const SOON: Duration = Duration::from_secs(30);

/// Most alerts in one message of a channel that folds.
const FOLD: u64 = 16;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Fails so often, each time with an alert, and then stays.
fn failing(home: &Home, unit: &str, times: u64) {
    let count = home.path().join(format!("{unit}.count"));
    let script = format!(
        "n=$(cat {0} 2>/dev/null || echo 0); echo $((n+1)) > {0}; echo try $n; \
         [ $n -ge {times} ] && exec sleep 100000; exit 3",
        count.display()
    );
    let unit_file = format!(
        "[service]\nshell = true\ncommand = '''{script}'''\n[restart]\ndelays = [\"1ms\"]\n\
         reset_after = \"1s\"\n[alert]\nafter_failures = 1\nrepeat_every = 1\n"
    );
    home.unit(unit, &unit_file);
}

fn configure(home: &Home, channels: &[(&str, String)]) {
    let tables = channels.iter().map(|(name, keys)| format!("[alert.{name}]\n{keys}\n"));
    fs::write(home.path().join("upright.toml"), tables.collect::<String>()).expect("upright.toml");
}

fn slack(receiver: &Receiver) -> String {
    format!("kind = \"slack\"\nurl = \"{}\"", receiver.url("/services/T0/B0/x"))
}

fn webhook(receiver: &Receiver) -> String {
    format!("kind = \"webhook\"\nurl = \"{}\"", receiver.url("/hook"))
}

fn email(receiver: &Receiver) -> String {
    format!(
        "kind = \"email\"\nhost = \"127.0.0.1:{}\"\ntls = \"none\"\nfrom = \"upright@example.net\"\n\
         to = [\"ops@example.net\"]",
        receiver.port
    )
}

/// The ids at the head of a text that tells of many.
fn ids_of_many(text: &str) -> Vec<String> {
    text.lines().take_while(|line| line.contains('/') && !line.contains(' ')).map(String::from).collect()
}

/// The alerts that a message tells.
fn ids(channel: &str, taken: &Taken) -> Vec<String> {
    match channel {
        "hook" => {
            let id = taken.json()["id"].as_str().expect("an id").to_string();
            assert_eq!(taken.header("idempotency-key"), Some(id.as_str()));
            vec![id]
        }
        "slack" => {
            let blocks = taken.json()["blocks"].clone();
            let fields = blocks[2]["fields"].as_array().expect("fields").clone();
            let one = fields.iter().find_map(|field| field["text"].as_str()?.strip_prefix("*Id*\n"));
            match one {
                Some(id) => vec![id.to_string()],
                None => ids_of_many(blocks[1]["text"]["text"].as_str().expect("a text")),
            }
        }
        _ => {
            assert!(taken.header("message-id").is_some_and(|id| id.starts_with('<')), "{taken:?}");
            let one = taken.body.lines().find_map(|line| line.strip_prefix("Id: "));
            one.map_or_else(|| ids_of_many(&taken.body), |id| vec![id.to_string()])
        }
    }
}

/// How often each alert was taken, and the order of the first times.
fn tally(channel: &str, taken: &[Taken]) -> (BTreeMap<String, u64>, Vec<String>) {
    let (mut times, mut order) = (BTreeMap::new(), Vec::new());
    for id in taken.iter().flat_map(|taken| ids(channel, taken)) {
        let count = times.entry(id.clone()).or_insert(0);
        *count += 1;
        if *count == 1 {
            order.push(id);
        }
    }
    (times, order)
}

/// Reads the events as they come: what was raised, in order, and what is settled.
#[derive(Default)]
struct History {
    last: u64,
    /// (unit, id)
    raised: Vec<(String, String)>,
    delivered: u64,
    parked: Vec<Value>,
}

impl History {
    fn read(&mut self, home: &Home) {
        for event in home.events_after(self.last) {
            self.last = event["id"].as_u64().expect("an id");
            match event["event"].as_str() {
                Some("alert.raised") => {
                    let unit = event["unit"].as_str().unwrap_or("").to_string();
                    self.raised.push((unit, event["data"]["key"].as_str().expect("a key").to_string()));
                }
                Some("alert.delivered") => self.delivered += 1,
                Some("alert.parked") => self.parked.push(event),
                _ => {}
            }
        }
    }

    /// Waits until so many channels have every alert.
    fn await_delivered(&mut self, home: &Home, channels: u64, within: Duration) {
        eventually("every alert is delivered", within, || {
            home.list()?;
            self.read(home);
            (self.delivered >= channels * self.raised.len() as u64).then_some(())
        });
    }
}

fn random_seed() -> u64 {
    from_env("SEED", RandomState::new().hash_one(0_u8))
}

/// `UPRIGHT_ALERTS=10000 UPRIGHT_ALERT_KILLS=200` is the whole of it.
#[test]
fn no_alert_is_missed_by_receivers_that_are_down_half_of_the_time() {
    let seed = random_seed();
    let (alerts, kills) = (from_env("UPRIGHT_ALERTS", 400), from_env("UPRIGHT_ALERT_KILLS", 20));
    println!("SEED={seed} cargo test --test alerts_deliver");
    // Down for 15 s, up for 15 s: tries after 1, 3, 7 and 15 s. Shorter outages are met by each try with
    // the same chance, and the wait that doubles after each would make the test a matter of luck.
    let down_every = Duration::from_secs(30);
    let faults = Faults { down_every, refuse: 3, busy: 3, hang: 1, lose_ack: 4, nack_taken: 2 };
    let receivers = [
        ("hook", Receiver::http(seed, faults)),
        ("slack", Receiver::http(seed ^ 1, faults)),
        ("mail", Receiver::smtp(seed ^ 2, faults)),
    ];
    let mut home = Home::new();
    let keys = [webhook(&receivers[0].1), slack(&receivers[1].1), email(&receivers[2].1)];
    let channels: Vec<(&str, String)> = receivers.iter().map(|(name, _)| *name).zip(keys).collect();
    configure(&home, &channels);
    let units = 10;
    for number in 0..units {
        failing(&home, &format!("u{number}"), alerts / units);
    }
    home.daemon();
    let begun = Instant::now();
    kill_over_and_over(&home, kills, seed);
    let mut history = History::default();
    let within = Duration::from_secs(240 + alerts / 2 + kills);
    eventually("every unit has recovered", within, || {
        history.read(&home);
        let over = history.raised.iter().filter(|(_, id)| id.contains("/recovered/"));
        (over.count() as u64 == units).then_some(())
    });
    history.await_delivered(&home, 3, within);
    println!(
        "{} alerts to 3 channels, {kills} kills of the engine, {:.1} s",
        history.raised.len(),
        begun.elapsed().as_secs_f32()
    );
    assert!(history.raised.len() as u64 >= alerts, "{} alerts", history.raised.len());
    assert!(history.parked.is_empty(), "{:?}", history.parked);
    for (channel, receiver) in &receivers {
        judge(channel, receiver, &history, kills);
    }
}

/// SIGKILL to the engine at random moments.
fn kill_over_and_over(home: &Home, kills: u64, seed: u64) {
    let mut former = None;
    let mut luck = seed;
    for _ in 0..kills {
        let pid = eventually("an engine answers", SOON, || {
            let pid = home.list()?["daemon"]["engine_pid"].as_i64()?;
            (Some(pid) != former).then_some(pid)
        });
        luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A random moment is the point of this test; no event could stand for it.
        std::thread::sleep(Duration::from_millis((luck >> 33) % 1_000));
        kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), Signal::SIGKILL).expect("the engine lives");
        former = Some(pid);
    }
}

fn judge(channel: &str, receiver: &Receiver, history: &History, kills: u64) {
    let taken = receiver.taken();
    let (times, order) = tally(channel, &taken);
    let raised: BTreeSet<&String> = history.raised.iter().map(|(_, id)| id).collect();
    let missed: Vec<_> = raised.iter().filter(|id| !times.contains_key(id.as_str())).collect();
    assert!(missed.is_empty(), "{channel} missed {missed:?}");
    assert!(times.keys().all(|id| raised.contains(id)), "{channel} got what nobody raised");
    let duplicates: u64 = times.values().map(|count| count - 1).sum();
    let lost: u64 =
        taken.iter().filter(|taken| taken.unanswered).map(|taken| ids(channel, taken).len() as u64).sum();
    let folds = if channel == "hook" { 1 } else { FOLD };
    println!(
        "{channel}: {} messages for {} alerts, {duplicates} duplicates, {lost} lost acknowledgements, \
         {} refused or down",
        taken.len(),
        times.len(),
        receiver.refused()
    );
    assert!(duplicates <= kills * folds + lost, "{channel}: {duplicates} > {kills} × {folds} + {lost}");
    // Of each unit in the order in which they were raised.
    let place: BTreeMap<&str, usize> =
        order.iter().enumerate().map(|(place, id)| (id.as_str(), place)).collect();
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for (unit, id) in &history.raised {
        let at = place[id.as_str()];
        let before = last.insert(unit, at);
        assert!(before.is_none_or(|before| before < at), "{channel}: {id} came too early");
    }
}

#[test]
fn a_dead_slack_does_not_delay_mail_and_what_is_told_is_all_there_is_to_know() {
    // Accepts and never answers: the worst kind of dead.
    let dead = Receiver::http(1, Faults { hang: 1_000, ..Faults::default() });
    let mail = Receiver::smtp(2, Faults::default());
    let hook = Receiver::http(3, Faults::default());
    let mut home = Home::new();
    configure(&home, &[("slack", slack(&dead)), ("mail", email(&mail)), ("hook", webhook(&hook))]);
    home.unit("shop", "[unit]\nrequires = [\"web\"]\n[service]\ncommand = [\"sleep\", \"100000\"]\n");
    let script = "for i in $(seq 30); do echo line $i; done; printf 'last \\033[2J words'; exit 7";
    home.unit(
        "web",
        &format!(
            "[service]\nshell = true\ncommand = '''{script}'''\n[restart]\ndelays = [\"1h\"]\n\
             [alert]\nafter_failures = 1\n"
        ),
    );
    home.daemon();
    let hook = eventually("the webhook is called", SOON, || hook.taken().first().cloned());
    let taken = eventually("the mail is there", SOON, || mail.taken().first().cloned());
    let raised = home.await_event(0, "an alert", SOON, |event| event["event"] == "alert.raised");
    let raised: jiff::Timestamp = raised["ts"].as_str().expect("ts").parse().expect("a time");
    let waited = taken.at.duration_since(SystemTime::from(raised)).unwrap_or_default();
    println!("mail {waited:?} after the alert was raised, with a Slack that hangs");
    assert!(waited < Duration::from_secs(2), "{waited:?}");
    assert!(dead.taken().is_empty());

    let told = hook.json();
    assert_eq!((&told["unit"], &told["exit_code"], &told["failures"]), (&"web".into(), &7.into(), &1.into()));
    assert_eq!((&told["status"], &told["affected"][0]), (&"firing".into(), &"shop".into()));
    assert_eq!(told["runbook"], "docs/operations/runbook.md#failing");
    assert!(told["cause"].as_str().is_some_and(|cause| cause.contains('7')), "{told}");
    assert!(told["next_retry_at"].is_string(), "{told}");
    let lines: Vec<&str> =
        told["log_tail"].as_array().expect("lines").iter().filter_map(Value::as_str).collect();
    assert_eq!(
        (lines.len(), lines.first(), lines.last()),
        (20, Some(&"line 12"), Some(&"last \u{1b}[2J words"))
    );
    assert!(
        taken.body.contains("line 12\r\n") && taken.body.contains("last \\u{1b}[2J words"),
        "{}",
        taken.body
    );
    assert!(!taken.body.contains('\u{1b}'), "nothing that a terminal obeys");
    assert_eq!(taken.head, "MAIL FROM:<upright@example.net>\nRCPT TO:<ops@example.net>", "{}", taken.head);
}

/// From the end of the process to the receiver's 200, with every receiver up.
#[test]
fn an_alert_is_there_within_two_seconds_of_the_exit() {
    let hook = Receiver::http(4, Faults::default());
    let mail = Receiver::smtp(5, Faults::default());
    let mut home = Home::new();
    configure(&home, &[("hook", webhook(&hook)), ("mail", email(&mail))]);
    let exits = home.path().join("exits");
    let times = 100;
    let script = format!(
        "n=$(wc -l < {0} 2>/dev/null || echo 0); [ $n -ge {times} ] && exec sleep 100000; \
         date +%s%N >> {0}; exit 3",
        exits.display()
    );
    home.unit(
        "web",
        &format!(
            "[service]\nshell = true\ncommand = '''{script}'''\n[restart]\ndelays = [\"100ms\"]\n\
             [alert]\nafter_failures = 1\nrepeat_every = 1\n"
        ),
    );
    home.daemon();
    eventually("both have every alert", Duration::from_secs(120), || {
        (hook.taken().len() >= times && tally("mail", &mail.taken()).0.len() >= times).then_some(())
    });
    let text = fs::read_to_string(&exits).expect("exits");
    let exits: Vec<SystemTime> =
        text.lines().map(|line| UNIX_EPOCH + Duration::from_nanos(line.parse().expect("ns"))).collect();
    for (channel, receiver) in [("hook", &hook), ("mail", &mail)] {
        let mut waits: Vec<Duration> = Vec::new();
        for taken in receiver.taken() {
            for id in ids(channel, &taken) {
                let number: usize =
                    id.rsplit('/').next().and_then(|word| word.parse().ok()).expect("a number");
                waits.push(taken.at.duration_since(exits[number - 1]).unwrap_or_default());
            }
        }
        waits.sort();
        let (p50, p99) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
        println!("{channel}: exit to acknowledgement of {} alerts: p50 {p50:?}, p99 {p99:?}", waits.len());
        assert!(p99 < Duration::from_secs(2), "{channel}: {p99:?}");
    }
}
