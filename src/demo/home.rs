//! Writes the demo's home: three unit files that are meant to be read, and `upright.toml`.
//!
//! Refuses: overwriting. A unit file that is there already belongs to somebody.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where the three services listen, on 127.0.0.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    pub database: u16,
    pub cache: u16,
    pub backend: u16,
    /// Of the dashboard.
    pub page: u16,
}

const DAEMON: &str = r#"# The daemon's own file. Everything has a default; an empty file would do.
[daemon]
shutdown_timeout = "30s"     # after SIGTERM: this long for all units together

[api]
listen     = ["127.0.0.1:@PAGE@"]   # the dashboard, and the API over TCP
token_file = @TOKEN@                # what a browser asks for as a password

[alert.file]                        # who is told at the 4th failure in a row
kind = "file"
path = @ALERTS@
"#;

const DATABASE: &str = r#"# The database. Nothing starts before what it `requires` is ready, so this one goes first.
[unit]
description = "Sessions, in SQLite behind PostgreSQL's start-up"
drillable   = true                   # `upright drill` may hurt it

[service]
command = [@EXE@, "puppet", "db", "--port", "@DATABASE@", "--data", @DATABASE_DIR@]

[readiness]
# Asks as a client would: "the database system is starting up" is not ready yet.
postgres = "127.0.0.1:@DATABASE@"
timeout  = "30s"

[health]
# Asked again and again while it runs: one that hangs (try kill -STOP) is found and restarted.
postgres  = "127.0.0.1:@DATABASE@"
interval  = "2s"
timeout   = "1s"
threshold = 3                        # bad checks in a row, so within 3 × 2 s + 1 s

[restart]
policy      = "always"
delays      = ["5s", "10s", "15s"]   # after the 1st, 2nd, 3rd failure in a row; the last repeats
reset_after = "60s"                  # this long ready, and the count begins anew

[alert]
after_failures = 4                   # when the delays are used up, somebody is told
repeat_every   = 4                   # and again at the 8th, the 12th, …

[stop]
signal  = "SIGTERM"                  # a real PostgreSQL wants SIGINT, its fast shutdown
timeout = "10s"                      # then SIGKILL
"#;

const CACHE: &str = r#"# The cache. It keeps nothing over a restart.
[unit]
description = "Counters, in memory"
drillable   = true                   # `upright drill` may hurt it

[service]
command = [@EXE@, "puppet", "cache", "--port", "@CACHE@"]

[readiness]
redis   = "127.0.0.1:@CACHE@"        # PING is answered with PONG
timeout = "10s"

[health]
redis     = "127.0.0.1:@CACHE@"
interval  = "2s"
timeout   = "1s"
threshold = 3

[restart]
policy      = "always"
delays      = ["5s", "10s", "15s"]
reset_after = "60s"
"#;

const BACKEND: &str = r#"# The backend. Both of its requirements are ready before it starts, and while one of them
# is down it keeps running: a session accepted meanwhile waits in its journal.
[unit]
description = "Chat backend"
requires    = ["database", "cache"]
drillable   = true                   # `upright drill` may hurt it

[service]
command = [@EXE@, "puppet", "api", "--port", "@BACKEND@", "--db-port", "@DATABASE@", "--cache-port", "@CACHE@", "--data", @BACKEND_DIR@]

[readiness]
http    = "http://127.0.0.1:@BACKEND@/api/system/health"   # ready = any 2xx answer
timeout = "30s"

[health]
# Does the process itself answer? The address above is 503 while the database is away, and a
# restart of the backend would not bring it back.
http      = "http://127.0.0.1:@BACKEND@/livez"
interval  = "2s"
timeout   = "1s"
threshold = 3

[dependency.database]
on_loss   = "degrade"                # keep running, shown as degraded
on_return = "resync"                 # then restore the state, as below

[dependency.cache]
on_loss   = "degrade"
on_return = "none"                   # counts begin at zero again: nothing to restore

[resync]
# Writes the journal back; 2xx = every session of it is in the database. Else tried again.
http    = "POST http://127.0.0.1:@BACKEND@/api/recovery/state_resync"
timeout = "30s"
delays  = ["5s", "10s", "15s"]       # when the last try fails too, somebody is told

[restart]
policy      = "always"
delays      = ["5s", "10s", "15s"]
reset_after = "60s"

[stop]
timeout = "10s"
"#;

/// Makes `DIR/units/{database,cache,backend}.toml`, `DIR/upright.toml` and `DIR/data/`.
/// `exe` is the binary that is the three services, `token` what has to be shown over TCP.
///
/// # Errors
/// `InvalidInput` for a path that is not UTF-8, `AlreadyExists` for a file that is there,
/// else as the file system gives them.
pub fn make(dir: &Path, exe: &Path, token: &str, ports: Ports) -> io::Result<()> {
    let data = dir.join("data");
    let fill = |text: &str| -> io::Result<String> {
        Ok(text
            .replace("@EXE@", &quoted(exe)?)
            .replace("@DATABASE_DIR@", &quoted(&data.join("database"))?)
            .replace("@BACKEND_DIR@", &quoted(&data.join("backend"))?)
            .replace("@DATABASE@", &ports.database.to_string())
            .replace("@CACHE@", &ports.cache.to_string())
            .replace("@BACKEND@", &ports.backend.to_string())
            .replace("@PAGE@", &ports.page.to_string())
            .replace("@ALERTS@", &quoted(&dir.join("log/alerts.jsonl"))?)
            .replace("@TOKEN@", &quoted(&dir.join("token"))?))
    };
    let units = dir.join("units");
    fs::create_dir_all(&units)?;
    fs::create_dir_all(&data)?;
    write_new(&dir.join("token"), token)?;
    write_new(&dir.join("upright.toml"), &fill(DAEMON)?)?;
    for (name, text) in [("database", DATABASE), ("cache", CACHE), ("backend", BACKEND)] {
        write_new(&units.join(format!("{name}.toml")), &fill(text)?)?;
    }
    Ok(())
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let named =
        |cause: io::Error| io::Error::new(cause.kind(), format!("cannot write {}: {cause}", path.display()));
    // The token is among them, so they are its owner's.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(named)?;
    file.write_all(text.as_bytes()).map_err(named)
}

/// A path as a TOML string, escaped as TOML wants it.
fn quoted(path: &Path) -> io::Result<String> {
    let text = path.to_str().ok_or_else(|| {
        let why = format!("{} is not UTF-8, and a unit file is", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, why)
    })?;
    Ok(toml::Value::from(text).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{load::load, paths::Home};

    #[test]
    fn the_files_are_valid_toml_whatever_the_paths_are() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let home = dir.path().join("a \"quoted\" one");
        let ports = Ports { database: 1, cache: 2, backend: 3, page: 4 };
        make(&home, Path::new("/opt/up\\right"), "t", ports).expect("made");
        for name in ["units/database", "units/cache", "units/backend", "upright"] {
            let path = home.join(format!("{name}.toml"));
            let text = fs::read_to_string(&path).expect(name);
            assert!(!text.contains('@'), "{text}");
            let table: toml::Table = text.parse().expect(name);
            if name != "upright" {
                let command = table["service"]["command"].as_array().expect("an array");
                assert_eq!(command[0].as_str(), Some("/opt/up\\right"));
            }
        }
        assert!(make(&home, Path::new("/x"), "t", ports).is_err(), "nothing is overwritten");
    }

    #[test]
    fn nothing_in_the_files_is_wrong_or_without_effect() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let ports = Ports { database: 1, cache: 2, backend: 3, page: 4 };
        make(dir.path(), Path::new("/bin/true"), "t", ports).expect("made");
        let loaded = load(&Home::under(dir.path()));
        assert_eq!(loaded.units.len(), 3);
        assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    }
}
