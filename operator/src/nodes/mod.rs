//! Nodes that die: each replica of the operator watches the leases of all nodes, and ends the session of one that fell
//! silent (ownership protocol, rules 5 and 7 to 9). What it knows of ended sessions is in [`Deaths`]; the pipeline of an
//! environment reads it, and takes volumes over ([`crate::environment`]).
//!
//! | file | does |
//! |---|---|
//! | [`watch`] | asks the API server twice a second, and the stores for beats and fences; carries out what [`book`] says |
//! | [`book`] | what is known of each node and session: which is suspect, which is being ended, which is over (pure) |
//! | [`stores`] | opens the stores that journals are in |
//!
//! Every replica does this, whether it leads or not: waiting for an election first would take longer than the whole
//! failover may. Each step can be done by several at once. Only the leader gives volumes to other nodes.

pub mod book;
pub mod stores;
pub mod watch;

use std::collections::BTreeMap;

use jiff::Timestamp;

/// A session that is being ended, for good: its fence is in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Name of the node.
    pub node: String,
    /// Whether the node has begun another session since.
    pub is_back: bool,
    /// When the node was found to be silent.
    pub detected: Timestamp,
    /// Stores that the session's volumes are in, and since when nothing of the session runs on them; none: not yet.
    pub over: BTreeMap<String, Option<Timestamp>>,
}

/// Sessions that are over or being ended, by session.
pub type Deaths = BTreeMap<String, Death>;

/// The machine that a session is of: a session is `<random id>.<machine id>.<boot id>`.
fn machine(session: &str) -> Option<&str> {
    session.split('.').nth(1).filter(|machine| !machine.is_empty())
}

/// Whether a node that acts under session `now` can run nothing of session `then` any more: a driver kills everything
/// before it begins a session on the same machine, and a new boot of it runs nothing of the one before (rule 9).
#[must_use]
pub fn is_superseded(then: &str, now: &str) -> bool {
    then != now && machine(then).is_some() && machine(then) == machine(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_session_of_the_same_machine_supersedes() {
        for (then, now, expected) in [
            ("a.m.b", "c.m.d", true),
            ("a.m.b", "c.m.b", true),
            ("a.m.b", "a.m.b", false),
            ("a.m.b", "c.n.d", false),
            ("a..b", "c..d", false),
            ("a", "b", false),
        ] {
            assert_eq!(is_superseded(then, now), expected, "{then} {now}");
        }
    }
}
