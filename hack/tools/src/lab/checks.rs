//! What must hold on this machine before a lab can be. Everything that is missing is told at once.

use std::{fs, path::Path};

use vivarium_sys::kernel;

use super::{
    error::{Error, refused},
    state::Layout,
};
use crate::{build, cache};

/// Free space for the disks of nodes with a few environments on them, and for the object store.
const LAB_GIB: u64 = 5;

/// Free space for programs and images, and for what they are built from, where they are not in the cache.
const BUILD_GIB: u64 = 10;

/// What was found on the machine.
struct Machine {
    is_root: bool,
    /// As uname(2) says it.
    kernel: String,
    filesystems: String,
    user_namespaces: u64,
    has_cgroups: bool,
    disks: Vec<Disk>,
}

/// Room at a place.
struct Disk {
    place: String,
    free_gib: u64,
    needed_gib: u64,
}

/// Refuses with a list of all that is missing.
pub fn machine(layout: &Layout) -> Result<(), Error> {
    // Loads the module where it is one; what matters is whether it is there afterwards.
    for module in ["btrfs", "overlay"] {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !has(&known, module) {
            let _ = std::process::Command::new("modprobe").arg(module).output();
        }
    }
    let maximum = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let machine = Machine {
        is_root: rustix::process::geteuid().is_root(),
        kernel: kernel::release(),
        filesystems: fs::read_to_string("/proc/filesystems").unwrap_or_default(),
        user_namespaces: maximum.trim().parse().unwrap_or(0),
        has_cgroups: Path::new("/sys/fs/cgroup/memory").is_dir()
            || Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        disks: disks(layout)?,
    };
    let missing = missing(&machine);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(refused(format!("the lab cannot run here:\n  {}", missing.join("\n  "))))
    }
}

fn has(filesystems: &str, name: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().last() == Some(name))
}

fn missing(machine: &Machine) -> Vec<String> {
    let mut missing = Vec::new();
    let mut require = |holds: bool, sentence: &str| {
        if !holds {
            missing.push(sentence.to_owned());
        }
    };
    require(machine.is_root, "root: run it as root, it makes namespaces, mounts and cgroups");
    let sentence = format!(
        "Linux {}.{} or newer: this is {} (Debian 12 has a newer one in its backports: linux-image-amd64)",
        kernel::OLDEST.0,
        kernel::OLDEST.1,
        machine.kernel
    );
    require(!kernel::is_too_old(&machine.kernel), &sentence);
    for name in ["btrfs", "overlay"] {
        let sentence = format!(
            "the kernel has no {name} (not in /proc/filesystems): load the module or take a kernel that has it"
        );
        require(has(&machine.filesystems, name), &sentence);
    }
    require(
        machine.user_namespaces > 0,
        "user namespaces are off: sysctl user.max_user_namespaces=100000 (or a kernel with CONFIG_USER_NS)",
    );
    require(
        machine.has_cgroups,
        "no memory controller at /sys/fs/cgroup: mount cgroup2 or the cgroup v1 controllers there",
    );
    for Disk { place, free_gib, needed_gib } in &machine.disks {
        let sentence = format!(
            "{free_gib} GiB are free at {place} and {needed_gib} are needed: free some, or set VIVARIUM_LAB and \
             VIVARIUM_CACHE"
        );
        require(free_gib >= needed_gib, &sentence);
    }
    missing
}

/// What is still to be made wants room; what an earlier run made has it already.
fn disks(layout: &Layout) -> Result<Vec<Disk>, Error> {
    let lab = if layout.cluster()?.is_some() { 0 } else { LAB_GIB };
    let build = if build::has_programs()? { 0 } else { BUILD_GIB };
    let places = [(layout.root().to_path_buf(), lab), (cache::root(), build)];
    Ok(places.iter().filter_map(|(path, needed)| disk(path, *needed)).collect())
}

/// Of a place that need not exist yet.
fn disk(path: &Path, needed_gib: u64) -> Option<Disk> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
    let space = rustix::fs::statvfs(existing).ok()?;
    let free_gib = (space.f_bavail * space.f_frsize) >> 30;
    Some(Disk { place: path.display().to_string(), free_gib, needed_gib })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(free_gib: u64) -> Disk {
        Disk { place: "/var".into(), free_gib, needed_gib: LAB_GIB }
    }

    fn good() -> Machine {
        Machine {
            is_root: true,
            kernel: "6.7.0-amd64".into(),
            filesystems: "nodev\toverlay\n\tbtrfs\n".into(),
            user_namespaces: 1,
            has_cgroups: true,
            disks: vec![disk(LAB_GIB)],
        }
    }

    #[test]
    fn a_good_machine_lacks_nothing() {
        assert!(missing(&good()).is_empty());
    }

    #[test]
    fn each_thing_that_is_missing_is_named() {
        for (machine, word) in [
            (Machine { is_root: false, ..good() }, "root"),
            (Machine { kernel: "6.6.13+bpo-amd64".into(), ..good() }, "Linux 6.7"),
            (Machine { kernel: "5.15.0".into(), ..good() }, "5.15.0"),
            (Machine { filesystems: "\tbtrfs\n".into(), ..good() }, "overlay"),
            (Machine { filesystems: "nodev\toverlay\n\tbtrfs2\n".into(), ..good() }, "btrfs"),
            (Machine { user_namespaces: 0, ..good() }, "user.max_user_namespaces"),
            (Machine { has_cgroups: false, ..good() }, "cgroup"),
            (Machine { disks: vec![disk(LAB_GIB), disk(3)], ..good() }, "3 GiB are free at /var and 5 are needed"),
        ] {
            let missing = missing(&machine);
            assert!(missing.len() == 1 && missing[0].contains(word), "{missing:?} should name {word}");
        }
    }
}
