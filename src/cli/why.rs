//! `upright why UNIT`: the chain of causes, from the unit down to what broke first.
//!
//! Refuses: guessing. Every clause is a state the daemon shows or an event that it recorded.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::api::client::{ClientError, escaped};
use crate::api::types::{ConfigError, ConfigHealth, EventLine, UnitCard};
use crate::cli::context::{Context, Fail, Form, now};
use crate::cli::render::{Look, cut, escape_line, mark, wrap};
use crate::cli::{check, status, when};
use crate::sys::accounts;

/// Most units that one answer tells of: a person reads no more, and each is a question.
const UNITS_MAX: usize = 32;

/// Longest chain; deeper needs begin with a `why` of their own.
const DEPTH_MAX: usize = 12;

/// Last lines of a log shown.
const LOG_LINES: usize = 3;

const SCHEMA_VERSION: u32 = 1;

/// # Errors
/// The daemon cannot be asked, or has no such unit.
pub fn run(context: &mut Context, name: &str) -> Result<u8, Fail> {
    let config: Result<ConfigHealth, ClientError> = context.client.get("/v1/config/errors");
    // Older daemons have no such route; the chain stands without it.
    let broken = config.map(|config| config.errors).unwrap_or_default();
    let style = match context.form {
        Form::Json => Dates::Full,
        Form::Text => Dates::Short,
    };
    let clock = Clock { now: now(), zone: context.look.zone.clone(), dates: style };
    let ask = |name: &str| context.client.get::<UnitCard>(&format!("/v1/units/{}", escaped(name)));
    let mut gather =
        Gather { ask: &ask, user: &accounts::user_name, broken: &broken, clock, seen: BTreeSet::new() };
    let why = match gather.top(name) {
        Ok(why) => why,
        Err(error) => return Err(unknown(context, name, error, &broken)),
    };
    match context.form {
        Form::Json => context.print_json(&Answer { schema_version: SCHEMA_VERSION, why: &why })?,
        Form::Text => {
            let text = render(&why, &gather.clock, &context.look);
            context.print(&text)?;
        }
    }
    Ok(0)
}

/// A unit whose only file is broken is not there; that is worth more than a near name.
fn unknown(context: &Context, name: &str, error: ClientError, broken: &[ConfigError]) -> Fail {
    let fail = status::unknown_or(context, name, error);
    let is_unknown = fail.code == Fail::unknown_unit(name, &[]).code;
    match broken.iter().find(|error| is_file_of(error, name)) {
        Some(error) if is_unknown => {
            let message = format!("there is no unit `{name}`: {}: {}", place(error), error.message);
            Fail::new(fail.code, message, "`upright check` shows every error".to_string())
        }
        Some(_) | None => fail,
    }
}

fn is_file_of(error: &ConfigError, unit: &str) -> bool {
    let template = unit.rsplit_once('@').map(|(stem, _)| stem);
    check::is_file_of(&error.file, unit) || template.is_some_and(|stem| check::is_file_of(&error.file, stem))
}

/// `units/web.toml:7:10`
fn place(error: &ConfigError) -> String {
    match (error.line, error.column) {
        (Some(line), Some(column)) => format!("{}:{line}:{column}", error.file),
        (Some(line), None) => format!("{}:{line}", error.file),
        (None, _) => error.file.clone(),
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    schema_version: u32,
    #[serde(flatten)]
    why: &'a Why,
}

/// One unit of the chain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    pub unit: String,
    /// As in `status`; `unknown` when there is no such unit.
    pub state: String,
    /// RFC 3339; none of an unknown unit.
    pub since: Option<String>,
    pub reason: String,
    /// The answer in one sentence, down to the first cause.
    pub sentence: String,
    /// What follows the unit's name when it is the cause of something else.
    #[serde(skip)]
    pub clause: String,
    pub next_retry_at: Option<String>,
    /// What is also to be known: a broken file, a bad health check.
    pub notes: Vec<String>,
    /// What led to it, newest first.
    pub causes: Vec<Cause>,
    /// The last lines in its log, where it did not do what it should.
    pub log_tail: Vec<String>,
    /// What to type.
    pub help: Vec<String>,
    /// Told above or not followed further.
    pub told_above: bool,
    pub because: Vec<Why>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cause {
    /// RFC 3339.
    pub at: String,
    pub unit: String,
    pub event: String,
    pub message: String,
    pub cause: Option<String>,
    pub run: Option<u64>,
    /// Who gave the order, as far as it is known.
    pub by: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dates {
    /// `12:00:03`, with the day when it is not today.
    Short,
    /// RFC 3339.
    Full,
}

/// How times read inside of sentences.
#[derive(Clone, Debug)]
pub struct Clock {
    pub now: Timestamp,
    pub zone: TimeZone,
    pub dates: Dates,
}

impl Clock {
    fn time(&self, at: &str) -> String {
        let Ok(parsed) = at.parse::<Timestamp>() else { return escape_line(at) };
        match self.dates {
            Dates::Full => at.to_string(),
            Dates::Short => {
                let (at, now) = (parsed.to_zoned(self.zone.clone()), self.now.to_zoned(self.zone.clone()));
                let format = if at.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
                at.strftime(format).to_string()
            }
        }
    }

    /// `12:00:03 (3m 12s ago)`
    fn since(&self, at: &str) -> String {
        match self.dates {
            Dates::Full => self.time(at),
            Dates::Short => format!("{} ({})", self.time(at), when::ago(at, self.now)),
        }
    }

    /// `in 7s (12:00:10)`
    fn due(&self, at: &str) -> String {
        format!("{} ({})", when::until(at, self.now), self.time(at))
    }
}

/// Asks unit after unit, and puts what they say into sentences.
pub struct Gather<'a> {
    pub ask: &'a dyn Fn(&str) -> Result<UnitCard, ClientError>,
    /// The name of a uid.
    pub user: &'a dyn Fn(u32) -> Option<String>,
    pub broken: &'a [ConfigError],
    pub clock: Clock,
    /// Told already: a circle ends there.
    pub seen: BTreeSet<String>,
}

impl Gather<'_> {
    /// # Errors
    /// There is no such unit, or no daemon.
    pub fn top(&mut self, name: &str) -> Result<Why, ClientError> {
        let card = (self.ask)(name)?;
        Ok(self.explain(&card, 0))
    }

    fn explain(&mut self, card: &UnitCard, depth: usize) -> Why {
        self.seen.insert(card.unit.name.clone());
        let told = Told::new(card, self.user, &self.clock);
        let because: Vec<Why> = told.leads_to().iter().map(|name| self.follow(name, depth + 1)).collect();
        let told = Told::new(card, self.user, &self.clock);
        let unit = &card.unit;
        let file = self.broken.iter().find(|error| is_file_of(error, &unit.name));
        let mut notes = told.notes();
        notes.extend(file.map(|error| {
            let (place, message) = (place(error), &error.message);
            format!("its file is broken, the last good version is in force: {place}: {message}")
        }));
        let mut help = told.help();
        help.extend(file.map(|_| "`upright check` shows every error of the files".to_string()));
        let shows_log = matches!(unit.state.as_str(), "backoff" | "failed" | "activating");
        let first_line = card.log_tail.len().saturating_sub(LOG_LINES);
        let log_tail = card.log_tail.get(first_line..).filter(|_| shows_log).unwrap_or_default().to_vec();
        let clause = told.clause(&because);
        Why {
            unit: unit.name.clone(),
            state: unit.state.clone(),
            since: Some(unit.since.clone()),
            reason: unit.reason.clone(),
            sentence: told.sentence(&clause, &because),
            clause,
            next_retry_at: unit.next_retry_at.clone(),
            notes,
            causes: told.causes(),
            log_tail,
            help,
            told_above: false,
            because,
        }
    }

    /// A unit that another waits for or goes without.
    fn follow(&mut self, name: &str, depth: usize) -> Why {
        let bare = |state: &str, clause: &str, help: Vec<String>| Why {
            unit: name.to_string(),
            state: state.to_string(),
            since: None,
            reason: clause.to_string(),
            sentence: format!("{name} {clause}"),
            clause: clause.to_string(),
            next_retry_at: None,
            notes: Vec::new(),
            causes: Vec::new(),
            log_tail: Vec::new(),
            help,
            told_above: false,
            because: Vec::new(),
        };
        if self.seen.contains(name) {
            return Why { told_above: true, ..bare("told above", "is told above", Vec::new()) };
        }
        if depth > DEPTH_MAX || self.seen.len() >= UNITS_MAX {
            let more = vec![format!("`upright why {name}` goes on from there")];
            return Why { told_above: true, ..bare("not followed", "is not ready either", more) };
        }
        match (self.ask)(name) {
            Ok(card) => self.explain(&card, depth),
            Err(ClientError::Api { status: 404, .. }) => {
                let file = self.broken.iter().find(|error| is_file_of(error, name));
                let clause = match file {
                    Some(error) => format!("has a broken file: {}: {}", place(error), error.message),
                    None => "is no unit: no file has that name".to_string(),
                };
                let help = vec!["`upright check` shows what is wrong in the files".to_string()];
                bare("unknown", &clause, help)
            }
            Err(_) => bare("not told", "could not be asked about", Vec::new()),
        }
    }
}

/// What one card says.
struct Told<'a> {
    card: &'a UnitCard,
    /// Every event known of the unit, newest first.
    events: Vec<&'a EventLine>,
    user: &'a dyn Fn(u32) -> Option<String>,
    clock: Clock,
}

impl<'a> Told<'a> {
    fn new(card: &'a UnitCard, user: &'a dyn Fn(u32) -> Option<String>, clock: &Clock) -> Told<'a> {
        let mut events: Vec<&EventLine> = card.history.iter().chain(&card.causes).collect();
        events.sort_by_key(|event| std::cmp::Reverse(event.id));
        events.dedup_by_key(|event| event.id);
        Told { card, events, user, clock: clock.clone() }
    }

    fn name(&self) -> &str {
        &self.card.unit.name
    }

    /// The newest event of one of these names.
    fn newest(&self, names: &[&str]) -> Option<&'a EventLine> {
        self.events.iter().find(|event| names.contains(&event.event.as_str())).copied()
    }

    /// The newest order that says whether it shall run.
    fn order(&self) -> Option<&'a EventLine> {
        let moves = |event: &&&EventLine| {
            event.event == "order.taken"
                && matches!(
                    event.data.get("verb").and_then(Value::as_str),
                    Some("start" | "stop" | "restart")
                )
        };
        self.events.iter().find(moves).copied()
    }

    fn order_of(&self, verb: &str) -> Option<&'a EventLine> {
        self.order().filter(|event| event.data.get("verb").and_then(Value::as_str) == Some(verb))
    }

    /// `root, process 77`: from the note that stands before the order.
    fn by(&self, order: &EventLine) -> Option<String> {
        let verb = order.data.get("verb")?;
        let asked = self.events.iter().find(|event| {
            event.event == "order.asked" && event.id < order.id && event.data.get("verb") == Some(verb)
        })?;
        let uid = u32::try_from(asked.data.get("uid")?.as_u64()?).ok()?;
        let who = (self.user)(uid).unwrap_or_else(|| format!("user {uid}"));
        match asked.data.get("pid").and_then(Value::as_i64) {
            Some(pid) => Some(format!("{who}, process {pid}")),
            None => Some(who),
        }
    }

    /// `an operator's `stop` at 12:00:03 (root, process 77)`
    fn operator(&self, order: &EventLine) -> String {
        let verb = order.data.get("verb").and_then(Value::as_str).unwrap_or("order");
        let by = self.by(order).map(|by| format!(" ({by})")).unwrap_or_default();
        format!("an operator's `{verb}` at {}{by}", self.clock.since(&order.ts))
    }

    /// Units whose own why belongs to this one.
    fn leads_to(&self) -> Vec<String> {
        let unit = &self.card.unit;
        let mut names = unit.waiting_for.clone();
        if matches!(unit.state.as_str(), "backoff" | "failed") {
            // Down when it failed; where they are up again, that is told too.
            names.extend(self.blame());
        }
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// The requirements that were down at the last failure.
    fn blame(&self) -> Vec<String> {
        let blame = self.newest(&["unit.failed"]).and_then(|event| event.data.get("blame"));
        let names = blame.and_then(Value::as_array).into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_string).collect()
    }

    /// `was killed (SIGKILL) at 12:00:03`
    fn failure(&self) -> Option<String> {
        let event = self.newest(&["unit.failed"])?;
        let cause = event.cause.as_deref().unwrap_or("it failed");
        // An exit reads as what the unit did; other causes do not.
        let by_exit = ["exit_code", "signal", "step"].iter().any(|key| event.data.contains_key(*key));
        let is_hook = event.data.contains_key("hook");
        let said = if by_exit && !is_hook { cause.to_string() } else { format!("failed: {cause}") };
        let blame = self.blame();
        let blame =
            if blame.is_empty() { String::new() } else { format!(", while {} was down", blame.join(", ")) };
        Some(format!("{said} at {}{blame}", self.clock.time(&event.ts)))
    }

    /// What follows the unit's name when others ask why.
    fn clause(&self, because: &[Why]) -> String {
        let unit = &self.card.unit;
        let reason = &unit.reason;
        let since = self.clock.since(&unit.since);
        match unit.state.as_str() {
            "backoff" => {
                let failed = self.failure().unwrap_or_else(|| format!("failed: {reason}"));
                match &unit.next_retry_at {
                    Some(at) => {
                        format!("{failed}; retry {} follows {}", unit.failures, self.clock.due(at))
                    }
                    None => failed,
                }
            }
            "failed" if reason.starts_with("stuck") => format!("is {reason}; since {since}"),
            "failed" => format!("is held: {reason}, at {since}"),
            "inactive" => self.inactive_clause(),
            "waiting" => self.waiting_clause(because),
            "activating" => {
                let after = match unit.failures {
                    0 => String::new(),
                    k => format!("; it is restart {k}, after it {}", self.failure().unwrap_or_default()),
                };
                format!("has been starting since {since}: {reason}{after}")
            }
            "deactivating" => self.deactivating_clause(),
            "degraded" => {
                let roots: Vec<String> =
                    because.iter().map(|why| format!("{} {}", why.unit, why.clause)).collect();
                if roots.is_empty() {
                    return format!("is degraded: {reason}");
                }
                format!("is degraded, because {}", roots.join("; and "))
            }
            _ => format!("is {}: {reason}, since {since}", unit.state),
        }
    }

    fn sentence(&self, clause: &str, because: &[Why]) -> String {
        let name = self.name();
        match self.card.unit.state.as_str() {
            "backoff" => format!("{name} is in backoff, because it {clause}"),
            "inactive" => format!("{name} is inactive: it {clause}"),
            "failed" => format!("{name} has failed: it {clause}"),
            "waiting" if !because.is_empty() => format!("{name} {}", self.waiting_sentence(because)),
            _ => format!("{name} {clause}"),
        }
    }

    fn inactive_clause(&self) -> String {
        let unit = &self.card.unit;
        if unit.reason.starts_with("finished") {
            let at = self.newest(&["unit.finished"]).map_or(&unit.since, |event| &event.ts);
            return format!("{}, at {}", unit.reason, self.clock.since(at));
        }
        if let Some(order) = self.order_of("stop") {
            return format!("was stopped by {}", self.operator(order));
        }
        match self.newest(&["unit.stopped"]) {
            Some(event) => {
                format!("was stopped at {}, and nothing wants it up", self.clock.time(&event.ts))
            }
            None => format!("was never started ({})", unit.reason),
        }
    }

    fn waiting_clause(&self, because: &[Why]) -> String {
        match because.first() {
            Some(why) => format!("waits for {}, which {}", why.unit, why.clause),
            None if self.card.unit.reason.starts_with("waiting") => format!("is {}", self.card.unit.reason),
            None => format!("is waiting: {}", self.card.unit.reason),
        }
    }

    /// What it requires is the reason; an order or a conflict has one in the daemon's words.
    fn waiting_sentence(&self, because: &[Why]) -> String {
        let unit = &self.card.unit;
        let needed = because.iter().filter(|why| unit.requires.contains(&why.unit) || why.since.is_none());
        let roots: Vec<String> = needed.map(|why| format!("{} {}", why.unit, why.clause)).collect();
        if roots.is_empty() {
            return format!("is {}", unit.reason);
        }
        format!("is waiting, because {}", roots.join("; and "))
    }

    fn deactivating_clause(&self) -> String {
        let reason = &self.card.unit.reason;
        if self.card.removed {
            return format!("is being stopped, because its file is gone: {reason}");
        }
        let began = self.newest(&["unit.stopping", "unit.failed"]);
        if began.is_some_and(|event| event.event == "unit.failed") {
            let failed = self.failure().unwrap_or_default();
            return format!("{failed}; what is left of it is being ended: {reason}");
        }
        // An order older than its last readiness asked for that, not for this.
        let ready = self.newest(&["unit.active"]).map_or(0, |event| event.id);
        let order = self.order_of("stop").or_else(|| self.order_of("restart"));
        match order.filter(|order| order.id > ready) {
            Some(order) => format!("is being stopped by {}: {reason}", self.operator(order)),
            None => format!("is being stopped: {reason}"),
        }
    }

    fn notes(&self) -> Vec<String> {
        let unit = &self.card.unit;
        let mut notes = Vec::new();
        if unit.health == "unhealthy"
            && let Some(event) = self.newest(&["health.bad"])
        {
            let said = event.cause.as_deref().unwrap_or("no reason");
            notes.push(format!("its health checks are bad since {}: {said}", self.clock.time(&event.ts)));
        }
        let failing = matches!(unit.state.as_str(), "active" | "degraded") && unit.failures > 0;
        if failing && let Some(failure) = self.failure() {
            let count = unit.failures;
            let word = if count == 1 { "failure counts" } else { "failures count" };
            notes.push(format!(
                "{count} {word} until it has stayed ready for long enough; the last: it {failure}"
            ));
        }
        if let Some(event) = self.newest(&["resync.failed", "resync.succeeded"])
            && event.event == "resync.failed"
            && matches!(unit.state.as_str(), "active" | "degraded")
        {
            let said = event.cause.as_deref().unwrap_or("no reason");
            notes.push(format!("its state was not restored at {}: {said}", self.clock.time(&event.ts)));
        }
        if let (Some(alert), true) = (self.newest(&["alert.raised", "episode.ended"]), unit.failures > 0)
            && alert.event == "alert.raised"
        {
            notes.push(format!("an alert was raised at {}", self.clock.time(&alert.ts)));
        }
        notes
    }

    fn help(&self) -> Vec<String> {
        let unit = &self.card.unit;
        let name = &unit.name;
        let logs = format!("`upright logs {name} -n 50` shows what it wrote");
        match unit.state.as_str() {
            "backoff" => vec![logs, format!("`upright start {name}` tries again at once")],
            "failed" if unit.reason.starts_with("stuck") => {
                vec![
                    "nothing to type: the kernel holds a process; look at its disks and network mounts"
                        .into(),
                ]
            }
            "failed" => vec![logs, format!("`upright clear {name}` starts it again, when the cause is gone")],
            "inactive" if !self.card.removed => vec![format!("`upright start {name}` starts it")],
            "activating" => vec![format!("`upright logs {name} -f` shows how it comes up")],
            "active" if unit.reason.contains("could not be restored") => {
                vec![format!("`upright resync {name}` tries again")]
            }
            _ => Vec::new(),
        }
    }

    fn causes(&self) -> Vec<Cause> {
        let ours = self.events.iter().filter(|event| event.unit.as_deref() == Some(self.name()));
        ours.map(|event| Cause {
            at: event.ts.clone(),
            unit: self.name().to_string(),
            event: event.event.clone(),
            message: event.message.clone(),
            cause: event.cause.clone(),
            run: event.run,
            by: if event.event == "order.taken" { self.by(event) } else { None },
        })
        .collect()
    }
}

/// Most causes of one unit on a page.
const CAUSES_SHOWN: usize = 5;

/// The same where all is well.
const CAUSES_OF_ACTIVE: usize = 3;

/// Said by another line of the page, or no cause of anything.
const NOT_SHOWN: [&str; 3] = ["retry.scheduled", "unit.state", "alert.raised"];

/// The page: each unit of the chain under the one that it holds up.
pub fn render(why: &Why, clock: &Clock, look: &Look) -> String {
    let mut page = Page { clock, look, text: String::new() };
    page.put(why, 0);
    page.text
}

struct Page<'a> {
    clock: &'a Clock,
    look: &'a Look,
    text: String,
}

impl Page<'_> {
    fn put(&mut self, why: &Why, indent: usize) {
        if why.told_above {
            self.line(indent, "· ", &why.sentence, &|text| self.look.paint.dim(text));
            for help in &why.help {
                self.line(indent + 2, "help: ", help, &str::to_string);
            }
            return;
        }
        let (symbol, style) = mark(&why.state);
        let paint = self.look.paint;
        let state = |text: &str| paint.with(style, text);
        self.line(indent, &format!("{symbol} "), &why.sentence, &state);
        let inside = indent + 2;
        // The other sentences say when.
        let says_when = !matches!(why.state.as_str(), "degraded" | "waiting" | "deactivating");
        if let Some(since) = why.since.as_ref().filter(|_| !says_when) {
            let text = format!("{} since {}", why.state, self.clock.since(since));
            self.line(inside, "", &text, &|text| paint.dim(text));
        }
        for note in &why.notes {
            self.line(inside, "note: ", note, &str::to_string);
        }
        let shown = why.causes.iter().filter(|cause| !NOT_SHOWN.contains(&cause.event.as_str()));
        let most = if why.state == "active" { CAUSES_OF_ACTIVE } else { CAUSES_SHOWN };
        for cause in shown.take(most) {
            let at = format!("{}  ", self.clock.time(&cause.at));
            self.line(inside, &at, &said(cause), &str::to_string);
        }
        if !why.log_tail.is_empty() {
            self.line(inside, "", "the last lines in its log:", &|text| paint.dim(text));
            for line in &why.log_tail {
                // Its spaces mean something, so it is cut, not wrapped.
                let line = format!("{}│ {}", " ".repeat(inside + 2), escape_line(line));
                let line = self.look.width.map_or(line.clone(), |width| cut(&line, width));
                self.text.push_str(&format!("{line}\n"));
            }
        }
        for help in &why.help {
            self.line(inside, "help: ", help, &str::to_string);
        }
        for cause in &why.because {
            self.text.push('\n');
            self.put(cause, inside);
        }
    }

    /// `label` once, `text` wrapped beside it; both escaped.
    fn line(&mut self, indent: usize, label: &str, text: &str, paint: &dyn Fn(&str) -> String) {
        let label = escape_line(label);
        let before = indent + label.width();
        let columns = self.look.width.map(|width| width.saturating_sub(before));
        for (index, part) in wrap(&escape_line(text), columns).into_iter().enumerate() {
            let start =
                if index == 0 { format!("{}{label}", " ".repeat(indent)) } else { " ".repeat(before) };
            self.text.push_str(&format!("{start}{}\n", paint(&part)));
        }
    }
}

/// The event without the unit's name, which stands above it.
fn said(cause: &Cause) -> String {
    let text = cause.message.strip_prefix(&format!("{} ", cause.unit)).unwrap_or(&cause.message);
    match &cause.by {
        Some(by) => format!("{text} ({by})"),
        None => text.to_string(),
    }
}
