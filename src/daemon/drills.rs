//! Drills: who runs one, which faults are done to whom, and that each of them is undone: by the drill, at its
//! time limit, when the drill's process dies, or by the next engine.
//!
//! A fault stands in the store before it is done. What is undone twice is harmless, so the journal may be
//! behind, never ahead.
//!
//! Refuses: units that are not `drillable`, faults without an end, and a second drill beside the first.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::api::call::{Answer, Local, Peer};
use crate::api::drills::{DrillLine, DrillList, DrillReply, DrillStep, Ended, FaultKind, FaultLine};
use crate::base::name::UnitName;
use crate::daemon::handlers::{json, refuse};
use crate::daemon::hands::{Late, Source};
use crate::daemon::shell::Shell;
use crate::daemon::{doors, faults};
use crate::engine::event::Order;
use crate::store::drill::DrillRow;
use crate::store::row::Level;
use crate::store::writer::Write;
use crate::sys::clock::{self, rfc3339};
use crate::sys::watched::{Wake, watched};
use crate::sys::{pidfd, proctree};

/// How long a killed engine may take to be missed and replaced, until its death is no drill's any more.
const ENGINE_KILL_MAX: Duration = Duration::from_secs(60);

/// What the loop hears about drills.
pub enum Heard {
    /// The drill's process has ended.
    OwnerGone { drill: String },
    /// A fault has lasted as long as it may.
    Limit { drill: String, number: u64 },
    /// The next turn of a unit that is made slow.
    Beat { drill: String, number: u64, go: faults::Go },
}

/// A fault as the journal has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Noted {
    pub number: u64,
    pub kind: FaultKind,
    pub unit: Option<String>,
    /// It is undone; its unit is not well again yet.
    #[serde(default)]
    pub over: bool,
    /// The file that was broken, and what stood in it.
    #[serde(default)]
    pub file: Option<(String, String)>,
}

/// A fault that is not over, or whose units have not recovered.
pub(super) struct Fault {
    pub noted: Noted,
    pub unit: Option<UnitName>,
    /// The unit and all that need it: what becomes of them comes of the drill.
    reach: BTreeSet<UnitName>,
    /// It is not done yet: the journal is on its way to the disk.
    pending: bool,
    pub timers: Vec<AbortHandle>,
}

/// A drill that runs, or that has left units which are not well yet.
pub(super) struct Drill {
    pub row: DrillRow,
    pub faults: Vec<Fault>,
    /// Every unit that it hurt.
    hurt: BTreeSet<UnitName>,
    owner: Option<AbortHandle>,
}

/// What the shell knows of drills.
#[derive(Default)]
pub struct Drills {
    pub(super) open: Vec<Drill>,
    numbers: u64,
}

impl Drills {
    fn running(&self) -> Option<&Drill> {
        self.open.iter().find(|drill| drill.row.status == "running")
    }

    fn running_named(&mut self, id: &str) -> Option<&mut Drill> {
        self.open.iter_mut().find(|drill| drill.row.status == "running" && drill.row.id == id)
    }

    pub(super) fn fault(&mut self, id: &str, number: u64) -> Option<&mut Fault> {
        let drill = self.open.iter_mut().find(|drill| drill.row.id == id)?;
        drill.faults.iter_mut().find(|fault| fault.noted.number == number)
    }
}

impl Fault {
    /// It is done, and not undone yet.
    pub(super) fn is_done(&self) -> bool {
        !self.pending && !self.noted.over
    }
}

impl Drill {
    /// The row as it is to be kept now.
    fn row_now(&self) -> DrillRow {
        let noted: Vec<&Noted> = self.faults.iter().map(|fault| &fault.noted).collect();
        let faults = match noted.is_empty() {
            true => String::new(),
            false => serde_json::to_string(&noted).unwrap_or_default(),
        };
        DrillRow { faults, ..self.row.clone() }
    }
}

/// As the API and the page tell of it.
pub(super) fn line(row: &DrillRow) -> DrillLine {
    let noted: Vec<Noted> = serde_json::from_str(&row.faults).unwrap_or_default();
    let faults = noted.into_iter().map(|noted| {
        let Noted { number, kind, unit, over, .. } = noted;
        FaultLine { number, kind, unit, over }
    });
    DrillLine {
        id: row.id.clone(),
        scenario: row.scenario.clone(),
        status: row.status.clone(),
        progress: row.progress,
        begun: rfc3339(row.begun_us),
        ended: row.ended_us.map(rfc3339),
        faults: faults.collect(),
        verdict: row.verdict.as_ref().and_then(|text| serde_json::from_str(text).ok()),
    }
}

impl Shell {
    /// Answers with the newest drills, as they are kept.
    pub(crate) fn answer_drills(&self, limit: u32, reply: oneshot::Sender<Answer>) {
        let specs: Vec<_> = self.hands.specs.values().filter(|spec| spec.unit.drillable).collect();
        let drillable = specs.iter().map(|spec| spec.name.to_string()).collect();
        let checked = specs.iter().filter(|spec| spec.health.is_some());
        let checked = checked.map(|spec| spec.name.to_string()).collect();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.hands.tools.store.reader().drills(limit, move |rows| {
            let answer = match rows {
                Ok(rows) => json(&DrillList { drills: rows.iter().map(line).collect(), drillable, checked }),
                Err(error) => {
                    let help = Some("supervision goes on; try again".to_string());
                    refuse(503, "store.unavailable", error.to_string(), help)
                }
            };
            let _ = reply.send(answer); // whoever asked has left
        });
    }

    /// One step of a drill.
    pub(crate) fn on_drill_step(
        &mut self,
        peer: Peer,
        id: String,
        step: DrillStep,
        reply: oneshot::Sender<Answer>,
    ) {
        if let DrillStep::Begin { scenario } = step {
            return self.begin_drill(&peer, id, scenario, reply);
        }
        let Some(drill) = self.drills.running_named(&id) else {
            let help = Some("`upright drill list` shows the drills".to_string());
            let answer = refuse(404, "drill.unknown", format!("no drill `{id}` runs"), help);
            return drop(reply.send(answer)); // whoever asked has left
        };
        match step {
            DrillStep::Begin { .. } => {}
            DrillStep::Progress { progress } => drill.row.progress = progress,
            DrillStep::Undo { number } => {
                let faults = drill.faults.iter().map(|fault| fault.noted.number);
                let numbers: Vec<u64> =
                    faults.filter(|of| number.is_none_or(|number| number == *of)).collect();
                numbers.into_iter().for_each(|number| self.undo_fault(&id, number));
            }
            DrillStep::Fault { kind, unit, wait } => {
                let unit = match unit.map(|unit| self.drillable(&unit, kind)).transpose() {
                    Ok(unit) => unit,
                    Err(answer) => return drop(reply.send(*answer)), // whoever asked has left
                };
                return self.note_fault(&peer, &id, kind, unit, wait, reply);
            }
            DrillStep::End { status, verdict } => self.end_drill(&id, status, verdict),
        }
        self.answer_drill(&id, reply);
    }

    /// The unit, if a drill may do that to it now.
    fn drillable(&self, name: &str, kind: FaultKind) -> Result<UnitName, Box<Answer>> {
        let mut units = self.known(&[name.to_string()])?;
        let Some(unit) = units.pop() else {
            return Err(Box::new(refuse(404, "unit.unknown", format!("no unit is named `{name}`"), None)));
        };
        if !self.hands.specs.get(&unit).is_some_and(|spec| spec.unit.drillable) {
            let help = "set `drillable = true` under [unit] in its file, if drills may hurt it".to_string();
            let message = format!("drills may not hurt {unit}");
            return Err(Box::new(refuse(403, "drill.not_drillable", message, Some(help))));
        }
        let is_hurt = |fault: &&Fault| fault.unit.as_ref() == Some(&unit) && !fault.noted.over;
        if self.drills.open.iter().flat_map(|drill| &drill.faults).any(|fault| is_hurt(&fault)) {
            let message = format!("{unit} is under a fault already");
            let help = Some("wait until that is over, or undo it".to_string());
            return Err(Box::new(refuse(409, "drill.busy", message, help)));
        }
        let has_process = self.engine.view_of(&unit).is_some_and(|view| view.pid.is_some());
        if kind != FaultKind::ConfigCorrupt && !has_process {
            let message = format!("{unit} has no process to hurt");
            let help = Some(format!("`upright why {unit}` tells why"));
            return Err(Box::new(refuse(409, "drill.no_process", message, help)));
        }
        Ok(unit)
    }

    fn begin_drill(&mut self, peer: &Peer, id: String, scenario: String, reply: oneshot::Sender<Answer>) {
        let open = self.drills.running().map(|drill| &drill.row.id);
        if let Some(other) = open.or(self.drills.open.iter().map(|drill| &drill.row.id).find(|of| **of == id))
        {
            let message = format!("drill {other} is not over");
            let help = Some("one drill at a time; `upright drill list` shows it".to_string());
            return drop(reply.send(refuse(409, "drill.busy", message, help))); // whoever asked has left
        }
        let pid = match peer {
            Peer::Local(Local { pid, .. }) => *pid,
            Peer::Remote { .. } => 0,
        };
        let row = DrillRow {
            id: id.clone(),
            scenario: scenario.clone(),
            status: "running".to_string(),
            begun_us: clock::wall().as_microsecond(),
            owner_pid: pid,
            owner_started: proctree::started(pid).unwrap_or(0),
            ..DrillRow::default()
        };
        let owner = self.watch_owner(&id, pid);
        self.drills.open.push(Drill { row, faults: Vec::new(), hurt: BTreeSet::new(), owner });
        let message = format!("{peer} began drill {id} ({scenario})");
        let data = [("drill", id.as_str().into()), ("scenario", scenario.into())];
        self.note(Level::Info, "drill.begun", message, doors::who(peer).into_iter().chain(data));
        self.answer_drill(&id, reply);
    }

    /// Tells when the process has ended. One that cannot be watched is bound by the limits of its faults.
    fn watch_owner(&self, id: &str, pid: i32) -> Option<AbortHandle> {
        let owner = pidfd::open(pid).and_then(|fd| watched(fd, Wake::Data)).ok()?;
        let (sources, drill) = (self.hands.tools.sources.clone(), id.to_string());
        let watching = tokio::spawn(async move {
            let _ = owner.readable().await; // whatever it says, it watches no more
            let _ = sources.send(Source::Drill(Heard::OwnerGone { drill })); // the loop has ended
        });
        Some(watching.abort_handle())
    }

    /// Keeps the drill, and answers when that is on the disk.
    fn answer_drill(&mut self, id: &str, reply: oneshot::Sender<Answer>) {
        let Some(row) = self.keep_drill(id) else { return };
        let answer = json(&DrillReply { drill: line(&row), fault: None, at_ns: None });
        self.hands.end_step();
        self.hands.answer_when_committed(reply, answer);
        self.drop_finished();
    }

    fn keep_drill(&mut self, id: &str) -> Option<DrillRow> {
        let row = self.drills.open.iter().find(|drill| drill.row.id == id)?.row_now();
        self.hands.keep(Write::Drill(row.clone()));
        Some(row)
    }

    /// Writes a fault into the journal; it is done when it stands there.
    fn note_fault(
        &mut self,
        peer: &Peer,
        id: &str,
        kind: FaultKind,
        unit: Option<UnitName>,
        wait: Duration,
        reply: oneshot::Sender<Answer>,
    ) {
        if kind == FaultKind::DiskFull
            && let Err(why) = self.disk_to_fill()
        {
            let help = Some("give the logs a file system of their own; only that may be filled".to_string());
            return drop(reply.send(refuse(409, "drill.disk", why, help))); // whoever asked has left
        }
        let file = match (kind, &unit) {
            (FaultKind::ConfigCorrupt, Some(unit)) => match self.file_to_break(unit) {
                Ok(file) => Some(file),
                Err(why) => {
                    let help = Some("mend the file, or apply it, first".to_string());
                    return drop(reply.send(refuse(409, "drill.file", why, help))); // whoever asked has left
                }
            },
            _ => None,
        };
        self.drills.numbers += 1;
        let number = self.drills.numbers;
        let names: Vec<Value> = unit.iter().map(|unit| unit.as_str().into()).collect();
        let whom = unit.as_ref().map_or("the daemon".to_string(), UnitName::to_string);
        let message = format!("{peer} asked for a fault in drill {id}: {} to {whom}", kind.as_str());
        let reach = unit.as_ref().map(|unit| self.engine.reach_of(unit)).unwrap_or_default();
        let Some(drill) = self.drills.running_named(id) else { return };
        drill.hurt.extend(unit.clone());
        let noted = Noted { number, kind, unit: unit.as_ref().map(UnitName::to_string), over: false, file };
        drill.faults.push(Fault { noted, unit, reach, pending: true, timers: Vec::new() });
        let verb = format!("drill {}", kind.as_str());
        let data = [("verb", verb.into()), ("units", Value::Array(names)), ("drill", id.into())];
        self.keep_drill(id);
        self.note(Level::Warn, "order.asked", message, doors::who(peer).into_iter().chain(data));
        let late = Late::Fault { drill: id.to_string(), number, wait, reply };
        self.hands.lates.push(late);
        self.hands.end_step();
    }

    /// The fault stands in the journal: now it is done.
    pub(crate) fn do_fault(
        &mut self,
        drill: String,
        number: u64,
        wait: Duration,
        reply: oneshot::Sender<Answer>,
    ) {
        let Some(fault) = self.drills.fault(&drill, number).filter(|fault| fault.pending) else {
            let answer = refuse(409, "drill.busy", format!("drill {drill} was ended meanwhile"), None);
            return drop(reply.send(answer)); // whoever asked has left
        };
        fault.pending = false;
        let (kind, unit) = (fault.noted.kind, fault.unit.clone());
        self.mark_drilled();
        self.arm_limit(&drill, number, wait);
        let at = clock::monotonic();
        self.hurt(&drill, number, kind, unit, wait);
        let Some(row) = self.drills.open.iter().find(|open| open.row.id == drill).map(Drill::row_now) else {
            return;
        };
        let reply_now = DrillReply { drill: line(&row), fault: Some(number), at_ns: Some(at.as_ns()) };
        let _ = reply.send(json(&reply_now)); // whoever asked has left
    }

    /// The store takes nothing, so the fault is not done.
    pub(crate) fn drop_fault(&mut self, drill: &str, number: u64) {
        for open in self.drills.open.iter_mut().filter(|open| open.row.id == drill) {
            open.faults.retain(|fault| fault.noted.number != number);
        }
    }

    fn arm_limit(&mut self, drill: &str, number: u64, wait: Duration) {
        let (sources, id) = (self.hands.tools.sources.clone(), drill.to_string());
        let limit = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = sources.send(Source::Drill(Heard::Limit { drill: id, number })); // the loop has ended
        });
        if let Some(fault) = self.drills.fault(drill, number) {
            fault.timers.push(limit.abort_handle());
        }
    }

    /// Undoes a fault, whether it was done or not.
    fn undo_fault(&mut self, drill: &str, number: u64) {
        let Some(fault) = self.drills.fault(drill, number) else { return };
        if std::mem::replace(&mut fault.noted.over, true) {
            return;
        }
        fault.pending = false;
        fault.timers.drain(..).for_each(|timer| timer.abort());
        let (noted, unit) = (fault.noted.clone(), fault.unit.clone());
        self.heal(&noted, unit);
        let whom = noted.unit.unwrap_or_else(|| "the daemon".to_string());
        let message = format!("drill {drill}: {} of {whom} is undone", noted.kind.as_str());
        let data = [("drill", drill.into()), ("fault", noted.kind.as_str().into()), ("of", whom.into())];
        self.keep_drill(drill);
        self.note(Level::Info, "drill.undone", message, data);
    }

    /// Undoes what is left, and forgets the failures that the drill has caused: the next real one is the
    /// first again, and a unit that has given up over them starts.
    fn end_drill(&mut self, id: &str, status: Ended, verdict: Option<String>) {
        let Some(drill) = self.drills.running_named(id) else { return };
        drill.row.status = status.as_str().to_string();
        drill.row.ended_us = Some(clock::wall().as_microsecond());
        drill.row.verdict = verdict;
        if status != Ended::Aborted {
            drill.row.progress = 100;
        }
        drill.owner.take().into_iter().for_each(|owner| owner.abort());
        let numbers: Vec<u64> = drill.faults.iter().map(|fault| fault.noted.number).collect();
        let hurt: Vec<UnitName> = drill.hurt.iter().cloned().collect();
        numbers.into_iter().for_each(|number| self.undo_fault(id, number));
        let hurt: Vec<UnitName> =
            hurt.into_iter().filter(|unit| self.engine.view_of(unit).is_some()).collect();
        if !hurt.is_empty() {
            self.order_unasked(Order::Clear(hurt));
        }
        let level = if status == Ended::Passed { Level::Info } else { Level::Warn };
        let message = format!("drill {id} is over: {}", status.as_str());
        self.keep_drill(id);
        let data = [("drill", id.into()), ("status", status.as_str().into())];
        self.note(level, "drill.ended", message, data);
    }

    pub(crate) fn on_drill_heard(&mut self, heard: Heard) {
        match heard {
            Heard::OwnerGone { drill } => self.end_drill(&drill, Ended::Aborted, None),
            Heard::Limit { drill, number } => self.undo_fault(&drill, number),
            Heard::Beat { drill, number, go } => self.beat_fault(&drill, number, go),
        }
        self.drop_finished();
    }

    /// What of drills is over: whose fault was undone, and that are well again with all that need them.
    pub(crate) fn look_at_drills(&mut self) {
        if self.drills.open.is_empty() {
            return;
        }
        let engine = &self.engine;
        let (mut changed, mut ended) = (Vec::new(), false);
        for drill in &mut self.drills.open {
            for fault in drill.faults.iter_mut().filter(|fault| !fault.pending) {
                // What was killed is over as soon as it is missed.
                let missed = fault.unit.as_ref().is_some_and(|unit| !engine.is_settled(unit));
                fault.noted.over |= missed && fault.noted.kind == FaultKind::Kill;
            }
            let before = drill.faults.len();
            let is_well = |fault: &Fault| fault.reach.iter().all(|unit| engine.is_settled(unit));
            drill.faults.retain(|fault| fault.pending || !fault.noted.over || !is_well(fault));
            if drill.faults.len() != before {
                changed.push(drill.row.id.clone());
                ended |= drill.faults.is_empty();
            }
        }
        for id in changed {
            self.keep_drill(&id);
            self.hands.end_step();
        }
        if ended {
            self.drop_finished();
        }
        self.mark_drilled();
    }

    fn drop_finished(&mut self) {
        self.drills.open.retain(|drill| drill.row.status == "running" || !drill.faults.is_empty());
        self.mark_drilled();
    }

    /// Whose records carry the name of a drill.
    fn mark_drilled(&mut self) {
        self.hands.drilled.clear();
        self.hands.drilled_whole = None;
        for drill in &self.drills.open {
            for fault in drill.faults.iter().filter(|fault| !fault.pending) {
                let marks = fault.reach.iter().map(|unit| (unit.clone(), drill.row.id.clone()));
                self.hands.drilled.extend(marks);
                let is_of_all = matches!(fault.noted.kind, FaultKind::EngineKill | FaultKind::DiskFull);
                if is_of_all && !fault.noted.over {
                    self.hands.drilled_whole = Some(drill.row.id.clone());
                }
            }
        }
    }

    /// What an engine that takes over knows of drills, before it tells of anything.
    pub(crate) fn recall_drills(&mut self, rows: &[DrillRow]) {
        for row in rows {
            let noted: Vec<Noted> = serde_json::from_str(&row.faults).unwrap_or_default();
            let fault = |noted: Noted| {
                let unit = noted.unit.as_deref().and_then(|name| UnitName::parse(name).ok());
                let reach = unit.as_ref().map(|unit| self.engine.reach_of(unit)).unwrap_or_default();
                Fault { noted, unit, reach, pending: false, timers: Vec::new() }
            };
            let faults: Vec<Fault> = noted.into_iter().map(fault).collect();
            let newest = faults.iter().map(|fault| fault.noted.number).max().unwrap_or(0);
            self.drills.numbers = self.drills.numbers.max(newest);
            let hurt = faults.iter().filter_map(|fault| fault.unit.clone()).collect();
            self.drills.open.push(Drill { row: row.clone(), faults, hurt, owner: None });
        }
        self.mark_drilled();
    }

    /// Undoes what the last engine has left, and goes on with the drill whose process lives.
    pub(crate) fn revert_drills(&mut self) {
        let ids: Vec<String> = self.drills.open.iter().map(|drill| drill.row.id.clone()).collect();
        for id in ids {
            let Some(drill) = self.drills.open.iter().find(|drill| drill.row.id == id) else { continue };
            let (pid, started) = (drill.row.owner_pid, drill.row.owner_started);
            let faults: Vec<(u64, FaultKind)> =
                drill.faults.iter().map(|fault| (fault.noted.number, fault.noted.kind)).collect();
            let runs = drill.row.status == "running";
            let lives = runs && started > 0 && proctree::started(pid) == Some(started);
            for (number, kind) in faults {
                match kind {
                    FaultKind::EngineKill if lives => self.arm_limit(&id, number, ENGINE_KILL_MAX),
                    _ => self.undo_fault(&id, number),
                }
            }
            if lives {
                let owner = self.watch_owner(&id, pid);
                self.drills.open.iter_mut().filter(|drill| drill.row.id == id).for_each(|drill| {
                    drill.owner = owner.clone();
                });
            } else if runs {
                self.end_drill(&id, Ended::Aborted, None);
            }
        }
        self.restore_spoiled();
        self.drop_finished();
    }
}
