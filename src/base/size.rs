//! Byte sizes as people write them: `"50MiB"`.
//!
//! Refuses: fractions of a byte and negative sizes.

use bytesize::ByteSize;

/// `"50MiB"`, `"1GB"`, `"4096"` (bytes) in bytes.
///
/// # Errors
/// One line that says what is wrong.
pub fn parse(text: &str) -> Result<u64, String> {
    text.trim()
        .parse::<ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| format!("`{text}` is no size; write for example \"50MiB\""))
}
