//! What one unit's card says, in clauses: how it is, what it did, who asked for it.
//!
//! Refuses: guessing. Each clause is a state the daemon shows or an event that it recorded.

use std::collections::BTreeSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use crate::api::types::{EventLine, UnitCard};
use crate::cli::render::escape_line;
use crate::cli::when;
use crate::cli::why::{Cause, Why};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dates {
    /// `12:00:03`, with the day when it is not today.
    Short,
    /// RFC 3339.
    Full,
}

/// How times read inside of sentences.
#[derive(Clone, Debug)]
pub struct Clock {
    pub now: Timestamp,
    pub zone: TimeZone,
    pub dates: Dates,
}

impl Clock {
    pub fn time(&self, at: &str) -> String {
        let Ok(parsed) = at.parse::<Timestamp>() else { return escape_line(at) };
        match self.dates {
            Dates::Full => at.to_string(),
            Dates::Short => {
                let (at, now) = (parsed.to_zoned(self.zone.clone()), self.now.to_zoned(self.zone.clone()));
                let format = if at.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
                at.strftime(format).to_string()
            }
        }
    }

    /// `12:00:03 (3m 12s ago)`
    pub fn since(&self, at: &str) -> String {
        match self.dates {
            Dates::Full => self.time(at),
            Dates::Short => format!("{} ({})", self.time(at), when::ago(at, self.now)),
        }
    }

    /// `in 7s (12:00:10)`
    fn due(&self, at: &str) -> String {
        format!("{} ({})", when::until(at, self.now), self.time(at))
    }
}

/// What one card says.
pub struct Told<'a> {
    card: &'a UnitCard,
    /// Every event known of the unit, newest first.
    events: Vec<&'a EventLine>,
    user: &'a dyn Fn(u32) -> Option<String>,
    clock: Clock,
}

impl<'a> Told<'a> {
    pub fn new(card: &'a UnitCard, user: &'a dyn Fn(u32) -> Option<String>, clock: &Clock) -> Told<'a> {
        let mut events: Vec<&EventLine> = card.history.iter().chain(&card.causes).collect();
        events.sort_by_key(|event| std::cmp::Reverse(event.id));
        events.dedup_by_key(|event| event.id);
        Told { card, events, user, clock: clock.clone() }
    }

    /// Since when it is in its state. An engine that took over knows its own beginning only; the
    /// record of the step into the state knows better.
    pub fn since(&self) -> &'a str {
        let unit = &self.card.unit;
        let (into, out): (&[&str], &[&str]) = match unit.state.as_str() {
            "active" => {
                (&["unit.active", "unit.restored"], &["unit.failed", "unit.stopping", "unit.degraded"])
            }
            "degraded" => (&["unit.degraded"], &["unit.restored", "unit.active"]),
            "failed" => (&["unit.gave_up", "unit.stuck"], &["unit.started", "unit.unstuck"]),
            _ => return &unit.since,
        };
        let left = self.newest(out).map_or(0, |event| event.id);
        match self.newest(into) {
            // A clock may have been set since: only an earlier time is a better one.
            Some(event) if event.id > left && event.ts < unit.since => &event.ts,
            Some(_) | None => &unit.since,
        }
    }

    fn name(&self) -> &str {
        &self.card.unit.name
    }

    /// The newest event of one of these names.
    fn newest(&self, names: &[&str]) -> Option<&'a EventLine> {
        self.events.iter().find(|event| names.contains(&event.event.as_str())).copied()
    }

    /// The newest order that says whether it shall run.
    fn order(&self) -> Option<&'a EventLine> {
        let moves = |event: &&&EventLine| {
            event.event == "order.taken"
                && matches!(
                    event.data.get("verb").and_then(Value::as_str),
                    Some("start" | "stop" | "restart")
                )
        };
        self.events.iter().find(moves).copied()
    }

    fn order_of(&self, verb: &str) -> Option<&'a EventLine> {
        self.order().filter(|event| event.data.get("verb").and_then(Value::as_str) == Some(verb))
    }

    /// `root, process 77`: from the note that stands before the order.
    fn by(&self, order: &EventLine) -> Option<String> {
        let verb = order.data.get("verb")?;
        let asked = self.events.iter().find(|event| {
            event.event == "order.asked" && event.id < order.id && event.data.get("verb") == Some(verb)
        })?;
        if let Some(from) = asked.data.get("from").and_then(Value::as_str) {
            return Some(format!("with the token, from {from}"));
        }
        let uid = u32::try_from(asked.data.get("uid")?.as_u64()?).ok()?;
        let who = (self.user)(uid).unwrap_or_else(|| format!("user {uid}"));
        match asked.data.get("pid").and_then(Value::as_i64) {
            Some(pid) => Some(format!("{who}, process {pid}")),
            None => Some(who),
        }
    }

    /// `an operator's `stop` (root, process 77) at 12:00:03`
    fn operator(&self, order: &EventLine) -> String {
        let verb = order.data.get("verb").and_then(Value::as_str).unwrap_or("order");
        let by = self.by(order).map(|by| format!(" ({by})")).unwrap_or_default();
        format!("an operator's `{verb}`{by} at {}", self.clock.since(&order.ts))
    }

    /// Units whose own why belongs to this one.
    pub fn leads_to(&self) -> Vec<String> {
        let unit = &self.card.unit;
        let mut names = unit.waiting_for.clone();
        if matches!(unit.state.as_str(), "backoff" | "failed") {
            // Down when it failed; where they are up again, that is told too.
            names.extend(self.blame());
        }
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// The requirements that were down at the last failure.
    fn blame(&self) -> Vec<String> {
        let blame = self.newest(&["unit.failed"]).and_then(|event| event.data.get("blame"));
        let names = blame.and_then(Value::as_array).into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_string).collect()
    }

    /// `was killed (SIGKILL) at 12:00:03`
    fn failure(&self) -> Option<String> {
        let event = self.newest(&["unit.failed"])?;
        let cause = event.cause.as_deref().unwrap_or("it failed");
        // An exit reads as what the unit did; other causes do not.
        let by_exit = ["exit_code", "signal", "step"].iter().any(|key| event.data.contains_key(*key));
        let is_hook = event.data.contains_key("hook");
        let said = if by_exit && !is_hook { cause.to_string() } else { format!("failed: {cause}") };
        let blame = self.blame();
        let blame =
            if blame.is_empty() { String::new() } else { format!(", while {} was down", blame.join(", ")) };
        Some(format!("{said} at {}{blame}", self.clock.time(&event.ts)))
    }

    /// What follows the unit's name when others ask why.
    pub fn clause(&self, because: &[Why]) -> String {
        let unit = &self.card.unit;
        let reason = &unit.reason;
        let since = self.clock.since(self.since());
        match unit.state.as_str() {
            "backoff" => {
                let failed = self.failure().unwrap_or_else(|| format!("failed: {reason}"));
                match &unit.next_retry_at {
                    Some(at) => {
                        format!("{failed}; retry {} follows {}", unit.failures, self.clock.due(at))
                    }
                    None => failed,
                }
            }
            "failed" if reason.starts_with("stuck") => format!("is {reason}; since {since}"),
            "failed" => format!("{reason}, at {since}; it is held until somebody clears it"),
            "inactive" => self.inactive_clause(),
            "waiting" => self.waiting_clause(because),
            "activating" => {
                let after = match unit.failures {
                    0 => String::new(),
                    k => format!("; it is restart {k}, after it {}", self.failure().unwrap_or_default()),
                };
                format!("has been starting since {since}: {reason}{after}")
            }
            "deactivating" => self.deactivating_clause(),
            "degraded" => {
                let roots: Vec<String> =
                    because.iter().map(|why| format!("{} {}", why.unit, why.clause)).collect();
                if roots.is_empty() {
                    return format!("is degraded: {reason}");
                }
                format!("is degraded, because {}", roots.join("; and "))
            }
            "active" if unit.health == "unhealthy" => format!("is active, but {}", self.bad_health()),
            _ => format!("is {}: {reason}, since {since}", unit.state),
        }
    }

    fn bad_health(&self) -> String {
        let Some(event) = self.newest(&["health.bad"]) else { return "its last health check was bad".into() };
        let said = event.cause.as_deref().unwrap_or("no reason");
        format!("its health checks are bad since {}: {said}", self.clock.since(&event.ts))
    }

    /// The sentence of a unit that stands below another: what is below it in turn is told there.
    pub fn below(&self, clause: &str, because: &[Why]) -> String {
        let names: Vec<&str> = because.iter().map(|why| why.unit.as_str()).collect();
        match (self.card.unit.state.as_str(), names.is_empty()) {
            ("degraded", false) => {
                format!("{} is degraded: it goes on without {}", self.name(), names.join(", "))
            }
            ("waiting", false) => format!("{} waits for {}", self.name(), names.join(", ")),
            (_, _) => self.sentence(clause, because),
        }
    }

    pub fn sentence(&self, clause: &str, because: &[Why]) -> String {
        let name = self.name();
        match self.card.unit.state.as_str() {
            "backoff" => format!("{name} is in backoff, because it {clause}"),
            "inactive" => format!("{name} is inactive: it {clause}"),
            "failed" => format!("{name} has failed: it {clause}"),
            "waiting" if !because.is_empty() => format!("{name} {}", self.waiting_sentence(because)),
            _ => format!("{name} {clause}"),
        }
    }

    fn inactive_clause(&self) -> String {
        let unit = &self.card.unit;
        if unit.reason.starts_with("finished") {
            let at = self.newest(&["unit.finished"]).map_or(&unit.since, |event| &event.ts);
            return format!("{}, at {}", unit.reason, self.clock.since(at));
        }
        if let Some(order) = self.order_of("stop") {
            return format!("was stopped by {}", self.operator(order));
        }
        match self.newest(&["unit.stopped"]) {
            Some(event) => {
                format!("was stopped at {}, and nothing wants it up", self.clock.time(&event.ts))
            }
            None if unit.reason.starts_with("not wanted") => {
                format!("is {}, and nobody ordered a start", unit.reason)
            }
            None => format!("is {}; nothing recorded says why", unit.reason),
        }
    }

    fn waiting_clause(&self, because: &[Why]) -> String {
        match because.first() {
            Some(why) => format!("waits for {}, which {}", why.unit, why.clause),
            None if self.card.unit.reason.starts_with("waiting") => format!("is {}", self.card.unit.reason),
            None => format!("is waiting: {}", self.card.unit.reason),
        }
    }

    /// What it requires is the reason; an order or a conflict has one in the daemon's words.
    fn waiting_sentence(&self, because: &[Why]) -> String {
        let unit = &self.card.unit;
        let needed = because.iter().filter(|why| unit.requires.contains(&why.unit) || why.since.is_none());
        let roots: Vec<String> = needed.map(|why| format!("{} {}", why.unit, why.clause)).collect();
        if roots.is_empty() {
            return format!("is {}", unit.reason);
        }
        format!("is waiting, because {}", roots.join("; and "))
    }

    /// The newest alert of this episode.
    fn alert(&self) -> Option<&'a EventLine> {
        let over = self.newest(&["episode.ended"]).map_or(0, |event| event.id);
        let raised = |event: &&&EventLine| {
            let kind = event.data.get("kind").and_then(Value::as_str);
            event.event == "alert.raised" && event.id > over && kind != Some("recovered")
        };
        self.events.iter().find(raised).copied()
    }

    fn deactivating_clause(&self) -> String {
        let reason = &self.card.unit.reason;
        if self.card.removed {
            return format!("is being stopped, because its file is gone: {reason}");
        }
        let began = self.newest(&["unit.stopping", "unit.failed"]);
        if began.is_some_and(|event| event.event == "unit.failed") {
            let failed = self.failure().unwrap_or_default();
            return format!("{failed}; what is left of it is being ended: {reason}");
        }
        // An order older than its last readiness asked for that, not for this.
        let ready = self.newest(&["unit.active"]).map_or(0, |event| event.id);
        let order = self.order_of("stop").or_else(|| self.order_of("restart"));
        match order.filter(|order| order.id > ready) {
            Some(order) => format!("is being stopped by {}: {reason}", self.operator(order)),
            None => format!("is being stopped: {reason}"),
        }
    }

    pub fn notes(&self) -> Vec<String> {
        let unit = &self.card.unit;
        let mut notes = Vec::new();
        if unit.health == "unhealthy" && unit.state != "active" {
            notes.push(self.bad_health());
        }
        let failing = matches!(unit.state.as_str(), "active" | "degraded") && unit.failures > 0;
        if failing && let Some(failure) = self.failure() {
            let count = unit.failures;
            let word = if count == 1 { "failure counts" } else { "failures count" };
            notes.push(format!(
                "{count} {word} until it has stayed ready for long enough; the last: it {failure}"
            ));
        }
        if let Some(event) = self.newest(&["resync.failed", "resync.succeeded"])
            && event.event == "resync.failed"
            && matches!(unit.state.as_str(), "active" | "degraded")
        {
            let said = event.cause.as_deref().unwrap_or("no reason");
            notes.push(format!("its state was not restored at {}: {said}", self.clock.time(&event.ts)));
        }
        if unit.failures > 0
            && let Some(alert) = self.alert()
        {
            notes.push(format!("an alert was raised at {}", self.clock.time(&alert.ts)));
        }
        notes
    }

    pub fn help(&self) -> Vec<String> {
        let unit = &self.card.unit;
        let name = &unit.name;
        let logs = format!("`upright logs {name} -n 50` shows what it wrote");
        match unit.state.as_str() {
            "backoff" => vec![logs, format!("`upright start {name}` tries again at once")],
            "failed" if unit.reason.starts_with("stuck") => {
                vec![
                    "nothing to type: the kernel holds a process; look at its disks and network mounts"
                        .into(),
                ]
            }
            "failed" => vec![logs, format!("`upright clear {name}` starts it again, when the cause is gone")],
            "inactive" if !self.card.removed => vec![format!("`upright start {name}` starts it")],
            "activating" => vec![format!("`upright logs {name} -f` shows how it comes up")],
            "active" if unit.reason.contains("could not be restored") => {
                vec![format!("`upright resync {name}` tries again")]
            }
            _ => Vec::new(),
        }
    }

    pub fn causes(&self) -> Vec<Cause> {
        let ours = self.events.iter().filter(|event| event.unit.as_deref() == Some(self.name()));
        ours.map(|event| Cause {
            at: event.ts.clone(),
            unit: self.name().to_string(),
            event: event.event.clone(),
            message: event.message.clone(),
            cause: event.cause.clone(),
            run: event.run,
            by: if event.event == "order.taken" { self.by(event) } else { None },
        })
        .collect()
    }
}
