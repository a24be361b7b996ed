//! Memory as an fd. Sealed: for messages that have no bound but execve's. Shared: for what has to
//! outlive whoever writes it, in the hands of somebody who holds the fd.
//!
//! Refuses: a sealed memory that its sender could change later.

use std::fs::File;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, compiler_fence};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Most bytes `read` takes. execve(2) takes at most 6 MiB of strings.
pub const BYTES_MAX: u64 = 8 << 20;

/// A CLOEXEC memfd with these bytes that nobody can change (memfd_create(2), F_ADD_SEALS).
///
/// # Errors
/// EMFILE, ENOMEM.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let seals =
        SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// The bytes of a sealed memfd.
///
/// # Errors
/// InvalidData when it is not sealed or above `BYTES_MAX`; ENOMEM. Never EMFILE: no further fd
/// is opened.
pub fn read(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let seals = SealFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GET_SEALS)?);
    let file = File::from(fd);
    let size = file.metadata()?.len();
    if !seals.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK) || size > BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the memory is not sealed or too large"));
    }
    let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Memory that lives as long as anybody holds its fd: what is written is there for the next one who
/// maps it, whatever instruction we die at.
pub struct Shared {
    at: NonNull<u8>,
    len: usize,
}

/// A CLOEXEC memfd of `len` zeros, for `Shared::map`.
///
/// # Errors
/// EMFILE, ENOMEM.
pub fn shared(name: &str, len: u64) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(len)?;
    // Shrunk by somebody, a write would be SIGBUS.
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW))?;
    Ok(file.into())
}

impl Shared {
    /// Maps the memory of a `shared` fd, which may be closed afterwards.
    ///
    /// # Errors
    /// InvalidData when it has another length, or could be shrunk; ENOMEM.
    pub fn map(fd: &OwnedFd, len: usize) -> io::Result<Shared> {
        let seals = SealFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GET_SEALS)?);
        let size = File::from(fd.try_clone()?).metadata()?.len();
        let length = NonZeroUsize::new(len).filter(|_| usize::try_from(size) == Ok(len));
        let (Some(length), true) = (length, seals.contains(SealFlag::F_SEAL_SHRINK)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the memory is none of ours"));
        };
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours. It
        // covers `len` bytes of a file that has them and cannot be shrunk (checked above).
        let at = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, fd, 0)? };
        Ok(Shared { at: at.cast(), len })
    }

    /// Writes at `offset`; what does not fit is left out. Later writes come later also for whoever
    /// reads after our death.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let room = self.len.saturating_sub(offset);
        let bytes = bytes.get(..room).unwrap_or(bytes);
        // SAFETY: `offset + bytes.len() <= len`, the mapping lives as long as we do, is written by
        // this method alone (`&mut self`), and `bytes` is not in it.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.as_ptr().add(self.len - room), bytes.len())
        };
        compiler_fence(Ordering::SeqCst);
    }

    /// The bytes at `offset`, as many as there are.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let room = self.len.saturating_sub(offset);
        let count = room.min(into.len());
        // SAFETY: as in `write`; whoever else has it mapped is dead, or is a keeper that does not write.
        unsafe { ptr::copy_nonoverlapping(self.at.as_ptr().add(self.len - room), into.as_mut_ptr(), count) };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: our own mapping with its length; nothing points into it any more.
        let _ = unsafe { munmap(self.at.cast(), self.len) }; // it was mapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_reads_back_and_cannot_be_changed() {
        let fd = sealed("test", b"plan").expect("memfd");
        let same = fd.try_clone().expect("dup");
        assert_eq!(read(fd).expect("read"), b"plan");
        assert!(File::from(same).write_all_at(b"x", 0).is_err());
    }

    #[test]
    fn what_is_shared_is_there_for_the_next_one() {
        let fd = shared("test", 64).expect("memfd");
        let mut first = Shared::map(&fd, 64).expect("mapped");
        first.write(60, b"beyond");
        first.write(100, b"far beyond");
        first.write(0, b"here");
        drop(first);
        let mut found = [0; 64];
        Shared::map(&fd, 64).expect("mapped again").read(0, &mut found);
        assert_eq!((&found[..5], &found[60..]), (&b"here\0"[..], &b"beyo"[..]));
        assert!(Shared::map(&fd, 32).is_err());
        assert!(Shared::map(&sealed("test", &[0; 64]).expect("memfd"), 32).is_err());
    }
}
