//! Copies of a volume as it was, for those who only read. They lie beside the volumes, as `volumes/.view-<volume>.<state>/live`, are
//! read-only, and are shared by all who look at the same state of the same volume. Whoever stops looking leaves the copy
//! for a while: the next question is often about the same state.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, UTIME_NOW};
use vivarium_sys::btrfs;

use super::{LIVE, PARTIAL, VolumeError, Volumes, failed};
use crate::ids::VolumeId;
use crate::pool::{PoolError, open_beneath};

const PREFIX: &str = ".view-";

/// Which state of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// After this transaction.
    Transaction(u64),
    /// What was set aside of an epoch, at a time in seconds since 1970.
    Diverged {
        /// The epoch.
        epoch: u64,
        /// The time.
        since: u64,
    },
}

/// A copy of a state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Of which volume.
    pub volume: VolumeId,
    /// Which one.
    pub state: State,
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            State::Transaction(number) => write!(f, "{PREFIX}{}.{number}", self.volume),
            State::Diverged { epoch, since } => write!(f, "{PREFIX}{}.d{epoch}.{since}", self.volume),
        }
    }
}

impl View {
    /// The copy in a directory of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (volume, state) = name.strip_prefix(PREFIX)?.split_once('.')?;
        let state = match state.strip_prefix('d').map(|state| state.split_once('.')) {
            None => State::Transaction(state.parse().ok()?),
            Some(fields) => {
                let (epoch, since) = fields?;
                State::Diverged { epoch: epoch.parse().ok()?, since: since.parse().ok()? }
            }
        };
        Some(Self { volume: VolumeId::parse(volume).ok()?, state })
    }
}

impl Volumes {
    /// Where the tree of a copy is.
    #[must_use]
    pub fn view_path(&self, view: &View) -> PathBuf {
        self.path().join(view.to_string()).join(LIVE)
    }

    /// Whether a copy is there.
    #[must_use]
    pub fn has_view(&self, view: &View) -> bool {
        open_beneath(self.parent(), &PathBuf::from(view.to_string()).join(LIVE)).is_ok()
    }

    /// Every copy that is there.
    ///
    /// # Errors
    /// The pool fails.
    pub fn views(&self) -> Result<Vec<View>, PoolError> {
        Ok(self.names()?.iter().filter_map(|name| View::parse(name)).collect())
    }

    /// Makes a copy that `fill` fills, given its empty subvolume, with about `room` bytes.
    ///
    /// # Errors
    /// The pool is full, or fails, or what `fill` says; nothing is left of it then.
    pub fn make_view<E: From<VolumeError>>(
        &self,
        view: &View,
        room: u64,
        fill: impl FnOnce(&OwnedFd) -> Result<(), E>,
    ) -> Result<(), E> {
        self.pool.require(room).map_err(VolumeError::from)?;
        self.make_as(&view.volume, &view.to_string(), u64::MAX, |live| {
            self.bound(live, &view.volume)?;
            fill(live)?;
            Ok(btrfs::set_read_only(live.as_fd(), true).map_err(failed("close the copy", &view.volume))?)
        })
    }

    /// While it is filled, a copy may not take what the pool keeps in reserve, whatever somebody once wrote to the volume.
    fn bound(&self, live: &OwnedFd, id: &VolumeId) -> Result<(), VolumeError> {
        if self.pool.quota() == super::Quota::None {
            return Ok(());
        }
        let info = btrfs::subvolume_info(live.as_fd()).map_err(failed("identify the copy", id))?;
        let room = self.pool.space()?.usable();
        btrfs::limit_qgroup(self.pool.root(), btrfs::Qgroup::new(1, info.id), room)
            .map_err(failed("set the size of the copy", id))
    }

    /// Makes a copy of a subvolume, which costs no room as long as that stays as it is.
    ///
    /// # Errors
    /// The subvolume is being destroyed, or the pool fails; nothing is left of the copy then, or until the next start.
    pub fn snapshot_view(&self, view: &View, source: BorrowedFd<'_>) -> Result<(), VolumeError> {
        let (id, parent, name) = (&view.volume, self.parent(), view.to_string());
        let partial = format!("{PARTIAL}{}", name.trim_start_matches('.'));
        self.destroy(&partial).map_err(failed("remove the remains", id))?;
        rustix::fs::mkdirat(parent, &partial, Mode::RWXU).map_err(failed("make the directory", id))?;
        let taken = open_beneath(parent, partial.as_ref())
            .and_then(|directory| btrfs::snapshot(source, directory.as_fd(), c"live", true))
            .and_then(|()| Ok(rustix::fs::renameat(parent, &partial, parent, &name)?));
        if let Err(error) = taken {
            let _ = self.destroy(&partial);
            return Err(failed("take a snapshot", id)(error));
        }
        Ok(())
    }

    /// Notes that somebody used a copy just now.
    ///
    /// # Errors
    /// The pool fails.
    pub fn touch_view(&self, view: &View) -> Result<(), VolumeError> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        match rustix::fs::utimensat(self.parent(), view.to_string(), &times, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("note the use of a copy", &view.volume)(error)),
        }
    }

    /// For how long nobody has begun or ended to use a copy.
    #[must_use]
    pub fn view_idle(&self, view: &View, now: SystemTime) -> Duration {
        let path = self.path().join(view.to_string());
        let used = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        used.ok().and_then(|used| now.duration_since(used).ok()).unwrap_or_default()
    }

    /// Destroys a copy. Whether somebody uses it is for the caller to know.
    ///
    /// # Errors
    /// The pool fails; what is left goes with the next start.
    pub fn drop_view(&self, view: &View) -> Result<(), VolumeError> {
        let (id, parent, name) = (&view.volume, self.parent(), view.to_string());
        let deleted = format!("{}{}", super::DELETED, name.trim_start_matches('.'));
        self.destroy(&deleted).map_err(failed("remove the remains", id))?;
        match rustix::fs::renameat(parent, &name, parent, &deleted) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed("set aside the copy", id)(error)),
        }
        self.destroy(&deleted).map_err(failed("destroy the copy", id))?;
        self.sweep_quota();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written_and_others_are_none() {
        let volume = VolumeId::parse("a-b").unwrap();
        for (state, name) in
            [(State::Transaction(17), ".view-a-b.17"), (State::Diverged { epoch: 3, since: 17 }, ".view-a-b.d3.17")]
        {
            let view = View { volume: volume.clone(), state };
            assert_eq!(view.to_string(), name);
            assert_eq!(View::parse(name), Some(view));
        }
        for name in
            ["a-b", ".view-a-b", ".view-a-b.x", ".view-a-b.d3", ".view-../x.3", ".view-a-b.d3.x", ".diverged-a-b.3.4"]
        {
            assert_eq!(View::parse(name), None, "{name}");
        }
    }
}
