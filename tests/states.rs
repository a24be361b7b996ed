//! Totality: every state of a unit × every event, as a table in `docs/STATES.md`; and every
//! short sequence of events keeps the engine's promises.
//!
//! Refuses: reaching into the engine. Each state is reached by public events alone.

#[path = "engine/golden.rs"]
mod golden;
#[path = "engine/script.rs"]
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use upright::base::exit::RunId;
use upright::base::time::Monotonic;
use upright::engine::adopt::{Boot, Inheritance};
use upright::engine::durable::UnitDurable;
use upright::engine::effect::Role;
use upright::engine::safe::{Death, DeathHow};
use upright::engine::{Adopted, Asked};
use upright::unit::spec::UnitSpec;

use script::Play;

/// A state: its name, the unit that can be in it, the events that lead there, and which of
/// its runs the events of the table are about.
struct Place {
    name: &'static str,
    unit: &'static str,
    way: &'static str,
    run: u64,
}

const PLACES: [Place; 28] = [
    place("inactive", "unit u enabled=false", "", 1),
    place("inactive (finished)", "unit u policy=on-failure", "lives 1; exited 1 code 0", 1),
    place("waiting (requirement)", "unit u requires=gone", "", 1),
    place("waiting (shortage)", "unit u", "short 1", 1),
    place("activating: pre", "unit u start_pre=1", "", 1),
    place("activating: spawning", "unit u ready=notify", "", 1),
    place("activating: checking (notify)", "unit u ready=notify", "lives 1", 1),
    place("activating: checking (probe)", "unit u ready=tcp", "lives 1", 1),
    place("activating: checking (command)", "unit u ready=exec", "lives 1; lives 2", 2),
    place("activating: settling", "unit u settle=5s", "lives 1", 1),
    place("activating: post", "unit u start_post=1", "lives 1; lives 2", 2),
    place("active", "unit u", "lives 1", 1),
    place("active: watched", "unit u health=tcp", "lives 1", 1),
    place("active: a check under way", "unit u health=tcp", "lives 1; pass 5s", 1),
    place("active: a check command runs", "unit u health=exec", "lives 1; pass 5s; lives 2", 2),
    place("active: watchdog", "unit u health=watchdog", "lives 1", 1),
    place("active: reloading", "unit u reload_command=1", "lives 1; reload u; lives 2", 2),
    place("degraded", RETURNING, "lives 1; lives 2; exited 1 code 1", 2),
    place("active: resync due", RETURNING, "lives 1; lives 2; exited 1 code 1; pass 5s; lives 3", 2),
    place(
        "active: resync under way",
        RETURNING,
        "lives 1; lives 2; exited 1 code 1; pass 5s; lives 3; pass 1s",
        2,
    ),
    place("backoff", "unit u", "lives 1; exited 1 code 1", 1),
    place("deactivating: command", "unit u stop_command=1", "lives 1; stop u; lives 2", 2),
    place("deactivating: terminating", "unit u", "lives 1; stop u", 1),
    place("deactivating: killing", "unit u", "lives 1; stop u; pass 10s", 1),
    place("deactivating: post", "unit u stop_post=1", "lives 1; stop u; exited 1 code 0; lives 2", 2),
    place("failed (held)", "unit u policy=never", "lives 1; exited 1 code 1", 1),
    place("failed (stuck)", "unit u", "lives 1; stop u; pass 15s", 1),
    place("failed (quarantined)", "unit u", DEADLY, 1),
];

/// Instead of events: the engines before this one died of it.
const DEADLY: &str = "deadly";

/// A unit whose requirement may go and return.
const RETURNING: &str = "unit db + unit u requires=db resync=tcp";

const fn place(name: &'static str, unit: &'static str, way: &'static str, run: u64) -> Place {
    Place { name, unit, way, run }
}

/// `N` stands for the run of the place. "later" is the unit's next deadline.
const EVENTS: [&str; 29] = [
    "later",
    "spawned N",
    "lives N",
    "ready N",
    "matched N",
    "probed N ok",
    "probed N refused",
    "exited N code 0",
    "exited N code 1",
    "exited N code 1 leaving children",
    "short N",
    "emptied u",
    "checked N ok",
    "checked N refused",
    "pinged N",
    "triggered N",
    "resynced N ok",
    "resynced N refused",
    "says N stopping",
    "says N reloading",
    "asks N 1h",
    "resync u",
    "exited 3 code 1",
    "start u",
    "stop u",
    "restart u",
    "reload u",
    "clear u",
    "shutdown",
];

fn perform(play: &mut Play, event: &str, run: u64) {
    let text = event.replace('N', &run.to_string());
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        ["later"] => {
            if let Some(due) = play.engine.next_deadline() {
                play.pass(due);
            }
        }
        ["pass", time] => {
            let wait = upright::base::duration::parse(time).expect("a duration");
            play.pass(play.now + wait);
        }
        words => play.perform(words),
    }
}

/// `u` was active as run 1 when engines died of it three times.
fn deadly(units: Vec<Arc<UnitSpec>>) -> Play {
    let (unit, run) = (script::name("u"), RunId(1));
    let death =
        |ns| Death { at: Monotonic::from_ns(ns), how: DeathHow::Hung, touched: Some(script::name("u")) };
    let row = UnitDurable { ready: Some((run, Monotonic::ZERO)), ..UnitDurable::default() };
    let adopted = Adopted {
        unit: unit.clone(),
        run,
        role: Role::Main,
        pid: 100,
        spawned_at: Monotonic::ZERO,
        executed: true,
        said_ready: false,
        asked: Asked::No,
        ended: None,
    };
    Play::inheriting(Inheritance {
        engine: Default::default(),
        deaths: vec![death(1), death(2), death(3)],
        boot: Boot::Resumed,
        units,
        durable: BTreeMap::from([(unit.clone(), row)]),
        adopted: vec![adopted],
        populated: BTreeSet::from([unit]),
        next_run: RunId(2),
    })
}

fn reach(place: &Place) -> Play {
    let units = place.unit.split(" + ").map(script::unit).collect();
    let mut play = if place.way == DEADLY { deadly(units) } else { Play::begin(units) };
    play.pass(play.now + Duration::from_millis(100));
    if place.way == DEADLY {
        play.lines.clear();
        return play;
    }
    for event in place.way.split(';').map(str::trim).filter(|event| !event.is_empty()) {
        perform(&mut play, event, place.run);
    }
    play.lines.clear();
    play
}

fn state(play: &Play) -> String {
    match play.engine.view_of(&script::name("u")) {
        Some(view) => format!("{} ({})", view.state.as_str(), view.reason),
        None => "gone".to_string(),
    }
}

/// The effects in short words: what is done, and which records are written.
fn effects(play: &Play) -> String {
    let short = |line: &String| {
        let text = line.split_once(' ').map_or("", |(_, text)| text);
        let text = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let text = text.trim_start_matches("ms ").trim_start_matches("s ");
        match text.strip_prefix("u: ") {
            Some(record) => record.split([' ', '{']).next().unwrap_or_default().to_string(),
            None => text.to_string(),
        }
    };
    play.lines.iter().map(short).filter(|text| text != "Ordered").collect::<Vec<_>>().join("; ")
}

#[test]
fn every_event_in_every_state_does_what_the_table_says() {
    let mut out = String::from(
        "# States\n\nGenerated by `BLESS=1 cargo test --test states`; do not edit. Every state of a unit, reached\n\
         by public events, and what each event does there: the new state with its reason, then the\n\
         effects and records, in order. Events that change nothing stand in one line. `N` is the run\n\
         of that state (its process, or its hook).\n",
    );
    for place in &PLACES {
        let before = state(&reach(place));
        out.push_str(&format!("\n## {}\n\n`{}`: {before}\n\n", place.name, place.unit));
        out.push_str("| event | state | effects |\n|---|---|---|\n");
        let mut nothing = Vec::new();
        for event in EVENTS {
            let mut play = reach(place);
            perform(&mut play, event, place.run);
            let (after, effects) = (state(&play), effects(&play));
            if after == before && effects.is_empty() {
                nothing.push(format!("`{event}`"));
                continue;
            }
            let after = if after == before { "the same".to_string() } else { after };
            out.push_str(&format!("| `{event}` | {after} | {effects} |\n"));
        }
        if !nothing.is_empty() {
            out.push_str(&format!("\nNothing: {}.\n", nothing.join(", ")));
        }
    }
    golden::golden("docs/STATES.md", &out);
}

/// Every sequence of five over a small alphabet, for a plain unit and one with everything;
/// `Play` runs `Engine::check` after every step.
#[test]
fn all_short_sequences_of_events_keep_the_promises() {
    const ALPHABET: [&str; 9] = [
        "later",
        "lives N",
        "ready N",
        "exited N code 1 leaving children",
        "exited N code 0",
        "emptied u",
        "short N",
        "stop u",
        "restart u",
    ];
    let full = "unit u ready=notify start_pre=1 start_post=1 stop_post=1 stop_command=1 give_up_after=2";
    for unit in ["unit u", full] {
        let unit = script::unit(unit);
        for number in 0..ALPHABET.len().pow(5) {
            let mut play = Play::begin(vec![unit.clone()]);
            let mut left = number;
            for _ in 0..5 {
                let event = ALPHABET[left % ALPHABET.len()];
                left /= ALPHABET.len();
                let newest = play
                    .lines
                    .iter()
                    .filter(|line| line.contains(" spawn u "))
                    .filter_map(|line| line.rsplit('#').next()?.parse().ok())
                    .next_back();
                perform(&mut play, event, newest.unwrap_or(1));
            }
        }
    }
}
