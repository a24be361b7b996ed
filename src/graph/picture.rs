//! The graph for people: a tree in text, or Graphviz.
//!
//! Refuses: run state; the caller adds it through `note`.

use std::collections::BTreeSet;

use crate::base::name::UnitName;
use crate::graph::{Graph, Link, Node};

/// Deepest level drawn: beyond it nobody reads, and a chain of 10,000 would indent 40,000 columns.
const DEPTH_MAX: usize = 64;

/// One tree for each unit that no other needs or wants; below a unit what it requires, then
/// what it wants. A subtree is drawn once; where it comes again, `(above)`. `note` gives the
/// words behind a name, or an empty string.
pub fn tree(nodes: &[Node], note: impl Fn(&UnitName) -> String) -> String {
    let graph = Graph::of(nodes);
    let mut inner: BTreeSet<&UnitName> = BTreeSet::new();
    for name in graph.names() {
        inner.extend(graph.requires(name));
        inner.extend(graph.wants(name));
    }
    let mut drawn: BTreeSet<UnitName> = BTreeSet::new();
    let mut out = String::new();
    let roots = graph.names().iter().filter(|name| !inner.contains(name));
    for name in roots.chain(graph.names()) {
        // The second pass finds only what hangs on a cycle: everything else is drawn.
        if !drawn.contains(name) {
            draw(&graph, name, &note, &mut drawn, &mut out);
        }
    }
    out
}

/// One line that is still to be drawn.
struct Line {
    name: UnitName,
    /// `None` for a root.
    link: Option<Link>,
    indent: String,
    depth: usize,
    last: bool,
}

fn draw(
    graph: &Graph,
    root: &UnitName,
    note: &impl Fn(&UnitName) -> String,
    drawn: &mut BTreeSet<UnitName>,
    out: &mut String,
) {
    let mut lines =
        vec![Line { name: root.clone(), link: None, indent: String::new(), depth: 0, last: true }];
    while let Some(line) = lines.pop() {
        let branch = match (line.link.is_some(), line.last) {
            (false, _) => "",
            (true, true) => "└── ",
            (true, false) => "├── ",
        };
        out.push_str(&format!("{}{branch}{}", line.indent, line.name));
        if line.link == Some(Link::Wants) {
            out.push_str(" (wants)");
        }
        let note = note(&line.name);
        if !note.is_empty() {
            out.push_str(&format!("  {note}"));
        }
        let mut children: Vec<(&UnitName, Link)> =
            graph.requires(&line.name).into_iter().map(|name| (name, Link::Requires)).collect();
        for name in graph.wants(&line.name) {
            if !children.iter().any(|(child, _)| *child == name) {
                children.push((name, Link::Wants));
            }
        }
        let again = !drawn.insert(line.name.clone());
        let hidden = !children.is_empty() && (again || line.depth >= DEPTH_MAX);
        out.push_str(if hidden && again {
            "  (above)\n"
        } else if hidden {
            "  …\n"
        } else {
            "\n"
        });
        if hidden {
            continue;
        }
        let below = match (line.link.is_some(), line.last) {
            (false, _) => "",
            (true, true) => "    ",
            (true, false) => "│   ",
        };
        let indent = format!("{}{below}", line.indent);
        for (at, (name, link)) in children.iter().enumerate().rev() {
            lines.push(Line {
                name: (*name).clone(),
                link: Some(*link),
                indent: indent.clone(),
                depth: line.depth + 1,
                last: at + 1 == children.len(),
            });
        }
    }
}

/// Graphviz: `requires` solid, `wants` dashed, order only dotted. `note` as in `tree`.
pub fn dot(nodes: &[Node], note: impl Fn(&UnitName) -> String) -> String {
    let mut out = String::from("digraph upright {\n  rankdir=LR;\n  node [shape=box];\n");
    let mut sorted: Vec<&Node> = nodes.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for node in &sorted {
        let note = note(&node.name).replace(['"', '\\', '\n'], " ");
        let label = if note.is_empty() { node.name.to_string() } else { format!("{}\\n{note}", node.name) };
        out.push_str(&format!("  \"{}\" [label=\"{label}\"];\n", node.name));
    }
    for node in &sorted {
        for link in Link::ALL {
            for name in node.names(link) {
                let (from, to, look) = match link {
                    Link::Requires => (&node.name, name, "style=solid"),
                    Link::Wants => (&node.name, name, "style=dashed"),
                    Link::After => (&node.name, name, "style=dotted"),
                    Link::Before => (name, &node.name, "style=dotted"),
                    Link::Conflicts => (&node.name, name, "style=dashed, color=red, dir=none"),
                };
                out.push_str(&format!("  \"{from}\" -> \"{to}\" [{look}];\n"));
            }
        }
    }
    out.push_str("}\n");
    out
}
