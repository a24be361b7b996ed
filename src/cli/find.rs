//! Which home, and which socket to ask: `--home`, `UPRIGHT_HOME`, else root's, else the user's.
//!
//! Refuses: starting a daemon that is not there.

use std::path::{Path, PathBuf};

use crate::cli::args::GlobalArgs;
use crate::config::{Asked, Home, Surroundings};

/// The flags, as `config` takes them. `UPRIGHT_HOME` is in `home` already (clap reads it).
pub fn asked(global: &GlobalArgs) -> Asked {
    Asked { home: global.home.clone(), units: global.unit_dirs.clone(), config: global.config.clone() }
}

/// The daemon's socket.
pub fn socket_path(global: &GlobalArgs) -> PathBuf {
    choose(&asked(global), &Surroundings::of_process(), Path::exists)
}

/// Somebody who is not root asks root's daemon where there is one, else their own. Where
/// neither is, the error names the place where `upright daemon` would make it.
fn choose(asked: &Asked, around: &Surroundings, exists: impl Fn(&Path) -> bool) -> PathBuf {
    let system = Home::of_root().socket;
    let named = asked.home.is_some() || around.upright_home.is_some();
    // A config or unit directory does not move the socket.
    let places = Asked { home: asked.home.clone(), ..Asked::default() };
    match Home::resolve(&places, around) {
        Ok(home) if named || !exists(&system) => home.socket,
        Ok(_) | Err(_) => system,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_home_root_user() {
        let asked = Asked { home: Some("/h".into()), ..Asked::default() };
        let user = Surroundings {
            uid: 7,
            user_home: Some("/home/u".into()),
            xdg_runtime_dir: Some("/run/user/7".into()),
            ..Surroundings::default()
        };
        let root = Surroundings { uid: 0, ..user.clone() };
        let nowhere = Asked::default();
        let system = Path::new("/run/upright/upright.sock");
        let own = Path::new("/run/user/7/upright/upright.sock");
        assert_eq!(choose(&asked, &user, |_| true), Path::new("/h/run/upright.sock"));
        assert_eq!(choose(&nowhere, &user, |_| true), system);
        assert_eq!(choose(&nowhere, &user, |_| false), own);
        assert_eq!(choose(&nowhere, &root, |_| false), system);
        assert_eq!(choose(&nowhere, &Surroundings { uid: 7, ..Surroundings::default() }, |_| false), system);
    }
}
