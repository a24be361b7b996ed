//! An upgrade, as the engine sees it: asking the binary on disk what it is; leaving, when it can
//! take over; saying that one is healthy; telling what became of it.
//!
//! Refuses: a path from outside. The binary is the file that the daemon was started from.

use std::ffi::CString;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use tokio::sync::oneshot;

use crate::api::call::{Answer, Peer};
use crate::api::types::UpgradeStatus;
use crate::base::time::Monotonic;
use crate::config::read::{ReadError, check_program};
use crate::daemon::card::{Card, HANDSHAKE_WORD, Refused};
use crate::daemon::doors::who;
use crate::daemon::handlers::{json, refuse};
use crate::daemon::hands::{Hands, Late, Source};
use crate::daemon::shell::{Ending, Shell, say_last};
use crate::engine::adopt::Boot;
use crate::keeper::wire::{Request, UpgradeNews, UpgradeStage};
use crate::store::row::Level;
use crate::store::schema::Schema;
use crate::store::writer::Write;
use crate::sys::{clock, image, process};

/// How long the binary on disk may take to say what it is.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// How long an upgrade waits for orders that are under way. They stand in any case; who waits
/// for one that takes longer is told so.
const ORDERS_MAX: Duration = Duration::from_secs(5);

/// What came of something that an upgrade waits for.
pub enum Heard {
    /// The binary on disk was looked at.
    Looked(Result<Found, Refused>),
    /// Everybody who had connected is served.
    Served,
}

/// What lies on the disk.
pub enum Found {
    /// The file that runs.
    Same,
    Other {
        binary: OwnedFd,
        card: Card,
    },
}

/// What an upgrade wants to be on the disk before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// This engine has taken over.
    Healthy,
    /// This engine has nothing left to do.
    HandOver,
}

/// An upgrade that this engine was asked for.
enum Step {
    Rest,
    Asking {
        reply: oneshot::Sender<Answer>,
    },
    /// Going on as ever, until nobody waits for an order.
    Orders {
        swap: Swap,
        until: Monotonic,
    },
    /// Nobody is accepted any more; whoever was is being served.
    Serving {
        swap: Swap,
    },
}

struct Swap {
    binary: OwnedFd,
    from: String,
    to: String,
}

pub struct Upgrade {
    /// Where the daemon was started from; None when nobody said it.
    binary: Option<PathBuf>,
    schema: Schema,
    step: Step,
    news: Option<UpgradeNews>,
    /// The upgrade whose outcome is on record.
    told: Option<String>,
    /// Ends accepting.
    stop: Option<oneshot::Sender<()>>,
}

impl Upgrade {
    pub fn new(
        binary: Option<PathBuf>,
        schema: Schema,
        told: Option<String>,
        stop: oneshot::Sender<()>,
    ) -> Upgrade {
        Upgrade { binary, schema, step: Step::Rest, news: None, told, stop: Some(stop) }
    }

    pub(crate) fn due(&self) -> Option<Monotonic> {
        match self.step {
            Step::Orders { until, .. } => Some(until),
            Step::Rest | Step::Asking { .. } | Step::Serving { .. } => None,
        }
    }

    fn number(&self) -> u32 {
        self.news.as_ref().map_or(0, |news| news.number)
    }

    fn status(&self) -> UpgradeStatus {
        let own = || env!("CARGO_PKG_VERSION").to_string();
        if let Step::Orders { swap, .. } | Step::Serving { swap } = &self.step {
            return self.running(swap);
        }
        let Some(news) = &self.news else {
            return UpgradeStatus {
                state: "none".into(),
                from: own(),
                to: own(),
                ..UpgradeStatus::default()
            };
        };
        let state = match news.stage {
            UpgradeStage::Trial => "running",
            UpgradeStage::Done => "done",
            UpgradeStage::Failed => "failed",
        };
        let (from, to) = versions(news);
        let why = String::from_utf8_lossy(&news.why).into_owned();
        let message = (news.stage == UpgradeStage::Failed).then_some(why);
        UpgradeStatus { number: news.number, state: state.into(), from, to, message }
    }

    fn running(&self, swap: &Swap) -> UpgradeStatus {
        UpgradeStatus {
            number: self.number() + 1,
            state: "running".into(),
            from: swap.from.clone(),
            to: swap.to.clone(),
            message: None,
        }
    }
}

/// What the engine that asked has noted: from which version to which.
fn versions(news: &UpgradeNews) -> (String, String) {
    let note = String::from_utf8_lossy(&news.note);
    let (from, to) = note.split_once(' ').unwrap_or((&note, ""));
    (from.to_string(), to.to_string())
}

/// Unlike that of any other upgrade of this home.
fn id_of(news: &UpgradeNews, keeper_started: Monotonic) -> String {
    format!("{}-{}", keeper_started.as_ns(), news.number)
}

/// How an engine begins that the keeper has told this.
pub fn boot_of(
    engine_starts: u32,
    news: Option<&UpgradeNews>,
    told: Option<&str>,
    keeper_started: Monotonic,
) -> Boot {
    let relieves = news.is_some_and(|news| match news.stage {
        UpgradeStage::Trial => true,
        // The one on trial has ended, and that is nothing that happened to this build.
        UpgradeStage::Failed => told != Some(id_of(news, keeper_started).as_str()),
        UpgradeStage::Done => false,
    });
    match relieves {
        _ if engine_starts <= 1 => Boot::Fresh,
        true => Boot::Relieved,
        false => Boot::Resumed,
    }
}

impl Shell {
    pub(crate) fn upgrade_status(&self) -> Answer {
        json(&self.upgrade.status())
    }

    /// Looks at the binary on disk; the answer comes with what is found.
    pub(crate) fn begin_upgrade(&mut self, peer: Peer, reply: oneshot::Sender<Answer>) {
        let binary = match self.upgradable() {
            Ok(binary) => binary,
            Err(answer) => return drop(reply.send(*answer)), // whoever asked has left
        };
        let message = format!("{peer} asked to upgrade the daemon");
        let data = who(&peer).into_iter().chain([("verb", "upgrade".into())]);
        self.note(Level::Info, "order.asked", message, data);
        let sources = self.hands.tools.sources.clone();
        let look = move || {
            let heard = Heard::Looked(look_at(&binary));
            let _ = sources.send(Source::Upgrade(heard)); // the loop has ended
        };
        match std::thread::Builder::new().name("upgrade".into()).spawn(look) {
            Ok(_) => self.upgrade.step = Step::Asking { reply },
            Err(error) => {
                let message = format!("cannot look at the binary: {error}");
                let _ = reply.send(refuse(503, "upgrade.short", message, None)); // as above
            }
        }
    }

    /// The path of the binary, if there can be an upgrade now.
    fn upgradable(&self) -> Result<PathBuf, Box<Answer>> {
        let no = |status, code: &str, message: String, help: Option<String>| {
            Err(Box::new(refuse(status, code, message, help)))
        };
        if self.ending != Ending::No {
            return no(409, "daemon.ending", "the daemon is ending".into(), None);
        }
        let trial = self.upgrade.news.as_ref().is_some_and(|news| news.stage == UpgradeStage::Trial);
        if trial || !matches!(self.upgrade.step, Step::Rest) {
            let help = Some("`upright upgrade` tells the outcome of one that it began".into());
            return no(409, "upgrade.running", "an upgrade is under way".into(), help);
        }
        if let Some(trouble) = self.hands.store_trouble() {
            let message = format!("cannot upgrade while the store cannot be written: {trouble}");
            return no(507, "store.trouble", message, Some("make room for the store".into()));
        }
        match &self.upgrade.binary {
            Some(binary) => Ok(binary.clone()),
            None => no(409, "upgrade.no-binary", "the daemon does not know its own file".into(), None),
        }
    }

    pub(crate) fn on_upgrade_heard(&mut self, heard: Heard) {
        match (heard, std::mem::replace(&mut self.upgrade.step, Step::Rest)) {
            (Heard::Looked(found), Step::Asking { reply }) => self.on_looked(found, reply),
            (Heard::Served, step @ Step::Serving { .. }) => {
                self.upgrade.step = step;
                self.hands.end_step();
                self.await_milestone(Milestone::HandOver);
            }
            (Heard::Looked(_) | Heard::Served, step) => self.upgrade.step = step,
        }
    }

    fn on_looked(&mut self, found: Result<Found, Refused>, reply: oneshot::Sender<Answer>) {
        let own = Card::of_this_build();
        let fit = found.and_then(|found| match found {
            Found::Same => Ok(None),
            Found::Other { binary, card } => own
                .check_successor(self.upgrade.schema, &card)
                .map(|()| Some(Swap { binary, from: own.version.clone(), to: card.version })),
        });
        match fit {
            Err(Refused { code, message, help }) => {
                self.note(Level::Warn, "daemon.upgrade_refused", message.clone(), []);
                let _ = reply.send(refuse(409, &format!("upgrade.{code}"), message, help)); // as above
            }
            Ok(None) => {
                let (from, to, number) = (own.version.clone(), own.version, self.upgrade.number());
                let same = UpgradeStatus { number, state: "already".into(), from, to, message: None };
                let _ = reply.send(json(&same)); // as above
            }
            Ok(Some(swap)) => {
                self.count_logs(Duration::ZERO); // the next engine counts from zero
                let message = format!("upgrading from {} to {}", swap.from, swap.to);
                let data = [("from", swap.from.as_str().into()), ("to", swap.to.as_str().into())];
                self.note(Level::Info, "daemon.upgrading", message, data);
                self.hands.answer_when_committed(reply, json(&self.upgrade.running(&swap)));
                self.upgrade.step = Step::Orders { swap, until: clock::monotonic() + ORDERS_MAX };
            }
        }
    }

    /// What an upgrade can do now. Called when everything else is done.
    pub(crate) fn go_on_leaving(&mut self) {
        let Step::Orders { until, .. } = self.upgrade.step else { return };
        let waited_for = !self.requests.is_empty() || self.hands.owes_answers();
        let ending = self.ending != Ending::No;
        if !ending && waited_for && clock::monotonic() < until {
            return;
        }
        match std::mem::replace(&mut self.upgrade.step, Step::Rest) {
            Step::Orders { swap, .. } if !ending => {
                for (_, reply) in std::mem::take(&mut self.requests) {
                    let message = "the daemon is being upgraded; the order stands".to_string();
                    let help = Some("`upright status` shows how far it is".to_string());
                    let _ = reply.send(refuse(503, "daemon.upgrading", message, help)); // as above
                }
                self.upgrade.step = Step::Serving { swap };
                drop(self.upgrade.stop.take()); // the server hears that too
            }
            Step::Orders { .. } | Step::Rest | Step::Asking { .. } | Step::Serving { .. } => {}
        }
    }

    pub(crate) fn await_milestone(&mut self, milestone: Milestone) {
        self.hands.when_committed(Late::Upgrade(milestone));
    }

    pub(crate) fn on_milestone(&mut self, milestone: Milestone) {
        match milestone {
            Milestone::Healthy => self.hands.ask_keeper(Request::Healthy),
            // Told to end meanwhile: that goes before.
            Milestone::HandOver if self.ending == Ending::No => self.ending = Ending::HandedOver,
            Milestone::HandOver => {}
        }
    }

    /// What the keeper says of the newest upgrade; its outcome is recorded once.
    pub(crate) fn on_upgrade_news(&mut self, news: UpgradeNews) {
        let (from, to) = versions(&news);
        let id = id_of(&news, self.started_at);
        let (level, event, message) = match news.stage {
            UpgradeStage::Trial => {
                self.upgrade.news = Some(news);
                return;
            }
            UpgradeStage::Done => {
                let message = format!("the daemon was upgraded from {from} to {to}; no service was touched");
                (Level::Info, "daemon.upgraded", message)
            }
            UpgradeStage::Failed => {
                let why = String::from_utf8_lossy(&news.why);
                let message = format!("the upgrade from {from} to {to} failed, {from} goes on: {why}");
                (Level::Error, "daemon.upgrade_failed", message)
            }
        };
        let number = news.number;
        self.upgrade.news = Some(news);
        if self.upgrade.told.as_ref() != Some(&id) {
            self.upgrade.told = Some(id.clone());
            self.hands.keep(Write::UpgradeTold(id));
            let data = [("from", from.into()), ("to", to.into()), ("number", number.into())];
            self.note(level, event, message, data);
        }
    }

    /// Leaves everything to the next engine. It is all on the disk, or in the keeper.
    pub fn hand_over(mut self) {
        let Step::Serving { swap } = std::mem::replace(&mut self.upgrade.step, Step::Rest) else { return };
        // Nothing is closed in order: of the store that would be another second of work, and
        // whoever comes does not need it.
        let mut hands = ManuallyDrop::new(self.hands);
        let note = format!("{} {}", swap.from, swap.to).into_bytes();
        say_last(&mut hands.tools.keeper, Request::Swap { note, binary: swap.binary });
    }
}

impl Hands {
    fn when_committed(&mut self, late: Late) {
        self.waiting.push_back((self.tools.store.submitted(), late));
    }

    /// Somebody is answered as soon as something is on the disk.
    fn owes_answers(&self) -> bool {
        self.waiting.iter().any(|(_, late)| match late {
            Late::Reply { .. } | Late::Answer(..) | Late::Fault { .. } => true,
            Late::Release(_) | Late::Finished | Late::Upgrade(_) => false,
        })
    }
}

/// Opens the binary, sees whether it may be executed by us, and asks it what it is.
fn look_at(path: &Path) -> Result<Found, Refused> {
    let shown = path.display();
    let refused = |code, why: String, help: Option<String>| Refused {
        code,
        message: format!("cannot upgrade to {shown}: {why}"),
        help,
    };
    let unreadable = |errno: Errno| refused("unreadable", format!("cannot read: {}", errno.desc()), None);
    let judged = |ReadError { code, why, help }: ReadError| refused(code, why, help);
    // Without O_NONBLOCK an open of a FIFO waits for a writer, for ever.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let binary = open(path, flags, Mode::empty()).map_err(unreadable)?;
    let found = fstat(&binary).map_err(unreadable)?;
    check_program(path, &found).map_err(judged)?;
    let own = image::open_self().and_then(|own| Ok(fstat(&own)?));
    let own = own.map_err(|error| refused("unreadable", format!("cannot read our own: {error}"), None))?;
    if (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino) {
        return Ok(Found::Same);
    }
    let words = ["upright", HANDSHAKE_WORD].into_iter();
    let argv = words.filter_map(|word| CString::new(word).ok()).collect(); // constants
    let answer = image::ask(binary.as_fd(), argv, HANDSHAKE_MAX).map_err(|error| {
        let help = format!("try `{shown} --version`");
        refused("no-answer", format!("it does not say what it is: {error}"), Some(help))
    })?;
    match std::str::from_utf8(&answer).ok().and_then(Card::parse) {
        Some(card) => Ok(Found::Other { binary, card }),
        None => {
            let help = "is it an upright, and not older than this one?".to_string();
            Err(refused("no-answer", "it does not say what it is".into(), Some(help)))
        }
    }
}

/// The path that leads to our own file, by the name that we were called with if that is it:
/// behind a link there may lie another file tomorrow, and that one is meant then.
pub fn called_path() -> Option<PathBuf> {
    let called = PathBuf::from(std::env::args_os().next()?);
    let candidates: Vec<PathBuf> = if called.components().count() > 1 {
        std::path::absolute(&called).into_iter().collect()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(&called)).collect()
    };
    let own = image::open_self().and_then(|own| Ok(fstat(&own)?)).ok()?;
    let is_own = |path: &PathBuf| {
        let found = nix::sys::stat::stat(path);
        found.is_ok_and(|found| (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino))
    };
    candidates.into_iter().find(is_own).or_else(|| process::exe_path().ok())
}
