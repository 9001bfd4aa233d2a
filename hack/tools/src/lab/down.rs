//! `lab down`: ends what the lab started and nothing else, then looks whether anything of it is left.

use std::{fs, path::Path, time::Duration};

use rustix::mount::{UnmountFlags, unmount};

use super::{
    cgroup,
    error::{Error, errno, io, refused},
    loops, network, node,
    process::{self, Record},
    state::{Cluster, Layout, StoreKind},
};
use crate::cache;

const END: Duration = Duration::from_secs(20);
/// More nodes than a lab can have: their namespaces are looked for even when `lab.json` cannot be read.
pub const MOST_NODES: u8 = 50;

/// The whole command.
pub fn down(layout: &Layout) -> Result<(), Error> {
    let cache = cache::root();
    let _lock = cache::lock("lab").map_err(io("lock", cache.display()))?;
    if layout.cluster()?.is_none() && leftovers(layout)?.is_empty() {
        println!("there is no lab at {}", layout.root().display());
        return Ok(());
    }
    take_down(layout)?;
    println!("the lab is down; no process, mount, loop device, cgroup or namespace is left");
    Ok(())
}

/// Takes everything away that belongs to the lab of this directory.
pub fn take_down(layout: &Layout) -> Result<(), Error> {
    // The size does not matter for what is not there, and a damaged file must not stand in the way of a clean-up.
    let cluster = layout.cluster().ok().flatten().unwrap_or_else(|| Cluster::new(MOST_NODES, StoreKind::Local));
    for node in cluster.nodes() {
        node::power_off(layout, node)?;
    }
    for (_, record) in process::all(layout)? {
        record.kill(END)?;
    }
    for mount in mounts_below(layout.root())? {
        unmount(&mount, UnmountFlags::DETACH).map_err(errno("unmount", mount))?;
    }
    loops::detach_below(layout.root())?;
    // They were started by hand; a namespace without a name could not be asked for them any more.
    let mut strangers = Vec::new();
    for namespace in network::present() {
        let processes = network::processes(&namespace).into_iter();
        strangers.extend(processes.map(|process| format!("process {process} in network namespace {namespace}")));
        network::remove(&namespace)?;
    }
    cgroup::remove_all()?;
    remove_directory(layout)?;
    let mut leftovers = leftovers(layout)?;
    leftovers.extend(strangers);
    if leftovers.is_empty() { Ok(()) } else { Err(Error::Leftovers(leftovers)) }
}

/// Removes the state, but only of a directory that is known for a lab's.
fn remove_directory(layout: &Layout) -> Result<(), Error> {
    let root = layout.root();
    if !root.exists() {
        return Ok(());
    }
    if !layout.marker().exists() {
        return Err(refused(format!("{} has no lab.json, so it is not removed", root.display())));
    }
    // The marker goes last: an interrupted removal can be repeated.
    let entries = fs::read_dir(root).map_err(io("read", root.display()))?;
    for entry in entries {
        let path = entry.map_err(io("read", root.display()))?.path();
        if path == layout.marker() {
            continue;
        }
        let removed =
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(io("remove", path.display()))?;
    }
    fs::remove_dir_all(root).map_err(io("remove", root.display()))
}

/// Everything of a lab that is there, one sentence each.
pub fn leftovers(layout: &Layout) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let alive = |record: &Record| record.is_alive();
    for (name, record) in process::all(layout)?.iter().filter(|(_, record)| alive(record)) {
        found.push(format!("process {} ({name})", record.pid()));
    }
    found.extend(in_cgroups()?);
    for namespace in network::present() {
        found.push(format!("network namespace {namespace} with {:?}", network::processes(&namespace)));
    }
    found.extend(mounts_below(layout.root())?.into_iter().map(|mount| format!("mount {mount}")));
    found.extend(loops::below(layout.root())?.into_iter().map(|device| format!("loop device {device}")));
    found.extend(cgroup::present()?.iter().map(|group| format!("cgroup {}", group.display())));
    if layout.root().exists() {
        found.push(format!("directory {}", layout.root().display()));
    }
    Ok(found)
}

/// Processes whose cgroup is the lab's: they were started on a node.
fn in_cgroups() -> Result<Vec<String>, Error> {
    let mine = format!("/{}/", cgroup::PARENT);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").map_err(io("read", "/proc"))?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if groups.contains(&mine) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push(format!("process {pid} ({}) in a cgroup of the lab", name.trim()));
        }
    }
    Ok(found)
}

/// Mount points below a path, the innermost first.
fn mounts_below(path: &Path) -> Result<Vec<String>, Error> {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(io("read", "/proc/self/mountinfo"))?;
    Ok(parse_mounts(&text, path))
}

fn parse_mounts(mountinfo: &str, path: &Path) -> Vec<String> {
    // Field 5 is the mount point (proc_pid_mountinfo(5)). The paths of a lab need no unescaping.
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<_> = points.filter(|point| Path::new(point).starts_with(path)).map(Into::into).collect();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_the_lab_are_found_innermost_first() {
        let info = "22 27 0:21 / /proc rw - proc proc rw\n\
            30 27 0:22 / /lab/nodes/n1 rw - tmpfs tmpfs rw\n\
            31 30 0:23 / /lab/nodes/n1/a rw shared:3 - tmpfs tmpfs rw\n\
            32 27 0:24 / /labx rw - tmpfs tmpfs rw\n";
        assert_eq!(parse_mounts(info, Path::new("/lab")), ["/lab/nodes/n1/a", "/lab/nodes/n1"]);
    }

    #[test]
    fn a_directory_that_is_no_labs_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("precious"), "").unwrap();
        let error = remove_directory(&Layout::at(folder.path())).unwrap_err();
        assert!(error.to_string().contains("no lab.json"));
        assert!(folder.path().join("precious").exists());
    }

    #[test]
    fn the_directory_of_a_lab_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("lab");
        let layout = Layout::at(&root);
        super::super::state::write(&layout.marker(), "{\"nodes\":1}").unwrap();
        super::super::state::write(&layout.log("x"), "").unwrap();
        std::os::unix::fs::symlink("/", layout.logs().join("link")).unwrap();
        remove_directory(&layout).unwrap();
        assert!(!root.exists());
    }
}
