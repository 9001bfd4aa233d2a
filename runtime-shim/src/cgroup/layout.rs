//! Which control group hierarchies the host has and where they are mounted, read from `/proc/self/mountinfo`.

use std::path::{Path, PathBuf};

use crate::error::{Attempt, Error, Result};

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where its root group is.
    pub mount: PathBuf,
    /// Controllers bound to it (v1), or its name as `name=systemd`; empty for v2.
    options: Vec<String>,
}

impl Hierarchy {
    /// Whether this v1 hierarchy has the controller.
    #[must_use]
    pub fn controls(&self, controller: &str) -> bool {
        self.options.iter().any(|option| option == controller)
    }

    /// Whether this is a v1 hierarchy without controllers.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.options.iter().any(|option| option.starts_with("name="))
    }

    /// Whether a line of `/proc/<pid>/cgroup` with this controller list is about this hierarchy.
    #[must_use]
    pub fn matches(&self, controllers: &str) -> bool {
        match controllers {
            "" => self.options.is_empty(),
            list => list.split(',').all(|name| self.options.iter().any(|option| option == name)),
        }
    }
}

/// The hierarchies of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// v1 hierarchies; none on a host with the unified layout.
    pub v1: Vec<Hierarchy>,
    /// The v2 hierarchy: the whole tree on a unified host, empty of controllers on a hybrid one.
    pub unified: Option<Hierarchy>,
}

/// v1 controllers that libcgroups may place a container under.
const V1_CONTROLLERS: &[&str] = &[
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
    "misc",
];

impl Layout {
    /// Looks at the mounts of this process.
    pub fn detect() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/mountinfo").attempt(|| "read /proc/self/mountinfo")?;
        let layout = Self::parse(&text);
        if layout.v1.is_empty() && layout.unified.is_none() {
            return Err(Error::Failed("No control group hierarchy is mounted below /sys/fs/cgroup.".into()));
        }
        Ok(layout)
    }

    /// Reads mountinfo (`proc_pid_mountinfo(5)`). Only mounts of a hierarchy's root below `/sys/fs/cgroup` count, the
    /// first of each.
    fn parse(mountinfo: &str) -> Self {
        let mut layout = Self { v1: Vec::new(), unified: None };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (Some(root), Some(point), Some(kind), Some(options)) =
                (left.get(3), left.get(4), right.first(), right.get(2))
            else {
                continue;
            };
            if *root != "/" || !Path::new(point).starts_with("/sys/fs/cgroup") {
                continue;
            }
            let mount = PathBuf::from(point);
            match *kind {
                "cgroup2" if layout.unified.is_none() => {
                    layout.unified = Some(Hierarchy { mount, options: Vec::new() });
                }
                "cgroup" => {
                    let options: Vec<String> = options
                        .split(',')
                        .filter(|o| V1_CONTROLLERS.contains(o) || o.starts_with("name="))
                        .map(String::from)
                        .collect();
                    if !options.is_empty() && !layout.v1.iter().any(|h| h.options == options) {
                        layout.v1.push(Hierarchy { mount, options });
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// Whether the host is of the unified layout.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.v1.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
35 99 0:28 /kubepods /var/lib/x/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn a_hybrid_host_is_read() {
        let layout = Layout::parse(HYBRID);
        assert!(!layout.is_unified());
        let mounts: Vec<_> = layout.v1.iter().map(|h| h.mount.to_str().unwrap()).collect();
        assert_eq!(mounts, ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/systemd"]);
        assert_eq!(layout.unified.unwrap().mount, Path::new("/sys/fs/cgroup/unified"));
        assert!(layout.v1[0].controls("cpuacct"));
        assert!(layout.v1[2].is_named());
    }

    #[test]
    fn a_unified_host_is_read() {
        let layout = Layout::parse("31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
        assert!(layout.is_unified());
        assert_eq!(layout.unified.unwrap().mount, Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn lines_of_a_process_find_their_hierarchy() {
        let layout = Layout::parse(HYBRID);
        for (controllers, mount) in [
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            ("memory", "/sys/fs/cgroup/memory"),
            ("name=systemd", "/sys/fs/cgroup/systemd"),
            ("", "/sys/fs/cgroup/unified"),
        ] {
            let found = layout.v1.iter().chain(layout.unified.as_ref()).find(|h| h.matches(controllers));
            assert_eq!(found.unwrap().mount, Path::new(mount), "{controllers:?}");
        }
    }
}
