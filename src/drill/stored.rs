//! Which sessions are stored: what a command of the operator prints, one id a line.
//!
//! Refuses: a shell, a wait without end, and output without end.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long the command may take: a large table on a slow disk.
const WITHIN: Duration = Duration::from_secs(30);

/// Most bytes that it may print: a million ids and more.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The ids, in lower case. What it writes on its stderr goes to ours.
///
/// # Errors
/// A sentence.
pub(super) fn ids(argv: &[String]) -> Result<BTreeSet<String>, String> {
    let (program, words) = argv.split_first().ok_or("the command is empty")?;
    #[expect(clippy::disallowed_methods, reason = "a command of whoever runs the drill, with their rights")]
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("cannot run `{program}`: {error}"))?;
    let group = Pid::from_raw(child.id().cast_signed());
    let (told, done) = mpsc::channel();
    let reading = std::thread::Builder::new().name("stored-ids".into()).spawn(move || {
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let _ = stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut output); // its exit code says more
        }
        let _ = told.send((output, child.wait())); // nobody waits any more
    });
    let answer = match reading {
        Ok(_) => done.recv_timeout(WITHIN),
        Err(error) => {
            let _ = killpg(group, Signal::SIGKILL); // it may have ended
            return Err(format!("no thread to read `{program}` with: {error}"));
        }
    };
    let Ok((output, status)) = answer else {
        let _ = killpg(group, Signal::SIGKILL); // it may have ended just now
        return Err(format!("`{program}` was not done within {} s", WITHIN.as_secs()));
    };
    let status = status.map_err(|error| format!("cannot wait for `{program}`: {error}"))?;
    if output.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(format!("`{program}` printed more than 64 MiB; have it print this drill's ids only"));
    }
    if !status.success() {
        return Err(format!("`{program}` ended with {status}"));
    }
    let text = String::from_utf8_lossy(&output);
    Ok(text.lines().map(|line| line.trim().to_ascii_lowercase()).filter(|line| !line.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(script: &str) -> Result<BTreeSet<String>, String> {
        ids(&["sh", "-c", script].map(str::to_string))
    }

    #[test]
    fn a_line_is_an_id() {
        let found = of("printf 'A-1\\n\\n b-2 \\n'").expect("it prints");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a-1", "b-2"]);
    }

    #[test]
    fn a_command_that_fails_counts_nothing() {
        assert!(of("echo a; exit 3").expect_err("it fails").contains("exit status: 3"));
        assert!(ids(&["/no/such/program".to_string()]).expect_err("there is none").contains("cannot run"));
        assert!(ids(&[]).is_err());
    }
}
