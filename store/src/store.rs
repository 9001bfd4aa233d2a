//! A store as the rest of the crate sees it: the back end, where its objects begin, how long one request may take, and the
//! stores that mirror it ([`crate::mirror`]).

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use object_store::memory::InMemory;
use object_store::{ObjectStore, path::Path};

use crate::failure::Redaction;
use crate::retry::attempt;
use crate::{Deadline, Failure, Key, PART_SIZE};

/// Longest time that one request may take, apart from its bytes, which come at this rate at least.
const REQUEST: Duration = Duration::from_secs(5);
const BYTES_PER_SECOND: u64 = 1 << 20;

/// How large objects get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Largest content that is an object as it is, and the length of the parts of a larger one.
    pub part: usize,
    /// Parts of one content that are under way at once.
    pub in_flight: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { part: PART_SIZE, in_flight: 3 }
    }
}

/// An open store. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    pub(crate) name: Arc<str>,
    pub(crate) inner: Arc<RwLock<Arc<Inner>>>,
}

#[derive(Clone)]
pub(crate) struct Inner {
    pub objects: Arc<dyn ObjectStore>,
    pub prefix: String,
    /// Directory of a local store.
    pub root: Option<PathBuf>,
    pub redaction: Redaction,
    pub sizes: Sizes,
    /// Longest time of one request, apart from its bytes.
    pub request: Duration,
    /// Stores that get everything after this one; they have no mirrors of their own.
    pub mirrors: Vec<Store>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The back end's own Debug could show credentials.
        write!(f, "Store({})", self.name)
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store '{}'", self.name)
    }
}

impl Store {
    /// A store over a back end of the caller, for tests and for those who inject faults.
    #[must_use]
    pub fn over(name: &str, objects: Arc<dyn ObjectStore>, sizes: Sizes) -> Self {
        let inner = Inner::of(objects);
        Self::of(name, Inner { sizes, ..inner })
    }

    /// The same store, which waits only so long for an answer: for tests that cannot wait longer.
    #[cfg(feature = "faults")]
    #[must_use]
    pub fn hasty(self, request: Duration) -> Self {
        let inner = Inner::clone(&self.inner());
        Self::of(&self.name, Inner { request, ..inner })
    }

    /// A store in the memory of this process.
    #[must_use]
    pub fn memory(name: &str) -> Self {
        Self::over(name, Arc::new(InMemory::new()), Sizes::default())
    }

    pub(crate) fn of(name: &str, inner: Inner) -> Self {
        Self { name: name.into(), inner: Arc::new(RwLock::new(Arc::new(inner))) }
    }

    pub(crate) fn inner(&self) -> Arc<Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on this store, and all its clones, are what the other one is now: the same with other credentials, say.
    /// What is under way ends as it began.
    pub fn become_like(&self, other: &Self) {
        let new = other.inner();
        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Whether every node that has it finds the same in it.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.inner().root.is_none()
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The object's path as the back end knows it. Every key and prefix is made of checked names, so it is one.
    pub(crate) fn path(&self, below: &str) -> Path {
        match (self.inner().prefix.as_str(), below) {
            ("", below) => Path::from(below),
            (prefix, "") => Path::from(prefix),
            (prefix, below) => Path::from(format!("{prefix}/{below}")),
        }
    }

    /// The key of a back end's path, if one of this store's.
    pub(crate) fn key(&self, path: &Path) -> Option<Key> {
        let path = path.as_ref();
        let below = match self.inner().prefix.as_str() {
            "" => path,
            prefix => path.strip_prefix(prefix)?.strip_prefix('/')?,
        };
        Key::parse(below)
    }

    /// One request, as long as one that moves so many bytes may take.
    pub(crate) async fn request<T>(
        &self,
        deadline: Deadline,
        bytes: u64,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, RequestError> {
        let inner = self.inner();
        match attempt(deadline, inner.request + Duration::from_secs(bytes / BYTES_PER_SECOND), call).await {
            Err(failure) => Err(RequestError::Failed(failure)),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(RequestError::from(&error, &inner.redaction)),
        }
    }

    /// Makes what is visible last, where the back end does not do all of that.
    pub(crate) async fn settle(&self, key: &Key) -> Result<(), Failure> {
        let Some(root) = self.inner().root.clone() else { return Ok(()) };
        let path = key.path();
        let done = tokio::task::spawn_blocking(move || crate::durable::settle(&root, &path)).await;
        let message = match done {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        Err(Failure { cause: crate::Cause::Other, message: format!("{key} cannot be flushed: {message}") })
    }
}

impl Inner {
    pub(crate) fn of(objects: Arc<dyn ObjectStore>) -> Self {
        Self {
            objects,
            prefix: String::new(),
            root: None,
            redaction: Redaction::default(),
            sizes: Sizes::default(),
            request: REQUEST,
            mirrors: Vec::new(),
        }
    }
}

/// Why a request did not succeed.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// The object is there already, or so it says.
    Exists,
    /// The object (or the bucket) is not there.
    NotFound(Failure),
    /// Anything else; what was asked may have happened.
    Failed(Failure),
}

impl RequestError {
    fn from(error: &object_store::Error, redaction: &Redaction) -> Self {
        use object_store::Error as E;
        match error {
            E::AlreadyExists { .. } | E::Precondition { .. } | E::NotModified { .. } => Self::Exists,
            E::NotFound { .. } => {
                let failure = redaction.failure(error);
                // A missing bucket is not a missing object: it would look like an empty journal.
                if failure.message.contains("NoSuchBucket") { Self::Failed(failure) } else { Self::NotFound(failure) }
            }
            _ => Self::Failed(redaction.failure(error)),
        }
    }
}
