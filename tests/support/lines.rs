//! A unit that writes numbered lines, and the proof that all of them were kept, once each.
//!
//! Refuses: a gap, a line twice, another order.

use std::fs;
use std::path::Path;

/// Writes bursts of numbered lines, and a last one that names the count when it is stopped.
const WRITER: &str = r#"
i=0; burst=0
trap 'echo "end $i"; exit 0' TERM
while :; do
    burst=0
    while [ $burst -lt 50 ]; do echo "line $i"; i=$((i+1)); burst=$((burst+1)); done
    sleep 0.01
done
"#;

/// The unit file of a writer.
pub fn unit() -> String {
    format!("[service]\nshell = true\ncommand = '''{WRITER}'''\n")
}

/// `line 0`, `line 1`, … `end N`: the whole of what the writer wrote. The number of lines.
pub fn check(dir: &Path) -> u64 {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap_or_else(|cause| panic!("{}: {cause}", dir.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .map(|path| fs::read_to_string(path).expect("a log"))
        .collect();
    let number = |line: &str| line.rsplit(' ').next().and_then(|word| word.parse::<u64>().ok());
    files.sort_by_key(|text| text.lines().next().and_then(number));
    let text = files.concat();
    let mut expected = 0;
    for line in text.lines() {
        if let Some(end) = line.strip_prefix("end ") {
            assert_eq!(end.parse(), Ok(expected), "the writer counted otherwise");
            return expected;
        }
        assert_eq!(line, format!("line {expected}"), "in {}", dir.display());
        expected += 1;
    }
    panic!("no last line after {expected} in {}", dir.display());
}
