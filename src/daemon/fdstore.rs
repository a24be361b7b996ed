//! What services stored (`FDSTORE=1` of sd_notify(3)): their fds, given back to the next run.
//!
//! Refuses: being the holder. The keeper holds each under a name that says whose it is, so that
//! neither the death of the service nor that of the engine closes it; these are duplicates.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

use crate::base::name::UnitName;
use crate::engine::durable::{Desired, UnitDurable};
use crate::keeper::wire::Request;
use crate::sys::files::same_open_file;
use crate::sys::socket::close_at_once;

/// Most fds that a unit may have stored.
pub const FDS_PER_UNIT_MAX: usize = 64;

/// Name of an fd that came without one (sd_pid_notify_with_fds(3)).
pub const NAME_DEFAULT: &str = "stored";

/// First word of the names under which the keeper holds them.
const WORD: &str = "fdstore";

struct Stored {
    number: u64,
    name: String,
    fd: OwnedFd,
}

/// What became of an fd that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    /// It is there already.
    Known,
    /// The unit has as many as it may.
    Full,
    /// The unit is to go down, and keeps nothing beyond that.
    Closed,
}

#[derive(Default)]
pub struct FdStore {
    units: BTreeMap<UnitName, Vec<Stored>>,
    /// Units that are at rest or on their way there: nothing is kept for them.
    closed: BTreeSet<UnitName>,
    last: u64,
}

impl FdStore {
    /// Takes over what the keeper held for an earlier engine; anything else is given back.
    pub fn adopt(&mut self, name: &[u8], fd: OwnedFd) -> Option<OwnedFd> {
        let Some((unit, number, name)) = parse(name) else { return Some(fd) };
        self.last = self.last.max(number);
        let all = self.units.entry(unit).or_default();
        all.push(Stored { number, name, fd });
        all.sort_by_key(|stored| stored.number);
        None
    }

    /// Stores `fd` for the unit; `request` has the keeper hold it.
    ///
    /// # Errors
    /// EMFILE: nothing is stored.
    pub fn store(
        &mut self,
        unit: &UnitName,
        name: &str,
        fd: OwnedFd,
        request: impl FnOnce(Request),
    ) -> io::Result<Outcome> {
        if self.closed.contains(unit) {
            close_at_once(fd);
            return Ok(Outcome::Closed);
        }
        let all = self.units.entry(unit.clone()).or_default();
        if all.iter().any(|stored| same_open_file(&stored.fd, &fd)) {
            return Ok(Outcome::Known);
        }
        if all.len() >= FDS_PER_UNIT_MAX {
            close_at_once(fd);
            return Ok(Outcome::Full);
        }
        let twin = fd.try_clone()?;
        self.last += 1;
        let stored = Stored { number: self.last, name: name.to_string(), fd };
        request(Request::Hold { name: held_name(unit, &stored), fd: twin });
        all.push(stored);
        Ok(Outcome::Stored)
    }

    /// Drops those of this name.
    pub fn remove(&mut self, unit: &UnitName, name: &str, request: impl FnMut(Request)) {
        self.drop_if(unit, |stored| stored.name == name, request);
    }

    /// Drops all of the unit: it is at rest, or its file is gone.
    pub fn forget(&mut self, unit: &UnitName, request: impl FnMut(Request)) {
        self.drop_if(unit, |_| true, request);
    }

    /// The unit's row was written: as FileDescriptorStorePreserve=restart of systemd has it, fds
    /// are kept from run to run, and not beyond a stop that was ordered or an end for good.
    pub fn on_saved(&mut self, unit: &UnitName, row: &UnitDurable, request: impl FnMut(Request)) {
        if row.ordered == Some(Desired::Down) || row.held.is_some() || row.finished {
            self.closed.insert(unit.clone());
            self.forget(unit, request);
        } else {
            self.closed.remove(unit);
        }
    }

    /// Drops what belongs to no unit that `is_known`.
    pub fn retain(&mut self, is_known: impl Fn(&UnitName) -> bool, mut request: impl FnMut(Request)) {
        self.closed.retain(|unit| is_known(unit));
        let gone: Vec<UnitName> = self.units.keys().filter(|unit| !is_known(unit)).cloned().collect();
        for unit in gone {
            self.forget(&unit, &mut request);
        }
    }

    /// Names and duplicates for the next run, in the order in which they were stored.
    ///
    /// # Errors
    /// EMFILE.
    pub fn duplicates(&self, unit: &UnitName) -> io::Result<Vec<(String, OwnedFd)>> {
        let all = self.units.get(unit).into_iter().flatten();
        all.map(|stored| Ok((stored.name.clone(), stored.fd.try_clone()?))).collect()
    }

    fn drop_if(&mut self, unit: &UnitName, gone: impl Fn(&Stored) -> bool, mut request: impl FnMut(Request)) {
        let Some(all) = self.units.get_mut(unit) else { return };
        let (going, kept): (Vec<Stored>, Vec<Stored>) =
            std::mem::take(all).into_iter().partition(|stored| gone(stored));
        *all = kept;
        if all.is_empty() {
            self.units.remove(unit);
        }
        for stored in going {
            let name = held_name(unit, &stored);
            // Before the keeper closes it: that one must not wait.
            close_at_once(stored.fd);
            request(Request::LetGo { name });
        }
    }
}

fn held_name(unit: &UnitName, stored: &Stored) -> Vec<u8> {
    format!("{WORD}/{unit}/{}/{}", stored.number, stored.name).into_bytes()
}

fn parse(name: &[u8]) -> Option<(UnitName, u64, String)> {
    let mut parts = std::str::from_utf8(name).ok()?.splitn(4, '/');
    if parts.next()? != WORD {
        return None;
    }
    let unit = UnitName::parse(parts.next()?).ok()?;
    Some((unit, parts.next()?.parse().ok()?, parts.next()?.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pipe;

    fn unit() -> UnitName {
        UnitName::parse("web").expect("a name")
    }

    fn names(store: &FdStore) -> Vec<String> {
        store.duplicates(&unit()).expect("fds").into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn what_the_keeper_holds_is_known_again_and_stays_in_order() {
        let mut store = FdStore::default();
        let mut held = Vec::new();
        let fd = || pipe::null().expect("null");
        for name in ["b/c", "a", "a"] {
            let stored = store.store(&unit(), name, fd(), |request| held.push(request)).expect("room");
            assert_eq!(stored, Outcome::Stored);
        }
        let twin = fd();
        let again = twin.try_clone().expect("dup");
        assert_eq!(
            store.store(&unit(), "x", twin, |request| held.push(request)).expect("room"),
            Outcome::Stored
        );
        assert_eq!(store.store(&unit(), "y", again, |_| ()).expect("room"), Outcome::Known);
        let mut next = FdStore::default();
        for request in held.into_iter().rev() {
            let Request::Hold { name, fd } = request else { panic!("{request:?}") };
            assert!(next.adopt(&name, fd).is_none(), "{}", name.escape_ascii());
        }
        assert!(next.adopt(b"notify", fd()).is_some());
        assert_eq!(names(&next), ["b/c", "a", "a", "x"]);
        let mut gone = Vec::new();
        next.remove(&unit(), "a", |request| gone.push(request));
        assert_eq!((names(&next), gone.len()), (vec!["b/c".to_string(), "x".to_string()], 2));
    }

    #[test]
    fn a_unit_that_is_to_go_down_keeps_nothing() {
        let mut store = FdStore::default();
        let fd = || pipe::null().expect("null");
        for _ in 0..FDS_PER_UNIT_MAX {
            assert_eq!(store.store(&unit(), NAME_DEFAULT, fd(), drop).expect("room"), Outcome::Stored);
        }
        assert_eq!(store.store(&unit(), NAME_DEFAULT, fd(), drop).expect("room"), Outcome::Full);
        let down = UnitDurable { ordered: Some(Desired::Down), ..UnitDurable::default() };
        let mut gone = 0;
        store.on_saved(&unit(), &down, |_| gone += 1);
        assert_eq!((gone, names(&store).len()), (FDS_PER_UNIT_MAX, 0));
        assert_eq!(store.store(&unit(), NAME_DEFAULT, fd(), drop).expect("room"), Outcome::Closed);
        store.on_saved(&unit(), &UnitDurable::default(), drop);
        assert_eq!(store.store(&unit(), NAME_DEFAULT, fd(), drop).expect("room"), Outcome::Stored);
    }
}
