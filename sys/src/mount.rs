//! `mount_setattr(2)`, which `rustix` lacks: idmapping, read-only and propagation of a mount known by a file descriptor.
//! The rest of the mount API (`open_tree`, `fsopen`, `move_mount`) is used from `rustix::mount`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a mount is changed to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'fd> {
    /// `MOUNT_ATTR_*` bits to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` bits to clear.
    pub clear: u64,
    /// New propagation.
    pub propagation: Propagation,
    /// User namespace by whose mappings owners are translated. The mount must be detached and not idmapped yet.
    pub idmap: Option<BorrowedFd<'fd>>,
}

/// Propagation of mount events (`mount_namespaces(7)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// As it is.
    #[default]
    Unchanged,
    /// To and from nobody.
    Private,
    /// From the peer group, not to it.
    Slave,
}

/// Mount is read-only.
pub const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// Set-user-ID bits and file capabilities are ignored.
pub const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// Device files cannot be opened.
pub const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
/// Programs cannot be executed.
pub const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Changes the mount that `mount` refers to, with `recursive` also every mount below it.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: &Attributes<'_>, recursive: bool) -> io::Result<()> {
    let raw = libc::mount_attr {
        attr_set: attributes.set | if attributes.idmap.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: attributes.clear,
        propagation: match attributes.propagation {
            Propagation::Unchanged => 0,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
        },
        userns_fd: attributes.idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `raw` lives until the call returns and its true size is passed; the
    // kernel reads both and writes neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const raw,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
