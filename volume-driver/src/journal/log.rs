//! The chain of transactions of one volume in its store.

mod boundary;
mod fetch;
mod garbage;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use boundary::Boundary;
use jiff::Timestamp;
use tokio::time::Instant;
use vivarium_journal::header::MAX_HEADER;
use vivarium_journal::{Digest, Header};
use vivarium_store::{CreateError, Created, Key, Listed, Name, Prefix, ReadError, Source, Span, Store};

use super::JournalError;
use super::inventory::Inventory;
use super::pieces::{MILESTONE, Piece};
use crate::ids::VolumeId;

/// How long one request to the store may take with all its repetitions.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a list of everything, or the deletion of many objects, may take.
const PATIENCE_LIST: Duration = Duration::from_secs(90);
/// Slowest that the store may take data, in bytes a second, before a request counts as failed.
const SLOWEST: u64 = 1 << 20;
/// How long a transaction may take to come.
const PATIENCE_DATA: Duration = Duration::from_mins(10);

/// Bytes at the end of a transaction that its digest begins (`docs/src/formats/vtx.md`, trailer).
const END: usize = 40;

/// A transaction, as far as the next one has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its number; 0: before the first.
    pub sequence: u64,
    /// Epoch that wrote it.
    pub epoch: u64,
    /// Its digest.
    pub digest: Digest,
}

impl Position {
    /// Before the first transaction.
    pub const START: Self = Self { sequence: 0, epoch: 0, digest: Digest::EMPTY };
}

/// A state of the volume that was looked for by its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The transaction after which the volume was in that state; [`Position::START`] while the log is empty.
    pub position: Position,
    /// When that was, by the clock of the node that wrote it.
    pub time: Timestamp,
    /// It is the oldest state that can be restored, and younger than what was asked for.
    pub too_old: bool,
}

/// What became of an attempt to add to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is in the log.
    Yes,
    /// Its number belongs to somebody else.
    Taken,
}

/// The log of a volume.
#[derive(Clone)]
pub struct Log {
    volume: VolumeId,
    name: Name,
    store: Arc<Store>,
}

impl Log {
    /// The first log of `volume`, in `store`.
    ///
    /// # Errors
    /// The volume's handle cannot be part of a name there.
    pub fn new(volume: &VolumeId, store: Arc<Store>) -> Result<Self, JournalError> {
        Self::named(volume, volume.as_str(), store)
    }

    /// The log of `volume` that has this name in `store`.
    ///
    /// # Errors
    /// It cannot be a name there.
    pub fn named(volume: &VolumeId, name: &str, store: Arc<Store>) -> Result<Self, JournalError> {
        let name = Name::new(name)
            .map_err(|error| JournalError::Store { volume: volume.clone(), message: error.to_string() })?;
        Ok(Self { volume: volume.clone(), name, store })
    }

    /// Name of the store.
    #[must_use]
    pub fn store(&self) -> &str {
        self.store.name()
    }

    /// Whether every node that has the store finds the same in it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    fn key(&self, seq: u64) -> Key {
        Key::Transaction { volume: self.name.clone(), seq }
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> JournalError {
        JournalError::Store { volume: self.volume.clone(), message: error.to_string() }
    }

    fn damaged(&self, sequence: u64, what: impl Into<String>) -> JournalError {
        JournalError::Damaged { volume: self.volume.clone(), sequence, what: what.into() }
    }

    fn unread(&self, sequence: u64, error: ReadError) -> JournalError {
        match error {
            ReadError::Damaged { what, .. } => self.damaged(sequence, what),
            error => self.unreachable(&error),
        }
    }

    /// What is read of an object, of a mirror if it is damaged in the first store: under one name all have the same. Whether
    /// there is such an object the first store alone says.
    async fn sound<T, F>(&self, read: impl Fn(Store) -> F) -> Result<Option<T>, JournalError>
    where
        F: Future<Output = Result<Option<T>, JournalError>>,
    {
        let damage = match read(self.store.as_ref().clone()).await {
            Err(damage @ (JournalError::Damaged { .. } | JournalError::Read { .. })) => damage,
            answer => return answer,
        };
        for mirror in self.store.mirrors() {
            if let Ok(Some(sound)) = read(mirror.clone()).await {
                tracing::warn!(%damage, %mirror, "what is damaged in the store is read from its mirror");
                return Ok(Some(sound));
            }
        }
        Err(damage)
    }

    /// The newest transaction. `known` is one that was in the log for certain: the search begins there, or at the boundary
    /// of what was collected. What the store lists is a hint that saves requests, nothing more.
    ///
    /// # Errors
    /// The store does not answer, or has lost `known`.
    pub async fn tail(&self, known: u64) -> Result<Position, JournalError> {
        let after = (known > 0).then(|| self.key(known));
        let prefix = Prefix::Transactions(self.name.clone());
        // Whatever does not depend on an answer is asked at the same time: somebody waits for it.
        let (boundary, listed) = futures::try_join!(self.boundary(), self.list(&prefix, after.as_ref()))?;
        let numbers = listed.iter().filter_map(|entry| match &entry.key {
            Key::Transaction { seq, .. } => Some(*seq),
            _ => None,
        });
        let mut last = numbers.max().unwrap_or(0).max(known).max(boundary.sequence);
        loop {
            // Between milestones there may be gaps where transactions were merged, and none behind the last one.
            let milestone = (last / MILESTONE + 1) * MILESTONE;
            last = match futures::try_join!(self.exists(milestone), self.exists(last + 1))? {
                (true, _) => milestone,
                (false, true) => last + 1,
                (false, false) => break,
            };
        }
        if last == 0 {
            return Ok(Position::START);
        }
        match self.position(last).await? {
            Some(position) => Ok(position),
            None => Err(self.missing(last)),
        }
    }

    pub(super) async fn exists(&self, sequence: u64) -> Result<bool, JournalError> {
        self.store
            .exists(&self.key(sequence), Instant::now() + PATIENCE)
            .await
            .map_err(|error| self.unreachable(&error))
    }

    /// The state of the volume at an instant: after the last transaction that is not younger. `known` as for [`Self::tail`].
    ///
    /// Of what is asked for, an earlier instant never gives a later state; and as the log grows, the answer stays the same,
    /// also where clocks of nodes that wrote one after the other disagree. So the numbers that are looked at depend on
    /// nothing but the answers: bit after bit of the number that is sought, the highest first.
    ///
    /// # Errors
    /// The store does not answer, or a transaction is damaged.
    pub async fn at(&self, time: Timestamp, known: u64) -> Result<Moment, JournalError> {
        let oldest = self.boundary().await?.sequence.max(1);
        let states = self.states().await?;
        let tail = self.tail(known).await?.sequence;
        if tail == 0 {
            return Ok(Moment { position: Position::START, time: Timestamp::UNIX_EPOCH, too_old: true });
        }
        let mut sequence = 0;
        for bit in (0..=tail.ilog2()).rev() {
            let next = sequence | 1 << bit;
            // Before the boundary there may be nothing that could be asked. A transaction that was merged has the time of
            // the one that it was merged up to.
            let asked = states.range(next..).next().copied().unwrap_or(next);
            if next <= oldest || next <= tail && self.written(asked).await? <= time {
                sequence = next;
            }
        }
        let found = self.moment(sequence).await?.ok_or_else(|| self.missing(sequence))?;
        Ok(Moment { too_old: found.time > time, ..found })
    }

    /// The state of the volume after a transaction; `None` if that is not in the log, or not by itself any more.
    ///
    /// # Errors
    /// The store does not answer, or the transaction is damaged.
    pub async fn moment(&self, sequence: u64) -> Result<Option<Moment>, JournalError> {
        let Some(position) = self.state(sequence).await? else { return Ok(None) };
        Ok(Some(Moment { position, time: self.written(sequence).await?, too_old: false }))
    }

    /// The oldest state that can be restored; [`Position::START`] while the log is empty. `known` as for [`Self::tail`].
    ///
    /// # Errors
    /// The store does not answer, or a transaction is damaged.
    pub async fn oldest(&self, known: u64) -> Result<Moment, JournalError> {
        self.at(Timestamp::MIN, known).await
    }

    /// When a transaction that must be there was written, by the clock of its node.
    ///
    /// # Errors
    /// The store does not answer, or the transaction is not there or damaged.
    pub async fn written(&self, sequence: u64) -> Result<Timestamp, JournalError> {
        let header = match self.header(&self.key(sequence), sequence).await? {
            Some(header) => Some(header),
            None => self.merged_up_to(sequence).await?,
        };
        let header = header.ok_or_else(|| self.missing(sequence))?;
        Timestamp::from_nanosecond(header.time.into()).map_err(|error| self.damaged(sequence, error.to_string()))
    }

    /// A transaction that must be there.
    ///
    /// # Errors
    /// As [`Self::written`].
    pub async fn must_be(&self, sequence: u64) -> Result<Position, JournalError> {
        self.position(sequence).await?.ok_or_else(|| self.missing(sequence))
    }

    pub(super) fn missing(&self, sequence: u64) -> JournalError {
        self.damaged(sequence, "it was in the store, and is not any more")
    }

    /// Header of a merged transaction that ends with this one, if there is one.
    async fn merged_up_to(&self, sequence: u64) -> Result<Option<Header>, JournalError> {
        let Some(Piece { first, last }) = self.merged().await?.into_iter().find(|piece| piece.last == sequence) else {
            return Ok(None);
        };
        self.header(&Key::Merged { volume: self.name.clone(), from: first, to: last }, sequence).await
    }

    /// Epoch and digest of the state after a transaction; `None` if that is not in the log, or not by itself any more.
    pub(super) async fn state(&self, sequence: u64) -> Result<Option<Position>, JournalError> {
        if self.is_passed(sequence).await? {
            return Ok(None);
        }
        if let Some(position) = self.position(sequence).await? {
            return Ok(Some(position));
        }
        let merged = self.merged_up_to(sequence).await?;
        Ok(merged.and_then(|header| match header.kind {
            vivarium_journal::Kind::Merged { state } => Some(Position { sequence, epoch: header.epoch, digest: state }),
            _ => None,
        }))
    }

    /// Whether the state after a transaction is gone in order: it lies before the boundary, or was merged with others. Of
    /// those, barriers and milestones stay, and nothing leads to them any more.
    pub(super) async fn is_passed(&self, sequence: u64) -> Result<bool, JournalError> {
        if self.boundary().await?.sequence > sequence {
            return Ok(true);
        }
        let inside = |piece: &Piece| piece.first <= sequence && sequence < piece.last;
        Ok(self.merged().await?.iter().any(inside) && !self.states().await?.contains(&sequence))
    }

    /// Epoch and digest of a transaction, from its ends; `None` if it is not in the log.
    pub(super) async fn position(&self, sequence: u64) -> Result<Option<Position>, JournalError> {
        self.sound(|store| self.position_in(store, sequence)).await
    }

    async fn position_in(&self, store: Store, sequence: u64) -> Result<Option<Position>, JournalError> {
        let key = self.key(sequence);
        let piece = async |span| {
            let read = store.read_span(&key, span, Instant::now() + PATIENCE).await;
            read.map_err(|error| self.unread(sequence, error))
        };
        let Some(front) = piece(Span::Range(0..16 + MAX_HEADER as u64)).await? else { return Ok(None) };
        let ends_there = front.total == front.bytes.len() as u64;
        let back = if ends_there { Some(front.clone()) } else { piece(Span::Tail(END as u64)).await? };
        let Some(back) = back else { return Ok(None) };
        let header = Header::peek(&front.bytes).map_err(|error| self.damaged(sequence, error.to_string()))?;
        let mut digest = Digest::EMPTY;
        let end = back.bytes.len().checked_sub(END).and_then(|begin| back.bytes[begin..].first_chunk::<32>());
        digest.0 = *end.ok_or_else(|| self.damaged(sequence, "it is too short"))?;
        if header.sequence != sequence || header.volume != self.volume.as_str() {
            return Err(
                self.damaged(sequence, format!("it says it is {} of volume {}", header.sequence, header.volume))
            );
        }
        Ok(Some(Position { sequence, epoch: header.epoch, digest }))
    }

    /// Adds a transaction: the file at `path` of `length` bytes with the digest `content`.
    ///
    /// # Errors
    /// [`JournalError::Store`]: it is not known whether it is in the log now; the same file has to be added again.
    pub async fn append(
        &self,
        sequence: u64,
        path: &Path,
        length: u64,
        content: Digest,
    ) -> Result<Appended, JournalError> {
        self.create(&self.key(sequence), path, length, content).await
    }

    async fn create(&self, key: &Key, path: &Path, length: u64, content: Digest) -> Result<Appended, JournalError> {
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(length / SLOWEST);
        match self.store.create(key, Source::File(path), content.0, deadline).await {
            Ok(Created::New | Created::Ours) => Ok(Appended::Yes),
            Err(CreateError::Conflict { .. }) => Ok(Appended::Taken),
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    /// Brings into every mirror of the store what it lacks, up to a transaction that the first store has. Whoever opens an epoch
    /// or goes on with one does that before he adds anything (`Step::Mend` of `vivarium_ownership`), and whoever collects
    /// garbage, before he relies on what somebody else has made.
    ///
    /// # Errors
    /// A store does not answer, or they hold different things.
    pub async fn mend(&self, last: u64) -> Result<(), JournalError> {
        let last = (last > 0).then(|| self.key(last));
        let before = |key: &Key| match key {
            Key::Transaction { seq: seq @ 2.., .. } => Some(self.key(seq - 1)),
            _ => None,
        };
        let mended = self.store.mend(&self.name, last.as_ref(), before, Instant::now() + PATIENCE_DATA).await;
        let mended = mended.map_err(|error| self.unreachable(&error))?;
        if mended > 0 {
            tracing::info!(volume = %self.volume, store = self.store(), mended, "brought into mirrors what they lacked");
        }
        Ok(())
    }

    /// Objects of the volume below a prefix, those after a key only. A hint: what is missing in it may be there.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn list(&self, prefix: &Prefix, after: Option<&Key>) -> Result<Vec<Listed>, JournalError> {
        let listed = self.store.list(prefix, after, Instant::now() + PATIENCE).await;
        listed.map_err(|error| self.unreachable(&error))
    }

    /// Everything of the volume that is listed.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn list_all(&self) -> Result<Vec<Listed>, JournalError> {
        let prefix = Prefix::Volume(self.name.clone());
        let listed = self.store.list(&prefix, None, Instant::now() + PATIENCE_LIST).await;
        listed.map_err(|error| self.unreachable(&error))
    }

    /// The states that can be restored, by the transactions that they are after, as far as is listed: of what is older,
    /// not every one, since transactions are merged.
    ///
    /// # Errors
    /// The store does not answer, or the boundary is damaged.
    pub async fn states(&self) -> Result<BTreeSet<u64>, JournalError> {
        let boundary = self.boundary().await?.sequence;
        Ok(Inventory::of(&self.list_all().await?).states(boundary))
    }

    /// Transactions that are listed behind one of them.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn list_after(&self, sequence: u64) -> Result<Vec<Listed>, JournalError> {
        let after = (sequence > 0).then(|| self.key(sequence));
        self.list(&Prefix::Transactions(self.name.clone()), after.as_ref()).await
    }

    /// Merged transactions that are listed.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn merged(&self) -> Result<BTreeSet<Piece>, JournalError> {
        let listed = self.list(&Prefix::Merged(self.name.clone()), None).await?;
        let pieces = listed.iter().filter_map(|entry| match entry.key {
            Key::Merged { from, to, .. } if from < to => Some(Piece { first: from, last: to }),
            _ => None,
        });
        Ok(pieces.collect())
    }

    /// The volume.
    #[must_use]
    pub fn volume(&self) -> &VolumeId {
        &self.volume
    }

    /// Name of the volume in keys.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Bytes that an object of the volume holds, also one that is split; `None` if it is not there.
    ///
    /// # Errors
    /// The store does not answer, or its list of parts is damaged.
    pub async fn length(&self, key: &Key) -> Result<Option<u64>, JournalError> {
        let read = self.store.read_span(key, Span::Range(0..0), Instant::now() + PATIENCE).await;
        Ok(read.map_err(|error| self.unreachable(&error))?.map(|slice| slice.total))
    }

    /// Keeps transactions as one. [`Appended::Taken`]: they are kept so already.
    ///
    /// # Errors
    /// It is not known whether it is in the store.
    pub async fn add_merged(
        &self,
        piece: Piece,
        path: &Path,
        length: u64,
        content: Digest,
    ) -> Result<Appended, JournalError> {
        let key = Key::Merged { volume: self.name.clone(), from: piece.first, to: piece.last };
        self.create(&key, path, length, content).await
    }

    /// Numbers of the checkpoints that are listed, oldest first.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn checkpoints(&self) -> Result<Vec<u64>, JournalError> {
        let listed = self.list(&Prefix::Checkpoints(self.name.clone()), None).await?;
        let numbers = listed.iter().filter_map(|entry| match entry.key {
            Key::Checkpoint { seq, .. } => Some(seq),
            _ => None,
        });
        Ok(numbers.collect())
    }

    /// Keeps the state after transaction `sequence`. [`Appended::Taken`]: one is there already, which may be damaged.
    ///
    /// # Errors
    /// It is not known whether it is in the store.
    pub async fn add_checkpoint(
        &self,
        sequence: u64,
        path: &Path,
        length: u64,
        content: Digest,
    ) -> Result<Appended, JournalError> {
        let key = Key::Checkpoint { volume: self.name.clone(), seq: sequence };
        self.create(&key, path, length, content).await
    }

    /// What a transaction is, from its beginning; `None` if it is not in the log.
    ///
    /// # Errors
    /// The store does not answer, or it is damaged.
    pub async fn kind(&self, sequence: u64) -> Result<Option<vivarium_journal::Kind>, JournalError> {
        Ok(self.header(&self.key(sequence), sequence).await?.map(|header| header.kind))
    }

    /// Header of an object that ends with a transaction.
    async fn header(&self, key: &Key, sequence: u64) -> Result<Option<Header>, JournalError> {
        let read = |store: Store| async move {
            let span = Span::Range(0..16 + MAX_HEADER as u64);
            let read = store.read_span(key, span, Instant::now() + PATIENCE).await;
            let Some(front) = read.map_err(|error| self.unread(sequence, error))? else { return Ok(None) };
            let header = Header::peek(&front.bytes).map_err(|error| self.damaged(sequence, error.to_string()))?;
            Ok(Some(header))
        };
        self.sound(read).await
    }
}

/// A file without a name: whatever becomes of this process, nothing is left of it.
#[derive(Debug)]
pub struct Unnamed {
    /// The file.
    pub file: File,
}

impl Unnamed {
    /// A fresh one, in the file system of a directory.
    ///
    /// # Errors
    /// The file system fails.
    pub fn new(directory: &Path) -> std::io::Result<Self> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(Self { file: rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?.into() })
    }

    /// As [`path_of`].
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path_of(&self.file)
    }
}

/// A path at which this process can open a file while it has it open (proc(5)).
#[must_use]
pub fn path_of(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests;
