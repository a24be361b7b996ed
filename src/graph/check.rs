//! What is wrong between units: names that nobody has, units that wait for themselves,
//! cycles as whole paths. And templates: a name that means all its instances.
//!
//! Refuses: what is wrong inside a file (`unit::parse`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use crate::base::name::UnitName;
use crate::graph::{Graph, Link, Node};
use crate::unit::foreign::nearest;
use crate::unit::spec::UnitSpec;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GraphError {
    /// No unit has this name. An error for `requires` and `wants`, else a warning.
    Unknown { unit: UnitName, link: Link, name: UnitName, meant: Option<UnitName> },
    /// A unit names itself.
    Itself { unit: UnitName, link: Link },
    /// A unit names another one under two links that exclude each other.
    Contradiction { unit: UnitName, name: UnitName, link: Link },
    /// `path` begins and ends with the same unit. `members`: every unit that cannot be
    /// ordered because of this knot, sorted.
    Cycle { path: Vec<UnitName>, members: Vec<UnitName> },
}

impl GraphError {
    /// The units may run nevertheless.
    pub fn is_warning(&self) -> bool {
        match self {
            GraphError::Unknown { link, .. } => match link {
                Link::Requires | Link::Wants => false,
                Link::After | Link::Before | Link::Conflicts => true,
            },
            GraphError::Itself { .. } | GraphError::Contradiction { .. } | GraphError::Cycle { .. } => false,
        }
    }

    pub fn help(&self) -> Option<String> {
        match self {
            GraphError::Unknown { meant, .. } => meant.as_ref().map(|name| format!("did you mean `{name}`?")),
            GraphError::Itself { .. } => Some("drop it".into()),
            GraphError::Contradiction { .. } => Some("keep one of them".into()),
            GraphError::Cycle { .. } => Some("one of these must not wait for the next".into()),
        }
    }
}

impl fmt::Display for GraphError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GraphError::Unknown { link, name, .. } => {
                write!(f, "`{}` names `{name}`, and no unit has that name", link.as_str())
            }
            GraphError::Itself { unit, link } => {
                write!(f, "`{}` of `{unit}` names `{unit}` itself", link.as_str())
            }
            GraphError::Contradiction { unit, name, link } => {
                write!(f, "`{unit}` conflicts with `{name}`, which also stands in `{}`", link.as_str())
            }
            GraphError::Cycle { path, .. } => {
                let names: Vec<&str> = path.iter().map(UnitName::as_str).collect();
                write!(f, "units wait for each other: {}", shortened(&names).join(" → "))
            }
        }
    }
}

/// A path of thousands is cut in the middle.
fn shortened<'a>(names: &[&'a str]) -> Vec<&'a str> {
    if names.len() <= 20 {
        return names.to_vec();
    }
    let mut short = names[..10].to_vec();
    short.push("…");
    short.extend(&names[names.len() - 9..]);
    short
}

/// The stem of an instance: `backend@2` → `backend`.
fn template_of(name: &UnitName) -> Option<&str> {
    name.as_str().rsplit_once('@').map(|(stem, _)| stem)
}

/// Replaces each name of a template by the names of all its instances, in the links and in
/// the edges of `dependency`. A name that a plain unit has means that unit.
pub fn expand(specs: &mut [UnitSpec]) {
    let plain: BTreeSet<UnitName> = specs.iter().map(|spec| spec.name.clone()).collect();
    let mut templates: BTreeMap<String, BTreeMap<u32, UnitName>> = BTreeMap::new();
    for spec in specs.iter() {
        if let (Some(number), Some(stem)) = (spec.service.instance, template_of(&spec.name)) {
            templates.entry(stem.to_string()).or_default().insert(number, spec.name.clone());
        }
    }
    if templates.is_empty() {
        return;
    }
    let instances = |name: &UnitName| -> Vec<UnitName> {
        let found = templates.get(name.as_str()).filter(|_| !plain.contains(name));
        found.map_or_else(|| vec![name.clone()], |all| all.values().cloned().collect())
    };
    for spec in specs {
        let unit = &mut spec.unit;
        for list in
            [&mut unit.requires, &mut unit.wants, &mut unit.after, &mut unit.before, &mut unit.conflicts]
        {
            *list = list.iter().flat_map(&instances).collect();
        }
        spec.dependency = std::mem::take(&mut spec.dependency)
            .into_iter()
            .flat_map(|(name, edge)| instances(&name).into_iter().map(move |name| (name, edge)))
            .collect();
    }
}

/// How many unknown names are compared with all names: each costs a walk over up to 10,000.
const GUESSES_MAX: usize = 50;

/// Everything that is wrong between these units, unit by unit, cycles last. `also` holds
/// names that exist but are not among the nodes (their files are broken, or were not read).
pub fn check(nodes: &[Node], also: &BTreeSet<UnitName>) -> Vec<GraphError> {
    let names: BTreeSet<&UnitName> = nodes.iter().map(|node| &node.name).chain(also).collect();
    // An instance of a template whose file is broken, or was not read.
    let hidden = |name: &UnitName| {
        template_of(name).and_then(|stem| UnitName::parse(stem).ok()).is_some_and(|stem| also.contains(&stem))
    };
    let mut errors = Vec::new();
    for node in nodes {
        for link in Link::ALL {
            for name in node.names(link) {
                if *name == node.name {
                    errors.push(GraphError::Itself { unit: node.name.clone(), link });
                } else if !names.contains(name) && !hidden(name) {
                    let guess = errors.len() < GUESSES_MAX;
                    let meant = if guess { meant(name, &names) } else { None };
                    errors.push(GraphError::Unknown {
                        unit: node.name.clone(),
                        link,
                        name: name.clone(),
                        meant,
                    });
                }
            }
        }
        for name in &node.conflicts {
            let wanted =
                [Link::Requires, Link::Wants].into_iter().find(|link| node.names(*link).contains(name));
            if let Some(link) = wanted {
                errors.push(GraphError::Contradiction { unit: node.name.clone(), name: name.clone(), link });
            }
        }
    }
    errors.extend(cycles(nodes));
    errors
}

/// The name that an unknown one was meant to be: `db.service` is `db`.
fn meant(name: &UnitName, names: &BTreeSet<&UnitName>) -> Option<UnitName> {
    let text = name.as_str();
    let bare = [".service", ".toml"].iter().find_map(|end| text.strip_suffix(end)).unwrap_or(text);
    let near = nearest(bare, names.iter().map(|name| name.as_str()))?;
    UnitName::parse(near).ok()
}

/// One error for each knot of the order graph, with a shortest path round it. A unit that
/// names itself is no knot.
pub fn cycles(nodes: &[Node]) -> Vec<GraphError> {
    let graph = Graph::of(nodes);
    let mut found: Vec<GraphError> = Vec::new();
    for knot in knots(graph.earlier()) {
        let members: Vec<UnitName> = knot.iter().map(|at| graph.names()[*at].clone()).collect();
        let path = shortest_round(graph.earlier(), &knot);
        let path = path.into_iter().map(|at| graph.names()[at].clone()).collect();
        found.push(GraphError::Cycle { path, members });
    }
    found
}

/// The strongly connected components of two or more nodes, each sorted, by smallest member.
/// Tarjan's algorithm with its stack on the heap.
fn knots(edges: &[Vec<usize>]) -> Vec<Vec<usize>> {
    const UNSEEN: usize = usize::MAX;
    let count = edges.len();
    let mut number = vec![UNSEEN; count];
    let mut low = vec![0; count];
    let mut on_stack = vec![false; count];
    let mut stack: Vec<usize> = Vec::new();
    let mut next_number = 0;
    let mut knots = Vec::new();
    for root in 0..count {
        if number[root] != UNSEEN {
            continue;
        }
        // (node, index of its next edge)
        let mut calls: Vec<(usize, usize)> = vec![(root, 0)];
        while let Some((node, edge)) = calls.pop() {
            if edge == 0 {
                number[node] = next_number;
                low[node] = next_number;
                next_number += 1;
                stack.push(node);
                on_stack[node] = true;
            }
            if let Some(target) = edges[node].get(edge).copied() {
                calls.push((node, edge + 1));
                if number[target] == UNSEEN {
                    calls.push((target, 0));
                } else if on_stack[target] {
                    low[node] = low[node].min(number[target]);
                }
                continue;
            }
            if let Some((caller, _)) = calls.last() {
                low[*caller] = low[*caller].min(low[node]);
            }
            if low[node] == number[node] {
                let mut knot = Vec::new();
                while let Some(member) = stack.pop() {
                    on_stack[member] = false;
                    knot.push(member);
                    if member == node {
                        break;
                    }
                }
                if knot.len() > 1 {
                    knot.sort_unstable();
                    knots.push(knot);
                }
            }
        }
    }
    knots.sort();
    knots
}

/// A shortest way from the smallest member back to itself, inside the knot: `a, b, c, a`.
fn shortest_round(edges: &[Vec<usize>], knot: &[usize]) -> Vec<usize> {
    let Some(start) = knot.first().copied() else { return Vec::new() };
    let inside: BTreeSet<usize> = knot.iter().copied().collect();
    let mut came_from: BTreeMap<usize, usize> = BTreeMap::new();
    let mut waiting = VecDeque::from([start]);
    while let Some(at) = waiting.pop_front() {
        for target in edges[at].iter().copied().filter(|target| inside.contains(target) && *target != at) {
            if target == start {
                let mut path = vec![start, at];
                let mut step = at;
                while let Some(previous) = came_from.get(&step) {
                    path.push(*previous);
                    step = *previous;
                }
                if at == start {
                    path.pop();
                }
                path.reverse();
                return path;
            }
            if target != start && !came_from.contains_key(&target) {
                came_from.insert(target, at);
                waiting.push_back(target);
            }
        }
    }
    Vec::new()
}
