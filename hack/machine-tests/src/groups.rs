//! cgroups of the machine, as a kubelet with the driver `cgroupfs` makes them.

use std::{fs, path::PathBuf};

use vivarium_machine_tests::config::Pod;

use crate::failure::{self, Failure, directory, read};

/// Where the one hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that a kubelet hands to pods.
pub const CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// A group by its path from the root of the hierarchy.
pub fn path(group: &str) -> PathBuf {
    PathBuf::from(format!("{ROOT}{group}"))
}

/// Makes the parent of a pod's containers, with every controller handed on to them.
pub fn make_pod(pod: &Pod) -> Result<(), Failure> {
    let wanted = CONTROLLERS.map(|name| format!("+{name}")).join(" ");
    for group in [String::new(), "/kubepods".into(), pod.cgroup()] {
        directory(path(&group))?;
        failure::write(path(&group).join("cgroup.subtree_control"), &wanted)?;
    }
    Ok(())
}

/// Removes what [`make_pod`] made; that nothing is in it is for the kernel to say.
pub fn remove_pod(pod: &Pod) -> Result<(), Failure> {
    let path = path(&pod.cgroup());
    // It is there, because the runtime removes no group that it did not make.
    fs::remove_dir(&path).map_err(|error| Failure(format!("cannot remove the cgroup {}: {error}", path.display())))
}

/// The group of a container: the one below the pod's whose name holds its id.
pub fn of_container(pod: &Pod, container: &str) -> Result<PathBuf, Failure> {
    let parent = path(&pod.cgroup());
    let found = fs::read_dir(&parent)?.flatten().find(|entry| entry.file_name().to_string_lossy().contains(container));
    found
        .map(|entry| entry.path())
        .ok_or_else(|| Failure(format!("{} holds no group of {container}", parent.display())))
}

/// The number after `name` in a file of lines `name number`.
pub fn counter(group: &std::path::Path, file: &str, name: &str) -> Result<u64, Failure> {
    let text = read(group.join(file))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.ok_or_else(|| Failure(format!("{}/{file} has no number {name}: {text}", group.display())))
}
