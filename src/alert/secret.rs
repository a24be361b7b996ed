//! Files of secrets, read when something is sent: a token that was changed is the new one with the
//! next try.
//!
//! Refuses: keeping them, files that others could have written when we are root, and more than
//! one line.

use std::path::Path;

use crate::base::hidden::Hidden;
use crate::config::read::{Trust, read};
use crate::unit::channels::Channel;

/// What a send needs and no other place may know.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    pub url: Option<Hidden>,
    pub secret: Option<Hidden>,
    pub password: Option<Hidden>,
    /// Certificates; no secret, but a file like them.
    pub ca: Option<String>,
}

impl Secrets {
    /// May wait for a disk.
    ///
    /// # Errors
    /// Names the key and why its file cannot be used; never what is in it.
    pub fn of(channel: &Channel) -> Result<Secrets, String> {
        let one = |key: &str, path: &Option<_>| path.as_deref().map(|path| line(key, path)).transpose();
        let url = match &channel.url {
            Some(url) => Some(url.clone()),
            None => one("url_file", &channel.url_file)?,
        };
        Ok(Secrets {
            url,
            secret: one("secret_file", &channel.secret_file)?,
            password: one("password_file", &channel.mail.password_file)?,
            ca: channel.ca_file.as_deref().map(|path| text("ca_file", path)).transpose()?,
        })
    }
}

fn text(key: &str, path: &Path) -> Result<String, String> {
    read(path, Trust::Deployed).map_err(|error| {
        let help = error.help.map(|help| format!("; {help}")).unwrap_or_default();
        format!("cannot use `{key}`, {}: {}{help}", path.display(), error.why)
    })
}

/// The one line of the file, without spaces around it.
fn line(key: &str, path: &Path) -> Result<Hidden, String> {
    let text = text(key, path)?;
    let line = text.trim();
    if line.is_empty() || line.contains(char::is_control) {
        return Err(format!("cannot use `{key}`, {}: it must hold one line", path.display()));
    }
    Ok(Hidden::new(line))
}
