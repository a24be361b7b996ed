//! The bearer token of TCP clients.
//!
//! Refuses: showing itself: it has no text form, and `Debug` says that it is there. Tokens that can be guessed.

use std::fmt;
use std::hint::black_box;

/// Longest token, in bytes.
const LEN_MAX: usize = 512;

/// Fewest characters that can hold 128 bits: of hexadecimal digits, and of any (base64 has 6 bits each).
const HEX_LEN_MIN: usize = 32;
const LEN_MIN: usize = 22;

/// Fewest different characters: `0000…` is long, and no secret. Of 32 random digits, one in 10^8 has fewer.
const DISTINCT_MIN: usize = 6;

/// What a client has to show.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Vec<u8>);

impl Token {
    /// The text of a token file; white space around it does not count.
    ///
    /// # Errors
    /// Why it is none, without any of it.
    pub fn parse(text: &str) -> Result<Token, &'static str> {
        let text = text.trim();
        // RFC 6750, 2.1: what can stand behind `Bearer`.
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.len() > LEN_MAX || !text.bytes().all(fits) {
            return Err("it must be one word of letters, digits and -._~+/=, at most 512 of them");
        }
        let is_hex = text.bytes().all(|b| b.is_ascii_hexdigit());
        let mut distinct: Vec<u8> = text.bytes().collect();
        distinct.sort_unstable();
        distinct.dedup();
        if text.len() < if is_hex { HEX_LEN_MIN } else { LEN_MIN } || distinct.len() < DISTINCT_MIN {
            return Err("it can be guessed: a token has at least 128 bits");
        }
        Ok(Token(text.as_bytes().to_vec()))
    }

    /// Whether `shown` is this token. How long that takes tells its length, and nothing else.
    pub fn is(&self, shown: &[u8]) -> bool {
        if self.0.len() != shown.len() {
            return false;
        }
        let differing = self.0.iter().zip(shown).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
        black_box(differing) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_guessed_is_no_token() {
        let good = "0123456789abcdef0123456789abcdef";
        for text in [good, &format!("\n {good}\n"), "q7Zx-_.~+/=W2mNf9KpL3vT"] {
            assert!(Token::parse(text).is_ok(), "{text}");
        }
        let long = "aB3-".repeat(129);
        for text in [
            "",
            " \n",
            "secret",
            &good[1..],
            &"0".repeat(64),
            "two words of some length 123",
            &long,
            "ünïcödeünïcödeünïcödeünïcöde",
        ] {
            let why = Token::parse(text).expect_err(text);
            assert!(text.trim().is_empty() || !why.contains(text.trim()), "{why}");
        }
    }

    #[test]
    fn only_the_token_is_the_token_and_it_hides() {
        let text = "0123456789abcdef0123456789abcdef";
        let token = Token::parse(text).expect("a token");
        assert!(token.is(text.as_bytes()));
        for at in 0..text.len() {
            let mut other = text.as_bytes().to_vec();
            other[at] ^= 1;
            assert!(!token.is(&other));
        }
        assert!(!token.is(&text.as_bytes()[1..]) && !token.is(b""));
        assert_eq!(format!("{token:?}"), "Token(hidden)");
    }
}
