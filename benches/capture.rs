//! What capturing costs: a process writes to a pipe, and the bytes end up in rotated files.
//! `cargo bench --bench capture` compares it, in one run and in turns, with `cat >file`, with the
//! file handed over directly, and with s6-log and svlogd where they are installed. BENCH_DIR is where
//! the files go (/tmp), BENCH_MIB how much a round writes (1024), BENCH_ROUNDS how often (3).
//!
//! Refuses: pass marks. Times belong to a machine; `benches/README.md` has figures with theirs.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::pipe2;

use upright::base::exit::RunId;
use upright::base::name::UnitName;
use upright::logs::Stream;
use upright::logs::capture::{Birth, Capture, Pipe};
use upright::logs::spool::{Keep, Now, Pack, Spool};
use upright::sys::clock;
use upright::unit::spec::WhenFull;

const FILE_BYTES_MAX: u64 = 50_000_000;
const FILES_MAX: u32 = 5;

/// First word of the arguments with which this program is the writer.
const WRITER: &str = "--writer";

/// Bytes written in a round: BENCH_MIB mebibytes.
fn total() -> u64 {
    number("BENCH_MIB", 1024) << 20
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[derive(Clone, Copy)]
struct Figure {
    took: Duration,
    /// Of whoever captures; not of the writer. Where nobody does, the writer's: less than that is not to
    /// be had for a file.
    cpu: Duration,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if let [_, first, total, chunk] = words.as_slice()
        && first == WRITER
    {
        return write_all(total.parse().expect("bytes"), chunk.parse().expect("bytes"));
    }
    let home = tempfile::tempdir_in(std::env::var_os("BENCH_DIR").unwrap_or_else(|| "/tmp".into()))
        .expect("a directory");
    let (total, rounds) = (total(), number("BENCH_ROUNDS", 3));
    for chunk in [64 * 1024, 100] {
        let mut rows: Vec<(&str, Vec<Figure>)> = Vec::new();
        for round in 0..rounds {
            for (name, measure) in contestants() {
                let directory = home.path().join(format!("{round}-{name}-{chunk}").replace(' ', "-"));
                fs::create_dir_all(&directory).expect("a directory");
                let figure = measure(&directory, chunk);
                fs::remove_dir_all(&directory).expect("removed");
                if let Some(figure) = figure {
                    match rows.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, figures)) => figures.push(figure),
                        None => rows.push((name, vec![figure])),
                    }
                }
            }
        }
        println!("\nwrites of {chunk} bytes, {} MiB a round, median of {rounds}", total >> 20);
        println!("{:24} {:>10} {:>10}", "", "MB/s", "CPU s/GiB");
        for (name, mut figures) in rows {
            figures.sort_by_key(|figure| figure.took);
            let speed = total as f64 / figures[figures.len() / 2].took.as_secs_f64() / 1e6;
            figures.sort_by_key(|figure| figure.cpu);
            let cpu = figures[figures.len() / 2].cpu.as_secs_f64() * (1u64 << 30) as f64 / total as f64;
            println!("{name:24} {speed:10.0} {cpu:10.2}");
        }
    }
}

type Measure = fn(&Path, usize) -> Option<Figure>;

fn contestants() -> [(&'static str, Measure); 5] {
    [
        ("upright, rotated", captured),
        ("file handed over", direct),
        ("cat >file", |directory, chunk| {
            let mut cat = Command::new("cat");
            cat.stdout(File::create(directory.join("log")).expect("a file"));
            piped(cat, chunk)
        }),
        ("s6-log, rotated", |directory, chunk| {
            let mut logger = Command::new("s6-log");
            logger.args([
                format!("n{FILES_MAX}"),
                format!("s{FILE_BYTES_MAX}"),
                directory.display().to_string(),
            ]);
            piped(logger, chunk)
        }),
        ("svlogd, rotated", |directory, chunk| {
            fs::write(directory.join("config"), format!("s{FILE_BYTES_MAX}\nn{FILES_MAX}\n"))
                .expect("config");
            let mut logger = Command::new("svlogd");
            logger.arg(directory);
            piped(logger, chunk)
        }),
    ]
}

/// The writer: lines of 100 bytes in writes of `chunk`.
fn write_all(total: u64, chunk: usize) {
    let line = [&[b'x'; 99][..], b"\n"].concat();
    let block: Vec<u8> = line.iter().copied().cycle().take((chunk / 100).max(1) * 100).collect();
    let mut out = File::from(nix::unistd::dup(std::io::stdout()).expect("stdout"));
    let mut left = total;
    while left > 0 {
        let part = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        out.write_all(&block[..part]).expect("written");
        left -= part as u64;
    }
}

fn writer(chunk: usize, stdout: impl Into<Stdio>) -> Child {
    Command::new(std::env::current_exe().expect("our file"))
        .arg0("writer")
        .args([WRITER, &total().to_string(), &chunk.to_string()])
        .stdout(stdout)
        .spawn()
        .expect("the writer")
}

fn cpu(who: UsageWho) -> Duration {
    let usage = getrusage(who).expect("usage");
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), 0) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    of(usage.user_time()) + of(usage.system_time())
}

fn captured(directory: &Path, chunk: usize) -> Option<Figure> {
    let keep = Keep {
        file_bytes_max: FILE_BYTES_MAX,
        files_max: FILES_MAX,
        age_max_s: 0,
        pack: Pack::No,
        when_full: WhenFull::Block,
    };
    let unit = UnitName::parse("bench").expect("a name");
    let now = Now { at: clock::monotonic(), ts_us: clock::wall().as_microsecond() };
    let spool = Arc::new(Spool::open(directory, &unit, Stream::Stdout, keep, now).expect("a spool"));
    let (told, news) = mpsc::channel();
    let capture = Capture::start(move |one| told.send(one).unwrap_or(())).expect("a thread");
    let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    let (started, before) = (Instant::now(), cpu(UsageWho::RUSAGE_SELF));
    let mut writer = writer(chunk, write);
    capture.add(Pipe { run: RunId(1), fd: read, spool: Arc::clone(&spool), birth: Birth::New });
    news.recv().expect("the pipe is closed when all is stored");
    let figure = Figure { took: started.elapsed(), cpu: cpu(UsageWho::RUSAGE_SELF) - before };
    assert!(writer.wait().expect("ends").success());
    assert_eq!(spool.stored_bytes(), total());
    Some(figure)
}

fn direct(directory: &Path, chunk: usize) -> Option<Figure> {
    let (started, before) = (Instant::now(), cpu(UsageWho::RUSAGE_CHILDREN));
    let mut writer = writer(chunk, File::create(directory.join("log")).expect("a file"));
    assert!(writer.wait().expect("ends").success());
    Some(Figure { took: started.elapsed(), cpu: cpu(UsageWho::RUSAGE_CHILDREN) - before })
}

/// The CPU of the logger alone: it is waited for last, and the writer's is known by then.
fn piped(mut logger: Command, chunk: usize) -> Option<Figure> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    let started = Instant::now();
    let mut logger = logger.stdin(read).spawn().ok()?;
    let mut writer = writer(chunk, write);
    assert!(writer.wait().expect("ends").success());
    let before = cpu(UsageWho::RUSAGE_CHILDREN);
    assert!(logger.wait().expect("ends").success());
    Some(Figure { took: started.elapsed(), cpu: cpu(UsageWho::RUSAGE_CHILDREN) - before })
}
