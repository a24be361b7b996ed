//! A row of the route table, a query and a body → `Call`.
//!
//! Refuses: unknown parameters and fields that do not fit; nothing is guessed.

use serde::de::DeserializeOwned;

use crate::api::call::{Call, Verb};
use crate::api::routes::{Param, ROUTES, Route, Target};
use crate::api::types::{ActionRequest, ErrorBody, RecoveryRequest, SignalRequest};
use crate::base::limits;
use crate::base::name::UnitName;
use crate::base::signal::Signal;

/// Most lines one request may ask to begin with.
pub const LINES_MAX: u32 = 10_000;
const LINES_DEFAULT: u32 = 10;
const EVENTS_DEFAULT: u32 = 1_000;

/// A request that is answered with an error instead of being passed on.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub status: u16,
    pub error: ErrorBody,
}

impl Refusal {
    pub fn new(
        status: u16,
        code: &str,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) -> Refusal {
        let error = ErrorBody { code: code.into(), message: message.into(), help: help.into() };
        Refusal { status, error }
    }
}

/// What the query may say, each at most once but `unit`.
#[derive(Default)]
struct Query {
    units: Vec<String>,
    lines: Option<u32>,
    follow: Option<bool>,
    after_id: Option<u64>,
    since: Option<String>,
    limit: Option<u32>,
    wait: Option<bool>,
}

/// The call of a request; `None` for the OpenAPI document, which needs no daemon.
///
/// # Errors
/// A 400 or 404 that says what does not fit.
pub fn parse(
    route: &Route,
    name: Option<&str>,
    query: Option<&str>,
    body: &[u8],
) -> Result<Option<Call>, Refusal> {
    let query = parse_query(route, query.unwrap_or(""))?;
    let name = || unit_name(name.unwrap_or(""));
    let lines = query.lines.unwrap_or(LINES_DEFAULT);
    let follow = query.follow.unwrap_or(false);
    let wait = query.wait.unwrap_or(true);
    Ok(Some(match route.target {
        Target::OpenApi => return Ok(None),
        Target::Livez => Call::Livez,
        Target::Readyz => Call::Readyz,
        Target::Health => Call::Health,
        Target::Units => Call::Units,
        Target::ConfigErrors => Call::ConfigErrors,
        Target::Alerts => Call::Alerts { limit: query.limit.unwrap_or(EVENTS_DEFAULT) },
        Target::Unit => Call::Unit { name: name()? },
        Target::UnitLogs => Call::Logs { units: vec![name()?], lines, follow },
        Target::Logs => Call::Logs { units: query.units, lines, follow },
        Target::Events => Call::Events {
            after_id: query.after_id,
            since: query.since,
            limit: query.limit.unwrap_or(EVENTS_DEFAULT),
            follow,
        },
        Target::ConfigPlan => {
            parse_nothing(body)?;
            Call::ConfigPlan
        }
        Target::ConfigApply => {
            parse_nothing(body)?;
            Call::ConfigApply { wait }
        }
        Target::Upgrade => Call::Upgrade,
        Target::BeginUpgrade => {
            parse_nothing(body)?;
            Call::BeginUpgrade
        }
        Target::UnitAct(verb) => {
            parse_nothing(body)?;
            Call::Act { verb, units: vec![name()?], all: false, wait }
        }
        Target::UnitSignal => {
            let SignalRequest { signal } = parse_json(body)?;
            Call::Signal { name: name()?, signal: checked_signal(signal)? }
        }
        Target::Act(verb) => parse_action(verb, parse_json(body)?, wait)?,
        Target::RecoveryRestart => match parse_json_or_default::<RecoveryRequest>(body)?.unit {
            Some(unit) => Call::Act { verb: Verb::Restart, units: vec![unit_name(&unit)?], all: false, wait },
            None => Call::RestartInactive { wait },
        },
        Target::RecoveryResync => match parse_json_or_default::<RecoveryRequest>(body)?.unit {
            Some(unit) => Call::Act { verb: Verb::Resync, units: vec![unit_name(&unit)?], all: false, wait },
            None => Call::Act { verb: Verb::Resync, units: Vec::new(), all: true, wait },
        },
    }))
}

fn parse_action(verb: Verb, request: ActionRequest, wait: bool) -> Result<Call, Refusal> {
    if request.all != request.units.is_empty() {
        let message = "name units, or set `all` to true: not both, not neither";
        let help = "for example {\"units\":[\"web\"]} or {\"all\":true}".to_string();
        return Err(malformed(message, help));
    }
    let units = request.units.iter().map(|unit| unit_name(unit)).collect::<Result<_, _>>()?;
    Ok(Call::Act { verb, units, all: request.all, wait })
}

fn malformed(message: impl Into<String>, help: impl Into<Option<String>>) -> Refusal {
    Refusal::new(400, "request.malformed", message, help)
}

/// A text that cannot be a name names no unit: 404, as for any other stranger.
fn unit_name(segment: &str) -> Result<String, Refusal> {
    let text = percent_decoded(segment)?;
    match UnitName::parse(&text) {
        Ok(name) => Ok(name.to_string()),
        Err(error) => Err(Refusal::new(
            404,
            "unit.unknown",
            error.to_string(),
            "`upright status` lists the units".to_string(),
        )),
    }
}

fn checked_signal(text: String) -> Result<String, Refusal> {
    if Signal::parse(&text).is_some() {
        return Ok(text);
    }
    let shown: String = text.chars().take(40).collect();
    Err(malformed(format!("`{shown}` is no signal"), "write for example SIGUSR1, USR1 or 10".to_string()))
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|cause| {
        malformed(format!("cannot read the body: {cause}"), "the fields are in /openapi.json".to_string())
    })
}

fn parse_json_or_default<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Refusal> {
    if body.trim_ascii().is_empty() { Ok(T::default()) } else { parse_json(body) }
}

/// Routes without a body take none or `{}`, so that a misplaced argument is not ignored.
fn parse_nothing(body: &[u8]) -> Result<(), Refusal> {
    let fields: serde_json::Map<String, serde_json::Value> = parse_json_or_default(body)?;
    if fields.is_empty() {
        return Ok(());
    }
    Err(malformed("this route takes no body", "send `{}`".to_string()))
}

fn parse_query(route: &Route, text: &str) -> Result<Query, Refusal> {
    let mut query = Query::default();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decoded(value)?;
        let Some(param) = route.params.iter().find(|param| param.as_str() == key) else {
            return Err(unknown_param(route, key));
        };
        match param {
            Param::Unit => query.units.push(unit_name(&value)?),
            Param::Lines => once(key, &mut query.lines, number(key, &value, 0, LINES_MAX)?)?,
            Param::Limit => once(key, &mut query.limit, number(key, &value, 1, limit_max())?)?,
            Param::AfterId => once(key, &mut query.after_id, number(key, &value, 0, u64::MAX)?)?,
            Param::Follow => once(key, &mut query.follow, truth(key, &value)?)?,
            Param::Wait => once(key, &mut query.wait, truth(key, &value)?)?,
            Param::Since => once(key, &mut query.since, instant(value)?)?,
        }
    }
    if query.units.len() > limits::UNITS_MAX {
        return Err(malformed("too many units", None));
    }
    Ok(query)
}

fn limit_max() -> u32 {
    u32::try_from(limits::EVENTS_PER_REPLY_MAX).unwrap_or(u32::MAX)
}

fn unknown_param(route: &Route, key: &str) -> Refusal {
    let known: Vec<&str> = route.params.iter().map(|param| param.as_str()).collect();
    let help = match known.is_empty() {
        true => "this route takes no parameters".to_string(),
        false => format!("this route takes {}", known.join(", ")),
    };
    let shown: String = key.chars().take(40).collect();
    malformed(format!("`{shown}` is no parameter of {}", route.pattern), help)
}

fn once<T>(key: &str, slot: &mut Option<T>, value: T) -> Result<(), Refusal> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed(format!("`{key}` is given twice"), None)),
    }
}

fn number<N: std::str::FromStr + PartialOrd + std::fmt::Display>(
    key: &str,
    text: &str,
    least: N,
    most: N,
) -> Result<N, Refusal> {
    match text.parse::<N>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        Ok(_) | Err(_) => {
            Err(malformed(format!("`{key}` must be a whole number from {least} to {most}"), None))
        }
    }
}

fn truth(key: &str, text: &str) -> Result<bool, Refusal> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(malformed(format!("`{key}` must be true or false"), None)),
    }
}

fn instant(text: String) -> Result<String, Refusal> {
    match text.parse::<jiff::Timestamp>() {
        Ok(_) => Ok(text),
        Err(cause) => Err(malformed(
            format!("cannot read `since`: {cause}"),
            "write RFC 3339, for example 2026-11-21T20:00:00Z".to_string(),
        )),
    }
}

/// `%41` → `A`. A `+` stays a plus: names have no spaces, and RFC 3339 has offsets.
fn percent_decoded(text: &str) -> Result<String, Refusal> {
    let broken = || malformed("the address has a broken %-escape", None);
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(broken()) };
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map_err(|_| broken())
}

/// The pattern nearest to an unknown path, for "did you mean".
pub fn nearest_path(path: &str) -> Option<&'static str> {
    let near = |pattern: &str| strsim::normalized_damerau_levenshtein(pattern, path);
    // Distance is quadratic in the length; no route is near 200 characters.
    if path.len() > 200 {
        return None;
    }
    ROUTES
        .iter()
        .map(|route| route.pattern)
        .max_by(|a, b| near(a).total_cmp(&near(b)))
        .filter(|best| near(best) > 0.7)
}
