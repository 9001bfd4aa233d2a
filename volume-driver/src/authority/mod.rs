//! The authority of this node over the volumes that it holds (ownership protocol, rules 1 to 6): until when its
//! environments may run, and what happens when that is over.
//!
//! ```text
//!   Lease (kube::lease) ---renewed, fenced--->+             +--> leases/<session>.<store>.json --> shims
//!                                             | Promises ---+
//!   stores ([`witness`]) ---not fenced------->+             +--> may an environment be started?
//!                                             |
//!                                             +-- over --> kill everything, end the session, end the process
//! ```
//!
//! The rules are in `vivarium_ownership::node`. Here are clocks, files and requests.
//!
//! A session that is over ends the process: [`kill::end_session`] first, then its file is removed, and the next process
//! begins a new one, as after a crash at any point of this.

pub mod kill;
pub mod published;
pub mod witness;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use vivarium_api::node::lease::file_name;
use vivarium_ownership::node::{Authority, Lease};
use vivarium_ownership::{Instant, Timing};
use vivarium_store::Store;

use published::Leases;

/// `CLOCK_BOOTTIME`.
#[must_use]
pub fn now() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    Instant(now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs())
}

/// What this node has promised its environments, and the session that it promised it under.
pub struct Promises {
    authority: Mutex<Authority>,
    leases: Leases,
    session: String,
    over: Notify,
    announced: Notify,
}

impl Promises {
    /// Goes on with what a former process of the session promised.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(timing: Timing, session: &str, leases: Leases) -> io::Result<Self> {
        let promised: BTreeMap<String, Instant> = leases.promised()?;
        let authority = Mutex::new(Authority::new(timing, session, promised, now()));
        Ok(Self { authority, leases, session: session.into(), over: Notify::new(), announced: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Authority> {
        self.authority.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &str {
        &self.session
    }

    /// Name of the lease that binds environments whose journals are in a store; `None` where no other node reaches it.
    #[must_use]
    pub fn lease_of(&self, store: &Store) -> Option<String> {
        store.is_shared().then(|| file_name(&self.session, store.name()))
    }

    /// A store is in use from now on.
    pub fn uses(&self, store: &str) {
        self.change(|authority| authority.uses(store));
    }

    /// From now on whoever is bound by what is promised for `store` is bound by what `other` grants as well.
    pub fn also(&self, store: &str, other: &str) {
        self.change(|authority| authority.also(store, other));
    }

    /// Whether nothing is promised for `store` any more beyond what `other` grants.
    #[must_use]
    pub fn is_bound(&self, store: &str, other: &str) -> bool {
        self.lock().is_bound(store, other)
    }

    /// Whether an environment may be started on a volume whose journal is in a store.
    #[must_use]
    pub fn may_start(&self, store: &str) -> bool {
        self.lock().may_start(store, now())
    }

    /// The stores in use.
    #[must_use]
    pub fn stores(&self) -> Vec<String> {
        self.lock().promised().keys().cloned().collect()
    }

    /// What the next renewal of the `Lease` writes.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.lock().lease(now())
    }

    /// A renewal that was sent at an instant was acknowledged.
    pub fn renewed(&self, sent: Instant, lease: &Lease) {
        self.change(|authority| authority.renewed(sent, lease));
    }

    /// The `Lease` was seen.
    pub fn saw(&self, lease: &Lease) {
        self.change(|authority| authority.saw(lease));
    }

    /// A store that was asked at an instant has no fence of the session.
    pub fn not_fenced(&self, store: &str, sent: Instant) {
        self.change(|authority| authority.not_fenced(store, sent));
    }

    /// A store has the fence of the session.
    pub fn fenced(&self) {
        self.change(Authority::fenced);
    }

    /// Whether a beat is due.
    #[must_use]
    pub fn beat_is_due(&self) -> bool {
        self.lock().beat_is_due(now())
    }

    /// Announces a restart of this process, and returns once whoever watches the node knows of it.
    pub async fn announce_restart(&self) {
        self.lock().announce_restart();
        while !self.lock().is_announced() {
            self.announced.notified().await;
        }
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.lock().is_over()
    }

    /// Returns once the session is over.
    pub async fn over(&self) {
        while !self.lock().is_over() {
            self.over.notified().await;
        }
    }

    /// Changes what is promised and publishes it. All under one lock: what is published never goes back.
    fn change(&self, change: impl FnOnce(&mut Authority)) {
        let mut authority = self.lock();
        let before = authority.promised().clone();
        change(&mut authority);
        for (store, until) in authority.promised() {
            if before.get(store) == Some(until) || authority.is_over() {
                continue;
            }
            if let Err(error) = self.leases.publish(store, until.0) {
                // The former promise is a shorter one: nothing runs that must not.
                tracing::error!(%error, store, "environments may have to stand still: their lease cannot be written");
            }
        }
        if authority.is_over() {
            self.over.notify_one();
        }
        if authority.is_announced() {
            self.announced.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn promises(dir: &std::path::Path) -> Promises {
        let leases = Leases::open(dir, "s", "b").unwrap();
        Promises::open(Timing::default(), "s", leases).unwrap()
    }

    #[tokio::test]
    async fn what_is_promised_is_published_and_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = promises(dir.path());
        first.uses("store");
        assert!(!first.may_start("store"));
        let sent = now();
        first.renewed(sent, &first.lease());
        assert!(first.may_start("store") && !first.may_start("other"));
        let expected = BTreeMap::from([("store".to_owned(), sent.after(Duration::from_secs(4)))]);
        let second = promises(dir.path());
        assert_eq!(*second.lock().promised(), expected);
        assert_eq!(second.stores(), ["store"]);
    }

    #[tokio::test]
    async fn the_end_is_told_and_nothing_is_promised_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let promises = promises(dir.path());
        promises.uses("store");
        promises.fenced();
        tokio::time::timeout(Duration::from_secs(5), promises.over()).await.unwrap();
        promises.renewed(now(), &promises.lease());
        assert!(!promises.may_start("store"));
        assert!(promises.leases.promised().unwrap().values().all(|until| until.0 == 0));
    }

    #[tokio::test]
    async fn a_restart_is_announced_once_the_lease_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let promises = promises(dir.path());
        promises.uses("store");
        let early = tokio::time::timeout(Duration::from_millis(50), promises.announce_restart()).await;
        assert!(early.is_err(), "nobody has acknowledged it");
        promises.renewed(now(), &promises.lease());
        tokio::time::timeout(Duration::from_secs(5), promises.announce_restart()).await.unwrap();
    }
}
