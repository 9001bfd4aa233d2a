//! What goes: objects that nobody needs any more, and all of a deleted volume.

use std::time::SystemTime;

use tokio::time::Instant;
use vivarium_store::{CreateError, Key, Listed, Prefix, Source, Used};

use super::{Log, PATIENCE, PATIENCE_LIST};
use crate::journal::JournalError;

impl Log {
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
}
