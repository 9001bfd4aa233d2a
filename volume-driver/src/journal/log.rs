//! The chain of transactions of one volume in its store.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Seek;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use tokio::time::Instant;
use vivarium_journal::header::MAX_HEADER;
use vivarium_journal::read::Transaction;
use vivarium_journal::{Digest, Header};
use vivarium_store::{CreateError, Created, Key, Listed, Name, Prefix, ReadError, Source, Span, Store, Used};

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

    /// The newest transaction. `known` is one that was in the log for certain: the search begins there, or at the boundary
    /// of what was collected. What the store lists is a hint that saves requests, nothing more.
    ///
    /// # Errors
    /// The store does not answer, or has lost `known`.
    pub async fn tail(&self, known: u64) -> Result<Position, JournalError> {
        let known = known.max(self.boundary().await?.sequence);
        let after = (known > 0).then(|| self.key(known));
        let prefix = Prefix::Transactions(self.name.clone());
        let listed = self.store.list(&prefix, after.as_ref(), Instant::now() + PATIENCE).await;
        let listed = listed.map_err(|error| self.unreachable(&error))?;
        let numbers = listed.iter().filter_map(|entry| match &entry.key {
            Key::Transaction { seq, .. } => Some(*seq),
            _ => None,
        });
        let mut last = numbers.max().unwrap_or(0).max(known);
        // Between milestones there may be gaps where transactions were merged, and none behind the last one.
        while self.exists((last / MILESTONE + 1) * MILESTONE).await? {
            last = (last / MILESTONE + 1) * MILESTONE;
        }
        while self.exists(last + 1).await? {
            last += 1;
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
        let key = self.key(sequence);
        let piece = async |span| {
            let read = self.store.read_span(&key, span, Instant::now() + PATIENCE).await;
            read.map_err(|error| self.unreachable(&error))
        };
        let Some(front) = piece(Span::Range(0..16 + MAX_HEADER as u64)).await? else { return Ok(None) };
        let Some(back) = piece(Span::Tail(40)).await? else { return Ok(None) };
        let header = Header::peek(&front.bytes).map_err(|error| self.damaged(sequence, error.to_string()))?;
        let mut digest = Digest::EMPTY;
        match back.bytes.split_first_chunk::<32>() {
            Some((bytes, _)) => digest.0 = *bytes,
            None => return Err(self.damaged(sequence, "it is too short")),
        }
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
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(length / SLOWEST);
        match self.store.create(&self.key(sequence), Source::File(path), content.0, deadline).await {
            Ok(Created::New | Created::Ours) => Ok(Appended::Yes),
            Err(CreateError::Conflict { .. }) => Ok(Appended::Taken),
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    /// How far garbage was collected.
    ///
    /// # Errors
    /// The store does not answer, or the newest boundary is damaged.
    pub async fn boundary(&self) -> Result<Boundary, JournalError> {
        let listed = self.list(&Prefix::Boundaries(self.name.clone()), None).await?;
        let numbers = listed.iter().filter_map(|entry| match entry.key {
            Key::Boundary { generation, .. } => Some(generation),
            _ => None,
        });
        let key = |generation| Key::Boundary { volume: self.name.clone(), generation };
        let mut generation = numbers.max().unwrap_or(0);
        let read = async |generation| {
            let read = self.store.read(&key(generation), boundary::LENGTH as u64, Instant::now() + PATIENCE).await;
            read.map_err(|error| self.unreachable(&error))
        };
        let mut newest = None;
        if generation > 0 {
            newest = read(generation).await?;
        }
        // What is not listed may be there all the same.
        while let Some(next) = read(generation + 1).await? {
            (generation, newest) = (generation + 1, Some(next));
        }
        let Some(newest) = newest else { return Ok(Boundary::NONE) };
        let sequence = boundary::decode(&newest.bytes)
            .ok_or_else(|| self.damaged(0, format!("boundary {generation} of its garbage cannot be read")))?;
        Ok(Boundary { generation, sequence })
    }

    /// Raises the boundary from `found` to `sequence`: whoever reads the journal from then on does not rely on a
    /// transaction before that one. `false`: somebody else was faster.
    ///
    /// # Errors
    /// It is not known whether it was raised; it can be tried again.
    pub async fn raise_boundary(&self, found: Boundary, sequence: u64) -> Result<bool, JournalError> {
        let bytes = boundary::encode(sequence);
        let digest = *blake3::hash(&bytes).as_bytes();
        let key = Key::Boundary { volume: self.name.clone(), generation: found.generation + 1 };
        match self.store.create(&key, Source::Bytes(bytes.into()), digest, Instant::now() + PATIENCE).await {
            Ok(Created::New | Created::Ours) => Ok(true),
            Err(CreateError::Conflict { .. }) => Ok(false),
            Err(error) => Err(self.unreachable(&error)),
        }
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
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(length / SLOWEST);
        match self.store.create(&key, Source::File(path), content.0, deadline).await {
            Ok(Created::New | Created::Ours) => Ok(Appended::Yes),
            Err(CreateError::Conflict { .. }) => Ok(Appended::Taken),
            Err(error) => Err(self.unreachable(&error)),
        }
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
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(length / SLOWEST);
        match self.store.create(&key, Source::File(path), content.0, deadline).await {
            Ok(Created::New | Created::Ours) => Ok(Appended::Yes),
            Err(CreateError::Conflict { .. }) => Ok(Appended::Taken),
            Err(error) => Err(self.unreachable(&error)),
        }
    }

    /// Deletes an object of the volume; one that is gone is as good.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn delete(&self, key: &Key) -> Result<(), JournalError> {
        self.store.delete(key, Instant::now() + PATIENCE).await.map_err(|error| self.unreachable(&error))
    }

    /// Deletes objects that have no parts, many at a time.
    ///
    /// # Errors
    /// The store does not answer; some may be gone.
    pub async fn delete_whole(&self, keys: &[Key]) -> Result<(), JournalError> {
        let deadline = Instant::now() + PATIENCE_LIST;
        self.store.delete_whole(keys, deadline).await.map_err(|error| self.unreachable(&error))
    }

    /// Deletes listed parts to which nothing refers (see [`Store::sweep_parts`]), `most` at most; tells which.
    ///
    /// # Errors
    /// The store does not answer; it can be tried again.
    pub async fn sweep_parts(
        &self,
        listed: &[Listed],
        is_past: impl Fn(&Key) -> bool,
        used: &mut Used,
        most: usize,
    ) -> Result<Vec<Key>, JournalError> {
        let deadline = Instant::now() + PATIENCE_LIST;
        let swept = self.store.sweep_parts(listed, |object, _| is_past(object), used, most, deadline).await;
        swept.map_err(|error| self.unreachable(&error))
    }

    /// Whether an object of the volume is split.
    ///
    /// # Errors
    /// The store does not answer, or it is damaged.
    pub async fn is_split(&self, key: &Key) -> Result<bool, JournalError> {
        let split = self.store.is_split(key, Instant::now() + PATIENCE).await;
        Ok(split.map_err(|error| self.unreachable(&error))?.unwrap_or(false))
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
        let span = Span::Range(0..16 + MAX_HEADER as u64);
        let read = self.store.read_span(key, span, Instant::now() + PATIENCE).await;
        let Some(front) = read.map_err(|error| self.unreachable(&error))? else { return Ok(None) };
        let header = Header::peek(&front.bytes).map_err(|error| self.damaged(sequence, error.to_string()))?;
        Ok(Some(header))
    }

    /// Takes everything of the volume out of the store: its object is being deleted, and its name is never used again. What
    /// remains is a mark that this is so, for whoever finds something that was not listed, or comes late.
    ///
    /// # Errors
    /// The store does not answer; what is left is found by the next call.
    pub async fn purge(&self) -> Result<(), JournalError> {
        // The same for all who mark it: any of them may be first.
        let content = format!("{}\n", self.name).into_bytes();
        let digest = *blake3::hash(&content).as_bytes();
        match self.store.create(&self.mark(), Source::Bytes(content.into()), digest, Instant::now() + PATIENCE).await {
            Ok(_) | Err(CreateError::Conflict { .. }) => {}
            Err(error) => return Err(self.unreachable(&error)),
        }
        self.purge_marked().await
    }

    /// Takes what is left of a volume out of the store if it is marked as deleted. `None`: it is not, and everything stays.
    /// Otherwise since when it is, by the store's clock.
    ///
    /// # Errors
    /// As [`Self::purge`].
    pub async fn finish_purge(&self) -> Result<Option<SystemTime>, JournalError> {
        let marked = self.store.modified(&self.mark(), Instant::now() + PATIENCE).await;
        let marked = marked.map_err(|error| self.unreachable(&error))?;
        if marked.is_some() {
            self.purge_marked().await?;
        }
        Ok(marked)
    }

    /// Takes the mark of a deleted volume away.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn forget(&self) -> Result<(), JournalError> {
        self.delete(&self.mark()).await
    }

    fn mark(&self) -> Key {
        Key::Deleted { volume: self.name.clone() }
    }

    async fn purge_marked(&self) -> Result<(), JournalError> {
        let (prefix, mark) = (Prefix::Volume(self.name.clone()), self.mark());
        loop {
            // Parts are listed as well, so nobody has to ask for them.
            let keys: Vec<Key> = self
                .store
                .list(&prefix, None, Instant::now() + PATIENCE_LIST)
                .await
                .map_err(|error| self.unreachable(&error))?
                .into_iter()
                .map(|entry| entry.key)
                .filter(|key| *key != mark)
                .collect();
            if keys.is_empty() {
                return Ok(());
            }
            self.delete_whole(&keys).await?;
        }
    }

    /// Fetches a transaction that must be there, into a file without a name in `directory`, and checks it whole.
    ///
    /// # Errors
    /// The store does not answer, or what it gives is not that transaction.
    pub async fn fetch(&self, sequence: u64, directory: &Path) -> Result<Transaction<File>, JournalError> {
        let fetched = self.fetch_if_there(sequence, directory).await?;
        fetched.ok_or_else(|| self.damaged(sequence, "it is not in the store"))
    }

    /// The same, `None` if it is not there.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn fetch_if_there(
        &self,
        sequence: u64,
        directory: &Path,
    ) -> Result<Option<Transaction<File>>, JournalError> {
        self.fetch_as(&self.key(sequence), sequence, directory).await
    }

    /// Fetches what leads from the state before a piece to that after it, and checks it whole: a transaction, or a merged
    /// one.
    ///
    /// # Errors
    /// The store does not answer, or what it gives is something else.
    pub async fn fetch_piece(&self, piece: Piece, directory: &Path) -> Result<Transaction<File>, JournalError> {
        if piece.is_single() {
            return self.fetch(piece.first, directory).await;
        }
        let key = Key::Merged { volume: self.name.clone(), from: piece.first, to: piece.last };
        let merged = self.fetch_as(&key, piece.last, directory).await?;
        let merged = merged.ok_or_else(|| self.damaged(piece.last, "it is not in the store as one"))?;
        let header = merged.header();
        if header.first != piece.first || !matches!(header.kind, vivarium_journal::Kind::Merged { .. }) {
            let what =
                format!("what should be {} to it as one is a {:?} from {}", piece.first, header.kind, header.first);
            return Err(self.damaged(piece.last, what));
        }
        Ok(merged)
    }

    /// The same with the state after transaction `sequence`, which must be in the log still: the state must be of that one.
    ///
    /// # Errors
    /// The store does not answer, or what it gives is not that state.
    pub async fn fetch_checkpoint(&self, sequence: u64, directory: &Path) -> Result<Transaction<File>, JournalError> {
        let key = Key::Checkpoint { volume: self.name.clone(), seq: sequence };
        let checkpoint = self.fetch_as(&key, sequence, directory).await?;
        let checkpoint = checkpoint.ok_or_else(|| self.damaged(sequence, "its checkpoint is not in the store"))?;
        let header = checkpoint.header();
        if header.kind != vivarium_journal::Kind::Checkpoint {
            return Err(self.damaged(sequence, format!("its checkpoint is a {:?}", header.kind)));
        }
        match self.position(sequence).await? {
            Some(position) if position.digest == header.parent && position.epoch == header.epoch => Ok(checkpoint),
            Some(position) => {
                let what = format!("its checkpoint is of {}, and its digest is {}", header.parent, position.digest);
                Err(self.damaged(sequence, what))
            }
            None => Err(self.damaged(sequence, "there is a checkpoint of it, and it is not in the log")),
        }
    }

    async fn fetch_as(
        &self,
        key: &Key,
        sequence: u64,
        directory: &Path,
    ) -> Result<Option<Transaction<File>>, JournalError> {
        let io = |source| JournalError::Io { attempt: "keep a transaction", volume: self.volume.clone(), source };
        let file = Unnamed::new(directory).map_err(io)?.file;
        let mut out = tokio::fs::File::from_std(file.try_clone().map_err(io)?);
        let deadline = Instant::now() + PATIENCE_DATA;
        match self.store.read_to(key, &mut out, deadline).await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(ReadError::Damaged { what, .. }) => return Err(self.damaged(sequence, what)),
            Err(error) => return Err(self.unreachable(&error)),
        }
        drop(out);
        let volume = self.volume.clone();
        let transaction = super::blocking(&self.volume, move || {
            let mut file = file;
            let io = |source| JournalError::Io { attempt: "read a transaction", volume: volume.clone(), source };
            file.rewind().map_err(io)?;
            Transaction::open(file).map_err(|source| JournalError::Read { volume, source })
        });
        let transaction = transaction.await?;
        let header = transaction.header();
        if header.sequence != sequence || header.volume != self.volume.as_str() {
            let what = format!("it says it is {} of volume {}", header.sequence, header.volume);
            return Err(self.damaged(sequence, what));
        }
        Ok(Some(transaction))
    }
}

/// How far the garbage of a journal was collected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// Number of the boundary; each is higher than those before.
    pub generation: u64,
    /// Transactions before this one may be gone, barriers excepted. There is a checkpoint of it.
    pub sequence: u64,
}

impl Boundary {
    /// Nothing was collected.
    pub const NONE: Self = Self { generation: 0, sequence: 0 };
}

/// What is in a boundary (`docs/src/formats/store.md`).
mod boundary {
    const MAGIC: [u8; 8] = *b"VIVBOUND";
    const VERSION: u16 = 1;
    /// Bytes of it.
    pub const LENGTH: usize = 40;

    pub fn encode(sequence: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&sequence.to_le_bytes());
        let mut writer = [0; 16];
        // Unique, not secret. The call fails only where the kernel has no such call.
        let _ = rustix::rand::getrandom(&mut writer, rustix::rand::GetRandomFlags::empty());
        bytes.extend_from_slice(&writer);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<u64> {
        let fields = bytes.strip_prefix(&MAGIC)?.strip_prefix(&VERSION.to_le_bytes())?.strip_prefix(&[0; 6])?;
        let (sequence, writer) = fields.split_first_chunk::<8>()?;
        (writer.len() == 16).then(|| u64::from_le_bytes(*sequence))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_boundary_is_read_as_it_was_written_and_nothing_else_is() {
            let bytes = encode(0x0102_0304_0506_0708);
            assert_eq!((bytes.len(), decode(&bytes)), (LENGTH, Some(0x0102_0304_0506_0708)));
            assert_ne!(encode(1), encode(1), "two writers are told apart");
            for at in 0..16 {
                let mut other = bytes.clone();
                other[at] ^= 1;
                assert_eq!(decode(&other), None, "byte {at}");
            }
            for length in 0..LENGTH {
                assert_eq!(decode(&bytes[..length]), None, "{length} bytes");
            }
        }
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
mod tests {
    use vivarium_journal::Kind;
    use vivarium_journal::touched::Touched;
    use vivarium_journal::write::Writer;

    use super::*;

    /// Adds barriers that were written at these seconds.
    async fn add(log: &Log, first: u64, seconds: &[i64]) {
        for (sequence, second) in (first..).zip(seconds) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let header = Header {
                kind: Kind::Barrier,
                volume: "v".into(),
                writer: [0; 16],
                epoch: 1,
                first: sequence,
                sequence,
                parent: Digest::EMPTY,
                time: second * 1_000_000_000,
                layers: vec![],
            };
            let writer = Writer::new(file.as_file(), &header).unwrap();
            let (_, summary) = writer.finish(&Touched::default().changes()).unwrap();
            let appended = log.append(sequence, file.path(), summary.length, summary.content).await.unwrap();
            assert_eq!(appended, Appended::Yes);
        }
    }

    async fn at(log: &Log, second: i64) -> (u64, bool) {
        let moment = log.at(Timestamp::from_second(second).unwrap(), 0).await.unwrap();
        (moment.position.sequence, moment.too_old)
    }

    #[tokio::test]
    async fn an_instant_is_found_by_time_and_not_before_what_can_be_restored() {
        let log = Log::new(&VolumeId::parse("v").unwrap(), Arc::new(Store::memory("test"))).unwrap();
        assert_eq!(at(&log, 5).await, (0, true));
        add(&log, 1, &[10, 20, 30, 40, 50, 60, 70, 80, 90]).await;
        let cases = [(9, 1, true), (10, 1, false), (19, 1, false), (20, 2, false), (69, 6, false), (70, 7, false)];
        for (second, sequence, too_old) in cases.into_iter().chain([(89, 8, false), (90, 9, false), (1000, 9, false)]) {
            assert_eq!(at(&log, second).await, (sequence, too_old), "{second}");
        }
        log.raise_boundary(Boundary::NONE, 6).await.unwrap();
        for sequence in 1..6 {
            log.delete(&log.key(sequence)).await.unwrap();
        }
        for (second, sequence, too_old) in [(5, 6, true), (59, 6, true), (60, 6, false), (75, 7, false), (90, 9, false)]
        {
            assert_eq!(at(&log, second).await, (sequence, too_old), "{second}");
        }
    }

    #[tokio::test]
    async fn clocks_that_disagree_turn_no_order_around_and_what_is_added_changes_no_answer() {
        let log = Log::new(&VolumeId::parse("v").unwrap(), Arc::new(Store::memory("test"))).unwrap();
        add(&log, 1, &[10, 20, 50, 60, 30, 40, 70, 65, 80, 75, 90]).await;
        let mut before = Vec::new();
        for second in 10..90 {
            before.push(at(&log, second).await.0);
        }
        assert!(before.is_sorted(), "{before:?}");
        assert_eq!((before[0], before[79]), (1, 10));
        add(&log, 12, &[95, 99, 100, 101, 102, 103, 104, 105]).await;
        for (second, sequence) in (10..90).zip(before) {
            assert_eq!(at(&log, second).await.0, sequence, "{second}");
        }
    }
}
