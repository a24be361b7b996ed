//! What an operator asks about alerts: to be told nothing for a time, to have taken an episode, to see
//! whether alerts arrive.
//!
//! Refuses: deciding what is held back and what is told afterwards (`engine::outbox`).

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::{broadcast, oneshot};

use crate::api::call::{AlertCall, Answer, Peer};
use crate::api::types::{ActionReply, MuteLine, MuteList, UnitOutcome};
use crate::base::{limits::EVENTS_PER_REPLY_MAX, name::UnitName, time::Monotonic};
use crate::daemon::doors;
use crate::daemon::handlers::{Until, json as answer, refuse};
use crate::daemon::shell::Shell;
use crate::daemon::streams;
use crate::daemon::views::{self, Clocks};
use crate::engine::effect::{Alert, AlertKind};
use crate::engine::outbox::{Quiet, Row};
use crate::store::alert::AlertRow;
use crate::store::row::{EventRow, Level};
use crate::store::writer::Write;

/// A test that has not arrived after this is told as it stands.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// As it is kept: times as dates, for they outlive a reboot.
fn to_text(quiet: &Quiet, clocks: Clocks) -> String {
    let units = quiet.units.iter().map(|(unit, until)| (unit.to_string(), clocks.us(*until).into()));
    let acked = quiet.acked.iter().map(|(unit, episode)| (unit.to_string(), (*episode).into()));
    json!({
        "all": quiet.all.map(|until| clocks.us(until)),
        "units": units.collect::<Map<String, Value>>(),
        "acked": acked.collect::<Map<String, Value>>(),
    })
    .to_string()
}

/// What cannot be read mutes nothing.
pub(super) fn from_text(text: &str, clocks: Clocks) -> Quiet {
    let read: Value = serde_json::from_str(text).unwrap_or_default();
    let pairs = |key: &str| read.get(key).and_then(Value::as_object).into_iter().flatten();
    let mut quiet = Quiet {
        all: read.get("all").and_then(Value::as_i64).map(|us| clocks.at(us)),
        units: pairs("units")
            .filter_map(|(unit, us)| Some((UnitName::parse(unit).ok()?, clocks.at(us.as_i64()?))))
            .collect(),
        acked: pairs("acked")
            .filter_map(|(unit, episode)| Some((UnitName::parse(unit).ok()?, episode.as_u64()?)))
            .collect(),
    };
    quiet.expire(clocks.now);
    quiet
}

impl Shell {
    /// What is asked about alerts.
    pub(crate) fn on_alert_call(&mut self, peer: Peer, call: AlertCall, reply: oneshot::Sender<Answer>) {
        match call {
            AlertCall::Test { channels, wait } => {
                self.test_alert(peer, channels, Until::from_wait(wait), reply)
            }
            AlertCall::Ack { names } => self.ack(peer, names, reply),
            AlertCall::Mute { units, wait } => match self.known(&units) {
                Ok(units) => self.mute(peer, units, wait, reply),
                Err(answer) => drop(reply.send(*answer)), // whoever asked has left
            },
            AlertCall::List { limit } => {
                let routes = self.hands.tools.outbox.routes();
                let quiet = (self.mutes(), self.quiet.clone());
                streams::answer_alerts(&self.hands.history().reader, routes, quiet, limit, reply);
            }
        }
    }

    /// Nothing is told of these units (none = all) for so long; without a time: from now on again.
    fn mute(
        &mut self,
        peer: Peer,
        units: Vec<UnitName>,
        wait: Option<Duration>,
        reply: oneshot::Sender<Answer>,
    ) {
        let clocks = self.clocks();
        let until = wait.map(|wait| clocks.now + wait);
        self.quiet.expire(clocks.now);
        self.quiet.mute(&units, until);
        let names: Vec<&str> = units.iter().map(UnitName::as_str).collect();
        let whose = if names.is_empty() { "all units".to_string() } else { names.join(", ") };
        let (event, message) = match until {
            Some(until) => {
                ("alert.mute_set", format!("{peer} muted alerts of {whose} until {}", clocks.date(until)))
            }
            None => ("alert.mute_ended", format!("{peer} ended the mute of {whose}")),
        };
        let data =
            [("units", names.into_iter().collect()), ("until", until.map(|until| clocks.date(until)).into())];
        self.note(Level::Info, event, message, doors::who(&peer).into_iter().chain(data));
        self.keep_quiet(clocks);
        let list = answer(&MuteList { mutes: self.mutes() });
        self.hands.answer_when_committed(reply, list);
    }

    /// Somebody has taken the trouble of these units: its repeats are not told. Each is a unit, or the id
    /// of an alert; none = every unit that people were alerted of.
    fn ack(&mut self, peer: Peer, named: Vec<String>, reply: oneshot::Sender<Answer>) {
        let named = if named.is_empty() { self.alerted() } else { named };
        let clocks = self.clocks();
        let mut taken = Vec::new();
        let mut outcomes = Vec::new();
        for name in named {
            let found = self.episode_of(&name);
            let (outcome, message) = match &found {
                Ok(_) => ("done", None),
                Err(why) => ("failed", Some(why.clone())),
            };
            let unit = found.as_ref().map_or(name, |(unit, _)| unit.to_string());
            let state = UnitName::parse(&unit).ok().and_then(|unit| self.state_of(&unit));
            let state = state.map_or("", |state| state.as_str()).to_string();
            outcomes.push(UnitOutcome { unit, outcome: outcome.to_string(), state, message });
            taken.extend(found.ok());
        }
        for (unit, episode) in taken {
            self.quiet.ack(&unit, episode);
            let message = format!("{peer} has taken the trouble of {unit}");
            let data = [("units", [unit.as_str()].into_iter().collect()), ("episode", episode.into())];
            self.note(Level::Info, "alert.acknowledged", message, doors::who(&peer).into_iter().chain(data));
        }
        self.keep_quiet(clocks);
        self.hands.answer_when_committed(reply, answer(&ActionReply { outcomes }));
    }

    /// An alert to see whether it arrives. No channel = all of them.
    fn test_alert(
        &mut self,
        peer: Peer,
        channels: Vec<String>,
        until: Until,
        reply: oneshot::Sender<Answer>,
    ) {
        let routes = self.hands.tools.outbox.routes();
        let known: Vec<String> = routes.iter().map(|route| route.channel.clone()).collect();
        if let Some(name) = channels.iter().find(|name| !known.contains(name)) {
            let shown: String = name.chars().take(80).collect();
            let message = format!("no channel of upright.toml is named `{shown}`");
            let help = Some(format!("there are: {}", known.join(", ")));
            return drop(reply.send(refuse(404, "channel.unknown", message, help))); // whoever asked has left
        }
        let clocks = self.clocks();
        let kind = AlertKind::Test;
        let key = format!("upright/{}/{}", kind.as_str(), clocks.wall_us);
        let message = format!("this is a test, asked for by {peer}; nothing is wrong");
        let data = [("key", key.clone().into()), ("kind", kind.as_str().into())];
        // Subscribed before it is raised: no delivery is missed.
        let fresh = self.hands.tools.fresh.subscribe();
        let said = format!("raised an alert: {message}");
        self.note(Level::Info, "alert.raised", said, doors::who(&peer).into_iter().chain(data));
        let alert = Alert {
            key: key.clone(),
            unit: None,
            kind,
            message,
            failures: 0,
            episode: 0,
            affected: Vec::new(),
            channels: (!channels.is_empty()).then(|| channels.clone()),
        };
        let row =
            AlertRow { row: Row { id: u64::MAX, ts_us: clocks.wall_us, alert }, deliveries: Vec::new() };
        let alert = row.row.alert.clone();
        self.hands.keep(Write::Alert { alert, ts_us: clocks.wall_us });
        self.hands.end_step();
        match until {
            Until::Taken => {
                let line = views::alert(&row, &routes, &self.quiet);
                self.hands.answer_when_committed(reply, answer(&line));
            }
            Until::Done => {
                let open = if channels.is_empty() { known } else { channels };
                let (reader, quiet) = (self.hands.history().reader, self.quiet.clone());
                tokio::spawn(async move {
                    // However it went: the store says how far it is.
                    let _ = tokio::time::timeout(TEST_TIMEOUT, arrived(fresh, &key, open)).await;
                    reader.alerts(EVENTS_PER_REPLY_MAX, move |rows| {
                        let rows = rows.unwrap_or_default();
                        let found = rows.iter().find(|found| found.row.alert.key == key);
                        let line = found.map(|found| views::alert(found, &routes, &quiet));
                        let _ = reply.send(line.map_or_else(not_kept, |line| answer(&line))); // it has left
                    });
                });
            }
        }
    }

    /// The mutes that are in force.
    pub(crate) fn mutes(&self) -> Vec<MuteLine> {
        let clocks = self.clocks();
        let mut quiet = self.quiet.clone();
        quiet.expire(clocks.now);
        let line = |unit: Option<String>, until| MuteLine { unit, until: clocks.date(until) };
        let all = quiet.all.map(|until| line(None, until));
        let units = quiet.units.iter().map(|(unit, until)| line(Some(unit.to_string()), *until));
        all.into_iter().chain(units).collect()
    }

    fn keep_quiet(&mut self, clocks: Clocks) {
        let text = to_text(&self.quiet, clocks);
        self.hands.keep(Write::Quiet(text));
        self.hands.end_step();
        self.hands.tools.outbox.quieted(self.quiet.clone());
    }

    fn alerted(&self) -> Vec<String> {
        let views = self.engine.view().into_iter();
        views.filter(|view| view.alerted_episode.is_some()).map(|view| view.name.to_string()).collect()
    }

    /// The unit and episode that a unit's name or an alert's id (`unit/episode/kind/number`) means.
    fn episode_of(&self, name: &str) -> Result<(UnitName, u64), String> {
        let mut parts = name.split('/');
        let unit = parts.next().and_then(|text| UnitName::parse(text).ok());
        let named: Option<Option<u64>> = parts.next().map(|text| text.parse().ok());
        let view = unit.and_then(|unit| self.engine.view_of(&unit));
        let Some(view) = view.filter(|_| named != Some(None)) else {
            return Err("it is no unit, and no alert of one; `upright alert list` shows ids".to_string());
        };
        match (view.alerted_episode, named.flatten()) {
            (None, _) => Err("nobody was alerted of it, or that is over".to_string()),
            (Some(now), Some(then)) if now != then => Err("that trouble is over".to_string()),
            (Some(episode), _) => Ok((view.name, episode)),
        }
    }
}

impl Clocks {
    fn us(self, at: Monotonic) -> i64 {
        let us = |at: Monotonic| i64::try_from(at.as_ns() / 1_000).unwrap_or(i64::MAX);
        self.wall_us.saturating_add(us(at)).saturating_sub(us(self.now))
    }

    fn at(self, wall_us: i64) -> Monotonic {
        let ahead_us = u64::try_from(wall_us.saturating_sub(self.wall_us)).unwrap_or(0);
        self.now + Duration::from_micros(ahead_us)
    }
}

/// Until each of these channels has it, or will never have it.
async fn arrived(mut fresh: broadcast::Receiver<EventRow>, key: &str, open: Vec<String>) {
    let mut open: BTreeSet<String> = open.into_iter().collect();
    while !open.is_empty() {
        let Ok(row) = fresh.recv().await else { return };
        let text = |name: &str| row.event.data.get(name).and_then(Value::as_str);
        let settled = matches!(row.event.event.as_str(), "alert.delivered" | "alert.parked");
        if let Some(channel) = text("channel").filter(|_| settled && text("key") == Some(key)) {
            open.remove(channel);
        }
    }
}

fn not_kept() -> Answer {
    let help = Some("`upright status` says what ails the store; supervision goes on".to_string());
    refuse(503, "store.unavailable", "the alert is not on the disk yet".to_string(), help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_what_is_over_does_not() {
        let now = Monotonic::ZERO + Duration::from_secs(1_000);
        let clocks = Clocks { now, wall_us: 1_700_000_000_000_000 };
        let unit = |name: &str| UnitName::parse(name).expect("a name");
        let mut quiet = Quiet::default();
        quiet.mute(&[], Some(now + Duration::from_secs(60)));
        quiet.mute(&[unit("web")], Some(now + Duration::from_secs(5)));
        quiet.ack(&unit("db"), 3);
        let text = to_text(&quiet, clocks);
        assert_eq!(from_text(&text, clocks), quiet);
        // After a reboot: another monotonic clock, ten seconds later.
        let later = Monotonic::ZERO + Duration::from_secs(20);
        let back = from_text(&text, Clocks { now: later, wall_us: clocks.wall_us + 10_000_000 });
        assert_eq!(back.all, Some(later + Duration::from_secs(50)));
        assert!(back.units.is_empty());
        assert_eq!(back.acked, quiet.acked);
        assert_eq!(from_text("no json", clocks), Quiet::default());
    }
}
