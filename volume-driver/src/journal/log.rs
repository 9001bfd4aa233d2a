//! The chain of transactions of one volume in its store.

use std::fs::File;
use std::io::Seek;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use vivarium_journal::header::MAX_HEADER;
use vivarium_journal::read::Transaction;
use vivarium_journal::{Digest, Header};
use vivarium_store::{CreateError, Created, Key, Name, Prefix, ReadError, Source, Span, Store};

use super::JournalError;
use crate::ids::VolumeId;

/// How long one request to the store may take with all its repetitions.
const PATIENCE: Duration = Duration::from_secs(20);
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
    /// The log of `volume` in `store`.
    ///
    /// # Errors
    /// The volume's handle cannot be part of a name there.
    pub fn new(volume: &VolumeId, store: Arc<Store>) -> Result<Self, JournalError> {
        let name = Name::new(volume.as_str())
            .map_err(|error| JournalError::Store { volume: volume.clone(), message: error.to_string() })?;
        Ok(Self { volume: volume.clone(), name, store })
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

    /// The newest transaction. `known` is one that was in the log for certain: the search begins there. What the store
    /// lists is a hint that saves requests, nothing more.
    ///
    /// # Errors
    /// The store does not answer, or has lost `known`.
    pub async fn tail(&self, known: u64) -> Result<Position, JournalError> {
        let after = (known > 0).then(|| self.key(known));
        let prefix = Prefix::Transactions(self.name.clone());
        let listed = self.store.list(&prefix, after.as_ref(), Instant::now() + PATIENCE).await;
        let listed = listed.map_err(|error| self.unreachable(&error))?;
        let numbers = listed.iter().filter_map(|entry| match &entry.key {
            Key::Transaction { seq, .. } => Some(*seq),
            _ => None,
        });
        let mut last = numbers.max().unwrap_or(0).max(known);
        while self.exists(last + 1).await? {
            last += 1;
        }
        if last == 0 {
            return Ok(Position::START);
        }
        match self.position(last).await? {
            Some(position) => Ok(position),
            None => Err(self.damaged(last, "it was in the store, and is not any more")),
        }
    }

    async fn exists(&self, sequence: u64) -> Result<bool, JournalError> {
        self.store
            .exists(&self.key(sequence), Instant::now() + PATIENCE)
            .await
            .map_err(|error| self.unreachable(&error))
    }

    /// Epoch and digest of a transaction, from its ends; `None` if it is not in the log.
    async fn position(&self, sequence: u64) -> Result<Option<Position>, JournalError> {
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

    /// Takes everything of the volume out of the store: its object is being deleted, and its name is never used again.
    ///
    /// # Errors
    /// The store does not answer; what is left is found by the next call.
    pub async fn purge(&self) -> Result<(), JournalError> {
        let prefix = Prefix::Volume(self.name.clone());
        loop {
            let listed = self.store.list(&prefix, None, Instant::now() + PATIENCE).await;
            let listed = listed.map_err(|error| self.unreachable(&error))?;
            if listed.is_empty() {
                return Ok(());
            }
            for entry in listed {
                let deleted = self.store.delete(&entry.key, Instant::now() + PATIENCE).await;
                deleted.map_err(|error| self.unreachable(&error))?;
            }
        }
    }

    /// Fetches a transaction that must be there, into a file without a name in `directory`, and checks it whole.
    ///
    /// # Errors
    /// The store does not answer, or what it gives is not that transaction.
    pub async fn fetch(&self, sequence: u64, directory: &Path) -> Result<Transaction<File>, JournalError> {
        let io = |source| JournalError::Io { attempt: "keep a transaction", volume: self.volume.clone(), source };
        let file = unnamed(directory).map_err(io)?;
        let mut out = tokio::fs::File::from_std(file.try_clone().map_err(io)?);
        let deadline = Instant::now() + PATIENCE_DATA;
        match self.store.read_to(&self.key(sequence), &mut out, deadline).await {
            Ok(Some(_)) => {}
            Ok(None) => return Err(self.damaged(sequence, "it is not in the store")),
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
        Ok(transaction)
    }
}

fn unnamed(directory: &Path) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?.into())
}
