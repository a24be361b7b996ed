//! All that a keeper knows and holds, as the bytes that its next image finds in a memfd: fds are
//! named by their numbers, under which execve leaves them open.
//!
//! Refuses: states of a version that this build does not read, and to own anything before all of
//! it is understood.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::base::exit::{Exit, RunId};
use crate::base::time::Monotonic;
use crate::keeper::codec::{CodecError, exit_bytes};
use crate::keeper::engine::{Life, Link};
use crate::keeper::pulse::Pulse;
use crate::keeper::reader::Reader;
use crate::keeper::run::Keeper;
use crate::keeper::table::{HELD_MAX, Phase, Slot};
use crate::keeper::talk::{Hold, Talk};
use crate::keeper::wire::Stage;
use crate::sys::{clock, image, memfd};

/// What this build writes. A change of the bytes below makes it one more.
pub const STATE_VERSION: u8 = 1;

/// What this build reads: that of every build from which an upgrade to it is to be possible.
pub const STATE_VERSIONS_READ: RangeInclusive<u8> = 1..=1;

/// How an executed run, one that is being executed, and so on, begins.
mod phase {
    pub const EXECUTING: u8 = 0;
    pub const RUNNING: u8 = 1;
    pub const FAILING: u8 = 2;
    pub const ENDED: u8 = 3;
}

/// A keeper's state, with its fds as numbers.
pub(super) struct State {
    pub engine_argv: Vec<CString>,
    /// Of the upgrade that this state is written for.
    pub note: Vec<u8>,
    count: u32,
    started_at: Monotonic,
    end_signals: u64,
    starts: u32,
    short_lives: u32,
    refusals: u32,
    life: Option<LivingEngine>,
    held: Vec<RawFd>,
    holds: Vec<(Vec<u8>, RawFd)>,
    runs: Vec<Run>,
}

struct LivingEngine {
    pid: i32,
    since: Monotonic,
    outcome: RawFd,
    socket: RawFd,
}

struct Run {
    run: RunId,
    tag: Vec<u8>,
    pid: i32,
    spawned_at: Monotonic,
    phase: PhaseOf,
    executed: bool,
    end_asked: bool,
    said_ready: bool,
    /// 0 = none.
    identity: u64,
    main: Option<RawFd>,
    held: Vec<(u8, RawFd)>,
}

enum PhaseOf {
    Executing { outcome: RawFd },
    Running,
    Failing { exit: Exit },
    Ended { at: Monotonic, exit: Exit },
}

/// Every fd that the state names.
pub(super) fn fds(keeper: &Keeper) -> impl Iterator<Item = BorrowedFd<'_>> {
    let Keeper { tidings, engine, held, .. } = keeper;
    let life = engine.life().into_iter().flat_map(|life| {
        let link = life.link.iter().map(|link| link.socket.as_fd());
        link.chain([life.outcome.as_fd()])
    });
    let runs = tidings.table.slots().flat_map(|slot| {
        let outcome = match &slot.phase {
            Phase::Executing { outcome } => Some(outcome.as_fd()),
            Phase::Running | Phase::Failing { .. } | Phase::Ended { .. } => None,
        };
        outcome.into_iter().chain(slot.main.as_ref().map(AsFd::as_fd)).chain(slot.held_fds())
    });
    let holds = tidings.holds.iter().map(|hold| hold.fd.as_fd());
    held.iter().map(AsFd::as_fd).chain(life).chain(holds).chain(runs)
}

/// The state of a keeper that has told its engine everything.
///
/// # Errors
/// More than the next image would read.
pub(super) fn encode(keeper: &Keeper) -> io::Result<Vec<u8>> {
    // Short of something, the next image tries at once.
    let Keeper {
        epoll: _,
        signals: _,
        tidings,
        engine,
        systemd: _,
        manager: _,
        // They are met again: their pidfds are watched anew.
        unreaped: _,
        blocked: _,
        ending: _,
        end_signals,
        upgrade,
        held,
        look_at: _,
        talk_at: _,
    } = keeper;
    let mut out = Out(vec![STATE_VERSION]);
    out.list(engine.argv(), |out, word| out.bytes(word.as_bytes()));
    out.bytes(upgrade.note());
    out.u32(upgrade.count);
    out.time(tidings.started_at);
    out.u64(*end_signals);
    [engine.starts, engine.short_lives, engine.refusals].into_iter().for_each(|count| out.u32(count));
    let life = engine.life().and_then(|life| Some((life, life.link.as_ref()?)));
    out.flag(life.is_some());
    // Its pulse begins anew; that it was found hung cannot be, for then there is no link.
    if let Some((Life { pid, since, outcome, pulse: _, hung: _, link: _ }, Link { socket, talk: _ })) = life {
        out.i32(*pid);
        out.time(*since);
        out.fd(outcome);
        out.fd(socket);
    }
    out.list(held, Out::fd);
    out.list(&tidings.holds, |out, Hold { name, fd }| {
        out.bytes(name);
        out.fd(fd);
    });
    let runs: Vec<&Slot> = tidings.table.slots().collect();
    out.list(&runs, |out, slot| put_run(out, slot));
    if u64::try_from(out.0.len()).is_ok_and(|len| len <= memfd::BYTES_MAX) {
        Ok(out.0)
    } else {
        Err(io::Error::other("there is too much to hand over"))
    }
}

fn put_run(out: &mut Out, slot: &Slot) {
    // Every field by name: a new one has to be handed over too. The tag is read by `head`.
    let Slot {
        run,
        pid,
        spawned_at,
        phase,
        executed,
        end_asked,
        said_ready,
        identity,
        main,
        held,
        untold: _,
        tag: _,
        tag_len: _,
    } = slot;
    out.u64(run.0);
    out.bytes(slot.head().tag);
    out.i32(*pid);
    out.time(*spawned_at);
    match phase {
        Phase::Executing { outcome } => {
            out.u8(phase::EXECUTING);
            out.fd(outcome);
        }
        Phase::Running => out.u8(phase::RUNNING),
        Phase::Failing { exit } => {
            out.u8(phase::FAILING);
            out.exit(*exit);
        }
        Phase::Ended { at, exit } => {
            out.u8(phase::ENDED);
            out.time(*at);
            out.exit(*exit);
        }
    }
    [executed, end_asked, said_ready].into_iter().for_each(|flag| out.flag(*flag));
    out.u64(identity.unwrap_or(0));
    out.flag(main.is_some());
    main.iter().for_each(|main| out.fd(main));
    let held: Vec<&(u8, OwnedFd)> = held.iter().flatten().collect();
    out.list(&held, |out, (label, fd)| {
        out.u8(*label);
        out.fd(fd);
    });
}

/// Reads a state; every fd that it names is open, and named once.
///
/// # Errors
/// InvalidData, with what is wrong.
pub(super) fn decode(bytes: &[u8]) -> io::Result<State> {
    let invalid = |error: CodecError| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let mut from = Reader(bytes);
    let version = from.u8().map_err(invalid)?;
    if !STATE_VERSIONS_READ.contains(&version) {
        return Err(invalid(CodecError::Version(version)));
    }
    let state = read_state(&mut from).map_err(invalid)?;
    from.end().map_err(invalid)?;
    let mut seen = BTreeSet::new();
    let missing = state.numbers().find(|number| !seen.insert(*number) || !image::is_open(*number));
    match missing {
        None => Ok(state),
        Some(number) => {
            let what = format!("fd {number} of the keeper before is not there");
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

fn read_state(from: &mut Reader<'_>) -> Result<State, CodecError> {
    let word = |from: &mut Reader<'_>| CString::new(from.long_text()?).map_err(|_| CodecError::Value("word"));
    Ok(State {
        engine_argv: from.list(word)?,
        note: from.long_text()?,
        count: from.u32()?,
        started_at: from.time()?,
        end_signals: from.u64()?,
        starts: from.u32()?,
        short_lives: from.u32()?,
        refusals: from.u32()?,
        life: if from.flag()? { Some(read_life(from)?) } else { None },
        held: from.list(Reader::i32)?,
        holds: from.list(|from| Ok((from.long_text()?, from.i32()?)))?,
        runs: from.list(read_run)?,
    })
}

fn read_life(from: &mut Reader<'_>) -> Result<LivingEngine, CodecError> {
    Ok(LivingEngine { pid: from.i32()?, since: from.time()?, outcome: from.i32()?, socket: from.i32()? })
}

fn read_run(from: &mut Reader<'_>) -> Result<Run, CodecError> {
    Ok(Run {
        run: from.run()?,
        tag: from.long_text()?,
        pid: from.i32()?,
        spawned_at: from.time()?,
        phase: match from.u8()? {
            phase::EXECUTING => PhaseOf::Executing { outcome: from.i32()? },
            phase::RUNNING => PhaseOf::Running,
            phase::FAILING => PhaseOf::Failing { exit: from.exit()? },
            phase::ENDED => PhaseOf::Ended { at: from.time()?, exit: from.exit()? },
            _ => return Err(CodecError::Value("phase")),
        },
        executed: from.flag()?,
        end_asked: from.flag()?,
        said_ready: from.flag()?,
        identity: from.u64()?,
        main: if from.flag()? { Some(from.i32()?) } else { None },
        held: from.list(|from| Ok((from.u8()?, from.i32()?)))?,
    })
}

impl State {
    fn numbers(&self) -> impl Iterator<Item = RawFd> + '_ {
        let life = self.life.iter().flat_map(|life| [life.outcome, life.socket]);
        let runs = self.runs.iter().flat_map(|run| {
            let outcome = match run.phase {
                PhaseOf::Executing { outcome } => Some(outcome),
                PhaseOf::Running | PhaseOf::Failing { .. } | PhaseOf::Ended { .. } => None,
            };
            outcome.into_iter().chain(run.main).chain(run.held.iter().map(|(_, fd)| *fd))
        });
        let holds = self.holds.iter().map(|(_, fd)| *fd);
        self.held.iter().copied().chain(life).chain(holds).chain(runs)
    }

    /// Makes a new keeper the one that this is the state of. Its fds have been looked at, so
    /// each can be had.
    pub(super) fn install(self, keeper: &mut Keeper) {
        let own = |number| image::inherited(number).ok();
        keeper.held = self.held.into_iter().filter_map(own).collect();
        keeper.end_signals = self.end_signals;
        keeper.upgrade.count = self.count;
        keeper.tidings.started_at = self.started_at;
        let holds = self.holds.into_iter().filter_map(|(name, fd)| Some(Hold { name, fd: own(fd)? }));
        keeper.tidings.holds.extend(holds);
        keeper.engine.starts = self.starts;
        keeper.engine.short_lives = self.short_lives;
        keeper.engine.refusals = self.refusals;
        let life = self.life.and_then(|LivingEngine { pid, since, outcome, socket }| {
            let link = own(socket).map(|socket| Link { socket, talk: Talk::News });
            let now = clock::monotonic();
            let mut pulse = Pulse::new(now);
            pulse.hears_stage(Stage::Running);
            pulse.beats(now);
            Some(Life { pid, since, outcome: own(outcome)?, pulse, hung: false, link })
        });
        if let Some(life) = life {
            keeper.engine.adopt(life);
            keeper.watch_engine();
        }
        self.runs.into_iter().for_each(|run| run.install(keeper));
    }
}

impl Run {
    fn install(self, keeper: &mut Keeper) {
        let own = |number| image::inherited(number).ok();
        let phase = match self.phase {
            PhaseOf::Executing { outcome } => match own(outcome) {
                Some(outcome) => Phase::Executing { outcome },
                None => Phase::Running,
            },
            PhaseOf::Running => Phase::Running,
            PhaseOf::Failing { exit } => Phase::Failing { exit },
            PhaseOf::Ended { at, exit } => Phase::Ended { at, exit },
        };
        let mut slot = Slot::new(self.run, &self.tag, self.pid, self.spawned_at, phase);
        slot.executed = self.executed;
        slot.end_asked = self.end_asked;
        slot.said_ready = self.said_ready;
        slot.identity = Some(self.identity).filter(|identity| *identity != 0);
        slot.main = self.main.and_then(own);
        let held = self.held.into_iter().filter_map(|(label, fd)| Some((label, own(fd)?)));
        for (place, hold) in slot.held.iter_mut().zip(held.take(HELD_MAX)) {
            *place = Some(hold);
        }
        let Some(place) = keeper.tidings.table.insert(slot) else {
            return;
        };
        keeper.watch_run(place);
    }
}

/// The bytes of a state.
struct Out(Vec<u8>);

impl Out {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn i32(&mut self, value: i32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    fn time(&mut self, at: Monotonic) {
        self.u64(at.as_ns());
    }

    fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    fn fd(&mut self, fd: &OwnedFd) {
        self.i32(fd.as_raw_fd());
    }

    fn exit(&mut self, exit: Exit) {
        self.0.extend(exit_bytes(exit));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend(bytes);
    }

    fn list<T>(&mut self, items: &[T], put: impl Fn(&mut Out, &T)) {
        self.u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
        items.iter().for_each(|item| put(self, item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pipe;

    #[test]
    fn a_state_reads_back_and_names_only_what_is_open() {
        let mut keeper = Keeper::new(vec![c"upright".into(), c"engine".into()]).expect("a keeper");
        let (lock, pipe) = pipe::pair().expect("pipe");
        keeper.held.push(lock);
        let mut slot = Slot::new(RunId(7), b"tag", 4_321, Monotonic::from_ns(5), Phase::Running);
        slot.held[0] = Some((1, pipe));
        keeper.tidings.table.insert(slot).expect("room");
        let ended = Phase::Ended { at: Monotonic::from_ns(9), exit: Exit::Code(3) };
        keeper.tidings.table.insert(Slot::new(RunId(8), b"", 0, Monotonic::ZERO, ended)).expect("room");
        let bytes = encode(&keeper).expect("bytes");
        let state = decode(&bytes).expect("a state");
        assert_eq!(state.engine_argv, keeper.engine.argv());
        assert_eq!(state.numbers().count(), fds(&keeper).count());
        assert_eq!((state.runs[0].tag.as_slice(), state.runs[0].pid), (b"tag".as_slice(), 4_321));
        assert!(matches!(state.runs[1].phase, PhaseOf::Ended { exit: Exit::Code(3), .. }));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut newer = bytes.clone();
        newer[0] = STATE_VERSION + 1;
        assert!(decode(&newer).is_err());
        // The number of the lock may stand elsewhere, too, and mean something else there.
        let number = keeper.held[0].as_raw_fd().to_le_bytes();
        let places = bytes.windows(4).enumerate().filter(|(_, four)| *four == number);
        let missed = |at: usize| {
            let mut closed = bytes.clone();
            closed[at..at + 4].copy_from_slice(&i32::MAX.to_le_bytes());
            decode(&closed).is_err()
        };
        assert!(places.map(|(at, _)| at).any(missed), "what is not open is missed");
    }
}
