//! Proof that a volume can be brought back: its own node tells the digest of the tree after a transaction, and another node
//! restores that state from the store alone, and compares.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use vivarium_journal::Digest;

use super::JournalError;
use super::commit::Journal;
use super::keep::Subject;
use super::log::Log;
use super::restore::{layer_roots, replay};
use super::tree;
use crate::ids::VolumeId;
use crate::template::TemplateCache;
use crate::volume::Volumes;

/// Pause after work, in times of what it took: what reads a whole tree takes a quarter of a disk at most.
const REST: u32 = 3;
/// Longest pause.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// A tree as its own node has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// The transaction after which it was so.
    pub sequence: u64,
    /// Its digest.
    pub digest: Digest,
}

impl Journal {
    /// Keeps the newest state that is in the log, so that it can be looked at while the journal goes on.
    pub(super) async fn pin(&mut self) -> Result<Option<(u64, OwnedFd)>, JournalError> {
        self.with_local(|local| Ok(local.pin()?.map(|(sequence, snapshot)| (sequence, snapshot.root)))).await
    }

    /// Keeps it no longer.
    pub(super) async fn unpin(&mut self) -> Result<(), JournalError> {
        self.with_local(|local| local.unpin()).await
    }
}

/// The digest of a tree that nobody changes, computed with pauses.
pub(super) async fn fingerprint(volume: &VolumeId, sequence: u64, root: OwnedFd) -> Result<Fingerprint, JournalError> {
    let id = volume.clone();
    super::blocking(volume, move || {
        let mut hasher = blake3::Hasher::new();
        let mut begun = Instant::now();
        tree::describe(root.as_fd(), &mut |line| {
            hasher.update(line.as_bytes());
            hasher.update(b"\n");
            std::thread::sleep((begun.elapsed() * REST).min(LONGEST_REST));
            begun = Instant::now();
        })
        .map_err(|source| JournalError::Io { attempt: "read the tree", volume: id, source })?;
        Ok(Fingerprint { sequence, digest: Digest(*hasher.finalize().as_bytes()) })
    })
    .await
}

/// Restores the state after a transaction into a copy that is thrown away; its digest. `None`: that state is not kept by
/// itself any more.
///
/// # Errors
/// [`JournalError`].
pub async fn prove(
    volumes: &Volumes,
    templates: &TemplateCache,
    log: &Log,
    subject: &Subject,
    sequence: u64,
) -> Result<Option<Digest>, JournalError> {
    let Subject { volume, layers, size, room, .. } = subject;
    let Some(position) = log.state(sequence).await? else {
        return if log.is_passed(sequence).await? { Ok(None) } else { Err(log.missing(sequence)) };
    };
    let roots = layer_roots(templates, volume, layers)?;
    let (made, id, size, room) = (volumes.clone(), volume.clone(), *size, *room);
    let (sender, receiver) = std::sync::mpsc::channel();
    replay(volumes, volume, log, position, roots, move |fill| {
        made.scratch(&id, size, room, |live| {
            fill(live)?;
            let digest = tree::digest(live.as_fd());
            let failed = |source| JournalError::Io { attempt: "read the restored tree", volume: id.clone(), source };
            // The receiver waits for this closure.
            let _ = sender.send(digest.map_err(failed)?);
            Ok(())
        })
    })
    .await?;
    let digest = receiver.try_recv();
    digest.map(Some).map_err(|error| JournalError::CutOff { volume: volume.clone(), message: error.to_string() })
}
