//! The words and flags of `upright drill`.
//!
//! Refuses: meaning, as the file above it.

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};

use crate::cli::args::any_duration;

#[derive(Debug, Subcommand)]
pub enum DrillCommand {
    /// Show the scenarios, what drills may hurt, and the drills so far
    #[command(after_help = "Examples:\n  upright drill list\n  upright drill list --json | jq '.drills[0]'")]
    List,
    /// Run a scenario; exit 0 when every KPI passes its mark
    #[command(
        after_help = "Exit codes: 0 every KPI passes · 1 one does not, or the drill was given up · 2 no such scenario\n\nExamples:\n  upright drill run single-module --iterations 3 --pause 2\n  upright drill run cascade --duration 120 --interval 5\n  upright drill run acceptance --base-url http://127.0.0.1:8000 --stored-ids 'psql -Atc \"select id from session_log\"'"
    )]
    Run(DrillRunArgs),
    /// Judge the samples of a drill once more, and write its report again
    #[command(
        after_help = "Examples:\n  upright drill report            the newest\n  upright drill report --json\n  upright drill report single-module-20260101120000-4711 --against single-module-20251224120000-4242"
    )]
    Report(DrillReportArgs),
}

#[derive(Debug, ClapArgs)]
pub struct DrillRunArgs {
    /// Name of a scenario, or a .toml file
    #[arg(value_name = "SCENARIO")]
    pub scenario: String,
    /// So many rounds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub iterations: Option<u32>,
    /// Between two rounds; a bare number is seconds
    #[arg(long, value_name = "DURATION", value_parser = seconds_or_duration)]
    pub pause: Option<Duration>,
    /// How long, of scenarios that have a fault at each interval
    #[arg(long, value_name = "DURATION", value_parser = seconds_or_duration)]
    pub duration: Option<Duration>,
    /// Between two faults or samples
    #[arg(long, value_name = "DURATION", value_parser = seconds_or_duration)]
    pub interval: Option<Duration>,
    /// Of a backend: it gets a numbered request every 200 ms, each of which has to be in a log at the end; and
    /// broken requests, where the scenario has them
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// A command that prints the ids of all stored sessions, one a line: every session that the backend has
    /// acknowledged has to be among them at the end
    #[arg(long, value_name = "COMMAND", requires = "base_url")]
    pub stored_ids: Option<String>,
    /// Hurt only this unit (repeatable)
    #[arg(long, value_name = "UNIT")]
    pub unit: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct DrillReportArgs {
    /// Of this drill; none = the newest
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    /// Show its KPIs and latencies beside those of this drill, with the differences
    #[arg(long, value_name = "ID")]
    pub against: Option<String>,
}

/// As any duration; a bare number is seconds here (the contract).
fn seconds_or_duration(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => any_duration(text),
    }
}
