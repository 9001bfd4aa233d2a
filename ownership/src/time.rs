//! Instants and the times of the protocol.

use std::time::Duration;

/// An instant of one machine's clock that only goes forward (`CLOCK_BOOTTIME` on a node), in nanoseconds. Instants of
/// different machines are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
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

impl Timing {
    /// How long has to be waited on another machine until a promise of `duration` is certainly over.
    #[must_use]
    pub fn wait_out(&self, duration: Duration) -> Duration {
        duration + duration * self.skew_percent / 100 + self.margin
    }
}
