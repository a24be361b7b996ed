//! Reaping.
//!
//! Refuses: blocking, and telling whose child it was.

use std::mem;

use nix::errno::Errno;
use nix::libc;

use crate::base::exit::Exit;
use crate::base::signal::Signal;

/// What one look at our children found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    One {
        pid: i32,
        exit: Exit,
    },
    /// Children live, none has ended.
    NoneYet,
    NoChildren,
}

/// Reaps one ended child, ours or inherited as subreaper. SIGCHLD coalesces: call until it
/// says `NoneYet` or `NoChildren`.
pub fn reap() -> Reaped {
    loop {
        // SAFETY: siginfo_t is plain old data; zero is a valid value, and waitid(2) leaves
        // si_pid 0 when nothing has ended.
        let (done, info) = unsafe {
            let mut info: libc::siginfo_t = mem::zeroed();
            (libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG), info)
        };
        if done != 0 {
            if Errno::last() == Errno::EINTR {
                continue;
            }
            return Reaped::NoChildren;
        }
        // SAFETY: waitid succeeded with WEXITED, so the SIGCHLD members of the union are set.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Reaped::NoneYet;
        }
        return Reaped::One { pid, exit: exit_of(info.si_code, status) };
    }
}

fn exit_of(code: i32, status: i32) -> Exit {
    let by_signal = |core| match Signal::from_number(status) {
        Some(signal) => Exit::Signal { signal, core },
        None => Exit::Unknown,
    };
    match code {
        libc::CLD_EXITED => u8::try_from(status).map_or(Exit::Unknown, Exit::Code),
        libc::CLD_KILLED => by_signal(false),
        libc::CLD_DUMPED => by_signal(true),
        _ => Exit::Unknown,
    }
}
