//! Merging: transactions of a journal, fetched and written again as one. What they do is put together from the files alone,
//! so no tree is needed, and it costs what the transactions hold, whatever the volume holds.

use std::fs::File;
use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use vivarium_journal::Kind;
use vivarium_journal::merge;
use vivarium_journal::read::Transaction;
use vivarium_journal::write::Summary;

use super::inventory::{Entry, Inventory, LARGEST, Object, Policy, may_be_split};
use super::keep::Memory;
use super::log::{Appended, Log, Unnamed};
use super::pieces::Piece;
use super::{JournalError, blocking};

/// Transactions that are fetched at the same time.
const AT_ONCE: usize = 8;

/// Merges what can be merged, as much as the policy allows for at a time.
///
/// # Errors
/// The store does not answer. What cannot be merged is left as it is, and not tried again.
pub(super) async fn merge_some(
    log: &Log,
    inventory: &mut Inventory,
    memory: &mut Memory,
    policy: &Policy,
    directory: &Path,
) -> Result<(), JournalError> {
    let mut left = policy.merges;
    loop {
        let mut possible = inventory.merges(memory.boundary.sequence);
        possible.retain(|(piece, _)| !memory.unfit.contains(piece));
        if possible.is_empty() || left == 0 {
            return Ok(());
        }
        // What is merged now can be merged further the next time around.
        for (piece, parts) in possible.into_iter().take(left) {
            left -= 1;
            match merge_one(log, inventory, memory, piece, &parts, directory).await {
                Ok(Some(entry)) => {
                    inventory.merged.insert(piece, entry);
                    memory.sound_merged.insert(piece);
                }
                Ok(None) => drop(memory.unfit.insert(piece)),
                Err(error @ (JournalError::Store { .. } | JournalError::Io { .. })) => return Err(error),
                Err(error) => {
                    tracing::error!(%error, "transactions are not merged");
                    memory.unfit.insert(piece);
                }
            }
        }
    }
}

/// Makes one of several. `None`: it would be too large, or there is one already that is damaged.
async fn merge_one(
    log: &Log,
    inventory: &Inventory,
    memory: &mut Memory,
    piece: Piece,
    parts: &[Piece],
    directory: &Path,
) -> Result<Option<Entry>, JournalError> {
    let volume = log.volume().clone();
    let mut length = 0;
    for part in parts.iter().filter(|part| part.is_single()) {
        let split = inventory.transactions.get(&part.first).is_some_and(|entry| may_be_split(entry.size));
        if split {
            length += log.length(&Object::Transaction(part.first).key(log.name())).await?.unwrap_or(0);
        }
    }
    if length > LARGEST {
        return Ok(None);
    }
    let under_way: Vec<_> = parts.iter().map(|part| log.fetch_piece(*part, directory)).collect();
    let fetched: Vec<_> = futures::stream::iter(under_way).buffered(AT_ONCE).try_collect().await?;
    for transaction in &fetched {
        let header = transaction.header();
        match header.kind {
            Kind::Barrier => drop(memory.barriers.insert(header.sequence)),
            Kind::Delta => drop(memory.deltas.insert(header.sequence)),
            _ => {}
        }
    }
    let io = |source| JournalError::Io { attempt: "merge transactions", volume: volume.clone(), source };
    let file = Unnamed::new(directory).map_err(io)?;
    let to = file.file.try_clone().map_err(io)?;
    let summary = {
        let volume = volume.clone();
        blocking(log.volume(), move || {
            let sequence = piece.last;
            let merged = write(fetched, to);
            merged.map_err(|error| JournalError::Damaged { volume, sequence, what: error.to_string() })
        })
        .await?
    };
    if summary.length > LARGEST {
        return Ok(None);
    }
    let added = log.add_merged(piece, &file.path(), summary.length, summary.content).await?;
    if added == Appended::Taken && !is_sound(log, piece, directory).await? {
        return Ok(None);
    }
    tracing::debug!(%volume, first = piece.first, last = piece.last, bytes = summary.length, ?added, "merged transactions");
    // As old as the newest state in it.
    let newest = parts.last().and_then(|last| inventory.time(*last));
    Ok(newest.map(|time| Entry { size: summary.length, time }))
}

fn write(mut parts: Vec<Transaction<File>>, to: File) -> Result<Summary, merge::MergeError> {
    let header = merge::header(&parts, super::commit::writer())?;
    let (_, summary) = merge::merge(&mut parts, &header, std::io::BufWriter::new(to))?;
    Ok(summary)
}

/// Whether a merged transaction that somebody made does what those in it do: it can be read, and begins and ends with the
/// states that they begin and end with, as far as these are there.
///
/// # Errors
/// The store does not answer.
pub(super) async fn is_sound(log: &Log, piece: Piece, directory: &Path) -> Result<bool, JournalError> {
    let merged = match log.fetch_piece(piece, directory).await {
        Ok(merged) => merged,
        Err(error @ JournalError::Store { .. }) => return Err(error),
        Err(error) => {
            tracing::error!(%error, "a merged transaction is damaged: those in it stay");
            return Ok(false);
        }
    };
    let (before, last) = (log.position(piece.first - 1).await?, log.position(piece.last).await?);
    let begins = before.is_none_or(|before| before.digest == merged.header().parent);
    let ends = last.is_none_or(|last| last.digest == merged.state());
    if !(begins && ends) {
        tracing::error!(volume = %log.volume(), first = piece.first, last = piece.last, "a merged transaction is of other states than those in it, which stay");
    }
    Ok(begins && ends)
}
