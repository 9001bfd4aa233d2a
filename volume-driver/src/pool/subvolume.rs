//! Opening and destroying what tenants could have filled.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use vivarium_sys::btrfs;

/// Opens a directory below `root` for reading, through directories of the same mount alone: no symbolic link, no `..`, no
/// mount point on the way.
///
/// # Errors
/// As openat2(2): `ELOOP` for a symbolic link, `EXDEV` for a way out.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(
        root,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )?)
}

/// Destroys the subvolume `name` in `parent` with every subvolume that was made inside it. `pool` is the root of the
/// pool's mount. A subvolume that is not there is no error.
///
/// # Errors
/// As the kernel says.
pub fn destroy_tree(pool: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match btrfs::destroy_subvolume(parent, name) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTEMPTY.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    let top = rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut pending = btrfs::children(pool, btrfs::subvolume_info(top.as_fd())?.id)?;
    drop(top);
    // Depth first: one that still holds others is met again when those are gone.
    while let Some(id) = pending.last().copied() {
        match btrfs::destroy_subvolume_by_id(pool, id) {
            Ok(()) => {
                pending.pop();
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                pending.pop();
            }
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTEMPTY.raw_os_error()) => {
                let deeper = btrfs::children(pool, id)?;
                if deeper.is_empty() {
                    return Err(error);
                }
                pending.extend(deeper);
            }
            Err(error) => return Err(error),
        }
    }
    btrfs::destroy_subvolume(parent, name)
}
