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
mod doors;
mod drills;
mod faults;
mod fdstore;
mod files;
mod filled;
mod follow;
mod handlers;
mod kpi;
mod hands;
mod launch;
mod lines;
mod notify;
mod output;
mod page;
mod observed;
mod orphans;
mod pipes;
mod plan;
mod quiet;
mod reload;
mod scrape;
mod shell;
mod slate;
mod spoiled;
mod streams;
mod takeover;
mod upgrade;
mod views;
mod watch;
mod words;
