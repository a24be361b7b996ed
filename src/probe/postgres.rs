//! PostgreSQL's start-up packet, and the first message that answers it
//! (PostgreSQL manual, "Frontend/Backend Protocol", message flow and formats).
//!
//! Refuses: logging in. Any answer that shows a server which serves is enough, an unknown role
//! or a wrong password among them, and "too many clients" (53300): a restart would cut off all
//! those that it serves. Only the 57P family says "not now".

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::probe::cause;

/// Protocol 3.0.
const PROTOCOL: u32 = 196_608;

/// user, database and our name in pg_stat_activity; an empty name ends the list.
const PARAMETERS: &[u8] = b"user\0upright\0database\0postgres\0application_name\0upright\0\0";

/// Terminate: a server that let us in is told goodbye and logs no broken connection.
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// Largest first message we look at. An ErrorResponse holds a few hundred bytes.
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Longest text of a postmaster that cannot even fork; libpq looks no further either.
const BARE_TEXT_BYTES_MAX: usize = 1024;

const STRANGE: &str = "the answer is not PostgreSQL's";

pub(super) async fn ask<S>(mut stream: S) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&startup()).await.map_err(|error| cause(&error))?;
    let mut head = [0_u8; 5];
    stream.read_exact(&mut head).await.map_err(|error| cause(&error))?;
    let [kind, length @ ..] = head;
    // The length counts its own four bytes.
    let body_bytes = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX).saturating_sub(4);
    let fits = match kind {
        b'R' => (4..=MESSAGE_BYTES_MAX).contains(&body_bytes),
        b'E' => (1..=MESSAGE_BYTES_MAX).contains(&body_bytes),
        _ => false,
    };
    if !fits && kind == b'E' && length.is_ascii() {
        return Err(without_length(&mut stream, length).await);
    }
    if !fits {
        return Err(STRANGE.to_string());
    }
    let mut body = vec![0_u8; body_bytes];
    stream.read_exact(&mut body).await.map_err(|error| cause(&error))?;
    if kind == b'E' {
        return judge(&body);
    }
    if body.starts_with(&[0, 0, 0, 0]) {
        let _ = stream.write_all(&TERMINATE).await; // only a courtesy
        let _ = stream.shutdown().await; // likewise
    }
    Ok(())
}

/// "could not fork new process for connection: …": E, a text and NUL, without any length. The
/// postmaster writes it itself when it has no process for us.
async fn without_length<S: AsyncRead + Unpin>(stream: &mut S, begun: [u8; 4]) -> String {
    let mut text = begun.to_vec();
    while text.len() < BARE_TEXT_BYTES_MAX {
        match stream.read_u8().await {
            Ok(0) => return String::from_utf8_lossy(&text).trim().to_string(),
            Ok(byte) if byte.is_ascii_control() && byte != b'\n' => return STRANGE.to_string(),
            Ok(byte) => text.push(byte),
            Err(_) => return STRANGE.to_string(), // no text that ends, so not the postmaster's
        }
    }
    STRANGE.to_string()
}

fn startup() -> Vec<u8> {
    let length = u32::try_from(PARAMETERS.len() + 8).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &PROTOCOL.to_be_bytes(), PARAMETERS].concat()
}

/// An ErrorResponse: fields of one letter and a text, each ended by NUL; `C` is the SQLSTATE,
/// `M` the message.
fn judge(body: &[u8]) -> Result<(), String> {
    let field = |letter: u8| {
        body.split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&letter))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
            .filter(|text| !text.is_empty())
    };
    match field(b'C').as_deref() {
        // admin_shutdown, crash_shutdown, cannot_connect_now
        Some("57P01" | "57P02" | "57P03") => {
            Err(field(b'M').unwrap_or_else(|| "the database system is not accepting clients".to_string()))
        }
        Some(_) => Ok(()),
        None => Err(STRANGE.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_57p_family_is_not_ready() {
        let error = |code: &str| {
            format!("SFATAL\0VFATAL\0C{code}\0Mthe database system is starting up\0\0").into_bytes()
        };
        for ready in ["28000", "28P01", "3D000", "53300"] {
            assert_eq!(judge(&error(ready)), Ok(()), "{ready}");
        }
        assert_eq!(judge(&error("57P03")), Err("the database system is starting up".to_string()));
        for junk in [&b""[..], b"\0\0\0", b"M only", &[0xff; 300]] {
            assert!(judge(junk).is_err());
        }
    }
}
