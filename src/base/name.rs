//! `UnitName`: the one form a unit's name may have.
//!
//! Refuses: anything that could be a path, an option or an escape (reliability A11).

use std::fmt;
use std::sync::Arc;

use crate::base::limits;

/// `[a-z0-9][a-z0-9_.@-]{0,63}`, without `..`. Cheap to clone; ordered, so that every
/// walk over units has one order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(Arc<str>);

/// Why a text is no unit name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no unit name: {why}")]
pub struct NameError {
    pub text: String,
    pub why: &'static str,
}

impl UnitName {
    /// # Errors
    /// Says which rule the text breaks.
    pub fn parse(text: &str) -> Result<UnitName, NameError> {
        let refuse = |why| Err(NameError { text: text.chars().take(80).collect(), why });
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text.len() > limits::UNIT_NAME_LEN_MAX {
            return refuse("it is longer than 64 characters");
        }
        let first = text.as_bytes()[0];
        if !(first.is_ascii_lowercase() || first.is_ascii_digit()) {
            return refuse("it must begin with a-z or 0-9");
        }
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.@-".contains(&b);
        if !text.bytes().all(fits) {
            return refuse("only a-z, 0-9 and _ . @ - are allowed");
        }
        if text.contains("..") {
            return refuse("`..` is not allowed");
        }
        Ok(UnitName(Arc::from(text)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_options_or_escapes_are_refused() {
        for bad in ["", "-rf", "..", "a..b", "a/b", "$(id)", "a b", "A", "ünï", ".x", "a\n", "a\0b"] {
            assert!(UnitName::parse(bad).is_err(), "{bad:?}");
        }
        assert!(UnitName::parse(&"a".repeat(65)).is_err());
        for good in ["a", "0day", "backend@3", "a.b-c_d", &"a".repeat(64)] {
            assert_eq!(UnitName::parse(good).map(|n| n.to_string()), Ok(good.to_string()));
        }
    }
}
