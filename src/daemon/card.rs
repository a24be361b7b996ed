//! What a build says of itself when it is asked (`upright handshake`), and whether it can take
//! the place of the one that asks, and that one its place again.
//!
//! Refuses: guessing. What a build does not say, it cannot do.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::keeper::codec;
use crate::keeper::upgrade::{STATE_VERSION, STATE_VERSIONS_READ};
use crate::store::schema::{self, Schema};

/// The hidden command that prints the card.
pub const HANDSHAKE_WORD: &str = "handshake";

/// The first line; the number is that of the rules by which the others are read.
const HEAD: &str = "upright-build 1";

/// Longest version that is believed; two of them fit into an upgrade's note.
const VERSION_BYTES_MAX: usize = 40;

/// A build, as far as it matters to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    pub version: String,
    /// Of the talk between keeper and engine.
    pub wire: u8,
    /// Of the keeper's state: what it writes, what it reads.
    pub state: u8,
    pub states_read: RangeInclusive<u8>,
    /// What it makes of a store.
    pub schema: Schema,
}

/// Why a build cannot take our place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Last part of the answer's code.
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
}

impl Card {
    pub fn of_this_build() -> Card {
        Card {
            version: env!("CARGO_PKG_VERSION").to_string(),
            wire: codec::VERSION,
            state: STATE_VERSION,
            states_read: STATE_VERSIONS_READ,
            schema: schema::of_this_build(),
        }
    }

    pub fn to_text(&self) -> String {
        let (first, last) = (self.states_read.start(), self.states_read.end());
        format!(
            "{HEAD}\nversion {}\nwire {}\nkeeper-state {}\nkeeper-states-read {first} {last}\nschema {}\n\
             schema-compatible-from {}\n",
            self.version, self.wire, self.state, self.schema.version, self.schema.compatible_from
        )
    }

    /// Unknown lines are of newer builds, and say what only those ask for.
    pub fn parse(text: &str) -> Option<Card> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return None;
        }
        let said: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).collect();
        let version = *said.get("version")?;
        let plain = |c: char| c.is_ascii_graphic();
        if version.is_empty() || version.len() > VERSION_BYTES_MAX || !version.chars().all(plain) {
            return None;
        }
        let (first, last) = said.get("keeper-states-read")?.split_once(' ')?;
        Some(Card {
            version: version.to_string(),
            wire: said.get("wire")?.parse().ok()?,
            state: said.get("keeper-state")?.parse().ok()?,
            states_read: first.parse().ok()?..=last.parse().ok()?,
            schema: Schema {
                version: said.get("schema")?.parse().ok()?,
                compatible_from: said.get("schema-compatible-from")?.parse().ok()?,
            },
        })
    }

    /// Whether `next` can go on with what this build has, `store` being the schema in use, and
    /// this build with what `next` makes of it: without a way back there is no upgrade.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check_successor(&self, store: Schema, next: &Card) -> Result<(), Refused> {
        let (ours, theirs) = (&self.version, &next.version);
        let refused = |what: String| {
            let help = "stop the daemon and start the new version; its services are restarted by that";
            let message = format!("cannot upgrade from {ours} to {theirs} while services run: {what}");
            Err(Refused { code: "incompatible", message, help: Some(help.to_string()) })
        };
        if next.wire != self.wire {
            return refused(format!(
                "keeper and engine talk version {} in it, {} here",
                next.wire, self.wire
            ));
        }
        if !next.states_read.contains(&self.state) {
            return refused(format!("it does not read version {} of the keeper's state", self.state));
        }
        if !store.is_open_to(next.schema.version) {
            let known = next.schema.version;
            return refused(format!("it knows schema {known} of the store, and this is {}", store.version));
        }
        if next.schema.version > store.version && !next.schema.is_open_to(self.schema.version) {
            let made = next.schema.version;
            return refused(format!(
                "it gives the store schema {made}, and {ours} could not go back to that"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(version: i64, compatible_from: i64) -> Card {
        Card { schema: Schema { version, compatible_from }, ..Card::of_this_build() }
    }

    #[test]
    fn a_card_reads_back_and_bad_ones_are_none() {
        let card = Card::of_this_build();
        let text = card.to_text();
        assert_eq!(Card::parse(&text), Some(card.clone()));
        assert_eq!(Card::parse(&format!("{text}future 7\n")), Some(card));
        for line in text.lines() {
            assert_eq!(Card::parse(&text.replace(line, "")), None, "without {line}");
        }
        assert_eq!(Card::parse(&text.replace("wire 1", "wire 1000")), None);
        assert_eq!(Card::parse("error: unrecognized subcommand\n"), None);
    }

    #[test]
    fn there_is_no_upgrade_without_a_way_back() {
        let store = |version, compatible_from| Schema { version, compatible_from };
        let fits = |ours: &Card, found, next: &Card| ours.check_successor(found, next).is_ok();
        // The same, an added column, and back to the build before it.
        assert!(fits(&card(2, 2), store(2, 2), &card(2, 2)));
        assert!(fits(&card(2, 2), store(2, 2), &card(3, 2)));
        assert!(fits(&card(3, 2), store(3, 2), &card(2, 2)));
        // A build of schema 2 on a store of schema 3.
        assert!(fits(&card(2, 2), store(3, 2), &card(3, 2)));
        assert!(fits(&card(2, 2), store(3, 2), &card(4, 2)));
        // What ours could not read afterwards, and what the next one cannot.
        assert!(!fits(&card(2, 2), store(2, 2), &card(3, 3)));
        assert!(!fits(&card(2, 2), store(3, 2), &card(4, 3)));
        assert!(!fits(&card(3, 3), store(3, 3), &card(2, 2)));
        let other_talk = Card { wire: 200, ..card(2, 2) };
        let blind = Card { states_read: 200..=201, ..card(2, 2) };
        for next in [other_talk, blind] {
            let refused = card(2, 2).check_successor(store(2, 2), &next).expect_err("it cannot");
            assert!(refused.message.starts_with("cannot upgrade from"), "{}", refused.message);
        }
    }
}
