//! `upright signal`: a signal for main processes.
//!
//! Refuses: names that are no signals, before anybody is asked.

use crate::api::client::escaped;
use crate::api::types::{ActionReply, SignalRequest};
use crate::base::signal::Signal;
use crate::cli::EXIT_USAGE;
use crate::cli::act;
use crate::cli::args::SignalArgs;
use crate::cli::context::{Context, Fail, Form};
use crate::cli::render::escape_line;
use crate::cli::status;

/// # Errors
/// No such signal, no such unit, or no daemon.
pub fn run(context: &mut Context, args: &SignalArgs) -> Result<u8, Fail> {
    let Some(signal) = Signal::parse(&args.signal) else { return Err(unknown_signal(&args.signal)) };
    let body = SignalRequest { signal: signal.number().to_string() };
    let mut all = ActionReply { outcomes: Vec::new() };
    for unit in &args.units {
        let path = format!("/v1/units/{}/signal", escaped(unit));
        let timeout = Some(crate::api::client::READ_TIMEOUT);
        match context.client.post::<ActionReply>(&path, &body, timeout) {
            Ok(reply) => all.outcomes.extend(reply.outcomes),
            Err(error) => return Err(status::unknown_or(context, unit, error)),
        }
    }
    match context.form {
        Form::Json => context.print_json(&all)?,
        Form::Text => {
            let lines = all.outcomes.iter().map(|outcome| {
                let unit = escape_line(&outcome.unit);
                match outcome.outcome.as_str() {
                    "done" | "already" | "accepted" => format!("{unit}: {signal} sent\n"),
                    _ => format!("{unit}: cannot send {signal}: {}\n", act::why(outcome)),
                }
            });
            let text: String = lines.collect();
            context.print(&text)?;
        }
    }
    Ok(act::exit_code(&all))
}

fn unknown_signal(text: &str) -> Fail {
    let wanted = format!("SIG{}", text.to_ascii_uppercase().trim_start_matches("SIG"));
    let near = Signal::names().max_by(|a, b| {
        let near = |name: &str| strsim::jaro_winkler(name, &wanted);
        near(a).total_cmp(&near(b))
    });
    let help = near.map(|near| format!("did you mean {near}?"));
    Fail::new(EXIT_USAGE, format!("`{text}` is no signal"), help)
}
