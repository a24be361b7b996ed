//! The OpenAPI 3.1 document, made from the route table and the wire types.
//!
//! Refuses: anything written by hand that the table or the types already say.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use crate::api::routes::{Need, Param, ROUTES, Route, Target};
use crate::api::summary::Summary;
use crate::api::types::{
    ActionReply, ActionRequest, AlertList, ConfigApplied, ConfigHealth, ConfigPlan, ErrorReply, EventList,
    LogLines, RecoveryRequest, SignalRequest, SystemHealth, UnitCard, UnitList, UpgradeStatus,
};

/// The document as JSON text, with a newline at its end.
pub fn text() -> String {
    format!("{:#}\n", document())
}

/// The document.
pub fn document() -> Value {
    // What a reader must accept, so that a field with a default may be left out of a request.
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .for_deserialize();
    let mut schemas = settings.into_generator();
    let error = to_value(schemas.subschema_for::<ErrorReply>());
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let operation = operation(route, &mut schemas, &error);
        let path = paths.entry(route.pattern).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Upright",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The daemon's Unix socket. Peers are known by SO_PEERCRED.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "http://localhost", "description": "over the Unix socket" }],
        "paths": paths,
        "components": { "schemas": schemas.take_definitions(true) },
    })
}

fn operation(route: &Route, schemas: &mut SchemaGenerator, error: &Value) -> Value {
    let who = match route.need {
        Need::View => "viewers",
        Need::Act => "operators",
    };
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.what,
        "description": format!("Open to {who}."),
        "x-open-to": who,
        "responses": {
            "200": { "description": "done", "content": content(route, schemas) },
            "default": {
                "description": "an error, with a stable code",
                "content": { "application/json": { "schema": error } },
            },
        },
    });
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = Value::Array(parameters);
    }
    if let Some(body) = request_body(route.target, schemas) {
        operation["requestBody"] = body;
    }
    operation
}

/// `get_v1_units_name_logs`: from method and path, so it is unique without a list.
fn operation_id(route: &Route) -> String {
    let words = route.pattern.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let path: Vec<&str> = words.collect();
    format!("{}_{}", route.method.as_str().to_ascii_lowercase(), path.join("_"))
}

fn parameters(route: &Route) -> Vec<Value> {
    let name = route.pattern.contains("{name}").then(|| {
        json!({
            "name": "name", "in": "path", "required": true, "description": "The unit's name.",
            "schema": { "type": "string", "pattern": "^[a-z0-9][a-z0-9_.@-]{0,63}$" },
        })
    });
    let query = route.params.iter().map(|param| {
        json!({
            "name": param.as_str(), "in": "query", "required": false,
            "description": param.what(), "schema": param_schema(*param),
        })
    });
    name.into_iter().chain(query).collect()
}

fn param_schema(param: Param) -> Value {
    match param {
        Param::Unit => json!({ "type": "array", "items": { "type": "string" } }),
        Param::Lines => json!({ "oneOf": [
            { "type": "integer", "minimum": 0, "maximum": 100_000 },
            { "const": "all" },
        ] }),
        Param::Limit => json!({ "type": "integer", "minimum": 1, "maximum": 10_000, "default": 1_000 }),
        Param::AfterId => json!({ "type": "integer", "minimum": 0 }),
        Param::Since => json!({ "type": "string", "format": "date-time" }),
        Param::Follow => json!({ "type": "boolean", "default": false }),
        Param::Wait => json!({ "type": "boolean", "default": true }),
        Param::LogSince | Param::Until => json!({ "oneOf": [
            { "type": "string", "format": "date-time" },
            { "type": "integer" },
        ] }),
        Param::Window => {
            json!({ "type": "string", "default": "24h", "examples": ["24h", "2026-11-21T20:00:00Z"] })
        }
        Param::Grep => json!({ "type": "string", "maxLength": 256 }),
        Param::Stream => json!({ "enum": ["stdout", "stderr"] }),
        Param::After => json!({ "type": "string" }),
        Param::Marks | Param::Raw => json!({ "type": "boolean", "default": false }),
    }
}

fn content(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let schema = match route.target {
        Target::Livez | Target::Readyz => return json!({ "text/plain": { "schema": { "type": "string" } } }),
        Target::Metrics => {
            return json!({ "application/openmetrics-text": { "schema": { "type": "string" } } });
        }
        Target::OpenApi => json!({ "type": "object" }),
        Target::Health => to_value(schemas.subschema_for::<SystemHealth>()),
        Target::Units => to_value(schemas.subschema_for::<UnitList>()),
        Target::Unit => to_value(schemas.subschema_for::<UnitCard>()),
        Target::UnitLogs | Target::Logs => to_value(schemas.subschema_for::<LogLines>()),
        Target::Events => to_value(schemas.subschema_for::<EventList>()),
        Target::Summary => to_value(schemas.subschema_for::<Summary>()),
        Target::Alerts => to_value(schemas.subschema_for::<AlertList>()),
        Target::ConfigErrors => to_value(schemas.subschema_for::<ConfigHealth>()),
        Target::ConfigPlan => to_value(schemas.subschema_for::<ConfigPlan>()),
        Target::ConfigApply => to_value(schemas.subschema_for::<ConfigApplied>()),
        Target::Upgrade | Target::BeginUpgrade => to_value(schemas.subschema_for::<UpgradeStatus>()),
        Target::UnitAct(_)
        | Target::UnitSignal
        | Target::Act(_)
        | Target::RecoveryRestart
        | Target::RecoveryResync => to_value(schemas.subschema_for::<ActionReply>()),
    };
    let mut content = json!({ "application/json": { "schema": schema } });
    if route.params.contains(&Param::Follow) {
        content["text/event-stream"] = json!({ "schema": { "type": "string" } });
    }
    if route.params.contains(&Param::Raw) {
        content["application/octet-stream"] = json!({ "schema": { "type": "string", "format": "binary" } });
    }
    content
}

fn request_body(target: Target, schemas: &mut SchemaGenerator) -> Option<Value> {
    let (schema, required) = match target {
        Target::UnitSignal => (to_value(schemas.subschema_for::<SignalRequest>()), true),
        Target::Act(_) => (to_value(schemas.subschema_for::<ActionRequest>()), true),
        Target::RecoveryRestart | Target::RecoveryResync => {
            (to_value(schemas.subschema_for::<RecoveryRequest>()), false)
        }
        Target::UnitAct(_) | Target::ConfigPlan | Target::ConfigApply | Target::BeginUpgrade => {
            (json!({ "type": "object", "maxProperties": 0 }), false)
        }
        Target::Livez
        | Target::Readyz
        | Target::Metrics
        | Target::Health
        | Target::Units
        | Target::Unit
        | Target::UnitLogs
        | Target::Logs
        | Target::Events
        | Target::ConfigErrors
        | Target::Alerts
        | Target::Summary
        | Target::Upgrade
        | Target::OpenApi => return None,
    };
    Some(json!({ "required": required, "content": { "application/json": { "schema": schema } } }))
}

fn to_value(schema: schemars::Schema) -> Value {
    Value::from(schema)
}
