//! `kind = "discord"`: a channel's webhook, an embed.
//!
//! Refuses: mentions: `allowed_mentions` allows none, whatever the text says.

use serde_json::{Value, json};

use crate::alert::story::{Story, cut, is_over};
use crate::sys::clock::rfc3339;

/// Of Discord: title, description and field of an embed; 6,000 for the whole of it.
const TITLE_CHARS: usize = 256;
const TEXT_CHARS: usize = 2_000;
const LOG_CHARS: usize = 1_500;
const FIELD_CHARS: usize = 200;

pub fn body(story: &Story) -> Value {
    let colour = match story.severity() {
        "critical" => 0x00d3_2f2f,
        "warning" => 0x00f9_a825,
        _ if is_over(story.row.alert.kind) => 0x0038_8e3c,
        _ => 0x0075_7575,
    };
    let mut text = cut(&story.text().replace("```", "'''"), TEXT_CHARS);
    if let Some(log) = story.log(LOG_CHARS).filter(|_| story.others.is_empty()) {
        text = format!("{text}\n```\n{}\n```", log.replace("```", "'''"));
    }
    let fields = story
        .fields()
        .into_iter()
        .map(|(name, value)| json!({"name": name, "value": cut(&value, FIELD_CHARS), "inline": true}));
    json!({
        "allowed_mentions": {"parse": []},
        "embeds": [{
            "title": cut(&story.title(), TITLE_CHARS),
            "description": text,
            "color": colour,
            "timestamp": rfc3339(story.row.ts_us),
            "fields": fields.collect::<Vec<_>>(),
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::golden_tests as golden;
    use crate::alert::story::tests::{hostile, story};

    #[test]
    fn nobody_is_mentioned_and_the_limits_hold() {
        golden::check("discord", &body(&story()));
        let body = body(&hostile());
        assert_eq!(body["allowed_mentions"], json!({"parse": []}));
        let embed = &body["embeds"][0];
        let text = embed["description"].as_str().expect("a text");
        assert!(text.chars().count() <= 4_096 && text.matches("```").count() == 2, "{text}");
        let of = |value: &Value| value.as_str().map_or(0, |text| text.chars().count());
        let fields = embed["fields"].as_array().expect("fields");
        let sum: usize = fields.iter().map(|field| of(&field["name"]) + of(&field["value"])).sum();
        assert!(sum + of(&embed["title"]) + of(&embed["description"]) <= 6_000);
    }
}
