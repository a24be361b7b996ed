//! Upright, a process supervisor for Linux. The rooms are listed in `docs/ARCHITECTURE.md`,
//! in reading order; a room imports only rooms above it.
//!
//! Refuses: code of its own, and names at its root.

// Tests start processes and look at the clock; what we ship may not (clippy.toml says why).
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod base;
pub mod unit;
pub mod graph;
pub mod engine;
pub mod ledger;
pub mod sim;
pub mod sys;
pub mod config;
pub mod keeper;
pub mod logs;
pub mod probe;
pub mod store;
pub mod alert;
pub mod telemetry;
pub mod api;
pub mod dashboard;
pub mod daemon;
pub mod drill;
pub mod demo;
pub mod cli;
