//! The authority of a node driver: until when the environments of its node may run (rules 1 to 6).
//!
//! Two witnesses keep a node alive: its `Lease` in the API server, and the store that a volume's journal is in. Whoever
//! takes a volume over closes both first and then waits until every promise has passed that was made before. So a promise
//! counts from the instant at which the question was *sent* that a witness then answered, and is no longer than what the
//! `Lease` says, which whoever closes it reads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::{Instant, Timing};

/// The part of a node's `Lease` that the protocol is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The session that has authority on the node.
    pub session: String,
    /// How long the node acts after a witness heard from it.
    pub duration: Duration,
    /// Whether somebody ended this session.
    pub fenced: bool,
    /// When the node wrote this, in milliseconds of its clock, as beats are numbered; 0: it does not say.
    pub renewed: u64,
}

/// The authority of one session.
#[derive(Clone, Debug)]
pub struct Authority {
    timing: Timing,
    session: String,
    /// What the `Lease` says as far as it was acknowledged; none before the first renewal.
    acknowledged: Option<Duration>,
    /// A restart of the driver is announced: the `Lease` gets the longer duration.
    restarting: bool,
    /// When the newest renewal that succeeded was sent.
    renewed: Option<Instant>,
    began: Instant,
    /// What its witnesses grant, by store.
    granted: BTreeMap<String, Instant>,
    /// What was promised, by store: what is granted, and no more than for the stores that it is bound by as well.
    promised: BTreeMap<String, Instant>,
    /// Stores, and others that whoever is bound by the first is bound by as well.
    also: BTreeSet<(String, String)>,
    over: bool,
}

impl Authority {
    /// A session that begins, or goes on after a restart of its driver. `promised`: what a former process of the same
    /// session published, by store.
    #[must_use]
    pub fn new(timing: Timing, session: &str, promised: BTreeMap<String, Instant>, now: Instant) -> Self {
        Self {
            timing,
            session: session.into(),
            acknowledged: None,
            restarting: false,
            renewed: None,
            began: now,
            granted: promised.clone(),
            promised,
            also: BTreeSet::new(),
            over: false,
        }
    }

    /// What the next renewal has to write. A longer duration is taken back only once no promise is left that was made
    /// under it: whoever fences reads the shorter one and waits no longer than that (rule 6).
    #[must_use]
    pub fn lease(&self, now: Instant) -> Lease {
        let long = self.promised.values().any(|until| *until > now.after(self.timing.lease));
        let duration = if self.restarting || long { self.timing.extension } else { self.timing.lease };
        Lease { session: self.session.clone(), duration, fenced: false, renewed: now.as_millis() }
    }

    /// A renewal that was sent at `sent` was acknowledged; `lease` is what it wrote.
    pub fn renewed(&mut self, sent: Instant, lease: &Lease) {
        if self.over || lease.session != self.session || lease.fenced {
            return;
        }
        self.acknowledged = Some(lease.duration);
        self.renewed = self.renewed.max(Some(sent));
        let until = sent.after(self.promise(lease.duration));
        for granted in self.granted.values_mut() {
            *granted = until.max(*granted);
        }
        self.promise_all();
    }

    /// Promises what is granted.
    fn promise_all(&mut self) {
        for (store, granted) in &self.granted {
            let others = self.also.iter().filter(|(bound, _)| bound == store);
            let others = others.map(|(_, other)| self.granted.get(other).copied().unwrap_or_default());
            let until = others.min().map_or(*granted, |least| least.min(*granted));
            let promised = self.promised.entry(store.clone()).or_default();
            *promised = until.max(*promised);
        }
    }

    /// From now on, whoever is bound by what is promised for `store` is bound by what `other` grants as well: its journal
    /// has moved there, or is about to. What was promised before stays; whether it is no more than what `other`
    /// grants says [`Self::is_bound`].
    pub fn also(&mut self, store: &str, other: &str) {
        self.uses(other);
        if store != other {
            self.also.insert((store.into(), other.into()));
        }
    }

    /// Whether nothing is promised for `store` any more beyond what `other` grants, now and for as long as it is bound by it.
    #[must_use]
    pub fn is_bound(&self, store: &str, other: &str) -> bool {
        let bound = store == other || self.also.contains(&(store.to_owned(), other.to_owned()));
        let granted = self.granted.get(other).copied().unwrap_or_default();
        bound && self.promised.get(store).is_none_or(|promised| *promised <= granted)
    }

    /// The `Lease` was seen, after a conflict or by a watch. It is the end if it is not this session's any more.
    pub fn saw(&mut self, lease: &Lease) {
        self.over |= lease.session != self.session || lease.fenced;
    }

    /// A store that was asked at `sent` has no fence of this session.
    pub fn not_fenced(&mut self, store: &str, sent: Instant) {
        let Some(acknowledged) = self.acknowledged.filter(|_| !self.over) else { return };
        let until = sent.after(self.promise(acknowledged));
        let granted = self.granted.entry(store.into()).or_default();
        *granted = until.max(*granted);
        self.promise_all();
    }

    /// A store has the fence of this session.
    pub fn fenced(&mut self) {
        self.over = true;
    }

    /// A store is in use from now on: environments whose volumes are in it are bound by what is promised for it.
    pub fn uses(&mut self, store: &str) {
        let until = match (self.renewed, self.acknowledged) {
            (Some(sent), Some(duration)) => sent.after(self.promise(duration)),
            _ => Instant::default(),
        };
        self.granted.entry(store.into()).or_insert(until);
        self.promise_all();
    }

    /// How long a promise is: what was acknowledged, and the longer duration only for a driver that is about to restart.
    fn promise(&self, acknowledged: Duration) -> Duration {
        if self.restarting { acknowledged } else { acknowledged.min(self.timing.lease) }
    }

    /// Until when environments may run whose volumes are in each of the stores. Nothing is taken back.
    #[must_use]
    pub fn promised(&self) -> &BTreeMap<String, Instant> {
        &self.promised
    }

    /// Whether an environment may be started on a volume in that store.
    #[must_use]
    pub fn may_start(&self, store: &str, now: Instant) -> bool {
        !self.over && self.promised.get(store).is_some_and(|until| now < *until)
    }

    /// Whether a beat is due: the API server has not heard of the node for so long that observers may take it for dead.
    #[must_use]
    pub fn beat_is_due(&self, now: Instant) -> bool {
        !self.over && now.since(self.renewed.unwrap_or(self.began)) > self.timing.beat_after
    }

    /// Announces a restart of the driver. It may end once [`Self::is_announced`].
    pub fn announce_restart(&mut self) {
        self.restarting = true;
    }

    /// Whether the announcement was acknowledged, so that what is promised now outlasts the restart.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.restarting && self.acknowledged == Some(self.timing.extension)
    }

    /// Whether the session is over: every environment has to be killed, and nothing may be promised any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn at(tenths: u64) -> Instant {
        Instant(tenths * S / 10)
    }

    fn authority() -> Authority {
        let mut authority = Authority::new(Timing::default(), "s", BTreeMap::new(), at(0));
        authority.uses("a");
        authority.uses("b");
        authority
    }

    fn until(authority: &Authority) -> [u64; 2] {
        ["a", "b"].map(|store| authority.promised()[store].0 * 10 / S)
    }

    #[test]
    fn a_promise_counts_from_the_question_and_never_shrinks() {
        let mut authority = authority();
        assert!(!authority.may_start("a", at(0)), "nobody has heard of the node yet");
        authority.not_fenced("a", at(1));
        assert_eq!(until(&authority), [0, 0], "how long the lease is, is not known yet");
        let lease = authority.lease(at(10));
        authority.renewed(at(10), &lease);
        assert_eq!(until(&authority), [50, 50]);
        authority.not_fenced("a", at(30));
        assert_eq!(until(&authority), [70, 50], "the store of one volume is no witness of another's");
        authority.not_fenced("a", at(20));
        assert_eq!(until(&authority), [70, 50], "an answer that comes late takes nothing back");
        assert!(authority.may_start("a", at(69)) && !authority.may_start("a", at(70)));
    }

    #[test]
    fn what_is_bound_by_two_stores_is_promised_no_more_than_both_grant() {
        let mut authority = authority();
        let lease = authority.lease(at(10));
        authority.renewed(at(10), &lease);
        authority.not_fenced("a", at(30));
        assert!(!authority.is_bound("a", "b"));
        authority.also("a", "b");
        assert_eq!(until(&authority), [70, 50], "nothing is taken back");
        assert!(!authority.is_bound("a", "b"), "and so it has to be waited for");
        authority.not_fenced("a", at(35));
        assert_eq!(until(&authority), [70, 50]);
        authority.not_fenced("b", at(32));
        assert_eq!(until(&authority), [72, 72]);
        assert!(authority.is_bound("a", "b"));
        authority.not_fenced("b", at(40));
        assert_eq!(until(&authority), [75, 80], "the other one is bound by itself");
        assert!(authority.is_bound("a", "b") && authority.is_bound("a", "a") && !authority.is_bound("b", "a"));
        authority.renewed(at(50), &lease);
        assert_eq!(until(&authority), [90, 90], "either witness grants for both");
        authority.also("a", "c");
        assert!(authority.promised().contains_key("c"), "it is in use");
    }

    #[test]
    fn either_witness_ends_the_session_for_ever() {
        let lease = |session: &str, fenced| Lease {
            session: session.into(),
            duration: Duration::from_secs(4),
            fenced,
            renewed: 0,
        };
        let mut by_store = authority();
        by_store.fenced();
        let mut by_lease = authority();
        by_lease.saw(&lease("s", true));
        let mut by_successor = authority();
        by_successor.saw(&lease("t", false));
        for mut authority in [by_store, by_lease, by_successor] {
            assert!(authority.is_over());
            authority.renewed(at(10), &lease("s", false));
            authority.not_fenced("a", at(10));
            assert_eq!(until(&authority), [0, 0]);
            assert!(!authority.may_start("a", at(10)) && !authority.beat_is_due(at(100)));
        }
    }

    #[test]
    fn a_restart_is_announced_before_it_is_promised_and_taken_back_when_nothing_of_it_is_left() {
        let mut before = authority();
        let lease = before.lease(at(10));
        before.renewed(at(10), &lease);
        before.announce_restart();
        before.not_fenced("a", at(20));
        assert_eq!(until(&before), [60, 50], "nobody has read the longer duration yet");
        assert!(!before.is_announced());
        let lease = before.lease(at(20));
        assert_eq!(lease.duration, Duration::from_secs(20));
        before.renewed(at(20), &lease);
        assert!(before.is_announced());
        assert_eq!(until(&before), [220, 220]);

        let mut after = Authority::new(Timing::default(), "s", before.promised().clone(), at(50));
        let lease = after.lease(at(50));
        assert_eq!(lease.duration, Duration::from_secs(20), "a promise is left that is longer");
        after.renewed(at(50), &lease);
        assert_eq!(until(&after), [220, 220], "the longer lease is for the restart alone");
        assert_eq!(after.lease(at(179)).duration, Duration::from_secs(20));
        assert_eq!(after.lease(at(180)).duration, Duration::from_secs(4));
    }

    #[test]
    fn beats_are_for_a_node_that_the_api_server_does_not_hear() {
        let mut authority = authority();
        assert!(!authority.beat_is_due(at(13)));
        assert!(authority.beat_is_due(at(14)));
        let lease = authority.lease(at(14));
        authority.renewed(at(14), &lease);
        assert!(!authority.beat_is_due(at(27)) && authority.beat_is_due(at(28)));
    }
}
