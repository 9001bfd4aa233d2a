//! What is there, and taking it away. A list is a hint: stores may show what is gone and not show what is there, in any
//! order, so nothing may be concluded from what a list lacks.

use std::collections::HashSet;
use std::time::SystemTime;

use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;

use crate::manifest::Manifest;
use crate::retry::Backoff;
use crate::store::RequestError;
use crate::{Cause, Deadline, Failure, Key, Name, Prefix, ReadError, Store};

/// Most objects that one list gives.
const LONGEST_LIST: usize = 1_000_000;
/// Objects that are deleted with one request (`DeleteObjects` of S3).
const AT_ONCE: usize = 1000;
/// Those that this leaves are deleted one by one, so many at a time.
const IN_FLIGHT: usize = 16;
/// A long list takes its time: as long as so many bytes.
const LARGEST_PAGE: u64 = 64 << 20;

/// A list or deletion that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum MaintainError {
    /// The list.
    #[error("{store} did not list {prefix:?}: {failure}")]
    List {
        /// The store.
        store: String,
        /// What was asked for.
        prefix: Prefix,
        /// Why not.
        failure: Failure,
    },
    /// The deletion.
    #[error("{store} did not delete {key}: {failure}. It can be tried again")]
    Delete {
        /// The store.
        store: String,
        /// The object.
        key: Box<Key>,
        /// Why not.
        failure: Failure,
    },
    /// What was to be deleted could not be read.
    #[error("{key} cannot be deleted, nor parts of it, because it is not known of what parts it is: {source}")]
    Read {
        /// The object.
        key: Box<Key>,
        /// Why not.
        source: ReadError,
    },
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What it is.
    pub key: Key,
    /// Bytes of the object itself; of a split one those of its list of parts.
    pub size: u64,
    /// When it was made, by the store's clock.
    pub modified: SystemTime,
}

impl Store {
    /// Objects below a prefix, those after the path of `after` only, sorted by path. A hint: see the module. What is not
    /// named like a [`Key`] is left out.
    ///
    /// # Errors
    /// [`MaintainError::List`].
    pub async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        deadline: Deadline,
    ) -> Result<Vec<Listed>, MaintainError> {
        match self.witness_of_all(prefix) {
            Some(witness) => witness.list_own(prefix, after, deadline).await,
            None => self.list_own(prefix, after, deadline).await,
        }
    }

    async fn list_own(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        deadline: Deadline,
    ) -> Result<Vec<Listed>, MaintainError> {
        let (below, inner) = (prefix.path(), self.inner());
        let path = (!(below.is_empty() && inner.prefix.is_empty())).then(|| self.path(&below));
        let after = after.map(|after| self.path(&after.path()));
        let mut backoff = Backoff::until(deadline);
        loop {
            let call = async {
                let entries = match &after {
                    Some(after) => inner.objects.list_with_offset(path.as_ref(), after),
                    None => inner.objects.list(path.as_ref()),
                };
                let mut listed = Vec::new();
                let mut entries = entries.take(LONGEST_LIST);
                while let Some(entry) = entries.try_next().await? {
                    if let Some(key) = self.key(&entry.location) {
                        listed.push(Listed { key, size: entry.size, modified: entry.last_modified.into() });
                    }
                }
                Ok(listed)
            };
            let failure = match self.request(deadline, LARGEST_PAGE, call).await {
                Ok(mut listed) => {
                    listed.sort_by_cached_key(|entry| entry.key.path());
                    return Ok(listed);
                }
                // A directory that was never made.
                Err(RequestError::NotFound(_)) => return Ok(Vec::new()),
                Err(RequestError::Exists) => Failure { cause: Cause::Other, message: "an answer without sense".into() },
                Err(RequestError::Failed(failure)) => failure,
            };
            if matches!(failure.cause, Cause::Denied | Cause::Missing) || !backoff.pause().await {
                return Err(MaintainError::List { store: self.to_string(), prefix: prefix.clone(), failure });
            }
        }
    }

    /// Volumes of which something is listed. A hint: see the module.
    ///
    /// # Errors
    /// [`MaintainError::List`].
    pub async fn volumes(&self, deadline: Deadline) -> Result<Vec<Name>, MaintainError> {
        let (path, inner) = (self.path("volumes"), self.inner());
        let mut backoff = Backoff::until(deadline);
        loop {
            let call = inner.objects.list_with_delimiter(Some(&path));
            let failure = match self.request(deadline, LARGEST_PAGE, call).await {
                Ok(listed) => {
                    let names = listed.common_prefixes.iter().filter_map(|path| Name::new(path.filename()?).ok());
                    return Ok(names.collect());
                }
                Err(RequestError::NotFound(_)) => return Ok(Vec::new()),
                Err(RequestError::Exists) => Failure { cause: Cause::Other, message: "an answer without sense".into() },
                Err(RequestError::Failed(failure)) => failure,
            };
            if matches!(failure.cause, Cause::Denied | Cause::Missing) || !backoff.pause().await {
                return Err(MaintainError::List { store: self.to_string(), prefix: Prefix::All, failure });
            }
        }
    }

    /// When an object was made, by the store's clock, at least to the second; `None` if it is not there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn modified(&self, key: &Key, deadline: Deadline) -> Result<Option<SystemTime>, ReadError> {
        let (path, inner) = (self.path(&key.path()), self.inner());
        let mut backoff = Backoff::until(deadline);
        loop {
            let failure = match self.request(deadline, 0, inner.objects.head(&path)).await {
                Ok(meta) => return Ok(Some(meta.last_modified.into())),
                Err(RequestError::NotFound(_)) => return Ok(None),
                Err(RequestError::Exists) => Failure { cause: Cause::Other, message: "an answer without sense".into() },
                Err(RequestError::Failed(failure)) => failure,
            };
            if matches!(failure.cause, Cause::Denied | Cause::Missing) || !backoff.pause().await {
                return Err(ReadError::Failed { store: self.to_string(), key: key.clone().into(), failure });
            }
        }
    }

    /// Takes an object away; one that is not there is no error. Of a split one first what commits it, then its parts:
    /// whoever dies in between leaves parts that nothing refers to.
    ///
    /// # Errors
    /// [`MaintainError`]. It can be tried again.
    pub async fn delete(&self, key: &Key, deadline: Deadline) -> Result<(), MaintainError> {
        match self.witness_of(key) {
            Some(witness) => witness.delete_everywhere(key, deadline).await,
            None => self.delete_everywhere(key, deadline).await,
        }
    }

    async fn delete_everywhere(&self, key: &Key, deadline: Deadline) -> Result<(), MaintainError> {
        let manifest = match self.fetch_object(key, deadline).await {
            Ok(None) => return Ok(()),
            Ok(Some((_, manifest))) => manifest,
            // Its parts cannot be known; it goes, and they are left to the sweep.
            Err(ReadError::Damaged { .. }) => None,
            Err(source) => return Err(MaintainError::Read { key: key.clone().into(), source }),
        };
        for store in self.last_first() {
            store.delete_object(key, deadline).await?;
            if let Some(manifest) = &manifest {
                store.delete_own_parts(key, manifest, deadline).await?;
            }
        }
        Ok(())
    }

    /// Takes objects away of which nothing depends: that have no parts, or whose parts are among them. Many at a time, where
    /// the back end can do that. One that is not there is no error.
    ///
    /// # Errors
    /// [`MaintainError`], of one that stays; others may be gone. It can be tried again.
    pub async fn delete_whole(&self, keys: &[Key], deadline: Deadline) -> Result<(), MaintainError> {
        for store in self.last_first() {
            store.delete_all(keys, deadline).await?;
        }
        Ok(())
    }

    async fn delete_all(&self, keys: &[Key], deadline: Deadline) -> Result<(), MaintainError> {
        let inner = self.inner();
        for keys in keys.chunks(AT_ONCE) {
            let paths: Vec<_> = keys.iter().map(|key| self.path(&key.path())).collect();
            let answers = inner.objects.delete_stream(futures::stream::iter(paths.clone()).map(Ok).boxed());
            let gone = async { Ok(answers.filter_map(async |answer| answer.ok()).collect::<HashSet<_>>().await) };
            // What this does not say of one, the request for it alone does.
            let gone = self.request(deadline, LARGEST_PAGE, gone).await.unwrap_or_default();
            let left = keys.iter().zip(&paths).filter(|(_, path)| !gone.contains(*path));
            let left =
                futures::stream::iter(left.map(|(key, _)| self.delete_object(key, deadline)).collect::<Vec<_>>());
            left.buffer_unordered(IN_FLIGHT).try_collect::<Vec<()>>().await?;
        }
        Ok(())
    }

    pub(crate) async fn delete_parts(
        &self,
        key: &Key,
        manifest: &Manifest,
        deadline: Deadline,
    ) -> Result<(), MaintainError> {
        for store in self.last_first() {
            store.delete_own_parts(key, manifest, deadline).await?;
        }
        Ok(())
    }

    async fn delete_own_parts(&self, key: &Key, manifest: &Manifest, deadline: Deadline) -> Result<(), MaintainError> {
        let in_flight = self.inner().sizes.in_flight;
        let Ok(writer) = manifest.writer_name() else { return Ok(()) };
        let mut parts = (0..manifest.parts.len() as u32).filter_map(|number| key.part(&writer, number));
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < in_flight
                && let Some(part) = parts.next()
            {
                under_way.push(self.delete_part(part, deadline));
            }
            if under_way.try_next().await?.is_none() {
                return Ok(());
            }
        }
    }

    async fn delete_part(&self, part: Key, deadline: Deadline) -> Result<(), MaintainError> {
        self.delete_object(&part, deadline).await
    }

    /// Takes one object of the back end away.
    async fn delete_object(&self, key: &Key, deadline: Deadline) -> Result<(), MaintainError> {
        let (path, inner) = (self.path(&key.path()), self.inner());
        let mut backoff = Backoff::until(deadline);
        loop {
            let failure = match self.request(deadline, 0, inner.objects.delete(&path)).await {
                Ok(()) | Err(RequestError::NotFound(_)) => return Ok(()),
                Err(RequestError::Exists) => Failure { cause: Cause::Other, message: "an answer without sense".into() },
                Err(RequestError::Failed(failure)) => failure,
            };
            if matches!(failure.cause, Cause::Denied | Cause::Missing) || !backoff.pause().await {
                return Err(MaintainError::Delete { store: self.to_string(), key: key.clone().into(), failure });
            }
        }
    }
}
