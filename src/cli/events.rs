//! `upright events`: what happened, a line each.
//!
//! Refuses: losing its place. A followed stream that breaks is taken up at the next id.

use std::io::Write;
use std::ops::ControlFlow;
use std::time::Duration;

use anstyle::AnsiColor;

use crate::api::client::{ClientError, escaped};
use crate::api::types::{EventLine, EventList};
use crate::base::time::Monotonic;
use crate::cli::args::EventsArgs;
use crate::cli::context::{Context, Fail, Form};
use crate::cli::render::{Look, color, escape_line};
use crate::cli::when;
use crate::sys::clock;

/// How long a followed stream that broke is asked for again: an engine is back in well
/// under a second, a daemon that was stopped is not coming.
pub const RESUME_WITHIN: Duration = Duration::from_secs(10);
pub const RESUME_PAUSE: Duration = Duration::from_millis(200);

/// # Errors
/// The daemon cannot be asked, or `--since` is no time.
pub fn run(context: &mut Context, args: &EventsArgs) -> Result<u8, Fail> {
    let mut query = format!("limit={}", args.lines);
    if let Some(text) = &args.since {
        let since = when::asked(context, "--since", text)?;
        query.push_str(&format!("&since={}", escaped(&since.to_string())));
    }
    if args.follow {
        return follow(context, &query);
    }
    let list: EventList =
        context.client.get(&format!("/v1/events?{query}")).map_err(|error| context.fail(error))?;
    match context.form {
        Form::Json => context.print_json(&list)?,
        Form::Text => {
            let lines = list.events.iter().map(|event| render_line(event, &context.look) + "\n");
            let text: String = lines.collect();
            context.print(&text)?;
        }
    }
    Ok(0)
}

fn follow(context: &mut Context, query: &str) -> Result<u8, Fail> {
    let mut seen: Option<u64> = None;
    resuming(context, |context, attempt| {
        let path = match seen {
            // What came between the two streams is asked for by its id.
            Some(id) => format!("/v1/events?follow=true&after_id={id}"),
            None => format!("/v1/events?follow=true&{query}"),
        };
        let Context { client, out, look, form, .. } = context;
        client.stream(&path, |event: EventLine| {
            attempt.works();
            if seen.is_some_and(|seen| event.id <= seen) {
                return ControlFlow::Continue(());
            }
            seen = Some(event.id);
            let line = match form {
                Form::Json => serde_json::to_string(&event).unwrap_or_default(),
                Form::Text => render_line(&event, look),
            };
            put(out, &line)
        })
    })
}

/// Writes and flushes one line of a stream; breaks with the result when that is the end.
pub fn put(out: &mut crate::cli::out::Out, line: &str) -> ControlFlow<std::io::Result<()>> {
    let written = out.write(line).and_then(|_| out.write("\n")).and_then(|_| out.flush());
    match written {
        Ok(ControlFlow::Continue(())) => ControlFlow::Continue(()),
        Ok(ControlFlow::Break(())) => ControlFlow::Break(Ok(())),
        Err(cause) => ControlFlow::Break(Err(cause)),
    }
}

/// When the last stream was seen to work.
pub struct Attempt {
    worked: Option<Monotonic>,
}

impl Attempt {
    pub fn works(&mut self) {
        self.worked = Some(clock::monotonic());
    }
}

/// Runs `once` again while its stream only broke because the engine went away for a moment.
///
/// # Errors
/// The first attempt's error, or the last one's after `RESUME_WITHIN` without a stream.
#[expect(clippy::disallowed_methods, reason = "nobody reports that the daemon is back")]
pub fn resuming(
    context: &mut Context,
    mut once: impl FnMut(&mut Context, &mut Attempt) -> Result<Option<std::io::Result<()>>, ClientError>,
) -> Result<u8, Fail> {
    let mut attempt = Attempt { worked: None };
    let mut lost_at: Option<Monotonic> = None;
    loop {
        let begun = clock::monotonic();
        let ended = once(context, &mut attempt);
        let streamed = attempt.worked.is_some_and(|worked| worked >= begun);
        // A quiet stream that lasted has worked as well.
        if streamed || clock::monotonic().since(begun) > RESUME_WITHIN {
            lost_at = None;
        }
        let error = match ended {
            Ok(Some(written)) => return Ok(written.map(|()| 0)?),
            Ok(None) => ClientError::Broken("the stream ended".into()),
            Err(error @ (ClientError::Api { .. } | ClientError::Timeout(_))) => {
                return Err(context.fail(error));
            }
            Err(error @ (ClientError::Unreachable { .. } | ClientError::Broken(_))) => error,
        };
        let first_try = attempt.worked.is_none() && lost_at.is_none();
        if first_try && matches!(error, ClientError::Unreachable { .. }) {
            return Err(context.fail(error));
        }
        let since = *lost_at.get_or_insert_with(|| {
            let mut err = std::io::stderr().lock();
            let _ = writeln!(err, "the stream broke; asking again"); // a note only
            clock::monotonic()
        });
        if clock::monotonic().since(since) > RESUME_WITHIN {
            return Err(context.fail(error));
        }
        std::thread::sleep(RESUME_PAUSE);
    }
}

/// One event on one line.
pub fn render_line(event: &EventLine, look: &Look) -> String {
    let level = format!("{:5}", escape_line(&event.level));
    let level = match event.level.as_str() {
        "ERROR" => look.paint.with(color(AnsiColor::Red), &level),
        "WARN" => look.paint.with(color(AnsiColor::Yellow), &level),
        _ => look.paint.dim(&level),
    };
    let at = look.paint.dim(&when::local(&event.ts, &look.zone));
    let name = format!("{:18}", escape_line(&event.event));
    let unit = match &event.unit {
        // Most messages begin with the name, as sentences do; once is enough.
        Some(unit) if event.message.split(' ').next() == Some(unit) => String::new(),
        Some(unit) => format!("{}: ", look.paint.bold(&escape_line(unit))),
        None => String::new(),
    };
    format!("{at}  {level}  {name}  {unit}{}", escape_line(&event.message))
}
