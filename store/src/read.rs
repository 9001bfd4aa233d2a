//! Reading: whole objects into memory or into a writer, or a piece of one. The parts of a large object are put together
//! here, each checked by length and digest, and the whole as well. Of an object that is its own content only the caller
//! knows the digest: it is returned for comparison.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use futures::stream::FuturesOrdered;
use object_store::{GetOptions, GetRange};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::manifest::{self, Manifest, Part};
use crate::retry::Backoff;
use crate::store::RequestError;
use crate::{Deadline, Digest, Failure, Key, Store};

/// Room for the manifest of the largest content; no other object is larger.
const LARGEST_OBJECT: u64 = 17 << 20;

/// An object that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store.
    #[error("{store} did not give {key}: {failure}")]
    Failed {
        /// The store.
        store: String,
        /// The object.
        key: Box<Key>,
        /// Why not.
        failure: Failure,
    },
    /// The content.
    #[error("{key} in {store} is damaged: {what}. It has to be restored from another store, or given up")]
    Damaged {
        /// The store.
        store: String,
        /// The object.
        key: Box<Key>,
        /// How.
        what: String,
    },
    /// The size.
    #[error("{key} in {store} has {length} bytes, and no more than {limit} were expected")]
    TooLarge {
        /// The store.
        store: String,
        /// The object.
        key: Box<Key>,
        /// Its bytes.
        length: u64,
        /// What the caller can bear.
        limit: u64,
    },
    /// The writer that was to get it.
    #[error("what was read of {key} cannot be written: {source}")]
    Sink {
        /// The object.
        key: Box<Key>,
        /// Why not.
        source: std::io::Error,
    },
}

/// How large a content is, and what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its bytes.
    pub length: u64,
    /// BLAKE3 of what was read.
    pub digest: Digest,
}

impl Content {
    /// What an object holds, or says that its parts do.
    pub(crate) fn claimed(object: &[u8], manifest: Option<&Manifest>) -> Self {
        match manifest {
            Some(manifest) => Self { length: manifest.length, digest: manifest.digest },
            None => Self { length: object.len() as u64, digest: blake3::hash(object).into() },
        }
    }
}

/// A content in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The content.
    pub bytes: Bytes,
    /// BLAKE3 of it.
    pub digest: Digest,
}

/// Which piece of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Span {
    /// From a byte up to another one, or to the end of the content.
    Range(Range<u64>),
    /// Up to so many bytes at the end.
    Tail(u64),
}

/// A piece of a content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The piece.
    pub bytes: Bytes,
    /// Where it begins.
    pub offset: u64,
    /// Bytes of the whole content.
    pub total: u64,
}

impl Span {
    fn within(&self, total: u64) -> Range<u64> {
        match self {
            Self::Range(range) => range.start.min(total)..range.end.clamp(range.start.min(total), total),
            Self::Tail(length) => total.saturating_sub(*length)..total,
        }
    }
}

impl Store {
    /// A content of at most `limit` bytes; `None` if there is no such object.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self, key: &Key, limit: u64, deadline: Deadline) -> Result<Option<Object>, ReadError> {
        let Some((object, manifest)) = self.fetch_object(key, deadline).await? else { return Ok(None) };
        let length = manifest.as_ref().map_or(object.len() as u64, |manifest| manifest.length);
        if length > limit {
            return Err(ReadError::TooLarge { store: self.to_string(), key: key.clone().into(), length, limit });
        }
        let Some(manifest) = manifest else {
            let digest = blake3::hash(&object).into();
            return Ok(Some(Object { bytes: object, digest }));
        };
        let mut bytes = Vec::with_capacity(manifest.length as usize);
        self.copy_parts(key, &manifest, &mut bytes, deadline).await?;
        Ok(Some(Object { bytes: bytes.into(), digest: manifest.digest }))
    }

    /// Writes a content of any size into `out`; `None` if there is no such object. After an error, what was written so
    /// far has to be thrown away.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_to<W: AsyncWrite + Unpin>(
        &self,
        key: &Key,
        out: &mut W,
        deadline: Deadline,
    ) -> Result<Option<Content>, ReadError> {
        let sink = |source| ReadError::Sink { key: key.clone().into(), source };
        let Some((object, manifest)) = self.fetch_object(key, deadline).await? else { return Ok(None) };
        let Some(manifest) = manifest else {
            out.write_all(&object).await.map_err(sink)?;
            out.flush().await.map_err(sink)?;
            return Ok(Some(Content { length: object.len() as u64, digest: blake3::hash(&object).into() }));
        };
        self.copy_parts(key, &manifest, out, deadline).await?;
        Ok(Some(Content { length: manifest.length, digest: manifest.digest }))
    }

    /// A piece of a content; `None` if there is no such object. A piece of a split object was checked; one of an object
    /// that is its own content was not: the caller's format has to do that.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_span(&self, key: &Key, span: Span, deadline: Deadline) -> Result<Option<Slice>, ReadError> {
        let head = GetRange::Bounded(0..manifest::MAGIC.len() as u64);
        let Some((head, total)) = self.fetch(key, Some(head), deadline).await? else { return Ok(None) };
        if !manifest::is_manifest(&head) {
            let range = span.within(total);
            if range.is_empty() {
                return Ok(Some(Slice { bytes: Bytes::new(), offset: range.start, total }));
            }
            let wanted = range.end - range.start;
            let Some((bytes, _)) = self.fetch(key, Some(GetRange::Bounded(range.clone())), deadline).await? else {
                return Ok(None);
            };
            if bytes.len() as u64 != wanted {
                return Err(self.damaged(key, format!("a piece of {wanted} bytes came with {}", bytes.len())));
            }
            return Ok(Some(Slice { bytes, offset: range.start, total }));
        }
        let Some((_, Some(manifest))) = self.fetch_object(key, deadline).await? else { return Ok(None) };
        let range = span.within(manifest.length);
        let mut bytes = BytesMut::new();
        let mut at = 0u64;
        for (number, part) in manifest.parts.iter().enumerate() {
            let end = at + u64::from(part.length);
            if at < range.end && end > range.start {
                let content = self.part(key, &manifest, number as u32, *part, deadline).await?;
                let from = range.start.saturating_sub(at) as usize;
                let to = (range.end.min(end) - at) as usize;
                bytes.extend_from_slice(&content[from..to]);
            }
            at = end;
        }
        Ok(Some(Slice { bytes: bytes.freeze(), offset: range.start, total: manifest.length }))
    }

    /// Whether there is such an object. Of a split one, whether it was committed; of a layer, whether mirrors have it too.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn exists(&self, key: &Key, deadline: Deadline) -> Result<bool, ReadError> {
        for store in self.asked_for(key) {
            let options = GetOptions { head: true, ..GetOptions::default() };
            if store.get(key, options, deadline).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The object itself, and what it stands for if it is a manifest.
    pub(crate) async fn fetch_object(
        &self,
        key: &Key,
        deadline: Deadline,
    ) -> Result<Option<(Bytes, Option<Manifest>)>, ReadError> {
        let Some((object, _)) = self.fetch(key, None, deadline).await? else { return Ok(None) };
        // Whatever a part begins with, it is a part.
        if key.is_part() || !manifest::is_manifest(&object) {
            return Ok(Some((object, None)));
        }
        let manifest = Manifest::decode(&object).map_err(|error| self.damaged(key, error.to_string()))?;
        Ok(Some((object, Some(manifest))))
    }

    /// Bytes of an object, and how many it has.
    async fn fetch(
        &self,
        key: &Key,
        range: Option<GetRange>,
        deadline: Deadline,
    ) -> Result<Option<(Bytes, u64)>, ReadError> {
        self.get(key, GetOptions { range, ..GetOptions::default() }, deadline).await
    }

    async fn get(&self, key: &Key, options: GetOptions, deadline: Deadline) -> Result<Option<(Bytes, u64)>, ReadError> {
        match self.witness_of(key) {
            Some(witness) => witness.get_own(key, options, deadline).await,
            None => self.get_own(key, options, deadline).await,
        }
    }

    async fn get_own(
        &self,
        key: &Key,
        options: GetOptions,
        deadline: Deadline,
    ) -> Result<Option<(Bytes, u64)>, ReadError> {
        let path = self.path(&key.path());
        let mut backoff = Backoff::until(deadline);
        let (whole, head) = (options.range.is_none(), options.head);
        let bytes = if head { 0 } else { LARGEST_OBJECT };
        loop {
            let (path, options) = (&path, options.clone());
            let answer = self
                .request(deadline, bytes, async move {
                    let answer = self.inner().objects.clone().get_opts(path, options).await?;
                    let size = answer.meta.size;
                    if head || (whole && size > LARGEST_OBJECT) {
                        return Ok((Bytes::new(), size));
                    }
                    Ok((answer.bytes().await?, size))
                })
                .await;
            let failure = match answer {
                Ok((_, size)) if whole && !head && size > LARGEST_OBJECT => {
                    return Err(self.damaged(key, format!("no object of a store has {size} bytes")));
                }
                Ok((bytes, size)) if whole && !head && bytes.len() as u64 != size => {
                    Failure { cause: crate::Cause::Other, message: format!("{} of {size} bytes came", bytes.len()) }
                }
                Ok(answer) => return Ok(Some(answer)),
                Err(RequestError::NotFound(_)) => return Ok(None),
                Err(RequestError::Exists) => {
                    Failure { cause: crate::Cause::Other, message: "it answered a question that was not asked".into() }
                }
                Err(RequestError::Failed(failure)) => failure,
            };
            let hopeless = matches!(failure.cause, crate::Cause::Denied | crate::Cause::Missing);
            if hopeless || !backoff.pause().await {
                return Err(ReadError::Failed { store: self.to_string(), key: key.clone().into(), failure });
            }
        }
    }

    /// One part, checked.
    async fn part(
        &self,
        key: &Key,
        manifest: &Manifest,
        number: u32,
        part: Part,
        deadline: Deadline,
    ) -> Result<Bytes, ReadError> {
        let writer = manifest.writer_name().map_err(|error| self.damaged(key, error.to_string()))?;
        let Some(part_key) = key.part(&writer, number) else {
            return Err(self.damaged(key, "it is split, and no object of its kind ever is".into()));
        };
        let Some((bytes, _)) = self.fetch(&part_key, None, deadline).await? else {
            return Err(self.damaged(key, format!("its part {part_key} is missing")));
        };
        if bytes.len() != part.length as usize || *blake3::hash(&bytes).as_bytes() != part.digest {
            return Err(self.damaged(key, format!("its part {part_key} holds something else")));
        }
        Ok(bytes)
    }

    /// Writes all parts, each checked, and checks the whole.
    async fn copy_parts<W: AsyncWrite + Unpin>(
        &self,
        key: &Key,
        manifest: &Manifest,
        out: &mut W,
        deadline: Deadline,
    ) -> Result<(), ReadError> {
        let sink = |source| ReadError::Sink { key: key.clone().into(), source };
        let mut whole = blake3::Hasher::new();
        // The next ones are under way while one is written.
        let mut under_way = FuturesOrdered::new();
        let mut waiting = manifest.parts.iter().enumerate();
        loop {
            while under_way.len() < self.inner().sizes.in_flight
                && let Some((number, part)) = waiting.next()
            {
                under_way.push_back(self.part(key, manifest, number as u32, *part, deadline));
            }
            let Some(part) = under_way.try_next().await? else { break };
            whole.update(&part);
            out.write_all(&part).await.map_err(sink)?;
        }
        out.flush().await.map_err(sink)?;
        if *whole.finalize().as_bytes() == manifest.digest {
            return Ok(());
        }
        Err(self.damaged(key, "its parts are what they should be, and their sum is not".into()))
    }

    pub(crate) fn damaged(&self, key: &Key, what: String) -> ReadError {
        ReadError::Damaged { store: self.to_string(), key: key.clone().into(), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_stay_within_the_content() {
        for (span, total, range) in [
            (Span::Range(2..5), 10, 2..5),
            (Span::Range(2..50), 10, 2..10),
            (Span::Range(20..50), 10, 10..10),
            (Span::Tail(3), 10, 7..10),
            (Span::Tail(30), 10, 0..10),
            (Span::Tail(0), 10, 10..10),
        ] {
            assert_eq!(span.within(total), range, "{span:?}");
        }
        #[allow(clippy::reversed_empty_ranges, reason = "what a careless caller may ask for")]
        let backwards = Span::Range(5..2);
        assert_eq!(backwards.within(10), 5..5);
    }
}
