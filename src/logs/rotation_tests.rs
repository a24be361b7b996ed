//! Rotation, retention and packing on real files; what is done to them from outside; and what a
//! kill -9 leaves at every step.
//!
//! Refuses: a clock of its own for what the kernel does; wall times are made up.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use crate::base::exit::{Exit, RunId, SpawnStep};
use crate::base::luck::Luck;
use crate::base::name::UnitName;
use crate::base::signal::Signal;
use crate::logs::Stream;
use crate::logs::files::Directory;
use crate::logs::index::{Header, Index, IndexWriter, Record, What};
use crate::logs::line::{Ended, Said};
use crate::logs::pack::Packed;
use crate::logs::retain::tidy;
use crate::logs::scan::{Scan, Step, Unfinished};
use crate::logs::segment::{Form, extent, segments};
use crate::logs::spool::{Change, Keep, Now, Pack, Spool};
use crate::logs::stored::Stored;
use crate::logs::tests::{KEEP, now};

const SMALL: Keep = Keep { file_bytes_max: 1000, files_max: 3, ..KEEP };
const RUN: RunId = RunId(7);

fn open(logs: &Path, keep: Keep) -> Arc<Spool> {
    let unit = UnitName::parse("web").expect("name");
    Arc::new(Spool::open(logs, &unit, Stream::Stdout, keep, now()).expect("spool"))
}

/// As the capture does: the bytes, then perhaps a new file.
fn write(spool: &Spool, bytes: &[u8], now: Now) -> Change {
    assert_eq!(spool.append(RUN, now, bytes), Ok(bytes.len()));
    spool.rotate_if_due(now).expect("rotates")
}

fn directory(logs: &Path) -> Directory {
    Directory::open(&logs.join("web")).expect("directory")
}

/// Everything that can be read, from the first position that is there.
fn all(logs: &Path) -> (u64, Vec<u8>) {
    let mut scan = Scan::begin(&logs.join("web"), Stream::Stdout).expect("looks");
    let from = scan.at().position;
    let mut bytes = Vec::new();
    while let Step::Item(item) = scan.next(u64::MAX, Unfinished::Show).expect("reads") {
        match item.said {
            Said::Line { bytes: line, ended, .. } => {
                bytes.extend_from_slice(&line);
                bytes.extend_from_slice(if ended == Ended::Newline { b"\n" } else { b"" });
            }
            Said::Gone { bytes } => panic!("{bytes} bytes are gone"),
            Said::Started | Said::Exited(_) | Said::Lost { .. } | Said::Missed { .. } => {}
        }
    }
    (from, bytes)
}

/// The bytes of a stream between two positions.
fn range(logs: &Path, from: u64, to: u64) -> Vec<u8> {
    let mut stored = Stored::new(&logs.join("web"), Stream::Stdout);
    stored.look().expect("looks");
    let mut bytes = Vec::new();
    stored.read_range(from, to, |block| bytes.extend_from_slice(block)).expect("reads");
    bytes
}

fn names(logs: &Path) -> Vec<String> {
    let mut names = directory(logs).names().expect("names");
    names.sort();
    names
}

fn line(number: u32) -> Vec<u8> {
    format!("{number:09}\n").into_bytes()
}

#[test]
fn a_full_file_is_ended_and_the_stream_goes_on() {
    let home = tempfile::tempdir().expect("home");
    let spool = open(home.path(), SMALL);
    let mut rotated = 0;
    for number in 0..250 {
        rotated += u32::from(write(&spool, &line(number), now()) == Change::Rotated);
    }
    assert_eq!(rotated, 2);
    let wanted: Vec<u8> = (0..250).flat_map(line).collect();
    assert_eq!(all(home.path()), (0, wanted));
    assert_eq!(spool.stored_bytes(), 2500);
    let older = ["stdout-00000001.idx", "stdout-00000001.log", "stdout-00000002.idx", "stdout-00000002.log"];
    assert_eq!(names(home.path()), [&["current.idx", "current.log"][..], &older].concat());
    let found = segments(&directory(home.path()), Stream::Stdout).expect("segments");
    let extents: Vec<_> = found
        .iter()
        .map(|one| extent(&directory(home.path()), one).expect("extent").expect("index"))
        .collect();
    assert_eq!(extents, [(0, 1000), (1000, 2000)]);
}

#[test]
fn a_file_is_ended_between_lines_unless_the_line_is_endless() {
    let home = tempfile::tempdir().expect("home");
    let spool = open(home.path(), SMALL);
    assert_eq!(write(&spool, &[b'x'; 5000], now()), Change::None);
    assert_eq!(write(&spool, b"end\n", now()), Change::Rotated);
    let mut rotated = Change::None;
    for _ in 0..20 {
        rotated = write(&spool, &[b'y'; 64 * 1024], now());
        if rotated == Change::Rotated {
            break;
        }
    }
    assert_eq!(rotated, Change::Rotated);
}

#[test]
fn retention_goes_by_number_and_age() {
    let home = tempfile::tempdir().expect("home");
    let spool = open(home.path(), SMALL);
    let at = |s: i64| Now { at: now().at, ts_us: s * 1_000_000 };
    for number in 0..500 {
        write(&spool, &line(number), at(1_000 + i64::from(number)));
    }
    let directory = directory(home.path());
    assert_eq!(segments(&directory, Stream::Stdout).expect("segments").len(), 5);
    assert_eq!(tidy(&directory, Stream::Stdout, SMALL, 2_000).expect("tidy"), None);
    let (from, bytes) = all(home.path());
    assert_eq!((from, bytes.len()), (3000, 2000));
    // The older of the two was ended in second 1,399, the other one in second 1,499.
    let keep = Keep { age_max_s: 600, ..SMALL };
    assert_eq!(tidy(&directory, Stream::Stdout, keep, 1_998).expect("tidy"), Some(1));
    assert_eq!(tidy(&directory, Stream::Stdout, keep, 1_999).expect("tidy"), Some(100));
    assert_eq!(all(home.path()).0, 4000);
    assert_eq!(tidy(&directory, Stream::Stdout, keep, 2_100).expect("tidy"), None);
    assert_eq!(names(home.path()), ["current.idx", "current.log"]);
    write(&spool, &line(500), at(3_000));
    assert_eq!((spool.stored_bytes(), all(home.path())), (5010, (5000, line(500))));
}

#[test]
fn packed_files_are_read_like_the_others_and_by_zstd() {
    let home = tempfile::tempdir().expect("home");
    let keep = Keep { file_bytes_max: 3_000_000, pack: Pack::Yes, ..KEEP };
    let spool = open(home.path(), keep);
    let mut luck = Luck::new(4);
    let mut wanted = Vec::new();
    for _ in 0..80 {
        let mut part: Vec<u8> =
            (0..luck.below(200_000)).map(|_| u8::try_from(luck.below(256)).expect("byte") & 0x3f).collect();
        part.push(b'\n');
        write(&spool, &part, now());
        wanted.extend_from_slice(&part);
    }
    let directory = directory(home.path());
    tidy(&directory, Stream::Stdout, keep, 0).expect("tidy");
    let older = segments(&directory, Stream::Stdout).expect("segments");
    assert!(older.len() >= 2 && older.iter().all(|one| one.form == Form::Packed), "{older:?}");
    assert!(!names(home.path()).iter().any(|name| name.ends_with(".part") || name == "stdout-00000001.log"));
    assert!(all(home.path()).1 == wanted);
    // From the middle, in one go.
    for _ in 0..50 {
        let at = luck.below(u64::try_from(wanted.len()).expect("length"));
        let from = usize::try_from(at).expect("offset");
        let to = (from + 5000).min(wanted.len());
        assert!(range(home.path(), at, at + 5000) == wanted[from..to]);
    }
    let first = fs::read(home.path().join("web").join(older[0].log_name())).expect("packed");
    let plain = zstd::stream::decode_all(first.as_slice()).expect("a zstd file");
    assert!(plain == wanted[..plain.len()] && plain.len() >= 3_000_000);
}

#[test]
fn a_damaged_packed_file_is_an_error_and_nothing_worse() {
    let home = tempfile::tempdir().expect("home");
    let path = home.path().join("packed");
    let plain_path = home.path().join("plain");
    fs::write(&plain_path, b"abcdefgh\n".repeat(300_000)).expect("write");
    let mut packed = fs::File::create(&path).expect("create");
    crate::logs::pack::pack(&mut fs::File::open(&plain_path).expect("open"), &mut packed).expect("packs");
    let good = fs::read(&path).expect("read");
    for seed in 0..400 {
        let mut luck = Luck::new(seed);
        let mut bytes = good.clone();
        let length = u64::try_from(bytes.len()).expect("length");
        for _ in 0..=luck.below(3) {
            let at = usize::try_from(luck.below(length)).expect("place");
            bytes[at] ^= 1 << luck.below(8);
        }
        if luck.below(4) == 0 {
            bytes.truncate(usize::try_from(luck.below(length)).expect("length"));
        }
        fs::write(&path, &bytes).expect("write");
        if let Ok(mut packed) = Packed::open(fs::File::open(&path).expect("open")) {
            let mut buffer = vec![0; 4096];
            for at in (0..packed.len().min(4_000_000)).step_by(500_000) {
                let _ = packed.read_at(&mut buffer, at); // an error, or bytes whose checksum holds
            }
        }
    }
}

/// Copies the directory as it is, as a kill -9 would leave it.
fn snapshot(logs: &Path, to: &Path) {
    fs::create_dir_all(to.join("web")).expect("directory");
    for name in names(logs) {
        fs::copy(logs.join("web").join(&name), to.join("web").join(&name)).expect("copy");
    }
}

/// A rotation is four steps; killed between any two, the next engine finds its way, and not a byte
/// or a position is another one.
#[test]
fn a_rotation_cut_short_at_any_step_is_mended() {
    let rename = |from: &'static str, to: &'static str| {
        move |web: &Path| fs::rename(web.join(from), web.join(to)).expect("rename")
    };
    let log = rename("current.log", "stdout-00000001.log");
    let index = rename("current.idx", "stdout-00000001.idx");
    let make = |name: &'static str| move |web: &Path| drop(fs::File::create(web.join(name)).expect("create"));
    let (make_log, make_index) = (make("current.log"), make("current.idx"));
    let steps: [&dyn Fn(&Path); 4] = [&log, &index, &make_log, &make_index];
    let home = tempfile::tempdir().expect("home");
    let spool = open(home.path(), KEEP);
    (0..50).for_each(|number| _ = write(&spool, &line(number), now()));
    for count in 0..=steps.len() {
        let copy = tempfile::tempdir().expect("copy");
        snapshot(home.path(), copy.path());
        let web = copy.path().join("web");
        steps.iter().take(count).for_each(|step| step(&web));
        let spool = open(copy.path(), KEEP);
        assert_eq!(spool.stored_bytes(), 500, "after {count} steps");
        (50..60).for_each(|number| _ = write(&spool, &line(number), now()));
        let wanted: Vec<u8> = (0..60).flat_map(line).collect();
        assert_eq!(all(copy.path()), (0, wanted), "after {count} steps");
    }
}

#[test]
fn what_is_done_from_outside_is_noticed() {
    let later = |s: u64| Now { at: now().at + std::time::Duration::from_secs(s), ts_us: now().ts_us };
    let (gone, moved, cut, grown) = ("removed", "renamed", "cut", "added to");
    for what in [gone, moved, cut, grown] {
        let home = tempfile::tempdir().expect("home");
        let spool = open(home.path(), KEEP);
        write(&spool, b"before\n", now());
        let path: PathBuf = spool.path().to_path_buf();
        match what {
            "removed" => fs::remove_file(&path).expect("remove"),
            "renamed" => fs::rename(&path, home.path().join("web/archive")).expect("rename"),
            "cut" => drop(fs::File::create(&path).expect("cut")),
            _ => fs::write(&path, b"before\nforeign\n").expect("write"),
        }
        // A new name is looked for once a second.
        write(&spool, b"after\n", later(2));
        let wanted = if what == grown { &b"before\nforeign\nafter\n"[..] } else { b"after\n" };
        assert_eq!(fs::read(&path).expect("read"), wanted, "{what}");
        assert!(spool.stored_bytes() >= 13, "{what}");
        let (from, bytes) = all(home.path());
        assert_eq!(
            (from + 6 + if what == grown { 15 } else { 0 }, bytes),
            (spool.stored_bytes(), wanted.to_vec())
        );
        // So does the next engine, which knows nothing but the files.
        let position = spool.stored_bytes();
        drop(spool);
        assert_eq!(open(home.path(), KEEP).stored_bytes(), position, "{what}");
    }
    // A reader that was in the middle of what was cut is told.
    let home = tempfile::tempdir().expect("home");
    let spool = open(home.path(), KEEP);
    write(&spool, b"012\n456789", now());
    let mut scan = Scan::begin(&home.path().join("web"), Stream::Stdout).expect("looks");
    scan.set_block(4096);
    let mut next = || match scan.next(u64::MAX, Unfinished::Leave).expect("reads") {
        Step::Item(item) => Some(item.said),
        Step::Nothing => None,
    };
    assert!(matches!(next(), Some(Said::Line { bytes, .. }) if bytes == b"012"));
    assert_eq!(next(), None);
    write(&spool, b"0123456789", now());
    drop(fs::File::create(spool.path()).expect("cut"));
    write(&spool, b"after\n", now());
    // What it had read already is told, without an end.
    assert!(matches!(next(), Some(Said::Line { bytes, ended: Ended::Open, .. }) if bytes == b"456789"));
    assert_eq!(next(), Some(Said::Gone { bytes: 10 }));
    assert!(matches!(next(), Some(Said::Line { bytes, .. }) if bytes == b"after"));
}

#[test]
fn nobody_can_point_a_file_elsewhere() {
    let home = tempfile::tempdir().expect("home");
    let secret = home.path().join("secret");
    fs::write(&secret, "untouched").expect("write");
    let spool = open(home.path(), SMALL);
    write(&spool, b"x\n", now());
    spool.close_files();
    let (log, index) = (home.path().join("web/current.log"), home.path().join("web/current.idx"));
    for (path, link) in [(&log, true), (&index, true), (&log, false), (&index, false)] {
        let kept = fs::read(path).expect("read");
        fs::remove_file(path).expect("remove");
        if link {
            symlink(&secret, path).expect("symlink");
        } else {
            fs::hard_link(&secret, path).expect("link");
        }
        let wanted = if link { Errno::ELOOP } else { Errno::EMLINK };
        assert_eq!(spool.append(RUN, now(), b"y\n"), Err(wanted));
        assert_eq!(fs::read(&secret).expect("read"), b"untouched");
        fs::remove_file(path).expect("remove");
        fs::write(path, kept).expect("write");
    }
    // Where an older file would get its name there is a link already: it is replaced, not followed.
    symlink(&secret, home.path().join("web/stdout-00000001.log")).expect("symlink");
    let spool = open(home.path(), SMALL);
    (0..200).for_each(|number| _ = write(&spool, &line(number), now()));
    assert_eq!(fs::read(&secret).expect("read"), b"untouched");
}

#[test]
fn within_a_file_times_never_run_backwards() {
    let home = tempfile::tempdir().expect("home");
    let spool = open(home.path(), KEEP);
    let at = |ts_us: i64| Now { at: now().at, ts_us };
    let second = 1_000_000;
    write(&spool, b"a\n", at(100 * second));
    write(&spool, b"b\n", at(100 * second - second / 2));
    assert_eq!(segments(&directory(home.path()), Stream::Stdout).expect("segments").len(), 0);
    write(&spool, b"c\n", at(50 * second));
    assert_eq!(segments(&directory(home.path()), Stream::Stdout).expect("segments").len(), 1);
    assert_eq!(all(home.path()), (0, b"a\nb\nc\n".to_vec()));
    let file = fs::File::open(home.path().join("web/current.idx")).expect("open");
    let index = Index::of(&file).expect("reads").expect("header");
    assert_eq!(index.record(0).expect("reads").map(|record| record.ts_us), Some(50 * second));
}

#[test]
fn records_come_back_as_they_were_and_damage_is_seen() {
    let home = tempfile::tempdir().expect("home");
    let path = home.path().join("index");
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("create");
    let header = Header { sequence: 3, base: 77, created_us: -5, stream: Stream::Stderr };
    let mut writer = IndexWriter::create(file, header).expect("writes");
    let exits = [
        Exit::Unknown,
        Exit::Code(255),
        Exit::Signal { signal: Signal::KILL, core: true },
        Exit::NotExecuted { step: SpawnStep::Exec, errno: -2 },
    ];
    let whats = [What::Chunk, What::Started, What::Lost { bytes: (1 << 48) - 1 }, What::End]
        .into_iter()
        .chain(exits.map(What::Exited));
    let records: Vec<Record> = (0..)
        .zip(whats)
        .map(|(number, what)| Record { offset: number * 10, ts_us: -1, run: RunId(u64::MAX - number), what })
        .collect();
    records.iter().for_each(|record| writer.push(*record).expect("writes"));
    let good = fs::read(&path).expect("read");
    let read = |path: &Path| {
        let file = fs::File::open(path).expect("open");
        let index = Index::of(&file).expect("reads")?;
        Some((index.header, index.page(0).expect("page")))
    };
    assert_eq!(read(&path), Some((header, records.clone())));
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).expect("write");
        match read(&path) {
            // One record in 256 whose damage is not seen would be one too many here: FNV sees every flip.
            Some((found, rest)) => {
                assert_eq!(found, header);
                assert!(
                    rest.len() < records.len() && rest.iter().all(|record| records.contains(record)),
                    "{bit}"
                );
            }
            None => assert!(bit < 64 * 8),
        }
    }
    for length in 0..good.len() {
        fs::write(&path, &good[..length]).expect("write");
        let whole = length.checked_sub(64).map(|bytes| bytes / 32);
        assert_eq!(read(&path).map(|(_, found)| found.len()), whole, "{length}");
    }
}

#[test]
fn an_index_says_no_more_than_it_has_to() {
    let home = tempfile::tempdir().expect("home");
    let spool = open(home.path(), KEEP);
    let at = |ts_us: i64| Now { at: now().at, ts_us };
    for number in 0..10_000 {
        // Ten chunks a millisecond.
        write(&spool, b"x", at(i64::from(number) * 100));
    }
    let index = fs::metadata(home.path().join("web/current.idx")).expect("index").len();
    assert_eq!(index, 64 + 32 * 1000);
    // Tried in vain again and again: nothing grows.
    for number in 0..100 {
        assert_eq!(spool.append(RUN, at(2_000_000 + number * 2_000), b""), Ok(0));
    }
    assert_eq!(fs::metadata(home.path().join("web/current.idx")).expect("index").len(), index + 32);
    for number in 0..100 {
        let now = at(3_000_000 + number * 2_000);
        spool.count_loss(RUN, 5);
        spool.mark_loss(now).expect("marks");
        assert_eq!(spool.append(RUN, now, b""), Ok(0));
    }
    assert_eq!(fs::metadata(home.path().join("web/current.idx")).expect("index").len(), index + 64);
}

#[test]
fn logs_of_a_build_without_an_index_go_on() {
    let home = tempfile::tempdir().expect("home");
    fs::create_dir(home.path().join("web")).expect("directory");
    fs::write(home.path().join("web/current.log"), b"old\n").expect("write");
    assert_eq!(all(home.path()), (0, b"old\n".to_vec()));
    let spool = open(home.path(), SMALL);
    assert_eq!(spool.stored_bytes(), 4);
    write(&spool, &line(1), now());
    assert_eq!(all(home.path()), (0, [&b"old\n"[..], &line(1)].concat()));
}
