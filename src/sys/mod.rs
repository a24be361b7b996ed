//! The operating system as the rest of Upright sees it: clock, processes, sockets, cgroups, files.
//! The only room with `unsafe` and the only one that reads a clock.
//!
//! Refuses: units, policy and retries. A call here does one thing and says what the kernel said.

pub mod accounts;
pub mod cgroup;
pub mod clock;
pub mod command;
pub mod files;
pub mod image;
pub mod lock;
pub mod memfd;
pub mod pidfd;
pub mod pipe;
pub mod process;
pub mod proctree;
pub mod signals;
pub mod socket;
pub mod spawn;
pub mod threads;
pub mod usage;
pub mod wait;
pub mod watched;
