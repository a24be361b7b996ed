//! A real browser: Debian's Chromium, told what to do over WebDriver (W3C) by its chromedriver.
//!
//! Refuses: a library for it; and asking again without a deadline.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use upright::base::base64;

use super::{eventually, free_port, http};

/// Longest until a driver answers, and until something shows.
pub const PATIENCE: Duration = Duration::from_secs(30);

const CHROMIUM: &str = "/usr/bin/chromium";
const DRIVER: &str = "/usr/bin/chromedriver";

/// What of it this machine does not have.
pub fn lacking() -> Option<&'static str> {
    if !Path::new(CHROMIUM).exists() {
        return Some("chromium");
    }
    (!Path::new(DRIVER).exists()).then_some("chromedriver (chromium-driver)")
}

/// One window. Dropped, it is closed and its driver ended.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub fn open() -> Browser {
        let port = free_port();
        let profile = tempfile::tempdir().expect("a directory");
        let driver = Command::new(DRIVER)
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver runs");
        let mut browser = Browser { driver, port, session: String::new(), _profile: profile };
        eventually("the driver answers", PATIENCE, || http::ask_tcp(port, "GET", "/status", "").ok());
        let args = [
            "--headless=new".to_string(),
            "--no-sandbox".to_string(),
            "--disable-gpu".to_string(),
            "--disable-dev-shm-usage".to_string(),
            "--no-first-run".to_string(),
            "--window-size=1440,900".to_string(),
            format!("--user-data-dir={}", browser._profile.path().display()),
        ];
        let options = json!({ "binary": CHROMIUM, "args": args });
        let always = json!({
            "browserName": "chrome", "unhandledPromptBehavior": "ignore", "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" },
        });
        let opened = browser.post("/session", json!({ "capabilities": { "alwaysMatch": always } }));
        browser.session = opened["sessionId"].as_str().expect("a session").to_string();
        browser
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let (status, answer) = http::ask_tcp(self.port, method, path, &body).expect("the driver answers");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        assert_eq!(status, 200, "{method} {path}: {answer}");
        answer["value"].clone()
    }

    fn post(&self, path: &str, body: Value) -> Value {
        self.ask("POST", path, &body)
    }

    fn own(&self, path: &str, body: Value) -> Value {
        self.post(&format!("/session/{}{path}", self.session), body)
    }

    /// A command of the DevTools protocol.
    pub fn devtools(&self, command: &str, params: Value) -> Value {
        self.own("/goog/cdp/execute", json!({ "cmd": command, "params": params }))
    }

    pub fn go(&self, url: &str) {
        self.own("/url", json!({ "url": url }));
    }

    pub fn title(&self) -> String {
        let title = self.ask("GET", &format!("/session/{}/title", self.session), &Value::Null);
        title.as_str().unwrap_or_default().to_string()
    }

    /// What a script returns.
    pub fn run(&self, script: &str) -> Value {
        self.own("/execute/sync", json!({ "script": script, "args": [] }))
    }

    /// What a script gives to its callback, `arguments[0]`.
    pub fn run_async(&self, script: &str) -> Value {
        self.own("/execute/async", json!({ "script": script, "args": [] }))
    }

    /// Waits until a script returns something else than false or null.
    pub fn until(&self, what: &str, within: Duration, script: &str) -> Value {
        eventually(what, within, || {
            let found = self.run(script);
            (!found.is_null() && found != false).then_some(found)
        })
    }

    /// Says yes to a question of the page.
    pub fn accept(&self) {
        let path = format!("/session/{}/alert/accept", self.session);
        eventually("the page asks", PATIENCE, || {
            let (status, _) = http::ask_tcp(self.port, "POST", &path, "{}").expect("the driver answers");
            (status == 200).then_some(())
        });
    }

    /// As on a screen of so many pixels.
    pub fn screen(&self, width: u32, height: u32, is_phone: bool) {
        let scale = if is_phone { 2 } else { 1 };
        let params =
            json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone });
        self.devtools("Emulation.setDeviceMetricsOverride", params);
    }

    /// `light` or `dark`.
    pub fn scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    pub fn scripts(&self, are_off: bool) {
        self.devtools("Emulation.setScriptExecutionDisabled", json!({ "value": are_off }));
    }

    /// A picture of the whole page, as PNG.
    pub fn picture(&self, path: &Path) {
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let taken = self.devtools("Page.captureScreenshot", params);
        let png = base64::decode(taken["data"].as_str().expect("a picture")).expect("base64");
        std::fs::write(path, png).expect("the picture is written");
    }

    /// What the browser complained of, as text.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.own("/se/log", json!({ "type": "browser" }));
        let lines = log.as_array().cloned().unwrap_or_default();
        // Below a warning it only recommends.
        let grave = lines.iter().filter(|line| matches!(line["level"].as_str(), Some("SEVERE" | "WARNING")));
        grave.map(|line| format!("{} {}", line["level"], line["message"])).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = http::ask_tcp(self.port, "DELETE", &format!("/session/{}", self.session), ""); // it may be gone
        }
        let _ = self.driver.kill(); // it may have ended
        let _ = self.driver.wait(); // the same
    }
}
