//! `upright alert list`: what people were to be told, and whether they were.
//!
//! Refuses: hiding what went nowhere. An alert that no channel takes says "no channel".

use anstyle::AnsiColor;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use jiff::Timestamp;
use unicode_width::UnicodeWidthStr;

use crate::api::types::{AlertDelivery, AlertLine, AlertList};
use crate::cli::args::AlertListArgs;
use crate::cli::context::{Context, Fail, Form, now};
use crate::cli::render::{Look, color, cut, escape_line};
use crate::cli::{quiet, when};

const HEADER: [&str; 6] = ["ID", "WHEN", "UNIT", "WHAT", "CHANNELS", "MESSAGE"];
const GAP: usize = 2;
/// Narrower than this a message says nothing; such a terminal wraps.
const MESSAGE_COLUMNS_MIN: usize = 24;

/// # Errors
/// The daemon cannot be asked.
pub fn list(context: &mut Context, args: &AlertListArgs) -> Result<u8, Fail> {
    let path = format!("/v1/alerts?limit={}", args.lines);
    let list: AlertList = context.client.get(&path).map_err(|error| context.fail(error))?;
    match context.form {
        Form::Json => context.print_json(&list)?,
        Form::Text => {
            let text = render_table(&list, now(), &context.look);
            context.print(&text)?;
        }
    }
    Ok(0)
}

/// The table, newest first; below it why something did not arrive.
pub fn render_table(list: &AlertList, now: Timestamp, look: &Look) -> String {
    if list.alerts.is_empty() {
        return "no alerts\n".to_string() + &quiet::render_mutes(&list.mutes, look);
    }
    let mut rows: Vec<[String; 6]> = list.alerts.iter().map(|alert| cells(alert, now)).collect();
    fit(&mut rows, look.width);
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(HEADER);
    for row in &rows {
        table.add_row(row);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        let right = if index + 1 < HEADER.len() { 2 } else { 0 };
        column.set_padding((0, right));
    }
    let mut text = String::new();
    for (index, line) in table.to_string().lines().enumerate() {
        let line = line.trim_end();
        let row = index.checked_sub(1).and_then(|index| list.alerts.get(index).zip(rows.get(index)));
        match row {
            None => text.push_str(&look.paint.bold(line)),
            // The widths are right already, so the colour can come last.
            Some((alert, row)) if !is_well(alert) => {
                let painted = look.paint.with(color(AnsiColor::Yellow), &row[4]);
                text.push_str(&line.replacen(&row[4], &painted, 1));
            }
            Some(_) => text.push_str(line),
        }
        text.push('\n');
    }
    text + &notes(list) + &quiet::render_mutes(&list.mutes, look)
}

fn cells(alert: &AlertLine, now: Timestamp) -> [String; 6] {
    [
        escape_line(&alert.id),
        when::ago(&alert.ts, now),
        alert.unit.as_deref().map_or_else(|| "-".to_string(), escape_line),
        kind(alert),
        channels(alert),
        escape_line(&alert.message),
    ]
}

fn kind(alert: &AlertLine) -> String {
    let taken = if alert.acknowledged { " (taken)" } else { "" };
    format!("{}{taken}", escape_line(&alert.kind))
}

fn channels(alert: &AlertLine) -> String {
    if alert.channels.is_empty() {
        return "no channel".to_string();
    }
    let one = |channel: &AlertDelivery| {
        let tries = match (channel.state.as_str(), channel.attempts) {
            ("delivered", _) | (_, 0) => String::new(),
            (_, 1) => " (1 try)".to_string(),
            (_, tries) => format!(" ({tries} tries)"),
        };
        format!("{} {}{tries}", escape_line(&channel.channel), escape_line(&channel.state))
    };
    alert.channels.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn is_well(alert: &AlertLine) -> bool {
    !alert.channels.is_empty()
        && alert.channels.iter().all(|channel| matches!(channel.state.as_str(), "delivered" | "muted"))
}

/// Cuts the messages, so that a row is one line of the terminal.
fn fit(rows: &mut [[String; 6]], width: Option<usize>) {
    let Some(width) = width else { return };
    let widest = |column: usize| {
        rows.iter().map(|row| row[column].width()).max().unwrap_or(0).max(HEADER[column].len())
    };
    let before: usize = (0..HEADER.len() - 1).map(|column| widest(column) + GAP).sum();
    let left = width.saturating_sub(before).max(MESSAGE_COLUMNS_MIN);
    for row in rows {
        row[5] = cut(&row[5], left);
    }
}

/// Each reason once, of the newest alert that has it.
fn notes(list: &AlertList) -> String {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for channel in list.alerts.iter().flat_map(|alert| &alert.channels) {
        if let Some(error) = channel.error.as_deref().filter(|_| channel.state != "delivered")
            && !seen.contains(&(&channel.channel, error))
        {
            seen.push((&channel.channel, error));
        }
    }
    seen.iter()
        .map(|(channel, error)| format!("note: {}: {}\n", escape_line(channel), escape_line(error)))
        .collect()
}
