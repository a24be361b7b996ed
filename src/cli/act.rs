//! `upright start | stop | restart | reload | clear`: give an order, wait, tell the outcome.
//!
//! Refuses: saying "done" before the daemon did.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::call::Verb;
use crate::api::client::{Client, READ_TIMEOUT};
use crate::api::types::{ActionReply, ActionRequest, UnitList, UnitOutcome};
use crate::cli::args::OrderArgs;
use crate::cli::context::{Context, EXIT_FAILED, Fail, Form, now};
use crate::cli::render::{Look, escape_line, mark, took};
use crate::cli::{status, when};

/// Between two looks while waiting: below what a person takes for a delay.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// # Errors
/// The daemon cannot be asked, refuses, or is not done in time.
pub fn run(context: &mut Context, verb: Verb, order: &OrderArgs) -> Result<u8, Fail> {
    let request = ActionRequest { units: order.units.clone(), all: order.all };
    let path = format!("/v1/actions/{}?wait={}", verb.as_str(), !order.no_wait);
    let timeout = if order.no_wait { Some(order.timeout.unwrap_or(READ_TIMEOUT)) } else { order.timeout };
    let given_at = now();
    let progress = (!order.no_wait && std::io::stderr().is_terminal()).then(|| {
        Progress::start(context.client.socket().to_path_buf(), request.clone(), context.look.clone())
    });
    let replied = context.client.post::<ActionReply>(&path, &request, timeout);
    drop(progress);
    let reply = match replied {
        Ok(reply) => reply,
        Err(error) => {
            return Err(match order.units.as_slice() {
                [name] => status::unknown_or(context, name, error),
                _ => context.fail(error),
            });
        }
    };
    match (context.form, order.no_wait) {
        (Form::Json, _) => context.print_json(&reply)?,
        (Form::Text, true) => {
            let text = render_taken(verb, &reply, &order.units);
            context.print(&text)?;
        }
        (Form::Text, false) => {
            let since = active_since(&context.client);
            let text = render_outcomes(verb, &reply, given_at, &since);
            context.print(&text)?;
        }
    }
    if order.no_wait {
        let refused = reply.outcomes.iter().any(|outcome| outcome.outcome == "failed");
        return Ok(if refused { EXIT_FAILED } else { 0 });
    }
    point_to_failures(verb, &reply);
    Ok(order_exit_code(verb, &reply))
}

/// The same for an order, whose units may have come up and failed before it was answered.
pub fn order_exit_code(verb: Verb, reply: &ActionReply) -> u8 {
    let has_failed = reply.outcomes.iter().any(|outcome| has_failed_again(verb, outcome));
    if has_failed { EXIT_FAILED } else { exit_code(reply) }
}

/// 0 when every unit is as ordered.
pub fn exit_code(reply: &ActionReply) -> u8 {
    let good = |outcome: &UnitOutcome| matches!(outcome.outcome.as_str(), "done" | "already" | "accepted");
    if reply.outcomes.iter().all(good) { 0 } else { EXIT_FAILED }
}

/// It came up, and failed before the answer was written.
fn has_failed_again(verb: Verb, outcome: &UnitOutcome) -> bool {
    let is_down = matches!(outcome.state.as_str(), "backoff" | "failed");
    match verb {
        Verb::Start | Verb::Restart => outcome.outcome == "done" && is_down,
        Verb::Stop | Verb::Reload | Verb::Clear | Verb::Resync => false,
    }
}

/// Why a unit is not as ordered.
pub fn why(outcome: &UnitOutcome) -> String {
    let said = outcome.message.as_deref().filter(|message| !message.is_empty());
    escape_line(said.unwrap_or("the daemon gave no reason"))
}

/// Since when units are active; empty when the daemon cannot be asked any more, because the
/// outcome is known all the same.
fn active_since(client: &Client) -> BTreeMap<String, String> {
    let Ok(list) = client.get::<UnitList>("/v1/units") else { return BTreeMap::new() };
    list.units.into_iter().filter(|unit| unit.state == "active").map(|unit| (unit.name, unit.since)).collect()
}

/// A line a unit: `backend: started (active in 1.2s)`.
pub fn render_outcomes(
    verb: Verb,
    reply: &ActionReply,
    given_at: Timestamp,
    since: &BTreeMap<String, String>,
) -> String {
    let mut text = String::new();
    for outcome in &reply.outcomes {
        let unit = escape_line(&outcome.unit);
        let state = escape_line(&outcome.state);
        let line = match outcome.outcome.as_str() {
            "done" if has_failed_again(verb, outcome) => {
                format!("{}, and failed again ({state})", done_word(verb))
            }
            "done" => {
                let active = since.get(&outcome.unit).and_then(|at| active_after(at, given_at));
                match (verb, active) {
                    (Verb::Start | Verb::Restart, Some(after)) => {
                        format!("{} (active in {})", done_word(verb), took(after))
                    }
                    (
                        Verb::Start | Verb::Restart | Verb::Stop | Verb::Reload | Verb::Clear | Verb::Resync,
                        _,
                    ) => {
                        format!("{} ({state})", done_word(verb))
                    }
                }
            }
            "already" => format!("already {state}"),
            "accepted" => format!("{} ordered", verb.as_str()),
            "superseded" => format!("a newer order took over ({state})"),
            _ => format!("cannot {}: {} ({state})", verb.as_str(), why(outcome)),
        };
        text.push_str(&format!("{unit}: {line}\n"));
    }
    text
}

/// How long after the order it became active; None when it was so before.
fn active_after(since: &str, given_at: Timestamp) -> Option<Duration> {
    let since: Timestamp = since.parse().ok()?;
    when::passed(&given_at.to_string(), since).filter(|after| !after.is_zero())
}

fn render_taken(verb: Verb, reply: &ActionReply, units: &[String]) -> String {
    let named = reply.outcomes.iter().map(|outcome| outcome.unit.as_str());
    let mut names: Vec<&str> = named.collect();
    if names.is_empty() {
        names = units.iter().map(String::as_str).collect();
    }
    if names.is_empty() {
        return format!("{} ordered for every unit\n", verb.as_str());
    }
    names.iter().map(|name| format!("{}: {} ordered\n", escape_line(name), verb.as_str())).collect()
}

fn done_word(verb: Verb) -> &'static str {
    match verb {
        Verb::Start => "started",
        Verb::Stop => "stopped",
        Verb::Restart => "restarted",
        Verb::Reload => "reloaded",
        Verb::Clear => "cleared",
        Verb::Resync => "state restored",
    }
}

fn point_to_failures(verb: Verb, reply: &ActionReply) {
    let mut err = std::io::stderr().lock();
    let failed = |outcome: &&UnitOutcome| outcome.outcome == "failed" || has_failed_again(verb, outcome);
    for outcome in reply.outcomes.iter().filter(failed) {
        let unit = escape_line(&outcome.unit);
        let _ = writeln!(err, "help: look at `upright why {unit}` and `upright logs {unit}`"); // nobody to tell
    }
}

/// Tells on stderr how the states move while the order is carried out. Ends when dropped.
struct Progress {
    done: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    fn start(socket: PathBuf, request: ActionRequest, look: Look) -> Progress {
        let (done, wait) = channel();
        let thread = std::thread::spawn(move || watch(&socket, &request, &look, &wait));
        Progress { done: Some(done), thread: Some(thread) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // it only prints
        }
    }
}

fn watch(socket: &Path, request: &ActionRequest, look: &Look, wait: &Receiver<()>) {
    let Ok(client) = Client::new(socket) else { return };
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    while let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(PROGRESS_INTERVAL) {
        let Ok(list) = client.get::<UnitList>("/v1/units") else { continue };
        for unit in list.units {
            let moving = matches!(unit.state.as_str(), "waiting" | "activating" | "deactivating" | "backoff");
            let ordered = request.all || request.units.contains(&unit.name);
            let before = shown.insert(unit.name.clone(), unit.state.clone());
            if ordered && moving && before.as_deref() != Some(unit.state.as_str()) {
                let (symbol, style) = mark(&unit.state);
                let state = look.paint.with(style, &format!("{symbol} {}", escape_line(&unit.state)));
                let (name, reason) = (escape_line(&unit.name), escape_line(&unit.reason));
                let _ = writeln!(std::io::stderr().lock(), "{name}: {state}  {reason}"); // progress only
            }
        }
    }
}
