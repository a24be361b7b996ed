//! Rust files as the house tests read them: comments, strings and test code told apart, without
//! a parser.
//!
//! Refuses: understanding Rust. It knows where text, comments and braces are, nothing more.
#![allow(dead_code, reason = "each test binary uses its part of this module")]

use std::fs;
use std::path::{Path, PathBuf};

/// Where the project is.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file, with what the checks ask of it.
pub struct Source {
    /// From the project's root, with `/`.
    pub path: String,
    pub text: String,
    /// `text` with comments, strings and characters blanked; as many lines.
    pub code: String,
    /// `code` without what is compiled for tests only.
    pub shipped: String,
}

impl Source {
    pub fn read(path: &str) -> Source {
        let text = fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let code = blank_text(&text);
        let shipped = if is_test_file(path) { String::new() } else { blank_tests(&code) };
        Source { path: path.to_string(), text, code, shipped }
    }

    /// The first part of its path below src/; None for tests.
    pub fn room(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?;
        Some(below.split_once('/').map_or(below, |(room, _)| room))
    }
}

/// Every `.rs` file below src/, tests/ and benches/, sorted.
pub fn all() -> Vec<Source> {
    let mut paths = Vec::new();
    for top in ["src", "tests", "benches"] {
        files_below(Path::new(top), &mut paths);
    }
    paths.retain(|path| path.ends_with(".rs"));
    paths.iter().map(|path| Source::read(path)).collect()
}

/// Every file below `dir`, from the project's root.
pub fn files_below(dir: &Path, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(root().join(dir)) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| dir.join(entry.expect("entry").file_name())).collect();
    paths.sort();
    for path in paths {
        if root().join(&path).is_dir() {
            files_below(&path, found);
        } else {
            found.push(path.to_str().expect("UTF-8 name").to_string());
        }
    }
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/")
        || path.starts_with("benches/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
}

/// Where the first `word` is that is no part of a longer one, from `start`.
pub fn find_word(code: &str, word: &str, start: usize) -> Option<usize> {
    let bytes = code.as_bytes();
    let part = |at: usize| bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let mut from = start;
    while let Some(at) = code.get(from..)?.find(word).map(|at| at + from) {
        let begins = !part(at) || at == 0 || !part(at - 1);
        let end = at + word.len();
        let ends = !part(end - 1) || !part(end);
        if begins && ends {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

pub fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The `}` that belongs to the first `{` at or after `at`.
pub fn closing_brace(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0;
    for (index, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(index),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// (name, first line, lines) of each function with a body.
pub fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = find_word(code, "fn", from) {
        from = at + 2;
        let rest = code[from..].trim_start();
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() {
            continue;
        }
        let Some(end_of_head) = code[from..].find([';', '{']).map(|at| at + from) else { break };
        // `[u8; 4]` in the arguments has a semicolon too: the head ends at depth 0.
        let head = &code[from..end_of_head];
        let nested = head.matches(['[', '(']).count() > head.matches([']', ')']).count();
        if code.as_bytes()[end_of_head] == b';' && !nested {
            continue;
        }
        let Some(end) = closing_brace(code, from) else { break };
        let (first, last) = (line_of(code, at), line_of(code, end));
        found.push((name, first, last - first + 1));
    }
    found
}

/// Blanks each item under `#[cfg(test)]`, up to its `;` or its closing brace.
fn blank_tests(code: &str) -> String {
    let mut left = code.to_string();
    let mut from = 0;
    while let Some(at) = left.get(from..).and_then(|rest| rest.find("#[cfg(test)]")).map(|at| at + from) {
        let Some(stop) = left[at..].find([';', '{']).map(|stop| stop + at) else { break };
        let end = if left.as_bytes()[stop] == b';' { Some(stop) } else { closing_brace(&left, at) };
        let end = end.unwrap_or(left.len() - 1);
        let blank = blanked(&left[at..=end]);
        left.replace_range(at..=end, &blank);
        from = end;
    }
    left
}

fn blanked(text: &str) -> String {
    text.bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect()
}

/// Blanks comments, strings and character literals; bytes and lines keep their places.
fn blank_text(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(text, at);
        match end {
            Some(end) => {
                for byte in &mut out[at..end] {
                    if *byte != b'\n' {
                        *byte = b' ';
                    }
                }
                at = end;
            }
            None => at += 1,
        }
    }
    String::from_utf8(out.into_iter().map(|b| if b.is_ascii() { b } else { b' ' }).collect()).expect("ASCII")
}

/// The end of the comment, string or character that begins at `at`, if one does.
fn literal_end(text: &str, at: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return Some(find(bytes, b"\n", at).unwrap_or(bytes.len()));
    }
    if rest.starts_with(b"/*") {
        return Some(block_comment_end(bytes, at));
    }
    if rest.starts_with(b"\"") {
        return Some(quoted_end(bytes, at + 1, b'"'));
    }
    let after_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if rest.starts_with(b"'") {
        // 'a' and '\n' are characters, 'a without an end is a lifetime.
        let second = text.get(at + 1..)?.chars().next()?;
        let after = at + 1 + second.len_utf8();
        return if second == '\\' {
            Some(quoted_end(bytes, at + 1, b'\''))
        } else if bytes.get(after) == Some(&b'\'') {
            Some(after + 1)
        } else {
            None
        };
    }
    if after_word {
        return None;
    }
    let prefix = rest.iter().take_while(|b| matches!(b, b'b' | b'c' | b'r')).count();
    if prefix == 0 || prefix > 2 || rest[prefix - 1] != b'r' {
        return None; // b"…" and c"…" begin at their quote
    }
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    Some(find(bytes, &close, at + prefix + hashes + 1).map_or(bytes.len(), |end| end + close.len()))
}

fn find(bytes: &[u8], what: &[u8], from: usize) -> Option<usize> {
    bytes.get(from..)?.windows(what.len()).position(|window| window == what).map(|at| at + from)
}

fn quoted_end(bytes: &[u8], from: usize, quote: u8) -> usize {
    let mut at = from;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            byte if *byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn block_comment_end(bytes: &[u8], from: usize) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

#[test]
fn text_is_told_from_code() {
    let text = "a /* b /* c */ d */ e // f\n'x' '\\'' &'l g \"h \\\" i\" br#\"j \" k\"# b\"l\" r\"m\" n";
    let code = blank_text(text);
    assert_eq!(code.len(), text.len());
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "e", "&'l", "g", "b", "n"]);
}

#[test]
fn test_code_is_told_from_shipped_code() {
    let code = "fn a() {} #[cfg(test)] mod tests; fn b() {} #[cfg(test)]\nmod c { fn d() {} } fn e() {}";
    let shipped = blank_tests(code);
    let names: Vec<String> = functions(&shipped).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["a", "b", "e"]);
    assert_eq!(functions("fn x(a: [u8; 4]) {\n}\nfn y();\nfn z() {}").len(), 2);
}
