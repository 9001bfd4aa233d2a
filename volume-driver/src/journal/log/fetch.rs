//! Transactions, merged ones and checkpoints as files of this node, checked whole.

use std::fs::File;
use std::io::Seek;
use std::path::Path;

use tokio::time::Instant;
use vivarium_journal::read::Transaction;
use vivarium_store::{Key, Store};

use super::{Log, PATIENCE_DATA, Unnamed};
use crate::journal::pieces::Piece;
use crate::journal::{JournalError, blocking};

impl Log {
    /// Fetches a transaction that must be there, into a file without a name in `directory`, and checks it whole.
    ///
    /// # Errors
    /// The store does not answer, or what it gives is not that transaction.
    pub async fn fetch(&self, sequence: u64, directory: &Path) -> Result<Transaction<File>, JournalError> {
        self.fetch_certain(&self.key(sequence), sequence, directory, "it is not in the store").await
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
        let key = self.key(sequence);
        self.sound(|store| self.fetch_from(store, &key, sequence, directory)).await
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
        let merged = self.fetch_certain(&key, piece.last, directory, "it is not in the store as one").await?;
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
        let checkpoint = self.fetch_certain(&key, sequence, directory, "its checkpoint is not in the store").await?;
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

    /// Fetches what is there for certain; `lost` says that it is not.
    async fn fetch_certain(
        &self,
        key: &Key,
        sequence: u64,
        directory: &Path,
        lost: &str,
    ) -> Result<Transaction<File>, JournalError> {
        let read = |store: Store| async move {
            let fetched = self.fetch_from(store, key, sequence, directory).await?;
            fetched.map(Some).ok_or_else(|| self.damaged(sequence, lost))
        };
        self.sound(read).await?.ok_or_else(|| self.damaged(sequence, lost))
    }

    async fn fetch_from(
        &self,
        store: Store,
        key: &Key,
        sequence: u64,
        directory: &Path,
    ) -> Result<Option<Transaction<File>>, JournalError> {
        let io = |source| JournalError::Io { attempt: "keep a transaction", volume: self.volume.clone(), source };
        let file = Unnamed::new(directory).map_err(io)?.file;
        let mut out = tokio::fs::File::from_std(file.try_clone().map_err(io)?);
        let deadline = Instant::now() + PATIENCE_DATA;
        let read = store.read_to(key, &mut out, deadline).await;
        if read.map_err(|error| self.unread(sequence, error))?.is_none() {
            return Ok(None);
        }
        drop(out);
        let volume = self.volume.clone();
        let transaction = blocking(&self.volume, move || {
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
