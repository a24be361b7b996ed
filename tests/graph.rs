//! The graph room against a naive oracle, on random graphs, and on sizes that would end a
//! recursive program.
//!
//! Refuses: files (`tests/diag.rs` has the cases with places).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use upright::base::name::UnitName;
use upright::graph::{Graph, GraphError, Link, Node, check, dot, tree};

fn name(number: usize) -> UnitName {
    UnitName::parse(&format!("u{number:05}")).expect("name")
}

/// How many random graphs a property is tried on; `CASES=100000` asks for the long run.
fn cases(usual: u32) -> u32 {
    std::env::var("CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn node(number: usize) -> Node {
    Node {
        name: name(number),
        requires: Vec::new(),
        wants: Vec::new(),
        after: Vec::new(),
        before: Vec::new(),
        conflicts: Vec::new(),
    }
}

fn add(node: &mut Node, link: Link, target: UnitName) {
    match link {
        Link::Requires => node.requires.push(target),
        Link::Wants => node.wants.push(target),
        Link::After => node.after.push(target),
        Link::Before => node.before.push(target),
        Link::Conflicts => node.conflicts.push(target),
    }
}

/// Up to 9 units and any links among them, to themselves, and to two that do not exist.
fn nodes() -> impl Strategy<Value = Vec<Node>> {
    (1..10_usize).prop_flat_map(|count| {
        let link = prop::sample::select(Link::ALL.to_vec());
        prop::collection::vec((0..count, link, 0..count + 2), 0..count * 2).prop_map(move |links| {
            let mut nodes: Vec<Node> = (0..count).map(node).collect();
            for (from, link, to) in links {
                add(&mut nodes[from], link, name(to));
            }
            nodes
        })
    })
}

/// `reach[a][b]`: from a over one or more edges to b (Warshall).
fn closure(count: usize, edges: &BTreeSet<(usize, usize)>) -> Vec<Vec<bool>> {
    let mut reach = vec![vec![false; count]; count];
    for (a, b) in edges {
        reach[*a][*b] = true;
    }
    for middle in 0..count {
        for a in 0..count {
            for b in 0..count {
                reach[a][b] |= reach[a][middle] && reach[middle][b];
            }
        }
    }
    reach
}

/// The edges of the two graphs as numbers, unknown names left out.
struct Oracle {
    count: usize,
    need: BTreeSet<(usize, usize)>,
    order: BTreeSet<(usize, usize)>,
}

impl Oracle {
    fn of(nodes: &[Node]) -> Oracle {
        let at = |wanted: &UnitName| nodes.iter().position(|node| node.name == *wanted);
        let mut need = BTreeSet::new();
        let mut order = BTreeSet::new();
        for (from, node) in nodes.iter().enumerate() {
            for target in node.requires.iter().filter_map(at) {
                need.insert((from, target));
                order.insert((from, target));
            }
            order.extend(node.after.iter().filter_map(at).map(|target| (from, target)));
            order.extend(node.before.iter().filter_map(at).map(|target| (target, from)));
        }
        Oracle { count: nodes.len(), need, order }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(3_000), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_graph_agrees_with_the_oracle(nodes in nodes()) {
        let oracle = Oracle::of(&nodes);
        let without_self: BTreeSet<(usize, usize)> = oracle.order.iter().copied().filter(|(a, b)| a != b).collect();
        let reach = closure(oracle.count, &without_self);
        let errors = check(&nodes, &BTreeSet::new());

        let on_cycles: BTreeSet<UnitName> = (0..oracle.count).filter(|at| reach[*at][*at]).map(name).collect();
        let mut told = BTreeSet::new();
        for error in &errors {
            if let GraphError::Cycle { path, members } = error {
                prop_assert!(told.is_disjoint(&members.iter().cloned().collect()));
                told.extend(members.iter().cloned());
                check_path(&oracle.order, path, members);
            }
        }
        prop_assert_eq!(told, on_cycles);

        let unknown = |link: Link| -> usize {
            nodes.iter().flat_map(|node| node.names(link)).filter(|to| **to >= name(oracle.count)).count()
        };
        for link in Link::ALL {
            let found = errors.iter().filter(|e| matches!(e, GraphError::Unknown { link: l, .. } if *l == link)).count();
            prop_assert_eq!(found, unknown(link));
        }
        let itself: usize = nodes.iter().map(|n| Link::ALL.iter().flat_map(|l| n.names(*l)).filter(|t| **t == n.name).count()).sum();
        let found = errors.iter().filter(|e| matches!(e, GraphError::Itself { .. })).count();
        prop_assert_eq!(found, itself);
    }

    #[test]
    fn orders_and_dependents_agree_with_the_oracle(nodes in nodes()) {
        let oracle = Oracle::of(&nodes);
        let graph = Graph::of(&nodes);
        let reach = closure(oracle.count, &oracle.order);
        let start = graph.start_order();
        let layer_of = |at: usize| start.iter().position(|layer| layer.contains(&name(at)));
        for at in 0..oracle.count {
            let blocked = (0..oracle.count).any(|other| reach[other][other] && (other == at || reach[at][other]));
            prop_assert_eq!(layer_of(at).is_none(), blocked);
        }
        for (later, earlier) in &oracle.order {
            if let (Some(later), Some(earlier)) = (layer_of(*later), layer_of(*earlier)) {
                prop_assert!(earlier < later);
            }
        }
        let mut stop = graph.stop_order();
        stop.reverse();
        prop_assert_eq!(stop, start);

        let needs = &closure(oracle.count, &oracle.need);
        for (fallen, unit) in graph.names().iter().enumerate() {
            let needs_it = |other: &usize| *other != fallen && needs[*other][fallen];
            let falls: BTreeSet<UnitName> = (0..oracle.count).filter(needs_it).map(name).collect();
            prop_assert_eq!(graph.dependents_of(unit), falls);
        }
    }

    #[test]
    fn the_pictures_show_every_unit(nodes in nodes()) {
        let text = tree(&nodes, |_| String::new());
        let graphviz = dot(&nodes, |_| "x\"y".into());
        for node in &nodes {
            prop_assert!(text.contains(node.name.as_str()));
            prop_assert!(graphviz.contains(node.name.as_str()));
        }
    }
}

/// A path is a closed walk over real edges, inside its members, and visits no unit twice.
fn check_path(order: &BTreeSet<(usize, usize)>, path: &[UnitName], members: &[UnitName]) {
    let number = |name: &UnitName| -> usize { name.as_str()[1..].parse().expect("number") };
    assert!(path.len() > 2, "{path:?}");
    assert_eq!(path.first(), path.last());
    for pair in path.windows(2) {
        assert!(order.contains(&(number(&pair[0]), number(&pair[1]))), "{path:?}");
        assert!(members.contains(&pair[0]), "{path:?}");
    }
    let inner: BTreeSet<&UnitName> = path[1..].iter().collect();
    assert_eq!(inner.len(), path.len() - 1, "{path:?}");
}

const MANY: usize = 10_000;

fn chain() -> Vec<Node> {
    let mut nodes: Vec<Node> = (0..MANY).map(node).collect();
    for (at, node) in nodes.iter_mut().enumerate().skip(1) {
        node.requires.push(name(at - 1));
    }
    nodes
}

#[test]
fn a_chain_of_ten_thousand_is_no_recursion() {
    let begun = Instant::now();
    let mut nodes = chain();
    assert_eq!(check(&nodes, &BTreeSet::new()), []);
    let graph = Graph::of(&nodes);
    assert_eq!(graph.start_order().len(), MANY);
    assert_eq!(graph.dependents_of(&name(0)).len(), MANY - 1);
    assert!(tree(&nodes, |_| String::new()).lines().count() >= MANY);
    nodes[0].requires.push(name(MANY - 1));
    let errors = check(&nodes, &BTreeSet::new());
    let [error @ GraphError::Cycle { path, members }] = errors.as_slice() else { panic!("{}", errors.len()) };
    assert_eq!((path.len(), members.len()), (MANY + 1, MANY));
    assert!(error.to_string().len() < 400, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn ten_thousand_unknown_names_are_told_soon() {
    let begun = Instant::now();
    let mut nodes: Vec<Node> = (0..MANY).map(node).collect();
    for node in &mut nodes {
        node.requires.push(UnitName::parse("databse").expect("name"));
    }
    assert_eq!(check(&nodes, &BTreeSet::new()).len(), MANY);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn a_cycle_is_printed_as_a_path() {
    let mut nodes: Vec<Node> = (1..4).map(node).collect();
    nodes[0].requires.push(name(2));
    nodes[1].after.push(name(3));
    nodes[0].after.push(name(9));
    nodes[2].requires.push(name(1));
    let errors = check(&nodes, &BTreeSet::from([name(9)]));
    let texts: Vec<String> = errors.iter().map(GraphError::to_string).collect();
    assert_eq!(texts, ["units wait for each other: u00001 → u00002 → u00003 → u00001"]);
}

#[test]
fn the_tree_draws_a_shared_subtree_once() {
    let unit = |text: &str, requires: &[&str], wants: &[&str]| {
        let names = |list: &[&str]| list.iter().map(|text| UnitName::parse(text).expect("name")).collect();
        Node {
            name: UnitName::parse(text).expect("name"),
            requires: names(requires),
            wants: names(wants),
            ..node(0)
        }
    };
    let nodes = [
        unit("backend", &["postgres", "redis"], &["mailer"]),
        unit("mailer", &["redis"], &[]),
        unit("postgres", &["disk"], &[]),
        unit("redis", &["disk"], &[]),
        unit("disk", &[], &[]),
        unit("lonely", &[], &[]),
    ];
    let text = tree(&nodes, |name| if name.as_str() == "redis" { "active".into() } else { String::new() });
    let expected = "\
backend
├── postgres
│   └── disk
├── redis  active
│   └── disk
└── mailer (wants)
    └── redis  active  (above)
lonely
";
    assert_eq!(text, expected);
    let expected = "\
digraph upright {
  rankdir=LR;
  node [shape=box];
  \"a\" [label=\"a\"];
  \"b\" [label=\"b\"];
  \"a\" -> \"b\" [style=solid];
}
";
    assert_eq!(dot(&[unit("b", &[], &[]), unit("a", &["b"], &[])], |_| String::new()), expected);
}
