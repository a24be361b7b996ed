//! `upright logs`: what units wrote.
//!
//! Refuses: letting a service drive the terminal; its bytes are escaped.

use std::ops::ControlFlow;

use anstyle::AnsiColor;

use crate::api::client::escaped;
use crate::api::types::{LogLine, LogLines, UnitList};
use crate::cli::args::LogsArgs;
use crate::cli::context::{Context, Fail, Form};
use crate::cli::events::{put, resuming};
use crate::cli::render::{Look, color, escape_line};
use crate::cli::status;

const PREFIX_COLORS: [AnsiColor; 6] = [
    AnsiColor::Cyan,
    AnsiColor::Yellow,
    AnsiColor::Green,
    AnsiColor::Magenta,
    AnsiColor::Blue,
    AnsiColor::Red,
];

/// The names before the lines; none when there is one unit only.
#[derive(Clone, Debug, Default)]
pub struct Prefixes {
    names: Vec<String>,
    columns: usize,
}

impl Prefixes {
    pub fn of(mut names: Vec<String>) -> Prefixes {
        names.sort_unstable();
        let columns = names.iter().map(String::len).max().unwrap_or(0);
        Prefixes { names, columns }
    }
}

/// # Errors
/// The daemon cannot be asked, or a name is unknown.
pub fn run(context: &mut Context, args: &LogsArgs) -> Result<u8, Fail> {
    let prefixes = match args.units.as_slice() {
        [_] => None,
        [] => Some(Prefixes::of(all_names(context)?)),
        units => Some(Prefixes::of(units.to_vec())),
    };
    let units: String = args.units.iter().map(|unit| format!("&unit={}", escaped(unit))).collect();
    if args.follow {
        return follow(context, &units, args.lines, prefixes.as_ref());
    }
    let path = format!("/v1/logs?lines={}{units}", args.lines);
    let list: LogLines = match context.client.get(&path) {
        Ok(list) => list,
        Err(error) => return Err(first_stranger(context, &args.units, error)),
    };
    match context.form {
        Form::Json => context.print_json(&list)?,
        Form::Text => {
            let lines =
                list.lines.iter().map(|line| render_line(line, prefixes.as_ref(), &context.look) + "\n");
            let text: String = lines.collect();
            context.print(&text)?;
        }
    }
    Ok(0)
}

fn all_names(context: &Context) -> Result<Vec<String>, Fail> {
    let list: UnitList = context.client.get("/v1/units").map_err(|error| context.fail(error))?;
    Ok(list.units.into_iter().map(|unit| unit.name).collect())
}

fn first_stranger(context: &Context, units: &[String], error: crate::api::client::ClientError) -> Fail {
    match units {
        [name] => status::unknown_or(context, name, error),
        _ => context.fail(error),
    }
}

fn follow(context: &mut Context, units: &str, lines: u32, prefixes: Option<&Prefixes>) -> Result<u8, Fail> {
    let mut begin = lines;
    resuming(context, |context, attempt| {
        let path = format!("/v1/logs?follow=true&lines={begin}{units}");
        let Context { client, out, look, form, .. } = context;
        client.stream(&path, |line: LogLine| {
            attempt.works();
            // After a break the old lines are not shown again.
            begin = 0;
            let text = match form {
                Form::Json => serde_json::to_string(&line).unwrap_or_default(),
                Form::Text => render_line(&line, prefixes, look),
            };
            match put(out, &text) {
                ControlFlow::Continue(()) => ControlFlow::Continue(()),
                ControlFlow::Break(written) => ControlFlow::Break(written),
            }
        })
    })
}

/// One line, behind its unit's name when there are several.
pub fn render_line(line: &LogLine, prefixes: Option<&Prefixes>, look: &Look) -> String {
    let text = escape_line(&line.line);
    let Some(prefixes) = prefixes else { return text };
    let index = prefixes.names.binary_search(&line.unit).unwrap_or_default();
    let style = color(PREFIX_COLORS[index % PREFIX_COLORS.len()]);
    let name = format!("{:columns$} │", escape_line(&line.unit), columns = prefixes.columns);
    format!("{} {text}", look.paint.with(style, &name))
}
