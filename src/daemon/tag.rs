//! The tag of a run: its unit, its role, where its words begin; kept by the keeper for an
//! engine that has forgotten everything.
//!
//! Refuses: tags of an unknown form; such a run is reported, not guessed at.

use crate::base::name::UnitName;
use crate::engine::effect::Role;

/// What a tag says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    pub unit: UnitName,
    pub role: Role,
    /// Offset in the spool of stdout: `readiness.log` looks from here on, also after an
    /// engine crash, so that an older run's words are not taken for this one's.
    pub log_from: u64,
}

impl Tag {
    /// `unit`, NUL, role, NUL, offset in hexadecimal. At most 64 + 1 + 14 + 1 + 16 bytes, which
    /// is `keeper::wire::TAG_LEN_MAX`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let role = match self.role {
            Role::Main => "main".to_string(),
            Role::StartPre(index) => format!("start-pre {index}"),
            Role::StartPost(index) => format!("start-post {index}"),
            Role::StopPost(index) => format!("stop-post {index}"),
            Role::StopCommand => "stop".to_string(),
            Role::ReloadCommand => "reload".to_string(),
            Role::ReadyCheck => "ready".to_string(),
            Role::HealthCheck => "health".to_string(),
            Role::Resync => "resync".to_string(),
        };
        format!("{}\0{role}\0{:x}", self.unit, self.log_from).into_bytes()
    }

    /// What `to_bytes` wrote, by this build or another.
    pub fn from_bytes(bytes: &[u8]) -> Option<Tag> {
        let mut parts = std::str::from_utf8(bytes).ok()?.splitn(3, '\0');
        let unit = UnitName::parse(parts.next()?).ok()?;
        let role = role_of(parts.next()?)?;
        let log_from = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Tag { unit, role, log_from })
    }
}

fn role_of(text: &str) -> Option<Role> {
    let (word, index) = match text.split_once(' ') {
        Some((word, index)) => (word, Some(index.parse().ok()?)),
        None => (text, None),
    };
    match (word, index) {
        ("main", None) => Some(Role::Main),
        ("start-pre", Some(index)) => Some(Role::StartPre(index)),
        ("start-post", Some(index)) => Some(Role::StartPost(index)),
        ("stop-post", Some(index)) => Some(Role::StopPost(index)),
        ("stop", None) => Some(Role::StopCommand),
        ("reload", None) => Some(Role::ReloadCommand),
        ("ready", None) => Some(Role::ReadyCheck),
        ("health", None) => Some(Role::HealthCheck),
        ("resync", None) => Some(Role::Resync),
        _ => None,
    }
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
            Role::StartPost(255),
            Role::StopPost(7),
            Role::StopCommand,
            Role::ReloadCommand,
            Role::ReadyCheck,
            Role::HealthCheck,
            Role::Resync,
        ];
        for role in roles {
            let tag = Tag { unit: unit.clone(), role, log_from: u64::MAX };
            assert!(tag.to_bytes().len() <= TAG_LEN_MAX);
            assert_eq!(Tag::from_bytes(&tag.to_bytes()), Some(tag));
        }
        let bad =
            [&b""[..], b"web", b"web\0main", b"web\0main 1\x000", b"web\0start-pre\x000", b"Web\0main\x000"];
        for bad in bad {
            assert_eq!(Tag::from_bytes(bad), None, "{}", bad.escape_ascii());
        }
    }
}
