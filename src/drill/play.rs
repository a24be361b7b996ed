//! A drill under way: chooses whom to hurt, asks for the faults, waits for the recoveries, tells the story.
//!
//! Refuses: judging, and hurting what the daemon does not name as drillable.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::api::client::ClientError;
use crate::api::drills::{DrillList, DrillReply, DrillRequest, Ended, FaultKind, Step};
use crate::api::summary::Summary;
use crate::api::types::{AlertList, EventLine, SystemHealth, Unit, UnitList};
use crate::base::duration::Pretty;
use crate::base::time::Monotonic;
use crate::drill::load::Load;
use crate::drill::sample::{Recorder, Sample, States, states};
use crate::drill::scenario::{Fault, Kind, On, Pace, Scenario, Until};
use crate::drill::talk::Talk;
use crate::drill::verdict::{self, Verdict};
use crate::drill::{Asked, Done, DrillError, papers, plain, report, requests};
use crate::sys::clock;

/// How long what was raised may take to reach a channel, until it counts as missed.
const ALERT_WAIT: Duration = Duration::from_secs(15);

/// The same when the channels were cut: until the next try, whose delay has grown meanwhile.
const CUT_ALERT_WAIT: Duration = Duration::from_secs(120);

/// How often a unit may be hurt at most until an alert is raised: every setting that somebody would choose.
const ALERT_BLOWS_MAX: u32 = 12;

/// How long everything may take to be as before, behind the last recovery.
const CALM_WAIT: Duration = Duration::from_secs(60);

/// How long an engine may take to be replaced.
const ENGINE_WAIT: Duration = Duration::from_secs(20);

/// Who is hurt how, in one round.
struct Blow {
    kind: Kind,
    unit: Option<Unit>,
    wait: Duration,
    until: Until,
}

pub(super) struct Play<'a> {
    asked: &'a Asked,
    scenario: Scenario,
    out: &'a mut dyn Write,
    talk: Talk,
    id: String,
    recorder: Recorder,
    dir: PathBuf,
    begun_at: Monotonic,
    begun: String,
    before: States,
    known: DrillList,
    /// When each unit was hurt last, until it has recovered.
    open: BTreeMap<String, u64>,
    /// Faults that are to be undone as soon as their units have recovered.
    struck: Vec<u64>,
    /// Alerts so far.
    raised: u64,
    /// While it goes on.
    load: Option<Load>,
}

impl<'a> Play<'a> {
    /// Tells the daemon that a drill begins.
    ///
    /// # Errors
    /// It does not answer, or another drill runs; nothing can be written where samples belong.
    pub fn begin(
        asked: &'a Asked,
        scenario: Scenario,
        out: &'a mut dyn Write,
    ) -> Result<Play<'a>, DrillError> {
        let talk = Talk::open(&asked.socket)?;
        let now = clock::wall();
        let id = format!("{}-{}-{}", scenario.name, now.strftime("%Y%m%d%H%M%S"), std::process::id());
        let list: UnitList = talk.get("/v1/units")?;
        let health: SystemHealth = talk.get("/api/system/health")?;
        let known: DrillList = talk.get("/v1/drills?limit=1")?;
        let dir = asked.logs.join("drills");
        let before = states(&list);
        let begun = now.to_string();
        let begun_at = clock::monotonic();
        let request =
            DrillRequest { scenario: Some(scenario.name.clone()), ..DrillRequest::new(&id, Step::Begin) };
        talk.step(&request)?;
        // Where this fails the process ends, and the drill with it.
        let mut recorder = Recorder::create(&dir.join(format!("{id}.jsonl")))?;
        recorder.add(Sample::Begin {
            ts: begun.clone(),
            drill: id.clone(),
            scenario: scenario.name.clone(),
            version: list.daemon.version,
            fatal_stops: health.fatal_stops,
            units: before.clone(),
        })?;
        let mut play = Play {
            asked,
            scenario,
            out,
            talk,
            id,
            recorder,
            dir,
            begun_at,
            begun,
            before,
            known,
            open: BTreeMap::new(),
            struck: Vec::new(),
            raised: 0,
            load: None,
        };
        let line = format!("drill {}: {}", play.id, play.scenario.description);
        play.tell(&line);
        Ok(play)
    }

    /// # Errors
    /// The daemon refuses a fault, or does not come back.
    pub fn play(&mut self) -> Result<(), DrillError> {
        let (talk, recorder, plan) = (&self.talk, &mut self.recorder, &self.scenario.load);
        self.load = Load::begin(self.asked, &self.id, &self.begun, plan, talk, recorder)?;
        let lines = self.load.as_ref().map(Load::told).unwrap_or_default();
        lines.iter().for_each(|line| self.tell(line));
        match self.scenario.pace {
            Pace::OneByOne => self.play_one_by_one(),
            Pace::Interval => self.play_by_interval(),
        }?;
        self.await_recovered()?;
        self.undo(None)?;
        self.await_calm()?;
        self.await_alerts()?;
        match self.load.take() {
            Some(load) => load.end(self.asked.stored_ids.as_deref(), &self.talk, &mut self.recorder),
            None => Ok(()),
        }
    }

    fn play_one_by_one(&mut self) -> Result<(), DrillError> {
        let rounds = self.scenario.iterations;
        let mut blows = 0_u32;
        for round in 1..=rounds {
            let faults = self.scenario.faults.clone();
            let all = self.blows(&faults)?;
            let count = u32::try_from(all.len()).unwrap_or(1).max(1);
            for blow in all {
                self.strike_out(round, rounds, blow)?;
                blows += 1;
                self.progress(blows.saturating_mul(95) / rounds.saturating_mul(count))?;
                self.hear_for(self.scenario.pause)?;
            }
        }
        Ok(())
    }

    /// Strikes and waits until all is well again, as often as it takes.
    fn strike_out(&mut self, round: u32, rounds: u32, mut blow: Blow) -> Result<(), DrillError> {
        let before = self.raised;
        for _ in 0..ALERT_BLOWS_MAX {
            self.strike(round, rounds, &blow)?;
            self.await_recovered()?;
            for number in std::mem::take(&mut self.struck) {
                self.undo(Some(number))?;
            }
            self.await_calm()?;
            if blow.until == Until::Once || self.raised > before {
                return Ok(());
            }
            self.hear_for(self.scenario.pause)?;
            // It is another process by now.
            blow.unit.iter_mut().for_each(|unit| unit.pid = None);
        }
        self.tell(&format!("      no alert was raised in {ALERT_BLOWS_MAX} rounds"));
        Ok(())
    }

    /// The next fault each `interval`, in turn, to whatever stands at that moment.
    fn play_by_interval(&mut self) -> Result<(), DrillError> {
        let end = clock::monotonic() + self.scenario.duration;
        let rounds = self.scenario.duration.as_millis() / self.scenario.interval.as_millis().max(1);
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX).max(1);
        let faults = self.scenario.faults.clone();
        let mut turn = 0_usize;
        for round in 1..=rounds {
            let until = clock::monotonic() + self.scenario.interval;
            let all = self.blows(&faults)?;
            let stands = |blow: &Blow| blow.unit.as_ref().is_none_or(is_up);
            let from = turn % all.len().max(1);
            let next = all.iter().cycle().skip(from).take(all.len()).position(stands);
            if let Some(blow) = next.and_then(|ahead| all.get((from + ahead) % all.len())) {
                turn = from + next.unwrap_or(0) + 1;
                self.strike(round, rounds, blow)?;
            }
            let until = until.min(end);
            self.hear_until(until)?;
            self.look()?;
            self.progress(round.saturating_mul(95) / rounds)?;
        }
        Ok(())
    }

    /// What a round of these faults is, unit by unit.
    fn blows(&mut self, faults: &[Fault]) -> Result<Vec<Blow>, DrillError> {
        let list: UnitList = self.talk.get("/v1/units")?;
        let mut all = Vec::new();
        for fault in faults {
            let needs_unit = matches!(fault.kind, Kind::Fault(kind) if kind.needs_unit());
            if fault.on == On::Daemon || !needs_unit {
                all.push(Blow { kind: fault.kind, unit: None, wait: fault.wait, until: fault.until });
                continue;
            }
            let chosen = choose(&list.units, &self.known, &self.asked.units, fault);
            if chosen.is_empty() {
                return Err(DrillError::Usage {
                    message: format!("no unit can be hurt by `{}`", fault.kind.as_str()),
                    help: "set `drillable = true` under [unit] of units that drills may hurt; a hang needs [health]"
                        .to_string(),
                });
            }
            all.extend(chosen.into_iter().map(|unit| Blow {
                kind: fault.kind,
                unit: Some(unit),
                wait: fault.wait,
                until: fault.until,
            }));
        }
        Ok(all)
    }

    fn strike(&mut self, round: u32, rounds: u32, blow: &Blow) -> Result<(), DrillError> {
        let whom = blow.unit.as_ref().map_or("the daemon".to_string(), |unit| {
            unit.pid.map_or(unit.name.clone(), |pid| format!("{} (process {pid})", unit.name))
        });
        let line = format!("{round}/{rounds}  {} {whom}: {}", blow.kind.as_str(), expected(blow.kind));
        self.tell(&line);
        let kind = match blow.kind {
            Kind::AbnormalRequests => return self.bother(),
            Kind::Fault(kind) => kind,
        };
        let request = DrillRequest {
            kind: Some(kind),
            unit: blow.unit.as_ref().map(|unit| unit.name.clone()),
            for_ms: Some(u64::try_from(blow.wait.as_millis()).unwrap_or(u64::MAX)),
            ..DrillRequest::new(&self.id, Step::Fault)
        };
        let engine_pid = match kind {
            FaultKind::EngineKill => Some(self.talk.get::<UnitList>("/v1/units")?.daemon.engine_pid),
            _ => None,
        };
        let Some(reply) = self.done_or_passed_over(self.talk.step(&request))? else { return Ok(()) };
        // What takes no part in the recovery goes on beside the faults that follow, until the end.
        self.struck.extend(reply.fault.filter(|_| kind != FaultKind::Channels));
        let at_ns = reply.at_ns.unwrap_or_else(|| clock::monotonic().as_ns());
        let unit = blow.unit.as_ref().map(|unit| unit.name.clone());
        let at_ns = match engine_pid {
            Some(pid) => self.kill_engine(pid)?,
            None => at_ns,
        };
        self.recorder.add(Sample::Fault {
            ts: clock::wall().to_string(),
            iteration: round,
            kind: kind.as_str().to_string(),
            unit: unit.clone(),
            at_ns,
        })?;
        match (kind, unit) {
            (FaultKind::EngineKill, _) => self.await_engine(at_ns, reply.fault),
            (FaultKind::ConfigCorrupt, Some(_)) => self.await_mended(at_ns, blow.wait),
            (FaultKind::Slow, Some(_)) | (FaultKind::DiskFull, _) => self.hear_for(blow.wait),
            (_, Some(unit)) => {
                self.open.insert(unit, at_ns);
                Ok(())
            }
            (_, None) => Ok(()),
        }
    }

    /// While faults overlap, a unit may have died by itself before its turn: it is passed over.
    fn done_or_passed_over(
        &mut self,
        reply: Result<DrillReply, ClientError>,
    ) -> Result<Option<DrillReply>, DrillError> {
        match reply {
            Err(ClientError::Api { error, .. })
                if self.scenario.pace == Pace::Interval
                    && (error.code == "drill.no_process" || error.code == "drill.busy") =>
            {
                let line = format!("      passed over: {}", error.message);
                self.tell(&line);
                Ok(None)
            }
            reply => Ok(Some(reply?)),
        }
    }

    /// What has been recovered from needs its fault no longer; none = every fault.
    fn undo(&mut self, number: Option<u64>) -> Result<(), DrillError> {
        self.talk.step(&DrillRequest { number, ..DrillRequest::new(&self.id, Step::Undo) })?;
        Ok(())
    }

    fn kill_engine(&mut self, pid: i32) -> Result<u64, DrillError> {
        let at = clock::monotonic();
        kill(Pid::from_raw(pid), Signal::SIGKILL)
            .map_err(|errno| DrillError::Failed(format!("cannot kill the engine, process {pid}: {errno}")))?;
        Ok(at.as_ns())
    }

    /// Until another engine has taken over and answers.
    fn await_engine(&mut self, at_ns: u64, number: Option<u64>) -> Result<(), DrillError> {
        let deadline = Monotonic::from_ns(at_ns) + ENGINE_WAIT;
        while let Some(event) = self.hear(deadline)? {
            if event.event == "engine.restarted" && event.at_ns >= at_ns {
                break;
            }
        }
        self.look()?;
        self.undo(number)
    }

    /// The file is broken for `wait`, then put back: both have to be told.
    fn await_mended(&mut self, at_ns: u64, wait: Duration) -> Result<(), DrillError> {
        let deadline = Monotonic::from_ns(at_ns) + wait + CALM_WAIT;
        while let Some(event) = self.hear(deadline)? {
            if event.event == "config.mended" && event.at_ns >= at_ns {
                break;
            }
        }
        Ok(())
    }

    fn bother(&mut self) -> Result<(), DrillError> {
        for target in requests::targets(&self.asked.socket, self.asked.base_url.as_deref()) {
            let counts = requests::bother(&target);
            let to = target.shown();
            let line = format!(
                "      {to}: {} requests, {} refused, {} answered with 5xx, {} times silent",
                counts.sent, counts.refused, counts.server_errors, counts.silent
            );
            self.tell(&line);
            self.recorder.add(Sample::Requests {
                ts: clock::wall().to_string(),
                to,
                sent: counts.sent,
                refused: counts.refused,
                server_errors: counts.server_errors,
                silent: counts.silent,
            })?;
        }
        Ok(())
    }

    /// Until every unit that was hurt has recovered, was given up, or has had its time.
    fn await_recovered(&mut self) -> Result<(), DrillError> {
        while let Some(first) = self.open.values().min().copied() {
            let deadline = Monotonic::from_ns(first) + self.scenario.recover_within;
            if self.hear(deadline)?.is_none() {
                let late: Vec<String> =
                    self.open.iter().filter(|(_, at)| **at == first).map(|(unit, _)| unit.clone()).collect();
                for unit in late {
                    self.open.remove(&unit);
                    let within = Pretty(self.scenario.recover_within);
                    let line =
                        format!("      {unit} has not recovered within {within}: it is waited for no longer");
                    self.tell(&line);
                }
            }
        }
        self.look()
    }

    /// Until all units are in the states in which the drill found them.
    fn await_calm(&mut self) -> Result<(), DrillError> {
        let deadline = clock::monotonic() + CALM_WAIT;
        loop {
            let list: UnitList = self.talk.get("/v1/units")?;
            let was = |unit: &Unit| self.before.get(&unit.name).map(|was| was.state.as_str());
            let ended = |unit: &&Unit| unit.state == "failed" || unit.state == "inactive";
            let gave_up = list.units.iter().filter(ended).any(|unit| was(unit) != Some(unit.state.as_str()));
            let same = |(name, was): (&String, &crate::drill::sample::UnitState)| {
                list.units.iter().any(|unit| unit.name == *name && unit.state == was.state && is_quiet(unit))
            };
            if gave_up || self.before.iter().all(same) || self.hear(deadline)?.is_none() {
                return Ok(());
            }
        }
    }

    /// Until every alert that was raised is with a channel.
    fn await_alerts(&mut self) -> Result<(), DrillError> {
        let cuts = self.scenario.faults.iter().any(|fault| fault.kind == Kind::Fault(FaultKind::Channels));
        let deadline = clock::monotonic() + if cuts { CUT_ALERT_WAIT } else { ALERT_WAIT };
        loop {
            let raised = self.alerts()?;
            let waits = |alert: &crate::api::types::AlertLine| {
                alert.channels.iter().any(|channel| channel.state == "pending")
                    && !alert.channels.iter().any(|channel| channel.state == "delivered")
            };
            if !raised.iter().any(waits) || self.hear(deadline)?.is_none() {
                return Ok(());
            }
        }
    }

    fn alerts(&self) -> Result<Vec<crate::api::types::AlertLine>, DrillError> {
        let list: AlertList = self.talk.get("/v1/alerts?limit=1000")?;
        let begun = clock::micros_of(&self.begun).unwrap_or(0);
        let since = |ts: &str| clock::micros_of(ts).is_some_and(|us| us >= begun);
        Ok(list.alerts.into_iter().filter(|alert| since(&alert.ts)).collect())
    }

    fn look(&mut self) -> Result<(), DrillError> {
        let list: UnitList = self.talk.get("/v1/units")?;
        let at_ns = clock::monotonic().as_ns();
        self.recorder.add(Sample::State { ts: clock::wall().to_string(), at_ns, units: states(&list) })?;
        Ok(())
    }

    fn progress(&mut self, progress: u32) -> Result<(), DrillError> {
        let progress = Some(u8::try_from(progress.min(99)).unwrap_or(99));
        self.talk.step(&DrillRequest { progress, ..DrillRequest::new(&self.id, Step::Progress) })?;
        Ok(())
    }

    fn hear_for(&mut self, wait: Duration) -> Result<(), DrillError> {
        self.hear_until(clock::monotonic() + wait)
    }

    fn hear_until(&mut self, deadline: Monotonic) -> Result<(), DrillError> {
        while self.hear(deadline)?.is_some() {}
        Ok(())
    }

    /// The next event, written down and told; none until the deadline.
    fn hear(&mut self, deadline: Monotonic) -> Result<Option<EventLine>, DrillError> {
        let event = self.talk.event_until(deadline);
        if let Some(load) = &self.load {
            load.drain(&mut self.recorder)?;
        }
        let Some(event) = event else { return Ok(None) };
        self.recorder.add(Sample::Event { event: event.clone() })?;
        self.raised += u64::from(event.event == "alert.raised");
        if let Some(unit) = &event.unit
            && let Some(hurt_ns) = self.open.get(unit).copied()
            && event.at_ns >= hurt_ns
            && matches!(event.event.as_str(), "unit.recovered" | "unit.gave_up")
        {
            self.open.remove(unit);
        }
        if is_story(&event) {
            let since = Monotonic::from_ns(event.at_ns).since(self.begun_at);
            let line = format!("      {:8.3} s  {}", since.as_secs_f64(), event.message);
            self.tell(&line);
        }
        Ok(Some(event))
    }

    fn tell(&mut self, line: &str) {
        let _ = writeln!(self.out, "{}", plain(line)); // a reader that left ends no drill
        let _ = self.out.flush(); // the same
    }

    /// Ends the drill, judges it, and leaves its papers.
    ///
    /// # Errors
    /// What had gone wrong before; the daemon does not answer.
    pub fn end(mut self, played: Result<(), DrillError>) -> Result<Done, DrillError> {
        if let Err(error) = played {
            let aborted =
                DrillRequest { status: Some(Ended::Aborted), ..DrillRequest::new(&self.id, Step::End) };
            let _ = self.talk.step(&aborted); // its process is about to end, which says the same
            return Err(error);
        }
        // What came with the last step is part of the story.
        self.hear_until(clock::monotonic())?;
        let since = crate::api::client::escaped(&self.begun);
        let summary: Summary = self.talk.get(&format!("/api/metrics/v0_1/summary?since={since}"))?;
        let health: SystemHealth = self.talk.get("/api/system/health")?;
        let list: UnitList = self.talk.get("/v1/units")?;
        let alerts = self.alerts()?;
        self.recorder.add(Sample::End {
            ts: clock::wall().to_string(),
            fatal_stops: health.fatal_stops,
            log_bytes: summary.split.all.log.bytes,
            log_dropped_bytes: summary.split.all.log.dropped_bytes,
            units: states(&list),
            alerts,
        })?;
        self.recorder.flush()?;
        let verdict = verdict::of(&self.recorder.samples);
        self.talk.step(&end_request(&self.id, &verdict))?;
        let dir = self.dir.join(&self.id);
        papers::write(&dir, &verdict)?;
        let text = report::text(&verdict);
        let _ = write!(self.out, "\n{text}"); // a reader that left ends no drill
        self.tell(&format!("report: {}", dir.join("report.md").display()));
        Ok(Done { id: self.id, verdict, dir })
    }
}

fn end_request(id: &str, verdict: &Verdict) -> DrillRequest {
    let status = if verdict.status == "passed" { Ended::Passed } else { Ended::Failed };
    // The stories are in the samples; what is kept in the store is short.
    let short = serde_json::json!({ "kpis": verdict.kpis, "latencies": verdict.latencies });
    DrillRequest {
        status: Some(status),
        verdict: short.as_object().cloned(),
        ..DrillRequest::new(id, Step::End)
    }
}

/// What a reader wants to hear of.
fn is_story(event: &EventLine) -> bool {
    let words = ["unit.", "retry.", "resync.", "alert.", "engine.", "config.", "drill.undone"];
    let said = words.iter().any(|word| event.event.starts_with(word));
    said && !matches!(event.event.as_str(), "unit.state" | "unit.started" | "unit.stopping")
}

fn is_up(unit: &Unit) -> bool {
    matches!(unit.state.as_str(), "active" | "degraded") && unit.pid.is_some()
}

/// Not about to restore its state.
fn is_quiet(unit: &Unit) -> bool {
    !unit.reason.contains("restoring") && !unit.reason.contains("not restored yet")
}

fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Fault(FaultKind::Kill) => "to be noticed at once, restarted after its delay, and ready again",
        Kind::Fault(FaultKind::Hang) => "to be found by its health check, killed, restarted, and ready again",
        Kind::Fault(FaultKind::Outage) => {
            "others to go on without it; when it may start again, all to be as before"
        }
        Kind::Fault(FaultKind::Slow) => "to go on, slowly",
        Kind::Fault(FaultKind::ConfigCorrupt) => {
            "to be told with its place, nothing to stop, and to be well when it is put back"
        }
        Kind::Fault(FaultKind::EngineKill) => "another to take over, and no service to notice",
        Kind::Fault(FaultKind::DiskFull) => {
            "services to go on, and what they write to be kept back until there is room"
        }
        Kind::Fault(FaultKind::Channels) => "what is raised meanwhile to arrive when they are back",
        Kind::AbnormalRequests => "to be refused, without a 5xx, and nothing to change",
    }
}

/// Whom a fault is done to.
fn choose(units: &[Unit], known: &DrillList, only: &[String], fault: &Fault) -> Vec<Unit> {
    let needed = |name: &str| units.iter().any(|unit| unit.requires.iter().any(|other| other == name));
    let may = |unit: &&Unit| {
        known.drillable.contains(&unit.name)
            && (only.is_empty() || only.contains(&unit.name))
            && (fault.kind != Kind::Fault(FaultKind::Hang) || known.checked.contains(&unit.name))
            && unit.wanted
    };
    let able: Vec<&Unit> = units.iter().filter(may).collect();
    let chosen: Vec<&Unit> = match fault.on {
        On::Front => {
            let front = able.iter().filter(|unit| !needed(&unit.name));
            let best = front.max_by_key(|unit| unit.requires.len()).or(able.first());
            best.copied().into_iter().collect()
        }
        On::Requirements => able.iter().filter(|unit| needed(&unit.name)).copied().collect(),
        On::All => able,
        On::Daemon => Vec::new(),
    };
    chosen.into_iter().cloned().collect()
}
