//! One HTTP request, as a channel makes it.
//!
//! Refuses: sending, and header values that are no visible ASCII: what was written by others
//! cannot end a header.

use serde_json::Value;

use crate::base::hidden::Hidden;

/// Longest value of a header that comes from an alert, in bytes.
const HEADER_BYTES_MAX: usize = 512;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: &'static str,
    pub url: Hidden,
    pub headers: Vec<(&'static str, String)>,
    pub secret_headers: Vec<(&'static str, Hidden)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn post(url: Hidden, body: &Value) -> Request {
        let headers = vec![("content-type", "application/json".to_string())];
        let body = body.to_string().into_bytes();
        Request { method: "POST", url, headers, secret_headers: Vec::new(), body }
    }

    pub fn get(url: Hidden) -> Request {
        Request { method: "GET", url, headers: Vec::new(), secret_headers: Vec::new(), body: Vec::new() }
    }

    /// What is no visible ASCII becomes `?`.
    pub fn with(mut self, name: &'static str, value: &str) -> Request {
        let visible = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        let value: String = value.chars().map(visible).take(HEADER_BYTES_MAX).collect();
        self.headers.push((name, value));
        self
    }

    /// `Authorization: Bearer …`, where there is a token.
    pub fn bearing(mut self, token: Option<&Hidden>) -> Request {
        if let Some(token) = token {
            let value = Hidden::new(format!("Bearer {}", token.expose()));
            self.secret_headers.push(("authorization", value));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::story::tests::HOSTILE;

    #[test]
    fn a_header_cannot_be_left_and_secrets_are_not_shown() {
        let request = Request::get(Hidden::new("https://h/canary")).with("x-a", &HOSTILE.repeat(20));
        let value = &request.headers[0].1;
        assert!(
            value.len() <= HEADER_BYTES_MAX && value.bytes().all(|b| (0x20..0x7f).contains(&b)),
            "{value}"
        );
        let request = request.bearing(Some(&Hidden::new("canary")));
        assert!(!format!("{request:?}").contains("canary"));
    }
}
