//! All journals of a node: a commit of whatever has changed about once a second, and on demand.
//!
//! One `syncfs` of the pool comes before each round, because the kernel moves a subvolume's generation only when a
//! transaction of the file system ends. Volumes are committed side by side, each alone in its own directory, so that their
//! snapshots share a transaction. A journal that fails or takes long does not hinder the others: each round leaves those
//! out that are still at work, one that fails is tried again after a pause that grows, because what a tenant does can
//! be the reason, and the journals of one store do not wait for those of another.
//!
//! Whoever finds that a later incarnation has the volume commits nothing more, and says so ([`Superseded`]): this
//! incarnation has to end.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc};
use tokio::time::Instant;
use vivarium_api::v1alpha1::volume::{DigestStatus, JournalStatus};

use super::JournalError;
use super::begin::Opening;
use super::change::{Doubt, copy};
use super::commit::{Committed, Journal};
use super::held::{HERE, Held, PACE, TELL_EVERY, Work, behind};
pub use super::held::{Opened, Outcome};
use super::log::Log;
use super::prove::fingerprint;
use crate::directory::{DirectoryError, Journaled, VolumeDirectory, VolumeName};
use crate::ids::VolumeId;
use crate::pool::Pool;
use crate::template::TemplateCache;
use crate::volume::Volumes;

/// Volumes of one store that are committed at the same time.
const PARALLEL: usize = 32;
/// From the opening of a journal to the first digest of its tree, at most.
const FINGERPRINT_AFTER: Duration = Duration::from_mins(2);

/// An incarnation that has lost its volume to a later one: it must not run any more (ownership protocol, rule 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superseded {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that is over.
    pub epoch: u64,
}

/// The journals of this node.
pub struct Keeper {
    pool: Arc<Pool>,
    volumes: Volumes,
    templates: Arc<TemplateCache>,
    directory: Arc<dyn VolumeDirectory>,
    held: Mutex<HashMap<VolumeId, Arc<Held>>>,
    superseded: mpsc::UnboundedSender<Superseded>,
    /// How often the digest of a tree is told.
    prove_every: Duration,
    /// One tree at a time is read as a whole.
    reads: Semaphore,
}

impl Keeper {
    /// None is open yet. What comes out of the receiver has to be ended; at most one of each epoch of a volume.
    #[must_use]
    pub fn new(
        volumes: Volumes,
        templates: Arc<TemplateCache>,
        directory: Arc<dyn VolumeDirectory>,
        prove_every: Duration,
    ) -> (Self, mpsc::UnboundedReceiver<Superseded>) {
        let (superseded, ends) = mpsc::unbounded_channel();
        let (pool, held, reads) = (volumes.pool().clone(), Mutex::default(), Semaphore::new(1));
        (Self { pool, volumes, templates, directory, held, superseded, prove_every, reads }, ends)
    }

    /// Opens an epoch of a volume, brings a former state of it back if the opening says so, and keeps its journal from then
    /// on. That a state cannot be brought back is no error: the volume stays as it is.
    ///
    /// # Errors
    /// As [`Journal::begin`].
    pub async fn open(
        &self,
        name: &VolumeName,
        log: Log,
        opening: &Opening,
        still_ours: impl AsyncFnOnce() -> bool,
    ) -> Result<Opened, JournalError> {
        // A repeated call must not work beside the journal that is open.
        if let Some(held) = self.get(&opening.id) {
            let mut journal = held.journal.lock().await;
            if journal.as_ref().is_some_and(|journal| journal.epoch() == opening.epoch) {
                return Ok(held.opened.clone());
            }
            // A round that waits for the lock finds nothing.
            *journal = None;
            self.forget(&opening.id);
        }
        let (mut journal, origin) = Journal::begin(&self.volumes, &self.templates, log, opening, still_ours).await?;
        let mut reverted = None;
        if let Some(wanted) = &opening.revert {
            reverted = match journal.revert(&self.templates, wanted, opening.size).await {
                Ok(reverted) => Some(Ok(reverted)),
                Err(error) if error.is_final() => Some(Err((error.reason(), error.to_string()))),
                Err(error) => return Err(error),
            };
        }
        let opened = Opened { origin, reverted };
        self.keep(name, journal, opened.clone());
        Ok(opened)
    }

    /// Goes on with an epoch that a former process opened.
    ///
    /// # Errors
    /// The volume is not here, or a layer of it is not.
    pub fn resume(&self, name: &VolumeName, log: Log, opening: &Opening) -> Result<(), JournalError> {
        if self.get(&opening.id).is_none() {
            self.keep(name, Journal::resume(&self.volumes, &self.templates, log, opening)?, HERE);
        }
        Ok(())
    }

    /// Whether the journal of a volume is open.
    #[must_use]
    pub fn has(&self, id: &VolumeId) -> bool {
        self.get(id).is_some()
    }

    /// Commits what was written last and closes the journal: nothing writes to the volume any more. After an error the
    /// journal stays open, and this can be called again.
    ///
    /// # Errors
    /// As [`Journal::commit`]; or the cluster cannot be told.
    pub async fn release(&self, id: &VolumeId) -> Result<(), JournalError> {
        let Some(held) = self.get(id) else { return Ok(()) };
        self.sync(id).await?;
        let mut open = held.journal.lock().await;
        let Some(journal) = open.as_mut() else { return Ok(()) };
        let committed = journal.commit().await;
        let released = match &committed {
            Ok(_) => Some(journal.epoch()),
            // Somebody else has it: there is nothing that could still be kept.
            Err(JournalError::Superseded { .. }) => None,
            // A tenant's doing. The data are whole on this node, and the volume stays here.
            Err(error @ JournalError::Capture { .. }) => {
                tracing::warn!(%error, "what was written last is on this node alone");
                None
            }
            Err(_) => return committed.map(drop),
        };
        if let (Ok(committed), Some(epoch)) = (&committed, released) {
            let journaled = Journaled { journal: status(committed), released: Some(epoch), lag: None, trouble: None };
            self.tell(&held.name, id, journaled).await?;
        }
        *open = None;
        self.forget(id);
        Ok(())
    }

    /// Puts into a log that holds nothing what it can begin with ([`super::change`]); the number of the transaction that it then
    /// ends with. `None`: the volume has no tree yet.
    ///
    /// # Errors
    /// The journal is not open under that epoch, the pool fails, or the store.
    pub async fn seed(&self, id: &VolumeId, epoch: u64, next: &Log) -> Result<Option<u64>, JournalError> {
        self.sync(id).await?;
        let Some(seed) = self.hold(id, epoch).await?.journal()?.seed().await? else { return Ok(None) };
        let put = seed.put(next, self.pool.path()).await;
        self.hold(id, epoch).await?.journal()?.drop_seed().await?;
        put.map(Some)
    }

    /// The newest transaction that is in the log of a volume.
    ///
    /// # Errors
    /// The journal is not open under that epoch, or the pool fails.
    pub async fn head(&self, id: &VolumeId, epoch: u64) -> Result<u64, JournalError> {
        self.hold(id, epoch).await?.journal()?.head().await
    }

    /// Copies what was added to the log of a volume after a transaction; the newest one then.
    ///
    /// # Errors
    /// As [`Self::seed`].
    pub async fn copy(&self, id: &VolumeId, epoch: u64, after: u64, next: &Log) -> Result<u64, JournalError> {
        let (log, head) = {
            let mut held = self.hold(id, epoch).await?;
            let journal = held.journal()?;
            (journal.log.clone(), journal.head().await?)
        };
        copy(&log, next, after..head, self.pool.path()).await
    }

    /// Keeps a journal from being committed as long as what is returned is there.
    ///
    /// # Errors
    /// The journal is not open under that epoch.
    pub async fn hold(&self, id: &VolumeId, epoch: u64) -> Result<Holding<'_>, JournalError> {
        let lost = || JournalError::Lost { volume: id.clone() };
        let open = self.get(id).ok_or_else(lost)?.journal.clone().lock_owned().await;
        match open.as_ref() {
            Some(journal) if journal.epoch() == epoch => Ok(Holding { keeper: self, id: id.clone(), open }),
            _ => Err(lost()),
        }
    }

    /// An incarnation has lost its volume.
    pub fn lose(&self, id: &VolumeId, epoch: u64) {
        // Nobody ends anything where nobody listens: a node that is about to end itself.
        self.superseded.send(Superseded { volume: id.clone(), epoch }).ok();
    }

    /// Commits now and then, for ever.
    pub async fn run(self: Arc<Self>) {
        let mut permits: HashMap<String, Arc<Semaphore>> = HashMap::new();
        loop {
            tokio::time::sleep(PACE).await;
            let now = Instant::now();
            let all: Vec<(VolumeId, Arc<Held>)> = {
                let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                held.iter().map(|(id, held)| (id.clone(), held.clone())).collect()
            };
            let (due, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, held)| held.is_due(now));
            for (id, held) in others {
                self.tell_if_behind(id, held);
            }
            let Some((first, _)) = due.first() else { continue };
            let begun = Instant::now();
            if let Err(error) = self.sync(first).await {
                tracing::error!(%error, "nothing can be committed");
                continue;
            }
            for (id, held) in due {
                let permits = permits.entry(held.store.clone()).or_insert_with(|| Arc::new(Semaphore::new(PARALLEL)));
                let (this, permits, work) = (self.clone(), permits.clone(), Work::begin(held));
                tokio::spawn(async move {
                    // Never closed.
                    let Ok(permit) = permits.acquire_owned().await else { return };
                    this.round(&id, &work.0, begun).await;
                    let held = work.0.clone();
                    drop((permit, work));
                    this.fingerprint(&id, &held).await;
                });
            }
        }
    }

    /// Commits what was written before `begun`.
    async fn round(&self, id: &VolumeId, held: &Held, begun: Instant) {
        let committed = match held.journal.try_lock() {
            Ok(mut open) => {
                // Closed: this is the journal of an epoch that is over.
                let Some(journal) = open.as_mut() else { return };
                let committed = journal.commit().await;
                if let Err(JournalError::Superseded { epoch, current, .. }) = committed
                    && current > epoch
                {
                    *open = None;
                    self.forget_this(id, held);
                    tracing::error!(volume = %id, epoch, current, "an incarnation has lost its volume and is ended");
                    self.lose(id, epoch);
                }
                Some(committed)
            }
            // One that is being opened or released is in good hands.
            Err(_) => None,
        };
        let lag = held.lag(id, &self.volumes, matches!(committed, Some(Ok(_))).then_some(begun));
        if let Some(committed) = &committed {
            held.after(committed.is_err(), Instant::now());
        }
        let journaled = match &committed {
            Some(Ok(committed)) => Journaled { journal: status(committed), released: None, lag, trouble: None },
            Some(Err(error)) => {
                tracing::warn!(%error, "a commit is tried again");
                Journaled { journal: None, released: None, lag, trouble: Some((error.reason(), error.to_string())) }
            }
            None => match lag.filter(|lag| lag.seconds >= TELL_EVERY.as_secs()) {
                Some(lag) => Journaled { journal: None, released: None, lag: Some(lag), trouble: Some(behind(lag)) },
                None => return,
            },
        };
        if !held.is_news(&journaled) {
            return;
        }
        if let Err(error) = self.tell(&held.name, id, journaled).await {
            tracing::warn!(%error, "how far the journal is, is told later");
        }
    }

    /// Tells of a journal whose round takes long, and that it is behind. Seldom, since a lag is news only once it has doubled.
    fn tell_if_behind(self: &Arc<Self>, id: VolumeId, held: Arc<Held>) {
        let lag = held.lag(&id, &self.volumes, None).filter(|lag| lag.seconds >= TELL_EVERY.as_secs());
        let Some(lag) = lag.filter(|_| held.at_work.load(Ordering::Acquire)) else { return };
        let journaled = Journaled { journal: None, released: None, lag: Some(lag), trouble: Some(behind(lag)) };
        if !held.is_news(&journaled) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            if let Err(error) = this.tell(&held.name, &id, journaled).await {
                tracing::warn!(%error, "how far the journal is, is told later");
            }
        });
    }

    /// Tells the digest of the newest tree that is in the store, if it is time to. The journal goes on meanwhile.
    async fn fingerprint(&self, id: &VolumeId, held: &Held) {
        let lock = || held.fingerprint.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut next = lock();
            if *next > Instant::now() {
                return;
            }
            *next = Instant::now() + self.prove_every;
        }
        match self.find_fingerprint(id, held).await {
            Ok(None) => {}
            Ok(Some(rest)) => *lock() = Instant::now() + rest,
            Err(error) => {
                tracing::warn!(%error, "the digest of a tree is told later");
                *lock() = Instant::now() + self.prove_every.min(FINGERPRINT_AFTER);
            }
        }
    }

    /// The same; how long it is too early, if it is: somebody else may have told it, or this driver before it was started anew.
    async fn find_fingerprint(&self, id: &VolumeId, held: &Held) -> Result<Option<Duration>, JournalError> {
        let cut_off = |error: DirectoryError| JournalError::CutOff { volume: id.clone(), message: error.to_string() };
        // Never closed.
        let Ok(_alone) = self.reads.acquire().await else { return Ok(None) };
        let object = self.directory.get(&held.name).await.map_err(cut_off)?;
        let object = object.filter(|object| object.metadata.uid.as_deref() == Some(id.as_str()));
        let told = object.and_then(|object| object.status?.digest);
        if let Some(rest) = rest(told.as_ref(), Timestamp::now(), self.prove_every) {
            return Ok(Some(rest));
        }
        let pinned = match held.journal.lock().await.as_mut() {
            Some(journal) => journal.pin().await?,
            None => return Ok(None),
        };
        let is_news = |sequence| told.as_ref().is_none_or(|told| told.sequence != sequence);
        let found = match pinned {
            Some((sequence, root)) if is_news(sequence) => Some(fingerprint(id, sequence, root).await),
            _ => None,
        };
        // If it was closed meanwhile, whoever opens it next takes it away.
        if let Some(journal) = held.journal.lock().await.as_mut() {
            journal.unpin().await?;
        }
        if let Some(found) = found.transpose()? {
            self.directory.fingerprint(&held.name, id, found).await.map_err(cut_off)?;
        }
        Ok(None)
    }

    async fn tell(&self, name: &VolumeName, id: &VolumeId, journaled: Journaled) -> Result<(), JournalError> {
        let told = self.directory.journaled(name, id, journaled).await;
        told.map_err(|error| JournalError::CutOff { volume: id.clone(), message: error.to_string() })
    }

    async fn sync(&self, id: &VolumeId) -> Result<(), JournalError> {
        let pool = self.pool.clone();
        super::blocking(id, move || Ok(pool.sync().map_err(crate::volume::VolumeError::from)?)).await
    }

    fn keep(&self, name: &VolumeName, journal: Journal, opened: Opened) {
        let id = journal.volume().clone();
        let fingerprint = Instant::now() + self.prove_every.min(FINGERPRINT_AFTER);
        let held = Held::new(name.clone(), journal, opened, fingerprint);
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(held));
    }

    fn get(&self, id: &VolumeId) -> Option<Arc<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Keeps a journal no more, which was closed.
    fn forget(&self, id: &VolumeId) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The same, unless another one of the volume is kept by now.
    fn forget_this(&self, id: &VolumeId, closed: &Held) {
        let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(id).is_some_and(|held| std::ptr::eq(&raw const **held, closed)) {
            all.remove(id);
        }
    }
}

/// A journal to which nothing is added, until this is dropped.
pub struct Holding<'a> {
    keeper: &'a Keeper,
    id: VolumeId,
    open: OwnedMutexGuard<Option<Journal>>,
}

impl Holding<'_> {
    fn journal(&mut self) -> Result<&mut Journal, JournalError> {
        self.open.as_mut().ok_or_else(|| JournalError::Lost { volume: self.id.clone() })
    }

    /// As [`Journal::copy_rest`].
    ///
    /// # Errors
    /// The same.
    pub async fn copy_rest(&mut self, after: u64, next: &Log) -> Result<u64, JournalError> {
        self.journal()?.copy_rest(after, next).await
    }

    /// Closes the journal: from now on it is not known which log decides, and nothing is committed.
    ///
    /// # Errors
    /// The pool fails. The journal is closed all the same.
    pub async fn doubt(mut self, doubt: Doubt) -> Result<(), JournalError> {
        let Some(journal) = self.open.take() else { return Err(JournalError::Lost { volume: self.id }) };
        self.keeper.forget(&self.id);
        journal.doubt(doubt).await
    }
}

/// How long it is too early to tell the digest of a tree again, if it is.
fn rest(told: Option<&DigestStatus>, now: Timestamp, every: Duration) -> Option<Duration> {
    let age = now.duration_since(told?.time.0).unsigned_abs();
    every.checked_sub(age).filter(|rest| !rest.is_zero())
}

fn status(committed: &Committed) -> Option<JournalStatus> {
    let Committed { head, .. } = committed;
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
    (head.sequence > 0).then_some(JournalStatus { sequence: head.sequence, epoch: head.epoch, time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_told_again_when_the_time_has_passed_whoever_told_it() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(100));
        let told = DigestStatus { sequence: 1, digest: "d".into(), time };
        let every = Duration::from_secs(60);
        assert_eq!(rest(None, at(100), every), None);
        for (now, expected) in [(100, Some(60)), (159, Some(1)), (160, None), (1000, None)] {
            assert_eq!(rest(Some(&told), at(now), every), expected.map(Duration::from_secs), "{now}");
        }
    }
}
