//! `upright drill`: run a scenario, list what there is, show a report again.
//!
//! Refuses: anything that the room `drill` does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::api::drills::DrillList;
use crate::cli::args::GlobalArgs;
use crate::cli::args::drill::{DrillCommand, DrillReportArgs, DrillRunArgs};
use crate::cli::context::{Context, EXIT_FAILED, Fail, Form, explain};
use crate::cli::render::escape_line;
use crate::cli::{EXIT_USAGE, find, when};
use crate::config::{Home, Surroundings};
use crate::drill::scenario::SHIPPED;
use crate::drill::verdict::Verdict;
use crate::drill::{self, Asked, DrillError};
use crate::drill::{compare, papers, report, sample, scenario, verdict};

/// # Errors
/// As `Fail` says.
pub fn run(global: &GlobalArgs, command: &DrillCommand) -> Result<u8, Fail> {
    match command {
        DrillCommand::List => list(&mut Context::new(global)?),
        DrillCommand::Run(args) => play(global, args),
        DrillCommand::Report(args) => show(global, args),
    }
}

fn logs(global: &GlobalArgs) -> Result<PathBuf, Fail> {
    let home = Home::resolve(&find::asked(global), &Surroundings::of_process());
    home.map(|home| home.log_dir).map_err(|error| Fail::new(EXIT_USAGE, error.to_string(), None))
}

/// The words of a command that was given as one, as a shell would split it.
fn words(command: &str) -> Result<Vec<String>, Fail> {
    shlex::split(command).filter(|words| !words.is_empty()).ok_or_else(|| {
        let help = "close its quotes, or write `sh -c '…'` for what needs a shell".to_string();
        Fail::new(EXIT_USAGE, "cannot use --stored-ids: it is no command", help)
    })
}

fn play(global: &GlobalArgs, args: &DrillRunArgs) -> Result<u8, Fail> {
    let asked = Asked {
        socket: find::socket_path(global),
        logs: logs(global)?,
        scenario: args.scenario.clone(),
        iterations: args.iterations,
        pause: args.pause,
        duration: args.duration,
        interval: args.interval,
        base_url: args.base_url.clone(),
        stored_ids: args.stored_ids.as_deref().map(words).transpose()?,
        units: args.unit.clone(),
    };
    let done = match global.json {
        true => drill::run(&asked, &mut io::sink()),
        false => drill::run(&asked, &mut io::stdout()),
    };
    let done = done.map_err(|error| fail(error, global))?;
    if global.json {
        Context::new(global)?.print_json(&done.verdict)?;
    }
    Ok(if done.verdict.status == "passed" { 0 } else { EXIT_FAILED })
}

fn fail(error: DrillError, global: &GlobalArgs) -> Fail {
    match error {
        DrillError::Client(error) => explain(error, global),
        DrillError::Usage { message, help } => Fail::new(EXIT_USAGE, message, help),
        DrillError::Failed(message) => Fail::new(EXIT_FAILED, message, None),
    }
}

fn list(context: &mut Context) -> Result<u8, Fail> {
    let list: DrillList = context.client.get("/v1/drills").map_err(|error| context.fail(error))?;
    if context.form == Form::Json {
        context.print_json(&list)?;
        return Ok(0);
    }
    let mut text = String::from("Scenarios:\n");
    for (name, toml) in SHIPPED {
        let about = scenario::parse(name, toml).map(|scenario| scenario.description).unwrap_or_default();
        text.push_str(&format!("  {name:18}  {about}\n"));
    }
    let drillable = match list.drillable.is_empty() {
        true => "none; set `drillable = true` under [unit] in their files".to_string(),
        false => list.drillable.join(", "),
    };
    text.push_str(&format!("\nUnits that drills may hurt: {}\n", escape_line(&drillable)));
    text.push_str(if list.drills.is_empty() { "\nNo drill was run yet.\n" } else { "\nDrills:\n" });
    for drill in &list.drills {
        let begun = when::local(&drill.begun, &context.look.zone);
        let line = format!("  {begun}  {:8} {:3} %  {}", drill.status, drill.progress, drill.id);
        text.push_str(&escape_line(&line));
        text.push('\n');
    }
    context.print(&text)?;
    Ok(0)
}

/// Judges the samples of a drill once more, and writes its papers again; or shows it beside another one.
fn show(global: &GlobalArgs, args: &DrillReportArgs) -> Result<u8, Fail> {
    let dir = logs(global)?.join("drills");
    let id = match &args.id {
        Some(id) => id.clone(),
        None => newest(&dir).ok_or_else(|| {
            let help = "`upright drill run single-module` makes the first".to_string();
            Fail::new(EXIT_FAILED, format!("there is no drill in {}", dir.display()), help)
        })?,
    };
    let verdict = judged(&dir, &id)?;
    let mut context = Context::new(global)?;
    if let Some(other) = &args.against {
        let comparison = compare::of(&verdict, &judged(&dir, other)?);
        match context.form {
            Form::Json => context.print_json(&comparison)?,
            Form::Text => context.print(&compare::text(&comparison))?,
        }
    } else {
        papers::write(&dir.join(&id), &verdict)
            .map_err(|error| Fail::new(EXIT_FAILED, format!("cannot write the report: {error}"), None))?;
        match context.form {
            Form::Json => context.print_json(&verdict)?,
            Form::Text => context.print(&report::markdown(&verdict))?,
        }
    }
    Ok(if verdict.status == "passed" { 0 } else { EXIT_FAILED })
}

fn judged(dir: &Path, id: &str) -> Result<Verdict, Fail> {
    if id.contains('/') || id.starts_with('.') {
        return Err(Fail::new(EXIT_USAGE, "that is no name of a drill", None));
    }
    let path = dir.join(format!("{id}.jsonl"));
    let samples = sample::read(&path).map_err(|error| {
        let help = "`upright drill list` shows the drills".to_string();
        Fail::new(EXIT_FAILED, format!("cannot read {}: {error}", path.display()), help)
    })?;
    Ok(verdict::of(&samples))
}

fn newest(dir: &Path) -> Option<String> {
    let files = fs::read_dir(dir).ok()?.filter_map(Result::ok);
    let found = files.filter_map(|file| {
        let name = file.file_name().into_string().ok()?.strip_suffix(".jsonl")?.to_string();
        Some((file.metadata().ok()?.modified().ok()?, name))
    });
    found.max().map(|(_, name)| name)
}
