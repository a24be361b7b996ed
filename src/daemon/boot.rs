//! The two ways in: the keeper (`upright daemon`) and the engine that it starts.
//!
//! Refuses: a second daemon on one home; tokio and SQLite in the keeper.

use std::ffi::{CString, OsString};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::paths::{Asked as Places, Home, Surroundings as Around};
use crate::daemon::shell::Ending;
use crate::daemon::takeover::begin;
use crate::daemon::upgrade;
use crate::keeper;
use crate::keeper::client::Client;
use crate::keeper::upgrade::Came;
use crate::keeper::wire::{HOLD_NAME_LEN_MAX, Request};
use crate::sys::lock::{Lock, LockError};
use crate::sys::{clock, files as sys_files, process, socket, threads};
use crate::telemetry::log_to_stderr;

/// The daemon cannot be started.
const EXIT_FAILED: i32 = 1;

/// The wrong words (contract, "Exit codes").
const EXIT_USAGE: u8 = 2;

/// The hidden command that is the engine (`cli::args`).
const ENGINE_WORD: &str = "engine";

/// As of a Rust program that panicked.
const EXIT_PANICKED: i32 = 101;

/// `sun_path` without its NUL (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

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
        if threads::is_guarded() {
            return;
        }
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
