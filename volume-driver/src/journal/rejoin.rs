//! A node that comes back keeps the copy of a volume that went to another one: what it had becomes its standby copy
//! ([`super::standby`]), which goes on from there, and nothing is fetched anew but what came into the log since.
//!
//! The copy begins with the tree of the newest transaction that this node knows to be in the store. If that is what the
//! live subvolume holds, it becomes the copy itself. If more was written, all of the volume is set aside, and the copy
//! is a snapshot of its base; [`crate::volume::shared`] tells how it is counted.
//!
//! Each is done by one rename, before which the copy is on the disk and says what it holds, or has still to say it. So
//! whatever is cut off leaves the volume as it was, or beside it a copy that is whole, or one that is made anew.
//! Whatever does not fit is left to [`Local::retire`], as if no copy were wanted; and whether the log goes on from this
//! transaction is found out by whoever follows it.

use std::os::fd::AsFd;

use vivarium_fail_point::passed;
use vivarium_sys::btrfs;

use super::JournalError;
use super::local::{Local, Snapshot};
use super::log::Position;
use super::standby::Stored;
use crate::ids::VolumeId;
use crate::volume::{VolumeError, Volumes, limit_for};

/// What is here of a volume that another node has, while this one is to keep a copy. Nobody has it open.
#[derive(Clone, Debug)]
pub struct Former {
    /// The volumes of this node.
    pub volumes: Volumes,
    /// The volume.
    pub id: VolumeId,
    /// Its size in bytes.
    pub size: u64,
    /// Name of the log that decides.
    pub log: String,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejoined {
    /// The transaction up to which the copy holds the log; none: no copy could be made of what was here.
    pub at: Option<Position>,
    /// Epoch of what was set aside, because it is in no journal.
    pub set_aside: Option<u64>,
}

impl Former {
    /// Makes the copy, if it can be made. Without it, the volume is destroyed, or set aside if some of it is in no
    /// journal.
    ///
    /// # Errors
    /// The pool fails; it can be called again.
    pub fn rejoin(&self) -> Result<Rejoined, JournalError> {
        match self.copy() {
            Ok(Some(head)) if self.volumes.get(&self.id).is_ok() => {
                Local::set_aside(&self.volumes, &self.id, head.epoch)?;
                Ok(Rejoined { at: Some(head), set_aside: Some(head.epoch) })
            }
            Ok(Some(head)) => Ok(Rejoined { at: Some(head), set_aside: None }),
            copied => {
                // A cache is not worth more than a line in the log.
                if let Err(error) = copied {
                    tracing::warn!(%error, volume = %self.id, "no copy can be made of what was here");
                }
                Ok(Rejoined { at: None, set_aside: Local::retire(&self.volumes, &self.id)? })
            }
        }
    }

    /// Where the copy is that was made, if it could be: of the volume itself, which is not here any more then, or
    /// beside one that has to be set aside.
    fn copy(&self) -> Result<Option<Position>, JournalError> {
        let (volumes, id) = (&self.volumes, &self.id);
        let Some((local, base)) = self.fitting()? else { return Ok(None) };
        // Else what was written a moment ago shows in no generation.
        volumes.pool().sync().map_err(VolumeError::from)?;
        // What was set aside may keep as much from being freed as a volume may hold, and no more.
        if volumes.usage(id)?.is_some_and(|usage| usage.used > limit_for(self.size)) {
            return Ok(None);
        }
        let head = local.head();
        if local.diverged()? {
            volumes.snapshot_standby(id, self.size, base.root.as_fd(), &Stored::of(head))?;
            passed("copy-of-base-named");
            return Ok(Some(head));
        }
        // What is here is in the log as well: it can go at any time.
        let standby = volumes.demote(id, self.size)?;
        passed("volume-is-copy");
        let settled = standby.strip().and_then(|()| {
            passed("copy-stripped");
            standby.settle(&Stored::of(head))
        });
        if let Err(error) = settled {
            standby.destroy()?;
            return Err(error.into());
        }
        Ok(Some(head))
    }

    /// The volume and its base, if a copy can begin with that.
    fn fitting(&self) -> Result<Option<(Local, Snapshot)>, JournalError> {
        let (volumes, id) = (&self.volumes, &self.id);
        let local = match Local::open(volumes, id) {
            Ok(local) => local,
            Err(JournalError::Volume(VolumeError::NotFound(_))) => return Ok(None),
            Err(error) => return Err(error),
        };
        if volumes.has_standby(id) || local.log() != Some(&self.log) || Local::doubt(volumes, id)?.is_some() {
            return Ok(None);
        }
        // What lies in subvolumes inside is in no journal and no snapshot, and what stands for it in one can hold
        // nothing.
        let inside = btrfs::children(volumes.pool().root(), volumes.get(id)?.info.id);
        let inside =
            inside.map_err(|source| JournalError::Io { attempt: "look for subvolumes", volume: id.clone(), source })?;
        let base = local.base()?.filter(|_| inside.is_empty());
        Ok(base.map(|base| (local, base)))
    }
}
