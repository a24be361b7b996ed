//! `upright graph`: who needs whom, with states; as a tree or as Graphviz DOT.
//!
//! Refuses: endless trees. A unit's needs are shown once, and a circle is cut.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::types::{Unit, UnitList};
use crate::cli::args::GraphArgs;
use crate::cli::context::{Context, Fail, Form};
use crate::cli::render::{Look, escape_line, mark};

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawing {
    Tree,
    Dot,
}

impl GraphArgs {
    pub fn form(&self) -> Drawing {
        if self.dot { Drawing::Dot } else { Drawing::Tree }
    }
}

/// # Errors
/// The daemon cannot be asked.
pub fn run(context: &mut Context, drawing: Drawing) -> Result<u8, Fail> {
    let list: UnitList = context.client.get("/v1/units").map_err(|error| context.fail(error))?;
    match (context.form, drawing) {
        (Form::Json, _) => context.print_json(&list)?,
        (Form::Text, Drawing::Tree) => {
            let text = render_tree(&list, &context.look);
            context.print(&text)?;
        }
        (Form::Text, Drawing::Dot) => context.print(&render_dot(&list))?,
    }
    Ok(0)
}

/// Each unit that nobody needs, and under it what it needs.
pub fn render_tree(list: &UnitList, look: &Look) -> String {
    let units: BTreeMap<&str, &Unit> = list.units.iter().map(|unit| (unit.name.as_str(), unit)).collect();
    let needed: BTreeSet<&str> = list.units.iter().flat_map(needs).map(|(name, _)| name).collect();
    let mut tree = Tree { units: &units, look, shown: BTreeSet::new(), text: String::new() };
    for name in units.keys().filter(|name| !needed.contains(*name)) {
        tree.grow(name);
    }
    // Units that only need each other have no root; the first of each circle stands in.
    for name in units.keys() {
        if !tree.shown.contains(name) {
            tree.grow(name);
        }
    }
    tree.text
}

fn needs(unit: &Unit) -> impl Iterator<Item = (&str, &'static str)> {
    let requires = unit.requires.iter().map(|name| (name.as_str(), ""));
    let wants = unit.wants.iter().filter(|name| !unit.requires.contains(name));
    requires.chain(wants.map(|name| (name.as_str(), "  (wanted)")))
}

struct Tree<'l> {
    units: &'l BTreeMap<&'l str, &'l Unit>,
    look: &'l Look,
    shown: BTreeSet<&'l str>,
    text: String,
}

/// A line that is still to be written.
struct Twig<'l> {
    name: &'l str,
    note: &'static str,
    /// What stands before its own line, and before those under it.
    before: String,
    under: String,
}

impl<'l> Tree<'l> {
    /// With a stack of its own: a chain of 10,000 units must not use ours.
    fn grow(&mut self, root: &'l str) {
        let mut stack = vec![Twig { name: root, note: "", before: String::new(), under: String::new() }];
        while let Some(twig) = stack.pop() {
            self.write(&twig);
            let Some(unit) = self.units.get(twig.name).copied() else { continue };
            if !self.shown.insert(unit.name.as_str()) {
                continue;
            }
            let children: Vec<_> = needs(unit).collect();
            let last = children.len().saturating_sub(1);
            for (index, (name, note)) in children.into_iter().enumerate().rev() {
                let (branch, below) = if index == last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                stack.push(Twig {
                    name,
                    note,
                    before: format!("{}{branch}", twig.under),
                    under: format!("{}{below}", twig.under),
                });
            }
        }
    }

    fn write(&mut self, twig: &Twig<'l>) {
        let name = escape_line(twig.name);
        let line = match self.units.get(twig.name) {
            None => format!("{name}  (no such unit)"),
            Some(unit) => {
                let (symbol, style) = mark(&unit.state);
                let state = self.look.paint.with(style, &format!("{symbol} {}", escape_line(&unit.state)));
                let again = self.shown.contains(twig.name) && needs(unit).next().is_some();
                let above = if again { "  (see above)" } else { "" };
                format!("{name}  {state}{}{above}", twig.note)
            }
        };
        self.text.push_str(&format!("{}{line}\n", twig.before));
    }
}

/// DOT: a solid arrow needs, a dashed one wants, a dotted one only waits.
pub fn render_dot(list: &UnitList) -> String {
    let mut text = String::from("digraph upright {\n  rankdir=LR;\n  node [shape=box, style=rounded];\n");
    for unit in &list.units {
        let color = match unit.state.as_str() {
            "active" => "darkgreen",
            "failed" => "red",
            "degraded" | "backoff" | "waiting" => "orange",
            "activating" | "deactivating" => "blue",
            _ => "gray",
        };
        let name = quoted(&unit.name);
        // The backslash-n is DOT's own line break.
        let label = format!("\"{}\\n{}\"", inner(&unit.name), inner(&unit.state));
        text.push_str(&format!("  {name} [label={label}, color={color}];\n"));
    }
    for unit in &list.units {
        let arrows = [("solid", &unit.requires), ("dashed", &unit.wants), ("dotted", &unit.after)];
        let mut drawn = BTreeSet::new();
        for (style, names) in arrows {
            for name in names {
                if drawn.insert(name) {
                    let (from, to) = (quoted(&unit.name), quoted(name));
                    text.push_str(&format!("  {from} -> {to} [style={style}];\n"));
                }
            }
        }
    }
    text.push_str("}\n");
    text
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", inner(text))
}

fn inner(text: &str) -> String {
    escape_line(text).replace('\\', "\\\\").replace('"', "\\\"")
}
