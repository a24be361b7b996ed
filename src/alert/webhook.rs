//! `kind = "webhook"`: the alert as JSON, with an id that tells duplicates and a signature.
//!
//! Refuses: secrets in the body. The signature covers the time and the body, so that neither can be
//! changed, and an old one is not as good as a new one.

use ring::hmac;
use serde_json::Value;

use crate::alert::request::Request;
use crate::alert::story::Story;
use crate::base::hidden::Hidden;

/// `t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY`.
pub const SIGNATURE: &str = "upright-signature";

pub fn body(story: &Story) -> Value {
    story.json()
}

pub fn request(story: &Story, url: Hidden, secret: Option<&Hidden>) -> Request {
    let mut request = Request::post(url, &body(story)).with("idempotency-key", story.id());
    if let Some(secret) = secret {
        let seconds = story.facts.now_us / 1_000_000;
        let signature = signature(secret, seconds, &request.body);
        request = request.with(SIGNATURE, &signature);
    }
    request
}

fn signature(secret: &Hidden, seconds: i64, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(format!("{seconds}.").as_bytes());
    context.update(body);
    let hex: String = context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::golden_tests as golden;
    use crate::alert::story::tests::{HOSTILE, hostile, story};

    #[test]
    fn the_alert_as_json_with_its_id_and_a_signature() {
        golden::check("webhook", &body(&story()));
        let secret = Hidden::new("key");
        let request = request(&story(), Hidden::new("https://h.example/t0ken"), Some(&secret));
        let header =
            |name| request.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        assert_eq!(header("idempotency-key"), Some("web/1/failing/4"));
        assert!(header(SIGNATURE).expect("signed").starts_with("t=1700000000,v1="), "{request:?}");
        assert!(!format!("{request:?}").contains("t0ken"));
        let known = signature(&Hidden::new("Jefe"), 7, b"what do ya want for nothing?");
        // As `printf '7.what do ya want for nothing?' | openssl dgst -sha256 -hmac Jefe` has it.
        assert_eq!(known, "t=7,v1=239f4b39fd23f4376db46b239fae471e7c6824b3931bc60f4c0b745bef8de34f");
    }

    #[test]
    fn hostile_text_comes_out_as_it_went_in() {
        let bytes = request(&hostile(), Hidden::new("https://h.example/"), None).body;
        let back: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(back["message"], HOSTILE.repeat(200));
    }
}
