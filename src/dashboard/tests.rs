//! The page as text: what anybody says is text in it, what it shows is what it was given, and it ends.
//!
//! Refuses: a browser. `tests/dashboard.rs` has one.

use std::collections::BTreeMap;

use serde_json::json;

use crate::api::summary::Summary;
use crate::api::types::{
    AlertDelivery, AlertLine, AlertList, ConfigError, ConfigHealth, DaemonInfo, EventLine, MuteLine,
    SystemHealth, Trouble, Unit, UnitList,
};
use crate::dashboard::outages::{End, outages};
use crate::dashboard::{PageData, SCRIPT, SECTIONS, STYLE, head, page, states};
use crate::ledger::marks;
use crate::ledger::summary::{Figures, Split};

const EVIL: &str =
    "</title></pre><script>alert(1)</script><img src=x onerror=alert(2)>\" onload='x' &\u{202e}";

fn unit(name: &str, state: &str) -> Unit {
    Unit {
        name: name.into(),
        description: "what it is".into(),
        state: state.into(),
        reason: "a reason".into(),
        since: "2026-11-21T19:59:50.000000Z".into(),
        pid: Some(77),
        run: Some(1),
        restarts: 3,
        failures: 2,
        health: "healthy".into(),
        next_retry_at: None,
        waiting_for: vec![],
        requires: vec![],
        wants: vec![],
        after: vec![],
        wanted: true,
    }
}

fn event(id: u64, second: u32, name: &str, unit: Option<&str>, data: serde_json::Value) -> EventLine {
    EventLine {
        id,
        ts: format!("2026-11-21T20:{:02}:{:02}.000000Z", second / 60, second % 60),
        level: "INFO".into(),
        event: name.into(),
        unit: unit.map(str::to_string),
        run: None,
        cause: Some("was killed (SIGKILL)".into()),
        message: format!("{name} happened"),
        at_ns: 0,
        data: data.as_object().cloned().unwrap_or_default(),
    }
}

fn data(status: &str, units: Vec<Unit>) -> PageData {
    let mut counts = BTreeMap::new();
    for unit in &units {
        *counts.entry(unit.state.clone()).or_insert(0) += 1;
    }
    let all = Figures { failures: 4, manual_interventions: 1, ..Figures::default() };
    let kpis = marks::verdicts(&all);
    PageData {
        now: "2026-11-21T20:30:00.000000Z".into(),
        list: UnitList {
            schema_version: 1,
            daemon: DaemonInfo {
                version: "0.1.0".into(),
                mode: "normal".into(),
                keeper_pid: 10,
                engine_pid: 11,
                started_at: "2026-11-20T20:00:00Z".into(),
                containment: "cgroup".into(),
                troubles: vec![],
                mutes: vec![],
            },
            units,
        },
        health: SystemHealth {
            status: status.into(),
            units: counts,
            config: ConfigHealth::default(),
            fatal_stops: 0,
            uptime_s: 90_061.5,
            troubles: vec![],
        },
        summary: Some(Summary {
            window_s: 86_400.0,
            from: "2026-11-20T20:30:00Z".into(),
            until: "2026-11-21T20:30:00Z".into(),
            last_event_id: 9,
            split: Split { all, ..Split::default() },
            kpis,
        }),
        events: Some(vec![]),
        alerts: Some(AlertList { alerts: vec![], mutes: vec![] }),
        drills: Some(vec![]),
        hides_logs: false,
        tails: BTreeMap::new(),
    }
}

#[test]
fn whatever_anybody_says_is_text() {
    let evil = || EVIL.to_string();
    let mut web = unit("web", "backoff");
    (web.description, web.reason, web.waiting_for) = (evil(), evil(), vec![evil()]);
    let mut data = data("red", vec![web]);
    data.health.config.errors.push(ConfigError {
        file: evil(),
        line: Some(7),
        column: Some(10),
        code: evil(),
        message: evil(),
        help: Some(evil()),
    });
    data.health.troubles.push(Trouble { code: evil(), message: evil(), help: evil() });
    data.list.daemon.mutes.push(MuteLine { unit: Some(evil()), until: evil() });
    let mut happened =
        event(1, 1, "unit.failed", Some("web"), json!({ "detect_us": 1, "drill": EVIL, "state": EVIL }));
    (happened.message, happened.cause, happened.level, happened.event) =
        (evil(), Some(evil()), evil(), "unit.failed".into());
    data.events = Some(vec![happened, event(2, 2, EVIL, Some(EVIL), json!({}))]);
    let channel =
        AlertDelivery { channel: evil(), state: evil(), attempts: 2, at: Some(evil()), error: Some(evil()) };
    data.alerts = Some(AlertList {
        alerts: vec![AlertLine {
            id: evil(),
            ts: evil(),
            unit: Some(evil()),
            kind: evil(),
            severity: evil(),
            message: evil(),
            failures: 4,
            episode: 1,
            affected: vec![evil()],
            acknowledged: false,
            channels: vec![channel],
        }],
        mutes: vec![],
    });
    data.tails.insert("web".into(), vec![evil()]);
    let text = page(&data);
    assert_eq!(text.matches("<script").count(), 1, "the page's own script only");
    assert_eq!(text.matches("</title>").count(), 1);
    for bad in ["<img", "\" onload", "onload='", "\u{202e}"] {
        assert!(!text.contains(bad), "{bad}");
    }
    assert!(text.matches("&lt;script&gt;alert(1)").count() > 15, "all of it is shown");
}

#[test]
fn the_status_is_a_word_with_its_reason() {
    let table = [
        (
            "green",
            vec![unit("web", "active"), unit("db", "active")],
            "GREEN: 2 units are active, nothing is wrong",
        ),
        (
            "yellow",
            vec![unit("web", "degraded"), unit("db", "backoff")],
            "YELLOW: db is backoff, web is degraded",
        ),
        (
            "red",
            vec![unit("a", "failed"), unit("b", "failed"), unit("c", "failed")],
            "RED: a and 2 more are failed",
        ),
        ("green", vec![], "GREEN: nothing is wrong, and no unit runs"),
    ];
    for (status, units, title) in table {
        let text = page(&data(status, units));
        assert!(text.contains(&format!("<title>{title} · Upright</title>")), "{title}\n{text}");
        assert!(text.contains(&format!("data-status=\"{status}\"")));
    }
    let mut broken = data("red", vec![unit("web", "active")]);
    let error = ConfigError {
        file: "units/web.toml".into(),
        line: Some(7),
        column: Some(10),
        code: "unit.unknown-dependency".into(),
        message: "`after` names `databse`".into(),
        help: Some("did you mean `database`?".into()),
    };
    broken.health.config.errors.push(error);
    let text = page(&broken);
    for part in [
        "RED: 1 mistake in the configuration",
        "role=\"alert\"",
        "units/web.toml:7:10",
        "`after` names `databse`",
        "help: did you mean `database`?",
        "unit.unknown-dependency",
    ] {
        assert!(text.contains(part), "{part}");
    }
    let trouble =
        Trouble { code: "store.full".into(), message: "the disk is full".into(), help: "free some".into() };
    broken.health.troubles = vec![trouble];
    assert_eq!(
        head::why(&broken.health, &broken.list.units, "safe"),
        "1 mistake in the configuration, the engine is in safe mode, the disk is full"
    );
}

#[test]
fn verdicts_stand_there_as_words_and_values_as_the_api_has_them() {
    let text = page(&data("green", vec![]));
    assert!(text.contains("<li class=\"pass\" data-kpi=\"fatal-stops\" data-value=\"0\">"), "{text}");
    assert!(text.contains("<li class=\"fail\" data-kpi=\"manual-interventions\" data-value=\"1\">"));
    assert!(text.contains("<li class=\"none\" data-kpi=\"resync-rate\">"));
    for word in ["✔ PASS", "✖ FAIL", "no data", "mark: ≥ 95 %"] {
        assert!(text.contains(word), "{word}");
    }
    let mut blind = data("green", vec![unit("web", "active")]);
    (blind.summary, blind.events, blind.alerts) = (None, None, None);
    let text = page(&blind);
    assert_eq!(text.matches("The store did not answer in time").count(), 4, "{text}");
    assert!(text.contains("data-unit=\"web\""), "what needs no store is there");
}

#[test]
fn every_section_is_there_once_and_the_page_ends() {
    let mut units: Vec<Unit> = (0..10_000).map(|n| unit(&format!("unit-{n}"), "active")).collect();
    units[9_999].state = "failed".into();
    let mut data = data("red", units);
    let flapping = |n: u64| {
        let state = if n.is_multiple_of(2) { "active" } else { "backoff" };
        event(
            n,
            u32::try_from(n / 5).unwrap_or(0),
            "unit.state",
            Some("unit-9999"),
            json!({ "state": state }),
        )
    };
    data.events = Some((1..4_000).map(flapping).collect());
    let text = page(&data);
    for id in SECTIONS.split(' ') {
        assert_eq!(text.matches(&format!("id=\"{id}\"")).count(), 1, "{id}");
    }
    let first = text.find("data-unit=\"unit-9999\"").expect("the worst is there");
    assert!(first < text.find("data-unit=\"unit-0\"").expect("and before the others"));
    assert!(text.contains("And 9700 more"));
    assert!(text.len() < 600_000, "{} bytes", text.len());
}

#[test]
fn outages_are_those_of_the_ledger() {
    let events = [
        event(
            1,
            10,
            "unit.failed",
            Some("web"),
            json!({ "detect_us": 5, "failures": 1, "state": "backoff" }),
        ),
        event(
            2,
            12,
            "unit.failed",
            Some("web"),
            json!({ "detect_us": 5, "failures": 2, "state": "backoff" }),
        ),
        event(3, 15, "unit.recovered", Some("web"), json!({ "down_ms": 5_000, "state": "active" })),
        event(4, 20, "unit.failed", Some("db"), json!({ "detect_us": 5, "drill": "d7", "state": "backoff" })),
        event(5, 21, "unit.stopped", Some("db"), json!({ "state": "inactive" })),
        event(6, 30, "unit.failed", Some("web"), json!({ "detect_us": 5, "state": "backoff" })),
        event(7, 31, "unit.failed", Some("old"), json!({})),
        event(8, 40, "unit.recovered", Some("early"), json!({ "down_ms": 60_000, "state": "active" })),
    ];
    let found = outages(&events);
    let told: Vec<_> =
        found.iter().map(|o| (o.unit.as_str(), o.end.map(|(_, end)| end), o.failures)).collect();
    let expected = [
        ("early", Some(End::Recovered), 1),
        ("web", Some(End::Recovered), 2),
        ("db", Some(End::Dropped), 1),
        ("web", None, 1),
    ];
    assert_eq!(told, expected);
    assert_eq!(found[2].drill.as_deref(), Some("d7"));
    let mut data = data("yellow", vec![unit("web", "backoff")]);
    data.events = Some(events.to_vec());
    let text = page(&data);
    for part in
        ["<rect class=\"drill\"", "<rect class=\"open\"", "<rect class=\"real\"", "drill d7", "✖ not yet"]
    {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn a_strip_ends_in_the_state_of_now_and_is_empty_where_nothing_is_known() {
    let events = [
        event(1, 60, "unit.active", Some("web"), json!({ "state": "active" })),
        event(2, 120, "unit.failed", Some("web"), json!({ "state": "backoff" })),
    ];
    let changes = states::changes(&events);
    let us = |minute: i64| crate::dashboard::time::micros("2026-11-21T20:00:00Z") + minute * 60_000_000;
    let mut now = unit("web", "active");
    now.since = "2026-11-21T20:05:00Z".into();
    let found = states::stretches(changes.get("web"), &now, us(0), us(10));
    let told: Vec<_> = found.iter().map(|s| (s.from_us - us(0), s.until_us - us(0), s.state)).collect();
    let minute = 60_000_000;
    assert_eq!(
        told,
        [
            (minute, 2 * minute, "active"),
            (2 * minute, 5 * minute, "backoff"),
            (5 * minute, 10 * minute, "active")
        ]
    );
    let quiet = unit("quiet", "active");
    let found = states::stretches(None, &quiet, us(0), us(10));
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].from_us, found[0].until_us), (us(0), us(10)));
}

#[test]
fn no_other_host_is_named_and_nothing_is_inline() {
    for (name, text) in [("script", SCRIPT), ("style", STYLE)] {
        for bad in [
            "http:",
            "https:",
            "@import",
            "url(//",
            "eval(",
            "innerHTML",
            "localStorage",
            "sessionStorage",
            "cookie",
        ] {
            assert!(!text.contains(bad), "{name}: {bad}");
        }
    }
    let text = page(&data("green", vec![unit("web", "active")]));
    for bad in ["<style", " style=", " onclick=", "javascript:", "https:"] {
        assert!(!text.contains(bad), "{bad}");
    }
}
