//! `kind = "pagerduty"`: Events API v2. All troubles of a unit are one incident, which its recovery
//! resolves.
//!
//! Refuses: what has no incident; an event that is over and was never told does nothing there.

use serde_json::{Value, json};

use crate::alert::request::Request;
use crate::alert::story::{Story, cut, is_over};
use crate::base::hidden::Hidden;
use crate::engine::effect::AlertKind;
use crate::sys::clock::rfc3339;

/// Where events go, unless `url` says otherwise (the European one, a proxy).
pub const URL: &str = "https://events.pagerduty.com/v2/enqueue";

/// Of PagerDuty: longest `summary`, longest `dedup_key`.
const SUMMARY_CHARS: usize = 1_024;
const DEDUP_KEY_CHARS: usize = 255;

/// The key goes into the body: that is where this API wants it.
pub fn request(story: &Story, url: Option<Hidden>, routing_key: &Hidden) -> Request {
    let mut body = body(story);
    body["routing_key"] = routing_key.expose().into();
    Request::post(url.unwrap_or_else(|| Hidden::new(URL)), &body)
}

/// Without the key.
fn body(story: &Story) -> Value {
    let alert = &story.row.alert;
    let about = match alert.kind {
        AlertKind::ConfigError | AlertKind::ConfigMended => "config",
        AlertKind::EngineRestarted | AlertKind::SafeMode => "engine",
        AlertKind::Test => "test",
        AlertKind::Failing
        | AlertKind::GaveUp
        | AlertKind::Stuck
        | AlertKind::ResyncFailed
        | AlertKind::Quarantined
        | AlertKind::Recovered => "unit",
    };
    let dedup_key = cut(&format!("{}/{about}/{}", story.facts.host, story.subject()), DEDUP_KEY_CHARS);
    if is_over(alert.kind) {
        return json!({"event_action": "resolve", "dedup_key": dedup_key});
    }
    let link = story.facts.dashboard.as_ref().map(|href| json!({"href": href, "text": "Dashboard"}));
    json!({
        "event_action": "trigger",
        "dedup_key": dedup_key,
        "payload": {
            "summary": cut(&story.text(), SUMMARY_CHARS),
            "source": story.facts.host,
            "severity": story.severity(),
            "timestamp": rfc3339(story.row.ts_us),
            "component": story.subject(),
            "class": alert.kind.as_str(),
            "custom_details": story.json(),
        },
        "links": link.into_iter().collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::golden_tests as golden;
    use crate::alert::story::tests::{hostile, over, story};

    #[test]
    fn a_trigger_and_its_resolve_are_one_incident() {
        let (began, ended) = (body(&story()), body(&over()));
        golden::check("pagerduty", &json!({"trigger": began, "resolve": ended}));
        assert_eq!(began["dedup_key"], ended["dedup_key"]);
        let summary = body(&hostile())["payload"]["summary"].as_str().expect("a text").to_string();
        assert_eq!((summary.chars().count(), summary.contains('\n')), (SUMMARY_CHARS, false));
        let key = Hidden::new("canary");
        assert!(!format!("{:?}", request(&story(), None, &key).url).contains("canary"));
    }
}
