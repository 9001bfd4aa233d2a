//! How long an environment may run: the rule of the shim (rule 2). It needs nobody but the clock and what the node driver
//! has published, so it holds when the driver, the API server and the stores are all gone.

use crate::Instant;

/// What a node driver publishes for the environments whose journals are in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published<'a> {
    /// The session that promises it.
    pub session: &'a str,
    /// The boot of the machine.
    pub boot: &'a str,
    /// Until when environments may run.
    pub until: Instant,
}

/// What an environment may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Run until this instant, then ask again.
    Run {
        /// The instant.
        until: Instant,
    },
    /// Stand still until something else is published.
    Freeze,
    /// End: the session that it was started under is over.
    End,
}

/// Judges what is published at `now` for an environment that was started under a session in this boot.
#[must_use]
pub fn judge(published: Option<Published<'_>>, session: &str, boot: &str, now: Instant) -> Permit {
    match published {
        Some(lease) if lease.session == session && lease.boot == boot => {
            if now < lease.until {
                Permit::Run { until: lease.until }
            } else {
                Permit::Freeze
            }
        }
        _ => Permit::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_is_good_for_its_session_its_boot_and_its_time() {
        let published = |session, boot, until| Some(Published { session, boot, until: Instant(until) });
        for (found, expected) in [
            (published("s", "b", 11), Permit::Run { until: Instant(11) }),
            (published("s", "b", 10), Permit::Freeze),
            (published("other", "b", 11), Permit::End),
            (published("s", "other", 11), Permit::End),
            (None, Permit::End),
        ] {
            assert_eq!(judge(found, "s", "b", Instant(10)), expected, "{found:?}");
        }
    }
}
