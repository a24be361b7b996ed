//! Users and groups, read from /etc/passwd and /etc/group.
//!
//! Refuses: guessing. A name is an exact entry or a strictly base-10 number; `0day`, `0x0`
//! and `-1` ran services as root elsewhere (CVE-2017-1000082, CVE-2020-13776).

use std::fs;
use std::io;
use std::path::PathBuf;

/// A user as far as the files know it. A bare number needs no entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    /// The primary group; None for a number without an entry.
    pub gid: Option<u32>,
    pub name: Option<String>,
    pub home: Option<PathBuf>,
    pub shell: Option<PathBuf>,
}

/// Why a user or group is none.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("no {kind} `{name}` in {file}")]
    Unknown { kind: &'static str, name: String, file: &'static str },
    #[error("cannot read {file}: {source}")]
    Unreadable { file: &'static str, source: io::Error },
}

impl AccountError {
    /// What the system said, or ENOENT: nobody has this name.
    pub fn errno(&self) -> i32 {
        match self {
            AccountError::Unknown { .. } => nix::libc::ENOENT,
            AccountError::Unreadable { source, .. } => source.raw_os_error().unwrap_or(nix::libc::EIO),
        }
    }
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The user of this name or number.
///
/// # Errors
/// `Unknown` for everything that is neither an entry nor a base-10 uid below 4294967295.
pub fn user(spec: &str) -> Result<Account, AccountError> {
    let text = read_for(spec, PASSWD)?;
    let unknown = || AccountError::Unknown { kind: "user", name: spec.to_string(), file: PASSWD };
    user_in(&text, spec).ok_or_else(unknown)
}

/// The gid of the group of this name or number.
///
/// # Errors
/// As `user`.
pub fn group(spec: &str) -> Result<u32, AccountError> {
    let text = read_for(spec, GROUP)?;
    let unknown = || AccountError::Unknown { kind: "group", name: spec.to_string(), file: GROUP };
    group_in(&text, spec).ok_or_else(unknown)
}

/// What initgroups(3) would set: `gid` and every group that lists `user` as a member.
///
/// # Errors
/// `Unreadable`.
pub fn initial_groups(user: &str, gid: u32) -> Result<Vec<u32>, AccountError> {
    Ok(groups_in(&read(GROUP)?, user, gid))
}

/// The names of the groups that `gids` stand for, and of a user id; for showing and for
/// matching `@group` of the daemon's file.
pub fn group_names(gids: &[u32]) -> Vec<String> {
    let text = read(GROUP).unwrap_or_default();
    let entries = text.lines().filter_map(group_entry);
    entries.filter(|entry| gids.contains(&entry.gid)).map(|entry| entry.name.to_string()).collect()
}

/// The name of a uid, where the files have one.
pub fn user_name(uid: u32) -> Option<String> {
    let text = read(PASSWD).ok()?;
    text.lines().filter_map(passwd_entry).find(|account| account.uid == uid).and_then(|account| account.name)
}

/// A number needs no file, so one that is missing or not for us is no error then. One that cannot
/// be read now is: without it the same account would have no name and no home this time.
fn read_for(spec: &str, file: &'static str) -> Result<String, AccountError> {
    match read(file) {
        Err(AccountError::Unreadable { source, .. })
            if strict_id(spec).is_some()
                && matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
        {
            Ok(String::new())
        }
        read => read,
    }
}

fn read(file: &'static str) -> Result<String, AccountError> {
    fs::read(file)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|source| AccountError::Unreadable { file, source })
}

fn user_in(passwd: &str, spec: &str) -> Option<Account> {
    let mut entries = passwd.lines().filter_map(passwd_entry);
    if let Some(number) = strict_id(spec) {
        let bare = Account { uid: number, gid: None, name: None, home: None, shell: None };
        return Some(entries.find(|account| account.uid == number).unwrap_or(bare));
    }
    if !is_name(spec) {
        return None;
    }
    entries.find(|account| account.name.as_deref() == Some(spec))
}

fn group_in(group: &str, spec: &str) -> Option<u32> {
    if let Some(number) = strict_id(spec) {
        return Some(number);
    }
    if !is_name(spec) {
        return None;
    }
    group.lines().filter_map(group_entry).find(|entry| entry.name == spec).map(|entry| entry.gid)
}

fn groups_in(group: &str, user: &str, gid: u32) -> Vec<u32> {
    let mut gids = vec![gid];
    for entry in group.lines().filter_map(group_entry) {
        if entry.members.split(',').any(|member| member == user) && !gids.contains(&entry.gid) {
            gids.push(entry.gid);
        }
    }
    gids
}

/// A name cannot begin with a digit, a dash or a plus here, whatever the files say: it could
/// be read as a number by somebody else.
fn is_name(spec: &str) -> bool {
    let starts_well = spec.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well && spec.chars().all(|c| c.is_ascii_alphanumeric() || "_-.$".contains(c))
}

/// Base 10, no sign, no leading zero, and not 4294967295, which the kernel reads as "leave it".
fn strict_id(spec: &str) -> Option<u32> {
    let digits = !spec.is_empty() && spec.bytes().all(|b| b.is_ascii_digit());
    if !digits || (spec.len() > 1 && spec.starts_with('0')) {
        return None;
    }
    spec.parse().ok().filter(|id| *id != u32::MAX)
}

fn passwd_entry(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let _password = fields.next()?;
    let uid = strict_id(fields.next()?)?;
    let gid = strict_id(fields.next()?)?;
    let _gecos = fields.next()?;
    let path = |field: Option<&str>| field.filter(|text| !text.is_empty()).map(PathBuf::from);
    let home = path(fields.next());
    let shell = path(fields.next());
    Some(Account { uid, gid: Some(gid), name: Some(name.to_string()), home, shell })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn group_entry(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let _password = fields.next()?;
    let gid = strict_id(fields.next()?)?;
    Some(GroupEntry { name, gid, members: fields.next().unwrap_or("") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str =
        "root:x:0:0:root:/root:/bin/bash\nshop:x:1000:1001:,,,:/srv/shop:/bin/sh\n0day:x:5:5::/:\nbroken\n";
    const GROUPS: &str = "root:x:0:\nadm:x:4:syslog,shop\nshop:x:1001:\nweb:x:33:shop\nnoshop:x:9:shopper\n";

    #[test]
    fn names_and_numbers_are_found_exactly() {
        let shop = user_in(USERS, "shop").expect("shop");
        assert_eq!((shop.uid, shop.gid, shop.home), (1000, Some(1001), Some(PathBuf::from("/srv/shop"))));
        assert_eq!(user_in(USERS, "1000").expect("by number").name.as_deref(), Some("shop"));
        assert_eq!(user_in(USERS, "4242").expect("no entry").gid, None);
        assert_eq!(group_in(GROUPS, "web"), Some(33));
        assert_eq!(group_in(GROUPS, "77"), Some(77));
        assert_eq!(groups_in(GROUPS, "shop", 1001), [1001, 4, 33]);
    }

    #[test]
    fn what_once_ran_as_root_elsewhere_is_refused() {
        for bad in
            ["0day", "0x0", "-1", "+0", "4294967295", "4294967296", "", " root", "root ", "00", "ünï", "roo"]
        {
            assert_eq!(user_in(USERS, bad), None, "user {bad:?}");
            assert_eq!(group_in(GROUPS, bad), None, "group {bad:?}");
        }
    }
}
