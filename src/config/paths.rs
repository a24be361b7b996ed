//! `Home`: where everything lies, from flags, environment and who we are.
//!
//! Refuses: making directories.

use std::path::{Path, PathBuf};

use crate::base::name::UnitName;

/// Every place of one daemon (contract, "Places").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    pub config_file: PathBuf,
    /// The config file was named by the user: that it is missing is an error.
    pub config_named: bool,
    pub unit_dirs: Vec<PathBuf>,
    /// The unit directories were named by the user: that one is missing is an error.
    pub units_named: bool,
    /// The SQLite file.
    pub db: PathBuf,
    pub log_dir: PathBuf,
    pub run_dir: PathBuf,
    pub socket: PathBuf,
    pub notify_socket: PathBuf,
}

/// The flags that choose a home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `--home DIR`; wins over `UPRIGHT_HOME`.
    pub home: Option<PathBuf>,
    /// `--units DIR`, any number; they replace the unit directory.
    pub units: Vec<PathBuf>,
    /// `--config FILE`
    pub config: Option<PathBuf>,
}

/// What the process brings: its user and its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    pub uid: u32,
    pub upright_home: Option<PathBuf>,
    /// `$HOME`
    pub user_home: Option<PathBuf>,
    pub xdg_config_home: Option<PathBuf>,
    pub xdg_state_home: Option<PathBuf>,
    pub xdg_runtime_dir: Option<PathBuf>,
}

impl Surroundings {
    pub fn of_process() -> Surroundings {
        let set = |name: &str| std::env::var_os(name).filter(|text| !text.is_empty()).map(PathBuf::from);
        Surroundings {
            uid: nix::unistd::geteuid().as_raw(),
            upright_home: set("UPRIGHT_HOME"),
            user_home: set("HOME"),
            // The XDG specification: a path that is not absolute is to be ignored.
            xdg_config_home: set("XDG_CONFIG_HOME").filter(|path| path.is_absolute()),
            xdg_state_home: set("XDG_STATE_HOME").filter(|path| path.is_absolute()),
            xdg_runtime_dir: set("XDG_RUNTIME_DIR").filter(|path| path.is_absolute()),
        }
    }
}

/// Why there is no home.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HomeError {
    #[error("cannot find a home: neither --home, UPRIGHT_HOME nor HOME is set")]
    NoHome,
    #[error("cannot make `{path}` absolute: {cause}")]
    NotAbsolute { path: PathBuf, cause: String },
}

impl Home {
    /// The home that flags and surroundings name.
    ///
    /// # Errors
    /// When no directory can be derived, or a relative one cannot be made absolute.
    pub fn resolve(asked: &Asked, around: &Surroundings) -> Result<Home, HomeError> {
        let chosen = asked.home.as_ref().or(around.upright_home.as_ref());
        let mut home = match chosen {
            Some(dir) => Home::under(&absolute(dir)?),
            None if around.uid == 0 => Home::of_root(),
            None => Home::of_user(around)?,
        };
        if let Some(config) = &asked.config {
            home.config_file = absolute(config)?;
            home.config_named = true;
        }
        if !asked.units.is_empty() {
            home.unit_dirs = asked.units.iter().map(|dir| absolute(dir)).collect::<Result<_, _>>()?;
            home.units_named = true;
        }
        Ok(home)
    }

    /// Where a client looks for the daemon, in this order: the home that was named; without
    /// one the socket of root, then that of the user.
    ///
    /// # Errors
    /// As `resolve`, when a home was named.
    pub fn sockets(asked: &Asked, around: &Surroundings) -> Result<Vec<PathBuf>, HomeError> {
        if asked.home.is_some() || around.upright_home.is_some() {
            return Ok(vec![Home::resolve(asked, around)?.socket]);
        }
        let user = Home::of_user(around).ok().filter(|_| around.uid != 0);
        let homes = std::iter::once(Home::of_root()).chain(user);
        Ok(homes.map(|home| home.socket).collect())
    }

    /// Everything under one directory.
    pub fn under(dir: &Path) -> Home {
        let config = dir.to_path_buf();
        Home::of_dirs(config, dir.join("state"), dir.join("log"), dir.join("run"))
    }

    /// The system's own places (FHS).
    pub fn of_root() -> Home {
        let config = PathBuf::from("/etc/upright");
        Home::of_dirs(config, "/var/lib/upright".into(), "/var/log/upright".into(), "/run/upright".into())
    }

    fn of_user(around: &Surroundings) -> Result<Home, HomeError> {
        let below_home = |tail: &str| around.user_home.as_ref().map(|home| home.join(tail));
        let config =
            around.xdg_config_home.clone().or_else(|| below_home(".config")).ok_or(HomeError::NoHome)?;
        let state =
            around.xdg_state_home.clone().or_else(|| below_home(".local/state")).ok_or(HomeError::NoHome)?;
        let run = match &around.xdg_runtime_dir {
            Some(dir) => dir.join("upright"),
            // No login session: a directory of our own, which the daemon makes with mode 0700.
            None => PathBuf::from(format!("/tmp/upright-{}", around.uid)),
        };
        let state = state.join("upright");
        Ok(Home::of_dirs(config.join("upright"), state.clone(), state.join("log"), run))
    }

    fn of_dirs(config: PathBuf, state: PathBuf, log_dir: PathBuf, run_dir: PathBuf) -> Home {
        Home {
            config_file: config.join("upright.toml"),
            config_named: false,
            unit_dirs: vec![config.join("units")],
            units_named: false,
            db: state.join("upright.db"),
            log_dir,
            socket: run_dir.join("upright.sock"),
            notify_socket: run_dir.join("notify.sock"),
            run_dir,
        }
    }

    /// The directory of a unit's logs: `<logs>/<unit>/`.
    pub fn unit_log_dir(&self, name: &UnitName) -> PathBuf {
        self.log_dir.join(name.as_str())
    }
}

fn absolute(path: &Path) -> Result<PathBuf, HomeError> {
    std::path::absolute(path)
        .map_err(|cause| HomeError::NotAbsolute { path: path.to_path_buf(), cause: cause.to_string() })
}
