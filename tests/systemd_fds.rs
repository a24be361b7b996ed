//! systemd's fd store, with this test in the place of systemd: a datagram socket that takes fds, and a
//! second start that gives them back.
//!
//! Refuses: belief. The messages are read as sd_notify(3) has them, and what is given back is what was
//! stored and not removed since.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, close};
use upright::sys::socket;

use support::{Home, eventually};

const SOON: Duration = Duration::from_secs(30);

type Store = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// Takes messages until the test ends. What is no business of the fd store (READY, WATCHDOG) is left.
fn systemd(path: &Path) -> Store {
    let inbox = UnixDatagram::bind(path).expect("a socket");
    let store = Store::default();
    let kept = Arc::clone(&store);
    std::thread::spawn(move || {
        loop {
            let (mut bytes, mut fds) = ([0; 4096], Vec::new());
            let Ok(got) = socket::recv(&inbox, &mut bytes, &mut fds) else { return };
            let text = String::from_utf8(bytes[..got.len].to_vec()).expect("UTF-8");
            let words: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
            let mut kept = kept.lock().expect("not poisoned");
            let name = words.get("FDNAME").copied().unwrap_or("stored");
            assert!(name.len() <= 255 && !name.contains(':') && !name.contains(char::is_control), "{name:?}");
            if words.get("FDSTOREREMOVE") == Some(&"1") {
                kept.retain(|(stored, _)| stored != name);
            } else if words.get("FDSTORE") == Some(&"1") {
                assert_eq!(words.get("FDPOLL"), Some(&"0"), "{text}");
                kept.extend(fds.into_iter().map(|fd| (name.to_owned(), fd)));
            }
        }
    });
    store
}

fn names(store: &Store) -> Vec<String> {
    store.lock().expect("not poisoned").iter().map(|(name, _)| name.clone()).collect()
}

/// As systemd would start it: `LISTEN_PID` is its own pid, and the fds begin at 3.
fn start(home: &mut Home, notify: &Path, given: Vec<(String, OwnedFd)>) {
    let names: Vec<&str> = given.iter().map(|(name, _)| name.as_str()).collect();
    let raise = |(_, fd): &(String, OwnedFd)| fcntl(fd, FcntlArg::F_DUPFD(100)).expect("a duplicate");
    let raised: Vec<i32> = given.iter().map(raise).collect();
    let moves = (3..).zip(&raised).map(|(to, from)| format!("exec {to}<&{from} {from}<&-; "));
    let script = format!("{}export LISTEN_PID=$$; exec \"$@\"", moves.collect::<String>());
    home.daemon_as(&["bash", "-c", &script, "bash"], |command| {
        command.env("NOTIFY_SOCKET", notify);
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    });
    raised.into_iter().for_each(|number| close(number).expect("it was ours"));
}

/// Writes what it is told to, one file after the other, and ends with it.
const DOOMED: &str = "echo first; until [ -e last ]; do sleep 0.02; done; echo last words; exit 5";

#[test]
fn last_words_survive_the_death_of_all_three() {
    let mut home = Home::new();
    let dir = home.path().display().to_string();
    let doomed = format!(
        "[service]\nshell = true\nworking_directory = \"{dir}\"\ncommand = \"{DOOMED}\"\n\
         [restart]\ndelays = [\"100s\"]\n[log]\nstderr = \"separate\"\n"
    );
    home.unit("doomed", &doomed);
    home.unit("steady", "[service]\ncommand = [\"sleep\", \"100000\"]\n");
    let notify = home.path().join("systemd");
    let store = systemd(&notify);
    start(&mut home, &notify, Vec::new());
    for unit in ["doomed", "steady"] {
        home.await_state(unit, "active", SOON);
    }
    let run = |home: &Home, unit: &str| home.status(unit)["run"].as_u64().expect("a run");
    let (doomed, steady) = (run(&home, "doomed"), run(&home, "steady"));
    let pipe = |run: u64, label: u8| format!("run/{run}/{label}");
    let wanted =
        ["hold/api".to_owned(), "hold/notify".to_owned(), pipe(doomed, 1), pipe(doomed, 2), pipe(steady, 1)];
    eventually("all of it is stored", SOON, || {
        let stored = names(&store);
        wanted.iter().all(|name| stored.contains(name)).then_some(())
    });
    let log = home.path().join("log/doomed/current.log");
    eventually("its first words", SOON, || fs::read_to_string(&log).ok().filter(|text| text == "first\n"));
    // Nobody reads any more: the keeper is stopped, so that no engine follows the one that is killed.
    let pid = home.pid("doomed");
    let engine = home.list().expect("it answers")["daemon"]["engine_pid"].as_i64().expect("a pid");
    kill(home.child(), Signal::SIGSTOP).expect("it lives");
    kill(Pid::from_raw(i32::try_from(engine).expect("a pid")), Signal::SIGKILL).expect("it lives");
    let doomed_process = support::proc::find(Pid::from_raw(pid)).expect("it lives");
    fs::write(home.path().join("last"), "").expect("a word");
    eventually("it has ended", SOON, || {
        let now = support::proc::find(Pid::from_raw(pid));
        now.is_none_or(|now| now.started != doomed_process.started || now.state == 'Z').then_some(())
    });
    home.kill_keeper();
    assert_eq!(fs::read_to_string(&log).expect("a log"), "first\n", "the test proves nothing");
    // Whoever asks meanwhile is answered later: systemd holds the socket.
    let mut asking = UnixStream::connect(home.socket()).expect("somebody holds the socket");
    asking.write_all(b"GET /livez HTTP/1.1\r\nHost: upright\r\nConnection: close\r\n\r\n").expect("room");
    let given: Vec<(String, OwnedFd)> = std::mem::take(&mut *store.lock().expect("not poisoned"));
    let again = given.iter().map(|(name, fd)| (name.clone(), fd.try_clone().expect("a duplicate"))).collect();
    *store.lock().expect("not poisoned") = again;
    start(&mut home, &notify, given);
    let mut answer = String::new();
    asking.set_read_timeout(Some(SOON)).expect("a timeout");
    asking.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let text = eventually("its last words", SOON, || {
        fs::read_to_string(&log).ok().filter(|text| text.contains("last words"))
    });
    assert_eq!(text, "first\nlast words\n");
    assert_eq!(home.status("steady")["restarts"], 0);
    home.await_state("doomed", "backoff", SOON);
    eventually("what is over is not stored any more", SOON, || {
        let stored = names(&store);
        let over = [pipe(doomed, 1), pipe(doomed, 2)];
        (!over.iter().any(|name| stored.contains(name)) && stored.contains(&pipe(steady, 1))).then_some(())
    });
    assert!(home.stop().success());
}
