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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, mpsc};
use tokio::time::Instant;
use vivarium_api::v1alpha1::volume::{DigestStatus, JournalStatus, LagStatus};

use super::JournalError;
use super::begin::{Opening, Origin};
use super::change::{Doubt, copy};
use super::commit::{Committed, Journal};
use super::local::pending_bytes;
use super::log::Log;
use super::prove::fingerprint;
use super::revert::Reverted;
use crate::directory::{DirectoryError, Journaled, VolumeDirectory, VolumeName};
use crate::ids::VolumeId;
use crate::pool::Pool;
use crate::template::TemplateCache;
use crate::volume::Volumes;

/// From the end of a round to the next.
const PACE: Duration = Duration::from_secs(1);
/// Volumes of one store that are committed at the same time.
const PARALLEL: usize = 32;
/// How often the object of a volume is told of its journal while nothing is wrong: what is told is a hint, and a thousand
/// volumes a second would be too much for any API server.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// A journal that is behind by less is not told to be: that is a commit that is under way.
const LAGS_FROM: Duration = Duration::from_secs(5);

/// From the opening of a journal to the first digest of its tree, at most.
const FINGERPRINT_AFTER: Duration = Duration::from_mins(2);

/// Longest pause after failures in a row; the first is [`PACE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A former state that was brought back, or why not: one word of the runbook, and a sentence.
pub type Outcome = Result<Reverted, (&'static str, String)>;

/// How a journal was opened.
#[derive(Clone, Debug)]
pub struct Opened {
    /// How the volume came here.
    pub origin: Origin,
    /// What became of a former state that was to be brought back, if one was.
    pub reverted: Option<Outcome>,
}

/// A journal that a former process opened.
const HERE: Opened = Opened { origin: Origin::Here, reverted: None };

/// A journal that is open.
struct Held {
    name: VolumeName,
    /// Its store: one that hangs holds up those of no other.
    store: String,
    /// None once it was closed. Whoever has waited for the lock finds that out, so that nothing is committed beside the
    /// journal of the next epoch, which works with the same files.
    journal: Arc<AsyncMutex<Option<Journal>>>,
    opened: Opened,
    told: Mutex<Told>,
    pause: Mutex<Pause>,
    /// What was written before is in the store.
    safe: Mutex<Instant>,
    /// A round was begun and has not ended.
    at_work: AtomicBool,
    /// When it is looked whether the digest of the tree is to be told.
    fingerprint: Mutex<Instant>,
}

/// An incarnation that has lost its volume to a later one: it must not run any more (ownership protocol, rule 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superseded {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that is over.
    pub epoch: u64,
}

/// When a journal that failed is tried again.
#[derive(Clone, Copy, Default)]
struct Pause {
    failures: u32,
    until: Option<Instant>,
}

impl Pause {
    /// After one more attempt.
    fn after(self, failed: bool, now: Instant) -> Self {
        if !failed {
            return Self::default();
        }
        let pause = PACE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        Self { failures: self.failures.saturating_add(1), until: Some(now + pause) }
    }

    fn is_over(self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }
}

/// What the volume's object was told last.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    sequence: u64,
    trouble: Option<&'static str>,
    /// Seconds that the journal was said to be behind.
    lag: u64,
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
        let (id, store) = (journal.volume().clone(), journal.store().to_owned());
        let (told, pause, at_work) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let (journal, safe) = (Arc::new(AsyncMutex::new(Some(journal))), Mutex::new(Instant::now()));
        let fingerprint = Mutex::new(Instant::now() + self.prove_every.min(FINGERPRINT_AFTER));
        let held = Held { name: name.clone(), store, journal, opened, told, pause, safe, at_work, fingerprint };
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

/// A round of one journal, until it is dropped.
struct Work(Arc<Held>);

impl Work {
    fn begin(held: Arc<Held>) -> Self {
        held.at_work.store(true, Ordering::Release);
        Self(held)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.at_work.store(false, Ordering::Release);
    }
}

impl Held {
    /// Whether a round may begin.
    fn is_due(&self, now: Instant) -> bool {
        !self.at_work.load(Ordering::Acquire) && self.pause.lock().unwrap_or_else(PoisonError::into_inner).is_over(now)
    }

    fn after(&self, failed: bool, now: Instant) {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        *pause = pause.after(failed, now);
    }

    /// As [`is_news`].
    fn is_news(&self, journaled: &Journaled) -> bool {
        is_news(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner), journaled)
    }

    /// How far the journal is behind; `synced`: what was written before was just committed.
    fn lag(&self, id: &VolumeId, volumes: &Volumes, synced: Option<Instant>) -> Option<LagStatus> {
        let mut safe = self.safe.lock().unwrap_or_else(PoisonError::into_inner);
        *safe = synced.unwrap_or(*safe);
        let lag = safe.elapsed();
        (synced.is_none() && lag >= LAGS_FROM)
            .then(|| LagStatus { seconds: lag.as_secs(), bytes: pending_bytes(volumes, id) })
    }
}

/// How long it is too early to tell the digest of a tree again, if it is.
fn rest(told: Option<&DigestStatus>, now: Timestamp, every: Duration) -> Option<Duration> {
    let age = now.duration_since(told?.time.0).unsigned_abs();
    every.checked_sub(age).filter(|rest| !rest.is_zero())
}

/// Whether the object should be told: of trouble that comes, changes or ends at once, of progress now and then, and of a lag
/// whenever it has doubled.
fn is_news(told: &mut Told, journaled: &Journaled) -> bool {
    let trouble = journaled.trouble.as_ref().map(|(reason, _)| *reason);
    let sequence = journaled.journal.as_ref().map_or(told.sequence, |journal| journal.sequence);
    let lag = journaled.lag.map_or(0, |lag| lag.seconds);
    let due = told.at.is_none_or(|at| at.elapsed() >= TELL_EVERY) && sequence != told.sequence;
    let doubled = lag > 0 && lag >= told.lag.saturating_mul(2);
    if trouble == told.trouble && !due && !doubled {
        return false;
    }
    *told = Told { at: Some(Instant::now()), sequence, trouble, lag };
    true
}

/// A transaction that takes long.
fn behind(lag: LagStatus) -> (&'static str, String) {
    let LagStatus { seconds, bytes } = lag;
    let message = format!(
        "what was written in the last {seconds} s is not in the store yet: a transaction of {bytes} bytes so far is under way"
    );
    ("Behind", message)
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
    fn pauses_grow_up_to_half_a_minute_and_end_with_success() {
        let now = Instant::now();
        let mut pause = Pause::default();
        let mut seconds = Vec::new();
        for _ in 0..7 {
            pause = pause.after(true, now);
            seconds.push(pause.until.unwrap().duration_since(now).as_secs());
        }
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30]);
        assert!(!pause.is_over(now) && pause.is_over(now + LONGEST_PAUSE));
        assert!(pause.after(false, now).is_over(now));
    }

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

    #[test]
    fn an_idle_journal_is_told_of_once_and_a_lag_when_it_has_doubled() {
        let told = Mutex::new(Told::default());
        let news = |sequence, seconds, trouble: Option<&'static str>| {
            let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH);
            is_news(
                &mut told.lock().unwrap(),
                &Journaled {
                    journal: trouble.is_none().then_some(JournalStatus { sequence, epoch: 1, time }),
                    released: None,
                    lag: (seconds > 0).then_some(LagStatus { seconds, bytes: 1 }),
                    trouble: trouble.map(|trouble| (trouble, String::new())),
                },
            )
        };
        assert!(news(1, 0, None));
        assert!(!news(1, 0, None) && !news(2, 0, None), "progress is told now and then");
        let lags: Vec<u64> = (0..200).filter(|seconds| news(2, *seconds, Some("StoreUnreachable"))).collect();
        assert_eq!(lags, [0, 1, 2, 4, 8, 16, 32, 64, 128]);
        assert!(news(3, 0, None) && !news(3, 0, None), "its end is told");
    }
}
