//! Rereading the files while everything runs: when, for whom, and what is told about it.
//!
//! Refuses: deciding what a changed file does to a unit (`engine::plan`), and reading on the
//! loop: a directory on a dead server must not hold up a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

use crate::alert::Channels;
use crate::api::call::{Answer, Peer};
use crate::api::types::{ConfigApplied, ConfigError, ConfigPlan, PlannedKey, UnitOutcome};
use crate::base::limits;
use crate::base::name::UnitName;
use crate::config::load::{Loaded, load};
use crate::daemon::again::{Again, FILES_RETRY};
use crate::daemon::doors::who;
use crate::daemon::files::{Reading, judge, sentence};
use crate::daemon::handlers::{Until, json, refuse};
use crate::daemon::hands::Source;
use crate::daemon::shell::Shell;
use crate::daemon::takeover::rotation_of;
use crate::daemon::views;
use crate::daemon::watch::Watching;
use crate::engine::effect::Outcome;
use crate::engine::event::{Event, Order, RequestId};
use crate::engine::plan::{Change, Comes};
use crate::engine::safe::{Mode, WAY_OUT};
use crate::store::row::Level;
use crate::store::writer::Write;
use crate::sys::clock;
use crate::sys::threads::aside;
use crate::unit::daemon_file::{DaemonSpec, Watch};
use crate::unit::diff::{changed_daemon_keys, takes};
use crate::unit::keys::Takes;
use crate::unit::spec::UnitSpec;

/// A mistake that was not there before is told when it is still there after this: a file may
/// have been caught half-written. With the watch's own pause it is red within a second.
const DOUBT: Duration = Duration::from_millis(300);

/// For whom the files are read.
pub enum Reader {
    /// Something moved; the second look at a doubtful reading.
    Watch(Look),
    /// SIGHUP.
    Signal,
    Plan(oneshot::Sender<Answer>),
    Apply(Peer, Until, oneshot::Sender<Answer>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    First,
    Second,
}

/// What the shell knows of the files.
pub struct Files {
    /// File → the text that is in force.
    good: BTreeMap<String, String>,
    pub daemon: DaemonSpec,
    pub errors: Vec<ConfigError>,
    /// The files say something else than what is in force, and nobody applies it.
    pub unapplied: bool,
    /// What the note about unapplied files was last about.
    noted: Vec<(String, String)>,
    watching: Option<Arc<Mutex<Watching>>>,
    /// Those for whom the files are read now; None: nobody reads.
    reading: Option<Vec<Reader>>,
    /// Those that came meanwhile: what was read may be older than what they ask about.
    next: Vec<Reader>,
    /// A second look is due.
    doubted: bool,
    /// What cannot be watched, as it was told.
    unwatched: Vec<String>,
    /// Another try at what cannot be read or watched is due.
    retrying: bool,
    /// Texts to be kept once a unit is started by them: until then its process is of the older
    /// one, and an engine that begins anew has to know that.
    owed: Vec<(UnitName, Arc<UnitSpec>, String, String)>,
    applies: BTreeMap<u64, Applying>,
}

/// An `apply` whose end somebody awaits.
struct Applying {
    plan: ConfigPlan,
    outcomes: Vec<UnitOutcome>,
    /// Orders that are not answered yet.
    open: BTreeSet<RequestId>,
    reply: oneshot::Sender<Answer>,
}

impl Files {
    pub fn new(in_force: &Reading) -> Files {
        Files {
            good: in_force.good.clone(),
            daemon: in_force.daemon.clone(),
            errors: Vec::new(),
            unapplied: false,
            noted: Vec::new(),
            watching: None,
            reading: None,
            next: Vec::new(),
            doubted: false,
            unwatched: Vec::new(),
            retrying: false,
            owed: Vec::new(),
            applies: BTreeMap::new(),
        }
    }

    /// The first file that fits, with its text in force.
    pub fn good_of(&self, fits: impl Fn(&str) -> bool) -> Option<(String, String)> {
        let found = self.good.iter().find(|(file, _)| fits(file))?;
        Some((found.0.clone(), found.1.clone()))
    }

    /// Whether the last good texts that the store has are those in force.
    pub fn keep_all(&self, stored: &BTreeMap<String, String>) -> Vec<Write> {
        changed_texts(stored, &self.good)
    }
}

/// A file that is there and cannot be read: fds, memory or the disk were short, or its mode is
/// being mended.
fn is_passing(error: &ConfigError) -> bool {
    error.code.ends_with(".unreadable")
}

/// What has to be written so that `old` becomes `new`.
fn changed_texts(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<Write> {
    let gone = old.keys().filter(|file| !new.contains_key(*file));
    let gone = gone.map(|file| Write::LastGood { file: file.clone(), text: None });
    let changed = new.iter().filter(|(file, text)| old.get(*file) != Some(*text));
    let changed =
        changed.map(|(file, text)| Write::LastGood { file: file.clone(), text: Some(text.clone()) });
    gone.chain(changed).collect()
}

impl Shell {
    /// Reads the files on a thread of its own; `on_files_read` goes on.
    pub(crate) fn read_files(&mut self, reader: Reader) {
        if self.files.reading.is_some() {
            return self.files.next.push(reader);
        }
        self.files.reading = Some(vec![reader]);
        self.begin_reading();
    }

    fn begin_reading(&mut self) {
        let home = self.home.clone();
        let sources = self.hands.tools.sources.clone();
        let watching = self.files.watching.clone();
        let token_file = self.files.daemon.api.token_file.clone();
        let begun = aside("files", move || {
            // Before the reading: what changes after it is noticed.
            let troubles = match &watching {
                Some(watching) => watching
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .refresh(&home, token_file.as_deref()),
                None => Vec::new(),
            };
            let loaded = Box::new(load(&home));
            let _ = sources.send(Source::FilesRead { loaded, troubles }); // the loop has ended
        });
        if let Err(error) = begun {
            tracing::warn!("cannot read the files yet: {error}");
            let readers = self.files.reading.take().unwrap_or_default();
            self.files.next.splice(0..0, readers);
            self.hands.again(limits::SHORTAGE_RETRY, Again::Files);
        }
    }

    /// A shortage has passed, or not: who waits for the files is served, and what could not be read
    /// or watched is looked at again.
    pub(crate) fn on_files_again(&mut self) {
        self.files.retrying = false;
        if self.files.daemon.watch != Watch::Off && self.files.watching.is_none() {
            return self.watch_files();
        }
        match std::mem::take(&mut self.files.next) {
            next if next.is_empty() => self.read_files(Reader::Watch(Look::First)),
            next if self.files.reading.is_some() => self.files.next = next,
            next => {
                self.files.reading = Some(next);
                self.begin_reading();
            }
        }
    }

    /// Files that cannot be read or watched now may be another time, and nothing will say so.
    fn files_again(&mut self) {
        if !std::mem::replace(&mut self.files.retrying, true) {
            self.hands.again(FILES_RETRY, Again::Files);
        }
    }

    pub(crate) fn on_files_read(&mut self, loaded: Loaded, troubles: &[String]) {
        for trouble in troubles
            .iter()
            .filter(|trouble| !self.files.unwatched.contains(*trouble))
            .cloned()
            .collect::<Vec<_>>()
        {
            let message = format!("{trouble}; until it can be, `upright apply` reads what changes there");
            self.note(Level::Warn, "config.unwatched", message, []);
        }
        self.files.unwatched = troubles.to_vec();
        if !troubles.is_empty() {
            self.files_again();
        }
        let readers = self.files.reading.take().unwrap_or_default();
        let reading = judge(loaded, &self.files.good);
        if reading.errors.iter().any(is_passing) {
            self.files_again();
        }
        for reader in readers {
            match reader {
                Reader::Watch(look) => self.follow(reading.clone(), look),
                Reader::Signal => self.apply_unasked(reading.clone()),
                Reader::Plan(reply) => {
                    let plan = self.config_plan(&reading);
                    let _ = reply.send(json(&plan)); // whoever asked has left
                }
                Reader::Apply(peer, until, reply) => {
                    self.apply_and_answer(peer, reading.clone(), until, reply)
                }
            }
        }
        if self.files.daemon.api.token_file.is_some() {
            self.look_at_api(); // it may be what has changed
        }
        let next = std::mem::take(&mut self.files.next);
        if !next.is_empty() {
            self.files.reading = Some(next);
            self.begin_reading();
        }
    }

    /// SIGHUP: nobody waits for an answer.
    fn apply_unasked(&mut self, reading: Reading) {
        match self.engine.refuses_files(clock::monotonic()) {
            Some(why) => {
                self.note(Level::Warn, "config.refused", why, []);
                self.say_unapplied(&reading);
            }
            None => _ = self.apply(reading, Told::Always),
        }
    }

    /// Something moved: applies it, or says that it moved, as `[daemon] watch` has it.
    fn follow(&mut self, reading: Reading, look: Look) {
        let is_new = |error: &ConfigError| !self.files.errors.contains(error);
        let doubtful = reading.errors.iter().any(is_new);
        if doubtful && look == Look::First {
            if !std::mem::replace(&mut self.files.doubted, true) {
                let sources = self.hands.tools.sources.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(DOUBT).await;
                    let _ = sources.send(Source::FilesDoubted); // the loop has ended
                });
            }
            return;
        }
        self.files.doubted = false;
        self.follow_now(reading);
    }

    /// What the watch does with a reading that is no passing state of a file.
    pub(crate) fn follow_now(&mut self, reading: Reading) {
        let trusted = self.engine.mode(clock::monotonic()) == Mode::Normal;
        match self.files.daemon.watch {
            Watch::Apply if trusted => _ = self.apply(reading, Told::Changes),
            Watch::Apply | Watch::Notify => self.say_unapplied(&reading),
            Watch::Off => {}
        }
    }

    pub(crate) fn on_files_doubted(&mut self) {
        if std::mem::take(&mut self.files.doubted) {
            self.read_files(Reader::Watch(Look::Second));
        }
    }

    fn say_unapplied(&mut self, reading: &Reading) {
        let plan = self.config_plan(reading);
        let units = plan.units.iter().map(|unit| (unit.unit.clone(), unit.change.clone()));
        let keys = plan.daemon.iter().map(|key| (key.key.clone(), key.takes.clone()));
        let what: Vec<(String, String)> = units.chain(keys).collect();
        self.files.unapplied = !what.is_empty();
        if !what.is_empty() && what != self.files.noted {
            let names: Vec<&str> = what.iter().map(|(name, _)| name.as_str()).collect();
            let message =
                format!("files have changed and are not applied: {}; see `upright plan`", names.join(", "));
            let data = [("changed", names.into_iter().collect::<Value>())];
            self.note(Level::Info, "config.changed", message, data);
        }
        self.files.noted = what;
        self.judge_errors(reading.errors.clone());
    }

    /// Brings a reading in force: the whole of it, in one step of the engine.
    pub(crate) fn apply(&mut self, reading: Reading, told: Told) -> ConfigPlan {
        let plan = self.config_plan(&reading);
        let changes = !plan.units.is_empty() || !plan.daemon.is_empty() || reading.good != self.files.good;
        if changes || told == Told::Always || reading.errors != self.files.errors {
            self.note_loaded(&plan, reading.units.len());
        }
        self.keep_texts(&reading);
        self.files.good = reading.good;
        self.files.unapplied = false;
        self.files.noted.clear();
        self.tune(reading.daemon);
        self.handle(Event::Configured { units: reading.units });
        self.sync_specs();
        self.judge_errors(reading.errors);
        plan
    }

    fn note_loaded(&mut self, plan: &ConfigPlan, units: usize) {
        let errors = plan.errors.len();
        let level = if errors == 0 { Level::Info } else { Level::Warn };
        let changed: Vec<String> =
            plan.units.iter().map(|unit| format!("{} ({})", unit.unit, unit.change)).collect();
        let what = if changed.is_empty() { String::new() } else { format!("; {}", changed.join(", ")) };
        let message = format!(
            "read the files: {units} unit{}, {errors} error{}{what}",
            if units == 1 { "" } else { "s" },
            if errors == 1 { "" } else { "s" }
        );
        let data =
            [("units", units.into()), ("errors", errors.into()), ("changed", changed.into_iter().collect())];
        self.note(level, "config.loaded", message, data);
    }

    /// The texts that come in force are on the disk with the step that brings them, or, where a
    /// process is of the older text, with the start of the new one.
    fn keep_texts(&mut self, reading: &Reading) {
        let restarts: BTreeSet<UnitName> = self
            .engine
            .plan(&reading.units)
            .into_iter()
            .filter(|(_, change)| matches!(change, Change::Changed { comes: Comes::Restart, .. }))
            .map(|(unit, _)| unit)
            .collect();
        self.files.owed.retain(|(unit, spec, ..)| reading.units.contains(spec) && !restarts.contains(unit));
        for spec in reading.units.iter().filter(|spec| restarts.contains(&spec.name)) {
            let file = reading.origin.get(&spec.name).cloned().unwrap_or_default();
            let text = reading.good.get(&file).cloned().unwrap_or_default();
            self.files.owed.push((spec.name.clone(), Arc::clone(spec), file, text));
        }
        let owed: BTreeSet<&str> = self.files.owed.iter().map(|(_, _, file, _)| file.as_str()).collect();
        let is_owed = |write: &Write| matches!(write, Write::LastGood { file, text: Some(_) } if owed.contains(file.as_str()));
        let writes = changed_texts(&self.files.good, &reading.good);
        let now: Vec<Write> = writes.into_iter().filter(|write| !is_owed(write)).collect();
        now.into_iter().for_each(|write| self.hands.keep(write));
    }

    /// Units that were started by a newer text: it is the one to go on with from now on.
    pub(crate) fn keep_owed_texts(&mut self) {
        if self.files.owed.is_empty() {
            return;
        }
        let due =
            |spec: &Arc<UnitSpec>| self.engine.spec_of(&spec.name).is_none_or(|in_force| in_force == spec);
        let (done, open): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.files.owed).into_iter().partition(|(_, spec, ..)| due(spec));
        let waits: BTreeSet<String> = open.iter().map(|(_, _, file, _)| file.clone()).collect();
        self.files.owed = open;
        for (_, _, file, text) in done {
            // All instances of a template have to be there.
            if !waits.contains(&file) {
                self.hands.keep(Write::LastGood { file, text: Some(text) });
            }
        }
    }

    /// What the hands act by is what the engine goes by.
    pub(crate) fn sync_specs(&mut self) {
        for spec in self.engine.specs() {
            self.hands.set_spec(spec);
        }
    }

    /// What of `upright.toml` is in force at once, is.
    fn tune(&mut self, new: DaemonSpec) {
        let changed = changed_daemon_keys(&self.files.daemon, &new);
        let late: Vec<String> =
            changed.iter().filter(|key| key.takes == Takes::Restart).map(|key| key.path()).collect();
        if !late.is_empty() {
            let message =
                format!("{}: in force with the next start of the daemon, not before", late.join(", "));
            let data = [("keys", late.into_iter().collect::<Value>())];
            self.note(Level::Warn, "config.needs_restart", message, data);
        }
        let old = std::mem::replace(&mut self.files.daemon, new);
        // Always: the files of a channel (a URL, a secret) may be others while its table is the same.
        self.beat_as(self.files.daemon.heartbeat.clone());
        self.hands.tools.outbox.configure(Channels::of(&self.files.daemon, &self.home.log_dir));
        self.shutdown_timeout = self.files.daemon.shutdown_timeout;
        self.hands.tools.log.rotate_by(rotation_of(&self.files.daemon));
        self.hands.tools.store.reader().keep_for(self.files.daemon.retention);
        let start_concurrency = self.files.daemon.start_concurrency;
        if old.start_concurrency != start_concurrency {
            self.handle(Event::Tuned { start_concurrency });
        }
        if old.api != self.files.daemon.api {
            self.look_at_api();
            // The file of the token is watched from now on.
            self.read_files(Reader::Watch(Look::First));
        }
        if old.watch != self.files.daemon.watch {
            self.watch_files();
        }
    }

    /// Begins or ends the watch, as `[daemon] watch` has it.
    pub(crate) fn watch_files(&mut self) {
        match (self.files.daemon.watch, self.files.watching.is_some()) {
            (Watch::Off, _) => self.files.watching = None,
            (Watch::Apply | Watch::Notify, true) => {}
            (Watch::Apply | Watch::Notify, false) => {
                match Watching::start(self.hands.tools.sources.clone()) {
                    Ok(watching) => self.files.watching = Some(Arc::new(Mutex::new(watching))),
                    Err(error) => {
                        let trouble = format!("cannot watch the files: {error}");
                        if !self.files.unwatched.contains(&trouble) {
                            let message = format!("{trouble}; until they can be, `upright apply` reads them");
                            self.note(Level::Warn, "config.unwatched", message, []);
                            self.files.unwatched = vec![trouble];
                        }
                        return self.files_again();
                    }
                }
            }
        }
        if self.files.watching.is_some() {
            self.read_files(Reader::Watch(Look::First));
        }
    }

    /// Tells what is wrong now and was not, and what is mended.
    pub(crate) fn judge_errors(&mut self, errors: Vec<ConfigError>) {
        let known = std::mem::take(&mut self.files.errors);
        let new: Vec<ConfigError> = errors.iter().filter(|error| !known.contains(error)).cloned().collect();
        self.note_config_errors(&new);
        let broken: BTreeSet<&str> = errors.iter().map(|error| error.file.as_str()).collect();
        let mended: BTreeSet<String> = known.into_iter().map(|error| error.file).collect();
        for file in mended.into_iter().filter(|file| !broken.contains(file.as_str())) {
            let message = format!("{file} is without error again");
            self.note(Level::Info, "config.mended", message, [("file", file.into())]);
        }
        let sentences = errors.iter().map(sentence).collect();
        self.files.errors = errors;
        self.handle(Event::ConfigJudged { errors: sentences });
    }

    pub(crate) fn note_config_errors(&mut self, errors: &[ConfigError]) {
        for error in errors {
            let data = [
                ("file", error.file.clone().into()),
                ("line", error.line.into()),
                ("column", error.column.into()),
                ("code", error.code.clone().into()),
                ("help", error.help.clone().into()),
            ];
            self.note(Level::Warn, "config.error", sentence(error), data);
        }
    }

    fn config_plan(&self, reading: &Reading) -> ConfigPlan {
        let changes = self.engine.plan(&reading.units);
        let unchanged = changes.iter().filter(|(_, change)| *change == Change::Unchanged).count();
        let daemon = changed_daemon_keys(&self.files.daemon, &reading.daemon);
        ConfigPlan {
            units: changes.iter().filter_map(|(unit, change)| views::planned(unit, change)).collect(),
            unchanged: u64::try_from(unchanged).unwrap_or(u64::MAX),
            errors: reading.errors.clone(),
            warnings: reading.warnings.clone(),
            daemon: daemon
                .iter()
                .map(|key| PlannedKey { key: key.path(), takes: key.takes.as_str().to_string() })
                .collect(),
        }
    }

    fn apply_and_answer(
        &mut self,
        peer: Peer,
        reading: Reading,
        until: Until,
        reply: oneshot::Sender<Answer>,
    ) {
        if let Some(why) = self.engine.refuses_files(clock::monotonic()) {
            let answer = refuse(409, "daemon.safe_mode", why, Some(WAY_OUT.to_string()));
            return drop(reply.send(answer)); // whoever asked may have left
        }
        let changes = self.engine.plan(&reading.units);
        self.audit_apply(&peer, &changes);
        let plan = self.apply(reading, Told::Always);
        let of = |wanted: fn(&Change) -> bool| -> Vec<UnitName> {
            changes.iter().filter(|(_, change)| wanted(change)).map(|(unit, _)| unit.clone()).collect()
        };
        let (up, down) = (of(goes_up), of(goes_down));
        let orders: Vec<Order> =
            [(up.is_empty(), Order::AwaitUp(up)), (down.is_empty(), Order::AwaitDown(down))]
                .into_iter()
                .filter(|(empty, _)| !empty)
                .map(|(_, order)| order)
                .collect();
        if until == Until::Taken || orders.is_empty() {
            let applied = ConfigApplied { plan, outcomes: Vec::new() };
            return self.hands.answer_when_committed(reply, json(&applied));
        }
        let requests: Vec<RequestId> = orders.iter().map(|_| self.new_request()).collect();
        let first = requests.first().map_or(0, |request| request.0);
        let open = requests.iter().copied().collect();
        self.files.applies.insert(first, Applying { plan, outcomes: Vec::new(), open, reply });
        for (request, order) in requests.into_iter().zip(orders) {
            self.handle(Event::Ordered { request, order });
        }
    }

    fn audit_apply(&mut self, peer: &Peer, changes: &[(UnitName, Change)]) {
        let units: Vec<&str> = changes
            .iter()
            .filter(|(_, change)| *change != Change::Unchanged)
            .map(|(unit, _)| unit.as_str())
            .collect();
        let message = format!("{peer} asked to apply the files");
        let what = [("verb", "apply".into()), ("units", units.into_iter().collect())];
        self.note(Level::Info, "order.asked", message, who(peer).into_iter().chain(what));
    }

    /// An order of an `apply` is done, or (`Err`) cannot be written down; false: it was none.
    pub(crate) fn on_applied(
        &mut self,
        request: RequestId,
        outcomes: Result<&[(UnitName, Outcome)], Answer>,
    ) -> bool {
        let found = self.files.applies.iter().find(|(_, apply)| apply.open.contains(&request));
        let Some(id) = found.map(|(id, _)| *id) else { return false };
        let Some(mut apply) = self.files.applies.remove(&id) else { return false };
        match outcomes {
            Err(answer) => _ = apply.reply.send(answer), // whoever asked has left
            Ok(outcomes) => {
                apply.open.remove(&request);
                let told =
                    outcomes.iter().map(|(unit, outcome)| views::outcome(unit, outcome, self.state_of(unit)));
                apply.outcomes.extend(told);
                if !apply.open.is_empty() {
                    self.files.applies.insert(id, apply);
                    return true;
                }
                apply.outcomes.sort_by(|a, b| a.unit.cmp(&b.unit));
                let applied = ConfigApplied { plan: apply.plan, outcomes: apply.outcomes };
                let _ = apply.reply.send(json(&applied)); // whoever asked has left
            }
        }
        true
    }
}

/// Whether a reread is told when it changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Always,
    Changes,
}

fn goes_up(change: &Change) -> bool {
    match change {
        Change::Added => true,
        Change::Changed { comes, keys } => match comes {
            Comes::Restart | Comes::Start => true,
            // What gave up or waits for its next try is tried now.
            Comes::NextStart => takes(keys) == Some(Takes::Restart),
            Comes::Live | Comes::Stop => false,
        },
        Change::Unchanged | Change::Removed => false,
    }
}

fn goes_down(change: &Change) -> bool {
    match change {
        Change::Removed => true,
        Change::Changed { comes, .. } => match comes {
            Comes::Stop => true,
            Comes::Restart | Comes::Start | Comes::NextStart | Comes::Live => false,
        },
        Change::Unchanged | Change::Added => false,
    }
}
