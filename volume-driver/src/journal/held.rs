//! One open journal: whose turn it is, when it is tried again after a failure, and what the volume's object was told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use vivarium_api::v1alpha1::volume::LagStatus;

use super::begin::Origin;
use super::commit::Journal;
use super::local::pending_bytes;
use super::revert::Reverted;
use crate::directory::{Journaled, VolumeName};
use crate::ids::VolumeId;
use crate::volume::Volumes;

/// From the end of a round to the next.
pub(super) const PACE: Duration = Duration::from_secs(1);

/// How often the object of a volume is told of its journal while nothing is wrong: what is told is a hint, and a thousand
/// volumes a second would be too much for any API server.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(30);

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

/// A journal that a former process opened.
pub(super) const HERE: Opened = Opened { origin: Origin::Here, reverted: None };

/// A journal that is open.
pub(super) struct Held {
    pub(super) name: VolumeName,
    /// Its store: one that hangs holds up those of no other.
    pub(super) store: String,
    /// None once it was closed. Whoever has waited for the lock finds that out, so that nothing is committed beside the
    /// journal of the next epoch, which works with the same files.
    pub(super) journal: Arc<AsyncMutex<Option<Journal>>>,
    pub(super) opened: Opened,
    told: Mutex<Told>,
    pause: Mutex<Pause>,
    /// What was written before is in the store.
    safe: Mutex<Instant>,
    /// A round was begun and has not ended.
    pub(super) at_work: AtomicBool,
    /// When it is looked whether the digest of the tree is to be told.
    pub(super) fingerprint: Mutex<Instant>,
}

impl Held {
    /// `fingerprint`: when it is first looked whether the digest of the tree is to be told.
    pub(super) fn new(name: VolumeName, journal: Journal, opened: Opened, fingerprint: Instant) -> Self {
        Self {
            name,
            store: journal.store().to_owned(),
            journal: Arc::new(AsyncMutex::new(Some(journal))),
            opened,
            told: Mutex::default(),
            pause: Mutex::default(),
            safe: Mutex::new(Instant::now()),
            at_work: AtomicBool::new(false),
            fingerprint: Mutex::new(fingerprint),
        }
    }

    /// Whether a round may begin.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.at_work.load(Ordering::Acquire) && self.pause.lock().unwrap_or_else(PoisonError::into_inner).is_over(now)
    }

    pub(super) fn after(&self, failed: bool, now: Instant) {
        let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        *pause = pause.after(failed, now);
    }

    /// As [`is_news`].
    pub(super) fn is_news(&self, journaled: &Journaled) -> bool {
        is_news(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner), journaled)
    }

    /// How far the journal is behind; `synced`: what was written before was just committed.
    pub(super) fn lag(&self, id: &VolumeId, volumes: &Volumes, synced: Option<Instant>) -> Option<LagStatus> {
        let mut safe = self.safe.lock().unwrap_or_else(PoisonError::into_inner);
        *safe = synced.unwrap_or(*safe);
        let lag = safe.elapsed();
        (synced.is_none() && lag >= LAGS_FROM)
            .then(|| LagStatus { seconds: lag.as_secs(), bytes: pending_bytes(volumes, id) })
    }
}

/// A round of one journal, until it is dropped.
pub(super) struct Work(pub(super) Arc<Held>);

impl Work {
    pub(super) fn begin(held: Arc<Held>) -> Self {
        held.at_work.store(true, Ordering::Release);
        Self(held)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.at_work.store(false, Ordering::Release);
    }
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
pub(super) fn behind(lag: LagStatus) -> (&'static str, String) {
    let LagStatus { seconds, bytes } = lag;
    let message = format!(
        "what was written in the last {seconds} s is not in the store yet: a transaction of {bytes} bytes so far is under way"
    );
    ("Behind", message)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use vivarium_api::v1alpha1::volume::JournalStatus;

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
            let time = Time(Timestamp::UNIX_EPOCH);
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
