//! Scenarios: TOML text → what is done to whom, how often. The shipped ones are in the binary.
//!
//! Refuses: keys that it does not know, and faults that nobody knows how to do.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::api::drills::{FAULT_MAX, FaultKind};
use crate::base::duration;
use crate::drill::{Asked, DrillError};

/// The shipped scenarios, in the order in which they are best tried.
pub const SHIPPED: &[(&str, &str)] = &[
    ("single-module", include_str!("../../examples/drills/single-module.toml")),
    ("hang", include_str!("../../examples/drills/hang.toml")),
    ("db-redis-down", include_str!("../../examples/drills/db-redis-down.toml")),
    ("cascade", include_str!("../../examples/drills/cascade.toml")),
    ("stress", include_str!("../../examples/drills/stress.toml")),
    ("config-corruption", include_str!("../../examples/drills/config-corruption.toml")),
    ("abnormal-requests", include_str!("../../examples/drills/abnormal-requests.toml")),
    ("alert-outage", include_str!("../../examples/drills/alert-outage.toml")),
    ("disk-full", include_str!("../../examples/drills/disk-full.toml")),
    ("supervisor-kill", include_str!("../../examples/drills/supervisor-kill.toml")),
    ("acceptance", include_str!("../../examples/drills/acceptance.toml")),
];

/// Largest scenario file.
const FILE_BYTES_MAX: usize = 65_536;
const ITERATIONS_MAX: u32 = 10_000;
const DURATION_MAX: Duration = Duration::from_secs(86_400);

/// Slow enough for a backend in service: what is measured is what becomes of a request, not how many there can be.
const LOAD_EVERY: Duration = Duration::from_millis(200);
const LOAD_EVERY_MIN: Duration = Duration::from_millis(5);
const LOAD_PATH: &str = "/api/chat";

/// Who is hurt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum On {
    /// One unit that nothing needs, and that needs others where there is such a one.
    #[default]
    Front,
    /// Every unit that another one requires.
    Requirements,
    All,
    /// The daemon itself.
    Daemon,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The daemon does it to itself or a unit.
    Fault(FaultKind),
    /// Broken requests to the daemon, and to `--base-url`.
    AbnormalRequests,
}

impl Kind {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Fault(kind) => kind.as_str(),
            Kind::AbnormalRequests => "abnormal-requests",
        }
    }
}

/// How the faults follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// The next one when the last has been recovered from.
    #[default]
    OneByOne,
    /// The next one after `interval`, whatever became of the last.
    Interval,
}

/// How often a fault is done in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    #[default]
    Once,
    /// Again and again, until an alert is raised over it.
    Alert,
}

/// One kind of fault, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    pub on: On,
    pub until: Until,
    /// It is undone after this.
    pub wait: Duration,
}

/// The requests beside the faults, where there is a `--base-url`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPlan {
    /// One request so often.
    pub every: Duration,
    /// Takes a POST with a session.
    pub path: String,
}

/// A scenario with everything filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    pub name: String,
    pub description: String,
    pub pace: Pace,
    pub iterations: u32,
    pub pause: Duration,
    /// With pace `interval`: how long.
    pub duration: Duration,
    pub interval: Duration,
    /// What has not recovered after this is lost.
    pub recover_within: Duration,
    pub load: LoadPlan,
    pub faults: Vec<Fault>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    description: String,
    #[serde(default)]
    pace: Pace,
    iterations: Option<u32>,
    pause: Option<String>,
    duration: Option<String>,
    interval: Option<String>,
    recover_within: Option<String>,
    #[serde(default)]
    load: LoadText,
    fault: Vec<FaultText>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadText {
    every: Option<String>,
    path: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultText {
    kind: String,
    #[serde(default)]
    on: On,
    #[serde(default)]
    until: Until,
    #[serde(rename = "for")]
    wait: Option<String>,
}

/// The scenario that was asked for, with the flags in place of what the file says.
///
/// # Errors
/// `Usage`: there is none of that name, or it has a mistake.
pub fn find(name: &str, asked: &Asked) -> Result<Scenario, DrillError> {
    let shipped = SHIPPED.iter().find(|(known, _)| *known == name);
    let (name, text) = match shipped {
        Some((name, text)) => ((*name).to_string(), (*text).to_string()),
        None if name.ends_with(".toml") => read(Path::new(name))?,
        None => {
            let known: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
            return Err(usage(
                format!("there is no scenario `{name}`"),
                format!("name a .toml file, or one of {}", known.join(", ")),
            ));
        }
    };
    let mut scenario = parse(&name, &text)
        .map_err(|why| usage(format!("cannot use scenario `{name}`: {why}"), "mend the file".to_string()))?;
    let Asked { iterations, pause, duration, interval, .. } = asked;
    scenario.iterations = iterations.unwrap_or(scenario.iterations);
    scenario.pause = pause.unwrap_or(scenario.pause);
    scenario.duration = duration.unwrap_or(scenario.duration);
    scenario.interval = interval.unwrap_or(scenario.interval);
    bounded(&scenario).map_err(|why| usage(why, "choose a smaller one".to_string()))?;
    Ok(scenario)
}

fn usage(message: String, help: String) -> DrillError {
    DrillError::Usage { message, help }
}

fn read(path: &Path) -> Result<(String, String), DrillError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| {
        usage(format!("cannot read {shown}: {error}"), "name a file that is there".to_string())
    })?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_string();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if stem.is_empty() || stem.len() > 40 || !stem.chars().all(plain) || text.len() > FILE_BYTES_MAX {
        let help = "name it with a-z, 0-9 and `-`, and keep it below 64 KiB".to_string();
        return Err(usage(format!("cannot use {shown} as a scenario"), help));
    }
    Ok((stem, text))
}

/// # Errors
/// A sentence.
pub fn parse(name: &str, text: &str) -> Result<Scenario, String> {
    let text: Text = toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_string())?;
    let or = |word: Option<String>, default: Duration| match word {
        Some(word) => duration::parse(&word).map_err(|error| error.why),
        None => Ok(default),
    };
    let faults = text.fault.into_iter().map(|fault| {
        let wait = or(fault.wait, Duration::from_secs(60))?;
        if wait.is_zero() || wait > FAULT_MAX {
            return Err("a fault lasts at most 10 minutes".to_string());
        }
        Ok(Fault { kind: kind_of(&fault.kind)?, on: fault.on, until: fault.until, wait })
    });
    let scenario = Scenario {
        name: name.to_string(),
        description: text.description,
        pace: text.pace,
        iterations: text.iterations.unwrap_or(1),
        pause: or(text.pause, Duration::from_secs(2))?,
        duration: or(text.duration, Duration::from_secs(60))?,
        interval: or(text.interval, Duration::from_secs(5))?,
        recover_within: or(text.recover_within, Duration::from_secs(90))?,
        load: LoadPlan {
            every: or(text.load.every, LOAD_EVERY)?,
            path: text.load.path.unwrap_or_else(|| LOAD_PATH.to_string()),
        },
        faults: faults.collect::<Result<_, String>>()?,
    };
    if scenario.faults.is_empty() {
        return Err("it has no [[fault]]".to_string());
    }
    bounded(&scenario)?;
    Ok(scenario)
}

fn bounded(scenario: &Scenario) -> Result<(), String> {
    if scenario.iterations == 0 || scenario.iterations > ITERATIONS_MAX {
        return Err(format!("a drill has 1 to {ITERATIONS_MAX} iterations"));
    }
    let longest = scenario.duration.max(scenario.pause).max(scenario.interval).max(scenario.recover_within);
    if longest > DURATION_MAX {
        return Err("a drill lasts at most a day".to_string());
    }
    if scenario.interval.is_zero() {
        return Err("the interval must be longer than zero".to_string());
    }
    if scenario.load.every < LOAD_EVERY_MIN || scenario.load.every > DURATION_MAX {
        return Err("`every` of [load] is 5 ms to a day".to_string());
    }
    let path = &scenario.load.path;
    if !path.starts_with('/')
        || path.len() > 200
        || path.contains(|c: char| !c.is_ascii_graphic() || "?#".contains(c))
    {
        return Err("`path` of [load] begins with `/`, and has no `?`".to_string());
    }
    Ok(())
}

fn kind_of(word: &str) -> Result<Kind, String> {
    let kinds = [
        FaultKind::Kill,
        FaultKind::Hang,
        FaultKind::Outage,
        FaultKind::Slow,
        FaultKind::ConfigCorrupt,
        FaultKind::EngineKill,
        FaultKind::Channels,
        FaultKind::DiskFull,
    ];
    let fault = kinds.into_iter().find(|kind| kind.as_str() == word).map(Kind::Fault);
    let requests = (word == Kind::AbnormalRequests.as_str()).then_some(Kind::AbnormalRequests);
    let known = || kinds.map(FaultKind::as_str).join(", ");
    fault
        .or(requests)
        .ok_or_else(|| format!("`{word}` is no fault; there are {}, abnormal-requests", known()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_is_without_a_mistake_and_is_what_the_directory_has() {
        for (name, text) in SHIPPED {
            let scenario = parse(name, text).expect(name);
            assert!(!scenario.description.is_empty(), "{name}");
        }
        let mut files: Vec<String> = std::fs::read_dir("examples/drills")
            .expect("the directory")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_suffix(".toml").map(str::to_string))
            .collect();
        let mut names: Vec<String> = SHIPPED.iter().map(|(name, _)| (*name).to_string()).collect();
        files.sort();
        names.sort();
        assert_eq!(files, names);
    }

    #[test]
    fn mistakes_are_told() {
        for (text, word) in [
            ("description = \"x\"\nfault = []", "no [[fault]]"),
            ("description = \"x\"\n[[fault]]\nkind = \"fire\"", "`fire` is no fault"),
            ("description = \"x\"\n[[fault]]\nkind = \"kill\"\nfor = \"11m\"", "10 minutes"),
            ("description = \"x\"\niterations = 0\n[[fault]]\nkind = \"kill\"", "iterations"),
            ("description = \"x\"\n[load]\npath = \"/a?b\"\n[[fault]]\nkind = \"kill\"", "no `?`"),
            ("description = \"x\"\n[load]\nevery = \"1ms\"\n[[fault]]\nkind = \"kill\"", "5 ms"),
            ("descriptoin = \"x\"\n[[fault]]\nkind = \"kill\"", "unknown field"),
        ] {
            let why = parse("x", text).expect_err(text);
            assert!(why.contains(word), "{why}");
        }
    }
}
