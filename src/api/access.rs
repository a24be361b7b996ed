//! Who may do what: root, the daemon's own user, operators, viewers, the token's holder.
//!
//! Refuses: deciding by pid (reliability A3: a pid can be reused while we look), and by what the
//! group database says of a user whose process has not the group.

use nix::unistd::{Group, User};

use crate::api::call::{Local, Peer, Proof};
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
    fn has(&self, peer: &Local) -> bool {
        let mut groups = std::iter::once(&peer.gid).chain(&peer.groups);
        self.uids.contains(&peer.uid) || groups.any(|gid| self.gids.contains(gid))
    }

    fn is_empty(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

impl Access {
    /// May this peer use such a route? Whoever has the token may do what an operator may.
    pub fn allows(&self, peer: &Peer, need: Need) -> bool {
        let peer = match peer {
            Peer::Local(local) => local,
            Peer::Remote { proof: Proof::Token, .. } => return true,
            Peer::Remote { proof: Proof::Password, .. } => return need == Need::View,
            Peer::Remote { proof: Proof::Nothing | Proof::Wrong, .. } => return false,
        };
        let acts = peer.uid == 0 || peer.uid == self.own_uid || self.operators.has(peer);
        match need {
            Need::Act => acts,
            Need::View => acts || self.viewers.is_empty() || self.viewers.has(peer),
        }
    }
}

/// `root`, `@upright`, `1000` → numbers.
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
    let gid = match name.parse() {
        Ok(gid) => Some(gid),
        Err(_) => Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()),
    };
    ids.gids.extend(gid);
    gid.is_some()
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

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer::Local(Local { uid, gid, groups: groups.to_vec(), pid: 1 })
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
        // (uid, gid, other groups, acts, reads when open, reads when closed)
        let none: &[u32] = &[];
        let table = [
            (0, 0, none, true, true, true),
            (999, 9, none, true, true, true),
            (1000, 9, none, true, true, true),
            (3000, 50, none, true, true, true),
            (3000, 9, &[8, 50], true, true, true),
            (2000, 9, none, false, true, true),
            (3000, 60, none, false, true, true),
            (3000, 9, &[60], false, true, true),
            (3000, 9, &[0, 999], false, true, false),
        ];
        for (uid, gid, groups, acts, reads_open, reads_closed) in table {
            let peer = peer(uid, gid, groups);
            assert_eq!(open.allows(&peer, Need::Act), acts, "{peer:?}");
            assert_eq!(closed.allows(&peer, Need::Act), acts, "{peer:?}");
            assert_eq!(open.allows(&peer, Need::View), reads_open, "{peer:?}");
            assert_eq!(closed.allows(&peer, Need::View), reads_closed, "{peer:?}");
        }
        let from = ([127, 0, 0, 1], 50_000).into();
        for (proof, may) in [(Proof::Nothing, false), (Proof::Wrong, false), (Proof::Token, true)] {
            for need in [Need::Act, Need::View] {
                assert_eq!(open.allows(&Peer::Remote { from, proof }, need), may, "{proof:?}");
            }
        }
        let browser = Peer::Remote { from, proof: Proof::Password };
        assert!(open.allows(&browser, Need::View) && !open.allows(&browser, Need::Act));
    }
}
