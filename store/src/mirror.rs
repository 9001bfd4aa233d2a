//! Stores that must all have an object before it counts: a first one and its mirrors, in an order. With one mirror, either of
//! the two may be lost.
//!
//! | objects | where they are |
//! |---|---|
//! | all but these | created in the first store, which decides who has the name, then in one mirror after the other: the same bytes, parts and lists of parts too. So under each name the stores have the same or nothing, and the first one has whatever any has |
//! | fences, beats | in the last store alone |
//!
//! What is acknowledged is in all of them. Lists and questions whether something is there go to the first store, which
//! alone knows the end of a log. What is damaged there, or missing although it must be there, is read of a mirror
//! ([`Store::mirrors`]). Deleted is in the other direction, so that it stays true that the first one has whatever any has.
//!
//! A writer that dies between two stores leaves a gap, and whoever goes on in its place closes it first ([`Store::mend`]).
//!
//! **The first store can be given up** once it is lost: the second then decides, in the same names
//! (`docs/src/how-to/two-stores.md`). Nobody who does not know that yet is harmed or does harm. What he creates counts for him
//! once the second store has it too, and there it is created only if nothing is there. And fences are where they were: in the last store.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use vivarium_fail_point::passed;

use crate::store::Inner;
use crate::{Content, CreateError, Deadline, Key, MaintainError, Name, Prefix, ReadError, Store};

/// How long one is asked what it has: whoever waits for that has others waiting, and what has to be brought takes its time.
const QUESTIONS: Duration = Duration::from_secs(20);

/// A mirror did not get what it lacks.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// A list.
    #[error(transparent)]
    List(#[from] MaintainError),
    /// The question whether something is there.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What has to be brought there.
    #[error(transparent)]
    Create(#[from] CreateError),
}

impl Store {
    /// This store, and others that get everything after it, one after the other. Mirrors of these do not count.
    #[must_use]
    pub fn with_mirrors(self, mirrors: Vec<Self>) -> Self {
        let inner = Inner::clone(&self.inner());
        Self::of(self.name(), Inner { mirrors, ..inner })
    }

    /// The others, each by itself.
    #[must_use]
    pub fn mirrors(&self) -> Vec<Self> {
        self.inner().mirrors.clone()
    }

    /// Each store by itself, the first one first.
    #[must_use]
    pub fn members(&self) -> Vec<Self> {
        let inner = self.inner();
        if inner.mirrors.is_empty() {
            return vec![self.clone()];
        }
        let first = Self::of(self.name(), Inner { mirrors: Vec::new(), ..Inner::clone(&inner) });
        std::iter::once(first).chain(inner.mirrors.iter().cloned()).collect()
    }

    /// The order in which something is taken away.
    pub(crate) fn last_first(&self) -> Vec<Self> {
        let mut members = self.members();
        members.reverse();
        members
    }

    /// The store as it is now, whatever becomes of it: an object that was created in the first of its members has to come into
    /// those that were its mirrors then.
    pub(crate) fn as_it_is(&self) -> Self {
        Self { name: self.name.clone(), inner: Arc::new(RwLock::new(self.inner())) }
    }

    fn last(&self) -> Option<Self> {
        self.inner().mirrors.last().cloned()
    }

    /// The store that alone has such an object, if it is not one that all have.
    pub(crate) fn witness_of(&self, key: &Key) -> Option<Self> {
        self.last().filter(|_| matches!(key, Key::Fence { .. } | Key::Beat { .. }))
    }

    /// The same for a list.
    pub(crate) fn witness_of_all(&self, prefix: &Prefix) -> Option<Self> {
        self.last().filter(|_| matches!(prefix, Prefix::Fences | Prefix::Beats(_) | Prefix::AllBeats))
    }

    /// The stores that all have to have an object if it is to be called there.
    pub(crate) fn asked_for(&self, key: &Key) -> Vec<Self> {
        match key {
            // It is put there again by whoever finds it wanting.
            Key::Layer { .. } => self.members(),
            _ => vec![self.clone()],
        }
    }

    /// Brings an object that was found in this store into its mirrors, with its parts: who made it may not have come so far.
    pub(crate) async fn mirror_found(&self, key: &Key, deadline: Deadline) -> Result<(), CreateError> {
        for store in &self.inner().mirrors {
            store.copy(self, key, deadline).await?;
        }
        Ok(())
    }

    /// Brings an object that was just created in this store, after its parts, into its mirrors.
    pub(crate) async fn mirror(
        &self,
        key: &Key,
        object: &Bytes,
        content: Content,
        deadline: Deadline,
    ) -> Result<(), CreateError> {
        for store in &self.inner().mirrors {
            passed("mirror-next");
            store.take(key, object.clone(), content, deadline).await?;
        }
        Ok(())
    }

    /// Gets an object of the first store.
    fn take<'a>(
        &'a self,
        key: &'a Key,
        object: Bytes,
        content: Content,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<(), CreateError>> {
        let taken = async move {
            match self.commit(key, object, content, deadline).await {
                Ok(_) => Ok(()),
                Err(CreateError::Conflict { store, key }) => Err(CreateError::Diverged { store, key }),
                Err(error) => Err(error),
            }
        };
        taken.boxed()
    }

    /// Brings what there is of a volume and mirrors lack into them: what is listed, and what comes right before and at `last`, an
    /// object of which it is known that it is there, as far down as it is lacking. `before` gives the one before. Returns how many
    /// objects were lacking.
    ///
    /// # Errors
    /// [`MendError`]. It can be tried again.
    pub async fn mend(
        &self,
        volume: &Name,
        last: Option<&Key>,
        before: impl Fn(&Key) -> Option<Key>,
        deadline: Deadline,
    ) -> Result<usize, MendError> {
        let [first, mirrors @ ..] = &self.members()[..] else { return Ok(0) };
        if mirrors.is_empty() {
            return Ok(0);
        }
        let prefix = Prefix::Volume(volume.clone());
        let soon = || deadline.min(Deadline::now() + QUESTIONS);
        let all = first.list(&prefix, None, soon()).await?;
        let mut mended = 0;
        for store in mirrors {
            let there: BTreeSet<Key> =
                store.list(&prefix, None, soon()).await?.into_iter().map(|entry| entry.key).collect();
            let mut lacking: Vec<&Key> =
                all.iter().map(|entry| &entry.key).filter(|key| !there.contains(key)).collect();
            // Parts before the lists of them; the rest in the order of its numbers, as it was written.
            lacking.sort_by_cached_key(|key| (!key.is_part(), key.path()));
            for key in lacking {
                mended += usize::from(store.copy(first, key, deadline).await?);
            }
            // A list may not show what is there.
            let (mut key, mut unlisted) = (last.cloned(), Vec::new());
            while let Some(missing) = key.take() {
                if store.exists(&missing, soon()).await? {
                    break;
                }
                key = before(&missing);
                unlisted.push(missing);
            }
            for key in unlisted.iter().rev() {
                mended += usize::from(store.copy(first, key, deadline).await?);
            }
        }
        Ok(mended)
    }

    /// Gets one object as it is in another store, with its parts. False: it is not there any more.
    async fn copy(&self, from: &Self, key: &Key, deadline: Deadline) -> Result<bool, CreateError> {
        let fetch =
            async |key: &Key| from.fetch_object(key, deadline).await.map_err(|error| CreateError::of_read(key, error));
        let Some((object, manifest)) = fetch(key).await? else { return Ok(false) };
        let parts = manifest.as_ref().map_or(0, |manifest| manifest.parts.len());
        let writer = manifest.as_ref().and_then(|manifest| manifest.writer_name().ok());
        for part in (0..parts as u32).filter_map(|number| key.part(writer.as_ref()?, number)) {
            if let Some((object, _)) = fetch(&part).await? {
                let content = Content::claimed(&object, None);
                self.take(&part, object, content, deadline).await?;
            }
        }
        let content = Content::claimed(&object, manifest.as_ref());
        self.take(key, object, content, deadline).await?;
        Ok(true)
    }
}
