//! `upright drill`: scenarios against a live daemon, through its API, with a verdict on every KPI.
//!
//! The drill is a client: it asks for faults, hears of what happens, measures and judges. The daemon holds the
//! faults and undoes them, whatever becomes of the drill.
//!
//! Refuses: the engine, the store, and units that are not `drillable`.

mod load;
mod play;
mod requests;
mod stored;
mod talk;
pub mod compare;
pub mod html;
pub mod papers;
pub mod report;
pub mod sample;
pub mod scenario;
pub mod verdict;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::api::client::ClientError;
use crate::drill::verdict::Verdict;

/// What to drill, and where.
pub struct Asked {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// `<logs>/drills` is made in it.
    pub logs: PathBuf,
    /// The name of a shipped scenario, or a file.
    pub scenario: String,
    pub iterations: Option<u32>,
    pub pause: Option<Duration>,
    pub duration: Option<Duration>,
    pub interval: Option<Duration>,
    /// Of a backend that is asked meanwhile: `http://127.0.0.1:8000`.
    pub base_url: Option<String>,
    /// A command that prints the id of each session that is stored, one a line.
    pub stored_ids: Option<Vec<String>>,
    /// Only these units are hurt.
    pub units: Vec<String>,
}

/// Why a drill came to no verdict.
#[derive(Debug)]
pub enum DrillError {
    /// The daemon does not answer, or refuses.
    Client(ClientError),
    /// Nothing was begun: it cannot be done as it was asked.
    Usage { message: String, help: String },
    /// Something else, told in a sentence.
    Failed(String),
}

impl From<ClientError> for DrillError {
    fn from(error: ClientError) -> DrillError {
        DrillError::Client(error)
    }
}

impl From<std::io::Error> for DrillError {
    fn from(error: std::io::Error) -> DrillError {
        DrillError::Failed(format!("cannot write down the drill: {error}"))
    }
}

/// A drill that came to its end.
pub struct Done {
    pub id: String,
    pub verdict: Verdict,
    /// Where its papers are.
    pub dir: PathBuf,
}

/// Runs a drill from its begin to its verdict; the story goes to `out`.
///
/// # Errors
/// As `DrillError` says; what had been begun is undone.
pub fn run(asked: &Asked, out: &mut dyn Write) -> Result<Done, DrillError> {
    let scenario = scenario::find(&asked.scenario, asked)?;
    load::target(asked)?;
    let mut play = play::Play::begin(asked, scenario, out)?;
    let played = play.play();
    play.end(played)
}

/// Text from elsewhere, for a terminal: no control character survives.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
