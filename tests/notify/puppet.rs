//! The service of these tests (`puppet.py`), and how it is told what to do.
//!
//! Refuses: waiting for ever for an answer.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::{Home, eventually};

pub const SOON: Duration = Duration::from_secs(30);
pub const PYTHON: &str = "/usr/bin/python3";

/// The script, in the home: other accounts may not be able to enter the directory of the source.
pub fn script(home: &Home) -> String {
    let path = home.path().join("puppet.py");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/notify/puppet.py"), &path).expect("a copy");
    path.to_str().expect("UTF-8").to_owned()
}

/// `type = "notify"`, and the sections in `more`; `first` is what it does by itself at its start.
pub fn unit(home: &Home, name: &str, first: &str, more: &str) {
    let command = [PYTHON, &script(home), home.path().to_str().expect("UTF-8"), name, first];
    let text = format!("{more}\n[service]\ntype = \"notify\"\ncommand = {command:?}\n");
    home.unit(name, &text);
}

/// Has the puppet evaluate `code`; what it answered.
pub fn tell(home: &Home, name: &str, code: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let own = home.path().join(format!("test-{}.ctl", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let socket = UnixDatagram::bind(&own).expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o666)).expect("its mode");
    let path = home.path().join(format!("{name}.ctl"));
    // Of a process that is gone a file may be there that nobody listens to.
    eventually(&format!("{name} listens"), SOON, || socket.connect(&path).ok());
    socket.send(code.as_bytes()).expect("it listens");
    let mut answer = [0; 65_536];
    let len =
        socket.recv(&mut answer).unwrap_or_else(|error| panic!("{name}: {code}: {error}\n{}", home.said()));
    let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
    assert!(!answer.starts_with("raised"), "{name}: {code}: {answer}\n{}", home.said());
    answer
}

/// The same for code that ends the process: no answer is waited for.
pub fn push(home: &Home, name: &str, code: &str) {
    let socket = UnixDatagram::unbound().expect("a socket");
    let path = home.path().join(format!("{name}.ctl"));
    eventually(&format!("{name} listens"), SOON, || socket.send_to(code.as_bytes(), &path).ok());
}

/// Says it, and returns when it is dealt with.
pub fn say(home: &Home, name: &str, text: &str) {
    tell(home, name, &format!("say({text:?}), barrier()"));
}
