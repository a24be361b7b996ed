//! What a request must satisfy beside its form: the right `Host`, no foreign origin, a token or a
//! role, and the right way in.
//!
//! Refuses: asking more than the head of the request and the route table say.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::request::Parts;

use crate::api::access::Access;
use crate::api::call::{Local, Peer, Proof};
use crate::api::request::Refusal;
use crate::api::routes::{Door, Need, Route};
use crate::api::token::Token;
use crate::base::base64;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// What all connections go by; it may change while they live.
pub struct Rules {
    held: RwLock<Held>,
    on_denied: Box<dyn Fn(Denied) + Send + Sync>,
}

#[derive(Clone, Default)]
struct Held {
    access: Arc<Access>,
    /// None: nobody acts over TCP.
    token: Option<Arc<Token>>,
}

/// A request that would have changed something, and was not permitted.
#[derive(Clone, Debug)]
pub struct Denied {
    pub peer: Peer,
    pub route: &'static Route,
    /// Of the refusal.
    pub code: String,
}

impl Rules {
    /// Nobody but root acts until `set_access`; nobody has a token until `set_token`.
    pub fn new(on_denied: impl Fn(Denied) + Send + Sync + 'static) -> Rules {
        Rules { held: RwLock::default(), on_denied: Box::new(on_denied) }
    }

    pub fn set_access(&self, access: Access) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).access = Arc::new(access);
    }

    pub fn set_token(&self, token: Option<Token>) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).token = token.map(Arc::new);
    }

    fn held(&self) -> Held {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this request may be made, in the order: sent to us, sent from one of our pages,
    /// known, permitted, through the right door. `own` is our side of a TCP connection. What
    /// the peer has shown is entered in `peer`.
    ///
    /// # Errors
    /// 400, 421, 403, 401.
    pub fn judge(
        &self,
        peer: &mut Peer,
        own: Option<SocketAddr>,
        head: &Parts,
        route: &'static Route,
    ) -> Result<(), Refusal> {
        let judged = self.judge_quietly(peer, own, head, route);
        if let (Err(refusal), Need::Act) = (&judged, route.need) {
            let code = refusal.error.code.clone();
            (self.on_denied)(Denied { peer: peer.clone(), route, code });
        }
        judged
    }

    fn judge_quietly(
        &self,
        peer: &mut Peer,
        own: Option<SocketAddr>,
        head: &Parts,
        route: &Route,
    ) -> Result<(), Refusal> {
        let held = self.held();
        if let Peer::Remote { proof, .. } = peer {
            *proof = proof_of(&head.headers, held.token.as_deref());
        }
        if let Some(own) = own {
            check_host(head, own)?;
        }
        if route.need == Need::Act {
            check_origin(&head.headers)?;
        }
        if let Peer::Remote { proof, .. } = peer {
            match (route.door, *proof) {
                (Door::Open, Proof::Password) if check_reader(&head.headers).is_err() => {
                    *proof = Proof::Nothing; // it is not the reader who shows it
                    return Ok(());
                }
                (Door::Open, _) => return Ok(()),
                (Door::Token | Door::Unix, Proof::Nothing | Proof::Wrong) => {
                    return Err(no_token(*proof, held.token.is_some()));
                }
                (Door::Token | Door::Unix, Proof::Password) if route.need == Need::Act => {
                    return Err(password_acts());
                }
                (Door::Unix, Proof::Token | Proof::Password) => return Err(only_local()),
                (Door::Token, Proof::Password) => check_reader(&head.headers)?,
                (Door::Token, Proof::Token) => {}
            }
        }
        match held.access.allows(peer, route.need) {
            true => Ok(()),
            false => Err(denied(peer, route.need)),
        }
    }
}

/// Against DNS rebinding: a page of a foreign name that resolves to us names itself in `Host`.
/// What is ours is the address that the connection came to, and `localhost`, with our port.
fn check_host(head: &Parts, own: SocketAddr) -> Result<(), Refusal> {
    let mut given = head.headers.get_all(HOST).iter().map(|value| value.to_str().unwrap_or(""));
    let (Some(host), None) = (given.next(), given.next()) else {
        let help = format!("send `Host: {own}`");
        return Err(Refusal::new(400, "request.host", "the request has not exactly one `Host`", help));
    };
    // Of a request in absolute form, what it names counts too (RFC 9112, 3.2.2).
    let named = head.uri.authority().map(|authority| authority.as_str());
    if [Some(host), named].into_iter().flatten().all(|host| is_own(host, own)) {
        return Ok(());
    }
    let help = format!("ask {own} or localhost:{} by that name", own.port());
    Err(Refusal::new(421, "request.foreign-host", "this server does not go by that `Host`", help))
}

fn is_own(host: &str, own: SocketAddr) -> bool {
    let own = SocketAddr::new(own.ip().to_canonical(), own.port());
    let bare = own.to_string();
    let bare = bare.rsplit_once(':').map_or("", |(address, _)| address);
    let matches = |text: &str, name: &str| text.eq_ignore_ascii_case(name);
    match own.port() {
        80 if matches(host, bare) || matches(host, "localhost") => true,
        port => matches(host, &own.to_string()) || matches(host, &format!("localhost:{port}")),
    }
}

/// Against forged requests: a browser says from where a page sends (Fetch, 3.2; Fetch Metadata, 2.1).
/// Only a page that came from the very name and port it sends to may act.
fn check_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let texts = |name: &HeaderName| -> Vec<String> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?").to_ascii_lowercase()).collect()
    };
    let host = texts(&HOST).pop().unwrap_or_default();
    let is_ours = |origin: &String| {
        let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        rest.is_some_and(|rest| !host.is_empty() && rest == host)
    };
    let fetched_by_us = |site: &String| matches!(site.as_str(), "same-origin" | "none");
    if texts(&ORIGIN).iter().all(is_ours) && texts(&SEC_FETCH_SITE).iter().all(fetched_by_us) {
        return Ok(());
    }
    let help = "a page of another site cannot act here; use the dashboard or a program".to_string();
    Err(Refusal::new(403, "access.foreign-origin", "the request comes from a foreign page", help))
}

/// A browser sends the password that it keeps with whatever any page asks of us. Pages of others get
/// nothing by it; only a link to us may be followed, which shows nothing to the page it stands on.
fn check_reader(headers: &HeaderMap) -> Result<(), Refusal> {
    match headers.get(SEC_FETCH_MODE) {
        Some(mode) if mode == "navigate" => Ok(()),
        Some(_) | None => check_origin(headers),
    }
}

fn proof_of(headers: &HeaderMap, token: Option<&Token>) -> Proof {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (shown, more) = (given.next(), given.next().is_some());
    let Some(shown) = shown else { return Proof::Nothing };
    let Some(token) = token.filter(|_| !more) else { return Proof::Wrong };
    if after(shown.as_bytes(), b"bearer ").is_some_and(|word| token.is(word)) {
        return Proof::Token;
    }
    let pair = after(shown.as_bytes(), b"basic ").and_then(|word| std::str::from_utf8(word).ok());
    let pair = pair.and_then(base64::decode).unwrap_or_default();
    // The name ends at the first colon (RFC 7617, 2); it may be any.
    match pair.iter().position(|byte| *byte == b':').and_then(|at| pair.get(at + 1..)) {
        Some(password) if token.is(password) => Proof::Password,
        Some(_) | None => Proof::Wrong,
    }
}

/// What follows the scheme, if it is that one.
fn after<'s>(shown: &'s [u8], scheme: &[u8]) -> Option<&'s [u8]> {
    let is_it = shown.get(..scheme.len())?.eq_ignore_ascii_case(scheme);
    is_it.then(|| shown.get(scheme.len()..).unwrap_or_default().trim_ascii())
}

fn no_token(proof: Proof, there_is_one: bool) -> Refusal {
    let message = match proof {
        Proof::Wrong => "this is not the token",
        Proof::Nothing | Proof::Password | Proof::Token => "over TCP this needs the token",
    };
    let help = match there_is_one {
        true => "send `Authorization: Bearer TOKEN`; the token is in the file that `token_file` names",
        false => "have `token_file` under [api] in upright.toml name a file with a token",
    };
    Refusal::new(401, "access.token", message, help.to_string())
}

fn password_acts() -> Refusal {
    let help = "send `Authorization: Bearer TOKEN`; on the page, type the token where it says so".to_string();
    Refusal::new(401, "access.token", "a password of a browser reads, and changes nothing", help)
}

fn only_local() -> Refusal {
    let help = "ask over the Unix socket, on the machine itself".to_string();
    Refusal::new(403, "access.unix-only", "this is not done over TCP", help)
}

fn denied(peer: &Peer, need: Need) -> Refusal {
    let (what, list) = match need {
        Need::Act => ("act", "operators"),
        Need::View => ("read", "viewers"),
    };
    let who = match peer {
        Peer::Local(Local { uid, .. }) => format!("user {uid}"),
        Peer::Remote { .. } => peer.to_string(),
    };
    Refusal::new(
        403,
        "access.denied",
        format!("{who} may not {what}"),
        format!("ask root, or have `{list}` under [api] in upright.toml name this user or a group of theirs"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn head(lines: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method("POST").uri("/v1/units/web/stop");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn only_our_own_names_are_served() {
        let v4: SocketAddr = "127.0.0.1:9321".parse().expect("address");
        let v6: SocketAddr = "[::1]:9321".parse().expect("address");
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:9321".parse().expect("address");
        let web: SocketAddr = "127.0.0.1:80".parse().expect("address");
        for (own, host) in [
            (v4, "127.0.0.1:9321"),
            (v4, "localhost:9321"),
            (v4, "LocalHost:9321"),
            (v6, "[::1]:9321"),
            (mapped, "127.0.0.1:9321"),
            (web, "127.0.0.1"),
            (web, "localhost:80"),
        ] {
            assert_eq!(check_host(&head(&[("host", host)]), own), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9321",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.0.0.1:9321.evil.example",
            "localhost",
            "x@localhost:9321",
            "localhost:9321 ",
            "127.1:9321",
            "2130706433:9321",
            "0.0.0.0:9321",
            "",
        ] {
            let status = check_host(&head(&[("host", host)]), v4).map_err(|refusal| refusal.status);
            assert_eq!(status, Err(421), "{host}");
        }
        let two = head(&[("host", "127.0.0.1:9321"), ("host", "127.0.0.1:9321")]);
        for bad in [head(&[]), two] {
            assert_eq!(check_host(&bad, v4).map_err(|refusal| refusal.status), Err(400));
        }
        let mut absolute = head(&[("host", "127.0.0.1:9321")]);
        absolute.uri = "http://evil.example/livez".parse().expect("uri");
        assert!(check_host(&absolute, v4).is_err());
    }

    #[test]
    fn pages_of_others_cannot_act() {
        let host = ("host", "127.0.0.1:9321");
        let ours = ("origin", "http://127.0.0.1:9321");
        for good in [
            vec![host],
            vec![host, ours],
            vec![host, ours, ("sec-fetch-site", "same-origin")],
            vec![host, ("sec-fetch-site", "none")],
        ] {
            assert_eq!(check_origin(&head(&good).headers), Ok(()), "{good:?}");
        }
        for bad in [
            vec![host, ("origin", "null")],
            vec![host, ("origin", "")],
            vec![host, ("origin", "http://127.0.0.1")],
            vec![host, ("origin", "http://localhost:9321")],
            vec![host, ("origin", "http://127.0.0.1:9321.evil.example")],
            vec![host, ("origin", "https://evil.example")],
            vec![host, ours, ("origin", "https://evil.example")],
            vec![host, ours, ("sec-fetch-site", "cross-site")],
            vec![host, ("sec-fetch-site", "same-site")],
            vec![("origin", "http://")],
        ] {
            assert!(check_origin(&head(&bad).headers).is_err(), "{bad:?}");
        }
    }
}
