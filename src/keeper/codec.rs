//! Requests and news as bytes: a header of magic, version and kind, then little-endian
//! fields. Fds travel beside the bytes, in the order the bytes name them.
//!
//! Refuses: panicking on bytes that make no sense. Short, foreign and unknown are values.

use std::io;
use std::os::fd::OwnedFd;

use nix::libc;

use crate::base::exit::{Exit, RunId};
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::keeper::plan::{decode_plan, encode_plan};
use crate::keeper::reader::Reader;
use crate::keeper::wire::{
    EngineEnd, FDS_MAX, FdUse, HOLD_NAME_LEN_MAX, News, Orphan, Request, SpawnPlan, Stage, TAG_LEN_MAX,
    UpgradeNews,
};
use crate::sys::memfd;

/// Longest message. The largest is a spawn: its tag, 14 bytes, and 5 for each fd.
pub const MESSAGE_BYTES_MAX: usize = 640;

pub(crate) const MAGIC: [u8; 2] = *b"Up";
pub(crate) const VERSION: u8 = 1;

/// Why bytes are no message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the message is cut short")]
    Short,
    #[error("the message is not ours")]
    Foreign,
    #[error("the message has version {0}, this build speaks {VERSION}")]
    Version(u8),
    #[error("the message is of unknown kind {0}")]
    Kind(u8),
    #[error("the message has an impossible {0}")]
    Value(&'static str),
    /// The fds that a spawn names did not all arrive: we are out of them.
    #[error("fds of run {0} got lost")]
    FdsLost(RunId),
    /// The new main process of a run did not arrive: we are out of fds.
    #[error("the main process of run {0} got lost")]
    MainLost(RunId),
    /// The process of a run to be adopted did not arrive: we are out of fds.
    #[error("the process of run {0} got lost")]
    OrphanLost(RunId),
    /// The header of a spawn is sound, its plan is not.
    #[error("the plan of run {run} cannot be read")]
    Plan { run: RunId, errno: i32 },
}

/// The bytes of one message, without the heap: the keeper sends from its stack.
#[derive(Clone)]
pub struct Body {
    bytes: [u8; MESSAGE_BYTES_MAX],
    len: usize,
}

/// A message ready to be sent.
pub struct Encoded {
    pub body: Body,
    pub fds: Vec<OwnedFd>,
}

/// The facts of a row that travel as bytes.
pub struct RowHead<'a> {
    pub run: RunId,
    pub tag: &'a [u8],
    pub pid: i32,
    pub spawned_at: Monotonic,
    pub executed: bool,
    pub end_asked: bool,
    pub said_ready: bool,
    pub identity: Option<u64>,
    pub ended: Option<(Monotonic, Exit)>,
}

mod kind {
    pub const HELLO: u8 = 1;
    pub const SPAWN: u8 = 2;
    pub const SIGNAL: u8 = 3;
    pub const RELEASE: u8 = 4;
    pub const HOLD: u8 = 5;
    pub const END: u8 = 6;
    pub const SIGNAL_TO_END: u8 = 7;
    pub const NOTE_READY: u8 = 8;
    pub const NOTE_MAIN: u8 = 9;
    pub const LET_GO: u8 = 10;
    pub const SWAP: u8 = 32;
    pub const HEALTHY: u8 = 33;
    pub const UNFIT: u8 = 34;
    pub const ALIVE: u8 = 20;
    pub const ADOPT: u8 = 21;
    pub const WELCOME: u8 = 64;
    pub const ROW: u8 = 65;
    pub const HELD: u8 = 66;
    pub const TABLE_END: u8 = 67;
    pub const SPAWNED: u8 = 68;
    pub const SPAWN_SHORT: u8 = 69;
    pub const EXECUTED: u8 = 70;
    pub const EXITED: u8 = 71;
    pub const ORPHAN_REAPED: u8 = 72;
    pub const SIGNALLED: u8 = 73;
    pub const MAIN: u8 = 74;
    pub const UPGRADE: u8 = 96;
    pub const PING: u8 = 84;
    pub const ENGINE_ENDED: u8 = 85;
}

impl Body {
    fn new(kind: u8) -> Body {
        let [m0, m1] = MAGIC;
        let mut body = Body { bytes: [0; MESSAGE_BYTES_MAX], len: 0 };
        body.put(&[m0, m1, VERSION, kind]);
        body
    }

    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// Every caller is bounded by TAG_LEN_MAX, HOLD_NAME_LEN_MAX and FDS_MAX, so nothing is ever cut; if it were,
    /// the reader would call the message short.
    fn put(&mut self, part: &[u8]) {
        let end = self.len.saturating_add(part.len());
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(part);
            self.len = end;
        }
    }

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn i32(&mut self, value: i32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// No inode is 0.
    fn identity(&mut self, identity: Option<u64>) {
        self.u64(identity.unwrap_or(0));
    }

    fn run(&mut self, run: RunId) {
        self.u64(run.0);
    }

    fn time(&mut self, at: Monotonic) {
        self.u64(at.as_ns());
    }

    /// At most TAG_LEN_MAX bytes; what is beyond is cut.
    fn text(&mut self, bytes: &[u8]) {
        let kept = bytes.get(..TAG_LEN_MAX).unwrap_or(bytes);
        self.u8(u8::try_from(kept.len()).unwrap_or(0));
        self.put(kept);
    }

    /// At most HOLD_NAME_LEN_MAX bytes; what is beyond is cut.
    fn name(&mut self, bytes: &[u8]) {
        let kept = bytes.get(..HOLD_NAME_LEN_MAX).unwrap_or(bytes);
        self.put(&u16::try_from(kept.len()).unwrap_or(0).to_le_bytes());
        self.put(kept);
    }

    fn exit(&mut self, exit: Exit) {
        self.put(&exit_bytes(exit));
    }
}

/// An end as `Reader::exit` reads it.
pub(crate) fn exit_bytes(exit: Exit) -> [u8; 6] {
    let (word, a, b) = match exit {
        Exit::Code(code) => (0, code, 0),
        Exit::Signal { signal, core } => (1, u8::try_from(signal.number()).unwrap_or(0), i32::from(core)),
        Exit::NotExecuted { step, errno } => (2, step as u8, errno),
        Exit::Unknown => (3, 0, 0),
    };
    let [b0, b1, b2, b3] = b.to_le_bytes();
    [word, a, b0, b1, b2, b3]
}

/// The request as a message; a spawn's plan goes into a sealed memfd, first of the fds.
///
/// # Errors
/// InvalidInput for a tag, name or fd list above its bound; EMFILE, ENOMEM for the memfd.
pub fn encode_request(request: Request) -> io::Result<Encoded> {
    let mut fds = Vec::new();
    let body = match request {
        Request::Hello => Body::new(kind::HELLO),
        Request::Alive { stage } => {
            let mut body = Body::new(kind::ALIVE);
            body.u8(match stage {
                Stage::Beginning => 0,
                Stage::Running => 1,
            });
            body
        }
        Request::Spawn { run, tag, plan, fds } => return encode_spawn(run, &tag, &plan, fds),
        Request::Signal { run, signal } => of_signal(kind::SIGNAL, run, signal),
        Request::SignalToEnd { run, signal } => of_signal(kind::SIGNAL_TO_END, run, signal),
        Request::NoteReady { run } => of_run(kind::NOTE_READY, run),
        Request::NoteMain { run, pid, process } => {
            fds.push(process);
            let mut body = of_run(kind::NOTE_MAIN, run);
            body.i32(pid);
            body
        }
        Request::Adopt { orphan, process, held } => return encode_adopt(&orphan, process, held),
        Request::Release { run } => of_run(kind::RELEASE, run),
        Request::Hold { name, fd } => {
            if name.len() > HOLD_NAME_LEN_MAX {
                return Err(too_long("the name of a held fd"));
            }
            fds.push(fd);
            let mut body = Body::new(kind::HOLD);
            body.name(&name);
            body
        }
        Request::LetGo { name } => {
            if name.len() > HOLD_NAME_LEN_MAX {
                return Err(too_long("the name of a held fd"));
            }
            let mut body = Body::new(kind::LET_GO);
            body.name(&name);
            body
        }
        Request::End { code } => {
            let mut body = Body::new(kind::END);
            body.u8(code);
            body
        }
        Request::Swap { note, binary } => {
            fds.push(binary);
            let mut body = Body::new(kind::SWAP);
            body.text(&note);
            body
        }
        Request::Healthy => Body::new(kind::HEALTHY),
        Request::Unfit { why } => {
            let mut body = Body::new(kind::UNFIT);
            body.name(&why);
            body
        }
    };
    Ok(Encoded { body, fds })
}

fn encode_spawn(
    run: RunId,
    tag: &[u8],
    plan: &SpawnPlan,
    given: Vec<(FdUse, OwnedFd)>,
) -> io::Result<Encoded> {
    if tag.len() > TAG_LEN_MAX {
        return Err(too_long("the tag of a run"));
    }
    if given.len() + 1 > FDS_MAX {
        return Err(too_long("the fd list of a run"));
    }
    let mut body = Body::new(kind::SPAWN);
    body.run(run);
    body.text(tag);
    body.u8(u8::try_from(given.len()).unwrap_or(u8::MAX));
    let mut fds = vec![memfd::sealed("upright-plan", &encode_plan(plan))?];
    for (use_of, fd) in given {
        put_use(&mut body, use_of);
        fds.push(fd);
    }
    Ok(Encoded { body, fds })
}

fn encode_adopt(orphan: &Orphan, process: OwnedFd, held: Vec<(u8, OwnedFd)>) -> io::Result<Encoded> {
    if orphan.tag.len() > TAG_LEN_MAX {
        return Err(too_long("the tag of a run"));
    }
    if held.len() + 1 > FDS_MAX {
        return Err(too_long("the fd list of a run"));
    }
    let mut body = of_run(kind::ADOPT, orphan.run);
    body.text(&orphan.tag);
    body.i32(orphan.pid);
    body.time(orphan.spawned_at);
    body.u8(u8::from(orphan.end_asked));
    body.u8(u8::from(orphan.said_ready));
    body.u8(u8::try_from(held.len()).unwrap_or(u8::MAX));
    let mut fds = vec![process];
    for (label, fd) in held {
        body.u8(label);
        fds.push(fd);
    }
    Ok(Encoded { body, fds })
}

fn too_long(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what} is too long"))
}

/// The request in these bytes with the fds that came beside them.
///
/// # Errors
/// See `CodecError`; the fds are closed then.
pub fn decode_request(bytes: &[u8], fds: Vec<OwnedFd>) -> Result<Request, CodecError> {
    let mut from = Reader(bytes);
    let request = match from.kind()? {
        kind::HELLO => Request::Hello,
        kind::ALIVE => Request::Alive { stage: from.stage()? },
        kind::SPAWN => return decode_spawn(from, fds),
        kind::ADOPT => return decode_adopt(from, fds),
        kind::SIGNAL => Request::Signal { run: from.run()?, signal: from.signal()? },
        kind::SIGNAL_TO_END => Request::SignalToEnd { run: from.run()?, signal: from.signal()? },
        kind::NOTE_READY => Request::NoteReady { run: from.run()? },
        kind::NOTE_MAIN => {
            let (run, pid) = (from.run()?, from.i32()?);
            let process = fds.into_iter().next().ok_or(CodecError::MainLost(run))?;
            Request::NoteMain { run, pid, process }
        }
        kind::RELEASE => Request::Release { run: from.run()? },
        kind::LET_GO => Request::LetGo { name: from.name()?.to_vec() },
        kind::HOLD => {
            let name = from.name()?.to_vec();
            let fd = fds.into_iter().next().ok_or(CodecError::Value("fd count"))?;
            Request::Hold { name, fd }
        }
        kind::END => Request::End { code: from.u8()? },
        kind::SWAP => {
            let note = from.text()?.to_vec();
            let binary = fds.into_iter().next().ok_or(CodecError::Value("fd count"))?;
            Request::Swap { note, binary }
        }
        kind::HEALTHY => Request::Healthy,
        kind::UNFIT => Request::Unfit { why: from.name()?.to_vec() },
        other => return Err(CodecError::Kind(other)),
    };
    from.end()?;
    Ok(request)
}

fn decode_spawn(mut from: Reader<'_>, fds: Vec<OwnedFd>) -> Result<Request, CodecError> {
    let run = from.run()?;
    let tag = from.text()?.to_vec();
    let count = usize::from(from.u8()?);
    if count + 1 > FDS_MAX {
        return Err(CodecError::Value("fd count"));
    }
    let mut uses = Vec::with_capacity(count);
    for _ in 0..count {
        uses.push(from.fd_use()?);
    }
    from.end()?;
    if fds.len() != count + 1 {
        return Err(CodecError::FdsLost(run));
    }
    let mut fds = fds.into_iter();
    let plan = match fds.next().map(memfd::read) {
        Some(Ok(bytes)) => decode_plan(&bytes).map_err(|_| CodecError::Plan { run, errno: libc::EINVAL })?,
        Some(Err(error)) => {
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            return Err(CodecError::Plan { run, errno });
        }
        None => return Err(CodecError::FdsLost(run)),
    };
    Ok(Request::Spawn { run, tag, plan, fds: uses.into_iter().zip(fds).collect() })
}

/// What was to be held and did not all arrive is let go of: the process counts for more.
fn decode_adopt(mut from: Reader<'_>, fds: Vec<OwnedFd>) -> Result<Request, CodecError> {
    let run = from.run()?;
    let (tag, pid, spawned_at) = (from.text()?.to_vec(), from.i32()?, from.time()?);
    let (end_asked, said_ready) = (from.flag()?, from.flag()?);
    let count = usize::from(from.u8()?);
    let labels = from.take(count)?;
    from.end()?;
    let mut fds = fds.into_iter();
    let process = fds.next().ok_or(CodecError::OrphanLost(run))?;
    let held = if fds.len() == count { labels.iter().copied().zip(fds).collect() } else { Vec::new() };
    let orphan = Orphan { run, tag, pid, spawned_at, end_asked, said_ready };
    Ok(Request::Adopt { orphan, process, held })
}

/// The bytes of this news; the fds of a row or a held name go beside them, in their order.
pub fn encode_news(news: &News) -> Body {
    match news {
        News::Welcome { keeper_pid, engine_starts, started_at } => {
            let mut body = Body::new(kind::WELCOME);
            body.i32(*keeper_pid);
            body.put(&engine_starts.to_le_bytes());
            body.time(*started_at);
            body
        }
        News::Row(row) => {
            let head = RowHead {
                run: row.run,
                tag: &row.tag,
                pid: row.pid,
                spawned_at: row.spawned_at,
                executed: row.executed,
                end_asked: row.end_asked,
                said_ready: row.said_ready,
                identity: row.identity,
                ended: row.ended,
            };
            encode_row(&head, row.held.iter().map(|(label, _)| *label))
        }
        News::Held { name, fd: _ } => encode_held(name),
        News::TableEnd => Body::new(kind::TABLE_END),
        News::Spawned { run, pid, identity } => {
            let mut body = of_run(kind::SPAWNED, *run);
            body.i32(*pid);
            body.identity(*identity);
            body
        }
        News::Main { run, pid, identity } => {
            let mut body = of_run(kind::MAIN, *run);
            body.i32(*pid);
            body.identity(*identity);
            body
        }
        News::SpawnShort { run, errno } => {
            let mut body = of_run(kind::SPAWN_SHORT, *run);
            body.i32(*errno);
            body
        }
        News::Executed { run } => of_run(kind::EXECUTED, *run),
        News::Exited { run, at, exit } => {
            let mut body = of_run(kind::EXITED, *run);
            body.time(*at);
            body.exit(*exit);
            body
        }
        News::OrphanReaped => Body::new(kind::ORPHAN_REAPED),
        News::Signalled { signal } => {
            let mut body = Body::new(kind::SIGNALLED);
            body.i32(signal.number());
            body
        }
        News::Upgrade(news) => encode_upgrade(news),
        News::Ping => Body::new(kind::PING),
        News::EngineEnded(end) => {
            let mut body = Body::new(kind::ENGINE_ENDED);
            body.i32(end.pid);
            body.time(end.at);
            body.exit(end.exit);
            body.u8(u8::from(end.hung));
            body
        }
    }
}

fn encode_upgrade(news: &UpgradeNews) -> Body {
    let mut body = Body::new(kind::UPGRADE);
    body.put(&news.number.to_le_bytes());
    body.u8(news.stage as u8);
    body.text(&news.note);
    body.name(&news.why);
    body
}

/// A row without owning what it tells of; at most `FDS_MAX` labels.
pub fn encode_row(head: &RowHead<'_>, labels: impl Iterator<Item = u8> + Clone) -> Body {
    let mut body = of_run(kind::ROW, head.run);
    body.text(head.tag);
    body.i32(head.pid);
    body.time(head.spawned_at);
    body.u8(u8::from(head.executed));
    body.u8(u8::from(head.end_asked));
    body.u8(u8::from(head.said_ready));
    body.identity(head.identity);
    body.u8(u8::from(head.ended.is_some()));
    if let Some((at, exit)) = head.ended {
        body.time(at);
        body.exit(exit);
    }
    let labels = labels.take(FDS_MAX);
    body.u8(u8::try_from(labels.clone().count()).unwrap_or(0));
    for label in labels {
        body.u8(label);
    }
    body
}

/// A held fd's name.
pub fn encode_held(name: &[u8]) -> Body {
    let mut body = Body::new(kind::HELD);
    body.name(name);
    body
}

/// The news in these bytes.
///
/// # Errors
/// See `CodecError`; the fds are closed then.
pub fn decode_news(bytes: &[u8], fds: Vec<OwnedFd>) -> Result<News, CodecError> {
    let mut from = Reader(bytes);
    let news = match from.kind()? {
        kind::WELCOME => News::Welcome {
            keeper_pid: from.i32()?,
            engine_starts: u32::from_le_bytes(from.array()?),
            started_at: from.time()?,
        },
        kind::ROW => News::Row(from.row(fds)?),
        kind::HELD => {
            let name = from.name()?.to_vec();
            let fd = fds.into_iter().next().ok_or(CodecError::Value("fd count"))?;
            News::Held { name, fd }
        }
        kind::TABLE_END => News::TableEnd,
        kind::SPAWNED => News::Spawned { run: from.run()?, pid: from.i32()?, identity: from.identity()? },
        kind::SPAWN_SHORT => News::SpawnShort { run: from.run()?, errno: from.i32()? },
        kind::EXECUTED => News::Executed { run: from.run()? },
        kind::MAIN => News::Main { run: from.run()?, pid: from.i32()?, identity: from.identity()? },
        kind::EXITED => News::Exited { run: from.run()?, at: from.time()?, exit: from.exit()? },
        kind::ORPHAN_REAPED => News::OrphanReaped,
        kind::SIGNALLED => News::Signalled { signal: from.signal()? },
        kind::UPGRADE => News::Upgrade(from.upgrade()?),
        kind::PING => News::Ping,
        kind::ENGINE_ENDED => News::EngineEnded(EngineEnd {
            pid: from.i32()?,
            at: from.time()?,
            exit: from.exit()?,
            hung: from.flag()?,
        }),
        other => return Err(CodecError::Kind(other)),
    };
    from.end()?;
    Ok(news)
}

fn of_run(kind: u8, run: RunId) -> Body {
    let mut body = Body::new(kind);
    body.run(run);
    body
}

fn of_signal(kind: u8, run: RunId, signal: Signal) -> Body {
    let mut body = of_run(kind, run);
    body.i32(signal.number());
    body
}

fn put_use(body: &mut Body, use_of: FdUse) {
    let (word, value) = match use_of {
        FdUse::Child(target) => (0, target),
        FdUse::Hold(label) => (1, i32::from(label)),
        FdUse::Cgroup => (2, 0),
    };
    body.u8(word);
    body.i32(value);
}
