//! What a channel is configured to be, as a number: it tells whether what was refused is worth another
//! try.
//!
//! Refuses: revealing a secret. Of the files that hold them only which file it is, its size and when
//! it was changed go in; of a URL in `upright.toml`, where a token is long, a hash.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ring::digest;

use crate::alert::Way;
use crate::unit::channels::Channel;

/// May wait for a disk.
pub fn of(way: &Way) -> u64 {
    let text = match way {
        Way::File { path } => format!("file {}", path.display()),
        Way::Away(channel) => of_channel(channel),
    };
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    let first = hash.as_ref().first_chunk::<8>().copied().unwrap_or_default();
    u64::from_le_bytes(first) >> 1 // SQLite and JSON know signed numbers
}

fn of_channel(channel: &Channel) -> String {
    let url = channel.url.as_ref().map_or("", |url| url.expose());
    let files = [&channel.url_file, &channel.secret_file, &channel.ca_file, &channel.mail.password_file];
    let files: Vec<String> = files.into_iter().flatten().map(|path| of_file(path)).collect();
    // What `Debug` shows of it hides the URL, which stands in front.
    format!("{url}\n{channel:?}\n{}", files.join("\n"))
}

fn of_file(path: &Path) -> String {
    match path.metadata() {
        Ok(found) => format!("{} {} {}.{}", found.ino(), found.len(), found.mtime(), found.mtime_nsec()),
        Err(error) => error.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::daemon_file::parse;

    fn way(url_file: &Path, more: &str) -> Way {
        let text = format!("[alert.a]\nkind = \"slack\"\nurl_file = \"{}\"\n{more}", url_file.display());
        let spec = parse("upright.toml", &text).spec.expect("a file without errors");
        Way::Away(std::sync::Arc::new(spec.channels["a"].clone()))
    }

    #[test]
    fn another_file_another_number_and_the_same_the_same() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("url");
        let missing = of(&way(&file, ""));
        std::fs::write(&file, "https://a.example/1").expect("written");
        let first = of(&way(&file, ""));
        assert_eq!(first, of(&way(&file, "")));
        std::fs::write(&file, "https://a.example/12").expect("written");
        let second = of(&way(&file, ""));
        let other = of(&way(&file, "ca_file = \"/etc/ca.pem\"\n"));
        let all: std::collections::BTreeSet<u64> = [missing, first, second, other].into();
        assert_eq!(all.len(), 4);
    }
}
