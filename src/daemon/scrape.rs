//! `GET /metrics` and its JSON: what the loop knows is copied there, the rest is looked up on a thread.
//!
//! Refuses: holding up the loop. Processes are looked at aside, for two seconds at most, and the store is
//! asked for one.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use crate::api::call::{Answer, MetricsForm};
use crate::api::timing;
use crate::api::types::{Metric, MetricBucket, MetricSample, SystemMetrics};
use crate::base::time::Monotonic;
use crate::daemon::handlers::{json, refuse};
use crate::daemon::shell::Shell;
use crate::engine::safe::Mode;
use crate::store::figures::{AskedChannel, OutboxFigures};
use crate::sys::clock;
use crate::sys::threads::aside;
use crate::sys::usage::{self, Place, Sessions};
use crate::telemetry::metrics::facts::{Channel, Facts, UnitFacts, Waiting, tell};
use crate::telemetry::metrics::text::{Form, text};
use crate::telemetry::metrics::{Family, Id, Listener, Value};

/// How long processes are looked at; those of the units that are left then are not.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// How long the store may take to say what waits in the outbox.
const STORE_MAX: Duration = Duration::from_secs(1);

/// So many at once; others wait. Threads that wait for disks are few, and alerts need some of them.
static LOOKS: Semaphore = Semaphore::const_new(4);

/// `schema_version` of the JSON.
const SCHEMA_VERSION: u32 = 1;

/// The store's files, as they are named in `upright_store_size_bytes`.
const STORE_FILES: [(&str, &str); 4] =
    [("database", ""), ("wal", "-wal"), ("alerts", "alerts.jnl"), ("state", "state.jnl")];

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Text(MetricsForm),
    Json,
}

/// What is to be looked up, aside.
struct Look {
    facts: Facts,
    /// Of each unit of `facts`, in the same order.
    places: Vec<Option<Place>>,
    pids: [i32; 2],
    db: PathBuf,
}

impl Shell {
    pub(crate) fn answer_metrics(&self, wanted: Wanted, reply: oneshot::Sender<Answer>) {
        let (mut look, reader) = (self.look(), self.hands.history().reader);
        let routes = self.hands.tools.outbox.routes().into_iter();
        let channels: Vec<AskedChannel> = routes
            .map(|route| AskedChannel { name: route.channel, since: route.since, takes: route.takes })
            .collect();
        tokio::spawn(async move {
            let (told, figures) = oneshot::channel();
            reader.outbox_figures(channels.clone(), move |found| drop(told.send(found))); // nobody waits any more
            let figures = tokio::time::timeout(STORE_MAX, figures).await;
            let figures = figures.ok().and_then(Result::ok).and_then(Result::ok);
            look.facts.histograms.push((Id::Commit, reader.commits().read()));
            if let Some(figures) = figures {
                add_outbox(&mut look.facts, figures);
            }
            let turn = LOOKS.acquire().await;
            let answer = match aside("metrics", move || answer(look, wanted)) {
                Ok(answer) => answer.await.ok(),
                Err(_) => None,
            };
            drop(turn);
            let none = || {
                let help = Some("ask again; `upright status` tells what the host is short of".to_string());
                refuse(503, "metrics.busy", "cannot look at processes: no thread is to be had".into(), help)
            };
            let _ = reply.send(answer.unwrap_or_else(none)); // whoever asked has left
        });
    }

    /// What the loop knows, copied.
    fn look(&self) -> Look {
        let clocks = self.clocks();
        let since_1970 = |at: Monotonic| {
            let ago = clocks.now.since(at).as_secs_f64();
            seconds_of_us(clocks.wall_us) - ago
        };
        let mut placed = self.hands.tools.containment.places();
        let mut places = Vec::new();
        let units = self.engine.numbers().into_iter().map(|unit| {
            places.push(placed.remove(&unit.name));
            UnitFacts {
                state: unit.state.as_str(),
                state_start_s: since_1970(unit.since),
                wanted: unit.wanted,
                ready: unit.ready,
                healthy: unit.healthy,
                restarts: unit.restarts,
                failures: self.hands.observed.failures(&unit.name),
                episode_failures: u64::from(unit.failures),
                log_stored_bytes: self.hands.output.stored_bytes(&unit.name),
                usage: None,
                name: unit.name.to_string(),
            }
        });
        let units = units.collect();
        let logs = self.hands.tools.capture.counts();
        let mode = self.engine.mode(clocks.now);
        let facts = Facts {
            version: env!("CARGO_PKG_VERSION"),
            mode: if mode == Mode::Safe { "safe" } else { "normal" },
            uptime_s: clocks.now.since(self.started_at).as_secs_f64(),
            keeper_start_s: since_1970(self.started_at),
            engine_start_s: since_1970(self.engine_started.0),
            engine_starts: u64::from(self.engine_started.1),
            fatal_stops: self.fatal_stops,
            troubles: self.troubles().into_iter().map(|trouble| trouble.code).collect(),
            config_errors: u64::try_from(self.files.errors.len()).unwrap_or(u64::MAX),
            config_unapplied: self.files.unapplied,
            events: Some(self.hands.observed.last_event).filter(|last| *last > 0),
            units,
            histograms: self.hands.observed.histograms(),
            requests: timing::read(),
            store_pending: self.hands.uncommitted(),
            log_stored_bytes: logs.stored_bytes,
            log_dropped_bytes: logs.dropped_bytes,
            log_rotations: logs.rotations,
            log_blocked: logs.in_trouble,
            channels: self.channel_facts(),
            ..Facts::default()
        };
        let pids = [self.keeper_pid, i32::try_from(std::process::id()).unwrap_or(0)];
        Look { facts, places, pids, db: self.home.db.clone() }
    }

    fn channel_facts(&self) -> Vec<Channel> {
        let routes = self.hands.tools.outbox.routes().into_iter();
        let facts = routes.map(|route| {
            let sends = self.hands.observed.sends(&route.channel);
            Channel {
                name: route.channel,
                waiting: None,
                delivered: sends.delivered,
                failed: sends.failed,
                parked: sends.parked,
            }
        });
        facts.collect()
    }
}

fn add_outbox(facts: &mut Facts, figures: OutboxFigures) {
    facts.alerts_raised = Some(figures.raised);
    let now_us = clock::wall().as_microsecond();
    for found in figures.channels {
        let Some(channel) = facts.channels.iter_mut().find(|channel| channel.name == found.name) else {
            continue;
        };
        let age = |raised_us: i64| seconds_of_us(now_us.saturating_sub(raised_us).max(0));
        let oldest_s = found.oldest_us.map_or(0.0, age);
        channel.waiting = Some(Waiting { pending: found.pending, oldest_s, parked: found.parked });
    }
}

/// Looks, and writes. On a thread of its own.
fn answer(look: Look, wanted: Wanted) -> Answer {
    let Look { mut facts, places, pids, db } = look;
    let weak = places.iter().flatten().any(|place| matches!(place, Place::Sessions(_)));
    let sessions = if weak { Sessions::read() } else { Sessions::default() };
    let until = clock::monotonic() + LOOK_MAX;
    for (unit, place) in facts.units.iter_mut().zip(&places) {
        let Some(place) = place else { continue };
        if clock::monotonic() >= until {
            facts.units_unseen += 1;
            continue;
        }
        unit.usage = usage::of_place(place, &sessions);
    }
    facts.processes = pids.map(usage::of_process);
    facts.store_files = store_files(&db);
    match wanted {
        Wanted::Text(form) => {
            let of = match form {
                MetricsForm::OpenMetrics => Form::OpenMetrics,
                MetricsForm::Prometheus => Form::Prometheus,
            };
            Answer::Metrics(form, text(of, &facts))
        }
        Wanted::Json => {
            let mut listener = Collected(Vec::with_capacity(Id::ALL.len()));
            tell(&facts, &mut listener);
            json(&SystemMetrics { schema_version: SCHEMA_VERSION, metrics: listener.0 })
        }
    }
}

fn store_files(db: &std::path::Path) -> Vec<(&'static str, u64)> {
    let path = |name: &str| match name.strip_prefix('-') {
        Some(_) => PathBuf::from(format!("{}{name}", db.display())),
        None if name.is_empty() => db.to_path_buf(),
        None => db.with_file_name(name),
    };
    let size = |(word, name): &(&'static str, &str)| Some((*word, std::fs::metadata(path(name)).ok()?.len()));
    STORE_FILES.iter().filter_map(size).collect()
}

/// Microseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "a double counts microseconds exactly until the year 2255")]
fn seconds_of_us(us: i64) -> f64 {
    us as f64 / 1e6
}

/// The table as objects.
struct Collected(Vec<Metric>);

impl Listener for Collected {
    fn family(&mut self, family: &'static Family) {
        self.0.push(Metric {
            name: family.sample_name(),
            kind: family.kind.as_str().to_string(),
            unit: family.unit.to_string(),
            help: family.help.to_string(),
            samples: Vec::new(),
        });
    }

    fn sample(&mut self, family: &'static Family, labels: &[&str], value: Value<'_>) {
        let labels =
            family.labels.iter().zip(labels).map(|(key, value)| (key.to_string(), value.to_string()));
        let mut sample = MetricSample { labels: labels.collect(), ..MetricSample::default() };
        match value {
            Value::Count(count) => sample.value = Some(count.into()),
            Value::Number(number) => sample.value = serde_json::Number::from_f64(number),
            Value::Histogram(counted) => {
                let bucket = |(le, count): &(f64, u64)| MetricBucket { le: *le, count: *count };
                sample.buckets = Some(counted.buckets.iter().map(bucket).collect());
                (sample.count, sample.sum) = (Some(counted.count), Some(counted.sum_s));
            }
        }
        if let Some(metric) = self.0.last_mut() {
            metric.samples.push(sample);
        }
    }
}
