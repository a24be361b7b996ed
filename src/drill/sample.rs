//! Samples: what was done, seen and heard in a drill, one JSON object a line. A verdict is made of nothing else.
//!
//! Refuses: conclusions.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::api::types::{AlertLine, EventLine, UnitList};

/// A unit at a moment.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct UnitState {
    pub state: String,
    pub restarts: u64,
    pub run: Option<u64>,
}

/// Every unit, by name.
pub type States = BTreeMap<String, UnitState>;

/// The states of a list.
pub fn states(list: &UnitList) -> States {
    let state = |unit: &crate::api::types::Unit| UnitState {
        state: unit.state.clone(),
        restarts: unit.restarts,
        run: unit.run,
    };
    list.units.iter().map(|unit| (unit.name.clone(), state(unit))).collect()
}

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "sample", rename_all = "kebab-case")]
pub enum Sample {
    Begin {
        ts: String,
        drill: String,
        scenario: String,
        version: String,
        fatal_stops: u64,
        units: States,
    },
    /// A fault was done; latencies count from `at_ns` (CLOCK_BOOTTIME).
    Fault {
        ts: String,
        iteration: u32,
        kind: String,
        unit: Option<String>,
        at_ns: u64,
    },
    /// A record of history, as it came.
    Event {
        event: EventLine,
    },
    /// Every `interval` and after each recovery.
    State {
        ts: String,
        at_ns: u64,
        units: States,
    },
    /// How broken requests were answered.
    Requests {
        ts: String,
        to: String,
        sent: u64,
        /// 4xx, or the connection was closed.
        refused: u64,
        /// 5xx.
        server_errors: u64,
        /// It did not answer a good request afterwards.
        silent: u64,
    },
    /// One request of the load beside the faults.
    Load {
        number: u64,
        /// Of the session that it asked to keep; none where the backend keeps no sessions.
        id: Option<String>,
        /// None: no answer.
        status: Option<u16>,
        error: Option<String>,
        at_ns: u64,
        took_us: u64,
    },
    /// What of the load was found at the end, by number.
    Found {
        ts: String,
        /// Their line is in the log of a unit; none: lines are not judged.
        lines: Option<Vec<u64>>,
        /// Their session is stored; none: sessions are not judged, or could not be counted.
        stored: Option<Vec<u64>>,
        /// Why what was to be counted could not be.
        uncounted: Option<String>,
        /// Sentences about what is not judged.
        notes: Vec<String>,
    },
    End {
        ts: String,
        fatal_stops: u64,
        /// Since the begin, of all units.
        log_bytes: u64,
        log_dropped_bytes: u64,
        units: States,
        /// Those that were raised since the begin.
        alerts: Vec<AlertLine>,
    },
}

/// Writes samples down as they come, and has them all.
pub struct Recorder {
    file: File,
    /// What is not written yet: a drill may be about the very disk that its samples are on.
    unwritten: Vec<u8>,
    pub samples: Vec<Sample>,
}

impl Recorder {
    /// Makes `path`, and the directory it is in.
    ///
    /// # Errors
    /// As the file system says, with the path.
    pub fn create(path: &Path) -> io::Result<Recorder> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot make {}: {error}", path.display()))
        };
        path.parent().map(fs::create_dir_all).transpose().map_err(named)?;
        let file = File::options().write(true).create_new(true).open(path).map_err(named)?;
        Ok(Recorder { file, unwritten: Vec::new(), samples: Vec::new() })
    }

    /// Adds a sample, and writes what can be written. On a full disk it waits for the next one.
    ///
    /// # Errors
    /// It cannot be written for another cause.
    pub fn add(&mut self, sample: Sample) -> io::Result<()> {
        serde_json::to_writer(&mut self.unwritten, &sample)?;
        self.unwritten.push(b'\n');
        self.samples.push(sample);
        match self.flush() {
            Err(error) if is_no_room(&error) => Ok(()),
            written => written,
        }
    }

    /// Writes down all of them.
    ///
    /// # Errors
    /// As the file system says.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.unwritten.is_empty() {
            match self.file.write(&self.unwritten) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => drop(self.unwritten.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Reads them again. A last line that is cut, as of a drill that was killed, is left out.
///
/// # Errors
/// The file cannot be read, or a line in it is none of ours.
pub fn read(path: &Path) -> io::Result<Vec<Sample>> {
    let text = fs::read_to_string(path)?;
    let whole = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
    whole.lines().map(|line| serde_json::from_str(line).map_err(io::Error::from)).collect()
}
