//! Sealed memory as an fd: for messages that have no bound but execve's.
//!
//! Refuses: memory that its sender could change later.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

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
}
