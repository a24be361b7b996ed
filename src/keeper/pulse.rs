//! The engine's pulse: whether its loop still turns. Whatever it asks of us is a sign of life; when
//! none came, it is asked for one.
//!
//! Refuses: shooting who was not heard because we did not listen. What is counted is time in which we
//! were awake and looked, in slices: a keeper that was stopped, starved or suspended has seen nothing.

use std::time::Duration;

use crate::base::time::Monotonic;
use crate::keeper::run::{Ending, Keeper, say};
use crate::keeper::talk::Build;
use crate::keeper::wire::Stage;
use crate::sys::clock;

/// After something was told, so long until a sign of life is asked for.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// The same when nothing was told: rare, because each question wakes both of us.
const ASK_IDLE: Duration = Duration::from_secs(60);

/// How long a running engine may leave a question unanswered. Its loop waits for no disk but when it
/// opens a log or a file of variables, and disks that stall for a second or two are common.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How long one step of the beginning may take: a store of gigabytes, files of 10,000 units.
const BEGIN_MAX: Duration = Duration::from_secs(60);

/// At most so much is counted between two looks, however much time has passed.
const SLICE: Duration = Duration::from_secs(1);

/// What a look came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    Well,
    /// It has to be asked now.
    Ask,
    /// An engine of an older build, which cannot be asked: it is believed.
    Believed,
    Hung,
}

/// How far the engine is, as far as we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Felt {
    /// It has said nothing at all.
    Silent,
    /// It said hello and not that it lives: an older build.
    Older,
    At(Stage),
}

/// It is to say something, and has not.
#[derive(Clone, Copy, Debug)]
struct Wait {
    spent: Duration,
    looked: Monotonic,
}

#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    felt: Felt,
    /// The last sign of life.
    heard: Monotonic,
    /// Since then, when something was first told.
    told: Option<Monotonic>,
    wait: Option<Wait>,
}

impl Pulse {
    /// Of an engine that was started now.
    pub fn new(now: Monotonic) -> Pulse {
        Pulse { felt: Felt::Silent, heard: now, told: None, wait: Some(Wait::from(now)) }
    }

    /// It said hello: one that did not say `Alive` before is of an older build.
    pub fn hears_hello(&mut self) {
        if self.felt == Felt::Silent {
            self.felt = Felt::Older;
        }
    }

    pub fn is_older(&self) -> bool {
        self.felt == Felt::Older
    }

    /// It said how far it is. True: its loop turns, and had not before.
    pub fn hears_stage(&mut self, stage: Stage) -> bool {
        let first = stage == Stage::Running && self.felt != Felt::At(Stage::Running);
        self.felt = Felt::At(stage);
        first
    }

    /// It asked for something, or took what had waited: it lives.
    pub fn beats(&mut self, now: Monotonic) {
        self.heard = now;
        self.told = None;
        self.wait = match self.felt {
            Felt::Silent | Felt::At(Stage::Beginning) => Some(Wait::from(now)),
            Felt::Older | Felt::At(Stage::Running) => None,
        };
    }

    /// Something was told to it.
    pub fn tells(&mut self, now: Monotonic) {
        self.told.get_or_insert(now);
    }

    /// When `look` is next due. `feeding`: somebody wants to hear so often that the engine lives.
    pub fn due(&self, feeding: Option<Duration>) -> Option<Monotonic> {
        if let Some(wait) = self.wait {
            return Some(wait.looked + SLICE);
        }
        let fed = feeding.map(|every| self.heard + every);
        match self.felt {
            Felt::Older => fed,
            Felt::Silent | Felt::At(_) => {
                let asked = self.told.map(|at| at + ASK_AFTER);
                [Some(self.heard + ASK_IDLE), asked, fed].into_iter().flatten().min()
            }
        }
    }

    /// Counts what has passed. Call it after everything that lay there was read.
    pub fn look(&mut self, now: Monotonic, feeding: Option<Duration>) -> Finding {
        let due = self.due(feeding).is_some_and(|at| at <= now);
        if !due {
            return Finding::Well;
        }
        let patience = match self.felt {
            Felt::Older => {
                self.heard = now;
                return Finding::Believed;
            }
            Felt::Silent | Felt::At(Stage::Beginning) => BEGIN_MAX,
            Felt::At(Stage::Running) => ANSWER_MAX,
        };
        let Some(wait) = &mut self.wait else {
            self.wait = Some(Wait::from(now));
            return Finding::Ask;
        };
        wait.spent += now.since(wait.looked).min(SLICE);
        wait.looked = now;
        if wait.spent < patience { Finding::Well } else { Finding::Hung }
    }
}

impl Wait {
    fn from(now: Monotonic) -> Wait {
        Wait { spent: Duration::ZERO, looked: now }
    }
}

impl Keeper {
    /// The engine said hello: what it may be told.
    pub(super) fn build_of_engine(&mut self) -> Build {
        let Some(pulse) = self.engine.pulse_mut() else { return Build::Older };
        pulse.hears_hello();
        if !pulse.is_older() {
            return Build::Ours;
        }
        self.systemd.ready(); // it will not say that it runs
        Build::Older
    }

    pub(super) fn on_stage(&mut self, stage: Stage) {
        if self.engine.pulse_mut().is_some_and(|pulse| pulse.hears_stage(stage)) {
            self.systemd.ready();
        }
    }

    /// The engine has shown that it lives.
    pub(super) fn on_beat(&mut self) {
        let now = clock::monotonic();
        if let Some(pulse) = self.engine.pulse_mut() {
            pulse.beats(now);
            self.systemd.feed(now);
        }
    }

    /// After all that lay there was read: whether the engine has to be asked, or is beyond asking.
    /// When `feel_pulse` has something to do. An engine that leaves for another build, or is on
    /// trial, has a deadline of its own.
    pub(super) fn pulse_due(&self) -> Option<Monotonic> {
        match self.upgrade.due() {
            Some(_) => None,
            None => self.engine.pulse_due(self.systemd.feeding()),
        }
    }

    pub(super) fn feel_pulse(&mut self) {
        if self.upgrade.due().is_some() {
            return;
        }
        match self.ending {
            Ending::No => {}
            Ending::Asked { .. } | Ending::Terminating { .. } | Ending::Killing { .. } => return,
        }
        let now = clock::monotonic();
        match self.engine.feel(now, self.systemd.feeding()) {
            Finding::Well => {}
            Finding::Ask => self.tidings.ping = true,
            Finding::Believed => self.systemd.feed(now),
            Finding::Hung => {
                say("the engine does not answer: it is killed, and another one started");
                self.kill_engine();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BORN: Monotonic = Monotonic::from_ns(1_000_000_000_000);

    fn at(ms: u64) -> Monotonic {
        BORN + Duration::from_millis(ms)
    }

    fn running() -> Pulse {
        let mut pulse = Pulse::new(BORN);
        assert!(!pulse.hears_stage(Stage::Beginning));
        assert!(pulse.hears_stage(Stage::Running));
        assert!(!pulse.hears_stage(Stage::Running));
        pulse.beats(BORN);
        pulse
    }

    /// Looks whenever it is due, until something has to be done; when, and what.
    fn until_found(pulse: &mut Pulse, feeding: Option<Duration>) -> (Monotonic, Finding) {
        loop {
            let due = pulse.due(feeding).expect("due some time");
            match pulse.look(due, feeding) {
                Finding::Well => {}
                found @ (Finding::Ask | Finding::Believed | Finding::Hung) => return (due, found),
            }
        }
    }

    #[test]
    fn who_is_told_something_is_asked_a_second_later_and_is_hung_five_after_that() {
        let mut pulse = running();
        pulse.tells(at(500));
        pulse.tells(at(900));
        assert_eq!(until_found(&mut pulse, None), (at(1_500), Finding::Ask));
        pulse.beats(at(1_600));
        assert_eq!(until_found(&mut pulse, None), (at(61_600), Finding::Ask));
        assert_eq!(until_found(&mut pulse, None), (at(66_600), Finding::Hung));
    }

    #[test]
    fn somebody_who_wants_to_hear_of_it_has_it_asked_as_often() {
        let mut pulse = running();
        let feeding = Some(Duration::from_secs(10));
        assert_eq!(until_found(&mut pulse, feeding), (at(10_000), Finding::Ask));
    }

    /// A suspend of an hour, and a keeper that is stopped for a minute, are a second each.
    #[test]
    fn what_we_slept_through_is_not_held_against_it() {
        let mut pulse = running();
        assert_eq!(until_found(&mut pulse, None), (at(60_000), Finding::Ask));
        assert_eq!(pulse.look(at(3_660_000), None), Finding::Well);
        assert_eq!(pulse.look(at(3_720_000), None), Finding::Well);
        assert_eq!(pulse.look(at(3_720_500), None), Finding::Well, "not due");
        assert_eq!(until_found(&mut pulse, None), (at(3_723_000), Finding::Hung));
    }

    #[test]
    fn a_beginning_may_take_long_and_each_step_anew() {
        let mut pulse = Pulse::new(BORN);
        assert_eq!(until_found(&mut pulse, None), (at(60_000), Finding::Hung));
        let mut pulse = Pulse::new(BORN);
        pulse.hears_stage(Stage::Beginning);
        pulse.beats(at(50_000));
        assert_eq!(until_found(&mut pulse, None), (at(110_000), Finding::Hung));
    }

    #[test]
    fn an_older_build_is_never_asked() {
        let mut pulse = Pulse::new(BORN);
        pulse.hears_hello();
        pulse.beats(at(1));
        pulse.tells(at(2));
        assert_eq!(pulse.due(None), None);
        let feeding = Some(Duration::from_secs(3));
        assert_eq!(until_found(&mut pulse, feeding), (at(3_001), Finding::Believed));
    }
}
