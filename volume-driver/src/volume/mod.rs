//! Volumes: the writable subvolumes of environments, one directory each, so that snapshots of many can be taken at once.
//!
//! `volumes/<id>/live/` is the subvolume; it holds `upper` and `work` for the overlay and `data` for what cannot lie on
//! one. A volume is there whole or not at all: it is made and destroyed under another name. Everything of a volume,
//! subvolumes that a tenant makes inside included, counts against one quota group `1/<subvolume>` with one limit.

mod described;
pub mod diverged;
pub mod record;
pub mod shared;
pub mod standby;
pub mod view;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode};
use vivarium_fail_point::passed;
use vivarium_sys::btrfs::{self, Qgroup, SubvolumeInfo};

use crate::ids::VolumeId;
use crate::pool::{Pool, PoolError, Quota, destroy_tree, open_beneath};

/// Prefix of volumes that are being made.
const PARTIAL: &str = ".partial-";
/// What follows that for a copy that never becomes a volume.
const SCRATCH: &str = "scratch-";
/// Copies that this process has made. What a former process left is removed before the first.
static COPIES: AtomicU64 = AtomicU64::new(0);
/// Prefix of volumes that are being destroyed.
const DELETED: &str = ".deleted-";
/// The live subvolume of a volume.
pub(crate) const LIVE: &str = "live";
/// Room that a fresh volume is taken to need in the pool: its directories cost a few blocks.
const FRESH: u64 = 1 << 20;
/// Directories of a fresh volume, below the live subvolume, and their modes. Those in `data` are what
/// [`vivarium_api::node::stage::default_binds`] mounts over the root.
const LAYOUT: &[(&str, u32)] =
    &[("upper", 0o755), ("work", 0o755), ("data", 0o755), ("data/docker", 0o711), ("data/containerd", 0o700)];

/// Why something could not be done to a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// It is not in the pool.
    #[error("volume {0} is not in the pool of this node")]
    NotFound(VolumeId),
    /// Its size would be less than it holds.
    #[error(
        "volume {id} holds {used} bytes, so it cannot be made {size} bytes large: free room in the environment, or set the disk to at least {used} bytes"
    )]
    TooSmall {
        /// The volume.
        id: VolumeId,
        /// Bytes in use.
        used: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// It may not be destroyed yet.
    #[error("volume {id} is still mounted into pod {pod}: it is destroyed once that pod is gone")]
    Published {
        /// The volume.
        id: VolumeId,
        /// UID of the pod.
        pod: String,
    },
    /// The pool is full, or fails.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A step failed.
    #[error("cannot {attempt} of volume {id}: {source}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// The volume.
        id: VolumeId,
        /// Why not.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(attempt: &'static str, id: &VolumeId) -> impl FnOnce(E) -> VolumeError {
    move |source| VolumeError::Io { attempt, id: id.clone(), source: source.into() }
}

/// The live subvolume of a volume.
#[derive(Debug)]
pub struct Live {
    /// Its root directory.
    pub directory: OwnedFd,
    /// Its number and UUID.
    pub info: SubvolumeInfo,
}

/// How full a volume is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// In use, as of the newest transaction of the file system (at most 30 s ago).
    pub used: u64,
    /// Most that the kernel lets it hold: size and headroom.
    pub limit: u64,
}

/// The limit that the kernel enforces for a size. It is higher than the size, because copy-on-write needs room for the
/// new blocks before it gives the old ones back: a file cannot be overwritten in a volume that is full to the last block.
#[must_use]
pub fn limit_for(size: u64) -> u64 {
    size.saturating_add((size / 50).max(16 << 20))
}

/// The limit while a tree is being brought into a volume: on the way there can be more in it than in the end, but what a
/// journal says is a tenant's, and must not fill the pool.
fn limit_on_the_way(size: u64) -> u64 {
    limit_for(size).saturating_mul(2)
}

/// Whose volumes: each kind has a directory of the pool of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Those of environments.
    Environments,
    /// Those of ordinary pods.
    Claims,
    /// Snapshots of those of ordinary pods.
    Snapshots,
}

impl Place {
    fn directory(self, pool: &Pool) -> BorrowedFd<'_> {
        match self {
            Self::Environments => pool.volumes(),
            Self::Claims => pool.claims(),
            Self::Snapshots => pool.snapshots(),
        }
    }

    fn path(self, pool: &Pool) -> PathBuf {
        match self {
            Self::Environments => pool.volumes_path(),
            Self::Claims => pool.path().join("claims"),
            Self::Snapshots => pool.path().join("snapshots"),
        }
    }
}

/// The volumes of one kind in the pool of this node.
#[derive(Clone, Debug)]
pub struct Volumes {
    pool: Arc<Pool>,
    place: Place,
}

impl Volumes {
    /// Finishes what a crash left half done: volumes half made and half destroyed go away.
    ///
    /// # Errors
    /// The pool fails.
    pub fn open(pool: Arc<Pool>) -> Result<Self, PoolError> {
        Self::open_at(pool, Place::Environments)
    }

    /// As [`Self::open`], for volumes of any kind.
    ///
    /// # Errors
    /// The pool fails.
    pub fn open_at(pool: Arc<Pool>, place: Place) -> Result<Self, PoolError> {
        let volumes = Self { pool, place };
        for name in volumes.names()? {
            if name.starts_with(PARTIAL) || name.starts_with(DELETED) {
                tracing::info!(name, "removing a volume that was half made or half destroyed");
                let path = volumes.path().join(&name);
                volumes.destroy(&name).map_err(PoolError::io("remove", &path))?;
            }
        }
        volumes.sweep_quota();
        Ok(volumes)
    }

    /// The directory that they are in.
    fn parent(&self) -> BorrowedFd<'_> {
        self.place.directory(&self.pool)
    }

    fn path(&self) -> PathBuf {
        self.place.path(&self.pool)
    }

    /// Path of the live subvolume.
    #[must_use]
    pub fn live_path(&self, id: &VolumeId) -> PathBuf {
        self.path().join(id.as_str()).join(LIVE)
    }

    /// Every volume that is there.
    ///
    /// # Errors
    /// The pool fails.
    pub fn list(&self) -> Result<Vec<VolumeId>, PoolError> {
        Ok(self.names()?.iter().filter_map(|name| VolumeId::parse(name).ok()).collect())
    }

    /// The live subvolume of a volume.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], or the pool fails.
    pub fn get(&self, id: &VolumeId) -> Result<Live, VolumeError> {
        let directory = match open_beneath(self.parent(), &Path::new(id.as_str()).join(LIVE)) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(VolumeError::NotFound(id.clone())),
            Err(error) => return Err(failed("open the live subvolume", id)(error)),
        };
        let info = btrfs::subvolume_info(directory.as_fd()).map_err(failed("identify the live subvolume", id))?;
        Ok(Live { directory, info })
    }

    /// Makes a volume, empty and with a limit of `size`.
    ///
    /// # Errors
    /// The pool is full, or fails. What was made of it is gone again then, or at the next start.
    pub fn create(&self, id: &VolumeId, size: u64) -> Result<Live, VolumeError> {
        self.create_with(id, size, FRESH, |live| lay_out(live, id))
    }

    /// Makes a volume that `fill` fills, given its empty subvolume, with about `room` bytes; then limits it to `size`.
    /// Until then it can hold about twice as much.
    ///
    /// # Errors
    /// As [`Self::create`], or what `fill` says.
    pub fn create_with<E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        size: u64,
        room: u64,
        fill: impl FnOnce(&OwnedFd) -> Result<(), E>,
    ) -> Result<Live, E> {
        self.pool.require(room.max(FRESH)).map_err(VolumeError::from)?;
        self.make_as(id, id.as_str(), size, fill)?;
        Ok(self.get(id)?)
    }

    /// Makes an empty subvolume for `work`, which brings about `room` bytes into it, and destroys it afterwards, whatever
    /// comes of it. It can hold about twice `size`. It is of no use to anybody else, and a crash leaves nothing of it that
    /// the next start does not remove.
    ///
    /// # Errors
    /// The pool is full or fails, or what `work` says.
    pub fn scratch<E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        size: u64,
        room: u64,
        work: impl FnOnce(&OwnedFd) -> Result<(), E>,
    ) -> Result<(), E> {
        self.pool.require(room.max(FRESH)).map_err(VolumeError::from)?;
        // Somebody may be at another copy of the same volume.
        let number = COPIES.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PARTIAL}{SCRATCH}{id}-{number}");
        let done = self.make(id, &name, size, work);
        let destroyed = self.destroy(&name).map_err(failed("remove the copy", id));
        done.and_then(|()| Ok(destroyed?))
    }

    /// Puts another tree, made by `fill` in an empty subvolume, in place of the live one, which is destroyed. Either is there
    /// whole at any time. Nobody has the volume open.
    ///
    /// # Errors
    /// The pool is full or fails, or what `fill` says.
    pub fn replace_with<E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        size: u64,
        fill: impl FnOnce(&OwnedFd) -> Result<(), E>,
    ) -> Result<(), E> {
        self.pool.require(FRESH).map_err(VolumeError::from)?;
        let (parent, directory) = (self.parent(), self.directory(id)?);
        let partial = format!("{PARTIAL}{id}");
        self.destroy(&partial).map_err(failed("remove the remains", id))?;
        let done = self.make(id, &partial, size, fill).and_then(|()| {
            let made = open_beneath(parent, Path::new(&partial)).map_err(failed("open the directory", id))?;
            rustix::fs::renameat_with(&made, LIVE, &directory, LIVE, rustix::fs::RenameFlags::EXCHANGE)
                .map_err(failed("exchange the live subvolume", id))?;
            // The other one did, if any.
            self.forget_shared(id.as_str()).map_err(failed("note that nothing is shared any more", id))?;
            Ok(())
        });
        // What is in it by now: the former tree, or a new one that nobody needs.
        let destroyed = self.destroy(&partial).map_err(failed("remove what is not needed", id));
        self.sweep_quota();
        done.and_then(|()| Ok(destroyed?))
    }

    /// Makes the directory `name` with a subvolume of volume `id`, whole or not at all.
    fn make_as<E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        name: &str,
        size: u64,
        fill: impl FnOnce(&OwnedFd) -> Result<(), E>,
    ) -> Result<(), E> {
        let parent = self.parent();
        let partial = format!("{PARTIAL}{}", name.trim_start_matches('.'));
        self.destroy(&partial).map_err(failed("remove the remains", id))?;
        let made = self.make(id, &partial, size, fill);
        let made = made.and_then(|()| {
            // Of two with one name the first stays.
            rustix::fs::renameat_with(parent, &partial, parent, name, rustix::fs::RenameFlags::NOREPLACE)
                .map_err(|error| failed("name the directory", id)(error).into())
        });
        if let Err(error) = made {
            if let Err(error) = self.destroy(&partial) {
                tracing::warn!(%error, volume = %id, "a half-made volume could not be removed; it is tried again at the next start");
            }
            return Err(error);
        }
        Ok(())
    }

    fn make<E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        partial: &str,
        size: u64,
        fill: impl FnOnce(&OwnedFd) -> Result<(), E>,
    ) -> Result<(), E> {
        let parent = self.parent();
        rustix::fs::mkdirat(parent, partial, Mode::RWXU).map_err(failed("make the directory", id))?;
        let directory = open_beneath(parent, Path::new(partial)).map_err(failed("open the directory", id))?;
        btrfs::create_subvolume(directory.as_fd(), c"live").map_err(failed("make the live subvolume", id))?;
        let live = open_beneath(directory.as_fd(), Path::new(LIVE)).map_err(failed("open the live subvolume", id))?;
        let info = btrfs::subvolume_info(live.as_fd()).map_err(failed("identify the live subvolume", id))?;
        if self.pool.quota() == Quota::Simple {
            let group = Qgroup::new(1, info.id);
            // First of all, so that everything that will be in the volume is counted.
            btrfs::create_qgroup(self.pool.root(), group).map_err(failed("make the quota group", id))?;
            btrfs::assign_qgroup(self.pool.root(), Qgroup::new(0, info.id), group)
                .map_err(failed("assign the quota group", id))?;
            btrfs::limit_qgroup(self.pool.root(), group, limit_on_the_way(size)).map_err(failed("set the size", id))?;
        }
        rustix::fs::fchmod(&live, Mode::from_raw_mode(0o755)).map_err(failed("set the mode", id))?;
        passed("subvolume-made");
        fill(&live)?;
        passed("subvolume-filled");
        if self.pool.quota() == Quota::Simple {
            btrfs::limit_qgroup(self.pool.root(), Qgroup::new(1, info.id), limit_for(size))
                .map_err(failed("set the size", id))?;
        }
        Ok(())
    }

    /// The directory of a volume: its live subvolume, and what its journal keeps beside that.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], or the pool fails.
    pub fn directory(&self, id: &VolumeId) -> Result<OwnedFd, VolumeError> {
        match open_beneath(self.parent(), Path::new(id.as_str())) {
            Ok(directory) => Ok(directory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(VolumeError::NotFound(id.clone())),
            Err(error) => Err(failed("open the directory", id)(error)),
        }
    }

    /// Its path.
    #[must_use]
    pub fn directory_path(&self, id: &VolumeId) -> PathBuf {
        self.path().join(id.as_str())
    }

    /// The pool that they are in.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Sets the size of a volume, which may be in use.
    ///
    /// # Errors
    /// [`VolumeError::TooSmall`] (nothing is changed then), [`VolumeError::NotFound`], or the pool fails.
    pub fn set_size(&self, id: &VolumeId, size: u64) -> Result<(), VolumeError> {
        let live = self.get(id)?;
        let Some(usage) = self.usage_of(&live, id)? else { return Ok(()) };
        let group = Qgroup::new(1, live.info.id);
        let Some(shared) = self.still_shared(id, group, usage, size)? else { return Ok(()) };
        let limit = limit_for(size).saturating_add(shared);
        if usage.limit == limit {
            return Ok(());
        }
        if usage.used > size.saturating_add(shared) && limit < usage.limit {
            return Err(VolumeError::TooSmall { id: id.clone(), used: usage.used, size });
        }
        btrfs::limit_qgroup(self.pool.root(), group, limit).map_err(failed("set the size", id))
    }

    /// Does something to a volume of `size` bytes while it can hold about twice as much.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], the pool fails, or what `work` says.
    pub fn with_room<T, E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        size: u64,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if self.pool.quota() == Quota::None {
            return work();
        }
        let group = Qgroup::new(1, self.get(id)?.info.id);
        let limit = |limit| {
            btrfs::limit_qgroup(self.pool.root(), group, limit).map_err(failed("set the size", id)).map_err(E::from)
        };
        limit(limit_on_the_way(size))?;
        let done = work();
        limit(limit_for(size).saturating_add(self.shared(id.as_str())))?;
        done
    }

    /// How full a volume is; `None` where the kernel does not count.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], or the pool fails.
    pub fn usage(&self, id: &VolumeId) -> Result<Option<Usage>, VolumeError> {
        self.usage_of(&self.get(id)?, id)
    }

    fn usage_of(&self, live: &Live, id: &VolumeId) -> Result<Option<Usage>, VolumeError> {
        if self.pool.quota() == Quota::None {
            return Ok(None);
        }
        let (used, limit) = btrfs::qgroup_usage(self.pool.uuid(), Qgroup::new(1, live.info.id))
            .map_err(failed("read the usage", id))?;
        Ok(Some(Usage { used, limit }))
    }

    /// Destroys a volume and everything in it. One that is not there is destroyed already. Whether it is in use is for
    /// the caller to know.
    ///
    /// # Errors
    /// The pool fails. The volume is gone under its name then, the rest follows at the next start or call.
    pub fn delete(&self, id: &VolumeId) -> Result<(), VolumeError> {
        self.delete_as(id, id.as_str(), &format!("{DELETED}{id}"))
    }

    /// Destroys what lies under `name`, which is called `deleted` first.
    fn delete_as(&self, id: &VolumeId, name: &str, deleted: &str) -> Result<(), VolumeError> {
        let parent = self.parent();
        self.destroy(deleted).map_err(failed("remove the remains", id))?;
        match rustix::fs::renameat(parent, name, parent, deleted) {
            Ok(()) => passed("volume-unnamed"),
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed("set aside the directory", id)(error)),
        }
        self.destroy(deleted).map_err(failed("destroy the subvolume", id))?;
        self.sweep_quota();
        Ok(())
    }

    /// Destroys a directory of a volume by its present name, if it is there.
    fn destroy(&self, name: &str) -> io::Result<()> {
        let parent = self.parent();
        let directory = match open_beneath(parent, Path::new(name)) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in names_in(directory.as_fd())? {
            // Small files of the journal lie beside the subvolumes.
            match rustix::fs::unlinkat(&directory, &entry, AtFlags::empty()) {
                Ok(()) => continue,
                Err(rustix::io::Errno::ISDIR) => {}
                Err(error) => return Err(error.into()),
            }
            self.let_go(directory.as_fd(), Path::new(&entry));
            destroy_tree(self.pool.root(), directory.as_fd(), &CString::new(entry)?)?;
        }
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
    }

    /// Takes the limit off a subvolume that is to be destroyed: in one that is full even that would exceed the quota.
    /// And its group counts nothing of others any more.
    fn let_go(&self, parent: BorrowedFd<'_>, name: &Path) {
        if self.pool.quota() == Quota::None {
            return;
        }
        let let_go = open_beneath(parent, name).and_then(|live| btrfs::subvolume_info(live.as_fd())).and_then(|info| {
            btrfs::limit_qgroup(self.pool.root(), Qgroup::new(1, info.id), u64::MAX)?;
            self.leave_others(info.id)
        });
        if let Err(error) = let_go {
            // Half made, perhaps, and without a group. If it matters, the destruction says so.
            tracing::debug!(%error, name = %name.display(), "the limit of a volume was not lifted");
        }
    }

    /// Removes quota groups of volumes that are gone. The kernel refuses while blocks of the volume are still being
    /// freed in the background, so it is done again at later occasions.
    pub fn sweep_quota(&self) {
        if self.pool.quota() == Quota::None {
            return;
        }
        let groups = match self.gone() {
            Ok(groups) => groups,
            Err(error) => {
                tracing::warn!(%error, "quota groups of destroyed volumes stay for now");
                return;
            }
        };
        // The kernel removes the group of a subvolume with it, but not one that counts what a snapshot still holds
        // then.
        for group in groups.into_iter().flat_map(|id| [Qgroup::new(0, id), Qgroup::new(1, id)]) {
            match btrfs::remove_qgroup(self.pool.root(), group) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::NotFound) => {}
                Err(error) => {
                    tracing::warn!(%error, ?group, "a quota group of a destroyed volume cannot be removed");
                }
            }
        }
    }

    /// Numbers of subvolumes of the pool that were destroyed and whose quota groups are still there.
    fn gone(&self) -> io::Result<Vec<u64>> {
        let mut gone = Vec::new();
        for id in btrfs::qgroups(self.pool.uuid(), 1)? {
            if !btrfs::exists(self.pool.root(), id)? {
                gone.push(id);
            }
        }
        Ok(gone)
    }

    /// Bytes that the kernel is freeing in the background, of whatever was destroyed in the pool.
    fn being_freed(&self) -> Result<u64, PoolError> {
        if self.pool.quota() == Quota::None {
            return Ok(0);
        }
        let gone = self.gone().map_err(PoolError::io("read the quota groups of", self.pool.path()))?;
        let held = |id| {
            // What others have of it stays.
            if self.is_shared_by_others(id).ok()? {
                return None;
            }
            // A group may go in between.
            Some(btrfs::qgroup_usage(self.pool.uuid(), Qgroup::new(1, id)).ok()?.0)
        };
        Ok(gone.into_iter().filter_map(held).sum())
    }

    fn names(&self) -> Result<Vec<String>, PoolError> {
        let path = self.path();
        names_in(self.parent()).map_err(PoolError::io("list", &path))
    }
}

/// Makes the directories of a fresh volume.
pub(crate) fn lay_out(live: &OwnedFd, id: &VolumeId) -> Result<(), VolumeError> {
    for (path, mode) in LAYOUT {
        rustix::fs::mkdirat(live, *path, Mode::RWXU).map_err(failed("make a directory", id))?;
        let made = open_beneath(live.as_fd(), Path::new(path)).map_err(failed("open a directory", id))?;
        // Not by mkdir, which subtracts the umask.
        rustix::fs::fchmod(&made, Mode::from_raw_mode(*mode)).map_err(failed("set the mode of a directory", id))?;
    }
    Ok(())
}

/// Names in a directory that only we write to.
pub(crate) fn names_in(directory: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headroom_is_16_mib_or_a_fiftieth() {
        assert_eq!(limit_for(16 << 20), 32 << 20);
        assert_eq!(limit_for(10 << 30), (10 << 30) + (10 << 30) / 50);
        assert_eq!(limit_for(u64::MAX), u64::MAX);
    }
}
