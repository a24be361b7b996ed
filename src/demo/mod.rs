//! `upright demo`: a database, a cache and a backend from this binary, supervised in a
//! temporary home, to have something to push over.
//!
//! Refuses: the daemon's insides. It is started as a child and asked over its socket, as
//! everybody does; and to leave anything behind, unless asked to.

pub mod home;
pub mod puppet;
mod backend;
mod cache;
mod database;
mod fault;
mod journal;
mod typed;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::api::{client::Client, types::UnitList};
use crate::demo::home::Ports;

/// Longest until the three units are active: the database says "starting up" for 1 s.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest the daemon may take to stop everything: its own limit and a little more.
const STOP_TIMEOUT: Duration = Duration::from_secs(35);

/// Between two looks at something that tells nobody when it changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What becomes of the home when the demo ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    Remove,
    Keep,
}

/// Runs the demo until Ctrl-C, SIGTERM or SIGHUP. The exit code: 0 when it ended as asked,
/// 1 when it could not start or the daemon ended by itself.
pub fn run(afterwards: Afterwards) -> i32 {
    match play(afterwards) {
        Ok(()) => 0,
        Err(error) => {
            let mut out = io::stderr().lock();
            let _ = writeln!(out, "error: {error}"); // nobody is left to tell
            1
        }
    }
}

fn play(afterwards: Afterwards) -> io::Result<()> {
    let exe = std::env::current_exe()?;
    let signals = Signals::register()?;
    let mut holder = tempfile::Builder::new().prefix("upright-demo-").tempdir()?;
    holder.disable_cleanup(afterwards == Afterwards::Keep);
    let dir = holder.path().to_path_buf();
    let (ports, token) = (free_ports()?, new_token()?);
    home::make(&dir, &exe, &token, ports)?;
    let page = format!("http://demo:{token}@127.0.0.1:{}/sign-in", ports.page);
    let mut daemon = Daemon::start(&exe, &dir, page)?;
    let shown = daemon.show(&exe, &signals);
    let stopped = daemon.stop();
    if stopped.is_err() {
        holder.disable_cleanup(true); // something in there is still at work
    }
    shown?;
    stopped?;
    if afterwards == Afterwards::Keep {
        let (upright, home) = (typed::program(&exe), typed::word(&dir));
        tell(&format!("kept:  {home}   (again: {upright} daemon --home {home})"));
        return Ok(());
    }
    holder.close()
}

/// The daemon, as a child in a process group of its own: the terminal's Ctrl-C reaches the
/// demo alone, which then stops the daemon in order.
struct Daemon {
    child: Child,
    dir: PathBuf,
    /// The dashboard's address, with what a browser has to show.
    page: String,
}

impl Daemon {
    #[expect(clippy::disallowed_methods, reason = "the demo is a user: the daemon is its child")]
    fn start(exe: &Path, dir: &Path, page: String) -> io::Result<Daemon> {
        let talk = File::create(dir.join("daemon.out"))?;
        let child = Command::new(exe)
            .args(["daemon", "--home"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(talk.try_clone()?)
            .stderr(talk)
            .process_group(0)
            .spawn()?;
        Ok(Daemon { child, dir: dir.to_path_buf(), page })
    }

    /// Waits for the stack, shows it, and waits for the end.
    fn show(&mut self, exe: &Path, signals: &Signals) -> io::Result<()> {
        tell(&format!("home:  {}", self.dir.display()));
        let Some(list) = self.wait_ready(signals)? else { return Ok(()) };
        #[expect(clippy::disallowed_methods, reason = "the demo is a user")]
        let _ = Command::new(exe).args(["status", "--home"]).arg(&self.dir).status(); // a picture only
        tell(&format!("page:  {}", self.page));
        let pid_of = |name: &str| list.units.iter().find(|unit| unit.name == name).and_then(|unit| unit.pid);
        if let (Some(backend), Some(database)) = (pid_of("backend"), pid_of("database")) {
            let (upright, home) = (typed::program(exe), typed::word(&self.dir));
            tell(&format!(
                "try:   kill -9 {backend}   then:  {upright} status --home {home}   (Ctrl-C ends the demo)"
            ));
            tell(&format!(
                "prove: {upright} drill run single-module --home {home}   kills the backend three times, and judges"
            ));
            tell(&format!(
                "or:    kill -STOP {database}   the database hangs: found within 7 s, the backend goes on meanwhile"
            ));
        }
        while !signals.wait(LOOK_INTERVAL)? {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.ended(status));
            }
        }
        Ok(())
    }

    /// Every unit active; none when a signal came first.
    fn wait_ready(&mut self, signals: &Signals) -> io::Result<Option<UnitList>> {
        let client = Client::new(&self.dir.join("run/upright.sock"))?;
        let mut last = String::new();
        let looks = READY_TIMEOUT.as_millis() / LOOK_INTERVAL.as_millis();
        for _ in 0..looks {
            match client.get::<UnitList>("/v1/units") {
                Ok(list)
                    if !list.units.is_empty() && list.units.iter().all(|unit| unit.state == "active") =>
                {
                    return Ok(Some(list));
                }
                Ok(list) => last = states(&list),
                Err(error) => last = error.to_string(),
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(self.ended(status));
            }
            if signals.wait(LOOK_INTERVAL)? {
                return Ok(None);
            }
        }
        Err(io::Error::other(format!("the stack is not active after {} s: {last}", READY_TIMEOUT.as_secs())))
    }

    fn ended(&self, status: ExitStatus) -> io::Error {
        let said = std::fs::read_to_string(self.dir.join("daemon.out")).unwrap_or_default();
        io::Error::other(format!("the daemon ended by itself ({status})\n{}", said.trim_end()))
    }

    /// SIGTERM, then waits: the daemon stops its units in reverse order.
    fn stop(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM)?;
        for _ in 0..STOP_TIMEOUT.as_millis() / LOOK_INTERVAL.as_millis() {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            #[expect(clippy::disallowed_methods, reason = "bounded by STOP_TIMEOUT")]
            std::thread::sleep(LOOK_INTERVAL);
        }
        let home = self.dir.display();
        Err(io::Error::other(format!("the daemon (pid {pid}) does not end; its home {home} is kept")))
    }
}

fn states(list: &UnitList) -> String {
    let words = list.units.iter().map(|unit| format!("{} is {} ({})", unit.name, unit.state, unit.reason));
    words.collect::<Vec<_>>().join(", ")
}

/// A token that nobody guesses.
fn new_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Four ports that nobody listens on now. All are held until all are known, so that they
/// differ; that nobody else takes one in the next second is likely, not certain.
fn free_ports() -> io::Result<Ports> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let held = [bind()?, bind()?, bind()?, bind()?];
    Ok(Ports {
        database: held[0].local_addr()?.port(),
        cache: held[1].local_addr()?.port(),
        backend: held[2].local_addr()?.port(),
        page: held[3].local_addr()?.port(),
    })
}

/// The signals that end the demo, as a socket that becomes readable.
struct Signals {
    came: UnixStream,
}

impl Signals {
    fn register() -> io::Result<Signals> {
        let (came, write) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Signals { came })
    }

    /// True when one has come; waits at most `longest` for it.
    fn wait(&self, longest: Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.came.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(longest).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn tell(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}"); // a closed stdout ends no demo
    let _ = out.flush(); // the same
}
