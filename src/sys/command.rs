//! A program of ours that gets bytes and answers with its exit code: what `kind = "exec"` runs.
//!
//! Refuses: services (the keeper spawns those), and waiting past a deadline: then the program and
//! its process group are killed.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::base::time::Monotonic;
use crate::sys::spawn::{ChildPlan, Outcome, read_outcome, spawn};
use crate::sys::{clock, memfd, pidfd};

/// Where programs are looked for, and all of the environment that they get.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Code(i32),
    /// By a signal of somebody else.
    Killed(String),
    /// It was not done in time.
    Late,
}

/// Runs `argv` in `/` with `input` as its standard input and nothing else, in a session of its own.
/// Blocks until it has ended or `deadline` has come: for a thread that nobody waits for.
///
/// # Errors
/// It cannot be executed, or what it takes is not to be had.
pub fn run(argv: &[String], input: &[u8], deadline: Monotonic) -> io::Result<Ended> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let path = look_up(argv.first().ok_or_else(invalid)?)?;
    let word = |word: &[u8]| CString::new(word).map_err(|_| invalid());
    let plan = ChildPlan {
        path: word(path.as_os_str().as_encoded_bytes())?,
        argv: argv.iter().map(|text| word(text.as_bytes())).collect::<io::Result<_>>()?,
        env: vec![word(format!("PATH={PATH}").as_bytes())?],
        cwd: Some(c"/".to_owned()),
        no_new_privs: true,
        ..ChildPlan::default()
    };
    // Memory, not a pipe: who does not read it holds up nobody.
    let mut input = File::from(memfd::sealed("upright-alert", input)?);
    input.rewind()?;
    let born = spawn(&plan, &[(0, input.as_fd())], None)?;
    drop(input);
    let pid = Pid::from_raw(born.pid);
    let late = match pidfd::open(born.pid) {
        Ok(process) => !await_end(&process, deadline)?,
        Err(_) => true, // it cannot be waited for with a deadline
    };
    if late {
        let _ = killpg(pid, Signal::SIGKILL); // it may have ended just now; it is not reaped yet
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL); // before its session was made
    }
    let status = waitpid(pid, None)?;
    if let Outcome::Failed { errno, .. } = read_outcome(&born.outcome) {
        return Err(io::Error::from_raw_os_error(errno));
    }
    Ok(match status {
        _ if late => Ended::Late,
        WaitStatus::Exited(_, code) => Ended::Code(code),
        WaitStatus::Signaled(_, signal, _) => Ended::Killed(signal.to_string()),
        _ => Ended::Killed("nobody knows what".to_string()),
    })
}

/// Along `PATH`, as execvp(3) does it.
fn look_up(word: &str) -> io::Result<PathBuf> {
    if word.contains('/') {
        return Ok(PathBuf::from(word));
    }
    let places = PATH.split(':').map(|place| Path::new(place).join(word));
    let runs = |path: &PathBuf| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    places.into_iter().find(runs).ok_or_else(|| Errno::ENOENT.into())
}

/// Whether it has ended by then.
fn await_end(process: &OwnedFd, deadline: Monotonic) -> io::Result<bool> {
    loop {
        let left = deadline.since(clock::monotonic());
        if left.is_zero() {
            return Ok(pidfd::has_ended(process));
        }
        let mut asked = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        match poll(&mut asked, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(1..) => return Ok(true),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shell(script: &str, input: &[u8], within_ms: u64) -> io::Result<Ended> {
        let argv = ["sh", "-c", script].map(String::from);
        run(&argv, input, clock::monotonic() + Duration::from_millis(within_ms))
    }

    #[test]
    fn it_gets_the_bytes_and_its_code_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("out");
        let script = format!("cat > {}; exit 3", out.display());
        assert_eq!(shell(&script, b"{\"id\":1}", 20_000).expect("runs"), Ended::Code(3));
        assert_eq!(std::fs::read(&out).expect("written"), b"{\"id\":1}");
        assert!(run(&["no-such-program".into()], b"", Monotonic::ZERO).is_err());
    }

    #[test]
    fn who_is_late_is_killed_with_all_of_its_group() {
        let dir = tempfile::tempdir().expect("dir");
        let pid = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid.display());
        assert_eq!(shell(&script, b"", 500).expect("runs"), Ended::Late);
        let text = std::fs::read_to_string(&pid).expect("written before the deadline");
        let state = format!("/proc/{}/stat", text.trim());
        let gone = || std::fs::read_to_string(&state).map_or(true, |stat| stat.contains(") Z"));
        let deadline = clock::monotonic() + Duration::from_secs(10);
        while !gone() {
            assert!(clock::monotonic() < deadline, "the sleeper lives");
            std::thread::yield_now();
        }
    }
}
