//! The text of one unit file → its specs and everything that is wrong with it.
//!
//! Refuses: whether other units exist (`graph::check`).

use toml::de::{DeTable, DeValue};

use crate::base::name::UnitName;
use crate::unit::diag::{Diagnostic, Lines, Place};
use crate::unit::keys;
use crate::unit::reader::{Reader, Section};
use crate::unit::spec::UnitSpec;

/// What one file gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// One; N for a template of N instances; none when a diagnostic is an error.
    pub specs: Vec<UnitSpec>,
    /// In the order of the text.
    pub diagnostics: Vec<Diagnostic>,
    /// Where other units are named, so that what `graph` finds has a place.
    pub references: Vec<Reference>,
}

/// One mention of another unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `requires`, `wants`, `after`, `before` or `conflicts`.
    pub key: &'static str,
    pub name: UnitName,
    pub place: Place,
}

/// Reads one unit file. `file` is what the user calls it, `stem` its name without `.toml`,
/// which is the unit's name. Never panics; time and memory are bounded by the size of the
/// text, which is limited (`limits::UNIT_FILE_BYTES_MAX`).
pub fn parse(file: &str, stem: &str, text: &str) -> Parsed {
    let (mut reader, tree) = Reader::open(keys::UNIT, file, text);
    let mut specs = Vec::new();
    match UnitName::parse(stem) {
        Ok(name) => specs = all_instances(&mut reader, &tree, &name, text.len()),
        Err(error) => reader.error_of_file("bad-name", format!("the file's stem names the unit: {error}")),
    }
    if reader.has_errors() {
        specs.clear();
    }
    let references = references(&tree, text, specs.len());
    Parsed { specs, diagnostics: reader.finish(), references }
}

/// Most bytes of specs from one file: each instance is a copy of about the text's size.
const INSTANCE_BYTES_MAX: usize = 32 << 20;

fn all_instances(
    reader: &mut Reader<'_>,
    tree: &DeTable<'_>,
    stem: &UnitName,
    bytes: usize,
) -> Vec<UnitSpec> {
    let service = section(tree, "service");
    let count = reader.need(service, "instances", Reader::count).unwrap_or(1);
    if count <= 1 {
        if let Some(value) = first_instance_word(tree) {
            let message = "`{instance}` is replaced only where `instances` is more than 1".to_string();
            reader.warning("instance-unused", value, message, None);
        }
        return reader.spec(tree, stem.clone()).into_iter().collect();
    }
    let mut specs = Vec::new();
    if bytes.saturating_mul(count as usize) > INSTANCE_BYTES_MAX {
        reader.error_of_file("too-large", format!("the file is too large for {count} instances"));
        return specs;
    }
    for number in 1..=count {
        let name = match UnitName::parse(&format!("{stem}@{number}")) {
            Ok(name) => name,
            Err(error) => {
                reader.error_of_file("bad-name", format!("cannot name instance {number}: {error}"));
                break;
            }
        };
        reader.instance = Some(number);
        specs.extend(reader.spec(tree, name));
    }
    specs
}

/// A section of the tree by its name in the key table.
pub(super) fn section<'a, 't>(tree: &'a DeTable<'t>, name: &'static str) -> Section<'a, 't> {
    Section { name, table: tree.get(name).and_then(|value| value.get_ref().as_table()) }
}

/// The span of the first string that holds `{instance}`. Depth is bounded by the parser (80).
fn first_instance_word(tree: &DeTable<'_>) -> Option<std::ops::Range<usize>> {
    let mut waiting: Vec<&toml::Spanned<DeValue<'_>>> = tree.values().collect();
    let mut first: Option<std::ops::Range<usize>> = None;
    while let Some(value) = waiting.pop() {
        match value.get_ref() {
            DeValue::String(text) if text.contains("{instance}") => {
                let span = value.span();
                if first.as_ref().is_none_or(|found| span.start < found.start) {
                    first = Some(span);
                }
            }
            DeValue::Array(items) => waiting.extend(items.iter()),
            DeValue::Table(table) => waiting.extend(table.values()),
            DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) => {}
            DeValue::Boolean(_) | DeValue::Datetime(_) => {}
        }
    }
    first
}

/// In a template each instance may name another unit: `"db@{instance}"`.
fn references(tree: &DeTable<'_>, text: &str, instances: usize) -> Vec<Reference> {
    let lines = Lines::of(text);
    let unit = section(tree, "unit");
    let mut found = Vec::new();
    for key in ["requires", "wants", "after", "before", "conflicts"] {
        let items = unit.value(key).and_then(|value| value.get_ref().as_array());
        for item in items.into_iter().flatten() {
            let word = item.get_ref().as_str().unwrap_or_default();
            let many = if word.contains("{instance}") { instances } else { 1 };
            for number in 1..=many {
                if let Ok(name) = UnitName::parse(&word.replace("{instance}", &number.to_string())) {
                    found.push(Reference { key, name, place: lines.place(item.span()) });
                }
            }
        }
    }
    found
}
