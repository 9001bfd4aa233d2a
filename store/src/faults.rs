//! A back end that fails on purpose, after a schedule that a seed decides: slow, failing before or after it did what it
//! was asked to, full, hiding objects from lists, or ignoring the condition of a create as some stores do.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// How often what happens, each from 0 (never) to 1 (always).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// A request takes up to [`Faults::LONGEST`] longer, unless [`Faulty::hasty`] says otherwise.
    pub slow: f64,
    /// A request fails and nothing happened.
    pub fails: f64,
    /// A write or deletion happens, and its answer is lost.
    pub answer_lost: f64,
    /// A write or deletion happens, and its answer comes later than anybody waits for it.
    pub answer_late: f64,
    /// A write fails for want of room.
    pub full: f64,
    /// A list lacks an entry.
    pub stale_list: f64,
    /// A loser is told of an internal error instead of a failed condition.
    pub loser_told_500: f64,
    /// The condition of a create is ignored, and the object replaced.
    pub ignores_condition: f64,
    /// A write or deletion fails, and happens when [`Faulty::arrive`] lets it.
    pub held_up: f64,
}

impl Faults {
    /// Longest extra time of a slow request.
    pub const LONGEST: Duration = Duration::from_secs(8);

    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        slow: 0.0,
        fails: 0.0,
        answer_lost: 0.0,
        answer_late: 0.0,
        full: 0.0,
        stale_list: 0.0,
        loser_told_500: 0.0,
        ignores_condition: 0.0,
        held_up: 0.0,
    };
}

/// The back end. Clones share everything.
#[derive(Clone, Debug)]
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    shared: Arc<Mutex<Shared>>,
    longest: Duration,
}

#[derive(Debug)]
struct Shared {
    random: fastrand::Rng,
    faults: Faults,
    held_up: Vec<HeldUp>,
}

/// What nobody waits for any more.
#[derive(Debug)]
enum HeldUp {
    Put(Path, PutPayload, PutOptions),
    Delete(Path),
}

impl Faulty {
    /// Over another back end, with the faults of a seed.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, seed: u64, faults: Faults) -> Self {
        let shared =
            Arc::new(Mutex::new(Shared { random: fastrand::Rng::with_seed(seed), faults, held_up: Vec::new() }));
        Self { inner, shared, longest: Faults::LONGEST }
    }

    /// For clients that are as hasty ([`crate::Store::hasty`]): what is slow is so by at most `longest`.
    #[must_use]
    pub fn hasty(self, longest: Duration) -> Self {
        Self { longest, ..self }
    }

    /// From now on, these faults.
    pub fn set(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Carries out one of the requests that were held up, whichever; false if there is none.
    pub async fn arrive(&self) -> bool {
        let request = {
            let mut shared = self.lock();
            let held_up = shared.held_up.len();
            if held_up == 0 {
                return false;
            }
            let which = shared.random.usize(..held_up);
            shared.held_up.swap_remove(which)
        };
        // Nobody is there to be told what became of it.
        match request {
            HeldUp::Put(path, payload, options) => drop(self.inner.put_opts(&path, payload, options).await),
            HeldUp::Delete(path) => drop(self.inner.delete(&path).await),
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold_up(&self, request: impl FnOnce() -> HeldUp) -> Result<()> {
        if !self.strikes(|faults| faults.held_up) {
            return Ok(());
        }
        self.lock().held_up.push(request());
        Err(failed("there was no answer"))
    }

    fn strikes(&self, which: impl Fn(&Faults) -> f64) -> bool {
        let mut shared = self.lock();
        let chance = which(&shared.faults);
        // Nothing is drawn for what cannot happen, so that a fault that is off does not change the others.
        chance > 0.0 && shared.random.f64() < chance
    }

    /// What comes before every request.
    async fn before(&self) -> Result<()> {
        if self.strikes(|faults| faults.slow) {
            let part = self.lock().random.f64();
            tokio::time::sleep(self.longest.mul_f64(part)).await;
        }
        if self.strikes(|faults| faults.fails) { Err(failed("the request failed")) } else { Ok(()) }
    }

    /// What comes after a request that changed something.
    async fn after<T>(&self, answer: Result<T>) -> Result<T> {
        if self.strikes(|faults| faults.answer_late) {
            tokio::time::sleep(self.longest).await;
        }
        if self.strikes(|faults| faults.answer_lost) { Err(failed("the answer was lost")) } else { answer }
    }
}

fn failed(what: &str) -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: what.into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        self.before().await?;
        if self.strikes(|faults| faults.full) {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(object_store::Error::Generic { store: "faulty", source: full.into() });
        }
        if self.strikes(|faults| faults.ignores_condition) {
            opts.mode = PutMode::Overwrite;
        }
        self.hold_up(|| HeldUp::Put(location.clone(), payload.clone(), opts.clone()))?;
        let answer = self.inner.put_opts(location, payload, opts).await;
        let lost = matches!(answer, Err(object_store::Error::AlreadyExists { .. }));
        if lost && self.strikes(|faults| faults.loser_told_500) {
            return Err(failed("500 Internal Server Error"));
        }
        self.after(answer).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.before().await?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.before().await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        locations
            .then(move |location| {
                let this = this.clone();
                async move {
                    let location = location?;
                    this.before().await?;
                    this.hold_up(|| HeldUp::Delete(location.clone()))?;
                    let one = futures::stream::iter([Ok(location)]).boxed();
                    let answer = this.inner.delete_stream(one).try_next().await;
                    this.after(answer.and_then(|path| path.ok_or_else(|| failed("no answer")))).await
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        self.inner.list(prefix).filter(move |_| std::future::ready(!this.strikes(|faults| faults.stale_list))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.before().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.before().await?;
        self.inner.copy_opts(from, to, options).await
    }
}
