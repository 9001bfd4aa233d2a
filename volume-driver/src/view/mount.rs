//! Showing a copy to a pod: an overlay of the template's layers and the copy, without anything to write to. Device files
//! cannot be opened in it and set-user-ID bits mean nothing, since the tree is of people who are root in it.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use vivarium_api::node::stage::default_binds;
use vivarium_sys::mount::{Attributes, NODEV, NOSUID, RDONLY, set_attributes};

use crate::pool::{is_mount_point, open_beneath, open_directory};

/// Nothing of it can be written, opened as a device, or give rights.
const INERT: u64 = RDONLY | NODEV | NOSUID;
/// Largest index of instants.
const INDEX_ROOM: &str = "64m";

/// Mounts the tree of a volume at `target`: `live` is its copy, `layers` are the roots of the template's layers, the topmost
/// first.
///
/// # Errors
/// As the kernel says. What was mounted so far stays, and [`unmount`] takes it away.
pub fn tree(live: &Path, layers: &[PathBuf], target: &Path) -> io::Result<()> {
    let live = open_directory(live)?;
    let upper = open_beneath(live.as_fd(), Path::new("upper"))?;
    let layers = layers.iter().map(|layer| open_directory(layer));
    let layers = std::iter::once(Ok(upper)).chain(layers).collect::<io::Result<Vec<_>>>()?;
    place(overlay(&layers)?.as_fd(), &directory(target)?)?;
    // As the shim shows them: what cannot lie on an overlay.
    let root = open_directory(target)?;
    for bind in default_binds() {
        let Ok(data) = open_beneath(live.as_fd(), &Path::new("data").join(&bind.name)) else { continue };
        let below = bind.target.strip_prefix("/").unwrap_or(&bind.target);
        // Whoever made a link of it, or removed it, sees what is there.
        if let Ok(at) = resolve(root.as_fd(), below) {
            place(inert_clone(&data)?.as_fd(), &at)?;
        }
    }
    Ok(())
}

/// The tree that directories make, the topmost first, as a mount that is nowhere and is gone with its descriptor. There are
/// at least two.
///
/// # Errors
/// As the kernel says.
pub(crate) fn overlay(layers: &[OwnedFd]) -> io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers {
        // By descriptor: a path may be too long for the call, which takes 255 bytes.
        fsconfig_set_string(context.as_fd(), "lowerdir+", format!("/proc/self/fd/{}", layer.as_raw_fd()))?;
    }
    let options = [
        ("redirect_dir", "follow"),
        ("index", "off"),
        ("metacopy", "off"),
        ("nfs_export", "off"),
        ("source", "vivarium"),
    ];
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    make(&context)
}

/// Mounts a directory with one file at `target`.
///
/// # Errors
/// As the kernel says.
pub fn file(name: &str, bytes: &[u8], target: &Path) -> io::Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", "vivarium"), ("mode", "0755"), ("size", INDEX_ROOM)] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let to = rustix::fs::openat(&mount, name, flags, Mode::from_raw_mode(0o444))?;
    std::fs::File::from(to).write_all(bytes)?;
    set_attributes(mount.as_fd(), &Attributes { set: INERT, ..Attributes::default() }, false)?;
    place(mount.as_fd(), &directory(target)?)
}

/// Takes everything away that is mounted at a path or below it, and the directory. What somebody still has open there stays
/// readable for him.
///
/// # Errors
/// As the kernel says.
pub fn unmount(target: &Path) -> io::Result<()> {
    loop {
        match is_mount_point(target) {
            Ok(true) => rustix::mount::unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?,
            Ok(false) => return std::fs::remove_dir(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// A configured file system as a detached mount; the kernel's own sentences, if it has any, are in the error.
fn make(context: &OwnedFd) -> io::Result<OwnedFd> {
    let attributes = MountAttrFlags::from_bits_retain(INERT as u32);
    fsconfig_create(context.as_fd())
        .and_then(|()| fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes))
        .map_err(|error| {
            let mut text = [0; 512];
            let mut said = String::new();
            while let Ok(length @ 1..) = rustix::io::read(context, &mut text) {
                said.push_str(String::from_utf8_lossy(&text[..length]).trim_end());
            }
            io::Error::new(io::Error::from(error).kind(), format!("{error} ({said})"))
        })
}

fn inert_clone(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(directory, c"", flags)?;
    set_attributes(tree.as_fd(), &Attributes { set: INERT, ..Attributes::default() }, false)?;
    Ok(tree)
}

fn place(mount: BorrowedFd<'_>, at: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", at, c"", flags)?)
}

/// The directory that the kubelet wants it at, made if it is not there.
fn directory(target: &Path) -> io::Result<OwnedFd> {
    match std::fs::create_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => open_directory(target),
    }
}

fn resolve(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)
}
