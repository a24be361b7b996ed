//! Reading the fields of a message, one after the other.
//!
//! Refuses: reading past its end, and believing a count.

use std::os::fd::OwnedFd;

use crate::base::exit::{Exit, RunId, SpawnStep};
use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::keeper::codec::{CodecError, MAGIC, VERSION};
use crate::keeper::wire::{
    FdUse, HOLD_NAME_LEN_MAX, Stage, TAG_LEN_MAX, TableRow, UpgradeNews, UpgradeStage,
};

/// What is left of a message.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// Checks the header and gives the kind.
    pub(crate) fn kind(&mut self) -> Result<u8, CodecError> {
        let [m0, m1, version, kind] = self.array()?;
        if [m0, m1] != MAGIC {
            return Err(CodecError::Foreign);
        }
        if version == VERSION { Ok(kind) } else { Err(CodecError::Version(version)) }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let (part, rest) = self.0.split_at_checked(len).ok_or(CodecError::Short)?;
        self.0 = rest;
        Ok(part)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (part, rest) = self.0.split_first_chunk().ok_or(CodecError::Short)?;
        self.0 = rest;
        Ok(*part)
    }

    /// What a newer build appends under the same kind would be lost in silence; refuse it.
    pub(crate) fn end(&self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Value("length")) }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, CodecError> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn flag(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Value("flag")),
        }
    }

    pub(crate) fn optional_i32(&mut self) -> Result<Option<i32>, CodecError> {
        let given = self.flag()?;
        let value = self.i32()?;
        Ok(given.then_some(value))
    }

    pub(crate) fn identity(&mut self) -> Result<Option<u64>, CodecError> {
        self.u64().map(|inode| Some(inode).filter(|inode| *inode != 0))
    }

    pub(crate) fn run(&mut self) -> Result<RunId, CodecError> {
        self.u64().map(RunId)
    }

    pub(crate) fn time(&mut self) -> Result<Monotonic, CodecError> {
        self.u64().map(Monotonic::from_ns)
    }

    pub(crate) fn signal(&mut self) -> Result<Signal, CodecError> {
        Signal::from_number(self.i32()?).ok_or(CodecError::Value("signal"))
    }

    pub(crate) fn text(&mut self) -> Result<&'a [u8], CodecError> {
        let len = usize::from(self.u8()?);
        if len > TAG_LEN_MAX {
            return Err(CodecError::Value("length"));
        }
        self.take(len)
    }

    /// The name of a held fd.
    pub(crate) fn name(&mut self) -> Result<&'a [u8], CodecError> {
        let len = usize::from(u16::from_le_bytes(self.array()?));
        if len > HOLD_NAME_LEN_MAX {
            return Err(CodecError::Value("length"));
        }
        self.take(len)
    }

    pub(crate) fn long_text(&mut self) -> Result<Vec<u8>, CodecError> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        Ok(self.take(len)?.to_vec())
    }

    /// Grows with what is really there: a count alone allocates nothing.
    pub(crate) fn list<T>(
        &mut self,
        item: impl Fn(&mut Reader<'a>) -> Result<T, CodecError>,
    ) -> Result<Vec<T>, CodecError> {
        let count = self.u32()?;
        let mut out = Vec::new();
        for _ in 0..count {
            out.push(item(self)?);
        }
        Ok(out)
    }

    pub(crate) fn stage(&mut self) -> Result<Stage, CodecError> {
        match self.u8()? {
            0 => Ok(Stage::Beginning),
            1 => Ok(Stage::Running),
            _ => Err(CodecError::Value("stage")),
        }
    }

    pub(crate) fn fd_use(&mut self) -> Result<FdUse, CodecError> {
        let word = self.u8()?;
        let value = self.i32()?;
        match word {
            0 => Ok(FdUse::Child(value)),
            1 => u8::try_from(value).map(FdUse::Hold).map_err(|_| CodecError::Value("label")),
            2 => Ok(FdUse::Cgroup),
            _ => Err(CodecError::Value("fd use")),
        }
    }

    pub(crate) fn exit(&mut self) -> Result<Exit, CodecError> {
        let [word, a] = self.array()?;
        let b = self.i32()?;
        match word {
            0 => Ok(Exit::Code(a)),
            1 => {
                let signal = Signal::from_number(i32::from(a)).ok_or(CodecError::Value("signal"))?;
                Ok(Exit::Signal { signal, core: b != 0 })
            }
            2 => {
                let step = SpawnStep::from_u8(a).ok_or(CodecError::Value("step"))?;
                Ok(Exit::NotExecuted { step, errno: b })
            }
            3 => Ok(Exit::Unknown),
            _ => Err(CodecError::Value("exit")),
        }
    }

    pub(crate) fn upgrade(&mut self) -> Result<UpgradeNews, CodecError> {
        let number = self.u32()?;
        let stage = match self.u8()? {
            0 => UpgradeStage::Trial,
            1 => UpgradeStage::Done,
            2 => UpgradeStage::Failed,
            _ => return Err(CodecError::Value("stage")),
        };
        Ok(UpgradeNews { number, stage, note: self.text()?.to_vec(), why: self.name()?.to_vec() })
    }

    pub(crate) fn row(&mut self, fds: Vec<OwnedFd>) -> Result<TableRow, CodecError> {
        let run = self.run()?;
        let tag = self.text()?.to_vec();
        let pid = self.i32()?;
        let spawned_at = self.time()?;
        let executed = self.flag()?;
        let end_asked = self.flag()?;
        let said_ready = self.flag()?;
        let identity = self.identity()?;
        let ended = if self.flag()? { Some((self.time()?, self.exit()?)) } else { None };
        let count = usize::from(self.u8()?);
        let labels = self.take(count)?;
        if fds.len() != count {
            return Err(CodecError::FdsLost(run));
        }
        let held = labels.iter().copied().zip(fds).collect();
        Ok(TableRow { run, tag, pid, spawned_at, executed, end_asked, said_ready, identity, ended, held })
    }
}
