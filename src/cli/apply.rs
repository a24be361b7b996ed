//! `upright apply` (`update`): have the daemon reread its files, wait, tell what came of it.
//!
//! Refuses: saying "done" before the daemon did.

use crate::api::client::READ_TIMEOUT;
use crate::api::types::{ConfigApplied, UnitOutcome};
use crate::cli::args::ApplyArgs;
use crate::cli::context::{Context, EXIT_FAILED, Fail, Form};
use crate::cli::render::{Look, escape_line};
use crate::cli::{act, plan};

/// # Errors
/// The daemon cannot be asked, or is not done in time.
pub fn run(context: &mut Context, args: &ApplyArgs) -> Result<u8, Fail> {
    let path = format!("/v1/config/apply?wait={}", !args.no_wait);
    let timeout = if args.no_wait { Some(args.timeout.unwrap_or(READ_TIMEOUT)) } else { args.timeout };
    let nothing = serde_json::json!({});
    let applied: ConfigApplied =
        context.client.post(&path, &nothing, timeout).map_err(|error| context.fail(error))?;
    match context.form {
        Form::Json => context.print_json(&applied)?,
        Form::Text => {
            let text = render_applied(&applied, &context.look);
            context.print(&text)?;
        }
    }
    Ok(exit_code(&applied))
}

/// A unit that did not get where it should weighs more than a file that is wrong.
fn exit_code(applied: &ConfigApplied) -> u8 {
    if applied.outcomes.iter().any(is_failed) { EXIT_FAILED } else { plan::exit_code(&applied.plan) }
}

/// It did not get there, or did and failed before the answer was written.
fn is_failed(outcome: &UnitOutcome) -> bool {
    outcome.outcome == "failed" || matches!(outcome.state.as_str(), "backoff" | "failed")
}

/// What was done, as `plan` has it, then how it went where there was something to wait for.
pub fn render_applied(applied: &ConfigApplied, look: &Look) -> String {
    let mut text = plan::render_plan(&applied.plan, look);
    for outcome in &applied.outcomes {
        let unit = escape_line(&outcome.unit);
        let line = match outcome.outcome.as_str() {
            "done" | "already" if is_failed(outcome) => {
                format!("{unit}: started, and failed again ({})\n", escape_line(&outcome.state))
            }
            "done" | "already" => {
                format!("{unit}: done ({})\n", state(&outcome.state, applied, &outcome.unit))
            }
            "superseded" => format!("{unit}: another order took its place\n"),
            _ => format!(
                "{unit}: not as it should be ({}): {}\n",
                escape_line(&outcome.state),
                act::why(outcome)
            ),
        };
        text.push_str(&line);
    }
    text
}

/// A unit that is gone has no state.
fn state(state: &str, applied: &ConfigApplied, unit: &str) -> String {
    let removed =
        applied.plan.units.iter().any(|planned| planned.unit == unit && planned.change == "removed");
    if removed { "gone".to_string() } else { escape_line(state) }
}
