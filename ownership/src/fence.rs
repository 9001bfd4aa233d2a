//! The end of a session (rules 8 and 9): both witnesses are closed, and then every promise is waited out that was made
//! before.
//!
//! A store comes first. During an outage of the store nothing happens then, and the environments of a node that only
//! the API server has lost go on; the other way round the node would lose its last witness by our doing. The first fence
//! ends the session as a whole, so from then on the `Lease` and all other stores are closed at the same time, and one that
//! does not answer holds up only what is in it.
//!
//! Every step can be repeated and done by several at once. One who begins in the middle begins with the first step: it
//! finds the fences there, and waits all the same, because it does not know since when.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Instant, Timing};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the fence of the session in this store; one that is there is as good.
    CreateFence {
        /// The store.
        store: String,
    },
    /// Mark the node's `Lease` as fenced, by compare-and-swap, if it is still of this session.
    CloseLease,
}

/// The end of one session.
#[derive(Clone, Debug)]
pub struct Fencing {
    timing: Timing,
    /// Stores whose volumes are to be taken over; when the fence was known to be there.
    stores: BTreeMap<String, Option<Instant>>,
    /// When the `Lease` was known to be closed, and how long a promise under it was at most.
    lease: Option<(Instant, Duration)>,
    /// The session is known to be over without waiting.
    proven: bool,
    /// The machine is known to be off: nothing has to be waited for once both witnesses are closed.
    off: bool,
}

impl Fencing {
    /// Begins to end a session whose volumes are in these stores.
    #[must_use]
    pub fn new(timing: Timing, stores: impl IntoIterator<Item = String>) -> Self {
        let stores = stores.into_iter().map(|store| (store, None)).collect();
        Self { timing, stores, lease: None, proven: false, off: false }
    }

    /// Volumes in this store are to be taken over too.
    pub fn add_store(&mut self, store: &str) {
        self.stores.entry(store.into()).or_default();
    }

    /// What is to be done for the session to be over in all stores, all at the same time. None: only time has to pass. Where
    /// no store is asked for, the `Lease` alone is closed.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        if self.proven {
            return Vec::new();
        }
        let open = self.stores.iter().filter(|(_, closed)| closed.is_none());
        let mut steps: Vec<Step> = open.map(|(store, _)| Step::CreateFence { store: store.clone() }).collect();
        if self.lease.is_none() && (steps.len() < self.stores.len() || self.stores.is_empty()) {
            steps.push(Step::CloseLease);
        }
        steps
    }

    /// The fence is in the store; `now` is when that was learnt.
    pub fn fence_created(&mut self, store: &str, now: Instant) {
        if let Some(closed) = self.stores.get_mut(store) {
            closed.get_or_insert(now);
        }
    }

    /// The `Lease` is closed; `now` is when that was learnt, `duration` what it said.
    pub fn lease_closed(&mut self, duration: Duration, now: Instant) {
        self.lease.get_or_insert((now, duration));
    }

    /// Everything that ran under the session is known to be dead: its node has begun another boot or, having killed
    /// everything, another session.
    pub fn prove(&mut self) {
        self.proven = true;
    }

    /// Somebody who knows says that the machine is off. The witnesses are closed all the same, so that the session stays
    /// over when the machine is on again; only the wait is left out.
    pub fn is_off(&mut self) {
        self.off = true;
    }

    /// Whether [`Self::prove`] was called.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven
    }

    /// Whether nothing runs any more on volumes in this store.
    #[must_use]
    pub fn is_over(&self, store: &str, now: Instant) -> bool {
        self.proven || self.over_at(store).is_some_and(|over| now >= over)
    }

    /// When the last promise for volumes in a store has passed, counted from the later of the two answers; `None` while a
    /// witness is open.
    fn over_at(&self, store: &str) -> Option<Instant> {
        let fence = (*self.stores.get(store)?)?;
        let (lease, duration) = self.lease?;
        let wait = if self.off { Duration::ZERO } else { self.timing.wait_out(duration) };
        Some(fence.max(lease).after(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tenths: u64) -> Instant {
        Instant(tenths * 100_000_000)
    }

    fn fence(store: &str) -> Step {
        Step::CreateFence { store: store.into() }
    }

    #[test]
    fn the_store_is_closed_first_and_the_longest_promise_waited_out_from_the_later_answer() {
        let mut fencing = Fencing::new(Timing::default(), ["a".to_owned()]);
        assert_eq!(fencing.steps(), [fence("a")]);
        fencing.fence_created("a", at(5));
        assert_eq!(fencing.steps(), [Step::CloseLease]);
        fencing.lease_closed(Duration::from_secs(4), at(10));
        // 4 s, 2 % of them, and half a second.
        let over = at(10).after(Duration::from_millis(4580));
        assert_eq!(fencing.steps(), []);
        assert!(!fencing.is_over("a", Instant(over.0 - 1)) && fencing.is_over("a", over));
        assert!(!fencing.is_over("b", over), "nobody closed that store");
    }

    #[test]
    fn a_fence_that_is_found_again_does_not_start_the_wait_again() {
        let mut fencing = Fencing::new(Timing::default(), ["a".to_owned()]);
        fencing.fence_created("a", at(0));
        fencing.lease_closed(Duration::from_secs(20), at(0));
        fencing.fence_created("a", at(100));
        fencing.lease_closed(Duration::from_secs(4), at(100));
        assert!(!fencing.is_over("a", at(208)) && fencing.is_over("a", at(209)));
        fencing.add_store("b");
        assert_eq!(fencing.steps(), [fence("b")]);
        fencing.fence_created("b", at(210));
        assert!(fencing.is_over("a", at(210)) && !fencing.is_over("b", at(210)), "b's promises are waited out too");
    }

    #[test]
    fn a_store_that_does_not_answer_holds_up_only_what_is_in_it() {
        let mut fencing = Fencing::new(Timing::default(), ["a".to_owned(), "b".to_owned()]);
        assert_eq!(fencing.steps(), [fence("a"), fence("b")]);
        fencing.fence_created("b", at(0));
        assert_eq!(fencing.steps(), [fence("a"), Step::CloseLease]);
        fencing.lease_closed(Duration::from_secs(4), at(10));
        assert!(fencing.is_over("b", at(56)) && !fencing.is_over("a", at(56)));
    }

    #[test]
    fn a_machine_that_is_off_is_fenced_and_not_waited_for() {
        let mut fencing = Fencing::new(Timing::default(), ["a".to_owned()]);
        fencing.is_off();
        assert_eq!(fencing.steps(), [fence("a")]);
        fencing.fence_created("a", at(1));
        assert_eq!(fencing.steps(), [Step::CloseLease]);
        assert!(!fencing.is_over("a", at(1)), "it could renew its lease when it is on again");
        fencing.lease_closed(Duration::from_secs(4), at(2));
        assert!(fencing.is_over("a", at(2)) && fencing.steps().is_empty());
    }

    #[test]
    fn proof_needs_no_wait() {
        let mut fencing = Fencing::new(Timing::default(), ["a".to_owned()]);
        fencing.prove();
        assert_eq!(fencing.steps(), []);
        assert!(fencing.is_over("a", at(0)));
    }
}
