//! The backend's fault knobs: what `POST /puppet/fault` can make it do wrong.
//!
//! Refuses: faults without an end. Whatever does not kill the process ends by itself after
//! `seconds`, or at `{"kind":"none"}`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;

use crate::demo::puppet::say;

/// Longest fault, in seconds.
const SECONDS_MAX: u64 = 600;

/// Most that a leak holds, in MiB: enough to meet any limit worth trying, too little to
/// take the host down.
const LEAK_MIB_MAX: usize = 1_024;

/// Most lines a second of `spam`.
const SPAM_LINES_MAX: u32 = 200_000;

/// Ticks a second of `leak` and `spam`.
const TICKS: u32 = 10;

/// The body of `POST /puppet/fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Fault {
    /// SIGABRT, without any farewell.
    Crash,
    Exit {
        code: u8,
    },
    /// Accepts connections and answers nothing.
    Hang {
        #[serde(default = "minute")]
        seconds: u64,
    },
    /// SIGTERM is logged and otherwise ignored.
    IgnoreTerm {
        #[serde(default = "minute")]
        seconds: u64,
    },
    /// Answers everything with 500.
    #[serde(rename = "error-500")]
    Error500 {
        #[serde(default = "minute")]
        seconds: u64,
    },
    Leak {
        #[serde(default = "minute")]
        seconds: u64,
        #[serde(default = "ten")]
        mib_per_second: usize,
    },
    Spam {
        #[serde(default = "minute")]
        seconds: u64,
        #[serde(default = "thousand")]
        lines_per_second: u32,
    },
    /// Ends every fault at once.
    None,
}

fn minute() -> u64 {
    60
}
fn ten() -> usize {
    10
}
fn thousand() -> u32 {
    1_000
}

/// The faults in force. Each is a count, because two of a kind may overlap.
#[derive(Debug)]
pub(super) struct Faults {
    hanging: AtomicU32,
    ignoring_term: AtomicU32,
    error_500: AtomicU32,
    /// Grows at every `none`; a fault task ends when it changes.
    cleared: watch::Sender<u64>,
}

impl Faults {
    pub fn new() -> Arc<Faults> {
        Arc::new(Faults {
            hanging: AtomicU32::new(0),
            ignoring_term: AtomicU32::new(0),
            error_500: AtomicU32::new(0),
            cleared: watch::Sender::new(0),
        })
    }

    pub fn ignores_term(&self) -> bool {
        self.ignoring_term.load(Ordering::Relaxed) > 0
    }

    pub fn answers_500(&self) -> bool {
        self.error_500.load(Ordering::Relaxed) > 0
    }

    /// Returns at once, or when the hang is over.
    pub async fn hang(&self) {
        while self.hanging.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts a fault in force, or ends the process after a moment in which the answer leaves.
    ///
    /// # Errors
    /// A number is out of its range.
    pub fn inject(self: &Arc<Self>, fault: Fault) -> Result<(), String> {
        say(&format!("WARN fault asked for: {fault:?}"));
        match fault {
            Fault::Crash => soon(|| std::process::abort()),
            #[expect(clippy::disallowed_methods, reason = "the fault is to end without a word")]
            Fault::Exit { code } => soon(move || std::process::exit(i32::from(code))),
            Fault::Hang { seconds } => self.count(seconds, |faults| &faults.hanging)?,
            Fault::IgnoreTerm { seconds } => self.count(seconds, |faults| &faults.ignoring_term)?,
            Fault::Error500 { seconds } => self.count(seconds, |faults| &faults.error_500)?,
            Fault::Leak { seconds, mib_per_second } => {
                bounded("mib_per_second", mib_per_second as u64, LEAK_MIB_MAX as u64)?;
                self.leak(seconds, mib_per_second)?;
            }
            Fault::Spam { seconds, lines_per_second } => {
                bounded("lines_per_second", u64::from(lines_per_second), u64::from(SPAM_LINES_MAX))?;
                self.spam(seconds, lines_per_second)?;
            }
            Fault::None => self.cleared.send_modify(|times| *times += 1),
        }
        Ok(())
    }

    fn count(self: &Arc<Self>, seconds: u64, which: fn(&Faults) -> &AtomicU32) -> Result<(), String> {
        let over = self.over(seconds)?;
        let faults = Arc::clone(self);
        which(&faults).fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            over.await;
            which(&faults).fetch_sub(1, Ordering::Relaxed);
        });
        Ok(())
    }

    fn leak(&self, seconds: u64, mib_per_second: usize) -> Result<(), String> {
        let over = self.over(seconds)?;
        tokio::spawn(async move {
            let mut held: Vec<Vec<u8>> = Vec::new();
            let grow = async {
                let mut ticks = tokio::time::interval(Duration::from_secs(1));
                while held.len() < LEAK_MIB_MAX {
                    ticks.tick().await;
                    // Ones, so that every page is really there.
                    held.extend((0..mib_per_second).map(|_| vec![1; 1024 * 1024]));
                }
                std::future::pending::<()>().await;
            };
            tokio::select! { () = over => {}, () = grow => {} }
            say(&format!("INFO the leak of {} MiB is over", held.len()));
        });
        Ok(())
    }

    fn spam(&self, seconds: u64, lines_per_second: u32) -> Result<(), String> {
        let over = self.over(seconds)?;
        tokio::spawn(async move {
            let talk = async {
                let mut ticks = tokio::time::interval(Duration::from_secs(1) / TICKS);
                let mut number: u64 = 0;
                loop {
                    ticks.tick().await;
                    for _ in 0..lines_per_second.div_ceil(TICKS) {
                        number += 1;
                        say(&format!("INFO spam {number}"));
                    }
                }
            };
            tokio::select! { () = over => {}, () = talk => {} }
        });
        Ok(())
    }

    /// Ends after `seconds`, or when everything is cleared.
    fn over(&self, seconds: u64) -> Result<impl Future<Output = ()> + use<>, String> {
        bounded("seconds", seconds, SECONDS_MAX)?;
        let mut cleared = self.cleared.subscribe();
        Ok(async move {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
                _ = cleared.changed() => {}
            }
        })
    }
}

fn bounded(name: &str, value: u64, max: u64) -> Result<(), String> {
    if (1..=max).contains(&value) { Ok(()) } else { Err(format!("`{name}` is {value}; use 1 to {max}")) }
}

/// The client should have its answer first.
fn soon(end: impl FnOnce() + Send + 'static) {
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        end();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_knobs_are_read() {
        let table = [
            (r#"{"kind":"crash"}"#, Fault::Crash),
            (r#"{"kind":"exit","code":3}"#, Fault::Exit { code: 3 }),
            (r#"{"kind":"hang"}"#, Fault::Hang { seconds: 60 }),
            (r#"{"kind":"ignore-term","seconds":5}"#, Fault::IgnoreTerm { seconds: 5 }),
            (r#"{"kind":"error-500","seconds":5}"#, Fault::Error500 { seconds: 5 }),
            (r#"{"kind":"leak"}"#, Fault::Leak { seconds: 60, mib_per_second: 10 }),
            (r#"{"kind":"spam"}"#, Fault::Spam { seconds: 60, lines_per_second: 1_000 }),
            (r#"{"kind":"none"}"#, Fault::None),
        ];
        for (text, fault) in table {
            assert_eq!(serde_json::from_str::<Fault>(text).expect(text), fault);
        }
        assert!(serde_json::from_str::<Fault>(r#"{"kind":"exit","code":300}"#).is_err());
        assert!(bounded("seconds", 0, 600).is_err());
        assert!(bounded("seconds", 601, 600).is_err());
    }
}
