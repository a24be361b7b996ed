//! An engine takes over: what the keeper holds, what the store and the files say → a shell that goes on
//! where the last engine stopped.
//!
//! Refuses: starting over what lives, and going on half-blind: what cannot be looked at ends this
//! engine with a message, and the keeper starts the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc};

use crate::alert::Channels;
use crate::alert::dispatch::{Dispatcher, Inheritance as OutboxInheritance, Keep as Delivered};
use crate::api::types::ConfigError;
use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::config::load::load;
use crate::config::paths::Home;
use crate::daemon::beat::Beat;
use crate::daemon::doors::{self, Served};
use crate::daemon::drills::Drills;
use crate::daemon::fdstore::FdStore;
use crate::daemon::files::{self, Reading, judge};
use crate::daemon::hands::{Hands, Source, Tools, stamp};
use crate::daemon::kpi::LogsCounted;
use crate::daemon::notify::NotifySocket;
use crate::daemon::orphans::{self, Ground, Survey};
use crate::daemon::plan::Surroundings;
use crate::daemon::reload::Files;
use crate::daemon::shell::{Ears, Ending, Shell};
use crate::daemon::slate::{self, Slate};
use crate::daemon::tag::Tag;
use crate::daemon::upgrade::{self, Milestone, Upgrade};
use crate::daemon::views::Clocks;
use crate::daemon::{adopt, quiet};
use crate::engine::adopt::{Boot, Inheritance};
use crate::engine::outbox::Quiet;
use crate::engine::{Adopted, Effects, Engine, Settings};
use crate::keeper::client::{Attached, Client};
use crate::keeper::wire::{Request, Stage, TableRow};
use crate::logs::capture::Capture;
use crate::store::open::{self, Life, Loaded, Phase, RUNS_PER_RESERVE};
use crate::store::row::Level;
use crate::store::run::RunRow;
use crate::store::writer::{Store, Write as Keep};
use crate::sys::{clock, process};
use crate::telemetry::journal::{self, FILE_NAME, Journal, Rotation};
use crate::telemetry::scribe::{self, ScribeHandle};
use crate::unit::daemon_file::DaemonSpec;
use crate::unit::spec::UnitSpec;

/// Events kept for followers; who is further behind reads them from the store.
const FRESH_EVENTS_MAX: usize = 4_096;

/// Attaches, loads, adopts: the shell of an engine that goes on where the last one stopped.
pub(super) fn begin(
    home: Home,
    mut client: Client,
    binary: Option<PathBuf>,
) -> Result<(Shell, Ears), Box<dyn std::error::Error>> {
    let begun = clock::monotonic();
    let mut attached = client.attach()?;
    let slate = open_slate(&mut attached.held, &mut client)?;
    let (sources, heard) = mpsc::unbounded_channel();
    let found = find(&home, &mut client, &mut attached, &sources)?;
    let Found { ready, loaded, survey, boot, reading, in_force } = found;
    let Attached { keeper_pid, started_at, engine_starts, ends, rows, held, to_end, upgrade, .. } = attached;
    let mut stored = FdStore::default();
    let sockets = sockets_and_stored(&home, &mut client, held, &mut stored)?;
    let mut hands = hands_of(&home, client, ready, &loaded, &in_force, sources)?;
    let adopted = adopt_all(boot, rows, loaded.runs.clone(), &mut hands, &slate)?;
    hands.settle_survey(&survey);
    hands.observed.last_event = loaded.last_event_id;
    adopt::stored(stored, &loaded.durable, &mut hands);
    let populated = adopt::populated(&mut hands, &adopted).map_err(at("list the cgroups"))?;
    let served = doors::serve(sockets.api, &in_force.daemon.api, hands.tools.sources.clone());
    let Served { doors, calls, stop } = served.map_err(at("serve the socket"))?;
    let settings = Settings { start_concurrency: in_force.daemon.start_concurrency, seed: begun.as_ns() };
    let (now, files) = (clock::monotonic(), Files::new(&in_force));
    let mut effects = Effects::watched_by(slate.witness());
    let inherited = Inheritance {
        deaths: slate.deaths(&ends),
        ..inheritance(boot, in_force.units, &loaded, adopted, populated)
    };
    let take_over = if to_end { Engine::new_to_end } else { Engine::new };
    let engine = take_over(now, settings, inherited, &mut effects);
    let mut shell = Shell {
        engine,
        effects,
        slate,
        hands,
        notify: NotifySocket::new(sockets.notify).map_err(at("watch the notify socket"))?,
        home,
        files,
        doors,
        keeper_pid,
        started_at,
        engine_started: (begun, engine_starts),
        fatal_stops: count_fatal_stops(boot, loaded.life),
        shutdown_timeout: in_force.daemon.shutdown_timeout,
        ending: Ending::No,
        requests: BTreeMap::new(),
        next_request: 0,
        upgrade: Upgrade::new(binary, loaded.schema, loaded.upgrade_told.clone(), stop),
        quiet: quiet_of(&loaded),
        begun,
        logs_counted: LogsCounted::default(),
        beat: Beat::default(),
        drills: Drills::default(),
    };
    shell.beat_as(in_force.daemon.heartbeat.clone());
    shell.recall_drills(&loaded.drills);
    say_begin(&mut shell, boot, &loaded, begun, &survey);
    shell.files.keep_all(&loaded.last_good).into_iter().for_each(|text| shell.hands.keep(text));
    shell.perform(stamp(now));
    shell.tell_ends()?;
    shell.revert_drills();
    follow_at_boot(&mut shell, boot, reading, &loaded.engine.config_errors);
    upgrade.into_iter().for_each(|news| shell.on_upgrade_news(news));
    shell.await_milestone(Milestone::Healthy);
    Ok((shell, Ears { sources: heard, calls }))
}

/// What there is to go on with.
struct Found {
    ready: Ready,
    loaded: Loaded,
    survey: Survey,
    boot: Boot,
    /// What the files say now.
    reading: Reading,
    /// What was in force when the last engine died.
    in_force: Reading,
}

/// Reads the store and the files, and looks for runs of a keeper that died: they join `attached.rows`.
fn find(
    home: &Home,
    client: &mut Client,
    attached: &mut Attached,
    sources: &mpsc::UnboundedSender<Source>,
) -> Result<Found, Box<dyn std::error::Error>> {
    let (store, log, loaded) = open_store(home, sources)?;
    client.send(Request::Alive { stage: Stage::Beginning })?; // a large store may take a while
    let ground = Ground::open(home, attached.keeper_pid).map_err(at("look for the cgroups"))?;
    let Attached { engine_starts, started_at, rows, held, upgrade, .. } = attached;
    let mut survey = orphans::survey(&loaded.runs, &ground, rows, held, client);
    let told = loaded.upgrade_told.as_deref();
    let boot = match upgrade::boot_of(*engine_starts, upgrade.as_ref(), told, *started_at) {
        Boot::Fresh => boot_of_first(&loaded, &survey),
        later => later,
    };
    rows.append(&mut survey.rows);
    let reading = judge(load(home), &loaded.last_good);
    let in_force = in_force(boot, home, &loaded, rows, &reading);
    client.send(Request::Alive { stage: Stage::Beginning })?; // and so may many files
    log.rotate_by(rotation_of(&in_force.daemon));
    store.reader().keep_for(in_force.daemon.retention);
    Ok(Found { ready: Ready { store, log, ground }, loaded, survey, boot, reading, in_force })
}

/// What works already when the rest is read.
struct Ready {
    store: Store,
    log: ScribeHandle,
    ground: Ground,
}

fn hands_of(
    home: &Home,
    keeper: Client,
    ready: Ready,
    loaded: &Loaded,
    in_force: &Reading,
    sources: mpsc::UnboundedSender<Source>,
) -> io::Result<Hands> {
    let Ready { store, log, ground: Ground { world, containment, pipes } } = ready;
    let captured = sources.clone();
    let capture = Capture::start(move |news| drop(captured.send(Source::Captured(news))))?; // the loop may have ended
    let (outbox, first) = start_outbox(home, &store, loaded, in_force, &sources);
    let mut hands = Hands::new(Tools {
        keeper,
        store,
        log,
        outbox,
        capture,
        containment,
        pipes,
        logs: home.log_dir.clone(),
        around: surroundings(home, loaded),
        sources,
        fresh: broadcast::Sender::new(FRESH_EVENTS_MAX),
        reserved_until: RunId(loaded.next_run.0 + RUNS_PER_RESERVE),
        world,
    });
    hands.specs = in_force.units.iter().map(|spec| (spec.name.clone(), spec.clone())).collect();
    first.into_iter().for_each(|keep| hands.keep_of_outbox(keep, stamp(clock::monotonic())));
    Ok(hands)
}

/// What the engine goes on with, but for the deaths of those before it.
fn inheritance(
    boot: Boot,
    units: Vec<Arc<UnitSpec>>,
    loaded: &Loaded,
    adopted: Vec<Adopted>,
    populated: BTreeSet<UnitName>,
) -> Inheritance {
    let next_run = adopt::next_run(loaded.next_run, &adopted);
    let (durable, engine) = (loaded.durable.clone(), loaded.engine.clone());
    Inheritance { boot, units, durable, engine, deaths: Vec::new(), adopted, populated, next_run }
}

/// The memory in which an engine notes what it is at; the keeper holds it for the next one.
fn open_slate(held: &mut Vec<(Vec<u8>, OwnedFd)>, client: &mut Client) -> io::Result<Slate> {
    let known = held.iter().position(|(name, _)| name == slate::NAME).map(|at| held.swap_remove(at).1);
    let mut hold = None;
    let slate = Slate::open(known, |request| hold = Some(request));
    hold.map_or(Ok(()), |request| client.send(request))?;
    Ok(slate)
}

/// An engine that was sent ahead refuses what it does not understand; any other makes the best of it.
fn adopt_all(
    boot: Boot,
    rows: Vec<TableRow>,
    remembered: Vec<RunRow>,
    hands: &mut Hands,
    slate: &Slate,
) -> Result<Vec<Adopted>, String> {
    let told = rows.len();
    let adopted = adopt::runs(rows, remembered, hands, slate);
    if boot == Boot::Relieved && adopted.len() < told {
        return Err(format!("{} of {told} runs are not understood", told - adopted.len()));
    }
    Ok(adopted)
}

/// Which step of taking over it was that the system refused.
fn at(step: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("cannot {step}: {error}"))
}

/// The fds that the keeper holds: our sockets, bound and held if they are new, and what
/// services have stored.
fn sockets_and_stored(
    home: &Home,
    client: &mut Client,
    held: Vec<(Vec<u8>, OwnedFd)>,
    stored: &mut FdStore,
) -> Result<adopt::Sockets, Box<dyn std::error::Error>> {
    let mut holds = Vec::new();
    let ours =
        held.into_iter().filter_map(|(name, fd)| Some((name.clone(), stored.adopt(&name, fd)?))).collect();
    let sockets = adopt::sockets(ours, &home.socket, &home.notify_socket, |hold| holds.push(hold))
        .map_err(at("make the sockets"))?;
    for hold in holds {
        client.send(hold)?;
    }
    Ok(sockets)
}

/// What an engine goes on with: the texts that were in force when the last one died, and, should
/// the store have lost one of them, the file of whatever lives or is remembered.
fn in_force(boot: Boot, home: &Home, loaded: &Loaded, rows: &[TableRow], reading: &Reading) -> Reading {
    let mut in_force = files::in_force(home, &loaded.last_good);
    if boot == Boot::Fresh {
        return reading.clone(); // there was none
    }
    if in_force.good.is_empty() {
        return reading.clone(); // of a build that did not keep them
    }
    let living: BTreeSet<UnitName> =
        rows.iter().filter_map(|row| Tag::from_bytes(&row.tag)).map(|tag| tag.unit).collect();
    let known: BTreeSet<UnitName> = in_force.units.iter().map(|spec| spec.name.clone()).collect();
    let missing = reading.units.iter().filter(|spec| {
        let was_there = living.contains(&spec.name) || loaded.durable.contains_key(&spec.name);
        was_there && !known.contains(&spec.name)
    });
    in_force.units.extend(missing.cloned());
    in_force.units.sort_by(|a, b| a.name.cmp(&b.name));
    in_force
}

/// Files that changed while no engine lived changed like all others.
fn follow_at_boot(shell: &mut Shell, boot: Boot, reading: Reading, told: &[String]) {
    match boot {
        Boot::Fresh => shell.judge_errors(reading.errors),
        Boot::Resumed | Boot::Relieved | Boot::KeeperDied => {
            // The last engine told of them.
            let is_told = |error: &&ConfigError| told.contains(&files::sentence(error));
            shell.files.errors = reading.errors.iter().filter(is_told).cloned().collect();
            shell.follow_now(reading);
        }
    }
    shell.watch_files();
}

/// The first engine of a keeper whose predecessor left runs behind in this world goes on with them.
fn boot_of_first(loaded: &Loaded, survey: &Survey) -> Boot {
    match loaded.life.phase {
        Phase::Running if !survey.rows.is_empty() => Boot::KeeperDied,
        Phase::Running | Phase::Ended => Boot::Fresh,
    }
}

/// The first engine of a keeper that finds a life without an end: the whole was cut down.
fn count_fatal_stops(boot: Boot, life: Life) -> u64 {
    match (boot, life.phase) {
        (Boot::Fresh | Boot::KeeperDied, Phase::Running) => life.fatal_stops + 1,
        (Boot::Fresh | Boot::KeeperDied, Phase::Ended) | (Boot::Resumed | Boot::Relieved, _) => {
            life.fatal_stops
        }
    }
}

fn say_unproven(shell: &mut Shell, unproven: &[(UnitName, i32, String)]) {
    for (unit, pid, why) in unproven {
        let message = format!(
            "process {pid} may be the main process of {unit}, but {why}: it is left alone, and {unit} counts as \
             ended, status unknown"
        );
        let data = [("unit", unit.as_str().into()), ("pid", (*pid).into())];
        shell.note(Level::Error, "keeper.unproven", message, data);
    }
}

fn say_begin(shell: &mut Shell, boot: Boot, loaded: &Loaded, begun: Monotonic, survey: &Survey) {
    if shell.fatal_stops > loaded.life.fatal_stops {
        let message = "the daemon had ended without stopping its units".to_string();
        shell.note(Level::Error, "daemon.fatal_stop", message, []);
    }
    if let Some(trouble) = &loaded.trouble {
        shell.note(
            Level::Error,
            "store.trouble",
            trouble.message.clone(),
            [("code", trouble.code.as_str().into())],
        );
    }
    let took_us = u64::try_from(clock::monotonic().since(begun).as_micros()).unwrap_or(u64::MAX);
    let runs = shell.hands.runs.len();
    let data = [("runs", runs.into()), ("took_us", took_us.into()), ("boot", clock::boot_id().into())];
    match boot {
        Boot::Fresh => shell.note(Level::Info, "daemon.started", "the daemon has started".to_string(), data),
        Boot::KeeperDied => {
            let message = format!("the keeper had died; another took over {runs} runs");
            shell.note(Level::Warn, "keeper.restarted", message, data);
        }
        Boot::Resumed => {
            let message = format!("the engine was restarted and took over {runs} runs");
            shell.note(Level::Warn, "engine.restarted", message, data);
        }
        Boot::Relieved => {
            let message = format!("this engine took the place of another, and took over {runs} runs");
            shell.note(Level::Info, "engine.replaced", message, data);
        }
    }
    say_unproven(shell, &survey.unproven);
    let life = Life { phase: Phase::Running, fatal_stops: shell.fatal_stops };
    shell.hands.keep(Keep::Life(life));
}

/// Opens the store, whatever became of it, and the log of history, which is its second copy.
fn open_store(
    home: &Home,
    sources: &mpsc::UnboundedSender<Source>,
) -> Result<(Store, ScribeHandle, Loaded), Box<dyn std::error::Error>> {
    let path = home.log_dir.join(FILE_NAME);
    let mut log = Journal::open(&path, rotation_of(&DaemonSpec::default()));
    let mut newest = |id: u64, limit: usize| match log.last_id() <= id {
        true => Vec::new(),
        false => journal::newest(&path, id, limit),
    };
    let (opened, loaded) = open::open_beside(&home.db, &clock::boot_id(), &mut newest)?;
    if log.last_id() == 0 {
        // Taken away, with all that was rotated: it does not come back.
        log.pass_over(loaded.logged);
    }
    let told = sources.clone();
    let tell = move |committed| drop(told.send(Source::Committed(committed))); // the loop may have ended
    let (scribe, handle) = scribe::start(&path, log, loaded.last_event_id, tell)?;
    let store = opened.start_before(scribe)?;
    handle.read_from(store.reader().clone());
    Ok((store, handle, loaded))
}

pub(super) fn rotation_of(spec: &DaemonSpec) -> Rotation {
    Rotation { max_bytes: spec.log_max_size, max_files: spec.log_max_files }
}

/// The dispatcher of alerts, and what it wants kept before anything else. Where `upright.toml`
/// is broken and no channel is known yet, the stand-in is better than none.
fn start_outbox(
    home: &Home,
    store: &Store,
    loaded: &Loaded,
    in_force: &Reading,
    sources: &mpsc::UnboundedSender<Source>,
) -> (Dispatcher, Vec<Delivered>) {
    let inherited = OutboxInheritance {
        channels: Some(Channels::of(&in_force.daemon, &home.log_dir)),
        known: loaded.channels.clone(),
        last_alert: loaded.last_alert,
        seed: clock::monotonic().as_ns(),
        reader: store.reader().clone(),
        quiet: quiet_of(loaded),
        logs: home.log_dir.clone(),
    };
    let keep = sources.clone();
    Dispatcher::start(inherited, move |wanted| drop(keep.send(Source::Outbox(wanted))))
}

fn quiet_of(loaded: &Loaded) -> Quiet {
    let wall_us = clock::wall().as_microsecond();
    quiet::from_text(&loaded.quiet, Clocks { now: clock::monotonic(), wall_us })
}

fn surroundings(home: &Home, loaded: &Loaded) -> Surroundings {
    let wall = u64::try_from(clock::wall().as_microsecond()).unwrap_or(0);
    Surroundings {
        notify_socket: home.notify_socket.clone(),
        home_id: wall ^ (loaded.next_run.0 << 48),
        lang: std::env::var("LANG").ok(),
        // The daemon may be the last to be killed; were its units too, nobody would be left.
        oom_score_adjust: (process::oom_score_adjust() < 0).then_some(0),
    }
}
