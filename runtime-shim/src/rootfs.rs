//! Root file systems, put together from file descriptors: that of a plain container from the mounts that containerd's
//! snapshotter describes, that of an environment from its template's layers and its volume.
//!
//! Owners on disk are never changed. Layers are idmapped by whoever mounts them (here); for a plain container
//! containerd has chowned the upper directory already, for an environment the volume is idmapped too.
//!
//! Layers are attached to the stage and then named to overlayfs through their descriptors' names in `/proc/self/fd`.
//! Linux takes descriptors themselves since 6.13 and detached mounts since 6.15 only; Debian 13 has 6.12.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{FsOpenFlags, fsconfig_set_flag, fsconfig_set_string, fsopen};
use vivarium_sys::mount::{Attributes, NODEV, NOEXEC, NOSUID, RDONLY, set_attributes};

use crate::error::{Attempt, Error, Result};
use crate::helper::access::as_guest_root;
use crate::helper::protocol::RootfsMount;
use crate::helper::stage::{Stage, clone_fd, clone_path, finish_filesystem, idmap};

/// Mounts the root of a plain container. Returns it detached.
pub fn plain(mounts: &[RootfsMount], user_namespace: BorrowedFd<'_>, stage: &mut Stage) -> Result<OwnedFd> {
    let [mount] = mounts else {
        return Err(Error::Refused(format!(
            "the root file system consists of {} mounts; this runtime takes exactly one, as the overlayfs snapshotter \
             gives",
            mounts.len()
        )));
    };
    match mount.kind.as_str() {
        "overlay" => plain_overlay(mount, user_namespace, stage),
        "bind" => plain_bind(mount, user_namespace),
        other => Err(Error::Refused(format!(
            "the root file system is of type {other:?}; this runtime takes overlay and bind, so use containerd's \
             overlayfs snapshotter"
        ))),
    }
}

fn is_mapped(mount: &RootfsMount) -> bool {
    mount.options.iter().any(|o| o.starts_with("uidmap="))
}

fn plain_bind(mount: &RootfsMount, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let tree = clone_path(&mount.source, mount.options.iter().any(|o| o == "rbind"))?;
    if is_mapped(mount) {
        idmap(tree.as_fd(), user_namespace, false, &mount.source)?;
    }
    let set = attributes_of(&mount.options).0;
    set_attributes(tree.as_fd(), &Attributes { set, ..Attributes::default() }, false)
        .attempt(|| format!("set the options of {}", mount.source.display()))?;
    Ok(tree)
}

/// Splits fstab options into mount attributes and those that are for the file system.
fn attributes_of(options: &[String]) -> (u64, Vec<&str>) {
    let mut set = 0;
    let mut rest = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => set |= RDONLY,
            "nosuid" => set |= NOSUID,
            "nodev" => set |= NODEV,
            "noexec" => set |= NOEXEC,
            "rw" | "suid" | "dev" | "exec" | "bind" | "rbind" | "rprivate" | "private" | "rslave" | "slave" => {}
            other => rest.push(other),
        }
    }
    (set, rest)
}

fn plain_overlay(mount: &RootfsMount, user_namespace: BorrowedFd<'_>, stage: &mut Stage) -> Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).attempt(|| "open file system type overlay")?;
    let (attributes, options) = attributes_of(&mount.options);
    // The clones must live until the overlay is made, which takes references of its own.
    let mut layers = Vec::new();
    for option in options {
        let (key, value) = option.split_once('=').map_or((option, None), |(k, v)| (k, Some(v)));
        let done = match (key, value) {
            ("uidmap" | "gidmap", _) => continue,
            ("lowerdir", Some(list)) => {
                for path in list.split(':') {
                    let path = Path::new(path);
                    let layer = clone_path(path, false)?;
                    if is_mapped(mount) {
                        idmap(layer.as_fd(), user_namespace, false, path)?;
                    }
                    stage.attach(layer.as_fd(), true)?;
                    set_layer(context.as_fd(), "lowerdir+", layer.as_fd())
                        .attempt(|| format!("use {} as a layer", path.display()))?;
                    layers.push(layer);
                }
                continue;
            }
            (key, Some(value)) => fsconfig_set_string(context.as_fd(), key, value),
            (key, None) => fsconfig_set_flag(context.as_fd(), key),
        };
        done.attempt(|| format!("set option {option} of the root file system"))?;
    }
    finish_filesystem(context.as_fd(), "overlay", attributes)
}

/// Names a directory, which lies on a mount that is attached, to overlayfs.
fn set_layer(context: BorrowedFd<'_>, key: &str, directory: BorrowedFd<'_>) -> rustix::io::Result<()> {
    fsconfig_set_string(context, key, format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// A volume's live subvolume, idmapped and open.
#[derive(Debug)]
pub struct Volume {
    tree: OwnedFd,
}

impl Volume {
    /// Takes a clone of the subvolume and maps its owners. `directory` is the subvolume's root.
    pub fn open(
        directory: BorrowedFd<'_>,
        path: &Path,
        user_namespace: BorrowedFd<'_>,
        stage: &mut Stage,
    ) -> Result<Self> {
        let tree = clone_fd(directory, path)?;
        idmap(tree.as_fd(), user_namespace, false, path)?;
        stage.attach(tree.as_fd(), true)?;
        Ok(Self { tree })
    }

    /// A directory of the volume. Nothing on the way may be a symlink, whoever put it there.
    pub fn directory(&self, path: &Path) -> Result<OwnedFd> {
        rustix::fs::openat2(
            self.tree.as_fd(),
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
        )
        .attempt(|| format!("open the directory {} of the volume", path.display()))
    }
}

/// Mounts the root of an environment: template layers (top first) below, the volume on top. Returns it detached.
///
/// `base` is the host's id of the environment's root user. The mounting thread must use it for file access: overlayfs
/// makes its `work/work` with the mounter's ids, and with ids that the idmapped volume cannot express it falls back to
/// read-only without an error (kernel 6.18: dmesg alone says so), hence the probe.
pub fn environment<P: AsRef<Path>>(
    layers: &[P],
    volume: &Volume,
    user_namespace: BorrowedFd<'_>,
    base: (u32, u32),
    stage: &mut Stage,
) -> Result<OwnedFd> {
    if layers.is_empty() {
        return Err(Error::Failed("The volume's stage record names no template layer.".into()));
    }
    let upper = volume.directory(Path::new("upper"))?;
    let work = volume.directory(Path::new("work"))?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).attempt(|| "open file system type overlay")?;
    let mut clones = Vec::new();
    for layer in layers {
        let path = layer.as_ref();
        let clone = clone_path(path, false)?;
        idmap(clone.as_fd(), user_namespace, false, path)?;
        stage.attach(clone.as_fd(), true)?;
        set_layer(context.as_fd(), "lowerdir+", clone.as_fd())
            .attempt(|| format!("use {} as a template layer", path.display()))?;
        clones.push(clone);
    }
    for (key, directory) in [("upperdir", &upper), ("workdir", &work)] {
        set_layer(context.as_fd(), key, directory.as_fd())
            .attempt(|| format!("use the volume as {key} of the root file system"))?;
    }
    for (key, value) in
        [("redirect_dir", "on"), ("index", "off"), ("metacopy", "off"), ("nfs_export", "off"), ("source", "vivarium")]
    {
        fsconfig_set_string(context.as_fd(), key, value).attempt(|| format!("set overlay option {key}={value}"))?;
    }
    as_guest_root(base, || {
        let root = finish_filesystem(context.as_fd(), "overlay", 0)?;
        probe_writable(root.as_fd())?;
        Ok(root)
    })
}

/// Makes and removes a nameless file, which needs all that a write needs and leaves nothing behind.
fn probe_writable(root: BorrowedFd<'_>) -> Result<()> {
    let probe =
        rustix::fs::openat(root, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    let written = probe.map_err(std::io::Error::from).and_then(|file| {
        use std::io::Write;
        fs::File::from(file).write_all(b"x")
    });
    written.attempt(|| {
        "write to the root file system just mounted (the volume may be full, or overlayfs fell back to read-only; see \
         the kernel log)"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_into_attributes_and_the_rest() {
        let options: Vec<String> =
            ["rw", "nosuid", "ro", "uidmap=0:1:2", "index=off", "rbind"].map(String::from).into();
        assert_eq!(attributes_of(&options), (NOSUID | RDONLY, vec!["uidmap=0:1:2", "index=off"]));
    }
}
