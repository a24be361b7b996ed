//! The two ways in: the keeper (`upright daemon`) and the engine that it starts.
//!
//! Refuses: a second daemon on one home; tokio and SQLite in the keeper.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsString};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};

use crate::alert::Channels;
use crate::alert::dispatch::{Dispatcher, Inheritance as OutboxInheritance, Keep as Delivered};
use crate::api::access::{self, Access};
use crate::api::call::Answer;
use crate::api::server::{self, Limits};
use crate::api::types::ConfigError;
use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::config::load::load;
use crate::config::paths::{Asked as Places, Home, Surroundings as Around};
use crate::daemon::adopt;
use crate::daemon::fdstore::FdStore;
use crate::daemon::files::{self, Reading, judge};
use crate::daemon::handlers::{Asked, refuse};
use crate::daemon::hands::{Hands, Source, Tools, stamp};
use crate::daemon::notify::NotifySocket;
use crate::daemon::orphans::{self, Ground, Survey};
use crate::daemon::plan::Surroundings;
use crate::daemon::reload::Files;
use crate::daemon::shell::{Ears, Ending, Shell};
use crate::daemon::slate::{self, Slate};
use crate::daemon::tag::Tag;
use crate::daemon::upgrade::{self, Heard, Milestone, Upgrade};
use crate::engine::adopt::{Boot, Inheritance};
use crate::engine::{Adopted, Effects, Engine, Settings};
use crate::keeper;
use crate::keeper::client::{Attached, Client};
use crate::keeper::upgrade::Came;
use crate::keeper::wire::{HOLD_NAME_LEN_MAX, Request, Stage, TableRow};
use crate::logs::capture::Capture;
use crate::store::open::{self, Life, Loaded, Phase, RUNS_PER_RESERVE};
use crate::store::row::Level;
use crate::store::run::RunRow;
use crate::store::writer::{Store, Write as Keep};
use crate::sys::lock::{Lock, LockError};
use crate::sys::{clock, files as sys_files, process, socket};
use crate::telemetry::journal::{self, FILE_NAME, Journal, Rotation};
use crate::telemetry::log_to_stderr;
use crate::telemetry::scribe::{self, ScribeHandle};
use crate::unit::daemon_file::DaemonSpec;

/// The daemon cannot be started.
const EXIT_FAILED: i32 = 1;

/// The wrong words (contract, "Exit codes").
const EXIT_USAGE: u8 = 2;

/// The hidden command that is the engine (`cli::args`).
const ENGINE_WORD: &str = "engine";

/// As of a Rust program that panicked.
const EXIT_PANICKED: i32 = 101;

/// Calls that wait for the loop. Above it the server's connections wait, which are bounded.
const CALLS_MAX: usize = 256;

/// Events kept for followers; who is further behind reads them from the store.
const FRESH_EVENTS_MAX: usize = 4_096;

/// `sun_path` without its NUL (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The file in the log directory that carries the lock of whoever writes logs.
const LOG_LOCK_FILE: &str = ".lock";

/// How long an engine waits for that of another keeper, which is dead or dying, to let go of the logs.
const LOG_LOCK_WAIT: Duration = Duration::from_secs(10);

/// Between two tries: nobody tells when a lock becomes free without waiting for it for ever.
const LOG_LOCK_LOOK: Duration = Duration::from_millis(10);
/// The flag of the engine that names the file the daemon was started from.
const BINARY_FLAG: &str = "--binary";

/// The file in the run directory that carries the lock of the home.
const LOCK_FILE: &str = "lock";

/// How long an engine whose keeper died may take to write down what it has.
const END_MAX: Duration = Duration::from_secs(2);

/// How long until it must be gone.
const ENGINE_LOCK_MAX: Duration = Duration::from_secs(10);

const ENGINE_LOCK_LOOK: Duration = Duration::from_millis(2);

/// The word that makes us the keeper, followed by the number of the lock's fd and the places.
pub const KEEPER_WORD: &str = "keeper";

/// `upright daemon`: prepares the home, takes its lock, and becomes the keeper, by execution:
/// the pages of the command line and of this preparation are left behind. The exit code. Call
/// it before any thread exists.
pub fn run_daemon(places: &Places) -> i32 {
    let (lock, places) = match prepare(places) {
        Ok(prepared) => prepared,
        Err(why) => return fail(&why),
    };
    let number = lock.as_fd().as_raw_fd().to_string();
    let argv = CString::new(number).map(|number| argv_of(KEEPER_WORD, [number].iter().chain(&places)));
    if let Ok(argv) = argv {
        // Without /proc there is no way to our own file: the keeper is larger then, that is all.
        let _ = process::execute_self(&argv, lock.as_fd());
    }
    be_keeper(lock, &places)
}

/// What `run_daemon` executes, with the words after `KEEPER_WORD`. The exit code. Call it
/// before any thread exists.
pub fn run_keeper(words: &[OsString]) -> u8 {
    let number_at = |at: usize| words.get(at).and_then(|word| word.to_str()?.parse().ok());
    let came = words.first().and_then(|word| Came::of_word(word.to_str()?));
    if let (Some(came), Some(state), Some(old)) = (came, number_at(1), number_at(2)) {
        return u8::try_from(keeper::upgrade::resume(came, state, old)).unwrap_or(u8::MAX);
    }
    let number = words.first().and_then(|word| word.to_str()?.parse().ok());
    let lock = number.and_then(|number| process::inherited_file(number).ok());
    let Some(lock) = lock.and_then(|fd| Lock::inherited(fd).ok()) else {
        let _ = fail("cannot be the keeper without the lock of a home; use `upright daemon`");
        return EXIT_USAGE;
    };
    let places = words.iter().skip(1).map(|word| CString::new(word.as_bytes()));
    let places: Vec<CString> = places.filter_map(Result::ok).collect(); // argv holds no NUL
    u8::try_from(be_keeper(lock, &places)).unwrap_or(u8::MAX)
}

fn be_keeper(lock: Lock, places: &[CString]) -> i32 {
    process::set_name("upright-keeper");
    keeper::run::run(vec![lock.into_fd()], argv_of(ENGINE_WORD, places))
}

fn argv_of<'a>(word: &str, rest: impl IntoIterator<Item = &'a CString>) -> Vec<CString> {
    let first = ["upright", word].into_iter().filter_map(|word| CString::new(word).ok()); // constants
    first.chain(rest.into_iter().cloned()).collect()
}

/// `upright engine`: what the keeper executes. The exit code; the keeper starts another one
/// unless it was told to end.
/// `binary` is the file that the daemon was started from.
pub fn run_engine(places: &Places, binary: Option<PathBuf>) -> i32 {
    let guard = log_to_stderr();
    end_with_any_panic();
    let code = match engine(places, binary) {
        Ok(()) => 0,
        Err(why) => {
            tracing::error!("{why}");
            EXIT_FAILED
        }
    };
    drop(guard);
    code
}

/// A panic anywhere ends the engine at once, and the keeper starts another: a thread, the loop, or a
/// task of it. An engine without its store, its dispatcher of alerts or one of its probes would look
/// alive and not be, and what a connection's task had in hand when it broke is not known either
/// (decision 0013). Nothing is unwound: a death at any instruction is what the next engine expects.
fn end_with_any_panic() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        #[expect(clippy::disallowed_methods, reason = "a hook of a panic has nobody to return to")]
        std::process::exit(EXIT_PANICKED);
    }));
}

fn fail(why: &str) -> i32 {
    let _ = writeln!(io::stderr().lock(), "error: {why}"); // nobody to tell
    EXIT_FAILED
}

fn resolve(places: &Places) -> Result<Home, String> {
    Home::resolve(places, &Around::of_process()).map_err(|error| error.to_string())
}

fn prepare(places: &Places) -> Result<(Lock, Vec<CString>), String> {
    let home = resolve(places)?;
    for socket in [&home.socket, &home.notify_socket] {
        check_socket_path(socket)?;
    }
    for (path, mode) in directories(&home) {
        sys_files::own_dir(&path, mode)
            .map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    }
    let lock = home.run_dir.join(LOCK_FILE);
    let lock = Lock::take(&lock).map_err(|error| match error {
        LockError::Held { pid } => {
            let who = pid.map_or("another process".to_string(), |pid| format!("process {pid}"));
            let dir = home.run_dir.display();
            format!(
                "cannot start: {who} runs a daemon on this home already (it has the lock in {dir}); \
                     use it, stop it, or choose another --home"
            )
        }
        LockError::Io(cause) => format!("cannot take the lock {}: {cause}", lock.display()),
    })?;
    let mut words = place_words(places)?;
    if let Some(binary) = upgrade::called_path() {
        let given = [BINARY_FLAG.as_bytes(), binary.as_os_str().as_bytes()].map(CString::new);
        words.extend(given.into_iter().filter_map(Result::ok)); // argv holds no NUL
    }
    Ok((lock, words))
}

fn check_socket_path(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().len();
    if bytes <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    Err(format!(
        "cannot start: the path of the socket {} has {bytes} bytes, and Linux takes {SOCKET_PATH_BYTES_MAX}; \
         choose a --home with a shorter path",
        path.display()
    ))
}

/// What the daemon writes, and who may look into it. The socket decides by SO_PEERCRED, so its
/// directory is open.
fn directories(home: &Home) -> Vec<(PathBuf, u32)> {
    let state = home.db.parent().map(Path::to_path_buf);
    let mut all: Vec<(PathBuf, u32)> = state.into_iter().map(|dir| (dir, 0o750)).collect();
    all.push((home.log_dir.clone(), 0o750));
    all.push((home.run_dir.clone(), 0o755));
    all
}

/// Keeper and engine are given the same places, absolute: their working directory may be another.
fn place_words(places: &Places) -> Result<Vec<CString>, String> {
    let mut words = Vec::new();
    let mut add = |flag: &str, path: &Path| -> Result<(), String> {
        let path =
            std::path::absolute(path).map_err(|error| format!("cannot use {}: {error}", path.display()))?;
        words.push(flag.as_bytes().to_vec());
        words.push(path.as_os_str().as_bytes().to_vec());
        Ok(())
    };
    if let Some(home) = &places.home {
        add("--home", home)?;
    }
    if let Some(config) = &places.config {
        add("--config", config)?;
    }
    for dir in &places.units {
        add("--units", dir)?;
    }
    let words = words.into_iter().map(CString::new).collect::<Result<_, _>>();
    words.map_err(|_| "cannot use a path with a NUL byte".to_string())
}

/// Whoever started this engine to see whether it can take over is told why it cannot.
fn say_unfit(line: &io::Result<OwnedFd>, why: &str) {
    if let Ok(Ok(line)) = line.as_ref().map(OwnedFd::try_clone)
        && let Ok(mut keeper) = Client::over(line)
    {
        let most = why.floor_char_boundary(HOLD_NAME_LEN_MAX);
        let why = why.as_bytes().get(..most).unwrap_or_default().to_vec();
        let _ = keeper.send(Request::Unfit { why }); // it sees us end, too
    }
}

fn engine(places: &Places, binary: Option<PathBuf>) -> Result<(), String> {
    let home = resolve(places)?;
    process::set_name("upright-engine");
    process::raise_nofile();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let client =
        Client::connect_inherited().map_err(|error| format!("cannot talk to the keeper: {error}"))?;
    end_without(&client).map_err(|error| format!("cannot watch the keeper: {error}"))?;
    let _lock = lock_of_engine(&home.run_dir)?;
    // The keeper ends an engine that hangs up. Ours stays on the line until we have ended
    // ourselves, so that what went wrong is said first and our exit code is known.
    let line = client.as_fd().try_clone_to_owned();
    let ended = runtime.block_on(async {
        let begun = begin(home, client, binary).map_err(|error| format!("cannot take over: {error}"));
        let (mut shell, ears) = begun.inspect_err(|why| say_unfit(&line, why))?;
        shell.run(ears).await.map_err(|error| format!("cannot go on: {error}"))?;
        match shell.ending {
            Ending::HandedOver => shell.hand_over(),
            Ending::No | Ending::Stopping { .. } | Ending::Killing { .. } | Ending::Done => shell.leave(),
        }
        Ok(())
    });
    // A thread that reads a log from a hung disk must not keep us.
    runtime.shutdown_background();
    let _ = line.map(IntoRawFd::into_raw_fd); // our exit hangs up
    ended
}

/// An engine ends by itself when its keeper is gone, and writes down what it still has to. One that is
/// stopped is woken by the kernel for that, and one that hangs is ended by a thread of its own.
fn end_without(keeper: &Client) -> io::Result<()> {
    process::wake_with_parent();
    let line = keeper.as_fd().try_clone_to_owned()?;
    std::thread::Builder::new().name("keeper-watch".into()).spawn(move || {
        socket::await_hang_up(&line);
        #[expect(clippy::disallowed_methods, reason = "this thread has nothing else to do")]
        std::thread::sleep(END_MAX);
        #[expect(clippy::disallowed_methods, reason = "whoever should end this process does not")]
        std::process::exit(EXIT_FAILED)
    })?;
    Ok(())
}

/// One engine a home, by a lock on the run directory itself. An engine whose keeper died may need a
/// moment to end: as long as it could write, the next one waits. Goes with its file, so with us.
fn lock_of_engine(run_dir: &Path) -> Result<Lock, String> {
    let deadline = clock::monotonic() + ENGINE_LOCK_MAX;
    loop {
        match Lock::take_directory(run_dir) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if clock::monotonic() < deadline => {
                #[expect(clippy::disallowed_methods, reason = "nothing else can be done before it is ours")]
                std::thread::sleep(ENGINE_LOCK_LOOK);
            }
            Err(error @ (LockError::Held { .. } | LockError::Io(_))) => {
                return Err(format!("cannot take the lock of {}: {error}", run_dir.display()));
            }
        }
    }
}

/// Attaches, loads, adopts: the shell of an engine that goes on where the last one stopped.
fn begin(
    home: Home,
    mut client: Client,
    binary: Option<PathBuf>,
) -> Result<(Shell, Ears), Box<dyn std::error::Error>> {
    let begun = clock::monotonic();
    let Attached { keeper_pid, engine_starts, started_at, ends, mut rows, mut held, to_end, upgrade } =
        client.attach()?;
    let slate = open_slate(&mut held, &mut client)?;
    let deaths = slate.deaths(&ends);
    let (sources, heard) = mpsc::unbounded_channel();
    let (store, log, loaded) = open_store(&home, &sources)?;
    client.send(Request::Alive { stage: Stage::Beginning })?; // a large store may take a while
    let ground = Ground::open(&home, keeper_pid).map_err(at("look for the cgroups"))?;
    let mut survey = orphans::survey(&loaded.runs, &ground, &rows, &mut held, &mut client);
    let boot =
        match upgrade::boot_of(engine_starts, upgrade.as_ref(), loaded.upgrade_told.as_deref(), started_at) {
            Boot::Fresh => boot_of_first(&loaded, &survey),
            later => later,
        };
    rows.append(&mut survey.rows);
    // What the files say now, and what was in force when the last engine died.
    let reading = judge(load(&home), &loaded.last_good);
    let in_force = in_force(boot, &home, &loaded, &rows, &reading);
    client.send(Request::Alive { stage: Stage::Beginning })?; // and so may many files
    log.rotate_by(rotation_of(&in_force.daemon));
    let mut stored = FdStore::default();
    let sockets = sockets_and_stored(&home, &mut client, held, &mut stored)?;
    let log_lock = lock_logs(&home)?;
    let captured = sources.clone();
    let capture = Capture::start(move |news| drop(captured.send(Source::Captured(news))))?;
    let (outbox, first) = start_outbox(&home, &store, &loaded, &in_force, &sources);
    let mut hands = Hands::new(Tools {
        keeper: client,
        store,
        log,
        outbox,
        capture,
        containment: ground.containment,
        pipes: ground.pipes,
        logs: home.log_dir.clone(),
        _log_lock: log_lock,
        around: surroundings(&home, &loaded),
        sources,
        fresh: broadcast::Sender::new(FRESH_EVENTS_MAX),
        reserved_until: RunId(loaded.next_run.0 + RUNS_PER_RESERVE),
        world: ground.world,
    });
    hands.specs = in_force.units.iter().map(|spec| (spec.name.clone(), spec.clone())).collect();
    first.into_iter().for_each(|keep| hands.keep_of_outbox(keep, stamp(clock::monotonic())));
    let adopted = adopt_all(boot, rows, loaded.runs.clone(), &mut hands, &slate)?;
    hands.settle_survey(&survey);
    adopt::stored(stored, &loaded.durable, &mut hands);
    let populated = adopt::populated(&mut hands, &adopted).map_err(at("list the cgroups"))?;
    let (calls, stop) =
        serve(sockets.api, &in_force.daemon, hands.tools.sources.clone()).map_err(at("serve the socket"))?;
    let next_run = adopt::next_run(loaded.next_run, &adopted);
    let settings = Settings { start_concurrency: in_force.daemon.start_concurrency, seed: begun.as_ns() };
    let (now, files) = (clock::monotonic(), Files::new(&in_force));
    let mut effects = Effects::watched_by(slate.witness());
    let (units, durable, engine) = (in_force.units, loaded.durable.clone(), loaded.engine.clone());
    let inherited = Inheritance { boot, units, durable, engine, deaths, adopted, populated, next_run };
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
        keeper_pid,
        started_at,
        fatal_stops: count_fatal_stops(boot, loaded.life),
        shutdown_timeout: in_force.daemon.shutdown_timeout,
        ending: Ending::No,
        requests: BTreeMap::new(),
        next_request: 0,
        upgrade: Upgrade::new(binary, loaded.schema, loaded.upgrade_told.clone(), stop),
    };
    say_begin(&mut shell, boot, &loaded, begun, &survey);
    shell.files.keep_all(&loaded.last_good).into_iter().for_each(|text| shell.hands.keep(text));
    shell.perform(stamp(now));
    shell.tell_ends()?;
    follow_at_boot(&mut shell, boot, reading, &loaded.engine.config_errors);
    upgrade.into_iter().for_each(|news| shell.on_upgrade_news(news));
    shell.await_milestone(Milestone::Healthy);
    Ok((shell, Ears { sources: heard, calls }))
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
        shell.note(Level::Error, "store.trouble", trouble.message.clone(), [("code", trouble.code.into())]);
    }
    let took_us = u64::try_from(clock::monotonic().since(begun).as_micros()).unwrap_or(u64::MAX);
    let runs = shell.hands.runs.len();
    let data = [("runs", runs.into()), ("took_us", took_us.into())];
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

/// Two engines that splice into one file would write over each other. An engine whose keeper was
/// killed ends by itself, at once; the next keeper's waits for that.
fn lock_logs(home: &Home) -> Result<Lock, String> {
    let path = home.log_dir.join(LOG_LOCK_FILE);
    let deadline = clock::monotonic() + LOG_LOCK_WAIT;
    loop {
        match Lock::take(&path) {
            Ok(lock) => return Ok(lock),
            Err(LockError::Held { .. }) if clock::monotonic() < deadline => {
                #[expect(clippy::disallowed_methods, reason = "flock(2) has no deadline")]
                std::thread::sleep(LOG_LOCK_LOOK);
            }
            Err(error) => return Err(format!("cannot write logs in {}: {error}", home.log_dir.display())),
        }
    }
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
    };
    let keep = sources.clone();
    Dispatcher::start(inherited, move |wanted| drop(keep.send(Source::Outbox(wanted))))
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

/// Starts the server; its calls come out of the channel.
/// Dropped, the sender has it accept nobody any more and tell when everybody is served.
fn serve(
    listener: OwnedFd,
    daemon: &DaemonSpec,
    sources: mpsc::UnboundedSender<Source>,
) -> io::Result<(mpsc::Receiver<Asked>, oneshot::Sender<()>)> {
    let (own_uid, _) = process::ids();
    let (operators, unknown_operators) = access::resolve(&daemon.api.operators);
    let (viewers, unknown_viewers) = access::resolve(&daemon.api.viewers);
    for name in unknown_operators.iter().chain(&unknown_viewers) {
        tracing::info!("[api] names `{name}`, which is no user or group here");
    }
    let access = Access { own_uid, operators, viewers };
    let listener = server::listener_from(listener)?;
    let (calls, asked) = mpsc::channel(CALLS_MAX);
    let (stop, stopped) = oneshot::channel();
    let serving = server::serve_until(listener, access, Limits::default(), stopped, move |peer, call| {
        let calls = calls.clone();
        async move {
            let (reply, answer) = oneshot::channel();
            let _ = calls.send(Asked { peer, call, reply }).await; // the loop has ended: told below
            answer.await.unwrap_or_else(|_| gone())
        }
    });
    tokio::spawn(async move {
        let _ = serving.await; // it is told by dropping
        let _ = sources.send(Source::Upgrade(Heard::Served)); // the loop has ended
    });
    Ok((asked, stop))
}

/// The loop has let go of a question, which it does only when it ends.
fn gone() -> Answer {
    refuse(503, "daemon.ending", "the daemon is ending".to_string(), None)
}
