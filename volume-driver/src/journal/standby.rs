//! Hot standby: a copy of a volume that another node holds follows its log, and becomes the volume when this node is given
//! it, which then costs what was added since the last look, and not what is in the volume.
//!
//! A copy is a cache. Whatever does not fit is destroyed and made anew from the log, and where there is none, or one that
//! was cut off half way, [`super::begin`] restores as ever. So nothing here is asked before something else is safe.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vivarium_journal::Digest;
use vivarium_journal::read::Transaction;

use super::apply::Target;
use super::log::{Log, Position};
use super::pieces::{MILESTONE, cover};
use super::restore::{Restored, fetch_piece, follows, layer_roots, replay, replay_from};
use super::{JournalError, blocking};
use crate::ids::{LayerDigest, VolumeId};
use crate::template::TemplateCache;
use crate::volume::standby::Standby;
use crate::volume::{VolumeError, Volumes};

/// Transactions that are carried out at a time. Who takes the copy over waits for them.
const BATCH: usize = 64;
/// Bytes of transactions after which a batch ends.
const BATCH_BYTES: u64 = 64 << 20;
/// Version of [`Stored`] that this build writes and reads.
const VERSION: u32 = 1;

/// `standby.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    version: u32,
    sequence: u64,
    epoch: u64,
    digest: String,
}

impl Stored {
    pub(super) fn of(position: Position) -> Self {
        let Position { sequence, epoch, digest } = position;
        Self { version: VERSION, sequence, epoch, digest: digest.to_string() }
    }

    fn position(&self) -> Option<Position> {
        let digest = Digest::parse(&self.digest)?;
        (self.version == VERSION).then_some(Position { sequence: self.sequence, epoch: self.epoch, digest })
    }
}

/// What a look at the log brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// There is no tree in the log yet, and no copy.
    Nothing,
    /// The copy was made.
    Made(Position),
    /// Transactions were carried out.
    Moved {
        /// Where the copy is now.
        to: Position,
        /// How many.
        count: usize,
        /// Whether there is more already.
        more: bool,
    },
    /// The copy holds all that there is.
    Same(Position),
}

/// What follows the log of one volume.
#[derive(Clone)]
pub struct Follower {
    /// The volumes of this node.
    pub volumes: Volumes,
    /// The volume.
    pub id: VolumeId,
    /// Its size in bytes.
    pub size: u64,
    /// Its log.
    pub log: Log,
    /// Layers of its template, lowest first; they are on this node.
    pub layers: Vec<LayerDigest>,
}

impl Follower {
    /// Brings the copy on, or makes it, with about `room` bytes. `known` is a transaction that was in the log for certain.
    ///
    /// # Errors
    /// [`JournalError`]; a copy that does not fit to the log is destroyed then, and the next call makes it anew.
    pub async fn step(&self, templates: &TemplateCache, known: u64, room: u64) -> Result<Followed, JournalError> {
        let roots = layer_roots(templates, &self.id, &self.layers)?;
        match self.open().await? {
            Some((standby, at)) => self.advance(standby, at, roots, known).await,
            None => self.make(roots, known, room).await,
        }
    }

    /// The copy, if it is of any use.
    async fn open(&self) -> Result<Option<(Standby, Position)>, JournalError> {
        let (volumes, id) = (self.volumes.clone(), self.id.clone());
        blocking(&self.id, move || {
            let Some(standby) = volumes.standby(&id)? else { return Ok(None) };
            // A file that cannot be read is as good as none.
            let stored: Option<Stored> = standby.state().unwrap_or_default();
            if let Some(at) = stored.as_ref().and_then(Stored::position) {
                return Ok(Some((standby, at)));
            }
            tracing::warn!(volume = %id, "the standby copy was cut off half way and is made anew");
            standby.destroy()?;
            Ok(None)
        })
        .await
    }

    async fn make(&self, roots: Vec<OwnedFd>, known: u64, room: u64) -> Result<Followed, JournalError> {
        let begun = Instant::now();
        let tail = self.log.tail(known).await?;
        let (volumes, id, size) = (self.volumes.clone(), self.id.clone(), self.size);
        let made = replay(&self.volumes, &self.id, &self.log, tail, roots, move |fill| {
            volumes.create_standby(&id, size, room, |live| fill(live))
        });
        let made = made.await?;
        let (volumes, id) = (self.volumes.clone(), self.id.clone());
        blocking(&self.id, move || {
            let Some(standby) = volumes.standby(&id)? else { return Ok(Followed::Nothing) };
            if made.empty {
                standby.destroy()?;
                return Ok(Followed::Nothing);
            }
            standby.settle(&Stored::of(tail))?;
            let (transactions, bytes, took) = (made.transactions, made.bytes, begun.elapsed());
            tracing::info!(volume = %id, sequence = tail.sequence, transactions, bytes, ?took, "made a standby copy");
            Ok(Followed::Made(tail))
        })
        .await
    }

    async fn advance(
        &self,
        standby: Standby,
        at: Position,
        roots: Vec<OwnedFd>,
        known: u64,
    ) -> Result<Followed, JournalError> {
        let batch = match self.fetch_after(at.sequence).await {
            Ok(batch) if batch.transactions.is_empty() && known > at.sequence => {
                let what = "it is not in the store, and one after it is".to_owned();
                Err(JournalError::Damaged { volume: self.id.clone(), sequence: at.sequence + 1, what })
            }
            other => other,
        };
        let (volumes, id) = (self.volumes.clone(), self.id.clone());
        blocking(&self.id, move || {
            let moved = match batch {
                Ok(batch) if batch.transactions.is_empty() => return Ok(Followed::Same(at)),
                Ok(batch) => carry_out(&volumes, &standby, &id, at, roots, batch),
                Err(error) => Err(error),
            };
            match moved {
                Ok(moved) => Ok(moved),
                // It may be possible in a moment.
                Err(error @ (JournalError::Store { .. } | JournalError::CutOff { .. })) => Err(error),
                Err(error) => {
                    tracing::warn!(%error, volume = %id, "the standby copy cannot go on and is made anew");
                    standby.destroy()?;
                    Err(error)
                }
            }
        })
        .await
    }

    /// What comes after a transaction, as far as it is there and fits into a batch.
    async fn fetch_after(&self, sequence: u64) -> Result<Batch, JournalError> {
        let directory: &Path = self.volumes.pool().path();
        let mut batch = Batch::default();
        // The cheapest questions, and the most frequent ones.
        if self.log.exists(sequence + 1).await? {
            while !batch.more {
                let next = sequence + 1 + batch.transactions.len() as u64;
                let Some(transaction) = self.log.fetch_if_there(next, directory).await? else { break };
                batch.add(transaction);
            }
            return Ok(batch);
        }
        let milestone = (sequence / MILESTONE + 1) * MILESTONE;
        if !self.log.exists(milestone).await? {
            return Ok(batch);
        }
        // The log goes on, and what came next was merged: this copy was not looked after for long.
        let merged = self.log.merged().await?;
        for piece in cover(&merged, sequence, milestone) {
            for transaction in fetch_piece(&self.log, &merged, piece, directory).await? {
                batch.add(transaction);
            }
            if batch.more {
                break;
            }
        }
        batch.more = true;
        Ok(batch)
    }
}

/// What is carried out at a time.
#[derive(Default)]
struct Batch {
    transactions: Vec<Transaction<File>>,
    bytes: u64,
    /// Whether there may be more than what fits.
    more: bool,
}

impl Batch {
    fn add(&mut self, transaction: Transaction<File>) {
        self.bytes += transaction.summary().length;
        self.transactions.push(transaction);
        self.more = self.transactions.len() >= BATCH || self.bytes >= BATCH_BYTES;
    }
}

/// Carries a batch out in the copy, which is of no use until all of it is on the disk.
fn carry_out(
    volumes: &Volumes,
    standby: &Standby,
    id: &VolumeId,
    at: Position,
    roots: Vec<OwnedFd>,
    batch: Batch,
) -> Result<Followed, JournalError> {
    let Batch { transactions, bytes, more } = batch;
    let mut to = at;
    for transaction in &transactions {
        to = follows(id, to, transaction)?;
    }
    // Room is asked for before anything is done: a pool that is full in between costs the copy.
    volumes.pool().require(bytes).map_err(VolumeError::from)?;
    standby.begin()?;
    let mut target = Target::new(standby.live()?, roots);
    let count = transactions.len();
    for mut transaction in transactions {
        // A barrier, or several: nothing in the tree changes.
        if transaction.summary().operations > 0 {
            let applied = target.apply(&mut transaction);
            applied.map_err(|source| JournalError::Apply { volume: id.clone(), source })?;
        }
    }
    standby.settle(&Stored::of(to))?;
    Ok(Followed::Moved { to, count, more })
}

/// Makes volume `id`, which is not on this node, from its standby copy, as of transaction `tail`, with `size` bytes.
/// `None`: there is no copy, or none that is of any use; there is none any more then.
///
/// # Errors
/// The pool fails, or the store does not answer.
pub(super) async fn take_over(
    volumes: &Volumes,
    id: &VolumeId,
    size: u64,
    log: &Log,
    tail: Position,
    roots: Vec<OwnedFd>,
) -> Result<Option<Restored>, JournalError> {
    let follower = Follower { volumes: volumes.clone(), id: id.clone(), size, log: log.clone(), layers: Vec::new() };
    let Some((standby, at)) = follower.open().await? else { return Ok(None) };
    // What was never acknowledged can be in a store that was given up, and not in the one that decides.
    if at.sequence >= tail.sequence && at != tail {
        blocking(id, move || Ok(standby.destroy()?)).await?;
        return Ok(None);
    }
    // If what is missing was merged, this is what leads on.
    let merged = log.merged().await?;
    let taken = replay_from(volumes, id, (log, merged), (None, at), tail, roots, move |fill| {
        standby.begin()?;
        fill(&standby.live()?)?;
        Ok(standby.promote(size)?)
    });
    match taken.await {
        Ok(restored) => Ok(Some(restored)),
        Err(error) => {
            tracing::error!(%error, volume = %id, "the standby copy cannot be taken over; the volume is restored instead");
            let (volumes, volume) = (volumes.clone(), id.clone());
            blocking(id, move || drop_standby(&volumes, &volume)).await?;
            Ok(None)
        }
    }
}

/// Destroys the standby copy of a volume, if there is one.
///
/// # Errors
/// The pool fails.
pub fn drop_standby(volumes: &Volumes, id: &VolumeId) -> Result<(), JournalError> {
    match volumes.standby(id)? {
        Some(standby) => Ok(standby.destroy()?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_another_version_is_none() {
        let position = Position { sequence: 7, epoch: 2, digest: Digest([9; 32]) };
        let stored = Stored::of(position);
        assert_eq!(stored.position(), Some(position));
        assert_eq!(Stored { version: 2, ..stored.clone() }.position(), None);
        assert_eq!(Stored { digest: "x".into(), ..stored }.position(), None);
    }
}
