//! Notices that files of the configuration may have changed. It never says which, nor how: a
//! sign is a reason to read everything again, a lost sign costs nothing but time, and
//! `upright apply` needs none.
//!
//! Refuses: reading the files, polling, and watching files themselves: an editor that renames
//! would take the watch away with the old file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use notify::event::{AccessKind, AccessMode};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{self, Receiver, UnboundedSender};

use crate::config::paths::Home;
use crate::daemon::hands::Source;
use crate::sys::threads;

/// The files are read when nothing has moved for this long: an editor's save is a handful of
/// calls within a few milliseconds.
const QUIET: Duration = Duration::from_millis(200);

/// And at the latest this long after the first sign, however busy the directory is.
const LATEST: Duration = Duration::from_secs(2);

/// Symbolic links on the way to one file; the kernel follows 40 (path_resolution(7)).
const LINKS_MAX: u32 = 40;

/// How often what is to be watched is looked for again, should it move meanwhile.
const LOOKS_MAX: u32 = 5;

/// What in a directory is of interest.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    All,
    These(BTreeSet<OsString>),
}

/// Directory, with no link in its path → what of it.
type Interest = BTreeMap<PathBuf, Names>;

#[derive(Default)]
struct Shared {
    interest: Interest,
    /// Watched directories that were moved or removed: their watch is gone with them.
    replaced: BTreeSet<PathBuf>,
    /// The kernel has dropped signs, or something else went wrong.
    doubtful: bool,
}

/// The watch on every directory that decides what the configuration is.
pub struct Watching {
    watcher: RecommendedWatcher,
    shared: Arc<Mutex<Shared>>,
    /// With device and inode: another directory under the same name is not watched yet.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Watching {
    /// Watches nothing yet. Signs are told as `Source::FilesTouched`, gathered.
    ///
    /// # Errors
    /// No inotify instance is to be had (`fs.inotify.max_user_instances`), or no thread.
    pub fn start(sources: UnboundedSender<Source>) -> Result<Watching, notify::Error> {
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let (signs, heard) = mpsc::channel(1);
        let looked_at = Arc::clone(&shared);
        let on_sign = move |seen: notify::Result<Event>| {
            if is_sign(&mut lock(&looked_at), &seen) {
                let _ = signs.try_send(()); // one is waiting already, which is as good
            }
        };
        let mut watcher = RecommendedWatcher::new(on_sign, Config::default())?;
        // Whether it got a thread of its own it does not tell: without one, any question panics, and so
        // does dropping it.
        if threads::guarded(|| watcher.unwatch(Path::new("/"))).is_none() {
            threads::guarded(move || drop(watcher));
            return Err(notify::Error::io(io::Error::from(Errno::EAGAIN)));
        }
        tokio::spawn(gather(heard, sources));
        Ok(Watching { watcher, shared, watched: BTreeMap::new() })
    }

    /// Watches what `home` is made of now, and the file of the token. What is told are directories that cannot be
    /// watched, with the reason.
    pub fn refresh(&mut self, home: &Home, token_file: Option<&Path>) -> Vec<String> {
        let (replaced, doubtful) = {
            let mut shared = lock(&self.shared);
            (std::mem::take(&mut shared.replaced), std::mem::take(&mut shared.doubtful))
        };
        let is_replaced = |dir: &PathBuf| doubtful || replaced.iter().any(|moved| dir.starts_with(moved));
        let gone: Vec<PathBuf> = self.watched.keys().filter(|dir| is_replaced(dir)).cloned().collect();
        gone.iter().for_each(|dir| self.unwatch(dir));
        // What moved between the look and the watch gave no sign: look again with the watch there.
        for _ in 0..LOOKS_MAX {
            let mut wanted = interest_of(home);
            token_file.into_iter().for_each(|file| _ = trail(file, &mut wanted));
            let known = std::mem::replace(&mut lock(&self.shared).interest, wanted.clone());
            let troubles = self.watch_these(&wanted);
            if known == wanted || !troubles.is_empty() {
                return troubles;
            }
        }
        Vec::new() // it is moving all the time, and each move is a sign
    }

    fn watch_these(&mut self, wanted: &Interest) -> Vec<String> {
        let idle: Vec<PathBuf> =
            self.watched.keys().filter(|dir| !wanted.contains_key(*dir)).cloned().collect();
        idle.iter().for_each(|dir| self.unwatch(dir));
        let mut troubles = Vec::new();
        for dir in wanted.keys() {
            let Ok(found) = fs::metadata(dir) else { continue };
            let identity = (found.dev(), found.ino());
            if !found.is_dir() || self.watched.get(dir) == Some(&identity) {
                continue;
            }
            self.unwatch(dir);
            match self.watcher.watch(dir, RecursiveMode::NonRecursive) {
                Ok(()) => _ = self.watched.insert(dir.clone(), identity),
                Err(error) => troubles.push(format!("cannot watch {}: {error}", dir.display())),
            }
        }
        troubles
    }

    fn unwatch(&mut self, dir: &Path) {
        self.watched.remove(dir);
        let _ = self.watcher.unwatch(dir); // there is none, or the kernel has taken it away
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the files may be others now.
fn is_sign(shared: &mut Shared, seen: &notify::Result<Event>) -> bool {
    let event = match seen {
        Ok(event) if !event.need_rescan() => event,
        Ok(_) | Err(_) => {
            shared.doubtful = true;
            return true;
        }
    };
    let moves = match event.kind {
        // Opening and reading is what we do ourselves.
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    };
    if !moves {
        return false;
    }
    let mut is_sign = false;
    for path in &event.paths {
        let may_be_replaced = matches!(event.kind, EventKind::Create(_) | EventKind::Remove(_))
            || matches!(event.kind, EventKind::Modify(notify::event::ModifyKind::Name(_)));
        if may_be_replaced && shared.interest.contains_key(path) {
            shared.replaced.insert(path.clone());
            is_sign = true;
        }
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
        is_sign |= match shared.interest.get(dir) {
            Some(Names::All) => true,
            Some(Names::These(names)) => names.contains(name),
            None => false,
        };
    }
    is_sign
}

/// One `FilesTouched` for all signs that come close together.
async fn gather(mut signs: Receiver<()>, sources: UnboundedSender<Source>) {
    while signs.recv().await.is_some() {
        let more = async { while let Ok(Some(())) = tokio::time::timeout(QUIET, signs.recv()).await {} };
        let _ = tokio::time::timeout(LATEST, more).await; // either way it is time to look
        if sources.send(Source::FilesTouched).is_err() {
            return;
        }
    }
}

/// Every name that leads to the config file, to a unit directory, and to what a link in it
/// means; and all names in the unit directories.
fn interest_of(home: &Home) -> Interest {
    let mut interest = Interest::new();
    trail(&home.config_file, &mut interest);
    for dir in &home.unit_dirs {
        let dir = trail(dir, &mut interest);
        let entries = fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok);
        for entry in entries {
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                trail(&entry.path(), &mut interest);
            }
        }
        interest.insert(dir, Names::All);
    }
    interest
}

/// Notes every directory and name that is looked up on the way to `path`, links followed;
/// where it ends.
fn trail(path: &Path, interest: &mut Interest) -> PathBuf {
    let mut at = PathBuf::from("/");
    let mut links = 0;
    let mut ahead: Vec<OsString> = names_of(path);
    while let Some(name) = ahead.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        match interest.entry(at.clone()).or_insert_with(|| Names::These(BTreeSet::new())) {
            Names::All => {}
            Names::These(names) => _ = names.insert(name.clone()),
        }
        match fs::read_link(at.join(&name)) {
            Ok(target) if links < LINKS_MAX => {
                links += 1;
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                ahead.extend(names_of(&target));
            }
            Ok(_) | Err(_) => at.push(&name),
        }
    }
    at
}

/// The names of a path, the last one first.
fn names_of(path: &Path) -> Vec<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_os_string()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{CreateKind, Flag, RemoveKind};

    fn names(interest: &Interest, dir: &Path) -> Vec<String> {
        match interest.get(dir) {
            Some(Names::These(names)) => {
                names.iter().map(|name| name.to_string_lossy().into_owned()).collect()
            }
            Some(Names::All) => vec!["*".to_string()],
            None => Vec::new(),
        }
    }

    #[test]
    fn the_trail_follows_links_of_directories_and_of_files() {
        let temp = tempfile::tempdir().expect("a directory");
        let root = temp.path().canonicalize().expect("its true path");
        for dir in ["releases/1/units", "shared"] {
            fs::create_dir_all(root.join(dir)).expect("a directory");
        }
        fs::write(root.join("shared/web.toml"), "").expect("a file");
        std::os::unix::fs::symlink("releases/1", root.join("current")).expect("a link");
        std::os::unix::fs::symlink("../../../shared/web.toml", root.join("releases/1/units/web.toml"))
            .expect("a link");
        let mut home = Home::under(&root);
        home.unit_dirs = vec![root.join("current/units")];
        let interest = interest_of(&home);
        assert_eq!(names(&interest, &root), ["current", "releases", "shared", "upright.toml"]);
        assert_eq!(names(&interest, &root.join("releases")), ["1"]);
        assert_eq!(names(&interest, &root.join("releases/1/units")), ["*"]);
        assert_eq!(names(&interest, &root.join("shared")), ["web.toml"]);
        assert_eq!(names(&interest, Path::new("/")).len(), 1, "{interest:?}");
    }

    #[test]
    fn links_in_a_circle_end() {
        let temp = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("b", temp.path().join("a")).expect("a link");
        std::os::unix::fs::symlink("a", temp.path().join("b")).expect("a link");
        trail(&temp.path().join("a/units"), &mut Interest::new());
    }

    #[test]
    fn our_own_reading_is_no_sign() {
        let dir = PathBuf::from("/etc/upright/units");
        let mut shared = Shared::default();
        shared.interest.insert(dir.clone(), Names::All);
        shared
            .interest
            .insert("/etc/upright".into(), Names::These(["units".into(), "upright.toml".into()].into()));
        let mut sign = |kind, path: &str| is_sign(&mut shared, &Ok(Event::new(kind).add_path(path.into())));
        let open = EventKind::Access(AccessKind::Open(AccessMode::Any));
        assert!(!sign(open, "/etc/upright/units/web.toml"));
        assert!(sign(EventKind::Create(CreateKind::File), "/etc/upright/units/web.toml"));
        assert!(!sign(EventKind::Create(CreateKind::File), "/etc/upright/notes.txt"));
        assert!(sign(EventKind::Remove(RemoveKind::File), "/etc/upright/upright.toml"));
        assert!(sign(EventKind::Remove(RemoveKind::Folder), "/etc/upright/units"));
        assert!(shared.replaced.contains(&dir), "a directory that is removed takes its watch along");
    }

    #[test]
    fn lost_signs_are_a_sign() {
        let mut shared = Shared::default();
        assert!(is_sign(&mut shared, &Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan))));
        assert!(shared.doubtful);
        assert!(is_sign(&mut Shared::default(), &Err(notify::Error::generic("gone"))));
    }
}
