//! `Graph`: the two graphs as indices, and the orders that follow from them.
//!
//! Refuses: judging names that nobody has (`check` does); here they are left out.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::name::UnitName;
use crate::graph::Node;

/// Need (`requires`) and order (`requires` + `after` + `before` reversed) over one set of units.
#[derive(Clone, Debug)]
pub struct Graph {
    names: Vec<UnitName>,
    index: BTreeMap<UnitName, usize>,
    /// For each unit what it requires.
    need: Vec<Vec<usize>>,
    wants: Vec<Vec<usize>>,
    /// For each unit what must be ready before it.
    earlier: Vec<Vec<usize>>,
}

impl Graph {
    /// Of several nodes with one name the first counts.
    pub fn of(nodes: &[Node]) -> Graph {
        let by_name: BTreeMap<&UnitName, &Node> = nodes.iter().rev().map(|node| (&node.name, node)).collect();
        let names: Vec<UnitName> = by_name.keys().map(|name| (*name).clone()).collect();
        let index: BTreeMap<UnitName, usize> = names.iter().cloned().zip(0..).collect();
        let known =
            |list: &[UnitName]| -> Vec<usize> { list.iter().filter_map(|n| index.get(n).copied()).collect() };
        let mut need = Vec::with_capacity(names.len());
        let mut wants = Vec::with_capacity(names.len());
        let mut earlier: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); names.len()];
        for (at, node) in by_name.values().enumerate() {
            let required = known(&node.requires);
            earlier[at].extend(required.iter().copied());
            earlier[at].extend(known(&node.after));
            for later in known(&node.before) {
                earlier[later].insert(at);
            }
            need.push(required);
            wants.push(known(&node.wants));
        }
        let earlier = earlier.into_iter().map(|set| set.into_iter().collect()).collect();
        Graph { names, index, need, wants, earlier }
    }

    /// All units, sorted.
    pub fn names(&self) -> &[UnitName] {
        &self.names
    }

    /// What `name` requires, in the order written.
    pub fn requires(&self, name: &UnitName) -> Vec<&UnitName> {
        self.named(&self.need, name)
    }

    pub fn wants(&self, name: &UnitName) -> Vec<&UnitName> {
        self.named(&self.wants, name)
    }

    fn named<'a>(&'a self, edges: &'a [Vec<usize>], name: &UnitName) -> Vec<&'a UnitName> {
        let targets = self.index.get(name).and_then(|at| edges.get(*at));
        targets.into_iter().flatten().map(|at| &self.names[*at]).collect()
    }

    pub(super) fn earlier(&self) -> &[Vec<usize>] {
        &self.earlier
    }

    /// Layers: a unit stands in the first layer that comes after all it waits for. Units on
    /// a cycle, and what waits for them, are in none.
    pub fn start_order(&self) -> Vec<Vec<UnitName>> {
        let mut open: Vec<usize> = self.earlier.iter().map(Vec::len).collect();
        let mut later: Vec<Vec<usize>> = vec![Vec::new(); self.names.len()];
        for (at, earlier) in self.earlier.iter().enumerate() {
            for first in earlier {
                later[*first].push(at);
            }
        }
        let mut layer: Vec<usize> = (0..self.names.len()).filter(|at| open[*at] == 0).collect();
        let mut layers = Vec::new();
        while !layer.is_empty() {
            let mut next = BTreeSet::new();
            for at in &layer {
                for waiting in &later[*at] {
                    open[*waiting] -= 1;
                    if open[*waiting] == 0 {
                        next.insert(*waiting);
                    }
                }
            }
            layers.push(layer.iter().map(|at| self.names[*at].clone()).collect());
            layer = next.into_iter().collect();
        }
        layers
    }

    /// The start order backwards.
    pub fn stop_order(&self) -> Vec<Vec<UnitName>> {
        let mut layers = self.start_order();
        layers.reverse();
        layers
    }

    /// Every unit that needs `name`, directly or through others, sorted; without `name`
    /// itself. This is what falls if it falls.
    pub fn dependents_of(&self, name: &UnitName) -> BTreeSet<UnitName> {
        let Some(start) = self.index.get(name).copied() else { return BTreeSet::new() };
        let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); self.names.len()];
        for (at, required) in self.need.iter().enumerate() {
            for target in required {
                dependents[*target].push(at);
            }
        }
        let mut seen = vec![false; self.names.len()];
        let mut waiting = vec![start];
        let mut found = BTreeSet::new();
        seen[start] = true;
        while let Some(at) = waiting.pop() {
            for dependent in &dependents[at] {
                if !seen[*dependent] {
                    seen[*dependent] = true;
                    found.insert(self.names[*dependent].clone());
                    waiting.push(*dependent);
                }
            }
        }
        found
    }
}
