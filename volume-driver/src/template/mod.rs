//! Template layers of this node: read-only subvolumes `templates/sha256-<diff id>`, shared by all environments.
//!
//! [`TemplateCache::ensure`] brings missing layers here, from a store of journals that keeps them ([`stored`]) or from
//! their registry; a layer is visible only when it is whole and
//! verified ([`layer`]). What a layer may hold is decided in [`unpack`], whether layers make an operating system in
//! [`check`]. Which layers are needed is for the caller to know.

mod check;
mod layer;
mod registry;
mod stored;
pub mod unpack;

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, Weak};

use tokio::sync::Semaphore;
use vivarium_store::Store;

use crate::ids::LayerDigest;
use crate::pool::{Pool, PoolError, destroy_tree, open_beneath};
pub use check::OperatingSystem;
pub use registry::Image;
pub(crate) use registry::digest_of;
use registry::{Layer, Registry};
use unpack::{Limits, UnpackError};

/// Prefix of layers that are being made.
const PARTIAL: &str = ".partial-";
/// Prefix of blobs that are being fetched.
const BLOB: &str = ".blob-";
/// Layers that are fetched and unpacked at a time.
const PARALLEL: usize = 2;

/// Why a template is not on this node.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The reference cannot be read.
    #[error("'{image}' is not a reference of an image ({message}): write it as registry.example.org/path/name:tag")]
    Reference {
        /// As written.
        image: String,
        /// What is wrong.
        message: String,
    },
    /// The registry does not have it, or not for us.
    #[error("image {image} was not found: {message}. Check its name and tag; it must be readable without credentials")]
    NotFound {
        /// Reference.
        image: String,
        /// What the registry says.
        message: String,
    },
    /// The registry does not answer.
    #[error("the registry of image {image} does not answer as it should: {message}. It will be tried again")]
    Unreachable {
        /// Reference.
        image: String,
        /// What happened.
        message: String,
    },
    /// Not an image that can be read.
    #[error("image {image} cannot be used: {message}")]
    Invalid {
        /// Reference.
        image: String,
        /// What is wrong.
        message: String,
    },
    /// It is another image than the volume was made from.
    #[error("image {image} no longer has the layers that were asked for")]
    OtherLayers {
        /// Reference.
        image: String,
    },
    /// Content that is not what its digest says.
    #[error("the {what} is not what its digest says: wanted {wanted}, found {found}. Push the image again")]
    Digest {
        /// Of what.
        what: String,
        /// As named.
        wanted: String,
        /// As computed.
        found: String,
    },
    /// A layer that cannot be unpacked, or may not.
    #[error("layer {layer} cannot be used: {source}")]
    Layer {
        /// Which.
        layer: LayerDigest,
        /// Why not.
        source: UnpackError,
    },
    /// Layers without an init.
    #[error("image {image} is not an operating system: it has no program at {}. Build it with an init such as systemd", check::INITS.join(", "))]
    NotAnOperatingSystem {
        /// Reference.
        image: String,
    },
    /// The pool is full, or fails.
    #[error(transparent)]
    Pool(PoolError),
    /// A step in the pool failed.
    #[error("cannot {attempt} of layer {layer}: {source}")]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// Which.
        layer: LayerDigest,
        /// Why not.
        source: io::Error,
    },
    /// The layers cannot be looked into.
    #[error("cannot look into the layers of image {image}: {source}")]
    Tree {
        /// Reference.
        image: String,
        /// Why not.
        source: io::Error,
    },
    /// A fetched blob cannot be kept.
    #[error("cannot keep what was fetched: {0}")]
    Blob(io::Error),
    /// A store that keeps layers, or is to.
    #[error("layer {layer} cannot be exchanged with the store of journals: {message}")]
    Store {
        /// Which.
        layer: LayerDigest,
        /// Why not.
        message: String,
    },
    /// No client.
    #[error("cannot speak to registries: {0}")]
    Client(String),
}

impl TemplateError {
    fn blob(error: io::Error) -> Self {
        Self::Blob(error)
    }

    /// The reason of the condition `Ready`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Reference { .. } | Self::NotFound { .. } => "ImageNotFound",
            Self::Unreachable { .. } | Self::Client(_) => "RegistryUnreachable",
            Self::Invalid { .. } | Self::OtherLayers { .. } => "InvalidImage",
            Self::Digest { .. } => "DigestMismatch",
            Self::Store { .. } => "StoreUnreachable",
            Self::NotAnOperatingSystem { .. } => "NotAnOperatingSystem",
            Self::Layer { source, .. } => match source {
                UnpackError::Hostile { .. } => "HostileLayer",
                UnpackError::TooLarge { .. } => "LayerTooLarge",
                UnpackError::Corrupt { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => "LayerTooLarge",
                UnpackError::Corrupt { .. } => "InvalidImage",
                UnpackError::Pool(PoolError::Full { .. }) => "PoolFull",
                // Others fill the pool as well.
                UnpackError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => "PoolFull",
                UnpackError::Io { .. } | UnpackError::Pool(_) => "NodeError",
            },
            Self::Blob(source) if source.kind() == io::ErrorKind::StorageFull => "PoolFull",
            Self::Pool(PoolError::Full { .. }) => "PoolFull",
            Self::Pool(_) | Self::Io { .. } | Self::Tree { .. } | Self::Blob(_) => "NodeError",
        }
    }

    /// Whether a person has to change something before it can work.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        !matches!(self.reason(), "RegistryUnreachable" | "StoreUnreachable" | "NodeError")
    }

    /// Whether the pool is full.
    #[must_use]
    pub fn is_pool_full(&self) -> bool {
        self.reason() == "PoolFull"
    }
}

/// Layers that one task is bringing in, for others that want the same.
type InFlight = std::sync::Mutex<HashMap<LayerDigest, Weak<tokio::sync::Mutex<()>>>>;

/// The layers of this node.
pub struct TemplateCache {
    pool: Arc<Pool>,
    registry: Registry,
    limits: Limits,
    in_flight: InFlight,
    /// Layers that must stay although no object names them yet, and how many want that.
    pinned: Arc<std::sync::Mutex<HashMap<LayerDigest, usize>>>,
    slots: Semaphore,
}

/// Keeps layers from being collected until it is dropped.
#[must_use]
pub struct Pin {
    pinned: Arc<std::sync::Mutex<HashMap<LayerDigest, usize>>>,
    layers: Vec<LayerDigest>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in &self.layers {
            if let Some(count) = pinned.get_mut(layer) {
                *count -= 1;
            }
        }
        pinned.retain(|_, count| *count > 0);
    }
}

impl TemplateCache {
    /// Removes what a crash left half done.
    ///
    /// # Errors
    /// The pool fails.
    pub fn open(pool: Arc<Pool>, plain_http: Vec<String>, limits: Limits) -> Result<Self, TemplateError> {
        let registry = Registry::new(plain_http);
        let cache = Self {
            pool,
            registry,
            limits,
            in_flight: InFlight::default(),
            pinned: Arc::default(),
            slots: Semaphore::new(PARALLEL),
        };
        for name in cache.names()? {
            let path = cache.pool.templates_path().join(&name);
            let removed = if name.starts_with(PARTIAL) {
                tracing::info!(name, "removing a layer that was half unpacked");
                CString::new(name).map_err(io::Error::from).and_then(|name| cache.destroy(&name))
            } else if name.starts_with(BLOB) {
                std::fs::remove_file(&path)
            } else {
                continue;
            };
            removed.map_err(|error| TemplateError::Pool(PoolError::io("remove", &path)(error)))?;
        }
        Ok(cache)
    }

    /// Path of a layer on the node.
    #[must_use]
    pub fn path(&self, layer: &LayerDigest) -> PathBuf {
        self.pool.templates_path().join(layer.directory())
    }

    /// Whether a layer is here.
    #[must_use]
    pub fn has(&self, layer: &LayerDigest) -> bool {
        open_beneath(self.pool.templates(), layer.directory().as_ref()).is_ok()
    }

    /// Reads which layers an image has.
    ///
    /// # Errors
    /// Any [`TemplateError`] about image or registry.
    pub async fn resolve(&self, image: &str) -> Result<Image, TemplateError> {
        self.registry.resolve(image).await
    }

    /// Brings the given layers of an image here: from a store that has them, or else from the registry, which is asked only
    /// for what is still missing then.
    ///
    /// # Errors
    /// Any [`TemplateError`].
    pub async fn ensure(
        self: &Arc<Self>,
        image: &str,
        layers: &[LayerDigest],
        stores: &[Arc<Store>],
    ) -> Result<(), TemplateError> {
        let missing: Vec<_> = layers.iter().filter(|layer| !self.has(layer)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let _pin = self.pin(layers);
        let found = futures::future::join_all(missing.iter().map(|layer| self.pull_stored(stores, layer))).await;
        if found.into_iter().all(|found| found) {
            return Ok(());
        }
        let resolved = self.resolve(image).await?;
        if resolved.layers() != layers {
            return Err(TemplateError::OtherLayers { image: image.to_owned() });
        }
        self.pull(image, &resolved).await
    }

    /// Brings all layers of an image here.
    ///
    /// # Errors
    /// Any [`TemplateError`]. Layers that were brought here until then stay.
    pub async fn pull(self: &Arc<Self>, image: &str, resolved: &Image) -> Result<(), TemplateError> {
        let layers = resolved.layers.iter().map(|layer| self.pull_layer(image, resolved, layer));
        futures::future::try_join_all(layers).await.map(|_| ())
    }

    async fn pull_layer(self: &Arc<Self>, image: &str, resolved: &Image, layer: &Layer) -> Result<(), TemplateError> {
        let mutex = self.turn(&layer.digest);
        let _turn = mutex.lock().await;
        if self.has(&layer.digest) {
            return Ok(());
        }
        // The semaphore is never closed; without a slot we would only be less polite.
        let _slot = self.slots.acquire().await.ok();
        self.pool.require(layer.size).map_err(TemplateError::Pool)?;
        let blob = self.fetch(image, resolved, layer).await?;
        self.unpack(layer.clone(), blob).await
    }

    async fn fetch(&self, image: &str, resolved: &Image, layer: &Layer) -> Result<Blob, TemplateError> {
        let blob = self.blob_file(&layer.digest)?;
        let mut out = blob.writer()?;
        tracing::info!(image, layer = %layer.digest, bytes = layer.size, "fetching a template layer");
        self.registry.blob(image, &resolved.reference, &layer.blob, layer.size, &mut out).await?;
        Ok(blob)
    }

    async fn unpack(self: &Arc<Self>, layer: Layer, blob: Blob) -> Result<(), TemplateError> {
        let cache = self.clone();
        blocking(move || layer::add(&cache.pool, &layer, blob.reader()?, cache.limits)).await
    }

    /// The lock of a layer: of several that want it one works, the others find it done.
    fn turn(&self, layer: &LayerDigest) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = all.get(layer).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        all.insert(layer.clone(), Arc::downgrade(&lock));
        lock
    }

    /// Keeps layers from being collected.
    pub fn pin(&self, layers: &[LayerDigest]) -> Pin {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        for layer in layers {
            *pinned.entry(layer.clone()).or_default() += 1;
        }
        Pin { pinned: self.pinned.clone(), layers: layers.to_vec() }
    }

    /// What operating system layers make, lowest first.
    ///
    /// # Errors
    /// [`TemplateError::NotAnOperatingSystem`], or a layer cannot be read.
    pub async fn check(
        self: &Arc<Self>,
        image: &str,
        layers: Vec<LayerDigest>,
    ) -> Result<OperatingSystem, TemplateError> {
        let (cache, image) = (self.clone(), image.to_owned());
        blocking(move || check::check(&cache.pool, &layers, &image)).await
    }

    /// Every layer that is here.
    ///
    /// # Errors
    /// The pool fails.
    pub fn list(&self) -> Result<Vec<LayerDigest>, TemplateError> {
        Ok(self.names()?.iter().filter_map(|name| LayerDigest::from_directory(name)).collect())
    }

    /// Destroys one layer that is not among those to keep; tells which, `None` when there is no such layer. One at a
    /// time: the caller leaves time in between, since freeing many at once stalls the file system.
    ///
    /// # Errors
    /// The pool fails.
    pub fn collect(&self, keep: &HashSet<LayerDigest>) -> Result<Option<LayerDigest>, TemplateError> {
        let in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |layer: &LayerDigest| {
            pinned.contains_key(layer) || in_flight.get(layer).is_some_and(|lock| lock.strong_count() > 0)
        };
        let Some(layer) = self.list()?.into_iter().find(|layer| !keep.contains(layer) && !busy(layer)) else {
            return Ok(None);
        };
        let failed = |source| TemplateError::Io { attempt: "destroy the subvolume", layer: layer.clone(), source };
        CString::new(layer.directory())
            .map_err(io::Error::from)
            .and_then(|name| self.destroy(&name))
            .map_err(failed)?;
        Ok(Some(layer))
    }

    fn destroy(&self, name: &std::ffi::CStr) -> io::Result<()> {
        destroy_tree(self.pool.root(), self.pool.templates(), name)
    }

    fn names(&self) -> Result<Vec<String>, TemplateError> {
        let path = self.pool.templates_path();
        let list = || -> io::Result<Vec<String>> {
            std::fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        };
        list().map_err(|error| TemplateError::Pool(PoolError::io("list", &path)(error)))
    }
}

/// A file that is removed with its owner.
struct Blob {
    file: std::fs::File,
    path: PathBuf,
}

impl Blob {
    fn create(path: PathBuf) -> io::Result<Self> {
        crate::files::remove(&path)?;
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }

    fn writer(&self) -> Result<tokio::fs::File, TemplateError> {
        Ok(tokio::fs::File::from_std(self.file.try_clone().map_err(TemplateError::Blob)?))
    }

    /// The file from its beginning.
    fn reader(&self) -> Result<std::fs::File, TemplateError> {
        let mut file = self.file.try_clone().map_err(TemplateError::Blob)?;
        io::Seek::rewind(&mut file).map_err(TemplateError::Blob)?;
        Ok(file)
    }
}

/// Runs what blocks beside the async tasks.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send + 'static,
) -> Result<T, TemplateError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(TemplateError::Blob(io::Error::other(error))))
}

impl Drop for Blob {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a fetched blob could not be removed; it is tried again at the next start");
        }
    }
}
