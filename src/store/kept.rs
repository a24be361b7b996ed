//! `state.jnl`: the second copy of everything in the database that is not history and no alert.
//! What is asked of each unit, how often it failed, which runs are used up: small, and of no use
//! to anybody when it is guessed.
//!
//! It is written after each commit and before anybody is told of it, without an fsync of its own: it
//! survives every death of ours, and a power cut as far as the kernel had written it. The database is the
//! first copy; which of the two is right when they differ is decided in `reconcile`.
//!
//! Refuses: events (their second copy is `system_resilience.log`) and alerts (`alerts.jnl`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::base::{exit::RunId, name::UnitName, time::Monotonic};
use crate::engine::durable::{Desired, EngineDurable, UnitDurable};
use crate::store::checked::{self, Appender, Sync};
use crate::store::open::{Life, Phase};
use crate::store::writer::Write;

/// Beside the database.
pub const FILE_NAME: &str = "state.jnl";

/// The file is written anew when it is this large and four times what it has to say.
const REWRITE_BYTES: u64 = 1 << 20;

/// Which commit of which database: both copies carry it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Counts the commits of a home.
    pub seq: u64,
    /// What `meta` says of the newest batch. A build that does not know `seq` changes only this.
    pub committed: String,
}

/// All that is kept but history and alerts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kept {
    /// Of the home; empty when nobody has named it yet.
    pub home: String,
    pub units: BTreeMap<UnitName, UnitDurable>,
    pub engine: EngineDurable,
    pub last_good: BTreeMap<String, String>,
    pub channels: BTreeMap<String, u64>,
    /// No run had this id or a greater one; 0 when nobody knows.
    pub next_run: u64,
    pub life: Life,
    pub boot_id: Option<String>,
    pub upgrade_told: Option<String>,
    /// What is not to be told of; empty = nothing.
    pub quiet: String,
}

impl Kept {
    /// What `write` changes.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Save { unit, durable } => _ = self.units.insert(unit.clone(), durable.clone()),
            Write::Forget { unit } => _ = self.units.remove(unit),
            Write::SaveEngine(row) => self.engine = row.clone(),
            Write::Channels(known) => self.channels = known.clone(),
            Write::ReserveRuns { until } => self.next_run = self.next_run.max(until.0),
            Write::LastGood { file, text: Some(text) } => {
                self.last_good.insert(file.clone(), text.clone());
            }
            Write::LastGood { file, text: None } => _ = self.last_good.remove(file),
            Write::Life(life) => self.life = *life,
            Write::Boot { id } => self.boot_id = Some(id.clone()),
            Write::UpgradeTold(id) => self.upgrade_told = Some(id.clone()),
            Write::Quiet(text) => self.quiet = text.clone(),
            Write::Home { id } => self.home = id.clone(),
            // Without it what was refused is sent once more; of a run the keeper knows, and where it died, too, the database alone.
            Write::Event(_)
            | Write::Alert { .. }
            | Write::Delivery { .. }
            | Write::AlertPrint { .. }
            | Write::Drill(_)
            | Write::Run(_)
            | Write::RunGone { .. } => {}
        }
    }

    /// What an empty database must be told to say the same.
    pub fn writes(&self) -> Vec<Write> {
        let units = self.units.iter();
        let mut writes: Vec<Write> = units
            .map(|(unit, durable)| Write::Save { unit: unit.clone(), durable: durable.clone() })
            .collect();
        let texts = self.last_good.iter();
        writes.extend(
            texts.map(|(file, text)| Write::LastGood { file: file.clone(), text: Some(text.clone()) }),
        );
        writes.push(Write::SaveEngine(self.engine.clone()));
        writes.push(Write::Channels(self.channels.clone()));
        writes.push(Write::ReserveRuns { until: RunId(self.next_run) });
        writes.push(Write::Life(self.life));
        writes.extend(self.boot_id.clone().map(|id| Write::Boot { id }));
        writes.extend(self.upgrade_told.clone().map(Write::UpgradeTold));
        writes.push(Write::Quiet(self.quiet.clone()));
        writes.push(Write::Home { id: self.home.clone() });
        writes
    }

    /// Has what `older` knows and this does not: where lines of the file were damaged.
    pub fn fill_from(&mut self, older: Kept) {
        for (unit, row) in older.units {
            self.units.entry(unit).or_insert(row);
        }
        for (file, text) in older.last_good {
            self.last_good.entry(file).or_insert(text);
        }
        for (channel, since) in older.channels {
            self.channels.entry(channel).or_insert(since);
        }
        self.next_run = self.next_run.max(older.next_run);
        self.life.fatal_stops = self.life.fatal_stops.max(older.life.fatal_stops);
        self.boot_id = self.boot_id.take().or(older.boot_id);
        self.upgrade_told = self.upgrade_told.take().or(older.upgrade_told);
        if self.quiet.is_empty() {
            self.quiet = older.quiet;
        }
        if self.home.is_empty() {
            self.home = older.home;
        }
    }
}

/// What `state.jnl` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub kept: Kept,
    pub mark: Mark,
    /// The newest event of that commit.
    pub last_event_id: u64,
    /// Pieces that could not be read.
    pub damaged: usize,
}

/// Reads the file below `dir`; none when there is none, or it cannot be read.
pub(crate) fn read(dir: &Path) -> Option<Found> {
    let lines = checked::read(&dir.join(FILE_NAME)).ok().flatten()?;
    let mut found = Found { damaged: lines.damaged, ..Found::default() };
    for record in &lines.records {
        match record.get("seq").and_then(Value::as_u64) {
            Some(seq) => {
                let committed = text(record, "committed").unwrap_or_default();
                found.mark = Mark { seq, committed };
                found.last_event_id = number(record, "event");
            }
            // A later build may keep more; what this one does not know it cannot use.
            None => decode(record).iter().for_each(|write| found.kept.apply(write)),
        }
    }
    Some(found)
}

/// The one writer of `state.jnl`.
#[derive(Debug)]
pub(crate) struct StateJournal {
    file: Appender,
    /// What both copies say.
    pub kept: Kept,
    pub mark: Mark,
    /// Of the file after it was last written anew.
    live_len: u64,
}

impl StateJournal {
    /// Goes on after `found`, which is what the file says.
    pub fn resume(dir: &Path, kept: Kept, mark: Mark, in_step: bool) -> StateJournal {
        let mut file = Appender::new(dir.join(FILE_NAME));
        if in_step {
            let _ = file.resume(); // not there: written anew with the next commit
        }
        StateJournal { file, kept, mark, live_len: 0 }
    }

    /// After a commit: `writes` are what it kept.
    ///
    /// # Errors
    /// The second copy is behind. The next commit writes it anew.
    pub fn committed<'a>(
        &mut self,
        writes: impl Iterator<Item = &'a Write> + Clone,
        mark: Mark,
        last_event_id: u64,
    ) -> io::Result<()> {
        self.remember(writes.clone(), mark);
        let large = self.file.len() > REWRITE_BYTES.max(self.live_len * 4);
        if self.file.is_lost() || large {
            return self.rewrite(last_event_id);
        }
        let mut records: Vec<Value> = writes.filter_map(encode).collect();
        records.push(self.seal(last_event_id));
        self.file.append(&records, Sync::Kernel)
    }

    /// The same, but the file stays as it was: the other copy is not of this commit either.
    pub fn committed_alone<'a>(&mut self, writes: impl Iterator<Item = &'a Write>, mark: Mark) {
        self.remember(writes, mark);
        self.file.forget();
    }

    fn remember<'a>(&mut self, writes: impl Iterator<Item = &'a Write>, mark: Mark) {
        writes.for_each(|write| self.kept.apply(write));
        self.mark = mark;
    }

    /// # Errors
    /// As write(2); the old file stands.
    pub fn rewrite(&mut self, last_event_id: u64) -> io::Result<()> {
        let mut records: Vec<Value> = self.kept.writes().iter().filter_map(encode).collect();
        records.push(self.seal(last_event_id));
        self.file.replace(&records)?;
        self.live_len = self.file.len();
        Ok(())
    }

    /// What stands in the file may be another thing: it is written anew.
    pub fn doubt(&mut self) {
        self.file.forget();
    }

    pub fn is_lost(&self) -> bool {
        self.file.is_lost()
    }

    fn seal(&self, last_event_id: u64) -> Value {
        json!({ "seq": self.mark.seq, "committed": self.mark.committed, "event": last_event_id })
    }
}

fn encode(write: &Write) -> Option<Value> {
    Some(match write {
        Write::Save { unit, durable } => json!({ "unit": unit.as_str(), "row": row_value(durable) }),
        Write::Forget { unit } => json!({ "forget": unit.as_str() }),
        Write::SaveEngine(row) => json!({
            "engine": {
                "config_errors": row.config_errors,
                "told_death": row.told_death.map(Monotonic::as_ns),
                "forgiven": row.forgiven.map(Monotonic::as_ns),
                "safe_since": row.safe_since.map(Monotonic::as_ns),
                "quarantined": quarantined_value(row),
            }
        }),
        Write::Channels(known) => json!({ "channels": known }),
        Write::ReserveRuns { until } => json!({ "next_run": until.0 }),
        Write::LastGood { file, text } => json!({ "file": file, "text": text }),
        Write::Life(life) => {
            json!({ "running": life.phase == Phase::Running, "fatal_stops": life.fatal_stops })
        }
        Write::Boot { id } => json!({ "boot": id }),
        Write::UpgradeTold(id) => json!({ "upgrade_told": id }),
        Write::Quiet(text) => json!({ "quiet": text }),
        Write::Home { id } => json!({ "home": id }),
        Write::Event(_)
        | Write::Alert { .. }
        | Write::Delivery { .. }
        | Write::AlertPrint { .. }
        | Write::Drill(_)
        | Write::Run(_)
        | Write::RunGone { .. } => return None,
    })
}

fn quarantined_value(row: &EngineDurable) -> Value {
    let left = row.quarantined.iter();
    Value::Object(left.map(|(unit, why)| (unit.to_string(), why.clone().into())).collect())
}

fn decode(record: &Value) -> Option<Write> {
    let name = |key: &str| UnitName::parse(&text(record, key)?).ok();
    let object = record.as_object()?;
    if let Some(row) = object.get("row") {
        return Some(Write::Save { unit: name("unit")?, durable: row_of(row) });
    }
    if object.contains_key("forget") {
        return Some(Write::Forget { unit: name("forget")? });
    }
    if let Some(row) = object.get("engine") {
        let errors = row.get("config_errors").and_then(Value::as_array).into_iter().flatten();
        let left = row.get("quarantined").and_then(Value::as_object).into_iter().flatten();
        return Some(Write::SaveEngine(EngineDurable {
            config_errors: errors.filter_map(|text| Some(text.as_str()?.to_string())).collect(),
            told_death: time(row, "told_death"),
            forgiven: time(row, "forgiven"),
            safe_since: time(row, "safe_since"),
            quarantined: left
                .filter_map(|(unit, why)| Some((UnitName::parse(unit).ok()?, why.as_str()?.to_string())))
                .collect(),
        }));
    }
    if let Some(known) = object.get("channels").and_then(Value::as_object) {
        let known = known.iter().filter_map(|(channel, since)| Some((channel.clone(), since.as_u64()?)));
        return Some(Write::Channels(known.collect()));
    }
    if object.contains_key("file") {
        return Some(Write::LastGood { file: text(record, "file")?, text: text(record, "text") });
    }
    if let Some(running) = object.get("running").and_then(Value::as_bool) {
        let phase = if running { Phase::Running } else { Phase::Ended };
        return Some(Write::Life(Life { phase, fatal_stops: number(record, "fatal_stops") }));
    }
    if object.contains_key("next_run") {
        return Some(Write::ReserveRuns { until: RunId(number(record, "next_run")) });
    }
    if object.contains_key("boot") {
        return Some(Write::Boot { id: text(record, "boot")? });
    }
    if object.contains_key("quiet") {
        return Some(Write::Quiet(text(record, "quiet")?));
    }
    if object.contains_key("upgrade_told") {
        return Some(Write::UpgradeTold(text(record, "upgrade_told")?));
    }
    object.contains_key("home").then(|| text(record, "home")).flatten().map(|id| Write::Home { id })
}

/// Only what is not as in a new row: most of it never is.
fn row_value(row: &UnitDurable) -> Value {
    let ordered = row.ordered.map(|desired| match desired {
        Desired::Up => "up",
        Desired::Down => "down",
    });
    let fields = [
        ("ordered", json!(ordered), Value::Null),
        ("failures", json!(row.failures), json!(0)),
        ("episode", json!(row.episode), json!(0)),
        ("restarts", json!(row.restarts), json!(0)),
        ("counted_run", json!(row.counted_run.map(|run| run.0)), Value::Null),
        ("retry_at_ns", json!(row.retry_at.map(Monotonic::as_ns)), Value::Null),
        ("down_since_ns", json!(row.down_since.map(Monotonic::as_ns)), Value::Null),
        ("ready_run", json!(row.ready.map(|(run, _)| run.0)), Value::Null),
        ("ready_since_ns", json!(row.ready.map(|(_, at)| at.as_ns())), Value::Null),
        ("held", json!(row.held), Value::Null),
        ("finished", json!(row.finished), json!(false)),
        ("own_failures", json!(row.own_failures), json!(0)),
        ("alerted", json!(row.alerted), json!(false)),
        ("owed", json!(row.owed.iter().map(UnitName::as_str).collect::<Vec<_>>()), json!([])),
        ("resync_failed", json!(row.resync_failed), json!(false)),
    ];
    let told = fields.into_iter().filter(|(_, value, usual)| value != usual);
    Value::Object(told.map(|(key, value, _)| (key.to_string(), value)).collect::<Map<_, _>>())
}

fn row_of(row: &Value) -> UnitDurable {
    let flag = |key: &str| row.get(key).and_then(Value::as_bool).unwrap_or(false);
    let run = |key: &str| row.get(key).and_then(Value::as_u64).map(RunId);
    let count = |key: &str| u32::try_from(number(row, key)).unwrap_or(u32::MAX);
    let owed = row.get("owed").and_then(Value::as_array).into_iter().flatten();
    UnitDurable {
        ordered: match text(row, "ordered").as_deref() {
            Some("up") => Some(Desired::Up),
            Some("down") => Some(Desired::Down),
            Some(_) | None => None,
        },
        failures: count("failures"),
        episode: number(row, "episode"),
        restarts: number(row, "restarts"),
        counted_run: run("counted_run"),
        retry_at: time(row, "retry_at_ns"),
        down_since: time(row, "down_since_ns"),
        ready: run("ready_run").zip(time(row, "ready_since_ns")),
        held: text(row, "held"),
        finished: flag("finished"),
        own_failures: count("own_failures"),
        alerted: flag("alerted"),
        owed: owed.filter_map(|name| UnitName::parse(name.as_str()?).ok()).collect::<BTreeSet<_>>(),
        resync_failed: flag("resync_failed"),
    }
}

fn text(record: &Value, key: &str) -> Option<String> {
    Some(record.get(key)?.as_str()?.to_string())
}

fn number(record: &Value, key: &str) -> u64 {
    record.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn time(record: &Value, key: &str) -> Option<Monotonic> {
    record.get(key)?.as_u64().map(Monotonic::from_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(text: &str) -> UnitName {
        UnitName::parse(text).expect("a name")
    }

    fn full() -> Kept {
        let at = Monotonic::from_ns;
        let durable = UnitDurable {
            ordered: Some(Desired::Down),
            failures: 3,
            episode: 7,
            restarts: 12,
            counted_run: Some(RunId(41)),
            retry_at: Some(at(5)),
            down_since: Some(at(4)),
            ready: Some((RunId(40), at(3))),
            held: Some("gave up".into()),
            finished: true,
            own_failures: 2,
            alerted: true,
            owed: [unit("redis"), unit("db")].into(),
            resync_failed: true,
        };
        Kept {
            home: "abc".into(),
            units: [(unit("web"), durable), (unit("new"), UnitDurable::default())].into(),
            engine: EngineDurable {
                config_errors: vec!["a: b".into()],
                told_death: Some(at(1)),
                forgiven: Some(at(2)),
                quarantined: BTreeMap::from([(unit("web"), "why".to_string())]),
                safe_since: Some(at(9)),
            },
            last_good: [("/units/web.toml".to_string(), "x\ny".to_string())].into(),
            channels: [("ops".to_string(), 17)].into(),
            next_run: 9_000,
            life: Life { phase: Phase::Running, fatal_stops: 2 },
            boot_id: Some("boot".into()),
            upgrade_told: Some("upgrade".into()),
            quiet: "{}".into(),
        }
    }

    #[test]
    fn everything_comes_back_after_commits_and_after_a_rewrite() {
        let dir = tempfile::tempdir().expect("dir");
        let mark = |seq| Mark { seq, committed: format!("1:{seq}") };
        let mut journal = StateJournal::resume(dir.path(), Kept::default(), Mark::default(), false);
        let writes = full().writes();
        for (index, write) in (1..).zip(&writes) {
            journal.committed([write].into_iter(), mark(index), 50 + index).expect("writes");
        }
        let last = writes.len() as u64;
        let want = Found { kept: full(), mark: mark(last), last_event_id: 50 + last, damaged: 0 };
        assert_eq!(read(dir.path()), Some(want.clone()));
        journal.rewrite(50 + last).expect("writes");
        assert_eq!(read(dir.path()), Some(want));
        let gone = [
            Write::Forget { unit: unit("web") },
            Write::LastGood { file: "/units/web.toml".into(), text: None },
        ];
        journal.committed(gone.iter(), mark(99), 99).expect("writes");
        let found = read(dir.path()).expect("is there");
        assert_eq!((found.kept.units.len(), found.kept.last_good.len(), found.mark.seq), (1, 0, 99));
    }

    #[test]
    fn it_does_not_grow_without_end() {
        let dir = tempfile::tempdir().expect("dir");
        let mut journal = StateJournal::resume(dir.path(), full(), Mark::default(), false);
        let save = full().writes().swap_remove(0);
        for seq in 1..30_000 {
            journal.committed([&save].into_iter(), Mark { seq, ..Mark::default() }, seq).expect("writes");
        }
        let len = std::fs::metadata(dir.path().join(FILE_NAME)).expect("is there").len();
        assert!(len <= REWRITE_BYTES + 4_096, "{len}");
        assert_eq!(read(dir.path()).expect("is there").kept, full());
    }
}
