//! An alert as one line of JSON: what a file channel appends.
//!
//! Refuses: anything that is not in the alert's row. The same alert is the same line, byte for
//! byte, however often it is sent: so a line that stands there already can be told.

use serde_json::Value;

use crate::base::name::UnitName;
use crate::engine::outbox::{Row, runbook, severity};
use crate::sys::clock::rfc3339;

/// The line, without its newline.
pub fn line(row: &Row) -> String {
    let alert = &row.alert;
    let affected: Value = alert.affected.iter().map(UnitName::as_str).collect();
    let keys: [(&str, Value); 10] = [
        ("id", alert.key.clone().into()),
        ("ts", rfc3339(row.ts_us).into()),
        ("unit", alert.unit.as_ref().map(UnitName::as_str).into()),
        ("kind", alert.kind.as_str().into()),
        ("severity", severity(alert.kind).into()),
        ("message", alert.message.clone().into()),
        ("failures", alert.failures.into()),
        ("episode", alert.episode.into()),
        ("affected", affected),
        ("runbook", runbook(alert.kind).into()),
    ];
    let pairs: Vec<String> =
        keys.iter().map(|(key, value)| format!("{}:{value}", Value::from(*key))).collect();
    format!("{{{}}}", pairs.join(","))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::effect::{Alert, AlertKind};

    pub fn row(id: u64) -> Row {
        let unit = UnitName::parse("web").ok();
        let alert = Alert {
            key: format!("web/1/failing/{id}"),
            unit,
            kind: AlertKind::Failing,
            message: "web failed 4 times in a row: \"exited\"\n(code 1)".into(),
            failures: 4,
            episode: 1,
            affected: vec![UnitName::parse("shop").expect("a name")],
            channels: None,
        };
        Row { id, ts_us: 1_700_000_000_123_456, alert }
    }

    #[test]
    fn a_line_is_one_line_with_the_keys_in_order() {
        let text = line(&row(4));
        assert_eq!(
            text,
            "{\"id\":\"web/1/failing/4\",\"ts\":\"2023-11-14T22:13:20.123456Z\",\"unit\":\"web\",\
             \"kind\":\"failing\",\"severity\":\"critical\",\
             \"message\":\"web failed 4 times in a row: \\\"exited\\\"\\n(code 1)\",\"failures\":4,\
             \"episode\":1,\"affected\":[\"shop\"],\"runbook\":\"docs/operations/runbook.md#failing\"}"
        );
    }
}
