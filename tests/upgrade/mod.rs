//! The second build of the upgrade tests, and the load under which daemons are swapped.
//!
//! Refuses: anything in the shipped source that is there for tests only. What makes a build sick
//! is patched into it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, process};

use crate::support::builds::{Patch, build};
use crate::support::{Home, UPRIGHT, http};

/// Version of the second build.
pub const NEXT: &str = "0.2.0-next";

/// Version of the one under test.
pub const THIS: &str = env!("CARGO_PKG_VERSION");

/// The variable of the daemon that names the file in which the second build reads how sick it is.
pub const SICK: &str = "UPRIGHT_TEST_SICK";

/// A step of the schema: a column, a table, and a trigger, which the build before does not know
/// and all the same writes through.
const STEP: &str = "
    Step {
        compatible_from: SCHEMA,
        sql: \"
    ALTER TABLE unit ADD COLUMN next_note TEXT NOT NULL DEFAULT 'none';
    CREATE TABLE next_save (name TEXT PRIMARY KEY, saves INTEGER NOT NULL) STRICT;
    CREATE TRIGGER next_saved AFTER INSERT ON unit BEGIN
        INSERT INTO next_save (name, saves) VALUES (new.name, 1)
            ON CONFLICT (name) DO UPDATE SET saves = saves + 1;
    END;
\",
    },
];

/// Key of `Schema::compatible_from`.";

/// Sick where it is asked to be: an engine that begins, one that has begun, a keeper that resumes.
const SICKNESS: &str = r#"
fn is_sick(how: &str) -> bool {
    let file = std::env::var_os("UPRIGHT_TEST_SICK");
    file.and_then(|file| std::fs::read_to_string(file).ok()).is_some_and(|text| text.trim() == how)
}

pub fn sicken_keeper() {
    if is_sick("keeper-panics") {
        panic!("sick");
    }
}

pub(super) fn sicken(client: &Client) -> Result<(), Box<dyn std::error::Error>> {
    if is_sick("refuses") {
        return Err("it does not feel well".into());
    }
    if is_sick("exits") {
        std::process::exit(3);
    }
    while is_sick("hangs") {
        std::thread::park_timeout(std::time::Duration::from_secs(1));
    }
    if is_sick("dies-later") {
        std::thread::spawn(|| {
            std::thread::park_timeout(std::time::Duration::from_millis(500));
            std::process::exit(4);
        });
    }
    let _ = client;
    Ok(())
}

/// The daemon cannot be started."#;

/// The second build: another version, another schema, sick on demand. None where it cannot be made.
pub fn next_build() -> Option<&'static Path> {
    static NEXT_BUILD: OnceLock<Option<PathBuf>> = OnceLock::new();
    NEXT_BUILD.get_or_init(make).as_deref()
}

fn make() -> Option<PathBuf> {
    let asked = process::Command::new(UPRIGHT).arg("handshake").output().expect("the binary runs");
    let card = String::from_utf8(asked.stdout).expect("text");
    let schema = card.lines().find_map(|line| line.strip_prefix("schema ")).expect("its schema");
    let patches = [
        Patch {
            file: "src/store/schema.rs",
            text: "];\n\n/// Key of `Schema::compatible_from`.",
            with: STEP.trim_start_matches('\n').replace("SCHEMA", schema),
        },
        Patch {
            file: "src/daemon/boot.rs",
            text: "\n/// The daemon cannot be started.",
            with: SICKNESS.to_string(),
        },
        Patch {
            file: "src/daemon/takeover.rs",
            text: "    let begun = clock::monotonic();\n    let mut attached",
            with: "    crate::daemon::boot::sicken(&client)?;\n    let begun = clock::monotonic();\n    let mut attached"
                .to_string(),
        },
        Patch {
            file: "src/keeper/upgrade.rs",
            text: "    let begun = catch_unwind(|| {\n",
            with: "    let begun = catch_unwind(|| {\n        crate::daemon::boot::sicken_keeper();\n"
                .to_string(),
        },
    ];
    let begun = Instant::now();
    let built = build("next", NEXT, &patches);
    println!("the second build took {:.1?}", begun.elapsed());
    built
}

/// Puts a build where the daemon was started from, as install(1) does: beside it, then renamed.
pub fn install(home: &Home, build: &Path) {
    let place = home.path().join("upright");
    let beside = home.path().join("upright.new");
    fs::copy(build, &beside).expect("a copy of the build");
    fs::rename(beside, place).expect("in its place");
}

/// Somebody who asks the socket all the time, a connection a question.
pub struct Asker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Waits>>,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waits {
    pub questions: u64,
    /// Questions that had to be asked again: refused, or not answered.
    pub refused: u64,
    /// From the first try of a question to its answer.
    pub longest: Duration,
    /// Questions that took more than 50 ms.
    pub slow: u64,
}

impl Asker {
    pub fn start(home: &Home, path: &'static str) -> Asker {
        let (socket, stop) = (home.socket(), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut waits = Waits::default();
            while !told.load(Ordering::Relaxed) {
                let begun = Instant::now();
                while !matches!(http::ask(&socket, "GET", path, ""), Ok((200, _))) {
                    waits.refused += 1;
                    assert!(begun.elapsed() < Duration::from_secs(30), "nobody answers any more");
                    std::thread::sleep(Duration::from_millis(1)); // the client of a user would wait longer
                }
                let took = begun.elapsed();
                waits.questions += 1;
                waits.longest = waits.longest.max(took);
                waits.slow += u64::from(took > Duration::from_millis(50));
                std::thread::sleep(Duration::from_millis(2)); // leaves the machine to what is tested
            }
            waits
        });
        Asker { stop, thread: Some(thread) }
    }

    pub fn finish(mut self) -> Waits {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("not finished before").join().expect("it was always answered at last")
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
