//! A run's environment, built from empty; environment files.
//!
//! Refuses: what the daemon itself was started with (but `LANG`), and files that are not
//! plainly `KEY=value`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::base::limits;
use crate::unit::spec::EnvironmentFile;

/// The search path of a unit that sets none: what systemd gives to services
/// (systemd.exec(5), `$PATH`).
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Adds what `files` assign, in order; later assignments win.
///
/// # Errors
/// A file that cannot be read (and may not be missing) or that has a line which assigns
/// nothing: the file, the line, and what is wrong with it.
pub fn read_files(files: &[EnvironmentFile], into: &mut BTreeMap<String, String>) -> Result<(), Unread> {
    for file in files {
        let text = match read_bounded(&file.path) {
            Ok(text) => text,
            Err(error) if file.optional && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(unread(&file.path, &error.to_string(), error.raw_os_error())),
        };
        for (key, value) in parse(&text).map_err(|why| unread(&file.path, &why, None))? {
            into.insert(key, value);
        }
    }
    Ok(())
}

/// A file that is not as it should be.
#[derive(Debug)]
pub struct Unread {
    /// What the system said; none for a file whose text is wrong.
    pub errno: Option<i32>,
    pub why: String,
}

fn unread(path: &Path, why: &str, errno: Option<i32>) -> Unread {
    Unread { errno, why: format!("cannot read the environment file {}: {why}", path.display()) }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file"));
    }
    let mut text = String::new();
    let read = file.take(limits::UNIT_FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > limits::UNIT_FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than 256 KiB"));
    }
    Ok(text)
}

/// Lines `KEY=value`, as in systemd.exec(5), `EnvironmentFile=`: `#` and `;` begin a comment
/// line, quotes keep spaces, `\` at a line's end joins the next. `export ` before a key is
/// allowed, because these files are often sourced by a shell too.
///
/// # Errors
/// The number of the first line that assigns nothing, and why.
pub fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut assignments = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let mut whole = line.trim_start().to_string();
        if whole.is_empty() || whole.starts_with(['#', ';']) {
            continue;
        }
        while whole.ends_with('\\') && !whole.ends_with("\\\\") {
            whole.pop();
            let Some((next, _)) = lines.next() else { break };
            whole.push_str(next);
        }
        let whole = whole.strip_prefix("export ").unwrap_or(&whole);
        let Some((key, value)) = whole.split_once('=') else {
            return Err(format!("line {number} has no `=`"));
        };
        let key = key.trim();
        if !is_name(key) {
            return Err(format!("line {number}: `{key}` is no name of a variable"));
        }
        let value = unquote(value.trim()).ok_or_else(|| format!("line {number}: a quote is not closed"))?;
        assignments.push((key.to_string(), value));
    }
    Ok(assignments)
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// None when a quote is not closed.
fn unquote(text: &str) -> Option<String> {
    let mut value = String::with_capacity(text.len());
    let mut chars = text.chars();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => value.push(c),
            (None | Some(_), '\\') => match chars.next() {
                // Inside double quotes a backslash escapes what a shell lets it escape there.
                Some(next) if quote.is_some() && !matches!(next, '"' | '\\' | '$' | '`') => {
                    value.push('\\');
                    value.push(next);
                }
                Some(next) => value.push(next),
                None => value.push('\\'),
            },
            (None | Some(_), c) => value.push(c),
        }
    }
    quote.is_none().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_systemd_reads_them() {
        let text = "# comment\n; too\n\nA=1\n B = two words \nC=\"x # \\\"y\\\" \\n\"\nD='a\\b'\nexport E=e\\\n  f\nF=\nG=a=b\n";
        let read = parse(text).expect("reads");
        let read: Vec<(&str, &str)> = read.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let wanted = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "x # \"y\" \\n"),
            ("D", "a\\b"),
            ("E", "e  f"),
            ("F", ""),
            ("G", "a=b"),
        ];
        assert_eq!(read, wanted);
    }

    #[test]
    fn what_assigns_nothing_is_named_by_its_line() {
        for (text, why) in [
            ("A=1\nnonsense\n", "line 2 has no `=`"),
            ("1A=x", "line 1: `1A` is no name of a variable"),
            ("A='x", "line 1: a quote is not closed"),
        ] {
            assert_eq!(parse(text), Err(why.to_string()));
        }
    }

    #[test]
    fn an_optional_file_may_be_missing_and_no_other() {
        let dir = tempfile::tempdir().expect("dir");
        let missing = dir.path().join("missing.env");
        let file = |optional| EnvironmentFile { path: missing.clone(), optional };
        let mut environment = BTreeMap::new();
        assert!(read_files(&[file(true)], &mut environment).is_ok());
        let error = read_files(&[file(false)], &mut environment).expect_err("missing");
        assert!(error.why.contains("missing.env"), "{error:?}");
        assert_eq!(error.errno, Some(nix::libc::ENOENT));
    }
}
