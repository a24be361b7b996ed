//! `upright simulate UNIT`: the restarts and alerts of a unit that fails N times, offline.
//!
//! Refuses: computing a delay. The engine that supervises says what it would do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anstyle::AnsiColor;
use serde_json::{Value, json};
use unicode_width::UnicodeWidthStr;

use crate::base::exit::Exit;
use crate::base::name::UnitName;
use crate::cli::EXIT_USAGE;
use crate::cli::args::{GlobalArgs, HowToFail, SimulateArgs};
use crate::cli::check::{self, Format};
use crate::cli::context::{Fail, look};
use crate::cli::render::{Look, Paint, color, escape_line, wrap};
use crate::cli::{doors, find};
use crate::config::{Home, Loaded, Surroundings, load, load_paths};
use crate::sim::timeline::{About, End, How, Plan, Span, Step, Timeline, What, timeline};
use crate::unit::Colour;
use crate::unit::spec::{RestartPolicy, UnitSpec};

const SCHEMA_VERSION: u32 = 1;

/// # Errors
/// No such unit (4), a broken file (2, after its errors were printed), or a question without
/// an answer (2).
pub fn run(global: &GlobalArgs, args: &SimulateArgs) -> Result<u8, Fail> {
    let look = look(global.color);
    let Files { loaded, name, places } = files(global, args)?;
    let Some(spec) = named(&loaded, &name) else {
        let stem = name.split('@').next().unwrap_or_default().to_string();
        let stems = [name.as_str(), stem.as_str()];
        let broken = stems
            .into_iter()
            .find(|stem| loaded.diagnostics.iter().any(|d| d.is_error() && check::is_file_of(&d.file, stem)));
        let Some(broken) = broken else { return Err(unknown(&loaded, &name, &places)) };
        let format = match (global.json, look.paint) {
            (true, _) => Format::Json,
            (false, Paint::Plain) => Format::Text(Colour::Plain),
            (false, Paint::Colored) => Format::Text(Colour::Coloured),
        };
        return doors::print((check::of_file(&loaded, broken, format), EXIT_USAGE));
    };
    let how = match args.how {
        HowToFail::Exit => How::Exit,
        HowToFail::Hang => How::Hang,
        HowToFail::NeverReady => How::NeverReady,
    };
    let asked = Asked { spec: &spec, failures: args.failures, how, every: args.every };
    let plan =
        Plan { units: &loaded.units, unit: &spec.name, failures: args.failures, how, lives: args.every };
    let line = timeline(&plan).map_err(|refused| {
        let message = format!("cannot simulate `{}`: {refused}", spec.name);
        Fail::new(EXIT_USAGE, message, refused.help().to_string())
    })?;
    let text =
        if global.json { format!("{:#}\n", as_json(&asked, &line)) } else { as_text(&asked, &line, &look) };
    doors::print((text, 0))
}

/// What was asked, for whoever shows the answer.
pub struct Asked<'a> {
    pub spec: &'a UnitSpec,
    pub failures: u32,
    pub how: How,
    pub every: Duration,
}

struct Files {
    loaded: Loaded,
    /// Of the unit, as far as it was typed.
    name: String,
    places: Vec<PathBuf>,
}

fn files(global: &GlobalArgs, args: &SimulateArgs) -> Result<Files, Fail> {
    let text = &args.unit;
    if text.contains('/') || text.ends_with(".toml") {
        let path = PathBuf::from(text);
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        return Ok(Files { loaded: load_paths(std::slice::from_ref(&path)), name, places: vec![path] });
    }
    let home = Home::resolve(&find::asked(global), &Surroundings::of_process())
        .map_err(|error| Fail::new(EXIT_USAGE, error.to_string(), None))?;
    Ok(Files { loaded: load(&home), name: text.clone(), places: home.unit_dirs })
}

/// The unit of this name; of a template the first instance.
fn named(loaded: &Loaded, name: &str) -> Option<Arc<UnitSpec>> {
    let instance = format!("{name}@1");
    let of = |name: &str| loaded.units.iter().find(|spec| spec.name.as_str() == name);
    of(name).or_else(|| of(&instance)).cloned()
}

fn unknown(loaded: &Loaded, name: &str, places: &[PathBuf]) -> Fail {
    let known: Vec<&str> = loaded.units.iter().map(|spec| spec.name.as_str()).collect();
    let fail = Fail::unknown_unit(name, &known);
    let places: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
    let help = match &fail.help {
        Some(near) if near.starts_with("did you mean") => near.clone(),
        Some(_) | None => format!("there are {} units in {}", known.len(), places.join(", ")),
    };
    Fail { help: Some(help), ..fail }
}

/// Exact to the millisecond: `1m 45s`, `5.25s`.
pub fn exact(duration: Duration) -> String {
    let ms = duration.as_millis();
    let mut parts = Vec::new();
    let mut left = ms;
    for (word, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000)] {
        if left >= size {
            parts.push(format!("{}{word}", left / size));
            left %= size;
        }
    }
    if left > 0 || parts.is_empty() {
        let seconds = format!("{}.{:03}", left / 1_000, left % 1_000);
        parts.push(format!("{}s", seconds.trim_end_matches('0').trim_end_matches('.')));
    }
    parts.join(" ")
}

fn span(span: Span) -> String {
    if span.least == span.most {
        return exact(span.least);
    }
    format!("{} to {}", exact(span.least), exact(span.most))
}

fn counted(count: u32, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

/// `4th`
fn ordinal(number: u32) -> String {
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        (_, _) => "th",
    };
    format!("{number}{ending}")
}

/// The whole answer as people read it.
pub fn as_text(asked: &Asked<'_>, line: &Timeline, look: &Look) -> String {
    let mut out = String::new();
    for sentence in header(asked, line) {
        push_wrapped(&mut out, "", &sentence, look);
    }
    out.push('\n');
    let rows = rows(asked, line);
    let offset = |row: &Row| match (row.at.least, row.at.most) {
        (least, most) if least == most => format!("+{}", exact(least)),
        (least, most) => format!("+{} to +{}", exact(least), exact(most)),
    };
    let widest = rows.iter().map(|row| offset(row).width()).max().unwrap_or(0);
    for row in &rows {
        let left = format!("{:>widest$}  ", offset(row));
        let columns = look.width.map(|width| width.saturating_sub(left.width()));
        for (index, text) in wrap(&row.text, columns).into_iter().enumerate() {
            let before = if index == 0 { look.paint.dim(&left) } else { " ".repeat(left.width()) };
            let text = match row.tone {
                Tone::Plain => text,
                Tone::Bad => look.paint.with(color(AnsiColor::Yellow), &text),
                Tone::Told => look.paint.with(color(AnsiColor::Red), &text),
                Tone::Good => look.paint.with(color(AnsiColor::Green), &text),
            };
            out.push_str(&format!("{before}{text}\n"));
        }
    }
    out.push('\n');
    for (label, text) in totals(asked, line) {
        push_wrapped(&mut out, &format!("{label:14}"), &text, look);
    }
    out
}

fn push_wrapped(out: &mut String, label: &str, text: &str, look: &Look) {
    let columns = look.width.map(|width| width.saturating_sub(label.width()));
    for (index, line) in wrap(text, columns).into_iter().enumerate() {
        let before = if index == 0 { label.to_string() } else { " ".repeat(label.width()) };
        out.push_str(&format!("{before}{line}\n"));
    }
}

fn ends(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exits with code {code}"),
        Exit::Signal { signal, .. } => format!("is killed by {signal}"),
        Exit::NotExecuted { .. } | Exit::Unknown => exit.to_string(),
    }
}

/// What is assumed.
fn header(asked: &Asked<'_>, line: &Timeline) -> Vec<String> {
    let Asked { spec, failures, how, every } = asked;
    let when = if every.is_zero() {
        "as soon as it is ready".to_string()
    } else {
        format!("after {} of readiness", exact(*every))
    };
    let oneshot = spec.service.kind == crate::unit::spec::ServiceType::Oneshot;
    let what = match how {
        How::Exit if oneshot && every.is_zero() => format!("{} at once", ends(line.exit)),
        How::Exit if oneshot => format!("{} after {}", ends(line.exit), exact(*every)),
        How::Exit => format!("{} {when}", ends(line.exit)),
        How::Hang => format!("hangs {when}: it answers no check, and no signal but SIGKILL"),
        How::NeverReady => "never gets ready".to_string(),
    };
    let then = if oneshot { "does its work" } else { "stays up" };
    let mut lines = vec![format!(
        "{}: {} {what}; the next one {then}",
        spec.name,
        if *failures == 1 { "one run".to_string() } else { format!("each of {failures} runs") }
    )];
    if !line.stand_ins.is_empty() {
        let names: Vec<&str> = line.stand_ins.iter().map(UnitName::as_str).collect();
        lines.push(format!("taken as ready all the time: {}", names.join(", ")));
    }
    if spec.restart.jitter_percent > 0 {
        let jitter = spec.restart.jitter_percent;
        lines.push(format!(
            "restart.jitter = \"{jitter}%\" lengthens delays by chance: each time is the earliest to the latest"
        ));
    }
    lines
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Plain,
    Bad,
    /// Somebody is told.
    Told,
    Good,
}

struct Row {
    at: Span,
    text: String,
    tone: Tone,
}

fn rows(asked: &Asked<'_>, line: &Timeline) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut started_at = None;
    let mut last_failure = 0;
    for (index, step) in line.steps.iter().enumerate() {
        let at = step.at;
        if let What::Failed { failures, .. } = &step.what {
            last_failure = *failures;
        }
        match &step.what {
            What::Started { .. } => started_at = Some(at),
            // Said where it is news.
            What::Ready if started_at == Some(at) => continue,
            What::Alert { about: About::Recovered, .. } if follows_episode(line, index) => continue,
            What::Recovered { .. } if fails_next(line, index) => continue,
            What::Ready
            | What::Unhealthy
            | What::Failed { .. }
            | What::RetryExhausted { .. }
            | What::Alert { .. }
            | What::Killed
            | What::Recovered { .. }
            | What::EpisodeEnded { .. }
            | What::GaveUp { .. }
            | What::Finished => {}
        }
        let (tone, text) = sentence(asked, line, index, step, last_failure);
        rows.push(Row { at, text, tone });
    }
    rows
}

/// The recovery is told on the line of the episode's end.
fn follows_episode(line: &Timeline, index: usize) -> bool {
    let before = index.checked_sub(1).and_then(|index| line.steps.get(index));
    before.is_some_and(|step| matches!(step.what, What::EpisodeEnded { .. }))
}

/// Ready for no time at all: a failure follows in the same moment.
fn fails_next(line: &Timeline, index: usize) -> bool {
    let now = line.steps.get(index).map(|step| step.at);
    let next = line.steps.get(index + 1);
    next.is_some_and(|step| matches!(step.what, What::Failed { .. }) && Some(step.at) == now)
}

fn sentence(
    asked: &Asked<'_>,
    line: &Timeline,
    index: usize,
    step: &Step,
    last_failure: u32,
) -> (Tone, String) {
    let spec = asked.spec;
    let name = &spec.name;
    match &step.what {
        What::Started { restart: 0 } => (Tone::Plain, "start".to_string()),
        What::Started { restart } => (Tone::Plain, format!("restart {restart}")),
        What::Ready => (Tone::Plain, "ready".to_string()),
        What::Unhealthy => (Tone::Bad, "the first bad health check".to_string()),
        What::Failed { failures, cause, restart_in } => {
            let next = match restart_in {
                Some(wait) => format!("restart in {}", span(*wait)),
                None => "no restart follows".to_string(),
            };
            (Tone::Bad, format!("failure {failures}: {}; {next}", escape_line(cause)))
        }
        What::RetryExhausted { attempts: 1 } => {
            (Tone::Bad, "retry.exhausted: the only delay is used up; it repeats".to_string())
        }
        What::RetryExhausted { attempts } => {
            (Tone::Bad, format!("retry.exhausted: all {attempts} delays are used up; the last repeats"))
        }
        What::Alert { about: About::Failing, nth: 1, affected, .. } => {
            let affected: Vec<&str> = affected.iter().map(UnitName::as_str).collect();
            let affected = match affected.is_empty() {
                true => String::new(),
                false => format!("; affected: {}", affected.join(", ")),
            };
            (Tone::Told, format!("alert ({} failure{affected})", ordinal(last_failure)))
        }
        What::Alert { about: About::Failing, .. } => {
            (Tone::Told, format!("alert, a repeat ({} failure)", ordinal(last_failure)))
        }
        What::Alert { about: About::Recovered, .. } => (Tone::Told, "recovery alert".to_string()),
        What::Alert { about, .. } => (Tone::Told, format!("alert: {}", about.as_str().replace('-', " "))),
        What::Killed => {
            let timeout = exact(spec.stop.timeout);
            (Tone::Plain, format!("SIGKILL: it did not end within stop.timeout = \"{timeout}\""))
        }
        What::Recovered { down } => (Tone::Good, format!("recovered after {}", span(*down))),
        What::EpisodeEnded { failures } => {
            let told = line.steps.get(index + 1).is_some_and(|next| {
                matches!(next.what, What::Alert { about: About::Recovered, .. }) && next.at == step.at
            });
            let ready = exact(spec.restart.reset_after);
            let told = if told { "; recovery alert" } else { "" };
            (
                Tone::Good,
                format!("episode over after {ready}: {} forgotten{told}", counted(*failures, "failure")),
            )
        }
        What::GaveUp { failures } => {
            let why = match spec.restart.policy {
                RestartPolicy::Never => "restart.policy = \"never\"".to_string(),
                RestartPolicy::Always | RestartPolicy::OnFailure => {
                    format!("restart.give_up_after = {}", spec.restart.give_up_after)
                }
            };
            let after = counted(*failures, "failure");
            (Tone::Told, format!("gave up after {after} ({why}): held until `upright clear {name}`"))
        }
        What::Finished => (Tone::Plain, "finished".to_string()),
    }
}

fn totals(asked: &Asked<'_>, line: &Timeline) -> Vec<(&'static str, String)> {
    let spec = asked.spec;
    let alert = match line.first_alert_after {
        Some(wait) if wait.most.is_zero() => "at the first failure".to_string(),
        Some(wait) => format!("{} after the first failure", span(wait)),
        None => {
            let after = ordinal(spec.alert.after_failures);
            let in_a_row = longest_row(line);
            format!("none: it comes with the {after} failure in a row; here the longest row is {in_a_row}")
        }
    };
    let count = |is: fn(&About) -> bool| {
        let alerts = line.steps.iter().filter_map(|step| subject(&step.what));
        alerts.filter(is).count()
    };
    let raised = count(|about| *about != About::Recovered);
    let alerts = match count(|about| *about == About::Recovered) {
        0 => raised.to_string(),
        1 => format!("{raised}, and the recovery"),
        many => format!("{raised}, and {many} recoveries"),
    };
    let ends = match line.ends {
        End::Failed => "failed: held until somebody comes".to_string(),
        End::Active | End::Inactive => line.ends.as_str().to_string(),
    };
    let mut totals = vec![
        ("first alert", alert),
        ("alerts", alerts),
        ("worst minute", counted(line.restarts_in_worst_minute, "restart")),
        ("in the end", ends),
    ];
    if asked.every < spec.restart.reset_after && forgets_while_hung(line) {
        let ready = exact(spec.restart.reset_after);
        totals.push((
            "note",
            format!(
                "restart.reset_after = \"{ready}\" is over before [health] has found that it hangs: such failures \
                 are never in a row; make reset_after longer, or interval and threshold smaller"
            ),
        ));
    }
    totals
}

/// An episode ends although the run that is up then is found to hang later.
fn forgets_while_hung(line: &Timeline) -> bool {
    let mut ended = false;
    line.steps.iter().any(|step| match step.what {
        What::EpisodeEnded { .. } => {
            ended = true;
            false
        }
        What::Started { .. } => {
            ended = false;
            false
        }
        What::Failed { .. } => ended,
        What::Ready
        | What::Unhealthy
        | What::RetryExhausted { .. }
        | What::Alert { .. }
        | What::Killed
        | What::Recovered { .. }
        | What::GaveUp { .. }
        | What::Finished => false,
    })
}

fn subject(what: &What) -> Option<About> {
    if let What::Alert { about, .. } = what { Some(*about) } else { None }
}

fn longest_row(line: &Timeline) -> u32 {
    let count = |step: &Step| if let What::Failed { failures, .. } = step.what { failures } else { 0 };
    line.steps.iter().map(count).max().unwrap_or(0)
}

/// The same for programs.
pub fn as_json(asked: &Asked<'_>, line: &Timeline) -> Value {
    let how = match asked.how {
        How::Exit => "exit",
        How::Hang => "hang",
        How::NeverReady => "never-ready",
    };
    let alerts = line.steps.iter().filter(|step| matches!(step.what, What::Alert { .. })).count();
    let names: Vec<&str> = line.stand_ins.iter().map(UnitName::as_str).collect();
    json!({
        "schema_version": SCHEMA_VERSION,
        "unit": asked.spec.name.as_str(),
        "failures": asked.failures,
        "how": how,
        "every_ms": ms(asked.every),
        "taken_as_ready": names,
        "jitter_percent": asked.spec.restart.jitter_percent,
        "timeline": line.steps.iter().map(step_as_json).collect::<Vec<_>>(),
        "totals": {
            "first_alert_after_ms": line.first_alert_after.map(|wait| ms(wait.least)),
            "first_alert_after_max_ms": line.first_alert_after.map(|wait| ms(wait.most)),
            "alerts": alerts,
            "worst_restarts_per_minute": line.restarts_in_worst_minute,
            "ends": line.ends.as_str(),
        },
    })
}

/// `offset_ms` since the first start; with jitter at most `offset_max_ms`.
fn step_as_json(step: &Step) -> Value {
    let mut value = json!({
        "offset_ms": ms(step.at.least),
        "offset_max_ms": ms(step.at.most),
        "event": step.what.event(),
    });
    let more = match &step.what {
        What::Started { restart } => json!({ "restart": restart }),
        What::Ready | What::Unhealthy | What::Killed | What::Finished => json!({}),
        What::Failed { failures, cause, restart_in } => json!({
            "failures": failures,
            "cause": cause,
            "restart_in_ms": restart_in.map(|wait| ms(wait.least)),
            "restart_in_max_ms": restart_in.map(|wait| ms(wait.most)),
        }),
        What::RetryExhausted { attempts } => json!({ "attempts": attempts }),
        What::Alert { about, nth, message, affected } => json!({
            "kind": about.as_str(),
            "nth": nth,
            "message": message,
            "affected": affected.iter().map(UnitName::as_str).collect::<Vec<_>>(),
        }),
        What::Recovered { down } => json!({ "down_ms": ms(down.least), "down_max_ms": ms(down.most) }),
        What::EpisodeEnded { failures } | What::GaveUp { failures } => json!({ "failures": failures }),
    };
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
