//! Which socket to ask: `--home`, `UPRIGHT_HOME`, else root's, else the user's.
//!
//! Refuses: starting a daemon that is not there.

use std::path::{Path, PathBuf};

use crate::cli::args::GlobalArgs;

const SYSTEM_SOCKET: &str = "/run/upright/upright.sock";

/// The daemon's socket. `UPRIGHT_HOME` is `--home` already (clap reads it).
pub fn socket_path(global: &GlobalArgs) -> PathBuf {
    choose(global.home.as_deref(), runtime_dir().as_deref(), Path::exists)
}

fn runtime_dir() -> Option<PathBuf> {
    std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute())
}

/// The user's socket only where root's is missing and the user's is there, so that the error
/// of somebody without any daemon names the place where one is expected.
fn choose(home: Option<&Path>, runtime: Option<&Path>, exists: impl Fn(&Path) -> bool) -> PathBuf {
    if let Some(home) = home {
        return home.join("run/upright.sock");
    }
    let system = PathBuf::from(SYSTEM_SOCKET);
    let own = runtime.map(|dir| dir.join("upright/upright.sock"));
    match own {
        Some(own) if !exists(&system) && exists(&own) => own,
        Some(_) | None => system,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_home_root_user() {
        let (home, runtime) = (Path::new("/h"), Path::new("/run/user/7"));
        let own = Path::new("/run/user/7/upright/upright.sock");
        let system = Path::new(SYSTEM_SOCKET);
        assert_eq!(choose(Some(home), Some(runtime), |_| true), Path::new("/h/run/upright.sock"));
        assert_eq!(choose(None, Some(runtime), |_| true), system);
        assert_eq!(choose(None, Some(runtime), |path| path == own), own);
        assert_eq!(choose(None, Some(runtime), |_| false), system);
        assert_eq!(choose(None, None, |_| false), system);
    }
}
