//! A volume from its log: an empty subvolume, the newest checkpoint, and every transaction after it carried out, in order.
//!
//! All in one subvolume, because the kernel counts blocks against the subvolume that wrote them: a chain of received
//! snapshots would escape its size.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use futures::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use vivarium_journal::read::Transaction;

use super::JournalError;
use super::apply::Target;
use super::log::{Log, Position};
use super::pieces::{LEVELS, Piece, cover};
use crate::ids::{LayerDigest, VolumeId};
use crate::template::TemplateCache;
use crate::volume::Volumes;

/// What fills an empty subvolume.
type Fill<'a> = &'a mut dyn FnMut(&OwnedFd) -> Result<(), JournalError>;
/// Transactions that are fetched ahead of the one that is carried out.
const AHEAD: usize = 8;

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Whether the log holds nothing but barriers: there is no tree yet.
    pub empty: bool,
    /// Transactions that were carried out.
    pub transactions: u64,
    /// Operations in them.
    pub operations: u64,
    /// Bytes of them in the store.
    pub bytes: u64,
}

impl Restored {
    /// Nothing was carried out. `empty`: there was nothing before either.
    #[must_use]
    pub const fn nothing(empty: bool) -> Self {
        Self { empty, transactions: 0, operations: 0, bytes: 0 }
    }
}

/// The roots of the layers of a volume's template, lowest first.
///
/// # Errors
/// One is not on this node.
pub fn layer_roots(
    templates: &TemplateCache,
    volume: &VolumeId,
    layers: &[LayerDigest],
) -> Result<Vec<OwnedFd>, JournalError> {
    let open = |layer: &LayerDigest| {
        crate::pool::open_directory(&templates.path(layer))
            .map_err(|_| JournalError::LayerMissing { volume: volume.clone(), layer: layer.to_string() })
    };
    layers.iter().map(open).collect()
}

/// Makes volume `id`, which is not on this node, with `size` bytes, of which about `room` will be in use, as of transaction
/// `tail`. Where the log holds no tree, nothing is made.
///
/// # Errors
/// [`JournalError`]; nothing is left of the volume then.
pub async fn restore(
    volumes: &Volumes,
    id: &VolumeId,
    size: u64,
    room: u64,
    log: &Log,
    tail: Position,
    layers: Vec<OwnedFd>,
) -> Result<Restored, JournalError> {
    let (made, volume) = (volumes.clone(), id.clone());
    let restored =
        replay(volumes, id, log, tail, layers, move |fill| made.create_with(&volume, size, room, fill).map(drop));
    let restored = restored.await?;
    if restored.empty {
        let (volumes, volume) = (volumes.clone(), id.clone());
        super::blocking(id, move || Ok(volumes.delete(&volume)?)).await?;
    }
    Ok(restored)
}

/// Fills an empty subvolume, which `fill_in` provides, with the tree as of transaction `tail`: from the newest checkpoint that
/// is not newer, and what came after it. A checkpoint that cannot be used is passed over.
///
/// # Errors
/// [`JournalError`].
pub(crate) async fn replay(
    volumes: &Volumes,
    id: &VolumeId,
    log: &Log,
    tail: Position,
    layers: Vec<OwnedFd>,
    fill_in: impl FnOnce(Fill<'_>) -> Result<(), JournalError> + Send + 'static,
) -> Result<Restored, JournalError> {
    // Somebody waits for all of this: whatever does not depend on an answer is asked at the same time.
    let (merged, checkpoints, boundary) = futures::try_join!(log.merged(), log.checkpoints(), log.boundary())?;
    let known = (checkpoints, boundary.sequence);
    let checkpoint = newest_checkpoint(log, &merged, known, tail, volumes.pool().path()).await?;
    let before = checkpoint.as_ref().map_or(Position::START, |checkpoint| {
        let header = checkpoint.header();
        Position { sequence: header.sequence, epoch: header.epoch, digest: header.parent }
    });
    replay_from(volumes, id, (log, merged), (checkpoint, before), tail, layers, fill_in).await
}

/// Brings a subvolume, which `fill_in` provides, to the tree as of transaction `tail`. It holds the tree as of `before`, or
/// nothing and a checkpoint of that is given; then comes everything after `before`, as merged transactions where those of
/// the log that are given fit.
///
/// # Errors
/// [`JournalError`]; the subvolume is in no useful state then.
pub(super) async fn replay_from(
    volumes: &Volumes,
    id: &VolumeId,
    (log, merged): (&Log, BTreeSet<Piece>),
    (checkpoint, before): (Option<Transaction<File>>, Position),
    tail: Position,
    layers: Vec<OwnedFd>,
    fill_in: impl FnOnce(Fill<'_>) -> Result<(), JournalError> + Send + 'static,
) -> Result<Restored, JournalError> {
    let directory = volumes.pool().path().to_owned();
    let (id, log, handle) = (id.clone(), log.clone(), Handle::current());
    let volume = id.clone();
    super::blocking(&volume, move || {
        let (mut checkpoint, mut layers, mut before) = (checkpoint, layers, before);
        let mut restored = Restored::nothing(before == Position::START);
        let (give, take) = mpsc::sync_channel(AHEAD);
        let fetcher = handle.spawn(fetch_all(log, merged, before.sequence, tail.sequence, directory, give));
        let made = fill_in(&mut |live| {
            let live = live.try_clone().map_err(|source| JournalError::Io {
                attempt: "open the subvolume",
                volume: id.clone(),
                source,
            })?;
            let mut target = Target::new(live, std::mem::take(&mut layers));
            let mut carry_out = |transaction: &mut Transaction<File>| {
                restored.empty = false;
                restored.transactions += 1;
                restored.operations += transaction.summary().operations;
                restored.bytes += transaction.summary().length;
                target.apply(transaction).map_err(|source| JournalError::Apply { volume: id.clone(), source })
            };
            if let Some(mut checkpoint) = checkpoint.take() {
                carry_out(&mut checkpoint)?;
            }
            while before.sequence < tail.sequence {
                let next = take
                    .recv()
                    .map_err(|error| JournalError::CutOff { volume: id.clone(), message: error.to_string() })?;
                let mut transaction = next?;
                before = follows(&id, before, &transaction)?;
                // A barrier, or several: there is no tree because of it.
                if transaction.summary().operations > 0 {
                    carry_out(&mut transaction)?;
                }
            }
            if before.digest != tail.digest {
                let what = format!("its digest is {}, not {}", before.digest, tail.digest);
                return Err(JournalError::Damaged { volume: id.clone(), sequence: tail.sequence, what });
            }
            Ok(())
        });
        fetcher.abort();
        made?;
        Ok(restored)
    })
    .await
}

/// Fetches what leads from one transaction to another, in order, some ahead of whoever takes it.
async fn fetch_all(
    log: Log,
    merged: BTreeSet<Piece>,
    from: u64,
    to: u64,
    directory: PathBuf,
    give: mpsc::SyncSender<Result<Transaction<File>, JournalError>>,
) {
    let pieces = cover(&merged, from, to);
    let under_way = pieces.into_iter().map(|piece| fetch_piece(&log, &merged, piece, &directory));
    let mut fetched = futures::stream::iter(under_way).buffered(AHEAD);
    while let Some(transactions) = fetched.next().await {
        let failed = transactions.is_err();
        let each: Vec<_> = match transactions {
            Ok(transactions) => transactions.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        for transaction in each {
            let give = give.clone();
            // The channel is bounded, so a send may wait: not on a thread of the runtime.
            let taken = tokio::task::spawn_blocking(move || give.send(transaction).is_ok()).await;
            if !taken.unwrap_or(false) {
                return;
            }
        }
        if failed {
            return;
        }
    }
}

/// A piece; or, if it is a merged transaction that cannot be used, those that it was made of.
pub(super) async fn fetch_piece(
    log: &Log,
    merged: &BTreeSet<Piece>,
    piece: Piece,
    directory: &Path,
) -> Result<Vec<Transaction<File>>, JournalError> {
    let (mut left, mut fetched) = (vec![piece], Vec::new());
    while let Some(piece) = left.pop() {
        match log.fetch_piece(piece, directory).await {
            Ok(transaction) => fetched.push(transaction),
            Err(error @ (JournalError::Damaged { .. } | JournalError::Read { .. })) if !piece.is_single() => {
                tracing::error!(%error, "a merged transaction cannot be used; what it was made of is");
                let others = merged.iter().filter(|other| piece.contains(**other)).copied().collect();
                left.extend(cover(&others, piece.first - 1, piece.last).into_iter().rev());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(fetched)
}

/// Where a log is after what leads on from `before`, if that does.
pub(super) fn follows(
    id: &VolumeId,
    before: Position,
    transaction: &Transaction<File>,
) -> Result<Position, JournalError> {
    let header = transaction.header();
    let follows = header.first == before.sequence + 1 && header.parent == before.digest && header.epoch >= before.epoch;
    if !follows {
        let what = format!("it follows {}, not {}", header.parent, before.digest);
        return Err(JournalError::Damaged { volume: id.clone(), sequence: header.sequence, what });
    }
    Ok(Position { sequence: header.sequence, epoch: header.epoch, digest: transaction.state() })
}

/// The newest checkpoint that can be used, of those that are listed and the one at the boundary, fetched and checked. Without
/// one the log is read from its beginning, which has to be there then.
async fn newest_checkpoint(
    log: &Log,
    merged: &BTreeSet<Piece>,
    (mut numbers, boundary): (Vec<u64>, u64),
    tail: Position,
    directory: &Path,
) -> Result<Option<Transaction<File>>, JournalError> {
    // It is there, whether it was listed or not.
    if boundary > 0 && !numbers.contains(&boundary) {
        numbers.push(boundary);
        numbers.sort_unstable();
    }
    let mut last = None;
    for sequence in numbers.into_iter().rev().filter(|sequence| (boundary..=tail.sequence).contains(sequence)) {
        match log.fetch_checkpoint(sequence, directory).await {
            Ok(checkpoint) => match missing(log, merged, sequence, tail.sequence).await? {
                None => return Ok(Some(checkpoint)),
                Some(gone) => {
                    tracing::error!(volume = %log.volume(), checkpoint = sequence, gone, "nothing leads on from a checkpoint; an older one is taken");
                    last = Some(log.missing(gone));
                }
            },
            Err(error @ JournalError::Store { .. }) => return Err(error),
            Err(error) => {
                tracing::error!(%error, "a checkpoint cannot be used; an older one is taken");
                last = Some(error);
            }
        }
    }
    match last {
        Some(error) if boundary > 0 => Err(error),
        _ => Ok(None),
    }
}

/// A transaction that is needed to go on from a checkpoint and is not there. It can only be one that was merged, by somebody
/// who was not shown the checkpoint.
async fn missing(log: &Log, merged: &BTreeSet<Piece>, from: u64, to: u64) -> Result<Option<u64>, JournalError> {
    let may_be_gone = |single: &Piece| {
        let longer = merged.range(..=Piece { first: single.first, last: u64::MAX }).rev();
        longer.take_while(|piece| piece.first + LEVELS[LEVELS.len() - 1] > single.first).any(|p| p.contains(*single))
    };
    let singles = cover(merged, from, to).into_iter().filter(|piece| piece.is_single()).filter(may_be_gone);
    let asked: Vec<_> =
        singles.map(async |single| Ok::<_, JournalError>((single.first, log.exists(single.first).await?))).collect();
    let found: Vec<(u64, bool)> = futures::stream::iter(asked).buffer_unordered(AHEAD).try_collect().await?;
    Ok(found.into_iter().find(|(_, is_there)| !is_there).map(|(number, _)| number))
}
