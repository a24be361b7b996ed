//! What every command that asks the daemon has in its hands; how its errors end.
//!
//! Refuses: errors without a next step where there is one.

use std::fmt;
use std::io::{ErrorKind, IsTerminal};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::api::client::{Client, ClientError};
use crate::cli::args::{ColorWhen, GlobalArgs};
use crate::cli::find;
use crate::cli::out::Out;
use crate::cli::render::{self, Look, Paint};
use crate::sys::clock;

/// The operation failed.
pub const EXIT_FAILED: u8 = 1;
/// Not every wanted unit is active.
pub const EXIT_NOT_ACTIVE: u8 = 3;
pub const EXIT_UNKNOWN_UNIT: u8 = 4;
/// The daemon cannot be reached.
pub const EXIT_UNREACHABLE: u8 = 5;
const EXIT_NOT_PERMITTED: u8 = 6;
/// What was waited for did not come in time.
pub const EXIT_TIMEOUT: u8 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
}

pub struct Context {
    pub client: Client,
    pub out: Out,
    pub look: Look,
    pub form: Form,
    global: GlobalArgs,
}

/// How a command ends that cannot do its work; the last thing on stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fail {
    pub code: u8,
    pub message: String,
    pub help: Option<String>,
}

impl Fail {
    pub fn new(code: u8, message: impl Into<String>, help: impl Into<Option<String>>) -> Fail {
        Fail { code, message: message.into(), help: help.into() }
    }

    pub fn unknown_unit(name: &str, known: &[&str]) -> Fail {
        let near = known.iter().max_by(|a, b| nearness(name, a).total_cmp(&nearness(name, b)));
        let help = match near {
            Some(near) if nearness(name, near) > 0.6 => format!("did you mean `{near}`?"),
            Some(_) => "`upright status` lists the units".to_string(),
            None => "this daemon has no units; `upright check` tells what it would read".to_string(),
        };
        Fail::new(EXIT_UNKNOWN_UNIT, format!("there is no unit `{name}`"), help)
    }
}

fn nearness(a: &str, b: &str) -> f64 {
    // Quadratic; no unit's name is longer than 64.
    if a.len() > 100 { 0.0 } else { strsim::jaro_winkler(a, b) }
}

/// Its own text is ours; what it quotes came from outside, so all of it is escaped.
impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", render::escape_line(&self.message))?;
        match &self.help {
            Some(help) => writeln!(f, "help: {}", render::escape_line(help)),
            None => Ok(()),
        }
    }
}

impl From<std::io::Error> for Fail {
    fn from(cause: std::io::Error) -> Fail {
        Fail::new(EXIT_FAILED, format!("cannot write the output: {cause}"), None)
    }
}

impl Context {
    /// # Errors
    /// No fd for an event loop.
    pub fn new(global: &GlobalArgs) -> Result<Context, Fail> {
        let socket = find::socket_path(global);
        let client = Client::new(&socket)
            .map_err(|cause| Fail::new(EXIT_FAILED, format!("cannot make an event loop: {cause}"), None))?;
        let form = if global.json { Form::Json } else { Form::Text };
        Ok(Context { client, out: Out::stdout(), look: look(global.color), form, global: global.clone() })
    }

    /// Prints one object, indented.
    ///
    /// # Errors
    /// Stdout cannot be written.
    pub fn print_json(&mut self, value: &impl Serialize) -> Result<(), Fail> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|cause| Fail::new(EXIT_FAILED, format!("cannot print JSON: {cause}"), None))?;
        self.print(&format!("{text}\n"))
    }

    /// Prints text that has been escaped where it must be.
    ///
    /// # Errors
    /// Stdout cannot be written; a reader that left is no error.
    pub fn print(&mut self, text: &str) -> Result<(), Fail> {
        let _ = self.out.write(text)?; // Break: nothing else is to be written
        let _ = self.out.flush()?; // the same
        Ok(())
    }

    /// The end that belongs to a client's error.
    pub fn fail(&self, error: ClientError) -> Fail {
        explain(error, &self.global)
    }
}

/// What to say and how to exit, by the contract.
pub fn explain(error: ClientError, global: &GlobalArgs) -> Fail {
    match error {
        ClientError::Unreachable { path, cause } => {
            let path = path.display();
            let (code, why, help) = match cause.kind() {
                ErrorKind::NotFound => (EXIT_UNREACHABLE, "no such file".to_string(), start_it(global)),
                ErrorKind::ConnectionRefused => {
                    (EXIT_UNREACHABLE, "nobody listens there".to_string(), start_it(global))
                }
                ErrorKind::PermissionDenied => (
                    EXIT_NOT_PERMITTED,
                    "permission denied".to_string(),
                    "run it as root, or as a user of the daemon's group".to_string(),
                ),
                _ => (EXIT_UNREACHABLE, cause.to_string(), start_it(global)),
            };
            Fail::new(code, format!("cannot reach the daemon at {path}: {why}; {help}"), None)
        }
        ClientError::Api { status, error } => {
            let code = match (status, error.code.as_str()) {
                (_, "unit.unknown") => EXIT_UNKNOWN_UNIT,
                (_, "log.bad-pattern") => crate::cli::EXIT_USAGE,
                (403, _) => EXIT_NOT_PERMITTED,
                (503, _) => EXIT_UNREACHABLE,
                (_, _) => EXIT_FAILED,
            };
            Fail::new(code, error.message, error.help)
        }
        ClientError::Timeout(after) => Fail::new(
            EXIT_TIMEOUT,
            format!("timed out after {}", crate::base::duration::Pretty(after)),
            "an order that was given stands; `upright status` shows how far it is".to_string(),
        ),
        ClientError::Broken(cause) => Fail::new(
            EXIT_UNREACHABLE,
            format!("cannot read the daemon's answer: {cause}"),
            "its engine may have been replaced just now; ask again".to_string(),
        ),
    }
}

fn start_it(global: &GlobalArgs) -> String {
    let home = match &global.home {
        Some(home) => format!(" --home {}", home.display()),
        None => String::new(),
    };
    format!("is it running? start it with `upright daemon{home}`")
}

/// How stdout may look.
pub fn look(when: ColorWhen) -> Look {
    let stdout = std::io::stdout();
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let colored = match when {
        ColorWhen::Always => true,
        ColorWhen::Never => false,
        ColorWhen::Auto => stdout.is_terminal() && !forbidden,
    };
    let paint = if colored { Paint::Colored } else { Paint::Plain };
    let width = terminal_size::terminal_size_of(&stdout).map(|(width, _)| usize::from(width.0));
    Look { paint, width: width.filter(|width| *width > 0), zone: TimeZone::system() }
}

/// Wall time, for "ago".
pub fn now() -> Timestamp {
    clock::wall()
}
