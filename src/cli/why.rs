//! `upright why UNIT`: the chain of causes, from the unit down to what broke first.
//!
//! Refuses: an endless answer. A circle ends, and a long chain is cut where a new question can begin.

use std::collections::BTreeMap;

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

use crate::api::client::{ClientError, escaped};
use crate::api::types::{ConfigError, ConfigHealth, UnitCard};
use crate::cli::context::{Context, Fail, Form, now};
use crate::cli::render::{Look, cut, escape_line, mark, wrap};
use crate::cli::told::{Clock, Dates, Told};
use crate::cli::{check, status};
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
        Gather { ask: &ask, user: &accounts::user_name, broken: &broken, clock, seen: BTreeMap::new() };
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

/// Asks unit after unit, and puts what they say into sentences.
pub struct Gather<'a> {
    pub ask: &'a dyn Fn(&str) -> Result<UnitCard, ClientError>,
    /// The name of a uid.
    pub user: &'a dyn Fn(u32) -> Option<String>,
    pub broken: &'a [ConfigError],
    pub clock: Clock,
    /// The state and clause of what was asked already; none while its own causes are followed: a
    /// circle ends there.
    pub seen: BTreeMap<String, Option<(String, String)>>,
}

impl Gather<'_> {
    /// # Errors
    /// There is no such unit, or no daemon.
    pub fn top(&mut self, name: &str) -> Result<Why, ClientError> {
        let card = (self.ask)(name)?;
        Ok(self.explain(&card, 0))
    }

    fn explain(&mut self, card: &UnitCard, depth: usize) -> Why {
        self.seen.insert(card.unit.name.clone(), None);
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
        self.seen.insert(unit.name.clone(), Some((unit.state.clone(), clause.clone())));
        Why {
            unit: unit.name.clone(),
            state: unit.state.clone(),
            since: Some(told.since().to_string()),
            reason: unit.reason.clone(),
            sentence: if depth == 0 {
                told.sentence(&clause, &because)
            } else {
                told.below(&clause, &because)
            },
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
        match self.seen.get(name) {
            Some(Some((state, clause))) => {
                return Why { told_above: true, ..bare(state, clause, Vec::new()) };
            }
            Some(None) => {
                return Why { told_above: true, ..bare("told above", "waits for it in turn", Vec::new()) };
            }
            None => {}
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

/// Most causes of one unit on a page.
const CAUSES_SHOWN: usize = 5;

/// The same where all is well.
const CAUSES_OF_ACTIVE: usize = 3;

/// Not what another line of the page says, or will say.
fn is_shown(cause: &Cause) -> bool {
    match cause.event.as_str() {
        "retry.scheduled" | "alert.raised" => false,
        // "started as process …" follows.
        "unit.state" => !cause.message.contains(" is activating: "),
        _ => true,
    }
}

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
        let shown = why.causes.iter().filter(|cause| is_shown(cause));
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
