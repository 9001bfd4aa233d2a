//! When a node is suspect (rules 5 and 7): seen from one observer, on its own clock.
//!
//! A node that is cut off from the API server shows by beats in the store that it lives. An observer that was itself cut
//! off has seen nothing, so its timers start anew. To suspect a node that lives does no harm to data; it kills the
//! environments of a node that need not have died.

use std::time::Duration;

use crate::node::Lease;
use crate::{Instant, Timing};

/// What an observer knows of one node.
#[derive(Clone, Debug)]
pub struct Observer {
    timing: Timing,
    /// Answer of the API server that came last.
    contact: Option<Instant>,
    /// The `Lease` as it was seen last, and since when it is so.
    lease: Option<Seen<String>>,
    duration: Duration,
    /// When the node wrote it, in milliseconds of its clock.
    renewed: u64,
    /// The newest beat that is newer than the `Lease`, and when it was made, at the latest.
    beat: Option<Seen<u64>>,
}

#[derive(Clone, Debug)]
struct Seen<T> {
    what: T,
    since: Instant,
}

impl Observer {
    /// Nothing is known.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self { timing, contact: None, lease: None, duration: timing.lease, renewed: 0, beat: None }
    }

    /// The API server answered at `now` a question that it was asked at or after the answer before: the node's `Lease` has
    /// this version and content.
    pub fn saw_lease(&mut self, version: &str, lease: &Lease, now: Instant) {
        let blind = self.contact.is_none_or(|last| now.since(last) > self.timing.contact);
        self.contact = Some(now);
        (self.duration, self.renewed) = (lease.duration, lease.renewed);
        if self.lease.as_ref().is_none_or(|seen| seen.what != version) {
            self.lease = Some(Seen { what: version.into(), since: now });
            self.beat = None;
        } else if blind {
            self.lease.iter_mut().for_each(|lease| lease.since = now);
            self.beat.iter_mut().for_each(|beat| beat.since = now);
        }
    }

    /// The newest beat of the node's session in a store. It may have been made long before it is found, by a node that is
    /// dead, if the store did not answer meanwhile. By the node's clock it was made so and so long after the `Lease` was
    /// written, which was seen later than that.
    pub fn saw_beat(&mut self, number: u64, now: Instant) {
        if number <= self.renewed || self.beat.as_ref().is_some_and(|seen| seen.what >= number) {
            return;
        }
        let after = Duration::from_millis(number - self.renewed);
        let made = self.lease.as_ref().map_or(now, |lease| lease.since.after(after).min(now));
        self.beat = Some(Seen { what: number, since: made });
    }

    /// The node has begun another session: what was seen of the former one says nothing.
    pub fn new_session(&mut self, now: Instant) {
        self.beat = None;
        if let Some(lease) = &mut self.lease {
            lease.since = now;
        }
    }

    /// For how long the node's `Lease` has not changed.
    #[must_use]
    pub fn silent_for(&self, now: Instant) -> Duration {
        self.lease.as_ref().map_or(Duration::ZERO, |lease| now.since(lease.since))
    }

    /// Whether beats of the node should be looked for: its `Lease` has not changed for longer than a node needs to renew it.
    #[must_use]
    pub fn wants_beats(&self, now: Instant) -> bool {
        self.silent_for(now) > self.timing.beat_after
    }

    /// Whether the node is suspect.
    #[must_use]
    pub fn is_suspect(&self, now: Instant) -> bool {
        self.is_silent(now, self.timing.silence)
    }

    /// Whether the node will be suspect soon, unless it is heard. Nodes that fall silent at the same instant renewed their
    /// leases at different ones: when the first of them is suspect, this is so of all.
    #[must_use]
    pub fn falls_silent(&self, now: Instant) -> bool {
        self.is_silent(now, self.timing.silence.saturating_sub(self.timing.renew * 3 / 2))
    }

    fn is_silent(&self, now: Instant, silence: Duration) -> bool {
        let in_contact = self.contact.is_some_and(|last| now.since(last) <= self.timing.contact);
        let extension = self.duration.saturating_sub(self.timing.lease);
        in_contact
            && self.silent_for(now) > silence + extension
            && self.beat.as_ref().is_none_or(|beat| now.since(beat.since) > silence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(4);

    fn at(tenths: u64) -> Instant {
        Instant(tenths * 100_000_000)
    }

    /// A lease that was written at an instant of the node's clock, which here is that of everybody.
    fn lease(duration: Duration, written: u64) -> Lease {
        Lease { session: "s".into(), duration, fenced: false, renewed: at(written).as_millis() }
    }

    /// Looks every second from `from` on, and says when the node was first suspect.
    fn watch(observer: &mut Observer, from: u64, to: u64, duration: Duration) -> Option<u64> {
        for now in (from..=to).step_by(10) {
            observer.saw_lease("1", &lease(duration, 0), at(now));
            if observer.is_suspect(at(now)) {
                return Some(now);
            }
        }
        None
    }

    #[test]
    fn a_node_that_falls_silent_is_suspect_after_the_silence() {
        let mut observer = Observer::new(Timing::default());
        assert!(!observer.is_suspect(at(1000)), "nothing was seen");
        assert_eq!(watch(&mut observer, 0, 100, T), Some(40));
        observer.saw_lease("2", &lease(T, 50), at(50));
        assert!(!observer.is_suspect(at(50)), "it was renewed");
    }

    #[test]
    fn an_announced_restart_is_waited_for() {
        let mut observer = Observer::new(Timing::default());
        assert_eq!(watch(&mut observer, 0, 300, Duration::from_secs(20)), Some(200));
    }

    #[test]
    fn an_observer_that_was_blind_begins_anew() {
        let mut observer = Observer::new(Timing::default());
        assert_eq!(watch(&mut observer, 0, 30, T), None);
        assert!(!observer.is_suspect(at(60)), "nothing is known of the last seconds");
        assert_eq!(watch(&mut observer, 60, 200, T), Some(100));
    }

    #[test]
    fn beats_speak_for_a_node() {
        let mut observer = Observer::new(Timing::default());
        for now in (0..200).step_by(10) {
            observer.saw_lease("1", &lease(T, 0), at(now));
            if observer.wants_beats(at(now)) {
                observer.saw_beat(at(now).as_millis(), at(now));
            }
            assert!(!observer.is_suspect(at(now)), "{now}");
        }
        assert_eq!(watch(&mut observer, 200, 300, T), Some(230), "the last beat was at 19 s");
    }

    /// Looks twice a second at a lease that was written at `from`, also for beats, and says how much later the node was
    /// first suspect, in tenths of a second. `beat`: when the newest was made that is found.
    fn watch_beats(observer: &mut Observer, from: u64, beat: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        for now in (from..from + 200).step_by(5) {
            observer.saw_lease(&from.to_string(), &lease(T, from), at(now));
            if let Some(made) = beat(now).filter(|_| observer.wants_beats(at(now))) {
                observer.saw_beat(at(made).as_millis(), at(now));
            }
            if observer.is_suspect(at(now)) {
                return Some(now - from);
            }
        }
        None
    }

    #[test]
    fn a_beat_speaks_for_when_it_was_made_and_not_for_when_it_is_found() {
        let mut observer = Observer::new(Timing::default());
        let without = watch_beats(&mut observer, 0, |_| None);
        assert_eq!(without, Some(40));
        // It was left by a renewal that had no answer in time.
        assert_eq!(watch_beats(&mut observer, 100, |_| Some(93)), without);
        // The store did not answer before.
        assert_eq!(watch_beats(&mut observer, 200, |now| (now >= 230).then_some(193)), without);
        // The node goes on beating, from 1.4 to 2.3 s after its last renewal on, which was seen up to half a second later.
        for first in 309..324 {
            let beats = |now: u64| (now >= first).then(|| now - (now - first) % 10);
            assert_eq!(watch_beats(&mut Observer::new(Timing::default()), 300, beats), None, "{first}");
            let after_old = |now: u64| beats(now).or(Some(293));
            assert_eq!(watch_beats(&mut Observer::new(Timing::default()), 300, after_old), None, "{first}");
        }
        // It died after a beat that is found a second later.
        assert_eq!(watch_beats(&mut observer, 600, |now| (now >= 630).then_some(620)), Some(60));
    }

    #[test]
    fn a_beat_of_a_node_that_does_not_say_when_it_renewed_its_lease_speaks_for_when_it_is_found() {
        let mut observer = Observer::new(Timing::default());
        for now in (10_000..10_060).step_by(5) {
            observer.saw_lease("1", &lease(T, 0), at(now));
            if now == 10_020 {
                observer.saw_beat(at(9000).as_millis(), at(now));
            }
            assert!(!observer.is_suspect(at(now)), "{now}");
        }
        observer.saw_lease("1", &lease(T, 0), at(10_060));
        assert!(observer.is_suspect(at(10_060)));
    }

    #[test]
    fn what_was_seen_of_a_former_session_says_nothing() {
        let mut observer = Observer::new(Timing::default());
        assert_eq!(watch(&mut observer, 200, 235, T), None);
        observer.new_session(at(231));
        assert!(!observer.is_suspect(at(231)));
    }
}
