//! Back to a former state: the tree after some transaction becomes the newest one.
//!
//! The journal goes on: what differs is one more transaction. So nothing that was written since is lost, and this can be
//! undone by the same means. Order of events: what was written last is committed; the former tree is put together beside
//! the live one and exchanged with it; the difference is committed. A crash at any point leaves a tree that is whole, and
//! the caller does all of it again, since nothing runs on the volume before it has noted that this was done.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use super::JournalError;
use super::begin::empty;
use super::commit::Journal;
use super::log::{Log, Position};
use super::restore::{Restored, layer_roots, replay};
use crate::ids::{LayerDigest, VolumeId};
use crate::template::TemplateCache;
use crate::volume::{VolumeError, Volumes, lay_out};

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reverted {
    /// The newest state before.
    pub before: Position,
    /// The newest state now.
    pub head: Position,
}

impl Journal {
    /// Makes the state after transaction `sequence` the newest one, in `size` bytes. Nobody has the volume open.
    ///
    /// # Errors
    /// [`JournalError`]. The volume then is as it was before or as it was to become; see [`JournalError::is_final`].
    pub async fn revert(
        &mut self,
        templates: &TemplateCache,
        sequence: u64,
        size: u64,
    ) -> Result<Reverted, JournalError> {
        let before = self.commit_all().await?;
        let Some(to) = self.log.state(sequence).await? else {
            let what = format!("it is not kept any more, so that volume {} cannot become what it was then", self.id);
            return Err(JournalError::Damaged { volume: self.id.clone(), sequence, what });
        };
        let layers: Vec<LayerDigest> = self.layers.iter().map(|(layer, _)| layer.clone()).collect();
        let roots = layer_roots(templates, &self.id, &layers)?;
        let restored = put_in_place(&self.volumes, &self.id, &self.log, to, roots, size, |_| Ok(())).await?;
        self.clean = None;
        let head = self.commit_all().await?;
        tracing::info!(volume = %self.id, to = sequence, ?restored, head = head.sequence, "brought a former state back");
        Ok(Reverted { before, head })
    }

    /// Commits everything that was written until now.
    pub(super) async fn commit_all(&mut self) -> Result<Position, JournalError> {
        let pool = self.volumes.pool().clone();
        super::blocking(&self.id, move || Ok(pool.sync().map_err(VolumeError::from)?)).await?;
        Ok(self.commit().await?.head)
    }
}

/// Puts the state after transaction `to` of `log` together, lets `finish` do its part, and exchanges it with the live tree of
/// volume `id`.
pub(super) async fn put_in_place(
    volumes: &Volumes,
    id: &VolumeId,
    log: &Log,
    to: Position,
    roots: Vec<OwnedFd>,
    size: u64,
    finish: impl FnOnce(&OwnedFd) -> io::Result<()> + Send + 'static,
) -> Result<Restored, JournalError> {
    let (made, volume) = (volumes.clone(), id.clone());
    replay(volumes, id, log, to, roots, move |fill| {
        made.replace_with(&volume, size, |live| {
            fill(live)?;
            let failed = |attempt, source| JournalError::Io { attempt, volume: volume.clone(), source };
            match rustix::fs::statat(live.as_fd(), "upper", rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
                // What overlayfs had under way then is of no use to another mount.
                Ok(_) => {
                    let work = PathBuf::from(format!("/proc/self/fd/{}", live.as_raw_fd())).join("work");
                    empty(&work).map_err(|source| failed("empty the work directory", source))?;
                }
                // There was no tree yet.
                Err(rustix::io::Errno::NOENT) => lay_out(live, &volume)?,
                Err(error) => return Err(failed("look into the former state", error.into())),
            }
            finish(live).map_err(|source| failed("finish the former state", source))
        })
    })
    .await
}
