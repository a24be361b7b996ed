//! The tag of a run: which unit and role it is, kept by the keeper for an engine that has
//! forgotten everything.
//!
//! Refuses: tags of an unknown form; such a run is reported, not guessed at.

use crate::base::name::UnitName;
use crate::engine::effect::Role;

/// `unit`, NUL, role. At most 64 + 1 + 16 bytes, below `keeper::wire::TAG_LEN_MAX`.
pub fn to_tag(unit: &UnitName, role: Role) -> Vec<u8> {
    let role = match role {
        Role::Main => "main".to_string(),
        Role::StartPre(index) => format!("start-pre {index}"),
        Role::StartPost(index) => format!("start-post {index}"),
        Role::StopPost(index) => format!("stop-post {index}"),
        Role::StopCommand => "stop".to_string(),
        Role::ReloadCommand => "reload".to_string(),
        Role::ReadyCheck => "ready".to_string(),
    };
    format!("{unit}\0{role}").into_bytes()
}

/// What `to_tag` wrote, by this build or another.
pub fn from_tag(tag: &[u8]) -> Option<(UnitName, Role)> {
    let (unit, role) = std::str::from_utf8(tag).ok()?.split_once('\0')?;
    let unit = UnitName::parse(unit).ok()?;
    let (word, index) = match role.split_once(' ') {
        Some((word, index)) => (word, Some(index.parse().ok()?)),
        None => (role, None),
    };
    let role = match (word, index) {
        ("main", None) => Role::Main,
        ("start-pre", Some(index)) => Role::StartPre(index),
        ("start-post", Some(index)) => Role::StartPost(index),
        ("stop-post", Some(index)) => Role::StopPost(index),
        ("stop", None) => Role::StopCommand,
        ("reload", None) => Role::ReloadCommand,
        ("ready", None) => Role::ReadyCheck,
        _ => return None,
    };
    Some((unit, role))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::wire::TAG_LEN_MAX;

    #[test]
    fn a_tag_says_what_it_was_made_from() {
        let unit = UnitName::parse(&"a".repeat(64)).expect("a name");
        let roles = [
            Role::Main,
            Role::StartPre(255),
            Role::StartPost(0),
            Role::StopPost(7),
            Role::StopCommand,
            Role::ReloadCommand,
            Role::ReadyCheck,
        ];
        for role in roles {
            let tag = to_tag(&unit, role);
            assert!(tag.len() <= TAG_LEN_MAX);
            assert_eq!(from_tag(&tag), Some((unit.clone(), role)));
        }
        for bad in
            [&b""[..], b"web", b"web\0", b"web\0main 1", b"web\0start-pre", b"Web\0main", b"\xff\0main"]
        {
            assert_eq!(from_tag(bad), None, "{bad:?}");
        }
    }
}
