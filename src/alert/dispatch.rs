//! The dispatcher: the outbox's decisions, performed. One task on the engine's runtime; what may
//! wait for a disk or a network is a task or a thread of its own and comes back as news.
//!
//! Refuses: writing to the store. What is to be kept goes to the loop, which keeps it with its
//! record in one transaction, and tells when that is on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;

use crate::alert::file::FileSink;
use crate::alert::gather::Gatherer;
use crate::alert::send::send;
use crate::alert::word::Word;
use crate::alert::{Channels, Way, print};
use crate::base::time::Monotonic;
use crate::engine::outbox::{
    Before, Delivery, DeliveryState, Effect, Effects, Event, Outbox, Outcome, Quiet, Row, Settings, Takes,
    WINDOW_ROWS, Which,
};
use crate::store::writer::Reader;
use crate::sys::clock;
use crate::sys::threads::aside;
use crate::unit::channels::Channel;

/// Longest text about a failed send that is kept.
const ERROR_CHARS_MAX: usize = 300;

/// What is to be kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Keep {
    Delivery {
        row: Arc<Row>,
        delivery: Delivery,
    },
    /// Which channels there are, each with the last alert that is not for it.
    Channels(BTreeMap<String, u64>),
    /// What was refused has been sent again to what this channel is now.
    Print {
        channel: String,
        print: u64,
    },
    /// A line of history.
    Note(Word),
}

/// What the dispatcher begins with.
pub struct Inheritance {
    /// None: `upright.toml` is broken; what waits for the known channels waits on.
    pub channels: Option<Channels>,
    /// As kept by the last `Keep::Channels`.
    pub known: BTreeMap<String, u64>,
    /// The newest alert of the store.
    pub last_alert: u64,
    /// Of the jitter's luck.
    pub seed: u64,
    pub reader: Reader,
    /// What is not to be told.
    pub quiet: Quiet,
    /// The directory of the logs, whose last lines an alert carries.
    pub logs: PathBuf,
}

/// The way to the dispatcher. Cheap to clone; nothing here blocks.
#[derive(Clone)]
pub struct Dispatcher {
    told: UnboundedSender<Heard>,
    routes: Arc<Mutex<Vec<Route>>>,
    late: Arc<Mutex<BTreeSet<String>>>,
}

/// Which alerts are for a channel: what an alert without a delivery is to be shown as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub channel: String,
    /// Alerts up to this one are older than the channel.
    pub since: u64,
    pub takes: Takes,
}

impl Route {
    pub fn takes(&self, row: &Row) -> bool {
        row.id > self.since && self.takes.takes(&self.channel, &row.alert)
    }
}

enum Heard {
    Configured(Channels),
    Cut(Line),
    Event(Event),
}

/// Whether anything goes to any channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Whole,
    /// By a drill: every attempt fails, and is made again as after any failure.
    Cut,
}

/// What performs the sends of a channel.
#[derive(Clone)]
enum Sink {
    /// Never two writes at once, the second of which would pass a hung one.
    File(Arc<Mutex<FileSink>>),
    Away(Arc<Channel>),
}

impl Sink {
    fn of(way: &Way) -> Sink {
        match way {
            Way::File { path } => Sink::File(Arc::new(Mutex::new(FileSink::new(path.clone())))),
            Way::Away(channel) => Sink::Away(Arc::clone(channel)),
        }
    }
}

/// A send under way.
struct Sending {
    row: u64,
    attempt: u32,
    /// None: a thread does it, which nobody can stop.
    task: Option<AbortHandle>,
}

struct Task {
    outbox: Outbox,
    effects: Effects,
    sinks: BTreeMap<String, (Way, Sink)>,
    /// Why there are no sinks, when that is so.
    broken: Option<&'static str>,
    line: Line,
    news: UnboundedSender<Heard>,
    gather: Gatherer,
    /// What the last step wants kept.
    keeps: Vec<Keep>,
    routes: Arc<Mutex<Vec<Route>>>,
    /// Channels whose first alert waits too long.
    late: Arc<Mutex<BTreeSet<String>>>,
    /// The send under way on each channel.
    sends: BTreeMap<String, Sending>,
}

impl Dispatcher {
    /// Starts the task. What is to be kept first is in the answer: it must be submitted before
    /// any alert of this engine is, or a new channel could not tell which are older than it.
    /// `keep` gets the rest; it must not block.
    pub fn start(inherited: Inheritance, keep: impl FnMut(Keep) + Send + 'static) -> (Dispatcher, Vec<Keep>) {
        let Inheritance { channels, known, last_alert, seed, reader, quiet, logs } = inherited;
        let (told, heard) = unbounded_channel();
        let routes = Arc::new(Mutex::new(Vec::new()));
        let late = Arc::new(Mutex::new(BTreeSet::new()));
        let dispatcher =
            Dispatcher { told: told.clone(), routes: Arc::clone(&routes), late: Arc::clone(&late) };
        let mut task = Task {
            outbox: Outbox::new(Settings { seed, window_rows: WINDOW_ROWS }, &known, last_alert),
            effects: Effects::default(),
            sinks: BTreeMap::new(),
            broken: None,
            line: Line::Whole,
            news: told,
            gather: Gatherer { reader, logs, dashboard: None },
            keeps: Vec::new(),
            routes,
            late,
            sends: BTreeMap::new(),
        };
        task.step(Event::Quieted { quiet });
        match channels {
            Some(channels) => task.configure(channels),
            None => {
                task.broken = Some("upright.toml is broken; `upright check` says where");
                task.step(Event::Tick);
            }
        }
        let first = std::mem::take(&mut task.keeps);
        tokio::spawn(task.run(heard, keep));
        (dispatcher, first)
    }

    /// The channels that are in force from now on.
    pub fn configure(&self, channels: Channels) {
        let _ = self.told.send(Heard::Configured(channels)); // the task has ended with the runtime
    }

    /// From the next attempt on. What is under way may still arrive.
    pub fn cut(&self, line: Line) {
        let _ = self.told.send(Heard::Cut(line)); // as above
    }

    /// These alerts are on the disk.
    pub fn committed(&self, rows: Vec<Arc<Row>>) {
        if !rows.is_empty() {
            let _ = self.told.send(Heard::Event(Event::Committed { rows })); // as above
        }
    }

    /// These deliveries are on the disk.
    pub fn kept(&self, deliveries: Vec<Delivery>) {
        for Delivery { row, channel, state, .. } in deliveries {
            if state != DeliveryState::Pending {
                let _ = self.told.send(Heard::Event(Event::Kept { channel, row })); // as above
            }
        }
    }

    /// What is not to be told from now on.
    pub fn quieted(&self, quiet: Quiet) {
        let _ = self.told.send(Heard::Event(Event::Quieted { quiet })); // as above
    }

    /// Channels whose first alert has waited longer than `OVERDUE_AFTER`.
    pub fn late(&self) -> BTreeSet<String> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Which alerts are for which channel now.
    pub fn routes(&self) -> Vec<Route> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Task {
    async fn run(mut self, mut heard: UnboundedReceiver<Heard>, mut keep: impl FnMut(Keep)) {
        loop {
            self.keeps.drain(..).for_each(&mut keep);
            let told = match self.outbox.next_deadline() {
                Some(at) => tokio::time::timeout(wait_until(at), heard.recv()).await,
                None => Ok(heard.recv().await),
            };
            match told {
                Ok(Some(Heard::Configured(channels))) => self.configure(channels),
                Ok(Some(Heard::Cut(line))) => self.line = line,
                Ok(Some(Heard::Event(event))) => {
                    self.note_answer(&event);
                    self.step(event);
                }
                Ok(None) => return,
                Err(_) => self.step(Event::Tick),
            }
        }
    }

    /// The thread of this send is free.
    fn note_answer(&mut self, event: &Event) {
        if let Event::Answered { channel, row, attempt, .. } = event
            && self
                .sends
                .get(channel)
                .is_some_and(|sending| (sending.row, sending.attempt) == (*row, *attempt))
        {
            self.sends.remove(channel);
        }
    }

    fn configure(&mut self, channels: Channels) {
        let Channels { ways, dashboard } = channels;
        self.print(ways.clone());
        self.broken = None;
        self.gather.dashboard = dashboard;
        self.sinks.retain(|name, (way, _)| ways.get(name).is_some_and(|(wanted, _)| wanted == way));
        let mut terms = BTreeMap::new();
        for (name, (way, takes)) in ways {
            terms.insert(name.clone(), way.terms(takes));
            let sink = self.sinks.remove(&name).map_or_else(|| Sink::of(&way), |(_, sink)| sink);
            self.sinks.insert(name, (way, sink));
        }
        self.step(Event::Configured { channels: terms });
    }

    /// Looks what the channels are configured to be, files included, and what they were.
    fn print(&self, ways: BTreeMap<String, (Way, Takes)>) {
        let news = self.news.clone();
        let begun = move |kept| {
            let begun = aside("alert", move || {
                let prints = ways.iter().map(|(name, (way, _))| (name.clone(), print::of(way))).collect();
                let _ = news.send(Heard::Event(Event::Printed { prints, kept })); // the task has ended
            });
            if let Err(error) = begun {
                tracing::warn!("no thread to look at the channels' files with: {error}");
            }
        };
        self.gather.reader.alert_prints(move |kept| match kept {
            Ok(kept) => begun(kept),
            Err(error) => tracing::warn!("cannot read what the channels were: {error}"),
        });
    }

    fn step(&mut self, event: Event) {
        self.outbox.step(clock::monotonic(), event, &mut self.effects);
        let effects: Vec<Effect> = self.effects.drain().collect();
        self.effects.drain_marks().for_each(drop);
        for effect in effects {
            self.perform(effect);
        }
        let routes = self.outbox.channels().map(|(channel, since, takes)| Route {
            channel: channel.to_string(),
            since,
            takes,
        });
        *self.routes.lock().unwrap_or_else(PoisonError::into_inner) = routes.collect();
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Load { channel, after, limit, which } => self.load(channel, after, limit, which),
            Effect::Send { channel, row, others, attempt, before } => {
                self.send(channel, (row, others), attempt, before);
            }
            Effect::Abandon { channel, row, attempt } => {
                tracing::warn!("channel {channel}: no answer to send {attempt} of alert {row}");
                self.abandon(&channel);
            }
            Effect::Keep { row, mut delivery } => {
                if let Some(error) = &mut delivery.error {
                    *error = error.chars().take(ERROR_CHARS_MAX).collect();
                    let (key, channel) = (&row.alert.key, &delivery.channel);
                    tracing::warn!("alert {key} is {} on {channel}: {error}", delivery.state.as_str());
                }
                self.keeps.push(Keep::Delivery { row, delivery });
            }
            Effect::SaveChannels(known) => self.keeps.push(Keep::Channels(known)),
            Effect::SavePrint { channel, print } => self.keeps.push(Keep::Print { channel, print }),
            Effect::Overdue { channel, row } => {
                self.late().insert(channel.clone());
                self.keeps.push(Keep::Note(Word::Overdue { channel, row }));
            }
            Effect::InTime { channel } => {
                self.late().remove(&channel);
                self.keeps.push(Keep::Note(Word::InTime { channel }));
            }
        }
    }

    fn late(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, channel: String, after: u64, limit: usize, which: Which) {
        let news = self.news.clone();
        self.gather.reader.unsettled(channel.clone(), after, limit, which, move |rows| {
            let event = match rows {
                Ok(rows) => {
                    let full = rows.len() >= limit;
                    let rows = rows.into_iter().map(|(row, attempts)| (Arc::new(row), attempts)).collect();
                    Event::Loaded { channel, rows, full }
                }
                Err(error) => {
                    tracing::warn!("cannot read the alerts that wait for {channel}: {error}");
                    Event::LoadFailed { channel }
                }
            };
            let _ = news.send(Heard::Event(event)); // the task has ended with the runtime
        });
    }

    fn send(
        &mut self,
        channel: String,
        (row, others): (Arc<Row>, Vec<Arc<Row>>),
        attempt: u32,
        before: Before,
    ) {
        let id = row.id;
        let news = self.news.clone();
        let tell = move |channel: String, outcome: Outcome| {
            let event = Event::Answered { channel, row: id, attempt, outcome };
            let _ = news.send(Heard::Event(event)); // as above
        };
        let fail = |why: &str| Outcome::Failed { why: why.to_string(), retry_after: None };
        if self.line == Line::Cut {
            return tell(channel, fail("cut by a drill"));
        }
        let Some((_, sink)) = self.sinks.get(&channel) else {
            return tell(channel, fail(self.broken.unwrap_or("it is not configured")));
        };
        match sink.clone() {
            // A disk that hangs holds one thread of ours, not one more with each try.
            Sink::File(_) if self.sends.contains_key(&channel) => {
                tell(channel, fail("the write before this one still hangs"));
            }
            Sink::File(sink) => {
                let (to, tell_of_it) = (channel.clone(), tell.clone());
                let begun = aside("alert", move || {
                    let outcome = sink.lock().unwrap_or_else(PoisonError::into_inner).send(&row, before);
                    tell(channel, outcome);
                });
                match begun {
                    Ok(_) => _ = self.sends.insert(to, Sending { row: id, attempt, task: None }),
                    Err(error) => tell_of_it(to, fail(&format!("no thread to write it with: {error}"))),
                }
            }
            Sink::Away(to) => {
                self.abandon(&channel);
                let gather = self.gather.clone();
                let name = channel.clone();
                let task = tokio::spawn(async move { tell(channel, send(to, row, others, gather).await) });
                self.sends.insert(name, Sending { row: id, attempt, task: Some(task.abort_handle()) });
            }
        }
    }

    /// Closes the connection of a send that nobody waits for. A thread goes on, and keeps its place.
    fn abandon(&mut self, channel: &str) {
        if let Some(task) = self.sends.get(channel).and_then(|sending| sending.task.clone()) {
            task.abort();
            self.sends.remove(channel);
        }
    }
}

fn wait_until(at: Monotonic) -> Duration {
    at.since(clock::monotonic())
}
