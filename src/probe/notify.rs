//! sd_notify(3) datagrams → `Notice`.
//!
//! Refuses: nothing, and trusts nothing. An empty, huge or binary datagram is a `Notice`
//! without content (CVE-2016-7796: one empty message disabled systemd's handler); who sent it is
//! checked where it is received.

use std::time::Duration;

/// Longest `STATUS=` kept, in bytes (CVE-2018-15686: an overlong one became state).
pub const STATUS_BYTES_MAX: usize = 4 * 1024;

/// Longest `FDNAME=`, in bytes (sd_pid_notify_with_fds(3)).
pub const FD_NAME_BYTES_MAX: usize = 255;

/// How far the service says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `READY=1`
    Ready,
    /// `RELOADING=1`
    Reloading,
    /// `STOPPING=1`
    Stopping,
}

/// What one datagram says. Later assignments of one key replace earlier ones, as in systemd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// Of several, the last: `RELOADING=1` and `READY=1` together mean ready, as in systemd.
    pub stage: Option<Stage>,
    /// `STATUS=`: one line, at most `STATUS_BYTES_MAX` bytes, broken UTF-8 and control
    /// characters replaced.
    pub status: Option<String>,
    /// `ERRNO=`, above 0.
    pub errno: Option<i32>,
    /// `MAINPID=`, above 1. A claim: the receiver checks that it is a process of the unit.
    pub main_pid: Option<i32>,
    /// `WATCHDOG=1` or `WATCHDOG=trigger`
    pub watchdog: Option<Watchdog>,
    /// `WATCHDOG_USEC=`; zero switches it off.
    pub watchdog_period: Option<Duration>,
    /// `EXTEND_TIMEOUT_USEC=`
    pub extend_timeout: Option<Duration>,
    /// `MONOTONIC_USEC=`: when the reload began, on CLOCK_MONOTONIC.
    pub monotonic: Option<Duration>,
    /// `FDSTORE=1`
    pub fd_store: bool,
    /// `FDSTOREREMOVE=1`
    pub fd_store_remove: bool,
    /// `FDNAME=`: printable ASCII without `:`.
    pub fd_name: Option<String>,
    /// `BARRIER=1`: close the fd that came along once everything before it is dealt with.
    pub barrier: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watchdog {
    /// The service is alive.
    Ping,
    /// The service asks to be treated as if it had missed its watchdog.
    Trigger,
}

/// Reads a datagram: `KEY=value` lines. Unknown keys, other values and lines without `=` are
/// passed over. Linear in its length; keeps at most 5 KiB.
pub fn parse(datagram: &[u8]) -> Notice {
    let mut notice = Notice::default();
    for line in datagram.split(|byte| *byte == b'\n') {
        if let Some(at) = line.iter().position(|byte| *byte == b'=') {
            take(&mut notice, &line[..at], &line[at + 1..]);
        }
    }
    notice
}

fn take(notice: &mut Notice, key: &[u8], value: &[u8]) {
    let yes = value == b"1";
    match key {
        b"READY" if yes => notice.stage = Some(Stage::Ready),
        b"RELOADING" if yes => notice.stage = Some(Stage::Reloading),
        b"STOPPING" if yes => notice.stage = Some(Stage::Stopping),
        b"FDSTORE" => notice.fd_store |= yes,
        b"FDSTOREREMOVE" => notice.fd_store_remove |= yes,
        b"BARRIER" => notice.barrier |= yes,
        b"STATUS" => notice.status = Some(status(value)),
        b"ERRNO" => notice.errno = number(value).filter(|errno| *errno > 0),
        b"MAINPID" => notice.main_pid = number(value).filter(|pid| *pid > 1),
        b"WATCHDOG_USEC" => notice.watchdog_period = number(value).map(Duration::from_micros),
        b"EXTEND_TIMEOUT_USEC" => notice.extend_timeout = number(value).map(Duration::from_micros),
        b"MONOTONIC_USEC" => notice.monotonic = number(value).map(Duration::from_micros),
        b"FDNAME" => notice.fd_name = fd_name(value),
        b"WATCHDOG" => match value {
            b"1" => notice.watchdog = Some(Watchdog::Ping),
            b"trigger" => notice.watchdog = Some(Watchdog::Trigger),
            _ => {}
        },
        _ => {}
    }
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

fn status(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(&value[..value.len().min(STATUS_BYTES_MAX)]);
    let mut clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // A replacement character is three bytes long: junk grows when it is made text.
    let end = (0..=STATUS_BYTES_MAX.min(clean.len())).rev().find(|at| clean.is_char_boundary(*at));
    clean.truncate(end.unwrap_or(0));
    clean
}

fn fd_name(value: &[u8]) -> Option<String> {
    let fits = |byte: &u8| (byte.is_ascii_graphic() || *byte == b' ') && *byte != b':';
    if value.is_empty() || value.len() > FD_NAME_BYTES_MAX || !value.iter().all(fits) {
        return None;
    }
    String::from_utf8(value.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_read() {
        let text = b"READY=1\nRELOADING=1\nSTOPPING=1\nSTATUS=3/3 up\nERRNO=2\nMAINPID=4711\nWATCHDOG=1\n\
            WATCHDOG_USEC=20000000\nEXTEND_TIMEOUT_USEC=5000000\nMONOTONIC_USEC=7\nFDSTORE=1\n\
            FDSTOREREMOVE=1\nFDNAME=http\nBARRIER=1\nX_UNKNOWN=1\n";
        let wanted = Notice {
            stage: Some(Stage::Stopping),
            status: Some("3/3 up".to_string()),
            errno: Some(2),
            main_pid: Some(4711),
            watchdog: Some(Watchdog::Ping),
            watchdog_period: Some(Duration::from_secs(20)),
            extend_timeout: Some(Duration::from_secs(5)),
            monotonic: Some(Duration::from_micros(7)),
            fd_store: true,
            fd_store_remove: true,
            fd_name: Some("http".to_string()),
            barrier: true,
        };
        assert_eq!(parse(text), wanted);
    }

    #[test]
    fn the_last_stage_counts() {
        assert_eq!(parse(b"RELOADING=1\nREADY=1").stage, Some(Stage::Ready));
        assert_eq!(parse(b"READY=1\nSTOPPING=1\nREADY=0").stage, Some(Stage::Stopping));
    }

    #[test]
    fn junk_is_a_notice_without_content() {
        let empty = Notice::default();
        let huge = vec![b'\n'; 1 << 20];
        let binary: Vec<u8> = (0..=255).cycle().take(100_000).filter(|byte| *byte != b'=').collect();
        for datagram in
            [&b""[..], b"\n", b"=", b"==", b"READY", b"READY=0", b"READY= 1", b"ready=1", &huge, &binary]
        {
            assert_eq!(parse(datagram), empty);
        }
        for bad in ["MAINPID=0", "MAINPID=1", "MAINPID=-5", "MAINPID=99999999999", "ERRNO=-1", "FDNAME=a:b"] {
            assert_eq!(parse(bad.as_bytes()), empty, "{bad}");
        }
        assert_eq!(parse(b"WATCHDOG=trigger").watchdog, Some(Watchdog::Trigger));
    }

    #[test]
    fn a_status_is_one_bounded_line_and_never_another_key() {
        let mut long = b"STATUS=".to_vec();
        long.extend(std::iter::repeat_n(0xff_u8, 10 << 20));
        let status = parse(&long).status.expect("status");
        assert!(status.len() <= STATUS_BYTES_MAX && status.len() > STATUS_BYTES_MAX - 4);
        let notice = parse(b"STATUS=a READY=1 b=\x1b[2J");
        assert_eq!(notice.stage, None);
        assert_eq!(notice.status.as_deref(), Some("a READY=1 b= [2J"));
    }
}
