//! Several writers cut and mutate unit files in place while the real daemon watches: at all times
//! one complete good set is in force, and no untouched service feels anything.
//!
//! Refuses: the clock as a verdict; the pauses in it are the writers' slow hands.
//!
//! `UPRIGHT_MUTATIONS=10000` asks for the long run, `SEED=N` for the same texts again.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use support::{Home, eventually, unit_of};
use upright::base::luck::Luck;
use upright::base::name::UnitName;

/// Far above what is promised (a second), for a machine that does much besides.
const SOON: Duration = Duration::from_secs(15);

fn sleeper(seconds: u32) -> String {
    format!("[service]\ncommand = [\"sleep\", \"{seconds}\"]\n")
}

fn file(home: &Home, unit: &str) -> PathBuf {
    home.path().join(format!("units/{unit}.toml"))
}

/// What a unit is by the list: description, requires, after.
type Shown = (String, Vec<String>, Vec<String>);

fn shown(status: &Value) -> Shown {
    let words = |key: &str| {
        let all = status[key].as_array().into_iter().flatten();
        all.map(|word| word.as_str().unwrap_or_default().to_string()).collect()
    };
    (status["description"].as_str().unwrap_or_default().to_string(), words("requires"), words("after"))
}

/// What a text makes of a unit by itself; none when it has a mistake.
fn meaning(unit: &str, bytes: &[u8]) -> Option<Shown> {
    let text = std::str::from_utf8(bytes).ok()?;
    let spec = upright::unit::parse("file", unit, text).specs.pop()?;
    let words = |names: &[UnitName]| names.iter().map(ToString::to_string).collect();
    Some((spec.unit.description.clone(), words(&spec.unit.requires), words(&spec.unit.after)))
}

/// A file that one writer has to itself, and all that it may mean.
struct Victim {
    unit: String,
    path: PathBuf,
    /// Noted before it is written.
    valid: Mutex<BTreeSet<Shown>>,
}

impl Victim {
    fn write(&self, bytes: &[u8]) {
        if let Some(shown) = meaning(&self.unit, bytes) {
            self.valid.lock().expect("no writer has failed").insert(shown);
        }
        fs::write(&self.path, bytes).expect("the file is written in place");
    }
}

fn whole_file(number: u64, luck: &mut Luck) -> String {
    let partner = luck.below(4);
    format!(
        "# version {number}\n[unit]\ndescription = \"version {number}\"\nrequires = [\"still{partner}\"]\n\
         after = [\"still0\", \"still1\"]\n\n[service]\ncommand = [\"sleep\", \"1000\"]\n\n\
         [restart]\ndelays = [\"5s\", \"10s\"]\nreset_after = \"60s\"\n\n[stop]\ntimeout = \"2s\"\n"
    )
}

/// One cut, or one to three small mutations.
fn mutated(text: &str, luck: &mut Luck) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    let place = |bytes: &[u8], luck: &mut Luck| luck.below(bytes.len() as u64 + 1) as usize;
    for _ in 0..=luck.below(3) {
        let at = place(&bytes, luck);
        match luck.below(7) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] = luck.below(256) as u8,
            2 => {
                let to = (at + luck.below(20) as usize).min(bytes.len());
                bytes.drain(at..to);
            }
            3 => {
                let to = (at + luck.below(30) as usize).min(bytes.len());
                let twice = bytes[at..to].to_vec();
                bytes.splice(at..at, twice);
            }
            4 => {
                let words: [&[u8]; 8] =
                    [b"=", b"[", b"]\n", b"\"", b"\0", b"\n[unit]\n", b"\xff", "\u{202e}".as_bytes()];
                bytes.splice(at..at, words[luck.below(8) as usize].iter().copied());
            }
            5 => {
                let by = at.min(bytes.len() / 2);
                bytes.rotate_left(by);
            }
            _ => bytes.clear(),
        }
    }
    bytes
}

/// The chaos of an unlucky afternoon: several writers cut and mutate unit files in place. At all
/// times what is in force is one complete good set, and nobody else's service feels it.
#[test]
fn no_mutation_of_files_gets_half_a_set_in_force() {
    const WRITERS: usize = 4;
    const FILES_EACH: usize = 6;
    const ROUND: usize = 15;
    let wanted: usize =
        std::env::var("UPRIGHT_MUTATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(u64::from(std::process::id()));
    println!("SEED={seed} UPRIGHT_MUTATIONS={wanted}");
    let mut luck = Luck::new(seed);
    let mut home = Home::new();
    for number in 0..4 {
        let before = if number == 0 {
            String::new()
        } else {
            format!("[unit]\nrequires = [\"still{}\"]\n", number - 1)
        };
        home.unit(&format!("still{number}"), &format!("{before}{}", sleeper(5_000)));
    }
    let victims: Vec<Victim> = (0..WRITERS * FILES_EACH)
        .map(|number| {
            let unit = format!("m{number}");
            let path = file(&home, &unit);
            Victim { unit, path, valid: Default::default() }
        })
        .collect();
    for victim in &victims {
        victim.write(whole_file(0, &mut luck).as_bytes());
    }
    home.daemon();
    let untouched = untouched(&home);
    let (over, looks, written) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let (home, victims, socket) = (&home, &victims, home.socket());
    let check = || {
        check_list(&socket, victims, &untouched);
        looks.fetch_add(1, Ordering::Relaxed);
    };
    let rounds = wanted.div_ceil(WRITERS * ROUND);
    std::thread::scope(|scope| {
        let _ends = OnDrop(&over);
        let checker = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                check();
            }
        });
        for round in 1..=rounds as u64 {
            let seeds: Vec<u64> = (0..WRITERS).map(|_| luck.below(u64::MAX)).collect();
            std::thread::scope(|writers| {
                for (own, seed) in victims.chunks(FILES_EACH).zip(seeds) {
                    let written = &written;
                    writers.spawn(move || write_round(own, round, ROUND, seed, written));
                }
            });
            settle(home, victims, round);
            assert!(!checker.is_finished(), "the checker has found something");
        }
        over.store(true, Ordering::Relaxed);
    });
    println!(
        "{} mutations in {rounds} rounds, looked at {} times: always a complete good set",
        written.load(Ordering::Relaxed),
        looks.load(Ordering::Relaxed)
    );
}

/// The units that no writer touches, with their processes.
fn untouched(home: &Home) -> Vec<(String, i32)> {
    let units = (0..4).map(|number| format!("still{number}"));
    let active = units.map(|unit| {
        home.await_state(&unit, "active", SOON);
        let pid = home.pid(&unit);
        (unit, pid)
    });
    active.collect()
}

/// One look: every unit is there, in a version that somebody wrote, and the untouched ones run on.
fn check_list(socket: &Path, victims: &[Victim], untouched: &[(String, i32)]) {
    let (status, body) = support::http::ask(socket, "GET", "/v1/units", "").expect("an answer");
    assert_eq!(status, 200);
    let list: Value = serde_json::from_slice(&body).expect("JSON");
    let units = list["units"].as_array().expect("units");
    assert_eq!(units.len(), victims.len() + untouched.len(), "a unit came or went: {list}");
    for (unit, pid) in untouched {
        let status = unit_of(&list, unit).expect("an untouched unit");
        assert_eq!(support::pid_of(status), Some(*pid), "{unit} felt something: {status}");
    }
    for victim in victims {
        let status = unit_of(&list, &victim.unit).expect("a mutated unit");
        let valid = victim.valid.lock().expect("no writer has failed");
        assert!(valid.contains(&shown(status)), "nobody ever wrote {status}");
    }
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Some mutations after each other, with the pauses of a slow hand or none. At the end half of
/// the files are whole again.
fn write_round(own: &[Victim], round: u64, count: usize, seed: u64, written: &AtomicUsize) {
    let mut luck = Luck::new(seed);
    for _ in 0..count {
        let victim = &own[luck.below(own.len() as u64) as usize];
        let text = whole_file(round, &mut luck);
        victim.write(&mutated(&text, &mut luck));
        written.fetch_add(1, Ordering::Relaxed);
        if luck.below(3) == 0 {
            std::thread::sleep(Duration::from_millis(luck.below(60)));
        }
    }
    for victim in own.iter().step_by(2) {
        victim.write(whole_file(round, &mut luck).as_bytes());
    }
}

/// When the writers rest, what is whole is in force, and what is not is told.
fn settle(home: &Home, victims: &[Victim], round: u64) {
    let newest = format!("version {round}");
    eventually("every whole file is in force", SOON, || {
        let list = home.list()?;
        let whole = victims.iter().enumerate().filter(|(number, _)| number % FILES_EACH_EVEN == 0);
        let units = whole.map(|(_, victim)| unit_of(&list, &victim.unit));
        units
            .into_iter()
            .all(|unit| unit.is_some_and(|unit| unit["description"] == newest.as_str()))
            .then_some(())
    });
    let files = |value: &Value| -> BTreeSet<String> {
        let all = value.as_array().into_iter().flatten().filter(|one| one["level"] != "warning");
        all.map(|one| one["file"].as_str().unwrap_or_default().to_string()).collect()
    };
    let output = home.upright(&["check", "--json"]);
    let checked: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let wrong = files(&checked["diagnostics"]);
    eventually("every file that is wrong is told", SOON, || {
        (files(&home.get("/v1/config/errors")["errors"]) == wrong).then_some(())
    });
}

/// `FILES_EACH` is even: every second file of all is every second file of each writer.
const FILES_EACH_EVEN: usize = 2;
