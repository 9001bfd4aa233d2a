//! What hurts a node that goes on: daemons that end and are not started again, a disk that hangs. `heal` undoes it, and a
//! power cut ends it.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{fs::statfs, process::Signal};

use super::{
    error::{Error, errno, io, refused},
    node::{self, Node},
    process::{self, Record},
    state::Layout,
};
use crate::command;

/// The node's pool, the disk of its environments.
const POOL: &str = "/var/lib/vivarium/pool";
/// `BTRFS_SUPER_MAGIC`, statfs(2).
const BTRFS: i64 = 0x9123_683E;

/// Daemons of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "kebab-case")]
pub enum Daemon {
    Containerd,
    Kubelet,
    KubeProxy,
}

impl Daemon {
    fn program(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

fn init(layout: &Layout, node: Node) -> Result<Record, Error> {
    node.running(layout)?.ok_or_else(|| refused(format!("node {node} is off: hack/lab node power-on {node}")))
}

/// Kills a daemon. Nobody starts it again, because the node's init is stopped, and nothing else that ends meanwhile.
pub fn stop(layout: &Layout, node: Node, daemon: Daemon) -> Result<(), Error> {
    let init = init(layout, node)?;
    init.signal(Signal::STOP)?;
    let children = process::children(&init);
    let (_, pid) = children.iter().find(|(name, _)| name == daemon.program()).ok_or_else(|| {
        let heal = format!("hack/lab node heal {node} has it started again");
        refused(format!("{} does not run on {node}; {heal}", daemon.program()))
    })?;
    Record::of(&pid.to_string())?.signal(Signal::KILL)
}

/// Makes everything that writes to the node's pool wait.
pub fn hang_disk(layout: &Layout, node: Node) -> Result<(), Error> {
    let path = pool(&init(layout, node)?);
    // Anything else at that path is the machine's own file system.
    if !is_file_system_of_its_own(&path)? {
        return Err(refused(format!("node {node} has no pool at {POOL}: install Vivarium first")));
    }
    let freeze = ["fsfreeze", "--freeze", POOL].map(Into::into);
    Ok(command::run(&mut node::inside(layout, node, &freeze)?).map(drop)?)
}

fn is_file_system_of_its_own(path: &Path) -> Result<bool, Error> {
    let device = |path: &Path| path.metadata().map(|data| data.dev()).map_err(io("look at", path.display()));
    let above = path.parent().map(device).transpose()?;
    Ok(above != Some(device(path)?) && statfs(path).map_err(errno("look at", path.display()))?.f_type == BTRFS)
}

fn pool(init: &Record) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{POOL}", init.pid()))
}

/// A pool that may hang, held so that it can be let go on when all processes of its node are gone or wait for it.
pub struct Pool(Option<File>);

impl Pool {
    /// Of a node that is on; otherwise there is nothing to let go on.
    pub fn of(layout: &Layout, node: Node) -> Result<Self, Error> {
        let path = node.running(layout)?.map(|init| pool(&init));
        // None: Vivarium is not installed there.
        Ok(Self(
            path.filter(|path| is_file_system_of_its_own(path).unwrap_or(false)).and_then(|path| File::open(path).ok()),
        ))
    }

    /// Lets it go on if it hangs.
    pub fn go_on(self) {
        let Some(file) = self.0 else { return };
        // Refused with "invalid argument" when it does not hang.
        let _ = command::run_with(&mut command::command("fsfreeze", ["--unfreeze", "/proc/self/fd/0"]), file.into());
    }
}

/// Undoes both.
pub fn heal(layout: &Layout, node: Node) -> Result<(), Error> {
    Pool::of(layout, node)?.go_on();
    node.running(layout)?.map_or(Ok(()), |init| init.signal(Signal::CONT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_the_machine_is_no_pool() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool");
        std::fs::create_dir(&path).unwrap();
        assert!(!is_file_system_of_its_own(&path).unwrap());
        // One of its own, and of another kind.
        assert!(!is_file_system_of_its_own(Path::new("/proc")).unwrap());
    }
}
