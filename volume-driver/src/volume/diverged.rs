//! What a dead node held of a volume that another one took over: what had been written last, and was in no journal yet. The
//! node keeps it aside when it comes back, for some time, and says so; nothing is thrown away that may be wanted.
//!
//! It lies beside the volumes, as `volumes/.diverged-<volume>.<epoch>.<seconds since 1970>/live`, and counts against no
//! volume of its own any more; but for the copy that was begun with what it has in common with the journal
//! ([`super::shared`]).

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::RenameFlags;
use rustix::io::Errno;
use vivarium_sys::btrfs::{self, Qgroup};

use super::{LIVE, VolumeError, Volumes, failed};
use crate::ids::VolumeId;
use crate::pool::{PoolError, open_beneath};

const PREFIX: &str = ".diverged-";
/// Share of the pool that must be free; below it what was set aside goes, the oldest first.
const FREE_PART: u64 = 10;

/// A tree that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diverged {
    /// When it was set aside, in seconds since 1970.
    pub since: u64,
    /// Of which volume.
    pub volume: VolumeId,
    /// The epoch that it was written under.
    pub epoch: u64,
}

impl Diverged {
    fn name(&self) -> String {
        format!("{PREFIX}{}.{}.{}", self.volume, self.epoch, self.since)
    }

    fn parse(name: &str) -> Option<Self> {
        let fields: Vec<&str> = name.strip_prefix(PREFIX)?.split('.').collect();
        let [volume, epoch, since] = fields[..] else { return None };
        Some(Self { volume: VolumeId::parse(volume).ok()?, epoch: epoch.parse().ok()?, since: since.parse().ok()? })
    }
}

impl Volumes {
    /// Sets a volume aside, which is then not here any more.
    ///
    /// # Errors
    /// The pool fails.
    pub fn set_aside(&self, id: &VolumeId, epoch: u64, now: SystemTime) -> Result<(), VolumeError> {
        let parent = self.parent();
        let mut since = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        loop {
            let name = Diverged { since, volume: id.clone(), epoch }.name();
            match rustix::fs::renameat_with(parent, id.as_str(), parent, &name, RenameFlags::NOREPLACE) {
                // One of the same volume and second is there already, so this one counts as a second younger.
                Err(Errno::EXIST) => since += 1,
                done => return done.map_err(failed("set aside the directory", id)),
            }
        }
    }

    /// Everything that was set aside, oldest first.
    ///
    /// # Errors
    /// The pool fails.
    pub fn diverged(&self) -> Result<Vec<Diverged>, PoolError> {
        let mut all: Vec<_> = self.names()?.iter().filter_map(|name| Diverged::parse(name)).collect();
        all.sort();
        Ok(all)
    }

    /// Where such a tree is.
    #[must_use]
    pub fn diverged_path(&self, diverged: &Diverged) -> PathBuf {
        self.path().join(diverged.name())
    }

    /// Destroys what was set aside longer ago than `retention`, and while the pool is nearly full as much more as makes room,
    /// the oldest first. What is destroyed frees its blocks in the background, so it counts as free from then on: else
    /// everything would go before the first of it is freed. Where nothing is counted, one tree goes at a time.
    ///
    /// # Errors
    /// The pool fails.
    pub fn expire_diverged(&self, retention: Duration, now: SystemTime) -> Result<(), VolumeError> {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let mut freed = self.being_freed()?;
        for diverged in self.diverged()? {
            let space = self.pool.space()?;
            let is_old = now.saturating_sub(diverged.since) >= retention.as_secs();
            if is_old || space.usable().saturating_add(freed) < space.total / FREE_PART {
                tracing::info!(volume = %diverged.volume, epoch = diverged.epoch, is_old, "what had been set aside is destroyed");
                freed = freed.saturating_add(self.held_by(&diverged));
                self.destroy(&diverged.name()).map_err(failed("destroy what was set aside", &diverged.volume))?;
            }
        }
        self.sweep_quota();
        Ok(())
    }

    /// Bytes of a tree that was set aside; as many as can be if nothing is counted, or something else has a part of
    /// them.
    fn held_by(&self, diverged: &Diverged) -> u64 {
        let held = || {
            let live = open_beneath(self.parent(), &Path::new(&diverged.name()).join(LIVE))?;
            let info = btrfs::subvolume_info(live.as_fd())?;
            if self.is_shared_by_others(info.id)? {
                return Ok(u64::MAX);
            }
            Ok::<_, io::Error>(btrfs::qgroup_usage(self.pool.uuid(), Qgroup::new(1, info.id))?.0)
        };
        held().unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written_and_others_are_none() {
        let diverged = Diverged { since: 17, volume: VolumeId::parse("a-b").unwrap(), epoch: 3 };
        assert_eq!(diverged.name(), ".diverged-a-b.3.17");
        assert_eq!(Diverged::parse(&diverged.name()), Some(diverged));
        for name in ["a-b", ".diverged-a-b.3", ".diverged-a-b.x.17", ".diverged-../x.3.17", ".partial-a"] {
            assert_eq!(Diverged::parse(name), None, "{name}");
        }
    }
}
