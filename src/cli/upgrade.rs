//! `upright upgrade`: have the daemon swapped for the binary on disk, wait, tell what came of it.
//!
//! Refuses: naming a file. It is the one that the daemon was started from.

use std::time::Duration;

use crate::api::client::ClientError;
use crate::api::types::UpgradeStatus;
use crate::base::time::Monotonic;
use crate::cli::args::UpgradeArgs;
use crate::cli::context::{Context, EXIT_FAILED, EXIT_TIMEOUT, Fail, Form};
use crate::cli::render::{escape_line, took};
use crate::sys::clock;

/// Between two questions while one daemon leaves and the next begins.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// # Errors
/// The daemon cannot be asked, refuses, has gone back to its old binary, or is not done in time.
pub fn run(context: &mut Context, args: &UpgradeArgs) -> Result<u8, Fail> {
    let begun = clock::monotonic();
    let deadline = begun + args.timeout;
    let nothing = serde_json::json!({});
    let started: UpgradeStatus = context
        .client
        .post("/v1/upgrade", &nothing, Some(args.timeout))
        .map_err(|error| context.fail(error))?;
    let ended = match started.state.as_str() {
        "already" => started,
        _ => wait(context, &started, args.timeout, deadline)?,
    };
    let spent = clock::monotonic().since(begun);
    match context.form {
        Form::Json => context.print_json(&ended)?,
        Form::Text if ended.state == "failed" => {}
        Form::Text => context.print(&render_ended(&ended, spent))?,
    }
    if ended.state == "failed" { Err(failed(&ended)) } else { Ok(0) }
}

/// Asks until it has ended. That nobody answers for a moment is part of it.
fn wait(
    context: &Context,
    started: &UpgradeStatus,
    timeout: Duration,
    deadline: Monotonic,
) -> Result<UpgradeStatus, Fail> {
    loop {
        match context.client.get::<UpgradeStatus>("/v1/upgrade") {
            Ok(now) if now.number >= started.number && now.state != "running" => return Ok(now),
            // Another engine, and nobody has asked the keeper.
            Ok(now) if now.number < started.number && now.state != "running" => return Err(lost(started)),
            Ok(_)
            | Err(ClientError::Unreachable { .. } | ClientError::Broken(_) | ClientError::Timeout(_))
            | Err(ClientError::Api { status: 503, .. }) => {}
            Err(error @ ClientError::Api { .. }) => return Err(context.fail(error)),
        }
        if clock::monotonic() >= deadline {
            let (from, to) = (&started.from, &started.to);
            let limit = crate::base::duration::Pretty(timeout);
            let message = format!("the upgrade from {from} to {to} has not ended within {limit}");
            let help = "`upright events` tells its end when it comes".to_string();
            return Err(Fail::new(EXIT_TIMEOUT, message, help));
        }
        std::thread::park_timeout(ASK_INTERVAL); // nobody unparks us
    }
}

/// The line of an upgrade that did not fail.
pub fn render_ended(ended: &UpgradeStatus, spent: Duration) -> String {
    let (from, to) = (escape_line(&ended.from), escape_line(&ended.to));
    match ended.state.as_str() {
        "already" => format!("the binary on disk is the one that runs ({from}): nothing to do\n"),
        _ => format!("upgraded from {from} to {to} in {}; no service was touched\n", took(spent)),
    }
}

fn lost(started: &UpgradeStatus) -> Fail {
    let (from, to) = (&started.from, &started.to);
    let message = format!("cannot upgrade from {from} to {to}: the engine died before it began");
    Fail::new(EXIT_FAILED, message, "nothing was changed; try again".to_string())
}

fn failed(ended: &UpgradeStatus) -> Fail {
    let (from, to) = (&ended.from, &ended.to);
    let why = ended.message.as_deref().unwrap_or("it does not say why");
    let message = format!("cannot upgrade from {from} to {to}: {why}");
    Fail::new(EXIT_FAILED, message, format!("{from} goes on, and no service was touched"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_at_the_end() {
        let ended = |state: &str| UpgradeStatus {
            number: 1,
            state: state.into(),
            from: "0.1.0".into(),
            to: "0.2.0".into(),
            message: Some("its engine exited with code 1".into()),
        };
        let spent = Duration::from_millis(1_200);
        let done = render_ended(&ended("done"), spent);
        assert_eq!(done, "upgraded from 0.1.0 to 0.2.0 in 1.2s; no service was touched\n");
        let fail = failed(&ended("failed"));
        assert_eq!(fail.code, 1);
        assert_eq!(fail.message, "cannot upgrade from 0.1.0 to 0.2.0: its engine exited with code 1");
    }
}
