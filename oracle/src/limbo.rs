//! Requests that nobody waits for any more, and that are carried out later all the same: after the writer has tried again,
//! after it has died, after somebody else has its volume. A network does that to writes.
//!
//! What is under way lies in a directory, so it outlives the process that asked for it, and arrives while another one
//! works. Only creations are held up so: a late deletion deletes what nobody needs, and a late answer to a reader is none.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::rng::Rng;

/// A back end before which requests are held up.
#[derive(Debug)]
pub struct Limbo {
    inner: Arc<dyn ObjectStore>,
    under_way: PathBuf,
    rng: Mutex<Rng>,
    one_in: u64,
}

impl Limbo {
    /// Holds up one creation of `one_in` (0: none) and keeps it in the directory `under_way`, which is there.
    pub fn new(inner: Arc<dyn ObjectStore>, under_way: PathBuf, rng: Rng, one_in: u64) -> Self {
        Self { inner, under_way, rng: Mutex::new(rng), one_in }
    }

    fn random(&self, end: u64) -> u64 {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner).below(end)
    }

    fn hold_up(&self, location: &Path, payload: &PutPayload) -> io::Result<()> {
        let name = format!("{:016x}", self.random(u64::MAX));
        let mut request = format!("{location}\n").into_bytes();
        payload.iter().for_each(|bytes| request.extend_from_slice(bytes));
        // Whole or not at all: whoever asked may die at this moment.
        let partial = self.under_way.join(format!(".{name}"));
        fs::write(&partial, request)?;
        fs::rename(partial, self.under_way.join(name))
    }

    /// Before a request something else may arrive.
    async fn arrive(&self) -> Result<()> {
        if self.one_in == 0 || self.random(4) > 0 {
            return Ok(());
        }
        let Some((path, request)) = self.oldest().map_err(failed)? else { return Ok(()) };
        let Some(end) = request.iter().position(|byte| *byte == b'\n') else { return Ok(()) };
        let location = Path::from(String::from_utf8_lossy(&request[..end]).into_owned());
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        // Nobody is there to be told what became of it.
        let _ = self.inner.put_opts(&location, PutPayload::from(request[end + 1..].to_vec()), options).await;
        fs::remove_file(path).or_else(ignore_missing).map_err(failed)
    }

    fn oldest(&self) -> io::Result<Option<(PathBuf, Vec<u8>)>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.under_way)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")) {
                paths.push(path);
            }
        }
        paths.sort();
        let Some(path) = paths.into_iter().next() else { return Ok(None) };
        match fs::read(&path) {
            Ok(request) => Ok(Some((path, request))),
            Err(error) => ignore_missing(error).map(|()| None),
        }
    }
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn failed(source: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "limbo", source: source.into() }
}

impl fmt::Display for Limbo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Limbo({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Limbo {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.arrive().await?;
        if self.one_in > 0 && self.random(self.one_in) == 0 {
            self.hold_up(location, &payload).map_err(failed)?;
            return Err(failed(io::Error::other("no answer")));
        }
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.arrive().await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn what_was_given_up_arrives_later_and_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let limbo = |one_in| Limbo::new(inner.clone(), directory.path().to_owned(), Rng::new(1, 1), one_in);
        let (a, b) = (Path::from("v/a"), Path::from("v/b"));
        for path in [&a, &b] {
            let answer = limbo(1).put_opts(path, "late\nwrite".into(), PutMode::Create.into()).await;
            assert!(answer.is_err() && inner.get(path).await.is_err(), "{answer:?}");
        }
        inner.put(&a, "another".into()).await.unwrap();
        // Another process, which asks for something else.
        let other = limbo(u64::MAX);
        for _ in 0..200 {
            let _ = other.get(&Path::from("v/c")).await;
        }
        let content = async |path| inner.get(path).await.unwrap().bytes().await.unwrap();
        assert_eq!((content(&a).await, content(&b).await), ("another".into(), "late\nwrite".into()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
