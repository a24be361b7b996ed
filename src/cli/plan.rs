//! `upright plan` (`reread`): what a reread of the files would do, unit by unit.
//!
//! Refuses: computing it. The daemon answers from the same function that applies.

use unicode_width::UnicodeWidthStr;

use crate::api::client::READ_TIMEOUT;
use crate::api::types::{ConfigError, ConfigPlan, PlannedUnit};
use crate::cli::EXIT_USAGE;
use crate::cli::context::{Context, Fail, Form};
use crate::cli::render::{Look, color, escape_line};

/// # Errors
/// The daemon cannot be asked.
pub fn run(context: &mut Context) -> Result<u8, Fail> {
    let nothing = serde_json::json!({});
    let plan: ConfigPlan = context
        .client
        .post("/v1/config/plan", &nothing, Some(READ_TIMEOUT))
        .map_err(|error| context.fail(error))?;
    match context.form {
        Form::Json => context.print_json(&plan)?,
        Form::Text => {
            let text = render_plan(&plan, &context.look);
            context.print(&text)?;
        }
    }
    Ok(exit_code(&plan))
}

/// 2 when a file is wrong, whether or not there is something to do besides.
pub fn exit_code(plan: &ConfigPlan) -> u8 {
    if plan.errors.is_empty() { 0 } else { EXIT_USAGE }
}

/// A line a unit, then what the daemon itself gets, then what is wrong.
pub fn render_plan(plan: &ConfigPlan, look: &Look) -> String {
    let mut text = String::new();
    if !plan.units.is_empty() {
        let widest = plan.units.iter().map(|unit| escape_line(&unit.unit).width()).max().unwrap_or(0);
        let width = widest.max("UNIT".len());
        text.push_str(&format!("{}\n", look.paint.bold(&format!("{:width$}  CHANGE", "UNIT"))));
        for unit in &plan.units {
            let name = escape_line(&unit.unit);
            let gap = " ".repeat(width.saturating_sub(name.width()));
            text.push_str(&format!("{name}{gap}  {}\n", change(unit)));
        }
    }
    for key in &plan.daemon {
        let when = if key.takes == "restart" { "with the next start of the daemon" } else { "at once" };
        text.push_str(&format!("upright.toml: {} ({when})\n", escape_line(&key.key)));
    }
    text.push_str(&format!("{}\n", summary(plan)));
    text + &render_errors(&plan.errors, look)
}

fn change(unit: &PlannedUnit) -> String {
    let keys = escape_line(&unit.keys.join(", "));
    match unit.change.as_str() {
        "added" => "added".to_string(),
        "removed" => "removed: it is stopped, then forgotten".to_string(),
        "live" => format!("live: {keys}"),
        "next-start" => format!("at its next start: {keys}"),
        "restart" => format!("restart: {keys}"),
        "start" => format!("started: {keys}"),
        "stop" => format!("stopped: {keys}"),
        other => format!("{}: {keys}", escape_line(other)),
    }
}

fn summary(plan: &ConfigPlan) -> String {
    let unchanged = match plan.unchanged {
        1 => "1 unit unchanged".to_string(),
        count => format!("{count} units unchanged"),
    };
    match (plan.units.is_empty() && plan.daemon.is_empty(), plan.units.len()) {
        (true, _) => format!("nothing to do, {unchanged}"),
        (false, 1) => format!("1 unit changes, {unchanged}"),
        (false, count) => format!("{count} units change, {unchanged}"),
    }
}

/// A line a mistake, as compilers write them; then what they mean for what runs.
pub fn render_errors(errors: &[ConfigError], look: &Look) -> String {
    if errors.is_empty() {
        return String::new();
    }
    let red = color(anstyle::AnsiColor::Red);
    let mut text = String::new();
    for error in errors {
        let place = match (error.line, error.column) {
            (Some(line), Some(column)) => format!("{}:{line}:{column}", error.file),
            (Some(_) | None, _) => error.file.clone(),
        };
        let word = look.paint.with(red, "error");
        text.push_str(&format!("{word}: {}: {}\n", escape_line(&place), escape_line(&error.message)));
        if let Some(help) = &error.help {
            text.push_str(&format!("  help: {}\n", escape_line(help)));
        }
    }
    text + "the last good version of these files stays in force\n"
}
