//! The cgroups of the nodes: `vivarium-lab/<node>` in every hierarchy, which is the kubelet's `cgroupRoot`. Made before
//! a node starts, because the kubelet does not make its root, and removed with what the node left below it.
//!
//! On hybrid machines (cgroup v1 controllers, cgroup2 without controllers at `unified`) each hierarchy gets the group; a
//! cpuset group is filled first, since nothing can join it while it has no CPUs. On a machine with cgroup2 alone the
//! controllers are handed down with `cgroup.subtree_control`; that part was written after the kernel's documentation and
//! has not been run yet.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    error::{Error, io},
    node::Node,
    wait,
};

const MOUNT: &str = "/sys/fs/cgroup";
/// Parent of the nodes' groups.
pub const PARENT: &str = "vivarium-lab";
/// Group of a killed process stays busy until the process is reaped.
const RELEASE: Duration = Duration::from_secs(20);

/// One hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// cgroup v1 with the controller cpuset.
    Cpuset,
    /// cgroup v1 with anything else.
    V1,
    V2,
}

/// Hierarchies in the text of `/proc/self/mounts`.
fn parse(mounts: &str) -> Vec<Hierarchy> {
    let hierarchy = |line: &str| {
        let mut fields = line.split(' ');
        let (mount, kind, options) = (fields.nth(1)?, fields.next()?, fields.next()?);
        let kind = match kind {
            "cgroup2" => Kind::V2,
            "cgroup" if options.split(',').any(|option| option == "cpuset") => Kind::Cpuset,
            "cgroup" => Kind::V1,
            _ => return None,
        };
        // A hierarchy that is mounted elsewhere too is the same one.
        Path::new(mount).starts_with(MOUNT).then(|| Hierarchy { mount: mount.into(), kind })
    };
    mounts.lines().filter_map(hierarchy).collect()
}

fn hierarchies() -> Result<Vec<Hierarchy>, Error> {
    let text = fs::read_to_string("/proc/self/mounts").map_err(io("read", "/proc/self/mounts"))?;
    Ok(parse(&text))
}

/// The kubelet's `cgroupRoot` of a node.
pub fn root(node: Node) -> String {
    format!("/{PARENT}/{}", node.name())
}

/// Makes the group of a node in every hierarchy.
pub fn create(node: Node) -> Result<(), Error> {
    for hierarchy in hierarchies()? {
        let parent = hierarchy.mount.join(PARENT);
        let group = parent.join(node.name());
        for (above, path) in [(&hierarchy.mount, &parent), (&parent, &group)] {
            fs::create_dir_all(path).map_err(io("create", path.display()))?;
            match hierarchy.kind {
                Kind::Cpuset => fill_cpuset(above, path)?,
                Kind::V2 => hand_down(above)?,
                Kind::V1 => {}
            }
        }
        if hierarchy.kind == Kind::V2 {
            hand_down(&group)?;
        }
    }
    Ok(())
}

fn fill_cpuset(above: &Path, path: &Path) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let value = fs::read_to_string(above.join(file)).map_err(io("read", above.join(file).display()))?;
        fs::write(path.join(file), value.trim()).map_err(io("write", path.join(file).display()))?;
    }
    Ok(())
}

/// Lets the children of a group have every controller that the group has; on hybrid machines there is none.
fn hand_down(group: &Path) -> Result<(), Error> {
    let file = group.join("cgroup.controllers");
    let controllers = fs::read_to_string(&file).map_err(io("read", file.display()))?;
    let file = group.join("cgroup.subtree_control");
    for controller in controllers.split_whitespace() {
        // Some controllers cannot be handed down everywhere (cpu with real-time processes); the kubelet tells which it
        // misses.
        if let Err(error) = fs::write(&file, format!("+{controller}")) {
            eprintln!("note: controller {controller} of {} cannot be handed down: {error}", group.display());
        }
    }
    Ok(())
}

/// Lets frozen processes of a node go on, because a frozen process of cgroup v1 does not die of a signal.
pub fn thaw(node: Node) -> Result<(), Error> {
    for hierarchy in hierarchies()? {
        walk(&hierarchy.mount.join(PARENT).join(node.name()), &mut |group| {
            let file = group.join("freezer.state");
            // A group that vanishes meanwhile needs no thawing.
            if file.exists() && fs::read_to_string(&file).is_ok_and(|state| state.trim() != "THAWED") {
                let _ = fs::write(&file, "THAWED");
            }
        });
    }
    Ok(())
}

/// Removes the groups below those of a node: what a power cut left.
pub fn clean(node: Node) -> Result<(), Error> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.mount.join(PARENT).join(node.name());
        for child in children(&group) {
            remove_tree(&child)?;
        }
    }
    Ok(())
}

/// Removes everything of the lab in every hierarchy.
pub fn remove_all() -> Result<(), Error> {
    hierarchies()?.iter().try_for_each(|hierarchy| remove_tree(&hierarchy.mount.join(PARENT)))
}

/// Groups of the lab that exist.
pub fn present() -> Result<Vec<PathBuf>, Error> {
    let all = hierarchies()?.into_iter().map(|hierarchy| hierarchy.mount.join(PARENT));
    Ok(all.filter(|path| path.exists()).collect())
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Children first.
fn walk(group: &Path, visit: &mut impl FnMut(&Path)) {
    for child in children(group) {
        walk(&child, visit);
    }
    visit(group);
}

fn remove_tree(group: &Path) -> Result<(), Error> {
    let mut groups = Vec::new();
    walk(group, &mut |path| groups.push(path.to_path_buf()));
    for path in groups {
        let what = format!("the removal of {}", path.display());
        let hint = "a process of the lab is still in it: see its cgroup.procs";
        wait::until(RELEASE, Duration::from_millis(20), &what, hint, || match fs::remove_dir(&path) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
            Err(error) => Err(io("remove", path.display())(error)),
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_told_apart() {
        let mounts = "proc /proc proc rw 0 0\n\
            cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0\n\
            cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n\
            cgroup /mnt/cpu cgroup rw,cpu 0 0\n";
        let expected = [("cpuset", Kind::Cpuset), ("systemd", Kind::V1), ("unified", Kind::V2)];
        let expected = expected.map(|(name, kind)| Hierarchy { mount: Path::new(MOUNT).join(name), kind });
        assert_eq!(parse(mounts), expected);
        let pure = parse("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n");
        assert_eq!(pure, [Hierarchy { mount: MOUNT.into(), kind: Kind::V2 }]);
    }
}
