//! The page in a real Chromium: what it shows is what the API says, it follows what happens, it can be
//! read without its script and without eyes, and it acts only with the token.
//!
//! Refuses: looking for markup in text. `src/dashboard/tests.rs` does that.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::browser::{self, Browser, PATIENCE};
use support::{Home, eventually, free_port, skip_tool};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

const WEB: &str = "[unit]\ndescription = \"Web <script>alert('unit')</script>\"\n\
    [service]\ncommand = [\"sh\", \"-c\", \"echo '<script>alert(1)</script>'; exec sleep 600\"]\n\
    [restart]\ndelays = [\"2s\"]\n[stop]\ntimeout = \"5s\"\n";

const DB: &str =
    "[unit]\ndrillable = true\n[service]\ncommand = [\"sleep\", \"600\"]\n[restart]\ndelays = [\"10ms\"]\n";

/// A shell's own count, so that the message of the error has markup too.
const BROKEN: &str = "[service]\ncommand = [\"sleep\", \"600\"]\n\"<script>alert(2)</script>\" = 1\n";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn axe() -> PathBuf {
    root().join("target/axe/axe_playwright_python/axe.min.js")
}

/// A daemon with two units, and TCP.
fn home(port: u16) -> Home {
    let mut home = Home::new();
    home.unit("web", WEB).unit("db", DB);
    let token = home.path().join("token");
    fs::write(&token, TOKEN).expect("a token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).expect("its mode");
    let text = format!("[api]\nlisten = [\"127.0.0.1:{port}\"]\ntoken_file = \"{}\"\n", token.display());
    fs::write(home.path().join("upright.toml"), text).expect("upright.toml");
    home.daemon();
    eventually("the port is open", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    for unit in ["web", "db"] {
        home.await_state(unit, "active", PATIENCE);
    }
    home
}

/// The page, as a reader who has typed the token into the browser's own question.
fn address(port: u16) -> String {
    format!("http://reader:{TOKEN}@127.0.0.1:{port}/sign-in")
}

/// A drill that passes.
fn drill(home: &Home) {
    home.upright_exits(&["drill", "run", "single-module", "--iterations", "1", "--pause", "0"], 0);
}

fn write_new(home: &Home, unit: &str, text: &str) {
    let path = home.path().join(format!("units/{unit}.toml"));
    let new = home.path().join("new");
    fs::write(&new, text).expect("a file");
    fs::rename(new, path).expect("in its place");
}

fn live(browser: &Browser) {
    browser.until("the page is live", PATIENCE, "return document.documentElement.classList.contains('live')");
}

#[test]
fn the_page_is_what_the_api_says_and_follows_what_happens() {
    if skip_tool(browser::lacking()) {
        return;
    }
    let port = free_port();
    let home = home(port);
    let browser = Browser::open();
    browser.go(&address(port));
    live(&browser);

    let list = home.get("/v1/units");
    for unit in list["units"].as_array().expect("units") {
        let name = unit["name"].as_str().expect("a name");
        let shown = browser.run(&format!(
            "const row = document.querySelector('tr[data-unit=\"{name}\"]');\
             return [row.dataset.state, row.querySelector('.reason').textContent]"
        ));
        assert_eq!(shown[0], unit["state"], "{unit}");
        assert!(
            shown[1].as_str().is_some_and(|text| text.starts_with(unit["reason"].as_str().expect("one")))
        );
    }
    same_kpis(&home, &browser);
    let health = home.get("/api/system/health");
    assert_eq!(browser.run("return document.documentElement.dataset.status"), health["status"]);
    assert!(browser.title().starts_with("GREEN: 2 units are active"), "{}", browser.title());

    // A mistake in a file.
    let begun = Instant::now();
    write_new(&home, "db", BROKEN);
    browser.until("it is red", PATIENCE, "return document.documentElement.dataset.status === 'red'");
    let red = begun.elapsed();
    assert!(browser.title().starts_with("RED: 1 mistake in the configuration"), "{}", browser.title());
    let told = browser.run("return document.querySelector('#config [role=alert]').textContent");
    let told = told.as_str().unwrap_or_default();
    let error = home.get("/v1/config/errors")["errors"][0].clone();
    let place = format!("{}:{}:{}", error["file"].as_str().expect("a file"), error["line"], error["column"]);
    for part in
        [place.as_str(), error["message"].as_str().expect("a cause"), error["code"].as_str().expect("a code")]
    {
        assert!(told.contains(part), "{part} in {told}");
    }
    let begun = Instant::now();
    write_new(&home, "db", DB);
    browser.until("it is green", PATIENCE, "return document.documentElement.dataset.status === 'green'");
    println!("red after {red:?}, green again after {:?}", begun.elapsed());
    assert!(red < Duration::from_secs(2) && begun.elapsed() < Duration::from_secs(2), "{red:?}");

    // A crash, and its recovery two seconds later.
    let begun = Instant::now();
    kill(Pid::from_raw(home.pid("web")), Signal::SIGKILL).expect("it lives");
    let state = "return document.querySelector('tr[data-unit=web]').dataset.state";
    browser.until("the crash shows", PATIENCE, &format!("{state} === 'backoff'"));
    let seen = begun.elapsed();
    let tail = browser.run("return document.querySelector('.tail pre').textContent");
    assert!(tail.as_str().is_some_and(|text| text.contains("<script>alert(1)</script>")), "{tail}");
    browser.until("and resolves", PATIENCE, &format!("{state} === 'active'"));
    println!("a crash was seen after {seen:?}, its end after {:?}", begun.elapsed());
    let row = browser.run("return document.querySelector('#timeline tbody tr').textContent");
    assert!(row.as_str().is_some_and(|text| text.contains("web") && text.contains("recovered")), "{row}");
    same_kpis(&home, &browser);
    let scripts = browser.run("return document.querySelectorAll('script').length");
    assert_eq!(scripts, 1, "what services say is no script");
    assert_eq!(browser.complaints(), Vec::<String>::new(), "a strict policy, and nothing against it");
}

/// Every KPI is the one of the API, to the last digit.
fn same_kpis(home: &Home, browser: &Browser) {
    eventually("the figures are those of the API", PATIENCE, || {
        let summary = home.get("/api/metrics/v0_1/summary");
        let shown = browser.run(
            "return [...document.querySelectorAll('[data-kpi]')].map((card) => \
             [card.dataset.kpi, card.dataset.value ?? null, card.className])",
        );
        let told = summary["kpis"].as_array().expect("KPIs").iter().map(|kpi| {
            let class = if kpi["verdict"] == "no data" { "none".into() } else { kpi["verdict"].clone() };
            (kpi["kpi"].clone(), kpi["value"].as_f64(), class)
        });
        let told: Vec<(Value, Option<f64>, Value)> = told.collect();
        let shown: Vec<(Value, Option<f64>, Value)> = shown
            .as_array()
            .expect("cards")
            .iter()
            .map(|card| {
                (card[0].clone(), card[1].as_str().and_then(|text| text.parse().ok()), card[2].clone())
            })
            .collect();
        (told.len() == 7 && told == shown).then_some(())
    });
}

#[test]
fn without_its_script_the_page_is_whole() {
    if skip_tool(browser::lacking()) {
        return;
    }
    let port = free_port();
    let home = home(port);
    let browser = Browser::open();
    browser.scripts(true);
    browser.go(&address(port));
    browser.scripts(false);
    assert!(browser.title().starts_with("GREEN"), "{}", browser.title());
    let rows =
        browser.run("return [...document.querySelectorAll('tr[data-unit]')].map((row) => row.innerText)");
    assert_eq!(rows.as_array().map(Vec::len), Some(2), "{rows}");
    let seen = browser.run(
        "return [document.querySelector('#act').hidden, document.querySelector('#live').textContent, \
         getComputedStyle(document.querySelector('button.act')).display]",
    );
    assert_eq!(seen, serde_json::json!([true, "not live: load it again for news", "none"]));
    drop(home);
}

/// Over TCP the page needs no token, and what services wrote does.
#[test]
fn a_reader_without_the_token_sees_all_but_log_lines() {
    if skip_tool(browser::lacking()) {
        return;
    }
    let port = free_port();
    let home = home(port);
    let browser = Browser::open();
    browser.go(&format!("http://127.0.0.1:{port}/"));
    live(&browser);
    let begun = Instant::now();
    write_new(&home, "db", BROKEN);
    browser.until("it is red", PATIENCE, "return document.documentElement.dataset.status === 'red'");
    println!("red after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(2));
    write_new(&home, "db", DB);
    browser.until("it is green", PATIENCE, "return document.documentElement.dataset.status === 'green'");
    same_kpis(&home, &browser);

    kill(Pid::from_raw(home.pid("web")), Signal::SIGKILL).expect("it lives");
    let state = "return document.querySelector('tr[data-unit=web]').dataset.state";
    browser.until("the crash shows", PATIENCE, &format!("{state} === 'backoff'"));
    let seen = browser.run("return [document.querySelectorAll('.tail').length, document.documentElement.outerHTML.includes('alert(1)')]");
    assert_eq!(seen, serde_json::json!([0, false]));
    browser.until("and resolves", PATIENCE, &format!("{state} === 'active'"));

    drill(&home);
    browser.until(
        "the drill shows",
        PATIENCE,
        "return document.querySelector('#drills li[data-status=passed] details') !== null",
    );
    browser.run("document.querySelector('#drills details').open = true");
    kill(Pid::from_raw(home.pid("web")), Signal::SIGKILL).expect("it lives");
    browser.until("the crash shows", PATIENCE, &format!("{state} === 'backoff'"));
    let report = browser
        .run("const box = document.querySelector('#drills details'); return [box.open, box.innerText]");
    assert_eq!(report[0], true, "what a reader has opened stays open");
    assert!(report[1].as_str().is_some_and(|text| text.contains("auto-recovery-rate")), "{report}");
    assert_eq!(browser.complaints(), Vec::<String>::new());

    // Signed in, the browser keeps the token as a password, for the page too.
    browser.go(&address(port));
    browser.go(&format!("http://127.0.0.1:{port}/"));
    live(&browser);
    assert_eq!(browser.run("return document.querySelector('#sign-in')"), Value::Null);
    kill(Pid::from_raw(home.pid("web")), Signal::SIGKILL).ok();
    browser.until("its last lines show", PATIENCE, "return document.querySelector('.tail pre') !== null");
}

#[test]
fn the_page_acts_with_the_token_and_says_when_it_is_old() {
    if skip_tool(browser::lacking()) {
        return;
    }
    let port = free_port();
    let mut home = home(port);
    let browser = Browser::open();
    browser.go(&address(port));
    live(&browser);
    let run = home.status("web")["run"].clone();
    let press =
        "setTimeout(() => document.querySelector('button[data-unit=web][data-verb=restart]').click())";
    let said = "return document.querySelector('#outcome').textContent";
    let with = |token: &str| {
        browser.run(&format!(
            "document.querySelector('#token').value = '{token}'; document.querySelector('#use').click()"
        ));
        browser.run(press);
    };
    with("ffffffffffffffffffffffffffffffff");
    browser.accept();
    let refused = format!("{said}.includes('this is not the token')");
    browser.until("a wrong token is refused", PATIENCE, &refused);
    assert_eq!(home.status("web")["run"], run);
    with(TOKEN);
    browser.accept();
    browser.until("it is restarted", PATIENCE, &format!("{said} === 'restart web: done'"));
    assert_ne!(home.status("web")["run"], run);
    let kept = browser.run(
        "return JSON.stringify([localStorage.length, sessionStorage.length, document.cookie, \
         document.documentElement.outerHTML.includes(arguments[0] ?? '0123456789abcdef')])",
    );
    assert_eq!(kept, "[0,0,\"\",false]", "the token is in memory only");
    home.stop();
    browser.until("it says that it is old", PATIENCE, "return !document.querySelector('#stale').hidden");
    assert!(browser.title().starts_with("STALE"), "{}", browser.title());
    home.daemon();
    browser.until("and is live again", PATIENCE, "return document.querySelector('#stale').hidden");
    live(&browser);
    assert!(browser.title().starts_with("GREEN"), "{}", browser.title());
    // The browser's own password does not do; refused, the browser forgets it, so this comes last.
    let own = browser.run_async(
        "const done = arguments[0]; fetch(location.origin + '/v1/units/web/restart', \
         { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{}' }) \
         .then((answer) => done(answer.status))",
    );
    assert_eq!(own, 401);
}

#[test]
fn axe_finds_nothing_serious_and_the_pictures_are_taken() {
    let lacking = (!axe().exists()).then_some("target/axe (tests/run makes it)");
    if skip_tool(browser::lacking().or(lacking)) {
        return;
    }
    let port = free_port();
    let home = home(port);
    let browser = Browser::open();
    let pictures = root().join("target/dashboard");
    fs::create_dir_all(&pictures).expect("a directory");
    let axe = fs::read_to_string(axe()).expect("axe");
    kill(Pid::from_raw(home.pid("web")), Signal::SIGKILL).expect("it lives");
    home.await_state("web", "active", PATIENCE);
    drill(&home);
    for story in ["well", "broken"] {
        if story == "broken" {
            write_new(&home, "db", BROKEN);
        }
        for (width, height, is_phone) in [(1_440, 900, false), (390, 844, true)] {
            for scheme in ["light", "dark"] {
                browser.screen(width, height, is_phone);
                browser.scheme(scheme);
                browser.go(&address(port));
                live(&browser);
                browser.until(
                    "it is as told",
                    PATIENCE,
                    &format!(
                        "return (document.documentElement.dataset.status === 'red') === {}",
                        story == "broken"
                    ),
                );
                browser.run("document.querySelector('#drills details').open = true");
                let name = format!("{story}-{width}-{scheme}.png");
                browser.picture(&pictures.join(&name));
                let wide = browser.run("return document.documentElement.scrollWidth - innerWidth");
                assert!(wide.as_i64().is_some_and(|more| more <= 0), "{name} is {wide} pixels too wide");
                browser.run(&axe);
                let found = browser.run_async(
                    "const done = arguments[0]; axe.run().then((found) => done(found.violations.map((one) => \
                     `${one.impact} ${one.id}: ${one.help}: ${one.nodes.map((node) => node.html).slice(0, 3).join(' ')}`)))",
                );
                let serious: Vec<String> = found
                    .as_array()
                    .expect("a list")
                    .iter()
                    .filter_map(Value::as_str)
                    .filter(|line| !line.starts_with("minor"))
                    .map(str::to_string)
                    .collect();
                assert_eq!(serious, Vec::<String>::new(), "{name}");
            }
        }
    }
}
