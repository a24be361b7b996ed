//! A tiny language for the engine: units, then events at their times; out come the effects.
//!
//! Refuses: real time. Ticks come by themselves, exactly when the engine asks for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use upright::base::check::{HostPort, NetCheck, ProbeOutcome};
use upright::base::duration::{Pretty, parse};
use upright::base::exit::{Exit, RunId, SpawnStep};
use upright::base::name::UnitName;
use upright::base::signal::Signal;
use upright::base::time::Monotonic;
use upright::engine::adopt::{Boot, Inheritance};
use upright::engine::effect::Effect;
use upright::engine::event::{Event, Order, RequestId, Rest, Said};
use upright::engine::{Effects, Engine, Settings};
use upright::unit::spec::{
    Command, Edge, Health, HealthCheck, OnLoss, OnReturn, ReadyWhen, Reload, RestartPolicy, Resync, ResyncBy,
    ServiceType, UnitSpec,
};

/// An engine under a script.
pub struct Play {
    pub engine: Engine,
    pub now: Monotonic,
    requests: u64,
    /// `time effect`, in order.
    pub lines: Vec<String>,
}

pub fn name(text: &str) -> UnitName {
    UnitName::parse(text).expect("a unit name")
}

/// `unit NAME key=value …`
pub fn unit(line: &str) -> Arc<UnitSpec> {
    let mut words = line.split_whitespace().skip(1);
    let mut spec = UnitSpec::minimal(name(words.next().expect("a name")), vec!["/bin/x".to_string()]);
    let hook = || Command { argv: vec!["/bin/hook".to_string()] };
    let names = |list: &str| list.split(',').map(name).collect::<Vec<_>>();
    let time = |text: &str| parse(text).expect("a duration");
    for word in words {
        let (key, value) = word.split_once('=').expect("key=value");
        match key {
            "requires" => spec.unit.requires = names(value),
            "wants" => spec.unit.wants = names(value),
            "after" => spec.unit.after = names(value),
            "conflicts" => spec.unit.conflicts = names(value),
            "enabled" => spec.unit.enabled = value == "true",
            "type" => {
                assert_eq!(value, "oneshot");
                spec.service.kind = ServiceType::Oneshot;
                spec.readiness.timeout = None;
            }
            "policy" => {
                spec.restart.policy = match value {
                    "on-failure" => RestartPolicy::OnFailure,
                    "never" => RestartPolicy::Never,
                    other => panic!("policy {other}"),
                }
            }
            "delays" => spec.restart.delays = value.split(',').map(time).collect(),
            "give_up_after" => spec.restart.give_up_after = value.parse().expect("a number"),
            "reset_after" => spec.restart.reset_after = time(value),
            "stop_timeout" => spec.stop.timeout = time(value),
            "timeout" => spec.readiness.timeout = Some(time(value)),
            "settle" => spec.readiness.settle = time(value),
            "ready" => {
                spec.readiness.when = match value {
                    "notify" => ReadyWhen::Notify,
                    "tcp" => ReadyWhen::Net(NetCheck::Tcp(HostPort { host: "127.0.0.1".into(), port: 1 })),
                    "exec" => ReadyWhen::Exec(hook()),
                    "log" => ReadyWhen::Log("up".into()),
                    other => panic!("ready {other}"),
                }
            }
            "health" => spec.health = Some(health(value)),
            "resync" => restores(&mut spec, value),
            "start_pre" => spec.service.start_pre = vec![hook(); value.parse().expect("a number")],
            "start_post" => spec.service.start_post = vec![hook(); value.parse().expect("a number")],
            "stop_post" => spec.service.stop_post = vec![hook(); value.parse().expect("a number")],
            "stop_command" => spec.stop.command = Some(hook()),
            "reload_command" => spec.reload = Reload::Command(hook()),
            other => panic!("unknown key {other}"),
        }
    }
    Arc::new(spec)
}

fn loopback(port: u16) -> NetCheck {
    NetCheck::Tcp(HostPort { host: "127.0.0.1".into(), port })
}

fn health(value: &str) -> Health {
    let time = |text: &str| parse(text).expect("a duration");
    let check = match value {
        "tcp" => HealthCheck::Net(loopback(2)),
        "exec" => HealthCheck::Exec(Command { argv: vec!["/bin/hook".to_string()] }),
        "watchdog" => HealthCheck::Watchdog(time("10s")),
        other => panic!("health {other}"),
    };
    Health { check, interval: time("5s"), timeout: time("3s"), threshold: 2, grace: time("0s") }
}

/// `[resync]`, asked for whenever one of what it requires returns.
fn restores(spec: &mut UnitSpec, value: &str) {
    let time = |text: &str| parse(text).expect("a duration");
    let by = match value {
        "tcp" => ResyncBy::Net(loopback(3)),
        "exec" => ResyncBy::Command(Command { argv: vec!["/bin/hook".to_string()] }),
        other => panic!("resync {other}"),
    };
    spec.resync = Some(Resync { by, timeout: time("2s"), delays: vec![time("5s"), time("10s")] });
    for other in spec.unit.requires.clone() {
        let edge = Edge { on_loss: OnLoss::Degrade, on_return: OnReturn::Resync };
        spec.dependency.insert(other, edge);
    }
}

impl Play {
    pub fn begin(units: Vec<Arc<UnitSpec>>) -> Play {
        Play::inheriting(Inheritance {
            engine: Default::default(),
            deaths: Vec::new(),
            boot: Boot::Fresh,
            units,
            durable: BTreeMap::new(),
            adopted: Vec::new(),
            populated: BTreeSet::new(),
            next_run: RunId(1),
        })
    }

    pub fn inheriting(inherited: Inheritance) -> Play {
        let mut fx = Effects::default();
        let settings = Settings { start_concurrency: 32, seed: 1 };
        let engine = Engine::new(Monotonic::ZERO, settings, inherited, &mut fx);
        let mut play = Play { engine, now: Monotonic::ZERO, requests: 0, lines: Vec::new() };
        play.note(fx);
        play
    }

    fn note(&mut self, mut fx: Effects) {
        for effect in fx.drain() {
            self.lines.extend(said(&effect).map(|text| format!("{} {text}", at(self.now))));
        }
        if let Err(violation) = self.engine.check() {
            panic!("{violation:?} after\n{}", self.lines.join("\n"));
        }
    }

    pub fn step(&mut self, event: Event) {
        let mut fx = Effects::default();
        self.engine.step(self.now, event, &mut fx);
        self.note(fx);
    }

    pub fn order(&mut self, order: Order) {
        self.requests += 1;
        self.step(Event::Ordered { request: RequestId(self.requests), order });
    }

    /// Time passes up to `to`, with every tick that the engine asks for.
    pub fn pass(&mut self, to: Monotonic) {
        while let Some(due) = self.engine.next_deadline().filter(|due| *due <= to) {
            self.now = self.now.max(due);
            self.step(Event::Tick);
        }
        self.now = to;
    }

    /// `at 5s exited 1 code 1` and so on: the words after the time.
    pub fn perform(&mut self, words: &[&str]) {
        let run = |text: &str| RunId(text.parse().expect("a run"));
        let units = |list: &[&str]| list.iter().map(|text| name(text)).collect::<Vec<_>>();
        match words {
            ["lives", number] => {
                self.step(Event::Spawned { run: run(number), pid: 100 });
                self.step(Event::Executed { run: run(number) });
            }
            ["spawned", number] => self.step(Event::Spawned { run: run(number), pid: 100 }),
            ["exited", number, how @ ..] => {
                let (exit, rest) = ended(how);
                self.step(Event::Exited { run: run(number), at: self.now, exit, rest });
            }
            ["short", number] => self.step(Event::SpawnShort { run: run(number), errno: 24 }),
            ["emptied", unit] => self.step(Event::Emptied { unit: name(unit) }),
            ["probed", number, "ok"] => {
                self.step(Event::Probed { run: run(number), outcome: ProbeOutcome::Ok })
            }
            ["probed", number, seen @ ..] => {
                let outcome = ProbeOutcome::Failed(seen.join(" "));
                self.step(Event::Probed { run: run(number), outcome });
            }
            ["checked", number, "ok"] => {
                self.step(Event::Checked { run: run(number), outcome: ProbeOutcome::Ok })
            }
            ["checked", number, seen @ ..] => {
                let outcome = ProbeOutcome::Failed(seen.join(" "));
                self.step(Event::Checked { run: run(number), outcome });
            }
            ["resynced", number, "ok"] => {
                self.step(Event::Resynced { run: run(number), outcome: ProbeOutcome::Ok })
            }
            ["resynced", number, seen @ ..] => {
                let outcome = ProbeOutcome::Failed(seen.join(" "));
                self.step(Event::Resynced { run: run(number), outcome });
            }
            ["pinged", number] => self.step(Event::Pinged { run: run(number) }),
            ["triggered", number] => self.step(Event::WatchdogTriggered { run: run(number) }),
            ["says", number, "stopping"] => self.step(Event::Said { run: run(number), said: Said::Stopping }),
            ["says", number, "reloading"] => {
                self.step(Event::Said { run: run(number), said: Said::Reloading })
            }
            ["asks", number, by] => {
                let by = parse(by).expect("a duration");
                self.step(Event::Said { run: run(number), said: Said::ExtendTimeout(by) });
            }
            ["resync", list @ ..] => self.order(Order::Resync(units(list))),
            ["ready", number] => self.step(Event::NotifiedReady { run: run(number) }),
            ["matched", number] => self.step(Event::LogMatched { run: run(number) }),
            ["start", list @ ..] => self.order(Order::Start(units(list))),
            ["stop", list @ ..] => self.order(Order::Stop(units(list))),
            ["restart", list @ ..] => self.order(Order::Restart(units(list))),
            ["reload", list @ ..] => self.order(Order::Reload(units(list))),
            ["clear", list @ ..] => self.order(Order::Clear(units(list))),
            ["signal", unit] => self.order(Order::Signal(name(unit), Signal::HUP)),
            ["outage", unit] => self.order(Order::Outage(name(unit), None)),
            ["outage", unit, until] => {
                let until = Monotonic::ZERO + parse(until).expect("a duration");
                self.order(Order::Outage(name(unit), Some(until)));
            }
            ["shutdown"] => self.order(Order::Shutdown),
            ["tick"] => self.step(Event::Tick),
            ["show", unit] => {
                let view = self.engine.view_of(&name(unit)).expect("the unit");
                let line = format!("{} {unit} is {}: {}", at(self.now), view.state.as_str(), view.reason);
                self.lines.push(line);
            }
            other => panic!("unknown words {other:?}"),
        }
    }
}

fn ended(how: &[&str]) -> (Exit, Rest) {
    let (how, rest) = match how {
        [how @ .., "leaving", "children"] => (how, Rest::Alive),
        how => (how, Rest::Empty),
    };
    let exit = match how {
        ["code", code] => Exit::Code(code.parse().expect("0 to 255")),
        ["signal", signal] => Exit::Signal { signal: Signal::parse(signal).expect("a signal"), core: false },
        ["unexecuted", "short"] => Exit::NotExecuted { step: SpawnStep::Fds, errno: 24 },
        ["unexecuted"] => Exit::NotExecuted { step: SpawnStep::Exec, errno: 2 },
        other => panic!("unknown end {other:?}"),
    };
    (exit, rest)
}

pub fn at(time: Monotonic) -> String {
    Pretty(time.since(Monotonic::ZERO)).to_string()
}

/// An effect in few words; rows are left out, for the records say the same.
pub fn said(effect: &Effect) -> Option<String> {
    Some(match effect {
        Effect::Spawn { unit, run, role } => format!("spawn {unit} {role:?} #{run}"),
        Effect::Signal { run, signal } => format!("signal #{run} {signal}"),
        Effect::End { run, signal } => format!("end #{run} {signal}"),
        Effect::SignalAll { unit, signal } => format!("signal all of {unit} {signal}"),
        Effect::KillAll { unit } => format!("kill all of {unit}"),
        Effect::Release { run } => format!("release #{run}"),
        Effect::Probe { unit, run } => format!("probe {unit} #{run}"),
        Effect::WatchLog { unit, run } => format!("watch the log of {unit} #{run}"),
        Effect::Check { unit, run } => format!("check {unit} #{run}"),
        Effect::Resync { unit, run } => format!("resync {unit} #{run}"),
        Effect::Alert(alert) => format!("alert {}: {}", alert.key, alert.message),
        Effect::Save { .. } | Effect::SaveEngine(_) => return None,
        Effect::Forget { unit } => format!("forget {unit}"),
        Effect::Record(record) => {
            let unit = record.unit.as_ref().map(UnitName::to_string).unwrap_or_default();
            format!("{unit}: {}", plain(&format!("{:?}", record.kind)))
        }
        Effect::Reply { request, outcomes } => {
            format!("answer {}: {}", request.0, plain(&format!("{outcomes:?}")))
        }
        Effect::Finished => "finished".to_string(),
    })
}

/// Debug text without the names of our types.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(from) = rest.find("Monotonic(") {
        let (head, tail) = rest.split_at(from);
        let tail = &tail["Monotonic(".len()..];
        let (number, tail) = tail.split_once(')').expect("a closed number");
        out.push_str(head);
        out.push_str(&at(Monotonic::from_ns(number.parse().expect("nanoseconds"))));
        rest = tail;
    }
    out.push_str(rest);
    let mut short = String::new();
    let mut rest = out.as_str();
    while let Some(from) = rest.find("UnitName(\"") {
        let (head, tail) = rest.split_at(from);
        let (name, tail) = tail["UnitName(\"".len()..].split_once("\")").expect("a closed name");
        short.push_str(head);
        short.push_str(name);
        rest = tail;
    }
    short.push_str(rest);
    short.replace("Signal(15)", "TERM").replace("Signal(9)", "KILL")
}
