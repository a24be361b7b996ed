//! Retention: the thread that packs older files and removes those that are too many or too old.
//!
//! Refuses: delaying the capture (removing a large file takes milliseconds), looking when nothing
//! can have changed, and removing a file that it does not know by name.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::errno::Errno;

use crate::logs::Stream;
use crate::logs::files::{Access, Directory, Refusal};
use crate::logs::index::{Index, errno_of};
use crate::logs::pack;
use crate::logs::segment::{self, Form, Segment, packed_name, segments};
use crate::logs::spool::{Keep, Pack, Spool};
use crate::sys::clock;

/// After a file that could not be dealt with it is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// Never sleeps longer than this for a file to become old: the wall clock may be set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(3_600);

/// What packing is not finished yet is called so.
const PART: &str = ".part";

/// The handle of the thread; dropping the last of it ends the thread after the file it is at.
pub struct Retention {
    looks: Sender<Arc<Spool>>,
}

impl Retention {
    /// # Errors
    /// No thread to be had.
    pub fn start() -> io::Result<Retention> {
        let (looks, asked) = mpsc::channel();
        // Not joined: it may be packing, which the next start finishes.
        std::thread::Builder::new().name("log-retention".into()).spawn(move || run(&asked))?;
        Ok(Retention { looks })
    }

    /// Has the older files of this stream looked at.
    pub fn look(&self, spool: &Arc<Spool>) {
        let _ = self.looks.send(Arc::clone(spool)); // the thread has ended with its process
    }
}

/// A stream that has to be looked at by itself some time.
struct Later {
    spool: Weak<Spool>,
    in_s: u64,
}

fn run(asked: &Receiver<Arc<Spool>>) {
    let mut later: BTreeMap<(PathBuf, Stream), Later> = BTreeMap::new();
    loop {
        let soonest = later.values().map(|later| later.in_s).min();
        let next = match soonest {
            None => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(in_s) => asked.recv_timeout(Duration::from_secs(in_s).min(SLEEP_MAX)),
        };
        match next {
            Ok(spool) => look(&spool, &mut later),
            Err(RecvTimeoutError::Timeout) => {
                let due: Vec<_> = later.values().filter_map(|later| later.spool.upgrade()).collect();
                later.clear();
                due.iter().for_each(|spool| look(spool, &mut later));
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn look(spool: &Arc<Spool>, later: &mut BTreeMap<(PathBuf, Stream), Later>) {
    let key = (spool.directory(), spool.stream());
    let now_s = clock::wall().as_second();
    let found = Directory::open(&key.0)
        .map_err(Refusal::from)
        .and_then(|directory| tidy(&directory, spool.stream(), spool.keep(), now_s));
    let in_s = match found {
        Ok(None) => {
            later.remove(&key);
            return;
        }
        Ok(Some(in_s)) => in_s.max(1),
        // Of a full disk, a removed directory: nothing is lost but room.
        Err(_) => RETRY.as_secs(),
    };
    later.insert(key, Later { spool: Arc::downgrade(spool), in_s });
}

/// Packs and removes what is due. Says in how many seconds the next file will be too old.
///
/// # Errors
/// See `Refusal`; what was done stays done.
pub fn tidy(directory: &Directory, stream: Stream, keep: Keep, now_s: i64) -> Result<Option<u64>, Refusal> {
    remove_leftovers(directory, stream)?;
    let mut older = segments(directory, stream)?;
    let kept = usize::try_from(keep.files_max.saturating_sub(1)).unwrap_or(usize::MAX);
    let too_many = older.len().saturating_sub(kept);
    for segment in older.drain(..too_many) {
        remove(directory, &segment)?;
    }
    let mut next = None;
    for segment in older {
        if keep.age_max_s > 0 {
            let age_s = last_s(directory, &segment)?.map_or(0, |last_s| now_s.saturating_sub(last_s).max(0));
            match keep.age_max_s.checked_sub(age_s.cast_unsigned()) {
                None | Some(0) => {
                    remove(directory, &segment)?;
                    continue;
                }
                Some(left_s) => next = Some(next.unwrap_or(left_s).min(left_s)),
            }
        }
        if keep.pack == Pack::Yes && segment.form == Form::Plain {
            pack_file(directory, &segment)?;
        }
    }
    Ok(next)
}

fn remove(directory: &Directory, segment: &Segment) -> Result<(), Errno> {
    // The index last: while a log is there, it can be read.
    directory.remove(&segment.log_name())?;
    directory.remove(&segment.index_name())
}

/// When its last bytes came, seconds since 1970.
fn last_s(directory: &Directory, segment: &Segment) -> Result<Option<i64>, Refusal> {
    match directory.file(&segment.index_name(), Access::Read) {
        Ok((file, _)) => {
            let Some(index) = Index::of(&file)? else { return modified_s(directory, segment) };
            let last = index.count().checked_sub(1).map(|last| index.record(last)).transpose()?.flatten();
            let last_us = last.map_or(index.header.created_us, |last| last.ts_us);
            Ok(Some(last_us.div_euclid(1_000_000)))
        }
        Err(Refusal::Os(Errno::ENOENT)) => modified_s(directory, segment),
        Err(refusal) => Err(refusal),
    }
}

fn modified_s(directory: &Directory, segment: &Segment) -> Result<Option<i64>, Refusal> {
    match directory.stat(&segment.log_name()) {
        Ok(stat) => Ok(Some(stat.st_mtime)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// What a kill -9 left: half a packed file; a plain one whose packed one is complete; and an
/// index whose log somebody removed.
fn remove_leftovers(directory: &Directory, stream: Stream) -> Result<(), Errno> {
    let names = directory.names()?;
    let own = format!("{}-", stream.as_str());
    for name in names.iter().filter(|name| name.starts_with(&own)) {
        if name.ends_with(&format!(".log.zst{PART}")) {
            directory.remove(name)?;
        } else if let Some(stem) = name.strip_suffix(".log")
            && names.contains(&format!("{stem}.log.zst"))
        {
            directory.remove(name)?;
        } else if let Some(stem) = name.strip_suffix(".idx")
            && !names.contains(&format!("{stem}.log"))
            && !names.contains(&format!("{stem}.log.zst"))
        {
            // The names are not of one instant: its log may have got this one meanwhile.
            let is_gone = |name: &str| directory.stat(name) == Err(Errno::ENOENT);
            if is_gone(&format!("{stem}.log")) && is_gone(&format!("{stem}.log.zst")) {
                directory.remove(name)?;
            }
        }
    }
    Ok(())
}

/// The packed file has its name only when it is complete and on the disk.
fn pack_file(directory: &Directory, segment: &Segment) -> Result<(), Refusal> {
    let packed = packed_name(segment.stream, segment.sequence);
    let part = format!("{packed}{PART}");
    let mut plain = segment::open(directory, segment)?;
    let done = directory.file(&part, Access::Make).and_then(|(mut file, _)| {
        let packed = pack::pack(&mut plain, &mut file).and_then(|_| file.sync_all());
        packed.map_err(|error| Refusal::Os(errno_of(&error)))
    });
    if let Err(refusal) = done {
        let _ = directory.remove(&part); // the next look does it
        return Err(refusal);
    }
    directory.rename(&part, &packed)?;
    directory.remove(&segment.log_name())?;
    Ok(())
}
