//! The readers against a plain model: random writes, rotations, packing, retention and kills; every
//! question is answered as the model has it.
//!
//! Refuses: expectations computed by the code under test.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::base::exit::{Exit, RunId};
use crate::base::luck::Luck;
use crate::logs::Stream;
use crate::logs::index::What;
use crate::logs::line::{Cursor, Cut, Ended, Item, LINE_BYTES_MAX, Said, text};
use crate::logs::model_tests::{EPOCH_US, Plain, Stage, answer, keep, moment, open, plain};
use crate::logs::query::{Asked, Input, LAG_BYTES_MAX, Marks, PATTERN_BYTES_MAX, Pattern, Reader, Until};
use crate::logs::read::LineMatcher;
use crate::logs::spool::{Keep, Pack};

const DEADLINE: Duration = Duration::from_secs(60);

fn within<T>(wanted: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async { tokio::time::timeout(DEADLINE, wanted).await.expect("deadline") })
}

fn input(logs: &Path, stream: Stream, after: Option<Cursor>) -> Input {
    Input { directory: logs.join("web"), stream, spool: None, after }
}

fn read_all(logs: &Path, streams: &[Stream], asked: &Asked) -> Vec<(usize, Item)> {
    let inputs = streams.iter().map(|stream| input(logs, *stream, None)).collect();
    drain(&mut Reader::begin(inputs, asked.clone(), &|| false).expect("begins"))
}

fn drain(reader: &mut Reader) -> Vec<(usize, Item)> {
    let mut items = Vec::new();
    while let Some(item) = reader.next(&|| false).expect("reads") {
        items.push(item);
        assert!(items.len() < 1_000_000, "endless");
    }
    items
}

fn plains(items: &[(usize, Item)]) -> Vec<(usize, Plain)> {
    items.iter().map(|(number, item)| (*number, plain(item))).collect()
}

fn some_bytes(luck: &mut Luck) -> Vec<u8> {
    let length = match luck.below(10) {
        0..4 => luck.below(12),
        4..7 => luck.below(300),
        7 => luck.below(3_000),
        8 => 65_530 + luck.below(12),
        _ => luck.below(200_000),
    };
    let newlines = [0, 5, 30, 400][luck.below(4) as usize];
    let mut bytes: Vec<u8> = Vec::new();
    for at in 0..length {
        let newline = luck.chance(newlines);
        bytes.push(if newline { b'\n' } else { (at % 251) as u8 });
    }
    if luck.chance(600) {
        bytes.push(b'\n');
    }
    bytes
}

fn do_something(written: &mut Stage, logs: &Path, luck: &mut Luck, ts_us: i64, keep: Keep) {
    match luck.below(20) {
        0 => written.mark(1 + luck.below(3), ts_us, What::Started),
        1 => written.mark(1 + luck.below(3), ts_us, What::Exited(Exit::Code(luck.below(3) as u8))),
        2 => written.mark(1 + luck.below(3), ts_us, What::Lost { bytes: 1 + luck.below(9) }),
        3 => written.reopen(logs, keep),
        4 => written.retain(logs, keep),
        _ => {
            let bytes = some_bytes(luck);
            if !bytes.is_empty() {
                written.write(1 + luck.below(3), ts_us, &bytes);
            }
        }
    }
}

fn some_question(luck: &mut Luck, last_us: i64) -> Asked {
    let span = u64::try_from(last_us - EPOCH_US).expect("forwards") + 3_000;
    let mut time = || Some(EPOCH_US - 1_000 + i64::try_from(luck.below(span)).expect("small"));
    let (since_us, until_us) = (time(), time());
    let pattern = ["a", "^.{0,5}$", "(?-u)\\x00\\x01", "z.*z"][luck.below(4) as usize];
    Asked {
        lines: luck.chance(600).then(|| luck.below(40)),
        since_us: since_us.filter(|_| luck.chance(400)),
        until_us: until_us.filter(|_| luck.chance(400)),
        pattern: luck.chance(300).then(|| Pattern::new(pattern).expect("pattern")),
        marks: [Marks::All, Marks::Losses, Marks::None][luck.below(3) as usize],
        until: Until::Now,
    }
}

/// Two streams with everything that can happen to them; then a hundred questions.
#[test]
fn every_question_is_answered_as_by_the_model() {
    let seeds = std::env::var("LOG_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(30);
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        let home = tempfile::tempdir().expect("home");
        let mut luck = Luck::new(seed);
        let pack = if luck.chance(500) { Pack::Yes } else { Pack::No };
        let keep = keep(1 + luck.below(300_000), 2 + luck.below(6) as u32, pack);
        let logs = home.path();
        let mut both = Stream::ALL.map(|stream| Stage::new(logs, stream, keep));
        let mut ts_us = EPOCH_US;
        for _ in 0..luck.below(60) {
            ts_us += 1_000 * i64::try_from(1 + luck.below(3)).expect("small");
            let one = &mut both[luck.below(2) as usize];
            do_something(one, logs, &mut luck, ts_us, keep);
        }
        let models = both.each_ref().map(|one| one.model(logs));
        let told = |question: &Asked| format!("SEED={seed} LOG_SEEDS=1 {question:?}");
        for _ in 0..30 {
            let question = some_question(&mut luck, ts_us);
            let found = plains(&read_all(logs, &Stream::ALL, &question));
            same(&found, &answer(&models, &question), &told(&question));
            let one = luck.below(2) as usize;
            let found = plains(&read_all(logs, &[Stream::ALL[one]], &question));
            same(&found, &answer(&models[one..=one], &question), &told(&question));
        }
        // Broken off anywhere, it goes on without loss and without telling anything twice.
        let question = Asked::default();
        let all = read_all(logs, &Stream::ALL, &question);
        for _ in 0..10 {
            let split = luck.below(all.len() as u64 + 1) as usize;
            let after = |number: usize| {
                let told = all[..split].iter().rev().find(|(whose, _)| *whose == number);
                let at = told.map_or(Cursor::default(), |(_, item)| item.next);
                Some(at.to_string().parse().expect("a place"))
            };
            let inputs = vec![input(logs, Stream::Stdout, after(0)), input(logs, Stream::Stderr, after(1))];
            let mut reader = Reader::begin(inputs, question.clone(), &|| false).expect("begins");
            let mut rest = plains(&drain(&mut reader));
            // Where nothing was told yet, what retention had removed is told.
            rest.retain(|(_, item)| !matches!(item.said, Said::Gone { .. }));
            same(&rest, &plains(&all[split..]), &format!("SEED={seed} LOG_SEEDS=1 split {split}"));
        }
    }
}

fn same(found: &[(usize, Plain)], wanted: &[(usize, Plain)], case: &str) {
    if found == wanted {
        return;
    }
    let at = found.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(found.len().min(wanted.len()));
    let show = |items: &[(usize, Plain)]| {
        let shown = items.get(at).map(|(number, item)| {
            let mut item = item.clone();
            let mut length = 0;
            if let Said::Line { bytes, .. } = &mut item.said {
                length = bytes.len();
                bytes.truncate(8);
            }
            format!("{number} {item:?} of {length} bytes")
        });
        format!("{} items, number {at}: {shown:?}", items.len())
    };
    panic!("{case}\nfound  {}\nwanted {}", show(found), show(wanted));
}

/// A follower that is thrown away and begun again at its places, over writes, rotations, packing
/// and kills, gets every item once.
#[test]
fn a_follower_that_breaks_off_gets_every_item_once() {
    for seed in 0..30 {
        let home = tempfile::tempdir().expect("home");
        let mut luck = Luck::new(seed);
        let pack = if luck.chance(500) { Pack::Yes } else { Pack::No };
        // Everything stays, so that the whole can be compared.
        let keep = keep(1 + luck.below(200_000), 1_000, pack);
        let logs = home.path();
        let mut both = Stream::ALL.map(|stream| Stage::new(logs, stream, keep));
        let asked = Asked { until: Until::Follow, ..Asked::default() };
        let mut places = [Cursor::default(); 2];
        let mut seen: [Vec<Plain>; 2] = [Vec::new(), Vec::new()];
        let mut held = None;
        let mut ts_us = EPOCH_US;
        let steps = 20 + luck.below(60);
        for step in 0..=steps {
            ts_us += 1_000 * i64::try_from(1 + luck.below(3)).expect("small");
            if step == steps {
                // Whatever is open gets its end.
                for one in &mut both {
                    one.mark(9, ts_us, What::Exited(Exit::Code(0)));
                }
            } else {
                do_something(&mut both[luck.below(2) as usize], logs, &mut luck, ts_us, keep);
            }
            let reader = held.get_or_insert_with(|| {
                let inputs = Stream::ALL.iter().zip(places);
                let inputs = inputs.map(|(stream, at)| input(logs, *stream, Some(at))).collect();
                Reader::begin(inputs, asked.clone(), &|| false).expect("begins")
            });
            reader.wake(0);
            reader.wake(1);
            let mut left = if luck.chance(300) { luck.below(4) } else { u64::MAX };
            let mut broken = step < steps && luck.chance(300);
            while left > 0 || step == steps {
                left = left.saturating_sub(1);
                let Some((number, item)) = reader.next(&|| false).expect("reads") else { break };
                places[number] = item.next;
                let last = seen[number].last_mut();
                match (&item.said, last) {
                    // A loss that grew is told in parts.
                    (
                        Said::Lost { bytes },
                        Some(Plain { position, ts_us, run, said: Said::Lost { bytes: sum } }),
                    ) if *position == item.at.position && item.at.lost > 0 => {
                        *sum += bytes;
                        (*ts_us, *run) = (item.ts_us, item.run);
                    }
                    (_, _) => seen[number].push(plain(&item)),
                }
                broken |= step < steps && luck.chance(20);
                if broken {
                    break;
                }
            }
            if broken {
                held = None;
            }
        }
        for (number, one) in both.iter().enumerate() {
            let found: Vec<_> = seen[number].iter().cloned().map(|item| (number, item)).collect();
            let wanted: Vec<_> = one.model(logs).into_iter().map(|item| (number, item)).collect();
            same(&found, &wanted, &format!("seed {seed} stream {number}"));
        }
    }
}

fn lines_of(items: &[(usize, Item)]) -> Vec<String> {
    let lines = items.iter().filter_map(|(_, item)| match &item.said {
        Said::Line { bytes, cut, .. } => Some(text(bytes, *cut).into_owned()),
        Said::Started | Said::Exited(_) | Said::Lost { .. } | Said::Gone { .. } | Said::Missed { .. } => None,
    });
    lines.collect()
}

fn last(lines: u64) -> Asked {
    Asked { lines: Some(lines), ..Asked::default() }
}

/// More streams than may be open at once.
#[test]
fn a_hundred_streams_are_merged_by_time() {
    let home = tempfile::tempdir().expect("home");
    let mut luck = Luck::new(5);
    let (mut inputs, mut wanted) = (Vec::new(), Vec::new());
    let mut directories = Vec::new();
    for number in 0..100 {
        let logs = home.path().join(number.to_string());
        fs::create_dir(&logs).expect("directory");
        directories.push((logs.clone(), Stage::new(&logs, Stream::Stdout, keep(200, 50, Pack::No))));
    }
    for step in 0..1_000 {
        let number = luck.below(100) as usize;
        let text = format!("line {step}");
        directories[number].1.write(1, EPOCH_US + step * 1_000, format!("{text}\n").as_bytes());
        wanted.push(text);
    }
    let mut ask = |asked: Asked| {
        inputs.clear();
        inputs.extend(directories.iter().map(|(logs, _)| input(logs, Stream::Stdout, None)));
        let inputs = std::mem::take(&mut inputs);
        lines_of(&drain(&mut Reader::begin(inputs, asked, &|| false).expect("begins")))
    };
    assert_eq!(ask(Asked::default()), wanted);
    assert_eq!(ask(last(37)), wanted[1_000 - 37..]);
    assert_eq!(ask(Asked { since_us: Some(EPOCH_US + 900_000), ..Asked::default() }), wanted[900..]);
}

#[test]
fn last_words_are_not_glued_to_the_next_run() {
    let home = tempfile::tempdir().expect("home");
    let mut one = Stage::new(home.path(), Stream::Stdout, keep(1 << 20, 5, Pack::No));
    one.mark(1, EPOCH_US, What::Started);
    one.write(1, EPOCH_US + 1_000, b"hello\npanicked at");
    one.mark(1, EPOCH_US + 2_000, What::Exited(Exit::Code(101)));
    one.mark(2, EPOCH_US + 3_000, What::Started);
    one.write(2, EPOCH_US + 4_000, b"hello again\nand");
    let all = read_all(home.path(), &[Stream::Stdout], &Asked::default());
    assert_eq!(lines_of(&all), ["hello", "panicked at", "hello again", "and"]);
    let kinds: Vec<bool> = all.iter().map(|(_, item)| item.is_line()).collect();
    assert_eq!(kinds, [false, true, true, false, false, true, true]);
    assert_eq!(lines_of(&read_all(home.path(), &[Stream::Stdout], &last(2))), ["hello again", "and"]);
    let since = Asked { since_us: Some(EPOCH_US + 4_000), ..Asked::default() };
    assert_eq!(lines_of(&read_all(home.path(), &[Stream::Stdout], &since)), ["hello again", "and"]);
}

#[test]
fn a_log_without_an_index_has_lines_and_the_time_of_its_file() {
    let home = tempfile::tempdir().expect("home");
    fs::create_dir(home.path().join("web")).expect("directory");
    assert_eq!(read_all(home.path(), &[Stream::Stdout], &last(5)), []);
    fs::write(home.path().join("web/current.log"), b"a\nb\nc").expect("write");
    let found = read_all(home.path(), &Stream::ALL, &last(2));
    assert_eq!(lines_of(&found), ["b", "c"]);
    assert!(found[0].1.ts_us > EPOCH_US / 2);
    assert_eq!(read_all(&home.path().join("nowhere"), &Stream::ALL, &Asked::default()), []);
}

#[test]
fn a_line_of_a_gigabyte_is_not_read_into_memory() {
    let home = tempfile::tempdir().expect("home");
    fs::create_dir(home.path().join("web")).expect("directory");
    let file = fs::File::create(home.path().join("web/current.log")).expect("file");
    file.set_len(1 << 30).expect("sparse");
    let some = read_all(home.path(), &[Stream::Stdout], &last(3));
    let cuts: Vec<Cut> = some
        .iter()
        .map(|(_, item)| match &item.said {
            Said::Line { cut, bytes, .. } if bytes.len() == LINE_BYTES_MAX => *cut,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(cuts, [Cut::Middle, Cut::Middle, Cut::End]);
}

/// Damage of the index costs times and marks, never bytes, and never a panic or an endless loop.
#[test]
fn a_damaged_index_never_costs_bytes() {
    for seed in 0..60 {
        let home = tempfile::tempdir().expect("home");
        let mut luck = Luck::new(seed);
        let keep = keep(2_000, 1_000, Pack::No);
        let mut one = Stage::new(home.path(), Stream::Stdout, keep);
        let mut bytes = Vec::new();
        for number in 0..200 {
            let line = format!("line {number} {}\n", "x".repeat(luck.below(60) as usize)).into_bytes();
            one.write(1 + number / 50, EPOCH_US + i64::try_from(number).expect("small") * 2_000, &line);
            bytes.extend_from_slice(&line);
        }
        for entry in fs::read_dir(home.path().join("web")).expect("directory") {
            let path = entry.expect("entry").path();
            let index = path.extension().is_some_and(|extension| extension == "idx");
            if index && luck.chance(600) {
                let file = fs::OpenOptions::new().write(true).open(&path).expect("index");
                let size = file.metadata().expect("size").len();
                match luck.below(5) {
                    0 => fs::remove_file(&path).expect("remove"),
                    1 => file.set_len(luck.below(size)).expect("cut"),
                    // Records, and now and then the header.
                    _ => {
                        for _ in 0..=luck.below(40) {
                            let at =
                                if luck.chance(100) { luck.below(64) } else { 64 + luck.below(size - 64) };
                            file.write_all_at(&[luck.below(256) as u8], at).expect("damage");
                        }
                    }
                }
            }
        }
        let all = read_all(home.path(), &[Stream::Stdout], &Asked::default());
        let mut found = Vec::new();
        for (_, item) in &all {
            if let Said::Line { bytes, ended, .. } = &item.said {
                found.extend_from_slice(bytes);
                found.extend_from_slice(if *ended == Ended::Newline { b"\n" } else { b"" });
            }
        }
        assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(&bytes), "seed {seed}");
        for question in (0..20).map(|_| some_question(&mut luck, EPOCH_US + 400_000)) {
            read_all(home.path(), &[Stream::Stdout], &question);
        }
    }
}

#[test]
fn what_is_missing_is_told() {
    let home = tempfile::tempdir().expect("home");
    let mut one = Stage::new(home.path(), Stream::Stdout, keep(10, 100, Pack::No));
    for number in 0..5 {
        one.write(1, EPOCH_US + number * 2_000, format!("0123456 {number}\n").as_bytes());
    }
    fs::remove_file(home.path().join("web/stdout-00000002.log")).expect("remove");
    fs::remove_file(home.path().join("web/stdout-00000003.log")).expect("remove");
    let all = read_all(home.path(), &[Stream::Stdout], &Asked::default());
    assert_eq!(lines_of(&all), ["0123456 0", "0123456 3", "0123456 4"]);
    assert_eq!(all[1].1.said, Said::Gone { bytes: 20 });
    assert_eq!(lines_of(&read_all(home.path(), &[Stream::Stdout], &last(3))), lines_of(&all));
    // Cut from outside while it is read: the reader hears of it, and goes on.
    let mut reader = Reader::begin(
        vec![input(home.path(), Stream::Stdout, None)],
        Asked { until: Until::Follow, ..last(0) },
        &|| false,
    )
    .expect("begins");
    assert_eq!(drain(&mut reader), []);
    one.spool.set_keep(keep(1_000, 100, Pack::No));
    one.write(1, EPOCH_US + 20_000, b"before\nhalf");
    reader.wake(0);
    assert_eq!(lines_of(&drain(&mut reader)), ["before"]);
    fs::File::create(home.path().join("web/current.log")).expect("cut");
    one.write(1, EPOCH_US + 30_000, b"after\n");
    reader.wake(0);
    let found = drain(&mut reader);
    // Nothing that it had not read was lost: the line that it knew half of goes on.
    assert_eq!(lines_of(&found), ["halfafter"]);
}

#[test]
fn a_slow_follower_is_moved_forward_and_told() {
    let home = tempfile::tempdir().expect("home");
    let mut one = Stage::new(home.path(), Stream::Stdout, keep(3 << 20, 100, Pack::No));
    let follow = Asked { until: Until::Follow, ..last(0) };
    let input = Input { spool: Some(Arc::clone(&one.spool)), ..input(home.path(), Stream::Stdout, None) };
    let mut reader = Reader::begin(vec![input], follow, &|| false).expect("begins");
    assert_eq!(drain(&mut reader), []);
    let line = [vec![b'z'; 1023], b"\n".to_vec()].concat();
    let count = LAG_BYTES_MAX / 1024 + 100;
    for number in 0..count {
        one.write(1, EPOCH_US + i64::try_from(number).expect("small") * 1_000, &line);
    }
    reader.wake(0);
    let found = drain(&mut reader);
    let Said::Missed { bytes, lines: Some(lines) } = found[0].1.said else { panic!("{:?}", found[0]) };
    assert_eq!(bytes, lines * 1024);
    assert_eq!(lines + found.len() as u64 - 1, count);
    assert!(found.len() > 900, "{}", found.len());
}

#[test]
fn patterns_are_bounded_and_refused_with_a_reason() {
    let broken = Pattern::new("a(").expect_err("broken");
    assert!(broken.contains("unclosed group"), "{broken}");
    assert!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX + 1)).is_err());
    assert!(Pattern::new("(?:a{1000}){1000}").expect_err("large").contains("size"), "large");
    assert!(Pattern::new("(?i)error|pänic").expect("pattern").matches("a PÄNIC".as_bytes()));
}

#[test]
fn places_are_text_and_back() {
    let place = Cursor { position: 1 << 40, sequence: 3, record: 12, lost: 0 };
    assert_eq!(place.to_string(), "1099511627776.3.12");
    for place in [place, Cursor { lost: 7, ..place }, Cursor::default()] {
        assert_eq!(place.to_string().parse(), Ok(place));
    }
    for broken in ["", "1", "1.2", "1.2.3.4.5", "a.b.c", "-1.2.3", "1.2.99999999999999999999"] {
        assert!(broken.parse::<Cursor>().is_err(), "{broken}");
    }
}

/// What is there already; none where the future still waits. Cancels it, as a `select!` would.
async fn shortly<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(20), future).await.ok()
}

#[test]
fn a_readiness_pattern_sees_this_run_only_and_over_rotations() {
    let home = tempfile::tempdir().expect("home");
    let mut one = Stage::new(home.path(), Stream::Stdout, keep(100, 3, Pack::No));
    one.write(1, EPOCH_US, b"listening on 8000\nhalf a li");
    within(async {
        let from = one.spool.stored_bytes();
        let mut matcher =
            LineMatcher::new(Arc::clone(&one.spool), Stream::Stdout, from, r"^listening on \d+$")
                .expect("pattern");
        assert!(shortly(matcher.matched()).await.is_none());
        let flood = vec![b'.'; 200_000];
        for (number, part) in
            [&b"not listening on 1\n"[..], &flood, b"\nlisten", b"ing on 80"].iter().enumerate()
        {
            one.write(2, EPOCH_US + 2_000 * (1 + number as i64), part);
            assert!(shortly(matcher.matched()).await.is_none());
        }
        one.write(2, EPOCH_US + 20_000, b"01\n");
        assert_eq!(matcher.matched().await.expect("read"), b"listening on 8001");
    });
    assert!(LineMatcher::new(Arc::clone(&one.spool), Stream::Stdout, 0, "(").is_err());
}

/// `UPRIGHT_SEEK_GIB=10 cargo test --release --lib seeking -- --nocapture` measures a large one.
#[test]
fn seeking_by_time_does_not_read_the_log() {
    const CHUNK_BYTES: usize = 16 * 1024;
    let gib = std::env::var("UPRIGHT_SEEK_GIB").ok().and_then(|gib| gib.parse::<u64>().ok());
    let total = gib.map_or(64 << 20, |gib| gib << 30);
    let home = tempfile::tempdir().expect("home");
    let one = open(home.path(), Stream::Stdout, keep(total / 8, 100, Pack::No));
    let chunks = total / CHUNK_BYTES as u64;
    let at_us = |chunk: u64| EPOCH_US + i64::try_from(chunk).expect("small") * 1_500;
    for chunk in 0..chunks {
        let text = format!("{chunk:099}\n").repeat(CHUNK_BYTES / 100);
        let now = moment(at_us(chunk));
        assert_eq!(one.append(RunId(1), now, text.as_bytes()), Ok(text.len()));
        one.rotate_if_due(now).expect("rotates");
    }
    let mut luck = Luck::new(1);
    let mut worst = Duration::ZERO;
    for round in 0..50 {
        let chunk = luck.below(chunks);
        let since_us = Some(at_us(chunk));
        let begun = std::time::Instant::now();
        let asked = match round % 2 {
            0 => Asked { since_us, ..Asked::default() },
            // The ten lines before a moment.
            _ => Asked { until_us: since_us, ..last(10) },
        };
        let mut reader =
            Reader::begin(vec![input(home.path(), Stream::Stdout, None)], asked, &|| false).expect("begins");
        let (_, first) = reader.next(&|| false).expect("reads").expect("a line");
        worst = worst.max(begun.elapsed());
        let Said::Line { bytes, .. } = first.said else { panic!("{first:?}") };
        assert_eq!(bytes, format!("{chunk:099}").into_bytes());
    }
    println!("seeking by time in {} MiB: at most {worst:?}", total >> 20);
    // A debug build on a busy machine has ten times what the promise is.
    assert!(worst < Duration::from_millis(500), "{worst:?}");
}
