//! The route table: dispatch, the OpenAPI document and the tests read this one list.
//!
//! Refuses: any request that is not a row of it (reliability A1: a closed list of routes).

use hyper::Method;

use crate::api::call::{Verb, WebKind};

/// Who may use a route. Nothing is open to those who may do neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Reads: viewers, and everybody who may act.
    View,
    /// Changes something: root, the daemon's own user, operators.
    Act,
}

/// What it takes over TCP. On the Unix socket the kernel says who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Nothing.
    Open,
    Token,
    /// It cannot be done over TCP.
    Unix,
}

/// What a request turns into; `Call` without its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Livez,
    Readyz,
    Metrics,
    SystemMetrics,
    Health,
    Units,
    Unit,
    UnitLogs,
    Logs,
    Events,
    ConfigErrors,
    Alerts,
    AlertTest,
    AlertAck,
    AlertMute,
    Summary,
    Page(WebKind),
    News,
    ConfigPlan,
    ConfigApply,
    Drills,
    Drill,
    Upgrade,
    BeginUpgrade,
    OpenApi,
    UnitAct(Verb),
    UnitSignal,
    Act(Verb),
    RecoveryRestart,
    RecoveryResync,
}

/// A query parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    Unit,
    Lines,
    Follow,
    AfterId,
    Since,
    Limit,
    Wait,
    /// `since` of a log: a line has a time of its own.
    LogSince,
    /// `since` of a summary: a length, or a time.
    Window,
    Until,
    Grep,
    Stream,
    After,
    Marks,
    Raw,
}

impl Param {
    pub const ALL: [Param; 15] = [
        Param::Unit,
        Param::Lines,
        Param::Follow,
        Param::AfterId,
        Param::Since,
        Param::Limit,
        Param::Wait,
        Param::LogSince,
        Param::Window,
        Param::Until,
        Param::Grep,
        Param::Stream,
        Param::After,
        Param::Marks,
        Param::Raw,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Param::Unit => "unit",
            Param::Lines => "lines",
            Param::Follow => "follow",
            Param::AfterId => "after_id",
            Param::Since => "since",
            Param::Limit => "limit",
            Param::Wait => "wait",
            Param::LogSince => "since",
            Param::Window => "since",
            Param::Until => "until",
            Param::Grep => "grep",
            Param::Stream => "stream",
            Param::After => "after",
            Param::Marks => "marks",
            Param::Raw => "raw",
        }
    }

    pub fn what(self) -> &'static str {
        match self {
            Param::Unit => "Name of a unit; may be given several times. None = every unit.",
            Param::Lines => {
                "Begin with the last so many lines that fit, 0 to 100000, or `all`. Default 10; with since, until, grep or raw: all."
            }
            Param::Follow => "true: answer with `text/event-stream` and go on as things happen.",
            Param::AfterId => "Only events with a greater id.",
            Param::Since => "Only events at or after this time, RFC 3339.",
            Param::Limit => {
                "Most entries to answer with, 1 to 10000. Default 1000. With after_id the oldest that fit, else the newest."
            }
            Param::Wait => "false: answer as soon as the order is taken. Default true.",
            Param::LogSince => "Only what was captured at or after this time, RFC 3339 or µs since 1970.",
            Param::Window => "Where the window begins: a length (24h, 90d) or RFC 3339. Default 24h.",
            Param::Until => "Only what was captured at or before this time, RFC 3339 or µs since 1970.",
            Param::Grep => {
                "Only lines that match this regular expression (syntax of the Rust crate `regex`), at most 256 bytes. Losses are told all the same."
            }
            Param::Stream => "stdout or stderr. None = both, by time.",
            Param::After => {
                "Go on from here: `next` of an answer, or ids of events, joined by commas. As the header Last-Event-ID."
            }
            Param::Marks => "true: tell also where runs began and ended.",
            Param::Raw => {
                "true: the bytes as they were written, of one unit, as `application/octet-stream` (or, in an event stream, as `base64` of each item)."
            }
        }
    }
}

/// One row.
#[derive(Clone, Debug)]
pub struct Route {
    pub method: Method,
    /// `{name}` stands for one segment, a unit's name.
    pub pattern: &'static str,
    pub need: Need,
    pub door: Door,
    pub target: Target,
    pub params: &'static [Param],
    pub what: &'static str,
}

const fn read(pattern: &'static str, target: Target, params: &'static [Param], what: &'static str) -> Route {
    Route { method: Method::GET, pattern, need: Need::View, door: Door::Token, target, params, what }
}

const fn act(pattern: &'static str, target: Target, params: &'static [Param], what: &'static str) -> Route {
    Route { method: Method::POST, pattern, need: Need::Act, door: Door::Token, target, params, what }
}

impl Route {
    const fn open(mut self) -> Route {
        self.door = Door::Open;
        self
    }

    const fn unix_only(mut self) -> Route {
        self.door = Door::Unix;
        self
    }

    /// The `{name}` of its pattern.
    pub fn is_of_a_unit(&self) -> bool {
        self.pattern.contains("{name}")
    }
}

const UNIT_LOGS: &[Param] = &[
    Param::Lines,
    Param::Follow,
    Param::LogSince,
    Param::Until,
    Param::Grep,
    Param::Stream,
    Param::After,
    Param::Marks,
    Param::Raw,
];
const LOGS: &[Param] = &[
    Param::Unit,
    Param::Lines,
    Param::Follow,
    Param::LogSince,
    Param::Until,
    Param::Grep,
    Param::Stream,
    Param::After,
    Param::Marks,
    Param::Raw,
];
const EVENTS: &[Param] = &[Param::AfterId, Param::Since, Param::Limit, Param::Follow];
const ALERTS: &[Param] = &[Param::Limit];
const SUMMARY: &[Param] = &[Param::Window];
const NEWS: &[Param] = &[Param::Follow];
const WAIT: &[Param] = &[Param::Wait];

/// Every route there is.
pub const ROUTES: &[Route] = &[
    read(
        "/",
        Target::Page(WebKind::Html),
        &[],
        "The dashboard, for people: an HTML page. Over TCP without a token it shows no log line.",
    )
    .open(),
    read(
        "/sign-in",
        Target::Page(WebKind::Html),
        &[],
        "The same page. Over TCP a browser asks its reader for the token, as a password, and keeps it.",
    ),
    read(
        "/dashboard/news",
        Target::News,
        NEWS,
        "The id of the newest event, and nothing of what happened: the page follows it to know when it is old.",
    )
    .open(),
    read("/dashboard.js", Target::Page(WebKind::Script), &[], "The dashboard's script.").open(),
    read("/dashboard.css", Target::Page(WebKind::Style), &[], "The dashboard's style sheet.").open(),
    read("/livez", Target::Livez, &[], "Is the engine answering? 200 or 503, plain text.").open(),
    read("/readyz", Target::Readyz, &[], "Has the engine taken over its units? 200 or 503, plain text.")
        .open(),
    read(
        "/metrics",
        Target::Metrics,
        &[],
        "Numbers for Prometheus, in the OpenMetrics text format where the client accepts it.",
    )
    .open(),
    read("/api/system/metrics", Target::SystemMetrics, &[], "The numbers of /metrics as JSON.").open(),
    read("/api/system/health", Target::Health, &[], "The whole system on one page: green, yellow or red.")
        .open(),
    read(
        "/api/metrics/v0_1/summary",
        Target::Summary,
        SUMMARY,
        "The KPIs of a window that ends now, real and drill apart.",
    )
    .open(),
    read("/v1/units", Target::Units, &[], "Every unit with its state and reason."),
    read("/v1/units/{name}", Target::Unit, &[], "One unit with its last log lines and history."),
    read("/v1/units/{name}/logs", Target::UnitLogs, UNIT_LOGS, "What one unit wrote."),
    read("/v1/logs", Target::Logs, LOGS, "What several units wrote."),
    read("/v1/events", Target::Events, EVENTS, "What happened, oldest first."),
    read("/v1/config/errors", Target::ConfigErrors, &[], "What is wrong in the unit files."),
    read(
        "/v1/alerts",
        Target::Alerts,
        ALERTS,
        "What people were to be told, newest first, with its channels.",
    ),
    read("/v1/drills", Target::Drills, ALERTS, "Drills, newest first, and what they may hurt.").unix_only(),
    read("/v1/upgrade", Target::Upgrade, &[], "How far the newest upgrade of the daemon is.").unix_only(),
    read("/openapi.json", Target::OpenApi, &[], "This document."),
    act("/v1/units/{name}/start", Target::UnitAct(Verb::Start), WAIT, "Start a unit and what it requires."),
    act("/v1/units/{name}/stop", Target::UnitAct(Verb::Stop), WAIT, "Stop a unit; it stays stopped."),
    act("/v1/units/{name}/restart", Target::UnitAct(Verb::Restart), WAIT, "Stop a unit, then start it."),
    act("/v1/units/{name}/reload", Target::UnitAct(Verb::Reload), WAIT, "Have a unit reread its files."),
    act("/v1/units/{name}/clear", Target::UnitAct(Verb::Clear), WAIT, "Forget a unit's failures."),
    act("/v1/units/{name}/resync", Target::UnitAct(Verb::Resync), WAIT, "Restore a unit's state now."),
    act("/v1/units/{name}/signal", Target::UnitSignal, &[], "Send a signal to a unit's main process."),
    act("/v1/actions/start", Target::Act(Verb::Start), WAIT, "Start several units, requirements first."),
    act("/v1/actions/stop", Target::Act(Verb::Stop), WAIT, "Stop several units in reverse order."),
    act("/v1/actions/restart", Target::Act(Verb::Restart), WAIT, "Restart several units."),
    act("/v1/actions/reload", Target::Act(Verb::Reload), WAIT, "Have several units reread their files."),
    act("/v1/actions/clear", Target::Act(Verb::Clear), WAIT, "Forget the failures of several units."),
    act("/v1/actions/resync", Target::Act(Verb::Resync), WAIT, "Restore the state of several units now."),
    act(
        "/v1/alerts/test",
        Target::AlertTest,
        WAIT,
        "Raise an alert to see whether it arrives; answers when it has, or after 30 s.",
    ),
    act("/v1/alerts/ack", Target::AlertAck, &[], "Say that somebody has taken it: repeats are not told."),
    act(
        "/v1/alerts/mute",
        Target::AlertMute,
        &[],
        "Have nothing told for a time; then the newest of each unit.",
    ),
    act(
        "/v1/drills",
        Target::Drill,
        &[],
        "A step of a drill: begin it, have a fault done or undone, tell how far it is, end it.",
    )
    .unix_only(),
    act("/v1/config/plan", Target::ConfigPlan, &[], "What a reread of the files would do, unit by unit."),
    act("/v1/config/apply", Target::ConfigApply, WAIT, "Reread the files and do what the plan says."),
    act(
        "/v1/upgrade",
        Target::BeginUpgrade,
        &[],
        "Swap the daemon for the binary on disk; services are not touched. Answers when the swap begins.",
    )
    .unix_only(),
    act(
        "/api/recovery/state_resync",
        Target::RecoveryResync,
        WAIT,
        "Restore the state of one unit, or of every unit that has a resync; answers with each outcome.",
    ),
    act(
        "/api/recovery/restart",
        Target::RecoveryRestart,
        WAIT,
        "Restart one unit, or every unit that is not active.",
    ),
];

/// What a path leads to.
#[derive(Debug)]
pub enum Found<'p> {
    /// The row, and the segment that stood for `{name}` (still percent-encoded).
    Row(&'static Route, Option<&'p str>),
    /// The path is known, the method is not; these are.
    OtherMethods(Vec<&'static Method>),
    Nothing,
}

/// Looks a request up.
pub fn find<'p>(method: &Method, path: &'p str) -> Found<'p> {
    let mut others = Vec::new();
    for route in ROUTES {
        let Some(name) = matches(route.pattern, path) else { continue };
        if route.method == *method {
            return Found::Row(route, name);
        }
        others.push(&route.method);
    }
    if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
}

/// `Some(the {name} segment, if the pattern has one)` when the path fits, segment by segment.
fn matches<'p>(pattern: &str, path: &'p str) -> Option<Option<&'p str>> {
    let mut name = None;
    let mut wanted = pattern.split('/');
    let mut given = path.split('/');
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(name),
            (Some("{name}"), Some(segment)) if !segment.is_empty() => name = Some(segment),
            (Some(want), Some(have)) if want == have => {}
            (Some(_) | None, Some(_) | None) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_gets_and_acts_are_posts() {
        for route in ROUTES {
            let want = if route.method == Method::GET { Need::View } else { Need::Act };
            assert_eq!(route.need, want, "{}", route.pattern);
        }
    }

    #[test]
    fn every_row_finds_itself_and_no_other() {
        for route in ROUTES {
            let path = route.pattern.replace("{name}", "web");
            match find(&route.method, &path) {
                Found::Row(row, name) => {
                    assert_eq!(row.target, route.target);
                    assert_eq!(name.is_some(), route.pattern.contains("{name}"));
                }
                Found::OtherMethods(_) | Found::Nothing => panic!("{path}"),
            }
        }
        for path in ["", "/v1", "/v1/units/", "/v1/units//logs", "/v1/units/a/b", "//livez", "/livez/"] {
            assert!(matches!(find(&Method::GET, path), Found::Nothing), "{path}");
        }
    }
}
