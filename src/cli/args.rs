//! Every word and flag of the command line.
//!
//! Refuses: meaning. What a flag does is in its command's file.

pub mod drill;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args as ClapArgs, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::api::call::Verb;
use crate::api::request::LINES_MAX;
use crate::base::duration;
use crate::cli::args::drill::DrillCommand;

const TEMPLATE: &str = "{about}\n\nUsage: {usage}\n{before-help}Options:\n{options}{after-help}";

/// The verbs as `--help` groups them. A test holds this against the list of subcommands.
pub const GROUPS: [(&str, &[&str]); 5] = [
    ("Run it", &["demo", "daemon"]),
    ("Look", &["status", "why", "logs", "events", "alert", "kpi", "graph"]),
    ("Act", &["start", "stop", "restart", "reload", "clear", "resync", "signal", "plan", "apply", "upgrade"]),
    ("Check", &["check", "simulate", "schema"]),
    ("Prove", &["drill"]),
];

const EXIT_CODES: &str = "\
Exit codes: 0 done, all active · 1 the operation failed · 2 wrong usage or invalid file
            3 not all active · 4 no such unit · 5 the daemon cannot be reached
            6 not permitted · 7 timed out waiting

Begin here:
  upright demo                 something to push over, in a temporary home
  upright check units/         every mistake in the unit files, before they run
  upright daemon --home .      supervise ./units/*.toml
  upright status               what is up, what is not, and why";

/// Keeps a backend and its dependencies standing
#[derive(Debug, Parser)]
#[command(
    name = "upright",
    version,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    subcommand_value_name = "VERB"
)]
pub struct Args {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// Where the daemon is, and how to print.
#[derive(Clone, Debug, Default, ClapArgs)]
#[command(next_help_heading = "Options of every command")]
pub struct GlobalArgs {
    /// Everything of one daemon in DIR: config, units, state, logs, sockets
    #[arg(long, global = true, value_name = "DIR", env = "UPRIGHT_HOME", hide_env = true)]
    pub home: Option<PathBuf>,
    /// Read unit files from DIR instead (repeatable)
    #[arg(long = "units", global = true, value_name = "DIR")]
    pub unit_dirs: Vec<PathBuf>,
    /// Read the daemon's configuration from FILE instead
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Colour the output: auto (on a terminal, unless NO_COLOR is set), always, never
    #[arg(long, global = true, value_name = "WHEN", value_enum, hide_possible_values = true, hide_default_value = true, default_value_t = ColorWhen::Auto)]
    pub color: ColorWhen,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    // No docstring: clap would spread every help text over twice the lines.
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a database, a cache and a backend in a temporary home
    #[command(
        after_help = "Examples:\n  upright demo          Ctrl-C ends it and leaves nothing behind\n  upright demo --keep   leaves the home, to look at its files"
    )]
    Demo(DemoArgs),
    /// Supervise in the foreground; SIGTERM stops everything in reverse order
    #[command(
        after_help = "Examples:\n  upright daemon                      as root: /etc/upright\n  upright daemon --home /srv/shop     everything under one directory\n  upright daemon --units ./units"
    )]
    Daemon,
    /// Show what is up, what is not, and why
    #[command(
        after_help = "Examples:\n  upright status             every unit, a line each; exit 3 when a wanted one is not active\n  upright status backend     one unit, with its history and last lines\n  upright status --json | jq '.units[] | select(.state != \"active\")'"
    )]
    Status(StatusArgs),
    /// Tell why a unit is as it is, down to the cause, and what to type
    #[command(
        after_help = "Examples:\n  upright why backend\n  upright why backend --json | jq -r '.because[].sentence'"
    )]
    Why(WhyArgs),
    /// Show what units wrote
    #[command(
        after_help = "Examples:\n  upright logs backend -n 100\n  upright logs -f                 every unit, as it happens\n  upright logs backend redis -f\n  upright logs backend --since '10 min ago' --grep 'ERROR|panic'\n  upright logs backend --raw > backend.log"
    )]
    Logs(LogsArgs),
    /// Show what happened, a line each
    #[command(
        after_help = "Examples:\n  upright events --since 10m\n  upright events --since 2026-11-21T20:00:00Z\n  upright events -f --json"
    )]
    Events(EventsArgs),
    /// Show what people were to be told, try whether it arrives, have less told
    #[command(
        subcommand,
        subcommand_value_name = "VERB",
        disable_help_subcommand = true,
        after_help = "Examples:\n  upright alert list          the newest alerts, each with its channels\n  upright alert test          does an alert arrive?\n  upright alert ack backend   I take it: no repeats\n  upright alert mute --for 1h\n  upright alert list --json | jq '.alerts[] | select(.channels == [])'"
    )]
    Alert(AlertCommand),
    /// Show how well everything recovers, against the pass marks
    #[command(
        after_help = "Exit codes: 0 no KPI fails its mark · 1 one does\n\nExamples:\n  upright kpi\n  upright kpi --since 90d\n  upright kpi --json | jq '.mttr_s'"
    )]
    Kpi(KpiArgs),
    /// Show who needs whom, with states
    #[command(after_help = "Examples:\n  upright graph\n  upright graph --dot | dot -Tsvg > units.svg")]
    Graph(GraphArgs),
    #[command(flatten)]
    Act(ActCommand),
    /// Send a signal to a unit's main process
    #[command(after_help = "Examples:\n  upright signal USR1 backend\n  upright signal SIGHUP postgres")]
    Signal(SignalArgs),
    /// Show what a reread of the files would do, unit by unit
    #[command(
        visible_alias = "reread",
        after_help = "Exit codes: 0 whether or not there is something to do · 2 a file is invalid\n\nExamples:\n  upright plan\n  upright plan --json | jq '.units[] | select(.change == \"restart\")'"
    )]
    Plan,
    /// Reread the files and do what `plan` says; waits until it is done
    #[command(
        visible_alias = "update",
        after_help = "Exit codes: 0 done · 1 a unit did not get where it should · 2 a file is invalid; the others are applied\n\nExamples:\n  upright apply\n  upright apply --no-wait"
    )]
    Apply(ApplyArgs),
    /// Swap the running daemon for the binary on disk; services untouched
    #[command(
        after_help = "The binary is the file that the daemon was started from. It is asked first whether it can take\nover; when it then does not do so in good health, the old one goes on.\n\nExit codes: 0 done, or nothing to do · 1 refused or rolled back · 7 not ended in time\n\nExamples:\n  install -m 755 upright-new /usr/local/bin/upright && upright upgrade"
    )]
    Upgrade(UpgradeArgs),
    /// Find every mistake in unit files, without a daemon
    #[command(
        after_help = "Examples:\n  upright check                  the unit files of this home\n  upright check units/ web.toml"
    )]
    Check(CheckArgs),
    /// Show when a unit would be restarted and who would be told, were it to fail
    #[command(
        after_help = "The daemon's own engine is given the unit file and a world in which nothing else goes wrong.\n\nExamples:\n  upright simulate backend\n  upright simulate units/backend.toml --failures 4\n  upright simulate backend --how hang       found by [health], killed, restarted\n  upright simulate backend --every 2m       each run is ready for two minutes first"
    )]
    Simulate(SimulateArgs),
    /// Break something on purpose, and see whether everything recovers
    #[command(
        subcommand,
        subcommand_value_name = "VERB",
        disable_help_subcommand = true,
        after_help = "Only units with `drillable = true` are hurt; every fault has a time limit, and is undone even when\nthe drill is killed.\n\nExamples:\n  upright drill list\n  upright drill run single-module\n  upright drill report"
    )]
    Drill(DrillCommand),
    /// Print the JSON Schema of unit files, for editors
    #[command(after_help = "Examples:\n  upright schema > units/unit.schema.json")]
    Schema(SchemaArgs),
    /// The engine; the keeper starts it
    #[command(hide = true)]
    Engine(EngineArgs),
    /// What this build is, for the one that it is to follow
    #[command(hide = true)]
    Handshake,
    /// A service of the demo
    #[command(hide = true, disable_help_flag = true)]
    Puppet(PuppetArgs),
}

/// The verbs that give an order for units.
#[derive(Debug, Subcommand)]
pub enum ActCommand {
    /// Start units and what they require; forgets their failures
    #[command(after_help = "Examples:\n  upright start backend\n  upright start --all --timeout 60s")]
    Start(OrderArgs),
    /// Stop units, dependents first; they stay stopped
    #[command(after_help = "Examples:\n  upright stop backend\n  upright stop --all")]
    Stop(OrderArgs),
    /// Stop units, then start them
    #[command(after_help = "Examples:\n  upright restart backend\n  upright restart redis backend --no-wait")]
    Restart(OrderArgs),
    /// Have units reread their own files
    #[command(after_help = "Examples:\n  upright reload nginx")]
    Reload(OrderArgs),
    /// Forget the failures of units, so that their next delay is the first again
    #[command(after_help = "Examples:\n  upright clear backend")]
    Clear(OrderArgs),
    /// Have units restore their state now, as after the return of a requirement
    #[command(after_help = "Examples:\n  upright resync backend\n  upright resync --all")]
    Resync(OrderArgs),
}

impl ActCommand {
    pub fn verb(&self) -> Verb {
        match self {
            ActCommand::Start(_) => Verb::Start,
            ActCommand::Stop(_) => Verb::Stop,
            ActCommand::Restart(_) => Verb::Restart,
            ActCommand::Reload(_) => Verb::Reload,
            ActCommand::Clear(_) => Verb::Clear,
            ActCommand::Resync(_) => Verb::Resync,
        }
    }

    pub fn order(&self) -> &OrderArgs {
        match self {
            ActCommand::Start(order)
            | ActCommand::Stop(order)
            | ActCommand::Restart(order)
            | ActCommand::Reload(order)
            | ActCommand::Clear(order)
            | ActCommand::Resync(order) => order,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub struct OrderArgs {
    /// Names of units
    #[arg(value_name = "UNIT", required_unless_present = "all", conflicts_with = "all")]
    pub units: Vec<String>,
    /// Every unit
    #[arg(long)]
    pub all: bool,
    /// Return as soon as the order is taken
    #[arg(long)]
    pub no_wait: bool,
    /// Wait at most this long, then exit 7; the order stands
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, ClapArgs)]
pub struct UpgradeArgs {
    /// Wait at most this long, then exit 7; the upgrade goes on
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = positive_duration)]
    pub timeout: Duration,
}

#[derive(Debug, ClapArgs)]
pub struct EngineArgs {
    /// The file that the daemon was started from
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct StatusArgs {
    /// Names of units; one shows everything about it
    #[arg(value_name = "UNIT")]
    pub units: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct WhyArgs {
    /// Name of a unit
    #[arg(value_name = "UNIT")]
    pub unit: String,
}

#[derive(Debug, ClapArgs)]
pub struct SimulateArgs {
    /// Name of a unit, or its file
    #[arg(value_name = "UNIT")]
    pub unit: String,
    /// Fail so many times, then stay up
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub failures: u32,
    /// In what way: exit, hang (found by [health]), never-ready (found by readiness.timeout)
    #[arg(long, value_name = "HOW", value_enum, hide_possible_values = true, default_value_t = HowToFail::Exit)]
    pub how: HowToFail,
    /// Be ready for so long before each failure
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = any_duration)]
    pub every: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HowToFail {
    // No docstrings, as above.
    #[default]
    Exit,
    Hang,
    NeverReady,
}

#[derive(Debug, ClapArgs)]
pub struct LogsArgs {
    /// Names of units; none = all
    #[arg(value_name = "UNIT")]
    pub units: Vec<String>,
    /// Go on as lines are written
    #[arg(short, long)]
    pub follow: bool,
    /// Begin with the last N lines, or `all` [default: 10; with --since, --until, --grep or --raw: all]
    #[arg(short = 'n', long, value_name = "N", value_parser = lines)]
    pub lines: Option<Lines>,
    /// Only what was written since: "10 min ago", "14:00", "2026-11-21 20:00", "#4711" (an event)
    #[arg(long, value_name = "T")]
    pub since: Option<String>,
    /// Only what was written until then
    #[arg(long, value_name = "T", conflicts_with = "follow")]
    pub until: Option<String>,
    /// Only lines that match a regular expression
    #[arg(short, long, value_name = "RE")]
    pub grep: Option<String>,
    /// Print the bytes of one unit exactly as it wrote them, whatever they do to a terminal
    #[arg(long, conflicts_with_all = ["json", "timestamps"])]
    pub raw: bool,
    /// Show when each line was written
    #[arg(short, long)]
    pub timestamps: bool,
    /// Show where runs began and ended, too: on a terminal they are shown anyway
    #[arg(long, conflicts_with = "raw")]
    pub marks: bool,
    /// Only stdout or stderr, where they are kept apart
    #[arg(long, value_name = "WHICH", value_parser = ["stdout", "stderr"])]
    pub stream: Option<String>,
}

/// How many lines to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    Last(u32),
    All,
}

fn lines(text: &str) -> Result<Lines, String> {
    match (text, text.parse::<u32>()) {
        ("all", _) => Ok(Lines::All),
        (_, Ok(lines)) if lines <= LINES_MAX => Ok(Lines::Last(lines)),
        (_, _) => Err(format!("write a whole number up to {LINES_MAX}, or `all`")),
    }
}

#[derive(Debug, ClapArgs)]
pub struct EventsArgs {
    /// Go on as things happen
    #[arg(short, long)]
    pub follow: bool,
    /// Only what happened since: "10 min ago", "14:00", "2026-11-21 20:00", "#4711" (an event)
    #[arg(long, value_name = "T")]
    pub since: Option<String>,
    /// At most the newest N
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub lines: u32,
}

#[derive(Debug, ClapArgs)]
pub struct KpiArgs {
    /// The window: "24h", "10 min ago", "14:00", "2026-11-21 20:00", "#4711" (an event)
    #[arg(long, value_name = "T", default_value = "24h")]
    pub since: String,
}

#[derive(Debug, Subcommand)]
pub enum AlertCommand {
    /// Show the newest alerts, newest first, each with its channels
    #[command(after_help = "Examples:\n  upright alert list -n 5")]
    List(AlertListArgs),
    /// Raise an alert and tell where it arrived
    #[command(after_help = "Examples:\n  upright alert test\n  upright alert test ops pager")]
    Test(AlertTestArgs),
    /// Take a trouble: its repeats are not told, its end is
    #[command(
        after_help = "Examples:\n  upright alert ack backend\n  upright alert ack backend/3/failing/4\n  upright alert ack --all"
    )]
    Ack(AlertAckArgs),
    /// Have nothing told for a time; then the newest alert of each unit is
    #[command(
        after_help = "Examples:\n  upright alert mute --for 1h              everything\n  upright alert mute backend --for 30m\n  upright alert mute --off"
    )]
    Mute(AlertMuteArgs),
}

#[derive(Debug, ClapArgs)]
pub struct AlertTestArgs {
    /// Names of channels; none = every channel
    #[arg(value_name = "CHANNEL")]
    pub channels: Vec<String>,
    /// Return when it is raised
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, ClapArgs)]
pub struct AlertAckArgs {
    /// Names of units, or ids of alerts
    #[arg(value_name = "UNIT|ID", required_unless_present = "all", conflicts_with = "all")]
    pub alerts: Vec<String>,
    /// Every unit that people were alerted of
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, ClapArgs)]
pub struct AlertMuteArgs {
    /// Names of units; none = every unit, and the daemon itself
    #[arg(value_name = "UNIT")]
    pub units: Vec<String>,
    /// For so long, at most 365d
    #[arg(long = "for", value_name = "DURATION", value_parser = positive_duration, required_unless_present = "off")]
    pub wait: Option<Duration>,
    /// No longer
    #[arg(long, conflicts_with = "wait")]
    pub off: bool,
}

#[derive(Debug, ClapArgs)]
pub struct AlertListArgs {
    /// At most the newest N
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub lines: u32,
}

#[derive(Debug, ClapArgs)]
pub struct GraphArgs {
    /// Print Graphviz DOT
    #[arg(long)]
    pub dot: bool,
}

#[derive(Debug, ClapArgs)]
pub struct SignalArgs {
    /// SIGUSR1, USR1 or 10
    #[arg(value_name = "SIGNAL")]
    pub signal: String,
    /// Names of units
    #[arg(value_name = "UNIT", required = true)]
    pub units: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct ApplyArgs {
    /// Return as soon as the files are in force
    #[arg(long)]
    pub no_wait: bool,
    /// Wait at most this long, then exit 7; the files are in force
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, ClapArgs)]
pub struct CheckArgs {
    /// Files and directories; none = the unit files of this home
    #[arg(value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct SchemaArgs {
    /// The schema of upright.toml instead
    #[arg(long)]
    pub daemon: bool,
}

#[derive(Debug, ClapArgs)]
pub struct DemoArgs {
    /// Leave the temporary home when it ends
    #[arg(long)]
    pub keep: bool,
}

#[derive(Debug, ClapArgs)]
pub struct PuppetArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<String>,
}

/// The parser, with the grouped help.
pub fn command() -> clap::Command {
    let command = Args::command();
    let verbs = grouped(&command);
    command.before_help(verbs).after_help(EXIT_CODES).help_template(TEMPLATE)
}

fn grouped(command: &clap::Command) -> String {
    let mut text = String::new();
    for (title, verbs) in GROUPS {
        text.push_str(&format!("\n{title}:\n"));
        for verb in verbs {
            let about = command.find_subcommand(verb).and_then(|found| found.get_about());
            let about = about.map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("  {verb:8}  {about}\n"));
        }
    }
    // The template's own spacing ends it.
    text.trim_end_matches('\n').to_string()
}

/// Called as `uprightd`, the binary is `upright daemon`; as `uprightctl`, `upright`.
pub fn with_called_name(mut words: Vec<OsString>) -> Vec<OsString> {
    let called = words.first().map(Path::new).and_then(Path::file_name);
    if called.is_some_and(|name| name == "uprightd") {
        words.insert(1, "daemon".into());
    }
    words
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match any_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than zero".into()),
        other => other,
    }
}

pub(crate) fn any_duration(text: &str) -> Result<Duration, String> {
    duration::parse(text)
        .map_err(|error| error.help.map_or(error.why.clone(), |help| format!("{}; {help}", error.why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        command().debug_assert();
    }

    #[test]
    fn help_groups_every_verb_once() {
        let command = command();
        let mut shown: Vec<&str> =
            command.get_subcommands().filter(|c| !c.is_hide_set()).map(|c| c.get_name()).collect();
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        shown.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(shown, grouped);
    }

    #[test]
    fn the_called_name_chooses_the_command() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            with_called_name(words(&["/usr/bin/uprightd", "--json"])),
            words(&["/usr/bin/uprightd", "daemon", "--json"])
        );
        assert_eq!(with_called_name(words(&["uprightctl", "status"])), words(&["uprightctl", "status"]));
        assert_eq!(with_called_name(vec![]), words(&[]));
    }
}
