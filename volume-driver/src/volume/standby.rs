//! Copies of volumes that other nodes hold, kept as new as their journals are, so that this node can take one over at
//! once ([`crate::journal::standby`] says how).
//!
//! A copy lies beside the volumes, as `volumes/.standby-<volume>/live`, and with it `standby.json`: the transaction up to
//! which it holds the journal. The file is taken away while something is carried out in the copy, because what is cut off
//! half way leaves a tree of no instant: a copy without it is of no use. Whoever works with a copy locks its directory, and
//! a process that dies lets go of it.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, RenameFlags};
use rustix::io::Errno;
use vivarium_fail_point::passed;
use vivarium_sys::btrfs::{self, Qgroup};

use super::shared::SHARED;
use super::{DELETED, FRESH, LIVE, PARTIAL, VolumeError, Volumes, failed, limit_for, limit_on_the_way, names_in};
use crate::files;
use crate::ids::VolumeId;
use crate::pool::{PoolError, Quota, destroy_tree, open_beneath};

const PREFIX: &str = ".standby-";
const STATE: &str = "standby.json";

/// A copy that nobody else works with.
#[derive(Debug)]
pub struct Standby {
    volumes: Volumes,
    id: VolumeId,
    /// Locked as long as it is open.
    directory: OwnedFd,
}

impl Volumes {
    /// Volumes of which there is a copy here.
    ///
    /// # Errors
    /// The pool fails.
    pub fn standbys(&self) -> Result<Vec<VolumeId>, PoolError> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| VolumeId::parse(name.strip_prefix(PREFIX)?).ok()).collect())
    }

    /// Whether there is a copy of a volume, of use or not.
    #[must_use]
    pub fn has_standby(&self, id: &VolumeId) -> bool {
        self.standby_path(id).exists()
    }

    /// The copy of a volume, once nobody else works with it; `None`: there is none. Blocks.
    ///
    /// # Errors
    /// The pool fails.
    pub fn standby(&self, id: &VolumeId) -> Result<Option<Standby>, VolumeError> {
        loop {
            let directory = match open_beneath(self.parent(), Path::new(&name(id))) {
                Ok(directory) => directory,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed("open the copy", id)(error)),
            };
            rustix::fs::flock(&directory, FlockOperation::LockExclusive).map_err(failed("lock the copy", id))?;
            // Whoever had it before may have made a volume of it, or destroyed it.
            let mine = rustix::fs::fstat(&directory).map_err(failed("identify the copy", id))?;
            let there = rustix::fs::stat(self.standby_path(id));
            if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)) {
                return Ok(Some(Standby { volumes: self.clone(), id: id.clone(), directory }));
            }
        }
    }

    /// Makes a copy that `fill` fills, given its empty subvolume, with about `room` bytes. It can hold about twice as much
    /// as the volume, whose limit is `size`: a tree on the way from one state to the next can be larger than either.
    ///
    /// # Errors
    /// The pool is full or fails, there is a copy already, or what `fill` says.
    pub fn create_standby<E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        size: u64,
        room: u64,
        fill: impl FnOnce(&OwnedFd) -> Result<(), E>,
    ) -> Result<(), E> {
        self.pool.require(room.max(FRESH)).map_err(VolumeError::from)?;
        self.make_as(id, &name(id), limit_on_the_way(size), fill)
    }

    /// Makes a copy of a volume that is here, which is not here any more then; the opposite of [`Standby::promote`]. It
    /// can hold as much as one that was made empty, and is of no use before [`Standby::settle`].
    ///
    /// # Errors
    /// There is a copy already, the volume is not here, or the pool fails; the volume stays then.
    pub fn demote(&self, id: &VolumeId, size: u64) -> Result<Standby, VolumeError> {
        let directory = self.directory(id)?;
        // Under its new name somebody may look for it at once.
        rustix::fs::flock(&directory, FlockOperation::LockExclusive).map_err(failed("lock the copy", id))?;
        if self.pool.quota() == Quota::Simple {
            let group = Qgroup::new(1, self.get(id)?.info.id);
            btrfs::limit_qgroup(self.pool.root(), group, limit_on_the_way(size)).map_err(failed("set the size", id))?;
        }
        rustix::fs::renameat_with(self.parent(), id.as_str(), self.parent(), name(id), RenameFlags::NOREPLACE)
            .map_err(failed("make the copy from the volume", id))?;
        Ok(Standby { volumes: self.clone(), id: id.clone(), directory })
    }

    /// Makes a copy of a snapshot of a volume that is here, which is about to be set aside, and holds what `state`
    /// says. It can hold as much as one that was made empty; all that the group of the volume counts now is counted for
    /// it too ([`super::shared`]).
    ///
    /// # Errors
    /// There is a copy already, or the pool fails.
    pub fn snapshot_standby<T: serde::Serialize>(
        &self,
        id: &VolumeId,
        size: u64,
        snapshot: BorrowedFd<'_>,
        state: &T,
    ) -> Result<(), VolumeError> {
        let (parent, partial) = (self.parent(), format!("{PARTIAL}{}", name(id).trim_start_matches('.')));
        self.destroy(&partial).map_err(failed("remove the remains", id))?;
        let made = self.snapshot_as(id, &partial, size, snapshot, state).and_then(|()| {
            rustix::fs::renameat_with(parent, &partial, parent, name(id), RenameFlags::NOREPLACE)
                .map_err(failed("name the copy", id))
        });
        if made.is_err()
            && let Err(error) = self.destroy(&partial)
        {
            tracing::warn!(%error, volume = %id, "a half-made copy could not be removed; it is tried again at the next start");
        }
        made
    }

    fn snapshot_as<T: serde::Serialize>(
        &self,
        id: &VolumeId,
        partial: &str,
        size: u64,
        snapshot: BorrowedFd<'_>,
        state: &T,
    ) -> Result<(), VolumeError> {
        let of = self.get(id)?;
        let used = self.usage(id)?.map_or(0, |usage| usage.used);
        rustix::fs::mkdirat(self.parent(), partial, Mode::RWXU).map_err(failed("make the directory", id))?;
        let directory = open_beneath(self.parent(), Path::new(partial)).map_err(failed("open the directory", id))?;
        btrfs::snapshot(snapshot, directory.as_fd(), c"live", false).map_err(failed("take a snapshot", id))?;
        let live = open_beneath(directory.as_fd(), Path::new(LIVE)).map_err(failed("open the copy", id))?;
        let info = btrfs::subvolume_info(live.as_fd()).map_err(failed("identify the copy", id))?;
        if self.pool.quota() == Quota::Simple {
            let group = Qgroup::new(1, info.id);
            btrfs::create_qgroup(self.pool.root(), group).map_err(failed("make the quota group", id))?;
            btrfs::assign_qgroup(self.pool.root(), Qgroup::new(0, info.id), group)
                .map_err(failed("assign the quota group", id))?;
            self.join(of.info.id, group).map_err(failed("assign the quota groups", id))?;
            btrfs::limit_qgroup(self.pool.root(), group, limit_on_the_way(size)).map_err(failed("set the size", id))?;
            self.share(partial, used).map_err(failed("note what is shared", id))?;
        }
        passed("base-copied");
        self.pool.sync()?;
        files::write_json(&self.path().join(partial).join(STATE), state)
            .map_err(failed("write the state of the copy", id))?;
        rustix::fs::fsync(&directory).map_err(failed("write out the copy", id))
    }

    fn standby_path(&self, id: &VolumeId) -> PathBuf {
        self.pool.volumes_path().join(name(id))
    }
}

impl Standby {
    /// Its subvolume.
    ///
    /// # Errors
    /// The pool fails.
    pub fn live(&self) -> Result<OwnedFd, VolumeError> {
        open_beneath(self.directory.as_fd(), Path::new(LIVE)).map_err(failed("open the copy", &self.id))
    }

    /// What was kept with it by [`Self::settle`]; `None`: something was begun in it since and not brought to its end.
    ///
    /// # Errors
    /// The pool fails, or the file cannot be read.
    pub fn state<T: serde::de::DeserializeOwned>(&self) -> Result<Option<T>, VolumeError> {
        files::read_json(&self.file()).map_err(failed("read the state of the copy", &self.id))
    }

    /// Removes what the journal of the volume kept beside its subvolume.
    ///
    /// # Errors
    /// The pool fails.
    pub fn strip(&self) -> Result<(), VolumeError> {
        for entry in names_in(self.directory.as_fd()).map_err(failed("look into the copy", &self.id))? {
            if entry == LIVE || entry == SHARED {
                continue;
            }
            match rustix::fs::unlinkat(&self.directory, &entry, AtFlags::empty()) {
                Ok(()) => continue,
                Err(Errno::ISDIR) => {}
                Err(error) => return Err(failed("remove a file of the journal", &self.id)(error)),
            }
            let entry = CString::new(entry).map_err(failed("name a snapshot", &self.id))?;
            destroy_tree(self.volumes.pool.root(), self.directory.as_fd(), &entry)
                .map_err(failed("destroy a snapshot", &self.id))?;
        }
        Ok(())
    }

    /// From now on, until [`Self::settle`], the copy is a tree of no instant.
    ///
    /// # Errors
    /// The pool fails.
    pub fn begin(&self) -> Result<(), VolumeError> {
        files::remove(&self.file()).map_err(failed("mark the copy", &self.id))?;
        self.sync()
    }

    /// Everything in the copy is on the disk, and it holds what `state` says.
    ///
    /// # Errors
    /// The pool fails.
    pub fn settle<T: serde::Serialize>(&self, state: &T) -> Result<(), VolumeError> {
        self.volumes.pool.sync()?;
        files::write_json(&self.file(), state).map_err(failed("write the state of the copy", &self.id))?;
        self.sync()
    }

    /// Makes the volume of it, limited to `size` and to what it shares. It must not be here yet.
    ///
    /// # Errors
    /// The pool fails, or the volume is here.
    pub fn promote(self, size: u64) -> Result<(), VolumeError> {
        let failed = |attempt| failed::<io::Error>(attempt, &self.id);
        if self.volumes.pool.quota() == Quota::Simple {
            let live = self.live()?;
            let info = btrfs::subvolume_info(live.as_fd()).map_err(failed("identify the copy"))?;
            let limit = limit_for(size).saturating_add(self.volumes.shared(&name(&self.id)));
            btrfs::limit_qgroup(self.volumes.pool.root(), Qgroup::new(1, info.id), limit)
                .map_err(failed("set the size"))?;
        }
        self.begin()?;
        let (parent, flags) = (self.volumes.parent(), RenameFlags::NOREPLACE);
        rustix::fs::renameat_with(parent, name(&self.id), parent, self.id.as_str(), flags)
            .map_err(|error| failed("make the volume from the copy")(error.into()))
    }

    /// Destroys it.
    ///
    /// # Errors
    /// The pool fails. It is gone under its name then, the rest follows at the next start or call.
    pub fn destroy(self) -> Result<(), VolumeError> {
        self.volumes.delete_as(&self.id, &name(&self.id), &format!("{DELETED}standby-{}", self.id))
    }

    fn file(&self) -> PathBuf {
        self.volumes.standby_path(&self.id).join(STATE)
    }

    fn sync(&self) -> Result<(), VolumeError> {
        // Through a handle of its own, for one that is open as a path alone cannot be written out.
        let written = File::open(self.volumes.standby_path(&self.id)).and_then(|directory| directory.sync_all());
        written.map_err(failed("write out the copy", &self.id))
    }
}

fn name(id: &VolumeId) -> String {
    format!("{PREFIX}{id}")
}
