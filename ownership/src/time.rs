//! Instants and the times of the protocol.

use std::time::Duration;

/// An instant of one machine's clock that only goes forward (`CLOCK_BOOTTIME` on a node), in nanoseconds. Instants of
/// different machines are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The same in whole milliseconds: numbers of beats.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The instant a duration later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The times of the protocol. All parts of a cluster must use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a node asks its witnesses.
    pub renew: Duration,
    /// How long a node may act after a witness heard from it (T).
    pub lease: Duration,
    /// How long a node is silent before it is suspect (D).
    pub silence: Duration,
    /// What is waited beyond a lease, besides [`Self::skew_percent`].
    pub margin: Duration,
    /// By how much the clocks of two machines may run apart, in percent.
    pub skew_percent: u32,
    /// How long a node may act that has announced a restart of its driver.
    pub extension: Duration,
    /// How long an API server may fail a node before the node shows by beats in the store that it lives.
    pub beat_after: Duration,
    /// Longest time between two answers of the API server in which an observer counts as having seen everything.
    pub contact: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            renew: Duration::from_secs(1),
            lease: Duration::from_secs(4),
            silence: Duration::from_millis(3500),
            margin: Duration::from_millis(500),
            skew_percent: 2,
            extension: Duration::from_secs(20),
            beat_after: Duration::from_millis(1300),
            contact: Duration::from_secs(2),
        }
    }
}

/// Times that the protocol does not work with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTiming(String);

impl std::fmt::Display for BadTiming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadTiming {}

impl Timing {
    /// The times with another lease (T) and another silence (D). From the death of a node until its volumes may be taken
    /// over it takes D + 1.02 T + 0.5 s, and half a second for asking.
    ///
    /// # Errors
    /// One is too short for nodes that live to renew in time, or so long that it is a mistake.
    pub fn with(lease: Duration, silence: Duration) -> Result<Self, BadTiming> {
        let usual = Self::default();
        let longest = Duration::from_secs(60);
        // A lease says its duration in whole seconds.
        if lease.subsec_nanos() != 0 || lease < Duration::from_secs(3) || lease > longest {
            return Err(BadTiming(format!(
                "a lease of {} s cannot be: it is a whole number of seconds from 3 to 60 (lease.seconds in the chart's values)",
                lease.as_secs_f64()
            )));
        }
        // Three renewals have to fail, and a beat has to be late, before a node counts as silent.
        if silence < usual.silence || silence > longest {
            return Err(BadTiming(format!(
                "a silence of {} s cannot be: it is from {} to 60 s (lease.silenceSeconds in the chart's values)",
                silence.as_secs_f64(),
                usual.silence.as_secs_f64()
            )));
        }
        Ok(Self { lease, silence, extension: usual.extension.max(lease * 5), ..usual })
    }

    /// How long has to be waited on another machine until a promise of `duration` is certainly over.
    #[must_use]
    pub fn wait_out(&self, duration: Duration) -> Duration {
        duration + duration * self.skew_percent / 100 + self.margin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_would_end_nodes_that_live_are_refused() {
        let ms = Duration::from_millis;
        assert_eq!(Timing::with(ms(4000), ms(3500)), Ok(Timing::default()));
        let slow = Timing::with(ms(10_000), ms(8000)).unwrap();
        assert_eq!((slow.lease, slow.silence, slow.extension), (ms(10_000), ms(8000), ms(50_000)));
        for (lease, silence, wrong) in [
            (2000, 3500, "lease"),
            (4500, 3500, "lease"),
            (61_000, 3500, "lease"),
            (4000, 3000, "silence"),
            (4000, 61_000, "silence"),
        ] {
            let error = Timing::with(ms(lease), ms(silence)).unwrap_err().to_string();
            assert!(error.contains(wrong), "{lease} {silence}: {error}");
        }
    }
}
