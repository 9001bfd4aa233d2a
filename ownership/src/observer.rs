//! When a node is suspect (rules 5 and 7): seen from one observer, on its own clock.
//!
//! A node that is cut off from the API server shows by beats in the store that it lives. An observer that was itself cut
//! off has seen nothing, so its timers start anew. To suspect a node that lives does no harm to data; it kills the
//! environments of a node that need not have died.

use std::time::Duration;

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
    /// The newest beat that was looked for since the `Lease` changed, and since when.
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
        Self { timing, contact: None, lease: None, duration: timing.lease, beat: None }
    }

    /// The API server answered at `now` a question that it was asked at or after the answer before: the node's `Lease` has
    /// this version and duration.
    pub fn saw_lease(&mut self, version: &str, duration: Duration, now: Instant) {
        let blind = self.contact.is_none_or(|last| now.since(last) > self.timing.contact);
        self.contact = Some(now);
        self.duration = duration;
        if self.lease.as_ref().is_none_or(|seen| seen.what != version) {
            self.lease = Some(Seen { what: version.into(), since: now });
            self.beat = None;
        } else if blind {
            self.lease.iter_mut().for_each(|lease| lease.since = now);
            self.beat.iter_mut().for_each(|beat| beat.since = now);
        }
    }

    /// The newest beat of the node's session in a store. The first that is found may have been there before the node fell
    /// silent. So it says nothing if it is found so early that the next of a living node will be found in time.
    pub fn saw_beat(&mut self, number: u64, now: Instant) {
        let early = self.silent_for(now) <= self.timing.beat_after + self.timing.renew * 6 / 10;
        let since = match (&self.beat, &self.lease) {
            (Some(seen), _) if seen.what >= number => return,
            (None, Some(lease)) if early => lease.since,
            _ => now,
        };
        self.beat = Some(Seen { what: number, since });
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

    /// Looks every second from `from` on, and says when the node was first suspect.
    fn watch(observer: &mut Observer, from: u64, to: u64, duration: Duration) -> Option<u64> {
        for now in (from..=to).step_by(10) {
            observer.saw_lease("1", duration, at(now));
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
        observer.saw_lease("2", T, at(50));
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
            observer.saw_lease("1", T, at(now));
            if observer.wants_beats(at(now)) {
                observer.saw_beat(now, at(now));
            }
            assert!(!observer.is_suspect(at(now)), "{now}");
        }
        assert_eq!(watch(&mut observer, 200, 300, T), Some(230), "the last beat was at 19 s");
    }

    /// Looks twice a second, also for beats, and says when the node was first suspect, in tenths of a second.
    fn watch_beats(observer: &mut Observer, from: u64, beat: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        for now in (from..from + 200).step_by(5) {
            observer.saw_lease(&from.to_string(), T, at(now));
            if let Some(number) = beat(now).filter(|_| observer.wants_beats(at(now))) {
                observer.saw_beat(number, at(now));
            }
            if observer.is_suspect(at(now)) {
                return Some(now - from);
            }
        }
        None
    }

    #[test]
    fn a_beat_that_was_there_before_the_node_fell_silent_does_not_speak_for_it() {
        let mut observer = Observer::new(Timing::default());
        let without = watch_beats(&mut observer, 0, |_| None);
        assert_eq!(without, Some(40));
        // It was left by a renewal that had no answer in time.
        assert_eq!(watch_beats(&mut observer, 100, |_| Some(7)), without);
        // Another one, that nobody looked at.
        assert_eq!(watch_beats(&mut observer, 200, |_| Some(8)), without);
        // The node goes on beating, from 1.4 to 2.3 s after its last renewal on, which was seen up to half a second later.
        for first in 309..324 {
            let beats = |now: u64| (now >= first).then(|| 9 + (now - first) / 10);
            assert_eq!(watch_beats(&mut Observer::new(Timing::default()), 300, beats), None, "{first}");
            let after_old = |now: u64| beats(now).or(Some(8));
            assert_eq!(watch_beats(&mut Observer::new(Timing::default()), 300, after_old), None, "{first}");
        }
        // Beats that are found late, because the store did not answer before, may be new.
        let found_late = watch_beats(&mut observer, 600, |now| (now >= 620).then_some(30));
        assert_eq!(found_late, Some(60));
    }

    #[test]
    fn what_was_seen_of_a_former_session_says_nothing() {
        let mut observer = Observer::new(Timing::default());
        assert_eq!(watch(&mut observer, 200, 235, T), None);
        observer.new_session(at(231));
        assert!(!observer.is_suspect(at(231)));
    }
}
