//! Whether many nodes fell silent at once. What looks like that is mostly an outage that passes, of the network or of
//! power, and so many nodes that are ended would have to start everything anew on the few that are left.

use std::collections::BTreeMap;
use std::time::Duration;

/// Share of the nodes that may fall silent at once before it is a storm.
const SHARE: usize = 3;
/// How much longer is waited in a storm.
pub const WAIT: Duration = Duration::from_secs(10);
/// For how long a node that fell silent counts: one that has been dead for days says nothing of today.
pub const MEMORY: Duration = Duration::from_secs(60);

/// What counts of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is heard.
    Heard,
    /// It fell silent lately.
    Silent,
    /// It has been silent for longer than [`MEMORY`], or was dead before anybody looked.
    Dead,
}

/// Whether more than a third of the nodes, and at least two, or a whole zone of at least two nodes fell silent lately.
/// `nodes`: state and zone, if it is in one. That a cluster has only one zone does not make it silent as a zone.
#[must_use]
pub fn is_storm<'a>(nodes: impl IntoIterator<Item = (State, Option<&'a str>)>) -> bool {
    let (mut heard, mut silent) = (0, 0);
    let mut zones: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (state, zone) in nodes {
        let counts = match state {
            State::Heard => (1, 0),
            State::Silent => (0, 1),
            State::Dead => continue,
        };
        (heard, silent) = (heard + counts.0, silent + counts.1);
        if let Some(zone) = zone {
            let of_zone = zones.entry(zone).or_default();
            *of_zone = (of_zone.0 + counts.0, of_zone.1 + counts.1);
        }
    }
    let share = silent > 1 && silent * SHARE > heard + silent;
    share || zones.values().any(|(heard, silent)| *heard == 0 && *silent > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_more_than_a_third_of_the_nodes_or_a_whole_zone() {
        use State::{Dead, Heard, Silent};
        for (nodes, expected) in [
            (vec![], false),
            (vec![(Silent, "a")], false),
            (vec![(Silent, "a"), (Heard, "a")], false),
            (vec![(Silent, "a"), (Silent, "a"), (Heard, "a"), (Heard, "a"), (Heard, "b"), (Heard, "b")], false),
            (vec![(Silent, "a"), (Silent, "a"), (Heard, "a"), (Heard, "b"), (Heard, "b")], true),
            (vec![(Silent, "a"), (Silent, "a"), (Heard, "b"), (Heard, "b"), (Heard, "b"), (Heard, "b")], true),
            (vec![(Silent, "a"), (Dead, "a"), (Heard, "b"), (Heard, "b"), (Heard, "b"), (Heard, "b")], false),
            (vec![(Dead, "a"), (Dead, "a"), (Silent, "b"), (Heard, "b")], false),
        ] {
            assert_eq!(is_storm(nodes.iter().map(|(state, zone)| (*state, Some(*zone)))), expected, "{nodes:?}");
        }
        assert!(!is_storm([
            (Silent, None),
            (Silent, None),
            (Heard, None),
            (Heard, None),
            (Heard, None),
            (Heard, None)
        ]));
    }
}
