//! Creating an object: at most one of several writers of a key is told that it succeeded, and one that lost the answer
//! finds out that it did.
//!
//! A content that fits is the object. A larger one goes ahead in parts under keys that nobody else writes, and the
//! object is the small list of them: creating one small object is always what commits. No answer but a plain success is
//! believed: stores answer a loser with 412, 409 or 500, and a winner whose answer was lost is told "exists" when it
//! asks again. So after every other answer the object is read back, and its content decides.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use object_store::{PutMode, PutOptions, PutPayload};
use vivarium_fail_point::passed;

use crate::manifest::{self, MAX_PARTS, Manifest, Part};
use crate::retry::Backoff;
use crate::store::RequestError;
use crate::writer;
use crate::{Cause, Content, Deadline, Digest, Failure, Key, Name, ReadError, Store};

/// Where a content comes from.
#[derive(Clone, Debug)]
pub enum Source<'a> {
    /// Memory.
    Bytes(Bytes),
    /// A file that does not change meanwhile.
    File(&'a Path),
}

/// The object is there, with the content that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Created {
    /// This call made it.
    New,
    /// It was there: a former attempt with the same content had succeeded. Contents hold an id of their writer, so it
    /// was this writer.
    Ours,
}

/// The object was not created, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Someone else was first.
    #[error("{key} is there in {store} already, and holds what another writer put there")]
    Conflict {
        /// The store.
        store: String,
        /// The object.
        key: Box<Key>,
    },
    /// Not known: the caller has to try again with the same content, and with no other.
    #[error(
        "it is not known whether {key} was created in {store}: {failure}. It has to be tried again with the same content"
    )]
    Unknown {
        /// The store.
        store: String,
        /// The object.
        key: Box<Key>,
        /// The last answer.
        failure: Failure,
    },
    /// What is there cannot be read.
    #[error("{key} is there already, and cannot be compared: {source}")]
    Unreadable {
        /// The object.
        key: Box<Key>,
        /// Why not.
        source: ReadError,
    },
    /// A mirror does not have what the first store has.
    #[error(
        "{key} in {store} is not what the first store of the set has under this name: it was written by somebody who does not \
         know the set, or is damaged. See which of the two is right, and take the environment to another store"
    )]
    Diverged {
        /// The mirror.
        store: String,
        /// The object.
        key: Box<Key>,
    },
    /// The source cannot be read.
    #[error("what {key} was to hold cannot be read from {}: {source}", path.display())]
    Source {
        /// The object.
        key: Box<Key>,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The source is not what the caller said.
    #[error(
        "what {key} was to hold is not what its digest says: the source changed or was damaged. Nothing was created"
    )]
    Changed {
        /// The object.
        key: Box<Key>,
    },
    /// Nothing to store, or too much.
    #[error("{key} cannot hold {length} bytes: {why}")]
    Length {
        /// The object.
        key: Box<Key>,
        /// Bytes of the source.
        length: u64,
        /// Why not.
        why: &'static str,
    },
}

impl CreateError {
    /// What is there, or was to be brought somewhere, could not be read.
    pub(crate) fn of_read(key: &Key, source: ReadError) -> Self {
        match source {
            ReadError::Failed { store, key, failure } => Self::Unknown { store, key, failure },
            source => Self::Unreadable { key: key.clone().into(), source },
        }
    }
}

/// The bytes to be sent, piece by piece.
#[derive(Clone)]
enum Body {
    Bytes(Bytes),
    File(Arc<File>, PathBuf),
}

impl Body {
    fn open(source: Source<'_>) -> io::Result<(Self, u64)> {
        match source {
            Source::Bytes(bytes) => {
                let length = bytes.len() as u64;
                Ok((Self::Bytes(bytes), length))
            }
            Source::File(path) => {
                let file = File::open(path)?;
                let length = file.metadata()?.len();
                Ok((Self::File(Arc::new(file), path.to_owned()), length))
            }
        }
    }

    async fn piece(&self, at: u64, length: usize) -> io::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.slice(at as usize..at as usize + length)),
            Self::File(file, _) => {
                let file = file.clone();
                let read = move || {
                    let mut piece = vec![0; length];
                    file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
                };
                tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
            }
        }
    }

    fn failed(&self, key: &Key) -> impl Fn(io::Error) -> CreateError + use<> {
        let key = key.clone();
        let path = match self {
            Self::Bytes(_) => PathBuf::from("memory"),
            Self::File(_, path) => path.clone(),
        };
        move |source| CreateError::Source { key: key.clone().into(), path: path.clone(), source }
    }
}

/// The end of an attempt to create one object of the back end.
enum Put {
    New,
    /// Something is there. Whether it is ours is for the caller to see.
    There,
}

impl Store {
    /// Creates an object that is not there yet. `digest` is BLAKE3 of the content. Each content must be unique (hold an
    /// id of its writer): equal contents count as one writer's.
    ///
    /// Repeat it after [`CreateError::Unknown`], also after a restart, with the same content.
    ///
    /// With mirrors it is created in the first store, which decides, and then in one after the other of them.
    ///
    /// # Errors
    /// [`CreateError`]: all but `Unknown` are final.
    pub async fn create(
        &self,
        key: &Key,
        source: Source<'_>,
        digest: Digest,
        deadline: Deadline,
    ) -> Result<Created, CreateError> {
        self.witness_of(key).unwrap_or_else(|| self.as_it_is()).create_whole(key, source, digest, deadline).await
    }

    async fn create_whole(
        &self,
        key: &Key,
        source: Source<'_>,
        digest: Digest,
        deadline: Deadline,
    ) -> Result<Created, CreateError> {
        let path = match &source {
            Source::Bytes(_) => PathBuf::from("memory"),
            Source::File(path) => (*path).to_owned(),
        };
        let (body, length) =
            Body::open(source).map_err(|source| CreateError::Source { key: key.clone().into(), path, source })?;
        if length == 0 {
            return Err(CreateError::Length { key: key.clone().into(), length, why: "an object is never empty" });
        }
        let part = self.inner().sizes.part;
        let content = Content { length, digest };
        if length <= part as u64 {
            let bytes = body.piece(0, length as usize).await.map_err(body.failed(key))?;
            if *blake3::hash(&bytes).as_bytes() != digest {
                return Err(CreateError::Changed { key: key.clone().into() });
            }
            if !manifest::is_manifest(&bytes) {
                let object = bytes.clone();
                return self.commit(key, object, content, deadline).await;
            }
        }
        self.create_split(key, &body, content, deadline).await
    }

    async fn create_split(
        &self,
        key: &Key,
        body: &Body,
        content: Content,
        deadline: Deadline,
    ) -> Result<Created, CreateError> {
        let length = content.length;
        let refused = |why| CreateError::Length { key: key.clone().into(), length, why };
        if length.div_ceil(self.inner().sizes.part as u64) > MAX_PARTS as u64 {
            return Err(refused("that is more than one object can stand for"));
        }
        if key.part(&Name::random(), 0).is_none() {
            return Err(refused("an object of this kind is never large"));
        }
        // A former attempt may have done it: nothing has to be sent then.
        match self.compare(key, content, deadline).await {
            Ok(None) => {}
            Ok(Some(created)) => return Ok(created),
            Err(error) => return Err(error),
        }
        let manifest = self.send_parts(key, body, content, deadline).await?;
        passed("parts-sent");
        let result = self.commit(key, manifest.encode().into(), content, deadline).await;
        if !matches!(result, Ok(Created::New) | Err(CreateError::Unknown { .. })) {
            self.drop_unused_parts(key, &manifest, deadline).await;
        }
        result
    }

    /// Sends all parts under a writer id of their own.
    async fn send_parts(
        &self,
        key: &Key,
        body: &Body,
        content: Content,
        deadline: Deadline,
    ) -> Result<Manifest, CreateError> {
        let part_size = self.inner().sizes.part;
        let mut manifest =
            Manifest { writer: writer::id(key), length: content.length, digest: content.digest, parts: Vec::new() };
        let writer = manifest.writer_name().map_err(|error| CreateError::Unknown {
            store: self.to_string(),
            key: key.clone().into(),
            failure: Failure { cause: Cause::Other, message: error.to_string() },
        })?;
        let mut whole = blake3::Hasher::new();
        let mut under_way = FuturesUnordered::new();
        let mut at = 0;
        let sent = loop {
            if under_way.len() == self.inner().sizes.in_flight || (at == content.length && !under_way.is_empty()) {
                if let Err(error) = under_way.try_next().await {
                    break Err(error);
                }
                continue;
            }
            if at == content.length {
                break Ok(());
            }
            let length = (content.length - at).min(part_size as u64);
            let piece = match body.piece(at, length as usize).await {
                Ok(piece) => piece,
                Err(error) => break Err(body.failed(key)(error)),
            };
            at += length;
            whole.update(&piece);
            let part = Part { length: length as u32, digest: blake3::hash(&piece).into() };
            under_way.push(self.send_part(key, &writer, manifest.parts.len() as u32, piece, part, deadline));
            manifest.parts.push(part);
        };
        drop(under_way);
        let error = match sent {
            Ok(()) if *whole.finalize().as_bytes() == content.digest => return Ok(manifest),
            Ok(()) => CreateError::Changed { key: key.clone().into() },
            // What the error says of a part holds for the whole.
            Err(CreateError::Unknown { store, failure, .. }) => {
                CreateError::Unknown { store, key: key.clone().into(), failure }
            }
            Err(error) => error,
        };
        // Nothing refers to them, and a further attempt writes its own.
        if let Err(error) = self.delete_parts(key, &manifest, deadline).await {
            tracing::debug!(%error, "parts of an object that was not created stay behind");
        }
        Err(error)
    }

    async fn send_part(
        &self,
        key: &Key,
        writer: &Name,
        number: u32,
        piece: Bytes,
        part: Part,
        deadline: Deadline,
    ) -> Result<(), CreateError> {
        let content = Content { length: u64::from(part.length), digest: part.digest };
        match key.part(writer, number) {
            Some(part_key) => {
                self.commit(&part_key, piece, content, deadline).await?;
                passed("part-sent");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Creates one object of the back end, in mirrors too, and finds out whether it holds `content`.
    pub(crate) async fn commit(
        &self,
        key: &Key,
        object: Bytes,
        content: Content,
        deadline: Deadline,
    ) -> Result<Created, CreateError> {
        let mut backoff = Backoff::until(deadline);
        // Why it did not succeed, if it was told; that there was no time for another answer says less.
        let mut told = None;
        loop {
            let answer = self.put(key, object.clone(), deadline).await;
            passed("create-answered");
            let failure = match answer {
                // Only now may it be called there: a power cut must not take it back.
                Ok(Put::New) => match self.settle(key).await {
                    Ok(()) => return self.mirror(key, &object, content, deadline).await.map(|()| Created::New),
                    Err(failure) => failure,
                },
                answer => match self.compare(key, content, deadline).await {
                    Ok(Some(created)) => {
                        passed("found-created");
                        return Ok(created);
                    }
                    // There was no time left to look; why the attempt failed says more.
                    Err(CreateError::Unknown { failure, .. }) if failure.cause == Cause::TimedOut => {
                        answer.err().unwrap_or(failure)
                    }
                    Err(error) => return Err(error),
                    Ok(None) => answer.err().unwrap_or_else(|| Failure {
                        cause: Cause::Other,
                        message: "the store said that the object exists, and did not show it".into(),
                    }),
                },
            };
            // With wrong credentials or no bucket another attempt is no better.
            let hopeless = matches!(failure.cause, Cause::Denied | Cause::Missing);
            if failure.cause != Cause::TimedOut {
                told = Some(failure.clone());
            }
            if hopeless || !backoff.pause().await {
                let failure = told.unwrap_or(failure);
                return Err(CreateError::Unknown { store: self.to_string(), key: key.clone().into(), failure });
            }
        }
    }

    async fn put(&self, key: &Key, object: Bytes, deadline: Deadline) -> Result<Put, Failure> {
        let path = self.path(&key.path());
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let length = object.len() as u64;
        let inner = self.inner();
        let call = inner.objects.put_opts(&path, PutPayload::from_bytes(object), options);
        match self.request(deadline, length, call).await {
            Ok(_) => Ok(Put::New),
            Err(RequestError::Exists) => Ok(Put::There),
            Err(RequestError::NotFound(failure) | RequestError::Failed(failure)) => Err(failure),
        }
    }

    /// Whether the object is there (`None`: it is not) and holds this very content.
    async fn compare(&self, key: &Key, content: Content, deadline: Deadline) -> Result<Option<Created>, CreateError> {
        let conflict = || CreateError::Conflict { store: self.to_string(), key: key.clone().into() };
        let unreadable = |source| CreateError::of_read(key, source);
        let Some((object, manifest)) = self.fetch_object(key, deadline).await.map_err(unreadable)? else {
            return Ok(None);
        };
        let claimed = Content::claimed(&object, manifest.as_ref());
        if claimed != content {
            // Whoever finds that somebody else was first relies on what is there.
            self.mirror_found(key, deadline).await?;
            return Err(conflict());
        }
        // A split object may claim what its parts do not hold.
        match self.read_to(key, &mut tokio::io::sink(), deadline).await.map_err(unreadable)? {
            None => Ok(None),
            Some(found) if found != content => Err(conflict()),
            Some(_) => match self.settle(key).await {
                Ok(()) => self.mirror_found(key, deadline).await.map(|()| Some(Created::Ours)),
                Err(failure) => Err(CreateError::Unknown { store: self.to_string(), key: key.clone().into(), failure }),
            },
        }
    }

    /// Removes the parts of a manifest that was not committed. What remains is garbage that the sweep finds.
    async fn drop_unused_parts(&self, key: &Key, manifest: &Manifest, deadline: Deadline) {
        match self.fetch_object(key, deadline).await {
            // The answer was lost: these are the parts of the object that is there.
            Ok(Some((_, Some(found)))) if found.writer == manifest.writer => return,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "parts of an object that was not created stay behind");
                return;
            }
        }
        if let Err(error) = self.delete_parts(key, manifest, deadline).await {
            tracing::debug!(%error, "parts of an object that was not created stay behind");
        }
    }
}
