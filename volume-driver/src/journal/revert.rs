//! Back to a former state: the tree after some transaction becomes the newest one.
//!
//! The journal goes on: what differs is one more transaction. So nothing that was written since is lost, and this can be
//! undone by the same means. Order of events: what was written last is committed; the former tree is put together beside
//! the live one and exchanged with it; the difference is committed. A crash at any point leaves a tree that is whole, and
//! the caller does all of it again, since nothing runs on the volume before it has noted that this was done.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use super::JournalError;
use super::begin::empty;
use super::commit::Journal;
use super::log::Position;
use super::restore::{Restored, layer_roots, replay};
use crate::ids::LayerDigest;
use crate::template::TemplateCache;
use crate::volume::{VolumeError, lay_out};

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
        let to = match self.log.boundary().await?.sequence {
            boundary if boundary > sequence => None,
            _ => self.log.state(sequence).await?,
        };
        let Some(to) = to else {
            let what = format!("it is not kept any more, so that volume {} cannot become what it was then", self.id);
            return Err(JournalError::Damaged { volume: self.id.clone(), sequence, what });
        };
        let layers: Vec<LayerDigest> = self.layers.iter().map(|(layer, _)| layer.clone()).collect();
        let roots = layer_roots(templates, &self.id, &layers)?;
        let (volumes, id) = (self.volumes.clone(), self.id.clone());
        let restored: Restored = replay(&self.volumes, &self.id, &self.log, to, roots, move |fill| {
            volumes.replace_with(&id, size, |live| {
                fill(live)?;
                let failed = |attempt, source| JournalError::Io { attempt, volume: id.clone(), source };
                match rustix::fs::statat(live.as_fd(), "upper", rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
                    // What overlayfs had under way then is of no use to another mount.
                    Ok(_) => {
                        let work = PathBuf::from(format!("/proc/self/fd/{}", live.as_raw_fd())).join(Path::new("work"));
                        empty(&work).map_err(|source| failed("empty the work directory", source))
                    }
                    // There was no tree yet.
                    Err(rustix::io::Errno::NOENT) => Ok(lay_out(live, &id)?),
                    Err(error) => Err(failed("look into the former state", error.into())),
                }
            })
        })
        .await?;
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
