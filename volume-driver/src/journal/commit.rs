//! Adding to the log: one volume that this node holds, under one epoch.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use vivarium_fail_point::passed;
use vivarium_journal::touched::Touched;
use vivarium_journal::write::Writer;
use vivarium_journal::{Header, Kind};
use vivarium_sys::btrfs::SubvolumeInfo;

use super::capture::{Difference, capture};
use super::local::{Attempt, Local};
use super::log::{Appended, Log, Position};
use super::{JournalError, blocking};
use crate::ids::{LayerDigest, VolumeId};
use crate::volume::Volumes;

/// The journal of a volume that is held under an epoch.
pub struct Journal {
    pub(super) volumes: Volumes,
    pub(super) id: VolumeId,
    pub(super) epoch: u64,
    pub(super) log: Log,
    /// Layers of the template, lowest first.
    pub(super) layers: Arc<Vec<(LayerDigest, SubvolumeInfo)>>,
    /// Taken out while a blocking task works with it; none after one that was cut off.
    pub(super) local: Option<Local>,
    /// Generation up to which the live subvolume is known to hold nothing new.
    pub(super) clean: Option<u64>,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The newest transaction in the store.
    pub head: Position,
    /// Bytes that were added to the log; 0: nothing had changed.
    pub bytes: u64,
}

impl Journal {
    /// The volume.
    #[must_use]
    pub fn volume(&self) -> &VolumeId {
        &self.id
    }

    /// Name of the store.
    #[must_use]
    pub fn store(&self) -> &str {
        self.log.store()
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Brings everything into the log that was in the file system when its last transaction ended (`syncfs`): first an
    /// attempt whose outcome is not known, then what has changed since.
    ///
    /// # Errors
    /// [`JournalError::Superseded`]: never again. Others: call it again; nothing is lost.
    pub async fn commit(&mut self) -> Result<Committed, JournalError> {
        let mut committed = self.settle_attempt().await?;
        if let Some(attempt) = self.make_attempt().await? {
            committed.bytes += attempt.length;
            committed.head = self.send(attempt).await?;
        }
        Ok(committed)
    }

    /// Sends again what may or may not be in the store.
    async fn settle_attempt(&mut self) -> Result<Committed, JournalError> {
        let (attempt, head) = self.with_local(|local| Ok((local.attempt()?, local.head()))).await?;
        match attempt {
            None => Ok(Committed { head, bytes: 0 }),
            Some(attempt) => Ok(Committed { bytes: attempt.length, head: self.send(attempt).await? }),
        }
    }

    async fn send(&mut self, attempt: Attempt) -> Result<Position, JournalError> {
        let position = attempt.position;
        match self.log.append(position.sequence, &attempt.path, attempt.length, attempt.content).await? {
            Appended::Yes => {
                passed("transaction-in-store");
                self.with_local(move |local| local.settle(&attempt)).await?;
                Ok(position)
            }
            Appended::Taken => {
                let current = self.log.tail(position.sequence).await?.epoch;
                Err(JournalError::Superseded { volume: self.id.clone(), epoch: self.epoch, current })
            }
        }
    }

    /// Writes what has changed into a file; `None`: nothing has.
    pub(super) async fn make_attempt(&mut self) -> Result<Option<Attempt>, JournalError> {
        let (volumes, id, clean, layers) = (self.volumes.clone(), self.id.clone(), self.clean, self.layers.clone());
        let epoch = self.epoch;
        let (attempt, clean) = self
            .with_local(move |local| {
                let generation = volumes.get(&id)?.info.generation;
                if clean.is_some_and(|clean| generation <= clean) {
                    return Ok((None, clean));
                }
                let snapshot = local.take()?;
                // The snapshot is of the end of a transaction; whatever comes later has a higher generation.
                let clean = Some(snapshot.info.generation);
                let base = local.base()?;
                let head = local.head();
                let header = header(&id, Kind::Delta, epoch, head, &layers);
                let infos: Vec<SubvolumeInfo> = layers.iter().map(|(_, info)| *info).collect();
                let difference = Difference {
                    snapshot: std::os::fd::AsFd::as_fd(&snapshot.root),
                    info: snapshot.info,
                    base: base.as_ref().map(|base| base.info.id),
                    layers: &infos,
                };
                let partial = local.partial()?;
                let captured = capture(&difference, &header, &partial);
                let captured = captured.map_err(|source| JournalError::Capture { volume: id.clone(), source })?;
                passed("change-captured");
                if let Some(summary) = captured {
                    return Ok((Some(local.persist(&partial, &header, &summary)?), clean));
                }
                local.discard()?;
                Ok((None, clean))
            })
            .await?;
        self.clean = clean;
        Ok(attempt)
    }

    /// Adds a barrier: from then on nothing of an earlier epoch can be added.
    pub(super) async fn barrier(&mut self) -> Result<Position, JournalError> {
        let attempt = self.make_barrier().await?;
        self.send(attempt).await
    }

    /// Writes a barrier into a file.
    pub(super) async fn make_barrier(&mut self) -> Result<Attempt, JournalError> {
        let (id, epoch, layers) = (self.id.clone(), self.epoch, self.layers.clone());
        self.with_local(move |local| {
            let partial = local.partial()?;
            let header = header(&id, Kind::Barrier, epoch, local.head(), &layers);
            let io = |source| JournalError::Io { attempt: "write a barrier", volume: id.clone(), source };
            let writer = Writer::new(&partial, &header).map_err(io)?;
            let (_, summary) = writer.finish(&Touched::default().changes()).map_err(io)?;
            local.persist(&partial, &header, &summary)
        })
        .await
    }

    /// Works with the local part beside the async tasks.
    pub(super) async fn with_local<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Local) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let (volumes, id, local) = (self.volumes.clone(), self.id.clone(), self.local.take());
        let log = self.log.name().clone();
        let (local, result) = blocking(&self.id, move || {
            let mut local = match local {
                Some(local) => local,
                None => Local::open_for(&volumes, &id, log.as_str())?,
            };
            let result = work(&mut local);
            Ok((local, result))
        })
        .await?;
        // What failed half way is read again from the disk.
        self.local = result.is_ok().then_some(local);
        result
    }
}

/// Id of a writer: unique, not secret.
pub(super) fn writer() -> [u8; 16] {
    let mut writer = [0; 16];
    // It fails only where the kernel has no such call.
    let _ = rustix::rand::getrandom(&mut writer, rustix::rand::GetRandomFlags::empty());
    writer
}

/// Header of the transaction that follows `head`.
pub(super) fn header(
    id: &VolumeId,
    kind: Kind,
    epoch: u64,
    head: Position,
    layers: &[(LayerDigest, SubvolumeInfo)],
) -> Header {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Header {
        kind,
        volume: id.as_str().to_owned(),
        writer: writer(),
        epoch,
        first: head.sequence + 1,
        sequence: head.sequence + 1,
        parent: head.digest,
        time: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        layers: layers.iter().map(|(digest, _)| digest.to_string()).collect(),
    }
}

/// Header of a checkpoint of the state after `tail`.
pub(super) fn checkpoint_header(id: &VolumeId, tail: Position, layers: &[(LayerDigest, SubvolumeInfo)]) -> Header {
    Header { first: 0, sequence: tail.sequence, ..header(id, Kind::Checkpoint, tail.epoch, tail, layers) }
}
