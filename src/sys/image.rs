//! Executing another file in our place with open files handed on, and finding them afterwards;
//! asking a file what it is before that.
//!
//! Refuses: names. What was looked at is what runs: a file is executed by its fd.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::base::signal::Signal;
use crate::base::time::Monotonic;
use crate::sys::signals::signal_child;
use crate::sys::spawn::{ChildPlan, Outcome, read_outcome, spawn};
use crate::sys::{clock, pidfd, pipe, process};

/// Where a file that is executed by its fd lies in the new process: the first number that is
/// no standard stream and not the engine's socket.
pub const BINARY_FD: RawFd = 4;

/// Most bytes that a file may answer with when it is asked what it is.
const ANSWER_BYTES_MAX: usize = 4_096;

/// The name by which execve(2) takes the file behind an fd that is open in the process itself.
pub fn path_of_fd(number: RawFd) -> CString {
    CString::new(format!("/proc/self/fd/{number}")).unwrap_or_default() // a number holds no NUL
}

/// The file that we are, also after its name has gone to another.
///
/// # Errors
/// EMFILE; ENOENT where /proc is missing.
pub fn open_self() -> io::Result<OwnedFd> {
    Ok(open(process::SELF_EXE, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Executes `binary` in this process: pid, children, blocked and pending signals and the fds of
/// `kept` stay, under their numbers; the memory goes. Only a refusal returns: execve's own, and
/// we are as before then.
pub fn execute(binary: BorrowedFd<'_>, argv: &[CString], kept: &[BorrowedFd<'_>]) -> io::Error {
    let mark = |flags: FdFlag| kept.iter().try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop));
    let refused = match mark(FdFlag::empty()) {
        Ok(()) => execute_inherited(binary.as_raw_fd(), argv),
        Err(errno) => errno.into(),
    };
    let _ = mark(FdFlag::FD_CLOEXEC); // they are open, and were so before
    refused
}

/// The same for an image that has not taken over what it inherited: all of it is still open and
/// goes on as it is.
pub fn execute_inherited(binary: RawFd, argv: &[CString]) -> io::Error {
    match nix::unistd::execv(&path_of_fd(binary), argv) {
        Err(errno) => errno.into(),
    }
}

/// Whatever whoever executed us left on this number, CLOEXEC from now on. Call it once for a
/// number above 2: the result owns it.
///
/// # Errors
/// EBADF when nothing is there.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: only borrowed while it is marked; a closed number makes the call fail.
    let found = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(found, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open (checked above), and by the contract nobody else in this process has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Another fd, CLOEXEC, of what whoever executed us left on this number, which stays as it is.
///
/// # Errors
/// EBADF when nothing is there; EMFILE.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(Errno::EBADF.into());
    }
    // SAFETY: only borrowed for the call; a closed number makes it fail.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

/// Something is open there, above the standard streams.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: only borrowed for a look; a closed number makes the call fail.
    number > 2 && fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_GETFD).is_ok()
}

/// Runs `binary` with these words, without environment, and gives back what it wrote. It is our
/// child, and gone when this returns. Blocks: for a thread that nobody waits for.
///
/// # Errors
/// It cannot be executed; it is not done in time; it ends otherwise than with exit code 0.
pub fn ask(binary: BorrowedFd<'_>, argv: Vec<CString>, within: Duration) -> io::Result<Vec<u8>> {
    let (read, write) = pipe::pair()?;
    let stderr = io::stderr();
    let plan = ChildPlan { path: path_of_fd(BINARY_FD), argv, ..ChildPlan::default() };
    let fds = [(1, write.as_fd()), (2, stderr.as_fd()), (BINARY_FD, binary)];
    let born = spawn(&plan, &fds, None)?;
    drop(write);
    let deadline = clock::monotonic() + within;
    let process = pidfd::open(born.pid);
    let answer = read_all(&read, deadline);
    let ended = match (&process, &answer) {
        (Ok(process), Ok(_)) => await_readable(process, deadline),
        (Err(_), _) | (_, Err(_)) => Ok(()),
    };
    if answer.is_err() || ended.is_err() {
        signal_child(born.pid, Signal::KILL)?;
    }
    let status = waitpid(Pid::from_raw(born.pid), None)?;
    if let Outcome::Failed { errno, .. } = read_outcome(&born.outcome) {
        return Err(io::Error::from_raw_os_error(errno));
    }
    let answer = answer?;
    ended?;
    match status {
        WaitStatus::Exited(_, 0) => Ok(answer),
        WaitStatus::Exited(_, code) => Err(io::Error::other(format!("it exits with {code}"))),
        other => Err(io::Error::other(format!("it does not end by itself: {other:?}"))),
    }
}

fn read_all(from: &OwnedFd, deadline: Monotonic) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut part = [0; 1_024];
    loop {
        await_readable(from, deadline)?;
        match nix::unistd::read(from, &mut part) {
            Ok(0) => return Ok(answer),
            Ok(len) => answer.extend_from_slice(part.get(..len).unwrap_or(&[])),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other("it writes more than an answer"));
        }
    }
}

fn await_readable(fd: impl AsFd, deadline: Monotonic) -> io::Result<()> {
    loop {
        let left = deadline.since(clock::monotonic());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer in time"));
        }
        let mut asked = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut asked, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(1..) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn ask_shell(script: &str, within: Duration) -> io::Result<String> {
        let shell = open("/bin/sh", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).expect("a shell");
        let argv = ["sh", "-c", script].map(|word| CString::new(word).expect("no NUL")).to_vec();
        ask(shell.as_fd(), argv, within).map(|answer| String::from_utf8(answer).expect("text"))
    }

    #[test]
    fn a_file_is_asked_and_waited_for() {
        let long = Duration::from_secs(20);
        assert_eq!(ask_shell("echo one; echo two", long).expect("an answer"), "one\ntwo\n");
        let code = ask_shell("echo one; exit 3", long).expect_err("no good end").to_string();
        assert_eq!(code, "it exits with 3");
        let late = ask_shell("echo one; exec sleep 1000", Duration::from_millis(100)).expect_err("late");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let much = ask_shell("while echo 0123456789; do :; done", long).expect_err("too much").to_string();
        assert_eq!(much, "it writes more than an answer");
        let text = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("a file");
        let no_program = ask(text.as_fd(), vec![c"toml".into()], long).expect_err("no program");
        assert_eq!(no_program.raw_os_error(), Some(Errno::EACCES as i32));
    }

    #[test]
    fn what_is_inherited_is_owned_and_closed() {
        let (read, write) = pipe::pair().expect("pipe");
        let number = std::os::fd::IntoRawFd::into_raw_fd(write);
        assert!(is_open(number) && !is_open(1));
        drop(inherited(number).expect("it is there"));
        assert_eq!(nix::unistd::read(&read, &mut [0; 1]), Ok(0), "the only writer is closed");
        assert!(inherited(2).is_err());
    }
}
