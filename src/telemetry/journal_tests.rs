//! The log of history by itself: rotation, kills, what others do to its files.
//!
//! Refuses: a store; rows are made up here.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::journal::{FILE_NAME, Journal, Rotation, id_of, line_into, newest, numbered};
use crate::base::{name::UnitName, time::Monotonic};
use crate::store::row::{EventRow, Level, NewEvent};

const LARGE: Rotation = Rotation { max_bytes: 1 << 20, max_files: 3 };

fn row(id: u64) -> EventRow {
    let event = NewEvent {
        ts_us: 1_700_000_000_123_456,
        level: Level::Info,
        event: "unit.active".into(),
        unit: UnitName::parse("web").ok(),
        run: None,
        cause: None,
        message: "line\nbreak".into(),
        at: Monotonic::from_ns(5),
        data: Map::from_iter([("start_ms".into(), 3.into())]),
    };
    EventRow { id, event }
}

fn rows(ids: std::ops::RangeInclusive<u64>) -> Vec<EventRow> {
    ids.map(row).collect()
}

fn ids(path: &Path) -> Vec<u64> {
    let text = fs::read(path).unwrap_or_default();
    text.split(|b| *b == b'\n').filter_map(id_of).collect()
}

/// Of every file, the oldest first.
fn all_ids(path: &Path) -> Vec<u64> {
    let mut files: Vec<PathBuf> = (1..100).map(|number| numbered(path, number)).collect();
    files.reverse();
    files.push(path.to_path_buf());
    files.iter().flat_map(|path| ids(path)).collect()
}

fn log() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join(FILE_NAME);
    (dir, path)
}

#[test]
fn nothing_is_written_twice_or_never_across_restarts_and_torn_lines() {
    let (_dir, path) = log();
    let mut journal = Journal::open(&path, LARGE);
    journal.append(&rows(1..=2)).expect("writes");
    let mut torn = fs::read(&path).expect("reads");
    torn.extend_from_slice(b"{\"id\":3,\"ts");
    fs::write(&path, torn).expect("writes");
    let mut journal = Journal::open(&path, LARGE);
    assert_eq!(journal.last_id(), 2);
    journal.append(&rows(2..=4)).expect("writes");
    assert_eq!(ids(&path), [1, 2, 3, 4]);
}

#[test]
fn a_file_renamed_or_cut_by_logrotate_is_followed_and_remembered() {
    let (dir, path) = log();
    let mut journal = Journal::open(&path, LARGE);
    journal.append(&rows(1..=3)).expect("writes");
    fs::rename(&path, dir.path().join("system_resilience.log-20260101")).expect("renames");
    journal.append(&rows(3..=4)).expect("writes");
    assert_eq!(ids(&path), [4]);
    // copytruncate: a copy, then the file is cut under us.
    fs::copy(&path, numbered(&path, 1)).expect("copies");
    fs::OpenOptions::new().write(true).open(&path).expect("opens").set_len(0).expect("cuts");
    journal.append(&rows(4..=5)).expect("writes");
    assert_eq!(ids(&path), [5]);
    // The same while we are away.
    fs::rename(&path, dir.path().join("system_resilience.log-20260102")).expect("renames");
    let mut journal = Journal::open(&path, LARGE);
    assert_eq!(journal.last_id(), 5);
    journal.append(&rows(1..=6)).expect("writes");
    assert_eq!(ids(&path), [6]);
    fs::remove_dir_all(dir.path()).expect("removes");
    journal.append(&rows(7..=7)).expect("the directory is made again");
    assert_eq!(ids(&path), [7]);
}

#[test]
fn rotation_keeps_its_number_of_files_and_loses_no_line_wherever_it_is_killed() {
    let (_dir, path) = log();
    let mut line = Vec::new();
    line_into(&row(100), &mut line);
    let small = Rotation { max_bytes: line.len() as u64 * 10, max_files: 3 };
    let mut journal = Journal::open(&path, small);
    for id in 1..=35 {
        journal.append(&rows(id..=id)).expect("writes");
    }
    assert_eq!(all_ids(&path), (1..=35).collect::<Vec<u64>>());
    journal.append(&rows(36..=65)).expect("writes");
    let all = all_ids(&path);
    assert_eq!(all.last(), Some(&65));
    assert!(all[0] > 1 && all.len() >= 30, "three files and the new one: {all:?}");
    assert!(all.windows(2).all(|pair| pair[0] + 1 == pair[1]), "dense: {all:?}");
    assert!(!numbered(&path, 4).exists());
    // Killed after the last rename, before the new file was made; and within the chain.
    fs::rename(numbered(&path, 2), numbered(&path, 3)).expect("renames");
    fs::rename(numbered(&path, 1), numbered(&path, 2)).expect("renames");
    fs::rename(&path, numbered(&path, 1)).expect("renames");
    let mut journal = Journal::open(&path, small);
    assert_eq!(journal.last_id(), 65);
    journal.append(&rows(66..=67)).expect("writes");
    assert_eq!(ids(&path), [66, 67]);
    fs::rename(numbered(&path, 2), numbered(&path, 3)).expect("renames");
    let mut journal = Journal::open(&path, small);
    journal.append(&rows(68..=90)).expect("writes");
    let all = all_ids(&path);
    assert!(all.windows(2).all(|pair| pair[0] + 1 == pair[1]), "dense: {all:?}");
    journal.rotate_by(Rotation { max_files: 1, ..small });
    journal.append(&rows(91..=120)).expect("writes");
    assert!(!numbered(&path, 2).exists());
}

#[test]
fn the_newest_events_come_back_as_they_were_from_as_many_files_as_it_takes() {
    let (_dir, path) = log();
    let small = Rotation { max_bytes: 2_000, max_files: 50 };
    Journal::open(&path, small).append(&rows(1..=100)).expect("writes");
    assert_eq!(newest(&path, 0, 40), rows(61..=100));
    assert_eq!(newest(&path, 97, 40), rows(98..=100));
    assert_eq!(newest(&path, 100, 40), []);
    assert_eq!(newest(&path, 0, 1_000), rows(1..=100));
}

#[test]
fn fixed_keys_come_first_and_cannot_be_replaced() {
    let mut odd = row(7);
    odd.event.data.insert("id".into(), 99.into());
    odd.event.unit = None;
    let mut line = Vec::new();
    line_into(&odd, &mut line);
    let text = String::from_utf8(line).expect("UTF-8");
    let object: Value = serde_json::from_str(&text).expect("json");
    assert_eq!(object["id"], 7);
    assert_eq!(object["ts"], "2023-11-14T22:13:20.123456Z");
    assert_eq!(object["start_ms"], 3);
    assert_eq!(object["unit"], Value::Null);
    assert_eq!(text.matches('\n').count(), 1);
    assert!(text.starts_with("{\"id\":7,\"ts\":"), "{text}");
}
