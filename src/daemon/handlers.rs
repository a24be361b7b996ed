//! `Call` → `Answer`: looks names up, copies views, hands orders to the engine.
//!
//! Refuses: deciding what an order does, and answering "done" before it is committed.

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::api::call::{Answer, Call, Peer, Verb};
use crate::api::types::{
    ActionReply, ConfigHealth, DaemonInfo, ErrorBody, SystemHealth, Trouble, UnitCard, UnitList, UnitOutcome,
};
use crate::base::{name::UnitName, signal::Signal};
use crate::daemon::doors;
use crate::daemon::reload::Reader;
use crate::daemon::scrape::Wanted;
use crate::daemon::shell::Shell;
use crate::daemon::{lines, streams, views};
use crate::engine::effect::Outcome;
use crate::engine::event::Order;
use crate::engine::safe::Mode;
use crate::engine::view::{StateWord, UnitView};
use crate::store::row::{EventQuery, Level, Pick};
use crate::store::trouble::Code;
use crate::sys::clock;

/// Last log lines and last events on a unit's card.
const CARD_LINES: u64 = 10;
const CARD_EVENTS: usize = 20;

/// `schema_version` of the unit list.
const SCHEMA_VERSION: u32 = 1;

/// A call on its way through the loop.
pub struct Asked {
    pub peer: Peer,
    pub call: Call,
    pub reply: oneshot::Sender<Answer>,
}

/// Whether an order is answered when it is taken or when it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    Taken,
    Done,
}

impl Until {
    pub(crate) fn from_wait(wait: bool) -> Until {
        if wait { Until::Done } else { Until::Taken }
    }
}

/// An error answer.
pub fn refuse(status: u16, code: &str, message: String, help: Option<String>) -> Answer {
    Answer::Error(status, ErrorBody { code: code.to_string(), message, help })
}

/// 200 with the JSON of `value`.
pub fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(text) => Answer::Json(Bytes::from(text)),
        Err(error) => {
            refuse(500, "answer.unwritable", format!("cannot write the answer as JSON: {error}"), None)
        }
    }
}

impl Shell {
    /// Answers a call, now or when what it needs is there.
    pub(crate) fn on_call(&mut self, asked: Asked) {
        let Asked { peer, call, reply } = self.audited(asked);
        let answer = match call {
            Call::Livez => Answer::Plain(200, "ok"),
            Call::Readyz => Answer::Plain(200, "ready"),
            Call::Metrics(form) => return self.answer_metrics(Wanted::Text(form), reply),
            Call::SystemMetrics => return self.answer_metrics(Wanted::Json, reply),
            Call::Health => json(&self.health()),
            Call::Units => json(&self.unit_list()),
            Call::ConfigErrors => json(&self.config_health()),
            Call::ConfigPlan => return self.read_files(Reader::Plan(reply)),
            Call::Drills { limit } => return self.answer_drills(limit, reply),
            Call::Drill { drill, step } => return self.on_drill_step(peer, drill, step, reply),
            Call::Upgrade => self.upgrade_status(),
            Call::BeginUpgrade => return self.begin_upgrade(peer, reply),
            Call::ConfigApply { wait } => return self.apply_files(peer, wait, reply),
            Call::Unit { name } => return self.answer_card(&name, reply),
            Call::Act { verb, units, all, wait } => {
                let units = match (all, verb) {
                    (true, Verb::Resync) => Ok(self.units_with_resync()),
                    (true, _) => Ok(self.every_unit()),
                    (false, _) => self.known(&units),
                };
                match units {
                    Ok(units) => return self.act(peer, verb, units, Until::from_wait(wait), reply),
                    Err(answer) => *answer,
                }
            }
            Call::RestartInactive { wait } => {
                let units = self.wanted_but_not_ready();
                return self.act(peer, Verb::Restart, units, Until::from_wait(wait), reply);
            }
            Call::Signal { name, signal } => match (self.known(&[name]), Signal::parse(&signal)) {
                (Err(answer), _) => *answer,
                (Ok(_), None) => {
                    let help = "write for example SIGUSR1".to_string();
                    refuse(400, "request.malformed", format!("`{signal}` is no signal"), Some(help))
                }
                (Ok(units), Some(signal)) => {
                    let Some(unit) = units.into_iter().next() else { return };
                    let order = Order::Signal(unit.clone(), signal);
                    return self.order(peer, order, &[unit], Until::Done, reply);
                }
            },
            Call::Logs(query) => {
                let named = &query.units;
                let units = if named.is_empty() { Ok(self.every_unit()) } else { self.known(named) };
                match units {
                    Ok(mut units) => {
                        units.sort_unstable();
                        units.dedup();
                        if query.follow {
                            self.hands.open_spools(&units);
                        }
                        return lines::answer_logs(self.hands.log_sources(&units), query, reply);
                    }
                    Err(answer) => *answer,
                }
            }
            Call::Page(kind) => return self.answer_page(&peer, kind, reply),
            Call::News { follow } => return self.answer_news(&peer, follow, reply),
            Call::Summary { since } => return self.answer_summary(since, reply),
            Call::Alerts(call) => return self.on_alert_call(peer, call, reply),
            Call::Events { after_id, since, limit, follow } => {
                let query = streams::EventsAsked { after_id, since, limit, follow };
                return streams::answer_events(&self.hands.history(), query, reply);
            }
        };
        let _ = reply.send(answer); // whoever asked has left
    }

    fn apply_files(&mut self, peer: Peer, wait: bool, reply: oneshot::Sender<Answer>) {
        self.read_files(Reader::Apply(peer, Until::from_wait(wait), reply));
    }

    /// Those that "every unit" can mean when state is to be restored.
    fn units_with_resync(&self) -> Vec<UnitName> {
        let mut units = self.every_unit();
        units.retain(|unit| self.hands.specs.get(unit).is_some_and(|spec| spec.resync.is_some()));
        units
    }

    fn act(
        &mut self,
        peer: Peer,
        verb: Verb,
        units: Vec<UnitName>,
        until: Until,
        reply: oneshot::Sender<Answer>,
    ) {
        if units.is_empty() {
            let _ = reply.send(json(&ActionReply { outcomes: Vec::new() })); // whoever asked has left
            return;
        }
        let order = match verb {
            Verb::Start => Order::Start(units.clone()),
            Verb::Stop => Order::Stop(units.clone()),
            Verb::Restart => Order::Restart(units.clone()),
            Verb::Reload => Order::Reload(units.clone()),
            Verb::Clear => Order::Clear(units.clone()),
            Verb::Resync => Order::Resync(units.clone()),
        };
        self.order(peer, order, &units, until, reply);
    }

    /// Writes down who asked for what, gives it to the engine, and sees to the answer.
    fn order(
        &mut self,
        peer: Peer,
        order: Order,
        units: &[UnitName],
        until: Until,
        reply: oneshot::Sender<Answer>,
    ) {
        self.audit(&peer, &order, units);
        match until {
            Until::Done => self.order_and_wait(order, reply),
            Until::Taken => {
                self.order_unasked(order);
                let outcomes = units.iter().map(|unit| views::accepted(unit, self.state_of(unit))).collect();
                self.hands.answer_when_committed(reply, json(&ActionReply { outcomes }));
            }
        }
    }

    fn audit(&mut self, peer: &Peer, order: &Order, units: &[UnitName]) {
        let verb = match order {
            Order::Start(_) => "start",
            Order::Stop(_) => "stop",
            Order::Restart(_) => "restart",
            Order::Reload(_) => "reload",
            Order::Clear(_) => "clear",
            Order::Resync(_) => "resync",
            Order::Signal(..) => "signal",
            Order::Outage(..) => "outage",
            Order::AwaitUp(_) | Order::AwaitDown(_) => "await",
            Order::Shutdown => "shutdown",
        };
        let names: Vec<&str> = units.iter().map(UnitName::as_str).collect();
        let message = format!("{peer} asked to {verb} {}", names.join(", "));
        let what = [("verb", verb.into()), ("units", names.into_iter().collect())];
        self.note(Level::Info, "order.asked", message, doors::who(peer).into_iter().chain(what));
    }

    /// The answer to an order, as soon as it is on the disk.
    pub(crate) fn action_reply(&self, outcomes: &[(UnitName, Outcome)]) -> Answer {
        let outcomes: Vec<UnitOutcome> = outcomes
            .iter()
            .map(|(unit, outcome)| views::outcome(unit, outcome, self.state_of(unit)))
            .collect();
        json(&ActionReply { outcomes })
    }

    pub(crate) fn state_of(&self, unit: &UnitName) -> Option<StateWord> {
        self.engine.view_of(unit).map(|view| view.state)
    }

    fn every_unit(&self) -> Vec<UnitName> {
        self.engine.view().into_iter().map(|view| view.name).collect()
    }

    fn wanted_but_not_ready(&self) -> Vec<UnitName> {
        let views = self.engine.view().into_iter();
        views.filter(|view| view.wanted && !views::is_ready(view)).map(|view| view.name).collect()
    }

    /// Every name as a unit, or the answer that says which is none.
    pub(crate) fn known(&self, names: &[String]) -> Result<Vec<UnitName>, Box<Answer>> {
        names.iter().map(|name| self.known_unit(name)).collect()
    }

    fn known_unit(&self, text: &str) -> Result<UnitName, Box<Answer>> {
        if let Ok(name) = UnitName::parse(text)
            && self.engine.view_of(&name).is_some()
        {
            return Ok(name);
        }
        let known = self.every_unit();
        let near = known
            .iter()
            .map(|name| (strsim::damerau_levenshtein(name.as_str(), text), name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.as_str().len() / 3);
        let help = match near {
            Some((_, name)) => format!("did you mean `{name}`?"),
            None => "`upright status` lists the units".to_string(),
        };
        let shown: String = text.chars().take(80).collect();
        let message = format!("no unit is named `{shown}`");
        Err(Box::new(refuse(404, "unit.unknown", message, Some(help))))
    }

    fn daemon_info(&self) -> DaemonInfo {
        DaemonInfo {
            version: env!("CARGO_PKG_VERSION").to_string(),
            mode: match self.engine.mode(self.clocks().now) {
                Mode::Normal => "normal",
                Mode::Safe => "safe",
            }
            .to_string(),
            keeper_pid: self.keeper_pid,
            engine_pid: i32::try_from(std::process::id()).unwrap_or(0),
            started_at: self.clocks().date(self.started_at),
            containment: self.hands.containment_word().to_string(),
            troubles: self.troubles(),
            mutes: self.mutes(),
        }
    }

    pub(crate) fn unit_list(&self) -> UnitList {
        let clocks = self.clocks();
        let units = self.engine.view().iter().map(|view| views::unit(view, clocks)).collect();
        UnitList { schema_version: SCHEMA_VERSION, daemon: self.daemon_info(), units }
    }

    fn config_health(&self) -> ConfigHealth {
        ConfigHealth { errors: self.files.errors.clone(), unapplied: self.files.unapplied }
    }

    pub(crate) fn health(&self) -> SystemHealth {
        let clocks = self.clocks();
        let views = self.engine.view();
        let uptime = clocks.now.since(self.started_at);
        SystemHealth {
            status: self.color(&views).to_string(),
            units: views::counts(&views),
            config: self.config_health(),
            fatal_stops: self.fatal_stops,
            uptime_s: uptime.as_secs_f64(),
            troubles: self.troubles(),
        }
    }

    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        let tools = &self.hands.tools;
        let told = tools.store.troubles().into_iter().chain(tools.log.trouble());
        let logs = self.hands.output.trouble();
        let late = tools.outbox.late().into_iter().map(|channel| Trouble {
            code: Code::AlertOverdue.as_str().to_string(),
            message: format!("alerts wait for channel `{channel}` longer than 15 minutes"),
            help: "`upright alert list` says why".to_string(),
        });
        told.chain(logs)
            .map(|t| Trouble { code: t.code.as_str().to_string(), message: t.message, help: t.help })
            .chain(self.doors.troubles())
            .chain(late)
            .collect()
    }

    /// Red: a broken file or a failed unit. Yellow: something wanted is not there, something ails the
    /// daemon itself, or the engine does not trust itself. Green: all is as it should be.
    fn color(&self, views: &[UnitView]) -> &'static str {
        let failed = views.iter().any(|view| view.state == StateWord::Failed);
        if failed || !self.files.errors.is_empty() {
            return "red";
        }
        let missing =
            views.iter().any(|view| view.wanted && view.state != StateWord::Active && !is_done(view));
        let safe = self.engine.mode(clock::monotonic()) == Mode::Safe;
        if missing || safe || !self.troubles().is_empty() { "yellow" } else { "green" }
    }

    fn answer_card(&self, name: &str, reply: oneshot::Sender<Answer>) {
        let unit = match self.known_unit(name) {
            Ok(unit) => unit,
            Err(answer) => return drop(reply.send(*answer)),
        };
        let Some(view) = self.engine.view_of(&unit) else { return };
        let (card, removed) = (views::unit(&view, self.clocks()), view.removed);
        let query = EventQuery { unit: Some(unit.clone()), limit: CARD_EVENTS, ..EventQuery::default() };
        let why = EventQuery { pick: Pick::NewestOfEachKind, ..query.clone() };
        let sources = self.hands.log_sources(&[unit]);
        let history = self.hands.history();
        tokio::spawn(async move {
            let rows = history.ask(query).await.unwrap_or_default();
            let causes = history.ask(why).await.unwrap_or_default();
            let log_tail = lines::last_lines(sources, CARD_LINES).await;
            let history = rows.iter().map(views::event).collect();
            let causes = causes.iter().map(views::event).collect();
            let card = UnitCard { unit: card, log_tail, history, causes, removed };
            let _ = reply.send(json(&card)); // whoever asked has left
        });
    }
}

/// Wanted, and rightly not running: a oneshot that has done its work.
fn is_done(view: &UnitView) -> bool {
    view.state == StateWord::Inactive
}
