//! JSON Schema (2020-12) of the files, made from the key table that the reader uses.
//!
//! Refuses: knowledge of its own. What the table does not say is not in the schema.

use serde_json::{Map, Value, json};

use crate::unit::keys::{self, Dialect, InForce, Key, Kind};

/// The schema of a unit file.
pub fn schema() -> Value {
    of_dialect(&keys::UNIT, "Upright unit file", &["service"])
}

/// The schema of `upright.toml`.
pub fn daemon_schema() -> Value {
    of_dialect(&keys::DAEMON, "Upright daemon file (upright.toml)", &[])
}

fn of_dialect(dialect: &Dialect, title: &str, required: &[&str]) -> Value {
    let mut properties = Map::new();
    for section in dialect.sections() {
        let table = table(dialect, section);
        match section.strip_suffix(".*") {
            Some(name) => {
                properties.insert(name.into(), json!({"type": "object", "additionalProperties": table}));
            }
            None => {
                properties.insert(section.into(), table);
            }
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn table(dialect: &Dialect, section: &str) -> Value {
    let mut properties = Map::new();
    for key in dialect.section_keys(section) {
        properties.insert(key.name.into(), property(key));
    }
    let mut table = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if section == "service" {
        table["required"] = json!(["command"]);
    }
    table
}

fn property(key: &Key) -> Value {
    let mut property = of_kind(key.kind);
    let doc = match key.in_force {
        InForce::Yes => key.doc.to_string(),
        InForce::NotYet => format!("{} (Not in force yet.)", key.doc),
    };
    property["description"] = json!(doc);
    // An editor shows nothing of it; a tool can tell what a change will cost.
    property["x-upright-takes"] = json!(key.takes.as_str());
    if let Some(default) = key.default.and_then(default_json) {
        property["default"] = default;
    }
    property
}

/// A default of the table as JSON.
fn default_json(toml_text: &str) -> Option<Value> {
    let value: toml::Table = toml::from_str(&format!("value = {toml_text}")).ok()?;
    serde_json::to_value(value.get("value")?).ok()
}

fn of_kind(kind: Kind) -> Value {
    let text = || json!({"type": "string"});
    let list = |item: Value| json!({"type": "array", "items": item});
    let like = |pattern: &str| json!({"type": "string", "pattern": pattern});
    let words = || json!({"type": "array", "items": {"type": "string"}, "minItems": 1});
    let command = || json!({"anyOf": [words(), {"type": "string", "minLength": 1}]});
    let duration = || like(r"^\s*(0|([0-9.]+\s*[a-z]+\s*)+)\s*$");
    let size = || json!({"anyOf": [like(r"^\s*[0-9.]+\s*([kKmMgGtTpP]?i?[bB]?)\s*$"), {"const": 0}]});
    let limit = |other: Value| json!({"anyOf": [other, {"enum": ["infinity", "unlimited"]}]});
    match kind {
        Kind::Text | Kind::Regex | Kind::Signal => text(),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Integer(low, high) => json!({"type": "integer", "minimum": low, "maximum": high}),
        Kind::Duration => duration(),
        Kind::Timeout => json!({"anyOf": [duration(), {"enum": ["infinity", "unlimited"]}]}),
        Kind::Durations => {
            json!({"anyOf": [{"type": "array", "items": duration(), "minItems": 1}, duration()]})
        }
        Kind::Size => size(),
        Kind::SizeLimit => limit(size()),
        Kind::CountLimit => limit(json!({"type": "integer", "minimum": 0})),
        Kind::Percent(_) => like(r"^\s*[0-9]+\s*%$"),
        Kind::Choice(choices) => json!({"enum": choices}),
        Kind::Words => list(text()),
        Kind::UnitNames => list(json!({"type": "string", "pattern": "^[a-z0-9][a-z0-9_.@-]{0,63}$"})),
        Kind::Command => command(),
        Kind::CommandOrNone => json!({"anyOf": [list(text()), {"type": "string", "minLength": 1}]}),
        Kind::Commands => list(command()),
        Kind::Umask => like("^[0-7]{1,4}$"),
        Kind::User => like(USER),
        Kind::Users => list(like(USER)),
        Kind::Path | Kind::UnixSocket => like("^/"),
        Kind::Paths => list(like("^/")),
        Kind::LogPath => like("^[^/]|^/."),
        Kind::PathOrNone => like("^(/|$)"),
        Kind::EnvironmentFiles => list(like("^-?/")),
        Kind::Environment => json!({
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {"type": "string"},
        }),
        Kind::ExitCodes => list(json!({"type": "integer", "minimum": 0, "maximum": 255})),
        Kind::Http => like(r"^([A-Z]+ +)?http(\+unix)?://"),
        Kind::Tcp => like(r"^.+:[0-9]{1,5}$"),
        Kind::Postgres | Kind::Redis => like(r"^(/|.+:[0-9]{1,5}$)"),
        Kind::Url => like("^https?://"),
        Kind::Listen => list(like(r"^.+:[0-9]{1,5}$")),
    }
}

const USER: &str = r"^([a-z_][a-z0-9_-]{0,31}\$?|0|[1-9][0-9]{0,9})$";
