//! A row of the route table, a query and a body → `Call`.
//!
//! Refuses: unknown parameters and fields that do not fit; nothing is guessed.

use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::api::call::{AlertCall, Call, LogForm, LogQuery, MetricsForm, Since, Verb};
use crate::api::drills::DrillRequest;
use crate::api::routes::{Param, ROUTES, Route, Target};
use crate::api::types::{
    AckRequest, ActionRequest, ErrorBody, MuteRequest, RecoveryRequest, SignalRequest, TestRequest,
};
use crate::base::duration;
use crate::base::limits;
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::logs::line::Cursor;

/// Most lines one request may ask to begin with.
pub const LINES_MAX: u32 = 100_000;

/// Microseconds since 1970 that a date can have: the years 1 to 9999.
pub const US_LEAST: i64 = -62_135_596_800_000_000;
pub const US_MOST: i64 = 253_402_300_799_999_999;

const LINES_DEFAULT: u32 = 10;
const EVENTS_DEFAULT: u32 = 1_000;
const DRILLS_DEFAULT: u32 = 100;

/// The longest mute: what is forgotten for longer is configured.
const MUTE_S_MAX: u64 = 365 * 24 * 3_600;
/// Of a summary.
const SUMMARY_DEFAULT: Duration = Duration::from_secs(86_400);

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
    /// `Some(None)`: all.
    lines: Option<Option<u32>>,
    follow: Option<bool>,
    since_us: Option<i64>,
    window: Option<Since>,
    until_us: Option<i64>,
    grep: Option<String>,
    stream: Option<String>,
    after: Option<String>,
    marks: Option<bool>,
    raw: Option<bool>,
    after_id: Option<u64>,
    since: Option<String>,
    limit: Option<u32>,
    wait: Option<bool>,
}

/// What the head of a request says beside its address.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heads<'h> {
    /// `Accept: text/event-stream`.
    pub wants_events: bool,
    /// By `Accept`.
    pub metrics: MetricsForm,
    /// Of a browser whose event stream broke (WHATWG HTML, 9.2).
    pub last_event_id: Option<&'h str>,
}

/// What `Accept` asks for (RFC 9110, 12.5.1): OpenMetrics where it is named and liked no less than plain
/// text. A browser and curl name neither, and get what `promtool check metrics` reads.
pub fn metrics_form(accept: &str) -> MetricsForm {
    let mut liked = [("application/openmetrics-text", 0.0_f32), ("text/plain", 0.0)];
    for range in accept.split(',') {
        let mut words = range.split(';').map(str::trim);
        let essence = words.next().unwrap_or("");
        let weight = words.find_map(|word| word.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
        for (name, best) in &mut liked {
            if essence.eq_ignore_ascii_case(name) {
                *best = best.max(weight.unwrap_or(0.0_f32));
            }
        }
    }
    let [(_, open_metrics), (_, plain)] = liked;
    if open_metrics > 0.0 && open_metrics >= plain {
        MetricsForm::OpenMetrics
    } else {
        MetricsForm::Prometheus
    }
}

/// The call of a request; `None` for the OpenAPI document, which needs no daemon.
///
/// # Errors
/// A 400 or 404 that says what does not fit.
pub fn parse(
    route: &Route,
    name: Option<&str>,
    query: Option<&str>,
    heads: Heads<'_>,
    body: &[u8],
) -> Result<Option<Call>, Refusal> {
    let query = parse_query(route, query.unwrap_or(""))?;
    let name = || unit_name(name.unwrap_or(""));
    let follow = query.follow.unwrap_or(false);
    let wait = query.wait.unwrap_or(true);
    Ok(Some(match route.target {
        Target::OpenApi => return Ok(None),
        Target::Livez => Call::Livez,
        Target::Readyz => Call::Readyz,
        Target::Metrics => Call::Metrics(heads.metrics),
        Target::SystemMetrics => Call::SystemMetrics,
        Target::Health => Call::Health,
        Target::Units => Call::Units,
        Target::ConfigErrors => Call::ConfigErrors,
        Target::Page(kind) => Call::Page(kind),
        Target::News => Call::News { follow },
        Target::Summary => Call::Summary { since: query.window.unwrap_or(Since::Last(SUMMARY_DEFAULT)) },
        Target::Alerts => Call::Alerts(AlertCall::List { limit: query.limit.unwrap_or(EVENTS_DEFAULT) }),
        Target::Unit => Call::Unit { name: name()? },
        Target::UnitLogs => Call::Logs(log_query(query, heads, Some(name()?))?),
        Target::Logs => Call::Logs(log_query(query, heads, None)?),
        Target::Events => Call::Events {
            after_id: last_event_id(heads)?.or(query.after_id),
            since: query.since,
            limit: query.limit.unwrap_or(EVENTS_DEFAULT),
            follow,
        },
        Target::ConfigPlan => parse_nothing(body).map(|()| Call::ConfigPlan)?,
        Target::ConfigApply => {
            parse_nothing(body)?;
            Call::ConfigApply { wait }
        }
        Target::AlertTest => parse_test(parse_json_or_default(body)?, wait),
        Target::AlertAck => {
            Call::Alerts(AlertCall::Ack { names: parse_json_or_default::<AckRequest>(body)?.alerts })
        }
        Target::AlertMute => parse_mute(parse_json(body)?)?,
        Target::Drills => Call::Drills { limit: query.limit.unwrap_or(DRILLS_DEFAULT) },
        Target::Drill => parse_drill(parse_json(body)?)?,
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

/// A browser whose stream broke goes on from where it was.
fn last_event_id(heads: Heads<'_>) -> Result<Option<u64>, Refusal> {
    let Some(text) = heads.last_event_id.filter(|text| !text.is_empty()) else { return Ok(None) };
    number("Last-Event-ID", text, 0, u64::MAX).map(Some)
}

fn log_query(query: Query, heads: Heads<'_>, unit: Option<String>) -> Result<LogQuery, Refusal> {
    let raw = query.raw.unwrap_or(false);
    let follow = query.follow.unwrap_or(false);
    let units = unit.map_or(query.units, |unit| vec![unit]);
    if raw && units.len() != 1 {
        let help = "name one unit: bytes of several could not be told apart".to_string();
        return Err(malformed("`raw` is for one unit", help));
    }
    if follow && query.until_us.is_some() {
        return Err(malformed("`follow` goes on, `until` ends: not both", None));
    }
    for places in [heads.last_event_id, query.after.as_deref()].into_iter().flatten() {
        check_places(places)?;
    }
    let picked = raw || query.since_us.is_some() || query.until_us.is_some() || query.grep.is_some();
    let form = match (raw, heads.wants_events) {
        (true, true) => LogForm::ByteEvents,
        (true, false) => LogForm::Bytes,
        (false, true) => LogForm::Events,
        (false, false) if follow => LogForm::Events,
        (false, false) => LogForm::Json,
    };
    Ok(LogQuery {
        units,
        lines: query.lines.unwrap_or((!picked).then_some(LINES_DEFAULT)),
        since_us: query.since_us,
        until_us: query.until_us,
        grep: query.grep,
        stream: query.stream,
        after: heads.last_event_id.map(str::to_string).or(query.after),
        marks: query.marks.unwrap_or(false),
        follow,
        form,
    })
}

/// Both are judged, though only one of them counts: nothing that makes no sense is passed over.
fn check_places(text: &str) -> Result<(), Refusal> {
    let is_one = |place: &&str| {
        let Some((name, at)) = place.split_once('=') else { return false };
        let (unit, stream) = name.trim().rsplit_once('/').unwrap_or_default();
        UnitName::parse(unit).is_ok()
            && matches!(stream, "stdout" | "stderr")
            && at.trim().parse::<Cursor>().is_ok()
    };
    match text.split(',').filter(|place| !place.is_empty()).find(|place| !is_one(place)) {
        None => Ok(()),
        Some(place) => {
            let shown: String = place.chars().take(60).collect();
            let help = "take it from `next` of an answer, or from the id of an event".to_string();
            Err(malformed(format!("cannot read `after`: `{shown}` is no place in a log"), help))
        }
    }
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

fn parse_test(request: TestRequest, wait: bool) -> Call {
    Call::Alerts(AlertCall::Test { channels: request.channels, wait })
}

fn parse_mute(request: MuteRequest) -> Result<Call, Refusal> {
    if request.for_s > MUTE_S_MAX {
        let message = format!("`for_s` must be a whole number from 0 to {MUTE_S_MAX} (a year)");
        return Err(malformed(message, None));
    }
    let units = request.units.iter().map(|unit| unit_name(unit)).collect::<Result<_, _>>()?;
    let wait = (request.for_s > 0).then(|| Duration::from_secs(request.for_s));
    Ok(Call::Alerts(AlertCall::Mute { units, wait }))
}

fn parse_drill(request: DrillRequest) -> Result<Call, Refusal> {
    let (drill, step) = request.parsed().map_err(|why| malformed(why, None))?;
    Ok(Call::Drill { drill, step })
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
            Param::Lines if value == "all" => once(key, &mut query.lines, None)?,
            Param::Lines => once(key, &mut query.lines, Some(number(key, &value, 0, LINES_MAX)?))?,
            Param::Limit => once(key, &mut query.limit, number(key, &value, 1, limit_max())?)?,
            Param::AfterId => once(key, &mut query.after_id, number(key, &value, 0, u64::MAX)?)?,
            Param::Follow => once(key, &mut query.follow, truth(key, &value)?)?,
            Param::Wait => once(key, &mut query.wait, truth(key, &value)?)?,
            Param::Since => once(key, &mut query.since, instant(key, value)?)?,
            Param::LogSince => once(key, &mut query.since_us, instant_us(key, value)?)?,
            Param::Window => once(key, &mut query.window, window(key, value)?)?,
            Param::Until => once(key, &mut query.until_us, instant_us(key, value)?)?,
            Param::Grep => once(key, &mut query.grep, value)?,
            Param::Stream => once(key, &mut query.stream, stream(value)?)?,
            Param::After => once(key, &mut query.after, value)?,
            Param::Marks => once(key, &mut query.marks, truth(key, &value)?)?,
            Param::Raw => once(key, &mut query.raw, truth(key, &value)?)?,
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

fn instant(key: &str, text: String) -> Result<String, Refusal> {
    match text.parse::<i64>() {
        Ok(_) => Err(malformed(format!("cannot read `{key}`: it is a number"), None)),
        Err(_) => instant_us(key, text.clone()).map(|_| text),
    }
}

/// RFC 3339, or whole microseconds since 1970.
fn instant_us(key: &str, text: String) -> Result<i64, Refusal> {
    if text.parse::<i64>().is_ok() {
        return number(key, &text, US_LEAST, US_MOST);
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(at) => Ok(at.as_microsecond()),
        Err(cause) => Err(malformed(
            format!("cannot read `{key}`: {cause}"),
            "write RFC 3339, for example 2026-11-21T20:00:00Z".to_string(),
        )),
    }
}

/// `24h`, or an instant.
fn window(key: &str, text: String) -> Result<Since, Refusal> {
    match duration::parse(&text) {
        Ok(length) if text.parse::<i64>().is_err() => Ok(Since::Last(length)),
        Ok(_) | Err(_) => instant_us(key, text).map(Since::At),
    }
}

fn stream(text: String) -> Result<String, Refusal> {
    match text.as_str() {
        "stdout" | "stderr" => Ok(text),
        _ => Err(malformed("`stream` must be stdout or stderr", None)),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str, heads: Heads<'_>) -> Result<LogQuery, String> {
        let route = ROUTES.iter().find(|route| route.target == Target::Logs).expect("the route");
        match parse(route, None, Some(query), heads, b"") {
            Ok(Some(Call::Logs(query))) => Ok(query),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal.error.message),
        }
    }

    #[test]
    fn questions_about_logs() {
        let events = Heads { wants_events: true, ..Heads::default() };
        let again = Heads { wants_events: true, last_event_id: Some("a/stdout=4.5.6"), ..Heads::default() };
        let none = LogQuery::default();
        let units = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let table = [
            ("", Heads::default(), LogQuery { lines: Some(10), ..none.clone() }),
            (
                "unit=a&unit=b&lines=3&follow=true",
                Heads::default(),
                LogQuery {
                    units: units(&["a", "b"]),
                    lines: Some(3),
                    follow: true,
                    form: LogForm::Events,
                    ..none.clone()
                },
            ),
            ("lines=all&marks=1", events, LogQuery { marks: true, form: LogForm::Events, ..none.clone() }),
            (
                "since=1970-01-01T00:00:01Z&until=2000000&grep=a%5Cd%2B&stream=stderr",
                Heads::default(),
                LogQuery {
                    since_us: Some(1_000_000),
                    until_us: Some(2_000_000),
                    grep: Some("a\\d+".into()),
                    stream: Some("stderr".into()),
                    ..none.clone()
                },
            ),
            (
                "unit=a&raw=true&after=a/stdout=1.2.3",
                Heads::default(),
                LogQuery {
                    units: units(&["a"]),
                    after: Some("a/stdout=1.2.3".into()),
                    form: LogForm::Bytes,
                    ..none.clone()
                },
            ),
            (
                "unit=a&raw=true&after=a/stdout=1.2.3&lines=0",
                again,
                LogQuery {
                    units: units(&["a"]),
                    lines: Some(0),
                    after: Some("a/stdout=4.5.6".into()),
                    form: LogForm::ByteEvents,
                    ..none
                },
            ),
        ];
        for (query, heads, want) in table {
            assert_eq!(asked(query, heads), Ok(want), "{query}");
        }
    }

    #[test]
    fn questions_that_make_no_sense() {
        for query in [
            "raw=true",
            "unit=a&unit=b&raw=true",
            "follow=true&until=2026-11-21T20:00:00Z",
            "stream=stdin",
            "lines=100001",
            "lines=some",
            "since=yesterday",
            "grep=a&grep=b",
            "marks=perhaps",
            "after=null",
            "after=a/stdout=1.2",
        ] {
            assert!(asked(query, Heads::default()).is_err(), "{query}");
        }
    }

    #[test]
    fn the_format_of_metrics_is_the_one_that_the_client_likes() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, form) in [
            (prometheus, MetricsForm::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0", MetricsForm::OpenMetrics),
            ("Application/OpenMetrics-Text", MetricsForm::OpenMetrics),
            ("text/plain", MetricsForm::Prometheus),
            ("*/*", MetricsForm::Prometheus),
            ("", MetricsForm::Prometheus),
            ("application/openmetrics-text;q=0", MetricsForm::Prometheus),
            ("application/openmetrics-text;q=0.2, text/plain", MetricsForm::Prometheus),
            ("application/openmetrics-text;q=x", MetricsForm::Prometheus),
        ] {
            assert_eq!(metrics_form(accept), form, "{accept}");
        }
    }
}
