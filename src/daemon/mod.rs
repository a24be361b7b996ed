//! The shell around the pure engine: sources become events, effects are performed.
//!
//! Refuses: policy. Nothing here asks in which state a unit is in order to act on it.

pub mod boot;
pub mod card;
pub mod tag;
pub mod environment;
mod adopt;
mod again;
mod beat;
mod containment;
mod fdstore;
mod files;
mod follow;
mod handlers;
mod hands;
mod launch;
mod lines;
mod notify;
mod output;
mod orphans;
mod pipes;
mod plan;
mod reload;
mod shell;
mod slate;
mod streams;
mod takeover;
mod upgrade;
mod views;
mod watch;
mod words;
