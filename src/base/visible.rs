//! What a service or a file says, one character at a time, as a person may see it.
//!
//! Refuses: letting through what cannot be seen, or what turns the order of other characters.

/// Appends `c`; what is not printable becomes an escape: C0, C1, DEL, bidirectional controls, line
/// separators, invisible and private characters. A tab becomes four spaces.
pub fn push(out: &mut String, c: char) {
    match c {
        ' '..='~' => out.push(c),
        '\t' => out.push_str("    "),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\0'..='\x1f' | '\x7f'..='\u{9f}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
        c if misleads(c) => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
        c => out.push(c),
    }
}

/// Characters that a reader cannot see, or that turn the order of others (CVE-2021-42574).
fn misleads(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180e}'
        | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..='\u{10ffff}')
}
