//! Opening an epoch (ownership protocol, rule 12).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vivarium_fail_point::passed;
use vivarium_sys::btrfs;

use super::commit::Journal;
use super::local::Local;
use super::log::{Appended, Log, Position, Unnamed};
use super::restore::{Restored, layer_roots, restore};
use super::revert::Revert;
use super::standby::take_over;
use super::wanted::Wanted;
use super::{JournalError, blocking};
use crate::ids::{LayerDigest, VolumeId};
use crate::template::TemplateCache;
use crate::volume::{VolumeError, Volumes};

/// The volume whose epoch is to be opened.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The volume.
    pub id: VolumeId,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes in use, as far as is known; so many must be free in the pool if it has to be restored.
    pub room: u64,
    /// Epoch of the incarnation that it is given to.
    pub epoch: u64,
    /// Layers of its template, lowest first; they are on this node.
    pub layers: Vec<LayerDigest>,
    /// A transaction that was in the log for certain, for example as the volume's object says; 0: none.
    pub known: u64,
    /// The state that the volume is to have then, whatever it has now; none: it stays as it is.
    pub revert: Option<Revert>,
    /// The state of another volume that it begins with while its own log holds nothing.
    pub source: Option<Source>,
}

/// A state of another volume with the same layers.
#[derive(Clone)]
pub struct Source {
    /// Its log.
    pub log: Log,
    /// Which state.
    pub wanted: Wanted,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of volume {}", self.wanted, self.log.volume())
    }
}

/// How a volume came to be on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was here, with everything that was ever written.
    Here,
    /// It is new.
    New,
    /// From the log.
    Restored(Restored),
    /// From the standby copy that was here, and what was added to the log since.
    TakenOver(Restored),
    /// From the log of another volume, after this transaction of it; 0: it was so before.
    Branched(u64),
}

impl Journal {
    /// Opens an epoch in the log that decides. `still_ours` is asked once the barrier is in the log: whether the volume's object still names this
    /// node, session and epoch.
    ///
    /// # Errors
    /// [`JournalError::Superseded`] and [`JournalError::Lost`]: never. Others: call it again.
    pub async fn begin(
        volumes: &Volumes,
        templates: &TemplateCache,
        log: Log,
        opening: &Opening,
        still_ours: impl AsyncFnOnce() -> bool,
    ) -> Result<(Self, Origin), JournalError> {
        let Opening { id, epoch, known, .. } = opening.clone();
        let (mut journal, roots) = Self::prepare(volumes, templates, log, opening)?;
        let local = journal.open_local().await?;
        let tail = journal.log.tail(local.map_or(known, |head| head.sequence.max(known))).await?;
        if tail.epoch > epoch {
            return Err(JournalError::Superseded { volume: id, epoch, current: tail.epoch });
        }
        // Nothing was added since this node's last transaction: what is here is that, and what was written after it.
        let here = local == Some(tail);
        let origin = if here {
            // A second opening of the same epoch finds its own barrier or transactions.
            if tail.epoch < epoch {
                journal.barrier().await?;
            }
            if !still_ours().await {
                return Err(JournalError::Lost { volume: id });
            }
            Origin::Here
        } else {
            let barrier = journal.barrier_from_afar(tail).await?;
            journal.log.mend(barrier.sequence).await?;
            if !still_ours().await {
                return Err(JournalError::Lost { volume: id });
            }
            journal.bring_here(opening, barrier, roots).await?
        };
        let origin = match &opening.source {
            Some(source) if journal.is_bare().await? => journal.branch(templates, source, opening.size).await?,
            // It was told, and nobody has noted it yet.
            Some(_) => Origin::Branched(0),
            None => origin,
        };
        Ok((journal, origin))
    }

    /// Goes on with an epoch that was opened already, by a process that is no more.
    ///
    /// # Errors
    /// A layer of the template is not on this node.
    pub fn resume(
        volumes: &Volumes,
        templates: &TemplateCache,
        log: Log,
        opening: &Opening,
    ) -> Result<Self, JournalError> {
        Self::prepare(volumes, templates, log, opening).map(|(journal, _)| journal)
    }

    fn prepare(
        volumes: &Volumes,
        templates: &TemplateCache,
        log: Log,
        opening: &Opening,
    ) -> Result<(Self, Vec<OwnedFd>), JournalError> {
        let Opening { id, epoch, layers, .. } = opening.clone();
        let roots = layer_roots(templates, &id, &layers)?;
        let infos = roots.iter().map(|root| btrfs::subvolume_info(root.as_fd())).collect::<Result<Vec<_>, _>>();
        let infos =
            infos.map_err(|source| JournalError::Io { attempt: "identify a layer", volume: id.clone(), source })?;
        let layers = Arc::new(layers.into_iter().zip(infos).collect());
        let journal = Self { volumes: volumes.clone(), id, epoch, log, layers, local: None, clean: None };
        Ok((journal, roots))
    }

    /// The newest transaction that this node knows of, once an attempt that is left over is settled; `None` if the volume
    /// is not here, or if the attempt's number went to somebody else.
    ///
    /// What is here may be of a log that was left: its base counts all the same, since the same transaction is in both. What
    /// was under way is taken for what this log has under that number, and never sent to it.
    async fn open_local(&mut self) -> Result<Option<Position>, JournalError> {
        let (volumes, id) = (self.volumes.clone(), self.id.clone());
        let opened = blocking(&self.id, move || match Local::open(&volumes, &id) {
            Ok(local) => Ok(Some(local)),
            Err(JournalError::Volume(VolumeError::NotFound(_))) => Ok(None),
            Err(error) => Err(error),
        });
        let Some(local) = opened.await? else { return Ok(None) };
        let attempt = local.attempt()?;
        let is_ours = local.log().is_none_or(|log| log == self.log.name().as_str());
        self.local = Some(local);
        // The object was read for this epoch, and says which one decides.
        self.with_local(|local| local.end_doubt().and_then(|()| local.unpin_seed())).await?;
        if !is_ours {
            let has_it = match &attempt {
                Some(attempt) => self.log.position(attempt.position.sequence).await? == Some(attempt.position),
                None => false,
            };
            let log = self.log.name().to_string();
            self.with_local(move |local| {
                match attempt {
                    Some(attempt) if has_it => local.settle(&attempt)?,
                    Some(_) => local.discard()?,
                    None => {}
                }
                passed("former-log-settled");
                local.adopt(&log)
            })
            .await?;
            passed("log-adopted");
        } else if let Some(attempt) = attempt {
            match self.log.append(attempt.position.sequence, &attempt.path, attempt.length, attempt.content).await? {
                Appended::Yes => {
                    passed("left-over-in-store");
                    self.with_local(move |local| local.settle(&attempt)).await?;
                }
                Appended::Taken => return Ok(None),
            }
        }
        let head = self.with_local(|local| Ok(local.head())).await?;
        self.log.mend(head.sequence).await?;
        Ok(Some(head))
    }

    /// Adds a barrier behind `tail` while the volume is not here. A crash leaves at most a barrier more.
    async fn barrier_from_afar(&self, tail: Position) -> Result<Position, JournalError> {
        let mut tail = tail;
        loop {
            let header =
                super::commit::header(&self.id, vivarium_journal::Kind::Barrier, self.epoch, tail, &self.layers);
            let io = |source| JournalError::Io { attempt: "write a barrier", volume: self.id.clone(), source };
            let file = Unnamed::new(self.volumes.pool().path()).map_err(io)?;
            let writer = vivarium_journal::write::Writer::new(&file.file, &header).map_err(io)?;
            let (_, summary) = writer.finish(&vivarium_journal::touched::Touched::default().changes()).map_err(io)?;
            let sequence = tail.sequence + 1;
            match self.log.append(sequence, &file.path(), summary.length, summary.content).await? {
                Appended::Yes => {
                    passed("barrier-in-store");
                    return Ok(Position { sequence, epoch: self.epoch, digest: summary.digest });
                }
                // The former owner added one more while we looked.
                Appended::Taken => tail = self.log.tail(sequence).await?,
            }
            if tail.epoch > self.epoch {
                let current = tail.epoch;
                return Err(JournalError::Superseded { volume: self.id.clone(), epoch: self.epoch, current });
            }
        }
    }

    /// Replaces what is here, if anything, by what the log says.
    async fn bring_here(
        &mut self,
        opening: &Opening,
        barrier: Position,
        roots: Vec<OwnedFd>,
    ) -> Result<Origin, JournalError> {
        let Opening { size, room, .. } = *opening;
        self.local = None;
        let (volumes, id) = (self.volumes.clone(), self.id.clone());
        blocking(&self.id, move || Local::retire(&volumes, &id)).await?;
        let again = roots.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
        let again =
            again.map_err(|source| JournalError::Io { attempt: "open a layer", volume: self.id.clone(), source })?;
        let taken = take_over(&self.volumes, &self.id, size, &self.log, barrier, again).await?;
        let restored = match taken {
            Some(taken) => taken,
            // Nothing came before it, and the store need not be asked what.
            None if barrier.sequence == 1 => Restored::nothing(true),
            None => restore(&self.volumes, &self.id, size, room, &self.log, barrier, roots).await?,
        };
        passed("volume-restored");
        if restored.empty {
            let (volumes, id) = (self.volumes.clone(), self.id.clone());
            blocking(&self.id, move || Ok(volumes.create(&id, size).map(drop)?)).await?;
            passed("volume-made");
        }
        self.with_local(move |local| local.start_from(barrier, restored.empty)).await?;
        passed("journal-started");
        if restored.empty {
            return Ok(Origin::New);
        }
        // The base is the tree of the log. What overlayfs had under way is for it alone, and of no use to another mount.
        let live = self.volumes.live_path(&self.id);
        let id = self.id.clone();
        blocking(&self.id, move || {
            empty(&live.join("work")).map_err(|source| JournalError::Io {
                attempt: "empty the work directory",
                volume: id,
                source,
            })
        })
        .await?;
        Ok(if taken.is_some() { Origin::TakenOver(restored) } else { Origin::Restored(restored) })
    }
}

/// Removes everything in a directory, if that is there. Symbolic links are removed, not followed.
pub(super) fn empty(directory: &std::path::Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
