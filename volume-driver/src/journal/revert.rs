//! Back to a former state: the tree after some transaction becomes the newest one, or some files and directories of it
//! ([`super::paths`]).
//!
//! The journal goes on: what differs is one more transaction. So nothing that was written since is lost, and this can be
//! undone by the same means. Order of events: what was written last is committed, and its number noted; the former tree is
//! put together beside the live one, and exchanged with it, or gives what is asked for; the difference is committed. A crash
//! at any point leaves a tree that is whole, or of some paths the former and of others the present state. Then the caller
//! does all of it again, since nothing runs on the volume before it has noted that this was done; and the second time
//! begins with putting back what was there, so that it is decided from the same, and what is refused has changed nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use super::JournalError;
use super::begin::empty;
use super::commit::Journal;
use super::log::{Log, Position};
use super::paths;
use super::restore::{Restored, layer_roots, replay};
use crate::ids::{LayerDigest, VolumeId};
use crate::template::TemplateCache;
use crate::volume::{VolumeError, Volumes, lay_out};

/// What is asked for.
#[derive(Clone)]
pub struct Revert {
    /// Names the order. Whoever repeats one that was cut off gets the answer that he would have had.
    pub order: String,
    /// The log that has the state; none: the one that decides.
    pub from: Option<Log>,
    /// The state after this transaction.
    pub sequence: u64,
    /// Absolute paths in the environment; none: all of it.
    pub paths: Vec<PathBuf>,
}

impl std::fmt::Debug for Revert {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "order {}: {:?} after transaction {}", self.order, self.paths, self.sequence)
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reverted {
    /// The newest state before.
    pub before: Position,
    /// The newest state now.
    pub head: Position,
}

impl Journal {
    /// Makes the state after a transaction the newest one, or some of it, in `size` bytes. Nobody has the volume open.
    ///
    /// # Errors
    /// [`JournalError`]. After one that is final ([`JournalError::is_final`]) the volume is as it was before.
    pub async fn revert(
        &mut self,
        templates: &TemplateCache,
        wanted: &Revert,
        size: u64,
    ) -> Result<Reverted, JournalError> {
        let sequence = wanted.sequence;
        let before = self.before(templates, wanted, size).await?;
        let log = wanted.from.clone().unwrap_or_else(|| self.log.clone());
        let Some(to) = log.state(sequence).await? else {
            let what = format!("it is not kept any more, so that volume {} cannot become what it was then", self.id);
            return Err(JournalError::Damaged { volume: self.id.clone(), sequence, what });
        };
        let layers: Vec<LayerDigest> = self.layers.iter().map(|(layer, _)| layer.clone()).collect();
        let roots = layer_roots(templates, &self.id, &layers)?;
        if wanted.paths.is_empty() {
            put_in_place(&self.volumes, &self.id, &log, to, roots, size, |_| Ok(())).await?;
        } else {
            let (volumes, id, paths, at) =
                (self.volumes.clone(), self.id.clone(), wanted.paths.clone(), named(sequence));
            let again = duplicates(&self.id, &roots)?;
            with_state(&self.volumes, &self.id, &log, to, roots, size, move |past| {
                paths::put(&volumes, &id, size, past.as_fd(), &again, &paths, &at)
            })
            .await?;
        }
        self.clean = None;
        let head = self.commit_all().await?;
        tracing::info!(volume = %self.id, ?wanted, head = head.sequence, "brought a former state back");
        Ok(Reverted { before, head })
    }

    /// The newest transaction from before an order. What it says is in the live tree then, if only some paths are asked for.
    async fn before(
        &mut self,
        templates: &TemplateCache,
        wanted: &Revert,
        size: u64,
    ) -> Result<Position, JournalError> {
        let order = wanted.order.clone();
        let Some(before) = self.with_local(move |local| local.before(&order)).await? else {
            let (order, newest) = (wanted.order.clone(), self.commit_all().await?);
            self.with_local(move |local| local.note_before(order, newest)).await?;
            return Ok(newest);
        };
        if !wanted.paths.is_empty() {
            let layers: Vec<LayerDigest> = self.layers.iter().map(|(layer, _)| layer.clone()).collect();
            let roots = layer_roots(templates, &self.id, &layers)?;
            let put = put_in_place(&self.volumes, &self.id, &self.log, before, roots, size, |_| Ok(())).await;
            // As long as that fails, some of the order may be done: there is no answer.
            put.map_err(|error| JournalError::Io {
                attempt: "put back what was there before a restore that was cut off",
                volume: self.id.clone(),
                source: io::Error::other(error),
            })?;
        }
        Ok(before)
    }

    /// Commits everything that was written until now.
    pub(super) async fn commit_all(&mut self) -> Result<Position, JournalError> {
        let pool = self.volumes.pool().clone();
        super::blocking(&self.id, move || Ok(pool.sync().map_err(VolumeError::from)?)).await?;
        Ok(self.commit().await?.head)
    }
}

fn named(sequence: u64) -> String {
    format!("the state after transaction {sequence}")
}

fn duplicates(id: &VolumeId, roots: &[OwnedFd]) -> Result<Vec<OwnedFd>, JournalError> {
    let again = roots.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
    again.map_err(|source| JournalError::Io { attempt: "open a layer", volume: id.clone(), source })
}

/// Finds out whether the state after transaction `to` of `log` has all these paths of the environment. `size` is that of the
/// volume.
///
/// # Errors
/// [`JournalError::Refused`] says which it has not; or it cannot be put together.
pub async fn check_paths(
    volumes: &Volumes,
    templates: &TemplateCache,
    log: &Log,
    layers: &[LayerDigest],
    to: Position,
    size: u64,
    paths: Vec<PathBuf>,
) -> Result<(), JournalError> {
    let (id, at) = (log.volume().clone(), named(to.sequence));
    let roots = layer_roots(templates, &id, layers)?;
    let again = duplicates(&id, &roots)?;
    with_state(volumes, log.volume(), log, to, roots, size, move |past| {
        paths::check(&id, past.as_fd(), &again, &paths, &at)
    })
    .await
}

/// Puts the state after transaction `to` of `log` together for `work`, and destroys it afterwards.
async fn with_state(
    volumes: &Volumes,
    id: &VolumeId,
    log: &Log,
    to: Position,
    roots: Vec<OwnedFd>,
    size: u64,
    work: impl FnOnce(&OwnedFd) -> Result<(), JournalError> + Send + 'static,
) -> Result<(), JournalError> {
    let (made, volume) = (volumes.clone(), id.clone());
    let replayed = replay(volumes, id, log, to, roots, move |fill| {
        let room = made.usage(&volume).ok().flatten().map_or(0, |usage| usage.used);
        made.scratch(&volume, size, room, |past| {
            fill(past)?;
            work(past)
        })
    });
    replayed.await.map(drop)
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
