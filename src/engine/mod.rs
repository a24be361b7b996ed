//! The pure core: one event in, effects out. Every decision of Upright is made here.
//!
//! Refuses: a clock, the operating system, the store, HTTP, logging, randomness of its own.
//! So the same code runs in service, in the simulator and in `upright simulate`.

pub mod durable;
pub mod effect;
pub mod event;
pub mod view;
