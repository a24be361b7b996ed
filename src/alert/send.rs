//! One attempt on a channel that is no file: secrets, facts, request, answer, all of it before one
//! deadline.
//!
//! Refuses: a second attempt. When there is one is `engine::outbox`'s business.

use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::ClientConfig;

use crate::alert::gather::Gatherer;
use crate::alert::mail::{self, Letter};
use crate::alert::request::Request;
use crate::alert::secret::Secrets;
use crate::alert::story::Story;
use crate::alert::{alertmanager, discord, http, ntfy, pagerduty, slack, teams, tls, webhook};
use crate::base::duration::Pretty;
use crate::base::hidden::Hidden;
use crate::engine::outbox::{Outcome, Row};
use crate::probe;
use crate::sys::clock;
use crate::sys::command::{self, Ended};
use crate::sys::threads::aside;
use crate::unit::channels::Channel;

/// An attempt takes at most this, looking the name up included.
const ATTEMPT_MAX: Duration = Duration::from_secs(10);

/// The command of `exec`: so that it is told as late by whoever killed it.
const COMMAND_MAX: Duration = Duration::from_millis(9_500);

/// What was made of the channel, its secrets and the alert: all that needs no network.
enum Ready {
    Http {
        request: Request,
        tls: Option<Arc<ClientConfig>>,
    },
    Mail(Box<Letter>),
    /// It has been done.
    Over(Outcome),
}

/// Sends one message for these rows, the first of which is the one that it is about.
pub async fn send(channel: Arc<Channel>, row: Arc<Row>, others: Vec<Arc<Row>>, gather: Gatherer) -> Outcome {
    let facts = gather.facts(&row).await;
    let story = Story { row, others, facts };
    match tokio::time::timeout(ATTEMPT_MAX, attempt(channel, story)).await {
        Ok(outcome) => outcome,
        Err(_) => later(format!("no answer within {}", Pretty(ATTEMPT_MAX))),
    }
}

/// Asks for a URL, and nothing else.
pub async fn get(url: Hidden) -> Outcome {
    let asked = async {
        let tls = match http::is_https(url.expose()) {
            false => None,
            // The system's certificates are files: read aside.
            true => match aside("alert", || tls::config(None)) {
                Ok(config) => match config.await {
                    Ok(Ok(config)) => Some(config),
                    Ok(Err(why)) => return later(why),
                    Err(_) => return later("what reads the certificates has ended".to_string()),
                },
                Err(error) => return later(format!("no thread to prepare it with: {error}")),
            },
        };
        http::send(&Request::get(url), tls).await
    };
    match tokio::time::timeout(ATTEMPT_MAX, asked).await {
        Ok(outcome) => outcome,
        Err(_) => later(format!("no answer within {}", Pretty(ATTEMPT_MAX))),
    }
}

async fn attempt(channel: Arc<Channel>, story: Story) -> Outcome {
    let begun = aside("alert", move || prepare(&channel, &story));
    let ready = match begun {
        Ok(ready) => ready.await,
        Err(error) => return later(format!("no thread to prepare it with: {error}")),
    };
    match ready {
        Ok(Ready::Http { request, tls }) => http::send(&request, tls).await,
        Ok(Ready::Mail(letter)) => bring(*letter).await,
        Ok(Ready::Over(outcome)) => outcome,
        Err(_) => later("what prepares it has ended".to_string()),
    }
}

/// May wait for disks; runs the program of `exec`, until its deadline.
fn prepare(channel: &Channel, story: &Story) -> Ready {
    // What cannot be read now may be there in a minute: a mount, a secret that is being replaced.
    let over = |why: String| Ready::Over(later(why));
    if let Some(command) = channel.command.as_ref().filter(|_| channel.kind == "exec") {
        return Ready::Over(execute(&command.argv, story));
    }
    let secrets = match Secrets::of(channel) {
        Ok(secrets) => secrets,
        Err(why) => return over(why),
    };
    if channel.kind == "email" {
        return match mail::letter(&channel.mail, &secrets, story) {
            Ok(letter) => Ready::Mail(Box::new(letter)),
            Err(why) => over(why),
        };
    }
    let request = match request(channel.kind, &secrets, story) {
        Ok(request) => request,
        Err(why) => return Ready::Over(Outcome::Refused { why: why.to_string() }),
    };
    if !http::is_https(request.url.expose()) {
        return Ready::Http { request, tls: None };
    }
    match tls::config(secrets.ca.as_deref()) {
        Ok(config) => Ready::Http { request, tls: Some(config) },
        Err(why) => over(why),
    }
}

fn request(kind: &str, secrets: &Secrets, story: &Story) -> Result<Request, &'static str> {
    let secret = secrets.secret.as_ref();
    if kind == "pagerduty" {
        let key = secret.ok_or("there is no `secret_file`")?;
        return Ok(pagerduty::request(story, secrets.url.clone(), key));
    }
    let url: &Hidden = secrets.url.as_ref().ok_or("there is no `url`")?;
    Ok(match kind {
        "slack" => Request::post(url.clone(), &slack::body(story)),
        "webhook" => webhook::request(story, url.clone(), secret),
        "alertmanager" => alertmanager::request(story, url, secret),
        "ntfy" => ntfy::request(story, url, secret)?,
        "discord" => Request::post(url.clone(), &discord::body(story)),
        "teams" => Request::post(url.clone(), &teams::body(story)),
        _ => return Err("nobody knows this kind"),
    })
}

fn execute(argv: &[String], story: &Story) -> Outcome {
    let input = format!("{}\n", story.json());
    match command::run(argv, input.as_bytes(), clock::monotonic() + COMMAND_MAX) {
        Ok(Ended::Code(0)) => Outcome::Acked,
        Ok(Ended::Code(code)) => later(format!("the command exits with {code}")),
        Ok(Ended::Killed(signal)) => later(format!("the command was killed by {signal}")),
        Ok(Ended::Late) => later(format!("the command was not done within {}", Pretty(COMMAND_MAX))),
        Err(error) => later(format!("cannot run the command: {error}")),
    }
}

async fn bring(letter: Letter) -> Outcome {
    let addresses = match probe::addresses(letter.host()).await {
        Ok(addresses) => addresses,
        Err(why) => return later(why),
    };
    match reachable(&addresses).await {
        Ok(address) => letter.bring(address.ip()).await,
        Err(why) => later(why),
    }
}

/// The first address that accepts: a mail server with two addresses may listen on one.
async fn reachable(addresses: &[std::net::SocketAddr]) -> Result<std::net::SocketAddr, String> {
    let [first, others @ ..] = addresses else { return Err("the host has no address".to_string()) };
    if others.is_empty() {
        return Ok(*first); // it will be seen
    }
    let mut last = String::new();
    for address in addresses {
        match tokio::net::TcpStream::connect(address).await {
            Ok(_) => return Ok(*address),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

fn later(why: String) -> Outcome {
    Outcome::Failed { why, retry_after: None }
}
