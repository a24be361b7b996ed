//! The engine as the keeper's child: started at once, and again when it ends.
//!
//! Refuses: judging why it ended. The next engine is told how the ones before it did, and judges.

use std::env;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use nix::errno::Errno;

use crate::base::exit::Exit;
use crate::base::time::Monotonic;
use crate::keeper::pulse::{Finding, Pulse};
use crate::keeper::systemd::OWN_VARIABLES;
use crate::keeper::talk::Talk;
use crate::keeper::wire::{ENGINE_SOCKET_FD, EngineEnd};
use crate::sys::image::{BINARY_FD, path_of_fd};
use crate::sys::spawn::{Born, ChildPlan, Outcome, read_outcome, spawn};
use crate::sys::{pipe, process, socket};

/// An engine that ends sooner than this after its start has not really lived.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// So many short lives in a row are restarted at once; then the wait grows. As many as make safe mode.
const SHORT_LIVES_FREE: u32 = 5;

/// First wait; doubled for each further short life.
const WAIT_MIN: Duration = Duration::from_millis(50);

/// Longest wait. Services without an engine are not restarted, and one has to be back within a second
/// of the last one's death; and an engine that dies as soon as it has begun (about 40 ms of CPU) costs
/// less than a tenth of a core.
const WAIT_MAX: Duration = Duration::from_millis(400);

/// A start needs a socket pair and a pipe.
const RESERVE_FDS: usize = 4;

/// Our end of the talk with a living engine.
pub struct Link {
    pub socket: OwnedFd,
    pub talk: Talk,
}

pub struct Life {
    pub pid: i32,
    pub(super) since: Monotonic,
    pub(super) outcome: OwnedFd,
    pub(super) pulse: Pulse,
    /// We killed it, because it did not answer.
    pub(super) hung: bool,
    /// None once it has closed its end: it is killed then, for it can do nothing any more.
    pub link: Option<Link>,
}

enum State {
    Due { at: Monotonic },
    Living(Life),
}

pub struct Engine {
    plan: ChildPlan,
    /// The file that the next engine is of; None: our own.
    trial: Option<OwnedFd>,
    state: State,
    pub(super) starts: u32,
    pub(super) short_lives: u32,
    /// Starts in a row, from the first on, that ended at once with an exit code of their own.
    pub(super) refusals: u32,
    /// Fds kept back, so that services which take all the others cannot keep the engine away.
    reserve: Vec<OwnedFd>,
}

impl Engine {
    /// Executes ourselves again with `argv` and our environment, but for what is meant for us.
    pub fn new(argv: Vec<CString>) -> Engine {
        let inherited = env::vars_os().filter(|(name, _)| !OWN_VARIABLES.iter().any(|own| name == *own));
        let env = inherited.filter_map(|(name, value)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok()
        });
        let plan =
            ChildPlan { path: process::SELF_EXE.into(), argv, env: env.collect(), ..ChildPlan::default() };
        Engine {
            plan,
            trial: None,
            state: State::Due { at: Monotonic::ZERO },
            starts: 0,
            short_lives: 0,
            refusals: 0,
            reserve: Vec::with_capacity(RESERVE_FDS),
        }
    }

    pub fn starts(&self) -> u32 {
        self.starts
    }

    pub(super) fn argv(&self) -> &[CString] {
        &self.plan.argv
    }

    /// This one lives, whoever started it.
    pub(super) fn adopt(&mut self, life: Life) {
        self.state = State::Living(life);
    }

    /// Which file the engines from now on are of; None: our own.
    pub(super) fn set_trial(&mut self, binary: Option<OwnedFd>) {
        self.trial = binary;
    }

    pub(super) fn trial(&self) -> Option<BorrowedFd<'_>> {
        self.trial.as_ref().map(AsFd::as_fd)
    }

    /// Every engine so far, and no fewer than `least`, ended at once by its own word: something
    /// about this home has to be mended by hand.
    pub fn never_got_going(&self, least: u32) -> bool {
        self.refusals >= least && self.refusals == self.starts
    }

    pub fn short_lives(&self) -> u32 {
        self.short_lives
    }

    /// When to start it; None while it lives.
    pub fn due(&self) -> Option<Monotonic> {
        match self.state {
            State::Due { at } => Some(at),
            State::Living(_) => None,
        }
    }

    pub fn life(&self) -> Option<&Life> {
        match &self.state {
            State::Living(life) => Some(life),
            State::Due { .. } => None,
        }
    }

    pub fn link(&self) -> Option<&Link> {
        self.life()?.link.as_ref()
    }

    pub fn link_mut(&mut self) -> Option<&mut Link> {
        match &mut self.state {
            State::Living(life) => life.link.as_mut(),
            State::Due { .. } => None,
        }
    }

    /// Lets go of the socket, to be closed by the caller after it left the epoll set.
    pub fn cut_link(&mut self) -> Option<Link> {
        match &mut self.state {
            State::Living(life) => life.link.take(),
            State::Due { .. } => None,
        }
    }

    /// Forks and executes it, with our stdio and its end of a new socket.
    ///
    /// # Errors
    /// What fork or socketpair said; it counts as a short life.
    pub fn start(&mut self, now: Monotonic) -> Result<(), Errno> {
        self.reserve.clear();
        let started = self.try_start();
        self.keep_reserve();
        match started {
            Ok((Born { pid, outcome }, socket)) => {
                self.starts = self.starts.saturating_add(1);
                let link = Some(Link { socket, talk: Talk::Silent });
                let pulse = Pulse::new(now);
                self.state = State::Living(Life { pid, since: now, outcome, pulse, hung: false, link });
                Ok(())
            }
            Err(errno) => {
                self.wait_after_short_life(now);
                Err(errno)
            }
        }
    }

    fn keep_reserve(&mut self) {
        while self.reserve.len() < RESERVE_FDS {
            match pipe::null() {
                Ok(fd) => self.reserve.push(fd),
                Err(_) => break, // as many as there are; the next start tries again
            }
        }
    }

    fn try_start(&mut self) -> Result<(Born, OwnedFd), Errno> {
        let (ours, theirs) =
            socket::seqpacket_pair().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let fds: [(i32, BorrowedFd<'_>); 5] = [
            (0, stdin.as_fd()),
            (1, stdout.as_fd()),
            (2, stderr.as_fd()),
            (ENGINE_SOCKET_FD, theirs.as_fd()),
            (BINARY_FD, self.trial.as_ref().map_or(theirs.as_fd(), AsFd::as_fd)),
        ];
        let fds = match &self.trial {
            Some(_) => fds.as_slice(),
            None => fds.get(..4).unwrap_or(&[]),
        };
        let own = || process::SELF_EXE.into();
        self.plan.path = self.trial.as_ref().map_or_else(own, |_| path_of_fd(BINARY_FD));
        Ok((spawn(&self.plan, fds, None)?, ours))
    }

    pub fn pulse_mut(&mut self) -> Option<&mut Pulse> {
        match &mut self.state {
            State::Living(life) => Some(&mut life.pulse),
            State::Due { .. } => None,
        }
    }

    /// When its pulse is next to be felt; None while there is nobody to talk to.
    pub fn pulse_due(&self, feeding: Option<Duration>) -> Option<Monotonic> {
        self.life().filter(|life| life.link.is_some() && !life.hung)?.pulse.due(feeding)
    }

    /// Whether it lives. Found hung, it is remembered as that, and found so once.
    pub fn feel(&mut self, now: Monotonic, feeding: Option<Duration>) -> Finding {
        let State::Living(life) = &mut self.state else { return Finding::Well };
        if life.link.is_none() || life.hung {
            return Finding::Well;
        }
        let finding = life.pulse.look(now, feeding);
        life.hung = finding == Finding::Hung;
        finding
    }

    /// It was reaped: how it ended. None: there was none.
    pub fn ended(&mut self, now: Monotonic, exit: Exit) -> Option<EngineEnd> {
        let State::Living(life) = &self.state else {
            return None;
        };
        let exit = match read_outcome(&life.outcome) {
            Outcome::Failed { step, errno } => Exit::NotExecuted { step, errno },
            Outcome::Pending | Outcome::Executed => exit,
        };
        let lived = now.since(life.since);
        let end = EngineEnd { pid: life.pid, at: now, exit, hung: life.hung };
        let refused = matches!(exit, Exit::Code(_)) && now.since(life.since) < SHORT_LIFE;
        self.refusals = if refused { self.refusals.saturating_add(1) } else { 0 };
        if lived < SHORT_LIFE {
            self.wait_after_short_life(now);
        } else {
            self.short_lives = 0;
            self.state = State::Due { at: now };
        }
        Some(end)
    }

    /// Counts short lives anew, and waits for none of those before.
    pub fn forget_short_lives(&mut self, now: Monotonic) {
        self.short_lives = 0;
        if let State::Due { at } = &mut self.state {
            *at = now.min(*at);
        }
    }

    fn wait_after_short_life(&mut self, now: Monotonic) {
        self.short_lives = self.short_lives.saturating_add(1);
        let wait = match self.short_lives.checked_sub(SHORT_LIVES_FREE) {
            None => Duration::ZERO,
            Some(beyond) => WAIT_MIN.saturating_mul(1 << beyond.min(8)).min(WAIT_MAX),
        };
        self.state = State::Due { at: now + wait };
    }
}
