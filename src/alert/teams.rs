//! `kind = "teams"`: a Workflows webhook of Microsoft Teams, an adaptive card.
//!
//! Refuses: Markdown where others wrote the text: it stands in text runs, which know none.

use serde_json::{Value, json};

use crate::alert::story::{Story, cut};

/// A message has at most 28 KB.
const TEXT_CHARS: usize = 4_000;
const LOG_CHARS: usize = 4_000;
const FACT_CHARS: usize = 200;

pub fn body(story: &Story) -> Value {
    let run = |text: String, mono: bool| {
        let font = if mono { "Monospace" } else { "Default" };
        let run = json!({"type": "TextRun", "text": text, "fontType": font});
        json!({"type": "RichTextBlock", "inlines": [run]})
    };
    let title = json!({
        "type": "TextBlock", "size": "Large", "weight": "Bolder", "wrap": true, "text": story.title(),
    });
    let mut card = vec![title, run(cut(&story.text(), TEXT_CHARS), false)];
    // A fact's value knows Markdown: what others wrote (the cause) stands in a run of its own.
    let (others, own): (Vec<_>, Vec<_>) = story.fields().into_iter().partition(|(name, _)| *name == "Cause");
    let facts = own.into_iter().map(|(name, value)| json!({"title": name, "value": cut(&value, FACT_CHARS)}));
    card.push(json!({"type": "FactSet", "facts": facts.collect::<Vec<_>>()}));
    card.extend(
        others.into_iter().map(|(name, value)| run(format!("{name}: {}", cut(&value, FACT_CHARS)), false)),
    );
    if let Some(log) = story.log(LOG_CHARS).filter(|_| story.others.is_empty()) {
        card.push(run(log, true));
    }
    let open = |url: &String| json!({"type": "Action.OpenUrl", "title": "Dashboard", "url": url});
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": card,
                "actions": story.facts.dashboard.iter().map(open).collect::<Vec<_>>(),
            },
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::golden_tests as golden;
    use crate::alert::story::tests::{folded, hostile, story};

    #[test]
    fn a_card_within_its_limit_and_without_markdown_of_others() {
        golden::check("teams", &body(&story()));
        assert!(body(&hostile()).to_string().len() <= 28 * 1_024);
        assert!(body(&folded(100)).to_string().len() <= 28 * 1_024);
        let card = body(&hostile())["attachments"][0]["content"]["body"].clone();
        let blocks = card.as_array().expect("blocks").iter();
        let marked = blocks.filter(|block| block["type"] != "RichTextBlock");
        assert!(
            marked.clone().count() == 2
                && marked.into_iter().all(|block| !block.to_string().contains("evil"))
        );
    }
}
