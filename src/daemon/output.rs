//! What runs write: their spools, the capture of their pipes, and when the keeper may forget a run.
//!
//! Refuses: letting a run go before its last words are stored and its end is marked, and waiting
//! for that longer than a second.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::base::{exit::RunId, name::UnitName};
use crate::daemon::hands::{Hands, Source, stamp};
use crate::daemon::launch;
use crate::daemon::lines::LogSource;
use crate::daemon::pipes::Name;
use crate::keeper::wire::{HOLD_NOTIFY_FD, Request};
use crate::logs::Stream;
use crate::logs::capture::{self, End, News, Pipe};
use crate::logs::spool::{Keep, Now, Pack, Spool, SpoolError};
use crate::store::row::{Level, NewEvent};
use crate::store::trouble::{Code, Trouble};
use crate::sys::clock;
use crate::telemetry::observe::note;
use crate::unit::spec::{Log, StderrTo, UnitSpec};

/// How long a run's last words may take to reach the disk before the keeper lets go of its
/// pipe all the same (a full disk, or a grandchild that goes on writing).
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// The daemon's side of what is captured.
#[derive(Default)]
pub struct Output {
    spools: BTreeMap<(UnitName, Stream), Arc<Spool>>,
    /// Pipes that the capture still reads.
    pipes: BTreeMap<RunId, Piped>,
    /// Runs whose end is being marked.
    releasing: BTreeSet<RunId>,
    /// Streams that cannot be written now.
    troubled: BTreeSet<(UnitName, Stream)>,
}

/// The pipes of a run, which may outlive it.
struct Piped {
    unit: UnitName,
    streams: BTreeSet<Stream>,
}

impl Output {
    /// What the unit's streams ever had, of those that this engine has opened.
    pub fn stored_bytes(&self, unit: &UnitName) -> Option<u64> {
        let spools = Stream::ALL.iter().filter_map(|stream| self.spools.get(&(unit.clone(), *stream)));
        spools.map(|spool| spool.stored_bytes()).reduce(u64::saturating_add)
    }

    /// What is told as long as somebody's output cannot be written.
    pub fn trouble(&self) -> Option<Trouble> {
        let units: BTreeSet<&str> = self.troubled.iter().map(|(unit, _)| unit.as_str()).collect();
        let names: Vec<&str> = units.into_iter().collect();
        (!names.is_empty()).then(|| Trouble {
            code: Code::LogBlocked,
            message: format!("what these units write cannot be stored now: {}", names.join(", ")),
            help: "make room where the logs are; `upright events` tells the cause".to_string(),
        })
    }
}

/// How much of a stream is kept, by the unit's file.
pub fn keep(log: &Log) -> Keep {
    Keep {
        file_bytes_max: log.max_size_bytes,
        files_max: log.max_files,
        age_max_s: log.max_age.as_secs(),
        pack: if log.compress { Pack::Yes } else { Pack::No },
        when_full: log.when_full,
    }
}

impl Hands {
    /// From now on the unit is as this says.
    pub fn set_spec(&mut self, spec: &Arc<UnitSpec>) {
        let keep = keep(&spec.log);
        for stream in Stream::ALL {
            if let Some(spool) = self.output.spools.get(&(spec.name.clone(), stream))
                && spool.keep() != keep
            {
                spool.set_keep(keep);
                self.tools.capture.tidy(spool);
            }
        }
        self.specs.insert(spec.name.clone(), Arc::clone(spec));
    }

    /// A follower without a log has nothing to follow.
    fn spool_or_nothing(&mut self, unit: &UnitName, stream: Stream) -> Option<Arc<Spool>> {
        self.spool(unit, stream)
            .inspect_err(|why| tracing::error!("what {unit} writes is not kept: {why}"))
            .ok()
    }

    /// The one spool of this stream.
    ///
    /// # Errors
    /// See `SpoolError`.
    pub fn spool(&mut self, unit: &UnitName, stream: Stream) -> Result<Arc<Spool>, SpoolError> {
        if let Some(spool) = self.output.spools.get(&(unit.clone(), stream)) {
            return Ok(Arc::clone(spool));
        }
        let kept = self.specs.get(unit).map_or_else(|| keep(&Log::default()), |spec| keep(&spec.log));
        let stamp = stamp(clock::monotonic());
        let now = Now { at: stamp.at, ts_us: stamp.ts_us };
        let spool = Spool::open(&self.tools.logs, unit, stream, kept, now)?;
        let spool = Arc::new(spool);
        self.tools.capture.tidy(&spool);
        self.output.spools.insert((unit.clone(), stream), Arc::clone(&spool));
        Ok(spool)
    }

    /// Moves what the run writes into its spool from now on.
    pub fn capture(&mut self, pipe: Pipe) {
        let none = || Piped { unit: pipe.spool.unit().clone(), streams: BTreeSet::new() };
        self.output.pipes.entry(pipe.run).or_insert_with(none).streams.insert(pipe.spool.stream());
        self.tools.capture.add(pipe);
    }

    /// Lets the keeper forget a run once its pipes are drained and its end is marked, or a second
    /// has passed.
    pub fn release(&mut self, run: RunId) {
        let Some(live) = self.runs.get(&run) else { return self.release_now(run) };
        let spool = self.output.spools.get(&(live.unit.clone(), Stream::Stdout)).cloned();
        let end = live.end.zip(spool).map(|((at, exit), spool)| {
            let ago = clock::monotonic().since(at);
            let ago_us = i64::try_from(ago.as_micros()).unwrap_or(0);
            End { spool, exit, ts_us: clock::wall().as_microsecond().saturating_sub(ago_us) }
        });
        let open = self.output.pipes.get(&run).is_some_and(|open| !open.streams.is_empty());
        if end.is_none() && !open {
            return self.release_now(run);
        }
        self.output.releasing.insert(run);
        self.tools.capture.finish(run, end);
        let sources = self.tools.sources.clone();
        tokio::spawn(async move {
            tokio::time::sleep(DRAIN_MAX).await;
            let _ = sources.send(Source::DrainOverdue(run)); // the loop has ended
        });
    }

    pub fn on_captured(&mut self, news: News) {
        match news {
            News::Closed { run, stream } => {
                if let Some(open) = self.output.pipes.get_mut(&run) {
                    open.streams.remove(&stream);
                    let label = launch::label(stream);
                    self.tools.pipes.forget(&Name { unit: open.unit.clone(), run, label });
                    if open.streams.is_empty() {
                        self.output.pipes.remove(&run);
                    }
                }
            }
            News::Finished(run) => self.on_drain_overdue(run),
            News::Trouble { unit, stream, run, trouble } => self.on_log_trouble(unit, stream, run, trouble),
        }
    }

    pub fn on_drain_overdue(&mut self, run: RunId) {
        if self.output.releasing.remove(&run) {
            self.release_now(run);
        }
    }

    fn release_now(&mut self, run: RunId) {
        if let Some(live) = self.runs.remove(&run) {
            self.tools.pipes.forget(&Name { unit: live.unit, run, label: HOLD_NOTIFY_FD });
        }
        self.ask_keeper(Request::Release { run });
    }

    fn on_log_trouble(&mut self, unit: UnitName, stream: Stream, run: RunId, trouble: capture::Trouble) {
        let log = match stream {
            Stream::Stdout => format!("the log of {unit}"),
            Stream::Stderr => format!("the error log of {unit}"),
        };
        let (level, event, message) = match trouble {
            capture::Trouble::Blocked(errno) => {
                let why = errno.desc();
                let message = format!("{log} cannot be written: {why}; what it writes waits, and so may it");
                (Level::Error, "log.blocked", message)
            }
            capture::Trouble::Dropping(errno) => {
                let why = errno.desc();
                let message =
                    format!("{log} cannot be written: {why}; what it writes is dropped and counted");
                (Level::Error, "log.dropping", message)
            }
            capture::Trouble::Over { dropped_bytes: 0 } => {
                (Level::Info, "log.recovered", format!("{log} is written again; nothing was lost"))
            }
            capture::Trouble::Over { dropped_bytes } => {
                let message = format!("{log} is written again; {dropped_bytes} bytes were dropped");
                (Level::Warn, "log.recovered", message)
            }
        };
        match level {
            Level::Info => tracing::info!("{message}"),
            Level::Warn => tracing::warn!("{message}"),
            Level::Error => tracing::error!("{message}"),
        }
        let line = note(level, event, message, stamp(clock::monotonic()));
        let mut line = NewEvent { unit: Some(unit.clone()), run: Some(run), ..line };
        line.data.insert("stream".into(), stream.as_str().into());
        let key = (unit, stream);
        if let capture::Trouble::Over { dropped_bytes } = trouble {
            line.data.insert("dropped_bytes".into(), dropped_bytes.into());
            self.output.troubled.remove(&key);
        } else {
            self.output.troubled.insert(key);
        }
        self.note(line);
        self.end_step();
    }

    /// Every stream of these units, with the spools that are open.
    pub fn log_sources(&self, units: &[UnitName]) -> Vec<LogSource> {
        let streams = units.iter().flat_map(|unit| Stream::ALL.map(|stream| (unit.clone(), stream)));
        let source = |(unit, stream): (UnitName, Stream)| LogSource {
            directory: self.tools.logs.join(unit.as_str()),
            spool: self.output.spools.get(&(unit.clone(), stream)).cloned(),
            unit,
            stream,
        };
        streams.map(source).collect()
    }

    /// Opens what a follower of these units has to listen to.
    pub fn open_spools(&mut self, units: &[UnitName]) {
        for unit in units {
            let _ = self.spool_or_nothing(unit, Stream::Stdout); // said there
            if self.specs.get(unit).is_some_and(|spec| spec.log.stderr == StderrTo::Separate) {
                let _ = self.spool_or_nothing(unit, Stream::Stderr); // said there
            }
        }
    }
}
