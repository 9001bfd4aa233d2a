//! A volume from its log: an empty subvolume, and every transaction carried out in it, in order.
//!
//! All in one subvolume, because the kernel counts blocks against the subvolume that wrote them: a chain of received
//! snapshots would escape its size.

use std::os::fd::OwnedFd;
use std::sync::mpsc;

use tokio::runtime::Handle;
use vivarium_journal::Kind;

use super::JournalError;
use super::apply::Target;
use super::log::{Log, Position};
use crate::ids::{LayerDigest, VolumeId};
use crate::template::TemplateCache;
use crate::volume::Volumes;

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

/// Makes volume `id`, which is not on this node, with `size` bytes, as of transaction `tail`. `None` where the log holds
/// no tree: nothing is made then.
///
/// # Errors
/// [`JournalError`]; nothing is left of the volume then.
pub async fn restore(
    volumes: &Volumes,
    id: &VolumeId,
    size: u64,
    log: &Log,
    tail: Position,
    layers: Vec<OwnedFd>,
) -> Result<Restored, JournalError> {
    let (volumes, id, log) = (volumes.clone(), id.clone(), log.clone());
    let handle = Handle::current();
    let volume = id.clone();
    super::blocking(&volume, move || {
        let mut restored = Restored { empty: true, transactions: 0, operations: 0 };
        let directory = volumes.pool().path().to_owned();
        let (give, take) = mpsc::sync_channel(AHEAD);
        let fetcher = {
            let log = log.clone();
            handle.spawn(async move {
                for sequence in 1..=tail.sequence {
                    let fetched = log.fetch(sequence, &directory).await;
                    let failed = fetched.is_err();
                    let give = give.clone();
                    // The channel is bounded, so a send may wait: not on a thread of the runtime.
                    let taken = tokio::task::spawn_blocking(move || give.send(fetched).is_ok()).await;
                    if failed || !taken.unwrap_or(false) {
                        return;
                    }
                }
            })
        };
        let made = volumes.create_with(&id, size, 1 << 20, |live| {
            let live = live.try_clone().map_err(|source| JournalError::Io {
                attempt: "open the subvolume",
                volume: id.clone(),
                source,
            })?;
            let mut target = Target::new(live, layers);
            let mut before = Position::START;
            while before.sequence < tail.sequence {
                let next = take
                    .recv()
                    .map_err(|error| JournalError::CutOff { volume: id.clone(), message: error.to_string() })?;
                let mut transaction = next?;
                let header = transaction.header();
                let follows = header.parent == before.digest && header.epoch >= before.epoch;
                if !follows {
                    let what = format!("it follows {}, not {}", header.parent, before.digest);
                    return Err(JournalError::Damaged { volume: id.clone(), sequence: header.sequence, what });
                }
                before =
                    Position { sequence: header.sequence, epoch: header.epoch, digest: transaction.summary().digest };
                if header.kind != Kind::Barrier {
                    restored.empty = false;
                    restored.transactions += 1;
                    restored.operations += transaction.summary().operations;
                    target
                        .apply(&mut transaction)
                        .map_err(|source| JournalError::Apply { volume: id.clone(), source })?;
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
        if restored.empty {
            volumes.delete(&id)?;
        }
        Ok(restored)
    })
    .await
}
