//! The pipes between runs and the capture, each with a name in a directory of ours: whoever comes
//! after the death of keeper and engine finds it there, whichever process still writes into it.
//!
//! Refuses: a run without output because of its pipe. Where there can be no FIFO, it gets a pipe
//! without a name, which ends with us.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::base::exit::RunId;
use crate::base::name::UnitName;
use crate::keeper::wire::{HOLD_NOTIFY_FD, HOLD_STDERR, HOLD_STDOUT, Ids};
use crate::sys::{files, pipe, process};

/// Below the run directory.
const DIRECTORY: &str = "pipes";

/// One pipe of a run: what its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub unit: UnitName,
    pub run: RunId,
    /// `keeper::wire::HOLD_STDOUT` and the like.
    pub label: u8,
}

/// The directory of the pipes.
#[derive(Debug)]
pub struct Pipes {
    directory: PathBuf,
}

impl Pipes {
    /// Makes the directory, which only we may enter: the pipes belong to the accounts of services.
    pub fn open(run_dir: &Path) -> Pipes {
        let directory = run_dir.join(DIRECTORY);
        if let Err(error) = files::own_dir(&directory, 0o700) {
            tracing::warn!("cannot make {}: pipes end with the daemon: {error}", directory.display());
        }
        Pipes { directory }
    }

    /// A new pipe: (read end, the end for the service). It belongs to the account that the service
    /// runs as, which may open `/dev/stdout` again.
    ///
    /// # Errors
    /// EMFILE, ENFILE.
    pub fn make(&self, name: &Name, ids: Option<&Ids>) -> io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = match pipe::named(&self.path(name)) {
            Ok(pipe) => pipe,
            Err(error) => {
                tracing::debug!("a pipe of {} has no name: {error}", name.unit);
                pipe::pair()?
            }
        };
        if let Some(ids) = ids.filter(|ids| ids.uid != process::ids().0)
            && let Err(error) = pipe::give_to(write.as_fd(), ids.uid, ids.gid)
        {
            tracing::debug!("{} may not open its /dev/stdout: {error}", name.unit);
        }
        Ok((read, write))
    }

    /// The read end of a pipe that an earlier engine made; none when nobody holds it any more.
    pub fn reopen(&self, name: &Name) -> Option<OwnedFd> {
        match pipe::reopen(&self.path(name)) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let (unit, run) = (&name.unit, name.run);
                tracing::error!("what run {run} of {unit} writes cannot be read: {error}");
                None
            }
        }
    }

    /// Nobody writes into it any more, or nobody is to read it again.
    pub fn forget(&self, name: &Name) {
        let _ = fs::remove_file(self.path(name)); // it never had a name, or is gone already
    }

    /// The run was never spawned.
    pub fn forget_run(&self, unit: &UnitName, run: RunId) {
        for label in [HOLD_STDOUT, HOLD_STDERR, HOLD_NOTIFY_FD] {
            self.forget(&Name { unit: unit.clone(), run, label });
        }
    }

    /// Those that an earlier engine left.
    pub fn all(&self) -> Vec<Name> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten();
        entries.filter_map(|entry| parse(entry.ok()?.file_name().to_str()?)).collect()
    }

    /// Takes the directory away at the very end.
    pub fn remove(&self) {
        self.all().iter().for_each(|name| self.forget(name));
        let _ = fs::remove_dir(&self.directory); // not empty: whatever it is, it is not ours
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.directory.join(format!("{}.{}.{}", name.unit, name.run, name.label))
    }
}

/// Names of units have dots of their own.
fn parse(text: &str) -> Option<Name> {
    let mut parts = text.rsplitn(3, '.');
    let label = parts.next()?.parse().ok()?;
    let run = RunId(parts.next()?.parse().ok()?);
    Some(Name { unit: UnitName::parse(parts.next()?).ok()?, run, label })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_pipe_is_found_by_its_name_while_somebody_holds_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let unit = UnitName::parse("web.v2@1").expect("a name");
        let name = Name { unit, run: RunId(17), label: HOLD_STDOUT };
        let other = Name { label: HOLD_STDERR, ..name.clone() };
        let (read, write) = Pipes::open(dir.path()).make(&name, None).expect("a pipe");
        drop(read);
        fs::File::from(write.try_clone().expect("dup")).write_all(b"x").expect("room");
        let later = Pipes::open(dir.path());
        fs::write(later.directory.join("what is that"), b"").expect("a stranger");
        assert_eq!(later.all(), std::slice::from_ref(&name));
        assert!(later.reopen(&name).is_some() && later.reopen(&other).is_none());
        drop(write);
        assert!(later.reopen(&name).is_none());
        later.forget(&name);
        assert!(later.all().is_empty());
    }
}
