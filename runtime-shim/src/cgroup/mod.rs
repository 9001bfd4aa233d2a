//! Control groups of a container: where they are ([`Layout`]), placing, delegating, killing, freezing and removing
//! ([`Group`]). libcgroups only applies the limits at creation; it neither delegates nor removes what a guest made.
//!
//! Two layouts exist. *Unified*: one cgroup v2 hierarchy. *Hybrid*: v1 controllers plus an empty v2 hierarchy at
//! `unified`; every container has a group of the same path in all of them, and the v2 one serves to kill, freeze and
//! delegate, whatever the controllers are.

mod layout;
pub mod oom;
pub mod stats;
pub mod update;

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use layout::{Hierarchy, Layout};

use crate::error::{Attempt, Error, Result};

/// How long processes may take to leave a group after they were killed. A process in uninterruptible sleep can exceed
/// any limit; the caller is then told.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The groups of one container, one per hierarchy.
#[derive(Clone, Debug)]
pub struct Group {
    layout: Layout,
    path: PathBuf,
}

impl Group {
    /// The groups with this path (`linux.cgroupsPath` of the spec).
    ///
    /// # Errors
    /// The path must be absolute and free of `..`; a systemd path (`slice:prefix:name`) is refused.
    pub fn new(layout: Layout, cgroups_path: &Path) -> Result<Self> {
        let plain = cgroups_path
            .components()
            .all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_)));
        if cgroups_path.to_string_lossy().contains(':') {
            return Err(Error::Refused(format!(
                "the cgroup path {} is for systemd's cgroup driver, which this runtime does not serve yet; set \
                 SystemdCgroup = false for the runtime in containerd's configuration and cgroupDriver: cgroupfs in \
                 the kubelet's",
                cgroups_path.display()
            )));
        }
        let relative = cgroups_path.strip_prefix("/").ok().filter(|p| !p.as_os_str().is_empty());
        match relative {
            Some(path) if plain => Ok(Self { layout, path: path.into() }),
            _ => Err(Error::Refused(format!(
                "the cgroup path {} of the container is not an absolute path below the root group",
                cgroups_path.display()
            ))),
        }
    }

    /// Layout of the host.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Directory in the hierarchy of a v1 controller, or in the unified one.
    #[must_use]
    pub fn dir(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.mount.join(&self.path)
    }

    /// Directory in the v2 hierarchy, on either layout.
    #[must_use]
    pub fn unified(&self) -> Option<PathBuf> {
        self.layout.unified.as_ref().map(|h| self.dir(h))
    }

    /// Directory of a v1 controller, if the host has that controller on v1.
    #[must_use]
    pub fn v1(&self, controller: &str) -> Option<PathBuf> {
        self.layout.v1.iter().find(|h| h.controls(controller)).map(|h| self.dir(h))
    }

    /// All directories, for the journal.
    #[must_use]
    pub fn dirs(&self) -> Vec<PathBuf> {
        self.layout.v1.iter().chain(self.layout.unified.as_ref()).map(|h| self.dir(h)).collect()
    }

    /// Makes those groups that libcgroups does not make, and moves the calling process into them, so that all that it
    /// starts is in them from its first instruction on. On a hybrid host these are the named hierarchies and `unified`
    /// (systemd as a guest would see the host's otherwise); on a unified one libcgroups does it all, but the group is
    /// made here so that it can be delegated.
    pub fn create_and_join(&self) -> Result<()> {
        if self.layout.v1.is_empty() {
            if let Some(dir) = self.unified() {
                fs::create_dir_all(&dir).attempt(|| format!("create the control group {}", dir.display()))?;
            }
            return Ok(());
        }
        for hierarchy in self.layout.v1.iter().filter(|h| h.is_named()).chain(self.layout.unified.as_ref()) {
            let dir = self.dir(hierarchy);
            fs::create_dir_all(&dir).attempt(|| format!("create the control group {}", dir.display()))?;
            write_existing(&dir.join("cgroup.procs"), "0")
                .attempt(|| format!("join the control group {}", dir.display()))?;
        }
        Ok(())
    }

    /// Gives the v2 group to the root user of a container, as `cgroups(7)` describes delegation: the directory and the
    /// files that the kernel lists. `cgroup.freeze`, `cgroup.kill` and every limit stay ours.
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<()> {
        let Some(dir) = self.unified() else { return Ok(()) };
        chown(&dir, Some(uid), Some(gid)).attempt(|| format!("delegate {}", dir.display()))?;
        let list = fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap_or_default();
        for name in list.lines() {
            let file = dir.join(name);
            match chown(&file, Some(uid), Some(gid)) {
                // The list names files of controllers that this group has not.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.attempt(|| format!("delegate {}", file.display()))?,
            }
        }
        Ok(())
    }

    /// Processes in the group and below it.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let dir = self.v1("pids").or_else(|| self.v1("memory")).or_else(|| self.unified());
        let mut pids = Vec::new();
        if let Some(dir) = dir {
            collect_pids(&dir, &mut pids).attempt(|| format!("list the processes of {}", dir.display()))?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Kills every process of the container.
    pub fn kill(&self) -> Result<()> {
        kill_all(&self.dirs())
    }

    /// Removes the groups that the guest made below its own, and takes back the controllers that it handed on to them:
    /// both are in the way of a new boot, since a group that hands on controllers takes no process of its own
    /// (cgroups(7)). All of the guest's processes must be gone.
    pub fn remove_children(&self) -> Result<()> {
        for dir in self.dirs() {
            for child in child_groups(&dir).attempt(|| format!("list {}", dir.display()))? {
                remove_tree(&child)?;
            }
        }
        self.unified().map_or(Ok(()), |dir| take_back_controllers(&dir))
    }

    /// Tells every process of the container to stand still, or to go on. Says where the kernel tells that they do, and in
    /// which words.
    pub fn ask_to_freeze(&self, frozen: bool) -> Result<(PathBuf, &'static str)> {
        let (file, value, state, settled) =
            if let Some(dir) = self.unified().filter(|d| d.join("cgroup.freeze").exists()) {
                let settled = if frozen { "frozen 1" } else { "frozen 0" };
                (dir.join("cgroup.freeze"), if frozen { "1" } else { "0" }, dir.join("cgroup.events"), settled)
            } else if let Some(dir) = self.v1("freezer") {
                let value = if frozen { "FROZEN" } else { "THAWED" };
                (dir.join("freezer.state"), value, dir.join("freezer.state"), value)
            } else {
                return Err(Error::WrongState("the host has no freezer for control groups".into()));
            };
        write_existing(&file, value).attempt(|| format!("write {value} to {}", file.display()))?;
        Ok((state, settled))
    }

    /// Stops (or lets go on) every process of the container, and waits until the kernel says so. If it does not in time,
    /// everything is as before.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let (state, settled) = self.ask_to_freeze(frozen)?;
        let start = Instant::now();
        let limit = Duration::from_secs(5);
        loop {
            let text = fs::read_to_string(&state).attempt(|| format!("read {}", state.display()))?;
            if text.lines().any(|line| line == settled) {
                return Ok(());
            }
            if start.elapsed() > limit {
                self.ask_to_freeze(!frozen).ok();
                return Err(Error::Deadline { attempt: format!("freezing {}", self.path.display()), limit });
            }
            // Freezing has no event that a file descriptor of a v1 freezer would give; it takes microseconds.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Kills and removes groups of a container that may be half-made or half-removed. Groups above them are the kubelet's
/// and stay.
pub fn destroy(dirs: &[PathBuf]) -> Result<()> {
    kill_all(dirs)?;
    for dir in dirs {
        remove_tree(dir)?;
    }
    Ok(())
}

/// Kills until no process is left in any of the groups. `cgroup.kill` of a v2 group kills all at once, even while they
/// fork; on v1 one must repeat, since a process may fork between listing and killing. A v1 freezer is thawed, for a
/// process frozen by it does not die.
fn kill_all(dirs: &[PathBuf]) -> Result<()> {
    let start = Instant::now();
    loop {
        let mut pids = Vec::new();
        for dir in dirs {
            match write_existing(&dir.join("cgroup.kill"), "1") {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.attempt(|| format!("kill the processes of {}", dir.display()))?,
            }
            if dir.join("freezer.state").exists() {
                write_existing(&dir.join("freezer.state"), "THAWED").attempt(|| format!("thaw {}", dir.display()))?;
            }
            collect_pids(dir, &mut pids).attempt(|| format!("list the processes of {}", dir.display()))?;
        }
        pids.sort_unstable();
        pids.dedup();
        if pids.is_empty() {
            return Ok(());
        }
        if start.elapsed() > KILL_LIMIT {
            return Err(Error::Deadline {
                attempt: format!("killing the processes {pids:?} of the container (they may hang in the kernel)"),
                limit: KILL_LIMIT,
            });
        }
        for pid in pids {
            if let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(rustix::process::Pid::from_raw) {
                // Whoever died meanwhile is what was wanted.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Writes a file of a control group. One that is missing is ENOENT; opened with `O_CREAT` it would be EACCES.
fn write_existing(file: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// Lets a v2 group hand on no controllers. On a hybrid host there are none.
fn take_back_controllers(dir: &Path) -> Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let handed_on = match fs::read_to_string(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.attempt(|| format!("read {}", file.display()))?,
    };
    match without(&handed_on) {
        change if change.is_empty() => Ok(()),
        change => write_existing(&file, &change).attempt(|| format!("write {change} to {}", file.display())),
    }
}

/// What to write to `cgroup.subtree_control` so that none of the controllers in it stays.
fn without(controllers: &str) -> String {
    controllers.split_whitespace().map(|name| format!("-{name}")).collect::<Vec<_>>().join(" ")
}

fn child_groups(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

fn collect_pids(dir: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
        // Gone, or a threaded group, whose processes its parent lists.
        Err(error) if matches!(error.raw_os_error(), Some(2 | 19 | 95)) => {}
        Err(error) => return Err(error),
    }
    for child in child_groups(dir)? {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

/// Removes a group and all below it. A group stays busy for a moment after its last process has died, until that one
/// is reaped, so it is tried again.
fn remove_tree(dir: &Path) -> Result<()> {
    for child in child_groups(dir).attempt(|| format!("list {}", dir.display()))? {
        remove_tree(&child)?;
    }
    let start = Instant::now();
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < KILL_LIMIT => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error).attempt(|| format!("remove the control group {}", dir.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_is_taken_back() {
        assert_eq!(without("cpu memory pids\n"), "-cpu -memory -pids");
        assert_eq!(without("\n"), "");
    }
}
