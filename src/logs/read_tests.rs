//! The readers: tails against a plain model, followers against a slow and a fast writer.
//!
//! Refuses: expectations computed by the code under test.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::base::exit::RunId;
use crate::base::luck::Luck;
use crate::base::name::UnitName;
use crate::logs::Stream;
use crate::logs::read::{
    Cut, Follow, Followed, LAG_BYTES_MAX, LINE_BYTES_MAX, Lag, LineMatcher, LogLineRaw, TAIL_BYTES_MAX, Tail,
    Unfinished, tail,
};
use crate::logs::spool::Spool;
use crate::logs::tests::{KEEP, now};

const DEADLINE: Duration = Duration::from_secs(60);

fn spool(logs: &Path) -> Arc<Spool> {
    let unit = UnitName::parse("web").expect("name");
    Arc::new(Spool::open(logs, &unit, Stream::Stdout, KEEP, now()).expect("spool"))
}

fn append(spool: &Spool, bytes: &[u8]) {
    assert_eq!(spool.append(RunId(1), now(), bytes), Ok(bytes.len()));
}

fn within<T>(wanted: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async { tokio::time::timeout(DEADLINE, wanted).await.expect("deadline") })
}

fn tail_of(bytes: &[u8], lines: usize, last: Unfinished) -> Tail {
    let directory = tempfile::tempdir().expect("directory");
    fs::write(directory.path().join("current.log"), bytes).expect("write");
    tail(directory.path(), Stream::Stdout, lines, last).expect("tail")
}

fn texts(tail: &Tail) -> Vec<String> {
    tail.lines.iter().map(LogLineRaw::text).collect()
}

#[test]
fn a_tail_is_the_last_lines() {
    // text, lines asked for, then lines and end with an unfinished line shown, and left.
    for (text, lines, shown, left) in [
        ("", 5, (vec![], 0), (vec![], 0)),
        ("a", 5, (vec!["a"], 1), (vec![], 0)),
        ("a\n", 5, (vec!["a"], 2), (vec!["a"], 2)),
        ("a\nb\nc", 2, (vec!["b", "c"], 5), (vec!["a", "b"], 4)),
        ("\n\n", 5, (vec!["", ""], 2), (vec!["", ""], 2)),
        ("a\n\nb\n", 2, (vec!["", "b"], 5), (vec!["", "b"], 5)),
        ("a\nb\n", 0, (vec![], 4), (vec![], 4)),
    ] {
        for (last, wanted) in [(Unfinished::Show, shown), (Unfinished::Leave, left)] {
            let tail = tail_of(text.as_bytes(), lines, last);
            let found = texts(&tail);
            assert_eq!((found.iter().map(String::as_str).collect(), tail.end), wanted, "{text:?} {last:?}");
        }
    }
    let directory = tempfile::tempdir().expect("directory");
    let missing = tail(directory.path(), Stream::Stderr, 3, Unfinished::Show).expect("tail");
    assert_eq!(missing, Tail { lines: Vec::new(), end: 0, shortened: false });
    assert_eq!(texts(&tail_of(b"caf\xc3\xa9 \xff\n", 1, Unfinished::Show)), ["café \u{fffd}"]);
}

/// Whatever the lengths of the lines: the pieces, put together again, are the end of the file.
#[test]
fn a_tail_agrees_with_the_plain_model() {
    for seed in 0..60 {
        let mut luck = Luck::new(seed);
        let lines: Vec<Vec<u8>> = (0..luck.below(12) + 1)
            .map(|_| {
                let length = match luck.below(4) {
                    0 => luck.below(3),
                    1 => luck.below(200),
                    2 => 65_530 + luck.below(12),
                    _ => luck.below(300_000),
                };
                (0..length).map(|at| b'a' + u8::try_from(at % 23).expect("letter")).collect()
            })
            .collect();
        let text: Vec<u8> = lines.iter().flat_map(|line| [line.as_slice(), b"\n"].concat()).collect();
        let all = tail_of(&text, usize::MAX, Unfinished::Show);
        assert_eq!(join(&all.lines), text, "seed {seed}");
        let number = usize::try_from(luck.below(8)).expect("number");
        let some = tail_of(&text, number, Unfinished::Leave);
        assert_eq!(some.lines, all.lines[all.lines.len().saturating_sub(number)..], "seed {seed}");
        assert!(!all.shortened && !some.shortened, "seed {seed}");
    }
}

/// Pieces back to bytes; checks that the marks fit together.
fn join(lines: &[LogLineRaw]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut inside = false;
    for line in lines {
        assert!(line.bytes.len() <= LINE_BYTES_MAX);
        assert_eq!(inside, matches!(line.cut, Cut::Middle | Cut::End), "{:?}", line.cut);
        inside = matches!(line.cut, Cut::Beginning | Cut::Middle);
        bytes.extend_from_slice(&line.bytes);
        if !inside {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[test]
fn a_line_of_a_gigabyte_is_not_read_into_memory() {
    let directory = tempfile::tempdir().expect("directory");
    let file = fs::File::create(directory.path().join("current.log")).expect("file");
    file.set_len(1 << 30).expect("sparse");
    let some = tail(directory.path(), Stream::Stdout, 3, Unfinished::Leave).expect("tail");
    assert_eq!((some.end, some.shortened), (1 << 30, false));
    assert_eq!(
        some.lines.iter().map(|line| line.cut).collect::<Vec<_>>(),
        [Cut::Middle, Cut::Middle, Cut::End]
    );
    let all = tail(directory.path(), Stream::Stdout, usize::MAX, Unfinished::Show).expect("tail");
    let bytes: usize = all.lines.iter().map(|line| line.bytes.len()).sum();
    assert!(all.shortened && bytes <= TAIL_BYTES_MAX + LINE_BYTES_MAX, "{bytes}");
    // Many short lines cost more than their bytes.
    let all = tail_of(&b"\n".repeat(2_000_000), usize::MAX, Unfinished::Show);
    assert!(all.shortened && all.lines.len() < 1_000_000);
}

async fn next_line(follow: &mut Follow) -> LogLineRaw {
    match follow.next().await.expect("read") {
        Followed::Line(line) => line,
        Followed::Missed { bytes } => panic!("missed {bytes}"),
    }
}

#[test]
fn a_follower_gets_whole_lines_when_they_are_whole() {
    let home = tempfile::tempdir().expect("home");
    let spool = spool(home.path());
    append(&spool, b"old\nhalf ");
    within(async {
        let seen = tail(&home.path().join("web"), Stream::Stdout, 10, Unfinished::Leave).expect("tail");
        assert_eq!(texts(&seen), ["old"]);
        let mut follow = Follow::new(Arc::clone(&spool), Stream::Stdout, seen.end, Lag::Skip);
        // Given up in the middle, as a handler in a `select!` is.
        assert!(shortly(follow.next()).await.is_none());
        append(&spool, b"a li");
        assert!(shortly(follow.next()).await.is_none());
        append(&spool, b"ne\n\nnext\n");
        for wanted in ["half a line", "", "next"] {
            assert_eq!(next_line(&mut follow).await.text(), wanted);
        }
        fs::File::create(spool.path()).expect("truncate");
        append(&spool, b"new\n");
        assert_eq!(next_line(&mut follow).await.text(), "new");
    });
}

/// What is there already; none where the future still waits. Cancels it, as a `select!` would.
async fn shortly<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_millis(20), future).await.ok()
}

#[test]
fn a_followed_long_line_comes_in_pieces() {
    let home = tempfile::tempdir().expect("home");
    let spool = spool(home.path());
    let text =
        [&b"first\n"[..], &[b'x'; 3 * LINE_BYTES_MAX + 5], b"\n", &[b'y'; LINE_BYTES_MAX], b"\nlast\n"]
            .concat();
    within(async {
        let mut follow = Follow::new(Arc::clone(&spool), Stream::Stdout, 0, Lag::Keep);
        let mut lines = Vec::new();
        for part in text.chunks(50_000) {
            append(&spool, part);
            while let Some(line) = shortly(next_line(&mut follow)).await {
                lines.push(line);
            }
        }
        while lines.len() < 7 {
            lines.push(next_line(&mut follow).await);
        }
        assert_eq!(lines[5].cut, Cut::Whole);
        assert_eq!(join(&lines), text);
    });
}

#[test]
fn a_slow_follower_is_moved_forward_and_told() {
    let home = tempfile::tempdir().expect("home");
    let spool = spool(home.path());
    let mut line = vec![b'z'; 1023];
    line.push(b'\n');
    append(&spool, b"seen\n");
    within(async {
        let mut follow = Follow::new(Arc::clone(&spool), Stream::Stdout, 0, Lag::Skip);
        assert_eq!(next_line(&mut follow).await.text(), "seen");
        let blocks = LAG_BYTES_MAX / 1024 + 100;
        for _ in 0..blocks {
            append(&spool, &line);
        }
        let Followed::Missed { bytes } = follow.next().await.expect("read") else { panic!("not told") };
        let mut read_bytes = 0;
        while bytes + read_bytes < blocks * 1024 {
            let line = next_line(&mut follow).await;
            assert_eq!((line.bytes.len(), line.cut), (1023, Cut::Whole));
            read_bytes += 1024;
        }
        assert_eq!(bytes + read_bytes, blocks * 1024);
        assert!(read_bytes >= 1_000_000);
    });
}

#[test]
fn a_readiness_pattern_sees_this_run_only() {
    let home = tempfile::tempdir().expect("home");
    let spool = spool(home.path());
    append(&spool, b"listening on 8000\n");
    within(async {
        let from = spool.stored_bytes();
        let mut matcher = LineMatcher::new(Arc::clone(&spool), Stream::Stdout, from, r"^listening on \d+$")
            .expect("pattern");
        assert!(shortly(matcher.matched()).await.is_none());
        let flood = vec![b'.'; 200_000];
        for part in [&b"not listening on 1\n"[..], &flood, b"\nlisten", b"ing on 80"] {
            append(&spool, part);
            assert!(shortly(matcher.matched()).await.is_none());
        }
        append(&spool, b"01\n");
        assert_eq!(matcher.matched().await.expect("read").text(), "listening on 8001");
    });
    assert!(LineMatcher::new(spool, Stream::Stdout, 0, "(").is_err());
}
