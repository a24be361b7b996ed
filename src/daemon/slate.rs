//! What the engine deals with at this moment, in memory that the keeper holds: should it die, the next
//! engine reads there at what, and at what the ones before it did.
//!
//! Refuses: a system call. A name is written in some nanoseconds, before each unit is dealt with.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::base::limits::UNIT_NAME_LEN_MAX;
use crate::base::name::UnitName;
use crate::base::time::Monotonic;
use crate::engine::effect::Witness;
use crate::engine::safe::{Death, DeathHow};
use crate::keeper::wire::{EngineEnd, Request};
use crate::sys::memfd::{Shared, shared};

/// Name under which the keeper holds it.
pub const NAME: &[u8] = b"slate";

/// What stands at its beginning; another form has another number, and is begun anew.
const MAGIC: &[u8] = b"upright slate 1";

/// A length and a name.
const NAME_BYTES: usize = 1 + UNIT_NAME_LEN_MAX;

/// The name that is dealt with now: length 0 = none.
const NOW: usize = 64;

/// Deaths with what they happened at: a time, then the name. As many as the keeper tells of.
const DEATHS: usize = 256;
const DEATHS_MAX: usize = 8;
const DEATH_BYTES: usize = 128;

const BYTES: usize = 4_096;

/// The slate of this engine. Cloned, it is the same one.
#[derive(Clone)]
pub struct Slate(Option<Rc<RefCell<Shared>>>);

impl Slate {
    /// Takes over what the keeper held, or makes one and has it held. Without memory for it, nothing
    /// is noted, and no unit blamed.
    pub fn open(held: Option<OwnedFd>, hold: impl FnOnce(Request)) -> Slate {
        if let Some(known) = held.and_then(|fd| Shared::map(&fd, BYTES).ok()) {
            let mut magic = [0; MAGIC.len()];
            known.read(0, &mut magic);
            if magic == MAGIC {
                return Slate(Some(Rc::new(RefCell::new(known))));
            }
        }
        let made = shared("upright-slate", BYTES as u64);
        let mapped = made.and_then(|fd| Ok((Shared::map(&fd, BYTES)?, fd)));
        let Ok((mut memory, fd)) = mapped.inspect_err(|error| {
            tracing::warn!("what the engine deals with is not noted: {error}");
        }) else {
            return Slate(None);
        };
        memory.write(0, MAGIC);
        hold(Request::Hold { name: NAME.to_vec(), fd });
        Slate(Some(Rc::new(RefCell::new(memory))))
    }

    /// How engines ended, with what they dealt with then. What the newest one did is noted with its
    /// death from now on.
    pub fn deaths(&self, ends: &[EngineEnd]) -> Vec<Death> {
        let touched = self.take_now();
        if let (Some(unit), Some(end)) = (&touched, ends.last()) {
            self.note_death(end.at, unit);
        }
        let death = |end: &EngineEnd| Death {
            at: end.at,
            how: if end.hung { DeathHow::Hung } else { DeathHow::Ended(end.exit) },
            touched: self.at_death(end.at),
        };
        ends.iter().map(death).collect()
    }

    /// Writes down each unit before it is dealt with.
    pub fn witness(&self) -> Option<Witness> {
        let memory = Rc::clone(self.0.as_ref()?);
        Some(Witness(Box::new(move |unit| write_name(&mut memory.borrow_mut(), NOW, unit.as_str()))))
    }

    pub fn touch(&self, unit: &UnitName) {
        if let Some(memory) = &self.0 {
            write_name(&mut memory.borrow_mut(), NOW, unit.as_str());
        }
    }

    /// Nothing is dealt with now.
    pub fn clear(&self) {
        if let Some(memory) = &self.0 {
            memory.borrow_mut().write(NOW, &[0]);
        }
    }

    fn take_now(&self) -> Option<UnitName> {
        let unit = read_name(&self.0.as_ref()?.borrow(), NOW);
        self.clear();
        unit
    }

    fn at_death(&self, at: Monotonic) -> Option<UnitName> {
        let memory = self.0.as_ref()?.borrow();
        let place = (0..DEATHS_MAX).map(place).find(|place| read_time(&memory, *place) == at)?;
        read_name(&memory, place + size_of::<u64>())
    }

    /// In place of the oldest.
    fn note_death(&self, at: Monotonic, unit: &UnitName) {
        let Some(memory) = &self.0 else { return };
        let mut memory = memory.borrow_mut();
        let oldest = (0..DEATHS_MAX).map(place).min_by_key(|place| read_time(&memory, *place));
        let Some(place) = oldest else { return };
        memory.write(place, &[0; size_of::<u64>()]);
        write_name(&mut memory, place + size_of::<u64>(), unit.as_str());
        memory.write(place, &at.as_ns().to_le_bytes());
    }
}

fn place(index: usize) -> usize {
    DEATHS + index * DEATH_BYTES
}

fn read_time(memory: &Shared, offset: usize) -> Monotonic {
    let mut bytes = [0; size_of::<u64>()];
    memory.read(offset, &mut bytes);
    Monotonic::from_ns(u64::from_le_bytes(bytes))
}

/// The length goes last: a name half written is none.
fn write_name(memory: &mut Shared, offset: usize, name: &str) {
    memory.write(offset, &[0]);
    memory.write(offset + 1, name.as_bytes());
    memory.write(offset, &[u8::try_from(name.len()).unwrap_or(0)]);
}

fn read_name(memory: &Shared, offset: usize) -> Option<UnitName> {
    let mut bytes = [0; NAME_BYTES];
    memory.read(offset, &mut bytes);
    let (len, name) = bytes.split_first()?;
    UnitName::parse(std::str::from_utf8(name.get(..usize::from(*len))?).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::exit::Exit;

    fn unit(name: &str) -> UnitName {
        UnitName::parse(name).expect("a name")
    }

    #[test]
    fn the_next_engines_read_at_what_the_ones_before_died() {
        let mut held = None;
        let mut ends = Vec::new();
        let names = ["a".repeat(64), "b".to_string(), String::new(), "d".to_string()];
        for (n, name) in (1..).zip(&names) {
            let again = held.as_ref().map(|fd: &OwnedFd| fd.try_clone().expect("dup"));
            let slate = Slate::open(again, |request| {
                if let Request::Hold { fd, .. } = request {
                    held = Some(fd);
                }
            });
            let deaths = slate.deaths(&ends);
            let seen: Vec<Option<UnitName>> = deaths.into_iter().map(|death| death.touched).collect();
            let wanted = names[..n - 1].iter().map(|name| UnitName::parse(name).ok());
            assert_eq!(seen, wanted.collect::<Vec<_>>());
            if let Some(Witness(mut told)) = slate.witness() {
                told(&unit("other"));
                name.is_empty().then(|| slate.clear());
                if !name.is_empty() {
                    told(&unit(name));
                }
            }
            let at = Monotonic::from_ns(n as u64);
            ends.push(EngineEnd { pid: 1, at, exit: Exit::Unknown, hung: false });
        }
    }

    #[test]
    fn the_oldest_death_makes_room() {
        let slate = Slate::open(None, drop);
        for n in 1..=20 {
            slate.touch(&unit("web"));
            let end = EngineEnd { pid: 1, at: Monotonic::from_ns(n), exit: Exit::Unknown, hung: true };
            slate.deaths(&[end]);
        }
        assert_eq!(slate.at_death(Monotonic::from_ns(12)), None);
        assert_eq!(slate.at_death(Monotonic::from_ns(13)), Some(unit("web")));
    }
}
