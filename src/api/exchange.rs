//! One request → one answer: route, rules, body, call; and back.
//!
//! Refuses: slow bodies, large ones, and what is not JSON.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    REFERRER_POLICY, RETRY_AFTER, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};

use crate::api::body::ReplyBody;
use crate::api::call::{Answer, Call, MetricsForm, Peer, PiecesOf, WebKind};
use crate::api::openapi::{self, EVENTS, JSON};
use crate::api::request::{self, Heads, Refusal, metrics_form};
use crate::api::routes::{self, Found, Route, Target};
use crate::api::rules::Rules;
use crate::api::server::Limits;
use crate::api::slots::Calls;
use crate::api::timing::Timed;
use crate::api::types::{ErrorBody, ErrorReply};

/// What every request of a connection shares.
#[derive(Clone)]
pub struct Shared {
    pub peer: Peer,
    /// Our side of a TCP connection.
    pub own: Option<SocketAddr>,
    pub rules: Arc<Rules>,
    pub limits: Limits,
    pub calls: Calls,
}

/// Answers one request.
pub async fn reply<F, Fut>(request: Request<Incoming>, shared: Shared, handler: F) -> Response<ReplyBody>
where
    F: Fn(Peer, Call) -> Fut,
    Fut: Future<Output = Answer>,
{
    let _timed = Timed::begin(request.method(), request.uri().path());
    let open = shared.calls.open();
    let mut peer = shared.peer.clone();
    let response = match understand(request, &mut peer, &shared).await {
        Ok(Some(call)) => {
            let busy = shared.calls.begin();
            let answer = handler(peer, call).await;
            if matches!(answer, Answer::Stream(_)) {
                shared.calls.follow();
            }
            let response = from_answer(answer, &shared.limits);
            response.map(|body| body.until_sent(busy))
        }
        Ok(None) => json(StatusCode::OK, openapi::text().into()),
        Err(response) => *response,
    };
    response.map(|body| body.until_made(open))
}

/// Head and body → call, in the order: known, permitted, well-formed. Nobody learns about
/// the form of a request that they may not make.
async fn understand(
    request: Request<Incoming>,
    peer: &mut Peer,
    shared: &Shared,
) -> Result<Option<Call>, Box<Response<ReplyBody>>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let (route, name) = match routes::find(&head.method, path) {
        Found::Row(route, name) => (route, name),
        Found::OtherMethods(methods) => return Err(Box::new(wrong_method(path, &methods))),
        Found::Nothing => return Err(refuse(unknown_route(path))),
    };
    shared
        .rules
        .judge(peer, shared.own, &head, route)
        .map_err(|refusal| asked_for(refuse(refusal), route))?;
    check_accept(&head.headers, route).map_err(refuse)?;
    let body = if route.method == Method::POST {
        check_type(head.headers.get(CONTENT_TYPE)).map_err(refuse)?;
        read_body(body, &shared.limits).await.map_err(refuse)?
    } else {
        Bytes::new()
    };
    let header = |name: HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    let heads = Heads {
        wants_events: header(ACCEPT).is_some_and(|accept| accept.contains(EVENTS)),
        metrics: metrics_form(header(ACCEPT).unwrap_or("")),
        // What is no text is told as what it is: no place.
        last_event_id: head.headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?")),
    };
    request::parse(route, name, head.uri.query(), heads, &body).map_err(refuse)
}

/// What is not JSON is not judged: whoever looks whether we live takes any text.
fn check_accept(headers: &HeaderMap, route: &Route) -> Result<(), Refusal> {
    let kinds = openapi::kinds_of(route);
    if !kinds.contains(&JSON) || !headers.contains_key(ACCEPT) {
        return Ok(());
    }
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut ranges = accepts.flat_map(|value| value.split(',')).map(|range| {
        let (kind, how) = range.split_once(';').unwrap_or((range, ""));
        (kind.trim().to_ascii_lowercase(), how.replace(' ', ""))
    });
    let is_wanted = |(range, how): (String, String)| {
        let weight = how.split(';').find_map(|part| part.strip_prefix("q="));
        let nothing =
            weight.and_then(|weight| weight.parse::<f32>().ok()).is_some_and(|weight| weight <= 0.0);
        let fits = |kind: &&str| {
            let all_of = kind.split_once('/').map(|(family, _)| format!("{family}/*"));
            range == "*/*" || range == **kind || all_of.is_some_and(|all_of| range == all_of)
        };
        !nothing && kinds.iter().any(fits)
    };
    if ranges.any(is_wanted) {
        return Ok(());
    }
    let help = format!("this route has {}", kinds.join(", "));
    Err(Refusal::new(406, "request.not-acceptable", "nothing that `Accept` names is to be had here", help))
}

async fn read_body(body: Incoming, limits: &Limits) -> Result<Bytes, Refusal> {
    let whole = Limited::new(body, limits.body_bytes_max).collect();
    match tokio::time::timeout(limits.body_timeout, whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(cause)) if cause.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the body is larger than {} bytes", limits.body_bytes_max);
            Err(Refusal::new(413, "request.too-large", message, None))
        }
        Ok(Err(cause)) => {
            Err(Refusal::new(400, "request.malformed", format!("cannot read the body: {cause}"), None))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {:?}", limits.body_timeout);
            Err(Refusal::new(408, "request.too-slow", message, None))
        }
    }
}

/// JSON must be named: a web form cannot do that, so it cannot act (reliability A5).
fn check_type(value: Option<&HeaderValue>) -> Result<(), Refusal> {
    let named = value.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = named.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(Refusal::new(
        415,
        "request.not-json",
        "a POST must be JSON",
        "send the header `Content-Type: application/json`".to_string(),
    ))
}

fn unknown_route(path: &str) -> Refusal {
    let shown: String = path.chars().take(200).collect();
    let help = match request::nearest_path(path) {
        Some(near) => format!("did you mean {near}?"),
        None => "every route is in /openapi.json".to_string(),
    };
    Refusal::new(404, "route.unknown", format!("there is nothing at {shown}"), help)
}

fn wrong_method(path: &str, methods: &[&Method]) -> Response<ReplyBody> {
    let allow = methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ");
    let message = format!("{path} takes {allow}");
    let mut response = *refuse(Refusal::new(405, "route.method", message, None));
    if let Ok(value) = HeaderValue::from_str(&allow) {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

fn from_answer(answer: Answer, limits: &Limits) -> Response<ReplyBody> {
    match answer {
        Answer::Json(bytes) => json(StatusCode::OK, bytes),
        Answer::Web(kind, bytes) => web(kind, bytes),
        Answer::Metrics(form, text) => {
            let kind = match form {
                MetricsForm::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
                MetricsForm::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            };
            with_head(StatusCode::OK, kind, ReplyBody::whole(Bytes::from(text)))
        }
        Answer::Plain(code, text) => {
            with_head(status(code), "text/plain; charset=utf-8", ReplyBody::whole(format!("{text}\n")))
        }
        Answer::Stream(items) => {
            let body = ReplyBody::events(items, limits.heartbeat);
            with_head(StatusCode::OK, EVENTS, body)
        }
        Answer::Pieces(PiecesOf::Events, pieces) => {
            let body = ReplyBody::pieces(pieces, Some(limits.heartbeat));
            with_head(StatusCode::OK, EVENTS, body)
        }
        Answer::Pieces(PiecesOf::Json, pieces) => {
            with_head(StatusCode::OK, JSON, ReplyBody::pieces(pieces, None))
        }
        Answer::Pieces(PiecesOf::Bytes, pieces) => {
            with_head(StatusCode::OK, "application/octet-stream", ReplyBody::pieces(pieces, None))
        }
        Answer::Error(code, error) => {
            let mut response = json(status(code), error_json(error));
            if code == 503 {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            response
        }
    }
}

fn refuse(refusal: Refusal) -> Box<Response<ReplyBody>> {
    let Refusal { status: code, error } = refusal;
    let mut response = json(status(code), error_json(error));
    if code == 401 {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    Box::new(response)
}

/// A browser that wants to sign in asks its reader for the token. Where the script asks, nobody is asked:
/// `Basic` stands only here.
fn asked_for(mut response: Box<Response<ReplyBody>>, route: &Route) -> Box<Response<ReplyBody>> {
    if response.status() == StatusCode::UNAUTHORIZED && route.target == Target::Page(WebKind::Html) {
        let basic = HeaderValue::from_static("Basic realm=\"upright: any name, the token as password\"");
        response.headers_mut().append(WWW_AUTHENTICATE, basic);
    }
    response
}

/// The page may use its own script and style and ask us, and nothing else: nothing inline, no other host,
/// no form, no frame around it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn web(kind: WebKind, bytes: Bytes) -> Response<ReplyBody> {
    let content_type = match kind {
        WebKind::Html => "text/html; charset=utf-8",
        WebKind::Script => "text/javascript; charset=utf-8",
        WebKind::Style => "text/css; charset=utf-8",
    };
    let mut response = with_head(StatusCode::OK, content_type, ReplyBody::whole(bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

pub fn error_json(error: ErrorBody) -> Bytes {
    // Strings and an option always serialize.
    serde_json::to_vec(&ErrorReply { error }).unwrap_or_default().into()
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn json(status: StatusCode, bytes: Bytes) -> Response<ReplyBody> {
    with_head(status, JSON, ReplyBody::whole(bytes))
}

fn with_head(status: StatusCode, content_type: &'static str, body: ReplyBody) -> Response<ReplyBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // State is news; yesterday's is wrong.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // What a service wrote is never a page, whatever it looks like.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
