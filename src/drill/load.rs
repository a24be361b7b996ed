//! Load beside the faults: one numbered request after the other to the backend, and at the end the question what of
//! it was kept: each answered request has a line in the log of a unit, each acknowledged session is stored.
//!
//! Refuses: judging, and more than one request at a time: what is measured is what becomes of a request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::api::client::ClientError;
use crate::base::time::Monotonic;
use crate::drill::requests::{Target, get, post};
use crate::drill::sample::{Recorder, Sample};
use crate::drill::scenario::LoadPlan;
use crate::drill::talk::Talk;
use crate::drill::{Asked, DrillError, stored};
use crate::sys::clock;

/// How long one answer may take; what hangs longer is not answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the line of the first request may take to be in a log, and those of the last ones.
const LINES_WAIT: Duration = Duration::from_secs(5);

/// How long acknowledged sessions may take to be stored when all is as before: those that are being written back.
const STORED_WAIT: Duration = Duration::from_secs(10);

/// Between two looks at what nobody tells of.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// POST of a session.
    Session,
    /// `GET /livez`: the backend takes no sessions.
    Livez,
}

/// Whom to ask for what.
#[derive(Clone)]
struct Shot {
    target: Target,
    drill: String,
    path: String,
    way: Way,
}

/// The load of a drill, while it goes on.
pub(super) struct Load {
    shot: Shot,
    /// Of the units' logs since the begin of the drill.
    query: String,
    judges_lines: bool,
    notes: Vec<String>,
    stop: Sender<()>,
    told: Receiver<Sample>,
    thread: JoinHandle<()>,
}

/// The backend of `--base-url`.
///
/// # Errors
/// `Usage`: it is no address that a drill can ask.
pub(super) fn target(asked: &Asked) -> Result<Option<Target>, DrillError> {
    let Some(url) = &asked.base_url else { return Ok(None) };
    Target::of_url(url).map(Some).ok_or_else(|| DrillError::Usage {
        message: format!("cannot ask {url}: a drill speaks plain http"),
        help: "name the backend itself: --base-url http://127.0.0.1:8000".to_string(),
    })
}

impl Load {
    /// Asks once, to know what the backend is, then begins; None without a `--base-url`.
    ///
    /// # Errors
    /// The backend does not answer, or has no sessions that could be counted; the daemon does not answer.
    pub fn begin(
        asked: &Asked,
        drill: &str,
        begun: &str,
        plan: &LoadPlan,
        talk: &Talk,
        recorder: &mut Recorder,
    ) -> Result<Option<Load>, DrillError> {
        let Some(target) = target(asked)? else { return Ok(None) };
        let (drill, path) = (drill.to_string(), plan.path.clone());
        let mut shot = Shot { target, drill, path, way: Way::Session };
        let mut notes = Vec::new();
        let (mut probe, mut status) = shot.probe()?;
        if (400..500).contains(&status) {
            let why = format!("{} answers {status} to POST {}", shot.target.shown(), shot.path);
            if asked.stored_ids.is_some() {
                return Err(DrillError::Usage {
                    message: format!("no sessions can be counted: {why}"),
                    help: "leave out --stored-ids, or set `path` under [load] of the scenario".to_string(),
                });
            }
            notes.push(format!("Sessions are not counted: {why}."));
            shot.way = Way::Livez;
            (probe, status) = shot.probe()?;
        } else if asked.stored_ids.is_none() {
            notes.push("Sessions are not counted: --stored-ids was not given.".to_string());
        }
        recorder.add(probe)?;
        let since = clock::micros_of(begun).unwrap_or(0);
        // The digits follow; a drill's name has nothing that a pattern takes for more than itself but `.`.
        let pattern = crate::api::client::escaped(&format!("drill={}-[0-9]", shot.drill.replace('.', "[.]")));
        let query = format!("lines=all&since={since}&grep={pattern}");
        let judges_lines = await_lines(talk, &query, &shot.drill, &BTreeSet::from([0]))?.0.contains(&0);
        if !judges_lines {
            notes.push(format!(
                "Numbered lines are not judged: the first request was answered with {status}, and no log of a \
                 unit has its line; let the backend write an access log."
            ));
        }
        let (stop, stopped) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let (shots, every) = (shot.clone(), plan.every);
        let thread = std::thread::Builder::new()
            .name("load".into())
            .spawn(move || shots.fire_until(every, &stopped, &tell))
            .map_err(|error| DrillError::Failed(format!("no thread for the load can be made: {error}")))?;
        Ok(Some(Load { shot, query, judges_lines, notes, stop, told, thread }))
    }

    /// What it does and does not judge, for the story.
    pub fn told(&self) -> Vec<String> {
        let what = match self.shot.way {
            Way::Session => format!("POST {}", self.shot.path),
            Way::Livez => "GET /livez".to_string(),
        };
        let first = format!("load: {what} to {} all the while", self.shot.target.shown());
        std::iter::once(first).chain(self.notes.iter().cloned()).collect()
    }

    /// Writes down what has come of it so far.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn drain(&self, recorder: &mut Recorder) -> std::io::Result<()> {
        self.told.try_iter().try_for_each(|sample| recorder.add(sample))
    }

    /// Ends it, and looks what of it was kept.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub fn end(
        self,
        stored_ids: Option<&[String]>,
        talk: &Talk,
        recorder: &mut Recorder,
    ) -> Result<(), DrillError> {
        drop(self.stop);
        let _ = self.thread.join(); // one that panicked has sent what it could
        self.told.iter().try_for_each(|sample| recorder.add(sample))?;
        let mut answered = BTreeSet::new();
        let mut sessions = BTreeMap::new();
        for sample in &recorder.samples {
            if let Sample::Load { number, id, status: Some(status), .. } = sample {
                answered.insert(*number);
                if let (200 | 202, Some(id)) = (status, id) {
                    sessions.insert(*number, id.clone());
                }
            }
        }
        let mut notes = self.notes;
        let lines = match self.judges_lines {
            true => {
                let (lines, unreadable) = await_lines(talk, &self.query, &self.shot.drill, &answered)?;
                notes.extend(
                    unreadable.into_iter().map(|why| format!("Not all of a log could be read: {why}.")),
                );
                Some(lines.into_iter().collect())
            }
            false => None,
        };
        let (stored, uncounted) = match stored_ids.map(|argv| await_stored(argv, &sessions)) {
            Some(Ok(numbers)) => (Some(numbers), None),
            Some(Err(why)) => (None, Some(why)),
            None => (None, None),
        };
        let ts = clock::wall().to_string();
        recorder.add(Sample::Found { ts, lines, stored, uncounted, notes })?;
        Ok(())
    }
}

impl Shot {
    /// The first request. A backend that is just being started gets its time.
    fn probe(&self) -> Result<(Sample, u16), DrillError> {
        let deadline = clock::monotonic() + LINES_WAIT;
        loop {
            let sample = self.fire(0);
            match &sample {
                Sample::Load { status: Some(status), .. } => {
                    let status = *status;
                    return Ok((sample, status));
                }
                Sample::Load { error, .. } if clock::monotonic() >= deadline => {
                    let why = error.as_deref().unwrap_or("it does not answer");
                    return Err(DrillError::Usage {
                        message: format!("cannot send load to {}: {why}", self.target.shown()),
                        help: "name a backend that answers with --base-url, or leave it out".to_string(),
                    });
                }
                _ => pause(),
            }
        }
    }

    fn fire_until(&self, every: Duration, stopped: &Receiver<()>, tell: &Sender<Sample>) {
        let mut due = clock::monotonic();
        for number in 1.. {
            // What came late is not made up for: the backend would get it all at once.
            due = (due + every).max(clock::monotonic());
            match stopped.recv_timeout(due.since(clock::monotonic())) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
            if tell.send(self.fire(number)).is_err() {
                return;
            }
        }
    }

    fn fire(&self, number: u64) -> Sample {
        let word = format!("{}-{number}", self.drill);
        let (request, id) = match self.way {
            Way::Session => {
                let id = session_id(&self.drill, number);
                let body = serde_json::json!({ "id": id, "user": "drill", "message": word });
                let path = format!("{}?drill={word}", self.path);
                (post(&path, "application/json", &body.to_string()), Some(id))
            }
            Way::Livez => (get(&format!("/livez?drill={word}")), None),
        };
        let begun = clock::monotonic();
        let (status, error) = match self.target.ask(&request, ANSWER_TIMEOUT) {
            Ok(Some(status)) => (Some(status), None),
            Ok(None) => (None, Some("it was closed without an answer, or took too long".to_string())),
            Err(error) => (None, Some(error.to_string())),
        };
        let took = clock::monotonic().since(begun);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Sample::Load { number, id, status, error, at_ns: begun.as_ns(), took_us }
    }
}

/// A UUID of version 8 (RFC 9562): the drill's name as a number (Fowler, Noll, Vo), then the request's. Two drills
/// differ in their names, and what is sent again is the same session.
fn session_id(drill: &str, number: u64) -> String {
    let hash = drill
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let (high, middle, low) = (hash >> 32, (hash >> 16) & 0xffff, hash & 0xffff);
    let (ver, var) = (0x8000 | (low & 0xfff), 0x8000 | (low >> 12));
    format!("{high:08x}-{middle:04x}-{ver:04x}-{var:04x}-{:012x}", number & 0xffff_ffff_ffff)
}

/// The numbers in a line that the backend wrote about a request.
fn numbers_in(line: &str, drill: &str, found: &mut BTreeSet<u64>) {
    let mark = format!("drill={drill}-");
    for (at, _) in line.match_indices(&mark) {
        let digits = line.get(at + mark.len()..).unwrap_or_default();
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        found.extend(digits.get(..end).and_then(|digits| digits.parse::<u64>().ok()));
    }
}

/// Which numbers have a line in a log, until `wanted` have one or it was waited for long enough; and what could not
/// be read.
fn await_lines(
    talk: &Talk,
    query: &str,
    drill: &str,
    wanted: &BTreeSet<u64>,
) -> Result<(BTreeSet<u64>, Vec<String>), ClientError> {
    let deadline = clock::monotonic() + LINES_WAIT;
    loop {
        let mut found = BTreeSet::new();
        let unreadable = talk.log(query, |line| numbers_in(line, drill, &mut found))?;
        if is_enough(wanted.is_subset(&found), deadline) {
            return Ok((found, unreadable));
        }
    }
}

/// Which of these sessions are stored, by their numbers.
fn await_stored(argv: &[String], sessions: &BTreeMap<u64, String>) -> Result<Vec<u64>, String> {
    let deadline = clock::monotonic() + STORED_WAIT;
    loop {
        let ids = stored::ids(argv);
        let count = |ids: &BTreeSet<String>| -> Vec<u64> {
            sessions.iter().filter(|(_, id)| ids.contains(*id)).map(|(number, _)| *number).collect()
        };
        let found = ids.map(|ids| count(&ids));
        if is_enough(found.as_ref().is_ok_and(|found| found.len() == sessions.len()), deadline) {
            return found;
        }
    }
}

fn is_enough(all: bool, deadline: Monotonic) -> bool {
    let enough = all || clock::monotonic() >= deadline;
    if !enough {
        pause();
    }
    enough
}

#[expect(clippy::disallowed_methods, reason = "nobody tells when a line or a row has come to its place")]
fn pause() {
    std::thread::sleep(LOOK_INTERVAL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_ends_where_its_digits_end() {
        let mut found = BTreeSet::new();
        numbers_in("\"POST /api/chat?drill=a-1-12 HTTP/1.1\" 200 OK", "a-1", &mut found);
        numbers_in("drill=a-1-x drill=a-1-7&drill=b-1-3", "a-1", &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [7, 12]);
    }

    #[test]
    fn an_id_is_a_uuid_and_another_for_each_request() {
        let id = session_id("acceptance-20260101000000-1", 255);
        let parts: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert!(id.split('-').nth(2).is_some_and(|part| part.starts_with('8')), "{id}");
        assert!(id.split('-').nth(3).is_some_and(|part| part.starts_with('8')), "{id}");
        assert!(id.ends_with("-0000000000ff"), "{id}");
        assert_ne!(id, session_id("acceptance-20260101000000-2", 255));
    }
}
