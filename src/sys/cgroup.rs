//! A cgroup for each unit (cgroup-v2.rst): the one boundary that a double fork cannot leave.
//!
//! Refuses: cgroups that we did not make, and guessing from the kernel's version. It tries
//! and sees.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::base::signal::Signal;
use crate::sys::signals::signal_checked;

/// Rounds of kill where the kernel has no `cgroup.kill` (before 5.14): what forks between
/// reading and killing is met in the next round, and frozen in any case.
const KILL_ROUNDS_MAX: usize = 16;

/// Deepest nesting followed inside a unit; a service with more is killed all the same, since
/// `cgroup.kill` has no depth.
const DEPTH_MAX: usize = 16;

/// `<our own cgroup>/upright-<label>`.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    /// The same as /proc/PID/cgroup names it.
    name: String,
}

/// The cgroup of one unit.
#[derive(Debug)]
pub struct UnitGroup {
    path: PathBuf,
    name: String,
    /// `cgroup.events`, kept open: asked often, and pollable.
    events: File,
    past: Past,
    /// Inode of its directory, which is how the kernel names it to `sys::pidfd`.
    id: u64,
}

/// What may have happened to a cgroup before a child is to be born in it. Kernels that know of
/// the race between fork and `cgroup.kill` (6.14, and the stable ones of 2025) count kills in
/// each cgroup, and at a birth by CLONE_INTO_CGROUP compare the count of the parent's cgroup
/// with that of the child's: after one `cgroup.kill` every later child is killed at birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// Made by us, and never killed.
    Clean,
    /// Killed, or found here: an earlier engine may have.
    Killed,
}

impl Tree {
    /// Makes the tree below the cgroup that we are in, or takes it over when an earlier
    /// engine of the same label made it. None: no cgroup2 mount that we may write to.
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM, EIO, ENOSPC: whether there is one cannot be told now.
    pub fn create(label: &str) -> io::Result<Option<Tree>> {
        let made = own_group().and_then(|own| own.map(|own| Tree::below(&own, label)).transpose());
        match made {
            Err(error) if !is_passing(&error) => Ok(None),
            made => made,
        }
    }

    fn below(own: &OwnGroup, label: &str) -> io::Result<Tree> {
        checked_word(label)?;
        // Moving a process needs write access here too, the common ancestor (cgroup-v2.rst,
        // "Delegation Containment").
        access(&own.path.join("cgroup.procs"), AccessFlags::W_OK)?;
        let word = format!("upright-{label}");
        let path = own.path.join(&word);
        make_dir(&path)?;
        access(&path.join("cgroup.procs"), AccessFlags::W_OK)?;
        Ok(Tree { path, name: format!("{}/{word}", own.name.trim_end_matches('/')) })
    }

    /// The cgroup of this unit, made where it is missing.
    ///
    /// # Errors
    /// As mkdir(2); ENOSPC at the kernel's limit of descendants; InvalidInput for a name with `/`.
    pub fn unit(&self, name: &str) -> io::Result<UnitGroup> {
        checked_word(name)?;
        // The prefix keeps a unit called `cgroup.procs` away from the kernel's own files.
        let word = format!("unit-{name}");
        let path = self.path.join(&word);
        let past = make_dir(&path)?;
        let events = File::open(path.join("cgroup.events"))?;
        let id = fs::metadata(&path)?.ino();
        Ok(UnitGroup { path, name: format!("{}/{word}", self.name), events, past, id })
    }

    /// The unit in whose cgroup, or below, this process is now.
    pub fn unit_of(&self, pid: i32) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let inside = group_name(&text)?.strip_prefix(&self.name)?.strip_prefix("/unit-")?;
        inside.split('/').next().map(str::to_string)
    }

    /// Names of the units that have a cgroup here, empty or not.
    ///
    /// # Errors
    /// As open(2).
    pub fn units(&self) -> io::Result<Vec<String>> {
        let entries = children(&self.path)?.into_iter();
        Ok(entries
            .filter_map(|path| path.file_name()?.to_str()?.strip_prefix("unit-").map(str::to_string))
            .collect())
    }

    /// Removes what is empty here, and the tree itself.
    ///
    /// # Errors
    /// EBUSY while a process lives in it.
    pub fn remove(&self) -> io::Result<()> {
        remove_all(&self.path, 0)
    }
}

impl UnitGroup {
    /// The directory, for the child that is to be born in it.
    ///
    /// # Errors
    /// As open(2).
    pub fn dir_fd(&self) -> io::Result<OwnedFd> {
        Ok(OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(&self.path)?.into())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's number for it; another one once it was removed and made again.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// No process lives in it or below. Gone altogether is empty; unreadable is not.
    pub fn is_empty(&self) -> bool {
        let mut bytes = [0; 256];
        match self.events.read_at(&mut bytes, 0) {
            Ok(len) => {
                let text = bytes.get(..len).and_then(|bytes| std::str::from_utf8(bytes).ok());
                text.is_some_and(|text| text.lines().any(|line| line == "populated 0"))
            }
            Err(error) => error.raw_os_error() == Some(nix::libc::ENODEV),
        }
    }

    /// Readable for POLLPRI when `is_empty` may have changed since it was last asked.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// SIGKILL to everything inside, whatever it forks meanwhile.
    ///
    /// # Errors
    /// As write(2); an empty or removed cgroup is no error.
    pub fn kill(&mut self) -> io::Result<()> {
        self.past = Past::Killed;
        match write_file(&self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.kill_frozen(),
            done => done,
        }
    }

    /// A child born in it may be killed at once: remove it and make it again, once it is empty.
    pub fn is_spent(&self) -> bool {
        self.past == Past::Killed
    }

    fn kill_frozen(&self) -> io::Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let _ = write_file(&self.path.join("cgroup.freeze"), "1"); // before 5.2 there is none
        let mut result = Ok(());
        for _ in 0..KILL_ROUNDS_MAX {
            result = self.signal_all(Signal::KILL).map(|_| ());
            if self.is_empty() {
                break;
            }
        }
        let _ = write_file(&self.path.join("cgroup.freeze"), "0"); // the killed die when thawed
        result
    }

    /// Signals every process inside, each checked to be inside after it is pinned. How many.
    ///
    /// # Errors
    /// The first that was refused; the others are signalled all the same.
    pub fn signal_all(&self, signal: Signal) -> io::Result<usize> {
        let pids = self.pids()?;
        let mut refused = None;
        for pid in &pids {
            if let Err(error) = signal_checked(*pid, signal, |pid| self.contains(pid)) {
                refused.get_or_insert(error);
            }
        }
        refused.map_or(Ok(pids.len()), Err)
    }

    /// Pids inside, in no order.
    ///
    /// # Errors
    /// As open(2): they cannot be seen now.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        pids_of(&self.path, 0, &mut pids)?;
        Ok(pids)
    }

    /// This process is inside, or below.
    pub fn contains(&self, pid: i32) -> bool {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let Some(found) = group_name(&text) else {
            return false;
        };
        found.strip_prefix(&self.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Writes a control, such as `memory.max`.
    ///
    /// # Errors
    /// NotFound where the controller is not enabled here.
    pub fn set(&self, control: &str, value: &str) -> io::Result<()> {
        checked_word(control)?;
        write_file(&self.path.join(control), value)
    }

    /// Removes it with whatever empty cgroups the service made inside.
    ///
    /// # Errors
    /// EBUSY while a process lives in it. Gone already is no error.
    pub fn remove(&self) -> io::Result<()> {
        remove_all(&self.path, 0)
    }
}

struct OwnGroup {
    path: PathBuf,
    name: String,
}

/// The cgroup that we are in, as a path in the first cgroup2 mount that shows it.
fn own_group() -> io::Result<Option<OwnGroup>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let Some(name) = group_name(&text) else { return Ok(None) };
    for (root, point) in cgroup2_mounts(&mounts) {
        let Some(path) = under_mount(&root, &point, name) else { continue };
        if path.join("cgroup.procs").try_exists()? {
            return Ok(Some(OwnGroup { path, name: name.to_string() }));
        }
    }
    Ok(None)
}

/// Short of something, or a disk's trouble: it says nothing about what is there.
fn is_passing(error: &io::Error) -> bool {
    use nix::libc::{EIO, EMFILE, ENFILE, ENOMEM, ENOSPC};
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOMEM | EIO | ENOSPC))
}

/// The `0::` line of a /proc/PID/cgroup; None for a process outside of our cgroup namespace.
fn group_name(text: &str) -> Option<&str> {
    let name = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    (name.starts_with('/') && !name.starts_with("/..")).then_some(name)
}

/// (root, mount point) of each cgroup2 mount, wherever it is: `/sys/fs/cgroup`, or
/// `/sys/fs/cgroup/unified` beside version 1.
fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = (String, PathBuf)> {
    mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        Some((unescaped(fields.next()?), PathBuf::from(unescaped(fields.next()?))))
    })
}

/// mountinfo writes blanks as `\040` (proc_pid_mountinfo(5)).
fn unescaped(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn under_mount(root: &str, point: &Path, name: &str) -> Option<PathBuf> {
    let rest = if root == "/" { name } else { name.strip_prefix(root)? };
    if !(rest.is_empty() || rest.starts_with('/')) {
        return None;
    }
    Some(point.join(rest.trim_start_matches('/')))
}

fn checked_word(word: &str) -> io::Result<()> {
    let bad = word.is_empty() || word == "." || word == ".." || word.contains(['/', '\0']);
    if bad { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
}

fn make_dir(path: &Path) -> io::Result<Past> {
    match fs::create_dir(path) {
        Ok(()) => Ok(Past::Clean),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Past::Killed),
        Err(error) => Err(error),
    }
}

fn write_file(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// What is gone has none; what cannot be looked into now is an error.
fn children(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Err(error) if !is_passing(&error) => return Ok(Vec::new()),
        entries => entries?,
    };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(dirs.map(|entry| entry.path()).collect())
}

fn pids_of(path: &Path, depth: usize, out: &mut Vec<i32>) -> io::Result<()> {
    let text = match fs::read_to_string(path.join("cgroup.procs")) {
        Err(error) if !is_passing(&error) => String::new(),
        text => text?,
    };
    out.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1));
    if depth < DEPTH_MAX {
        for child in children(path)? {
            pids_of(&child, depth + 1, out)?;
        }
    }
    Ok(())
}

fn remove_all(path: &Path, depth: usize) -> io::Result<()> {
    if depth < DEPTH_MAX {
        for child in children(path)? {
            remove_all(&child, depth + 1)?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::io::Read;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use crate::sys::spawn::{ChildPlan, spawn};

    const HYBRID: &str = "\
29 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
30 29 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
31 29 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,name=systemd
40 29 0:27 /user.slice /mnt/with\\040blank rw - cgroup2 none rw
";

    #[test]
    fn the_mount_is_found_by_its_kind() {
        let found: Vec<_> = cgroup2_mounts(HYBRID).collect();
        let unified = PathBuf::from("/sys/fs/cgroup/unified");
        let blank = PathBuf::from("/mnt/with blank");
        assert_eq!(found, [("/".to_string(), unified.clone()), ("/user.slice".to_string(), blank.clone())]);
        assert_eq!(under_mount("/", &unified, "/"), Some(unified.clone()));
        assert_eq!(under_mount("/", &unified, "/a/b"), Some(unified.join("a/b")));
        assert_eq!(under_mount("/user.slice", &blank, "/user.slice/me"), Some(blank.join("me")));
        assert_eq!(under_mount("/user.slice", &blank, "/user.slices"), None);
    }

    /// The way of kernels before 5.14.
    #[test]
    fn without_cgroup_kill_everything_dies_too() {
        let label = format!("frozen-{}", std::process::id());
        let Some(tree) = Tree::create(&label).expect("it can be told") else {
            eprintln!("skipped: no cgroup2 that we may write to");
            return;
        };
        let unit = tree.unit("x").expect("unit");
        let procs = unit.dir_fd().expect("directory");
        let argv = ["sh", "-c", "sleep 1000 & sleep 1000 & wait"].map(|arg| CString::new(arg).expect("arg"));
        let plan = ChildPlan { path: c"/bin/sh".into(), argv: argv.to_vec(), ..ChildPlan::default() };
        let born = spawn(&plan, &[], Some(procs.as_fd())).expect("spawned");
        let mut end = [0; 5];
        let mut outcome = File::from(born.outcome);
        pollable(&outcome);
        assert_eq!(outcome.read(&mut end).expect("executed"), 0);
        unit.kill_frozen().expect("kill");
        let pid = nix::unistd::Pid::from_raw(born.pid);
        let status = nix::sys::wait::waitpid(pid, None).expect("reaped");
        let killed = nix::sys::signal::Signal::SIGKILL;
        assert_eq!(status, nix::sys::wait::WaitStatus::Signaled(pid, killed, false));
        while !unit.is_empty() {
            let mut fds = [PollFd::new(unit.events_fd(), PollFlags::POLLPRI)];
            assert_eq!(poll(&mut fds, PollTimeout::from(30_000_u16)), Ok(1));
        }
        tree.remove().expect("removed");
    }

    fn pollable(fd: &File) {
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(30_000_u16)), Ok(1));
    }

    #[test]
    fn our_line_is_the_one_of_version_2() {
        assert_eq!(group_name("8:pids:/x\n0::/a b\n"), Some("/a b"));
        assert_eq!(group_name("0::/../outside\n"), None);
        assert_eq!(group_name("8:pids:/x\n"), None);
        for bad in ["", ".", "..", "a/b"] {
            assert!(checked_word(bad).is_err(), "{bad:?}");
        }
    }
}
