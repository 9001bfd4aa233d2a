//! Volumes that tell themselves what they are: a small file beside the subvolume, there before the volume has its name. No
//! object of the cluster stands for them, so whatever is to be known of them after a restart lies with their data.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, RenameFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use vivarium_sys::btrfs;

use super::{LIVE, Live, PARTIAL, VolumeError, Volumes, failed, limit_for};
use crate::files;
use crate::ids::VolumeId;
use crate::pool::open_beneath;

/// The file.
const DESCRIPTION: &str = "volume.json";

impl Volumes {
    /// As [`Volumes::create_with`], with a description.
    ///
    /// # Errors
    /// As there.
    pub fn create_described<T: Serialize, E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        size: u64,
        room: u64,
        what: &T,
        fill: impl FnOnce(&OwnedFd) -> Result<(), E>,
    ) -> Result<Live, E> {
        self.create_with(id, size, room, |live| {
            self.write_description(&format!("{PARTIAL}{id}"), id, what)?;
            fill(live)
        })
    }

    /// Makes a read-only snapshot of a subvolume, under its own name and with a description that is asked for once the
    /// snapshot is taken.
    ///
    /// # Errors
    /// There is one of that name, or the pool fails; nothing is left of it then, or until the next start.
    pub fn snapshot_described<T: Serialize>(
        &self,
        id: &VolumeId,
        source: BorrowedFd<'_>,
        what: impl FnOnce() -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        let (parent, name) = (self.parent(), id.as_str());
        self.half_snapshot(id, source, |partial| {
            let what = what()?;
            self.write_description(partial, id, &what)?;
            rustix::fs::renameat_with(parent, partial, parent, name, RenameFlags::NOREPLACE)
                .map_err(failed("name the directory", id))?;
            Ok(what)
        })
    }

    /// Takes a read-only snapshot of a subvolume for `work`, and destroys it afterwards.
    ///
    /// # Errors
    /// The pool fails, or what `work` says. A crash leaves nothing that the next start does not remove.
    pub fn with_snapshot<E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        source: BorrowedFd<'_>,
        work: impl FnOnce(&OwnedFd) -> Result<(), E>,
    ) -> Result<(), E> {
        self.half_snapshot(id, source, |partial| {
            let at = format!("{partial}/{LIVE}");
            let snapshot = open_beneath(self.parent(), at.as_ref()).map_err(failed("open the snapshot", id))?;
            work(&snapshot)
        })
    }

    /// Takes a snapshot under a name that does not last, and destroys what has that name in the end.
    fn half_snapshot<T, E: From<VolumeError>>(
        &self,
        id: &VolumeId,
        source: BorrowedFd<'_>,
        work: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, E> {
        let (parent, partial) = (self.parent(), format!("{PARTIAL}{id}"));
        self.destroy(&partial).map_err(failed("remove the remains", id))?;
        rustix::fs::mkdirat(parent, &partial, Mode::RWXU).map_err(failed("make the directory", id))?;
        let done = open_beneath(parent, partial.as_ref())
            .and_then(|directory| btrfs::snapshot(source, directory.as_fd(), c"live", true))
            .map_err(|error| failed("take a snapshot", id)(error).into())
            .and_then(|()| work(&partial));
        let destroyed = self.destroy(&partial).map_err(failed("remove the snapshot", id));
        let done = done?;
        destroyed?;
        Ok(done)
    }

    /// Replaces the description of a volume.
    ///
    /// # Errors
    /// The pool fails.
    pub fn describe<T: Serialize>(&self, id: &VolumeId, what: &T) -> Result<(), VolumeError> {
        self.write_description(id.as_str(), id, what)
    }

    /// What a volume says of itself.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], or it cannot be read.
    pub fn description<T: DeserializeOwned>(&self, id: &VolumeId) -> Result<T, VolumeError> {
        let path = self.directory_path(id).join(DESCRIPTION);
        let read = files::read_json(&path).map_err(failed("read the description", id))?;
        read.ok_or_else(|| VolumeError::NotFound(id.clone()))
    }

    /// Checks that what was just brought into a subvolume fits into its size.
    ///
    /// # Errors
    /// [`VolumeError::TooSmall`], or the pool fails.
    pub fn check_fits(&self, live: &OwnedFd, id: &VolumeId, size: u64) -> Result<(), VolumeError> {
        // Only what is written out is counted.
        self.pool.sync()?;
        let info = btrfs::subvolume_info(live.as_fd()).map_err(failed("identify the live subvolume", id))?;
        let directory = live.try_clone().map_err(failed("open the live subvolume", id))?;
        match self.usage_of(&Live { directory, info }, id)? {
            Some(usage) if usage.used > limit_for(size) => {
                Err(VolumeError::TooSmall { id: id.clone(), used: usage.used, size })
            }
            _ => Ok(()),
        }
    }

    fn write_description<T: Serialize>(&self, directory: &str, id: &VolumeId, what: &T) -> Result<(), VolumeError> {
        let path = self.path().join(directory).join(DESCRIPTION);
        files::write_json(&path, what).map_err(failed("write the description", id))
    }
}
