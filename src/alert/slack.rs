//! `kind = "slack"`: an incoming webhook, Block Kit.
//!
//! Refuses: mentions. `&`, `<` and `>` are written as entities, so that no text of a service can
//! call a channel (api.slack.com, "Escaping text"), and a log cannot leave its block.

use serde_json::{Value, json};

use crate::alert::story::{Story, cut};

/// Of Slack: a header's text, a section's text, a field's.
const HEADER_CHARS: usize = 150;
const TEXT_CHARS: usize = 3_000;
const FIELD_CHARS: usize = 2_000;

/// Of Slack's ten fields a section.
const FIELDS: usize = 10;

pub fn body(story: &Story) -> Value {
    let fields = story.fields().into_iter().take(FIELDS).map(|(name, value)| {
        json!({"type": "mrkdwn", "text": format!("*{name}*\n{}", harmless(&value, FIELD_CHARS - 50))})
    });
    let text = harmless(&story.text(), TEXT_CHARS);
    let mut blocks = vec![
        json!({"type": "header", "text": {"type": "plain_text", "text": cut(&story.title(), HEADER_CHARS)}}),
        json!({"type": "section", "text": {"type": "mrkdwn", "text": text}}),
        json!({"type": "section", "fields": fields.collect::<Vec<_>>()}),
    ];
    if let Some(log) = story.log(2_000).filter(|_| story.others.is_empty()) {
        let log = harmless(&log, TEXT_CHARS - 10).replace("```", "'''");
        blocks
            .push(json!({"type": "section", "text": {"type": "mrkdwn", "text": format!("```\n{log}\n```")}}));
    }
    let summary = harmless(&format!("{}: {}", story.title(), story.text()), TEXT_CHARS);
    json!({"text": summary, "blocks": blocks})
}

/// Escaped, and then in at most `chars`: an entity counts as the characters that it is written with,
/// and is never cut in two.
fn harmless(text: &str, chars: usize) -> String {
    let mut out = String::new();
    let mut room = chars.saturating_sub(1);
    for c in text.chars() {
        let written = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            _ => "",
        };
        let needs = written.len().max(1);
        if needs > room {
            out.push('…');
            return out;
        }
        room -= needs;
        if written.is_empty() { out.push(c) } else { out.push_str(written) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::golden_tests as golden;
    use crate::alert::story::tests::{folded, hostile, story};

    #[test]
    fn a_message_and_a_hostile_one() {
        golden::check("slack", &body(&story()));
        let text = body(&hostile()).to_string();
        assert!(!text.contains("<!channel>") && !text.contains("<@U1>") && text.contains("&lt;!channel&gt;"));
        for block in body(&hostile())["blocks"].as_array().expect("blocks") {
            let len = block["text"]["text"].as_str().map_or(0, |text| text.chars().count());
            assert!(len <= if block["type"] == "header" { HEADER_CHARS } else { TEXT_CHARS }, "{len}");
            assert!(block["text"]["text"].as_str().is_none_or(|text| text.matches("```").count() % 2 == 0
                || block["text"]["text"] == body(&hostile())["blocks"][1]["text"]["text"]));
        }
        let many = body(&folded(16)).to_string();
        assert!((4..20).all(|id| many.contains(&format!("web/1/failing/{id}"))), "every id is told");
    }
}
