//! `upright alert test | ack | mute`: whether alerts arrive, and which are not wanted now.
//!
//! Refuses: calling a test passed that nobody has acknowledged.

use std::time::Duration;

use crate::api::client::READ_TIMEOUT;
use crate::api::types::{
    AckRequest, ActionReply, AlertDelivery, AlertLine, MuteLine, MuteList, MuteRequest, TestRequest,
};
use crate::cli::act;
use crate::cli::args::{AlertAckArgs, AlertMuteArgs, AlertTestArgs};
use crate::cli::context::{Context, EXIT_FAILED, EXIT_TIMEOUT, Fail, Form};
use crate::cli::render::{Look, escape_line};
use crate::cli::when;

/// The daemon answers after 30 s at the latest.
const TEST_TIMEOUT: Duration = Duration::from_secs(40);

/// # Errors
/// The daemon cannot be asked, or a channel is not there.
pub fn test(context: &mut Context, args: &AlertTestArgs) -> Result<u8, Fail> {
    let request = TestRequest { channels: args.channels.clone() };
    let path = format!("/v1/alerts/test?wait={}", !args.no_wait);
    let replied = context.client.post::<AlertLine>(&path, &request, Some(TEST_TIMEOUT));
    let alert = replied.map_err(|error| context.fail(error))?;
    match context.form {
        Form::Json => context.print_json(&alert)?,
        Form::Text => {
            let text = render_test(&alert);
            context.print(&text)?;
        }
    }
    let states = || alert.channels.iter().map(|channel| channel.state.as_str());
    Ok(match args.no_wait {
        true => 0,
        false if states().any(|state| state == "parked") || alert.channels.is_empty() => EXIT_FAILED,
        false if states().any(|state| state == "pending") => EXIT_TIMEOUT,
        false => 0,
    })
}

/// A line a channel.
pub fn render_test(alert: &AlertLine) -> String {
    if alert.channels.is_empty() {
        return "no channel takes it: `upright alert list` shows what went nowhere\n".to_string();
    }
    alert.channels.iter().map(line).collect()
}

fn line(channel: &AlertDelivery) -> String {
    let name = escape_line(&channel.channel);
    let why = channel.error.as_deref().map(|error| format!(": {}", escape_line(error))).unwrap_or_default();
    let tries = match channel.attempts {
        0 => "no try yet".to_string(),
        1 => "1 try".to_string(),
        tries => format!("{tries} tries"),
    };
    match channel.state.as_str() {
        "delivered" => format!("{name}: delivered\n"),
        "pending" => format!("{name}: not delivered yet, {tries}{why}; it is tried on\n"),
        state => format!("{name}: {}{why}\n", escape_line(state)),
    }
}

/// # Errors
/// The daemon cannot be asked.
pub fn ack(context: &mut Context, args: &AlertAckArgs) -> Result<u8, Fail> {
    let request = AckRequest { alerts: args.alerts.clone() };
    let replied = context.client.post::<ActionReply>("/v1/alerts/ack", &request, Some(READ_TIMEOUT));
    let reply = replied.map_err(|error| context.fail(error))?;
    match context.form {
        Form::Json => context.print_json(&reply)?,
        Form::Text => {
            let lines = reply.outcomes.iter().map(|outcome| {
                let unit = escape_line(&outcome.unit);
                match outcome.outcome.as_str() {
                    "done" => format!("{unit}: taken; you will be told when it is over\n"),
                    _ => format!("{unit}: cannot be taken: {}\n", act::why(outcome)),
                }
            });
            let text: String = lines.collect();
            context.print(if text.is_empty() { "nothing to take\n" } else { &text })?;
        }
    }
    Ok(act::exit_code(&reply))
}

/// # Errors
/// The daemon cannot be asked, or a unit is not there.
pub fn mute(context: &mut Context, args: &AlertMuteArgs) -> Result<u8, Fail> {
    let for_s = args.wait.map_or(0, |wait| wait.as_secs().max(1));
    let request = MuteRequest { units: args.units.clone(), for_s };
    let replied = context.client.post::<MuteList>("/v1/alerts/mute", &request, Some(READ_TIMEOUT));
    let reply = replied.map_err(|error| context.fail(error))?;
    match context.form {
        Form::Json => context.print_json(&reply)?,
        Form::Text => {
            let text = match reply.mutes.as_slice() {
                [] => "nothing is muted\n".to_string(),
                mutes => render_mutes(mutes, &context.look),
            };
            context.print(&text)?;
        }
    }
    Ok(0)
}

/// A line a mute.
pub fn render_mutes(mutes: &[MuteLine], look: &Look) -> String {
    let line = |mute: &MuteLine| {
        let whose = mute.unit.as_deref().map_or_else(|| "all units".to_string(), escape_line);
        format!("alerts of {whose} are muted until {}\n", when::local(&mute.until, &look.zone))
    };
    mutes.iter().map(line).collect()
}
