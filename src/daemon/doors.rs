//! Who may come in and where: `[api]` of `upright.toml` brought in force while everything runs; and what
//! is put on record of those who asked for a change.
//!
//! Refuses: looking at accounts and token files on the loop, a token that could not be read, and ending
//! for an address that is in use.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot, watch};

use crate::api::access::{self, Access, Ids};
use crate::api::call::{Answer, Local, Peer, Proof};
use crate::api::refusals::Refusals;
use crate::api::rules::{Denied, Rules};
use crate::api::server::{self, Limits};
use crate::api::tcp::{self, Settings};
use crate::api::token::Token;
use crate::api::types::{ActionReply, Trouble};
use crate::base::limits;
use crate::config::read::{Trust, read};
use crate::daemon::again::Again;
use crate::daemon::handlers::{Asked, refuse};
use crate::daemon::hands::Source;
use crate::daemon::shell::Shell;
use crate::daemon::upgrade;
use crate::store::row::Level;
use crate::store::trouble::Code;
use crate::sys::threads::aside;
use crate::sys::{accounts, clock, process};
use crate::unit::daemon_file::Api;

/// Calls that wait for the loop. Above it the server's connections wait, which are bounded.
const CALLS_MAX: usize = 256;

/// What the loop hears from the doors.
pub enum Heard {
    /// What `[api]` comes to on this machine now.
    Looked(Looked),
    /// These addresses cannot be had.
    Unheard(BTreeMap<SocketAddr, String>),
    Denied(Denied),
    Answered(Answered),
}

/// `[api]` with its names looked up and its token read.
pub struct Looked {
    number: u64,
    operators: Ids,
    viewers: Ids,
    unknown: Vec<String>,
    listen: Vec<SocketAddr>,
    /// None: no file is named.
    token: Option<Result<Token, String>>,
}

/// What came of a request for a change.
pub struct Answered {
    peer: Peer,
    verb: &'static str,
    /// 200, or the status and code of an error.
    status: u16,
    code: Option<String>,
    /// Unit → outcome.
    outcomes: Map<String, Value>,
}

/// What the shell knows of the doors.
pub struct Doors {
    rules: Arc<Rules>,
    settings: watch::Sender<Settings>,
    token: Option<Token>,
    token_trouble: Option<String>,
    unheard: BTreeMap<SocketAddr, String>,
    refusals: Refusals,
    /// The newest look that was begun.
    looks: u64,
}

/// The server, its calls, and what ends it: dropped, the sender has it accept nobody any more and tell
/// when everybody is served.
pub struct Served {
    pub doors: Doors,
    pub calls: mpsc::Receiver<Asked>,
    pub stop: oneshot::Sender<()>,
}

/// Opens the doors as `api` has them.
///
/// # Errors
/// The Unix socket cannot be served.
pub fn serve(
    listener: std::os::fd::OwnedFd,
    api: &Api,
    sources: mpsc::UnboundedSender<Source>,
) -> std::io::Result<Served> {
    let listener = server::listener_from(listener)?;
    let (calls, asked) = mpsc::channel(CALLS_MAX);
    let handler = move |peer, call| {
        let calls = calls.clone();
        async move {
            let (reply, answer) = oneshot::channel();
            let _ = calls.send(Asked { peer, call, reply }).await; // the loop has ended: told below
            answer.await.unwrap_or_else(|_| gone())
        }
    };
    let told = sources.clone();
    let rules = Arc::new(Rules::new(move |denied| drop(told.send(Source::Door(Heard::Denied(denied))))));
    let (settings, wanted) = watch::channel(Settings::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let (both, unix_stopped) = watch::channel(());
    let tcp_stopped = unix_stopped.clone();
    tokio::spawn(async move {
        let _ = stopped.await; // it is told by dropping
        drop(both);
    });
    let told = sources.clone();
    let on_trouble = move |unheard| drop(told.send(Source::Door(Heard::Unheard(unheard)))); // the loop has ended
    let over_tcp = tcp::serve(
        wanted,
        rules.clone(),
        Limits::default(),
        dropped(tcp_stopped),
        on_trouble,
        handler.clone(),
    );
    let over_unix =
        server::serve_until(listener, rules.clone(), Limits::default(), dropped(unix_stopped), handler);
    tokio::spawn(async move {
        tokio::join!(over_unix, over_tcp);
        let _ = sources.send(Source::Upgrade(upgrade::Heard::Served)); // the loop has ended
    });
    let mut doors = Doors {
        rules,
        settings,
        token: None,
        token_trouble: None,
        unheard: BTreeMap::new(),
        refusals: Refusals::new(clock::monotonic()),
        looks: 0,
    };
    let looked = look(0, api);
    doors.bring_in_force(looked);
    Ok(Served { doors, calls: asked, stop })
}

async fn dropped(mut sender: watch::Receiver<()>) {
    while sender.changed().await.is_ok() {}
}

/// The loop has let go of a question, which it does only when it ends.
fn gone() -> Answer {
    refuse(503, "daemon.ending", "the daemon is ending".to_string(), None)
}

/// May wait for a disk or a directory of accounts.
fn look(number: u64, api: &Api) -> Looked {
    let (operators, mut unknown) = access::resolve(&api.operators);
    let (viewers, more) = access::resolve(&api.viewers);
    unknown.extend(more);
    let address = |host: &str| host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let listen = api.listen.iter();
    let listen = listen.filter_map(|at| Some(SocketAddr::new(address(&at.host)?, at.port))).collect();
    Looked { number, operators, viewers, unknown, listen, token: api.token_file.as_deref().map(read_token) }
}

fn read_token(path: &Path) -> Result<Token, String> {
    let shown = path.display();
    let text = read(path, Trust::Deployed).map_err(|error| format!("{shown}: {}", error.why))?;
    Token::parse(&text).map_err(|why| format!("{shown}: {why}"))
}

impl Doors {
    /// Whether the token is another one, or none any more.
    fn bring_in_force(&mut self, looked: Looked) {
        let (own_uid, _) = process::ids();
        for name in &looked.unknown {
            tracing::info!("[api] names `{name}`, which is no user or group here");
        }
        self.rules.set_access(Access { own_uid, operators: looked.operators, viewers: looked.viewers });
        let (token, trouble) = match looked.token {
            None => (None, None),
            Some(Ok(token)) => (Some(token), None),
            Some(Err(why)) => (None, Some(why)),
        };
        self.token_trouble = trouble;
        let is_other = self.token != token;
        self.token = token.clone();
        self.rules.set_token(token);
        self.settings.send_if_modified(|settings| {
            let new =
                Settings { listen: looked.listen, token_number: settings.token_number + u64::from(is_other) };
            let changed = *settings != new;
            *settings = new;
            changed
        });
    }

    pub fn troubles(&self) -> Vec<Trouble> {
        let unheard = self.unheard.iter().map(|(at, why)| Trouble {
            code: Code::ApiListen.as_str().into(),
            message: format!("cannot listen on {at}: {why}"),
            help: "it is tried again every second; free the address, or name another in `listen`".into(),
        });
        let token = self.token_trouble.iter().map(|why| Trouble {
            code: Code::ApiToken.as_str().into(),
            message: format!("nobody can act over TCP: {why}"),
            help: "write a token into it, for example with `openssl rand -hex 32`, and let only its owner \
                   write it"
                .into(),
        });
        unheard.chain(token).collect()
    }
}

/// Who it was, as fields of a record.
pub fn who(peer: &Peer) -> Vec<(&'static str, Value)> {
    match peer {
        Peer::Local(Local { uid, pid, .. }) => {
            let user = accounts::user_name(*uid);
            vec![("uid", (*uid).into()), ("user", user.into()), ("pid", (*pid).into())]
        }
        Peer::Remote { from, proof } => {
            vec![("from", from.to_string().into()), ("token", (*proof == Proof::Token).into())]
        }
    }
}

impl Shell {
    /// Looks again at what `[api]` comes to: names and the token may have changed.
    pub(crate) fn look_at_api(&mut self) {
        self.doors.looks += 1;
        let (number, api) = (self.doors.looks, self.files.daemon.api.clone());
        let sources = self.hands.tools.sources.clone();
        let begun = aside("api", move || {
            let _ = sources.send(Source::Door(Heard::Looked(look(number, &api)))); // the loop has ended
        });
        if let Err(error) = begun {
            tracing::warn!("cannot look at [api] yet: {error}");
            self.hands.again(limits::SHORTAGE_RETRY, Again::Files);
        }
    }

    pub(crate) fn on_door(&mut self, heard: Heard) {
        match heard {
            Heard::Looked(looked) => self.on_looked_at_api(looked),
            Heard::Unheard(unheard) => self.on_unheard(unheard),
            Heard::Denied(denied) => self.on_denied(denied),
            Heard::Answered(answered) => self.on_answered(answered),
        }
    }

    fn on_looked_at_api(&mut self, looked: Looked) {
        if looked.number != self.doors.looks {
            return; // a newer one is under way
        }
        let before = self.doors.token_trouble.clone();
        self.doors.bring_in_force(looked);
        if let Some(why) = self.doors.token_trouble.clone().filter(|why| before.as_ref() != Some(why)) {
            self.note(Level::Warn, "api.token_unusable", format!("nobody can act over TCP: {why}"), []);
        }
    }

    fn on_unheard(&mut self, unheard: BTreeMap<SocketAddr, String>) {
        let before = std::mem::replace(&mut self.doors.unheard, unheard.clone());
        for (at, why) in unheard.iter().filter(|(at, _)| !before.contains_key(at)) {
            let message = format!("cannot listen on {at}: {why}; it is tried again");
            self.note(Level::Warn, "api.listen_failed", message, [("address", at.to_string().into())]);
        }
        for at in before.keys().filter(|at| !unheard.contains_key(at)) {
            let message = format!("{at} is no trouble any more");
            self.note(Level::Info, "api.listen_mended", message, [("address", at.to_string().into())]);
        }
    }

    fn on_denied(&mut self, denied: Denied) {
        let Some(before) = self.doors.refusals.count(clock::monotonic()) else { return };
        let Denied { peer, route, code } = denied;
        let asked = format!("{} {}", route.method, route.pattern);
        let more =
            if before == 0 { String::new() } else { format!("; {before} before it are not on record") };
        let message = format!("{peer} asked for {asked} and was refused: {code}{more}");
        let what = [("route", asked.into()), ("code", code.into()), ("unrecorded", before.into())];
        self.note(Level::Warn, "order.refused", message, who(&peer).into_iter().chain(what));
    }

    /// Has the outcome of a request for a change put on record, whether anybody waits for it or not.
    pub(crate) fn audited(&self, asked: Asked) -> Asked {
        let Some(verb) = asked.call.changes() else { return asked };
        let Asked { peer, call, reply } = asked;
        let (inner, answer) = oneshot::channel();
        let (sources, who) = (self.hands.tools.sources.clone(), peer.clone());
        tokio::spawn(async move {
            let Ok(answer) = answer.await else { return };
            let answered = Answered::of(who, verb, &answer);
            let _ = sources.send(Source::Door(Heard::Answered(answered))); // the loop has ended
            let _ = reply.send(answer); // whoever asked has left
        });
        Asked { peer, call, reply: inner }
    }

    fn on_answered(&mut self, answered: Answered) {
        let Answered { peer, verb, status, code, outcomes } = answered;
        let (level, what) = match &code {
            None => (Level::Info, "done".to_string()),
            Some(code) => (Level::Warn, format!("not done, {code}")),
        };
        // Mistakes cost nothing, so they come in floods.
        let before = match &code {
            None => 0,
            Some(_) => match self.doors.refusals.count(clock::monotonic()) {
                Some(before) => before,
                None => return,
            },
        };
        let message = format!("what {peer} asked for, {verb}, is {what}");
        let fields = [
            ("verb", verb.into()),
            ("status", status.into()),
            ("code", code.into()),
            ("outcomes", Value::Object(outcomes)),
            ("unrecorded", before.into()),
        ];
        self.note(level, "order.answered", message, who(&peer).into_iter().chain(fields));
    }
}

impl Answered {
    fn of(peer: Peer, verb: &'static str, answer: &Answer) -> Answered {
        let mut answered = Answered { peer, verb, status: 200, code: None, outcomes: Map::new() };
        match answer {
            Answer::Error(status, error) => {
                answered.status = *status;
                answered.code = Some(error.code.clone());
            }
            Answer::Json(text) => {
                let reply: Option<ActionReply> = serde_json::from_slice(text).ok();
                let outcomes = reply.into_iter().flat_map(|reply| reply.outcomes);
                answered.outcomes = outcomes.map(|one| (one.unit, one.outcome.into())).collect();
                let failed = answered.outcomes.values().any(|outcome| outcome == "failed");
                answered.code = failed.then(|| "order.failed".to_string());
            }
            Answer::Plain(status, _) => answered.status = *status,
            Answer::Web(..) | Answer::Metrics(..) | Answer::Stream(_) | Answer::Pieces(..) => {}
        }
        answered
    }
}
