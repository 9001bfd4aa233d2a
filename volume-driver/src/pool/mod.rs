//! The pool: the btrfs file system of this node on which template layers and volumes lie.
//!
//! [`Pool::open`] finds it mounted (after a restart of the driver), or mounts it, or makes it; it never formats anything
//! that holds data. A tenth of it stays free: below that nothing new is put into it, because btrfs that is really full
//! cannot even delete. What the directories hold is the business of [`crate::template`] and [`crate::volume`].

mod device;
pub mod probe;
mod subvolume;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use vivarium_sys::btrfs::{self, Uuid};

pub use device::PoolSource;
pub(crate) use device::is_mount_point;
pub use subvolume::{destroy_tree, open_beneath};

/// Smallest pool that btrfs works well in.
pub const MIN_SIZE: u64 = 256 << 20;
/// One part in so many of the pool stays free.
const RESERVE: u64 = 10;

/// Why the pool cannot be used, or not for this.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A step of getting at the pool failed.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was tried, to be followed by the path.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// mkfs.btrfs refused.
    #[error("mkfs.btrfs refused to format {} for the pool: {message}. If nothing on it is needed, clear it with wipefs", path.display())]
    Format {
        /// What was to be formatted.
        path: PathBuf,
        /// What mkfs.btrfs said.
        message: String,
    },
    /// The file system type is missing.
    #[error(
        "the kernel of this node has no btrfs, which the pool needs: load the module 'btrfs' or use a node whose distribution has it"
    )]
    NoBtrfs,
    /// Something else is mounted there.
    #[error("{} is a mount point of something that is not btrfs: unmount it", path.display())]
    NotBtrfs {
        /// Mount point of the pool.
        path: PathBuf,
    },
    /// The configured size is too small.
    #[error("a pool of {size} bytes is too small: give it at least {MIN_SIZE} bytes")]
    TooSmall {
        /// As configured.
        size: u64,
    },
    /// No room.
    #[error(
        "the pool of node {node} is full: {free} of {total} bytes are free, of which a tenth is kept in reserve and {wanted} bytes are needed. Enlarge the pool (pool size of the chart) or delete environments on this node"
    )]
    Full {
        /// The node.
        node: String,
        /// Free bytes.
        free: u64,
        /// All bytes.
        total: u64,
        /// Bytes asked for.
        wanted: u64,
    },
}

impl PoolError {
    /// An IO failure at a path.
    pub(crate) fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { attempt, path, source }
    }
}

/// How sizes are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// By the kernel, with simple quotas (Linux 6.7 and later).
    Simple,
    /// Not at all.
    None,
}

/// Room in the pool, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// Not in use.
    pub free: u64,
}

impl Space {
    /// Bytes that may still be used before the reserve begins.
    #[must_use]
    pub fn usable(self) -> u64 {
        self.free.saturating_sub(self.total / RESERVE)
    }
}

/// The mounted pool.
#[derive(Debug)]
pub struct Pool {
    node: String,
    path: PathBuf,
    root: OwnedFd,
    templates: OwnedFd,
    volumes: OwnedFd,
    claims: OwnedFd,
    snapshots: OwnedFd,
    uuid: Uuid,
    quota: Quota,
}

impl Pool {
    /// Makes the pool of `source` usable at `<state_dir>/pool`: adopts it if it is mounted, else mounts it, formatting
    /// an empty device or a new file first. `node` is what people know the machine by.
    ///
    /// # Errors
    /// Any [`PoolError`] but `Full`.
    pub fn open(node: &str, source: &PoolSource, state_dir: &Path) -> Result<Self, PoolError> {
        let path = state_dir.join("pool");
        std::fs::create_dir_all(&path).map_err(PoolError::io("create the directory", &path))?;
        device::mount(source, state_dir, &path)?;

        let root = open_directory(&path).map_err(PoolError::io("open", &path))?;
        if rustix::fs::fstatfs(&root).map_err(|e| PoolError::io("inspect", &path)(e.into()))?.f_type != BTRFS_MAGIC {
            return Err(PoolError::NotBtrfs { path });
        }
        // On the node, owners in the tree are 0..65535: nobody but root may reach set-user-ID files in it.
        rustix::fs::fchmod(&root, Mode::RWXU).map_err(|e| PoolError::io("protect", &path)(e.into()))?;
        let uuid = btrfs::file_system_uuid(root.as_fd()).map_err(PoolError::io("identify", &path))?;
        let quota = quota(root.as_fd(), uuid);
        let [templates, volumes, claims, snapshots] =
            ["templates", "volumes", "claims", "snapshots"].map(|name| subdirectory(root.as_fd(), name, &path));
        let pool = Self {
            node: node.to_owned(),
            root,
            templates: templates?,
            volumes: volumes?,
            claims: claims?,
            snapshots: snapshots?,
            uuid,
            quota,
            path,
        };
        tracing::info!(path = %pool.path.display(), uuid = %pool.uuid, quota = ?pool.quota, space = ?pool.space().ok(), "the pool is ready");
        Ok(pool)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its root directory.
    #[must_use]
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Directory of template layers.
    #[must_use]
    pub fn templates(&self) -> BorrowedFd<'_> {
        self.templates.as_fd()
    }

    /// Path of the directory of template layers.
    #[must_use]
    pub fn templates_path(&self) -> PathBuf {
        self.path.join("templates")
    }

    /// Directory of volumes.
    #[must_use]
    pub fn volumes(&self) -> BorrowedFd<'_> {
        self.volumes.as_fd()
    }

    /// Path of the directory of volumes.
    #[must_use]
    pub fn volumes_path(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// Directory of the volumes of ordinary pods.
    #[must_use]
    pub fn claims(&self) -> BorrowedFd<'_> {
        self.claims.as_fd()
    }

    /// Directory of the snapshots of those.
    #[must_use]
    pub fn snapshots(&self) -> BorrowedFd<'_> {
        self.snapshots.as_fd()
    }

    /// UUID of the file system.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// How sizes are enforced.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Room in it now.
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn space(&self) -> Result<Space, PoolError> {
        let stat = rustix::fs::fstatvfs(&self.root).map_err(|e| PoolError::io("measure", &self.path)(e.into()))?;
        Ok(Space { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
    }

    /// Checks that `wanted` bytes can be added without touching the reserve.
    ///
    /// # Errors
    /// [`PoolError::Full`].
    pub fn require(&self, wanted: u64) -> Result<(), PoolError> {
        let space = self.space()?;
        if space.usable() < wanted.max(1) {
            return Err(self.full(space, wanted));
        }
        Ok(())
    }

    /// There is no room for that.
    pub(crate) fn full(&self, space: Space, wanted: u64) -> PoolError {
        PoolError::Full { node: self.node.clone(), free: space.free, total: space.total, wanted }
    }

    /// Whether it is still mounted at its path and answers.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), PoolError> {
        let inspect = |e: rustix::io::Errno| PoolError::io("inspect", &self.path)(e.into());
        let there = rustix::fs::stat(&self.path).map_err(inspect)?;
        let ours = rustix::fs::fstat(&self.root).map_err(inspect)?;
        if there.st_dev != ours.st_dev {
            return Err(PoolError::NotBtrfs { path: self.path.clone() });
        }
        self.space().map(|_| ())
    }

    /// Writes everything to the device and moves the generation of what has changed.
    ///
    /// # Errors
    /// The device fails.
    pub fn sync(&self) -> Result<(), PoolError> {
        rustix::fs::syncfs(&self.root).map_err(|e| PoolError::io("write out", &self.path)(e.into()))
    }
}

/// `f_type` of btrfs (statfs(2)).
pub(crate) const BTRFS_MAGIC: rustix::fs::FsWord = 0x9123_683e;

/// Opens a directory for reading, never through a symbolic link in the last component.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn subdirectory(root: BorrowedFd<'_>, name: &str, pool: &Path) -> Result<OwnedFd, PoolError> {
    match rustix::fs::mkdirat(root, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(PoolError::io("create the directory", &pool.join(name))(error.into())),
    }
    open_beneath(root, Path::new(name)).map_err(PoolError::io("open", &pool.join(name)))
}

/// Turns simple quotas on where the kernel has them. What was written before is not counted, so it is done first thing.
fn quota(root: BorrowedFd<'_>, uuid: Uuid) -> Quota {
    let mode = PathBuf::from(format!("/sys/fs/btrfs/{uuid}/qgroups/mode"));
    let is_simple = || std::fs::read_to_string(&mode).is_ok_and(|mode| mode.trim() == "squota");
    if is_simple() {
        return Quota::Simple;
    }
    if let Err(error) = btrfs::enable_simple_quota(root) {
        tracing::warn!(%error, "the kernel has no simple quotas (Linux 6.7): sizes of volumes are not enforced on this node");
        return Quota::None;
    }
    if is_simple() {
        Quota::Simple
    } else {
        tracing::warn!("quotas of another kind are on in the pool: sizes of volumes are not enforced on this node");
        Quota::None
    }
}

/// Opens a file for reading and writing, making it if it is not there, readable by root alone.
fn open_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}
