//! The keeper: parent and subreaper of every service, holder of their fds, restarter of the
//! engine. One thread, no async, no allocation in its loop.
//!
//! Refuses: units, policy, TOML, HTTP, SQL. It knows runs and fds.

pub mod wire;
pub mod codec;
pub mod plan;
mod birth;
pub mod table;
mod engine;
mod talk;
mod pulse;
mod systemd;
mod mains;
pub mod fdstore_systemd;
mod reader;
mod state;
pub mod upgrade;
pub mod run;
pub mod client;
