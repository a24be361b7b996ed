//! `upright logs`: what units wrote.
//!
//! Refuses: letting a service drive the terminal (its bytes are escaped, unless somebody asks for
//! them raw), and losing its place: a stream that breaks is taken up where it was.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use anstyle::AnsiColor;

use crate::api::client::{ClientError, LogNews, escaped};
use crate::api::types::{ErrorBody, LogLine, UnitList};
use crate::base::base64;
use crate::cli::EXIT_USAGE;
use crate::cli::args::{Lines, LogsArgs};
use crate::cli::context::{Context, EXIT_FAILED, EXIT_UNKNOWN_UNIT, Fail, Form};
use crate::cli::events::resuming;
use crate::cli::out::Out;
use crate::cli::render::{Look, color, escape_bytes, escape_line};
use crate::cli::{status, when};

const PREFIX_COLORS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::Red,
];

/// Longest list of places that a request may carry: its head is at most 16 KiB, and each comma and
/// slash takes three bytes in it.
const PLACES_BYTES_MAX: usize = 8 * 1024;

/// The names before the lines; none when there is one unit only.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    names: Vec<String>,
    columns: usize,
}

impl Prefixes {
    pub fn of(mut names: Vec<String>) -> Prefixes {
        names.sort_unstable();
        names.dedup();
        let columns = names.iter().map(String::len).max().unwrap_or(0);
        Prefixes { names, columns }
    }
}

/// Whether lines begin with their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamps {
    Hidden,
    Shown,
}

/// # Errors
/// The daemon cannot be asked, a name is unknown, or an option makes no sense.
pub fn run(context: &mut Context, args: &LogsArgs) -> Result<u8, Fail> {
    if args.raw && args.units.len() != 1 {
        let help = "without --raw each line is marked with its unit".to_string();
        return Err(Fail::new(
            EXIT_USAGE,
            "--raw takes one unit: bytes of several could not be told apart",
            help,
        ));
    }
    let query = query(context, args)?;
    let prefixes = match args.units.as_slice() {
        [_] => None,
        [] => Some(Prefixes::of(all_names(context)?)),
        units => Some(Prefixes::of(units.to_vec())),
    };
    let stamps = if args.timestamps { Stamps::Shown } else { Stamps::Hidden };
    let mut shown = Shown { form: Shape::of(args, context.form), prefixes, stamps, lines: 0 };
    let mut places = Places::default();
    let mut incomplete = false;
    let ended = resuming(context, |context, attempt| {
        let path = match places.query() {
            Some(after) => format!("/v1/logs?{}{after}", query.base),
            None => format!("/v1/logs?{}{}", query.base, query.begin),
        };
        let Context { client, out, look, .. } = context;
        client.log(&path, |news| {
            attempt.works();
            match news {
                LogNews::Line(line, id) => {
                    places.note(id.as_deref().unwrap_or_default());
                    let told = shown.line(out, look, &line);
                    if line.kind == "line" || line.ts > places.newest {
                        places.newest = line.ts;
                    }
                    breaks(told)
                }
                LogNews::Place(id) => {
                    places.note(&id);
                    ControlFlow::Continue(())
                }
                LogNews::Pause => breaks(out.flush()),
                LogNews::End(unreadable) => {
                    unreadable.iter().for_each(|why| eprintln_quietly(&format!("warning: {why}")));
                    incomplete |= !unreadable.is_empty();
                    ControlFlow::Break(shown.end(out, &places))
                }
            }
        })
    });
    match (ended, args.units.as_slice()) {
        (Err(fail), [name]) if fail.code == EXIT_UNKNOWN_UNIT => {
            let error = ErrorBody { code: "unit.unknown".into(), message: fail.message, help: fail.help };
            Err(status::unknown_or(context, name, ClientError::Api { status: 404, error }))
        }
        (Ok(_), _) if incomplete => Ok(EXIT_FAILED),
        (ended, _) => ended,
    }
}

fn breaks(written: std::io::Result<ControlFlow<()>>) -> ControlFlow<std::io::Result<()>> {
    match written {
        Ok(ControlFlow::Continue(())) => ControlFlow::Continue(()),
        Ok(ControlFlow::Break(())) => ControlFlow::Break(Ok(())),
        Err(cause) => ControlFlow::Break(Err(cause)),
    }
}

/// What is asked for, as it stands in the address.
struct Query {
    /// What each request says.
    base: String,
    /// What only the first one says: where to begin.
    begin: String,
}

fn query(context: &Context, args: &LogsArgs) -> Result<Query, Fail> {
    // In a pipe there are lines only: whoever counts them should not count ours.
    let seen = context.look.width.is_some() && context.form == Form::Text && !args.raw;
    let mut base = format!("follow={}&marks={}", args.follow, args.marks || seen);
    for unit in &args.units {
        base.push_str(&format!("&unit={}", escaped(unit)));
    }
    if args.raw {
        base.push_str("&raw=true");
    }
    if let Some(pattern) = &args.grep {
        base.push_str(&format!("&grep={}", escaped(pattern)));
    }
    if let Some(stream) = &args.stream {
        base.push_str(&format!("&stream={stream}"));
    }
    if let Some(text) = &args.until {
        let until = when::asked(context, "--until", text)?;
        base.push_str(&format!("&until={}", until.as_microsecond()));
    }
    let mut begin = match args.lines {
        None => String::new(),
        Some(Lines::All) => "&lines=all".to_string(),
        Some(Lines::Last(lines)) => format!("&lines={lines}"),
    };
    if let Some(text) = &args.since {
        let since = when::asked(context, "--since", text)?;
        begin.push_str(&format!("&since={}", since.as_microsecond()));
    }
    Ok(Query { base, begin })
}

fn all_names(context: &Context) -> Result<Vec<String>, Fail> {
    let list: UnitList = context.client.get("/v1/units").map_err(|error| context.fail(error))?;
    Ok(list.units.into_iter().map(|unit| unit.name).collect())
}

/// How far we are in each stream.
#[derive(Default)]
struct Places {
    /// By stream: the place, and when it was noted.
    of: BTreeMap<String, (String, u64)>,
    noted: u64,
    /// Time of the newest line, RFC 3339.
    newest: String,
}

impl Places {
    fn note(&mut self, id: &str) {
        for place in id.split(',') {
            if let Some((stream, at)) = place.split_once('=') {
                let known = self.of.get(stream).is_some_and(|(known, _)| known == at);
                if !known {
                    self.noted += 1;
                    self.of.insert(stream.to_string(), (at.to_string(), self.noted));
                }
            }
        }
    }

    /// The part of a request that goes on from here. Of more streams than fit into one, those that
    /// have been quiet longest are taken up by time.
    fn query(&self) -> Option<String> {
        if self.of.is_empty() {
            return None;
        }
        let mut places: Vec<(&String, &(String, u64))> = self.of.iter().collect();
        places.sort_by_key(|(_, (_, noted))| std::cmp::Reverse(*noted));
        let mut after = String::new();
        let mut left = places.len();
        for (stream, (at, _)) in places {
            if after.len() + stream.len() + at.len() > PLACES_BYTES_MAX {
                break;
            }
            after.push_str(&format!("{stream}={at},"));
            left -= 1;
        }
        let begin = match left {
            0 => "&lines=0".to_string(),
            _ if self.newest.is_empty() => "&lines=0".to_string(),
            _ => format!("&since={}", escaped(&self.newest)),
        };
        Some(format!("&after={}{begin}", escaped(&after)))
    }

    fn all(&self) -> String {
        let places: Vec<String> = self.of.iter().map(|(stream, (at, _))| format!("{stream}={at}")).collect();
        places.join(",")
    }
}

/// How lines are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    /// One object with all of them.
    Json,
    /// An object a line.
    JsonLines,
    Raw,
}

impl Shape {
    fn of(args: &LogsArgs, form: Form) -> Shape {
        match (args.raw, form, args.follow) {
            (true, _, _) => Shape::Raw,
            (false, Form::Text, _) => Shape::Text,
            (false, Form::Json, false) => Shape::Json,
            (false, Form::Json, true) => Shape::JsonLines,
        }
    }
}

struct Shown {
    form: Shape,
    prefixes: Option<Prefixes>,
    stamps: Stamps,
    lines: u64,
}

impl Shown {
    fn line(&mut self, out: &mut Out, look: &Look, line: &LogLine) -> std::io::Result<ControlFlow<()>> {
        self.lines += 1;
        let json = || serde_json::to_string(line).unwrap_or_default();
        match self.form {
            Shape::Text => out.write(&(render_line(line, self.prefixes.as_ref(), self.stamps, look) + "\n")),
            Shape::Json if self.lines == 1 => out.write(&format!("{{\n  \"lines\": [\n    {}", json())),
            Shape::Json => out.write(&format!(",\n    {}", json())),
            Shape::JsonLines => out.write(&(json() + "\n")),
            Shape::Raw if line.kind == "line" => {
                out.write_bytes(&line.base64.as_deref().and_then(base64::decode).unwrap_or_default())
            }
            Shape::Raw => {
                // Not among the bytes, and not in silence.
                eprintln_quietly(&format!("{}: {}", line.unit, line.line));
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    fn end(&mut self, out: &mut Out, places: &Places) -> std::io::Result<()> {
        if self.form == Shape::Json {
            let begin = if self.lines == 0 { "{\n  \"lines\": [" } else { "\n  " };
            let next = serde_json::to_string(&places.all()).unwrap_or_default();
            let _ = out.write(&format!("{begin}],\n  \"next\": {next}\n}}\n"))?; // it has left: the same end
        }
        let _ = out.flush()?; // the same
        Ok(())
    }
}

fn eprintln_quietly(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{}", escape_line(text)); // a note only
}

/// One line, behind its unit's name when there are several; or what happened between two.
pub fn render_line(line: &LogLine, prefixes: Option<&Prefixes>, stamps: Stamps, look: &Look) -> String {
    let stamp = match stamps {
        Stamps::Shown => look.paint.dim(&when::local(&line.ts, &look.zone)) + " ",
        Stamps::Hidden => String::new(),
    };
    if line.kind != "line" {
        let (unit, text) = (escape_line(&line.unit), escape_line(&line.line));
        return stamp
            + &match line.kind.as_str() {
                "started" | "exited" => look.paint.dim(&format!("── {unit} {text} ──")),
                _ => look.paint.with(color(AnsiColor::Yellow), &format!("── {unit}: {text} ──")),
            };
    }
    let text = match line.base64.as_deref().and_then(base64::decode) {
        Some(bytes) => exact(&bytes, line.piece.as_deref()),
        None => escape_line(&line.line),
    };
    let Some(prefixes) = prefixes else { return stamp + &text };
    let index = prefixes.names.binary_search(&line.unit).unwrap_or_default();
    let style = color(PREFIX_COLORS[index % PREFIX_COLORS.len()]);
    let name = format!("{:columns$} │", escape_line(&line.unit), columns = prefixes.columns);
    format!("{} {stamp}{text}", look.paint.with(style, &name))
}

/// A line whose bytes are no text: each that is none is shown as what it is.
fn exact(bytes: &[u8], piece: Option<&str>) -> String {
    let text = escape_bytes(bytes).replace('\n', "\\n");
    match piece {
        Some("beginning") => text + "…",
        Some("middle") => format!("…{text}…"),
        Some("end") => format!("…{text}"),
        Some(_) | None => text,
    }
}
