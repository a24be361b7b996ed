//! What belongs to a unit: its cgroup, or without cgroup rights its sessions and their
//! descendants ("weak").
//!
//! Refuses: signalling by process group or by name; only processes known to be the unit's.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::engine::event::Rest;
use crate::unit::spec::Resources;

pub struct Containment {
}
pub struct Watch {}
impl Watch {
    pub async fn changed(&mut self) { std::future::pending().await }
}
impl Containment {
    pub fn open() -> Containment { Containment {} }
    pub fn on_spawned(&mut self, _unit: &UnitName, _pid: i32) {}
    pub fn word(&self) -> &'static str { "weak" }
    pub fn enter(&mut self, _unit: &UnitName, _resources: &Resources) -> io::Result<Option<OwnedFd>> { Ok(None) }
    pub fn rest(&mut self, _unit: &UnitName, _runs: &[i32]) -> Rest { Rest::Empty }
    pub fn signal_all(&mut self, _unit: &UnitName, _signal: Signal, _runs: &[i32]) -> io::Result<()> { Ok(()) }
    pub fn kill_all(&mut self, _unit: &UnitName, _runs: &[i32]) -> io::Result<()> { Ok(()) }
    pub fn forget(&mut self, _unit: &UnitName) {}
    pub fn watch(&self, _unit: &UnitName) -> Watch { Watch {} }
    pub fn contains(&self, _unit: &UnitName, _pid: i32) -> bool { false }
    pub fn remove(&mut self) {}
}
