//! A private place to put mounts together: a mount namespace of the helper's own and a small tmpfs in it. Nothing that
//! happens here is visible on the node, and all of it vanishes with the container's init, whose mount namespace is a
//! copy of this one. That copy belongs to the container's user namespace, so the kernel locks every mount made here:
//! what is read-only here can never be made writable inside.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use vivarium_sys::mount::{Attributes, Propagation, set_attributes};
use vivarium_sys::process::{SingleThreaded, new_mount_namespace};

use crate::error::{Attempt, Result};

/// Mount point of the tmpfs. It must be one that the container's root user, a stranger on the node, can traverse.
const STAGE: &str = "/run/vivarium-stage";

/// The tmpfs and what has been put into it.
#[derive(Debug)]
pub struct Stage {
    count: u32,
}

impl Stage {
    /// Leaves the node's mount namespace and makes the tmpfs.
    pub fn enter(proof: SingleThreaded) -> Result<Self> {
        new_mount_namespace(proof).attempt(|| "leave the node's mount namespace")?;
        rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .attempt(|| "stop mounts from spreading to the node")?;
        fs::create_dir_all(STAGE).attempt(|| format!("create {STAGE}"))?;
        let tmpfs = new_filesystem("tmpfs", &[("mode", "0755"), ("size", "1m"), ("nr_inodes", "4k")], 0)?;
        move_to(tmpfs.as_fd(), Path::new(STAGE))?;
        Ok(Self { count: 0 })
    }

    /// Puts a detached mount at a new place and says where. `directory` tells what its root is.
    pub fn attach(&mut self, mount: BorrowedFd<'_>, directory: bool) -> Result<PathBuf> {
        let place = self.new_place(directory)?;
        move_to(mount, &place)?;
        Ok(place)
    }

    /// A new empty directory or file of the tmpfs.
    pub fn new_place(&mut self, directory: bool) -> Result<PathBuf> {
        self.count += 1;
        let place = Path::new(STAGE).join(self.count.to_string());
        if directory { fs::create_dir(&place) } else { fs::write(&place, "") }
            .attempt(|| format!("create {}", place.display()))?;
        Ok(place)
    }
}

/// Attaches a detached mount to a path of the host, following no symlink in the last component.
pub fn move_to(mount: BorrowedFd<'_>, target: &Path) -> Result<()> {
    rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .attempt(|| format!("attach a mount at {}", target.display()))
}

/// Makes a file system by type and options and returns it as a detached mount with the `MOUNT_ATTR_*` bits set.
pub fn new_filesystem(kind: &str, options: &[(&str, &str)], attributes: u64) -> Result<OwnedFd> {
    let context =
        rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).attempt(|| format!("open file system type {kind}"))?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)
            .attempt(|| format!("set option {key}={value} of {kind}"))?;
    }
    finish_filesystem(context.as_fd(), kind, attributes)
}

/// Creates a configured file system and returns it as a detached mount.
pub fn finish_filesystem(context: BorrowedFd<'_>, kind: &str, attributes: u64) -> Result<OwnedFd> {
    let explain = || {
        // The kernel's own sentences, if it has any, can be read from the context.
        let mut text = [0u8; 512];
        let mut said = String::new();
        while let Ok(length @ 1..) = rustix::io::read(context, &mut text) {
            said.push_str(String::from_utf8_lossy(&text[..length]).trim_end());
            said.push_str("; ");
        }
        format!("create a file system of type {kind} ({})", said.trim_end_matches("; "))
    };
    rustix::mount::fsconfig_create(context).attempt(explain)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).attempt(explain)
}

/// A detached copy of the mount that `source` lies on, rooted at `source`.
pub fn clone_path(source: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(CWD, source, flags).attempt(|| format!("clone the mount of {}", source.display()))
}

/// As [`clone_path`], for a directory that is open already.
pub fn clone_fd(source: BorrowedFd<'_>, name: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(source, "", flags).attempt(|| format!("clone the mount of {}", name.display()))
}

/// Translates owners on a detached mount by a user namespace's mappings and makes it private.
pub fn idmap(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool, name: &Path) -> Result<()> {
    let attributes =
        Attributes { idmap: Some(user_namespace), propagation: Propagation::Private, ..Attributes::default() };
    set_attributes(mount, &attributes, recursive).attempt(|| {
        format!(
            "map the owners of {} to the pod's user namespace (does its file system support idmapped mounts?)",
            name.display()
        )
    })
}

/// Whether the root of a detached mount is a directory.
pub fn is_directory(mount: BorrowedFd<'_>) -> Result<bool> {
    let stat = rustix::fs::statat(mount, "", AtFlags::EMPTY_PATH).attempt(|| "look at the root of a mount")?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Opens a directory of the node for path lookups, refusing symlinks in its last component.
pub fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .attempt(|| format!("open {}", path.display()))
}
