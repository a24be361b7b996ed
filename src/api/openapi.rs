//! The OpenAPI 3.1 document, made from the route table and the wire types.
//!
//! Refuses: anything written by hand that the table or the types already say.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use crate::api::drills::{DrillList, DrillReply, DrillRequest};
use crate::api::request::{LINES_MAX, US_LEAST, US_MOST};
use crate::api::routes::{Door, Need, Param, ROUTES, Route, Target};
use crate::api::summary::Summary;
use crate::api::types::{
    AckRequest, ActionReply, ActionRequest, AlertLine, AlertList, ConfigApplied, ConfigHealth, ConfigPlan,
    ErrorReply, EventList, LogLines, MuteList, MuteRequest, NAME_PATTERN, News, RecoveryRequest,
    SignalRequest, SystemHealth, SystemMetrics, TestRequest, UnitCard, UnitList, UpgradeStatus,
};

pub const JSON: &str = "application/json";
pub const EVENTS: &str = "text/event-stream";
const BYTES: &str = "application/octet-stream";
const TEXT: &str = "text/plain";
const OPEN_METRICS: &str = "application/openmetrics-text";

/// Places of a log: as the `id` of an event and `next` of an answer have them.
const PLACE_PATTERN: &str =
    r"^([a-z0-9][a-z0-9_.@-]{0,63}/(stdout|stderr)=[0-9]{1,9}(\.[0-9]{1,9}){2,3},?)*$";

/// An error answer that a route can give.
struct Failure {
    status: u16,
    what: &'static str,
    code: &'static str,
}

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
            "description": "The daemon's API. Over the Unix socket the kernel says who asks (SO_PEERCRED, SO_PEERGROUPS), and `operators` and `viewers` under [api] in upright.toml say what they may. Over TCP, where `listen` has it, the token says it, `Host` must be the address or localhost, and a page of another origin changes nothing.",
            "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
        },
        "servers": [
            { "url": "http://localhost", "description": "over the Unix socket" },
            {
                "url": "http://127.0.0.1:{port}",
                "description": "over TCP, where `listen` has it",
                "variables": { "port": { "default": "9321" } },
            },
        ],
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Over TCP: the word in the file that `token_file` names. The Unix socket needs none. A browser may show it as the password of `Basic`, with any name: that reads, and changes nothing.",
                },
            },
        },
    })
}

/// What a route answers with, the usual first.
pub fn kinds_of(route: &Route) -> Vec<&'static str> {
    if matches!(route.target, Target::Livez | Target::Readyz) {
        return vec![TEXT];
    }
    if let Target::Page(kind) = route.target {
        return vec![kind.as_str()];
    }
    if route.target == Target::Metrics {
        return vec![OPEN_METRICS, TEXT];
    }
    let with = |param, kind| route.params.contains(&param).then_some(kind);
    [Some(JSON), with(Param::Follow, EVENTS), with(Param::Raw, BYTES)].into_iter().flatten().collect()
}

/// Every error that a route can give, by its status.
fn failures_of(route: &Route) -> Vec<Failure> {
    let is_post = route.need == Need::Act;
    let names_units = route.is_of_a_unit()
        || route.params.contains(&Param::Unit)
        || matches!(
            route.target,
            Target::Act(_) | Target::RecoveryRestart | Target::RecoveryResync | Target::AlertMute
        );
    let is_drill = route.target == Target::Drill;
    let is_json = kinds_of(route).contains(&JSON);
    let may_clash = matches!(
        route.target,
        Target::ConfigPlan | Target::ConfigApply | Target::BeginUpgrade | Target::Act(_) | Target::UnitAct(_)
    );
    let all = [
        (true, 400, "The request does not fit.", "request.malformed"),
        (route.door != Door::Open, 401, "Over TCP: no token, or another one.", "access.token"),
        (
            true,
            403,
            "Whoever asks may not; or a foreign page asks; or it is not done over TCP.",
            "access.denied",
        ),
        (is_drill, 404, "No unit, or no drill that runs, has this name.", "drill.unknown"),
        (is_drill, 409, "Another drill runs, or the unit has no process.", "drill.busy"),
        (names_units, 404, "No unit has this name.", "unit.unknown"),
        (route.target == Target::AlertTest, 404, "No channel has this name.", "channel.unknown"),
        (is_json, 406, "`Accept` names nothing that is to be had here.", "request.not-acceptable"),
        (true, 408, "Head or body did not arrive in time.", "request.too-slow"),
        (may_clash, 409, "Not now: safe mode, or another upgrade.", "daemon.safe_mode"),
        (is_post, 413, "The body is too large.", "request.too-large"),
        (is_post, 415, "The body is not said to be JSON.", "request.not-json"),
        (true, 421, "Over TCP: the server does not go by that `Host`.", "request.foreign-host"),
        (true, 431, "The head is too large.", "request.head-too-large"),
        (is_json, 500, "The answer cannot be written.", "answer.unwritable"),
        (
            true,
            503,
            "Every connection slot is taken, the store cannot be asked, or the daemon is ending.",
            "server.busy",
        ),
        (is_post, 507, "It was carried out and cannot be written down.", "store.trouble"),
    ];
    let given = all.into_iter().filter(|(given, ..)| *given);
    given.map(|(_, status, what, code)| Failure { status, what, code }).collect()
}

fn operation(route: &Route, schemas: &mut SchemaGenerator, error: &Value) -> Value {
    let who = match route.need {
        Need::View => "viewers",
        Need::Act => "operators",
    };
    let (over_tcp, security) = match route.door {
        Door::Open => ("open", json!([])),
        Door::Token => ("token", json!([{ "token": [] }])),
        Door::Unix => ("no", json!([{ "token": [] }])),
    };
    let tcp = match route.door {
        Door::Open => "Over TCP to everybody.",
        Door::Token => "Over TCP with the token.",
        Door::Unix => "Not over TCP.",
    };
    let mut responses = Map::new();
    responses.insert("200".into(), json!({ "description": "done", "content": content(route, schemas) }));
    for failure in failures_of(route) {
        let example = json!({ "error": { "code": failure.code, "message": failure.what, "help": null } });
        let mut response = json!({
            "description": failure.what,
            "content": { JSON: { "schema": error, "example": example } },
        });
        if failure.status == 503 && matches!(route.target, Target::Livez | Target::Readyz) {
            response["content"][TEXT] = json!({ "schema": { "type": "string" } });
        }
        responses.insert(failure.status.to_string(), response);
    }
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.what,
        "description": format!("On the Unix socket open to {who}. {tcp}"),
        "x-open-to": who,
        "x-over-tcp": over_tcp,
        "security": security,
        "responses": responses,
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
    let name = route.is_of_a_unit().then(|| {
        json!({
            "name": "name", "in": "path", "required": true, "description": "The unit's name.",
            "schema": { "type": "string", "pattern": NAME_PATTERN }, "example": "web",
        })
    });
    let query = route.params.iter().map(|param| {
        let (schema, example) = param_schema(*param);
        json!({
            "name": param.as_str(), "in": "query", "required": false,
            "description": param.what(), "schema": schema, "example": example,
        })
    });
    let is_of_logs = matches!(route.target, Target::Logs | Target::UnitLogs);
    // News has no place to go on from: only the newest counts.
    let goes_on = route.params.contains(&Param::Follow) && route.target != Target::News;
    let place = goes_on.then(|| {
        let (id, example) = param_schema(if is_of_logs { Param::After } else { Param::AfterId });
        json!({
            "name": "Last-Event-ID", "in": "header", "required": false, "schema": id, "example": example,
            "description": "The `id` of the last event that arrived before a stream broke; goes on behind it.",
        })
    });
    name.into_iter().chain(query).chain(place).collect()
}

/// Its schema, and an example.
fn param_schema(param: Param) -> (Value, Value) {
    let date = "2026-01-31T12:00:00Z";
    match param {
        Param::Unit => {
            let name = json!({ "type": "string", "pattern": NAME_PATTERN });
            (json!({ "type": "array", "items": name, "maxItems": 16 }), json!(["web"]))
        }
        Param::Lines => (
            json!({ "oneOf": [{ "type": "integer", "minimum": 0, "maximum": LINES_MAX }, { "const": "all" }] }),
            json!(100),
        ),
        Param::Limit => {
            (json!({ "type": "integer", "minimum": 1, "maximum": 10_000, "default": 1_000 }), json!(50))
        }
        Param::AfterId => (json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX }), json!(42)),
        Param::Since => (json!({ "type": "string", "format": "date-time" }), json!(date)),
        Param::Follow | Param::Marks | Param::Raw => {
            (json!({ "type": "boolean", "default": false }), json!(false))
        }
        Param::Wait => (json!({ "type": "boolean", "default": true }), json!(true)),
        Param::LogSince | Param::Until => (
            json!({ "oneOf": [
                { "type": "string", "format": "date-time" },
                { "type": "integer", "minimum": US_LEAST, "maximum": US_MOST },
            ] }),
            json!(date),
        ),
        Param::Grep => {
            (json!({ "type": "string", "format": "regex", "maxLength": 256 }), json!("error|panic"))
        }
        Param::Stream => (json!({ "enum": ["stdout", "stderr"] }), json!("stderr")),
        Param::After => (json!({ "type": "string", "pattern": PLACE_PATTERN }), json!("web/stdout=1.2.3")),
        Param::Window => (
            json!({ "type": "string", "default": "24h", "examples": ["24h", "2026-11-21T20:00:00Z"] }),
            json!("24h"),
        ),
    }
}

fn content(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let text = json!({ "schema": { "type": "string" } });
    let schema = match route.target {
        Target::Livez | Target::Readyz => return json!({ TEXT: text }),
        Target::Metrics => return json!({ OPEN_METRICS: text, TEXT: text }),
        Target::Page(kind) => return json!({ kind.as_str(): text }),
        Target::OpenApi => json!({ "type": "object" }),
        Target::SystemMetrics => to_value(schemas.subschema_for::<SystemMetrics>()),
        Target::Health => to_value(schemas.subschema_for::<SystemHealth>()),
        Target::Units => to_value(schemas.subschema_for::<UnitList>()),
        Target::Unit => to_value(schemas.subschema_for::<UnitCard>()),
        Target::UnitLogs | Target::Logs => to_value(schemas.subschema_for::<LogLines>()),
        Target::Events => to_value(schemas.subschema_for::<EventList>()),
        Target::News => to_value(schemas.subschema_for::<News>()),
        Target::Summary => to_value(schemas.subschema_for::<Summary>()),
        Target::Alerts => to_value(schemas.subschema_for::<AlertList>()),
        Target::ConfigErrors => to_value(schemas.subschema_for::<ConfigHealth>()),
        Target::ConfigPlan => to_value(schemas.subschema_for::<ConfigPlan>()),
        Target::ConfigApply => to_value(schemas.subschema_for::<ConfigApplied>()),
        Target::Upgrade | Target::BeginUpgrade => to_value(schemas.subschema_for::<UpgradeStatus>()),
        Target::Drills => to_value(schemas.subschema_for::<DrillList>()),
        Target::Drill => to_value(schemas.subschema_for::<DrillReply>()),
        Target::AlertTest => to_value(schemas.subschema_for::<AlertLine>()),
        Target::AlertMute => to_value(schemas.subschema_for::<MuteList>()),
        Target::UnitAct(_)
        | Target::UnitSignal
        | Target::Act(_)
        | Target::AlertAck
        | Target::RecoveryRestart
        | Target::RecoveryResync => to_value(schemas.subschema_for::<ActionReply>()),
    };
    let mut content = json!({ JSON: { "schema": schema } });
    for kind in kinds_of(route) {
        match kind {
            EVENTS => content[EVENTS] = json!({ "schema": { "type": "string" } }),
            BYTES => content[BYTES] = json!({ "schema": { "type": "string", "format": "binary" } }),
            _ => {}
        }
    }
    content
}

fn request_body(target: Target, schemas: &mut SchemaGenerator) -> Option<Value> {
    let (schema, example) = match target {
        Target::UnitSignal => {
            (to_value(schemas.subschema_for::<SignalRequest>()), json!({ "signal": "USR1" }))
        }
        Target::Act(_) => (to_value(schemas.subschema_for::<ActionRequest>()), json!({ "units": ["web"] })),
        Target::RecoveryRestart | Target::RecoveryResync => {
            (to_value(schemas.subschema_for::<RecoveryRequest>()), json!({ "unit": "web" }))
        }
        Target::AlertTest => (to_value(schemas.subschema_for::<TestRequest>()), json!({ "channels": [] })),
        Target::AlertAck => (to_value(schemas.subschema_for::<AckRequest>()), json!({ "alerts": [] })),
        Target::AlertMute => (to_value(schemas.subschema_for::<MuteRequest>()), json!({ "for_s": 3_600 })),
        Target::Drill => (
            to_value(schemas.subschema_for::<DrillRequest>()),
            json!({ "drill": "d-1", "do": "begin", "scenario": "single-module" }),
        ),
        Target::UnitAct(_) | Target::ConfigPlan | Target::ConfigApply | Target::BeginUpgrade => {
            (json!({ "type": "object", "additionalProperties": false }), json!({}))
        }
        Target::Livez
        | Target::Readyz
        | Target::Metrics
        | Target::SystemMetrics
        | Target::Health
        | Target::Units
        | Target::Unit
        | Target::UnitLogs
        | Target::Logs
        | Target::Events
        | Target::ConfigErrors
        | Target::Alerts
        | Target::Summary
        | Target::Page(_)
        | Target::News
        | Target::Drills
        | Target::Upgrade
        | Target::OpenApi => return None,
    };
    let content = json!({ JSON: { "schema": schema, "example": example } });
    Some(json!({ "required": true, "content": content }))
}

fn to_value(schema: schemars::Schema) -> Value {
    Value::from(schema)
}
