//! `kind = "ntfy"`: a push message. The topic is the last part of the URL; it is sent as JSON to the
//! server's root, so that no text of ours stands in a header.
//!
//! Refuses: Markdown. ntfy shows plain text unless told otherwise.

use serde_json::{Value, json};

use crate::alert::request::Request;
use crate::alert::story::{Story, cut_bytes, is_over};
use crate::base::hidden::Hidden;

/// Of ntfy: a longer message becomes an attachment.
const MESSAGE_BYTES: usize = 4_096;
const TITLE_BYTES: usize = 250;

/// # Errors
/// There is no topic.
pub fn request(story: &Story, url: &Hidden, token: Option<&Hidden>) -> Result<Request, &'static str> {
    let trimmed = url.expose().trim_end_matches('/');
    let Some((root, topic)) = trimmed.rsplit_once('/').filter(|(root, _)| !root.ends_with('/')) else {
        return Err("the URL of ntfy ends in the topic: https://ntfy.example.net/TOPIC");
    };
    Ok(Request::post(Hidden::new(format!("{root}/")), &body(story, topic)).bearing(token))
}

fn body(story: &Story, topic: &str) -> Value {
    let (priority, tag) = match story.severity() {
        "critical" => (5, "rotating_light"),
        "warning" => (4, "warning"),
        _ if is_over(story.row.alert.kind) => (3, "white_check_mark"),
        _ => (3, "information_source"),
    };
    let mut body = json!({
        "topic": topic,
        "title": cut_bytes(&story.title(), TITLE_BYTES),
        "message": cut_bytes(&story.plain(MESSAGE_BYTES), MESSAGE_BYTES),
        "priority": priority,
        "tags": [tag],
    });
    if let Some(dashboard) = &story.facts.dashboard {
        body["click"] = dashboard.as_str().into();
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::golden_tests as golden;
    use crate::alert::story::tests::{hostile, story};

    #[test]
    fn the_topic_is_the_last_part_of_the_url() {
        golden::check("ntfy", &body(&story(), "ops"));
        let sent = request(&story(), &Hidden::new("https://ntfy.example/ops"), None).expect("a request");
        assert_eq!(sent.url.expose(), "https://ntfy.example/");
        assert!(request(&story(), &Hidden::new("https://ntfy.example/"), None).is_err());
        let message = body(&hostile(), "ops")["message"].as_str().expect("a text").to_string();
        assert!(message.len() <= MESSAGE_BYTES, "{}", message.len());
    }
}
