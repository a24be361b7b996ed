//! `kind = "alertmanager"`: Prometheus Alertmanager, API v2. A trouble and its end have the same
//! labels, so that one resolves the other.
//!
//! Refuses: letting a trouble end by itself. Alertmanager takes what is not told again for over; so
//! an alert is told to last for `LASTS_S`, and the recovery ends it.

use serde_json::{Value, json};

use crate::alert::request::Request;
use crate::alert::story::{Story, cut, is_over};
use crate::base::hidden::Hidden;
use crate::engine::effect::AlertKind;
use crate::engine::outbox::{runbook, severity};
use crate::sys::clock::rfc3339;

/// How long a trouble lasts that nobody says is over: a month.
const LASTS_S: i64 = 30 * 86_400;

/// The same of what has no end to tell of: the engine was restarted.
const EVENT_LASTS_S: i64 = 3_600;

const ANNOTATION_CHARS: usize = 4_000;

/// The kinds that are over with this one; none: this one is a trouble itself.
fn ended_by(kind: AlertKind) -> &'static [AlertKind] {
    match kind {
        AlertKind::Recovered => {
            &[AlertKind::Failing, AlertKind::GaveUp, AlertKind::Stuck, AlertKind::ResyncFailed]
        }
        AlertKind::ConfigMended => &[AlertKind::ConfigError],
        AlertKind::Failing
        | AlertKind::GaveUp
        | AlertKind::Stuck
        | AlertKind::ResyncFailed
        | AlertKind::EngineRestarted
        | AlertKind::Quarantined
        | AlertKind::SafeMode
        | AlertKind::ConfigError
        | AlertKind::Test => &[],
    }
}

/// `UprightResyncFailed`
fn alertname(kind: AlertKind) -> String {
    let words = kind.as_str().split('-').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        format!("{}{rest}", first.to_ascii_uppercase())
    });
    format!("Upright{}", words.collect::<String>())
}

pub fn body(story: &Story) -> Value {
    let kind = story.row.alert.kind;
    if is_over(kind) {
        let ended = ended_by(kind).iter().map(|kind| alert(story, *kind, None, story.row.ts_us));
        return ended.collect();
    }
    let lasts_s = match kind {
        AlertKind::EngineRestarted | AlertKind::SafeMode | AlertKind::Test => EVENT_LASTS_S,
        AlertKind::Failing
        | AlertKind::GaveUp
        | AlertKind::Stuck
        | AlertKind::ResyncFailed
        | AlertKind::Quarantined
        | AlertKind::ConfigError
        | AlertKind::Recovered
        | AlertKind::ConfigMended => LASTS_S,
    };
    // From now on, not from when it happened: one that comes late must not be over already.
    let until_us = story.facts.now_us.max(story.row.ts_us) + lasts_s * 1_000_000;
    json!([alert(story, kind, Some(story.row.ts_us), until_us)])
}

fn alert(story: &Story, kind: AlertKind, from_us: Option<i64>, until_us: i64) -> Value {
    let mut labels = json!({
        "alertname": alertname(kind),
        "host": story.facts.host,
        "severity": severity(kind),
        "job": "upright",
    });
    if let Some(unit) = &story.row.alert.unit {
        labels["unit"] = unit.as_str().into();
    }
    let mut alert = json!({
        "labels": labels,
        "annotations": {
            "summary": cut(&story.title(), 200),
            "description": cut(&story.plain(16_000), ANNOTATION_CHARS),
            "id": story.id(),
            "runbook": runbook(kind),
        },
        "endsAt": rfc3339(until_us),
    });
    if let Some(from_us) = from_us {
        alert["startsAt"] = rfc3339(from_us).into();
    }
    if let Some(dashboard) = &story.facts.dashboard {
        alert["generatorURL"] = dashboard.as_str().into();
    }
    alert
}

pub fn request(story: &Story, url: &Hidden, token: Option<&Hidden>) -> Request {
    let url = Hidden::new(format!("{}/api/v2/alerts", url.expose().trim_end_matches('/')));
    Request::post(url, &body(story)).bearing(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::golden_tests as golden;
    use crate::alert::story::tests::{over, story};

    #[test]
    fn what_ends_has_the_labels_of_what_began() {
        let (began, ended) = (body(&story()), body(&over()));
        golden::check("alertmanager", &json!({"firing": began, "resolved": ended}));
        assert!(ended.as_array().expect("alerts").iter().any(|alert| alert["labels"] == began[0]["labels"]));
    }

    #[test]
    fn the_path_of_the_api_is_added_once() {
        let request = request(&story(), &Hidden::new("http://am:9093/prefix/"), None);
        assert_eq!(request.url.expose(), "http://am:9093/prefix/api/v2/alerts");
    }
}
