//! Putting a live subvolume at a target of the kubelet, and taking it away. Mounts are made from descriptors, so nothing
//! that happens to a path on the way matters.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use vivarium_sys::btrfs::{self, Uuid};
use vivarium_sys::mount::{Attributes, NODEV, NOSUID, RDONLY, set_attributes};

use crate::pool;

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Nothing, or a directory that nothing is mounted on.
    Nothing,
    /// A subvolume is mounted.
    Subvolume(Uuid),
    /// Something else is mounted.
    Other,
}

/// Tells what is mounted at a path.
///
/// # Errors
/// The path cannot be inspected.
pub fn at(path: &Path) -> io::Result<At> {
    match pool::is_mount_point(path) {
        Ok(true) => {}
        Ok(false) => return Ok(At::Nothing),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(At::Nothing),
        Err(error) => return Err(error),
    }
    let directory = pool::open_directory(path)?;
    Ok(btrfs::subvolume_at(directory.as_fd())?.map_or(At::Other, |info| At::Subvolume(info.uuid)))
}

/// Mounts a directory at `target`, which is made if it is not there; `read_only` if nothing may be written there.
///
/// # Errors
/// As the kernel says.
pub fn bind(source: BorrowedFd<'_>, target: &Path, read_only: bool) -> io::Result<()> {
    match std::fs::create_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let tree = rustix::mount::open_tree(
        source,
        c"",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    // The pool is mounted without devices and set-user-ID, the environment needs both, and other pods have them on any
    // volume; only root reaches the target.
    let set = if read_only { RDONLY } else { 0 };
    set_attributes(tree.as_fd(), &Attributes { set, clear: NODEV | NOSUID, ..Attributes::default() }, false)?;
    let place = pool::open_directory(target)?;
    rustix::mount::move_mount(
        &tree,
        c"",
        &place,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?;
    Ok(())
}

/// Unmounts everything at a path, however often it was mounted over, and removes the directory.
///
/// # Errors
/// Something uses it, or the path is no directory.
pub fn unbind(target: &Path) -> io::Result<()> {
    loop {
        match pool::is_mount_point(target) {
            Ok(true) => rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)?,
            Ok(false) => return std::fs::remove_dir(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
