//! Who may do what on the Unix socket.
//!
//! Refuses: deciding by pid (reliability A3: a pid can be reused while we look).

use nix::unistd::{Group, User};

use crate::api::call::Peer;
use crate::api::routes::Need;

/// The roles, as numbers. Root and the daemon's own user always act.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The daemon's own uid.
    pub own_uid: u32,
    pub operators: Ids,
    /// Empty = everybody who can open the socket may read.
    pub viewers: Ids,
}

/// Users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
}

impl Ids {
    fn has(&self, peer: &Peer) -> bool {
        self.uids.contains(&peer.uid) || self.gids.contains(&peer.gid)
    }

    fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

impl Access {
    /// May this peer use such a route?
    pub fn allows(&self, peer: &Peer, need: Need) -> bool {
        let acts = peer.uid == 0 || peer.uid == self.own_uid || self.operators.has(peer);
        match need {
            Need::Act => acts,
            Need::View => acts || self.viewers.is_empty() || self.viewers.has(peer),
        }
    }
}

/// `root`, `@upright`, `1000` → numbers. A group stands for its gid and for the members that
/// the group database lists now; SO_PEERCRED tells a peer's first group only.
///
/// # Errors
/// The entries that name nobody here; the ones that do are in the first part all the same,
/// because a missing group must not lock the others out.
pub fn resolve(entries: &[String]) -> (Ids, Vec<String>) {
    let mut ids = Ids::default();
    let mut unknown = Vec::new();
    for entry in entries {
        let known = match entry.strip_prefix('@') {
            Some(group) => resolve_group(group, &mut ids),
            None => resolve_user(entry, &mut ids),
        };
        if !known {
            unknown.push(entry.clone());
        }
    }
    (ids, unknown)
}

fn resolve_group(name: &str, ids: &mut Ids) -> bool {
    if let Ok(gid) = name.parse() {
        ids.gids.push(gid);
        return true;
    }
    let Ok(Some(group)) = Group::from_name(name) else { return false };
    ids.gids.push(group.gid.as_raw());
    for member in group.mem {
        resolve_user(&member, ids);
    }
    true
}

fn resolve_user(name: &str, ids: &mut Ids) -> bool {
    let uid = match name.parse() {
        Ok(uid) => Some(uid),
        Err(_) => User::from_name(name).ok().flatten().map(|user| user.uid.as_raw()),
    };
    ids.uids.extend(uid);
    uid.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32) -> Peer {
        Peer { uid, gid, pid: 1 }
    }

    #[test]
    fn names_become_numbers_and_strangers_are_told() {
        let list = ["root", "@root", "1234", "@77", "nobody-of-this-name"].map(String::from);
        let (ids, unknown) = resolve(&list);
        assert_eq!(ids, Ids { uids: vec![0, 1234], gids: vec![0, 77] });
        assert_eq!(unknown, ["nobody-of-this-name"]);
    }

    #[test]
    fn roles_are_denied_by_default() {
        let operators = Ids { uids: vec![1000], gids: vec![50] };
        let open = Access { own_uid: 999, operators: operators.clone(), viewers: Ids::default() };
        let closed = Access { viewers: Ids { uids: vec![2000], gids: vec![60] }, ..open.clone() };
        // (uid, gid, acts, reads when open, reads when closed)
        let table = [
            (0, 0, true, true, true),
            (999, 9, true, true, true),
            (1000, 9, true, true, true),
            (3000, 50, true, true, true),
            (2000, 9, false, true, true),
            (3000, 60, false, true, true),
            (3000, 9, false, true, false),
        ];
        for (uid, gid, acts, reads_open, reads_closed) in table {
            let peer = peer(uid, gid);
            assert_eq!(open.allows(&peer, Need::Act), acts, "{peer:?}");
            assert_eq!(closed.allows(&peer, Need::Act), acts, "{peer:?}");
            assert_eq!(open.allows(&peer, Need::View), reads_open, "{peer:?}");
            assert_eq!(closed.allows(&peer, Need::View), reads_closed, "{peer:?}");
        }
    }
}
