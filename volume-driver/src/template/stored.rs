//! Layers in the stores of journals, so that a node that has never had a template brings a volume back without its
//! registry.
//!
//! An object holds the blob as a registry gave it, packed in whatever way: what it is packed with is seen from its first
//! bytes, and what is in it is checked against the digest that names it, as with a blob of a registry. So an object that
//! is damaged, or that somebody has put there, can only be of no use.
//!
//! Layers are shared by all volumes of a store. One that nothing names any more is deleted after a while ([`crate::garbage`]).

use std::io::{Read, Seek};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use vivarium_store::{CreateError, Key, KeyError, Name, Source, Store};

use super::registry::{Layer, Packing};
use super::{BLOB, Blob, TemplateCache, TemplateError};
use crate::ids::LayerDigest;

/// How long a store may take to say whether it has a layer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a layer may take to come or go.
const PATIENCE_DATA: Duration = Duration::from_mins(10);

fn key(layer: &LayerDigest) -> Result<Key, KeyError> {
    Ok(Key::Layer { digest: Name::new(layer.directory())? })
}

fn failed<E: std::fmt::Display>(layer: &LayerDigest) -> impl FnOnce(E) -> TemplateError {
    let layer = layer.clone();
    move |error| TemplateError::Store { layer, message: error.to_string() }
}

/// What a blob is packed with.
fn packing(start: &[u8]) -> Packing {
    match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        // A frame, or one that is to be skipped (RFC 8878, 3.1).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
        _ => Packing::None,
    }
}

impl TemplateCache {
    /// Whether a store has a layer.
    async fn is_kept(&self, store: &Store, layer: &LayerDigest) -> Result<bool, TemplateError> {
        let key = key(layer).map_err(failed(layer))?;
        store.exists(&key, Instant::now() + PATIENCE).await.map_err(failed(layer))
    }

    /// Puts those layers of an image into a store that it does not have. They come from the registry, because what was
    /// unpacked cannot be packed again to the same bytes.
    ///
    /// # Errors
    /// Any [`TemplateError`] about store, image or registry. It can be tried again.
    pub async fn keep_in(&self, store: &Store, image: &str, layers: &[LayerDigest]) -> Result<(), TemplateError> {
        let mut missing = Vec::new();
        for layer in layers {
            if !self.is_kept(store, layer).await? {
                missing.push(layer);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let resolved = self.resolve(image).await?;
        for layer in missing {
            let found = resolved.layers.iter().find(|found| found.digest == *layer);
            let found = found.ok_or_else(|| TemplateError::OtherLayers { image: image.to_owned() })?;
            // As when it is fetched to be unpacked, which uses the same file.
            let mutex = self.turn(layer);
            let _turn = mutex.lock().await;
            let _slot = self.slots.acquire().await.ok();
            let blob = self.fetch(image, &resolved, found).await?;
            self.put(store, layer, blob).await?;
        }
        Ok(())
    }

    async fn put(&self, store: &Store, layer: &LayerDigest, blob: Blob) -> Result<(), TemplateError> {
        let key = key(layer).map_err(failed(layer))?;
        let (digest, blob) = super::blocking(move || {
            let mut file = blob.reader()?;
            let mut hash = blake3::Hasher::new();
            std::io::copy(&mut file, &mut hash).map_err(TemplateError::Blob)?;
            Ok((*hash.finalize().as_bytes(), blob))
        })
        .await?;
        match store.create(&key, Source::File(&blob.path), digest, Instant::now() + PATIENCE_DATA).await {
            // Another one has the same content, packed in another way perhaps.
            Ok(_) | Err(CreateError::Conflict { .. }) => {
                tracing::info!(%layer, %store, "a template layer is in the store");
                Ok(())
            }
            Err(error) => Err(failed(layer)(error)),
        }
    }

    /// Brings a layer here from the first store, or mirror of one, that has it whole. `false`: none has.
    pub(super) async fn pull_stored(self: &Arc<Self>, stores: &[Arc<Store>], layer: &LayerDigest) -> bool {
        for store in stores.iter().flat_map(|store| store.members()) {
            match self.pull_from(&store, layer).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, %layer, %store, "the layer is taken from elsewhere than this store");
                }
            }
        }
        false
    }

    async fn pull_from(self: &Arc<Self>, store: &Store, layer: &LayerDigest) -> Result<bool, TemplateError> {
        if !self.is_kept(store, layer).await? {
            return Ok(false);
        }
        let mutex = self.turn(layer);
        let _turn = mutex.lock().await;
        if self.has(layer) {
            return Ok(true);
        }
        let _slot = self.slots.acquire().await.ok();
        self.pool.require(0).map_err(TemplateError::Pool)?;
        let blob = self.blob_file(layer)?;
        let mut out = blob.writer()?;
        tracing::info!(%layer, %store, "fetching a template layer from the store");
        let key = key(layer).map_err(failed(layer))?;
        let read = store.read_to(&key, &mut out, Instant::now() + PATIENCE_DATA).await.map_err(failed(layer))?;
        drop(out);
        let Some(content) = read else { return Ok(false) };
        let mut start = [0; 4];
        let mut file = blob.reader()?;
        // A blob of fewer bytes is no archive, which is found out when it is unpacked.
        let length = file.read(&mut start).map_err(TemplateError::Blob)?;
        file.rewind().map_err(TemplateError::Blob)?;
        let packing = packing(&start[..length]);
        let layer = Layer { digest: layer.clone(), blob: String::new(), size: content.length, packing };
        self.unpack(layer, blob).await?;
        Ok(true)
    }

    pub(super) fn blob_file(&self, layer: &LayerDigest) -> Result<Blob, TemplateError> {
        let path = self.pool.templates_path().join(format!("{BLOB}{}", layer.directory()));
        Blob::create(path).map_err(TemplateError::Blob)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_blob_is_packed_with_is_seen_from_its_beginning() {
        for (start, expected) in [
            (&[0x1f, 0x8b, 8, 0][..], Packing::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Packing::Zstd),
            (&[0x5a, 0x2a, 0x4d, 0x18], Packing::Zstd),
            (b"./us", Packing::None),
            (&[0x1f], Packing::None),
            (&[], Packing::None),
        ] {
            assert_eq!(packing(start), expected, "{start:?}");
        }
    }
}
