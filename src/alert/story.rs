//! What a message is made of: the alert's row, and what was found out about it when it was sent.
//!
//! Refuses: finding anything out (`gather`), and the forms of any one receiver.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::base::name::UnitName;
use crate::engine::effect::AlertKind;
use crate::engine::outbox::{RUNBOOK, Row, runbook, severity};
use crate::sys::clock::rfc3339;

/// Longest line of a log in a message, in characters.
pub const LOG_LINE_CHARS_MAX: usize = 400;

/// Longest text of one alert in a message that tells of many, in characters.
const MANY_MESSAGE_CHARS: usize = 200;

/// One message: of one alert, or of several that waited together.
#[derive(Clone, Debug)]
pub struct Story {
    pub row: Arc<Row>,
    /// Others that this message tells too, oldest first.
    pub others: Vec<Arc<Row>>,
    pub facts: Facts,
}

/// What is known beside the row. Everything may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// This machine's name.
    pub host: String,
    /// Wall time of sending, microseconds since 1970.
    pub now_us: i64,
    /// How its last run ended: "exited (code 3)".
    pub cause: Option<String>,
    pub exit_code: Option<i64>,
    pub signal: Option<String>,
    /// RFC 3339.
    pub next_retry_at: Option<String>,
    /// The last lines that the unit wrote, oldest first.
    pub log_tail: Vec<String>,
    /// Where a person can look.
    pub dashboard: Option<String>,
}

impl Story {
    pub fn id(&self) -> &str {
        &self.row.alert.key
    }

    /// The unit, or `upright` for the daemon itself.
    pub fn subject(&self) -> &str {
        self.row.alert.unit.as_ref().map_or("upright", UnitName::as_str)
    }

    pub fn severity(&self) -> &'static str {
        severity(self.row.alert.kind)
    }

    /// Every alert that this message tells.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        std::iter::once(&self.row).chain(&self.others)
    }

    /// `web: failing (critical)`, or `12 alerts: web failing, and others`.
    pub fn title(&self) -> String {
        let kind = self.row.alert.kind.as_str();
        match self.others.len() {
            0 => format!("{}: {kind} ({})", self.subject(), self.severity()),
            others => format!("{} alerts: {} {kind}, and others", others + 1, self.subject()),
        }
    }

    /// What happened: of one alert its message; of many their ids, and then a line each.
    pub fn text(&self) -> String {
        if self.others.is_empty() {
            return printable(&self.row.alert.message);
        }
        // The ids first: whatever a receiver cuts off, they are told.
        let ids = self.rows().map(|row| row.alert.key.clone());
        let told = self.rows().map(|row| {
            let message = cut(&printable(&row.alert.message), MANY_MESSAGE_CHARS);
            format!("{} {message}", rfc3339(row.ts_us))
        });
        ids.chain(told).collect::<Vec<_>>().join("\n")
    }

    /// Name and value of what is worth a line of its own.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let (alert, facts) = (&self.row.alert, &self.facts);
        let affected: Vec<&str> = alert.affected.iter().map(UnitName::as_str).collect();
        let mut fields = vec![("Host", facts.host.clone()), ("Time", rfc3339(self.row.ts_us))];
        let mut field = |name, value: Option<String>| fields.extend(value.map(|value| (name, value)));
        if self.others.is_empty() {
            field("Cause", facts.cause.as_deref().map(printable));
            field("Failures", (alert.failures > 0).then(|| alert.failures.to_string()));
            field("Next retry", facts.next_retry_at.clone());
            field("Affected", (!affected.is_empty()).then(|| affected.join(", ")));
            field("Id", Some(alert.key.clone()));
        }
        field("Runbook", Some(self.runbook()));
        field("Dashboard", facts.dashboard.clone());
        fields
    }

    /// What to do: a heading of the runbook; of many alerts the page, which has one for each of them.
    pub fn runbook(&self) -> String {
        if self.others.is_empty() { runbook(self.row.alert.kind) } else { RUNBOOK.to_string() }
    }

    /// The last lines of its log, control characters escaped, in at most `chars`: the newest.
    pub fn log(&self, chars: usize) -> Option<String> {
        let mut lines: Vec<String> = Vec::new();
        let mut room = chars;
        for line in self.facts.log_tail.iter().rev() {
            let line = cut(&printable(line), LOG_LINE_CHARS_MAX);
            let needs = line.chars().count() + 1;
            if needs > room {
                break;
            }
            room -= needs;
            lines.push(line);
        }
        lines.reverse();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// Title, text, fields and log as plain text, in at most `bytes`.
    pub fn plain(&self, bytes: usize) -> String {
        let mut text = format!("{}\n\n", self.text());
        for (name, value) in self.fields() {
            text.push_str(&format!("{name}: {value}\n"));
        }
        if let Some(log) = self.log(8_000) {
            text.push_str(&format!("\nLast lines of its log:\n{log}\n"));
        }
        cut_bytes(&text, bytes)
    }

    /// The alert as one object: what `webhook` and `exec` get.
    pub fn json(&self) -> Value {
        let (row, alert, facts) = (&self.row, &self.row.alert, &self.facts);
        let affected: Vec<&str> = alert.affected.iter().map(UnitName::as_str).collect();
        let lines = facts.log_tail.iter().map(|line| cut(line, LOG_LINE_CHARS_MAX));
        json!({
            "schema_version": 1,
            "id": alert.key,
            "ts": rfc3339(row.ts_us),
            "host": facts.host,
            "unit": alert.unit.as_ref().map(UnitName::as_str),
            "kind": alert.kind.as_str(),
            "severity": self.severity(),
            "status": if is_over(alert.kind) { "resolved" } else { "firing" },
            "message": alert.message,
            "failures": alert.failures,
            "episode": alert.episode,
            "affected": affected,
            "cause": facts.cause,
            "exit_code": facts.exit_code,
            "signal": facts.signal,
            "next_retry_at": facts.next_retry_at,
            "log_tail": lines.collect::<Vec<_>>(),
            "dashboard": facts.dashboard,
            "runbook": runbook(alert.kind),
        })
    }
}

/// The alert says that a trouble is over.
pub fn is_over(kind: AlertKind) -> bool {
    match kind {
        AlertKind::Recovered | AlertKind::ConfigMended => true,
        AlertKind::Failing
        | AlertKind::GaveUp
        | AlertKind::Stuck
        | AlertKind::ResyncFailed
        | AlertKind::EngineRestarted
        | AlertKind::Quarantined
        | AlertKind::SafeMode
        | AlertKind::ConfigError
        | AlertKind::Test => false,
    }
}

/// The same on one line, and nothing in it that a terminal or a mail program would obey: control
/// characters and those that turn the direction of writing are written out.
pub fn printable(text: &str) -> String {
    let turns =
        |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push(' '),
            c if c.is_control() || turns(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// At most `chars` characters, `…` where something is missing.
pub fn cut(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_string();
    }
    text.chars().take(chars.saturating_sub(1)).chain(['…']).collect()
}

/// At most `bytes` bytes, `…` where something is missing.
pub fn cut_bytes(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_string();
    }
    let end = text.floor_char_boundary(bytes.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..end])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::alert::line::tests::row;

    /// Everything that some receiver would obey.
    pub const HOSTILE: &str = "<!channel> <@U1> @everyone & <b> ``` ![x](http://evil/) \r\nBcc: all@evil.example\r\n\r\n\
                               \u{1b}[2J \u{202e} \"}],\"x\":[{ \0 äöü 🔥";

    pub fn story() -> Story {
        let facts = Facts {
            host: "db1".into(),
            now_us: 1_700_000_000_200_000,
            cause: Some("exited (code 1)".into()),
            exit_code: Some(1),
            signal: None,
            next_retry_at: Some("2023-11-14T22:13:35.000000Z".into()),
            log_tail: vec!["listening on 8000".into(), "panic: out of cheese".into()],
            dashboard: Some("http://127.0.0.1:9321/".into()),
        };
        Story { row: Arc::new(row(4)), others: Vec::new(), facts }
    }

    /// One whose message, cause and log are hostile and too long for everybody.
    pub fn hostile() -> Story {
        let mut story = story();
        let mut row = row(4);
        row.alert.message = HOSTILE.repeat(200);
        story.row = Arc::new(row);
        story.facts.cause = Some(HOSTILE.into());
        story.facts.log_tail = vec![HOSTILE.repeat(10); 20];
        story
    }

    /// The same trouble, over.
    pub fn over() -> Story {
        let mut story = story();
        let mut row = row(5);
        row.alert.kind = AlertKind::Recovered;
        row.alert.key = "web/1/recovered/over".into();
        row.alert.message = "web has recovered after 4 failures".into();
        story.row = Arc::new(row);
        story.facts.next_retry_at = None;
        story
    }

    pub fn folded(count: u64) -> Story {
        Story { others: (5..4 + count).map(|id| Arc::new(row(id))).collect(), ..story() }
    }

    #[test]
    fn a_message_of_many_names_every_one() {
        let story = folded(16);
        let text = story.text();
        assert!((4..20).all(|id| text.contains(&format!("web/1/failing/{id}"))), "{text}");
        assert_eq!(story.title(), "16 alerts: web failing, and others");
    }

    #[test]
    fn cuts_are_between_characters_and_bounded() {
        assert_eq!((cut("äöü", 3), cut("äöüß", 3)), ("äöü".into(), "äö…".into()));
        assert_eq!((cut_bytes("äöü", 6), cut_bytes("äöüß", 6)), ("äöü".into(), "ä…".into()));
        for bytes in 3..40 {
            assert!(cut_bytes(HOSTILE, bytes).len() <= bytes);
        }
        assert!(!printable(HOSTILE).chars().any(char::is_control));
        let log = hostile().log(1_000).expect("lines");
        assert!(log.chars().count() <= 1_000 && log.lines().all(|line| line.ends_with('…')), "{log}");
    }
}
