//! Pipes, and the null device.
//!
//! Refuses: inheritance. Every fd is CLOEXEC; the spawn gives away what a child should have.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, fchown};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pipe2};

/// A pipe: (read end, write end).
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// A pipe that tries to hold `size_bytes` (F_SETPIPE_SZ, pipe(7)). An unprivileged user has
/// at most /proc/sys/fs/pipe-max-size and a quota; refused, the pipe keeps the kernel's 64 KiB.
///
/// # Errors
/// EMFILE, ENFILE.
pub fn pair_sized(size_bytes: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pair()?;
    let size = i32::try_from(size_bytes).unwrap_or(i32::MAX);
    let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(size)); // best effort, see above
    Ok((read, write))
}

/// A pipe with a name (fifo(7)), of mode 0600: (read end, an end for writing). The second one is a
/// reader, too: whoever has it gets no SIGPIPE when every other reader is gone, and what it wrote
/// waits in the pipe for whoever comes with `reopen`. A file that stands there is replaced.
///
/// # Errors
/// As mkfifo(3) and open(2); EPERM where the file system has no FIFOs.
pub fn named(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let own = Mode::S_IRUSR | Mode::S_IWUSR;
    match mkfifo(path, own) {
        Err(nix::errno::Errno::EEXIST) => {
            fs::remove_file(path)?;
            mkfifo(path, own)?;
        }
        made => made?,
    }
    // For reading and writing it waits for nobody, and so does every other open after it.
    let open = || -> io::Result<(OwnedFd, OwnedFd)> {
        let write = open_fifo(OpenOptions::new().read(true).write(true), path, OFlag::empty())?;
        let read = open_fifo(OpenOptions::new().read(true), path, OFlag::O_NONBLOCK)?;
        Ok((read.into(), write.into()))
    };
    open().inspect_err(|_| drop(fs::remove_file(path)))
}

/// The read end of a pipe that `named` made, for one who comes later. None when nobody has it
/// open any more: what was in it is gone then.
///
/// # Errors
/// InvalidInput when it is no FIFO; as open(2).
pub fn reopen(path: &Path) -> io::Result<Option<OwnedFd>> {
    // ENXIO without a reader (fifo(7)), and whoever writes into it is one. Held until the read end is
    // open, so that its hang-up is seen if nobody writes any more.
    let probe = match open_fifo(OpenOptions::new().write(true), path, OFlag::O_NONBLOCK) {
        Ok(probe) => probe,
        Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let read = open_fifo(OpenOptions::new().read(true), path, OFlag::O_NONBLOCK)?;
    drop(probe);
    Ok(Some(read.into()))
}

fn open_fifo(how: &mut OpenOptions, path: &Path, flags: OFlag) -> io::Result<File> {
    let file = how.custom_flags((flags | OFlag::O_NOFOLLOW).bits()).open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no FIFO", path.display())))
}

/// Gives a pipe to an account, so that it may open its own `/dev/stdout` again.
///
/// # Errors
/// EPERM for all but root.
pub fn give_to(pipe: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    fchown(pipe, Some(uid), Some(gid))
}

/// Sets O_NONBLOCK on the open file description (which duplicates share).
///
/// # Errors
/// None that a live fd can give.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// /dev/null for reading and writing.
///
/// # Errors
/// As open(2).
pub fn null() -> io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_closed(read: &OwnedFd) -> bool {
        let mut ask = [PollFd::new(read.as_fd(), PollFlags::POLLIN)];
        poll(&mut ask, PollTimeout::try_from(Duration::ZERO).expect("zero")).expect("poll");
        ask[0].revents().is_some_and(|found| found.contains(PollFlags::POLLHUP))
    }

    #[test]
    fn what_is_written_waits_while_nobody_reads() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("1");
        let (read, write) = named(&path).expect("a pipe");
        let mut writer = File::from(write);
        writer.write_all(b"one ").expect("room");
        assert!(!is_closed(&read));
        drop(read);
        writer.write_all(b"two").expect("no SIGPIPE: the writer reads, too");
        let read = reopen(&path).expect("opens").expect("somebody holds it");
        drop(writer);
        assert!(is_closed(&read));
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).expect("what was written");
        assert_eq!(text, "one two");
        assert!(reopen(&path).expect("asked").is_none(), "nobody holds it");
        let (_read, _write) = named(&path).expect("replaced");
        fs::write(dir.path().join("file"), b"").expect("a file");
        assert!(reopen(&dir.path().join("file")).is_err());
    }

    #[test]
    fn a_pipe_whose_writer_is_gone_and_that_somebody_else_holds_ends_after_its_last_byte() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("1");
        let (kept, write) = named(&path).expect("a pipe");
        File::from(write).write_all(b"last").expect("room");
        let read = reopen(&path).expect("opens").expect("somebody holds it");
        assert!(is_closed(&read));
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).expect("what was written");
        assert_eq!(text, "last");
        drop(kept);
    }
}
