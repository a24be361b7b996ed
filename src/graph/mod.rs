//! Need and order as two graphs; cycles as paths; start and stop order; what falls if this falls.
//!
//! Refuses: time and processes. Every walk is a loop, never a recursion: a chain of 10,000
//! units must not end the daemon.

pub mod check;
pub mod order;
pub mod picture;

pub use check::{GraphError, check};
pub use order::Graph;
pub use picture::{dot, tree};

use crate::base::name::UnitName;
use crate::unit::spec::UnitSpec;

/// A unit as the graphs see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: UnitName,
    pub requires: Vec<UnitName>,
    pub wants: Vec<UnitName>,
    pub after: Vec<UnitName>,
    pub before: Vec<UnitName>,
    pub conflicts: Vec<UnitName>,
}

impl Node {
    pub fn of(spec: &UnitSpec) -> Node {
        Node {
            name: spec.name.clone(),
            requires: spec.unit.requires.clone(),
            wants: spec.unit.wants.clone(),
            after: spec.unit.after.clone(),
            before: spec.unit.before.clone(),
            conflicts: spec.unit.conflicts.clone(),
        }
    }

    /// The names that stand under a key of [unit].
    pub fn names(&self, link: Link) -> &[UnitName] {
        match link {
            Link::Requires => &self.requires,
            Link::Wants => &self.wants,
            Link::After => &self.after,
            Link::Before => &self.before,
            Link::Conflicts => &self.conflicts,
        }
    }
}

/// How one unit names another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    Requires,
    Wants,
    After,
    Before,
    Conflicts,
}

impl Link {
    pub const ALL: [Link; 5] = [Link::Requires, Link::Wants, Link::After, Link::Before, Link::Conflicts];

    pub fn as_str(self) -> &'static str {
        match self {
            Link::Requires => "requires",
            Link::Wants => "wants",
            Link::After => "after",
            Link::Before => "before",
            Link::Conflicts => "conflicts",
        }
    }
}
