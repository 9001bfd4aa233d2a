//! Blocks that volumes have from others, and what is counted for whom.
//!
//! The kernel counts a block against the subvolume that wrote it, for as long as anything refers to it. When a node
//! comes back and what was written last is set aside, its standby copy begins as a snapshot of what was committed
//! before ([`crate::journal::rejoin`]), and its blocks are those of the subvolume that was set aside. So the group of
//! the copy holds the group of that subvolume as well, and those of all that it has blocks of in its turn. What both
//! have is counted once for the copy; what the copy does not have any more, or never had, is counted for it too, until
//! the last who has it is gone. So no block of a volume ever escapes its limit, however often its node dies.
//!
//! So that nothing of this is taken from the tenant's room, the volume that the copy becomes may hold as much more as
//! was counted when the tree was set aside, while anything of the volume is set aside. By no more than that can it
//! exceed its size.
//! `shared.json` beside the live subvolume says how much.
//!
//! Which groups are in which is asked of the kernel alone.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vivarium_sys::btrfs::{self, Qgroup};

use super::{Usage, VolumeError, Volumes, failed, limit_for};
use crate::files;
use crate::ids::VolumeId;
use crate::pool::Quota;

/// Beside the live subvolume of a volume or of a standby copy.
pub(super) const SHARED: &str = "shared.json";
/// Version of it that this build writes and reads.
const VERSION: u32 = 1;

/// `shared.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shared {
    version: u32,
    /// Bytes that the volume may hold beside its size.
    bytes: u64,
}

impl Volumes {
    /// Bytes that what lies under `name` may hold beside the size of its volume. A file that cannot be read allows
    /// nothing.
    pub(super) fn shared(&self, name: &str) -> u64 {
        match files::read_json::<Shared>(&self.shared_path(name)) {
            Ok(shared) => shared.filter(|shared| shared.version == VERSION).map_or(0, |shared| shared.bytes),
            Err(error) => {
                tracing::warn!(%error, name, "what a volume shares with what was set aside of it cannot be read");
                0
            }
        }
    }

    /// Lets what lies under `name` hold so much beside the size of its volume.
    pub(super) fn share(&self, name: &str, bytes: u64) -> io::Result<()> {
        files::write_json(&self.shared_path(name), &Shared { version: VERSION, bytes })
    }

    pub(super) fn forget_shared(&self, name: &str) -> io::Result<()> {
        files::remove(&self.shared_path(name))
    }

    /// Whether a volume may hold more than its size, because of what was set aside of it.
    #[must_use]
    pub fn is_shared(&self, id: &VolumeId) -> bool {
        self.shared_path(id.as_str()).exists()
    }

    fn shared_path(&self, name: &str) -> PathBuf {
        self.path().join(name).join(SHARED)
    }

    /// Bytes that a volume of `size` bytes may hold beside that. Once nothing is set aside of it any more, and it holds
    /// no more than it may then, that ends: `None`, and the limit is that of its size.
    pub(super) fn still_shared(
        &self,
        id: &VolumeId,
        group: Qgroup,
        usage: Usage,
        size: u64,
    ) -> Result<Option<u64>, VolumeError> {
        let (shared, limit) = (self.shared(id.as_str()), limit_for(size));
        if shared == 0 || usage.used > limit || self.diverged()?.iter().any(|diverged| diverged.volume == *id) {
            return Ok(Some(shared));
        }
        // First the limit: whoever is cut off does the same again.
        btrfs::limit_qgroup(self.pool.root(), group, limit).map_err(failed("set the size", id))?;
        self.forget_shared(id.as_str()).map_err(failed("note that nothing is shared any more", id))?;
        Ok(None)
    }

    /// From now on `group` counts all that is counted for the subvolume number `of`, in which there is no other.
    pub(super) fn join(&self, of: u64, group: Qgroup) -> io::Result<()> {
        for member in self.members(of)? {
            btrfs::assign_qgroup(self.pool.root(), member, group)?;
        }
        Ok(())
    }

    /// From now on the group of the subvolume number `id`, which is about to be destroyed, counts nothing but what was
    /// written to it and to those inside it.
    pub(super) fn leave_others(&self, id: u64) -> io::Result<()> {
        let (mut own, mut pending) = (HashSet::new(), vec![id]);
        while let Some(id) = pending.pop() {
            own.insert(id);
            pending.extend(btrfs::children(self.pool.root(), id)?);
        }
        for other in self.members(id)?.into_iter().filter(|member| !own.contains(&member.id())) {
            btrfs::unassign_qgroup(self.pool.root(), other, Qgroup::new(1, id))?;
        }
        Ok(())
    }

    /// Whether blocks of the subvolume number `id`, which may be gone, are counted for another one that is there.
    pub(super) fn is_shared_by_others(&self, id: u64) -> io::Result<bool> {
        if self.pool.quota() == Quota::None {
            return Ok(false);
        }
        for group in btrfs::related_qgroups(self.pool.root(), Qgroup::new(0, id))? {
            if group.level() == 1 && group.id() != id && btrfs::exists(self.pool.root(), group.id())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn members(&self, id: u64) -> io::Result<Vec<Qgroup>> {
        let related = btrfs::related_qgroups(self.pool.root(), Qgroup::new(1, id))?;
        Ok(related.into_iter().filter(|group| group.level() == 0).collect())
    }
}
