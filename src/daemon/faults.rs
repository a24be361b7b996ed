//! How each fault is done and undone: signals to the main process, an outage, a broken unit file.
//!
//! Refuses: deciding whether it may be done (`drills`), and what becomes of the unit (the engine).

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::alert::dispatch::Line;
use crate::api::drills::FaultKind;
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::config::read::{Trust, read};
use crate::daemon::drills::{Heard, Noted};
use crate::daemon::filled;
use crate::daemon::hands::Source;
use crate::daemon::reload::{Look, Reader};
use crate::daemon::shell::Shell;
use crate::daemon::spoiled;
use crate::engine::event::Order;
use crate::keeper::wire::Request;
use crate::store::row::Level;
use crate::sys::clock;

/// A unit that is made slow is stopped for so long, then goes on for so long: a quarter of its speed.
const SLOW_STOPPED: Duration = Duration::from_millis(150);
const SLOW_RUNNING: Duration = Duration::from_millis(50);

/// Whether a unit that is made slow stops or goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    On,
    Stop,
}

impl Shell {
    pub(super) fn hurt(
        &mut self,
        drill: &str,
        number: u64,
        kind: FaultKind,
        unit: Option<UnitName>,
        wait: Duration,
    ) {
        match kind {
            FaultKind::Channels => return self.cut_channels(),
            FaultKind::DiskFull => {
                if let Err(error) = filled::fill(&self.home.log_dir) {
                    tracing::warn!("cannot fill {} for drill {drill}: {error}", self.home.log_dir.display());
                }
                return;
            }
            _ => {}
        }
        let Some(unit) = unit else { return };
        match kind {
            FaultKind::Kill => self.signal_main(&unit, Signal::KILL),
            FaultKind::Hang => self.signal_main(&unit, Signal::STOP),
            FaultKind::Outage => {
                let until = clock::monotonic() + wait;
                self.order_unasked(Order::Outage(unit, Some(until)));
            }
            FaultKind::Slow => self.make_slow(drill, number),
            FaultKind::ConfigCorrupt => {
                let Some(fault) = self.drills.fault(drill, number) else { return };
                if let Some((path, text)) = &fault.noted.file
                    && let Err(error) = spoiled::spoil(Path::new(path), text)
                {
                    tracing::warn!("cannot break {path} for drill {drill}: {error}");
                }
            }
            FaultKind::EngineKill | FaultKind::Channels | FaultKind::DiskFull => {}
        }
    }

    /// Whether the disk of the logs may be filled: nothing else that we know of stands on it.
    pub(super) fn disk_to_fill(&self) -> Result<(), String> {
        let store = self.home.db.parent().unwrap_or(Path::new("/"));
        filled::is_apart(&self.home.log_dir, &[store, Path::new("/")])
    }

    /// As long as a fault of this kind holds, of whichever drill.
    fn cut_channels(&self) {
        let faults = self.drills.open.iter().flat_map(|drill| &drill.faults);
        let mut kinds = faults.filter(|fault| fault.is_done()).map(|fault| fault.noted.kind);
        let cut = kinds.any(|kind| kind == FaultKind::Channels);
        self.hands.tools.outbox.cut(if cut { Line::Cut } else { Line::Whole });
    }

    /// Also of a fault that was not done, or is undone already.
    pub(super) fn heal(&mut self, noted: &Noted, unit: Option<UnitName>) {
        match noted.kind {
            FaultKind::Channels => return self.cut_channels(),
            FaultKind::DiskFull => return self.empty_disk(),
            _ => {}
        }
        let Some(unit) = unit else { return };
        match noted.kind {
            FaultKind::Kill | FaultKind::EngineKill | FaultKind::Channels | FaultKind::DiskFull => {}
            FaultKind::Hang | FaultKind::Slow => self.signal_main(&unit, Signal::CONT),
            FaultKind::Outage => self.order_unasked(Order::Outage(unit, None)),
            FaultKind::ConfigCorrupt => {
                let Some((path, text)) = &noted.file else { return };
                if let Err(error) = spoiled::restore(Path::new(path), text) {
                    tracing::error!("cannot put {path} back after a drill: {error}");
                }
                self.read_files(Reader::Watch(Look::First));
            }
        }
    }

    fn empty_disk(&self) {
        if let Err(error) = filled::empty(&self.home.log_dir) {
            tracing::error!("cannot free {} after a drill: {error}", self.home.log_dir.display());
        }
    }

    /// Files that a drill has broken and of which the journal tells nothing: it went with a corrupt store.
    pub(super) fn restore_spoiled(&mut self) {
        if filled::empty(&self.home.log_dir).is_ok_and(|there_was_one| there_was_one) {
            let message = "the disk of the logs was left full by a drill, and is free again".to_string();
            self.note(Level::Warn, "drill.undone", message, []);
        }
        let dirs = self.home.unit_dirs.iter();
        let restored: Vec<PathBuf> = dirs.flat_map(|dir| spoiled::restore_all(dir)).collect();
        for path in &restored {
            let message = format!("{} was left broken by a drill, and is put back", path.display());
            let data = [("file", path.display().to_string().into())];
            self.note(Level::Warn, "drill.undone", message, data);
        }
        if !restored.is_empty() {
            self.read_files(Reader::Watch(Look::First));
        }
    }

    /// To the newest main process that lives; one that has ended is none.
    fn signal_main(&mut self, unit: &UnitName, signal: Signal) {
        let run = self.hands.mains.get(unit).copied();
        let lives = |run: &_| self.hands.runs.get(run).is_some_and(|live| !live.ended);
        if let Some(run) = run.filter(lives) {
            self.hands.ask_keeper(Request::Signal { run, signal });
        }
    }

    fn make_slow(&mut self, drill: &str, number: u64) {
        let (sources, id) = (self.hands.tools.sources.clone(), drill.to_string());
        let beating = tokio::spawn(async move {
            loop {
                for (go, wait) in [(Go::Stop, SLOW_STOPPED), (Go::On, SLOW_RUNNING)] {
                    if sources.send(Source::Drill(Heard::Beat { drill: id.clone(), number, go })).is_err() {
                        return; // the loop has ended
                    }
                    tokio::time::sleep(wait).await;
                }
            }
        });
        if let Some(fault) = self.drills.fault(drill, number) {
            fault.timers.push(beating.abort_handle());
        }
    }

    pub(super) fn beat_fault(&mut self, drill: &str, number: u64, go: Go) {
        let Some(fault) = self.drills.fault(drill, number).filter(|fault| !fault.noted.over) else { return };
        let Some(unit) = fault.unit.clone() else { return };
        let signal = match go {
            Go::On => Signal::CONT,
            Go::Stop => Signal::STOP,
        };
        self.signal_main(&unit, signal);
    }

    /// The file of a unit, and its text, which is the one in force.
    pub(super) fn file_to_break(&self, unit: &UnitName) -> Result<(String, String), String> {
        let stem = unit.as_str().split('@').next().unwrap_or_default();
        let good = self.files.good_of(|file| {
            if !file.starts_with('/') {
                return false; // the config file has a mark before its path
            }
            let stem_of = Path::new(file).file_stem().and_then(|stem| stem.to_str());
            stem_of.is_some_and(|found| found == stem || found == unit.as_str())
        });
        let Some((file, good)) = good else { return Err(format!("no file of {unit} is in force")) };
        let found =
            read(Path::new(&file), Trust::Deployed).map_err(|error| format!("{file}: {}", error.why))?;
        if found != good {
            return Err(format!("{file} says something else than what is in force"));
        }
        Ok((file, good))
    }
}
