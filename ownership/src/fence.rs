//! The end of a session (rules 8 and 9): both witnesses are closed, and then every promise is waited out that was made
//! before.
//!
//! The store comes first. During an outage of the store nothing happens then, and the environments of a node that only
//! the API server has lost go on; the other way round the node would lose its last witness by our doing.
//!
//! Every step can be repeated and done by several at once. One who begins in the middle begins with the first step: it
//! finds the fences there, and waits all the same, because it does not know since when.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Instant, Timing};

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the fence of the session in this store; one that is there is as good.
    CreateFence {
        /// The store.
        store: String,
    },
    /// Mark the node's `Lease` as fenced, by compare-and-swap, if it is still of this session.
    CloseLease,
    /// Nothing before this instant.
    WaitUntil(Instant),
    /// The session is over in every store that was asked for: nothing runs under it, and its volumes may be taken over.
    Done,
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
}

impl Fencing {
    /// Begins to end a session whose volumes are in these stores.
    #[must_use]
    pub fn new(timing: Timing, stores: impl IntoIterator<Item = String>) -> Self {
        let stores = stores.into_iter().map(|store| (store, None)).collect();
        Self { timing, stores, lease: None, proven: false }
    }

    /// Volumes in this store are to be taken over too.
    pub fn add_store(&mut self, store: &str) {
        self.stores.entry(store.into()).or_default();
    }

    /// What is to be done at `now` for the session to be over in all stores.
    #[must_use]
    pub fn next(&self, now: Instant) -> Step {
        if self.proven {
            return Step::Done;
        }
        if let Some((store, _)) = self.stores.iter().find(|(_, closed)| closed.is_none()) {
            return Step::CreateFence { store: store.clone() };
        }
        if self.lease.is_none() {
            return Step::CloseLease;
        }
        let last = self.stores.keys().filter_map(|store| self.over_at(store)).max();
        match last {
            Some(last) if now < last => Step::WaitUntil(last),
            _ => Step::Done,
        }
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
    /// everything, another session; or somebody who knows says that the machine is off.
    pub fn prove(&mut self) {
        self.proven = true;
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
        Some(fence.max(lease).after(self.timing.wait_out(duration)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tenths: u64) -> Instant {
        Instant(tenths * 100_000_000)
    }

    #[test]
    fn the_store_is_closed_first_and_the_longest_promise_waited_out_from_the_later_answer() {
        let mut fencing = Fencing::new(Timing::default(), ["a".to_owned()]);
        assert_eq!(fencing.next(at(0)), Step::CreateFence { store: "a".into() });
        fencing.fence_created("a", at(5));
        assert_eq!(fencing.next(at(5)), Step::CloseLease);
        fencing.lease_closed(Duration::from_secs(4), at(10));
        // 4 s, 2 % of them, and half a second.
        let over = at(10).after(Duration::from_millis(4580));
        assert_eq!(fencing.next(at(11)), Step::WaitUntil(over));
        assert!(!fencing.is_over("a", Instant(over.0 - 1)) && fencing.is_over("a", over));
        assert_eq!(fencing.next(over), Step::Done);
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
        assert_eq!(fencing.next(at(210)), Step::CreateFence { store: "b".into() });
        fencing.fence_created("b", at(210));
        assert!(fencing.is_over("a", at(210)) && !fencing.is_over("b", at(210)), "b's promises are waited out too");
    }

    #[test]
    fn proof_needs_no_wait() {
        let mut fencing = Fencing::new(Timing::default(), ["a".to_owned()]);
        fencing.prove();
        assert_eq!(fencing.next(at(0)), Step::Done);
        assert!(fencing.is_over("a", at(0)));
    }
}
