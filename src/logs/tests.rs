//! Capture, spool and readers against real pipes and files.
//!
//! Refuses: sleeping for a result. Each wait is for an event, with a deadline.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use crate::base::exit::{Exit, RunId};
use crate::base::name::UnitName;
use crate::logs::Stream;
use crate::logs::capture::{Birth, Capture, End, News, Pipe, Trouble};
use crate::logs::files::Refusal;
use crate::logs::index::{Index, Record, What};
use crate::logs::spool::{Keep, Now, Pack, Spool};
use crate::sys::clock;
use crate::unit::spec::WhenFull;

const DEADLINE: Duration = Duration::from_secs(60);

fn unit() -> UnitName {
    UnitName::parse("web").expect("name")
}

/// Nothing is rotated.
pub(super) const KEEP: Keep =
    Keep { file_bytes_max: 1 << 40, files_max: 5, age_max_s: 0, pack: Pack::No, when_full: WhenFull::Block };

pub(super) fn now() -> Now {
    Now { at: clock::monotonic(), ts_us: clock::wall().as_microsecond() }
}

fn spool_of(logs: &Path, unit: &UnitName, keep: Keep) -> Arc<Spool> {
    Arc::new(Spool::open(logs, unit, Stream::Stdout, keep, now()).expect("spool"))
}

fn open_spool(logs: &Path) -> Arc<Spool> {
    spool_of(logs, &unit(), KEEP)
}

fn add(capture: &Capture, run: u64, fd: OwnedFd, spool: &Arc<Spool>) {
    capture.add(Pipe { run: RunId(run), fd, spool: Arc::clone(spool), birth: Birth::New });
}

fn finish(capture: &Capture, run: u64, spool: &Arc<Spool>) {
    let end = End { spool: Arc::clone(spool), exit: Exit::Code(3), ts_us: now().ts_us };
    capture.finish(RunId(run), Some(end));
}

/// All records of the file that is written.
fn records(spool: &Spool) -> Vec<Record> {
    records_of(&spool.directory().join(spool.stream().index_name()))
}

fn records_of(index: &Path) -> Vec<Record> {
    let file = fs::File::open(index).expect("index");
    let index = Index::of(&file).expect("reads").expect("header");
    let mut records = Vec::new();
    while u64::try_from(records.len()).expect("count") < index.count() {
        records.extend(index.page(u64::try_from(records.len()).expect("count")).expect("page"));
    }
    records
}

fn pipe() -> (OwnedFd, fs::File) {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).expect("pipe");
    (reader, fs::File::from(writer))
}

fn capture() -> (Capture, mpsc::Receiver<News>) {
    let (told, news) = mpsc::channel();
    let capture = Capture::start(move |told_now| told.send(told_now).unwrap_or(())).expect("capture");
    (capture, news)
}

fn gone(run: u64) -> News {
    News::Closed { run: RunId(run), stream: Stream::Stdout }
}

fn trouble(trouble: Trouble) -> News {
    News::Trouble { unit: unit(), stream: Stream::Stdout, run: RunId(1), trouble }
}

fn finished(run: u64) -> News {
    News::Finished(RunId(run))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// Runs `wanted` until it is done or the deadline is over.
fn within<T>(wanted: impl Future<Output = T>) -> T {
    runtime().block_on(async { tokio::time::timeout(DEADLINE, wanted).await.expect("deadline") })
}

#[test]
fn every_byte_is_kept_exactly() {
    let home = tempfile::tempdir().expect("home");
    let spool = open_spool(home.path());
    let (capture, news) = capture();
    let (reader, mut writer) = pipe();
    add(&capture, 1, reader, &spool);
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(1_000_003).collect();
    writer.write_all(&bytes).expect("write");
    drop(writer);
    assert_eq!(news.recv_timeout(DEADLINE), Ok(gone(1)));
    assert_eq!(fs::read(spool.path()).expect("read"), bytes);
    assert_eq!(spool.stored_bytes(), 1_000_003);
    let counts = capture.counts();
    assert_eq!((counts.stored_bytes, counts.copied_bytes, counts.stalls), (1_000_003, 0, 0));
}

#[test]
fn four_writers_on_one_file_each_keep_their_order() {
    const LINES: usize = 100_000;
    let home = tempfile::tempdir().expect("home");
    let spool = open_spool(home.path());
    let (capture, news) = capture();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (reader, file) = pipe();
            add(&capture, writer, reader, &spool);
            std::thread::spawn(move || {
                // Lines of one length, written 16 at a time: no write is split by a full pipe
                // (PIPE_BUF), so no line is torn where the runs meet in the file.
                for first in (0..LINES).step_by(16) {
                    let lines: String = (first..first + 16).map(|n| format!("{writer} {n:06}\n")).collect();
                    (&file).write_all(lines.as_bytes()).expect("write");
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().expect("writer");
    }
    for _ in 0..4 {
        let told = news.recv_timeout(DEADLINE).expect("told");
        assert!(matches!(told, News::Closed { .. }), "{told:?}");
    }
    let text = fs::read_to_string(spool.path()).expect("read");
    let mut next = [0; 4];
    for line in text.lines() {
        let (writer, number) = line.split_once(' ').expect("whole line");
        let next = &mut next[writer.parse::<usize>().expect("writer")];
        assert_eq!(number.parse(), Ok(*next));
        *next += 1;
    }
    assert_eq!(next, [LINES; 4]);
}

/// Not a test of its own: the process that `a_killed_capture…` kills. It moves what comes in its
/// stdin to the spool of the home that the environment names.
#[test]
fn capture_process() {
    let Some(home) = std::env::var_os("UPRIGHT_TEST_CAPTURE_HOME") else {
        return;
    };
    let spool = open_spool(Path::new(&home));
    let (capture, news) = capture();
    let stdin = std::io::stdin();
    let pipe = nix::unistd::dup(&stdin).expect("dup");
    add(&capture, 1, pipe, &spool);
    news.recv().expect("drained");
}

fn start_capture_process(home: &Path, pipe: &OwnedFd) -> Child {
    Command::new(std::env::current_exe().expect("exe"))
        .args(["--exact", "logs::tests::capture_process", "--nocapture"])
        .env("UPRIGHT_TEST_CAPTURE_HOME", home)
        .stdin(Stdio::from(pipe.try_clone().expect("clone")))
        .stdout(Stdio::null())
        .spawn()
        .expect("spawn")
}

#[test]
fn a_killed_capture_loses_nothing_and_doubles_nothing() {
    const KILLS: u32 = 50;
    let home = tempfile::tempdir().expect("home");
    let (reader, writer) = pipe();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writing = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut next = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Lines of different lengths, in writes of different sizes.
                let lines: String = (next..next + 1 + next % 40).map(|n| format!("{n}\n")).collect();
                (&writer).write_all(lines.as_bytes()).expect("write");
                next += 1 + next % 40;
            }
            next
        })
    };
    let log = home.path().join("web/current.log");
    let size = || fs::metadata(&log).map(|meta| meta.len()).unwrap_or(0);
    let deadline = Instant::now() + DEADLINE;
    for round in 0..KILLS {
        let before = size();
        let mut child = start_capture_process(home.path(), &reader);
        // Killed while it moves bytes: at a different depth each round.
        while size() < before + 1 + u64::from(round) * 20_000 {
            assert!(Instant::now() < deadline, "the capture process stores nothing");
            std::thread::yield_now();
        }
        kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGKILL).expect("kill");
        child.wait().expect("wait");
    }
    let mut last = start_capture_process(home.path(), &reader);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let lines = writing.join().expect("writer");
    assert!(last.wait().expect("wait").success());
    let mut next = 0;
    for line in BufReader::new(fs::File::open(&log).expect("open")).lines() {
        assert_eq!(line.expect("line").parse(), Ok(next));
        next += 1;
    }
    assert_eq!(next, lines);
    writeln!(std::io::stdout(), "{KILLS} kills, {lines} lines: 0 lost, 0 doubled").unwrap_or(());
}

#[test]
fn a_flood_does_not_delay_the_neighbour() {
    let home = tempfile::tempdir().expect("home");
    let flood_spool = open_spool(home.path());
    let quiet = UnitName::parse("quiet").expect("name");
    let quiet_spool = spool_of(home.path(), &quiet, KEEP);
    let (capture, news) = capture();
    let (flood_reader, flood_writer) = pipe();
    let (quiet_reader, mut quiet_writer) = pipe();
    let mut yes = Command::new("yes").stdout(flood_writer).spawn().expect("yes");
    add(&capture, 1, flood_reader, &flood_spool);
    add(&capture, 2, quiet_reader, &quiet_spool);
    let mut slowest = Duration::ZERO;
    within(async {
        let mut stored = quiet_spool.watch();
        let mut flooded = flood_spool.watch();
        for round in 1..=20_u64 {
            // A marker for each further mebibyte of flood.
            flooded.wait_for(|bytes| *bytes >= round << 20).await.expect("watch");
            let written = Instant::now();
            quiet_writer.write_all(b"marker\n").expect("write");
            stored.wait_for(|bytes| *bytes >= round * 7).await.expect("watch");
            slowest = slowest.max(written.elapsed());
        }
    });
    yes.kill().expect("kill");
    yes.wait().expect("wait");
    drop(quiet_writer);
    let told = [news.recv_timeout(DEADLINE).expect("told"), news.recv_timeout(DEADLINE).expect("told")];
    assert!(told.contains(&gone(1)) && told.contains(&gone(2)), "{told:?}");
    assert_eq!(fs::read(quiet_spool.path()).expect("read"), b"marker\n".repeat(20));
    writeln!(std::io::stdout(), "slowest marker beside `yes`: {slowest:?}").unwrap_or(());
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[test]
fn a_grandchild_that_keeps_the_pipe_does_not_keep_the_answer() {
    let home = tempfile::tempdir().expect("home");
    let spool = open_spool(home.path());
    let (capture, news) = capture();
    let (reader, writer) = pipe();
    let keeper = reader.try_clone().expect("clone");
    add(&capture, 7, reader, &spool);
    let mut grandchild =
        Command::new("sleep").arg("1000").stdout(writer.try_clone().expect("clone")).spawn().expect("sleep");
    (&writer).write_all(b"last words").expect("write");
    drop(writer);
    finish(&capture, 7, &spool);
    assert_eq!(news.recv_timeout(DEADLINE), Ok(finished(7)));
    // One whose pipes were closed before is answered too.
    finish(&capture, 8, &spool);
    assert_eq!(news.recv_timeout(DEADLINE), Ok(finished(8)));
    let ends: Vec<_> =
        records(&spool).into_iter().filter(|r| r.what == What::Exited(Exit::Code(3))).collect();
    assert_eq!(ends.iter().map(|end| (end.run.0, end.offset)).collect::<Vec<_>>(), [(7, 10), (8, 10)]);
    assert_eq!(fs::read(spool.path()).expect("read"), b"last words");
    grandchild.kill().expect("kill");
    grandchild.wait().expect("wait");
    assert_eq!(news.recv_timeout(DEADLINE), Ok(gone(7)));
    // The keeper's copy of a closed pipe must not keep the thread busy (EPOLLHUP).
    assert_turns_stand_still(&capture);
    drop(keeper);
}

#[test]
fn a_flooding_grandchild_does_not_keep_the_answer_either() {
    let home = tempfile::tempdir().expect("home");
    let spool = open_spool(home.path());
    let (capture, news) = capture();
    let (reader, writer) = pipe();
    let mut yes = Command::new("yes").stdout(writer).spawn().expect("yes");
    add(&capture, 1, reader, &spool);
    finish(&capture, 1, &spool);
    assert_eq!(news.recv_timeout(DEADLINE), Ok(finished(1)));
    yes.kill().expect("kill");
    yes.wait().expect("wait");
    assert_eq!(news.recv_timeout(DEADLINE), Ok(gone(1)));
}

/// Time has to pass here: that nothing happens can only be seen by looking for a while. Two
/// turns may still be due for orders that were dealt with together.
fn assert_turns_stand_still(capture: &Capture) {
    let (_never, silence) = mpsc::channel::<()>();
    let before = capture.counts().turns;
    let _ = silence.recv_timeout(Duration::from_millis(300)); // always the timeout
    let turns = capture.counts().turns - before;
    assert!(turns <= 2, "the capture thread woke up {turns} times while nobody wrote");
}

#[test]
fn nobody_writes_nobody_wakes() {
    let home = tempfile::tempdir().expect("home");
    let spool = open_spool(home.path());
    let (capture, news) = capture();
    let mut pipes = Vec::new();
    for run in 0..20 {
        let (reader, writer) = pipe();
        add(&capture, run, reader, &spool);
        finish(&capture, run, &spool);
        assert_eq!(news.recv_timeout(DEADLINE), Ok(finished(run)));
        pipes.push(writer);
    }
    assert_turns_stand_still(&capture);
    drop(pipes);
}

#[test]
fn small_writes_gather() {
    let home = tempfile::tempdir().expect("home");
    let spool = open_spool(home.path());
    let (capture, news) = capture();
    let (reader, mut writer) = pipe();
    add(&capture, 1, reader, &spool);
    for _ in 0..20_000 {
        writer.write_all(b"x\n").expect("write");
    }
    drop(writer);
    assert_eq!(news.recv_timeout(DEADLINE), Ok(gone(1)));
    let turns = capture.counts().turns;
    writeln!(std::io::stdout(), "20,000 small writes: {turns} turns").unwrap_or(());
    assert!(turns < 10_000, "{turns}");
}

/// Runs `test` with a directory on a file system of 256 KiB, half full, that only its thread
/// and that thread's children see, and the file that fills it.
fn on_a_small_disk(test: impl FnOnce(&Path, &Path) + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    let home = tempfile::tempdir().expect("home");
    let path = home.path().to_owned();
    let test = std::thread::spawn(move || {
        let none = None::<&str>;
        let own = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .and_then(|()| mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=256k")));
        if let Err(errno) = own {
            return writeln!(std::io::stdout(), "skipped: cannot mount a tmpfs: {errno}").unwrap_or(());
        }
        let ballast = path.join("ballast");
        fs::write(&ballast, vec![0; 128 * 1024]).expect("ballast");
        test(&path, &ballast);
    });
    test.join().expect("test");
}

#[test]
fn a_full_disk_blocks_the_writer_and_loses_nothing() {
    on_a_small_disk(|home, ballast| {
        let spool = open_spool(home);
        let (capture, news) = capture();
        let (reader, mut writer) = pipe();
        add(&capture, 1, reader, &spool);
        let bytes: Vec<u8> = (0..=255_u8).cycle().take(200_000).collect();
        // More than the disk takes, less than disk and pipe together.
        writer.write_all(&bytes[..160_000]).expect("write");
        let deadline = Instant::now() + DEADLINE;
        while capture.counts().stalls < 2 {
            assert!(Instant::now() < deadline, "{:?}", capture.counts());
            std::thread::yield_now();
        }
        assert_eq!(capture.counts().last_errno, Errno::ENOSPC as i32);
        fs::remove_file(ballast).expect("remove");
        writer.write_all(&bytes[160_000..]).expect("write");
        drop(writer);
        assert_eq!(news.recv_timeout(DEADLINE), Ok(trouble(Trouble::Blocked(Errno::ENOSPC))));
        assert_eq!(news.recv_timeout(DEADLINE), Ok(trouble(Trouble::Over { dropped_bytes: 0 })));
        assert_eq!(news.recv_timeout(DEADLINE), Ok(gone(1)));
        assert!(fs::read(spool.path()).expect("read") == bytes);
    });
}

#[test]
fn a_full_disk_drops_counts_and_marks_where_the_unit_says_so() {
    on_a_small_disk(|home, ballast| {
        let spool = open_spool(home);
        let (capture, news) = capture();
        let (reader, mut writer) = pipe();
        spool.set_keep(Keep { when_full: WhenFull::Drop, ..KEEP });
        add(&capture, 1, reader, &spool);
        // Three times what the disk takes: the writer is not held up.
        for _ in 0..400 {
            writer.write_all(&[b'x'; 1000]).expect("write");
        }
        finish(&capture, 1, &spool);
        assert_eq!(news.recv_timeout(DEADLINE), Ok(trouble(Trouble::Dropping(Errno::ENOSPC))));
        assert_eq!(news.recv_timeout(DEADLINE), Ok(finished(1)));
        let counts = capture.counts();
        assert!(counts.dropped_bytes > 200_000, "{counts:?}");
        assert_eq!((counts.stored_bytes + counts.dropped_bytes, counts.stalls), (400_000, 0));
        fs::remove_file(ballast).expect("remove");
        writer.write_all(b"after\n").expect("write");
        drop(writer);
        let over = Trouble::Over { dropped_bytes: counts.dropped_bytes };
        assert_eq!(news.recv_timeout(DEADLINE), Ok(trouble(over)));
        assert_eq!(news.recv_timeout(DEADLINE), Ok(gone(1)));
        // The bytes are untouched; the loss stands beside them, at its place.
        let text = fs::read_to_string(spool.path()).expect("read");
        assert_eq!(text, "x".repeat(text.len() - 6) + "after\n");
        let lost: Vec<_> =
            records(&spool).into_iter().filter(|r| matches!(r.what, What::Lost { .. })).collect();
        let bytes: u64 = lost.iter().map(|r| if let What::Lost { bytes } = r.what { bytes } else { 0 }).sum();
        assert_eq!(bytes, counts.dropped_bytes);
        assert_eq!(lost.last().expect("a loss").offset, u64::try_from(text.len() - 6).expect("offset"));
        assert!(lost.len() < 10, "{}", lost.len());
    });
}

#[test]
fn a_spool_is_a_private_regular_file_with_one_name() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let home = tempfile::tempdir().expect("home");
    let open = |logs: &Path, stream| Spool::open(logs, &unit(), stream, KEEP, now());
    let refusal = |logs: &Path| open(logs, Stream::Stdout).expect_err("refused").why;
    let spool = open_spool(home.path());
    let mode = |path: &Path| fs::metadata(path).expect("metadata").mode() & 0o7777;
    assert_eq!((mode(&home.path().join("web")), mode(spool.path())), (0o750, 0o640));
    let file = spool.path().to_owned();
    drop(spool);
    fs::hard_link(&file, home.path().join("other")).expect("link");
    assert!(matches!(refusal(home.path()), Refusal::Linked(2)));
    fs::remove_file(&file).expect("remove");
    symlink(home.path().join("other"), &file).expect("symlink");
    assert!(matches!(refusal(home.path()), Refusal::Os(Errno::ELOOP)));
    fs::remove_file(&file).expect("remove");
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    assert!(matches!(refusal(home.path()), Refusal::NotRegular));
    fs::remove_dir_all(home.path().join("web")).expect("remove");
    symlink(home.path(), home.path().join("web")).expect("symlink");
    assert!(matches!(refusal(home.path()), Refusal::Os(Errno::ENOTDIR)));
    let message = open(home.path(), Stream::Stderr).expect_err("refused").to_string();
    assert!(message.starts_with("cannot open the log ") && message.contains("web/stderr.log: "), "{message}");
}

#[test]
fn a_file_that_cannot_be_spliced_to_is_written_to() {
    let home = tempfile::tempdir().expect("home");
    let spool = open_spool(home.path());
    // splice(2): EINVAL when the target is in append mode.
    spool.open_in_append_mode();
    let (capture, news) = capture();
    let (reader, mut writer) = pipe();
    add(&capture, 1, reader, &spool);
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(300_000).collect();
    writer.write_all(&bytes).expect("write");
    finish(&capture, 1, &spool);
    assert_eq!(news.recv_timeout(DEADLINE), Ok(finished(1)));
    drop(writer);
    assert_eq!(news.recv_timeout(DEADLINE), Ok(gone(1)));
    assert_eq!(fs::read(spool.path()).expect("read"), bytes);
    assert_eq!(capture.counts().copied_bytes, 300_000);
}

#[test]
fn a_truncated_file_begins_anew_without_a_hole() {
    let home = tempfile::tempdir().expect("home");
    let spool = open_spool(home.path());
    let (capture, news) = capture();
    let (reader, mut writer) = pipe();
    add(&capture, 1, reader, &spool);
    writer.write_all(b"before\n").expect("write");
    finish(&capture, 1, &spool);
    assert_eq!(news.recv_timeout(DEADLINE), Ok(finished(1)));
    fs::File::create(spool.path()).expect("truncate");
    writer.write_all(b"after\n").expect("write");
    drop(writer);
    assert_eq!(news.recv_timeout(DEADLINE), Ok(gone(1)));
    assert_eq!(fs::read(spool.path()).expect("read"), b"after\n");
}
