//! An upgrade: the next engine is of another file; when it has shown that it can do the work,
//! the keeper executes that file in its own place. Otherwise all is as it was.
//!
//! Refuses: judging the file. The engine that asked has done that; what counts here is only
//! whether the new engine lives, says that it is healthy, and goes on living.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::catch_unwind;
use std::time::Duration;

use crate::base::time::Monotonic;
use crate::keeper::run::{Ending, Keeper, say};
use crate::keeper::state::{self, State};
use crate::keeper::talk::Talk;
use crate::keeper::wire::{UpgradeNews, UpgradeStage};
use crate::sys::{clock, image, memfd, process};

pub use crate::keeper::state::{STATE_VERSION, STATE_VERSIONS_READ};

/// After `Swap`: how long the engine may take to leave. It has nothing left to do.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// How long the new engine may take to say that it is healthy; it takes tens of milliseconds.
const TRIAL_MAX: Duration = Duration::from_secs(10);

/// Healthy, it has to live so long before the keeper follows it.
const SURE_AFTER: Duration = Duration::from_secs(1);

/// What is not told yet is looked for again after this.
const UNTOLD_WAIT: Duration = Duration::from_millis(20);

/// The words after the keeper's own by which an image finds what the one before left to it:
/// the number of the state's fd, and that of the file that was executed before.
pub const RESUME_WORD: &str = "resume";
pub const RETURN_WORD: &str = "return";

/// Exit code of a keeper that cannot take over from itself.
const EXIT_LOST: i32 = 1;

/// Which way a keeper's image came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Out of the image of the old build, to go on as the new one.
    Forward,
    /// Out of the image of the new build, which could not.
    Back,
}

impl Came {
    pub fn of_word(word: &str) -> Option<Came> {
        [(RESUME_WORD, Came::Forward), (RETURN_WORD, Came::Back)]
            .into_iter()
            .find_map(|(known, came)| (known == word).then_some(came))
    }
}

/// Whether the end of an engine belonged to an upgrade.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Yes,
    No,
}

#[derive(Clone, Copy)]
enum Stage {
    /// The old engine said `Swap` and leaves.
    Leaving {
        kill_at: Monotonic,
    },
    /// The new engine has not said that it is healthy.
    Trial {
        fail_at: Monotonic,
    },
    Healthy {
        sure_at: Monotonic,
    },
    /// It is ended, for the reason that is noted.
    Failing,
}

struct Swap {
    note: Vec<u8>,
    stage: Stage,
    why: Vec<u8>,
}

/// What the keeper knows of upgrades.
#[derive(Default)]
pub struct Upgrade {
    /// How many it was asked for.
    pub(super) count: u32,
    swap: Option<Swap>,
}

impl Upgrade {
    /// When to look again; None while there is none.
    pub(super) fn due(&self) -> Option<Monotonic> {
        match self.swap.as_ref()?.stage {
            Stage::Leaving { kill_at: at }
            | Stage::Trial { fail_at: at }
            | Stage::Healthy { sure_at: at } => Some(at),
            Stage::Failing => None,
        }
    }

    pub(super) fn note(&self) -> &[u8] {
        self.swap.as_ref().map_or(&[], |swap| &swap.note)
    }

    fn stage_to(&mut self, stage: Stage) {
        if let Some(swap) = &mut self.swap {
            swap.stage = stage;
        }
    }
}

impl Keeper {
    pub(super) fn on_swap(&mut self, note: Vec<u8>, binary: OwnedFd) {
        match self.ending {
            Ending::No if self.upgrade.swap.is_none() => {}
            Ending::No | Ending::Asked { .. } | Ending::Terminating { .. } | Ending::Killing { .. } => {
                return say("there is no upgrade now: one is under way, or all is ending");
            }
        }
        let kill_at = clock::monotonic() + LEAVE_MAX;
        self.upgrade.count = self.upgrade.count.saturating_add(1);
        self.upgrade.swap = Some(Swap { note, stage: Stage::Leaving { kill_at }, why: Vec::new() });
        self.engine.set_trial(Some(binary));
    }

    pub(super) fn on_healthy(&mut self) {
        if let Some(Swap { stage: stage @ Stage::Trial { .. }, .. }) = &mut self.upgrade.swap {
            *stage = Stage::Healthy { sure_at: clock::monotonic() + SURE_AFTER };
        }
    }

    pub(super) fn on_unfit(&mut self, why: Vec<u8>) {
        if let Some(swap) = &mut self.upgrade.swap {
            swap.why = why;
        }
    }

    /// The engine was reaped, and another is due.
    pub(super) fn on_engine_gone_in_upgrade(&mut self, now: Monotonic, sentence: &str) -> Expected {
        let Some(swap) = &self.upgrade.swap else {
            return Expected::No;
        };
        match swap.stage {
            Stage::Leaving { .. } => {
                self.engine.forget_short_lives(now);
                self.upgrade.stage_to(Stage::Trial { fail_at: now + TRIAL_MAX });
                self.say_stage(UpgradeStage::Trial, Vec::new());
                Expected::Yes
            }
            Stage::Trial { .. } | Stage::Healthy { .. } | Stage::Failing => {
                let why = if swap.why.is_empty() { sentence.as_bytes().to_vec() } else { swap.why.clone() };
                self.engine.forget_short_lives(now);
                self.fail(why);
                Expected::No
            }
        }
    }

    /// Engines are of our own build again.
    fn fail(&mut self, why: Vec<u8>) {
        self.engine.set_trial(None);
        self.say_stage(UpgradeStage::Failed, why);
        self.upgrade.swap = None;
    }

    /// Ends the engine of the new build; when it is reaped, one of ours follows.
    fn begin_failing(&mut self, why: &str) {
        if let Some(swap) = &mut self.upgrade.swap {
            if swap.why.is_empty() {
                swap.why = why.as_bytes().to_vec();
            }
            swap.stage = Stage::Failing;
        }
        if self.engine.life().is_some() {
            self.kill_engine();
        } else {
            let why = self.upgrade.swap.as_ref().map_or_else(Vec::new, |swap| swap.why.clone());
            self.engine.forget_short_lives(clock::monotonic());
            self.fail(why);
        }
    }

    fn say_stage(&mut self, stage: UpgradeStage, why: Vec<u8>) {
        let note = self.upgrade.note().to_vec();
        self.tidings.upgrade = Some(UpgradeNews { number: self.upgrade.count, stage, note, why });
        self.tidings.upgrade_untold = true;
    }

    /// What is due of an upgrade.
    pub(super) fn go_on_upgrading(&mut self) {
        let now = clock::monotonic();
        let Some(swap) =
            self.upgrade.swap.as_ref().filter(|_| self.upgrade.due().is_some_and(|at| at <= now))
        else {
            return;
        };
        match (self.ending, swap.stage) {
            // Whoever ends all will not be kept from it, and nobody is told of an upgrade any more.
            (Ending::Asked { .. } | Ending::Terminating { .. } | Ending::Killing { .. }, _) => {
                self.upgrade.swap = None;
            }
            (Ending::No, Stage::Leaving { .. }) => {
                self.kill_engine();
                self.upgrade.stage_to(Stage::Leaving { kill_at: now + LEAVE_MAX });
            }
            (Ending::No, Stage::Trial { .. }) => {
                let limit = TRIAL_MAX.as_secs();
                self.begin_failing(&format!("its engine was not healthy within {limit} s"));
            }
            (Ending::No, Stage::Healthy { .. }) if self.end_signals != 0 => self.upgrade.swap = None,
            (Ending::No, Stage::Healthy { .. }) if !self.has_told_all() => {
                self.upgrade.stage_to(Stage::Healthy { sure_at: now + UNTOLD_WAIT });
            }
            (Ending::No, Stage::Healthy { .. }) => {
                let refused = self.become_new();
                self.begin_failing(&format!("its keeper cannot be executed: {refused}"));
            }
            (Ending::No, Stage::Failing) => {}
        }
    }

    /// Nothing is on its way to the engine but what is in the socket.
    fn has_told_all(&mut self) -> bool {
        let talks = self.engine.link().is_some_and(|link| link.talk == Talk::News);
        let Self { tidings, .. } = self;
        let quiet = tidings.short.is_none() && tidings.signals == 0 && !tidings.upgrade_untold;
        talks && quiet && !tidings.orphan_reaped && tidings.table.next_untold().is_none()
    }

    /// Executes the new build in our place, with all that we hold. Only a refusal returns; all is
    /// as before then.
    fn become_new(&mut self) -> io::Error {
        let prepared = state::encode(self).and_then(|bytes| {
            let state = memfd::sealed("upright-keeper", &bytes)?;
            Ok((state, image::open_self()?))
        });
        let (state, old) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return error,
        };
        let Some(binary) = self.engine.trial() else {
            return io::ErrorKind::NotFound.into();
        };
        let mut kept: Vec<BorrowedFd<'_>> = state::fds(self).collect();
        kept.extend([state.as_fd(), old.as_fd()]);
        let mut argv = words(RESUME_WORD, state.as_raw_fd(), old.as_raw_fd());
        // For those who look at a list of processes: the places.
        argv.extend(self.engine.argv().iter().skip(2).cloned());
        image::execute(binary, &argv, &kept)
    }
}

fn words(word: &str, state: RawFd, old: RawFd) -> Vec<CString> {
    let words = ["upright".to_string(), "keeper".to_string(), word.to_string()];
    let numbers = [state.to_string(), old.to_string()];
    words.into_iter().chain(numbers).filter_map(|word| CString::new(word).ok()).collect() // no NULs
}

/// Goes on as the keeper that executed us: `state` is the number of its state's fd, `old` that of
/// its file. The exit code. Where this build cannot, that file is executed again.
pub fn resume(came: Came, state: RawFd, old: RawFd) -> i32 {
    process::set_name("upright-keeper");
    // Nothing that was left to us is owned before everything that can fail is done: until then
    // it can be left to the next image as it is.
    let begun = catch_unwind(|| {
        let left = state::decode(&memfd::read(image::duplicate(state)?)?)?;
        let keeper = Keeper::new(left.engine_argv.clone())?;
        Ok::<_, io::Error>((left, keeper))
    });
    let why = match begun {
        Ok(Ok((left, keeper))) => {
            for number in [state, old] {
                drop(image::inherited(number)); // nobody needs them any more
            }
            return keeper.take_over(came, left);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it panicked".to_string(),
    };
    say(&format!("cannot take over from the keeper before: {why}"));
    if came == Came::Forward {
        let refused = image::execute_inherited(old, &words(RETURN_WORD, state, old));
        say(&format!("cannot go back to it either: {refused}"));
    }
    EXIT_LOST
}

impl Keeper {
    fn take_over(mut self, came: Came, left: State) -> i32 {
        let note = left.note.clone();
        left.install(&mut self);
        self.upgrade.swap = Some(Swap { note, stage: Stage::Failing, why: Vec::new() });
        match came {
            Came::Forward => {
                self.say_stage(UpgradeStage::Done, Vec::new());
                self.upgrade.swap = None;
            }
            Came::Back => self.begin_failing("its keeper could not take over"),
        }
        // What ended meanwhile was announced to the image before; no event will bring this up.
        self.reap_all();
        self.tell();
        self.go()
    }
}
