//! What a pod left behind: cgroups, processes, mounts, files of the runtime's or of containerd's state.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use vivarium_api::names::{GUEST_REPORTS, SHIM_BINARY};
use vivarium_machine_tests::config::Pod;

use crate::{failure::Failure, groups, processes};

/// Trees in which files named after a sandbox or a container are looked for.
const STATE: [&str; 5] = ["/run", "/tmp", "/var/lib/containerd", "/var/lib/cni", "/var/lib/vivarium/state"];
/// Deep enough for every state directory of containerd; content of images lies deeper.
const DEPTH: usize = 6;

/// What was there before the pod.
#[derive(Debug)]
pub struct Baseline {
    mounts: BTreeSet<String>,
    shims: BTreeSet<u32>,
}

impl Baseline {
    /// Looks now.
    pub fn take() -> Result<Self, Failure> {
        Ok(Self { mounts: mounts()?, shims: shims().collect() })
    }

    /// What is there now of the pod whose sandbox and containers have these ids, one line each.
    pub fn remains(&self, pod: &Pod, ids: &[&str]) -> Result<Vec<String>, Failure> {
        let mut found: Vec<String> = Vec::new();
        found.extend(subgroups(&groups::path(&pod.cgroup())).iter().map(|path| format!("cgroup {}", path.display())));
        let of_pod = processes::all().into_iter().filter(|process| process.group.contains(&pod.uid));
        found.extend(of_pod.map(|process| format!("process {} {}", process.pid, process.program.display())));
        found.extend(shims().filter(|pid| !self.shims.contains(pid)).map(|pid| format!("shim, process {pid}")));
        found.extend(mounts()?.difference(&self.mounts).map(|place| format!("mount at {place}")));
        for tree in STATE {
            named_after(Path::new(tree), ids, DEPTH, &mut found);
        }
        let reports = fs::read_dir(GUEST_REPORTS).into_iter().flatten().flatten();
        found.extend(reports.map(|entry| format!("guest report {}", entry.path().display())));
        Ok(found)
    }
}

fn shims() -> impl Iterator<Item = u32> {
    let is_shim = |program: &Path| {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(SHIM_BINARY) || name.starts_with("containerd-shim-runc")
    };
    processes::all().into_iter().filter(move |process| is_shim(&process.program)).map(|process| process.pid)
}

/// Places of mounts in the machine's own mount namespace.
fn mounts() -> Result<BTreeSet<String>, Failure> {
    let table = crate::failure::read("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect())
}

fn subgroups(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn named_after(directory: &Path, ids: &[&str], depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if ids.iter().any(|id| name.contains(id)) {
            found.push(format!("file {}", path.display()));
        } else if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            named_after(&path, ids, depth - 1, found);
        }
    }
}
