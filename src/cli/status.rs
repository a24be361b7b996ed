//! `upright status`: the table of all, the card of one.
//!
//! Refuses: judging. Every word of state and reason comes from the daemon.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use jiff::Timestamp;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::api::client::escaped;
use crate::api::types::{ConfigHealth, DaemonInfo, Unit, UnitCard, UnitList};
use crate::cli::context::{Context, EXIT_FAILED, EXIT_NOT_ACTIVE, Fail, Form, now};
use crate::cli::render::{Look, cut, escape_line, mark};
use crate::cli::when;
use crate::cli::{events, plan, quiet};

const HEADER: [&str; 7] = ["UNIT", "STATE", "SINCE", "PID", "RESTARTS", "HEALTH", "REASON"];
const GAP: usize = 2;
/// Narrower than this a reason says nothing; such a terminal wraps.
const REASON_COLUMNS_MIN: usize = 16;

/// # Errors
/// The daemon cannot be asked, or a name is unknown.
pub fn run(context: &mut Context, names: &[String]) -> Result<u8, Fail> {
    match names {
        [name] => run_card(context, name),
        names => run_table(context, names),
    }
}

fn run_card(context: &mut Context, name: &str) -> Result<u8, Fail> {
    let path = format!("/v1/units/{}", escaped(name));
    let object: Value = match context.client.get(&path) {
        Ok(object) => object,
        Err(error) => return Err(unknown_or(context, name, error)),
    };
    let card: UnitCard = decoded(&object)?;
    match context.form {
        Form::Json => context.print_json(&object)?,
        Form::Text => {
            let text = render_card(&card, now(), &context.look);
            context.print(&text)?;
        }
    }
    Ok(exit_of_named(&[card.unit]))
}

/// An unknown name is answered with the nearest known one.
pub fn unknown_or(context: &Context, name: &str, error: crate::api::client::ClientError) -> Fail {
    let fail = context.fail(error);
    let unknown = Fail::unknown_unit(name, &[]);
    if fail.code != unknown.code {
        return fail;
    }
    match context.client.get::<UnitList>("/v1/units") {
        Ok(list) => {
            let known: Vec<&str> = list.units.iter().map(|unit| unit.name.as_str()).collect();
            Fail::unknown_unit(name, &known)
        }
        Err(_) => fail,
    }
}

fn run_table(context: &mut Context, names: &[String]) -> Result<u8, Fail> {
    let mut object: Value = context.client.get("/v1/units").map_err(|error| context.fail(error))?;
    let mut list: UnitList = decoded(&object)?;
    if let Some(stranger) = names.iter().find(|name| !list.units.iter().any(|unit| unit.name == **name)) {
        let known: Vec<&str> = list.units.iter().map(|unit| unit.name.as_str()).collect();
        return Err(Fail::unknown_unit(stranger, &known));
    }
    let asked = |name: &str| names.is_empty() || names.iter().any(|asked| asked == name);
    list.units.retain(|unit| asked(&unit.name));
    match context.form {
        Form::Json => {
            if let Some(Value::Array(units)) = object.get_mut("units") {
                units.retain(|unit| unit["name"].as_str().is_some_and(asked));
            }
            context.print_json(&object)?;
        }
        Form::Text => {
            // A daemon that cannot say it now has just said the rest.
            let config = context.client.get::<ConfigHealth>("/v1/config/errors").unwrap_or_default();
            let text = render_table(&list, now(), &context.look) + &render_config(&config, &context.look);
            context.print(&text)?;
        }
    }
    Ok(if names.is_empty() { exit_of_all(&list.units) } else { exit_of_named(&list.units) })
}

fn decoded<T: serde::de::DeserializeOwned>(object: &Value) -> Result<T, Fail> {
    T::deserialize(object).map_err(|cause| {
        let help = "is the daemon of another version? `upright status --json` shows what it says".to_string();
        Fail::new(EXIT_FAILED, format!("cannot read the daemon's answer: {cause}"), help)
    })
}

/// Whoever names a unit asks whether it is active.
fn exit_of_named(units: &[Unit]) -> u8 {
    if units.iter().all(|unit| unit.state == "active") { 0 } else { EXIT_NOT_ACTIVE }
}

/// All that are wanted must be active. After `stop --all` nothing is wanted, and nothing
/// active is no "all active" either.
fn exit_of_all(units: &[Unit]) -> u8 {
    let active = |unit: &Unit| unit.state == "active";
    let well = units.iter().all(|unit| active(unit) || !unit.wanted);
    if well && (units.is_empty() || units.iter().any(active)) { 0 } else { EXIT_NOT_ACTIVE }
}

/// The table, a line a unit, then what is to be known about the daemon itself.
pub fn render_table(list: &UnitList, now: Timestamp, look: &Look) -> String {
    let mut rows: Vec<[String; 7]> = list.units.iter().map(|unit| cells(unit, now)).collect();
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
        let row = index.checked_sub(1).and_then(|index| list.units.get(index).zip(rows.get(index)));
        match row {
            None => text.push_str(&look.paint.bold(line)),
            // The widths are right already, so the colour can come last.
            Some((unit, row)) => {
                let painted = look.paint.with(mark(&unit.state).1, &row[1]);
                text.push_str(&line.replacen(&row[1], &painted, 1));
            }
        }
        text.push('\n');
    }
    text + &notes(&list.daemon, list.units.len(), look)
}

/// What is to be known about the files: nothing where all is well.
pub fn render_config(config: &ConfigHealth, look: &Look) -> String {
    let mut text = plan::render_errors(&config.errors, look);
    if config.unapplied {
        text.push_str("note: files have changed and are not applied; `upright plan` shows what `upright apply` would do\n");
    }
    text
}

fn cells(unit: &Unit, now: Timestamp) -> [String; 7] {
    [
        escape_line(&unit.name),
        format!("{} {}", mark(&unit.state).0, escape_line(&unit.state)),
        when::ago(&unit.since, now),
        unit.pid.map_or_else(|| "-".to_string(), |pid| pid.to_string()),
        unit.restarts.to_string(),
        if unit.health == "none" { "-".to_string() } else { escape_line(&unit.health) },
        escape_line(&reason(unit, now)),
    ]
}

fn reason(unit: &Unit, now: Timestamp) -> String {
    match &unit.next_retry_at {
        Some(at) => format!("{}; next try {}", unit.reason, when::until(at, now)),
        None => unit.reason.clone(),
    }
}

/// Cuts the reasons, so that a row is one line of the terminal.
fn fit(rows: &mut [[String; 7]], width: Option<usize>) {
    let Some(width) = width else { return };
    let before: usize = (0..HEADER.len() - 1)
        .map(|column| {
            let widest = rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
            widest.max(HEADER[column].len()) + GAP
        })
        .sum();
    let left = width.saturating_sub(before).max(REASON_COLUMNS_MIN);
    for row in rows {
        row[6] = cut(&row[6], left);
    }
}

fn notes(daemon: &DaemonInfo, units: usize, look: &Look) -> String {
    let mut text = String::new();
    if units == 0 {
        text.push_str("no units; put a file into the unit directory, then look at it with `upright check`\n");
    }
    if daemon.mode != "normal" {
        text.push_str(&format!(
            "note: {} mode: units are supervised, files and reloads are refused; `upright clear --all` ends it, \
             `upright events` tells why\n",
            escape_line(&daemon.mode)
        ));
    }
    for trouble in &daemon.troubles {
        let (code, message, help) =
            (escape_line(&trouble.code), escape_line(&trouble.message), escape_line(&trouble.help));
        text.push_str(&format!("note: {code}: {message}; {help}\n"));
    }
    for line in quiet::render_mutes(&daemon.mutes, look).lines() {
        text.push_str(&format!("note: {line}; `upright alert mute --off` ends it\n"));
    }
    if daemon.containment == "weak" {
        text.push_str(
            "note: weak containment: no cgroup here, a stop reaches what it can find by session and parent\n",
        );
    }
    text
}

/// Everything about one unit.
pub fn render_card(card: &UnitCard, now: Timestamp, look: &Look) -> String {
    let unit = &card.unit;
    let (symbol, style) = mark(&unit.state);
    let state = look.paint.with(style, &format!("{symbol} {}", escape_line(&unit.state)));
    let mut text = format!("{}  {state}\n", look.paint.bold(&escape_line(&unit.name)));
    let mut line = |label: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("  {label:12}{value}\n"));
        }
    };
    let names = |names: &[String]| escape_line(&names.join(", "));
    line("description", escape_line(&unit.description));
    line("reason", escape_line(&unit.reason));
    let ails = (unit.wanted && unit.state != "active") || unit.health == "unhealthy";
    line("why", if ails { format!("`upright why {}`", escape_line(&unit.name)) } else { String::new() });
    line("since", format!("{} ({})", when::local(&unit.since, &look.zone), when::ago(&unit.since, now)));
    line("pid", unit.pid.map(|pid| pid.to_string()).unwrap_or_default());
    line("run", unit.run.map(|run| run.to_string()).unwrap_or_default());
    line("restarts", unit.restarts.to_string());
    line("failures", format!("{} in this episode", unit.failures));
    line("next try", unit.next_retry_at.as_ref().map(|at| when::until(at, now)).unwrap_or_default());
    line("health", escape_line(&unit.health));
    line("wanted", if unit.wanted { "yes" } else { "no" }.to_string());
    line("waiting for", names(&unit.waiting_for));
    line("requires", names(&unit.requires));
    line("wants", names(&unit.wants));
    line("after", names(&unit.after));
    if !card.history.is_empty() {
        text.push_str(&format!("\n{}\n", look.paint.bold("History")));
        for event in &card.history {
            text.push_str(&format!("  {}\n", events::render_line(event, look)));
        }
    }
    if !card.log_tail.is_empty() {
        text.push_str(&format!("\n{}\n", look.paint.bold("Last lines")));
        for line in &card.log_tail {
            text.push_str(&format!("  {}\n", escape_line(line)));
        }
    }
    text
}
