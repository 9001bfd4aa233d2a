//! All journals of a node: a commit of whatever has changed about once a second, and on demand.
//!
//! One `syncfs` of the pool comes before each round, because the kernel moves a subvolume's generation only when a
//! transaction of the file system ends. Volumes are committed side by side, each alone in its own directory, so that their
//! snapshots share a transaction. A journal that fails or takes long does not hinder the others: each round leaves those
//! out that are still at work, and one that fails is tried again after a pause that grows, because what a tenant does can
//! be the reason.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::time::Instant;
use vivarium_api::v1alpha1::volume::{JournalStatus, LagStatus};

use super::JournalError;
use super::begin::{Opening, Origin};
use super::commit::{Committed, Journal};
use super::local::pending_bytes;
use super::revert::Reverted;
use crate::directory::{Journaled, VolumeDirectory, VolumeName};
use crate::ids::VolumeId;
use crate::pool::Pool;
use crate::template::TemplateCache;
use crate::volume::Volumes;
use vivarium_store::Store;

/// From the end of a round to the next.
const PACE: Duration = Duration::from_secs(1);
/// Volumes that are committed at the same time.
const PARALLEL: usize = 32;
/// How often the object of a volume is told of its journal while nothing is wrong: what is told is a hint, and a thousand
/// volumes a second would be too much for any API server.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// A journal that is behind by less is not told to be: that is a commit that is under way.
const LAGS_FROM: Duration = Duration::from_secs(5);

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

/// A journal that is open.
struct Held {
    name: VolumeName,
    journal: AsyncMutex<Journal>,
    reverted: Option<Outcome>,
    told: Mutex<Told>,
    pause: Mutex<Pause>,
    /// What was written before is in the store.
    safe: Mutex<Instant>,
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
}

impl Keeper {
    /// None is open yet.
    #[must_use]
    pub fn new(volumes: Volumes, templates: Arc<TemplateCache>, directory: Arc<dyn VolumeDirectory>) -> Self {
        Self { pool: volumes.pool().clone(), volumes, templates, directory, held: Mutex::default() }
    }

    /// Opens an epoch of a volume, brings a former state of it back if the opening says so, and keeps its journal from then
    /// on. That a state cannot be brought back is no error: the volume stays as it is.
    ///
    /// # Errors
    /// As [`Journal::begin`].
    pub async fn open(
        &self,
        name: &VolumeName,
        store: Arc<Store>,
        opening: &Opening,
        still_ours: impl AsyncFnOnce() -> bool,
    ) -> Result<Opened, JournalError> {
        // A repeated call must not work beside the journal that is open.
        if let Some(held) = self.get(&opening.id) {
            if held.journal.lock().await.epoch() == opening.epoch {
                return Ok(Opened { origin: Origin::Here, reverted: held.reverted.clone() });
            }
            self.forget(&opening.id);
        }
        let (mut journal, origin) = Journal::begin(&self.volumes, &self.templates, store, opening, still_ours).await?;
        let mut reverted = None;
        if let Some(sequence) = opening.revert {
            reverted = match journal.revert(&self.templates, sequence, opening.size).await {
                Ok(reverted) => Some(Ok(reverted)),
                Err(error) if error.is_final() => Some(Err((error.reason(), error.to_string()))),
                Err(error) => return Err(error),
            };
        }
        self.keep(name, journal, reverted.clone());
        Ok(Opened { origin, reverted })
    }

    /// Goes on with an epoch that a former process opened.
    ///
    /// # Errors
    /// The volume is not here, or a layer of it is not.
    pub fn resume(&self, name: &VolumeName, store: Arc<Store>, opening: &Opening) -> Result<(), JournalError> {
        if self.get(&opening.id).is_none() {
            self.keep(name, Journal::resume(&self.volumes, &self.templates, store, opening)?, None);
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
        let mut journal = held.journal.lock().await;
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
        drop(journal);
        self.forget(id);
        Ok(())
    }

    /// Commits now and then, for ever.
    pub async fn run(self: Arc<Self>) {
        let permits = Arc::new(Semaphore::new(PARALLEL));
        loop {
            tokio::time::sleep(PACE).await;
            let all: Vec<(VolumeId, Arc<Held>)> = {
                let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                held.iter().map(|(id, held)| (id.clone(), held.clone())).collect()
            };
            let Some((first, _)) = all.first() else { continue };
            let begun = Instant::now();
            if let Err(error) = self.sync(first).await {
                tracing::error!(%error, "nothing can be committed");
                continue;
            }
            for (id, held) in all {
                let (this, permits) = (self.clone(), permits.clone());
                tokio::spawn(async move {
                    // Never closed.
                    let Ok(_permit) = permits.acquire_owned().await else { return };
                    this.round(&id, &held, begun).await;
                });
            }
        }
    }

    /// Commits what was written before `begun`.
    async fn round(&self, id: &VolumeId, held: &Held, begun: Instant) {
        let pause = *held.pause.lock().unwrap_or_else(PoisonError::into_inner);
        if !pause.is_over(Instant::now()) {
            return;
        }
        // One that is being opened or released, or still at work, is in good hands.
        let committed = match held.journal.try_lock() {
            Ok(mut journal) => Some(journal.commit().await),
            Err(_) => None,
        };
        let lag = held.lag(id, &self.volumes, matches!(committed, Some(Ok(_))).then_some(begun));
        if let Some(committed) = &committed {
            let pause = pause.after(committed.is_err(), Instant::now());
            *held.pause.lock().unwrap_or_else(PoisonError::into_inner) = pause;
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

    async fn tell(&self, name: &VolumeName, id: &VolumeId, journaled: Journaled) -> Result<(), JournalError> {
        let told = self.directory.journaled(name, id, journaled).await;
        told.map_err(|error| JournalError::CutOff { volume: id.clone(), message: error.to_string() })
    }

    async fn sync(&self, id: &VolumeId) -> Result<(), JournalError> {
        let pool = self.pool.clone();
        super::blocking(id, move || Ok(pool.sync().map_err(crate::volume::VolumeError::from)?)).await
    }

    fn keep(&self, name: &VolumeName, journal: Journal, reverted: Option<Outcome>) {
        let id = journal.volume().clone();
        let (told, pause) = (Mutex::default(), Mutex::default());
        let safe = Mutex::new(Instant::now());
        let held = Held { name: name.clone(), journal: AsyncMutex::new(journal), reverted, told, pause, safe };
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(held));
    }

    fn get(&self, id: &VolumeId) -> Option<Arc<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Keeps a journal no more, without a last commit.
    pub fn forget(&self, id: &VolumeId) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Held {
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
